"""Runs that broke a rule once, kept as they were."""

from netsim.plan import Cut, Load, Plan, Weather, decode_plan
from netsim.run import run_plan

MOST_EVENTS = 50_000  # the run has some 3,000; the fault made them grow without end


def test_late_requests_do_not_multiply_while_a_gateway_lags() -> None:
    """A ring cut and many repeated messages: a gateway that could not apply the links it was sent routed again and
    again to the same node, which sent every copy on behind the tail."""
    ring = [((0,), (2, 1)), ((4,), (1, 3)), ((2,), (0, 3)), ((1,), (0, 4)), ((3,), (4, 2))]
    load = Load(accounts=2, requests=60, hot=0.3, overdraft=0.2, pinned=0.1, cancel=0.0, spend=0.6, session=0.3)
    plan = Plan(
        6112,
        5,
        2,
        Weather(loss=0.05, repeat=0.5, delay_mean_s=0.05),
        load,
        tuple(Cut(3.313837053591151, a, b, 6.8613795631654915) for a, b in ring),
    )
    result = run_plan(plan)
    assert result.ok, (result.rule, result.problem)
    assert result.events < MOST_EVENTS


def test_income_that_a_newer_link_confirmed_is_not_missed_by_a_linearizable_read() -> None:
    """Slow and lossy: a node asked whether the tip it had was the last one, then for income. In between the next link
    confirmed it, so those who had applied that link no longer named it; the read showed neither the link nor the money.
    (tests/node/test_income.py shows the mend itself.)"""
    load = Load(
        accounts=2,
        requests=30,
        hot=0.5,
        again=0.0,
        overdraft=0.0,
        pinned=0.0,
        cancel=0.0,
        nobody=0.0,
        reopen=0.0,
        forge=0.0,
        read=0.5,
        session=0.0,
        expiring=0.0,
    )
    plan = Plan(21171, 3, 2, Weather(loss=0.3, repeat=0.2, delay_mean_s=0.15), load, fault_s=6.0)
    result = run_plan(plan)
    assert result.ok, (result.rule, result.problem)


def test_who_was_late_in_an_epoch_may_still_finish_it_when_two_more_have_come() -> None:
    """A new member was ACTIVE at once and died; one more came and was removed. An old member had not finished the first
    of these epochs, forgot it, and could learn of the later ones from too few: its keys stood still for ever."""
    raw = (
        '{"core_s": 10.0, "fault_s": 10.0, "faults": [{"at": 1.3125101295951067, "fresh": false, "kind": "add", "node": 3},'
        ' {"at": 1.3765035547246969, "kind": "die", "node": 3}, {"at": 1.5824998350143504, "fresh": false, "kind": "add",'
        ' "node": 4}, {"at": 1.933284616400878, "force": true, "kind": "remove", "node": 4, "stop": true}], "files": false,'
        ' "heal_s": 40.0, "k": 3, "load": {"accounts": 2, "again": 0.0, "cancel": 0.0, "expiring": 0.0, "forge": 0.0,'
        ' "funds": 1000, "hot": 0.0, "max_postings": 3, "nobody": 0.0, "overdraft": 0.0, "pinned": 0.0, "read": 0.15,'
        ' "reopen": 0.0, "requests": 58, "session": 0.0, "spend": 0.0, "timeout_s": [0.5, 5.0, 20.0]}, "max_confirmed": 0,'
        ' "nodes": 3, "seed": 716, "spares": 4, "weather": {"delay_mean_s": 0.001, "delay_min_s": 0.0005, "loss": 0.05,'
        ' "repeat": 0.0}}'
    )
    result = run_plan(decode_plan(raw.encode()))
    assert result.ok, (result.rule, result.problem)


def test_a_disk_that_is_put_back_while_its_node_is_down_is_older_than_what_others_saw() -> None:
    """Seed 951326: the simulator counted the votes of the node that was down as none, and put the same disk back."""
    raw = (
        '{"core_s": 10.0, "fault_s": 2.5, "faults": [{"at": 2.159501474092611, "kind": "kill", "node": 0, "point": "idle",'
        ' "until": 3.143015658836276}, {"at": 2.365497159285025, "disk": "old", "kind": "rollback", "node": 0,'
        ' "until": 7.365497159285026}], "files": false, "heal_s": 40.0, "k": 3, "load": {"accounts": 2, "again": 0.0,'
        ' "cancel": 0.0, "expiring": 0.0, "forge": 0.0, "funds": 1000, "hot": 0.0, "max_postings": 3, "nobody": 0.0,'
        ' "overdraft": 0.0, "pinned": 0.0, "read": 0.0, "reopen": 0.0, "requests": 1, "session": 0.0, "spend": 0.0,'
        ' "timeout_s": [0.5, 5.0, 20.0]}, "max_confirmed": 0, "nodes": 3, "seed": 951326, "spares": 0,'
        ' "weather": {"delay_mean_s": 0.001, "delay_min_s": 0.0005, "loss": 0.0, "repeat": 0.0}}'
    )
    result = run_plan(decode_plan(raw.encode()))
    assert result.ok, (result.rule, result.problem)

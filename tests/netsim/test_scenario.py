"""Scenario files: read strictly, in words that are resolved while they run."""

import re
from pathlib import Path

import msgspec
import pytest

from chain.errors import LocalMisuse
from chain.needs import Loaded
from netsim.plan import Plan, decode_plan, encode_plan
from netsim.roles import FIXED, Roles
from netsim.run import run_plan
from netsim.scenario import EXPECTS, FAULTS, REQUESTS, TOP, read_scenario
from netsim.stage import perform, perform_plan
from netsim.verdict import judge, not_judged
from node.core import Core
from node.effects import Effects
from node.turn import Now

SMALL = """
title = "one payment"
nodes = 3
k = 3
seed = 4
fault_s = 2.0
heal_s = 8.0
request = [ { name = "pay", at = 0.5, account = "alice", to = "bob", amount = 30, via = "node-1" } ]
expect = [ { that = "answers", request = "pay", is = "completed" } ]
[accounts]
alice = 100
bob = 0
"""


def error_of(text: str) -> str:
    with pytest.raises(LocalMisuse) as caught:
        read_scenario(text, "bad")
    return str(caught.value)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ('nodez = 3\n[a]\n', "nodez is not known: a scenario has title, about"),
        ("nodes = 99", "nodes is 99; it must be a whole number from 1 to 64"),
        ("nodes = true", "nodes is True; it must be a whole number"),
        ("seed = 1.5", "seed is 1.5; it must be a whole number"),
        ("fault_s = 'long'", "fault_s is 'long'; it must be a number from 0.1 to 3600"),
        ("files = 1", "files is 1; it must be true or false"),
        ("fault = 3", "fault must be a list of tables: [[fault]]"),
        ("load = 3", "load must be a table: [load]"),
        ("[load]\nhots = 0.5", "load: hots is not known: it may be accounts, again, cancel"),
        ("[weather]\nloss = 2", "weather: loss is 2; it must be from 0 to 1"),
        ("[accounts]\nAlice = 1", "'Alice'"),
        ("[sides]\nleft = 'node-9'", "sides.left: node-9 does not exist: with 5 nodes they are node-0 to node-4"),
        ("[sides]\nleft = 'rest'\nright = 'rest'", "only one of them may be 'rest'"),
        ("[sides]\nleft = []", "left is []; it must be a text or a list of texts"),
        ("[[fault]]\nkind = 'kut'\nat = 1", "fault[0]: kind is 'kut'; it must be one of cut, ring, clog, hold, kill"),
        ("[[fault]]\nkind = 'kill'\nnodes = 'node-0'\nuntil = 2", "fault[0]: at is missing"),
        ("[[fault]]\nkind = 'kill'\nnodes = 'node-0'\nat = 3\nuntil = 2", "until is 2; it must be from 3 to 3600"),
        ("[[fault]]\nkind = 'kill'\nnodes = 'all'\nat = 1\nuntil = 2\npoint = 'x'", "point is 'x'; it must be one of idle, before_commit"),
        ("[[fault]]\nkind = 'pause'\nnodes = 'all'\nat = 1\nuntil = 2\nms = 4", "ms is not known: a fault of kind pause has kind, at"),
        ("[[fault]]\nkind = 'cut'\nat = 1\nuntil = 2\nbetween = ['all']", "between must name two sides or more"),
        ("[[fault]]\nkind = 'cut'\nat = 1\nuntil = 2\nbetween = 'all'", "between is 'all'; it must be a list"),
        ("[[fault]]\nkind = 'kill'\nat = 1\nuntil = 2\nnodes = 'owner-of:zoe'", "owner-of:zoe: the account must be one of mint"),
        ("[[fault]]\nkind = 'kill'\nat = 1\nuntil = 2\nnodes = 'boss'", "'boss' names no nodes; it may be node-0 to node-4, all, majority"),
        ("[[fault]]\nkind = 'ring'\nat = 1\nuntil = 2\nwhen = 'later'", "when is 'later'; it may be proposed:ACCOUNT, voted:ACCOUNT, decided:ACCOUNT"),
        ("[[fault]]\nkind = 'ring'\nat = 1\nuntil = 2\nwhen = 'voted:zoe'", "when names account 'zoe'; it must be one of mint"),
        ("[[request]]\nname = 'a'\nat = 1\naccount = 'zoe'\nto = 'bob'\namount = 1\nvia = 'all'", "request[0].account 'zoe' must be one of mint"),
        ("[[request]]\nname = 'a'\nat = 1\naccount = 'mint'\nto = 'bob'\namount = 0\nvia = 'all'", "amount is 0; it must be a whole number from 1"),
        ("[[request]]\nname = 'a'\nat = 1\nkind = 'again'\ntarget = 'b'\nvia = 'all'", "request[0].target 'b' must be one before it: (there is none)"),
        ("[[request]]\nname = 'a'\nat = 1\nkind = 'read'\naccount = 'mint'\nvia = 'node-7'", "request[0].via: node-7 does not exist"),
        ("[[expect]]\nthat = 'joy'\nat_least = 1", "expect[0]: that is 'joy'; it must be one of answers, recorded"),
        ("[[expect]]\nthat = 'lost'", "at_least or at_most or exactly must be given"),
        ("[[expect]]\nthat = 'window_s'\nexactly = 1", "exactly is not known: an expectation of window_s has that"),
        ("[[expect]]\nthat = 'answers'\nis = 'done'", "is is 'done'; it must be one of completed, insufficient_funds"),
        ("[[expect]]\nthat = 'answers'\nrequest = 'x'\nis = 'completed'", "expect[0].request 'x' must be one of (there is none)"),
        ("[[expect]]\nthat = 'messages'\nmessage = 'hi'\nat_least = 1", "message is 'hi'; it must be one of prepare, promise"),
        ("[[expect]]\nthat = 'balance'\naccount = 'zoe'\nexactly = 1", "expect[0].account 'zoe' must be one of mint"),
        ("title = 'again'", "is not TOML"),
        ("node = 3", "request, expect; did you mean nodes?"),
        ("[[faults]]\nkind = 'kill'", "did you mean fault_s or fault?"),
        ("[[fault]]\nkind = 'slow_disk'\nat = 1\nuntil = 2\nnodes = 'all'\ncommit = 1", "stagger_s; did you mean commit_s?"),
        ("[[fault]]\nkind = 'kil'\nat = 1", "die, bury; did you mean kill?"),
        ("[[fault]]\nkind = 'hold'\nmessages = 'accepts'\nsource = 'all'\ntarget = 'all'\nat = 1\nuntil = 2", "did you mean accept"),
        ("[[fault]]\nkind = 'kill'\nnodes = 1\nat = 1\nuntil = 2", "nodes is 1; it must be a text or a list of texts, in quotes"),
        ("[[fault]]\nkind = 'kill'\nnodes = 'node-5'\nat = 1\nuntil = 2", "fault[0]: node-5 does not exist: with 5 nodes they are node-0 to node-4 (`spares` adds"),
        ("spares = 1\n[[fault]]\nkind = 'kill'\nnodes = 'node-6'\nat = 1\nuntil = 2", "with 5 nodes and spares = 1 they are node-0 to node-5"),
        ("[[fault]]\nkind = 'add'\nnodes = 'spares'\nat = 1", "there are no spares; `spares = 1`, above all tables, makes one"),
        ("fault_s = 5\n[[fault]]\nkind = 'die'\nnodes = 'all'\nat = 5", "fault[0]: at is 5; it must be before fault_s, 5, when everything heals"),
        ("[[fault]]\nkind = 'die'\nnodes = 'all'\nat = 2\ntimes = 5\nevery_s = 2", "times is 5: from 2 on, every 2 s, the last one is at 10; it must be before fault_s, 10"),
        ("[[request]]\nname = 'a'\nat = 11\naccount = 'mint'\nto = 'bob'\namount = 1\nvia = 'all'", "request[0]: at is 11; it must be before fault_s"),
        ("spares = 2\n[[fault]]\nkind = 'bury'\nat = 1\nnodes = 'node-1'\nspare = ['node-5', 'node-6']", "spare names 2, and nodes 1: each dead node needs its own"),
        ("[[expect]]\nthat = 'answers'\nis = 'completed'\nfrom = 5\nuntil = 4", "until is 4; it must be from 5 to 3600"),
        ("[[expect]]\nthat = 'lost'\nat_least = 3\nat_most = 2", "at_least is 3; it must be at most at_most, 2"),
        ("[accounts]\nalice = 1\nseed = 4", "accounts: seed is a key of the scenario and no name; write it above all tables"),
        ("[sides]\nmajority = 'node-0'", "sides: majority cannot name node-0: it names nodes already; take another name"),
        ("[sides]\nnode-1 = 'node-0'", "sides: node-1 cannot name node-0"),
    ],
)  # fmt: skip
def test_an_error_names_the_key_and_what_it_may_be(extra: str, says: str) -> None:
    text = error_of(f'title = "bad"\n{extra}\n')
    assert says in text
    assert "scenario bad" in text


def test_a_word_that_is_wrong_is_told_before_one_that_is_missing() -> None:
    with pytest.raises(LocalMisuse, match=r"^scenario x: titel is not known: .*; did you mean title\?$"):
        read_scenario("titel = 'x'", "x")


def test_a_name_is_used_once() -> None:
    twice = SMALL.replace(
        'via = "node-1" }',
        'via = "node-1" }, { name = "pay", at = 1, account = "bob", to = "alice", amount = 1, via = "all" }',
    )
    assert "request[1].name 'pay' is used before" in error_of(twice)


def test_the_command_line_replaces_sizes_and_seed() -> None:
    own = read_scenario(SMALL, "small")
    assert (own.plan.nodes, own.plan.k, own.plan.seed, own.resized) == (3, 3, 4, "")
    other = read_scenario(SMALL, "small", nodes=7, k=5, seed=9)
    assert (other.plan.nodes, other.plan.k, other.plan.seed) == (7, 5, 9)
    assert "3 nodes and k 3" in not_judged(other)
    assert not_judged(read_scenario(SMALL, "small", seed=9)) == ""


def test_expectations_about_the_files_sizes_are_left_out_when_it_is_resized() -> None:
    never = SMALL.replace('is = "completed" }', 'is = "stale" }')
    performance = perform(read_scenario(never, "n"))
    assert not judge(performance, read_scenario(never, "n"))[-1].ok
    resized = read_scenario(never, "n", nodes=4)
    assert all(v.name.startswith("I") for v in judge(performance, resized))
    anywhere = read_scenario(never.replace('"stale" }', '"stale", any_size = true }'), "n", nodes=4)
    assert not judge(performance, anywhere)[-1].ok


def test_words_name_nodes() -> None:
    groups = {"alice": (2, 0, 4)}
    roles = Roles(5, {"left": ("owner-of:alice", "node-3"), "right": ("rest",)}, lambda account: groups[account])
    assert roles.in_order("all") == (0, 1, 2, 3, 4)
    assert (roles.in_order("majority"), roles.in_order("minority")) == ((0, 1, 2), (3, 4))
    assert (roles.in_order("half-1"), roles.in_order("half-2")) == ((0, 1), (2, 3, 4))
    assert [roles.in_order(f"third-{i}") for i in (1, 2, 3)] == [(0, 3), (1, 4), (2,)]
    assert roles.in_order("owner-of:alice") == (2,)
    assert (roles.in_order("standby-1-of:alice"), roles.in_order("standby-2-of:alice")) == ((0,), (4,))
    assert roles.in_order("standby-3-of:alice") == ()
    assert roles.in_order("group-of:alice") == (2, 0, 4)
    assert roles.in_order("outside-of:alice") == (1, 3)
    assert roles.nodes_of(["node-4", "left"]) == (2, 3, 4)
    assert roles.in_order("right") == (0, 1, 4)


def test_a_side_stays_what_it_was_when_first_used() -> None:
    groups = {"alice": (2, 0, 4)}
    roles = Roles(5, {"alone": ("owner-of:alice",), "others": ("rest",)}, lambda account: groups[account])
    assert roles.in_order("alone") == (2,)
    groups["alice"] = (1, 3, 0)
    assert roles.in_order("owner-of:alice") == (1,)
    assert roles.in_order("alone") == (2,)
    roles.settle()
    assert roles.sides == {"alone": (2,), "others": (0, 1, 3, 4)}


def test_every_kind_of_request_runs() -> None:
    text = SMALL.replace(
        "request = [",
        """request = [
  { name = "late", kind = "open", at = 0.1, account = "zoe", via = "node-0" },
  { name = "look", kind = "read", at = 0.3, account = "alice", via = "all", linearizable = true, times = 3, every_s = 0.1 },""",
    ).replace(
        'via = "node-1" } ]',
        """via = "node-1" },
  { name = "repeat", kind = "again", target = "pay", at = 0.8, via = "node-2" },
  { name = "stop", kind = "cancel", target = "pay", at = 1.0, via = "node-2" },
  { name = "pinned", at = 1.2, account = "alice", to = "zoe", amount = 1, via = "node-0", expect_tip = "old" },
  { name = "fresh", at = 1.4, account = "alice", to = "zoe", amount = 1, via = "node-0", expect_tip = "current" } ]""",
    ).replace(
        "expect = [",
        """expect = [
  { that = "answers", request = "late", is = "completed" },
  { that = "answers", request = "look", is = "balance", exactly = 3 },
  { that = "answers", request = "repeat", is = "completed" },
  { that = "answers", request = "stop", is = "already_decided" },
  { that = "answers", request = "pinned", is = "stale" },
  { that = "recorded", request = "pinned", is = "none" },
  { that = "answers", request = "fresh", is = "completed" },
  { that = "links", account = "zoe", exactly = 1 },
  { that = "balance", account = "alice", exactly = 69 },""",
    )  # fmt: skip
    scenario = read_scenario(text, "kinds")
    performance = perform(scenario)
    assert [v for v in judge(performance, scenario) if not v.ok] == []
    assert len(performance.calls["look"]) == 3


def test_the_same_file_and_seed_give_the_same_trace_and_another_seed_another() -> None:
    first, again = perform(read_scenario(SMALL, "a")), perform(read_scenario(SMALL, "a"))
    assert first.trace == again.trace
    assert perform(read_scenario(SMALL, "a", seed=5)).trace != first.trace


def test_random_load_runs_beside_requests() -> None:
    scenario = read_scenario(SMALL + "\n[load]\naccounts = 2\nrequests = 8\n", "load")
    performance = perform(scenario)
    assert all(v.ok for v in judge(performance, scenario))
    assert {"acct-0", "acct-1", "alice"} <= performance.balances.keys()


def test_progress_and_until_leave_the_trace_alone() -> None:
    scenario = read_scenario(SMALL, "a")
    seen: list[float] = []
    whole = perform(scenario, progress=seen.append)
    assert whole.trace == perform(scenario).trace
    assert seen == sorted(seen)
    assert seen[-1] <= whole.ended_at < seen[-1] + 0.25 + 1e-9
    part = perform(scenario, until=1.7)
    assert (part.complete, part.ended_at, part.rule) == (False, 1.7, "")
    assert [v.name for v in judge(part, scenario) if v.name.startswith("expect")] == []
    assert "1.70 s" in judge(part, scenario)[0].found


def test_a_node_that_raises_whatever_it_is_ends_a_run_and_is_told_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = Plan(1, nodes=3, k=3)

    def step(self: Core, loaded: Loaded, now: Now) -> Effects:
        raise KeyError("nowhere")

    monkeypatch.setattr(Core, "step", step)
    performance, result = perform_plan(plan, "raises"), run_plan(plan)
    assert (performance.rule, performance.problem) == (result.rule, result.problem) == ("KeyError", "'nowhere'")
    assert performance.raised.endswith("in step\n    raise KeyError(\"nowhere\")\nKeyError: 'nowhere'\n")


def test_every_kind_of_fault_begins() -> None:
    keys = {
        "cut": 'between = ["node-0", "node-1"], until = 1.5, one_way = true',
        "ring": "until = 1.5",
        "clog": 'source = "node-0", target = "all", until = 1.5',
        "hold": 'messages = ["accept", "prepare"], source = "node-0", target = "all", until = 1.5, drop = true',
        "kill": 'nodes = "node-0", until = 1.5, point = "after_commit"',
        "pause": 'nodes = "node-1", until = 1.5, stagger_s = 0.1',
        "clock_jump": 'nodes = "all", ms = 5000',
        "slow_disk": 'nodes = "node-2", until = 1.5, commit_s = 0.05',
        "disk_error": 'nodes = "node-1", until = 1.5, error = "fsync"',
        "rollback": 'nodes = "node-1", disk = "emptied", until = 1.5',
        "weather": "until = 1.5, weather = { loss = 0.2 }",
        "add": 'nodes = "node-3", fresh = true',
        "remove": 'nodes = "node-0", stop = true, force = true',
        "die": 'nodes = "node-1"',
        "bury": 'nodes = "node-2", spare = "node-4"',
    }
    assert keys.keys() == FAULTS.keys()
    for kind, rest in keys.items():
        fault = f'fault = [ {{ kind = "{kind}", at = 0.4, {rest} }} ]\n'
        fault += "spares = 2\n"
        scenario = read_scenario(SMALL.replace("request = [", fault + "request = [").replace("expect", "#expect"), kind)
        performance = perform(scenario)
        assert performance.rule == "", performance.problem
        (shown,) = performance.record.faults
        assert (shown.kind, round(shown.at - performance.record.start, 6)) == (kind, 0.4)


def test_the_keys_of_a_scenario_are_all_there() -> None:
    assert ", ".join(TOP) in error_of('title = "bad"\nnodez = 3\n')


def test_a_side_may_have_the_name_of_what_it_is() -> None:
    assert read_scenario(SMALL + '[sides]\nmajority = "majority"\n', "same").sides == {"majority": ("majority",)}


def nothing_came(fault: str, nodes: int = 3) -> tuple[str, ...]:
    text = SMALL.replace("request = [", f"fault = [ {{ {fault} }} ]\nrequest = [")
    text = text.replace("nodes = 3\nk = 3", f"nodes = {nodes}\nk = {nodes}")
    return perform(read_scenario(text, "nothing")).nothing_came


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ('kind = "ring", at = 0, until = 1, when = "proposed:bob"', "fault[0] (ring) waited for proposed:bob, which did not happen"),
        ('kind = "pause", at = 0, until = 1, nodes = "standby-3-of:alice"', "fault[0] (pause) did nothing: its words named no node at that moment"),
        ('kind = "disk_error", at = 1.9, until = 1.901, nodes = "node-0"', "fault[0] (disk_error) did nothing: nothing that needed room was written in that time"),
        ('kind = "die", at = 0.1, nodes = "all"', ""),
    ],
)  # fmt: skip
def test_what_nothing_came_of_is_told(fault: str, says: str) -> None:
    assert nothing_came(fault) == ((says,) if says else ())


def test_what_the_network_could_not_bear_is_told() -> None:
    dies = 'kind = "die", at = 0.1, nodes = "node-0"'
    assert nothing_came(dies) == ()
    (text,) = nothing_came(dies, nodes=2)
    assert text.startswith("fault[0] (die) did nothing: the network could not go on afterwards")


def test_a_request_that_waited_in_vain_is_told() -> None:
    scenario = read_scenario(SMALL.replace("at = 0.5,", 'at = 0.5, when = "decided:bob",'), "vain")
    assert perform(scenario).nothing_came == ("request pay waited for decided:bob, which did not happen",)


def test_the_scenario_in_the_manual_holds() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()
    text, _ = re.findall(r"```toml\n(.*?)```", manual, re.S)  # the second is a part of one
    for nodes in (None, 7):
        scenario = read_scenario(text, "manual", nodes=nodes)
        assert [v for v in judge(perform(scenario), scenario) if not v.ok] == []


def test_the_faults_to_begin_with_in_the_manual_happen() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()
    text, _ = re.findall(r"```toml\n(.*?)```", manual, re.S)
    own = re.search(r"fault = \[\n.*?\n\]\n", text, re.S)
    expected = re.search(r"expect = \[\n.*?\n\]\n", text, re.S)
    assert own
    assert expected
    faults = re.findall(r"^\| .* \| `(\{ kind = .*\})` \|$", manual, re.M)
    assert len(faults) == 5
    for fault in faults:
        mine = text.replace(own[0], f"fault = [ {fault} ]\n").replace(expected[0], "")
        scenario = read_scenario(mine, "mine")
        performance = perform(scenario)
        assert [v for v in judge(performance, scenario) if not v.ok] == []
        assert performance.record.faults
        assert performance.nothing_came == ()


def test_the_manual_names_every_key() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()
    wanted = {*FAULTS, *REQUESTS, *EXPECTS, *FIXED} | {
        k for table in (FAULTS, REQUESTS) for keys in table.values() for k in keys
    }
    assert {name for name in wanted if f"`{name}`" not in manual} == set()


def test_tables_of_keys_are_about_what_there_is() -> None:
    plan = decode_plan(encode_plan(read_scenario(SMALL, "a").plan))
    assert msgspec.structs.asdict(plan)["nodes"] == 3
    at_once = ("clock_jump", "add", "remove", "die", "bury")
    assert all("until" in keys or kind in at_once for kind, keys in FAULTS.items())
    assert all("target" in keys or "account" in keys for keys in REQUESTS.values())
    assert all("at_least" in keys for keys in EXPECTS.values())

"""Short stories of whole cores: what a client does, what breaks, what everybody sees in the end.

`Watch` looks on in each of them: two successors, a promise broken or an untrue answer fail the test by themselves.
"""

from typing import Any

import pytest

from chain import forming, link, rules
from chain.link import Link, Outcome
from chain.names import MAX_AMOUNT
from chain.reads import Balance
from chain.request import Posting
from hopchain.wire import NotStarted, Recorded, Refused, ReplyBody, Stale, Unknown
from node import forwarding, gateway, inquiry, jobs, lacking, reading, works
from node.askers import MAX_ASKERS, Purpose
from node.events import ClientGone, FormLink, FromPeer
from node.messages import (
    Accept,
    Accepted,
    AskIncome,
    AskSlot,
    Decided,
    Forward,
    Item,
    Links,
    Moved,
    Offer,
    Ping,
    Pong,
    Pull,
    SlotAnswer,
    SlotName,
)
from node.turn import Turn
from routing.keyspace import NodeId
from tests.node.watch import Call
from tests.node.world import TOLD, Doom, Faults, World


@pytest.fixture
def world() -> World:
    """Five nodes, groups of three; alice has 1000, bob nothing."""
    world = World(5, 3, seed=1)
    world.open_funded(alice=1000, bob=0)
    return world


def outcome(answer: ReplyBody | Balance | None) -> Outcome:
    assert isinstance(answer, Recorded), answer
    return Outcome(answer.outcome)


def outcomes(calls: list[Call]) -> list[Outcome]:
    return sorted(outcome(call.answer) for call in calls)


def at_rest(world: World) -> None:
    """Nothing is under way any more, and all replicas hold what was chosen."""
    world.run(15)
    world.assert_equal_replicas()
    for node in world.ids:
        gauges = world.core(node).gauges()
        assert (gauges.undecided_votes, gauges.waiting_links, gauges.queued_requests) == (0, 0, 0)
        assert (gauges.client_requests, gauges.inquiries) == (0, 0)


# --- the tail moves -------------------------------------------------------------------------------------------------


def test_a_gateway_that_lags_is_routed_on(world: World) -> None:
    lagging = next(n for n in world.ids if n not in world.group("alice"))
    world.keep_in_the_dark(lagging)
    other = next(n for n in world.ids if n != lagging)
    world.pay("alice", "bob", 1, at=other)
    assert world.height(lagging, "alice") == 0
    answer = world.pay("alice", "bob", 1, at=lagging)
    assert outcome(answer) is Outcome.COMPLETED
    assert isinstance(answer, Recorded)
    assert answer.height == 2
    assert world.height(lagging, "alice") == 2


def test_a_pinned_request_at_a_gateway_that_lags_is_stale(world: World) -> None:
    lagging = next(n for n in world.ids if n not in world.group("alice"))
    world.keep_in_the_dark(lagging)
    old = world.tip(lagging, "alice")
    world.pay("alice", "bob", 1, at=next(n for n in world.ids if n != lagging))
    new = world.watch.accounts["alice"].links[-1]
    answer = world.pay("alice", "bob", 1, at=lagging, tip=old)
    assert isinstance(answer, Stale)
    assert (answer.tip, answer.height) == (new.hash, new.height)
    assert len(world.watch.accounts["alice"].links) == 2


def test_a_pinned_request_on_the_tip_executes_once(world: World) -> None:
    tip = world.tip(world.ids[0], "alice")
    calls = [world.submit(n, world.pay_request("alice", "bob", 1, tip)) for n in world.ids]
    assert world.run_until_answered(calls, 10)
    answers = [type(call.answer) for call in calls]
    assert (answers.count(Recorded), answers.count(Stale)) == (1, 4)


def test_a_pinned_request_on_the_tip_that_its_gateway_does_not_know_yet_executes(world: World) -> None:
    lagging = next(n for n in world.ids if n not in world.group("alice"))
    world.keep_in_the_dark(lagging)
    other = next(n for n in world.ids if n != lagging)
    world.pay("alice", "bob", 1, at=other)
    tip = world.tip(other, "alice")
    assert outcome(world.pay("alice", "bob", 1, at=lagging, tip=tip)) is Outcome.COMPLETED


def test_a_tip_that_no_chain_has_is_refused(world: World) -> None:
    answer = world.pay("alice", "bob", 1, at=world.ids[0], tip=b"\x07" * 32)
    assert isinstance(answer, Refused)
    assert answer.code == "unknown_tip"


def test_the_queue_follows_the_tail_and_becomes_one_link(world: World) -> None:
    requests = [world.pay_request("alice", "bob", 10) for _ in range(50)]
    calls = [world.submit(world.ids[i % 5], signed) for i, signed in enumerate(requests)]
    assert world.run_until_answered(calls, 10)
    assert outcomes(calls) == [Outcome.COMPLETED] * 50
    made = [len(made.entries) for made in world.watch.accounts["alice"].links[1:]]
    assert sum(made) == 50
    assert len(made) <= 5
    assert max(made) >= 10
    at_rest(world)


def test_work_that_begins_within_a_turn_is_formed_in_the_next(world: World) -> None:
    """Found by seed 15270: an old FormLink meets a queue that a message of the same turn has just begun."""
    first, other = world.group("alice")[:2]
    link = world.watch.accounts["alice"].links[-1]
    signed = world.pay_request("alice", "bob", 10)
    item = Item(signed.raw, signed.signature, other)
    world.watch.first_asked[signed.request_id] = world.now
    world.deliver(first, FromPeer(other, Forward(SlotName(link.hash, "alice", 1), (item,), False)))
    world.deliver(first, FormLink("alice"))
    assert world.run_until(lambda: len(world.watch.accounts["alice"].links) == 2, 1)


# --- one outcome ----------------------------------------------------------------------------------------------------


def test_the_same_money_through_two_nodes_at_once_is_spent_once(world: World) -> None:
    calls = [world.submit(n, world.pay_request("alice", "bob", 1000)) for n in world.ids[:2]]
    assert world.run_until_answered(calls, 10)
    assert outcomes(calls) == [Outcome.COMPLETED, Outcome.INSUFFICIENT_FUNDS]


def test_one_request_through_all_nodes_has_one_outcome(world: World) -> None:
    signed = world.pay_request("alice", "bob", 600)
    calls = [world.submit(n, signed) for n in world.ids for _ in range(2)]
    assert world.run_until_answered(calls, 10)
    assert outcomes(calls) == [Outcome.COMPLETED] * 10
    assert len({call.answer.link_hash for call in calls if isinstance(call.answer, Recorded)}) == 1
    again = world.ask(world.ids[3], signed)
    assert isinstance(again, Recorded)
    assert again.repeated
    assert world.watch.spendable("alice") == 400


def test_a_cancelled_request_never_executes(world: World) -> None:
    signed = world.pay_request("alice", "bob", 600)
    assert outcome(world.ask(world.ids[0], world.cancel_request(signed, "alice"))) is Outcome.COMPLETED
    assert outcome(world.ask(world.ids[1], signed)) is Outcome.CANCELLED
    assert world.watch.spendable("alice") == 1000


def test_a_cancel_that_comes_late_finds_the_outcome(world: World) -> None:
    signed = world.pay_request("alice", "bob", 600)
    world.ask(world.ids[0], signed)
    assert outcome(world.ask(world.ids[1], world.cancel_request(signed, "alice"))) is Outcome.ALREADY_DECIDED
    assert outcome(world.ask(world.ids[2], signed)) is Outcome.COMPLETED


def test_somebody_elses_cancel_means_nothing(world: World) -> None:
    signed = world.pay_request("alice", "bob", 600)
    assert outcome(world.ask(world.ids[0], world.cancel_request(signed, "bob"))) is Outcome.COMPLETED
    assert outcome(world.ask(world.ids[1], signed)) is Outcome.COMPLETED


def test_a_name_is_opened_once(world: World) -> None:
    calls = [world.submit(n, world.open_request("carol", nonce=bytes([i]) * 32)) for i, n in enumerate(world.ids)]
    assert world.run_until_answered(calls, 10)
    completed = [call for call in calls if isinstance(call.answer, Recorded)]
    refused = [call.answer.code for call in calls if isinstance(call.answer, Refused)]
    assert len(completed) == 1
    assert refused == ["name_taken"] * 4


def test_what_admission_refuses_is_recorded_nowhere(world: World) -> None:
    node = world.ids[0]
    unknown = world.pay("nobody", "bob", 1, at=node)
    assert isinstance(unknown, Refused)
    assert unknown.code == "unknown_sender"
    asset = world.submit(node, world.open_request("dora", asset="USD"), forged=True)
    forged = world.submit(node, world.forge(world.pay_request("alice", "bob", 1)), forged=True)
    other_world = World(1, 1, seed=2)
    other_world.network = other_world.genesis.network_id[::-1]  # type: ignore[assignment]
    foreign = world.submit(node, other_world.pay_request("alice", "bob", 1), forged=True)
    assert world.run_until_answered([asset, forged, foreign], 5)
    codes = [call.answer.code for call in (asset, forged, foreign) if isinstance(call.answer, Refused)]
    assert codes == ["unknown_asset", "bad_signature", "other_network"]
    at_rest(world)
    assert len(world.watch.accounts["alice"].links) == 1


# --- what a client could see, it can spend --------------------------------------------------------------------------


def test_money_just_received_is_spent_at_once_through_another_node(world: World) -> None:
    names = ["alice", "bob"]
    for turn in range(40):
        sender, recipient = names[turn % 2], names[(turn + 1) % 2]
        assert outcome(world.pay(sender, recipient, 1000, at=world.ids[turn % 5])) is Outcome.COMPLETED
    assert world.now < 5


@pytest.mark.parametrize("dark", range(5))
def test_money_that_the_owner_has_not_heard_of_is_spent(world: World, dark: int) -> None:
    world.keep_in_the_dark(world.ids[dark])
    assert outcome(world.pay("alice", "bob", 1000, at=world.ids[(dark + 1) % 5])) is Outcome.COMPLETED
    assert outcome(world.pay("bob", "alice", 1000, at=world.ids[dark])) is Outcome.COMPLETED


@pytest.mark.parametrize("dark", range(5))
def test_money_paid_back_to_an_issuer_that_its_owner_has_not_heard_of_is_spent(world: World, dark: int) -> None:
    """It has made all the money that it may; without what came back there is nothing left."""
    world.settle(world.ids[0], world.pay_request("mint", "alice", MAX_AMOUNT - 1000))
    world.keep_in_the_dark(world.ids[dark])
    assert outcome(world.pay("alice", "mint", 50, at=world.ids[(dark + 1) % 5])) is Outcome.COMPLETED
    assert outcome(world.pay("mint", "bob", 50, at=world.ids[dark])) is Outcome.COMPLETED
    assert outcome(world.pay("mint", "bob", 1, at=world.ids[dark])) is Outcome.ISSUER_LIMIT


@pytest.mark.parametrize("dark", range(5))
def test_an_account_that_the_owner_has_not_heard_of_is_paid(world: World, dark: int) -> None:
    world.keep_in_the_dark(world.ids[dark])
    other = world.ids[(dark + 1) % 5]
    world.ask(other, world.open_request("carol"))
    assert outcome(world.pay("alice", "carol", 10, at=world.ids[dark])) is Outcome.COMPLETED


def test_the_answer_to_one_question_may_lead_to_the_next(world: World) -> None:
    """A recipient turns out to exist, and only then money is short: that is asked too, not declined."""
    world.keep_in_the_dark(world.group("alice")[0])
    world.ask(world.group("alice")[1], world.open_request("carol"))
    answer = world.pay("alice", "carol", 5000, at=world.group("alice")[0])
    assert outcome(answer) is Outcome.INSUFFICIENT_FUNDS


def test_a_linearizable_read_sees_what_was_completed_elsewhere(world: World) -> None:
    dark = next(n for n in world.ids if n not in world.group("alice"))
    other = world.group("alice")[1]
    world.keep_in_the_dark(dark)
    world.pay("alice", "bob", 300, at=other)
    local = world.read(dark, "bob")
    certain = world.read(dark, "bob", linearizable=True)
    assert world.run_until_answered([local, certain], 5)
    assert isinstance(local.answer, Balance)
    assert isinstance(certain.answer, Balance)
    assert (local.answer.available, certain.answer.available) == (0, 300)
    sender = world.read(dark, "alice", linearizable=True)
    assert world.run_until_answered([sender], 5)
    assert isinstance(sender.answer, Balance)
    assert sender.answer.available == 700


def test_a_session_read_waits_for_its_height(world: World) -> None:
    dark = next(n for n in world.ids if n not in world.group("alice"))
    world.keep_in_the_dark(dark)
    world.pay("alice", "bob", 300, at=world.group("alice")[0])
    read = world.read(dark, "alice", min_height=1)
    assert not world.run_until_answered([read], 0.5)
    world.heal()
    assert world.run_until_answered([read], 4.5)
    assert isinstance(read.answer, Balance)
    assert read.answer.height == 1


def test_a_session_read_of_link_0_waits_until_the_account_is_open_here(world: World) -> None:
    group = world.opening_group("carol")
    dark = next(n for n in world.ids if n not in group)
    world.keep_in_the_dark(dark)
    assert isinstance(world.settle(group[0], world.open_request("carol")), Recorded)
    read = world.read(dark, "carol", min_height=0)
    assert not world.run_until_answered([read], 0.5)
    world.heal()
    assert world.run_until_answered([read], 4.5)
    assert isinstance(read.answer, Balance) and read.answer.height == 0


def test_a_session_read_gives_up_in_time(world: World) -> None:
    read = world.read(world.ids[0], "alice", min_height=99)
    assert world.run_until_answered([read], 6)
    assert isinstance(read.answer, Unknown)


@pytest.mark.parametrize("how", [{"min_height": 99}, {"linearizable": True}], ids=["a height", "the tip"])
def test_a_read_that_waited_for_its_turn_has_only_the_rest_of_its_time(world: World, how: dict[str, Any]) -> None:
    world.lose = lambda source, target, message: isinstance(message, AskSlot)
    reads = [world.read(world.ids[0], "alice", timeout_s=1.0, waited_s=waited_s, **how) for waited_s in (0.7, 1.5)]
    assert world.run_until_answered(reads[1:], 0.01)
    assert not world.run_until_answered(reads, 0.25)
    assert world.run_until_answered(reads, 0.1)
    assert all(isinstance(read.answer, Unknown) for read in reads)


@pytest.mark.parametrize("lost", [AskSlot, AskIncome])
@pytest.mark.parametrize(("timeout_s", "within_s"), [(1.0, 1.1), (60.0, inquiry.ASK_DEADLINE_S + 0.1)])
def test_a_linearizable_read_without_a_majority_is_unknown_in_time(
    world: World, lost: type, timeout_s: float, within_s: float
) -> None:
    world.lose = lambda source, target, message: isinstance(message, lost)
    read = world.read(world.ids[0], "alice", linearizable=True, timeout_s=timeout_s)
    assert world.run_until_answered([read], within_s)
    assert isinstance(read.answer, Unknown)
    assert "grew" not in read.answer.reason


# --- nodes die ------------------------------------------------------------------------------------------------------


def test_a_standby_takes_over_from_a_dead_owner(world: World) -> None:
    dead, standby = world.group("alice")[:2]
    world.crash(dead)
    before = world.now
    answer = world.pay("alice", "bob", 10, at=next(n for n in world.ids if n not in world.group("alice")))
    assert outcome(answer) is Outcome.COMPLETED
    assert isinstance(answer, Recorded)
    assert answer.decided_by == standby
    assert world.now - before < 2


def test_transfers_go_on_with_two_of_five_dead() -> None:
    world = World(5, 5, seed=4)
    world.open_funded(alice=1000, bob=0)
    for victim in world.ids[:2]:
        world.crash(victim)
    for _ in range(10):
        assert outcome(world.pay("alice", "bob", 10, at=world.ids[4])) is Outcome.COMPLETED
    for victim in world.ids[:2]:
        world.start(victim)
    at_rest(world)


@pytest.mark.parametrize("seed", range(4))
def test_those_who_finish_a_vote_over_a_slow_network_leave_one_of_them_the_time(seed: int) -> None:
    """A ballot takes 3.4 s here, and four nodes see within two that the owner is gone."""
    world = World(5, 5, seed)
    world.open_funded(alice=1000)
    maker, other, *_ = world.group("alice")
    world.faults.delay_s = (0.8, 0.9)
    world.run(10)  # they measure it
    world.submit(maker, world.pay_request("alice", "mint", 10), 60)
    world.lose = lambda source, target, message: target == maker and isinstance(message, Accepted)
    assert world.run_until(lambda: world.core(other).gauges().undecided_votes > 0, 5)
    world.run(0.2)
    world.crash(maker)
    assert world.height(other, "alice") == 0
    assert world.run_until(lambda: world.height(other, "alice") == 1, 10)


def test_a_stuck_vote_is_finished_though_nobody_asks(world: World) -> None:
    """The standbys vote; owner and gateway die before anybody hears of it, and stay dead."""
    group = world.group("alice")
    world.lose = lambda source, target, message: source != group[0] or not isinstance(message, Accept)
    call = world.submit(group[0], world.pay_request("alice", "bob", 10))
    assert world.run_until(lambda: len(world.watch.accounts["alice"].links) == 2, 5)
    world.crash(group[0])
    world.heal()
    world.run(6)
    assert call.answer is None
    for node in world.alive:
        assert world.height(node, "alice") == 1
        assert world.core(node).gauges().undecided_votes == 0


@pytest.mark.parametrize("doom", Doom)
@pytest.mark.parametrize("rank", range(3))
def test_a_node_dies_within_its_turn(world: World, doom: Doom, rank: int) -> None:
    group = world.group("alice")
    gateway_node = next(n for n in world.ids if n not in group)
    world.doom(group[rank], doom)
    signed = world.pay_request("alice", "bob", 10)
    assert outcome(world.ask(gateway_node, signed)) is Outcome.COMPLETED
    assert world.run_until(lambda: world.nodes[group[rank]].core is None, 1)
    world.start(group[rank])
    at_rest(world)
    assert outcome(world.ask(group[rank], signed)) is Outcome.COMPLETED
    assert world.watch.spendable("bob") == 10


def test_everybody_dies_and_nothing_that_was_answered_is_lost(world: World) -> None:
    requests = [world.pay_request("alice", "bob", 10) for _ in range(20)]
    calls = [world.submit(world.ids[i % 5], signed) for i, signed in enumerate(requests)]
    world.run(0.005)
    for node in world.ids:
        world.crash(node)
    for node in world.ids:
        world.start(node)
    answered = [call for call in calls if call.answer is not None]
    assert 0 < len(answered) < 20
    at_rest(world)
    for call, signed in zip(calls, requests, strict=True):
        again = world.ask(world.ids[0], signed)
        assert call.answer is None or outcome(again) is outcome(call.answer)
    assert world.watch.spendable("bob") == 200


def test_a_node_that_was_away_catches_up(world: World) -> None:
    away = world.ids[2]
    world.crash(away)
    for i in range(30):
        world.pay("alice", "bob", 1, at=world.ids[i % 2])
    world.start(away)
    assert world.run_until(lambda: world.digest(away) == world.digest(world.ids[0]), 4)
    at_rest(world)


def test_a_node_catches_up_though_nobody_can_tell_it(world: World) -> None:
    """All it gets are answers to its own pulls."""
    dark = world.ids[2]
    world.lose = lambda source, target, message: target == dark and not isinstance(message, Offer | Links | Ping | Pong)
    for _ in range(5):
        world.pay("alice", "bob", 1, at=world.ids[0])
    assert world.run_until(lambda: world.digest(dark) == world.digest(world.ids[0]), 10)


@pytest.mark.parametrize("way", [Offer, Moved, SlotAnswer])
def test_whoever_passes_a_link_on_is_not_taken_for_its_maker(world: World, way: type) -> None:
    node = next(n for n in world.ids if n not in world.group("alice"))
    lost = tuple({Offer, Moved, SlotAnswer} - {way})
    world.lose = lambda source, target, message: target == node and isinstance(message, (TOLD, *lost))
    paid = world.submit(node, world.pay_request("alice", "bob", 10))
    assert not world.run_until_answered([paid], 0.5)
    world.read(node, "alice", linearizable=True)
    assert world.run_until_answered([paid], 9)
    assert isinstance(paid.answer, Recorded)
    assert paid.answer.decided_by == b""


def test_a_voter_that_finds_its_link_in_a_log_does_not_take_whose_log_it_is_for_the_maker(world: World) -> None:
    node = world.group("alice")[1]
    world.lose = lambda source, target, message: target == node and isinstance(message, TOLD | Links | Moved)
    paid = world.submit(node, world.pay_request("alice", "bob", 10))
    assert world.run_until_answered([paid], 9)
    assert isinstance(paid.answer, Recorded)
    assert paid.answer.decided_by == b""


def test_the_maker_of_a_link_that_waits_is_not_forgotten_when_somebody_else_passes_it_on(world: World) -> None:
    node = next(n for n in world.ids if n not in {*world.group("alice"), *world.group("bob")})
    world.lose = lambda source, target, message: target == node
    at = world.group("alice")[0]
    assert outcome(world.pay("alice", "bob", 10, at=at)) is Outcome.COMPLETED
    assert outcome(world.pay("bob", "alice", 1, at=at)) is Outcome.COMPLETED
    paying, confirming = (world.watch.accounts[name].links[-1] for name in ("alice", "bob"))
    makers: list[NodeId] = []

    def note(turn: Turn, link: Link, by: NodeId) -> None:
        if link.hash == confirming.hash:
            makers.append(by)

    world.core(node).replica.hooks.append(note)
    maker, other = world.group("alice")[:2]
    for message in (Decided(confirming.raw, maker, 0), Links((confirming.raw,)), Links((paying.raw,))):
        world.deliver(node, FromPeer(other, message))
        world.run(0.01)
    assert makers == [maker]


def test_a_voter_that_lacks_the_parent_asks_for_it() -> None:
    """The only other living voter hears of no decision by itself: without its question nothing would go on."""
    world = World(3, 3, seed=14)
    world.open_funded(alice=1000, bob=0)
    dead, dark, node = world.group("alice")
    world.crash(dead)
    world.keep_in_the_dark(dark)
    before = world.now
    for _ in range(5):
        assert outcome(world.pay("alice", "bob", 1, at=node)) is Outcome.COMPLETED
    assert world.now - before < 0.5


def test_a_minority_decides_nothing_and_the_majority_goes_on() -> None:
    world = World(5, 5, seed=6)
    world.open_funded(alice=1000, bob=0)
    minority, rest = world.ids[:2], world.ids[2:]
    world.part(minority, rest)
    world.run(2.5)
    signed = world.pay_request("alice", "bob", 10)
    assert isinstance(world.ask(minority[0], signed, timeout_s=3), Unknown)
    assert outcome(world.pay("alice", "bob", 20, at=rest[0])) is Outcome.COMPLETED
    assert world.height(minority[0], "alice") == 0
    world.heal()
    assert outcome(world.ask(minority[0], signed)) is Outcome.COMPLETED
    at_rest(world)


def test_after_unknown_the_outcome_is_asked_for(world: World) -> None:
    world.part()
    signed = world.pay_request("alice", "bob", 10)
    asked = world.now
    assert isinstance(world.ask(world.ids[0], signed, timeout_s=2), Unknown)
    assert world.now - asked == pytest.approx(2, abs=0.1)
    world.heal()
    assert outcome(world.ask(world.ids[4], signed)) is Outcome.COMPLETED


def test_a_recipient_whose_nodes_are_away_is_not_called_unknown() -> None:
    """Two of the three that would know the name are dead: nothing is recorded until they can be asked."""
    world = World(7, 3, seed=13)
    world.open_funded(alice=1000, bob=0)
    deciders = world.group("alice")
    names = (f"name-{i}" for i in range(1000))
    name, away = next(
        (name, group[:2]) for name in names if not set(group := world.opening_group(name)) & set(deciders)
    )
    for node in away:
        world.crash(node)
    signed = world.pay_request("alice", name, 10)
    assert isinstance(world.ask(world.alive[0], signed, timeout_s=4), NotStarted | Unknown)
    assert len(world.watch.accounts["alice"].links) == 1
    for node in away:
        world.start(node)
    assert outcome(world.ask(world.alive[0], signed)) is Outcome.UNKNOWN_RECIPIENT


def test_a_lost_hand_over_is_made_again(world: World) -> None:
    lost: list[object] = []

    def lose_first(source: bytes, target: bytes, message: object) -> bool:
        if isinstance(message, Forward) and not lost:
            lost.append(message)
            return True
        return False

    world.lose = lose_first
    node = next(n for n in world.ids if n != world.group("alice")[0])
    assert outcome(world.pay("alice", "bob", 10, at=node)) is Outcome.COMPLETED
    assert lost


# --- bounds ---------------------------------------------------------------------------------------------------------


def test_a_full_queue_says_busy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(works, "MAX_QUEUE", 3)
    calls = [world.submit(world.ids[0], world.pay_request("alice", "bob", 1)) for _ in range(10)]
    assert world.run_until_answered(calls, 10)
    busy = [call.answer.code for call in calls if isinstance(call.answer, NotStarted)]
    assert busy == ["busy"] * 7
    assert world.watch.spendable("bob") == 3


@pytest.mark.parametrize("bound", ["MAX_JOBS", "MAX_JOB_BYTES"])
def test_a_full_gateway_says_busy_and_has_room_again(bound: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        requests = [world.pay_request("alice", "bob", 1) for _ in range(10)]
        size = max(len(signed.raw) for signed in requests)
        monkeypatch.setattr(jobs, bound, 6 * size if bound.endswith("BYTES") else 6)
        calls = [world.submit(world.ids[0], signed) for signed in requests]
        assert world.run_until_answered(calls, 10)
        busy = [call.answer.code for call in calls if isinstance(call.answer, NotStarted)]
        assert busy == ["busy"] * 7


@pytest.mark.parametrize("bound", ["MAX_JOBS_OF_ONE", "MAX_JOBS", "MAX_JOB_BYTES"])
def test_one_account_that_pays_much_leaves_room_for_the_others(
    bound: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many payments, or few large ones."""
    postings = [Posting("bob", 1)] * (7 if bound == "MAX_JOB_BYTES" else 1)
    requests = [world.pay_many_request("alice", postings) for _ in range(10)]
    size = len(requests[0].raw)
    monkeypatch.setattr(jobs, bound, {"MAX_JOBS_OF_ONE": 3, "MAX_JOBS": 6, "MAX_JOB_BYTES": 6 * size}[bound])
    many = [world.submit(world.ids[0], signed) for signed in requests]
    others = [world.submit(world.ids[0], world.pay_request(payer, "alice", 1)) for payer in ("mint", "bob")]
    assert world.run_until_answered([*many, *others], 10)
    assert all(isinstance(call.answer, Recorded) for call in others)
    busy = [call.answer for call in many if isinstance(call.answer, NotStarted)]
    assert [answer.code for answer in busy] == ["busy"] * 7
    there = f"3 requests of alice ({3 * size} bytes) wait there, of all accounts 3 ({3 * size} bytes)"
    assert busy[0].reason == f"too much waits at this node: {there}; send it again in a while, or to another node"


@pytest.mark.parametrize("bound", ["MAX_QUEUE", "MAX_QUEUED", "MAX_QUEUE_BYTES", "MAX_QUEUED_BYTES"])
def test_one_account_that_pays_much_leaves_room_in_the_queues(
    bound: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the node that makes the links of all."""
    world = World(1, 1, 1)
    world.open_funded(alice=100, bob=0)
    requests = [world.pay_request("alice", "bob", 1) for _ in range(10)]
    room = 3 if bound.startswith("MAX_QUEUE_") or bound == "MAX_QUEUE" else 6
    size = len(requests[0].raw)
    monkeypatch.setattr(works, bound, room * size if bound.endswith("BYTES") else room)
    many = [world.submit(world.ids[0], signed) for signed in requests]
    other = world.submit(world.ids[0], world.pay_request("mint", "bob", 1))
    assert world.run_until_answered([*many, other], 10)
    assert isinstance(other.answer, Recorded)
    busy = [call.answer for call in many if isinstance(call.answer, NotStarted)]
    assert [answer.code for answer in busy] == ["busy"] * 7
    there = f"3 requests of alice ({3 * size} bytes) wait there, of all accounts 3 ({3 * size} bytes)"
    assert busy[0].reason == f"too much waits at the node that makes its link: {there}; send it again in a while"


def test_too_many_inquiries_are_not_in_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for purpose in Purpose:
        monkeypatch.setitem(MAX_ASKERS, purpose, 0)
    answer = world.pay("nobody", "bob", 1, at=world.ids[0])
    assert isinstance(answer, NotStarted)
    assert answer.code == "busy"
    assert answer.reason.startswith("0 requests of this connection, 0 of all, wait here")
    answer = world.pay("alice", "bob", 5000, at=world.ids[0])
    assert isinstance(answer, NotStarted)
    assert answer.code == "not_askable"
    assert len(world.watch.accounts["alice"].links) == 1


def test_reads_leave_room_to_ask_for_payments(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAX_ASKERS, Purpose.READ, 2)
    node, *others = world.ids
    world.part([node], others)
    reads = [world.read(node, "alice", linearizable=True) for _ in range(3)]
    world.run(0.1)
    *asked, refused = reads
    assert [read.answer for read in asked] == [None, None]
    assert isinstance(refused.answer, Unknown) and refused.answer.reason.startswith("2 questions to other nodes")
    payment = world.submit(node, world.pay_request("nobody", "bob", 1))
    world.run(0.1)
    assert [call.answer for call in (*asked, payment)] == [None, None, None], "it asks whether its sender exists"
    world.cut.clear()
    assert world.run_until_answered([*asked, payment], 5)
    assert all(isinstance(read.answer, Balance) for read in asked)
    assert isinstance(payment.answer, Refused) and payment.answer.code == "unknown_sender"


def test_too_many_reads_are_unknown(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_READS", 1)
    first, second = [world.read(world.ids[0], "alice", min_height=1) for _ in range(2)]
    world.run(0.1)
    assert first.answer is None
    assert isinstance(second.answer, Unknown)
    world.pay("alice", "bob", 1, at=world.ids[0])
    assert world.run_until_answered([first], 1)
    assert isinstance(first.answer, Balance)


def test_a_read_that_waits_gives_its_place_to_one_of_a_client_with_fewer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_READS", 3)
    greedy = [world.read(world.ids[0], "alice", min_height=99) for _ in range(4)]
    others = [world.read(world.ids[0], "alice", min_height=1, session=number) for number in (2, 3, 4)]
    world.run(0.1)
    assert [isinstance(read.answer, Unknown) for read in greedy] == [False, True, True, True]
    assert [isinstance(read.answer, Unknown) for read in others] == [False, False, True], "then all have as many"
    world.pay("alice", "bob", 1, at=world.ids[0])
    assert world.run_until_answered(others, 1)
    assert all(isinstance(read.answer, Balance) for read in others[:2])


def test_reads_of_a_client_that_is_gone_take_nobodys_place(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_READS", 2)
    gone = [world.read(world.ids[0], "alice", min_height=99, session=number) for number in (2, 3)]
    world.run(0.1)
    world.deliver(world.ids[0], ClientGone(2))
    stays = world.read(world.ids[0], "alice", min_height=1, session=4)
    assert world.run_until_answered([gone[1], stays], 6)
    assert gone[0].answer is None
    assert isinstance(stays.answer, Unknown) and stays.answer.reason.endswith("in time"), "it was let in"


def test_links_that_found_no_room_to_wait_are_pulled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lacking, "MAX_WAITING", 1)
    monkeypatch.setattr(lacking, "MAX_EARLY", 1)
    world.faults = Faults(loss=0.3, delay_s=(0.001, 0.2))
    calls = [world.submit(n, world.pay_request("alice", "bob", 1)) for n in world.ids for _ in range(4)]
    world.run(10)
    world.heal()
    at_rest(world)
    assert all(call.answer is not None for call in calls)


def test_more_income_than_a_link_confirms_is_taken_up_in_several(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (forming, link, rules):
        monkeypatch.setattr(module, "MAX_CONFIRMED", 3)
    for _ in range(10):
        world.pay("alice", "bob", 100, at=world.ids[0])
    assert outcome(world.pay("bob", "alice", 1000, at=world.ids[1])) is Outcome.COMPLETED
    made = [(len(made.entries), len(made.confirmed)) for made in world.watch.accounts["bob"].links[1:]]
    assert made == [(0, 3), (0, 3), (0, 3), (1, 1)]
    assert outcome(world.pay("bob", "alice", 1, at=world.ids[2])) is Outcome.INSUFFICIENT_FUNDS
    at_rest(world)


# --- larger networks, and every size --------------------------------------------------------------------------------


def test_above_sixteen_nodes_links_travel_along_a_tree() -> None:
    world = World(20, 5, seed=9)
    world.open_funded(alice=1000, bob=0)
    world.lose = lambda source, target, message: isinstance(message, Pull)
    for i in range(10):
        assert outcome(world.pay("alice", "bob", 10, at=world.ids[2 * i])) is Outcome.COMPLETED
    world.run(0.2)
    world.assert_equal_replicas()
    at_rest(world)


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_small_networks_work_too(nodes: int) -> None:
    world = World(nodes, 5, seed=nodes)
    world.open_funded(alice=1000, bob=0)
    assert outcome(world.pay("alice", "bob", 1000, at=world.ids[0])) is Outcome.COMPLETED
    assert outcome(world.pay("alice", "bob", 1, at=world.ids[-1])) is Outcome.INSUFFICIENT_FUNDS
    assert outcome(world.pay("alice", "nobody", 1, at=world.ids[-1])) is Outcome.UNKNOWN_RECIPIENT
    at_rest(world)


def test_every_message_twice_changes_nothing() -> None:
    world = World(5, 3, seed=11)
    world.deliveries = 2
    world.open_funded(alice=1000, bob=0, carol=0)
    for i in range(6):
        node = world.ids[i % 5]
        assert outcome(world.pay("alice", "bob", 100, at=node)) is Outcome.COMPLETED
        postings = [Posting("alice", 1), Posting("carol", 2)]
        assert outcome(world.ask(node, world.pay_many_request("bob", postings))) is Outcome.COMPLETED
        assert outcome(world.pay("carol", "bob", 5000, at=node)) is Outcome.INSUFFICIENT_FUNDS
    at_rest(world)
    assert world.watch.spendable("carol") == 12
    assert all(not name.startswith("peer_fault") for n in world.ids for name in world.core(n).counters)


def test_a_message_from_long_ago_changes_nothing(world: World) -> None:
    """All messages of a payment come again, to everybody, when the chain is longer."""
    kept: list[tuple[bytes, object]] = []

    def keep(source: bytes, target: bytes, message: object) -> bool:
        kept.append((source, message))
        return False

    world.lose = keep
    world.pay("alice", "bob", 10, at=world.ids[0])
    world.heal()
    world.pay("alice", "bob", 20, at=world.ids[1])
    world.run(1)
    before = {node: world.digest(node) for node in world.ids}
    for source, message in kept:
        for node in world.ids:
            if node != source:
                world.deliver(node, FromPeer(source, message))  # type: ignore[arg-type]
    at_rest(world)
    assert {node: world.digest(node) for node in world.ids} == before


# --- what a slow time leaves behind ---------------------------------------------------------------------------------


def slow_for_a_while(world: World) -> None:
    """Every message has taken seconds, and all round trips that the nodes know of are as long; now it is over."""
    world.faults = Faults(delay_s=(2.5, 3.5))
    world.run(30)
    assert all(world.core(one).peers.rtt(world.ids) > 3 for one in world.ids)
    world.faults = Faults()


def test_a_request_that_is_lost_after_a_slow_time_is_handed_over_again_soon(world: World) -> None:
    gateway_node = next(n for n in world.ids if n not in world.group("alice"))
    slow_for_a_while(world)
    lost: list[Forward] = []

    def lose(source: bytes, target: bytes, message: object) -> bool:
        if isinstance(message, Forward) and not lost:
            lost.append(message)
            return True
        return False

    world.lose = lose
    call = world.submit(
        gateway_node, world.pay_request("alice", "bob", 1), timeout_s=jobs.TRY_AGAIN_S + gateway.HOLDER_S + 2
    )
    assert world.run_until_answered([call], 20)
    assert lost
    assert outcome(call.answer) is Outcome.COMPLETED


def test_a_standby_takes_over_soon_after_a_slow_time(world: World) -> None:
    """It hears the owner, so it waits for it; but nothing that it hands to the owner arrives."""
    gateway_node = next(n for n in world.ids if n not in world.group("alice"))
    first, standby, _ = world.group("alice")
    slow_for_a_while(world)
    world.lose = lambda source, target, message: target == first and isinstance(message, Forward)
    signed = world.pay_request("alice", "bob", 1)
    tip = world.watch.accounts["alice"].links[-1]
    item = Item(signed.raw, signed.signature, gateway_node)
    at = SlotName(tip.hash, "alice", tip.height + 1)
    world.deliver(standby, FromPeer(gateway_node, Forward(at, (item,), takeover=True)))
    assert not world.run_until(lambda: world.height(standby, "alice") == at.height, 2)
    assert world.run_until(lambda: world.height(standby, "alice") == at.height, 2 * forwarding.TAKEOVER_RTTS)

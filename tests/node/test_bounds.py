"""What is kept for others has a bound, and giving up what is above it costs a message or a wait, never an outcome."""

from itertools import pairwise

import pytest

from chain.link import Outcome
from chain.request import MAX_REQUEST_BYTES, Posting
from hopchain.wire import NotStarted, Recorded
from node import asking, forwarding, inquiry, jobs, lacking, proposing, works
from node.client_port import HELD_BYTES
from node.decoded import DECODED_LINK_BYTES, DECODED_REQUEST_BYTES
from node.events import FromPeer
from node.messages import (
    Accept,
    AskIncome,
    AskSlot,
    Decided,
    Declined,
    Forward,
    Item,
    Offer,
    Prepare,
    Refuse,
    SlotName,
    Want,
)
from node.paxos import Ballot
from node.queue import NO_GATEWAY, LookedUp, item_batches
from node.replica import batches
from routing.keyspace import NodeId
from tests.node.test_same_turn import payment
from tests.node.watch import Call
from tests.node.world import TOLD, World


def codes(calls: list[Call]) -> list[str]:
    """Of the requests that were not started."""
    return [call.answer.code for call in calls if isinstance(call.answer, NotStarted)]


# --- the queues of an owner -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", ["MAX_QUEUED", "MAX_QUEUE_BYTES", "MAX_QUEUED_BYTES"])
def test_a_full_queue_says_busy_and_is_empty_again_when_they_are_decided(
    bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three are executed each time: of one account three, of two that share a room of five two and one."""
    world = World(1, 1, 1)
    world.open_funded(alice=1000, bob=1000)
    of_all = bound != "MAX_QUEUE_BYTES"
    for _ in range(3):
        payers = ("alice", "bob") * 4 if of_all else ("alice",) * 8
        requests = [world.pay_request(payer, "mint", 1) for payer in payers]
        size = max(len(signed.raw) for signed in requests)
        room = 5 if of_all else 3
        monkeypatch.setattr(works, bound, room * size if bound.endswith("BYTES") else room)
        calls = [world.submit(world.ids[0], signed) for signed in requests]
        assert world.run_until_answered(calls, 10)
        assert codes(calls) == ["busy"] * 5
        assert sum(isinstance(call.answer, Recorded) for call in calls) == 3


def test_what_may_wait_fits_the_memory_that_a_node_is_given() -> None:
    """1 GiB (docs/operations.md)."""
    waiting = works.MAX_QUEUED_BYTES + jobs.MAX_JOB_BYTES
    decoded = 3.5 * waiting  # measured: requests of eight postings with long names and memos
    at_rest = 70 * 1024 * 1024
    assert decoded + HELD_BYTES + DECODED_LINK_BYTES + DECODED_REQUEST_BYTES + at_rest <= 1024**3
    assert min(works.MAX_QUEUE_BYTES, works.MAX_QUEUED_BYTES // 2, jobs.MAX_JOB_BYTES // 2) >= MAX_REQUEST_BYTES


# --- requests that come too late ------------------------------------------------------------------------------------


def late(world: World) -> tuple[NodeId, NodeId, SlotName]:
    """A node that does not make alice's next link, another one, and a slot of alice that is taken."""
    old = world.watch.accounts["alice"].links[-1]
    world.settle(world.ids[0], world.pay_request("alice", "bob", 1))
    world.run(1)
    node, other = [n for n in world.ids if n != world.group("alice")[0]][:2]
    return node, other, SlotName(old.hash, "alice", old.height + 1)


def chased(world: World, node: NodeId, other: NodeId, at: SlotName, signed: list) -> list[bytes]:  # type: ignore[type-arg]
    """Which of these requests, one after the other handed to `node` for a slot that is taken, it sends after the
    tail."""
    sent: list[bytes] = []

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if source == node and isinstance(message, Forward):
            sent.extend(item.raw for item in message.items)
        return isinstance(message, Forward)

    world.lose = lose
    for one in signed:
        world.deliver(node, FromPeer(other, Forward(at, (Item(one.raw, one.signature, other),), takeover=False)))
        world.run(0.01)
    world.lose = lambda source, target, message: False
    return sent


def test_a_request_that_comes_too_late_follows_each_tail_once() -> None:
    """However many copies of it come: two nodes that each send it after the other would never end."""
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    node, other, at = late(world)
    signed = world.pay_request("alice", "bob", 5)
    assert chased(world, node, other, at, [signed] * 3) == [signed.raw]
    node, other, _ = late(world)
    assert len(chased(world, node, other, at, [signed] * 3)) <= 1


def test_what_is_remembered_of_late_requests_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten, and would be sent after the tail once more."""
    monkeypatch.setattr(forwarding, "MAX_CHASED", 2)
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    node, other, at = late(world)
    first, second, third = (world.pay_request("alice", "bob", 5) for _ in range(3))
    late_ones = [first, second, third, second, third, first]
    expected = [one.raw for one in (first, second, third, first)]
    assert chased(world, node, other, at, late_ones) == expected


def test_of_two_nodes_that_hold_a_request_neither_says_that_it_dropped_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway would tell its client that nothing happened, and the other one may still execute it (design R13). Who
    is the only one that holds it says so."""
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    maker, standby, gateway = world.group("alice")
    link = world.watch.accounts["alice"].links[-1]
    signed = world.pay_request("alice", "bob", 1)
    said: list[tuple[NodeId, NodeId]] = []

    def note(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, Declined):
            said.append((source, target))
        return False

    world.lose = note
    monkeypatch.setattr(works, "MAX_QUEUE", 0)
    at, items = SlotName(link.hash, "alice", link.height + 1), (Item(signed.raw, signed.signature, gateway),)
    world.deliver(standby, FromPeer(gateway, Forward(at, items, takeover=True)))  # the gateway does not reach the owner
    world.run(1)
    assert said == []
    world.deliver(maker, FromPeer(gateway, Forward(at, items, takeover=False)))
    world.run(1)
    assert said == [(maker, gateway)]


# --- what is asked of others ----------------------------------------------------------------------------------------


def pay_many(world: World, names: list[str]) -> tuple[Outcome, list[list[str]]]:
    """The outcome of one payment to all these, and the names that its owner asked another node for, in lots."""
    maker, other, _ = world.group("alice")
    asked: dict[float, list[str]] = {}
    lose = world.lose

    def note(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, AskSlot) and (source, target) == (maker, other):
            asked.setdefault(world.now, []).append(message.at.account)
        return lose(source, target, message)

    world.lose = note
    answer = world.ask(maker, world.pay_many_request("alice", [Posting(name, 1) for name in names]))
    assert isinstance(answer, Recorded)
    return Outcome(answer.outcome), list(asked.values())


def test_a_payment_to_many_unknown_names_asks_for_a_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For one first, and for the next ones when the answers are here; all of them are asked for in the end."""
    monkeypatch.setattr(asking, "MAX_NAMES_ASKED", 2)
    world = World(3, 3, 1)
    world.open_funded(alice=100)
    maker, other, _ = world.group("alice")
    world.keep_in_the_dark(maker)
    several = (f"name-{number}" for number in range(100))
    names = [name for name in several if world.opening_group(name)[0] != maker][:5]
    for name in names:
        world.settle(other, world.open_request(name))
    names.sort()
    assert pay_many(world, names) == (Outcome.COMPLETED, [names[:1], names[1:3], names[3:]])


def test_the_first_name_that_nobody_has_ends_the_questions() -> None:
    """A request that pays so many asked for 64 of them at once, each a question to a whole group."""
    world = World(3, 3, 1)
    world.open_funded(alice=100)
    names = [f"nobody-{number}" for number in range(100)]
    assert pay_many(world, names) == (Outcome.UNKNOWN_RECIPIENT, [[min(names)]])


def test_where_the_first_name_exists_all_others_are_asked_for() -> None:
    world = World(3, 3, 1)
    world.open_funded(alice=100)
    maker, other, _ = world.group("alice")
    world.keep_in_the_dark(maker)
    name = next(name for name in ("bob", "carol", "dave", "erik") if world.opening_group(name)[0] != maker)
    world.settle(other, world.open_request(name))
    others = ["nobody-1", "nobody-2", "nobody-3"]
    assert pay_many(world, [name, *others]) == (Outcome.UNKNOWN_RECIPIENT, [[name], others])


def test_of_each_request_one_name_is_asked_for_first() -> None:
    """Else one that waits beside others would wait for as many round trips as there are others before it."""
    world = World(3, 3, 1)
    world.open_funded(alice=100)
    maker, other, _ = world.group("alice")
    calls = [
        world.submit(maker, world.pay_many_request("alice", [Posting(f"{part}-{number}", 1) for part in "abc"]))
        for number in range(4)
    ]
    asked: list[tuple[float, str]] = []

    def note(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, AskSlot) and target == other:
            asked.append((world.now, message.at.account))
        return False

    world.lose = note
    began = world.now
    assert world.run_until_answered(calls, 1)
    assert asked == [(began, f"a-{number}") for number in range(4)]
    assert {call.answer.outcome for call in calls if isinstance(call.answer, Recorded)} == {Outcome.UNKNOWN_RECIPIENT}


def test_a_first_name_that_cannot_be_asked_for_does_not_hide_one_that_nobody_has() -> None:
    """One that is absent for sure is enough to reject. The others have the time that is left."""
    world = World(3, 3, 1)
    world.open_funded(alice=100)
    maker = world.group("alice")[0]
    world.lose = lambda source, target, message: isinstance(message, AskSlot) and message.at.account == "a-1"
    began = world.now
    answer = world.ask(maker, world.pay_many_request("alice", [Posting(name, 1) for name in ("a-1", "b-1", "c-1")]), 30)
    assert isinstance(answer, Recorded) and answer.outcome == Outcome.UNKNOWN_RECIPIENT
    assert world.now - began < inquiry.ASK_DEADLINE_S + 0.1


def test_however_many_names_are_asked_for_there_is_one_time_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gateway waits a little longer than that, and then hands the request to a second node: nobody could say
    `not_started` any more."""
    monkeypatch.setattr(asking, "MAX_NAMES_ASKED", 2)
    world = World(3, 3, 1)
    world.open_funded(alice=100)
    maker = world.group("alice")[0]
    world.lose = lambda source, target, message: isinstance(message, AskSlot)
    began = world.now
    many = [Posting(f"nobody-{number}", 1) for number in range(5)]
    answer = world.ask(maker, world.pay_many_request("alice", many), 30)
    assert isinstance(answer, NotStarted) and answer.code == "not_askable"
    assert world.now - began < inquiry.ASK_DEADLINE_S + 0.1


def test_money_is_asked_for_in_the_time_that_a_name_has_left() -> None:
    world = World(3, 3, 1)
    world.open_funded(alice=100)
    maker, other, _ = world.group("alice")
    world.keep_in_the_dark(maker)
    name = next(name for name in ("bob", "carol", "dave", "erik") if world.opening_group(name)[0] != maker)
    world.settle(other, world.open_request(name))
    assert world.height(maker, name) == -1
    asked = world.now

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, AskSlot):
            return world.now < asked + 2
        return isinstance(message, AskIncome) or (target == maker and isinstance(message, TOLD | Offer))

    world.lose = lose
    answer = world.ask(maker, world.pay_request("alice", name, 500), 30)
    assert isinstance(answer, NotStarted) and answer.code == "not_askable"
    assert world.height(maker, name) == 0
    assert world.now - asked < inquiry.ASK_DEADLINE_S + 0.1


def test_requests_are_handed_over_in_messages_of_a_mebibyte() -> None:
    """And what is larger than that by itself in one of its own; nothing is left out, and the order is kept."""
    items = tuple(Item(bytes(size), bytes(64), NO_GATEWAY) for size in (300_000, 400_000, 400_000, 2_000_000, 1, 1))
    assert [[len(item.raw) for item in batch] for batch in item_batches(items)] == [
        [300_000, 400_000],
        [400_000],
        [2_000_000],
        [1, 1],
    ]
    assert list(item_batches(())) == []


def test_what_is_looked_up_for_one_link_fits_into_it() -> None:
    """Thousands of small requests are as many as their bytes allow."""
    looked_up = LookedUp()
    number = 0
    while looked_up.add(decoded := payment(number)):
        number += 1
    assert decoded.request_id not in looked_up.ids
    assert len(looked_up.ids) == number == MAX_REQUEST_BYTES // len(decoded.signed.raw)


# --- pauses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refused", "most"),
    [((), 0.22), ((Accept, Prepare), 0.32), ((Accept,), 0.32)],
    ids=["silence", "refused", "refused after promises"],
)
def test_the_pauses_of_a_proposer_grow_but_not_without_an_end(
    refused: tuple[type, ...], most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An account must not wait for long after the network is well again. A ballot that had its promises and was refused
    then is no success: two proposers could do that to each other for ever."""
    monkeypatch.setattr(proposing, "MAX_BACKOFF_S", 0.2)
    world = World(3, 3, 1)
    world.open_funded(alice=100)
    maker, other, _ = world.group("alice")
    tries: list[float] = []
    lost = refused or (Accept, Prepare)

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, Accept | Prepare) and isinstance(message, lost) and (source, target) == (maker, other):
            tries.append(world.now)
            if refused:
                higher = Ballot(1, message.ballot.round + 1, other)
                world.deliver(maker, FromPeer(other, Refuse(message.at.slot, message.ballot, higher)))
        return isinstance(message, lost)

    world.lose = lose
    world.submit(maker, world.pay_request("alice", "mint", 1), 60.0)
    world.run(20)
    pauses = [after - before for before, after in pairwise(tries)]
    assert pauses[0] < min(pauses[-10:]) and min(pauses[-10:]) >= 0.1
    assert max(pauses) <= most


# --- messages that come before what they stand on -------------------------------------------------------------------


def test_messages_that_wait_for_a_chain_are_bounded_and_make_room_when_it_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lacking, "MAX_EARLY", 2)
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    lagging = next(node for node in world.ids if node != world.group("alice")[0])
    other = next(node for node in world.ids if node != lagging)
    for _ in range(3):
        world.lose = lambda source, target, message: target == lagging
        world.settle(other, world.pay_request("alice", "bob", 1))
        world.run(0.5)
        dropped = world.core(lagging).counters["messages_dropped"]
        last = world.watch.accounts["alice"].links[-1]
        at = SlotName(last.hash, "alice", last.height + 1)
        for number in range(5):
            world.deliver(lagging, FromPeer(other, Prepare(at, Ballot(1, number + 1, other))))
        world.run(0.01)
        assert world.core(lagging).counters["messages_dropped"] == dropped + 3
        world.heal()
        assert world.run_until(lambda last=last: world.tip(lagging, "alice") == last.hash, 5)
        world.run(3)


def test_no_message_asks_for_more_postings_than_its_bound_and_all_come_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A link that confirms thousands of them waits for as many."""
    monkeypatch.setattr(lacking, "WANT_BATCH", 2)
    world = World(3, 3, 1)
    world.open_funded(alice=0, bob=0, carol=100)
    lagging = next(node for node in world.ids if node != world.group("alice")[0])
    other = next(node for node in world.ids if node != lagging)
    wanted: list[int] = []

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if source == lagging and isinstance(message, Want) and message.postings:
            wanted.append(len(message.postings))
        return target == lagging and (isinstance(message, Offer) or not told)

    world.lose, told = lose, False
    for payer in ("mint", "carol") * 3:
        world.settle(other, world.pay_request(payer, "alice", 1))
    world.settle(other, world.pay_request("alice", "bob", 6))
    last = world.watch.accounts["alice"].links[-1]
    assert len(last.confirmed) == 6
    told = True
    world.deliver(lagging, FromPeer(other, Decided(last.raw, other, 160)))
    assert world.run_until(lambda: world.tip(lagging, "alice") == last.hash, 10)
    assert wanted and max(wanted) == 2


def test_links_are_sent_in_messages_of_a_mebibyte() -> None:
    """And what is larger than that by itself in one of its own; nothing is left out, and the order is kept."""
    links = [bytes(size) for size in (400_000, 600_000, 100_000, 2_000_000, 1, 2)]
    assert [[len(raw) for raw in batch] for batch in batches([links])] == [
        [400_000, 600_000],
        [100_000],
        [2_000_000],
        [1, 2],
    ]
    assert list(batches([])) == list(batches([[], ()])) == []


def test_a_chain_is_not_parted_where_one_message_has_room_for_it_and_no_link_is_sent_twice() -> None:
    a, b, c, d, e = (bytes(size) for size in (400_000, 500_000, 300_000, 900_000, 200_000))
    groups = [[a, b], [b, c], [e], [d, e, a], [c, d, e]]
    assert list(batches(groups)) == [(a, b), (c, e), (d,)]
    assert list(batches([[a, b], [c, d], [e]])) == [(a, b), (c,), (d,), (e,)]

"""When a node drops a request, its client is told `not_started` only if no other node, and no vote, has it (design
R13)."""

import pytest

from chain.request import SignedRequest
from hopchain.change import ChangeAction
from hopchain.wire import NotStarted, Recorded
from node import works
from node.events import FromPeer
from node.messages import (
    Accept,
    Accepted,
    Decided,
    DecidedHash,
    Declined,
    Forward,
    Item,
    Message,
    NotOwner,
    Prepare,
    SlotName,
)
from node.queue import NO_GATEWAY
from routing.keyspace import NodeId
from tests.node.watch import Call
from tests.node.world import World

SLOW_S = 0.2  # below what a gateway or a stuck vote waits


@pytest.fixture
def world() -> World:
    world = World(5, 3, 1)
    world.open_funded(alice=100, bob=0)
    return world


@pytest.fixture
def gate(world: World) -> NodeId:
    return next(node for node in world.view.ids if node not in world.group("alice"))


def next_slot(world: World) -> SlotName:
    tip = world.watch.accounts["alice"].links[-1]
    return SlotName(tip.hash, "alice", tip.height + 1)


def hand_over(world: World, at: SlotName, target: NodeId, signed: SignedRequest, gateway: NodeId, number: int) -> None:
    """A request comes to a node, as that of a gateway."""
    item = Item(signed.raw, signed.signature, gateway, number)
    source = next(node for node in world.ids if node != target)
    world.deliver(target, FromPeer(source, Forward(at, (item,), takeover=False)))
    world.run(0.05)


def note(world: World, *kinds: type, lost: tuple[type, ...] = ()) -> list[tuple[NodeId, NodeId, object]]:
    """The messages of these kinds from now on; those of `lost` do not arrive."""
    sent: list[tuple[NodeId, NodeId, object]] = []

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, kinds):
            sent.append((source, target, message))
        return isinstance(message, lost)

    world.lose = lose
    return sent


# --- a link that its owner does not know to be decided --------------------------------------------------------------

UNHEARD = (Accepted, Prepare, Decided, DecidedHash)


def chosen_unheard(world: World) -> tuple[NodeId, NodeId, SlotName, Call]:
    """The owner of alice's next link has proposed it, all have voted, and no vote is heard of: the owner, a gateway
    outside its group, the slot, and the gateway's call."""
    group, at = world.group("alice"), next_slot(world)
    gate = next(node for node in world.view.ids if node not in group)
    note(world, lost=UNHEARD)
    call = world.submit(gate, world.pay_request("alice", "bob", 1), 60.0)
    world.run(SLOW_S)
    assert all(world.core(node).acceptor.votes == 1 for node in group)
    assert call.answer is None
    return group[0], gate, at, call


@pytest.mark.parametrize("seed", range(1, 5))
def test_what_an_owner_proposed_is_no_others_to_decline_when_it_is_removed(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """A majority has voted for the link, and the next owner has no room for the requests in it."""
    world = World(5, 3, seed)
    world.open_funded(alice=100, bob=0)
    owner, gate, _, call = chosen_unheard(world)
    handed = note(world, Forward, lost=UNHEARD)
    monkeypatch.setattr(works, "MAX_QUEUE", 0)
    world.change(gate, ChangeAction.REMOVE, owner)
    assert world.run_until(lambda: any(source == owner for source, _, _ in handed), 10), "it hands its queue on"
    assert world.core(gate).counters["jobs_handed_again"] == 0
    world.run(SLOW_S)
    assert call.answer is None
    world.heal()
    assert world.run_until_answered([call], 5)
    assert isinstance(call.answer, Recorded)


def test_who_voted_for_a_request_declines_it_to_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes again, perhaps to its gateway's next process, to one who has no room any more."""
    owner, gate, at, call = chosen_unheard(world)
    assert call.signed is not None
    world.crash(owner)
    world.start(owner)
    world.run(SLOW_S)
    said = note(world, Declined, lost=(*UNHEARD, Accept))
    monkeypatch.setattr(works, "MAX_QUEUE", 0)
    hand_over(world, at, owner, call.signed, gate, 1)
    assert said == []
    hand_over(world, at, owner, world.pay_request("alice", "bob", 2), gate, 2)
    assert [(source, target) for source, target, _ in said] == [(owner, gate)], "of another one it says so"


def test_who_voted_for_a_request_sends_it_back_to_nobody(world: World) -> None:
    """Its gateway would hand it to one more node, and believe that one when it declines."""
    owner, gate, at, call = chosen_unheard(world)
    assert call.signed is not None
    said = note(world, NotOwner, lost=UNHEARD)
    world.change(gate, ChangeAction.REMOVE, owner)
    assert world.run_until(lambda: not world.core(owner).view.is_member(owner), 10)
    other = world.pay_request("alice", "bob", 2)
    for number, signed in enumerate((call.signed, other), start=1):
        hand_over(world, at, owner, signed, gate, number)
    told = [message for source, _, message in said if source == owner and isinstance(message, NotOwner)]
    assert [(one.request_ids, one.numbers) for one in told] == [((other.request_id,), (2,))]


# --- which hand-over is meant ---------------------------------------------------------------------------------------


def handed(world: World, gate: NodeId, signed: SignedRequest) -> tuple[Call, Item]:
    """A call whose request is handed over to the owner; the item."""
    sent = note(world, Forward, lost=(Accept,))
    call = world.submit(gate, signed, 60.0)
    assert world.run_until(lambda: bool(sent), SLOW_S)
    _, _, message = sent[0]
    assert isinstance(message, Forward)
    world.run(0.05)
    return call, message.items[0]


def test_what_was_declined_to_a_gateways_process_before_ends_no_call_of_this_one(
    world: World, gate: NodeId, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, signed = world.group("alice")[0], world.pay_request("alice", "bob", 1)
    said = note(world, Declined, lost=(Declined,))
    with monkeypatch.context() as patch:
        patch.setattr(works, "MAX_QUEUE", 0)
        world.submit(gate, signed, 60.0)
        assert world.run_until(lambda: bool(said), SLOW_S)
    ((_, _, late),) = said
    assert isinstance(late, Declined)
    world.crash(gate)
    world.start(gate)
    world.run(SLOW_S)
    call, _ = handed(world, gate, signed)
    world.deliver(gate, FromPeer(owner, late))
    world.run(0.05)
    assert call.answer is None
    world.heal()
    assert world.run_until_answered([call], 20)
    assert isinstance(call.answer, Recorded)


@pytest.mark.parametrize("old", [True, False], ids=["an earlier one", "the latest"])
@pytest.mark.parametrize("kind", [Declined, NotOwner])
def test_an_answer_counts_for_the_latest_hand_over(
    world: World, gate: NodeId, kind: type[Declined | NotOwner], old: bool
) -> None:
    owner, standby, _ = world.group("alice")
    call, item = handed(world, gate, world.pay_request("alice", "bob", 1))
    assert call.signed is not None
    ids, numbers = (call.signed.request_id,), (item.number - old,)
    answer: Message = Declined("alice", ids, "busy", "too much", numbers)
    if kind is NotOwner:
        answer = NotOwner(next_slot(world), ids, world.view.epoch, (standby,), numbers)
    again = note(world, Forward, lost=(Accept,))
    world.deliver(gate, FromPeer(owner, answer))
    world.run(0.05)
    assert isinstance(call.answer, NotStarted) is (kind is Declined and not old)
    to_standby = [message for source, target, message in again if (source, target) == (gate, standby)]
    assert bool(to_standby) is (kind is NotOwner and not old)
    for message in to_standby:
        assert isinstance(message, Forward)
        assert message.items[0].number != item.number, "each hand-over has its own"


def test_no_two_processes_of_a_gateway_give_the_same_number(world: World, gate: NodeId) -> None:
    _, before = handed(world, gate, world.pay_request("alice", "bob", 1))
    world.crash(gate)
    world.start(gate)
    world.run(SLOW_S)
    _, after = handed(world, gate, world.pay_request("alice", "bob", 1))
    assert abs(before.number - after.number) > 10**6


@pytest.mark.parametrize(
    ("numbers", "kept"),
    [((7, 8), 8), ((None, 8), None), ((7, None), None)],
    ids=["none is a copy", "the first is a copy", "the last is a copy"],
)
def test_of_a_request_that_comes_twice_the_latest_hand_over_counts_unless_one_was_a_copy(
    world: World, gate: NodeId, numbers: tuple[int | None, ...], kept: int | None
) -> None:
    """What is said of it is said to who waits for it now, and to nobody when another node has it, too."""
    owner, signed, at = world.group("alice")[0], world.pay_request("alice", "bob", 1), next_slot(world)
    note(world, lost=(Accept,))
    for number in numbers:
        hand_over(world, at, owner, signed, NO_GATEWAY if number is None else gate, number or 0)
    work = world.core(owner).owner._works.get("alice")
    assert work is not None
    queued = work.queue[signed.request_id]
    assert (queued.gateway, queued.number) == ((gate, kept) if kept else (NO_GATEWAY, 0))

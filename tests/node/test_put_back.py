"""A disk that was put back and lacks links, but no vote: no count tells it (design R12), and it may vote. What others
have read of its log behind that place is not what stands there now (R8)."""

import sqlite3
from typing import NamedTuple

import pytest

from chain.link import Slot
from chain.seal import CursorRow
from chain.store import commit
from hopchain.change import ChangeAction
from hopchain.wire import Changed, Recorded
from node import pulling
from node.events import FromPeer
from node.messages import Accept, Decided, DecidedHash, Links, Moved, Offer, Prepare, Pull, SlotAnswer
from node.pulling import log_name
from routing.keyspace import NodeId, route_key
from routing.regions import holds
from routing.view import member_of, with_member
from tests.node.world import TOLD, World

NAMES = [f"acc{i}" for i in range(10)]
UNASKED = TOLD | Accept | Prepare  # by these a link comes to who did not ask for it
SHOWS_LINKS = Links | Offer | Decided | DecidedHash
SHOWS_A_DECISION = Accept | Decided | DecidedHash | Links | Moved | SlotAnswer


class Cast(NamedTuple):
    """`account` is paid from by the group of `slot`: `put_back`, `dying` and `deaf`. The guest `joins`, so `deaf` and
    it are in the next view's group. `elsewhere`: accounts on whose next link `put_back` has no vote."""

    account: str
    slot: Slot
    put_back: NodeId
    dying: NodeId
    deaf: NodeId
    joins: NodeId
    elsewhere: list[str]


def cast(world: World) -> Cast | None:
    """The parts of the story, if this network has nodes for them."""
    (guest,) = world.guests
    view = world.watch.views[-1]
    after = with_member(view, member_of(world.keys[guest]), 1, view.ids[0])
    for account in NAMES:
        slot = Slot(world.watch.accounts[account].links[-1].hash)
        before, then = world.group(account), after.group(route_key(slot))
        for deaf in before[1:]:
            for put_back in set(before) - {deaf}:
                elsewhere = [name for name in NAMES if name != account and put_back not in world.group(name)]
                if guest in then and deaf in then and len(elsewhere) >= 2:
                    (dying,) = set(before) - {deaf, put_back}
                    return Cast(account, slot, put_back, dying, deaf, guest, elsewhere[:2])
    return None


def staged() -> tuple[World, Cast]:
    for seed in range(1, 30):
        world = World(6, 3, seed, first=5)
        world.run(1.0)
        world.open_funded(sink=0, **dict.fromkeys(NAMES, 100))
        found = cast(world)
        if found is not None:
            world.run(5.0)
            return world, found
    raise AssertionError("no network has nodes for this story")


def copy_of(world: World, node: NodeId) -> sqlite3.Connection:
    copy = sqlite3.connect(":memory:", isolation_level=None)
    world.nodes[node].conn.backup(copy)
    return copy


def test_a_log_that_others_read_further_than_it_goes_now_is_no_answer_of_a_source() -> None:
    world, on = staged()
    bystander = next(node for node in world.view.ids if node not in (on.put_back, on.dying, on.deaf))
    old, votes = copy_of(world, on.put_back), world.core(on.put_back).identity.votes
    for name in on.elsewhere:
        assert isinstance(world.pay(name, "sink", 1, at=world.group(name)[0]), Recorded)
    log_id, count = log(world, on.put_back)
    readers = [world.core(node).pulling for node in (on.joins, on.deaf)]
    assert world.run_until(lambda: all(r.has_log(on.put_back, log_id, count) for r in readers), 300)
    assert world.core(on.put_back).identity.votes == votes, "no vote is missing in the copy"

    world.crash(on.put_back)
    world.nodes[on.put_back].conn = old
    world.lose = lambda source, target, message: target == on.put_back and isinstance(message, SHOWS_LINKS)
    world.start(on.put_back)
    world.run(4.0)
    assert world.core(on.put_back).identity.verified, "nobody knows of a vote that it lacks"

    def decided_between_two(source: NodeId, target: NodeId, message: object) -> bool:
        two = (on.put_back, on.dying)
        told_others = source in two and target not in two and isinstance(message, SHOWS_A_DECISION)
        return told_others or (target == on.put_back and isinstance(message, Links | Offer))

    world.lose = decided_between_two
    owner = world.group(on.account)[0]
    assert isinstance(world.ask(owner, world.pay_request(on.account, "sink", 5)), Recorded)
    assert world.run_until(lambda: world.height(on.put_back, on.account) == 1, 2)
    world.crash(on.dying)  # one of three

    world.lose = lambda source, target, message: target == on.put_back and isinstance(message, Links | Offer)
    assert isinstance(world.answer_of(world.change(bystander, ChangeAction.ADD, on.joins)), Changed)
    active = [world.core(node) for node in (on.joins, on.deaf)]
    assert world.run_until(lambda: all(holds(core.active, route_key(on.slot)) for core in active), 30)
    assert all(world.height(node, on.account) == 1 for node in (on.joins, on.deaf)), "what it decided came with its log"
    if on.put_back in world.group(on.account):
        world.crash(on.put_back)
    world.heal()
    world.settle(on.deaf, world.pay_request(on.account, "sink", 7))
    assert world.watch.accounts[on.account].links[-1].height == 2


# --- a log for each process ---


def log(world: World, node: NodeId) -> tuple[int, int]:
    core = world.core(node)
    return core.pulling.log_id, core.replica.count


def read(world: World, starts: int, *, reader_too: bool = False) -> tuple[list[Offer], int, int]:
    """One of three nodes starts `starts` times while another one, which has read its log, hears nothing and lacks one
    link. What the reader is offered then of the log of now, how much it had read, and the id of that log."""
    world.open_funded(alice=100, bob=0)
    node, _, reader = world.group("alice")
    log_id, count = log(world, node)
    assert world.run_until(lambda: world.core(reader).pulling.has_log(node, log_id, count), 60)
    world.lose = lambda source, target, message: target == reader and isinstance(message, UNASKED | Offer)
    world.settle(node, world.pay_request("alice", "bob", 1))
    for _ in range(starts):
        world.crash(node)
        world.start(node)
        world.run(4.0)
    if reader_too:
        world.crash(reader)
        world.start(reader)
    offers: list[Offer] = []

    def note(source: NodeId, target: NodeId, message: object) -> bool:
        if target == reader and source == node and isinstance(message, Offer):
            offers.append(message)
        return target == reader and (isinstance(message, UNASKED) or (isinstance(message, Offer) and source != node))

    world.lose = note
    begun, length = log(world, node)
    assert length == count + 1 and begun != log_id
    assert world.run_until(lambda: world.core(reader).pulling.has_log(node, begun, length), 60)
    return [offer for offer in offers if offer.log_id == begun], count, begun


@pytest.mark.parametrize("reader_too", [False, True])
@pytest.mark.parametrize("starts", [1, 3])
def test_who_read_a_log_before_a_start_goes_on_where_it_was(starts: int, *, reader_too: bool) -> None:
    offers, count, _ = read(World(3, 3, 1), starts, reader_too=reader_too)
    assert len(offers[0].earlier) == starts
    assert [(offer.after, len(offer.hashes)) for offer in offers[:2]] == [(0, count + 1), (count, 1)]


def test_a_log_of_which_nobody_is_told_any_more_is_compared_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulling, "EARLIER", 2)
    offers, count, _ = read(World(3, 3, 1), 3)
    assert len(offers[0].earlier) == 2
    assert [(offer.after, len(offer.hashes)) for offer in offers[:1]] == [(0, count + 1)]
    assert all(offer.after != count for offer in offers)


def test_only_what_a_disk_that_was_put_back_holds_counts_as_read() -> None:
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    other, reader, node = world.group("alice")
    world.run(5.0)
    old, before = copy_of(world, node), world.core(node).replica.count
    world.lose = lambda source, target, message: target == node and isinstance(message, Accept | Prepare)
    world.settle(other, world.pay_request("alice", "bob", 1))
    world.run(1.0)
    log_id, count = log(world, node)
    assert world.run_until(lambda: world.core(reader).pulling.has_log(node, log_id, count), 60)
    world.crash(node)
    world.nodes[node].conn = old
    world.lose = lambda source, target, message: target == node and isinstance(message, UNASKED | Offer)
    world.start(node)
    pulls: list[Pull] = []

    def note(source: NodeId, target: NodeId, message: object) -> bool:
        if (source, target) == (reader, node) and isinstance(message, Pull):
            pulls.append(message)
        return target == node and isinstance(message, UNASKED | Offer)

    world.lose = note
    begun = world.core(node).pulling.log_id
    assert world.run_until(lambda: any(pull.log_id == begun for pull in pulls), 30)
    assert next(pull.after for pull in pulls if pull.log_id == begun) == before < count


def test_a_cursor_that_was_found_false_is_not_believed_for_the_next_log() -> None:
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    owner, reader, _ = world.group("alice")
    world.run(5.0)
    world.crash(reader)
    world.settle(owner, world.pay_request("alice", "bob", 1))
    log_id, count = log(world, owner)
    # Which is false: it lacks the last link.
    commit(world.nodes[reader].conn, [CursorRow(log_name(owner, log_id), count)])
    world.crash(owner)
    world.start(owner)
    world.run(4.0)
    world.start(reader)
    world.lose = lambda source, target, message: (
        target == reader and (isinstance(message, UNASKED | Links) or (isinstance(message, Offer) and source != owner))
    )
    read = world.core(reader).pulling
    assert world.run_until(lambda: read._cursors.get(log_name(owner, log(world, owner)[0])) == 0, 60), "a gap is found"
    world.crash(owner)
    world.start(owner)
    assert not world.run_until(lambda: read.has_log(owner, *log(world, owner)), 30)
    assert world.height(reader, "alice") == 0


def test_that_two_replicas_are_equal_is_heeded_by_the_process_that_asked() -> None:
    """The answer comes late, to a process whose disk was put back and has as many links, but not the same."""
    world = World(4, 1, 1)
    world.open_funded(sink=0, **dict.fromkeys(NAMES, 100))
    world.run(5.0)
    reader = world.ids[0]
    one, told = next((name, world.group(name)[0]) for name in NAMES if world.group(name)[0] != reader)
    two = next(name for name in NAMES if world.group(name)[0] not in (reader, told))
    old, owner = copy_of(world, reader), world.group(two)[0]
    world.settle(told, world.pay_request(one, "sink", 1))
    assert world.run_until(lambda: world.height(reader, one) == 1, 10)
    late: list[Offer] = []

    def hold_back(source: NodeId, target: NodeId, message: object) -> bool:
        if (source, target) == (told, reader) and isinstance(message, Offer) and not message.hashes:
            late.append(message)
        return target == reader and isinstance(message, Offer)

    world.crash(reader)
    world.lose = hold_back
    world.start(reader)
    assert world.run_until(lambda: bool(late), 60)
    world.crash(reader)
    world.nodes[reader].conn = old
    world.lose = lambda source, target, message: (
        target == reader and isinstance(message, SHOWS_LINKS) and not (source == owner and isinstance(message, TOLD))
    )
    world.start(reader)
    world.run(3.0)
    world.settle(owner, world.pay_request(two, "sink", 1))
    assert world.run_until(lambda: world.height(reader, two) == 1, 10)
    read = world.core(reader).pulling
    assert world.run_until(lambda: read._puller is not None and read._puller.peer == told, 60)
    world.deliver(reader, FromPeer(told, late[0]))
    world.run(0.01)
    assert world.height(reader, one) == 0
    assert not read.has_log(told, late[0].log_id, late[0].count)

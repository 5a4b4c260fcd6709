"""R12: a disk that went back in time, was emptied, or runs twice must not vote."""

import sqlite3
from collections import Counter

import pytest

from chain.errors import Quarantined
from chain.needs import Loaded
from chain.rows import VoteRow
from chain.seal import SeenRow
from hopchain.wire import Changed, Recorded
from node.events import FromPeer
from node.identity import ALONE_S, REMEMBER_EVERY_S, Identity
from node.messages import Accepted, AskIncome, AskSlot, IncomeAnswer, Pong, Prepare, Promise, SlotAnswer, SlotName
from node.paxos import Ballot
from node.turn import Now, Self, Turn
from routing.keyspace import NodeId
from routing.regions import EMPTY, RING
from tests.node.world import World

PEERS = [NodeId(bytes([i]) * 20) for i in range(1, 5)]


def make(seen: dict[NodeId, int] | None = None, nodes: int = 5, *, started: float = 0.0) -> tuple[Identity, World]:
    world = World(nodes, 3, 1)
    me = world.ids[0]
    self_ = Self(me, world.genesis, world.network, world.view, RING, world.rng, Counter())
    return Identity(self_, seen or {}, started), world


def turn(at: float) -> Turn:
    return Turn(Loaded(), Now(at, 0))


def vote(slot: bytes) -> VoteRow:
    return VoteRow(slot, "alice", 1, (1, 0, bytes(20)))  # type: ignore[arg-type]


def test_a_node_votes_only_after_a_majority_has_confirmed_it() -> None:
    identity, world = make()
    _, first, second, *_ = world.ids
    assert not identity.verified
    identity.on_pong(first, 0)
    identity.on_pong(first, 0)  # the same one twice is one
    assert not identity.verified
    identity.on_pong(PEERS[0], 0)  # a guest has no say
    assert not identity.verified
    identity.on_pong(second, 0)
    assert identity.verified


def test_a_guest_that_has_not_answered_yet_holds_nobody_up_and_a_member_does() -> None:
    identity, world = make()
    _, first, second, third, _ = world.ids
    identity.on_up(PEERS[0])
    identity.on_up(third)
    identity.on_pong(first, 0)
    identity.on_pong(second, 0)
    assert not identity.verified
    identity.on_pong(third, 0)
    assert identity.verified


def test_a_joiner_is_verified_by_the_members_alone() -> None:
    """It is no member itself: a majority of the members and it, in the group that it is about to make with them."""
    world = World(2, 3, 1)
    joiner = PEERS[0]
    self_ = Self(joiner, world.genesis, world.network, world.view, EMPTY, world.rng, Counter())
    identity = Identity(self_, {}, 0.0)
    assert not identity.verified
    identity.on_pong(world.ids[0], 0)
    assert identity.verified


def test_one_node_alone_is_its_own_majority_at_once() -> None:
    identity, _ = make(nodes=1)
    assert identity.verified


def test_a_node_alone_that_was_given_seeds_waits_for_them() -> None:
    identity, _ = make(nodes=1, started=10.0)
    identity.wait_for_seeds()
    assert not identity.verified
    identity.tick(10.0 + ALONE_S - 0.1)
    assert not identity.verified
    identity.tick(10.0 + ALONE_S)
    assert identity.verified


def test_a_node_in_a_view_with_others_waits_for_their_word_alone() -> None:
    identity, world = make(nodes=2)
    identity.wait_for_seeds()
    identity.on_pong(world.ids[1], 0)
    assert identity.verified


def test_a_node_alone_stops_voting_while_it_hears_of_a_later_view() -> None:
    identity, _ = make(nodes=1)
    assert identity.verified
    identity.on_up(PEERS[0])
    identity.on_ping(PEERS[0], 0, 1)
    assert identity.verified
    identity.on_ping(PEERS[0], 0, 2)
    assert not identity.verified
    identity.on_down(PEERS[0])
    assert not identity.verified, "whoever told of it is gone, and the view is there"
    identity.on_ping(PEERS[1], 0, 1)
    assert not identity.verified


def test_a_node_alone_that_was_told_that_it_was_removed_does_not_vote() -> None:
    identity, _ = make(nodes=1)
    identity._self.told_removed = 2
    assert not identity.verified


def test_what_guests_tell_of_later_views_holds_up_nobody_who_has_other_members() -> None:
    identity, world = make(nodes=3)
    identity.on_up(PEERS[0])
    identity.on_ping(PEERS[0], 0, 2**31)
    identity.on_up(world.ids[1])
    identity.on_pong(world.ids[1], 0)
    assert identity.verified


def test_a_node_that_starts_does_not_vote_while_it_hears_of_a_later_view_and_one_that_votes_goes_on() -> None:
    identity, world = make(nodes=3)
    peer = world.ids[1]
    identity.on_up(peer)
    identity.on_ping(peer, 0, 2)
    identity.on_pong(peer, 0)
    assert not identity.verified
    identity.on_ping(peer, 0, 1)
    assert identity.verified
    identity.on_ping(peer, 0, 2)
    assert identity.verified, "it is late, as anybody may be"


def test_the_later_view_that_somebody_told_of_who_is_gone_holds_nobody_up() -> None:
    """Those who are here would know of it; it tells of it again when it is back."""
    identity, world = make()
    _, first, second, third, _ = world.ids
    identity.on_up(third)
    identity.on_ping(third, 0, 2)
    for peer in (first, second, third):
        identity.on_pong(peer, 0)
    assert not identity.verified
    identity.on_down(third)
    assert identity.verified


def test_who_is_told_of_more_than_it_has_stops_and_is_told_what_to_do() -> None:
    identity, world = make({})
    me, peer, *_ = world.ids
    identity = Identity(identity._self, {me: 7}, 0.0)
    identity.on_pong(peer, 7)
    with pytest.raises(Quarantined, match=r"recorded votes 7 times.*has seen 8.*new id"):
        identity.on_pong(peer, 8)


def test_a_guest_does_not_vouch_and_what_it_has_seen_counts() -> None:
    """To a disk from before it became a member it is a guest, though it saw the votes that this disk lacks."""
    identity, _ = make({})
    identity.on_pong(PEERS[0], 0)
    identity.on_pong(PEERS[1], 0)
    assert not identity.verified
    with pytest.raises(Quarantined, match=r"recorded votes 0 times.*has seen 8"):
        identity.on_pong(PEERS[0], 8)


def test_votes_are_counted_in_their_own_transaction() -> None:
    identity, world = make()
    one = turn(1.0)
    one.persist += [vote(bytes(32)), vote(bytes(31) + b"\1")]
    identity.finish(one)
    assert one.persist[-1] == SeenRow(world.ids[0], 1)
    idle = turn(2.0)
    identity.finish(idle)
    assert idle.persist == []
    assert identity.votes == 1


def test_what_peers_said_is_remembered_soon_and_only_when_it_is_news() -> None:
    identity, _ = make()
    identity.on_ping(PEERS[0], 5, 1)
    first = turn(1.0)
    identity.finish(first)
    assert first.persist == []
    assert identity.deadline() == 1.0 + REMEMBER_EVERY_S
    later = turn(1.0 + REMEMBER_EVERY_S)
    identity.finish(later)
    assert later.persist == [SeenRow(PEERS[0], 5)]
    identity.on_ping(PEERS[0], 4, 1)  # late
    identity.on_ping(PEERS[0], 5, 1)
    again = turn(9.0)
    identity.finish(again)
    assert again.persist == []
    assert identity.seen(PEERS[0]) == 5


def test_what_peers_said_is_written_with_the_next_votes() -> None:
    identity, world = make()
    identity.on_ping(PEERS[0], 5, 1)
    one = turn(1.0)
    one.persist.append(vote(bytes(32)))
    identity.finish(one)
    assert one.persist[1:] == [SeenRow(world.ids[0], 1), SeenRow(PEERS[0], 5)]
    assert identity.deadline() is None


def test_who_may_have_lost_votes_neither_votes_nor_speaks_of_votes() -> None:
    """It has started again, and the others have not told it yet what they saw of it."""
    world = World(3, 3, 1)
    pay_some(world)
    node, asker, _ = world.ids
    world.crash(node)
    said: list[type] = []
    in_doubt = True

    def note(source: NodeId, target: NodeId, message: object) -> bool:
        if source == node and isinstance(message, Promise | Accepted | SlotAnswer | IncomeAnswer):
            said.append(type(message))
        return in_doubt and isinstance(message, Pong) and target == node

    world.lose = note
    world.start(node)
    world.run(1.0)
    assert not world.core(node).identity.verified
    at = SlotName(world.tip(node, "alice"), "alice", world.height(node, "alice") + 1)
    questions = (Prepare(at, Ballot(1, 1, asker)), AskSlot(1, at, 1), AskIncome(1, "alice", bytes(32), 1))
    for question in questions:
        world.deliver(node, FromPeer(asker, question))
    world.run(0.1)
    assert said == []
    in_doubt = False
    world.run(1.0)
    for question in questions:
        world.deliver(node, FromPeer(asker, question))
    world.run(0.1)
    assert {*said} == {Promise, SlotAnswer, IncomeAnswer}


def pay_some(world: World) -> None:
    for name in ("alice", "bob"):
        world.settle(world.ids[0], world.open_request(name))
    for _ in range(5):
        assert isinstance(world.settle(world.ids[1], world.pay_request("mint", "alice", 10)), Recorded)
    world.run(2.0)


@pytest.mark.parametrize("how", ["emptied", "old"])
def test_a_node_that_comes_back_with_less_is_quarantined_and_the_others_pay_on(how: str) -> None:
    world = World(5, 5, 3)
    world.run(1.0)
    victim = world.ids[2]
    old = sqlite3.connect(":memory:", isolation_level=None)
    world.nodes[victim].conn.backup(old)
    pay_some(world)
    world.crash(victim)
    fresh = World(5, 5, 3).nodes[victim].conn
    world.nodes[victim].conn = fresh if how == "emptied" else old
    world.start(victim)
    with pytest.raises(Quarantined):
        world.run(2.0)
    core = world.nodes[victim].core
    assert core is not None
    assert not core.identity.verified
    assert core.acceptor.votes == 0
    world.crash(victim)
    assert world.settle(world.ids[0], world.pay_request("alice", "bob", 50)).outcome == 0


def test_a_node_that_comes_back_whole_votes_again() -> None:
    world = World(3, 3, 4)
    pay_some(world)
    victim = world.ids[1]
    world.crash(victim)
    world.start(victim)
    world.run(1.0)
    core = world.nodes[victim].core
    assert core is not None
    assert core.identity.verified


def test_a_whole_network_that_restarts_confirms_itself() -> None:
    world = World(3, 3, 5)
    pay_some(world)
    for node_id in world.ids:
        world.crash(node_id)
    for node_id in world.ids:
        world.start(node_id)
    assert world.settle(world.ids[0], world.pay_request("alice", "bob", 50)).outcome == 0


@pytest.mark.parametrize("how", ["emptied", "old"])
def test_the_founder_of_a_grown_network_decides_nothing_with_a_disk_from_before_it_grew(how: str) -> None:
    """Its own view has no one else in it. Its config has: they are heard before it votes."""
    world = World(3, 3, 6, first=1)
    (founder,) = (node for node in world.ids if node not in world.guests)
    world.run(0.1)
    world.settle(founder, world.open_request("alice"))
    old = sqlite3.connect(":memory:", isolation_level=None)
    world.nodes[founder].conn.backup(old)
    for guest in world.guests:
        assert isinstance(world.add(founder, guest), Changed)
    world.settle(world.guests[0], world.pay_request("mint", "alice", 10))
    world.run(2.0)
    world.crash(founder)
    fresh = World(3, 3, 6, first=1).nodes[founder].conn
    world.nodes[founder].conn = fresh if how == "emptied" else old
    world.watch.epochs[founder] = 1
    world.start(founder)
    world.core(founder).introduce(b"", seeds=True)
    assert not world.core(founder).identity.verified
    call = world.submit(founder, world.pay_request("mint", "alice", 20))
    with pytest.raises(Quarantined):
        world.run(3.0)
    assert call.answer is None
    world.crash(founder)
    assert world.settle(world.guests[0], world.pay_request("alice", "mint", 10)).outcome == 0


def test_a_founder_that_lost_more_than_its_view_stops_at_the_first_word_of_a_later_one() -> None:
    """Nobody told it of seeds, so it votes at once; those who dial it stop it before they count for anything."""
    world = World(2, 3, 7, first=1)
    (founder,) = (node for node in world.ids if node not in world.guests)
    world.run(0.1)
    fresh = World(2, 3, 7, first=1).nodes[founder].conn
    assert isinstance(world.add(founder, world.guests[0]), Changed)
    world.run(2.0)
    world.crash(founder)
    world.nodes[founder].conn = fresh
    world.watch.epochs[founder] = 1
    world.start(founder)
    assert world.core(founder).identity.verified
    with pytest.raises(Quarantined):
        world.run(2.0)


def test_who_is_left_alone_by_the_others_looks_for_them_once_when_it_starts_again() -> None:
    world = World(2, 3, 8)
    world.run(2.5)
    last, gone = world.ids
    assert isinstance(world.remove(last, gone, force=True), Changed)
    world.run(3.0)
    world.crash(gone)
    assert world.core(last).identity.verified
    world.crash(last)
    world.start(last)
    world.run(ALONE_S - 0.5)
    assert not world.core(last).identity.verified
    world.run(1.0)
    assert world.core(last).identity.verified

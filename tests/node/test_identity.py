"""R12: a disk that went back in time, was emptied, or runs twice must not vote."""

import sqlite3
from collections import Counter

import pytest

from chain.errors import Quarantined
from chain.needs import Loaded
from chain.rows import VoteRow
from chain.store import SeenRow
from hopchain.wire import Recorded
from node.identity import REMEMBER_EVERY_S, Identity
from node.turn import Now, Self, Turn
from routing.keyspace import NodeId
from routing.regions import EMPTY, RING
from tests.node.world import World

PEERS = [NodeId(bytes([i]) * 20) for i in range(1, 5)]


def make(seen: dict[NodeId, int] | None = None, nodes: int = 5) -> tuple[Identity, World]:
    world = World(nodes, 3, 1)
    me = world.ids[0]
    self_ = Self(me, world.genesis, world.network, world.view, RING, world.rng, Counter())
    return Identity(self_, seen or {}), world


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
    identity = Identity(self_, {})
    assert not identity.verified
    identity.on_pong(world.ids[0], 0)
    assert identity.verified


def test_one_node_alone_is_its_own_majority() -> None:
    identity, _ = make(nodes=1)
    assert identity.verified


def test_who_is_told_of_more_than_it_has_stops_and_is_told_what_to_do() -> None:
    identity, world = make({})
    identity = Identity(identity._self, {world.ids[0]: 7})
    identity.on_pong(PEERS[0], 7)
    with pytest.raises(Quarantined, match=r"recorded votes 7 times.*has seen 8.*new id"):
        identity.on_pong(PEERS[1], 8)


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
    identity.on_ping(PEERS[0], 5)
    first = turn(1.0)
    identity.finish(first)
    assert first.persist == []
    assert identity.deadline() == 1.0 + REMEMBER_EVERY_S
    later = turn(1.0 + REMEMBER_EVERY_S)
    identity.finish(later)
    assert later.persist == [SeenRow(PEERS[0], 5)]
    identity.on_ping(PEERS[0], 4)  # late
    identity.on_ping(PEERS[0], 5)
    again = turn(9.0)
    identity.finish(again)
    assert again.persist == []
    assert identity.seen(PEERS[0]) == 5


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

"""R12: a disk that went back in time, was emptied, or runs twice must not vote."""

import sqlite3
from collections import Counter
from typing import NamedTuple

import pytest

from chain.errors import Quarantined
from chain.link import Slot
from chain.needs import Loaded
from chain.rows import VoteRow
from chain.seal import SeenRow
from hopchain.change import ChangeAction
from hopchain.wire import Changed, Recorded
from node.events import FromPeer
from node.identity import ALONE_S, MEET_S, REMEMBER_EVERY_S, Identity
from node.messages import (
    Accepted,
    AskIncome,
    AskSlot,
    IncomeAnswer,
    Pong,
    Prepare,
    Promise,
    SlotAnswer,
    SlotName,
    ViewAccept,
    ViewPrepare,
    Views,
)
from node.paxos import Ballot
from node.peers import PING_EVERY_S
from node.transport import DIAL_GRACE_S, DIAL_MAX_S
from node.turn import Now, Self, Turn
from routing.keyspace import NodeId, route_key
from routing.regions import EMPTY, RING, holds
from routing.view import member_of, with_member, without_member
from tests.node.world import World

PEERS = [NodeId(bytes([i]) * 20) for i in range(1, 5)]


def make(
    seen: dict[NodeId, int] | None = None, nodes: int = 5, *, started: float = 0.0, fenced: bool = False
) -> tuple[Identity, World]:
    world = World(nodes, 3, 1)
    me = world.ids[0]
    self_ = Self(me, world.genesis, world.network, world.view, RING, world.rng, Counter())
    return Identity(self_, seen or {}, started, fenced=fenced), world


def found_whole(*, fenced: bool = False) -> tuple[Identity, World]:
    """All members have vouched for it."""
    identity, world = make(fenced=fenced)
    for peer in world.ids[1:]:
        identity.on_pong(peer, 0)
    assert identity.verified
    return identity, world


def turn(at: float) -> Turn:
    return Turn(Loaded(), Now(at, 0))


def vote(slot: bytes) -> VoteRow:
    return VoteRow(slot, "alice", 1, (1, 0, bytes(20)))  # type: ignore[arg-type]


def test_a_node_votes_at_once_when_all_members_have_confirmed_it() -> None:
    identity, world = make()
    *most, last = world.ids[1:]
    for peer in most:
        identity.on_pong(peer, 0)
        identity.on_pong(peer, 0)  # the same one twice is one
    identity.on_pong(PEERS[0], 0)  # a guest has no say
    assert not identity.verified
    identity.on_pong(last, 0)
    assert identity.verified


def test_a_node_votes_after_a_while_when_a_majority_has_confirmed_it() -> None:
    identity, world = make(started=10.0)
    _, first, second, *_ = world.ids
    identity.on_pong(first, 0)
    identity.on_pong(PEERS[0], 0)
    identity.tick(10.0 + MEET_S)
    assert not identity.verified
    identity.on_pong(second, 0)
    assert identity.verified


def test_a_node_that_others_may_yet_come_to_waits_for_them() -> None:
    identity, world = make(started=10.0)
    _, first, second, *_ = world.ids
    identity.on_pong(first, 0)
    identity.on_pong(second, 0)
    assert identity.deadline() == 10.0 + MEET_S
    identity.tick(10.0 + MEET_S - 0.1)
    assert not identity.verified
    identity.tick(10.0 + MEET_S)
    assert identity.verified
    assert identity.deadline() is None


def test_who_is_dialed_by_nodes_that_it_does_not_know_waits_for_as_long_as_that_takes() -> None:
    assert DIAL_GRACE_S + DIAL_MAX_S + 2 * PING_EVERY_S <= MEET_S


def test_who_was_found_whole_once_does_not_wait_for_others_to_come_again() -> None:
    identity, world = found_whole()
    identity.suspend()
    _, first, second, third, _ = world.ids
    identity.on_up(third)
    identity.on_pong(first, 0)
    identity.on_pong(second, 0)
    assert not identity.verified, "it is connected to one that has not vouched for it again"
    identity.on_down(third)
    assert identity.verified


def test_a_guest_that_has_not_answered_yet_holds_a_node_up_for_a_while() -> None:
    identity, world = make()
    identity.on_up(PEERS[0])
    for peer in world.ids[1:]:
        identity.on_pong(peer, 0)
    assert not identity.verified
    identity.tick(MEET_S)
    assert identity.verified

    identity, world = make()
    identity.on_up(PEERS[0])
    for peer in world.ids[1:]:
        identity.on_pong(peer, 0)
    identity.on_pong(PEERS[0], 0, vouches=False)
    assert identity.verified


def test_a_member_that_is_connected_and_has_not_answered_holds_a_node_up() -> None:
    identity, world = make()
    _, first, second, third, _ = world.ids
    identity.on_up(third)
    identity.on_pong(first, 0)
    identity.on_pong(second, 0)
    identity.tick(MEET_S)
    assert not identity.verified
    identity.on_pong(third, 0)
    assert identity.verified


def test_a_joiner_is_verified_by_the_members_alone() -> None:
    """It is no member itself: the members and it, in the group that it is about to make with them."""
    world = World(2, 3, 1)
    joiner = PEERS[0]
    self_ = Self(joiner, world.genesis, world.network, world.view, EMPTY, world.rng, Counter())
    identity = Identity(self_, {}, 0.0)
    assert not identity.verified
    for peer in world.ids:
        identity.on_pong(peer, 0)
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
    identity.on_pong(PEERS[0], 0)
    identity.on_up(world.ids[1])
    identity.on_pong(world.ids[1], 0)
    identity.on_pong(world.ids[2], 0)
    assert identity.verified


def test_a_node_that_starts_does_not_vote_while_it_hears_of_a_later_view_and_one_that_votes_goes_on() -> None:
    identity, world = make(nodes=3)
    peer = world.ids[1]
    identity.on_up(peer)
    identity.on_ping(peer, 0, 2)
    for node in world.ids[1:]:
        identity.on_pong(node, 0)
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
    identity.tick(MEET_S)
    assert not identity.verified
    identity.on_down(third)
    assert identity.verified


def test_who_is_told_of_more_than_it_has_stops_and_is_told_what_to_do() -> None:
    identity, world = make({})
    me, peer, *_ = world.ids
    identity = Identity(identity._self, {me: 7}, 0.0)
    identity.on_pong(peer, 7)
    with pytest.raises(Quarantined, match=r"recorded votes or views 7 times.*has seen 8.*new id"):
        identity.on_pong(peer, 8)


def test_a_guest_does_not_vouch_and_what_it_has_seen_counts() -> None:
    """To a disk from before it became a member it is a guest, though it saw the votes that this disk lacks."""
    identity, _ = make({})
    identity.on_pong(PEERS[0], 0)
    identity.on_pong(PEERS[1], 0)
    assert not identity.verified
    with pytest.raises(Quarantined, match=r"recorded votes or views 0 times.*has seen 8"):
        identity.on_pong(PEERS[0], 8)


def test_votes_are_counted_in_their_own_transaction() -> None:
    identity, world = found_whole()
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


def test_an_installed_view_is_counted_with_the_votes_of_its_transaction() -> None:
    identity, world = found_whole()
    one = turn(1.0)
    identity.on_install(world.view, world.view)
    assert identity.votes == 1, "the pings of this turn tell it"
    identity.on_install(world.view, world.view)
    one.persist.append(vote(bytes(32)))
    identity.finish(one)
    assert one.persist[1:] == [SeenRow(world.ids[0], 1)]
    idle = turn(2.0)
    identity.finish(idle)
    assert idle.persist == []


def test_only_views_that_one_is_or_was_a_member_of_are_counted() -> None:
    """What an observer installs promises nothing: its database may be put back."""
    identity, world = found_whole()
    without = without_member(world.view, world.ids[0], 1, world.ids[1])
    identity.on_install(without, without)
    assert identity.votes == 0
    identity.on_install(world.view, without)
    identity.finish(turn(1.0))
    identity.on_install(without, world.view)
    assert identity.votes == 2


def test_views_that_an_old_disk_catches_up_with_do_not_hide_the_votes_that_it_lacks() -> None:
    identity, world = make()
    for at in (1.0, 2.0):
        one = turn(at)
        identity.on_install(world.view, world.view)
        identity.finish(one)
        assert one.persist == []
    with pytest.raises(Quarantined, match=r"recorded votes or views 0 times.*has seen 2"):
        identity.on_pong(world.ids[1], 2)


def test_views_that_were_installed_before_a_node_was_found_whole_are_counted_when_it_is() -> None:
    identity, world = make()
    identity.on_install(world.view, world.view)
    identity.finish(turn(1.0))
    for peer in world.ids[1:]:
        identity.on_pong(peer, 0)
    for at, rows in ((2.0, [SeenRow(world.ids[0], 1)]), (3.0, [])):
        one = turn(at)
        identity.finish(one)
        assert one.persist == rows


def test_what_the_process_before_may_not_have_counted_is_counted_once() -> None:
    identity, world = found_whole(fenced=True)
    one = turn(1.0)
    identity.finish(one)
    assert one.persist == [SeenRow(world.ids[0], 1)]
    identity.finish(turn(2.0))
    assert identity.votes == 1


def test_what_peers_said_is_written_with_the_next_votes() -> None:
    identity, world = found_whole()
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


class Parted(NamedTuple):
    """`fenced` has installed the second view without a vote, and told a guest what it voted for before.
    `early` have not installed it, `late` have: with the guest, who is ACTIVE now, they decide in it."""

    fenced: NodeId
    early: tuple[NodeId, NodeId]
    late: tuple[NodeId, NodeId]
    guest: NodeId
    account: str


def parted(world: World) -> Parted:
    """Five members decide on everything. One of them is away when accounts are opened, so it has never voted."""
    fenced, *early, one, two = world.view.ids
    (guest,) = world.guests
    world.crash(fenced)
    names = [f"acc{i}" for i in range(20)]
    for name in names:
        world.settle(one, world.open_request(name))
        world.settle(one, world.pay_request("mint", name, 10))
    world.start(fenced)
    world.run(6.0)
    after = with_member(world.view, member_of(world.keys[guest]), 1, one)
    voters = {guest, one, two}
    account = next(name for name in names if voters <= {*after.group(route_key(Slot(world.tip(one, name))))})
    return Parted(fenced, (early[0], early[1]), (one, two), guest, account)


def install_without_a_vote(world: World, on: Parted) -> None:
    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        unasked = target == on.fenced and isinstance(message, ViewPrepare | ViewAccept)
        return unasked or (target in on.early and isinstance(message, Views))

    world.lose = lose
    world.change(on.late[0], ChangeAction.ADD, on.guest)
    key = route_key(Slot(world.tip(on.guest, on.account)))
    active = [world.core(node) for node in (on.guest, *on.late)]
    assert world.run_until(lambda: all(core.view.epoch == 2 and holds(core.active, key) for core in active), 30)
    world.run(1.0)
    assert {node: world.core(node).view.epoch for node in (on.fenced, *on.early)} == {
        on.fenced: 2,
        on.early[0]: 1,
        on.early[1]: 1,
    }


@pytest.mark.parametrize("how", ["emptied", "old"])
def test_a_view_that_was_installed_without_a_vote_is_a_promise_that_others_know_of(how: str) -> None:
    """Else the account has two successors: one in the view before, with the votes of those who have no other one."""
    world = World(6, 5, 1, first=5)
    world.run(1.0)
    on = parted(world)
    old = sqlite3.connect(":memory:", isolation_level=None)
    world.nodes[on.fenced].conn.backup(old)
    assert world.core(on.fenced).identity.votes == 0
    install_without_a_vote(world, on)
    world.crash(on.fenced)
    world.part((on.fenced, *on.early), (*on.late, on.guest))
    world.settle(on.late[0], world.pay_request(on.account, "mint", 3))
    world.nodes[on.fenced].conn = World(6, 5, 1, first=5).nodes[on.fenced].conn if how == "emptied" else old
    world.watch.epochs[on.fenced] = 1
    world.start(on.fenced)
    with pytest.raises(Quarantined, match=r"recorded votes or views 0 times.*has seen 1"):
        world.settle(on.early[0], world.pay_request(on.account, "mint", 4))


@pytest.mark.parametrize("who", ["guest", "member"])
def test_a_node_that_comes_back_does_not_vote_before_those_who_dial_it_are_there(who: str) -> None:
    """Two of five members know of none of its votes, and are there first. Without those who come later the account has
    two successors."""
    world = World(6, 5, 1, first=5)
    world.run(1.0)
    put_back, knows, dying, *others = world.view.ids
    (guest,) = world.guests
    world.settle(dying, world.open_request("alice"))
    world.settle(dying, world.pay_request("mint", "alice", 10))
    world.run(2.0)
    old = sqlite3.connect(":memory:", isolation_level=None)
    world.nodes[put_back].conn.backup(old)
    world.part((put_back, knows, dying, guest), others)
    world.settle(dying, world.pay_request("alice", "mint", 3))
    world.run(2.0)
    late = knows if who == "member" else guest
    world.crash(put_back)
    world.crash(late)
    world.part((put_back, late, *others))
    world.nodes[put_back].conn = old
    world.start(put_back)
    call = world.submit(others[0], world.pay_request("alice", "mint", 4))
    world.later(DIAL_GRACE_S + DIAL_MAX_S, lambda: world.start(late))
    with pytest.raises(Quarantined):
        world.run(10.0)
    assert call.answer is None

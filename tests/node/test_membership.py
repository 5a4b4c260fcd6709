"""Whole cores whose members change: what is answered, what is refused, and what survives crashes (design R1, R5, R6,
R9, R12).

`tests.node.watch` looks on: I12 (views in order, with the votes of a majority), R7 (no vote before ACTIVE) and the
rest.
"""

import re
from collections.abc import Callable
from itertools import combinations, pairwise
from typing import Any

import msgspec
import pytest

from chain.link import Outcome
from chain.seal import load_views
from hopchain.change import ChangeAction
from hopchain.wire import Changed, NotStarted, Recorded, Refused, ReplyBody, Unknown
from node import changes, changing, membership, view_ballots
from node.epochs import without_majority
from node.events import FromPeer, ToldRemoved
from node.messages import (
    AskBoot,
    AskViews,
    Message,
    Ping,
    Pong,
    Prepare,
    Refuse,
    SlotName,
    SyncPart,
    ViewAccept,
    ViewAccepted,
    ViewPrepare,
    ViewPromise,
    ViewRefuse,
    Views,
)
from node.paxos import MAX_BALLOT, Ballot
from routing import regions
from routing.errors import RoutingFault
from routing.keyspace import NodeId
from routing.regions import group_ranges
from routing.view import View, encode_view, member_of, with_member, without_member
from tests.node.world import AT_VOTE, Asked, Doom, Faults, World, key_of, public

ADD, REMOVE = ChangeAction.ADD, ChangeAction.REMOVE


def grown(nodes: int, first: int, k: int = 3, seed: int = 1) -> World:
    """`first` members that know each other, and guests."""
    world = World(nodes, k, seed, first=first)
    world.run(1.0)
    return world


def changed(answer: ReplyBody, epoch: int, *, member: bool) -> None:
    assert isinstance(answer, Changed), answer
    assert (answer.epoch, answer.member) == (epoch, member)


def at_rest(world: World, epoch: int, *, without: tuple[NodeId, ...] = ()) -> None:
    """Every living member has the view and is ACTIVE; nothing waits; money and replicas are whole."""
    world.run(8.0)
    view = world.watch.views[-1]
    assert view.epoch == epoch
    for node in view.ids:
        core = world.core(node)
        assert core.view.hash == view.hash
        assert core.fully_active
        assert core.membership.settled
        gauges = core.gauges()
        assert (gauges.undecided_votes, gauges.syncing, gauges.changes, gauges.waiting_links) == (0, 0, 0, 0)
        assert not any(name.startswith("peer_fault") for name in core.counters), core.counters
        assert world.money(node) == 0
    digests = {world.digest(node) for node in view.ids if node not in without}
    assert len(digests) == 1


def code(answer: ReplyBody) -> str:
    assert isinstance(answer, Refused | NotStarted), answer
    return answer.code


# --- changes that are made ---


def test_a_guest_becomes_a_member_and_votes() -> None:
    world = grown(3, 2, k=3)
    world.open_funded(alice=1000, bob=0)
    (guest,) = world.guests
    assert not world.core(guest).view.is_member(guest)
    changed(world.add(world.ids[0], guest), 2, member=True)
    assert world.watch.views[1].by == world.ids[0]
    world.run(1.0)  # a majority is ACTIVE, now all are
    for dead in (node for node in world.ids if node != guest):  # with any one of the others it is a majority
        world.crash(dead)
        answer = world.pay("alice", "bob", 10, at=guest)
        assert isinstance(answer, Recorded), answer
        world.start(dead)
        world.run(1.0)
    at_rest(world, 2)


def test_a_member_leaves_with_its_own_signature_and_another_may_not_send_it_away() -> None:
    world = grown(3, 3)
    leaver, other = world.ids[:2]
    names = {
        node: f"node {i}" for i in range(3) for node in world.ids if world.keys[node] == public(key_of(f"node {i}"))
    }
    assert code(world.answer_of(world.change(other, REMOVE, leaver, by=names[other]))) == "bad_signature"
    changed(world.answer_of(world.change(other, REMOVE, leaver, by=names[leaver])), 2, member=False)
    assert not world.core(other).view.is_member(leaver)


def test_views_grow_and_shrink_one_after_the_other_under_load() -> None:
    """1 -> 5 -> 2, with payments at every step."""
    world = grown(5, 1)
    world.open_funded(alice=1000, bob=0)
    (founder,) = world.view.ids
    paid = 0
    for epoch, guest in enumerate(world.guests, start=2):
        asked = world.change(founder, ADD, guest)
        paid += isinstance(world.pay("alice", "bob", 1, at=founder), Recorded)
        changed(world.answer_of(asked), epoch, member=True)
    survivors = world.guests[-2:]
    for epoch, gone in enumerate([founder, *world.guests[:-2]], start=6):
        asked = world.change(survivors[0], REMOVE, gone)
        paid += isinstance(world.pay("alice", "bob", 1, at=survivors[1]), Recorded)
        changed(world.answer_of(asked), epoch, member=False)
    at_rest(world, 8)
    assert paid == 7
    assert world.watch.spendable("bob") == paid
    assert [len(view.members) for view in world.watch.views] == [1, 2, 3, 4, 5, 4, 3, 2]


def test_changes_that_are_asked_at_once_are_made_one_by_one() -> None:
    """R9: each waits until the one before is ACTIVE; all are answered."""
    world = grown(6, 3)
    asked = [world.change(world.view.ids[i % 3], ADD, guest) for i, guest in enumerate(world.guests)]
    answers = [world.answer_of(each) for each in asked]
    assert sorted(answer.epoch for answer in answers if isinstance(answer, Changed)) == [2, 3, 4]
    at_rest(world, 4)


def test_a_change_asked_twice_is_made_once() -> None:
    world = grown(4, 3)
    (guest,) = world.guests
    members = world.view.ids
    asked = [world.change(node, ADD, guest) for node in members]
    for each in asked:
        changed(world.answer_of(each), 2, member=True)
    changed(world.add(members[1], guest), 2, member=True)
    changed(world.remove(members[0], guest), 3, member=False)
    changed(world.remove(members[2], guest), 3, member=False)
    at_rest(world, 3)


def test_an_added_node_that_is_dead_is_taken_back() -> None:
    """The barrier holds up everything else, but not the undo (R9)."""
    world = grown(4, 3)
    (guest,) = world.guests
    members = world.view.ids
    world.lose = lambda source, target, message: isinstance(message, SyncPart)
    asked = world.change(members[0], ADD, guest, timeout_s=3)
    assert world.run_until(lambda: set(world.epochs()) == {2}, 5)
    world.crash(guest)
    other = world.change(members[1], REMOVE, members[2], timeout_s=2, force=True)
    assert isinstance(world.answer_of(asked), Unknown)
    assert code(world.answer_of(other)) == "not_in_time"
    assert {world.core(node).view.epoch for node in members} == {2}
    undo = world.change(members[0], REMOVE, guest)
    assert world.run_until(lambda: {world.core(node).view.epoch for node in members} == {3}, 5)
    assert undo.answer is None, "nothing is ACTIVE yet"
    world.heal()
    changed(world.answer_of(undo), 3, member=False)
    assert world.watch.views[2].members == world.watch.views[0].members
    at_rest(world, 3)


def test_the_next_view_waits_until_this_one_is_active() -> None:
    """R9. Nobody may sync: the second change is not proposed, though a majority would vote for it."""
    world = grown(5, 3)
    first, second = world.guests
    members = world.view.ids
    world.lose = lambda source, target, message: isinstance(message, SyncPart)
    one = world.change(members[0], ADD, first)
    assert world.run_until(lambda: set(world.epochs()) == {2}, 5)
    two = world.change(members[1], ADD, second)
    world.run(5.0)
    assert set(world.epochs()) == {2}
    assert one.answer is None
    assert two.answer is None
    assert not world.core(members[1]).membership.settled
    world.heal()
    answer = world.answer_of(one)
    assert isinstance(answer, Changed)
    assert answer.member
    changed(world.answer_of(two), 3, member=True)
    at_rest(world, 3)


def count_groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs of the views whose groups are worked out to judge a change, which takes 0.1 s each at 600 members."""
    seen: list[int] = []

    def counted(view: View) -> tuple[regions.GroupRange, ...]:
        seen.append(view.epoch)
        return group_ranges(view)

    monkeypatch.setattr(changes, "group_ranges", counted)
    return seen


def test_a_change_that_waits_is_judged_once_for_each_set_of_living_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """R9. It may wait long until the last view is ACTIVE, and is looked at 20 times a second."""
    world = grown(7, 5)
    first, second = world.guests
    here, *others = world.view.ids
    world.lose = lambda source, target, message: isinstance(message, SyncPart)
    world.change(here, ADD, first, timeout_s=60)
    assert world.run_until(lambda: set(world.epochs()) == {2}, 5)
    seen = count_groups(monkeypatch)
    asked = world.change(here, ADD, second, timeout_s=60)
    world.run(5.0)
    assert sorted(seen) == [2, 3]
    world.crash(first)
    world.run(5.0)
    assert sorted(seen) == [2, 2, 3, 3], "it is judged anew"
    assert asked.answer is None
    for node in others[:3]:
        world.crash(node)
    assert code(world.answer_of(asked)) == "unsafe"


def test_a_member_that_does_not_vote_judges_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has restarted and lags, so it would judge by a view that is no longer the last; and it proposes nothing
    (design R12)."""
    world = grown(4, 3)
    (guest,) = world.guests
    lagging, here, there = world.view.ids
    world.lose = lambda source, target, message: target == lagging and isinstance(message, Views)
    changed(world.add(here, guest), 2, member=True)
    world.crash(lagging)
    world.start(lagging)
    world.run(2.0)
    assert world.core(lagging).view.epoch == 1
    assert not world.core(lagging).identity.verified
    seen = count_groups(monkeypatch)
    world.crash(there)
    world.run(3.0)
    answer = world.answer_of(world.change(lagging, REMOVE, here, timeout_s=3))
    assert code(answer) == "not_in_time", "two of four: it cannot say that this is unsafe"
    assert "does not vote" in str(answer)
    assert not seen
    world.start(there)
    world.heal()
    changed(world.remove(lagging, there), 3, member=False)


def test_a_lagging_member_does_not_take_an_old_view_for_the_newest() -> None:
    """It knows nothing of the addition, so a removal looks as if it was made already: it asks a majority first."""
    world = grown(4, 3)
    (guest,) = world.guests
    lagging, *others = world.view.ids
    world.part([*others, guest], [lagging])
    changed(world.add(others[0], guest), 2, member=True)
    asked = world.change(lagging, REMOVE, guest)
    world.run(3.0)
    assert asked.answer is None
    assert world.core(lagging).view.epoch == 1
    world.heal()
    changed(world.answer_of(asked), 3, member=False)
    at_rest(world, 3)


def test_what_a_majority_said_before_a_change_was_asked_for_says_nothing_about_it() -> None:
    """The promises of a ballot are on their way when another view is made, and the same change is asked for again: it
    must not be answered from the view of then."""
    world = grown(4, 3)
    (guest,) = world.guests
    lagging, *others = world.view.ids
    kept: list[FromPeer] = []

    def lose(source: NodeId, target: NodeId, message: Message) -> bool:
        if target == lagging and isinstance(message, ViewPromise):
            kept.append(FromPeer(source, message))
        return target == lagging

    world.lose = lose  # type: ignore[assignment]
    early = world.change(lagging, REMOVE, guest)
    assert world.run_until(lambda: bool(kept), 1)
    changed(world.add(others[0], guest), 2, member=True)
    late = world.change(lagging, REMOVE, guest)
    world.run(0.01)
    world.deliver(lagging, kept[0])
    world.run(0.01)
    assert early.answer is not None
    changed(early.answer, 1, member=False)
    assert late.answer is None
    world.heal()
    changed(world.answer_of(late), 3, member=False)
    at_rest(world, 3)


def test_votes_from_before_a_change_was_asked_for_say_nothing_about_it() -> None:
    """A view is decided by votes that were on their way while others made it, and took it back: who asks for it only
    then is not told that it holds."""
    world = grown(4, 3)
    (guest,) = world.guests
    lagging, *others = world.view.ids
    kept: list[FromPeer] = []
    cut = False

    def lose(source: NodeId, target: NodeId, message: Message) -> bool:
        if target == lagging and isinstance(message, ViewAccepted):
            kept.append(FromPeer(source, message))
        return target == lagging and (
            cut or isinstance(message, ViewAccepted | Views | ViewPrepare | ViewAccept | ViewRefuse)
        )

    world.lose = lose  # type: ignore[assignment]
    early = world.change(lagging, ADD, guest)
    peers = world.core(lagging).peers
    assert world.run_until(lambda: all(peers.told(node) == (2, True) for node in (*others, guest)), 10)
    cut = True
    changed(world.remove(others[0], guest), 3, member=False)
    late = world.change(lagging, ADD, guest)
    world.run(0.01)
    world.deliver(lagging, kept[0])
    world.run(0.01)
    assert early.answer is not None
    changed(early.answer, 2, member=True)
    assert late.answer is None
    world.heal()
    assert code(world.answer_of(late)) == "removed"
    at_rest(world, 3)


# --- changes that are refused ---


@pytest.mark.parametrize(
    ("expected", "by", "fields"),
    [
        ("bad_signature", "stranger", {}),
        ("expired", "operator", {"expires_ms": 1_700_000_000_000 - 1}),
        ("network", "operator", {"network": bytes(32)}),
    ],
)
def test_a_change_that_nobody_may_ask_for_is_refused(expected: str, by: str, fields: dict[str, Any]) -> None:
    world = grown(4, 3)
    asked = world.change(world.ids[0], ADD, world.guests[0], by=by, **fields)
    assert code(world.answer_of(asked)) == expected
    world.run(2.0)
    assert set(world.epochs()) == {1}


def test_a_node_that_is_not_connected_is_not_added() -> None:
    world = grown(4, 3)
    world.crash(world.guests[0])
    world.run(1.0)
    assert code(world.add(world.view.ids[0], world.guests[0])) == "not_connected"
    assert set(world.epochs()) == {1}


def test_a_node_that_lacks_many_links_is_not_added_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "MAX_BEHIND", 2)
    world = grown(4, 3)
    (guest,) = world.guests
    at = world.view.ids[0]
    world.lose = lambda source, target, message: target == guest and not isinstance(message, Ping)
    world.open_funded(alice=1000, bob=0)
    world.run(1.0)
    answer = world.add(at, guest)
    assert code(answer) == "behind"
    assert "lacks 3 links" in str(answer)
    world.heal()
    world.run(7.0)  # a pull that was lost is given up, and the next one begun
    changed(world.add(at, guest), 2, member=True)


def test_ids_do_not_come_back() -> None:
    world = grown(4, 4)
    gone, *rest = world.ids
    changed(world.remove(rest[0], gone), 2, member=False)
    for at in rest:
        answer = world.add(at, gone)
        assert code(answer) == "removed"
        assert "removed in epoch 2" in str(answer)
    assert set(world.watch.views[-1].ids) == set(rest)


def test_a_removal_that_leaves_no_majority_must_be_forced() -> None:
    world = grown(3, 3)
    here, there, leaver = world.ids
    world.crash(there)
    world.run(3.0)
    answer = world.remove(here, leaver)
    assert code(answer) == "unsafe"
    assert "1 of the 2 members" in str(answer)
    assert world.core(here).view.epoch == 1
    forced = world.change(here, REMOVE, leaver, force=True, timeout_s=4)
    assert isinstance(world.answer_of(forced), Unknown), "the view is made, and waits for the dead to be ACTIVE"
    assert world.core(here).view.epoch == 2
    world.start(there)
    at_rest(world, 2)


def test_a_removal_that_leaves_a_group_of_the_next_view_without_a_majority_must_be_forced() -> None:
    """All groups of now have a living majority. Then two dead nodes would be in one group, and no change could
    follow."""
    world = grown(8, 8)

    def groups(view: View, dead: set[NodeId]) -> int:
        return without_majority({group for _, group in group_ranges(view)}, set(view.ids) - dead)

    dead, leaver = next(
        (set(pair), leaver)
        for pair in combinations(world.ids, 2)
        for leaver in world.ids
        if leaver not in pair
        and not groups(world.view, set(pair))
        and groups(without_member(world.view, leaver, 1, leaver), set(pair))
    )
    here = next(node for node in world.ids if node not in {*dead, leaver})
    for node in sorted(dead):
        world.crash(node)
    world.run(3.0)
    answer = world.remove(here, leaver)
    assert code(answer) == "unsafe"
    assert re.search("; 0 groups of now .* and [1-9][0-9]* groups of the next view have none", str(answer)), answer
    assert world.core(here).view.epoch == 1
    changed(world.remove(here, sorted(dead)[0]), 2, member=False)


def test_a_change_that_lost_its_ballot_is_judged_again_before_it_is_proposed_again() -> None:
    """It was fit when it was proposed. Another view was made, and the guest is gone: nothing of it can be made any
    more."""
    world = grown(5, 3)
    first, second = world.guests
    here, there, _ = world.view.ids
    world.lose = lambda source, target, message: source == here and isinstance(message, ViewPrepare)
    asked = world.change(here, ADD, first)
    world.run(0.3)
    world.crash(first)
    changed(world.add(there, second), 2, member=True)
    world.heal()
    assert code(world.answer_of(asked)) == "not_connected"
    world.run(2.0)
    assert set(world.epochs()) == {2}


def test_a_change_that_was_proposed_in_this_epoch_and_is_not_fit_any_more_may_still_be_made() -> None:
    """So it is not proposed again, and nobody is told that it was refused."""
    world = grown(4, 3)
    (guest,) = world.guests
    here, there, _ = world.view.ids
    rounds: list[int] = []

    def note(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, ViewPrepare) and source == here:
            rounds.append(message.ballot.round)
            return True
        return False

    world.lose = note
    asked = world.change(here, ADD, guest, timeout_s=3)
    world.run(0.1)
    world.crash(guest)
    ballot = Ballot(1, rounds[0], here)
    world.deliver(here, FromPeer(there, ViewRefuse(ballot, Ballot(1, 9, there))))
    answer = world.answer_of(asked)
    assert isinstance(answer, Unknown)
    assert "is not connected" in answer.reason
    assert max(rounds) < 10, "no ballot above the one that refused it"
    assert set(world.epochs()) == {1}


@pytest.mark.parametrize("restart", [False, True])
def test_a_change_that_this_node_voted_for_is_not_refused_though_its_proposer_is_dead(*, restart: bool) -> None:
    """It is not fit any more: one of two would be alive. The vote is on the disk, and is finished a second later (R1,
    R4)."""
    world = grown(3, 3)
    proposer, voter, leaver = world.ids
    world.lose = lambda source, target, message: isinstance(message, ViewAccepted)
    world.change(proposer, REMOVE, leaver)
    rows = "SELECT count(*) FROM votes WHERE account = '' AND link IS NOT NULL"
    assert world.run_until(lambda: world.nodes[voter].conn.execute(rows).fetchone()[0] == 1, 2)
    world.crash(proposer)
    world.heal()
    if restart:
        world.crash(voter)
        world.start(voter)
    asked = world.change(voter, REMOVE, leaver, timeout_s=5)
    world.run(0.2)
    assert asked.answer is None
    assert world.core(voter).view.epoch == 1
    answer = world.answer_of(asked)
    assert isinstance(answer, Unknown), answer
    assert world.core(voter).view.epoch == 2, "made, and not ACTIVE without the dead one"
    world.start(proposer)
    changed(world.remove(voter, leaver), 2, member=False)
    at_rest(world, 2)


def test_whoever_asks_for_what_this_node_proposes_already_is_not_refused() -> None:
    """The first asked while the guest was there; the second asks when it is gone, and the ballot goes on."""
    world = grown(4, 3)
    (guest,) = world.guests
    here = world.view.ids[0]
    world.lose = lambda source, target, message: source == here and isinstance(message, ViewPrepare)
    first = world.change(here, ADD, guest, timeout_s=20)
    world.run(0.1)
    world.crash(guest)
    world.run(1.0)
    second = world.change(here, ADD, guest, timeout_s=1)
    answer = world.answer_of(second)
    assert isinstance(answer, Unknown), answer
    assert first.answer is None
    world.heal()
    assert world.run_until(lambda: set(world.epochs()) == {2}, 5), "it is made"
    world.start(guest)
    changed(world.answer_of(first), 2, member=True)


def test_the_last_member_stays() -> None:
    world = grown(1, 1)
    answer = world.remove(world.ids[0], world.ids[0])
    assert code(answer) == "impossible"
    assert "last member" in str(answer)


def test_a_guest_changes_nothing() -> None:
    world = grown(4, 3)
    (guest,) = world.guests
    answer = world.add(guest, guest)
    assert isinstance(answer, NotStarted)
    assert answer.code == "not_member"
    world.run(2.0)
    assert set(world.epochs()) == {1}


def test_changes_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changing, "MAX_CHANGES", 2)
    world = grown(4, 3)
    here, *others = world.view.ids
    for other in others:
        world.crash(other)
    world.run(0.5)
    gone = [others[0], others[1], others[0]]
    asked = [world.change(here, REMOVE, node, force=True, timeout_s=3) for node in gone]
    answers = [world.answer_of(each) for each in asked]
    assert [getattr(answer, "code", "unknown") for answer in answers] == ["unknown", "not_in_time", "busy"]
    assert isinstance(answers[0], Unknown)


# --- members, guests, removed ---


def test_a_guest_follows_everything_and_votes_on_nothing() -> None:
    world = grown(4, 3)
    (guest,) = world.guests
    world.open_funded(alice=1000, bob=0)
    world.pay("alice", "bob", 10, at=world.view.ids[0])
    assert world.run_until(lambda: world.height(guest, "alice") == 1, 5)
    answer = world.pay("alice", "bob", 10, at=guest)
    assert isinstance(answer, NotStarted)
    assert answer.code == "not_member"
    world.run(3.0)
    assert world.height(guest, "alice") == 1
    assert world.core(guest).gauges().undecided == 0


def current(world: World, node: NodeId) -> bool:
    return world.core(node).is_current(world._clock(world.nodes[node]))


def test_the_reads_of_a_guest_are_stale_unless_it_keeps_up_with_a_majority() -> None:
    world = grown(4, 3)
    (guest,) = world.guests
    world.open_funded(alice=1000, bob=0)
    world.run(2.0)
    assert current(world, guest)
    world.part([guest], world.view.ids[1:])
    world.run(3.0)
    assert not current(world, guest), "it hears of one of three"
    world.heal()
    world.run(2.0)
    assert current(world, guest)
    world.lose = lambda source, target, message: guest in (source, target) and not isinstance(message, Ping | Pong)
    world.pay("alice", "bob", 10, at=world.view.ids[0])
    world.run(2.0)
    assert not current(world, guest), "it lacks a link"
    world.heal()
    world.run(8.0)
    assert current(world, guest)
    world.lose = lambda source, target, message: guest in (source, target) and isinstance(message, Views)
    changed(world.remove(world.view.ids[0], world.view.ids[2]), 2, member=False)
    world.run(2.0)
    assert world.core(guest).view.epoch == 1
    assert not current(world, guest), "the majority that it counts is one of an older view"


@pytest.mark.parametrize("learns", ["from the view", "from a refusal"])
def test_who_was_removed_reads_stale_and_takes_no_requests(learns: str) -> None:
    world = grown(4, 4)
    world.open_funded(alice=1000, bob=0)
    gone, *rest = world.ids
    if learns == "from a refusal":
        world.part([gone], rest)
    changed(world.remove(rest[0], gone), 2, member=False)
    world.run(1.0)
    core = world.core(gone)
    if learns == "from a refusal":
        assert core.membership.removed_in == 0
        world.heal()
        world.lose = lambda source, target, message: target == gone and isinstance(message, Views)
        world.deliver(gone, FromPeer(rest[0], Ping(0.0, 0, 0, 1, True, 0)))
        assert not core.membership.is_over
        world.deliver(gone, ToldRemoved(rest[0], 2))
        world.run(0.2)
        assert core.membership.is_over, "the view without it never comes: whoever refuses it sends none"
    assert core.membership.removed_in == 2
    assert not current(world, gone)
    answer = world.pay("alice", "bob", 10, at=gone)
    assert isinstance(answer, NotStarted)
    assert answer.code == "not_member"
    assert world.core(rest[0]).membership.removed_epoch(gone) == 2
    assert isinstance(world.pay("alice", "bob", 10, at=rest[0]), Recorded)


def test_the_removed_are_neighbours_until_the_view_without_them_is_active() -> None:
    world = grown(4, 4)
    gone, *rest = world.ids
    world.lose = lambda source, target, message: isinstance(message, SyncPart)
    world.change(rest[0], REMOVE, gone)
    assert world.run_until(lambda: world.core(rest[0]).view.epoch == 2, 5)
    core = world.core(rest[0])
    assert core.membership.neighbours() == set(world.ids)
    assert core.membership.is_refused(gone) == 0
    world.heal()
    at_rest(world, 2)
    world.run(membership.LINGER_S + 1)
    assert core.membership.neighbours() == set(rest)
    assert core.membership.is_refused(gone) == 2


# --- proposers that die, and restarts ---


def test_a_view_that_a_majority_voted_for_is_finished_by_others() -> None:
    """R1. All votes for it are lost on the way back, and its proposer dies."""
    world = grown(6, 5)
    (guest,) = world.guests
    proposer, *others = world.view.ids
    world.lose = lambda source, target, message: target == proposer and isinstance(message, ViewAccepted)
    asked = world.change(proposer, ADD, guest)
    rows = "SELECT count(*) FROM votes WHERE account = '' AND link IS NOT NULL"
    assert world.run_until(lambda: sum(world.nodes[n].conn.execute(rows).fetchone()[0] for n in others) == 4, 5)
    assert set(world.epochs()) == {1}
    world.crash(proposer)
    assert asked.answer is None
    assert world.run_until(lambda: {world.core(node).view.epoch for node in others} == {2}, 10)
    assert world.watch.views[1].by == proposer
    assert world.watch.views[1].is_member(guest)
    world.start(proposer)
    at_rest(world, 2)


@pytest.mark.parametrize("restart", [False, True])
def test_what_another_has_voted_for_goes_before_ones_own_change(*, restart: bool) -> None:
    """Also when the voter has restarted: its vote on a view is kept like any other (R4)."""
    world = grown(5, 3)
    first, second = world.guests
    a, b, c = world.view.ids
    world.lose = lambda source, target, message: isinstance(message, ViewAccept) and target == b
    world.change(a, ADD, first)
    rows = "SELECT count(*) FROM votes WHERE account = '' AND link IS NOT NULL"
    assert world.run_until(lambda: world.nodes[c].conn.execute(rows).fetchone()[0] == 1, 5)
    world.crash(a)
    if restart:
        world.crash(c)
        world.start(c)
        world.run(0.2)
    world.heal()
    changed(world.add(b, second), 3, member=True)
    assert [world.watch.views[2].is_member(node) for node in (first, second)] == [True, True]
    assert world.watch.views[1].is_member(first)
    world.start(a)
    at_rest(world, 3)


@pytest.mark.parametrize("doom", AT_VOTE)
@pytest.mark.parametrize("who", ["proposer", "voter", "guest"])
def test_a_crash_at_every_write_of_a_change_leaves_one_chain_of_views(who: str, doom: Doom) -> None:
    """The n-th commit of one node after the change was asked, for all n."""
    for number in range(1, 40):
        world = grown(4, 3, seed=number)
        world.open_funded(alice=100, bob=0)
        (guest,) = world.guests
        members = world.view.ids
        victim = {"proposer": members[0], "voter": members[1], "guest": guest}[who]
        commits = 0
        dead = False
        persist = world.finish_turn

        def finish_turn(node: object, effects: object) -> None:
            nonlocal commits
            if node is world.nodes[victim] and effects.writes and not dead:  # type: ignore[attr-defined]  # noqa: B023
                commits += 1
                if commits == number:  # noqa: B023
                    world.doom(victim, doom)  # noqa: B023
            persist(node, effects)  # type: ignore[arg-type]  # noqa: B023

        world.finish_turn = finish_turn  # type: ignore[method-assign]
        world.change(members[0], ADD, guest)
        died = world.run_until(lambda: world.nodes[victim].core is None, 4)  # noqa: B023
        dead = True
        if not died:
            assert number > 2, "the change writes several times"
            at_rest(world, 2)
            return
        assert isinstance(world.pay("alice", "bob", 1, at=members[2]), Recorded)
        world.start(victim)
        world.run(2.0)
        if world.watch.views[-1].epoch == 1:
            changed(world.add(members[1], guest), 2, member=True)
        at_rest(world, 2)
    raise AssertionError("the change does not end")


def test_a_restart_keeps_the_views_and_where_it_is_active() -> None:
    world = grown(4, 3)
    (guest,) = world.guests
    changed(world.add(world.view.ids[0], guest), 2, member=True)
    world.run(2.0)
    before = {node: (world.core(node).view.hash, world.core(node).active) for node in world.ids}
    for node in world.ids:
        world.crash(node)
    for node in world.ids:
        world.start(node)
        assert (world.core(node).view.hash, world.core(node).active) == before[node]
        assert [row[0] for row in load_views(world.nodes[node].conn)] == [1, 2]
    world.open_funded(alice=100, bob=0)
    at_rest(world, 2)


def test_a_node_that_was_away_installs_every_view_in_between() -> None:
    """R6."""
    world = grown(5, 3)
    away = world.view.ids[2]
    world.crash(away)
    world.run(3.0)
    at = world.view.ids[0]
    for epoch, guest in enumerate(world.guests, start=2):
        changed(world.add(at, guest), epoch, member=True)
    world.start(away)
    assert world.run_until(lambda: world.core(away).view.epoch == 3, 5)
    assert [row[0] for row in load_views(world.nodes[away].conn)] == [1, 2, 3]
    at_rest(world, 3)


@pytest.mark.parametrize("seed", range(6))
def test_changes_in_a_broken_network_end_in_one_chain_of_views(seed: int) -> None:
    world = World(6, 3, seed, Faults(loss=0.15, repeat=0.2, delay_s=(0.001, 0.08)), first=3)
    world.run(1.0)
    world.open_funded(alice=1000, bob=0)
    members = world.view.ids
    for node in world.guests:
        world.change(world.rng.choice(members), ADD, node, timeout_s=30)
    world.change(members[0], REMOVE, members[1], timeout_s=30)
    calls = [world.submit(members[2], world.pay_request("alice", "bob", 1), timeout_s=25) for _ in range(10)]
    for _ in range(4):
        victim = world.rng.choice(world.alive)
        world.crash(victim)
        world.run(world.rng.uniform(0.2, 1.5))
        world.start(victim)
        world.run(world.rng.uniform(0.2, 1.5))
    world.heal()
    world.run(35.0)
    at_rest(world, world.watch.views[-1].epoch)
    assert world.watch.views[-1].epoch >= 2
    for call in calls:
        assert call.gone or isinstance(call.answer, Recorded | Unknown | NotStarted), call.answer
    completed = sum(o is Outcome.COMPLETED for (name, _), (o, _) in world.watch.outcomes.items() if name == "alice")
    assert world.watch.spendable("bob") == completed - 1, "the opening is a completed one too"


# --- messages that break the rules ---


def next_view(view: View, by: NodeId) -> View:
    return with_member(view, member_of(public(key_of("somebody"))), 1, by)


def two_more(world: World, node: NodeId) -> bytes:
    view = next_view(world.view, node)
    other = with_member(view, member_of(public(key_of("somebody else"))), 1, node)
    return encode_view(msgspec.structs.replace(other, epoch=2, prev_hash=world.view.hash))


def of_another_network(world: World, node: NodeId) -> bytes:
    return encode_view(msgspec.structs.replace(next_view(world.view, node), network=b"\x01" * 32))


def of_another_parent(world: World, node: NodeId) -> bytes:
    return encode_view(msgspec.structs.replace(next_view(world.view, node), prev_hash=b"\x01" * 32))


BAD_VIEWS: dict[str, Callable[[World, NodeId], bytes]] = {
    "garbage": lambda world, node: b"\x00" * 200,
    "empty": lambda world, node: b"",
    "two members more": two_more,
    "of another network": of_another_network,
    "of another parent": of_another_parent,
    "too many ranges": lambda world, node: encode_view(next_view(world.view, node)),
    "cut short": lambda world, node: encode_view(next_view(world.view, node))[:-1],
}


@pytest.mark.parametrize("how", ["decided", "proposed"])
@pytest.mark.parametrize("name", BAD_VIEWS)
def test_a_view_that_may_not_follow_is_a_fault_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    world = grown(3, 3)
    if name == "too many ranges":  # as ids would make that are too close to each other
        monkeypatch.setattr(regions, "MAX_RANGES", 1)
    target, source = world.ids[:2]
    raw = BAD_VIEWS[name](world, source)
    message: Message = Views((raw,)) if how == "decided" else ViewAccept(Ballot(1, 5, source), raw)
    before = (world.core(target).view, list(world.nodes[target].conn.iterdump()))
    world.deliver(target, FromPeer(source, message))
    world.run(0.01)
    assert (world.core(target).view, list(world.nodes[target].conn.iterdump())) == before
    assert sum(n for c, n in world.core(target).counters.items() if c.startswith("peer_fault")) == 1
    assert set(world.epochs()) == {1}


@pytest.mark.parametrize("what", ["no member", "an epoch to come", "an epoch that is over"])
def test_only_members_propose_and_only_in_this_epoch(what: str) -> None:
    world = grown(4, 3)
    (guest,) = world.guests
    target, source = world.view.ids[:2]
    if what == "an epoch that is over":
        changed(world.add(source, guest), 2, member=True)
        world.run(1.0)
    node = guest if what == "no member" else source
    ballot = Ballot(3 if what == "an epoch to come" else 1, 9, node)
    sent: list[Message] = []

    def note(sender: NodeId, _: NodeId, message: object) -> bool:
        if sender == target and isinstance(message, AskViews | Views | ViewPromise | ViewAccepted):
            sent.append(message)
        return False

    before = world.nodes[target].conn.execute("SELECT * FROM votes WHERE account = ''").fetchall()
    world.lose = note
    raw = encode_view(next_view(world.watch.views[-1], source))
    for message in (ViewPrepare(ballot), ViewAccept(ballot, raw)):
        world.deliver(target, FromPeer(node, message))
    world.run(0.01)
    assert world.nodes[target].conn.execute("SELECT * FROM votes WHERE account = ''").fetchall() == before
    answers = {"no member": [], "an epoch to come": [AskViews(1)] * 2}
    views = [Views((encode_view(world.watch.views[-1]),))] * 2
    assert sent == answers.get(what, views)


def test_a_guest_does_not_vote_on_a_view() -> None:
    world = grown(4, 3)
    (guest,) = world.guests
    source = world.view.ids[0]
    sent: list[Message] = []

    def note(sender: NodeId, _: NodeId, message: object) -> bool:
        if sender == guest and isinstance(message, ViewPromise | ViewAccepted):
            sent.append(message)
        return False

    world.lose = note
    raw = encode_view(next_view(world.watch.views[-1], source))
    for message in (ViewPrepare(Ballot(1, 9, source)), ViewAccept(Ballot(1, 9, source), raw)):
        world.deliver(guest, FromPeer(source, message))
    world.run(0.01)
    assert sent == []
    assert world.nodes[guest].conn.execute("SELECT count(*) FROM votes").fetchone() == (0,)


def test_who_proposes_a_link_in_an_epoch_that_is_over_gets_the_views_at_once() -> None:
    """R2. Once for all that it sent before it had them."""
    world = grown(4, 3)
    world.open_funded(alice=100)
    changed(world.add(world.view.ids[0], world.guests[0]), 2, member=True)
    world.run(1.0)
    target, source = world.view.ids[:2]
    link = world.watch.accounts["alice"].links[-1]
    sent: list[Message] = []

    def note(sender: NodeId, to: NodeId, message: object) -> bool:
        if (sender, to) == (target, source) and isinstance(message, Refuse | Views):
            sent.append(message)
        return False

    world.lose = note
    ballot = Ballot(1, 9, source)
    for _ in range(2):
        prepare = Prepare(SlotName(link.hash, "alice", link.height + 1), ballot)
        world.deliver(target, FromPeer(source, prepare))
    world.run(0.01)
    refuse = Refuse(link.hash, ballot, Ballot(2, 0, target))
    assert sent == [refuse, refuse, Views((encode_view(world.watch.views[1]),))]


@pytest.mark.parametrize("name", ["garbage", "a vote without a view", "a view without a vote", "two members more"])
def test_a_bad_promise_does_not_end_the_ballot_or_the_node(name: str) -> None:
    world = grown(4, 3)
    (guest,) = world.guests
    target, source, _ = world.view.ids
    asked: list[ViewPrepare] = []

    def keep(_: NodeId, __: NodeId, message: object) -> bool:
        if isinstance(message, ViewPrepare):
            asked.append(message)
        return isinstance(message, ViewPrepare)

    world.lose = keep
    change = world.change(target, ADD, guest)
    assert world.run_until(lambda: bool(asked), 5)
    ballot = asked[0].ballot
    sound = encode_view(next_view(world.view, source))
    promise = {
        "garbage": ViewPromise(ballot, ballot, b"\x00" * 90),
        "a vote without a view": ViewPromise(ballot, ballot, None),
        "a view without a vote": ViewPromise(ballot, None, sound),
        "two members more": ViewPromise(ballot, ballot, two_more(world, source)),
    }[name]
    world.deliver(target, FromPeer(source, promise))
    world.run(0.01)
    assert sum(n for c, n in world.core(target).counters.items() if c.startswith("peer_fault")) == 1
    world.heal()
    changed(world.answer_of(change), 2, member=True)


def asking(world: World, target: NodeId) -> tuple[Asked, ViewPrepare]:
    """A change that was asked of `target`, and the ballot for it, which nobody hears of."""
    asked: list[ViewPrepare] = []

    def keep(_: NodeId, __: NodeId, message: object) -> bool:
        if isinstance(message, ViewPrepare):
            asked.append(message)
        return isinstance(message, ViewPrepare)

    world.lose = keep
    change = world.change(target, ADD, world.guests[0])
    assert world.run_until(lambda: bool(asked), 5)
    return change, asked[0]


def test_a_refusal_of_another_ballot_does_not_end_this_one() -> None:
    world = grown(4, 3)
    target, source, _ = world.view.ids
    change, prepare = asking(world, target)
    ballots = world.core(target).counters["view_ballots"]
    other = Ballot(1, prepare.ballot.round + 1, target)
    world.deliver(target, FromPeer(source, ViewRefuse(other, Ballot(1, other.round, source))))
    world.run(1.0)
    assert world.core(target).counters["view_ballots"] == ballots == 1
    world.heal()
    changed(world.answer_of(change), 2, member=True)


Proposals = list[tuple[float, ViewPrepare | ViewAccept]]


def proposals(world: World, target: NodeId) -> Proposals:
    """What is proposed to `target` from now on, and when. No proposal arrives anywhere."""
    sent: Proposals = []

    def keep(_: NodeId, to: NodeId, message: object) -> bool:
        if isinstance(message, ViewPrepare | ViewAccept) and to == target:
            sent.append((world.now, message))
        return isinstance(message, ViewPrepare | ViewAccept)

    world.lose = keep
    return sent


def gaps(sent: Proposals) -> list[float]:
    return [after - before for (before, _), (after, _) in pairwise(sent)]


def refuse(world: World, target: NodeId, source: NodeId, sent: Proposals) -> float:
    """Refuse the last ballot; how long it takes until the next one, in seconds."""
    refused, since = sent[-1][1].ballot, world.now
    world.deliver(target, FromPeer(source, ViewRefuse(refused, refused)))
    assert world.run_until(lambda: sent[-1][1].ballot > refused, 5)
    return world.now - since


def test_a_phase_is_sent_again_soon_however_often_the_one_before_was() -> None:
    world = grown(4, 3)
    target, source, other = world.view.ids
    prepares = proposals(world, source)
    world.change(target, ADD, world.guests[0])
    world.run(8.0)
    waits = gaps(prepares)
    assert waits[-1] > 10 * waits[2]
    accepts = proposals(world, source)
    world.deliver(target, FromPeer(other, ViewPromise(prepares[-1][1].ballot, None, None)))
    world.run(1.0)
    assert {type(message) for _, message in accepts} == {ViewAccept}
    assert gaps(accepts)[0] < waits[2]


def test_silence_does_not_lengthen_the_pause_after_a_refusal_nor_refusals_that_before_a_ballot_is_sent_again() -> None:
    world = grown(4, 3)
    target, source, _ = world.view.ids
    sent = proposals(world, source)
    world.change(target, ADD, world.guests[0])
    world.run(8.0)
    waits = gaps(sent)
    assert refuse(world, target, source, sent) < 3 * view_ballots.BACKOFF_S + 0.01
    for _ in range(3):
        refuse(world, target, source, sent)
    before = len(sent)
    world.run(1.0)
    assert gaps(sent[before - 1 :])[0] < waits[2]


def test_who_was_refused_often_waits_another_time_after_each_refusal() -> None:
    """Two proposers that wait equally long refuse each other again."""
    world = grown(4, 3)
    target, source, _ = world.view.ids
    sent = proposals(world, source)
    world.change(target, ADD, world.guests[0], timeout_s=60.0)
    assert world.run_until(lambda: bool(sent), 5)
    waits = [refuse(world, target, source, sent) for _ in range(14)][6:]
    assert all(0.5 < wait / view_ballots.MAX_BACKOFF_S < 1.51 for wait in waits)
    assert all(after - before > 0.001 for before, after in pairwise(sorted(waits)))


def test_the_view_of_now_is_no_next_view_though_it_was_found_good_before() -> None:
    world = grown(4, 3)
    target, source, _ = world.view.ids
    changed(world.add(source, world.guests[0]), 2, member=True)
    world.run(1.0)
    raw = encode_view(world.watch.views[-1])
    before = world.nodes[target].conn.execute("SELECT * FROM votes WHERE account = ''").fetchall()
    world.deliver(target, FromPeer(source, ViewAccept(Ballot(2, 9, source), raw)))
    world.run(0.01)
    assert world.nodes[target].conn.execute("SELECT * FROM votes WHERE account = ''").fetchall() == before
    assert sum(n for c, n in world.core(target).counters.items() if c.startswith("peer_fault")) == 1


@pytest.mark.parametrize("kind", [ViewPrepare, ViewRefuse])
def test_rounds_that_leave_no_room_above_them_are_a_fault(kind: type[Message]) -> None:
    """Or this node's next ballot could be read by nobody."""
    world = grown(4, 3)
    (guest,) = world.guests
    target, source, _ = world.view.ids
    asked: list[ViewPrepare] = []

    def keep(_: NodeId, __: NodeId, message: object) -> bool:
        if isinstance(message, ViewPrepare):
            asked.append(message)
        return isinstance(message, ViewPrepare)

    world.lose = keep
    change = world.change(target, ADD, guest)
    assert world.run_until(lambda: bool(asked), 5)
    high = Ballot(1, MAX_BALLOT, source)
    message = ViewPrepare(high) if kind is ViewPrepare else ViewRefuse(asked[0].ballot, high)
    world.deliver(target, FromPeer(source, message))
    world.run(0.01)
    assert world.core(target).counters["peer_fault_malformed"] == 1
    world.heal()
    changed(world.answer_of(change), 2, member=True)


def test_a_removed_view_chain_on_disk_is_refused_at_the_start() -> None:
    world = grown(3, 3)
    first = without_member(world.view, world.ids[0], 1, world.ids[1])
    second = without_member(first, world.ids[1], 1, world.ids[2])
    assert [v.epoch for v in membership.restore_views(world.view, [encode_view(first), encode_view(second)])] == [
        1,
        2,
        3,
    ]
    for raws in ([second], [first, first], [second, first]):
        with pytest.raises(RoutingFault, match="follow"):
            membership.restore_views(world.view, [encode_view(view) for view in raws])


def test_a_proposer_whose_second_copy_was_seen_casts_no_vote_on_a_view() -> None:
    """It asked for promises as a node that may vote, and they arrive when it may not any more."""
    world = grown(4, 3)
    me, peer, *_ = world.view.ids
    seen = False

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        nonlocal seen
        if isinstance(message, ViewPrepare) and source == me and not seen:
            seen = True
            world.deliver(me, FromPeer(peer, AskBoot(me, b"boot of a copy")))
        return seen and target == me and isinstance(message, Pong)

    world.lose = lose
    votes = world.core(me).identity.votes
    call = world.change(me, ChangeAction.ADD, world.guests[0])
    world.run(1.5)
    assert seen
    assert not world.core(me).identity.verified
    assert world.core(me).identity.votes <= votes + 1, "its promise, and no vote"
    assert call.answer is None
    world.heal()
    assert world.run_until_answered([call], 30)
    at_rest(world, 2)


def test_a_dead_member_is_not_removed_while_a_group_of_now_has_lost_its_majority() -> None:
    """The next view would be well, and what only the dead know would be forgotten: not without force."""
    world = grown(5, 5)
    dead = next(
        pair
        for pair in combinations(world.ids, 2)
        if without_majority({group for _, group in group_ranges(world.view)}, set(world.ids) - set(pair))
        and not without_majority(
            {group for _, group in group_ranges(without_member(world.view, pair[0], 1, world.ids[0]))},
            set(world.ids) - set(pair),
        )
    )
    for node in dead:
        world.crash(node)
    world.run(5)
    answer = world.remove(world.alive[0], dead[0])
    assert isinstance(answer, Refused) and answer.code == "unsafe"
    assert "0 groups of the next view" in answer.reason
    assert set(world.epochs()) == {1}

"""Each invariant that is about views fires: what a run must never show is told to the observer by hand, next to what it
may."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from chain.rows import ActiveRow, Applied
from chain.store import commit, create_or_check
from hopchain.wire import Changed, NotStarted
from node.messages import Accepted, SyncPart, ViewAccept, ViewAccepted, ViewPromise, Views
from node.paxos import Ballot
from routing.regions import RING, encode_ranges
from routing.view import View, encode_view
from tests.netsim.bench import Bench
from tests.netsim.test_checks import IDLE, broken, links_of, taking_up


@pytest.fixture
def bench() -> Bench:
    """Three members of one group, two spares."""
    return Bench(3, 2)


@contextmanager
def opened(bench: Bench, node: int, *writes: object) -> Iterator[sqlite3.Connection]:
    """A database of a node with the links of the bench, and these writes."""
    conn = sqlite3.connect(":memory:", isolation_level=None)
    create_or_check(conn, bench.genesis, bench.ids[node], (bench.view.hash, encode_view(bench.view)))
    commit(conn, [*(Applied(link) for link in links_of(bench)), *writes])  # type: ignore[list-item]
    try:
        yield conn
    finally:
        conn.close()


# --- I12 ---


def test_i12_a_majority_of_all_members_chooses_a_view(bench: Bench) -> None:
    view = bench.next_view(add=3)
    bench.watch.committed(0, (bench.view_vote(view),), 1.0)
    assert bench.watch.views == [bench.view]
    bench.watch.committed(1, (bench.view_vote(view),), 1.0)
    assert bench.watch.views == [bench.view, view]
    assert bench.watch.is_member(3)


def test_i12_two_views_chosen(bench: Bench) -> None:
    first, second = bench.next_view(add=3), bench.next_view(add=4)
    for node in (0, 1):
        bench.watch.committed(node, (bench.view_vote(first),), 1.0)
    bench.watch.committed(2, (bench.view_vote(second, 2),), 1.0)  # one vote for another one is no second choice
    with broken("I12", "two views chosen for epoch 2"):
        bench.watch.committed(1, (bench.view_vote(second, 2),), 1.0)


def test_i12_two_values_at_one_ballot(bench: Bench) -> None:
    bench.watch.committed(0, (bench.view_vote(bench.next_view(add=3)),), 1.0)
    with broken("I12", "two values at ballot .* for the view after epoch 1"):
        bench.watch.committed(1, (bench.view_vote(bench.next_view(add=4)),), 1.0)


def test_i12_the_vote_of_a_guest_does_not_count(bench: Bench) -> None:
    for node in (0, 3, 4):
        bench.watch.committed(node, (bench.view_vote(bench.next_view(add=3)),), 1.0)
    assert bench.watch.views == [bench.view]


def test_i12_a_view_that_is_not_chosen_is_installed(bench: Bench) -> None:
    view = bench.next_view(add=3)
    bench.watch.committed(0, (bench.view_vote(view),), 1.0)
    with broken("I12", "node 0 installs a view of epoch 2 that is not chosen"):
        bench.watch.committed(0, (bench.view_row(view),), 1.0)


def test_i12_views_are_installed_one_by_one(bench: Bench) -> None:
    bench.choose_view(bench.next_view(add=3), 0, 1, installing=(3,))
    view = bench.choose_view(bench.next_view(remove=3), 0, 1, 3)
    with broken("I12", "node 2 installs epoch 3 after epoch 1"):
        bench.watch.committed(2, (bench.view_row(view),), 1.0)


def test_i12_a_view_with_the_hash_of_another_one(bench: Bench) -> None:
    view = bench.choose_view(bench.next_view(add=3), 0, 1)
    raw = encode_view(bench.next_view(add=4, after=bench.view))
    with broken("I12", "has another hash"):
        bench.watch.committed(2, (msgspec.structs.replace(bench.view_row(view), raw=raw),), 1.0)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"epoch": 3}, "epoch 3 changes 1 members of epoch 1"),
        ({"k": 4}, "epoch 2 changes 1 members"),
        ({"prev_hash": bytes([7] * 32)}, "epoch 2 changes 1 members"),
    ],
)
def test_i12_a_view_that_does_not_follow(bench: Bench, wrong: dict[str, object], text: str) -> None:
    view = bench.next_view(add=3)
    row = msgspec.structs.replace(
        bench.view_vote(view),
        link=encode_view(msgspec.structs.replace(view, **wrong)),
    )
    bench.watch.committed(0, (row,), 1.0)
    with broken("I12", text):
        bench.watch.committed(1, (row,), 1.0)


def test_i12_a_vote_in_the_slot_of_another_view(bench: Bench) -> None:
    row = msgspec.structs.replace(bench.view_vote(bench.next_view(add=3)), slot=bytes(32))
    with broken("I12", "node 0 votes in epoch 1 for a view that follows another one"):
        bench.watch.committed(0, (row,), 1.0)


def test_i12_two_members_in_one_step(bench: Bench) -> None:
    view = bench.next_view(remove=2)
    two = msgspec.structs.replace(view, members=view.members[:1])
    bench.watch.committed(0, (bench.view_vote(two),), 1.0)
    with broken("I12", "epoch 2 changes 2 members of epoch 1"):
        bench.watch.committed(1, (bench.view_vote(two),), 1.0)


def test_i12_an_id_that_comes_back(bench: Bench) -> None:
    bench.choose_view(bench.next_view(remove=2), 0, 1)
    with broken("I12", "epoch 3 adds node 2, which was removed before"):
        bench.choose_view(bench.next_view(add=2), 0, 1)


def test_i12_a_view_that_is_not_chosen_is_served(bench: Bench) -> None:
    view = bench.next_view(add=3)
    with broken("I12", "node 0 serves a view of epoch 2 that is not chosen"):
        bench.watch.sent(0, bench.ids[1], Views((encode_view(view),)), 1.0)
    bench.choose_view(view, 0, 1)
    bench.watch.sent(0, bench.ids[1], Views((encode_view(view),)), 1.0)


def test_i12_a_node_comes_back_without_a_view_or_with_another_one(bench: Bench) -> None:
    view = bench.choose_view(bench.next_view(add=3), 0, 1)
    with opened(bench, 0) as conn, broken("I12", "node 0 came back in epoch 1, it had installed 2"):
        bench.watch.started(0, conn, 2.0)
    other = bench.view_row(bench.next_view(add=4, after=bench.view))
    with opened(bench, 0, other) as conn, broken("I12", "node 0 came back with another view of epoch 2"):
        bench.watch.started(0, conn, 2.0)
    with opened(bench, 0, bench.view_row(view)) as conn:
        bench.watch.started(0, conn, 2.0)


def test_a_view_that_only_the_disk_knows_is_installed(bench: Bench) -> None:
    """A commit that a crash cut may be there."""
    view = bench.choose_view(bench.next_view(add=3), 0, 1)
    with opened(bench, 2, bench.view_row(view)) as conn:
        bench.watch.started(2, conn, 2.0)
    with broken("I12", "node 2 installs epoch 2 after epoch 2"):
        bench.watch.committed(2, (bench.view_row(view),), 3.0)


def test_the_only_vote_for_a_view_may_be_in_a_commit_that_was_cut() -> None:
    bench = Bench(1, 1)
    view = bench.next_view(add=1)
    with opened(bench, 0, bench.view_vote(view), bench.view_row(view)) as conn:
        bench.watch.started(0, conn, 2.0)
    assert bench.watch.views[-1] == view


# --- I1: the group is that of the ballot's epoch ---


def test_i1_votes_of_two_epochs_do_not_add_up(bench: Bench) -> None:
    """Node 3 enters; one vote in each epoch is none; two of the three of epoch 1 are a majority."""
    link = taking_up(bench, 1)
    bench.vote(0, link)
    bench.choose_view(bench.next_view(add=3), 0, 1, installing=(3,))
    bench.watch.committed(3, (bench.row(3, link, 1, by=3, epoch=2),), 1.0)
    assert link.prev_hash not in bench.watch.chosen
    bench.vote(2, link)  # it is still in epoch 1
    assert bench.watch.chosen[link.prev_hash] == link.hash


def test_i1_who_is_in_no_group_of_the_epoch_does_not_count(bench: Bench) -> None:
    link = taking_up(bench, 1)
    bench.choose_view(bench.next_view(remove=2), 0, 1, installing=(2,))
    for node in (0, 2):
        bench.watch.committed(node, (bench.row(node, link, 1, epoch=2),), 1.0)
    assert link.prev_hash not in bench.watch.chosen
    bench.watch.committed(1, (bench.row(1, link, 1, epoch=2),), 1.0)
    assert bench.watch.chosen[link.prev_hash] == link.hash


def test_i1_a_vote_that_came_with_a_sync_is_not_another_one(bench: Bench) -> None:
    """Node 1 takes up a vote of epoch 1 when it has installed epoch 2: it never voted there."""
    link, other = taking_up(bench, 1), taking_up(bench, 2)
    bench.vote(0, link)
    view = bench.choose_view(bench.next_view(remove=2), 0, 1)
    bench.vote(1, link)
    assert link.prev_hash not in bench.watch.chosen
    for node in (0, 1):
        bench.watch.committed(node, (bench.row(node, other, 1, epoch=view.epoch),), 1.0)
    assert bench.watch.chosen[link.prev_hash] == other.hash


def test_i1_the_writes_of_a_commit_are_in_order(bench: Bench) -> None:
    """A vote after the view in one commit came with the sync, one before it is a vote."""
    link = taking_up(bench, 1)
    bench.vote(0, link)
    view = bench.next_view(add=3)
    for node in (0, 1, 2):
        bench.watch.committed(node, (bench.view_vote(view),), 1.0)
    bench.watch.committed(1, (bench.view_row(view), bench.row(1, link)), 1.0)
    assert link.prev_hash not in bench.watch.chosen
    bench.watch.committed(2, (bench.row(2, link), bench.view_row(view)), 1.0)
    assert bench.watch.chosen[link.prev_hash] == link.hash


@pytest.mark.parametrize(("before", "counts"), [(True, True), (False, False)])
def test_i1_a_vote_that_only_the_disk_knows_counts_in_the_epochs_since_it_was_seen_last(
    bench: Bench, before: bool, counts: bool
) -> None:
    link = taking_up(bench, 1)
    bench.vote(0, link)
    view = bench.choose_view(bench.next_view(add=3), 0, 2)
    if not before:
        bench.watch.committed(1, (bench.view_row(view),), 1.0)
    with opened(bench, 1, bench.row(1, link), bench.view_row(view)) as conn:
        bench.watch.started(1, conn, 2.0)
    assert (link.prev_hash in bench.watch.chosen) is counts


# --- I3 ---


def test_i3_a_view_that_is_not_active_relies_on_the_one_before(bench: Bench) -> None:
    """Two of the three of epoch 1 hold the link; of the two of epoch 2 none does, until one has synced."""
    link, other, third = (taking_up(bench, amount) for amount in (1, 2, 3))
    call = bench.submit(link.entries[0].signed)
    bench.vote(1, link)
    bench.vote(2, link)
    view = bench.choose_view(bench.next_view(remove=2), 0, 1)
    bench.watch.committed(1, (bench.row(1, other, 1, epoch=2),), 1.0)  # it gave its vote up
    with broken("I3", "on 1 disks only"):
        bench.answer(call, bench.recorded(link, link.entries[0]))
    bench.vote(0, link)
    call = bench.submit(link.entries[0].signed)
    bench.answer(call, bench.recorded(link, link.entries[0]))
    bench.activate(view, 0, 1)
    bench.watch.committed(0, (bench.row(0, third, 2, epoch=2),), 1.0)
    call = bench.submit(link.entries[0].signed)
    with broken("I3", "on 0 disks only"):  # that node 2 has it helps nobody any more
        bench.answer(call, bench.recorded(link, link.entries[0]))


def test_i3_a_disk_that_died_is_one_of_those_that_may_be_lost(bench: Bench) -> None:
    link = taking_up(bench, 1)
    for node in (0, 1):
        bench.vote(node, link)
    bench.watch.died(0)
    bench.answer(bench.submit(link.entries[0].signed, 1), bench.recorded(link, link.entries[0]))
    bench.watch.died(1)
    call = bench.submit(link.entries[0].signed, 2)
    with broken("I3", "on 0 disks only"):
        bench.answer(call, bench.recorded(link, link.entries[0]))


# --- I8 ---


def test_i8_said_before_the_view_is_durable(bench: Bench) -> None:
    link = taking_up(bench, 1)
    at = Ballot(2, 1, bench.ids[0])
    for message in (Accepted(link.prev_hash, at), ViewAccepted(at), ViewPromise(at, None, None)):
        with broken("I8", "epoch"):
            bench.watch.sent(0, bench.ids[1], message, 1.0)
    with broken("I8", "node 0 answers a sync of epoch 2 in epoch 1"):
        bench.watch.sent(0, bench.ids[1], SyncPart(1, 2, 0, 1, b"", 0, ()), 1.0)
    bench.choose_view(bench.next_view(add=3), 0, 1)
    bench.watch.sent(0, bench.ids[1], SyncPart(1, 2, 0, 1, b"", 0, ()), 1.0)


def test_i8_a_source_with_a_disk_that_lacks_votes(bench: Bench) -> None:
    bench.choose_view(bench.next_view(add=3), 0, 1)
    with opened(bench, 0) as conn:
        bench.watch.replaced(0, conn)
    bench.watch.committed(0, (bench.view_row(bench.watch.views[1]),), 2.0)
    with broken("I8", "node 0 answers a sync with a disk that lacks votes"):
        bench.watch.sent(0, bench.ids[1], SyncPart(1, 2, 0, 1, b"", 0, ()), 2.0)


def test_i8_a_vote_for_a_view_that_is_said_before_it_is_durable(bench: Bench) -> None:
    view = bench.next_view(add=3)
    at = Ballot(1, 1, bench.ids[0])
    for message in (ViewPromise(at, None, None), ViewAccepted(at), ViewAccept(at, encode_view(view))):
        with broken("I8", "before it is durable"):
            bench.watch.sent(0, bench.ids[1], message, 1.0)
    bench.watch.committed(0, (bench.view_vote(view),), 1.0)
    bench.watch.sent(0, bench.ids[1], ViewAccept(at, encode_view(view)), 1.0)
    bench.watch.sent(0, bench.ids[1], ViewAccepted(at), 1.0)
    with broken("I8", "as if it had not"):
        bench.watch.sent(0, bench.ids[1], ViewPromise(Ballot(1, 2, bench.ids[1]), None, None), 1.0)


def test_an_installed_view_stands_for_the_vote_on_it(bench: Bench) -> None:
    view = bench.choose_view(bench.next_view(add=3), 0, 1)
    at = Ballot(1, 1, bench.ids[0])
    bench.watch.sent(0, bench.ids[1], ViewAccepted(at), 1.0)
    with opened(bench, 0, bench.view_row(view)) as conn:  # without the vote
        bench.watch.started(0, conn, 2.0)


def test_i8_a_vote_below_the_birth_epoch_of_its_slot(bench: Bench) -> None:
    bench.choose_view(bench.next_view(add=3), 0, 1, installing=(3,))
    link = bench.link("a", [], [bench.posting(bench.funding)], epoch=2)
    for node in (0, 1, 3):
        bench.watch.committed(node, (bench.row(node, link, 1, epoch=2),), 1.0)
    assert bench.watch.chosen[link.prev_hash] == link.hash
    child = bench.link("a", [], after=link)
    with broken("I8", "node 2 votes in epoch 1, the slot was born in epoch 2"):
        bench.vote(2, child)


# --- I10, I11: what clients are told ---


def test_i10_changed(bench: Bench) -> None:
    call = bench.change(3, add=True)
    with broken("I10", "a view of epoch 2 that is not chosen"):
        bench.answer(call, Changed(2, bytes(32), True))
    view = bench.choose_view(bench.next_view(add=3), 0, 1, installing=(2, 3))
    with broken("I10", "has no ACTIVE majority"):
        bench.answer(bench.change(3, add=True), Changed(2, view.hash, True))
    bench.activate(view, 0, 1, 2, 3)
    bench.answer(bench.change(3, add=True), Changed(2, view.hash, True))
    with broken("I10", "is said to be made in epoch 2, and is not"):
        bench.answer(bench.change(3, add=False), Changed(2, view.hash, False))
    with broken("I10", "is said to be made in epoch 1, and is not"):
        bench.answer(bench.change(4, add=True), Changed(1, bench.view.hash, True))
    with broken("I10", "is answered with epoch 1 after epoch 2 was"):
        bench.answer(bench.change(3, add=False), Changed(1, bench.view.hash, False))


def test_a_change_that_is_not_started_says_so(bench: Bench) -> None:
    bench.answer(bench.change(3, add=True), NotStarted(b"", "not_in_time", ""))


def test_i11_a_balance_of_a_node_that_knows_that_it_was_removed(bench: Bench) -> None:
    view = bench.choose_view(bench.next_view(remove=0), 1, 2)
    bench.answer(bench.ask("a"), bench.balance("a", height=0, settled=0))  # it does not know
    bench.watch.committed(0, (bench.view_row(view),), 1.0)
    call = bench.ask("a")
    with broken("I11", "node 0 was removed and knows it"):
        bench.answer(call, bench.balance("a", height=0, settled=0))
    stale = msgspec.structs.replace(bench.balance("a", height=0, settled=0), stale=True)
    bench.answer(bench.ask("a"), stale)


# --- I7, I13: at rest ---


def at_rest(bench: Bench, node: int, view: View | None = None) -> None:
    writes = () if view is None else (bench.view_row(view),)
    with opened(bench, node, *writes) as conn:
        bench.watch.at_rest(node, conn, IDLE)


def test_i7_a_node_that_lags_by_a_view(bench: Bench) -> None:
    view = bench.choose_view(bench.next_view(add=3), 0, 1)
    bench.activate(view, 0, 1, 2, 3)
    for node in (2, 4):  # a member, and a guest
        with broken("I7", f"node {node} is in epoch 1, chosen is 2"):
            at_rest(bench, node)
        at_rest(bench, node, view)


def test_i13_a_member_that_is_not_active(bench: Bench) -> None:
    view = bench.choose_view(bench.next_view(remove=2), 0, 1)
    bench.activate(view, 0)
    at_rest(bench, 0, view)
    with broken("I13", "node 1 is not ACTIVE in all its regions of epoch 2"):
        at_rest(bench, 1, view)
    half = ((0, RING[0][1] // 2),)
    bench.watch.committed(1, (ActiveRow(2, encode_ranges(half)),), 1.0)
    with broken("I13", "node 1 is not ACTIVE in all"):
        at_rest(bench, 1, view)


def test_of_a_removed_node_only_its_clients_are_asked(bench: Bench) -> None:
    bench.choose_view(bench.next_view(remove=2), 0, 1)
    at_rest(bench, 2)
    with opened(bench, 2) as conn:
        for gauge in ("client_requests", "changes"):
            with broken("I13", "node 2, which was removed, still holds"):
                bench.watch.at_rest(2, conn, msgspec.structs.replace(IDLE, **{gauge: 1}))

"""node.epochs: what a change of view does to ACTIVE, to syncs and to the barrier, for drawn views and key by key."""

import hashlib
from itertools import combinations, pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.epochs import (
    Admission,
    Source,
    admit,
    carried_over,
    first_active,
    inactive,
    includes,
    is_synced,
    is_undo,
    keys_of,
    sources_of,
    synced_parts,
    to_sync,
    without_majority,
)
from node.paxos import Ballot
from routing.keyspace import NodeId
from routing.regions import EMPTY, RING, Ranges, Region, holds, intersect, merge, regions, subtract, union
from routing.view import Member, View, first_view, majority, member_of, with_member, without_member

A, B, C, D, E = (NodeId(bytes([n]) * 20) for n in range(1, 6))
NETWORK = bytes(32)


def some_member(number: int) -> Member:
    return member_of(hashlib.sha256(f"member {number}".encode()).digest())


def region(before: set[NodeId], after: set[NodeId], first: int = 10, last: int = 20) -> Region:
    return Region(first, last, frozenset(before), frozenset(after))


@st.composite
def changes(draw: st.DrawFn) -> tuple[View, View]:
    """Two views, one after the other."""
    numbers = draw(st.sets(st.integers(0, 40), min_size=1, max_size=7))
    view = first_view(NETWORK, draw(st.integers(1, 4)), map(some_member, sorted(numbers)))
    if len(numbers) > 1 and draw(st.booleans()):
        return view, without_member(view, draw(st.sampled_from(view.ids)), 0, view.ids[0])
    added = draw(st.integers(0, 60).filter(lambda number: number not in numbers))
    return view, with_member(view, some_member(added), 0, view.ids[0])


def keys(found: tuple[Region, ...], data: st.DataObject) -> list[bytes]:
    """The first and last keys of some regions."""
    some = data.draw(st.lists(st.sampled_from(found), min_size=1, max_size=5))
    return [key.to_bytes(20) for r in some for key in (r.first, r.last)]


def test_all_members_of_the_first_view_are_active_in_it_and_nobody_else() -> None:
    view = first_view(NETWORK, 2, map(some_member, range(3)))
    later = without_member(view, view.ids[0], 0, view.ids[1])
    assert all(first_active(view, node) == RING for node in view.ids)
    assert first_active(view, A) == EMPTY
    assert first_active(later, view.ids[1]) == EMPTY, "only the first"


@settings(deadline=None, max_examples=40)
@given(changes(), st.data())
def test_what_is_carried_over_and_what_is_to_be_synced_is_all_and_apart(
    change: tuple[View, View], data: st.DataObject
) -> None:
    """R7, key by key: ACTIVE stays who was it in a group that is the same; every other member of the new group
    syncs."""
    before, after = change
    found = regions(before, after)
    me = data.draw(st.sampled_from(sorted({*before.ids, *after.ids})))
    lost = data.draw(st.lists(st.sampled_from(found), max_size=3))
    active = subtract(RING, merge(map(keys_of, lost))) if before.is_member(me) else EMPTY
    kept = carried_over(found, me, active)
    syncs = to_sync(found, me, kept)
    for key in keys(found, data):
        same = set(before.group(key)) == set(after.group(key))
        stays = same and me in after.group(key) and holds(active, key)
        assert holds(kept, key) == stays
        place = int.from_bytes(key)
        assert any(r.first <= place <= r.last for r in syncs) == (me in after.group(key) and not stays)
    assert to_sync(found, me, union(kept, merge(map(keys_of, syncs)))) == ()


@settings(deadline=None, max_examples=40)
@given(changes())
def test_a_change_that_is_taken_back_leaves_nobody_active_where_it_changed_something(change: tuple[View, View]) -> None:
    before, after = change
    for me in before.ids:
        kept = carried_over(regions(before, after), me, RING)
        kept = carried_over(regions(after, before), me, kept)
        for r in regions(before, after):
            stays = r.before == r.after and me in r.after
            assert includes(kept, r) == stays


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_a_majority_of_the_old_group_that_was_active_there_is_enough_and_nothing_less(size: int) -> None:
    """R8, all sets of sources."""
    group = [A, B, C, D, E][:size]
    changed = region(set(group), {*group[1:], NodeId(bytes(20))})
    states = [None, Source(EMPTY), Source(((10, 19),)), Source(((10, 20),)), Source(RING)]
    for given_ in product(states, repeat=min(size, 4)):
        counted = {node: source for node, source in zip(group, given_, strict=False) if source is not None}
        whole = [node for node, source in counted.items() if source.before in (((10, 20),), RING)]
        assert is_synced(changed, counted) == (len(whole) >= majority(size))
        assert sources_of(changed, counted) == (tuple(whole) if len(whole) >= majority(size) else ())


def test_who_comes_late_may_ask_one_of_a_group_that_has_changed_that_is_active_already() -> None:
    """R8, ADR 35. Where the group is the same ACTIVE was only carried over: there a majority is asked."""
    moved = region({A, B, C}, {B, C, D})
    late = Source(EMPTY, RING)
    assert sources_of(moved, {B: late, D: late}) == (B, D)
    assert sources_of(moved, {D: late}) == (D,)
    assert sources_of(moved, {A: late, B: Source(EMPTY)}) == (), "A is in the new group no more"
    assert sources_of(moved, {A: Source(RING), B: late}) == (B,), "one of the old group is no majority of it"
    assert sources_of(moved, {B: Source(EMPTY, ((10, 19),)), D: late}) == (D,), "B is not ACTIVE for all of the region"
    assert sources_of(moved, {B: Source(EMPTY, ((10, 19),)), D: Source(EMPTY)}) == ()
    assert sources_of(moved, {E: Source(RING, RING), D: Source(RING)}) == (), "strangers and new members were not there"
    same = region({A, B, C}, {A, B, C})
    assert sources_of(same, {B: late}) == ()
    assert sources_of(same, {B: late, C: late}) == (B, C)


some_ranges = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda pair: (min(pair), max(pair))), max_size=4
).map(merge)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(st.sampled_from([A, B, C, D]), st.builds(Source, some_ranges, some_ranges)))
def test_of_a_region_every_key_is_synced_for_which_the_sources_are_enough(sources: dict[NodeId, Source]) -> None:
    """R8, key by key: what is ACTIVE in a part of a region is a source there, and nowhere else."""
    found = synced_parts(region({A, B, C}, {B, C, D}), sources)
    assert all(first.last < second.first for first, second in pairwise(found))
    for key in range(10, 21):
        alone = region({A, B, C}, {B, C, D}, key, key)
        (*parts,) = (part for part in found if part.first <= key <= part.last)
        assert bool(parts) == is_synced(alone, sources)
        assert len(parts) <= 1
    assert all(is_synced(part, sources) for part in found)


def test_of_a_region_in_which_a_part_is_active_the_rest_is_to_be_synced() -> None:
    whole = region({A, B}, {A, C})
    assert to_sync([whole], A, ((0, 12), (15, 17), (20, 30))) == (
        region({A, B}, {A, C}, 13, 14),
        region({A, B}, {A, C}, 18, 19),
    )
    assert to_sync([whole], A, ((0, 9), (21, 30))) == (whole,)
    assert to_sync([whole], B, EMPTY) == (), "it is in the group no more"


@settings(deadline=None, max_examples=40)
@given(changes(), st.data())
def test_any_two_that_are_synced_share_a_source(change: tuple[View, View], data: st.DataObject) -> None:
    """What a majority of the old group chose is known to one of the sources, and not forgotten."""
    found = data.draw(st.sampled_from(regions(*change)))
    nodes = sorted(found.before)
    voters = data.draw(st.sets(st.sampled_from(nodes), min_size=majority(len(nodes)), max_size=len(nodes)))
    answers = data.draw(st.sets(st.sampled_from(nodes), max_size=len(nodes)))
    counted = dict.fromkeys(answers, Source(RING))
    if is_synced(found, counted):
        assert voters & set(sources_of(found, counted))


@settings(deadline=None, max_examples=40)
@given(changes(), st.data())
def test_the_barrier_waits_for_a_majority_of_each_changed_group(change: tuple[View, View], data: st.DataObject) -> None:
    """R9."""
    before, after = change
    active = data.draw(st.sets(st.sampled_from(after.ids)))
    open_ = inactive(regions(before, after), active)
    for r in regions(before, after):
        waits = r.before != r.after and 2 * len(active & r.after) <= len(r.after)
        assert (r in open_) == waits


def test_groups_without_a_living_majority_are_counted() -> None:
    groups = [{A, B, C}, {B, C, D}, {A}]
    for alive in (set(some) for size in range(5) for some in combinations([A, B, C, D], size)):
        expected = sum(2 * len(group & alive) <= len(group) for group in groups)
        assert without_majority(groups, alive) == expected


def test_only_the_removal_of_who_was_added_last_is_an_undo() -> None:
    first = first_view(NETWORK, 2, map(some_member, range(3)))
    added, other = some_member(7), some_member(8)
    second = with_member(first, added, 0, first.ids[0])
    undo = without_member(second, added.id, 0, first.ids[0])
    assert is_undo([first, second], undo)
    assert not is_undo([first, second], without_member(second, first.ids[0], 0, first.ids[1]))
    assert not is_undo([first], without_member(first, first.ids[0], 0, first.ids[1])), "there is nothing before"
    removed = without_member(first, first.ids[0], 0, first.ids[1])
    assert not is_undo([first, removed], with_member(removed, first.members[0], 0, first.ids[1])), (
        "ids do not come back"
    )
    third = with_member(second, other, 0, first.ids[0])
    assert not is_undo([first, second, third], without_member(third, added.id, 0, first.ids[0])), "not the last one"


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)).map(lambda pair: (min(pair), max(pair)))), st.data())
def test_a_region_is_included_when_all_its_keys_are(ranges: list[tuple[int, int]], data: st.DataObject) -> None:
    active: Ranges = merge(ranges)
    first = data.draw(st.integers(0, 50))
    last = data.draw(st.integers(first, 50))
    assert includes(active, region({A}, {A}, first, last)) == (intersect(active, ((first, last),)) == ((first, last),))


# --- admission ------------------------------------------------------------------------------------------------------


def admission(**changed: object) -> Admission:
    """Of a sound ballot, but for what is changed."""
    fields = {
        "ballot": Ballot(4, 2, A),
        "me": B,
        "group": (A, B, C),
        "epoch": 4,
        "birth": 2,
        "fast": False,
        "active": True,
    }
    return admit(**(fields | changed))  # type: ignore[arg-type]


def test_a_ballot_of_this_epoch_within_the_group_is_voted_on() -> None:
    assert admission() is Admission.VOTE
    assert admission(me=A) is Admission.VOTE, "one's own too"
    assert admission(ballot=Ballot(4, 0, A), birth=4, fast=True) is Admission.VOTE


@pytest.mark.parametrize(
    "changed", [{"ballot": Ballot(5, 1, A)}, {"birth": 5}, {"ballot": Ballot(5, 0, D), "active": False}]
)
def test_who_is_behind_fetches_the_views_first(changed: dict[str, object]) -> None:
    """R2, R3: also when the slot alone is of a later epoch. Nothing else is judged before that."""
    assert admission(**changed) is Admission.BEHIND


REFUSED = {
    "an epoch that is over": {"ballot": Ballot(3, 9, A)},
    "round 0 where phase 1 is due": {"ballot": Ballot(4, 0, A)},
    "not in the group here": {"me": D},
    "its node is not in the group": {"ballot": Ballot(4, 2, D)},
    "an epoch that is over, not ACTIVE": {"ballot": Ballot(3, 9, A), "active": False},
}


@pytest.mark.parametrize("changed", REFUSED.values(), ids=list(REFUSED))
def test_what_can_never_be_voted_on_is_refused(changed: dict[str, object]) -> None:
    assert admission(**changed) is Admission.REFUSE


def test_who_is_not_active_yet_says_nothing() -> None:
    assert admission(active=False) is Admission.WAIT

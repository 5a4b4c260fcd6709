"""Regions against the plain definition of a group, and sets of keys against Python's sets."""

import contextlib
import itertools
import random
from bisect import bisect_right
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.errors import RoutingFault, RoutingMisuse
from routing.keyspace import ID_BYTES, KEY_BITS
from routing.regions import (
    EMPTY,
    MAX_RANGES,
    RING,
    Ranges,
    Region,
    _groups,
    covers,
    decode_ranges,
    encode_ranges,
    group_ranges,
    holds,
    intersect,
    merge,
    regions,
    subtract,
    union,
)
from routing.view import Member, View, first_view, member_of, with_member, without_member

NETWORK = bytes(range(32))
LAST = 2**KEY_BITS - 1


def _members(count: int, seed: int) -> list[Member]:
    rng = random.Random(seed)
    return [member_of(rng.randbytes(32)) for _ in range(count)]


def _view(count: int, k: int, seed: int = 7) -> View:
    return first_view(NETWORK, k, _members(count, seed))


def _brute(view: View, key: int) -> frozenset[bytes]:
    """The group by its definition, with nothing of the code that is tested."""
    return frozenset(sorted(view.ids, key=lambda node: int.from_bytes(node) ^ key)[: view.k])


def _keys(bounds: list[tuple[int, int]], rng: random.Random) -> set[int]:
    """Keys that would show a wrong bound: both ends of ranges, their neighbours, and some anywhere."""
    some = bounds if len(bounds) <= 60 else rng.sample(bounds, 60)
    keys = {key for first, last in some for key in (first - 1, first, first + 1, last - 1, last, last + 1)}
    return {key for key in keys if 0 <= key <= LAST} | {rng.getrandbits(KEY_BITS) for _ in range(20)}


# --- groups of ranges
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_every_key_of_a_small_ring_has_the_group_of_its_range(bits: int) -> None:
    rng = random.Random(bits)
    size = 2**bits
    for _ in range(40):
        ids = sorted(rng.sample(range(size), rng.randint(1, min(size, 64))))
        for k in {1, 2, 3, 5, len(ids) // 2 + 1, len(ids), len(ids) + 1}:
            expected: list[tuple[tuple[int, int], list[int]]] = []
            for key in range(size):
                group = sorted(sorted(ids, key=lambda one, key=key: one ^ key)[:k])
                if expected and expected[-1][1] == group:
                    expected[-1] = ((expected[-1][0][0], key), group)
                else:
                    expected.append(((key, key), group))
            found = [(keys, [ids[place] for place in places]) for keys, places in _groups(ids, k, bits)]
            assert found == expected, (ids, k)


def test_ids_beside_each_other_are_told_apart() -> None:
    """All pairs and triples of a ring of 4 bits: also those that differ in the last bit only."""
    for ids in ([a, b, c] for a in range(16) for b in range(a + 1, 16) for c in range(b + 1, 16)):
        for k in (1, 2):
            found = {key: places for keys, places in _groups(ids, k, 4) for key in range(keys[0], keys[1] + 1)}
            for key in range(16):
                assert {ids[place] for place in found[key]} == set(sorted(ids, key=lambda one: one ^ key)[:k])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 21, 34, 64])
def test_groups_of_ranges_are_those_of_the_definition_for_all_k(count: int) -> None:
    rng = random.Random(count)
    for k in range(1, min(count + 1, 64) + 1):
        view = _view(count, k, seed=1000 * count + k)
        found = group_ranges(view)
        bounds = [keys for keys, _ in found]
        assert (bounds[0][0], bounds[-1][1]) == (0, LAST)
        assert all(after[0] == before[1] + 1 for before, after in itertools.pairwise(bounds))
        assert all(before[1] != after[1] for before, after in itertools.pairwise(found)), "maximal"
        firsts = [first for first, _ in bounds]
        for key in _keys(bounds, rng):
            assert found[bisect_right(firsts, key) - 1][1] == _brute(view, key), (count, k, hex(key))


def test_the_group_of_a_range_is_the_views_group() -> None:
    view = _view(20, 5)
    for (first, last), group in group_ranges(view):
        assert group == frozenset(view.group(first.to_bytes(20))) == frozenset(view.group(last.to_bytes(20)))


def test_a_small_view_has_one_range() -> None:
    for count in range(1, 6):
        view = _view(count, 5)
        assert group_ranges(view) == ((RING[0], frozenset(view.ids)),)


def test_1000_members_are_no_trouble() -> None:
    """What is shared between slices is made once, or this would not end."""
    view = _view(1000, 5)
    found = group_ranges(view)
    assert len(found) < 100_000
    rng = random.Random(3)
    for (first, last), group in rng.sample(found, 100):
        assert group == _brute(view, first) == _brute(view, last)


def test_two_ids_that_are_too_close_are_refused_and_not_too_close_are_not() -> None:
    limit = MAX_RANGES.bit_length() - 1
    assert len(_groups([0, 1 << (KEY_BITS - limit)], 1, KEY_BITS)) == MAX_RANGES
    with pytest.raises(RoutingMisuse, match=f"groups of 2 members make over {MAX_RANGES} ranges.*make a new key"):
        _groups([0, 1 << (KEY_BITS - limit - 1)], 1, KEY_BITS)
    with pytest.raises(RoutingMisuse, match="too close"):
        _groups([0, 1], 1, KEY_BITS)


# --- regions
# -------------------------------------------------------------------------------------------------------------------


def _check_regions(before: View, after: View, rng: random.Random) -> tuple[Region, ...]:
    found = regions(before, after)
    bounds = [(region.first, region.last) for region in found]
    assert (bounds[0][0], bounds[-1][1]) == (0, LAST)
    assert all(second[0] == first[1] + 1 for first, second in itertools.pairwise(bounds))
    assert all(first <= last for first, last in bounds)
    groups = [(region.before, region.after) for region in found]
    assert all(first != second for first, second in itertools.pairwise(groups)), "maximal"
    firsts = [first for first, _ in bounds]
    for key in _keys(bounds, rng):
        region = found[bisect_right(firsts, key) - 1]
        assert (region.before, region.after) == (_brute(before, key), _brute(after, key)), hex(key)
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 9, 17, 40, 63])
def test_regions_have_one_group_before_and_one_after(count: int) -> None:
    rng = random.Random(count)
    joiner = _members(1, seed=99)[0]
    for k in sorted({1, 2, 3, 4, 5, 6, count - 1, count, count + 1} & set(range(1, 65))):
        small = _view(count, k)
        large = with_member(small, joiner, 5, small.ids[0])
        for found in (
            _check_regions(small, large, rng),
            _check_regions(large, without_member(large, joiner.id, 6, joiner.id), rng),
        ):
            for region in found:
                assert (joiner.id in region.before | region.after) is (region.before != region.after)
                assert len(region.before - region.after) <= 1
                assert len(region.after - region.before) <= 1


def test_the_same_view_twice_has_the_ranges_of_its_groups() -> None:
    view = _view(30, 3)
    assert regions(view, view) == tuple(Region(*keys, group, group) for keys, group in group_ranges(view))


def test_a_network_within_k_is_one_region() -> None:
    before = _view(3, 5)
    joiner = _members(1, seed=99)[0]
    after = with_member(before, joiner, 5, before.ids[0])
    assert regions(before, after) == (Region(0, LAST, frozenset(before.ids), frozenset(after.ids)),)


# --- sets of keys
# --------------------------------------------------------------------------------------------------------------

some_ranges = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 9)).map(lambda one: (one[0], one[0] + one[1])), max_size=8
)


def _set(ranges: Ranges) -> set[int]:
    return {key for first, last in ranges for key in range(first, last + 1)}


def _is_normal(ranges: Ranges) -> bool:
    apart = all(after[0] > before[1] + 1 for before, after in itertools.pairwise(ranges))
    return apart and all(first <= last for first, last in ranges)


@given(some_ranges)
def test_merging_keeps_the_keys_and_nothing_else(given_ranges: list[tuple[int, int]]) -> None:
    merged = merge(given_ranges)
    assert _set(merged) == _set(tuple(given_ranges))
    assert _is_normal(merged)
    assert merge(merged) == merged


@pytest.mark.parametrize(
    ("operation", "on_sets"), [(union, set.union), (intersect, set.intersection), (subtract, set.difference)]
)
@settings(max_examples=300)
@given(a=some_ranges.map(merge), b=some_ranges.map(merge))
def test_operations_are_those_on_sets(
    operation: Callable[[Ranges, Ranges], Ranges],
    on_sets: Callable[[set[int], set[int]], set[int]],
    a: Ranges,
    b: Ranges,
) -> None:
    found = operation(a, b)
    assert _set(found) == on_sets(_set(a), _set(b))
    assert _is_normal(found)


@settings(max_examples=300)
@given(some_ranges.map(merge), some_ranges.map(merge))
def test_covering_is_containing_every_key(a: Ranges, b: Ranges) -> None:
    assert covers(a, b) is (_set(b) <= _set(a))
    assert covers(a, intersect(a, b))
    assert covers(union(a, b), a)
    assert covers(RING, a)
    assert covers(a, EMPTY)


@given(some_ranges.map(merge))
def test_a_key_is_held_when_a_range_includes_it(ranges: Ranges) -> None:
    keys = _set(ranges)
    assert [holds(ranges, key.to_bytes(20)) for key in range(55)] == [key in keys for key in range(55)]


def test_the_ring_holds_its_ends_and_nothing_is_in_the_empty_set() -> None:
    for key in (bytes(20), b"\xff" * 20):
        assert holds(RING, key)
        assert not holds(EMPTY, key)
    assert subtract(RING, ((5, 7),)) == ((0, 4), (8, LAST))
    assert not covers(subtract(RING, ((LAST, LAST),)), RING)


def test_a_key_of_another_length_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="20 bytes, not 32"):
        holds(RING, bytes(32))


# --- bytes
# ---------------------------------------------------------------------------------------------------------------------


def test_the_bytes_of_ranges_are_these() -> None:
    assert (
        encode_ranges(((1, 2), (4, LAST))) == bytes(19) + b"\1" + bytes(19) + b"\2" + bytes(19) + b"\4" + b"\xff" * 20
    )
    assert encode_ranges(EMPTY) == b""


@given(st.lists(st.tuples(st.integers(0, LAST), st.integers(0, LAST)).map(lambda one: (min(one), max(one)))))
def test_encoding_and_decoding_give_the_same_ranges(given_ranges: list[tuple[int, int]]) -> None:
    ranges = merge(given_ranges)
    assert decode_ranges(encode_ranges(ranges)) == ranges


@pytest.mark.parametrize(
    ("ranges", "says"),
    [
        (((2, 1),), "range 0 ends before it begins"),
        (((0, 1), (9, 8)), "range 1 ends before it begins"),
        (((0, 3), (4, 5)), "range 1 does not begin after a gap"),
        (((0, 3), (2, 5)), "range 1 does not begin after a gap"),
        (((7, 8), (1, 2)), "range 1 does not begin after a gap"),
    ],
)
def test_ranges_that_are_not_normal_are_refused(ranges: Ranges, says: str) -> None:
    with pytest.raises(RoutingFault, match=says) as error:
        decode_ranges(encode_ranges(ranges))
    assert error.value.code == "bad_ranges"


def test_a_part_of_a_range_is_refused() -> None:
    for size in range(1, 2 * ID_BYTES):
        with pytest.raises(RoutingFault, match=f"{size} bytes are no ranges"):
            decode_ranges(bytes(size))


@given(st.binary(max_size=200))
def test_untrusted_bytes_raise_only_a_routing_fault(raw: bytes) -> None:
    with contextlib.suppress(RoutingFault):
        assert encode_ranges(decode_ranges(raw)) == raw

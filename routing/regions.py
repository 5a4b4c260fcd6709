"""Which keys have which group, exactly: the regions in which a new view changes something, and sets of keys as ranges
(design section 3, R7).

The k closest members of a key are found bit by bit, as in Kademlia's binary trie (Kademlia 2.1). Among the members
under one prefix, and for a key under it: those that share the key's next bit are closer than those that do not. When
there are m or more of the former, the m closest are among them; when there are fewer, they all count, and the rest are
the closest of the others, for whom only the key's later bits matter. So the groups of all keys follow from slices of
the sorted ids, each looked at once for each m.

Two ids that share many bits make many ranges: which of them is closer alternates with the first bit in which they
differ, all over the keys that need just one of them. Ids are hashes, so 1,000 members make some 10,000 ranges; an id
that was searched for until it is beside another one would make millions. Such a view is refused (`MAX_RANGES`), before
it is proposed.
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from routing.errors import RoutingFault, RoutingMisuse
from routing.keyspace import ID_BYTES, KEY_BITS, NodeId
from routing.view import View

Range = tuple[int, int]  # first and last key, both in it: 0 to 2^160 - 1
Ranges = tuple[Range, ...]  # ascending, apart from each other (neighbours are merged)
GroupRange = tuple[Range, frozenset[NodeId]]

EMPTY: Final[Ranges] = ()
RING: Final[Ranges] = ((0, 2**KEY_BITS - 1),)
MAX_RANGES: Final = 2**18  # of one view: some 100 MB while it is installed; 4,096 members make a fifth of it

_RANGE: Final = struct.Struct(f">{ID_BYTES}s{ID_BYTES}s")


class Region(msgspec.Struct, frozen=True):
    """The keys `first` to `last`: they have one group `before` and one `after` a change of the view, their neighbours
    others."""

    first: int
    last: int
    before: frozenset[NodeId]
    after: frozenset[NodeId]


def group_ranges(view: View) -> tuple[GroupRange, ...]:
    """All keys in ascending ranges, each with its group; neighbours have different groups.

    `RoutingMisuse` for a view of more than `MAX_RANGES` ranges: two of its ids are too close.
    """
    found = _groups(tuple(int.from_bytes(member) for member in view.ids), view.k, KEY_BITS)
    groups = {group: frozenset(view.ids[place] for place in group) for _, group in found}  # each once: many alternate
    return tuple((keys, groups[group]) for keys, group in found)


def regions(before: View, after: View) -> tuple[Region, ...]:
    """All keys in ascending ranges, each as long as it can be with one group in `before` and one in `after` (design
    R7)."""
    found = []
    first, old, new = 0, iter(group_ranges(before)), iter(group_ranges(after))
    (_, old_last), old_group = next(old)
    (_, new_last), new_group = next(new)
    while True:
        last = min(old_last, new_last)
        found.append(Region(first, last, old_group, new_group))
        if last == RING[0][1]:
            return tuple(found)
        first = last + 1
        if old_last == last:
            (_, old_last), old_group = next(old)
        if new_last == last:
            (_, new_last), new_group = next(new)


def merge(ranges: Iterable[Range]) -> Ranges:
    """The keys of all `ranges`, which may come in any order and overlap."""
    merged: list[Range] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def union(a: Ranges, b: Ranges) -> Ranges:
    """The keys that are in `a` or in `b`."""
    return merge(a + b)


def subtract(a: Ranges, b: Ranges) -> Ranges:
    """The keys that are in `a` and not in `b`."""
    left: list[Range] = []
    place = 0
    for first, last in a:
        while place < len(b) and b[place][0] <= last:
            hole_first, hole_last = b[place]
            if hole_first > first:
                left.append((first, hole_first - 1))
            first = max(first, hole_last + 1)
            if hole_last > last:
                break  # this hole may reach into the next range of `a`
            place += 1
        if first <= last:
            left.append((first, last))
    return tuple(left)


def intersect(a: Ranges, b: Ranges) -> Ranges:
    """The keys that are in both."""
    return subtract(a, subtract(a, b))


def covers(a: Ranges, b: Ranges) -> bool:
    """True when every key of `b` is in `a`."""
    return subtract(b, a) == EMPTY


def holds(a: Ranges, key: bytes) -> bool:
    """True when `key` (20 bytes) is in `a`."""
    assert len(key) == ID_BYTES, f"a key has {ID_BYTES} bytes, not {len(key)}: use route_key(slot)"
    value = int.from_bytes(key)
    place = bisect_right(a, value, key=lambda keys: keys[0])
    return place > 0 and value <= a[place - 1][1]


def encode_ranges(ranges: Ranges) -> bytes:
    """The first and last key of each range, 20 bytes each."""
    return b"".join(_RANGE.pack(first.to_bytes(ID_BYTES), last.to_bytes(ID_BYTES)) for first, last in ranges)


def decode_ranges(raw: bytes) -> Ranges:
    """Read and check ranges, from a peer or a disk; raises only `RoutingFault("bad_ranges")`."""
    if len(raw) % _RANGE.size:
        raise RoutingFault("bad_ranges", f"{len(raw)} bytes are no ranges: each has {_RANGE.size}")
    ranges = tuple((int.from_bytes(first), int.from_bytes(last)) for first, last in _RANGE.iter_unpack(raw))
    for number, (first, last) in enumerate(ranges):
        if first > last:
            raise RoutingFault("bad_ranges", f"range {number} ends before it begins")
        if number and first <= ranges[number - 1][1] + 1:
            raise RoutingFault("bad_ranges", f"range {number} does not begin after a gap behind range {number - 1}")
    return ranges


def _groups(ids: Sequence[int], k: int, bits: int) -> list[tuple[Range, tuple[int, ...]]]:
    """Ranges of all keys of so many bits, with the places of the `k` closest of `ids` (ascending, each once)."""
    starts = _Trie(ids).closest(0, len(ids), k, bits)
    ends = [start - 1 for start, _ in starts[1:]] + [2**bits - 1]
    return [((start, end), _places(mask)) for (start, mask), end in zip(starts, ends, strict=True)]


class _Trie:
    """Sorted ids; the ones under a prefix are a slice of them. A set of ids is a mask: bit n stands for the n-th."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = ids
        self._known: dict[tuple[int, int, int, int], list[tuple[int, int]]] = {}

    def closest(self, begin: int, end: int, m: int, bits: int) -> list[tuple[int, int]]:
        """The m closest of the ids[begin:end], which agree in all but the last `bits`, for all keys of so many bits:
        (first key, mask) of each range."""
        if end - begin <= m:
            return [(0, _mask(begin, end))]
        asked = (begin, end, m, bits)
        found = self._known.get(asked)
        if found is None:
            half = 1 << (bits - 1)
            middle = bisect_left(self._ids, half, begin, end, key=lambda one: one & half)
            found = []
            for start, near, far in ((0, (begin, middle), (middle, end)), (half, (middle, end), (begin, middle))):
                count = near[1] - near[0]
                if count >= m:
                    all_near, part = 0, self.closest(*near, m, bits - 1)
                else:
                    all_near, part = _mask(*near), self.closest(*far, m - count, bits - 1)
                for first, mask in part:
                    if not found or found[-1][1] != mask | all_near:
                        found.append((start + first, mask | all_near))
            if len(found) > MAX_RANGES:
                raise RoutingMisuse(
                    f"the groups of {len(self._ids)} members make over {MAX_RANGES} ranges, because two of their ids are too "
                    "close to each other: let the node that was to be added make a new key"
                )
            self._known[asked] = found
        return found


def _mask(begin: int, end: int) -> int:
    return (1 << end) - (1 << begin)


def _places(mask: int) -> tuple[int, ...]:
    """The places of the bits in a mask."""
    places = []
    while mask:
        lowest = mask & -mask
        places.append(lowest.bit_length() - 1)
        mask ^= lowest
    return tuple(places)

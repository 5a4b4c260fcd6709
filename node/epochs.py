"""What a change of view does to the memory of votes (design R7, R8, R9): pure functions, without state.

In each epoch a node is ACTIVE for some keys: there it may vote, propose and be a source. The view `before` is that of
epoch e, `after` that of e+1; `regions` are those of the two (routing.regions).

    carried_over   R7  what stays ACTIVE when e+1 is installed: groups that are the same, where it was ACTIVE before
    to_sync        R7  what must be synced: every other region whose group in e+1 has this node, old members included
    synced_parts   R8  the parts of a region that can be: where it was ACTIVE may end within a region of the next epochs
    sources_of     R8  whose answers count: a majority of the region's group in e, each ACTIVE there in e; or, where the
                       group has changed, one that is ACTIVE there in e+1
    admit          R2, R3, R7  whether an acceptor takes part in a ballot at all
    inactive       R9  regions that e+1 changed and in which no majority is ACTIVE yet: until there are none, the next
                       view is not proposed, except to undo e+1
"""

import enum
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from node.paxos import Ballot
from routing.keyspace import NodeId
from routing.regions import EMPTY, RING, Range, Ranges, Region, intersect, merge, subtract
from routing.view import FIRST_EPOCH, View, majority


class Admission(enum.Enum):
    """What an acceptor does with a ballot, before Paxos itself is asked (R2, R3, R7)."""

    VOTE = "vote"
    BEHIND = "behind"  # install views first
    REFUSE = "refuse"
    WAIT = "wait"  # not ACTIVE yet: no answer, the proposer sends again


def admit(
    ballot: Ballot, me: NodeId, group: Collection[NodeId], epoch: int, birth: int, *, fast: bool, active: bool
) -> Admission:
    """R2, R3, R7: may the acceptor `me`, with `epoch` installed and `active` for the slot, handle `ballot`? `group`:
    the slot's in that epoch; `birth`: the slot's birth epoch; `fast`: whether the ballot's node may skip phase 1
    there."""
    if max(ballot.epoch, birth) > epoch:
        return Admission.BEHIND
    if ballot.epoch < epoch or (ballot.round == 0 and not fast) or me not in group or ballot.node not in group:
        return Admission.REFUSE
    return Admission.VOTE if active else Admission.WAIT


def first_active(first: View, me: NodeId) -> Ranges:
    """Nothing was decided before the first view, so all its members are ACTIVE in it."""
    return RING if first.epoch == FIRST_EPOCH and first.is_member(me) else EMPTY


def carried_over(regions: Iterable[Region], me: NodeId, active: Ranges) -> Ranges:
    """R7: where `me` is ACTIVE in e+1 without a sync, when it was ACTIVE in e for `active`."""
    return intersect(merge(keys_of(r) for r in regions if r.before == r.after and me in r.after), active)


def to_sync(regions: Iterable[Region], me: NodeId, active: Ranges) -> tuple[Region, ...]:
    """R7: the regions of e+1 that `me` is in the group of and, with `active` in e+1, not ACTIVE in: of each the
    parts."""
    missing: list[Region] = []
    for region in regions:
        if me in region.after and not includes(active, region):
            left = subtract((keys_of(region),), overlapping(active, region))
            missing += [msgspec.structs.replace(region, first=first, last=last) for first, last in left]
    return tuple(missing)


class Source(msgspec.Struct, frozen=True):
    """Where a node that answers a sync was ACTIVE in e, and is in e+1."""

    before: Ranges
    after: Ranges = EMPTY


def is_synced(region: Region, sources: Mapping[NodeId, Source]) -> bool:
    """R8: the answers of these nodes are enough to become ACTIVE in `region`."""
    return bool(sources_of(region, sources))


def sources_of(region: Region, sources: Mapping[NodeId, Source]) -> tuple[NodeId, ...]:
    """R8: a majority of the region's group in e, each ACTIVE there in e. Or, for who comes late, when nodes of the old
    group are gone: who of its group in e+1 is ACTIVE there in e+1. Where the group has changed one is enough: it has
    synced and knows all that was chosen up to e (ADR 35); where not, a majority. Empty when `sources` (whose answers
    are complete) hold neither."""
    old = tuple(n for n in sorted(region.before) if n in sources and includes(sources[n].before, region))
    if len(old) >= majority(len(region.before)):
        return old
    new = tuple(n for n in sorted(region.after) if n in sources and includes(sources[n].after, region))
    enough = 1 if region.before != region.after else majority(len(region.after))
    return new if len(new) >= enough else ()


def synced_parts(region: Region, sources: Mapping[NodeId, Source]) -> tuple[Region, ...]:
    """The parts of `region` for which these answers are enough. A region of e and e+1 may reach over several of those
    of the epoch before, and a source may have become ACTIVE in some of them only: a dead neighbourhood there stops only
    itself."""
    if is_synced(region, sources):
        return (region,)
    borders = {region.first, region.last + 1}
    for node in (region.before | region.after) & sources.keys():
        for active in (sources[node].before, sources[node].after):
            for first, last in overlapping(active, region):
                borders |= {max(first, region.first), min(last, region.last) + 1}
    if len(borders) == 2:
        return ()
    parts = (
        msgspec.structs.replace(region, first=first, last=end - 1) for first, end in itertools.pairwise(sorted(borders))
    )
    return tuple(part for part in parts if is_synced(part, sources))


def inactive(regions: Iterable[Region], active: Collection[NodeId]) -> tuple[Region, ...]:
    """R9: the changed regions of which no majority is among `active`, the nodes that are ACTIVE in all their
    regions."""
    return tuple(
        region
        for region in regions
        if region.before != region.after and sum(node in active for node in region.after) < majority(len(region.after))
    )


def without_majority(groups: Iterable[Collection[bytes]], alive: Collection[bytes]) -> int:
    """How many of these groups have no majority among `alive`."""
    return sum(sum(node in alive for node in group) < majority(len(group)) for group in groups)


def is_undo(views: Sequence[View], after: View) -> bool:
    """True when `after` takes back what the newest of `views` added. (What it removed never comes back, design R12.)"""
    return len(views) > 1 and after.members == views[-2].members and len(after.members) < len(views[-1].members)


def includes(active: Ranges, region: Region) -> bool:
    """True when all keys of `region` are in `active`."""
    place = bisect_right(active, region.first, key=lambda keys: keys[0])
    return place > 0 and region.last <= active[place - 1][1]


def overlapping(active: Ranges, region: Region) -> Ranges:
    """The ranges of `active` that have keys of `region`."""
    begin = bisect_left(active, region.first, key=lambda keys: keys[1])
    return active[begin : bisect_right(active, region.last, key=lambda keys: keys[0])]


def keys_of(region: Region) -> Range:
    """The keys of a region."""
    return (region.first, region.last)

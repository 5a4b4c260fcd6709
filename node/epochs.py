"""What a change of view does to the memory of votes (design R7, R8, R9): pure functions, without state.

In each epoch a node is ACTIVE for some keys: there it may vote, propose and be a source. The view `before` is that of
epoch e, `after` that of e+1; `regions` are those of the two (routing.regions).

    carried_over   R7  what stays ACTIVE when e+1 is installed: groups that are the same, where it was ACTIVE before
    to_sync        R7  what must be synced: every other region whose group in e+1 has this node, old members included
    is_synced      R8  answers of a majority of the region's group in e, each from a node that was ACTIVE there in e
    admit          R2, R3, R7  whether an acceptor takes part in a ballot at all
    inactive       R9  regions that e+1 changed and in which no majority is ACTIVE yet: until there are none, the next view is
                       not proposed, except to undo e+1
"""

import enum
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence

from node.paxos import Ballot
from routing.keyspace import NodeId
from routing.regions import EMPTY, RING, Range, Ranges, Region, intersect, merge
from routing.view import FIRST_EPOCH, View, majority


def first_active(first: View, me: NodeId) -> Ranges:
    """Nothing was decided before the first view, so all its members are ACTIVE in it."""
    return RING if first.epoch == FIRST_EPOCH and first.is_member(me) else EMPTY


def carried_over(regions: Iterable[Region], me: NodeId, active: Ranges) -> Ranges:
    """R7: where `me` is ACTIVE in e+1 without a sync, when it was ACTIVE in e for `active`."""
    return intersect(merge(keys_of(r) for r in regions if r.before == r.after and me in r.after), active)


def to_sync(regions: Iterable[Region], me: NodeId, active: Ranges) -> tuple[Region, ...]:
    """R7: the regions of e+1 that `me` is in the group of and, with `active` in e+1, not ACTIVE in."""
    return tuple(region for region in regions if me in region.after and not includes(active, region))


def is_synced(region: Region, sources: Mapping[NodeId, Ranges]) -> bool:
    """R8: `sources` (who answered completely -> where it was ACTIVE in e) hold a majority of the region's group in e."""
    return len(sources_of(region, sources)) >= majority(len(region.before))


def sources_of(region: Region, sources: Mapping[NodeId, Ranges]) -> tuple[NodeId, ...]:
    """Those whose answers count for a region: of its group in e, and ACTIVE there in e."""
    return tuple(node for node in sorted(region.before) if node in sources and includes(sources[node], region))


class Admission(enum.Enum):
    """What an acceptor does with a ballot, before it looks at its vote."""

    VOTE = "it takes part"
    BEHIND = "it fetches and installs the views first; the proposer sends again"
    REFUSE = "it says which epoch it has installed"
    WAIT = "it is not ACTIVE and does not answer; the proposer sends again"


def admit(
    ballot: Ballot, me: NodeId, group: tuple[NodeId, ...], epoch: int, birth: int, *, fast: bool, active: bool
) -> Admission:
    """R2, R3, R7: `epoch` is the one installed at `me`, `group` the slot's in it, `birth` the epoch in which the slot was born.
    `fast`: the ballot's node may skip phase 1. `active`: `me` is ACTIVE for the slot."""
    if max(ballot.epoch, birth) > epoch:
        return Admission.BEHIND
    wrong_fast = ballot.round == 0 and not fast
    if ballot.epoch < epoch or wrong_fast or me not in group or ballot.node not in group:
        return Admission.REFUSE
    return Admission.VOTE if active else Admission.WAIT


def inactive(regions: Iterable[Region], active: Collection[NodeId]) -> tuple[Region, ...]:
    """R9: the changed regions of which no majority is among `active`, the nodes that are ACTIVE in all their regions."""
    return tuple(
        region
        for region in regions
        if region.before != region.after and sum(node in active for node in region.after) < majority(len(region.after))
    )


def without_majority(groups: Iterable[Collection[NodeId]], alive: Collection[NodeId]) -> int:
    """How many of these groups have no majority among `alive`."""
    return sum(sum(node in alive for node in group) < majority(len(group)) for group in groups)


def is_undo(views: Sequence[View], after: View) -> bool:
    """True when `after` takes back what the newest of `views` added. (What it removed never comes back, design R12.)"""
    return len(views) > 1 and after.members == views[-2].members and len(after.members) < len(views[-1].members)


def includes(active: Ranges, region: Region) -> bool:
    """True when all keys of `region` are in `active`."""
    place = bisect_right(active, region.first, key=lambda keys: keys[0])
    return place > 0 and region.last <= active[place - 1][1]


def keys_of(region: Region) -> Range:
    """The keys of a region."""
    return (region.first, region.last)

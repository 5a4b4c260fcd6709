"""The plans of tests.node.epoch_search, and the rules R1 to R8 switched off one by one.

`python -m tests.node.epoch_rules` prints docs/exhaustive-search.md.
"""

from typing import NamedTuple

from node.epochs import Source
from node.paxos import Ballot, Vote
from routing.keyspace import NodeId
from routing.regions import EMPTY, RING, Ranges, Region
from routing.view import majority
from tests.node.epoch_search import KEY, Disk, Plan, Rules, Value, Views, chain, path

# A slot that moves from {A,B,C} to {N,A,B}: N joins, nearest of all. The owner's ballot, the new owner's; a takeover by B.
GROW = Plan("NABC", 3, chain("ABC", "ABCN"), ((1, 0, "A"), (2, 1, "N")))
GROW_TAKEOVER = Plan("NABC", 3, chain("ABC", "ABCN"), ((1, 0, "A"), (1, 1, "B"), (2, 1, "N")))
# The owner dies and is removed: {A,B,C} becomes {B,C,D}. Ballot (2,0,B) is one that no rule allows.
OWNER_REMOVED = Plan("ABCD", 3, chain("ABCD", "BCD"), ((1, 0, "A"), (2, 0, "B"), (2, 1, "B")))
# Two changes, one after the other.
THERE_AND_BACK = Plan("NABC", 3, chain("ABC", "ABCN", "ABC"), ((2, 1, "N"), (3, 1, "B")))
ONLY_SHRINKS = Plan("ABC", 3, chain("ABC", "BC", "C"), ((1, 0, "A"), (2, 1, "B"), (3, 1, "C")))
TWO_REMOVED = Plan("ABCD", 3, chain("ABCD", "BCD", "CD"), ((1, 0, "A"), (3, 1, "C")))
TWO_REMOVED_TAKEOVER = Plan("ABCD", 3, chain("ABCD", "BCD", "CD"), ((1, 0, "A"), (2, 1, "C"), (3, 1, "C")))
TWO_JOIN = Plan("MNAB", 3, chain("AB", "ABN", "ABNM"), ((1, 0, "A"), (2, 1, "N"), (3, 1, "M")))
# A duel over the change: A tries again above what N proposed.
DUEL = Plan("NABC", 3, chain("ABC", "ABCN"), ((1, 5, "A"), (2, 1, "N"), (2, 6, "A")))
# A view that changes nothing for the slot, which was born in it.
BORN_LATER = Plan("ABCD", 3, chain("ABC", "ABCD"), ((1, 1, "B"), (2, 0, "A"), (2, 1, "C")), birth=2)
# Groups of two.
PAIR = Plan("NAB", 2, chain("AB", "ABN"), ((1, 0, "A"), (1, 1, "B"), (2, 1, "N")))
PAIR_MOVES = Plan("NABC", 2, chain("ABC", "ABCN", "BCN"), ((1, 0, "A"), (2, 1, "N"), (3, 1, "B")))
PAIR_SHRINKS = Plan("AB", 2, chain("AB", "B"), ((1, 0, "A"), (1, 1, "B"), (2, 1, "B")))
# No change: the takeover alone. Ballot (1,0,B) is one that no rule allows.
TAKEOVER = Plan("ABC", 3, chain("ABC"), ((1, 0, "A"), (1, 0, "B"), (1, 1, "B"), (1, 2, "A")))
# Two views of one epoch: no plan of a network that keeps R1.
FORK = Plan("NABC", 3, (("ABC", -1), ("ABCN", 0), ("BC", 0)), ((1, 0, "A"), (2, 1, "N"), (2, 2, "B")))
TWO_AT_ONCE = Plan("MNAB", 3, chain("AB", "ABMN"), ((1, 0, "A"), (1, 1, "B"), (2, 1, "M")))

PLANS: dict[str, Plan] = {
    name.lower().replace("_", " "): plan for name, plan in list(globals().items()) if isinstance(plan, Plan)
}


class TwoViews(Rules):
    """R1: as the plan is: two views of one epoch, or two members changed at once."""


class RoundFirst(Ballot, frozen=True, array_like=True, order=False):
    """R2: the round goes before the epoch."""

    def _key(self) -> tuple[int, int, NodeId]:
        return (self.round, self.epoch, self.node)

    def __lt__(self, other: Ballot) -> bool:
        return self._key() < RoundFirst._key(other)  # type: ignore[arg-type]

    def __gt__(self, other: Ballot) -> bool:
        return self._key() > RoundFirst._key(other)  # type: ignore[arg-type]


class BallotsByRound(Rules):
    ballot = RoundFirst


class OldEpochsAdmitted(Rules):
    """R2: a ballot of an epoch that is over here is handled all the same."""

    old_epochs = True

    def admits(
        self, views: Views, me: NodeId, ballot: Ballot, vote: Vote[Value] | None, birth: int, *, active: bool
    ) -> bool:
        before = tuple(view for view in views if view.epoch <= ballot.epoch)
        active = active if before == views else me in before[-1].group(KEY)
        return super().admits(before, me, ballot, vote, birth, active=active)


class NewEpochsAdmitted(Rules):
    """R2: a ballot of an epoch that is not installed here is handled all the same."""

    def admits(
        self, views: Views, me: NodeId, ballot: Ballot, vote: Vote[Value] | None, birth: int, *, active: bool
    ) -> bool:
        if me == ballot.node or ballot.epoch <= views[-1].epoch:
            return super().admits(views, me, ballot, vote, birth, active=active)
        return me in views[-1].group(KEY) and active


class FastInEveryEpoch(Rules):
    """R3: the owner skips phase 1 in every epoch."""

    def fast(self, ballot: Ballot, group: tuple[NodeId, ...], epoch: int, birth: int) -> bool:
        return super().fast(ballot, group, epoch, epoch)

    def may_start(self, ballot: Ballot, vote: Vote[Value] | None) -> bool:
        return vote is None or vote.promised < ballot


class FastOfAnybody(Rules):
    """R3: a standby skips phase 1 too."""

    def fast(self, ballot: Ballot, group: tuple[NodeId, ...], epoch: int, birth: int) -> bool:
        return ballot.node in group and epoch == birth


class VotesBelowBirth(Rules):
    """R3: who has the parent votes, also in an epoch before its own."""

    def admits(
        self, views: Views, me: NodeId, ballot: Ballot, vote: Vote[Value] | None, birth: int, *, active: bool
    ) -> bool:
        return super().admits(views, me, ballot, vote, min(birth, views[-1].epoch), active=active)

    def fast(self, ballot: Ballot, group: tuple[NodeId, ...], epoch: int, birth: int) -> bool:
        return super().fast(ballot, group, epoch, 2)


class VotesInMemory(Rules):
    """R4: an acceptor answers before its vote is on disk."""

    def stored(self, disk: Disk, after: Disk, what: str) -> Disk:
        return after._replace(vote=disk.vote) if what == "vote" else after


class ProposerForgets(Rules):
    """R4: a proposer sends before its ballot and value are on disk."""

    def stored(self, disk: Disk, after: Disk, what: str) -> Disk:
        return after._replace(vote=disk.vote) if what == "own" else after


class FenceInMemory(Rules):
    """R5: a node answers before the epoch is on disk."""

    def stored(self, disk: Disk, after: Disk, what: str) -> Disk:
        return disk._replace(vote=after.vote)


class FencePerSlot(OldEpochsAdmitted):
    """R5: the fence is for slots that the node has a vote for; others may still be voted on in the epoch before."""

    def admits(
        self, views: Views, me: NodeId, ballot: Ballot, vote: Vote[Value] | None, birth: int, *, active: bool
    ) -> bool:
        if vote is None:
            return super().admits(views, me, ballot, vote, birth, active=active)
        return Rules().admits(views, me, ballot, vote, birth, active=active)


class SkipsViews(Rules):
    """R6: a node that was away installs the newest view only."""

    def next_views(self, plan: Plan, view: int) -> list[int]:
        return [place for place in range(len(plan.views)) if view in path(plan, place) and place != view]


class ActiveAtOnce(Rules):
    """R7: every member of a new group is ACTIVE at once."""

    def carried(self, region: Region, me: NodeId, active: Ranges) -> bool:
        return me in region.after


class OldMembersActive(Rules):
    """R7: who was in the old group stays ACTIVE; only who enters syncs."""

    def carried(self, region: Region, me: NodeId, active: Ranges) -> bool:
        return me in region.before & region.after and active != EMPTY


class ShrinkingIsNoChange(Rules):
    """R7: a group that nobody enters counts as the same."""

    def carried(self, region: Region, me: NodeId, active: Ranges) -> bool:
        return me in region.after and region.after <= region.before and active != EMPTY


class OneSource(Rules):
    """R8: the first answer is enough."""

    def sources(self, region: Region, counted: dict[NodeId, Source]) -> tuple[NodeId, ...]:
        return active_in(region.before, counted)

    def is_synced(self, region: Region, counted: dict[NodeId, Source]) -> bool:
        return bool(self.sources(region, counted))


class MajorityOfTheNew(Rules):
    """R8: answers of a majority of the new group, ACTIVE in it or not, are enough."""

    def speaks(self, active: Source) -> bool:
        return True

    def sources(self, region: Region, counted: dict[NodeId, Source]) -> tuple[NodeId, ...]:
        new = tuple(node for node in sorted(region.after) if node in counted)
        return new if len(new) >= majority(len(region.after)) else super().sources(region, counted)

    def is_synced(self, region: Region, counted: dict[NodeId, Source]) -> bool:
        return bool(self.sources(region, counted))


class IdleSources(Rules):
    """R8: also who is not ACTIVE itself is a source."""

    def speaks(self, active: Source) -> bool:
        return True

    def sources(self, region: Region, counted: dict[NodeId, Source]) -> tuple[NodeId, ...]:
        return super().sources(region, dict.fromkeys(counted, Source(RING)))

    def is_synced(self, region: Region, counted: dict[NodeId, Source]) -> bool:
        return bool(self.sources(region, counted))


class HalfOfEach(Rules):
    """R8: ACTIVE in the old epoch or in the new one: both are counted together."""

    def sources(self, region: Region, counted: dict[NodeId, Source]) -> tuple[NodeId, ...]:
        late = {node: active.after for node, active in counted.items() if node in region.after}
        both = {*active_in(region.before, counted), *(node for node, active in late.items() if active != EMPTY)}
        return tuple(sorted(both)) if len(both) >= majority(len(region.after)) else ()

    def is_synced(self, region: Region, counted: dict[NodeId, Source]) -> bool:
        return bool(self.sources(region, counted))


def active_in(group: frozenset[NodeId], counted: dict[NodeId, Source]) -> tuple[NodeId, ...]:
    return tuple(node for node in sorted(group) if node in counted and counted[node].before != EMPTY)


class SourcesWithoutTheView(Rules):
    """R8, R5: a source answers before it has the new epoch installed."""

    def may_answer(self, plan: Plan, view: int, here: int) -> bool:
        return plan.views[view][1] in path(plan, here)


class NothingMerged(Rules):
    """R8: who syncs counts the answers and keeps its own vote."""

    def merged(self, vote: Vote[Value] | None, ballot: Ballot, value: Value) -> Vote[Value] | None:
        return vote


class FirstMerged(Rules):
    """R8: the first vote that is heard of stays, not the highest."""

    def merged(self, vote: Vote[Value] | None, ballot: Ballot, value: Value) -> Vote[Value] | None:
        return vote if vote is not None and vote.accepted is not None else super().merged(vote, ballot, value)


class ActiveBeforeTheVotes(Rules):
    """R8: the ACTIVE mark is on disk before the merged votes are."""

    def stored(self, disk: Disk, after: Disk, what: str) -> Disk:
        return after._replace(vote=disk.vote) if what == "sync" else after


class Off(NamedTuple):
    """A rule switched off, the plan that is searched, and, when nothing is found, why."""

    rule: str
    rules: type[Rules]
    plan: Plan
    why: str = ""

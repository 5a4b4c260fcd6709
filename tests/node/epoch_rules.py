"""The plans of tests.node.epoch_search, and the rules R1 to R8 switched off one by one.

`python -m tests.node.epoch_rules` prints docs/exhaustive-search.md.
"""

from typing import NamedTuple

from node.epochs import Source
from node.paxos import Ballot, Vote
from routing.keyspace import NodeId
from routing.regions import EMPTY, RING, Ranges, Region
from routing.view import majority
from tests.node.epoch_search import KEY, Disk, Plan, Rules, Search, TwoChosen, Value, Views, chain, path

# A slot that moves from {A,B,C} to {N,A,B}: N joins, nearest of all. The owner's ballot, the new owner's; a takeover by
# B.
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
# A member of the group is removed, and then a view changes nothing: what became ACTIVE in between carries over, also
# late.
REMOVED_THEN_SAME = Plan("ABCDM", 3, chain("ABCD", "ACD", "ACDM"), ((1, 0, "A"), (2, 1, "C"), (3, 1, "D")))
# Groups of two.
PAIR = Plan("NAB", 2, chain("AB", "ABN"), ((1, 0, "A"), (1, 1, "B"), (2, 1, "N")))
PAIR_MOVES = Plan("NABC", 2, chain("ABC", "ABCN", "BCN"), ((1, 0, "A"), (2, 1, "N"), (3, 1, "B")))
PAIR_SHRINKS = Plan("AB", 2, chain("AB", "B"), ((1, 0, "A"), (1, 1, "B"), (2, 1, "B")))
# A node is replaced: added, then the other one removed; the new one is nearest of all, or farthest.
REPLACE_NEAR = Plan("NABC", 3, chain("ABC", "ABCN", "BCN"), ((1, 0, "A"), (2, 1, "N"), (3, 1, "B")))
REPLACE_NEAR_TAKEOVER = REPLACE_NEAR._replace(ballots=((1, 0, "A"), (1, 1, "B"), (2, 1, "N"), (3, 1, "B")))
REPLACE_FAR = Plan("ABCN", 3, chain("ABC", "ABCN", "BCN"), ((1, 0, "A"), (2, 1, "C"), (3, 1, "N")))
REPLACE_FAR_TAKEOVER = REPLACE_FAR._replace(ballots=((1, 0, "A"), (1, 1, "B"), (2, 1, "C"), (3, 1, "N")))
# More ballots.
GROW_DUELS = Plan("NABC", 3, chain("ABC", "ABCN"), ((1, 0, "A"), (1, 1, "B"), (2, 1, "N"), (2, 2, "B")))
THERE_AND_BACK_DUELS = Plan(
    "NABC", 3, chain("ABC", "ABCN", "ABC"), ((1, 0, "A"), (2, 1, "N"), (3, 1, "B"), (3, 2, "A"))
)
TWO_JOIN_TAKEOVER = Plan("MNAB", 3, chain("AB", "ABN", "ABNM"), ((1, 0, "A"), (1, 1, "B"), (2, 1, "N"), (3, 1, "M")))
PAIR_DUELS = Plan(
    "NABC", 2, chain("ABC", "ABCN", "BCN"), ((1, 0, "A"), (1, 1, "B"), (2, 1, "N"), (2, 2, "A"), (3, 1, "B"))
)
# No change: the takeover alone. Ballot (1,0,B) is one that no rule allows.
TAKEOVER = Plan("ABC", 3, chain("ABC"), ((1, 0, "A"), (1, 0, "B"), (1, 1, "B"), (1, 2, "A")))
# Two views of one epoch: no plan of a network that keeps R1.
FORK = Plan("NABC", 3, (("ABC", -1), ("ABCN", 0), ("BC", 0)), ((1, 0, "A"), (2, 1, "N"), (2, 2, "B")))
TWO_AT_ONCE = Plan("MNAB", 3, chain("AB", "ABMN"), ((1, 0, "A"), (1, 1, "B"), (2, 1, "M")))


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
    """R6: a node that was away may install the newest view only."""

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


class OneOfTheNew(MajorityOfTheNew):
    """R8: the answer of one of the new group is enough, ACTIVE in it or not."""

    def sources(self, region: Region, counted: dict[NodeId, Source]) -> tuple[NodeId, ...]:
        return tuple(node for node in sorted(region.after) if node in counted)


class OneOfTheSame(Rules):
    """R8: one that is ACTIVE in the new epoch is enough also where the group is the same."""

    def sources(self, region: Region, counted: dict[NodeId, Source]) -> tuple[NodeId, ...]:
        known = tuple(node for node in sorted(region.after) if node in counted and counted[node].after != EMPTY)
        return super().sources(region, counted) or known

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
    """A rule switched off: in the code around the search, or (R1) in the plan; and, when nothing is found, why. A large
    one is searched by `make search` only."""

    rule: str
    what: str
    plan: str
    rules: type[Rules] = Rules
    why: str = ""
    large: bool = False


PLANS: dict[str, Plan] = {
    "takeover": TAKEOVER,
    "pair": PAIR,
    "pair moves": PAIR_MOVES,
    "pair shrinks": PAIR_SHRINKS,
    "grow": GROW,
    "grow, takeover": GROW_TAKEOVER,
    "duel": DUEL,
    "owner removed": OWNER_REMOVED,
    "only shrinks": ONLY_SHRINKS,
    "two removed": TWO_REMOVED,
    "two join": TWO_JOIN,
    "there and back": THERE_AND_BACK,
    "born later": BORN_LATER,
    "removed, then same": REMOVED_THEN_SAME,
    "fork": FORK,
    "two at once": TWO_AT_ONCE,
    "two removed, takeover": TWO_REMOVED_TAKEOVER,
    "two join, takeover": TWO_JOIN_TAKEOVER,
    "replace, near": REPLACE_NEAR,
    "replace, far": REPLACE_FAR,
    "pair, duels": PAIR_DUELS,
    "grow, duels": GROW_DUELS,
}
# With `make search`.
LARGE: dict[str, Plan] = {
    "replace, near, takeover": REPLACE_NEAR_TAKEOVER,
    "replace, far, takeover": REPLACE_FAR_TAKEOVER,
    "there and back, duels": THERE_AND_BACK_DUELS,
}
MAX_STATES = 200_000

OFF: tuple[Off, ...] = (
    Off(
        "R1",
        "two views of one epoch",
        "fork",
        why="a fork needs the fence of a majority of the old group (R5, R8), so one slot is decided on one side at most. That "
        "there is one view an epoch is agreement itself: the search of one slot (tests/node/test_paxos.py) with all members as "
        "its group, and I12 of the simulator",
    ),
    Off(
        "R1",
        "two members changed at once",
        "two at once",
        why="the sync asks a majority of the old group, whatever the new one is. One member at a time keeps a majority of all "
        "members in both views, which views themselves need: one slot has no part in that",
    ),
    Off("R2", "the round goes before the epoch", "duel", BallotsByRound),
    Off("R2", "ballots of an epoch that is over are handled", "grow", OldEpochsAdmitted),
    Off(
        "R2",
        "ballots of an epoch that is not installed are handled",
        "grow, takeover",
        NewEpochsAdmitted,
        why="the proposer is ACTIVE and knows all that was chosen, and who promised above its epoch refuses everything below. "
        "To judge a ballot by the group of another view is what goes wrong: that takes slots whose groups do not overlap",
        large=True,
    ),
    Off("R3", "the owner skips phase 1 in every epoch", "owner removed", FastInEveryEpoch),
    Off("R3", "a standby skips phase 1", "takeover", FastOfAnybody),
    Off("R3", "votes below the birth epoch", "born later", VotesBelowBirth),
    Off("R4", "votes answered before they are on disk", "takeover", VotesInMemory),
    Off("R4", "a proposer that sends before its value is on disk", "takeover", ProposerForgets),
    Off("R5", "a fence that a crash forgets", "grow", FenceInMemory),
    Off("R5", "a fence per slot", "grow", FencePerSlot),
    Off("R6", "views are skipped", "there and back", SkipsViews),
    Off("R7", "everybody is ACTIVE at once", "grow", ActiveAtOnce),
    Off("R7", "old members stay ACTIVE", "only shrinks", OldMembersActive),
    Off("R7", "a group that only shrinks is not synced", "only shrinks", ShrinkingIsNoChange),
    Off("R8", "one source is enough", "grow", OneSource),
    Off("R8", "a majority of the new group is enough", "only shrinks", MajorityOfTheNew),
    Off("R8", "one of the new group is enough, ACTIVE or not", "only shrinks", OneOfTheNew),
    Off(
        "R8",
        "one ACTIVE source is enough also where the group is the same",
        "removed, then same",
        OneOfTheSame,
        why="it, too, knows all that was chosen before the group became what it is; for what was chosen since, a majority of this "
        "group has voted, and who comes late is none of it. Nobody needs it: the late one syncs the epoch in which the group "
        "changed, and carries that over ([ADR 35](adr/0035-one-that-is-active-tells-who-comes-late.md))",
        large=True,
    ),
    Off("R8", "a source need not be ACTIVE", "two removed", IdleSources),
    Off("R8", "a source need not have the view", "grow", SourcesWithoutTheView),
    Off("R8", "votes are not merged", "grow", NothingMerged),
    Off("R8", "not the highest vote is kept", "grow, takeover", FirstMerged),
    Off("R8", "the ACTIVE mark is on disk before the votes", "only shrinks", ActiveBeforeTheVotes),
)


def page() -> str:
    """docs/exhaustive-search.md."""
    lines = [
        "# Exhaustive search of one slot while views change",
        "",
        "`tests/node/epoch_search.py` visits every schedule of a few small plans: one slot, two to five nodes, k = 2 and 3, up to two",
        "changes of the view, one crash, a takeover. It calls `node.paxos` and `node.epochs`, the functions that nodes call. Messages may",
        "be lost, come twice and in any order; a node installs a view, answers, votes and syncs whenever the rules allow it. Nodes",
        "that no rule can tell apart are merged. In each state at most one value is chosen, and who is ACTIVE where its group has changed",
        "knows what was chosen before.",
        "",
        "Made by `python -m tests.node.epoch_rules`; `tests/node/test_epoch_search.py` checks it. `make search` checks",
        "all of it, and larger plans; `make test` leaves out the two largest searches that find nothing with a rule off.",
        "",
        f"## All rules on: no schedule chooses two values (bound: {MAX_STATES:,} states a plan)",
        "",
        "| plan | | states |",
        "|---|---|---:|",
    ]
    lines += [f"| {name} | {plan.words} | {Search(plan).exhaust(MAX_STATES):,} |" for name, plan in PLANS.items()]
    found = [(off, search(off)) for off in OFF]
    lines += [
        "",
        "## One rule off: two values are chosen",
        "",
        "States: how many were visited, breadth first, until two values were chosen; the schedule below is a shortest one. Ballots are",
        "(epoch, round, node); v1 is the own value of the lowest ballot of the plan, v2 of the next; v1' is what its node proposes anew",
        "after a crash. A node outside the group installs views at once, which is not said; a sync names its sources and their votes.",
        "",
        "| rule | switched off | plan | states |",
        "|---|---|---|---:|",
    ]
    for off, result in found:
        states = f"{result.states:,}" if isinstance(result, TwoChosen) else f"{result:,}, nothing found"
        lines.append(f"| {off.rule} | {off.what} | {off.plan} | {states} |")
    lines += ["", "### Not found, and why", ""]
    lines += [f"* {off.rule}, {off.what}: {off.why}." for off, result in found if not isinstance(result, TwoChosen)]
    lines += ["", "### The schedules", ""]
    for off, result in found:
        if isinstance(result, TwoChosen):
            lines.append(f"**{off.rule}, {off.what}** ({off.plan}): {'; '.join(result.schedule)}.")
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def search(off: Off) -> TwoChosen | int:
    """What is found with a rule switched off: the schedule, or how many states there are."""
    try:
        return Search(PLANS[off.plan], off.rules()).exhaust(MAX_STATES)
    except TwoChosen as found:
        return found


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201

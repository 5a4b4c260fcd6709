"""Every schedule of one slot while views change: a search over node.paxos and node.epochs (design R1 to R8).

A `State` is what each node holds in memory and on disk, and everything that was ever sent. A message may arrive at any
time, again, or never, so loss, repetition and every order are in the search without being actions of their own; so is a
proposer that dies. What is on disk survives a crash, the rest does not. States are merged by value, and nodes that no
rule can tell apart (no ballot of theirs, the same groups) change places freely.

The views are given: a node installs the next one whenever it likes, as if it was decided from the start. That is more than
the barrier (R9) allows, and phase 2 may use any majority of promises, at any time: more schedules than there are, never fewer.
What cannot matter any more is not kept: promises to a ballot that has its value, answers that nobody needs for a sync.

`python -m tests.node.epoch_search` prints docs/exhaustive-search.md: how many states each plan has, and for each rule
switched off the shortest schedule that chooses two values.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import product
from typing import Final, Generic, NamedTuple, TypeVar

from chain.link import LinkHash, Slot
from chain.rows import AccountHead
from node import paxos
from node.acceptor import is_fast
from node.epochs import Admission, admit, carried_over, first_active, is_synced, sources_of, to_sync
from node.messages import SlotName
from node.paxos import Ballot, Proposer, Refusal, Vote
from routing.keyspace import ID_BYTES, NodeId, route_key
from routing.regions import EMPTY, RING, Ranges, Region, regions
from routing.view import FIRST_EPOCH, NOBODY, Member, View, majority

SLOT: Final = Slot(bytes(32))  # ids ascend with the distance to it
KEY: Final = route_key(SLOT)
BIRTH: Final = FIRST_EPOCH
KEPT_EPOCHS: Final = 2  # as node.syncing

Value = str
T = TypeVar("T")


class Plan(NamedTuple):
    """`nodes` in order of their distance to the slot. `views`: (members, the place of the view before). `ballots`: (epoch,
    round, node), each tried by its node whenever the rules allow it. `crashes`: of nodes, in all."""

    nodes: str
    k: int
    views: tuple[tuple[str, int], ...]
    ballots: tuple[tuple[int, int, str], ...]
    crashes: int = 1

    @property
    def words(self) -> str:
        """For people: k, the views and the ballots."""
        views = " -> ".join("{" + ",".join(members) + "}" for members, _ in self.views)
        if any(before != place - 1 for place, (_, before) in enumerate(self.views)):
            views = views.replace(" -> ", " | ").replace(" | ", " -> ", 1)
        return f"k = {self.k}, {views}, ballots {', '.join(f'({e},{r},{n})' for e, r, n in self.ballots)}"


def chain(*views: str) -> tuple[tuple[str, int], ...]:
    """Views one after the other."""
    return tuple((members, place - 1) for place, members in enumerate(views))


class TwoChosen(AssertionError):
    """Two values were chosen in one slot. `schedule`: what happened, step by step; `states`: how many were seen before."""

    def __init__(self, schedule: list[str], states: int) -> None:
        super().__init__("\n".join(schedule))
        self.schedule = schedule
        self.states = states


class TooMany(AssertionError):
    """The plan has more states than its bound."""


class Disk(NamedTuple):
    """What a crash leaves: the place of the view, a bit for each view in which the node is ACTIVE, the number of its vote."""

    view: int
    active: int
    vote: int


class Node(NamedTuple):
    """One node; and what it ever sent, as sets of numbers (bits): promises, votes, answers for a sync."""

    memory: Disk
    disk: Disk
    promises: int = 0
    votes: int = 0
    answers: int = 0
    crashed: bool = False


class State(NamedTuple):
    """`started`: the ballots whose phase 1 was sent; `proposals`: all that phase 2 ever sent (bits)."""

    started: int
    proposals: int
    nodes: tuple[Node, ...]


class Promise(NamedTuple):
    ballot: Ballot
    accepted: Ballot | None
    value: Value | None


class Proposal(NamedTuple):
    """What phase 2 of a ballot sends, and what is voted for. `view`: where the group of the ballot was pinned."""

    ballot: Ballot
    value: Value
    view: int


class Answer(NamedTuple):
    """What a source of a sync says for `view`: whether it is ACTIVE in the one before, and its vote."""

    view: int
    active: bool
    accepted: Ballot | None
    value: Value | None


class Label(NamedTuple):
    """What happened, for people: `text` has a place for the names of `nodes`. `order`: how nodes changed places after it."""

    text: str
    nodes: tuple[int, ...]
    order: tuple[int, ...]


Step = tuple[Label, State]


class Rules:
    """What a node does around the functions of node.paxos and node.epochs. A test switches rules off in a subclass."""

    ballot: type[Ballot] = Ballot

    def next_views(self, plan: Plan, view: int) -> list[int]:
        """R6: one after the other."""
        return [place for place, (_, before) in enumerate(plan.views) if before == view]

    def admits(self, view: View, me: NodeId, ballot: Ballot, vote: Vote[Value] | None, *, active: bool) -> bool:
        """R2, R3, R7."""
        group = view.group(KEY)
        fast = self.fast(ballot, group, view.epoch)
        return admit(ballot, me, group, view.epoch, BIRTH, fast=fast, active=active) is Admission.VOTE

    def fast(self, ballot: Ballot, group: tuple[NodeId, ...], epoch: int) -> bool:
        """R3."""
        return is_fast(AT, ballot.node, HEAD, group, epoch)

    def may_start(self, ballot: Ballot, vote: Vote[Value] | None) -> bool:
        """R3, R4: round 0 before anything was promised; every other ballot is above the promise."""
        return vote is None if ballot.round == 0 else vote is None or vote.promised < ballot

    def carried(self, region: Region, me: NodeId, active: Ranges) -> bool:
        """R7."""
        return carried_over((region,), me, active) != EMPTY

    def to_sync(self, region: Region, me: NodeId, active: Ranges) -> bool:
        """R7."""
        return bool(to_sync((region,), me, active))

    def may_answer(self, plan: Plan, view: int, here: int) -> bool:
        """R8: a source has the new epoch installed."""
        return view in path(plan, here)

    def sources(self, region: Region, counted: dict[NodeId, Ranges]) -> tuple[NodeId, ...]:
        """R8: whose answers count."""
        return sources_of(region, counted)

    def is_synced(self, region: Region, counted: dict[NodeId, Ranges]) -> bool:
        """R8."""
        return is_synced(region, counted)

    def merged(self, vote: Vote[Value] | None, ballot: Ballot, value: Value) -> Vote[Value] | None:
        """R8: the highest vote of all."""
        return paxos.merge(vote, ballot, value)

    def stored(self, disk: Disk, after: Disk, what: str) -> Disk:
        """R4, R5, R8: what is on disk when the node is at `after`. `what`: a "view" was installed, a "sync" finished, a "vote"
        or its "own" vote for its own ballot was cast."""
        return after


AT: Final = SlotName(SLOT, "x", 1)
HEAD: Final = AccountHead("x", "CZK", bytes(32), False, 0, LinkHash(SLOT), 0, BIRTH, 0)


@cache
def path(plan: Plan, view: int) -> tuple[int, ...]:
    """The views that lead to this one, itself included, oldest first."""
    before = plan.views[view][1]
    return (*(path(plan, before) if before >= 0 else ()), view)


def make_views(plan: Plan) -> tuple[View, ...]:
    """The views of a plan; only their epochs, members and k matter here."""
    views = []
    for place, (members, _) in enumerate(plan.views):
        epoch = FIRST_EPOCH + len(path(plan, place)) - 1
        found = tuple(Member(node_id(plan, name), bytes(32), 1) for name in plan.nodes if name in members)
        views.append(View(epoch, bytes(32), found, plan.k, bytes(32), 0, NOBODY))
    return tuple(views)


def node_id(plan: Plan, name: str) -> NodeId:
    return NodeId(bytes([plan.nodes.index(name) + 1]) + bytes(ID_BYTES - 1))


class Search:
    """The states that a plan can reach under some rules."""

    def __init__(self, plan: Plan, rules: Rules | None = None) -> None:
        self.plan = plan
        self.rules = rules or Rules()
        self.views = make_views(plan)
        self.ids = [node_id(plan, name) for name in plan.nodes]
        self.place = {node: i for i, node in enumerate(self.ids)}
        self.ballots = sorted(self.rules.ballot(e, r, node_id(plan, name)) for e, r, name in plan.ballots)
        self.groups = [frozenset(view.group(KEY)) for view in self.views]
        self.region = [self._region(place) for place in range(len(plan.views))]
        self.next_views = [self.rules.next_views(plan, place) for place in range(len(plan.views))]
        self.twins = self._twins()
        self._votes = Numbers[Vote[Value] | None]()
        self._promises = Numbers[Promise]()
        self._proposals = Numbers[Proposal]()
        self._answers = Numbers[Answer]()
        self._memo: dict[tuple[object, ...], object] = {}
        active = [int(first_active(self.views[0], node) != EMPTY) for node in self.ids]
        nothing = [Disk(0, bit, self._votes.of(None)) for bit in active]
        self.first = State(0, 0, tuple(Node(disk, disk) for disk in nothing))

    def exhaust(self, limit: int) -> int:
        """Visit every state, breadth first; how many there are. Raises `TwoChosen`, or `TooMany` above `limit`."""
        came: dict[State, tuple[State, Label] | None] = {self.first: None}
        rim = [self.first]
        while rim:
            found = []
            for state in rim:
                for label, after in self.steps(state):
                    if after in came:
                        continue
                    came[after] = (state, label)
                    if len(self.chosen(after)) > 1:
                        raise TwoChosen(self._tell(came, after), len(came))
                    found.append(after)
                if len(came) > limit:
                    raise TooMany(f"more than {limit} states: make the plan smaller")
            rim = found
        return len(came)

    def chosen(self, state: State) -> set[Value]:
        """The values that have the votes of a majority of their ballot's group."""
        some = 0
        for node in state.nodes:
            some |= node.votes
        values = set()
        for number in bits(some):
            proposal = self._proposals[number]
            group = self.groups[proposal.view]
            voters = sum(state.nodes[self.place[node]].votes >> number & 1 for node in group)
            if voters >= majority(len(group)):
                values.add(proposal.value)
        return values

    # --- what can happen next ---

    def steps(self, state: State) -> Iterator[Step]:
        crashes = sum(node.crashed for node in state.nodes)
        for i, node in enumerate(state.nodes):
            yield from self._install(state, i, node)
            yield from self._sync(state, i, node)
            yield from self._answer(state, i, node)
            for number, ballot in enumerate(self.ballots):
                if self.place[ballot.node] == i:
                    yield from self._start(state, i, node, number, ballot)
                    yield from self._propose(state, i, node, number, ballot)
                elif state.started >> number & 1 and not state.proposals & self._of_ballot(
                    self._proposals.items, ballot
                ):
                    yield from self._prepare(state, i, node, ballot)
            for number in bits(state.proposals):
                yield from self._accept(state, i, node, number)
            if node.memory != node.disk and crashes < self.plan.crashes:
                after = node._replace(memory=node.disk, crashed=True)
                yield self._step(state, i, after, "{} crashes and starts again")

    def _install(self, state: State, i: int, node: Node) -> Iterator[Step]:
        """R5, R6, R7."""
        here = node.memory
        for view in self.next_views[here.view]:
            region = self.region_between(here.view, view)
            kept = self.rules.carried(region, self.ids[i], ranges(here.active >> here.view & 1))
            after = Disk(view, here.active | kept << view, here.vote)
            yield self._step(state, i, self._keep(node, after, "view"), f"{{}} installs {self.say_view(view)}")

    def _start(self, state: State, i: int, node: Node, number: int, ballot: Ballot) -> Iterator[Step]:
        here = node.memory
        vote = self._votes[here.vote]
        if not self._admits(i, here, ballot) or not self.rules.may_start(ballot, vote):
            return
        if ballot.round == 0:
            yield from self._phase_2(state, i, node, ballot, [self._own(ballot, node)])
            return
        promised = paxos.prepare(vote, ballot)
        assert isinstance(promised, Vote), (ballot, promised)
        after = self._keep(node, here._replace(vote=self._votes.of(promised)), "own")
        promise = self._promises.of(Promise(ballot, promised.accepted, promised.value))
        after = after._replace(promises=after.promises | 1 << promise)
        label = f"{{}} begins ballot {self.say(ballot)}"
        yield self._step(state._replace(started=state.started | 1 << number), i, after, label)

    def _prepare(self, state: State, i: int, node: Node, ballot: Ballot) -> Iterator[Step]:
        here = node.memory
        if not self._admits(i, here, ballot):
            return
        promised = paxos.prepare(self._votes[here.vote], ballot)
        if isinstance(promised, Refusal):
            return
        after = self._keep(node, here._replace(vote=self._votes.of(promised)), "vote")
        promise = self._promises.of(Promise(ballot, promised.accepted, promised.value))
        found = f" and tells of {promised.value}" if promised.value else ""
        after = after._replace(promises=after.promises | 1 << promise)
        yield self._step(state, i, after, f"{{}} promises {self.say(ballot)}{found}")

    def _propose(self, state: State, i: int, node: Node, number: int, ballot: Ballot) -> Iterator[Step]:
        """Phase 2, with any majority of the promises."""
        if not state.started >> number & 1 or not self._admits(i, node.memory, ballot):
            return
        told = tuple(other.promises & self._of_ballot(self._promises.items, ballot) for other in state.nodes)
        own = self._own(ballot, node)
        yield from self._phase_2(state, i, node, ballot, self._values(ballot, node.memory.view, told, own))

    def _values(self, ballot: Ballot, view: int, told: tuple[int, ...], own: Value) -> list[Value]:
        """What may be proposed: what some majority of the promises leaves."""
        key = ("values", ballot, view, told, own)
        if key not in self._memo:
            group = self.views[view].group(KEY)
            heard = [[None, *(self._promises[n] for n in bits(promises))] for promises in told]
            values = set()
            for chosen in product(*heard):
                proposer: Proposer[Value] = Proposer(ballot, group)
                for node, promise in zip(self.ids, chosen, strict=True):
                    if promise is not None:
                        proposer.on_promise(node, promise.ballot, promise.accepted, promise.value)
                if chosen[self.place[ballot.node]] is not None and proposer.prepared:
                    values.add(proposer.found or own)
            self._memo[key] = sorted(values)
        return self._memo[key]  # type: ignore[return-value]

    def _phase_2(self, state: State, i: int, node: Node, ballot: Ballot, values: list[Value]) -> Iterator[Step]:
        here = node.memory
        if any(self._proposals[n].ballot == ballot and self._life(n) == node.crashed for n in bits(state.proposals)):
            return
        for value in values:
            vote = paxos.accept(self._votes[here.vote], ballot, value)
            if isinstance(vote, Refusal):
                continue
            proposal = 1 << self._proposals.of(Proposal(ballot, value, here.view))
            after = self._keep(node, here._replace(vote=self._votes.of(vote)), "own")
            after = after._replace(votes=after.votes | proposal)
            label = f"{{}} proposes {value} at {self.say(ballot)} and votes for it"
            yield self._step(state._replace(proposals=state.proposals | proposal), i, after, label)

    def _accept(self, state: State, i: int, node: Node, number: int) -> Iterator[Step]:
        here = node.memory
        ballot, value, view = self._proposals[number]
        if not self._admits(i, here, ballot):
            return
        vote = paxos.accept(self._votes[here.vote], ballot, value)
        if isinstance(vote, Refusal):
            return
        assert vote.value is not None
        after = self._keep(node, here._replace(vote=self._votes.of(vote)), "vote")
        after = after._replace(votes=after.votes | 1 << self._proposals.of(Proposal(ballot, vote.value, view)))
        yield self._step(state, i, after, f"{{}} votes for {vote.value} at {self.say(ballot)}")

    def _answer(self, state: State, i: int, node: Node) -> Iterator[Step]:
        """R8: tell whoever syncs."""
        here = node.memory
        for view, region in enumerate(self.region):
            if (
                region is None
                or self.ids[i] not in region.before
                or not self.rules.may_answer(self.plan, view, here.view)
            ):
                continue
            active = bool(here.active >> self.plan.views[view][1] & 1)
            if not self.rules.sources(region, {self.ids[i]: ranges(active)}):
                continue
            waiting = (
                other
                for j, other in enumerate(state.nodes)
                if j != i and self.ids[j] in region.after and not (other.memory.active & other.disk.active) >> view & 1
            )
            if any(waiting):
                vote = self._votes[here.vote]
                accepted, value = (vote.accepted, vote.value) if vote is not None else (None, None)
                answer = self._answers.of(Answer(view, active, accepted, value))
                after = node._replace(answers=node.answers | 1 << answer)
                told = f"its vote for {value}" if value is not None else "that it has no vote"
                yield self._step(state, i, after, f"{{}} tells those who sync {self.say_view(view)} {told}")

    def _sync(self, state: State, i: int, node: Node) -> Iterator[Step]:
        """R8: answers of a majority, merged and ACTIVE at once; what stays the same in later views is ACTIVE there too (R7)."""
        here = node.memory
        me = self.ids[i]
        for view in path(self.plan, here.view)[-KEPT_EPOCHS:]:
            region = self.region[view]
            if region is None or not self.rules.to_sync(region, me, ranges(here.active >> view & 1)):
                continue
            told = tuple(other.answers for other in state.nodes)
            for vote, who in self._merges(i, here, view, region, told):
                active = here.active | 1 << view
                for before, later in zip(path(self.plan, here.view), path(self.plan, here.view)[1:], strict=False):
                    if before >= view:
                        between = self.region_between(before, later)
                        active |= self.rules.carried(between, me, ranges(active >> before & 1)) << later
                after = self._keep(node, Disk(here.view, active, vote), "sync")
                label = f"{{}} has synced {self.say_view(view)} with {' and '.join(['{}'] * len(who))}"
                yield self._step(state, i, after, label, *who)

    def _merges(
        self, i: int, here: Disk, view: int, region: Region, told: tuple[int, ...]
    ) -> list[tuple[int, tuple[int, ...]]]:
        """The votes that a sync may end with, each with sources that make it."""
        before = self.plan.views[view][1]
        key = ("merges", i, here.vote, here.active >> before & 1, view, told)
        if key not in self._memo:
            heard: list[list[Answer | None]] = []
            for j, node in enumerate(self.ids):
                given = [self._answers[n] for n in bits(told[j])] if j != i and node in region.before else []
                heard.append([None, *(answer for answer in given if answer.view == view)])
            found: dict[int, tuple[int, ...]] = {}
            for answers in product(*heard):
                counted = {self.ids[j]: ranges(a.active) for j, a in enumerate(answers) if a is not None}
                counted[self.ids[i]] = ranges(here.active >> before & 1)
                if not self.rules.is_synced(region, counted):
                    continue
                vote = self._votes[here.vote]
                sources = [self.place[node] for node in self.rules.sources(region, counted)]
                for j in sources:
                    answer = answers[j]
                    if answer is not None and answer.accepted is not None and answer.value is not None:
                        vote = self.rules.merged(vote, answer.accepted, answer.value)
                found.setdefault(self._votes.of(vote), tuple(sources))
            self._memo[key] = sorted(found.items())
        return self._memo[key]  # type: ignore[return-value]

    # --- helpers ---

    def _admits(self, i: int, here: Disk, ballot: Ballot) -> bool:
        key = ("admits", i, here, ballot)
        if key not in self._memo:
            active = bool(here.active >> here.view & 1)
            vote = self._votes[here.vote]
            self._memo[key] = self.rules.admits(self.views[here.view], self.ids[i], ballot, vote, active=active)
        return bool(self._memo[key])

    def _keep(self, node: Node, after: Disk, what: str) -> Node:
        return node._replace(memory=after, disk=self.rules.stored(node.disk, after, what))

    def _own(self, ballot: Ballot, node: Node) -> Value:
        """Another one after a crash, for that is what a queue that filled differently does."""
        return f"v{self.ballots.index(ballot) + 1}" + "'" * node.crashed

    def _life(self, number: int) -> bool:
        """Whether a value is of a life after a crash."""
        return self._proposals[number].value.endswith("'")

    def _of_ballot(self, items: Iterable[Promise | Proposal], ballot: Ballot) -> int:
        return sum(1 << number for number, item in enumerate(items) if item.ballot == ballot)

    def _step(self, state: State, i: int, node: Node, text: str, *others: int) -> Step:
        """The state with node `i` changed, twins in one order."""
        nodes = (*state.nodes[:i], node, *state.nodes[i + 1 :])
        order = list(range(len(nodes)))
        for twins in self.twins:
            ordered = sorted(twins, key=nodes.__getitem__)
            for place, twin in zip(twins, ordered, strict=True):
                order[place] = twin
        return Label(text, (i, *others), tuple(order)), state._replace(nodes=tuple(nodes[j] for j in order))

    def _twins(self) -> list[list[int]]:
        """Nodes that no rule can tell apart: without ballots, and in the same groups."""
        kinds: dict[tuple[bool, ...], list[int]] = {}
        for i, node in enumerate(self.ids):
            if all(ballot.node != node for ballot in self.ballots):
                kinds.setdefault(tuple(node in group for group in self.groups), []).append(i)
        return [twins for twins in kinds.values() if len(twins) > 1]

    def _region(self, place: int) -> Region | None:
        before = self.plan.views[place][1]
        return self.region_between(before, place) if before >= 0 else None

    @cache  # noqa: B019 - a search lives as long as its test
    def region_between(self, before: int, after: int) -> Region:
        """The region of the slot."""
        key = int.from_bytes(KEY)
        return next(r for r in regions(self.views[before], self.views[after]) if r.first <= key <= r.last)

    def say(self, ballot: Ballot) -> str:
        return f"({ballot.epoch},{ballot.round},{self.plan.nodes[self.place[ballot.node]]})"

    def say_view(self, place: int) -> str:
        return f"epoch {self.views[place].epoch} {{{{{','.join(self.plan.views[place][0])}}}}}"

    def _tell(self, came: dict[State, tuple[State, Label] | None], state: State) -> list[str]:
        """How a state was reached, in words."""
        labels = []
        step = came[state]
        while step is not None:
            labels.append(step[1])
            step = came[step[0]]
        names = list(self.plan.nodes)
        said = []
        for text, nodes, order in reversed(labels):
            said.append(text.format(*(names[i] for i in nodes)))
            names = [names[j] for j in order]
        return said


class Numbers(Generic[T]):
    """A number for each value, in the order in which they came."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self._numbers: dict[T, int] = {}

    def of(self, item: T) -> int:
        number = self._numbers.setdefault(item, len(self.items))
        if number == len(self.items):
            self.items.append(item)
        return number

    def __getitem__(self, number: int) -> T:
        return self.items[number]


def bits(number: int) -> Iterator[int]:
    """The places of the ones."""
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low


def ranges(active: int) -> Ranges:
    """Where a node is ACTIVE: there is one slot."""
    return RING if active else EMPTY

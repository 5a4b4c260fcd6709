"""Every schedule of one slot while views change: a search over node.paxos and node.epochs (design R1 to R8).

A `State` is what each node holds in memory and on disk, and everything that was ever sent. A message may arrive at any
time, again, or never, so loss, repetition and every order are in the search without being actions of their own; so is a
proposer that dies. What is on disk survives a crash, the rest does not. States are merged by value, and nodes that no
rule can tell apart (no ballot of theirs, the same groups) change places freely.

The views are given: a node installs the next one whenever it likes, as if it was decided from the start. That is more
than the barrier (R9) allows, and phase 2 may use any majority of promises, at any time: more schedules than there are,
never fewer. What cannot matter any more is not kept: promises to a ballot that has its value, answers that nobody needs
for a sync. What a source could say for a sync it says at every moment; who syncs takes any of it, or none.

`python -m tests.node.epoch_search` prints docs/exhaustive-search.md: how many states each plan has, and for each rule
switched off the shortest schedule that chooses two values.
"""

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec

from chain.link import LinkHash, Slot
from chain.rows import AccountHead
from node import paxos
from node.epochs import Admission, Source, admit, carried_over, first_active, is_synced, sources_of, to_sync
from node.messages import SlotName
from node.paxos import Ballot, Proposer, Refusal, Vote
from node.slots import is_fast
from node.syncing import KEPT_EPOCHS
from routing.keyspace import ID_BYTES, NodeId, route_key
from routing.regions import EMPTY, RING, Ranges, Region, regions
from routing.view import FIRST_EPOCH, NOBODY, Member, View, majority

SLOT: Final = Slot(bytes(32))  # ids ascend with the distance to it
KEY: Final = route_key(SLOT)

Value = str
Views = tuple[View, ...]
T = TypeVar("T")


class Plan(NamedTuple):
    """`nodes` in order of their distance to the slot. `views`: (members, the place of the view before). `ballots`:
    (epoch, round, node), each tried by its node whenever the rules allow it. `crashes`: of nodes, in all. `birth`: the
    slot's epoch."""

    nodes: str
    k: int
    views: tuple[tuple[str, int], ...]
    ballots: tuple[tuple[int, int, str], ...]
    crashes: int = 1
    birth: int = FIRST_EPOCH

    @property
    def words(self) -> str:
        """For people: k, the views and the ballots."""
        views = " -> ".join("{" + ",".join(members) + "}" for members, _ in self.views)
        if any(before != place - 1 for place, (_, before) in enumerate(self.views)):
            views = views.replace(" -> ", " | ").replace(" | ", " -> ", 1)
        born = f", slot born in epoch {self.birth}" if self.birth != FIRST_EPOCH else ""
        return f"k = {self.k}, {views}{born}, ballots {', '.join(f'({e},{r},{n})' for e, r, n in self.ballots)}"


def chain(*views: str) -> tuple[tuple[str, int], ...]:
    """Views one after the other."""
    return tuple((members, place - 1) for place, members in enumerate(views))


class TwoChosen(AssertionError):
    """Two values were chosen in one slot. `schedule`: what happened, step by step; `states`: how many were seen
    before."""

    def __init__(self, schedule: list[str], states: int) -> None:
        super().__init__("\n".join(schedule))
        self.schedule = schedule
        self.states = states


class TooMany(AssertionError):
    """The plan has more states than its bound."""


class Disk(NamedTuple):
    """What a crash leaves: the place of the view, a bit for each view in which the node is ACTIVE, the number of its
    vote."""

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
    """What phase 2 of a ballot sends, and what is voted for. `view`: where the group of the ballot was pinned. `again`:
    its node sent it after a crash."""

    ballot: Ballot
    value: Value
    view: int
    again: bool


class Answer(NamedTuple):
    """What a source of a sync says for `view`: where it is ACTIVE in the one before and in this one, and its vote."""

    view: int
    active: Source
    accepted: Ballot | None
    value: Value | None


class Label(NamedTuple):
    """What happened, for people: `text` has a place for the names of `nodes`. `order`: how nodes changed places after
    it."""

    text: str
    nodes: tuple[int, ...]
    order: tuple[int, ...]


Step = tuple[Label, State]


class Rules:
    """What a node does around the functions of node.paxos and node.epochs. A test switches rules off in a subclass."""

    ballot: type[Ballot] = Ballot
    old_epochs = False  # ballots of an epoch that is over may go on

    def next_views(self, plan: Plan, view: int) -> list[int]:
        """R6: one after the other."""
        return [place for place, (_, before) in enumerate(plan.views) if before == view]

    def admits(
        self, views: Views, me: NodeId, ballot: Ballot, vote: Vote[Value] | None, birth: int, *, active: bool
    ) -> bool:
        """R2, R3, R7. `views`: those that `me` has installed, oldest first; `active`: in the newest."""
        view = views[-1]
        group = view.group(KEY)
        fast = self.fast(ballot, group, view.epoch, birth)
        return admit(ballot, me, group, view.epoch, birth, fast=fast, active=active) is Admission.VOTE

    def fast(self, ballot: Ballot, group: tuple[NodeId, ...], epoch: int, birth: int) -> bool:
        """R3."""
        return is_fast(AT, ballot.node, msgspec.structs.replace(HEAD, epoch=birth), group, epoch)

    def may_start(self, ballot: Ballot, vote: Vote[Value] | None) -> bool:
        """R3, R4: round 0 before anything was promised; every other ballot is above the promise."""
        return vote is None if ballot.round == 0 else vote is None or vote.promised < ballot

    def carried(self, region: Region, me: NodeId, active: Ranges) -> bool:
        """R7."""
        return carried_over((region,), me, active) != EMPTY

    def to_sync(self, region: Region, me: NodeId, active: Ranges) -> bool:
        """R7."""
        return bool(to_sync((region,), me, active))

    def speaks(self, active: Source) -> bool:
        """R8: only who is ACTIVE itself, in the old epoch or in the new one. (Another's answer would not count.)"""
        return active != Source(EMPTY, EMPTY)

    def may_answer(self, plan: Plan, view: int, here: int) -> bool:
        """R8: a source has the new epoch installed."""
        return view in path(plan, here)

    def asked(self, region: Region) -> frozenset[NodeId]:
        """R8: the old group, and, by who comes late, the new one."""
        return region.before | region.after

    def sources(self, region: Region, counted: dict[NodeId, Source]) -> tuple[NodeId, ...]:
        """R8: whose answers count."""
        return sources_of(region, counted)

    def is_synced(self, region: Region, counted: dict[NodeId, Source]) -> bool:
        """R8."""
        return is_synced(region, counted)

    def merged(self, vote: Vote[Value] | None, ballot: Ballot, value: Value) -> Vote[Value] | None:
        """R8: the highest vote of all."""
        return paxos.merge(vote, ballot, value)

    def stored(self, disk: Disk, after: Disk, what: str) -> Disk:
        """R4, R5, R8: what is on disk when the node is at `after`. `what`: a "view" was installed, a "sync" finished, a
        "vote" or its "own" vote for its own ballot was cast."""
        return after


AT: Final = SlotName(SLOT, "x", 1)
HEAD: Final = AccountHead("x", "CZK", bytes(32), False, 0, LinkHash(SLOT), 0, FIRST_EPOCH, 0)


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
        nodes = tuple(self._go_on(i, Node(disk, disk)) for i, disk in enumerate(nothing))
        self.first = State(0, 0, tuple(self._answering(nodes, i, node) for i, node in enumerate(nodes)))

    def exhaust(self, limit: int, *, strict: bool = False) -> int:
        """Visit every state, breadth first; how many there are. Raises `TwoChosen`, or `TooMany` above `limit`.
        `strict`: see `check_known`."""
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
                    if strict:
                        self.check_known(after)
                    found.append(after)
                if len(came) > limit:
                    raise TooMany(f"more than {limit} states: make the plan smaller")
            rim = found
        return len(came)

    def check_known(self, state: State) -> None:
        """R7, R8: who is ACTIVE where the group has changed knows all that was chosen before the change."""
        for proposal in self._chosen(state):
            for i, node in enumerate(state.nodes):
                vote = self._votes[node.memory.vote]
                for view, region in enumerate(self.region):
                    changed = region is not None and region.before != region.after
                    later = self.views[view].epoch > proposal.ballot.epoch
                    if changed and later and node.memory.active >> view & 1:
                        knows = vote is not None and vote.value == proposal.value
                        assert knows, f"{self.plan.nodes[i]} does not know {proposal}: {state}"

    def chosen(self, state: State) -> set[Value]:
        """The values that have the votes of a majority of their ballot's group."""
        return {proposal.value for proposal in self._chosen(state)}

    def _chosen(self, state: State) -> list[Proposal]:
        some = 0
        for node in state.nodes:
            some |= node.votes
        chosen = []
        for number in bits(some):
            proposal = self._proposals[number]
            group = self.groups[proposal.view]
            voters = sum(state.nodes[self.place[node]].votes >> number & 1 for node in group)
            if voters >= majority(len(group)):
                chosen.append(proposal)
        return chosen

    # --- what can happen next ---

    def steps(self, state: State) -> Iterator[Step]:
        crashes = sum(node.crashed for node in state.nodes)
        for i, node in enumerate(state.nodes):
            yield from self._install(state, i, node)
            yield from self._sync(state, i, node)
            for number, ballot in enumerate(self.ballots):
                if self.place[ballot.node] == i:
                    yield from self._start(state, i, node, number, ballot)
                    yield from self._propose(state, i, node, number, ballot)
                elif state.started >> number & 1 and not self._is_proposed(state, ballot):
                    yield from self._prepare(state, i, node, ballot)
            for number in bits(state.proposals):
                yield from self._accept(state, i, node, number)
            if node.memory != node.disk and crashes < self.plan.crashes:
                after = node._replace(memory=node.disk, crashed=True)
                yield self._step(state, i, after, "{} crashes and starts again")

    def _install(self, state: State, i: int, node: Node) -> Iterator[Step]:
        """R5, R6, R7."""
        for view in self.next_views[node.memory.view]:
            after = self._go_on(i, self._installed(i, node, view))
            label = f"{{}} installs {self.say_view(after.memory.view)}"
            rest = self._without_old_ballots(state._replace(nodes=put(state.nodes, i, after)), i)
            yield self._step(rest, i, rest.nodes[i], label)

    def _installed(self, i: int, node: Node, view: int) -> Node:
        here = node.memory
        region = self.region_between(here.view, view)
        kept = self.rules.carried(region, self.ids[i], ranges(here.active >> here.view & 1))
        return self._keep(node, Disk(view, here.active | kept << view, here.vote), "view")

    def _go_on(self, i: int, node: Node) -> Node:
        """Who is not in the group can do nothing in an epoch but install the next: waiting would add no schedule."""
        while self.ids[i] not in self.groups[node.memory.view] and len(self.next_views[node.memory.view]) == 1:
            node = self._installed(i, node, self.next_views[node.memory.view][0])
        return node

    def _without_old_ballots(self, state: State, i: int) -> State:
        """R2: ballots of an epoch that their node has left have no phase 2 any more: their promises are for nobody."""
        if self.rules.old_epochs:
            return state
        epoch = self.views[state.nodes[i].memory.view].epoch
        for number, ballot in enumerate(self.ballots):
            if self.place[ballot.node] == i and ballot.epoch < epoch and state.started >> number & 1:
                over = ~self._promises_of(ballot)
                nodes = tuple(other._replace(promises=other.promises & over) for other in state.nodes)
                state = State(state.started & ~(1 << number), state.proposals, nodes)
        return state

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
        if after != node:
            yield self._step(state, i, after, f"{{}} promises {self.say(ballot)}{found}")

    def _propose(self, state: State, i: int, node: Node, number: int, ballot: Ballot) -> Iterator[Step]:
        """Phase 2, with any majority of the promises."""
        if not state.started >> number & 1 or not self._admits(i, node.memory, ballot):
            return
        mine = self._promises_of(ballot)
        told = tuple(other.promises & mine for other in state.nodes)
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
        held = self._votes[here.vote]
        if held is not None and held.accepted == ballot:
            return  # R4: that vote is the record of the ballot's one value
        if self._is_proposed(state, ballot):
            return
        view = next((v for v in path(self.plan, here.view) if self.views[v].epoch == ballot.epoch), here.view)
        for value in values:
            vote = paxos.accept(held, ballot, value)
            if isinstance(vote, Refusal):
                continue
            proposal = 1 << self._proposals.of(Proposal(ballot, value, view, node.crashed))
            after = self._keep(node, here._replace(vote=self._votes.of(vote)), "own")
            after = after._replace(votes=after.votes | proposal)
            label = f"{{}} proposes {value} at {self.say(ballot)} and votes for it"
            over = ~self._promises_of(ballot)
            nodes = tuple(other._replace(promises=other.promises & over) for other in state.nodes)
            proposed = State(state.started, state.proposals | proposal, nodes)
            yield self._step(proposed, i, after._replace(promises=after.promises & over), label)

    def _is_proposed(self, state: State, ballot: Ballot) -> bool:
        """Its node has sent phase 2, in its present life."""
        crashed = state.nodes[self.place[ballot.node]].crashed
        sent = (self._proposals[number] for number in bits(state.proposals))
        return any(proposal.ballot == ballot and proposal.again == crashed for proposal in sent)

    def _accept(self, state: State, i: int, node: Node, number: int) -> Iterator[Step]:
        here = node.memory
        ballot, value, view, again = self._proposals[number]
        if not self._admits(i, here, ballot):
            return
        vote = paxos.accept(self._votes[here.vote], ballot, value)
        if isinstance(vote, Refusal):
            return
        assert vote.value is not None
        after = self._keep(node, here._replace(vote=self._votes.of(vote)), "vote")
        after = after._replace(votes=after.votes | 1 << self._proposals.of(Proposal(ballot, vote.value, view, again)))
        if after != node:
            yield self._step(state, i, after, f"{{}} votes for {vote.value} at {self.say(ballot)}")

    def _sync(self, state: State, i: int, node: Node) -> Iterator[Step]:
        """R8: answers of a majority, merged and ACTIVE at once; what stays the same in later views is ACTIVE there too
        (R7)."""
        here = node.memory
        me = self.ids[i]
        for view in path(self.plan, here.view)[-KEPT_EPOCHS:]:
            region = self.region[view]
            if region is None or not self.rules.to_sync(region, me, ranges(here.active >> view & 1)):
                continue
            told = tuple(other.answers for other in state.nodes)
            for vote, who, what in self._merges(i, here, view, region, told):
                active = here.active | 1 << view
                for before, later in zip(path(self.plan, here.view), path(self.plan, here.view)[1:], strict=False):
                    if before >= view:
                        between = self.region_between(before, later)
                        active |= self.rules.carried(between, me, ranges(active >> before & 1)) << later
                after = self._keep(node, Disk(here.view, active, vote), "sync")
                label = f"{{}} has synced {self.say_view(view)} with {what}"
                yield self._step(state, i, after, label, *who)

    def _merges(
        self, i: int, here: Disk, view: int, region: Region, told: tuple[int, ...]
    ) -> list[tuple[int, tuple[int, ...], str]]:
        """The votes that a sync may end with, each with sources that make it, and what they said."""
        own = self._active(here, view)
        key = ("merges", i, here.vote, own, view, told)
        if key not in self._memo:
            heard: list[list[Answer | None]] = []
            for j, node in enumerate(self.ids):
                given = [self._answers[n] for n in bits(told[j])] if j != i and node in self.rules.asked(region) else []
                heard.append([None, *(answer for answer in given if answer.view == view)])
            found: dict[int, tuple[tuple[int, ...], str]] = {}
            for answers in product(*heard):
                counted = {self.ids[j]: a.active for j, a in enumerate(answers) if a is not None}
                counted[self.ids[i]] = own
                if not self.rules.is_synced(region, counted):
                    continue
                vote = self._votes[here.vote]
                sources = [self.place[node] for node in self.rules.sources(region, counted)]
                for j in sources:
                    answer = answers[j]
                    if answer is not None and answer.accepted is not None and answer.value is not None:
                        vote = self.rules.merged(vote, answer.accepted, answer.value)
                said = [self._said(answers[j]) if j != i else "itself" for j in sources]
                who = tuple(j for j in sources if j != i)
                found.setdefault(self._votes.of(vote), (who, " and ".join(said)))
            self._memo[key] = [(vote, who, what) for vote, (who, what) in sorted(found.items())]
        return self._memo[key]  # type: ignore[return-value]

    def _said(self, answer: Answer | None) -> str:
        assert answer is not None
        return "{} (no vote)" if answer.value is None else f"{{}} ({answer.value})"

    # --- helpers ---

    def _active(self, here: Disk, view: int) -> Source:
        return Source(ranges(here.active >> self.plan.views[view][1] & 1), ranges(here.active >> view & 1))

    def _admits(self, i: int, here: Disk, ballot: Ballot) -> bool:
        key = ("admits", i, here, ballot)
        if key not in self._memo:
            active = bool(here.active >> here.view & 1)
            vote = self._votes[here.vote]
            views = tuple(self.views[place] for place in path(self.plan, here.view))
            self._memo[key] = self.rules.admits(views, self.ids[i], ballot, vote, self.plan.birth, active=active)
        return bool(self._memo[key])

    def _keep(self, node: Node, after: Disk, what: str) -> Node:
        return node._replace(memory=after, disk=self.rules.stored(node.disk, after, what))

    def _own(self, ballot: Ballot, node: Node) -> Value:
        """Another one after a crash, for that is what a queue that filled differently does."""
        return f"v{self.ballots.index(ballot) + 1}" + "'" * node.crashed

    def _promises_of(self, ballot: Ballot) -> int:
        key = ("promises", ballot, len(self._promises.items))
        if key not in self._memo:
            self._memo[key] = sum(1 << n for n, promise in enumerate(self._promises.items) if promise.ballot == ballot)
        return self._memo[key]  # type: ignore[return-value]

    def _step(self, state: State, i: int, node: Node, text: str, *others: int) -> Step:
        """The state with node `i` changed, twins in one order."""
        nodes = put(state.nodes, i, self._answering(state.nodes, i, node))
        if node.memory.active != state.nodes[i].memory.active or node.disk.active != state.nodes[i].disk.active:
            nodes = self._drop_answers(nodes)
        order = list(range(len(nodes)))
        for twins in self.twins:
            ordered = sorted(twins, key=nodes.__getitem__)
            for place, twin in zip(twins, ordered, strict=True):
                order[place] = twin
        return Label(text, (i, *others), tuple(order)), state._replace(nodes=tuple(nodes[j] for j in order))

    def _answering(self, nodes: tuple[Node, ...], i: int, node: Node) -> Node:
        """R8: with all that a source says at this moment to those who sync. It may be lost; so saying it always adds
        schedules and takes none away. What it says of the same vote when it is ACTIVE in more counts wherever the older
        answer did."""
        here = node.memory
        vote = self._votes[here.vote]
        accepted, value = (vote.accepted, vote.value) if vote is not None else (None, None)
        for view, region in enumerate(self.region):
            if region is None or self.ids[i] not in self.rules.asked(region):
                continue
            active = self._active(here, view)
            if not self.rules.may_answer(self.plan, view, here.view) or not self.rules.speaks(active):
                continue
            if self._waiting(nodes, view) - {i}:
                answer = Answer(view, active, accepted, value)
                weaker = {Source(before, after) for before in (EMPTY, active.before) for after in (EMPTY, active.after)}
                older = (answer._replace(active=less) for less in weaker - {active})
                over = ~sum(1 << self._answers.of(old) for old in older)
                node = node._replace(answers=node.answers & over | 1 << self._answers.of(answer))
        return node

    def _waiting(self, nodes: tuple[Node, ...], view: int) -> set[int]:
        """The nodes that may still sync this view."""
        region = self.region[view]
        if region is None:
            return set()
        members = [self.place[node] for node in region.after]
        return {j for j in members if not (nodes[j].memory.active & nodes[j].disk.active) >> view & 1}

    def _drop_answers(self, nodes: tuple[Node, ...]) -> tuple[Node, ...]:
        """Without the answers that nobody waits for."""
        dropped = list(nodes)
        for view in range(len(self.region)):
            waiting = self._waiting(nodes, view)
            if len(waiting) < 2:
                over = ~sum(1 << number for number, answer in enumerate(self._answers.items) if answer.view == view)
                for j, node in enumerate(dropped):
                    if not waiting - {j} and node.answers & ~over:
                        dropped[j] = node._replace(answers=node.answers & over)
        return tuple(dropped)

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


def put(nodes: tuple[Node, ...], i: int, node: Node) -> tuple[Node, ...]:
    return (*nodes[:i], node, *nodes[i + 1 :])


def bits(number: int) -> Iterator[int]:
    """The places of the ones."""
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low


def ranges(active: int) -> Ranges:
    """Where a node is ACTIVE: there is one slot."""
    return RING if active else EMPTY

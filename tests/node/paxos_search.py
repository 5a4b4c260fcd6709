"""Every schedule of one slot: a search over node.paxos with the rules a node adds around it (design section 3).

A `State` is what all nodes hold, and every message that was ever sent. A message may arrive at any time, again, or
never, so loss, repetition and every order are in the search without being actions of their own. A crash forgets all
but the disk. States are merged by value, so each is looked at once.

A `Plan` names the ballots that may be tried, each by its node, whenever the rules allow it. A node that tries a ballot
again after a crash proposes another value, for that is what a queue that filled differently does.

Chosen means voted for by a majority of the group at one ballot, whether anybody learned of it or not.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from node import paxos
from node.paxos import Ballot, Proposer, Refusal, Vote
from routing.keyspace import NodeId

A, B, C, D, E = (NodeId(name) for name in (b"A", b"B", b"C", b"D", b"E"))

Value = str
T = TypeVar("T")
Running = tuple[tuple[str, object], ...]  # a Proposer, frozen


class Prepare(NamedTuple):
    ballot: Ballot


class Promise(NamedTuple):
    ballot: Ballot
    node: NodeId
    accepted: Ballot | None
    value: Value | None


class Accept(NamedTuple):
    ballot: Ballot
    value: Value


class Accepted(NamedTuple):
    ballot: Ballot
    node: NodeId
    value: Value  # for the observer; the proposer does not look


Message = Prepare | Promise | Accept | Accepted


class Plan(NamedTuple):
    """`ballots`: (epoch, round, node), tried by their nodes; `crashes`: how many in all."""

    group: tuple[NodeId, ...]
    ballots: tuple[tuple[int, int, NodeId], ...]
    crashes: int = 1


class State(NamedTuple):
    memory: tuple[Vote[Value] | None, ...]
    disk: tuple[Vote[Value] | None, ...]
    running: tuple[Running | None, ...]
    sent: frozenset[Message]
    crashed: tuple[int, ...]


class TwoChosen(AssertionError):
    """Two values were chosen in one slot."""


class NotChosen(AssertionError):
    """A proposer takes a value for decided that no majority voted for."""


class Rules:
    """What a node does around node.paxos (node.proposing, node.acceptor). A test switches rules off in a subclass."""

    def may_start(self, ballot: Ballot, vote: Vote[Value] | None, group: tuple[NodeId, ...]) -> bool:
        """R3, R4: round 0 is the owner's, before it has promised anything; every other ballot is above its promise."""
        if ballot.round == 0:
            return ballot.node == group[0] and vote is None
        return vote is None or vote.promised < ballot

    def persist(self, disk: Vote[Value] | None, vote: Vote[Value]) -> Vote[Value] | None:
        """R4: what is on disk before the answer leaves."""
        return vote

    def persist_own(self, disk: Vote[Value] | None, vote: Vote[Value]) -> Vote[Value] | None:
        """R4: what is on the proposer's disk before its first send."""
        return vote

    def choose(self, proposer: Proposer[Value], own: Value) -> Value:
        """The value of a ballot: what phase 1 found, else the own one."""
        return own if proposer.found is None else proposer.found


class Search:
    """The states that a plan can reach under some rules."""

    def __init__(self, plan: Plan, rules: Rules | None = None) -> None:
        self.plan = plan
        self.rules = rules or Rules()
        self.group = plan.group
        self.place = {node: i for i, node in enumerate(plan.group)}
        self.ballots = [paxos.Ballot(*ballot) for ballot in plan.ballots]
        self._heard: dict[tuple[Running, Message], Running] = {}
        self._numbers: dict[Message, int] = {}  # messages in the order they were first sent: one seed, one schedule
        nobody: tuple[None, ...] = (None,) * len(plan.group)
        self.first = State(nobody, nobody, nobody, frozenset(), (0,) * len(plan.group))

    def exhaust(self, limit: int) -> int:
        """Visit every state; how many there are. Raises `TwoChosen`; fails above `limit`."""
        seen = {self.first}
        todo = [self.first]
        while todo:
            for state in self.next_states(todo.pop()):
                if state not in seen:
                    self.check(state)
                    seen.add(state)
                    todo.append(state)
            assert len(seen) <= limit, f"more than {limit} states: make the plan smaller"
        return len(seen)

    def wander(self, rng: random.Random, steps: int) -> None:
        """One random schedule."""
        state = self.first
        for _ in range(steps):
            states = [s for s in self.next_states(state) if s != state]
            if not states:
                return
            state = rng.choice(states)
            self.check(state)

    def chosen(self, state: State) -> set[Value]:
        """The values that have the votes of a majority of the group at one ballot."""
        votes: dict[tuple[Ballot, Value], set[NodeId]] = {}
        for message in state.sent:
            if isinstance(message, Accepted):
                votes.setdefault((message.ballot, message.value), set()).add(message.node)
        enough = len(self.group) // 2 + 1
        return {value for (_, value), nodes in votes.items() if len(nodes) >= enough}

    def check(self, state: State) -> None:
        """Raises `TwoChosen`, also when nobody learned of either."""
        chosen = self.chosen(state)
        if len(chosen) > 1:
            raise TwoChosen(f"{sorted(chosen)} are chosen: {sorted(map(str, state.sent))}")

    # --- what can happen next ---

    def next_states(self, state: State) -> Iterator[State]:
        if sum(state.crashed) < self.plan.crashes:
            for i in range(len(self.group)):
                if state.running[i] is not None or state.memory[i] != state.disk[i]:
                    yield self._crash(state, i)
        for ballot in self.ballots:
            i = self.place[ballot.node]
            if not self._runs(state, i, ballot) and self.rules.may_start(ballot, state.memory[i], self.group):
                yield self._start(state, i, ballot)
        for message in sorted(state.sent, key=self._numbers.__getitem__):
            yield from self._deliver(state, message)

    def _runs(self, state: State, i: int, ballot: Ballot) -> bool:
        running = state.running[i]
        return running is not None and running[0][1] == ballot

    def _crash(self, state: State, i: int) -> State:
        crashed = _put(state.crashed, i, state.crashed[i] + 1)
        return state._replace(
            memory=_put(state.memory, i, state.disk[i]), running=_put(state.running, i, None), crashed=crashed
        )

    def _start(self, state: State, i: int, ballot: Ballot) -> State:
        proposer: Proposer[Value] = paxos.Proposer(ballot, self.group)
        if proposer.prepared:
            return self._propose(state, i, proposer)
        vote = paxos.prepare(state.memory[i], ballot)
        assert not isinstance(vote, Refusal), (ballot, vote)
        state = self._vote(state, i, vote, own=True)
        done = proposer.on_promise(ballot.node, ballot, vote.accepted, vote.value)
        state = self._send(state, Prepare(ballot))
        return self._propose(state, i, proposer) if done else self._keep(state, i, proposer)

    def _propose(self, state: State, i: int, proposer: Proposer[Value]) -> State:
        ballot = proposer.ballot
        value = self.rules.choose(proposer, f"{ballot.epoch}.{ballot.round}.{state.crashed[i]}{ballot.node.decode()}")
        vote = paxos.accept(state.memory[i], ballot, value)
        if isinstance(vote, Refusal):
            return self._keep(state, i, None)  # it promised somebody a higher ballot meanwhile
        state = self._vote(state, i, vote, own=True)
        proposer.propose(value)
        state = self._send(state, Accept(ballot, value), Accepted(ballot, ballot.node, value))
        if proposer.on_accepted(ballot.node, ballot):
            return self._decide(state, i, proposer)
        return self._keep(state, i, proposer)

    def _decide(self, state: State, i: int, proposer: Proposer[Value]) -> State:
        if proposer.value not in self.chosen(state):
            raise NotChosen(f"{proposer.value} is decided at {proposer.ballot}: {sorted(map(str, state.sent))}")
        return self._keep(state, i, None)

    def _deliver(self, state: State, message: Message) -> Iterator[State]:
        if isinstance(message, Prepare | Accept):
            for node in self.group:
                if node != message.ballot.node:
                    yield self._answer(state, self.place[node], node, message)
            return
        i = self.place[message.ballot.node]
        running = state.running[i]
        if running is None:
            return
        if (running, message) not in self._heard:
            self._heard[running, message] = self._hear(running, message)
        heard = self._heard[running, message]
        if heard == running:
            return
        state = state._replace(running=_put(state.running, i, heard))
        proposer = self._thaw(heard)
        if isinstance(message, Accepted):
            yield self._decide(state, i, proposer) if proposer.decided else state
        else:
            yield self._propose(state, i, proposer) if proposer.prepared else state

    def _hear(self, running: Running, message: Promise | Accepted) -> Running:
        """The proposer after an answer."""
        proposer = self._thaw(running)
        if isinstance(message, Accepted):
            proposer.on_accepted(message.node, message.ballot)
        else:
            proposer.on_promise(message.node, message.ballot, message.accepted, message.value)
        return self._freeze(proposer)

    def _answer(self, state: State, i: int, node: NodeId, message: Prepare | Accept) -> State:
        ballot, held = message.ballot, state.memory[i]
        answer: Message
        if isinstance(message, Prepare):
            vote = paxos.prepare(held, ballot)
            if isinstance(vote, Refusal):
                return state
            answer = Promise(ballot, node, vote.accepted, vote.value)
        else:
            vote = paxos.accept(held, ballot, message.value)
            if isinstance(vote, Refusal):
                return state
            assert vote.value is not None
            answer = Accepted(ballot, node, vote.value)
        return self._send(self._vote(state, i, vote, own=False), answer)

    def _send(self, state: State, *messages: Message) -> State:
        for message in messages:
            self._numbers.setdefault(message, len(self._numbers))
        return state._replace(sent=state.sent.union(messages))

    def _vote(self, state: State, i: int, vote: Vote[Value], *, own: bool) -> State:
        persist = self.rules.persist_own if own else self.rules.persist
        return state._replace(
            memory=_put(state.memory, i, vote), disk=_put(state.disk, i, persist(state.disk[i], vote))
        )

    def _keep(self, state: State, i: int, proposer: Proposer[Value] | None) -> State:
        frozen = self._freeze(proposer) if proposer is not None else None
        return state._replace(running=_put(state.running, i, frozen))

    def _freeze(self, proposer: Proposer[Value]) -> Running:
        return tuple((k, frozenset(v) if isinstance(v, set) else v) for k, v in vars(proposer).items())

    def _thaw(self, running: Running) -> Proposer[Value]:
        ballot = running[0][1]
        assert isinstance(ballot, paxos.Ballot)
        proposer: Proposer[Value] = paxos.Proposer(ballot, self.group)
        vars(proposer).update({k: set(v) if isinstance(v, frozenset) else v for k, v in running})
        return proposer


def _put(items: tuple[T, ...], i: int, item: T) -> tuple[T, ...]:
    return (*items[:i], item, *items[i + 1 :])

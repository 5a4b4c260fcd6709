"""The simulated world: the processes of nodes and their turns. Whole cores, real SQLite, simulated time, network and
disks.

The loop is a heap of (time, number, action). A node's turn is what the driver does: take what has arrived, load,
step, commit, send; it takes the time of the commit, and a crash may fall before, within or after that. Nothing here
or below reads a real clock or real randomness, so a plan has one trace: `trace_hash` is over every event that a node
handles and every answer that a client gets, with its time.

Beside it: what breaks (`netsim.faults`), who is connected (`netsim.connections`), who waits for an answer
(`netsim.calls`).
"""

import random
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Collection
from contextlib import ExitStack
from heapq import heappop, heappush
from typing import Protocol, TypeVar

import msgspec

from chain.errors import Quarantined, StorageFailure
from chain.load import load
from chain.needs import Loaded, Needs
from chain.reads import read_balance
from chain.store import Write
from hopchain.wire import AskBalance, Submit, SubmitChange
from netsim.calls import CallObserver, Calls, Done
from netsim.checks import Watch
from netsim.connections import Connections
from netsim.disk import Choose, cut_places
from netsim.plan import Cut, DiskError, Kill, KillAtCommit, Plan
from netsim.sim_node import SimNode
from netsim.simulation import Simulation
from node.balance_answer import balance_answer
from node.core import Core
from node.effects import Stage
from node.events import Caller, ClientBalance, ClientChange, ClientSubmit, Event, FromPeer
from node.messages import Message, decode_frame_untrusted, encode_frames, encode_message
from node.start import read_start
from routing.keyspace import NodeId

# In a simulated second, for each ten nodes. Hundreds are usual, so above it messages breed messages.
MAX_ACTIONS_PER_S = 100_000
_NOTHING = Needs()

AskedT = TypeVar("AskedT", Submit, AskBalance, SubmitChange)


class Observer(CallObserver, Protocol):
    """Sees everything, changes nothing. Raises `Violation` when a rule is broken."""

    def committed(self, node: int, writes: tuple[Write, ...], now: float) -> None: ...
    def sent(self, node: int, peer: NodeId, message: Message, now: float) -> None: ...
    def crashed(self, node: int, now: float) -> None: ...
    def started(self, node: int, conn: sqlite3.Connection, now: float) -> None: ...
    def replaced(self, node: int, conn: sqlite3.Connection) -> None: ...
    def died(self, node: int) -> None: ...


class World(Simulation):
    """A network of cores of the size, weather and seed of a plan. `run_for` lets time pass; clients use `submit` and
    `read`."""

    now = 0.0

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.events = 0
        self.happened: Counter[str] = Counter()  # faults, by kind
        self.last_words: list[tuple[float, int, str]] = []  # when which process ended by itself, and what it said
        self._this_second = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = 0
        self.calls = Calls(self)
        self.connections = Connections(self)
        self._stack = ExitStack()
        self.nodes = [SimNode(i, self._make_disk(i, self._stack)) for i in plan.everybody]
        self.index_of = {node.id: node.index for node in self.nodes}
        self.watch = Watch(self.genesis, self.view, [node.id for node in self.nodes[plan.nodes :]])
        self.observer: Observer = self.watch  # a recorder may stand in front of it

    def __enter__(self) -> "World":
        for node in self.nodes:
            node.begun = node.index < self.plan.nodes
            if node.begun:
                self.start(node)
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.disk.close()
        self._stack.close()

    # --- time ---

    def at(self, when: float, act: Callable[[], None]) -> None:
        """Do something at a simulated time."""
        self._numbers += 1
        heappush(self._heap, (max(when, self.now), self._numbers, act))

    def run_for(self, seconds: float) -> None:
        """Let simulated time pass."""
        until = self.now + seconds
        storm = MAX_ACTIONS_PER_S * max(1, len(self.nodes) // 10)
        while self._heap and self._heap[0][0] <= until:
            when, _, act = heappop(self._heap)
            if int(when) > int(self.now):
                self._this_second = 0
            self._this_second += 1
            assert self._this_second < storm, f"a storm: {storm} things to do in second {when:.0f}"
            self.now = when
            act()
        self.now = until

    @property
    def injected(self) -> Counter[str]:
        """The faults that happened, by kind; what was planned and found nothing to break does not count."""
        return self.happened + Counter(Loss=self.network.lost, Repeat=self.network.repeated)

    def end_cut(self, fault: Cut) -> None:
        """The paths of a cut get through again, and connections over them can stand."""
        super().end_cut(fault)
        self.connections.make()

    # --- processes ---

    def begin_guests(self, fresh: Collection[int]) -> None:
        """The faults begin: spares run from now on, but the `fresh` ones, whose processes start later."""
        for node in self.nodes[self.plan.nodes :]:
            if node.index not in fresh:
                self.begin_guest(node)

    def begin_guest(self, node: SimNode) -> None:
        """A spare runs from now on, if it does not yet."""
        if not node.begun:
            node.begun = True
            self.start(node)

    def crash(self, node: SimNode, until: float) -> None:
        """The process ends now and starts again at `until`."""
        if node.core is None:
            return
        self.note("crash", node.index)
        node.core, node.inbox, node.busy, node.wake_at, node.armed = None, [], False, None, None
        node.life += 1
        life = node.life
        self.observer.crashed(node.index, self.now)
        self.connections.drop(node)
        self.at(until, lambda: self._restart(node, life))

    def _restart(self, node: SimNode, life: int) -> None:
        if node.core is None and node.life == life and not node.gone:
            self.start(node)

    def start(self, node: SimNode) -> None:
        """A process starts on the node's disk; none runs there."""
        self.note("start", node.index)
        node.life += 1
        if node.life > 1:
            node.disk.restart()
        conn = node.disk.conn
        start = read_start(conn)
        rng = random.Random(self.rng.random())
        node.core = Core(node.id, self.genesis, self.view, rng, start, node.clock(self.now))
        node.core.introduce(b"", seeds=node.must_go)  # whatever its disk forgot, its config names the others
        node.neighbours = frozenset()
        self.observer.started(node.index, conn, self.now)
        self.connections.make()
        self.wake(node)

    def _quarantine(self, node: SimNode, why: Quarantined) -> None:
        """The process ended by itself, for good."""
        self.last_words.append((self.now, node.index, str(why)))
        self.happened["Quarantined"] += 1
        node.gone = True
        self.crash(node, float("inf"))

    # --- turns ---

    def arrive(self, node: SimNode, event: Event) -> None:
        """An event waits for the next turn of a node; for one that is down it is lost."""
        if node.core is not None:
            node.inbox.append(event)
            self.wake(node)

    def wake(self, node: SimNode, when: float | None = None) -> None:
        """Let it have a turn, now or at `when`; not before its pause ends, and one at a time."""
        if node.core is None or node.busy:
            return
        at = max(self.now if when is None else when, self.now, node.paused_until)
        if node.wake_at is None or at < node.wake_at:
            node.wake_at = at
            life = node.life
            self.at(at, lambda: self._turn(node, life, at))

    def _turn(self, node: SimNode, life: int, at: float) -> None:
        """Take, load, step; the commit ends later."""
        if node.core is None or node.life != life or node.wake_at != at or node.busy:
            return
        node.wake_at = None
        if node.paused_until > self.now:
            self.wake(node)
            return
        events, node.inbox = node.inbox, []
        clock = node.clock(self.now)
        self.events += len(events)
        node.turns += 1
        needs = node.core.needs(events, clock)
        loaded = load(node.disk.conn, needs) if needs != _NOTHING else Loaded()  # most turns are a ping: no query
        try:
            effects = node.core.step(loaded, clock)
        except Quarantined as why:
            if not node.must_go:
                raise
            self._quarantine(node, why)
            return
        self._go_on(node, life, deque(effects.stages()))

    def _go_on(self, node: SimNode, life: int, stages: deque[Stage]) -> None:
        """What is left of a turn. A commit takes time, in which events gather and a crash may fall."""
        node.busy = any(stage.persist for stage in stages)
        while stages and not stages[0].persist:
            self._emit(node, stages.popleft())
        if not stages:
            self._next(node)
            return
        self.at(self.now + self.rng.uniform(*node.commit_s(self.now)), lambda: self._finish(node, life, stages))

    def _finish(self, node: SimNode, life: int, stages: deque[Stage]) -> None:
        """A commit is over, unless the process is: then send, and go on."""
        if node.life != life:
            return
        stage = stages.popleft()
        node.commits += 1
        armed = node.armed_at(self.now)
        for counted in node.counted:
            if counted.number == node.commits:
                self._die_at(node, stage, counted)
                return
        if isinstance(armed, Kill):
            self._die(node, stage, armed.point, armed.until, self.rng.randint)
            return
        if isinstance(armed, DiskError) and self._fail_disk(node, stage, armed):
            return
        if armed is None:
            node.disk.commit(stage.persist)
        node.armed = armed  # a full disk, which had room for this
        self.observer.committed(node.index, stage.persist, self.now)
        self._emit(node, stage)
        self._go_on(node, life, stages)

    def _die_at(self, node: SimNode, stage: Stage, kill: KillAtCommit) -> None:
        """A cut beyond the last place leaves all of the log, and does not count as a crash within the commit."""
        beyond = False

        def choose(first: int, end: int) -> int:
            nonlocal beyond
            places = cut_places(first, end)
            beyond = kill.cut >= len(places)
            return places[min(kill.cut, len(places) - 1)]

        self._die(node, stage, kill.point, self.now + kill.down_s, choose)
        self.happened[f"Kill.{kill.point}"] -= beyond

    def _die(self, node: SimNode, stage: Stage, point: str, until: float, choose: Choose) -> None:
        self.happened[f"Kill.{point}"] += 1
        match point:
            case "before_commit":
                pass
            case "in_commit":
                node.disk.cut_commit(stage.persist, choose)
            case "after_commit" | "sending":
                node.disk.commit(stage.persist)
                self.observer.committed(node.index, stage.persist, self.now)
                if point == "sending":
                    kept = self.rng.randint(0, len(stage.send))
                    self._emit(node, msgspec.structs.replace(stage, send=stage.send[:kept], answers=(), reads=()))
        self.crash(node, until)

    def _fail_disk(self, node: SimNode, stage: Stage, fault: DiskError) -> bool:
        """True when the disk failed and the process is gone."""
        try:
            node.disk.fail(fault.error, stage.persist, self.rng)
        except StorageFailure as failure:
            self.last_words.append((self.now, node.index, str(failure)))
            self.happened[f"DiskError.{fault.error}"] += 1
            self.crash(node, fault.until)
            return True
        return False

    def _next(self, node: SimNode) -> None:
        assert node.core is not None
        self.connections.look(node)
        if node.inbox:
            self.wake(node)
            return
        deadline = node.core.deadline()
        if deadline is not None:
            self.wake(node, deadline)

    def _emit(self, node: SimNode, stage: Stage) -> None:
        encoded: dict[int, bytes] = {}
        for send in stage.send:
            self.observer.sent(node.index, send.peer, send.message, self.now)
            raw = encoded.get(id(send.message))
            if raw is None:
                raw = encoded[id(send.message)] = encode_message(send.message)
            self._transmit(node, send.peer, raw, str(type(send.message).__struct_config__.tag))
        for answer in stage.answers:
            self.calls.end(answer.caller.number, answer.body)
        for read in stage.reads:
            assert node.core is not None
            found = read_balance(node.disk.conn, read.ask.account)
            body = balance_answer(found, read.ask, node.core, self.genesis, node.clock(self.now))
            self.calls.end(read.caller.number, body)

    def _transmit(self, node: SimNode, peer: NodeId, raw: bytes, kind: str) -> None:
        target = self.nodes[self.index_of[peer]]
        for delay in self.network.delays(node.index, target.index, self.now, kind):
            self.at(self.now + delay, lambda: self._receive(target, node.id, raw))

    def _receive(self, target: SimNode, source: NodeId, raw: bytes) -> None:
        if target.core is None:
            return
        self._trace.update(b"%d %.9f " % (target.index, self.now))
        self._trace.update(raw)
        (frame,) = encode_frames([raw])
        for message in decode_frame_untrusted(frame):
            self.arrive(target, FromPeer(source, message))

    # --- clients ---

    def submit(self, node: int, submit: Submit, done: Done | None = None) -> int:
        """A client hands a request to a node; the number of the call. `done` gets the answer, if there is one."""
        return self._call(node, submit, ClientSubmit, done)

    def read(self, node: int, ask: AskBalance, done: Done | None = None) -> int:
        """A client asks a node for a balance."""
        return self._call(node, ask, ClientBalance, done)

    def change(self, node: int, submit: SubmitChange, done: Done) -> int:
        """The operator asks a node to change the members."""
        return self._call(node, submit, ClientChange, done)

    def _call(self, node: int, asked: AskedT, event: Callable[[Caller, AskedT], Event], done: Done | None) -> int:
        to = self.nodes[node]
        call = self.calls.begin(node, asked, done, refused=to.core is None)
        self.arrive(to, event(Caller(node, call), asked))
        return call

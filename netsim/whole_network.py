"""A network of whole nodes: `node.running.RunningNode` as it stands, many in one process, on simulated ports.

Real: driver, core, mesh, channels, frames, hellos, client port, the DHT with the `kademlia` library, SQLite. Simulated:
the clock (trio's MockClock, which jumps when every task waits), TCP (`netsim.streams`), UDP (`netsim.datagrams`), the
worker thread of the database (functions run inline, a commit takes time), TLS (`netsim.plain`: in the clear),
scheduling (trio's own shuffling of ready tasks, from the seed). The observer of the cores' tier watches commits, frames
and answers, so the same rules hold.

A process that is killed is cancelled at the checkpoint where it stands, and nothing it still does leaves it: no frame,
no datagram, no commit. So it may die at any await, and `after_step` finds them all.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from sqlite3 import Connection
from typing import Concatenate, Final, ParamSpec, TypeVar, cast

import trio
import trio_asyncio

from chain.errors import LocalMisuse, StorageFailure
from chain.reads import count_accounts, list_accounts, read_balance
from chain.store import Write, commit
from hopchain import wire
from netsim.calls import Calls, Done
from netsim.checks import Watch
from netsim.datagrams import DatagramNetwork
from netsim.plain import plain_context
from netsim.plan import ClockJump, Clog, Cut, DiskError, Fault, Kill, Plan, SlowDisk, WeatherChange
from netsim.simulation import Simulation
from netsim.streams import CLIENT, HostTcp, StreamNetwork
from netsim.timeline import Timeline
from netsim.whole_node import WholeNode
from node.accepting import HANDSHAKE_ERRORS
from node.balances import MAX_BALANCES
from node.channel import Channel
from node.config import NodeConfig, Peer
from node.core import Core
from node.driver import Sender
from node.messages import decode_frame_untrusted
from node.running import Ports, RunningNode
from node.start import read_start
from node.tls import start_tls
from routing.keyspace import NodeId

WholeFault = Cut | Clog | Kill | ClockJump | SlowDisk | DiskError | WeatherChange
P = ParamSpec("P")
T = TypeVar("T")

PORT: Final = 4000
CLIENT_PORT: Final = 4001
START_S: Final = 2.0  # until all connections stand
CLIENT_QUEUE_BYTES: Final = 2 * wire.MAX_CLIENT_FRAME_BYTES
SESSIONS: Final = 3  # with each node: their calls share its turns
MAX_SETUP_S: Final = 20.0
_NETWORK_KEY: Final = hashlib.sha256(b"netsim network key").digest()
_running_node: ContextVar[int] = ContextVar("running_node")


class WholeNetwork(Simulation):
    """A network of whole nodes that follows a plan, inside `simulate`. Clients use `submit` and `read`.

    `after_step(node, number)` is called after each step of a task of a node; the number counts that node's.
    """

    def __init__(self, plan: Plan, stack: ExitStack) -> None:
        super().__init__(plan)
        self.timeline = Timeline()
        self.tcp = StreamNetwork(self.timeline, self.network, random.Random(self.rng.random()), self._arrived)
        self.datagrams = DatagramNetwork(self.timeline, self.network, self._arrived)
        self.after_step: Callable[[int, int], None] | None = None
        self.steps: Counter[int] = Counter()
        self.observer = self.watch = Watch(self.genesis, self.view)
        self.nodes: list[WholeNode] = [self._make_node(i, stack) for i in range(plan.nodes)]
        self._client = HostTcp(self.tcp, CLIENT)
        self._nursery: trio.Nursery | None = None
        self.calls = Calls(self)

    def _make_node(self, index: int, stack: ExitStack) -> WholeNode:
        disk = self._make_disk(index, stack)
        stack.callback(disk.close)
        return WholeNode(index, disk)

    async def run(self, play: Callable[["WholeNetwork"], Awaitable[None]]) -> None:
        """Start all nodes, do `play`, end."""
        async with trio_asyncio.open_loop(), trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.timeline.run)
            for node in self.nodes:
                self.start(node)
            await play(self)
            nursery.cancel_scope.cancel()

    # --- time and trace ---

    @property
    def now(self) -> float:
        """Simulated seconds."""
        return self.timeline.now

    def at(self, when: float, act: Callable[[], None]) -> None:
        """Do something at a simulated time."""
        self.timeline.at(when, act)

    def _arrived(self, source: int, target: int, data: bytes) -> None:
        self._trace.update(b"%d %d %.9f " % (source, target, self.now))
        self._trace.update(data)

    # --- processes ---

    def start(self, node: WholeNode) -> None:
        """Start the process of a node."""
        assert self._nursery is not None
        self.note("start", node.index)
        node.life += 1
        self._nursery.start_soon(self._live, node, node.life)

    async def _live(self, node: WholeNode, life: int) -> None:
        """One process, from its start to its end."""
        if node.ended is not None:
            await node.ended.wait()
        if node.life != life:
            return
        _running_node.set(node.index)
        ended = node.ended = trio.Event()
        node.scope = trio.CancelScope()
        node.frames_left = None
        node.clients = []  # only now: a connection of the process before may have come to stand while that died
        if life > 1:
            node.disk.restart()
        conn = node.disk.conn
        node.tcp, node.datagrams = self.tcp.host(node.index), self.datagrams.of(node.index)
        core = Core(node.id, self.genesis, self.view, self._rng(), read_start(conn), node.clock(self.now))
        self.watch.started(node.index, conn, self.now)
        running = node.running = RunningNode(self._config(node), self.genesis, node.id, core, self._ports(node))
        assert running.driver.mesh is not None
        running.driver.mesh = _WatchedMesh(self, node, running.driver.mesh)
        node.core = core
        try:
            with node.scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(running.run)
                    for _ in range(SESSIONS):
                        nursery.start_soon(self._serve_clients, node)
        except* StorageFailure:
            if node.core is not None:  # not by a fault of the plan
                raise
        finally:
            node.running = None
            node.counters.update(running.driver.counters)
            ended.set()

    def _rng(self) -> random.Random:
        return random.Random(self.rng.random())

    def _config(self, node: WholeNode) -> NodeConfig:
        given = range(len(self.nodes)) if node.peers is None else node.peers
        others = (self.nodes[index] for index in given if index != node.index)
        peers = tuple(Peer(other.id.hex(), other.host, PORT) for other in others)
        return NodeConfig(node.host, PORT, CLIENT_PORT, node.host, peers=peers)

    def _ports(self, node: WholeNode) -> Ports:
        assert node.tcp is not None
        assert node.datagrams is not None
        database = _InlineDatabase(self, node)
        return Ports(
            clock=lambda: node.clock(self.now),
            rng=self._rng(),
            boot=self.rng.randbytes(16),
            contexts=node.contexts,
            network_key=_NETWORK_KEY,
            database=database,
            reader=database,
            accounts=count_accounts(node.disk.conn),
            tcp=node.tcp,
            datagrams=node.datagrams,
        )

    def kill(self, node: WholeNode, until: float) -> None:
        """The process ends where it stands, and starts again at `until`."""
        if node.core is None:
            return
        assert node.tcp is not None
        assert node.datagrams is not None
        self.note("kill", node.index)
        node.core, node.armed, node.frames_left = None, None, 0
        node.tcp.die()
        node.datagrams.die()
        self.watch.crashed(node.index, self.now)
        node.scope.cancel()
        life = node.life
        self.at(until, lambda: self._restart(node, life))

    def _restart(self, node: WholeNode, life: int) -> None:
        if node.core is None and node.life == life:
            self.start(node)

    def move(self, node: WholeNode, host: str) -> None:
        """The process ends, and its disk starts again on another machine. Nobody is told."""
        self.kill(node, float("inf"))
        node.host = host
        self.start(node)

    # --- faults ---

    def schedule(self, fault: Fault, start: float) -> None:
        """Let a fault happen; its times count from `start`. `LocalMisuse` for one that whole nodes do not have."""
        if not isinstance(fault, WholeFault):
            raise LocalMisuse(
                f"whole nodes know no fault {type(fault).__name__}: run the plan with cores alone, or leave it out"
            )
        self.at(start + fault.at, lambda: self._begin(fault, start))

    def _begin(self, fault: WholeFault, start: float) -> None:
        self.note("fault", repr(fault))
        match fault:
            case Cut() | Clog() | WeatherChange():
                self.hit_network(fault, start)
            case Kill(point="idle"):
                self.kill(self.nodes[fault.node], start + fault.until)
            case _:
                self.nodes[fault.node].hit(fault, start)

    def cut(self, fault: Cut) -> None:
        """Cut paths, and reset some of the connections over them."""
        super().cut(fault)
        self.tcp.cut_happened()

    def heal(self, nodes: Sequence[int]) -> None:
        """These nodes work from now on, and every path between them."""
        self.heal_network(nodes)
        for index in nodes:
            node = self.nodes[index]
            node.mend()
            if node.core is None:
                self.start(node)
            else:
                node.frames_left = None

    # --- disk ---

    async def commit(self, node: WholeNode, writes: tuple[Write, ...]) -> None:
        """A commit takes time; a fault may fall before, within or after it."""
        await trio.sleep(self.rng.uniform(*node.commit_s(self.now)))
        armed, node.armed = node.armed_at(self.now), None
        if isinstance(armed, DiskError):
            self._fail_disk(node, writes, armed)
            node.armed = armed  # a full disk, which had room for this
        if isinstance(armed, Kill) and armed.point in ("before_commit", "in_commit"):
            if armed.point == "in_commit":
                node.disk.cut_commit(writes, self.rng.randint)
            self.kill(node, armed.until)
            await trio.sleep_forever()
        if not isinstance(armed, DiskError):
            node.disk.commit(writes)
        self.watch.committed(node.index, writes, self.now)
        if isinstance(armed, Kill):
            if armed.point == "sending":
                node.frames_left, node.back_at = self.rng.randint(0, 3), armed.until
            else:
                self.kill(node, armed.until)

    def _fail_disk(self, node: WholeNode, writes: tuple[Write, ...], fault: DiskError) -> None:
        """Commit unless the disk fails; then the process ends itself with `StorageFailure`."""
        try:
            node.disk.fail(fault.error, writes, self.rng)
        except StorageFailure:
            self.kill(node, fault.until)
            raise

    # --- clients ---

    async def _serve_clients(self, node: WholeNode) -> None:
        """One of the connections over which clients talk to this process."""
        try:
            stream = await self._client.connect(node.host, CLIENT_PORT)
            secure = await start_tls(stream, plain_context(), server=False)
            channel = Channel(secure, frame_limit=wire.MAX_CLIENT_FRAME_BYTES, queue_bytes=CLIENT_QUEUE_BYTES)
            await channel.send(wire.encode(wire.Hello(wire.PROTOCOL_VERSION, self.network_id)))
            hello = await channel.receive()
        except (OSError, *HANDSHAKE_ERRORS):
            return
        assert hello is not None and isinstance(wire.decode_node_frame_untrusted(hello), wire.Hello)
        node.clients.append(channel)

        async def on_frame(payload: bytes) -> None:
            frame = wire.decode_node_frame_untrusted(payload)
            assert isinstance(frame, wire.Reply), frame
            self.calls.end(frame.number, frame.body)

        await channel.run(on_frame)

    def submit(self, node: int, submit: wire.Submit, done: Done | None = None) -> int:
        """A client hands a request to a node; the number of the call. `done` gets the answer, if there is one."""
        return self._call(node, submit, done)

    def read(self, node: int, ask: wire.AskBalance, done: Done | None = None) -> int:
        """A client asks a node for a balance."""
        return self._call(node, ask, done)

    def _call(self, node: int, asked: wire.Submit | wire.AskBalance, done: Done | None) -> int:
        to = self.nodes[node]
        channels = to.clients if to.core is not None else []
        call = self.calls.begin(node, asked, done, refused=not channels)
        if channels:
            sent = channels[call % len(channels)].send_nowait(wire.encode(wire.Call(call, asked)))
            assert sent, f"call {call} finds its connection with node {node} closed or full: no fault is on its path"
        return call

    async def ask(self, node: int, submit: wire.Submit) -> wire.ReplyBody:
        """Submit and wait for the answer; the node must live to give it."""
        answers: list[wire.ReplyBody] = []
        there = trio.Event()

        def done(body: wire.ReplyBody) -> None:
            answers.append(body)
            there.set()

        self.submit(node, submit, done)
        with trio.fail_after(MAX_SETUP_S):
            await there.wait()
        return answers[0]

    def at_rest(self) -> None:
        """Every node has all that was chosen, nothing left to do, and knows its accounts by heart, and how many they
        are, as its database has them. Raises `Violation`, or `AssertionError` for the last of these."""
        self.watch.all_ended(self.now)
        for node in self.nodes:
            assert node.core is not None
            assert node.running is not None
            self.watch.at_rest(node.index, node.disk.conn, node.core.gauges())
            counted, there = node.running.accounts, count_accounts(node.disk.conn)
            assert counted == there, f"node {node.index} counts {counted} accounts, and has {there}"
            for head in list_accounts(node.disk.conn, limit=MAX_BALANCES):
                known, found = node.running.balances.get(head.name), read_balance(node.disk.conn, head.name)
                assert known == found, f"node {node.index} takes {known} for {found}"

    def count(self, name: str) -> int:
        """A counter of the drivers, over all nodes and lives."""
        now = (node.running.driver.counters[name] for node in self.nodes if node.running is not None)
        return sum(now) + sum(node.counters[name] for node in self.nodes)


class _InlineDatabase:
    """`node.database.Database` without a thread: the hops there and back are checkpoints, and a crash may fall on
    each."""

    def __init__(self, network: WholeNetwork, node: WholeNode) -> None:
        self._network = network
        self._node = node

    async def run(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        await trio.lowlevel.checkpoint()
        if function is commit:
            (writes,) = args
            await self._network.commit(self._node, cast(tuple[Write, ...], writes))
            result = cast(T, None)
        else:
            result = function(self._node.disk.conn, *args, **kwargs)
        await trio.lowlevel.checkpoint()
        return result


class _WatchedMesh:
    """Shows the observer each message that leaves, and dies in the middle of sending when a fault says so."""

    def __init__(self, network: WholeNetwork, node: WholeNode, mesh: Sender) -> None:
        self._network = network
        self._node = node
        self._mesh = mesh

    def send_nowait(self, peer: NodeId, payload: bytes) -> bool:
        node, network = self._node, self._network
        if node.frames_left == 0:
            network.kill(node, node.back_at)
            return False
        if node.frames_left is not None:
            node.frames_left -= 1
        for message in decode_frame_untrusted(payload):
            network.watch.sent(node.index, peer, message, network.now)
        return self._mesh.send_nowait(peer, payload)

    def drop(self, peer: NodeId, reason: str) -> None:
        self._mesh.drop(peer, reason)


class Steps(trio.abc.Instrument):
    """Counts the steps of each node's tasks: after each of them it stands at an await."""

    def __init__(self, network: WholeNetwork) -> None:
        self._network = network

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        node = task.context.get(_running_node)
        if node is not None:
            network = self._network
            network.steps[node] += 1
            if network.after_step is not None:
                network.after_step(node, network.steps[node])

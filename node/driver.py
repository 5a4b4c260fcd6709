"""Driver: the only place where a node's core meets disk, network and clock (design section 7).

    take what has arrived, up to TURN_EVENTS or TURN_BYTES -> load -> step -> tell facts -> commit votes -> send, answer
    -> commit links -> read, look up

Nothing leaves before what it promises is durable (`Effects.stages`). A client that was told of a link reads it here,
too: reads of the accounts that it is about wait until the commit has ended, but for balances in memory, which have it.
While a turn runs, the next one's events gather in the inbox; that is the whole of group commit. The inbox is bounded:
when it is full, connections are not read.

Clients' calls have a queue of their own (`node.client_calls`): a turn takes what has come from members first, whatever
clients have waiting, then calls up to TURN_CALLS.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import trio

from chain.errors import Removed
from chain.link import Link
from chain.load import load
from chain.needs import Loaded, Needs
from chain.rows import Applied
from chain.store import Write, commit
from node.balances import Balances
from node.client_calls import TURN_CALLS, ClientCalls
from node.client_port import Session
from node.core import Core
from node.database import Database
from node.effects import Read, Send, Stage
from node.events import ClientGone, Event, FromPeer, PeerDown, PeerUp, ToldRemoved
from node.messages import MAX_MESSAGE_BYTES, Message, decode_frame_untrusted, encode_frames, encode_message
from node.turn import Now
from routing.keyspace import NodeId

log = logging.getLogger(__name__)

TURN_EVENTS: Final = 2048  # of one turn: keeps a transaction below about 100 ms
TURN_BYTES: Final = 4 * 1024 * 1024  # of its messages: four full links, some 400 ms, in which nobody else is heard
INBOX_EVENTS: Final = 8192  # four turns; a full inbox stops reading, and TCP stops the sender
INBOX_BYTES: Final = 64 * 1024 * 1024  # of their messages
LEAST_CALLS: Final = TURN_CALLS // 8  # when members fill a turn: clients go on, and members hardly wait for it
_NO_NEEDS: Final = Needs()


class Sender(Protocol):
    """Where frames for members go: the mesh."""

    def send_nowait(self, peer: NodeId, payload: bytes) -> bool: ...
    def drop(self, peer: NodeId, reason: str) -> None: ...


class Driver:
    """Runs one core. Tasks give it events with `put` and `put_nowait`, and clients' calls with `calls.put`; `run` does
    the turns until cancelled."""

    def __init__(
        self,
        core: Core,
        database: Database,
        clock: Callable[[], Now],
        *,
        serve_read: Callable[[Read], None],
        look_up: Callable[[bytes], None],
        balances: Balances,
        on_neighbours: Callable[[frozenset[NodeId]], None] = lambda neighbours: None,
    ) -> None:
        self._core = core
        self._database = database
        self._clock = clock
        self._serve_read = serve_read
        self._look_up = look_up
        self._on_neighbours = on_neighbours
        self._balances = balances
        self._inbox: deque[tuple[Event, int]] = deque()  # with the bytes of its message
        self._inbox_bytes = 0
        self._arrived = trio.Event()
        self._room = trio.lowlevel.ParkingLot()
        self._nap = trio.CancelScope()  # in which `run` waits for what arrives
        self._committed = trio.lowlevel.ParkingLot()  # who waits for the commit that is under way
        self.mesh: Sender | None = None
        self.counters: Counter[str] = Counter()
        self.opened = 0  # accounts, by links that are in the database since this driver was made
        self.calls = ClientCalls(
            lambda: clock().mono, arrived=lambda: self._arrived.set(), due_by=self._wake_by, counters=self.counters
        )

    # --- events come in ---

    def put_nowait(self, event: Event, size: int = 0) -> None:
        """For events that are few by nature (connections up and down)."""
        self._inbox.append((event, size))
        self._inbox_bytes += size
        self._arrived.set()

    async def put(self, event: Event, size: int = 0) -> None:
        """Add an event, which came as `size` bytes, when there is room."""
        while len(self._inbox) >= INBOX_EVENTS or self._inbox_bytes >= INBOX_BYTES:
            await self._room.park()
        self.put_nowait(event, size)

    async def on_peer_frame(self, peer: NodeId, payload: bytes) -> None:
        """A frame of a member. Raises `RemoteFault` for one that cannot be read."""
        messages = decode_frame_untrusted(payload)
        for message in messages:
            await self.put(FromPeer(peer, message), len(payload) // len(messages))

    def on_peer_up(self, peer: NodeId, boot: bytes, *, replaced: bool) -> None:
        self.put_nowait(PeerUp(peer, boot, replaced))

    def on_peer_down(self, peer: NodeId, reason: str) -> None:
        self.put_nowait(PeerDown(peer))

    def on_removed(self, peer: NodeId, epoch: int) -> None:
        self.put_nowait(ToldRemoved(peer, epoch))

    def remove_session(self, session: Session) -> None:
        """The client is gone, and its reads that only wait, too. All else that the core has goes on."""
        if self.calls.remove_session(session):
            self.put_nowait(ClientGone(session.number))

    async def wait_committed(self, account: str) -> None:
        """Return when what a client may have been told of this account before now is in the database, by an answer or a
        balance. Empty: of any account."""
        if account in self._balances.under_way or (not account and self._balances.under_way):
            await self._committed.park()

    # --- turns ---

    async def run(self) -> None:
        """Turn after turn. Ends only by cancellation or with the error that stops the node."""
        while True:
            await self._wait()
            await self.turn()

    async def _wait(self) -> None:
        if self._inbox or self.calls:
            await trio.lowlevel.checkpoint()
            return
        self._arrived = trio.Event()
        times = [at for at in (self._core.deadline(), self.calls.due) if at is not None]
        with trio.move_on_at(min(times, default=float("inf"))) as self._nap:
            await self._arrived.wait()

    def _wake_by(self, when: float) -> None:
        """A turn has something to do then, also if nothing arrives until then."""
        if when < self._nap.deadline:
            self._nap.deadline = when

    async def turn(self) -> None:
        """One turn with what has arrived so far."""
        now = self._clock()
        self.calls.look_at_held(now.mono)
        events = self._take()
        self._room.unpark_all()
        needs = self._core.needs(events, now)
        loaded = Loaded() if needs == _NO_NEEDS else await self._database.run(load, needs)
        effects = self._core.step(loaded, now)
        stages = deque(effects.stages())
        # a stage that writes nothing leaves at once; there is no await before the balances have its links
        while stages and not stages[0].persist:
            self._emit(stages.popleft())
        if stages:
            *told, last = stages
            links = _links(effects.writes)
            with self._balances.committing(links, decided=effects.decided):
                for stage in told:
                    await self._commit(stage.persist)
                    self._emit(stage)
                await self._commit(last.persist)
            self.opened += sum(link.height == 0 for link in links)
            self._committed.unpark_all()
            self._emit(last)
        self.counters["turns"] += 1
        self.counters["events"] += len(events)

    def _take(self) -> list[Event]:
        """What has arrived, as much as one turn takes: of members, then of clients."""
        events: list[Event] = []
        size = 0
        while self._inbox and len(events) < TURN_EVENTS and size < TURN_BYTES:
            event, length = self._inbox.popleft()
            events.append(event)
            size += length
        self._inbox_bytes -= size
        left = 0 if self._inbox else TURN_BYTES - size
        events += self.calls.take(min(max(left, LEAST_CALLS), TURN_CALLS))
        return events

    async def _commit(self, writes: Sequence[Write]) -> None:
        if not writes:
            return
        await self._database.run(commit, writes)
        self.counters["commits"] += 1
        self.counters["rows_written"] += len(writes)

    def _emit(self, stage: Stage) -> None:
        """Everything that may leave now."""
        self._send(stage.send)
        for peer in stage.drops:
            assert self.mesh is not None
            self.mesh.drop(peer, "nothing was heard of it for too long")
        removed = None
        if stage.neighbours is not None:
            try:
                self._on_neighbours(stage.neighbours)
            except Removed as error:  # whoever waits for an answer of this turn gets it first
                removed = error
        for answer in stage.answers:
            self.calls.reply(answer.caller, answer.body)
        for read in stage.reads:
            if self.calls.is_there(read.caller):
                self._serve_read(read)
        for key in stage.lookups:
            self._look_up(key)
        if removed is not None:
            raise removed

    def _send(self, sends: Sequence[Send]) -> None:
        assert self.mesh is not None
        encoded: dict[int, bytes] = {}  # a message for many peers is one object: encode it once
        by_peer: dict[NodeId, list[bytes]] = {}
        for send in sends:
            message: Message = send.message
            raw = encoded.get(id(message))
            if raw is None:
                raw = encoded[id(message)] = encode_message(message)
            if len(raw) > MAX_MESSAGE_BYTES:  # lost like any other message may be; whoever waits for it asks again
                self.counters["messages_too_large"] += 1
                continue
            by_peer.setdefault(send.peer, []).append(raw)
        for peer, messages in by_peer.items():
            for frame in encode_frames(messages):
                self.mesh.send_nowait(peer, frame)


def _links(writes: Sequence[Write]) -> list[Link]:
    return [write.link for write in writes if isinstance(write, Applied)]

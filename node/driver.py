"""Driver: the only place where a node's core meets disk, network and clock (design section 7).

    take what has arrived, up to TURN_EVENTS or TURN_BYTES -> load -> step -> tell facts -> commit votes -> send, answer
    -> commit links -> read, look up

Nothing leaves before what it promises is durable (`Effects.stages`). A client that was told of a link reads it here,
too: reads of the accounts that it is about wait until the commit has ended. While a turn runs, the next one's events
gather in the inbox; that is the whole of group commit. The inbox is bounded: when it is full, connections are not read.

Clients' calls have a queue of their own, which they share (`FairQueue`, ADR 30): a turn takes what has come from
members first, whatever clients have waiting, then calls up to TURN_CALLS, of each client in turn. Of a client that has
READS_AT_ONCE linearizable reads under way the next ones are held here; its connection is read on, and its other calls
go on. One whose time is over while it is held goes to the core, which says so.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import trio

from chain.errors import RemoteFault, Removed
from chain.needs import Loaded, Needs, load
from chain.rows import Applied
from chain.store import Write, commit
from hopchain.wire import (
    MAX_CLIENT_FRAME_BYTES,
    MAX_UNANSWERED,
    MAX_UNANSWERED_BYTES,
    Refused,
    Reply,
    ReplyBody,
    encode,
)
from node.client_port import Session
from node.core import Core
from node.database import Database
from node.due import Due
from node.effects import Read, Send, Stage
from node.events import (
    Caller,
    ClientBalance,
    ClientChange,
    ClientGone,
    ClientSubmit,
    Event,
    FromPeer,
    PeerDown,
    PeerUp,
    ToldRemoved,
)
from node.fair import FairQueue
from node.messages import MAX_MESSAGE_BYTES, Message, decode_frame_untrusted, encode_frames, encode_message
from node.turn import Now
from routing.keyspace import NodeId

log = logging.getLogger(__name__)

TURN_EVENTS: Final = 2048  # of one turn: keeps a transaction below about 100 ms
TURN_BYTES: Final = 4 * 1024 * 1024  # of its messages: four largest links, some 400 ms, in which nobody else is heard
INBOX_EVENTS: Final = 8192  # four turns; a full inbox stops reading, and TCP stops the sender
INBOX_BYTES: Final = 64 * 1024 * 1024  # of their messages
CLIENT_CALLS: Final = MAX_UNANSWERED  # of one client that are not answered yet; above it the client is not read
CLIENT_BYTES: Final = MAX_UNANSWERED_BYTES  # of those calls: seven full transfers
CALL_BYTES: Final = 4096  # that a call weighs beside its own: as much of a link costs what its signature and answer do
TURN_CALLS: Final = 512 * CALL_BYTES  # weight of the calls of one turn, some 100 ms
LEAST_CALLS: Final = TURN_CALLS // 8  # when members fill a turn: clients go on, and members hardly wait for it
CALLS_WAITING: Final = 4096 * CALL_BYTES  # weight of those that wait for a turn: eight turns, in equal parts
READS_AT_ONCE: Final = 128  # linearizable, of one client: fewer slow one that asks alone, more slow all others
HELD_S: Final = 0.1  # the next begin when half of those are answered, or any so much later: a turn for each is slower
_NO_NEEDS: Final = Needs()
ClientCall = ClientSubmit | ClientChange | ClientBalance


class Sender(Protocol):
    """Where frames for members go: the mesh."""

    def send_nowait(self, peer: NodeId, payload: bytes) -> bool: ...
    def drop(self, peer: NodeId, reason: str) -> None: ...


class _Client:
    """A session, and its calls that are not answered yet."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.calls: dict[int, int] = {}  # number -> bytes
        self.bytes = 0
        self.reads: set[int] = set()  # numbers of the linearizable ones that the core has, or a turn is about to take
        self.held: deque[ClientBalance] = deque()  # those that came when these were READS_AT_ONCE
        self.held_at = 0.0  # when the first of them came, or others of them went on
        self.over = Due()  # when the time of one of them may be over


class Driver:
    """Runs one core. Tasks give it events with `put`, `put_nowait` and `put_call`; `run` does the turns until
    cancelled."""

    def __init__(
        self,
        core: Core,
        database: Database,
        clock: Callable[[], Now],
        *,
        serve_read: Callable[[Session, Read], None],
        look_up: Callable[[bytes], None],
        on_contacts: Callable[[frozenset[NodeId]], None] = lambda contacts: None,
        on_changed: Callable[[frozenset[str]], None] = lambda accounts: None,
    ) -> None:
        self._core = core
        self._database = database
        self._clock = clock
        self._serve_read = serve_read
        self._look_up = look_up
        self._on_contacts = on_contacts
        self._on_changed = on_changed
        self._inbox: deque[tuple[Event, int]] = deque()  # with the bytes of its message
        self._inbox_bytes = 0
        self._arrived = trio.Event()
        self._room = trio.lowlevel.ParkingLot()
        self._clients: dict[int, _Client] = {}  # by number of the session
        self._answered = trio.lowlevel.ParkingLot()
        self._calls: FairQueue[ClientCall] = FairQueue()
        self._taken = trio.lowlevel.ParkingLot()
        self._held = Due()  # when a read that is held may begin, or its time be over
        self._nap = trio.CancelScope()  # in which `run` waits for what arrives
        # accounts of links that clients know of and the database not yet
        self._committing: frozenset[str] = frozenset()
        self._committed = trio.lowlevel.ParkingLot()
        self.mesh: Sender | None = None
        self.counters: Counter[str] = Counter()

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

    def add_session(self, session: Session) -> None:
        """Answers for this client go to this session."""
        if session.number not in self._clients:
            self._clients[session.number] = _Client(session)

    def remove_session(self, session: Session) -> None:
        """The client is gone: its answers are dropped, its calls that no turn has taken, and its reads that only wait.
        All else that the core has goes on."""
        client = self._clients.pop(session.number, None)
        if client is not None and client.calls:
            self.put_nowait(ClientGone(session.number))
        self._calls.forget(session.number)
        self._answered.unpark_all()
        self._taken.unpark_all()

    async def wait_for_room(self, caller: Caller, size: int) -> None:
        """Count a call of `size` bytes until it is answered; wait while its client has too many that are not. Raises
        `RemoteFault` for one whose number is that of another: it would not be counted."""
        while (client := self._clients.get(caller.session)) is not None:
            if caller.number in client.calls:
                raise RemoteFault("malformed", f"call {caller.number} comes again before it is answered: count on")
            if len(client.calls) < CLIENT_CALLS and (not client.calls or client.bytes + size <= CLIENT_BYTES):
                client.calls[caller.number] = size
                client.bytes += size
                return
            await self._answered.park()

    async def put_call(self, call: ClientCall, size: int = 0) -> None:
        """Add a client's call, which came as `size` bytes; return when its client may send the next one. Dropped when
        the client is gone."""
        number = call.caller.session
        client = self._clients.get(number)
        if client is None:
            return
        if isinstance(call, ClientBalance) and call.ask.linearizable:
            if client.held or len(client.reads) >= READS_AT_ONCE:
                if not client.held:
                    client.held_at = self._clock().mono
                client.held.append(call)
                if call.until is not None:
                    client.over.by(call.until)
                    self._look_by(call.until)
                return
            client.reads.add(call.caller.number)
        self._push(call, size)
        while self._calls.weight(number) > CALLS_WAITING // max(1, self._calls.lines):
            await self._taken.park()

    def _push(self, call: ClientCall, size: int) -> None:
        self._calls.push(call.caller.session, call, size + CALL_BYTES)
        self._arrived.set()

    def _read_on(self, client: _Client, now: float) -> None:
        """Begin the held reads of this client that have a place, at once when they are half of READS_AT_ONCE, else in
        time."""
        free = READS_AT_ONCE - len(client.reads)
        if not client.held or not free:
            return
        if free < READS_AT_ONCE // 2 and now < client.held_at + HELD_S:
            self._look_by(client.held_at + HELD_S)
            return
        client.held_at = now
        for _ in range(min(free, len(client.held))):
            read = client.held.popleft()
            client.reads.add(read.caller.number)
            self._push(read, 0)

    def _look_by(self, when: float) -> None:
        """`_look_at_held` has something to do then, also if nothing arrives and nothing is answered until then."""
        self._held.by(when)
        if when < self._nap.deadline:
            self._nap.deadline = when

    def _look_at_held(self, now: float) -> None:
        """Whose timers are due: reads that have had a place for long enough, and those whose time is over."""
        if not self._held.passed(now):
            return
        for client in self._clients.values():
            if client.held:
                if client.over.passed(now):
                    self._hand_over_late(client, now)
                self._read_on(client, now)
                if client.over.at is not None:
                    self._held.by(client.over.at)

    def _hand_over_late(self, client: _Client, now: float) -> None:
        """Those whose time is over take no place: the core asks nobody about them, and tells their client at once."""
        held, client.held = client.held, deque()
        for read in held:
            if read.until is not None and read.until <= now:
                self._push(read, 0)
                continue
            client.held.append(read)
            if read.until is not None:
                client.over.by(read.until)

    async def wait_committed(self, account: str) -> None:
        """Return when what a client may have been told of this account before now is in the database. Empty: of any
        account."""
        if self._committing and (not account or account in self._committing):
            await self._committed.park()

    # --- turns ---

    async def run(self) -> None:
        """Turn after turn. Ends only by cancellation or with the error that stops the node."""
        while True:
            await self._wait()
            await self.turn()

    async def _wait(self) -> None:
        if self._inbox or self._calls:
            await trio.lowlevel.checkpoint()
            return
        self._arrived = trio.Event()
        times = [at for at in (self._core.deadline(), self._held.at) if at is not None]
        with trio.move_on_at(min(times, default=float("inf"))) as self._nap:
            await self._arrived.wait()

    async def turn(self) -> None:
        """One turn with what has arrived so far."""
        now = self._clock()
        self._look_at_held(now.mono)
        events = self._take()
        self._room.unpark_all()
        needs = self._core.needs(events, now)
        loaded = Loaded() if needs == _NO_NEEDS else await self._database.run(load, needs)
        effects = self._core.step(loaded, now)
        *told, last = effects.stages()
        for stage in told:
            await self._commit(stage.persist)
            if stage.answers:
                self._committing = _accounts(effects.writes)
            self._emit(stage)
        await self._commit(last.persist)
        self._committing = frozenset()
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
        most = min(max(left, LEAST_CALLS), TURN_CALLS)
        weight = 0
        while weight < most and (taken := self._calls.pop()) is not None:
            call, more = taken
            events.append(call)
            weight += more
        if weight:
            self._taken.unpark_all()
        return events

    async def _commit(self, writes: Sequence[Write]) -> None:
        if not writes:
            return
        await self._database.run(commit, writes)
        self.counters["commits"] += 1
        self.counters["rows_written"] += len(writes)
        changed = _accounts(writes)
        if changed:
            self._on_changed(changed)

    def _emit(self, stage: Stage) -> None:
        """Everything that may leave now."""
        self._send(stage.send)
        for peer in stage.drops:
            assert self.mesh is not None
            self.mesh.drop(peer, "nothing was heard of it for too long")
        removed = None
        if stage.contacts is not None:
            try:
                self._on_contacts(stage.contacts)
            except Removed as error:  # whoever waits for an answer of this turn gets it first
                removed = error
        for answer in stage.answers:
            self.reply(answer.caller, answer.body)
        for read in stage.reads:
            client = self._clients.get(read.caller.session)
            if client is not None:
                self._serve_read(client.session, read)
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

    def reply(self, caller: Caller, body: ReplyBody) -> None:
        """Answer a client that is still there."""
        client = self._clients.get(caller.session)
        if client is None:
            return
        client.bytes -= client.calls.pop(caller.number, 0)
        self._answered.unpark_all()
        if caller.number in client.reads:
            client.reads.discard(caller.number)
            self._read_on(client, self._clock().mono)
        payload = encode(Reply(caller.number, body))
        if len(payload) > MAX_CLIENT_FRAME_BYTES:
            self.counters["answers_too_large"] += 1
            reason = f"the answer has {len(payload)} bytes, more than {MAX_CLIENT_FRAME_BYTES}: ask for less at once"
            payload = encode(Reply(caller.number, Refused("too_large", reason)))
        client.session.send_nowait(payload)


def _accounts(writes: Sequence[Write]) -> frozenset[str]:
    """Whose balance or chain the applied links change."""
    links = [write.link for write in writes if isinstance(write, Applied)]
    return frozenset(link.account for link in links).union(*(link.recipients for link in links))

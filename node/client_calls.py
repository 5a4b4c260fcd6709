"""Clients' calls: which of them come into a turn, whose answers go where, and who is not read for a while.

The calls have a queue, which clients share (`FairQueue`, ADR 30): a turn takes as many as the driver lets it, of each
client in turn. A client with CLIENT_CALLS or CLIENT_BYTES that are not answered is not read, nor is one with more than
its part of what may wait for a turn.

Of a client that has READS_AT_ONCE linearizable reads under way the next ones are held here; its connection is read on,
and its other calls go on. One whose time is over while it is held goes to the core, which says so.
"""

from collections import Counter, deque
from collections.abc import Callable
from typing import Final

import trio

from chain.errors import RemoteFault
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
from node.due import Due
from node.events import Caller, ClientBalance, ClientChange, ClientSubmit
from node.fair import FairQueue

CLIENT_CALLS: Final = MAX_UNANSWERED  # of one client that are not answered yet; above it the client is not read
CLIENT_BYTES: Final = MAX_UNANSWERED_BYTES  # of those calls: seven full transfers
CALL_BYTES: Final = 4096  # that a call weighs beside its own: as much of a link costs what its signature and answer do
TURN_CALLS: Final = 512 * CALL_BYTES  # weight of the calls of one turn, some 100 ms
CALLS_WAITING: Final = 4096 * CALL_BYTES  # weight of those that wait for a turn: eight turns, in equal parts
READS_AT_ONCE: Final = 128  # linearizable, of one client: fewer slow one that asks alone, more slow all others
# Held reads begin in batches: when half the places are free, or HELD_S after the last batch (or the first held read). A
# turn for each would be slower.
HELD_S: Final = 0.1
ClientCall = ClientSubmit | ClientChange | ClientBalance


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


class ClientCalls:
    """The calls of all clients of a node.

    `arrived()` is called when one waits for a turn, and `due_by(seconds)` when `look_at_held` has something to do at
    that time, perhaps sooner than `due` said when it was last asked. Times are of `clock`, monotonic.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        arrived: Callable[[], None],
        due_by: Callable[[float], None],
        counters: Counter[str],
    ) -> None:
        self._clock = clock
        self._arrived = arrived
        self._due_by = due_by
        self._counters = counters
        self._clients: dict[int, _Client] = {}  # by number of the session
        self._answered = trio.lowlevel.ParkingLot()
        self._waiting: FairQueue[ClientCall] = FairQueue()
        self._taken = trio.lowlevel.ParkingLot()
        self._held = Due()  # when a read that is held may begin, or its time be over

    def __bool__(self) -> bool:
        """A call waits for a turn."""
        return bool(self._waiting)

    @property
    def due(self) -> float | None:
        """When to look at the reads that are held, at the latest."""
        return self._held.at

    # --- sessions ---

    def add_session(self, session: Session) -> None:
        """Answers for this client go to this session."""
        if session.number not in self._clients:
            self._clients[session.number] = _Client(session)

    def remove_session(self, session: Session) -> bool:
        """The client is gone: its answers are dropped, and its calls that no turn has taken. True when it had some that
        are not answered."""
        client = self._clients.pop(session.number, None)
        self._waiting.forget(session.number)
        self._answered.unpark_all()
        self._taken.unpark_all()
        return client is not None and bool(client.calls)

    def is_there(self, caller: Caller) -> bool:
        """Its client has not gone."""
        return caller.session in self._clients

    # --- calls come in ---

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

    async def put(self, call: ClientCall, size: int = 0) -> None:
        """Add a call, which came as `size` bytes; return when its client may send the next one. Dropped when the client
        is gone."""
        number = call.caller.session
        client = self._clients.get(number)
        if client is None:
            return
        if isinstance(call, ClientBalance) and call.ask.linearizable:
            if client.held or len(client.reads) >= READS_AT_ONCE:
                self._hold(client, call)
                return
            client.reads.add(call.caller.number)
        self._push(call, size)
        while self._waiting.weight(number) > CALLS_WAITING // max(1, self._waiting.lines):
            await self._taken.park()

    def _push(self, call: ClientCall, size: int) -> None:
        self._waiting.push(call.caller.session, call, size + CALL_BYTES)
        self._arrived()

    # --- turns take them ---

    def take(self, most: int) -> list[ClientCall]:
        """Until they weigh `most`, or none is left."""
        taken: list[ClientCall] = []
        weight = 0
        while weight < most and (item := self._waiting.pop()) is not None:
            call, more = item
            taken.append(call)
            weight += more
        if taken:
            self._taken.unpark_all()
        return taken

    # --- answers go out ---

    def reply(self, caller: Caller, body: ReplyBody) -> None:
        """Answer a client that is still there."""
        client = self._clients.get(caller.session)
        if client is None:
            return
        client.bytes -= client.calls.pop(caller.number, 0)
        self._answered.unpark_all()
        if caller.number in client.reads:
            client.reads.discard(caller.number)
            self._read_on(client, self._clock())
        payload = encode(Reply(caller.number, body))
        if len(payload) > MAX_CLIENT_FRAME_BYTES:
            self._counters["answers_too_large"] += 1
            reason = f"the answer has {len(payload)} bytes, more than {MAX_CLIENT_FRAME_BYTES}: ask for less at once"
            payload = encode(Reply(caller.number, Refused("too_large", reason)))
        client.session.send_nowait(payload)

    # --- reads that are held ---

    def look_at_held(self, now: float) -> None:
        """Begin the held reads that have a place, when HELD_S is over; hand those whose time is over to the core."""
        if not self._held.passed(now):
            return
        for client in self._clients.values():
            if client.held:
                if client.over.passed(now):
                    self._hand_over_late(client, now)
                self._read_on(client, now)
                if client.over.at is not None:
                    self._held.by(client.over.at)

    def _hold(self, client: _Client, read: ClientBalance) -> None:
        if not client.held:
            client.held_at = self._clock()
        client.held.append(read)
        if read.until is not None:
            client.over.by(read.until)
            self._look_by(read.until)

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

    def _look_by(self, when: float) -> None:
        """`look_at_held` has something to do then, also if nothing arrives and nothing is answered until then."""
        self._held.by(when)
        self._due_by(when)

"""Calls over one connection: many in flight, replies in any order.

* `dial` connects and exchanges hellos (`hopchain.connection`); `ConnectionFailed` says why it cannot.
* `run` reads, writes and watches until the connection ends; then every waiting call raises `ConnectionLost`, or another
  `ConnectionFailed` if it has not left: the node certainly does not have it.
* `call` may be used by any number of tasks. A call that is cancelled leaves its number behind; its late reply is
  dropped. One that has not left by then never leaves.
* A connection has room for less than the node takes before it reads no further (hopchain.room); who finds none waits.
* Calls that are made before the writer comes to them leave together in one write, without anything waiting for more to
  come: a busy client batches, an idle one does not.

A connection on which calls wait, for an answer or for room, but nothing is heard for `ping_after_s` is asked for a
sign of life; when none comes within `dead_after_s`, less what was waited before, it is given up. TCP alone would take
minutes to notice. A call that nobody waits for any more leaves the silence what it is: many short ones find out as well
as one long one.
"""

import math
import ssl
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import msgspec

from chain.errors import LocalMisuse, RemoteFault, cut
from hopchain import connection
from hopchain.addresses import Address
from hopchain.room import Room
from hopchain.wire import (
    MAX_UNANSWERED,
    MAX_UNANSWERED_BYTES,
    AskStatus,
    Call,
    CallBody,
    NodeFrame,
    Refused,
    Reply,
    ReplyBody,
    decode_node_frame_untrusted,
    encode,
)

LONGEST_S: Final = 86_400.0  # that a call may wait: a day; nodes answer much earlier
WRITE_BYTES: Final = 256 * 1024  # of calls that leave together; past this, one write more no longer shows
_WAS_CLOSED: Final = "had its connection closed by this client"
SIGNS_OF_LIFE: Final = 24  # that may be asked for on one connection and not be answered
_LONGEST_NUMBER: Final = 2**64 - 1  # as it travels
_SIGN_BYTES: Final = 64  # more than one takes
# Calls of one connection that are not answered: fewer than a node bears, so that it reads on
MAX_IN_FLIGHT: Final = MAX_UNANSWERED - SIGNS_OF_LIFE
MAX_IN_FLIGHT_BYTES: Final = MAX_UNANSWERED_BYTES - SIGNS_OF_LIFE * _SIGN_BYTES  # of those, unless it is one alone


def checked_seconds(name: str, given: object) -> float:
    """A time to wait; `LocalMisuse` names it when it is none. 0 is no time, which is not the same as no limit."""
    if isinstance(given, int | float) and 0 <= given <= LONGEST_S:
        return given
    raise LocalMisuse(f"{name}={given!r}: give seconds, 0 to {LONGEST_S:g}; there is no call without a limit")


class Timing(msgspec.Struct, frozen=True):
    """How patient a client is, in seconds."""

    dial_s: float = connection.DIAL_S  # TCP, TLS and hello together
    ping_after_s: float = 1.0  # silence, while calls wait, before a sign of life is asked for
    dead_after_s: float = 4.0  # silence before the connection is given up
    read_s: float = 10.0  # one question over all nodes tried, unless the call has a `timeout_s` of its own

    def checked(self) -> "Timing":
        """Itself; `LocalMisuse` names a value that is no time to wait. Only a question may have none."""
        for name in self.__struct_fields__:
            if checked_seconds(f"Timing.{name}", getattr(self, name)) == 0 and name != "read_s":
                raise LocalMisuse(f"Timing.{name}=0: give more than 0 seconds; no node answers in no time")
        return self


class ConnectionLost(connection.ConnectionFailed):
    """The connection ended before the reply. The node may have the call."""


class _Waiter:
    """A call that waits for its reply."""

    __slots__ = ("done", "reply")

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.reply: ReplyBody | None = None


async def dial(address: Address, context: ssl.SSLContext, network: bytes, timing: Timing) -> "Calls":
    """Connect to a node; the caller runs `Calls.run` next. Raises `ConnectionFailed`."""
    stream = await connection.connect(
        address.host, address.port, context=context, network=network, timeout_s=timing.dial_s
    )
    return Calls(address, stream, timing)


class Calls:
    """An open connection with its calls; made by `dial`."""

    def __init__(self, address: Address, stream: connection.Connection, timing: Timing) -> None:
        self.address = address
        self.node_id = stream.node_id
        self.lost: str | None = None
        self._stream = stream
        self._timing = timing
        self._waiting: dict[int, _Waiter] = {}
        self._unanswered: dict[int, int] = {}  # number -> bytes, also of calls that nobody waits for any more
        self._signs: set[int] = set()  # numbers of signs of life that are asked for and not answered
        self._number = 0
        self._outbox: dict[int, bytes] = {}  # calls that have not left, by number, in order
        self._wake = anyio.Event()
        self._busy = anyio.Event()
        self._busy_since = 0.0  # no later than the first call that nothing was heard after
        self._heard_at = 0.0
        self._room = Room(MAX_IN_FLIGHT, MAX_IN_FLIGHT_BYTES)

    @property
    def full(self) -> bool:
        """The next call would wait for room."""
        return self._room.full

    async def call(self, body: CallBody, deadline: float = math.inf) -> ReplyBody | None:
        """Send one call and wait for its reply: None when there is none by the deadline, and the node may have the
        call. Raises `ConnectionLost` when the connection ended and the node may have it, another `ConnectionFailed`
        when it never left."""
        waiter = _Waiter()
        left = False
        size = len(encode(Call(_LONGEST_NUMBER, body)))
        with anyio.CancelScope(deadline=deadline):
            self._begin_waiting()
            await self._room.enter(size)
            if self.lost is not None:
                self._room.leave(size)
                raise connection.ConnectionFailed(str(self.address), self.lost)
            self._begin_waiting()  # again: the last one in line waits for nothing before it runs
            number = self._post(body)
            self._unanswered[number] = size
            self._waiting[number] = waiter
            try:
                await waiter.done.wait()
            finally:
                self._waiting.pop(number, None)
                left = self._outbox.pop(number, None) is None
                if not left:
                    self._over(number)
        if waiter.reply is not None:
            return waiter.reply
        if not left:
            why = f"was not handed it in time: {self._room.taken} calls wait on its connection"
            raise connection.ConnectionFailed(str(self.address), self.lost or why)
        if self.lost is not None:
            raise ConnectionLost(str(self.address), self.lost)
        return None

    async def run(self) -> None:
        """Serve the connection until it ends or is cancelled. Raises nothing of its own: `lost` says why it ended."""
        try:
            async with anyio.create_task_group() as tasks:
                for part in (self._read, self._write, self._watch):
                    tasks.start_soon(self._until_lost, part, tasks.cancel_scope)
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close a connection that does not run."""
        self.lose(_WAS_CLOSED)
        await self._stream.aclose()

    def lose(self, why: str) -> None:
        """Give the connection up: no more calls, and those that wait are told. The first reason stays; it follows the
        node's address."""
        if self.lost is None:
            self.lost = why
            self._wake.set()
            self._room.end()
            for waiter in self._waiting.values():
                waiter.done.set()

    @property
    def _awaited(self) -> bool:
        """Somebody waits, for an answer or for room."""
        return bool(self._waiting) or self._room.waited_for

    def _begin_waiting(self) -> None:
        """Watch the connection for somebody who waits from now on."""
        if not self._awaited:
            if self._heard_at >= self._busy_since:
                self._busy_since = anyio.current_time()
            self._busy.set()

    def _post(self, body: CallBody) -> int:
        self._number += 1
        self._outbox[self._number] = encode(Call(self._number, body))
        self._wake.set()
        return self._number

    async def _until_lost(self, part: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
        try:
            await part()
        except connection.ConnectionFailed as error:
            self.lose(error.cause)
        except (RemoteFault, msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            self.lose(cut(f"broke the protocol: {error}"))
        scope.cancel()

    async def _read(self) -> None:
        while self.lost is None:
            payload = await self._stream.receive()
            self._heard_at = anyio.current_time()
            self._hear(decode_node_frame_untrusted(payload))

    def _hear(self, message: NodeFrame) -> None:
        if isinstance(message, Refused):
            self.lose(cut(f"closed the connection: {message.reason} [{message.code}]"))
        elif not isinstance(message, Reply) or not 0 < message.number <= self._number:
            raise RemoteFault("unexpected", f"a {type(message).__name__} that answers no call")
        else:
            self._over(message.number)
            if (waiter := self._waiting.pop(message.number, None)) is not None:
                waiter.reply = message.body
                waiter.done.set()

    def _over(self, number: int) -> None:
        """The node does not count this call any more: it has answered it, or never had it."""
        self._signs.discard(number)
        if (size := self._unanswered.pop(number, None)) is not None:
            self._room.leave(size)

    async def _write(self) -> None:
        while self.lost is None:
            await self._wake.wait()
            self._wake = anyio.Event()
            while self._outbox and self.lost is None:
                await self._stream.send(*take_write(self._outbox))

    async def _watch(self) -> None:
        timing = self._timing
        pinged_since = -1.0  # the silence that a ping was sent into
        give_up_at = 0.0  # when it has no answer by then
        while self.lost is None:
            quiet_since = max(self._heard_at, self._busy_since)
            pinged = pinged_since == quiet_since
            if not (self._awaited or pinged):
                self._busy = anyio.Event()
                await self._busy.wait()
                continue
            now = anyio.current_time()
            if pinged and now >= give_up_at:
                self.lose(f"has been silent for {timing.dead_after_s:g} s")
            elif not pinged and now >= quiet_since + timing.ping_after_s:
                if len(self._signs) < SIGNS_OF_LIFE:  # else one that was asked for before is waited for
                    self._signs.add(self._post(AskStatus()))
                pinged_since, give_up_at = quiet_since, now + timing.dead_after_s - timing.ping_after_s
            else:
                due = give_up_at if pinged else quiet_since + timing.ping_after_s
                await anyio.sleep_until(min(due, now + timing.ping_after_s))


def take_write(outbox: dict[int, bytes]) -> list[bytes]:
    """Take out of the outbox what leaves in the next write: the first calls, at most WRITE_BYTES of them, or one."""
    part: list[bytes] = []
    size = 0
    while outbox:
        number = next(iter(outbox))
        size += len(outbox[number])
        if part and size > WRITE_BYTES:
            break
        part.append(outbox.pop(number))
    return part

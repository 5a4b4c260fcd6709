"""One framed stream with a bounded queue of what is to be sent; under both the peers' and the clients' connections.

* Receiving is back-pressure: the next frame is read when the handler of the last one has returned.
* Who shares a `Pace` shares the thread: frames that are answered at once are handled for BURST_S, then others run.
* Sending never waits: `send_nowait` queues up to `queue_bytes` and says False beyond. One task writes; what has
  queued up meanwhile goes out in one piece.
* `stop(code, text)` ends it from anywhere; the first reason counts. `dismiss(fault)` does so with a word to the other
  side. `run` returns when all of it is over, and never takes a `Cancelled` for itself.

The first frames (hellos) are exchanged with `send` and `receive` before `run`.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

import trio

from chain.errors import LocalMisuse, NotReady, RemoteFault
from hopchain.framing import HEADER_BYTES, FrameReader, frame, frame_header
from node.tls import RECEIVE_BYTES
from routing.datagrams import bind_advice, is_not_ready

STEP_BYTES: Final = 256 * 1024  # what a channel keeps is looked at in such steps: `on_more`
COALESCE_BYTES: Final = 256 * 1024  # of one write: past this, system calls no longer show
CLOSE_S: Final = 0.5  # for TLS's goodbye, which nobody relies on
FLUSH_S: Final = 1.0  # for what is queued when a connection is closed on purpose
BURST_S: Final = 0.0002  # of one channel's frames: a few calls; the way through the scheduler costs 5 us


class Network(Protocol):
    """TCP, or what a test puts in its place."""

    async def listen(self, host: str, port: int) -> tuple[Sequence[trio.abc.Listener[trio.abc.Stream]], int]:
        """Listeners on `host`, and the port they have (`port` 0: any). `LocalMisuse` when that cannot be, `NotReady`
        when it cannot be now."""
        ...

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        """A connection. `OSError` when there is none."""
        ...


def not_known_yet(host: str) -> str:
    """What a node says that cannot have `host` looked up."""
    return (
        f"host {host} in config.toml cannot be looked up now: is the network of this machine up, and its name service? "
        "An address needs neither"
    )


async def check_name(host: str) -> None:
    """`NotReady` when `host` cannot be looked up now. What else is wrong with it says who listens there."""
    try:
        await trio.socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        if is_not_ready(error):
            raise NotReady(not_known_yet(host)) from None


class TcpNetwork:
    """The kernel's TCP."""

    async def listen(self, host: str, port: int) -> tuple[Sequence[trio.abc.Listener[trio.abc.Stream]], int]:
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except (OSError, UnicodeError) as error:  # the latter: what cannot be the name of a host
            if is_not_ready(error):
                raise NotReady(not_known_yet(host)) from None
            why = (error.strerror if isinstance(error, OSError) else "") or error
            raise LocalMisuse(
                f"port {port} of {host} cannot be listened on ({why}): {bind_advice(error)} (host, port and "
                "client_port in config.toml)"
            ) from None
        return listeners, listeners[0].socket.getsockname()[1]

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        return await trio.open_tcp_stream(host, port)


class Pace:
    """For channels that others must not wait for, however many they are. Who has had BURST_S waits in one line with all
    the others of whom that is true, and from there one goes on in each pass of the scheduler. Without the line each
    would go on in each pass, and whoever needs several, as a payment does, would wait for all of them each time."""

    def __init__(self) -> None:
        self._line = trio.StrictFIFOLock()

    async def wait_turn(self) -> None:
        """Let all others run that can, and those go first that came to the line before."""
        async with self._line:
            pass  # to take it is to let others run


class Channel:
    """Frames over one stream. `frame_limit` bytes each way in one frame, `queue_bytes` unsent at most. `on_more`: it
    holds some STEP_BYTES more than before. Without a `pace`, frames that have arrived together are handled one after
    the other."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        frame_limit: int,
        queue_bytes: int,
        on_more: Callable[[], None] = lambda: None,
        pace: Pace | None = None,
    ) -> None:
        assert queue_bytes >= HEADER_BYTES + frame_limit, (queue_bytes, frame_limit)
        self._stream = stream
        self._reader = FrameReader(frame_limit)
        self._frame_limit = frame_limit
        self._queue_bytes = queue_bytes
        self._on_more = on_more
        self._pace = pace
        self._steps = 0  # that it held when it was looked at last
        self._outbox: deque[bytes] = deque()
        self._queued = 0
        self._filled = trio.lowlevel.ParkingLot()
        self._drained = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope()
        self._listening = trio.CancelScope()
        self._fault: RemoteFault | None = None
        self._reason: tuple[str, str] | None = None

    @property
    def reason(self) -> tuple[str, str] | None:
        """Why it was stopped: (code, text); None while it may still be used."""
        return self._reason

    @property
    def queued(self) -> int:
        """Bytes accepted by `send_nowait` and not yet given to the kernel."""
        return self._queued

    @property
    def held(self) -> int:
        """Bytes that it keeps: of a frame that has not arrived whole, and of what waits to be sent."""
        return self._reader.pending + self._queued

    @property
    def ending(self) -> bool:
        """It was stopped or dismissed."""
        return self._reason is not None or self._fault is not None

    def _look(self) -> None:
        before, self._steps = self._steps, self.held // STEP_BYTES
        if self._steps > before:
            self._on_more()

    def limit_frames(self, limit: int) -> None:
        """From the next frame on, receive up to `limit` bytes."""
        self._reader.limit = limit

    async def send(self, payload: bytes) -> None:
        """Send one frame now; only before `run`."""
        await self._stream.send_all(frame(payload))

    async def receive(self) -> bytes | None:
        """The next payload, None at the end of the stream. `RemoteFault`: `oversize`, `cut_frame`."""
        while (payload := self._reader.pop()) is None:
            data = await self._stream.receive_some(RECEIVE_BYTES)
            if not data:
                if self._reader.pending:
                    raise RemoteFault("cut_frame", f"the stream ended {self._reader.pending} bytes into a frame")
                return None
            self._reader.push(data)
            self._look()
        return payload

    def send_nowait(self, payload: bytes) -> bool:
        """Queue one frame; False when it is stopped or the queue has no room for it. AssertionError for one above the
        limit, which the other side would refuse: the caller splits it."""
        assert len(payload) <= self._frame_limit, (len(payload), self._frame_limit)
        size = HEADER_BYTES + len(payload)
        if self._reason is not None or self._queued + size > self._queue_bytes:
            return False
        self._outbox += (frame_header(payload), payload)
        self._queued += size
        self._filled.unpark()
        self._look()
        return True

    async def wait_flushed(self) -> None:
        """Return when everything queued is sent, or it is stopped."""
        while self._queued and self._reason is None:
            await self._drained.park()

    def stop(self, code: str, text: str) -> None:
        """End it; `run` returns soon. Later reasons are not heard."""
        self._reason = self._reason or (code, text)
        self._drained.unpark_all()
        self._scope.cancel()

    def dismiss(self, fault: RemoteFault) -> None:
        """End it as a fault of the other side does: it is told why, when it reads."""
        self._fault = self._fault or fault
        self._listening.cancel()

    async def run(
        self,
        on_frame: Callable[[bytes], Awaitable[None]],
        farewell: Callable[[RemoteFault], bytes] | None = None,
    ) -> tuple[str, str]:
        """Pass each frame to `on_frame` and send what is queued, until `stop`, the end of the stream, or a
        `RemoteFault` (of the framing or of `on_frame`), which is answered with `farewell(fault)`, unless that is
        above the limit of a frame. Returns the reason."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    await self._read(on_frame, farewell)
        finally:
            self.stop("shutdown", "this node stops")
            # Errors refer to this channel: what it kept must not wait for the collector.
            self._reader = FrameReader(self._frame_limit)
            self._outbox.clear()
            await self.aclose()
        assert self._reason is not None
        return self._reason

    async def aclose(self) -> None:
        """Close the stream, politely for at most CLOSE_S."""
        with trio.move_on_after(CLOSE_S, shield=True):
            with suppress(trio.BrokenResourceError):
                await self._stream.aclose()

    async def _read(
        self,
        on_frame: Callable[[bytes], Awaitable[None]],
        farewell: Callable[[RemoteFault], bytes] | None,
    ) -> None:
        try:
            with self._listening:
                spent_s = 0.0  # on frames that were answered at once, since others were let run for it
                while (payload := await self.receive()) is not None:
                    began, queued = trio.current_time(), self._queued
                    await on_frame(payload)
                    if self._queued > queued:  # else it waits for the node, which takes together what came together
                        spent_s += trio.current_time() - began
                    if self._pace is not None and spent_s >= BURST_S:
                        spent_s = 0.0
                        await self._pace.wait_turn()
            if self._fault is not None:
                raise self._fault
        except RemoteFault as fault:
            last = None if farewell is None else farewell(fault)
            # It says what the other side did, so its size is never a bug that may stop the node.
            told = last is not None and len(last) <= self._frame_limit and self.send_nowait(last)
            self._reason = self._reason or (fault.code, fault.text)  # nothing more is queued behind the farewell
            with trio.move_on_after(FLUSH_S):
                while told and self._queued:
                    await self._drained.park()
            self.stop(fault.code, fault.text)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.stop("lost", "the connection broke")
        else:
            self.stop("closed", "the other side closed the connection")

    async def _write(self) -> None:
        try:
            while True:
                while not self._outbox:
                    await self._filled.park()
                batch = self._take()
                await self._stream.send_all(batch)
                self._queued -= len(batch)
                if not self._queued:
                    self._drained.unpark_all()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.stop("lost", "the connection broke")

    def _take(self) -> bytes:
        """Whole frames from the front of the queue, up to COALESCE_BYTES unless the first alone is longer."""
        parts = [self._outbox.popleft(), self._outbox.popleft()]
        size = len(parts[0]) + len(parts[1])
        while self._outbox and size + HEADER_BYTES + len(self._outbox[1]) <= COALESCE_BYTES:
            parts += (self._outbox.popleft(), self._outbox.popleft())
            size += len(parts[-2]) + len(parts[-1])
        return b"".join(parts)

"""One framed stream with a bounded queue of what is to be sent; under both the peers' and the clients' connections.

* Receiving is back-pressure: the next frame is read when the handler of the last one has returned.
* Who shares a `Pace` shares the thread: frames that are answered at once are handled for BURST_S, then others run.
* Sending never waits: `send_nowait` queues up to `queue_bytes` and says False beyond. One task writes; what has
  queued up meanwhile goes out in one piece.
* `stop(code, text)` ends it from anywhere; the first reason counts. `dismiss(fault)` does so with a word to the other side.
  `run` returns when all of it is over, and never takes a `Cancelled` for itself.

The first frames (hellos) are exchanged with `send` and `receive` before `run`.
"""

import ipaddress
import logging
import ssl
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, Protocol

import trio

from chain.errors import LocalMisuse, RemoteFault
from hopchain.framing import HEADER_BYTES, FrameReader, frame, frame_header
from node.tls import RECEIVE_BYTES

log = logging.getLogger(__name__)

STEP_BYTES: Final = 256 * 1024  # what a channel keeps is looked at in such steps: `on_more`
COALESCE_BYTES: Final = 256 * 1024  # of one write: past this, system calls no longer show
CLOSE_S: Final = 0.5  # for TLS's goodbye, which nobody relies on
FLUSH_S: Final = 1.0  # for what is queued when a connection is closed on purpose
HANDSHAKE_S: Final = 5.0  # TLS and hellos: a few round trips, and a busy machine
MAX_HANDSHAKES: Final = (
    256  # at once on one port (`Strangers`), a descriptor and some 50 KiB each; more wait in the kernel's backlog
)
PATIENCE_S: Final = 0.5  # in which a busy node does so many handshakes
BURST_S: Final = 0.0002  # of one channel's frames: a few calls; the way through the scheduler costs 5 us
ACCEPT_RETRY_S: Final = 0.1  # out of descriptors: give others time to close theirs


class Network(Protocol):
    """TCP, or what a test puts in its place."""

    async def listen(self, host: str, port: int) -> tuple[Sequence[trio.abc.Listener[trio.abc.Stream]], int]:
        """Listeners on `host`, and the port they have (`port` 0: any)."""
        ...

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        """A connection. `OSError` when there is none."""
        ...


class TcpNetwork:
    """The kernel's TCP, with keep-alive so that a vanished client does not hold its place for ever."""

    async def listen(self, host: str, port: int) -> tuple[Sequence[trio.abc.Listener[trio.abc.Stream]], int]:
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            raise LocalMisuse(
                f"port {port} of {host} cannot be listened on ({error.strerror or error}): stop what uses it, or choose "
                "another host and port in config.toml"
            ) from None
        return listeners, listeners[0].socket.getsockname()[1]

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        return await trio.open_tcp_stream(host, port)


class Pace:
    """For channels that others must not wait for, however many they are. Who has had BURST_S waits in one line with all the
    others of whom that is true, and from there one goes on in each pass of the scheduler. Without the line each would go on
    in each pass, and whoever needs several, as a payment does, would wait for all of them each time."""

    def __init__(self) -> None:
        self._line = trio.StrictFIFOLock()

    async def wait_turn(self) -> None:
        """Let all others run that can, and those go first that came to the line before."""
        async with self._line:
            pass  # to take it is to let others run


class Channel:
    """Frames over one stream. `frame_limit` bytes each way in one frame, `queue_bytes` unsent at most. `on_more`: it holds some
    STEP_BYTES more than before. Without a `pace`, frames that have arrived together are handled one after the other."""

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
        `RemoteFault` (of the framing or of `on_frame`), which is answered with `farewell(fault)`. Returns the reason.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    await self._read(on_frame, farewell)
        finally:
            self.stop("shutdown", "this node stops")
            self._reader = FrameReader(
                self._frame_limit
            )  # errors refer to this channel: what it kept must not wait for the collector
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
            told = farewell is not None and self.send_nowait(farewell(fault))
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


# --- both kinds of port ---------------------------------------------------------------------------------------------


class Strangers:
    """Connections whose handshake is not over, at most `most` of them. More wait until one is; but who is not done after
    PATIENCE_S may lose its place to them: the oldest, of the address that has most. So who connects and says nothing, or speaks
    slowly, keeps nobody out for long, and of many who come at once each has its turn. An address that lost half as many places as
    there are, not counting one for each handshake that it ended well, is not waited for any more: else who connects again faster than
    its places become free would keep everybody out."""

    MAX_KNOWN: Final = 1024  # addresses that lost places; with more of them all begin anew, rather than grow

    def __init__(self, most: int) -> None:
        assert most >= 1, most
        self._most = most
        self._inside: dict[trio.CancelScope, tuple[str, float]] = {}  # whose, since when, in order of arrival
        self._lost: Counter[str] = Counter()  # places by address, at most `most`, less handshakes that ended well
        self._left = trio.lowlevel.ParkingLot()

    async def wait_for_place(self) -> None:
        """Return when one more may come."""
        await trio.lowlevel.checkpoint()  # who was accepted just now takes its place first
        while len(self._inside) >= self._most:
            most, _ = Counter(whose for whose, _ in self._inside.values()).most_common(1)[0]
            first, since = next((scope, since) for scope, (whose, since) in self._inside.items() if whose == most)
            if 2 * self._lost[most] < self._most:
                with trio.move_on_at(since + PATIENCE_S) as patience:
                    await self._left.park()
                if not patience.cancelled_caught:
                    continue
            self._inside.pop(first, None)
            first.cancel()
            if len(self._lost) >= self.MAX_KNOWN:
                self._lost.clear()
            self._lost[most] = min(self._lost[most] + 1, self._most)

    @contextmanager
    def handshake(self, remote: str) -> Iterator[None]:
        """The handshake within takes a place. Raises `RemoteFault("crowded")` when it has lost it."""
        whose = origin(remote)
        with trio.CancelScope() as scope:
            self._inside[scope] = (whose, trio.current_time())
            try:
                yield
                self._ended_well(whose)
            finally:
                self._inside.pop(scope, None)
                self._left.unpark_all()
        if scope.cancelled_caught:
            raise RemoteFault(
                "crowded", f"its handshake was not done in time, and {self._most} others wait or are at it"
            )

    def _ended_well(self, whose: str) -> None:
        if self._lost[whose] > 1:
            self._lost[whose] -= 1
        else:
            del self._lost[whose]


def origin(remote: str) -> str:
    """Whose an address is: of IPv6 its network of 64 bits, all of which one machine may use."""
    try:
        address = ipaddress.ip_address(remote.partition("%")[0])
    except ValueError:
        return remote
    if address.version == 4:
        return remote
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


async def accept_forever(
    listener: trio.abc.Listener[trio.abc.Stream],
    strangers: Strangers,
    welcome: Callable[[trio.abc.Stream], Awaitable[None]],
    nursery: trio.Nursery,
    counters: Counter[str],
) -> None:
    """Start `welcome(stream)`, which begins with `strangers.handshake`, for each connection."""
    told = False
    while True:
        await strangers.wait_for_place()
        try:
            stream = await listener.accept()
        except OSError as error:  # out of descriptors or memory: those who are connected go on
            counters["accept_failed"] += 1
            if not told:
                log.warning("connections cannot be accepted (%s): raise the limit of open files", error.strerror)
            told = True
            await trio.sleep(ACCEPT_RETRY_S)
        else:
            told = False
            _keep_alive(stream)
            nursery.start_soon(welcome, stream)


HANDSHAKE_ERRORS: Final = (RemoteFault, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)


# X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED, and what OpenSSL calls the alerts of RFC 8446 6.2.
_OUT_OF_TIME: Final = frozenset({9, 10})
_REFUSED: Final = frozenset(
    {
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "TLSV1_ALERT_UNKNOWN_CA",
    }
)


def handshake_fault(error: Exception) -> RemoteFault:
    """What one of HANDSHAKE_ERRORS means, with what to do."""
    if isinstance(error, RemoteFault):
        return error
    if isinstance(error, trio.TooSlowError):
        return RemoteFault("timeout", f"no TLS and hello within {HANDSHAKE_S:g} s")
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        if cause.verify_code in _OUT_OF_TIME:
            return RemoteFault(
                "certificate",
                f"its {cause.verify_message} by this machine's clock: renew it with `hopchain certificate renew`, or set "
                "the clocks",
            )
        return RemoteFault(
            "certificate",
            f"its certificate is not of this network's CA ({cause.verify_message}): another network, or a node.crt that "
            "the ca.key of this one has not signed",
        )
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLSyscallError):
        if cause.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
            return RemoteFault("no_certificate", "it shows no certificate: clients belong on the client port")
        if cause.reason in _REFUSED:
            return RemoteFault(
                "certificate",
                f"it refuses this node's certificate ({cause.reason}): `hopchain certificate list` says when node.crt ends; "
                "compare genesis.json and the clocks",
            )
        return RemoteFault("tls", f"it does not speak TLS 1.3 as a node does ({cause.reason})")
    return RemoteFault(
        "lost",
        "it closed the connection during the handshake, without a word; if this stays so, its log says why "
        "(a certificate that has expired or is of another network, for one)",
    )


def remote_of(stream: trio.abc.Stream) -> str:
    """Where the other end is, for people."""
    if not isinstance(stream, trio.SocketStream):
        return "memory"
    try:
        return str(stream.socket.getpeername()[0])
    except OSError:
        return "gone"


def _keep_alive(stream: trio.abc.Stream) -> None:
    if isinstance(stream, trio.SocketStream):
        for level, option, value in (
            (trio.socket.SOL_SOCKET, trio.socket.SO_KEEPALIVE, 1),
            (trio.socket.IPPROTO_TCP, trio.socket.TCP_KEEPIDLE, 60),
            (trio.socket.IPPROTO_TCP, trio.socket.TCP_KEEPINTVL, 10),
            (trio.socket.IPPROTO_TCP, trio.socket.TCP_KEEPCNT, 3),
        ):
            stream.setsockopt(level, option, value)


class WarnOnce:
    """Logs the first of each (who, code) as a warning and counts them all; forgets who once it is well again."""

    MAX_KNOWN: Final = 1024  # more addresses than this is a scan: start over rather than grow

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._known: set[tuple[str, str]] = set()

    def refuse(self, who: str, fault: RemoteFault) -> None:
        """A connection of `who` was refused, or refused us."""
        self._counters[f"refused.{fault.code}"] += 1
        if (who, fault.code) not in self._known:
            if len(self._known) >= self.MAX_KNOWN:
                self._known.clear()
            self._known.add((who, fault.code))
            log.warning("no connection with %s: %s", who, fault)

    def forget(self, who: str) -> None:
        """`who` is connected: its next refusal is news."""
        self._known = {entry for entry in self._known if entry[0] != who}

"""The port for clients: TLS with the node's certificate, a hello each way, then frames (hopchain.wire).

A client is a stranger: everything it can make the node hold is bounded (connections, handshakes at once, bytes of a
frame, unread answers), and what it breaks ends its own connection and nothing else. Back-pressure is the handler's: the
next frame of a session is read when the handler of the last one has returned.

What many may hold together is bounded, too, and where that is used up whoever has most of it gives way (ADR 28):
handshakes (`Strangers`), sessions (`_may_go`) and the bytes kept for them (`_weigh`).
"""

import logging
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import trio

from chain.errors import RemoteFault
from hopchain import wire
from node.accepting import (
    HANDSHAKE_ERRORS,
    HANDSHAKE_S,
    MAX_HANDSHAKES,
    Strangers,
    WarnOnce,
    accept_forever,
    handshake_fault,
    origin,
    remote_of,
)
from node.channel import FLUSH_S, Channel, Network, Pace, TcpNetwork
from node.hello import MAX_HELLO_BYTES
from node.tls import start_tls
from routing.keyspace import NodeId

log = logging.getLogger(__name__)

MAX_SESSIONS: Final = 512  # a descriptor and some 50 KiB each, answers not counted
CLIENT_QUEUE_BYTES: Final = 8 * 1024 * 1024  # two largest answers that a client has not read
HELD_BYTES: Final = 256 * 1024 * 1024  # of all sessions: a quarter of the machine that the defaults are for
# Silent for so long, a session may lose its place to a newcomer; clients that wait for an answer say more
IDLE_S: Final = 3.0


class Session:
    """One client's connection. `number` is never used again in this process; `remote` is its address, for people."""

    def __init__(self, number: int, remote: str, channel: Channel) -> None:
        self.number = number
        self.remote = remote
        self.origin = origin(remote)
        self.channel = channel
        self.heard_at = trio.current_time()
        self.over = trio.Event()

    def send_nowait(self, payload: bytes) -> bool:
        """Queue one frame. False: the session is over, or it is now, because the client does not read its answers."""
        if self.channel.send_nowait(payload):
            return True
        if self.channel.reason is None:
            self.channel.stop("slow_consumer", f"{self.channel.queued} bytes of answers are unread: read faster")
        return False

    def close(self, code: str, text: str) -> None:
        """Close it now; what is queued is lost."""
        self.channel.stop(code, text)

    @property
    def queued(self) -> int:
        """Bytes of answers not yet sent."""
        return self.channel.queued

    async def wait_flushed(self) -> None:
        """Return when all answers are sent, or the session is over."""
        await self.channel.wait_flushed()


class ClientServer:
    """Serves clients. Run it with `await nursery.start(server.run)`.

    `handler(session, payload)`: one frame of a client; a `RemoteFault` of it is told to the client (`wire.Refused`)
    and ends the session. `on_close(session)`: the session is over, for whatever reason; called once for each session.
    """

    def __init__(
        self,
        *,
        network_id: bytes,
        node_id: NodeId,
        context: ssl.SSLContext,
        handler: Callable[[Session, bytes], Awaitable[None]],
        on_close: Callable[[Session], None],
        host: str,
        port: int,
        network: Network | None = None,
        max_sessions: int = MAX_SESSIONS,
        queue_bytes: int = CLIENT_QUEUE_BYTES,
        held_bytes: int = HELD_BYTES,
        max_handshakes: int = MAX_HANDSHAKES,
    ) -> None:
        self._network_id = network_id
        self._hello = wire.encode(wire.Hello(wire.PROTOCOL_VERSION, network_id, node_id))
        self._context = context
        self._handler = handler
        self._on_close = on_close
        self._host = host
        self._port = port
        self._network: Network = network or TcpNetwork()
        self._max_sessions = max_sessions
        self._queue_bytes = queue_bytes
        self._held_bytes = held_bytes
        self._sessions: set[Session] = set()
        self._numbers = 0
        self._strangers = Strangers(max_handshakes)
        self._pace = Pace()
        self._scope = trio.CancelScope()
        self._running = False
        self._finished = trio.Event()
        self.counters: Counter[str] = Counter()
        self._warn = WarnOnce(self.counters, "client ")

    @property
    def sessions(self) -> int:
        """How many clients are connected."""
        return len(self._sessions)

    async def run(self, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and serve until `aclose` (or cancellation, which closes at once). Starts with the port that it
        listens on. `LocalMisuse` when the port is taken."""
        listeners, port = await self._network.listen(self._host, self._port)
        self._running = True
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for listener in listeners:
                        nursery.start_soon(
                            accept_forever, listener, self._strangers, self._welcome, nursery, self.counters
                        )
                    task_status.started(port)
        finally:
            self._running = False
            self._finished.set()
            with trio.CancelScope(shield=True):
                for listener in listeners:
                    await trio.aclose_forcefully(listener)

    async def aclose(self) -> None:
        """Send the answers that are queued, for at most FLUSH_S, close everything and wait until `run` is over."""
        if not self._running:
            return
        with trio.move_on_after(FLUSH_S):
            for session in list(self._sessions):
                await session.wait_flushed()
        self._scope.cancel()
        await self._finished.wait()

    async def _welcome(self, stream: trio.abc.Stream) -> None:
        """Someone has connected."""
        session = await self._shake(stream)
        if session is not None:
            await self._live(session)

    async def _shake(self, stream: trio.abc.Stream) -> Session | None:
        """TLS and hellos; None, counted and logged, when the client is refused. Closes the stream then."""
        remote = remote_of(stream)
        closing: trio.abc.Stream | Channel = stream
        session = None
        welcomed = False
        try:
            with self._strangers.handshake(remote), trio.fail_after(HANDSHAKE_S):
                secure = await start_tls(stream, self._context, server=True)
                channel = Channel(
                    secure,
                    frame_limit=wire.MAX_CLIENT_FRAME_BYTES,
                    queue_bytes=self._queue_bytes,
                    on_more=self._weigh,
                    pace=self._pace,
                )
                closing = channel
                session = await self._hear(channel, remote)
                await channel.send(self._hello)
                welcomed = True
        except HANDSHAKE_ERRORS as error:
            self._warn.refuse(remote, handshake_fault(error))
        finally:
            if not welcomed:
                if session is not None:
                    self._leave(session)
                await closing.aclose()
        return session if welcomed else None

    async def _hear(self, channel: Channel, remote: str) -> Session:
        """The client's hello. The session counts from here on: no await between the last check for room and taking
        it."""
        channel.limit_frames(MAX_HELLO_BYTES)
        try:
            payload = await channel.receive()
            if payload is None:
                raise RemoteFault("lost", "it closed the connection before its hello")
            self._check_hello_untrusted(payload)
            await self._make_room(remote)
        except RemoteFault as fault:
            if fault.code not in ("lost", "cut_frame"):  # then there is nobody to be told
                await channel.send(_refusal(fault))
            raise
        channel.limit_frames(wire.MAX_CLIENT_FRAME_BYTES)
        self._numbers += 1
        session = Session(self._numbers, remote, channel)
        self._sessions.add(session)
        return session

    def _check_hello_untrusted(self, payload: bytes) -> None:
        try:
            hello = wire.decode_client_frame_untrusted(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RemoteFault("malformed", f"a hello of {len(payload)} bytes cannot be read: {error}") from None
        if not isinstance(hello, wire.Hello):
            raise RemoteFault("malformed", "the first frame must be a hello")
        if hello.version != wire.PROTOCOL_VERSION:
            raise RemoteFault(
                "version",
                f"the client speaks version {hello.version}, this node {wire.PROTOCOL_VERSION}: use the same release",
            )
        if hello.network != self._network_id:
            raise RemoteFault(
                "network",
                f"the client wants network {hello.network.hex()[:16]}, this node is of {self._network_id.hex()[:16]}: "
                "use the directory or genesis.json of this network",
            )

    async def _make_room(self, remote: str) -> None:
        """Return when there is a place for a client from there. Raises `RemoteFault("busy")`."""
        while len(self._sessions) >= self._max_sessions:
            session = self._may_go(origin(remote))
            if session is None:
                raise RemoteFault("busy", f"this node serves {self._max_sessions} clients already: use another node")
            session.channel.dismiss(
                RemoteFault(
                    "busy",
                    f"this node serves {self._max_sessions} clients, and this connection was silent longest of those of its "
                    "address: connect again, or use another node",
                )
            )
            await session.over.wait()

    def _may_go(self, newcomer: str) -> Session | None:
        """The session that gives its place to a client of the origin `newcomer`. Of the origin with most sessions, the
        one silent longest. It goes if it is idle, or if its origin would still have at least as many as the
        newcomer's."""
        staying = [session for session in self._sessions if not session.channel.ending]
        if not staying:
            return None
        share = Counter(session.origin for session in staying)
        most = max(share.values())
        session = min((s for s in staying if share[s.origin] == most), key=lambda s: (s.heard_at, s.number))
        idle = trio.current_time() - session.heard_at >= IDLE_S
        return session if idle or share[newcomer] + 1 < most else None

    def _weigh(self) -> None:
        """More is kept for some session: beyond the bound of all together, the one that most is kept for is over."""
        held = {session: session.channel.held for session in self._sessions if not session.channel.ending}
        total = sum(held.values())
        while total > self._held_bytes:
            session = max(held, key=held.__getitem__)
            most = held.pop(session)
            total -= most
            session.channel.dismiss(
                RemoteFault(
                    "memory",
                    f"this node keeps {total + most} bytes of its clients, {most} of them of this connection: end the frames "
                    "that you begin, read the answers, ask for less at once",
                )
            )

    def _leave(self, session: Session) -> None:
        self._sessions.discard(session)
        session.over.set()

    async def _live(self, session: Session) -> None:
        self.counters["opened"] += 1

        async def on_frame(payload: bytes) -> None:
            self.counters["frames_in"] += 1
            session.heard_at = trio.current_time()
            await self._handler(session, payload)

        try:
            code, text = await session.channel.run(on_frame, _refusal)
        finally:
            assert session.channel.reason is not None
            self.counters[f"closed.{session.channel.reason[0]}"] += 1
            self._leave(session)
            self._on_close(session)
        log.debug("client %s (%d) is gone: %s [%s]", session.remote, session.number, text, code)


def _refusal(fault: RemoteFault) -> bytes:
    """What the client is told; no text of a fault is too long for a frame (chain.errors.cut) or cannot be encoded."""
    return wire.encode(wire.Refused(fault.code, fault.text.encode(errors="replace").decode()))

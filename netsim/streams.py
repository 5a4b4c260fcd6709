"""Simulated TCP: `node.channel.Network` over the simulated network. Bytes arrive in order, late, or not at all.

* A lost segment is sent again after RETRANSMIT_S, doubling; what was sent behind it waits (head of line).
* While a path is cut nothing passes; after the cut it goes on where it stopped, unless the connection was reset. How
  many connections a cut resets at once is `RESET_SHARE`; the others hang, and a node must notice by itself.
* A process that ends resets its connections: the other side is told like of anything else, by the network.

Reading is back-pressure: at most WINDOW_BYTES are under way in one direction.
"""

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Literal

import trio

from netsim.network import Network
from netsim.timeline import Timeline
from routing.datagrams import Address

RETRANSMIT_S: Final = 0.2
MAX_RETRANSMIT_S: Final = 1.6
MAX_RETRANSMITS: Final = 20  # about half a minute; the kernel's default is a quarter of an hour
RESET_SHARE: Final = 0.5
WINDOW_BYTES: Final = 256 * 1024
CLIENT: Final = -1  # a client's machine: no fault is on its paths
CLIENT_DELAY_S: Final = 0.0005

_Item = bytes | Literal["end", "reset"]
Trace = Callable[[int, int, bytes], None]


class StreamNetwork:
    """All connections of one simulation. `trace(source, target, bytes)` is told of all bytes that arrive."""

    def __init__(self, timeline: Timeline, network: Network, rng: random.Random, trace: Trace) -> None:
        self.timeline = timeline
        self.network = network
        self.rng = rng
        self.trace = trace
        self.listeners: dict[Address, _Listener] = {}
        self._streams: dict[SimStream, None] = {}  # in order of their making

    def host(self, node: int) -> "HostTcp":
        """TCP for one life of a node, or for a client (`CLIENT`)."""
        return HostTcp(self, node)

    def delay(self, source: int, target: int) -> float | None:
        """After how many seconds a segment arrives; None when it is lost."""
        if CLIENT in (source, target):
            return CLIENT_DELAY_S
        delays = self.network.delays(source, target, self.timeline.now)
        return min(delays) if delays else None

    def cut_happened(self) -> None:
        """Some of the connections over paths that are cut now are reset."""
        for stream in list(self._streams):
            a, b = stream.node, stream.peer_node
            is_cut = self.network.is_cut(a, b) or self.network.is_cut(b, a)
            if stream.dialed and is_cut and self.rng.random() < RESET_SHARE:
                stream.break_both()

    def make_pair(self, dialer: "HostTcp", listener: "HostTcp") -> tuple["SimStream", "SimStream"]:
        """Both ends of a new connection."""
        there = _Pipe(self, dialer.node, listener.node)
        back = _Pipe(self, listener.node, dialer.node)
        ours = SimStream(self, dialer, there, back, dialed=True)
        theirs = SimStream(self, listener, back, there, dialed=False)
        for stream in (ours, theirs):
            self._streams[stream] = None
            stream.host.streams[stream] = None
        there.on_failure = back.on_failure = ours.break_both
        return ours, theirs

    def forget(self, stream: "SimStream") -> None:
        """A stream is closed on this end."""
        self._streams.pop(stream, None)
        stream.host.streams.pop(stream, None)


class HostTcp:
    """`node.channel.Network` of one life of one node."""

    def __init__(self, tcp: StreamNetwork, node: int) -> None:
        self._tcp = tcp
        self.node = node
        self.alive = True
        self.streams: dict[SimStream, None] = {}
        self._listening: list[_Listener] = []

    async def listen(self, host: str, port: int) -> tuple[Sequence[trio.abc.Listener[trio.abc.Stream]], int]:
        """Listen on this address."""
        await trio.lowlevel.checkpoint()
        assert (host, port) not in self._tcp.listeners, (host, port)
        listener = self._tcp.listeners[host, port] = _Listener(self._tcp, self, (host, port))
        self._listening.append(listener)
        return [listener], port

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        """A connection; hangs while the path is cut, refused when nobody listens."""
        listener = self._tcp.listeners.get((host, port))
        if listener is None:
            await trio.sleep(RETRANSMIT_S)
            raise ConnectionRefusedError(111, "nobody listens")
        wait_s = RETRANSMIT_S
        while True:
            there, back = self._tcp.delay(self.node, listener.host.node), self._tcp.delay(listener.host.node, self.node)
            if there is not None and back is not None:
                break
            await trio.sleep(wait_s)
            wait_s = min(2 * wait_s, MAX_RETRANSMIT_S)
        await trio.sleep(there + back)
        if not (self.alive and listener.host.alive and listener.open):
            raise ConnectionRefusedError(111, "nobody listens")
        ours, theirs = self._tcp.make_pair(self, listener.host)
        listener.arrived(theirs)
        return ours

    def die(self) -> None:
        """The process is gone: its ports close, and the other ends of its connections will hear of it."""
        self.alive = False
        for listener in self._listening:
            listener.close()
        for stream in list(self.streams):
            stream.die()


class _Listener(trio.abc.Listener[trio.abc.Stream]):
    def __init__(self, tcp: StreamNetwork, host: HostTcp, address: Address) -> None:
        self._tcp = tcp
        self.host = host
        self._address = address
        self.open = True
        self._send, self._receive = trio.open_memory_channel[trio.abc.Stream](float("inf"))

    def arrived(self, stream: trio.abc.Stream) -> None:
        self._send.send_nowait(stream)

    async def accept(self) -> trio.abc.Stream:
        return await self._receive.receive()

    def close(self) -> None:
        self.open = False
        if self._tcp.listeners.get(self._address) is self:
            del self._tcp.listeners[self._address]

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


class _Pipe:
    """One direction of a connection."""

    def __init__(self, tcp: StreamNetwork, source: int, target: int) -> None:
        self._tcp = tcp
        self.source = source
        self.target = target
        self.on_failure: Callable[[], None] = lambda: None
        self._unsent: deque[_Item] = deque()
        self._retransmits = 0
        self._waiting = False  # for the time to send again
        self._last_arrival = 0.0
        self._under_way = 0
        self.received = bytearray()
        self.ended = False
        self.broken = False
        self.closed = False  # by the reader
        self.readable = trio.lowlevel.ParkingLot()
        self.writable = trio.lowlevel.ParkingLot()

    @property
    def full(self) -> bool:
        return self._under_way + len(self.received) >= WINDOW_BYTES

    def put(self, item: _Item) -> None:
        """Send on its way."""
        self._unsent.append(item)
        if isinstance(item, bytes):
            self._under_way += len(item)
        if not self._waiting:
            self._pump()

    def _pump(self) -> None:
        self._waiting = False
        timeline = self._tcp.timeline
        while self._unsent and not self.broken:
            delay = self._tcp.delay(self.source, self.target)
            if delay is None:
                self._retransmits += 1
                if self._retransmits > MAX_RETRANSMITS:
                    self.on_failure()
                    return
                pause_s = min(RETRANSMIT_S * 2 ** (self._retransmits - 1), MAX_RETRANSMIT_S)
                self._waiting = True
                timeline.at(timeline.now + pause_s, self._pump)
                return
            self._retransmits = 0
            item = self._unsent.popleft()
            self._last_arrival = max(self._last_arrival, timeline.now + delay)
            timeline.at(self._last_arrival, lambda item=item: self._arrive(item))  # type: ignore[misc]

    def _arrive(self, item: _Item) -> None:
        if self.broken or self.closed:  # the reader is gone, which the sender is told by the pipe that leads back
            return
        if item == "reset":
            self.break_now()
        elif item == "end":
            self.ended = True
        else:
            assert isinstance(item, bytes)
            self._under_way -= len(item)
            self.received += item
            self._tcp.trace(self.source, self.target, item)
        self.readable.unpark_all()

    def take(self, size: int | None) -> bytes:
        data = bytes(self.received[:size])
        del self.received[: len(data)]
        self.writable.unpark_all()
        return data

    def break_now(self) -> None:
        """Both ends find the connection broken."""
        self.broken = True
        self._unsent.clear()
        self.readable.unpark_all()
        self.writable.unpark_all()


class SimStream(trio.abc.Stream):
    """One end of a connection."""

    def __init__(self, tcp: StreamNetwork, host: HostTcp, out: _Pipe, into: _Pipe, *, dialed: bool) -> None:
        self._tcp = tcp
        self.host = host
        self._out = out
        self._in = into
        self._closed = False
        self._dead = False
        self.dialed = dialed
        self.node = out.source
        self.peer_node = out.target

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Put on its way, when there is room."""
        await trio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            if self._out.broken or self._in.broken:
                raise trio.BrokenResourceError("the connection is reset")
            if not self._out.full:
                break
            await self._out.writable.park()
        if not self._dead:
            self._out.put(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: `send_all` waits."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What has arrived; empty at the end."""
        await trio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            if self._in.received:
                return self._in.take(max_bytes)
            if self._in.broken or self._out.broken:
                raise trio.BrokenResourceError("the connection is reset")
            if self._in.ended:
                return b""
            await self._in.readable.park()

    async def aclose(self) -> None:
        """Close; what was sent before still arrives."""
        if not self._closed:
            self._close("end")
        await trio.lowlevel.checkpoint()

    def die(self) -> None:
        """The process of this end is gone."""
        self._dead = True
        if not self._closed:
            self._close("reset")

    def break_both(self) -> None:
        """The connection is lost on both ends at once."""
        self._out.break_now()
        self._in.break_now()

    def _close(self, how: Literal["end", "reset"]) -> None:
        self._closed = True
        self._tcp.forget(self)
        self._in.closed = True
        self._in.readable.unpark_all()
        self._out.writable.unpark_all()
        self._out.put(how)

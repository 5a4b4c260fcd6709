"""Simulated UDP: `routing.datagrams` over the simulated network, so that the real DHT runs without a socket.

Each datagram meets what `netsim.network` has for its path: cuts, loss, clogs, delay, repetition. So datagrams
overtake each other. A port belongs to a numbered node, whose paths it uses, under whatever address it is bound to.
"""

from collections.abc import Callable

from netsim.network import Network
from netsim.timeline import Timeline
from routing.datagrams import Address, Receiver

Trace = Callable[[int, int, bytes], None]
FIRST_FREE_PORT = 40_000


class DatagramNetwork:
    """All ports of one simulation. `sent` counts datagrams; `trace(source, target, data)` is told of all that
    arrive."""

    def __init__(self, timeline: Timeline, network: Network, trace: Trace = lambda source, target, data: None) -> None:
        self.timeline = timeline
        self.network = network
        self._trace = trace
        self.sent = 0
        self._ports: dict[Address, SimPort] = {}
        self._next_port = FIRST_FREE_PORT

    def of(self, node: int) -> "NodeDatagrams":
        """The factory for one node."""
        return NodeDatagrams(self, node)

    def bind(self, node: int, receiver: Receiver, address: Address) -> "SimPort":
        """Open a port; port 0 gets a free one."""
        host, port = address
        if port == 0:
            port, self._next_port = self._next_port, self._next_port + 1
        assert (host, port) not in self._ports, (host, port)
        opened = self._ports[host, port] = SimPort(self, node, receiver, (host, port))
        return opened

    def unbind(self, port: "SimPort") -> None:
        """Close a port; what is on its way there is lost."""
        if self._ports.get(port.address) is port:
            del self._ports[port.address]

    def transmit(self, source: "SimPort", data: bytes, to: Address) -> None:
        """Send a datagram on its way."""
        self.sent += 1
        target = self._ports.get(to)
        if target is None:
            return
        now = self.timeline.now
        for delay in self.network.delays(source.node, target.node, now):
            self.timeline.at(now + delay, lambda: self._arrive(source, target, data))

    def _arrive(self, source: "SimPort", target: "SimPort", data: bytes) -> None:
        if self._ports.get(target.address) is target:
            self._trace(source.node, target.node, data)
            target.receiver(data, source.address)


class NodeDatagrams:
    """`routing.datagrams.DatagramFactory` of one node."""

    def __init__(self, datagrams: DatagramNetwork, node: int) -> None:
        self._datagrams = datagrams
        self._node = node
        self._ports: list[SimPort] = []

    async def open(self, receiver: Receiver, host: str, port: int) -> "SimPort":
        """Bind to (host, port)."""
        opened = self._datagrams.bind(self._node, receiver, (host, port))
        self._ports.append(opened)
        return opened

    def die(self) -> None:
        """The process is gone, and its ports with it."""
        for port in self._ports:
            port.close()

    async def resolve(self, host: str, port: int) -> Address | None:
        """Hosts are numeric here."""
        return (host, port)


class SimPort:
    """One bound port."""

    def __init__(self, datagrams: DatagramNetwork, node: int, receiver: Receiver, address: Address) -> None:
        self._datagrams = datagrams
        self.node = node
        self.receiver = receiver
        self.address = address
        self._closed = False

    def send(self, data: bytes, to: Address) -> None:
        """Send, or lose."""
        if not self._closed:
            self._datagrams.transmit(self, data, to)

    def close(self) -> None:
        """Nothing is sent or received after it."""
        self._closed = True
        self._datagrams.unbind(self)

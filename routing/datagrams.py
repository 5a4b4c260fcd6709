"""The port to the network: what the DHT needs to send and receive datagrams. A simulator brings its own.

`DatagramFactory.open` binds and from then on hands each datagram to `receiver`; nothing may be delivered from inside
`send`. Addresses are (numeric IP, port).
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Protocol, cast

import trio
import trio_asyncio

from routing.errors import RoutingMisuse, RoutingNotReady

Address = tuple[str, int]
Receiver = Callable[[bytes, Address], None]


def is_not_ready(error: OSError | UnicodeError) -> bool:
    """Nobody could be asked for the name, as while the machine starts: that says nothing of the name."""
    return isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN


def bind_advice(error: OSError | UnicodeError) -> str:
    """What to do about a port that cannot be had, whether for datagrams or connections."""
    if is_not_ready(error):
        return "no name can be looked up on this machine now; try again, or take an address"
    if isinstance(error, UnicodeError | socket.gaierror):
        return "it is not known as a host here; take an address of this machine, or 0.0.0.0 for all that it has"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address; take one that it has, or 0.0.0.0 for all of them"
    if error.errno == errno.EACCES:
        return "this user may not have it; choose a port from 1024 on"
    return "stop what uses it, or choose a free port"


class Datagrams(Protocol):
    """An open port."""

    @property
    def address(self) -> Address:
        """Where it is bound."""
        ...

    def send(self, data: bytes, to: Address) -> None:
        """Send, or lose: never raises for what the network does."""
        ...

    def close(self) -> None:
        """Nothing is received after it."""
        ...


class DatagramFactory(Protocol):
    """Opens ports, and knows names."""

    async def open(self, receiver: Receiver, host: str, port: int) -> Datagrams:
        """Bind to (host, port), port 0 for any; `RoutingMisuse` when that cannot be, `RoutingNotReady` when not now."""
        ...

    async def resolve(self, host: str, port: int) -> Address | None:
        """The numeric address of a name; None when it has none now."""
        ...


class UdpFactory:
    """Real UDP, on the running trio-asyncio loop."""

    async def open(self, receiver: Receiver, host: str, port: int) -> Datagrams:
        """Bind a UDP port."""

        async def bind() -> _Udp:
            loop = asyncio.get_running_loop()
            _, protocol = await loop.create_datagram_endpoint(lambda: _Udp(receiver), local_addr=(host, port))
            return protocol

        try:
            udp: _Udp = await trio_asyncio.aio_as_trio(bind)()
        except OSError as error:
            if is_not_ready(error):
                raise RoutingNotReady(f"UDP {host}: {bind_advice(error)}") from None
            raise RoutingMisuse(
                f"UDP {host} port {port} cannot be bound ({error.strerror or error}): {bind_advice(error)}"
            ) from None
        return udp

    async def resolve(self, host: str, port: int) -> Address | None:
        """The first address the resolver gives."""
        try:
            found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError):  # the latter when it cannot be a name
            return None
        return (str(found[0][4][0]), port)


class _Udp(asyncio.DatagramProtocol):
    """asyncio's transport behind the `Datagrams` port."""

    _transport: asyncio.DatagramTransport  # set before `create_datagram_endpoint` returns

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # the selector loop's does not derive from it

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._receiver(data, (addr[0], addr[1]))  # an IPv6 address has two more fields

    def error_received(self, exc: Exception) -> None:
        """The kernel could not deliver one of ours: the same as a loss, the call's time-out sees it."""

    @property
    def address(self) -> Address:
        name = self._transport.get_extra_info("sockname")
        return (name[0], name[1])

    def send(self, data: bytes, to: Address) -> None:
        # asyncio closes the port, and the node with it, when the kernel's call raises anything but an OSError
        if not self._transport.is_closing() and _is_numeric(to):
            self._transport.sendto(data, to)

    def close(self) -> None:
        self._transport.close()


def _is_numeric(address: Address) -> bool:
    """A numeric IP, without a scope, and a port: nothing is looked up for it, and nothing but an OSError raised."""
    host, port = address
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    except (OSError, ValueError):  # the latter for text with a zero byte or half a character
        return False
    return 0 <= port <= 65535

"""Which ports a command chooses where none is named: free ones of `HOPCHAIN_PORTS=FROM-TO`, else of `PORTS`."""

import errno
import os
import random
import re
import socket
from collections.abc import Collection
from contextlib import ExitStack
from typing import Final

from chain.errors import LocalMisuse
from cli.command import fresh_random
from node.layout import LOOPBACK
from routing.datagrams import bind_advice

PORTS: Final = range(10_000, 30_000)  # below those that outgoing connections take, also while a port's node is down
PORTS_VARIABLE: Final = "HOPCHAIN_PORTS"
_LAST: Final = 65_535
_FROM_TO: Final = re.compile(r"([0-9]{1,5})-([0-9]{1,5})", re.ASCII)
_NOT_THIS_PORT: Final = frozenset({errno.EADDRINUSE, errno.EACCES})  # another one of the same address may do


def port_range() -> range:
    """The ports to choose from; `LocalMisuse` when the variable names none."""
    named = os.environ.get(PORTS_VARIABLE)
    if not named:
        return PORTS
    match = _FROM_TO.fullmatch(named)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= first <= last <= _LAST:
        raise LocalMisuse(
            f"{PORTS_VARIABLE} is {named[:80]!r}: it must be the first and the last port to choose from, between 1 and {_LAST}, "
            f"such as {PORTS[0]}-{PORTS[-1]}"
        )
    return range(first, last + 1)


def choose_ports(count: int, host: str = LOOPBACK, *, besides: Collection[int] = ()) -> list[int]:
    """`count` different free ports of `host`, none of `besides`."""
    return free_ports(count, fresh_random(), host, among=port_range(), besides=besides)


def free_ports(
    count: int,
    rng: random.Random,
    host: str = LOOPBACK,
    *,
    among: range = PORTS,
    besides: Collection[int] = (),
) -> list[int]:
    """`count` different ports of `host` that nothing uses now, TCP and UDP. All are held until the last is found.

    `among`: those to choose from, without the ones in `besides`. `LocalMisuse` when there are fewer, or this machine
    has no such host.
    """
    found: list[int] = []
    with ExitStack() as held:
        for port in rng.sample(among, len(among)):
            if len(found) == count:
                break
            if port not in besides and hold_port(port, host, held):
                found.append(port)
    if len(found) < count:
        raise LocalMisuse(
            f"only {len(found)} ports of {host} from {among[0]} to {among[-1]} are free, not {count}: end what uses them, or "
            "choose among others (HOPCHAIN_PORTS=FROM-TO)"
        )
    return found


def hold_port(port: int, host: str, held: ExitStack) -> bool:
    """Take this port, TCP and UDP, until `held` ends; False when something uses it, or this user may not.
    `LocalMisuse` when no port of that host can be had here."""
    with ExitStack() as both:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            try:
                found = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)
                family, _, _, _, address = min(found, key=lambda place: place[0] != socket.AF_INET)
                both.enter_context(socket.socket(family, kind)).bind(address)
            except (OSError, UnicodeError) as error:  # the latter: what cannot be the name of a host
                if isinstance(error, OSError) and error.errno in _NOT_THIS_PORT:
                    return False
                raise LocalMisuse(f"nothing can listen on {host[:80]}: {bind_advice(error)}") from None
        held.push(both.pop_all())
    return True

"""Which ports a command chooses where none is named: free ones of `HOPCHAIN_PORTS=FROM-TO`, else of `node.layout.PORTS`."""

import os
import re
from collections.abc import Collection
from typing import Final

from chain.errors import LocalMisuse
from cli.command import fresh_random
from node.layout import LOOPBACK, PORTS, free_ports

PORTS_VARIABLE: Final = "HOPCHAIN_PORTS"
_LAST: Final = 65_535
_FROM_TO: Final = re.compile(r"([0-9]{1,5})-([0-9]{1,5})", re.ASCII)


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

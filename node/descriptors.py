"""Open files: how many a node may have, and how it shares them out.

A node that has used up its descriptors reaches no member any more and accepts nobody, so strangers must not be able to
use them up. The process asks for as many as it may have; what is left after its own needs bounds its clients and
handshakes.
"""

import resource
from typing import Final, NamedTuple

OWN: Final = 64  # files, the DHT, the listeners, and members of a network of a few dozen
NO_LIMIT: Final = 2**31
HANDSHAKES_PART: Final = 8  # one part of so many is for the handshakes of each of the two ports


class Shares(NamedTuple):
    """Clients at once, and handshakes at once on each port."""

    clients: int
    handshakes: int


def raise_limit() -> int:
    """Let this process open as many files as it may: how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else NO_LIMIT


def shares(limit: int, clients: int, handshakes: int) -> Shares:
    """As many of the wanted `clients` and `handshakes` as `limit` open files allow, at least one of each."""
    handshakes = max(1, min(handshakes, limit // HANDSHAKES_PART))
    return Shares(max(1, min(clients, limit - OWN - 2 * handshakes)), handshakes)

"""Where a node listens for clients: what callers give, and the same checked."""

from typing import Final, NamedTuple

from chain.errors import LocalMisuse

NodeAddress = tuple[str, int]  # (host, client port), as callers give it
MAX_PORT: Final = 65_535
MAX_HOST_CHARS: Final = 253  # of a domain name


class Address(NamedTuple):
    """A node's client port. Made by `checked_address` from what a caller gave."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def checked_address(given: object) -> Address:
    """The address that a caller gave as (host, port). `LocalMisuse`, with what was given, when it cannot be one."""
    match given:
        case (str(host), int(port)) if not isinstance(port, bool):
            pass
        case _:
            raise LocalMisuse(f'{given!r} is no address of a node: give (host, client port), as ("127.0.0.1", 7402)')
    if not _could_be_host(host):
        raise LocalMisuse(f"{host!r} is no host: give a name or an IP address, of 1 to {MAX_HOST_CHARS} characters")
    if not 1 <= port <= MAX_PORT:
        raise LocalMisuse(f"port {port} of {host}: a port is 1 to {MAX_PORT}")
    return Address(host, port)


def _could_be_host(host: str) -> bool:
    """It can be asked of the resolver; whether there is such a host is for the network to say."""
    try:
        host.encode("idna")  # as getaddrinfo does
    except UnicodeError:
        return False
    return 1 <= len(host) <= MAX_HOST_CHARS and host.isprintable() and " " not in host

"""config.toml: what one node's operator may set. The data directory is the one the file lies in.

    host = "127.0.0.1"            # address to listen on
    port = 21001                  # TCP for peers, UDP for the DHT
    client_port = 21002           # TCP for clients
    advertise_host = "127.0.0.1"  # address under which peers and clients reach this node
    log_level = "info"

    [[peers]]                     # where to look for other members first
    id = "<40 hex digits>"
    host = "127.0.0.1"
    port = 21003

    [limits]                      # all optional
    client_connections = 512

Nothing here changes what is a valid link (design R15). An unknown key, a wrong type or a value out of range is
refused by name, with what is allowed.
"""

import re
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from chain.errors import LocalMisuse
from hopchain.framing import HEADER_BYTES, MAX_FRAME_BYTES
from hopchain.wire import MAX_CLIENT_FRAME_BYTES
from node.lost import unreadable
from node.uncovered import HOUR_BYTES
from routing.keyspace import NodeId

CONFIG_FILE: Final = "config.toml"
MAX_PEERS: Final = 1000  # seeds; the DHT finds the others
RESERVED_PART: Final = 20  # of a disk, at most one part of so many is kept free: `doctor` finds it too full before that

_MIB: Final = 1024 * 1024

# Of a name no label is empty or longer than 63 characters: the resolver does not look up any other, but raises
# UnicodeError.
HOST_PATTERN: Final = re.compile(r"(?!.{254})[A-Za-z0-9:_-]{1,63}(\.[A-Za-z0-9:_-]{1,63})*\.?", re.ASCII)
Host = Annotated[str, msgspec.Meta(pattern=f"^{HOST_PATTERN.pattern}$")]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
NodeIdHex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{40}$")]


class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A member to ask first, and where it was."""

    id: NodeIdHex
    host: Host
    port: Port

    @property
    def node_id(self) -> NodeId:
        """The 20 bytes of `id`."""
        return NodeId(bytes.fromhex(self.id))


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds. The defaults hold for a machine with 1 GiB for the node.

    `client_connections`: clients at once (a descriptor and some 50 KiB each). `client_queue_bytes`: answers that a
    client may leave unread before it is disconnected. `peer_queue_bytes`: unsent bytes for one peer before more are
    dropped (upper layers repeat them). `disk_reserve_bytes`: with less of the disk free, no new request is taken.
    `uncovered_bytes_per_hour`: of requests that their senders' money does not cover.
    """

    client_connections: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 512
    client_queue_bytes: Annotated[int, msgspec.Meta(ge=MAX_CLIENT_FRAME_BYTES + HEADER_BYTES)] = 8 * _MIB
    peer_queue_bytes: Annotated[int, msgspec.Meta(ge=MAX_FRAME_BYTES + HEADER_BYTES)] = 32 * _MIB
    disk_reserve_bytes: Annotated[int, msgspec.Meta(ge=0)] = 2048 * _MIB
    uncovered_bytes_per_hour: Annotated[int, msgspec.Meta(ge=0)] = HOUR_BYTES

    def disk_reserve(self, total: int) -> int:
        """How much of a disk of `total` bytes is to stay free: of a small one a twentieth."""
        return min(self.disk_reserve_bytes, total // RESERVED_PART)


class NodeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One node's settings."""

    host: Host
    port: Port
    client_port: Port
    advertise_host: Host
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    peers: Annotated[tuple[Peer, ...], msgspec.Meta(max_length=MAX_PEERS)] = ()
    limits: Limits = Limits()


_HOST: Final = "a host name (parts of 1 to 63 characters between single dots) or an IP address"
_PORT: Final = "a whole number from 1 to 65535"
# What each key may hold, in words; the test checks that no key is missing.
ALLOWED: Final[dict[str, str]] = {
    "host": _HOST,
    "port": _PORT,
    "client_port": f"{_PORT}, another one than port",
    "advertise_host": _HOST,
    "log_level": "one of debug, info, warning, error",
    "peers": f"a list of at most {MAX_PEERS} tables with id, host and port",
    "peers.id": "40 hex digits (0-9 a-f)",
    "peers.host": _HOST,
    "peers.port": _PORT,
    "limits": "a table with client_connections, client_queue_bytes, peer_queue_bytes, disk_reserve_bytes, uncovered_bytes_per_hour",
    "limits.client_connections": "a whole number from 1 to 10000",
    "limits.client_queue_bytes": f"a whole number of bytes, at least {MAX_CLIENT_FRAME_BYTES + HEADER_BYTES}",
    "limits.peer_queue_bytes": f"a whole number of bytes, at least {MAX_FRAME_BYTES + HEADER_BYTES}",
    "limits.disk_reserve_bytes": "a whole number of bytes, at least 0",
    "limits.uncovered_bytes_per_hour": "a whole number of bytes, at least 0",
}

_INDEX: Final = re.compile(r"\[[^]]*\]")
_T = TypeVar("_T")


def read_config(directory: Path) -> NodeConfig:
    """The settings of the node in `directory`. `LocalMisuse` names the file, the key and what is allowed."""
    path = directory / CONFIG_FILE
    config = read_toml(path, NodeConfig, ALLOWED)
    if config.port == config.client_port:
        raise LocalMisuse(f"{path}: port and client_port are both {config.port}: choose two ports")
    return config


def encode_config(config: NodeConfig) -> bytes:
    """The file's bytes; `read_config` reads them back."""
    return msgspec.toml.encode(config)


def read_toml(path: Path, shape: type[_T], allowed: dict[str, str]) -> _T:
    """The TOML file `path` as a `shape`. `allowed`: dotted key -> what it may hold, in words."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise LocalMisuse(unreadable(path, error)) from None
    try:
        return msgspec.toml.decode(raw, type=shape)
    except msgspec.ValidationError as error:
        raise LocalMisuse(f"{path}: {_explain(str(error), allowed)}") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise LocalMisuse(f"{path} is not TOML: {error}") from None


def _explain(error: str, allowed: dict[str, str]) -> str:
    """msgspec's message (`what - at `$.limits.x``) with the key's name first and what is allowed last."""
    what, _, where = error.partition(" - at `$")
    table = where.strip("`.")
    field = what.split("`")[1] if "field `" in what else ""
    key = ".".join(part for part in (table, field) if part)
    plain = _INDEX.sub("", key)
    if plain in allowed:
        return f"{key}: {what}; it must be {allowed[plain]}"
    place = plain.rpartition(".")[0] if field else plain
    keys = [name.rpartition(".")[2] for name in allowed if name.rpartition(".")[0] == place]
    return f"{key or 'the file'}: {what}; the keys here are {', '.join(keys)}"

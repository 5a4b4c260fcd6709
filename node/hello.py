"""The handshake between two members, after TLS: what is said and what is checked (pure).

Both sides do the same: send `Hello`, read the other's and check it, answer `Welcome` or `Refused`, read the other's
answer. Only then do frames of the upper layers flow. The version is the second element of the array for ever, so that
any two releases can tell each other that they differ.
"""

from collections.abc import Callable
from typing import Annotated, Final

import msgspec

from chain.errors import RemoteFault
from routing.keyspace import NodeId, short

PROTOCOL_VERSION: Final = 6
MAX_HELLO_BYTES: Final = 4096  # several times a hello; nobody gets more room before we know who it is
MAX_REASON_CHARS: Final = 400  # of another node's words in our log


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """Who a node is. `network` is the network id, so it vouches for the whole genesis file. `incarnation`: design R12.
    `boot`: random bytes, new at each start; two of one node at a time are two copies of it. `client_port`: where it
    serves clients, which those who know only other nodes learn from them; 0 when it is not told."""

    version: int
    network: bytes
    node_id: NodeId
    incarnation: int
    boot: bytes
    client_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag="welcome"):
    """The other's hello is as it must be."""


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """It is not. `code` is stable, `text` says what to do; the connection closes. `epoch`, of code `removed`: in
    which the other was removed from the network."""

    code: str
    text: str
    epoch: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0


class SaidRemoved(RemoteFault):
    """The other side refused this node because it was removed from the network, in `epoch`."""

    def __init__(self, text: str, epoch: int) -> None:
        super().__init__("removed", text)
        self.epoch = epoch


class _Prefix(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    version: int


encode = msgspec.msgpack.Encoder().encode
_prefix = msgspec.msgpack.Decoder(_Prefix)
_hello = msgspec.msgpack.Decoder(Hello)
_verdict: msgspec.msgpack.Decoder[Welcome | Refused] = msgspec.msgpack.Decoder(Welcome | Refused)
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def check_hello_untrusted(
    payload: bytes, mine: Hello, certified: NodeId, removed_in: Callable[[NodeId], int], dialed: NodeId | None
) -> Hello:
    """The other side's hello, when it may be talked to: as a member, or as a guest of whom the core takes no votes.

    `certified`: the node of its certificate. `removed_in`: the epoch in which a node was removed for good, else 0.
    `dialed`: whom we expect there, None when it came to us. Raises `RemoteFault`: `malformed`, `version`, `network`,
    `identity`, `self`, `removed`, `wrong_peer`.
    """
    try:
        version = _prefix.decode(payload).version
        if version != mine.version:
            raise RemoteFault(
                "version", f"protocol version {version} meets version {mine.version}: run the same release on all nodes"
            )
        hello = _hello.decode(payload)
    except _UNREADABLE as error:
        raise RemoteFault("malformed", f"a hello of {len(payload)} bytes cannot be read: {error}") from None
    if hello.network != mine.network:
        raise RemoteFault(
            "network",
            f"network {hello.network.hex()[:16]} meets network {mine.network.hex()[:16]}: their genesis.json differ; "
            "use one genesis.json on all nodes, or take the other network's addresses out of config.toml",
        )
    if hello.node_id != certified:
        raise RemoteFault(
            "identity",
            f"the hello says node {short(hello.node_id)}, the certificate node {short(certified)}: "
            "node.key and node.crt must be of one node",
        )
    if hello.node_id == mine.node_id:
        raise RemoteFault(
            "self", f"node {short(mine.node_id)} meets itself: a wrong address, or a second copy of its directory runs"
        )
    epoch = removed_in(hello.node_id)
    if epoch:
        raise RemoteFault(
            "removed",
            f"node {short(hello.node_id)} was removed from the network in epoch {epoch}: ids do not come back; "
            "stop it, and join anew with a new invitation",
        )
    if dialed is not None and hello.node_id != dialed:
        raise RemoteFault(
            "wrong_peer",
            f"node {short(hello.node_id)} answers where node {short(dialed)} was expected: correct its address",
        )
    return hello


def check_verdict_untrusted(payload: bytes) -> None:
    """Return when the other side says `Welcome`; otherwise raise `RemoteFault` with the code that it gave:
    `SaidRemoved` when that is `removed`."""
    try:
        verdict = _verdict.decode(payload)
    except _UNREADABLE as error:
        raise RemoteFault("malformed", f"an answer to our hello cannot be read: {error}") from None
    if isinstance(verdict, Refused):
        text = f"the other node refused this one: {verdict.text[:MAX_REASON_CHARS]!r}"
        if verdict.code == "removed":
            raise SaidRemoved(text, verdict.epoch)
        raise RemoteFault(known_code(verdict.code), text)


def known_code(code: str) -> str:
    """`code` when it is one of ours; otherwise `refused`. What a stranger sends does not name our counters."""
    return code if code in _CODES else "refused"


_CODES: Final = frozenset(
    {"malformed", "version", "network", "identity", "self", "removed", "wrong_peer", "duplicate", "oversize", "busy"}
)

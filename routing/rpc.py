"""What is inside a sealed datagram: the `kademlia` library's messages, read without trust.

    kind u8 (0 call, 1 reply, 2 error) | message id 20 | msgpack: call [name, [bytes, ..]], reply its value, error a
    code (for people who read a trace)

The names and arguments are the library's (`ping(node id)`, `find_node(node id, key)`). The library reads msgpack into
whatever comes and calls whatever method is named; here each message has one type.
"""

import functools
import ipaddress
from typing import Final, TypeVar

import msgspec

from routing.errors import RoutingFault
from routing.keyspace import ID_BYTES, NodeId

CALL: Final = 0
REPLY: Final = 1
ERROR: Final = 2
MESSAGE_ID_BYTES: Final = 20
MAX_KSIZE: Final = 32  # contacts in one reply, so that it fits a datagram

_T = TypeVar("_T")
Triple = tuple[bytes, str, int]  # a contact on the wire, as the library has it: id, ip, port

_PREFIX_BYTES: Final = 1 + MESSAGE_ID_BYTES
_call = msgspec.msgpack.Decoder(tuple[str, list[bytes]])
_node_id = msgspec.msgpack.Decoder(bytes)
_contacts = msgspec.msgpack.Decoder(list[Triple])
_encoder = msgspec.msgpack.Encoder()


class Message(msgspec.Struct, frozen=True):
    """A message whose kind is known and whose body is not read yet."""

    kind: int
    message_id: bytes
    body: bytes


def encode_call(message_id: bytes, name: str, args: tuple[bytes, ...]) -> bytes:
    """A call."""
    return bytes((CALL,)) + message_id + _encoder.encode((name, args))


def encode_reply(message_id: bytes, value: bytes | list[Triple]) -> bytes:
    """The answer to a call."""
    return bytes((REPLY,)) + message_id + _encoder.encode(value)


def encode_error(message_id: bytes, code: str) -> bytes:
    """The answer to a call that cannot be served."""
    return bytes((ERROR,)) + message_id + _encoder.encode(code)


def decode_message_untrusted(raw: bytes) -> Message:
    """The head of a message; raises only `RoutingFault("malformed")`."""
    if len(raw) <= _PREFIX_BYTES or raw[0] > ERROR:
        raise RoutingFault("malformed", f"a message of {len(raw)} bytes, kind {raw[:1].hex()}")
    return Message(raw[0], raw[1:_PREFIX_BYTES], raw[_PREFIX_BYTES:])


def decode_call_untrusted(body: bytes) -> tuple[str, list[bytes]]:
    """Name and arguments of a call; raises only `RoutingFault("malformed")`."""
    return _read_untrusted(_call, body)


def decode_node_id_untrusted(body: bytes) -> NodeId:
    """The value of a `ping` reply; raises only `RoutingFault("malformed")`."""
    return check_id_untrusted(_read_untrusted(_node_id, body))


def decode_contacts_untrusted(body: bytes) -> list[Triple]:
    """The value of a `find_node` reply, ids and addresses checked; raises only `RoutingFault`."""
    found = _read_untrusted(_contacts, body)
    if len(found) > MAX_KSIZE:
        raise RoutingFault("malformed", f"{len(found)} contacts in a reply; the limit is {MAX_KSIZE}")
    for node_id, host, port in found:
        check_id_untrusted(node_id)
        check_address_untrusted(host, port)
    return found


def check_id_untrusted(raw: bytes) -> NodeId:
    """An id of 20 bytes, or `RoutingFault("malformed")`."""
    if len(raw) != ID_BYTES:
        raise RoutingFault("malformed", f"an id or key of {len(raw)} bytes; it has {ID_BYTES}")
    return NodeId(raw)


def check_address_untrusted(host: str, port: int) -> None:
    """Raise `RoutingFault("bad_address")` unless a datagram can be sent there: a canonical numeric IP of one host, and
    a port."""
    if not _is_host(host) or not 1 <= port <= 65535:
        raise RoutingFault("bad_address", f"{host[:60]!r} port {port}: not a canonical numeric IP and port of one node")


# The same few hosts come in every reply, and parsing one costs as much as opening a seal.
@functools.lru_cache(maxsize=4096)
def _is_host(host: str) -> bool:
    """True when `host` is the canonical text of an IP address of one host. A scope (`fe80::1%eth0`), for which
    ipaddress takes any text, means nothing on another machine."""
    if "%" in host:
        return False
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    return str(ip) == host and not ip.is_unspecified and not ip.is_multicast


def _read_untrusted(decoder: msgspec.msgpack.Decoder[_T], body: bytes) -> _T:
    """Decode msgpack of a known type; text that is not UTF-8 is a plain ValueError in msgspec."""
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError) as error:
        raise RoutingFault("malformed", f"a message body of {len(body)} bytes that cannot be read: {error}") from None

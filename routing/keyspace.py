"""Kademlia's key space: 160-bit ids and keys, and the XOR distance between them (Kademlia 2.1).

A node's id is the first 160 bits of SHA-256(raw public key); the route key of a slot is the first 160 bits of the slot,
which is a SHA-256 hash already (design section 1). So ids and keys are spread evenly and nobody chooses them freely.
"""

import hashlib
import heapq
from collections.abc import Iterable
from typing import Final, NewType

from routing.errors import RoutingMisuse

NodeId = NewType("NodeId", bytes)
Key = NewType("Key", bytes)

KEY_BITS: Final = 160
ID_BYTES: Final = KEY_BITS // 8


def node_id_of(public_key: bytes) -> NodeId:
    """The id of the node with this raw 32-byte Ed25519 public key."""
    return NodeId(hashlib.sha256(public_key).digest()[:ID_BYTES])


def route_key(slot: bytes) -> Key:
    """Where in key space a slot (32 bytes) is decided; `RoutingMisuse` when there are fewer than 20 bytes."""
    if len(slot) < ID_BYTES:
        raise RoutingMisuse(f"a slot of {len(slot)} bytes has no route key: it needs at least {ID_BYTES}")
    return Key(slot[:ID_BYTES])


def distance(a: bytes, b: bytes) -> int:
    """XOR distance of two ids or keys of 20 bytes: 0 for the same, below 2^160."""
    return int.from_bytes(a) ^ int.from_bytes(b)


def shared_bits(a: bytes, b: bytes) -> int:
    """How many leading bits two ids or keys share: 0 to 160."""
    return KEY_BITS - distance(a, b).bit_length()


def closest(ids: Iterable[NodeId], key: bytes, k: int) -> tuple[NodeId, ...]:
    """The `k` ids closest to `key`, closest first: all of them when there are fewer. Exact, and the order given does
    not matter."""
    target = int.from_bytes(key)
    return tuple(heapq.nsmallest(k, ids, key=lambda node: int.from_bytes(node) ^ target))


def short(node: bytes) -> str:
    """An id for people: its first 8 hex characters."""
    return node.hex()[:8]

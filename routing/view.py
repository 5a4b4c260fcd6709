"""Views: the numbered, hash-chained member lists that say who decides what (design sections 1 and 4, R1).

`View.group(key)` is a pure function of the view and the key, the same on every node: the k members closest to the key,
closest first. Rank 0 is the owner, the others are its standbys; all members are in it when there are fewer than k.

Canonical bytes: tag | u64 epoch | 32 previous hash | 32 network | u16 k | u16 count | members by id ascending
(32 public key | u64 incarnation). An id is derived from the key, so it is not in the bytes. hash = SHA-256 of them.
"""

import bisect
import hashlib
import struct
from collections.abc import Iterable
from functools import cached_property
from typing import Final

import msgspec

from routing.errors import RoutingFault, RoutingMisuse
from routing.keyspace import ID_BYTES, NodeId, closest, node_id_of

FIRST_EPOCH: Final = 1
HASH_BYTES: Final = 32
PUBLIC_KEY_BYTES: Final = 32
MAX_K: Final = 64  # a group votes on every link; more than 64 votes a link serve nobody
MAX_GROUPS_KEPT: Final = 10_000  # a slot's group is asked for some three times while it is decided
MAX_MEMBERS: Final = 4096  # a view is one message and is held in memory: 160 KiB
NO_VIEW: Final = bytes(HASH_BYTES)  # the hash before the first view's

_TAG: Final = b"hopchain:view:1\0"
_HEAD: Final = struct.Struct(f">{len(_TAG)}sQ32s32sHH")
_MEMBER: Final = struct.Struct(">32sQ")
_MAX_U64: Final = 2**64 - 1


class Member(msgspec.Struct, frozen=True):
    """A node of a view. `incarnation` tells two lives of one key apart (design R12)."""

    id: NodeId
    public_key: bytes
    incarnation: int


def member_of(public_key: bytes, incarnation: int = 1) -> Member:
    """The member with this raw Ed25519 public key; its id is derived."""
    return Member(node_id_of(public_key), public_key, incarnation)


class View(msgspec.Struct, frozen=True, dict=True):
    """The member list of an epoch. `members` are sorted by id; `k` is the group size; `network` is the network id."""

    epoch: int
    prev_hash: bytes
    members: tuple[Member, ...]
    k: int
    network: bytes

    @property
    def hash(self) -> bytes:
        """32 bytes that name this view and, through `prev_hash`, all before it."""
        return hashlib.sha256(encode_view(self)).digest()

    @cached_property
    def ids(self) -> tuple[NodeId, ...]:
        """The members' ids, ascending."""
        return tuple(member.id for member in self.members)

    def group(self, key: bytes) -> tuple[NodeId, ...]:
        """The k members closest to `key` (20 bytes), the owner first: all of them when there are fewer than k."""
        group = self._groups.get(key)
        if group is None:
            assert len(key) == ID_BYTES, f"a key has {ID_BYTES} bytes, not {len(key)}: use route_key(slot)"
            if len(self._groups) >= MAX_GROUPS_KEPT:
                self._groups.clear()
            group = self._groups[key] = closest(self.ids, key, self.k)
        return group

    @cached_property
    def _groups(self) -> dict[bytes, tuple[NodeId, ...]]:
        return {}

    def rank_of(self, key: bytes, node: NodeId) -> int | None:
        """The place of `node` in the group of `key`: 0 for the owner, None for a node that is not in it."""
        group = self.group(key)
        return group.index(node) if node in group else None

    def member(self, node: NodeId) -> Member | None:
        """The member with this id, or None."""
        place = bisect.bisect_left(self.members, node, key=lambda member: member.id)
        if place < len(self.members) and self.members[place].id == node:
            return self.members[place]
        return None

    def is_member(self, node: NodeId) -> bool:
        """True when `node` belongs to this view."""
        return self.member(node) is not None


def majority(n: int) -> int:
    """How many of `n` make a majority: any two majorities share a node."""
    return n // 2 + 1


def first_view(network_id: bytes, k: int, members: Iterable[Member]) -> View:
    """Epoch 1: what `hopchain init` makes. `RoutingMisuse` says what is wrong with the members."""
    view = View(FIRST_EPOCH, NO_VIEW, tuple(sorted(members, key=lambda member: member.id)), k, network_id)
    problem = _problem(view)
    if problem is not None:
        raise RoutingMisuse(f"the first view cannot be made: {problem}")
    return view


def encode_view(view: View) -> bytes:
    """The canonical bytes."""
    head = _HEAD.pack(_TAG, view.epoch, view.prev_hash, view.network, view.k, len(view.members))
    return head + b"".join(_MEMBER.pack(member.public_key, member.incarnation) for member in view.members)


def decode_view(raw: bytes) -> View:
    """Read and check a view, from a peer or a disk; raises only `RoutingFault("bad_view")`."""
    if len(raw) < _HEAD.size or not raw.startswith(_TAG):
        raise RoutingFault("bad_view", f"{len(raw)} bytes are not a view: the head has {_HEAD.size} bytes and a tag")
    _, epoch, prev_hash, network, k, count = _HEAD.unpack_from(raw)
    if len(raw) != _HEAD.size + count * _MEMBER.size:
        raise RoutingFault("bad_view", f"a view of {count} members cannot have {len(raw)} bytes")
    members = (member_of(key, incarnation) for key, incarnation in _MEMBER.iter_unpack(raw[_HEAD.size :]))
    view = View(epoch, prev_hash, tuple(members), k, network)
    problem = _problem(view)
    if problem is not None:
        raise RoutingFault("bad_view", problem)
    return view


def _problem(view: View) -> str | None:
    """What is wrong with a view, or None."""
    if not FIRST_EPOCH <= view.epoch <= _MAX_U64:
        return f"its epoch is {view.epoch}; the first is {FIRST_EPOCH}"
    if len(view.prev_hash) != HASH_BYTES or len(view.network) != HASH_BYTES:
        return f"hashes have {HASH_BYTES} bytes, not {len(view.prev_hash)} and {len(view.network)}"
    if (view.prev_hash == NO_VIEW) != (view.epoch == FIRST_EPOCH):
        return f"epoch {view.epoch}: the first view, and only that, has no view before it"
    if not 1 <= view.k <= MAX_K:
        return f"k is {view.k}; it must be 1 to {MAX_K}"
    if not 1 <= len(view.members) <= MAX_MEMBERS:
        return f"it has {len(view.members)} members; it must have 1 to {MAX_MEMBERS}"
    for member in view.members:
        if len(member.public_key) != PUBLIC_KEY_BYTES or member.id != node_id_of(member.public_key):
            return f"member {member.id.hex()} does not have the id of its public key of {len(member.public_key)} bytes"
        if not 1 <= member.incarnation <= _MAX_U64:
            return f"member {member.id.hex()} has incarnation {member.incarnation}; the first is 1"
    if any(a.id >= b.id for a, b in zip(view.members, view.members[1:], strict=False)):
        return "its members are not in ascending order of their ids, each once"
    return None

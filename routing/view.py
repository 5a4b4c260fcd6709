"""Views: the numbered, hash-chained member lists that say who decides what (design sections 1 and 4, R1).

`View.group(key)` is a pure function of the view and the key, the same on every node: the k members closest to the key,
closest first. Rank 0 is the owner, the others are its standbys; all members are in it when there are fewer than k.

A view differs from the one before it by one member, added or removed, and in nothing else (R1). `time_ms` and `by` say
when and by which node it was proposed: for people, and never judged.

Canonical bytes: tag | u64 epoch | 32 previous hash | 32 network | u64 time_ms | 20 by | u16 k | u16 count | members by
id ascending (32 public key | u64 incarnation). An id is derived from the key, so it is not in the bytes. hash = SHA-256
of them.
"""

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
NOBODY: Final = NodeId(bytes(ID_BYTES))  # who proposed the first view: the genesis file made it

_TAG: Final = b"hopchain:view:1\0"
_HEAD: Final = struct.Struct(f">{len(_TAG)}sQ32s32sQ{ID_BYTES}sHH")
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
    """The member list of an epoch. `members` are sorted by id; `k` is the group size; `network` is the network id.

    `time_ms` (Unix milliseconds, the proposer's clock) and `by` (its id, `NOBODY` for the first view) are never judged.
    """

    epoch: int
    prev_hash: bytes
    members: tuple[Member, ...]
    k: int
    network: bytes
    time_ms: int
    by: bytes

    @cached_property
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
        return self._members_by_id.get(node)

    def is_member(self, node: NodeId) -> bool:
        """True when `node` belongs to this view."""
        return node in self._members_by_id

    @cached_property
    def _members_by_id(self) -> dict[NodeId, Member]:
        return {member.id: member for member in self.members}


def majority(n: int) -> int:
    """How many of `n` make a majority: any two majorities share a node."""
    return n // 2 + 1


def first_view(network_id: bytes, k: int, members: Iterable[Member], time_ms: int = 0) -> View:
    """Epoch 1: what `hopchain init` makes. `RoutingMisuse` says what is wrong with the members."""
    view = View(FIRST_EPOCH, NO_VIEW, _by_id(members), k, network_id, time_ms, NOBODY)
    problem = _problem(view)
    if problem is not None:
        raise RoutingMisuse(f"the first view cannot be made: {problem}")
    return view


def with_member(view: View, member: Member, time_ms: int, by: bytes) -> View:
    """The next view, with `member` added; `RoutingMisuse` when its id is there already or the view is full."""
    if view.is_member(member.id):
        raise RoutingMisuse(f"node {member.id.hex()} is a member of epoch {view.epoch} already: nothing is to be added")
    return _next(view, _by_id((*view.members, member)), time_ms, by)


def without_member(view: View, node_id: NodeId, time_ms: int, by: bytes) -> View:
    """The next view, without the member of this id; `RoutingMisuse` when it is not there or is the last one."""
    if not view.is_member(node_id):
        raise RoutingMisuse(f"node {node_id.hex()} is no member of epoch {view.epoch}: nothing is to be removed")
    if len(view.members) == 1:
        raise RoutingMisuse(f"node {node_id.hex()} is the last member of epoch {view.epoch}: add another one first")
    return _next(view, tuple(member for member in view.members if member.id != node_id), time_ms, by)


def check_next(before: View, after: View) -> None:
    """`RoutingFault("bad_view")` unless `after` may follow `before`: the next epoch, one member added or removed
    (R1)."""
    changed = set(before.members) ^ set(after.members)
    problem = None
    if after.epoch != before.epoch + 1:
        problem = f"epoch {after.epoch} does not follow epoch {before.epoch}"
    elif after.prev_hash != before.hash:
        problem = f"it follows view {after.prev_hash.hex()[:16]}, epoch {before.epoch} is {before.hash.hex()[:16]}"
    elif after.network != before.network:
        problem = f"it is of network {after.network.hex()[:16]}, epoch {before.epoch} of {before.network.hex()[:16]}"
    elif after.k != before.k:
        problem = f"its k is {after.k}, that of epoch {before.epoch} is {before.k}; k never changes"
    elif len(changed) != 1:
        problem = f"{len(changed)} members of epochs {before.epoch} and {after.epoch} differ; one is added or removed"
    if problem is not None:
        raise RoutingFault("bad_view", problem)


def _next(view: View, members: tuple[Member, ...], time_ms: int, by: bytes) -> View:
    after = View(view.epoch + 1, view.hash, members, view.k, view.network, time_ms, by)
    problem = _problem(after)
    if problem is not None:
        raise RoutingMisuse(f"the view after epoch {view.epoch} cannot be made: {problem}")
    return after


def _by_id(members: Iterable[Member]) -> tuple[Member, ...]:
    return tuple(sorted(members, key=lambda member: member.id))


def encode_view(view: View) -> bytes:
    """The canonical bytes."""
    head = _HEAD.pack(_TAG, view.epoch, view.prev_hash, view.network, view.time_ms, view.by, view.k, len(view.members))
    return head + b"".join(_MEMBER.pack(member.public_key, member.incarnation) for member in view.members)


def decode_view(raw: bytes) -> View:
    """Read and check a view, from a peer or a disk; raises only `RoutingFault("bad_view")`."""
    if len(raw) < _HEAD.size or not raw.startswith(_TAG):
        raise RoutingFault("bad_view", f"{len(raw)} bytes are not a view: the head has {_HEAD.size} bytes and a tag")
    _, epoch, prev_hash, network, time_ms, by, k, count = _HEAD.unpack_from(raw)
    if len(raw) != _HEAD.size + count * _MEMBER.size:
        raise RoutingFault("bad_view", f"a view of {count} members cannot have {len(raw)} bytes")
    members = (member_of(key, incarnation) for key, incarnation in _MEMBER.iter_unpack(raw[_HEAD.size :]))
    view = View(epoch, prev_hash, tuple(members), k, network, time_ms, by)
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
    if not 0 <= view.time_ms <= _MAX_U64:
        return f"its time is {view.time_ms}; it must be 0 to {_MAX_U64} milliseconds"
    if len(view.by) != ID_BYTES:
        return f"the id of who proposed it has {len(view.by)} bytes, not {ID_BYTES}"
    if view.epoch == FIRST_EPOCH and view.by != NOBODY:
        return f"it is the first view and says that node {view.by.hex()} proposed it: the genesis file made it"
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

"""A change of the members: what the operator, or the leaving node itself, signs (design R1).

Canonical bytes: tag | 32 network id | u8 action (1 add, 2 remove) | 32 raw Ed25519 public key of the node |
u64 incarnation | u64 expires_ms | u8 force (0 or 1). The signature is Ed25519 over these bytes, by the operator's key
(genesis.json); for a removal also by the key of that very node. The tag keeps it apart from all else that is signed.

A change names the member as it is to be, not an epoch, so sending it twice changes the members once. It is judged once,
when a member admits it (design R15): afterwards only the view counts. `expires_ms` (Unix milliseconds) is when it may
no longer be admitted; `force` allows a removal after which fewer than a majority would be reachable.
"""

import enum
import hashlib
import struct
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from chain.errors import LocalMisuse, RemoteFault
from chain.genesis import Genesis
from chain.request import NetworkId
from routing.keyspace import NodeId, node_id_of

_TAG: Final = b"hopchain:change:1\0"
_FORM: Final = struct.Struct(f">{len(_TAG)}s32sB32sQQB")
CHANGE_BYTES: Final = _FORM.size
FIRST_INCARNATION: Final = 1
_HASH_BYTES: Final = 32
_U64: Final = 2**64 - 1


class ChangeAction(enum.IntEnum):
    """What becomes of the node."""

    ADD = 1
    REMOVE = 2


class Change(msgspec.Struct, frozen=True):
    """One change: `action` for the node with this 32-byte raw `public_key`. `force` only for a removal."""

    network: NetworkId
    action: ChangeAction
    public_key: bytes
    incarnation: int
    expires_ms: int
    force: bool = False

    @property
    def node_id(self) -> NodeId:
        """The id of the node that is added or removed."""
        return node_id_of(self.public_key)


class SignedChange(msgspec.Struct, frozen=True):
    """Canonical bytes with the signature over them."""

    raw: bytes
    signature: bytes

    @property
    def id(self) -> bytes:
        """32 bytes that name the change in answers: SHA-256 of its bytes."""
        return change_id(self.raw)


def change_id(raw: bytes) -> bytes:
    """The `request_id` of NotStarted and Unknown: SHA-256 of the change's canonical bytes."""
    return hashlib.sha256(raw).digest()


def encode_change(change: Change) -> bytes:
    """The canonical bytes. `LocalMisuse`, also under `python -O`, for a change that has none: cut off or padded it
    would be another."""
    for field, raw in (("network", change.network), ("public_key", change.public_key)):
        if len(raw) != _HASH_BYTES:
            raise LocalMisuse(f"{field} of a change has {len(raw)} bytes; it must have {_HASH_BYTES}")
    if not FIRST_INCARNATION <= change.incarnation <= _U64 or not 0 <= change.expires_ms <= _U64:
        raise LocalMisuse(
            f"a change with incarnation {change.incarnation} and expires_ms {change.expires_ms}: the first is at least "
            f"{FIRST_INCARNATION}, the other at least 0, both at most {_U64}"
        )
    if change.force and change.action is not ChangeAction.REMOVE:
        raise LocalMisuse("force is for a removal only")
    return _FORM.pack(
        _TAG,
        change.network,
        change.action,
        change.public_key,
        change.incarnation,
        change.expires_ms,
        change.force,
    )


def decode_change_untrusted(raw: bytes) -> Change:
    """The change with these canonical bytes. Raises `RemoteFault("bad_change")`, nothing else."""
    if len(raw) != CHANGE_BYTES or not raw.startswith(_TAG):
        raise RemoteFault("bad_change", f"{len(raw)} bytes are not a change: it has {CHANGE_BYTES} bytes and a tag")
    _, network, number, public_key, incarnation, expires_ms, force = _FORM.unpack(raw)
    try:
        action = ChangeAction(number)
    except ValueError:
        raise RemoteFault("bad_change", f"action {number} is not known; 1 adds, 2 removes") from None
    if incarnation < FIRST_INCARNATION:
        raise RemoteFault("bad_change", f"incarnation {incarnation}; the first is {FIRST_INCARNATION}")
    if force > 1 or (force and action is not ChangeAction.REMOVE):
        raise RemoteFault("bad_change", f"force is {force} in action {action.name}; 0, or 1 to remove")
    return Change(NetworkId(network), action, public_key, incarnation, expires_ms, bool(force))


def sign_change(change: Change, key: Ed25519PrivateKey) -> SignedChange:
    """The change with a signature by the operator, or by the node that leaves."""
    raw = encode_change(change)
    return SignedChange(raw, key.sign(raw))


def is_change_signed_by(signed: SignedChange, public_key: bytes) -> bool:
    """True when the signature was made over the change with the key of this 32-byte public key."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signed.signature, signed.raw)
    except (InvalidSignature, ValueError):
        return False
    return True


def check_change_untrusted(signed: SignedChange, genesis: Genesis, now_ms: int) -> Change:
    """The change, when it is this network's, has not expired and is signed by who may sign it.

    Raises `RemoteFault`: `bad_change`, `network`, `expired`, `bad_signature`. Whether the members can be changed so is
    for the view to say.
    """
    change = decode_change_untrusted(signed.raw)
    if change.network != genesis.network_id:
        raise RemoteFault(
            "network",
            f"the change is of network {change.network.hex()[:16]}, this is {genesis.network_id.hex()[:16]}: "
            "use the files of this network",
        )
    if now_ms > change.expires_ms:
        raise RemoteFault(
            "expired",
            f"the change expired {(now_ms - change.expires_ms) // 1000} s ago by this node's clock: make a new one",
        )
    signers = [bytes.fromhex(genesis.operator)] if genesis.operator else []
    if change.action is ChangeAction.REMOVE:
        signers.append(change.public_key)
    if not any(is_change_signed_by(signed, signer) for signer in signers):
        who = "the operator of this network" if genesis.operator else "anybody: genesis.json names no operator"
        raise RemoteFault("bad_signature", f"the change of node {change.node_id.hex()} is not signed by {who}")
    return change

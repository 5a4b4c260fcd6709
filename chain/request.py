"""Requests: what a client signs, as canonical bytes.

One request has one byte form and back, so its id can be its hash and its signature can be checked anywhere:

    kind u8 | network 32 | sender 64 | nonce 32 | expect_tip 32 | valid_until_height u64 | count u32 | items

    TRANSFER  items = count postings of POSTING_BYTES (recipient 64 | amount u64 | memo 56)
    OPEN      count = 0, items = asset 16 | public key 32
    CANCEL    count = 0, items = request id 32

All integers are big-endian. `expect_tip` of zeros means "any tip"; `valid_until_height` of `ANY_HEIGHT` means "at
any height". `request_id` = SHA-256(tag | bytes); the signature is Ed25519 over tag | request_id. The tags keep a
hash of one thing from ever being the hash of another.
"""

import enum
import hashlib
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, NewType, overload

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from chain.errors import LocalMisuse, RemoteFault
from chain.names import (
    ASSET_BYTES,
    MAX_AMOUNT,
    NAME_BYTES,
    check_amount_untrusted,
    decode_name_untrusted,
    is_asset,
    pad,
    unpad_untrusted,
)

RequestId = NewType("RequestId", bytes)
NetworkId = NewType("NetworkId", bytes)

HASH_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
MEMO_BYTES: Final = 56
POSTING_BYTES: Final = NAME_BYTES + 8 + MEMO_BYTES  # 128, so that postings are found by arithmetic
MANY_POSTINGS: Final = 8  # from here on a request's postings are made into objects only when somebody looks at them
MAX_POSTINGS: Final = 8190  # as many as fill 1 MiB less a page: one request, one frame, one link
ANY_TIP: Final = bytes(HASH_BYTES)
ANY_HEIGHT: Final = 2**64 - 1

_HEAD = struct.Struct(f">B{HASH_BYTES}s{NAME_BYTES}s32s{HASH_BYTES}sQI")
_POSTING = struct.Struct(f">{NAME_BYTES}sQ{MEMO_BYTES}s")
_NAME_COLUMN: Final = f"{NAME_BYTES}s8x{MEMO_BYTES}x"
_AMOUNT_COLUMN: Final = f"{NAME_BYTES}xQ{MEMO_BYTES}x"
_MEMO_COLUMN: Final = f"{NAME_BYTES}x8x{MEMO_BYTES}s"
_OPEN = struct.Struct(f">{ASSET_BYTES}s32s")
REQUEST_HEAD_BYTES: Final = _HEAD.size
MAX_REQUEST_BYTES: Final = REQUEST_HEAD_BYTES + MAX_POSTINGS * POSTING_BYTES

_ID_TAG: Final = b"hopchain:request:1\0"
_SIGN_TAG: Final = b"hopchain:sign:1\0"


class Kind(enum.IntEnum):
    """What a request asks for."""

    OPEN = 1
    TRANSFER = 2
    CANCEL = 3


_KINDS: Final = {int(kind): kind for kind in Kind}  # `Kind(number)` takes ten times as long


class Posting(msgspec.Struct, frozen=True, gc=False):
    """One credit: `amount` minor units to `recipient`; `memo` is at most MEMO_BYTES bytes of UTF-8."""

    recipient: str
    amount: int
    memo: str = ""


class Postings(Sequence[Posting]):
    """Many postings as their records. What the rules and the store look at is taken from all of them in one go:
    `recipients`, `names`, `amounts`, `total`. One by one they are made when somebody asks for them."""

    __slots__ = ("_made", "_records", "amounts", "recipients", "total")

    def __init__(self, records: memoryview, recipients: frozenset[str], amounts: tuple[int, ...]) -> None:
        self._records = records
        self._made: tuple[Posting, ...] | None = None
        self.recipients = recipients
        self.amounts = amounts
        self.total = sum(amounts)

    def _all(self) -> tuple[Posting, ...]:
        if self._made is None:
            names, memos = self.names, _column(_MEMO_COLUMN, self._records)
            name_of = {raw: decode_name_untrusted(raw) for raw in set(names)}
            memo_of = {raw: unpad_untrusted(raw) for raw in set(memos)}
            columns = map(name_of.__getitem__, names), self.amounts, map(memo_of.__getitem__, memos)
            self._made = tuple(map(Posting, *columns))
        return self._made

    @property
    def names(self) -> tuple[bytes, ...]:
        """Whom each pays, padded as in its record; in the order of `amounts`."""
        return _column(_NAME_COLUMN, self._records)

    def __len__(self) -> int:
        return len(self.amounts)

    def __iter__(self) -> Iterator[Posting]:
        return iter(self._all())

    @overload
    def __getitem__(self, at: int) -> Posting: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Posting, ...]: ...
    def __getitem__(self, at: int | slice) -> Posting | tuple[Posting, ...]:
        return self._all()[at]

    def __eq__(self, other: object) -> bool:
        return self._all() == (other._all() if isinstance(other, Postings) else other)

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        return f"<{len(self)} postings of {self.total}>"


class Request(msgspec.Struct, frozen=True, gc=False):
    """A request as its fields. `postings` only for TRANSFER, `asset` and `public_key` only for OPEN, `target`
    only for CANCEL. Build one with `transfer`, `opening` or `cancellation`."""

    kind: Kind
    network: NetworkId
    sender: str
    nonce: bytes
    postings: Sequence[Posting] = ()
    asset: str = ""
    public_key: bytes = b""
    target: RequestId = RequestId(b"")
    expect_tip: bytes = ANY_TIP
    valid_until_height: int = ANY_HEIGHT

    @property
    def total(self) -> int:
        """Sum of the postings in minor units."""
        return _total(self.postings)

    @property
    def amounts(self) -> tuple[int, ...]:
        """The amounts of the postings in minor units, in order."""
        return self.postings.amounts if type(self.postings) is Postings else tuple(p.amount for p in self.postings)

    @property
    def recipients(self) -> frozenset[str]:
        """The accounts that the postings name."""
        if type(self.postings) is Postings:
            return self.postings.recipients
        return frozenset([p.recipient for p in self.postings])


def _total(postings: Sequence[Posting]) -> int:
    if type(postings) is Postings:  # `isinstance` goes through the abstract base class
        return postings.total
    return postings[0].amount if len(postings) == 1 else sum([p.amount for p in postings])


class SignedRequest(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Canonical request bytes with the signature over them; the form that travels and is stored."""

    raw: bytes
    signature: bytes

    @property
    def request_id(self) -> RequestId:
        """SHA-256 of the tagged canonical bytes."""
        return request_id(self.raw)


class DecodedRequest(msgspec.Struct, frozen=True, gc=False):
    """A request as it came, with what it says, decoded once."""

    signed: SignedRequest
    request: Request
    request_id: RequestId


def request_id(raw: bytes) -> RequestId:
    """The id of the request with these canonical bytes."""
    return RequestId(hashlib.sha256(_ID_TAG + raw).digest())


def transfer(
    network: NetworkId,
    sender: str,
    postings: Sequence[Posting],
    nonce: bytes,
    *,
    expect_tip: bytes = ANY_TIP,
    valid_until_height: int = ANY_HEIGHT,
) -> Request:
    """A transfer of all `postings` from `sender`, all or nothing. `nonce`: 32 bytes, new for each payment."""
    return Request(
        Kind.TRANSFER,
        network,
        sender,
        nonce,
        postings=tuple(postings),
        expect_tip=expect_tip,
        valid_until_height=valid_until_height,
    )


def opening(network: NetworkId, name: str, asset: str, public_key: bytes, nonce: bytes) -> Request:
    """Opens account `name` in `asset`, owned by the 32-byte raw Ed25519 `public_key` (which signs this)."""
    return Request(Kind.OPEN, network, name, nonce, asset=asset, public_key=public_key)


def cancellation(network: NetworkId, sender: str, target: RequestId, nonce: bytes) -> Request:
    """Occupies the request id `target` of the same sender, so that it can never execute."""
    return Request(Kind.CANCEL, network, sender, nonce, target=target)


def encode_request(request: Request) -> bytes:
    """Canonical bytes of a well-formed request.

    Text that is too long and hashes of any other size than theirs raise `LocalMisuse`, also under `python -O`: cut off
    or padded they would make another request, or two payments one. An integer that does not fit raises `struct.error`.
    What else makes a request well formed, `decode_request_untrusted` checks.
    """
    head = _HEAD.pack(
        request.kind,
        _of_hash_size("network", request.network),
        pad(request.sender, NAME_BYTES),
        _of_hash_size("nonce", request.nonce),
        _of_hash_size("expect_tip", request.expect_tip),
        request.valid_until_height,
        len(request.postings),
    )
    if request.kind is Kind.TRANSFER:
        return head + b"".join(encode_posting(p) for p in request.postings)
    if request.kind is Kind.OPEN:
        return head + _OPEN.pack(pad(request.asset, ASSET_BYTES), _of_hash_size("public_key", request.public_key))
    return head + _of_hash_size("target", request.target)


def _of_hash_size(field: str, raw: bytes) -> bytes:
    if len(raw) != HASH_BYTES:
        raise LocalMisuse(f"{field} has {len(raw)} bytes; it must have {HASH_BYTES}")
    return raw


def encode_posting(posting: Posting) -> bytes:
    """The POSTING_BYTES record of one posting."""
    return _POSTING.pack(pad(posting.recipient, NAME_BYTES), posting.amount, pad(posting.memo, MEMO_BYTES))


def decode_request_untrusted(raw: bytes) -> Request:
    """The request with these canonical bytes, checked in every field that needs no ledger.

    Raises `RemoteFault`: `malformed`, `bad_name`, `bad_amount`, `bad_total`, `self_transfer`, `bad_text`.
    """
    if not _HEAD.size < len(raw) <= MAX_REQUEST_BYTES:
        raise RemoteFault(
            "malformed", f"a request of {len(raw)} bytes: it must be {_HEAD.size + 1} to {MAX_REQUEST_BYTES}"
        )
    number, network, sender_raw, nonce, expect_tip, until, count = _HEAD.unpack_from(raw)
    kind = _KINDS.get(number)
    if kind is None:
        raise RemoteFault("malformed", f"request kind {number} is not known")
    sender = decode_name_untrusted(sender_raw)
    tail = len(raw) - _HEAD.size
    if kind is Kind.TRANSFER:
        if not 1 <= count <= MAX_POSTINGS or tail != count * POSTING_BYTES:
            raise RemoteFault(
                "malformed",
                f"a transfer that claims {count} postings in {tail} bytes: "
                f"1 to {MAX_POSTINGS} of {POSTING_BYTES} bytes each",
            )
        postings = _postings_untrusted(memoryview(raw)[_HEAD.size :], sender)
        total = _total(postings)
        if total > MAX_AMOUNT:
            raise RemoteFault("bad_total", f"the postings add up to {total}: more than {MAX_AMOUNT} minor units")
        return Request(kind, network, sender, nonce, postings, "", b"", RequestId(b""), expect_tip, until)
    if count != 0:
        raise RemoteFault("malformed", f"a request of kind {kind.name} with {count} postings")
    if kind is Kind.OPEN:
        if tail != _OPEN.size:
            raise RemoteFault("malformed", f"an opening with {tail} bytes of body: it must be {_OPEN.size}")
        asset_raw, public_key = _OPEN.unpack_from(raw, _HEAD.size)
        asset = unpad_untrusted(asset_raw)
        if not is_asset(asset):
            raise RemoteFault("bad_asset", f"{asset!r} is not an asset code: 1 to {ASSET_BYTES} of A-Z 0-9")
        if expect_tip != ANY_TIP:
            raise RemoteFault("malformed", "an opening cannot expect a tip")
        return Request(kind, network, sender, nonce, (), asset, public_key, RequestId(b""), expect_tip, until)
    if tail != HASH_BYTES:
        raise RemoteFault("malformed", f"a cancellation with {tail} bytes of body: it must be {HASH_BYTES}")
    target = RequestId(raw[_HEAD.size :])
    return Request(kind, network, sender, nonce, (), "", b"", target, expect_tip, until)


def _postings_untrusted(records: memoryview, sender: str) -> Sequence[Posting]:
    """The postings with these records. Many are checked column by column, which takes a third of the time; when
    anything is wrong there, they are read one by one, so that the fault named is the first one's."""
    if len(records) >= MANY_POSTINGS * POSTING_BYTES:
        amounts = _column(_AMOUNT_COLUMN, records)
        try:
            recipients = frozenset(map(decode_name_untrusted, set(_column(_NAME_COLUMN, records))))
            for memo in set(_column(_MEMO_COLUMN, records)):
                unpad_untrusted(memo)
        except RemoteFault:
            pass
        else:
            if sender not in recipients and min(amounts) > 0 and max(amounts) <= MAX_AMOUNT:
                return Postings(records, recipients, amounts)
    return tuple(_posting_untrusted(fields, sender) for fields in _POSTING.iter_unpack(records))


@lru_cache(maxsize=64)  # the largest takes half a MB
def _columns(field: str, count: int) -> struct.Struct:
    return struct.Struct(">" + field * count)


def _column(field: str, records: memoryview) -> tuple[Any, ...]:
    """One field of all records, in order. In one go, without a tuple for each record: 8,190 of those wake the garbage
    collector again and again, which then looks through all that the node holds."""
    return _columns(field, len(records) // POSTING_BYTES).unpack(records)


def _posting_untrusted(fields: tuple[bytes, int, bytes], sender: str) -> Posting:
    recipient_raw, amount, memo_raw = fields
    recipient = decode_name_untrusted(recipient_raw)
    if recipient == sender:
        raise RemoteFault("self_transfer", f"{sender} cannot pay itself: name another recipient")
    return Posting(recipient, check_amount_untrusted(amount), unpad_untrusted(memo_raw))


def sign(request: Request, key: Ed25519PrivateKey) -> SignedRequest:
    """The request with the owner's signature. For what a person or another program made use `hopchain.sign_request`,
    which checks every field first."""
    return sign_bytes(encode_request(request), key)


def sign_bytes(raw: bytes, key: Ed25519PrivateKey) -> SignedRequest:
    """The request with these canonical bytes, and the owner's signature."""
    return SignedRequest(raw, key.sign(_SIGN_TAG + request_id(raw)))


def is_signed_by(signed: SignedRequest, public_key: bytes) -> bool:
    """True when `signed.signature` was made over `signed.raw` with the key of this 32-byte public key. By libsodium,
    which needs half of OpenSSL's time for it: the largest single thing that a node does for a request."""
    try:
        VerifyKey(public_key).verify(_SIGN_TAG + signed.request_id, signed.signature)
    except (BadSignatureError, ValueError):
        return False
    return True

"""Links: one element of an account's chain, as canonical bytes.

    header  network 32 | account 64 | height u64 | prev_hash 32 | balance i64 | incoming_checksum 32
            | epoch u64 | time_ms u64 | body_hash 32
    body    entries u32 | entry ... | confirmed u32 | posting hash 32 ...
    entry   outcome u8 | length u32 | request bytes | signature 64

`hash` = SHA-256(tag | header) and the header holds the hash of the body, so the hash of a link commits to all of it.
`prev_hash` is the slot that the link fills: the hash of the link before it, or `opening_slot(name)` for link 0.
A posting's hash = SHA-256(tag | link hash | its number in the link u32 | its 128-byte record).
`incoming_checksum` = SHA-256(tag | confirmed posting hashes in order).

A link is valid or not by its own bytes and decided data alone (design R15): nothing here reads a clock.
"""

import enum
import hashlib
import struct
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, chain, repeat
from typing import Final, NewType

import msgspec

from chain.errors import RemoteFault
from chain.names import MAX_AMOUNT, NAME_BYTES, decode_name_untrusted, pad
from chain.request import (
    HASH_BYTES,
    MAX_REQUEST_BYTES,
    POSTING_BYTES,
    REQUEST_HEAD_BYTES,
    SIGNATURE_BYTES,
    Kind,
    NetworkId,
    Posting,
    Request,
    RequestId,
    SignedRequest,
    decode_request_untrusted,
    encode_posting,
    request_id,
)

LinkHash = NewType("LinkHash", bytes)
Slot = NewType("Slot", bytes)  # the hash whose successor is decided there
PostingHash = NewType("PostingHash", bytes)

MAX_CONFIRMED: Final = 8190  # postings taken up by one link (design section 2)
MAX_ENTRIES: Final = 8190  # requests in one link
MAX_LINK_BYTES: Final = 2 * 1024 * 1024  # one largest request, one full list of confirmations, and room

_HEADER = struct.Struct(f">{HASH_BYTES}s{NAME_BYTES}sQ{HASH_BYTES}sq{HASH_BYTES}sQQ{HASH_BYTES}s")
HEADER_BYTES: Final = _HEADER.size
_COUNT = struct.Struct(">I")
_ENTRY = struct.Struct(">BI")

_LINK_TAG: Final = b"hopchain:link:1\0"
_BODY_TAG: Final = b"hopchain:body:1\0"
_POSTING_TAG: Final = b"hopchain:posting:1\0"
_INCOME_TAG: Final = b"hopchain:income:1\0"
_OPEN_TAG: Final = b"hopchain:open:1\0"


class Outcome(enum.IntEnum):
    """What became of a request, for ever. Everything but COMPLETED is a rejection and moved no money."""

    COMPLETED = 0
    INSUFFICIENT_FUNDS = 1
    UNKNOWN_RECIPIENT = 2
    ASSET_MISMATCH = 3
    EXPIRED = 4  # the link's height is above valid_until_height
    CANCELLED = 5  # recorded for the target of a cancel
    ALREADY_DECIDED = 6  # a cancel whose target had its outcome before
    ISSUER_LIMIT = 7  # the issuer's balance would fall below the limit of its asset (Genesis.issuer_limit)


_OUTCOMES: Final = {int(outcome): outcome for outcome in Outcome}


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One request of the account with its outcome."""

    signed: SignedRequest
    request: Request
    request_id: RequestId
    outcome: Outcome


class Link(msgspec.Struct, frozen=True, dict=True):
    """A decided or proposed link. Build with `build_link`, read with `decode_link_untrusted`; `raw` is
    header | body as it travels and is stored."""

    network: NetworkId
    account: str
    height: int
    prev_hash: Slot
    balance: int
    incoming_checksum: bytes
    epoch: int
    time_ms: int
    entries: tuple[Entry, ...]
    confirmed: tuple[PostingHash, ...]
    hash: LinkHash
    raw: bytes

    @property
    def next_slot(self) -> Slot:
        """The slot after this link."""
        return Slot(self.hash)

    @cached_property
    def debit(self) -> int:
        """What the completed transfers of this link take from the balance, minor units."""
        return sum([e.request.total for e in self.entries if e.outcome is Outcome.COMPLETED])

    @cached_property
    def paying(self) -> tuple[tuple[int, Entry], ...]:
        """The entries that make postings, each with the place of its postings' records in the body."""
        at = _COUNT.size
        paying = []
        for entry in self.entries:
            at += _ENTRY.size
            if entry.outcome is Outcome.COMPLETED and entry.request.kind is Kind.TRANSFER:
                paying.append((at + REQUEST_HEAD_BYTES, entry))
            at += len(entry.signed.raw) + SIGNATURE_BYTES
        return tuple(paying)

    @cached_property
    def posting_hashes(self) -> tuple[PostingHash, ...]:
        """The hashes of all postings that this link makes, in order."""
        sha256, pack, tag = hashlib.sha256, _COUNT.pack, _POSTING_TAG + self.hash
        hashes: list[PostingHash] = []
        for _, entry in self.paying:
            raw = entry.signed.raw
            places = range(REQUEST_HEAD_BYTES, len(raw), POSTING_BYTES)
            hashes += [
                PostingHash(sha256(tag + pack(number) + raw[at : at + POSTING_BYTES]).digest())
                for number, at in enumerate(places, len(hashes))
            ]
        return tuple(hashes)

    @cached_property
    def number_of(self) -> dict[PostingHash, int]:
        """The number in this link of each posting that it makes."""
        return {posting: number for number, posting in enumerate(self.posting_hashes)}

    @cached_property
    def recipients(self) -> frozenset[str]:
        """The accounts that this link pays."""
        return frozenset().union(*[entry.request.recipients for _, entry in self.paying])

    def posting(self, number: int) -> Posting:
        """Posting `number` of those that this link makes."""
        starts, requests = self._requests
        at = bisect_right(starts, number) - 1
        return requests[at].postings[number - starts[at]]

    @cached_property
    def _requests(self) -> tuple[list[int], list[Request]]:
        """The numbers of the first postings of the requests that make any, and these requests."""
        requests = [entry.request for _, entry in self.paying]
        return list(accumulate((len(request.postings) for request in requests[:-1]), initial=0)), requests

    def postings(self) -> tuple[tuple[int, PostingHash, Posting, RequestId], ...]:
        """(number in the link, hash, posting, request id) of each completed posting, in order. In large links this
        is much work: `recipients` and `posting_hashes` make no objects."""
        return self._postings

    @cached_property
    def _postings(self) -> tuple[tuple[int, PostingHash, Posting, RequestId], ...]:
        entries = [entry for _, entry in self.paying]
        postings = chain.from_iterable(entry.request.postings for entry in entries)
        ids = chain.from_iterable(repeat(entry.request_id, len(entry.request.postings)) for entry in entries)
        return tuple(zip(range(len(self.posting_hashes)), self.posting_hashes, postings, ids, strict=True))

    def outcomes(self) -> tuple[tuple[RequestId, Outcome], ...]:
        """(request id, outcome) of everything this link settles, a cancelled target after its cancel."""
        return self._outcomes

    @cached_property
    def _outcomes(self) -> tuple[tuple[RequestId, Outcome], ...]:
        return tuple(_settled(self.entries))


def _settled(entries: Iterable[Entry]) -> Iterator[tuple[RequestId, Outcome]]:
    for entry in entries:
        yield entry.request_id, entry.outcome
        if entry.request.kind is Kind.CANCEL and entry.outcome is Outcome.COMPLETED:
            yield entry.request.target, Outcome.CANCELLED


def opening_slot(network: NetworkId, name: str) -> Slot:
    """The slot of link 0 of account `name`: one per name, so a name exists once."""
    return Slot(hashlib.sha256(_OPEN_TAG + network + pad(name, NAME_BYTES)).digest())


def posting_hash(link_hash: LinkHash, number: int, posting: Posting) -> PostingHash:
    """The hash of posting `number` of the link."""
    return PostingHash(
        hashlib.sha256(_POSTING_TAG + link_hash + _COUNT.pack(number) + encode_posting(posting)).digest()
    )


def income_checksum(confirmed: Sequence[PostingHash]) -> bytes:
    """The checksum over the hashes of the confirmed postings, in order (also of none)."""
    return hashlib.sha256(_INCOME_TAG + b"".join(confirmed)).digest()


def header_hash(header: bytes) -> LinkHash:
    """The hash of a link with this header (HEADER_BYTES bytes)."""
    return LinkHash(hashlib.sha256(_LINK_TAG + header).digest())


def body_hash(body: bytes) -> bytes:
    """The hash of a link's body, as its header holds it."""
    return hashlib.sha256(_BODY_TAG + body).digest()


def build_link(
    network: NetworkId,
    account: str,
    height: int,
    prev_hash: Slot,
    balance: int,
    epoch: int,
    time_ms: int,
    entries: Sequence[Entry],
    confirmed: Sequence[PostingHash],
) -> Link:
    """Encode and hash a link. The caller vouches for its meaning (`chain.rules.form_link` does)."""
    parts = [_COUNT.pack(len(entries))]
    for entry in entries:
        parts += (_ENTRY.pack(entry.outcome, len(entry.signed.raw)), entry.signed.raw, entry.signed.signature)
    parts.append(_COUNT.pack(len(confirmed)))
    parts += confirmed
    body = b"".join(parts)
    checksum = income_checksum(confirmed)
    header = _HEADER.pack(
        network,
        pad(account, NAME_BYTES),
        height,
        prev_hash,
        balance,
        checksum,
        epoch,
        time_ms,
        body_hash(body),
    )
    assert len(header) + len(body) <= MAX_LINK_BYTES, (account, height, len(body))
    return Link(
        network,
        account,
        height,
        prev_hash,
        balance,
        checksum,
        epoch,
        time_ms,
        tuple(entries),
        tuple(confirmed),
        header_hash(header),
        header + body,
    )


def decode_link_untrusted(raw: bytes) -> Link:
    """Read a link and check that it agrees with itself: lengths, body hash, checksum, requests well formed.

    Raises `RemoteFault` (`malformed` and the codes of `decode_request_untrusted`). Whether it follows from the chain
    before it is for `chain.rules.successor_fault`.
    """
    if not HEADER_BYTES + 2 * _COUNT.size <= len(raw) <= MAX_LINK_BYTES:
        raise RemoteFault(
            "malformed", f"a link of {len(raw)} bytes: it has {HEADER_BYTES + 2 * _COUNT.size} to {MAX_LINK_BYTES}"
        )
    header, body = raw[:HEADER_BYTES], raw[HEADER_BYTES:]
    network, name, height, prev_hash, balance, checksum, epoch, time_ms, stated_body = _HEADER.unpack(header)
    account = decode_name_untrusted(name)
    if max(height, epoch, time_ms) > MAX_AMOUNT:
        raise RemoteFault(
            "malformed", f"link of {account}: height {height}, epoch {epoch} or time {time_ms} is above 2^63-1"
        )
    if body_hash(body) != stated_body:
        raise RemoteFault("malformed", f"link {height} of {account}: its body is not the one its header commits to")
    try:
        entries, confirmed = _decode_body_untrusted(body)
    except struct.error:
        raise RemoteFault("malformed", f"link {height} of {account}: its body is cut short") from None
    if income_checksum(confirmed) != checksum:
        raise RemoteFault("malformed", f"link {height} of {account}: its incoming checksum is not its income's")
    for entry in entries:
        if entry.request.sender != account or entry.request.network != network:
            raise RemoteFault("malformed", f"link {height} of {account} holds a request of {entry.request.sender}")
    return Link(
        network,
        account,
        height,
        Slot(prev_hash),
        balance,
        checksum,
        epoch,
        time_ms,
        entries,
        confirmed,
        header_hash(header),
        raw,
    )


class Record(msgspec.Struct, frozen=True):
    """What a link says of outcomes: whose it is, and (request id, outcome) by their numbers in `Link.outcomes`."""

    hash: LinkHash
    account: str
    height: int
    balance: int
    time_ms: int
    outcomes: dict[int, tuple[RequestId, Outcome]]


def read_header(header: bytes) -> tuple[LinkHash, str, int, int]:
    """(hash, account, height, time in Unix ms) of the link with this header. Raises `RemoteFault` for a damaged one."""
    try:
        _, name, height, _, _, _, _, time_ms, _ = _HEADER.unpack(header)
    except struct.error:
        raise RemoteFault("malformed", f"a header of {len(header)} bytes: it has {HEADER_BYTES}") from None
    return header_hash(header), decode_name_untrusted(name), height, time_ms


def read_record_untrusted(raw: bytes, numbers: Collection[int]) -> Record:
    """The outcomes with these `numbers`, as far as there are such, from the link with these bytes. The requests,
    thousands perhaps, are not decoded. Raises `RemoteFault` (`malformed`) when the link does not agree with itself."""
    header, body = raw[:HEADER_BYTES], raw[HEADER_BYTES:]
    try:
        _, name, height, _, balance, _, _, time_ms, stated_body = _HEADER.unpack(header)
        account = decode_name_untrusted(name)
        if body_hash(body) != stated_body:
            raise RemoteFault("malformed", f"link {height} of {account}: its body is not the one its header commits to")
        outcomes = _find_outcomes(body, numbers)
    except (struct.error, IndexError, ValueError):
        raise RemoteFault(
            "malformed", f"a link of {len(raw)} bytes is cut short, or has an outcome that is none"
        ) from None
    return Record(header_hash(header), account, height, balance, time_ms, outcomes)


def _find_outcomes(body: bytes, numbers: Collection[int]) -> dict[int, tuple[RequestId, Outcome]]:
    found: dict[int, tuple[RequestId, Outcome]] = {}
    (count,) = _COUNT.unpack_from(body)
    at, number = _COUNT.size, 0
    for _ in range(count):
        code, length = _ENTRY.unpack_from(body, at)
        start = at + _ENTRY.size
        at = start + length + SIGNATURE_BYTES
        if number in numbers:
            found[number] = request_id(body[start : start + length]), Outcome(code)
        number += 1
        if body[start] == Kind.CANCEL and code == Outcome.COMPLETED:
            if number in numbers:
                found[number] = RequestId(body[start + length - HASH_BYTES : start + length]), Outcome.CANCELLED
            number += 1
    return found


def _decode_body_untrusted(body: bytes) -> tuple[tuple[Entry, ...], tuple[PostingHash, ...]]:
    (count,) = _COUNT.unpack_from(body)
    at = _COUNT.size
    if count > MAX_ENTRIES:
        raise RemoteFault("malformed", f"a link with {count} requests: at most {MAX_ENTRIES}")
    entries = []
    for _ in range(count):
        code, length = _ENTRY.unpack_from(body, at)
        at += _ENTRY.size
        end = at + length
        outcome = _OUTCOMES.get(code)
        if length > MAX_REQUEST_BYTES or end + SIGNATURE_BYTES > len(body) or outcome is None:
            raise RemoteFault("malformed", f"a link entry of {length} bytes with outcome {code}")
        raw = body[at:end]
        signed = SignedRequest(raw, body[end : end + SIGNATURE_BYTES])
        entries.append(Entry(signed, decode_request_untrusted(raw), request_id(raw), outcome))
        at = end + SIGNATURE_BYTES
    (count,) = _COUNT.unpack_from(body, at)
    at += _COUNT.size
    if count > MAX_CONFIRMED or len(body) - at != count * HASH_BYTES:
        raise RemoteFault("malformed", f"a link that claims {count} confirmations in {len(body) - at} bytes")
    return tuple(entries), tuple(PostingHash(body[i : i + HASH_BYTES]) for i in range(at, len(body), HASH_BYTES))

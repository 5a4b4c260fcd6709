import hashlib
import re
import struct
import sys

import pytest

from chain.errors import RemoteFault
from chain.link import (
    HEADER_BYTES,
    MAX_CONFIRMED,
    MAX_ENTRIES,
    MAX_LINK_BYTES,
    Entry,
    Link,
    Outcome,
    PostingHash,
    Slot,
    body_hash,
    build_link,
    decode_link_untrusted,
    header_hash,
    income_checksum,
    opening_slot,
)
from chain.request import (
    MAX_POSTINGS,
    MAX_REQUEST_BYTES,
    Posting,
    Request,
    RequestId,
    cancellation,
    encode_posting,
    opening,
    transfer,
)
from tests.chain.bank import NETWORK, decoded, nonce_of

PAY = transfer(NETWORK, "alice", [Posting("bob", 5), Posting("carol", 7, "memo")], nonce_of(1))
POOR = transfer(NETWORK, "alice", [Posting("bob", 500)], nonce_of(2))
MORE = transfer(NETWORK, "alice", [Posting("bob", 1)], nonce_of(3))
CANCEL = cancellation(NETWORK, "alice", RequestId(bytes([4]) * 32), nonce_of(4))
CONFIRMED = (PostingHash(bytes([1]) * 32), PostingHash(bytes([2]) * 32))


def entry(request: Request, outcome: Outcome) -> Entry:
    item = decoded(request)
    return Entry(item.signed, request, item.request_id, outcome)


ENTRIES = (
    entry(PAY, Outcome.COMPLETED),
    entry(POOR, Outcome.INSUFFICIENT_FUNDS),
    entry(CANCEL, Outcome.COMPLETED),
    entry(MORE, Outcome.COMPLETED),
)
SLOT = opening_slot(NETWORK, "somebody")
LINK = build_link(NETWORK, "alice", 3, SLOT, -20, 2, 1234, ENTRIES, CONFIRMED)


def test_the_bytes_are_what_the_module_says() -> None:
    """Laid out by hand, so that the encoder is not its own judge."""
    one = build_link(NETWORK, "alice", 3, SLOT, -20, 2, 1234, ENTRIES[:1], CONFIRMED)
    signed = ENTRIES[0].signed
    body = b"\0\0\0\1" + b"\0" + struct.pack(">I", len(signed.raw)) + signed.raw + signed.signature
    body += b"\0\0\0\2" + CONFIRMED[0] + CONFIRMED[1]
    income = hashlib.sha256(b"hopchain:income:1\0" + CONFIRMED[0] + CONFIRMED[1]).digest()
    header = NETWORK + b"alice".ljust(64, b"\0") + struct.pack(">Q", 3) + SLOT + struct.pack(">q", -20) + income
    header += struct.pack(">QQ", 2, 1234) + hashlib.sha256(b"hopchain:body:1\0" + body).digest()
    assert one.raw == header + body
    assert one.hash == hashlib.sha256(b"hopchain:link:1\0" + header).digest()
    _, posting_hash, _, _ = one.postings()[0]
    record = encode_posting(PAY.postings[0])
    assert posting_hash == hashlib.sha256(b"hopchain:posting:1\0" + one.hash + bytes(4) + record).digest()
    assert hashlib.sha256(b"hopchain:open:1\0" + NETWORK + b"somebody".ljust(64, b"\0")).digest() == SLOT


def test_a_link_comes_back_as_it_was() -> None:
    assert decode_link_untrusted(LINK.raw) == LINK
    assert LINK.hash == header_hash(LINK.raw[:HEADER_BYTES])
    assert LINK.next_slot == Slot(LINK.hash)
    assert LINK.incoming_checksum == income_checksum(CONFIRMED)


def test_only_completed_requests_move_money() -> None:
    assert LINK.debit == 13
    assert [(number, posting.recipient, request) for number, _, posting, request in LINK.postings()] == [
        (0, "bob", ENTRIES[0].request_id),
        (1, "carol", ENTRIES[0].request_id),
        (2, "bob", ENTRIES[3].request_id),
    ]
    assert len({posting for _, posting, _, _ in LINK.postings()}) == 3


def test_outcomes_hold_the_target_of_a_cancellation_that_came_first() -> None:
    late = build_link(NETWORK, "alice", 3, SLOT, 0, 2, 1, [entry(CANCEL, Outcome.ALREADY_DECIDED)], ())
    assert list(LINK.outcomes()) == [
        (ENTRIES[0].request_id, Outcome.COMPLETED),
        (ENTRIES[1].request_id, Outcome.INSUFFICIENT_FUNDS),
        (ENTRIES[2].request_id, Outcome.COMPLETED),
        (CANCEL.target, Outcome.CANCELLED),
        (ENTRIES[3].request_id, Outcome.COMPLETED),
    ]
    assert [outcome for _, outcome in late.outcomes()] == [Outcome.ALREADY_DECIDED]


def test_the_largest_link_fits() -> None:
    full = transfer(NETWORK, "alice", [Posting(f"p{i}", 1) for i in range(MAX_POSTINGS)], nonce_of(9))
    confirmed = [PostingHash(i.to_bytes(32, "big")) for i in range(MAX_CONFIRMED)]
    link = build_link(NETWORK, "alice", 3, SLOT, 0, 2, 1, [entry(full, Outcome.COMPLETED)], confirmed)
    assert len(link.raw) <= MAX_LINK_BYTES
    assert decode_link_untrusted(link.raw) == link


def _body(body: bytes, **header: int) -> bytes:
    """LINK's header, but for `header`, over this body, with a right body hash."""
    fields = list(struct.unpack(">32s64sQ32sq32sQQ32s", LINK.raw[:HEADER_BYTES]))
    for name, value in header.items():
        fields[("network", "account", "height", "prev", "balance", "checksum", "epoch", "time_ms").index(name)] = value
    fields[-1] = body_hash(body)
    return struct.pack(">32s64sQ32sq32sQQ32s", *fields) + body


BODY = LINK.raw[HEADER_BYTES:]
_FIRST = struct.pack(">BI", 0, len(ENTRIES[0].signed.raw))
_FOREIGN = build_link(NETWORK, "bob", 3, SLOT, 0, 2, 1, [entry(PAY, Outcome.COMPLETED)], ()).raw
_OTHER_NETWORK = opening(type(NETWORK)(bytes(32)), "bob", "CZK", bytes(32), bytes(32))
WRONG: list[tuple[str, bytes, str, str]] = [
    ("empty", b"", "malformed", "0 bytes"),
    ("a header alone", LINK.raw[:HEADER_BYTES], "malformed", "bytes"),
    ("too long", bytes(MAX_LINK_BYTES + 1), "malformed", str(MAX_LINK_BYTES)),
    ("name", LINK.raw[:32] + b"A" + LINK.raw[33:], "bad_name", "Alice"),
    ("another body", LINK.raw[:-1] + b"\0", "malformed", "commits to"),
    ("height", _body(BODY, height=2**63), "malformed", "2^63-1"),
    ("epoch", _body(BODY, epoch=2**63), "malformed", "2^63-1"),
    ("time", _body(BODY, time_ms=2**64 - 1), "malformed", "2^63-1"),
    ("cut short", _body(BODY[:8]), "malformed", "cut short"),
    ("cut before the confirmations", _body(BODY[:-68]), "malformed", "cut short"),
    ("a confirmation missing", _body(BODY[:-32]), "malformed", "claims 2"),
    ("half a confirmation", _body(BODY[:-1]), "malformed", "claims 2"),
    ("bytes at the end", _body(BODY + b"\0"), "malformed", "claims 2"),
    ("another confirmation", _body(BODY[:-1] + b"\0"), "malformed", "not its income"),
    ("too many requests", _body(struct.pack(">I", MAX_ENTRIES + 1) + BODY[4:]), "malformed", str(MAX_ENTRIES + 1)),
    ("an unknown outcome", _body(BODY[:4] + b"\xee" + BODY[5:]), "malformed", "outcome 238"),
    ("a long request", _body(BODY[:5] + struct.pack(">I", MAX_REQUEST_BYTES + 1) + BODY[9:]), "malformed", "entry of"),
    ("a request past the end", _body(BODY[:5] + struct.pack(">I", len(BODY)) + BODY[9:]), "malformed", "entry of"),
    ("a request inside", _body(BODY[:9] + b"\x09" + BODY[10:]), "malformed", "kind 9"),
    ("a request of another account", _FOREIGN, "malformed", "holds a request of alice"),
    (
        "a request of another network",
        build_link(NETWORK, "bob", 3, SLOT, 0, 2, 1, [entry(_OTHER_NETWORK, Outcome.COMPLETED)], ()).raw,
        "malformed",
        "holds a request of bob",
    ),
]


@pytest.mark.parametrize(("raw", "code", "text"), [pytest.param(r, c, t, id=name) for name, r, c, t in WRONG])
def test_what_is_refused_says_why(raw: bytes, code: str, text: str) -> None:
    with pytest.raises(RemoteFault, match=re.escape(text)) as fault:
        decode_link_untrusted(raw)
    assert fault.value.code == code


def test_too_many_confirmations_are_refused() -> None:
    body = b"\0\0\0\0" + struct.pack(">I", MAX_CONFIRMED + 1) + bytes(32 * (MAX_CONFIRMED + 1))
    with pytest.raises(RemoteFault, match=f"claims {MAX_CONFIRMED + 1}"):
        decode_link_untrusted(_body(body))


def test_a_link_that_is_too_long_is_our_own_bug() -> None:
    full = transfer(NETWORK, "alice", [Posting(f"p{i}", 1) for i in range(MAX_POSTINGS)], nonce_of(9))
    with pytest.raises(AssertionError):
        build_link(NETWORK, "alice", 3, SLOT, 0, 2, 1, [entry(full, Outcome.COMPLETED)] * 2, ())


def test_every_field_changes_the_hash() -> None:
    same: dict[str, object] = {
        "account": "alice", "height": 3, "prev_hash": SLOT, "balance": -20, "epoch": 2, "time_ms": 1234,
        "entries": ENTRIES, "confirmed": CONFIRMED,
    }  # fmt: skip
    others: list[dict[str, object]] = [
        {"account": "alicf"}, {"height": 4}, {"prev_hash": bytes(32)}, {"balance": -21}, {"epoch": 3}, {"time_ms": 1235},
        {"entries": ENTRIES[:3]}, {"confirmed": CONFIRMED[::-1]},
    ]  # fmt: skip

    def build(**fields: object) -> Link:
        return build_link(NETWORK, **(same | fields))  # type: ignore[arg-type]

    assert build().hash == LINK.hash
    assert len({build(**other).hash for other in others} | {LINK.hash}) == len(others) + 1


def test_looking_at_each_posting_of_many_requests_takes_steps_that_grow_with_their_number() -> None:
    """A recipient's link that confirms them may come in the same turn."""

    def steps(requests: int) -> int:
        made = [
            transfer(NETWORK, "mint", [Posting("alice", 1)] * 2, number.to_bytes(32, "big"))
            for number in range(requests)
        ]
        entries = [entry(request, Outcome.COMPLETED) for request in made]
        link = build_link(NETWORK, "mint", 1, Slot(bytes(32)), 0, 1, 1, entries, [])
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        try:
            postings = [link.posting(number) for number in range(2 * requests)]
        finally:
            sys.setprofile(None)
        assert postings == [posting for _, _, posting, _ in link.postings()]
        return calls

    assert steps(400) < 6 * steps(100)

import hashlib
import re
from dataclasses import dataclass

import msgspec
import pytest

from chain.errors import LocalMisuse, RemoteFault
from chain.names import MAX_AMOUNT
from chain.request import (
    ANY_HEIGHT,
    ANY_TIP,
    MAX_POSTINGS,
    MAX_REQUEST_BYTES,
    POSTING_BYTES,
    Kind,
    NetworkId,
    Posting,
    Request,
    RequestId,
    SignedRequest,
    cancellation,
    decode_request_untrusted,
    encode_request,
    is_signed_by,
    opening,
    request_id,
    sign,
    transfer,
)
from tests.chain.bank import key_of, public_key_of

NETWORK = NetworkId(bytes([7]) * 32)
NONCE = bytes([9]) * 32
TRANSFER = transfer(NETWORK, "alice", [Posting("bob", 5, "rent"), Posting("carol", MAX_AMOUNT - 5)], NONCE)
OPEN = opening(NETWORK, "alice", "CZK", bytes([3]) * 32, NONCE)
CANCEL = cancellation(NETWORK, "alice", RequestId(bytes([4]) * 32), NONCE)


def test_the_bytes_are_what_the_module_says() -> None:
    """Laid out by hand, so that the encoder is not its own judge."""
    head = bytes([2]) + NETWORK + b"alice".ljust(64, b"\0") + NONCE + bytes(32) + b"\xff" * 8 + (2).to_bytes(4, "big")
    first = b"bob".ljust(64, b"\0") + (5).to_bytes(8, "big") + b"rent".ljust(56, b"\0")
    second = b"carol".ljust(64, b"\0") + (2**63 - 6).to_bytes(8, "big") + bytes(56)
    assert encode_request(TRANSFER) == head + first + second
    assert request_id(head) == hashlib.sha256(b"hopchain:request:1\0" + head).digest()


@pytest.mark.parametrize(
    "request_",
    [
        TRANSFER,
        OPEN,
        CANCEL,
        transfer(NETWORK, "a", [Posting("b", 1)], NONCE, expect_tip=bytes([1]) * 32, valid_until_height=7),
        transfer(NETWORK, "a", [Posting(f"payee-{i}", 1, "x" * 56) for i in range(MAX_POSTINGS)], NONCE),
    ],
)
def test_one_request_has_one_byte_form_and_back(request_: Request) -> None:
    raw = encode_request(request_)
    assert len(raw) <= MAX_REQUEST_BYTES
    assert decode_request_untrusted(raw) == request_
    assert encode_request(decode_request_untrusted(raw)) == raw


def test_defaults_and_total() -> None:
    assert (TRANSFER.kind, TRANSFER.expect_tip, TRANSFER.valid_until_height) == (Kind.TRANSFER, ANY_TIP, ANY_HEIGHT)
    assert TRANSFER.total == MAX_AMOUNT
    assert CANCEL.total == OPEN.total == 0


@dataclass
class Cut:
    """Bytes to put at a place in the canonical form of a request."""

    at: int
    by: bytes


def _with(request: Request, cut: Cut) -> bytes:
    raw = encode_request(request)
    return raw[: cut.at] + cut.by + raw[cut.at + len(cut.by) :]


HEAD = 1 + 32 + 64 + 32 + 32 + 8 + 4
WRONG: list[tuple[str, bytes, str, str]] = [
    ("nothing", b"", "malformed", "0 bytes"),
    ("only a head", encode_request(CANCEL)[:HEAD], "malformed", "173 bytes"),
    ("too long", bytes(MAX_REQUEST_BYTES + 1), "malformed", str(MAX_REQUEST_BYTES)),
    ("unknown kind", _with(CANCEL, Cut(0, b"\x09")), "malformed", "kind 9"),
    ("sender", _with(CANCEL, Cut(33, b"ALICE")), "bad_name", "ALICE"),
    ("sender with hidden bytes", _with(CANCEL, Cut(40, b"x")), "bad_text", "zero-padded"),
    ("no postings", _with(TRANSFER, Cut(HEAD - 4, bytes(4))), "malformed", "claims 0"),
    ("too many postings", _with(TRANSFER, Cut(HEAD - 4, (8191).to_bytes(4, "big"))), "malformed", "claims 8191"),
    ("another count", _with(TRANSFER, Cut(HEAD - 4, (1).to_bytes(4, "big"))), "malformed", "claims 1 "),
    ("cut posting", encode_request(TRANSFER)[:-1], "malformed", "255 bytes"),
    ("recipient", _with(TRANSFER, Cut(HEAD, b"B")), "bad_name", "'Bob'"),
    ("itself", _with(TRANSFER, Cut(HEAD, b"alice")), "self_transfer", "alice"),
    ("amount 0", _with(TRANSFER, Cut(HEAD + 64, bytes(8))), "bad_amount", "0"),
    ("amount 2^63", _with(TRANSFER, Cut(HEAD + 64, b"\x80" + bytes(7))), "bad_amount", str(2**63)),
    ("amount -1", _with(TRANSFER, Cut(HEAD + 64, b"\xff" * 8)), "bad_amount", str(2**64 - 1)),
    ("sum above 2^63-1", _with(TRANSFER, Cut(HEAD + 64, (6).to_bytes(8, "big"))), "bad_total", str(2**63)),
    ("memo", _with(TRANSFER, Cut(HEAD + 72, b"\xff")), "bad_text", "56"),
    ("opening with postings", _with(OPEN, Cut(HEAD - 1, b"\x01")), "malformed", "OPEN"),
    ("cancellation with postings", _with(CANCEL, Cut(HEAD - 1, b"\x01")), "malformed", "CANCEL"),
    ("long opening", encode_request(OPEN) + b"\0", "malformed", "49 bytes"),
    ("asset", _with(OPEN, Cut(HEAD, b"c")), "bad_asset", "cZK"),
    ("opening with a tip", _with(OPEN, Cut(HEAD - 13, b"\x01")), "malformed", "expect a tip"),
    ("long cancellation", encode_request(CANCEL) + b"\0", "malformed", "33 bytes"),
]


@pytest.mark.parametrize(("raw", "code", "text"), [pytest.param(r, c, t, id=name) for name, r, c, t in WRONG])
def test_what_is_refused_says_why(raw: bytes, code: str, text: str) -> None:
    with pytest.raises(RemoteFault, match=re.escape(text)) as fault:
        decode_request_untrusted(raw)
    assert fault.value.code == code


@pytest.mark.parametrize("place", [0, 9, 19])
@pytest.mark.parametrize(
    ("field", "wrong", "code"),
    [
        (0, b"B", "bad_name"),
        (0, b"alice\0", "self_transfer"),
        (64, bytes(8), "bad_amount"),
        (64, b"\x80" + bytes(7), "bad_amount"),
        (72, b"\xff", "bad_text"),
        (100, b"x", "bad_text"),
    ],
)
def test_many_postings_are_refused_for_one(place: int, field: int, wrong: bytes, code: str) -> None:
    """Many are checked field by field, not one by one."""
    many = transfer(NETWORK, "alice", [Posting("bobby", 1, "memo") for _ in range(20)], NONCE)
    assert len(decode_request_untrusted(encode_request(many)).postings) == 20
    with pytest.raises(RemoteFault) as fault:
        decode_request_untrusted(_with(many, Cut(HEAD + place * POSTING_BYTES + field, wrong)))
    assert fault.value.code == code


@pytest.mark.parametrize("field", ["network", "nonce", "expect_tip"])
def test_fields_of_another_length_have_no_bytes(field: str) -> None:
    with pytest.raises(LocalMisuse, match=f"{field} has 5 bytes; it must have 32"):
        encode_request(msgspec.structs.replace(TRANSFER, **{field: b"short"}))


def test_a_short_target_or_key_has_no_bytes() -> None:
    with pytest.raises(LocalMisuse, match="target has 5 bytes"):
        encode_request(cancellation(NETWORK, "alice", RequestId(b"short"), NONCE))
    with pytest.raises(LocalMisuse, match="public_key has 5 bytes"):
        encode_request(opening(NETWORK, "alice", "CZK", b"short", NONCE))


def test_signatures() -> None:
    signed = sign(TRANSFER, key_of("alice"))
    assert signed.request_id == request_id(encode_request(TRANSFER))
    assert is_signed_by(signed, public_key_of("alice"))
    assert not is_signed_by(signed, public_key_of("bob"))
    assert not is_signed_by(SignedRequest(encode_request(CANCEL), signed.signature), public_key_of("alice"))
    assert not is_signed_by(SignedRequest(signed.raw, bytes(64)), public_key_of("alice"))
    assert not is_signed_by(signed, b"not a key")
    assert not is_signed_by(SignedRequest(signed.raw, b"short"), public_key_of("alice"))


def test_a_key_for_which_anybody_can_sign_signs_nothing() -> None:
    """The neutral point as a key: by the equation alone, this one signature would fit every message."""
    point = b"\x01" + bytes(31)
    assert not is_signed_by(SignedRequest(encode_request(TRANSFER), point + bytes(32)), point)


def test_the_network_is_part_of_the_id() -> None:
    """A request replayed to another network is another request, with a signature that does not fit."""
    other = msgspec.structs.replace(TRANSFER, network=NetworkId(bytes(32)))
    assert request_id(encode_request(other)) != request_id(encode_request(TRANSFER))

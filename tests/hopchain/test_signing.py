"""What is signed is the request that was given, or nothing: every field, also under `python -O`."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chain.errors import LocalMisuse
from chain.names import MAX_AMOUNT
from chain.request import (
    ANY_HEIGHT,
    MAX_POSTINGS,
    NetworkId,
    Posting,
    Request,
    RequestId,
    cancellation,
    decode_request_untrusted,
    is_signed_by,
    opening,
    sign,
    transfer,
)
from hopchain.signing import raw_public_key, sign_request
from tests.hopchain.fake_node import key_number

ROOT = Path(__file__).parents[2]
NETWORK = NetworkId(b"n" * 32)
NONCE = b"o" * 32
KEY = key_number(1)


def pay(*postings: Any, nonce: Any = NONCE, sender: Any = "alice", **more: Any) -> Request:
    return transfer(NETWORK, sender, postings or [Posting("bob", 1)], nonce, **more)


OPEN = opening(NETWORK, "alice", "CZK", raw_public_key(KEY), NONCE)
CANCEL = cancellation(NETWORK, "alice", RequestId(b"t" * 32), b"t" * 32)


@pytest.mark.parametrize(
    "request_",
    [
        pay(),
        pay(Posting("bob", MAX_AMOUNT, "é" * 28), expect_tip=b"t" * 32, valid_until_height=0),
        pay(*[Posting(f"bob-{n}", n + 1, "rent") for n in range(MAX_POSTINGS)]),
        msgspec.structs.replace(pay(), postings=[Posting("bob", 2)]),
        decode_request_untrusted(sign(pay(*[Posting("bob", 1)] * 20), KEY).raw),
        OPEN,
        CANCEL,
    ],
)
def test_what_is_well_formed_is_signed_as_it_is(request_: Request) -> None:
    signed = sign_request(request_, KEY)
    assert signed == sign(request_, KEY) and is_signed_by(signed, raw_public_key(KEY))
    read = decode_request_untrusted(signed.raw)
    assert msgspec.structs.replace(request_, postings=tuple(request_.postings)) == read


WRONG: Sequence[tuple[Request, str]] = [
    (pay(nonce=b"short"), "nonce is b'short' (bytes, 5 bytes); it must be 32 bytes: take secrets.token_bytes(32)"),
    (pay(nonce=NONCE + b"-order-1"), "(bytes, 40 bytes); it must be 32 bytes"),
    (pay(nonce="order-1"), "nonce is 'order-1' (str, 7 bytes); it must be 32 bytes"),
    (pay(nonce=bytearray(32)), "(bytearray); it must be 32 bytes"),
    (pay(expect_tip=b"x"), "expect_tip is b'x' (bytes, 1 bytes); it must be 32 bytes: take the `tip` of a Balance"),
    (pay(valid_until_height=-1), f"valid_until_height is -1 (int); it must be an int from 0 to {ANY_HEIGHT}"),
    (pay(valid_until_height=2**64), f"it must be an int from 0 to {ANY_HEIGHT}"),
    (pay(sender="Alice"), "sender is 'Alice' (str, 5 bytes); an account name is 1 to 64 of"),
    (pay(sender=b"alice"), "sender is b'alice' (bytes, 5 bytes); an account name"),
    (pay(Posting("bob", 1), Posting("a" * 65, 1)), "recipient of posting 1 is 'aaaa"),
    (pay(Posting("bob", -1)), f"amount of posting 0 is -1 (int); it must be an int from 1 to {MAX_AMOUNT} (minor units"),
    (pay(Posting("bob", 0)), "amount of posting 0 is 0 (int)"),
    (pay(Posting("bob", MAX_AMOUNT + 1)), f"from 1 to {MAX_AMOUNT}"),
    (pay(Posting("bob", 12.5)), "amount of posting 0 is 12.5 (float); it must be an int"),  # type: ignore[arg-type]
    (pay(Posting("bob", True)), "amount of posting 0 is True (bool)"),
    (pay(Posting("bob", 1, "x" * 57)), "(str, 57 bytes); it must be a str of at most 56 bytes of UTF-8"),
    (pay(Posting("bob", 1, "é" * 29)), "(str, 58 bytes); it must be a str of at most 56 bytes"),
    (pay(Posting("bob", 1, "a\0")), "memo of posting 0 is 'a\\x00' (str, 2 bytes); it must be"),
    (pay(Posting("bob", 1, "\ud800")), "without a zero byte"),
    (pay(Posting("bob", 1, None)), "memo of posting 0 is None (NoneType)"),  # type: ignore[arg-type]
    (pay(("bob", 1)), "posting 0 is ('bob', 1) (tuple); it must be a Posting(recipient, amount, memo)"),
    (pay(Posting("alice", 1)), "alice cannot pay itself"),
    (pay(Posting("bob", MAX_AMOUNT), Posting("bob", 1)), f"add up to {MAX_AMOUNT + 1}"),
    (transfer(NETWORK, "alice", [], NONCE), "it has 0 postings; a transfer has 1 to 8190"),
    (pay(*[Posting("bob", 1)] * (MAX_POSTINGS + 1)), "it has 8191 postings; a transfer has 1 to 8190"),
    (transfer(NetworkId(b""), "alice", [Posting("bob", 1)], NONCE), "network is b'' (bytes, 0 bytes)"),
    (msgspec.structs.replace(pay(), asset="CZK"), "asset is 'CZK' (str, 3 bytes); a request of kind TRANSFER has none"),
    (msgspec.structs.replace(pay(), kind=2), "kind is 2 (int); make it with transfer"),
    (msgspec.structs.replace(OPEN, asset="czk"), "asset is 'czk' (str, 3 bytes); a code is 1 to 16 of A-Z 0-9"),
    (msgspec.structs.replace(OPEN, public_key=b"k"), "public_key is b'k' (bytes, 1 bytes); it must be 32 bytes"),
    (msgspec.structs.replace(OPEN, target=RequestId(b"t" * 32)), "a request of kind OPEN has none"),
    (msgspec.structs.replace(OPEN, postings=pay().postings), "kind OPEN with 1 postings"),
    (msgspec.structs.replace(OPEN, expect_tip=b"t" * 32), "an opening cannot expect a tip"),
    (msgspec.structs.replace(CANCEL, target=b"x", nonce=b"x"), "target is b'x' (bytes, 1 bytes); it must be 32 bytes: take"),
    (msgspec.structs.replace(CANCEL, target="ab" * 32), "it must be 32 bytes: this looks like hexadecimal: bytes.fromhex"),
    ("a request", "request is 'a request' (str, 9 bytes); make it with transfer"),  # type: ignore[list-item]
]  # fmt: skip


@pytest.mark.parametrize(("request_", "told"), WRONG)
def test_what_is_not_is_refused_with_field_value_and_limit(request_: Request, told: str) -> None:
    with pytest.raises(LocalMisuse, match=re.escape(told)) as error:
        sign_request(request_, KEY)
    assert str(error.value).startswith("this request cannot be made: ")
    assert len(str(error.value)) < 400


def test_a_key_of_another_kind_is_refused() -> None:
    """Its value may be the secret: only the type is told."""
    for key in (None, KEY.private_bytes_raw(), KEY.private_bytes_raw().hex()):
        with pytest.raises(LocalMisuse, match=rf"key is of type {type(key).__name__}; .*Ed25519PrivateKey") as error:
            sign_request(pay(), key)  # type: ignore[arg-type]
        assert KEY.private_bytes_raw().hex()[:8] not in str(error.value) and "\\x" not in str(error.value)


def test_without_assertions_too_nothing_else_is_signed() -> None:
    """`python -O`: struct cuts what is too long and pads what is short, so that payments with different nonces became
    one."""
    program = """
from chain.errors import LocalMisuse
from tests.hopchain.test_signing import KEY, WRONG
from hopchain.signing import sign_request

assert False, "assertions are on"
for request, told in WRONG:
    try:
        signed = sign_request(request, KEY)
    except LocalMisuse as error:
        if told not in str(error):
            print(f"{error}, not {told}")
    else:
        print("signed", request)
print("done", len(WRONG))
"""
    words = [sys.executable, "-O", "-c", program]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (f"done {len(WRONG)}\n", "", 0)

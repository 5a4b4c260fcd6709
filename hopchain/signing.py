"""Keys and signatures as the client uses them.

What is signed moves money, so `sign_request` signs the request that it was given, or none. It checks the type, size and
value of each field, and its error names the field, the value, the limit and what to do. Then the bytes are read back
and must be that very request. None of it is an assertion: under `python -O` too no other request is signed.
"""

from collections.abc import Sequence
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.errors import LocalMisuse, RemoteFault
from chain.names import ASSET_BYTES, MAX_AMOUNT, is_asset, is_name
from chain.request import (
    ANY_HEIGHT,
    HASH_BYTES,
    MAX_POSTINGS,
    MEMO_BYTES,
    Kind,
    Posting,
    Postings,
    Request,
    SignedRequest,
    decode_request_untrusted,
    encode_request,
    sign_bytes,
)

_SHOWN: Final = 80  # characters of a wrong value in a message
_CANNOT: Final = "this request cannot be made"
_BUILDERS: Final = "make it with transfer, opening or cancellation"
_NAME: Final = "an account name is 1 to 64 of a-z 0-9 . _ : -, a letter or digit first, plain ASCII (look-alike characters are refused)"
_NETWORK: Final = "take client.network, or decode_genesis(...).network_id"
_NONCE: Final = "take secrets.token_bytes(32), or a SHA-256 of what names the payment at home"
_TIP: Final = "take the `tip` of a Balance"
_KEY: Final = "take hopchain.raw_public_key(key)"
_TARGET: Final = "take the `request_id` of what is to be cancelled"


def raw_public_key(key: Ed25519PrivateKey) -> bytes:
    """The 32 raw bytes of the public key."""
    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def private_key_pem(key: Ed25519PrivateKey) -> bytes:
    """The key as PEM (PKCS 8, not encrypted: the mode of its file protects it)."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def sign_request(request: Request, key: Ed25519PrivateKey) -> SignedRequest:
    """The request, signed. `LocalMisuse` for one that cannot be made, before anything is signed: it names the first
    field that is wrong, with its value and the limit, and says what to do."""
    _check(request)
    if not isinstance(key, Ed25519PrivateKey):
        raise LocalMisuse(  # its value may be the secret
            f"{_CANNOT}: key is of type {type(key).__name__}; it must be an Ed25519PrivateKey: hopchain.load_key reads one"
        )
    raw = encode_request(request)
    try:
        read = decode_request_untrusted(raw)
    except RemoteFault as fault:
        raise LocalMisuse(f"{_CANNOT}: {fault.text}") from None
    for field in request.__struct_fields__:
        if not _is_same(getattr(request, field), getattr(read, field)):
            raise _wrong(field, getattr(request, field), f"a request of kind {request.kind.name} has none: {_BUILDERS}")
    return sign_bytes(raw, key)


def _check(request: Request) -> None:
    if not isinstance(request, Request):
        raise _wrong("request", request, _BUILDERS)
    if not isinstance(request.kind, Kind):
        raise _wrong("kind", request.kind, _BUILDERS)
    if request.kind is Kind.CANCEL:  # before the nonce, which is the same bytes in what `Client.cancel` makes
        _check_hash("target", request.target, _TARGET)
    _check_hash("network", request.network, _NETWORK)
    _check_name("sender", request.sender)
    _check_hash("nonce", request.nonce, _NONCE)
    _check_hash("expect_tip", request.expect_tip, _TIP)
    _check_int("valid_until_height", request.valid_until_height, 0, ANY_HEIGHT, "a height of the sender's chain")
    if request.kind is Kind.TRANSFER:
        _check_postings(request.postings)
    if request.kind is Kind.OPEN:
        if not isinstance(request.asset, str) or not is_asset(request.asset):
            raise _wrong("asset", request.asset, f"a code is 1 to {ASSET_BYTES} of A-Z 0-9, a letter first")
        _check_hash("public_key", request.public_key, _KEY)


def _check_postings(postings: Sequence[Posting]) -> None:
    if not 1 <= len(postings) <= MAX_POSTINGS:
        raise LocalMisuse(
            f"{_CANNOT}: it has {len(postings)} postings; a transfer has 1 to {MAX_POSTINGS}, more are several requests"
        )
    if isinstance(postings, Postings):
        return  # read from bytes, and checked then
    for at, posting in enumerate(postings):
        if not isinstance(posting, Posting):
            raise _wrong("posting", posting, "it must be a Posting(recipient, amount, memo)", at)
        _check_name("recipient", posting.recipient, at)
        _check_int("amount", posting.amount, 1, MAX_AMOUNT, "minor units: 12.50 of scale 2 is 1250", at)
        _check_memo(posting.memo, at)


def _check_name(field: str, value: object, at: int | None = None) -> None:
    if not isinstance(value, str) or not is_name(value):
        raise _wrong(field, value, _NAME, at)


def _check_hash(field: str, value: object, advice: str) -> None:
    if isinstance(value, bytes) and len(value) == HASH_BYTES:
        return
    if isinstance(value, str) and len(value) == 2 * HASH_BYTES:
        advice = "this looks like hexadecimal: bytes.fromhex(...) makes bytes of it"
    raise _wrong(field, value, f"it must be {HASH_BYTES} bytes: {advice}")


def _check_int(field: str, value: object, least: int, most: int, unit: str, at: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _wrong(field, value, f"it must be an int from {least} to {most} ({unit})", at)


def _check_memo(value: object, at: int) -> None:
    if value == "":
        return
    if isinstance(value, str):
        raw = value.encode(errors="replace")
        if len(raw) <= MEMO_BYTES and b"\0" not in raw and raw.decode() == value:  # else half of a surrogate pair
            return
    raise _wrong("memo", value, f"it must be a str of at most {MEMO_BYTES} bytes of UTF-8, without a zero byte", at)


def _is_same(asked: object, read: object) -> bool:
    """Equal, whatever sequence the postings are in."""
    return asked == read or (isinstance(asked, list) and tuple(asked) == read)


def _wrong(field: str, value: object, advice: str, at: int | None = None) -> LocalMisuse:
    shown = repr(value)
    if len(shown) > _SHOWN:
        shown = f"{shown[:_SHOWN]}…"
    match value:
        case bytes():
            size = f", {len(value)} bytes"
        case str():
            size = f", {len(value.encode(errors='replace'))} bytes"
        case _:
            size = ""
    place = "" if at is None else f" of posting {at}" if field != "posting" else f" {at}"
    return LocalMisuse(f"{_CANNOT}: {field}{place} is {shown} ({type(value).__name__}{size}); {advice}")

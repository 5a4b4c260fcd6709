"""Account names, asset codes and amounts: what is well formed.

A name is `[a-z0-9][a-z0-9._:-]{0,63}`: ASCII only, so that two names that look alike are alike. In canonical
bytes a name is padded with zero bytes to `NAME_BYTES`; an asset code to `ASSET_BYTES`.
"""

import re
from functools import lru_cache
from typing import Final

from chain.errors import LocalMisuse, RemoteFault

NAME_BYTES: Final = 64
ASSET_BYTES: Final = 16
MAX_AMOUNT: Final = 2**63 - 1  # SQLite's and msgpack's signed 64-bit integer
MAX_SCALE: Final = 18  # 10**18 minor units still fit MAX_AMOUNT

_NAME = re.compile(r"[a-z0-9][a-z0-9._:-]{0,63}", re.ASCII)
_ASSET = re.compile(r"[A-Z][A-Z0-9]{0,15}", re.ASCII)


def is_name(text: str) -> bool:
    """True when `text` is a well-formed account name."""
    return _NAME.fullmatch(text) is not None


def is_asset(text: str) -> bool:
    """True when `text` is a well-formed asset code: 1 to 16 of A-Z and 0-9, a letter first."""
    return _ASSET.fullmatch(text) is not None


def check_name_untrusted(text: str) -> str:
    """Return `text`, or raise `RemoteFault("bad_name")` that says what a name may hold."""
    if not is_name(text):
        raise RemoteFault(
            "bad_name",
            f"{text[:80]!r} is not an account name: 1 to 64 of a-z 0-9 . _ : -, a letter or digit first, "
            "plain ASCII (look-alike characters are refused)",
        )
    return text


@lru_cache(maxsize=1 << 14)  # names come again and again; 16,384 of them take a few MB
def decode_name_untrusted(raw: bytes) -> str:
    """The account name in a padded field; raises `RemoteFault` (`bad_text`, `bad_name`)."""
    return check_name_untrusted(unpad_untrusted(raw))


def check_amount_untrusted(amount: int) -> int:
    """Return `amount` in minor units, or raise `RemoteFault("bad_amount")` unless 0 < amount <= 2^63-1."""
    if not 0 < amount <= MAX_AMOUNT:
        raise RemoteFault("bad_amount", f"the amount {amount} is not between 1 and {MAX_AMOUNT} minor units")
    return amount


def pad(text: str, size: int) -> bytes:
    """`text` as ASCII or UTF-8 bytes, padded with zero bytes to `size`. `LocalMisuse` when it does not fit: cut off, or
    with a zero byte in it, it would be read as another text."""
    raw = text.encode()
    if len(raw) > size or b"\0" in raw:
        raise LocalMisuse(f"{text[:80]!r} has {len(raw)} bytes: a text field takes at most {size}, and no zero byte")
    return raw.ljust(size, b"\0")


def unpad_untrusted(raw: bytes) -> str:
    """The text of a padded field; `RemoteFault("bad_text")` when it is not UTF-8 or hides bytes behind a zero."""
    text = raw.rstrip(b"\0")
    try:
        if b"\0" in text:
            raise ValueError
        return text.decode()
    except ValueError:
        raise RemoteFault("bad_text", f"a text field of {len(raw)} bytes is not zero-padded UTF-8") from None

"""Amounts for people. Only the command line knows decimals; everything below it counts integer minor units.

`12.50` of an asset of scale 2 is 1250 minor units. There is no rounding and no float: what cannot be said exactly in
minor units is refused with the form that is allowed.
"""

import re

from chain.errors import LocalMisuse
from chain.names import MAX_AMOUNT

_AMOUNT = re.compile(r"[0-9]{1,40}(\.[0-9]{1,40})?", re.ASCII)


def parse_amount(text: str, scale: int, asset: str = "") -> int:
    """Minor units of `text`, which must be above zero; `LocalMisuse` says what is allowed."""
    whole, _, decimals = text.partition(".")
    decimals = decimals.rstrip("0").ljust(scale, "0")
    amount = int(whole + decimals) if _AMOUNT.fullmatch(text) and len(decimals) == scale else 0
    if not 0 < amount <= MAX_AMOUNT:
        raise LocalMisuse(f"{text[:80]!r} is not an amount{f' of {asset}' if asset else ''}: {_allowed(scale)}")
    return amount


def format_amount(amount: int, scale: int, asset: str = "", *, grouped: bool = False) -> str:
    """`amount` minor units as decimals: 1250 of scale 2 is "12.50". `grouped` puts commas between thousands: for
    people, everywhere; never in what is typed or read by a program."""
    sign, digits = ("-" if amount < 0 else ""), str(abs(amount)).rjust(scale + 1, "0")
    whole, decimals = (digits[:-scale], "." + digits[-scale:]) if scale else (digits, "")
    text = f"{sign}{int(whole):,}{decimals}" if grouped else f"{sign}{whole}{decimals}"
    return f"{text} {asset}" if asset else text


def _allowed(scale: int) -> str:
    largest = format_amount(MAX_AMOUNT, scale)
    if scale == 0:
        return f"digits alone, from 1 to {largest}"
    least = format_amount(1, scale)
    return f"digits with a point and at most {scale} decimals, from {least} to {largest} (no sign, comma or exponent)"

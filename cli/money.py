"""Amounts for people. Only the command line knows decimals; everything below it counts integer minor units.

`12.50` of an asset of scale 2 is 1250 minor units. There is no rounding and no float: what cannot be said exactly in
minor units is refused with the form that is allowed. So are decimals that the asset does not have, also zeros: who
writes a point between thousands means 1500 by `1.500`, and a payment is final.
"""

import re
from typing import Final

from chain.errors import LocalMisuse
from chain.names import MAX_AMOUNT
from cli.output import counted

_AMOUNT = re.compile(r"[0-9]{1,40}(\.[0-9]{1,40})?", re.ASCII)


def parse_amount(text: str, scale: int, asset: str = "") -> int:
    """Minor units of `text`, which must be above zero; `LocalMisuse` says what is allowed."""
    whole, _, decimals = text.partition(".")
    well_formed = _AMOUNT.fullmatch(text) is not None
    amount = int(whole + decimals.ljust(scale, "0")) if well_formed and len(decimals) <= scale else 0
    if not 0 < amount <= MAX_AMOUNT:
        instead = _instead(whole, decimals, scale) if well_formed else ""
        raise LocalMisuse(
            f"{text[:80]!r} is not an amount{f' of {asset}' if asset else ''}: {_allowed(scale)}{instead}"
        )
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


def _instead(whole: str, decimals: str, scale: int) -> str:
    """What to write where there are more decimals than the asset has."""
    if len(decimals) <= scale:
        return ""
    meant = []
    if not decimals[scale:].strip("0") and 0 < int(whole + decimals[:scale]) <= MAX_AMOUNT:
        meant.append(f"{whole}.{decimals[:scale]}" if scale else whole)
    if len(decimals) == _OF_A_THOUSAND and 0 < int(whole) <= MAX_AMOUNT // 10 ** (scale + _OF_A_THOUSAND) - 1:
        meant.append(f"{whole}{decimals} if the point is between thousands")
    return f". It has {counted(len(decimals), 'decimal')}" + (f": write {', or '.join(meant)}" if meant else "")


_OF_A_THOUSAND: Final = 3  # digits behind the point that some write between thousands

"""Amounts: what a person types becomes exact minor units or is refused with what is allowed."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.errors import LocalMisuse
from chain.names import MAX_AMOUNT, MAX_SCALE
from cli.money import format_amount, parse_amount

scales = st.integers(0, MAX_SCALE)


@given(st.integers(1, MAX_AMOUNT), scales)
def test_what_is_printed_is_read_back(amount: int, scale: int) -> None:
    assert parse_amount(format_amount(amount, scale), scale) == amount


@given(
    st.text(alphabet="0123456789.,-+eE_ ", max_size=50) | st.from_regex(r"[0-9]{1,20}\.[09]{20,40}1?", fullmatch=True),
    scales,
)
def test_parsing_agrees_with_integer_arithmetic(text: str, scale: int) -> None:
    whole, point, decimals = text.partition(".")
    plain = whole.isdigit() and len(whole) <= 40 and (decimals.isdigit() if point else True) and len(decimals) <= 40
    expected = int(whole + decimals.ljust(scale, "0")) if plain and len(decimals) <= scale else 0
    if 0 < expected <= MAX_AMOUNT:
        assert parse_amount(text, scale) == expected
    else:
        with pytest.raises(LocalMisuse):
            parse_amount(text, scale)


@given(st.text(max_size=12), scales)
def test_any_text_is_an_amount_or_refused(text: str, scale: int) -> None:
    with suppress(LocalMisuse):
        assert 0 < parse_amount(text, scale) <= MAX_AMOUNT


@pytest.mark.parametrize(
    ("text", "scale", "amount"),
    [
        ("12.50", 2, 1250),
        ("12.5", 2, 1250),
        ("12", 2, 1200),
        ("0.01", 2, 1),
        ("7", 0, 7),
        ("1.500", 3, 1500),
    ],
)
def test_amounts_that_people_type(text: str, scale: int, amount: int) -> None:
    assert parse_amount(text, scale) == amount


@pytest.mark.parametrize(
    "text",
    [
        *(
            "12.505",
            "0",
            "0.00",
            "-1",
            "+1",
            "1e3",
            "",
            " 1",
            "1,000",
            "1_000",
            ".5",
            "5.",
            "٣",
            "NaN",
            "inf",
            "9" * 41,
        ),
        *("92233720368547758.08", "100000000000000000000000000000.00"),
        *("12.500", "1.000", "1." + "0" * 40),  # fifteen hundred, to whom a point is between thousands
        *("12.4999999999999999999999999999999999", "1.00000000000000000000000000000000001"),
    ],
)
def test_refused_amounts_say_what_is_allowed(text: str) -> None:
    with pytest.raises(LocalMisuse, match=r"at most 2 decimals, from 0\.01 to 92233720368547758\.07"):
        parse_amount(text, 2, "CZK")


def test_an_asset_without_decimals_says_so() -> None:
    with pytest.raises(LocalMisuse, match="digits alone, from 1 to 9223372036854775807"):
        parse_amount("1.5", 0)


@pytest.mark.parametrize(
    ("text", "scale", "says"),
    [
        ("1.500", 2, r"\. It has 3 decimals: write 1\.50, or 1500 if the point is between thousands$"),
        ("1.000", 0, r"\. It has 3 decimals: write 1, or 1000 if the point is between thousands$"),
        ("12.505", 2, r"\. It has 3 decimals: write 12505 if the point is between thousands$"),
        ("12.5000", 2, r"\. It has 4 decimals: write 12\.50$"),
        ("1.5", 0, r"\. It has 1 decimal$"),
        ("0.000", 2, r"comma or exponent\)\. It has 3 decimals$"),
        ("0.001", 2, r"\. It has 3 decimals$"),
        ("92233720368547758.080", 2, r"\. It has 3 decimals$"),
        ("1,500", 2, r"comma or exponent\)$"),
        ("0.00", 2, r"comma or exponent\)$"),
    ],
)
def test_more_decimals_than_the_asset_has_are_refused_with_what_may_be_meant(text: str, scale: int, says: str) -> None:
    with pytest.raises(LocalMisuse, match=says) as refused:
        parse_amount(text, scale)
    assert str(refused.value).startswith(repr(text))


@pytest.mark.parametrize(
    ("amount", "scale", "text"),
    [
        (0, 2, "0.00"),
        (-5, 2, "-0.05"),
        (-1250, 2, "-12.50"),
        (1234567, 2, "12345.67"),
        (7, 0, "7"),
        (1, 18, "0." + "0" * 17 + "1"),
    ],
)
def test_formatting(amount: int, scale: int, text: str) -> None:
    assert format_amount(amount, scale) == text


def test_formatting_for_lists() -> None:
    assert format_amount(2122899360, 2, "CZK", grouped=True) == "21,228,993.60 CZK"

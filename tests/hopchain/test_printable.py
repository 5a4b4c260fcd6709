"""Text of others: one line, and nothing that a terminal obeys."""

import pytest

from hopchain.printable import quoted, shown


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("", ""),
        ("Miete März, ✓ 1 250 Kč", "Miete März, ✓ 1 250 Kč"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[2J\x1b]0;x\x07", r"\x1b[2J\x1b]0;x\x07"),
        ("\x9b1A\x7f", r"\x9b1A\x7f"),  # as one byte, and delete
        ("\u202e\u2028\u200b", r"\u202e\u2028\u200b"),  # turns what follows around, ends a line, takes no place
        ("\udc80", r"\udc80"),  # of a name that is no UTF-8
    ],
)
def test_what_is_not_printable_is_shown_as_its_escape(text: str, seen: str) -> None:
    assert shown(text) == seen
    assert shown(text).isprintable()


def test_a_quoted_text_ends_where_it_seems_to() -> None:
    assert quoted('x"  confirmed\\') == r'"x\"  confirmed\\"'
    assert quoted("\n") == r'"\n"'

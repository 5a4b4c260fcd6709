import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.errors import LocalMisuse, RemoteFault
from chain.names import (
    MAX_AMOUNT,
    check_amount_untrusted,
    check_name_untrusted,
    is_asset,
    is_name,
    pad,
    unpad_untrusted,
)


@pytest.mark.parametrize("name", ["a", "0", "alice", "a.b_c:d-e", "9" * 64, "0123.4567:89"])
def test_names(name: str) -> None:
    assert is_name(name)
    assert check_name_untrusted(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "", "a" * 65, "Alice", ".a", "-a", "_a", ":a", "a b", "a\n", "a\0", "\u00e1", "a/b",
        "\u0430lice",  # a Cyrillic a
        "al\u0456ce",  # a Cyrillic i
        "bob\u200b",  # a zero-width space
        "\uff42ob",  # a full-width b
        "\u0661",  # an Arabic digit
    ],
)  # fmt: skip
def test_what_is_no_name(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(RemoteFault, match="look-alike") as fault:
        check_name_untrusted(name)
    assert fault.value.code == "bad_name"


@pytest.mark.parametrize(("code", "is_one"), [
    ("CZK", True), ("X", True), ("A" * 16, True), ("B2", True),
    ("A" * 17, False), ("", False), ("czk", False), ("2B", False), ("C\u0396K", False), ("CZK\n", False),
])  # fmt: skip
def test_assets(code: str, is_one: bool) -> None:
    assert is_asset(code) is is_one


def test_amounts() -> None:
    assert check_amount_untrusted(1) == 1
    assert check_amount_untrusted(MAX_AMOUNT) == 2**63 - 1
    for wrong in (0, -1, 2**63):
        with pytest.raises(RemoteFault, match=str(wrong)) as fault:
            check_amount_untrusted(wrong)
        assert fault.value.code == "bad_amount"


@settings(derandomize=True)
@given(st.text(max_size=14).filter(lambda text: "\0" not in text and len(text.encode()) <= 56))
def test_padding_returns_what_it_was_given(text: str) -> None:
    assert unpad_untrusted(pad(text, 56)) == text
    assert len(pad(text, 56)) == 56


@pytest.mark.parametrize("raw", [b"a\0b", b"\0b", b"\xff", b"\xc3\0"])
def test_hidden_bytes_and_broken_text_are_refused(raw: bytes) -> None:
    with pytest.raises(RemoteFault, match="zero-padded") as fault:
        unpad_untrusted(raw)
    assert fault.value.code == "bad_text"


@pytest.mark.parametrize(("text", "size"), [("abc", 2), ("a\0", 4)])
def test_padding_takes_only_what_fits(text: str, size: int) -> None:
    with pytest.raises(LocalMisuse, match=f"at most {size}, and no zero byte"):
        pad(text, size)

"""What a client remembers of tails: the newest link of each account, of so many accounts."""

import random

import pytest

from hopchain.tails import MAX_ACCOUNTS, Tails
from hopchain.wire import AT_ONCE

OLD, NEW = b"o" * 32, b"n" * 32


def test_the_newest_link_counts_in_whatever_order_they_are_heard_of(rng: random.Random) -> None:
    tails = Tails()
    assert (tails.height("a"), tails.key("a")) == (AT_ONCE, None)
    heights = list(range(20))
    rng.shuffle(heights)
    for heard, height in enumerate(heights, 1):
        tails.saw("a", height, bytes([height]) * 32)
        newest = max(heights[:heard])
        assert (tails.height("a"), tails.key("a")) == (newest, bytes([newest]) * 20)
    assert tails.key("b") is None


def test_the_first_link_has_height_0_and_is_known() -> None:
    tails = Tails()
    tails.saw("a", 0, OLD)
    assert (tails.height("a"), tails.key("a")) == (0, OLD[:20])


def test_the_account_that_was_heard_of_least_lately_is_forgotten() -> None:
    tails = Tails(limit=3)
    for name in "abc":
        tails.saw(name, 5, OLD)
    tails.saw("a", 4, NEW)  # an older link of it, but it was heard of
    tails.saw("d", 1, OLD)
    assert [tails.height(name) for name in "abcd"] == [5, AT_ONCE, 5, 1]
    assert [tails.key(name) for name in "ab"] == [OLD[:20], None]
    tails.saw("e", 1, OLD)
    assert [tails.height(name) for name in "acde"] == [5, AT_ONCE, 1, 1]
    tails.saw("d", 2, NEW)
    assert [tails.height(name) for name in "ade"] == [5, 2, 1], "one that is known takes no other's place"


def test_by_default_as_many_accounts_are_kept_as_it_says() -> None:
    tails = Tails()
    for number in range(MAX_ACCOUNTS + 2):
        tails.saw(str(number), 1, OLD)
    assert [tails.height(str(number)) for number in (0, 1, 2, MAX_ACCOUNTS + 1)] == [AT_ONCE, AT_ONCE, 1, 1]


def test_a_tail_in_doubt_is_not_gone_by_until_a_newer_link_is_heard_of() -> None:
    tails = Tails()
    tails.doubt("a")
    assert (tails.height("a"), tails.key("a")) == (AT_ONCE, None)
    tails.saw("a", 3, OLD)
    tails.doubt("a")
    assert (tails.height("a"), tails.key("a")) == (3, None), "reads still show at least that"
    tails.saw("a", 3, OLD)
    tails.saw("a", 2, NEW)
    assert tails.key("a") is None
    tails.saw("a", 4, NEW)
    assert (tails.height("a"), tails.key("a")) == (4, NEW[:20])


@pytest.mark.parametrize("size", [0, 19])
def test_what_is_no_hash_is_no_key(size: int) -> None:
    tails = Tails()
    tails.saw("a", 3, bytes(size))
    assert (tails.height("a"), tails.key("a")) == (3, None)


@pytest.fixture
def rng() -> random.Random:
    return random.Random(7)

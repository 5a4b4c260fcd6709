"""Ids that were added are found, as many as there is memory for, and hardly any other."""

import hashlib

import pytest

from chain.request import RequestId
from node import doubtful
from node.doubtful import PART_BITS, PART_IDS, PARTS, Doubtful

SMALLER = 256  # the parts of these tests, so that they are full soon


def id_of(number: int) -> RequestId:
    return RequestId(hashlib.sha256(number.to_bytes(8, "big")).digest())


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """As full as the real ones come to be; returns how many ids a part takes."""
    monkeypatch.setattr(doubtful, "PART_BITS", PART_BITS // SMALLER)
    monkeypatch.setattr(doubtful, "PART_IDS", PART_IDS // SMALLER)
    return PART_IDS // SMALLER


def test_who_was_never_in_doubt_is_not_until_somebody_is() -> None:
    assert id_of(0) not in Doubtful()


def test_what_was_added_is_found_while_there_are_so_many_others(small: int) -> None:
    ids = Doubtful()
    for number in range((PARTS + 3) * small):
        ids.add(id_of(number))
        oldest = max(0, number - (PARTS - 1) * small + 1)
        assert id_of(oldest) in ids and id_of(number) in ids
    assert sum(map(len, ids._parts)) == PARTS * PART_BITS // SMALLER // 8
    assert all(id_of(number) in ids for number in range(4 * small, (PARTS + 3) * small))


def test_others_are_found_for_them_three_times_in_a_thousand(small: int) -> None:
    ids = Doubtful()
    for number in range(PARTS * small):
        ids.add(id_of(number))
    found = sum(id_of(number) in ids for number in range(10**6, 10**6 + 10_000))
    assert found <= 45, found


def test_one_that_is_in_doubt_again_takes_no_more_room_and_is_as_new(small: int) -> None:
    ids = Doubtful()
    for number in range(PARTS * small):
        ids.add(id_of(number))
        ids.add(id_of(0))
    for number in range(10**6, 10**6 + (PARTS - 1) * small):
        ids.add(id_of(number))
        assert id_of(0) in ids


def test_it_remembers_the_same_wherever_it_runs() -> None:
    """Else one seed would be two histories."""
    assert doubtful._bits(bytes(range(32))) == [
        word % PART_BITS
        for word in (0x00010203, 0x04050607, 0x08090A0B, 0x0C0D0E0F, 0x10111213, 0x14151617, 0x18191A1B, 0x1C1D1E1F)
    ]

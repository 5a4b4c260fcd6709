"""Of a room that accounts share none has more than is left free."""

from collections import Counter
from random import Random

import pytest

from chain.request import MAX_REQUEST_BYTES
from node import jobs, works
from node.room import SharedRoom, Taken, leaves_enough

NO_BOUND = 10**9


def fill(room: SharedRoom, account: str, most: Taken, size: int = 1) -> int:
    """Take as much as there is; how many requests that were."""
    number = 0
    while room.fits(account, size, most):
        room.take(account, size)
        number += 1
    return number


def fill_by_turns(room: SharedRoom, accounts: list[str], most: Taken, size: int = 1) -> None:
    """All want all of it, and ask for one more each in turn."""
    while asking := [account for account in accounts if room.fits(account, size, most)]:
        for account in asking:
            if room.fits(account, size, most):
                room.take(account, size)


def bounded(what: str, most: int) -> Taken:
    """A room of so many requests, or so many bytes; of the other any number."""
    return Taken(most, NO_BOUND) if what == "requests" else Taken(NO_BOUND, most)


@pytest.mark.parametrize(("own", "others", "enough"), [(5, 0, True), (6, 0, False), (1, 8, True), (1, 9, False)])
def test_no_account_has_more_than_is_left(own: int, others: int, enough: bool) -> None:
    assert leaves_enough(own, own + others, 10) is enough


@pytest.mark.parametrize("what", ["requests", "bytes"])
@pytest.mark.parametrize("accounts", [1, 2, 3, 7, 31])
def test_of_n_who_want_all_each_has_one_part_of_n_plus_one(what: str, accounts: int) -> None:
    """And one part stays free, of which a newcomer may have half at once."""
    room, most = SharedRoom(), bounded(what, 64 * (accounts + 1))
    names = [str(number) for number in range(accounts)]
    fill_by_turns(room, names, most)
    assert [room.of(name) for name in names] == [Taken(64, 64)] * accounts
    assert fill(room, "newcomer", most) == 32


@pytest.mark.parametrize("what", ["requests", "bytes"])
def test_who_came_first_waits_for_who_came_last(what: str) -> None:
    """Each of those who come one after the other has half of what is left. What is given back then is for whoever has
    less, and all come to have nearly the same."""
    room, most = SharedRoom(), bounded(what, 64)
    names = ["first", "second", "third"]
    assert [fill(room, name, most) for name in names] == [32, 16, 8]
    for name in names:
        room.give_back(name, 1)
    assert [room.fits(name, 1, most) for name in names] == [False, False, True]
    for _ in range(100):
        for name in names:
            room.give_back(name, 1)
        fill_by_turns(room, names, most)
    assert all(room.of(name).requests in (15, 16, 17, 18) for name in names) and room.all.requests == 48


def test_large_requests_leave_room_for_small_ones() -> None:
    """However many accounts send them."""
    room, most = SharedRoom(), Taken(NO_BOUND, 64_000)
    large = [str(number) for number in range(1000)]
    fill_by_turns(room, large, most, size=1000)
    assert room.all.bytes == 63_000
    assert fill(room, "small", most, size=10) == 50


def test_what_is_counted_is_what_is_there() -> None:
    rng, room, most = Random(37), SharedRoom(), Taken(40, 1000)
    there: list[tuple[str, int]] = []
    refused = 0
    for _ in range(5000):
        account, size = rng.choice("abcdef"), rng.choice((1, 20, 200))
        requests, total = Counter[str](), Counter[str]()
        for name, taken in there:
            requests[name] += 1
            total[name] += taken
        for name in "abcdef":
            assert room.of(name) == Taken(requests[name], total[name])
        assert room.all == Taken(requests.total(), total.total())
        enough = requests[account] + 1 <= most.requests - (len(there) + 1)
        enough = enough and total[account] + size <= most.bytes - (total.total() + size)
        assert room.fits(account, size, most) is enough
        if enough:
            room.take(account, size)
            there.append((account, size))
        refused += not enough
        if there and rng.random() < 0.5:
            room.give_back(*there.pop(rng.randrange(len(there))))
    assert refused > 500
    for account, size in there:
        room.give_back(account, size)
    assert room.all == Taken() and not room._of


def test_who_finds_no_room_is_told_the_numbers() -> None:
    room = SharedRoom()
    room.take("alice", 300)
    room.take("bob", 500)
    assert room.told("alice") == "1 requests of alice (300 bytes) wait there, of all accounts 2 (800 bytes)"


@pytest.mark.parametrize(("accounts", "each"), [(1, 32), (2, 21), (8, 7), (32, 1), (63, 1)])
def test_the_largest_requests_that_a_gateway_holds(accounts: int, each: int) -> None:
    """One payer has as many as the owner of its account takes; eight have the seven that go through one connection."""
    room, most = SharedRoom(), Taken(jobs.MAX_JOBS, jobs.MAX_JOB_BYTES)
    names = [str(number) for number in range(accounts)]
    fill_by_turns(room, names, most, MAX_REQUEST_BYTES)
    assert min(room.of(name).requests for name in names) == each
    assert room.of("0").bytes <= works.MAX_QUEUE_BYTES

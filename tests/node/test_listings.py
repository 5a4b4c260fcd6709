"""Lists are made beside their connections: in turns, few at once, and no more wait than may."""

import pytest
import trio
import trio.testing

from hopchain.wire import AskAccounts, AskChain
from node import listings as listings_module
from node.events import Caller
from node.listings import LISTING_BYTES, LISTINGS_AT_ONCE, ROW_BYTES, Listings

WEIGHT = LISTING_BYTES + 1000 * ROW_BYTES


class Maker:
    """Makes lists, each when it is told to."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.begun: list[tuple[int, int]] = []
        self.may_end = trio.Semaphore(0)
        self.listings = Listings(self.make, nursery.start_soon)
        self.nursery = nursery

    async def make(self, caller: Caller, ask: AskChain | AskAccounts) -> None:
        self.begun.append((caller.session, caller.number))
        await self.may_end.acquire()

    async def put(self, session: int, calls: range, size: int = 0, limit: int = 1000) -> list[int]:
        """As a connection does, one after the other; what it returns grows with each that has been read."""
        read: list[int] = []

        async def connection() -> None:
            for call in calls:
                await self.listings.put(Caller(session, call), AskAccounts("", limit), size)
                read.append(call)

        self.nursery.start_soon(connection)
        await trio.testing.wait_all_tasks_blocked()
        return read

    async def end(self, count: int) -> None:
        for _ in range(count):
            self.may_end.release()
        await trio.testing.wait_all_tasks_blocked()


async def test_who_asks_for_many_lists_is_read_on_and_makes_others_wait_for_those_begun_only(
    nursery: trio.Nursery,
) -> None:
    maker = Maker(nursery)
    assert await maker.put(1, range(1000)) == list(range(1000))
    assert maker.begun == [(1, number) for number in range(LISTINGS_AT_ONCE)]
    await maker.put(2, range(10))
    await maker.end(1)
    assert maker.begun[-1] == (2, 0)
    await maker.end(9)
    assert [session for session, _ in maker.begun[LISTINGS_AT_ONCE:]] == [2, 1] * 5
    await maker.end(1010)
    assert sorted(maker.begun) == [(1, number) for number in range(1000)] + [(2, number) for number in range(10)]


async def test_lists_that_come_when_none_waits_are_made_too(nursery: trio.Nursery) -> None:
    maker = Maker(nursery)
    for number in range(5):
        await maker.put(1, range(number, number + 1))
        assert maker.begun[-1] == (1, number)
        await maker.end(1)


async def test_turns_are_by_rows(nursery: trio.Nursery) -> None:
    maker = Maker(nursery)
    for session in range(1, 41):
        await maker.put(session, range(20))
    await maker.put(99, range(31), limit=10)
    await maker.end(1)
    assert maker.begun[-1] == (99, 0), "the first one before all that have not begun"
    await maker.end(40 + 30)
    assert maker.begun.count((99, 30)) == 1, "all of them after one page of each of the others"


async def test_who_has_more_than_its_part_waiting_is_not_read_on(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings_module, "PAGE_WEIGHT", 1)
    monkeypatch.setattr(listings_module, "LISTINGS_WAITING", 12 * WEIGHT)
    maker = Maker(nursery)
    one = await maker.put(1, range(100))
    assert len(one) == LISTINGS_AT_ONCE + 12, "the one that is too many waits with them, and its connection"
    other = await maker.put(2, range(100), size=WEIGHT)
    assert len(other) == 3, "half of it, by bytes"
    await maker.end(1)
    assert (len(one), len(other)) == (LISTINGS_AT_ONCE + 12, 4), "it comes first, and has room for another"
    await maker.end(15)
    assert len(other) > 4 and len(one) > LISTINGS_AT_ONCE + 12


@pytest.mark.parametrize("limit", [1000, 2**64, -5])
async def test_one_page_that_waits_stops_no_connection_however_many_there_are(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Or its client would hear no sign of life, and go."""
    monkeypatch.setattr(listings_module, "LISTINGS_WAITING", 1)
    maker = Maker(nursery)
    for session in range(600):
        assert await maker.put(session, range(1), size=100, limit=limit) == [0]


async def test_of_a_client_that_is_gone_no_list_is_begun_any_more(nursery: trio.Nursery) -> None:
    maker = Maker(nursery)
    await maker.put(1, range(100))
    await maker.put(2, range(1))
    maker.listings.forget(1)
    await maker.end(100)
    assert maker.begun == [*((1, number) for number in range(LISTINGS_AT_ONCE)), (2, 0)]


async def test_who_waits_for_its_part_goes_on_when_another_one_is_gone(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings_module, "PAGE_WEIGHT", 1)
    monkeypatch.setattr(listings_module, "LISTINGS_WAITING", 10 * WEIGHT)
    maker = Maker(nursery)
    await maker.put(1, range(8))
    other = await maker.put(2, range(8))
    assert len(other) == 5
    maker.listings.forget(1)
    await trio.testing.wait_all_tasks_blocked()
    assert len(other) == 8
    await maker.end(100)

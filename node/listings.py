"""Lists that clients ask for: pages of a chain, pages of accounts. They are made beside their connections (ADR 30).

A page takes some 0.1 s of the thread that reads it, so those that wait have a queue, which clients share: of each
client in turn by the rows that it asks for, LISTINGS_AT_ONCE at a time. A connection is read on while its lists wait,
since its client asks for signs of life meanwhile; one that has more waiting than its part of LISTINGS_WAITING, and than
one page, is not.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from hopchain.wire import MAX_PAGE, AskAccounts, AskChain
from node.events import Caller
from node.fair import FairQueue

LISTING_BYTES: Final = 1024  # that one which waits weighs beside its own bytes: more than is kept for it
ROW_BYTES: Final = 64  # that a row weighs which it asks for: a short list goes before long ones
LISTINGS_WAITING: Final = 64 * 1024 * 1024  # weight of those that wait: 1,000 pages, in equal parts among the clients
LISTINGS_AT_ONCE: Final = 2  # one is read while the other waits for a commit, or its answer is packed

PAGE_WEIGHT: Final = LISTING_BYTES + ROW_BYTES * MAX_PAGE + 256  # the most that one with a name weighs

Listing = AskChain | AskAccounts


class Listings:
    """Has each list made by `answer(caller, ask)`. `start_soon` is that of the nursery in which they are made."""

    def __init__(
        self,
        answer: Callable[[Caller, Listing], Awaitable[None]],
        start_soon: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        self._answer = answer
        self._start_soon = start_soon
        self._waiting: FairQueue[tuple[Caller, Listing]] = FairQueue()
        self._taken = trio.lowlevel.ParkingLot()
        self._makers = 0

    async def put(self, caller: Caller, ask: Listing, size: int) -> None:
        """Add one, which came as `size` bytes; return when its connection may be read on."""
        number = caller.session
        rows = min(max(ask.limit, 1), MAX_PAGE)
        self._waiting.push(number, (caller, ask), size + LISTING_BYTES + rows * ROW_BYTES)
        if self._makers < LISTINGS_AT_ONCE:
            self._makers += 1
            self._start_soon(self._make)
        while self._waiting.weight(number) > max(PAGE_WEIGHT, LISTINGS_WAITING // max(1, self._waiting.lines)):
            await self._taken.park()

    def forget(self, session: int) -> None:
        """The client is gone: what waits of it is dropped."""
        self._waiting.forget(session)
        self._taken.unpark_all()

    async def _make(self) -> None:
        """One after the other until none waits."""
        try:
            while (item := self._waiting.pop()) is not None:
                self._taken.unpark_all()
                await self._answer(*item[0])
        finally:
            self._makers -= 1

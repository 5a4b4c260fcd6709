"""Reads that wait for a link of their account, found by what ends them: the link, their time, the end of their session.

None of that walks all that wait: there may be `node.reading.MAX_READS` of them, of one account, for a link that never
comes.
"""

from collections.abc import Container
from heapq import heapify, heappop, heappush

from node.events import ClientBalance


class _Heap:
    """Numbers of reads by a key, the least first. One that has ended stays in it until it comes up, or those are more
    than half."""

    __slots__ = ("_ended", "_items")

    def __init__(self) -> None:
        self._items: list[tuple[float, int]] = []
        self._ended = 0

    def __bool__(self) -> bool:
        return bool(self._items)

    def push(self, key: float, number: int) -> None:
        heappush(self._items, (key, number))

    def first(self, live: Container[int]) -> tuple[float, int] | None:
        """The least key of those that are `live`, and its number."""
        while self._items and self._items[0][1] not in live:
            heappop(self._items)
            self._ended -= 1
        return self._items[0] if self._items else None

    def end(self, live: Container[int]) -> None:
        """One of the numbers is not `live` any more."""
        self._ended += 1
        if 2 * self._ended > len(self._items):
            self._items = [item for item in self._items if item[1] in live]
            heapify(self._items)
            self._ended = 0


class Waits:
    """What waits: balances with a `min_height`, each with its `until`."""

    def __init__(self) -> None:
        self._reads: dict[int, ClientBalance] = {}  # by the number that each has here
        self._numbers = 0
        self._by_height: dict[str, _Heap] = {}  # of each account
        self._by_time = _Heap()
        self._by_session: dict[int, dict[int, None]] = {}

    def __len__(self) -> int:
        return len(self._reads)

    def add(self, read: ClientBalance) -> None:
        assert read.until is not None
        self._numbers += 1
        self._reads[self._numbers] = read
        self._by_height.setdefault(read.ask.account, _Heap()).push(read.ask.min_height, self._numbers)
        self._by_time.push(read.until, self._numbers)
        self._by_session.setdefault(read.caller.session, {})[self._numbers] = None

    def take_reached(self, account: str, height: int) -> list[ClientBalance]:
        """Those that wait for link `height` of the account, or for one before it, the lowest first."""
        heap = self._by_height.get(account)
        return [] if heap is None else self._take_up_to(heap, height)

    def take_late(self, now: float) -> list[ClientBalance]:
        """Those whose time is over, the earliest first."""
        return self._take_up_to(self._by_time, now)

    def take_of(self, session: int) -> list[ClientBalance]:
        """Those of this session, in the order in which they came."""
        return [self._take(number) for number in list(self._by_session.get(session, ()))]

    def take_for(self, session: int) -> ClientBalance | None:
        """The newest of the session with most of them, when it has at least two more than `session`, which wants to
        wait, too."""
        most = max(self._by_session.values(), key=len, default={})
        if len(most) < len(self._by_session.get(session, ())) + 2:
            return None
        return self._take(next(reversed(most)))

    def deadline(self) -> float | None:
        """When the time of the next one is over."""
        first = self._by_time.first(self._reads)
        return None if first is None else first[0]

    def _take_up_to(self, heap: _Heap, key: float) -> list[ClientBalance]:
        taken = []
        while (first := heap.first(self._reads)) is not None and first[0] <= key:
            taken.append(self._take(first[1]))
        return taken

    def _take(self, number: int) -> ClientBalance:
        read = self._reads.pop(number)
        account, session = read.ask.account, read.caller.session
        self._by_time.end(self._reads)
        self._by_height[account].end(self._reads)
        if not self._by_height[account]:
            del self._by_height[account]
        del self._by_session[session][number]
        if not self._by_session[session]:
            del self._by_session[session]
        return read

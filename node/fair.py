"""Who is next: a queue that many share, none of them at the cost of the others.

Start-time fair queueing (Goyal, Vin and Cheng, "Start-time Fair Queueing", SIGCOMM 1996, section 2). Each owner has a
line of its own, whose order stays. What is at the head of a line *starts* when the one before it of that line has
*ended*, or now if that is over; it ends `weight` later. The head that starts first is next, and *now* is when it
starts.

So of lines that never empty, each gets as much weight as any other, to within its heaviest item; with equal weights
they take turns. Whoever was not waiting starts now, before all that others have behind their heads: how much they have
waiting does not matter to it.
"""

from collections import deque
from heapq import heapify, heappop, heappush
from typing import Final, Generic, TypeVar

T = TypeVar("T")


class _Line(Generic[T]):
    """What one owner has waiting, with weights."""

    __slots__ = ("items", "weight")

    def __init__(self) -> None:
        self.items: Final[deque[tuple[T, int]]] = deque()
        self.weight = 0


class FairQueue(Generic[T]):
    """Items of owners, who are numbers. Weights are at least 1. Nothing is kept of an owner after `forget`."""

    def __init__(self) -> None:
        self._lines: dict[int, _Line[T]] = {}
        self._ends: dict[int, int] = {}  # owner -> when the last item taken of it ends
        self._heads: list[tuple[int, int, int, int]] = []  # a heap: start, weight, number, owner
        self._now = 0
        self._numbers = 0

    def __bool__(self) -> bool:
        """Something waits."""
        return bool(self._heads)

    @property
    def lines(self) -> int:
        """How many owners have something waiting."""
        return len(self._lines)

    def weight(self, owner: int) -> int:
        """Of all that waits of this owner; 0: nothing does."""
        line = self._lines.get(owner)
        return 0 if line is None else line.weight

    def push(self, owner: int, item: T, weight: int) -> None:
        """Behind all others of this owner."""
        assert weight >= 1, weight
        line = self._lines.get(owner)
        if line is None:
            line = self._lines[owner] = _Line()
        line.items.append((item, weight))
        line.weight += weight
        if len(line.items) == 1:
            self._offer(owner)

    def pop(self) -> tuple[T, int] | None:
        """Take the next item, with its weight; None when there is none."""
        if not self._heads:
            return None
        start, weight, _, owner = heappop(self._heads)
        self._now, self._ends[owner] = start, start + weight
        line = self._lines[owner]
        item, _ = line.items.popleft()
        line.weight -= weight
        if line.items:
            self._offer(owner)
        else:
            del self._lines[owner]
        return item, weight

    def forget(self, owner: int) -> None:
        """Drop what waits of this owner, and what is known of it."""
        self._ends.pop(owner, None)
        if self._lines.pop(owner, None) is not None:
            self._heads = [head for head in self._heads if head[-1] != owner]
            heapify(self._heads)

    def _offer(self, owner: int) -> None:
        """The head of this line takes its place among those of the others. Of those that start together the lightest is
        first."""
        start = max(self._now, self._ends.get(owner, 0))
        self._numbers += 1
        heappush(self._heads, (start, self._lines[owner].items[0][1], self._numbers, owner))

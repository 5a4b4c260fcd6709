"""What happens at which simulated time, for whole nodes: one heap, one task, trio's clock.

Things due at the same time happen in the order in which they were scheduled, so a seed has one order of events.
"""

from collections.abc import Callable
from heapq import heappop, heappush

import trio


class Timeline:
    """Calls plain functions at simulated times. Run it with `nursery.start_soon(timeline.run)`."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = 0
        self._next = float("inf")  # what `run` sleeps for
        self._earlier = trio.Event()

    @property
    def now(self) -> float:
        """Simulated seconds."""
        return trio.current_time()

    def at(self, when: float, act: Callable[[], None]) -> None:
        """Call `act` at `when`, or as soon as possible when that is over."""
        self._numbers += 1
        heappush(self._heap, (when, self._numbers, act))
        if when < self._next:
            self._earlier.set()

    async def run(self) -> None:
        """Let things happen until cancelled. What one of them raises is raised here."""
        while True:
            self._earlier = trio.Event()
            self._next = self._heap[0][0] if self._heap else float("inf")
            with trio.move_on_at(self._next):
                await self._earlier.wait()
            self._next = float("-inf")
            now = trio.current_time()
            while self._heap and self._heap[0][0] <= now:
                heappop(self._heap)[2]()

"""Room for calls on one connection: so many, and so many bytes, that the node has not answered.

A node reads no further on a connection with more than that (hopchain.wire), not even a sign of life: then a healthy
node looks dead. Who comes when there is no room stands in one line, so that a large call is not passed by small ones
for ever. One alone always fits.

What a call takes is free again when the node has answered it, not when nobody waits for it any more: the node counts it
until then.
"""

from collections import deque

import anyio
import anyio.lowlevel


class _Place:
    """Of who stands in line."""

    __slots__ = ("free", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.free = anyio.Event()


class Room:
    """At most `calls` calls of `size` bytes together."""

    def __init__(self, calls: int, size: int) -> None:
        self._most_calls = calls
        self._most_bytes = size
        self._calls = 0
        self._bytes = 0
        self._line: deque[_Place] = deque()
        self._ended = False

    @property
    def full(self) -> bool:
        """Whoever came now would wait."""
        return bool(self._line) or not self._fits(1)

    @property
    def waited_for(self) -> bool:
        """Somebody stands in line."""
        return bool(self._line)

    @property
    def taken(self) -> int:
        """How many calls have room."""
        return self._calls

    async def enter(self, size: int) -> None:
        """Take room for a call of so many bytes; `leave` gives it back. When there is some nobody else runs
        meanwhile."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        if not self._line and self._fits(size):
            self._take(size)
            return
        place = _Place(size)
        self._line.append(place)
        try:
            await place.free.wait()
        except BaseException:
            if place.free.is_set():
                self.leave(size)
            else:
                self._line.remove(place)
                self._admit()
            raise

    def leave(self, size: int) -> None:
        """A call of so many bytes that had room is over."""
        self._calls -= 1
        self._bytes -= size
        self._admit()

    def end(self) -> None:
        """Nothing is sent any more: nobody waits for room."""
        self._ended = True
        self._admit()

    def _admit(self) -> None:
        while self._line and self._fits(self._line[0].size):
            place = self._line.popleft()
            self._take(place.size)
            place.free.set()

    def _take(self, size: int) -> None:
        self._calls += 1
        self._bytes += size

    def _fits(self, size: int) -> bool:
        if self._ended or not self._calls:
            return True
        return self._calls < self._most_calls and self._bytes + size <= self._most_bytes

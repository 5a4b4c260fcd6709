"""Requests that ended as Unknown here, and that some node may still hold: none of them is ever called NotStarted (ADR
10).

Their ids are remembered in filters (Bloom, "Space/Time Trade-offs in Hash Coding with Allowable Errors", 1970): each id
sets eight bits. It is a SHA-256 already, so these are what its eight words say. When the newest filter has PART_IDS
ids, the next one begins, and of more than PARTS the oldest is dropped. Until then an id that was added is found; one
that was not is taken for one that was 3 times in 1,000 at most, when all filters are full. It ends as Unknown, which
claims nothing.
"""

from collections import deque
from struct import Struct
from typing import Final

from chain.request import RequestId

PART_BITS: Final = 1 << 23  # 1 MiB
PART_IDS: Final = 500_000  # 17 bits for each: with eight of them set, 4 of 10,000 others are found, too
# Together 8 MiB. The last 3,500,000 ids are there in any case: of fourteen minutes, at 4,000 a second.
PARTS: Final = 8
_WORDS: Final = Struct(">8I")


class Doubtful:
    """The ids that were added last."""

    def __init__(self) -> None:
        self._parts: deque[bytearray] = deque(maxlen=PARTS)
        self._room = 0  # ids that the newest part may still take

    def add(self, request_id: RequestId) -> None:
        bits = _bits(request_id)
        if self._parts and _has(self._parts[-1], bits):
            return
        if not self._room:
            self._parts.append(bytearray(PART_BITS // 8))
            self._room = PART_IDS
        self._room -= 1
        for bit in bits:
            self._parts[-1][bit >> 3] |= 1 << (bit & 7)

    def __contains__(self, request_id: bytes) -> bool:
        bits = _bits(request_id)
        return any(_has(part, bits) for part in self._parts)


def _bits(request_id: bytes) -> list[int]:
    return [word % PART_BITS for word in _WORDS.unpack(request_id)]


def _has(part: bytearray, bits: list[int]) -> bool:
    return all(part[bit >> 3] & (1 << (bit & 7)) for bit in bits)

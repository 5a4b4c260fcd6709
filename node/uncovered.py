"""What costs its sender nothing has a limit (docs/adr/0038).

Accounts are free, and a rejection is recorded like a payment, so requests that no money stands behind could fill every
disk of the network. A gateway takes so many bytes of them in an hour, and accounts share these as they share other
rooms (node.room). A request has its part from its admission on: until it turns out to cost its sender something, or
nothing of it is recorded; else for WINDOW_S. Ids are counted once, however often they come.
"""

from typing import Final

from chain.request import Kind, Request, RequestId
from hopchain.wire import Recorded, ReplyBody, Unknown
from node.room import SharedRoom, Taken

WINDOW_S: Final = 3600.0
HOUR_BYTES: Final = 16 * 1024 * 1024  # unless config.toml says more or less: fifteen of the largest requests
ROW_BYTES: Final = 1024  # of a small request: what the database has besides its bytes


def cost_of(request: Request) -> int:
    """What its sender must have, in minor units; a cancellation counts like the least payment."""
    return max(1, request.total)


def may_stay_unpaid(request: Request, answer: ReplyBody) -> bool:
    """Whether it is recorded, or may be, and its sender has no less money for it."""
    if isinstance(answer, Recorded):
        return not answer.completed or request.kind is Kind.CANCEL
    return isinstance(answer, Unknown)


class Uncovered:
    """The requests of one gateway that their senders' money did not surely cover, of the last hour."""

    def __init__(self) -> None:
        self.hour_bytes = HOUR_BYTES
        self.room: Final = SharedRoom()
        self._taken: dict[RequestId, tuple[str, int]] = {}  # account and bytes
        self._kept: dict[RequestId, float] = {}  # until when; in this order

    def take(self, request_id: RequestId, account: str, size: int, now: float) -> bool:
        """Whether a request of `size` bytes has its part now."""
        self._expire(now)
        if request_id in self._taken:
            return True
        size += ROW_BYTES
        if not self.room.fits(account, size, Taken(self.hour_bytes, self.hour_bytes)):
            return False
        self.room.take(account, size)
        self._taken[request_id] = account, size
        return True

    def give_back(self, request_id: RequestId) -> None:
        """It cost its sender something, or nothing of it is recorded. What is kept already stays for its hour."""
        if request_id in self._taken and request_id not in self._kept:
            self.room.give_back(*self._taken.pop(request_id))

    def keep(self, request_id: RequestId, now: float) -> None:
        """It cost nothing and is recorded, or may be."""
        if request_id in self._taken and request_id not in self._kept:
            self._kept[request_id] = now + WINDOW_S

    def told(self, account: str) -> str:
        """For whoever finds no room."""
        return (
            f"of requests that were not covered this node takes {self.hour_bytes} bytes in an hour, and has taken "
            f"{self.room.all.bytes}, {self.room.of(account).bytes} of {account}"
        )

    def _expire(self, now: float) -> None:
        while self._kept:
            request_id = next(iter(self._kept))
            if self._kept[request_id] > now:
                return
            del self._kept[request_id]
            self.give_back(request_id)

"""Room that accounts share: an account may have at most as much of it as is left free (docs/adr/0037).

It is a dynamic threshold with a factor of one (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory
packet switches", 1998):

* who is alone may have half of the room;
* n who want all of it come to have 1/(n + 1) each, and as much stays free for whoever comes next;
* who had more when others came keeps it, and gets no more before it has less than is free.

Requests and their bytes are counted each for itself, and there must be room for both.
"""

from typing import Final

import msgspec


def leaves_enough(own: int, all_: int, most: int) -> bool:
    """Whether an account may have `own`, when all together then have `all_` of `most`."""
    return own <= most - all_


class Taken(msgspec.Struct):
    """Of a room, by one account or by all."""

    requests: int = 0
    bytes: int = 0

    def add(self, requests: int, size: int) -> None:
        self.requests += requests
        self.bytes += size


class SharedRoom:
    """What waits in one place: how much of each account, and how much together."""

    def __init__(self) -> None:
        self.all: Final = Taken()
        self._of: dict[str, Taken] = {}

    def of(self, account: str) -> Taken:
        """What it has now."""
        return self._of.get(account) or Taken()

    def fits(self, account: str, size: int, most: Taken) -> bool:
        """Whether the account may have one more request, of `size` bytes, when the room is `most`."""
        own = self.of(account)
        requests = leaves_enough(own.requests + 1, self.all.requests + 1, most.requests)
        return requests and leaves_enough(own.bytes + size, self.all.bytes + size, most.bytes)

    def take(self, account: str, size: int) -> None:
        """One more request of the account waits here; `give_back` when it waits no longer."""
        own = self._of.get(account)
        if own is None:
            own = self._of[account] = Taken()
        own.add(1, size)
        self.all.add(1, size)

    def give_back(self, account: str, size: int) -> None:
        """A request of `size` bytes that took room waits no longer."""
        own = self._of[account]
        own.add(-1, -size)
        self.all.add(-1, -size)
        assert own.requests >= 0 and own.bytes >= 0, (account, own)
        if not own.requests:
            del self._of[account]

    def told(self, account: str) -> str:
        """For whoever finds no room."""
        own = self.of(account)
        return (
            f"{own.requests} requests of {account} ({own.bytes} bytes) wait there, "
            f"of all accounts {self.all.requests} ({self.all.bytes} bytes)"
        )

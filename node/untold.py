"""Recorded requests that came again, and whose outcomes wait to be told.

What is told is read from the link that records it (`chain.outcomes`), and a turn has room for some such links only. The
clients that came when it was taken wait here, judged already: nothing is done about them until there is room. They
share it by the bytes of their links (`FairQueue`, ADR 30), each from the link that it asked about first; all that a
client waits for in one link is told when that is read.
"""

from collections.abc import Iterator
from typing import Final

from chain.link import MAX_LINK_BYTES, LinkHash
from chain.needs import Loaded, Needs
from chain.outcomes import TOLD_BYTES
from chain.request import RequestId
from chain.rows import OutcomeRow
from node.events import Caller
from node.fair import FairQueue

TOLD_CALLS: Final = 512  # in one turn, as many as it takes of new ones, and those of the same link with the last
Key = tuple[str, RequestId]  # of an outcome, with the account whose link records it


class Untold:
    """Who waits for a recorded outcome: calls of clients that are there, so no more than those may have under way."""

    def __init__(self) -> None:
        self._queue: FairQueue[tuple[int, LinkHash]] = FairQueue()  # of sessions, each link once
        self._waiting: dict[int, dict[LinkHash, list[tuple[Caller, Key]]]] = {}
        self._taken: list[tuple[Caller, Key]] = []  # by the turn that is about to load its rows

    def __bool__(self) -> bool:
        """Somebody waits."""
        return bool(self._queue)

    def add(self, caller: Caller, row: OutcomeRow, size: int) -> None:
        """Tell this client of this outcome, whose link takes `size` bytes to read, when there is room."""
        links = self._waiting.setdefault(caller.session, {})
        if row.link_hash not in links:
            links[row.link_hash] = []
            self._queue.push(caller.session, (caller.session, row.link_hash), size)
        links[row.link_hash].append((caller, (row.account, row.request_id)))

    def needs_turn(self, needs: Needs) -> None:
        """Those who are next, before all that the turn is to tell besides: as far as there is certainly room."""
        self._taken = []
        if not self._queue:
            self._queue = FairQueue()  # what each has had counts while others wait
            return
        links: set[LinkHash] = set()
        size = 0
        while not links or (size + MAX_LINK_BYTES <= TOLD_BYTES and len(self._taken) < TOLD_CALLS):
            item = self._queue.pop()
            if item is None:
                break
            (session, link), weight = item
            self._taken += self._waiting[session].pop(link)
            if not self._waiting[session]:
                del self._waiting[session]  # the queue knows what it has had: who waits for more comes after others
            if link not in links:
                links.add(link)
                size += weight
        needs.told.update((key, None) for _, key in self._taken)

    def take(self, loaded: Loaded) -> Iterator[tuple[Caller, OutcomeRow]]:
        """Those who are told now, in the order in which they came for each link."""
        for caller, key in self._taken:
            row = loaded.outcomes[key]
            if key in loaded.untold:
                self.add(caller, row, loaded.untold[key])
            else:
                yield caller, row
        self._taken = []

    def forget(self, session: int) -> None:
        """This client is gone."""
        self._waiting.pop(session, None)
        self._queue.forget(session)

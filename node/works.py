"""What an owner has to decide: for each account the queue of its requests, the ballot of its slot, and when to look at
it again. The queues are bounded in number and bytes, each of them and all together: they share one room (node.room).
"""

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from chain.link import Link
from chain.request import DecodedRequest, RequestId
from node.asking import Asked
from node.due import Due
from node.messages import SlotName
from node.paxos import Proposer
from node.queue import NO_GATEWAY, QueuedRequest
from node.room import SharedRoom, Taken

MAX_QUEUE: Final = 20_000  # requests of one account: a few full links. After each the rest goes to the next owner
MAX_QUEUED: Final = 200_000  # of all accounts
MAX_QUEUE_BYTES: Final = 32 * 1024 * 1024  # of the requests of one account: thirty full links
# Of the requests of all accounts. With the 64 MiB that this node keeps for its own clients (node.jobs) that is 160;
# decoded they take up to 3.5 times that (measured: eight postings, long names and memos), 560 MiB; with 256 kept for
# clients, 128 of what was decoded last and 70 of a node at rest that is below 1 GiB.
MAX_QUEUED_BYTES: Final = 96 * 1024 * 1024


class Work(msgspec.Struct):
    """One account with something to decide on this node."""

    account: str
    wake_at: float
    queue: dict[RequestId, QueuedRequest] = msgspec.field(default_factory=dict)
    at: SlotName | None = None  # the slot that `proposer` works on
    proposer: Proposer[Link] | None = None
    finish: bool = False  # go on also with an empty queue, as long as this node has a vote there
    attempt: int = 0  # resends in this phase of a ballot
    refusals: int = 0  # ballots that were refused in this slot; between them it waits
    lowest_round: int = 1
    asked: Asked | None = None  # facts for the next link
    put_off: bool = False  # it may not be decided here yet
    barred: tuple[SlotName, int] | None = None  # the slot, with its birth epoch, where that was so

    @property
    def asking(self) -> bool:
        """It waits for facts."""
        return self.asked is not None and self.asked.under_way > 0

    @property
    def idle(self) -> bool:
        """Nothing is being decided or asked for, and no ballot waits for its next try."""
        return self.proposer is None and not self.asking and self.refusals == 0

    @property
    def may_propose(self) -> bool:
        """Phase 1 is over and no value chosen for phase 2 yet."""
        return self.proposer is not None and self.proposer.prepared and self.proposer.value is None


class Works:
    """The work of one node, by account and by the slot of its ballot."""

    def __init__(self) -> None:
        self._by_account: dict[str, Work] = {}
        self._by_slot: dict[bytes, Work] = {}
        self.due: Final = Due()  # when one of them is to be looked at
        self.room: Final = SharedRoom()  # for the requests of all queues

    def __iter__(self) -> Iterator[Work]:
        return iter(self._by_account.values())

    def get(self, account: str) -> Work | None:
        return self._by_account.get(account)

    def deciding(self, slot: bytes) -> Work | None:
        """Whose ballot is for this slot."""
        return self._by_slot.get(slot)

    def begin(self, account: str, wake_at: float) -> Work:
        """The work of this account, or a new one that is looked at then."""
        work = self._by_account.get(account)
        if work is None:
            work = self._by_account[account] = Work(account, wake_at)
            self.due.by(wake_at)
        return work

    def end(self, work: Work) -> None:
        """Forget it, with its ballot and its queue."""
        self.end_ballot(work)
        for request_id in list(work.queue):
            self.pull_out(work, request_id)
        self._by_account.pop(work.account, None)

    def wake(self, work: Work, when: float) -> None:
        """Look at it at this time, and not before."""
        work.wake_at = when
        self.due.by(when)

    # --- ballots ---

    def begin_ballot(self, work: Work, at: SlotName, proposer: Proposer[Link]) -> None:
        work.at, work.proposer = at, proposer
        self._by_slot[at.slot] = work

    def end_ballot(self, work: Work) -> None:
        if work.at is not None:
            self._by_slot.pop(work.at.slot, None)
        work.at = work.proposer = None

    # --- queues ---

    def put_in(self, work: Work, queued: QueuedRequest) -> bool:
        """False when there is no room for this request. Of one that is there already only the latest hand-over counts,
        and it is a copy when either of them is."""
        held = work.queue.get(queued.decoded.request_id)
        if held is not None:
            if queued.gateway in (held.gateway, NO_GATEWAY):
                latest = msgspec.structs.replace(held, gateway=queued.gateway, number=queued.number)
                work.queue[queued.decoded.request_id] = latest
            return True
        size = len(queued.decoded.signed.raw)
        own = self.room.of(work.account)
        full = own.requests >= MAX_QUEUE or own.bytes + size > MAX_QUEUE_BYTES
        if full or not self.room.fits(work.account, size, Taken(MAX_QUEUED, MAX_QUEUED_BYTES)):
            return False
        work.queue[queued.decoded.request_id] = queued
        self.room.take(work.account, size)
        return True

    def pull_out(self, work: Work, request_id: RequestId) -> QueuedRequest | None:
        queued = work.queue.pop(request_id, None)
        if queued is not None:
            self.room.give_back(work.account, len(queued.decoded.signed.raw))
        return queued

    def take_out(self, work: Work, items: Iterable[DecodedRequest]) -> list[QueuedRequest]:
        """Those of these requests that are in the queue."""
        return [queued for item in items if (queued := self.pull_out(work, item.request_id)) is not None]

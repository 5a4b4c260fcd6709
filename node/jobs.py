"""The requests that clients of this node wait for, from their admission to their one answer.

A request that several calls wait for is one job. Jobs share one room (`node.room`). Of those that have ended it is
remembered which some node may still hold (`node.doubtful`) and which cost their senders nothing (`node.uncovered`).
"""

from collections import Counter
from typing import Final

import msgspec

from chain.request import DecodedRequest, RequestId
from hopchain.wire import Recorded, ReplyBody, Unknown
from node.doubtful import Doubtful
from node.due import Due
from node.events import Caller
from node.room import SharedRoom, Taken
from node.uncovered import Uncovered, cost_of, may_stay_unpaid
from routing.keyspace import NodeId

MAX_JOBS: Final = 100_000  # requests of clients that wait here, shared as node.room says; who has no room is told busy
MAX_JOBS_OF_ONE: Final = 25_000  # of them of one account: each of its links is compared with all of them
MAX_JOB_BYTES: Final = 64 * 1024 * 1024  # of their requests, besides those that an owner queues (node.works)
TRY_AGAIN_S: Final = 1.0  # without an answer the request is looked at again
UNSENT: Final = -1


class Job(msgspec.Struct):
    """A request that a client of this node waits for."""

    decoded: DecodedRequest
    next_try: float
    callers: list[tuple[Caller, float]]  # with the deadline of each
    holder: NodeId | None = None  # whom it was handed to last
    held_since: float = 0.0
    expected_height: int = UNSENT  # height of the link it was first meant for
    sent_height: int = UNSENT  # height of the slot it was last handed over for
    number: int = UNSENT  # of its latest hand-over: what is said of an earlier one says nothing of this one
    tries: int = 0
    hops: int = 0  # to the node that it was first handed to


class Jobs:
    """All jobs of a node, by request and by account."""

    def __init__(self) -> None:
        self._jobs: dict[RequestId, Job] = {}
        self._by_account: dict[str, dict[RequestId, Job]] = {}
        self._costs: Counter[str] = Counter()  # what they cost, by account
        self.due: Final = Due()  # when one of them is to be looked at
        self.room: Final = SharedRoom()  # for the requests of all jobs
        self.uncovered: Final = Uncovered()
        self.doubtful: Final = Doubtful()

    def __len__(self) -> int:
        return len(self._jobs)

    def get(self, request_id: RequestId) -> Job | None:
        return self._jobs.get(request_id)

    def all(self) -> list[Job]:
        """In the order in which they began."""
        return list(self._jobs.values())

    def of(self, account: str) -> dict[RequestId, Job]:
        """Those of an account, to be looked at only."""
        return self._by_account.get(account, {})

    def cost(self, account: str) -> int:
        """What those of an account cost it, in minor units, when all of them are completed."""
        return self._costs[account]

    def may_execute(self, request_id: RequestId) -> bool:
        """Some node may hold it, for all that this one knows: its client waits here, or it ended in doubt."""
        return request_id in self.doubtful or request_id in self._jobs

    def no_room(self, account: str, size: int) -> str | None:
        """Why the account cannot have one more job, of a request of `size` bytes; None: it can."""
        many = self.room.of(account).requests >= MAX_JOBS_OF_ONE
        if many or not self.room.fits(account, size, Taken(MAX_JOBS, MAX_JOB_BYTES)):
            return f"too much waits at this node: {self.room.told(account)}"
        return None

    def begin(self, decoded: DecodedRequest, caller: Caller, until: float, now: float) -> None:
        """This client waits, until then, for a request that no other one waits for."""
        account = decoded.request.sender
        job = Job(decoded, now + TRY_AGAIN_S, [(caller, until)])
        self.due.by(min(job.next_try, until))
        self._jobs[decoded.request_id] = job
        self._by_account.setdefault(account, {})[decoded.request_id] = job
        self.room.take(account, len(decoded.signed.raw))
        self._costs[account] += cost_of(decoded.request)

    def join(self, job: Job, caller: Caller, until: float) -> None:
        """This client waits for it, too."""
        job.callers.append((caller, until))
        self.due.by(until)

    def end(self, job: Job, answer: ReplyBody, now: float) -> None:
        """Nobody waits for it any more: this was its answer."""
        decoded = job.decoded
        request_id, account, size = decoded.request_id, decoded.request.sender, len(decoded.signed.raw)
        del self._jobs[request_id]
        self.room.give_back(account, size)
        self._costs[account] -= cost_of(decoded.request)
        if isinstance(answer, Unknown):
            self.doubtful.add(request_id)
        if may_stay_unpaid(decoded.request, answer):
            if isinstance(answer, Recorded):  # also one that seemed to be covered
                self.uncovered.take(request_id, account, size, now)
            self.uncovered.keep(request_id, now)
        else:
            self.uncovered.give_back(request_id)
        jobs = self._by_account[account]
        del jobs[request_id]
        if not jobs:
            del self._by_account[account], self._costs[account]

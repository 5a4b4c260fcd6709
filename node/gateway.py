"""Gateway: a client's request on its way to its one answer (design R13).

What was admitted (`node.admission`) is a job (`node.jobs`): handed to the owner of the sender's tail, and watched until

* a link that holds its request id is applied here: `Recorded`, final;
* the tip that it expected has another successor: `Stale`, final;
* the only node that had it dropped it: `NotStarted`, it may be sent again;
* its deadline passes: `Unknown` when it was handed over, `NotStarted` when not.

The gateway never waits for one node: a job without an answer is handed over again, to the next rank if need be.
That is safe, because a request id gets one outcome in its account's chain, however many nodes hold the request.
"""

from itertools import count
from typing import Final

from chain.errors import RemoteFault
from chain.link import Link
from chain.needs import Needs
from chain.request import ANY_TIP, Kind, RequestId
from hopchain.wire import NotStarted, ReplyBody, Stale, Unknown
from node.answers import name_taken, recorded
from node.decoded import LinkDecoder
from node.events import NOBODY, RouteJobs
from node.inquiry import ASK_DEADLINE_S
from node.jobs import TRY_AGAIN_S, UNSENT, Job, Jobs
from node.messages import Declined, Moved, NotOwner, SlotName
from node.owner import Owner
from node.peers import Peers
from node.queue import QueuedRequest, forwards
from node.replica import Replica
from node.slots import height_of, next_slot
from node.turn import Self, Turn
from routing.keyspace import NodeId, route_key

HOLDER_S: Final = ASK_DEADLINE_S + 1.0  # whoever has it and lives may be asking the network about it for so long
TRIES_PER_RANK: Final = 2


class Gateway:
    """The jobs of this node's clients, on their way."""

    def __init__(
        self,
        self_: Self,
        decoder: LinkDecoder,
        peers: Peers,
        owner: Owner,
        replica: Replica,
        jobs: Jobs,
        first_number: int,
    ) -> None:
        """`first_number`: of its hand-overs, below 2^63 by far and drawn for each process of a node, so that no two of
        them give the same ones."""
        self._self = self_
        self._decoder = decoder
        self._peers = peers
        self._owner = owner
        self._replica = replica
        self._jobs = jobs
        self._numbers = count(first_number)

    # --- handing over ---

    def needs_route(self, event: RouteJobs, needs: Needs) -> None:
        needs.heads.add(event.account)

    def on_route(self, turn: Turn, event: RouteJobs) -> None:
        """Hand over all jobs of an account that are due, to the owner of its tail as this replica knows it."""
        jobs = self._jobs.of(event.account)
        if not jobs:
            return
        now = turn.now.mono
        head = turn.loaded.heads.get(event.account)
        at = next_slot(self._self.network, event.account, head)
        due = [j for j in jobs.values() if j.sent_height == UNSENT or j.next_try <= now]
        if not due:
            return
        group = self._self.view.group(route_key(at.slot))
        tries = min(j.tries for j in due)
        ranks = self._peers.ranks(group, turn.now)
        to = ranks[min(tries // TRIES_PER_RANK, len(ranks) - 1)]
        if to != group[0] and not self._peers.alive(group[0], turn.now):
            turn.lookups.append(route_key(at.slot))  # perhaps it has moved
        for job in due:
            job.sent_height = at.height
            if job.expected_height == UNSENT:
                job.expected_height = at.height
                job.hops = int(to != self._self.id)
            job.tries += 1
            self._self.counters["jobs_handed_again"] += job.tries > 1
            job.next_try = now + TRY_AGAIN_S + min(self._peers.rtt(group) * 4, HOLDER_S)
            self._jobs.due.by(job.next_try)
            job.holder, job.held_since = to, now
        self._hand_to(turn, to, at, due, takeover=to != group[0])

    def _hand_to(self, turn: Turn, to: NodeId, at: SlotName, jobs: list[Job], *, takeover: bool) -> None:
        for job in jobs:
            job.number = next(self._numbers)
        queued = [QueuedRequest(job.decoded, self._self.id, turn.now.mono, job.number) for job in jobs]
        if to == self._self.id:
            self._owner.enqueue(turn, at, queued)
            return
        for message in forwards(at, queued, takeover=takeover):
            turn.hand_on(to, message)

    def on_moved(self, turn: Turn, peer: NodeId, message: Moved) -> None:
        """The owner knows more of the chain than this node: apply it, and route again. Links that must wait for others
        leave the tail here where it was: handing the requests over once more would only bring them back at once."""
        for raw in message.links:
            self._replica.learn(turn, self._decoder.untrusted(raw), peer, NOBODY)
        for job in self._jobs.of(message.account).values():
            if job.sent_height == message.height:
                job.sent_height, job.holder = UNSENT, None
        if height_of(turn.loaded.heads.get(message.account)) >= message.height:
            turn.again.append(RouteJobs(message.account))

    def on_not_owner(self, turn: Turn, peer: NodeId, message: NotOwner) -> None:
        """The receiver leaves it to a rank before it: hand the requests to the first of the group it named."""
        jobs = self._handed_by(message)
        if not message.group:
            raise RemoteFault("malformed", f"no group is named for link {message.at.height} of {message.at.account}")
        if jobs and message.epoch == self._self.view.epoch:
            self._hand_to(turn, message.group[0], message.at, jobs, takeover=False)

    def on_declined(self, turn: Turn, peer: NodeId, message: Declined) -> None:
        """A node dropped requests. When it was the only one that had them, the client may know."""
        for job in self._handed_by(message):
            request_id = job.decoded.request_id
            if job.tries <= 1 and request_id not in self._jobs.doubtful:
                self._end(turn, job, NotStarted(request_id, message.code, message.reason))

    def _handed_by(self, message: Declined | NotOwner) -> list[Job]:
        """The jobs whose latest hand-over this answers. What it says of another one, perhaps of this node's process
        before, is old: who has the request now may execute it (design R13)."""
        answered = zip(message.request_ids, message.numbers, strict=False)  # an earlier release named no numbers
        jobs = ((self._jobs.get(RequestId(raw_id)), number) for raw_id, number in answered)
        return [job for job, number in jobs if job is not None and job.number == number]

    # --- the end of a job ---

    def on_applied(self, turn: Turn, link: Link, by: NodeId) -> None:
        jobs = self._jobs.of(link.account)
        if not jobs:
            return
        for request_id, outcome in link.outcomes():
            job = jobs.get(request_id)
            if job is not None:
                row = turn.loaded.outcomes.get((link.account, request_id))
                assert row is not None
                assert row.outcome is outcome or row.link_hash != link.hash
                self._end(turn, job, recorded(row, by, self._hops(job, link), repeated=False), link)
        for job in list(jobs.values()):
            request = job.decoded.request
            if request.kind is Kind.OPEN:
                self._end(turn, job, name_taken(link.account), link)
            elif request.expect_tip not in (ANY_TIP, link.hash):
                self._end(turn, job, Stale(job.decoded.request_id, link.hash, link.height), link)
        if any(job.sent_height == UNSENT for job in jobs.values()):  # they came back, and waited for this link
            turn.again.append(RouteJobs(link.account))

    def _hops(self, job: Job, link: Link) -> int:
        """Hand-overs on the way: to the first owner unless that is this node, then one for each link it waited."""
        if job.expected_height == UNSENT:  # its link came before it was handed to anybody
            return 0
        return job.hops + max(0, link.height - job.expected_height)

    def _end(self, turn: Turn, job: Job, body: ReplyBody, link: Link | None = None) -> None:
        """Answer a job for good; `link` is the decided link that makes the answer true, if one does."""
        for caller, _ in job.callers:
            if link is not None:
                turn.tell_client(link, caller, body)
            else:
                turn.answer(caller, body)
        self._jobs.end(job, body, turn.now.mono)

    # --- time ---

    def deadline(self) -> float | None:
        return self._jobs.due.at

    def tick(self, turn: Turn) -> None:
        """Answer those whose time is up; hand the others over again when whoever has them is dead, lags, or is silent
        too long."""
        now = turn.now.mono
        if not self._jobs.due.passed(now):
            return
        due: set[str] = set()
        for job in self._jobs.all():
            if any(at <= now for _, at in job.callers):
                self._time_is_up(turn, job)
            if not job.callers:
                continue
            self._jobs.due.by(min(at for _, at in job.callers))
            if job.next_try <= now and self._may_hold(turn, job):
                job.next_try = now + TRY_AGAIN_S
            elif job.next_try <= now:
                due.add(job.decoded.request.sender)
            if job.next_try > now:
                self._jobs.due.by(job.next_try)
        turn.again += [RouteJobs(account) for account in sorted(due)]

    def _may_hold(self, turn: Turn, job: Job) -> bool:
        """A second node that has the request makes its outcome harder to name, so it is not given one without need."""
        holder = job.holder
        patient = turn.now.mono < job.held_since + HOLDER_S
        return patient and holder is not None and self._peers.keeps_pace(holder, turn.now)

    def _time_is_up(self, turn: Turn, job: Job) -> None:
        request_id, now = job.decoded.request_id, turn.now.mono
        body: NotStarted | Unknown = NotStarted(request_id, "no_owner", "no owner was reached in time; send it again")
        if job.tries or request_id in self._jobs.doubtful:
            reason = f"no outcome in time after {job.tries} hand-overs; ask `outcome`, or settle it with `cancel`"
            body = Unknown(request_id, reason)
        late = [caller for caller, at in job.callers if at <= now]
        job.callers = [(caller, at) for caller, at in job.callers if at > now]
        for caller in late:
            turn.answer(caller, body)
        if not job.callers:
            self._jobs.end(job, body, now)

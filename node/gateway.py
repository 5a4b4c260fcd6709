"""Gateway: a client's request from admission to its one answer (design R13).

Admission judges what needs no link: form, network, sender, signature. What it refuses is recorded nowhere. An
admitted request becomes a `Job` that is handed to the owner of the sender's tail and watched until

* a link that holds its request id is applied here: `Recorded`, final;
* the tip that it expected has another successor: `Stale`, final;
* the only node that had it dropped it: `NotStarted`, it may be sent again;
* its deadline passes: `Unknown` when it was handed over, `NotStarted` when not.

The gateway never waits for one node: a job without an answer is handed over again, to the next rank if need be.
That is safe, because a request id gets one outcome in its account's chain, however many nodes hold the request.
"""

from collections import Counter
from typing import Final

import msgspec

from chain.errors import RemoteFault
from chain.link import Link, LinkHash
from chain.needs import Needs
from chain.request import ANY_TIP, MANY_POSTINGS, Kind, RequestId, SignedRequest, is_signed_by
from chain.rows import AccountHead, OutcomeRow
from chain.rules import Queued
from hopchain.wire import NOT_COVERED, NotStarted, Recorded, Refused, ReplyBody, Stale, Unknown
from node.askers import MAX_ASKERS, Purpose
from node.decoded import LinkDecoder, RequestDecoder
from node.doubtful import Doubtful
from node.due import Due
from node.events import NOBODY, Caller, ClientGone, ClientSubmit, DiskSpace, RouteJobs
from node.inquiry import ASK_DEADLINE_S, Inquiries, SlotState
from node.messages import Declined, Moved, NotOwner, SlotName
from node.owner import Owner
from node.peers import Peers
from node.queue import Held, forwards
from node.replica import Replica
from node.room import SharedRoom, Taken, leaves_enough
from node.slots import birth_epoch, height_of, next_slot
from node.turn import Self, Turn
from node.uncovered import Uncovered, cost_of, may_stay_unpaid
from node.untold import Untold
from routing.keyspace import NodeId, route_key, short

MAX_JOBS: Final = 100_000  # requests of clients that wait here, shared as node.room says; who has no room is told busy
MAX_JOBS_OF_ONE: Final = 25_000  # of them of one account: each of its links is compared with all of them
MAX_JOB_BYTES: Final = 64 * 1024 * 1024  # of their requests, besides those that an owner queues (node.works)
MAX_TIMEOUT_MS: Final = 600_000
TRY_AGAIN_S: Final = 1.0  # without an answer the request is looked at again
HOLDER_S: Final = ASK_DEADLINE_S + 1.0  # whoever has it and lives may be asking the network about it for so long
MAX_CALLERS: Final = 64  # of one request at once; who asks more often than that need not be told more often
TRIES_PER_RANK: Final = 2
UNSENT: Final = -1

_MIB: Final = 1024 * 1024


class Job(msgspec.Struct):
    """A request that a client of this node waits for."""

    queued: Queued
    next_try: float
    callers: list[tuple[Caller, float]]  # with the deadline of each
    holder: NodeId | None = None  # whom it was handed to last
    held_since: float = 0.0
    expected_height: int = UNSENT  # height of the link it was first meant for
    sent_height: int = UNSENT  # height of the slot it was last handed over for
    tries: int = 0
    hops: int = 0  # to the node that it was first handed to


class Gateway:
    """The requests of this node's clients."""

    def __init__(
        self,
        self_: Self,
        decoder: LinkDecoder,
        requests: RequestDecoder,
        peers: Peers,
        owner: Owner,
        replica: Replica,
        inquiries: Inquiries,
    ) -> None:
        self._self = self_
        self._decoder = decoder
        self._requests = requests
        self._peers = peers
        self._owner = owner
        self._replica = replica
        self._inquiries = inquiries
        self._jobs: dict[RequestId, Job] = {}
        self._by_account: dict[str, dict[RequestId, Job]] = {}
        self._room = SharedRoom()  # for the requests of all jobs
        self._asked: Counter[str] = Counter()  # what they cost, by account
        self.uncovered: Final = Uncovered()
        self._doubtful = Doubtful()
        self._asking: Counter[int] = Counter()  # by session: requests for which others are asked before admission
        self._disk = DiskSpace(0, 0)  # as it was told last
        self._due = Due()
        self._untold = Untold()
        self._signed: dict[tuple[RequestId, bytes, bytes], bool] = {}  # (id, signature, key) as checked in this turn

    def __len__(self) -> int:
        return len(self._jobs)

    # --- admission ---

    def needs_submit(self, event: ClientSubmit, needs: Needs) -> None:
        try:
            queued = self._requests.untrusted(event.submit.raw, event.submit.signature)
        except RemoteFault:
            return
        request = queued.request
        needs.heads.add(request.sender)
        needs.told[request.sender, queued.request_id] = None
        if event.with_funds:
            needs.funds.add(request.sender)
        if request.expect_tip != ANY_TIP:
            needs.accounts_of.add(LinkHash(request.expect_tip))
        known = self._replica.familiar.head(request.sender)
        if known is None or len(request.postings) >= MANY_POSTINGS:  # for much a second turn is cheap
            return
        if self._is_signed(queued, known.public_key):  # strangers cannot have rows loaded that are not of their own
            self._owner.needs_queued(known.name, known.slot, [queued], needs, few=True)

    def _is_signed(self, queued: Queued, key: bytes) -> bool:
        """Checked once in a turn: for what is loaded, and when it is admitted."""
        what = (queued.request_id, queued.signed.signature, key)
        if what not in self._signed:
            self._signed[what] = is_signed_by(queued.signed, key)
        return self._signed[what]

    def on_submit(self, turn: Turn, event: ClientSubmit) -> None:
        """Admit a request, answer it from the record, or refuse it."""
        try:
            queued = self._requests.untrusted(event.submit.raw, event.submit.signature)
        except RemoteFault as fault:
            turn.answer(event.caller, Refused(fault.code, fault.text))
            return
        signed, request = queued.signed, queued.request
        head = turn.loaded.heads.get(request.sender)
        if not self._self.is_member:
            reason = f"node {short(self._self.id)} is no member of epoch {self._self.view.epoch}: it only reads; send it to one"
            turn.answer(event.caller, self._not_started(signed.request_id, "not_member", reason))
            return
        if head is None and request.kind is not Kind.OPEN and request.network == self._self.network:
            self._ask_then_submit(turn, event, request.sender, None, f"no account {request.sender} exists; open it")
            return
        refusal = self._refuse(queued, head)
        if refusal is not None:
            turn.answer(event.caller, refusal)
            return
        row = turn.loaded.outcomes.get((request.sender, queued.request_id))
        if row is not None:
            size = turn.loaded.untold.get((request.sender, queued.request_id))
            if size is not None:  # others took all the room
                self._untold.add(event.caller, row, size)
            else:
                turn.answer(event.caller, recorded(row, b"", 0, repeated=True))
            return
        if request.kind is Kind.OPEN and head is not None:
            turn.answer(event.caller, name_taken(request.sender))
            return
        if head is not None and request.expect_tip not in (ANY_TIP, head.tip):
            self._submit_pinned(turn, event, queued, head)
            return
        self._admit(turn, event, queued, head)

    def needs_untold(self, needs: Needs) -> None:
        self._untold.needs_turn(needs)

    def tell_untold(self, turn: Turn) -> None:
        """Answer those for whom there was no room when they came."""
        for caller, row in self._untold.take(turn.loaded):
            turn.answer(caller, recorded(row, b"", 0, repeated=True))

    def on_gone(self, event: ClientGone) -> None:
        """Nobody waits for these outcomes any more."""
        self._untold.forget(event.session)

    def _refuse(self, queued: Queued, head: AccountHead | None) -> Refused | None:
        """What admission refuses, judged once (design R15): network, asset, signature."""
        request, network = queued.request, self._self.network
        if request.network != network:
            return Refused(
                "other_network",
                f"the request is for network {request.network.hex()[:16]}, this is {network.hex()[:16]}: choose it with --network",
            )
        if request.kind is Kind.OPEN:
            if self._self.genesis.asset(request.asset) is None:
                codes = ", ".join(a.code for a in self._self.genesis.assets)
                return Refused("unknown_asset", f"this network has no asset {request.asset}; it has: {codes}")
            key = request.public_key
        else:
            assert head is not None
            key = head.public_key
        if not self._is_signed(queued, key):
            return Refused(
                "bad_signature",
                f"the signature is not that of the key of {request.sender}: sign with the key that opened it",
            )
        return None

    def _submit_pinned(self, turn: Turn, event: ClientSubmit, queued: Queued, head: AccountHead) -> None:
        """The expected tip is not this replica's: older (stale), newer (this replica lags), or no link of the chain."""
        if turn.loaded.accounts_of.get(LinkHash(queued.request.expect_tip)) == head.name:
            turn.answer(event.caller, Stale(queued.request_id, head.tip, head.height))
            return
        why = f"the expected tip {queued.request.expect_tip.hex()} is no link of {head.name}, whose tip is {head.tip.hex()}"
        self._ask_then_submit(turn, event, head.name, head, why)

    def _ask_then_submit(
        self, turn: Turn, event: ClientSubmit, account: str, head: AccountHead | None, why: str
    ) -> None:
        """Before a client is told that something does not exist, a majority is asked for what this replica lacks."""
        request_id = SignedRequest(event.submit.raw, event.submit.signature).request_id
        until = event.until if event.until is not None else turn.now.mono + _timeout_s(event.submit.timeout_ms)
        if until <= turn.now.mono:
            reason = f"the chain of {account} grew faster than it could be read; send the request again"
            turn.answer(event.caller, NotStarted(request_id, "too_busy", reason))
            return
        session = event.caller.session
        own, all_ = self._asking[session], self._inquiries.count(Purpose.ADMISSION)
        if not leaves_enough(own + 1, all_ + 1, MAX_ASKERS[Purpose.ADMISSION]):
            reason = f"{own} requests of this connection, {all_} of all, wait here until others say whether their sender, or the tip that they expect, exists; send it again in a while, or to another node"
            turn.answer(event.caller, NotStarted(request_id, "busy", reason))
            return
        at = next_slot(self._self.network, account, head)
        self._asking[session] += 1

        def done(turn: Turn, state: SlotState) -> None:
            self._asking[session] -= 1
            if not self._asking[session]:
                del self._asking[session]
            if state is SlotState.TAKEN:
                turn.again.append(msgspec.structs.replace(event, until=until))
            elif state is SlotState.FREE:
                code = "unknown_sender" if head is None else "unknown_tip"
                turn.answer(event.caller, Refused(code, why))
            else:
                reason = f"no majority of the {len(self._self.view.group(route_key(at.slot)))} nodes that know {account} answered"
                turn.answer(event.caller, NotStarted(request_id, "no_majority", reason))

        self._inquiries.ask_slot(turn, at, birth_epoch(head), done, Purpose.ADMISSION)

    def _admit(self, turn: Turn, event: ClientSubmit, queued: Queued, head: AccountHead | None) -> None:
        job = self._jobs.get(queued.request_id)
        now = turn.now.mono
        waiting = (event.caller, now + _timeout_s(event.submit.timeout_ms))
        if job is not None and len(job.callers) < MAX_CALLERS:
            job.callers.append(waiting)
            self._due.by(waiting[1])
            return
        if job is not None:
            reason = f"{len(job.callers)} calls wait for this very request here: wait for one of them"
            turn.answer(event.caller, Unknown(queued.request_id, reason))
            return
        if self._disk.is_low:
            reason = (
                f"the disk of node {short(self._self.id)} has {self._disk.free // _MIB} MiB free, and below "
                f"{self._disk.reserve // _MIB} it takes no new requests: send it to another node, or again when its operator has "
                "made room"
            )
            turn.answer(event.caller, self._not_started(queued.request_id, "disk_low", reason))
            return
        account, size = queued.request.sender, len(queued.signed.raw)
        many = self._room.of(account).requests >= MAX_JOBS_OF_ONE
        if many or not self._room.fits(account, size, Taken(MAX_JOBS, MAX_JOB_BYTES)):
            reason = (
                f"too much waits at this node: {self._room.told(account)}; send it again in a while, or to another node"
            )
            turn.answer(event.caller, self._not_started(queued.request_id, "busy", reason))
            return
        if head is not None and not self._is_covered_or_has_room(turn, event, queued, head):
            return
        job = Job(queued, now + TRY_AGAIN_S, [waiting])
        self._due.by(min(job.next_try, waiting[1]))
        self._jobs[queued.request_id] = job
        self._by_account.setdefault(account, {})[queued.request_id] = job
        self._room.take(account, size)
        self._asked[account] += cost_of(queued.request)
        turn.again.append(RouteJobs(account))

    def _is_covered_or_has_room(self, turn: Turn, event: ClientSubmit, queued: Queued, head: AccountHead) -> bool:
        """Whether the money of its sender surely covers a request, with all that waits here, or there is room for one
        that costs nothing (ADR 38). If not, it comes again in the next turn, with the income that is here, and then its
        client is answered."""
        request, asked, cost = queued.request, self._asked[head.name], cost_of(queued.request)
        in_time = head.height < request.valid_until_height
        if head.issuer or (in_time and head.balance - asked >= cost):
            return True
        if self.uncovered.take(queued.request_id, head.name, len(queued.signed.raw), turn.now.mono):
            return True
        funds = turn.loaded.funds.get(head.name)
        if in_time and funds is None:
            turn.again.append(msgspec.structs.replace(event, with_funds=True))
            return False
        if in_time and funds is not None and funds - asked >= cost:
            return True
        why = f"it expired at height {request.valid_until_height}, and {head.name} has {head.height}"
        if in_time:
            why = (
                f"{head.name} has {funds} here in minor units, {asked} of it for what waits, and this counts as {cost}"
            )
        reason = f"{why}; {self.uncovered.told(head.name)}: send it again when it is covered, or in an hour"
        turn.answer(event.caller, self._not_started(queued.request_id, NOT_COVERED, reason))
        return False

    def _not_started(self, request_id: RequestId, code: str, reason: str) -> NotStarted | Unknown:
        """That nothing is done about a request now. One that was handed over on an earlier call may have an outcome
        yet."""
        if request_id in self._doubtful or request_id in self._jobs:
            return Unknown(request_id, reason)
        return NotStarted(request_id, code, reason)

    # --- the disk ---

    @property
    def disk_lacks(self) -> int:
        """Bytes of the disk that are to be free before new requests are taken; 0: they are."""
        return self._disk.reserve if self._disk.is_low else 0

    def on_disk(self, event: DiskSpace) -> None:
        """What requests make is never deleted, and a full disk ends a node: so it takes no more of them while it can
        still write. It votes, applies what others decide and answers reads as before."""
        self._disk = event

    # --- routing ---

    def needs_route(self, event: RouteJobs, needs: Needs) -> None:
        needs.heads.add(event.account)

    def on_route(self, turn: Turn, event: RouteJobs) -> None:
        """Hand over all jobs of an account that are due, to the owner of its tail as this replica knows it."""
        jobs = self._by_account.get(event.account)
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
            self._due.by(job.next_try)
            job.holder, job.held_since = to, now
        self._hand_to(turn, to, at, due, takeover=to != group[0])

    def _hand_to(self, turn: Turn, to: NodeId, at: SlotName, jobs: list[Job], *, takeover: bool) -> None:
        held = [Held(job.queued, self._self.id, turn.now.mono) for job in jobs]
        if to == self._self.id:
            self._owner.enqueue(turn, at.account, held)
            return
        for message in forwards(at, held, takeover=takeover):
            turn.hand_on(to, message)

    def on_moved(self, turn: Turn, peer: NodeId, message: Moved) -> None:
        """The owner knows more of the chain than this node: apply it, and route again. Links that must wait for others
        leave the tail here where it was: handing the requests over once more would only bring them back at once."""
        for raw in message.links:
            self._replica.learn(turn, self._decoder.untrusted(raw), peer, NOBODY)
        for job in self._by_account.get(message.account, {}).values():
            if job.sent_height == message.height:
                job.sent_height, job.holder = UNSENT, None
        if height_of(turn.loaded.heads.get(message.account)) >= message.height:
            turn.again.append(RouteJobs(message.account))

    def on_not_owner(self, turn: Turn, peer: NodeId, message: NotOwner) -> None:
        """The receiver leaves it to a rank before it: hand the requests to the first of the group it named."""
        ids = set(message.request_ids)
        jobs = [j for i, j in self._by_account.get(message.at.account, {}).items() if i in ids]
        if not message.group:
            raise RemoteFault("malformed", f"no group is named for link {message.at.height} of {message.at.account}")
        if jobs and message.epoch == self._self.view.epoch:
            self._hand_to(turn, message.group[0], message.at, jobs, takeover=False)

    def on_declined(self, turn: Turn, peer: NodeId, message: Declined) -> None:
        """A node dropped requests. When it was the only one that had them, the client may know."""
        for raw_id in message.request_ids:
            job = self._jobs.get(RequestId(raw_id))
            if job is not None and job.tries <= 1 and raw_id not in self._doubtful:
                self._end(turn, job, NotStarted(raw_id, message.code, message.reason))

    # --- the end of a job ---

    def on_applied(self, turn: Turn, link: Link, by: NodeId) -> None:
        jobs = self._by_account.get(link.account)
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
            request = job.queued.request
            if request.kind is Kind.OPEN:
                self._end(turn, job, name_taken(link.account), link)
            elif request.expect_tip not in (ANY_TIP, link.hash):
                self._end(turn, job, Stale(job.queued.request_id, link.hash, link.height), link)
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
        self._forget(turn, job, body)

    def _forget(self, turn: Turn, job: Job, body: ReplyBody) -> None:
        """It ended, with this answer."""
        request_id, account, size = job.queued.request_id, job.queued.request.sender, len(job.queued.signed.raw)
        del self._jobs[request_id]
        self._room.give_back(account, size)
        self._asked[account] -= cost_of(job.queued.request)
        if may_stay_unpaid(job.queued.request, body):
            if isinstance(body, Recorded):  # also one that seemed to be covered
                self.uncovered.take(request_id, account, size, turn.now.mono)
            self.uncovered.keep(request_id, turn.now.mono)
        else:
            self.uncovered.give_back(request_id)
        jobs = self._by_account[account]
        del jobs[request_id]
        if not jobs:
            del self._by_account[account], self._asked[account]

    # --- time ---

    def deadline(self) -> float | None:
        return float("-inf") if self._untold else self._due.at

    def tick(self, turn: Turn) -> None:
        """Answer those whose time is up; hand the others over again when whoever has them is dead, lags, or is silent
        too long."""
        self._signed.clear()
        now = turn.now.mono
        if not self._due.passed(now):
            return
        due: set[str] = set()
        for job in list(self._jobs.values()):
            if any(at <= now for _, at in job.callers):
                self._time_is_up(turn, job)
            if not job.callers:
                continue
            self._due.by(min(at for _, at in job.callers))
            if job.next_try <= now and self._may_hold(turn, job):
                job.next_try = now + TRY_AGAIN_S
            elif job.next_try <= now:
                due.add(job.queued.request.sender)
            if job.next_try > now:
                self._due.by(job.next_try)
        turn.again += [RouteJobs(account) for account in sorted(due)]

    def _may_hold(self, turn: Turn, job: Job) -> bool:
        """A second node that has the request makes its outcome harder to name, so it is not given one without need."""
        holder = job.holder
        patient = turn.now.mono < job.held_since + HOLDER_S
        return patient and holder is not None and self._peers.keeps_pace(holder, turn.now)

    def _time_is_up(self, turn: Turn, job: Job) -> None:
        request_id, now = job.queued.request_id, turn.now.mono
        body: NotStarted | Unknown = NotStarted(request_id, "no_owner", "no owner was reached in time; send it again")
        if job.tries or request_id in self._doubtful:
            reason = f"no outcome in time after {job.tries} hand-overs; ask `outcome`, or settle it with `cancel`"
            body = Unknown(request_id, reason)
        late = [caller for caller, at in job.callers if at <= now]
        job.callers = [(caller, at) for caller, at in job.callers if at > now]
        for caller in late:
            turn.answer(caller, body)
        if not job.callers:
            if isinstance(body, Unknown):
                self._doubtful.add(request_id)
            self._forget(turn, job, body)


def _timeout_s(timeout_ms: int) -> float:
    return min(max(timeout_ms, 1), MAX_TIMEOUT_MS) / 1000


def name_taken(name: str) -> Refused:
    return Refused("name_taken", f"the name {name} is taken, for ever: choose another one")


def recorded(row: OutcomeRow, by: bytes, hops: int, *, repeated: bool) -> Recorded:
    """The answer that an outcome row gives."""
    return Recorded(
        row.request_id,
        row.account,
        row.outcome,
        row.link_hash,
        row.height,
        row.balance,
        row.time_ms,
        by,
        hops,
        repeated,
    )

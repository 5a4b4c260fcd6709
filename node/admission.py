"""Admission: what becomes of a client's request when it comes in.

It judges what needs no link: form, network, sender, signature. What it refuses is recorded nowhere. A request that has
an outcome is answered from the record. Any other one becomes a job (`node.jobs`) when there is room for it; the gateway
hands it over.
"""

from collections import Counter
from typing import Final

import msgspec

from chain.errors import RemoteFault
from chain.link import LinkHash
from chain.needs import Needs
from chain.request import ANY_TIP, MANY_POSTINGS, DecodedRequest, Kind, RequestId, SignedRequest, is_signed_by
from chain.rows import AccountHead
from hopchain.wire import NOT_COVERED, NotStarted, Refused, Stale, Unknown
from node.answers import name_taken, recorded
from node.askers import MAX_ASKERS, Purpose
from node.decoded import RequestDecoder
from node.events import ClientGone, ClientSubmit, DiskSpace, RouteJobs
from node.inquiry import Inquiries
from node.jobs import Jobs
from node.owner import Owner
from node.replica import Replica
from node.room import leaves_enough
from node.slot_inquiry import SlotState
from node.slots import birth_epoch, next_slot
from node.turn import Self, Turn
from node.uncovered import cost_of
from node.untold import Untold
from routing.keyspace import route_key, short

MAX_TIMEOUT_MS: Final = 600_000
MAX_CALLERS: Final = 64  # of one request at once; who asks more often than that need not be told more often

_MIB: Final = 1024 * 1024


class Admission:
    """The requests of this node's clients, as they come in."""

    def __init__(
        self,
        self_: Self,
        requests: RequestDecoder,
        owner: Owner,
        replica: Replica,
        inquiries: Inquiries,
        jobs: Jobs,
    ) -> None:
        self._self = self_
        self._requests = requests
        self._owner = owner
        self._replica = replica
        self._inquiries = inquiries
        self._jobs = jobs
        self._asking: Counter[int] = Counter()  # by session: requests for which others are asked before admission
        self._disk = DiskSpace(0, 0)  # as it was told last
        self._untold = Untold()
        self._signed: dict[tuple[RequestId, bytes, bytes], bool] = {}  # (id, signature, key) as checked in this turn

    # --- requests come in ---

    def needs_submit(self, event: ClientSubmit, needs: Needs) -> None:
        try:
            decoded = self._requests.untrusted(event.submit.raw, event.submit.signature)
        except RemoteFault:
            return
        request = decoded.request
        needs.heads.add(request.sender)
        needs.told[request.sender, decoded.request_id] = None
        if event.with_funds:
            needs.funds.add(request.sender)
        if request.expect_tip != ANY_TIP:
            needs.accounts_of.add(LinkHash(request.expect_tip))
        known = self._replica.familiar.head(request.sender)
        if known is None or len(request.postings) >= MANY_POSTINGS:  # for much a second turn is cheap
            return
        if self._is_signed(decoded, known.public_key):  # strangers cannot have rows loaded that are not of their own
            self._owner.needs_queued(known.name, known.slot, [decoded], needs, few=True)

    def _is_signed(self, decoded: DecodedRequest, key: bytes) -> bool:
        """Checked once in a turn: for what is loaded, and when it is admitted."""
        what = (decoded.request_id, decoded.signed.signature, key)
        if what not in self._signed:
            self._signed[what] = is_signed_by(decoded.signed, key)
        return self._signed[what]

    def on_submit(self, turn: Turn, event: ClientSubmit) -> None:
        """Admit a request, answer it from the record, or refuse it."""
        try:
            decoded = self._requests.untrusted(event.submit.raw, event.submit.signature)
        except RemoteFault as fault:
            turn.answer(event.caller, Refused(fault.code, fault.text))
            return
        signed, request = decoded.signed, decoded.request
        head = turn.loaded.heads.get(request.sender)
        if not self._self.is_member:
            reason = f"node {short(self._self.id)} is no member of epoch {self._self.view.epoch}: it only reads; send it to one"
            turn.answer(event.caller, self._not_started(signed.request_id, "not_member", reason))
            return
        if head is None and request.kind is not Kind.OPEN and request.network == self._self.network:
            self._ask_then_submit(turn, event, request.sender, None, f"no account {request.sender} exists; open it")
            return
        refusal = self._refuse(decoded, head)
        if refusal is not None:
            turn.answer(event.caller, refusal)
            return
        row = turn.loaded.outcomes.get((request.sender, decoded.request_id))
        if row is not None:
            size = turn.loaded.untold.get((request.sender, decoded.request_id))
            if size is not None:  # others took all the room
                self._untold.add(event.caller, row, size)
            else:
                turn.answer(event.caller, recorded(row, b"", 0, repeated=True))
            return
        if request.kind is Kind.OPEN and head is not None:
            turn.answer(event.caller, name_taken(request.sender))
            return
        if head is not None and request.expect_tip not in (ANY_TIP, head.tip):
            self._submit_pinned(turn, event, decoded, head)
            return
        self._admit(turn, event, decoded, head)

    def needs_untold(self, needs: Needs) -> None:
        self._untold.needs_turn(needs)

    def tell_untold(self, turn: Turn) -> None:
        """Answer those for whom there was no room when they came."""
        for caller, row in self._untold.take(turn.loaded):
            turn.answer(caller, recorded(row, b"", 0, repeated=True))

    def on_gone(self, event: ClientGone) -> None:
        """Nobody waits for these outcomes any more."""
        self._untold.forget(event.session)

    def _refuse(self, decoded: DecodedRequest, head: AccountHead | None) -> Refused | None:
        """What admission refuses, judged once (design R15): network, asset, signature."""
        request, network = decoded.request, self._self.network
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
        if not self._is_signed(decoded, key):
            return Refused(
                "bad_signature",
                f"the signature is not that of the key of {request.sender}: sign with the key that opened it",
            )
        return None

    def _submit_pinned(self, turn: Turn, event: ClientSubmit, decoded: DecodedRequest, head: AccountHead) -> None:
        """The expected tip is not this replica's: older (stale), newer (this replica lags), or no link of the chain."""
        if turn.loaded.accounts_of.get(LinkHash(decoded.request.expect_tip)) == head.name:
            turn.answer(event.caller, Stale(decoded.request_id, head.tip, head.height))
            return
        why = f"the expected tip {decoded.request.expect_tip.hex()} is no link of {head.name}, whose tip is {head.tip.hex()}"
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

    def _admit(self, turn: Turn, event: ClientSubmit, decoded: DecodedRequest, head: AccountHead | None) -> None:
        job = self._jobs.get(decoded.request_id)
        now = turn.now.mono
        until = now + _timeout_s(event.submit.timeout_ms)
        if job is not None and len(job.callers) < MAX_CALLERS:
            self._jobs.join(job, event.caller, until)
            return
        if job is not None:
            reason = f"{len(job.callers)} calls wait for this very request here: wait for one of them"
            turn.answer(event.caller, Unknown(decoded.request_id, reason))
            return
        if self._disk.is_low:
            reason = (
                f"the disk of node {short(self._self.id)} has {self._disk.free // _MIB} MiB free, and below "
                f"{self._disk.reserve // _MIB} it takes no new requests: send it to another node, or again when its operator has "
                "made room"
            )
            turn.answer(event.caller, self._not_started(decoded.request_id, "disk_low", reason))
            return
        account = decoded.request.sender
        if full := self._jobs.no_room(account, len(decoded.signed.raw)):
            reason = f"{full}; send it again in a while, or to another node"
            turn.answer(event.caller, self._not_started(decoded.request_id, "busy", reason))
            return
        if head is not None and not self._is_covered_or_has_room(turn, event, decoded, head):
            return
        self._jobs.begin(decoded, event.caller, until, now)
        turn.again.append(RouteJobs(account))

    def _is_covered_or_has_room(
        self, turn: Turn, event: ClientSubmit, decoded: DecodedRequest, head: AccountHead
    ) -> bool:
        """Whether the money of its sender surely covers a request, with all that waits here, or there is room for one
        that costs nothing (ADR 38). If not, it comes again in the next turn, with the income that is here, and then its
        client is answered."""
        request, asked, cost = decoded.request, self._jobs.cost(head.name), cost_of(decoded.request)
        in_time = head.height < request.valid_until_height
        if head.issuer or (in_time and head.balance - asked >= cost):
            return True
        if self._jobs.uncovered.take(decoded.request_id, head.name, len(decoded.signed.raw), turn.now.mono):
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
        reason = f"{why}; {self._jobs.uncovered.told(head.name)}: send it again when it is covered, or in an hour"
        turn.answer(event.caller, self._not_started(decoded.request_id, NOT_COVERED, reason))
        return False

    def _not_started(self, request_id: RequestId, code: str, reason: str) -> NotStarted | Unknown:
        """That nothing is done about a request now. One that was handed over on an earlier call may have an outcome
        yet."""
        if self._jobs.may_execute(request_id):
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

    # --- time ---

    def deadline(self) -> float | None:
        return float("-inf") if self._untold else None

    def tick(self, turn: Turn) -> None:
        """What was checked counts for one turn."""
        self._signed.clear()


def _timeout_s(timeout_ms: int) -> float:
    return min(max(timeout_ms, 1), MAX_TIMEOUT_MS) / 1000

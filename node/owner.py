"""Owner: the queue of an account, and the making of its next link.

* R3  the owner of a slot born in this epoch proposes at round 0 without phase 1; everybody else runs phase 1.
* R4  the own vote is persisted in the turn that first sends the value, before it is sent.
* R11 only on a decided parent: a link is formed on the head that is applied here.
* A value that phase 1 finds is finished before anything else.

**The queue follows the tail.** Requests that arrive while a slot is being decided wait; when its link is applied,
whoever holds requests that are not in it hands all of them to the owner of the new tail.

**Takeover.** A standby waits 3 RTT for every rank before it that lives and does not lag, then runs phase 1. Refusals
carry the promised ballot; the next try goes above it after a random back-off of some RTT, which each refusal in the
slot doubles. Whoever lags itself and lacks the parent leaves requests to another rank, and nodes that see this
differently send no request in circles (`_leave`).

A `Work` (`node.works`) is one account with something to decide here:

    waiting for its time -> (preparing ->) forming (-> asking -> forming) -> proposing -> decided, applied, gone
"""

from collections import Counter
from collections.abc import Iterable
from typing import Final

import msgspec

from chain.errors import RemoteFault
from chain.link import Link, Slot
from chain.needs import Needs
from chain.request import ANY_TIP, Kind, RequestId
from chain.rows import AccountHead
from chain.rules import Formed, Queued, form_link
from node.acceptor import Acceptor
from node.asking import Asked, ask
from node.decoded import LinkDecoder, RequestDecoder
from node.events import FormLink, ServeSlot
from node.identity import Identity
from node.inquiry import Inquiries
from node.messages import Accept, Accepted, Declined, Forward, Item, NotOwner, Prepare, Promise, Refuse, SlotName
from node.paxos import MAX_ROUND, Ballot, Proposer, Refusal, check_ballot_untrusted
from node.peers import Peers
from node.queue import NO_GATEWAY, Held, LookedUp, forwards
from node.replica import Replica
from node.slots import birth_epoch, check_vote_untrusted, height_of, is_fast, next_slot
from node.turn import Self, Turn, handling_s
from node.works import Work, Works
from routing.keyspace import NodeId, route_key
from routing.regions import Ranges

MAX_CHASED: Final = 20_000  # requests that came too late lately; forgetting one costs a message
TAKEOVER_RTTS: Final = 3
MAX_TAKEOVER_RTT_S: Final = 1.0  # what was measured while the network was clogged holds nobody up after it
RESEND_RTTS: Final = 4  # silence for longer than this sends the same ballot again
BACKOFF_S: Final = 0.02
LOOK_AGAIN_S: Final = 0.5  # at what may not be decided here yet; what changes that is seen at once
MAX_BACKOFF_S: Final = 2.0
VOTES_S: Final = 1.0  # who voted so lately votes on what it was asked now, too


class Owner:
    """All accounts that this node has something to decide for."""

    def __init__(
        self,
        self_: Self,
        decoder: LinkDecoder,
        requests: RequestDecoder,
        identity: Identity,
        peers: Peers,
        acceptor: Acceptor,
        replica: Replica,
        inquiries: Inquiries,
    ) -> None:
        self._self = self_
        self._decoder = decoder
        self._requests = requests
        self._identity = identity
        self._peers = peers
        self._acceptor = acceptor
        self._replica = replica
        self._inquiries = inquiries
        self._works = Works()
        self._chased: dict[RequestId, int] = {}  # request -> height of the tip behind which it was sent last
        self._looked_up: dict[str, LookedUp] = {}  # by account, in this turn
        self._voted_at: dict[NodeId, float] = {}  # when each member last voted for what this node proposed
        self._heard: Counter[bytes] = Counter()  # votes for each slot, in this turn
        self._look_at = float("-inf")  # one time for all that is put off: each is no turn of its own
        self._stopped_by: tuple[bool, Ranges] | None = None  # whether it voted, and where, when something was put off

    @property
    def queued(self) -> int:
        """Requests that wait here for a link, of all accounts."""
        return self._works.room.all.requests

    # --- requests come in ---

    def needs_forward(self, message: Forward, needs: Needs) -> None:
        """What judges them, and what forms their link."""
        account = message.at.account
        queued = [self._queued(item, account) for item in message.items]
        needs.heads.add(account)
        needs.outcomes.update((account, q.request_id) for q in queued)
        self.needs_queued(account, message.at.slot, queued, needs)

    def needs_queued(self, account: str, slot: bytes, queued: list[Queued], needs: Needs, *, few: bool = False) -> None:
        """What forms the link in `slot` with these requests, when this node makes it and nothing is being decided
        there. `few`: only if that is not much."""
        work = self._works.get(account)
        idle = work is None or (work.idle and not work.put_off)
        if idle and self._self.id == self._self.view.group(route_key(slot))[0]:
            waiting: list[Queued] = []
            if work is not None and account not in self._looked_up:  # once in a turn, however many requests it brings
                waiting = [held.queued for held in work.queue.values()]
            self._needs_forming(account, [*waiting, *queued], needs, few=few)

    def on_forward(self, turn: Turn, peer: NodeId, message: Forward) -> None:
        """Requests of a gateway, or of the owner before this one."""
        at = message.at
        head = turn.loaded.heads.get(at.account)
        if height_of(head) < at.height - 1:
            if not self._leave(turn, message):
                self._replica.lacking.wait_for_parent(turn, peer, message)
            return
        if head is not None and head.height >= at.height:
            self._chase(turn, peer, message, head)
            return
        group = self._self.view.group(route_key(at.slot))
        before = [n for n in group[: _rank(group, self._self.id)] if self._peers.keeps_pace(n, turn.now)]
        if self._self.id not in group or (before and not message.takeover):
            ids = tuple(self._queued(i, at.account).request_id for i in message.items if i.gateway != NO_GATEWAY)
            if ids:  # who made a copy holds the request itself, and need not be told
                turn.send(peer, NotOwner(at, ids, self._self.view.epoch, group))
            return
        if before:  # the sender cannot reach them, this node can: the owner gets the requests after all
            message = msgspec.structs.replace(message, items=_copies(message.items), takeover=False)
            turn.send(before[0], message)
        held = [self._held(item, at.account, turn.now.mono) for item in message.items]
        self.enqueue(turn, at.account, held, wait_s=self._takeover_wait(before))

    def _leave(self, turn: Turn, message: Forward) -> bool:
        """Leave requests whose parent is not here to a rank that keeps pace, when this node lags: it may lack the
        parent for long.

        No request runs in circles, whatever each node thinks of the others. What is left to others says `takeover`:
        whoever gets it keeps it, and at most sends a copy to a rank before it that it thinks more of. A copy is neither
        left to others nor answered with `NotOwner`: who made it holds the request, too. A `NotOwner` to anything else
        sends its requests to the first rank, which answers nothing of its view with another. All else that sends
        requests on (`_chase`, `_hand_over`) does it behind a decided link, for the slot after it. So on the way of a
        request (height of its slot, `takeover`) does not fall, and where it stays the same the way ends with the first
        rank."""
        group = self._self.view.group(route_key(message.at.slot))
        copies = any(item.gateway == NO_GATEWAY for item in message.items)
        if message.takeover or copies or self._self.id not in group or not self._peers.lags(self._self.id):
            return False
        to = self._peers.ranks(group, turn.now)[0]
        if to == self._self.id or self._peers.lags(to):
            return False
        self._self.counters["forwards_left"] += 1
        turn.hand_on(to, msgspec.structs.replace(message, takeover=True))
        return True

    def _chase(self, turn: Turn, peer: NodeId, message: Forward, head: AccountHead) -> None:
        """The slot is decided already. What may still execute follows the tail from here, for it is faster than the way
        back to its gateway; what is recorded or pinned to the old tip ends at the gateway, once it has the links."""
        self._self.counters["forwards_chased"] += 1
        account = message.at.account
        open_: list[Held] = []
        ended: list[Held] = []
        for item in message.items:
            held = self._held(item, account, turn.now.mono)
            pinned = held.queued.request.expect_tip not in (ANY_TIP, head.tip)
            over = pinned or (account, held.queued.request_id) in turn.loaded.outcomes
            if over or held.queued.request.kind is Kind.OPEN:
                ended.append(held)
            elif self._chased.get(held.queued.request_id, -1) < head.height:
                # once for each tail: copies must not multiply
                self._remember_chase(held.queued.request_id, head.height)
                open_.append(held)
        if ended:
            turn.again.append(ServeSlot(peer, message.at, moved=True))
        if not open_:
            return
        at = next_slot(self._self.network, account, head)
        to, is_owner = self._first_rank(turn, at)
        if to == self._self.id:
            self.enqueue(turn, account, open_)
        else:
            for forward in forwards(at, open_, takeover=not is_owner):
                turn.hand_on(to, forward)

    def _remember_chase(self, request_id: RequestId, height: int) -> None:
        self._chased.pop(request_id, None)
        while len(self._chased) >= MAX_CHASED:
            del self._chased[next(iter(self._chased))]
        self._chased[request_id] = height

    def enqueue(self, turn: Turn, account: str, held: Iterable[Held], *, wait_s: float = 0.0) -> None:
        """Take requests of `account`, whose slot this node is in the group of, after `wait_s`."""
        work = self._works.begin(account, turn.now.mono + wait_s)
        declined = [item for item in held if not self._works.put_in(work, item)]
        if declined:
            reason = f"too much waits at the node that makes its link: {self._works.room.told(account)}; send it again in a while"
            self._decline(turn, account, declined, "busy", reason)
        if work.idle and wait_s == 0.0:
            self._works.wake(work, turn.now.mono)
            turn.again.append(FormLink(account))

    def finish(self, turn: Turn, at: SlotName) -> None:
        """A vote in this slot is stuck: decide it, whatever was voted for."""
        self._self.counters["votes_stuck"] += 1
        work = self._works.begin(at.account, turn.now.mono)
        if work.proposer is None:
            work.finish = True
            if work.refusals == 0:  # else it goes on when it has waited
                turn.again.append(FormLink(at.account))

    def _takeover_wait(self, before: list[NodeId]) -> float:
        if not before:
            return 0.0
        rtt = min(self._peers.rtt(before), MAX_TAKEOVER_RTT_S)
        return TAKEOVER_RTTS * rtt * (len(before) + self._self.rng.random())

    # --- forming ---

    def needs_form(self, event: FormLink, needs: Needs) -> None:
        work = self._works.get(event.account)
        if work is not None and not work.put_off:
            self._needs_forming(event.account, (held.queued for held in work.queue.values()), needs)

    def _needs_forming(self, account: str, queue: Iterable[Queued], needs: Needs, *, few: bool = False) -> None:
        """Look up as much of the queue as one link can hold, in one turn. What is left out waits for a later one."""
        if few:
            needs.forming_few.add(account)
        else:
            needs.forming.add(account)
            self._inquiries.needs_income(account, needs)
        needs.heads.add(account)
        looked_up = self._looked_up.setdefault(account, LookedUp())
        for queued in queue:
            if not looked_up.add(queued):
                return
            needs.outcomes.add((account, queued.request_id))
            if queued.request.kind is Kind.CANCEL:
                needs.outcomes.add((account, queued.request.target))
            needs.assets |= self._replica.familiar.strangers(queued.request.recipients)

    def on_form(self, turn: Turn, event: FormLink) -> None:
        """Begin, or go on with, the next link of an account."""
        work = self._works.get(event.account)
        if work is None or work.asking or (work.proposer is not None and not work.may_propose):
            return
        work.put_off = False
        if not self._identity.verified or (work.barred is not None and not self._may_work_on(*work.barred)):
            self._put_off(turn, work)  # design R12, R7: the queue waits, and so does whatever was voted for
            return
        if event.account not in turn.loaded.forming:
            # The work began after the rows of this turn were loaded, or a link of this turn has made them old.
            turn.again.append(event)
            return
        head = turn.loaded.heads.get(event.account)
        at = next_slot(self._self.network, event.account, head)
        group = self._self.view.group(route_key(at.slot))
        if self._self.id not in group:
            self._hand_over(turn, work, at)
            return
        work.barred = None
        if not self._may_work_on(at, birth_epoch(head)):
            work.barred = at, birth_epoch(head)
            self._put_off(turn, work)
            return
        if work.proposer is None:
            self._drop_settled(turn, work)
            if not work.queue and not (work.finish and self._acceptor.is_voted(Slot(at.slot))):
                self._works.end(work)
                return
            self._start_ballot(turn, work, at, head, group)
        if work.may_propose:
            self._form(turn, work)

    def _put_off(self, turn: Turn, work: Work) -> None:
        """It may not be decided here yet: no row of it is loaded until it may. What changes that is seen in the turn
        that brings it."""
        if self._stopped_by is None:
            self._stopped_by = self._identity.verified, self._self.active
        if self._look_at <= turn.now.mono:
            self._look_at = turn.now.mono + LOOK_AGAIN_S
        work.put_off = True
        self._works.wake(work, self._look_at)

    def _look_at_put_off(self, turn: Turn) -> None:
        """At the end of a turn in which this node was verified, or became ACTIVE somewhere."""
        if self._stopped_by is None or self._stopped_by == (self._identity.verified, self._self.active):
            return
        self._stopped_by = None
        for work in self._works:
            if work.put_off:
                self._works.wake(work, turn.now.mono)

    def _may_work_on(self, at: SlotName, born: int) -> bool:
        """R7: only where this node is ACTIVE. R2, R3: a slot that was born in a later epoch than this node has
        installed, or has a merged vote of one, waits for that epoch's view."""
        vote = self._acceptor.vote(Slot(at.slot))
        newest = max(born, vote.promised.epoch if vote is not None else born)
        return newest <= self._self.view.epoch and self._self.is_active(route_key(at.slot))

    def on_view(self, turn: Turn) -> None:
        """Another view is installed: ballots of the epoch before are over, the queues go to whose they are now."""
        for work in self._works:
            work.finish = work.finish or work.proposer is not None
            self._works.end_ballot(work)
            work.refusals, work.lowest_round = 0, 1
            work.barred = None
            self._works.wake(work, turn.now.mono)
            if not work.asking:
                turn.again.append(FormLink(work.account))

    def _start_ballot(
        self, turn: Turn, work: Work, at: SlotName, head: AccountHead | None, group: tuple[NodeId, ...]
    ) -> None:
        """R3: round 0 for the owner that has not voted yet; else a round above all it knows, with phase 1."""
        vote = self._acceptor.vote(Slot(at.slot))
        epoch = self._self.view.epoch
        if vote is None and work.lowest_round == 1 and is_fast(at, self._self.id, head, group, epoch):
            ballot = Ballot(epoch, 0, self._self.id)
        else:
            above = vote.promised.round + 1 if vote is not None and vote.promised.epoch == epoch else 1
            ballot = Ballot(epoch, max(above, work.lowest_round), self._self.id)
        proposer: Proposer[Link] = Proposer(ballot, group)
        self._works.begin_ballot(work, at, proposer)
        work.attempt = 0
        work.finish = False
        if ballot.round > 0:
            self._self.counters["ballots_with_phase_1"] += 1
            promise = self._acceptor.promise(turn, at, ballot)
            assert not isinstance(promise, Refusal), (ballot, promise)
            proposer.on_promise(self._self.id, ballot, promise.accepted, promise.value)
            self._send_silent(turn, work)

    def _form(self, turn: Turn, work: Work) -> None:
        assert work.proposer is not None
        if work.proposer.found is not None:
            self._propose(turn, work, work.proposer.found)
            return
        loaded = turn.loaded
        forming = loaded.forming[work.account]
        loaded.postings.update((i.posting.hash, i.posting) for i in forming.incoming)
        looked_up = self._looked_up[work.account].ids
        asked = work.asked
        queue = [
            held.queued
            for request_id, held in work.queue.items()
            if request_id in looked_up and (asked is None or held.since <= asked.since)
        ]
        formed = form_link(
            self._self.network,
            forming,
            queue,
            self._replica.familiar.assets,
            {request_id for account, request_id in loaded.outcomes if account == work.account},
            epoch=self._self.view.epoch,
            now_ms=turn.now.unix_ms,
            absent=asked.absent if asked is not None else (),
            income_complete=asked is not None and asked.complete,
            issuer_limit=self._issuer_limit(forming.head),
        )
        if formed.unjudged and self._ask(turn, work, formed):
            return
        self._works.take_out(work, (*formed.settled, *formed.stale))
        reason = "whether the money or the recipient exists could not be asked of enough nodes in time"
        self._decline(turn, work.account, self._works.take_out(work, formed.unjudged), "not_askable", reason)
        if formed.link is not None:
            self._propose(turn, work, formed.link)
        else:
            self._works.end_ballot(work)
            work.asked = None
            if work.queue:
                turn.again.append(FormLink(work.account))
            else:
                self._works.end(work)

    def _ask(self, turn: Turn, work: Work, formed: Formed) -> bool:
        """Ask the network for the facts that `formed` lacks; then form again. False when there is nothing to wait
        for."""
        asked = work.asked = work.asked or Asked(turn.now.mono)

        def on_end(turn: Turn) -> None:
            self._works.due.by(work.wake_at)
            if work.asked is asked and self._works.get(work.account) is work:
                turn.again.append(FormLink(work.account))

        return ask(turn, asked, formed, work.account, self._self.network, self._inquiries, on_end)

    def _issuer_limit(self, head: AccountHead | None) -> int:
        return self._self.genesis.issuer_limit(head.asset) if head is not None else 0

    def _drop_settled(self, turn: Turn, work: Work) -> None:
        recorded = [h.queued for i, h in work.queue.items() if (work.account, i) in turn.loaded.outcomes]
        self._works.take_out(work, recorded)

    # --- proposing ---

    def _propose(self, turn: Turn, work: Work, link: Link) -> None:
        proposer, at = work.proposer, work.at
        assert proposer is not None
        assert at is not None
        assert (link.prev_hash, link.account, link.height) == (at.slot, at.account, at.height), (link.hash, at)
        voted = self._acceptor.vote_for(turn, at, proposer.ballot, link)
        if isinstance(voted, Refusal):  # this node promised a higher ballot to somebody else meanwhile
            self._back_off(turn, work, voted.promised)
            return
        proposer.propose(link)
        work.attempt = 0
        self._send_silent(turn, work)
        if proposer.on_accepted(self._self.id, proposer.ballot):
            self._decided(turn, work, link)

    def _send_silent(self, turn: Turn, work: Work) -> None:
        """(Re-)send the current phase to those who have not answered it."""
        proposer, at = work.proposer, work.at
        assert proposer is not None
        assert at is not None
        message: Prepare | Accept = Prepare(at, proposer.ballot)
        size_s = 0.0
        if proposer.value is not None:
            message = Accept(at, proposer.ballot, proposer.value.raw)
            size_s = handling_s(proposer.value) * (1 << min(work.attempt, 1))
        for node in proposer.silent():
            if node != self._self.id:
                turn.send(node, message)
        pause = RESEND_RTTS * self._peers.rtt(proposer.group) * (1 << min(work.attempt, 6))
        self._works.wake(work, turn.now.mono + min(MAX_BACKOFF_S, pause) + size_s)

    def needs_accepted(self, message: Accepted, needs: Needs) -> None:
        """What the vote may decide, and what forms the link after it when this node makes that one, too."""
        work = self._works.deciding(message.slot)
        link = work.proposer.value if work is not None and work.proposer is not None else None
        if work is None or link is None:
            return
        self._replica.needs_link(link, needs)
        self._heard[message.slot] += 1
        assert work.proposer is not None
        if self._heard[message.slot] != work.proposer.lacking:
            return  # another vote decides
        settled = {entry.request_id for entry in link.entries}
        waiting = [held.queued for request_id, held in work.queue.items() if request_id not in settled]
        if waiting and self._self.id == self._self.view.group(route_key(link.next_slot))[0]:
            self._needs_forming(link.account, waiting, needs)

    def needs_promise(self, message: Promise, needs: Needs) -> None:
        """What a vote that it tells of is checked against."""
        if message.link is not None:
            self._acceptor.needs_check(self._decoder.untrusted(message.link), needs)

    def on_promise(self, turn: Turn, peer: NodeId, message: Promise) -> None:
        work = self._works.deciding(message.slot)
        if work is None or work.proposer is None:
            return
        if (message.accepted is None) != (message.link is None):
            raise RemoteFault("malformed", f"a promise for {message.slot.hex()[:16]} with only one of ballot and link")
        link = self._decoder.untrusted(message.link) if message.link is not None else None
        if link is not None and work.at is not None:
            check_vote_untrusted(work.at, link, self._self.network)
            if not self._acceptor.follows(turn, peer, link):
                return  # as if it was lost: a majority without it may decide what can be applied
        if work.proposer.on_promise(peer, message.ballot, message.accepted, link):
            turn.again.append(FormLink(work.account))

    def on_accepted(self, turn: Turn, peer: NodeId, message: Accepted) -> None:
        self._voted_at[peer] = turn.now.mono
        work = self._works.deciding(message.slot)
        if work is None or work.proposer is None:
            return
        link = work.proposer.value
        if link is not None and work.proposer.on_accepted(peer, message.ballot):
            self._decided(turn, work, link)

    def on_refuse(self, turn: Turn, peer: NodeId, message: Refuse) -> None:
        work = self._works.deciding(message.slot)
        if work is not None and work.proposer is not None and message.ballot == work.proposer.ballot:
            check_ballot_untrusted(message.promised, last=MAX_ROUND - 1)  # the next one is this node's own
            self._back_off(turn, work, message.promised)

    def _back_off(self, turn: Turn, work: Work, promised: Ballot) -> None:
        """Somebody promised a higher ballot: try above it, later. Each refusal in this slot doubles the pause, also
        when the ballot had its promises: of those who try, one must be left alone for the two round trips that a ballot
        takes."""
        assert work.proposer is not None
        self._self.counters["ballots_refused"] += 1
        work.refusals += 1
        pause = max(BACKOFF_S, self._peers.rtt(work.proposer.group)) * (1 << min(work.refusals, 7))
        self._works.end_ballot(work)
        work.lowest_round = max(work.lowest_round, promised.round) + 1
        work.finish = True
        self._works.wake(work, turn.now.mono + min(MAX_BACKOFF_S, pause) * (0.5 + self._self.rng.random()))

    def _decided(self, turn: Turn, work: Work, link: Link) -> None:
        assert work.proposer is not None
        lately = turn.now.mono - VOTES_S
        silent = {node for node in work.proposer.silent() if self._voted_at.get(node, lately) <= lately}
        voters = set(work.proposer.group) - silent  # whose votes are here, or on their way: they were asked before
        self._works.end_ballot(work)
        self._replica.announce(turn, link, voters)

    # --- decided ---

    def on_applied(self, turn: Turn, link: Link, by: NodeId) -> None:
        """The slot is filled: what is left of the queue goes to the owner of the new tail."""
        work = self._works.get(link.account)
        if work is None:
            return
        self._works.end_ballot(work)
        for request_id, _ in link.outcomes():
            self._works.pull_out(work, request_id)
        work.refusals, work.lowest_round, work.finish = 0, 1, False
        work.asked = work.barred = None
        if not work.queue:
            self._works.end(work)
            return
        self._hand_over(turn, work, SlotName(link.next_slot, link.account, link.height + 1))

    def _hand_over(self, turn: Turn, work: Work, at: SlotName) -> None:
        """Send the queue to the first of the slot's group who lives and does not lag, or keep it when that is this
        node."""
        to, is_owner = self._first_rank(turn, at)
        if to == self._self.id:
            turn.again.append(FormLink(work.account))
            return
        for forward in forwards(at, work.queue.values(), takeover=not is_owner):
            turn.hand_on(to, forward)
        self._works.end(work)

    def _first_rank(self, turn: Turn, at: SlotName) -> tuple[NodeId, bool]:
        """Who of the slot's group is to make its link, and whether that is its owner."""
        group = self._self.view.group(route_key(at.slot))
        to = self._peers.ranks(group, turn.now)[0]
        return to, to == group[0]

    # --- book-keeping ---

    def _queued(self, item: Item, account: str) -> Queued:
        """The request of an item; `RemoteFault` when it is none, or one of another account (no link could hold it)."""
        queued = self._requests.untrusted(item.raw, item.signature)
        if queued.request.sender != account:
            raise RemoteFault("malformed", f"a request of {queued.request.sender} is handed over for {account}")
        return queued

    def _held(self, item: Item, account: str, now: float) -> Held:
        return Held(self._queued(item, account), NodeId(item.gateway), now)

    def _decline(self, turn: Turn, account: str, held: list[Held], code: str, reason: str) -> None:
        by_gateway: dict[NodeId, list[RequestId]] = {}
        for item in held:
            if item.gateway == NO_GATEWAY:
                continue
            by_gateway.setdefault(item.gateway, []).append(item.queued.request_id)
        for gateway, ids in by_gateway.items():
            turn.send(gateway, Declined(account, tuple(ids), code, reason))

    # --- time ---

    def on_up(self, turn: Turn, peer: NodeId) -> None:
        """A connection stands again: what was on its way through the last one is lost, and is sent again at once."""
        for work in self._works:
            if work.proposer is not None and not work.may_propose and peer in work.proposer.silent():
                work.attempt = 0  # and again after little: who has just started may not vote yet (R12)
                self._send_silent(turn, work)

    def deadline(self) -> float | None:
        return self._works.due.at

    def tick(self, turn: Turn) -> None:
        """Begin what waited for its time; send again what was not answered."""
        self._looked_up.clear()
        self._heard.clear()
        self._look_at_put_off(turn)
        if not self._works.due.passed(turn.now.mono):
            return
        for work in list(self._works):
            if work.asking:
                continue
            if work.wake_at > turn.now.mono:
                self._works.due.by(work.wake_at)
                continue
            if work.proposer is None or work.may_propose:
                self._works.wake(work, turn.now.mono + MAX_BACKOFF_S)
                turn.again.append(FormLink(work.account))
            else:
                work.attempt += 1
                self._self.counters["ballots_sent_again"] += 1
                self._send_silent(turn, work)


def _copies(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """The same requests for two holders, of whom neither speaks for the other."""
    return tuple(msgspec.structs.replace(item, gateway=NO_GATEWAY) for item in items)


def _rank(group: tuple[NodeId, ...], node: NodeId) -> int:
    return group.index(node) if node in group else len(group)

"""Owner: the queue of an account, and the making of its next link.

* R11 only on a decided parent: a link is formed on the head that is applied here.
* R7, R12: only where this node is ACTIVE, and once others have vouched for it; until then the queue waits.

**The queue follows the tail.** Requests that arrive while a slot is being decided wait; when its link is applied,
whoever holds requests that are not in it hands all of them to the owner of the new tail.

A `Work` (`node.works`) is one account with something to decide here:

    waiting for its time -> (preparing ->) forming (-> asking -> forming) -> proposing -> decided, applied, gone

Preparing and proposing: `node.proposing`. Requests of other nodes come through `node.forwarding`, those of this node's
clients through `node.gateway`.
"""

from collections.abc import Iterable
from typing import Final

from chain.link import Link, Slot
from chain.needs import Needs
from chain.request import DecodedRequest, Kind
from chain.rows import AccountHead
from chain.rules import Formed, form_link
from node.acceptor import Acceptor
from node.asking import Asked, ask
from node.events import FormLink
from node.identity import Identity
from node.inquiry import Inquiries
from node.messages import Accepted, Declined, SlotName
from node.peers import Peers
from node.proposing import MAX_BACKOFF_S, Proposing
from node.queue import NO_GATEWAY, LookedUp, QueuedRequest, forwards
from node.replica import Replica
from node.slots import birth_epoch, next_slot
from node.turn import Self, Turn
from node.works import Work, Works
from routing.keyspace import NodeId, route_key
from routing.regions import Ranges

LOOK_AGAIN_S: Final = 0.5  # at what may not be decided here yet; what changes that is seen at once


class Owner:
    """All accounts that this node has something to decide for."""

    def __init__(
        self,
        self_: Self,
        identity: Identity,
        peers: Peers,
        acceptor: Acceptor,
        replica: Replica,
        inquiries: Inquiries,
        works: Works,
        proposing: Proposing,
    ) -> None:
        self._self = self_
        self._identity = identity
        self._peers = peers
        self._acceptor = acceptor
        self._replica = replica
        self._inquiries = inquiries
        self._works = works
        self._proposing = proposing
        self._looked_up: dict[str, LookedUp] = {}  # by account, in this turn
        self._look_at = float("-inf")  # one time for all that is put off: each is no turn of its own
        self._stopped_by: tuple[bool, Ranges] | None = None  # whether it voted, and where, when something was put off

    @property
    def queued(self) -> int:
        """Requests that wait here for a link, of all accounts."""
        return self._works.room.all.requests

    # --- requests come in ---

    def needs_queued(
        self, account: str, slot: bytes, decoded: list[DecodedRequest], needs: Needs, *, few: bool = False
    ) -> None:
        """What forms the link in `slot` with these requests, when this node makes it and nothing is being decided
        there. `few`: only if that is not much."""
        work = self._works.get(account)
        idle = work is None or (work.idle and not work.put_off)
        if idle and self._self.id == self._self.view.group(route_key(slot))[0]:
            waiting: list[DecodedRequest] = []
            if work is not None and account not in self._looked_up:  # once in a turn, however many requests it brings
                waiting = [queued.decoded for queued in work.queue.values()]
            self._needs_forming(account, [*waiting, *decoded], needs, few=few)

    def enqueue(self, turn: Turn, at: SlotName, queued: Iterable[QueuedRequest], *, wait_s: float = 0.0) -> None:
        """Take requests for this slot, whose group this node is in, after `wait_s`."""
        account = at.account
        work = self._works.begin(account, turn.now.mono + wait_s)
        declined = [item for item in queued if not self._works.put_in(work, item)]
        if declined:
            reason = f"too much waits at the node that makes its link: {self._works.room.told(account)}; send it again in a while"
            self._decline(turn, account, self.as_voted(at, declined), "busy", reason)
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

    # --- forming ---

    def needs_form(self, event: FormLink, needs: Needs) -> None:
        work = self._works.get(event.account)
        if work is not None and not work.put_off:
            self._needs_forming(event.account, (queued.decoded for queued in work.queue.values()), needs)

    def _needs_forming(self, account: str, queue: Iterable[DecodedRequest], needs: Needs, *, few: bool = False) -> None:
        """Look up as much of the queue as one link can hold, in one turn. What is left out waits for a later one."""
        if few:
            needs.forming_few.add(account)
        else:
            needs.forming.add(account)
            self._inquiries.needs_income(account, needs)
        needs.heads.add(account)
        looked_up = self._looked_up.setdefault(account, LookedUp())
        for decoded in queue:
            if not looked_up.add(decoded):
                return
            needs.outcomes.add((account, decoded.request_id))
            if decoded.request.kind is Kind.CANCEL:
                needs.outcomes.add((account, decoded.request.target))
            needs.assets |= self._replica.familiar.strangers(decoded.request.recipients)

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
            self._proposing.begin(turn, work, at, head, group)
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

    def _form(self, turn: Turn, work: Work) -> None:
        assert work.proposer is not None
        if work.proposer.found is not None:
            self._proposing.propose(turn, work, work.proposer.found)
            return
        loaded = turn.loaded
        forming = loaded.forming[work.account]
        loaded.postings.update((i.posting.hash, i.posting) for i in forming.incoming)
        looked_up = self._looked_up[work.account].ids
        asked = work.asked
        queue = [
            queued.decoded
            for request_id, queued in work.queue.items()
            if request_id in looked_up and (asked is None or queued.since <= asked.since)
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
            self._proposing.propose(turn, work, formed.link)
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
        recorded = [queued.decoded for i, queued in work.queue.items() if (work.account, i) in turn.loaded.outcomes]
        self._works.take_out(work, recorded)

    # --- decided ---

    def needs_accepted(self, message: Accepted, needs: Needs) -> None:
        """What the vote may decide, and what forms the link after it when this node makes that one, too."""
        link = self._proposing.needs_accepted(message, needs)
        if link is None:
            return
        work = self._works.deciding(message.slot)
        assert work is not None
        settled = {entry.request_id for entry in link.entries}
        waiting = [queued.decoded for request_id, queued in work.queue.items() if request_id not in settled]
        if waiting and self._self.id == self._self.view.group(route_key(link.next_slot))[0]:
            self._needs_forming(link.account, waiting, needs)

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
        to, is_owner = self.first_rank(turn, at)
        if to == self._self.id:
            turn.again.append(FormLink(work.account))
            return
        self.hand_on(turn, to, at, work.queue.values(), takeover=not is_owner)
        self._works.end(work)

    def hand_on(self, turn: Turn, to: NodeId, at: SlotName, queued: Iterable[QueuedRequest], *, takeover: bool) -> None:
        """Send requests to whoever makes the link in this slot."""
        for forward in forwards(at, self.as_voted(at, queued), takeover=takeover):
            turn.hand_on(to, forward)

    def as_voted(self, at: SlotName, queued: Iterable[QueuedRequest]) -> list[QueuedRequest]:
        """These requests, those as copies that are in the link that this node voted for in this slot: it may be decided
        already, and nobody here knows it. So whoever drops one of them, this node or the next, ends no client's call
        (design R13). The link ends it; when it is not decided, its gateway hands the request over again."""
        vote = self._acceptor.vote(Slot(at.slot))
        if vote is None or vote.value is None:
            return list(queued)
        voted = {entry.request_id for entry in vote.value.entries}
        return [item.copy() if item.decoded.request_id in voted else item for item in queued]

    def first_rank(self, turn: Turn, at: SlotName) -> tuple[NodeId, bool]:
        """Who of the slot's group is to make its link, and whether that is its owner."""
        group = self._self.view.group(route_key(at.slot))
        to = self._peers.ranks(group, turn.now)[0]
        return to, to == group[0]

    def _decline(self, turn: Turn, account: str, queued: list[QueuedRequest], code: str, reason: str) -> None:
        by_gateway: dict[NodeId, list[QueuedRequest]] = {}
        for item in queued:
            if item.gateway == NO_GATEWAY:
                continue
            by_gateway.setdefault(item.gateway, []).append(item)
        for gateway, items in by_gateway.items():
            ids, numbers = tuple(i.decoded.request_id for i in items), tuple(i.number for i in items)
            turn.send(gateway, Declined(account, ids, code, reason, numbers))

    # --- time ---

    def deadline(self) -> float | None:
        return self._works.due.at

    def tick(self, turn: Turn) -> None:
        """Begin what waited for its time; send again what was not answered."""
        self._looked_up.clear()
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
                self._proposing.send_again(turn, work)

"""Proposing: ballots for the slots of accounts, from their first message to the decision.

* R3  the owner of a slot born in this epoch proposes at round 0 without phase 1; everybody else runs phase 1.
* R4  the own vote is persisted in the turn that first sends the value, before it is sent.
* A value that phase 1 finds is finished before anything else.

`node.owner` says when a ballot may begin, and forms the value: `FormLink` is for it, when phase 1 is over.

Refusals carry the promised ballot; the next try goes above it after a random back-off of some RTT, which each refusal
in the slot doubles.
"""

from collections import Counter
from typing import Final

from chain.errors import RemoteFault
from chain.link import Link, Slot
from chain.needs import Needs
from chain.rows import AccountHead
from node.acceptor import Acceptor
from node.decoded import LinkDecoder
from node.events import FormLink
from node.messages import Accept, Accepted, Prepare, Promise, Refuse, SlotName
from node.paxos import MAX_ROUND, Ballot, Proposer, Refusal, check_ballot_untrusted
from node.peers import Peers
from node.replica import Replica
from node.slots import check_vote_untrusted, is_fast
from node.turn import Self, Turn, handling_s
from node.works import Work, Works
from routing.keyspace import NodeId

RESEND_RTTS: Final = 4  # silence for longer than this sends the same ballot again
BACKOFF_S: Final = 0.02
MAX_BACKOFF_S: Final = 2.0
VOTES_S: Final = 1.0  # who voted so lately votes on what it was asked now, too


class Proposing:
    """The ballots of this node, each in its account's `Work`."""

    def __init__(
        self, self_: Self, decoder: LinkDecoder, peers: Peers, acceptor: Acceptor, replica: Replica, works: Works
    ) -> None:
        self._self = self_
        self._decoder = decoder
        self._peers = peers
        self._acceptor = acceptor
        self._replica = replica
        self._works = works
        self._voted_at: dict[NodeId, float] = {}  # when each member last voted for what this node proposed
        self._heard: Counter[bytes] = Counter()  # votes for each slot, in this turn

    def begin(self, turn: Turn, work: Work, at: SlotName, head: AccountHead | None, group: tuple[NodeId, ...]) -> None:
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

    def propose(self, turn: Turn, work: Work, link: Link) -> None:
        """Phase 2, with this value."""
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

    def needs_accepted(self, message: Accepted, needs: Needs) -> Link | None:
        """What the vote may decide; the link, when it is the vote that does."""
        work = self._works.deciding(message.slot)
        link = work.proposer.value if work is not None and work.proposer is not None else None
        if work is None or link is None:
            return None
        self._replica.needs_link(link, needs)
        self._heard[message.slot] += 1
        assert work.proposer is not None
        return link if self._heard[message.slot] == work.proposer.lacking else None

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

    # --- time ---

    def on_up(self, turn: Turn, peer: NodeId) -> None:
        """A connection stands again: what was on its way through the last one is lost, and is sent again at once."""
        for work in self._works:
            if work.proposer is not None and not work.may_propose and peer in work.proposer.silent():
                work.attempt = 0  # and again after little: who has just started may not vote yet (R12)
                self._send_silent(turn, work)

    def send_again(self, turn: Turn, work: Work) -> None:
        """What nobody answered in time."""
        work.attempt += 1
        self._self.counters["ballots_sent_again"] += 1
        self._send_silent(turn, work)

    def tick(self, turn: Turn) -> None:
        """At the end of a turn: votes are counted for one."""
        self._heard.clear()

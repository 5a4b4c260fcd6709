"""Ballots of views: the next view is decided like a slot, by all members of the newest one (design R1, R2, R4).

* R1 the view after epoch e is decided by single-decree Paxos among all members of epoch e, always with phase 1. Its
     slot is the hash of view e; the value is the whole next view, one member more or one fewer.
* R2 only members of the installed view vote on the next one, and only in its own epoch.
* R4 the vote is in the table `votes` like any other (with no account), durable before the answer leaves.

What its proposer left behind is finished by whoever has voted for it. A ballot without a view asks a majority whether
there is a later one than the newest here.
"""

from collections.abc import Callable, Sequence
from typing import Final

from chain.errors import RemoteFault
from chain.link import Slot
from chain.rows import VoteRow
from node.identity import Identity
from node.membership import Membership
from node.messages import AskViews, Message, ViewAccept, ViewAccepted, ViewPrepare, ViewPromise, ViewRefuse, Views
from node.paxos import (
    MAX_ROUND,
    Ballot,
    Proposer,
    Refusal,
    Vote,
    accept,
    ballot_of,
    check_ballot_untrusted,
    check_proposer_untrusted,
    columns_of,
    prepare,
)
from node.peers import Peers
from node.turn import Self, Turn
from routing.keyspace import NodeId
from routing.view import View, decode_view, encode_view

STUCK_S: Final = 1.0  # a vote on a view that is older than this lost its proposer
RESEND_RTTS: Final = 4
BACKOFF_S: Final = 0.05
MAX_BACKOFF_S: Final = 2.0


class ViewBallots:
    """The vote of this node on the next view, and its own ballot."""

    def __init__(
        self,
        self_: Self,
        identity: Identity,
        peers: Peers,
        membership: Membership,
        votes: Sequence[VoteRow],
        now: float,
    ) -> None:
        self._self = self_
        self._identity = identity
        self._peers = peers
        self._membership = membership
        self.confirm: Callable[[float], None] = _nobody  # told: the newest view was the last one, after this time
        self._vote: Vote[bytes] | None = None
        self._voted: View | None = None  # the one that `_vote` is for
        self._stuck_at = now + STUCK_S
        self._proposer: Proposer[bytes] | None = None
        self._own: View | None = None  # what this node wants to be next
        self.wake_at = now  # when this node is rested
        self._ballot_at = now
        self._resends = 0  # of this phase of this ballot
        self._refusals = 0  # in this epoch
        self._lowest_round = 1
        for row in votes:
            if not row.account and row.slot == self_.view.hash:
                accepted = ballot_of(row.accepted) if row.accepted is not None else None
                self._vote = Vote(ballot_of(row.promised), accepted, row.link)
                self._voted = decode_view(row.link) if row.link is not None else None

    # --- for who wants a view ---

    @property
    def may_propose(self) -> bool:
        """True for a member that others have vouched for."""
        return self._self.view.is_member(self._self.id) and self._identity.verified

    def is_rested(self, now: float) -> bool:
        """True when the pause after the last ballot, or its last message, is over."""
        return self.wake_at <= now

    def may_begin(self, now: float) -> bool:
        """True when this node may propose a view, and has no ballot."""
        return self.may_propose and self._proposer is None and self.is_rested(now)

    def rest(self, now: float) -> None:
        """Begin nothing for a short while."""
        self.wake_at = now + BACKOFF_S

    @property
    def candidates(self) -> tuple[View, ...]:
        """The views that this node voted for, or proposes."""
        proposed = self._own if self._proposer is not None else None
        return tuple(view for view in (self._voted, proposed) if view is not None)

    def on_view(self, turn: Turn) -> None:
        """Another view is installed: votes and ballots of its epoch are over."""
        self._vote = self._voted = self._proposer = self._own = None
        self._refusals, self._lowest_round, self.wake_at = 0, 1, turn.now.mono

    # --- acceptor ---

    def _admits(self, turn: Turn, peer: NodeId, ballot: Ballot) -> bool:
        """R1, R2: only members of the installed view vote on the next one."""
        check_proposer_untrusted(peer, ballot)
        view = self._self.view
        if ballot.epoch > view.epoch:
            turn.send(peer, AskViews(view.epoch))
        elif ballot.epoch < view.epoch:
            self._membership.on_ask_views(turn, peer, AskViews(ballot.epoch))
        else:
            return self._identity.verified and view.is_member(self._self.id) and view.is_member(ballot.node)
        return False

    def on_prepare(self, turn: Turn, peer: NodeId, message: ViewPrepare) -> None:
        if not self._admits(turn, peer, message.ballot):
            return
        result = self._keep(turn, prepare(self._vote, message.ballot))
        answer: Message
        if isinstance(result, Refusal):
            answer = ViewRefuse(message.ballot, result.promised)
        else:
            answer = ViewPromise(message.ballot, result.accepted, result.value)
        turn.send(peer, answer)

    def on_accept(self, turn: Turn, peer: NodeId, message: ViewAccept) -> None:
        if not self._admits(turn, peer, message.ballot):
            return
        self._membership.next_untrusted(message.view)
        result = self._keep(turn, accept(self._vote, message.ballot, message.view))
        answer: Message = ViewAccepted(message.ballot)
        if isinstance(result, Refusal):
            answer = ViewRefuse(message.ballot, result.promised)
        turn.send(peer, answer)

    def _keep(self, turn: Turn, result: Vote[bytes] | Refusal) -> Vote[bytes] | Refusal:
        if isinstance(result, Vote) and result is not self._vote:
            if result.value is not None and (self._vote is None or result.value != self._vote.value):
                self._voted = decode_view(result.value)
            self._vote = result
            self._stuck_at = turn.now.mono + STUCK_S * (1 + self._self.rng.random())
            view = self._self.view
            accepted = columns_of(result.accepted) if result.accepted is not None else None
            turn.persist.append(
                VoteRow(Slot(view.hash), "", view.epoch + 1, columns_of(result.promised), accepted, result.value)
            )
        return result

    # --- proposer ---

    def propose(self, turn: Turn, own: View | None) -> None:
        """A new ballot, with phase 1, for this view or for whatever it finds."""
        self._own = own
        view = self._self.view
        above = self._vote.promised.round + 1 if self._vote is not None else 1
        ballot = Ballot(view.epoch, max(above, self._lowest_round), self._self.id)
        self._proposer = Proposer(ballot, view.ids)
        self._resends = 0
        self._ballot_at = turn.now.mono
        self._self.counters["view_ballots"] += 1
        promise = self._keep(turn, prepare(self._vote, ballot))
        assert isinstance(promise, Vote), (ballot, promise)
        if self._proposer.on_promise(self._self.id, ballot, promise.accepted, promise.value):
            self._phase_2(turn)
        else:
            self._send_silent(turn)

    def _phase_2(self, turn: Turn) -> None:
        proposer = self._proposer
        assert proposer is not None
        if not self._identity.verified:  # another process of this node was seen since
            self._back_off(turn, proposer.ballot)
            return
        value = proposer.found
        if value is None and self._own is not None:
            value = encode_view(self._own)
        if value is None:
            self._proposer = None
            self.confirm(self._ballot_at)
            return
        voted = self._keep(turn, accept(self._vote, proposer.ballot, value))
        if isinstance(voted, Refusal):  # this node promised a higher ballot to somebody else meanwhile
            self._back_off(turn, voted.promised)
            return
        proposer.propose(value)
        self._resends = 0
        if proposer.on_accepted(self._self.id, proposer.ballot):
            self._decided(turn, value)
        else:
            self._send_silent(turn)

    def _send_silent(self, turn: Turn) -> None:
        proposer = self._proposer
        assert proposer is not None
        message: Message = ViewPrepare(proposer.ballot)
        if proposer.value is not None:
            message = ViewAccept(proposer.ballot, proposer.value)
        for node in proposer.silent():
            if node != self._self.id:
                turn.send(node, message)
        pause = RESEND_RTTS * self._peers.rtt(proposer.group) * (1 << min(self._resends, 6))
        self.wake_at = turn.now.mono + min(MAX_BACKOFF_S, pause)

    def on_promise(self, turn: Turn, peer: NodeId, message: ViewPromise) -> None:
        if self._proposer is None or message.ballot != self._proposer.ballot:
            return
        if (message.accepted is None) != (message.view is None):
            raise RemoteFault("malformed", "a promise has a vote without a view, or a view without a vote")
        if message.view is not None:
            self._membership.next_untrusted(message.view)
        if self._proposer.on_promise(peer, message.ballot, message.accepted, message.view):
            self._phase_2(turn)

    def on_accepted(self, turn: Turn, peer: NodeId, message: ViewAccepted) -> None:
        proposer = self._proposer
        if proposer is not None and proposer.on_accepted(peer, message.ballot):
            assert proposer.value is not None
            self._decided(turn, proposer.value)

    def on_refuse(self, turn: Turn, peer: NodeId, message: ViewRefuse) -> None:
        if self._proposer is not None and message.ballot == self._proposer.ballot:
            check_ballot_untrusted(message.promised, last=MAX_ROUND - 1)
            self._back_off(turn, message.promised)

    def _back_off(self, turn: Turn, promised: Ballot) -> None:
        self._proposer = None
        self._lowest_round = max(self._lowest_round, promised.round) + 1
        self._refusals += 1
        pause = BACKOFF_S * (1 << min(self._refusals, 6))
        self.wake_at = turn.now.mono + min(MAX_BACKOFF_S, pause) * (0.5 + self._self.rng.random())

    def _decided(self, turn: Turn, raw: bytes) -> None:
        """A majority of the members has voted for it: everybody may know."""
        for peer in self._peers.connected():
            turn.send(peer, Views((raw,)))
        since = self._ballot_at
        self._membership.install(turn, decode_view(raw))
        self.confirm(since)

    # --- time ---

    def deadline(self) -> float | None:
        times = []
        if self.may_propose:
            if self._proposer is not None:
                times.append(self.wake_at)
            if self._is_stuck():
                times.append(self._stuck_at)
        return min(times, default=None)

    def _is_stuck(self) -> bool:
        return self._vote is not None and self._vote.accepted is not None and self._proposer is None

    def tick(self, turn: Turn) -> None:
        """Send again what was not answered, finish what its proposer left behind."""
        if not self.may_propose:
            return
        now = turn.now.mono
        if self._proposer is not None and self.is_rested(now):
            self._resends += 1
            self._send_silent(turn)
        if self._is_stuck() and self._stuck_at <= now:
            self._stuck_at = now + STUCK_S * (1 + self._self.rng.random())
            self.propose(turn, None)


def _nobody(since: float) -> None:
    """Before the core is wired."""

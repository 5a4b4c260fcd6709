"""Membership: the chain of views, and how it grows (design R1, R5, R6, R9).

* R1 the view after epoch e is decided by single-decree Paxos among all members of epoch e, always with phase 1. Its
     slot is the hash of view e; the value is the whole next view, one member more or one fewer.
* R4 the vote is in the table `votes` like any other (with no account), durable before the answer leaves.
* R5 an installed view is in `Turn.persist` of the turn in which it is installed, before anything of the new epoch
  leaves.
* R6 views are installed one by one; whoever lags asks for those that follow its own.
* R9 the next view is proposed when a majority of every changed region is ACTIVE, except to undo the last one.

A change comes from a client, signed by the operator or by the node that leaves, and is judged once, here: signature,
time, what it would leave without a majority (`node.changes`). It is answered `Changed` when the view is as it asks
*and* is ACTIVE everywhere it changed something: then the next change may follow, and whoever left may stop.

Who is not in the newest view is a *guest* (never was a member: it joins, or only reads) or *removed*. Guests get links
and views and vote on nothing; the removed may stay until the view without them is ACTIVE everywhere, and then never
come back.
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from chain.errors import RemoteFault
from chain.link import Slot
from chain.rows import ViewRow, VoteRow
from hopchain.change import Change, ChangeAction, SignedChange, change_id, check_change_untrusted
from hopchain.wire import Changed, NotStarted, Refused, ReplyBody, Unknown
from node.changes import judge_change, refuse_absent, view_after
from node.epochs import inactive, is_undo
from node.events import Caller, ClientChange, ToldRemoved
from node.identity import Identity
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
from node.replica import Replica
from node.syncing import Syncing
from node.turn import Now, Self, Turn
from routing.errors import RoutingFault, RoutingMisuse
from routing.keyspace import NodeId, short
from routing.regions import Region, group_ranges, regions
from routing.view import View, check_next, decode_view, encode_view

STUCK_S: Final = 1.0  # a vote on a view that is older than this lost its proposer
RESEND_RTTS: Final = 4
LINGER_S: Final = 2.0  # the removed hear that the view without them is ACTIVE: several pings
BACKOFF_S: Final = 0.05
MAX_BACKOFF_S: Final = 2.0
MAX_TIMEOUT_MS: Final = 600_000
MAX_CHANGES: Final = 1000  # that wait at once
VIEWS_BYTES: Final = 1024 * 1024  # of one Views message


class _Waiting(msgspec.Struct):
    """A change that was admitted and is not answered yet."""

    caller: Caller
    id: bytes
    change: Change
    deadline: float
    since: float
    proposed: bool = False  # as the next view, in this epoch, by whomever: it may be made, whatever is judged now
    barred: bool = False  # it must not be proposed, by what was known in this turn (`_look_at`)
    judged: bool = False  # `unfit` is right for this view and for the members that live now
    unfit: Refused | None = None
    confirmed: bool = False  # a majority of the members knew no later view after it was admitted
    waits_for: str = "it was not looked at yet"


class Membership:
    """The views that this node has installed, oldest first, and the changes that it was asked for."""

    def __init__(
        self,
        self_: Self,
        identity: Identity,
        peers: Peers,
        replica: Replica,
        syncing: Syncing,
        views: list[View],
        votes: Sequence[VoteRow],
        now: float,
    ) -> None:
        self._self = self_
        self._identity = identity
        self._peers = peers
        self._replica = replica
        self._syncing = syncing
        self.views = views
        self.hooks: list[Callable[[Turn], None]] = []
        self._checked: tuple[bytes, View] | None = None  # found good last: the same one comes in many messages
        self._vote: Vote[bytes] | None = None
        self._voted: View | None = None  # the one that `_vote` is for
        self._stuck_at = now + STUCK_S
        self._proposer: Proposer[bytes] | None = None
        self._own: View | None = None  # what this node wants to be next
        self._wake_at = now
        self._ballot_at = now
        self._resends = 0  # of this phase of this ballot
        self._refusals = 0  # in this epoch
        self._lowest_round = 1
        self._waiting: list[_Waiting] = []
        self._living: frozenset[NodeId] = frozenset()  # the members that could be reached when changes were judged last
        self._changed: tuple[Region, ...] = self._changed_regions()
        self._settled = False
        self._linger_until: float | None = None  # set once it is settled
        self._lingered = False
        self._active_told = False
        for row in votes:
            if not row.account and row.slot == self_.view.hash:
                accepted = ballot_of(row.accepted) if row.accepted is not None else None
                self._vote = Vote(ballot_of(row.promised), accepted, row.link)
                self._voted = decode_view(row.link) if row.link is not None else None

    def __len__(self) -> int:
        """Changes that wait for an answer."""
        return len(self._waiting)

    # --- what others ask of it ---

    @property
    def settled(self) -> bool:
        """R9: True when the newest view is ACTIVE everywhere it changed something, as far as this node was told."""
        if not self._settled:
            self._settled = not self.unsettled()
        return self._settled

    def unsettled(self) -> tuple[Region, ...]:
        """The regions that the newest view changed and in which no majority is ACTIVE yet."""
        epoch = self._self.view.epoch
        active = {node for node in self._self.view.ids if self._peers.told(node) == (epoch, True)}
        if self._self.fully_active:
            active.add(self._self.id)
        return inactive(self._changed, active)

    @property
    def removed_in(self) -> int:
        """The epoch in which this node was removed, 0 when it was not as far as it knows or was told."""
        return self.removed_epoch(self._self.id) or self._self.told_removed

    def removed_epoch(self, node: NodeId) -> int:
        """The epoch whose view is the first without `node`, which was a member before; 0 for members and guests."""
        if self._self.view.is_member(node):
            return 0
        last = max((view.epoch for view in self.views if view.is_member(node)), default=-1)
        return last + 1

    def contacts(self) -> frozenset[NodeId]:
        """With whom to keep a connection: the members, and who was removed while that is not settled."""
        if len(self.views) > 1 and self.lingers:
            return frozenset(self._self.view.ids).union(self.views[-2].ids)
        return frozenset(self._self.view.ids)

    @property
    def lingers(self) -> bool:
        """True while whoever was removed last may be needed as a source, or has to hear that it is needed no more."""
        return self._linger_until is None or not self._lingered

    @property
    def is_over(self) -> bool:
        """True when this node was removed and nobody needs it any more: it may stop for good. Whoever refuses it needs
        it no more (`is_refused`)."""
        return self._self.told_removed > 0 or (self.removed_in > 0 and not self.lingers)

    def is_refused(self, node: NodeId) -> int:
        """The epoch in which `node` was removed, when it may connect no more; else 0."""
        return 0 if node in self.contacts() else self.removed_epoch(node)

    def on_told_removed(self, event: ToldRemoved) -> None:
        """The view without this node may never come here: who refuses it sends no views."""
        self._self.told_removed = max(event.epoch, self._self.view.epoch + 1)

    # --- views come in ---

    def on_ask_views(self, turn: Turn, peer: NodeId, message: AskViews) -> None:
        raws: list[bytes] = []
        for view in self.views:
            if view.epoch > message.after and (not raws or sum(map(len, raws)) < VIEWS_BYTES):
                raws.append(encode_view(view))
        if raws:
            turn.send(peer, Views(tuple(raws)))

    def on_views(self, turn: Turn, peer: NodeId, message: Views) -> None:
        """Install what follows, one by one (R6)."""
        for raw in message.views:
            if decode_view(raw).epoch == self._self.view.epoch + 1:
                self._install(turn, self._next_untrusted(raw))
        told, _ = self._peers.told(peer)
        if message.views and told > self._self.view.epoch:
            turn.send(peer, AskViews(self._self.view.epoch))

    def _next_untrusted(self, raw: bytes) -> View:
        """The view with these bytes; `RoutingFault` unless it may follow the newest one, and its groups can be told
        apart."""
        if self._checked is None or self._checked[0] != raw or self._checked[1].prev_hash != self._self.view.hash:
            view = decode_view(raw)
            check_next(self._self.view, view)
            try:
                group_ranges(view)
            except RoutingMisuse as error:
                raise RoutingFault("bad_view", str(error)) from None
            self._checked = (raw, view)
        return self._checked[1]

    def _install(self, turn: Turn, view: View) -> None:
        """R5: what is sent in this turn leaves after the view is durable; from here on no vote of the epoch before."""
        before = self._self.view
        turn.persist.append(ViewRow(view.epoch, view.hash, before.hash, encode_view(view)))
        turn.hold_together()
        self.views.append(view)
        self._self.view = view
        self._self.counters["views_installed"] += 1
        self._vote = self._voted = self._proposer = self._own = None
        self._refusals, self._lowest_round, self._wake_at = 0, 1, turn.now.mono
        self._changed = self._changed_regions()
        self._settled = self._lingered = False
        self._linger_until = None
        for waiting in self._waiting:
            waiting.proposed = False  # what was proposed as the view of this epoch is made now, or never
            waiting.judged = False
        self._syncing.install(turn, before, view)
        for hook in self.hooks:
            hook(turn)
        self._peers.ping_all(turn, self._replica.count)

    def _changed_regions(self) -> tuple[Region, ...]:
        if len(self.views) < 2:
            return ()
        return tuple(region for region in regions(*self.views[-2:]) if region.before != region.after)

    # --- acceptor ---

    def _admits(self, turn: Turn, peer: NodeId, ballot: Ballot) -> bool:
        """R1, R2: only members of the installed view vote on the next one."""
        check_proposer_untrusted(peer, ballot)
        view = self._self.view
        if ballot.epoch > view.epoch:
            turn.send(peer, AskViews(view.epoch))
        elif ballot.epoch < view.epoch:
            self.on_ask_views(turn, peer, AskViews(ballot.epoch))
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
        self._next_untrusted(message.view)
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

    def _propose(self, turn: Turn) -> None:
        """A new ballot, with phase 1, for `_own` or for whatever it finds."""
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
            self._confirm(self._ballot_at)
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
        self._wake_at = turn.now.mono + min(MAX_BACKOFF_S, pause)

    def on_promise(self, turn: Turn, peer: NodeId, message: ViewPromise) -> None:
        if self._proposer is None or message.ballot != self._proposer.ballot:
            return
        if (message.accepted is None) != (message.view is None):
            raise RemoteFault("malformed", "a promise has a vote without a view, or a view without a vote")
        if message.view is not None:
            self._next_untrusted(message.view)
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
        self._wake_at = turn.now.mono + min(MAX_BACKOFF_S, pause) * (0.5 + self._self.rng.random())

    def _decided(self, turn: Turn, raw: bytes) -> None:
        """A majority of the members has voted for it: everybody may know."""
        for peer in self._peers.connected():
            turn.send(peer, Views((raw,)))
        since = self._ballot_at
        self._install(turn, decode_view(raw))
        self._confirm(since)

    # --- changes ---

    def on_change(self, turn: Turn, event: ClientChange) -> None:
        """Admit a change, or say why not. `Refused` begins nothing; what is judged later (`_look_at`) is `Refused` only
        while this node has not voted for such a view and proposes none: what others did, a node cannot know."""
        submit = event.submit
        signed = SignedChange(submit.raw, submit.signature)
        try:
            change = check_change_untrusted(signed, self._self.genesis, turn.now.unix_ms)
        except RemoteFault as fault:
            turn.answer(event.caller, Refused(fault.code, fault.text))
            return
        if len(self._waiting) >= MAX_CHANGES:
            turn.answer(event.caller, NotStarted(change_id(submit.raw), "busy", f"{MAX_CHANGES} changes wait here"))
            return
        timeout_s = min(max(submit.timeout_ms, 1), MAX_TIMEOUT_MS) / 1000
        now = turn.now.mono
        self._waiting.append(_Waiting(event.caller, change_id(submit.raw), change, now + timeout_s, now))

    def _look_at(self, turn: Turn, waiting: _Waiting) -> ReplyBody | None:
        """The answer of a change, or None while it has none."""
        change, view = waiting.change, self._self.view
        wanted = change.action is ChangeAction.ADD
        if self._holds(change):
            if self.settled and self._is_certain(waiting):
                return Changed(view.epoch, view.hash, wanted)
            waiting.waits_for = f"{len(self.unsettled())} regions of epoch {view.epoch} have no ACTIVE majority yet"
        elif wanted and self.removed_epoch(change.node_id):
            return Refused(
                "removed",
                f"node {short(change.node_id)} was removed in epoch {self.removed_epoch(change.node_id)}: ids do not come "
                "back; make a new invitation and join under a new id",
            )
        else:
            waiting.proposed = waiting.proposed or self._may_be_made(change)
            if self._self.is_member and not self._identity.verified:  # it may lag, and proposes nothing
                waiting.waits_for = f"node {short(self._self.id)} does not vote now: `hopchain doctor` says why"
            elif self._wake_at <= turn.now.mono:
                refused = self._refuse(waiting, turn.now)
                waiting.barred = refused is not None
                if refused is not None:
                    waiting.waits_for = f"it was proposed and may be made, though now it would not be: {refused.reason}"
                    if not waiting.proposed:
                        return refused
        if waiting.deadline > turn.now.mono:
            return None
        reason = f"{waiting.waits_for}; look at `hopchain member list` and send it again"
        if waiting.proposed or self._holds(change):
            return Unknown(waiting.id, reason)
        return NotStarted(waiting.id, "not_in_time", reason)

    def _holds(self, change: Change) -> bool:
        """True when the newest view here is as the change asks."""
        return self._self.view.is_member(change.node_id) == (change.action is ChangeAction.ADD)

    def _may_be_made(self, change: Change) -> bool:
        """True when a view that this node voted for, or proposes, is as the change asks: whoever asked for it, and
        whatever has become of that one, a majority may vote for it yet (R1)."""
        proposed = self._own if self._proposer is not None else None
        wanted = change.action is ChangeAction.ADD
        return any(view is not None and view.is_member(change.node_id) == wanted for view in (self._voted, proposed))

    def _is_certain(self, waiting: _Waiting) -> bool:
        """A node that lags must not say that a change holds which a later view has taken back. A removal is final."""
        change = waiting.change
        final = change.action is ChangeAction.REMOVE and self.removed_epoch(change.node_id) > 0
        return waiting.confirmed or final

    def _confirm(self, since: float) -> None:
        """The newest view was the last one at some time after `since`."""
        for waiting in self._waiting:
            waiting.confirmed = waiting.confirmed or (waiting.since <= since and self._holds(waiting.change))

    def _refuse(self, waiting: _Waiting, now: Now) -> Refused | NotStarted | None:
        """What a change must not do (never judged again, design R15), and what another node might do."""
        change = waiting.change
        if not self._self.is_member:
            reason = f"node {short(self._self.id)} is no member; send the change to one"
            return NotStarted(waiting.id, "not_member", reason)
        if change.action is ChangeAction.ADD:
            absent = refuse_absent(waiting.id, change.node_id, self._peers, self._replica.count, now, self._self.id)
            if absent is not None:
                return absent
        if not waiting.judged:
            waiting.judged = True
            waiting.unfit = judge_change(self.views, change, self._living, now.unix_ms, self._self.id)
        return waiting.unfit

    def _look_around(self, now: Now) -> None:
        """Which members live decides which changes are fit: when others do than the last time, all are judged anew."""
        living = frozenset(member for member in self._self.view.ids if self._peers.alive(member, now))
        if living != self._living:
            self._living = living
            for waiting in self._waiting:
                waiting.judged = False

    def _begin_next(self, turn: Turn) -> None:
        """R9: propose the first change that the present view allows."""
        view = self._self.view
        for waiting in self._waiting:
            change = waiting.change
            if change.action is ChangeAction.ADD and self.removed_epoch(change.node_id):
                continue
            if self._holds(change):
                if self._is_certain(waiting):
                    continue
                self._own = None  # phase 1 alone asks a majority whether there is a later view
                self._propose(turn)
                return
            if waiting.barred:  # it was fit when it was proposed, and lost its ballot
                continue
            after = view_after(view, change, turn.now.unix_ms, self._self.id)
            if self.settled or is_undo(self.views, after):
                waiting.proposed = True
                waiting.waits_for = f"no majority of the {len(view.members)} members has answered"
                self._own = after
                self._propose(turn)
                return
            waiting.waits_for = f"{len(self.unsettled())} regions of epoch {view.epoch} have no ACTIVE majority yet"

    # --- time ---

    def deadline(self) -> float | None:
        times = [waiting.deadline for waiting in self._waiting]
        if self._linger_until is not None and not self._lingered:
            times.append(self._linger_until)
        if self._may_propose:
            if self._proposer is not None or self._waiting:
                times.append(self._wake_at)
            if self._is_stuck():
                times.append(self._stuck_at)
        return min(times, default=None)

    @property
    def _may_propose(self) -> bool:
        return self._self.view.is_member(self._self.id) and self._identity.verified

    def _is_stuck(self) -> bool:
        return self._vote is not None and self._vote.accepted is not None and self._proposer is None

    def tick(self, turn: Turn) -> None:
        """Answer changes, begin the next, send again what was not answered, finish what its proposer left behind."""
        now = turn.now.mono
        if self._waiting and self._may_propose and self._wake_at <= now:
            self._look_around(turn.now)
        for waiting in list(self._waiting):
            answer = self._look_at(turn, waiting)
            if answer is not None:
                turn.answer(waiting.caller, answer)
                self._waiting.remove(waiting)
        active = self._self.fully_active
        if active and not self._active_told:  # the barrier of others waits for this
            self._peers.ping_all(turn, self._replica.count)
        self._active_told = active
        if self._linger_until is None and self.settled:
            self._linger_until = now + LINGER_S
        self._lingered = self._linger_until is not None and self._linger_until <= now
        if not self._may_propose:
            return
        if self._proposer is not None and self._wake_at <= now:
            self._resends += 1
            self._send_silent(turn)
        elif self._proposer is None and self._waiting and self._wake_at <= now:
            self._wake_at = now + BACKOFF_S
            self._begin_next(turn)
        if self._is_stuck() and self._stuck_at <= now:
            self._own = None
            self._stuck_at = now + STUCK_S * (1 + self._self.rng.random())
            self._propose(turn)


def restore_views(first: View, raws: Sequence[bytes]) -> list[View]:
    """The installed views from a database, checked to be one chain; `RoutingFault("bad_view")` names the one that is
    not."""
    views = [first]
    for raw in raws:
        view = decode_view(raw)
        if view.epoch == first.epoch and view == first:
            continue
        check_next(views[-1], view)
        views.append(view)
    return views

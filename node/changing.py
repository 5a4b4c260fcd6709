"""Changing: the changes of the members that clients ask for, until they are answered (design R9, R13, R15).

A change comes from a client, signed by the operator or by the node that leaves, and is judged once, here: signature,
time, what it would leave without a majority (`node.changes`). It is answered `Changed` when the view is as it asks
*and* is ACTIVE everywhere it changed something: then the next change may follow, and whoever left may stop.

R9: the next view is proposed when a majority of every changed region is ACTIVE, except to undo the last one.
"""

from typing import Final

import msgspec

from chain.errors import RemoteFault
from hopchain.change import Change, ChangeAction, SignedChange, change_id, check_change_untrusted
from hopchain.wire import Changed, NotStarted, Refused, ReplyBody, Unknown
from node.changes import judge_change, refuse_absent, view_after
from node.epochs import is_undo
from node.events import Caller, ClientChange
from node.identity import Identity
from node.membership import Membership
from node.peers import Peers
from node.replica import Replica
from node.turn import Now, Self, Turn
from node.view_ballots import ViewBallots
from routing.keyspace import NodeId, short

MAX_TIMEOUT_MS: Final = 600_000
MAX_CHANGES: Final = 1000  # that wait at once


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


class Changing:
    """The changes that wait for an answer."""

    def __init__(
        self,
        self_: Self,
        identity: Identity,
        peers: Peers,
        replica: Replica,
        membership: Membership,
        ballots: ViewBallots,
    ) -> None:
        self._self = self_
        self._identity = identity
        self._peers = peers
        self._replica = replica
        self._membership = membership
        self._ballots = ballots
        self._waiting: list[_Waiting] = []
        self._living: frozenset[NodeId] = frozenset()  # the members that could be reached when changes were judged last

    def __len__(self) -> int:
        return len(self._waiting)

    def on_view(self, turn: Turn) -> None:
        """Another view is installed."""
        for waiting in self._waiting:
            waiting.proposed = False  # what was proposed as the view of this epoch is made now, or never
            waiting.judged = False

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
            if self._membership.settled and self._is_certain(waiting):
                return Changed(view.epoch, view.hash, wanted)
            waiting.waits_for = (
                f"{len(self._membership.unsettled())} regions of epoch {view.epoch} have no ACTIVE majority yet"
            )
        elif wanted and self._membership.removed_epoch(change.node_id):
            return Refused(
                "removed",
                f"node {short(change.node_id)} was removed in epoch {self._membership.removed_epoch(change.node_id)}: ids do not come "
                "back; make a new invitation and join under a new id",
            )
        else:
            waiting.proposed = waiting.proposed or self._may_be_made(change)
            if self._self.is_member and not self._identity.verified:  # it may lag, and proposes nothing
                waiting.waits_for = f"node {short(self._self.id)} does not vote now: `hopchain doctor` says why"
            elif self._ballots.is_rested(turn.now.mono):
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
        wanted = change.action is ChangeAction.ADD
        return any(view.is_member(change.node_id) == wanted for view in self._ballots.candidates)

    def _is_certain(self, waiting: _Waiting) -> bool:
        """A node that lags must not say that a change holds which a later view has taken back. A removal is final."""
        change = waiting.change
        final = change.action is ChangeAction.REMOVE and self._membership.removed_epoch(change.node_id) > 0
        return waiting.confirmed or final

    def confirm(self, since: float) -> None:
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
            waiting.unfit = judge_change(self._membership.views, change, self._living, now.unix_ms, self._self.id)
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
            if change.action is ChangeAction.ADD and self._membership.removed_epoch(change.node_id):
                continue
            if self._holds(change):
                if self._is_certain(waiting):
                    continue
                self._ballots.propose(turn, None)  # phase 1 alone asks a majority whether there is a later view
                return
            if waiting.barred:  # it was fit when it was proposed, and lost its ballot
                continue
            after = view_after(view, change, turn.now.unix_ms, self._self.id)
            if self._membership.settled or is_undo(self._membership.views, after):
                waiting.proposed = True
                waiting.waits_for = f"no majority of the {len(view.members)} members has answered"
                self._ballots.propose(turn, after)
                return
            waiting.waits_for = (
                f"{len(self._membership.unsettled())} regions of epoch {view.epoch} have no ACTIVE majority yet"
            )

    # --- time ---

    def deadline(self) -> float | None:
        times = [waiting.deadline for waiting in self._waiting]
        if times and self._ballots.may_propose:
            times.append(self._ballots.wake_at)
        return min(times, default=None)

    def tick(self, turn: Turn) -> None:
        """Answer changes, begin the next."""
        now = turn.now.mono
        if self._waiting and self._ballots.may_propose and self._ballots.is_rested(now):
            self._look_around(turn.now)
        for waiting in list(self._waiting):
            answer = self._look_at(turn, waiting)
            if answer is not None:
                turn.answer(waiting.caller, answer)
                self._waiting.remove(waiting)
        if self._waiting and self._ballots.may_begin(now):
            self._ballots.rest(now)
            self._begin_next(turn)

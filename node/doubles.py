"""Two copies of one node at once (design R12): who is vouched for must be the same for all who vouch.

Counts of votes tell an old copy of a disk from its original, but not two that start from the same one at the same
moment: with five members each could find two others that vouch for it, and together they would vote twice. Every start
of a node has a `boot` of its own in its hello. So before a node vouches for a peer it asks all members that it is
connected to whether they see another boot of that peer. Of two members that vouch and reach each other, one asks second
and learns it.

Who sees another boot says so only when that one has answered a ping that left after the question: a connection may
outlive its process for a while. It vouches for nobody meanwhile, and passes the question on to the one that it sees,
which votes no more until all vouch for it again. A peer that is certainly there twice is told, and ends.

A connection that breaks says nothing about the process: for SUSPECT_S its boot counts as seen, unless the process said
that it ends. Who has just started has not met everybody yet: it vouches for and agrees to nobody for SUSPECT_S, unless
it is connected to all members. Only members ask, answer and are believed.

Who was there first stays. A node remembers for each peer the process that it vouched for last; with nobody else to ask,
the one that it saw first. When another one has answered a ping, and then the remembered one answers a later ping, both
certainly run at once, and the other one is *later*: it is never vouched for, is told at each chance, and ends. Nobody
is accused on account of a later one, and whoever vouched for a process does not believe of it that it runs twice,
unless by one who vouched for the other: then nobody knows who was first, and both end. A new connection takes the place
of the one there is, also when another process made it: while the first may yet come back (REPLACED_S), no other one is
vouched for.

What is left is a copy that starts while a cut separates those who vouch for it from those who vouch for the other one.
"""

from collections.abc import Collection
from typing import Final

import msgspec

from chain.errors import Quarantined
from node.messages import AskBoot, BootAnswer, Closing, Twice
from node.turn import Self, Turn
from routing.keyspace import NodeId, short

FEW: Final = 16  # members who may be asked again at every ping
ASK_AGAIN_S: Final = 0.4  # in larger networks: all ask all about all when they start
SUSPECT_S: Final = 2.0  # without a word it may be gone; twice what a broken connection takes to be made anew
REPLACED_S: Final = 15.0  # to come back in: it waits to be dialed, pauses, dials, shakes hands: 3 + 1 + 5 + 5 s
BOOTS: Final = 8  # starts of second copies of a peer that are remembered; the oldest is forgotten first


class _Seen(msgspec.Struct):
    """A connected peer: its boot, who sees no other one, and who has asked about it since when (monotonic seconds)."""

    boot: bytes
    since: float
    agreed: set[NodeId] = msgspec.field(default_factory=set)
    askers: dict[NodeId, tuple[bytes, float]] = msgspec.field(default_factory=dict)
    asked: dict[NodeId, float] = msgspec.field(default_factory=dict)  # when each was asked last
    closing: bool = False  # it said that it ends
    answered: bool = False  # a ping of this connection


class _Lost(msgspec.Struct):
    """A process whose connection broke: it may be back until then. `answered`: it had answered a ping."""

    until: float
    answered: bool


class _First(msgspec.Struct):
    """The process of a peer that counts, and others of it: `beside` have answered since; `later` ran while it ran."""

    boot: bytes
    vouched: bool = False  # False: it is only the first that was seen
    beside: list[bytes] = msgspec.field(default_factory=list)
    later: list[bytes] = msgspec.field(default_factory=list)


class Doubles:
    """Which boots of its peers this node sees, and for whom it may vouch."""

    def __init__(self, self_: Self, started: float) -> None:
        self._self = self_
        self._settled_at = started + SUSPECT_S
        self._seen: dict[NodeId, _Seen] = {}
        self._lost: dict[NodeId, dict[bytes, _Lost]] = {}  # by boot
        self._first: dict[NodeId, _First] = {}

    def on_up(self, peer: NodeId, boot: bytes, now: float, *, replaced: bool = False) -> None:
        """`replaced`: this connection took the place of one that stood."""
        self._seen[peer] = _Seen(boot, now)
        first = self._first.setdefault(peer, _First(boot))
        lost = self._lost.get(peer, {}).get(first.boot)
        if lost is not None and lost.until <= now:
            lost = None
        if boot not in (first.boot, *first.later) and lost is None:  # gone for long: begin anew
            first = self._first[peer] = _First(boot, later=first.later)
        if replaced and first.vouched and first.boot != boot and lost is not None:
            lost.until = max(lost.until, now + REPLACED_S)

    def on_down(self, peer: NodeId, now: float, *, alive: bool) -> None:
        """`alive`: it was heard of within SUSPECT_S."""
        seen = self._seen.pop(peer, None)
        for node, boots in list(self._lost.items()):
            self._lost[node] = {boot: lost for boot, lost in boots.items() if lost.until > now}
            if not self._lost[node]:
                del self._lost[node]
        if seen is not None and alive and not seen.closing:
            self._lost.setdefault(peer, {})[seen.boot] = _Lost(now + SUSPECT_S, seen.answered)
        for node in self._first.keys() - self._seen.keys() - self._lost.keys() - set(self._self.view.ids):
            del self._first[node]

    def on_slept(self, now: float) -> None:
        """This node slept: who agreed before has seen others since, and who is connected has to be found out anew."""
        self._settled_at = now + SUSPECT_S
        for seen in self._seen.values():
            seen.agreed.clear()

    def is_another(self, peer: NodeId) -> bool:
        """Another process of `peer` is connected than the one that this node vouched for last."""
        first, seen = self._first.get(peer), self._seen.get(peer)
        return first is not None and seen is not None and first.vouched and first.boot != seen.boot

    def on_closing(self, turn: Turn, peer: NodeId, message: Closing) -> None:
        """`peer` ends: its next process need not wait until this one is forgotten."""
        seen = self._seen.get(peer)
        if seen is not None:
            seen.closing = True

    def vouches(self, peer: NodeId, members: Collection[NodeId], now: float) -> bool:
        """True when all `members` (those who can be asked now) and this node see no other boot of `peer`."""
        seen = self._seen.get(peer)
        if seen is None or seen.askers or self._is_later(peer, seen.boot) or self._may_be_back(peer, seen.boot, now):
            return False
        return self._has_met(peer, members, now) and all(node in seen.agreed for node in members if node != peer)

    def on_vouched(self, peer: NodeId) -> bytes:
        """This node says now that it vouches for `peer`: from now on this process of it counts. Returns its boot."""
        first, boot = self._first[peer], self._seen[peer].boot
        if first.boot != boot:
            first.boot = boot
            first.beside = []
        first.vouched = True
        return boot

    def _may_be_back(self, peer: NodeId, boot: bytes, now: float) -> bool:
        """Another boot than this was seen just now, and its connection broke. The one that was vouched for last, and
        nobody else since, is not held up by one that never answered: that one can have no word of this node to vote
        by."""
        counts = self._counts(peer, boot)
        return any(
            other != boot and now < lost.until and (lost.answered or not counts) and not self._is_over(peer, other)
            for other, lost in self._lost.get(peer, {}).items()
        )

    def _is_later(self, peer: NodeId, boot: bytes) -> bool:
        first = self._first.get(peer)
        return first is not None and boot in first.later

    def _is_over(self, peer: NodeId, boot: bytes) -> bool:
        """That process has to end, and had no word of this node to vote by."""
        return self._is_later(peer, boot) and not self._counts(peer, boot)

    def _counts(self, peer: NodeId, boot: bytes) -> bool:
        """This node vouched for that process, and for no other one since."""
        first = self._first.get(peer)
        return first is not None and first.vouched and first.boot == boot

    def _has_met(self, peer: NodeId, members: Collection[NodeId], now: float) -> bool:
        """This node runs for long enough, or is connected to all `members` of the view, to know who is there."""
        return now >= self._settled_at or {*members, peer, self._self.id}.issuperset(self._self.view.ids)

    def ask(self, turn: Turn, peer: NodeId, members: Collection[NodeId]) -> None:
        """Ask those `members` who have not agreed yet."""
        seen = self._seen.get(peer)
        if seen is None:
            return
        if self._is_later(peer, seen.boot):
            turn.send(peer, Twice(seen.boot, later=True))
            return
        now = turn.now.mono
        for node in members:
            if node in seen.agreed or node == peer:
                continue
            if len(members) <= FEW or seen.asked.get(node, float("-inf")) + ASK_AGAIN_S <= now:
                seen.asked[node] = now
                turn.send(node, AskBoot(peer, seen.boot))

    def on_ask(self, turn: Turn, asker: NodeId, message: AskBoot, members: Collection[NodeId], *, alive: bool) -> None:
        """`alive`: the peer that it is about was heard of within SUSPECT_S. Who is not answered asks again."""
        node, now = message.node, turn.now.mono
        seen = self._seen.get(node)
        if self._is_later(node, message.boot):
            turn.send(asker, BootAnswer(node, message.boot, twice=True, later=True))
        elif seen is not None and seen.boot != message.boot and alive and not self._is_over(node, seen.boot):
            if asker not in seen.askers:
                seen.askers[asker] = (message.boot, now)
                turn.send(node, message)
        elif self._has_met(node, members, now) and not self._may_be_back(node, message.boot, now):
            turn.send(asker, BootAnswer(node, message.boot, twice=False))

    def on_pong(self, turn: Turn, peer: NodeId, sent: float, members: Collection[NodeId]) -> None:
        """`peer` has answered a ping of time `sent`: the boot that is seen here lives."""
        seen = self._seen.get(peer)
        if seen is None:
            return
        for asker, (boot, asked) in list(seen.askers.items()):
            if sent > asked:
                del seen.askers[asker]
                if not self._counts(peer, boot):
                    later = self._counts(peer, seen.boot)
                    turn.send(asker, BootAnswer(peer, boot, twice=True, later=later))
        if seen.since <= sent <= turn.now.mono:
            seen.answered = True
            self._compare(turn, peer, seen.boot, members)

    def _compare(self, turn: Turn, peer: NodeId, boot: bytes, members: Collection[NodeId]) -> None:
        """The process `boot` of `peer` was alive after its connection of now was made, and so after all others in
        `beside`."""
        first = self._first[peer]
        if boot != first.boot:
            if boot not in first.beside:
                first.beside = [*first.beside[1 - BOOTS :], boot]
        elif first.vouched or ({*members} <= {peer} and self._has_met(peer, members, turn.now.mono)):
            for other in first.beside:
                self._note_later(peer, other)

    def _note_later(self, peer: NodeId, boot: bytes) -> None:
        first = self._first[peer]
        if boot not in first.later:
            self._self.counters["peers_later"] += 1
            first.later = [*first.later[1 - BOOTS :], boot]

    def on_answer(self, turn: Turn, peer: NodeId, message: BootAnswer) -> None:
        seen = self._seen.get(NodeId(message.node))
        if seen is None or seen.boot != message.boot:
            return
        if not message.twice:
            seen.agreed.add(peer)
            return
        if message.later:
            self._note_later(NodeId(message.node), message.boot)
        elif self._counts(NodeId(message.node), message.boot):
            return  # it was here first; who sees the other one asks about that one, and learns it
        self._self.counters["peers_twice"] += 1
        turn.send(NodeId(message.node), Twice(message.boot, later=message.later))

    def on_twice(self, turn: Turn, peer: NodeId, message: Twice) -> None:
        """Raises `Quarantined`: two boots of this one were seen. Not when it is about an earlier process."""
        if message.boot != self._self.boot:
            return
        if message.later:
            raise Quarantined(
                f"node {short(self._self.id)} runs twice at once: node {short(peer)} sees another process of it, which was there "
                "before this one and goes on. Leave that one alone, and delete this directory: it is a copy, or comes from an "
                "invitation that was used before. Each machine needs an invitation of its own (`hopchain invite`)"
            )
        raise Quarantined(
            f"node {short(self._self.id)} runs twice at once: node {short(peer)} and another one are connected to different "
            "processes of it, so another copy of it is running. Neither may vote: stop both, keep one directory, start "
            "that one alone"
        )

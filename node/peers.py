"""Failure detector: which members are alive, how far away they are.

A member is alive while its connection stands, something was heard of it within SUSPECT_S, and it answers: whoever is
heard but answers no ping does not hear this node, and a request that is handed to it is lost. A connection through
which nothing came for three times SUSPECT_S is closed: it may be half open, and would never end by itself. Pings keep
an idle connection heard of and measure the round trip *through the peer's turns*, so that time-outs built on it grow
with load. Being wrong costs time, never safety: consensus does not ask who is alive.

A member that was away lives, and has no use for requests until it has caught up: it *lags* while it lacks many links
that this node had LAG_S before. Counts are never compared as they come, for those of a busy network are old when they
arrive: what a peer tells is held against what this node had LAG_S before it asked, and what this node has now against
what a peer told LAG_S ago. Who lags is handed requests last (`ranks`); for all else it is as good as others (ADR 29).
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from node.doubles import SUSPECT_S, Doubles
from node.identity import Identity
from node.messages import (
    Accept,
    Accepted,
    AskBoot,
    AskViews,
    BootAnswer,
    Message,
    Ping,
    Pong,
    Prepare,
    Promise,
    Twice,
    ViewAccept,
    ViewAccepted,
    ViewPrepare,
    ViewPromise,
)
from node.turn import Now, Self, Turn
from routing.keyspace import NodeId
from routing.view import majority

PING_EVERY_S: Final = 0.5  # four chances before a peer is suspected
# How old a word may be that makes a read current: turns of a second are no reason to doubt.
CURRENT_S: Final = 2 * SUSPECT_S
LAG_S: Final = 1.0  # two rounds of pings; a request may wait for so long at an owner that lags a little less
# Links: few that were lost, and are asked for in a round trip, are no reason to go round an owner
LAG_LINKS: Final = 100
UNANSWERED: Final = 4  # pings: as many as are sent within SUSPECT_S
DROP_PINGS: Final = 12  # rounds without a word: 3 x SUSPECT_S, in pings, so that who slept itself closes nothing
CLOCK_PINGS: Final = 8  # by which a clock is judged: 4 s
PINGS_PER_ROUND: Final = 16  # above this many members each round pings a part of them
MIN_RTT_S: Final = 0.005  # below a turn's own length a measured round trip says nothing
FIRST_RTT_S: Final = 0.05
MAX_RTT_S: Final = 60.0  # a peer is suspected long before; what it echoes is not believed beyond
MAX_LAG_RTT_S: Final = 4.0  # a pong that took longer says nothing of who lags; its sender is not alive meanwhile
RTT_WEIGHT: Final = 0.2  # of a new sample, as TCP smooths
_LAG_ROUNDS: Final = round(LAG_S / PING_EVERY_S)
_ANSWERS: Final = frozenset[type[Message]]({Promise, Accepted, ViewPromise, ViewAccepted})
_VOTING: Final = _ANSWERS | {Prepare, Accept, ViewPrepare, ViewAccept}


class _Peer:
    def __init__(self, now: float) -> None:
        self.heard = now
        self.silent = False  # for SUSPECT_S, as of the last round of pings
        self.missed = 0  # rounds since it was heard of
        self.unanswered = 0  # pings in a row
        self.rtt = FIRST_RTT_S
        self.measured = False
        self.links = 0
        self.lags = False  # behind this node, as of its last pong
        self.told_links: deque[int] = deque(maxlen=_LAG_ROUNDS)  # what it had told in the last rounds
        self.clocks_apart_ms: deque[int] = deque(maxlen=CLOCK_PINGS)  # at its last pings
        self.pinged: float | None = None  # `sent` of its last ping
        # When they were asked for, and how many links it had since.
        self.pongs: deque[tuple[float, int]] = deque(maxlen=2)


class Peers:
    """What this node knows about the other members."""

    def __init__(self, self_: Self, identity: Identity, started: float) -> None:
        self._self = self_
        self._identity = identity
        self.doubles = Doubles(self_, started)
        self._up: dict[NodeId, _Peer] = {}
        self._next_ping = started
        self._suspended_at = float("-inf")
        self._turn_of = 0
        self._lags = False  # this node itself, as of the last round of pings
        self._told: dict[NodeId, tuple[int, bool]] = {}
        # When, and how many links there were here, in rounds of pings: as old as what a pong may be held against.
        self._had: deque[tuple[float, int]] = deque(maxlen=round((MAX_LAG_RTT_S + LAG_S) / PING_EVERY_S))

    def on_up(self, turn: Turn, peer: NodeId, boot: bytes, links: int, *, replaced: bool = False) -> None:
        self._up[peer] = _Peer(turn.now.mono)
        turn.send(peer, self._ping(turn.now, links))  # to it alone: a round of pings counts the silence of all others
        self._identity.on_up(peer)
        self.doubles.on_up(peer, boot, turn.now.mono, replaced=replaced)
        self.doubles.ask(turn, peer, self._others(turn.now))

    def on_down(self, peer: NodeId, now: Now) -> None:
        alive = self.heard_lately(peer, now)
        self._up.pop(peer, None)
        self._identity.on_down(peer)
        self.doubles.on_down(peer, now.mono, alive=alive)

    def _others(self, now: Now) -> list[NodeId]:
        """The members that can be asked about a peer, in id order."""
        return [node for node in self._self.view.ids if node in self._up and self.heard_lately(node, now)]

    def on_ask_boot(self, turn: Turn, peer: NodeId, message: AskBoot) -> None:
        """A member asks about a peer, or has heard of another process of this very node."""
        if not self._self.view.is_member(peer):
            return
        if message.node != self._self.id:
            alive = self.heard_lately(message.node, turn.now)
            self.doubles.on_ask(turn, peer, message, self._others(turn.now), alive=alive)
        elif message.boot != self._self.boot:
            self._suspend(turn.now)

    def on_twice(self, turn: Turn, peer: NodeId, message: Twice) -> None:
        if self._self.view.is_member(peer):
            self.doubles.on_twice(turn, peer, message)

    def on_boot_answer(self, turn: Turn, peer: NodeId, message: BootAnswer, links: int) -> None:
        """The last one to agree makes this node vouch: it need not wait for the next ping."""
        if not self._self.view.is_member(peer):
            return
        node, now = NodeId(message.node), turn.now.mono
        known = self._up.get(node)
        others = self._others(turn.now)
        before = self.doubles.vouches(node, others, now)
        self.doubles.on_answer(turn, peer, message)
        if known is not None and known.pinged is not None and not before and self.doubles.vouches(node, others, now):
            turn.send(node, Pong(known.pinged, links, self._identity.seen(node), self.doubles.on_vouched(node)))

    def heard(self, peer: NodeId, now: Now) -> None:
        """Anything that arrives is a sign of life."""
        known = self._up.get(peer)
        if known is None:
            return
        known.heard, known.missed = now.mono, 0
        if known.silent:
            known.silent = False
            self._identity.on_up(peer)

    def on_ping(self, turn: Turn, peer: NodeId, message: Ping, links: int) -> None:
        self._note_links(peer, message.links)
        self._told[peer] = (message.epoch, message.active)
        known = self._up.get(peer)
        if known is not None:
            known.clocks_apart_ms.append(message.time_ms - turn.now.unix_ms)
            known.pinged = message.sent
        if message.epoch > self._self.view.epoch:
            turn.send(peer, AskViews(self._self.view.epoch))
        self._identity.on_ping(peer, message.votes, message.epoch)
        others = self._others(turn.now)
        boot = None
        if self.doubles.vouches(peer, others, turn.now.mono):
            boot = self.doubles.on_vouched(peer)
        else:
            self.doubles.ask(turn, peer, others)
        turn.send(peer, Pong(message.sent, links, self._identity.seen(peer), boot))

    def on_pong(self, turn: Turn, peer: NodeId, message: Pong) -> None:
        self._note_links(peer, message.links)
        vouches = message.boot == self._self.boot and message.sent >= self._suspended_at
        self._identity.on_pong(peer, message.seen, vouches=vouches)
        self.doubles.on_pong(turn, peer, message.sent, self._others(turn.now))
        known = self._up.get(peer)
        if known is not None:
            known.unanswered = 0
        sample = turn.now.mono - message.sent
        if known is None or not 0 <= sample <= MAX_RTT_S:  # also when `sent` is no number
            return
        self._note_lag(known, message)
        if not known.pongs or message.sent >= known.pongs[-1][0] + PING_EVERY_S / 2:
            known.pongs.append((message.sent, message.links))
        sample = max(sample, MIN_RTT_S)
        known.rtt = sample if not known.measured else (1 - RTT_WEIGHT) * known.rtt + RTT_WEIGHT * sample
        known.measured = True

    def counts(self, peer: NodeId, message: Message) -> bool:
        """False for what is said about votes by a process of `peer` that is not the one this node vouched for last, and
        for answers while this node may not vote itself: they may be for another process of it. Both are asked for
        again."""
        kind = type(message)
        if kind not in _VOTING or peer == self._self.id:
            return True
        if self.doubles.is_another(peer) or (kind in _ANSWERS and not self._identity.verified):
            self._self.counters["votes_ignored"] += 1
            return False
        return True

    def wake(self, now: Now) -> None:
        """Before all else in a turn: who slept may have been given up meanwhile, and another process of it be vouched
        for. It votes again when all have vouched for it since, and vouches for others as if it had just started."""
        if self._has_slept(now):
            self._suspend(now)
            self.doubles.on_slept(now.mono)

    def _has_slept(self, now: Now) -> bool:
        return now.mono >= self._next_ping + SUSPECT_S

    def _suspend(self, now: Now) -> None:
        self._suspended_at = now.mono
        self._identity.suspend()

    def _note_links(self, peer: NodeId, links: int) -> None:
        known = self._up.get(peer)
        if known is not None:
            known.links = links

    def _note_lag(self, known: _Peer, message: Pong) -> None:
        before = [links for when, links in self._had if when <= message.sent - LAG_S]
        if before:
            known.lags = message.links + LAG_LINKS < before[-1]

    def _note_own_lag(self, now: Now, links: int) -> None:
        """In each round of pings: this node has `links` now."""
        self._had.append((now.mono, links))
        self._lags = False
        for peer, known in self._up.items():
            told = known.told_links
            if len(told) == _LAG_ROUNDS and told[0] > links + LAG_LINKS and self.alive(peer, now):
                self._lags = True
            told.append(known.links)

    def lags(self, node: NodeId) -> bool:
        """True when `node` lacks many links that this node had LAG_S before; of this node itself, when it lacks as many
        that a peer who lives had LAG_S before."""
        if node == self._self.id:
            return self._lags
        known = self._up.get(node)
        return known is not None and known.lags

    def keeps_pace(self, node: NodeId, now: Now) -> bool:
        """True for who lives and does not lag."""
        return self.alive(node, now) and not self.lags(node)

    def ranks(self, group: Sequence[NodeId], now: Now) -> list[NodeId]:
        """To whom of a slot's group requests are handed, one after the other: those who live, in their order, who lags
        last. All of them when nobody lives."""
        living = [node for node in group if self.alive(node, now)] or list(group)
        return sorted(living, key=self.lags)

    def alive(self, node: NodeId, now: Now) -> bool:
        """True for this node itself and for peers that were heard of lately and hear this node."""
        known = self._up.get(node)
        return self.heard_lately(node, now) and (known is None or known.unanswered <= UNANSWERED)

    def heard_lately(self, node: NodeId, now: Now) -> bool:
        """True for this node itself and for peers that were heard of lately, whether they hear this node or not."""
        known = self._up.get(node)
        return node == self._self.id or (known is not None and now.mono - known.heard < SUSPECT_S)

    def rtt(self, nodes: Iterable[NodeId]) -> float:
        """The longest smoothed round trip to any of `nodes`, seconds."""
        return max((self._up[n].rtt for n in nodes if n in self._up), default=FIRST_RTT_S)

    def measured_rtt(self, node: NodeId) -> float | None:
        """The smoothed round trip to `node` in seconds, None before the first pong."""
        known = self._up.get(node)
        return known.rtt if known is not None and known.measured else None

    def told(self, node: NodeId) -> tuple[int, bool]:
        """The epoch that `node` said it had installed last, and whether it was ACTIVE in it in all its regions."""
        return self._told.get(node, (0, False))

    def clock_apart_ms(self, node: NodeId) -> int:
        """Its wall clock minus ours in milliseconds, by that of its last CLOCK_PINGS pings that waited least on its
        way: what a ping waits makes a clock look slow."""
        known = self._up.get(node)
        return max(known.clocks_apart_ms, default=0) if known is not None else 0

    def keeps_up(self, now: Now, links: int) -> bool:
        """True when a majority of the members, this node with `links` applied among them if it is one, are in no later
        epoch and had no more links when they answered one of the last two pings: what is newer may be on its way."""
        view = self._self.view
        since = now.mono - max(CURRENT_S, 3 * self._rounds() * PING_EVERY_S)
        missing = majority(len(view.ids))
        for node in view.ids:
            missing -= node == self._self.id or self._is_level(node, now, links, view.epoch, since)
            if not missing:
                return True
        return False

    def _is_level(self, node: NodeId, now: Now, links: int, epoch: int, since: float) -> bool:
        known = self._up.get(node)
        if known is None or not self.alive(node, now) or self.told(node)[0] > epoch:
            return False
        return any(sent > since and there <= links for sent, there in known.pongs)

    def _rounds(self) -> int:
        """In so many rounds of pings each peer is pinged once."""
        return -(-len(self._up) // PINGS_PER_ROUND)

    def links(self, node: NodeId) -> int:
        """How many links `node` said it had applied."""
        known = self._up.get(node)
        return known.links if known is not None else 0

    def most_links(self) -> int:
        """The most that a connected peer said it had applied."""
        return max((known.links for known in self._up.values()), default=0)

    def connected(self) -> list[NodeId]:
        """Peers with a connection, in id order (so that a seed gives one run)."""
        return sorted(self._up)

    def deadline(self) -> float:
        return self._next_ping

    def tick(self, turn: Turn, links: int) -> None:
        """Ping, when it is time."""
        self._identity.tick(turn.now.mono)
        if turn.now.mono < self._next_ping:
            return
        slept = self._has_slept(turn.now)  # what came meanwhile may not have been looked at yet
        self._next_ping = turn.now.mono + PING_EVERY_S
        self._note_own_lag(turn.now, links)
        peers = self.connected()
        if not slept:
            self._look_for_silence(turn, peers)
        if len(peers) > PINGS_PER_ROUND:
            start = self._turn_of % len(peers)
            self._turn_of = start + PINGS_PER_ROUND
            peers = (peers + peers)[start : start + PINGS_PER_ROUND]
        for peer in peers:
            self._up[peer].unanswered += 1
            turn.send(peer, self._ping(turn.now, links))

    def _look_for_silence(self, turn: Turn, peers: Sequence[NodeId]) -> None:
        """Who is silent holds nobody up; who stays silent is dropped, and dialed anew."""
        patience = max(DROP_PINGS, 3 * self._rounds())
        for peer in peers:
            known = self._up[peer]
            known.missed += 1
            if not known.silent and not self.heard_lately(peer, turn.now):
                known.silent = True
                self._identity.on_down(peer)
            if known.silent and known.missed > patience:
                known.missed = 0
                self._self.counters["peers_silent"] += 1
                turn.drops.append(peer)

    def ping_all(self, turn: Turn, links: int) -> None:
        """Tell everybody at once what has changed here (a view, an ACTIVE mark)."""
        for peer in self.connected():
            turn.send(peer, self._ping(turn.now, links))

    def _ping(self, now: Now, links: int) -> Ping:
        epoch, active = self._self.view.epoch, self._self.fully_active
        return Ping(now.mono, links, self._identity.votes, epoch, active, now.unix_ms)

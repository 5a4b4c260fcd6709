"""Failure detector: which members are alive, how far away they are.

A member is alive while its connection stands and something was heard of it within SUSPECT_S. Pings keep an idle
connection heard of and measure the round trip *through the peer's turns*, so that time-outs built on it grow with
load. Being wrong costs time, never safety: consensus does not ask who is alive.
"""

from collections.abc import Iterable
from typing import Final

from node.doubles import Doubles
from node.identity import Identity
from node.messages import AskViews, BootAnswer, Ping, Pong
from node.turn import Now, Self, Turn
from routing.keyspace import NodeId
from routing.view import majority

PING_EVERY_S: Final = 0.5  # four chances before a peer is suspected
SUSPECT_S: Final = 2.0
PINGS_PER_ROUND: Final = 16  # above this many members each round pings a part of them
MIN_RTT_S: Final = 0.005  # below a turn's own length a measured round trip says nothing
FIRST_RTT_S: Final = 0.05
MAX_RTT_S: Final = 60.0  # a peer is suspected long before; what it echoes is not believed beyond
RTT_WEIGHT: Final = 0.2  # of a new sample, as TCP smooths


class _Peer:
    def __init__(self, now: float) -> None:
        self.heard = now
        self.rtt = FIRST_RTT_S
        self.measured = False
        self.links = 0
        self.clock_apart_ms = 0
        self.pinged: float | None = None  # `sent` of its last ping


class Peers:
    """What this node knows about the other members."""

    def __init__(self, self_: Self, identity: Identity) -> None:
        self._self = self_
        self._identity = identity
        self.doubles = Doubles(self_)
        self._up: dict[NodeId, _Peer] = {}
        self._next_ping = 0.0
        self._turn_of = 0
        self._told: dict[NodeId, tuple[int, bool]] = {}

    def on_up(self, turn: Turn, peer: NodeId, boot: bytes) -> None:
        self._up[peer] = _Peer(turn.now.mono)
        self._identity.on_up(peer)
        self.doubles.on_up(peer, boot)
        self.doubles.ask(turn, peer, self._others(turn.now))
        self._next_ping = turn.now.mono

    def on_down(self, peer: NodeId) -> None:
        self._up.pop(peer, None)
        self._identity.on_down(peer)
        self.doubles.on_down(peer)

    def _others(self, now: Now) -> list[NodeId]:
        """The members that can be asked about a peer, in id order."""
        return [node for node in self._self.view.ids if node in self._up and self.alive(node, now)]

    def on_boot_answer(self, turn: Turn, peer: NodeId, message: BootAnswer, links: int) -> None:
        """The last one to agree makes this node vouch: it need not wait for the next ping."""
        node = NodeId(message.node)
        known = self._up.get(node)
        others = self._others(turn.now)
        before = self.doubles.vouches(node, others)
        self.doubles.on_answer(turn, peer, message)
        if known is not None and known.pinged is not None and not before and self.doubles.vouches(node, others):
            turn.send(node, Pong(known.pinged, links, self._identity.seen(node)))

    def heard(self, peer: NodeId, now: Now) -> None:
        """Anything that arrives is a sign of life."""
        known = self._up.get(peer)
        if known is not None:
            known.heard = now.mono

    def on_ping(self, turn: Turn, peer: NodeId, message: Ping, links: int) -> None:
        self._note_links(peer, message.links)
        self._told[peer] = (message.epoch, message.active)
        known = self._up.get(peer)
        if known is not None:
            known.clock_apart_ms = message.time_ms - turn.now.unix_ms
            known.pinged = message.sent
        if message.epoch > self._self.view.epoch:
            turn.send(peer, AskViews(self._self.view.epoch))
        self._identity.on_ping(peer, message.votes)
        others = self._others(turn.now)
        vouches = self.doubles.vouches(peer, others)
        if not vouches:
            self.doubles.ask(turn, peer, others)
        turn.send(peer, Pong(message.sent, links, self._identity.seen(peer), vouches))

    def on_pong(self, turn: Turn, peer: NodeId, message: Pong) -> None:
        self._note_links(peer, message.links)
        self._identity.on_pong(peer, message.seen, vouches=message.vouches)
        self.doubles.on_pong(turn, peer, message.sent)
        known = self._up.get(peer)
        sample = turn.now.mono - message.sent
        if known is None or not 0 <= sample <= MAX_RTT_S:  # also when `sent` is no number
            return
        sample = max(sample, MIN_RTT_S)
        known.rtt = sample if not known.measured else (1 - RTT_WEIGHT) * known.rtt + RTT_WEIGHT * sample
        known.measured = True

    def _note_links(self, peer: NodeId, links: int) -> None:
        known = self._up.get(peer)
        if known is not None:
            known.links = links

    def alive(self, node: NodeId, now: Now) -> bool:
        """True for this node itself and for peers that were heard of lately."""
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
        """Its wall clock minus ours when it pinged last, with the way of the ping: milliseconds."""
        known = self._up.get(node)
        return known.clock_apart_ms if known is not None else 0

    def has_majority(self, now: Now) -> bool:
        """True when this node is a member and in contact with a majority of all, itself included."""
        members = self._self.view.ids
        return self._self.is_member and sum(self.alive(n, now) for n in members) >= majority(len(members))

    def links(self, node: NodeId) -> int:
        """How many links `node` said it had applied."""
        known = self._up.get(node)
        return known.links if known is not None else 0

    def connected(self) -> list[NodeId]:
        """Peers with a connection, in id order (so that a seed gives one run)."""
        return sorted(self._up)

    def deadline(self) -> float:
        return self._next_ping

    def tick(self, turn: Turn, links: int) -> None:
        """Ping, when it is time."""
        if turn.now.mono < self._next_ping:
            return
        self._next_ping = turn.now.mono + PING_EVERY_S
        peers = self.connected()
        if len(peers) > PINGS_PER_ROUND:
            start = self._turn_of % len(peers)
            self._turn_of = start + PINGS_PER_ROUND
            peers = (peers + peers)[start : start + PINGS_PER_ROUND]
        for peer in peers:
            turn.send(peer, self._ping(turn.now, links))

    def ping_all(self, turn: Turn, links: int) -> None:
        """Tell everybody at once what has changed here (a view, an ACTIVE mark)."""
        for peer in self.connected():
            turn.send(peer, self._ping(turn.now, links))

    def _ping(self, now: Now, links: int) -> Ping:
        epoch, active = self._self.view.epoch, self._self.fully_active
        return Ping(now.mono, links, self._identity.votes, epoch, active, now.unix_ms)

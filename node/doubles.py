"""Two copies of one node at once (design R12): who is vouched for must be the same for all who vouch.

Counts of votes tell an old copy of a disk from its original, but not two that start from the same one at the same moment:
with five members each could find two others that vouch for it, and together they would vote twice. Every start of a node
has a `boot` of its own in its hello. So before a node vouches for a peer it asks all members that it is connected to
whether they see another boot of that peer. Of two members that vouch and reach each other, one asks second and learns it.

Who sees another boot says so only when that one has answered a ping that left after the question: a connection may
outlive its process for a while. Nobody vouches meanwhile. A peer that is certainly there twice is told, and ends.

What is left is a copy that starts while a cut separates those who vouch for it from those who vouch for the other one.
"""

from collections.abc import Collection
from typing import Final

import msgspec

from chain.errors import Quarantined
from node.messages import AskBoot, BootAnswer, Twice
from node.turn import Self, Turn
from routing.keyspace import NodeId, short

FEW: Final = 16  # members who may be asked again at every ping
ASK_AGAIN_S: Final = 0.4  # in larger networks: all ask all about all when they start


class _Seen(msgspec.Struct):
    """A connected peer: its boot, who sees no other one, and who has asked about it since when (monotonic seconds)."""

    boot: bytes
    agreed: set[NodeId] = msgspec.field(default_factory=set)
    askers: dict[NodeId, tuple[bytes, float]] = msgspec.field(default_factory=dict)
    asked: dict[NodeId, float] = msgspec.field(default_factory=dict)  # when each was asked last


class Doubles:
    """Which boots of its peers this node sees, and for whom it may vouch."""

    def __init__(self, self_: Self) -> None:
        self._self = self_
        self._seen: dict[NodeId, _Seen] = {}

    def on_up(self, peer: NodeId, boot: bytes) -> None:
        self._seen[peer] = _Seen(boot)

    def on_down(self, peer: NodeId) -> None:
        self._seen.pop(peer, None)

    def vouches(self, peer: NodeId, members: Collection[NodeId]) -> bool:
        """True when all `members` (those who can be asked now) see no other boot of `peer`."""
        seen = self._seen.get(peer)
        return seen is not None and all(node in seen.agreed for node in members if node != peer)

    def ask(self, turn: Turn, peer: NodeId, members: Collection[NodeId]) -> None:
        """Ask those `members` who have not agreed yet."""
        seen = self._seen.get(peer)
        if seen is None:
            return
        now = turn.now.mono
        for node in members:
            if node in seen.agreed or node == peer:
                continue
            if len(members) <= FEW or seen.asked.get(node, float("-inf")) + ASK_AGAIN_S <= now:
                seen.asked[node] = now
                turn.send(node, AskBoot(peer, seen.boot))

    def on_ask(self, turn: Turn, asker: NodeId, message: AskBoot) -> None:
        seen = self._seen.get(message.node)
        if message.node == self._self.id:
            return
        if seen is None or seen.boot == message.boot:
            turn.send(asker, BootAnswer(message.node, message.boot, twice=False))
        elif asker not in seen.askers:
            seen.askers[asker] = (message.boot, turn.now.mono)

    def on_pong(self, turn: Turn, peer: NodeId, sent: float) -> None:
        """`peer` has answered a ping of time `sent`: the boot that is seen here lives."""
        seen = self._seen.get(peer)
        if seen is None:
            return
        for asker, (boot, asked) in list(seen.askers.items()):
            if sent > asked:
                del seen.askers[asker]
                turn.send(asker, BootAnswer(peer, boot, twice=True))

    def on_answer(self, turn: Turn, peer: NodeId, message: BootAnswer) -> None:
        seen = self._seen.get(NodeId(message.node))
        if seen is None or seen.boot != message.boot:
            return
        if message.twice:
            self._self.counters["peers_twice"] += 1
            turn.send(NodeId(message.node), Twice(message.boot))
        else:
            seen.agreed.add(peer)

    def on_twice(self, turn: Turn, peer: NodeId, message: Twice) -> None:
        """Raises `Quarantined`: two nodes see two boots of this one."""
        raise Quarantined(
            f"node {short(self._self.id)} runs twice at once: node {short(peer)} and another one are connected to different "
            "processes of it, so another copy of it is running. Neither may vote: stop both, keep one directory, start "
            "that one alone"
        )

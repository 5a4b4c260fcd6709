"""Which simulated nodes are connected: TCP as a core sees it, that is by `PeerUp` and `PeerDown`.

A connection is made where both processes run, no cut lies between them in either direction, and the two admit each
other. One that could stand is made a little later; one whose process ends or that is not admitted any more breaks at
once. A cut breaks none: what is sent over it is lost.
"""

import random
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from netsim.network import Network
from netsim.sim_node import SimNode
from node.events import Event, PeerDown, PeerUp

RECONNECT_S: Final = (0.01, 0.2)  # until a connection stands again


class ConnectionHost(Protocol):
    """The simulated network whose nodes connect."""

    @property
    def nodes(self) -> Sequence[SimNode]: ...
    @property
    def network(self) -> Network: ...
    @property
    def rng(self) -> random.Random: ...
    @property
    def now(self) -> float: ...
    def at(self, when: float, act: Callable[[], None]) -> None: ...
    def arrive(self, node: SimNode, event: Event) -> None: ...


class Connections:
    """All connections of one run."""

    def __init__(self, host: ConnectionHost) -> None:
        self._host = host
        self._standing: set[tuple[int, int]] = set()  # the lower number first

    @property
    def standing(self) -> frozenset[tuple[int, int]]:
        """The pairs of nodes that are connected, the lower number first."""
        return frozenset(self._standing)

    def make(self) -> None:
        """Connections that could stand and do not are made, a little later."""
        for a in self._host.nodes:
            for b in self._host.nodes[a.index + 1 :]:
                if self._can_stand(a, b) and (a.index, b.index) not in self._standing:
                    delay = self._host.rng.uniform(*RECONNECT_S)
                    self._host.at(self._host.now + delay, lambda a=a, b=b: self._connect(a, b))  # type: ignore[misc]

    def drop(self, node: SimNode) -> None:
        """Its process has ended."""
        for other in self._host.nodes:
            if _pair(node, other) in self._standing:
                self._standing.discard(_pair(node, other))
                self._host.arrive(other, PeerDown(node.id))

    def look(self, node: SimNode) -> None:
        """What its connections should be changes with its view, and again when that has been ACTIVE everywhere for a
        while."""
        assert node.core is not None
        neighbours = node.core.membership.neighbours()
        if neighbours == node.neighbours:
            return
        node.neighbours = neighbours
        for other in self._host.nodes:
            if _pair(node, other) in self._standing and not _admit_each_other(node, other):
                self._standing.discard(_pair(node, other))
                self._host.arrive(other, PeerDown(node.id))
                self._host.arrive(node, PeerDown(other.id))
        self.make()

    def _can_stand(self, a: SimNode, b: SimNode) -> bool:
        if a.core is None or b.core is None:
            return False
        network = self._host.network
        cut = network.is_cut(a.index, b.index) or network.is_cut(b.index, a.index)
        return not cut and _admit_each_other(a, b)

    def _connect(self, a: SimNode, b: SimNode) -> None:
        if self._can_stand(a, b) and (a.index, b.index) not in self._standing:
            self._standing.add((a.index, b.index))
            self._host.arrive(a, PeerUp(b.id))
            self._host.arrive(b, PeerUp(a.id))


def _admit_each_other(a: SimNode, b: SimNode) -> bool:
    """One of them looks for the other, and neither says that it was removed. A guest's invitation names members,
    whatever has become of those of the first view."""
    assert a.core is not None
    assert b.core is not None
    one, other = a.core.membership, b.core.membership
    invited = a.core.view.is_member(a.id) != b.core.view.is_member(b.id)
    wanted = invited or b.id in one.neighbours() or a.id in other.neighbours()
    return wanted and not one.is_refused(b.id) and not other.is_refused(a.id)


def _pair(a: SimNode, b: SimNode) -> tuple[int, int]:
    return (min(a.index, b.index), max(a.index, b.index))

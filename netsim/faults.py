"""What the faults of a plan do to a simulated world, and that they end.

A fault happens when its time has come. Some wait for something: a kill at a commit is left with the node
(`SimNode.armed`, `counted`), an old disk waits until the others know of what it lacks, and changes of the members are
wished for by the operator (`netsim.changes`). What the network could not bear (`netsim.losses`) does not happen and is
not counted.
"""

import random
import sqlite3
from collections.abc import Callable, Collection, Sequence
from typing import Final

import msgspec

from chain.seal import load_active, load_seen
from netsim.changes import Operator, Wish
from netsim.losses import can_lose
from netsim.plan import (
    Add,
    Bury,
    ClockJump,
    Clog,
    Cut,
    Die,
    DiskError,
    Fault,
    Hold,
    Kill,
    KillAtCommit,
    Pause,
    Remove,
    Rollback,
    SlowDisk,
    WeatherChange,
)
from netsim.sim_node import SimNode
from netsim.world import World
from routing.regions import RING, Ranges, decode_ranges

LOOK_S: Final = 0.2  # how often a fault that waits for something looks
_COUNTED_LATER: Final = (
    Kill,
    KillAtCommit,
    DiskError,
    Rollback,
    Add,
    Remove,
    Die,
    Bury,
)  # when something comes of them


class Faults:
    """The faults of one run. `operator` makes the changes of the members."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.operator = Operator(world, world.network_id, random.Random(f"operator {world.plan.seed}"))
        self._away: set[int] = set()  # nodes that are kept away until they are healed
        self._over = False  # no fault begins any more

    def schedule(self, fault: Fault, start: float) -> None:
        """Let a fault happen; its times count from `start`."""
        self._world.at(start + fault.at, lambda: self._begin(fault, start))

    def _begin(self, fault: Fault, start: float) -> None:
        if self._over:
            return
        self._world.note("fault", repr(fault))
        if not isinstance(fault, _COUNTED_LATER):
            self._world.happened[type(fault).__name__] += 1
        match fault:
            case Cut() | Clog() | Hold() | WeatherChange():
                self._world.hit_network(fault, start)
            case Add() | Remove() | Die() | Bury():
                self._change_members(fault)
            case _:
                self._hit_node(fault, self._world.nodes[fault.node], start)

    def _hit_node(
        self,
        fault: Kill | KillAtCommit | Pause | ClockJump | Rollback | SlowDisk | DiskError,
        node: SimNode,
        start: float,
    ) -> None:
        world = self._world
        match fault:
            case Kill(point="idle"):
                world.happened["Kill.idle"] += node.core is not None
                world.crash(node, start + fault.until)
            case Kill():
                if node.core is not None:
                    node.hit(fault, start)
            case KillAtCommit():
                node.counted.append(msgspec.structs.replace(fault, number=node.commits + fault.number))
            case Pause():
                node.paused_until = start + fault.until
                world.at(node.paused_until, lambda: world.wake(node))
            case ClockJump() | SlowDisk() | DiskError():
                node.hit(fault, start)
            case Rollback():
                copy = node.disk.copy() if fault.disk == "old" else None
                seen = load_seen(copy) if copy is not None else ()  # also of a node that is down
                votes = next((row.votes for row in seen if row.node == node.id), 0)
                self._roll_back_when_told(node, copy, votes, start + fault.until)

    def _roll_back_when_told(self, node: SimNode, copy: sqlite3.Connection | None, votes: int, until: float) -> None:
        """End the process when all others know of more than `votes` and the network can do without this disk, and start
        it again on the other one."""
        world = self._world
        if world.now > until or node.gone or self._over:
            return
        others = [other.core for other in world.nodes if other is not node and world.watch.is_member(other.index)]
        told = others and all(core is not None and core.identity.seen(node.id) > votes for core in others)
        if node.core is None or not told or not self.can_lose({node.index}):
            world.at(world.now + LOOK_S, lambda: self._roll_back_when_told(node, copy, votes, until))
            return
        world.happened["Rollback"] += 1
        world.crash(node, float("inf"))
        node.disk.replace(copy)
        node.must_go = True
        world.observer.replaced(node.index, node.disk.conn)
        world.at(world.now + LOOK_S, lambda: world.start(node))

    # --- changes of the members, and disks that are lost ---

    def _change_members(self, fault: Add | Remove | Die | Bury) -> None:
        node = self._world.nodes[fault.node]
        match fault:
            case Add():
                if fault.fresh:
                    self._world.begin_guest(node)
                self._wish(node, add=True)
            case Remove():
                self._wish(node, add=False, force=fault.force, then=(lambda: self._stop(node)) if fault.stop else None)
            case Die():
                self._die(node)
            case Bury():
                self._bury(node, self._world.nodes[fault.spare], remove_first=fault.remove_first)

    def _wish(self, node: SimNode, *, add: bool, force: bool = True, then: Callable[[], None] | None = None) -> None:
        """Let the operator want it, unless the network could never bear it."""
        wish = Wish(node.index, node.id, add, force, then)
        if (add and node.gone) or not self.can_lose((), wish):
            return
        self._world.happened["Add" if add else "Remove"] += 1
        self.operator.want(wish)

    def _stop(self, node: SimNode) -> None:
        """Its change was answered: the process may end for good."""
        if not node.gone and self.can_lose({node.index}):
            self._world.happened["Stop"] += 1
            self._lose(node)

    def _die(self, node: SimNode) -> bool:
        """False when the network could not bear it, and nothing happened."""
        if node.gone or not node.begun or not self.can_lose({node.index}):
            return False
        self._world.happened["Die"] += 1
        self._lose(node)
        return True

    def _bury(self, node: SimNode, spare: SimNode, *, remove_first: bool) -> None:
        """The node dies, and the operator replaces it."""
        if not self._die(node):
            return
        self._world.happened["Bury"] += 1
        self._world.begin_guest(spare)
        steps = [(spare, True), (node, False)]
        (first, adds), (second, then_adds) = reversed(steps) if remove_first else steps
        self._wish(first, add=adds, then=lambda: self._wish(second, add=then_adds))

    def _lose(self, node: SimNode) -> None:
        """Its disk is gone, for ever."""
        node.gone = True
        self._world.crash(node, float("inf"))
        self._world.observer.died(node.index)
        self.operator.give_up(node.index)

    def can_lose(self, nodes: Collection[int], wish: Wish | None = None) -> bool:
        """True when the network can go on without these nodes, also when `wish` is made."""
        views, everybody = self._world.watch.views, self._world.nodes
        active = {node.id: self._active(node) for node in everybody}
        lost = {everybody[index].id for index in self.lost(nodes)}
        return can_lose(views, self.operator.possible(views[-1], wish), active, lost)

    def lost(self, nodes: Collection[int] = ()) -> set[int]:
        """These nodes, and those with which nobody can reckon now."""
        out = {n.index for n in self._world.nodes if n.gone or n.must_go or not n.begun}
        return out | self._away | set(nodes)

    def _active(self, node: SimNode) -> dict[int, Ranges]:
        """Where a node is ACTIVE in each epoch, by its disk; in the first all its members are, everywhere."""
        if node.gone:
            return {}
        view = self._world.view
        first = {view.epoch: RING} if view.is_member(node.id) else {}
        return {**first, **{epoch: decode_ranges(raw) for epoch, raw in load_active(node.disk.conn).items()}}

    # --- the end ---

    def heal(self, nodes: Sequence[int]) -> None:
        """These nodes work from now on, and every path between them."""
        world = self._world
        self._away -= set(nodes)
        world.heal_network(nodes)
        for node in (world.nodes[index] for index in nodes):
            node.mend()
            node.counted.clear()
            node.paused_until = world.now
            if node.core is None and node.begun and not node.gone and not node.must_go:
                world.start(node)
            world.wake(node)
        world.connections.make()

    def heal_alone(self, core: Sequence[int], dead: Collection[int]) -> None:
        """Only these nodes work from now on, in calm weather, until others are healed: the `dead` are down, the rest is
        cut off. No other fault begins any more."""
        world = self._world
        self._over = True
        self._away = set(world.plan.everybody) - set(core)
        for index in dead:
            world.crash(world.nodes[index], float("inf"))
        world.cut(Cut(0.0, tuple(core), tuple(sorted(self._away)), float("inf")))
        world.network.calm_down()
        self.heal(core)

"""What a node's log says of the node itself, for who runs it: each change that matters, once.

| of | is told when |
|---|---|
| view | another one is installed: who came, who went |
| ACTIVE | it has to copy what it must know before it votes in some key ranges (design R7), or has it all |
| silence | a member that is connected does not answer, or does again |
| majority | key ranges have no majority of their group that this node reaches, or all have one again |
| doubt | a member proposed a link that does not follow from the chain here: one of the two databases is damaged |
| votes | the members have vouched for its disk (design R12), or must do so again |
| disk | so little of it is free that no new requests are taken, or enough again |
| sleep | this process did not run for a while |

A node is looked at once a second. What is told was so at two looks in a row: what comes and goes makes few lines,
however long it goes on. Only sleep is told at once: nobody can see it twice.
"""

import logging
from collections.abc import Collection, Iterator
from typing import Final

import msgspec

from node.core import Core
from node.epochs import without_majority
from node.turn import Now
from routing.keyspace import NodeId, short
from routing.regions import group_ranges
from routing.view import View

log = logging.getLogger(__name__)

SLEPT_S: Final = 2.0  # so much later than a look is due: as long as others wait before they suspect it
NAMED: Final = 5  # nodes in one line; the others are counted

_MIB: Final = 1024 * 1024


class Condition(msgspec.Struct, frozen=True):
    """How a node is, as far as its log tells. As it is made here, it is that of a node which has just started."""

    epoch: int = 0
    members: frozenset[NodeId] = frozenset()
    syncing: int = 0  # regions in which it is not ACTIVE yet
    silent: frozenset[NodeId] = frozenset()
    ranges: int = 0  # of keys, each with its group
    without_majority: int = 0
    votes: bool = False
    doubted: frozenset[tuple[NodeId, str]] = frozenset()  # each with the reason why
    disk_lacks: int = 0  # bytes that are to be free, and are not


class ConditionLog:
    """Tells of one node. `look` is to be called every `every_s` seconds."""

    def __init__(self, node: NodeId, core: Core, started: float, every_s: float) -> None:
        self._id = node
        self._core = core
        self._every_s = every_s
        self._looked = started
        self._seen = self._told = Condition()
        self._reached: tuple[View, frozenset[NodeId]] | None = None
        self._counts = (0, 0)

    def look(self, now: Now) -> None:
        """See how the node is, and tell what has changed."""
        late_s = now.mono - self._looked - self._every_s
        self._looked = now.mono
        if late_s > SLEPT_S:
            log.warning(
                "this process did not run for %.1f s: it was stopped, or its machine slept or has too much to do",
                late_s,
            )
            return  # what it did not hear meanwhile says nothing of others
        seen = self._condition(now)
        if seen == self._seen:
            for level, line in changes(self._told, seen):
                log.log(level, line)
            self._told = seen
        self._seen = seen

    def _condition(self, now: Now) -> Condition:
        core, view = self._core, self._core.view
        connected = core.peers.connected()
        alive = frozenset(node for node in connected if core.peers.alive(node, now)) | {self._id}
        if self._reached != (view, alive):  # in a large view it takes a while
            groups = [group for _, group in group_ranges(view)]
            self._reached, self._counts = (view, alive), (len(groups), without_majority(groups, alive))
        return Condition(
            view.epoch,
            frozenset(view.ids),
            core.gauges().syncing,
            frozenset(view.ids).intersection(connected) - alive,
            *self._counts,
            votes=view.is_member(self._id) and core.identity.verified,
            doubted=frozenset(core.acceptor.doubted.items()),
            disk_lacks=core.admission.disk_lacks,
        )


def changes(before: Condition, after: Condition) -> Iterator[tuple[int, str]]:
    """What is to be told, each line with its level."""
    if after.epoch != before.epoch:
        came, went = after.members - before.members, before.members - after.members
        who = [f"{_named(came)} added"] * bool(came and before.epoch) + [f"{_named(went)} removed"] * bool(went)
        yield logging.INFO, "; ".join([f"epoch {after.epoch}, {len(after.members)} members", *who])
    if after.syncing and not before.syncing:
        yield (
            logging.INFO,
            f"this node votes in {after.syncing} key ranges when it has what their groups before must tell it",
        )
    if before.syncing and not after.syncing:
        yield logging.INFO, f"this node has all that it must know in epoch {after.epoch}"
    if after.silent - before.silent:
        yield logging.WARNING, f"no answer from {_named(after.silent - before.silent)}: requests go round it"
    if after.without_majority and after.without_majority != before.without_majority:
        yield (
            logging.WARNING,
            f"in {after.without_majority} of {after.ranges} key ranges a majority of the group is not reached from here: "
            "payments of accounts there wait",
        )
    if not after.without_majority and (before.without_majority or not before.ranges):
        yield logging.INFO, f"in all {after.ranges} key ranges a majority of the group is reached from here"
    if before.silent - after.silent:
        yield logging.INFO, f"{_named(before.silent - after.silent)}: answers again, or disconnected"
    doubted = dict(sorted(after.doubted - before.doubted))
    if doubted:
        first, why = next(iter(doubted.items()))
        yield (
            logging.ERROR,
            f"this node does not vote for what {_named(doubted)} proposed: it does not follow from the chain here. One of the "
            "databases is damaged: run `hopchain verify` on each, and replace the node whose database is. "
            f"Of node {short(first)}, {why}",
        )
    if after.disk_lacks and not before.disk_lacks:
        yield (
            logging.WARNING,
            f"less than {after.disk_lacks // _MIB} MiB of the disk are free: this node takes no new requests until there is more. "
            "Make room or enlarge it: a node that cannot write ends",
        )
    if before.disk_lacks and not after.disk_lacks:
        yield logging.INFO, "the disk has room again: this node takes new requests"
    if after.votes and not before.votes:
        yield logging.INFO, "this node votes: the members have vouched for its disk"
    if before.votes and not after.votes:
        yield logging.WARNING, "this node votes no more until the members vouch for its disk again"


def _named(nodes: Collection[NodeId]) -> str:
    names = [short(node) for node in sorted(nodes)]
    more = [f"{len(names) - NAMED} more"] * (len(names) > NAMED)
    return ("node " if len(names) == 1 else "nodes ") + ", ".join(names[:NAMED] + more)

"""Identity (design R12): a node whose disk went back in time must not vote.

A node counts the transactions in which it promises something: votes, and views that it installs as a member, for
whoever has installed a view votes in no earlier epoch any more (R5). The count is in those transactions. It is told
with every ping, and peers remember the highest they saw, on disk too. Every pong says what its sender saw. So

* a node that starts votes at once when all members have told it what they saw, and who else is connected, too. After
  MEET_S it is enough that all members that are connected have, with itself a majority of all. It does not vote while
  anybody that it hears of knows of a later view;
* a node that is told of more than it has itself came back with an old copy of its disk, an emptied disk, or while
  another copy of it runs. It raises `Quarantined` and may return only under a new id.

Views that are installed before a node was found whole promise nothing yet, and are counted when it is: else those that
an old disk catches up with would hide the votes that it lacks. What a process may have left uncounted the next one
counts, once.

A node that is alone in its own view asks nobody. Is that view old, because the disk is, then the members of the later
ones come back to it: whoever tells of a later view stops it until it has installed that. When it has reason to expect
others (it was given seeds, has noted where others are, or its view is not the first) it waits for them for ALONE_S
before it votes. A marker beside the database (`node.marker`) knows what a database was that is gone or was put back.

Somebody who was told of the lost promises must come within MEET_S: otherwise nothing can be noticed. To wait for more
members than a majority would stop a network that restarts with one of three dead.
"""

from typing import Final

from chain.errors import Quarantined
from chain.rows import VoteRow
from chain.seal import SeenRow
from node.turn import Self, Turn
from routing.keyspace import NodeId, short
from routing.view import FIRST_EPOCH, View, majority

REMEMBER_EVERY_S: Final = 1.0  # what peers said is written with the next votes, or after this long
ALONE_S: Final = 6.0  # it dials its seeds at once, and a handshake ends within five seconds
# Whom this node does not know has to dial it: it waits for DIAL_GRACE_S, pauses for DIAL_MAX_S after a try in vain
# (node.transport), and shakes hands: 3 + 1 + 1 s.
MEET_S: Final = 5.0


class Identity:
    """How often this node and its peers have made promises durable. `fenced`: it has installed views as a member, and
    an earlier process may not have counted them."""

    def __init__(self, self_: Self, seen: dict[NodeId, int], started: float, *, fenced: bool = False) -> None:
        self._self = self_
        self._started = started
        self._alone_until: float | None = None
        self._meet_until: float | None = started + MEET_S  # None: it is over, or this process was found whole before
        self._epochs: dict[NodeId, int] = {}  # what those members who are connected have installed
        self._latest = 0  # and the latest that anybody told of while this node was alone
        self._seen = {node: votes for node, votes in seen.items() if node != self_.id}
        self._unwritten: set[NodeId] = set()
        self._write_at: float | None = None
        self._confirmed_by: set[NodeId] = set()
        self._connected: set[NodeId] = set()
        self._answered: set[NodeId] = set()  # guests, too
        self._verified = False
        self._begun = False  # this process was found whole once
        self._uncounted = fenced
        self._counted = False  # in this turn, by `votes`
        self.votes = seen.get(self_.id, 0)
        if self_.view.epoch > FIRST_EPOCH:
            self.wait_for_seeds()

    @property
    def verified(self) -> bool:
        """True once all members who are connected, a majority at least, have confirmed that nothing of this node is
        missing: only then it votes and proposes. In the first MEET_S it takes all members, and an answer of everybody
        else who is connected."""
        if self._verified and not self._is_alone:
            return True
        latest = max(self._epochs.values(), default=0)
        if self._is_alone:  # whoever told of it may be gone: the view is there all the same
            latest = self._self.view.epoch + 1 if self._self.told_removed else max(latest, self._latest)
        if latest > self._self.view.epoch or self._alone_until is not None:
            self._verified = False
        elif not self._verified:
            self._verified = self._is_vouched_for()
        if self._verified:
            self._begun, self._meet_until = True, None
        return self._verified

    def _is_vouched_for(self) -> bool:
        others = set(self._self.view.ids) - {self._self.id}  # guests have no say
        if self._meet_until is not None:
            return others <= self._confirmed_by and self._connected <= self._answered
        enough = len(self._confirmed_by & others) + 1 >= majority(len(others) + 1)
        return enough and self._connected & others <= self._confirmed_by

    @property
    def _is_alone(self) -> bool:
        return tuple(self._self.view.ids) == (self._self.id,)

    def wait_for_seeds(self) -> None:
        """There are others outside of a view with this node alone: they get ALONE_S to tell of a later one."""
        if self._is_alone:
            self._alone_until = self._started + ALONE_S

    def suspend(self) -> None:
        """Another process of this node was seen: it votes again when all vouch for it again."""
        self._self.counters["suspended"] += 1
        self._verified = False
        self._confirmed_by.clear()

    def tick(self, now: float) -> None:
        if self._alone_until is not None and self._alone_until <= now:
            self._alone_until = None
        if self._meet_until is not None and self._meet_until <= now:
            self._meet_until = None

    def on_up(self, peer: NodeId) -> None:
        self._connected.add(peer)

    def on_down(self, peer: NodeId) -> None:
        self._connected.discard(peer)
        self._epochs.pop(peer, None)

    def seen(self, peer: NodeId) -> int:
        """The highest count that `peer` ever told, 0 for none."""
        return self._seen.get(peer, 0)

    def on_ping(self, peer: NodeId, votes: int, epoch: int) -> None:
        if self._is_alone:  # the members of later views are guests to it
            self._latest = max(self._latest, epoch)
        elif peer in self._connected and self._self.view.is_member(peer):
            self._epochs[peer] = epoch
        if votes > self.seen(peer):
            self._seen[peer] = votes
            self._unwritten.add(peer)

    def on_pong(self, peer: NodeId, seen: int, *, vouches: bool = True) -> None:
        """Raises `Quarantined` when `peer` saw more of this node than this node remembers. It `vouches` for this node
        once nobody sees a second copy (node.doubles). A guest cannot vouch; but what it has seen was there: to a disk
        from before it became a member it is a guest."""
        if seen > self.votes:
            raise Quarantined(
                f"node {short(self._self.id)} has recorded votes or views {self.votes} times, but node {short(peer)} has seen "
                f"{seen}: this data directory is an old copy, was emptied, comes from an invitation that was used before, or "
                "another copy of it is running. It must not vote again: stop it, keep no copy, and join the network anew under a "
                "new id"
            )
        self._answered.add(peer)
        if vouches and self._self.view.is_member(peer):
            self._confirmed_by.add(peer)

    def on_install(self, before: View, after: View) -> None:
        """R5: `after` is installed in this turn. Its pings tell the new count."""
        if any(view.is_member(self._self.id) for view in (before, after)):
            self._count()

    def _count(self) -> None:
        """Something is promised in this turn; many promises of a turn count as one."""
        if not self._begun:
            self._uncounted = True
        elif not self._counted:
            self.votes += 1
            self._counted = True

    def deadline(self) -> float | None:
        times = (self._write_at, self._alone_until, self._meet_until)
        return min([t for t in times if t is not None], default=None)

    def finish(self, turn: Turn) -> None:
        """At the end of a turn: count what it promises in its own transaction, and remember peers' counts."""
        if any(isinstance(write, VoteRow) for write in turn.persist):
            self._count()
        if self._uncounted and (self._begun or self.verified):
            self._uncounted = False
            self._count()
        counted, self._counted = self._counted, False
        if counted:
            turn.persist.append(SeenRow(self._self.id, self.votes))
        if not self._unwritten:
            return
        if self._write_at is None:
            self._write_at = turn.now.mono + REMEMBER_EVERY_S
        if counted or self._write_at <= turn.now.mono:
            turn.persist += [SeenRow(peer, self._seen[peer]) for peer in sorted(self._unwritten)]
            self._unwritten.clear()
            self._write_at = None

"""Membership: the chain of views, and who belongs to the newest one (design R5, R6, R9).

* R5 an installed view is in `Turn.persist` of the turn in which it is installed, before anything of the new epoch
  leaves.
* R6 views are installed one by one; whoever lags asks for those that follow its own.
* R9 a view is *settled* when a majority of every region that it changed is ACTIVE.

How the next view is decided: `node.view_ballots`; who asks for one: `node.changing`.

Who is not in the newest view is a *guest* (never was a member: it joins, or only reads) or *removed*. Guests get links
and views and vote on nothing; the removed may stay until the view without them is ACTIVE everywhere, and then never
come back.
"""

from collections.abc import Callable, Sequence
from typing import Final

from chain.rows import ViewRow
from node.epochs import inactive
from node.events import ToldRemoved
from node.identity import Identity
from node.messages import AskViews, Views
from node.peers import Peers
from node.replica import Replica
from node.syncing import Syncing
from node.turn import Self, Turn
from routing.errors import RoutingFault, RoutingMisuse
from routing.keyspace import NodeId
from routing.regions import Region, group_ranges, regions
from routing.view import View, check_next, decode_view, encode_view

LINGER_S: Final = 2.0  # the removed hear that the view without them is ACTIVE: several pings
VIEWS_BYTES: Final = 1024 * 1024  # of one Views message


class Membership:
    """The views that this node has installed, oldest first, and whom they make members."""

    def __init__(
        self, self_: Self, identity: Identity, peers: Peers, replica: Replica, syncing: Syncing, views: list[View]
    ) -> None:
        self._self = self_
        self._identity = identity
        self._peers = peers
        self._replica = replica
        self._syncing = syncing
        self.views = views
        self.hooks: list[Callable[[Turn], None]] = []
        self._checked: tuple[bytes, View] | None = None  # found good last: the same one comes in many messages
        self._changed: tuple[Region, ...] = self._changed_regions()
        self._settled = False
        self._linger_until: float | None = None  # set once it is settled
        self._lingered = False
        self._active_told = False

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

    def neighbours(self) -> frozenset[NodeId]:
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
        return 0 if node in self.neighbours() else self.removed_epoch(node)

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
                self.install(turn, self.next_untrusted(raw))
        told, _ = self._peers.told(peer)
        if message.views and told > self._self.view.epoch:
            turn.send(peer, AskViews(self._self.view.epoch))

    def next_untrusted(self, raw: bytes) -> View:
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

    def install(self, turn: Turn, view: View) -> None:
        """R5: what is sent in this turn leaves after the view is durable; from here on no vote of the epoch before."""
        before = self._self.view
        turn.persist.append(ViewRow(view.epoch, view.hash, before.hash, encode_view(view)))
        turn.hold_together()
        self.views.append(view)
        self._self.view = view
        self._identity.on_install(before, view)
        self._self.counters["views_installed"] += 1
        self._changed = self._changed_regions()
        self._settled = self._lingered = False
        self._linger_until = None
        self._syncing.install(turn, before, view)
        for hook in self.hooks:
            hook(turn)
        self._peers.ping_all(turn, self._replica.count)

    def _changed_regions(self) -> tuple[Region, ...]:
        if len(self.views) < 2:
            return ()
        return tuple(region for region in regions(*self.views[-2:]) if region.before != region.after)

    # --- time ---

    def deadline(self) -> float | None:
        return self._linger_until if not self._lingered else None

    def tick(self, turn: Turn) -> None:
        """Tell others where this node is ACTIVE; let go of who was removed last."""
        active = self._self.fully_active
        if active and not self._active_told:  # the barrier of others waits for this
            self._peers.ping_all(turn, self._replica.count)
        self._active_told = active
        if self._linger_until is None and self.settled:
            self._linger_until = turn.now.mono + LINGER_S
        self._lingered = self._linger_until is not None and self._linger_until <= turn.now.mono


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

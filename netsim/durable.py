"""What the nodes have made durable: votes, links, views, and where they are ACTIVE.

A value is *chosen* when a majority of its slot's group has it durably as its vote at one ballot. The observer counts
that from what is committed to the disks, not from what nodes say, and tells `netsim.chosen`. The group is that of the
ballot's epoch, and a vote is made in that epoch: a row whose ballot is of an earlier epoch than its node had installed
came with a sync (design R8), and is evidence of a vote, not another one. A view is chosen in the same way, by all
members of the view before.

Here I1, I8, I9 and I12 are about what is written, I3 about what a crash must leave, I7 and I13 about a node at rest.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Sequence

import msgspec

from chain.link import Link
from chain.rows import ActiveRow, Applied, ViewRow, VoteRow
from chain.seal import load_active, load_views, load_votes
from chain.store import Write
from netsim.chosen import Chosen
from netsim.violation import Violation
from node.core import Gauges
from routing.keyspace import NodeId
from routing.regions import RING, Ranges, Region, covers, decode_ranges, regions
from routing.view import View, decode_view, majority

Columns = tuple[int, int, bytes]


class NodeDisk(msgspec.Struct):
    """What one node has made durable. `lost`: it has another disk or none; what was only on the old one is gone."""

    votes: dict[bytes, VoteRow] = msgspec.field(default_factory=dict)
    links: set[bytes] = msgspec.field(default_factory=set)
    epoch: int = 1
    active: dict[int, Ranges] = msgspec.field(default_factory=dict)
    lost: bool = False


class Durable:
    """All nodes' disks: `durable[node]` is what is on that node's, by what was told to the methods here."""

    def __init__(self, chosen: Chosen) -> None:
        self._chosen = chosen
        self._disks = [NodeDisk(links=set(chosen.links)) for _ in chosen.ids]
        first = chosen.views[0]
        for node in first.ids:
            self._disks[chosen.index[node]].active[first.epoch] = RING
        self._voters: dict[tuple[bytes, Columns], tuple[bytes, set[int]]] = {}
        self._applied: dict[bytes, bytes] = {}
        self.applied_at: dict[bytes, dict[int, float]] = defaultdict(dict)

    def __getitem__(self, node: int) -> NodeDisk:
        return self._disks[node]

    def holds(self, node: int, link: Link) -> bool:
        """True when the node has the link on its disk, voted for or applied."""
        disk = self._disks[node]
        row = disk.votes.get(link.prev_hash)
        voted = row is not None and row.link is not None and self._chosen.read(row.link).hash == link.hash
        return voted or link.hash in disk.links

    def active_in(self, node: NodeId, epoch: int) -> Ranges:
        """Where the node is ACTIVE in that epoch."""
        return self._disks[self._chosen.index[node]].active.get(epoch, ())

    # --- commits ---

    def committed(self, node: int, writes: tuple[Write, ...], now: float) -> None:
        """A node has written these."""
        for write in writes:
            if isinstance(write, VoteRow):
                self._vote(node, write, now)
            elif isinstance(write, Applied):
                self._apply(node, write.link, now)
            elif isinstance(write, ViewRow):
                self._install(node, write)
            elif isinstance(write, ActiveRow):
                self._disks[node].active[write.epoch] = decode_ranges(write.ranges)

    def _vote(self, node: int, row: VoteRow, now: float, since: int = 0) -> None:
        """`since`: the earliest epoch in which the row may have been written; by default the one that is installed."""
        disk = self._disks[node]
        before = disk.votes.get(row.slot)
        if before is not None and not _follows(before, row):
            raise Violation("I8", f"node {node} goes back from {show_vote(before)} to {show_vote(row)}")
        disk.votes[row.slot] = row
        if row.accepted is None or row.link is None:
            return
        voted = (since or disk.epoch) <= row.accepted[0] <= disk.epoch
        if not row.account:
            self._vote_on_view(node, row.slot, row.accepted, row.link, voted=voted)
            return
        link = self._chosen.read(row.link)
        if link.prev_hash != row.slot:
            raise Violation("I1", f"node {node} votes for link {link.height} of {link.account} in another slot")
        value, voters = self._voters.setdefault((row.slot, row.accepted), (link.hash, set()))
        if value != link.hash:
            raise Violation("I1", f"two values at ballot {row.accepted[:2]} for link {link.height} of {link.account}")
        parent = self._chosen.links.get(row.slot)
        if voted and parent is not None and row.accepted[0] < parent.epoch:
            raise Violation(
                "I8", f"node {node} votes in epoch {row.accepted[0]}, the slot was born in epoch {parent.epoch}"
            )
        group = self._chosen.group_of(row.slot, row.accepted[0]) if voted else ()
        if node not in group:
            return
        voters.add(node)
        if len(voters) >= majority(len(group)):
            self._chosen.choose(link, now)

    def _vote_on_view(self, node: int, slot: bytes, ballot: Columns, raw: bytes, *, voted: bool) -> None:
        epoch = ballot[0]
        value, voters = self._voters.setdefault((slot, ballot), (raw, set()))
        if value != raw:
            raise Violation("I12", f"two values at ballot {ballot[:2]} for the view after epoch {epoch}")
        if voted and slot != self._chosen.view_of(epoch).hash:
            raise Violation("I12", f"node {node} votes in epoch {epoch} for a view that follows another one")
        if voted and self._chosen.view_of(epoch).is_member(self._chosen.ids[node]):
            voters.add(node)
            if len(voters) >= majority(len(self._chosen.view_of(epoch).members)):
                self._chosen.choose_view(decode_view(raw))

    def _install(self, node: int, row: ViewRow) -> None:
        disk = self._disks[node]
        if row.epoch != disk.epoch + 1:
            raise Violation("I12", f"node {node} installs epoch {row.epoch} after epoch {disk.epoch}")
        if row.epoch > self._chosen.views[-1].epoch or row.hash != self._chosen.view_of(row.epoch).hash:
            raise Violation("I12", f"node {node} installs a view of epoch {row.epoch} that is not chosen")
        if row.hash != decode_view(row.raw).hash:
            raise Violation("I12", f"node {node} writes a view of epoch {row.epoch} that has another hash")
        disk.epoch = row.epoch
        disk.votes.pop(row.prev_hash, None)

    def _apply(self, node: int, link: Link, now: float) -> None:
        known = self._applied.setdefault(link.prev_hash, link.hash)
        if known != link.hash:
            raise Violation("I1", f"two successors: link {link.height} of {link.account}, node {node} has the second")
        if self._chosen.successors.get(link.prev_hash) != link.hash:
            raise Violation("I9", f"node {node} applies link {link.height} of {link.account}, which is not chosen")
        self._disks[node].links.add(link.hash)
        self._disks[node].votes.pop(link.prev_hash, None)
        self.applied_at[link.hash].setdefault(node, now)

    # --- crashes, other disks ---

    def started(self, node: int, conn: sqlite3.Connection, now: float) -> None:
        """A node is back: what it had made durable must be there, and more may be (a commit that a crash cut)."""
        disk = self._disks[node]
        rows = {row.slot: row for row in load_votes(conn)}
        views = load_views(conn)
        before, last = disk.epoch, views[-1][0]
        if last < before:
            raise Violation("I12", f"node {node} came back in epoch {last}, it had installed {before}")
        self._new_views(node, views)
        disk.active.update((epoch, decode_ranges(raw)) for epoch, raw in load_active(conn).items())
        taken = {row[0]: row[1] for row in conn.execute("SELECT prev_hash, hash FROM links")}
        hashes = set(taken.values())
        for slot, row in disk.votes.items():
            # That the link is chosen is seen to below.
            gone = slot in taken or (not row.account and row.height <= disk.epoch)
            if slot not in rows and not gone:
                raise Violation("I8", f"node {node} came back without its vote {show_vote(row)}")
        if lost := disk.links - hashes:
            raise Violation("I3", f"node {node} came back without {len(lost)} links it had applied")
        for row in rows.values():
            self._vote(node, row, now, before)
        for link_hash in sorted(hashes - disk.links):
            header, body = conn.execute("SELECT header, body FROM links WHERE hash = ?", (link_hash,)).fetchone()
            link = self._chosen.read(header + body)
            alone = any(self._chosen.group_of(link.prev_hash, epoch) == (node,) for epoch in range(before, last + 1))
            if alone:  # its only vote came and went in the commit that was cut
                self._chosen.choose(link, now)
            self._apply(node, link, now)

    def _new_views(self, node: int, views: Sequence[tuple[int, bytes, bytes]]) -> None:
        """Views of a commit that a crash cut."""
        disk = self._disks[node]
        for epoch, view_hash, raw in views:
            if epoch <= disk.epoch:
                if view_hash != self._chosen.view_of(epoch).hash:
                    raise Violation("I12", f"node {node} came back with another view of epoch {epoch}")
                continue
            before = self._chosen.view_of(disk.epoch)
            if before.ids == (self._chosen.ids[node],):  # its only vote came and went in that commit
                self._chosen.choose_view(decode_view(raw))
            self._install(node, ViewRow(epoch, view_hash, before.hash, raw))

    def replaced(self, node: int, conn: sqlite3.Connection) -> None:
        """A node has another disk: what was only on the old one is lost."""
        disk = self._disks[node]
        disk.votes = {row.slot: row for row in load_votes(conn)}
        disk.links = {row[0] for row in conn.execute("SELECT hash FROM links")}
        disk.epoch = load_views(conn)[-1][0]
        disk.lost = True

    def died(self, node: int) -> None:
        """A node will never come back, and nor will its disk. Where it was ACTIVE stays known: others were told so."""
        disk = self._disks[node]
        disk.votes, disk.links, disk.lost = {}, set(), True

    # --- at rest ---

    def at_rest(self, node: int, conn: sqlite3.Connection, gauges: Gauges) -> None:
        """I7, I13: this node has every chosen link and view, is ACTIVE wherever it must be, and has nothing left to do.

        Of one that was removed nothing is asked but that its clients' requests have ended.
        """
        if self._chosen.was_removed(node):
            if gauges.client_requests or gauges.changes:
                raise Violation("I13", f"at rest node {node}, which was removed, still holds {gauges}")
            return
        epoch = load_views(conn)[-1][0]
        if epoch != self._chosen.views[-1].epoch:
            raise Violation("I7", f"at rest node {node} is in epoch {epoch}, chosen is {self._chosen.views[-1].epoch}")
        tips = {row[0]: (row[1], row[2]) for row in conn.execute("SELECT name, height, tip FROM accounts")}
        expected = {name: (tip.height, tip.hash) for name, tip in self._chosen.ledger.tips.items()}
        if tips != expected or self._chosen.ledger.waiting:
            differing = sorted(name for name in {*tips, *expected} if tips.get(name) != expected.get(name))
            raise Violation("I7", f"at rest node {node} differs from what was chosen for {', '.join(differing[:5])}")
        idle = (gauges.undecided_votes, gauges.waiting_links, gauges.queued_requests, gauges.client_requests)
        if any(idle) or gauges.inquiries or gauges.changes:
            raise Violation("I13", f"at rest node {node} still holds {gauges}")

        for region in _regions(self._chosen.views):
            keys = ((region.first, region.last),)
            if self._chosen.ids[node] in region.after and not covers(
                self.active_in(self._chosen.ids[node], epoch), keys
            ):
                raise Violation("I13", f"at rest node {node} is not ACTIVE in all its regions of epoch {epoch}")


def _regions(views: Sequence[View]) -> tuple[Region, ...]:
    """The regions of the newest view."""
    return regions(*views[-2:]) if len(views) > 1 else ()


def _follows(before: VoteRow, after: VoteRow) -> bool:
    """An acceptor may only go up."""
    if after.promised < before.promised:
        return False
    return before.accepted is None or (after.accepted is not None and after.accepted >= before.accepted)


def show_vote(row: VoteRow) -> str:
    """A row of votes, for people."""
    accepted = row.accepted[:2] if row.accepted is not None else None
    return f"promise {row.promised[:2]}, vote {accepted} for link {row.height} of {row.account}"

"""The invariants, watched by an omniscient observer.

    I1  no two links with one prev_hash on any disk ever, and no two values chosen for a slot, even if nobody learned
    I2  money constant, never negative            I3  a completed answer outlives any (g-1)//2 disks of its group
    I4  a posting confirmed at most once          I5  a request executed at most once
    I6  every account linearizable in real time   I7  equal digests at rest
    I8  an acceptor never goes back               I9  only chosen links are served
    I10 every answer was true                     I11 linearizable reads are
    I12 one chain of views, one member at a time  I13 after healing every request ends

A value is *chosen* when a majority of its slot's group has it durably as its vote at one ballot. The observer counts
that from what is committed to the disks, not from what nodes say. The group is that of the ballot's epoch, and a vote is made in
that epoch: a row whose ballot is of an earlier epoch than its node had installed came with a sync (design R8), and is
evidence of a vote, not another one. A view is chosen in the same way, by all members of the view before.
"""

import math
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import msgspec

from chain.errors import RemoteFault
from chain.genesis import Genesis, issuer_links
from chain.link import HEADER_BYTES, Link, Outcome, decode_link_untrusted, header_hash, opening_slot
from chain.request import ANY_TIP, Request, decode_request_untrusted, request_id
from chain.rows import ActiveRow, Applied, ViewRow, VoteRow
from chain.store import Write, load_active, load_views, load_votes
from hopchain.change import ChangeAction, decode_change_untrusted
from hopchain.wire import (
    AskBalance,
    Balance,
    Changed,
    NotFound,
    NotStarted,
    Recorded,
    Refused,
    ReplyBody,
    Stale,
    Submit,
    SubmitChange,
    Unknown,
)
from netsim.ledger import Ledger
from node.core import Gauges
from node.messages import (
    Accept,
    Accepted,
    Decided,
    Links,
    Message,
    Moved,
    Promise,
    SlotAnswer,
    SyncPart,
    ViewAccept,
    ViewAccepted,
    ViewPromise,
    Views,
)
from node.paxos import Ballot
from routing.keyspace import NodeId, node_id_of, route_key
from routing.regions import RING, Ranges, Region, covers, decode_ranges, holds, regions
from routing.view import View, decode_view, majority

Columns = tuple[int, int, bytes]
ENDS_WITHIN_S: Final = 7.0  # in a healed network: a suspicion, some hand-overs, an inquiry that is answered


class Violation(AssertionError):
    """A rule is broken: its name, and what was seen."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule
        self.text = text


class Call(msgspec.Struct):
    """One call of a client. `told`: how much clients had been told before it was made (see `Watch.told`);
    `views`: how many views clients had been told of."""

    node: int
    life: int
    at: float
    body: Submit | AskBalance | SubmitChange
    told: int
    views: int = 1
    account: str = ""
    request: Request | None = None
    request_id: bytes = b""
    answered_at: float | None = None
    answer: ReplyBody | None = None


class _First(msgspec.Struct):
    """A request when it was first submitted: what any client had been told before."""

    told: int
    floor: int


class _NodeDisk(msgspec.Struct):
    """What one node has made durable."""

    votes: dict[bytes, VoteRow] = msgspec.field(default_factory=dict)
    links: set[bytes] = msgspec.field(default_factory=set)
    said_promise: dict[bytes, Columns] = msgspec.field(default_factory=dict)
    said_accepted: dict[bytes, Columns] = msgspec.field(default_factory=dict)
    life: int = 0
    epoch: int = 1
    active: dict[int, Ranges] = msgspec.field(default_factory=dict)
    lost: bool = False


class Watch:
    """The observer. Raises `Violation` at the event that breaks a rule."""

    def __init__(self, genesis: Genesis, view: View, spares: Sequence[NodeId] = ()) -> None:
        """`spares`: nodes that are in no view yet, numbered after the members of the genesis file."""
        self.views = [view]  # that were chosen, oldest first
        self.views_told = 1  # of how many of them a client was told
        self._network = genesis.network_id
        self.ids = [*node_ids(genesis), *spares]
        self._index = {public_id: i for i, public_id in enumerate(self.ids)}
        self._disks = [_NodeDisk() for _ in self.ids]
        for node in view.ids:
            self._disks[self._index[node]].active[view.epoch] = RING
        self._voters: dict[tuple[bytes, Columns], tuple[bytes, set[int]]] = {}
        self._applied: dict[bytes, bytes] = {}
        self.links: dict[bytes, Link] = {}
        self.chosen: dict[bytes, bytes] = {}
        self.chosen_at: dict[bytes, float] = {}
        self.applied_at: dict[bytes, dict[int, float]] = defaultdict(dict)
        self.ledger = Ledger({issuer.name: b"" for issuer in genesis.issuers})
        self.calls: dict[int, Call] = {}
        self.told = 0  # grows with every answer
        self._healed_at = math.inf
        self._told_postings: dict[bytes, int] = {}
        self._told_height: dict[str, int] = defaultdict(lambda: -1)
        self._told_opening: dict[str, int] = {}
        self._first: dict[tuple[str, bytes], _First] = {}
        self._copies: dict[tuple[str, bytes], int] = defaultdict(int)
        for link in issuer_links(genesis):
            self._choose(link, 0.0)
            for disk in self._disks:
                disk.links.add(link.hash)
            self._told_opening[link.account] = 0

    def view_of(self, epoch: int) -> View:
        """The chosen view of an epoch."""
        return self.views[epoch - self.views[0].epoch]

    def group_of(self, slot: bytes, epoch: int | None = None) -> tuple[int, ...]:
        """The nodes that decide a slot in an epoch (by default the newest that was chosen), owner first."""
        view = self.views[-1] if epoch is None else self.view_of(epoch)
        return tuple(self._index[node] for node in view.group(route_key(slot)))

    def is_member(self, node: int) -> bool:
        """True when the node is in the newest chosen view."""
        return self.views[-1].is_member(self.ids[node])

    def was_removed(self, node: int) -> bool:
        """True when the node was a member before, and is none now."""
        return not self.is_member(node) and any(view.is_member(self.ids[node]) for view in self.views)

    # --- disks ---

    def committed(self, node: int, writes: tuple[Write, ...], now: float) -> None:
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
        """`since`: the epoch in which the row was written at the earliest; by default the one that the node has installed."""
        disk = self._disks[node]
        before = disk.votes.get(row.slot)
        if before is not None and not _follows(before, row):
            raise Violation("I8", f"node {node} goes back from {_show(before)} to {_show(row)}")
        disk.votes[row.slot] = row
        if row.accepted is None or row.link is None:
            return
        voted = (since or disk.epoch) <= row.accepted[0] <= disk.epoch
        if not row.account:
            self._vote_on_view(node, row.slot, row.accepted, row.link, voted=voted)
            return
        link = self._link(row.link)
        if link.prev_hash != row.slot:
            raise Violation("I1", f"node {node} votes for link {link.height} of {link.account} in another slot")
        value, voters = self._voters.setdefault((row.slot, row.accepted), (link.hash, set()))
        if value != link.hash:
            raise Violation("I1", f"two values at ballot {row.accepted[:2]} for link {link.height} of {link.account}")
        parent = self.links.get(row.slot)
        if voted and parent is not None and row.accepted[0] < parent.epoch:
            raise Violation(
                "I8", f"node {node} votes in epoch {row.accepted[0]}, the slot was born in epoch {parent.epoch}"
            )
        group = self.group_of(row.slot, row.accepted[0]) if voted else ()
        if node not in group:
            return
        voters.add(node)
        if len(voters) >= majority(len(group)):
            self._choose(link, now)

    def _vote_on_view(self, node: int, slot: bytes, ballot: Columns, raw: bytes, *, voted: bool) -> None:
        epoch = ballot[0]
        value, voters = self._voters.setdefault((slot, ballot), (raw, set()))
        if value != raw:
            raise Violation("I12", f"two values at ballot {ballot[:2]} for the view after epoch {epoch}")
        if voted and slot != self.view_of(epoch).hash:
            raise Violation("I12", f"node {node} votes in epoch {epoch} for a view that follows another one")
        if voted and self.view_of(epoch).is_member(self.ids[node]):
            voters.add(node)
            if len(voters) >= majority(len(self.view_of(epoch).members)):
                self._choose_view(decode_view(raw))

    def _choose_view(self, view: View) -> None:
        if view.epoch <= self.views[-1].epoch:
            if view.hash != self.view_of(view.epoch).hash:
                raise Violation("I12", f"two views chosen for epoch {view.epoch}")
            return
        before = self.views[-1]
        changed = set(before.members) ^ set(view.members)
        follows = (view.epoch, view.prev_hash, view.k) == (before.epoch + 1, before.hash, before.k)
        if not follows or len(changed) != 1:
            raise Violation("I12", f"epoch {view.epoch} changes {len(changed)} members of epoch {before.epoch}")
        added = changed.pop().id
        if view.is_member(added) and any(old.is_member(added) for old in self.views):
            raise Violation("I12", f"epoch {view.epoch} adds node {self._index[added]}, which was removed before")
        self.views.append(view)

    def _install(self, node: int, row: ViewRow) -> None:
        disk = self._disks[node]
        if row.epoch != disk.epoch + 1:
            raise Violation("I12", f"node {node} installs epoch {row.epoch} after epoch {disk.epoch}")
        if row.epoch > self.views[-1].epoch or row.hash != self.view_of(row.epoch).hash:
            raise Violation("I12", f"node {node} installs a view of epoch {row.epoch} that is not chosen")
        if row.hash != decode_view(row.raw).hash:
            raise Violation("I12", f"node {node} writes a view of epoch {row.epoch} that has another hash")
        disk.epoch = row.epoch
        disk.votes.pop(row.prev_hash, None)

    def _apply(self, node: int, link: Link, now: float) -> None:
        known = self._applied.setdefault(link.prev_hash, link.hash)
        if known != link.hash:
            raise Violation("I1", f"two successors: link {link.height} of {link.account}, node {node} has the second")
        if self.chosen.get(link.prev_hash) != link.hash:
            raise Violation("I9", f"node {node} applies link {link.height} of {link.account}, which is not chosen")
        self._disks[node].links.add(link.hash)
        self._disks[node].votes.pop(link.prev_hash, None)
        self.applied_at[link.hash].setdefault(node, now)

    def _choose(self, link: Link, now: float) -> None:
        known = self.chosen.setdefault(link.prev_hash, link.hash)
        if known != link.hash:
            raise Violation("I1", f"two values chosen for link {link.height} of {link.account}")
        if link.hash in self.chosen_at:
            return
        self.links[link.hash] = link
        self.chosen_at[link.hash] = now
        complaints = self.ledger.add(link)
        if complaints:
            raise Violation(_rule_of(complaints[0]), "; ".join(complaints))
        if self.ledger.total() != 0:
            raise Violation("I2", f"all money adds up to {self.ledger.total()}, not 0")
        self._check_rejections(link)

    def _link(self, raw: bytes) -> Link:
        link = self.links.get(header_hash(raw[:HEADER_BYTES]))
        return link if link is not None else decode_link_untrusted(raw)

    def crashed(self, node: int, now: float) -> None:
        self._disks[node].life += 1

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
            gone = slot in taken or (
                not row.account and row.height <= disk.epoch
            )  # that the link is chosen is seen to below
            if slot not in rows and not gone:
                raise Violation("I8", f"node {node} came back without its vote {_show(row)}")
        if lost := disk.links - hashes:
            raise Violation("I3", f"node {node} came back without {len(lost)} links it had applied")
        for row in rows.values():
            self._vote(node, row, now, before)
        for link_hash in sorted(hashes - disk.links):
            header, body = conn.execute("SELECT header, body FROM links WHERE hash = ?", (link_hash,)).fetchone()
            link = self._link(header + body)
            alone = any(self.group_of(link.prev_hash, epoch) == (node,) for epoch in range(before, last + 1))
            if alone:  # its only vote came and went in the commit that was cut
                self._choose(link, now)
            self._apply(node, link, now)

    def _new_views(self, node: int, views: Sequence[tuple[int, bytes, bytes]]) -> None:
        """Views of a commit that a crash cut."""
        disk = self._disks[node]
        for epoch, view_hash, raw in views:
            if epoch <= disk.epoch:
                if view_hash != self.view_of(epoch).hash:
                    raise Violation("I12", f"node {node} came back with another view of epoch {epoch}")
                continue
            before = self.view_of(disk.epoch)
            if before.ids == (self.ids[node],):  # its only vote came and went in that commit
                self._choose_view(decode_view(raw))
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

    # --- messages ---

    def sent(self, node: int, peer: NodeId, message: Message, now: float) -> None:
        disk = self._disks[node]
        match message:
            case Promise():
                self._promises(node, message.slot, message.ballot, message.accepted)
            case ViewPromise():
                self._promises(node, self._view_slot(node, message.ballot), message.ballot, message.accepted)
            case Accepted():
                self._says_vote(node, message.slot, message.ballot)
            case ViewAccepted():
                self._says_vote(node, self._view_slot(node, message.ballot), message.ballot)
            case Accept():
                self._must_be_durable(node, message.at.slot, message.ballot, message.ballot)
            case ViewAccept():
                self._must_be_durable(node, self._view_slot(node, message.ballot), message.ballot, message.ballot)
            case SyncPart():
                if disk.epoch < message.epoch:
                    raise Violation("I8", f"node {node} answers a sync of epoch {message.epoch} in epoch {disk.epoch}")
                if disk.lost:
                    raise Violation("I8", f"node {node} answers a sync with a disk that lacks votes")
                if message.log > len(disk.links):
                    raise Violation(
                        "I8", f"node {node} tells of {message.log} links, and {len(disk.links)} are durable"
                    )
            case Views():
                for raw in message.views:
                    view = decode_view(raw)
                    if view.epoch > self.views[-1].epoch or view.hash != self.view_of(view.epoch).hash:
                        raise Violation("I12", f"node {node} serves a view of epoch {view.epoch} that is not chosen")
            case Decided():
                self._must_be_chosen(node, (message.link,))
            case Links() | Moved() | SlotAnswer():
                self._must_be_chosen(node, message.links)
            case _:
                pass

    def _view_slot(self, node: int, ballot: Ballot) -> bytes:
        if ballot.epoch > self._disks[node].epoch:
            raise Violation("I8", f"node {node} speaks of the view after epoch {ballot.epoch}, and that is not durable")
        return self.view_of(ballot.epoch).hash

    def _promises(self, node: int, slot: bytes, at: Ballot, vote: Ballot | None) -> None:
        disk, ballot = self._disks[node], _columns(at)
        accepted = _columns(vote) if vote is not None else None
        said = disk.said_accepted.get(slot)
        if said is not None and (accepted is None or accepted < said):
            raise Violation("I8", f"node {node} voted at {said[:2]} and promises {ballot[:2]} as if it had not")
        if ballot < disk.said_promise.get(slot, ballot):
            raise Violation("I8", f"node {node} promises {ballot[:2]} after a higher one")
        self._must_be_durable(node, slot, at, vote)
        disk.said_promise[slot] = ballot

    def _says_vote(self, node: int, slot: bytes, at: Ballot) -> None:
        disk, ballot = self._disks[node], _columns(at)
        if ballot < disk.said_promise.get(slot, ballot):
            raise Violation("I8", f"node {node} votes at {ballot[:2]} below its promise")
        self._must_be_durable(node, slot, at, at)
        disk.said_accepted[slot] = max(ballot, disk.said_accepted.get(slot, ballot))

    def _must_be_durable(self, node: int, slot: bytes, at: Ballot, vote: Ballot | None) -> None:
        """What a message says is on the disk of its sender (R4, R5), as a vote or as the applied link or view."""
        disk, promised = self._disks[node], _columns(at)
        accepted = _columns(vote) if vote is not None else None
        if at.epoch > disk.epoch:
            raise Violation("I8", f"node {node} speaks of ballot {promised[:2]} with epoch {disk.epoch} on its disk")
        row = disk.votes.get(slot)
        if row is None:
            if self.chosen.get(slot) in disk.links or (slot == self.view_of(at.epoch).hash and at.epoch < disk.epoch):
                return
            raise Violation("I8", f"node {node} speaks of ballot {promised[:2]} before it is durable")
        held = accepted is None or (row.accepted is not None and row.accepted >= accepted)
        if row.promised < promised or not held:
            raise Violation("I8", f"node {node} speaks of ballot {promised[:2]}, on its disk is {_show(row)}")

    def _must_be_chosen(self, node: int, raws: tuple[bytes, ...]) -> None:
        for raw in raws:
            if header_hash(raw[:HEADER_BYTES]) not in self.chosen_at:
                link = decode_link_untrusted(raw)
                raise Violation("I9", f"node {node} serves link {link.height} of {link.account}, which is not chosen")

    # --- clients ---

    def submitted(self, call: int, node: int, submit: Submit | AskBalance | SubmitChange, now: float) -> None:
        entry = Call(node, self._disks[node].life, now, submit, self.told, self.views_told)
        self.calls[call] = entry
        if isinstance(submit, SubmitChange):
            return
        if isinstance(submit, AskBalance):
            entry.account = submit.account
            return
        try:
            entry.request = decode_request_untrusted(submit.raw)
        except RemoteFault:
            return
        entry.request_id = request_id(submit.raw)
        entry.account = entry.request.sender
        key = (entry.account, entry.request_id)
        self._copies[key] += 1
        self._first.setdefault(key, _First(self.told, self._told_height[entry.account]))

    def answered(self, call: int, body: ReplyBody, now: float) -> None:
        entry = self.calls[call]
        if entry.answered_at is not None:
            raise Violation("I10", f"call {call} is answered twice")
        entry.answered_at, entry.answer = now, body
        match body:
            case Recorded():
                self._check_recorded(entry, body)
            case Stale():
                self._check_stale(entry, body)
            case NotStarted():
                key = (entry.account, entry.request_id)
                if self._copies[key] == 1 and self._is_recorded(key):
                    raise Violation("I10", f"call {call} is told not_started, but its outcome is chosen")
            case Refused():
                self._check_refused(entry, body)
            case Balance():
                self._check_balance(entry, body)
            case NotFound():
                certain = isinstance(entry.body, AskBalance) and entry.body.linearizable
                if certain and self._told_opening.get(entry.account, entry.told) < entry.told:
                    raise Violation("I11", f"{entry.account} is not found after its opening was answered")
            case Unknown():
                pass
            case Changed():
                self._check_changed(entry, body)
            case _:
                raise Violation("I10", f"call {call} is answered with {type(body).__name__}")
        self.told += 1

    def _check_recorded(self, call: Call, body: Recorded) -> None:
        key = (call.account, body.request_id)
        found = self.ledger.outcomes.get(key)
        if body.request_id != call.request_id or body.account != call.account or found is None:
            raise Violation("I10", f"a client is told an outcome of {call.account} that is not chosen")
        outcome, link = found
        if (int(outcome), link.hash, link.height, link.balance) != (
            body.outcome,
            body.link_hash,
            body.height,
            body.balance,
        ):
            raise Violation("I10", f"a client is told {body.outcome} in link {body.height}, chosen is {outcome.name}")
        self._check_survives(link)
        first = self._first[key]
        if link.height <= first.floor and outcome is not Outcome.CANCELLED:  # a cancel may come before its target
            raise Violation(
                "I6", f"{call.account}: link {link.height} holds a request made after link {first.floor} was answered"
            )
        self._told_height[call.account] = max(self._told_height[call.account], link.height)
        if outcome is not Outcome.COMPLETED:
            return
        if link.height == 0:
            self._told_opening.setdefault(call.account, self.told)
        for _, posting, _, request in link.postings():
            if request == body.request_id:
                self._told_postings.setdefault(posting, self.told)

    def _check_survives(self, link: Link) -> None:
        """I3: any (g-1)//2 disks of the group may be lost now, and the link is still known."""
        if link.height == 0 and link.account in self.ledger.issuers:
            return
        key = route_key(link.prev_hash)
        for view in reversed(self.views):  # a view that is not ACTIVE yet relies on the one before
            group = [self._index[node] for node in view.group(key)]
            holders = sum(self._holds(node, link) for node in group)
            may_be_lost = (len(group) - 1) // 2 - sum(self._disks[node].lost for node in group)
            if holders > max(0, may_be_lost):
                return
            left = [self._disks[node] for node in group if not self._disks[node].lost]
            active = sum(holds(disk.active.get(view.epoch, ()), key) for disk in left)
            if active >= majority(len(group)) or view is self.views[0]:
                raise Violation("I3", f"link {link.height} of {link.account} is answered and on {holders} disks only")

    def _holds(self, node: int, link: Link) -> bool:
        disk = self._disks[node]
        row = disk.votes.get(link.prev_hash)
        voted = row is not None and row.link is not None and self._link(row.link).hash == link.hash
        return voted or link.hash in disk.links

    def _check_changed(self, call: Call, body: Changed) -> None:
        """The view is as the change asked, ACTIVE wherever it changed something, and none that a client knew to be over."""
        assert isinstance(call.body, SubmitChange)
        change = decode_change_untrusted(call.body.raw)
        number = body.epoch - self.views[0].epoch + 1
        if number > len(self.views) or self.view_of(body.epoch).hash != body.view_hash:
            raise Violation("I10", f"a change is answered with a view of epoch {body.epoch} that is not chosen")
        view = self.view_of(body.epoch)
        if not view.is_member(change.node_id) == body.member == (change.action is ChangeAction.ADD):
            raise Violation("I10", f"a change is said to be made in epoch {body.epoch}, and is not")
        if number < call.views:
            raise Violation("I10", f"a change is answered with epoch {body.epoch} after epoch {call.views} was")
        self.views_told = max(self.views_told, number)
        if number == 1:
            return
        for region in regions(self.views[number - 2], view):
            active = [n for n in region.after if covers(self._active(n, body.epoch), ((region.first, region.last),))]
            if region.before != region.after and len(active) < majority(len(region.after)):
                raise Violation(
                    "I10", f"a change is answered, and a group of epoch {body.epoch} has no ACTIVE majority"
                )

    def _active(self, node: NodeId, epoch: int) -> Ranges:
        return self._disks[self._index[node]].active.get(epoch, ())

    def _check_stale(self, call: Call, body: Stale) -> None:
        request = call.request
        if request is None or request.expect_tip == ANY_TIP:
            raise Violation("I10", "stale, but the request pinned no tip")
        successor = self.chosen.get(request.expect_tip)
        if successor is None:
            raise Violation("I10", f"stale, but the tip that {call.account} expected has no successor")
        if self._is_recorded((call.account, call.request_id)):
            raise Violation("I10", f"stale, but the request of {call.account} has an outcome")

    def _is_recorded(self, key: tuple[str, bytes]) -> bool:
        """True when the request itself has an outcome; one that a cancel gave it does not count."""
        outcome = self.ledger.outcomes.get(key)
        return outcome is not None and outcome[0] is not Outcome.CANCELLED

    def _check_refused(self, call: Call, body: Refused) -> None:
        if body.code == "name_taken":
            key = (call.account, call.request_id)
            if self.chosen.get(opening_slot(self._network, call.account)) is None or self._is_recorded(key):
                raise Violation("I10", f"{call.account} is said to be taken, and is not")
        elif body.code == "unknown_sender" and self._told_opening.get(call.account, call.told) < call.told:
            raise Violation("I10", f"{call.account} is said not to exist after its opening was answered")
        elif body.code == "unknown_tip" and call.request is not None and call.request.expect_tip in self.chosen_at:
            link = self.links[call.request.expect_tip]
            if self._told_height[link.account] >= link.height:
                raise Violation("I10", f"link {link.height} of {link.account} is said to be no link")

    def _knows_it_was_removed(self, node: int) -> bool:
        views = [self.view_of(epoch) for epoch in range(1, self._disks[node].epoch + 1)]
        return not views[-1].is_member(self.ids[node]) and any(view.is_member(self.ids[node]) for view in views)

    def _check_balance(self, call: Call, body: Balance) -> None:
        chain = self.ledger.chains[body.account]
        if body.height >= len(chain) or chain[body.height].balance != body.settled:
            raise Violation("I10", f"balance {body.settled} of {body.account} at link {body.height} is not chosen")
        assert isinstance(call.body, AskBalance)
        if not body.stale and self._knows_it_was_removed(call.node):
            raise Violation("I11", f"node {call.node} was removed and knows it; its balance is not said to be stale")
        if body.height < call.body.min_height:
            raise Violation("I11", f"a session read of {body.account} is older than link {call.body.min_height}")
        if not call.body.linearizable:
            return
        told = [h for h, when in self._told_postings.items() if when < call.told]
        due = 0
        for h in told:
            credit = self.ledger.credits[h]
            if credit.recipient == body.account and not self._used(credit.confirmed_by, body.height):
                due += credit.amount
        floor = max(
            (
                c.answer.height
                for c in self.calls.values()
                if c.account == body.account
                and isinstance(c.answer, Recorded)
                and c.answered_at is not None
                and c.answered_at < call.at
            ),
            default=-1,
        )
        if body.height < floor or body.incoming < due:
            raise Violation(
                "I11",
                f"a linearizable read of {body.account} shows link {body.height} and {body.incoming} incoming; "
                f"answered before it were link {floor} and {due}",
            )

    def _used(self, confirmed_by: bytes | None, height: int) -> bool:
        return confirmed_by is not None and self.links[confirmed_by].height <= height

    def _check_rejections(self, link: Link) -> None:
        """What a client could see, it can spend; whom it could see, it can pay."""
        chain = self.ledger.chains[link.account]
        if link.height >= len(chain) or link.height == 0:
            return
        funds = chain[link.height - 1].balance + sum(self.ledger.credits[h].amount for h in link.confirmed)
        for entry in link.entries:
            first = self._first.get((link.account, entry.request_id))
            if entry.outcome is Outcome.COMPLETED:
                funds -= entry.request.total
            elif entry.outcome is Outcome.INSUFFICIENT_FUNDS and first is not None:
                seen = sum(
                    credit.amount
                    for h, credit in self.ledger.credits.items()
                    if credit.recipient == link.account
                    and self._told_postings.get(h, first.told) < first.told
                    and not self._used(credit.confirmed_by, link.height)
                )
                if funds + seen >= entry.request.total:
                    raise Violation(
                        "I10",
                        f"insufficient_funds for {entry.request.total} of {link.account} in link {link.height}, which had "
                        f"{funds} and {seen} that a client had been told of",
                    )
            elif entry.outcome is Outcome.UNKNOWN_RECIPIENT and first is not None:
                for posting in entry.request.postings:
                    if all(self._known(p.recipient, first.told) for p in entry.request.postings):
                        raise Violation("I10", f"unknown_recipient {posting.recipient}, whose opening was answered")

    def _known(self, account: str, told: int) -> bool:
        return self._told_opening.get(account, told) < told

    # --- at rest ---

    def at_rest(self, node: int, conn: sqlite3.Connection, gauges: Gauges) -> None:
        """I7, I13: this node has every chosen link and view, is ACTIVE wherever it has to be, and has nothing left to do. Of one
        that was removed nothing is asked but that its clients' requests have ended."""
        if self.was_removed(node):
            if gauges.client_requests or gauges.changes:
                raise Violation("I13", f"at rest node {node}, which was removed, still holds {gauges}")
            return
        epoch = load_views(conn)[-1][0]
        if epoch != self.views[-1].epoch:
            raise Violation("I7", f"at rest node {node} is in epoch {epoch}, chosen is {self.views[-1].epoch}")
        tips = {row[0]: (row[1], row[2]) for row in conn.execute("SELECT name, height, tip FROM accounts")}
        expected = {name: (tip.height, tip.hash) for name, tip in self.ledger.tips.items()}
        if tips != expected or self.ledger.waiting:
            differing = sorted(name for name in {*tips, *expected} if tips.get(name) != expected.get(name))
            raise Violation("I7", f"at rest node {node} differs from what was chosen for {', '.join(differing[:5])}")
        idle = (gauges.undecided_votes, gauges.waiting_links, gauges.queued_requests, gauges.client_requests)
        if any(idle) or gauges.inquiries or gauges.changes:
            raise Violation("I13", f"at rest node {node} still holds {gauges}")

        for region in _regions(self.views):
            keys = ((region.first, region.last),)
            if self.ids[node] in region.after and not covers(self._active(self.ids[node], epoch), keys):
                raise Violation("I13", f"at rest node {node} is not ACTIVE in all its regions of epoch {epoch}")

    def healed(self, now: float) -> None:
        """From now on nothing fails any more."""
        self._healed_at = now

    def all_ended(self, now: float) -> None:
        """I13: every call whose node lived was answered, and for good when it ended well after healing."""
        for number, call in self.calls.items():
            if call.answered_at is None:
                if self._disks[call.node].life == call.life:
                    raise Violation("I13", f"call {number} at node {call.node} got no answer in {now - call.at:.1f} s")
            elif (
                isinstance(call.answer, Unknown | NotStarted)
                and call.answered_at > self._healed_at + ENDS_WITHIN_S
                and self.is_member(call.node)
            ):
                what = f"{type(call.answer).__name__} ({call.answer.reason})"
                raise Violation("I13", f"call {number} at node {call.node} ends with {what} in a healed network")


def _regions(views: Sequence[View]) -> tuple[Region, ...]:
    """The regions of the newest view."""
    return regions(*views[-2:]) if len(views) > 1 else ()


def node_ids(genesis: Genesis) -> list[NodeId]:
    """The ids of the members, in the order of the genesis file."""
    return [node_id_of(bytes.fromhex(member.public_key)) for member in genesis.members]


def _rule_of(complaint: str) -> str:
    """The invariant that a complaint of the ledger is about."""
    if "confirmed twice" in complaint:
        return "I4"
    if "expected" in complaint or "signed" in complaint or "valid until" in complaint:
        return "I10"
    return "I5" if complaint.startswith("request") else "I2"


def _columns(ballot: Ballot) -> Columns:
    return (ballot.epoch, ballot.round, ballot.node)


def _follows(before: VoteRow, after: VoteRow) -> bool:
    """An acceptor may only go up."""
    if after.promised < before.promised:
        return False
    return before.accepted is None or (after.accepted is not None and after.accepted >= before.accepted)


def _show(row: VoteRow) -> str:
    accepted = row.accepted[:2] if row.accepted is not None else None
    return f"promise {row.promised[:2]}, vote {accepted} for link {row.height} of {row.account}"

"""The invariants, watched by an omniscient observer.

    I1  no two links with one prev_hash on any disk ever, and no two values chosen for a slot, even if nobody learned
    I2  money constant, never negative            I3  a completed answer outlives any (g-1)//2 disks of its group
    I4  a posting confirmed at most once          I5  a request executed at most once
    I6  every account linearizable in real time   I7  equal digests at rest
    I8  an acceptor never goes back               I9  only chosen links are served
    I10 every answer was true                     I11 linearizable reads are
    I13 after healing every request ends

A value is *chosen* when a majority of its slot's group has it durably as its vote at one ballot. The observer counts
that from what is committed to the disks, not from what nodes say.
"""

import math
import sqlite3
from collections import defaultdict
from typing import Final

import msgspec

from chain.errors import RemoteFault
from chain.genesis import Genesis, issuer_links
from chain.link import HEADER_BYTES, Link, Outcome, decode_link_untrusted, header_hash, opening_slot
from chain.request import ANY_TIP, Request, decode_request_untrusted, request_id
from chain.rows import Applied, VoteRow
from chain.store import Write, load_votes
from hopchain.wire import (
    AskBalance,
    Balance,
    NotFound,
    NotStarted,
    Recorded,
    Refused,
    ReplyBody,
    Stale,
    Submit,
    Unknown,
)
from netsim.ledger import Ledger
from node.core import Gauges
from node.messages import Accept, Accepted, Decided, Links, Message, Moved, Promise, SlotAnswer
from node.paxos import Ballot
from routing.keyspace import NodeId, node_id_of, route_key
from routing.view import View, majority

Columns = tuple[int, int, bytes]
ENDS_WITHIN_S: Final = 7.0  # in a healed network: a suspicion, some hand-overs, an inquiry that is answered


class Violation(AssertionError):
    """A rule is broken: its name, and what was seen."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule
        self.text = text


class Call(msgspec.Struct):
    """One call of a client. `told`: how much clients had been told before it was made (see `Watch.told`)."""

    node: int
    life: int
    at: float
    body: Submit | AskBalance
    told: int
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


class Watch:
    """The observer. Raises `Violation` at the event that breaks a rule."""

    def __init__(self, genesis: Genesis, view: View) -> None:
        self._view = view
        self._network = genesis.network_id
        self._index = {public_id: i for i, public_id in enumerate(node_ids(genesis))}
        self._disks = [_NodeDisk() for _ in genesis.members]
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

    def group_of(self, slot: bytes) -> tuple[int, ...]:
        """The nodes that decide a slot, owner first."""
        return tuple(self._index[node] for node in self._view.group(route_key(slot)))

    # --- disks ---

    def committed(self, node: int, writes: tuple[Write, ...], now: float) -> None:
        for write in writes:
            if isinstance(write, VoteRow):
                self._vote(node, write, now)
            elif isinstance(write, Applied):
                self._apply(node, write.link, now)

    def _vote(self, node: int, row: VoteRow, now: float) -> None:
        disk = self._disks[node]
        before = disk.votes.get(row.slot)
        if before is not None and not _follows(before, row):
            raise Violation("I8", f"node {node} goes back from {_show(before)} to {_show(row)}")
        disk.votes[row.slot] = row
        if row.accepted is None or row.link is None:
            return
        link = self._link(row.link)
        if link.prev_hash != row.slot:
            raise Violation("I1", f"node {node} votes for link {link.height} of {link.account} in another slot")
        value, voters = self._voters.setdefault((row.slot, row.accepted), (link.hash, set()))
        if value != link.hash:
            raise Violation("I1", f"two values at ballot {row.accepted[:2]} for link {link.height} of {link.account}")
        voters.add(node)
        if len(voters) >= majority(len(self.group_of(row.slot))):
            self._choose(link, now)

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
        hashes = {row[0] for row in conn.execute("SELECT hash FROM links")}
        for slot, row in disk.votes.items():
            if slot not in rows and self.chosen.get(slot) not in hashes:
                raise Violation("I8", f"node {node} came back without its vote {_show(row)}")
        if lost := disk.links - hashes:
            raise Violation("I3", f"node {node} came back without {len(lost)} links it had applied")
        for row in rows.values():
            self._vote(node, row, now)
        for link_hash in sorted(hashes - disk.links):
            header, body = conn.execute("SELECT header, body FROM links WHERE hash = ?", (link_hash,)).fetchone()
            link = self._link(header + body)
            if self.group_of(link.prev_hash) == (node,):  # its only vote came and went in the commit that was cut
                self._choose(link, now)
            self._apply(node, link, now)

    def replaced(self, node: int, conn: sqlite3.Connection) -> None:
        """A node has another disk: what was only on the old one is lost."""
        disk = self._disks[node]
        disk.votes = {row.slot: row for row in load_votes(conn)}
        disk.links = {row[0] for row in conn.execute("SELECT hash FROM links")}

    # --- messages ---

    def sent(self, node: int, peer: NodeId, message: Message, now: float) -> None:
        disk = self._disks[node]
        match message:
            case Promise():
                ballot = _columns(message.ballot)
                accepted = _columns(message.accepted) if message.accepted is not None else None
                said = disk.said_accepted.get(message.slot)
                if said is not None and (accepted is None or accepted < said):
                    raise Violation("I8", f"node {node} voted at {said[:2]} and promises {ballot[:2]} as if it had not")
                if ballot < disk.said_promise.get(message.slot, ballot):
                    raise Violation("I8", f"node {node} promises {ballot[:2]} after a higher one")
                self._must_be_durable(node, message.slot, ballot, accepted)
                disk.said_promise[message.slot] = ballot
            case Accepted():
                ballot = _columns(message.ballot)
                if ballot < disk.said_promise.get(message.slot, ballot):
                    raise Violation("I8", f"node {node} votes at {ballot[:2]} below its promise")
                self._must_be_durable(node, message.slot, ballot, ballot)
                disk.said_accepted[message.slot] = max(ballot, disk.said_accepted.get(message.slot, ballot))
            case Accept():
                self._must_be_durable(node, message.at.slot, _columns(message.ballot), _columns(message.ballot))
            case Decided():
                self._must_be_chosen(node, (message.link,))
            case Links() | Moved() | SlotAnswer():
                self._must_be_chosen(node, message.links)
            case _:
                pass

    def _must_be_durable(self, node: int, slot: bytes, promised: Columns, accepted: Columns | None) -> None:
        """What a message says is on the disk of its sender (R4), as a vote or as the applied link."""
        row = self._disks[node].votes.get(slot)
        if row is None:
            if self.chosen.get(slot) in self._disks[node].links:
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

    def submitted(self, call: int, node: int, submit: Submit | AskBalance, now: float) -> None:
        entry = Call(node, self._disks[node].life, now, submit, self.told)
        self.calls[call] = entry
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
        group = self.group_of(link.prev_hash)
        holders = 0
        for node in group:
            row = self._disks[node].votes.get(link.prev_hash)
            voted = row is not None and row.link is not None and self._link(row.link).hash == link.hash
            holders += voted or link.hash in self._disks[node].links
        if link.height > 0 or link.account not in self.ledger.issuers:
            may_be_lost = (len(group) - 1) // 2
            if holders <= may_be_lost:
                raise Violation("I3", f"link {link.height} of {link.account} is answered and on {holders} disks only")

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

    def _check_balance(self, call: Call, body: Balance) -> None:
        chain = self.ledger.chains[body.account]
        if body.height >= len(chain) or chain[body.height].balance != body.settled:
            raise Violation("I10", f"balance {body.settled} of {body.account} at link {body.height} is not chosen")
        assert isinstance(call.body, AskBalance)
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
        """I7, I13: this node has every chosen link and nothing left to do."""
        tips = {row[0]: (row[1], row[2]) for row in conn.execute("SELECT name, height, tip FROM accounts")}
        expected = {name: (tip.height, tip.hash) for name, tip in self.ledger.tips.items()}
        if tips != expected or self.ledger.waiting:
            differing = sorted(name for name in {*tips, *expected} if tips.get(name) != expected.get(name))
            raise Violation("I7", f"at rest node {node} differs from what was chosen for {', '.join(differing[:5])}")
        idle = (gauges.undecided_votes, gauges.waiting_links, gauges.queued_requests, gauges.client_requests)
        if any(idle) or gauges.inquiries:
            raise Violation("I13", f"at rest node {node} still holds {gauges}")

    def healed(self, now: float) -> None:
        """From now on nothing fails any more."""
        self._healed_at = now

    def all_ended(self, now: float) -> None:
        """I13: every call whose node lived was answered, and for good when it ended well after healing."""
        for number, call in self.calls.items():
            if call.answered_at is None:
                if self._disks[call.node].life == call.life:
                    raise Violation("I13", f"call {number} at node {call.node} got no answer in {now - call.at:.1f} s")
            elif isinstance(call.answer, Unknown | NotStarted) and call.answered_at > self._healed_at + ENDS_WITHIN_S:
                what = f"{type(call.answer).__name__} ({call.answer.reason})"
                raise Violation("I13", f"call {number} at node {call.node} ends with {what} in a healed network")


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

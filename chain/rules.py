"""The rules of money (design section 2), as functions of what is given: no disk, no clock, no network.

`form_link` makes the next link of an account on the node that owns its slot, by the design's steps 2 to 5:

2. the income of the tip is what the tip's checksum says (`check_tip_income`);
3. the second thread of every posting that is about to be taken up is unbroken (`check_second_thread`);
4. the oldest unconfirmed postings, at most MAX_CONFIRMED, are taken up: available = balance + taken;
5. requests are judged one after the other; each gets exactly one outcome.

**What a client could see, it can spend**: `unknown_recipient`, `insufficient_funds` and, for issuers, `issuer_limit`
are recorded only when the caller says that the network was asked (`absent`, `income_complete`). Otherwise `form_link`
names what to ask, and the requests concerned stay in the queue.

`successor_fault` says why a link does not follow from what is here. The acceptor asks before it votes: one of two
databases is damaged. The replica asks before it applies a decided link, which is never judged again (R11): its own is.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from chain.errors import Corruption
from chain.link import (
    MAX_CONFIRMED,
    MAX_ENTRIES,
    Entry,
    Link,
    LinkHash,
    Outcome,
    PostingHash,
    build_link,
    header_hash,
    income_checksum,
    opening_slot,
)
from chain.names import MAX_AMOUNT
from chain.request import (
    ANY_TIP,
    MAX_POSTINGS,
    MAX_REQUEST_BYTES,
    DecodedRequest,
    Kind,
    NetworkId,
    RequestId,
)
from chain.rows import AccountHead, Credit, Forming, thread_text

_NOTHING: Final[Mapping[str, str]] = {}


class Formed(msgspec.Struct, frozen=True, gc=False):
    """The result of `form_link`.

    `link` is None when there is nothing to write now. `left` wait for the next link (no room in this one);
    `unjudged` cannot be judged without the facts that `ask_recipients` and `ask_income` name;
    `settled` have a recorded outcome or lost the name they wanted to open; `stale` pinned another tip and can never
    execute.
    """

    link: Link | None
    left: tuple[DecodedRequest, ...] = ()
    unjudged: tuple[DecodedRequest, ...] = ()
    settled: tuple[DecodedRequest, ...] = ()
    stale: tuple[DecodedRequest, ...] = ()
    ask_recipients: frozenset[str] = frozenset()
    ask_income: bool = False


def check_tip_income(forming: Forming) -> None:
    """Step 2: raise `Corruption` unless the postings confirmed by the tip hash to the tip's checksum."""
    found = income_checksum(forming.tip_income)
    if forming.head is not None and found != forming.tip_checksum:
        raise Corruption(
            f"account {forming.head.name}, link {forming.head.height}: {len(forming.tip_income)} postings confirmed by it "
            f"hash to {found.hex()[:16]}, its incoming checksum is {forming.tip_checksum.hex()[:16]}; "
            "this database is damaged: run `hopchain verify` on it"
        )


def check_second_thread(forming: Forming) -> None:
    """Step 3: raise `Corruption` for a posting whose link does not re-hash to its hash, or that does not go on where
    the thread of confirmed postings of its stream ends (an earlier one unconfirmed, or this or a later one used
    before)."""
    waiting: set[PostingHash] = set()
    headers_checked: set[LinkHash] = set()
    for incoming in forming.incoming:
        posting, before = incoming.posting, incoming.before
        if incoming.link_hash not in headers_checked:
            if header_hash(incoming.link_header) != incoming.link_hash:
                raise Corruption(thread_text(incoming, "its link does not hash to the link's own hash"))
            headers_checked.add(incoming.link_hash)
        if posting.confirmation is not None:
            raise Corruption(thread_text(incoming, "it was confirmed before and is incoming again"))
        if before is not None:
            if (before.sender, before.recipient) != (posting.sender, posting.recipient):
                raise Corruption(thread_text(incoming, "its thread ends in a posting of another stream"))
            if before.id >= posting.id:
                raise Corruption(
                    thread_text(incoming, "it, or a later one, was confirmed and its confirmation was taken back")
                )
            if before.confirmation is None and before.hash not in waiting:
                raise Corruption(thread_text(incoming, f"posting {before.hash.hex()[:16]} before it is not confirmed"))
        waiting.add(posting.hash)


def take_up(forming: Forming) -> tuple[int, tuple[PostingHash, ...]]:
    """Step 4: (available after it, postings taken up), oldest first, while the balance stays within MAX_AMOUNT."""
    funds = forming.head.balance if forming.head else 0
    taken: list[PostingHash] = []
    for incoming in forming.incoming[:MAX_CONFIRMED]:
        if funds + incoming.posting.amount > MAX_AMOUNT:
            break
        funds += incoming.posting.amount
        taken.append(incoming.posting.hash)
    return funds, tuple(taken)


def form_link(
    network: NetworkId,
    forming: Forming,
    queue: Sequence[DecodedRequest],
    assets: Mapping[str, str],
    recorded: Collection[RequestId],
    *,
    epoch: int,
    now_ms: int,
    absent: Collection[str] = (),
    income_complete: bool = False,
    issuer_limit: int = MAX_AMOUNT,
) -> Formed:
    """Make the account's next link from `queue`, in order.

    `assets`: what the accounts hold that the queue pays, those that are known here. `recorded`: which of the queue's
    request ids (and cancel targets) already have an outcome. `absent`: names that a majority of their opening
    slot's group does not know. `income_complete`: every node that could hold income of this account has answered.
    `issuer_limit`: how far below zero an issuer may go (`Genesis.issuer_limit`).
    Raises `Corruption` when the tip's income or a second thread does not hold.
    """
    head = forming.head
    if head is None:
        return _form_opening(network, queue, epoch, now_ms)
    check_tip_income(forming)
    check_second_thread(forming)
    funds, taken = take_up(forming)
    all_taken = len(taken) < MAX_CONFIRMED or len(taken) == forming.incoming_count
    judge = _Judge(head, funds, assets, set(recorded), absent, income_complete, all_taken, issuer_limit)
    for item in queue:
        judge.hear(item)
    entries, left, unjudged = judge.entries, judge.left, judge.unjudged
    if judge.must_consolidate:  # take up income first, by itself; everything else waits for the next link
        entries, left, unjudged = [], [*judge.heard, *judge.left, *judge.unjudged], []
    link = None
    if entries or judge.must_consolidate:
        link = build_link(
            network,
            head.name,
            head.height + 1,
            head.slot,
            funds - sum(e.request.total for e in entries if e.outcome is Outcome.COMPLETED),
            epoch,
            max(head.time_ms + 1, now_ms),
            entries,
            taken,
        )
    return Formed(
        link,
        tuple(left),
        tuple(unjudged),
        tuple(judge.settled),
        tuple(judge.stale),
        frozenset(judge.ask_recipients),
        judge.ask_income,
    )


def _form_opening(network: NetworkId, queue: Sequence[DecodedRequest], epoch: int, now_ms: int) -> Formed:
    """Link 0: the first opening in the queue gets the name, for ever; the others lost it."""
    openings = [q for q in queue if q.request.kind is Kind.OPEN]
    if not openings:
        return Formed(None, left=tuple(queue))
    first = openings[0]
    entry = Entry(first.signed, first.request, first.request_id, Outcome.COMPLETED)
    name = first.request.sender
    link = build_link(network, name, 0, opening_slot(network, name), 0, epoch, now_ms, [entry], [])
    return Formed(link, left=tuple(q for q in queue if q.request.kind is not Kind.OPEN), settled=tuple(openings[1:]))


class _Judge:
    """Step 5: hears requests one after the other against the funds that are left."""

    def __init__(
        self,
        head: AccountHead,
        funds: int,
        assets: Mapping[str, str],
        recorded: set[RequestId],
        absent: Collection[str],
        income_complete: bool,
        all_taken: bool,
        issuer_limit: int,
    ) -> None:
        self._head = head
        self._funds = funds
        self._assets = assets
        self._recorded = recorded
        self._absent = absent
        self._income_complete = income_complete
        self._all_taken = all_taken
        self._issuer_limit = issuer_limit
        self._bytes = 0
        self._postings = 0
        self.entries: list[Entry] = []
        self.heard: list[DecodedRequest] = []
        self.left: list[DecodedRequest] = []
        self.unjudged: list[DecodedRequest] = []
        self.settled: list[DecodedRequest] = []
        self.stale: list[DecodedRequest] = []
        self.ask_recipients: set[str] = set()
        self.ask_income = False
        self.must_consolidate = False

    def hear(self, item: DecodedRequest) -> None:
        request = item.request
        if request.kind is Kind.OPEN or item.request_id in self._recorded:
            self.settled.append(item)
        elif request.expect_tip not in (ANY_TIP, self._head.tip):
            self.stale.append(item)
        elif not self._has_room(item):
            self.left.append(item)
        else:
            outcome = self._outcome(item)
            if outcome is None:
                self.unjudged.append(item)
            else:
                self._enter(item, outcome)

    def _has_room(self, item: DecodedRequest) -> bool:
        return (
            len(self.entries) < MAX_ENTRIES
            and self._postings + len(item.request.postings) <= MAX_POSTINGS
            and self._bytes + len(item.signed.raw) <= MAX_REQUEST_BYTES
        )

    def _outcome(self, item: DecodedRequest) -> Outcome | None:
        """The outcome, or None when facts are missing; then `ask_*` or `must_consolidate` says which."""
        request = item.request
        if self._head.height + 1 > request.valid_until_height:
            return Outcome.EXPIRED
        if request.kind is Kind.CANCEL:
            return Outcome.ALREADY_DECIDED if request.target in self._recorded else Outcome.COMPLETED
        recipients = request.recipients
        unknown = recipients.difference(self._assets)
        if unknown:
            unasked = unknown.difference(self._absent)
            if unasked != unknown:  # all or nothing: one name that nobody has is enough
                return Outcome.UNKNOWN_RECIPIENT
            self.ask_recipients |= unasked
            return None
        if any(self._assets[name] != self._head.asset for name in recipients):
            return Outcome.ASSET_MISMATCH
        floor = -self._issuer_limit if self._head.issuer else 0
        if self._funds - request.total >= floor:
            return Outcome.COMPLETED
        if not self._all_taken:
            self.must_consolidate = True
            return None
        if self._income_complete:
            return Outcome.ISSUER_LIMIT if self._head.issuer else Outcome.INSUFFICIENT_FUNDS
        self.ask_income = True
        return None

    def _enter(self, item: DecodedRequest, outcome: Outcome) -> None:
        self.entries.append(Entry(item.signed, item.request, item.request_id, outcome))
        self.heard.append(item)
        self._recorded.add(item.request_id)
        self._bytes += len(item.signed.raw)
        self._postings += len(item.request.postings)
        if outcome is Outcome.COMPLETED:
            self._funds -= item.request.total
            if item.request.kind is Kind.CANCEL:
                self._recorded.add(item.request.target)


def check_successor(
    link: Link,
    head: AccountHead | None,
    confirmed: Sequence[Credit],
    assets: Mapping[str, str] = _NOTHING,
    taken: Collection[int] = (),
) -> None:
    """Raise `Corruption` unless a decided `link` follows from what is here (`successor_fault`)."""
    fault = successor_fault(link, head, confirmed, assets, taken)
    if fault is not None:
        raise Corruption(
            f"decided link {link.height} of {link.account} ({link.hash.hex()[:16]}) cannot be applied: {fault}; "
            "this database is damaged or the rules differ: run `hopchain verify` on it"
        )


def successor_fault(
    link: Link,
    head: AccountHead | None,
    confirmed: Sequence[Credit],
    assets: Mapping[str, str],
    taken: Collection[int],
) -> str | None:
    """Why `link` does not follow from `head` and the postings that it confirms; None when it does.

    `confirmed`: the rows of `link.confirmed`, in that order, as they are here before the link is applied, but for
    `taken`: the ids of the postings that were confirmed since they were read. `assets`: what the accounts hold that it
    pays, those that are known here.
    """
    if head is None:
        if link.height != 0 or confirmed:
            return "it does not open the account and nothing is before it"
        if link.prev_hash != opening_slot(link.network, link.account):
            return "it is not in its name's slot"
        if link.balance != 0 or link.debit != 0:
            return f"it opens with a balance of {link.balance}"
        if [(entry.request.kind, entry.outcome) for entry in link.entries] != [(Kind.OPEN, Outcome.COMPLETED)]:
            return "it is not one opening"
        return None
    if link.height != head.height + 1:
        return f"the tip here has height {head.height}"
    if link.prev_hash != head.slot:
        return f"the tip here is {head.tip.hex()[:16]}"
    if link.time_ms <= head.time_ms:
        return f"its time {link.time_ms} is not after {head.time_ms}"
    if tuple([posting.hash for posting in confirmed]) != link.confirmed:
        return "rows of confirmed postings are missing"
    if not all(posting.recipient == link.account and posting.confirmation is None for posting in confirmed):
        return "it confirms a posting that is not this account's, or is confirmed already"
    fault = _order_fault(link, confirmed, taken)
    if fault is not None:
        return fault
    income = sum([posting.amount for posting in confirmed])
    balance = head.balance + income - link.debit
    if link.balance != balance:
        paid = f"{head.balance} + {income} - {link.debit} = {balance}"
        return f"its balance is {link.balance}, but {paid}"
    if link.balance < 0 and not head.issuer:
        return f"its balance {link.balance} is below zero"
    if not set(map(assets.get, link.recipients)) <= {head.asset, None}:
        return f"it pays an account that does not hold {head.asset}"
    return None


def _order_fault(link: Link, confirmed: Sequence[Credit], taken: Collection[int]) -> str | None:
    """What it confirms of each sender is, in order, the oldest that waits here. What precedes a thread's end is
    confirmed: each posting was checked so when it was."""
    if len(set(link.confirmed)) < len(link.confirmed):
        return "it confirms a posting twice"
    listed: set[int] = set()
    last: dict[str, float] = {}
    for posting in confirmed:
        skipped = posting.before and posting.before not in listed and posting.before not in taken
        if skipped or 0 < posting.id <= last.get(posting.sender, 0):
            return f"posting {posting.hash.hex()[:16]}, which it confirms, is not the next one of {posting.sender}"
        listed.add(posting.id)
        last[posting.sender] = posting.id or math.inf  # made just now, it comes after all that have an id
    return None

"""The observer's own ledger: small, slow to grow, and independent of the node's rules.

It is fed every link that was *chosen* (voted for by a majority at one ballot, whether or not anybody learned of it) and
derives all money from them with dictionaries. It uses the node's code for one thing only: reading the bytes of a link.
"""

from collections import defaultdict

import msgspec

from chain.link import Entry, Link, Outcome
from chain.request import ANY_TIP, Kind, is_signed_by


class Credit(msgspec.Struct):
    """A posting of a chosen link."""

    sender: str
    recipient: str
    amount: int
    height: int
    link: bytes
    request_id: bytes
    confirmed_by: bytes | None = None


class Ledger:
    """Money, derived from chosen links. `add` returns the complaints about a link, as text."""

    def __init__(self, issuers: dict[str, bytes]) -> None:
        self.issuers = set(issuers)
        self.tips: dict[str, Link] = {}
        self.chains: dict[str, list[Link]] = defaultdict(list)
        self.credits: dict[bytes, Credit] = {}
        self.incoming: dict[str, dict[bytes, Credit]] = defaultdict(dict)
        self.outcomes: dict[tuple[str, bytes], tuple[Outcome, Link]] = {}
        self.keys: dict[str, bytes] = {}
        self._early: list[Link] = []
        self._seen: set[bytes] = set()

    def add(self, link: Link) -> list[str]:
        """Take up a chosen link, and those that waited for it."""
        if link.hash in self._seen:
            return []
        self._seen.add(link.hash)
        self._early.append(link)
        complaints: list[str] = []
        progress = True
        while progress:
            progress = False
            for early in list(self._early):
                if self._ready(early):
                    self._early.remove(early)
                    complaints += self._take(early)
                    progress = True
        return complaints

    @property
    def waiting(self) -> int:
        """Chosen links whose parent or income was not chosen (yet)."""
        return len(self._early)

    def _ready(self, link: Link) -> bool:
        tip = self.tips.get(link.account)
        height = tip.height if tip is not None else -1
        return link.height <= height + 1 and all(h in self.credits for h in link.confirmed)

    def _take(self, link: Link) -> list[str]:
        bad: list[str] = []
        tip = self.tips.get(link.account)
        if tip is not None and (link.height != tip.height + 1 or bytes(link.prev_hash) != bytes(tip.hash)):
            bad.append(f"link {link.height} of {link.account} does not follow tip {tip.height}")
        if tip is not None and link.time_ms <= tip.time_ms:
            bad.append(f"link {link.height} of {link.account} is not later than the one before")
        income = 0
        for h in link.confirmed:
            credit = self.credits[h]
            if credit.recipient != link.account:
                bad.append(f"link {link.height} of {link.account} takes a posting to {credit.recipient}")
            if credit.confirmed_by is not None:
                bad.append(f"posting {h.hex()[:12]} of {credit.amount} to {credit.recipient} is confirmed twice")
            credit.confirmed_by = link.hash
            income += credit.amount
            self.incoming[link.account].pop(h, None)
        bad += self._take_entries(link)
        debit = sum(e.request.total for e in link.entries if e.outcome is Outcome.COMPLETED)
        before = tip.balance if tip is not None else 0
        if link.balance != before + income - debit:
            bad.append(f"link {link.height} of {link.account}: {before} + {income} - {debit} is not {link.balance}")
        if link.balance < 0 and link.account not in self.issuers:
            bad.append(f"{link.account} is at {link.balance}")
        self.tips[link.account] = link
        self.chains[link.account].append(link)
        return bad

    def _take_entries(self, link: Link) -> list[str]:
        bad = []
        for entry in link.entries:
            bad += self._settle(link, entry.request_id, entry.outcome)
            bad += self._judge(link, entry)
            if entry.outcome is Outcome.COMPLETED and entry.request.kind is Kind.CANCEL:
                bad += self._settle(link, entry.request.target, Outcome.CANCELLED)
            if entry.outcome is Outcome.COMPLETED:
                bad += [
                    f"{link.account} pays {p.recipient}, which does not exist"
                    for p in entry.request.postings
                    if p.recipient not in self.tips
                ]
        for _, h, posting, request_id in link.postings():
            credit = Credit(link.account, posting.recipient, posting.amount, link.height, link.hash, request_id)
            self.credits[h] = credit
            self.incoming[posting.recipient][h] = credit
        return bad

    def _judge(self, link: Link, entry: Entry) -> list[str]:
        """What any outcome must agree with: signature, expected tip, last height."""
        request, bad = entry.request, []
        what = f"request {entry.request_id.hex()[:12]} in link {link.height} of {link.account}"
        if request.kind is Kind.OPEN:
            self.keys[link.account] = request.public_key
        elif request.expect_tip not in (ANY_TIP, link.prev_hash):
            bad.append(f"{what} expected another tip")
        if link.account not in self.issuers and not is_signed_by(entry.signed, self.keys[link.account]):
            bad.append(f"{what} is not signed by its owner")
        if (entry.outcome is Outcome.EXPIRED) != (link.height > request.valid_until_height):
            bad.append(f"{what} is {entry.outcome.name}, and valid until height {request.valid_until_height}")
        return bad

    def _settle(self, link: Link, request_id: bytes, outcome: Outcome) -> list[str]:
        key = (link.account, request_id)
        if key in self.outcomes:
            was, other = self.outcomes[key]
            return [f"request {request_id.hex()[:12]} of {link.account} is {was.name} and {outcome.name}"] * (
                other.hash != link.hash or was is not outcome
            )
        self.outcomes[key] = (outcome, link)
        return []

    def spendable(self, account: str) -> int:
        """Its balance and all that it was paid since, minor units."""
        tip = self.tips.get(account)
        return (tip.balance if tip is not None else 0) + sum(c.amount for c in self.incoming[account].values())

    def total(self) -> int:
        """All balances and all incoming money: 0."""
        settled = sum(tip.balance for tip in self.tips.values())
        return settled + sum(c.amount for credits in self.incoming.values() for c in credits.values())

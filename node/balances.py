"""Balances in memory: each is read once, and then follows the links that commits bring (docs/adr/0036).

Each is what `chain.reads.read_balance` would find, whenever no commit is under way. Links that are decided whatever
becomes of their commit are in it when that begins, other links when it has ended. A link says itself what it does to
accounts: what is left and what it took up of one, and what it pays to others. What a bulk payment brings is only added
up, and put into a balance when somebody asks for it.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from chain.link import Link
from chain.names import NAME_BYTES, pad
from chain.reads import Balance
from chain.request import Postings

MAX_BALANCES: Final = 100_000  # some 60 MB
MANY_COMMITS: Final = 32  # during one reading, which may wait minutes for a digest: then one set is made of theirs


class Balances:
    """At most `most` balances; the one that is longest here makes room for another. Not for threads."""

    def __init__(self, most: int = MAX_BALANCES) -> None:
        self._most = most
        # not a dict: that finds its first slowly when many were deleted there
        self._known: OrderedDict[bytes, Balance] = OrderedDict()  # by names as records have them, padded
        self._received: dict[bytes, int] = {}  # by bulk payments, and not in the balance yet; for accounts known here
        self._received_count: Counter[bytes] = Counter()
        self._readings: list[list[frozenset[str]]] = []  # for each that is under way: whom commits meanwhile are about
        self._committing: Sequence[Link] = ()
        self._about: frozenset[str] | None = None  # `changed_by(_committing)`, once it was worked out
        self._ahead = False  # of the database, by `_committing`

    def __len__(self) -> int:
        return len(self._known)

    def get(self, name: str) -> Balance | None:
        """The balance, if it is known here."""
        key = _key(name)
        known = self._known.get(key)
        if known is not None and key in self._received:
            known = _with_incoming(known, self._received.pop(key), self._received_count.pop(key))
            self._known[key] = known
        return known

    @property
    def is_full(self) -> bool:
        """Another one would push one out."""
        return len(self._known) >= self._most

    def has_all_of(self, name: str) -> bool:
        """The balance is known here, with what a commit that is under way brings."""
        return _key(name) in self._known and (self._ahead or name not in self.under_way)

    @property
    def under_way(self) -> frozenset[str]:
        """Whom the commit that is under way is about: one set for all who ask."""
        if self._about is None:
            self._about = changed_by(self._committing)
        return self._about

    @contextmanager
    def committing(self, links: Sequence[Link], *, decided: bool) -> Iterator[None]:
        """While these links are written, one commit at a time. `decided`: they stay decided if that fails, and are in
        the balances at once; others are when it has ended, and never if it fails."""
        self._committing, self._about, self._ahead = links, None, decided
        for commits in self._readings if links else ():
            commits.append(self.under_way)
            if len(commits) > MANY_COMMITS:
                commits[:] = [frozenset().union(*commits)]
        if decided:
            self._follow_all(links)
        yield
        self._committing, self._about, self._ahead = (), None, False
        if not decided:
            self._follow_all(links)

    @contextmanager
    def reading(self) -> Iterator[Callable[[Balance], None]]:
        """While balances are read from the database. What it yields keeps one of them, unless a commit that was under
        way meanwhile may or may not be in it."""
        commits = [self.under_way]
        self._readings.append(commits)
        try:
            yield lambda found: None if any(found.name in about for about in commits) else self._keep(found)
        finally:
            self._readings = [reading for reading in self._readings if reading is not commits]

    def _keep(self, found: Balance) -> None:
        key = _key(found.name)
        if key not in self._known and self.is_full:
            oldest, _ = self._known.popitem(last=False)
            self._drop_received(oldest)
        self._known[key] = found
        self._drop_received(key)

    def _drop_received(self, key: bytes) -> None:
        self._received.pop(key, None)
        self._received_count.pop(key, None)

    def _follow_all(self, links: Sequence[Link]) -> None:
        for link in links:
            self._follow(link)

    def _follow(self, link: Link) -> None:
        if link.height == 0:
            request = link.entries[0].request
            self._keep(Balance(link.account, request.asset, False, 0, 0, 0, link.hash, 0, 0, 0))
        own = self.get(link.account)
        if own is not None:
            self._known[_key(link.account)] = _after(link, own)
        for _, entry in link.paying:
            postings = entry.request.postings
            if isinstance(postings, Postings):
                self._receive(postings)
                continue
            for posting in postings:
                paid = self.get(posting.recipient)
                if paid is not None:
                    self._known[_key(posting.recipient)] = _with_incoming(paid, posting.amount, 1)

    def _receive(self, postings: Postings) -> None:
        """Two numbers for each posting, not a record: 3 ms for 8,190."""
        known, received, names = self._known, self._received, postings.names
        for name, amount in zip(names, postings.amounts, strict=True):
            if name in known:
                received[name] = received.get(name, 0) + amount
        self._received_count.update(filter(known.__contains__, names))


def _key(name: str) -> bytes:
    return pad(name, NAME_BYTES)


def changed_by(links: Sequence[Link]) -> frozenset[str]:
    """The accounts whose balance or chain these links change."""
    return frozenset([link.account for link in links]).union(*[link.recipients for link in links])


def _after(link: Link, own: Balance) -> Balance:
    """Of who makes the link. What there was, and what it took up of what came in, is what is left, and what it paid."""
    taken_up = link.balance + link.debit - own.settled
    return Balance(
        name=own.name,
        asset=own.asset,
        issuer=own.issuer,
        settled=link.balance,
        incoming=own.incoming - taken_up,
        incoming_count=own.incoming_count - len(link.confirmed),
        tip=link.hash,
        height=link.height,
        epoch=link.epoch,
        time_ms=link.time_ms,
    )


def _with_incoming(paid: Balance, amount: int, count: int) -> Balance:
    return Balance(
        name=paid.name,
        asset=paid.asset,
        issuer=paid.issuer,
        settled=paid.settled,
        incoming=paid.incoming + amount,
        incoming_count=paid.incoming_count + count,
        tip=paid.tip,
        height=paid.height,
        epoch=paid.epoch,
        time_ms=paid.time_ms,
    )

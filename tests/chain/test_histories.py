"""Random histories against the reference ledger (`tests/chain/ledger.py`), on two replicas.

Requests come in batches. Links are formed on the first replica, which has everything, or on the second, which lags and
takes the links in any order that their dependencies allow. Whatever happened: the ledger agrees about every outcome and
every balance, the totals are zero, nobody is below zero, each posting is confirmed at most once, both replicas end with
the same digest and the same rows of `transfers`, which are what the links say, and the audit finds nothing.
"""

import sqlite3
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from chain.audit import audit
from chain.link import Link, PostingHash
from chain.load import load
from chain.needs import Needs
from chain.reads import list_accounts, read_balance, read_outcome, state_digest
from chain.request import ANY_HEIGHT, ANY_TIP, Kind, Request
from chain.rows import Applied
from chain.rules import Formed
from chain.store import commit
from tests.chain.bank import GENESIS, Bank, id_of, memory_database, read_incoming, read_transfers, transfers_of
from tests.chain.ledger import Ledger

ASSETS = {"ann": "CZK", "ben": "CZK", "cid": "CZK", "dan": "CZK", "eva": "EUR"}
NAMES = ("ann", "ben", "cid")  # open and with money from the start
ISSUERS = {issuer.name: issuer.asset for issuer in GENESIS.issuers}

_amount = st.one_of(st.integers(1, 60), st.integers(1, 60), st.integers(1, 2**63 - 1))
_posting = st.tuples(st.sampled_from([*NAMES * 4, "dan", "eva", "mint", "nobody"]), _amount)
_deed = st.one_of(
    st.tuples(st.just("pay"), st.lists(_posting, min_size=1, max_size=4), st.sampled_from([ANY_HEIGHT, 3, 6])),
    st.tuples(st.just("cancel"), st.integers(0, 30), st.booleans()),
    st.tuples(st.just("again"), st.integers(0, 30), st.just(0)),
    st.tuples(st.just("pin"), _posting, st.booleans()),
)
_batch = st.tuples(
    st.sampled_from([*NAMES * 3, "dan", "eva", "mint", "mint2", "ezb"]),
    st.lists(_deed, min_size=1, max_size=4),
    st.booleans(),
)


class History:
    """Two replicas and the ledger."""

    def __init__(self, choices: st.DataObject) -> None:
        self.choices = choices
        self.first, self.second = memory_database(), memory_database()
        self.bank = Bank(self.first)
        self.ledger = Ledger(ISSUERS)
        self.requests: list[Request] = []
        self.behind: list[Link] = []  # applied on the first replica only
        self.heights = dict.fromkeys(ISSUERS, 0)
        self.made_by: dict[PostingHash, Link] = {}
        self.opened: dict[str, Link] = {}
        for name in NAMES:
            self.batch(name, [], False)
        self.batch("mint", [("pay", [(name, 100) for name in NAMES], ANY_HEIGHT)], False)

    def batch(self, name: str, deeds: list[tuple[object, ...]], lagging: bool) -> None:
        if name not in self.ledger.asset:
            self._decided([self.bank.opening(name, ASSETS[name])], self.first, complete=True)
            return
        requests = [made for deed in deeds for made in self._requests(name, deed)]
        if not requests:
            return
        if lagging:
            self.catch_up(name)
        self._decided(requests, self.second if lagging else self.first, complete=not lagging)

    def _requests(self, name: str, deed: tuple[object, ...]) -> Iterator[Request]:
        match deed:
            case ("pay", list(postings), int(until)):
                wanted = [(recipient, amount) for recipient, amount in postings if recipient != name]
                if wanted and sum(amount for _, amount in wanted) < 2**63:
                    yield self.bank.transfer(name, *wanted, valid_until_height=until)
            case ("pin", (str(recipient), int(amount)), bool(right)):
                if recipient != name:
                    tip = self.bank.tip(name) if right else bytes([1]) * 32
                    yield self.bank.transfer(name, (recipient, amount), expect_tip=tip)
            case ("cancel", int(index), bool(before)):
                late = self.bank.transfer(name, ("ann" if name != "ann" else "ben", 1))
                targets = [late] if before else self.requests
                if targets:
                    yield self.bank.cancellation(name, id_of(targets[index % len(targets)]))
                if before:
                    yield late
            case ("again", int(index), _):
                mine = [request for request in self.requests if request.sender == name]
                if mine:
                    yield mine[index % len(mine)]

    def _decided(self, requests: list[Request], conn: sqlite3.Connection, *, complete: bool) -> None:
        self.requests += [request for request in requests if request not in self.requests]
        name = requests[0].sender
        absent = None if complete else ()
        formed = self.bank.form(requests, conn=conn, absent=absent, income_complete=complete)
        assert not (complete and (formed.unjudged or formed.ask_income or formed.ask_recipients))
        self._compare(requests, formed)
        names = set(self.ledger.asset)  # what is read to form their links tells their income as the query for it does
        assert load(conn, Needs(forming=names, income=names)).income == load(conn, Needs(income=names)).income
        link = formed.link
        if link is None:
            return
        self.heights[name] = link.height
        self.bank.apply(link)
        self.behind.append(link)
        for _, posting, _, _ in link.postings():
            self.made_by[posting] = link
        if link.height == 0:
            self.opened[name] = link

    def _compare(self, requests: list[Request], formed: Formed) -> None:
        """The link records, in order, what the ledger says of each request that it had not settled before."""
        stale = {item.request_id for item in formed.stale}
        unjudged = {item.request_id for item in formed.unjudged}
        recorded = dict(formed.link.outcomes()) if formed.link else {}
        for request in requests:
            request_id = id_of(request)
            if request_id in stale:
                assert request.expect_tip not in (ANY_TIP, self.bank.tip(request.sender))
            elif request_id not in unjudged:
                known = (request.sender, request_id) in self.ledger.outcomes
                height = formed.link.height if formed.link else -1
                outcome = self.ledger.execute(request_id, request, height)
                assert known or recorded[request_id] is outcome
                if known and request_id in recorded:
                    assert recorded[request_id] is outcome  # twice in one batch, or cancelled just before

    def _ready(self, link: Link) -> bool:
        """True when the second replica holds all that the link builds on."""
        waiting = {other.hash for other in self.behind}
        needed = [link.prev_hash, *(self.made_by[p].hash for p in link.confirmed)]
        needed += [self.opened[p.recipient].hash for _, _, p, _ in link.postings() if p.recipient in self.opened]
        return not waiting.intersection(needed)

    def _apply_late(self, link: Link) -> None:
        commit(self.second, [Applied(link)])
        self.behind.remove(link)

    def lag(self) -> None:
        """Some of what is ready reaches the second replica, in an order of its own."""
        for _ in range(self.choices.draw(st.integers(0, 3), "late links")):
            ready = [link for link in self.behind if self._ready(link)]
            if ready:
                self._apply_late(ready[self.choices.draw(st.integers(0, len(ready) - 1), "which")])

    def catch_up(self, name: str) -> None:
        """The second replica gets the whole chain of the account and what that needs, and nothing else."""
        wanted = [link for link in self.behind if link.account == name]
        while wanted:
            link = wanted[-1]
            if self._ready(link):
                self._apply_late(link)
                wanted.remove(link)
                continue
            waiting: dict[bytes, Link] = {other.hash: other for other in self.behind}
            needed: list[bytes] = [link.prev_hash, *(self.made_by[p].hash for p in link.confirmed)]
            needed += [self.opened[p.recipient].hash for _, _, p, _ in link.postings() if p.recipient in self.opened]
            for missing in needed:
                if missing in waiting:
                    if waiting[missing] in wanted:
                        wanted.remove(waiting[missing])
                    wanted.append(waiting[missing])

    def finish(self) -> None:
        while self.behind:
            ready = [link for link in self.behind if self._ready(link)]
            self._apply_late(ready[self.choices.draw(st.integers(0, len(ready) - 1), "last")])


@settings(derandomize=True, deadline=None, max_examples=150)
@given(batches=st.lists(_batch, min_size=4, max_size=25), choices=st.data())
def test_every_history_agrees_with_the_reference_ledger(
    batches: list[tuple[str, list[tuple[object, ...]], bool]], choices: st.DataObject
) -> None:
    history = History(choices)
    for name, deeds, lagging in batches:
        history.batch(name, deeds, lagging)
        history.lag()
    history.finish()

    assert state_digest(history.first) == state_digest(history.second)
    transfers = transfers_of(history.bank.links)
    waiting = [(row[0], row[5], row[4], row[6]) for row in transfers if row[13] is None]
    for conn in (history.first, history.second):
        assert read_transfers(conn) == transfers
        assert read_incoming(conn) == waiting
        assert audit(conn, genesis=GENESIS).fault is None
        assert all(total == 0 for _, total in state_digest(conn).totals)
        heads = list_accounts(conn)
        assert {head.name: head.asset for head in heads} == history.ledger.asset
        for head in heads:
            assert head.issuer or head.balance >= 0
            money = read_balance(conn, head.name)
            assert money is not None
            assert money.available == history.ledger.funds[head.name]
        confirmed = [p for link in history.bank.links for p in link.confirmed]
        assert len(set(confirmed)) == len(confirmed)
        for (account, request_id), outcome in history.ledger.outcomes.items():
            found = read_outcome(conn, request_id, account)
            assert found is not None
            assert found.outcome is outcome
        (count,) = conn.execute("SELECT count(*) FROM outcomes").fetchone()
        assert count == len(history.ledger.outcomes) + len(ISSUERS)  # their openings, by the genesis file
    history.first.close()
    history.second.close()


@settings(derandomize=True, deadline=None, max_examples=40)
@given(order=st.permutations(range(6)))
def test_replicas_agree_whatever_the_order_of_independent_links(order: list[int]) -> None:
    bank, other = Bank(memory_database()), memory_database()
    bank.open("hub", *NAMES[:3])
    bank.pay("mint", *[(name, 100) for name in NAMES[:3]])
    for link in bank.links:
        commit(other, [Applied(link)])
    both = [bank.pay(name, ("hub", amount)) for name in NAMES[:3] for amount in (1, 2)]
    waiting = [both[i] for i in order]
    while waiting:
        heads = load(other, Needs(heads={link.account for link in waiting})).heads
        link = next(link for link in waiting if heads[link.account].slot == link.prev_hash)
        commit(other, [Applied(link)])
        waiting.remove(link)
    assert state_digest(bank.conn) == state_digest(other)
    last = bank.pay("hub", ("ann", 9))
    commit(other, [Applied(last)])
    assert state_digest(bank.conn) == state_digest(other)
    assert [e.request.kind for e in last.entries] == [Kind.TRANSFER]
    bank.conn.close()
    other.close()

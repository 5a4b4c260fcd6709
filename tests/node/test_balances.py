"""Balances in memory are those of the database, whatever links come and whatever is read while they are written."""

import random
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from chain.link import Link, decode_link_untrusted
from chain.reads import Balance, read_balance, read_balances
from chain.request import MANY_POSTINGS
from chain.rows import Applied
from chain.store import commit
from node.balances import MANY_COMMITS, Balances
from tests.chain.bank import Bank, memory_database

ISSUERS = ["ezb", "mint", "mint2"]
NAMES = [f"account-{number}" for number in range(9)]
ASSETS = ("CZK", "EUR")  # those that pay an account of the other one are rejected


class Replica:
    """A node's database, and what it knows of it by heart."""

    def __init__(self, most: int = 100) -> None:
        self.conn = memory_database()
        self.balances = Balances(most)

    def commit(
        self,
        *links: Link,
        decided: bool = False,
        before: Callable[[], None] = lambda: None,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """`before` and `after` are called while the commit is under way: as it is written, and has been."""
        decoded = [decode_link_untrusted(link.raw) for link in links]
        with self.balances.committing(decoded, decided=decided):
            before()
            commit(self.conn, [Applied(link) for link in decoded])
            after()

    def remember(self, *names: str) -> None:
        for name in names:
            with self.balances.reading() as keep:
                keep(self.read(name))

    def read(self, name: str) -> Balance:
        found = read_balance(self.conn, name)
        assert found is not None
        return found

    def known(self) -> list[str]:
        """Whose balances are known; each must be that of the database."""
        known = [name for name in [*ISSUERS, *NAMES] if self.balances.get(name) is not None]
        assert [self.balances.get(name) for name in known] == [self.read(name) for name in known]
        return known


@pytest.fixture
def bank() -> Bank:
    """The network: its links are decided here first."""
    return Bank(memory_database())


def decide(bank: Bank, rng: random.Random, opened: list[str]) -> Link:
    """Something that happens in a network: an account is opened, pays a few or many, takes up what it was paid."""
    if len(opened) < 2 or (len(opened) < len(NAMES) and rng.random() < 0.2):
        first = [bank.transfer(NAMES[len(opened)], (opened[0], 1))] if opened and rng.random() < 0.5 else []
        opened.append(NAMES[len(opened)])
        return bank.decide(bank.opening(opened[-1], ASSETS[len(opened) % 2]), *first)
    sender = rng.choice(["ezb", "mint", "mint2", *opened])
    others = [name for name in opened if name != sender]
    most = 40 if rng.random() < 0.1 else 3
    return bank.decide(
        *(
            bank.transfer(sender, *((rng.choice(others), rng.randint(1, 30)) for _ in range(rng.randint(1, most))))
            for _ in range(rng.randint(1, 3))
        )
    )


@pytest.mark.parametrize("seed", range(12))
def test_they_follow_what_commits_bring_whatever_is_read_meanwhile(
    bank: Bank, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chain.rules.MAX_CONFIRMED", (2, 8190)[seed % 2])  # much is left over, or nothing
    rng = random.Random(seed)
    replica, opened = Replica(), []
    there: list[str] = list(ISSUERS)  # whom the replica has
    readings: list[
        tuple[AbstractContextManager[Callable[[Balance], None]], Callable[[Balance], None], list[Balance]]
    ] = []

    def read() -> None:
        """Readings begin, look, and end, at any time."""
        for _ in range(rng.randint(0, 3)):
            reading = replica.balances.reading()
            readings.append((reading, reading.__enter__(), []))
        for _, _, found in readings:
            if not found and rng.random() < 0.5:
                found += [replica.read(name) for name in rng.sample(there, 2)]
        rng.shuffle(readings)
        while readings and rng.random() < 0.5:
            reading, keep, found = readings.pop()
            for balance in found:
                keep(balance)
            reading.__exit__(None, None, None)

    most = 0
    for _ in range(60):
        links = [decide(bank, rng, opened) for _ in range(rng.randint(1, 4))]
        read()
        replica.commit(*links, decided=rng.random() < 0.5, before=read, after=read)
        there += [link.account for link in links if link.height == 0]
        most = max(most, len(replica.known()))
        read()
        replica.known()
    assert most > len(NAMES) / 2, "hardly anything was remembered: nothing was shown"


@pytest.mark.parametrize("decided", [False, True])
def test_what_a_commit_that_is_under_way_may_have_changed_is_not_kept(bank: Bank, decided: bool) -> None:
    """Neither as it was nor as it will be: a reader sees the commit before the node hears that it has ended."""
    replica = Replica()
    bank.open("alice", "bob", "carol")
    bank.pay("mint", ("alice", 100))
    replica.commit(*bank.links)
    replica.balances = Balances()
    link = bank.pay("alice", ("bob", 5))

    def read() -> None:
        replica.remember("alice", "bob", "carol")
        assert replica.balances.get("alice") is None and replica.balances.get("bob") is None

    replica.commit(link, decided=decided, before=read, after=read)
    assert len(replica.balances) == 1 and replica.balances.get("carol") == replica.read("carol")
    replica.remember("alice")
    assert replica.balances.get("alice") == replica.read("alice")
    assert not replica.balances._readings, "all have ended"


def test_a_reading_that_takes_long_keeps_no_set_for_each_commit(bank: Bank) -> None:
    """It may wait for a digest for minutes, and a bulk payment is about thousands."""
    replica = Replica()
    bank.open("alice", "bob", "carol")
    replica.commit(*bank.links)
    replica.balances = Balances()
    with replica.balances.reading() as keep:
        for payee in ["alice"] + ["bob"] * 3 * MANY_COMMITS:
            replica.commit(bank.pay("mint", (payee, 1)))
            assert len(replica.balances._readings[0]) <= MANY_COMMITS
        for name in ("alice", "bob", "carol", "mint"):
            keep(replica.read(name))
    assert [replica.balances.get(name) is not None for name in ("alice", "bob", "carol", "mint")] == [
        False,
        False,
        True,
        False,
    ]


def test_links_that_are_decided_whatever_becomes_of_their_commit_are_in_the_balances_at_once(bank: Bank) -> None:
    replica = Replica()
    bank.open("alice", "bob")
    replica.commit(*bank.links)
    alice, bob = replica.read("alice"), replica.read("bob")
    link = bank.pay("mint", ("alice", 100))

    def look() -> None:
        found = replica.balances.get("alice")
        assert found is not None and found.incoming == 100
        assert replica.read("alice") == alice and replica.balances.get("bob") == bob
        assert all(map(replica.balances.has_all_of, ("alice", "bob")))
        assert not replica.balances.has_all_of("mint"), "is not known"

    replica.commit(link, decided=True, before=look)
    assert replica.balances.get("alice") == replica.read("alice") != alice


def test_other_links_are_in_the_balances_when_their_commit_has_ended_and_not_when_it_fails(bank: Bank) -> None:
    replica = Replica()
    bank.open("alice", "bob")
    replica.commit(*bank.links)
    before = replica.balances.get("alice")
    link = bank.pay("mint", ("alice", 100))

    def fail() -> None:
        assert not replica.balances.has_all_of("alice") and replica.balances.has_all_of("bob")
        assert replica.balances.get("alice") == before
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(sqlite3.OperationalError):
        replica.commit(link, before=fail)
    assert before is not None and replica.balances.get("alice") == before


def test_the_oldest_makes_room(bank: Bank) -> None:
    replica = Replica(most=3)
    bank.open(*NAMES[:4])
    bank.pay("mint", (NAMES[1], 7))
    replica.commit(*bank.links)
    assert replica.known() == NAMES[1:4] and replica.balances.is_full
    replica.remember(NAMES[0], NAMES[3])
    assert replica.known() == [NAMES[0], *NAMES[2:4]]


def test_what_a_bulk_payment_brings_is_added_up_without_a_record_for_each(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = Replica()
    bank.open("alice", *NAMES)
    replica.commit(*bank.links)
    replica.remember("mint")
    monkeypatch.setattr("chain.request.Postings._all", None)
    postings = [("alice", 1), *[(name, 7) for name in NAMES], ("alice", 5)]
    assert len(postings) >= MANY_POSTINGS
    for _ in range(2):
        replica.commit(bank.pay("mint", *postings))
    alice = replica.balances.get("alice")
    assert alice is not None and (alice.incoming, alice.incoming_count) == (12, 4)
    replica.commit(bank.pay("mint", *postings))
    replica.remember(NAMES[0])  # as it is now, with what was added up for it
    assert replica.known() == ["mint", *NAMES] and replica.balances.get("alice") == replica.read("alice")


def test_what_was_added_up_for_who_makes_room_is_not_given_to_who_comes_back(bank: Bank) -> None:
    replica = Replica(most=2)
    bank.open(*NAMES[:3])
    replica.commit(*bank.links)
    assert replica.known() == NAMES[1:3]
    replica.commit(bank.pay("mint", *[(name, 1) for name in NAMES[:3]] * MANY_POSTINGS))
    assert len(replica.balances._received) == 2, "of whom no balance is known nothing is added up"
    replica.remember(NAMES[0], NAMES[1])
    assert replica.known() == NAMES[:2]
    assert not replica.balances._received and not replica.balances._received_count
    replica.remember(NAMES[2])
    assert replica.known() == NAMES[1:3]


def test_pages_of_balances_are_those_of_each(bank: Bank) -> None:
    bank.open(*NAMES)
    for amount, name in enumerate(NAMES[1:], 1):
        bank.pay("mint", (name, amount), (name, 2**40))
    bank.pay("mint2", (NAMES[2], 2**62 - 1))
    bank.pay(NAMES[3], (NAMES[4], 1))
    found: list[Balance] = []
    while page := read_balances(bank.conn, found[-1].name if found else "", 5):
        assert len(page) == 5 or len(found) + len(page) == len(ISSUERS + NAMES)
        found += page
    assert found == [read_balance(bank.conn, name) for name in sorted(ISSUERS + NAMES)]
    assert max(balance.incoming for balance in found) > 2**62

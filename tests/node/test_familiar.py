"""Accounts that a node has met lately."""

import msgspec
import pytest

from chain.link import LinkHash
from chain.rows import AccountHead
from node import familiar as familiar_module
from node.familiar import Familiar
from tests.chain.bank import Bank, memory_database


def head(name: str, height: int = 1) -> AccountHead:
    return AccountHead(name, "CZK", bytes(32), False, height, LinkHash(bytes([height]) * 32), 100, 1, 1)


def test_an_account_is_known_as_it_was_met_last() -> None:
    familiar = Familiar()
    assert familiar.head("alice") is None
    for height in (1, 3, 2):  # what the rows say counts, also after a guess that was wrong
        familiar.meet(head("alice", height))
        assert familiar.head("alice") == head("alice", height)


def test_the_account_that_was_met_least_lately_goes_first() -> None:
    familiar = Familiar(limit=2)
    for name in ("alice", "bob", "alice", "carol"):
        familiar.meet(head(name))
    assert [familiar.head(name) is not None for name in ("alice", "bob", "carol")] == [True, False, True]
    familiar.meet(head("carol", 2))
    assert familiar.head("alice") is not None, "who is met again takes nobody's place"


def test_who_is_here_is_looked_up_once_and_the_oldest_is_forgotten_between_two_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(familiar_module, "MAX_ASSETS", 2)
    familiar = Familiar()
    names = frozenset({"alice", "bob", "carol"})
    assert familiar.strangers(names) == names
    familiar.note({"alice": "CZK", "bob": "CZK"})
    familiar.meet(head("carol"))
    assert familiar.strangers(names) == frozenset(), "not while a turn may rely on it"
    assert familiar.assets["carol"] == "CZK"
    familiar.tidy()
    assert familiar.strangers(names) == {"alice"}


@pytest.mark.parametrize(("known", "expected"), [(-1, True), (0, False), (1, False)])
def test_a_decided_link_is_expected_to_be_the_next_one_when_it_is_higher(known: int, expected: bool) -> None:
    bank = Bank(memory_database())
    bank.decide(bank.opening("alice"))
    bank.decide(bank.opening("bob"))
    bank.decide(bank.transfer("mint", ("alice", 5)))
    link = bank.decide(bank.transfer("alice", ("bob", 1)))
    familiar = Familiar()
    familiar.expect(link)
    assert familiar.head("alice") is None, "of who is not known no key is known"
    before = head("alice", link.height + known)
    familiar.meet(before)
    familiar.expect(link)
    after = msgspec.structs.replace(before, height=link.height, tip=link.hash) if expected else before
    assert familiar.head("alice") == after

"""Accounts that a node has met lately."""

import msgspec
import pytest

from chain.link import LinkHash
from chain.rows import AccountHead
from hopchain.wire import Recorded
from node import familiar as familiar_module
from node.familiar import Familiar
from tests.chain.bank import Bank, memory_database
from tests.node.world import World


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
    monkeypatch.setattr(familiar_module, "MAX_ASSETS", 4)
    familiar = Familiar()
    names = frozenset({"alice", "bob", "carol", "dave", "erik"})
    assert familiar.strangers(names) == names
    familiar.tidy()
    familiar.note({"alice": "CZK", "bob": "CZK", "carol": "EUR", "dave": "CZK"})
    familiar.tidy()
    assert familiar.strangers(names) == {"erik"}, "so many have room"
    familiar.meet(head("erik"))
    familiar.note({"alice": "CZK"})
    assert familiar.strangers(names) == frozenset(), "not while a turn may rely on it"
    assert familiar.assets["carol"] == "EUR"
    familiar.tidy()
    assert familiar.strangers(names) == {"alice", "bob"}


def test_a_node_forgets_who_is_here_and_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(familiar_module, "MAX_ASSETS", 4)
    world = World(3, 3, 1)
    names = [f"acct-{number}" for number in range(8)]
    world.open_funded(alice=100, **dict.fromkeys(names, 0))
    for name in [*names, *names]:
        assert isinstance(world.pay("alice", name, 1, at=world.ids[0]), Recorded)
        assert all(len(world.core(node).replica.familiar.assets) <= 4 for node in world.ids)
    world.run(5.0)
    world.assert_equal_replicas()


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
    assert not familiar.assets, "whether they are here is not known either"
    before = head("alice", link.height + known)
    familiar.meet(before)
    familiar.expect(link)
    after = msgspec.structs.replace(before, height=link.height, tip=link.hash) if expected else before
    assert familiar.head("alice") == after

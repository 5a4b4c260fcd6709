"""The schedules of the randomised model that a node alone can get wrong, played against whole cores.

Numbers are those of the list of counterexamples: 6 a proposer that forgets, 8 counting, 9 replicating what is accepted,
11 a disk that went back, 12 told no and done later, 13 judging by one's own clock, 14 rejecting for ever. What needs a
second view (1 to 5, 7, 10) is found by tests.node.test_epoch_search when its rule is switched off.
"""

import sqlite3

import pytest

from chain.errors import Quarantined
from chain.link import Outcome
from hopchain.wire import Recorded, ReplyBody, Unknown
from node.events import FromPeer
from node.messages import Accept, Accepted, Forward
from tests.node.world import AT_VOTE, TOLD, Doom, World

HOUR_MS = 3_600_000


@pytest.fixture
def world() -> World:
    """Five nodes that all vote on everything; alice has 1000, bob nothing."""
    world = World(5, 5, seed=3)
    world.open_funded(alice=1000, bob=0)
    return world


def outcome(answer: ReplyBody) -> Outcome:
    assert isinstance(answer, Recorded), answer
    return Outcome(answer.outcome)


@pytest.mark.parametrize("doom", AT_VOTE)
def test_6_a_proposer_that_comes_back_does_not_propose_another_value_at_its_ballot(world: World, doom: Doom) -> None:
    first, others = world.group("alice")[0], world.group("alice")[1:]
    world.lose = lambda source, target, message: target != others[0]
    world.doom(first, doom)
    world.submit(first, world.pay_request("alice", "bob", 10))
    assert world.run_until(lambda: world.nodes[first].core is None, 5)
    world.run(0.1)  # what it sent arrives, at one node
    world.start(first)
    world.lose = lambda source, target, message: False
    signed = world.pay_request("alice", "bob", 20)
    assert outcome(world.ask(first, signed)) is Outcome.COMPLETED
    world.run(5)
    world.assert_equal_replicas()


def test_8_a_vote_that_arrives_again_and_again_is_one_vote(world: World) -> None:
    owner, voter = world.group("alice")[:2]
    world.part([owner, voter])
    world.deliveries = 5
    assert isinstance(world.ask(owner, world.pay_request("alice", "bob", 10), timeout_s=2), Unknown)
    assert len(world.watch.accounts["alice"].links) == 1
    assert world.core(voter).gauges().undecided_votes == 1


def test_9_an_accepted_link_is_neither_applied_nor_spent(world: World) -> None:
    """Two of five have voted for a payment to bob: nobody shows it, and bob cannot spend it."""
    owner, voter = world.group("alice")[:2]
    world.lose = lambda source, target, message: (
        isinstance(message, Accept) and message.at.account == "alice" and target != voter
    )
    paid = world.submit(owner, world.pay_request("alice", "bob", 10), timeout_s=4)
    world.run(0.05)
    assert world.core(voter).gauges().undecided_votes == 1
    for node in world.ids:
        assert world.height(node, "alice") == 0
    read = world.read(voter, "bob")
    assert world.run_until_answered([read], 1)
    assert getattr(read.answer, "available", None) == 0
    world.heal()
    assert world.run_until_answered([paid], 10)
    assert outcome(world.pay("bob", "alice", 10, at=voter)) is Outcome.COMPLETED


def test_11_a_node_whose_disk_went_back_in_time_stops(world: World) -> None:
    victim = world.group("alice")[1]
    old = sqlite3.connect(":memory:", isolation_level=None)
    world.nodes[victim].conn.backup(old)
    world.pay("alice", "bob", 10, at=world.ids[0])
    world.run(2)
    world.crash(victim)
    world.nodes[victim].conn = old
    world.start(victim)
    with pytest.raises(Quarantined, match="under a new id"):
        world.run(2)


def test_12_a_rejection_is_final_though_money_arrives_and_a_copy_was_late(world: World) -> None:
    copies: list[tuple[bytes, Forward]] = []

    def keep(source: bytes, target: bytes, message: object) -> bool:
        if isinstance(message, Forward):
            copies.append((source, message))
        return False

    world.lose = keep
    signed = world.pay_request("bob", "alice", 500)
    gateway = next(n for n in world.ids if n != world.group("bob")[0])
    assert outcome(world.ask(gateway, signed)) is Outcome.INSUFFICIENT_FUNDS
    assert outcome(world.pay("alice", "bob", 1000, at=gateway)) is Outcome.COMPLETED
    assert copies
    for source, message in copies:  # the late copies, at every node
        for node in world.ids:
            world.deliver(node, FromPeer(source, message))  # type: ignore[arg-type]
    world.run(5)
    for node in world.ids:
        assert outcome(world.ask(node, signed)) is Outcome.INSUFFICIENT_FUNDS
    assert world.watch.spendable("bob") == 1000


def test_13_nobody_judges_by_its_own_clock(world: World) -> None:
    for i, node in enumerate(world.ids):
        world.nodes[node].skew_ms = (i - 2) * 24 * HOUR_MS
    for i in range(10):
        assert outcome(world.pay("alice", "bob", 10, at=world.ids[i % 5])) is Outcome.COMPLETED
        assert outcome(world.pay("bob", "alice", 5, at=world.ids[-i % 5])) is Outcome.COMPLETED
    world.run(1)
    world.assert_equal_replicas()
    times = [link.time_ms for link in world.watch.accounts["alice"].links]
    assert times == sorted(set(times))


def test_14_an_owner_that_lacks_the_income_of_the_tip_fetches_it_and_decides(world: World) -> None:
    """All news of bob's payments are lost on the way to each owner in turn, under steady load."""
    for i in range(12):
        dark = world.group("alice")[0]
        world.lose = lambda source, target, message, dark=dark: (  # type: ignore[misc]
            target == dark and isinstance(message, TOLD)
        )
        other = next(n for n in world.ids if n != dark)
        assert outcome(world.pay("alice", "bob", 100, at=other)) is Outcome.COMPLETED
        assert outcome(world.pay("bob", "alice", 100, at=other)) is Outcome.COMPLETED
        assert outcome(world.pay("alice", "bob", 1, at=dark if i % 2 else other)) is Outcome.COMPLETED
    world.heal()
    world.run(10)
    world.assert_equal_replicas()


def test_a_vote_that_the_proposer_never_heard_of_counts(world: World) -> None:
    """All answers to the owner are lost: three of five have voted, so the value is chosen, whoever asks next."""
    owner = world.group("alice")[0]
    world.lose = lambda source, target, message: target == owner and isinstance(message, Accepted)
    call = world.submit(owner, world.pay_request("alice", "bob", 10))
    assert world.run_until(lambda: len(world.watch.accounts["alice"].links) == 2, 1)
    world.crash(owner)
    world.heal()
    answer = world.pay("alice", "bob", 20, at=world.alive[0])
    assert outcome(answer) is Outcome.COMPLETED
    assert isinstance(answer, Recorded)
    assert answer.height == 2
    assert call.answer is None

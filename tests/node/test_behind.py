"""A node that lacks many links reads them from one log, in order, while the others go on: once, not again and again."""

from itertools import cycle

import pytest

import chain.load
from node import replica
from node.messages import Links, Offer, Pull, Want
from node.pulling import PULL_S
from routing.keyspace import NodeId
from tests.node.world import Faults, World

ACCOUNTS = [f"payer-{number}" for number in range(12)]


def pay_on(world: World, at: list[NodeId], every_s: float, count: int) -> None:
    """Payments between the accounts, from now on, through each node in turn."""
    nodes = cycle(at)

    def pay() -> None:
        payer, payee = world.rng.sample(ACCOUNTS, 2)
        world.submit(next(nodes), world.pay_request(payer, payee, 1))

    for number in range(count):
        world.later(every_s * number, pay)


def test_a_node_that_is_far_behind_is_sent_every_link_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links come to it meanwhile that wait for those which it lacks: to ask for these again and again brought twelve
    times as many."""
    monkeypatch.setattr(replica, "FAR_BEHIND", 64)
    monkeypatch.setattr(chain.load, "LOG_BATCH", 64)
    world = World(5, 3, 5, Faults(delay_s=(0.02, 0.04)))
    world.open_funded(**dict.fromkeys(ACCOUNTS, 10_000))
    away, *others = world.ids
    world.crash(away)
    world.run(3)
    pay_on(world, others, 0.02, 600)
    world.run(20)
    there = world.core(others[0]).replica.count
    sent: list[bytes] = []
    asked: list[Want] = []

    def count_links(source: NodeId, target: NodeId, message: object) -> bool:
        if target == away and isinstance(message, Links):
            sent.extend(message.links)
        if source == away and isinstance(message, Want) and (message.chains or message.postings):
            asked.append(message)
        return False

    world.lose = count_links
    world.start(away)
    lacked = there - world.core(away).replica.count
    assert lacked > 500
    pay_on(world, others, 0.01, 600)
    assert world.run_until(lambda: world.core(away).replica.count >= there - 64, 5)
    assert not asked, "the log brings it"
    assert world.run_until(lambda: world.core(away).replica.count >= there, 5)
    assert 0.95 * lacked <= len(sent) < 1.2 * lacked, "a few are decided only now, and told"
    world.run(20)
    world.assert_equal_replicas()


@pytest.mark.parametrize("seed", [1, 2])
def test_two_that_come_back_together_both_read_the_log_of_one_who_has_it(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Each may ask the other first, before anybody has told how many links it has."""
    monkeypatch.setattr(replica, "FAR_BEHIND", 64)
    world = World(5, 5, seed, Faults(delay_s=(0.02, 0.04)))
    world.open_funded(**dict.fromkeys(ACCOUNTS, 10_000))
    *away, one, _, _ = world.ids
    for node in away:
        world.crash(node)
    world.run(3)
    pay_on(world, world.ids[2:], 0.02, 250)
    world.run(12)
    there = world.core(one).replica.count
    for node in away:
        world.start(node)
    assert all(there - world.core(node).replica.count > 150 for node in away)
    assert world.run_until(lambda: all(world.core(node).replica.count >= there for node in away), 0.5)


def test_who_is_far_behind_asks_nobody_who_is_not_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Page by page: of five members, one has what another lacks."""
    monkeypatch.setattr(replica, "FAR_BEHIND", 64)
    monkeypatch.setattr(chain.load, "LOG_BATCH", 16)
    world = World(5, 5, 1, Faults(delay_s=(0.001, 0.002)))
    world.open_funded(**dict.fromkeys(ACCOUNTS, 10_000))
    away, other, *_ = world.ids
    for node in (away, other):
        world.crash(node)
    world.run(3)
    pay_on(world, world.ids[2:], 0.02, 250)
    world.run(12)
    asked: list[NodeId] = []

    def note(source: NodeId, target: NodeId, message: object) -> bool:
        if source == away and isinstance(message, Pull):
            asked.append(target)
        return target == other and isinstance(message, Offer)

    world.lose = note
    for node in (other, away):
        world.start(node)
    behind = world.core(away).replica.is_far_behind
    assert behind(world.core(world.ids[2]).replica.count)
    assert world.run_until(lambda: not behind(world.core(world.ids[2]).replica.count), 2)
    assert len(asked) > 5
    assert asked.count(other) <= 1, "before it has told how many links it has"


@pytest.mark.parametrize("seed", [1, 5])  # which are slow without that
def test_who_read_all_of_a_log_that_is_catching_up_itself_reads_on_at_once(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """At the end of that log it knows from pings that others have more."""
    monkeypatch.setattr(replica, "FAR_BEHIND", 32)
    world = World(5, 5, seed, Faults(delay_s=(0.005, 0.01)))
    world.open_funded(**dict.fromkeys(ACCOUNTS, 10_000))
    away, other, *others = world.ids
    for node, count in ((away, 120), (other, 200)):
        world.crash(node)
        world.run(3)
        pay_on(world, others, 0.02, count)
        world.run(8)
    there = world.core(others[0]).replica.count
    for node in (other, away):
        world.start(node)
    assert there - world.core(away).replica.count > 150
    assert world.run_until(lambda: all(world.core(node).replica.count >= there for node in (away, other)), 0.5)


def test_who_is_far_behind_reads_the_logs_of_those_who_have_at_least_half_of_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(5, 5, 1)
    world.open_funded(alice=0)
    world.run(1)
    away, *others = world.ids
    core = world.core(away)
    told = dict(zip(others, (0, 590, 600, 1200), strict=True))
    monkeypatch.setattr(core.peers, "links", lambda node: core.replica.count + told.get(node, 0))
    asked: list[tuple[float, NodeId]] = []

    def note(source: NodeId, target: NodeId, message: object) -> bool:
        if source == away and isinstance(message, Pull):
            asked.append((world.now, target))
        return False

    world.lose = note
    world.run(60)
    assert {target for _, target in asked} == set(others[2:])
    assert len(asked) < 2 * 60 / PULL_S, "their logs have nothing, whatever they told: none is asked without end"

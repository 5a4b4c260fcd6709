"""A node that lacks many links reads them from one log, in order, while the others go on: once, not again and again."""

from itertools import cycle

import pytest

import chain.needs
from node import replica
from node.messages import Links, Want
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
    """Links come to it meanwhile that wait for those which it lacks: to ask for these again and again brought twelve times as many."""
    monkeypatch.setattr(replica, "FAR_BEHIND", 64)
    monkeypatch.setattr(chain.needs, "LOG_BATCH", 64)
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
    assert lacked <= len(sent) < 1.2 * lacked
    world.run(20)
    world.assert_equal_replicas()

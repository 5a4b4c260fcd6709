"""A link of a mebibyte takes its time at every node: how long the others are given before it is sent again, and before
its voters see to it."""

from itertools import pairwise

import pytest

from chain.request import Posting
from node.messages import Accept
from node.turn import SLOWEST_BYTES_S
from routing.keyspace import NodeId
from tests.node.world import World

SMALL, LARGE = 1, 8190  # postings


def nobody_answers(postings: int) -> tuple[World, NodeId, list[tuple[float, int]]]:
    """A world in which a payment is proposed and its owner, who is named, hears nobody. Also when one of the others was
    sent the link, and its bytes; the list grows."""
    world = World(3, 3, 1)
    world.open_funded(alice=10_000, bob=0)
    owner, other, _ = world.group("alice")
    tries: list[tuple[float, int]] = []

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, Accept) and (source, target) == (owner, other):
            tries.append((world.now, len(message.link)))
        return target == owner

    world.lose = lose
    world.submit(owner, world.pay_many_request("alice", [Posting("bob", 1)] * postings))
    return world, owner, tries


def pauses(postings: int) -> tuple[list[float], float]:
    """The pauses between the tries of one minute, seconds, and how long a node that is as busy as it may be takes over
    the link."""
    world, _, tries = nobody_answers(postings)
    world.run(60)
    return [after - before for (before, _), (after, _) in pairwise(tries)], tries[0][1] / SLOWEST_BYTES_S


def test_a_large_link_is_not_sent_again_later_and_later() -> None:
    """It waits longer than a small one by the time that it takes, from the second pause on by twice that, and never by
    more: what doubles further is the pause for the network alone. Else one that was lost would come back after a
    minute."""
    small, _ = pauses(SMALL)
    large, size_s = pauses(LARGE)
    assert size_s > 1.0
    more = [long - short for short, long in zip(small, large, strict=False)]
    assert len(more) > 10
    assert more == pytest.approx([size_s] + [2 * size_s] * (len(more) - 1), abs=0.01)


def voters_wait(postings: int) -> tuple[float, float]:
    """How long a vote stands, seconds, before a voter sees to it because its proposer died; and the bytes of the
    link."""
    world, owner, tries = nobody_answers(postings)
    voters = [node for node in world.ids if node != owner]
    assert world.run_until(lambda: all(world.core(node).acceptor.votes for node in voters), 1.0)
    since = world.now
    world.crash(owner)
    assert world.run_until(lambda: any(world.core(node).counters["votes_stuck"] for node in voters), 30.0)
    return world.now - since, tries[0][1]


def test_the_voters_of_a_large_link_give_it_the_time_of_itself_and_of_two_before_it() -> None:
    """Nodes that take up three such links one after the other are slow, not dead: a takeover would add a fourth. It
    must not be much more than that either, for if the owner is dead the account waits for so long."""
    small_s, _ = voters_wait(SMALL)
    large_s, size = voters_wait(LARGE)
    assert 2.5 < (large_s - small_s) * SLOWEST_BYTES_S / size < 3.5

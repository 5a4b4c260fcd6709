"""When a standby takes over (design section 3, ADR 8): it waits three round trips for every rank before it that lives,
and a part of three more that it draws, so that standbys do not begin at the same moment."""

import pytest

from node.events import FromPeer
from node.forwarding import TAKEOVER_RTTS
from node.messages import Forward, Item, Prepare, SlotName
from routing.keyspace import NodeId
from tests.node.world import World

SOON_S = 0.01  # a turn and a message
SEEDS = range(1, 9)


def taken_over_after(seed: int, rank: int, dead: int = 0) -> tuple[float, float]:
    """How long the node of this `rank` in its group waits before it begins a ballot, and the round trip that it has
    measured to the ranks before it, of which the first `dead` are dead. What it hands to them is lost."""
    world = World(5, 5, seed)
    world.open_funded(alice=100, bob=0)
    group = world.group("alice")
    standby, before, gateway = group[rank], group[:rank], group[-1]
    for node in before[:dead]:
        world.crash(node)
    world.run(5.0)
    begun: list[NodeId] = []

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, Prepare):
            begun.append(source)
        return isinstance(message, Forward)

    world.lose = lose
    signed, tip = world.pay_request("alice", "bob", 1), world.watch.accounts["alice"].links[-1]
    forward = Forward(
        SlotName(tip.hash, "alice", tip.height + 1), (Item(signed.raw, signed.signature, gateway),), takeover=True
    )
    rtt, start = world.core(standby).peers.rtt(before[dead:]), world.now
    world.deliver(standby, FromPeer(gateway, forward))
    assert world.run_until(lambda: bool(begun), 5)
    assert set(begun) == {standby}
    return world.now - start, rtt


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_standby_waits_three_round_trips_and_a_part_for_each_rank_before_it(rank: int) -> None:
    for seed in SEEDS:
        waited, rtt = taken_over_after(seed, rank)
        least = TAKEOVER_RTTS * rtt * rank
        assert least <= waited < least + TAKEOVER_RTTS * rtt + SOON_S


def test_what_is_drawn_differs_from_node_to_node() -> None:
    parts = [waited / (TAKEOVER_RTTS * rtt) - 2 for waited, rtt in (taken_over_after(seed, 2) for seed in SEEDS)]
    assert max(parts) - min(parts) > 0.5


@pytest.mark.parametrize(("rank", "dead"), [(1, 1), (2, 2), (3, 1)])
def test_nobody_waits_for_the_dead(rank: int, dead: int) -> None:
    for seed in SEEDS:
        waited, rtt = taken_over_after(seed, rank, dead)
        least = TAKEOVER_RTTS * rtt * (rank - dead)
        assert least <= waited < least + (TAKEOVER_RTTS * rtt if rank > dead else 0) + SOON_S

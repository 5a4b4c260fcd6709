"""Lookups in whole networks of up to 200 nodes in one process: exact, few hops, with dead nodes, with loss."""

import itertools
import math
import statistics
import sys

import pytest

from tests.routing.routing_world import World, make_world

KSIZE = 20
LOOKUPS = 60


async def _lookups(world: World, count: int, askers, alive):
    """Random lookups and their true answers."""
    for _ in range(count):
        asker, key = world.rng.choice(askers), world.rng.randbytes(20)
        yield await asker.lookup(key), world.truth(key, asker, KSIZE, alive)


async def _all_alive(world: World, count: int = LOOKUPS):
    return [pair async for pair in _lookups(world, count, world.nodes, None)]


async def test_200_nodes_find_the_true_closest_ones_with_a_fifth_dead_and_with_loss(autojump_clock):
    async with make_world(1) as world:
        await world.grow(200)
        for found, truth in await _all_alive(world):
            assert tuple(c.id for c in found.contacts) == truth
            assert found.failed == ()
            assert found.hops <= math.ceil(math.log2(200))

        world.network.loss = 0.1
        for found, truth in await _all_alive(world):
            assert found.contacts[0].id == truth[0]

        world.network.loss = 0.0
        dead = world.rng.sample(world.nodes, 40)
        for dht in dead:
            world.network.unbind(dht.address)
        living = [dht for dht in world.nodes if dht not in dead]
        alive = {dht.node_id for dht in living}
        async for found, truth in _lookups(world, LOOKUPS, living, alive):
            assert found.contacts[0].id == truth[0]
            assert {c.id for c in found.contacts} <= alive

        world.network.loss = 0.1
        async for found, truth in _lookups(world, LOOKUPS, living, alive):
            assert found.contacts[0].id == truth[0]


async def test_a_node_finds_the_address_of_any_member(autojump_clock):
    async with make_world(2) as world:
        await world.grow(60)
        for target in world.nodes[1:]:
            found = await world.nodes[0].lookup(target.node_id)
            assert (found.contacts[0].id, (found.contacts[0].host, found.contacts[0].port)) == (
                target.node_id,
                target.address,
            )


@pytest.mark.parametrize("ksize", [20, 2])
async def test_hops_grow_with_the_logarithm_of_the_number_of_nodes(autojump_clock, ksize, capsys):
    rows = []
    async with make_world(3) as world:
        for count in (25, 50, 100, 200):
            await world.grow(count - len(world.nodes), ksize=ksize)
            found = [found for found, _ in await _all_alive(world)]
            hops = [f.hops for f in found]
            rows.append((count, statistics.mean(hops), max(hops), statistics.mean(len(f.asked) for f in found)))
            assert max(hops) <= math.ceil(math.log2(count))
    with capsys.disabled():
        sys.stdout.write(f"\n  k = {ksize}\n  nodes  hops mean  hops max  asked" + "\n")
        for count, mean, most, asked in rows:
            sys.stdout.write(f"  {count:5}  {mean:9.2f}  {most:8}  {asked:5.1f}" + "\n")
    means = [mean for _, mean, _, _ in rows]
    assert all(0 < after - before < 1 for before, after in itertools.pairwise(means)), (
        "twice the nodes, at most a hop more"
    )

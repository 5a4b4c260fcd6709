"""Lookups in whole networks of up to 200 nodes in one process: exact, few hops, with dead nodes, with loss."""

import itertools
import math
import statistics
import sys

from tests.routing.routing_world import World, make_world

KSIZE = 20
LOOKUPS = 20


async def _lookups(world: World, count: int, askers, alive):
    """Random lookups and their true answers."""
    for _ in range(count):
        asker, key = world.rng.choice(askers), world.rng.randbytes(20)
        yield await asker.lookup(key), world.truth(key, asker, KSIZE, alive)


async def _all_alive(world: World, count: int = LOOKUPS):
    return [pair async for pair in _lookups(world, count, world.nodes, None)]


async def _grow_to_200(world: World, ksize: int, capsys) -> None:
    """25, 50, 100, 200 nodes, and lookups among each of them: twice the nodes are at most a hop more."""
    rows = []
    for count in (25, 50, 100, 200):
        await world.grow(count - len(world.nodes), ksize=ksize)
        pairs = await _all_alive(world)
        found = [found for found, _ in pairs]
        hops = [f.hops for f in found]
        rows.append((count, statistics.mean(hops), max(hops), statistics.mean(len(f.asked) for f in found)))
        assert max(hops) <= math.ceil(math.log2(count))
        if ksize == KSIZE:
            assert all(tuple(c.id for c in f.contacts) == truth and f.failed == () for f, truth in pairs)
    with capsys.disabled():
        sys.stdout.write(f"\n  k = {ksize}\n  nodes  hops mean  hops max  asked" + "\n")
        for count, mean, most, asked in rows:
            sys.stdout.write(f"  {count:5}  {mean:9.2f}  {most:8}  {asked:5.1f}" + "\n")
    means = [mean for _, mean, _, _ in rows]
    assert all(0 < after - before < 1 for before, after in itertools.pairwise(means))


async def test_200_nodes_find_the_true_closest_ones_with_a_fifth_dead_and_with_loss(autojump_clock, capsys):
    async with make_world(1) as world:
        await _grow_to_200(world, KSIZE, capsys)

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


async def test_hops_grow_with_the_logarithm_of_the_number_of_nodes_also_in_small_buckets(autojump_clock, capsys):
    async with make_world(3) as world:
        await _grow_to_200(world, 2, capsys)

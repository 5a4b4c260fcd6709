"""Connections stand between those who run, reach each other both ways and admit each other."""

from netsim.connections import RECONNECT_S
from netsim.faults import Faults
from netsim.plan import Cut, Load, Plan, Remove
from netsim.run import play
from netsim.world import World

ALL = {(0, 1), (0, 2), (1, 2)}


def test_all_connect_and_who_crashes_is_dropped() -> None:
    with World(Plan(1, 3, 3)) as world:
        assert world.connections.standing == set()
        world.run_for(RECONNECT_S[1])
        assert world.connections.standing == ALL
        world.crash(world.nodes[1], world.now + 1.0)
        assert world.connections.standing == {(0, 2)}
        world.run_for(1.0 + RECONNECT_S[1])
        assert world.connections.standing == ALL


def test_a_cut_breaks_nothing_and_lets_nothing_be_made() -> None:
    with World(Plan(1, 3, 3)) as world:
        world.run_for(1.0)
        Faults(world).schedule(Cut(0.0, (1,), (2,), 2.0, one_way=True), world.now)
        world.run_for(0.5)
        assert world.connections.standing == ALL
        world.crash(world.nodes[1], world.now + 0.1)
        world.run_for(1.0)
        assert world.connections.standing == {(0, 1), (0, 2)}
        world.run_for(0.5 + RECONNECT_S[1])
        assert world.connections.standing == ALL


def test_the_removed_are_connected_with_nobody_in_the_end() -> None:
    world = World(Plan(1, 3, 3, load=Load(requests=30), faults=(Remove(1.0, 2),)))
    with world:
        play(world)
    assert world.connections.standing == {(0, 1)}

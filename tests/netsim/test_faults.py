"""Faults happen to a world when their time has come and end; what a network cannot bear does not happen; who leaves,
stops."""

import pytest

from netsim.faults import Faults
from netsim.plan import (
    Add,
    Bury,
    ClockJump,
    Cut,
    Die,
    DiskError,
    Fault,
    Kill,
    Load,
    Pause,
    Plan,
    Remove,
    SlowDisk,
    Weather,
    WeatherChange,
)
from netsim.run import Result, run_plan
from netsim.world import World

LOAD = Load(requests=30)


def begin(world: World, *faults: Fault) -> Faults:
    """The faults happen from now on."""
    world.run_for(1.0)
    made = Faults(world)
    for fault in faults:
        made.schedule(fault, world.now)
    return made


def test_a_cut_and_bad_weather_come_and_go() -> None:
    with World(Plan(1, 3, 3)) as world:
        calm, bad = world.network.weather_now, Weather(loss=0.5)
        begin(world, Cut(1.0, (0,), (1, 2), 2.0), WeatherChange(1.0, bad, 2.0))
        assert (world.network.is_cut(0, 1), world.network.weather_now) == (False, calm)
        world.run_for(1.5)
        assert (world.network.is_cut(0, 1), world.network.weather_now) == (True, bad)
        world.run_for(1.0)
        assert (world.network.is_cut(0, 1), world.network.weather_now) == (False, calm)


def test_a_killed_process_comes_back() -> None:
    with World(Plan(1, 3, 3)) as world:
        begin(world, Kill(1.0, 0, 2.0))
        node = world.nodes[0]
        world.run_for(1.5)
        assert node.core is None
        world.run_for(1.0)
        assert node.core is not None
        assert world.injected["Kill.idle"] == 1


def test_a_kill_of_what_is_down_is_not_counted() -> None:
    with World(Plan(1, 3, 3)) as world:
        begin(world, Kill(1.0, 0, 3.0), Kill(2.0, 0, 3.0), Kill(2.0, 0, 3.0, "in_commit"))
        world.run_for(2.5)
        assert world.nodes[0].armed is None
        assert world.injected["Kill.idle"] == 1


def test_what_is_healed_works_and_the_others_do_not() -> None:
    with World(Plan(1, 3, 3)) as world:
        faults = begin(
            world,
            Kill(0.5, 0, 60.0),
            DiskError(0.5, 1, "full", 60.0),
            SlowDisk(0.5, 1, 1.0, 60.0),
            Pause(0.5, 2, 60.0),
            Cut(0.5, (0,), (1, 2), 60.0),
        )
        world.run_for(0.6)
        faults.heal([0, 1])
        assert world.nodes[0].core is not None
        assert world.nodes[1].armed is None
        assert (world.network.is_cut(0, 1), world.network.is_cut(0, 2)) == (False, True)
        assert world.nodes[2].paused_until > world.now
        faults.heal([0, 1, 2])
        assert not world.network.is_cut(0, 2)
        assert world.nodes[2].paused_until == world.now


def test_a_clock_stays_wrong() -> None:
    with World(Plan(1, 3, 3)) as world:
        faults = begin(world, ClockJump(0.5, 0, -5000), ClockJump(0.6, 0, 2000))
        world.run_for(1.0)
        faults.heal([0, 1, 2])
        assert world.nodes[0].skew_ms == -3000


@pytest.mark.parametrize(
    ("until", "ended"), [(4.0, 1), (1.001, 0)], ids=["full until a commit fails", "soon there is room"]
)
def test_a_commit_on_a_full_disk_fails_when_it_needs_room(until: float, ended: int) -> None:
    result = run_plan(Plan(1, 3, 3, load=LOAD, faults=(DiskError(1.0, 1, "full", until),)))
    assert result.ok, (result.rule, result.problem)
    assert result.faults["DiskError.full"] == ended


# --- changes of the members, and disks that are lost ---


def run(*faults: Fault, nodes: int = 3, spares: int = 1, k: int = 3) -> Result:
    result = run_plan(Plan(1, nodes, k, load=LOAD, faults=faults, spares=spares))
    assert result.ok, (result.rule, result.problem)
    return result


@pytest.mark.parametrize("fresh", [True, False])
def test_add(fresh: bool) -> None:
    result = run(Add(1.0, 3, fresh))
    assert (result.changes, result.faults["Add"]) == (1, 1)


def test_remove() -> None:
    assert (lambda r: (r.changes, r.faults["Remove"], r.faults["Stop"]))(run(Remove(1.0, 2))) == (1, 1, 0)
    assert (lambda r: (r.changes, r.faults["Remove"], r.faults["Stop"]))(run(Remove(1.0, 2, stop=True))) == (1, 1, 1)


@pytest.mark.parametrize("remove_first", [True, False])
def test_bury(remove_first: bool) -> None:
    result = run(Bury(1.0, 2, 3, remove_first))
    assert (result.changes, result.faults["Die"], result.faults["Bury"]) == (2, 1, 1)


def test_a_second_death_that_the_network_cannot_bear_does_not_happen() -> None:
    result = run(Die(1.0, 0), Die(2.0, 1))
    assert result.faults["Die"] == 1
    result = run(Die(1.0, 0), Add(2.0, 3), Remove(4.0, 0), Die(8.0, 1))
    assert (result.faults["Die"], result.changes) == (2, 2)


def test_a_change_after_which_the_network_would_stand_still_is_not_asked_for() -> None:
    result = run(Die(1.0, 0), Remove(2.0, 1))  # it would leave one of two
    assert (result.faults["Remove"], result.changes) == (0, 0)


def test_the_last_member_cannot_be_removed() -> None:
    result = run(Remove(1.0, 0), nodes=1, k=1)
    assert (result.faults["Remove"], result.changes) == (1, 0)


def test_who_was_removed_does_not_come_back() -> None:
    assert run(Remove(1.0, 2), Add(5.0, 2)).changes == 1

"""As few members as must be enough are left alone: who they are, what they are asked, and what is said when it does not
end."""

import random

import msgspec
import pytest

from hopchain.wire import AT_ONCE, AskBalance, NotFound, NotStarted
from netsim.core_alone import CALL_S, LOOK_S, Asked, draw_core
from netsim.draw import draw_plan
from netsim.faults import Faults
from netsim.mutants import BY_NAME, switched_off
from netsim.plan import Add, Cut, Die, Kill, Load, Plan, Rollback, Weather, WeatherChange
from netsim.run import run_plan
from netsim.world import World

EVERYBODY = BY_NAME["a majority is everybody"]
BUSY = Plan(1, 3, 3, load=Load(requests=10), core_alone=True)


def away(world: World, faults: Faults, seed: int = 1) -> set[int]:
    core = draw_core(world, faults, random.Random(seed))
    return set(world.plan.everybody) - set(core) if core else set()


@pytest.mark.parametrize(
    ("nodes", "k", "count"),
    [(1, 1, 0), (2, 2, 0), (5, 1, 0), (5, 2, 0), (3, 3, 1), (4, 4, 1), (5, 3, 1), (5, 5, 2), (7, 3, 1), (7, 5, 2)],
)
def test_as_many_are_away_as_a_group_bears_however_large_the_network(nodes: int, k: int, count: int) -> None:
    with World(Plan(1, nodes, k)) as world:
        world.run_for(1.0)
        drawn = [away(world, Faults(world), seed) for seed in range(20)]
        assert {len(nodes_away) for nodes_away in drawn} == {count}
        assert set().union(*drawn) == (set(range(nodes)) if count else set())


def test_who_is_lost_is_away_already() -> None:
    with World(Plan(1, 5, 5)) as world:
        faults = Faults(world)
        for node in (0, 1):
            world.run_for(1.0)
            faults.schedule(Die(0.0, node), world.now)
            world.run_for(0.1)
            drawn = away(world, faults)
            assert (node in drawn, len(drawn)) == ((True, 2) if node == 0 else (False, 0))


def test_what_the_members_may_become_must_be_borne_too() -> None:
    """A spare that is to be added is not away together with a member: of four members, three are a majority."""
    with World(Plan(1, 3, 3, spares=1)) as world:
        world.begin_guests(())
        world.run_for(1.0)
        faults = Faults(world)
        assert {len(away(world, faults, seed)) for seed in range(10)} == {2}
        faults.schedule(Add(0.0, 3), world.now)
        world.run_for(0.001)
        drawn = [away(world, faults, seed) for seed in range(20)]
        assert {len(nodes) for nodes in drawn} <= {0, 1}
        assert {3} not in drawn


def test_nothing_else_works_or_begins_until_all_heals() -> None:
    with World(Plan(1, 4, 4, weather=Weather(loss=0.5))) as world:
        faults, start = Faults(world), world.now
        for fault in (
            Kill(0.5, 0, 20.0),
            Cut(0.5, (1,), (2,), 30.0),
            WeatherChange(0.5, Weather(loss=0.9), 2.0),
            Rollback(0.5, 1, "old", 30.0),
            Kill(3.0, 1, 9.0),
            Cut(3.0, (0,), (1,), 9.0),
        ):
            faults.schedule(fault, start)
        world.run_for(1.0)
        faults.heal_alone([0, 1, 2], [3])
        for seconds in (0.0, 3.0):
            world.run_for(seconds)
            assert [node.core is not None for node in world.nodes] == [True, True, True, False]
            cut = {(a, b) for a in range(4) for b in range(a) if world.network.is_cut(a, b)}
            assert cut == {(3, 0), (3, 1), (3, 2)}
            assert world.network.weather_now == Weather()
        assert faults.lost() == {3}
        assert not faults.can_lose({1})
        faults.heal(range(4))
        world.run_for(1.0)
        assert world.nodes[3].core is not None
        assert not any(world.network.is_cut(3, other) for other in range(3))
        assert faults.lost() == set()


def test_it_is_asked_again_until_the_answer_is_certain() -> None:
    asked = Asked("a", AskBalance("a", True, AT_ONCE, 5000))
    assert asked.is_due(0.0)
    asked.at = 1.0
    assert not asked.is_due(1.0 + CALL_S)  # an answer is to be hoped for
    assert asked.is_due(1.0 + CALL_S + 2 * LOOK_S)  # who was asked is gone
    asked.answer = NotStarted(b"", "no_majority", "")
    assert asked.is_due(1.0)
    asked.answer, asked.certain = NotFound("a"), True
    assert not asked.is_due(100.0)


def test_a_core_that_is_not_enough_is_seen_and_only_when_it_is_alone() -> None:
    assert run_plan(BUSY).ok
    with switched_off(EVERYBODY):
        result = run_plan(BUSY)
        assert result.rule == "I13"
        for said in (
            "requests have no certain answer after 20 s with only nodes ",
            "which are enough (away: ",
            " of acct-0, whose link ",
            "undecided_votes=",
        ):
            assert said in result.problem
        assert run_plan(msgspec.structs.replace(BUSY, core_alone=False)).ok


def test_every_seed_that_leaves_a_core_alone_sees_it() -> None:
    plans = (draw_plan(seed) for seed in range(1000))
    fitting = [plan for plan in plans if plan.core_alone and not plan.spares and plan.nodes == plan.k == 3]
    steady = [plan for plan in fitting if not any(isinstance(fault, Rollback) for fault in plan.faults)][:6]
    with switched_off(EVERYBODY):
        assert [run_plan(plan).rule for plan in steady] == ["I13"] * 6

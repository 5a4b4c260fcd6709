"""Shrinking: against a run that fails for a reason we know, and against a real failure."""

from collections import Counter

import msgspec

from netsim.draw import draw_plan
from netsim.mutants import BY_NAME, load_caught, switched_off
from netsim.plan import Cut, Kill, Load, Plan, Weather
from netsim.run import Result, run_plan
from netsim.shrink import shrink


def result(rule: str) -> Result:
    return Result(0, "", rule, rule, 1.0, 1, 1, 1, 1, 0, 1, 1, Counter())


BUSY = Plan(
    seed=1,
    nodes=7,
    k=5,
    weather=Weather(loss=0.3, repeat=0.2, delay_mean_s=0.1),
    load=Load(accounts=6, requests=60),
    faults=(*(Kill(float(i), i % 7, i + 1.0, "idle") for i in range(40)), Cut(41.0, (0, 1), (2, 3), 42.0)),
    files=True,
    max_confirmed=3,
    core_alone=True,
)


def test_only_what_matters_is_left() -> None:
    """It fails when node 3 dies at second 17 while 0 and 2 are cut off from each other."""

    def run(plan: Plan) -> Result:
        kill = any(isinstance(f, Kill) and (f.at, f.node) == (17.0, 3) for f in plan.faults)
        cut = any(isinstance(f, Cut) and 0 in f.a and 2 in f.b for f in plan.faults)
        return result("I1" if kill and cut else "")

    shrunk = shrink(BUSY, result("I1"), run=run, max_runs=1000)
    assert shrunk.plan.faults == (Kill(17.0, 3, 18.0, "idle"), Cut(41.0, (0, 1), (2, 3), 42.0))
    assert (shrunk.plan.nodes, shrunk.plan.k) == (4, 4)
    assert shrunk.plan.weather == Weather()
    assert not shrunk.plan.files
    assert not shrunk.plan.core_alone
    assert shrunk.plan.max_confirmed == 0
    assert (shrunk.plan.load.requests, shrunk.plan.load.accounts) == (1, 2)
    assert shrunk.plan.load.again == shrunk.plan.load.hot == 0.0
    assert shrunk.result == result("I1")


def test_another_rule_is_another_failure() -> None:
    shrunk = shrink(BUSY, result("I1"), run=lambda plan: result("I1" if plan == BUSY else "I7"))
    assert shrunk.plan == BUSY


def test_what_needs_its_load_and_weather_keeps_them() -> None:
    def run(plan: Plan) -> Result:
        return result("I5" if plan.load.requests >= 20 and plan.load.again and plan.weather.loss and plan.files else "")

    plan = shrink(BUSY, result("I5"), run=run, max_runs=1000).plan
    assert (plan.load.requests, plan.files, plan.faults, plan.fault_s) == (20, True, (), 0.625)
    assert plan.weather == msgspec.structs.replace(Weather(delay_mean_s=0.1), loss=0.3)


def test_what_only_a_core_alone_shows_keeps_it_alone() -> None:
    plan = shrink(BUSY, result("I13"), run=lambda plan: result("I13" if plan.core_alone else ""), max_runs=1000).plan
    assert (plan.core_alone, plan.nodes, plan.faults) == (True, 1, ())


def test_the_number_of_runs_is_bounded() -> None:
    runs = []

    def run(plan: Plan) -> Result:
        runs.append(plan)
        return result("")

    shrunk = shrink(BUSY, result("I1"), run=run, max_runs=10)
    assert (len(runs), shrunk.runs, shrunk.plan) == (10, 10, BUSY)


def test_a_real_failure() -> None:
    """A mutant that only faults can show: its plan gets smaller and fails by the same rule, every time it is run."""
    mutant, caught = BY_NAME["votes forgotten by a restart"], load_caught()["votes forgotten by a restart"]
    assert caught.seed is not None
    with switched_off(mutant):
        plan = draw_plan(caught.seed)
        failed = run_plan(plan)
        shrunk = shrink(plan, failed, max_runs=25)
        assert 0 < len(shrunk.plan.faults) < len(plan.faults)
        assert shrunk.result.rule == failed.rule
        assert run_plan(shrunk.plan) == shrunk.result
    assert run_plan(shrunk.plan).ok

"""A joiner dies at every commit of its join, at every point of it: counted through, as in test_crashes.py.

Two members and one that joins with an empty disk while clients pay; then a member leaves that the joiner synced from.
Each run has one crash of the joiner; it comes back, and everything must end well: it is a member, ACTIVE, with every
link.
"""

import os
from collections.abc import Callable
from itertools import count

import msgspec
import pytest

from netsim.plan import Add, KillAtCommit, Load, Plan, Remove, Weather
from netsim.run import run_plan

CUT_STRIDE = int(os.environ.get("HOPCHAIN_CUT_STRIDE", "16"))
JOINER = 2
JOIN = Plan(
    seed=5,
    nodes=2,
    k=3,
    weather=Weather(delay_mean_s=0.003),
    load=Load(accounts=3, requests=12, funds=300, read=0.0, reopen=0.1, cancel=0.1, forge=0.0, spend=0.3),
    faults=(Add(0.2, JOINER, fresh=True), Remove(0.6, 0, stop=True)),
    fault_s=1.5,
    core_s=3.0,
    heal_s=30.0,
    spares=1,
)


def crashes(number: int, point: str, cut: int = 0) -> bool:
    """Run with this crash of the joiner, counted from its start; False when there was none."""
    fault = KillAtCommit(0.0, JOINER, number, point, down_s=0.4, cut=cut)
    result = run_plan(msgspec.structs.replace(JOIN, faults=(*JOIN.faults, fault), files=point == "in_commit"))
    assert result.ok, f"{fault}: {result.rule}: {result.problem}"
    assert result.changes == 2, fault
    return result.faults[f"Kill.{point}"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("point", ["before_commit", "after_commit", "sending"])
def test_a_joiner_dies_at_every_commit(point: str, record_property: Callable[[str, object], None]) -> None:
    runs = next(number for number in count(1) if not crashes(number, point)) - 1
    record_property("crashes", runs)
    assert runs >= 10


@pytest.mark.slow
def test_a_joiner_dies_within_every_commit(record_property: Callable[[str, object], None]) -> None:
    runs = 0
    for number in count(1):
        before = runs
        for cut in count(number % CUT_STRIDE, CUT_STRIDE):
            if not crashes(number, "in_commit", cut):
                break
            runs += 1
        if runs == before and not crashes(number, "after_commit"):
            break
    record_property("crashes", runs)
    assert runs >= 10


def test_without_a_crash_it_joins() -> None:
    result = run_plan(JOIN)
    assert result.ok, (result.rule, result.problem)
    assert result.changes == 2
    assert (result.faults["Add"], result.faults["Remove"], result.faults["Stop"]) == (1, 1, 1)
    assert not any(kind.startswith("Kill") for kind in result.faults)

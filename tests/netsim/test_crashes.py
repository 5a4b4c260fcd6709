"""Every crash of a core scenario: every node, every commit, every point of it; not sampled but counted through.

Three nodes, three accounts, ten requests through all nodes at once, and one crash per run; then everything must end
well. A run without the crash that it was to have says that there are no more. Cuts of the write-ahead log are at the
boundaries of its frames, a byte before and after, and in the middle of each (`netsim.disk.cut_places`). `make test`
takes every CUT_STRIDE-th of these; `make crashes` all.
"""

import os
from collections.abc import Callable
from itertools import count

import msgspec
import pytest

from netsim.disk import FRAME_BYTES, WAL_HEADER_BYTES, cut_places
from netsim.plan import KillAtCommit, Load, Plan, Weather
from netsim.run import run_plan

CUT_STRIDE = int(os.environ.get("HOPCHAIN_CUT_STRIDE", "16"))
CORE = Plan(
    seed=11,
    nodes=3,
    k=3,
    weather=Weather(delay_mean_s=0.003),
    load=Load(accounts=3, requests=10, funds=300, read=0.0, reopen=0.1, cancel=0.1, forge=0.0, spend=0.3),
    fault_s=1.0,
    core_s=3.0,
    heal_s=30.0,
)


def crashes(node: int, number: int, point: str, cut: int = 0) -> bool:
    """Run with this crash; False when there was none."""
    fault = KillAtCommit(0.0, node, number, point, down_s=0.4, cut=cut)
    result = run_plan(msgspec.structs.replace(CORE, faults=(fault,), files=point == "in_commit"))
    assert result.ok, f"{fault}: {result.rule}: {result.problem}"
    return result.faults[f"Kill.{point}"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("point", ["before_commit", "after_commit", "sending"])
@pytest.mark.parametrize("node", range(CORE.nodes))
def test_a_crash_at_every_commit(node: int, point: str, record_property: Callable[[str, object], None]) -> None:
    runs = next(number for number in count(1) if not crashes(node, number, point)) - 1
    record_property("crashes", runs)
    assert runs >= 10


@pytest.mark.slow
@pytest.mark.parametrize("node", range(CORE.nodes))
def test_a_crash_within_every_commit(node: int, record_property: Callable[[str, object], None]) -> None:
    runs = 0
    for number in count(1):
        before = runs
        for cut in count(number % CUT_STRIDE, CUT_STRIDE):
            if not crashes(node, number, "in_commit", cut):
                break
            runs += 1
        if runs == before and not crashes(node, number, "after_commit"):
            break
    record_property("crashes", runs)
    assert runs >= 10


def test_without_a_crash_the_core_scenario_ends_well() -> None:
    result = run_plan(CORE)
    assert result.ok
    assert result.completed >= 10
    assert not {kind for kind in result.faults if result.faults[kind]}


def test_places_to_cut() -> None:
    first, end = WAL_HEADER_BYTES, WAL_HEADER_BYTES + 2 * FRAME_BYTES
    half = FRAME_BYTES // 2
    boundary = first + FRAME_BYTES
    assert cut_places(first, end) == [
        first, first + 1, first + half, boundary - 1, boundary, boundary + 1, boundary + half, end - 1, end,
    ]  # fmt: skip
    assert cut_places(0, end)[0] == 0
    assert cut_places(boundary + 5, end)[0] == boundary + 5
    assert cut_places(7, 7) == [7]

"""The swarm: many seeds without a violation, and what it reports when there is one."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from chain.errors import LocalMisuse
from netsim import fleet, swarm
from netsim.draw import draw_plan
from netsim.fleet import Inline, open_fleet
from netsim.run import Result, run_plan
from netsim.swarm import SwarmReport, run_swarm
from tests.netsim.seeds import CALM, MIXED, SWARM

CHUNK = 10


@pytest.mark.slow
@pytest.mark.parametrize("first", SWARM[::CHUNK])
def test_no_seed_breaks_a_rule(first: int) -> None:
    for seed in range(first, first + CHUNK):
        check(run_plan(draw_plan(seed)))


def check(result: Result) -> None:
    assert result.ok, f"hopchain sim replay {result.seed}: {result.rule}: {result.problem}"


def quiet(result: Result) -> None:
    """Nobody listens."""


def totals(report: SwarmReport) -> dict[str, object]:
    return {name: getattr(report, name) for name in report.__struct_fields__ if name != "seconds"}


@cache
def swarm_of_one() -> tuple[SwarmReport, list[Result]]:
    """What a swarm of one process reports of MIXED after 30 seconds, and the results that it told."""
    seen: list[Result] = []
    clock = iter([100.0, 130.0])
    return run_swarm(MIXED, 1, seen.append, clock=lambda: next(clock)), seen


def test_totals_are_the_sums_of_the_results() -> None:
    report, seen = swarm_of_one()
    assert [result.seed for result in seen] == MIXED
    assert report.ok
    assert (report.seeds, report.seconds) == (len(MIXED), 30.0)
    assert report.seeds_per_minute == 2 * len(MIXED)
    assert report.links == sum(result.links for result in seen) > 0
    assert report.completed == sum(result.completed for result in seen) > 0
    assert report.rejected == sum(result.rejected for result in seen) > 0
    assert report.simulated_s == pytest.approx(sum(result.simulated_s for result in seen))
    assert report.simulated_s_per_s == pytest.approx(report.simulated_s / 30)
    assert report.faults == sum((result.faults for result in seen), Counter())
    assert sum(n for kind, n in report.faults.items() if kind.startswith("Kill")) > 0


@pytest.mark.slow
def test_processes_give_what_one_process_gives() -> None:
    alone, _ = swarm_of_one()
    assert totals(run_swarm(MIXED, 2, quiet)) == totals(alone)


DASK = """
import sys
import distributed
from netsim.swarm import run_swarm

if __name__ == "__main__":
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, protocol="inproc"
    ) as cluster:
        seen = []
        run_swarm([int(seed) for seed in sys.argv[1:]], 1, seen.append, cluster.scheduler_address)
    print(*sorted((result.seed, result.trace) for result in seen))
"""


@pytest.mark.slow
def test_a_dask_cluster_gives_what_one_process_gives(tmp_path: Path) -> None:
    """In a process of its own: trio-asyncio, used by other tests here, replaces asyncio's event loops."""
    command = [sys.executable, "-c", DASK, *map(str, MIXED)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # Dask leaves files there
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    _, here = swarm_of_one()
    assert done.stdout.split("\n")[-2] == " ".join(str((r.seed, r.trace)) for r in sorted(here, key=lambda r: r.seed))


def test_without_dask_a_fleet_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(fleet.importlib, "import_module", missing)
    with pytest.raises(LocalMisuse, match=r"pip install hopchain\[dask\]"), open_fleet(1, "tcp://127.0.0.1:1"):
        pass


def killed_at_two(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_process_that_is_killed_ends_the_run_with_a_word() -> None:
    """As by a machine that is out of memory. Its batch would be waited for without end."""
    with open_fleet(2) as cores, pytest.raises(LocalMisuse, match="1 of 2 processes were ended from outside"):
        list(cores.map(killed_at_two, range(6)))


def failing(broken: set[int]) -> Callable[..., Result]:
    """Runs whose seeds in `broken` fail as long as the plan has a fault of the last second."""

    def run(plan: swarm.Plan) -> Result:
        fails = plan.seed in broken and any(fault.at > 9 for fault in plan.faults)
        rule = "I1" if fails else ""
        return Result(plan.seed, "", rule, f"seed {plan.seed} is broken", 1.0, 1, 1, 1, 1, 0, 1, 1, Counter())

    return run


def test_a_failure_is_shrunk_and_names_the_command_that_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    late = [seed for seed in range(100) if any(fault.at > 9 for fault in draw_plan(seed).faults)][:5]
    run = failing(set(late))
    monkeypatch.setattr(swarm, "run_plan", run)
    monkeypatch.setattr(swarm, "shrink", lambda plan, result: shrink_with(plan, result, run))
    report = run_swarm(range(100), 1, quiet)
    assert not report.ok
    assert report.seeds == 100
    assert [failure.seed for failure in report.failures] == late
    first = report.failures[0]
    assert (first.rule, first.problem) == ("I1", f"seed {late[0]} is broken")
    assert first.command == f"hopchain sim replay {late[0]}"
    assert len(first.plan.faults) == 1
    assert [failure.shrunk for failure in report.failures] == [True, True, True, False, False]
    assert report.failures[-1].plan == draw_plan(late[-1])


def shrink_with(plan: swarm.Plan, result: Result, run: Callable[..., Result]) -> object:
    from netsim.shrink import shrink

    return shrink(plan, result, run=run, max_runs=500)


def test_seeds_are_taken_as_they_are_needed() -> None:
    """A swarm over an endless range does not draw it all first."""
    taken: list[int] = []

    def endless() -> Iterable[int]:
        for seed in (*CALM * swarm.BATCH, 9):
            taken.append(seed)
            yield seed

    results: Iterator[list[Result]] = Inline().map(swarm.run_seeds, swarm._batches(endless()))
    assert len(next(results)) == swarm.BATCH
    assert taken == CALM * swarm.BATCH

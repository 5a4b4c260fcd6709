"""The swarm: many seeds, each a plan of its own, spread over cores or a cluster.

A seed that fails is shrunk to the smallest plan that still fails by the same rule (`netsim.shrink`); the report says
how to see it again. Nothing is printed here: whoever calls gets every result as it comes.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final

import msgspec

from netsim.draw import draw_plan
from netsim.fleet import Fleet, open_fleet
from netsim.plan import Plan
from netsim.run import Result, run_plan
from netsim.shrink import shrink

BATCH: Final = 4  # seeds that travel together: a second or two of work
MAX_SHRUNK: Final = 3  # more failing seeds than these have most likely the same cause
_SUMMED: Final = ("events", "turns", "links", "calls", "changes", "completed", "rejected")


class Failure(msgspec.Struct, frozen=True):
    """A seed that broke a rule. `plan` is the smallest one found that breaks it, too; `shrunk` says whether one was
    looked for. `problem` is what the seed itself showed."""

    seed: int
    rule: str
    problem: str
    plan: Plan
    shrunk: bool

    @property
    def command(self) -> str:
        """The command that shows it again."""
        return f"hopchain sim replay {self.seed}"


class SwarmReport(msgspec.Struct, frozen=True):
    """Totals over all seeds. `seconds` is real time; `faults` what really happened, by kind; `changes` how often
    members changed."""

    seeds: int
    seconds: float
    simulated_s: float
    events: int
    turns: int
    links: int
    calls: int
    changes: int
    completed: int
    rejected: int
    faults: Counter[str]
    failures: tuple[Failure, ...]

    @property
    def ok(self) -> bool:
        """True when no seed broke a rule."""
        return not self.failures

    @property
    def seeds_per_minute(self) -> float:
        return 60 * self.seeds / self.seconds if self.seconds else 0.0

    @property
    def simulated_s_per_s(self) -> float:
        """Simulated seconds for each real one."""
        return self.simulated_s / self.seconds if self.seconds else 0.0


def run_swarm(
    seeds: Iterable[int],
    jobs: int,
    on_result: Callable[[Result], None],
    fleet: str | None = None,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> SwarmReport:
    """Run every seed on `jobs` cores, or on the Dask cluster at address `fleet`; `on_result` is called in this process
    for each as it ends, in any order. The totals do not depend on the order, nor on where the seeds ran."""
    began = clock()
    totals: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    failed: list[Result] = []
    with open_fleet(jobs, fleet) as workers:
        for result in _results(workers, seeds):
            on_result(result)
            totals.update(
                {name: getattr(result, name) for name in _SUMMED}, seeds=1, us=round(result.simulated_s * 1e6)
            )
            faults.update(result.faults)
            if not result.ok:
                failed.append(result)
        seconds = clock() - began
        failed.sort(key=lambda result: result.seed)
        failures = sorted(workers.map(_shrink_seed, failed[:MAX_SHRUNK]), key=lambda failure: failure.seed)
    failures += [Failure(r.seed, r.rule, r.problem, draw_plan(r.seed), shrunk=False) for r in failed[MAX_SHRUNK:]]
    return SwarmReport(
        seeds=totals["seeds"],
        seconds=seconds,
        simulated_s=totals["us"] / 1e6,
        events=totals["events"],
        turns=totals["turns"],
        links=totals["links"],
        calls=totals["calls"],
        changes=totals["changes"],
        completed=totals["completed"],
        rejected=totals["rejected"],
        faults=faults,
        failures=tuple(failures),
    )


def _results(workers: Fleet, seeds: Iterable[int]) -> Iterator[Result]:
    for batch in workers.map(run_seeds, _batches(seeds)):
        yield from batch


def _batches(seeds: Iterable[int]) -> Iterator[tuple[int, ...]]:
    waiting = iter(seeds)
    while batch := tuple(islice(waiting, BATCH)):
        yield batch


def run_seeds(seeds: tuple[int, ...]) -> list[Result]:
    """The runs of these seeds, in order."""
    return [run_plan(draw_plan(seed)) for seed in seeds]


def _shrink_seed(failed: Result) -> Failure:
    shrunk = shrink(draw_plan(failed.seed), failed)
    return Failure(failed.seed, failed.rule, failed.problem, shrunk.plan, shrunk=True)

"""Tier 2 of the simulator: whole nodes follow a plan (`netsim.whole_network` says what is real in it).

    result = run_whole(Plan(seed=7, nodes=5))

The same plan has the same trace in any process: time is MockClock's, chance comes from the seed, also trio's choice
among tasks that are ready. Two to four times slower than cores alone; it finds what lies between the core and the wire.
"""

import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import trio
import trio.testing
from trio._core import _run as trio_run  # its random generator is the seam that trio has for this

from hopchain import wire
from netsim.load import Clients
from netsim.plan import Plan, Weather
from netsim.run import Result
from netsim.violation import broken_rule
from netsim.whole_network import START_S, Steps, WholeNetwork

T = TypeVar("T")
Play = Callable[[WholeNetwork], Awaitable[None]]


class WholeResult(Result, frozen=True):
    """What came of a run. `steps`: how often tasks of nodes ran, each time up to an await; `lookups`: Kademlia lookups
    that cores asked for; `lives`: processes started."""

    steps: int
    lookups: int
    datagrams: int
    lives: int


def simulate(seed: int, main: Callable[[], Awaitable[T]], *instruments: trio.abc.Instrument) -> T:
    """Run `main` under trio, on a clock that jumps, with scheduling from the seed. Blocks."""
    with _one_schedule(seed):
        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0), instruments=instruments)


@contextmanager
def _one_schedule(seed: int) -> Iterator[None]:
    """Trio shuffles the tasks that are ready: from the seed, for as long as this lasts. Nothing is logged meanwhile."""
    before, state, disabled = (
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING,
        trio_run._r.getstate(),
        logging.root.manager.disable,
    )
    setattr(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)  # noqa: B010  (a constant to everybody else)
    trio_run._r.seed(seed)
    logging.disable()
    try:
        yield
    finally:
        setattr(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", before)  # noqa: B010
        trio_run._r.setstate(state)
        logging.disable(disabled)


async def play_plan(network: WholeNetwork) -> None:
    """The phases of `netsim.run.play`: set up, faults, a core heals, everything heals, rest."""
    plan = network.plan
    rng = random.Random(network.rng.random())
    clients = Clients(network, plan.load, rng, network.watch.ledger.spendable)
    weather, network.network.weather = network.network.weather, Weather()
    await trio.sleep(START_S)
    for submit in clients.setup():
        answer = await network.ask(clients.any_node(), submit)
        assert isinstance(answer, wire.Recorded) and answer.outcome == 0, answer
    network.network.weather = weather
    start = network.now
    for fault in plan.faults:
        network.schedule(fault, start)
    clients.begin(plan.fault_s)
    await trio.sleep(plan.fault_s)
    network.heal(sorted(rng.sample(range(plan.nodes), plan.nodes // 2 + 1)))
    await trio.sleep(plan.core_s)
    network.heal(range(plan.nodes))
    await trio.sleep(START_S)
    clients.settle(list(range(plan.nodes)))
    await trio.sleep(plan.heal_s)
    network.at_rest()


def run_whole(plan: Plan, play: Play = play_plan) -> WholeResult:
    """Follow the plan with whole nodes, to its end or to the first broken rule. `play` replaces the phases."""
    rule = problem = ""
    with ExitStack() as stack:
        network = WholeNetwork(plan, stack)
        ended_at = [0.0]

        async def main() -> None:
            try:
                await network.run(play)
            finally:
                ended_at[0] = network.now

        try:
            simulate(plan.seed, main, Steps(network))
        except BaseExceptionGroup as group:
            error = _first(group)
            if not isinstance(error, Exception):
                raise
            rule, problem = broken_rule(error)
        recorded = [c.answer for c in network.watch.calls.values() if isinstance(c.answer, wire.Recorded)]
        return WholeResult(
            seed=plan.seed,
            trace=network.trace_hash,
            rule=rule,
            problem=problem,
            simulated_s=ended_at[0],
            events=network.count("events"),
            turns=network.count("turns"),
            links=len(network.watch.links),
            calls=len(network.watch.calls),
            changes=len(network.watch.views) - 1,
            completed=sum(r.outcome == 0 for r in recorded),
            rejected=sum(r.outcome != 0 for r in recorded),
            faults=Counter(type(fault).__name__ for fault in plan.faults),
            steps=network.steps.total(),
            lookups=network.count("lookups"),
            datagrams=network.datagrams.sent,
            lives=sum(node.life for node in network.nodes),
        )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error in a tree of them: what else went wrong did so because of it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

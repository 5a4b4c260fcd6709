"""From a plan that fails to the smallest one that still fails by the same rule.

First the faults are halved again and again (delta debugging, Zeller 1999), then everything else that has a simpler
value is tried with it: calm weather, no files, no core alone, fewer requests, accounts and nodes, a shorter time. What
is left out changes all that comes after it in a run, so a step that loses the failure is no proof that it mattered; it
is only not taken.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from netsim.plan import SHARES, Cut, Fault, Hold, Plan, Weather, nodes_of
from netsim.run import Result, run_plan

MAX_RUNS: Final = 150  # a minute of runs, about: a person waits for the result


class Shrunk(msgspec.Struct, frozen=True):
    """The smallest failing plan that was found, its result, and after how many runs."""

    plan: Plan
    result: Result
    runs: int


class _Search:
    """The smallest plan so far; `fails` counts the runs."""

    def __init__(self, plan: Plan, result: Result, run: Callable[[Plan], Result], max_runs: int) -> None:
        self.plan = plan
        self.result = result
        self.runs = 0
        self._run = run
        self._max_runs = max_runs

    @property
    def spent(self) -> bool:
        return self.runs >= self._max_runs

    def fails(self, plan: Plan) -> bool:
        """Take the plan when it fails by the same rule."""
        if self.spent or plan == self.plan:
            return False
        self.runs += 1
        result = self._run(plan)
        if result.rule != self.result.rule:
            return False
        self.plan, self.result = plan, result
        return True


def shrink(plan: Plan, result: Result, *, run: Callable[[Plan], Result] = run_plan, max_runs: int = MAX_RUNS) -> Shrunk:
    """Make a failing plan smaller; `result` is what came of it. At most `max_runs` runs."""
    search = _Search(plan, result, run, max_runs)
    before = None
    while search.plan != before and not search.spent:
        before = search.plan
        _fewer_faults(search)
        for simpler in _SIMPLER:
            while any(search.fails(candidate) for candidate in simpler(search.plan)):
                pass
    return Shrunk(search.plan, search.result, search.runs)


def _fewer_faults(search: _Search) -> None:
    """Delta debugging: leave out one part of n after the other; where nothing can be left out, take smaller parts."""
    parts = 1
    while search.plan.faults and not search.spent:
        faults = search.plan.faults
        size = -(-len(faults) // parts)
        kept = [faults[:at] + faults[at + size :] for at in range(0, len(faults), size)]
        if any(search.fails(msgspec.structs.replace(search.plan, faults=rest)) for rest in kept):
            parts = max(1, min(parts - 1, len(search.plan.faults)))
        elif size == 1:
            return
        else:
            parts = min(2 * parts, len(faults))


def _calmer(plan: Plan) -> Iterator[Plan]:
    if plan.weather != Weather():
        yield msgspec.structs.replace(plan, weather=Weather())
    for name in ("loss", "repeat"):
        if getattr(plan.weather, name):
            yield msgspec.structs.replace(plan, weather=msgspec.structs.replace(plan.weather, **{name: 0.0}))


def _plainer(plan: Plan) -> Iterator[Plan]:
    if plan.files:
        yield msgspec.structs.replace(plan, files=False)
    if plan.max_confirmed:
        yield msgspec.structs.replace(plan, max_confirmed=0)
    if plan.max_queue:
        yield msgspec.structs.replace(plan, max_queue=0)
    if plan.core_alone:
        yield msgspec.structs.replace(plan, core_alone=False)


def _less_load(plan: Plan) -> Iterator[Plan]:
    load = plan.load
    for requests in sorted({load.requests // 2, load.requests - 1} - {0, load.requests}):
        if requests > 0:
            yield msgspec.structs.replace(plan, load=msgspec.structs.replace(load, requests=requests))
    if load.accounts > 2:
        yield msgspec.structs.replace(plan, load=msgspec.structs.replace(load, accounts=load.accounts - 1))
    for name in SHARES:
        if getattr(load, name):
            yield msgspec.structs.replace(plan, load=msgspec.structs.replace(load, **{name: 0.0}))


def _fewer_nodes(plan: Plan) -> Iterator[Plan]:
    last = len(plan.everybody) - 1
    faults = tuple(f for f in (_without_node(fault, last) for fault in plan.faults) if f is not None)
    if plan.spares:
        yield msgspec.structs.replace(plan, spares=plan.spares - 1, faults=faults)
    elif plan.nodes > 1:
        yield msgspec.structs.replace(plan, nodes=plan.nodes - 1, faults=faults)
    if plan.k > plan.nodes:
        yield msgspec.structs.replace(plan, k=plan.nodes)


def _without_node(fault: Fault, node: int) -> Fault | None:
    """The fault in a network that has no such node."""
    match fault:
        case Cut():
            a, b = _others(fault.a, node), _others(fault.b, node)
            return msgspec.structs.replace(fault, a=a, b=b) if a and b else None
        case Hold():
            source, target = _others(fault.source, node), _others(fault.target, node)
            return msgspec.structs.replace(fault, source=source, target=target) if source and target else None
        case _:
            return None if node in nodes_of(fault) else fault


def _others(nodes: Sequence[int], node: int) -> tuple[int, ...]:
    return tuple(n for n in nodes if n != node)


def _shorter(plan: Plan) -> Iterator[Plan]:
    last = max((fault.at for fault in plan.faults), default=0.0)
    if plan.fault_s > 1 and last < plan.fault_s / 2:
        yield msgspec.structs.replace(plan, fault_s=plan.fault_s / 2)


_SIMPLER: Final = (_fewer_nodes, _less_load, _calmer, _plainer, _shorter)

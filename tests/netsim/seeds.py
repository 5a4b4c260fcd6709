"""Seeds of small networks, chosen by what their plans hold, so that they stay what they are for when `draw_plan`
changes."""

from collections.abc import Callable
from functools import cache
from itertools import islice

from netsim.draw import draw_plan
from netsim.plan import Kill, Plan
from netsim.run import Result, run_plan

SWARM = range(200)  # all of them, in tests/netsim/test_swarm.py; `make swarm` runs more


def small(wanted: Callable[[Plan], bool], count: int) -> list[int]:
    """The first `count` seeds of up to three nodes whose plan is wanted."""
    plans = (draw_plan(seed) for seed in range(10_000))
    return [plan.seed for plan in islice((p for p in plans if p.nodes <= 3 and wanted(p)), count)]


CALM = small(lambda plan: not plan.faults, 1)
FAULTY = small(lambda plan: len(plan.faults) > 2 and plan.nodes == 3 and not plan.files, 2)
KILLED = small(lambda plan: any(isinstance(f, Kill) for f in plan.faults) and plan.nodes > 1 and not plan.files, 2)
IN_FILES = small(lambda plan: any(isinstance(f, Kill) for f in plan.faults) and plan.nodes > 1 and plan.files, 1)
MIXED = sorted({*CALM, *FAULTY, *KILLED, *IN_FILES})


@cache
def run_once(seed: int) -> Result:
    """The run of this seed, with which others are compared: one in each process."""
    return run_plan(draw_plan(seed))

"""One run of a plan: set up, faults, a core that heals, everything heals, and the verdict."""

import random
import time
from collections import Counter

import msgspec

from chain.audit import audit
from chain.errors import HopchainError
from hopchain.wire import Recorded
from netsim.checks import Violation, Watch
from netsim.load import Clients
from netsim.plan import Kill, Plan
from netsim.world import World


class Result(msgspec.Struct, frozen=True):
    """What came of a run. `rule` and `problem` are empty when nothing was broken."""

    seed: int
    trace: str
    rule: str
    problem: str
    simulated_s: float
    events: int
    turns: int
    links: int
    calls: int
    completed: int
    rejected: int
    faults: Counter[str]

    @property
    def ok(self) -> bool:
        return not self.rule


def run_plan(plan: Plan) -> Result:
    """Follow the plan to its end, or to the first broken rule."""
    world, watch = make_world(plan)
    rule = problem = ""
    with world:
        try:
            play(world, watch)
        except Violation as violation:
            rule, problem = violation.rule, violation.text
        except (AssertionError, HopchainError) as error:
            rule, problem = type(error).__name__, str(error) or repr(error)
        recorded = [c.answer for c in watch.calls.values() if isinstance(c.answer, Recorded)]
        return Result(
            seed=plan.seed,
            trace=world.trace_hash,
            rule=rule,
            problem=problem,
            simulated_s=world.now,
            events=world.events,
            turns=sum(node.turns for node in world.nodes),
            links=len(watch.links),
            calls=len(watch.calls),
            completed=sum(r.outcome == 0 for r in recorded),
            rejected=sum(r.outcome != 0 for r in recorded),
            faults=Counter(_name(fault) for fault in plan.faults),
        )


def _name(fault: object) -> str:
    return f"{type(fault).__name__}.{fault.point}" if isinstance(fault, Kill) else type(fault).__name__


def make_world(plan: Plan) -> tuple[World, Watch]:
    """The world and its observer, nothing started."""
    watch = Watch.__new__(Watch)
    world = World(plan, watch)
    watch.__init__(world.genesis, world.view)  # type: ignore[misc]
    return world, watch


def play(world: World, watch: Watch) -> None:
    """All phases. Raises `Violation`, or what stops a node."""
    plan = world.plan
    rng = random.Random(world.rng.random())
    clients = Clients(world, plan.load, rng)
    calm, world.network.weather = world.network.weather, type(plan.weather)()
    world.run_for(1.0)
    clients.open_and_fund()
    world.network.weather = calm
    start = world.now
    for fault in plan.faults:
        world.schedule(fault, start)
    clients.begin(plan.fault_s)
    world.run_for(plan.fault_s)
    core = sorted(rng.sample(range(plan.nodes), plan.nodes // 2 + 1))
    world.heal(core)
    world.run_for(plan.core_s)
    world.heal(list(range(plan.nodes)))
    clients.settle(list(range(plan.nodes)))
    world.run_for(plan.heal_s)
    watch.all_ended(world.now)
    for node in world.nodes:
        assert node.core is not None
        watch.at_rest(node.index, node.disk.conn, node.core.gauges())
    if plan.seed % 5 == 0:
        report = audit(world.nodes[0].disk.conn, genesis=world.genesis)
        if not report.ok:
            raise Violation("I2", f"the audit of node 0 says: {report}")


def seconds() -> float:
    """Real time, for the speed of the simulator itself."""
    return time.perf_counter()

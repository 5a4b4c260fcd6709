"""One run of a plan: set up, faults, a core that heals, everything heals, and the verdict."""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType

import msgspec

from chain import forming, rules
from chain.audit import audit
from hopchain.wire import Recorded
from netsim.core_alone import draw_core, play_core_alone
from netsim.faults import Faults
from netsim.load import Clients, open_and_fund
from netsim.plan import Add, Plan, Weather
from netsim.violation import Violation, broken_rule
from netsim.world import World
from node import works
from routing.view import majority

LOOK_EVERY_S = 1.0  # whether all is at rest
QUIET_S = 4.0  # and stays so: a pull, a suspicion, a late message


class Result(msgspec.Struct, frozen=True):
    """What came of a run. `rule` and `problem` are empty when nothing was broken. `faults`: what really happened, by
    kind, lost and repeated messages included; `changes`: how often the members changed."""

    seed: int
    trace: str
    rule: str
    problem: str
    simulated_s: float
    events: int
    turns: int
    links: int
    calls: int
    changes: int
    completed: int
    rejected: int
    faults: Counter[str]

    @property
    def ok(self) -> bool:
        return not self.rule


def run_plan(plan: Plan) -> Result:
    """Follow the plan to its end, or to the first broken rule."""
    world = World(plan)
    watch = world.watch
    rule = problem = ""
    with bounds(plan), world:
        try:
            play(world)
        except Exception as error:  # noqa: BLE001  a node that raises, whatever it is, is what a run looks for
            rule, problem = broken_rule(error)
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
            changes=len(watch.views) - 1,
            completed=sum(r.outcome == 0 for r in recorded),
            rejected=sum(r.outcome != 0 for r in recorded),
            faults=world.injected,
        )


def bounds(plan: Plan) -> AbstractContextManager[None]:
    """The smaller bounds that the plan asks for, for as long as its run takes."""
    return _smaller("MAX_CONFIRMED", plan.max_confirmed, rules, forming)


@contextmanager
def _smaller(name: str, bound: int, *modules: ModuleType) -> Iterator[None]:
    """This bound of these modules, unless it is 0, for a while."""
    before = [vars(module)[name] for module in modules]
    for module in modules:
        vars(module)[name] = bound or vars(module)[name]
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            vars(module)[name] = value


def play(world: World) -> None:
    """All phases. Raises `Violation`, or what stops a node."""
    plan, watch = world.plan, world.watch
    rng = random.Random(world.rng.random())
    clients = Clients(world, plan.load, rng, watch.ledger.spendable)
    calm, world.network.weather = world.network.weather, Weather()
    world.run_for(1.0)
    open_and_fund(world, clients)
    world.network.weather = calm
    world.begin_guests({fault.node for fault in plan.faults if isinstance(fault, Add) and fault.fresh})
    faults, start = Faults(world), world.now
    for fault in plan.faults:
        faults.schedule(fault, start)
    clients.begin(plan.fault_s)
    with _smaller("MAX_QUEUE", plan.max_queue, works):
        world.run_for(plan.fault_s)
    core = draw_core(world, faults, rng) if plan.core_alone else []
    if core:
        play_core_alone(world, faults, clients, core, rng)
    else:
        faults.heal(_random_majority(world, rng))
        _run_until_rest(world, faults, plan.core_s, quiet_s=0.0)
    faults.heal(plan.everybody)
    watch.healed(world.now)
    for ask_again in (False, True):  # votes and links must not wait for somebody to ask
        if ask_again:
            clients.settle(members_left(world))
        _run_until_rest(world, faults, plan.heal_s, quiet_s=QUIET_S if ask_again else 0.0)
        check_rest(world, faults)
    if plan.seed % 5 == 0:
        check_audit(world)


def _random_majority(world: World, rng: random.Random) -> list[int]:
    members = [n.index for n in world.nodes if world.watch.is_member(n.index)]
    left = [index for index in members if not world.nodes[index].gone]
    return sorted(rng.sample(left, min(len(left), majority(len(members)))))


def members_left(world: World) -> list[int]:
    """The members that are not gone for ever, nor about to be."""
    return [n.index for n in world.nodes if world.watch.is_member(n.index) and not n.gone and not n.must_go]


def check_rest(world: World, faults: Faults) -> None:
    """I7, I13: everything has ended, everybody has everything. Raises `Violation`."""
    world.watch.all_ended(world.now)
    if not faults.operator.idle:
        raise Violation("I13", f"a change is not made: {faults.operator}")
    for node in world.nodes:
        if node.gone or not node.begun:
            continue
        if node.must_go:
            raise Violation("I8", f"node {node.index} came back with less than others saw of it, and takes part")
        if node.core is None:
            raise Violation("I13", f"node {node.index} is down")
        world.watch.at_rest(node.index, node.disk.conn, node.core.gauges())


def check_audit(world: World) -> None:
    """I2: the first node's database holds up when derived again from its links. Raises `Violation`."""
    first = members_left(world)[0]
    report = audit(world.nodes[first].disk.conn, genesis=world.genesis)
    if not report.ok:
        raise Violation("I2", f"the audit of node {first} says: {report}")


def _run_until_rest(world: World, faults: Faults, seconds: float, quiet_s: float) -> None:
    """Let `seconds` pass, or less when everything has ended: then `quiet_s` more, for what is late to disturb it."""
    end = world.now + seconds
    while world.now < end:
        world.run_for(min(LOOK_EVERY_S, end - world.now))
        try:
            check_rest(world, faults)
        except Violation:
            continue
        world.run_for(max(0.0, min(quiet_s, end - world.now)))
        return

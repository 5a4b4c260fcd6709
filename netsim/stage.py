"""Runs a plan or a scenario under a recorder (`netsim.verdict` judges what came of it).

A plan runs exactly as in `netsim.run` (same trace). A scenario has one phase of faults and requests, written by a
person in words that are resolved while it runs; then everything heals, every request is sent once more, and all must
end.
"""

import random
from collections.abc import Callable
from traceback import format_exception
from typing import Final

import msgspec

from chain.request import (
    ANY_TIP,
    Posting,
    Request,
    SignedRequest,
    cancellation,
    opening,
    sign,
    transfer,
)
from hopchain.wire import AT_ONCE, AskBalance, Submit
from netsim.checks import Watch
from netsim.fault_steps import describe_step, planned_faults
from netsim.faults import Faults
from netsim.load import SETUP_TIMEOUT_MS, Clients, must_complete, open_and_fund
from netsim.names import ISSUER, key_of, public_key
from netsim.plan import Plan, Weather
from netsim.record import Recorder, Shown
from netsim.roles import Roles
from netsim.run import bounds, check_audit, check_rest, members_left, play
from netsim.scenario import FaultStep, Moment, RequestStep, Scenario
from netsim.violation import Violation, broken_rule
from netsim.world import World

TICK_S: Final = 0.25  # simulated seconds between two reports of progress
SETTLE_TIMEOUT_MS: Final = 15_000

# Of faults that are counted when something comes of them: the name under which (`World.happened`), and why nothing
# came.
_COUNTED: Final = {
    "kill": "Kill",
    "disk_error": "DiskError",
    "rollback": "Rollback",
    "add": "Add",
    "remove": "Remove",
    "die": "Die",
    "bury": "Bury",
}
_NOTHING: Final = {
    "kill": "the process was down, or committed nothing in that time",
    "disk_error": "nothing that needed room was written in that time",
    "rollback": "the others were not told of more votes in that time, or the network could not go on without this disk",
}
_NOT_BORNE: Final = (
    "the network could not go on afterwards, or the node was gone already (docs/simulator.md, Members that change)"
)

Progress = Callable[[float], None]


class Stopped(Exception):
    """The run was asked to end here: no error."""


class Performance(msgspec.Struct, frozen=True):
    """What came of a run. `rule` and `problem` are empty when no rule was broken. `calls`: the calls of each request
    of the scenario; `ids`: their request ids. `raised`: the traceback of an error that is no `Violation`;
    `nothing_came`: steps of the scenario that did nothing, and why."""

    name: str
    title: str
    plan: Plan
    record: Recorder
    trace: str
    rule: str
    problem: str
    ended_at: float
    complete: bool
    roles: Roles
    calls: dict[str, list[int]]
    ids: dict[str, list[bytes]]
    balances: dict[str, int]
    raised: str = ""
    nothing_came: tuple[str, ...] = ()

    @property
    def sides(self) -> dict[str, tuple[int, ...]]:
        """The sides and their nodes."""
        return self.roles.sides

    def nodes_of(self, word: str) -> tuple[int, ...]:
        """The nodes that a word of the scenario names."""
        return self.roles.in_order(word)


def planned_s(plan: Plan, *, scenario: bool) -> float:
    """About how many simulated seconds a run takes."""
    return 2.0 + plan.fault_s + plan.heal_s + (0 if scenario else plan.core_s)


def perform_plan(plan: Plan, name: str, *, progress: Progress | None = None, until: float | None = None) -> Performance:
    """Run a plan as `netsim.run.run_plan` does, hash for hash."""
    world = World(plan)
    record = Recorder(world)
    record.follow_plan(plan)
    return _perform(
        name,
        "",
        record,
        lambda: play(world),
        progress,
        until,
        Roles(plan.nodes, {}, record.group_of_account),
        None,
    )


def perform(scenario: Scenario, *, progress: Progress | None = None, until: float | None = None) -> Performance:
    """Run a scenario."""
    record = Recorder(World(scenario.plan))
    stage = _Stage(scenario, record)
    return _perform(scenario.name, scenario.title, record, stage.play, progress, until, stage.roles, stage)


def _perform(
    name: str,
    title: str,
    record: Recorder,
    act: Callable[[], None],
    progress: Progress | None,
    until: float | None,
    roles: Roles,
    stage: "_Stage | None",
) -> Performance:
    world = record.world
    rule = problem = raised = ""
    complete = True
    if progress is not None or until is not None:
        _tick(world, progress, until)
    with bounds(world.plan), world:
        try:
            act()
        except Stopped:
            complete = False
        except Exception as error:  # noqa: BLE001  as in `netsim.run.run_plan`
            rule, problem = broken_rule(error)
            raised = "" if isinstance(error, Violation) else "".join(format_exception(error))
        return Performance(
            name=name,
            title=title,
            plan=world.plan,
            record=record,
            trace=world.trace_hash,
            rule=rule,
            problem=problem,
            ended_at=world.now,
            complete=complete,
            roles=roles,
            calls=stage.calls if stage is not None else {},
            ids=stage.ids if stage is not None else {},
            balances=_available(record.watch),
            raised=raised,
            nothing_came=stage.nothing_came() if stage is not None and complete and not rule else (),
        )


def _tick(world: World, progress: Progress | None, until: float | None) -> None:
    """Look at the clock now and then; this leaves no mark in the trace."""
    if until is not None and world.now >= until:
        raise Stopped
    if progress is not None:
        progress(world.now)
    then = world.now + TICK_S if until is None else min(world.now + TICK_S, until)
    world.at(then, lambda: _tick(world, progress, until))


def _available(watch: Watch) -> dict[str, int]:
    """Settled and incoming money of every account, as the observer's ledger has it."""
    ledger = watch.ledger
    return {
        name: tip.balance + sum(credit.amount for credit in ledger.incoming[name].values())
        for name, tip in sorted(ledger.tips.items())
    }


def _fault_name(number: int, step: FaultStep) -> str:
    return f"fault[{number}] ({step.kind})"


def _request_name(step: RequestStep) -> str:
    return f"request {step.name}"


class _Stage:
    """One run of a scenario."""

    def __init__(self, scenario: Scenario, record: Recorder) -> None:
        self._scenario = scenario
        self._record = record
        self._world = record.world
        self._watch = record.watch
        self._faults = Faults(self._world)
        self.roles = Roles(
            scenario.plan.nodes, scenario.sides, record.group_of_account, scenario.plan.spares, record.members
        )
        self.calls: dict[str, list[int]] = {step.name: [] for step in scenario.requests}
        self.ids: dict[str, list[bytes]] = {step.name: [] for step in scenario.requests}
        self._signed: dict[str, list[SignedRequest]] = {step.name: [] for step in scenario.requests}
        self._steps = {step.name: step for step in scenario.requests}
        self._waiting: list[tuple[Moment, Callable[[], None]]] = []
        self._began: set[str] = set()  # steps whose time or moment came
        self._acted: set[str] = set()  # and those whose words named nodes then
        self._rng = random.Random(self._world.rng.random())
        self._start = 0.0
        record.on_moment = self._on_moment

    def play(self) -> None:
        """All phases. Raises `Violation`, or what stops a node."""
        world, plan = self._world, self._scenario.plan
        calm, world.network.weather = world.network.weather, Weather()
        world.run_for(1.0)
        self._fund()
        clients = (
            Clients(world, plan.load, self._rng, self._watch.ledger.spendable) if self._scenario.has_load else None
        )
        if clients is not None:
            open_and_fund(world, clients)
        world.network.weather = calm
        world.begin_guests(
            {n for step in self._scenario.faults if step.fresh for n in self.roles.nodes_of(step.groups[0])}
        )
        self._start = self._record.start = world.now
        for i, fault in enumerate(self._scenario.faults):
            for number in range(fault.times):
                self._plan_step(
                    fault.at + number * fault.every_s, fault.when, self._fault_of(fault, _fault_name(i, fault))
                )
        for request in self._scenario.requests:
            for number in range(request.times):
                self._plan_step(request.at + number * request.every_s, request.when, self._request_of(request, number))
        if clients is not None:
            clients.begin(plan.fault_s)
        world.run_for(plan.fault_s)
        self._waiting.clear()
        self.roles.settle()
        self._record.healed = world.now
        self._faults.heal(plan.everybody)
        everybody = members_left(world)
        if clients is not None:
            clients.settle(everybody)
        for signed in [s for many in self._signed.values() for s in many]:
            world.submit(self._rng.choice(everybody), Submit(signed.raw, signed.signature, SETTLE_TIMEOUT_MS))
        world.run_for(plan.heal_s)
        check_rest(world, self._faults)
        check_audit(world)

    def nothing_came(self) -> tuple[str, ...]:
        """The faults and requests of which nothing came in the whole run, and why, for people."""
        steps: list[tuple[str, FaultStep | RequestStep]] = [
            (_fault_name(i, step), step) for i, step in enumerate(self._scenario.faults)
        ]
        steps += [(_request_name(step), step) for step in self._scenario.requests]
        found = []
        for shown, step in steps:
            if shown not in self._began:
                assert step.when is not None  # all others have their time before everything heals
                found.append(f"{shown} waited for {step.when.what}:{step.when.account}, which did not happen")
            elif shown not in self._acted:
                found.append(f"{shown} did nothing: its words named no node at that moment")
            elif isinstance(step, FaultStep) and not self._happened(step.kind):
                found.append(f"{shown} did nothing: {_NOTHING.get(step.kind, _NOT_BORNE)}")
        return tuple(found)

    def _happened(self, kind: str) -> bool:
        """False when no fault of a kind that is counted when something comes of it happened."""
        names = {name.partition(".")[0] for name, count in self._world.happened.items() if count}
        return kind not in _COUNTED or _COUNTED[kind] in names

    # --- before the faults ---

    def _fund(self) -> None:
        """Open the accounts that the scenario names and give them their money; nothing fails yet."""
        for name in self._scenario.accounts:
            self._must(opening(self._world.network_id, name, "CZK", public_key(name), self._nonce()))
        postings = [Posting(name, funds) for name, funds in self._scenario.accounts.items() if funds]
        if postings:
            self._must(transfer(self._world.network_id, ISSUER, postings, self._nonce()))

    def _must(self, request: Request) -> None:
        signed = sign(request, key_of(request.sender))
        node = self._rng.randrange(self._scenario.plan.nodes)
        must_complete(self._world, node, Submit(signed.raw, signed.signature, SETUP_TIMEOUT_MS))

    def _nonce(self) -> bytes:
        return self._rng.randbytes(32)

    # --- when ---

    def _plan_step(self, at: float, when: Moment | None, act: Callable[[], None]) -> None:
        if when is None:
            self._world.at(self._start + at, act)
        else:
            self._world.at(self._start + at, lambda: self._waiting.append((when, act)))

    def _on_moment(self, what: str, account: str) -> None:
        """Acts that waited for this follow at once, after what the node is just doing."""
        moment = Moment(what, account)
        due = [act for awaited, act in self._waiting if awaited == moment]
        self._waiting = [(awaited, act) for awaited, act in self._waiting if awaited != moment]
        for act in due:
            self._world.at(self._world.now, act)

    # --- faults ---

    def _fault_of(self, step: FaultStep, name: str) -> Callable[[], None]:
        return lambda: self._begin_fault(step, name)

    def _begin_fault(self, step: FaultStep, name: str) -> None:
        """The words become nodes now, and the fault begins."""
        self._began.add(name)
        now = self._world.now - self._start
        until = now + step.last_s
        parts = tuple(self.roles.nodes_of(words) for words in step.groups)
        if all(parts):
            self._acted.add(name)
        for fault in planned_faults(step, now, until, parts, self._scenario.plan.nodes):
            if fault.at < self._scenario.plan.fault_s:  # what is staggered beyond it would fall into the healed network
                self._faults.schedule(fault, self._start)
        shown = parts
        last_s = step.last_s
        if step.kind == "ring":
            shown = tuple((node,) for node in range(self._scenario.plan.nodes))
        elif step.stagger_s:
            last_s += step.stagger_s * max(0, len(parts[0]) - 1)
        names = ["+".join(words) for words in step.groups]
        self._record.faults.append(
            Shown(step.kind, describe_step(step, names), self._world.now, self._world.now + last_s, shown, step.one_way)
        )

    # --- requests ---

    def _request_of(self, step: RequestStep, number: int) -> Callable[[], None]:
        return lambda: self._ask(step, number)

    def _ask(self, step: RequestStep, number: int) -> None:
        self._began.add(_request_name(step))
        gateways = [node for word in step.via for node in self.roles.in_order(word)]
        if not gateways:
            return
        self._acted.add(_request_name(step))
        via = gateways[number % len(gateways)]
        if step.kind == "read":
            ask = AskBalance(step.account, step.linearizable, AT_ONCE, int(step.timeout_s * 1000))
            self.calls[step.name].append(self._world.read(via, ask))
            return
        signed = self._sign(step, number)
        if signed is None:
            return
        self.ids[step.name].append(signed.request_id)
        self._signed[step.name].append(signed)
        submit = Submit(signed.raw, signed.signature, int(step.timeout_s * 1000))
        self.calls[step.name].append(self._world.submit(via, submit))

    def _sign(self, step: RequestStep, number: int) -> SignedRequest | None:
        """The request in its final bytes; None when it is about one that was never made."""
        network = self._world.network_id
        if step.kind == "open":
            request = opening(network, step.account, "CZK", public_key(step.account), self._nonce())
        elif step.kind == "pay":
            tip = self._tip(step)
            request = transfer(network, step.account, [Posting(step.to, step.amount)], self._nonce(), expect_tip=tip)
        else:
            made = self._signed[step.target]
            if not made:
                return None
            target = made[number % len(made)]
            if step.kind == "again":
                return target
            account = self._account_of(step.target)
            request = cancellation(network, account, target.request_id, self._nonce())
        return sign(request, key_of(request.sender))

    def _account_of(self, name: str) -> str:
        step = self._steps[name]
        return step.account or self._account_of(step.target)

    def _tip(self, step: RequestStep) -> bytes:
        """The tip that a payment expects: the account's last link, or the one before it."""
        chain = self._watch.ledger.chains[step.account]
        if step.expect_tip == "any" or not chain:
            return ANY_TIP
        return chain[-2 if step.expect_tip == "old" and len(chain) > 1 else -1].hash

"""Runs a plan or a scenario under a recorder, and judges what came of it.

A plan runs exactly as in `netsim.run` (same trace). A scenario has one phase of faults and requests, written by a person
in words that are resolved while it runs; then everything heals, every request is sent once more, and all must end.
"""

import random
from collections.abc import Callable
from typing import Final

import msgspec

from chain.audit import audit
from chain.errors import HopchainError
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
from hopchain.wire import AskBalance, Recorded, ReplyBody, Submit
from netsim.checks import Watch
from netsim.faults import Faults
from netsim.load import ISSUER, Clients, open_and_fund
from netsim.names import key_of, public_key
from netsim.plan import (
    Add,
    Bury,
    ClockJump,
    Clog,
    Cut,
    Die,
    DiskError,
    Fault,
    Hold,
    Kill,
    Pause,
    Plan,
    Remove,
    Rollback,
    SlowDisk,
    Weather,
    WeatherChange,
)
from netsim.record import Recorder, Shown
from netsim.roles import Roles
from netsim.run import bounds, check_rest, members_left, play
from netsim.scenario import FaultStep, Moment, RequestStep, Scenario
from netsim.violation import Violation
from netsim.world import World

TICK_S: Final = 0.25  # simulated seconds between two reports of progress
SETUP_TIMEOUT_MS: Final = 10_000
SETTLE_TIMEOUT_MS: Final = 15_000
INVARIANTS: Final = {
    "I1": "one successor for every link",
    "I2": "money constant, never negative",
    "I3": "what was answered completed stays",
    "I4": "incoming money is used once",
    "I5": "a request executes at most once",
    "I6": "every account is linearizable",
    "I7": "equal replicas at rest",
    "I8": "nobody goes back on a vote",
    "I9": "only decided links are served",
    "I10": "every answer was true",
    "I11": "linearizable reads are",
    "I12": "one chain of views, one member at a time",
    "I13": "after healing every request ends",
}

Progress = Callable[[float], None]


class Stopped(Exception):
    """The run was asked to end here: no error."""


class Performance(msgspec.Struct, frozen=True):
    """What came of a run. `rule` and `problem` are empty when no rule was broken. `calls`: the calls of each request
    of the scenario; `ids`: their request ids."""

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
    rule = problem = ""
    complete = True
    if progress is not None or until is not None:
        _tick(world, progress, until)
    with bounds(world.plan), world:
        try:
            act()
        except Stopped:
            complete = False
        except Violation as violation:
            rule, problem = violation.rule, violation.text
        except (AssertionError, HopchainError) as error:
            rule, problem = type(error).__name__, str(error) or repr(error)
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
        for fault in self._scenario.faults:
            for number in range(fault.times):
                self._plan_step(fault.at + number * fault.every_s, fault.when, self._fault_of(fault))
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
        self._rest()

    def _rest(self) -> None:
        world = self._world
        check_rest(world, self._faults)
        first = members_left(world)[0]
        report = audit(world.nodes[first].disk.conn, genesis=world.genesis)
        if not report.ok:
            raise Violation("I2", f"the audit of node {first} says: {report}")

    # --- before the faults ---

    def _fund(self) -> None:
        """Open the accounts that the scenario names and give them their money; nothing fails yet."""
        for name in self._scenario.accounts:
            self._must(opening(self._world.network_id, name, "CZK", public_key(name), self._nonce()))
        postings = [Posting(name, funds) for name, funds in self._scenario.accounts.items() if funds]
        if postings:
            self._must(transfer(self._world.network_id, ISSUER, postings, self._nonce()))

    def _must(self, request: Request) -> None:
        answers: list[ReplyBody] = []
        signed = sign(request, key_of(request.sender))
        node = self._rng.randrange(self._scenario.plan.nodes)
        self._world.submit(node, Submit(signed.raw, signed.signature, SETUP_TIMEOUT_MS), answers.append)
        for _ in range(1000):
            if answers:
                break
            self._world.run_for(0.02)
        assert answers, "the network did not start"
        assert isinstance(answers[0], Recorded), answers
        assert answers[0].outcome == 0, answers

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

    def _fault_of(self, step: FaultStep) -> Callable[[], None]:
        return lambda: self._begin_fault(step)

    def _begin_fault(self, step: FaultStep) -> None:
        """The words become nodes now, and the fault begins."""
        now = self._world.now - self._start
        until = now + step.last_s
        parts = tuple(self.roles.nodes_of(words) for words in step.groups)
        for fault in _faults(step, now, until, parts, self._scenario.plan.nodes):
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
            Shown(step.kind, _text(step, names), self._world.now, self._world.now + last_s, shown, step.one_way)
        )

    # --- requests ---

    def _request_of(self, step: RequestStep, number: int) -> Callable[[], None]:
        return lambda: self._ask(step, number)

    def _ask(self, step: RequestStep, number: int) -> None:
        gateways = [node for word in step.via for node in self.roles.in_order(word)]
        if not gateways:
            return
        via = gateways[number % len(gateways)]
        if step.kind == "read":
            ask = AskBalance(step.account, step.linearizable, 0, int(step.timeout_s * 1000))
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


def _faults(step: FaultStep, at: float, until: float, parts: tuple[tuple[int, ...], ...], nodes: int) -> list[Fault]:
    match step.kind:
        case "cut":
            pairs = [(a, b) for i, a in enumerate(parts) for b in parts[i + 1 :]]
            return [Cut(at, a, b, until, step.one_way) for a, b in pairs]
        case "ring":
            return [
                Cut(at, (i,), tuple(n for n in range(i) if (i - n) % nodes not in (1, nodes - 1)), until)
                for i in range(nodes)
            ]
        case "clog":
            return [Clog(at, source, target, until) for source in parts[0] for target in parts[1] if source != target]
        case "hold":
            return [Hold(at, step.messages, parts[0], parts[1], until, step.drop)]
        case "weather":
            return [WeatherChange(at, step.weather, until)]
        case "bury":
            return [Bury(at, node, spare) for node, spare in zip(*parts, strict=True)]
        case _:
            return [
                _one_fault(step, node, at + i * step.stagger_s, until + i * step.stagger_s)
                for i, node in enumerate(parts[0])
            ]


def _one_fault(step: FaultStep, node: int, at: float, until: float) -> Fault:
    match step.kind:
        case "kill":
            return Kill(at, node, until, step.point)
        case "pause":
            return Pause(at, node, until)
        case "clock_jump":
            return ClockJump(at, node, step.ms)
        case "slow_disk":
            return SlowDisk(at, node, step.commit_s, until)
        case "rollback":
            return Rollback(at, node, step.disk, until)
        case "add":
            return Add(at, node, step.fresh)
        case "remove":
            return Remove(at, node, step.stop, step.force)
        case "die":
            return Die(at, node)
        case _:
            return DiskError(at, node, step.error, until)


def _text(step: FaultStep, names: list[str]) -> str:
    """A fault for people."""
    match step.kind:
        case "cut" if step.one_way:
            return f"{names[0]} cannot reach {' or '.join(names[1:])}"
        case "cut":
            return f"cut between {' | '.join(names)}"
        case "ring":
            return "ring: each node reaches its two neighbours only"
        case "clog":
            return f"what {names[0]} sends to {names[1]} is held up"
        case "hold":
            end = "lost" if step.drop else "held up"
            return f"{', '.join(step.messages)} from {names[0]} to {names[1]}: {end}"
        case "kill":
            where = "" if step.point == "idle" else f" ({step.point.replace('_', ' ')})"
            return f"kill {names[0]}{where}" + (", one after the other" if step.stagger_s else "")
        case "pause":
            return f"{names[0]} stands still"
        case "clock_jump":
            return f"clock of {names[0]} jumps by {step.ms / 1000:+g} s"
        case "slow_disk":
            return f"{names[0]} takes {step.commit_s:g} s for each commit"
        case "rollback":
            return f"{names[0]} comes back with an {step.disk} disk"
        case "add":
            return f"the operator adds {names[0]}" + (", one after the other" if step.stagger_s else "")
        case "remove":
            return f"the operator removes {names[0]}" + (", which stops then" if step.stop else "")
        case "die":
            return f"{names[0]} and its disk are gone"
        case "bury":
            return f"{names[0]} and its disk are gone; {names[1]} replaces it"
        case "disk_error":
            return f"disk of {names[0]}: {step.error}"
        case _:
            weather = step.weather
            return f"weather: loss {weather.loss:.0%}, repeated {weather.repeat:.0%}, delay {weather.delay_mean_s:g} s"

"""What a report needs to know about a run, seen on the way: an observer in front of the one that checks.

It adds to `netsim.checks.Watch` (which keeps links, choices, applications and calls) who handed requests to whom, who
proposed and voted, who was down, and what cuts swallowed. It changes nothing in the run.
"""

import math
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable

import msgspec

from chain.link import HEADER_BYTES, LinkHash, header_hash, opening_slot
from chain.request import request_id
from chain.rows import Applied, VoteRow
from chain.store import Write
from hopchain.wire import ReplyBody
from netsim.calls import Asked
from netsim.load import SETUP_STEP_S
from netsim.names import EPOCH_MS
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
    KillAtCommit,
    Pause,
    Plan,
    Remove,
    Rollback,
    SlowDisk,
    WeatherChange,
)
from netsim.world import World
from node.messages import Accept, Decided, DecidedHash, Forward, Message, Prepare
from routing.keyspace import NodeId


class Hop(msgspec.Struct, frozen=True):
    """A request was handed from node to node; `lost`: a cut swallowed it."""

    at: float
    source: int
    target: int
    lost: bool


class Step(msgspec.Struct, frozen=True):
    """A node did something about a slot: `what` is prepare, propose or vote."""

    at: float
    node: int
    what: str
    round: int


class Shown(msgspec.Struct, frozen=True):
    """A fault as it happened, in absolute simulated seconds. `parts`: nodes; of a cut, those who cannot talk."""

    kind: str
    text: str
    at: float
    until: float
    parts: tuple[tuple[int, ...], ...]
    one_way: bool = False


def show(fault: Fault, start: float) -> Shown:
    """A planned fault for people; `start` is when the fault phase begins."""
    at, until = start + fault.at, start + float(getattr(fault, "until", fault.at))
    parts: tuple[tuple[int, ...], ...] = ((int(getattr(fault, "node", 0)),),)
    match fault:
        case Cut():
            arrow = "cannot reach" if fault.one_way else "cut off from"
            text, parts = f"{_names(fault.a)} {arrow} {_names(fault.b)}", (fault.a, fault.b)
        case Clog():
            text = f"what node-{fault.source} sends to node-{fault.target} is held up"
            parts = ((fault.source,), (fault.target,))
        case Hold():
            parts = (fault.source, fault.target)
            end = "lost" if fault.drop else "held up"
            text = f"{', '.join(fault.messages)} from {_names(fault.source)} to {_names(fault.target)}: {end}"
        case Kill():
            text = f"kill node-{fault.node}, {fault.point.replace('_', ' ')}"
        case KillAtCommit():
            text = f"kill node-{fault.node} at its commit {fault.number}, {fault.point.replace('_', ' ')}"
        case Pause():
            text = f"node-{fault.node} stands still"
        case ClockJump():
            text = f"clock of node-{fault.node} jumps by {fault.ms / 1000:+g} s"
        case SlowDisk():
            text = f"node-{fault.node} takes {fault.commit_s:g} s for each commit"
        case DiskError():
            text = f"disk of node-{fault.node}: {fault.error}"
        case Rollback():
            text = f"node-{fault.node} comes back with an {fault.disk} disk, and is quarantined"
        case WeatherChange():
            weather, parts = fault.weather, ()
            text = f"weather: loss {weather.loss:.0%}, repeated {weather.repeat:.0%}, delay {weather.delay_mean_s:g} s"
        case Add():
            text = f"the operator adds node-{fault.node}"
        case Remove():
            text = f"the operator removes node-{fault.node}" + (", which stops then" if fault.stop else "")
        case Die():
            text = f"node-{fault.node} and its disk are gone"
        case Bury():
            text = f"node-{fault.node} and its disk are gone; the operator replaces it with node-{fault.spare}"
            parts = ((fault.node, fault.spare),)
    # in the words of a scenario; who comes back with another disk is down before that
    kind = "kill" if isinstance(fault, KillAtCommit | Rollback) else str(type(fault).__struct_config__.tag)
    return Shown(kind, text, at, until, parts, isinstance(fault, Cut) and fault.one_way)


def _names(nodes: tuple[int, ...]) -> str:
    return ", ".join(f"node-{node}" for node in nodes) or "nobody"


class Recorder:
    """Stands before the observer of a world and passes everything on to it. `on_moment(what, account)` hears when a
    link is proposed, voted or decided."""

    def __init__(self, world: World) -> None:
        world.observer = self
        self.world = world
        self.watch = world.watch
        self.start = 0.0  # of the fault phase
        self.healed = 0.0
        self.hops: dict[bytes, list[Hop]] = defaultdict(list)
        self.steps: dict[bytes, list[Step]] = defaultdict(list)  # slot -> what was done about it
        self.decider: dict[bytes, tuple[int, float]] = {}  # link hash -> who knew first that it is decided, and when
        self.group: dict[int, tuple[int, ...]] = {}  # call -> the group of its account's slot when it was made
        self.tip: dict[int, bytes] = {}  # call -> its account's last link then, empty before the first
        self.down: list[tuple[int, float, float]] = []
        self.faults: list[Shown] = []
        self.lost: Counter[str] = Counter()
        self.sent_kinds: Counter[str] = Counter()
        self.crashes = 0
        self.clock_ms = 0
        self.on_moment: Callable[[str, str], None] | None = None
        self._down_since: dict[int, float] = {}
        self._setup_call = 0  # of a drawn plan: the fault phase begins when this call is answered

    def group_of_account(self, account: str) -> tuple[int, ...]:
        """The group of an account's next slot, owner first."""
        tip = self.watch.ledger.tips.get(account)
        return self.watch.group_of(tip.hash if tip is not None else opening_slot(self.world.network_id, account))

    def members(self) -> tuple[int, ...]:
        """The members of the newest chosen view."""
        return tuple(self.world.index_of[node] for node in self.watch.views[-1].ids)

    def down_until(self, end: float) -> list[tuple[int, float, float]]:
        """(node, from, until) of every outage, those that last open to `end`."""
        return [*self.down, *((node, since, end) for node, since in sorted(self._down_since.items()))]

    def follow_plan(self, plan: Plan) -> None:
        """The run is that of a drawn plan: find out when its faults begin (`netsim.load` opens, funds, then begins)."""
        self._setup_call = plan.load.accounts + 1

    # --- the observer ---

    def committed(self, node: int, writes: tuple[Write, ...], now: float) -> None:
        chosen = len(self.watch.chosen_at)
        self.watch.committed(node, writes, now)
        for write in writes:
            if isinstance(write, VoteRow) and write.accepted is not None:
                first = self._step(write.slot, node, "vote", write.accepted[1], now)
                if first and write.accepted[2] != self.world.nodes[node].id:
                    self._moment("voted", write.account)
            elif isinstance(write, Applied):
                self._known(write.link.hash, node, now)
        for link_hash in list(self.watch.chosen_at)[chosen:]:
            self._moment("decided", self.watch.links[link_hash].account)

    def sent(self, node: int, peer: NodeId, message: Message, now: float) -> None:
        self.watch.sent(node, peer, message, now)
        kind = str(type(message).__struct_config__.tag)
        target = self.world.index_of[peer]
        lost = self.world.network.is_dropped(node, target, kind, now)
        self.sent_kinds[kind] += 1
        self.lost[kind] += lost
        match message:
            case Forward():
                for item in message.items:
                    self.hops[request_id(item.raw)].append(Hop(now, node, target, lost))
            case Accept():
                if self._step(message.at.slot, node, "propose", message.ballot.round, now):
                    self._moment("proposed", message.at.account)
            case Prepare():
                self._step(message.at.slot, node, "prepare", message.ballot.round, now)
            case Decided():
                self._known(LinkHash(header_hash(message.link[:HEADER_BYTES])), node, now)
            case DecidedHash():
                self._known(LinkHash(message.link), node, now)
            case _:
                pass

    def submitted(self, call: int, node: int, submit: Asked, now: float) -> None:
        self.watch.submitted(call, node, submit, now)
        account = self.watch.calls[call].account
        if account:
            tip = self.watch.ledger.tips.get(account)
            self.group[call] = self.group_of_account(account)
            self.tip[call] = tip.hash if tip is not None else b""

    def answered(self, call: int, body: ReplyBody, now: float) -> None:
        self.watch.answered(call, body, now)
        if call == self._setup_call:
            asked = self.watch.calls[call].at
            self.start = asked + SETUP_STEP_S * math.ceil((now - asked) / SETUP_STEP_S)
            self.healed = self.start + self.world.plan.fault_s
            self.faults = [show(fault, self.start) for fault in self.world.plan.faults]

    def died(self, node: int) -> None:
        self.watch.died(node)

    def crashed(self, node: int, now: float) -> None:
        self.watch.crashed(node, now)
        self.crashes += 1
        self._down_since[node] = now

    def replaced(self, node: int, conn: sqlite3.Connection) -> None:
        self.watch.replaced(node, conn)

    def started(self, node: int, conn: sqlite3.Connection, now: float) -> None:
        self.watch.started(node, conn, now)
        if node in self._down_since:
            self.down.append((node, self._down_since.pop(node), now))

    def _known(self, link_hash: LinkHash, node: int, now: float) -> None:
        """A node knows that a link is decided: the first one counts, when it says so or has it on disk."""
        if link_hash not in self.decider:
            self.decider[link_hash] = (node, now)
            wrong_ms = self.watch.links[link_hash].time_ms - EPOCH_MS - int(now * 1000)
            self.clock_ms = max(self.clock_ms, abs(wrong_ms))

    def _step(self, slot: bytes, node: int, what: str, ballot_round: int, now: float) -> bool:
        """Note it once for each node and round; true the first time."""
        steps = self.steps[slot]
        if any((s.node, s.what, s.round) == (node, what, ballot_round) for s in steps):
            return False
        steps.append(Step(now, node, what, ballot_round))
        return True

    def _moment(self, what: str, account: str) -> None:
        if self.on_moment is not None:
            self.on_moment(what, account)

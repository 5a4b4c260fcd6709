"""Plans: everything that will happen to a simulated network, as data.

A plan is drawn from a seed (`netsim.draw`) or written by a person (`netsim.scenario`). The run itself draws only
message delays, losses and the like, from `Plan.seed`. Because faults are a list, a failing plan is shrunk by leaving
some out. Times are simulated seconds from the start of the fault phase; nodes are numbered from 0, the members of the
first view before the spares. Changes of the members are in the list of faults too: they are what happens to a network.
"""

from collections.abc import Iterable
from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta

MAX_NODES: Final = 64  # more lanes than this no picture shows
# Of `Load`: the probabilities.
SHARES: Final = (
    "hot", "again", "overdraft", "pinned", "cancel", "nobody", "reopen", "forge", "read", "spend", "session", "expiring",
)  # fmt: skip

Share = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]
Node = Annotated[int, Meta(ge=0)]
Size = Annotated[int, Meta(ge=1, le=MAX_NODES)]
CommitPoint = Literal["before_commit", "in_commit", "after_commit", "sending"]
Point = Literal["idle", "before_commit", "in_commit", "after_commit", "sending"]
Error = Literal["full", "fsync"]
OtherDisk = Literal["old", "emptied"]
COMMIT_POINTS: Final[tuple[CommitPoint, ...]] = get_args(CommitPoint)
POINTS: Final[tuple[Point, ...]] = get_args(Point)
ERRORS: Final[tuple[Error, ...]] = get_args(Error)
OTHER_DISKS: Final[tuple[OtherDisk, ...]] = get_args(OtherDisk)


class _Fault(msgspec.Struct, frozen=True, tag_field="kind", forbid_unknown_fields=True):
    at: Seconds


class Cut(_Fault, frozen=True, tag="cut"):
    """No message from `a` to `b` until `until`; also none back, unless `one_way`."""

    a: tuple[Node, ...]
    b: tuple[Node, ...]
    until: Seconds
    one_way: bool = False


class Clog(_Fault, frozen=True, tag="clog"):
    """Messages from `source` to `target` are held up, and all arrive at `until`."""

    source: Node
    target: Node
    until: Seconds


class Hold(_Fault, frozen=True, tag="hold"):
    """Messages of these kinds (their tags, node.messages) from `source` to `target` are held up and arrive at `until`;
    with `drop` they never do."""

    messages: tuple[str, ...]
    source: tuple[Node, ...]
    target: tuple[Node, ...]
    until: Seconds
    drop: bool = False


class Kill(_Fault, frozen=True, tag="kill"):
    """The process ends at the next `point` of a turn after `at`, and starts again at `until`.

    point: `idle` between turns; `before_commit` with nothing written; `in_commit` with the write-ahead log cut
    somewhere within the transaction; `after_commit` with nothing sent; `sending` with some messages sent.
    """

    node: Node
    until: Seconds
    point: Point = "idle"


class KillAtCommit(_Fault, frozen=True, tag="kill_at_commit"):
    """The process ends at its commit of this number (from 1, counted from `at`), and starts again `down_s` later.

    point: as for `Kill`, but `idle`. cut: at which of its places `in_commit` cuts the write-ahead log
    (`netsim.disk.cut_places`). A number or cut that there is not does not happen, so every crash of a short run can be
    enumerated: one run each, counting up until nothing happened.
    """

    node: Node
    number: Count
    point: CommitPoint
    down_s: Seconds
    cut: Count = 0


class Pause(_Fault, frozen=True, tag="pause"):
    """The process stands still (SIGSTOP) until `until`; what arrives waits."""

    node: Node
    until: Seconds


class ClockJump(_Fault, frozen=True, tag="clock_jump"):
    """The wall clock of a node jumps by `ms`; its monotonic clock does not."""

    node: Node
    ms: int


class SlowDisk(_Fault, frozen=True, tag="slow_disk"):
    """Each commit takes `commit_s` until `until`."""

    node: Node
    commit_s: Seconds
    until: Seconds


class DiskError(_Fault, frozen=True, tag="disk_error"):
    """A commit after `at` fails: of a `full` disk (nothing is written) the first before `until` that needs one more
    page, of `fsync` (perhaps it was written) the next one. The process ends with `StorageFailure` and starts again at
    `until`."""

    node: Node
    error: Error
    until: Seconds

    def is_over(self, now: float) -> bool:
        """True when a disk that was full has room again."""
        return self.error == "full" and self.until <= now


class Weather(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the network does to every message: `loss` and `repeat` are probabilities; the delay is `delay_min_s` plus an
    exponentially distributed time of mean `delay_mean_s`, so messages overtake each other."""

    loss: Share = 0.0
    repeat: Share = 0.0
    delay_min_s: Seconds = 0.0005
    delay_mean_s: Annotated[float, Meta(gt=0)] = 0.001


class WeatherChange(_Fault, frozen=True, tag="weather"):
    """From `at` until `until` the network is like this."""

    weather: Weather
    until: Seconds


class Rollback(_Fault, frozen=True, tag="rollback"):
    """The process ends, once everybody has been told of more votes than were on its disk at `at`, and comes back with
    the disk of then (`old`) or without any (`emptied`). It must be quarantined (design R12) and never comes back.
    Nothing happens when it does not get that far before `until`."""

    node: Node
    disk: OtherDisk
    until: Seconds


class Add(_Fault, frozen=True, tag="add"):
    """The operator asks for this spare to become a member (`hopchain join`), until it is one. Its process runs as a
    guest since the faults began; `fresh`: it starts at this moment, with nothing copied."""

    node: Node
    fresh: bool = False


class Remove(_Fault, frozen=True, tag="remove"):
    """The operator asks for this member to be removed, until it is. `stop`: its process ends for good as soon as the
    change was answered (`hopchain leave`); else it runs on, and perhaps does not know. `force`: also while too few can
    be reached."""

    node: Node
    stop: bool = False
    force: bool = True


class Die(_Fault, frozen=True, tag="die"):
    """The process and its disk are gone for ever. Like every loss for ever, it does not happen when the network could
    not bear it (netsim.losses): when a group would be without a majority that knows what it decided."""

    node: Node


class Bury(_Fault, frozen=True, tag="bury"):
    """The node dies as in `Die`, and the operator replaces it with a spare (`hopchain replace`): one change after the
    other, first the spare's, or with `remove_first` first the dead node's."""

    node: Node
    spare: Node
    remove_first: bool = False


Change = Add | Remove | Bury
Fault = (
    Cut
    | Clog
    | Hold
    | Kill
    | KillAtCommit
    | Pause
    | ClockJump
    | SlowDisk
    | DiskError
    | WeatherChange
    | Rollback
    | Add
    | Remove
    | Die
    | Bury
)


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What clients do in the fault phase. Shares are probabilities of each request.

    `hot`: pays from account 0 to account 1. `again`: a request sent before, through another node. `overdraft`: asks for
    more than anybody has. `pinned`: expects a tip, often an old one. `cancel`: cancels an earlier request. `nobody`:
    pays an account that does not exist. `reopen`: opens a name, through two nodes at once. `forge`: has a wrong
    signature. `read`: a balance: half of them linearizable, some at least at a height that a client was told
    (`session`). `spend`: pays on all that it has when it was just paid, through another node. `expiring`: is valid up
    to a height that is about to come.
    """

    accounts: Annotated[int, Meta(ge=2)] = 3
    requests: Count = 40
    funds: Annotated[int, Meta(ge=1)] = 1000
    max_postings: Annotated[int, Meta(ge=1)] = 3
    timeout_s: Annotated[tuple[Seconds, ...], Meta(min_length=1)] = (0.5, 5.0, 20.0)
    hot: Share = 0.3
    again: Share = 0.3
    overdraft: Share = 0.1
    pinned: Share = 0.05
    cancel: Share = 0.05
    nobody: Share = 0.05
    reopen: Share = 0.05
    forge: Share = 0.02
    read: Share = 0.15
    spend: Share = 0.15
    session: Share = 0.3
    expiring: Share = 0.05


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run. `fault_s`: anything may fail; then a random majority heals for good (`core_s`), then everything heals,
    and `heal_s` later all must be at rest. `core_alone`: the first to heal are as few as must be enough, the others
    stay away, and all that is asked of these few must end (`netsim.core_alone`). `spares`: nodes after the first
    `nodes` that are no members, until they are added. `files`: databases are files, so that `in_commit` cuts real logs.
    `max_confirmed`: how many postings one link takes up, when not 0; a small number makes consolidating links
    common. `max_queue`: how many requests of one account wait at its owner while anything may fail, when not 0; more
    are declined."""

    seed: Count
    nodes: Size = 5
    k: Size = 5
    weather: Weather = Weather()
    load: Load = Load()
    faults: tuple[Fault, ...] = ()
    fault_s: Seconds = 10.0
    core_s: Seconds = 10.0
    core_alone: bool = False
    heal_s: Seconds = 40.0
    files: bool = False
    max_confirmed: Count = 0
    max_queue: Count = 0
    spares: Annotated[int, Meta(ge=0, le=MAX_NODES)] = 0

    @property
    def everybody(self) -> range:
        """The numbers of all nodes, spares included."""
        return range(self.nodes + self.spares)


def encode_plan(plan: Plan) -> bytes:
    """JSON, the form in which a shrunk plan is kept."""
    return msgspec.json.encode(plan, order="sorted")


def decode_plan(raw: bytes) -> Plan:
    """A plan from its JSON; raises `msgspec.ValidationError` that names the field."""
    plan = msgspec.json.decode(raw, type=Plan)
    for number, fault in enumerate(plan.faults):
        for node in sorted(nodes_of(fault) - set(plan.everybody)):
            raise msgspec.ValidationError(f"There is no node {node} of {len(plan.everybody)} - at `$.faults[{number}]`")
    return plan


def nodes_of(fault: Fault) -> set[int]:
    """The nodes that a fault names."""
    match fault:
        case Cut():
            return {*fault.a, *fault.b}
        case Clog():
            return {fault.source, fault.target}
        case Hold():
            return {*fault.source, *fault.target}
        case Bury():
            return {fault.node, fault.spare}
        case WeatherChange():
            return set()
        case _:
            return {fault.node}


def without(plan: Plan, left_out: Iterable[int]) -> Plan:
    """The plan without the faults of these numbers."""
    drop = set(left_out)
    return msgspec.structs.replace(plan, faults=tuple(f for i, f in enumerate(plan.faults) if i not in drop))

"""What a run did, as numbers: for the report, the pictures and the expectations of scenarios.

A *call* is one request handed to one node by a client. All times are simulated seconds; `Spell`s are half-open.

* throughput: calls of requests that were completed or rejected for good, by the second of their answer
* latency: from a call to its final answer, percentiles of those answered within a bucket
* a side *stands still* while one of its nodes' calls waits and none is answered; only what is longer than GRACE_S
  counts
* the inconsistency window of a link: from its choice (a majority has it on disk) until every node has applied it
"""

import bisect
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

import msgspec

from chain.link import Outcome
from hopchain.wire import (
    AskBalance,
    Balance,
    Changed,
    NotFound,
    NotStarted,
    Recorded,
    Refused,
    ReplyBody,
    Stale,
    Submit,
    Unknown,
)
from netsim.record import Recorder
from netsim.told import Call
from routing.view import majority

GRACE_S: Final = 1.0  # an answer within this is no outage
BUCKETS: Final = 60  # of a plot, about
PERCENTILES: Final = (50, 95, 99)


class Spell(msgspec.Struct, frozen=True):
    """A stretch of time."""

    at: float
    until: float


class SideStory(msgspec.Struct, frozen=True):
    """How a side fared while the network was cut: requests asked of its nodes, those answered before the heal, as
    completed or rejected, and how many of the group that had to decide were on this side (fewest and most, of
    `needed`)."""

    name: str
    nodes: tuple[int, ...]
    asked: int
    answered: int
    fewest: int
    most: int
    needed: int
    why: str


def answer_name(call: Call) -> str:
    """The answer of a call as `netsim.scenario.ANSWERS` names it."""
    return _name(call.answer)


def _name(answer: ReplyBody | None) -> str:
    match answer:
        case None:
            return "none"
        case Recorded():
            return Outcome(answer.outcome).name.lower()
        case Stale():
            return "stale"
        case NotStarted():
            return "not_started"
        case Unknown():
            return "unknown"
        case Refused():
            return "refused"
        case Changed():
            return "changed"
        case Balance():
            return "stale_balance" if answer.stale else "balance"
        case NotFound():
            return "not_found"
        case _:
            raise AssertionError(answer)


def is_request(call: Call) -> bool:
    """True for what a client signed; false for reads."""
    return isinstance(call.body, Submit)


def is_final(call: Call) -> bool:
    """True when the answer settles it."""
    if isinstance(call.body, AskBalance):
        return isinstance(call.answer, Balance | NotFound)
    return isinstance(call.answer, Recorded | Stale | Refused)


def asked_in_time(record: Recorder, call: Call) -> bool:
    """True for what clients asked while anything could fail; false for the set-up and for the last round, in which
    every request is sent once more."""
    return record.start <= call.at < (record.healed or math.inf)


def bucket_width(seconds: float) -> float:
    """A round number of seconds, so that there are about BUCKETS of them."""
    raw = max(seconds, 0.001) / BUCKETS
    power: float = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= raw)


def throughput(record: Recorder, nodes: Iterable[int], start: float, end: float, width: float) -> list[float]:
    """Recorded answers per second, of the calls to these nodes, for each bucket."""
    counts = [0] * max(1, math.ceil((end - start) / width))
    among = set(nodes)
    for call in record.watch.calls.values():
        if call.answered_at is None or call.node not in among or not isinstance(call.answer, Recorded):
            continue
        if not asked_in_time(record, call):
            continue
        if start <= call.answered_at < end:
            counts[int((call.answered_at - start) / width)] += 1
    return [count / width for count in counts]


def latencies(record: Recorder, start: float, end: float, width: float) -> list[tuple[float, ...] | None]:
    """(p50, p95, p99) in seconds of the final answers within each bucket; None where there are none."""
    found: list[list[float]] = [[] for _ in range(max(1, math.ceil((end - start) / width)))]
    for call in record.watch.calls.values():
        if call.answered_at is None or not (is_request(call) and is_final(call) and asked_in_time(record, call)):
            continue
        if start <= call.answered_at < end:
            found[int((call.answered_at - start) / width)].append(call.answered_at - call.at)
    return [tuple(percentile(sorted(many), p) for p in PERCENTILES) if many else None for many in found]


def percentile(ascending: Sequence[float], p: float) -> float:
    """The smallest value that at least `p` percent of the values do not exceed."""
    return ascending[max(0, math.ceil(len(ascending) * p / 100) - 1)]


def stand_stills(record: Recorder, nodes: Iterable[int], end: float) -> list[Spell]:
    """When these nodes let clients wait and answered none of them, for longer than GRACE_S; ascending."""
    among = set(nodes)
    lost = deaths(record)
    marks: list[tuple[float, int]] = []
    answers: list[float] = []
    for call in record.watch.calls.values():
        if call.node not in among or not is_request(call) or not asked_in_time(record, call):
            continue
        marks += [(call.at, 1), (min(_ended_at(call, lost, end), end), -1)]
        if call.answered_at is not None and is_final(call):
            answers.append(call.answered_at)
    answers.sort()
    spells: list[Spell] = []
    for busy in _busy(marks):
        inside = [t for t in answers if busy.at < t <= busy.until]
        edges = [busy.at, *inside, busy.until]
        spells += [Spell(a, b) for a, b in pairwise(edges) if b - a > GRACE_S]
    return spells


def _busy(marks: list[tuple[float, int]]) -> list[Spell]:
    """Stretches in which at least one call waits; marks are (time, +1 or -1)."""
    spells: list[Spell] = []
    waiting, since = 0, 0.0
    for at, step in sorted(marks, key=lambda mark: (mark[0], -mark[1])):
        if waiting == 0:
            since = at
        waiting += step
        if waiting == 0:
            spells.append(Spell(since, at))
    return spells


def ended_at(record: Recorder, call: Call, end: float) -> float:
    """When the client stopped waiting: at the answer, or when its node died, or at `end`."""
    return _ended_at(call, deaths(record), end)


def _ended_at(call: Call, lost: dict[int, list[float]], end: float) -> float:
    return call.answered_at if call.answered_at is not None else _first_after(lost.get(call.node, []), call.at, end)


def deaths(record: Recorder) -> dict[int, list[float]]:
    """When each node went down, ascending: whoever waited there waits no more."""
    found: dict[int, list[float]] = {}
    for node, since, _ in sorted(record.down_until(math.inf), key=lambda outage: outage[1]):
        found.setdefault(node, []).append(since)
    return found


def _first_after(times: list[float], at: float, default: float) -> float:
    place = bisect.bisect_left(times, at)
    return times[place] if place < len(times) else default


def windows(record: Recorder) -> list[tuple[float, float]]:
    """(chosen at, seconds until every node had it) of each link that all have, in order of choice. Every node: the
    members of the view in which it was made, who are members still in the end."""
    watch = record.watch
    last = watch.views[-1].ids
    everybody = {
        view.epoch: [n.index for n in record.world.nodes if n.id in view.ids and n.id in last] for view in watch.views
    }
    found = []
    for link_hash, at in watch.chosen_at.items():
        applied = watch.applied_at.get(link_hash, {})
        nodes = everybody[watch.links[link_hash].epoch]
        if nodes and all(node in applied for node in nodes):
            found.append((at, max(applied[node] for node in nodes) - at))
    return found


def cut_spells(record: Recorder) -> list[Spell]:
    """When some cut stood, merged, ascending."""
    spells: list[Spell] = []
    for fault in sorted(record.faults, key=lambda f: f.at):
        if fault.kind not in ("cut", "ring"):
            continue
        until = min(fault.until, record.healed or fault.until)
        if spells and fault.at <= spells[-1].until:
            spells[-1] = Spell(spells[-1].at, max(until, spells[-1].until))
        elif until > fault.at:
            spells.append(Spell(fault.at, until))
    return spells


def side_stories(record: Recorder, sides: dict[str, tuple[int, ...]]) -> list[SideStory]:
    """How each side fared during the cuts, and why."""
    cuts = cut_spells(record)
    stories = []
    for name, nodes in sides.items():
        asked = answered = could = 0
        held: list[int] = []
        needed = 1
        for number, call in record.watch.calls.items():
            cut = next((c for c in cuts if c.at <= call.at < c.until), None)
            if cut is None or call.node not in nodes or not is_request(call) or number not in record.group:
                continue
            group = record.group[number]
            asked += 1
            here = len(set(group) & set(nodes))
            held.append(here)
            could += here >= majority(len(group)) and _knows(record, nodes, record.tip[number], call.at)
            needed = majority(len(group))
            in_time = call.answered_at is not None and call.answered_at < cut.until
            answered += in_time and isinstance(call.answer, Recorded)
        fewest, most = (min(held), max(held)) if held else (0, 0)
        stories.append(
            SideStory(name, nodes, asked, answered, fewest, most, needed, _why(asked, answered, could, held, needed))
        )
    return stories


def _knows(record: Recorder, nodes: Iterable[int], tip: bytes, at: float) -> bool:
    """True when some of these nodes had the account's last link then: what comes after it can be made here only if
    so."""
    applied = record.watch.applied_at.get(tip)
    return applied is None or any(applied.get(node, math.inf) <= at for node in nodes)


def _why(asked: int, answered: int, could: int, held: list[int], needed: int) -> str:
    if not asked:
        return "nobody asked anything of these nodes while the network was cut"
    majorities = sum(h >= needed for h in held)
    span = f"{min(held)}" if min(held) == max(held) else f"{min(held)} to {max(held)}"
    have = f"{span} of the nodes that decide were on this side, {needed} are needed"
    if could == asked:
        return f"{have}: a majority of every group, so this side could decide by itself"
    if not majorities and answered:
        return f"{have}: no group had its majority here; what was answered came through while paths were open"
    if not majorities:
        return f"{have}: no group had its majority here, so nothing could be decided and nothing was made up"
    return (
        f"{have}: {majorities} of {asked} requests met a group with its majority here, and {could} of them a chain whose last "
        "link was known here. With each payment an account moves to another group: it may pay once and then have to wait"
    )


def made_without_majority(record: Recorder) -> int:
    """Links proposed and chosen while a cut stood of whose parts none held a majority of the group: must be 0."""
    wrong = 0
    for fault in record.faults:
        if fault.kind != "cut" or fault.one_way:
            continue
        apart = set().union(*fault.parts)
        for link_hash, at in record.watch.chosen_at.items():
            link = record.watch.links[link_hash]
            slot = link.prev_hash
            proposals = [s.at for s in record.steps.get(slot, ()) if s.what == "propose" and s.at <= at]
            group = record.watch.group_of(slot, link.epoch)
            if not proposals or not fault.at < proposals[-1] <= at < fault.until or not apart.issuperset(group):
                continue
            wrong += max(len(set(part) & set(group)) for part in fault.parts) < majority(len(group))
    return wrong

"""The report of a run: one HTML page that needs nothing else.

`document` gathers what the page shows as plain data, times relative to the start of the fault phase; `render` puts it
into `report.html`, whose script draws it.
"""

from collections.abc import Sequence
from importlib.resources import files
from typing import Final

import msgspec

from chain.link import Link
from chain.request import Kind, Request
from hopchain.change import Change, decode_change_untrusted
from hopchain.wire import AskBalance, Recorded, SubmitChange
from netsim.measure import (
    answer_name,
    bucket_width,
    ended_at,
    is_final,
    latencies,
    side_stories,
    stand_stills,
    throughput,
)
from netsim.record import Recorder
from netsim.stage import Performance
from netsim.told import Call
from netsim.verdict import Verdict

MARK: Final = "/*DATA*/"
STEP_LETTERS: Final = {"prepare": "p", "propose": "a", "vote": "v"}


class _Part(msgspec.Struct, frozen=True, array_like=True):
    pass


class Asked(_Part, frozen=True):
    """One call: when, at which node, when answered (None: never), with what, whether that is final, and when the client
    stopped waiting (its node died, or everything healed)."""

    at: float
    node: int
    answered_at: float | None
    answer: str
    final: bool
    over: float


class Transfer(msgspec.Struct, frozen=True):
    """A request: what it says, its calls, its hand-overs (time, from, to, swallowed by a cut), the place of its link in
    `Document.links` (-1: none), and the group of its account's slot when it was first asked."""

    text: str
    account: str
    calls: tuple[Asked, ...]
    hops: tuple[tuple[float, int, int, bool], ...]
    link: int
    outcome: str
    group: tuple[int, ...]
    setup: bool


class ShownLink(msgspec.Struct, frozen=True):
    """A decided link: chosen at, who knew first and when, when each node applied it (None: never), and the steps in its
    slot (time, node, p/a/v for prepare/propose/vote, round)."""

    account: str
    height: int
    at: float
    node: int
    known: float
    applied: tuple[float | None, ...]
    steps: tuple[tuple[float, int, str, int], ...]
    transfers: tuple[int, ...]
    income: int
    balance: int


class ShownFault(msgspec.Struct, frozen=True):
    """A fault: kind, text, from, until, and the nodes it is about."""

    kind: str
    text: str
    at: float
    until: float
    parts: tuple[tuple[int, ...], ...]


class ShownSide(msgspec.Struct, frozen=True):
    """A side of the cut and how it fared; `still`: when it answered nobody who waited; `throughput`: answers per
    second."""

    name: str
    nodes: tuple[int, ...]
    asked: int
    answered: int
    why: str
    still: tuple[tuple[float, float], ...]
    throughput: tuple[float, ...]


class Document(msgspec.Struct, frozen=True):
    """All that the page shows."""

    name: str
    title: str
    about: str
    command: str
    note: str
    nodes: int
    k: int
    seed: int
    trace: str
    start: float
    healed: float
    end: float
    bucket_s: float
    verdicts: tuple[Verdict, ...]
    sides: tuple[ShownSide, ...]
    faults: tuple[ShownFault, ...]
    down: tuple[tuple[int, float, float], ...]
    links: tuple[ShownLink, ...]
    transfers: tuple[Transfer, ...]
    latency: tuple[tuple[float, ...] | None, ...]


def document(
    performance: Performance, verdicts: Sequence[Verdict], *, about: str = "", command: str = "", note: str = ""
) -> Document:
    """Gather what the page shows."""
    record, plan = performance.record, performance.plan
    start, end = record.start, performance.ended_at
    links = sorted(record.watch.chosen_at, key=lambda link_hash: record.watch.chosen_at[link_hash])
    place = {link_hash: i for i, link_hash in enumerate(links)}
    transfers, number_of = _transfers(record, place)
    everybody = tuple(plan.everybody)
    sides = performance.sides or {"all nodes": everybody}
    width = bucket_width(end - start)
    stories = side_stories(record, sides)
    return Document(
        name=performance.name,
        title=performance.title or performance.name,
        about=about,
        command=command,
        note=note,
        nodes=len(everybody),
        k=plan.k,
        seed=plan.seed,
        trace=performance.trace,
        start=_round(-start),
        healed=_round((record.healed or end) - start),
        end=_round(end - start),
        bucket_s=width,
        verdicts=tuple(verdicts),
        sides=tuple(
            ShownSide(
                story.name,
                story.nodes,
                story.asked,
                story.answered,
                story.why,
                tuple((_round(s.at - start), _round(s.until - start)) for s in stand_stills(record, story.nodes, end)),
                tuple(throughput(record, story.nodes, start, end, width)),
            )
            for story in stories
        ),
        faults=tuple(
            ShownFault(f.kind, f.text, _round(f.at - start), _round(min(f.until, end) - start), f.parts)
            for f in record.faults
        ),
        down=tuple((n, _round(a - start), _round(b - start)) for n, a, b in record.down_until(end)),
        links=tuple(_link(record, link_hash, number_of, start) for link_hash in links),
        transfers=tuple(transfers),
        latency=tuple(
            tuple(_round(x) for x in found) if found is not None else None
            for found in latencies(record, start, end, width)
        ),
    )


def render(doc: Document) -> str:
    """The page."""
    template = (files("netsim") / "report.html").read_text(encoding="utf-8")
    data = msgspec.json.encode(doc).decode().replace("<", "\\u003c")
    assert template.count(MARK) == 1
    return template.replace(MARK, data)


def _round(seconds: float) -> float:
    """To a tenth of a millisecond: what a picture can show."""
    return round(seconds, 4)


def _transfers(record: Recorder, place: dict[bytes, int]) -> tuple[list[Transfer], dict[bytes, int]]:
    """Requests in the order in which they were first asked, and the number of each request id."""
    by_request: dict[bytes, list[int]] = {}
    for number, call in record.watch.calls.items():
        key = call.request_id or b"call %d" % number
        by_request.setdefault(key, []).append(number)
    outcomes = {request_id: found for (_, request_id), found in record.watch.ledger.outcomes.items()}
    transfers = []
    for request_id, numbers in by_request.items():
        calls = [record.watch.calls[n] for n in numbers]
        outcome, link = outcomes.get(request_id, (None, None))
        hops = record.hops.get(request_id, [])
        transfers.append(
            Transfer(
                text=_text(calls[0], record.watch.ids),
                account=calls[0].account,
                calls=tuple(_asked(record, call) for call in calls),
                hops=tuple((_round(h.at - record.start), h.source, h.target, h.lost) for h in hops),
                link=place[link.hash] if link is not None else -1,
                outcome=outcome.name.lower() if outcome is not None else "",
                group=record.group.get(numbers[0], ()),
                setup=calls[0].at < record.start,
            )
        )
    return transfers, {request_id: i for i, request_id in enumerate(by_request)}


def _asked(record: Recorder, call: Call) -> Asked:
    start = record.start
    answered = _round(call.answered_at - start) if call.answered_at is not None else None
    over = ended_at(record, call, record.healed or record.world.now)
    return Asked(_round(call.at - start), call.node, answered, _answer(call), is_final(call), _round(over - start))


def _answer(call: Call) -> str:
    """The answer of a call for people."""
    name = answer_name(call).replace("_", " ")
    if isinstance(call.answer, Recorded):
        return f"{name}, link {call.answer.height}, balance {call.answer.balance}"
    return name


def describe_change(change: Change, ids: Sequence[bytes]) -> str:
    """A change of the members in a few words; `ids` are the nodes' ids, in the order of their numbers."""
    return f"{change.action.name.lower()} node-{ids.index(change.node_id)}"


def _text(call: Call, ids: Sequence[bytes]) -> str:
    """What a call asks for."""
    if isinstance(call.body, AskBalance):
        return f"balance of {call.account}, {'linearizable' if call.body.linearizable else 'local'}"
    if isinstance(call.body, SubmitChange):
        return describe_change(decode_change_untrusted(call.body.raw), ids)
    return describe_request(call.request) if call.request is not None else "a malformed request"


def describe_request(request: Request) -> str:
    """A request in a few words; amounts are minor units."""
    match request.kind:
        case Kind.OPEN:
            return f"open {request.sender}"
        case Kind.CANCEL:
            return f"{request.sender} cancels {request.target.hex()[:8]}"
        case Kind.TRANSFER:
            to = ", ".join(sorted({posting.recipient for posting in request.postings})[:3])
            return f"{request.sender} pays {to} {request.total}"


def _link(record: Recorder, link_hash: bytes, number_of: dict[bytes, int], start: float) -> ShownLink:
    watch = record.watch
    link: Link = watch.links[link_hash]
    applied = watch.applied_at.get(link_hash, {})
    node, known = record.decider.get(link_hash, (0, watch.chosen_at[link_hash]))
    return ShownLink(
        account=link.account,
        height=link.height,
        at=_round(watch.chosen_at[link_hash] - start),
        node=node,
        known=_round(known - start),
        applied=tuple(_round(applied[n] - start) if n in applied else None for n in range(len(record.world.nodes))),
        steps=tuple(
            (_round(s.at - start), s.node, STEP_LETTERS[s.what], s.round) for s in record.steps.get(link.prev_hash, ())
        ),
        transfers=tuple(number_of[e.request_id] for e in link.entries if e.request_id in number_of),
        income=len(link.confirmed),
        balance=link.balance,
    )

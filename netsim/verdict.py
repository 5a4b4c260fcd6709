"""Verdicts: every invariant, and everything that a scenario expects, with what was found."""

from collections.abc import Iterable
from typing import Final

import msgspec

from netsim.measure import (
    answer_name,
    asked_in_time,
    is_final,
    is_request,
    made_without_majority,
    stand_stills,
    windows,
)
from netsim.scenario import Expect, Scenario
from netsim.stage import Performance
from netsim.told import Call

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


class Verdict(msgspec.Struct, frozen=True):
    """`name`: an invariant (I1..) or expect-N; `found` says what was seen."""

    name: str
    text: str
    ok: bool
    found: str


def judge(performance: Performance, scenario: Scenario | None = None) -> list[Verdict]:
    """All verdicts on a run. A run ends at the first broken rule, so the invariants after it are not said to hold."""
    broken = performance.rule
    verdicts = [
        Verdict(rule, text, rule != broken, performance.problem if rule == broken else _held(performance))
        for rule, text in INVARIANTS.items()
    ]
    if broken and broken not in INVARIANTS:
        verdicts.append(Verdict(broken, "no node stops", False, performance.problem))
    if scenario is not None and performance.complete:
        verdicts += [
            _expected(performance, f"expect-{i}", expect)
            for i, expect in enumerate(scenario.expects, 1)
            if expect.any_size or not scenario.resized
        ]
    return verdicts


def not_judged(scenario: Scenario) -> str:
    """What `judge` left out because the sizes are not the file's, for people; empty when nothing."""
    left = sum(not expect.any_size for expect in scenario.expects)
    if not scenario.resized or not left:
        return ""
    return f"The story and {left} of its expectations are about {scenario.resized}: those were not judged."


def _held(performance: Performance) -> str:
    if performance.complete and not performance.rule:
        return "held"
    return f"held until {performance.ended_at:.2f} s"


def _expected(performance: Performance, name: str, expect: Expect) -> Verdict:
    text = describe(expect)
    match expect.that:
        case "answers":
            calls = _calls(performance, expect)
            good = sum(answer_name(call) in expect.is_ for call in calls) if expect.is_ else len(calls)
            return _counted(name, text, expect, good, len(calls))
        case "recorded":
            ids = [i for request in expect.request for i in performance.ids[request]]
            outcomes = {
                request_id: outcome
                for (_, request_id), (outcome, _) in performance.record.watch.ledger.outcomes.items()
            }
            found = [outcomes[i].name.lower() if i in outcomes else "none" for i in ids]
            return _counted(name, text, expect, sum(o in expect.is_ for o in found), len(found))
        case "latency_s":
            times = [
                c.answered_at - c.at for c in _calls(performance, expect) if c.answered_at is not None and is_final(c)
            ]
            return _bounded(name, text, expect, max(times, default=0.0), " s")
        case _:
            return _bounded(name, text, expect, _number(performance, expect), _UNITS.get(expect.that, ""))


def _number(performance: Performance, expect: Expect) -> float:
    record = performance.record
    match expect.that:
        case "unavailable_s":
            nodes = {n for word in expect.on for n in performance.nodes_of(word)}
            return sum(spell.until - spell.at for spell in stand_stills(record, nodes, performance.ended_at))
        case "window_s":
            return max((length for _, length in windows(record)), default=0.0)
        case "balance":
            return performance.balances.get(expect.account, 0)
        case "links":
            return len(record.watch.ledger.chains[expect.account])
        case "messages":
            return record.sent_kinds[expect.message]
        case "lost":
            return record.lost.total()
        case "made_without_majority":
            return made_without_majority(record)
        case "repeated":
            return record.world.network.repeated
        case "crashes":
            return record.crashes
        case "clock_ms":
            return record.clock_ms
        case "changes":
            return len(record.watch.views) - 1
        case "members":
            return len(record.watch.views[-1].members)
        case _:
            raise AssertionError(expect.that)


_UNITS = {"unavailable_s": " s", "latency_s": " s", "window_s": " s", "clock_ms": " ms"}


def _calls(performance: Performance, expect: Expect) -> list[Call]:
    """The calls that an expectation is about: of its requests, or all requests of clients; by node and time of
    answer."""
    record = performance.record
    calls: Iterable[Call]
    if expect.request:
        numbers = [n for request in expect.request for n in performance.calls[request]]
        calls = (record.watch.calls[n] for n in numbers if n in record.watch.calls)
    else:
        calls = (c for c in record.watch.calls.values() if is_request(c) and asked_in_time(record, c))
    among = {n for word in expect.on for n in performance.nodes_of(word)} if expect.on else None
    low, high = record.start + expect.from_s, record.start + expect.until
    return [
        c
        for c in calls
        if (among is None or c.node in among) and low <= (c.answered_at if c.answered_at is not None else c.at) < high
    ]


def _counted(name: str, text: str, expect: Expect, good: int, of: int) -> Verdict:
    """Without a bound all of them must be good, and there must be one."""
    if (expect.at_least, expect.at_most, expect.exactly) == (None, None, None):
        return Verdict(name, text, good == of > 0, f"{good} of {of}")
    return Verdict(name, text, _within(expect, good), f"{good} of {of}")


def _bounded(name: str, text: str, expect: Expect, value: float, unit: str) -> Verdict:
    return Verdict(
        name, text, _within(expect, value), f"{value:.10g}{unit}" if value == int(value) else f"{value:.3f}{unit}"
    )


def _within(expect: Expect, value: float) -> bool:
    return (
        (expect.at_least is None or value >= expect.at_least)
        and (expect.at_most is None or value <= expect.at_most)
        and (expect.exactly is None or value == expect.exactly)
    )


def describe(expect: Expect) -> str:
    """An expectation as a sentence."""
    what = {
        "answers": "answers",
        "recorded": "outcomes in the end",
        "unavailable_s": "seconds of standing still",
        "latency_s": "longest wait for a final answer",
        "window_s": "longest inconsistency window",
        "balance": f"money of {expect.account}",
        "links": f"links of {expect.account}",
        "messages": f"{expect.message} messages",
        "lost": "messages that a cut swallowed",
        "made_without_majority": "links made during a cut without a majority",
        "repeated": "messages that arrived twice",
        "crashes": "crashes",
        "clock_ms": "largest clock error in a link",
        "changes": "changes of the members",
        "members": "members in the end",
    }[expect.that]
    parts = [what]
    if expect.request:
        parts.append(f"of {', '.join(expect.request)}")
    if expect.on:
        parts.append(f"on {', '.join(expect.on)}")
    if expect.from_s or expect.until != float("inf"):
        end = "the end" if expect.until == float("inf") else f"{expect.until:g} s"
        parts.append(f"from {expect.from_s:g} s to {end}")
    if expect.is_:
        parts.append(f"that are {' or '.join(expect.is_)}:")
    bounds = [
        f"{word} {bound:.10g}"
        for word, bound in (("at least", expect.at_least), ("at most", expect.at_most), ("exactly", expect.exactly))
        if bound is not None
    ]
    return " ".join([*parts, " and ".join(bounds) or "all"])

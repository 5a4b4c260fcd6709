"""The report: one page that needs nothing else, whose data say what the observer saw."""

import json
import re
from html.parser import HTMLParser

import pytest

from hopchain.wire import Recorded
from netsim.draw import draw_plan
from netsim.measure import (
    GRACE_S,
    asked_in_time,
    bucket_width,
    cut_spells,
    ended_at,
    is_request,
    latencies,
    made_without_majority,
    percentile,
    side_stories,
    stand_stills,
    throughput,
    windows,
)
from netsim.report import MARK, Document, document, render
from netsim.run import run_plan
from netsim.scenario import load_scenario, read_scenario
from netsim.stage import Performance, perform, perform_plan
from netsim.verdict import judge


@pytest.fixture(scope="module")
def split() -> Performance:
    return perform(load_scenario("split-brain"))


@pytest.fixture(scope="module")
def restart() -> Performance:
    return perform(load_scenario("rolling-restart"))


def document_of(performance: Performance) -> Document:
    return document(performance, judge(performance))


class _Page(HTMLParser):
    """Collects what a page refers to, and the text of its scripts by type."""

    def __init__(self) -> None:
        super().__init__()
        self.refers: list[str] = []
        self.tags: list[str] = []
        self.scripts: dict[str, str] = {}
        self._in: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.refers += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag == "script":
            self._in = dict(attrs).get("type") or "code"

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._in = None

    def handle_data(self, data: str) -> None:
        if self._in is not None:
            self.scripts[self._in] = self.scripts.get(self._in, "") + data


def page_of(text: str) -> _Page:
    page = _Page()
    page.feed(text)
    return page


def test_the_page_needs_no_network(split: Performance) -> None:
    text = render(document_of(split))
    page = page_of(text)
    assert page.refers == []
    assert not {"link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert not re.search(r"https?:|@import|\bfetch\(|XMLHttpRequest|import\(", text)
    assert len(text) < 200_000
    assert MARK not in text


def test_its_data_are_the_document(split: Performance) -> None:
    page = page_of(render(document_of(split)))
    data = json.loads(page.scripts["application/json"])
    assert (data["nodes"], data["k"], data["seed"], data["trace"]) == (5, 5, 42, split.trace)
    assert len(data["links"]) == len(split.record.watch.chosen_at)
    wanted = set(re.findall(r"\bD\.([a-z_]+)", page.scripts["code"]))
    assert wanted <= data.keys(), wanted - data.keys()
    for name, variables in {"links": "l", "sides": "s"}.items():
        used = set(re.findall(rf"(?<![\w.]){variables}\.([a-z_]+)\b(?!\()", page.scripts["code"])) - {"length"}
        assert used <= data[name][0].keys(), (name, used - data[name][0].keys())


def test_text_from_a_scenario_cannot_end_the_script() -> None:
    evil = "</script><script>alert(1)</script>"
    text = f'title = "{evil}"\nfault_s = 0.5\nheal_s = 3\n'
    scenario = read_scenario(text, "evil")
    performance = perform(scenario)
    page = page_of(render(document(performance, judge(performance, scenario), about=evil)))
    assert page.tags.count("script") == 2
    assert json.loads(page.scripts["application/json"])["title"] == evil


def test_the_same_run_gives_the_same_page(split: Performance) -> None:
    again = perform(load_scenario("split-brain"))
    assert render(document_of(again)) == render(document_of(split))


def test_a_request_can_be_followed_from_its_gateway_to_every_replica(split: Performance) -> None:
    doc = document_of(split)
    made = [t for t in doc.transfers if t.link >= 0 and not t.setup]
    assert len(made) == 112
    for transfer in made:
        link = doc.links[transfer.link]
        assert transfer.account == link.account
        assert doc.transfers.index(transfer) in link.transfers
        assert all(at is not None and at >= link.known for at in link.applied)
        assert link.known >= link.at
        votes = [step for step in link.steps if step[2] == "v"]
        assert len({node for at, node, _, _ in votes if at <= link.at}) >= 3
        assert transfer.calls[0].at <= link.known
    handed = next(t for t in made if t.hops)
    assert handed.hops[0][1] == handed.calls[0].node


def test_what_a_cut_swallowed_is_marked(split: Performance) -> None:
    doc = document_of(split)
    minority = set(split.sides["minority"])
    lost = [hop for t in doc.transfers for hop in t.hops if hop[3]]
    assert lost
    for at, source, target, _ in lost:
        assert 2.0 <= at < 8.0
        assert (source in minority) != (target in minority)


@pytest.mark.parametrize("nodes", [1, 3, 7, 12])
def test_every_size_has_a_lane_for_each_node(nodes: int) -> None:
    scenario = load_scenario("rolling-restart", nodes=nodes)
    doc = document_of(perform(scenario))
    assert {link.node for link in doc.links} <= set(range(nodes))
    assert all(len(link.applied) == nodes for link in doc.links)
    assert [node for node, _, _ in doc.down] == list(range(min(nodes, 6)))


def test_a_drawn_plan_has_a_report_too() -> None:
    seed = 17
    performance = perform_plan(draw_plan(seed), "seed")
    assert performance.trace == run_plan(draw_plan(seed)).trace
    doc = document_of(performance)
    assert [side.name for side in doc.sides] == ["all nodes"]
    assert len(doc.faults) == len(draw_plan(seed).faults)
    record = performance.record
    assert doc.faults[0].at == pytest.approx(draw_plan(seed).faults[0].at, abs=1e-3)
    assert record.start > 1.0
    assert [t for t in doc.transfers if t.setup]


# --- the numbers ---------------------------------------------------------------------------------------------------


def test_buckets_are_round_and_about_sixty() -> None:
    assert [bucket_width(s) for s in (30, 31.1, 6, 60, 600)] == [0.5, 1.0, 0.1, 1.0, 10.0]


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, p) for p in (50, 95, 99)] == [50.0, 95.0, 99.0]
    assert percentile([7.0], 99) == 7.0
    assert percentile([1.0, 9.0], 50) == 1.0


def test_throughput_counts_each_answer_once(split: Performance) -> None:
    record = split.record
    rates = throughput(record, range(5), record.start, split.ended_at, 0.5)
    recorded = [c for c in record.watch.calls.values() if isinstance(c.answer, Recorded) and asked_in_time(record, c)]
    assert sum(rates) * 0.5 == len(recorded)
    halves = [throughput(record, nodes, record.start, split.ended_at, 0.5) for nodes in split.sides.values()]
    assert [sum(both) for both in zip(*halves, strict=True)] == rates
    assert max(halves[1][5:16]) == 0


def test_latency_is_that_of_answers_in_the_bucket(split: Performance) -> None:
    record = split.record
    found = latencies(record, record.start, split.ended_at, 0.5)
    assert found[0] is not None and found[0][0] < 0.1
    worst = max(f[2] for f in found if f is not None)
    assert worst == max(
        c.answered_at - c.at
        for c in record.watch.calls.values()
        if c.answered_at is not None and isinstance(c.answer, Recorded) and asked_in_time(record, c)
    )
    assert found[30] is None


def test_a_side_without_a_majority_stands_still_until_the_heal(split: Performance) -> None:
    record = split.record
    still = stand_stills(record, split.sides["minority"], split.ended_at)
    assert all(s.until - s.at > GRACE_S for s in still)
    assert still[-1].until - record.start == pytest.approx(8.0, abs=0.3)
    waited = sum(s.until - s.at for s in still)
    assert 4.0 < waited < 6.1
    assert sum(s.until - s.at for s in stand_stills(record, split.sides["majority"], split.ended_at)) < 3.0


def test_a_client_stops_waiting_when_its_node_dies() -> None:
    cut = perform(load_scenario("power-cut"))
    record = cut.record
    unanswered = [c for c in record.watch.calls.values() if c.answered_at is None and is_request(c)]
    assert unanswered
    deaths = {since for _, since, _ in record.down}
    for call in unanswered:
        assert ended_at(record, call, cut.ended_at) in deaths
    answered = next(c for c in record.watch.calls.values() if c.answered_at is not None)
    assert ended_at(record, answered, 1e9) == answered.answered_at


def test_nobody_stands_still_while_nodes_restart_one_by_one(restart: Performance) -> None:
    assert stand_stills(restart.record, range(5), restart.ended_at) == []


def test_windows_are_small_without_faults_and_last_until_the_heal_with_them(split: Performance) -> None:
    record = split.record
    spans = {at - record.start: length for at, length in windows(record)}
    assert max(length for at, length in spans.items() if at < 1.9) < 0.1
    assert any(at + length >= 8.0 for at, length in spans.items() if 2.5 < at < 8.0)


def test_the_story_of_each_side(split: Performance) -> None:
    majority, minority = side_stories(split.record, split.sides)
    assert (majority.fewest, majority.most, majority.needed) == (3, 3, 3)
    assert (minority.fewest, minority.most) == (2, 2)
    assert majority.answered == majority.asked > 30
    assert (minority.answered, minority.asked > 15) == (0, True)
    assert "could decide by itself" in majority.why
    assert "nothing could be decided" in minority.why
    (cut,) = cut_spells(split.record)
    assert (cut.at - split.record.start, cut.until - split.record.start) == (pytest.approx(2.0), pytest.approx(8.0))


def test_links_without_a_majority_would_be_counted(split: Performance) -> None:
    record = split.record
    assert made_without_majority(record) == 0
    group_of = record.watch.group_of
    try:  # groups in which the majority side has two of five
        record.watch.group_of = lambda slot, epoch=None: (3, 4, 0, 1) if group_of(slot, epoch) else ()  # type: ignore[method-assign]
        assert made_without_majority(record) > 10
    finally:
        record.watch.group_of = group_of  # type: ignore[method-assign]

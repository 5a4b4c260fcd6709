"""`hopchain bench` without real nodes: what is drawn, what is counted, what is said, and the generator over fake
nodes."""

import hashlib
import heapq
import itertools
import math
import os
import random
import sys
import threading
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final, cast
from xml.etree import ElementTree

import anyio
import msgspec
import pytest

from chain.errors import LocalMisuse
from chain.link import Link, Outcome
from chain.request import MAX_POSTINGS, decode_request_untrusted, request_id
from cli.bench import _Bench
from cli.bench_check import Answered, ask_lost, count_lost, databases, paid_out, read_answers
from cli.bench_cluster import Cost, Sample, differences, largest_memory
from cli.bench_generator import Generator, shares
from cli.bench_load import Balances, Flight, Measurement, read_tails
from cli.bench_node import Stacks, check_profile_file, collapsed, cpu_ns, flame_graph, stack_of
from cli.bench_plot import draw, steps
from cli.bench_prepare import FUNDS, HOT_FUNDS, TRIES, Preparation
from cli.bench_profiles import HOT, MEANING, Draw, Profile, Zipf, make_pool, postings_of
from cli.bench_report import Kept, Measured, document, percentile, read_floats, show
from cli.bench_spec import TAILS_FILE, Job, News, Ports, Result, Settings, Spec, account_key, account_name
from cli.bench_wire import Line, Lines
from cli.home import load_network
from cli.output import CommandFailed, Output
from cli.verify import Comparison
from hopchain import Choice, Client, Digest, TooManyFailures, wire
from hopchain.framing import frame
from node.lock import LOCK_FILE, DataLock
from routing.keyspace import NodeId, closest, route_key
from tests.chain.bank import Bank, file_database
from tests.cli.conftest import Cli, World
from tests.hopchain.fake_node import ISSUER_KEY, FakeNode, Hang

# --- what is drawn -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", [Profile.UNIFORM, Profile.ZIPF, Profile.BULK])
def test_nobody_pays_itself_and_all_are_drawn(profile: Profile, rng: random.Random) -> None:
    draw = Draw(profile, 5, rng)
    pairs = [(sender, draw.recipient(sender)) for sender in (draw.sender(0) for _ in range(2000))]
    assert all(sender != recipient for sender, recipient in pairs)
    assert {s for s, _ in pairs} == {r for _, r in pairs} == set(range(5))


def test_hot_profiles_have_one_account_on_one_side(rng: random.Random) -> None:
    to_one, from_one = Draw(Profile.HOT_RECIPIENT, 5, rng), Draw(Profile.HOT_SENDER, 5, rng)
    senders = {to_one.sender(0) for _ in range(200)}
    assert senders == {1, 2, 3, 4}
    assert {to_one.recipient(sender) for sender in senders} == {HOT}
    assert {from_one.sender(n) for n in range(50)} == {HOT}
    assert {from_one.recipient(HOT) for _ in range(200)} == {1, 2, 3, 4}


def test_zipf_draws_number_i_in_proportion_to_its_rank(rng: random.Random) -> None:
    zipf = Zipf(50)
    counts = Counter(zipf.draw(rng) for _ in range(100_000))
    harmonic = sum(1 / rank for rank in range(1, 51))
    for rank in (1, 2, 3, 10, 50):
        expected = 100_000 / rank / harmonic
        assert abs(counts[rank - 1] - expected) < 5 * math.sqrt(expected), (rank, counts[rank - 1], expected)
    assert set(counts) <= set(range(50))


def test_a_pool_is_asked_for_each_sender(rng: random.Random) -> None:
    pool = make_pool(4, Choice.DEDICATED, rng, None)
    draw = Draw(Profile.POOL, 10, rng, pool)
    assert [draw.sender(worker) for worker in (0, 1, 5)] == [0, 1, 1]
    assert dict(pool.in_flight) == {"0": 1, "1": 2, "2": 0, "3": 0}


def test_postings_of_a_request_and_what_cannot_be_asked() -> None:
    assert [postings_of(p, None) for p in Profile] == [1, 1, 1, 1, 1, MAX_POSTINGS, 1]
    assert postings_of(Profile.UNIFORM, 20) == 20
    for count in (0, MAX_POSTINGS + 1):
        with pytest.raises(LocalMisuse, match="a request holds 1 to 8190"):
            postings_of(Profile.BULK, count)
    with pytest.raises(LocalMisuse, match="one at a time"):
        postings_of(Profile.READ, 2)
    with pytest.raises(LocalMisuse, match="at least 2"):
        Draw(Profile.UNIFORM, 1, random.Random(1))
    assert set(MEANING) == set(Profile)


# --- the generator over fake nodes ---------------------------------------------------------------------------------


BALANCE: Final = wire.Balance("a", "CZK", 2, False, 0, 0, 0, bytes(32), 0, 1, 0, 1, 0, False)


class CountedLines(Lines):
    """Knows how many calls were waiting for a reply at once."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec.nodes, spec.ca, spec.network, spec.connections)
        self.waiting = self.most = 0

    def call(self, line: int, body: wire.CallBody) -> int:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        return super().call(line, body)

    def wait(self, timeout_s: float) -> list[tuple[int, int, wire.ReplyBody]]:
        found = super().wait(timeout_s)
        self.waiting -= len(found)
        return found


class Bench:
    """A spec for the fake nodes, and a generator run in this process with a clock that goes on by itself."""

    def __init__(self, world: World, place: Path) -> None:
        self.world = world
        self.place = place
        self.news: list[News] = []
        self.most_in_flight = 0
        self._time = itertools.count()

    def jump(self) -> None:
        """A million seconds pass."""
        self._time = itertools.count(next(self._time) + 10**9)

    def spec(self, **changes: object) -> Spec:
        spec = Spec(
            job=Job.MEASURE,
            nodes=tuple(node.address for node in self.world.nodes),
            ca=self.world.ledger.genesis.ca,
            network=self.world.ledger.genesis.network_id,
            asset="CZK",
            prefix="bench-",
            secret=b"secret",
            run=b"run 1",
            accounts=6,
            sources=0,
            place=str(self.place),
            issuer="mint",
            issuer_key=ISSUER_KEY.private_bytes_raw(),
            clients=4,
            warm_up_s=0.05,
            duration_s=0.2,
            timeout_s=5.0,
            seed=3,
        )
        return msgspec.structs.replace(spec, **changes)

    def prepare(self, **changes: object) -> None:
        self._with(self.spec(**changes), lambda spec, lines, ports: Preparation(spec, lines, ports).run())

    def measure(self, **changes: object) -> Result:
        self.news.clear()

        def work(spec: Spec, lines: Lines, ports: Ports) -> None:
            with closing(Lines(spec.nodes, spec.ca, spec.network)) as beside:
                Measurement(
                    spec, lines, ports, Balances(spec, beside) if spec.profile is not Profile.READ else None
                ).run()

        self._with(self.spec(**changes), work)
        result = self.news[-1].result
        assert result is not None
        return result

    def _with(self, spec: Spec, work: Callable[[Spec, Lines, Ports], None]) -> None:
        lines = CountedLines(spec)
        ports = Ports(lambda: next(self._time) / 1000, lambda: 0.0, self.news.append, lambda: None)
        try:
            work(spec, lines, ports)
        finally:
            lines.close()
        self.most_in_flight = lines.most

    @property
    def events(self) -> list[str]:
        return [news.event for news in self.news if news.event != "progress"]

    def balance(self, number: int) -> int:
        account = self.world.ledger.accounts[account_name("bench-", number)]
        return account.settled + account.incoming

    def total(self) -> int:
        return sum(self.balance(number) for number in range(6))


@pytest.fixture
def bench(world: World, tmp_path: Path) -> Bench:
    place = tmp_path / "raw"
    place.mkdir()
    return Bench(world, place)


def test_preparing_opens_and_funds_what_is_missing_and_nothing_twice(bench: Bench) -> None:
    bench.prepare(sources=2)
    ledger = bench.world.ledger
    assert [bench.balance(n) for n in range(6)] == [HOT_FUNDS, HOT_FUNDS, FUNDS, FUNDS, FUNDS, FUNDS]
    keys = {ledger.accounts[account_name("bench-", n)].public_key for n in range(6)}
    assert keys == {account_key(b"secret", n).public_key().public_bytes_raw() for n in range(6)}
    assert len(keys) == 6
    done = ledger.executed
    bench.prepare(sources=2)
    assert ledger.executed == done, "all is there already"
    poor = ledger.accounts[account_name("bench-", 4)]
    poor.settled = poor.incoming = 0
    bench.prepare(sources=2, accounts=7)
    assert (ledger.executed, bench.balance(4), bench.balance(6)) == (done + 2, FUNDS, FUNDS)


def test_preparing_sends_again_what_did_not_start_and_tells_what_is_rejected(bench: Bench) -> None:
    left = [3]

    def busy(call: wire.CallBody) -> wire.ReplyBody | None:
        if not isinstance(call, wire.Submit) or not left[0]:
            return None
        left[0] -= 1
        return wire.NotStarted(request_id(call.raw), "busy", "later")

    for node in bench.world.nodes:
        node.fault = busy
    bench.prepare()
    assert left == [0] and bench.total() == HOT_FUNDS + 5 * FUNDS
    for node in bench.world.nodes:
        node.fault = lambda call: wire.Refused("no", "not here") if isinstance(call, wire.Submit) else None
    with pytest.raises(CommandFailed, match=r"could not be prepared: not here$"):
        bench.prepare(accounts=8)


def test_preparing_waits_longer_and_longer_for_a_node_that_is_busy(bench: Bench) -> None:
    """About the first account they are; the others wait for nothing."""
    now = [0.0]
    asked: dict[str, list[float]] = defaultdict(list)
    queued: list[tuple[int, int, wire.ReplyBody]] = []

    class BusyLines(Lines):
        def call(self, line: int, body: wire.CallBody) -> int:
            assert isinstance(body, wire.AskBalance)
            asked[body.account].append(now[0])
            slow = body.account == account_name("bench-", 0) and len(asked[body.account]) < TRIES
            answer = wire.NotStarted(bytes(32), "busy", "later") if slow else wire.Refused("no_account", "none")
            queued.append((line, sum(map(len, asked.values())), answer))
            return queued[-1][1]

        def wait(self, timeout_s: float) -> list[tuple[int, int, wire.ReplyBody]]:
            if not queued:
                now[0] += timeout_s
            found = list(queued)
            queued.clear()
            return found

    spec = bench.spec(accounts=1000)
    lines = BusyLines(spec.nodes, spec.ca, spec.network)
    ports = Ports(lambda: now[0], lambda: 0.0, bench.news.append, lambda: None)
    prepare = Preparation(spec, lines, ports)
    prepare._each("looking", range(1000), prepare._ask_balance)
    lines.close()
    times = asked.pop(account_name("bench-", 0))
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses == pytest.approx([0.04, 0.08, 0.16, 0.32, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert len(asked) == 999 and set(map(tuple, asked.values())) == {(0.0,)}


def test_a_run_counts_what_was_completed_in_its_window_and_keeps_every_answer(bench: Bench) -> None:
    bench.prepare()
    before, executed = bench.total(), bench.world.ledger.executed
    result = bench.measure()
    assert bench.events == ["ready", "measuring", "measured", "done"]
    done = bench.world.ledger.executed - executed
    assert result.completed_in_all == result.answered == done
    assert 4 < result.completed == result.requests < done, "the warm-up and what was in flight at the end do not count"
    assert (result.rejected, result.unknown, result.refused, result.retried) == (0, 0, 0, 0)
    assert result.window_s == pytest.approx(0.2)
    assert bench.total() == before
    latencies = read_floats(bench.place, "latencies")
    assert len(latencies) == result.completed and min(latencies) > 0
    answers = read_answers(bench.place)
    recorded = bench.world.ledger.recorded
    assert len(answers) == len({a[0] for a in answers}) == done
    assert all((recorded[i].link_hash, recorded[i].outcome) == (link, outcome) for i, link, outcome in answers)
    asked = [len([c for c in node.calls if isinstance(c, wire.Submit)]) for node in bench.world.nodes]
    assert min(asked) > done / 4, "all nodes are used"


class Scripted(Lines):
    """Replies come when a function of the call's time says; the clock goes on only while somebody waits for them."""

    def __init__(self, reply_at: Callable[[float], float]) -> None:
        self.now = 1000.25
        self.begun = self.now
        self.lines = [cast(Line, None)]
        self.replied: list[float] = []
        self._reply_at = reply_at
        self._calls: list[tuple[float, int]] = []
        self._number = 0

    @property
    def bytes_moved(self) -> int:
        return 0

    def call(self, line: int, body: wire.CallBody) -> int:
        self._number += 1
        heapq.heappush(self._calls, (self.begun + self._reply_at(self.now - self.begun), self._number))
        return self._number

    def wait(self, timeout_s: float) -> list[tuple[int, int, wire.ReplyBody]]:
        self.now = min(self.now + timeout_s, self._calls[0][0])
        found: list[tuple[int, int, wire.ReplyBody]] = []
        while self._calls and self._calls[0][0] <= self.now:
            self.replied.append(self.now - self.begun)
            found.append((0, heapq.heappop(self._calls)[1], BALANCE))
        return found


def read_scripted(bench: Bench, lines: Scripted, **changes: object) -> Result:
    """A run of reads by the script's clock."""
    spec = bench.spec(profile=Profile.READ, clients=2, **changes)
    bench.news.clear()
    Measurement(spec, lines, Ports(lambda: lines.now, lambda: 0.0, bench.news.append, lambda: None)).run()
    result = bench.news[-1].result
    assert result is not None
    return result


@pytest.mark.parametrize(
    ("warm_up_s", "duration_s", "seconds"),
    [(3.0, 10.0, 13), (0.5, 5.0, 6), (3.0, 1.0, 4), (0.0, 0.25, 1), (0.1, 0.2, 1), (2.2, 0.8, 3), (1.1, 2.2, 4)],
)
def test_each_completion_is_in_the_second_in_which_it_came(
    bench: Bench, warm_up_s: float, duration_s: float, seconds: int
) -> None:
    lines = Scripted(lambda at: at + 0.1875)
    result = read_scripted(bench, lines, warm_up_s=warm_up_s, duration_s=duration_s)
    came = Counter(int(at) for at in lines.replied if at < warm_up_s + duration_s)
    assert result.per_second == [came[second] for second in range(seconds)]
    run = msgspec.structs.replace(
        make_run(),
        settings=msgspec.structs.replace(make_run().settings, warm_up_s=warm_up_s, duration_s=duration_s),
        results=[result, result],
    )
    assert document(run)["per_second"] == [2 * came[second] for second in range(seconds)]
    rates, edges = steps(run)
    assert edges[:-1] == list(range(seconds)) and edges[-1] == pytest.approx(warm_up_s + duration_s)
    if warm_up_s.is_integer():
        in_window = [r * (b - a) for r, a, b in zip(rates, edges, edges[1:], strict=False) if a >= warm_up_s]
        assert sum(in_window) == pytest.approx(run.completed), "none of it is in the shaded part"


def test_it_tells_each_second_how_it_goes_also_when_nothing_does(bench: Bench) -> None:
    """Nothing is answered between 1.5 and 4.75 s; else each of two clients has four answers a second."""
    lines = Scripted(lambda at: at + 0.25 if not 1.25 < at < 4.5 else 4.75)
    result = read_scripted(bench, lines, warm_up_s=2.5, duration_s=3.5)
    told = [(news.completed, news.p50_ms, news.p99_ms) for news in bench.news if news.event == "progress"]
    assert told == [(8, 250.0, 250.0), (4, 250.0, 250.0), (0, None, None), (0, None, None), (4, 3250.0, 3250.0)]
    assert result.per_second == [6, 6, 0, 0, 2, 8]


async def test_a_node_that_does_not_say_how_many_links_it_has_stops_no_progress(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cli.bench.LOOK_S", 0.05)
    network = load_network(world.directory)
    run = _Bench(Output(False), make_run().settings, tmp_path, 1.0, None)
    slow = world.nodes[1]
    slow.fault = lambda call: Hang() if isinstance(call, wire.AskStatus) else None
    async with Client([node.address for node in network.nodes], network.genesis.ca, network.id) as client:
        await run._progress(client, network, News("progress"))
        await run._progress(client, network, News("progress", completed=3, p50_ms=1.0, p99_ms=2.0))
        assert (run._memory_mb, run._behind) == ([0.0, 0.0], [])
        monkeypatch.setattr("cli.bench.LOOK_S", 60.0)
        slow.fault = lambda call: None
        slow.log_height = 7
        await run._progress(client, network, News("progress"))
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "  0/s about, nothing was completed, not all nodes sent their links within 0.05 s"
    assert said[1] == "  6/s about, p50 1.0 ms, p99 2.0 ms, not all nodes sent their links within 0.05 s"
    assert len(run._memory_mb) == 3 and len(run._behind) == 1
    assert said[2] == f"  0/s about, nothing was completed, {run._behind[0]} links behind"


def test_each_client_has_one_request_in_flight(bench: Bench) -> None:
    bench.prepare()
    for clients in (1, 5):
        bench.measure(clients=clients, profile=Profile.READ)
        assert bench.most_in_flight == clients


def test_a_rejection_is_never_a_completed_transfer(bench: Bench) -> None:
    bench.prepare()
    for number in range(6):
        account = bench.world.ledger.accounts[account_name("bench-", number)]
        account.settled = account.incoming = 0
    result = bench.measure()
    assert (result.completed, result.completed_in_all, result.requests) == (0, 0, 0)
    assert result.rejected == result.reasons["insufficient_funds"] == result.answered > 4
    assert {a[2] for a in read_answers(bench.place)} == {Outcome.INSUFFICIENT_FUNDS}


@pytest.mark.parametrize("route", [True, False])
def test_what_did_not_start_is_sent_again_to_another_node_until_it_has_an_outcome(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, route: bool
) -> None:
    monkeypatch.setattr("cli.bench_load.AGAIN_S", 0.05)  # 200 ms of the test's clock; a slow answer takes less
    bench.prepare()
    first = bench.world.nodes[0]
    for node in bench.world.nodes:
        node.calls.clear()

    def busy(call: wire.CallBody) -> wire.ReplyBody | None:
        return wire.NotStarted(request_id(call.raw), "busy", "later") if isinstance(call, wire.Submit) else None

    first.fault = busy
    result = bench.measure(clients=1, warm_up_s=0.0, duration_s=1.0, route=route)
    assert result.retried > 0 and result.rejected == result.unknown == 0
    refused = {request_id(c.raw) for c in first.calls if isinstance(c, wire.Submit)}
    assert refused and refused <= set(bench.world.ledger.recorded)
    latencies = read_floats(bench.place, "latencies")
    slow = [latency for latency in latencies if latency >= 200]
    assert len(refused) - 1 <= len(slow) <= len(refused), (
        "a latency goes from the first attempt to the outcome, over the pause"
    )
    assert route or slow == latencies, "a client stays with its node"


def test_nothing_is_asked_after_the_end_of_the_window(bench: Bench) -> None:
    """The answer to the third call comes after it: that one is waited for, and is the last."""
    bench.prepare()
    asked = 0

    def late(call: wire.CallBody) -> None:
        nonlocal asked
        if isinstance(call, wire.Submit):
            asked += 1
            if asked == 3:
                bench.jump()

    for node in bench.world.nodes:
        node.fault = late
    result = bench.measure(clients=1, warm_up_s=0.0)
    assert asked == result.completed_in_all == result.answered == 3
    assert result.completed == 2


def test_unknown_is_counted_and_settled_by_the_same_request(bench: Bench) -> None:
    bench.prepare(sources=2)
    before, executed = bench.balance(0) + bench.balance(1), bench.world.ledger.executed
    left = [5]

    def unknown(call: wire.CallBody) -> wire.ReplyBody | None:
        if not isinstance(call, wire.Submit) or not left[0]:
            return None
        left[0] -= 1
        return wire.Unknown(request_id(call.raw), "no outcome in time")

    for node in bench.world.nodes:
        node.fault = unknown
    result = bench.measure(profile=Profile.POOL, sources=2)
    assert (result.unknown, result.unknown_settled, result.rejected) == (5, 5, 0)
    done = bench.world.ledger.executed - executed
    assert result.completed_in_all == done
    assert 0 < before - bench.balance(0) - bench.balance(1) <= done


@pytest.mark.parametrize("profile", [Profile.UNIFORM, Profile.POOL])
def test_what_is_refused_when_it_is_sent_again_stays_unknown(bench: Bench, profile: Profile) -> None:
    """It was executed by a node that did not say so."""
    bench.prepare(sources=2)
    executed = bench.world.ledger.executed
    doubted: set[bytes] = set()

    def silent(node: FakeNode, call: wire.CallBody) -> wire.ReplyBody | None:
        if not isinstance(call, wire.Submit):
            return None
        request = request_id(call.raw)
        if request in doubted:
            return wire.Refused("no", "not now")
        if len(doubted) < 3:
            doubted.add(request)
            node.ledger.submit(call, node.id)
            return wire.Unknown(request, "no outcome in time")
        return None

    for node in bench.world.nodes:
        node.fault = partial(silent, node)
    result = bench.measure(profile=profile, sources=2)
    assert (result.unknown, result.unknown_settled, result.refused, result.rejected) == (3, 0, 0, 0)
    assert bench.world.ledger.executed - executed == result.completed_in_all + 3


def test_a_pool_ends_the_run_at_its_maximum_of_failures(bench: Bench) -> None:
    bench.prepare(sources=2)
    for node in bench.world.nodes:
        node.fault = lambda call: wire.Refused("no", "not now") if isinstance(call, wire.Submit) else None
    with pytest.raises(TooManyFailures, match="4 payments failed"):
        bench.measure(profile=Profile.POOL, sources=2, max_failures=3)


def test_a_pool_reports_the_most_in_flight_of_one_source(bench: Bench) -> None:
    bench.prepare(sources=2)
    assert bench.measure(profile=Profile.POOL, sources=2, clients=6).most_in_flight == 3
    assert bench.measure(profile=Profile.POOL, sources=2, clients=6, choice=Choice.DEDICATED).most_in_flight == 3
    assert bench.measure(profile=Profile.POOL, sources=1, clients=6).most_in_flight == 6


@pytest.mark.parametrize("choice", [Choice.DEDICATED, Choice.LEAST_ACTIVE])
def test_the_clients_of_all_generators_share_no_source_while_there_are_enough(bench: Bench, choice: Choice) -> None:
    bench.prepare(sources=6)
    settings = msgspec.structs.replace(make_run().settings, clients=5, processes=2)
    used = []
    for spec in shares(bench.spec(profile=Profile.POOL, sources=6, choice=choice), settings):
        for node in bench.world.nodes:
            node.calls.clear()
        bench.measure(**msgspec.structs.asdict(spec))
        calls = [c for node in bench.world.nodes for c in node.calls if isinstance(c, wire.Submit)]
        used.append({decode_request_untrusted(c.raw).sender for c in calls})
    assert used == [{account_name("bench-", n) for n in part} for part in (range(3), range(3, 5))]


@pytest.mark.parametrize("profile", [Profile.READ, Profile.UNIFORM])
def test_generators_of_one_client_each_stay_with_nodes_by_turns(bench: Bench, profile: Profile) -> None:
    bench.prepare()
    settings = msgspec.structs.replace(make_run().settings, clients=2, processes=2)
    for number, spec in enumerate(shares(bench.spec(profile=profile, route=False), settings)):
        for node in bench.world.nodes:
            node.calls.clear()
        bench.measure(**msgspec.structs.asdict(spec))
        kind = wire.AskBalance if profile is Profile.READ else wire.Submit
        assert [any(isinstance(c, kind) for c in node.calls) for node in bench.world.nodes] == [
            number == 0,
            number == 1,
        ]


def test_a_batch_counts_its_postings_and_a_read_counts_itself(bench: Bench) -> None:
    bench.prepare()
    result = bench.measure(batch=7, clients=2)
    assert result.completed == 7 * result.requests > 0
    assert result.completed_in_all == 7 * result.answered
    executed = bench.world.ledger.executed
    reads = bench.measure(profile=Profile.READ)
    assert reads.completed > 4 and reads.answered == reads.signed_before == 0
    assert bench.world.ledger.executed == executed


def test_links_are_looked_for_at_another_node(bench: Bench) -> None:
    bench.prepare()
    for node in bench.world.nodes:
        node.calls.clear()
    bench.measure(warm_up_s=0.0, duration_s=0.3)
    probes = [
        c for node in bench.world.nodes for c in node.calls if isinstance(c, wire.AskBalance) and c.min_height > 0
    ]
    assert 0 < len(read_floats(bench.place, "lags")) <= len(probes)


@pytest.mark.parametrize("answer", [wire.Unknown(b"", "not there yet"), wire.NotFound("account"), Hang()])
def test_a_link_that_another_node_does_not_show_is_counted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, answer: wire.ReplyBody | Hang
) -> None:
    monkeypatch.setattr("cli.bench_load.PATIENCE_S", 0.0)  # for what hangs
    bench.prepare()
    probes = 0

    def lagging(call: wire.CallBody) -> wire.ReplyBody | Hang | None:
        nonlocal probes
        if not isinstance(call, wire.AskBalance) or call.min_height == wire.AT_ONCE:
            return None
        probes += 1
        return answer if probes % 2 else None

    for node in bench.world.nodes:
        node.fault = lagging
    result = bench.measure(warm_up_s=0.0, duration_s=0.3, timeout_s=0.02)
    assert result.missed == (probes + 1) // 2 > 0
    assert len(read_floats(bench.place, "lags")) == probes // 2


def test_an_answer_after_the_last_time_out_disturbs_nothing(bench: Bench) -> None:
    """What two clients ask after a second was given up after 8 s and is asked again when its answer comes."""
    lines = Scripted(lambda at: at + 0.25 if at < 1 else 10.0 if at < 8 else at + 4)
    result = read_scripted(bench, lines, warm_up_s=0.0, duration_s=2.0, timeout_s=1.0)
    assert (result.unknown, result.unknown_settled, result.missed) == (2, 2, 0)
    assert result.completed == 8 and lines.replied[-4:] == pytest.approx([10.0, 10.0, 12.0, 12.0])


def test_each_node_is_asked_for_some_balances_a_second_beside_transfers(bench: Bench) -> None:
    bench.prepare()
    for node in bench.world.nodes:
        node.calls.clear()
    result = bench.measure(warm_up_s=0.5, duration_s=1.5)
    for node in bench.world.nodes:
        asked = [c for c in node.calls if isinstance(c, wire.AskBalance) and c.min_height == wire.AT_ONCE]
        assert 60 <= len(asked) <= 101, "two seconds of the test's clock"
        assert len({c.account for c in asked}) == 6, "of any account"
    assert result.completed_in_all == result.answered > 10, "they are no transfers"
    bench.measure(profile=Profile.READ, clients=1)
    assert bench.most_in_flight == 1, "reads alone need none beside them"


def test_a_node_that_answers_no_balance_is_not_asked_for_ever_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.bench_load.BALANCES_IN_FLIGHT", 3)
    bench.prepare()
    lines = open_lines(bench)
    asked: list[wire.CallBody] = []
    call = lines.call

    def counted(line: int, body: wire.CallBody) -> int:
        asked.append(body)
        return call(line, body)

    monkeypatch.setattr(lines, "call", counted)
    monkeypatch.setattr(lines, "wait", lambda _timeout_s: [])
    balances = Balances(bench.spec(), lines)
    balances.at = 0.0
    for second in range(60):
        balances.ask(float(second))
    lines.close()
    assert len(asked) == 3 * len(bench.world.nodes)


def test_requests_are_signed_ahead_and_when_they_run_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.prepare()
    assert (ahead := bench.measure()).signed_before == 6000 * 0.25 + 4 and ahead.signed_during == 0
    monkeypatch.setattr("cli.bench_signer.SIGN_PER_S", 0)
    late = bench.measure()
    assert late.signed_before == 4 and 0 < late.signed_during < late.answered
    assert bench.measure(workers=2).signed_before == 4


def test_two_generators_and_two_runs_never_make_the_same_request(bench: Bench) -> None:
    bench.prepare()
    seen: set[bytes] = set()
    for worker, run in ((0, b"run 1"), (1, b"run 1"), (0, b"run 2")):
        bench.measure(worker=worker, run=run, seed=1)
        made = {a[0] for a in read_answers(bench.place)}
        assert len(made) > 4
        for path in bench.place.glob("outcomes-*"):
            path.unlink()
        assert not made & seen
        seen |= made


def test_a_node_that_goes_away_ends_the_run_with_its_name(bench: Bench) -> None:
    bench.prepare()
    node = bench.world.nodes[1]
    bench.world.portal.call(node.stop)
    with pytest.raises(CommandFailed, match=f"load generator to .*:{node.port} failed: ") as found:
        bench.measure()
    assert found.value.code == "unreachable"


def test_what_is_no_hello_is_told_with_the_address(bench: Bench) -> None:
    node = bench.world.nodes[1]
    node.raw_first = b"\xff" * 4
    with pytest.raises(CommandFailed, match=f":{node.port} failed: a frame of 4294967295 bytes: ") as found:
        bench.prepare()
    assert found.value.code == "unreachable"


def test_another_network_is_told_in_the_nodes_own_words(bench: Bench) -> None:
    with pytest.raises(CommandFailed, match="another network"):
        bench.measure(network=bytes(32))


def test_a_large_request_goes_out_in_parts_while_answers_come_in(bench: Bench) -> None:
    bench.prepare()
    result = bench.measure(batch=MAX_POSTINGS, clients=4, warm_up_s=0.0, duration_s=0.05)
    assert result.completed_in_all == MAX_POSTINGS * result.answered >= 4 * MAX_POSTINGS


# --- which node a request goes to ----------------------------------------------------------------------------------


def nearest(bench: Bench, tail: bytes) -> FakeNode:
    """Who makes the link after this one."""
    nodes = {NodeId(node.id): node for node in bench.world.nodes}
    return nodes[closest(nodes, route_key(tail), 1)[0]]


@pytest.fixture
def tails(rng: random.Random) -> list[bytes]:
    return [rng.randbytes(32) for _ in range(20)]


def open_lines(bench: Bench, **changes: object) -> Lines:
    return CountedLines(bench.spec(**changes))


def test_a_line_towards_a_tail_leads_to_the_nearest_node_and_clients_share_its_lines(
    bench: Bench, tails: list[bytes]
) -> None:
    lines = open_lines(bench, connections=3)
    count = len(bench.world.nodes)
    for tail in tails:
        number = bench.world.nodes.index(nearest(bench, tail))
        assert [lines.towards(tail, client) for client in range(4)] == [
            number,
            number + count,
            number + 2 * count,
            number,
        ]
    lines.close()


def test_lines_to_two_addresses_of_one_node_are_lines_to_it(bench: Bench, tails: list[bytes]) -> None:
    for node in bench.world.nodes:
        node.said_id = bench.world.nodes[0].id
    lines = open_lines(bench)
    assert all([lines.towards(tail, client) for client in range(3)] == [0, 1, 0] for tail in tails)
    lines.close()


@pytest.mark.parametrize("said", [None, b"", b"i" * 19, b"i" * 21])
def test_with_a_node_that_says_no_id_each_client_has_its_own_line(
    bench: Bench, tails: list[bytes], said: bytes | None
) -> None:
    """None: the hello of an earlier release."""
    odd = bench.world.nodes[1]
    odd.said_id = said
    if said is None:
        odd.raw_first = frame(msgspec.msgpack.encode(["hello", wire.PROTOCOL_VERSION, odd.network]))
    lines = open_lines(bench, connections=2)
    assert all([lines.towards(tail, client) for client in range(5)] == [0, 1, 2, 3, 0] for tail in tails)
    lines.close()


def test_preparing_writes_the_tail_of_each_account(bench: Bench) -> None:
    def tips(count: int) -> list[bytes]:
        return [bench.world.ledger.accounts[account_name("bench-", number)].tip for number in range(count)]

    bench.prepare()
    opened = tips(6)
    assert read_tails(bench.place) == opened
    bench.measure()
    bench.prepare(accounts=8)
    assert read_tails(bench.place) == tips(8) and tips(6) != opened


def test_each_request_goes_to_who_makes_the_next_link_of_its_sender(bench: Bench) -> None:
    bench.prepare()
    asked: list[tuple[FakeNode, FakeNode]] = []

    def note(node: FakeNode, call: wire.CallBody) -> None:
        if isinstance(call, wire.Submit):
            sender = decode_request_untrusted(call.raw).sender
            asked.append((node, nearest(bench, bench.world.ledger.accounts[sender].tip)))

    for node in bench.world.nodes:
        node.fault = partial(note, node)
    bench.measure(clients=1)
    assert len(asked) > 20 and all(node is due for node, due in asked)
    asked.clear()
    (bench.place / TAILS_FILE).unlink()
    bench.measure(clients=1, route=False, run=b"run 2")
    assert {node.port for node, _ in asked} == {bench.world.nodes[0].port}, "a client stays with one node"
    assert {due.port for _, due in asked} == {node.port for node in bench.world.nodes}


def test_reads_go_to_the_clients_own_node(bench: Bench) -> None:
    bench.prepare()
    for node in bench.world.nodes:
        node.calls.clear()
    bench.measure(profile=Profile.READ, clients=1)
    assert bench.world.nodes[0].calls and not bench.world.nodes[1].calls


def test_an_older_answer_does_not_take_a_tail_back(bench: Bench) -> None:
    bench.prepare()
    spec = bench.spec()
    lines = open_lines(bench)
    measurement = Measurement(spec, lines, Ports(lambda: 0.0, lambda: 0.0, bench.news.append, lambda: None))
    flight = Flight(0, 2, wire.Submit(b"", b"", 1), bytes(32), 0.0)
    for height, newest in ((1, 1), (4, 4), (3, 4), (4, 4), (2, 4), (5, 5)):
        body = wire.Recorded(
            bytes(32),
            account_name("bench-", 2),
            Outcome.INSUFFICIENT_FUNDS,
            bytes([height]) * 32,
            height,
            0,
            0,
            b"",
            1,
            False,
        )
        measurement._recorded(flight, 0, body, 0.0)
        assert measurement._tails[2] == bytes([newest]) * 32
    assert measurement._tails[1] == bench.world.ledger.accounts[account_name("bench-", 1)].tip
    lines.close()


@pytest.mark.parametrize("route", [True, False])
def test_the_generators_are_told_what_was_asked_for(world: World, tmp_path: Path, route: bool) -> None:
    settings = msgspec.structs.replace(make_run().settings, route=route)
    run = _Bench(Output(False), settings, tmp_path, 1.0, None)
    assert run._spec(load_network(world.directory), "mint", ISSUER_KEY).route is route


def test_a_generator_that_says_much_before_it_ends_is_heard(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a pipe holds: it would wait for a reader, and the reader for its end."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nread spec\nhead -c 300000 /dev/zero | tr '\\0' x >&2\necho its last words >&2\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))

    async def main() -> None:
        with anyio.fail_after(60):
            async with Generator(bench.spec()) as generator:
                async for _ in generator.news():
                    raise AssertionError("it says nothing")

    with pytest.raises(CommandFailed, match=r"the load generator ended: x{1000,}its last words$"):
        anyio.run(main, backend="trio")


# --- what must hold ------------------------------------------------------------------------------------------------


def test_lost_and_changed_answers_and_what_was_paid_are_found_in_databases(tmp_path: Path) -> None:
    paths = [tmp_path / "one.db", tmp_path / "two.db"]
    banks = [Bank(file_database(path)) for path in paths]
    for bank in banks:
        bank.open("bench-a", "bench-b", "zoe")
        bank.pay("mint", ("bench-a", 100), ("zoe", 50))
        bank.pay("bench-a", ("bench-b", 30))
        bank.pay("zoe", ("bench-a", 5))
    assert paid_out(paths, "bench-") == [30, 30]
    answers = answers_of(banks[0].links)
    assert len(answers) == 6 and count_lost(paths, answers) == 0
    banks[0].pay("bench-b", ("bench-a", 7))
    assert paid_out(paths, "bench-") == [37, 30]
    assert count_lost(paths, answers_of(banks[0].links)) == 1, "the second node does not have the last one"
    assert count_lost(paths[:1], answers_of(banks[0].links)) == 0
    (first, link, outcome), *others = answers
    assert count_lost(paths, [(first, link, outcome + 1), *others]) == 1
    assert count_lost(paths, [(first, bytes(32), outcome), *others]) == 1
    for bank in banks:
        bank.conn.close()


def answers_of(links: list[Link]) -> list[Answered]:
    return [(request, link.hash, int(outcome)) for link in links for request, outcome in link.outcomes()]


@pytest.mark.parametrize(
    ("completed", "settled", "holds"),
    [(6, 0, True), (3, 0, True), (2, 0, False), (7, 0, False), (6, 1, True), (3, 1, False)],
)
async def test_what_is_unknown_may_have_left_and_no_more(
    world: World, tmp_path: Path, completed: int, settled: int, holds: bool
) -> None:
    """By the books of both nodes 6 left. A request of three postings is unknown, or was until it was settled."""
    place = tmp_path / "raw"
    place.mkdir()
    network = load_network(world.directory)
    paths = [world.directory / node.name / "node.db" for node in network.nodes]
    for path in paths:
        bank = Bank(file_database(path))
        bank.open("bench-a", "bench-b")
        bank.pay("mint", ("bench-a", 100))
        bank.pay("bench-a", ("bench-b", 6))
        bank.conn.close()
    run = _Bench(Output(False), make_run().settings, place, 1.0, None)
    spec = msgspec.structs.replace(run._spec(network, "mint", ISSUER_KEY), prefix="bench-", batch=3)
    results = [make_result(completed_in_all=0, unknown=0, unknown_settled=0)]
    results.append(make_result(completed_in_all=completed, unknown=1, unknown_settled=settled))
    async with Client([node.address for node in network.nodes], network.genesis.ca, network.id) as client:
        kept = await run._check(network, client, paths, [0, 0], results, spec)
    assert (kept.paid, kept.left, kept.unknown_amount) == (completed, 6, 3 * (1 - settled))
    assert kept.left_is_paid is kept.ok is holds


def test_databases_are_used_only_when_all_are_here(world: World) -> None:
    network = load_network(world.directory)
    assert databases(network) == []
    (world.directory / "node-1" / "node.db").touch()
    assert databases(network) == []
    (world.directory / "node-2" / "node.db").touch()
    assert databases(network) == [world.directory / "node-1" / "node.db", world.directory / "node-2" / "node.db"]


# --- what is said --------------------------------------------------------------------------------------------------


def test_percentiles_are_nearest_rank() -> None:
    rng = random.Random(1)
    for count in (1, 2, 3, 10, 99, 100, 101, 1000):
        values = sorted(rng.random() for _ in range(count))
        for share in (0.5, 0.9, 0.99, 0.999, 1.0):
            value = percentile(values, share)
            covered = sum(v <= value for v in values)
            below = sum(v < value for v in values)
            assert covered >= share * count - 1e-9 and below < share * count, (count, share)
    assert percentile([], 0.5) == 0.0


def make_result(**changes: object) -> Result:
    result = Result(
        requests=100,
        completed=100,
        window_s=2.0,
        client_cpu_s=0.01,
        client_bytes=50_000,
        rejected=1,
        reasons={"insufficient_funds": 1},
        unknown=2,
        unknown_settled=1,
        refused=0,
        retried=3,
        answered=110,
        completed_in_all=109,
        signed_before=500,
        signed_during=0,
        signing_s=0.1,
        most_in_flight=4,
        per_second=[40, 60],
        missed=0,
    )
    return msgspec.structs.replace(result, **changes)


def make_run(**kept: object) -> Measured:
    digests = {name: Digest(b"d" * 32, 3, 9, 1, (wire.AssetTotal("CZK", 0),)) for name in ("node-1", "node-2")}
    held = Kept(Comparison(digests, {}, None), 0.25, 220, 220, 0, 218, 218, 2, 2)
    before = Cost(10.0, 5.0, 1000, 50_000_000, 2000, 100, 200, 300)
    after = Cost(10.1, 5.05, 201_000, 60_000_000, 42_000, 150, 300, 400, 700)
    return Measured(
        Settings("uniform", 2, 2, 8, 50, 1, None, None, 8.0, 2.0, 2, 1, 1, True),
        [make_result(), make_result(reasons={"insufficient_funds": 1, "expired": 2}, rejected=3)],
        [float(n) for n in range(1, 201)],
        [1.0, 2.0, 3.0],
        [0, 7, 2],
        [40.0, 60.0],
        Sample({"node-1": before, "node-2": before}, True, 0.5),
        Sample({"node-1": after, "node-2": after}, True, 1.5),
        msgspec.structs.replace(held, **kept),
    )


def test_the_document_adds_generators_up_and_divides_costs_by_what_was_completed() -> None:
    found = document(make_run())
    assert (found["completed"], found["completed_per_s"], found["requests"]) == (200, 100.0, 200)
    assert (found["p50_ms"], found["p90_ms"], found["p99_ms"], found["p999_ms"], found["max_ms"]) == (
        100.0,
        180.0,
        198.0,
        200.0,
        200.0,
    )
    assert (found["rejected"], found["reasons"]) == (4, {"insufficient_funds": 2, "expired": 2})
    assert (found["unknown"], found["unknown_settled"], found["retried"]) == (4, 2, 6)
    assert found["cost"] == {
        "cpu_us_per_transfer": 1000.0,
        "main_thread_us_per_transfer": 500.0,
        "disk_bytes_per_transfer": 2000.0,
        "member_bytes_per_transfer": 400.0,
        "client_bytes_per_transfer": 500.0,
        "commits_per_transfer": 0.5,
        "commits_per_s_and_node": 25.0,
        "turns_per_transfer": 1.0,
        "links": 100,
        "transfers_per_link": 2.0,
        "read_p99_us_at_node": 700,
        "memory_mb": 60.0,
        "memory_grown_mb": 20.0,
    }
    assert (found["per_second"], found["memory_mb_each_s"]) == ([80, 120], [40.0, 60.0])
    assert (found["most_links_behind"], found["settle_s"], found["load_average_before"]) == (7, 0.25, 0.5)
    assert found["replication_lag_ms"] == {"p50": 2.0, "p99": 3.0, "samples": 3, "missed": 0}
    invariants = found["invariants"]
    assert invariants == {
        "ok": True,
        "replicas_equal": True,
        "money_kept": True,
        "answered": 220,
        "asked": 220,
        "lost": 0,
        "paid": 218,
        "left": 218,
        "unknown_amount": 2,
    }
    settings = found["settings"]
    assert isinstance(settings, dict) and settings["route"] is True
    client = found["client"]
    assert isinstance(client, dict)
    assert (client["cpu_us_per_transfer"], client["signed_before"], client["most_in_flight_of_one_source"]) == (
        100.0,
        1000,
        4,
    )


def test_costs_that_could_not_be_seen_are_null() -> None:
    run = make_run()
    blind = msgspec.structs.replace(run, after=msgspec.structs.replace(run.after, local=False))
    cost = document(blind)["cost"]
    assert isinstance(cost, dict)
    missing = {name for name, value in cost.items() if value is None}
    assert missing == {
        "cpu_us_per_transfer",
        "main_thread_us_per_transfer",
        "disk_bytes_per_transfer",
        "memory_mb",
        "memory_grown_mb",
    }
    short = msgspec.structs.replace(run, settings=msgspec.structs.replace(run.settings, warm_up_s=7.9))
    cost = document(short)["cost"]
    assert isinstance(cost, dict)
    assert cost["read_p99_us_at_node"] is None, "the balances of the preparation are among them"
    first, *others = run.after.costs
    silent = {first: msgspec.structs.replace(run.after.costs[first], read_p99_us=0)}
    busy = msgspec.structs.replace(run, after=msgspec.structs.replace(run.after, costs={**run.after.costs, **silent}))
    cost = document(busy)["cost"]
    assert isinstance(cost, dict)
    assert others and cost["read_p99_us_at_node"] is None, "the one that tells none may be the slowest"
    nothing = msgspec.structs.replace(run, results=[make_result(completed=0)], latencies=[])
    assert document(nothing)["completed_per_s"] == 0.0 and document(nothing)["max_ms"] == 0.0


def equal_but(**changes: object) -> Comparison:
    """The comparison of a sound run with something else in it."""
    return msgspec.structs.replace(make_run().kept.comparison, **changes)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({"lost": 1}, "1 lost"),
        ({"left": 217}, "217 left the paying accounts"),
        ({"left": 221}, "2 requests without an outcome may have paid 2 more"),
        ({"comparison": equal_but(missing={"node-3": "down"})}, "all replicas are equal"),
        (
            {"comparison": equal_but(digests={"node-1": Digest(b"d" * 32, 3, 9, 1, (wire.AssetTotal("CZK", 1),))})},
            "no money was made or lost",
        ),
    ],
)
def test_each_broken_promise_is_said(kept: dict[str, object], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_run().kept.ok
    run = make_run(**kept)
    assert not run.kept.ok
    show(Output(False), run)
    (broken,) = [line for line in capsys.readouterr().out.splitlines() if "NOT SO" in line]
    assert said in broken


def test_what_nobody_looked_at_is_not_claimed(capsys: pytest.CaptureFixture[str]) -> None:
    """The databases are elsewhere, and more was answered than is asked for."""
    run = make_run(asked=200, left=None)
    assert run.kept.ok
    found = document(run)["invariants"]
    assert isinstance(found, dict)
    assert (found["answered"], found["asked"], found["paid"], found["left"]) == (220, 200, 218, None)
    show(Output(False), run)
    said = [line for line in capsys.readouterr().out.splitlines() if " ok: " in line or "not looked at" in line]
    assert "  ok: the last 200 of 220 answered requests are on every node as answered, 0 lost" in said
    assert said[-1].startswith("  what left the paying accounts was not looked at"), said[-1]


async def test_of_nodes_whose_databases_are_elsewhere_the_last_answers_are_asked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.prepare()
    bench.measure()
    answers = read_answers(bench.place)
    monkeypatch.setattr("cli.bench_check.MAX_ASKED", 3)
    network = load_network(bench.world.directory)
    async with Client([node.address for node in network.nodes], network.genesis.ca, network.id) as client:
        assert await ask_lost(client, network, answers) == (3, 0)
        other = [*answers[:-1], (answers[-1][0], bytes(32), answers[-1][2])]
        assert await ask_lost(client, network, other) == (3, 1)


def test_the_table_names_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    show(Output(False), make_run())
    text = capsys.readouterr().out
    for words in (
        "uniform: 100 transfers a second",
        "p99 198.0 ms",
        "max 200.0 ms",
        "1000.0 us a transfer",
        "settled later",
    ):
        assert words in text, (words, text)
    assert "NOT SO" not in text


def test_links_that_were_not_seen_in_time_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()
    show(Output(False), run)
    assert "(3 links looked for)" in capsys.readouterr().out
    run = msgspec.structs.replace(run, results=[make_result(missed=1), make_result(missed=3)])
    show(Output(False), run)
    assert "(7 links looked for, 4 of them not seen within 5 s and not in these)" in capsys.readouterr().out
    assert document(run)["replication_lag_ms"] == {"p50": 2.0, "p99": 3.0, "samples": 3, "missed": 4}


def test_differences_add_all_nodes() -> None:
    run = make_run()
    assert differences(run.before, run.after, lambda c: c.turns) == 200


def test_a_stranger_with_the_number_of_a_node_that_ended_is_not_measured(world: World) -> None:
    network = load_network(world.directory)
    directory = world.directory / network.nodes[0].name
    (directory / LOCK_FILE).write_text(f"{os.getpid()}\n")
    assert largest_memory(network) == 0
    with DataLock(directory):
        assert largest_memory(network) > 0


def test_raw_floats_of_all_generators_are_merged_in_order(tmp_path: Path) -> None:
    for number, values in enumerate(([3.0, 1.0], [2.0], [])):
        (tmp_path / f"latencies-{number}").write_bytes(array("f", values).tobytes())
    assert read_floats(tmp_path, "latencies") == [1.0, 2.0, 3.0]
    assert read_floats(tmp_path, "lags") == []


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_picture_is_drawn(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"run.{ending}"
    draw(make_run(), path)
    assert path.stat().st_size > 5000
    if ending == "svg":
        text = "".join(ElementTree.fromstring(path.read_text()).itertext())
        assert "uniform: 100/s" in text and "p99" in text


# --- profiles of a node --------------------------------------------------------------------------------------------


def test_stacks_become_lines_and_boxes_as_wide_as_their_share() -> None:
    stacks: Stacks = Counter(
        {("main", "a.run", "b.step"): 3_000_000, ("main", "a.run"): 1_000_000, ("db", "c<x>"): 4_000_000}
    )
    assert collapsed(stacks) == "db;c<x> 4000\nmain;a.run 1000\nmain;a.run;b.step 3000\n"
    root = ElementTree.fromstring(flame_graph(stacks, "CPU & more"))
    space = "{http://www.w3.org/2000/svg}"
    boxes = {g.find(f"{space}title").text: g.find(f"{space}rect").attrib for g in root.iter(f"{space}g")}
    assert {name: float(box["width"]) for name, box in boxes.items()} == {
        "db: 4 ms, 50.0 %": 800.0,
        "c<x>: 4 ms, 50.0 %": 800.0,
        "main: 4 ms, 50.0 %": 800.0,
        "a.run: 4 ms, 50.0 %": 800.0,
        "b.step: 3 ms, 37.5 %": 600.0,
    }
    assert float(boxes["a.run: 4 ms, 50.0 %"]["x"]) == float(boxes["main: 4 ms, 50.0 %"]["x"]) == 800.0
    assert float(boxes["b.step: 3 ms, 37.5 %"]["y"]) < float(boxes["a.run: 4 ms, 50.0 %"]["y"]), "callees are on top"
    assert "CPU & more" in "".join(root.itertext())


def test_a_stack_is_outermost_first_and_cpu_is_counted_by_thread() -> None:
    stack = stack_of(sys._getframe())
    assert stack[-1] == "test_bench.test_a_stack_is_outermost_first_and_cpu_is_counted_by_thread"
    before = cpu_ns(threading.get_native_id())
    while cpu_ns(threading.get_native_id()) == before:
        hashlib.sha256(bytes(100_000)).digest()
    with pytest.raises(FileNotFoundError):
        cpu_ns(2**30)


def test_the_ending_of_a_profile_says_what_it_is() -> None:
    for name in ("a.prof", "a.svg", "a.txt"):
        check_profile_file(Path(name))
    with pytest.raises(LocalMisuse, match=r"must end in \.prof, \.svg, \.txt"):
        check_profile_file(Path("a.html"))


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("uniform", "--batch", "9000"), "a request holds 1 to 8190"),
        (("read", "--batch", "2"), "one at a time"),
        (("pool", "--accounts", "5", "--sources", "6"), "6 sources, but only 5 accounts"),
        (("uniform", "--profile-out", "x.html"), "must end in"),
        (("uniform", "--plot", "x.gif"), "must end in"),
        (("rush",), "uniform"),
        (
            ("uniform", "--sources", "16"),
            "--sources 16 is for the profile pool, and this is uniform: leave --sources out",
        ),
        (("bulk", "--choice", "two-choices"), "--choice two-choices is for the profile pool, and this is bulk: "),
        (("read", "--max-failures", "0"), "--max-failures 0 is for the profile pool, and this is read: "),
        (("read", "--route"), "--route is for transfers, and this is read: leave --route out"),
        (("read", "--no-route"), "--no-route is for transfers, and this is read: leave --no-route out"),
        (("pool", "--accounts", "10"), "16 sources, but only 10 accounts"),
    ],
)
def test_what_cannot_be_measured_is_usage_before_anything_starts(cli: Cli, words: tuple[str, ...], said: str) -> None:
    result = cli.run("bench", *words, code=2)
    assert said in result.stderr


def test_a_running_network_is_not_profiled_and_needs_a_known_issuer(world: World) -> None:
    path = str(world.directory)
    for option in ("--nodes", "--k"):
        told = world.run("bench", "uniform", "--network", path, option, "3", code=2).stderr
        assert f"{option} 3 is for a network that this command starts, and --network has its own: " in told
    assert (
        "leave --network out"
        in world.run("bench", "uniform", "--network", path, "--profile-out", "x.svg", code=2).stderr
    )
    told = world.run("bench", "uniform", "--network", path, "--issuer", "alice", code=2).stderr
    assert "whose key is in the wallet" in told and "mint" in told
    world.wallet.discard("mint")
    assert "whose key is in the wallet" in world.run("bench", "uniform", "--network", path, code=2).stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("uniform",), {"sources": None, "choice": None, "route": True, "processes": 1}),
        (
            ("uniform", "--no-route", "--processes", "9"),
            {"sources": None, "choice": None, "route": False, "processes": 2},
        ),
        (("pool", "--sources", "3"), {"sources": 3, "choice": "least-active", "route": True, "processes": 1}),
        (("pool", "--sources", "1", "--choice", "dedicated"), {"sources": 1, "choice": "dedicated", "route": True}),
        (("read",), {"sources": None, "choice": None, "route": None, "processes": 1}),
    ],
)
def test_the_settings_are_what_was_done(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: dict[str, object]
) -> None:
    async def run(self: _Bench, *_: object) -> Measured:
        return msgspec.structs.replace(make_run(), settings=self._settings)

    monkeypatch.setattr("cli.bench._Bench.run", run)
    found = cli.json("bench", *words, "--clients", "2")
    assert found["settings"] == found["settings"] | said | {"nodes": 3, "k": 3, "profile": words[0]}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--duration", "nan"), "'nan' is not a number of seconds"),
        (("--timeout", "nan"), "'nan' is not a number of seconds"),
        (("--plot", "nowhere/x.png"), "there is no directory nowhere"),
        (("--profile-out", "nowhere/x.svg"), "there is no directory nowhere"),
        (("--issuer", "mint"), "--issuer 'mint' is for --network DIR (HOPCHAIN_NETWORK names none here): "),
    ],
)
def test_what_would_fail_at_the_end_is_refused_before_anything_runs(
    cli: Cli, words: tuple[str, ...], said: str
) -> None:
    told = cli.run("bench", "uniform", *words, code=2).stderr
    assert said in told and told.count("\n") == 1

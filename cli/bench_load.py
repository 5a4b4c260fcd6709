"""The load generator of `hopchain bench`: a process of its own, `python -m cli.bench_load`.

It reads a `Spec` as JSON from the first line of standard input and prints one JSON `News` a line. Two jobs:

* `prepare`: open the accounts that are missing and give money to those that have too little.
* `measure`: sign requests ahead, say `ready`, wait for a line, then keep `clients` requests in flight, one for each
  client: an answer is followed by that client's next request at once. Says `measuring` after the warm-up and
  `measured` at the end of the window; then waits for all answers, settles what is unknown, and says `done`.

Beside transfers each node is asked for BALANCES_PER_S balances of any accounts, on connections of their own: behind a
balance that waits for a commit a node reads nothing of the same connection. How long a node that is busy takes for one,
it counts itself.

Latency is from handing a request to the connection until its final answer, over all attempts. A request that is
answered `not_started` is sent again, and one answered `unknown` too, at the end: both execute at most once.
"""

import heapq
import math
import random
import sys
import time
from array import array
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from chain.errors import HopchainError
from chain.request import HASH_BYTES
from cli.bench_prepare import Preparation
from cli.bench_profiles import Draw, Profile, make_pool
from cli.bench_signer import Signer
from cli.bench_spec import (
    AGAIN_S,
    AMOUNT,
    LAST_AGAIN_S,
    PROGRESS_S,
    SHOWN_S,
    TAILS_FILE,
    Job,
    News,
    Ports,
    Result,
    Spec,
    account_name,
    submit_call,
    tell,
)
from cli.bench_wire import Lines
from cli.output import describe
from hopchain import wire
from hopchain.pools import Ended, SourcePool

PROBE_EVERY_S: Final = 0.05  # one answered link is looked for at another node
BALANCES_PER_S: Final = 50  # of each node beside transfers: enough for a percentile, too few to slow them
BALANCES_IN_FLIGHT: Final = 100  # of each node: one that is stuck is not asked for ever more
PATIENCE_S: Final = 5.0  # beyond a request's own time-out, for an answer
OUTCOME_BYTES: Final = 32 + 32 + 1  # of one record of the outcomes file: request id, link hash, outcome


class Flight(msgspec.Struct):
    """A call of one client that has no final answer yet."""

    client: int
    sender: int
    body: wire.Submit | wire.AskBalance
    request_id: bytes
    begun: float
    tries: int = 1
    doubted: bool = False  # it was answered `unknown` before, or not at all


class Probe(msgspec.Struct, frozen=True):
    """A question to another node for a link that was just answered."""

    begun: float


class Balances:
    """Those that are asked for beside transfers, of accounts drawn at random; the nodes take turns."""

    def __init__(self, spec: Spec, lines: Lines) -> None:
        self._spec = spec
        self._lines = lines
        self._rng = random.Random(f"{spec.seed}/{spec.worker}/balances")
        self._every_s = spec.workers / (BALANCES_PER_S * len(lines.lines))
        self._waiting = [0] * len(lines.lines)  # without an answer yet
        self._turn = 0
        self.at = math.inf  # when the next one is due

    def ask(self, now: float) -> None:
        """The one that is due."""
        self.at = max(self.at + self._every_s, now)  # what is late is not made up for
        line = self._turn % len(self._lines.lines)
        self._turn += 1
        if self._waiting[line] < BALANCES_IN_FLIGHT:
            name = account_name(self._spec.prefix, self._rng.randrange(self._spec.accounts))
            self._lines.call(line, wire.AskBalance(name))
            self._waiting[line] += 1
        for answered, _, _ in self._lines.wait(0):
            self._waiting[answered] -= 1


class Measurement:
    """One run."""

    def __init__(self, spec: Spec, lines: Lines, ports: Ports, balances: Balances | None = None) -> None:
        self._spec = spec
        self._lines = lines
        self._ports = ports
        self._balances = balances
        self._rng = random.Random(f"{spec.seed}/{spec.worker}")
        self._pool: SourcePool | None = None
        if spec.profile is Profile.POOL:
            self._pool = make_pool(spec.sources, spec.choice, self._rng, spec.max_failures, spec.first_client)
        self._draw = Draw(spec.profile, spec.accounts, self._rng, self._pool)
        self._signer = Signer(spec, self._draw)
        self._flights: dict[int, Flight] = {}
        self._probes: dict[int, Probe] = {}
        self._again: list[tuple[float, int, Flight]] = []
        self._unknown: list[Flight] = []
        self._latencies = array("f")
        self._lags = array("f")
        self._outcomes = bytearray()
        self._rejected: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._second: list[float] = []
        self._per_second = [0] * math.ceil(round(spec.warm_up_s + spec.duration_s, 3))
        self._told = 0  # completed at the last progress
        self._told_at = self._tell_at = 0.0
        self._begun = self._from = self._until = 0.0
        self._probed = 0.0
        self._most_in_flight = 0
        routed = spec.route and spec.profile is not Profile.READ
        self._tails = read_tails(Path(spec.place)) if routed else []
        self._heights = [-1] * len(self._tails)  # of these links; all that this run makes are newer

    def run(self) -> None:
        """Sign, wait to be told, measure, settle, say what came out."""
        begin = self._ports.clock()
        if self._spec.profile is not Profile.READ:
            self._signer.sign_ahead(1 / self._spec.workers)
        signing_s = self._ports.clock() - begin
        self._ports.tell(News("ready", total=self._signer.before))
        self._ports.wait_for_go()
        self._begun = begun = self._ports.clock()
        self._from, self._until = begun + self._spec.warm_up_s, begun + self._spec.warm_up_s + self._spec.duration_s
        self._told_at, self._tell_at = begun, begun + PROGRESS_S
        if self._balances is not None:
            self._balances.at = begun
        for client in range(self._spec.clients):
            self._next(client)
        self._until_time(self._from)
        self._ports.tell(News("measuring"))
        cpu_s, moved, during = self._ports.cpu(), self._lines.bytes_moved, self._signer.during
        self._until_time(self._until)
        cpu_s, moved = self._ports.cpu() - cpu_s, self._lines.bytes_moved - moved
        self._ports.tell(News("measured"))
        self._drain()
        unknown = len(self._unknown)
        self._settle()
        place = Path(self._spec.place)
        (place / f"latencies-{self._spec.worker}").write_bytes(self._latencies.tobytes())
        (place / f"lags-{self._spec.worker}").write_bytes(self._lags.tobytes())
        (place / f"outcomes-{self._spec.worker}").write_bytes(self._outcomes)
        result = Result(
            requests=len(self._latencies),
            completed=self._counts["completed"],
            window_s=self._until - self._from,
            client_cpu_s=cpu_s,
            client_bytes=moved,
            rejected=self._rejected.total(),
            reasons=dict(self._rejected),
            unknown=unknown,
            unknown_settled=unknown - len(self._unknown),
            refused=self._counts["refused"],
            retried=self._counts["retried"],
            answered=len(self._outcomes) // OUTCOME_BYTES,
            completed_in_all=self._counts["completed_in_all"],
            signed_before=self._signer.before,
            signed_during=self._signer.during - during,
            signing_s=signing_s,
            most_in_flight=self._most_in_flight,
            per_second=self._per_second,
            missed=self._counts["missed"] + len(self._probes),
        )
        self._ports.tell(News("done", completed=result.completed, result=result))

    # --- traffic ---

    def _next(self, client: int) -> None:
        """The client's next call."""
        spec = self._spec
        now = self._ports.clock()
        if spec.profile is Profile.READ:
            name = account_name(spec.prefix, self._draw.any())
            self._send(Flight(client, -1, wire.AskBalance(name), b"", now))
            return
        sender, signed = self._signer.next(client)
        self._send(Flight(client, sender, submit_call(signed, spec.timeout_s), signed.request_id, now))
        if self._pool is not None:
            self._most_in_flight = max(self._most_in_flight, self._pool.in_flight[str(sender)])

    def _send(self, flight: Flight) -> None:
        first = self._spec.first_client + flight.client
        if self._tails and flight.sender >= 0:
            first = self._lines.towards(self._tails[flight.sender], first)
        line = (first + flight.tries - 1) % len(self._lines.lines)  # another node after a failure
        self._flights[self._lines.call(line, flight.body)] = flight

    def _until_time(self, end: float) -> None:
        """Serve until a moment, and tell once a second how it goes, also when nothing does."""
        while (now := self._ports.clock()) < end:
            if now >= self._tell_at:
                self._tell_progress(now)
            again_at = self._again[0][0] if self._again else math.inf
            balance_at = self._balances.at if self._balances is not None else math.inf
            self._serve(min(end, self._tell_at, again_at, balance_at, now + 0.1) - now)
            if self._balances is not None and balance_at <= self._ports.clock():
                self._balances.ask(self._ports.clock())

    def _tell_progress(self, now: float) -> None:
        rate = (self._counts["completed_in_all"] - self._told) / (now - self._told_at)
        recent = sorted(self._second)
        self._second.clear()
        p50, p99 = (recent[len(recent) * share // 100] if recent else None for share in (50, 99))
        self._ports.tell(News("progress", completed=round(rate), p50_ms=p50, p99_ms=p99))
        self._told, self._told_at = self._counts["completed_in_all"], now
        self._tell_at = self._begun + PROGRESS_S * ((now - self._begun) // PROGRESS_S + 1)

    def _serve(self, timeout_s: float) -> None:
        replies = self._lines.wait(timeout_s)
        now = self._ports.clock()
        while self._again and self._again[0][0] <= now:
            self._send(heapq.heappop(self._again)[2])
        for line, number, body in replies:
            flight = self._flights.pop(number, None)
            if flight is not None:
                self._answered(flight, line, body, now)
                continue
            probe = self._probes.pop(number, None)  # else a late answer to what was given up
            if probe is not None and isinstance(body, wire.Balance):
                self._lags.append((now - probe.begun) * 1000)
            elif probe is not None:
                self._counts["missed"] += 1

    def _answered(self, flight: Flight, line: int, body: wire.ReplyBody, now: float) -> None:
        completed = 0
        match body:
            case wire.Balance():
                completed = 1
            case wire.Recorded():
                completed = self._recorded(flight, line, body, now)
            case wire.NotStarted():
                self._counts["retried"] += 1
                flight.tries += 1
                pause = min(AGAIN_S * 2**flight.tries, LAST_AGAIN_S)
                heapq.heappush(self._again, (now + pause, id(flight), flight))
                return
            case _ if flight.doubted or isinstance(body, wire.Unknown):  # refused now; somebody may have done it before
                self._doubt(flight)
            case wire.Refused():
                self._counts["refused"] += 1
                self._rejected[body.code] += 1
                self._end(flight, Ended.FAILED)
            case _:
                self._rejected[type(body).__name__] += 1
        self._counts["completed_in_all"] += completed
        if now < self._until:
            self._per_second[min(int(now - self._begun), len(self._per_second) - 1)] += completed
        if completed:
            took_ms = (now - flight.begun) * 1000
            self._second.append(took_ms)
            if self._from <= now < self._until:
                self._latencies.append(took_ms)
                self._counts["completed"] += completed
        if now < self._until:
            self._next(flight.client)

    def _recorded(self, flight: Flight, line: int, body: wire.Recorded, now: float) -> int:
        """Note the outcome; how many transfers it completed."""
        self._outcomes += body.request_id + body.link_hash + bytes([body.outcome])
        if self._tails and body.height > self._heights[flight.sender]:  # answers of two nodes come in any order
            self._tails[flight.sender], self._heights[flight.sender] = body.link_hash, body.height
        if not body.completed:
            self._rejected[body.outcome.name.lower()] += 1
            self._end(flight, Ended.FAILED)
            return 0
        self._end(flight, Ended.COMPLETED)
        if now - self._probed >= PROBE_EVERY_S and len(self._lines.lines) > 1 and self._from <= now < self._until:
            self._probed = now
            other = (line + 1) % len(self._lines.lines)
            question = wire.AskBalance(body.account, False, body.height, int(SHOWN_S * 1000))
            self._probes[self._lines.call(other, question)] = Probe(now)
        return self._spec.batch

    def _doubt(self, flight: Flight) -> None:
        """It may be executed: only the record of it tells."""
        self._unknown.append(flight)
        self._end(flight, Ended.UNKNOWN)

    def _end(self, flight: Flight, how: Ended) -> None:
        """Tell the pool; a flight that is unknown for the second time is as unknown as before."""
        if self._pool is not None and not (flight.doubted and how is Ended.UNKNOWN):
            tell_pool = self._pool.settled if flight.doubted else self._pool.ended
            tell_pool(str(flight.sender), self._spec.batch * AMOUNT, how)
        flight.doubted = how is Ended.UNKNOWN

    # --- the end ---

    def _drain(self) -> None:
        """Wait for the answers of everything that was sent."""
        deadline = self._ports.clock() + self._spec.timeout_s + PATIENCE_S
        while (self._flights or self._again or self._probes) and self._ports.clock() < deadline:
            self._serve(0.1)
        for flight in [*self._flights.values(), *(flight for _, _, flight in self._again)]:
            self._doubt(flight)
        self._flights.clear()
        self._again.clear()

    def _settle(self) -> None:
        """Send what is unknown once more: it is answered from the record, or executed now, once."""
        waiting, self._unknown = self._unknown, []
        if not waiting:
            return
        for flight in waiting:
            flight.tries += 1
            self._send(flight)
        self._drain()


def read_tails(place: Path) -> list[bytes]:
    """The tail hash of each account before the run."""
    raw = (place / TAILS_FILE).read_bytes()
    return [raw[at : at + HASH_BYTES] for at in range(0, len(raw), HASH_BYTES)]


def _wait_for_go() -> None:
    sys.stdin.buffer.readline()


def main() -> None:
    """Do the job that standard input names. A failure is told as news, with exit code 1."""
    ports = Ports(time.perf_counter, time.process_time, tell, _wait_for_go)
    try:
        spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=Spec)
        lines = Lines(spec.nodes, spec.ca, spec.network, spec.connections)
        try:
            if spec.job is Job.PREPARE:
                Preparation(spec, lines, ports).run()
                tell(News("done"))
            elif spec.profile is Profile.READ:
                Measurement(spec, lines, ports).run()
            else:
                with closing(Lines(spec.nodes, spec.ca, spec.network)) as beside:
                    Measurement(spec, lines, ports, Balances(spec, beside)).run()
        finally:
            lines.close()
    except HopchainError as error:
        _, code, text = describe(error)
        tell(News("failed", error=code, message=text))
        sys.exit(1)


if __name__ == "__main__":
    main()

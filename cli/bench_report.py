"""What a benchmark says: the document of `--json` and the table."""

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from cli.bench_cluster import Sample, differences
from cli.bench_spec import SHOWN_S, Result, Settings
from cli.output import JsonValue, Output
from cli.verify import Comparison
from hopchain.pools import Outflow
from node.status import TIMED_S

PERCENTILES: Final = (("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99), ("p999_ms", 0.999))


class Kept(msgspec.Struct, frozen=True):
    """The invariants at the end. `answered`: requests with a final answer; `asked`: how many of them were looked for at
    every node, `lost`: how many of those some node does not have exactly as answered; `paid`: minor units by the
    answers, `left`: by the nodes' books, None where nobody looked; `unknown`: requests that have no outcome yet,
    `unknown_amount`: what they add up to; `settle_s`: until all replicas were equal."""

    comparison: Comparison
    settle_s: float
    answered: int
    asked: int
    lost: int
    paid: int
    left: int | None
    unknown: int
    unknown_amount: int

    @property
    def ok(self) -> bool:
        """True when all of them hold."""
        return self.comparison.equal and self.comparison.money_kept and not self.lost and self.left_is_paid

    @property
    def left_is_paid(self) -> bool:
        """False when the books say something else than the answers, and it is not what the unknown ones may have
        paid."""
        return self.left is None or Outflow(self.paid, self.left, self.unknown, self.unknown_amount).ok


class Measured(msgspec.Struct, frozen=True):
    """One run, with everything that is reported about it. Latencies and lags in ms, ascending."""

    settings: Settings
    results: Sequence[Result]
    latencies: Sequence[float]
    lags: Sequence[float]
    behind: Sequence[int]  # links between the node that has most and the one that has least, once a second
    memory_mb: Sequence[float]  # of the largest node, once a second; 0 when it is not on this machine
    before: Sample
    after: Sample
    kept: Kept

    @property
    def completed(self) -> int:
        """Transfers, or reads, that were completed in the window."""
        return sum(r.completed for r in self.results)

    @property
    def per_s(self) -> float:
        """Completed a second."""
        return self.completed / self.settings.duration_s

    @property
    def per_second(self) -> list[int]:
        """Completed in each second since the start, by all generators."""
        return [sum(counts) for counts in zip(*(r.per_second for r in self.results), strict=True)]


def percentile(ascending: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values do not exceed (nearest rank); 0 of none."""
    if not ascending:
        return 0.0
    return ascending[min(len(ascending) - 1, max(0, -int(-share * len(ascending) // 1) - 1))]


def read_floats(place: Path, name: str) -> list[float]:
    """All values that the generators left in `NAME-N` files, ascending."""
    values = array("f")
    for path in sorted(place.glob(f"{name}-*")):
        values.frombytes(path.read_bytes())
    return sorted(values)


def document(run: Measured) -> dict[str, JsonValue]:
    """The keys of `--json` (docs/cli-json.md)."""
    settings, results = run.settings, run.results
    reasons: dict[str, int] = {}
    for result in results:
        for name, count in result.reasons.items():
            reasons[name] = reasons.get(name, 0) + count
    latency: dict[str, JsonValue] = {name: _ms(percentile(run.latencies, share)) for name, share in PERCENTILES}
    kept = run.kept
    return {
        "profile": settings.profile,
        "completed_per_s": round(run.per_s, 1),
        "completed": run.completed,
        "requests": sum(r.requests for r in results),
        **latency,
        "max_ms": _ms(run.latencies[-1] if run.latencies else 0.0),
        "rejected": sum(r.rejected for r in results),
        "reasons": reasons,
        "unknown": sum(r.unknown for r in results),
        "unknown_settled": sum(r.unknown_settled for r in results),
        "retried": sum(r.retried for r in results),
        "cost": costs(run),
        "replication_lag_ms": {
            "p50": _ms(percentile(run.lags, 0.5)),
            "p99": _ms(percentile(run.lags, 0.99)),
            "samples": len(run.lags),
            "missed": sum(r.missed for r in results),
        },
        "most_links_behind": max(run.behind, default=0),
        "settle_s": round(kept.settle_s, 3),
        "invariants": {
            "ok": kept.ok,
            "replicas_equal": kept.comparison.equal,
            "money_kept": kept.comparison.money_kept,
            "answered": kept.answered,
            "asked": kept.asked,
            "lost": kept.lost,
            "paid": kept.paid,
            "left": kept.left,
            "unknown_amount": kept.unknown_amount,
        },
        "client": {
            "cpu_s": round(sum(r.client_cpu_s for r in results), 3),
            "cpu_us_per_transfer": _per(sum(r.client_cpu_s for r in results) * 1e6, run.completed),
            "signed_before": sum(r.signed_before for r in results),
            "signed_during": sum(r.signed_during for r in results),
            "most_in_flight_of_one_source": max((r.most_in_flight for r in results), default=0),
        },
        "per_second": run.per_second,
        "memory_mb_each_s": run.memory_mb,
        "load_average_before": run.before.load_average,
        "settings": {name: getattr(settings, name) for name in settings.__struct_fields__},
    }


def costs(run: Measured) -> dict[str, JsonValue]:
    """What the nodes used in the window for each completed transfer; None where it could not be seen."""
    before, after, done = run.before, run.after, run.completed
    links = differences(before, after, lambda c: c.links) / max(1, len(before.costs))
    local = before.local and after.local
    commits = differences(before, after, lambda c: c.commits)
    reads = [c.read_p99_us for c in after.costs.values()]
    reads_us = max(reads) if all(reads) else 0  # a node that tells none may be the slowest
    if run.settings.warm_up_s + run.settings.duration_s < TIMED_S:
        reads_us = 0  # balances of the preparation are among them, when the nodes had nothing else to do
    return {
        "cpu_us_per_transfer": _per(differences(before, after, lambda c: c.cpu_s) * 1e6, done) if local else None,
        "main_thread_us_per_transfer": _per(differences(before, after, lambda c: c.main_s) * 1e6, done)
        if local
        else None,
        "disk_bytes_per_transfer": _per(differences(before, after, lambda c: c.disk_bytes), done) if local else None,
        "member_bytes_per_transfer": _per(differences(before, after, lambda c: c.net_bytes), done),
        "client_bytes_per_transfer": _per(sum(r.client_bytes for r in run.results), done),
        "commits_per_transfer": _per(commits, done),
        "commits_per_s_and_node": _per(commits / max(1, len(before.costs)), run.settings.duration_s),
        "turns_per_transfer": _per(differences(before, after, lambda c: c.turns), done),
        "links": round(links),
        "transfers_per_link": _per(done, links),
        "read_p99_us_at_node": reads_us or None,
        "memory_mb": round(max(c.memory for c in after.costs.values()) / 1e6, 1) if local else None,
        "memory_grown_mb": round(differences(before, after, lambda c: c.memory) / 1e6, 1) if local else None,
    }


def show(out: Output, run: Measured) -> None:
    """The table for people."""
    doc = document(run)
    cost = costs(run)
    settings, kept = run.settings, run.kept
    missed = sum(r.missed for r in run.results)
    looked = f"{len(run.lags) + missed} links looked for"
    if missed:
        looked += f", {missed} of them not seen within {SHOWN_S:g} s and not in these"
    what = "reads" if settings.profile == "read" else "transfers"
    out.say(
        f"{settings.profile}: {run.per_s:,.0f} {what} a second  ({settings.nodes} nodes, k = {settings.k}, "
        f"{settings.clients} clients, {settings.accounts:,} accounts, {settings.batch} a request)",
        bold=True,
    )
    shown = ", ".join(f"{name.removesuffix('_ms')} {doc[name]} ms" for name in (*dict(PERCENTILES), "max_ms"))
    out.fields(
        [
            ("latency", shown),
            ("rejected", f"{doc['rejected']} {doc['reasons'] or ''}".rstrip()),
            ("unknown", f"{doc['unknown']} ({doc['unknown_settled']} settled later), retried {doc['retried']}"),
            (
                "CPU of the nodes",
                f"{cost['cpu_us_per_transfer']} us a transfer, all nodes together; main threads {cost['main_thread_us_per_transfer']}",
            ),
            (
                "CPU of the clients",
                f"{round(1e6 * sum(r.client_cpu_s for r in run.results) / max(1, run.completed), 1)} us a transfer",
            ),
            ("links", f"{cost['links']}, {cost['transfers_per_link']} transfers in each"),
            (
                "commits (fsyncs)",
                f"{cost['commits_per_transfer']} a transfer, {cost['commits_per_s_and_node']} a second and node",
            ),
            (
                "bytes a transfer",
                f"{cost['member_bytes_per_transfer']} between nodes, {cost['client_bytes_per_transfer']} with clients, {cost['disk_bytes_per_transfer']} to disk",
            ),
            (
                "replication lag",
                f"p50 {_ms(percentile(run.lags, 0.5))} ms, p99 {_ms(percentile(run.lags, 0.99))} ms ({looked}), at most {doc['most_links_behind']} links behind",
            ),
            ("memory of a node", f"{cost['memory_mb']} MB, all grew by {cost['memory_grown_mb']} MB"),
            ("load before", f"{run.before.load_average}"),
        ]
    )
    last = "" if kept.asked == kept.answered else f"the last {kept.asked} of "
    left = "what left the paying accounts was not looked at: the databases are not all on this machine"
    if kept.left is not None:
        left = f"{kept.left} left the paying accounts, {kept.paid} was answered as paid"
        if kept.unknown:
            left += f", and {kept.unknown} requests without an outcome may have paid {kept.unknown_amount} more"
    for text, holds in (
        (f"all replicas are equal ({kept.settle_s:.1f} s after the last answer)", kept.comparison.equal),
        ("no money was made or lost", kept.comparison.money_kept),
        (f"{last}{kept.answered} answered requests are on every node as answered, {kept.lost} lost", not kept.lost),
        (left, None if kept.left is None else kept.left_is_paid),
    ):
        if holds is None:
            out.say(f"  {text}")
        else:
            out.say(f"  {'ok' if holds else 'NOT SO'}: {text}", colour="green" if holds else "red")


def _per(value: float, count: float) -> float | None:
    return round(value / count, 2) if count else None


def _ms(value: float) -> float:
    return round(value, 2)

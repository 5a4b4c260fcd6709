"""Does a hot sender get faster under load? `hopchain bench hot-sender` with more and more clients, beside PostgreSQL.

    python bench/clients.py             about two minutes; --json for the numbers alone
    python bench/clients.py --keep docs/performance/clients.json     and then bench/tables.py

One account pays all. PostgreSQL is bench/postgres.py's fastest variant for it, a plain function, with the clients of
the first row: with more it waits longer for the one row that all of them lock, and is no faster.
"""

import argparse
import json
import sys
from typing import Any, Final

import compare
import kept
import postgres
import text

PROFILE: Final = "hot-sender"
PEER: Final = "plain"
CLIENTS: Final = (32, 256, 2048)
COSTS: Final = ("transfers_per_link", "cpu_us_per_transfer")


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """PostgreSQL's row, then one of hopchain for each of CLIENTS."""
    with postgres.cluster() as cluster, cluster.running() as primary:
        peer = postgres.measure(
            primary,
            PEER,
            PROFILE,
            clients=CLIENTS[0],
            accounts=asked.accounts,
            warm_up_s=asked.warm_up,
            duration_s=asked.duration,
        )
    if not peer["ok"]:
        sys.exit("PostgreSQL's ledger does not add up: nothing to compare with")
    rows = []
    for clients in CLIENTS:
        one = argparse.Namespace(**{**vars(asked), "clients": clients})
        rows.append({"clients": clients, **row(compare.measure_hopchain(PROFILE, one))})
    return {"postgres": kept.picked(peer, "variant", "completed_per_s"), "hopchain": rows}


def row(document: dict[str, Any]) -> dict[str, Any]:
    """Of a document of `hopchain bench`, what is shown."""
    return {**kept.picked(document, "completed_per_s", "p50_ms", "p99_ms"), **kept.picked(document["cost"], *COSTS)}


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    peer = found["postgres"]["completed_per_s"]
    lines = [
        "| clients | completed/s | beside PostgreSQL | transfers a link | p50, p99, ms | CPU us a transfer |",
        "|---|---|---|---|---|---|",
    ]
    for one in found["hopchain"]:
        lines.append(
            f"| {one['clients']:,} | {one['completed_per_s']:,.0f} | {one['completed_per_s'] / max(peer, 0.1):.1f} x "
            f"| {one['transfers_per_link']:,.0f} | {one['p50_ms']:.0f}, {one['p99_ms']:.0f} "
            f"| {one['cpu_us_per_transfer']:,.0f} |"
        )
    return "\n".join(lines)


def peer(results: text.Kept) -> str:
    """PostgreSQL's rate, which stands beside the table."""
    rate = results["clients"]["postgres"]["completed_per_s"]
    return f"{text.commit('clients', results)}; PostgreSQL's plain function with {CLIENTS[0]} clients: {text.whole(rate)}/s"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accounts", type=int, default=10_000)
    parser.add_argument("--warm-up", type=int, default=3, metavar="SECONDS")
    parser.add_argument("--duration", type=int, default=8, metavar="SECONDS")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    kept.options(parser)
    asked = parser.parse_args()
    kept.prepare(parser, asked)
    found = measure(asked)
    kept.write(asked, found)
    sys.stdout.write((json.dumps(found, indent=2) if asked.json else table(found)) + "\n")


if __name__ == "__main__":
    main()

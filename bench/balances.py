"""What does a balance cost that is not in a node's memory? `hopchain bench read` with few accounts and with more than a
node keeps.

    python bench/balances.py            some minutes, most of them to open the accounts
    python bench/balances.py --keep docs/performance/balances.json       and then bench/tables.py

With twice as many accounts as `node.balances.MAX_BALANCES`, all equally likely, every second balance is read from
SQLite, and takes the place of another one.
"""

import argparse
import json
import sys
from typing import Any, Final

import compare
import kept
import text

from node.balances import MAX_BALANCES

PROFILE: Final = "read"
CLIENTS: Final = 32
ACCOUNTS: Final = (10_000, 2 * MAX_BALANCES)


def row(document: dict[str, Any]) -> dict[str, Any]:
    """Of a document of `hopchain bench`, what is shown."""
    shown = kept.picked(document, "completed_per_s", "p99_ms")
    return {
        "accounts": document["settings"]["accounts"],
        **shown,
        **kept.picked(document["cost"], "read_p99_us_at_node"),
    }


def to_keep(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Of all runs, what docs/performance.md shows."""
    return {"in_memory": MAX_BALANCES, "rows": [row(document) for document in documents]}


def beyond_memory(results: text.Kept) -> str:
    """What reads take where a node does not have all balances in memory."""
    found = results["balances"]
    few, many = found["rows"]
    p99s = []
    for row in (many, few):
        took = row["read_p99_us_at_node"]
        p99s.append(f"{took / 1000:.1f} ms" if took else "no time, for too few")
    return (
        f"With {many['accounts']:,} accounts, asked at random, only {found['in_memory'] / many['accounts'] * 100:.0f} % of the "
        f"balances are in memory, and the others are read from SQLite: p99 {p99s[0]} at the node and "
        f"{text.whole(many['completed_per_s'])} reads/s, beside {p99s[1]} and {text.whole(few['completed_per_s'])} with {few['accounts']:,} "
        f"(`python bench/balances.py`, {text.commit('balances', results)})."
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warm-up", type=int, default=3, metavar="SECONDS")
    parser.add_argument("--duration", type=int, default=10, metavar="SECONDS")
    kept.options(parser)
    asked = parser.parse_args()
    kept.prepare(parser, asked)
    documents = []
    for accounts in ACCOUNTS:
        one = argparse.Namespace(clients=CLIENTS, accounts=accounts, warm_up=asked.warm_up, duration=asked.duration)
        documents.append(compare.measure_hopchain(PROFILE, one))
    found = to_keep(documents)
    kept.write(asked, found)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""How fast is `hopchain.Client`? Concurrent tasks of one program pay through it, on trio and on asyncio.

    python bench/library.py             about two minutes; --json for the numbers alone
    python bench/library.py --keep docs/performance/library.json     and then bench/tables.py

Three nodes on loopback, a thousand accounts, any of them pays any other, one transfer a call; `spread=True`, so that a
request goes to the node that makes its sender's next link. Each task pays again as soon as it is answered. CPU is that
of the program itself: signing, encoding, the event loop. `hopchain bench` has a generator without these, so its rates
are of the nodes; these are what a program gets that shares the machine with them.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import anyio
import kept
import takeover
import text
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cli.bench_cluster import ASSET, ISSUER, until_up
from cli.home import Network
from cli.verify import compare
from hopchain import Client, Posting

NODES: Final = 3
ACCOUNTS: Final = 1_000
OPENING: Final = 32  # tasks that open them
LOOPS: Final = ("trio", "asyncio")
TASKS: Final = (32, 256)
WARM_UP_S: Final = 3.0
SETTLE_S: Final = 60.0  # for all replicas to become equal
SHOWN: Final = ("completed_per_s", "p50_ms", "p99_ms", "not_completed")


def connect(network: Network) -> Client:
    """As a program would."""
    return Client([node.address for node in network.nodes], network.genesis.ca, network.id, spread=True)


async def prepare(network: Network, issuer: Ed25519PrivateKey, keys: dict[str, Ed25519PrivateKey]) -> None:
    """Open and fund the accounts."""
    await until_up(network, [])
    left = iter(keys.items())
    async with connect(network) as client:

        async def open_them() -> None:
            for name, key in left:
                await client.open_account(name, ASSET.code, key)

        async with anyio.create_task_group() as tasks:
            for _ in range(OPENING):
                tasks.start_soon(open_them)
        await client.transfer(ISSUER, issuer, [Posting(name, takeover.FUNDS) for name in keys])


async def measure(
    network: Network, keys: dict[str, Ed25519PrivateKey], tasks: int, seconds: float
) -> dict[str, object]:
    """A row: so many tasks pay for so long. The CPU is this process's."""
    rng = random.Random(tasks)
    async with connect(network) as client:
        await takeover.measure(client, keys, WARM_UP_S, rng, tasks)
        cpu_s, since = time.process_time(), time.monotonic()
        found = await takeover.measure(client, keys, seconds, rng, tasks)
        cpu_s, took_s = time.process_time() - cpu_s, time.monotonic() - since
    completed = float(str(found["completed_per_s"])) * took_s
    return {"tasks": tasks, **kept.picked(found, *SHOWN), "cpu_us_per_transfer": round(cpu_s * 1e6 / completed)}


async def check(network: Network) -> None:
    """End this script when money was made or lost, or replicas stay different."""
    found = await compare(network, SETTLE_S)
    if not (found.equal and found.money_kept):
        sys.exit(f"after these payments the replicas differ, or money was made or lost: {found}")


def measure_all(seconds: float) -> list[dict[str, object]]:
    """A row for each of LOOPS and TASKS, with the same nodes."""
    rows = []
    keys = {f"account-{number}": Ed25519PrivateKey.generate() for number in range(ACCOUNTS)}
    with takeover.started(NODES) as (network, issuer, _):
        anyio.run(prepare, network, issuer, keys)
        for loop in LOOPS:
            for tasks in TASKS:
                rows.append({"loop": loop, **anyio.run(measure, network, keys, tasks, seconds, backend=loop)})
        anyio.run(check, network)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| event loop | tasks | completed/s | p50, p99, ms | CPU us of the program, per transfer | not completed |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['loop']} | {row['tasks']} | {row['completed_per_s']:,.0f} | {row['p50_ms']:.0f}, {row['p99_ms']:.0f} "
            f"| {row['cpu_us_per_transfer']:,} | {row['not_completed']} |"
        )
    return "\n".join(lines)


def told(results: text.Kept) -> str:
    """What a program gets that pays through hopchain.Client."""
    found = results["library"]
    return (
        f"**Through the Python client** (`python bench/library.py`, {text.commit('library', results)}; {text.in_words(found['nodes'])} "
        f"nodes, {found['accounts']:,} accounts): tasks of one program pay through `hopchain.Client` with `spread=True`. All other "
        "rates here\nare those of a generator without an event loop; a program signs, encodes and waits in its own, "
        f"on the cores that the nodes have:\n\n{table(found['rows'])}"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each row, after a warm-up (default 10)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    kept.options(parser)
    asked = parser.parse_args()
    kept.prepare(parser, asked)
    rows = measure_all(asked.seconds)
    kept.write(asked, {"nodes": NODES, "accounts": ACCOUNTS, "rows": rows})
    sys.stdout.write((json.dumps(rows, indent=2) if asked.json else table(rows)) + "\n")


if __name__ == "__main__":
    main()

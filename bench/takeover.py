"""How long do payments take while nodes die and come back? Five nodes, k = 5; one is killed, then a second one; then
both start again.

    python bench/takeover.py            about a minute; --json for the numbers alone
    python bench/takeover.py --runs 2 --keep docs/performance/takeover.json      and then bench/tables.py

Eight clients pay from sixty accounts, spread over all nodes. Each phase begins ten seconds after the kill, so that what
is measured is life without the node and not the moment of its death; the last one begins with the starts, so nodes that
lack thousands of links are in it. `ratio` is the phase's p99 over that of the healthy phase.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import kept
import text
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cli.bench_cluster import ASSET, ISSUER, until_up
from cli.home import Network, load_network
from cli.ports import free_ports
from hopchain import Client, Posting, Recorded, raw_public_key
from node.layout import make_network

NODES: Final = 5
CLIENTS: Final = 8
ACCOUNTS: Final = 60
FUNDS: Final = 1_000_000
AFTER_S: Final = 10.0
BACK: Final = "both are back"
PHASES: Final = ("all alive", "one dead", "two dead", BACK)


async def measure(
    client: Client, keys: dict[str, Ed25519PrivateKey], seconds: float, rng: random.Random, clients: int = CLIENTS
) -> dict[str, object]:
    """So many tasks pay for so long; latencies in milliseconds of the transfers that completed. What is under way at
    the end is waited for, and counts."""
    took: list[float] = []
    others = 0
    payers: set[str] = set()
    names = sorted(keys)
    since = time.monotonic()
    end = since + seconds

    async def pay() -> None:
        nonlocal others
        while time.monotonic() < end:
            payer, payee = rng.sample(names, 2)
            begin = time.monotonic()
            answer = await client.transfer(payer, keys[payer], [Posting(payee, 1)])
            if isinstance(answer, Recorded) and answer.completed:
                took.append((time.monotonic() - begin) * 1000)
                payers.add(payer)
            else:
                others += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(clients):
            tasks.start_soon(pay)
    return numbers(took, time.monotonic() - since, len(payers), others)


def numbers(took: Sequence[float], seconds: float, payers: int, others: int) -> dict[str, object]:
    """What a phase with these latencies says; percentiles are the nearest rank. Ends this script when nothing
    completed."""
    if not took:
        sys.exit(f"nothing completed in {seconds:.3g} s ({others} payments ended otherwise): do the nodes run?")
    ascending = sorted(took)
    return {
        "completed_per_s": round(len(took) / seconds, 1),
        "p50_ms": round(at(ascending, 0.5), 1),
        "p99_ms": round(at(ascending, 0.99), 1),
        "max_ms": round(ascending[-1], 1),
        "accounts_that_paid": payers,
        "not_completed": others,
    }


def at(ascending: Sequence[float], share: float) -> float:
    """A percentile, nearest rank."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


def compared(phase: str, found: dict[str, object], phases: Sequence[dict[str, object]]) -> dict[str, object]:
    """A phase's row, with its p99 beside that of the first phase."""
    ratio = float(str(found["p99_ms"])) / float(str((phases or [found])[0]["p99_ms"]))
    return {"phase": phase, **found, "ratio": round(ratio, 2)}


def table(phases: Sequence[dict[str, object]]) -> str:
    """Markdown."""
    lines = [
        "| | completed/s | p50 ms | p99 ms | max ms | p99, of the healthy one | accounts that paid |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in phases:
        lines.append(
            f"| {row['phase']} | {row['completed_per_s']} | {row['p50_ms']} | {row['p99_ms']} | {row['max_ms']} | {row['ratio']} x "
            f"| {row['accounts_that_paid']} of {ACCOUNTS} |"
        )
    return "\n".join(lines)


def make(place: Path, key: Ed25519PrivateKey, nodes: int) -> Network:
    """A network in `place`, all of whose nodes hold every link."""
    ports = free_ports(2 * nodes, random.Random(os.getpid()))
    make_network(
        place / "net",
        nodes=nodes,
        assets=[ASSET],
        issuers={ISSUER: (ASSET.code, raw_public_key(key))},
        ports=list(zip(ports[::2], ports[1::2], strict=True)),
        name="bench",
        now_ms=time.time_ns() // 1_000_000,
        k=nodes,
    )
    return load_network(place / "net")


def start(network: Network, number: int) -> subprocess.Popen[bytes]:
    """A node's process."""
    directory = network.directory / network.nodes[number].name
    return subprocess.Popen([sys.executable, "-P", "-m", "cli.main", "node", str(directory)], stderr=subprocess.DEVNULL)


@contextmanager
def started(count: int) -> Iterator[tuple[Network, Ed25519PrivateKey, list[subprocess.Popen[bytes]]]]:
    """A network that is made for a measurement and gone at the end, its issuer's key, and its processes. What is in
    that list then is ended."""
    with tempfile.TemporaryDirectory(prefix="hopchain-bench-") as place:
        key = Ed25519PrivateKey.generate()
        network = make(Path(place), key, count)
        nodes = [start(network, number) for number in range(count)]
        try:
            yield network, key, nodes
        finally:
            for node in nodes:
                node.terminate()
            for node in nodes:
                node.wait()


async def run(
    network: Network, key: Ed25519PrivateKey, nodes: list[subprocess.Popen[bytes]], seconds: float
) -> list[dict[str, object]]:
    """The phases in PHASES."""
    rng = random.Random(1)
    phases: list[dict[str, object]] = []
    await until_up(network, [])
    keys = {f"account-{number}": Ed25519PrivateKey.generate() for number in range(ACCOUNTS)}
    async with Client([node.address for node in network.nodes], network.genesis.ca, network.id, spread=True) as client:
        for name, own in keys.items():
            await client.open_account(name, ASSET.code, own)
        await client.transfer(ISSUER, key, [Posting(name, FUNDS) for name in keys])
        for dead, phase in enumerate(PHASES):
            if phase == BACK:
                for number in range(NODES - dead + 1, NODES):
                    nodes[number].wait()
                    nodes[number] = start(network, number)
            elif dead:
                nodes[-dead].kill()
                await anyio.sleep(AFTER_S)
            found = await measure(client, keys, seconds, rng)
            phases.append(compared(phase, found, phases))
    return phases


def measure_once(seconds: float) -> list[dict[str, object]]:
    """The phases of a new network."""
    with started(NODES) as (network, key, nodes):
        return anyio.run(run, network, key, nodes, seconds)


def to_keep(runs: Sequence[Sequence[dict[str, object]]]) -> dict[str, Any]:
    """Of all runs, what docs/performance.md shows."""
    keys = ("phase", "p99_ms", "accounts_that_paid")
    return {
        "nodes": NODES,
        "clients": CLIENTS,
        "accounts": ACCOUNTS,
        "runs": [[kept.picked(row, *keys) for row in phases] for phases in runs],
    }


def p99s(results: text.Kept) -> str:
    """p99 before and after the kills, and after the starts."""
    found = results["takeover"]
    alive, one, two, back = (
        text.listed([f"{row['p99_ms']:.0f}" for row in phase]) for phase in zip(*found["runs"], strict=True)
    )
    runs = len(found["runs"])
    paid = min(row["accounts_that_paid"] for phases in found["runs"] for row in phases)
    return (
        f"p99 {alive} ms with all alive, {one} ms from ten seconds after one was\nkilled, {two} ms from ten seconds after "
        f"a second one, {back} ms from when both are started again,\nin {text.in_words(runs)} {'run' if runs == 1 else 'runs'} {text.commit('takeover', results)}; "
        + (f"all {paid} accounts pay" if paid == found["accounts"] else f"{paid} of {found['accounts']} accounts pay")
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each phase (default 10)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int, default=1, help="one after the other (default 1)")
    kept.options(parser)
    asked = parser.parse_args()
    if asked.runs < 1:
        parser.error(f"--runs {asked.runs}: take 1 or more")
    kept.prepare(parser, asked)
    runs = []
    for _ in range(asked.runs):
        runs.append(measure_once(asked.seconds))
        if not asked.json:
            sys.stdout.write(table(runs[-1]) + "\n")
            sys.stdout.flush()
    kept.write(asked, to_keep(runs))
    if asked.json:
        sys.stdout.write(json.dumps(runs if len(runs) > 1 else runs[0], indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Where a node's CPU goes: the stacks of `hopchain bench --profile-out FILE.txt`, added up by what they are in.

    python bench/shares.py              profiles the four runs below: about three minutes
    python bench/shares.py --keep docs/performance/shares.json       and draws them beside it; then bench/tables.py
    python bench/shares.py node.txt     of stacks that were written before

A stack belongs to the outermost of its frames that one of the parts below names; but a signature check within
`core.step` or `core.needs` is a part of its own. Stacks of the start (imports, what comes before the node runs) are
left out.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import compare
import kept
import text

from cli.bench_node import Stacks, flame_graph


class Run(NamedTuple):
    """What is profiled, and what its flame graph is called."""

    profile: str
    clients: int
    picture: str


RUNS: Final = {
    "uniform": Run("uniform", 32, "uniform-32-clients.svg"),
    "uniform-512": Run("uniform", 512, "uniform-512-clients.svg"),
    "hot-sender": Run("hot-sender", 32, "hot-sender-32-clients.svg"),
    "bulk": Run("bulk", 32, "bulk.svg"),
}
PARTS: Final = {  # which frames begin with what
    "commit": ("store.commit",),
    "step": ("core.Core.step",),
    "wire": ("tls.", "channel.", "ssl.", "client_port.", "transport."),
    "hops": (),  # see HOPS
    "needs": ("core.Core.needs",),
    "signatures": (),  # see SIGNATURE
    "load": ("load.load",),
    "rest": (),
}
SIGNATURE: Final = "request.is_signed_by"
# How the frames of a hop begin that is none of PARTS
HOPS: Final = ("database.", "_entry_queue.", "_wakeup_socketpair.", "core._connection_worker_thread")
DATABASE_THREAD: Final = "_connection_worker_thread"  # in its name
NODE: Final = "process.run_node"
IMPORT: Final = "importlib"
SHARES: Final = {
    "commit": "`store.commit`: SQLite's writes with their triggers, fsync",
    "step": "`core.step` without signatures",
    "wire": "TLS and sockets, frames",
    "hops": "hops to the database thread and back (aiosqlite, trio-asyncio, wake-up pipe)",
    "needs": "`core.needs` without signatures: decoding links and requests",
    "signatures": "signature check (once a request, at its gateway)",
    "load": "`load`: SQLite's reads",
    "rest": "trio's scheduler, encoding, DHT, the rest",
}
PROFILED: Final = {
    "uniform": "uniform, 32 clients",
    "uniform-512": "uniform, 512",
    "hot-sender": "hot sender",
    "bulk": "bulk",
}


def part_of(stack: Sequence[str]) -> str | None:
    """One of PARTS for the frames of a stack, outermost first, after the name of its thread; None for one of the
    start."""
    if any(IMPORT in frame for frame in stack) or (NODE not in stack and "Thread" not in stack[0]):
        return None
    for frame in stack:
        for part, begins in PARTS.items():
            if frame.startswith(begins):
                return "signatures" if part in ("step", "needs") and SIGNATURE in stack else part
    hops = DATABASE_THREAD in stack[0] or any(frame.startswith(HOPS) for frame in stack)
    return "hops" if hops else "rest"


def shares(lines: Iterable[str]) -> dict[str, float]:
    """Per cent of the CPU for each of PARTS, of lines "frame;frame;frame WEIGHT". Raises `ValueError`."""
    weights: Counter[str] = Counter()
    for line in lines:
        stack, _, weight = line.rpartition(" ")
        part = part_of(stack.split(";"))
        if part is not None:
            weights[part] += int(weight)
    total = weights.total()
    if not total:
        raise ValueError("no stack of a node in it")
    return {part: round(100 * weights[part] / total, 3) for part in PARTS}


def picture(run: Run, lines: Iterable[str], commit: str) -> str:
    """The flame graph of such lines, SVG."""
    stacks: Stacks = Counter()
    for line in lines:
        stack, _, weight_us = line.rpartition(" ")
        stacks[tuple(stack.split(";"))] += int(weight_us) * 1000
    return flame_graph(
        stacks, f"{run.profile}, {run.clients} clients, commit {commit}: CPU of a node, {stacks.total() / 1e9:.1f} s"
    )


def profiled(run: Run, place: Path, asked: argparse.Namespace) -> list[str]:
    """Measure with a profiler in one node: its stacks."""
    path = place / "node.txt"
    settings = argparse.Namespace(**{**vars(asked), "clients": run.clients})
    compare.measure_hopchain(run.profile, settings, "--profile-out", str(path))
    return path.read_text(encoding="utf-8").splitlines()


def to_keep(found: dict[str, dict[str, float]]) -> dict[str, Any]:
    """What docs/performance.md shows of RUNS."""
    return {"pictures": [RUNS[name].picture for name in found], "shares": found}


def show(name: str, found: dict[str, float]) -> None:
    """A line."""
    sys.stdout.write(f"{name}: {', '.join(f'{part} {share} %' for part, share in found.items())}\n")
    sys.stdout.flush()


def shares_table(results: text.Kept) -> str:
    """Where a node's CPU goes."""
    found = results["shares"]["shares"]
    runs = [run for run in PROFILED if run in found]
    rows = [[words, *(f"{found[run][part]:.0f} %" for run in runs)] for part, words in SHARES.items()]
    return text.grid(["share of a node's CPU", *(PROFILED[run] for run in runs)], rows)


def pictures(results: text.Kept) -> str:
    """The flame graphs of the same runs."""
    found = results["shares"]
    drawn = [f"[{words}](performance/{RUNS[run].picture})" for run, words in PROFILED.items() if run in found["shares"]]
    return f"{text.listed(drawn)}, {text.commit('shares', results)}" if "pictures" in found else text.listed(drawn)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stacks", nargs="*", type=Path, metavar="FILE.txt", help="that --profile-out wrote")
    parser.add_argument("--accounts", type=int, default=10_000)
    parser.add_argument("--warm-up", type=int, default=3, metavar="SECONDS")
    parser.add_argument("--duration", type=int, default=10, metavar="SECONDS")
    kept.options(parser)
    asked = parser.parse_args()
    if asked.stacks and asked.keep:
        parser.error(
            f"--keep {asked.keep} beside {asked.stacks[0]}: what is kept is profiled anew; leave the files away"
        )
    kept.prepare(parser, asked)
    for path in asked.stacks:
        try:
            show(path.stem, shares(path.read_text(encoding="utf-8").splitlines()))
        except (OSError, ValueError) as error:
            parser.error(f"{path} is not what `hopchain bench --profile-out FILE.txt` wrote: {error}")
    if asked.stacks:
        return
    found: dict[str, dict[str, float]] = {}
    for name, run in RUNS.items():
        with tempfile.TemporaryDirectory(prefix="hopchain-shares-") as place:
            lines = profiled(run, Path(place), asked)
        found[name] = shares(lines)
        show(name, found[name])
        if asked.keep:
            asked.keep.with_name(run.picture).write_text(picture(run, lines, asked.commit), encoding="utf-8")
    kept.write(asked, to_keep(found))


if __name__ == "__main__":
    main()

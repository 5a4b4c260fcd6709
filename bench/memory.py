"""Is a node's memory flat? `hopchain bench uniform` for ten minutes: each minute's largest memory, its rate, what a
transfer costs the nodes, and how fast the machine is.

    python bench/memory.py              eleven minutes; other programs may run meanwhile
    python bench/memory.py --keep docs/performance/memory.json       and then bench/tables.py

Memory is that of the largest of the three nodes, looked at once a second; it does not depend on what else the machine
does, but the number of transfers does, which is told with it. CPU is the kernel's count of the node processes. The
machine's speed is the CPU that a fixed loop of SHA-256 takes, a few milliseconds once a second: when a transfer takes
more and the loop as much more, it was the machine and not the ledger.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import compare
import kept
import text

PROFILE: Final = "uniform"
MINUTE: Final = 60
SPARE_S: Final = 5  # so that the last minute has a look for each of its seconds
CLIENTS: Final = 32
ACCOUNTS: Final = 10_000
NODE: Final = "cli.main\0node\0"  # in the command of a node's process
LOAD: Final = "cli.bench_load"  # and of the load's
LOOK_S: Final = 1.0
LOOP: Final = 200  # times SHA-256 of BLOCK
BLOCK: Final = bytes(16_384)
PROC: Final = Path("/proc")
TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
NOISE: Final = 0.05  # of a minute's CPU or rate
LEVEL: Final = 0.98  # of the most memory in a run: from there on it is level


class Look(NamedTuple):
    """One moment: when, what the nodes have used so far, what the loop took just now, and whether there is a load."""

    at: float
    cpu_s: float
    loop_us: float
    loaded: bool


def loop_us() -> float:
    """CPU of the fixed loop."""
    since = time.thread_time()
    for _ in range(LOOP):
        hashlib.sha256(BLOCK).digest()
    return (time.thread_time() - since) * 1e6


def children(parent: int) -> list[int]:
    """Its processes."""
    found = []
    for path in PROC.glob("[0-9]*"):
        try:
            if int(_stat(path.name)[1]) == parent:
                found.append(int(path.name))
        except OSError:  # it has just ended
            continue
    return found


def cpu_s(process: int) -> float:
    """User and system time of all its threads."""
    fields = _stat(process)
    return (int(fields[11]) + int(fields[12])) * TICK_S


def _stat(process: int | str) -> list[str]:
    """Fields from the third on: the second, the command's name, may hold spaces."""
    return (PROC / str(process) / "stat").read_text().rpartition(")")[2].split()


def look() -> Look:
    """At the nodes and the load of the `hopchain bench` that this process has started."""
    used, loaded = 0.0, False
    for bench in children(os.getpid()):
        for process in children(bench):
            try:
                command = (PROC / str(process) / "cmdline").read_text()
                used += cpu_s(process) if NODE in command else 0.0
            except OSError:
                continue
            loaded = loaded or LOAD in command
    return Look(time.monotonic(), used, loop_us(), loaded)


@contextmanager
def watched() -> Iterator[list[Look]]:
    """Looks, once a second while it is entered."""
    looks: list[Look] = []
    done = threading.Event()

    def run() -> None:
        while not done.wait(LOOK_S):
            looks.append(look())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield looks
    finally:
        done.set()
        thread.join()


def minutes(document: dict[str, Any], looks: Sequence[Look], length: int = MINUTE) -> dict[str, Any]:
    """Of a document of `hopchain bench`: MB at its start, and each minute's most, its transfers a second, the nodes'
    CPU for one, and the median of the loop. A minute that the run did not end is left out."""
    each_s, per_s = document["memory_mb_each_s"], document["per_second"]
    starts = range(0, len(each_s) - length + 1, length)
    began = max(one.at for one in looks if one.loaded) - document["settings"]["duration_s"]  # the load ends with it

    def used(second: float) -> float:
        return min(looks, key=lambda one: abs(one.at - began - second)).cpu_s

    def loops(start: int) -> list[float]:
        return [one.loop_us for one in looks if start <= one.at - began < start + length]

    return {
        "transfers": document["completed"],
        "completed_per_s": document["completed_per_s"],
        "at_start_mb": round(each_s[0]),
        "minutes_mb": [round(max(each_s[at : at + length])) for at in starts],
        "minutes_per_s": [round(sum(per_s[at : at + length]) / length) for at in starts],
        "minutes_cpu_us": [
            round((used(at + length) - used(at)) * 1e6 / max(1, sum(per_s[at : at + length]))) for at in starts
        ],
        "minutes_loop_us": [round(statistics.median(loops(at))) for at in starts],
    }


def by_minute(results: text.Kept) -> str:
    """A node's memory, minute by minute."""
    found = results["memory"]
    most = found["minutes_mb"]
    return (
        f"{found['transfers']:,} transfers {text.commit('memory', results)}: "
        f"{found['at_start_mb']} MB at the start, then, each minute's most, {text.listed([str(mb) for mb in most])} MB, "
        f"at {text.listed([str(rate) for rate in found['minutes_per_s']])} transfers a second"
    )


def level(results: text.Kept) -> str:
    """From when on the memory does not grow, by the numbers."""
    found = results["memory"]
    most = found["minutes_mb"]
    steady = next(number for number, mb in enumerate(most, 1) if mb >= LEVEL * max(most))
    ran = text.in_words(len(most))
    words = f"not level within {ran} minutes"
    if steady < len(most):
        words = f"level after about {text.in_words(steady)} minutes"
    return f"{words} of {text.whole(found['completed_per_s'])} transfers a second"


def rate(results: text.Kept) -> str:
    """Whether the rate fell, and then whether it was the ledger, the machine, or neither; of the first two minutes and
    the last two."""
    found = results["memory"]
    first, last = two_ends(found["minutes_per_s"])
    fell = last / first - 1
    told = f"From the first two minutes to the last two the rate went from {text.whole(first)} to {text.whole(last)}/s ({fell * 100:+.0f} %)"
    if "minutes_loop_us" not in found:
        return told
    cpu, loop = two_ends(found["minutes_cpu_us"]), two_ends(found["minutes_loop_us"])
    slower, dearer = loop[1] / loop[0], cpu[1] / cpu[0]
    told += (
        f", the nodes' CPU for a transfer from {text.whole(cpu[0])} to {text.whole(cpu[1])} us ({(dearer - 1) * 100:+.0f} %), and that "
        f"of a loop of SHA-256, which says how fast the machine is, from {text.whole(loop[0])} to {text.whole(loop[1])} us "
        f"({(slower - 1) * 100:+.0f} %): "
    )
    own = dearer / slower - 1
    if own > NOISE:
        return told + f"beside that loop a transfer costs {own * 100:.0f} % more with the longer ledger"
    if fell > -NOISE:
        return told + "a longer ledger does not show"
    if slower > 1 + NOISE:
        return told + "the machine got slower, and beside that loop a transfer costs no more with the longer ledger"
    return told + "a transfer costs no more, so the nodes got less of the cores or waited longer for the disk"


def two_ends(values: Sequence[float]) -> tuple[float, float]:
    """Mean of the first two, and of the last two."""
    return sum(values[:2]) / len(values[:2]), sum(values[-2:]) / len(values[-2:])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    kept.options(parser)
    asked = parser.parse_args()
    if asked.minutes < 1:
        parser.error(f"--minutes {asked.minutes}: take 1 or more")
    kept.prepare(parser, asked)
    run = argparse.Namespace(clients=CLIENTS, accounts=ACCOUNTS, warm_up=0, duration=asked.minutes * MINUTE + SPARE_S)
    with watched() as looks:
        document = compare.measure_hopchain(PROFILE, run)
    found = minutes(document, looks)
    kept.write(asked, found)
    text = f"{found['transfers']:,} transfers; {found['at_start_mb']} MB, then " + ", ".join(
        f"{key} {found[key]}" for key in found if key.startswith("minutes_")
    )
    sys.stdout.write((json.dumps(found) if asked.json else text) + "\n")


if __name__ == "__main__":
    main()

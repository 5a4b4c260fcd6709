"""What a transfer costs without any Python: the least that this design leaves to pay on this machine.

    python bench/floor.py                          measures `hopchain bench uniform` first: one minute
    python bench/floor.py --profile hot-sender     another one: hot-recipient, hot-sender, bulk
    python bench/floor.py --profile all --runs 3 --keep docs/performance/floor.json      and then bench/tables.py
    python bench/floor.py uniform.json             with the counts of a kept run (`hopchain bench uniform --json`)

A run of the nodes says how many commits, turns and bytes a transfer takes and how much CPU. Then the parts that no
language makes cheaper are measured alone, in C:

    database    every statement that the nodes give to SQLite for a transfer (what its link depends on, of the one that
                makes it; what a vote is checked against, of the others; of all the vote, and the link with all its
                triggers), recorded once and replayed with its values ready, as many transfers to a commit
                as in the run; once with `synchronous=OFF`, which tells what fsync takes of the processor. It goes
                through CPython's sqlite3 module, whose own share is in the number
    TLS         frames of the run's mean size through OpenSSL and a loopback connection, there and out again: one for
                each peer and turn, the least there can be
    signatures  one check a request, by libsodium

CPU is the thread's own, of the kernel's work for it too. What is left of the run's CPU is the interpreter: the state
machine, trio, codecs, hops between threads. Left out, so that the sum stays a floor: codecs, scheduling, wake-ups, UDP,
the clients' connections.
"""

import argparse
import json
import os
import random
import shutil
import socket
import sqlite3
import ssl
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, cast

import compare
import kept
import scale
from nacl.signing import SigningKey, VerifyKey

from chain.disk import open_database
from chain.request import MAX_POSTINGS, Posting
from node.layout import make_network
from node.pki import node_contexts

NODES: Final = 3
WARM_UP: Final = 20  # groups that are replayed and not counted
LEAST_GROUPS: Final = 5  # that are
LEAST_ACCOUNTS: Final = 1_000
FRAMES: Final = 3_000
PROFILES: Final = ("uniform", "hot-recipient", "hot-sender", "bulk")
ALL: Final = "all"
COUNTS: Final = (
    "cpu_us_per_transfer",
    "commits_per_transfer",
    "turns_per_transfer",
    "transfers_per_link",
    "member_bytes_per_transfer",
)
Statement = tuple[str, str, Any]  # method, SQL, values
Group = tuple[list[Statement], list[Statement], list[Statement]]  # of who makes a link, of its voters, of all nodes
DOING: Final = (1, NODES - 1, NODES)  # how many nodes give SQLite each of these


class Recorder:
    """A connection that remembers what it is asked for."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._conn = conn
        self.statements: list[Statement] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._conn, name)

    def execute(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """As `sqlite3.Connection.execute`."""
        self.statements.append(("execute", sql, values))
        return self._conn.execute(sql, values)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> sqlite3.Cursor:
        """As `sqlite3.Connection.executemany`."""
        rows = list(rows)
        self.statements.append(("executemany", sql, rows))
        return self._conn.executemany(sql, rows)


def draw(profile: str, names: Sequence[str], together: int, rng: random.Random) -> list[tuple[str, list[str]]]:
    """The requests of a commit, which hold `together` transfers: who pays, and whom."""
    hot, others = names[0], names[1:]
    match profile:
        case "hot-sender":
            return [(hot, [rng.choice(others)]) for _ in range(together)]
        case "hot-recipient":
            return [(payer, [hot]) for payer in rng.sample(others, together)]
        case "bulk":
            payer = rng.choice(names)
            return [(payer, rng.choices([name for name in names if name != payer], k=together))]
        case _:
            payers = rng.sample(range(len(names)), together)
            return [(names[at], [names[at - rng.randrange(1, len(names))]]) for at in payers]


def record(profile: str, place: Path, accounts: int, groups: int, together: int, rng: random.Random) -> list[Group]:
    """The statements of `groups` groups of `together` transfers, and `place`/start.db as it was before them."""
    path = place / "node.db"
    names = [f"account-{number}" for number in range(accounts)]
    with scale.Ledger(path) as ledger:
        ledger.open(names)
        ledger.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy(path, place / "start.db")
        found = []
        recorder = Recorder(ledger.conn)
        ledger.conn = cast(sqlite3.Connection, recorder)
        for _ in range(groups):
            drawn = draw(profile, names, together, rng)
            requests = [ledger.pay(payer, [Posting(payee, 1) for payee in payees]) for payer, payees in drawn]
            recorder.statements = maker = []
            links = ledger.form(requests)
            recorder.statements = voter = []
            links = ledger.check(links)
            recorder.statements = every = []
            ledger.vote(links)
            ledger.apply(links)
            found.append((maker, voter, every))
    return found


def replay(start: Path, groups: Sequence[Group], synchronous: str) -> float:
    """Microseconds of CPU that a group takes of all nodes together: median over the groups."""
    path = start.with_name("replayed.db")
    shutil.copy(start, path)
    conn = open_database(path, writer=True)
    conn.execute(f"PRAGMA synchronous={synchronous}")
    took = []
    for group in groups:
        group_us = 0.0
        for nodes, statements in zip(DOING, group, strict=True):
            since = time.thread_time()
            for method, sql, values in statements:
                if method == "executemany":
                    conn.executemany(sql, values)
                else:
                    conn.execute(sql, values).fetchall()
            group_us += (time.thread_time() - since) * 1e6 * nodes
        took.append(group_us)
    conn.close()
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    return statistics.median(took[WARM_UP:])


def connected(place: Path) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Two nodes of a network, connected with each other as nodes are."""
    network = make_network(
        place / "net",
        nodes=2,
        assets=scale.genesis().assets,
        issuers={"mint": ("CZK", scale.KEY)},
        ports=[(1, 2), (3, 4)],
        name="floor",
        now_ms=time.time_ns() // 1_000_000,
    )
    accept, dial = (node_contexts(network.node_directory(node), network.genesis.ca) for node in network.nodes)
    with socket.create_server(("127.0.0.1", 0)) as server:
        dialed = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    for end in (dialed, accepted):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made: list[ssl.SSLSocket] = []
    other = threading.Thread(target=lambda: made.append(accept.accept.wrap_socket(accepted, server_side=True)))
    other.start()
    ours = dial.dial.wrap_socket(dialed)
    other.join()
    return ours, made[0]


def frame_us(place: Path, size: int) -> float:
    """CPU to send a frame of `size` bytes through TLS over loopback, and to receive it."""
    ours, theirs = connected(place)
    frame = random.Random(size).randbytes(size)
    with ours, theirs:

        def once() -> None:
            ours.sendall(frame)
            left = size
            while left:
                left -= len(theirs.recv(left))

        return per_call(once, FRAMES)


def signature_us() -> float:
    """CPU to check the signature of a request."""
    key = SigningKey(scale.KEY)
    public, signed = bytes(key.verify_key), key.sign(bytes(48))
    return per_call(lambda: VerifyKey(public).verify(signed), FRAMES)


def per_call(call: Callable[[], object], times: int) -> float:
    """Microseconds of CPU, median of ten rounds."""
    took = []
    for _ in range(10):
        since = time.thread_time()
        for _ in range(times // 10):
            call()
        took.append((time.thread_time() - since) / (times // 10) * 1e6)
    return statistics.median(took)


def read_run(path: Path) -> dict[str, Any]:
    """The document of a run of `hopchain bench`. Raises `OSError` and `ValueError`."""
    run = json.loads(path.read_text())
    if not isinstance(run, dict) or run.get("profile") not in PROFILES:
        raise ValueError(f"its `profile` is none of {', '.join(PROFILES)}")
    cost = run.get("cost")
    if not isinstance(cost, dict) or not all(isinstance(cost.get(name), int | float) for name in COUNTS):
        raise ValueError("its `cost` lacks " + ", ".join(COUNTS) + ": the nodes must run on this machine")
    if run["profile"] != "bulk" and cost["commits_per_transfer"] <= 0:
        raise ValueError(
            f"its `commits_per_transfer` is {cost['commits_per_transfer']}: too much in a commit to tell how many, take fewer clients"
        )
    return run


def floor(run: dict[str, Any], asked: argparse.Namespace, place: Path) -> dict[str, Any]:
    """What each part takes of a transfer, in microseconds of CPU of all nodes together."""
    cost, profile = run["cost"], run["profile"]
    if profile == "bulk":  # one request, one link, and a frame for each standby
        # links are counted a little later than what they paid: their quotient may be more than a link holds
        together = per_request = min(MAX_POSTINGS, max(1, round(cost["transfers_per_link"])))
        frames = (NODES - 1) / together
    else:  # a transfer is in two commits of each node
        together, per_request = max(1, round(2 * NODES / cost["commits_per_transfer"])), 1
        frames = cost["turns_per_transfer"] * (NODES - 1)
    rng, count = random.Random(asked.seed), WARM_UP + max(LEAST_GROUPS, asked.transfers // together)
    groups = record(profile, place, asked.accounts, count, together, rng)
    full, unsafe = (replay(place / "start.db", groups, how) / together for how in ("FULL", "OFF"))
    size = max(1, round(cost["member_bytes_per_transfer"] / max(frames, 1e-9)))
    parts = {
        "database": unsafe,
        "fsync": max(0.0, full - unsafe),
        "tls": frames * frame_us(place, size),
        "signatures": signature_us() / per_request,
        "clients": run["client"]["cpu_us_per_transfer"],
    }
    total = sum(parts.values())
    cores = os.cpu_count() or 1
    measured = cost["cpu_us_per_transfer"] + run["client"]["cpu_us_per_transfer"]
    return {
        "profile": run["profile"],
        "transfers_per_commit": together,
        "frames_per_transfer": round(frames, 5),
        "frame_bytes": size,
        "parts_us": {name: round(us, 2) for name, us in parts.items()},
        "floor_us": round(total, 1),
        "measured_us": round(measured, 1),
        "interpreter_us": round(measured - total, 1),
        "completed_per_s": run["completed_per_s"],
        "most_per_s": round(cores * 1e6 / total),
        "cores": cores,
    }


def to_keep(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of all runs, what docs/performance.md shows: profile -> its runs."""
    keys = ("parts_us", "floor_us", "measured_us", "interpreter_us", "completed_per_s", "most_per_s")
    profiles: dict[str, list[dict[str, Any]]] = {}
    for run in found:
        profiles.setdefault(run["profile"], []).append(kept.picked(run, *keys))
    return {"cores": found[0]["cores"], "profiles": profiles}


def show(found: dict[str, Any]) -> str:
    """The table."""
    words = {
        "database": f"SQLite, {found['transfers_per_commit']} transfers of {found['profile']} in two commits of a node",
        "fsync": "fsync of those commits",
        "tls": f"TLS, {found['frames_per_transfer']:.2g} frames of {found['frame_bytes']} bytes",
        "signatures": "one signature a request",
        "clients": "the clients of the run",
    }
    lines = [f"{words[name]:58} {us:>8,.1f} us" for name, us in found["parts_us"].items()]
    lines.append(f"{'floor of a transfer, all nodes and clients':58} {found['floor_us']:>8,.1f} us")
    lines.append(f"{'measured in the run':58} {found['measured_us']:>8,.1f} us")
    lines.append(f"{'left: interpreter, trio, codecs, scheduling':58} {found['interpreter_us']:>8,.1f} us")
    lines.append(f"{'completed in the run':58} {found['completed_per_s']:>8,.0f} /s")
    lines.append(
        f"{'most that the floor leaves to ' + str(found['cores']) + ' cores':58} {found['most_per_s']:>8,.0f} /s"
    )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="the document of `hopchain bench PROFILE --json`")
    parser.add_argument(
        "--profile", choices=(*PROFILES, ALL), help="what to measure when there is no run (default uniform)"
    )
    parser.add_argument("--runs", type=int, default=1, help="of each profile (default 1)")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--accounts", type=int, default=10_000)
    parser.add_argument("--warm-up", type=float, default=3.0)
    parser.add_argument("--duration", type=float, default=10.0)
    parser.add_argument("--transfers", type=int, default=4_000, help="replayed (default 4,000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--directory", type=Path, help="where the databases are made (default: the temporary directory)"
    )
    parser.add_argument("--json", action="store_true")
    kept.options(parser)
    asked = parser.parse_args()
    if asked.run and asked.profile:
        parser.error(
            f"--profile {asked.profile} beside {asked.run}: a run that was kept says itself of which profile it is"
        )
    if asked.accounts < LEAST_ACCOUNTS:
        parser.error(f"--accounts {asked.accounts}: take {LEAST_ACCOUNTS} or more, for different payers in a commit")
    if asked.runs < 1:
        parser.error(f"--runs {asked.runs}: take 1 or more")
    if asked.keep and asked.runs % 2 == 0:
        parser.error(f"--runs {asked.runs} with --keep: take an odd number, of which one run is the median")
    kept.prepare(parser, asked)
    profiles = PROFILES if asked.profile == ALL else [asked.profile or PROFILES[0]]
    found = []
    for profile in [*profiles] * asked.runs:  # one round after the other: the machine's speed changes from hour to hour
        try:
            run = read_run(asked.run) if asked.run else compare.measure_hopchain(profile, asked)
        except (OSError, ValueError) as error:
            parser.error(f"{asked.run} is not what `hopchain bench PROFILE --json` printed: {error}")
        with tempfile.TemporaryDirectory(prefix="hopchain-floor-", dir=asked.directory) as place:
            found.append(floor(run, asked, Path(place)))
        if not asked.json:
            sys.stdout.write(f"{show(found[-1])}\n")
            sys.stdout.flush()
    kept.write(asked, to_keep(found))
    if asked.json:
        sys.stdout.write(f"{json.dumps(found if len(found) > 1 else found[0], indent=2)}\n")


if __name__ == "__main__":
    main()

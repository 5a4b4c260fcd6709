"""PostgreSQL with two synchronous standbys on loopback, driven by pgbench: what hopchain stands beside.

    python bench/postgres.py --duration 10          all variants and profiles, a table
    python bench/postgres.py --variant function --profile uniform --json

Installs nothing: it needs PostgreSQL 15 (Debian: `apt-get install postgresql-15`). Everything it makes is in a
temporary directory and gone at the end. PostgreSQL does not run as root; as root this runs it as user `postgres`.

One primary, two standbys, `synchronous_standby_names = 'ANY 1 (s1, s2)'`, `synchronous_commit = on`, fsync on: a
transfer is answered when it is on the disks of two of three servers, as in hopchain. `completed` counts rows of the
ledger after the run less those before, so that what was aborted never counts. All accounts and the ledger are checked
at the end.
"""

import argparse
import glob
import json
import math
import os
import pwd
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent / "sql"
VARIANTS: Final = {
    "nowait": ("checked.sql", "FOR UPDATE NOWAIT, checks in triggers"),
    "waiting": ("checked.sql", "waiting, checks in triggers"),
    "function": ("checked.sql", "the same in one server-side function"),
    "plain": ("plain.sql", "plain function, no checks beyond the balance"),
}
PROFILES: Final = ("uniform", "zipf", "hot-recipient", "hot-sender")
FUNDS: Final = 10**12
ZIPF: Final = 1.001  # the least exponent that pgbench takes
FOLLOWING: Final = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'"
FOLLOW_S: Final = 60.0
LOOK_AGAIN_S: Final = 0.1
SETTINGS: Final = """
listen_addresses = '127.0.0.1'
unix_socket_directories = '{sockets}'
port = {port}
max_connections = 200
shared_buffers = 256MB
max_wal_size = 4GB
fsync = on
full_page_writes = on
synchronous_commit = on
wal_level = replica
max_wal_senders = 8
hot_standby = on
autovacuum = on
"""


class Server:
    """One PostgreSQL server in a directory of its own."""

    def __init__(self, bin_: Path, place: Path, name: str, port: int) -> None:
        self.data = place / name
        self.port = port
        self.name = name
        self._bin = bin_
        self._place = place

    def initialise(self) -> None:
        run([self._bin / "initdb", "-D", self.data, "-U", "bench", "--auth=trust", "--no-sync", "-E", "UTF8"])
        self._configure()

    def follow(self, primary: "Server") -> None:
        """Copy the primary and follow it."""
        source = f"host=127.0.0.1 port={primary.port} user=bench application_name={self.name}"
        run([self._bin / "pg_basebackup", "-D", self.data, "-d", source, "-R", "-X", "stream", "-c", "fast"])
        self._configure()

    def _configure(self) -> None:
        path = self.data / "postgresql.conf"
        path.write_text(path.read_text() + SETTINGS.format(sockets=self._place, port=self.port))
        give(path)

    def start(self) -> None:
        run([self._bin / "pg_ctl", "-D", self.data, "-l", self._place / f"{self.name}.log", "-w", "start"])

    def stop(self) -> None:
        """With its checkpoint, so that nothing is left to write; one that cannot is ended without."""
        run([self._bin / "pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop"], check=False)
        if (self.data / "postmaster.pid").exists():
            run([self._bin / "pg_ctl", "-D", self.data, "-m", "immediate", "-w", "stop"], check=False)

    def sql(self, text: str, database: str = "postgres") -> str:
        words = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "bench", "-d", database]
        return run([self._bin / "psql", *words, "-v", "ON_ERROR_STOP=1", "-qAt", "-c", text]).strip()

    def load(self, path: Path, database: str) -> None:
        words = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "bench", "-d", database]
        run([self._bin / "psql", *words, "-v", "ON_ERROR_STOP=1", "-q", "-f", path])


def find_bin(version: str = "15") -> Path:
    """Where PostgreSQL's programs are."""
    found = sorted(glob.glob(f"/usr/lib/postgresql/{version}/bin/initdb"))
    path = found[0] if found else shutil.which("initdb")
    if path is None:
        sys.exit("PostgreSQL is not installed here: apt-get install postgresql-15 (this script installs nothing)")
    return Path(path).resolve().parent


def version() -> str:
    """Of the servers: "15.9"."""
    return run([find_bin() / "postgres", "--version"]).split()[2]


def owner() -> pwd.struct_passwd | None:
    """Who runs the servers, when this runs as root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        sys.exit("PostgreSQL does not run as root, and there is no user `postgres` to run it as")


def give(path: Path) -> None:
    """Let the user of the servers own a file or directory."""
    user = owner()
    if user is not None:
        os.chown(path, user.pw_uid, user.pw_gid)


def run(words: Sequence[str | Path], *, check: bool = True) -> str:
    """Run a program as the user of the servers; its output. Ends this script with what it said when it fails."""
    user = owner()
    command = [str(word) for word in words]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd="/",
        user=None if user is None else user.pw_uid,
        group=None if user is None else user.pw_gid,
        extra_groups=None if user is None else [],
    )
    if check and done.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}")
    return done.stdout


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


class Cluster:
    """A primary and two standbys, stopped or running."""

    def __init__(self, primary: Server, standbys: Sequence[Server]) -> None:
        self._primary = primary
        self._standbys = standbys

    def initialise(self) -> None:
        """Make the data of all three."""
        try:
            self._primary.initialise()
            self._primary.start()
            for standby in self._standbys:
                standby.follow(self._primary)
                standby.start()  # at once: nothing keeps the log for one that does not follow
            self._primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (s1, s2)'")
        finally:
            self._stop()

    @contextmanager
    def running(self) -> Iterator[Server]:
        """The primary, with both standbys following; all stopped at the end."""
        try:
            for server in (self._primary, *self._standbys):
                server.start()
            self._wait_for_standbys()
            yield self._primary
        finally:
            self._stop()

    def _stop(self) -> None:
        """The primary first: it ends when the standbys have all its log."""
        for server in (self._primary, *self._standbys):
            server.stop()

    def _wait_for_standbys(self) -> None:
        """Until both are asked for each commit."""
        begin = time.monotonic()
        while (found := int(self._primary.sql(FOLLOWING))) < len(self._standbys):
            if time.monotonic() - begin > FOLLOW_S:
                sys.exit(f"{found} of {len(self._standbys)} standbys follow the primary after {FOLLOW_S:g} s")
            time.sleep(LOOK_AGAIN_S)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A new one, stopped; gone at the end."""
    bin_ = find_bin()
    place = Path(tempfile.mkdtemp(prefix="bench-postgres-"))
    give(place)
    names = ("primary", "s1", "s2")
    primary, *standbys = (
        Server(bin_, place, name, port) for name, port in zip(names, free_ports(len(names)), strict=True)
    )
    try:
        made = Cluster(primary, standbys)
        made.initialise()
        yield made
    finally:
        shutil.rmtree(place, ignore_errors=True)


def who_pays(profile: str, accounts: int) -> str:
    """Lines of a pgbench script that draw sender `a`, recipient `b` (never the same) and the request's nonce."""
    any_ = f"random(1, {accounts})"
    other = f"1 + (:a - 1 + random(1, {accounts - 1})) % {accounts}"
    match profile:
        case "uniform":
            draws = [f"\\set a {any_}", f"\\set b {other}"]
        case "zipf":  # drawn independently; where both are the same, the next account is paid
            zipf = f"random_zipfian(1, {accounts}, {ZIPF})"
            draws = [
                f"\\set a {zipf}",
                f"\\set c {zipf}",
                f"\\set b CASE WHEN :c = :a THEN 1 + :a % {accounts} ELSE :c END",
            ]
        case "hot-recipient":
            draws = ["\\set b 1", f"\\set a random(2, {accounts})"]
        case "hot-sender":
            draws = ["\\set a 1", f"\\set b random(2, {accounts})"]
        case _:
            sys.exit(f"no profile {profile}: one of {', '.join(PROFILES)}")
    limit = 2**62
    return "\n".join([*draws, f"\\set n random(0, {limit})", f"\\set m random(0, {limit})", ""])


def measure(
    primary: Server, variant: str, profile: str, *, clients: int, accounts: int, warm_up_s: int, duration_s: int
) -> dict[str, object]:
    """One row: a new database, accounts, warm-up, the run, the checks."""
    schema, _ = VARIANTS[variant]
    database = f"bench_{variant}_{profile}".replace("-", "_")
    primary.sql(f"CREATE DATABASE {database}")
    primary.load(HERE / schema, database)
    primary.sql(f"INSERT INTO accounts SELECT i, {FUNDS} FROM generate_series(1, {accounts}) i", database)
    primary.sql("VACUUM ANALYZE accounts", database)
    primary.sql("CHECKPOINT")
    script = primary.data.parent / f"{database}.pgbench"
    script.write_text(who_pays(profile, accounts) + (HERE / f"{variant}.pgbench").read_text())
    give(script)
    logs = primary.data.parent / f"{database}-log"
    bench: list[str | Path] = [
        find_bin() / "pgbench",
        "-h",
        "127.0.0.1",
        "-p",
        str(primary.port),
        "-U",
        "bench",
        "-n",
        "-M",
        "prepared",
    ]
    seed = f"--random-seed={random.Random(database).randrange(2**31)}"
    load: list[str | Path] = ["-c", str(clients), "-j", "2", "-f", script]
    if warm_up_s:
        run([*bench, *load, "-T", str(warm_up_s), database])
    before = int(primary.sql("SELECT count(*) FROM transfers", database))
    run([*bench, *load, "-T", str(duration_s), seed, "-l", f"--log-prefix={logs}", database])
    completed = int(primary.sql("SELECT count(*) FROM transfers", database)) - before
    logged: list[str] = []
    for path in logs.parent.glob(f"{logs.name}.*"):
        logged += path.read_text().splitlines()
        path.unlink()
    total = int(primary.sql("SELECT sum(balance) FROM accounts", database))
    entries = primary.sql("SELECT count(*) || ' ' || coalesce(sum(amount), 0) FROM entries", database)
    rows = int(primary.sql("SELECT count(*) FROM transfers", database))
    states = primary.sql(FOLLOWING)
    primary.sql(f"DROP DATABASE {database}")
    return {
        "variant": variant,
        "profile": profile,
        **numbers(completed, duration_s, logged),
        "synchronous_standbys": int(states),
        "ok": sound(total, accounts, entries, rows),
    }


def latency_ms(line: str) -> float | None:
    """Of one line of pgbench's log: client, number, microseconds, script, seconds, microseconds. None when it
    failed."""
    took = line.split()[2]
    return int(took) / 1000 if took.isdigit() else None


def numbers(completed: int, duration_s: int, logged: Sequence[str]) -> dict[str, object]:
    """What a run of so many ledger rows and these log lines says. What has a line and no row was aborted."""
    latencies = sorted(took for took in map(latency_ms, logged) if took is not None)
    aborted = len(logged) - completed
    return {
        "completed_per_s": round(completed / duration_s, 1),
        "aborted": aborted,
        "aborted_share": round(aborted / len(logged), 4) if logged else 0.0,
        "p50_ms": at(latencies, 0.5),
        "p99_ms": at(latencies, 0.99),
        "max_ms": at(latencies, 1.0),
    }


def sound(total: int, accounts: int, entries: str, rows: int) -> bool:
    """True when no money came or went, each transfer has two entries, and they add up to nothing (`entries`: "COUNT
    SUM")."""
    return total == FUNDS * accounts and entries == f"{2 * rows} 0"


def at(ascending: Sequence[float], share: float) -> float:
    """A percentile, nearest rank."""
    return round(ascending[max(0, math.ceil(share * len(ascending)) - 1)], 2) if ascending else 0.0


def options(parser: argparse.ArgumentParser) -> None:
    """Options that both scripts take."""
    parser.add_argument("--profile", action="append", choices=PROFILES, help="default: all of them")
    parser.add_argument("--variant", action="append", choices=sorted(VARIANTS), help="default: all of them")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--accounts", type=int, default=10_000)
    parser.add_argument("--warm-up", type=int, default=3, metavar="SECONDS")
    parser.add_argument("--duration", type=int, default=10, metavar="SECONDS")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def measure_profile(primary: Server, profile: str, asked: argparse.Namespace) -> list[dict[str, object]]:
    """A row for each variant that was asked for."""
    rows = []
    for variant in asked.variant or VARIANTS:
        row = measure(
            primary,
            variant,
            profile,
            clients=asked.clients,
            accounts=asked.accounts,
            warm_up_s=asked.warm_up,
            duration_s=asked.duration,
        )
        rows.append(row)
        tell(
            f"postgres {variant:9} {profile:14} {row['completed_per_s']:>9}/s  p50 {row['p50_ms']} ms  "
            f"p99 {row['p99_ms']} ms  aborted {row['aborted_share']:.1%}  {'ok' if row['ok'] else 'NOT SOUND'}"
        )
    return rows


def measure_all(asked: argparse.Namespace) -> list[dict[str, object]]:
    """All rows that were asked for."""
    with cluster() as peer, peer.running() as primary:
        return [row for profile in asked.profile or PROFILES for row in measure_profile(primary, profile, asked)]


def tell(text: str) -> None:
    """Progress, on standard error."""
    sys.stderr.write(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options(parser)
    asked = parser.parse_args()
    rows = measure_all(asked)
    if asked.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    if not all(row["ok"] for row in rows):
        sys.exit("a ledger is not sound: see above")


if __name__ == "__main__":
    main()

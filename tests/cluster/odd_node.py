"""A node in an odd world: `python -m tests.cluster.odd_node DIR [--clock-s S] [--max-pages N]`.

`--clock-s`: its wall clock is that many seconds ahead. `--max-pages`: the database may not grow beyond that many pages,
so that SQLite says SQLITE_FULL as it does when the disk has no room.
"""

import argparse
import sqlite3
import time
from pathlib import Path

from cli.main import main
from node import process


def odd_node() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clock-s", type=int, default=0)
    parser.add_argument("--max-pages", type=int, default=0)
    odd, rest = parser.parse_known_args()
    true_clock = time.time_ns
    true_open = process.open_database

    def clock() -> int:
        return true_clock() + odd.clock_s * 1_000_000_000

    def open_small(path: Path, *, writer: bool) -> sqlite3.Connection:
        conn = true_open(path, writer=writer)
        if odd.max_pages:
            conn.execute(f"PRAGMA max_page_count={odd.max_pages}")
        return conn

    time.time_ns = clock
    process.open_database = open_small  # type: ignore[attr-defined]
    main(["node", *rest])


odd_node()

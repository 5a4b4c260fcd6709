"""A node's disk: SQLite itself, with crashes that lose what was not synced.

In memory a commit is atomic: it is durable or it is not. In files (`files=True`) the database runs with its real
write-ahead log, and a crash within a commit keeps the log only up to some byte: what SQLite then makes of it at the
next start is SQLite's own recovery. A full disk is SQLite's own too (`max_page_count`).
"""

import random
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from chain.disk import checkpoint, open_database
from chain.errors import StorageFailure
from chain.store import Write, commit

Check = Callable[[sqlite3.Connection], None]
Choose = Callable[[int, int], int]  # (first byte that a commit changes in the log, its end) -> where it is cut

COMMIT_S: Final = (0.0002, 0.001)  # a commit on a healthy disk takes as long as this, at least and at most
FAST_DIRECTORY: Final = Path("/dev/shm")  # memory, where there is one: a simulated sync needs no real disk
WAL_HEADER_BYTES: Final = 32
FRAME_BYTES: Final = 24 + 4096  # a frame's header and its page


def make_directory(stack: ExitStack) -> Path:
    """A new directory for the files of one disk; it is gone when `stack` is closed."""
    where = FAST_DIRECTORY if FAST_DIRECTORY.is_dir() else None
    return Path(stack.enter_context(TemporaryDirectory(dir=where)))


def cut_places(first: int, end: int) -> list[int]:
    """Where to cut a log whose bytes from `first` to `end` are new: nothing of them, everything, in the middle of each
    frame, at each boundary of frames and one byte to both sides of it. Ascending."""
    places = {first, end}
    boundary = WAL_HEADER_BYTES + (max(first, WAL_HEADER_BYTES) - WAL_HEADER_BYTES) // FRAME_BYTES * FRAME_BYTES
    while boundary <= end:
        places.update((boundary - 1, boundary, boundary + 1, boundary + FRAME_BYTES // 2))
        boundary += FRAME_BYTES
    return sorted(place for place in places if first <= place <= end)


class Disk:
    """One node's database across its lives. `check` is what a node does with it at start (`create_or_check`)."""

    def __init__(self, check: Check, directory: Path | None) -> None:
        self._check = check
        self._directory = directory
        self._life = 0
        self.conn = self._open()
        self._check(self.conn)

    def _path(self) -> Path:
        assert self._directory is not None
        return self._directory / f"life-{self._life}.db"

    def _open(self) -> sqlite3.Connection:
        if self._directory is None:
            return sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        return open_database(self._path(), writer=True)

    def commit(self, writes: Sequence[Write]) -> None:
        """Durable when it returns."""
        commit(self.conn, writes)

    def fail(self, error: str, writes: Sequence[Write], rng: random.Random) -> None:
        """Commit on a disk with this error (`netsim.plan.DiskError`); raises `StorageFailure`, unless it is a full one
        with room for this."""
        if error == "full":
            self._fail_full(writes)
        else:
            self._fail_sync(writes, rng)

    def _fail_full(self, writes: Sequence[Write]) -> None:
        """Without room: fails when a page more is needed."""
        (pages,) = self.conn.execute("PRAGMA page_count").fetchone()
        self.conn.execute(f"PRAGMA max_page_count = {pages}")
        try:
            commit(self.conn, writes)
        finally:
            self.conn.execute(f"PRAGMA max_page_count = {2**30}")

    def _fail_sync(self, writes: Sequence[Write], rng: random.Random) -> None:
        """A sync fails: that of the log, and nothing is written, or that of the checkpoint after it, and everything is.
        Always raises."""
        if rng.random() < 0.5:
            self._lose_checkpoint(writes)
        raise StorageFailure("writing failed: disk I/O error [SQLITE_IOERR_FSYNC]; check the disk")

    def _lose_checkpoint(self, writes: Sequence[Write]) -> None:
        """Commit, and checkpoint into a database file that keeps none of it: the log is all that there is of it."""
        if self._directory is None:
            commit(self.conn, writes)
            return
        path = self._path()
        database = path.read_bytes()
        commit(self.conn, writes)
        log = path.with_name(path.name + "-wal").read_bytes()
        checkpoint(self.conn)
        self._begin_life(database, log)

    def cut_commit(self, writes: Sequence[Write], choose: Choose) -> None:
        """The machine stops within the commit: the log up to some byte is on the disk (in memory: nothing or all)."""
        if self._directory is None:
            if choose(0, 1):
                commit(self.conn, writes)
            return
        path = self._path()
        wal = path.with_name(path.name + "-wal")
        database, before = path.read_bytes(), wal.read_bytes() if wal.exists() else b""
        commit(self.conn, writes)
        after = wal.read_bytes()
        first = _first_difference(before, after)
        end = max(first, _end_of_differences(before, after))
        cut = choose(first, end)
        self._begin_life(database, after[:cut] + before[cut:])

    def _begin_life(self, database: bytes, log: bytes) -> None:
        """The process is gone, and these are the files that the next one finds."""
        self.conn.close()
        self._life += 1
        path = self._path()
        path.write_bytes(database)
        if log:
            path.with_name(path.name + "-wal").write_bytes(log)
        self.conn = self._open()

    def copy(self) -> sqlite3.Connection:
        """What is on the disk now, for `replace` later."""
        copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self.conn.backup(copy)
        return copy

    def replace(self, copy: sqlite3.Connection | None) -> None:
        """Another disk is in the machine: an old copy, or an empty one."""
        self.conn.close()
        self._directory = None
        self.conn = copy if copy is not None else self._open()
        self._check(self.conn)

    def restart(self) -> None:
        """A new process opens the database: recovery, then the node's own start checks."""
        if self._directory is not None:
            path = self._path()
            wal = path.with_name(path.name + "-wal")
            # As they are now: a killed process does not get to checkpoint.
            self._begin_life(path.read_bytes(), wal.read_bytes() if wal.exists() else b"")
        else:
            self.conn.rollback()  # what a dead process had not committed is gone
        self._check(self.conn)

    def close(self) -> None:
        self.conn.close()


def _first_difference(a: bytes, b: bytes) -> int:
    """The first index at which the two differ."""
    for at in range(0, min(len(a), len(b)), 4096):
        if a[at : at + 4096] != b[at : at + 4096]:
            return next(i for i in range(at, at + 4096) if a[i : i + 1] != b[i : i + 1])
    return min(len(a), len(b))


def _end_of_differences(a: bytes, b: bytes) -> int:
    """Where what is new in `b` ends: a log that has begun anew is as long as it was, and its last bytes are old
    ones."""
    return len(b) if len(a) != len(b) else len(b) - _first_difference(a[::-1], b[::-1])

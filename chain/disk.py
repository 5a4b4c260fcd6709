"""Connections to the database, and what to tell a person when the disk or SQLite fails.

One connection writes and checkpoints; readers have their own, which never checkpoint: the SQLite of Debian 12 (3.40)
has the WAL-reset bug, which needs two writers or checkpointers (design section 2).
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from chain.errors import LocalMisuse, StorageFailure

_CACHE_KIB: Final = 64 * 1024  # a transaction with the largest link fits, so nothing is spilled before its commit
_WAL_PAGES: Final = 16384  # 64 MiB between checkpoints: pages that change often are copied once
_BUSY_TIMEOUT_S: Final = 5.0  # only another process that writes can make us wait, and there must be none

_ADVICE: Final = {
    "SQLITE_FULL": "the disk is full: free some space, then start the node again; nothing that was answered is lost",
    "SQLITE_IOERR": "the disk reports an error: check the disk, then start the node again; it checks its database",
    "SQLITE_BUSY": "another process writes to the database: end it; one node only may use a data directory",
    "SQLITE_LOCKED": "another connection writes to the database: end it; one node only may use a data directory",
    "SQLITE_READONLY": "the database is read-only: correct owner and mode of the file and its directory, or use a writer",
    "SQLITE_CANTOPEN": "the file cannot be opened: check that its directory exists and may be written to",
    "SQLITE_NOTADB": "the file is no SQLite database: put the right one back, or join the network anew under a new node id",
    "SQLITE_CORRUPT": "the file is damaged: if it is a copy, make another; if it is the node's own, join the network anew under a new node id",
}
_OTHER_ADVICE: Final = "stop the node, run `hopchain verify` on its directory, then start it again"


def storage_failure(error: sqlite3.Error, doing: str) -> StorageFailure:
    """The error that a node ends with: what was being done, what SQLite said, what to do about it."""
    name = str(getattr(error, "sqlite_errorname", type(error).__name__))
    advice = next((text for prefix, text in _ADVICE.items() if name.startswith(prefix)), _OTHER_ADVICE)
    return StorageFailure(f"{doing} failed: {error} [{name}]; {advice}")


@contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turns SQLite's errors into `StorageFailure`."""
    try:
        yield
    except sqlite3.Error as error:
        raise storage_failure(error, doing) from error


def open_database(path: Path | str, *, writer: bool) -> sqlite3.Connection:
    """A connection in autocommit mode that other threads than this one may use (so: a connector for aiosqlite).

    Raises `LocalMisuse` when a reader's file does not exist, and `StorageFailure` when the file cannot be opened or
    does not take WAL and synchronous=FULL.
    """
    file = Path(path)
    if not writer and not file.exists():
        raise LocalMisuse(f"there is no database {file}: start its node once, or name another directory")
    with storage_errors(f"opening {file}"):
        conn = sqlite3.connect(file, isolation_level=None, timeout=_BUSY_TIMEOUT_S, check_same_thread=False)
        try:
            _configure(conn, file, writer)
        except (sqlite3.Error, StorageFailure):
            conn.close()
            raise
    return conn


def _configure(conn: sqlite3.Connection, file: Path, writer: bool) -> None:
    conn.execute("PRAGMA synchronous=FULL")
    conn.execute("PRAGMA temp_store=MEMORY")
    if writer:
        conn.execute("PRAGMA journal_mode=WAL")
        # Debian's default is ON: zeros written over votes that are decided, 1 MB for a large one.
        conn.execute("PRAGMA secure_delete=OFF")
        conn.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        conn.execute(f"PRAGMA wal_autocheckpoint={_WAL_PAGES}")
    else:
        conn.execute("PRAGMA wal_autocheckpoint=0")
        conn.execute("PRAGMA query_only=ON")
    journal, synchronous = (conn.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous"))
    if (journal, synchronous) != ("wal", 2):
        raise StorageFailure(
            f"{file}: SQLite gives journal_mode={journal} and synchronous={synchronous}, where wal and 2 (FULL) are "
            "needed: put the database on a local disk and open it with this program only"
        )


@contextmanager
def snapshot(conn: sqlite3.Connection) -> Iterator[None]:
    """All reads inside see one moment of the database (nests)."""
    if conn.in_transaction:
        yield
        return
    conn.execute("BEGIN")
    try:
        yield
    finally:
        conn.rollback()  # nothing was written; no error when SQLite has ended the transaction itself

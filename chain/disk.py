"""Connections to the database, and what to tell a person when the disk or SQLite fails.

One connection writes and checkpoints; readers have their own, which never checkpoint: the SQLite of Debian 12 (3.40)
has the WAL-reset bug, which needs two writers or checkpointers (design section 2).

A checkpoint copies the pages of the log into the database and syncs that. Of SQLite's own checkpoints nobody learns
when they fail: not of the automatic ones (`wal_autocheckpoint`), which are tried again after the next commit, and not
of the one when the last connection of a file is closed. Trying again loses pages: what an earlier checkpoint has copied
without a sync, because a reader held it back, is not copied again, and a sync after one that failed says that all is
well. So the writer checkpoints by itself (`checkpoint_if_due`), an error ends the process, and a connection that must
not checkpoint does not do so when it is closed. The next process begins with the whole log, unless another one keeps
the database open meanwhile (`hopchain verify`): SQLite then goes on where the failed one was.
"""

import errno
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from chain.errors import LocalMisuse, StorageFailure

_CACHE_KIB: Final = 64 * 1024  # a transaction with the largest link fits, so nothing is spilled before its commit
_WAL_PAGES: Final = 16384  # 64 MiB between checkpoints: pages that change often are copied once
_HELD_BACK: Final = 16  # by this part of that the log grows before what a reader held back is tried again
_WAL_HEADER_BYTES: Final = 32  # SQLite's file format, section 4.1: page size at 8, salts at 16
_FRAME_HEADER_BYTES: Final = 24  # the salts at 8
_SALT_BYTES: Final = 8
_PART_BYTES: Final = 1 << 20  # of the log, at a time: it may be as long as a reader has let it become
_BUSY_TIMEOUT_S: Final = 5.0  # only another process that writes can make us wait, and there must be none

_DISK_ERROR: Final = "the disk reports an error: end what else has the database open (`hopchain verify`), check the disk, then start the node again; it checks its database"
_ADVICE: Final = {
    "SQLITE_FULL": "the disk is full: free some space, then start the node again; nothing that was answered is lost",
    "SQLITE_IOERR": _DISK_ERROR,
    "OSError": _DISK_ERROR,
    "SQLITE_BUSY": "another process writes to the database: end it; one node only may use a data directory",
    "SQLITE_LOCKED": "another connection writes to the database: end it; one node only may use a data directory",
    "SQLITE_READONLY": "the database is read-only: correct owner and mode of the file and its directory, or use a writer",
    "SQLITE_CANTOPEN": "the file cannot be opened: check that its directory exists and may be written to",
    "SQLITE_NOTADB": "the file is no SQLite database: put the right one back, or join the network anew under a new node id",
    "SQLITE_CORRUPT": "the file is damaged: if it is a copy, make another; if it is the node's own, join the network anew under a new node id",
}
# What the system says of the files that are not left to SQLite, in its words.
_AS_SQLITE: Final[Mapping[int | None, str]] = {
    errno.ENOSPC: "SQLITE_FULL",
    errno.EDQUOT: "SQLITE_FULL",
    errno.EACCES: "SQLITE_READONLY",
    errno.EPERM: "SQLITE_READONLY",
    errno.EROFS: "SQLITE_READONLY",
}
_OTHER_ADVICE: Final = "stop the node, run `hopchain verify` on its directory, then start it again"


def storage_failure(error: sqlite3.Error | OSError, doing: str) -> StorageFailure:
    """The error that a node ends with: what was being done, what SQLite said, what to do about it."""
    name = str(getattr(error, "sqlite_errorname", _AS_SQLITE.get(getattr(error, "errno", None), type(error).__name__)))
    advice = next((text for prefix, text in _ADVICE.items() if name.startswith(prefix)), _OTHER_ADVICE)
    return StorageFailure(f"{doing} failed: {error} [{name}]; {advice}")


@contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turns SQLite's errors, and the system's about its files, into `StorageFailure`."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise storage_failure(error, doing) from error


class _Connection(sqlite3.Connection):
    """Knows whether it may checkpoint, and how long the log may become before it does.

    SQLite does not say how long the log is, and its file never shrinks. But each frame carries the salts of the log's
    header, which change when the log begins anew: so one look at the frame where a checkpoint is due says whether the
    log has come that far.
    """

    _log: int | None = None  # a descriptor: SQLite takes no locks on this file, so closing it releases none
    _salts = b""
    _pages = _due = 0

    def watch_log(self, file: Path, pages: int) -> None:
        """This connection checkpoints: each time when the log has come to so many pages, and when it is closed."""
        self.execute("SELECT count(*) FROM sqlite_master")  # makes the file of the log
        self._log = os.open(_log_of(file), os.O_RDONLY)
        self._pages = self._due = pages

    def is_due(self) -> bool:
        """True when the log has come to the page where the next checkpoint is due."""
        if self._log is None:
            return False
        header = os.pread(self._log, _WAL_HEADER_BYTES, 0)
        salts = header[16 : 16 + _SALT_BYTES]
        if salts != self._salts:
            self._salts, self._due = salts, self._pages
        frame_bytes = _FRAME_HEADER_BYTES + int.from_bytes(header[8:12])
        at = _WAL_HEADER_BYTES + (self._due - 1) * frame_bytes + 8
        return bool(salts) and os.pread(self._log, _SALT_BYTES, at) == salts

    def put_off(self, pages: int) -> None:
        """A log of so many pages was copied, as far as readers let it be. They may also keep it from beginning anew: so
        the next checkpoint is due when it has grown, not with the next commit."""
        self._due = max(self._pages, pages + max(1, self._pages // _HELD_BACK))

    def give_up(self) -> None:
        """No checkpoint any more, neither when the connection is closed."""
        log, self._log = self._log, None
        if log is not None:
            os.close(log)

    def close(self) -> None:
        """Only a connection that checkpoints does so here; the log stays where it is otherwise."""
        if self._log is None:
            with suppress(sqlite3.ProgrammingError):  # it is closed
                self.interrupt()  # SQLite's checkpoint ends at the first page that it would copy
        self.give_up()
        super().close()

    def __del__(self) -> None:
        """A connection that nobody has closed is closed in the same way."""
        with suppress(sqlite3.Error):  # it was never opened
            self.close()


def open_database(path: Path | str, *, writer: bool, wal_pages: int = _WAL_PAGES) -> sqlite3.Connection:
    """A connection in autocommit mode that other threads than this one may use (so: a connector for aiosqlite).

    The writer checkpoints when the log has come to `wal_pages` pages. Raises `LocalMisuse` when a reader's file does
    not exist, and `StorageFailure` when the file cannot be opened or does not take WAL and synchronous=FULL.
    """
    file = Path(path)
    if file.is_symlink():
        file = file.resolve()  # SQLite puts the log beside the file itself
    if not writer and not file.exists():
        raise LocalMisuse(f"there is no database {file}: start its node once, or name another directory")
    with storage_errors(f"opening {file}"):
        if writer:
            _write_again(_log_of(file))
        conn = sqlite3.connect(
            file, isolation_level=None, timeout=_BUSY_TIMEOUT_S, check_same_thread=False, factory=_Connection
        )
        try:
            _configure(conn, file, writer)
            if writer:
                conn.watch_log(file, wal_pages)
        except (sqlite3.Error, OSError, StorageFailure):
            conn.close()
            raise
    return conn


def _log_of(file: Path) -> Path:
    return file.with_name(f"{file.name}-wal")


def _write_again(log: Path) -> None:
    """Write a log that an earlier process left once more, as it stands, and sync it. To be called before SQLite opens
    the file, by the only writer.

    When a sync of the log fails, the system forgets that its pages are not on the disk: reading shows them, and no
    later sync writes them. A commit that SQLite appends behind them would be lost with them.
    """
    with suppress(FileNotFoundError), log.open("r+b", buffering=0) as file:
        at = 0
        while part := os.pread(file.fileno(), _PART_BYTES, at):
            at += os.pwrite(file.fileno(), part, at)
        if at:
            os.fsync(file.fileno())


def _configure(conn: sqlite3.Connection, file: Path, writer: bool) -> None:
    conn.execute("PRAGMA synchronous=FULL")
    conn.execute("PRAGMA temp_store=MEMORY")
    conn.execute("PRAGMA wal_autocheckpoint=0")  # SQLite tells nobody when an automatic checkpoint fails
    if writer:
        conn.execute("PRAGMA journal_mode=WAL")
        # Debian's default is ON: zeros written over votes that are decided, 1 MB for a large one.
        conn.execute("PRAGMA secure_delete=OFF")
        conn.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
    else:
        conn.execute("PRAGMA query_only=ON")
    journal, synchronous = (conn.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous"))
    if (journal, synchronous) != ("wal", 2):
        raise StorageFailure(
            f"{file}: SQLite gives journal_mode={journal} and synchronous={synchronous}, where wal and 2 (FULL) are "
            "needed: put the database on a local disk and open it with this program only"
        )


def checkpoint(conn: sqlite3.Connection) -> bool:
    """Copy the log into the database and sync that. False when a reader held it back from the end of the log, or
    another process from beginning.

    Raises `StorageFailure`; the process must end then, because the same again would lose pages.
    """
    with storage_errors("copying the log into the database"):
        busy, pages, copied = conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    if isinstance(conn, _Connection):
        conn.put_off(pages)
    return bool(pages == copied and not busy)


def checkpoint_if_due(conn: sqlite3.Connection) -> None:
    """`checkpoint` when the log is long enough; the same errors. For a database in memory nothing is to be done."""
    if isinstance(conn, _Connection):
        with storage_errors("looking at the log"):
            due = conn.is_due()
        if due:
            checkpoint(conn)


def settle(conn: sqlite3.Connection) -> None:
    """What this connection reads is on the disk when this returns; to be called at the start. Raises `StorageFailure`.

    The process before may have been killed when its last transaction was in the log and not synced, or have ended
    because a sync failed: the system still shows then what the disk does not hold. The log was written once more before
    it was opened (`_write_again`), and the checkpoint writes all of it to the database.
    """
    if not checkpoint(conn):  # a reader holds it back, maybe before the log is synced: a commit syncs it
        with storage_errors("writing to the log"):
            conn.execute("PRAGMA user_version=0")  # a page, though nothing changes


def give_up(conn: sqlite3.Connection) -> None:
    """The disk or SQLite has failed: nothing is tried again on this connection, not even a checkpoint when it is
    closed."""
    if isinstance(conn, _Connection):
        conn.give_up()


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

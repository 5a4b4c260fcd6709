"""Checkpoints: the log goes into the database when it is long, its errors end the process, and nobody else makes
one."""

import errno
import gc
import os
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import groupby
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from chain.audit import audit
from chain.disk import checkpoint, open_database, snapshot
from chain.errors import StorageFailure
from chain.seal import CursorRow, load_cursors
from chain.store import commit, create_or_check
from tests.chain.bank import GENESIS, NODE, VIEW, Bank, memory_database

PAGES = 64
HEADER, FRAME = 32, 24 + 4096
COMMIT = 16  # pages, more than any commit here writes


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def log_pages(path: Path) -> int:
    """How many pages the file of the log has room for: as many as the longest log had, for it never shrinks."""
    return (log_of(path).stat().st_size - HEADER) // FRAME


def start(path: Path, pages: int = PAGES) -> sqlite3.Connection:
    conn = open_database(path, writer=True, wal_pages=pages)
    create_or_check(conn, GENESIS, NODE, VIEW)
    return conn


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.db"


@pytest.fixture
def conn(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(start(path)) as conn:
        yield conn


@pytest.fixture
def tries(conn: sqlite3.Connection) -> list[str]:
    """The checkpoints that the writer has begun."""
    made: list[str] = []
    conn.set_trace_callback(lambda statement: made.append(statement) if "wal_checkpoint" in statement else None)
    return made


def killed(path: Path, to: Path) -> Path:
    """The files as they are now, as a process that is killed leaves them."""
    to.mkdir()
    for file in (path, log_of(path)):
        (to / file.name).write_bytes(file.read_bytes())
    return to / path.name


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """A write beyond that many bytes fails (EFBIG), of whichever file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fail_a_checkpoint(path: Path, bank: Bank) -> None:
    """Open accounts until the database file must grow, which it cannot."""
    bank.open(*(f"a{n}" for n in range(PAGES)))
    assert checkpoint(bank.conn)  # the log begins anew, in a file that is long enough
    with (
        no_file_beyond(path.stat().st_size),
        pytest.raises(StorageFailure, match=r"copying the log into the database failed: .*\[SQLITE_IOERR_WRITE\]"),
    ):
        bank.open(*(f"b{n}" for n in range(10 * PAGES)))


def test_the_log_begins_anew_when_it_is_long(path: Path, conn: sqlite3.Connection, tries: list[str]) -> None:
    bank = Bank(conn)
    bank.open(*(f"a{n}" for n in range(100)))
    assert PAGES <= log_pages(path) < PAGES + COMMIT
    assert 100 * 3 // PAGES < len(tries) < 100 * COMMIT // PAGES


def test_what_a_reader_holds_back_is_tried_again_now_and_then(
    path: Path, conn: sqlite3.Connection, tries: list[str]
) -> None:
    bank = Bank(conn)
    with closing(open_database(path, writer=False)) as reader, snapshot(reader):
        reader.execute("SELECT count(*) FROM links").fetchone()
        bank.open(*(f"a{n}" for n in range(100)))
        longest = log_pages(path)
        assert longest > 4 * PAGES
        assert 0 < len(tries) <= (longest - PAGES) // (PAGES // 16) + 1
        assert len(tries) < 100
    bank.open(*(f"b{n}" for n in range(200)))
    assert log_pages(path) <= longest + PAGES // 16 + COMMIT


def test_a_checkpoint_that_fails_ends_the_commit_and_is_not_tried_again(path: Path) -> None:
    bank = Bank(start(path, PAGES // 4))
    fail_a_checkpoint(path, bank)
    made = len(bank.links) + 1  # the link whose commit ended so is durable
    database = path.read_bytes()
    bank.conn.close()
    assert path.read_bytes() == database
    assert log_pages(path) >= PAGES // 4
    with closing(start(path)) as conn:
        report = audit(conn, genesis=GENESIS)
    assert report.ok
    assert report.links == made + 3  # and those of the issuers


def test_a_connection_that_is_not_closed_does_not_try_it_again_either(path: Path) -> None:
    bank = Bank(start(path, PAGES // 4))
    fail_a_checkpoint(path, bank)
    database = path.read_bytes()
    del bank
    gc.collect()
    assert path.read_bytes() == database
    assert log_of(path).exists()


def test_a_reader_that_is_the_last_to_close_leaves_the_log_where_it_is(
    path: Path, conn: sqlite3.Connection, tmp_path: Path
) -> None:
    Bank(conn).open("alice")
    left = killed(path, tmp_path / "left")
    database, log = left.read_bytes(), log_of(left).read_bytes()
    reader = open_database(left, writer=False)
    assert reader.execute("SELECT count(*) FROM accounts WHERE name = 'alice'").fetchone() == (1,)
    reader.close()
    reader.close()
    assert left.read_bytes() == database
    assert log_of(left).read_bytes() == log


def test_a_start_writes_what_the_log_holds_to_the_database(
    path: Path, conn: sqlite3.Connection, tmp_path: Path
) -> None:
    commit(conn, [CursorRow(NODE, 7)])
    left = killed(path, tmp_path / "left")
    with closing(start(left)):
        log_of(left).rename(tmp_path / "away")
        with closing(open_database(killed_without_log(left, tmp_path / "alone"), writer=False)) as reader:
            assert load_cursors(reader) == [CursorRow(NODE, 7)]
        (tmp_path / "away").rename(log_of(left))


def killed_without_log(path: Path, to: Path) -> Path:
    to.mkdir()
    (to / path.name).write_bytes(path.read_bytes())
    return to / path.name


def test_a_start_that_a_reader_holds_back_writes_to_the_log(
    path: Path, conn: sqlite3.Connection, tmp_path: Path
) -> None:
    """A commit syncs all of the log; a checkpoint that cannot begin does not."""
    left = killed(path, tmp_path / "left")
    with closing(start(left)) as one, closing(open_database(left, writer=False)) as reader, snapshot(reader):
        reader.execute("SELECT count(*) FROM links").fetchone()
        commit(one, [CursorRow(NODE, 7)])
        written = log_of(left).read_bytes()
        create_or_check(one, GENESIS, NODE, VIEW)
        assert log_of(left).read_bytes() != written
    with closing(start(left)) as again:
        assert audit(again, genesis=GENESIS).ok


def test_a_start_writes_the_log_over_itself_before_it_is_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sync of its last commits had failed: what was not written then is on the disk only when it is written again.
    A power cut may come at any time after the start, also when a reader keeps the log from being copied into the
    database."""
    with closing(start(path)) as conn:
        bank = Bank(conn)
        bank.open("alice", "bob")
        synced = log_of(path).read_bytes()
        bank.pay("mint", ("alice", 100))
        copy = killed(path, path.with_name("copy.db"))
    shown = log_of(copy).read_bytes()
    disk = bytearray(synced.ljust(len(shown), b"\0"))
    done: list[str] = []
    pwrite, fsync, connect = os.pwrite, os.fsync, sqlite3.connect

    def note_write(file: int, part: bytes, at: int) -> int:
        part = part[: max(1, len(part) // 2)]  # a write may write less
        disk[at : at + len(part)] = part
        done.append("write")
        return pwrite(file, part, at)

    def note_sync(file: int) -> None:
        done.append("sync")
        fsync(file)

    def note_open(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        done.append("open")
        return connect(*args, **kwargs)

    monkeypatch.setattr(os, "pwrite", note_write)
    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(sqlite3, "connect", note_open)
    monkeypatch.setattr("chain.disk._PART_BYTES", 10_000)
    with closing(start(copy)) as conn:
        assert conn.execute("SELECT count(*) FROM postings").fetchone() == (1,)
    assert bytes(disk) == shown != synced
    assert [step for step, _ in groupby(done)] == ["write", "sync", "open"]


def test_a_log_that_cannot_be_written_again_ends_the_start(
    path: Path, conn: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    Bank(conn).open("alice")
    copy = killed(path, path.with_name("copy.db"))

    def fail(file: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageFailure, match=r"opening .* failed.*the disk reports an error"):
        open_database(copy, writer=True)


def test_a_database_may_be_a_symbolic_link(tmp_path: Path) -> None:
    """A log that lies beside the link is another one's: the checkpoints look at the one beside the file."""
    (tmp_path / "large").mkdir()
    (tmp_path / "node").mkdir()
    real, link = tmp_path / "large" / "node.db", tmp_path / "node" / "node.db"
    link.symlink_to(real)
    log_of(link).write_bytes(b"old")
    with closing(start(link)) as conn:
        bank = Bank(conn)
        for number in range(40):
            bank.open(f"a{number}")
        assert log_pages(real) <= PAGES + COMMIT
    assert log_of(link).read_bytes() == b"old"


def test_a_database_in_memory_has_no_log() -> None:
    conn = memory_database()
    assert checkpoint(conn)
    create_or_check(conn, GENESIS, NODE, VIEW)
    commit(conn, [CursorRow(NODE, 7)])


def test_what_was_never_opened_is_no_trouble(tmp_path: Path) -> None:
    with pytest.raises(StorageFailure, match="SQLITE_CANTOPEN"):
        open_database(tmp_path / "missing" / "node.db", writer=True)


def test_a_checkpoint_that_another_process_keeps_from_beginning_is_not_complete(path: Path) -> None:
    with (
        closing(start(path)) as conn,
        closing(sqlite3.connect(path)) as reader,
        closing(sqlite3.connect(path, check_same_thread=False)) as other,
    ):
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM links").fetchone()
        Bank(conn).open("alice")
        other.execute("PRAGMA busy_timeout=60000")

        def restart() -> None:
            while other.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[1] == -1:
                pass  # this test's own look at the lock below held it: SQLite refuses that at once, and does not wait

        waits = Thread(target=restart, daemon=True)
        waits.start()
        while conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1] != -1:  # until it holds the lock
            waits.join(0.01)
            assert waits.is_alive(), "it has ended without the lock"
        assert not checkpoint(conn)
        reader.rollback()
        waits.join()
        assert checkpoint(conn)

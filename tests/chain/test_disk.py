"""Checkpoints: the log goes into the database when it is long, its errors end the process, and nobody else makes one."""

import gc
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Thread

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
        waits = Thread(target=lambda: other.execute("PRAGMA wal_checkpoint(RESTART)"), daemon=True)
        waits.start()
        while conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1] != -1:  # until it holds the lock
            waits.join(0.01)
        assert not checkpoint(conn)
        reader.rollback()
        waits.join()
        assert checkpoint(conn)

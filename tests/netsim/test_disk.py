"""A simulated disk of files: what a failing sync and a cut leave is what SQLite itself makes of the files."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from chain.disk import checkpoint
from chain.errors import StorageFailure
from chain.seal import CursorRow, load_cursors
from chain.store import create_or_check
from netsim.disk import Disk
from tests.chain.bank import GENESIS, NODE, VIEW


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(lambda conn: create_or_check(conn, GENESIS, NODE, VIEW), tmp_path)
    disk.commit([CursorRow(NODE, 1)])
    yield disk
    disk.close()


@pytest.mark.parametrize(("seed", "seq"), [(0, 1), (1, 2)], ids=["of the log", "of the checkpoint"])
def test_a_sync_that_fails_loses_nothing_that_was_there(disk: Disk, tmp_path: Path, seed: int, seq: int) -> None:
    before = (tmp_path / "life-0.db").read_bytes()
    with pytest.raises(StorageFailure, match="SQLITE_IOERR_FSYNC"):
        disk.fail("fsync", [CursorRow(NODE, 2)], random.Random(seed))
    if seq == 2:
        assert (tmp_path / "life-1.db").read_bytes() == before
    disk.restart()
    assert load_cursors(disk.conn) == [CursorRow(NODE, seq)]


@pytest.mark.parametrize("nothing", [True, False])
def test_a_cut_of_a_log_that_has_begun_anew_is_within_what_is_new(disk: Disk, tmp_path: Path, nothing: bool) -> None:
    assert checkpoint(disk.conn)
    log = (tmp_path / "life-0.db-wal").stat().st_size

    def choose(first: int, end: int) -> int:
        assert 0 < first < end < log
        return first if nothing else end

    disk.cut_commit([CursorRow(NODE, 2)], choose)
    disk.restart()
    assert load_cursors(disk.conn) == [CursorRow(NODE, 1 if nothing else 2)]

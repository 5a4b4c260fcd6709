"""One process per data directory (design R12)."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chain.errors import LocalMisuse
from node.lock import LOCK_FILE, DataLock, lock_holder

HOLDER = """
import sys
from pathlib import Path
from node.lock import DataLock
with DataLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_holder_is_told_who_the_first_is(tmp_path: Path) -> None:
    with DataLock(tmp_path), pytest.raises(LocalMisuse, match=f"in use by process {os.getpid()}: stop that node first"):
        DataLock(tmp_path).__enter__()


def test_the_refused_holder_leaves_the_first_ones_lock_alone(tmp_path: Path) -> None:
    with DataLock(tmp_path):
        for _ in range(2):
            with pytest.raises(LocalMisuse):
                DataLock(tmp_path).__enter__()
        assert (tmp_path / LOCK_FILE).read_text() == f"{os.getpid()}\n"


def test_it_is_free_again_after_its_block_also_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), DataLock(tmp_path):
        raise KeyError
    (tmp_path / LOCK_FILE).write_text("123456789012345\n")
    lock = DataLock(tmp_path)
    for _ in range(2):
        with lock:
            assert (tmp_path / LOCK_FILE).read_text() == f"{os.getpid()}\n"


def test_another_process_holds_it_until_it_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LocalMisuse, match=f"process {holder.pid}"):
            DataLock(tmp_path).__enter__()
        holder.kill()
        holder.wait()
        with DataLock(tmp_path):
            assert (tmp_path / LOCK_FILE).read_text() == f"{os.getpid()}\n"


def test_no_directory_no_lock(tmp_path: Path) -> None:
    with pytest.raises(LocalMisuse, match=r"cannot be opened \(No such file or directory\)"):
        DataLock(tmp_path / "missing").__enter__()


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(
        LocalMisuse, match=r"cannot be locked \(Operation not supported\): keep .* on a local file system"
    ):
        DataLock(tmp_path).__enter__()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_knows_no_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / LOCK_FILE).write_text("7\n")
    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert lock_holder(tmp_path) is None


def test_the_holder_is_known_while_it_holds(tmp_path: Path) -> None:
    assert lock_holder(tmp_path) is None
    with DataLock(tmp_path):
        assert lock_holder(tmp_path) == os.getpid()
        with pytest.raises(LocalMisuse, match=f"process {os.getpid()}"):  # asking took nothing away
            DataLock(tmp_path).__enter__()
    assert (tmp_path / LOCK_FILE).read_text() == f"{os.getpid()}\n"
    assert lock_holder(tmp_path) is None


def test_a_command_that_looks_just_now_keeps_no_node_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`lock_holder` has the lock, shared, for a moment: here until the node has tried three times."""
    (tmp_path / LOCK_FILE).write_text("7\n")
    looking = os.open(tmp_path / LOCK_FILE, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    pauses: list[float] = []

    def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 3:
            os.close(looking)

    monkeypatch.setattr("time.sleep", sleep)
    with DataLock(tmp_path):
        assert (tmp_path / LOCK_FILE).read_text() == f"{os.getpid()}\n"
        pauses.clear()
        monkeypatch.setattr("time.sleep", pauses.append)
        with pytest.raises(LocalMisuse, match="in use by process"):
            DataLock(tmp_path).__enter__()
        assert len(pauses) == 10 and sum(pauses) == pytest.approx(0.1)


@pytest.mark.parametrize("refused", ["ftruncate", "pwrite"])
def test_a_full_disk_keeps_nobody_from_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    """What else the node does about it, and says, comes later."""

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, refused, full)
    with DataLock(tmp_path), pytest.raises(LocalMisuse, match="in use by process"):
        DataLock(tmp_path).__enter__()


def test_who_does_not_get_it_keeps_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def interrupted(descriptor: int, operation: int) -> None:
        opened.append(descriptor)
        raise KeyboardInterrupt

    monkeypatch.setattr(fcntl, "flock", interrupted)
    with pytest.raises(KeyboardInterrupt):
        DataLock(tmp_path).__enter__()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])

"""Files that are replaced whole, durably."""

import errno
import os
import stat
from pathlib import Path

import pytest

from node.durable import write_whole


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_on_disk_before_it_has_its_name_and_then_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[str], bytes]] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        real(handle)
        seen.append((sorted(path.name for path in tmp_path.iterdir()), (tmp_path / "it").read_bytes()))

    (tmp_path / "it").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(tmp_path / "it", b"new")
    assert seen == [([f".it.{os.getpid()}", "it"], b"old"), (["it"], b"new")]
    seen.clear()
    write_whole(tmp_path / "it", b"newer", through=tmp_path / "it.new")
    assert seen == [(["it", "it.new"], b"new"), (["it"], b"newer")]


@pytest.mark.parametrize("kept", [0o600, 0o640, 0o666])
def test_it_keeps_the_mode_of_the_old_one_and_is_never_open_to_more(
    tmp_path: Path, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "it"
    path.write_bytes(b"old")
    path.chmod(kept)
    modes: list[int] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        real(handle)
        modes.append(stat.S_IMODE(os.fstat(handle).st_mode))

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(path, b"new")
    assert mode(path) == kept and modes[0] & ~kept == 0


def test_a_new_one_has_the_mode_that_this_user_gives_to_files(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"")
    write_whole(tmp_path / "it", b"new")
    assert mode(tmp_path / "it") == mode(tmp_path / "other")


@pytest.mark.parametrize("when", ["the file", "its name"])
def test_what_the_disk_refuses_leaves_nothing_beside(
    tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "it").write_bytes(b"old")
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == (when == "its name"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        write_whole(tmp_path / "it", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["it"]
    assert (tmp_path / "it").read_bytes() == (b"old" if when == "the file" else b"new")


def test_ctrl_c_leaves_nothing_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "it").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "it", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("it", b"old")]


def test_a_file_system_that_has_no_names_to_sync_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(tmp_path / "it", b"new")
    assert (tmp_path / "it").read_bytes() == b"new"

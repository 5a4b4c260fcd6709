"""What a payment run must not forget: whole lines, durable, one writer at a time."""

import errno
import os
from pathlib import Path

import msgspec
import pytest

from chain.errors import LocalMisuse
from chain.request import NetworkId
from cli.output import CommandFailed, Exit
from cli.remembered import Remembered
from cli.runlock import lock_path, only_run
from cli.wallet import Wallet


class Line(msgspec.Struct):
    text: str


def lines(directory: Path) -> Remembered[Line]:
    return Remembered(directory, ("may",), Line)


def texts(directory: Path) -> list[str]:
    return [line.text for line in lines(directory).lines]


def only_file(directory: Path) -> Path:
    (path,) = directory.iterdir()
    return path


def no_space(handle: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_reader_leaves_a_line_alone_that_is_being_written(tmp_path: Path) -> None:
    writer = lines(tmp_path)
    writer.add(Line("one"), Line("two"))
    path = only_file(tmp_path)
    with path.open("ab") as unfinished:
        unfinished.write(b'{"text":"th')
    assert texts(tmp_path) == ["one", "two"]
    with path.open("ab") as unfinished:
        unfinished.write(b'ree"}\n')
    assert texts(tmp_path) == ["one", "two", "three"]


def test_a_file_that_is_none_or_not_text_is_told(tmp_path: Path) -> None:
    lines(tmp_path).add(Line("one"))
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes() + b'{"text":"\xff"}\n')
    with pytest.raises(LocalMisuse, match=r"line 2, is damaged.*from a copy"):
        lines(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(LocalMisuse, match=r"cannot be read \(Is a directory\), so what was sent before is not known"):
        lines(tmp_path)


def test_who_adds_cuts_an_unfinished_line_away(tmp_path: Path) -> None:
    lines(tmp_path).add(Line("one"))
    with only_file(tmp_path).open("ab") as unfinished:
        unfinished.write(b'{"text":"tw')
    later = lines(tmp_path)
    later.add(Line("three"))
    later.add(Line("four"))
    assert texts(tmp_path) == ["one", "three", "four"]
    assert only_file(tmp_path).read_bytes().count(b"\n") == 3


def test_lines_that_somebody_else_added_or_lost_are_not_written_over(tmp_path: Path) -> None:
    one, other = lines(tmp_path), lines(tmp_path)
    one.add(Line("one"))
    with pytest.raises(LocalMisuse, match=r"had 0 bytes and has \d+: another process changed it"):
        other.add(Line("other"))
    assert texts(tmp_path) == ["one"]
    only_file(tmp_path).write_bytes(b"")
    with pytest.raises(LocalMisuse, match=r"had \d+ bytes and has 0"):
        one.add(Line("two"))


def test_a_full_disk_is_told_and_nothing_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = lines(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", no_space)
        with pytest.raises(
            CommandFailed, match=r"could not be written .No space left on device.: free space"
        ) as failed:
            memory.add(Line("one"))
    assert (failed.value.exit_code, failed.value.code) == (Exit.DISK, "disk")
    assert memory.lines == []
    assert only_file(tmp_path).read_bytes() == b"", "after an fsync that failed, the next one may lie"
    memory.add(Line("one"))
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", no_space)
        with pytest.raises(CommandFailed):
            memory.add(Line("two"))
    memory.add(Line("three"))
    assert texts(tmp_path) == ["one", "three"]


def test_what_is_found_is_durable_before_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "bulk"
    lines(place).add(Line("one"))
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    assert texts(place) == ["one"]
    assert synced == [only_file(place).stat().st_ino, place.stat().st_ino, tmp_path.stat().st_ino]
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(CommandFailed, match="free space"):
        lines(place)


def test_the_name_of_a_new_file_is_durable_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    place = tmp_path / "bulk"
    memory = lines(place)
    memory.add(Line("one"))
    assert synced == [only_file(place).stat().st_ino, place.stat().st_ino, tmp_path.stat().st_ino]
    memory.add(Line("two"))
    assert synced[3:] == synced[:1]


def test_a_run_is_held_by_one_and_free_when_it_ends(home: Path) -> None:
    wallet = Wallet(NetworkId(b"\x5a" * 32))
    with only_run(wallet, "may"):
        with (
            pytest.raises(LocalMisuse, match=rf"run 'may' is in progress in process {os.getpid()}: wait"),
            only_run(wallet, "may"),
        ):
            raise AssertionError("held twice")
        with only_run(wallet, "june"), only_run(Wallet(NetworkId(b"\x5b" * 32)), "may"):
            pass
        lock_path(wallet, "may").write_bytes(b"")
        with pytest.raises(LocalMisuse, match=r"process \(unknown\)"), only_run(wallet, "may"):
            raise AssertionError("held twice")
    with only_run(wallet, "may"):
        assert lock_path(wallet, "may").read_text() == f"{os.getpid()}\n"
    assert wallet.directory.stat().st_mode & 0o777 == 0o700

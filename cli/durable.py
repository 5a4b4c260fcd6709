"""Files of this user that are on disk before a request leaves, and one kind of error for all that the disk refuses."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final

from cli.output import CommandFailed, Exit
from hopchain.durable import sync_directory

_AGAIN: Final = "free space on that disk, or let this user write there, then run the same command again: no request leaves before it is remembered there"


@contextmanager
def on_disk(path: Path, what_to_do: str = _AGAIN) -> Iterator[None]:
    """What writes to `path`: an `OSError` becomes `CommandFailed` that says so."""
    try:
        yield
    except OSError as error:
        raise CommandFailed(
            Exit.DISK, "disk", f"{path} could not be written ({error.strerror or error}): {what_to_do}"
        ) from None


@contextmanager
def one_at_a_time(directory: Path, *, must_lock: bool) -> Iterator[None]:
    """Be the one process that does this in a directory; the others wait. The kernel lets go of it when the process
    ends, however that is. Where it cannot be locked: an `OSError`, or without `must_lock` several do it at once."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with nullcontext() if must_lock else suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def append(path: Path, made: Callable[[int], tuple[int, bytes]]) -> None:
    """Append to the file at `path`, one process at a time; durable when this returns, its name too. `made`: of the open
    file, how much of it stays, and what comes after that.

    When the disk refuses, what was appended is cut away again: after an fsync that failed, Linux may call the next one
    good."""
    with on_disk(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            fresh = os.fstat(handle).st_size == 0
            kept, raw = made(handle)
            try:
                os.ftruncate(handle, kept)
                left = memoryview(raw)
                while left:
                    left = left[os.write(handle, left) :]
                os.fsync(handle)
                if fresh:
                    sync_directory(path.parent)
                    sync_directory(path.parent.parent)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(handle, kept)
                raise
        finally:
            os.close(handle)


def make_durable(path: Path) -> None:
    """Make what was read of a file durable, and its name. Who wrote it may have been killed before that, and until then
    it is in this machine's memory alone."""
    with on_disk(path):
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        sync_directory(path.parent)
        sync_directory(path.parent.parent)

"""Files of this user that are on disk before a request leaves, and one kind of error for all that the disk refuses."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from cli.output import CommandFailed, Exit

_AGAIN: Final = "make room on that disk or mend it, then run the same command again: no request leaves before it is remembered there"


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
def appending(path: Path) -> Iterator[BinaryIO]:
    """The file at `path` to append to, by one process at a time; durable when the block ends, its name too."""
    with on_disk(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "ab") as file:
            fcntl.flock(handle, fcntl.LOCK_EX)
            fresh = os.fstat(handle).st_size == 0
            yield file
            file.flush()
            os.fsync(handle)
            if fresh:
                sync_directory(path.parent)
                sync_directory(path.parent.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

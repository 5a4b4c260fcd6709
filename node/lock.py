"""One process per data directory (design R12): two copies of a node would forget each other's votes.

The lock is the kernel's (`flock` on node.lock), so it is gone when its process is, however that ended. The file
stays; the process id in it is only for the message to the second process.
"""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from chain.errors import LocalMisuse

LOCK_FILE: Final = "node.lock"
_MAX_PID_BYTES: Final = 32
_TRIES: Final = 11  # of a node to lock its directory, 0.1 s in all
_PAUSE_S: Final = 0.01


def try_lock(descriptor: int) -> str | None:
    """Lock this open file for this process: None; or what the process that holds it has left in it, "(unknown)"
    when that is nothing. `note_holder` follows. Raises `OSError` where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(descriptor)
    return None


def note_holder(descriptor: int) -> None:
    """Leave the id of this process in the file that it has locked. Raises `OSError` on a full disk: the lock is what
    counts."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, _MAX_PID_BYTES, 0).decode("ascii", "replace").strip() or "(unknown)"


def lock_holder(directory: Path) -> int | None:
    """The process that runs the node of this directory; None when none does. It may end, or start, at any moment. None
    too where the file system has no locks: a node that is started there says so and ends."""
    try:
        descriptor = os.open(directory / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(descriptor)
        return int(holder) if holder.isdigit() else None
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def holds_lock(pid: int, directory: Path) -> bool:
    """True when the process with this number here is the one that has the lock file of this directory open: the file
    stays when its process has ended, and numbers differ between containers. False for another user's process."""
    lock = os.path.realpath(directory / LOCK_FILE)
    try:
        return any(os.path.realpath(entry) == lock for entry in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


class DataLock:
    """`with DataLock(directory):` holds the directory; a second holder gets `LocalMisuse` with the first one's pid."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / LOCK_FILE
        self._descriptor: int | None = None

    def __enter__(self) -> "DataLock":
        assert self._descriptor is None, f"{self._path} is already held by this object"
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LocalMisuse(
                f"{self._path} cannot be opened ({error.strerror}): is this the directory of a node, and yours?"
            ) from None
        try:
            self._lock(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def _lock(self, descriptor: int) -> None:
        try:
            holder = try_lock(descriptor)
            for _ in range(_TRIES - 1):  # `lock_holder` of a command that looks just now has it, too, for a moment
                if holder is None:
                    break
                time.sleep(_PAUSE_S)
                holder = try_lock(descriptor)
        except OSError as error:
            raise LocalMisuse(
                f"{self._path} cannot be locked ({error.strerror}): keep the directory on a local file system"
            ) from None
        if holder is not None:
            raise LocalMisuse(f"{self._path.parent} is in use by process {holder}: stop that node first")
        with suppress(OSError):  # a full disk, which is told by what needs it
            note_holder(descriptor)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._descriptor is not None
        os.close(self._descriptor)
        self._descriptor = None

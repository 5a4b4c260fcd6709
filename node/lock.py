"""One process per data directory (design R12): two copies of a node would forget each other's votes.

The lock is the kernel's (`flock` on node.lock), so it is gone when its process is, however that ended. The file
stays; the process id in it is only for the message to the second process.
"""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Final

from chain.errors import LocalMisuse

LOCK_FILE: Final = "node.lock"
_MAX_PID_BYTES: Final = 32


def lock_holder(directory: Path) -> int | None:
    """The process that runs the node of this directory; None when none does. It may end, or start, at any moment. None too
    where the file system has no locks: a node that is started there says so and ends."""
    try:
        descriptor = os.open(directory / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, _MAX_PID_BYTES).decode("ascii", "replace").strip()
        return int(holder) if holder.isdigit() else None
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


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
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, _MAX_PID_BYTES).decode("ascii", "replace").strip()
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                text = f"{self._path.parent} is in use by process {holder or '(unknown)'}: stop that node first"
            else:
                text = f"{self._path} cannot be locked ({error.strerror}): keep the directory on a local file system"
            raise LocalMisuse(text) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._descriptor is not None
        os.close(self._descriptor)
        self._descriptor = None

"""Secrets as files, and names that are on disk before anything relies on them."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from chain.errors import LocalMisuse

SECRET_MODE: Final = 0o600


def write_secret(path: Path, secret: bytes, advice: str = "move it away first") -> None:
    """Make the file `path` with mode 0600 from its first byte, durably but for its name. `LocalMisuse`, which ends in
    `advice`, when it exists; after any other error nothing is there."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, SECRET_MODE)
    except FileExistsError:
        raise LocalMisuse(f"{path} exists and is not replaced: {advice}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # Ctrl-C, too: half a secret is none
        with suppress(OSError):
            path.unlink()
        raise


def sync_name(path: Path) -> None:
    """Make the name of a file or directory durable, where that is possible."""
    try:
        sync_directory(path.parent)
    except OSError as error:
        # some network shares have nothing to sync there; and who may make names need not be allowed to read them
        if error.errno not in (errno.EINVAL, errno.EACCES):
            raise


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""One process at a time makes the payments of a run label: what is remembered of a run (cli.batches, cli.funding, the
journal) is looked at first and added to later, and two processes in between would pay the same rows in different
requests.

The lock is the kernel's (`flock`), so it is gone when its process is, however that ended. The file stays; the process
id in it is only for the message to the second process.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from chain.errors import LocalMisuse
from cli.durable import on_disk
from cli.wallet import Wallet
from node.lock import note_holder, try_lock

_DIRECTORY: Final = "runs"


def lock_path(wallet: Wallet, label: str) -> Path:
    """Where the lock of a run is."""
    return wallet.directory / _DIRECTORY / f"{hashlib.sha256(label.encode()).hexdigest()[:32]}.lock"


@contextmanager
def only_run(wallet: Wallet, label: str) -> Iterator[None]:
    """Hold the run `label` of this wallet, its funding too. `LocalMisuse` when another process does."""
    path = lock_path(wallet, label)
    wallet.make_directory()
    with on_disk(path):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            holder = try_lock(handle)
        except OSError as error:
            raise LocalMisuse(
                f"{path} cannot be locked ({error.strerror}): keep HOPCHAIN_HOME on a local file system"
            ) from None
        if holder is not None:
            raise LocalMisuse(
                f"run {label!r} is in progress in process {holder}: wait for its end, then run this again: nothing is paid twice. "
                "Other payments need a label of their own: name one with --run"
            )
        with on_disk(path):
            note_holder(handle)
        yield
    finally:
        os.close(handle)

"""Small files that are replaced whole: whoever reads one, also after a crash or a power cut, gets the old one or the
new one."""

import os
import stat
from contextlib import suppress
from pathlib import Path

from hopchain.durable import sync_name


def write_whole(path: Path, content: bytes, *, through: Path | None = None) -> None:
    """Put a new file in place of what was there, durably, its name too; it keeps the mode of the old one. Raises
    `OSError`.

    `through`: where it is written first, when there is one writer only; else each process has a place of its own.
    """
    fresh = through or path.with_name(f".{path.name}.{os.getpid()}")
    try:
        mode = _mode(path)
        with open(
            fresh, "wb", opener=lambda name, flags: os.open(name, flags, 0o666 if mode is None else mode)
        ) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name with nothing in it
            if mode is not None:
                os.fchmod(file.fileno(), mode)
        fresh.replace(path)
        sync_name(path)
    except BaseException:  # Ctrl-C, too
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise


def sync_tree(directory: Path) -> None:
    """Make all that is in a directory durable, the names last."""
    for path in directory.iterdir():
        if path.is_dir():
            sync_tree(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_name(directory / "any")


def _mode(path: Path) -> int | None:
    """Who may do what with the file that is there; None when there is none."""
    with suppress(FileNotFoundError):
        return stat.S_IMODE(path.stat().st_mode)
    return None

"""What a payment run must not forget: append-only files in the wallet, one JSON document a line, durable before requests leave.

A line never changes, so its requests can be made again at any time and pay once. A last line that was cut off while it was
written is dropped: its requests never left.
"""

import hashlib
import os
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from chain.errors import LocalMisuse

T = TypeVar("T", bound=msgspec.Struct)


class Remembered(Generic[T]):
    """The lines of one file, oldest first. `named`: what the file is about; another file for every other name."""

    def __init__(self, directory: Path, named: tuple[str, ...], line_type: type[T]) -> None:
        name = hashlib.sha256(msgspec.json.encode(named)).hexdigest()[:32]
        self._path = directory / f"{name}.jsonl"
        self.lines: list[T] = []
        if not self._path.exists():
            return
        raws = self._path.read_bytes().splitlines(keepends=True)
        for number, raw in enumerate(raws, start=1):
            if not raw.endswith(b"\n"):
                os.truncate(self._path, sum(map(len, raws[:-1])))
                break
            try:
                self.lines.append(msgspec.json.decode(raw, type=line_type))
            except msgspec.MsgspecError as error:
                raise LocalMisuse(
                    f"{self._path}, line {number}, is damaged ({error}): restore it from a copy"
                ) from None

    def add(self, *lines: T) -> None:
        """Remember these, durably."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        self.lines += lines

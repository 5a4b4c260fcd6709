"""What a payment run must not forget: append-only files in the wallet, one JSON document a line, durable before
requests leave.

A line never changes, so its requests can be made again at any time and pay once. What is found is made durable before
it is used: who wrote it may have died before it was. A last line that has no end is being written,
or was cut off then, so its requests have not left: who reads ignores it, and who adds, which only the holder of the
run's lock does (cli.runlock), cuts it away.
"""

import hashlib
import os
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from chain.errors import LocalMisuse
from cli.durable import append, make_durable

T = TypeVar("T", bound=msgspec.Struct)


class Remembered(Generic[T]):
    """The lines of one file, oldest first. `named`: what the file is about; another file for every other name."""

    def __init__(self, directory: Path, named: tuple[str, ...], line_type: type[T]) -> None:
        name = hashlib.sha256(msgspec.json.encode(named)).hexdigest()[:32]
        self._path = directory / f"{name}.jsonl"
        self.lines: list[T] = []
        self._size = 0  # of the whole lines, in bytes
        try:
            found = self._path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise LocalMisuse(
                f"{self._path} cannot be read ({error.strerror}), so what was sent before is not known: restore it from a copy"
            ) from None
        make_durable(self._path)  # what is known from here on may send requests
        for number, raw in enumerate(found.splitlines(keepends=True), start=1):
            if not raw.endswith(b"\n"):
                break
            self._size += len(raw)
            try:
                self.lines.append(msgspec.json.decode(raw, type=line_type))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise LocalMisuse(
                    f"{self._path}, line {number}, is damaged ({error}): restore it from a copy"
                ) from None

    def add(self, *lines: T) -> None:
        """Remember these, durably. `LocalMisuse` when somebody else has added lines; `CommandFailed` when the disk is
        full."""
        raw = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)

        def made(handle: int) -> tuple[int, bytes]:
            size = os.fstat(handle).st_size
            rest = os.pread(handle, max(size - self._size, 0), self._size)
            if size < self._size or b"\n" in rest:
                raise LocalMisuse(
                    f"{self._path} had {self._size} bytes and has {size}: another process changed it. Run this again"
                )
            return self._size, raw

        append(self._path, made)
        self._size += len(raw)
        self.lines += lines

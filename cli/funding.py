"""Which rows of a run were funded: one append-only file per run label and source in the wallet.

Each line is one batch: the rows' keys and what each payer needs for them, written durably before the requests leave.
A batch never changes, so its requests can be made again at any time and pay once.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from chain.errors import LocalMisuse

Needs = tuple[tuple[str, int], ...]

_DIRECTORY: Final = "funded"


class _Batch(msgspec.Struct, frozen=True):
    rows: tuple[str, ...]
    needs: Needs


class FundedRows:
    """What is remembered of one run: `rows` that have been funded and the `batches` of needs, oldest first."""

    def __init__(self, wallet_directory: Path, label: str, source: str) -> None:
        name = hashlib.sha256(msgspec.json.encode([label, source])).hexdigest()[:32]
        self._path = wallet_directory / _DIRECTORY / f"{name}.jsonl"
        self.rows: set[str] = set()
        self.batches: list[Needs] = []
        if not self._path.exists():
            return
        lines = self._path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):  # cut off while it was written: its requests never left
                self._cut(sum(map(len, lines[:-1])))
                break
            try:
                self._remember(msgspec.json.decode(line, type=_Batch))
            except msgspec.MsgspecError as error:
                raise LocalMisuse(
                    f"{self._path}, line {number}, is damaged ({error}): restore it from a copy"
                ) from None

    def add(self, rows: Sequence[str], needs: Sequence[tuple[str, int]]) -> None:
        """Remember a batch, durably."""
        batch = _Batch(tuple(rows), tuple(needs))
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode(batch) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._remember(batch)

    def _remember(self, batch: _Batch) -> None:
        self.rows.update(batch.rows)
        self.batches.append(batch.needs)

    def _cut(self, size: int) -> None:
        os.truncate(self._path, size)

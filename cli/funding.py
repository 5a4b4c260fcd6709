"""Which rows of a run were funded: one file per run label and source in the wallet (cli.remembered).

Each line is one batch: the rows' keys and what each payer needs for them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from cli.remembered import Remembered

Needs = tuple[tuple[str, int], ...]

_DIRECTORY: Final = "funded"


class _Batch(msgspec.Struct, frozen=True):
    rows: tuple[str, ...]
    needs: Needs


class FundedRows:
    """What is remembered of one run: `rows` that have been funded and the `batches` of needs, oldest first."""

    def __init__(self, wallet_directory: Path, label: str, source: str) -> None:
        self._file = Remembered(wallet_directory / _DIRECTORY, (label, source), _Batch)
        self.rows = {row for batch in self._file.lines for row in batch.rows}

    @property
    def batches(self) -> list[Needs]:
        """What was needed, oldest first."""
        return [batch.needs for batch in self._file.lines]

    def add(self, rows: Sequence[str], needs: Sequence[tuple[str, int]]) -> None:
        """Remember a batch, durably."""
        self._file.add(_Batch(tuple(rows), tuple(needs)))
        self.rows.update(rows)

"""Which rows of a run travelled together: one file per run label in the wallet (cli.remembered). See cli.paybatches."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from cli.remembered import Remembered

_DIRECTORY: Final = "bulk"


class Batch(msgspec.Struct, frozen=True):
    """One request of a run: its rows by their keys, in order. `attempt` counts the earlier ones that held any of them.
    `void`: the run is about to cancel a request that it sent before; such a line holds no rows."""

    sender: str
    attempt: int
    request_id: str
    rows: tuple[str, ...]
    void: bool = False


class SentBatches:
    """The batches of one run, oldest first; `of` has the newest one of each row, `void` the ids that the run gave
    up."""

    def __init__(self, wallet_directory: Path, label: str) -> None:
        self._file = Remembered(wallet_directory / _DIRECTORY, (label,), Batch)
        self.of: dict[str, Batch] = {}
        self.void: set[str] = set()
        self._count: Counter[str] = Counter()
        self._note(self._file.lines)

    def add(self, batches: Sequence[Batch]) -> None:
        """Remember them, durably."""
        self._file.add(*batches)
        self._note(batches)

    def give_up(self, batch: Batch) -> None:
        """Remember, durably, that the run is about to cancel this one: cancelled so, its rows are free for another."""
        if batch.request_id not in self.void:
            self.add([Batch(batch.sender, batch.attempt, batch.request_id, (), void=True)])

    def attempts(self, rows: Sequence[str]) -> int:
        """How many batches have held one of these rows, at most."""
        return max(self._count[row] for row in rows)

    def senders(self, row: str) -> list[str]:
        """The accounts whose batches have held this row, oldest first."""
        return [batch.sender for batch in self._file.lines if row in batch.rows]

    def _note(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            self.of.update(dict.fromkeys(batch.rows, batch))
            self._count.update(batch.rows)
            if batch.void:
                self.void.add(batch.request_id)

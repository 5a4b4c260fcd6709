"""Which rows of a run were funded, and by which requests: one file per run label and source in the wallet
(cli.remembered).

Each line is one request: the rows' keys and what each payer needs for them. A line may instead give up an earlier one,
whose request was not executed and never will be: its rows are as if they had not been funded. A line that an older
version wrote may need several requests; such a line is never given up.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from chain.names import MAX_AMOUNT
from chain.request import MAX_POSTINGS
from cli.remembered import Remembered

Needs = tuple[tuple[str, int], ...]

_DIRECTORY: Final = "funded"


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """`void`: the place of the line that is given up, from 0; such a line holds nothing else."""

    rows: tuple[str, ...] = ()
    needs: Needs = ()
    void: int | None = None


class Funding(msgspec.Struct, frozen=True):
    """A request that funds payers: `number` of all in the file, given up or not. `line`: its place in the file; `rows`:
    what it is for, with what the other requests of its line are for, `alone` when there is none."""

    number: int
    needs: Needs
    rows: tuple[str, ...]
    line: int
    alone: bool


class FundedRows:
    """What is remembered of one run: `rows` that have been funded, and `requests` that do it."""

    def __init__(self, wallet_directory: Path, label: str, source: str) -> None:
        self._file = Remembered(wallet_directory / _DIRECTORY, (label, source), _Line)
        self.rows: set[str] = set()
        self._void: set[int] = set()
        for line in self._file.lines:
            self._note(line)

    @property
    def requests(self) -> list[Funding]:
        """The requests that are not given up, oldest first."""
        found: list[Funding] = []
        number = 0
        for place, line in enumerate(self._file.lines):
            parts = split(line.needs) if line.void is None else []
            if place not in self._void:
                alone = len(parts) == 1
                found += [Funding(number + n, part, line.rows, place, alone) for n, part in enumerate(parts)]
            number += len(parts)
        return found

    def add(self, rows: Mapping[str, tuple[str, int]]) -> None:
        """Remember requests for these rows, by key with payer and amount, durably: each payer gets the sum of its rows
        from one."""
        sums: Counter[str] = Counter()
        of: dict[str, list[str]] = {}
        for row, (payer, amount) in rows.items():
            sums[payer] += amount
            of.setdefault(payer, []).append(row)
        if sums:
            parts = split(tuple(sorted(sums.items())))
            self._add(_Line(tuple(row for payer, _ in part for row in of[payer]), part) for part in parts)

    def give_up(self, request: Funding) -> None:
        """Remember, durably, that a request never executes."""
        assert request.alone
        self._add([_Line(void=request.line)])

    def _add(self, lines: Iterable[_Line]) -> None:
        added = list(lines)
        self._file.add(*added)
        for line in added:
            self._note(line)

    def _note(self, line: _Line) -> None:
        self.rows.update(line.rows)
        if line.void is not None:
            self._void.add(line.void)
            self.rows.difference_update(self._file.lines[line.void].rows)


def split(needs: Needs) -> list[Needs]:
    """The needs in parts that one request can hold: at most MAX_POSTINGS, adding up to at most MAX_AMOUNT."""
    parts: list[list[tuple[str, int]]] = [[]]
    total = 0
    for payer, amount in needs:
        if parts[-1] and (len(parts[-1]) == MAX_POSTINGS or total + amount > MAX_AMOUNT):
            parts.append([])
            total = 0
        parts[-1].append((payer, amount))
        total += amount
    return [tuple(part) for part in parts]

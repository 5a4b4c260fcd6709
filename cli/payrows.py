"""Which rows were in the files of one run label: one file per label in the wallet (cli.remembered).

What makes a row this payment is in its request's nonce (cli.payfile), so an edited row is another payment, and the
first one stays paid. Nobody would ever be told: the request of a row that left the file cannot be made from the file.
So the rows are remembered before any is sent, and of those that have left it the network is asked, once, whether they
were paid.
"""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

import msgspec

from cli.payfile import Payment, payment_key
from cli.remembered import Remembered

_DIRECTORY: Final = "rows"


class _Row(msgspec.Struct, frozen=True, array_like=True):
    sender: str
    recipient: str
    amount: int
    reference: str
    occurrence: int


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one run added. `paid`: keys of rows that had left the file, and are known to be paid."""

    rows: tuple[_Row, ...] = ()
    paid: tuple[str, ...] = ()


class SeenRows:
    """The payments of all files of one label, by key, whether they were paid or not (their `line` is 0); `paid`: those
    of them that had left the file when the network said that they are paid."""

    def __init__(self, wallet_directory: Path, label: str) -> None:
        self._file = Remembered(wallet_directory / _DIRECTORY, (label,), _Line)
        self.rows: dict[str, Payment] = {}
        self.paid: set[str] = set()
        for line in self._file.lines:
            self._note(line)

    def add(self, rows: Iterable[Payment], paid: Collection[str]) -> None:
        """Remember what is new of it, durably."""
        new = [p for p in rows if payment_key(p) not in self.rows]
        line = _Line(
            tuple(_Row(p.sender, p.recipient, p.amount, p.reference, p.occurrence) for p in new),
            tuple(key for key in paid if key not in self.paid),
        )
        if line.rows or line.paid:
            self._file.add(line)
            self._note(line)

    def _note(self, line: _Line) -> None:
        for row in line.rows:
            payment = Payment(0, row.sender, row.recipient, row.amount, row.reference, row.occurrence)
            self.rows[payment_key(payment)] = payment
        self.paid.update(line.paid)

"""Payment files: a CSV with one payment a row, and what makes each payment this one and no other.

The nonce of a payment is SHA-256(tag | run label | from | to | amount | reference | occurrence), where the occurrence
numbers rows that are equal in all of these, from 0. So it does not depend on the row's place: the same file again, a
file with rows added, or one sorted otherwise gives the same requests for the same payments, and each is paid once.
"""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from chain.errors import LocalMisuse
from cli.command import checked_name, checked_reference
from cli.money import parse_amount

DELIMITERS: Final = ";,\t|"
_MARK: Final = "\ufeff"  # spreadsheets may begin UTF-8 with it
_TAG: Final = b"hopchain:pay:1\0"


class Columns(msgspec.Struct, frozen=True):
    """Which columns hold what. Several name columns are joined with "-" and lower-cased after the prefix."""

    sender: tuple[str, ...]
    recipient: tuple[str, ...]
    amount: str
    reference: str | None = None
    sender_prefix: str = ""
    recipient_prefix: str = ""

    @property
    def all(self) -> tuple[str, ...]:
        """Every column that must be there."""
        return (*self.sender, *self.recipient, self.amount, *([self.reference] if self.reference else []))


class Payment(msgspec.Struct, frozen=True):
    """One row: `line` of the file, amount in minor units. `fault` says why the row cannot be a payment, else empty."""

    line: int
    sender: str
    recipient: str
    amount: int
    reference: str
    occurrence: int
    fault: str = ""


class Row(msgspec.Struct, frozen=True):
    """One row of a table: `line` of the file, column -> value. `fault` says why it may be another row than was meant,
    else empty."""

    line: int
    cells: Mapping[str, str]
    fault: str = ""


def read_table(path: Path, delimiter: str | None, columns: Sequence[str]) -> list[Row]:
    """Every row with the values of `columns`. `LocalMisuse` when the file cannot be read, or lacks a column or has it
    twice."""
    if delimiter and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise LocalMisuse(
            f"--delimiter {delimiter[:80]!r}: it must be one character, such as ';', and no quote or end of a line"
        )
    try:
        with io.StringIO(path.read_bytes().decode().removeprefix(_MARK), newline="") as file:
            head = next((line for line in file if line.strip()), "")
            file.seek(0)
            delimiter = delimiter or find_delimiter(head)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            names = next((cells for cells in reader if not _is_blank(cells)), [])
            if not names:
                raise LocalMisuse(f"{path} is empty: its first line must name the columns")
            names = [name if name in columns else name.strip() for name in names]
            if missing := [c for c in columns if c not in names]:
                raise LocalMisuse(f"{path} has no column {', '.join(missing)}; it has: {', '.join(names)}")
            if twice := [c for c in dict.fromkeys(columns) if names.count(c) > 1]:
                raise LocalMisuse(
                    f"{path} has more than one column {', '.join(twice)}: which one is meant is not known. Give each a name "
                    "of its own"
                )
            places = {column: names.index(column) for column in columns}
            return [
                Row(
                    reader.line_num,
                    {column: cells[place].strip() if place < len(cells) else "" for column, place in places.items()},
                    _wrong_length(len(cells), len(names), delimiter),
                )
                for cells in reader
                if not _is_blank(cells)
            ]
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise LocalMisuse(
            f"{path} is not UTF-8 text (line {line}, byte {error.start} of the file): convert it first"
        ) from None
    except csv.Error as error:
        raise LocalMisuse(
            f"{path} is not a CSV file (line {reader.line_num}: {error}): is a quote not closed, or --delimiter wrong?"
        ) from None
    except (OSError, TypeError) as error:
        raise LocalMisuse(f"{path} cannot be read: {error}") from None


def _is_blank(cells: Sequence[str]) -> bool:
    """True for an empty line, also one of separators alone, as spreadsheets leave them below a table."""
    return not any(cell.strip() for cell in cells)


def _wrong_length(cells: int, columns: int, delimiter: str) -> str:
    """Why a row of so many cells is not taken as it is; empty when it has one for each column. One more may be an
    amount that was torn apart at its thousands, also when the cell that is too many is empty; one less, the end of a
    file that was cut off."""
    if cells == columns:
        return ""
    told = f"the row has {cells} {'cell' if cells == 1 else 'cells'} and the header {columns}"
    if cells > columns:
        return f"{told}: quote a cell that holds the separator {delimiter!r}"
    return f"{told}: it may be cut off. Write a separator {delimiter!r} for each cell that is empty, too"


def find_delimiter(head: str) -> str:
    """The delimiter that occurs most often in the header line, outside quotes."""
    plain = "".join(head.split('"')[::2])
    return max(DELIMITERS, key=plain.count)


def account_name(row: Mapping[str, str], columns: Sequence[str], prefix: str) -> str:
    """The account that these columns of a row name."""
    return prefix + "-".join(row[c] for c in columns).lower()


def payments(rows: Sequence[Row], columns: Columns, scale: int, asset: str) -> list[Payment]:
    """The rows as payments; a row that cannot be one carries its fault, and the others go on."""
    seen: Counter[tuple[str, str, int, str]] = Counter()
    found: list[Payment] = []
    for table_row in rows:
        line, row = table_row.line, table_row.cells
        sender = account_name(row, columns.sender, columns.sender_prefix)
        recipient = account_name(row, columns.recipient, columns.recipient_prefix)
        reference = row[columns.reference] if columns.reference else ""
        try:
            if table_row.fault:
                raise LocalMisuse(table_row.fault)
            amount = _checked(sender, recipient, row[columns.amount], reference, scale, asset)
        except LocalMisuse as error:
            found.append(Payment(line, sender, recipient, 0, reference, 0, str(error)))
            continue
        same = (sender, recipient, amount, reference)
        found.append(Payment(line, sender, recipient, amount, reference, seen[same]))
        seen[same] += 1
    return found


def _checked(sender: str, recipient: str, amount: str, reference: str, scale: int, asset: str) -> int:
    for name in (sender, recipient):
        checked_name(name)
    if sender == recipient:
        raise LocalMisuse(f"{sender} cannot pay itself")
    checked_reference(reference)
    return parse_amount(amount, scale, asset)


def payment_nonce(run: str, payment: Payment, attempt: int = 0) -> bytes:
    """32 bytes that are this payment of this run. `attempt` above 0: once more after a rejection."""
    return _hash(
        "row",
        run,
        payment.sender,
        payment.recipient,
        payment.amount,
        payment.reference,
        payment.occurrence,
        attempt,
    )


def pooled_nonce(run: str, payment: Payment, number: int) -> bytes:
    """The nonce of request number `number` of a row that a pool pays. It names no account: whose request it is stands
    in the request, and which account that is, is remembered (cli.sources)."""
    return _hash("pool", run, payment_key(payment), number)


def funding_nonce(run: str, source: str, part: int, attempt: int, needs: Sequence[tuple[str, int]]) -> bytes:
    """The nonce of request number `part` that gives payers what their rows need."""
    return _hash("fund", run, source, part, attempt, *(field for need in needs for field in need))


def bulk_nonce(run: str, sender: str, attempt: int, rows: Sequence[str]) -> bytes:
    """The nonce of the request that holds these rows of a payer, by their keys."""
    return _hash("bulk", run, sender, attempt, *rows)


def payment_key(payment: Payment) -> str:
    """A short name of a payment within its run, for the lists of rows that were funded, or sent together."""
    return payment_nonce("", payment).hex()


def _hash(*fields: str | int) -> bytes:
    return hashlib.sha256(_TAG + msgspec.json.encode(fields)).digest()

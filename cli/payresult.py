"""What became of the rows of a payment file, and the file that tells it."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from cli.durable import on_disk
from cli.money import format_amount
from cli.payfile import Payment
from cli.receipt import answer_name, answer_text
from hopchain import Answer, NotStarted, Recorded, Unknown

NOT_SENT: Final = "not_sent"
_NO_ANSWER: Final = frozenset({NOT_SENT, "unknown", "not_started"})


class RowResult(msgspec.Struct):
    """What became of one row. `answered`: a node said so in this run; `paid_from`: the account whose request it is."""

    outcome: str
    reason: str = ""
    answered: bool = False
    repeated: bool = False
    request_id: str = ""
    link_hash: str = ""
    height: int | None = None
    paid_from: str = ""


def result_of(answer: Answer, request_id: bytes, paid_from: str) -> RowResult:
    """What an answer makes of the rows of its request."""
    result = RowResult(answer_name(answer), answer_text(answer), request_id=request_id.hex(), paid_from=paid_from)
    result.answered = not isinstance(answer, Unknown | NotStarted)
    if isinstance(answer, Recorded):
        result.repeated = answer.repeated
        result.link_hash = answer.link_hash.hex()
        result.height = answer.height
    return result


def write_results(path: Path, rows: Sequence[Payment], results: Sequence[RowResult], scale: int) -> None:
    """Write the result file whole, or leave the old one. Raises `CommandFailed` when the disk refuses it."""
    in_place = path.exists() and not path.is_file()  # /dev/null, a pipe: nothing to be kept whole
    fresh = path if in_place else path.with_name(f".{path.name}.{os.getpid()}")
    what_to_do = (
        "make room there, or name another file with --result, then run the same command again: it pays nothing twice and "
        "writes all outcomes"
    )
    with on_disk(path, what_to_do):
        try:
            with fresh.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(
                    [
                        "line",
                        "from",
                        "to",
                        "amount",
                        "reference",
                        "outcome",
                        "repeated",
                        "request_id",
                        "link_hash",
                        "height",
                        "reason",
                        "paid_from",
                    ]
                )
                for payment, result in zip(rows, results, strict=True):
                    writer.writerow(
                        [
                            payment.line,
                            payment.sender,
                            payment.recipient,
                            format_amount(payment.amount, scale) if not payment.fault else "",
                            payment.reference,
                            result.outcome,
                            "yes" if result.repeated else "",
                            result.request_id,
                            result.link_hash,
                            "" if result.height is None else result.height,
                            result.reason,
                            result.paid_from,
                        ]
                    )
            if not in_place:
                fresh.replace(path)
        finally:
            if not in_place:
                fresh.unlink(missing_ok=True)


def is_worse(results: Sequence[RowResult]) -> bool:
    """True when no row got an answer in this run and some were owed one: what an earlier run wrote says more."""
    return not any(r.answered for r in results) and any(r.outcome in _NO_ANSWER for r in results)

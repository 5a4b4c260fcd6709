"""What became of the rows of a payment file, and the file that tells it."""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from chain.link import Outcome
from cli.durable import on_disk
from cli.money import format_amount
from cli.payfile import Payment, find_delimiter
from cli.receipt import answer_name, answer_text
from hopchain import Answer, NotStarted, Recorded, Unknown
from node.durable import write_whole

NOT_SENT: Final = "not_sent"
_NO_ANSWER: Final = frozenset({NOT_SENT, "unknown", "not_started", "no_key"})  # of no node
_NOT_ASKED: Final = "an earlier run may have sent it; not asked in this one"
_COLUMNS: Final = (
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
    "run",
    "network",
)
_ROW: Final = ("line", "from", "to", "amount", "reference")
_SAID: Final = (*_ROW, "outcome", "request_id")  # of a row that got an answer
_SHORT: Final = "the account had less than that; nothing moved. Send money to it, then run this again"
_NO_RUN: Final = ("", "")  # of a file that names none
_ELSE: Final = "exists and holds something else than the outcomes of a run"
_STREAMS: Final = (1, 2)
_LONGEST: Final = 4096  # characters of the first line: what is read of a large file that holds something else
_ASKED_FOR: Final = " with --retry-rejected"


class Run(NamedTuple):
    """Whose outcomes a file holds: the run's label, and the network's id in hex."""

    label: str
    network: str


class RowResult(msgspec.Struct):
    """What became of one row. `answered`: a node said so in this run; `paid_from`: the account whose request it is;
    `time_ms`: of the link that has its outcome, Unix time."""

    outcome: str
    reason: str = ""
    answered: bool = False
    repeated: bool = False
    request_id: str = ""
    link_hash: str = ""
    height: int | None = None
    paid_from: str = ""
    time_ms: int | None = None


def result_of(answer: Answer, request_id: bytes, paid_from: str) -> RowResult:
    """What an answer makes of the rows of its request."""
    result = RowResult(answer_name(answer), row_text(answer), request_id=request_id.hex(), paid_from=paid_from)
    result.answered = not isinstance(answer, Unknown | NotStarted)
    if isinstance(answer, Recorded):
        result.repeated = answer.repeated
        result.link_hash = answer.link_hash.hex()
        result.height = answer.height
        result.time_ms = answer.time_ms
    return result


def row_text(answer: Answer, asked_for: str = _ASKED_FOR) -> str:
    """What happened and what to do, for who runs a payment file: the same request is made again by running it again,
    and another nonce would be another payment. `asked_for`: how a rejected one is made anew."""
    match answer:
        case Recorded(outcome=Outcome.INSUFFICIENT_FUNDS):
            return f"{_SHORT}{asked_for}"
        case NotStarted():
            return f"nothing is recorded: {answer.reason}. Run this again"
        case _:
            return answer_text(answer)


def not_sent() -> RowResult:
    """Of a row that nothing has been sent for yet."""
    return RowResult(NOT_SENT, "the run ended before it was sent: run it again")


def not_asked(request_id: bytes, paid_from: str, why: str = "") -> RowResult:
    """The result of a row that an earlier run may have sent, until this run asks what became of it. `why`: this run
    cannot."""
    reason = f"{_NOT_ASKED}: {why}" if why else _NOT_ASKED
    return RowResult("unknown", reason, request_id=request_id.hex(), paid_from=paid_from)


def result_path(file: Path) -> Path:
    """Where the outcomes of a payment file go when nobody says it: may.result.csv for may.csv, may.txt.result.csv for
    may.txt."""
    return file.with_name(f"{file.name.removesuffix('.csv')}.result.csv")


def write_results(path: Path, run: Run, rows: Sequence[Payment], results: Sequence[RowResult], scale: int) -> None:
    """Write the result file whole and durably, or leave the old one, whose mode it keeps; where a link points, it is
    there. What is no file (/dev/null, a pipe) is written as it is, for there is nothing to be kept whole. Raises
    `CommandFailed` when the disk refuses it."""
    what_to_do = (
        "free space there, or name another file with --result, then run the same command again: it pays nothing twice and "
        "writes all outcomes"
    )
    lines = chain([_COLUMNS], (_cells(run, p, r, scale) for p, r in zip(rows, results, strict=True)))
    with on_disk(path, what_to_do):
        if (number := _stream(path)) is not None:
            _write_csv(os.dup(number), lines)
        elif path.exists() and not path.is_file():
            _write_csv(path, lines)
        else:
            text = io.StringIO(newline="")
            csv.writer(text).writerows(lines)
            write_whole(Path(os.path.realpath(path)), text.getvalue().encode())


def _write_csv(place: Path | int, lines: Iterable[tuple[str, ...]]) -> None:
    with open(place, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)


def _stream(path: Path) -> int | None:
    """The number of this process's standard output or error when `path` is it (/dev/stdout, whatever that was sent
    into): what was printed there must stay, and what is printed later come behind."""
    for number in _STREAMS:
        with suppress(OSError):
            if os.path.samestat(path.stat(), os.fstat(number)):
                return number
    return None


def why_kept(path: Path) -> str:
    """Why the file at `path` is not to be replaced by outcomes: it holds something else, or nobody can say what; empty
    when it may be. A spreadsheet that saves outcomes may choose another separator, and begin with a mark of its own."""
    try:
        if not path.is_file() or _stream(path) is not None:
            return ""
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline(_LONGEST)
            columns = next(csv.reader([head], delimiter=find_delimiter(head)), [])
    except FileNotFoundError:
        return ""
    except PermissionError as error:
        return f"exists and cannot be read ({error.strerror}), so what it holds is not known"
    except (OSError, UnicodeDecodeError, csv.Error):
        return _ELSE
    return _ELSE if head and not set(_SAID) <= set(columns) else ""


def other_runs(path: Path, run: Run) -> list[Run]:
    """The runs, but for `run`, whose outcomes the file at `path` holds."""
    return sorted({_run_of(row) for row in _read(path)} - {run, _NO_RUN})


def is_worse(path: Path, run: Run, rows: Sequence[Payment], results: Sequence[RowResult], scale: int) -> bool:
    """True when some rows got no answer now, and the file at `path` is of the same run and knows all answers that
    others got: it says more. Not when a row may have been paid by a request that the file does not name: what it says
    of that row is no longer so, unless it says `completed`, which is final."""
    if not any(r.outcome in _NO_ANSWER for r in results):
        return False
    before = _read(path)
    if {_run_of(row) for row in before} != {run}:
        return False
    named = {row.get("request_id") for row in before}
    paid = {tuple(row.get(c) or "" for c in _ROW) for row in before if row.get("outcome") == "completed"}
    for payment, result in zip(rows, results, strict=True):
        if result.outcome == "unknown" and result.request_id and result.request_id not in named:
            cells = dict(zip(_COLUMNS, _cells(run, payment, result, scale), strict=True))
            if tuple(cells[c] for c in _ROW) not in paid:
                return False
    learned = {
        tuple(dict(zip(_COLUMNS, _cells(run, payment, result, scale), strict=True))[column] for column in _SAID)
        for payment, result in zip(rows, results, strict=True)
        if result.answered
    }
    return learned <= {tuple(row.get(column) or "" for column in _SAID) for row in before}


def _read(path: Path) -> list[dict[str, str]]:
    """The rows of the file of an earlier run; none when it is not such a file."""
    try:
        if not path.is_file() or _stream(path) is not None:
            return []
        with path.open(newline="", encoding="utf-8-sig") as file:
            delimiter = find_delimiter(file.readline(_LONGEST))
            file.seek(0)
            return list(csv.DictReader(file, delimiter=delimiter))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def _run_of(row: Mapping[str, str]) -> Run:
    return Run(row.get("run") or "", row.get("network") or "")


def _cells(run: Run, payment: Payment, result: RowResult, scale: int) -> tuple[str, ...]:
    """One line of the file."""
    return (
        str(payment.line),
        payment.sender,
        payment.recipient,
        format_amount(payment.amount, scale) if not payment.fault else "",
        payment.reference,
        result.outcome,
        "yes" if result.repeated else "",
        result.request_id,
        result.link_hash,
        "" if result.height is None else str(result.height),
        result.reason,
        result.paid_from,
        run.label,
        run.network,
    )

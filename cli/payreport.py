"""What a run of a payment file tells at its end: the sums, the rows that failed, and what people may not expect."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from chain.errors import HopchainError
from cli.command import of_this_network
from cli.home import Network
from cli.money import format_amount
from cli.output import CommandFailed, Exit, JsonValue, Output, counted, describe
from cli.payfile import Payment
from cli.payresult import NOT_SENT, RowResult
from cli.payrun import PayRun
from cli.read import time_text

_FAILURES_SHOWN: Final = 10
_OPEN: Final = frozenset({"unknown", NOT_SENT, "not_started"})  # of rows that are to be asked for, or run, again


class Ended(msgspec.Struct):
    """A run on its way to its end, and how it got there."""

    network: Network
    work: PayRun
    bulk: bool  # its rows go together
    target: Path  # the result file
    began_s: float  # of this process's clock
    gone: Sequence[Payment] = ()  # payments of earlier runs that the file has no more
    unwritten: CommandFailed | None = None  # why the result file could not be written
    error: HopchainError | None = None  # what ended it before its end, after requests left

    @property
    def seconds(self) -> float:
        """How long it has taken until now."""
        return time.perf_counter() - self.began_s

    @property
    def trouble(self) -> HopchainError | None:
        """What to tell besides the rows: what ended the run says more than what that did to the file."""
        error = self.error or self.unwritten
        return None if error is None else of_this_network(error)

    @property
    def pairs(self) -> list[tuple[Payment, RowResult]]:
        """Every row with its result."""
        return list(zip(self.work.rows, self.work.results, strict=True))

    @property
    def completed(self) -> list[tuple[Payment, RowResult]]:
        """The rows that are paid, by this run or before."""
        return [(payment, result) for payment, result in self.pairs if result.outcome == "completed"]

    @property
    def failed(self) -> list[tuple[Payment, RowResult]]:
        """The others."""
        return [(payment, result) for payment, result in self.pairs if result.outcome != "completed"]


def report(out: Output, ended: Ended) -> Exit:
    """Print what became of the rows; the exit code to leave with."""
    out.data(_document(ended))
    _say_sums(out, ended)
    _say_failures(out, ended)
    ended.work.books.show(out)
    if ended.work.paid_before:
        out.note(f"warning: {all_paid_before(ended.work)}")
    if ended.trouble is not None:
        code = describe(ended.trouble)[0] if out.as_json else out.fail(ended.trouble)
        return Exit.UNREACHABLE if may_be_taken_for_known(ended.trouble, ended.work) else code
    if any(result.outcome in _OPEN for _, result in ended.failed):
        return Exit.UNREACHABLE  # whoever concluded now that these were rejected would pay them twice
    return Exit.REJECTED if ended.failed or ended.work.books.mismatch else Exit.DONE


def may_be_taken_for_known(error: HopchainError, work: PayRun) -> bool:
    """True when an error that ends a run has the exit code of rows that are known to be rejected, and what became of
    some is not known."""
    return work.unknown and describe(error)[0] is Exit.REJECTED


def all_paid_before(work: PayRun) -> str:
    """What to say when every row was paid before this run: when, and how to pay them again."""
    last_ms = max(result.time_ms or 0 for result in work.results)
    return (
        f"nothing was paid now: run {work.settings.label!r} paid {_all(len(work.rows))} before, the last at {time_text(last_ms)}. "
        "If these are new payments (another month, another file with this name), give the run a new label: --run LABEL"
    )


def left_the_file(work: PayRun, gone: Sequence[Payment]) -> str:
    """What to say of payments of earlier runs whose rows are not in the file any more."""
    return (
        f"run {work.settings.label!r} paid {counted(len(gone), 'payment')}, {_money(work, gone)}, before, whose rows are not in "
        "the file any more. They stay paid; an edited row is paid again, as a new payment. If this file belongs to another run, "
        "give it a label of its own: --run LABEL"
    )


def _document(ended: Ended) -> dict[str, JsonValue]:
    work, completed = ended.work, ended.completed
    document: dict[str, JsonValue] = {
        "run": work.settings.label,
        "network": ended.network.id.hex(),
        "rows": len(work.rows),
        "requests": work.requests,
        "completed": len(completed),
        "repeated": sum(result.repeated for _, result in completed),
        "failed": len(ended.failed),
        "amount_completed": sum(payment.amount for payment, _ in completed),
        "asset": work.settings.asset,
        "scale": work.settings.scale,
        "outcomes": dict(Counter(result.outcome for result in work.results)),
        "opened": work.accounts.opened,
        "funded": work.accounts.funded,
        "seconds": round(ended.seconds, 3),
        "rows_seconds": round(work.rows_s, 3),
        "result_file": str(ended.target),
        "pools": work.books.document(),
        "warnings": _warnings(ended),
    }
    if ended.trouble is not None:
        _, code, text = describe(ended.trouble)
        document |= {"error": code, "message": text}
    return document


def _warnings(ended: Ended) -> list[JsonValue]:
    found: list[JsonValue] = []
    if ended.gone:
        found.append(_warning("rows_left_file", left_the_file(ended.work, ended.gone), ended.gone))
    if ended.work.paid_before:
        found.append(_warning("all_paid_before", all_paid_before(ended.work), ended.work.rows))
    return found


def _warning(code: str, message: str, about: Sequence[Payment]) -> JsonValue:
    amount = sum(payment.amount for payment in about)
    return {"code": code, "message": message, "payments": len(about), "amount": amount}


def _say_sums(out: Output, ended: Ended) -> None:
    work, completed = ended.work, ended.completed
    settings = work.settings
    if work.accounts.opened:
        out.say(f"opened {counted(work.accounts.opened, 'account')} in {work.accounts.opening_s:.1f} s")
    if work.accounts.funded:
        out.say(
            f"funded payers with {format_amount(work.accounts.funded, settings.scale, settings.asset, grouped=True)}"
        )
    repeated = sum(result.repeated for _, result in completed)
    out.say(
        f"{len(completed):,} of {counted(len(work.rows), 'payment')} completed ({repeated:,} of them before), "
        f"{_money(work, [payment for payment, _ in completed])}, "
        + (f"in {counted(work.requests, 'request')}, " if ended.bulk else "")
        + f"in {work.rows_s:.1f} s",
        colour="red" if ended.failed else "green",
        bold=True,
    )


def _say_failures(out: Output, ended: Ended) -> None:
    bad = ended.failed
    if not bad:
        return
    outcomes = Counter(result.outcome for result in ended.work.results)
    out.table(["outcome", "rows"], [[name, str(count)] for name, count in outcomes.most_common()], right=["rows"])
    for payment, row in bad[:_FAILURES_SHOWN]:
        out.say(f"  line {payment.line}: {payment.sender} -> {payment.recipient}: {row.outcome}: {row.reason}")
    if len(bad) > _FAILURES_SHOWN:
        out.say(f"  and {len(bad) - _FAILURES_SHOWN:,} more" + ("" if ended.unwritten else f" in {ended.target}"))


def _money(work: PayRun, rows: Sequence[Payment]) -> str:
    amount = sum(payment.amount for payment in rows)
    return format_amount(amount, work.settings.scale, work.settings.asset, grouped=True)


def _all(rows: int) -> str:
    return "the only payment of the file" if rows == 1 else f"all {rows} payments of the file"

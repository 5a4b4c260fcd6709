"""`hopchain pay --check`: what a run of a payment file would do, as far as this machine knows. No node is asked, and
nothing is sent."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cli.home import Network
from cli.money import format_amount
from cli.output import Exit, JsonValue, Output, counted
from cli.payfile import Payment
from cli.payresult import NOT_SENT, RowResult
from cli.payrun import PayRun

_SHOWN: Final = 20  # payers, and rows that cannot be sent; --json has them all
_BEFORE: Final = "unknown"  # of a row that an earlier run may have sent, before this one sends it again


def look_ahead(network: Network, work: PayRun) -> list[RowResult]:
    """What the run would do with each row. Raises `LocalMisuse` for what would be refused as a whole."""
    work.check(network.id)
    work.note_sent_before(network.id)
    return work.foreseen()


def report_check(out: Output, network: Network, work: PayRun, foreseen: Sequence[RowResult], target: Path) -> Exit:
    """Print what `look_ahead` found; the exit code to leave with."""
    pairs = list(zip(work.rows, foreseen, strict=True))
    fresh = [payment for payment, result in pairs if result.outcome == NOT_SENT]
    before = [payment for payment, result in pairs if result.outcome == _BEFORE]
    bad = [(payment, result) for payment, result in pairs if result.outcome not in (NOT_SENT, _BEFORE)]
    payers: dict[str, list[int]] = defaultdict(list)
    for payment in fresh:
        payers[payment.sender].append(payment.amount)
    out.data(
        {
            "run": work.settings.label,
            "network": network.id.hex(),
            "rows": len(pairs),
            "to_send": len(fresh),
            "sent_before": len(before),
            "amount": sum(payment.amount for payment in fresh),
            "amount_before": sum(payment.amount for payment in before),
            "asset": work.settings.asset,
            "scale": work.settings.scale,
            "payers": [{"payer": n, "rows": len(a), "amount": sum(a)} for n, a in payers.items()],
            "invalid": [_document(payment, result) for payment, result in bad],
            "result_file": str(target),
        }
    )
    _say(out, work, fresh, before, payers, bad)
    return Exit.USAGE if bad else Exit.DONE


def _document(payment: Payment, result: RowResult) -> JsonValue:
    return {
        "line": payment.line,
        "from": payment.sender,
        "to": payment.recipient,
        "outcome": result.outcome,
        "reason": result.reason,
    }


def _say(
    out: Output,
    work: PayRun,
    fresh: Sequence[Payment],
    before: Sequence[Payment],
    payers: dict[str, list[int]],
    bad: Sequence[tuple[Payment, RowResult]],
) -> None:
    def money(amount: int) -> str:
        return format_amount(amount, work.settings.scale, work.settings.asset, grouped=True)

    again = (
        f"run {work.settings.label!r} may have sent {len(before):,} before, "
        f"{money(sum(payment.amount for payment in before))}: those that were not paid then are sent again; "
    )
    out.say(
        f"nothing was sent. Of {counted(len(work.rows), 'payment')} {len(fresh):,} would be sent, "
        f"{money(sum(payment.amount for payment in fresh))}; {again if before else ''}{len(bad):,} cannot be sent",
        colour="red" if bad else "green",
        bold=True,
    )
    if payers:
        lines = [[name, f"{len(amounts):,}", money(sum(amounts))] for name, amounts in payers.items()]
        out.table(["payer", "rows", "pays"], lines[:_SHOWN], right=["rows", "pays"])
        _say_more(out, len(lines), "payer")
    for payment, row in bad[:_SHOWN]:
        out.say(f"  line {payment.line}: {payment.sender} -> {payment.recipient}: {row.outcome}: {row.reason}")
    _say_more(out, len(bad), "such row")


def _say_more(out: Output, count: int, what: str) -> None:
    if count > _SHOWN:
        out.say(f"  and {counted(count - _SHOWN, f'more {what}')}: --json lists all")

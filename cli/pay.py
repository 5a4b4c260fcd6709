"""`hopchain pay`: execute a payment file, through all nodes, as often as needed and each payment once."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click

from chain.errors import LocalMisuse
from chain.request import MAX_POSTINGS
from cli.command import HopCommand, Seconds, checked_name, fresh_random, network_option, raised_on_purpose, run
from cli.home import Network, find_network, forget_used
from cli.output import CommandFailed, Exit, Output, counted
from cli.paybulk import AtomicRun, BulkRun
from cli.paycheck import look_ahead, report_check
from cli.payfile import Columns, Payment, payments, read_table
from cli.payplan import Plan, Settings
from cli.payreport import Ended, left_the_file, may_be_taken_for_known, report
from cli.payresult import Run, is_worse, other_runs, result_path, why_kept, write_results
from cli.payrun import PayRun
from cli.poolrun import PoolRun
from cli.progress import Progress
from cli.runlock import only_run
from cli.session import default_asset, open_client, say_remembered
from cli.sources import FIXED, Sources, check_pools, parse_pools
from cli.wallet import Wallet
from hopchain import Choice


@click.command(
    cls=HopCommand,
    examples=[
        "hopchain pay orders.csv --from-column payer --to-column payee --amount-column amount",
        "hopchain pay standing-orders.csv --from-column account_id --from-prefix payer- \\",
        "      --to-column bank_to --to-column account_to --amount-column amount --reference-column k_symbol \\",
        "      --asset CZK --open-missing --fund-from mint",
        "hopchain pay salaries.csv --from-column payer --to-column payee --amount-column amount --check",
        "hopchain pay salaries.csv --from-column payer --to-column payee --amount-column amount --bulk",
        "hopchain pay refunds.csv --from-column shop --to-column customer --amount-column amount \\",
        "      --pool shop=shop-1,shop-2,shop-3 --choice least-active",
    ],
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE.csv")
@click.option("--from-column", "from_columns", multiple=True, required=True, help="Payer; several are joined with '-'.")
@click.option("--from-prefix", default="", help="Put before every payer.")
@click.option("--to-column", "to_columns", multiple=True, required=True, help="Payee; several are joined with '-'.")
@click.option("--to-prefix", default="", help="Put before every payee.")
@click.option("--amount-column", required=True, help="Amount, in decimals of the asset.")
@click.option("--reference-column", help="Text for the payee.")
@click.option("--delimiter", metavar="CHAR", help="Character between cells. Default: found from the first line.")
@click.option("--asset", "asset_code", metavar="CODE", help="What is paid. Default: the network's only asset.")
@click.option(
    "--open-missing", is_flag=True, help="First open the accounts that do not exist, with new keys in the wallet."
)
@click.option(
    "--fund-from",
    metavar="NAME",
    help="First pay each payer, from this account, exactly what its rows need. A row is funded once; one that an earlier run "
    "paid without this option needs nothing, nor, without --retry-rejected, does one that was rejected. Money for a row that "
    "later leaves the file stays with its payer.",
)
@click.option(
    "--run",
    "run_label",
    metavar="LABEL",
    help="Names this run. Default: the file's name without its directory. Same label and same rows: the same payments, paid once.",
)
@click.option("--retry-rejected", is_flag=True, help="Send rows that were rejected in an earlier run once more.")
@click.option(
    "--result",
    type=click.Path(path_type=Path),
    help="File for the outcomes, in an existing directory. Default: FILE.result.csv.",
)
@click.option(
    "--bulk",
    is_flag=True,
    help=f"Put up to {MAX_POSTINGS} rows of a payer into one request, paid all or not at all: much faster for large files.",
)
@click.option(
    "--atomic",
    is_flag=True,
    help="Pay the whole file or nothing: one request, so one payer. Implies --bulk. What --open-missing and --fund-from did "
    "stays, even if the file is rejected: the payer keeps its funding, and a later run uses it.",
)
@click.option(
    "--pool",
    "pools",
    multiple=True,
    metavar="NAME=ACCOUNT,ACCOUNT,...",
    help="Pay rows whose payer is NAME from these accounts. The account of a row is remembered before the row is sent, so it is "
    "paid once, whatever --pool or --choice is given later. An account that has too little is passed over. One that leaves the "
    "list must keep its key in this wallet until its rows are settled. From another wallet the same run pays nothing twice only "
    "with --choice dedicated and the same list.",
)
@click.option(
    "--choice",
    type=click.Choice([c.value for c in Choice]),
    help="How --pool chooses. dedicated (the default): the row itself names its account. round-robin: each in turn. least-active: "
    "the one with the fewest payments in flight. two-choices: the better of two drawn at random. --fund-from goes with dedicated "
    "and round-robin only, and not with --bulk --pool.",
)
@click.option(
    "--check",
    is_flag=True,
    help="Send nothing: show who would pay what, what an earlier run may have sent, and which rows cannot be sent. No node is "
    "asked, so accounts and balances are not checked. Exit code 2 if a row cannot be sent.",
)
@click.option(
    "--max-failures",
    type=click.IntRange(0),
    help="Send no more rows after more failures than this. Default: never stop.",
)
@click.option("--concurrency", type=click.IntRange(1, 1000), default=64, show_default=True, help="Requests in flight.")
@click.option(
    "--timeout",
    "timeout_s",
    type=Seconds(0.1, 300),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for one outcome before asking again.",
)
@network_option
def pay(
    out: Output,
    file: Path,
    from_columns: tuple[str, ...],
    from_prefix: str,
    to_columns: tuple[str, ...],
    to_prefix: str,
    amount_column: str,
    reference_column: str | None,
    delimiter: str | None,
    asset_code: str | None,
    open_missing: bool,
    fund_from: str | None,
    run_label: str | None,
    retry_rejected: bool,
    result: Path | None,
    bulk: bool,
    atomic: bool,
    pools: tuple[str, ...],
    choice: str | None,
    check: bool,
    max_failures: int | None,
    concurrency: int,
    timeout_s: float,
    network_dir: Path | None,
) -> None:
    """Execute a payment file: one payment a row. Run again, it pays nothing twice.

    A row is identified by the run's label, its payer, payee, amount and reference (and, among identical rows, its
    number). The label is --run, or else the file's name without its directory. So a row that you edit after it was paid
    is paid again, as a new payment, and a file that you reuse every month needs a new label each month, such as
    --run 2026-02.

    If it was interrupted, or rows were added, run it again: it pays what is left. A row that fails does not stop the
    others. The result file has the outcome of every row. With --bulk the rows of a payer travel together and fail
    together. Continue a run as it began, with or without --bulk.

    Exit code 0: all rows are paid. 1: some are not, and all outcomes are known. 3: some outcomes are not known, or
    some rows were not sent: run it again.
    """
    network = find_network(network_dir)
    asset = default_asset(network, asset_code)
    columns = Columns(from_columns, to_columns, amount_column, reference_column, from_prefix, to_prefix)
    rows = payments(read_table(file, delimiter, columns.all), columns, asset.scale, asset.code)
    settings = Settings(
        file.name if run_label is None else run_label,
        asset.code,
        asset.scale,
        open_missing,
        fund_from,
        retry_rejected,
        concurrency,
        timeout_s,
        max_failures,
        parse_pools(pools),
        None if choice is None else Choice(choice),
    )
    _check(settings, file, rows)
    target = _result_file(file, result)
    say_remembered(out, network, network_dir)
    wallet = Wallet(network.id)
    begin = time.perf_counter()
    with only_run(wallet, settings.label), Progress(out) as progress:
        kind = AtomicRun if atomic else BulkRun if bulk else PoolRun if settings.pools else PayRun
        chosen = settings.choice or Choice.DEDICATED
        sources = Sources(wallet.directory, settings.label, settings.pools, chosen, fresh_random())
        work = kind(Plan(wallet, rows, settings, sources, progress))
        if check:
            forget_used()
            foreseen = look_ahead(network, work)
        else:
            ended = Ended(network, work, bulk or atomic, target, begin)
            _execute(out, ended)
    # only now: what is printed while a bar is drawn is drawn over
    if check:
        raise SystemExit(report_check(out, network, work, foreseen, target))
    raise SystemExit(report(out, ended))


def _check(settings: Settings, file: Path, rows: Sequence[Payment]) -> None:
    """Refuse options that contradict each other or the rows. Raises `LocalMisuse`."""
    if not rows:
        raise LocalMisuse(f"{file} has no rows below its header")
    if settings.fund_from is not None:
        checked_name(settings.fund_from)
    check_pools(settings.pools, rows, settings.fund_from)
    if settings.choice is not None and not settings.pools:
        raise LocalMisuse("--choice needs a pool: name one with --pool")
    if settings.fund_from is not None and settings.choice is not None and settings.choice not in FIXED:
        raise LocalMisuse(
            f"--fund-from gives each account what its rows need, and --choice {settings.choice} chooses while it pays: use "
            f"--choice {' or '.join(sorted(FIXED))}, or transfer to the accounts first"
        )
    if settings.label == "":
        raise LocalMisuse("--run '' names no run: give a name, or leave it out to use the file's name")


def _result_file(file: Path, result: Path | None) -> Path:
    """Where the outcomes go. `LocalMisuse` when they cannot, or would replace the payment file or another one."""
    target = result or result_path(file)
    try:
        if target.is_dir() or not Path(os.path.realpath(target)).parent.is_dir():
            raise LocalMisuse(
                f"{target} cannot hold the outcomes: it is a directory, or in one that does not exist. Name a file with --result"
            )
        with suppress(FileNotFoundError):
            if target.samefile(file):
                raise LocalMisuse(f"the result file {target} is the payment file itself: name another with --result")
    except OSError as error:
        raise LocalMisuse(
            f"{target} cannot hold the outcomes ({error.strerror}): name another file with --result"
        ) from None
    if why := why_kept(target):
        raise LocalMisuse(f"{target} {why}: move it away, or name another file with --result")
    return target


def _execute(out: Output, ended: Ended) -> None:
    """Pay, and write the result file however that ends; what is known of it goes into `ended`, which is also printed
    when the run is interrupted. Raises what ended it before any request left, but not a rejection while there are rows
    of which nothing is known."""
    network, work = ended.network, ended.work
    work.check(network.id)
    work.note_sent_before(network.id)
    out.sending(
        f"Payments may have been sent: see {ended.target}; run the same command again to see what became of each; nothing is paid twice",
        lambda: report(out, ended),
    )

    async def main() -> None:
        async with open_client(network, spread=True) as client:
            ended.gone = await work.look_back(client)
            if ended.gone:
                out.note(f"warning: {left_the_file(work, ended.gone)}")  # while Ctrl-C still helps
            await work.run(client)

    try:
        run(main)
    except BaseException as error:
        _write_outcomes(out, ended)
        if ended.unwritten is not None:
            out.note(str(ended.unwritten))  # what ended the run says more
        for text in work.books.mismatches():
            out.warn(text)  # nobody would ever tell: the next run compares what leaves then
        meant = raised_on_purpose(error)
        if meant is None or not (work.began or may_be_taken_for_known(meant, work)):
            raise
        ended.error = meant
    else:
        _write_outcomes(out, ended)


def _write_outcomes(out: Output, ended: Ended) -> None:
    """Write the result file, or say in `ended` why it could not be written."""
    try:
        ended.target = _write(out, ended.network, ended.target, ended.work)
    except CommandFailed as failed:
        ended.unwritten = failed


def _write(out: Output, network: Network, target: Path, work: PayRun) -> Path:
    """Write the result file, unless it would replace what an earlier go at the same run knew by nothing; where it is.
    Beside the file that was named when something else came there while this ran, which may have been hours. Raises
    `CommandFailed`."""
    if why := why_kept(target):
        beside = target.with_name(f"{target.name}.new")
        if why_kept(beside):
            raise CommandFailed(
                Exit.DISK,
                "disk",
                f"{target} now {why}, and so does {beside}: move them away, or name another file with --result, then run the "
                "same command again: it pays nothing twice and writes all outcomes",
            )
        out.note(f"{target} now {why}, and is left as it is: the outcomes go into {beside}")
        target = beside
    scale = work.settings.scale
    this = Run(work.settings.label, network.id.hex())
    if is_worse(target, this, work.rows, work.results, scale):
        out.note(f"no row got a new answer: {target} is left as an earlier run wrote it. Run the same command again")
        return target
    others = other_runs(target, this)
    write_results(target, this, work.rows, work.results, scale)
    for other in others:
        out.note(
            f"{target} held the outcomes of run {other.label!r} in network {other.network[:16]}, which are replaced now: run that "
            "one again to have them told again. --result names another file"
        )
    rows = counted(len(work.rows), "row")
    out.note(f"outcomes of {rows}: {target}. Run the same command again to continue; nothing is paid twice")
    return target

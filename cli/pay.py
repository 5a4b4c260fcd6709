"""`hopchain pay`: execute a payment file, through all nodes, as often as needed and each payment once."""

import time
from collections import Counter
from pathlib import Path

import click

from chain.errors import LocalMisuse
from chain.request import MAX_POSTINGS
from cli.command import HopCommand, checked_name, fresh_random, network_option, run
from cli.home import Network, find_network
from cli.money import format_amount
from cli.output import CommandFailed, Exit, JsonValue, Output
from cli.paybulk import AtomicRun, BulkRun
from cli.payfile import Columns, payments, read_table
from cli.payplan import Plan, Settings
from cli.payresult import is_worse, write_results
from cli.payrun import PayRun
from cli.poolrun import PoolRun
from cli.progress import Progress
from cli.runlock import only_run
from cli.session import default_asset, open_client
from cli.sources import FIXED, Sources, check_pools, parse_pools
from cli.wallet import Wallet
from hopchain import Choice

_FAILURES_SHOWN = 10


@click.command(
    cls=HopCommand,
    examples=[
        "hopchain pay orders.csv --from-column payer --to-column payee --amount-column amount",
        "hopchain pay standing-orders.csv --from-column account_id --from-prefix payer- \\",
        "      --to-column bank_to --to-column account_to --amount-column amount --reference-column k_symbol \\",
        "      --asset CZK --open-missing --fund-from mint",
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
@click.option("--delimiter", metavar="CHAR", help="Of the file. Default: found out from its first line.")
@click.option("--asset", "asset_code", metavar="CODE", help="What is paid. Default: the network's only asset.")
@click.option(
    "--open-missing", is_flag=True, help="First open the accounts that do not exist, with new keys in the wallet."
)
@click.option(
    "--fund-from",
    metavar="NAME",
    help="First pay each payer from this account exactly what its rows need. A row is funded once; one that an earlier run paid "
    "without this option needs nothing.",
)
@click.option(
    "--run", "run_label", metavar="LABEL", help="Names this run. Default: the file's name. Same label, same payments."
)
@click.option("--retry-rejected", is_flag=True, help="Send rows that were rejected in an earlier run once more.")
@click.option(
    "--result",
    type=click.Path(path_type=Path),
    help="Where the outcomes go: a file in a directory that exists. Default: FILE.result.csv.",
)
@click.option(
    "--bulk",
    is_flag=True,
    help=f"Put up to {MAX_POSTINGS} rows of a payer into one request, paid all or not at all: much faster for large files.",
)
@click.option(
    "--atomic",
    is_flag=True,
    help="Pay the whole file or nothing: one request, so one payer. Means --bulk. What --open-missing and --fund-from did "
    "before stays, also when the file is rejected: the payer keeps its funding, and a later run uses it.",
)
@click.option(
    "--pool",
    "pools",
    multiple=True,
    metavar="NAME=ACCOUNT,ACCOUNT,...",
    help="Pay rows whose payer is NAME from these accounts. Which one a row is sent from is remembered before it leaves, so it is "
    "paid once, whatever --pool or --choice is given later. One that has too little is passed over for the others. An account that "
    "leaves the list must keep its key in this wallet until its rows are settled. The same run from another wallet pays nothing twice "
    "only with --choice dedicated and the same list.",
)
@click.option(
    "--choice",
    type=click.Choice([c.value for c in Choice]),
    help="How --pool chooses. dedicated (the default): the row itself names its account. round-robin: each in turn. least-active: "
    "the one with the fewest payments in flight. two-choices: the better of two drawn at random. --fund-from goes with dedicated "
    "and round-robin only, and not with --bulk --pool.",
)
@click.option(
    "--max-failures",
    type=click.IntRange(0),
    help="Send no more rows when more than this failed. Default: go on to the end.",
)
@click.option("--concurrency", type=click.IntRange(1, 1000), default=64, show_default=True, help="Requests in flight.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.1, 300),
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
    max_failures: int | None,
    concurrency: int,
    timeout_s: float,
    network_dir: Path | None,
) -> None:
    """Execute a payment file: one payment a row, all or none of each. Run again it pays nothing twice.

    Stopped half way, it goes on where it was; with rows added, it pays those. A row that fails does not stop the
    others. The result file tells the outcome of every row. With --bulk the rows of a payer travel together and fail
    together; a run that began so is continued so.
    """
    network = find_network(network_dir)
    asset = default_asset(network, asset_code)
    columns = Columns(from_columns, to_columns, amount_column, reference_column, from_prefix, to_prefix)
    rows = payments(read_table(file, delimiter, columns.all), columns, asset.scale, asset.code)
    if not rows:
        raise LocalMisuse(f"{file} has no rows below its header")
    if fund_from is not None:
        checked_name(fund_from)
    chosen = Choice(choice or Choice.DEDICATED)
    named = parse_pools(pools)
    check_pools(named, rows, fund_from)
    if choice is not None and not named:
        raise LocalMisuse("--choice is how a pool chooses, and there is none: name one with --pool")
    if named and fund_from is not None and chosen not in FIXED:
        raise LocalMisuse(
            f"--fund-from gives each account what its rows need, and --choice {chosen} chooses while it pays: use --choice "
            f"{' or '.join(sorted(FIXED))}, or transfer to the accounts first"
        )
    if run_label == "":
        raise LocalMisuse("--run '' names no run: leave it out, which takes the file's name, or give a name")
    target = result or file.with_suffix(".result.csv")
    if target.is_dir() or not target.parent.is_dir():
        raise LocalMisuse(
            f"{target} cannot hold the outcomes: it is a directory, or in one that does not exist. Name a file with --result"
        )
    if target.exists() and target.samefile(file):
        raise LocalMisuse(f"the result file {target} is the payment file itself: name another with --result")
    settings = Settings(
        run_label or file.name,
        asset.code,
        asset.scale,
        open_missing,
        fund_from,
        retry_rejected,
        concurrency,
        timeout_s,
        max_failures,
    )
    wallet = Wallet(network.id)
    begin = time.perf_counter()
    with only_run(wallet, settings.label), Progress(out) as progress:
        kind = AtomicRun if atomic else BulkRun if bulk else PoolRun if named else PayRun
        sources = Sources(wallet.directory, settings.label, named, chosen, fresh_random())
        work = kind(Plan(wallet, rows, settings, sources, progress))
        work.check(network.id)

        async def main() -> None:
            async with open_client(network, spread=True) as client:
                await work.run(client)

        try:
            run(main)
        except BaseException:
            try:
                _write(out, target, work, asset.scale)
            except CommandFailed as error:
                out.note(str(error))  # what ended the run says more
            for text in work.books.mismatches():
                click.echo(text, err=True)  # nobody would ever tell: the next run compares what leaves then
            raise
        unwritten: CommandFailed | None = None
        try:
            _write(out, target, work, asset.scale)
        except CommandFailed as error:
            unwritten = error
    took_s = time.perf_counter() - begin
    raise SystemExit(_report(out, network, work, bulk or atomic, target, asset.scale, took_s, unwritten))


def _write(out: Output, target: Path, work: PayRun, scale: int) -> None:
    """Write the result file, unless it would replace what an earlier run knew by nothing."""
    if target.exists() and is_worse(target, work.rows, work.results, scale):
        out.note(
            f"no row got an answer that is new: {target} is left as an earlier run wrote it. Run the same command again"
        )
        return
    write_results(target, work.rows, work.results, scale)
    out.note(f"outcomes of {len(work.rows)} rows: {target}. The same command again goes on and pays nothing twice")


def _report(
    out: Output,
    network: Network,
    work: PayRun,
    bulk: bool,
    target: Path,
    scale: int,
    took_s: float,
    unwritten: CommandFailed | None,
) -> Exit:
    """Print the sums; the exit code to leave with. `unwritten`: why the result file could not be written."""
    outcomes = Counter(r.outcome for r in work.results)
    completed = [(p, r) for p, r in zip(work.rows, work.results, strict=True) if r.outcome == "completed"]
    repeated = sum(r.repeated for _, r in completed)
    paid = sum(p.amount for p, _ in completed)
    failed = len(work.rows) - len(completed)
    document: dict[str, JsonValue] = {
        "run": work.settings.label,
        "network": network.id.hex(),
        "rows": len(work.rows),
        "requests": work.requests,
        "completed": len(completed),
        "repeated": repeated,
        "failed": failed,
        "amount_completed": paid,
        "asset": work.settings.asset,
        "scale": scale,
        "outcomes": dict(outcomes),
        "opened": work.accounts.opened,
        "funded": work.accounts.funded,
        "seconds": round(took_s, 3),
        "rows_seconds": round(work.rows_s, 3),
        "result_file": str(target),
        "pools": work.books.document(),
    }
    if unwritten is not None:
        document |= {"error": unwritten.code, "message": str(unwritten)}
    out.data(document)
    if work.accounts.opened:
        out.say(f"opened {work.accounts.opened} accounts in {work.accounts.opening_s:.1f} s")
    if work.accounts.funded:
        out.say(f"funded payers with {format_amount(work.accounts.funded, scale, work.settings.asset, grouped=True)}")
    out.say(
        f"{len(completed)} of {len(work.rows)} payments completed ({repeated} of them before), "
        f"{format_amount(paid, scale, work.settings.asset, grouped=True)}, "
        + (f"in {work.requests} requests, " if bulk else "")
        + f"in {work.rows_s:.1f} s",
        colour="red" if failed else "green",
        bold=True,
    )
    if failed:
        out.table(["outcome", "rows"], [[name, str(count)] for name, count in outcomes.most_common()], right=["rows"])
        bad = [(p, r) for p, r in zip(work.rows, work.results, strict=True) if r.outcome != "completed"]
        for payment, row in bad[:_FAILURES_SHOWN]:
            out.say(f"  line {payment.line}: {payment.sender} -> {payment.recipient}: {row.outcome}: {row.reason}")
        if len(bad) > _FAILURES_SHOWN:
            out.say(f"  and {len(bad) - _FAILURES_SHOWN} more" + ("" if unwritten else f" in {target}"))
    work.books.show(out)
    if unwritten is not None:
        return unwritten.exit_code if out.as_json else out.fail(unwritten)
    return Exit.REJECTED if failed or work.books.mismatch else Exit.DONE

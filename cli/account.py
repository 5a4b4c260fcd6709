"""`hopchain account open`, `list`, `show`."""

from collections.abc import Sequence
from pathlib import Path

import click

from chain.errors import LocalMisuse
from chain.genesis import Asset
from cli.command import (
    HopCommand,
    at_option,
    checked_name,
    network_option,
    run,
    timeout_option,
)
from cli.home import Network, find_network
from cli.money import format_amount
from cli.opening import Opened, open_accounts
from cli.output import Exit, JsonValue, Output
from cli.payfile import account_name, read_table
from cli.receipt import answer_document, answer_exit, answer_name, answer_text
from cli.session import (
    account_line,
    ask_until_found,
    default_asset,
    not_found,
    open_client,
    pinned,
    say_remembered,
    say_stale,
)
from cli.wallet import Wallet
from hopchain import AccountLine, Accounts, NotFound, Recorded


@click.group()
def account() -> None:
    """Open, list and show accounts."""


@account.command(
    "open",
    cls=HopCommand,
    examples=[
        "hopchain account open alice --asset CZK",
        "hopchain account open alice bob carol",
        "hopchain account open --from-file people.csv --column name --prefix staff-",
    ],
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--asset", "asset_code", metavar="CODE", help="Asset of the accounts. Default: the network's only asset.")
@click.option(
    "--from-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Names from a CSV file."
)
@click.option("--column", "columns", multiple=True, help="Column of the file; several are joined with '-'.")
@click.option("--prefix", default="", help="Put before every name from the file.")
@click.option("--delimiter", metavar="CHAR", help="Character between cells. Default: found from the first line.")
@at_option
@timeout_option
@network_option
def open_command(
    out: Output,
    names: tuple[str, ...],
    asset_code: str | None,
    from_file: Path | None,
    columns: tuple[str, ...],
    prefix: str,
    delimiter: str | None,
    at: str | None,
    timeout_s: float,
    network_dir: Path | None,
) -> None:
    """Open accounts with new keys in the wallet. A name exists once; opening your own again changes nothing."""
    wanted = [checked_name(name) for name in names]
    if from_file is not None:
        wanted += _names_in(from_file, columns, prefix, delimiter)
    if not wanted:
        raise LocalMisuse("name at least one account to open, or a file with --from-file and --column")
    wanted = list(dict.fromkeys(wanted))
    network = find_network(network_dir)
    asset = default_asset(network, asset_code)
    say_remembered(out, network, network_dir)
    wallet = Wallet(network.id)
    node = pinned(network, at)

    async def main() -> list[Opened]:
        async with open_client(network, spread=node is None) as client:
            return await open_accounts(
                client,
                wallet,
                wanted,
                asset.code,
                timeout_s=timeout_s,
                at=node,
                sending=lambda so_far: out.sending(
                    "The openings were sent: run the same command again to see what became of them",
                    lambda: _report(out, network, wallet, asset, so_far()),
                ),
            )

    opened = run(main)
    _report(out, network, wallet, asset, opened)
    raise SystemExit(max((answer_exit(o.answer) for o in opened), default=Exit.DONE))


def _names_in(path: Path, columns: Sequence[str], prefix: str, delimiter: str | None) -> list[str]:
    if not columns:
        raise LocalMisuse("--from-file needs --column: the name of the column that holds the names")
    table = read_table(path, delimiter, columns)
    if bad := next((row for row in table if row.fault), None):
        raise LocalMisuse(f"{path}, line {bad.line}: {bad.fault}")
    return [checked_name(account_name(row.cells, columns, prefix)) for row in table]


def _report(out: Output, network: Network, wallet: Wallet, asset: Asset, opened: list[Opened]) -> None:
    documents: list[JsonValue] = [
        answer_document(network, o.answer, o.request_id, o.name, asset)
        | {"public_key": o.public_key.hex(), "key_file": str(wallet.path(o.name)) if wallet.has(o.name) else None}
        for o in opened
    ]
    out.data({"accounts": documents})
    if len(opened) == 1:
        (one,) = opened
        done = answer_exit(one.answer) is Exit.DONE
        known = " (it was open already)" if isinstance(one.answer, Recorded) and one.answer.repeated else ""
        out.say(f"{one.name}: {answer_name(one.answer)}{known}", colour="green" if done else "red", bold=True)
        if done:
            out.fields(
                [("asset", asset.code), ("public key", one.public_key.hex()), ("key", str(wallet.path(one.name)))]
            )
        else:
            out.say(f"  {answer_text(one.answer)}")
        return
    out.table(
        ["account", "outcome", "repeated", "what to do"],
        [
            [
                o.name,
                answer_name(o.answer),
                "yes" if isinstance(o.answer, Recorded) and o.answer.repeated else "",
                answer_text(o.answer),
            ]
            for o in opened
        ],
    )


@account.command(
    "list",
    cls=HopCommand,
    examples=["hopchain account list", "hopchain account list --mine", "hopchain account list --json"],
)
@click.option("--mine", is_flag=True, help="Only accounts whose key is in the wallet.")
@at_option
@network_option
def list_command(out: Output, mine: bool, at: str | None, network_dir: Path | None) -> None:
    """List all accounts of the network in name order, as one replica knows them."""
    network = find_network(network_dir)
    held = set(Wallet(network.id).names())
    node = pinned(network, at)

    async def ask() -> Accounts | NotFound:
        async with open_client(network) as client:
            return await ask_until_found(network, node, lambda address: client.account_list(at=address))

    found = run(ask)
    assert isinstance(found, Accounts), found
    lines = [line for line in found.accounts if not mine or line.name in held]
    out.data({"accounts": [_document(line, line.name in held) for line in lines], "stale": found.stale})
    out.table(
        ["account", "asset", "height", "settled", "incoming", "key"],
        [
            [
                line.name,
                line.asset + (" issuer" if line.issuer else ""),
                str(line.height),
                format_amount(line.settled, line.scale, grouped=True),
                format_amount(line.incoming, line.scale, grouped=True),
                "wallet" if line.name in held else "",
            ]
            for line in lines
        ],
        right=["height", "settled", "incoming"],
    )
    say_stale(out, found)


@account.command("show", cls=HopCommand, examples=["hopchain account show alice", "hopchain account show alice --json"])
@click.argument("name")
@at_option
@network_option
def show_command(out: Output, name: str, at: str | None, network_dir: Path | None) -> None:
    """Show one account: asset, owner's key, height, tip, money."""
    checked_name(name)
    network = find_network(network_dir)
    wallet = Wallet(network.id)
    node = pinned(network, at)

    async def main() -> Accounts | NotFound:
        async with open_client(network) as client:
            return await ask_until_found(network, node, lambda address: account_line(client, name, address))

    found = run(main)
    if isinstance(found, NotFound):
        raise not_found(f"account {name}", node, stale=found.stale)
    (line,) = found.accounts
    held = wallet.has(name)
    out.data(_document(line, held) | {"stale": found.stale})
    out.say(line.name + (" (issuer)" if line.issuer else ""), bold=True)
    out.fields(
        [
            ("asset", f"{line.asset} (scale {line.scale})"),
            ("public key", line.public_key.hex()),
            ("key", str(wallet.path(name)) if held else "not in this wallet"),
            ("height", str(line.height)),
            ("tip", line.tip.hex()),
            ("settled", format_amount(line.settled, line.scale, line.asset, grouped=True)),
            ("incoming", format_amount(line.incoming, line.scale, line.asset, grouped=True)),
            ("available", format_amount(line.settled + line.incoming, line.scale, line.asset, grouped=True)),
        ]
    )
    say_stale(out, found)


def _document(line: AccountLine, held: bool) -> dict[str, JsonValue]:
    return {
        "account": line.name,
        "asset": line.asset,
        "scale": line.scale,
        "issuer": line.issuer,
        "public_key": line.public_key.hex(),
        "height": line.height,
        "tip": line.tip.hex(),
        "settled": line.settled,
        "incoming": line.incoming,
        "available": line.settled + line.incoming,
        "in_wallet": held,
    }

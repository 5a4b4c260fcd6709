"""`hopchain balance` and `chain`: what one account holds and how it came to it."""

import datetime
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import anyio
import click

from chain.errors import LocalMisuse
from chain.link import Outcome
from chain.request import Kind
from cli.command import HopCommand, at_option, checked_name, network_option, run, timeout_option
from cli.home import Network, find_network
from cli.money import format_amount
from cli.output import CommandFailed, Exit, JsonValue, Output, counted
from cli.receipt import outcome_name
from cli.session import ask_until_found, not_found, open_client, pinned, say_stale
from hopchain import Balance, Chain, Client, NotFound, Unknown, Unreachable
from hopchain.addresses import NodeAddress
from hopchain.connection import shown_s
from hopchain.printable import quoted
from hopchain.submitting import NODE_SHARE, patience_s
from hopchain.wire import AT_ONCE, MAX_PAGE, ChainLink

DEFAULT_LINKS: Final = 20
_HEIGHT: Final = click.IntRange(0, 2**63 - 1)  # as nodes store it
SHORT: Final = 16  # hex digits of a hash that people only compare


@click.command(cls=HopCommand, examples=["hopchain balance alice", "hopchain balance alice --linearizable --json"])
@click.argument("name")
@click.option(
    "--linearizable", is_flag=True, help="Ask a majority: includes everything that any client was told before."
)
@click.option("--min-height", type=_HEIGHT, metavar="N", help="Wait until link N is there; the first is 0.")
@at_option
@timeout_option
@network_option
def balance(
    out: Output,
    name: str,
    linearizable: bool,
    min_height: int | None,
    at: str | None,
    timeout_s: float,
    network_dir: Path | None,
) -> None:
    """Show settled, incoming (paid to it, not yet confirmed) and available money of an account."""
    checked_name(name)
    network = find_network(network_dir)
    node = pinned(network, at)
    least = AT_ONCE if min_height is None else min_height

    async def ask() -> tuple[Balance | NotFound | Unknown, float]:
        async with open_client(network) as client:

            async def ask_for(address: NodeAddress | None, seconds: float) -> Balance | NotFound | Unknown:
                return await client.balance(
                    name, linearizable=linearizable, min_height=least, timeout_s=seconds, at=address
                )

            began = anyio.current_time()
            if linearizable:  # whoever can make it certain is not stale: the client finds one by itself
                answer = await ask_for(node, timeout_s)
            else:
                answer = await _ask_in_time(network, node, ask_for, timeout_s)
            return answer, anyio.current_time() - began

    found, waited_s = run(ask)
    if isinstance(found, NotFound):
        raise not_found(f"account {name}", node, stale=found.stale)
    if isinstance(found, Unknown):
        raise CommandFailed(Exit.UNREACHABLE, "unknown", f"no balance within {shown_s(waited_s)}: {found.reason}")
    available = found.settled + found.incoming
    out.data(
        {
            "account": found.account,
            "asset": found.asset,
            "scale": found.scale,
            "issuer": found.issuer,
            "settled": found.settled,
            "incoming": found.incoming,
            "incoming_count": found.incoming_count,
            "available": available,
            "tip": found.tip.hex(),
            "height": found.height,
            "link_epoch": found.link_epoch,
            "time_ms": found.time_ms,
            "epoch": found.epoch,
            "as_of_ms": found.as_of_ms,
            "linearizable": found.linearizable,
            "stale": found.stale,
        }
    )
    out.say(found.account + (" (issuer)" if found.issuer else ""), bold=True)
    postings = f"  ({counted(found.incoming_count, 'posting')})" if found.incoming_count else ""
    out.fields(
        [
            ("settled", format_amount(found.settled, found.scale, found.asset, grouped=True)),
            ("incoming", format_amount(found.incoming, found.scale, found.asset, grouped=True) + postings),
            ("available", format_amount(available, found.scale, found.asset, grouped=True)),
            ("tip", found.tip.hex()),
            ("height", str(found.height)),
            ("epoch", f"{found.epoch} (link: {found.link_epoch})"),
            ("as of", time_text(found.as_of_ms) + (", by a majority" if found.linearizable else ", one replica")),
        ]
    )
    say_stale(out, found)


async def _ask_in_time(
    network: Network,
    at: NodeAddress | None,
    ask_for: Callable[[NodeAddress, float], Awaitable[Balance | NotFound | Unknown]],
    timeout_s: float,
) -> Balance | NotFound | Unknown:
    """As `ask_until_found`, each node for half of the time that is left. When none of those after it took the rest, the
    first one that had no answer in its share is asked again, with all that is left. Raises `Unreachable`."""
    deadline = anyio.current_time() + timeout_s
    late: list[NodeAddress] = []
    found: Balance | NotFound | Unknown | None = None
    failure = Unreachable(())

    async def ask(address: NodeAddress) -> Balance | NotFound | Unknown:
        last = address in (at, network.nodes[-1].address)
        left_s = max(0.0, deadline - anyio.current_time())
        try:
            answer = await ask_for(address, patience_s(left_s, timeout_s, last=last))
        except Unreachable as error:
            if error.reached:
                late.append(address)
            raise
        if isinstance(answer, Unknown):
            late.append(address)
        return answer

    try:
        found = await ask_until_found(network, at, ask)
    except Unreachable as error:
        failure = error
    if found is not None and not isinstance(found, Unknown):
        return found
    left_s = deadline - anyio.current_time()
    if late and left_s >= timeout_s * (1 - NODE_SHARE):  # less is too little to be told anything
        try:
            return await ask_for(late[0], left_s)
        except Unreachable as error:
            failure = Unreachable((*failure.tried, *error.tried), reached=True)
    if found is None:
        raise failure
    return found


@click.command(cls=HopCommand, examples=["hopchain chain alice", "hopchain chain alice --from 0 --limit 5 --json"])
@click.argument("name")
@click.option(
    "--from", "from_height", type=_HEIGHT, metavar="HEIGHT", help="First link to show. Default: only the last ones."
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help=f"How many. Default: {DEFAULT_LINKS}.")
@click.option("--all", "everything", is_flag=True, help="All links; with --from, all from there on.")
@at_option
@network_option
def chain(
    out: Output,
    name: str,
    from_height: int | None,
    limit: int | None,
    everything: bool,
    at: str | None,
    network_dir: Path | None,
) -> None:
    """Print the links of an account with their postings, and which link of the recipient confirmed each one."""
    if everything and limit is not None:
        raise LocalMisuse(f"--all and --limit {limit} contradict each other: leave one of them out")
    most = None if everything else limit or DEFAULT_LINKS
    begin = 0 if everything and from_height is None else from_height
    checked_name(name)
    network = find_network(network_dir)
    node = pinned(network, at)

    async def ask() -> Chain | NotFound:
        async with open_client(network) as client:
            return await ask_until_found(
                network,
                node,
                lambda address: _links(client, name, begin, most, address),
            )

    found = run(ask)
    if isinstance(found, NotFound):
        raise not_found(f"account {name}", node, stale=found.stale)
    out.data(
        {
            "account": found.account,
            "asset": found.asset,
            "scale": found.scale,
            "height": found.height,
            "links": [_link_document(link) for link in found.links],
            "stale": found.stale,
        }
    )
    out.say(f"{found.account}: height {found.height}, {counted(len(found.links), 'link')} shown", bold=True)
    say_stale(out, found)
    for link in found.links:
        _say_link(out, link, found)


async def _links(
    client: Client, name: str, from_height: int | None, limit: int | None, at: NodeAddress
) -> Chain | NotFound:
    """Up to `limit` links (None: all) from `from_height` (None: so that the last one is the tip), page after page."""
    first = await client.chain(name, from_height or 0, 1, at=at)
    if isinstance(first, NotFound):
        return first
    begin = max(0, first.height - (limit or 0) + 1) if from_height is None else from_height
    end = first.height + 1 if limit is None else begin + limit
    links: list[ChainLink] = []
    stale = first.stale
    while begin < end:
        page = await client.chain(name, begin, min(end - begin, MAX_PAGE), at=at)
        if isinstance(page, NotFound) or not page.links:
            break
        links += page.links
        stale = stale or page.stale
        begin = links[-1].height + 1
    return Chain(first.account, first.asset, first.scale, first.height, tuple(links), stale)


def _link_document(link: ChainLink) -> JsonValue:
    return {
        "hash": link.hash.hex(),
        "height": link.height,
        "prev_hash": link.prev_hash.hex(),
        "balance": link.balance,
        "incoming_checksum": link.incoming_checksum.hex(),
        "epoch": link.epoch,
        "time_ms": link.time_ms,
        "requests": [
            {
                "request_id": entry.request_id.hex(),
                "kind": Kind(entry.kind).name.lower(),
                "outcome": outcome_name(entry.outcome),
                "total": entry.total,
            }
            for entry in link.entries
        ],
        "postings": [
            {
                "hash": posting.hash.hex(),
                "number": posting.number,
                "recipient": posting.recipient,
                "amount": posting.amount,
                "reference": posting.memo,
                "request_id": posting.request_id.hex(),
                "confirmation": posting.confirmation.hex() or None,
                "prev_confirmed_hash": posting.prev_confirmed_hash.hex() or None,
            }
            for posting in link.postings
        ],
        "income": [{"hash": i.hash.hex(), "sender": i.sender, "amount": i.amount} for i in link.income],
    }


def _say_link(out: Output, link: ChainLink, about: Chain) -> None:
    """Whole are the hashes that other commands take: of the link, and of its requests."""

    def money(amount: int) -> str:
        return format_amount(amount, about.scale, grouped=True)

    out.say()
    out.say(
        f"#{link.height}  {time_text(link.time_ms)}  balance {money(link.balance)} {about.asset}  epoch {link.epoch}",
        bold=True,
    )
    out.say(f"     link {link.hash.hex()}  after {link.prev_hash.hex()[:SHORT]}")
    for income in link.income:
        out.say(f"   + {money(income.amount)} from {income.sender}  {income.hash.hex()[:SHORT]}", colour="green")
    for posting in link.postings:
        taken = f"confirmed by {posting.confirmation.hex()[:SHORT]}" if posting.confirmation else "not yet confirmed"
        memo = f"  {quoted(posting.memo)}" if posting.memo else ""
        out.say(f"   - {money(posting.amount)} to {posting.recipient}{memo}  {posting.hash.hex()[:SHORT]}  {taken}")
    for entry in link.entries:
        what = Kind(entry.kind).name.lower()
        total = f" of {money(entry.total)}" if entry.total else ""
        colour = None if entry.outcome == Outcome.COMPLETED else "red"
        out.say(f"     {what}{total}: {outcome_name(entry.outcome)}  {entry.request_id.hex()}", colour=colour)


def time_text(time_ms: int) -> str:
    """Unix milliseconds as UTC for people."""
    moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(milliseconds=time_ms)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")

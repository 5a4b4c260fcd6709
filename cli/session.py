"""What commands do with a network: open a client, ask node after node, find an account's asset."""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

from chain.errors import LocalMisuse
from chain.genesis import Asset
from cli.command import run
from cli.home import Network, is_named
from cli.output import CommandFailed, Exit, Output
from hopchain import Accounts, Balance, Chain, Client, NotFound, Route, Unknown, Unreachable
from hopchain.addresses import NodeAddress

_T = TypeVar("_T")
# The id of a node, or its beginning, as commands show one whose name they do not know
_ID: Final = re.compile("[0-9a-f]{8,40}")
_BEHIND: Final = "the node that answered was removed, reaches no majority of the members, or has not caught up"


def open_client(network: Network, *, spread: bool = False) -> Client:
    """A client of all nodes of the network. It stays with one that answers; with `spread` a request goes to the node
    that makes its sender's next link, as far as that is known, everything else to each in turn."""
    return Client([n.address for n in network.nodes], network.genesis.ca, network.id, spread=spread)


def pinned(network: Network, at: str | None) -> NodeAddress | None:
    """The address that `--at` names, or None. Where a node is that network.toml does not list, the others are asked."""
    if at is None:
        return None
    if at in network.names.values() or _ID.fullmatch(at):
        from cli.members import find_node, look, open_patiently

        async def ask() -> NodeAddress | None:
            async with open_patiently(network) as client:
                picture = await look(client, network)
            wanted = find_node(picture, at)
            return next((node.address for node in picture.nodes if node.id == wanted and node.client_port), None)

        address = run(ask)
        if address is not None:
            return address
    return network.node(at)


async def ask_until_found(
    network: Network, at: NodeAddress | None, ask: Callable[[NodeAddress], Awaitable[_T | NotFound]]
) -> _T | NotFound:
    """Ask the pinned node, or all one after the other, until one knows that is not `stale`; a replica may be a moment
    behind the others. Else the best there is: something that is stale, then `Unknown`, then nothing that is not.

    Raises `Unreachable` when none could be asked.
    """
    tried: list[tuple[str, str]] = []
    reached = False
    answers: list[_T | NotFound] = []
    for address in [at] if at is not None else [n.address for n in network.nodes]:
        try:
            answer = await ask(address)
        except Unreachable as error:
            tried += error.tried
            reached = reached or error.reached
            continue
        if not isinstance(answer, NotFound | Unknown) and not is_stale(answer):
            return answer
        answers.append(answer)
    if not answers:
        raise Unreachable(tried, reached=reached)
    return min(
        answers, key=lambda answer: (isinstance(answer, NotFound), isinstance(answer, Unknown), is_stale(answer))
    )


def is_stale(answer: object) -> bool:
    """True for what a node read that may have fallen behind the others (hopchain.wire)."""
    return isinstance(answer, Balance | NotFound | Chain | Accounts | Route) and answer.stale


def say_stale(out: Output, answer: object) -> None:
    """Tell people that others may know more; nothing for an answer that is not stale."""
    if is_stale(answer):
        out.say(f"stale: {_BEHIND}; others may know more", colour="yellow")


def say_remembered(out: Output, network: Network, option: Path | None) -> None:
    """Tell people where their money goes when they did not say which network."""
    if not is_named(option):
        out.say(
            f"network {network.genesis.name} ({network.directory}), the last one made or used: --network names another"
        )


async def asset_of(client: Client, network: Network, account: str, at: NodeAddress | None) -> Asset:
    """The asset that an account holds; nobody is asked when the network has only one."""
    if len(network.genesis.assets) == 1:
        return network.genesis.assets[0]
    answer = await ask_until_found(network, at, lambda address: client.balance(account, at=address))
    if not isinstance(answer, Balance):
        raise not_found(f"account {account}", at, stale=is_stale(answer))
    return network.asset(answer.asset)


async def account_line(client: Client, account: str, at: NodeAddress | None) -> Accounts | NotFound:
    """One account with its public key, from one node's list: a list of one."""
    before = account[:-1] + chr(ord(account[-1]) - 1) + "\x7f"  # sorts after every name that sorts before `account`
    page = await client.accounts(before, 1, at=at)
    if page.accounts and page.accounts[0].name == account:
        return page
    return NotFound(f"account {account}", page.stale)


def default_asset(network: Network, code: str | None) -> Asset:
    """The asset named, or the only one; `LocalMisuse` when there are several."""
    if code is not None:
        return network.asset(code)
    if len(network.genesis.assets) == 1:
        return network.genesis.assets[0]
    codes = ", ".join(a.code for a in network.genesis.assets)
    raise LocalMisuse(f"this network has several assets: choose one of {codes} with --asset")


def not_found(what: str, at: NodeAddress | None, *, stale: bool) -> CommandFailed:
    """Nobody knows it; when all who were asked are `stale`, that says nothing about the others."""
    where = "any node" if at is None else f"{at[0]}:{at[1]}"
    if stale:
        text = (
            f"{what} is not known at {where}, but {_BEHIND}; others may know it: ask a node that has contact with them"
        )
        return CommandFailed(Exit.UNREACHABLE, "stale", text)
    return CommandFailed(Exit.REJECTED, "not_found", f"{what} is not known at {where}")

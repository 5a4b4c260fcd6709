"""`hopchain member list`: the views, who is a member, and where the members are."""

import datetime
from pathlib import Path
from typing import Final

import click

from cli.command import HopCommand, at_option, network_option, run
from cli.home import SHORT_ID, Network, find_network, load_network
from cli.members import Picture, look, open_patiently
from cli.names import add_names
from cli.output import CommandFailed, Exit, JsonValue, Output, counted
from cli.session import open_client, pinned
from hopchain.wire import MemberLine, Members, ViewLine

_STALE: Final = "this node is not a member any more, reaches no majority of the members, or has not caught up: its list may be old; ask another one with --at"


@click.command(
    "list",
    cls=HopCommand,
    examples=["hopchain member list", "hopchain member list --at node-2 --json", "hopchain member list --save"],
)
@click.option(
    "--save",
    is_flag=True,
    help="Write the current members and their addresses into network.toml, where commands look for nodes.",
)
@at_option
@network_option
def list_command(out: Output, save: bool, at: str | None, network_dir: Path | None) -> None:
    """Show all views: who was added or removed, when, and which node proposed it."""
    network = find_network(network_dir)
    if save:
        network = _save(out, network)
    node = pinned(network, at)

    async def ask() -> Members:
        async with open_client(network) as client:
            return await client.view_list(at=node)

    listed = run(ask)
    views = listed.views
    if not views:
        raise CommandFailed(
            Exit.REJECTED, "not_found", "the node that answered gave no views: ask another one with --at"
        )
    before: dict[bytes, MemberLine] = {}
    rows, documents = [], []
    for view in views:
        members = {line.id: line for line in view.members}
        added = [line for node_id, line in members.items() if node_id not in before]
        removed = [line for node_id, line in before.items() if node_id not in members]
        documents.append(_view_document(network, view, added, removed))
        change = [f"+{network.name_of(m.id)}" for m in added] + [f"-{network.name_of(m.id)}" for m in removed]
        by = network.name_of(view.by) if any(view.by) else "init"
        rows.append(
            [str(view.epoch), _when(view.time_ms), by, str(len(members)), " ".join(change), view.hash.hex()[:16]]
        )
        before = members
    out.data(
        {
            "network": network.id.hex(),
            "epoch": views[-1].epoch,
            "members": [member_document(network, line) for line in views[-1].members],
            "views": documents,
            "stale": listed.stale,
        }
    )
    out.table(["epoch", "when", "by", "members", "change", "hash"], rows, right=["epoch", "members"])
    out.table(
        ["member", "id", "public key"],
        [[network.name_of(m.id), m.id.hex(), m.public_key.hex()] for m in views[-1].members],
    )
    if listed.stale:
        out.say(_STALE, colour="yellow")


def _save(out: Output, network: Network) -> Network:
    """The network with the members of now in its network.toml; `CommandFailed` when it is not known where one is."""
    from cli.invite import current_seeds
    from node.layout import NETWORK_FILE, read_network, write_places

    async def ask() -> Picture:
        async with open_patiently(network) as client:
            return await look(client, network)

    picture = run(ask)
    made = read_network(network.directory)
    places = current_seeds(picture, made.nodes)
    hidden = sorted(set(picture.members) - {place.node_id for place in places})
    if hidden:
        names = ", ".join(network.told(node) for node in hidden)
        raise CommandFailed(
            Exit.REJECTED,
            "not_found",
            f"no node knows where {names} serves clients: start what is down, then save again",
        )
    stay = {place.id for place in places}
    gone: dict[bytes, str] = {
        node.node_id: node.name for node in made.nodes if node.id not in stay and node.name != node.id[:SHORT_ID]
    }
    failed = add_names(network.directory, gone)  # they are still in the views
    if failed:
        out.note(f"{', '.join(gone.values())} will be shown by id: {failed}")
    write_places(network.directory, made.genesis, places)
    out.note(
        f"{network.directory / NETWORK_FILE} names the {counted(len(places), 'member')} of epoch {picture.newest.epoch} now"
    )
    return load_network(network.directory)


def _view_document(
    network: Network, view: ViewLine, added: list[MemberLine], removed: list[MemberLine]
) -> dict[str, JsonValue]:
    return {
        "epoch": view.epoch,
        "hash": view.hash.hex(),
        "time_ms": view.time_ms,
        "by": view.by.hex() if any(view.by) else None,
        "members": len(view.members),
        "added": [member_document(network, line) for line in added],
        "removed": [member_document(network, line) for line in removed],
    }


def member_document(network: Network, line: MemberLine) -> JsonValue:
    """A member, as `--json` shows it."""
    return {
        "id": line.id.hex(),
        "name": network.name_of(line.id),
        "public_key": line.public_key.hex(),
        "incarnation": line.incarnation,
    }


def _when(time_ms: int) -> str:
    return datetime.datetime.fromtimestamp(time_ms / 1000, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")

"""`hopchain invite`: a file that lets one new node join."""

import re
import secrets
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from chain.errors import HopchainError, LocalMisuse
from cli.command import HopCommand, network_argument, network_option, one_directory, run
from cli.durable import one_at_a_time
from cli.home import SHORT_ID, find_network, load_network
from cli.members import Picture, is_place, look, now_ms, open_patiently, operator_key
from cli.names import add_names, read_names
from cli.output import Output
from node.layout import NodePlace
from node.pki import MAX_DAYS, NODE_DAYS

if TYPE_CHECKING:
    from node.invite import Invitation

_BEGINNING: Final = 1024  # bytes of an invitation, in which it names its network
_UNITS_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SPAN: Final = re.compile(r"([1-9][0-9]{0,5})([smhd])", re.ASCII)


@click.command(
    cls=HopCommand,
    examples=[
        "hopchain invite net",
        "hopchain invite net --name node-6 --expires 2h --out node-6.invite",
        "hopchain invite --observer --json",
    ],
)
@network_argument
@click.option("--name", help="What the node is called here. Default: node- and four random hex digits.")
@click.option(
    "--expires", default="24h", show_default=True, metavar="SPAN", help="How long it may be used: 30m, 24h, 7d."
)
@click.option("--observer", is_flag=True, help="For an observer: a node that gets all links and never votes.")
@click.option(
    "--days",
    type=click.IntRange(1, MAX_DAYS),
    default=NODE_DAYS,
    show_default=True,
    help="How long the node's certificate is valid.",
)
@click.option(
    "--out",
    "out_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The file to make. Default: NAME.invite in the network's directory.",
)
@network_option
def invite(
    out: Output,
    directory: Path | None,
    name: str | None,
    expires: str,
    observer: bool,
    days: int,
    out_file: Path | None,
    network_dir: Path | None,
) -> None:
    """Make an invitation: a secret file for one new node, to be copied to its machine.

    It holds the node's key and certificate, and the operator's permission to become a member. The network's directory
    must be the one that `init` made, with ca.key and operator.key; DIR is the same as --network DIR. On the new node's
    machine: hopchain join FILE --data D
    """
    from node.invite import load_invite, make_invite, write_invite
    from node.layout import CA_KEY, read_network
    from node.pki import read_secret

    directory = find_network(one_directory(directory, network_dir)).directory
    network = read_network(directory)
    span_ms = parse_span(expires)
    now = now_ms()
    operator = operator_key(network.genesis, directory)
    ca_key = read_secret(directory / CA_KEY)
    name = checked_node_name(name or f"node-{secrets.token_hex(2)}", [node.name for node in network.nodes])
    path = out_file or directory / f"{name}.invite"
    if not path.parent.is_dir():
        raise LocalMisuse(f"{path} cannot be made: {path.parent} is not a directory. Name another file with --out")
    picture = _look(directory)
    with one_at_a_time(directory, must_lock=False):  # else two that begin together give one name away twice
        before = _invited_before(name, directory, picture)
        made = make_invite(
            name,
            network.genesis,
            ca_key,
            operator,
            _network_key(directory),
            # While no node is reachable the directory has to do.
            network.nodes if picture is None else current_seeds(picture, network.nodes),
            now_ms=now,
            expires_ms=now + span_ms,
            observer=observer,
            days=days,
        )
        write_invite(path, made)
        failed = add_names(directory, {load_invite(path).key.id: name})
    if failed:
        out.note(f"the commands here will show the node by its id, not as {name}: {failed}")
    elif before is not None:
        out.note(
            f"a node that was invited as {name} before is not a member: if it joins later or comes back, it is shown by its id, "
            f"{before}"
        )
    out.data(
        {
            "invite": str(path.resolve()),
            "name": name,
            "expires_ms": made.expires_ms,
            "observer": observer,
            "seeds": [{"id": seed.id, "host": seed.host, "client_port": seed.client_port} for seed in made.seeds],
        }
    )
    out.say(f"invitation for {name}: {path}, valid for {expires}", bold=True)
    out.say("it is a secret for one machine: copy it there (scp keeps its mode), then delete it here")
    out.say(f"there: hopchain join {shlex.quote(path.name)} --data {name}{' --observer' if observer else ''}")


def parse_span(text: str) -> int:
    """`24h` in milliseconds; `LocalMisuse` when no invitation may be valid for so long."""
    from node.invite import MAX_EXPIRY_MS

    match = _SPAN.fullmatch(text)
    if match is None:
        raise LocalMisuse(f"{text[:40]!r} is not a span of time: write a number and s, m, h or d, such as 24h")
    span_ms = int(match[1]) * _UNITS_MS[match[2]]
    if span_ms > MAX_EXPIRY_MS:
        raise LocalMisuse(f"--expires {text}: an invitation is valid for at most {MAX_EXPIRY_MS // _UNITS_MS['d']}d")
    return span_ms


def checked_node_name(name: str, taken: Sequence[str]) -> str:
    """A node's name; `LocalMisuse` when it cannot be one or is taken."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name, re.ASCII) is None:
        raise LocalMisuse(
            f"{name[:80]!r} is not a node's name: 1 to 64 of letters, digits and . _ -, a letter or digit first"
        )
    if name in taken:
        raise LocalMisuse(f"a node of this network is called {name} already: choose another name")
    return name


def open_invitation(path: Path) -> "Invitation":
    """The invitation in `path`, whether or not it has expired. `LocalMisuse`; of a file that is none it says so before
    it asks for the file's mode to be changed. (A pipe is read once: who looked again would find nothing, or wait for
    ever.)"""
    from node.invite import load_invite

    try:
        return load_invite(path)
    except LocalMisuse:
        if _is_another_file(path):
            raise LocalMisuse(f"{path} is no invitation: `hopchain invite` makes them, such as node-6.invite") from None
        raise


def _is_another_file(path: Path) -> bool:
    """True when it can be read and names no network."""
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                return b'"network_id"' not in file.read(_BEGINNING)
    return False


def _network_key(directory: Path) -> bytes:
    """The key that all nodes share: each node's directory has it."""
    from node.layout import NETWORK_KEY, read_network, read_network_key

    network = read_network(directory)
    for place in (directory, *(network.node_directory(node) for node in network.nodes)):
        if (place / NETWORK_KEY).exists():
            return read_network_key(place)
    raise LocalMisuse(
        f"{directory} has no {NETWORK_KEY}: copy it there from a node's directory (all nodes have the same), mode 0600"
    )


def _look(directory: Path) -> Picture | None:
    """Who the members are now; None when the network does not run, or not within reach."""
    network = load_network(directory)

    async def ask() -> Picture:
        async with open_patiently(network) as client:
            return await look(client, network)

    try:
        return run(ask)
    except HopchainError:
        return None


def _invited_before(name: str, directory: Path, picture: Picture | None) -> str | None:
    """The short id of the node that was invited under this name before, is no member and does not answer; None when
    none was. `LocalMisuse` when it is or was one, or runs as an observer, or nobody can be asked: one name would be two
    nodes."""
    node = next((node for node, known in read_names(directory).items() if known == name), None)
    if node is None:
        return None
    if picture is None:
        raise LocalMisuse(
            f"a node was invited as {name} before, and no node answers to say whether it joined: choose another name, or start "
            "the network first"
        )
    epochs = [view.epoch for view in picture.views if any(member.id == node for member in view.members)]
    if epochs and node not in picture.members:  # its views are shown for ever
        when = f"in epoch {epochs[0]}" if epochs[0] == epochs[-1] else f"in epochs {epochs[0]} to {epochs[-1]}"
        raise LocalMisuse(
            f"a node of this network that was called {name} ({node.hex()[:SHORT_ID]}) was a member {when}: choose another name"
        )
    if node in picture.members or node in picture.alive:
        raise LocalMisuse(f"a node of this network is called {name} already: choose another name")
    return node.hex()[:SHORT_ID]


def current_seeds(picture: Picture, nodes: tuple[NodePlace, ...]) -> tuple[NodePlace, ...]:
    """The members of now: those of the directory, then those that joined later; all of the directory when there are
    none."""
    there = {node.id for node in nodes}
    seeds = [
        msgspec.structs.replace(node, name=picture.name_of(node.node_id))
        for node in nodes
        if node.node_id in picture.members
    ]
    told = {p.id: p for health in picture.health.values() for p in health.peers if p.port and is_place(p)}
    for node, found in sorted(told.items()):
        if node in picture.members and node.hex() not in there:
            seeds.append(NodePlace(picture.name_of(node), node.hex(), found.host, found.port, found.client_port))
    return tuple(seeds) or nodes

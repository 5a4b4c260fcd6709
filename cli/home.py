"""Which network a command talks to, and where this user's things are.

The network: `--network DIR`, else `HOPCHAIN_NETWORK`, else the one last made or used, remembered in `HOPCHAIN_HOME`
(default `~/.hopchain`), which also holds the wallet. Used is one that answered a command, or that something was sent
to: a command that is refused, or that reaches no node, leaves what is remembered as it was. A node's directory stands
for the network's around it; one that is alone on its machine is remembered where nothing else is.
"""

import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Final

import click
import msgspec

from chain.errors import LocalMisuse
from chain.genesis import Asset, Genesis
from chain.request import NetworkId
from cli.names import read_names
from node.durable import write_whole

HOME_VARIABLE: Final = "HOPCHAIN_HOME"
NETWORK_VARIABLE: Final = "HOPCHAIN_NETWORK"
_REMEMBERED: Final = "network"
_USED: Final = "hopchain.network"  # of a command: the directory that it read
_NAME_ONE: Final = f"remove it, or name a network with --network DIR or {NETWORK_VARIABLE}"
SHORT_ID: Final = 8  # hex digits of a node id that people see


class KnownNode(msgspec.Struct, frozen=True):
    """A node as the network's files name it."""

    name: str
    id: bytes
    host: str
    client_port: int

    @property
    def address(self) -> tuple[str, int]:
        """(host, client port)."""
        return (self.host, self.client_port)

    @property
    def short(self) -> str:
        """The first hex digits of its id."""
        return self.id.hex()[:SHORT_ID]


class Network(msgspec.Struct, frozen=True):
    """A network as its directory describes it to clients. `names`: by id, of nodes that network.toml does not list
    (cli.names). `for_members`: the names of its nodes by (host, port) for other members, which clients take for their
    own."""

    directory: Path
    genesis: Genesis
    id: NetworkId
    nodes: tuple[KnownNode, ...]
    names: dict[bytes, str] = {}
    for_members: dict[tuple[str, int], str] = {}

    def asset(self, code: str) -> Asset:
        """The asset with this code; `LocalMisuse` lists those that exist."""
        asset = self.genesis.asset(code)
        if asset is None:
            known = ", ".join(f"{a.code} (scale {a.scale})" for a in self.genesis.assets)
            raise LocalMisuse(f"this network has no asset {code!r}; it has {known}")
        return asset

    def scale(self, code: str) -> int:
        """Decimals of an asset that a node named."""
        return self.asset(code).scale

    def name_of(self, node_id: bytes) -> str:
        """`node-3`, or the short id of a node whose name the directory does not know."""
        listed = next((n.name for n in self.nodes if n.id == node_id), None)
        return listed or self.names.get(node_id) or node_id.hex()[:SHORT_ID]

    def told(self, node_id: bytes) -> str:
        """`node-3 (5f0c9a1b)`, or the short id alone: where people are to act on it."""
        name, short = self.name_of(node_id), node_id.hex()[:SHORT_ID]
        return short if name == short else f"{name} ({short})"

    def node(self, text: str) -> tuple[str, int]:
        """The client address that `node-3` or `HOST:PORT` stands for."""
        for known in self.nodes:
            if text == known.name:
                return known.address
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            if text in self.names.values():
                raise LocalMisuse(
                    f"the client port of {text} is not in {self.directory}, and no node that answers knows it: give HOST:PORT"
                )
            names = ", ".join(n.name for n in self.nodes)
            raise LocalMisuse(f"{text[:80]!r} is not a node: give HOST:PORT of a client port, or one of {names}")
        address = (host.strip("[]"), int(port))
        clients = {known.address: known.name for known in self.nodes}
        if address not in clients and (name := self.for_members.get(address)):
            there = next(f"{at}:{number}" for (at, number), known in clients.items() if known == name)
            raise LocalMisuse(f"{text} is where other nodes reach {name}: it serves clients at {there}")
        return address


def home() -> Path:
    """The user's directory; it need not exist."""
    named = os.environ.get(HOME_VARIABLE)
    return Path(named) if named else Path.home() / ".hopchain"


def remember(directory: Path) -> Path | None:
    """Make this the network that commands talk to when none is named; the other one that it was until now, if any.
    Where nothing can be written it is not remembered: who only reads needs no directory of this user."""
    place = home()
    raw = os.fsencode(directory.resolve()) + b"\n"
    remembered = place / _REMEMBERED
    before = b""
    with suppress(OSError):
        before = remembered.read_bytes()
    if before == raw:
        return None
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(remembered, raw)
    except OSError:
        return None
    return _path_in(before)


def remember_if_none(directory: Path) -> None:
    """As `remember`, when commands have no network to talk to: for the directory of a node that joined, where nobody
    made one."""
    try:
        find_directory(None)
    except LocalMisuse:
        remember(network_around(directory) or directory)


def network_around(directory: Path) -> Path | None:
    """The directory of the network that this one, of a node, lies in; None when it lies in none, or in another
    network's."""
    from node.layout import read_network

    around = directory.resolve().parent
    try:
        same = read_network(around).network_id == read_network(directory).network_id
    except (LocalMisuse, OSError):
        return None
    return around if same else None


def is_named(option: Path | None) -> bool:
    """True when the user said which network: with the option, or the variable."""
    return option is not None or bool(os.environ.get(NETWORK_VARIABLE))


def _path_in(raw: bytes) -> Path | None:
    """The directory that was remembered so; None when it is none."""
    text = os.fsdecode(raw).removesuffix("\n")
    return Path(text) if text.startswith("/") and "\0" not in text else None


def find_directory(option: Path | None) -> Path:
    """The directory of the network to talk to; `LocalMisuse` when there is none."""
    if option is not None:
        return option
    named = os.environ.get(NETWORK_VARIABLE)
    if named:
        return Path(named)
    remembered = home() / _REMEMBERED
    try:
        raw = remembered.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raw = b""
    except OSError as error:
        raise LocalMisuse(
            f"{remembered}, which remembers the network last used, cannot be read ({error.strerror}): {_NAME_ONE}"
        ) from None
    if not raw:  # no file, or an empty one, which a power cut may leave
        raise LocalMisuse(
            f"no network is known: make one with `hopchain init DIR`, or name one with --network DIR or {NETWORK_VARIABLE}"
        )
    directory = _path_in(raw)
    if directory is None:
        raise LocalMisuse(
            f"{remembered}, which remembers the network last used, holds no path in its {len(raw)} bytes: {_NAME_ONE}"
        )
    return directory


def check_is_node(directory: Path) -> None:
    """`LocalMisuse` when this is the directory of a network, which holds those of its nodes; it names one."""
    from node.config import CONFIG_FILE

    if not (directory / CONFIG_FILE).exists() and (nodes := sorted(directory.glob(f"*/{CONFIG_FILE}"))):
        raise LocalMisuse(f"{directory} is a network's directory: name that of one node, such as {nodes[0].parent}")


def load_network(directory: Path) -> Network:
    """The network in `directory`; `LocalMisuse` when it is none."""
    from node.layout import read_network

    found = read_network(directory)
    listed = {n.name for n in found.nodes}
    names = {node: name for node, name in read_names(directory).items() if name not in listed}
    nodes = tuple(
        # An id in place of a name: who saved it knew none.
        KnownNode(
            names.get(n.node_id, n.name) if n.name == n.id[:SHORT_ID] else n.name, n.node_id, n.host, n.client_port
        )
        for n in found.nodes
    )
    for_members = {(n.host, n.port): known.name for n, known in zip(found.nodes, nodes, strict=True)}
    return Network(found.directory, found.genesis, found.network_id, nodes, names, for_members)


def start_nodes(network: Network) -> str:
    """How to start the nodes of this network, and of no other."""
    return f"`hopchain up {shlex.quote(str(network.directory))}`, or `hopchain node` on their machines"


def find_network(option: Path | None) -> Network:
    """The network to talk to, read from its directory. The next command's, too, once this one was not refused:
    `remember_used`."""
    network = load_network(find_directory(option))
    context = click.get_current_context(silent=True)
    if context is not None:
        context.meta[_USED] = network.directory
    return network


def used_directory() -> Path | None:
    """The directory of the network that the command which runs now has found; None when it has found none."""
    context = click.get_current_context(silent=True)
    return None if context is None else context.meta.get(_USED)


def forget_used() -> None:
    """The command that runs asks its network nothing, and sends nothing to it: it is not one that was used."""
    click.get_current_context().meta.pop(_USED, None)


def remember_used(context: click.Context) -> None:
    """Remember the network that a command has found: it was asked something and answered, or something was sent to
    it."""
    from node.config import CONFIG_FILE

    directory = context.meta.get(_USED)
    if directory is None:
        return
    around = network_around(directory)
    if around is None and (directory / CONFIG_FILE).exists():
        remember_if_none(directory)
    else:
        remember(around or directory)

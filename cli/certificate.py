"""`hopchain certificate list` and `renew`: when the nodes' certificates end, and new ones for the same keys."""

import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from chain.errors import LocalMisuse
from cli.command import HopCommand, hex_of, network_option
from cli.diagnosis import CERTIFICATE_MS
from cli.home import SHORT_ID, find_network
from cli.members import now_ms
from cli.output import Exit, JsonValue, Output
from node.durable import write_whole
from node.pki import MAX_DAYS, NODE_DAYS
from routing.view import PUBLIC_KEY_BYTES

if TYPE_CHECKING:
    from node.layout import Network as NetworkFiles
    from node.layout import NodePlace

_DAY_MS: Final = 24 * 3600 * 1000


class _Line(msgspec.Struct, frozen=True):
    """One certificate of the directory. `until_ms` is None when `fault` says what is wrong with it."""

    name: str
    id: str
    until_ms: int | None
    path: Path
    fault: str = ""

    def ends_by(self, time_ms: int) -> bool:
        """True when it is to be renewed, at that time at the latest."""
        return self.until_ms is None or self.until_ms <= time_ms


@click.group()
def certificate() -> None:
    """See when certificates end; renew them without stopping anything."""


@certificate.command(
    "list", cls=HopCommand, examples=["hopchain certificate list", "hopchain certificate list --network net --json"]
)
@network_option
def list_command(out: Output, network_dir: Path | None) -> None:
    """Show when the certificates in a network's directory end. Exit code 1: one ends within 30 days or cannot be used.

    Not listed: nodes whose files are on other machines. `hopchain doctor` asks those.
    """
    from node.layout import read_network
    from node.pki import ca_until_ms

    network = read_network(find_network(network_dir).directory)
    now = now_ms()
    lines = [line for node in network.nodes if (line := _line(network, node)) is not None]
    ca_ms = ca_until_ms(network.genesis.ca)
    soon = [line for line in lines if line.ends_by(now + CERTIFICATE_MS)]
    out.data(
        {
            "network": network.network_id.hex(),
            "ca_until_ms": ca_ms,
            "ca_days": _days(ca_ms, now),
            "nodes": [_document(line, now) for line in lines],
        }
    )
    rows = [
        [line.name, line.id[:SHORT_ID], "" if days is None else f"{days:.1f}", str(line.path)]
        for line in lines
        for days in [_days_of(line, now)]
    ]
    if rows:
        out.table(["node", "id", "ends in days", "file"], rows, right=["ends in days"])
    else:
        out.say(f"no node's files are in {network.directory}: `hopchain doctor` asks the nodes themselves")
    out.say(f"the network's CA ends in {_days(ca_ms, now):.0f} days")
    for line in lines:
        if line.fault:
            out.say(f"✗ {line.name}: {line.fault}", colour="red")
    for line in soon:
        where = shlex.quote(str(network.directory))
        out.say(f"renew: hopchain certificate renew {shlex.quote(line.name)} --network {where}", colour="red")
    raise SystemExit(Exit.REJECTED if soon else Exit.DONE)


def _line(network: "NetworkFiles", node: "NodePlace") -> _Line | None:
    """What is known of this node's certificate; None when its files are not here."""
    from node.config import CONFIG_FILE
    from node.pki import NODE_CERTIFICATE, certificate_matches, certificate_until_ms, read_node_key

    directory = network.node_directory(node)
    path = directory / NODE_CERTIFICATE
    if not path.exists() and not (directory / CONFIG_FILE).exists():
        return None
    node_id = node.node_id
    with suppress(LocalMisuse):  # the operator's copy has no key
        node_id = read_node_key(directory).id
    try:
        until_ms = certificate_until_ms(path)
        certificate_matches(path.read_bytes(), str(path), network.genesis.ca, node_id)
    except (LocalMisuse, OSError) as error:
        return _Line(node.name, node.id, None, path, str(error))
    return _Line(node.name, node.id, until_ms, path)


@certificate.command(
    "renew",
    cls=HopCommand,
    examples=[
        "hopchain certificate renew node-3",
        "hopchain certificate renew /srv/node/node.crt --network net --days 90",
        "hopchain certificate renew 5f0c...e1 --out 5f0c.crt    # a public key; carry the file to its node",
    ],
)
@click.argument("node", metavar="NODE")
@click.option(
    "--days", type=click.IntRange(1, MAX_DAYS), default=NODE_DAYS, show_default=True, help="How long it is valid."
)
@click.option(
    "--out",
    "out_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="File to write; it replaces only an earlier certificate of the same node. Default: the node's node.crt.",
)
@network_option
def renew_command(out: Output, node: str, days: int, out_file: Path | None, network_dir: Path | None) -> None:
    """Make a new certificate for the same key. A running node uses the new node.crt within seconds.

    NODE: a node's name in the network's directory, its directory, its node.crt, or its public key in hex (with --out).
    Open connections stay; new ones show the new certificate.
    """
    from node.layout import CA_KEY, read_network
    from node.pki import certificate_until_ms, make_node_certificate, read_secret
    from routing.keyspace import node_id_of

    directory = find_network(network_dir).directory
    network = read_network(directory)
    public_key, place = _find(network, node)
    target = out_file or place
    if target is None:
        raise LocalMisuse("name the file for the certificate with --out: a public key does not say where its node is")
    if out_file is not None:
        _check_target(out_file, public_key)
    ca_key = read_secret(directory / CA_KEY)
    pem = make_node_certificate(network.genesis.ca.encode(), ca_key, public_key, now_ms(), days)
    _replace(target, pem)
    until_ms = certificate_until_ms(target)
    node_id = node_id_of(public_key).hex()
    out.data({"node": node_id, "certificate": str(target), "until_ms": until_ms})
    out.say(f"node {node_id[:SHORT_ID]}: {target} is valid for {_days(until_ms, now_ms()):.0f} days")


def _find(network: "NetworkFiles", node: str) -> tuple[bytes, Path | None]:
    """The public key, and the certificate's file when it has one: the node's own, which may be torn, lost or
    another's."""
    from node.config import CONFIG_FILE
    from node.pki import NODE_CERTIFICATE, certified_key

    for place in (network.directory / node, Path(node)):
        if any((place / name).is_file() for name in (NODE_CERTIFICATE, CONFIG_FILE)):
            return _key_in(network, place), place / NODE_CERTIFICATE
    path = Path(node)
    if path.is_file():
        return (_key_in(network, path.parent) if path.name == NODE_CERTIFICATE else certified_key(path)), path
    if (key := hex_of(node, PUBLIC_KEY_BYTES)) is not None:
        return key, None
    raise LocalMisuse(
        f"{node!r} is not a node of {network.directory}, a node's directory or node.crt, or a public key ({2 * PUBLIC_KEY_BYTES} "
        "hex digits)"
    )


def _key_in(network: "NetworkFiles", directory: Path) -> bytes:
    """The public key of the node whose directory this is: of its node.key, else, in the operator's copy, as the genesis
    has it for the node of this name, else of the certificate that it has."""
    from node.pki import NODE_CERTIFICATE, certified_key, read_node_key
    from routing.keyspace import node_id_of

    with suppress(LocalMisuse):
        return read_node_key(directory).public_key
    named = {node.node_id for node in network.nodes if network.node_directory(node).resolve() == directory.resolve()}
    for member in network.genesis.members:
        if node_id_of(key := bytes.fromhex(member.public_key)) in named:
            return key
    return certified_key(directory / NODE_CERTIFICATE)


def _check_target(path: Path, public_key: bytes) -> None:
    """`LocalMisuse` when something else would be lost: a key, or another node's certificate."""
    from node.pki import certified_key

    try:
        if not path.exists() or (path.is_file() and path.stat().st_size == 0):
            return
        same = path.is_file() and certified_key(path) == public_key
    except FileNotFoundError:
        return
    except (LocalMisuse, OSError):
        same = False
    if not same:
        raise LocalMisuse(
            f"{path} exists and is not a certificate of this node: move it away, or name another file with --out"
        )


def _replace(path: Path, content: bytes) -> None:
    """The node may be reading it meanwhile."""
    try:
        write_whole(path, content)
    except OSError as error:
        raise LocalMisuse(f"{path} cannot be written ({error.strerror}): choose another place with --out") from None


def _days(until_ms: int, now: int) -> float:
    return round((until_ms - now) / _DAY_MS, 1)


def _days_of(line: _Line, now: int) -> float | None:
    return None if line.until_ms is None else _days(line.until_ms, now)


def _document(line: _Line, now: int) -> JsonValue:
    return {
        "name": line.name,
        "id": line.id,
        "until_ms": line.until_ms,
        "days": _days_of(line, now),
        "certificate": str(line.path),
        "fault": line.fault or None,
    }

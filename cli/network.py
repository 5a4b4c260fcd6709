"""`hopchain init`, `up`, `node`: make a network and run its nodes."""

import os
import re
import shlex
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.errors import LocalMisuse
from chain.genesis import Asset
from chain.names import MAX_SCALE, is_asset
from cli.command import HopCommand, checked_name, network_argument, network_option, one_directory, run
from cli.home import NETWORK_VARIABLE, check_is_node, find_directory, load_network, remember
from cli.members import now_ms
from cli.output import JsonValue, Output, counted
from cli.ports import choose_ports
from cli.wallet import Wallet
from hopchain import raw_public_key
from node.layout import LOOPBACK, MAX_NODES, make_network
from node.layout import Network as NetworkFiles
from node.pki import MAX_DAYS, NODE_DAYS

FIRST_PORT: Final = 7400
DEFAULT_NODES: Final = 5
LAST_PORT: Final = 65535
_PLACE: Final = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5})(?::(?P<client>[0-9]{1,5}))?)?",
    re.ASCII,
)


@click.command(
    cls=HopCommand,
    examples=[
        "hopchain init net --nodes 5 --asset CZK:2 --issuer mint",
        "hopchain init net --asset CZK:2 --asset EUR:2 --issuer mint=CZK --issuer bank=EUR --port 0",
        "hopchain init net --node-at n1.lan --node-at n2.lan --node-at n3.lan:7500:7501 --asset CZK:2 --issuer mint",
    ],
)
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--nodes", type=click.IntRange(1), help="How many nodes. Default: 5, or as many as --node-at names.")
@click.option(
    "--asset", "assets", multiple=True, required=True, metavar="CODE:SCALE", help="An asset and its decimals."
)
@click.option("--issuer", "issuers", multiple=True, metavar="NAME[=CODE]", help="An account that may go below zero.")
@click.option(
    "--k", type=click.IntRange(1, 64), default=5, show_default=True, help="Nodes that decide one link together."
)
@click.option(
    "--node-at",
    "places",
    multiple=True,
    metavar="HOST[:PORT[:CLIENT_PORT]]",
    help="Where one node will run, for nodes on several machines; repeat it for each. CLIENT_PORT: PORT + 1 if not given.",
)
@click.option(
    "--host", help="Address that all nodes listen on, such as 0.0.0.0. Default: each on its --node-at, else 127.0.0.1."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=FIRST_PORT,
    show_default=True,
    help="First port; each node takes two: members, then clients. 0: any free ones (from HOPCHAIN_PORTS=FROM-TO). With --node-at: "
    "PORT if not given.",
)
@click.option(
    "--days",
    type=click.IntRange(1, MAX_DAYS),
    default=NODE_DAYS,
    show_default=True,
    help="How long certificates are valid.",
)
@click.option("--name", help="Name of the network. Default: the directory's.")
def init(
    out: Output,
    directory: Path,
    nodes: int | None,
    assets: tuple[str, ...],
    issuers: tuple[str, ...],
    k: int,
    places: tuple[str, ...],
    host: str | None,
    port: int,
    days: int,
    name: str | None,
) -> None:
    """Make a new network: genesis, CA, one directory per node, operator key; the issuers' keys go into the wallet."""
    parsed = [parse_asset(text) for text in assets]
    issued = [_issuer(text, parsed) for text in issuers]
    if twice := [issuer for issuer, count in Counter(issuer for issuer, _ in issued).items() if count > 1]:
        raise LocalMisuse(f"issuer {twice[0]} is named more than once: one account holds one asset, so name each once")
    keys = {issuer: (code, Ed25519PrivateKey.generate()) for issuer, code in issued}
    advertise, ports = _addresses(nodes, places, host, port)
    called = name or directory.resolve().name
    try:
        made = make_network(
            directory,
            nodes=len(ports),
            assets=parsed,
            issuers={issuer: (code, raw_public_key(key)) for issuer, (code, key) in keys.items()},
            ports=ports,
            name=called,
            now_ms=now_ms(),
            k=k,
            host=host,
            advertise=advertise,
            days=days,
        )
    except LocalMisuse as error:
        if not name and f"{called[:80]!r} is not a network name" in str(error):
            raise LocalMisuse(f"{error}. It is the directory's: give the network another with --name") from None
        raise
    wallet = Wallet(made.network_id)
    try:
        for issuer, (_, key) in keys.items():
            wallet.add(issuer, key)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)  # nobody could ever pay in it; the same command makes another
        raise
    before = remember(directory)
    out.data(_document(made, wallet))
    _say_made(out, made, wallet)
    if before is not None:
        out.say(f"commands now use this network, no longer {before}: --network or {NETWORK_VARIABLE} names another")
    if places:
        out.say("next: copy each node's directory to its machine and run it there: hopchain node node-1")
    else:
        out.say(f"next: hopchain up {shlex.quote(str(directory))}")


def _addresses(
    nodes: int | None, places: Sequence[str], host: str | None, port: int
) -> tuple[list[str] | None, list[tuple[int, int]]]:
    """Where the nodes are told to be (None: on this machine), and the two ports of each. `LocalMisuse` when the options
    contradict each other."""
    if places:
        if nodes not in (None, len(places)):
            raise LocalMisuse(f"--nodes is {nodes}, but --node-at names {len(places)}: leave --nodes out")
        parsed = [parse_place(text, port) for text in places]
        _check_apart(places, parsed)
        return _unzip(parsed)
    count = nodes or DEFAULT_NODES
    if port and count <= MAX_NODES and port + 2 * count - 1 > LAST_PORT:
        raise LocalMisuse(
            f"{counted(count, 'node')} from port {port} on would need ports up to {port + 2 * count - 1}, and the last one is "
            f"{LAST_PORT}: give --port {LAST_PORT + 1 - 2 * count} or less, or 0 for any free ones"
        )
    flat = choose_ports(2 * count, host or LOOPBACK) if port == 0 else list(range(port, port + 2 * count))
    return None, list(zip(flat[::2], flat[1::2], strict=True))


def _document(made: NetworkFiles, wallet: Wallet) -> JsonValue:
    genesis = made.genesis
    return {
        "directory": str(made.directory.resolve()),
        "network": made.network_id.hex(),
        "name": genesis.name,
        "k": genesis.k,
        "assets": [{"code": a.code, "scale": a.scale} for a in genesis.assets],
        "issuers": [{"name": issuer.name, "asset": issuer.asset} for issuer in genesis.issuers],
        "nodes": [
            {"name": n.name, "id": n.id, "host": n.host, "port": n.port, "client_port": n.client_port}
            for n in made.nodes
        ],
        "wallet": str(wallet.directory),
    }


def _say_made(out: Output, made: NetworkFiles, wallet: Wallet) -> None:
    out.say(f"network {made.genesis.name}: {made.network_id.hex()[:16]}", bold=True)
    out.table(
        ["node", "id", "members", "clients"],
        [[n.name, n.id[:8], f"{n.host}:{n.port}", f"{n.host}:{n.client_port}"] for n in made.nodes],
    )
    for issuer in made.genesis.issuers:
        out.say(f"issuer {issuer.name} of {issuer.asset}: key in {wallet.path(issuer.name)}")


def parse_place(text: str, default_port: int) -> tuple[str, int, int]:
    """`HOST[:PORT[:CLIENT_PORT]]` as host, port and client port; an IPv6 address is written in brackets."""
    match = _PLACE.fullmatch(text)
    if match is None:
        raise LocalMisuse(
            f"{text[:80]!r} is not a place for a node: write HOST, HOST:PORT or HOST:PORT:CLIENT_PORT, such as "
            "n1.lan:7400:7401; an IPv6 address in brackets, such as [fd00::1]:7400"
        )
    port = int(match["port"] or default_port)
    if port == 0:
        raise LocalMisuse(f"--node-at {text}: which ports are free there is not known here: name one other than 0")
    client_port = int(match["client"] or port + 1)
    for what, number in (("port", port), ("client port", client_port)):
        if not 1 <= number <= LAST_PORT:
            raise LocalMisuse(
                f"--node-at {text}: its {what} would be {number}: name one from 1 to {LAST_PORT}, as HOST:PORT:CLIENT_PORT"
            )
    return match["six"] or match["host"], port, client_port


def _check_apart(texts: Sequence[str], places: Sequence[tuple[str, int, int]]) -> None:
    """`LocalMisuse` names the place that has a port of its host which it, or one before it, has already."""
    taken: dict[tuple[str, int], int] = {}
    for number, (host, *ports) in enumerate(places):
        for port in ports:
            if (host, port) in taken:
                first = taken[host, port]
                whose = "both of its ports" if first == number else f"also a port of --node-at {texts[first]}"
                raise LocalMisuse(
                    f"--node-at {texts[number]}: {port} is {whose}: each node needs two of its own on its machine, as "
                    "HOST:PORT:CLIENT_PORT"
                )
            taken[host, port] = number


def _unzip(places: list[tuple[str, int, int]]) -> tuple[list[str], list[tuple[int, int]]]:
    return [host for host, _, _ in places], [(port, client) for _, port, client in places]


def parse_asset(text: str) -> Asset:
    """`CZK:2` as an asset."""
    code, colon, scale = text.partition(":")
    if not is_asset(code) or not colon or not scale.isascii() or not scale.isdigit() or int(scale) > MAX_SCALE:
        raise LocalMisuse(
            f"{text[:40]!r} is not an asset: write CODE:SCALE such as CZK:2, a code of 1 to 16 of A-Z 0-9 (a letter "
            f"first) and 0 to {MAX_SCALE} decimals"
        )
    return Asset(code, int(scale))


def _issuer(text: str, assets: list[Asset]) -> tuple[str, str]:
    """`mint=CZK`, or `mint` of the first asset."""
    name, _, code = text.partition("=")
    code = code or assets[0].code
    if code not in [a.code for a in assets]:
        raise LocalMisuse(f"issuer {text!r}: no --asset {code} is given, only {', '.join(a.code for a in assets)}")
    return checked_name(name), code


@click.command(
    cls=HopCommand,
    examples=["hopchain up net", "hopchain up    # the last network", "hopchain up net --json | jq -c ."],
    own_signals=True,
)
@network_argument
@click.option("--supervised", is_flag=True, hidden=True, help="End when standard input closes.")
@network_option
def up(out: Output, directory: Path | None, supervised: bool, network_dir: Path | None) -> None:
    """Run all nodes of a network on this machine, restart those that die, show one status line each. DIR is the same as
    --network DIR.

    A node stays down if its files or ports are wrong, if it was removed or quarantined, or after it failed five times
    in a row.

    Ctrl-C or SIGTERM stops all of them. With --json: one JSON document a line for every change.
    """
    from cli.upview import watch

    network = load_network(find_directory(one_directory(directory, network_dir)))
    if supervised:
        _end_with_parent()
    run(lambda: watch(out, network))


@click.command(cls=HopCommand, examples=["hopchain node net/node-1"], own_signals=True)
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--supervised", is_flag=True, hidden=True, help="End when standard input closes.")
def node(out: Output, directory: Path, supervised: bool) -> None:
    """Run one node in the foreground: what a service manager or a container runs. SIGTERM or Ctrl-C ends it."""
    from node.process import run_node, settle_collector

    if not directory.is_dir():
        raise LocalMisuse(f"{directory} is not a node's directory: `hopchain init` makes them, such as net/node-1")
    check_is_node(directory)
    if supervised:
        _end_with_parent()
    settle_collector()
    run_node(directory)
    out.data({"node": directory.name, "ended": True})


def _end_with_parent() -> None:
    """Have this process end when the one that started it does: its end of standard input, which it never writes to,
    closes then."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)

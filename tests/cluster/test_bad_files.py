"""A node that cannot start says why and what to do, and changes nothing (issue 2, point 7). Each case is a process."""

import shutil
import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from chain.disk import open_database
from chain.genesis import Asset, Genesis, encode_genesis
from chain.store import create_or_check
from cli.output import Exit
from node.config import CONFIG_FILE
from node.layout import DATABASE, GENESIS_FILE, NETWORK_KEY, Network, make_network
from node.lost import LOST
from node.pki import NODE_CERTIFICATE, NODE_KEY, read_node_key
from node.process import view_of
from routing.view import encode_view
from tests.cluster.cluster import NOW_MS, Cluster, NodeProcess, change_config, key_of, public, rows_of
from tests.ports import take

pytestmark = pytest.mark.cluster


def make(directory: Path) -> Network:
    """A network of two nodes that never ran, with databases."""
    ports = take(4)
    network = make_network(
        directory,
        nodes=2,
        assets=[Asset("CZK", 2)],
        issuers={"mint": ("CZK", public(key_of("mint")))},
        ports=[(ports[0], ports[1]), (ports[2], ports[3])],
        name="files",
        now_ms=NOW_MS,
        days=36_500,
    )
    for place in network.nodes:
        make_database(network.node_directory(place), network.genesis)
    return network


def make_database(directory: Path, genesis: Genesis) -> None:
    view = view_of(genesis)
    with closing(open_database(directory / DATABASE, writer=True)) as conn:
        create_or_check(conn, genesis, read_node_key(directory).id, (view.hash, encode_view(view)))


@dataclass(frozen=True)
class Place:
    """A node's directory to be broken, another node of its network, and one of another network."""

    here: Path
    sibling: Path
    stranger: Path

    def take(self, name: str, source: Path) -> None:
        shutil.copy(source / name, self.here / name)

    def rewrite(self, name: str, change: Callable[[bytes], bytes]) -> None:
        (self.here / name).write_bytes(change((self.here / name).read_bytes()))

    def other_k(self) -> None:
        """The same CA and members, another rule: another network."""
        genesis = msgspec.json.decode((self.here / GENESIS_FILE).read_bytes(), type=Genesis)
        (self.here / GENESIS_FILE).write_bytes(encode_genesis(msgspec.structs.replace(genesis, k=3)))


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, Network]:
    directory = tmp_path_factory.mktemp("files")
    return make(directory / "one"), make(directory / "two")


@pytest.fixture
def place(networks: tuple[Network, Network], tmp_path: Path) -> Place:
    one, two = networks
    here = tmp_path / "here"
    shutil.copytree(one.node_directory(one.nodes[0]), here)
    return Place(here, one.node_directory(one.nodes[1]), two.node_directory(two.nodes[0]))


def contents(directory: Path) -> dict[str, bytes]:
    """All files of a node but the test's log and the lock, whose number is the last process's."""
    return {
        path.name: path.read_bytes()
        for path in directory.iterdir()
        if path.is_file() and path.name not in ("test.log", "node.lock", "node.db-shm", "node.db-wal")
    }


async def cannot_start(network: Network, directory: Path, code: Exit, text: str) -> None:
    """The node ends by itself with this code and text, and leaves its files as they were."""
    before = contents(directory)
    node = NodeProcess(network.nodes[0], directory)
    try:
        node.start()
        ended = await node.ended()
    finally:
        node.kill()
    assert (ended.code, text in ended.text) == (code, True), ended
    assert ended.text.startswith("error: "), ended.text
    assert contents(directory) == before


BROKEN: dict[str, tuple[Callable[[Place], object], Exit, str]] = {
    "a key that others can read": (lambda p: (p.here / NODE_KEY).chmod(0o644), Exit.USAGE, "mode 0644, so others"),
    "a network key that others can read": (lambda p: (p.here / NETWORK_KEY).chmod(0o640), Exit.USAGE, "chmod 600"),
    "no key": (lambda p: (p.here / NODE_KEY).unlink(), Exit.USAGE, LOST[NODE_KEY]),
    "a directory in place of the key": (
        lambda p: ((p.here / NODE_KEY).unlink(), (p.here / NODE_KEY).mkdir()),
        Exit.USAGE,
        f"(Is a directory); {LOST[NODE_KEY]}",
    ),
    "a torn certificate": (
        lambda p: p.rewrite(NODE_CERTIFICATE, lambda raw: raw[:99]),
        Exit.USAGE,
        LOST[NODE_CERTIFICATE],
    ),
    "no network key": (lambda p: (p.here / NETWORK_KEY).unlink(), Exit.USAGE, LOST[NETWORK_KEY]),
    "another node's key": (
        lambda p: p.take(NODE_KEY, p.sibling),
        Exit.USAGE,
        "copy node.crt and node.key from one node",
    ),
    "another network's certificate": (
        lambda p: p.take(NODE_CERTIFICATE, p.stranger),
        Exit.USAGE,
        "the two are of different networks; copy the right ones",
    ),
    "an unknown setting": (
        lambda p: p.rewrite(CONFIG_FILE, lambda raw: b'colour = "red"\n' + raw),
        Exit.USAGE,
        "colour: Object contains unknown field `colour`; the keys here are host, port",
    ),
    "a port that is none": (
        lambda p: p.rewrite(CONFIG_FILE, lambda raw: raw.replace(b"\nport = ", b"\nport = 70000 #", 1)),
        Exit.USAGE,
        "it must be a whole number from 1 to 65535",
    ),
    "settings that are no TOML": (
        lambda p: p.rewrite(CONFIG_FILE, lambda raw: raw + b"]["),
        Exit.USAGE,
        "config.toml is not TOML",
    ),
    "no settings": (lambda p: (p.here / CONFIG_FILE).unlink(), Exit.USAGE, LOST[CONFIG_FILE]),
    "another network's genesis": (
        lambda p: p.take(GENESIS_FILE, p.stranger),
        Exit.USAGE,
        "is not signed by the CA in genesis.json",
    ),
    "another network's genesis before there is a database": (
        lambda p: (p.take(GENESIS_FILE, p.stranger), (p.here / DATABASE).unlink()),
        Exit.USAGE,
        "is not signed by the CA in genesis.json",
    ),
    "a genesis with other rules": (
        Place.other_k,
        Exit.USAGE,
        "put back the genesis file that belongs to this directory, or use an empty directory",
    ),
    "a cut genesis": (
        lambda p: p.rewrite(GENESIS_FILE, lambda raw: raw[:-10]),
        Exit.USAGE,
        "the genesis file cannot be read",
    ),
    "another network's database": (
        lambda p: p.take(DATABASE, p.stranger),
        Exit.USAGE,
        "put back the genesis file that belongs to this directory, or use an empty directory",
    ),
    "another node's database": (
        lambda p: p.take(DATABASE, p.sibling),
        Exit.USAGE,
        "a copied database must not run under another id",
    ),
    "a database that is none": (
        lambda p: p.rewrite(DATABASE, lambda raw: b"x" * len(raw)),
        Exit.REJECTED,
        "put the right one back, or join the network anew under a new node id",
    ),
    "a database that lost a page": (
        lambda p: p.rewrite(DATABASE, lambda raw: raw[:-4096]),
        Exit.REJECTED,
        "join the network anew under a new node id",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_a_node_with_wrong_files_does_not_start(
    networks: tuple[Network, Network], place: Place, what: str
) -> None:
    damage, code, text = BROKEN[what]
    damage(place)
    await cannot_start(networks[0], place.here, code, text)


@pytest.mark.parametrize("port", ["tcp for members", "tcp for clients", "udp"])
async def test_a_node_whose_port_is_taken_says_which(
    networks: tuple[Network, Network], place: Place, port: str
) -> None:
    kind = socket.SOCK_DGRAM if port == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as holder:
        holder.bind(("127.0.0.1", 0))
        if kind is socket.SOCK_STREAM:
            holder.listen()
        taken = holder.getsockname()[1]
        field = "client_port" if port == "tcp for clients" else "port"
        change_config(place.here, **{field: taken})
        before = rows_of(place.here / DATABASE)
        await cannot_start(networks[0], place.here, Exit.USAGE, f"port {taken}")
        assert rows_of(place.here / DATABASE) == before


async def test_a_host_that_is_not_this_machines_is_no_taken_port(
    networks: tuple[Network, Network], place: Place
) -> None:
    change_config(place.here, host="192.0.2.1")
    await cannot_start(networks[0], place.here, Exit.USAGE, "this machine has no such address")


async def test_a_directory_that_is_no_nodes_is_named(networks: tuple[Network, Network], tmp_path: Path) -> None:
    await cannot_start(networks[0], tmp_path, Exit.USAGE, f"{tmp_path / CONFIG_FILE} cannot be read")


async def test_a_second_process_on_one_directory_is_refused(cluster: Cluster) -> None:
    first = cluster.nodes[0]
    assert first.process is not None
    await cluster.settle()
    before = cluster.all_rows()
    second = NodeProcess(first.place, first.directory)
    second.log = first.directory / "second.log"
    try:
        second.start()
        ended = await second.ended()
    finally:
        second.kill()
    assert ended.code == Exit.USAGE
    assert f"is in use by process {first.process.pid}: stop that node first" in ended.text
    assert cluster.running() == [0, 1, 2, 3, 4]
    await cluster.settle()
    assert cluster.all_rows() == before

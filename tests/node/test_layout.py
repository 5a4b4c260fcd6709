"""What `hopchain init` makes, and that it makes all of it or nothing."""

import stat
from pathlib import Path

import msgspec
import pytest
from cryptography import x509

from chain.errors import LocalMisuse
from chain.genesis import Asset
from node import layout
from node.config import read_config
from node.layout import make_network, read_genesis, read_network, read_network_key
from node.pki import (
    CA_DAYS,
    NODE_DAYS,
    ca_until_ms,
    certificate_until_ms,
    node_contexts,
    raw_public_key,
    read_node_key,
    read_private_key,
)
from tests.node.wires import NOW_MS, Disk, new_layout

SECRETS = {"ca.key", "operator.key", "node.key", "network.key"}


def make(directory: Path, **changes: object) -> layout.Network:
    given = {
        "nodes": 2,
        "assets": [Asset("CZK", 2)],
        "issuers": {"mint": ("CZK", bytes(32))},
        "ports": [(1, 2), (3, 4)],
        "name": "test",
        "now_ms": NOW_MS,
    }
    return make_network(directory, **(given | changes))  # type: ignore[arg-type]


def test_every_file_is_there_and_every_secret_is_its_owners(tmp_path: Path) -> None:
    network = new_layout(tmp_path / "net", 3)
    files = {path.relative_to(tmp_path / "net").as_posix() for path in (tmp_path / "net").rglob("*") if path.is_file()}
    node_files = {"node.key", "node.crt", "network.key", "genesis.json", "config.toml", "network.toml"}
    assert files == {"genesis.json", "network.toml", "network.key", "ca.key", "ca.crt", "operator.key"} | {
        f"node-{number}/{name}" for number in (1, 2, 3) for name in node_files
    }
    for path in (tmp_path / "net").rglob("*"):
        if path.name in SECRETS:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert read_network(tmp_path / "net") == network


def test_the_nodes_are_the_genesis_members_and_know_each_other(tmp_path: Path) -> None:
    network = new_layout(tmp_path / "net", 3)
    genesis = network.genesis
    assert (genesis.name, genesis.k, genesis.time_ms) == ("test", 5, NOW_MS)
    assert genesis.issuers[0].public_key == "00" * 32
    keys = set()
    for number, place in enumerate(network.nodes):
        directory = network.node_directory(place)
        key = read_node_key(directory)
        assert key.id == place.node_id
        assert key.public_key.hex() == genesis.members[number].public_key
        node_contexts(directory, genesis.ca)
        assert read_genesis(directory) == genesis
        config = read_config(directory)
        assert (config.host, config.port, config.client_port) == (place.host, place.port, place.client_port)
        assert [peer.id for peer in config.peers] == [other.id for other in network.nodes if other is not place]
        keys.add(read_network_key(directory))
    assert len(keys) == 1
    assert len(keys.pop()) == 32


@pytest.mark.parametrize(
    ("given", "listen", "reached"),
    [
        ({}, ["127.0.0.1"] * 2, ["127.0.0.1"] * 2),
        ({"host": "10.0.0.7"}, ["10.0.0.7"] * 2, ["10.0.0.7"] * 2),
        ({"host": "0.0.0.0"}, ["0.0.0.0"] * 2, ["127.0.0.1"] * 2),
        ({"advertise": ["n1.lan", "fd00::2"]}, ["n1.lan", "fd00::2"], ["n1.lan", "fd00::2"]),
        ({"advertise": ["n1.lan", "n2.lan"], "host": "::"}, ["::"] * 2, ["n1.lan", "n2.lan"]),
    ],
)
def test_where_nodes_listen_and_where_they_are_reached(
    tmp_path: Path, given: dict[str, object], listen: list[str], reached: list[str]
) -> None:
    network = make(tmp_path / "net", ports=[(1, 2), (1, 2)] if "advertise" in given else [(1, 2), (3, 4)], **given)
    configs = [read_config(network.node_directory(place)) for place in network.nodes]
    assert [config.host for config in configs] == listen
    assert [config.advertise_host for config in configs] == reached == [place.host for place in network.nodes]
    for number, config in enumerate(configs):
        other = network.nodes[1 - number]
        assert [(peer.host, peer.port) for peer in config.peers] == [(other.host, other.port)]


def test_a_nodes_directory_is_a_networks_too_for_commands_on_its_machine(tmp_path: Path) -> None:
    network = new_layout(tmp_path / "net", 2)
    here = read_network(tmp_path / "net/node-2")
    assert (here.genesis, here.nodes) == (network.genesis, network.nodes)
    assert read_network_key(tmp_path / "net") == read_network_key(tmp_path / "net/node-1")


def test_ca_and_operator(tmp_path: Path) -> None:
    network = new_layout(tmp_path / "net", 1)
    assert (tmp_path / "net/ca.crt").read_text() == network.genesis.ca
    certificate = x509.load_pem_x509_certificate(network.genesis.ca.encode())
    assert certificate.public_key() == read_private_key(tmp_path / "net/ca.key").public_key()
    operator = read_private_key(tmp_path / "net/operator.key")
    assert operator.public_key() != certificate.public_key()
    assert network.genesis.operator == raw_public_key(operator).hex()


def test_certificates_end_when_they_are_to_and_the_ca_not_before_them(tmp_path: Path) -> None:
    for days, ca_days in ((NODE_DAYS, CA_DAYS), (2 * CA_DAYS, 2 * CA_DAYS)):
        network = make(tmp_path / str(days), days=days)
        for node in network.nodes:
            assert certificate_until_ms(network.node_directory(node) / "node.crt") == NOW_MS + days * 86_400_000
        assert ca_until_ms(network.genesis.ca) == NOW_MS + ca_days * 86_400_000


def test_two_networks_are_two(tmp_path: Path) -> None:
    one, two = new_layout(tmp_path / "one", 1), new_layout(tmp_path / "two", 1)
    assert one.network_id != two.network_id


def test_an_empty_directory_is_taken_and_one_with_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert read_network(make(tmp_path / "empty").directory).nodes[1].port == 3
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note").write_text("mine")
    for taken in ("full", "full/note"):
        with pytest.raises(LocalMisuse, match="exists and is not an empty directory: name a new one"):
            make(tmp_path / taken)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["note"]
    with pytest.raises(LocalMisuse, match=r"cannot be made .*: make its parent directory first"):
        make(tmp_path / "no/such")


def test_a_power_cut_leaves_all_of_it_or_no_network_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of the CA and the operator are nowhere else."""
    net = tmp_path / "net"
    disk = Disk(monkeypatch)
    lost: dict[str, list[Path]] = {}
    disk.on_rename = lambda target: lost.update({target.name: disk.lost(net)})
    network = make(net)
    assert len(lost) == 8
    assert list(lost)[-1] == "network.toml"
    assert lost["network.toml"] == [net]
    assert disk.lost(net) == []
    layout.write_places(net, network.genesis, network.nodes[:1])
    assert disk.lost(net) == []
    assert read_network(net).nodes == network.nodes[:1]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("step", ["write_secret", "make_node_certificate", "write_node"])
def test_an_error_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, there: bool
) -> None:
    real, calls = getattr(layout, step), []

    def fails_the_second_time(*args: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(layout, step, fails_the_second_time)
    if there:
        (tmp_path / "net").mkdir()
    with pytest.raises(OSError, match="No space left"):
        make(tmp_path / "net")
    assert list(tmp_path.rglob("*")) == ([tmp_path / "net"] if there else [])


def test_an_error_while_the_files_are_put_in_place_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, moved = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        moved.append(self.name)
        if self.name == "network.toml":
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output"):
        make(tmp_path / "net")
    assert moved[-1] == "network.toml"
    assert len(moved) == 8
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"nodes": 0, "ports": []}, "0 nodes: it must be 1 to 256"),
        ({"nodes": 257}, "257 nodes"),
        ({"ports": [(1, 2)]}, r"2 nodes need 4 different ports from 1 to 65535, not \[1, 2\]"),
        ({"ports": [(1, 2), (2, 3)]}, "different ports"),
        ({"ports": [(0, 2), (1, 3)]}, "different ports"),
        ({"advertise": ["n1", "n1"], "ports": [(1, 2), (2, 1)]}, "different ports"),
        ({"advertise": ["n1", "n2"], "ports": [(1, 2), (1, 1)]}, r"not \[1, 2, 1, 1\] \(on each machine\) for n1, n2"),
        ({"advertise": ["n1"]}, "different ports"),
        ({"advertise": ["n1", "0.0.0.0"]}, r"nobody can reach a node at '0.0.0.0': its address must be a host name"),
        ({"advertise": ["n1", "n 2"]}, r"nobody can reach a node at 'n 2'"),
        ({"name": ""}, "is not a network name"),
        ({"name": "a/b"}, "is not a network name"),
        ({"assets": []}, "the assets are none"),
        ({"assets": [Asset("CZK", 2), Asset("CZK", 3)]}, "the assets are CZK, CZK"),
        ({"assets": [Asset("czk", 2)]}, "asset czk:2"),
        ({"k": 0}, "k is 0"),
        ({"issuers": {"mint": ("EUR", bytes(32))}}, "issuer mint of EUR"),
        ({"issuers": {"Mint": ("CZK", bytes(32))}}, "issuer Mint of CZK"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_made(
    tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(LocalMisuse, match=says):
        make(tmp_path / "net", **changes)
    assert list(tmp_path.iterdir()) == []


def test_reading_what_is_no_network_or_two(tmp_path: Path) -> None:
    with pytest.raises(LocalMisuse, match="is not a network's directory"):
        read_network(tmp_path)
    one, two = make(tmp_path / "one"), make(tmp_path / "two")
    (one.directory / "genesis.json").write_bytes((two.directory / "genesis.json").read_bytes())
    with pytest.raises(LocalMisuse, match=r"network\.toml is of network .*, genesis\.json of"):
        read_network(one.directory)
    (two.directory / "genesis.json").write_text("{}")
    with pytest.raises(LocalMisuse, match=r"genesis\.json: the genesis file cannot be read"):
        read_network(two.directory)
    (two.directory / "genesis.json").unlink()
    with pytest.raises(LocalMisuse, match="copy it from another node"):
        read_network(two.directory)


def test_network_toml_with_a_wrong_line_is_named(tmp_path: Path) -> None:
    network = make(tmp_path / "net")
    path = network.directory / "network.toml"
    path.write_text(path.read_text().replace("client_port = 2", "client_port = 0"))
    with pytest.raises(LocalMisuse, match=r"network\.toml: nodes\[0\]\.client_port: .*a whole number from 1 to 65535"):
        read_network(network.directory)
    words = {f"nodes.{field.name}" for field in msgspec.structs.fields(layout.NodePlace)}
    assert set(layout._ALLOWED) == words | {field.name for field in msgspec.structs.fields(layout.NetworkFile)}


def test_a_network_key_of_the_wrong_size_is_refused(tmp_path: Path) -> None:
    network = make(tmp_path / "net")
    path = network.node_directory(network.nodes[0]) / "network.key"
    path.write_bytes(b"short")
    with pytest.raises(LocalMisuse, match="has 5 bytes, not 32"):
        read_network_key(path.parent)

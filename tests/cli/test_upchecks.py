"""What `hopchain up` refuses before it starts anything."""

import errno
import fcntl
import os
import socket
from pathlib import Path

import anyio
import pytest

from chain.errors import LocalMisuse
from cli import upview
from cli.home import Network, load_network, remember
from cli.output import Output
from cli.upchecks import LEFT_FILE, LOCK_FILE, check_ports, left_in, mark_left, only_up
from cli.upview import watch, what_to_do
from node.config import read_config
from node.lock import DataLock
from tests.cli.conftest import Cli
from tests.cli.test_upview import Supervisor


@pytest.fixture
def network(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Network:
    """Of two nodes, which are not started."""
    monkeypatch.setattr(upview, "Supervisor", Supervisor)
    monkeypatch.setattr(Supervisor, "ran", ())
    cli.run("init", str(cli.directory), "--nodes", "2", "--asset", "CZK:2", "--issuer", "mint", "--port", "0")
    remember(cli.directory.parent)
    return load_network(cli.directory)


def directories(network: Network) -> list[Path]:
    return [network.directory / node.name for node in network.nodes]


def refused(cli: Cli) -> str:
    """What `up` says when it starts nothing, and remembers nothing."""
    said = cli.run("up", str(cli.directory), code=2).stderr
    assert Supervisor.ran == ()
    assert (cli.home / "network").read_text() == f"{cli.directory.parent}\n"
    return said


def test_a_network_is_up_once(cli: Cli, network: Network) -> None:
    with only_up(network):
        said = refused(cli)
    assert f"is up already: process {os.getpid()} runs its nodes in {cli.directory}" in said
    anyio.run(watch, Output(as_json=False), network)
    assert Supervisor.ran == directories(network)


def test_the_lock_ends_with_its_process_and_says_who_has_it(network: Network) -> None:
    lock = network.directory / LOCK_FILE
    with only_up(network):
        lock.write_text("")  # it has the lock and has not written its number yet
        with pytest.raises(LocalMisuse, match=r"process \(unknown\) runs"), only_up(network):
            pytest.fail("two have it")
    lock.write_text("99999999999\n")
    with only_up(network):
        assert lock.read_text() == f"{os.getpid()}\n"


def test_where_no_lock_can_be_made_that_of_each_node_has_to_do(network: Network) -> None:
    (network.directory / LOCK_FILE).mkdir()
    with only_up(network):
        pass


def test_where_no_lock_works_the_nodes_are_started_and_say_so(
    cli: Cli, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    for directory in directories(network):
        with DataLock(directory):
            pass  # it ran before, elsewhere
    monkeypatch.setattr(fcntl, "flock", no_locks)
    cli.run("up", str(cli.directory))
    assert Supervisor.ran == directories(network)


@pytest.mark.parametrize("what", ["port", "client port"])
def test_ports_that_something_uses_are_named_with_their_node(cli: Cli, network: Network, what: str) -> None:
    config = read_config(cli.directory / "node-2")
    port = config.port if what == "port" else config.client_port
    with socket.socket() as other:
        other.bind((config.host, port))
        other.listen()
        said = refused(cli)
        assert f"(node-2: {what} {port} of 127.0.0.1), so nothing was started" in said and "ss -ltnup" in said
        with DataLock(cli.directory / "node-2"):
            check_ports(network, directories(network))  # it runs already, and uses its own


def test_a_port_that_only_datagrams_use_is_in_use(cli: Cli, network: Network) -> None:
    config = read_config(cli.directory / "node-1")
    with socket.socket(type=socket.SOCK_DGRAM) as other:
        other.bind((config.host, config.port))
        assert f"node-1: port {config.port}" in refused(cli)
    with socket.socket(type=socket.SOCK_DGRAM) as other:
        other.bind((config.host, config.client_port))
        check_ports(network, directories(network))


def test_a_connection_that_was_closed_just_now_is_in_nobodys_way(cli: Cli, network: Network) -> None:
    """Its end here waits for a minute: a node that is started again need not."""
    config = read_config(cli.directory / "node-1")
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((config.host, config.client_port))
        server.listen()
        with socket.create_connection((config.host, config.client_port)) as client:
            server.accept()[0].close()
            assert client.recv(1) == b""
    check_ports(network, directories(network))


def test_what_else_is_wrong_with_a_node_it_says_itself(cli: Cli, network: Network) -> None:
    (cli.directory / "node-1" / "config.toml").write_text("no toml")
    file = cli.directory / "node-2" / "config.toml"
    file.write_text(file.read_text().replace('host = "127.0.0.1"', 'host = "198.51.100.7"', 1))
    check_ports(network, directories(network))


def test_what_says_that_a_node_left_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[list[str]] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        real(handle)
        synced.append(sorted(path.name[:5] for path in tmp_path.iterdir()))

    monkeypatch.setattr(os, "fsync", fsync)
    mark_left(tmp_path, 7)
    assert synced == [[".left"], ["left"]] and left_in(tmp_path) == 7

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        mark_left(tmp_path, 8)
    assert left_in(tmp_path) == 7 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"\0\0\0", b"soon", b"\xff", "\u0663".encode()])
def test_a_node_whose_file_says_no_epoch_has_left_all_the_same(tmp_path: Path, content: bytes) -> None:
    assert left_in(tmp_path) is None
    (tmp_path / LEFT_FILE).write_bytes(content)
    assert left_in(tmp_path) == 0
    assert what_to_do(4, tmp_path).startswith("it was removed and is not started")

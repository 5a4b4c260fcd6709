"""Which network a command talks to."""

import errno
import os
import shutil
import stat
from pathlib import Path

import msgspec
import pytest

from chain.errors import LocalMisuse
from cli.home import find_directory, find_network, load_network, remember
from hopchain import wire
from node.invite import load_invite
from tests.cli.conftest import Cli, World


def test_the_option_goes_before_the_variable_before_the_memory(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember(tmp_path / "remembered")
    assert find_directory(None) == tmp_path / "remembered"
    monkeypatch.setenv("HOPCHAIN_NETWORK", str(tmp_path / "variable"))
    assert find_directory(None) == tmp_path / "variable"
    assert find_directory(tmp_path / "option") == tmp_path / "option"


def test_without_any_the_message_says_what_to_do(home: Path) -> None:
    with pytest.raises(LocalMisuse, match=r"hopchain init DIR.*--network DIR or HOPCHAIN_NETWORK"):
        find_directory(None)


def test_the_network_last_used_is_remembered_wherever_it_is_used_from(
    world: World, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.directory.parent)
    world.env.pop("HOPCHAIN_NETWORK")
    assert find_network(Path("net")).id == world.ledger.genesis.network_id
    world.run("balance", "mint", "--network", "net")
    monkeypatch.chdir("/")
    assert find_network(None) == load_network(world.directory)
    assert (home / "network").read_text() == f"{world.directory}\n"


def test_a_command_that_is_refused_changes_nothing_of_what_is_remembered(world: World, tmp_path: Path) -> None:
    """Else the next payment would go elsewhere for a slip of the fingers."""
    world.run("account", "open", "alice")
    world.env.pop("HOPCHAIN_NETWORK")
    remember(tmp_path / "before")

    def remembered() -> str:
        return Path((world.home / "network").read_text().strip()).name

    network = ("--network", str(world.directory))
    for code, *words in (
        (2, "transfer", "mint", "alice", "1.234"),
        (2, "transfer", "mint", "alice", "1", "--at", "node-9"),
        (2, "transfer", "nobody", "alice", "1"),
        (2, "balance", "mint", "--at", "node-9"),
        (2, "status", "--at", "node-9"),
        (2, "status", "--no-such-option"),
        (2, "member", "remove", "node-9"),
        (2, "invite", "--expires", "never"),
        (3, "status", "--at", "127.0.0.1:1"),
        (3, "balance", "mint", "--at", "127.0.0.1:1"),
    ):
        world.run(*words, *network, code=code)
        assert remembered() == "before", words
    world.run("status", "--network", str(tmp_path / "nowhere"), code=2)
    assert remembered() == "before"
    for code, *words in (
        (0, "status"),
        (1, "balance", "nobody"),
        (1, "transfer", "alice", "mint", "1"),
        (0, "doctor"),
    ):
        remember(tmp_path / "before")
        world.run(*words, *network, code=code)
        assert remembered() == "net", words


def test_the_directory_of_a_node_stands_for_the_network_around_it(world: World, tmp_path: Path) -> None:
    """In it `up` and `certificate list` would find nothing."""
    world.env.pop("HOPCHAIN_NETWORK")
    node = world.directory / "node-1"
    (node / "network.toml").write_bytes((world.directory / "network.toml").read_bytes())  # the ports of the fakes
    remember(tmp_path / "before")
    world.run("status", "--network", str(node))
    assert (world.home / "network").read_text() == f"{world.directory}\n"


def test_the_directory_of_a_node_that_joined_is_remembered_where_nothing_else_is(world: World, tmp_path: Path) -> None:
    world.env.pop("HOPCHAIN_NETWORK")
    made = Cli(world.home, tmp_path / "other")
    made.run("init", str(made.directory), "--nodes", "1", "--asset", "CZK:2", "--port", "0")
    alone, inside = tmp_path / "node-9", made.directory / "node-9"  # in another network's directory
    for data in (alone, inside):
        shutil.copytree(world.directory / "node-1", data)
        (data / "network.toml").write_bytes((world.directory / "network.toml").read_bytes())
        remember(tmp_path / "before")
        world.run("status", "--network", str(data))
        assert (world.home / "network").read_text() == f"{tmp_path / 'before'}\n"
        (world.home / "network").unlink()
        world.run("status", "--network", str(data))
        assert (world.home / "network").read_text() == f"{data}\n"


def test_what_was_sent_to_a_network_makes_it_the_one_that_is_used(
    world: World, tmp_path: Path, one_round: None
) -> None:
    """Though its answer is not known: the same command again must ask there."""
    world.run("account", "open", "alice")
    world.env.pop("HOPCHAIN_NETWORK")
    remember(tmp_path / "before")
    for node in world.nodes:
        node.fault = lambda call: wire.Unknown(bytes(32), "no majority") if isinstance(call, wire.Submit) else None
    world.run("transfer", "mint", "alice", "1", "--timeout", "1", "--network", str(world.directory), code=3)
    assert (world.home / "network").read_text() == f"{world.directory}\n"


def test_a_payment_says_where_it_goes_when_nobody_said(world: World, tmp_path: Path) -> None:
    """Another network that is made, or looked at, is from then on the one that commands talk to. So says what changes
    one."""
    world.run("account", "open", "alice")
    newcomer = world.json("invite")["invite"]
    world.membership.guests = {load_invite(Path(newcomer)).key.id}
    file = tmp_path / "may.csv"
    file.write_text("from,to,amount\nmint,alice,1\n")
    pays = (
        ("transfer", "mint", "alice", "1"),
        ("pay", str(file), "--from-column", "from", "--to-column", "to", "--amount-column", "amount"),
        ("account", "open", "alice"),
        ("member", "add", newcomer),
        ("replace", "node-2", "--with", newcomer),
        ("member", "remove", "node-2"),
    )
    says = f"network test ({world.directory}), the last one made or used: --network names another\n"
    for words in pays:
        assert says not in world.run(*words).stdout, "the variable names it"
    del world.env["HOPCHAIN_NETWORK"]
    for words in pays:
        assert world.run(*words).stdout.startswith(says)
        assert says not in world.run(*words, "--network", str(world.directory)).stdout
    shown = world.run("init", str(tmp_path / "second"), "--asset", "CZK:2", "--port", "0").stdout
    assert f"commands now use this network, no longer {world.directory}: --network or HOPCHAIN_NETWORK" in shown
    assert "no key for mint" in world.run(*pays[0], code=2).stderr
    shown = world.run("init", str(tmp_path / "third"), "--asset", "CZK:2", "--port", "0", "--json").stdout
    assert "commands now use" not in shown


def test_home_is_hidden_in_the_users_directory_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HOPCHAIN_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    remember(tmp_path / "net")
    assert (tmp_path / ".hopchain" / "network").exists()


def test_a_directory_that_is_no_network_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(LocalMisuse, match="not a network's directory"):
        find_network(tmp_path)
    assert not (home / "network").exists()


def test_nodes_are_named_by_name_or_address(world: World) -> None:
    network = load_network(world.directory)
    assert network.node("node-2") == ("127.0.0.1", world.nodes[1].port)
    assert network.node("example.net:7400") == ("example.net", 7400)
    assert network.node("[::1]:7400") == ("::1", 7400)
    assert network.name_of(world.nodes[0].id) == "node-1"
    assert network.name_of(bytes(20)) == "00000000"
    for wrong in ("node-9", "example.net", ":7400", "example.net:0", "example.net:65536", "example.net:http"):
        with pytest.raises(LocalMisuse, match="HOST:PORT of a client port, or one of node-1, node-2"):
            network.node(wrong)


def test_an_address_that_serves_clients_may_be_one_that_members_use(world: World) -> None:
    """The client port of one node, and where members reach another through a forwarder; or both of one."""
    network = load_network(world.directory)
    address = network.nodes[0].address
    for name in ("node-1", "node-2"):
        both = msgspec.structs.replace(network, for_members={address: name})
        assert both.node(f"{address[0]}:{address[1]}") == address
    with pytest.raises(
        LocalMisuse, match=f"is where other nodes reach node-2: it serves clients at .*:{world.nodes[1].port}"
    ):
        msgspec.structs.replace(network, for_members={("10.0.0.1", 7400): "node-2"}).node("10.0.0.1:7400")


def test_every_command_that_needs_a_network_says_so(cli: Cli) -> None:
    cli.env.pop("HOPCHAIN_NETWORK")
    for words in (
        ("status",),
        ("balance", "alice"),
        ("chain", "alice"),
        ("route", "alice"),
        ("account", "list"),
        ("account", "show", "alice"),
        ("account", "open", "alice"),
        ("transfer", "alice", "bob", "1"),
        ("outcome", "00" * 32),
        ("cancel", "00" * 32),
        ("verify", "--cluster"),
        ("up",),
        ("invite",),
        ("certificate", "list"),
        ("certificate", "renew", "node-1"),
        ("member", "list"),
        ("doctor",),
    ):
        assert cli.json(*words, code=2)["error"] == "usage"
        assert "hopchain init DIR" in cli.run(*words, code=2).stderr


def test_who_only_reads_needs_no_directory_of_its_own(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    locked = tmp_path / "locked"
    (locked / "network").mkdir(parents=True)
    for place in (file, file / "below", locked, Path("/proc/1")):
        monkeypatch.setenv("HOPCHAIN_HOME", str(place))
        world.env["HOPCHAIN_HOME"] = str(place)
        assert world.json("balance", "mint")["account"] == "mint"
    assert [p.name for p in locked.iterdir()] == ["network"]


@pytest.mark.parametrize("raw", [b"\n", b"\0\0", b"/net\0", b"net\n", b"\xff\xfe"])
def test_a_memory_that_holds_no_path_is_told(cli: Cli, raw: bytes) -> None:
    cli.home.mkdir()
    (cli.home / "network").write_bytes(raw)
    cli.env.pop("HOPCHAIN_NETWORK")
    said = cli.json("status", code=2)["message"]
    assert f"holds no path in its {len(raw)} bytes" in said and "--network DIR" in said


def test_an_empty_memory_is_none(cli: Cli, tmp_path: Path) -> None:
    cli.home.mkdir()
    (cli.home / "network").write_bytes(b"")
    cli.env.pop("HOPCHAIN_NETWORK")
    assert "no network is known" in cli.json("status", code=2)["message"]
    assert remember(tmp_path / "net") is None
    assert find_directory(None) == tmp_path / "net"


def test_what_is_remembered_is_on_disk_before_it_replaces_what_was(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember(tmp_path / "before")
    on_disk = []
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            real(handle)
            return
        (fresh,) = home.glob(".network.*")
        assert os.path.samestat(os.fstat(handle), fresh.stat())
        on_disk.append((fresh.read_bytes(), (home / "network").read_bytes()))
        if len(on_disk) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    before, after = (f"{tmp_path / name}\n".encode() for name in ("before", "after"))
    monkeypatch.setattr(os, "fsync", fsync)
    assert remember(tmp_path / "after") == tmp_path / "before"
    assert on_disk == [(after, before)] and (home / "network").read_bytes() == after
    assert remember(tmp_path / "before") is None
    assert (home / "network").read_bytes() == after, "what the disk refuses changes nothing"
    assert [path.name for path in home.iterdir()] == ["network"]


def test_a_memory_that_is_a_directory_is_told(cli: Cli) -> None:
    (cli.home / "network").mkdir(parents=True)
    cli.env.pop("HOPCHAIN_NETWORK")
    assert "cannot be read (Is a directory): remove it" in cli.json("status", code=2)["message"]


def test_a_name_that_is_not_text_is_remembered(home: Path, tmp_path: Path) -> None:
    place = tmp_path / "n\udcff"
    remember(place)
    assert find_directory(None) == place

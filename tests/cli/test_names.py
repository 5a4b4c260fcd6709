"""What nodes are called that network.toml does not list."""

import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cli.home import load_network
from cli.leave import network_around
from cli.names import NAMES_FILE, add_names, read_names
from hopchain import wire
from node.config import read_config
from node.invite import load_invite, make_invite
from node.layout import read_network, write_places
from tests.cli.conftest import World
from tests.cli.test_membership import ids, invited

A, B = bytes(range(20)), bytes(range(1, 21))


def known(world: World, *nodes: bytes) -> None:
    """Let node-1 say where these serve clients: nobody listens there."""
    peers = tuple(wire.PeerHealth(node, True, 3, True, 0, "127.0.0.1", 5001, 1) for node in nodes)
    world.membership.special[ids(world)[0]] = {"peers": peers}


# --- the file ---


def test_a_line_is_a_node_and_what_is_none_is_passed_over(tmp_path: Path) -> None:
    assert read_names(tmp_path) == {}
    (tmp_path / NAMES_FILE).write_bytes(
        f"# by hand\n{A.hex()} node-6\n\n{B.hex()[:8]} short\n{B.hex()} no/name\n\xff\n{B.hex()}   node-7".encode(
            "latin1"
        )
    )
    assert read_names(tmp_path) == {A: "node-6", B: "node-7"}
    (tmp_path / NAMES_FILE).unlink()
    (tmp_path / NAMES_FILE).mkdir()
    assert read_names(tmp_path) == {}


def test_the_last_line_counts(tmp_path: Path) -> None:
    """A name is one node's, and a node has one."""
    assert add_names(tmp_path, {A: "x"}) is None
    assert add_names(tmp_path, {B: "x"}) is None
    assert read_names(tmp_path) == {B: "x"}
    add_names(tmp_path, {B: "y"})
    assert read_names(tmp_path) == {B: "y"}
    add_names(tmp_path, {A: "x", B: "y"})
    assert read_names(tmp_path) == {A: "x", B: "y"}
    assert (tmp_path / NAMES_FILE).read_text().count("y") == 1, "what is there is not written again"


def test_a_last_line_without_an_end_stays_what_it_is(tmp_path: Path) -> None:
    (tmp_path / NAMES_FILE).write_text(f"{A.hex()} node-6")
    add_names(tmp_path, {B: "node-7"})
    assert read_names(tmp_path) == {A: "node-6", B: "node-7"}


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / NAMES_FILE).mkdir()
    assert "could not be written" in str(add_names(tmp_path, {A: "x"}))


def test_network_toml_is_believed_first(world: World) -> None:
    first, second = ids(world)
    add_names(world.directory, {first: "another", A: "node-2", B: "node-7"})
    network = load_network(world.directory)
    assert [network.name_of(node) for node in (first, second, B)] == ["node-1", "node-2", "node-7"]
    assert network.name_of(A) == network.told(A) == A.hex()[:8], "node-2 is another one"
    assert network.told(B) == f"node-7 ({B.hex()[:8]})"


def test_an_id_that_was_saved_in_place_of_a_name_is_none(world: World) -> None:
    second = ids(world)[1]
    file = world.directory / "network.toml"
    file.write_text(file.read_text().replace('"node-2"', f'"{second.hex()[:8]}"'))
    assert [n.name for n in load_network(world.directory).nodes] == ["node-1", second.hex()[:8]]
    add_names(world.directory, {second: "node-7"})
    assert [n.name for n in load_network(world.directory).nodes] == ["node-1", "node-7"]


# --- who writes it, who shows it ---


def test_who_was_invited_is_shown_by_name_wherever_members_are(world: World) -> None:
    path = invited(world, "--name", "node-9")
    node = load_invite(path).key.id
    world.membership.guests = {node}
    assert f"node node-9 ({node.hex()[:8]}) is a member" in world.run("member", "add", str(path)).stdout
    known(world, node)
    assert "+node-9" in world.run("member", "list").stdout
    assert world.json("member", "list")["members"][-1].keys() >= {"id", "name"}
    assert {m["name"] for m in world.json("member", "list")["members"]} == {"node-1", "node-2", "node-9"}
    (finding,) = world.json("doctor", code=1)["findings"]
    assert finding["node"] == "node-9" and f"node-9 ({node.hex()[:8]})" in finding["what"]
    world.run("balance", "mint", "--at", "node-9", code=3)  # it is known where, and nobody is there
    del world.membership.special[ids(world)[0]]
    assert "the client port of node-9 is not in" in world.run("balance", "mint", "--at", "node-9", code=2).stderr
    assert f"node node-9 ({node.hex()[:8]}) is no longer a member" in world.run("member", "remove", "node-9").stdout


def test_who_joined_is_asked_by_its_name_its_id_or_where_it_is(world: World) -> None:
    made = read_network(world.directory)
    write_places(world.directory, made.genesis, made.nodes[:1])
    node = world.nodes[1]
    add_names(world.directory, {node.id: "node-9"})
    told = wire.PeerHealth(node.id, True, 1, True, 0, "127.0.0.1", 5001, node.port)
    world.membership.special[ids(world)[0]] = {"peers": (told,)}
    for at in ("node-9", node.id.hex(), node.id.hex()[:8], f"127.0.0.1:{node.port}"):
        (found,) = world.json("status", "--at", at)["nodes"]
        assert (found["name"], found["id"], found["client_port"]) == ("node-9", node.id.hex(), node.port)
    assert f"node-9  {node.id.hex()[:8]}  127.0.0.1:{node.port}  alive" in world.run("status", "--at", "node-9").stdout
    assert world.json("balance", "mint", "--at", "node-9")["account"] == "mint"
    world.run("status", "--at", "ab" * 20, code=2)
    world.portal.call(node.stop)
    said = world.run("status", "--at", "node-9", code=3)
    assert "0 of 1 nodes answer" in said.stdout and "node-9 does not answer: `hopchain status` asks all" in said.stderr
    world.stop()
    assert "no node could be reached" in world.run("status", "--at", "node-9", code=3).stderr


def test_who_leaves_network_toml_keeps_its_name(world: World) -> None:
    path = invited(world, "--name", "node-9")
    node = load_invite(path).key.id
    world.membership.guests = {node}
    world.run("member", "add", str(path))
    known(world, node)
    world.run("member", "remove", "node-2")
    shown = world.run("member", "list", "--save").stdout
    assert [place.name for place in read_network(world.directory).nodes] == ["node-1", "node-9"]
    assert "+node-9" in shown and "-node-2" in shown


def test_one_name_is_not_given_to_two_members(world: World) -> None:
    path = invited(world, "--name", "node-9")
    node = load_invite(path).key.id
    path.unlink()
    shown = world.run("invite", "--name", "node-9").stderr
    assert f"is not a member: if it joins later or comes back, it is shown by its id, {node.hex()[:8]}" in shown
    path = world.directory / "node-9.invite"
    node = load_invite(path).key.id
    world.membership.guests = {node}
    world.run("member", "add", str(path))
    assert "is called node-9 already" in world.run("invite", "--name", "node-9", code=2).stderr
    world.stop()
    assert "no node answers to say whether it joined" in world.run("invite", "--name", "node-9", code=2).stderr
    world.run("invite", "--name", "node-10")


def test_two_invitations_at_the_same_moment_do_not_share_a_name(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that comes second waits until it can see the name of the first."""

    def make(*words: Any, **more: Any) -> Any:
        handle = os.open(world.directory, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(handle)
        return make_invite(*words, **more)

    monkeypatch.setattr("node.invite.make_invite", make)
    world.stop()
    invited(world, "--name", "node-9", "--out", str(tmp_path / "first"))
    again = world.run("invite", "--name", "node-9", "--out", str(tmp_path / "second"), code=2).stderr
    assert "no node answers to say whether it joined" in again and not (tmp_path / "second").exists()


@pytest.mark.parametrize("seen", [False, True])  # is it still in contact with those that stay?
def test_the_name_of_one_that_was_a_member_is_not_given_away(world: World, seen: bool) -> None:
    """Else the views of the old node would be shown under its id."""
    for name, epochs in (("node-9", "in epoch 2"), ("node-10", "in epochs 4 to 5")):
        path = invited(world, "--name", name)
        node = load_invite(path).key.id
        world.membership.guests |= {node}
        world.run("member", "add", str(path))
        if name == "node-10":
            other = invited(world, "--name", "node-11")
            world.membership.guests |= {load_invite(other).key.id}
            world.run("member", "add", str(other))
        world.run("member", "remove", name)
        if not seen:
            world.membership.guests -= {node}
        path.unlink()
        names = read_names(world.directory)
        said = world.run("invite", "--name", name, code=2).stderr
        assert f"was called {name} ({node.hex()[:8]}) was a member {epochs}: choose another name" in said
        assert not path.exists() and read_names(world.directory) == names
        assert f"-{name}" in world.run("member", "list").stdout


def test_a_name_that_cannot_be_kept_does_not_stop_an_invitation(world: World) -> None:
    (world.directory / NAMES_FILE).mkdir()
    said = world.run("invite", "--name", "node-9").stderr
    assert "will show the node by its id" in said and (world.directory / "node-9.invite").exists()


def test_a_node_that_joined_knows_its_own_name(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = invited(world, "--name", "node-9")
    shutil.copytree(world.directory, tmp_path / "elsewhere", ignore=shutil.ignore_patterns(NAMES_FILE))
    monkeypatch.setattr("cli.join.ports_of", lambda *asked: (5001, 5002))
    monkeypatch.setattr("cli.join.node_command", lambda data: ["false"])
    data = tmp_path / "data"
    short = load_invite(path).key.id.hex()[:8]
    assert f"node node-9 ({short}) runs" in world.run("join", str(path), "--data", str(data), code=1).stdout
    around = network_around(data, read_config(data), load_invite(path).key.id, tmp_path / "elsewhere")
    assert around.told(load_invite(path).key.id) == f"node-9 ({short})"

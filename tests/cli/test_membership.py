"""The commands of membership against fake nodes: what they send, refuse and print."""

import json
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from chain.genesis import Asset
from cli.home import KnownNode, load_network
from cli.member import removes_first
from cli.members import CHANGE_MS, FORCE_WORDS, Picture, groups_without_majority, look, now_ms, open_patiently
from cli.upchecks import left_in
from hopchain import wire
from hopchain.change import ChangeAction, change_id, decode_change_untrusted, is_change_signed_by
from node.invite import load_invite, make_node_directory
from node.layout import make_network, read_genesis, read_network, write_places
from node.lock import lock_holder
from node.pki import certificate_until_ms, certified_key, node_contexts, read_node_key
from routing.keyspace import node_id_of
from routing.view import without_member
from tests.cli.conftest import TIME_MS, Cli, World, context_of
from tests.cli.test_commands import documented
from tests.cli.test_diagnosis import health
from tests.cli.test_join import EMPTY
from tests.hopchain.fake_node import Drop, FakeNode
from tests.hopchain.membership import NOW_MS

DAY_MS = 86_400_000


def invited(world: World, *words: str) -> Path:
    """An invitation of the world's network."""
    return Path(world.json("invite", *words)["invite"])


def ids(world: World) -> list[bytes]:
    return [node.id for node in world.nodes]


# --- invite ---


def test_an_invitation_that_cannot_be_put_where_it_is_to_go(world: World, tmp_path: Path) -> None:
    said = world.run("invite", "--name", "node-9", "--out", str(tmp_path / "none" / "x"), code=2).stderr
    assert f"{tmp_path / 'none'} is not a directory" in said and not (world.directory / "names").exists()


def test_invite_makes_a_secret_file_for_one_new_node(world: World) -> None:
    made = world.json("invite", "--name", "node-9")
    assert set(made) == documented("invite")
    path = Path(made["invite"])
    assert path == (world.directory / "node-9.invite").resolve()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = load_invite(path)
    assert (found.name, found.observer, found.genesis.network_id) == ("node-9", False, world.ledger.genesis.network_id)
    assert [seed.node_id for seed in found.seeds] == ids(world)
    assert made["expires_ms"] == found.expires_ms
    text = path.read_text()
    shown = world.run("invite", "--out", str(world.home.parent / "b.invite"), "--observer").output
    assert "hopchain join b.invite --data" in shown and "--observer" in shown
    quoted = shlex.quote("for n 9.invite")
    assert f"join {quoted} --data" in world.run("invite", "--out", str(world.home.parent / "for n 9.invite")).stdout
    assert "PRIVATE" not in shown and "PRIVATE" in text
    assert load_invite(world.home.parent / "b.invite").observer


def test_invite_works_while_the_network_is_down(world: World) -> None:
    world.stop()
    assert [seed.node_id for seed in load_invite(invited(world)).seeds] == ids(world)


def test_invite_names_the_members_of_now(world: World) -> None:
    """One of the directory was removed, one joined later: its address is what the others tell."""
    path = invited(world)
    newcomer = load_invite(path).key
    world.membership.guests = {newcomer.id}
    world.run("member", "add", str(path))
    world.run("member", "remove", "node-2")
    peer = wire.PeerHealth(newcomer.id, True, 3, True, 0, "n9.example", 5001, 5002)
    world.membership.special[ids(world)[0]] = {"peers": (peer,)}
    seeds = load_invite(invited(world)).seeds
    assert [seed.node_id for seed in seeds] == [ids(world)[0], newcomer.id]
    assert (seeds[1].host, seeds[1].port, seeds[1].client_port) == ("n9.example", 5001, 5002)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--expires", "1"), "is not a span of time"),
        (("--expires", "0h"), "is not a span of time"),
        (("--expires", "31d"), "--expires 31d: an invitation is valid for at most 30d"),
        (("--expires", "721h"), "--expires 721h: "),
        (("--name", "node-1"), "is called node-1 already"),
        (("--name", "a/b"), "is not a node's name"),
    ],
)
def test_invite_refuses_what_makes_no_sense(world: World, words: tuple[str, ...], says: str) -> None:
    assert says in world.run("invite", *words, code=2).stderr
    assert list(world.directory.glob("*.invite")) == []


@pytest.mark.parametrize("name", ["ca.key", "operator.key"])
def test_invite_needs_the_keys_and_says_which(world: World, name: str) -> None:
    (world.directory / name).rename(world.directory / "gone")
    assert name in world.run("invite", code=2).stderr


# --- member, replace ---


def joined(world: World) -> bytes:
    """A new member that the directory does not list, node-9; the removed node-2."""
    path = invited(world, "--name", "node-9")
    newcomer = load_invite(path).key
    world.membership.guests = {newcomer.id}
    world.run("member", "add", str(path))
    world.run("member", "remove", "node-2")
    return newcomer.id


def test_member_list_save_makes_the_directory_name_the_members_of_now(world: World) -> None:
    before = read_network(world.directory)
    node = joined(world)
    assert world.json("member", "list", "--save", code=1)["error"] == "not_found"  # nobody says where it serves clients
    assert read_network(world.directory) == before
    peer = wire.PeerHealth(node, True, 3, True, 0, "n9.example", 5001, 5002)
    world.membership.special[ids(world)[0]] = {"peers": (peer,)}
    assert set(world.json("member", "list", "--save")) == documented("member list")
    places = read_network(world.directory).nodes
    assert places[0] == before.nodes[0]
    assert [(p.name, p.id, p.host, p.port, p.client_port) for p in places[1:]] == [
        ("node-9", node.hex(), "n9.example", 5001, 5002)
    ]
    assert not (world.directory / ".init").exists()
    said = world.run("member", "list", "--save").stderr
    assert f"{world.directory / 'network.toml'} names the 2 members of epoch 3 now" in said


def test_verify_compares_the_members_of_now(world: World) -> None:
    """Not one that was removed; one that joined counts, though the directory does not list it."""
    joined(world)
    found = world.json("verify", "--cluster", "--settle", "0", code=3)
    assert [n["name"] for n in found["nodes"]] == ["node-1"]
    assert found["missing"] == {"node-9": "no node knows its client port"}
    said = world.run("verify", "--cluster", "--settle", "1.5", code=3).stderr
    assert said == "node-9 did not answer: asking again for up to 1.5 s\n"
    assert world.run("verify", "--cluster", "--settle", "0", code=3).stderr == ""


def test_member_list_shows_the_views_one_by_one(world: World) -> None:
    path = invited(world)
    newcomer = load_invite(path).key
    world.membership.guests = {newcomer.id}
    world.run("member", "add", str(path))
    world.membership.page = 1
    found = world.json("member", "list")
    assert set(found) == documented("member list")
    assert [(v["epoch"], v["members"], v["time_ms"]) for v in found["views"]] == [(1, 2, TIME_MS), (2, 3, NOW_MS)]
    assert [m["id"] for m in found["views"][1]["added"]] == [newcomer.id.hex()]
    assert found["views"][0]["by"] is None and found["views"][1]["by"] in {i.hex() for i in ids(world)}
    assert {m["id"] for m in found["members"]} == {i.hex() for i in [*ids(world), newcomer.id]}
    shown = world.run("member", "list").stdout
    assert f"+{load_invite(path).name}" in shown and "2023-11-14 22:15:00" in shown
    assert found["stale"] is False and "may be old" not in shown


def test_member_list_says_when_it_may_be_old(world: World) -> None:
    world.membership.stale = True
    assert world.json("member", "list")["stale"] is True
    shown = world.run("member", "list").stdout
    assert "its list may be old; ask another one with --at" in shown


def test_member_add_sends_the_operators_word_and_again_does_nothing(world: World) -> None:
    path = invited(world)
    found = load_invite(path)
    world.membership.guests = {found.key.id}
    world.membership.wait = 2
    made = world.json("member", "add", str(path))
    assert set(made) == documented("member add")
    assert (made["changed"], made["added"], made["removed"], made["epoch"]) == (True, found.key.id.hex(), None, 2)
    assert world.membership.changes == [found.change] * 3  # two were put off
    again = world.json("member", "add", str(path))
    assert (again["changed"], again["epoch"]) == (False, 2)
    assert len(world.membership.changes) == 3


def test_member_add_takes_a_public_key(world: World) -> None:
    key = read_node_key(world.directory / "node-1").public_key[::-1]
    world.membership.guests = {node_id_of(key)}
    assert world.json("member", "add", key.hex())["changed"]
    (change,) = world.membership.changes
    assert is_change_signed_by(change, bytes.fromhex(world.ledger.genesis.operator))


@pytest.mark.parametrize(("command", "waits"), [("add", 2), ("remove", 1), ("leave", 1)])
def test_a_change_is_good_for_as_long_as_it_is_sent(world: World, command: str, waits: int) -> None:
    """It is signed once and the same bytes are sent until it is made; one that is added copies the links before."""
    key = read_node_key(world.directory / "node-1").public_key[::-1]
    world.membership.guests = {node_id_of(key)}
    words = {
        "add": ["member", "add", key.hex()],
        "remove": ["member", "remove", "node-2"],
        "leave": ["leave", "--data", str(data_of(world, 2))],
    }
    before_ms = now_ms()
    world.run(*words[command], "--wait", "86400")
    (signed,) = world.membership.changes
    left_ms = decode_change_untrusted(signed.raw).expires_ms - before_ms - waits * DAY_MS
    assert CHANGE_MS <= left_ms <= CHANGE_MS + DAY_MS


def test_nobody_is_added_where_payments_have_stopped(world: World) -> None:
    """Two of the four members are dead: the newcomer is not waited for."""
    first, second, third = (invited(world) for _ in range(3))
    world.membership.guests = {load_invite(path).key.id for path in (first, second)}
    world.run("member", "add", str(first))
    assert world.json("member", "add", str(second))["epoch"] == 3
    world.membership.dead = world.membership.guests
    refused = world.json("member", "add", str(third), code=1)
    assert refused["error"] == "no_majority"
    assert "2 of 4 members are reachable now" in refused["message"] and FORCE_WORDS in refused["message"]
    assert world.membership.newest.epoch == 3
    assert "write --force" in world.run("member", "add", str(third), "--force", "yes", code=2).stderr
    assert world.membership.newest.epoch == 3


@pytest.fixture
def newcomer(world: World) -> Iterator[FakeNode]:
    """A node that was invited as node-9 and runs as a guest; the members have 6,535 links, it has all."""
    path = invited(world, "--name", "node-9")
    node = FakeNode(world.ledger, context_of(world.directory / "node-1"), 9)
    node.id, node.membership = load_invite(path).key.id, world.membership
    world.portal.start_task(node.serve)
    world.membership.guests = {node.id}
    seen = wire.PeerHealth(node.id, True, 1, True, 0, "127.0.0.1", 1, node.port)
    for member in ids(world):
        world.membership.special[member] = {"links": LINKS, "peers": (seen,)}
    world.membership.special[node.id] = {"links": LINKS}
    yield node
    world.portal.call(node.stop)


LINKS = 6_535
ADDITIONS = {"add": ("member", "add"), "replace": ("replace", "node-2", "--with")}


@pytest.mark.parametrize("words", ADDITIONS.values(), ids=ADDITIONS)
def test_a_newcomer_that_has_not_copied_the_links_is_waited_for(
    world: World, newcomer: FakeNode, words: tuple[str, ...]
) -> None:
    special, looks, sent_at = world.membership.special, [500, 500, LINKS - 501, LINKS - 500], []

    def copies(call: wire.CallBody) -> None:
        if isinstance(call, wire.AskHealth):
            special[newcomer.id] = {"links": looks[0] if len(looks) == 1 else looks.pop(0)}

    def takes(call: wire.CallBody) -> None:
        if isinstance(call, wire.SubmitChange):
            sent_at.append(special[newcomer.id]["links"])

    newcomer.fault = copies
    for node in world.nodes:
        node.fault = takes
    done = world.run(*words, str(world.directory / "node-9.invite"))
    told = f"node node-9 ({newcomer.id.hex()[:8]})"
    assert f"waiting: {told} has 500 of 6,535 links, 1.0 MiB\n" in done.stderr
    assert sent_at and set(sent_at) == {LINKS - 500}
    assert f"{told} is a member" in done.stdout


@pytest.mark.parametrize("words", ADDITIONS.values(), ids=ADDITIONS)
def test_a_newcomer_that_does_not_get_on_is_not_added(world: World, newcomer: FakeNode, words: tuple[str, ...]) -> None:
    world.membership.special[newcomer.id] = {"links": 500}
    refused = world.json(*words, str(world.directory / "node-9.invite"), "--wait", "1", code=3)
    assert refused["error"] == "behind"
    says = (
        "has 500 of 6,535 links, 1.0 MiB: it was not added within 1 s, and nothing was sent. Run the same command again"
    )
    assert says in refused["message"]
    assert world.membership.changes == []


def test_a_newcomer_that_does_not_run_or_answer_is_not_added(world: World, newcomer: FakeNode) -> None:
    add = ("member", "add", str(world.directory / "node-9.invite"), "--wait", "1")
    world.portal.call(newcomer.stop)
    refused = world.json(*add, code=3)
    assert refused["error"] == "unreachable"
    assert f"does not say how many links it has: 127.0.0.1:{newcomer.port}: " in refused["message"]
    for node in ids(world):
        world.membership.special[node] = {"peers": ()}
    refused = world.json(*add, "--force", FORCE_WORDS, code=3)
    assert refused["error"] == "not_connected"
    assert "is not connected to a member: start it with `hopchain join`" in refused["message"]
    world.stop()
    assert world.json(*add, code=3)["error"] == "unreachable"
    assert world.membership.changes == []


def test_one_that_becomes_a_member_while_it_is_waited_for_is_not_added_again(world: World, newcomer: FakeNode) -> None:
    """`hopchain join` runs meanwhile, and adds it."""
    path = world.directory / "node-9.invite"
    signed = load_invite(path).change
    assert signed is not None
    world.membership.special[newcomer.id] = {"links": 500}
    looks = [0]

    def joins(call: wire.CallBody) -> None:
        looks[0] += isinstance(call, wire.AskHealth)
        if looks[0] == 3 and isinstance(call, wire.AskHealth):
            world.membership.change(wire.SubmitChange(signed.raw, signed.signature, 1_000), newcomer.id)

    newcomer.fault = joins
    done = world.json("member", "add", str(path), "--wait", "10")
    assert (done["changed"], done["epoch"], len(world.membership.changes)) == (False, 2, 1)


def test_member_remove_signs_what_is_asked(world: World) -> None:
    removed = ids(world)[1]
    made = world.json("member", "remove", "node-2")
    assert set(made) == documented("member remove")
    assert (made["removed"], made["changed"], made["epoch"]) == (removed.hex(), True, 2)
    (signed,) = world.membership.changes
    change = decode_change_untrusted(signed.raw)
    assert (change.action, change.node_id, change.force) == (ChangeAction.REMOVE, removed, False)
    assert [sum(isinstance(call, wire.SubmitChange) for call in node.calls) for node in world.nodes] == [1, 0]
    again = world.json("member", "remove", removed.hex()[:10])
    assert (again["changed"], len(world.membership.changes)) == (False, 1)


def test_who_goes_is_asked_last(world: World) -> None:
    """It could not answer any more once it has made the change."""
    world.run("member", "remove", "node-1")
    assert [sum(isinstance(call, wire.SubmitChange) for call in node.calls) for node in world.nodes] == [0, 1]


def test_the_last_member_stays(world: World) -> None:
    world.run("member", "remove", "node-2")
    assert "is the last member" in world.run("member", "remove", "node-1", code=2).stderr


@pytest.mark.parametrize("who", ["node-7", "beef", "00" * 20, "x"])
def test_who_never_was_a_member_cannot_be_removed(world: World, who: str) -> None:
    said = world.run("member", "remove", who, code=2).stderr
    assert "is not a node of this network" in said or "never was a member" in said


def test_a_removal_without_a_majority_needs_the_words(world: World) -> None:
    world.portal.call(world.nodes[1].stop)
    world.membership.dead = {ids(world)[1]}
    refused = world.json("member", "remove", "node-2", code=1)
    assert refused["error"] == "no_majority" and "1 of 2 members are reachable" in refused["message"]
    assert "no member can be added or removed after this until a majority of each is back" in refused["message"]
    assert "write --force" in world.run("member", "remove", "node-2", "--force", "", code=2).stderr
    assert world.membership.changes == []
    assert world.json("member", "remove", "node-2", "--force", FORCE_WORDS)["epoch"] == 2
    assert decode_change_untrusted(world.membership.changes[0].raw).force


def test_a_refusal_is_final_and_told(world: World) -> None:
    for node in world.nodes:
        node.fault = lambda call: (
            wire.Refused("quota", "no more today") if isinstance(call, wire.SubmitChange) else None
        )
    refused = world.json("member", "remove", "node-2", code=1)
    assert (refused["error"], "no more today" in refused["message"]) == ("quota", True)


@pytest.mark.parametrize("first", ["says so", "is lost"])
def test_a_refusal_is_not_final_when_another_node_does_not_know(world: World, first: str) -> None:
    """The first may have proposed it, and the second know nothing of that."""
    one, two = world.nodes

    def unsure(call: wire.CallBody) -> wire.Unknown | Drop | None:
        if not isinstance(call, wire.SubmitChange):
            return None
        return wire.Unknown(change_id(call.raw), "no majority") if first == "says so" else Drop()

    one.fault = unsure
    two.fault = lambda call: wire.Refused("unsafe", "too few") if isinstance(call, wire.SubmitChange) else None
    refused = world.json("member", "remove", "node-2", code=3)
    assert refused["error"] == "unknown"
    for said in (
        f":{one.port} was asked before",
        f":{two.port} refused the change: too few",
        "run the same command again to continue",
    ):
        assert said in refused["message"], refused
    assert ("no majority" in refused["message"]) == (first == "says so")


def test_a_change_that_is_never_made_ends_with_what_to_do(world: World) -> None:
    for node in world.nodes:
        node.fault = lambda call: (
            wire.Unknown(change_id(call.raw), "no majority") if isinstance(call, wire.SubmitChange) else None
        )
    refused = world.json("member", "remove", "node-2", "--wait", "1", code=3)
    assert refused["error"] == "unknown"
    assert "no majority" in refused["message"] and "run the same command again to continue" in refused["message"]


def test_a_view_that_does_not_become_active_ends_with_who_keeps_it(world: World) -> None:
    world.membership.special[ids(world)[0]] = {"active": False, "syncing_regions": 4}
    refused = world.json("member", "remove", "node-2", "--wait", "1", code=3)
    assert refused["error"] == "not_active"
    assert "node-1 is in epoch 2 and not active, with 4 regions to sync" in refused["message"]


def test_a_change_is_not_sent_to_an_observer_while_a_member_answers(world: World) -> None:
    """Its refusal would be the reason that people are told."""
    network, (first, second), guest = load_network(world.directory), ids(world), bytes(20)
    nodes = (KnownNode("reports", guest, "127.0.0.1", 1), *network.nodes)
    views = world.membership.members(wire.AskMembers(1)).views

    def asked(*answered: bytes) -> list[str]:
        picture = Picture(network, nodes, {node: world.membership.health(node) for node in answered}, {}, views)
        return [node.name for at in picture.addresses(first) for node in nodes if node.address == at]

    assert asked(first, second, guest) == ["node-2", "node-1"]
    assert asked(first, guest) == ["node-1"]
    assert asked(guest) == ["reports"]


def test_a_member_that_only_the_others_reach_is_waited_for(world: World) -> None:
    """Its client port is known to nobody; what it said to the others counts."""
    path = invited(world)
    newcomer = load_invite(path).key.id
    world.membership.guests = {newcomer}
    behind = wire.PeerHealth(newcomer, True, 1, True, 0, "127.0.0.1", 1)
    for node in ids(world):
        world.membership.special[node] = {"peers": (behind,)}
    refused = world.json("member", "add", str(path), "--wait", "1", code=3)
    assert refused["error"] == "not_active"
    assert f"{load_invite(path).name} is in epoch 1" in refused["message"]


def test_replace_adds_then_removes_and_can_be_run_again(world: World) -> None:
    path = invited(world)
    newcomer = load_invite(path).key.id
    world.membership.guests = {newcomer}
    made = world.json("replace", "node-2", "--with", str(path))
    assert set(made) == documented("replace")
    assert (made["added"], made["removed"], made["epoch"]) == (newcomer.hex(), ids(world)[1].hex(), 3)
    actions = [decode_change_untrusted(change.raw).action for change in world.membership.changes]
    assert actions == [ChangeAction.ADD, ChangeAction.REMOVE]
    again = world.json("replace", "node-2", "--with", str(path))
    assert (again["changed"], again["epoch"]) == (False, 3)
    assert len(world.membership.changes) == 2


def test_replace_goes_on_after_its_first_half(world: World) -> None:
    path = invited(world)
    world.membership.guests = {load_invite(path).key.id}
    world.run("member", "add", str(path))
    assert world.json("replace", "node-2", "--with", str(path))["epoch"] == 3
    assert len(world.membership.changes) == 2


@pytest.fixture
def dead_of_four(home: Path, tmp_path: Path) -> Iterator[World]:
    """Four members in groups of three, of which node-2 is dead."""
    with start_blocking_portal() as portal:
        made = World(home, tmp_path / "net", portal, nodes=4, k=3)
        try:
            portal.call(made.nodes[1].stop)
            made.membership.dead = {ids(made)[1]}
            yield made
        finally:
            made.stop()


def test_replace_removes_a_dead_member_first_where_enough_are_left(dead_of_four: World) -> None:
    """Each half can be the one that an interruption left: it is not made twice."""
    world = dead_of_four
    path = invited(world)
    newcomer = load_invite(path).key.id
    world.membership.guests = {newcomer}
    half = world.json("member", "remove", "node-2")
    assert half["epoch"] == 2
    made = world.json("replace", "node-2", "--with", str(path))
    assert (made["added"], made["removed"], made["epoch"]) == (newcomer.hex(), ids(world)[1].hex(), 3)
    world.membership.views = world.membership.views[:1]
    world.membership.changes.clear()
    made = world.json("replace", "node-2", "--with", str(path))
    assert (made["changed"], made["epoch"]) == (True, 3)
    actions = [decode_change_untrusted(change.raw).action for change in world.membership.changes]
    assert actions == [ChangeAction.REMOVE, ChangeAction.ADD]
    again = world.json("replace", "node-2", "--with", str(path))
    assert (again["changed"], again["epoch"], len(world.membership.changes)) == (False, 3, 2)


def test_replace_removes_nobody_for_a_newcomer_that_cannot_come(
    dead_of_four: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = dead_of_four
    path = invited(world)
    words = ("replace", "node-2", "--with", str(path), "--wait", "1")
    assert world.json(*words, code=3)["error"] == "not_connected"
    world.membership.guests = {load_invite(path).key.id}
    monkeypatch.setattr("cli.member.now_ms", lambda: now_ms() + 2 * DAY_MS)
    assert "has expired" in world.run(*words, code=2).stderr
    assert world.membership.changes == []


def test_replace_adds_first_where_the_old_member_lives_or_few_are_left(dead_of_four: World) -> None:
    world = dead_of_four
    dead, living, new = ids(world)[1], ids(world)[0], load_invite(invited(world)).key.id
    world.membership.guests = {new}

    async def picture() -> Picture:
        network = load_network(world.directory)
        async with open_patiently(network) as client:
            return await look(client, network)

    found = world.portal.call(picture)
    assert removes_first(found, dead, new)
    assert not removes_first(found, living, new)
    assert not removes_first(found, new, new)
    world.membership.views.append(without_member(world.membership.newest, ids(world)[3], NOW_MS, living))
    assert not removes_first(world.portal.call(picture), dead, new)


def test_replace_refuses_what_makes_no_sense(world: World) -> None:
    path = invited(world)
    newcomer = load_invite(path).key
    world.membership.guests = {newcomer.id}
    key = read_node_key(world.directory / "node-2").public_key.hex()
    assert "cannot replace itself" in world.run("replace", "node-2", "--with", key, code=2).stderr
    assert "never was a member" in world.run("replace", newcomer.id.hex(), "--with", key, code=2).stderr
    world.run("member", "remove", "node-2")
    assert "ids never come back" in world.run("replace", "node-1", "--with", key, code=2).stderr


@pytest.mark.parametrize("kind", ["observer", "foreign", "expired", "nothing"])
def test_an_invitation_that_cannot_be_used_is_told(world: World, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, says = world.directory / "no such file", "is neither an invitation's file nor a public key"
    if kind == "observer":
        path, says = invited(world, "--observer"), "is for an observer"
    elif kind == "foreign":
        other = Cli(world.home, world.home.parent / "other")
        other.run("init", str(other.directory), "--asset", "CZK:2", "--port", "0")
        path, says = Path(other.json("invite")["invite"]), "is for network other"
    elif kind == "expired":
        path, says = invited(world, "--expires", "1s"), "has expired"
        late_ms = load_invite(path).expires_ms + 1
        monkeypatch.setattr("cli.member.now_ms", lambda: late_ms)
    assert says in world.run("member", "add", str(path), "--network", str(world.directory), code=2).stderr
    assert world.membership.changes == []


def test_a_network_without_an_operators_key_changes_nobody(world: World) -> None:
    (world.directory / "operator.key").unlink()
    assert "operator.key" in world.run("member", "remove", "node-2", code=2).stderr
    assert world.membership.changes == []


def test_groups_are_counted_exactly() -> None:
    """Three of five in groups of three: the groups of the two others' neighbourhoods are lost, not all."""
    from tests.hopchain.fake_node import make_genesis

    keys = [bytes([number]) * 32 for number in range(1, 6)]
    alive = {node_id_of(key) for key in keys}
    three = make_genesis("")
    assert three.k == 5
    assert groups_without_majority(three, keys, alive) == (0, 1)
    assert groups_without_majority(three, keys, set()) == (1, 1)
    assert groups_without_majority(three, keys, {node_id_of(key) for key in keys[:3]}) == (0, 1)
    assert groups_without_majority(three, keys, {node_id_of(key) for key in keys[:2]}) == (1, 1)


# --- leave ---


def data_of(world: World, number: int) -> Path:
    """A node's directory, whose settings lead to the fake node."""
    data = world.directory / f"node-{number}"
    text = (data / "config.toml").read_text()
    (data / "config.toml").write_text(
        re.sub(r"(?m)^client_port = .*$", f"client_port = {world.nodes[number - 1].port}", text, count=1)
    )
    return data


def test_leave_is_signed_by_the_node_itself(world: World) -> None:
    (world.directory / "operator.key").unlink()
    made = world.json("leave", "--data", str(data_of(world, 2)))
    assert set(made) == documented("leave")
    assert (made["node"], made["changed"], made["members"]) == (ids(world)[1].hex(), True, 1)
    assert made["stopped_pid"] is None
    (signed,) = world.membership.changes
    assert is_change_signed_by(signed, read_node_key(world.directory / "node-2").public_key)
    assert not world.json("leave", "--data", str(data_of(world, 2)))["changed"]
    assert "the last member" in world.run("leave", "--data", str(data_of(world, 1)), code=2).stderr


HOLDER = """
import sys
from pathlib import Path
from node.lock import DataLock
with DataLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_leave_stops_the_process_that_runs_the_node(world: World) -> None:
    data = data_of(world, 2)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as node:
        assert node.stdout is not None and node.stdout.readline() == b"held\n"
        assert world.json("leave", "--data", str(data))["stopped_pid"] == node.pid
        assert node.wait() == -15


def test_leave_says_beside_the_nodes_files_that_it_left(world: World) -> None:
    """So that `up` does not start it again."""
    data = data_of(world, 2)
    assert "a service that started it must not start it again" in world.run("leave", "--data", str(data)).stdout
    assert left_in(data) == 2
    world.membership.guests = {load_invite(invited(world, "--name", "node-9")).key.id}
    world.run("member", "add", str(world.directory / "node-9.invite"))
    (data / "left").unlink()
    world.run("leave", "--data", str(data))
    assert left_in(data) == 2, "also when another view has come since"
    (data / "left").unlink()
    (data / "left").mkdir()
    done = world.run("leave", "--data", str(data))
    assert "nothing there says that the node left" in done.stderr and "(`hopchain up`, a service)" in done.stdout


def test_one_that_was_removed_is_not_started_here_again(world: World) -> None:
    """Its directory is one of those that `up` runs."""
    mark = data_of(world, 2) / "left"
    mark.mkdir()  # it cannot be written: the node itself says that it was removed
    world.run("member", "remove", "node-2")
    assert left_in(data_of(world, 2)) is None
    mark.rmdir()
    assert "it was so already" in world.run("member", "remove", "node-2").stdout
    assert left_in(data_of(world, 2)) == 2 and left_in(data_of(world, 1)) is None


def test_one_that_others_may_still_need_is_started_again(world: World) -> None:
    """node-9 has contact with them, and has not answered itself: it may have to ask the old groups."""
    path = invited(world, "--name", "node-9")
    world.membership.guests = {load_invite(path).key.id}
    world.run("replace", "node-2", "--with", str(path))
    assert left_in(data_of(world, 2)) is None


def test_the_directory_of_another_node_is_not_marked(world: World) -> None:
    key = data_of(world, 2) / "node.key"
    key.write_bytes((data_of(world, 1) / "node.key").read_bytes())
    world.run("member", "remove", "node-2")
    key.unlink()
    world.run("member", "remove", "node-2")
    assert left_in(data_of(world, 2)) is None


MARKED = """
import signal, sys
from pathlib import Path
from node.lock import DataLock
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # one that comes before it is waited for is not lost
with DataLock(Path(sys.argv[1])):
    print("held", flush=True)
    signal.sigtimedwait({signal.SIGTERM}, 60)
    sys.exit(7 if Path(sys.argv[1], "left").exists() else 8)
"""


def test_leave_says_so_before_it_ends_the_process(world: World) -> None:
    data = data_of(world, 2)
    with subprocess.Popen([sys.executable, "-c", MARKED, str(data)], stdout=subprocess.PIPE) as node:
        assert node.stdout is not None and node.stdout.readline() == b"held\n"
        world.run("leave", "--data", str(data))
        assert node.wait(60) == 7


def test_leave_is_done_when_the_process_has_ended_by_itself_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A removed node ends when nobody needs it any more: that may be between two looks at it."""
    data = data_of(world, 2)
    looks = []

    def holder_of(directory: Path) -> int | None:
        pid = lock_holder(directory)
        if not looks:
            node.kill()
            node.wait()
        looks.append(pid)
        return pid

    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as node:
        assert node.stdout is not None and node.stdout.readline() == b"held\n"
        monkeypatch.setattr("node.lock.lock_holder", holder_of)
        assert world.json("leave", "--data", str(data))["stopped_pid"] == node.pid
    assert looks == [node.pid, None]


def test_leave_stops_no_process_that_merely_has_the_number(world: World) -> None:
    """The lock is held by a process of another container, whose number here is another process's."""
    data = data_of(world, 2)
    script = HOLDER.replace('print("held"', 'Path(sys.argv[1], "node.lock").write_text(sys.argv[2]); print("held"')
    bystander = os.getppid()
    with subprocess.Popen(
        [sys.executable, "-c", script, str(data), str(bystander)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as node:
        assert node.stdout is not None and node.stdout.readline() == b"held\n"
        refused = world.json("leave", "--data", str(data), code=1)
        assert refused["error"] == "running" and "the node was removed" in refused["message"]
        node.kill()


def test_leave_needs_a_member_of_this_network(world: World, tmp_path: Path) -> None:
    path = invited(world)
    data = tmp_path / "guest"
    make_node_directory(load_invite(path), data, "127.0.0.1", 5001, 5002)
    assert (
        "is not a member" in world.run("leave", "--data", str(data), "--network", str(world.directory), code=2).stderr
    )
    other = Cli(world.home, tmp_path / "other")
    other.run("init", str(other.directory), "--asset", "CZK:2", "--port", "0")
    said = world.run("leave", "--data", str(data), "--network", str(other.directory), code=2).stderr
    assert "is a node of another network" in said
    (data / "network.toml").unlink()
    assert "name the network's directory with --network" in world.run("leave", "--data", str(data), code=2).stderr


# --- join, as far as it goes without a node ---


def test_join_refuses_before_anything_is_made(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = invited(world, "--expires", "1h"), tmp_path / "data"
    path.chmod(0o644)
    assert "has mode 0644" in world.run("join", str(path), "--data", str(data), code=2).stderr
    path.chmod(0o600)
    late_ms = load_invite(path).expires_ms + 60_000
    monkeypatch.setattr("cli.join.now_ms", lambda: late_ms)
    assert "expired 1 min ago" in world.run("join", str(path), "--data", str(data), code=2).stderr
    assert not data.exists()
    assert "is the directory of node" in world.run("join", str(path), "--data", str(data_of(world, 1)), code=2).stderr


NEEDED = "import sys, time; time.sleep(1); print('error: nobody needs it any more'); sys.exit(4)"


def test_join_says_how_its_node_is_started_again(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.join.node_command", lambda data: ["true"])
    monkeypatch.setattr("cli.join.ports_of", lambda *asked: (5001, 5002))
    data = tmp_path / "my node"
    shown = world.run("join", str(invited(world)), "--data", str(data)).stdout
    assert f"`hopchain node '{data}'` runs it" in shown


def test_join_leaves_a_removed_node_running_until_it_ends_by_itself(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others may still need its part of the old view."""
    said = (EMPTY, health(1, role="removed", removed_in=7))

    async def seen(join: object, client: object) -> object:
        return said

    monkeypatch.setattr("cli.join._Join._seen", seen)
    monkeypatch.setattr("cli.join.node_command", lambda data: [sys.executable, "-c", NEEDED])
    monkeypatch.setattr("cli.join.ports_of", lambda *asked: (5001, 5002))
    done = world.run("join", str(invited(world)), "--data", str(tmp_path / "data"), "--json", code=4)
    started, removed, error = done.stdout.split("\n", 2)
    assert json.loads(started)["event"] == "started"
    told = json.loads(removed)
    assert (told["event"], told["epoch"]) == ("removed", 7)
    assert "exit code 4: error: nobody needs it any more" in json.loads(error)["message"]


# --- status ---


def test_status_asks_members_that_the_directory_does_not_list(world: World) -> None:
    first, second = ids(world)
    made = read_network(world.directory)
    write_places(world.directory, made.genesis, made.nodes[:1])
    peers = (wire.PeerHealth(second, True, 1, True, 0, "127.0.0.1", 5001, world.nodes[1].port),)
    world.membership.special[first] = {"peers": peers}
    found = world.json("status")
    assert [(n["name"], n["id"], n["alive"]) for n in found["nodes"]] == [
        ("node-1", first.hex(), True),
        (second.hex()[:8], second.hex(), True),
    ]
    assert found["alive"] == 2 and found["nodes"][1]["client_port"] == world.nodes[1].port
    assert "2 of 2 nodes answer" in world.run("status").stdout
    assert len(world.json("status", "--at", "node-1")["nodes"]) == 1


def test_status_counts_members_that_cannot_be_asked_and_none_that_left(world: World) -> None:
    node = joined(world)
    world.portal.call(world.nodes[1].stop)
    found = world.json("status")
    assert [(n["name"], n["alive"]) for n in found["nodes"]] == [("node-1", True), ("node-9", False)]
    left = found["nodes"][1]
    assert (left["id"], left["host"], left["client_port"]) == (node.hex(), "127.0.0.1", None)
    assert left["reason"] == "no node knows its client port"
    world.membership.special[ids(world)[0]] = {"peers": ()}
    left = world.json("status")["nodes"][1]
    assert (left["name"], left["host"], left["reason"]) == ("node-9", None, "no node knows where it is")
    shown = world.run("status").stdout
    assert "1 of 2 nodes answer" in shown and "node-2" not in shown and "unasked" in shown


@pytest.mark.parametrize("host", ["", "a b", "x" * 300, "a..b"])
def test_what_a_peer_says_of_where_another_is_ends_no_command(world: World, host: str) -> None:
    """Who has dialed a node that was just started is connected to it, and nowhere yet."""
    guest = load_invite(invited(world, "--name", "reports", "--observer")).key.id
    world.membership.guests = {guest}
    told = wire.PeerHealth(guest, True, 1, True, 0, host, 1, 7401)
    for node in ids(world):
        world.membership.special[node] = {"peers": (told,)}
    found = world.json("status")
    assert found["alive"] == 2 and [(n["name"], n["client_port"]) for n in found["nodes"]][2:] == [("reports", None)]
    assert found["nodes"][2]["reason"] == ("no node knows its client port" if host else "no node knows where it is")
    assert world.json("member", "list")["epoch"] == 1
    world.run_any("doctor")
    assert [seed.node_id for seed in load_invite(invited(world)).seeds] == ids(world)
    reports = wire.PeerHealth(guest, True, 1, True, 0, "127.0.0.1", 1, world.nodes[1].port)
    world.membership.special[ids(world)[1]] = {"peers": (reports,)}
    assert world.json("status")["nodes"][2]["client_port"] == world.nodes[1].port, "another one knows better"


def test_status_lists_guests_and_says_what_each_node_is(world: World) -> None:
    """One that serves clients, and one that only the members reach."""
    first, second = ids(world)
    apart = bytes(range(20))
    world.membership.guests |= {apart}
    world.run("member", "remove", "node-2", "--force", "payments may stop")
    found = world.json("status")["nodes"]
    assert [(n["name"], n["id"], n["role"], n["alive"]) for n in found] == [
        ("node-1", first.hex(), "member", True),
        ("node-2", second.hex(), "removed", True),
        (apart.hex()[:8], apart.hex(), "guest", False),
    ]
    shown = world.run("status").stdout.splitlines()
    assert [line.split()[4] for line in shown[1:3]] == ["role", "member"] and "guest" in shown[4]
    assert shown[0].endswith(": 1 of 1 members answer, 1 guest, 1 removed")
    assert shown[4].split()[2:4] == ["unasked", "guest"], "it is not down: members have contact with it"
    assert "1 of 1 nodes answer" in world.run("status", "--at", "node-2").stdout
    assert world.json("status", "--at", "node-2")["nodes"][0]["role"] == "removed"
    world.stop()
    assert [n["role"] for n in world.json("status", code=3)["nodes"]] == [None, None]


# --- doctor ---


def test_doctor_finds_nothing_or_says_what(world: World) -> None:
    sound = world.json("doctor")
    assert set(sound) == documented("doctor")
    assert (sound["ok"], sound["findings"], sound["members"], sound["answered"]) == (True, [], 2, 2)
    assert "nothing is wrong" in world.run("doctor").stdout
    world.membership.special[ids(world)[1]] = {"disk_free": 1, "certificate_until_ms": 1}
    wrong = world.json("doctor", code=1)
    assert not wrong["ok"]
    assert [(f["code"], f["node"]) for f in wrong["findings"]] == [("disk", "node-2"), ("certificate", "node-2")]
    assert set(wrong["findings"][0]) == {"code", "node", "what", "do", "numbers"}
    assert "do: " in world.run("doctor", code=1).stdout


def test_doctor_knows_nodes_that_are_in_no_file(world: World) -> None:
    """A member that joined later is found through the others; when nobody knows its client port, it is said so."""
    path = invited(world)
    newcomer = load_invite(path).key.id
    world.membership.guests = {newcomer}
    world.run("member", "add", str(path))
    assert world.json("doctor")["findings"] == []  # it cannot be asked, and all others have contact with it
    world.membership.dead = {newcomer}
    (finding,) = world.json("doctor", code=1)["findings"]
    assert (finding["code"], finding["node"]) == ("unreachable", load_invite(path).name)
    assert "no node knows its client port" in finding["what"]
    world.membership.dead = set()
    peers = (wire.PeerHealth(newcomer, True, 2, True, 0, "127.0.0.1", 1, world.nodes[1].port),)
    world.membership.special[ids(world)[0]] = {"peers": peers}
    (finding,) = world.json("doctor", code=1)["findings"]
    assert f"node node-2 ({ids(world)[1].hex()[:8]}) answers at" in finding["what"]


def test_doctor_on_a_network_that_is_down(world: World) -> None:
    world.stop()
    found = world.json("doctor", code=3)
    assert [f["code"] for f in found["findings"]] == ["nobody"]
    assert (found["ok"], found["epoch"], found["members"], found["answered"]) == (False, None, None, 0)


# --- certificates ---


def test_a_new_certificate_replaces_that_of_its_node_alone(cli: Cli) -> None:
    cli.run("init", str(cli.directory), "--nodes", "2", "--asset", "CZK:2", "--port", "0")
    for name in ("genesis.json", "ca.key", "node-2/node.crt"):
        before = (cli.directory / name).read_bytes()
        said = cli.run("certificate", "renew", "node-1", "--out", str(cli.directory / name), code=2).stderr
        assert "exists and is not a certificate of this node" in said
        assert (cli.directory / name).read_bytes() == before
    own = cli.directory / "node-1" / "node.crt"
    before = own.read_bytes()
    cli.run("certificate", "renew", "node-1", "--out", str(own))
    assert own.read_bytes() != before
    empty = cli.directory / "made-by-mktemp"
    empty.touch()
    cli.run("certificate", "renew", "node-1", "--out", str(empty))
    assert certified_key(empty) == certified_key(own)


def test_certificates_are_listed_and_renewed_in_place(cli: Cli) -> None:
    cli.run("init", str(cli.directory), "--nodes", "2", "--asset", "CZK:2", "--port", "0", "--days", "20")
    listed = cli.json("certificate", "list", code=1)
    assert set(listed) == documented("certificate list")
    assert [(n["name"], round(n["days"])) for n in listed["nodes"]] == [("node-1", 20), ("node-2", 20)]
    assert round(listed["ca_days"]) == 3653
    node = cli.directory / "node-2"
    before = node_contexts(node, read_genesis(node).ca)
    made = cli.json("certificate", "renew", "node-2", "--days", "90")
    assert set(made) == documented("certificate renew")
    assert made["node"] == read_node_key(node).id.hex()
    assert certificate_until_ms(node / "node.crt") == made["until_ms"]
    node_contexts(node, before.ca_pem)
    assert sorted(p.name for p in node.iterdir() if "crt" in p.name) == ["node.crt"]
    shown = cli.run("certificate", "list", code=1).stdout
    assert f"renew node-1 --network {cli.directory}" in shown and "renew node-2" not in shown
    (place := cli.directory.parent / "my net").symlink_to(cli.directory)
    shown = cli.run("certificate", "list", "--network", str(place), code=1).stdout
    assert f"renew node-1 --network '{place}'\n" in shown
    cli.run("certificate", "renew", str(cli.directory / "node-1"))
    assert "CA ends in" in cli.run("certificate", "list").stdout
    empty = cli.run("certificate", "list", "--network", str(cli.directory / "node-1")).stdout
    assert empty.startswith("no node's files are in ") and "CA ends in" in empty


@pytest.mark.parametrize("damage", ["torn", "lost", "another network's", "another node's"])
@pytest.mark.parametrize("key", ["here", "elsewhere"])
def test_a_wrong_certificate_is_listed_with_its_node_and_renewed_by_name(cli: Cli, damage: str, key: str) -> None:
    for name in ("other", cli.directory.name):
        cli.run("init", str(cli.directory.with_name(name)), "--nodes", "2", "--asset", "CZK:2", "--port", "0")
    node = cli.directory / "node-2"
    path, public = node / "node.crt", read_node_key(node).public_key
    match damage:
        case "torn":
            path.write_bytes(path.read_bytes()[:99])
        case "lost":
            path.unlink()
        case "another network's":
            path.write_bytes((cli.directory.with_name("other") / "node-2/node.crt").read_bytes())
        case "another node's":
            path.write_bytes((cli.directory / "node-1/node.crt").read_bytes())
    if key == "elsewhere":
        (node / "node.key").unlink()
    listed = cli.json("certificate", "list", code=1)
    first, second = listed["nodes"]
    assert (first["fault"], round(first["days"])) == (None, 397)
    assert str(path) in second["fault"] and (second["days"], second["until_ms"]) == (None, None)
    shown = cli.run("certificate", "list", code=1).stdout
    assert f"✗ node-2: {second['fault']}\n" in shown and "renew node-2" in shown and "renew node-1" not in shown
    cli.run("certificate", "renew", "node-2")
    assert certified_key(path) == public
    assert [n["fault"] for n in cli.json("certificate", "list")["nodes"]] == [None, None]


def test_a_certificate_for_a_key_elsewhere(cli: Cli, tmp_path: Path) -> None:
    cli.run("init", str(cli.directory), "--nodes", "1", "--asset", "CZK:2", "--port", "0")
    key = read_node_key(cli.directory / "node-1")
    fresh = tmp_path / "fresh.crt"
    assert (
        "name the file for the certificate with --out"
        in cli.run("certificate", "renew", key.public_key.hex(), code=2).stderr
    )
    cli.run("certificate", "renew", key.public_key.hex(), "--out", str(fresh))
    (cli.directory / "node-1/node.crt").write_bytes(fresh.read_bytes())
    node_contexts(cli.directory / "node-1", read_network(cli.directory).genesis.ca)
    assert "is not a node of" in cli.run("certificate", "renew", "node-4", code=2).stderr
    (cli.directory / "ca.key").unlink()
    assert "ca.key" in cli.run("certificate", "renew", "node-1", code=2).stderr


def test_a_directory_that_joined_is_a_network_for_commands(world: World, tmp_path: Path) -> None:
    data = tmp_path / "data"
    make_node_directory(load_invite(invited(world)), data, "127.0.0.1", 5001, 5002)
    network = load_network(data)
    assert [node.id for node in network.nodes] == ids(world)
    assert world.json("doctor", "--network", str(data))["ok"]


def test_old_networks_without_an_operator_say_so(cli: Cli, world: World) -> None:
    made = make_network(
        cli.directory.parent / "plain", nodes=1, assets=[Asset("CZK", 2)], issuers={}, ports=[(1, 2)], name="plain",
        now_ms=TIME_MS, days=36_500,
    )  # fmt: skip
    import msgspec

    from chain.errors import LocalMisuse
    from chain.genesis import Genesis
    from cli.members import operator_key

    old: Genesis = msgspec.structs.replace(made.genesis, operator="")
    with pytest.raises(LocalMisuse, match="was made without an operator"):
        operator_key(old, made.directory)
    with pytest.raises(LocalMisuse, match="is not the operator's key of network"):
        operator_key(world.ledger.genesis, made.directory)

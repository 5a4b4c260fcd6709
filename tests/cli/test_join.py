"""Joining, as far as it can be judged without a node: progress, addresses, what is printed."""

import json
import os
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from threading import Event

import msgspec
import pytest

from chain.audit import AuditReport
from chain.disk import open_database
from chain.errors import LocalMisuse
from chain.rows import ViewRow
from chain.seal import CursorRow, load_cursors
from chain.store import commit, create_or_check
from cli import join
from cli.copying import CLOSE_LINKS, LEVEL_LINKS, Copied, CopyMeter, most_heard, progress_line
from cli.join import default_host, removed_in
from cli.verified import VERIFIED_FILE
from hopchain.wire import PeerStatus, Status, SubmitChange
from node.invite import load_invite, make_node_directory
from node.lock import DataLock
from node.process import view_of
from node.pulling import log_name
from routing.keyspace import NodeId
from routing.view import encode_view, without_member
from tests.cli.conftest import World
from tests.cli.test_diagnosis import IDS

EMPTY = Status(IDS[0], 1, 5, 0, 0, 0, 0, 0, 0, 0, 0.0, (), {})


def status(links: int, *peers: int, rtt_ms: float = 1.0, alive: bool = True) -> Status:
    heard = tuple(PeerStatus(i, "127.0.0.1", 1, alive, rtt_ms, n, 0) for i, n in zip(IDS[1:], peers, strict=False))
    return msgspec.structs.replace(EMPTY, log_height=links, peers=heard)


SIZE = 3 * 1024 * 1024


def noted(meter: CopyMeter, at_s: float, said: Status) -> Copied:
    return meter.note(at_s, said.log_height, most_heard(said), SIZE)


def test_nothing_is_complete_before_a_member_was_heard() -> None:
    meter = CopyMeter()
    for said in (status(0), status(0, 0, rtt_ms=-1), status(5, 900, alive=False)):
        copied = noted(meter, 0.0, said)
        assert (copied.of, copied.complete, copied.seconds_left) == (None, False, None)
    assert "no member answers yet" in progress_line(copied)


def test_it_is_complete_when_only_the_newest_can_be_missing() -> None:
    assert not noted(CopyMeter(), 0.0, status(1_000 - CLOSE_LINKS - 1, 1_000, 700)).complete
    assert noted(CopyMeter(), 0.0, status(1_000 - CLOSE_LINKS, 1_000, 700)).complete
    assert noted(CopyMeter(), 0.0, status(0, 0)).complete  # of an empty network


def test_time_left_follows_from_the_last_seconds() -> None:
    meter = CopyMeter()
    assert noted(meter, 0.0, status(0, 1_000)).seconds_left is None
    assert noted(meter, 1.0, status(100, 1_000)).seconds_left == pytest.approx(9.0)
    assert noted(meter, 2.0, status(100, 1_000)).seconds_left == pytest.approx(18.0)
    copied = noted(meter, 11.5, status(550, 1_000))  # the first two samples are too old
    assert copied.seconds_left == pytest.approx(450 * 9.5 / 450)
    assert noted(meter, 12.0, status(1_001, 1_000)).seconds_left == 0.0
    assert progress_line(copied) == "550 of 1,000 links, 3.0 MiB, 10 s left"


def test_it_is_level_when_it_lacks_little_or_what_two_seconds_bring() -> None:
    meter = CopyMeter()
    assert not meter.note(0.0, 500, 6_535, SIZE).level
    assert meter.note(0.1, 6_535 - LEVEL_LINKS, 6_535, SIZE).level
    assert not meter.note(0.2, 6_535 - LEVEL_LINKS - 1, 6_535, SIZE).level
    assert not meter.note(1.0, 6_535, 7_535, SIZE).level, "a burst is no growth"
    assert meter.note(10.0, 14_535, 16_535, SIZE).level, "1,000 a second are made"
    assert not meter.note(10.0, 14_534, 16_535, SIZE).level
    assert not CopyMeter().note(0.0, 0, None, SIZE).level


@pytest.mark.parametrize("seeds", [["127.0.0.1", "127.0.0.2"], ["::1", "localhost"], []])
def test_a_network_on_this_machine_needs_no_host(seeds: list[str]) -> None:
    assert default_host(seeds) == "127.0.0.1"


@pytest.mark.parametrize("host", ["10.0.0.1", "n1.example", "fe80::1"])
def test_a_network_elsewhere_needs_one(host: str) -> None:
    with pytest.raises(LocalMisuse, match=f"a node at {host}, .*--advertise-host"):
        default_host(["127.0.0.1", host])


def test_a_directory_in_use_is_refused_before_anything_is_said_of_its_node(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invite = Path(world.json("invite", str(world.directory))["invite"])
    data = tmp_path / "new"
    make_node_directory(load_invite(invite), data, "127.0.0.1", 7400, 7401)
    monkeypatch.setattr(join, "UNUSED_S", 0.0)
    with DataLock(data):
        shown = world.run("join", str(invite), "--data", str(data), code=2)
    assert shown.stdout == "" and "is in use by process" in shown.stderr


def test_a_node_that_was_removed_is_not_to_be_started_again(world: World, tmp_path: Path) -> None:
    genesis, node = world.ledger.genesis, world.nodes[0].id
    first = view_of(genesis)
    conn = open_database(tmp_path / "node.db", writer=True)
    create_or_check(conn, genesis, node, (first.hash, encode_view(first)))
    assert removed_in(tmp_path, node) == 0
    second = without_member(first, node, first.time_ms + 1, world.nodes[1].id)
    commit(conn, [ViewRow(second.epoch, second.hash, first.hash, encode_view(second))])
    conn.close()
    assert removed_in(tmp_path, node) == second.epoch == 2
    assert removed_in(tmp_path, world.nodes[1].id) == 0
    assert removed_in(tmp_path, sha256(b"a guest").digest()[:20]) == 0
    assert removed_in(tmp_path / "none", node) == 0
    (tmp_path / "node.db").write_bytes(b"x" * 10_000)
    assert removed_in(tmp_path, node) == 0


# --- verifying the copy ---

LINKS = 1_000  # of an audit that takes ten seconds


class Joiner:
    """`hopchain join --exit` of a node that has a complete copy; what it says of itself is what the network's views say
    of it."""

    def __init__(self, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.invite = Path(world.json("invite")["invite"])
        self.invitation = load_invite(self.invite)
        self.id: bytes = self.invitation.key.id
        self.data = tmp_path / "new"
        make_node_directory(self.invitation, self.data, "127.0.0.1", 7400, 7401)
        self.copy(log_number=7)

        async def seen(join: object, client: object) -> object:
            return status(1, 1), world.membership.health(self.id)

        monkeypatch.setattr("cli.join._Join._seen", seen)
        monkeypatch.setattr("cli.join.node_command", lambda data: [sys.executable, "-c", "import time; time.sleep(60)"])

    def copy(self, log_number: int) -> None:
        """Have the database made, anew when one is there."""
        for path in self.data.glob("node.db*"):
            path.unlink()
        first = view_of(self.world.ledger.genesis)
        conn = open_database(self.data / "node.db", writer=True)
        create_or_check(conn, self.world.ledger.genesis, self.id, (first.hash, encode_view(first)))
        commit(conn, [CursorRow(self.id, log_number)])
        conn.close()

    def is_restarted(self, log_number: int) -> None:
        """Another process has begun another log, as the last one went until then."""
        conn = open_database(self.data / "node.db", writer=True)
        last = next(row.seq for row in load_cursors(conn) if row.peer == self.id)
        commit(conn, [CursorRow(self.id, log_number), CursorRow(log_name(NodeId(self.id), last), 1)])
        conn.close()

    def damage(self) -> None:
        conn = open_database(self.data / "node.db", writer=True)
        conn.execute("UPDATE cursors SET checksum = x'00'")
        conn.close()

    def is_added(self) -> None:
        """`member add` or `replace` made it a member."""
        change = self.invitation.change
        assert change is not None
        self.world.membership.change(SubmitChange(change.raw, change.signature, 1_000), self.world.nodes[0].id)

    def stages(self, *words: str) -> list[str]:
        """What a run tells of."""
        shown = self.world.run("join", str(self.invite), "--data", str(self.data), "--exit", "--json", *words).stdout
        return [json.loads(line)["event"] for line in shown.splitlines()]


@pytest.fixture
def joiner(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Joiner:
    return Joiner(world, tmp_path, monkeypatch)


def test_a_guest_is_verified_before_it_becomes_a_member(joiner: Joiner) -> None:
    assert joiner.stages() == ["started", "progress", "verified", "member", "active", "ended"]


def test_a_node_that_others_made_a_member_meanwhile_is_verified(joiner: Joiner) -> None:
    joiner.is_added()
    assert joiner.stages() == ["started", "progress", "verified", "active", "ended"]


def test_an_observer_is_verified(joiner: Joiner) -> None:
    """Its invitation may make it a member later."""
    assert joiner.stages("--observer") == ["started", "progress", "verified", "observing", "ended"]


def test_a_database_is_verified_once(joiner: Joiner) -> None:
    assert "verified" in joiner.stages()
    assert joiner.stages() == ["started", "progress", "active", "ended"]
    joiner.is_restarted(log_number=9)
    assert joiner.stages() == ["started", "progress", "active", "ended"]
    joiner.copy(log_number=8)
    assert "verified" in joiner.stages()
    (joiner.data / VERIFIED_FILE).unlink()
    (joiner.data / VERIFIED_FILE).mkdir()
    assert "verified" in joiner.stages(), "where that cannot be noted it is done again"


def test_verifying_ends_when_the_join_does(joiner: Joiner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here its node ends first."""
    done = 0

    def long_audit(
        conn: object, *, genesis: object, progress: Callable[[int, int], None] = lambda _done, _total: None
    ) -> AuditReport:
        nonlocal done
        for done in range(LINKS):
            progress(done, LINKS)
            Event().wait(0.01)
        return AuditReport(LINKS, 0, 0, 0, None)

    monkeypatch.setattr("chain.audit.audit", long_audit)
    monkeypatch.setattr("cli.join.node_command", lambda data: ["sleep", "0.5"])
    assert joiner.stages() == ["started", "progress", "ended"]
    assert done < LINKS - 1 and not (joiner.data / VERIFIED_FILE).exists()


@pytest.mark.parametrize("member", [False, True])
def test_a_damaged_copy_stops_its_node_each_time(joiner: Joiner, member: bool) -> None:
    if member:
        joiner.is_added()
    joiner.damage()
    for _ in range(2):
        done = joiner.world.run("join", str(joiner.invite), "--data", str(joiner.data), code=1)
        assert "does not hold up after 0 links: cursors row" in done.stderr
        assert f"If `hopchain member list` shows it ({joiner.id.hex()}), replace it" in done.stderr
        assert "verified" not in done.stdout and "active" not in done.stdout
    assert joiner.world.membership.newest.is_member(NodeId(joiner.id)) is member
    assert not (joiner.data / VERIFIED_FILE).exists()


@pytest.mark.parametrize("words", [("join", "--data", "data"), ("member", "add"), ("replace", "node-2", "--with")])
def test_a_file_that_is_no_invitation_is_not_to_be_hidden_from_others(world: World, words: tuple[str, ...]) -> None:
    """Nobody is told to change the mode of a file that is public."""
    public = world.directory / "genesis.json"
    public.chmod(0o644)
    said = world.run(
        words[0], *((str(public), *words[1:]) if words[0] == "join" else (*words[1:], str(public))), code=2
    ).stderr
    assert "genesis.json is no invitation" in said and "chmod" not in said


@pytest.mark.parametrize("words", [("join", "--data", "data"), ("member", "add"), ("replace", "node-2", "--with")])
def test_what_is_wrong_with_an_invitation_is_told(world: World, words: tuple[str, ...]) -> None:
    invite = Path(world.json("invite", str(world.directory))["invite"])
    command = (words[0], str(invite), *words[1:]) if words[0] == "join" else (*words, str(invite))
    invite.chmod(0o644)
    said = world.run(*command, code=2).stderr
    assert "has mode 0644" in said and "chmod 600" in said and "is no invitation" not in said
    invite.chmod(0o600)
    invite.write_bytes(invite.read_bytes()[:-100])
    said = world.run(*command, code=2).stderr
    assert f"{invite} is not an invitation: " in said and "is no invitation" not in said


def test_an_invitation_from_a_pipe_is_read_once(world: World) -> None:
    invite = Path(world.json("invite", str(world.directory))["invite"])
    end, into = os.pipe()
    try:
        os.write(into, invite.read_bytes()[:-100])
        os.close(into)
        said = world.run("join", f"/dev/fd/{end}", "--data", str(world.directory / "new"), code=2).stderr
    finally:
        os.close(end)
    assert "is not an invitation: " in said and "is no invitation" not in said

"""A whole node in this process: its files, its database, its ports, the signal that ends it."""

import gc
import logging
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import trio
import trio.testing

from chain.disk import open_database
from chain.errors import LocalMisuse, NotReady, Removed
from chain.genesis import Asset
from chain.request import SignedRequest
from chain.rows import VoteRow
from chain.seal import CursorRow, SeenRow
from chain.store import commit, create_or_check
from hopchain import Answer, Client, NotStarted, Outcome, Posting, Recorded, Unreachable
from hopchain.wire import Balance
from node import process
from node.config import read_config
from node.events import FromPeer
from node.layout import DATABASE, Network, make_network, read_genesis
from node.lock import DataLock
from node.messages import Accept, Decided, SlotName
from node.paxos import Ballot
from node.pki import certificate_until_ms, make_node_certificate, node_contexts, read_node_key
from node.process import (
    COLLECT_AFTER,
    READY_AGAIN_S,
    READY_S,
    OneLine,
    now,
    serve_node,
    serve_until_signal,
    settle_collector,
    view_of,
    wait_until_ready,
)
from node.start import read_start
from node.status import Disk
from node.turn import Now
from routing.datagrams import UdpFactory
from routing.errors import RoutingMisuse, RoutingNotReady
from routing.keyspace import NodeId
from routing.view import encode_view
from tests.node.world import key_of, public
from tests.ports import take

NOW_MS = 1_700_000_000_000


@pytest.fixture
def network(tmp_path: Path) -> Network:
    ports = take(2)
    return make_network(
        tmp_path / "net",
        nodes=1,
        assets=[Asset("CZK", 2)],
        issuers={"mint": ("CZK", public(key_of("mint")))},
        ports=[(ports[0], ports[1])],
        name="one",
        now_ms=NOW_MS,
        days=36_500,
    )


@pytest.fixture
def directory(network: Network) -> Path:
    return network.node_directory(network.nodes[0])


def client_of(network: Network) -> Client:
    (node,) = network.nodes
    return Client([(node.host, node.client_port)], network.genesis.ca, network.network_id)


async def wait_serving(client: Client) -> None:
    with trio.fail_after(30):
        while True:
            try:
                await client.status()
            except Unreachable:
                await trio.sleep(0.02)  # it opens its ports
            else:
                return


async def test_a_node_serves_until_the_signal_and_has_all_of_it_when_it_starts_again(
    network: Network, directory: Path
) -> None:
    config = read_config(directory)
    alice = key_of("alice")
    tips: list[bytes] = []
    for round_ in (1, 2):
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_node, directory, config)
                async with client_of(network) as client:
                    await wait_serving(client)
                    opened = await client.open_account("alice", "CZK", alice)
                    assert isinstance(opened, Recorded)
                    assert (opened.outcome, opened.repeated) == (Outcome.COMPLETED, round_ == 2)
                    before = await client.balance("mint", linearizable=True)
                    assert isinstance(before, Balance)
                    tips.append(before.tip)
                    paid = await client.transfer("mint", key_of("mint"), [Posting("alice", 5)])
                    assert isinstance(paid, Recorded)
                    assert (paid.outcome, paid.height, paid.balance) == (Outcome.COMPLETED, round_, -5 * round_)
                    tips.append(paid.link_hash)
                    status = await client.status()
                    assert status.log_height == 2 + round_
                    assert status.counters["driver.commits"] > 0
                    signal.raise_signal(signal.SIGTERM)
    assert tips[2] == tips[1], "the second run goes on where the first ended"
    with DataLock(directory), closing(open_database(directory / DATABASE, writer=False)) as conn:
        assert conn.execute("SELECT height, balance FROM accounts WHERE name = 'mint'").fetchone() == (2, -10)
        assert conn.execute("SELECT count(*) FROM votes").fetchone() == (0,)


async def test_a_second_node_on_the_directory_is_refused_and_the_first_serves_on(
    network: Network, directory: Path
) -> None:
    config = read_config(directory)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_node, directory, config)
            async with client_of(network) as client:
                await wait_serving(client)
                with pytest.raises(LocalMisuse, match=f"in use by process {os.getpid()}"):
                    await serve_node(directory, config)
                assert isinstance(await client.balance("mint"), Balance)
                signal.raise_signal(signal.SIGINT)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that looks at its certificate all the time."""
    monkeypatch.setattr(process, "LOOK_AT_CERTIFICATE_S", 0.02)


async def wait_logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    with trio.fail_after(30):
        while True:
            if text in caplog.text:
                return
            await trio.sleep(0.02)  # the node looks at its certificate


def tear(certificate: Path) -> None:
    certificate.write_bytes(certificate.read_bytes()[:100])


def lose(certificate: Path) -> None:
    certificate.unlink()


def put_directory(certificate: Path) -> None:
    certificate.unlink()
    certificate.mkdir()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("spoil", [tear, lose, put_directory])
async def test_a_node_whose_certificate_is_spoiled_goes_on_and_tells_when_the_old_one_ends(
    network: Network, directory: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    until_ms = certificate_until_ms(directory / "node.crt")
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_node, directory, read_config(directory))
            async with client_of(network) as client:
                await wait_serving(client)
                before = await client.health()
                assert (before.certificate_until_ms, before.certificate_unusable) == (until_ms, False)
                spoil(directory / "node.crt")
                await wait_logged(caplog, "cannot be used")
                after = await client.health()
                assert (after.certificate_until_ms, after.certificate_unusable) == (until_ms, True)
                signal.raise_signal(signal.SIGTERM)


async def test_what_is_wrong_with_a_certificate_is_told_once(
    directory: Path, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    path, aside = directory / "node.crt", directory / "aside.crt"
    contexts = node_contexts(directory, read_genesis(directory).ca)
    hour_s = 3600.0

    def told() -> list[str]:
        said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        caplog.clear()
        return said

    async with trio.open_nursery() as nursery:
        nursery.start_soon(process._renew_certificates, contexts, directory, path.stat().st_mtime_ns)
        path.rename(aside)
        await trio.sleep(hour_s)
        (text,) = told()
        assert text.startswith("node.crt cannot be used") and "No such file" in text
        path.write_bytes(b"no certificate")
        await trio.sleep(hour_s)
        assert len(told()) == 1, "something else is wrong now"
        for _ in range(2):
            aside.rename(path)
            await trio.sleep(hour_s)
            assert not contexts.outdated and told() == []
            path.rename(aside)
            await trio.sleep(hour_s)
            assert contexts.outdated and told() == [text]
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("impatient")
async def test_a_node_tells_when_the_certificate_ends_that_it_has_taken_up(
    network: Network, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    ca, ca_key = read_genesis(directory).ca.encode(), (network.directory / "ca.key").read_bytes()
    public_key, now_ms = read_node_key(directory).public_key, now().unix_ms
    path = directory / "node.crt"
    at_first_ms = certificate_until_ms(path)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_node, directory, read_config(directory))
            async with client_of(network) as client:
                await wait_serving(client)
                path.write_bytes(make_node_certificate(ca, ca_key, public_key, now_ms, 30))
                await wait_logged(caplog, "it is used from now on")
                until_ms = certificate_until_ms(path)
                assert (await client.health()).certificate_until_ms == until_ms < at_first_ms
                path.write_bytes(make_node_certificate(ca, ca_key, public_key, NOW_MS, 30))
                await wait_logged(caplog, "node.crt expired on 2023-12-14")
                assert (await client.health()).certificate_until_ms == until_ms
                assert (await client.health()).certificate_unusable
                caplog.clear()
                path.write_bytes(make_node_certificate(ca, ca_key, public_key, now_ms, 30))
                await wait_logged(caplog, "it is used from now on")
                assert not (await client.health()).certificate_unusable
                signal.raise_signal(signal.SIGTERM)


@pytest.mark.usefixtures("impatient")
async def test_a_certificate_that_comes_while_the_database_is_opened_is_taken_up(
    network: Network, directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    ca, ca_key = read_genesis(directory).ca.encode(), (network.directory / "ca.key").read_bytes()
    renewed = make_node_certificate(ca, ca_key, read_node_key(directory).public_key, now().unix_ms, 30)

    def open_slowly(path: Path, *, writer: bool) -> sqlite3.Connection:
        if writer:
            (directory / "node.crt").write_bytes(renewed)
        return open_database(path, writer=writer)

    monkeypatch.setattr(process, "open_database", open_slowly)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_node, directory, read_config(directory))
            await wait_logged(caplog, "it is used from now on")
            signal.raise_signal(signal.SIGTERM)


DAY_MS = 24 * 3_600_000


@pytest.mark.parametrize("set_after_s", [0, 5, 10**6])
async def test_a_clock_that_is_still_wrong_when_the_machine_starts_is_waited_for(
    set_after_s: int,
    directory: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    began = trio.current_time()

    def clock() -> Now:
        mono = trio.current_time()
        return Now(mono, NOW_MS if mono >= began + set_after_s else 0)

    monkeypatch.setattr(process, "now", clock)
    if set_after_s > READY_S:
        with pytest.raises(NotReady, match="later than this machine's clock: set the clock"):
            await wait_until_ready(directory, "127.0.0.1")
        assert trio.current_time() - began == READY_S
    else:
        await wait_until_ready(directory, "127.0.0.1")
        assert set_after_s <= trio.current_time() - began < set_after_s + READY_AGAIN_S
    assert len(caplog.records) == (set_after_s > 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_wait_for_the_clock_in_order(
    number: signal.Signals,
    directory: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its own action would be another exit code, and none at all for process 1 of a container."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(process, "now", lambda: Now(trio.current_time(), 0))
    ends = signal.signal(number, lambda *_: None)  # else a node that does not take it would end the tests
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_node, directory, read_config(directory))
            await trio.sleep(READY_S / 2)
            signal.raise_signal(number)
            raised_at = trio.current_time()
    finally:
        signal.signal(number, ends)
    assert trio.current_time() - raised_at < READY_AGAIN_S
    assert f"signal {number.name}: ending before this node has started" in caplog.text
    assert not (directory / DATABASE).exists()


async def test_what_is_wrong_while_a_node_waits_is_raised_as_it_is(
    directory: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(process, "now", lambda: Now(trio.current_time(), 0))
    with pytest.raises(NotReady, match="set the clock"):
        await serve_node(directory, read_config(directory))


async def test_a_name_that_nobody_can_be_asked_for_yet_is_waited_for(
    directory: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    asked: list[str] = []

    async def check(host: str) -> None:
        asked.append(host)
        if len(asked) < 4:
            raise NotReady("no answer")

    monkeypatch.setattr(process, "check_name", check)
    await wait_until_ready(directory, "n1.lan")
    assert asked == ["n1.lan"] * 4


@pytest.mark.parametrize(
    ("error", "told", "says"),
    [
        (RoutingMisuse("taken"), LocalMisuse, r"taken \(host and port in config\.toml\)"),
        (RoutingNotReady("later"), NotReady, r"host n1\.lan in config\.toml cannot be looked up now"),
    ],
)
async def test_what_is_wrong_with_the_port_of_the_dht_is_told_as_of_the_others(
    error: Exception, told: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(UdpFactory, "open", refused)
    with pytest.raises(told, match=says):
        await process._Udp().open(lambda data, sender: None, "n1.lan", 1)


def move(directory: Path, to: Path) -> None:
    directory.rename(to)


async def test_a_node_whose_disk_cannot_be_looked_at_says_that_it_is_not_known(
    network: Network, directory: Path
) -> None:
    moved = directory.with_name("moved")
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_node, directory, read_config(directory))
            async with client_of(network) as client:
                await wait_serving(client)
                assert (await client.health()).disk_total > 0
                move(directory, moved)
                health = await client.health()
                assert (health.disk_free, health.disk_total, health.database_bytes) == (0, 0, 0)
                move(moved, directory)
                assert (await client.health()).disk_total > 0
                signal.raise_signal(signal.SIGTERM)


async def test_a_node_takes_requests_until_its_disk_is_nearly_full(
    network: Network, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(2**40, 2**40, 0)
    monkeypatch.setattr(process, "_disk", lambda path: disk)
    opened: list[Answer] = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_node, directory, read_config(directory))
            async with client_of(network) as client:
                await wait_serving(client)
                opened.append(await client.open_account("bob", "CZK", key_of("bob")))
                disk = Disk(2**31 - 1, 2**40, 0)
                while isinstance(opened[-1], Recorded):  # the disk is looked at once a second
                    opened.append(await client.open_account(f"bob-{len(opened)}", "CZK", key_of("bob"), timeout_s=0.5))
                assert isinstance(opened[-1], NotStarted) and opened[-1].code == "disk_low"
                health = await client.health()
                assert (health.disk_free, health.disk_reserve) == (2**31 - 1, 2**31)
                signal.raise_signal(signal.SIGTERM)


async def test_files_are_checked_before_a_database_is_made_for_them(network: Network, directory: Path) -> None:
    config = read_config(directory)
    (directory / "network.key").chmod(0o644)
    with pytest.raises(LocalMisuse, match="chmod 600"):
        await serve_node(directory, config)
    assert not (directory / DATABASE).exists()


def test_a_core_starts_from_the_links_votes_and_cursors_in_the_database(network: Network) -> None:
    (member,) = network.nodes
    view = view_of(network.genesis)
    conn = sqlite3.connect(":memory:", isolation_level=None)
    create_or_check(conn, network.genesis, member.node_id, (view.hash, encode_view(view)))
    empty = read_start(conn)
    assert (empty.votes, empty.links, empty.cursors, empty.seen) == ([], 1, {}, {})
    peer = NodeId(b"p" * 20)
    vote = VoteRow(b"s" * 32, "alice", 0, (1, 1, peer), None, None)
    commit(conn, [vote, CursorRow(peer, 7), SeenRow(member.node_id, 3)])
    start = read_start(conn)
    assert (start.votes, start.links, start.cursors, start.seen) == ([vote], 1, {peer: 7}, {member.node_id: 3})


def test_the_first_view_has_the_members_and_the_k_of_the_genesis_file(network: Network) -> None:
    view = view_of(network.genesis)
    assert (view.epoch, view.k, view.ids) == (1, 5, (network.nodes[0].node_id,))
    assert view.hash == view_of(network.genesis).hash


async def test_now_is_trios_clock_and_the_wall_clock_in_milliseconds(autojump_clock: trio.testing.MockClock) -> None:
    first = now()
    await trio.sleep(100)
    second = now()
    assert second.mono - first.mono == pytest.approx(100)
    assert 0 <= second.unix_ms - first.unix_ms < 50_000, "the wall clock did not jump with trio's"
    assert first.unix_ms > NOW_MS


async def test_a_signal_that_meets_the_end_of_a_removed_node_does_not_hide_why_it_ended(directory: Path) -> None:
    """`hopchain leave` stops a node that was removed, and may end by itself at that very moment."""

    class Leaving:
        id, network = NodeId(bytes(20)), bytes(32)

        async def run(self, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            os.kill(os.getpid(), signal.SIGTERM)
            raise Removed("it was removed")

        async def aclose(self) -> None:
            """Nothing is queued."""

    unheard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: unheard.append(number))
    try:
        with pytest.RaisesGroup(Removed, flatten_subgroups=True):
            await serve_until_signal(Leaving(), read_config(directory))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert unheard == []


class Told:
    """A node to which these signals come while it runs."""

    id, network = NodeId(bytes(20)), bytes(32)

    def __init__(self, *signals: signal.Signals) -> None:
        self.signals = signals
        self.sent: list[signal.Signals] = []
        self.closed = False

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        for number in self.signals:
            self.sent.append(number)
            signal.raise_signal(number)
            await trio.sleep(0.1)  # it is closed meanwhile
        await trio.sleep_forever()

    async def aclose(self) -> None:
        self.closed = True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_signals_that_end_a_node_close_it_in_order(directory: Path, number: signal.Signals) -> None:
    """A terminal that closes, too."""
    node = Told(number)
    unheard: list[int] = []
    before = signal.signal(number, lambda number, frame: unheard.append(number))
    try:
        with trio.fail_after(10):
            await serve_until_signal(node, read_config(directory))
    finally:
        signal.signal(number, before)
    assert node.closed and unheard == []


async def test_a_hangup_that_is_ignored_ends_no_node(directory: Path) -> None:
    """`nohup` asked for that."""
    node = Told(signal.SIGHUP, signal.SIGTERM)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with trio.fail_after(10):
            await serve_until_signal(node, read_config(directory))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert node.closed and node.sent == [signal.SIGHUP, signal.SIGTERM]


def test_the_garbage_collector_knows_no_records_and_not_what_was_there_at_the_start() -> None:
    """It would stop a node for 80 ms every few seconds."""
    signed = SignedRequest(b"raw", bytes(64))
    at = SlotName(bytes(32), "alice", 1)
    for record in (
        signed,
        at,
        Accept(at, Ballot(1, 0, NodeId(bytes(20))), b""),
        FromPeer(NodeId(bytes(20)), Decided(b"", b"", 0)),
    ):
        assert not gc.is_tracked(record), record
    before = gc.get_threshold()
    try:
        settle_collector()
        assert gc.get_threshold() == COLLECT_AFTER
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def test_a_record_of_the_log_is_one_line_whatever_a_stranger_sent() -> None:
    line = OneLine("%(levelname)s %(message)s")
    text = "no connection with 10.0.0.1: Invalid value 'x\n2026-01-01 CRITICAL\x1b[2J'"
    record = logging.LogRecord("node", logging.WARNING, "here", 1, text, (), None)
    assert line.format(record) == rf"WARNING {text[:43]}'x\n2026-01-01 CRITICAL\x1b[2J'"
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        record.exc_info = sys.exc_info()
    assert line.format(record).splitlines()[1] == "Traceback (most recent call last):"

"""`hopchain verify`: damage is named, differences between replicas too."""

import hashlib
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from chain.disk import open_database
from chain.seal import row_checksum
from chain.store import create_or_check
from cli import verify
from hopchain import wire
from node.layout import read_network
from tests.cli.conftest import Cli, World
from tests.cli.test_commands import documented
from tests.hopchain.fake_node import Hang


@pytest.fixture
def node_directory(cli: Cli) -> Path:
    """A node's directory with a database that holds what the genesis file says."""
    cli.run("init", str(cli.directory), "--asset", "CZK:2", "--issuer", "mint", "--port", "0")
    network = read_network(cli.directory)
    directory = network.node_directory(network.nodes[0])
    conn = open_database(directory / "node.db", writer=True)
    create_or_check(conn, network.genesis, network.nodes[0].node_id, (hashlib.sha256(b"view").digest(), b"view"))
    conn.close()
    return directory


def test_a_sound_database(cli: Cli, node_directory: Path) -> None:
    for place in (node_directory, node_directory / "node.db"):
        found = cli.json("verify", str(place))
        assert set(found) == documented("verify DIR")
        assert (found["ok"], found["links"], found["accounts"], found["fault"]) == (True, 1, 1, None)
    assert "sound: 1 link, " in cli.run("verify", str(node_directory)).stdout


def test_a_backup_that_was_made_while_the_node_writes_is_verified_elsewhere(
    cli: Cli, node_directory: Path, tmp_path: Path
) -> None:
    """As the page on operations says: SQLite's own backup, to a directory without genesis.json. `cp` of the one file
    lacks what is in the log."""
    node = read_network(cli.directory).nodes[0]
    writer = open_database(node_directory / "node.db", writer=True)
    writer.execute("BEGIN IMMEDIATE")
    writer.executemany("INSERT INTO seen VALUES (?, 7, ?)", [(node.node_id, row_checksum("seen", node.node_id, 7))])
    writer.execute("COMMIT")
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM seen")
    try:
        backup, torn = tmp_path / "report.db", tmp_path / "torn.db"
        shutil.copy(node_directory / "node.db", torn)
        with closing(sqlite3.connect(node_directory / "node.db")) as reader, closing(sqlite3.connect(backup)) as copy:
            reader.backup(copy)
    finally:
        writer.close()
    with closing(sqlite3.connect(backup)) as copy:
        assert copy.execute("SELECT votes FROM seen").fetchall() == [(7,)], "what is committed, and no more"
    with closing(sqlite3.connect(torn)) as copy:
        assert copy.execute("SELECT votes FROM seen").fetchall() == []
    found = cli.json("verify", str(backup))
    assert (found["ok"], found["links"], found["accounts"]) == (True, 1, 1)


def test_a_damaged_database_names_the_first_bad_row(cli: Cli, node_directory: Path) -> None:
    conn = sqlite3.connect(node_directory / "node.db")
    guard, text = conn.execute(
        "SELECT name, sql FROM sqlite_master WHERE tbl_name = 'accounts' AND sql LIKE '%UPDATE%'"
    ).fetchone()
    conn.execute(f"DROP TRIGGER {guard}")
    conn.execute("UPDATE accounts SET balance = 5")
    conn.execute(text)
    conn.commit()
    conn.close()
    found = cli.json("verify", str(node_directory), code=1)
    assert found["ok"] is False
    assert found["fault"] == {"table": "accounts", "key": "mint", "column": "balance", "expected": "0", "found": "5"}
    shown = cli.run("verify", str(node_directory), code=1).stdout
    assert "DAMAGED" in shown and "accounts row mint, balance: expected 0, found 5" in shown


def test_a_database_of_another_network_is_told(cli: Cli, node_directory: Path) -> None:
    cli.run("init", f"{cli.directory}-2", "--asset", "CZK:2", "--issuer", "mint", "--port", "0")
    shutil.copy(f"{cli.directory}-2/genesis.json", node_directory / "genesis.json")
    assert cli.json("verify", str(node_directory), code=1)["fault"]["table"] == "meta"


def test_what_to_verify_must_be_said_and_exist(cli: Cli, node_directory: Path, tmp_path: Path) -> None:
    cli.run("verify", code=2)
    cli.run("verify", str(node_directory), "--cluster", code=2)
    cli.run("verify", str(tmp_path / "nothing"), code=2)
    assert "start its node once" in cli.run("verify", str(tmp_path), code=2).stderr


def test_equal_replicas(world: World) -> None:
    world.run("account", "open", "alice")
    found = world.json("verify", "--cluster")
    assert set(found) == documented("verify --cluster")
    assert found["ok"] and found["equal"] and found["difference"] is None
    assert [n["totals"] for n in found["nodes"]] == [{"CZK": 0}] * 2
    assert "all 2 replicas are equal" in world.run("verify", "--cluster").stdout
    assert [node["stale"] for node in found["nodes"]] == [False, False]
    world.nodes[1].stale = True
    assert [node["stale"] for node in world.json("verify", "--cluster")["nodes"]] == [False, True]
    assert world.run("verify", "--cluster").stdout.count("(stale)") == 1


def test_the_first_account_that_differs_is_named(world: World) -> None:
    for number in range(30):
        world.ledger.open(f"a{number:02}", "CZK", bytes(32))
    for node in world.nodes:
        node.page = 7
    _lags_behind(world, at="a20")
    found = world.json("verify", "--cluster", "--settle", "0", code=1)
    assert found["difference"]["account"] == "a20"
    assert found["difference"]["node-1"] == {"height": 0, "tip": world.ledger.accounts["a20"].tip.hex()}
    assert found["difference"]["node-2"] is None
    assert "a20" in world.run("verify", "--cluster", "--settle", "0", code=1).stdout


def _lags_behind(world: World, at: str) -> None:
    """Node 2 has not heard of one account."""

    def other(call: wire.CallBody) -> wire.ReplyBody | None:
        if isinstance(call, wire.AskDigest):
            digest = world.ledger.digest()
            return wire.Digest(bytes(32), digest.accounts - 1, digest.links - 1, digest.epoch, digest.totals)
        if isinstance(call, wire.AskAccounts):
            page = world.ledger.list_accounts(call, 5)  # the pages of two nodes need not end alike
            return wire.Accounts(tuple(a for a in page.accounts if a.name != at), page.more)
        return None

    world.nodes[1].fault = other


def test_replicas_are_given_time_to_become_equal(world: World) -> None:
    answers = iter([bytes(32)])

    def settling(call: wire.CallBody) -> wire.ReplyBody | None:
        old = next(answers, None) if isinstance(call, wire.AskDigest) else None
        return wire.Digest(old, 0, 0, 1, ()) if old is not None else None

    world.nodes[1].fault = settling
    assert world.json("verify", "--cluster", "--settle", "20")["ok"] is True


def test_money_out_of_nothing_is_told_even_when_all_agree(world: World) -> None:
    world.ledger.accounts["mint"].settled = 5
    found = world.json("verify", "--cluster", "--settle", "0", code=1)
    assert found["equal"] and not found["ok"]
    said = world.run("verify", "--cluster", "--settle", "0", code=1).stdout
    assert "money was made or lost" in said and "CZK 0.05" in said


def test_a_node_that_does_not_answer_is_no_agreement(world: World) -> None:
    world.portal.call(world.nodes[1].stop)
    found = world.json("verify", "--cluster", "--settle", "0", code=3)
    assert list(found["missing"]) == ["node-2"] and found["equal"] is False
    shown = world.run("verify", "--cluster", "--settle", "0", code=3).stdout
    assert f"not all nodes answered: node-2; start them (`hopchain up {world.directory}`, or " in shown
    world.ledger.accounts["mint"].settled = 5  # which weighs more
    assert "money was made or lost" in world.run("verify", "--cluster", "--settle", "0", code=1).stdout


def test_nodes_that_are_not_done_in_time_are_not_called_unreachable(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "DIGEST_S", 0.3)
    for node in world.nodes:
        node.fault = lambda call: Hang() if isinstance(call, wire.AskDigest) else None
    said = world.run("verify", "--cluster", "--settle", "0", code=3).stderr
    assert "no node answered (2 tried): node-1, node-2: no answer within 0.3 s" in said
    assert "Is the network up?" not in said


def test_a_file_that_was_cut_is_not_to_be_verified_again(cli: Cli, node_directory: Path, tmp_path: Path) -> None:
    whole = (node_directory / "node.db").read_bytes()
    cut = tmp_path / "cut.db"
    cut.write_bytes(whole[: len(whole) // 8192 * 4096])
    said = cli.run("verify", str(cut), code=1).stderr
    assert "[SQLITE_CORRUPT]" in said and "make another" in said and "run `hopchain verify`" not in said

import errno
import hashlib
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

import chain.credits
import chain.forming
import chain.keyed
import chain.load
import chain.raw
import chain.store
from chain.accounts import account_id
from chain.audit import audit
from chain.credits import find_credits
from chain.disk import open_database, snapshot, storage_errors
from chain.errors import Corruption, LocalMisuse, StorageFailure
from chain.genesis import issuer_links
from chain.link import HEADER_BYTES, LinkHash, Outcome, PostingHash, build_link, income_checksum
from chain.load import LOG_BATCH, load
from chain.needs import Income, Loaded, LogPage, Needs
from chain.raw import CHAIN_BATCH
from chain.reads import list_accounts, read_balance, read_chain, read_postings, state_digest
from chain.request import RequestId
from chain.rows import ActiveRow, Applied, Credit, Forming, ViewRow, VoteRow
from chain.rules import check_second_thread, check_tip_income
from chain.schema import PART_BITS
from chain.seal import CursorRow, LogHead, SeenRow, load_active, load_cursors, load_views, load_votes, row_checksum
from chain.store import commit, create_or_check
from tests.chain.bank import (
    GENESIS,
    NETWORK,
    NODE,
    VIEW,
    Bank,
    file_database,
    id_of,
    memory_database,
    numbered,
    view_after,
    with_history,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.db"


@pytest.fixture
def conn(path: Path) -> Iterator[sqlite3.Connection]:
    conn = file_database(path)
    yield conn
    conn.close()


@pytest.fixture
def bank(conn: sqlite3.Connection) -> Bank:
    return with_history(conn)


def nobody(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


# --- opening
# --------------------------------------------------------------------------------------------------------------


def test_the_writer_has_wal_and_full_sync_and_readers_never_write_or_checkpoint(path: Path) -> None:
    writer = file_database(path)
    reader = open_database(path, writer=False)
    for conn in (writer, reader):
        assert conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert conn.execute("PRAGMA synchronous").fetchone() == (2,)
        assert conn.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)
        assert conn.isolation_level is None
    assert writer.execute("PRAGMA secure_delete").fetchone() == (0,)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("DELETE FROM votes")
    reader.close()
    writer.close()


def test_a_database_that_cannot_have_wal_is_refused() -> None:
    with pytest.raises(StorageFailure, match=r"journal_mode=memory and synchronous=2.*local disk"):
        open_database(":memory:", writer=True)


def test_a_reader_needs_a_file(path: Path) -> None:
    with pytest.raises(LocalMisuse, match="start its node once"):
        open_database(path, writer=False)
    assert not path.exists()


def test_what_cannot_be_opened_says_what_to_do(path: Path) -> None:
    with pytest.raises(StorageFailure, match=r"SQLITE_CANTOPEN\].*directory exists"):
        open_database(path / "missing" / "node.db", writer=True)
    path.write_bytes(b"this is no database, but long enough to be taken for one" * 100)
    with pytest.raises(StorageFailure, match=r"SQLITE_NOTADB\].*no SQLite database"):
        open_database(path, writer=True)


def test_errors_without_advice_of_their_own_get_the_general_one() -> None:
    with pytest.raises(StorageFailure, match=r"trying failed: odd \[Error\]; stop the node"), storage_errors("trying"):
        raise sqlite3.Error("odd")


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EACCES, "correct owner and mode of the file"),
        (errno.EROFS, "the database is read-only"),
        (errno.EIO, "the disk reports an error"),
    ],
)
def test_what_the_system_says_of_a_file_has_the_advice_of_what_sqlite_says(number: int, advice: str) -> None:
    with pytest.raises(StorageFailure, match=advice), storage_errors("trying"):
        raise OSError(number, "it failed")


def test_snapshots_nest_and_end(conn: sqlite3.Connection) -> None:
    with snapshot(conn):
        with snapshot(conn):
            assert conn.in_transaction
        assert conn.in_transaction
    assert not conn.in_transaction


# --- whose database this is
# ------------------------------------------------------------------------------------------------


def test_a_new_database_holds_the_genesis(conn: sqlite3.Connection) -> None:
    links = issuer_links(GENESIS)
    loaded = load(conn, Needs(heads={"mint", "ezb"}, log={0}, log_head=True))
    assert loaded.log[0] == LogPage(tuple(link.hash for link in links), len(links))
    assert loaded.heads["ezb"].issuer
    assert loaded.heads["ezb"].asset == "EUR"
    assert load_views(conn) == [(1, *VIEW)]
    assert load_votes(conn) == []
    assert load_cursors(conn) == []
    assert load_active(conn) == {}
    assert audit(conn, genesis=GENESIS).ok


def test_opening_it_again_changes_nothing(path: Path, conn: sqlite3.Connection, bank: Bank) -> None:
    before = state_digest(conn)
    again = file_database(path)
    assert state_digest(again) == before
    again.close()


@pytest.mark.parametrize(
    ("genesis", "node", "view", "text"),
    [
        (msgspec.structs.replace(GENESIS, name="other"), NODE, VIEW, "belongs to network"),
        (GENESIS, bytes(20), VIEW, "belongs to node 000102030405"),
    ],
)
def test_the_database_of_another_is_refused(
    conn: sqlite3.Connection, genesis: object, node: bytes, view: tuple[bytes, bytes], text: str
) -> None:
    before = state_digest(conn)
    with pytest.raises(LocalMisuse, match=text):
        create_or_check(conn, genesis, node, view)  # type: ignore[arg-type]
    assert state_digest(conn) == before


def test_another_first_view_is_refused(conn: sqlite3.Connection) -> None:
    with pytest.raises(Corruption, match="view 1"):
        create_or_check(conn, GENESIS, NODE, (bytes(32), b"another view"))


def test_a_database_of_another_program_is_refused(path: Path) -> None:
    conn = open_database(path, writer=True)
    conn.execute("CREATE TABLE songs (name TEXT)")
    with pytest.raises(LocalMisuse, match="not one of a node"):
        create_or_check(conn, GENESIS, NODE, VIEW)
    conn.close()


def _reseal(conn: sqlite3.Connection, key: str, value: bytes) -> None:
    conn.execute("DROP TRIGGER IF EXISTS meta_update")
    conn.execute(
        "UPDATE meta SET value = ?, checksum = ? WHERE key = ?", (value, row_checksum("meta", key, value), key)
    )


def test_another_schema_version_is_refused(conn: sqlite3.Connection) -> None:
    _reseal(conn, "schema_version", b"99")
    with pytest.raises(LocalMisuse, match="version 99, this program has 6"):
        create_or_check(conn, GENESIS, NODE, VIEW)


_FIRST: Final = "(SELECT min(posting) FROM incoming)"


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("DROP TRIGGER confirmations_delete", "confirmations_delete in the schema"),
        ("INSERT INTO new_confirmations VALUES (1, x'00', 1, 1, 1)", "new_confirmations holds 1 rows"),
        ("DELETE FROM meta WHERE key = 'log'", "no meta row log"),
        ("UPDATE meta SET value = x'00' WHERE key = 'log'", "checksum does not hold"),
        ("UPDATE views SET raw = x'00'", "views row 1"),
        ("UPDATE votes SET height = height + 1", "votes row"),
        ("UPDATE cursors SET seq = seq + 1", "cursors row"),
        ("UPDATE seen SET votes = votes + 1", "seen row"),
        ("UPDATE active SET ranges = x'00'", "active row 1"),
        ("UPDATE accounts SET balance = balance + 1 WHERE name = 'bob'", "tip of account bob"),
        ("UPDATE accounts SET height = height + 1 WHERE name = 'bob'", "tip of account bob"),
        ("UPDATE accounts SET tip = zeroblob(32) WHERE name = 'bob'", "tip of account bob"),
        ("UPDATE accounts SET epoch = 7 WHERE name = 'bob'", "tip of account bob"),
        ("UPDATE accounts SET time_ms = 0 WHERE name = 'bob'", "tip of account bob"),
        ("UPDATE accounts SET asset = 'EUR' WHERE name = 'bob'", "account bob has another asset or key"),
        ("UPDATE accounts SET public_key = zeroblob(32) WHERE name = 'bob'", "account bob has another asset or key"),
        ("UPDATE accounts SET issuer = 1 WHERE name = 'bob'", "account bob .* wrongly marked as an issuer"),
        ("UPDATE accounts SET issuer = 0 WHERE name = 'mint'", "account mint .* wrongly marked as an issuer"),
        ("UPDATE accounts SET id = 99 WHERE name = 'bob'", "account bob has number 99, but link 99 of the log did not"),
        ("UPDATE accounts SET id = 4 WHERE name = 'bob'", "account bob has number 4, but link 4 of the log did not"),
        ("UPDATE accounts SET id = 11 WHERE name = 'bob'", "account bob has number 11, but link 11 of the log did not"),
        (
            "UPDATE links SET header = zeroblob(224) WHERE hash = (SELECT tip FROM accounts WHERE name = 'bob')",
            "account bob",
        ),
        ("DELETE FROM links WHERE seq = (SELECT max(seq) FROM links)", "the log ends at"),
        ("DELETE FROM incoming WHERE posting = (SELECT min(posting) FROM incoming)", "rows of incoming, not"),
        (f"UPDATE incoming SET recipient = recipient + 64 WHERE posting = {_FIRST}", "another recipient, sender"),
        (numbered(f"UPDATE incoming SET recipient = #carol WHERE posting = {_FIRST}"), "another recipient, sender"),
        (numbered(f"UPDATE incoming SET sender = #carol WHERE posting = {_FIRST}"), "another recipient, sender"),
        (f"UPDATE incoming SET amount = amount + 1 WHERE posting = {_FIRST}", "another recipient, sender or amount"),
        (f"UPDATE incoming SET posting = 1 WHERE posting = {_FIRST}", "another recipient, sender or amount"),
        (f"UPDATE confirmations SET posting = {_FIRST} WHERE id = (SELECT max(id) FROM confirmations)", "is confirmed"),
        ("DELETE FROM outcomes WHERE account = 'bob'", "outcomes, and .* rows of outcomes are here"),
    ],
)
def test_the_start_checks_what_the_node_relies_on(conn: sqlite3.Connection, bank: Bank, sql: str, text: str) -> None:
    commit(conn, [VoteRow(bank.links[-1].next_slot, "mint", 4, (1, 0, NODE)), CursorRow(NODE, 5), SeenRow(NODE, 5)])
    commit(conn, [ActiveRow(1, b"ranges")])
    create_or_check(conn, GENESIS, NODE, VIEW)
    triggers = conn.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        conn.execute(f"DROP TRIGGER {name}")
    back = [statement for name, statement in triggers if name not in sql]
    if sql.startswith("DROP"):
        sql = "SELECT 1"
    conn.execute(sql)
    for statement in back:
        conn.execute(statement)
    with pytest.raises(Corruption, match=text):
        create_or_check(conn, GENESIS, NODE, VIEW)


def test_the_genesis_copy_must_be_the_networks(conn: sqlite3.Connection) -> None:
    _reseal(conn, "genesis", b"{}")
    with pytest.raises(Corruption, match="meta row genesis"):
        create_or_check(conn, GENESIS, NODE, VIEW)


def test_a_log_row_of_another_length_is_damage(conn: sqlite3.Connection) -> None:
    _reseal(conn, "log", b"short")
    with pytest.raises(Corruption, match="5 bytes, not 48"):
        load(conn, Needs(log_head=True))


def test_damaged_pages_are_found_at_the_start(path: Path) -> None:
    conn = file_database(path)
    with_history(conn)
    (page,) = conn.execute("SELECT rootpage FROM sqlite_master WHERE name = 'postings_hash'").fetchone()
    conn.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096 + 8)
        file.write(bytes(64))
    conn = open_database(path, writer=True)
    with pytest.raises(Corruption, match="quick_check says"):
        create_or_check(conn, GENESIS, NODE, VIEW)
    conn.close()


# --- commit
# ---------------------------------------------------------------------------------------------------------------


def test_votes_and_cursors_are_replaced_and_read_back(path: Path, conn: sqlite3.Connection, bank: Bank) -> None:
    link = bank.form([bank.transfer("alice", ("bob", 1))]).link
    assert link is not None
    promise = VoteRow(link.prev_hash, "alice", link.height, (1, 2, NODE))
    vote = VoteRow(link.prev_hash, "alice", link.height, (1, 3, NODE), (1, 2, bytes(20)), link.raw)
    commit(conn, [promise, CursorRow(NODE, 1), CursorRow(bytes(20), 9)])
    assert load_votes(conn) == [promise]
    commit(conn, [vote, CursorRow(NODE, 2)])
    other = open_database(path, writer=False)
    for reader in (conn, other):
        assert load_votes(reader) == [vote]
        assert load_cursors(reader) == [CursorRow(NODE, 2), CursorRow(bytes(20), 9)][:: -1 if bytes(20) < NODE else 1]
    other.close()


def test_a_link_that_is_applied_ends_the_vote_of_its_slot(conn: sqlite3.Connection, bank: Bank) -> None:
    link = bank.form([bank.transfer("alice", ("bob", 1))]).link
    assert link is not None
    other = VoteRow(bank.links[-1].next_slot, "mint", 4, (1, 0, NODE))
    commit(conn, [VoteRow(link.prev_hash, "alice", link.height, (1, 0, NODE), (1, 0, NODE), link.raw), other])
    commit(conn, [Applied(link)])
    assert load_votes(conn) == [other]


@pytest.mark.parametrize(
    ("promised", "accepted"), [((1, 1), (1, 1)), ((1, 2), None), ((1, 2), (1, 0))], ids=["promise", "no vote", "vote"]
)
def test_a_vote_that_goes_back_is_refused(
    conn: sqlite3.Connection, bank: Bank, promised: tuple[int, int], accepted: tuple[int, int] | None
) -> None:
    link = bank.form([bank.transfer("alice", ("bob", 1))]).link
    assert link is not None
    vote = VoteRow(link.prev_hash, "alice", link.height, (1, 2, NODE), (1, 1, NODE), link.raw)
    commit(conn, [vote])
    commit(conn, [vote])
    lower = (*accepted, NODE) if accepted else None
    back = msgspec.structs.replace(vote, promised=(*promised, NODE), accepted=lower, link=link.raw if lower else None)
    with pytest.raises(Corruption, match="refuses one of 1 votes: votes: a ballot never goes back"):
        commit(conn, [back])
    assert load_votes(conn) == [vote]
    commit(conn, [Applied(link)])
    assert load_votes(conn) == []


def test_views_are_installed_one_by_one_and_end_the_vote_on_them(path: Path, conn: sqlite3.Connection) -> None:
    second = view_after(2)
    third = view_after(3, second.hash)
    promised = VoteRow(LinkHash(VIEW[0]), "", 2, (1, 2, NODE))
    vote = VoteRow(LinkHash(VIEW[0]), "", 2, (1, 2, NODE), (1, 2, NODE), second.raw)
    next_vote = VoteRow(LinkHash(second.hash), "", 3, (2, 1, NODE), (2, 1, NODE), third.raw)
    commit(conn, [promised])
    commit(conn, [vote])
    assert load_votes(conn) == [vote]
    assert audit(conn).ok
    commit(conn, [second, next_vote])
    assert load_votes(conn) == [next_vote]
    assert audit(conn).ok
    commit(conn, [third, view_after(4, third.hash)])
    assert load_votes(conn) == []
    assert audit(conn).ok
    again = file_database(path)
    assert load_views(again) == [
        (1, *VIEW),
        (2, second.hash, second.raw),
        (3, third.hash, third.raw),
        (4, view_after(4).hash, view_after(4).raw),
    ]
    again.close()


@pytest.mark.parametrize(
    ("view", "text"),
    [
        (view_after(2), r"view 2 .*numbered one after the other"),
        (msgspec.structs.replace(view_after(2), raw=b"another"), r"view 2 .*numbered one after the other"),
        (view_after(1), r"view 1 .*follows view .*, and epoch 0 is another one here or missing"),
        (view_after(4, view_after(3).hash), r"view 4 .*, and epoch 3 is another one here or missing"),
        (view_after(3, VIEW[0]), r"view 3 .*, and epoch 2 is another one here or missing"),
    ],
    ids=["twice", "another of its epoch", "the first again", "a gap", "of another branch"],
)
def test_a_view_that_does_not_follow_is_refused_and_nothing_is_written(
    conn: sqlite3.Connection, view: ViewRow, text: str
) -> None:
    vote = VoteRow(LinkHash(view.prev_hash), "", view.epoch, (1, 2, NODE))
    commit(conn, [view_after(2), vote])
    before = load_views(conn)
    with pytest.raises(Corruption, match=text):
        commit(conn, [CursorRow(NODE, 1), view])
    assert load_views(conn) == before
    assert load_votes(conn) == [vote]
    assert load_cursors(conn) == []


def test_the_active_ranges_of_an_epoch_are_replaced_and_read_back(path: Path, conn: sqlite3.Connection) -> None:
    commit(conn, [ActiveRow(1, b"all"), view_after(2), ActiveRow(2, b"")])
    assert load_active(conn) == {1: b"all", 2: b""}
    commit(conn, [ActiveRow(2, b"some"), ActiveRow(2, b"more")])
    again = file_database(path)
    assert load_active(again) == {1: b"all", 2: b"more"}
    assert audit(again).ok
    again.close()


def test_the_votes_of_a_sync_and_its_mark_come_together(conn: sqlite3.Connection, bank: Bank) -> None:
    """Design R8: one transaction, so a commit that fails at its end has written neither."""
    vote = VoteRow(bank.links[-1].next_slot, "mint", 4, (2, 0, NODE))
    with pytest.raises(Corruption, match="view 9"):
        commit(conn, [vote, ActiveRow(1, b"all"), view_after(9)])
    assert load_votes(conn) == []
    assert load_active(conn) == {}


def test_writes_happen_in_order(conn: sqlite3.Connection, bank: Bank) -> None:
    """A child and its parent, a vote before and after the link of its slot, all in one transaction."""
    shadow = memory_database()
    for old in bank.links:
        commit(shadow, [Applied(old)])
    first = bank.pay("mint", ("bob", 7))
    second = bank.pay("bob", ("carol", 8))
    before = VoteRow(first.prev_hash, "mint", first.height, (1, 0, NODE))
    after = VoteRow(second.prev_hash, "bob", second.height, (9, 0, NODE))
    commit(shadow, [before, Applied(first), Applied(second), after])
    assert load_votes(shadow) == [after]
    assert state_digest(shadow) == state_digest(conn)
    shadow.close()


def test_a_whole_history_is_written_at_once(conn: sqlite3.Connection, bank: Bank) -> None:
    """Accounts opened, paid and paying, and what they pay confirmed, all in one transaction."""
    shadow = memory_database()
    commit(shadow, [Applied(link) for link in bank.links])
    assert state_digest(shadow) == state_digest(conn)
    assert audit(shadow).ok
    for table in ("accounts", "postings", "confirmations", "incoming", "threads"):
        query = f"SELECT * FROM {table} ORDER BY 1, 2, 3"
        assert shadow.execute(query).fetchall() == conn.execute(query).fetchall()
    shadow.close()


def test_nothing_to_write_begins_no_transaction(conn: sqlite3.Connection) -> None:
    conn.execute("BEGIN")
    commit(conn, [])
    conn.execute("ROLLBACK")


def test_a_refused_link_leaves_nothing_behind_and_names_itself(conn: sqlite3.Connection, bank: Bank) -> None:
    before = state_digest(conn)
    good = bank.form([bank.transfer("bob", ("carol", 2))]).link
    link = bank.form([bank.transfer("alice", ("bob", 1))]).link
    assert link is not None
    assert good is not None
    wrong = build_link(
        NETWORK, "alice", link.height, link.prev_hash, link.balance + 1, 1, link.time_ms, link.entries, link.confirmed
    )
    with pytest.raises(Corruption, match=rf"link {link.height} of alice .*balance is not.*hopchain verify"):
        commit(conn, [CursorRow(NODE, 1), Applied(good), Applied(wrong)])
    assert not conn.in_transaction
    assert state_digest(conn) == before
    assert load_cursors(conn) == []
    assert audit(conn).ok
    commit(conn, [Applied(good), Applied(link)])


def test_a_link_is_applied_once(conn: sqlite3.Connection, bank: Bank) -> None:
    with pytest.raises(Corruption, match="already there"):
        commit(conn, [Applied(bank.links[-1])])


def test_the_same_link_twice_in_one_turn_cannot_be_staged(conn: sqlite3.Connection, bank: Bank) -> None:
    link = bank.form([bank.transfer("alice", ("bob", 1))]).link
    assert link is not None
    with pytest.raises(Corruption, match="2 links cannot be staged"):
        commit(conn, [Applied(link), Applied(link)])
    assert audit(conn).ok


def test_a_full_disk_ends_the_commit_with_advice_and_changes_nothing(conn: sqlite3.Connection, bank: Bank) -> None:
    before = state_digest(conn)
    (pages,) = conn.execute("PRAGMA page_count").fetchone()
    conn.execute(f"PRAGMA max_page_count={pages}")
    link = bank.form([bank.transfer("mint", *[(name, 1) for name in ("alice", "bob", "carol")] * 400)]).link
    assert link is not None
    with pytest.raises(StorageFailure, match=r"SQLITE_FULL\]; the disk is full: free some space"):
        commit(conn, [CursorRow(NODE, 1), Applied(link)])
    assert not conn.in_transaction
    assert state_digest(conn) == before
    assert load_cursors(conn) == []
    conn.execute("PRAGMA max_page_count=1000000")
    commit(conn, [Applied(link)])
    assert audit(conn).ok


def test_a_second_writer_is_told_apart_from_a_broken_disk(path: Path, conn: sqlite3.Connection) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    conn.execute("PRAGMA busy_timeout=0")
    with pytest.raises(StorageFailure, match=r"SQLITE_BUSY\]; another process writes"):
        commit(conn, [CursorRow(NODE, 1)])
    other.close()
    commit(conn, [CursorRow(NODE, 1)])


def test_a_connection_that_cannot_be_read_is_a_storage_failure(path: Path) -> None:
    conn = file_database(path)
    conn.close()
    with pytest.raises(StorageFailure, match="reading the database failed"):
        load(conn, Needs(heads={"alice"}))


class BrokenDisk(sqlite3.Connection):
    """Fails when a transaction is to end, either way."""

    broken = False

    def execute(self, sql: str, *args: object) -> sqlite3.Cursor:
        if self.broken and sql in ("COMMIT", "ROLLBACK"):
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(sql, *args)  # type: ignore[arg-type]


def test_when_even_the_rollback_fails_the_connection_is_closed_and_nothing_is_retried(path: Path) -> None:
    file_database(path).close()
    conn = sqlite3.connect(path, isolation_level=None, factory=BrokenDisk)
    conn.broken = True
    with pytest.raises(StorageFailure, match="writing 1 rows failed: disk I/O error"):
        commit(conn, [CursorRow(NODE, 1)])
    with pytest.raises(StorageFailure, match="closed"):
        load(conn, Needs(heads={"alice"}))
    again = file_database(path)
    assert load_cursors(again) == []
    again.close()


def test_what_is_not_committed_is_not_there_after_a_crash(path: Path, tmp_path: Path) -> None:
    """The files as they are on disk in the middle of a transaction, and after its commit."""
    conn = file_database(path)
    bank = Bank(conn)
    bank.open("alice")
    conn.execute("BEGIN IMMEDIATE")
    conn.execute("INSERT INTO cursors VALUES (?, 1, x'00')", (NODE,))
    crashed = tmp_path / "crashed.db"
    for suffix in ("", "-wal"):
        Path(f"{crashed}{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
    conn.execute("ROLLBACK")
    again = file_database(crashed)
    assert state_digest(again) == state_digest(conn)
    assert load_cursors(again) == []
    again.close()
    conn.close()


# --- load
# -----------------------------------------------------------------------------------------------------------------


def test_no_needs_load_nothing(conn: sqlite3.Connection) -> None:
    assert load(conn, Needs()) == Loaded()


def test_absent_keys_are_absent(bank: Bank) -> None:
    needs = Needs(
        heads={"nobody"},
        outcomes={("alice", RequestId(nobody("a")))},
        postings={"alice": {PostingHash(nobody("b"))}, "nobody": {PostingHash(nobody("b"))}},
        links_at={("alice", 99), ("nobody", 0)},
        chains={("nobody", 0)},
        accounts_of={LinkHash(nobody("c"))},
        wanted_chains={("nobody", 0): None},
        wanted_links={LinkHash(nobody("c")): None},
        wanted_postings={PostingHash(nobody("d")): None},
        known={LinkHash(nobody("e"))},
        forming={"nobody"},
        income={"nobody"},
        log={10_000},
    )
    assert load(bank.conn, needs) == Loaded(
        chains={("nobody", 0): ()},
        wanted_chains={("nobody", 0): ()},
        forming={"nobody": Forming(None, b"", (), (), 0)},
        income={"nobody": Income(())},
        log={10_000: LogPage((), 10_000)},
    )


def test_a_link_above_its_head_is_not_looked_for(bank: Bank) -> None:
    asked: list[str] = []
    tip = load(bank.conn, Needs(heads={"alice"})).heads["alice"]
    ahead = {("alice", tip.height + 1), ("nobody", 0)}
    bank.conn.set_trace_callback(asked.append)
    assert load(bank.conn, Needs(heads={"alice", "nobody"}, links_at=ahead)).links_at == {}
    assert len(asked) == 1, asked
    here = load(bank.conn, Needs(heads={"alice", "nobody"}, links_at=ahead | {("alice", tip.height)})).links_at
    assert here == {("alice", tip.height): tip.tip}


def test_everything_is_loaded_by_its_key(bank: Bank) -> None:
    links = bank.links
    postings = [(link, posting) for link in links for _, posting, _, _ in link.postings()]
    by_recipient: dict[str, set[PostingHash]] = {}
    for link in links:
        for _, hash_, posting, _ in link.postings():
            by_recipient.setdefault(posting.recipient, set()).add(hash_)
    outcomes = [(link, request, outcome) for link in links for request, outcome in link.outcomes()]
    needs = Needs(
        heads={link.account for link in links},
        outcomes={(link.account, request) for link, request, _ in outcomes},
        postings=by_recipient,
        links_at={(link.account, link.height) for link in links},
        accounts_of={link.hash for link in links},
        wanted_links=dict.fromkeys(link.hash for link in links),
        wanted_postings=dict.fromkeys(posting for _, posting in postings),
        known={link.hash for link in links} | {LinkHash(nobody("x"))},
    )
    loaded = load(bank.conn, needs)
    tips = {link.account: link for link in links}
    assert {name: (head.tip, head.height, head.balance) for name, head in loaded.heads.items()} == {
        name: (link.hash, link.height, link.balance) for name, link in tips.items()
    }
    first: dict[tuple[str, RequestId], tuple[Outcome, LinkHash, int, int]] = {}
    for link, request, outcome in outcomes:
        first.setdefault((link.account, request), (outcome, link.hash, link.height, link.balance))
    assert {key: (o.outcome, o.link_hash, o.height, o.balance) for key, o in loaded.outcomes.items()} == first
    assert loaded.links_at == {(link.account, link.height): link.hash for link in links}
    assert loaded.accounts_of == {link.hash: link.account for link in links}
    assert loaded.wanted_links == {link.hash: link.raw for link in links}
    assert loaded.wanted_postings == {posting: link.raw for link, posting in postings}
    assert not loaded.cut
    assert loaded.known == {link.hash for link in links}
    confirmations = {posting: link.hash for link in links for posting in link.confirmed}
    ids = dict(bank.conn.execute("SELECT hash, id FROM transfers"))
    opened = dict(bank.conn.execute("SELECT account, seq FROM links WHERE height = 0"))
    for link in links:
        paid, taken = read_postings(bank.conn, link.hash)
        rows = {row.hash: row for row in paid}
        assert tuple(rows) == link.posting_hashes
        assert tuple(row.hash for row in taken) == link.confirmed
        assert all(row.confirmation == link.hash for row in taken)
        for number, hash_, posting, _ in link.postings():
            confirmation = confirmations.get(hash_)
            assert loaded.postings[hash_] == Credit(
                hash_, link.account, posting.recipient, posting.amount, ids[hash_], confirmation, opened[link.account]
            )
            row = rows[hash_]
            assert (row.link_hash, row.number, row.sender, row.height, row.time_ms) == (
                link.hash, number, link.account, link.height, link.time_ms,
            )  # fmt: skip
            assert (row.recipient, row.amount, row.memo) == (posting.recipient, posting.amount, posting.memo)
            assert row.confirmation == confirmation
            assert (row.prev_confirmed_hash is None) is (confirmation is None)


@pytest.mark.parametrize("many", [False, True])
def test_a_posting_comes_with_the_one_that_waits_before_it(many: bool) -> None:
    """In its stream, and however it is found: among the first that wait, the oldest, by its hash."""
    bank = Bank(memory_database())
    bank.open("alice", "bob")
    first, second = (bank.pay("mint", ("alice", 1), ("alice", 2), ("bob", 3)) for _ in range(2))
    other = bank.pay("mint2", ("alice", 4), ("bob", 5))
    if many:
        for _ in range(2):
            bank.pay("mint2", *[("alice", 1)] * 50)
    ids = dict(bank.conn.execute("SELECT hash, id FROM transfers"))
    a, b, c, d = (*first.posting_hashes[:2], *second.posting_hashes[:2])
    before = {a: 0, b: ids[a], c: ids[b], d: ids[c], other.posting_hashes[0]: 0}
    loaded = load(bank.conn, Needs(postings={"alice": set(before)}))
    assert {hash_: credit.before for hash_, credit in loaded.postings.items()} == before
    assert {hash_: credit.before for hash_, credit in find_credits(bank.conn, set(before)).items()} == before
    assert not loaded.ends
    taken = load(bank.conn, Needs(forming={"alice"})).forming["alice"].incoming
    assert {i.posting.hash: i.posting.before for i in taken if i.posting.hash in before} == before
    bank.decide(bank.transfer("alice", ("bob", 1)))
    assert {credit.before for credit in find_credits(bank.conn, set(before)).values()} == {0}


def test_a_posting_of_this_turn_comes_after_what_waits_of_its_stream(bank: Bank) -> None:
    waiting = bank.pay("mint", ("alice", 1), ("alice", 2), ("bob", 3))
    made = bank.form([bank.transfer("mint", ("alice", 4), ("bob", 5))]).link
    assert made is not None
    to_alice, to_bob = made.posting_hashes
    loaded = load(bank.conn, Needs(postings={"alice": {to_alice}}, made={to_alice, to_bob}))
    loaded.note_made(made)
    (last,) = bank.conn.execute("SELECT id FROM postings WHERE hash = ?", (waiting.posting_hashes[1],)).fetchone()
    for posting, before in ((to_alice, last), (to_bob, 0)):
        credit = loaded.posting(posting)
        assert credit is not None and (credit.id, credit.before) == (0, before)


def test_what_is_read_for_others_is_bounded_and_a_link_is_read_once(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many of its postings are asked for. What is asked for first comes first, and one link always."""
    links = [bank.pay("mint", ("alice", 1), ("bob", 1), ("bob", 2)) for _ in range(4)]
    size = max(len(link.raw) for link in links)
    monkeypatch.setattr(chain.raw, "WANTED_BYTES", 2 * size)
    postings = dict.fromkeys(posting for link in reversed(links) for posting in link.posting_hashes)
    for asked, here in ((links, 2), (links[1:3], 2), (links[:1], 1)):
        loaded = load(bank.conn, Needs(wanted_links=dict.fromkeys(link.hash for link in reversed(asked))))
        assert list(loaded.wanted_links) == [link.hash for link in reversed(asked)][:here]
        assert loaded.cut == {link.hash for link in asked[: len(asked) - here]}
    loaded = load(bank.conn, Needs(wanted_postings=postings))
    assert set(loaded.wanted_postings) == {p for link in links[2:] for p in link.posting_hashes}
    assert loaded.cut == {p for link in links[:2] for p in link.posting_hashes}
    assert len({id(raw) for raw in loaded.wanted_postings.values()}) == 2
    chains = {("mint", links[0].height): None, ("mint", links[3].height): None}
    loaded = load(bank.conn, Needs(wanted_chains=chains))
    assert (loaded.cut, list(loaded.wanted_chains)) == ({("mint", links[3].height)}, [("mint", links[0].height)])
    monkeypatch.setattr(chain.raw, "WANTED_BYTES", 1)
    assert len(load(bank.conn, Needs(wanted_postings=postings)).wanted_postings) == 3


def _plans(conn: sqlite3.Connection, work: Callable[[], object]) -> dict[str, list[str]]:
    """Every query that the work runs, with SQLite's plan of it."""
    queries: set[str] = set()
    conn.set_trace_callback(queries.add)
    work()
    conn.set_trace_callback(None)
    chosen = [query for query in queries if query.startswith(("SELECT", "WITH"))]
    return {query: [row[3] for row in conn.execute(f"EXPLAIN QUERY PLAN {query}")] for query in chosen}


def test_what_a_turn_reads_is_found_in_an_index(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the keys themselves are gone through, and what a query has put together by itself."""
    link, names = bank.links[-1], {"alice", "bob", "carol", "nobody"}
    posting = bank.links[-1].posting_hashes[0]
    needs = Needs(
        heads=names | {"erik"},
        outcomes={(link.account, id_of(link.entries[0].request))},
        postings={"alice": {posting, bank.links[4].posting_hashes[0]}},
        links_at={(link.account, link.height)},
        chains={("alice", 1)},
        accounts_of={link.hash},
        wanted_chains={("alice", 1): None},
        wanted_links={link.hash: None},
        wanted_postings={posting: None},
        known={link.hash},
        forming=names,
        forming_few=names | {"erik"},
        income={"alice", "nobody"},
        log={3},
        log_head=True,
    )

    def work() -> None:
        for few in (chain.forming.FEW, 0):
            monkeypatch.setattr(chain.forming, "FEW", few)
            load(bank.conn, needs)
        read_balance(bank.conn, "alice")
        read_chain(bank.conn, "alice")
        list_accounts(bank.conn)
        account_id(bank.conn, "alice")

    plans = _plans(bank.conn, work)
    assert len(plans) > 20
    for query, plan in plans.items():
        made = {step.split()[1] for step in plan if step.startswith(("CO-ROUTINE", "MATERIALIZE"))}
        made |= {"r"} if any("postings_hash (part<?)" in step for step in plan) else set()  # the parts of the index
        scanned = [step for step in plan if step.startswith("SCAN") and step.split()[1] not in made | {"k", "CONSTANT"}]
        assert all(re.fullmatch(r"SCAN \d+ CONSTANT ROWS", step) for step in scanned), (query, plan)


def test_the_view_of_transfers_says_the_same_as_the_rows(bank: Bank) -> None:
    """`transfers` keeps the fields of the method, under their names (design section 2)."""
    columns = "prev_hash, sender, recipient, amount, balance, confirmation, incoming_checksum, prev_confirmed_hash"
    found = {hash_: row for hash_, *row in bank.conn.execute(f"SELECT hash, {columns} FROM transfers")}
    confirmed_by = {posting: link.hash for link in bank.links for posting in link.confirmed}
    streams: dict[tuple[str, str], bytes] = {}
    for link in bank.links:
        for _, hash_, posting, _ in link.postings():
            confirmation = confirmed_by.get(hash_)
            before = streams.get((link.account, posting.recipient), bytes(32))
            assert found.pop(hash_) == [
                link.prev_hash, link.account, posting.recipient, posting.amount, link.balance, confirmation,
                link.incoming_checksum, None if confirmation is None else before,
            ]  # fmt: skip
            streams[link.account, posting.recipient] = hash_
    assert not found


def test_postings_that_stand_far_back_are_found_by_their_hash(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """An account with many more incoming postings than its link confirms: two looks do not find all."""
    made = bank.pay("mint", *[("alice", amount) for amount in range(1, 9)])
    monkeypatch.setattr(chain.credits, "_SCANNED", 0)
    last = made.posting_hashes[-1]
    assert load(bank.conn, Needs(postings={"alice": {last}})).postings[last].amount == 8
    asked: list[object] = []
    monkeypatch.setattr(chain.credits, "find_credits", lambda _conn, hashes: asked.append(hashes) or {})
    load(bank.conn, Needs(postings={"alice": set(made.posting_hashes)}))
    assert asked, "alice had other incoming postings before these"
    monkeypatch.setattr(chain.credits, "_SCANNED", 64)
    asked.clear()
    assert len(load(bank.conn, Needs(postings={"alice": set(made.posting_hashes)})).postings) == 8
    assert not asked


def test_what_links_of_the_same_turn_make_is_not_looked_for_by_its_hash(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither when it is read nor when it is written: a search goes through all parts of the index, and would find
    nothing."""
    asked: list[set[PostingHash]] = []
    search = chain.store.find_credits

    def note(conn: sqlite3.Connection, hashes: set[PostingHash]) -> dict[PostingHash, Credit]:
        asked.append(set(hashes))
        return search(conn, hashes)

    monkeypatch.setattr(chain.credits, "find_credits", note)
    monkeypatch.setattr(chain.store, "find_credits", note)
    shadow = memory_database()
    for link in bank.links:
        commit(shadow, [Applied(link)])
    made = bank.pay("bob", ("carol", 3))
    taken = bank.pay("carol", ("bob", 1))
    assert made.posting_hashes[0] in taken.confirmed
    asked.clear()
    wanted = {"carol": set(taken.confirmed)}
    there = load(shadow, Needs(postings=wanted, made=set(made.posting_hashes))).postings
    assert set(there) == set(taken.confirmed) - set(made.posting_hashes)
    commit(shadow, [Applied(made), Applied(taken)])
    assert not [hashes for hashes in asked if hashes & set(made.posting_hashes)]
    assert state_digest(shadow) == state_digest(bank.conn)
    load(shadow, Needs(postings=wanted))
    assert asked[-1] == set(taken.confirmed), "what is not made in this turn is looked for"
    shadow.close()


def test_two_accounts_with_one_number_are_refused_before_a_link_is_formed(bank: Bank) -> None:
    """Else what waits for one of them would be counted for both."""
    bank.conn.execute("DROP TRIGGER accounts_update")
    bank.conn.execute(numbered("UPDATE accounts SET id = #alice WHERE name = 'carol'"))
    with pytest.raises(
        Corruption, match=r"accounts (alice and carol|carol and alice) both have number \d+.*hopchain verify"
    ):
        load(bank.conn, Needs(forming={"alice", "carol"}))


def test_of_many_that_wait_the_oldest_are_found_in_a_second_look(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link takes up the oldest of all senders; in `incoming` they stand sender by sender."""
    late, early = "bob", "carol"  # bob was opened first, so his postings stand before carol's
    bank.pay(late, ("alice", 9))
    first = bank.pay(early, ("alice", 8)).posting_hashes[0]
    for amount in range(7, 2, -1):
        bank.pay(late, ("alice", amount))
    waiting = dict(bank.conn.execute("SELECT hash, posting FROM waiting WHERE recipient = 'alice'"))
    oldest = set(sorted(waiting, key=lambda posting: waiting[posting])[:4])
    assert first in oldest
    monkeypatch.setattr(chain.credits, "_SCANNED", 0)
    monkeypatch.setattr(chain.credits, "find_credits", lambda _conn, hashes: pytest.fail(f"{len(hashes)} by hash"))
    by_sender = [row[0] for row in bank.conn.execute(chain.credits._WAITING, ("alice", 4))]
    assert not oldest <= set(by_sender)
    found = load(bank.conn, Needs(postings={"alice": oldest})).postings
    assert set(found) == oldest
    assert found[first].sender == early
    monkeypatch.undo()
    looks: list[str] = []
    bank.conn.set_trace_callback(looks.append)
    load(bank.conn, Needs(postings={"alice": {*by_sender[:4]}}))  # all found in the first look
    load(bank.conn, Needs(postings={"alice": {PostingHash(nobody("x"))}}))  # the first look saw all that wait
    monkeypatch.setattr(chain.credits, "_SCANNED", 0)
    load(bank.conn, Needs(postings={"alice": {*by_sender[:4]}}))
    assert not any("ORDER BY posting" in look for look in looks)


def test_a_posting_is_found_by_its_hash_in_every_part_of_the_index(conn: sqlite3.Connection) -> None:
    bank = Bank(conn)
    bank.open("alice", "bob")
    many = 1 << PART_BITS
    links = [bank.pay("mint", *[("alice", 1)] * 8_000) for _ in range(2 * many // 8_000 + 2)]
    before = [index * 8_000 for index in range(len(links))]
    assert before == [row[0] for row in conn.execute("SELECT postings_before FROM links WHERE posting_count > 0")]
    parts = conn.execute("SELECT id >> 14, min(part), max(part) FROM postings GROUP BY 1").fetchall()
    assert [part for _, part, _ in parts] == [count // many for count in before]
    assert all(first == last for _, first, last in parts)  # a link's postings are all in one
    assert [part for (part,) in conn.execute("SELECT part FROM parts")] == [2, 1, 0]
    few = bank.pay("mint", ("alice", 1))  # not staged as a batch
    assert conn.execute("SELECT part FROM postings WHERE hash = ?", few.posting_hashes).fetchall() == [(2,)]
    links.append(few)
    wanted = {posting for link in links for posting in (link.posting_hashes[0], link.posting_hashes[-1])}
    unknown = PostingHash(nobody("x"))
    assert set(find_credits(conn, wanted | {unknown})) == wanted
    for link in links:
        ends = (link.posting_hashes[0], link.posting_hashes[-1])
        found = load(conn, Needs(wanted_postings=dict.fromkeys(ends)))
        assert found.wanted_postings == dict.fromkeys(ends, link.raw)
    assert audit(conn).ok
    conn.execute("DROP TRIGGER postings_update")
    conn.execute("UPDATE postings SET part = 1 << 40 WHERE id = (SELECT max(id) FROM postings)")
    assert set(find_credits(conn, wanted | {unknown})) == wanted  # and in no more steps than there are parts


def test_a_link_is_read_with_its_rows_or_not_at_all(bank: Bank) -> None:
    link = next(link for link in bank.links if link.confirmed and len(link.posting_hashes) > 1)
    assert read_postings(bank.conn, LinkHash(nobody("x"))) == ((), ())
    assert read_chain(bank.conn, link.account, link.height, 1)[0].hash == link.hash
    _drop_guards(bank.conn)
    for statement in (
        "DELETE FROM postings WHERE hash = ?",
        "DELETE FROM confirmations WHERE posting = (SELECT id FROM postings WHERE hash = ?)",
        "UPDATE postings SET hash = zeroblob(32) WHERE hash = ?",
    ):
        posting = link.confirmed[0] if "confirmations" in statement else link.posting_hashes[1]
        bank.conn.execute("BEGIN")
        assert bank.conn.execute(statement, (posting,)).rowcount == 1
        with pytest.raises(Corruption, match=rf"link {link.height} of {link.account} .* rows are here, or other ones"):
            read_chain(bank.conn, link.account, link.height, 1)
        bank.conn.execute("ROLLBACK")


def test_a_posting_to_somebody_else_is_no_income_of_the_account(bank: Bank) -> None:
    made = bank.pay("mint", ("carol", 7)).posting_hashes[0]
    assert load(bank.conn, Needs(postings={"alice": {made}})).postings[made].recipient == "carol"


def test_an_id_that_another_account_cancelled_is_not_recorded_for_its_owner(conn: sqlite3.Connection) -> None:
    """Anybody may cancel any id; it must never stop a request of somebody else."""
    bank = Bank(conn)
    bank.open("alice", "bob", "eve")
    bank.pay("mint", ("alice", 10))
    rent = bank.transfer("alice", ("bob", 10))
    bank.decide(bank.cancellation("eve", id_of(rent)))
    loaded = load(conn, Needs(outcomes={("alice", id_of(rent)), ("eve", id_of(rent))}))
    assert {account: row.outcome for (account, _), row in loaded.outcomes.items()} == {"eve": Outcome.CANCELLED}
    assert [entry.outcome for entry in bank.decide(rent).entries] == [Outcome.COMPLETED]
    assert audit(conn).ok


def test_a_stream_of_many_postings_is_confirmed_and_verified_in_steps_that_grow_with_their_number(
    conn: sqlite3.Connection,
) -> None:
    """One payer, one payee, one link: looking for the posting before each by walking over all the others took
    seconds."""
    bank = Bank(conn)
    steps = [0]

    def count() -> int:
        steps[0] += 1
        return 0

    bank.open("alice", "bob")
    conn.set_progress_handler(count, 1000)
    took = []
    for postings in (1_000, 4_000):
        bank.pay("mint", *[("alice", 1)] * postings)
        before = steps[0]
        assert len(bank.pay("alice", ("bob", 1)).confirmed) == postings
        assert audit(conn).ok
        took.append(steps[0] - before)
    conn.set_progress_handler(None, 0)
    assert took[1] < 6 * took[0]  # the audit walks over both links


def test_many_keys_take_many_queries(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain.keyed, "_KEYS_PER_QUERY", 3)
    known = {link.hash for link in bank.links}
    assert load(bank.conn, Needs(known=known | {LinkHash(nobody(str(i))) for i in range(10)})).known == known


def test_chains_come_in_batches(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    raws = [link.raw for link in bank.links if link.account == "alice"]
    key = ("alice", 1)
    assert CHAIN_BATCH == 256
    assert load(bank.conn, Needs(chains={key})).chains[key] == tuple(raws[1:])
    monkeypatch.setattr(chain.raw, "CHAIN_BATCH", 2)
    assert load(bank.conn, Needs(chains={key})).chains[key] == tuple(raws[1:3])
    monkeypatch.setattr(chain.raw, "CHAIN_BATCH_BYTES", len(raws[1]) + len(raws[2]) - 1)
    assert load(bank.conn, Needs(chains={key})).chains[key] == (raws[1],)
    monkeypatch.setattr(chain.raw, "CHAIN_BATCH_BYTES", 1)
    assert load(bank.conn, Needs(chains={key})).chains[key] == (raws[1],)  # always one, or nobody gets further


def test_the_log_is_read_in_pages_and_its_head_is_what_they_hold(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LOG_BATCH == 4096
    monkeypatch.setattr(chain.load, "LOG_BATCH", 4)
    hashes: list[LinkHash] = []
    while True:
        page = load(bank.conn, Needs(log={len(hashes)})).log[len(hashes)]
        if not page.hashes:
            break
        hashes += page.hashes
        assert page.last_seq == len(hashes)
    assert hashes == [link.hash for link in issuer_links(GENESIS)] + [link.hash for link in bank.links]
    xor = 0
    for one in hashes:
        xor ^= int.from_bytes(one, "big")
    head = load(bank.conn, Needs(log_head=True)).log_head
    assert head == LogHead(len(hashes), len(hashes), xor.to_bytes(32, "big"))


def test_income_is_told_by_sender(bank: Bank) -> None:
    bank.pay("mint", ("alice", 5), ("carol", 6))
    mint, ezb = bank.pay("mint", ("alice", 9)), bank.pay("ezb", ("erik", 1))
    income = load(bank.conn, Needs(income={"alice", "erik"})).income
    assert income["alice"].senders == (("carol", 1), ("mint", mint.height))
    assert income["erik"].senders == (("ezb", ezb.height),)


def test_forming_is_everything_that_the_next_link_depends_on(bank: Bank) -> None:
    bank.pay("mint", ("alice", 5), ("alice", 6))
    forming = load(bank.conn, Needs(forming={"alice", "bob", "nobody"})).forming
    assert set(forming) == {"alice", "bob", "nobody"}
    alice = forming["alice"]
    tip = [link for link in bank.links if link.account == "alice"][-1]
    assert alice.head is not None
    assert alice.head.tip == tip.hash
    assert alice.tip_income == tip.confirmed
    assert alice.tip_checksum == income_checksum(tip.confirmed)
    assert [one.posting.amount for one in alice.incoming] == [3, 11, 5, 6]
    assert alice.incoming_count == 4
    raws = {link.hash: link.raw for link in bank.links}
    assert all(one.link_header == raws[one.link_hash][:HEADER_BYTES] for one in alice.incoming)
    assert alice.incoming[0].before is None
    assert alice.incoming[1].before is not None
    assert alice.incoming[1].before.amount == 40
    assert alice.incoming[1].before.confirmation is not None
    assert alice.incoming[3].before == alice.incoming[2].posting
    ages = [one.age for one in alice.incoming]
    assert ages == sorted(ages)
    for one in forming.values():
        check_tip_income(one)
        check_second_thread(one)


def test_forming_is_bounded_but_counts_everything(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain.forming, "MAX_CONFIRMED", 2)
    bank.pay("mint", ("alice", 5), ("alice", 6))
    alice = load(bank.conn, Needs(forming={"alice"})).forming["alice"]
    assert [one.posting.amount for one in alice.incoming] == [3, 11]
    assert alice.incoming_count == 4
    income = load(bank.conn, Needs(forming={"alice"}, income={"alice"})).income
    assert income == load(bank.conn, Needs(income={"alice"})).income  # of all four, though two were read


_FIRST = "(SELECT id FROM transfers WHERE sender = 'mint' AND recipient = 'alice' ORDER BY id LIMIT 1)"
_BACK = f"INSERT INTO incoming SELECT #alice, #mint, id, amount FROM transfers WHERE id = {_FIRST}"


def _drop_guards(conn: sqlite3.Connection) -> None:
    for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        conn.execute(f"DROP TRIGGER {name}")


@pytest.mark.parametrize(
    ("statements", "text"),
    [
        ([_BACK], "was confirmed before and is incoming again"),
        (
            [_BACK, f"DELETE FROM confirmations WHERE posting = {_FIRST}"],
            "was confirmed and its confirmation was taken back",
        ),
        ([_BACK, "DELETE FROM threads"], "was confirmed before and is incoming again"),
    ],
)
def test_a_confirmation_that_was_taken_back_is_refused_and_never_counted_again(
    bank: Bank, statements: list[str], text: str
) -> None:
    """For the first posting of a stream whose later ones are confirmed."""
    _drop_guards(bank.conn)
    for statement in statements:
        assert bank.conn.execute(numbered(statement)).rowcount > 0
    with pytest.raises(Corruption, match=rf"posting .* of 1000 from mint .* to alice is refused: .*{text}"):
        bank.form([bank.transfer("alice", ("bob", 1))])


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("UPDATE incoming SET amount = amount + 1 WHERE recipient = #alice", "is not what its link says"),
        ("UPDATE incoming SET sender = #bob WHERE recipient = #alice AND sender = #carol", "is not what its link says"),
        ("UPDATE incoming SET sender = 99 WHERE recipient = #alice AND sender = #carol", "is not what its link says"),
        (
            "UPDATE incoming SET sender = (SELECT seq FROM links WHERE account = 'carol' AND height = 1) "
            "WHERE recipient = #alice AND sender = #carol",
            "is not what its link says",
        ),
        ("UPDATE incoming SET recipient = #alice WHERE recipient = #carol", "is not what its link says"),
        ("UPDATE accounts SET id = #carol WHERE name = 'alice'", "is not what its link says"),
        ("UPDATE threads SET last = 3 WHERE recipient = #alice", "posting 3, where its thread ends, is not here"),
        (
            "UPDATE threads SET last = (SELECT last FROM threads WHERE recipient = #bob) WHERE recipient = #alice",
            "its thread ends in a posting of another stream",
        ),
        (
            "DELETE FROM confirmations WHERE posting = (SELECT last FROM threads WHERE recipient = #alice AND sender = #mint)",
            "before it is not confirmed",
        ),
    ],
)
def test_damaged_income_is_refused(bank: Bank, statement: str, text: str) -> None:
    for _ in range(2):  # the tip confirms nothing
        bank.pay("alice", ("bob", 1))
    bank.pay("mint", ("alice", 5), ("carol", 5), ("bob", 5))
    for name in ("bob", "carol"):
        bank.pay(name, ("alice", 1))
    bank.pay("mint", ("carol", 2))
    _drop_guards(bank.conn)
    assert bank.conn.execute(numbered(statement)).rowcount > 0
    with pytest.raises(Corruption, match=rf"posting .* to (alice|carol) is refused: .*{text}"):
        bank.form([bank.transfer("alice", ("bob", 1))])


def test_a_lost_confirmation_of_the_tip_is_refused(bank: Bank) -> None:
    _drop_guards(bank.conn)
    bank.conn.execute(
        "DELETE FROM confirmations WHERE id >> 14 = (SELECT l.seq FROM links AS l CROSS JOIN accounts AS a ON a.tip = l.hash "
        "WHERE a.name = 'alice')"
    )
    with pytest.raises(Corruption, match="incoming checksum"):
        bank.form([bank.transfer("alice", ("bob", 1))])

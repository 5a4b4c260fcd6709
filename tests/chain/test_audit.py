"""`verify` finds every single-field corruption: each column of each table, one field of one row at a time."""

import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cache
from itertools import combinations
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import chain.audit
import chain.replay
from chain.audit import AuditReport, audit
from chain.disk import open_database
from chain.errors import StorageFailure
from chain.genesis import Genesis, encode_genesis
from chain.link import HEADER_BYTES, Entry, Link, LinkHash, Outcome, PostingHash, build_link, opening_slot, posting_hash
from chain.request import (
    Kind,
    NetworkId,
    Posting,
    Request,
    RequestId,
    SignedRequest,
    encode_request,
    is_signed_by,
    opening,
)
from chain.rows import ActiveRow, VoteRow
from chain.schema import ID_BITS, PART_BITS, STAGING_TABLES, create_schema, schema_faults
from chain.seal import EMPTY_LOG, CursorRow, LogHead, SeenRow, row_checksum
from chain.store import commit
from tests.chain.bank import (
    GENESIS,
    NETWORK,
    NODE,
    Bank,
    decoded,
    file_database,
    id_of,
    key_of,
    memory_database,
    numbered,
    public_key_of,
    view_after,
    with_history,
)


def _tables() -> list[tuple[str, list[str]]]:
    conn = sqlite3.connect(":memory:")
    create_schema(conn)
    names = [name for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    return [
        (name, [row[1] for row in conn.execute(f"PRAGMA table_info({name})")])
        for name in names
        if name not in STAGING_TABLES
    ]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database in which every table has rows; closed, so that the file is all of it."""
    path = tmp_path_factory.mktemp("audit") / "node.db"
    conn = file_database(path)
    bank = with_history(conn)
    link = bank.form([bank.transfer("alice", ("bob", 1))]).link
    assert link is not None
    votes = [
        VoteRow(link.prev_hash, "alice", link.height, (1, 2, NODE), (1, 1, NODE), link.raw),
        VoteRow(bank.form([bank.opening("zoe")]).link.prev_hash, "zoe", 0, (1, 3, NODE)),  # type: ignore[union-attr]
    ]
    commit(conn, [*votes, CursorRow(bytes(20), 3), CursorRow(NODE, 7), SeenRow(NODE, 2), SeenRow(bytes(20), 5)])
    second, third = view_after(2), view_after(3, view_after(2).hash)
    next_view = VoteRow(LinkHash(third.hash), "", 4, (3, 1, NODE), (3, 1, NODE), b"view 4")
    commit(conn, [ActiveRow(1, b"all"), second, third, ActiveRow(3, b"some"), next_view])
    conn.close()
    assert not path.with_name("node.db-wal").exists()
    return path


@pytest.fixture
def conn(sound: Path, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A copy of it, with a connection that no trigger holds back: `_audit` does not miss them, `audit` does."""
    path = tmp_path / "node.db"
    shutil.copy(sound, path)
    conn = sqlite3.connect(path, isolation_level=None)
    _drop_triggers(conn)
    yield conn
    conn.close()


def _drop_triggers(conn: sqlite3.Connection) -> None:
    for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        conn.execute(f"DROP TRIGGER {name}")


def _faults_but_for_triggers(conn: sqlite3.Connection) -> list[tuple[str, str, str]]:
    return [fault for fault in schema_faults(conn) if not fault[1].startswith("CREATE TRIGGER")]


_is_signed_by = cache(is_signed_by)


def _audit(conn: sqlite3.Connection, genesis: Genesis | None = GENESIS) -> AuditReport:
    """The audit but for triggers, and it checks a signature that it has seen once: of thousands of edits each would
    otherwise make all triggers anew and check the same signatures, which takes longer than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain.audit, "schema_faults", _faults_but_for_triggers)
        patch.setattr(chain.replay, "is_signed_by", _is_signed_by)
        return audit(conn, genesis=genesis)


def test_a_sound_database_passes(conn: sqlite3.Connection, sound: Path) -> None:
    """The control of all corruptions below; and the audit needs no more than a reader's connection."""
    report = _audit(conn)
    assert report == AuditReport(links=17, postings=15, confirmed=11, accounts=7, fault=None)
    assert report.ok
    reader = open_database(sound, writer=False)
    assert audit(reader) == report
    reader.close()


def _changed(value: object) -> list[object]:
    """Other values of the same kind: what a flipped bit, a lost field or a busy hand would leave."""
    match value:
        case bytes():
            return [bytes([value[0] ^ 1]) + value[1:], value[:-1] + bytes([value[-1] ^ 0x80]), value[:-1], b""]
        case int():
            return [value + 1, value - 1, value + 1_000_000_007]
        case str():
            return [value + "x", value[:-1]]
        case _:
            return [bytes(32), 1]


@pytest.mark.parametrize(("table", "column"), [(table, column) for table, columns in _tables() for column in columns])
def test_every_field_of_every_column_is_checked(conn: sqlite3.Connection, table: str, column: str) -> None:
    keys = [row[1] for row in conn.execute(f"PRAGMA table_info({table})") if row[5]]
    rows = conn.execute(f"SELECT {column}, {', '.join(keys)} FROM {table}").fetchall()
    assert rows
    where = " AND ".join(f"{key} = ?" for key in keys)
    tried = 0
    for value, *key in rows:
        for other in [*_changed(value), None]:
            conn.execute("BEGIN")
            try:
                conn.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (other, *key))
            except sqlite3.IntegrityError:  # another row has the value, or the column cannot hold it
                conn.execute("ROLLBACK")
                continue
            if value != other:
                tried += 1
                fault = _audit(conn).fault
                assert fault is not None, f"{table}.{column} of {key}: {value!r} -> {other!r}"
                assert fault.expected != fault.found
                assert str(fault).startswith(fault.table)
            conn.execute("ROLLBACK")
    assert tried >= len(rows)


@pytest.mark.parametrize(
    "table", [table for table, _ in _tables() if table not in ("active", "votes", "cursors", "seen")]
)
def test_a_row_too_few_is_found(conn: sqlite3.Connection, table: str) -> None:
    """But for votes, cursors, counts of votes and what is ACTIVE, which no link vouches for and nobody counts."""
    keys = [row[1] for row in conn.execute(f"PRAGMA table_info({table})") if row[5]]
    where = " AND ".join(f"{key} = ?" for key in keys)
    for key in conn.execute(f"SELECT {', '.join(keys)} FROM {table}").fetchall():
        conn.execute("BEGIN")
        conn.execute(f"DELETE FROM {table} WHERE {where}", key)
        assert not _audit(conn).ok, (table, key)
        conn.execute("ROLLBACK")


_EXTRA = {
    "postings": "INSERT INTO postings SELECT max(id) + 1, part, randomblob(32), recipient, amount, memo, request_id FROM postings",
    "postings after others of a link": "INSERT INTO postings SELECT id + 2, part, hash, recipient, amount, memo, request_id "
    "FROM postings WHERE id = 10 << 14",
    "postings of a link without any": "INSERT INTO postings SELECT 4 << 14, part, hash, recipient, amount, memo, request_id "
    "FROM postings LIMIT 1",
    "postings of no link": "INSERT INTO postings SELECT 99 << 14, part, zeroblob(32), recipient, amount, memo, request_id "
    "FROM postings LIMIT 1",
    "postings before all links": "INSERT INTO postings SELECT -1, part, hash, recipient, amount, memo, request_id FROM postings LIMIT 1",
    "confirmations": "INSERT INTO confirmations SELECT max(c.id) + 1, i.posting, NULL FROM confirmations AS c, incoming AS i",
    "confirmations after others of a link": "INSERT INTO confirmations SELECT 10 << 14 | 2, posting, NULL FROM incoming LIMIT 1",
    "confirmations of a link without any": "INSERT INTO confirmations SELECT 17 << 14, posting, NULL FROM incoming LIMIT 1",
    "confirmations of no link": "INSERT INTO confirmations SELECT 99 << 14, posting, NULL FROM incoming LIMIT 1",
    "confirmations before all links": "INSERT INTO confirmations SELECT -1, posting, NULL FROM incoming LIMIT 1",
    "confirmations of nothing": "INSERT INTO confirmations VALUES (99 << 14, 99 << 14, NULL)",
    "incoming": "INSERT INTO incoming SELECT recipient, #bob, posting, amount FROM incoming LIMIT 1",
    "incoming of another": "INSERT INTO incoming SELECT #bob, sender, posting, amount FROM incoming LIMIT 1",
    "incoming that was taken up": "INSERT INTO incoming SELECT a.id, #mint, p.id, amount FROM postings AS p JOIN accounts AS a ON a.name = recipient LIMIT 1",
    "incoming of nothing": "INSERT INTO incoming SELECT recipient, sender, 99 << 14, amount FROM incoming LIMIT 1",
    "threads": "INSERT INTO threads SELECT #erik, sender, last FROM threads LIMIT 1",
    "threads of another": "INSERT INTO threads SELECT recipient, #ezb, last FROM threads LIMIT 1",
    "threads of a stream that waits": "INSERT INTO threads SELECT recipient, sender, posting FROM incoming WHERE sender = #ezb",
    "threads of nothing": "INSERT INTO threads VALUES (#erik, #ezb, 99 << 14)",
    "threads of nobody": "INSERT INTO threads SELECT 99, sender, last FROM threads LIMIT 1",
    "outcomes": "INSERT INTO outcomes SELECT zeroblob(32), account, link_hash, 9, 0 FROM outcomes LIMIT 1",
    "outcomes of another": "INSERT INTO outcomes SELECT request_id, 'zz', link_hash, number, outcome FROM outcomes LIMIT 1",
    "accounts": "INSERT INTO accounts SELECT 'zz', 4, asset, public_key, 0, 0, tip, 0, epoch, time_ms FROM accounts LIMIT 1",
    "meta": "INSERT INTO meta VALUES ('more', x'00', x'{checksum}')",
    "new_postings": "INSERT INTO new_postings VALUES (1, zeroblob(32), 'alice', 1, '', zeroblob(32))",
    "new_batches": "INSERT INTO new_batches VALUES (1, 0, 1, 1, zeroblob(32), '[1]', zeroblob(32), zeroblob(128))",
    "new_confirmations": "INSERT INTO new_confirmations VALUES (1, zeroblob(32), 1, 1, 1)",
    "new_outcomes": "INSERT INTO new_outcomes VALUES (1, zeroblob(32), 0)",
    "new_accounts": "INSERT INTO new_accounts VALUES (1, 'CZK', zeroblob(32), 0)",
    "applying": "INSERT INTO applying VALUES (1, zeroblob(32), 1, 'bob', 1, 0)",
}


@pytest.mark.parametrize("what", _EXTRA)
def test_a_row_too_many_is_found_and_named(conn: sqlite3.Connection, what: str) -> None:
    conn.execute(numbered(_EXTRA[what]).format(checksum=row_checksum("meta", "more", b"\0").hex()))
    fault = _audit(conn).fault
    assert fault is not None
    assert fault.table == what.split()[0]
    assert fault.key != "*" or what in STAGING_TABLES


# --- postings, confirmations, incoming, threads: all of them follow from the links, so any other row is found
# --------------

_MONEY = ("postings", "confirmations", "incoming", "threads")
Row = tuple[bytes | int | str | None, ...]


def _columns(conn: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in conn.execute(f"PRAGMA table_info({table})")]


def _rows(conn: sqlite3.Connection, table: str) -> list[Row]:
    return conn.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3").fetchall()


_ACCOUNTS = {1: "mint", 2: "mint2", 3: "ezb", 4: "alice", 5: "bob", 6: "carol", 7: "erik"}


def _name(number: bytes | int | str | None) -> str:
    """Who has this number in `with_history`, as a fault names it."""
    assert isinstance(number, int)
    return _ACCOUNTS.get(number, f"account {number}")


def _key(table: str, row: Row) -> str:
    """How a fault names this row."""
    if table == "postings":
        return row[2].hex() if isinstance(row[2], bytes) else str(row[2])
    if table == "threads":
        return f"{_name(row[1])} to {_name(row[0])}"
    return str(row[0] if table == "confirmations" else row[2])


def _delete(conn: sqlite3.Connection, table: str, row: Row) -> None:
    where = " AND ".join(f"{column} IS ?" for column in _columns(conn, table))
    assert conn.execute(f"DELETE FROM {table} WHERE {where}", row).rowcount == 1


def _insert(conn: sqlite3.Connection, table: str, row: Row) -> None:
    conn.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)


def _with(row: Row, at: int, value: bytes | int | str | None) -> Row:
    return (*row[:at], value, *row[at + 1 :])


@contextmanager
def _put_back(conn: sqlite3.Connection) -> Iterator[None]:
    """What is changed inside is as before after it; a change that the tables cannot hold is no change."""
    conn.execute("BEGIN")
    with suppress(sqlite3.IntegrityError):
        yield
    conn.execute("ROLLBACK")


def _found_in(conn: sqlite3.Connection, table: str, rows: Sequence[Row]) -> None:
    """The audit names the table, and one of these rows."""
    fault = _audit(conn).fault
    assert fault is not None, (table, rows)
    assert (fault.table, fault.key in {_key(table, row) for row in rows}) == (table, True), (str(fault), rows)
    assert fault.expected != fault.found


@pytest.mark.parametrize(
    ("table", "column"), [(table, column) for table, columns in _tables() if table in _MONEY for column in columns]
)
def test_every_field_that_has_the_value_of_another_row_is_named(
    conn: sqlite3.Connection, table: str, column: str
) -> None:
    at, tried = _columns(conn, table).index(column), 0
    rows = _rows(conn, table)
    values = {row[at] for row in rows}
    if column in ("id", "posting", "previous", "last", "part"):
        values |= {row[0] for row in _rows(conn, "postings")} | {row[0] for row in _rows(conn, "confirmations")}
        values |= {-1, 0, 1, 17 << ID_BITS, 99 << ID_BITS, 2**63 - 1, -(2**63), None}
    for row in rows:
        for value in sorted(values, key=repr):
            other = _with(row, at, value)
            if other == row or (column == "id" and value is None):  # SQLite would give it an id of its own
                continue
            with _put_back(conn):
                _delete(conn, table, row)
                _insert(conn, table, other)
                tried += 1
                _found_in(conn, table, [row, other])
    assert tried >= len(rows)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        (table, column)
        for table, columns in _tables()
        if table in _MONEY
        for column in columns
        if column != "part"  # all postings are in one here
    ],
)
def test_two_rows_that_have_exchanged_a_field_are_named(conn: sqlite3.Connection, table: str, column: str) -> None:
    """Counts and sums are as before then."""
    at, tried = _columns(conn, table).index(column), 0
    for one, other in combinations(_rows(conn, table), 2):
        exchanged = [_with(one, at, other[at]), _with(other, at, one[at])]
        if one[at] == other[at]:
            continue
        with _put_back(conn):
            for row in (one, other):
                _delete(conn, table, row)
            for row in exchanged:
                _insert(conn, table, row)
            if {one, other} == set(exchanged):  # they differ in nothing else
                continue
            tried += 1
            _found_in(conn, table, [one, other, *exchanged])
    assert tried


@pytest.mark.parametrize("table", _MONEY)
def test_a_row_too_few_is_named(conn: sqlite3.Connection, table: str) -> None:
    for row in _rows(conn, table):
        with _put_back(conn):
            _delete(conn, table, row)
            _found_in(conn, table, [row])


@pytest.mark.parametrize("table", _MONEY)
def test_all_rows_too_few_are_named(conn: sqlite3.Connection, table: str) -> None:
    rows = _rows(conn, table)
    conn.execute(f"DELETE FROM {table}")
    _found_in(conn, table, rows)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("postings", "recipient"),
        ("postings", "memo"),
    ],
)
def test_a_text_that_is_none_is_named_like_others(conn: sqlite3.Connection, table: str, column: str) -> None:
    rows = _rows(conn, table)
    conn.execute(
        f"UPDATE {table} SET {column} = CAST(x'ff' AS TEXT) WHERE {column} = (SELECT max({column}) FROM {table})"
    )
    fault = _audit(conn).fault
    assert fault is not None
    assert fault.table == table
    at = _columns(conn, table).index(column)
    assert fault.key in {_key(table, _with(row, at, value)) for row in rows for value in (row[at], b"\xff")}
    assert conn.text_factory is str


def _at(text: str) -> str:
    """`@8.2`: the id of row 2 of the link with seq 8; `#alice` as `numbered` has it."""
    return numbered(re.sub(r"@(\d+)\.(\d+)", lambda found: str(int(found[1]) << ID_BITS | int(found[2])), text))


# In `with_history`, all of the streams with more than one confirmed posting:
#   mint to alice: 8.0, 8.2, 13.0 confirmed by 10.0, 10.1, 14.0; 17.0 waits
#   alice to carol: 12.0, 12.1, 14.1 confirmed by 15.1, 15.2, 15.3
#   alice to bob: 10.0, 14.0 confirmed by 11.1, 16.0
_INCOMING = (
    "INSERT INTO incoming SELECT r.id, s.id, t.id, t.amount FROM transfers AS t JOIN accounts AS r ON r.name = t.recipient "
    "JOIN accounts AS s ON s.name = t.sender WHERE t.id = "
)
_BACK = _INCOMING.replace("WHERE", "WHERE confirmation IS NULL AND")
_COPY = "INSERT INTO postings SELECT {}, part, hash, recipient, amount, memo, request_id FROM postings WHERE id = @8.0"
_LAST = "UPDATE threads SET last = {} WHERE recipient = #alice AND sender = #mint"
_TAMPERINGS: dict[str, tuple[list[str], str, str, str]] = {
    "a confirmation in the link before": (
        ["UPDATE confirmations SET id = @13.0 WHERE id = @14.0"], "confirmations", "@13.0", "id"),
    "a confirmation in the account's link before": (
        ["UPDATE confirmations SET id = @12.1 WHERE id = @14.0"], "confirmations", "@12.1", "id"),
    "a confirmation in the account's next link": (
        ["UPDATE confirmations SET id = @12.1 WHERE id = @10.1"], "confirmations", "@10.1", "id"),
    "a confirmation in another place of its link": (
        ["UPDATE confirmations SET id = @10.2 WHERE id = @10.1"], "confirmations", "@10.1", "id"),
    "two confirmations exchanged with their previous": (
        ["UPDATE confirmations SET id = @15.9 WHERE id = @15.1", "UPDATE confirmations SET id = @15.1 WHERE id = @15.2",
         "UPDATE confirmations SET id = @15.2 WHERE id = @15.9"], "confirmations", "@15.1", "posting"),
    "two previous exchanged": (
        ["UPDATE confirmations SET previous = iif(id = @15.2, @12.1, @12.0) WHERE id IN (@15.2, @15.3)"],
        "confirmations", "@15.2", "previous"),
    "two previous of two streams exchanged": (
        ["UPDATE confirmations SET previous = iif(id = @14.0, @12.1, @8.2) WHERE id IN (@14.0, @15.3)"],
        "confirmations", "@14.0", "previous"),
    "a previous that leaves one out": (
        ["UPDATE confirmations SET previous = @12.0 WHERE id = @15.3"], "confirmations", "@15.3", "previous"),
    "a previous that leaves all out": (
        ["UPDATE confirmations SET previous = NULL WHERE id = @15.3"], "confirmations", "@15.3", "previous"),
    "a previous that goes on where nothing was": (
        ["UPDATE confirmations SET previous = @8.0 WHERE id = @11.0"], "confirmations", "@11.0", "previous"),
    "a previous that is itself": (
        ["UPDATE confirmations SET previous = @8.0 WHERE id = @10.0"], "confirmations", "@10.0", "previous"),
    "a circle of previous": (
        ["UPDATE confirmations SET previous = @13.0 WHERE id = @10.0"], "confirmations", "@10.0", "previous"),
    "a stream cut into two threads": (
        ["UPDATE confirmations SET previous = NULL WHERE id = @14.0", "INSERT INTO threads VALUES (#alice, #mint2, @8.2)"],
        "threads", "mint2 to alice", "last"),
    "a thread set back": ([_LAST.format("@8.2")], "threads", "mint to alice", "last"),
    "a thread set back to its beginning": ([_LAST.format("@8.0")], "threads", "mint to alice", "last"),
    "a thread set back and its posting incoming again": (
        [_LAST.format("@8.2"), _INCOMING + "@13.0"], "threads", "mint to alice", "last"),
    "a thread set forth to what waits": ([_LAST.format("@17.0")], "threads", "mint to alice", "last"),
    "a thread that ends in another stream": ([_LAST.format("@8.1")], "threads", "mint to alice", "last"),
    "a thread of another recipient": (
        ["UPDATE threads SET recipient = #carol WHERE recipient = #alice AND sender = #mint"],
        "threads", "mint to carol", "last"),
    "a thread deleted": (
        ["DELETE FROM threads WHERE recipient = #alice AND sender = #bob"], "threads", "bob to alice", "recipient"),
    "a confirmation deleted": (["DELETE FROM confirmations WHERE id = @14.0"], "confirmations", "@14.0", "id"),
    "a confirmation deleted, its posting incoming": (
        ["DELETE FROM confirmations WHERE id = @14.0", _BACK + "@13.0"], "confirmations", "@14.0", "id"),
    "a confirmation deleted, its posting incoming, its thread set back": (
        ["DELETE FROM confirmations WHERE id = @14.0", _BACK + "@13.0", _LAST.format("@8.2")],
        "confirmations", "@14.0", "id"),
    "a confirmation deleted, its thread set back": (
        ["DELETE FROM confirmations WHERE id = @14.0", _LAST.format("@8.2")], "confirmations", "@14.0", "id"),
    "the only confirmation of a stream deleted with its thread": (
        ["DELETE FROM confirmations WHERE id = @12.0", "DELETE FROM threads WHERE recipient = #alice AND sender = #bob",
         _BACK + "@11.1"], "confirmations", "@12.0", "id"),
    "all confirmations deleted, all postings incoming, all threads deleted": (
        ["DELETE FROM confirmations", "DELETE FROM threads", "DELETE FROM incoming", _BACK + "t.id"],
        "confirmations", "@10.0", "id"),
    "a confirmation deleted in the middle and the thread closed over it": (
        ["DELETE FROM confirmations WHERE id = @15.2", "UPDATE confirmations SET previous = @12.0 WHERE id = @15.3",
         _BACK + "@12.1"], "confirmations", "@15.2", "id"),
    "a confirmation of what waits, by a link that does not list it": (
        ["INSERT INTO confirmations VALUES (@14.1, @15.0, NULL)", "DELETE FROM incoming WHERE posting = @15.0",
         "INSERT INTO threads VALUES (#alice, #carol, @15.0)"], "confirmations", "@14.1", "id"),
    "a confirmation by a link that is not here": (
        ["INSERT INTO confirmations VALUES (@18.0, @17.0, @13.0)", "DELETE FROM incoming WHERE posting = @17.0",
         _LAST.format("@17.0")], "confirmations", "@18.0", "id"),
    "a posting missing from incoming": (["DELETE FROM incoming WHERE posting = @17.0"], "incoming", "@17.0", "recipient"),
    "a confirmed posting instead of the one that waits": (
        ["DELETE FROM incoming WHERE posting = @17.0",
         _INCOMING + "@13.0"],
        "incoming", "@13.0", "posting"),
    "a confirmed posting is incoming": (
        [_INCOMING + "@8.0"],
        "incoming", "@8.0", "posting"),
    "incoming with another amount": (
        ["UPDATE incoming SET amount = amount + 1 WHERE posting = @17.0"], "incoming", "@17.0", "amount"),
    "two incoming with one sum": (
        ["UPDATE incoming SET amount = iif(posting = @17.0, amount + 1, amount - 1) WHERE posting IN (@17.0, @17.1)"],
        "incoming", "@17.0", "amount"),
    "incoming to another": (
        ["UPDATE incoming SET recipient = #bob WHERE posting = @17.0"], "incoming", "@17.0", "recipient"),
    "incoming from another": (
        ["UPDATE incoming SET sender = #mint2 WHERE posting = @17.0"], "incoming", "@17.0", "sender"),
    "incoming to nobody": (["UPDATE incoming SET recipient = 99 WHERE posting = @17.0"], "incoming", "@17.0", "recipient"),
    "incoming to a link that opened nothing": (
        ["UPDATE incoming SET recipient = 8 WHERE posting = @17.0"], "incoming", "@17.0", "recipient"),
    "a thread of nobody": (
        ["UPDATE threads SET sender = 99 WHERE recipient = #alice AND sender = #mint"],
        "threads", "account 99 to alice", "last"),
    "a thread of a link that opened nothing": (  # 8 is a link of mint
        ["UPDATE threads SET sender = 8 WHERE recipient = #alice AND sender = #mint"],
        "threads", "account 8 to alice", "last"),
    "an account with another number": (["UPDATE accounts SET id = 99 WHERE name = 'bob'"], "accounts", "bob", "id"),
    "an account with the number of its next link": (["UPDATE accounts SET id = 11 WHERE name = 'bob'"], "accounts", "bob", "id"),
    "two accounts with one number": (["UPDATE accounts SET id = 4 WHERE name = 'bob'"], "accounts", "bob", "id"),
    "two accounts that have exchanged their numbers": (
        ["UPDATE accounts SET id = iif(name = 'bob', 4, 5) WHERE name IN ('alice', 'bob')"], "accounts", "alice", "id"),
    "two accounts that have exchanged their numbers everywhere": (
        ["UPDATE accounts SET id = iif(name = 'bob', 4, 5) WHERE name IN ('alice', 'bob')",
         "UPDATE incoming SET recipient = iif(recipient = 4, 5, 4) WHERE recipient IN (4, 5)",
         "UPDATE threads SET recipient = recipient + 100 WHERE recipient IN (4, 5)",
         "UPDATE threads SET recipient = iif(recipient = 104, 5, 4) WHERE recipient > 100",
         "UPDATE threads SET sender = sender + 100 WHERE sender IN (4, 5)",
         "UPDATE threads SET sender = iif(sender = 104, 5, 4) WHERE sender > 100"], "accounts", "alice", "id"),
    "incoming twice": (
        ["INSERT INTO incoming SELECT #bob, sender, posting, amount FROM incoming WHERE posting = @17.0"],
        "incoming", "@17.0", "recipient"),
    "incoming that is no posting": (
        ["UPDATE incoming SET posting = @17.2 WHERE posting = @17.0"], "incoming", "@17.2", "posting"),
    "a copy of a posting behind all links, confirmed": (
        [_COPY.format("@99.0"), "UPDATE confirmations SET posting = @99.0 WHERE posting = @8.0"],
        "confirmations", "@10.0", "posting"),
    "a copy of a posting before all links, confirmed": (
        [_COPY.format("@0.5"), "UPDATE confirmations SET posting = @0.5 WHERE posting = @8.0"],
        "confirmations", "@10.0", "posting"),
    "a copy of a posting before the beginning, confirmed": (
        [_COPY.format("-5"), "UPDATE confirmations SET posting = -5 WHERE posting = @8.0"],
        "confirmations", "@10.0", "posting"),
    "a copy of a posting before all links, incoming": (
        [_COPY.format("@0.5"), "INSERT INTO incoming SELECT #alice, #mint, id, amount FROM postings WHERE id = @0.5"],
        "postings", "@0.5", "id"),
    "a posting deleted that waits": (
        ["DELETE FROM postings WHERE id = @17.0", "DELETE FROM incoming WHERE posting = @17.0"],
        "postings", "#17.0", "id"),
    "a posting deleted that was confirmed": (
        ["DELETE FROM postings WHERE id = @8.0", "DELETE FROM confirmations WHERE posting = @8.0"],
        "postings", "#8.0", "id"),
    "a posting in another part": (["UPDATE postings SET part = 1 WHERE id = @17.0"], "postings", "#17.0", "part"),
    "all postings in another part": (["UPDATE postings SET part = 1"], "postings", "#8.0", "part"),
    "two postings with one hash": (
        ["UPDATE postings SET hash = (SELECT hash FROM postings WHERE id = @8.0) WHERE id = @17.0"], "postings", "#17.0", "hash"),
    "two postings with each other's hashes": (
        ["CREATE TEMP TABLE h AS SELECT id, hash FROM postings WHERE id IN (@8.0, @8.1)",
         "UPDATE postings SET hash = (SELECT hash FROM h WHERE h.id <> postings.id) WHERE id IN (@8.0, @8.1)"],
        "postings", "#8.0", "hash"),
    "a link after fewer postings": (["UPDATE links SET postings_before = 2 WHERE seq = 9"], "links", "L9", "postings_before"),
    "a link after none": (["UPDATE links SET postings_before = 0 WHERE seq = 17"], "links", "L17", "postings_before"),
    "the first link after some": (["UPDATE links SET postings_before = 1 WHERE seq = 1"], "links", "L1", "postings_before"),
    "all links after some, and the parts with them": (
        ["UPDATE links SET postings_before = postings_before + 32768", "UPDATE postings SET part = 1"],
        "links", "L1", "postings_before"),
    "two postings with each other's recipients": (
        ["UPDATE postings SET recipient = iif(id = @17.0, 'carol', 'alice') WHERE id >= @17.0",
         "UPDATE incoming SET recipient = iif(posting = @17.0, #carol, #alice) WHERE posting >= @17.0"],
        "postings", "#17.0", "recipient"),
    "two postings with each other's amounts": (
        ["UPDATE postings SET amount = iif(id = @17.0, 12, 11) WHERE id >= @17.0",
         "UPDATE incoming SET amount = iif(posting = @17.0, 12, 11) WHERE posting >= @17.0"],
        "postings", "#17.0", "amount"),
    "a posting with another hash": (
        ["UPDATE postings SET hash = zeroblob(32) WHERE id = @17.0"],
        "postings", "#17.0", "hash"),
    "a posting in another place, everywhere": (
        ["UPDATE postings SET id = @17.2 WHERE id = @17.1", "UPDATE incoming SET posting = @17.2 WHERE posting = @17.1"],
        "postings", "#17.1", "id"),
}  # fmt: skip


@pytest.mark.parametrize("what", _TAMPERINGS)
def test_tampering_is_found_and_named(conn: sqlite3.Connection, what: str) -> None:
    statements, table, key, column = _TAMPERINGS[what]
    hashes = dict(conn.execute("SELECT id, hash FROM postings"))
    links = {f"L{seq}": link.hex() for seq, link in conn.execute("SELECT seq, hash FROM links")}
    for statement in statements:
        assert conn.execute(_at(statement)).rowcount > 0 or statement.startswith("CREATE"), statement
    fault = _audit(conn).fault
    assert fault is not None
    want = hashes[int(_at(key.replace("#", "@")))].hex() if key.startswith("#") else links.get(key, _at(key))
    assert (fault.table, fault.key, fault.column) == (table, want, column), str(fault)


def test_of_a_thread_cut_twice_the_later_cut_is_named(conn: sqlite3.Connection) -> None:
    conn.execute(_at("UPDATE confirmations SET previous = NULL WHERE id IN (@10.1, @14.0)"))
    fault = _audit(conn).fault
    assert fault is not None
    assert (fault.table, fault.key, fault.expected) == ("confirmations", _at("@14.0"), _at("@8.2"))


@pytest.mark.parametrize(
    ("without", "statement", "table", "column"),
    [
        (["_Audit._name_extra"], "INSERT INTO confirmations SELECT 99 << 14, posting, NULL FROM incoming LIMIT 1", "confirmations", "count"),
        (["_Audit._name_lost"], "DELETE FROM threads WHERE recipient = #alice AND sender = #bob", "threads", "count"),
        (["Replay.all", "_Audit._nothing_else", "_Audit._threads", "_Audit._incoming"], "UPDATE accounts SET balance = balance + 1 WHERE name = 'bob'",
         "accounts", "balance"),
    ],
)  # fmt: skip
def test_counts_and_sums_are_wrong_even_if_no_row_is_named(
    conn: sqlite3.Connection,
    monkeypatch: pytest.MonkeyPatch,
    without: list[str],
    statement: str,
    table: str,
    column: str,
) -> None:
    """The search for the row decides nothing, and money is counted apart from all other checks."""
    for name in without:
        monkeypatch.setattr(f"chain.audit.{name}", lambda *_: None)
    conn.execute(numbered(statement))
    fault = _audit(conn).fault
    assert fault is not None
    assert (fault.table, fault.column) == (table, column)


_edit = st.tuples(
    st.sampled_from(["set", "exchange", "delete", "copy"]),
    st.sampled_from(_MONEY),
    st.integers(0, 5),
    st.integers(0, 14),
    st.integers(0, 30),
)


def _tamper(conn: sqlite3.Connection, edit: tuple[str, str, int, int, int]) -> None:
    """One change of the rows, with values that are somewhere in the database; none when the tables cannot hold it."""
    deed, table, column, first, second = edit
    rows = _rows(conn, table)
    if not rows:
        return
    at, row, other = column % len(rows[0]), rows[first % len(rows)], rows[second % len(rows)]
    values = {value for name in _MONEY for line in _rows(conn, name) for value in line if type(value) is type(row[at])}
    changed = _with(row, at, sorted(values, key=repr)[second % len(values)])
    conn.execute("SAVEPOINT edit")
    try:
        if deed != "copy":
            _delete(conn, table, row)
        if deed == "exchange" and row != other:
            _delete(conn, table, other)
            _insert(conn, table, _with(row, at, other[at]))
            _insert(conn, table, _with(other, at, row[at]))
        elif deed != "delete":
            _insert(conn, table, changed)
    except sqlite3.IntegrityError:
        conn.execute("ROLLBACK TO edit")
    conn.execute("RELEASE edit")


@pytest.fixture(scope="module")
def open_to_all() -> Iterator[sqlite3.Connection]:
    """A database in memory without triggers, as `conn`."""
    conn = memory_database()
    with_history(conn)
    _drop_triggers(conn)
    yield conn
    conn.close()


@settings(derandomize=True, deadline=None, max_examples=400)
@given(edits=st.lists(_edit, min_size=1, max_size=6))
def test_only_the_rows_that_follow_from_the_links_pass(
    open_to_all: sqlite3.Connection, edits: list[tuple[str, str, int, int, int]]
) -> None:
    conn = open_to_all
    before = [_rows(conn, table) for table in _MONEY]
    conn.execute("BEGIN")
    try:
        for edit in edits:
            _tamper(conn, edit)
        same = [_rows(conn, table) for table in _MONEY] == before
        assert _audit(conn).ok == same
    finally:
        conn.execute("ROLLBACK")


def test_a_missing_trigger_is_found(conn: sqlite3.Connection) -> None:
    report = audit(conn)
    assert report.fault is not None
    assert report.fault.table == "sqlite_master"
    assert report.fault.found == "nothing of this name"


def test_another_genesis_is_found(conn: sqlite3.Connection) -> None:
    report = _audit(conn, msgspec.structs.replace(GENESIS, name="other"))
    assert report.fault is not None
    assert (report.fault.table, report.fault.key) == ("meta", "genesis")


def _reseal(conn: sqlite3.Connection, key: str, value: bytes) -> None:
    conn.execute(
        "UPDATE meta SET value = ?, checksum = ? WHERE key = ?", (value, row_checksum("meta", key, value), key)
    )


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("genesis", b"{}", "genesis"),
        ("genesis", encode_genesis(msgspec.structs.replace(GENESIS, name="other")), "network_id"),
        ("network_id", bytes(32), "network_id"),
        ("schema_version", b"1", "schema_version"),
        ("log", LogHead(17, 17, bytes(32)).encode(), "log"),
    ],
)
def test_meta_is_checked_behind_a_right_checksum_too(
    conn: sqlite3.Connection, key: str, value: bytes, found: str
) -> None:
    _reseal(conn, key, value)
    fault = _audit(conn, genesis=None).fault  # as `hopchain verify` without a genesis file
    assert fault is not None
    assert (fault.table, fault.key) == ("meta", found)


def test_a_key_of_meta_that_is_no_text_is_named(conn: sqlite3.Connection) -> None:
    conn.execute("INSERT INTO meta VALUES (CAST(x'ff' AS TEXT), x'00', ?)", (row_checksum("meta", b"\xff", b"\0"),))
    fault = _audit(conn).fault
    assert fault is not None
    assert (fault.table, fault.key, fault.expected) == ("meta", "ff", "no such row")


def test_a_vote_for_another_slot_is_found(conn: sqlite3.Connection) -> None:
    row = list(conn.execute("SELECT * FROM votes WHERE link IS NOT NULL AND account <> ''").fetchone())
    row[2] += 1
    conn.execute(
        "UPDATE votes SET height = ?, checksum = ? WHERE slot = ?", (row[2], row_checksum("votes", *row[:-1]), row[0])
    )
    fault = _audit(conn).fault
    assert fault is not None
    assert (fault.table, fault.column) == ("votes", "height")


def _put(conn: sqlite3.Connection, table: str, where: str, **columns: object) -> None:
    """Change a row and give it a right checksum: what somebody does who wants it to pass."""
    conn.row_factory = sqlite3.Row
    (row,) = conn.execute(f"SELECT * FROM {table} WHERE {where}").fetchall()
    conn.row_factory = None
    values = {**dict(row), **columns}
    values.pop("checksum")
    conn.execute(f"DELETE FROM {table} WHERE {where}")
    marks = ", ".join("?" for _ in row.keys())  # noqa: SIM118
    conn.execute(f"INSERT INTO {table} VALUES ({marks})", (*values.values(), row_checksum(table, *values.values())))


@pytest.mark.parametrize(
    ("table", "where", "columns", "column"),
    [
        ("views", "epoch = 3", {"epoch": 4}, "epoch"),
        ("views", "epoch = 2", {"raw": b"another"}, "hash"),
        ("views", "epoch = 2", {"hash": bytes(32)}, "hash"),
        ("views", "epoch = 1", {"epoch": 0}, "epoch"),
        ("active", "epoch = 3", {"epoch": 4}, "epoch"),
        ("active", "epoch = 1", {"epoch": 0}, "epoch"),
        ("votes", "account = ''", {"height": 3}, "slot"),
        ("votes", "account = ''", {"height": 5}, "slot"),
        ("votes", "account = ''", {"slot": bytes(32)}, "slot"),
        ("votes", "account = ''", {"slot": bytes(32), "link": None}, "slot"),
    ],
)
def test_views_and_votes_on_them_are_checked_behind_a_right_checksum_too(
    conn: sqlite3.Connection, table: str, where: str, columns: dict[str, object], column: str
) -> None:
    _put(conn, table, where, **columns)
    fault = _audit(conn).fault
    assert fault is not None
    assert (fault.table, fault.column) == (table, column)
    assert fault.expected != fault.found


def test_a_database_without_views_is_found(conn: sqlite3.Connection) -> None:
    conn.execute("DELETE FROM views")
    conn.execute("DELETE FROM active")
    fault = _audit(conn).fault
    assert fault is not None
    assert str(fault) == "views row 1, epoch: expected 1, found nothing"


@pytest.mark.parametrize(
    "table", ["postings", "postings_hash", "confirmations", "incoming", "threads", "links", "meta", "sqlite_master"]
)
def test_damaged_pages_are_a_fault_and_no_crash(conn: sqlite3.Connection, tmp_path: Path, table: str) -> None:
    pages = dict(conn.execute("SELECT name, rootpage FROM sqlite_master"))
    conn.close()
    with (tmp_path / "node.db").open("r+b") as file:
        file.seek((pages[table] - 1) * 4096 if table in pages else 100)  # page 1 begins with the header of the file
        file.write(bytes(200))
    damaged = sqlite3.connect(tmp_path / "node.db", isolation_level=None)
    fault = audit(damaged).fault
    assert fault is not None
    assert fault.table == "database"
    damaged.close()


def test_a_database_that_cannot_be_read_is_no_fault_in_it(conn: sqlite3.Connection) -> None:
    conn.close()
    with pytest.raises(StorageFailure, match="verifying the database failed"):
        audit(conn)


def test_progress_is_told(sound: Path) -> None:
    told: list[tuple[int, int]] = []
    with closing(open_database(sound, writer=False)) as reader:
        audit(reader, progress=lambda done, total: told.append((done, total)))
    assert told == [(17, 17)]


# --- links that agree with themselves and with the triggers, but break a rule
# ---------------------------------------------


def _signed(request: Request, outcome: Outcome, *, by: str = "") -> Entry:
    signed = decoded(request).signed
    if by:
        signed = SignedRequest(encode_request(request), key_of(by).sign(b"hopchain:sign:1\0" + signed.request_id))
    return Entry(signed, request, signed.request_id, outcome)


def _next(bank: Bank, name: str, *entries: Entry, gain: int = 0) -> Link:
    """The next link of the account with these entries, whatever the rules say; it takes up all income."""
    sample = bank.form([bank.transfer(name, ("bob" if name != "bob" else "carol", 1))]).link
    assert sample is not None
    debit = sum(e.request.total for e in entries if e.outcome is Outcome.COMPLETED)
    return build_link(
        NETWORK, name, sample.height, sample.prev_hash, sample.balance + 1 - debit + gain, 1, sample.time_ms, entries,
        sample.confirmed,
    )  # fmt: skip


def _rule_breakers(bank: Bank) -> dict[str, tuple[str, list[Entry]]]:
    """What the audit must say it expected, and the requests with their outcomes."""
    alice, poor, mismatch = bank.transfer, Outcome.INSUFFICIENT_FUNDS, Outcome.ASSET_MISMATCH
    past = bank.links[-1].entries[0].request
    twice = alice("alice", ("bob", 1))
    stale = alice("alice", ("bob", 1), expect_tip=bytes([7]) * 32)
    much = alice("alice", ("bob", 900)), alice("alice", ("bob", 901))
    return {
        "signed by another": ("signed by the key", [_signed(alice("alice", ("bob", 1)), Outcome.COMPLETED, by="bob")]),
        "rejected though funds were there": ("another outcome", [_signed(alice("alice", ("bob", 1)), poor)]),
        "an issuer's limit for no issuer": ("another outcome", [_signed(alice("alice", ("bob", 5000)), Outcome.ISSUER_LIMIT)]),
        "mismatch though all hold the asset": ("COMPLETED", [_signed(alice("alice", ("bob", 1)), mismatch)]),
        "paid in another asset": ("in the same asset", [_signed(alice("alice", ("erik", 1)), Outcome.COMPLETED)]),
        "paid to nobody": ("recipients that were open", [_signed(alice("alice", ("nobody", 1)), Outcome.COMPLETED)]),
        "expired too early": ("EXPIRED if", [_signed(alice("alice", ("bob", 1), valid_until_height=99), Outcome.EXPIRED)]),
        "executed too late": ("EXPIRED if", [_signed(alice("alice", ("bob", 1), valid_until_height=1), Outcome.COMPLETED)]),
        "executed on another tip": ("expects tip", [_signed(stale, Outcome.COMPLETED)]),
        "a cancellation for lack of funds": ("nothing that", [_signed(bank.cancellation("alice", id_of(past)), poor)]),
        "cancelled though it was not": ("decided before", [_signed(bank.cancellation("alice", id_of(past)), Outcome.ALREADY_DECIDED)]),
        "an opening later": ("nothing that", [_signed(bank.opening("alice"), Outcome.COMPLETED)]),
        "spent twice in one link": ("at least 0", [_signed(one, Outcome.COMPLETED) for one in much]),
        "two outcomes in one link": ("no second outcome", [_signed(twice, Outcome.UNKNOWN_RECIPIENT)] * 2),
    }  # fmt: skip


@pytest.mark.parametrize("name", _rule_breakers(with_history(memory_database())))
def test_a_link_that_breaks_a_rule_is_found_even_if_nothing_else_disagrees(name: str) -> None:
    """The strongest liar: he owns the database, recomputes every hash and lacks only other people's keys."""
    conn = memory_database()
    bank = with_history(conn)
    bank.pay("mint", ("alice", 100))
    expected, entries = _rule_breakers(bank)[name]
    link = _next(bank, "alice", *entries)
    _without_triggers(conn, link)
    fault = audit(conn).fault
    assert fault is not None
    assert fault.key == link.hash.hex()
    assert expected in fault.expected


def _altered(link: Link, **fields: object) -> Link:
    values = {name: getattr(link, name) for name in ("account", "height", "prev_hash", "balance", "epoch", "time_ms")}
    values |= {"entries": link.entries, "confirmed": link.confirmed} | fields
    return build_link(NETWORK, **values)


_CHAINS: list[tuple[dict[str, object], str, str]] = [
    ({"prev_hash": bytes([9]) * 32}, "prev_hash", ""),
    ({"time_ms": 2_000_000}, "time_ms", "above"),
    ({"balance": 5}, "balance", ""),
]


@pytest.mark.parametrize(("fields", "column", "expected"), _CHAINS)
def test_a_link_that_does_not_follow_is_found(fields: dict[str, object], column: str, expected: str) -> None:
    conn = memory_database()
    bank = with_history(conn)
    link = bank.form([bank.transfer("alice", ("bob", 1))]).link
    assert link is not None
    link = _altered(link, **fields)
    _without_triggers(conn, link)
    fault = audit(conn).fault
    assert fault is not None
    assert (fault.table, fault.key, fault.column) == ("links", link.hash.hex(), column)
    assert expected in fault.expected


def test_a_chain_without_its_beginning_is_found(conn: sqlite3.Connection) -> None:
    conn.execute("DELETE FROM links WHERE account = 'ezb' AND height = 0")
    seqs = [seq for (seq,) in conn.execute("SELECT seq FROM links ORDER BY seq")]
    _renumber(conn, {seq: place for place, seq in enumerate(seqs, 1)})
    fault = _audit(conn).fault
    assert fault is not None
    assert (fault.table, fault.column, fault.found) == ("links", "height", "nothing")


def test_a_header_and_body_cut_at_another_place_are_found(conn: sqlite3.Connection) -> None:
    header, body = conn.execute("SELECT header, body FROM links WHERE seq = 5").fetchone()
    conn.execute("UPDATE links SET header = ?, body = ? WHERE seq = 5", (header[:-1], header[-1:] + body))
    fault = _audit(conn).fault
    assert fault is not None
    assert (fault.column, fault.expected) == ("header", "224 bytes")


def test_a_link_of_another_network_is_found() -> None:
    conn = memory_database()
    bank = with_history(conn)
    link = bank.form([bank.transfer("alice", ("bob", 1))]).link
    assert link is not None
    other = build_link(
        NetworkId(bytes(32)),
        "alice",
        link.height,
        link.prev_hash,
        link.balance + 1,
        1,
        link.time_ms,
        (),
        link.confirmed,
    )
    _without_triggers(conn, other)
    fault = audit(conn).fault
    assert fault is not None
    assert (fault.key, fault.column, fault.found) == (other.hash.hex(), "header", bytes(32).hex())


def _without_ezb(conn: sqlite3.Connection) -> None:
    """A new database in which the last issuer was never opened, the head of the log made to fit."""
    for sql in ("links WHERE account", "accounts WHERE name", "outcomes WHERE account"):
        conn.execute(f"DELETE FROM {sql} = 'ezb'")
    hashes = [LinkHash(row[0]) for row in conn.execute("SELECT hash FROM links ORDER BY seq")]
    _reseal(conn, "log", EMPTY_LOG.after(hashes).encode())


def test_a_missing_issuer_is_found() -> None:
    conn = memory_database()
    with _no_triggers(conn):
        _without_ezb(conn)
    fault = audit(conn).fault
    assert fault is not None
    assert (fault.key, fault.found) == ("ezb", "nothing")


def test_an_issuer_under_another_key_is_found() -> None:
    conn = memory_database()
    bank = Bank(conn)
    request = opening(NETWORK, "ezb", "EUR", public_key_of("thief"), bank.nonce())
    slot = opening_slot(NETWORK, "ezb")
    link = build_link(NETWORK, "ezb", 0, slot, 0, 1, 1_000_000, [_signed(request, Outcome.COMPLETED, by="thief")], ())
    with _no_triggers(conn):
        _without_ezb(conn)
        _write(conn, link)
        conn.execute("UPDATE accounts SET issuer = 1 WHERE name = 'ezb'")
    fault = audit(conn).fault
    assert fault is not None
    assert (fault.key, fault.expected) == (link.hash.hex(), "the issuer of the genesis file")


@pytest.mark.parametrize("what", ["in another slot", "with a second request"])
def test_an_opening_that_is_none_is_found(what: str) -> None:
    conn = memory_database()
    bank = with_history(conn)
    link = bank.form([bank.opening("zoe")]).link
    assert link is not None
    never = _signed(bank.cancellation("zoe", RequestId(bytes(32))), Outcome.COMPLETED)
    fields = {"prev_hash": bytes(32)} if what == "in another slot" else {"entries": (*link.entries, never)}
    link = _altered(link, **fields)
    _without_triggers(conn, link)
    fault = audit(conn).fault
    assert fault is not None
    assert (fault.key, fault.column) == (link.hash.hex(), "prev_hash" if what == "in another slot" else "body")
    assert what == "in another slot" or fault.expected == "one opening"


_INCOME: dict[str, tuple[Callable[[list[PostingHash], PostingHash], list[PostingHash]], str, str, str]] = {
    "the first of a stream left out": (lambda mine, _: mine[1:], "incoming", "posting", "where its thread ends"),
    "not oldest first": (lambda mine, _: mine[::-1], "links", "body", "oldest first"),
    "another's": (lambda mine, other: [*mine, other], "postings", "recipient", "bob"),
    "a posting of nobody": (lambda mine, _: [*mine, PostingHash(bytes(32))], "confirmations", "id", "confirms posting"),
    "one twice": (lambda mine, _: [*mine, mine[-1]], "confirmations", "id", "confirms posting"),
}


@pytest.mark.parametrize("name", _INCOME)
def test_a_link_that_takes_up_the_wrong_income_is_found(name: str) -> None:
    choose, table, column, expected = _INCOME[name]
    conn = memory_database()
    bank = with_history(conn)
    bank.pay("carol", ("bob", 4))
    bank.pay("carol", ("bob", 5))
    bank.pay("mint", ("carol", 6))
    link = bank.form([bank.transfer("bob", ("alice", 1))]).link
    assert link is not None
    assert len(link.confirmed) == 2
    (other,) = conn.execute("SELECT hash FROM transfers WHERE recipient = 'carol' AND confirmation IS NULL").fetchone()
    confirmed = choose(list(link.confirmed), other)
    amounts = dict(conn.execute("SELECT hash, amount FROM transfers"))
    gain = sum(amounts.get(p, 0) for p in confirmed) - sum(amounts[p] for p in link.confirmed)
    link = _altered(link, confirmed=tuple(confirmed), balance=link.balance + gain)
    _without_triggers(conn, link)
    fault = audit(conn).fault
    assert fault is not None
    assert (fault.table, fault.column) == (table, column)
    assert expected in fault.expected


@pytest.mark.parametrize(
    ("change", "at"),
    [
        ("", 0),
        ("UPDATE confirmations SET previous = {0} WHERE posting = {1}", 0),
        ("UPDATE confirmations SET previous = {1} WHERE posting = {0}", 1),
        ("UPDATE threads SET last = {0} WHERE recipient = #bob AND sender = #carol", -1),
    ],
)
def test_a_stream_confirmed_out_of_order_is_found(change: str, at: int) -> None:
    """The later posting of a stream in one link, the one before it in the next link; nothing is lost and nothing
    twice."""
    conn = memory_database()
    bank = with_history(conn)
    bank.pay("carol", ("bob", 4))
    bank.pay("carol", ("bob", 5))
    sample = bank.form([bank.transfer("bob", ("alice", 1))]).link
    assert sample is not None
    first, second = sample.confirmed
    early = _altered(sample, confirmed=(second,), balance=sample.balance - 4)
    entry = _signed(bank.transfer("bob", ("alice", 1)), Outcome.COMPLETED)
    late = build_link(
        NETWORK, "bob", early.height + 1, early.next_slot, early.balance + 3, 1, early.time_ms + 1, [entry], [first]
    )
    ids = dict(conn.execute("SELECT hash, id FROM postings"))
    with _no_triggers(conn):
        _write(conn, early)
        _write(conn, late)
        conn.execute(numbered(change.format(ids[first], ids[second])) or "SELECT 1")
    fault = audit(conn, genesis=GENESIS).fault
    assert fault is not None
    if at < 0:
        assert (fault.table, fault.key, fault.column) == ("threads", "carol to bob", "last")
        return
    (count,) = conn.execute("SELECT count(*) FROM links").fetchone()
    assert (fault.table, fault.key, fault.column) == ("confirmations", str(count - 1 + at << ID_BITS), "previous")


def test_a_thread_through_a_posting_that_waits_is_found() -> None:
    """A link confirms the second posting of a stream, as if the first had been confirmed before."""
    conn = memory_database()
    bank = with_history(conn)
    bank.pay("carol", ("bob", 4))
    bank.pay("carol", ("bob", 5))
    link = bank.form([bank.transfer("bob", ("alice", 1))]).link
    assert link is not None
    first, second = link.confirmed
    ids = dict(conn.execute("SELECT hash, id FROM postings"))
    with _no_triggers(conn):
        _write(conn, _altered(link, confirmed=(second,), balance=link.balance - 4))
        conn.execute("UPDATE confirmations SET previous = ? WHERE posting = ?", (ids[first], ids[second]))
    fault = audit(conn).fault
    assert fault is not None
    assert (fault.table, fault.column, fault.found) == ("confirmations", "previous", str(ids[first]))


@pytest.mark.parametrize("honest", [True, False])
def test_income_of_one_moment_is_in_the_order_of_its_senders(honest: bool) -> None:
    conn = memory_database()
    bank = with_history(conn)
    bank.pay("bob", ("alice", 1))
    first = bank.pay("mint", ("bob", 4))
    bank.now_ms -= 10
    second = bank.pay("carol", ("bob", 5))
    assert first.time_ms == second.time_ms
    link = bank.form([bank.transfer("bob", ("alice", 1))]).link
    assert link is not None
    assert link.confirmed == (*second.posting_hashes, *first.posting_hashes)
    _without_triggers(conn, link if honest else _altered(link, confirmed=link.confirmed[::-1]))
    fault = audit(conn).fault
    assert honest == (fault is None)
    assert fault is None or "oldest first" in fault.expected


def _swap(conn: sqlite3.Connection, one: tuple[str, int], other: tuple[str, int]) -> None:
    """Exchange two links in the order of the log."""
    seqs = [
        conn.execute("SELECT seq FROM links WHERE account = ? AND height = ?", link).fetchone()[0]
        for link in (one, other)
    ]
    _renumber(conn, {seqs[0]: seqs[1], seqs[1]: seqs[0]})


def _renumber(conn: sqlite3.Connection, seqs: dict[int, int]) -> None:
    """Give links other places in the log, and all that they make and confirm with them."""
    for table, column, bits in (
        ("links", "seq", 0),
        ("postings", "id", ID_BITS),
        ("confirmations", "id", ID_BITS),
        ("confirmations", "posting", ID_BITS),
        ("confirmations", "previous", ID_BITS),
        ("incoming", "posting", ID_BITS),
        ("threads", "last", ID_BITS),
        ("accounts", "id", 0),
        ("incoming", "recipient", 0),
        ("incoming", "sender", 0),
        ("threads", "recipient", 0),
        ("threads", "sender", 0),
    ):
        for sign in (-1, 1):  # first out of the way, because two rows may not have one number even for a moment
            for old, new in seqs.items():
                here = old if sign < 0 else -new - 1
                conn.execute(
                    f"UPDATE {table} SET {column} = ({column} - (?1 << ?3)) + (?2 << ?3) "
                    f"WHERE {column} BETWEEN ?1 << ?3 AND (?1 + 1 << ?3) - 1",
                    (here, -new - 1 if sign < 0 else new, bits),
                )
    conn.execute(
        "UPDATE links SET postings_before = (SELECT coalesce(sum(o.posting_count), 0) FROM links AS o WHERE o.seq < links.seq)"
    )


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (("mint", 2), ("mint", 3), "the link before it"),
        (("mint", 1), ("alice", 1), "after the links whose postings it confirms"),
        (("alice", 2), ("bob", 1), "after the links whose postings it confirms"),
    ],
)
def test_a_log_in_another_order_is_found(
    conn: sqlite3.Connection, one: tuple[str, int], other: tuple[str, int], expected: str
) -> None:
    _swap(conn, one, other)
    fault = _audit(conn).fault
    assert fault is not None
    assert (fault.table, fault.column) == ("links", "seq")
    assert expected in fault.expected


def test_an_account_opened_after_it_was_paid_is_found(conn: sqlite3.Connection) -> None:
    _swap(conn, ("erik", 0), ("ezb", 1))
    fault = _audit(conn).fault
    assert fault is not None
    assert "recipients that were open before" in fault.expected


def test_honest_links_through_the_same_helper_pass() -> None:
    conn = memory_database()
    bank = with_history(conn)
    link = _next(bank, "alice", _signed(bank.transfer("alice", ("bob", 1)), Outcome.COMPLETED))
    _without_triggers(conn, link)
    assert audit(conn).fault is None


def test_money_made_in_an_opening_is_found() -> None:
    conn = memory_database()
    bank = Bank(conn)
    link = bank.form([bank.opening("rich")]).link
    assert link is not None
    link = build_link(NETWORK, "rich", 0, link.prev_hash, 1000, 1, link.time_ms, link.entries, ())
    _without_triggers(conn, link)
    fault = audit(conn).fault
    assert fault is not None
    assert (fault.table, fault.column, fault.expected) == ("links", "balance", "0")


def test_an_issuer_past_its_limit_is_found() -> None:
    conn = memory_database()
    bank = Bank(conn)
    bank.open("alice")
    limit = GENESIS.issuer_limit("CZK")
    last = bank.pay("mint", ("alice", limit))
    entry = _signed(bank.transfer("mint", ("alice", 1)), Outcome.COMPLETED)
    link = build_link(NETWORK, "mint", 2, last.next_slot, -limit - 1, 1, last.time_ms + 1, [entry], ())
    _without_triggers(conn, link)
    fault = audit(conn).fault
    assert fault is not None
    assert (fault.table, fault.column) == ("links", "body")
    assert "rejected" in fault.expected


@contextmanager
def _no_triggers(conn: sqlite3.Connection) -> Iterator[None]:
    """All triggers are off inside, and back after it."""
    triggers = conn.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        conn.execute(f"DROP TRIGGER {name}")
    yield
    for _, sql in triggers:
        conn.execute(sql)


def _without_triggers(conn: sqlite3.Connection, link: Link) -> None:
    """Write everything that the link makes, consistently, with all triggers off."""
    with _no_triggers(conn):
        _write(conn, link)


def _write(conn: sqlite3.Connection, link: Link) -> None:
    seq, before = conn.execute("SELECT count(*) + 1, coalesce(sum(posting_count), 0) FROM links").fetchone()
    postings = list(link.postings())
    conn.execute(
        "INSERT INTO links VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            seq, link.hash, link.account, link.height, link.prev_hash, link.balance, link.incoming_checksum, link.epoch,
            link.time_ms, len(postings), len(link.confirmed), len(list(link.outcomes())), before,
            link.raw[:HEADER_BYTES], link.raw[HEADER_BYTES:],
        ),
    )  # fmt: skip
    for number, hash_, posting, request in postings:
        assert hash_ == posting_hash(link.hash, number, Posting(posting.recipient, posting.amount, posting.memo))
        place = seq << ID_BITS | number
        row = (place, before >> PART_BITS, hash_, posting.recipient, posting.amount, posting.memo, request)
        conn.execute("INSERT INTO postings VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        conn.execute(
            "INSERT INTO incoming SELECT r.id, s.id, ?, ? FROM accounts AS r, accounts AS s WHERE r.name = ? AND s.name = ?",
            (place, posting.amount, posting.recipient, link.account),
        )
    for number, confirmed in enumerate(link.confirmed, seq << ID_BITS):
        _confirm(conn, number, confirmed)
    for number, (request_id, outcome) in enumerate(link.outcomes()):
        conn.execute(
            "INSERT OR IGNORE INTO outcomes VALUES (?, ?, ?, ?, ?)",
            (request_id, link.account, link.hash, number, int(outcome)),
        )
    opened = [e.request for e in link.entries if e.request.kind is Kind.OPEN and link.height == 0]
    for made in opened:
        account = (
            link.account,
            seq,
            made.asset,
            made.public_key,
            0,
            0,
            link.hash,
            link.balance,
            link.epoch,
            link.time_ms,
        )
        conn.execute("INSERT INTO accounts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", account)
    conn.execute(
        "UPDATE accounts SET height = ?, tip = ?, balance = ?, epoch = ?, time_ms = ? WHERE name = ?",
        (link.height, link.hash, link.balance, link.epoch, link.time_ms, link.account),
    )
    (value,) = conn.execute("SELECT value FROM meta WHERE key = 'log'").fetchone()
    seq_, count, xor = int.from_bytes(value[:8], "big"), int.from_bytes(value[8:16], "big"), value[16:]
    _reseal(conn, "log", LogHead(seq_, count, xor).after([link.hash]).encode())


def _confirm(conn: sqlite3.Connection, number: int, posting: PostingHash) -> None:
    """Take up a posting as the triggers would, in whatever order; one that is not here leaves no rows."""
    row = conn.execute(
        "SELECT t.id, r.id, s.id FROM transfers AS t JOIN accounts AS r ON r.name = t.recipient "
        "JOIN accounts AS s ON s.name = t.sender WHERE t.hash = ?",
        (posting,),
    ).fetchone()
    if row is None:
        return
    place, recipient, sender = row
    conn.execute("DELETE FROM incoming WHERE posting = ?", (place,))
    conn.execute(
        "INSERT OR IGNORE INTO confirmations VALUES (?, ?, (SELECT max(last) FROM threads WHERE recipient = ? AND sender = ? AND last < ?2))",
        (number, place, recipient, sender),
    )
    conn.execute(
        "INSERT INTO threads VALUES (?, ?, ?) ON CONFLICT (recipient, sender) DO UPDATE SET last = max(last, excluded.last)",
        (recipient, sender, place),
    )

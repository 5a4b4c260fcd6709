"""`verify` finds every single-field corruption: each column of each table, one field of one row at a time."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from chain.audit import AuditReport, audit
from chain.errors import StorageFailure
from chain.genesis import encode_genesis
from chain.link import HEADER_BYTES, Entry, Link, LinkHash, Outcome, PostingHash, build_link, opening_slot, posting_hash
from chain.request import Kind, NetworkId, Posting, Request, RequestId, SignedRequest, encode_request, opening
from chain.rows import ActiveRow, VoteRow
from chain.schema import STAGING_TABLES, create_schema
from chain.seal import EMPTY_LOG, LogHead, row_checksum
from chain.store import CursorRow, SeenRow, commit, open_database
from tests.chain.bank import (
    GENESIS,
    NETWORK,
    NODE,
    Bank,
    file_database,
    id_of,
    key_of,
    memory_database,
    public_key_of,
    queued,
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
    """A copy of it, with a connection that no trigger holds back: they are dropped here and put back by `_audit`."""
    path = tmp_path / "node.db"
    shutil.copy(sound, path)
    conn = sqlite3.connect(path, isolation_level=None)
    triggers = conn.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    conn.execute("CREATE TEMP TABLE dropped (sql TEXT)")
    conn.executemany("INSERT INTO dropped VALUES (?)", [(sql,) for _, sql in triggers])
    for name, _ in triggers:
        conn.execute(f"DROP TRIGGER {name}")
    yield conn
    conn.close()


def _audit(conn: sqlite3.Connection) -> AuditReport:
    for (sql,) in conn.execute("SELECT sql FROM temp.dropped").fetchall():
        conn.execute(sql)
    return audit(conn, genesis=GENESIS)


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
    "transfers": "INSERT INTO transfers SELECT randomblob(32), link_hash, number, prev_hash, 'zz', recipient, amount, memo, "
    "balance, incoming_checksum, height, time_ms, request_id, NULL, NULL FROM transfers LIMIT 1",
    "transfers of no link": "INSERT INTO transfers SELECT zeroblob(32), zeroblob(32), number, prev_hash, 'zz', recipient, "
    "amount, memo, balance, incoming_checksum, height, time_ms, request_id, NULL, NULL FROM transfers LIMIT 1",
    "outcomes": "INSERT INTO outcomes SELECT zeroblob(32), account, link_hash, 9, 0 FROM outcomes LIMIT 1",
    "outcomes of another": "INSERT INTO outcomes SELECT request_id, 'zz', link_hash, number, outcome FROM outcomes LIMIT 1",
    "accounts": "INSERT INTO accounts SELECT 'zz', asset, public_key, 0, 0, tip, 0, epoch, time_ms FROM accounts LIMIT 1",
    "meta": "INSERT INTO meta VALUES ('more', x'00', x'{checksum}')",
    "new_postings": "INSERT INTO new_postings VALUES (1, zeroblob(32), zeroblob(32), zeroblob(32), 'bob', 'alice', 1, '', 0, "
    "zeroblob(32), 1, 1, zeroblob(32))",
    "new_batches": "INSERT INTO new_batches VALUES (1, 0, 1, 1, zeroblob(32), '[1]', zeroblob(32), zeroblob(128))",
    "new_confirmations": "INSERT INTO new_confirmations VALUES (1, zeroblob(32))",
    "new_outcomes": "INSERT INTO new_outcomes VALUES (1, zeroblob(32), 0)",
    "new_accounts": "INSERT INTO new_accounts VALUES (1, 'CZK', zeroblob(32), 0)",
    "applying": "INSERT INTO applying VALUES (1, zeroblob(32), 1, 'bob')",
}


@pytest.mark.parametrize("what", _EXTRA)
def test_a_row_too_many_is_found_and_named(conn: sqlite3.Connection, what: str) -> None:
    conn.execute(_EXTRA[what].format(checksum=row_checksum("meta", "more", b"\0").hex()))
    fault = _audit(conn).fault
    assert fault is not None
    assert fault.table == what.split()[0]
    assert fault.key != "*" or what in STAGING_TABLES


def test_a_reset_confirmation_is_found_also_when_the_thread_is_reset_with_it(conn: sqlite3.Connection) -> None:
    conn.execute("UPDATE transfers SET confirmation = NULL, prev_confirmed_hash = NULL WHERE confirmation IS NOT NULL")
    fault = _audit(conn).fault
    assert fault is not None
    assert (fault.table, fault.column, fault.found) == ("transfers", "confirmation", "NULL")


def test_a_confirmation_that_no_link_lists_is_found(conn: sqlite3.Connection) -> None:
    conn.execute(
        "UPDATE transfers SET confirmation = (SELECT tip FROM accounts WHERE name = recipient), "
        "prev_confirmed_hash = zeroblob(32) WHERE confirmation IS NULL AND recipient = 'alice'"
    )
    fault = _audit(conn).fault
    assert fault is not None
    assert (fault.table, fault.column) == ("transfers", "confirmation")


def test_a_confirmation_by_a_link_that_is_not_here_is_found(conn: sqlite3.Connection) -> None:
    conn.execute(
        "UPDATE transfers SET confirmation = zeroblob(32), prev_confirmed_hash = zeroblob(32) WHERE confirmation IS NULL"
    )
    fault = _audit(conn).fault
    assert fault is not None
    assert (fault.column, fault.expected) == ("confirmation", "a link that is here")


def test_a_missing_trigger_is_found(conn: sqlite3.Connection) -> None:
    report = audit(conn)
    assert report.fault is not None
    assert report.fault.table == "sqlite_master"
    assert report.fault.found == "nothing of this name"


def test_another_genesis_is_found(conn: sqlite3.Connection) -> None:
    for (sql,) in conn.execute("SELECT sql FROM temp.dropped").fetchall():
        conn.execute(sql)
    report = audit(conn, genesis=msgspec.structs.replace(GENESIS, name="other"))
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
    fault = _file_audit(conn).fault
    assert fault is not None
    assert (fault.table, fault.key) == ("meta", found)


def _file_audit(conn: sqlite3.Connection) -> AuditReport:
    """As `hopchain verify` without a genesis file."""
    for (sql,) in conn.execute("SELECT sql FROM temp.dropped").fetchall():
        conn.execute(sql)
    return audit(conn)


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


@pytest.mark.parametrize("table", ["transfers_stream", "links", "meta", "sqlite_master"])
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


def test_progress_is_told(conn: sqlite3.Connection) -> None:
    for (sql,) in conn.execute("SELECT sql FROM temp.dropped").fetchall():
        conn.execute(sql)
    told: list[tuple[int, int]] = []
    audit(conn, progress=lambda done, total: told.append((done, total)))
    assert told == [(17, 17)]


# --- links that agree with themselves and with the triggers, but break a rule ---------------------------------------------


def _signed(request: Request, outcome: Outcome, *, by: str = "") -> Entry:
    signed = queued(request).signed
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
    conn.execute("UPDATE links SET seq = -(SELECT count(*) FROM links AS before WHERE before.seq <= links.seq)")
    conn.execute("UPDATE links SET seq = -seq")
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


_INCOME: dict[str, tuple[Callable[[list[PostingHash], PostingHash], list[PostingHash]], str, str]] = {
    "the first of a stream left out": (lambda mine, _: mine[1:], "confirmation", "that of an earlier link"),
    "not oldest first": (lambda mine, _: mine[::-1], "body", "oldest first"),
    "another's": (lambda mine, other: [*mine, other], "recipient", "bob"),
    "a posting of nobody": (lambda mine, _: [*mine, PostingHash(bytes(32))], "hash", "confirms it"),
}


@pytest.mark.parametrize("name", _INCOME)
def test_a_link_that_takes_up_the_wrong_income_is_found(name: str) -> None:
    choose, column, expected = _INCOME[name]
    conn = memory_database()
    bank = with_history(conn)
    bank.pay("carol", ("bob", 4))
    bank.pay("carol", ("bob", 5))
    bank.pay("mint", ("carol", 6))
    link = bank.form([bank.transfer("bob", ("alice", 1))]).link
    assert link is not None
    (other,) = conn.execute("SELECT hash FROM transfers WHERE recipient = 'carol' AND confirmation IS NULL").fetchone()
    confirmed = choose(list(link.confirmed), other)
    amounts = dict(conn.execute("SELECT hash, amount FROM transfers"))
    gain = sum(amounts.get(p, 0) for p in confirmed) - sum(amounts[p] for p in link.confirmed)
    link = _altered(link, confirmed=tuple(confirmed), balance=link.balance + gain)
    _without_triggers(conn, link)
    fault = audit(conn).fault
    assert fault is not None
    assert fault.column == column
    assert expected in fault.expected


def _swap(conn: sqlite3.Connection, one: tuple[str, int], other: tuple[str, int]) -> None:
    """Exchange two links in the order of the log."""
    seqs = [
        conn.execute("SELECT seq FROM links WHERE account = ? AND height = ?", link).fetchone()[0]
        for link in (one, other)
    ]
    for old, new in ((seqs[0], -1), (seqs[1], seqs[0]), (-1, seqs[1])):
        conn.execute("UPDATE links SET seq = ? WHERE seq = ?", (new, old))


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
    (seq,) = conn.execute("SELECT count(*) + 1 FROM links").fetchone()
    postings = list(link.postings())
    conn.execute(
        "INSERT INTO links VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            seq, link.hash, link.account, link.height, link.prev_hash, link.balance, link.incoming_checksum, link.epoch,
            link.time_ms, len(postings), len(link.confirmed), len(list(link.outcomes())), link.raw[:HEADER_BYTES],
            link.raw[HEADER_BYTES:],
        ),
    )  # fmt: skip
    for number, hash_, posting, request in postings:
        assert hash_ == posting_hash(link.hash, number, Posting(posting.recipient, posting.amount, posting.memo))
        conn.execute(
            "INSERT INTO transfers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
            (
                hash_, link.hash, number, link.prev_hash, link.account, posting.recipient, posting.amount, posting.memo,
                link.balance, link.incoming_checksum, link.height, link.time_ms, request,
            ),
        )  # fmt: skip
    for confirmed in link.confirmed:
        conn.execute(
            "UPDATE transfers SET confirmation = ?1, prev_confirmed_hash = coalesce((SELECT b.hash FROM transfers AS b "
            "WHERE b.sender = transfers.sender AND b.recipient = transfers.recipient "
            "AND (b.height, b.number) < (transfers.height, transfers.number) "
            "ORDER BY b.height DESC, b.number DESC LIMIT 1), zeroblob(32)) WHERE hash = ?2",
            (link.hash, confirmed),
        )
    for number, (request_id, outcome) in enumerate(link.outcomes()):
        row = (request_id, link.account, link.hash, number, int(outcome))
        conn.execute("INSERT OR IGNORE INTO outcomes VALUES (?, ?, ?, ?, ?)", row)
    opened = [e.request for e in link.entries if e.request.kind is Kind.OPEN and link.height == 0]
    for made in opened:
        account = (
            link.account,
            made.asset,
            made.public_key,
            0,
            0,
            link.hash,
            link.balance,
            link.epoch,
            link.time_ms,
        )
        conn.execute("INSERT INTO accounts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", account)
    conn.execute(
        "UPDATE accounts SET height = ?, tip = ?, balance = ?, epoch = ?, time_ms = ? WHERE name = ?",
        (link.height, link.hash, link.balance, link.epoch, link.time_ms, link.account),
    )
    (value,) = conn.execute("SELECT value FROM meta WHERE key = 'log'").fetchone()
    seq_, count, xor = int.from_bytes(value[:8], "big"), int.from_bytes(value[8:16], "big"), value[16:]
    _reseal(conn, "log", LogHead(seq_, count, xor).after([link.hash]).encode())

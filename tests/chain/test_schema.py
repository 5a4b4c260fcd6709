"""The database refuses what is wrong, however it is written (design section 2).

Every statement here runs on a second, plain connection, as somebody with the sqlite3 shell would run it: no foreign
keys, CHECK constraints switched off. It must fail with the message of its trigger and change nothing. And without that
trigger the very same statement must succeed, so that each case is about its trigger.
"""

import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from chain.audit import audit
from chain.link import HEADER_BYTES, Entry, Link, LinkHash, Outcome, PostingHash, build_link, opening_slot
from chain.names import MAX_AMOUNT
from chain.reads import state_digest
from chain.request import REQUEST_HEAD_BYTES, DecodedRequest, Posting, sign
from chain.rows import VoteRow
from chain.schema import ID_BITS, STAGING_TABLES, create_schema, schema_faults, statements
from chain.seal import row_checksum
from chain.store import commit
from tests.chain.bank import NETWORK, NODE, VIEW, Bank, file_database, key_of, numbered, public_key_of, with_history


class Shell:
    """A second connection to the database of a bank, and what is needed to forge links on it."""

    def __init__(self, bank: Bank, conn: sqlite3.Connection) -> None:
        self.bank = bank
        self.conn = conn
        self.how = "INSERT"

    def run(self, sql: str, *values: object) -> None:
        self.conn.execute(numbered(sql), values)

    def one(self, sql: str, *values: object) -> tuple[Any, ...]:
        row = self.conn.execute(numbered(sql), values).fetchone()
        assert isinstance(row, tuple), sql
        return row

    def stage(self, link: Link, *, postings: bool = True, confirmations: bool = True, outcomes: bool = True) -> None:
        """Stage each posting as a row of its own. `stage_batch` has the other form."""
        first = self._first_id()
        for number, posting_hash, posting, request in link.postings():
            if postings:
                row = (first + number, posting_hash, posting.recipient, posting.amount, posting.memo, request)
                self.run("INSERT INTO new_postings VALUES (?, ?, ?, ?, ?, ?)", *row)
        for number, confirmed in enumerate(link.confirmed, first):
            if confirmations:
                truth = self.one(
                    "SELECT t.id, a.id, t.amount FROM transfers AS t JOIN accounts AS a ON a.name = t.sender WHERE t.hash = ?",
                    confirmed,
                )
                self.run("INSERT INTO new_confirmations VALUES (?, ?, ?, ?, ?)", number, confirmed, *truth)
        for number, (request, outcome) in enumerate(link.outcomes(), first):
            if outcomes:
                self.run("INSERT INTO new_outcomes VALUES (?, ?, ?)", number, request, int(outcome))

    def stage_batch(self, link: Link) -> None:
        """Stage all postings of the link's one request as one row, the rest as `stage` does."""
        self.stage(link, postings=False)
        ((at, entry),) = link.paying
        amounts = [posting.amount for posting in entry.request.postings]
        row = (
            self._first_id(), at, len(amounts), sum(amounts), entry.request_id, json.dumps(amounts),
            b"".join(link.posting_hashes), entry.signed.raw[REQUEST_HEAD_BYTES:],
        )  # fmt: skip
        self.run("INSERT INTO new_batches VALUES (?, ?, ?, ?, ?, ?, ?, ?)", *row)

    def next_seq(self) -> int:
        (last,) = self.conn.execute("SELECT max(seq) FROM links").fetchone()
        return int(last + 1)

    def _first_id(self) -> int:
        return self.next_seq() << ID_BITS

    def insert(self, link: Link, how: str = "", **columns: object) -> None:
        row: dict[str, object] = {
            "seq": self.next_seq(),
            "hash": link.hash,
            "account": link.account,
            "height": link.height,
            "prev_hash": link.prev_hash,
            "balance": link.balance,
            "incoming_checksum": link.incoming_checksum,
            "epoch": link.epoch,
            "time_ms": link.time_ms,
            "posting_count": sum(1 for _ in link.postings()),
            "confirmed_count": len(link.confirmed),
            "outcome_count": sum(1 for _ in link.outcomes()),
            "postings_before": self.one("SELECT coalesce(sum(posting_count), 0) FROM links")[0],
            "header": link.raw[:HEADER_BYTES],
            "body": link.raw[HEADER_BYTES:],
        }
        row |= columns
        slots = ", ".join("?" * len(row))
        self.conn.execute(f"{how or self.how} INTO links ({', '.join(row)}) VALUES ({slots})", tuple(row.values()))

    def next_link(self, name: str = "alice", *postings: tuple[str, int]) -> Link:
        """A right next link of the account, which takes up all its income."""
        link = self.bank.form([self.bank.transfer(name, *(postings or (("bob", 1), ("carol", 2))))]).link
        assert link is not None
        return link

    def opening(self, name: str = "dave", asset: str = "CZK") -> Link:
        link = self.bank.form([self.bank.opening(name, asset)]).link
        assert link is not None
        return link


def altered(link: Link, **fields: object) -> Link:
    """The link with other fields, encoded and hashed anew: a forgery that agrees with itself."""
    values = {name: getattr(link, name) for name in ("account", "height", "prev_hash", "balance", "epoch", "time_ms")}
    values |= {"entries": link.entries, "confirmed": link.confirmed} | fields
    return build_link(NETWORK, **values)


BOTH_WAYS: Final = pytest.mark.parametrize("shell", ["OFF", "ON"], ids=["plain", "recursive"], indirect=True)
"""Runs a test without and with `recursive_triggers`: with it, `OR REPLACE` runs delete triggers."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bank]:
    """A database, of which each test has a copy, and its bank; closed, so that the file is all of it."""
    path = tmp_path_factory.mktemp("schema") / "node.db"
    writer = file_database(path)
    bank = with_history(writer)
    link = bank.form([bank.transfer("carol", ("bob", 1))]).link
    assert link is not None
    vote = VoteRow(link.prev_hash, "carol", link.height, (1, 3, NODE), (1, 2, NODE), link.raw)
    commit(writer, [vote, VoteRow(LinkHash(VIEW[0]), "", 2, (1, 3, NODE))])
    writer.close()
    assert not path.with_name("node.db-wal").exists()
    return path, bank


@pytest.fixture
def shell(sound: tuple[Path, Bank], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shell]:
    path, bank = sound
    shutil.copy(path, tmp_path / "node.db")
    writer = file_database(tmp_path / "node.db")
    conn = sqlite3.connect(tmp_path / "node.db", isolation_level=None)
    conn.execute("PRAGMA foreign_keys=OFF")
    conn.execute("PRAGMA ignore_check_constraints=ON")
    conn.execute(f"PRAGMA recursive_triggers={getattr(request, 'param', 'OFF')}")
    yield Shell(bank.on(writer), conn)
    conn.close()
    writer.close()


# --- rows written by hand, one trigger each
# -----------------------------------------------------------------------------

_ANY_LINK = "(SELECT hash FROM links WHERE account = 'alice' AND height = 1)"
_NEXT = "(SELECT max(seq) + 1 FROM links)"
_NEW_ID = f"{_NEXT} << 14"
_POSTING = (
    "SELECT {id}, part, {hash}, recipient, {amount}, memo, request_id FROM postings WHERE recipient = 'bob' LIMIT 1"
)
_ADDED = _POSTING.format(id=_NEW_ID, hash="randomblob(32)", amount="amount")
_UNCONFIRMED = "SELECT posting FROM incoming WHERE recipient = #alice LIMIT 1"

BY_HAND: list[tuple[str, str, str]] = [
    ("links_update", "UPDATE links SET balance = balance + 1 WHERE seq = 9", "never changed"),
    ("links_update", "UPDATE OR IGNORE links SET epoch = 7", "never changed"),
    ("links_update", "UPDATE links SET postings_before = postings_before + 1", "never changed"),
    ("links_delete", "DELETE FROM links", "never deleted"),
    ("applying_insert", "INSERT INTO applying SELECT 1, hash, seq, account, #alice, 0 FROM links WHERE account = 'alice' AND height = 1", "one above the head"),
    ("applying_insert", "INSERT INTO applying VALUES (1, zeroblob(32), 1, 'alice', #alice, 0)", "one above the head"),
    ("postings_insert", f"INSERT INTO postings {_ADDED}", "only by the link"),
    ("postings_insert", f"INSERT OR IGNORE INTO postings {_ADDED}", "only by the link"),
    ("postings_insert", f"INSERT OR FAIL INTO postings {_ADDED}", "only by the link"),
    ("postings_insert", f"INSERT INTO postings {_POSTING.format(id='NULL', hash='randomblob(32)', amount='amount')}", "only by the"),
    ("postings_insert", f"INSERT INTO postings {_POSTING.format(id='-1', hash='randomblob(32)', amount='amount')}", "only by the"),
    ("postings_insert", "INSERT INTO postings (part, hash, recipient, amount, memo, request_id) VALUES (0, randomblob(32), 'bob', 5, '', x'00')",
                        "only by the link"),
    ("postings_insert", f"INSERT INTO postings {_POSTING.format(id='id + 99', hash='randomblob(32)', amount='amount')}", "only by the"),
    ("postings_insert", f"INSERT OR REPLACE INTO postings {_POSTING.format(id='id', hash='hash', amount='amount + 1')}", "only by the"),
    ("postings_update", "UPDATE postings SET amount = amount + 1", "never changes"),
    ("postings_update", "UPDATE postings SET amount = amount + 1 WHERE id IN (SELECT posting FROM incoming)", "never changes"),
    ("postings_update", "UPDATE OR IGNORE postings SET recipient = 'carol' WHERE recipient = 'bob'", "never changes"),
    ("postings_update", "UPDATE postings SET hash = randomblob(32)", "never changes"),
    ("postings_update", "UPDATE postings SET part = 1", "never changes"),
    ("postings_update", "UPDATE postings SET memo = 'other'", "never changes"),
    ("postings_update", "UPDATE postings SET request_id = randomblob(32)", "never changes"),
    ("postings_update", "UPDATE postings SET id = id + 5 WHERE id = (SELECT max(id) FROM postings)", "never changes"),
    ("postings_update", "UPDATE postings SET rowid = rowid + 5 WHERE id = (SELECT max(id) FROM postings)", "never changes"),
    ("postings_update", "UPDATE OR REPLACE postings SET id = (SELECT max(id) FROM postings) WHERE id = (SELECT min(id) FROM postings)",
                        "never changes"),
    ("postings_delete", "DELETE FROM postings", "never deleted"),
    ("postings_delete", "DELETE FROM postings WHERE id IN (SELECT posting FROM incoming)", "never deleted"),
    ("confirmations_insert", f"INSERT INTO confirmations SELECT {_NEW_ID}, ({_UNCONFIRMED}), NULL", "only by the link"),
    ("confirmations_insert", f"INSERT OR IGNORE INTO confirmations SELECT max(id) + 1, ({_UNCONFIRMED}), max(posting) FROM confirmations",
                             "only by the link"),
    ("confirmations_insert", f"INSERT INTO confirmations (posting) {_UNCONFIRMED}", "only by the link"),
    ("confirmations_insert", f"INSERT INTO confirmations SELECT -1, ({_UNCONFIRMED}), NULL", "only by the link"),
    ("confirmations_insert", "INSERT OR REPLACE INTO confirmations SELECT id + 1, posting, previous FROM confirmations", "only by the"),
    ("confirmations_insert", "INSERT OR REPLACE INTO confirmations SELECT id, posting, NULL FROM confirmations "
                             "WHERE previous IS NOT NULL", "only by the"),
    ("confirmations_update", f"UPDATE confirmations SET posting = ({_UNCONFIRMED}) WHERE id = (SELECT max(id) FROM confirmations)",
                             "never changes"),
    ("confirmations_update", "UPDATE OR REPLACE confirmations SET posting = (SELECT max(posting) FROM confirmations) "
                             "WHERE id = (SELECT min(id) FROM confirmations)", "never changes"),
    ("confirmations_update", "UPDATE OR IGNORE confirmations SET previous = NULL", "never changes"),
    ("confirmations_update", "UPDATE confirmations SET id = id + 5 WHERE id = (SELECT max(id) FROM confirmations)", "never changes"),
    ("confirmations_update", "UPDATE confirmations SET rowid = rowid + 5 WHERE id = (SELECT max(id) FROM confirmations)", "never changes"),
    ("confirmations_delete", "DELETE FROM confirmations", "never taken back"),
    ("confirmations_delete", "DELETE FROM confirmations WHERE id = (SELECT max(id) FROM confirmations)", "never taken back"),
    ("incoming_insert", "INSERT INTO incoming SELECT #bob, #alice, id, amount FROM postings WHERE id IN "
                        "(SELECT posting FROM confirmations)", "only by the link"),
    ("incoming_insert", f"INSERT INTO incoming SELECT #bob, #alice, {_NEW_ID}, 1000", "only by the link"),
    ("incoming_insert", "INSERT OR IGNORE INTO incoming SELECT recipient, #ezb, posting, amount FROM incoming", "only by the"),
    ("incoming_insert", "INSERT OR REPLACE INTO incoming SELECT recipient, sender, posting, amount + 1 FROM incoming",
                        "only by the link"),
    ("incoming_update", "UPDATE incoming SET amount = amount + 1", "never changes"),
    ("incoming_update", "UPDATE OR IGNORE incoming SET recipient = #bob WHERE recipient = #alice", "never changes"),
    ("incoming_update", "UPDATE incoming SET sender = #ezb WHERE recipient = #alice", "never changes"),
    ("incoming_update", "UPDATE incoming SET posting = posting + 1", "never changes"),
    ("incoming_update", "UPDATE OR REPLACE incoming SET recipient = #carol, sender = #mint, posting = "
                        "(SELECT max(posting) FROM incoming) WHERE recipient = #alice", "never changes"),
    ("incoming_delete", "DELETE FROM incoming", "taken up only by"),
    ("incoming_delete", "DELETE FROM incoming WHERE recipient = #alice", "taken up only by"),
    ("threads_insert", "INSERT INTO threads VALUES (#mint2, #alice, 5)", "only by a link"),
    ("threads_insert", "INSERT OR IGNORE INTO threads VALUES (#mint2, #alice, 5)", "only by a link"),
    ("threads_insert", "INSERT OR REPLACE INTO threads SELECT recipient, sender, 0 FROM threads", "only by a link"),
    ("threads_update", "UPDATE threads SET last = last - 1", "only by a link"),
    ("threads_update", "UPDATE threads SET last = last + 1", "only by a link"),
    ("threads_update", "UPDATE OR IGNORE threads SET sender = #mint2 WHERE recipient = #alice AND sender = #mint", "only by a"),
    ("threads_update", "UPDATE OR REPLACE threads SET recipient = #bob WHERE recipient = #alice", "only by a link"),
    ("threads_delete", "DELETE FROM threads", "never deleted"),
    ("threads_delete", "DELETE FROM threads WHERE recipient = #alice", "never deleted"),
    ("outcomes_insert", f"INSERT INTO outcomes VALUES (randomblob(32), 'alice', {_ANY_LINK}, 7, 0)", "only by the link"),
    ("outcomes_insert", "INSERT OR REPLACE INTO outcomes SELECT request_id, account, link_hash, number, 5 FROM outcomes LIMIT 1",
                        "only by the link"),
    ("outcomes_update", "UPDATE outcomes SET outcome = 0 WHERE outcome = 1", "final"),
    ("outcomes_delete", "DELETE FROM outcomes WHERE outcome = 5", "never deleted"),
    ("accounts_insert", f"INSERT INTO accounts VALUES ('rich', 99, 'CZK', zeroblob(32), 0, 0, {_ANY_LINK}, 0, 1, 1)", "by the link"),
    ("accounts_insert", "INSERT OR REPLACE INTO accounts SELECT name, id, asset, randomblob(32), issuer, height, tip, balance, "
                        "epoch, time_ms FROM accounts WHERE name = 'alice'", "by the link"),
    ("accounts_update", "UPDATE accounts SET issuer = 1 WHERE name = 'bob'", "nothing changes but"),
    ("accounts_update", "UPDATE accounts SET id = id + 1 WHERE name = 'bob'", "nothing changes but"),
    ("accounts_update", "UPDATE OR IGNORE accounts SET id = #alice WHERE name = 'bob'", "nothing changes but"),
    ("accounts_update", "UPDATE accounts SET public_key = randomblob(32) WHERE name = 'bob'", "nothing changes but"),
    ("accounts_update", "UPDATE accounts SET balance = balance + 1 WHERE name = 'bob'", "nothing changes but"),
    ("accounts_update", f"UPDATE accounts SET tip = {_ANY_LINK}, height = 1 WHERE name = 'alice'", "nothing changes but"),
    ("accounts_delete", "DELETE FROM accounts WHERE name = 'erik'", "never deleted"),
    ("views_insert", "INSERT OR REPLACE INTO views SELECT epoch, zeroblob(32), raw, checksum FROM views", "numbered"),
    ("views_insert", "INSERT INTO views SELECT 3, hash, raw, checksum FROM views", "numbered"),
    ("views_insert", "INSERT INTO views SELECT epoch - 1, hash, raw, checksum FROM views", "numbered"),
    ("views_insert", "INSERT OR IGNORE INTO views SELECT epoch + 2, hash, raw, checksum FROM views", "numbered"),
    ("views_update", "UPDATE views SET epoch = epoch + 1", "never changed"),
    ("views_update", "UPDATE views SET raw = zeroblob(3)", "never changed"),
    ("views_delete", "DELETE FROM views", "never deleted"),
    ("votes_insert", "INSERT OR REPLACE INTO votes SELECT slot, account, height, 1, 0, promised_node, accepted_epoch, "
                     "accepted_round, accepted_node, link, checksum FROM votes WHERE link IS NOT NULL", "never goes back"),
    ("votes_insert", "INSERT OR REPLACE INTO votes SELECT slot, account, height, promised_epoch, promised_round, promised_node, "
                     "NULL, NULL, NULL, NULL, checksum FROM votes WHERE link IS NOT NULL", "never goes back"),
    ("votes_insert", "INSERT OR REPLACE INTO votes SELECT slot, account, height, promised_epoch, promised_round, promised_node, "
                     "accepted_epoch, accepted_round - 1, accepted_node, link, checksum FROM votes WHERE link IS NOT NULL", "goes back"),
    ("votes_update", "UPDATE votes SET slot = randomblob(32) WHERE account <> ''", "stays in its slot"),
    ("votes_update", "UPDATE votes SET account = ''", "stays in its slot"),
    ("votes_update", "UPDATE votes SET height = 1 WHERE account = ''", "stays in its slot"),
    ("votes_update", "UPDATE votes SET promised_round = promised_round - 1", "never goes back"),
    ("votes_update", "UPDATE OR IGNORE votes SET promised_node = x'' WHERE account = ''", "never goes back"),
    ("votes_update", "UPDATE votes SET accepted_epoch = NULL", "never goes back"),
    ("votes_update", "UPDATE votes SET accepted_round = 0", "never goes back"),
    ("votes_delete", "DELETE FROM votes", "only when its slot is decided"),
    ("votes_delete", "DELETE FROM votes WHERE account = ''", "only when its slot is decided"),
    ("votes_delete", "DELETE FROM votes WHERE account <> ''", "only when its slot is decided"),
    ("meta_insert", "INSERT OR REPLACE INTO meta SELECT key, zeroblob(20), checksum FROM meta WHERE key = 'node_id'", "already"),
    ("meta_update", "UPDATE meta SET value = zeroblob(20) WHERE key = 'node_id'", "head of the log"),
    ("meta_delete", "DELETE FROM meta WHERE key = 'log'", "ever deleted"),
]  # fmt: skip


@BOTH_WAYS
@pytest.mark.parametrize(("trigger", "sql", "message"), BY_HAND)
def test_a_row_written_by_hand_is_refused_by_its_trigger(shell: Shell, trigger: str, sql: str, message: str) -> None:
    before = _dump(shell.conn)
    with pytest.raises(sqlite3.IntegrityError, match=message):
        shell.run(sql)
    assert _dump(shell.conn) == before
    shell.run("PRAGMA recursive_triggers=OFF")  # else a replaced row has its delete trigger too
    shell.run(f"DROP TRIGGER {trigger}")
    shell.run(sql)
    assert _dump(shell.conn) != before


ALSO_BY_HAND: list[tuple[str, str]] = [
    # more than one trigger is in the way, or another rule of SQLite
    (
        "INSERT INTO postings SELECT * FROM postings WHERE true ON CONFLICT DO UPDATE SET amount = amount + 1",
        "only by the link",
    ),
    ("INSERT INTO postings VALUES ('x', 0, randomblob(32), 'bob', 5, '', x'00')", "datatype mismatch"),
    (
        "INSERT INTO confirmations SELECT * FROM confirmations WHERE true ON CONFLICT (posting) DO UPDATE SET previous = NULL",
        "only by the link",
    ),
    (
        "INSERT INTO incoming SELECT * FROM incoming WHERE true ON CONFLICT DO UPDATE SET amount = amount + 1",
        "only by the link",
    ),
    ("INSERT INTO incoming VALUES (#bob, #alice, NULL, 5)", "NOT NULL"),
    ("INSERT OR REPLACE INTO incoming VALUES (NULL, #alice, 5, 5)", "only by the link"),
    ("INSERT INTO threads SELECT * FROM threads WHERE true ON CONFLICT DO UPDATE SET last = 0", "only by a link"),
    (
        "INSERT INTO votes SELECT * FROM votes WHERE true ON CONFLICT DO UPDATE SET promised_round = 0",
        "never goes back",
    ),
    ("INSERT OR REPLACE INTO threads VALUES (NULL, #bob, 5)", "NOT NULL"),
    ("UPDATE OR REPLACE threads SET recipient = NULL", "NOT NULL"),
]


@BOTH_WAYS
@pytest.mark.parametrize(("sql", "message"), ALSO_BY_HAND)
def test_these_are_refused_too(shell: Shell, sql: str, message: str) -> None:
    before = _dump(shell.conn)
    with pytest.raises(sqlite3.IntegrityError, match=message):
        shell.run(sql)
    assert _dump(shell.conn) == before


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO waiting SELECT * FROM waiting",
        "UPDATE waiting SET amount = amount + 1",
        "DELETE FROM waiting WHERE recipient = 'alice'",
        "INSERT INTO transfers SELECT * FROM transfers",
        "INSERT OR REPLACE INTO transfers (id, amount) VALUES (5, 5)",
        "UPDATE transfers SET amount = amount + 1",
        "UPDATE OR IGNORE transfers SET confirmation = NULL, prev_confirmed_hash = NULL",
        "DELETE FROM transfers",
    ],
)
def test_the_views_are_for_reading(shell: Shell, sql: str) -> None:
    before = _dump(shell.conn)
    with pytest.raises(sqlite3.OperationalError, match="it is a view"):
        shell.run(sql)
    assert _dump(shell.conn) == before


def test_a_temporary_table_does_not_stand_in_for_another(shell: Shell) -> None:
    """Triggers of the database see its own tables only."""
    shell.run(
        "CREATE TEMP TABLE applying AS SELECT 1 AS one, hash AS link_hash, max(seq) + 1 AS seq, 'alice' AS account, #alice AS account_id, 0 AS part FROM links"
    )
    for sql in (f"INSERT INTO main.postings {_ADDED}", "DELETE FROM main.incoming WHERE recipient = #alice"):
        with pytest.raises(sqlite3.IntegrityError, match="only by"):
            shell.run(sql)
    shell.run("DROP TABLE temp.applying")


def test_applying_cannot_be_handed_over(shell: Shell) -> None:
    """The row of `applying` never outlives its statement; were it there, it could not be pointed at another link."""
    shell.run("DROP TRIGGER applying_insert")
    shell.run("INSERT INTO applying VALUES (1, zeroblob(32), 1, 'alice', #alice, 0)")
    with pytest.raises(sqlite3.IntegrityError, match="one link at a time"):
        shell.run("UPDATE applying SET link_hash = randomblob(32)")


def test_every_trigger_is_broken_by_a_case_here() -> None:
    triggers = {statement.split()[2] for statement in statements() if statement.startswith("CREATE TRIGGER")}
    carried_out = {f"{table}_delete" for table in STAGING_TABLES[1:]}
    by_links = {"links_insert", "links_apply", "applying_update"}
    assert {trigger for trigger, _, _ in BY_HAND} | by_links | carried_out == triggers


# --- forged links: what links_apply refuses
# ------------------------------------------------------------------------------


def _good(shell: Shell) -> Link:
    link = shell.next_link()
    shell.stage(link)
    return link


def _unconfirmed(shell: Shell, recipient: str) -> PostingHash:
    row = shell.conn.execute(
        "SELECT hash FROM transfers WHERE recipient = ? AND confirmation IS NULL ORDER BY height, number", (recipient,)
    ).fetchone()
    return PostingHash(row[0])


def _column(**columns: object) -> Callable[[Shell], None]:
    return lambda shell: shell.insert(_good(shell), **columns)


def _forged(**fields: object) -> Callable[[Shell], None]:
    def forge(shell: Shell) -> None:
        link = altered(shell.next_link(), **fields)
        shell.stage(link)
        shell.insert(link)

    return forge


def _staged(sql: str) -> Callable[[Shell], None]:
    """The right link, but its staged rows are changed before it is inserted."""

    def forge(shell: Shell) -> None:
        link = _good(shell)
        shell.run(sql)
        shell.insert(link)

    return forge


def _lies(sql: str, gain: int = 0) -> Callable[[Shell], None]:
    """A link whose staged confirmations are changed, and whose balance is what follows from them."""

    def forge(shell: Shell) -> None:
        good = shell.next_link()
        shell.stage(good)
        shell.run(sql)
        shell.insert(altered(good, balance=good.balance + gain))

    return forge


_POSTING_BESIDE = "INSERT INTO new_postings SELECT id + 1, randomblob(32), 'bob', 1, '', zeroblob(32) FROM new_batches"
_OTHER = "FROM incoming AS i WHERE i.recipient = #alice AND i.sender <> new_confirmations.sender"
_FIRST = "WHERE sender = #carol"  # the smaller of the two confirmations of a good link: 3 from carol, 11 from mint


def _batch(sql: str, **columns: object) -> Callable[[Shell], None]:
    """The right link with its two postings, of 1 and 2, staged as a batch, which is changed before it is inserted."""

    def forge(shell: Shell) -> None:
        link = shell.next_link("alice", ("bob", 1), ("carol", 2))
        shell.stage_batch(link)
        shell.run(sql)
        shell.insert(link, **columns)

    return forge


def _batch_to(name: str) -> Callable[[Shell], None]:
    """A link whose batch pays somebody whom it cannot pay, in its very bytes."""

    def forge(shell: Shell) -> None:
        good = shell.next_link("alice", ("bob", 1), ("carol", 2))
        request = msgspec.structs.replace(good.entries[0].request, postings=(Posting("bob", 1), Posting(name, 2)))
        signed = sign(request, key_of("alice"))
        link = altered(good, entries=(Entry(signed, request, signed.request_id, Outcome.COMPLETED),))
        shell.stage_batch(link)
        shell.insert(link)

    return forge


def _cut_after(size: int) -> Callable[[Shell], None]:
    """The right bytes, divided at another place."""

    def forge(shell: Shell) -> None:
        link = _good(shell)
        shell.insert(link, header=link.raw[:size], body=link.raw[size:])

    return forge


def _on_anothers_tip(shell: Shell) -> None:
    (tip,) = shell.one("SELECT tip FROM accounts WHERE name = 'bob'")
    _forged(prev_hash=tip)(shell)


def _time_stands_still(shell: Shell) -> None:
    link = shell.next_link()
    (time_ms,) = shell.conn.execute("SELECT time_ms FROM accounts WHERE name = 'alice'").fetchone()
    link = altered(link, time_ms=time_ms)
    shell.stage(link)
    shell.insert(link)


def _two_links_on_one_tip(shell: Shell) -> None:
    first, second = shell.next_link(), shell.next_link("alice", ("carol", 5))
    shell.stage(first)
    shell.insert(first)
    shell.stage(second)
    shell.insert(second, prev_hash=second.prev_hash)


def _confirms_anothers(shell: Shell) -> None:
    """A link that takes up carol's oldest posting too."""
    _confirms_also(shell, _unconfirmed(shell, "carol"))


def _confirms_also(shell: Shell, posting: bytes) -> None:
    link = shell.next_link()
    (amount,) = shell.one("SELECT amount FROM transfers WHERE hash = ?", posting)
    link = altered(link, confirmed=(*link.confirmed, posting), balance=link.balance + amount)
    shell.stage(link)
    shell.insert(link)


def _confirms_again(shell: Shell) -> None:
    (used,) = shell.one("SELECT hash FROM transfers WHERE recipient = 'alice' AND confirmation IS NOT NULL LIMIT 1")
    _confirms_also(shell, used)


def _confirms_twice(shell: Shell) -> None:
    _confirms_also(shell, _unconfirmed(shell, "alice"))


def _confirms_another_hash(shell: Shell) -> None:
    """The body lists a posting that is not there; it is staged as one that is."""
    good = shell.next_link()
    shell.stage(good)
    made_up = bytes(range(32))
    shell.run("UPDATE new_confirmations SET hash = ? WHERE id & 16383 = 0", made_up)
    shell.insert(altered(good, confirmed=(made_up, *good.confirmed[1:])))


def _exchanges_hashes(shell: Shell) -> None:
    """Each of two postings is confirmed, under the hash of the other one."""
    good = shell.next_link()
    shell.stage(good)
    first, second = good.confirmed
    shell.run("UPDATE new_confirmations SET hash = iif(hash = ?1, ?2, ?1)", first, second)
    shell.insert(altered(good, confirmed=(second, first)))


def _confirms_what_no_body_lists(shell: Shell) -> None:
    good = shell.next_link()
    shell.stage(good)
    shell.insert(altered(good, confirmed=()))


def _leaves_one_out(shell: Shell) -> None:
    """The body lists two, and one of them is staged; the balance agrees with the one."""
    good = shell.next_link()
    shell.stage(good)
    (amount,) = shell.one("SELECT amount FROM new_confirmations WHERE id & 16383 = 1")
    shell.run("DELETE FROM new_confirmations WHERE id & 16383 = 1")
    shell.insert(altered(good, balance=good.balance - amount))


def _stream_backwards(shell: Shell) -> None:
    shell.bank.pay("bob", ("alice", 5))
    shell.bank.pay("bob", ("alice", 6))
    link = shell.next_link()
    amounts = dict(shell.conn.execute("SELECT hash, amount FROM transfers"))
    at = [n for n, posting in enumerate(link.confirmed) if amounts[posting] in (5, 6)]
    confirmed = list(link.confirmed)
    confirmed[at[0]], confirmed[at[1]] = confirmed[at[1]], confirmed[at[0]]
    link = altered(link, confirmed=tuple(confirmed))
    shell.stage(link)
    shell.insert(link)


def _skips_one_of_the_stream(shell: Shell) -> None:
    shell.bank.pay("bob", ("alice", 5))
    shell.bank.pay("bob", ("alice", 6))
    link = shell.next_link()
    amounts = dict(shell.conn.execute("SELECT hash, amount FROM transfers"))
    first = next(p for p in link.confirmed if amounts[p] == 5)
    kept = tuple(p for p in link.confirmed if p != first)
    link = altered(link, confirmed=kept, balance=link.balance - 5)
    shell.stage(link)
    shell.insert(link)


def _pays_more_than_it_has(shell: Shell) -> None:
    link = shell.next_link("alice", ("bob", 1))
    poorer = Posting("bob", link.balance + 2)
    entry = link.entries[0]
    request = shell.bank.transfer("alice", (poorer.recipient, poorer.amount))
    signed = DecodedRequest(entry.signed, request, entry.request_id)
    forged = type(entry)(signed.signed, request, signed.request_id, entry.outcome)
    link = altered(link, entries=(forged,), balance=-1)
    shell.stage(link)
    shell.insert(link)


def _overflows(balance: int) -> Callable[[Shell], None]:
    """2^63-2 + 1030 becomes a REAL, which rounds; the trigger must not compare with it."""

    def forge(shell: Shell) -> None:
        shell.bank.open("rich")
        shell.bank.issuer_limit = MAX_AMOUNT
        shell.bank.pay("mint2", ("rich", MAX_AMOUNT))
        shell.bank.pay("rich", ("bob", 1))
        shell.bank.pay("mint", ("rich", 1030))
        link = shell.next_link("rich", ("bob", 4096))
        assert link.confirmed == ()  # the rules leave it where it is
        link = altered(link, confirmed=(_unconfirmed(shell, "rich"),), balance=balance)
        shell.stage(link)
        shell.insert(link)

    return forge


def _opens(asset: str = "CZK", key: bytes = bytes(32), issuer: int = 0, **fields: object) -> Callable[[Shell], None]:
    def forge(shell: Shell) -> None:
        link = altered(shell.opening(), **fields) if fields else shell.opening()
        shell.stage(link)
        shell.run("INSERT INTO new_accounts VALUES (?, ?, ?, ?)", shell.next_seq(), asset, key, issuer)
        shell.insert(link)

    return forge


def _opens_and_pays(shell: Shell) -> None:
    """An opening beside which a posting of somebody else's is staged."""
    link, other = shell.opening(), shell.next_link("alice", ("bob", 1))
    shell.stage(other, confirmations=False, outcomes=False)
    shell.stage(link)
    shell.run("INSERT INTO new_accounts VALUES (?, 'CZK', zeroblob(32), 0)", shell.next_seq())
    shell.insert(link)


def _opens_with_a_posting(shell: Shell) -> None:
    link = shell.opening()
    shell.stage(link)
    shell.run("INSERT INTO new_accounts VALUES (?, 'CZK', zeroblob(32), 0)", shell.next_seq())
    shell.insert(link, posting_count=1)


def _opens_and_confirms(shell: Shell) -> None:
    link = altered(shell.opening(), confirmed=(_unconfirmed(shell, "carol"),))
    shell.stage(link)
    shell.run("INSERT INTO new_accounts VALUES (?, 'CZK', zeroblob(32), 0)", shell.next_seq())
    shell.insert(link)


def _opens_without_an_account(shell: Shell) -> None:
    link = shell.opening()
    shell.stage(link)
    shell.insert(link)


def _opens_a_name_again(shell: Shell) -> None:
    link = altered(shell.opening(), account="alice", prev_hash=opening_slot(NETWORK, "alice2"))
    shell.stage(link)
    shell.run("INSERT INTO new_accounts VALUES (?, 'CZK', zeroblob(32), 0)", shell.next_seq())
    shell.insert(link, height=0)


FORGED: list[tuple[str, Callable[[Shell], None], str]] = [
    ("seq leaves a gap", _column(seq=10_000), "seq is not one above"),
    ("seq below the log", _column(seq=-3), "seq is not one above"),
    ("seq taken", _column(seq=3), "already there"),
    ("postings_before too high", _column(postings_before=10_000), "postings_before is not the number"),
    ("postings_before one too low", _column(postings_before=14), "postings_before is not the number"),
    ("postings_before zero", _column(postings_before=0), "postings_before is not the number"),
    ("postings_before below zero", _column(postings_before=-1), "postings_before is not the number"),
    ("short hash", _column(hash=b"short"), "what the header says"),
    ("short header", _column(header=b""), "what the header says"),
    ("a header that takes a byte of the body", _cut_after(HEADER_BYTES + 1), "what the header says"),
    ("another account", _column(account="alic"), "one above the head"),
    ("another height", _column(height=9), "one above the head"),
    ("another prev_hash", _column(prev_hash=bytes(32)), "what the header says"),
    ("another balance", _column(balance=1_000_000), "what the header says"),
    ("another checksum", _column(incoming_checksum=bytes(32)), "what the header says"),
    ("another epoch", _column(epoch=2), "what the header says"),
    ("another time", _column(time_ms=9_999_999), "what the header says"),
    ("confirmed_count below zero", _column(confirmed_count=-1), "what the body says"),
    ("confirmed_count too low", _column(confirmed_count=0), "what the body says"),
    ("a height too far", _forged(height=9), "one above the head"),
    ("a slot from nowhere", _forged(prev_hash=bytes(32)), "prev_hash is not the tip"),
    ("the tip of another account", _on_anothers_tip, "prev_hash is not the tip"),
    ("a height below zero", _forged(height=0, prev_hash=bytes(32)), "already there"),
    ("time stands still", _time_stands_still, "prev_hash is not the tip"),
    ("two links on one tip", _two_links_on_one_tip, "already there"),
    ("an unknown sender", _forged(account="nobody", prev_hash=bytes(32)), "one above the head"),
    ("a posting number twice as high", _staged("UPDATE new_postings SET id = id + 1 WHERE id & 16383 = 1"), "wrong number"),
    ("a posting number below zero", _staged("UPDATE new_postings SET id = id - 2 WHERE id & 16383 = 1"), "posting_count"),
    ("a short posting hash", _staged("UPDATE new_postings SET hash = x'00' WHERE id & 16383 = 1"), "wrong number, hash"),
    ("a short request id", _staged("UPDATE new_postings SET request_id = x'00' WHERE id & 16383 = 1"), "wrong number, hash"),
    ("a posting number with a gap", _staged("UPDATE new_postings SET id = id + 7 WHERE id & 16383 = 1"), "wrong number"),
    ("a posting of the next link", _staged("UPDATE new_postings SET id = id + 16384 WHERE id & 16383 = 1"), "posting_count"),
    ("an amount of zero", _staged("UPDATE new_postings SET amount = 0 WHERE id & 16383 = 1"), "request or amount"),
    ("a negative amount", _staged("UPDATE new_postings SET amount = -5 WHERE id & 16383 = 1"), "request or amount"),
    ("an amount of zero, made up for", _staged("UPDATE new_postings SET amount = 3 * (id & 16383)"), "request or amount"),
    ("a negative amount, made up for", _staged("UPDATE new_postings SET amount = 8 - 13 * (id & 16383)"), "request or amount"),
    ("an unknown recipient", _staged("UPDATE new_postings SET recipient = 'nobody' WHERE id & 16383 = 1"), "same asset"),
    ("a recipient of another asset", _staged("UPDATE new_postings SET recipient = 'erik' WHERE id & 16383 = 1"), "same asset"),
    ("itself as recipient", _staged("UPDATE new_postings SET recipient = 'alice' WHERE id & 16383 = 1"), "another account"),
    ("a posting missing", _staged("DELETE FROM new_postings WHERE id & 16383 = 0"), "posting_count"),
    ("another amount", _staged("UPDATE new_postings SET amount = 1000 WHERE id & 16383 = 1"), "balance before"),
    ("a confirmation missing", _staged("DELETE FROM new_confirmations WHERE id & 16383 = 0"), "balance before"),
    ("a confirmation missing, made up for", _leaves_one_out, "confirmed_count is not the number"),
    ("another confirmation", _staged("UPDATE new_confirmations SET hash = randomblob(32) WHERE id & 16383 = 0"), "body lists"),
    ("a confirmation in another place", _staged("UPDATE new_confirmations SET id = id + 1 WHERE id & 16383 = 1"), "body lists"),
    ("a confirmation without a hash beyond the list",
     _staged("UPDATE new_confirmations SET id = id + 1, hash = x'' WHERE id & 16383 = 1"), "confirmed_count is not the number"),
    ("a confirmation of the last number", _staged("UPDATE new_confirmations SET id = id | 16383 WHERE id & 16383 = 1"), "body lists"),
    ("a confirmation of the next link", _lies("UPDATE new_confirmations SET id = id + 16384 WHERE id & 16383 = 1", -11),
     "confirmed_count is not the number"),
    ("confirmations that no body lists", _confirms_what_no_body_lists, "body lists"),
    ("a confirmation with another hash, in the body too", _confirms_another_hash, "confirmed_count is not the number"),
    ("a confirmation of another posting id", _lies("UPDATE new_confirmations SET posting = posting + 1"),
     "confirmed_count is not the number"),
    ("confirmations with their posting ids exchanged",
     _lies(f"UPDATE new_confirmations SET posting = (SELECT posting {_OTHER})"), "confirmed_count is not the number"),
    ("one posting under two hashes",
     _lies(f"UPDATE new_confirmations SET (posting, sender, amount) = (SELECT posting, sender, amount {_OTHER}) {_FIRST}", 8),
     "confirmed_count is not the number"),
    ("a confirmation of another sender", _lies(f"UPDATE new_confirmations SET sender = #bob {_FIRST}"),
     "confirmed_count is not the number"),
    ("a confirmation of a sender that is none", _lies(f"UPDATE new_confirmations SET sender = 0 {_FIRST}"),
     "confirmed_count is not the number"),
    ("a confirmation of a greater amount", _lies("UPDATE new_confirmations SET amount = amount + 1", 2),
     "confirmed_count is not the number"),
    ("a confirmation of a smaller amount", _lies(f"UPDATE new_confirmations SET amount = 1 {_FIRST}", -2),
     "confirmed_count is not the number"),
    ("confirmations with their amounts exchanged", _lies("UPDATE new_confirmations SET amount = 14 - amount"),
     "confirmed_count is not the number"),
    ("another's posting confirmed", _confirms_anothers, "confirmed_count is not the number"),
    ("confirmations with their hashes exchanged, in the body too", _exchanges_hashes, "confirmed_count is not the number"),
    ("a posting confirmed again", _confirms_again, "confirmed_count is not the number"),
    ("a posting confirmed twice", _confirms_twice, "confirmed_count is not the number"),
    ("one of the stream skipped", _skips_one_of_the_stream, "not the next one of its sender"),
    ("two of the stream exchanged", _stream_backwards, "not the next one of its sender"),
    ("a batch of other records", _batch("UPDATE new_batches SET records = zeroblob(256)"), "not what the body lists"),
    ("a batch from another place", _batch("UPDATE new_batches SET at = at - 1"), "not what the body lists"),
    ("a batch that begins later", _batch("UPDATE new_batches SET id = id + 1"), "not what the body lists"),
    ("a batch of none", _batch("UPDATE new_batches SET count = 0, amounts = '[]', hashes = x'', records = x''"),
     "not what the body lists"),
    ("a batch with a short request id", _batch("UPDATE new_batches SET request_id = x'00'"), "not what the body lists"),
    ("a batch with a hash missing", _batch("UPDATE new_batches SET hashes = zeroblob(32)"), "not what the body lists"),
    ("a batch with an amount missing", _batch("UPDATE new_batches SET amounts = '[3]'"), "not what the body lists"),
    ("a batch of one posting of two", _batch("UPDATE new_batches SET count = 1, amounts = '[3]', total = 3, "
     "hashes = substr(hashes, 1, 32), records = substr(records, 1, 128)"), "posting_count"),
    ("a batch missing", _batch("DELETE FROM new_batches"), "posting_count"),
    ("a batch beside its own postings", _batch(_POSTING_BESIDE, posting_count=3), "numbers of other postings"),
    ("a batch beside itself", _batch("INSERT INTO new_batches SELECT id + 1, at, count, total, request_id, amounts, hashes, "
     "records FROM new_batches", posting_count=4), "numbers of other postings"),
    ("a batch of another total", _batch("UPDATE new_batches SET total = 4"), "balance before"),
    ("a batch of other amounts", _batch("UPDATE new_batches SET amounts = '[1, 3]'"), "another total"),
    ("a batch with a negative amount", _batch("UPDATE new_batches SET amounts = '[4, -1]'"), "that is none"),
    ("a batch with an amount of zero", _batch("UPDATE new_batches SET amounts = '[3, 0]'"), "that is none"),
    ("a batch with an amount in letters", _batch("UPDATE new_batches SET amounts = '[\"1\", 2]'"), "that is none"),
    ("a batch with amounts that are no list", _batch("UPDATE new_batches SET amounts = '{\"0\": 1, \"1\": 2}'"), "not what the body lists"),
    ("a batch of the next link", _batch("UPDATE new_batches SET id = id + 16384"), "posting_count"),
    ("a batch with half an amount", _batch("UPDATE new_batches SET amounts = '[1.5, 1.5]'"), "that is none"),
    ("a batch to an unknown name", _batch_to("nobody"), "same asset"),
    ("a batch to another asset", _batch_to("erik"), "same asset"),
    ("a batch to itself", _batch_to("alice"), "another account"),
    ("a balance one too high", _forged(balance=10_000), "balance before"),
    ("a balance one too low", _lies("SELECT 1", -1), "balance before"),
    ("a balance below zero", _pays_more_than_it_has, "below zero"),
    ("a balance above 2^63-1 on the way", _overflows(MAX_AMOUNT - 1 + 1030 - 4096), "balance before"),
    ("a balance above 2^63-1 on the way, rounded", _overflows(int(float(MAX_AMOUNT - 1) + 1030 - 4096)), "balance before"),
    ("an outcome missing", _staged("DELETE FROM new_outcomes"), "outcome_count"),
    ("an outcome too many", _column(outcome_count=2), "outcome_count"),
    ("an outcome that is recorded", _staged("UPDATE new_outcomes SET request_id = (SELECT request_id FROM outcomes "
     "WHERE account = 'alice' LIMIT 1)"), "outcome_count"),
    ("a short request id settled", _staged("UPDATE new_outcomes SET request_id = x'00'"), "outcome_count"),
    ("an outcome number too high", _staged("UPDATE new_outcomes SET id = id + 5"), "outcome_count"),
    ("no account opened at height 0", _opens_without_an_account, "opens an account"),
    ("an account opened again by a later link", _staged(f"INSERT INTO new_accounts VALUES ({_NEXT}, 'CZK', zeroblob(32), 0)"),
     "opens an account"),
    ("a posting beside an opening", _opens_and_pays, "wrong number"),
    ("a posting of an opening", _opens_with_a_posting, "an opening moves no money"),
    ("a confirmation of an opening", _opens_and_confirms, "an opening moves no money"),
    ("a name opened again", _opens_a_name_again, "already there"),
    ("money at height 0", _opens(balance=5), "an opening moves no money"),
    ("a short key", _opens(key=b"short"), "by the link that opens it"),
    ("an issuer that is not in the genesis file", _opens(issuer=1), "issuers come from"),
    ("half an issuer", _opens(issuer=2), "issuers come from"),
]  # fmt: skip


HOWS: Final = ("INSERT OR REPLACE", "INSERT OR IGNORE", "INSERT OR FAIL", "INSERT OR ROLLBACK", "REPLACE")


@BOTH_WAYS
@pytest.mark.parametrize(("forge", "message"), [pytest.param(f, m, id=name) for name, f, m in FORGED])
def test_a_forged_link_is_refused(shell: Shell, forge: Callable[[Shell], None], message: str) -> None:
    with pytest.raises(sqlite3.IntegrityError, match=re.escape(message)):
        forge(shell)
    _nothing_but_staging(shell)


@pytest.mark.parametrize("how", ["INSERT OR REPLACE", "INSERT OR IGNORE", "INSERT OR FAIL"])
@pytest.mark.parametrize(("forge", "message"), [pytest.param(f, m, id=name) for name, f, m in FORGED])
def test_a_forged_link_is_refused_whatever_it_says_of_conflicts(
    shell: Shell, how: str, forge: Callable[[Shell], None], message: str
) -> None:
    shell.how = how
    with pytest.raises(sqlite3.IntegrityError, match=re.escape(message)):
        forge(shell)
    assert shell.one("SELECT count(*) FROM applying") == (0,)
    _nothing_but_staging(shell)


@pytest.mark.parametrize("how", ["INSERT", "INSERT OR FAIL", "INSERT OR IGNORE"])
@pytest.mark.parametrize(
    ("sql", "message"),
    [
        (f"UPDATE new_batches SET amounts = '[{MAX_AMOUNT}, 1]'", "integer overflow"),
        ("UPDATE new_batches SET amounts = '[1, '", "malformed JSON"),
    ],
)
def test_what_sqlite_cannot_add_or_read_is_no_link(shell: Shell, how: str, sql: str, message: str) -> None:
    link = shell.next_link()
    shell.stage_batch(link)
    shell.run(sql)
    before = _dump(shell.conn)
    with pytest.raises(sqlite3.OperationalError, match=message):
        shell.insert(link, how=how)
    assert _dump(shell.conn) == before


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE new_confirmations SET posting = (SELECT min(id) FROM postings) WHERE id & 16383 = 1",
        "UPDATE new_outcomes SET request_id = (SELECT request_id FROM outcomes WHERE account = 'alice' LIMIT 1)",
    ],
)
def test_conflict_clauses_do_not_reach_the_inner_statements(shell: Shell, how: str, sql: str) -> None:
    """SQLite hands the OR clause of a statement down to its triggers, unless they say ON CONFLICT themselves."""
    link = _good(shell)
    shell.run(sql)
    with pytest.raises(sqlite3.IntegrityError, match=r"_count is not the number"):
        shell.insert(link, how=how)
    _nothing_but_staging(shell)


_THE_FIRST = f"{_NEXT} << 14"  # the id of the first posting or confirmation of the next link
DAMAGED: list[tuple[str, str, bool, str]] = [
    ("postings_insert", f"INSERT INTO postings VALUES ({_THE_FIRST}, 0, randomblob(32), 'bob', 1, '', x'00')", False, "posting_count"),
    ("postings_insert", f"INSERT INTO postings VALUES ({_THE_FIRST}, 0, randomblob(32), 'bob', 1, '', x'00')", True, "posting that is there"),
    ("incoming_insert", f"INSERT INTO incoming VALUES (#bob, #alice, {_THE_FIRST}, 1)", False, "posting_count"),
    ("incoming_insert", f"INSERT INTO incoming VALUES (#bob, #alice, {_THE_FIRST}, 1)", True, "posting_count"),
    ("confirmations_insert", f"INSERT INTO confirmations VALUES ({_THE_FIRST}, 5, NULL)", False, "confirmed_count is not the number"),
    ("confirmations_insert", f"INSERT INTO confirmations SELECT 5, ({_UNCONFIRMED}), NULL", False, "confirmed_count is not the number"),
    ("threads_update", f"UPDATE threads SET last = {_THE_FIRST} WHERE recipient = #alice", False, "not the next one of its sender"),
    ("threads_update", "UPDATE threads SET last = (SELECT posting FROM incoming AS i WHERE i.recipient = threads.recipient "
                       "AND i.sender = threads.sender) WHERE recipient = #alice AND sender = #mint", False, "not the next one"),
]  # fmt: skip


@pytest.mark.parametrize("how", ["INSERT", *HOWS])
@pytest.mark.parametrize(("trigger", "sql", "batch", "message"), DAMAGED)
def test_a_right_link_does_not_write_over_damage(
    shell: Shell, how: str, trigger: str, sql: str, batch: bool, message: str
) -> None:
    """A row is where the link's own would go, which only a missing trigger can have let in: it stays, and the link is
    refused."""
    link = shell.next_link()
    _without(shell, trigger, sql)
    shell.stage_batch(link) if batch else shell.stage(link)
    before = _dump(shell.conn)
    with pytest.raises(sqlite3.IntegrityError, match=message):
        shell.insert(link, how=how)
    assert _dump(shell.conn) == before


@pytest.mark.parametrize("how", ["INSERT", *HOWS])
def test_an_opening_does_not_write_over_damage(shell: Shell, how: str) -> None:
    """An account below height 0, which only a missing trigger can have let in, has the name that is opened, and another
    key."""
    link = shell.opening()
    _without(
        shell,
        "accounts_insert",
        f"INSERT INTO accounts VALUES ('dave', {_NEXT}, 'CZK', zeroblob(32), 0, -1, {_ANY_LINK}, 0, 1, 1)",
    )
    shell.stage(link)
    shell.run("INSERT INTO new_accounts VALUES (?, 'CZK', ?, 0)", shell.next_seq(), public_key_of("dave"))
    before = _dump(shell.conn)
    with pytest.raises(sqlite3.IntegrityError, match="opens an account"):
        shell.insert(link, how=how)
    assert _dump(shell.conn) == before


_APPLIED = "(SELECT seq FROM applying)"
WHILE_APPLYING: list[tuple[str, str]] = [
    ("INSERT INTO applying SELECT 2, link_hash, seq, account, account_id, part FROM applying", "one above the head"),
    ("INSERT OR REPLACE INTO applying SELECT * FROM applying", "one above the head"),
    (f"INSERT INTO postings SELECT {_APPLIED} + 1 << 14, 0, randomblob(32), 'bob', 1, '', x'00'", "only by the link"),
    (
        f"INSERT INTO postings SELECT {_APPLIED} - 1 << 14 | 99, 0, randomblob(32), 'bob', 1, '', x'00'",
        "only by the link",
    ),
    (f"INSERT INTO postings SELECT {_APPLIED} << 14 | 99, 1, randomblob(32), 'bob', 1, '', x'00'", "only by the link"),
    (f"INSERT INTO postings SELECT {_APPLIED} << 14 | 99, -1, randomblob(32), 'bob', 1, '', x'00'", "only by the link"),
    (
        f"INSERT INTO confirmations SELECT {_APPLIED} - 1 << 14 | 99, posting, NULL FROM incoming WHERE recipient = #carol LIMIT 1",
        "only by the link",
    ),
    (f"INSERT INTO incoming SELECT #bob, #alice, {_APPLIED} - 1 << 14 | 99, 1", "only by the link"),
    ("DELETE FROM incoming WHERE recipient = #carol", "only by the link"),
    ("UPDATE incoming SET amount = 1 WHERE recipient = #alice", "never changes"),
    ("INSERT INTO threads VALUES (#mint2, #alice, 5)", "only by a link"),
    ("UPDATE threads SET last = 5 WHERE recipient = #bob", "only by a link"),
    (
        "UPDATE threads SET recipient = #alice, sender = #mint2 WHERE recipient = #bob AND sender = #mint",
        "only by a link",
    ),
    ("UPDATE threads SET recipient = #alice WHERE recipient = #bob AND sender = #alice", "only by a link"),
    ("UPDATE threads SET recipient = #mint2 WHERE recipient = #alice AND sender = #mint", "only by a link"),
    ("UPDATE threads SET sender = #mint2 WHERE recipient = #alice AND sender = #mint", "only by a link"),
    ("DELETE FROM threads WHERE recipient = #alice", "never deleted"),
    ("UPDATE accounts SET id = 99, tip = (SELECT link_hash FROM applying) WHERE name = 'bob'", "nothing changes but"),
    ("UPDATE accounts SET id = 99, tip = (SELECT link_hash FROM applying) WHERE name = 'alice'", "nothing changes but"),
    (
        "UPDATE accounts SET id = #alice, tip = (SELECT link_hash FROM applying) WHERE name = 'bob'",
        "nothing changes but",
    ),
    (
        "UPDATE accounts SET balance = 99, tip = (SELECT link_hash FROM applying) WHERE name = 'bob'",
        "nothing changes but",
    ),
    ("DELETE FROM confirmations", "never taken back"),
    ("UPDATE postings SET amount = 1", "never changes"),
    ("UPDATE confirmations SET previous = NULL", "never changes"),
]


@pytest.mark.parametrize(("sql", "message"), WHILE_APPLYING)
def test_while_a_link_is_applied_only_its_own_rows_are_written(shell: Shell, sql: str, message: str) -> None:
    """A temporary trigger of the shell can write while `applying` names a link; what is not that link's is refused."""
    # with plain names: a trigger's statements cannot name a database
    shell.run(f"CREATE TEMP TRIGGER beside AFTER INSERT ON main.applying BEGIN {sql}; END")
    link = _good(shell)
    before = _dump(shell.conn)
    with pytest.raises(sqlite3.IntegrityError, match=message):
        shell.insert(link)
    assert _dump(shell.conn) == before
    shell.run("DROP TRIGGER beside")
    shell.insert(link)


def test_what_a_temporary_trigger_adds_to_a_link_is_found_by_the_audit(shell: Shell) -> None:
    """It can write rows under the link that is applied, as if the triggers had been dropped: no trigger can see
    that."""
    shell.run(
        "CREATE TEMP TRIGGER beside AFTER INSERT ON main.applying BEGIN "
        "INSERT INTO postings VALUES (NEW.seq << 14 | 99, NEW.part, zeroblob(32), 'carol', 1000, '', zeroblob(32)); "
        "INSERT INTO incoming VALUES (#carol, NEW.account_id, NEW.seq << 14 | 99, 1000); END"
    )
    link = _good(shell)
    shell.insert(link)
    fault = audit(shell.conn).fault
    assert fault is not None
    assert (fault.table, fault.key) == ("postings", bytes(32).hex())


@pytest.mark.parametrize("column", ["seq", "hash", "prev_hash"])
@pytest.mark.parametrize("how", ["INSERT OR REPLACE", "INSERT OR IGNORE", "INSERT OR FAIL"])
def test_a_link_never_replaces_another(shell: Shell, how: str, column: str) -> None:
    link = _good(shell)
    (taken,) = shell.conn.execute(f"SELECT {column} FROM links WHERE seq = 9").fetchone()
    with pytest.raises(sqlite3.IntegrityError, match="already there"):
        shell.insert(link, how=how, **{column: taken})
    _nothing_but_staging(shell)


def test_without_links_insert_a_right_link_could_replace_an_old_one(shell: Shell) -> None:
    """One without postings: those of any other link are in the way."""
    shell.run("DROP TRIGGER links_insert")
    link = _good(shell)
    (seq,) = shell.one("SELECT seq FROM links WHERE account = 'erik'")
    for table in STAGING_TABLES[1:-1]:
        shell.run(f"UPDATE {table} SET id = (id & 16383) | (? << 14)", seq)
    (before,) = shell.one("SELECT postings_before FROM links WHERE seq = ?", seq)
    shell.insert(link, how="INSERT OR REPLACE", seq=seq, postings_before=before)
    assert shell.one("SELECT hash FROM links WHERE seq = ?", seq) == (link.hash,)


def test_the_right_link_is_taken_by_hand_too(shell: Shell) -> None:
    """The control of all cases above: the same helpers, nothing forged."""
    shell.insert(_good(shell))
    link = shell.opening()
    shell.stage(link)
    shell.run("INSERT INTO new_accounts VALUES (?, 'CZK', ?, 0)", shell.next_seq(), public_key_of("dave"))
    shell.insert(link)
    for table in STAGING_TABLES:
        assert shell.conn.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    (last,) = shell.conn.execute("SELECT max(seq) FROM links").fetchone()
    fault = audit(shell.conn).fault
    assert fault is not None
    assert (fault.table, fault.key) == ("meta", "log"), last  # the head of the log is the store's, not the trigger's


def test_senders_do_not_wait_for_one_another(shell: Shell) -> None:
    """Only the postings of one sender have an order; what another one paid before may come later."""
    link = shell.next_link()
    (older, amount), (newer, _) = shell.conn.execute(
        "SELECT hash, amount FROM waiting WHERE recipient = 'alice' ORDER BY posting"
    ).fetchall()
    assert set(link.confirmed) == {older, newer}
    link = altered(link, confirmed=(newer,), balance=link.balance - amount)
    shell.stage(link)
    shell.insert(link)
    assert shell.one("SELECT hash FROM waiting WHERE recipient = 'alice'") == (older,)


def test_postings_of_a_batch_are_those_staged_one_by_one(tmp_path: Path) -> None:
    rows = []
    for number, stage in enumerate((Shell.stage, Shell.stage_batch)):
        conn = file_database(tmp_path / f"{number}.db")
        shell = Shell(with_history(conn), conn)
        link = shell.next_link("alice", ("bob", 1), ("carol", 2), ("bob", 3))
        stage(shell, link)
        shell.insert(link)
        rows.append(conn.execute("SELECT * FROM transfers ORDER BY hash").fetchall())
        conn.close()
    assert rows[0] == rows[1]


@pytest.mark.parametrize("table", STAGING_TABLES[1:])
def test_a_staged_row_that_is_deleted_by_hand_is_just_gone(shell: Shell, table: str) -> None:
    before = _dump(shell.conn)
    link = shell.opening() if table == "new_accounts" else shell.next_link()
    shell.stage_batch(link) if table == "new_batches" else shell.stage(link)
    shell.run("INSERT INTO new_accounts VALUES (?, 'CZK', zeroblob(32), 0)", shell.next_seq())
    assert shell.conn.execute(f"DELETE FROM {table}").rowcount > 0
    _nothing_but_staging(shell)
    assert _dump(shell.conn) == before


def test_staged_rows_are_no_money(shell: Shell) -> None:
    before = state_digest(shell.conn)
    shell.stage(shell.next_link())
    assert state_digest(shell.conn) == before


def test_the_view_finds_a_posting_by_its_hash_in_the_index(shell: Shell) -> None:
    """As docs/schema.md says."""
    (wanted,) = shell.one("SELECT hash FROM postings ORDER BY id DESC LIMIT 1")
    query = (
        "FROM transfers WHERE id = (SELECT p.id FROM parts CROSS JOIN postings AS p ON p.part = parts.part "
        "AND substr(p.hash, 1, 6) = substr(:x, 1, 6) AND p.hash = :x)"
    )
    assert shell.conn.execute(f"SELECT hash {query}", {"x": wanted}).fetchall() == [(wanted,)]
    plan = [row[3] for row in shell.conn.execute(f"EXPLAIN QUERY PLAN SELECT * {query}", {"x": wanted})]
    assert any("SEARCH p USING INDEX postings_hash (part=? AND <expr>=?)" in step for step in plan), plan
    assert {step for step in plan if step.startswith("SCAN")} == {"SCAN r", "SCAN m"}, plan  # the parts, which are few


def test_what_waits_for_an_account_is_found_by_its_name(shell: Shell) -> None:
    """As docs/schema.md says."""
    query = "SELECT sender, amount, hash FROM waiting WHERE recipient = 'alice'"
    paid = "SELECT sender, amount, hash FROM transfers WHERE recipient = 'alice' AND confirmation IS NULL"
    found = shell.conn.execute(query).fetchall()
    assert len(found) == 2
    assert sorted(found) == sorted(shell.conn.execute(paid).fetchall())
    plan = [row[3] for row in shell.conn.execute(f"EXPLAIN QUERY PLAN {query}")]
    assert any(step.startswith("SEARCH i USING PRIMARY KEY (recipient=?)") for step in plan), plan
    assert not any(step.startswith("SCAN") for step in plan), plan


def test_an_account_has_the_number_of_the_link_that_opened_it(shell: Shell) -> None:
    opened = shell.conn.execute("SELECT account, seq FROM links WHERE height = 0 ORDER BY seq").fetchall()
    assert opened == shell.conn.execute("SELECT name, id FROM accounts ORDER BY id").fetchall()
    assert len(opened) == 7


@pytest.mark.parametrize("number", ["seq + 1", "seq - 1", "0", "#alice", "max(seq)"])
def test_an_account_has_no_other_number(shell: Shell, number: str) -> None:
    """A temporary trigger of the shell writes the row before the link's own trigger does."""
    link = shell.opening()
    shell.stage(link)
    shell.run("INSERT INTO new_accounts VALUES (?, 'CZK', ?, 0)", shell.next_seq(), public_key_of("dave"))
    columns = "account, {}, 'CZK', zeroblob(32), 0, 0, hash, 0, epoch, time_ms FROM links WHERE height = 0"
    row = columns.format(number if "max" not in number else "(SELECT max(seq) - 1 FROM links)")
    shell.run(
        "CREATE TEMP TRIGGER beside AFTER INSERT ON main.applying BEGIN "
        f"INSERT INTO accounts SELECT {row} AND seq = NEW.seq; END"
    )
    before = _dump(shell.conn)
    with pytest.raises(sqlite3.IntegrityError, match="only by the link that opens it"):
        shell.insert(link)
    assert _dump(shell.conn) == before


@pytest.mark.parametrize("row", ["'alice', #alice + 1, 0", "'alice', #bob, 0", "'alice', #alice, 1", "'bob', #bob, 0"])
def test_applying_names_the_right_account_and_part(shell: Shell, row: str) -> None:
    """For a link that is to be applied, which only a missing trigger can have let in without."""
    link = _good(shell)
    shell.run("DROP TRIGGER links_apply")
    shell.insert(link)
    columns = "INSERT INTO applying SELECT 1, hash, seq, {} FROM links WHERE seq = (SELECT max(seq) FROM links)"
    with pytest.raises(sqlite3.IntegrityError, match="one above the head of its account"):
        shell.run(columns.format(row))
    shell.run(columns.format("'alice', #alice, 0"))
    assert shell.one("SELECT count(*) FROM applying") == (1,)


_TWICE: dict[str, tuple[bool, str]] = {
    "the hash of another link's": (False, "UPDATE new_postings SET hash = (SELECT max(hash) FROM postings) WHERE id & 16383 = 0"),
    "one hash for both": (False, "UPDATE new_postings SET hash = (SELECT min(hash) FROM new_postings)"),
    "the hash of another link's, in a batch": (True, "UPDATE new_batches SET hashes = CAST(substr(hashes, 1, 32) || "
     "(SELECT max(hash) FROM postings) AS BLOB)"),
    "one hash for both, in a batch": (True, "UPDATE new_batches SET hashes = CAST(substr(hashes, 1, 32) || substr(hashes, 1, 32) AS BLOB)"),
}  # fmt: skip


@pytest.mark.parametrize("what", _TWICE)
def test_two_postings_with_one_hash_are_found_by_the_audit(shell: Shell, what: str) -> None:
    """No link makes them: a hash is over the link's own and the number. So one of the two hashes is made up, like any
    other."""
    batch, sql = _TWICE[what]
    link = shell.next_link("alice", ("bob", 1), ("carol", 2))
    shell.stage_batch(link) if batch else shell.stage(link)
    shell.run(sql)
    shell.insert(link)
    (twice,) = shell.one("SELECT hash FROM postings GROUP BY hash HAVING count(*) = 2")
    fault = audit(shell.conn).fault
    assert fault is not None
    assert (fault.table, fault.column, fault.found) == ("postings", "hash", twice.hex())
    assert fault.key == fault.expected
    assert bytes.fromhex(fault.key) in link.posting_hashes


def test_the_schema_is_compared_word_for_word() -> None:
    conn = sqlite3.connect(":memory:")
    create_schema(conn)
    assert schema_faults(conn) == []
    conn.execute("DROP TRIGGER links_delete")
    conn.execute("CREATE INDEX other ON links (epoch)")
    assert [(name, found[:20]) for name, _, found in schema_faults(conn)] == [
        ("links_delete", "nothing of this name"),
        ("other", "CREATE INDEX other O"),
    ]


def _without(shell: Shell, trigger: str, sql: str) -> None:
    """Run the statement without the trigger, which is there again afterwards."""
    shell.run(f"DROP TRIGGER {trigger}")
    shell.run(sql)
    shell.run(next(statement for statement in statements() if statement.startswith(f"CREATE TRIGGER {trigger} ")))


def _dump(conn: sqlite3.Connection) -> dict[str, list[object]]:
    """All rows of all tables, with rowids where there are some."""
    names = [name for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    rows: dict[str, list[object]] = {}
    for name in names:
        sql = conn.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchone()[0]
        columns = "*" if "WITHOUT ROWID" in sql else "rowid, *"
        rows[name] = conn.execute(f"SELECT {columns} FROM {name}").fetchall()
    return rows


def _nothing_but_staging(shell: Shell) -> None:
    """What remains of a refused link is at most its staged rows; what the bank did before stands."""
    if shell.conn.in_transaction:
        shell.conn.execute("ROLLBACK")
    for table in STAGING_TABLES[1:]:
        shell.run(f"DELETE FROM {table}")
    report = audit(shell.conn)
    beyond_the_rules = shell.bank.issuer_limit == MAX_AMOUNT  # then it is the bank's payment that the audit names
    assert report.ok or beyond_the_rules or (report.fault is not None and report.fault.key == "log"), report


def test_checksums_of_rows_tell_their_table() -> None:
    assert row_checksum("votes", b"x", 1) != row_checksum("cursors", b"x", 1)

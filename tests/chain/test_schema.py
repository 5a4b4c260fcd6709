"""The database refuses what is wrong, however it is written (design section 2).

Every statement here runs on a second, plain connection, as somebody with the sqlite3 shell would run it: no foreign
keys, CHECK constraints switched off. It must fail with the message of its trigger and change nothing. And without that
trigger the very same statement must succeed, so that each case is about its trigger.
"""

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from chain.audit import audit
from chain.link import HEADER_BYTES, Entry, Link, Outcome, PostingHash, build_link, opening_slot
from chain.names import MAX_AMOUNT
from chain.reads import state_digest
from chain.request import REQUEST_HEAD_BYTES, Posting, sign
from chain.rules import Queued
from chain.schema import ID_BITS, STAGING_TABLES, create_schema, schema_faults, statements
from chain.seal import row_checksum
from tests.chain.bank import NETWORK, Bank, file_database, key_of, public_key_of, with_history


class Shell:
    """A second connection to the database of a bank, and what is needed to forge links on it."""

    def __init__(self, bank: Bank, conn: sqlite3.Connection) -> None:
        self.bank = bank
        self.conn = conn

    def run(self, sql: str, *values: object) -> None:
        self.conn.execute(sql, values)

    def stage(self, link: Link, *, postings: bool = True, confirmations: bool = True, outcomes: bool = True) -> None:
        """Stage each posting as a row of its own. `stage_batch` has the other form."""
        first = self._first_id()
        for number, posting_hash, posting, request in link.postings():
            if postings:
                row = (
                    first + number, posting_hash, link.hash, link.prev_hash, link.account, posting.recipient, posting.amount,
                    posting.memo, link.balance, link.incoming_checksum, link.height, link.time_ms, request,
                )  # fmt: skip
                self.run("INSERT INTO new_postings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", *row)
        for number, confirmed in enumerate(link.confirmed, first):
            if confirmations:
                self.run("INSERT INTO new_confirmations VALUES (?, ?)", number, confirmed)
        for number, (request, outcome) in enumerate(link.outcomes(), first):
            if outcomes:
                self.run("INSERT INTO new_outcomes VALUES (?, ?, ?)", number, request, int(outcome))

    def stage_batch(self, link: Link) -> None:
        """Stage all postings of the link's one request as one row, the rest as `stage` does."""
        self.stage(link, postings=False)
        ((at, entry),) = link.paying()
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

    def insert(self, link: Link, how: str = "INSERT", **columns: object) -> None:
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
            "header": link.raw[:HEADER_BYTES],
            "body": link.raw[HEADER_BYTES:],
        }
        row |= columns
        slots = ", ".join("?" * len(row))
        self.conn.execute(f"{how} INTO links ({', '.join(row)}) VALUES ({slots})", tuple(row.values()))

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


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    writer = file_database(tmp_path / "node.db")
    bank = with_history(writer)
    conn = sqlite3.connect(tmp_path / "node.db", isolation_level=None)
    conn.execute("PRAGMA foreign_keys=OFF")
    conn.execute("PRAGMA ignore_check_constraints=ON")
    yield Shell(bank, conn)
    conn.close()
    writer.close()


# --- rows written by hand, one trigger each -----------------------------------------------------------------------------

_ANY_LINK = "(SELECT hash FROM links WHERE account = 'alice' AND height = 1)"
_OPEN_POSTING = "(SELECT hash FROM transfers WHERE confirmation IS NULL LIMIT 1)"
_A_TRANSFER = (
    "SELECT {hash}, link_hash, {number}, prev_hash, sender, recipient, amount, memo, balance, incoming_checksum, height, "
    "time_ms, request_id, NULL, NULL FROM transfers WHERE recipient = 'bob' LIMIT 1"
)

BY_HAND: list[tuple[str, str, str]] = [
    ("links_update", "UPDATE links SET balance = balance + 1 WHERE seq = 9", "never changed"),
    ("links_update", "UPDATE OR IGNORE links SET epoch = 7", "never changed"),
    ("links_delete", "DELETE FROM links", "never deleted"),
    ("applying_insert", "INSERT INTO applying SELECT 1, hash, seq, account FROM links WHERE account = 'alice' AND height = 1", "one above the head"),
    ("applying_insert", "INSERT INTO applying VALUES (1, zeroblob(32), 1, 'alice')", "one above the head"),
    ("transfers_insert", f"INSERT INTO transfers {_A_TRANSFER.format(hash='randomblob(32)', number=99)}", "only by the link"),
    ("transfers_insert", f"INSERT OR REPLACE INTO transfers {_A_TRANSFER.format(hash='hash', number='number')}", "only by the"),
    ("transfers_update", "UPDATE transfers SET amount = amount + 1", "never changes"),
    ("transfers_update", "UPDATE transfers SET amount = amount + 1 WHERE confirmation IS NULL", "never changes"),
    ("transfers_update", "UPDATE OR REPLACE transfers SET recipient = 'carol' WHERE recipient = 'bob'", "never changes"),
    ("transfers_update", f"UPDATE transfers SET confirmation = {_ANY_LINK}, prev_confirmed_hash = zeroblob(32) "
                          f"WHERE hash = {_OPEN_POSTING}", "never changes"),
    ("transfers_update", "UPDATE transfers SET confirmation = NULL, prev_confirmed_hash = NULL", "never changes"),
    ("transfers_update", "UPDATE transfers SET confirmation = NULL", "never changes"),
    ("transfers_update", "UPDATE transfers SET prev_confirmed_hash = zeroblob(32) WHERE confirmation IS NULL", "never changes"),
    ("transfers_update", "UPDATE transfers SET rowid = rowid + 100", "never changes"),
    ("transfers_delete", "DELETE FROM transfers WHERE confirmation IS NULL", "never deleted"),
    ("outcomes_insert", f"INSERT INTO outcomes VALUES (randomblob(32), 'alice', {_ANY_LINK}, 7, 0)", "only by the link"),
    ("outcomes_insert", "INSERT OR REPLACE INTO outcomes SELECT request_id, account, link_hash, number, 5 FROM outcomes LIMIT 1",
                        "only by the link"),
    ("outcomes_update", "UPDATE outcomes SET outcome = 0 WHERE outcome = 1", "final"),
    ("outcomes_delete", "DELETE FROM outcomes WHERE outcome = 5", "never deleted"),
    ("accounts_insert", f"INSERT INTO accounts VALUES ('rich', 'CZK', zeroblob(32), 0, 0, {_ANY_LINK}, 0, 1, 1)", "by the link"),
    ("accounts_insert", "INSERT OR REPLACE INTO accounts SELECT name, asset, randomblob(32), issuer, height, tip, balance, "
                        "epoch, time_ms FROM accounts WHERE name = 'alice'", "by the link"),
    ("accounts_update", "UPDATE accounts SET issuer = 1 WHERE name = 'bob'", "nothing changes but"),
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
    ("meta_insert", "INSERT OR REPLACE INTO meta SELECT key, zeroblob(20), checksum FROM meta WHERE key = 'node_id'", "already"),
    ("meta_update", "UPDATE meta SET value = zeroblob(20) WHERE key = 'node_id'", "head of the log"),
    ("meta_delete", "DELETE FROM meta WHERE key = 'log'", "ever deleted"),
]  # fmt: skip


@pytest.mark.parametrize(("trigger", "sql", "message"), BY_HAND)
def test_a_row_written_by_hand_is_refused_by_its_trigger(shell: Shell, trigger: str, sql: str, message: str) -> None:
    before = _dump(shell.conn)
    with pytest.raises(sqlite3.IntegrityError, match=message):
        shell.run(sql)
    assert _dump(shell.conn) == before
    shell.run(f"DROP TRIGGER {trigger}")
    shell.run(sql)
    assert _dump(shell.conn) != before


def test_applying_cannot_be_handed_over(shell: Shell) -> None:
    """The row of `applying` never outlives its statement; were it there, it could not be pointed at another link."""
    shell.run("DROP TRIGGER applying_insert")
    shell.run("INSERT INTO applying VALUES (1, zeroblob(32), 1, 'alice')")
    with pytest.raises(sqlite3.IntegrityError, match="one link at a time"):
        shell.run("UPDATE applying SET link_hash = randomblob(32)")


def test_every_trigger_is_broken_by_a_case_here() -> None:
    triggers = {statement.split()[2] for statement in statements() if statement.startswith("CREATE TRIGGER")}
    carried_out = {f"{table}_delete" for table in STAGING_TABLES[1:]}
    by_links = {"links_insert", "links_apply", "applying_update"}
    assert {trigger for trigger, _, _ in BY_HAND} | by_links | carried_out == triggers


# --- forged links: what links_apply refuses ------------------------------------------------------------------------------


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
    return lambda shell: shell.insert(_good(shell), "INSERT", **columns)


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


_POSTING_BESIDE = (
    "INSERT INTO new_postings SELECT b.id + 1, zeroblob(32), l.hash, l.prev_hash, l.account, 'bob', 1, '', l.balance, "
    "l.incoming_checksum, l.height, l.time_ms, l.hash FROM new_batches AS b CROSS JOIN links AS l LIMIT 1"
)


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
    link = shell.next_link()
    link = altered(link, confirmed=(_unconfirmed(shell, "carol"),), balance=link.balance)
    shell.stage(link)
    shell.insert(link)


def _confirms_again(shell: Shell) -> None:
    link = shell.next_link()
    (used,) = shell.conn.execute(
        "SELECT hash FROM transfers WHERE recipient = 'alice' AND confirmation IS NOT NULL LIMIT 1"
    ).fetchone()
    link = altered(link, confirmed=(*link.confirmed, used))
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
    signed = Queued(entry.signed, request, entry.request_id)
    forged = type(entry)(signed.signed, request, signed.request_id, entry.outcome)
    link = altered(link, entries=(forged,), balance=-1)
    shell.stage(link)
    shell.insert(link)


def _overflows(shell: Shell) -> None:
    """2^63-1 + 1000 becomes a REAL, which rounds; the trigger must not compare with it."""
    shell.bank.open("rich")
    shell.bank.issuer_limit = MAX_AMOUNT
    shell.bank.pay("mint2", ("rich", MAX_AMOUNT))
    shell.bank.pay("rich", ("bob", 1))
    shell.bank.pay("mint", ("rich", 1024))
    link = shell.next_link("rich", ("bob", 2048))
    assert link.confirmed == ()  # the rules leave it where it is
    link = altered(link, confirmed=(_unconfirmed(shell, "rich"),), balance=MAX_AMOUNT - 1 + 1024 - 2048)
    shell.stage(link)
    shell.insert(link)


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
    shell.run("UPDATE new_postings SET link_hash = ?", link.hash)
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
    ("short hash", _column(hash=b"short"), "what the header says"),
    ("short header", _column(header=b""), "what the header says"),
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
    ("a height below zero", _forged(height=0, prev_hash=bytes(32)), "already there"),
    ("time stands still", _time_stands_still, "prev_hash is not the tip"),
    ("two links on one tip", _two_links_on_one_tip, "already there"),
    ("an unknown sender", _forged(account="nobody", prev_hash=bytes(32)), "one above the head"),
    ("a posting number twice as high", _staged("UPDATE new_postings SET id = id + 1 WHERE id & 16383 = 1"), "wrong number"),
    ("a posting number below zero", _staged("UPDATE new_postings SET id = id - 2 WHERE id & 16383 = 1"), "posting_count"),
    ("a short posting hash", _staged("UPDATE new_postings SET hash = x'00' WHERE id & 16383 = 1"), "wrong number, hash"),
    ("a short request id", _staged("UPDATE new_postings SET request_id = x'00' WHERE id & 16383 = 1"), "wrong number, hash"),
    ("an amount of zero", _staged("UPDATE new_postings SET amount = 0 WHERE id & 16383 = 1"), "hash or amount"),
    ("a negative amount", _staged("UPDATE new_postings SET amount = -5 WHERE id & 16383 = 1"), "hash or amount"),
    ("an unknown recipient", _staged("UPDATE new_postings SET recipient = 'nobody' WHERE id & 16383 = 1"), "same asset"),
    ("a recipient of another asset", _staged("UPDATE new_postings SET recipient = 'erik' WHERE id & 16383 = 1"), "same asset"),
    ("itself as recipient", _staged("UPDATE new_postings SET recipient = 'alice' WHERE id & 16383 = 1"), "another account"),
    ("a posting missing", _staged("DELETE FROM new_postings WHERE id & 16383 = 0"), "posting_count"),
    ("a posting that exists", _staged("UPDATE new_postings SET hash = (SELECT hash FROM transfers LIMIT 1) WHERE id & 16383 = 0"),
     "posting_count"),
    ("another amount", _staged("UPDATE new_postings SET amount = 1000 WHERE id & 16383 = 1"), "balance before"),
    ("a confirmation missing", _staged("DELETE FROM new_confirmations WHERE id & 16383 = 0"), "confirmed_count is not the number"),
    ("another confirmation", _staged("UPDATE new_confirmations SET hash = randomblob(32) WHERE id & 16383 = 0"), "body lists"),
    ("another's posting confirmed", _confirms_anothers, "confirmed_count is not the number"),
    ("a posting confirmed twice", _confirms_again, "confirmed_count is not the number"),
    ("one of the stream skipped", _skips_one_of_the_stream, "not the next one of its sender"),
    ("another sender staged", _staged("UPDATE new_postings SET sender = 'carol' WHERE id & 16383 = 1"), "than its link"),
    ("another balance staged", _staged("UPDATE new_postings SET balance = 7 WHERE id & 16383 = 1"), "than its link"),
    ("another link staged", _staged("UPDATE new_postings SET link_hash = zeroblob(32) WHERE id & 16383 = 1"), "than its link"),
    ("another slot staged", _staged("UPDATE new_postings SET prev_hash = zeroblob(32) WHERE id & 16383 = 1"), "than its link"),
    ("another checksum staged", _staged("UPDATE new_postings SET incoming_checksum = x'00' WHERE id & 16383 = 1"),
     "than its link"),
    ("another height staged", _staged("UPDATE new_postings SET height = 0 WHERE id & 16383 = 1"), "than its link"),
    ("another time staged", _staged("UPDATE new_postings SET time_ms = 0 WHERE id & 16383 = 1"), "than its link"),
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
    ("a batch with half an amount", _batch("UPDATE new_batches SET amounts = '[1.5, 1.5]'"), "that is none"),
    ("a batch with a posting that exists", _batch("UPDATE new_batches SET hashes = CAST(substr(hashes, 1, 32) || "
     "(SELECT hash FROM transfers LIMIT 1) AS BLOB)"), "a posting that is there"),
    ("a batch with one posting twice", _batch("UPDATE new_batches SET hashes = CAST(substr(hashes, 1, 32) || substr(hashes, 1, 32) "
     "AS BLOB)"),
     "a posting that is there"),
    ("a batch to an unknown name", _batch_to("nobody"), "same asset"),
    ("a batch to another asset", _batch_to("erik"), "same asset"),
    ("a balance one too high", _forged(balance=10_000), "balance before"),
    ("a balance below zero", _pays_more_than_it_has, "below zero"),
    ("a balance above 2^63-1 on the way", _overflows, "balance before"),
    ("an outcome missing", _staged("DELETE FROM new_outcomes"), "outcome_count"),
    ("an outcome too many", _column(outcome_count=2), "outcome_count"),
    ("an outcome that is recorded", _staged("UPDATE new_outcomes SET request_id = (SELECT request_id FROM outcomes "
     "WHERE account = 'alice' LIMIT 1)"), "outcome_count"),
    ("a short request id settled", _staged("UPDATE new_outcomes SET request_id = x'00'"), "outcome_count"),
    ("an outcome number too high", _staged("UPDATE new_outcomes SET id = id + 5"), "outcome_count"),
    ("no account opened at height 0", _opens_without_an_account, "opens an account"),
    ("a posting beside an opening", _opens_and_pays, "wrong number"),
    ("a name opened again", _opens_a_name_again, "already there"),
    ("money at height 0", _opens(balance=5), "an opening moves no money"),
    ("a short key", _opens(key=b"short"), "by the link that opens it"),
    ("an issuer that is not in the genesis file", _opens(issuer=1), "issuers come from"),
    ("half an issuer", _opens(issuer=2), "issuers come from"),
]  # fmt: skip


@pytest.mark.parametrize(("forge", "message"), [pytest.param(f, m, id=name) for name, f, m in FORGED])
def test_a_forged_link_is_refused(shell: Shell, forge: Callable[[Shell], None], message: str) -> None:
    with pytest.raises(sqlite3.IntegrityError, match=re.escape(message)):
        forge(shell)
    _nothing_but_staging(shell)


@pytest.mark.parametrize(
    "how", ["INSERT OR REPLACE", "INSERT OR IGNORE", "INSERT OR FAIL", "INSERT OR ROLLBACK", "REPLACE"]
)
@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE new_postings SET hash = (SELECT hash FROM transfers LIMIT 1) WHERE id & 16383 = 1",
        "UPDATE new_outcomes SET request_id = (SELECT request_id FROM outcomes WHERE account = 'alice' LIMIT 1)",
    ],
)
def test_conflict_clauses_do_not_reach_the_inner_statements(shell: Shell, how: str, sql: str) -> None:
    """SQLite hands the OR clause of a statement down to its triggers, unless they say ON CONFLICT themselves."""
    link = _good(shell)
    shell.run(sql)
    with pytest.raises(sqlite3.IntegrityError, match="_count is not the number"):
        shell.insert(link, how=how)
    _nothing_but_staging(shell)


@pytest.mark.parametrize("column", ["seq", "hash", "prev_hash"])
@pytest.mark.parametrize("how", ["INSERT OR REPLACE", "INSERT OR IGNORE", "INSERT OR FAIL"])
def test_a_link_never_replaces_another(shell: Shell, how: str, column: str) -> None:
    link = _good(shell)
    (taken,) = shell.conn.execute(f"SELECT {column} FROM links WHERE seq = 9").fetchone()
    with pytest.raises(sqlite3.IntegrityError, match="already there"):
        shell.insert(link, how=how, **{column: taken})
    _nothing_but_staging(shell)


def test_without_links_insert_a_right_link_could_replace_an_old_one(shell: Shell) -> None:
    shell.run("DROP TRIGGER links_insert")
    link = _good(shell)
    for table in STAGING_TABLES[1:-1]:
        shell.run(f"UPDATE {table} SET id = (id & 16383) | (9 << 14)")
    shell.insert(link, how="INSERT OR REPLACE", seq=9)
    assert shell.conn.execute("SELECT hash FROM links WHERE seq = 9").fetchone() == (link.hash,)


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

"""`hopchain verify`: everything in the database derived again from the links' own bytes, and compared.

First the rows that no link makes: each has its checksum, views are numbered, votes hold links of their slots. Then the
links are replayed (`chain.replay`) in the order of the log, in which each stands after all that it builds on. Then:
every thread leads through all confirmed postings of its stream, what is not confirmed is incoming, no other rows exist,
no money was made or lost.

Nothing here uses the triggers or what they wrote before it was compared itself; memory does not grow with the database.
What cannot be derived is not judged (design R15): whether a name was unknown elsewhere when a request was rejected.
"""

import hashlib
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from typing import Final

import msgspec

from chain.disk import snapshot, storage_failure
from chain.errors import Corruption, LocalMisuse
from chain.findings import Disagreement, Fault, compare, decode_found, require, show
from chain.genesis import FIRST_EPOCH, Genesis, decode_genesis, encode_genesis
from chain.replay import Replay
from chain.schema import ID_BITS, SCHEMA_VERSION, STAGING_TABLES, schema_faults
from chain.seal import check_version, row_checksum

_META_KEYS: Final = ("genesis", "log", "network_id", "node_id", "schema_version")
_SEALED_TABLES: Final = ("meta", "views", "active", "votes", "cursors", "seen")
_DAMAGED: Final = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
# Who has this number: the account that the link opened.
_NAME_OF: Final = "coalesce((SELECT account FROM links WHERE seq = {0} AND height = 0), 'account ' || {0})"


class AuditReport(msgspec.Struct, frozen=True):
    """What was checked up to the end or the first fault. `fault` is None when the database is what its links say."""

    links: int
    postings: int
    confirmed: int
    accounts: int
    fault: Fault | None

    @property
    def ok(self) -> bool:
        """True when nothing disagrees."""
        return self.fault is None


def audit(
    conn: sqlite3.Connection,
    *,
    genesis: Genesis | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AuditReport:
    """Check the whole database, in one snapshot of it; a reader's connection will do, also while the node runs.

    `genesis`: the file that the database must belong to (else: the copy in it). `progress(links done, links in all)`.
    Raises `StorageFailure` when the disk cannot be read, `LocalMisuse` for a database of another release; damage that
    SQLite itself notices is a fault like others.
    """
    replay = Replay(conn, progress or (lambda _done, _total: None))
    run = _Audit(conn, genesis, replay)
    fault = None
    texts, conn.text_factory = conn.text_factory, _text
    try:
        with snapshot(conn):
            run.everything()
    except Disagreement as found:
        fault = found.fault
    except sqlite3.DatabaseError as error:
        if not str(getattr(error, "sqlite_errorname", "")).startswith(_DAMAGED):
            raise storage_failure(error, "verifying the database") from error
        fault = Fault("database", "file", "pages", "a sound SQLite file", str(error))
    finally:
        conn.text_factory = texts
    return AuditReport(replay.links, replay.postings, replay.confirmed, replay.accounts, fault)


def _text(raw: bytes) -> str | bytes:
    """A TEXT field; what is no UTF-8 stays bytes, and so differs from all that a link can say."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


class _Audit:
    def __init__(self, conn: sqlite3.Connection, genesis: Genesis | None, replay: Replay) -> None:
        self._conn = conn
        self._given = genesis
        self._replay = replay

    def everything(self) -> None:
        for (text,) in self._conn.execute("PRAGMA integrity_check(1)"):
            require(text == "ok", "database", "file", "integrity_check", "ok", text)
        faults = schema_faults(self._conn)
        if faults and all(name != "meta" for name, _, _ in faults):
            self._version()
        for name, expected, found in faults:
            require(False, "sqlite_master", name, "sql", expected, found)
        for table in STAGING_TABLES:
            (count,) = self._conn.execute(f"SELECT count(*) FROM {table}").fetchone()
            require(count == 0, table, "*", "count", 0, count)
        self._sealed_rows()
        self._view_rows()
        genesis = self._meta()
        self._votes()
        self._replay.all(genesis)
        self._nothing_else()
        self._threads()
        self._incoming()
        self._money()

    def _version(self) -> None:
        """The tables of another release are no damage: `LocalMisuse` says so before they are compared."""
        with suppress(Corruption):  # a version that cannot be read is damage like what is wrong with the tables
            check_version(self._conn)

    # --- rows with a checksum ---

    def _sealed_rows(self) -> None:
        for table in _SEALED_TABLES:
            for *fields, checksum in self._conn.execute(f"SELECT * FROM {table} ORDER BY 1"):
                want = row_checksum(table, *fields)
                require(checksum == want, table, fields[0], "checksum", want, checksum)

    def _view_rows(self) -> None:
        """Views are numbered without a gap, and nothing is ACTIVE in an epoch that is not here (design R6, R7)."""
        last = FIRST_EPOCH - 1
        for epoch, view_hash, raw in self._conn.execute("SELECT epoch, hash, raw FROM views ORDER BY epoch"):
            last += 1
            require(epoch == last, "views", epoch, "epoch", last, epoch)
            want = hashlib.sha256(raw).digest()
            require(view_hash == want, "views", epoch, "hash", want, view_hash)
        require(last >= FIRST_EPOCH, "views", FIRST_EPOCH, "epoch", FIRST_EPOCH, "nothing")
        for (epoch,) in self._conn.execute("SELECT epoch FROM active ORDER BY epoch"):
            require(FIRST_EPOCH <= epoch <= last, "active", epoch, "epoch", f"{FIRST_EPOCH} to {last}", epoch)

    def _meta(self) -> Genesis:
        meta: dict[str, bytes] = dict(self._conn.execute("SELECT key, value FROM meta"))
        for key in sorted(meta.keys() | set(_META_KEYS), key=show):
            require(key in meta, "meta", key, "key", "a row", "nothing")
            require(key in _META_KEYS, "meta", key, "key", "no such row", "a row")
        version = str(SCHEMA_VERSION).encode()
        require(meta["schema_version"] == version, "meta", "schema_version", "value", version, meta["schema_version"])
        if self._given is not None:
            given = encode_genesis(self._given)
            require(meta["genesis"] == given, "meta", "genesis", "value", given, meta["genesis"])
        try:
            genesis = decode_genesis(meta["genesis"])
        except LocalMisuse as error:
            raise Disagreement(Fault("meta", "genesis", "value", "a genesis file", str(error))) from None
        network = genesis.network_id
        require(meta["network_id"] == network, "meta", "network_id", "value", network, meta["network_id"])
        return genesis

    def _votes(self) -> None:
        """A vote holds a link of its slot. The vote on a view has no account; its slot is the view before, its height
        the epoch."""
        query = "SELECT v.slot, v.height, b.hash FROM votes AS v LEFT JOIN views AS b ON b.epoch = v.height - 1 WHERE v.account = ''"
        for slot, epoch, before in self._conn.execute(query):
            require(slot == before, "votes", slot, "slot", before or f"no view, {epoch - 1} is not here", slot)
        query = "SELECT slot, account, height, link FROM votes WHERE link IS NOT NULL AND account <> ''"
        for slot, account, height, raw in self._conn.execute(query):
            link = decode_found("votes", slot, raw)
            compare(
                "votes",
                slot,
                ("slot", "account", "height"),
                (link.prev_hash, link.account, link.height),
                (slot, account, height),
            )

    # --- what no link made ---

    def _nothing_else(self) -> None:
        for table, made in (
            ("postings", self._replay.postings),
            ("confirmations", self._replay.confirmed),
            ("outcomes", self._replay.outcomes),
            ("accounts", self._replay.accounts),
        ):
            (count,) = self._conn.execute(f"SELECT count(*) FROM {table}").fetchone()
            if count != made:
                self._name_extra(table)
                require(False, table, "*", "count", made, count)

    def _threads(self) -> None:
        """Each thread leads from its last posting through all the others: what a thread does not reach was confirmed
        twice or has lost its place. That it goes back in time, and so ends, was checked with each confirmation."""
        reached = 0
        for recipient, sender, last in self._conn.execute(
            f"SELECT {_NAME_OF.format('t.recipient')}, {_NAME_OF.format('t.sender')}, t.last FROM threads AS t"
        ):
            at, column = last, "last"
            while at is not None:
                row = self._conn.execute(
                    "SELECT c.previous, p.recipient, l.account FROM confirmations AS c "
                    "LEFT JOIN postings AS p ON p.id = c.posting LEFT JOIN links AS l ON l.seq = c.posting >> 14 WHERE c.posting = ?",
                    (at,),
                ).fetchone()
                key, want = f"{sender} to {recipient}", "a confirmed posting of this stream"
                require(row is not None and row[1:] == (recipient, sender), "threads", key, column, want, at)
                at, column = row[0], "previous"
                reached += 1
        if reached == self._replay.confirmed:
            return
        self._name_lost()
        require(False, "threads", "*", "count", f"{self._replay.confirmed} confirmed postings", reached)

    def _name_lost(self) -> None:
        """Find where the thread of a stream misses a confirmed posting: it has no row, ends too early, or leaves one
        out."""
        lost = self._conn.execute(
            "SELECT c.posting, p.recipient, l.account, t.last FROM confirmations AS c JOIN postings AS p ON p.id = c.posting "
            "JOIN links AS l ON l.seq = c.posting >> 14 JOIN accounts AS r ON r.name = p.recipient JOIN accounts AS s ON s.name = l.account "
            "LEFT JOIN threads AS t ON t.recipient = r.id AND t.sender = s.id "
            "WHERE c.posting NOT IN (SELECT last FROM threads) "
            "AND c.posting NOT IN (SELECT previous FROM confirmations WHERE previous IS NOT NULL) ORDER BY c.id DESC"
        )
        for posting, recipient, sender, last in lost:
            stream = f"{sender} to {recipient}"
            require(last is not None, "threads", stream, "recipient", f"a row that ends at {posting}", "nothing")
            require(posting < last, "threads", stream, "last", posting, last)
            number, at = -1, last
            while at is not None and at > posting:
                number, at = self._conn.execute(
                    "SELECT id, previous FROM confirmations WHERE posting = ?", (at,)
                ).fetchone()
            require(False, "confirmations", number, "previous", posting, at)

    def _incoming(self) -> None:
        """What is not confirmed is incoming, and nothing else is; it comes after what its thread has confirmed.

        So nothing here is confirmed too: threads lead through all that is, backwards."""
        count = 0
        for (
            recipient,
            sender,
            place,
            amount,
            made_to,
            made_by,
            made,
            last,
        ) in self._conn.execute(
            "SELECT i.recipient, i.sender, i.posting, i.amount, r.id, s.id, p.amount, t.last "
            "FROM incoming AS i LEFT JOIN postings AS p ON p.id = i.posting LEFT JOIN links AS l ON l.seq = i.posting >> 14 "
            "LEFT JOIN accounts AS r ON r.name = p.recipient LEFT JOIN accounts AS s ON s.name = l.account "
            "LEFT JOIN threads AS t ON t.recipient = i.recipient AND t.sender = i.sender"
        ):
            count += 1
            require(made_to is not None, "incoming", place, "posting", "a posting that is here", place)
            compare(
                "incoming",
                place,
                ("recipient", "sender", "amount"),
                (made_to, made_by, made),
                (recipient, sender, amount),
            )
            require(
                last is None or last < place,
                "incoming",
                place,
                "posting",
                f"after {last}, where its thread ends",
                place,
            )
        if count == self._replay.postings - self._replay.confirmed:
            return
        for place, recipient in self._conn.execute(
            "SELECT p.id, r.id FROM postings AS p CROSS JOIN links AS l ON l.seq = p.id >> 14 "
            "CROSS JOIN accounts AS r ON r.name = p.recipient CROSS JOIN accounts AS s ON s.name = l.account "
            "WHERE NOT EXISTS (SELECT 1 FROM confirmations AS c WHERE c.posting = p.id) AND NOT EXISTS "
            "(SELECT 1 FROM incoming AS i WHERE i.recipient = r.id AND i.sender = s.id AND i.posting = p.id)"
        ):
            require(False, "incoming", place, "recipient", recipient, "nothing")
        require(False, "incoming", "*", "count", self._replay.postings - self._replay.confirmed, count)

    def _name_extra(self, table: str) -> None:
        """Find a row that no link makes. Slow, and only run when the counts have shown that there is one."""
        if table in ("postings", "confirmations"):
            for (place,) in self._conn.execute(f"SELECT id FROM {table} WHERE id >> 14 NOT IN (SELECT seq FROM links)"):
                require(False, table, place, "id", f"nothing, there is no link {place >> ID_BITS}", "a row")
            return
        if table == "accounts":
            for (name,) in self._conn.execute(
                "SELECT name FROM accounts WHERE name NOT IN (SELECT account FROM links)"
            ):
                require(False, table, name, "name", "nothing, no link opens it", "a row")
            return
        rows = self._conn.execute("SELECT link_hash, number, request_id, account FROM outcomes ORDER BY link_hash")
        for link_hash, group in groupby(rows, itemgetter(0)):
            made = self._outcomes_of(link_hash)
            for _, *row in group:
                why = f"nothing, link {link_hash.hex()} does not make it"
                require(tuple(row) in made, table, row[1], "request_id", why, "a row")

    def _outcomes_of(self, link_hash: bytes) -> set[tuple[int, bytes, str]]:
        """(number, request id, account) of the outcomes that this link records."""
        row = self._conn.execute("SELECT header, body FROM links WHERE hash = ?", (link_hash,)).fetchone()
        if row is None:
            return set()
        link = decode_found("links", link_hash, row[0] + row[1])
        return {(number, request_id, link.account) for number, (request_id, _) in enumerate(link.outcomes())}

    def _money(self) -> None:
        """Per asset, all balances and all unconfirmed postings add up to zero: issuers owe what the others have."""
        totals: dict[str, int] = {}
        for query in (
            "SELECT asset, balance FROM accounts",
            "SELECT a.asset, i.amount FROM incoming AS i CROSS JOIN links AS l ON l.seq = i.recipient "
            "CROSS JOIN accounts AS a ON a.name = l.account",
        ):
            for asset, amount in self._conn.execute(query):
                totals[asset] = totals.get(asset, 0) + amount
        for asset, total in sorted(totals.items()):
            require(total == 0, "accounts", asset, "balance", "a sum of 0 with all unconfirmed postings", total)

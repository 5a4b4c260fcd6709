"""`hopchain verify`: everything in the database derived again from the links' own bytes, and compared.

Links are replayed in the order of the log, in which each stands after all that it builds on. For each one: its bytes
hash to its hash and name the link before it; the account's key signed every request; the outcomes follow from what was
there; its balance is the balance before, plus what it confirms, less what it pays; every row that it makes in
`postings`, `confirmations`, `outcomes` and `accounts` is there, field by field. Then: every thread leads through all
confirmed postings of its stream, what is not confirmed is incoming, no other rows exist, no money was made or lost.

Nothing here uses the triggers or what they wrote before it was compared itself; memory does not grow with the database.
What cannot be derived is not judged (design R15): whether a name was unknown elsewhere when a request was rejected.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from typing import Final

import msgspec

from chain.disk import snapshot, storage_failure
from chain.errors import Corruption, LocalMisuse, RemoteFault
from chain.genesis import FIRST_EPOCH, Genesis, decode_genesis, encode_genesis, issuer_links
from chain.link import HEADER_BYTES, Link, Outcome, decode_link_untrusted, opening_slot
from chain.request import Kind, RequestId, is_signed_by
from chain.schema import ID_BITS, PART_BITS, SCHEMA_VERSION, STAGING_TABLES, schema_faults
from chain.seal import EMPTY_LOG, check_version, row_checksum
from chain.verdicts import Before, why_wrong

Value = bytes | int | str | None

_META_KEYS: Final = ("genesis", "log", "network_id", "node_id", "schema_version")
_SEALED_TABLES: Final = ("meta", "views", "active", "votes", "cursors", "seen")
_DAMAGED: Final = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_PROGRESS_EVERY: Final = 256


class Fault(msgspec.Struct, frozen=True):
    """The first row that disagrees: its table, its key, the column, what follows from the links, what is there."""

    table: str
    key: str
    column: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.table} row {self.key}, {self.column}: expected {self.expected}, found {self.found}"


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


class _Disagreement(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


def audit(
    conn: sqlite3.Connection,
    *,
    genesis: Genesis | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AuditReport:
    """Check the whole database, in one snapshot of it; a reader's connection will do, also while the node runs.

    `genesis`: the file that the database must belong to (else: the copy in it). `progress(links done, links in all)`.
    Raises `StorageFailure` when the disk cannot be read, `LocalMisuse` for a database of another release; damage that SQLite itself notices is a fault like others.
    """
    run = _Audit(conn, genesis, progress or (lambda _done, _total: None))
    fault = None
    texts, conn.text_factory = conn.text_factory, _text
    try:
        with snapshot(conn):
            run.everything()
    except _Disagreement as found:
        fault = found.fault
    except sqlite3.DatabaseError as error:
        if not str(getattr(error, "sqlite_errorname", "")).startswith(_DAMAGED):
            raise storage_failure(error, "verifying the database") from error
        fault = Fault("database", "file", "pages", "a sound SQLite file", str(error))
    finally:
        conn.text_factory = texts
    return AuditReport(run.links, run.postings, run.confirmed, run.accounts, fault)


def _text(raw: bytes) -> str | bytes:
    """A TEXT field; what is no UTF-8 stays bytes, and so differs from all that a link can say."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _show(value: Value) -> str:
    if isinstance(value, bytes):
        return value.hex() if len(value) <= 64 else f"{value[:32].hex()}... ({len(value)} bytes)"
    return "NULL" if value is None else str(value)


def _require(holds: bool, table: str, key: Value, column: str, expected: Value, found: Value) -> None:
    if not holds:
        raise _Disagreement(Fault(table, _show(key), column, _show(expected), _show(found)))


def _compare(
    table: str, key: Value, columns: Sequence[str], expected: Sequence[Value], found: Sequence[Value] | None
) -> None:
    """The row is there and all `columns` are as expected."""
    _require(found is not None, table, key, columns[0], "a row", "nothing")
    for column, want, have in zip(columns, expected, found or (), strict=True):
        _require(want == have, table, key, column, want, have)


_LINK_COLUMNS: Final = (
    "hash", "account", "height", "prev_hash", "balance", "incoming_checksum", "epoch", "time_ms", "posting_count",
    "confirmed_count", "outcome_count", "postings_before",
)  # fmt: skip
_POSTING_COLUMNS: Final = ("id", "part", "hash", "recipient", "amount", "memo", "request_id")
_OPENING_COLUMNS: Final = ("name", "id", "asset", "public_key", "issuer")
# Who has this number: the account that the link opened.
_NAME_OF: Final = "coalesce((SELECT account FROM links WHERE seq = {0} AND height = 0), 'account ' || {0})"
_HEAD_COLUMNS: Final = ("name", "height", "tip", "balance", "epoch", "time_ms")
_OUTCOME_COLUMNS: Final = ("request_id", "account", "link_hash", "number", "outcome")


def _ids_of(seq: int) -> tuple[int, int]:
    """The first and last id that rows of the link in this place of the log can have."""
    return seq << ID_BITS, (seq + 1 << ID_BITS) - 1


class _Audit:
    def __init__(self, conn: sqlite3.Connection, genesis: Genesis | None, progress: Callable[[int, int], None]) -> None:
        self._conn = conn
        self._given = genesis
        self._progress = progress
        self._log = EMPTY_LOG
        self._issuers: dict[str, Link] = {}
        self._genesis: Genesis | None = None
        self.links = self.postings = self.confirmed = self.accounts = self.outcomes = 0

    def everything(self) -> None:
        for (text,) in self._conn.execute("PRAGMA integrity_check(1)"):
            _require(text == "ok", "database", "file", "integrity_check", "ok", text)
        faults = schema_faults(self._conn)
        if faults and all(name != "meta" for name, _, _ in faults):
            self._version()
        for name, expected, found in faults:
            _require(False, "sqlite_master", name, "sql", expected, found)
        for table in STAGING_TABLES:
            (count,) = self._conn.execute(f"SELECT count(*) FROM {table}").fetchone()
            _require(count == 0, table, "*", "count", 0, count)
        self._sealed_rows()
        self._view_rows()
        genesis = self._genesis = self._meta()
        self._votes()
        self._issuers = {link.account: link for link in issuer_links(genesis)}
        self._replay(genesis)
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
                _require(checksum == want, table, fields[0], "checksum", want, checksum)

    def _view_rows(self) -> None:
        """Views are numbered without a gap, and nothing is ACTIVE in an epoch that is not here (design R6, R7)."""
        last = FIRST_EPOCH - 1
        for epoch, view_hash, raw in self._conn.execute("SELECT epoch, hash, raw FROM views ORDER BY epoch"):
            last += 1
            _require(epoch == last, "views", epoch, "epoch", last, epoch)
            want = hashlib.sha256(raw).digest()
            _require(view_hash == want, "views", epoch, "hash", want, view_hash)
        _require(last >= FIRST_EPOCH, "views", FIRST_EPOCH, "epoch", FIRST_EPOCH, "nothing")
        for (epoch,) in self._conn.execute("SELECT epoch FROM active ORDER BY epoch"):
            _require(FIRST_EPOCH <= epoch <= last, "active", epoch, "epoch", f"{FIRST_EPOCH} to {last}", epoch)

    def _meta(self) -> Genesis:
        meta: dict[str, bytes] = dict(self._conn.execute("SELECT key, value FROM meta"))
        for key in sorted(meta.keys() | set(_META_KEYS), key=_show):
            _require(key in meta, "meta", key, "key", "a row", "nothing")
            _require(key in _META_KEYS, "meta", key, "key", "no such row", "a row")
        version = str(SCHEMA_VERSION).encode()
        _require(meta["schema_version"] == version, "meta", "schema_version", "value", version, meta["schema_version"])
        if self._given is not None:
            given = encode_genesis(self._given)
            _require(meta["genesis"] == given, "meta", "genesis", "value", given, meta["genesis"])
        try:
            genesis = decode_genesis(meta["genesis"])
        except LocalMisuse as error:
            raise _Disagreement(Fault("meta", "genesis", "value", "a genesis file", str(error))) from None
        network = genesis.network_id
        _require(meta["network_id"] == network, "meta", "network_id", "value", network, meta["network_id"])
        return genesis

    def _votes(self) -> None:
        """A vote holds a link of its slot. The vote on a view has no account; its slot is the view before, its height the epoch."""
        query = "SELECT v.slot, v.height, b.hash FROM votes AS v LEFT JOIN views AS b ON b.epoch = v.height - 1 WHERE v.account = ''"
        for slot, epoch, before in self._conn.execute(query):
            _require(slot == before, "votes", slot, "slot", before or f"no view, {epoch - 1} is not here", slot)
        query = "SELECT slot, account, height, link FROM votes WHERE link IS NOT NULL AND account <> ''"
        for slot, account, height, raw in self._conn.execute(query):
            link = self._decode("votes", slot, raw)
            _compare(
                "votes",
                slot,
                ("slot", "account", "height"),
                (link.prev_hash, link.account, link.height),
                (slot, account, height),
            )

    def _decode(self, table: str, key: bytes, raw: bytes) -> Link:
        try:
            return decode_link_untrusted(raw)
        except RemoteFault as fault:
            raise _Disagreement(Fault(table, key.hex(), "body", "a well-formed link", str(fault))) from None

    # --- the links, one after the other ---

    def _replay(self, genesis: Genesis) -> None:
        (total,) = self._conn.execute("SELECT count(*) FROM links").fetchone()
        columns = ", ".join(_LINK_COLUMNS)
        for seq, header, body, *stored in self._conn.execute(
            f"SELECT seq, header, body, {columns} FROM links ORDER BY seq"
        ):
            self.links += 1
            _require(seq == self.links, "links", seq, "seq", self.links, seq)
            _require(
                len(header) == HEADER_BYTES,
                "links",
                stored[0],
                "header",
                f"{HEADER_BYTES} bytes",
                f"{len(header)} bytes",
            )
            link = self._decode("links", stored[0], header + body)
            derived = (
                link.hash, link.account, link.height, link.prev_hash, link.balance, link.incoming_checksum, link.epoch,
                link.time_ms, sum(1 for _ in link.postings()), len(link.confirmed), sum(1 for _ in link.outcomes()),
                self.postings,
            )  # fmt: skip
            _compare("links", stored[0], _LINK_COLUMNS, derived, stored)
            _require(link.network == genesis.network_id, "links", link.hash, "header", genesis.network_id, link.network)
            self._link(seq, link)
            self._log = self._log.after([link.hash])
            if seq % _PROGRESS_EVERY == 0 or seq == total:
                self._progress(seq, total)
        for name in self._issuers:
            found = self._conn.execute("SELECT 1 FROM links WHERE account = ? AND height = 0", (name,)).fetchone()
            _require(found is not None, "accounts", name, "name", "the issuer of the genesis file", "nothing")
        (stated,) = self._conn.execute("SELECT value FROM meta WHERE key = 'log'").fetchone()
        _require(stated == self._log.encode(), "meta", "log", "value", self._log.encode(), stated)

    def _link(self, seq: int, link: Link) -> None:
        before = self._opening(seq, link) if link.height == 0 else self._before(seq, link)
        income = self._confirmations(seq, link)
        funds = before.balance + income
        _require(link.balance == funds - link.debit, "links", link.hash, "balance", funds - link.debit, link.balance)
        _require(link.balance >= 0 or before.limit > 0, "links", link.hash, "balance", "at least 0", link.balance)
        self._entries(seq, link, before, funds)
        self._postings(seq, link)
        self._outcomes(link)
        after = self._conn.execute(
            "SELECT 1 FROM links WHERE prev_hash = ? OR (account = ? AND height = ?)",
            (link.hash, link.account, link.height + 1),
        )
        if after.fetchone() is None:
            self._compare_account(_HEAD_COLUMNS, link, link.height, link.hash, link.balance, link.epoch, link.time_ms)

    def _compare_account(self, columns: Sequence[str], link: Link, *expected: Value) -> None:
        found = self._conn.execute(
            f"SELECT {', '.join(columns)} FROM accounts WHERE name = ?", (link.account,)
        ).fetchone()
        _compare("accounts", link.account, columns, (link.account, *expected), found)

    def _opening(self, seq: int, link: Link) -> Before:
        self.accounts += 1
        slot = opening_slot(link.network, link.account)
        _require(link.prev_hash == slot, "links", link.hash, "prev_hash", slot, link.prev_hash)
        kinds = [entry.request.kind for entry in link.entries]
        _require(kinds == [Kind.OPEN], "links", link.hash, "body", "one opening", f"requests of kinds {kinds}")
        issuer = self._issuers.get(link.account)
        if issuer is not None:
            _require(
                link.raw == issuer.raw, "links", link.hash, "body", "the issuer of the genesis file", "another link"
            )
        request = link.entries[0].request
        self._compare_account(_OPENING_COLUMNS, link, seq, request.asset, request.public_key, int(issuer is not None))
        return Before(request.asset, request.public_key, self._limit(link.account, request.asset), 0, -1)

    def _before(self, seq: int, link: Link) -> Before:
        row = self._conn.execute(
            "SELECT l.hash, l.seq, l.balance, l.time_ms, a.asset, a.public_key FROM links AS l "
            "LEFT JOIN accounts AS a ON a.name = l.account WHERE l.account = ? AND l.height = ?",
            (link.account, link.height - 1),
        ).fetchone()
        _require(row is not None, "links", link.hash, "height", "the link before it", "nothing")
        tip, before_seq, balance, time_ms, asset, public_key = row
        _require(link.prev_hash == tip, "links", link.hash, "prev_hash", tip, link.prev_hash)
        _require(before_seq < seq, "links", link.hash, "seq", f"above {before_seq}, the link before it", seq)
        _require(link.time_ms > time_ms, "links", link.hash, "time_ms", f"above {time_ms}", link.time_ms)
        return Before(asset, public_key, self._limit(link.account, asset), balance, time_ms)

    def _limit(self, account: str, asset: str) -> int:
        """How far below zero the account may go."""
        assert self._genesis is not None
        return self._genesis.issuer_limit(asset) if account in self._issuers else 0

    def _confirmations(self, seq: int, link: Link) -> int:
        """Their sum. Each is a posting to this account of an earlier link, listed once, in its sender's order."""
        income, last_age = 0, (-1, "", -1)
        found = self._conn.execute(
            "SELECT c.id, c.posting, p.hash, p.recipient, p.amount, l.account, l.time_ms, c.previous, b.recipient, e.account, d.id "
            "FROM confirmations AS c LEFT JOIN postings AS p ON p.id = c.posting LEFT JOIN links AS l ON l.seq = c.posting >> 14 "
            "LEFT JOIN postings AS b ON b.id = c.previous LEFT JOIN links AS e ON e.seq = c.previous >> 14 "
            "LEFT JOIN confirmations AS d ON d.posting = c.previous WHERE c.id BETWEEN ? AND ? ORDER BY c.id",
            _ids_of(seq),
        )
        for number, posting in enumerate(link.confirmed, seq << ID_BITS):
            row = found.fetchone()
            there = row is not None and row[0] == number
            _require(
                there,
                "confirmations",
                number,
                "id",
                f"a row, link {link.hash.hex()} confirms posting {posting.hex()}",
                "nothing",
            )
            _, place, stored, recipient, amount, sender, time_ms, previous, *before, confirmed = row
            there = stored == posting and sender is not None
            _require(there, "confirmations", number, "posting", f"that of posting {posting.hex()}", place)
            _require(recipient == link.account, "postings", posting, "recipient", link.account, recipient)
            made = place >> ID_BITS
            _require(made < seq, "links", link.hash, "seq", "after the links whose postings it confirms", seq)
            age = (time_ms, sender, place)
            _require(age > last_age, "links", link.hash, "body", "confirmations, each once, oldest first", posting)
            last_age = age
            if previous is not None:
                stream = (
                    previous < place and before == [recipient, sender] and confirmed is not None and confirmed < number
                )
                _require(
                    stream,
                    "confirmations",
                    number,
                    "previous",
                    "the posting confirmed before it in its stream",
                    previous,
                )
            income += amount
        row = found.fetchone()
        if row is not None:
            _require(False, "confirmations", row[0], "id", f"nothing, link {link.hash.hex()} does not list it", "a row")
        self.confirmed += len(link.confirmed)
        return income

    def _postings(self, seq: int, link: Link) -> None:
        columns = ", ".join(_POSTING_COLUMNS)
        found = self._conn.execute(f"SELECT {columns} FROM postings WHERE id BETWEEN ? AND ? ORDER BY id", _ids_of(seq))
        part = self.postings >> PART_BITS
        for number, posting_hash, posting, request_id in link.postings():
            self.postings += 1
            place = seq << ID_BITS | number
            expected = (place, part, posting_hash, posting.recipient, posting.amount, posting.memo, request_id)
            _compare("postings", posting_hash, _POSTING_COLUMNS, expected, found.fetchone())
        row = found.fetchone()
        if row is not None:
            _require(False, "postings", row[2], "hash", f"nothing, link {link.hash.hex()} does not make it", "a row")

    def _outcomes(self, link: Link) -> None:
        columns = ", ".join(_OUTCOME_COLUMNS)
        for number, (request_id, outcome) in enumerate(link.outcomes()):
            self.outcomes += 1
            found = self._conn.execute(
                f"SELECT {columns} FROM outcomes WHERE request_id = ? AND account = ?", (request_id, link.account)
            ).fetchone()
            expected = (request_id, link.account, link.hash, number, int(outcome))
            _compare("outcomes", request_id, _OUTCOME_COLUMNS, expected, found)

    # --- the requests of one link ---

    def _entries(self, seq: int, link: Link, before: Before, funds: int) -> None:
        here: set[RequestId] = set()
        for entry in link.entries:
            request, shown = entry.request, f"request {entry.request_id.hex()}"
            if link.height > 0 or link.account not in self._issuers:
                signed = is_signed_by(entry.signed, before.public_key)
                _require(
                    signed,
                    "links",
                    link.hash,
                    "body",
                    f"{shown} signed by the key of {link.account}",
                    "another signature",
                )
            wrong = why_wrong(self._conn, seq, link, before, funds, entry, here)
            _require(not wrong, "links", link.hash, "body", f"{shown}: {wrong}", entry.outcome.name)
            here.add(entry.request_id)
            if entry.outcome is Outcome.COMPLETED:
                funds -= request.total
                if request.kind is Kind.CANCEL:
                    here.add(request.target)

    # --- what no link made ---

    def _nothing_else(self) -> None:
        for table, made in (
            ("postings", self.postings),
            ("confirmations", self.confirmed),
            ("outcomes", self.outcomes),
            ("accounts", self.accounts),
        ):
            (count,) = self._conn.execute(f"SELECT count(*) FROM {table}").fetchone()
            if count != made:
                self._name_extra(table)
                _require(False, table, "*", "count", made, count)

    def _threads(self) -> None:
        """Each thread leads from its last posting through all the others: what a thread does not reach was confirmed twice
        or has lost its place. That it goes back in time, and so ends, was checked with each confirmation."""
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
                _require(row is not None and row[1:] == (recipient, sender), "threads", key, column, want, at)
                at, column = row[0], "previous"
                reached += 1
        if reached == self.confirmed:
            return
        self._name_lost()
        _require(False, "threads", "*", "count", f"{self.confirmed} confirmed postings", reached)

    def _name_lost(self) -> None:
        """Find where the thread of a stream misses a confirmed posting: it has no row, ends too early, or leaves one out."""
        lost = self._conn.execute(
            "SELECT c.posting, p.recipient, l.account, t.last FROM confirmations AS c JOIN postings AS p ON p.id = c.posting "
            "JOIN links AS l ON l.seq = c.posting >> 14 JOIN accounts AS r ON r.name = p.recipient JOIN accounts AS s ON s.name = l.account "
            "LEFT JOIN threads AS t ON t.recipient = r.id AND t.sender = s.id "
            "WHERE c.posting NOT IN (SELECT last FROM threads) "
            "AND c.posting NOT IN (SELECT previous FROM confirmations WHERE previous IS NOT NULL) ORDER BY c.id DESC"
        )
        for posting, recipient, sender, last in lost:
            stream = f"{sender} to {recipient}"
            _require(last is not None, "threads", stream, "recipient", f"a row that ends at {posting}", "nothing")
            _require(posting < last, "threads", stream, "last", posting, last)
            number, at = -1, last
            while at is not None and at > posting:
                number, at = self._conn.execute(
                    "SELECT id, previous FROM confirmations WHERE posting = ?", (at,)
                ).fetchone()
            _require(False, "confirmations", number, "previous", posting, at)

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
            _require(made_to is not None, "incoming", place, "posting", "a posting that is here", place)
            _compare(
                "incoming",
                place,
                ("recipient", "sender", "amount"),
                (made_to, made_by, made),
                (recipient, sender, amount),
            )
            _require(
                last is None or last < place,
                "incoming",
                place,
                "posting",
                f"after {last}, where its thread ends",
                place,
            )
        if count == self.postings - self.confirmed:
            return
        for place, recipient in self._conn.execute(
            "SELECT p.id, r.id FROM postings AS p CROSS JOIN links AS l ON l.seq = p.id >> 14 "
            "CROSS JOIN accounts AS r ON r.name = p.recipient CROSS JOIN accounts AS s ON s.name = l.account "
            "WHERE NOT EXISTS (SELECT 1 FROM confirmations AS c WHERE c.posting = p.id) AND NOT EXISTS "
            "(SELECT 1 FROM incoming AS i WHERE i.recipient = r.id AND i.sender = s.id AND i.posting = p.id)"
        ):
            _require(False, "incoming", place, "recipient", recipient, "nothing")
        _require(False, "incoming", "*", "count", self.postings - self.confirmed, count)

    def _name_extra(self, table: str) -> None:
        """Find a row that no link makes. Slow, and only run when the counts have shown that there is one."""
        if table in ("postings", "confirmations"):
            for (place,) in self._conn.execute(f"SELECT id FROM {table} WHERE id >> 14 NOT IN (SELECT seq FROM links)"):
                _require(False, table, place, "id", f"nothing, there is no link {place >> ID_BITS}", "a row")
            return
        if table == "accounts":
            for (name,) in self._conn.execute(
                "SELECT name FROM accounts WHERE name NOT IN (SELECT account FROM links)"
            ):
                _require(False, table, name, "name", "nothing, no link opens it", "a row")
            return
        rows = self._conn.execute("SELECT link_hash, number, request_id, account FROM outcomes ORDER BY link_hash")
        for link_hash, group in groupby(rows, itemgetter(0)):
            made = self._outcomes_of(link_hash)
            for _, *row in group:
                why = f"nothing, link {link_hash.hex()} does not make it"
                _require(tuple(row) in made, table, row[1], "request_id", why, "a row")

    def _outcomes_of(self, link_hash: bytes) -> set[tuple[int, bytes, str]]:
        """(number, request id, account) of the outcomes that this link records."""
        row = self._conn.execute("SELECT header, body FROM links WHERE hash = ?", (link_hash,)).fetchone()
        if row is None:
            return set()
        link = self._decode("links", link_hash, row[0] + row[1])
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
            _require(total == 0, "accounts", asset, "balance", "a sum of 0 with all unconfirmed postings", total)

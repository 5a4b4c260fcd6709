"""What one turn reads: `Needs` names the rows, `load` fetches them in a few queries, whatever their number.

A query takes up to `_KEYS_PER_QUERY` keys as a VALUES table that is joined to the real one. The number of keys is
rounded up to a power of two with NULLs, which match nothing, so that few different statements are ever prepared.
"""

import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain
from typing import Final, TypeVar

import msgspec

from chain.disk import storage_errors
from chain.errors import Corruption
from chain.link import MAX_CONFIRMED, LinkHash, Outcome, PostingHash
from chain.request import RequestId
from chain.rows import AccountHead, Forming, Incoming, OutcomeRow, PostingRow
from chain.seal import LogHead, read_log_head

CHAIN_BATCH: Final = 256  # links in one answer about a chain
CHAIN_BATCH_BYTES: Final = 1 << 20  # and their bytes, but always one link: a frame holds a few of these
LOG_BATCH: Final = 4096  # hashes in one answer about the log: 128 KiB
_KEYS_PER_QUERY: Final = 512  # bounds the text of a query, and with it SQLite's parser


class Needs(msgspec.Struct):
    """What a turn will look at. Fill the sets, then `load`.

    `heads`: account names. `outcomes`: (account, request id); an id counts only for the account whose link records it,
    because anybody may cancel an id that is not theirs. `postings`: posting hashes. `links_at`: (account, height).
    `chains`: (account, from height). `by_hash`: link hashes and `by_posting`: posting hashes, for raw links. `known`:
    which of these link hashes are here. `forming`, `income`: account names. `log`: after which seq. `log_head`: the
    end of the log.
    """

    heads: set[str] = msgspec.field(default_factory=set)
    outcomes: set[tuple[str, RequestId]] = msgspec.field(default_factory=set)
    postings: set[PostingHash] = msgspec.field(default_factory=set)
    links_at: set[tuple[str, int]] = msgspec.field(default_factory=set)
    chains: set[tuple[str, int]] = msgspec.field(default_factory=set)
    by_hash: set[LinkHash] = msgspec.field(default_factory=set)
    by_posting: set[PostingHash] = msgspec.field(default_factory=set)
    known: set[LinkHash] = msgspec.field(default_factory=set)
    forming: set[str] = msgspec.field(default_factory=set)
    income: set[str] = msgspec.field(default_factory=set)
    log: set[int] = msgspec.field(default_factory=set)
    log_head: bool = False


class Income(msgspec.Struct, frozen=True):
    """All unconfirmed postings to one account: how many, their sum in minor units, and for each sender the greatest
    height of its links that hold one."""

    count: int
    total: int
    senders: tuple[tuple[str, int], ...]


class LogPage(msgspec.Struct, frozen=True):
    """Link hashes in the order in which they were applied here; `last_seq` is the seq of the last of them, or the
    seq asked for when nothing is after it."""

    hashes: tuple[LinkHash, ...]
    last_seq: int


class Loaded(msgspec.Struct):
    """The answers to `Needs`, under the same names. An absent key is not there.

    `chains`, `forming`, `income` and `log` hold every key that was asked for (with nothing in it, where there is
    nothing). Raw links are header | body, as `decode_link_untrusted` takes them.
    """

    heads: dict[str, AccountHead] = msgspec.field(default_factory=dict)
    outcomes: dict[tuple[str, RequestId], OutcomeRow] = msgspec.field(default_factory=dict)
    postings: dict[PostingHash, PostingRow] = msgspec.field(default_factory=dict)
    links_at: dict[tuple[str, int], LinkHash] = msgspec.field(default_factory=dict)
    chains: dict[tuple[str, int], tuple[bytes, ...]] = msgspec.field(default_factory=dict)
    by_hash: dict[LinkHash, bytes] = msgspec.field(default_factory=dict)
    by_posting: dict[PostingHash, bytes] = msgspec.field(default_factory=dict)
    known: set[LinkHash] = msgspec.field(default_factory=set)
    forming: dict[str, Forming] = msgspec.field(default_factory=dict)
    income: dict[str, Income] = msgspec.field(default_factory=dict)
    log: dict[int, LogPage] = msgspec.field(default_factory=dict)
    log_head: LogHead | None = None


HEAD_COLUMNS: Final = "a.name, a.asset, a.public_key, a.issuer, a.height, a.tip, a.balance, a.epoch, a.time_ms"
_POSTING_COLUMNS: Final = (
    "{0}.hash, {0}.link_hash, {0}.number, {0}.sender, {0}.height, {0}.time_ms, {0}.recipient, {0}.amount, {0}.memo, "
    "{0}.confirmation, {0}.prev_confirmed_hash"
)
POSTING_COLUMNS: Final = _POSTING_COLUMNS.format("t")
_POSTING_WIDTH: Final = POSTING_COLUMNS.count(",") + 1
OUTCOME_COLUMNS: Final = "o.request_id, o.account, o.outcome, o.link_hash, l.height, l.balance, l.time_ms"

# SQLite's sum() fails above 2^63-1, which the postings of two issuers can exceed together: two halves, put together
# by `exact`.
AMOUNT_SUM: Final = "coalesce(sum(amount >> 32), 0), coalesce(sum(amount & 0xffffffff), 0)"

# Joins give the order: CROSS JOIN keeps the keys outside, so that each is looked up in an index.
_HEADS: Final = f"SELECT {HEAD_COLUMNS} FROM k CROSS JOIN accounts AS a ON a.name = k.column1"
_OUTCOMES: Final = (
    f"SELECT {OUTCOME_COLUMNS} FROM k CROSS JOIN outcomes AS o ON o.request_id = k.column2 AND o.account = k.column1 "
    "CROSS JOIN links AS l ON l.hash = o.link_hash"
)
_POSTINGS: Final = f"SELECT {POSTING_COLUMNS} FROM k CROSS JOIN transfers AS t ON t.hash = k.column1"
_LINKS_AT: Final = (
    "SELECT l.account, l.height, l.hash FROM k CROSS JOIN links AS l ON l.account = k.column1 AND l.height = k.column2"
)
_BY_HASH: Final = "SELECT l.hash, l.header, l.body FROM k CROSS JOIN links AS l ON l.hash = k.column1"
_BY_POSTING: Final = (
    "SELECT t.hash, l.header, l.body FROM k CROSS JOIN transfers AS t ON t.hash = k.column1 "
    "CROSS JOIN links AS l ON l.hash = t.link_hash"
)
_KNOWN: Final = "SELECT l.hash FROM k CROSS JOIN links AS l ON l.hash = k.column1"
_HEADERS: Final = "SELECT l.hash, l.header FROM k CROSS JOIN links AS l ON l.hash = k.column1"
_CHAIN: Final = "SELECT header, body FROM links WHERE account = ? AND height >= ? ORDER BY height LIMIT ?"
_LOG: Final = "SELECT hash, seq FROM links WHERE seq > ? ORDER BY seq LIMIT ?"
_INCOME: Final = (
    f"SELECT sender, count(*), max(height), {AMOUNT_SUM} FROM transfers "
    "WHERE recipient = ? AND confirmation IS NULL GROUP BY sender ORDER BY sender"
)
_TIP_INCOME: Final = (
    "SELECT k.column1, t.hash FROM k CROSS JOIN transfers AS t ON t.confirmation = k.column1 "
    "ORDER BY k.column1, t.time_ms, t.sender, t.height, t.number"
)
_CHECKSUMS: Final = "SELECT l.hash, l.incoming_checksum FROM k CROSS JOIN links AS l ON l.hash = k.column1"
_INCOMING: Final = (
    f"SELECT {POSTING_COLUMNS}, {_POSTING_COLUMNS.format('b')} FROM transfers AS t LEFT JOIN transfers AS b ON b.rowid = "
    "(SELECT s.rowid FROM transfers AS s WHERE s.sender = t.sender AND s.recipient = t.recipient "
    "AND (s.height, s.number) < (t.height, t.number) ORDER BY s.height DESC, s.number DESC LIMIT 1) "
    "WHERE t.recipient = ? AND t.confirmation IS NULL ORDER BY t.time_ms, t.sender, t.height, t.number LIMIT ?"
)
_LAST_CONFIRMED: Final = (
    "SELECT t.sender, t.recipient, t.height, t.number FROM k CROSS JOIN transfers AS t ON t.rowid = "
    "(SELECT s.rowid FROM transfers AS s WHERE s.sender = k.column1 AND s.recipient = k.column2 "
    "AND s.confirmation IS NOT NULL ORDER BY s.height DESC, s.number DESC LIMIT 1)"
)
_INCOMING_SUM: Final = f"SELECT count(*), {AMOUNT_SUM} FROM transfers WHERE recipient = ? AND confirmation IS NULL"

Key = bytes | int | str
T = TypeVar("T")
K = TypeVar("K", bound=Key)


def load(conn: sqlite3.Connection, needs: Needs) -> Loaded:
    """Fetch what `needs` names. Raises `StorageFailure` when the database cannot be read, and `Corruption` when the
    head of the log is damaged or a confirmation was taken back."""
    with storage_errors("reading the database"):
        loaded = Loaded(
            heads={head.name: head for head in _join(conn, _HEADS, _singles(needs.heads), head_row)},
            outcomes={(o.account, o.request_id): o for o in _join(conn, _OUTCOMES, needs.outcomes, outcome_row)},
            postings={row.hash: row for row in _join(conn, _POSTINGS, _singles(needs.postings), PostingRow)},
            links_at=dict(_join(conn, _LINKS_AT, needs.links_at, lambda name, height, tip: ((name, height), tip))),
            by_hash=dict(_join(conn, _BY_HASH, _singles(needs.by_hash), _keyed_raw)),
            by_posting=dict(_join(conn, _BY_POSTING, _singles(needs.by_posting), _keyed_raw)),
            known=set(_join(conn, _KNOWN, _singles(needs.known), LinkHash)),
            chains={key: _chain(conn, *key) for key in needs.chains},
            income={name: _income(conn, name) for name in needs.income},
            log={seq: _log_page(conn, seq) for seq in needs.log},
        )
        if needs.forming:
            loaded.forming = _forming(conn, needs.forming)
        if needs.log_head:
            loaded.log_head = read_log_head(conn)
    return loaded


def head_row(
    name: str,
    asset: str,
    public_key: bytes,
    issuer: int,
    height: int,
    tip: bytes,
    balance: int,
    epoch: int,
    time_ms: int,
) -> AccountHead:
    """The account with these `HEAD_COLUMNS`."""
    return AccountHead(name, asset, public_key, bool(issuer), height, LinkHash(tip), balance, epoch, time_ms)


def outcome_row(
    request_id: bytes, account: str, outcome: int, link_hash: bytes, height: int, balance: int, time_ms: int
) -> OutcomeRow:
    """The outcome with these `OUTCOME_COLUMNS`."""
    return OutcomeRow(RequestId(request_id), account, Outcome(outcome), LinkHash(link_hash), height, balance, time_ms)


def _keyed_raw(key: T, header: bytes, body: bytes) -> tuple[T, bytes]:
    return key, header + body


def _singles(keys: Collection[K]) -> list[tuple[K]]:
    return [(key,) for key in keys]


def _join(
    conn: sqlite3.Connection, query: str, keys: Collection[tuple[Key, ...]], make: Callable[..., T]
) -> Iterator[T]:
    """The rows of `query`, in which the keys are the table `k`, each through `make`."""
    todo = list(keys)
    for start in range(0, len(todo), _KEYS_PER_QUERY):
        part = todo[start : start + _KEYS_PER_QUERY]
        width, size = len(part[0]), 1 << (len(part) - 1).bit_length()
        slots = ", ".join(["(" + ", ".join("?" * width) + ")"] * size)
        values = [*chain.from_iterable(part), *[None] * (width * (size - len(part)))]
        for row in conn.execute(f"WITH k AS (VALUES {slots}) {query}", values):
            yield make(*row)


def _chain(conn: sqlite3.Connection, account: str, from_height: int) -> tuple[bytes, ...]:
    links: list[bytes] = []
    size = 0
    for header, body in conn.execute(_CHAIN, (account, from_height, CHAIN_BATCH)):
        size += len(header) + len(body)
        if links and size > CHAIN_BATCH_BYTES:
            break
        links.append(header + body)
    return tuple(links)


def exact(high: int, low: int) -> int:
    """The sum whose halves are `AMOUNT_SUM`."""
    return (high << 32) + low


def _income(conn: sqlite3.Connection, account: str) -> Income:
    rows = conn.execute(_INCOME, (account,)).fetchall()
    return Income(
        sum(count for _, count, *_ in rows),
        sum(exact(high, low) for *_, high, low in rows),
        tuple((sender, height) for sender, _, height, *_ in rows),
    )


def _log_page(conn: sqlite3.Connection, after: int) -> LogPage:
    rows = conn.execute(_LOG, (after, LOG_BATCH)).fetchall()
    return LogPage(tuple(LinkHash(link) for link, _ in rows), rows[-1][1] if rows else after)


def _forming(conn: sqlite3.Connection, names: Collection[str]) -> dict[str, Forming]:
    """What the next link of each account depends on: its head, the income of its tip, its incoming postings."""
    heads = {head.name: head for head in _join(conn, _HEADS, _singles(names), head_row)}
    tips = [(head.tip,) for head in heads.values()]
    checksums = dict(_join(conn, _CHECKSUMS, tips, lambda tip, checksum: (tip, checksum)))
    tip_income: dict[LinkHash, list[PostingHash]] = {}
    for tip, posting in _join(conn, _TIP_INCOME, tips, lambda tip, posting: (tip, posting)):
        tip_income.setdefault(tip, []).append(posting)
    incoming = {
        name: [
            (PostingRow(*row[:_POSTING_WIDTH]), PostingRow(*row[_POSTING_WIDTH:]) if row[_POSTING_WIDTH] else None)
            for row in conn.execute(_INCOMING, (name, MAX_CONFIRMED))
        ]
        for name in heads
    }
    _check_none_taken_back(conn, [posting for rows in incoming.values() for posting, _ in rows])
    made_by = {posting.link_hash for rows in incoming.values() for posting, _ in rows}
    headers = dict(_join(conn, _HEADERS, _singles(made_by), lambda link, header: (link, header)))
    forming = {}
    for name in names:
        head, rows = heads.get(name), incoming.get(name, [])
        count, total = len(rows), sum(posting.amount for posting, _ in rows)
        if count == MAX_CONFIRMED:
            count, high, low = conn.execute(_INCOMING_SUM, (name,)).fetchone()
            total = exact(high, low)
        forming[name] = Forming(
            head,
            checksums.get(head.tip, b"") if head else b"",
            tuple(tip_income.get(head.tip, ())) if head else (),
            tuple(Incoming(posting, headers.get(posting.link_hash, b""), before) for posting, before in rows),
            count,
            total,
        )
    return forming


def _check_none_taken_back(conn: sqlite3.Connection, incoming: Sequence[PostingRow]) -> None:
    """Raise `Corruption` when a posting after one of these in its stream is confirmed: then this one was, too, and
    both its confirmation and its thread were reset, which the thread before it cannot show (design section 2, step 3)."""
    oldest: dict[tuple[str, str], PostingRow] = {}
    for posting in incoming:
        oldest.setdefault((posting.sender, posting.recipient), posting)
    for sender, recipient, height, number in _join(conn, _LAST_CONFIRMED, oldest.keys(), lambda *row: row):
        posting = oldest[sender, recipient]
        if (height, number) > (posting.height, posting.number):
            raise Corruption(
                f"posting {posting.hash.hex()[:16]} of {posting.amount} from {sender} (link {posting.height}) to {recipient} "
                f"is unconfirmed, but a later one (link {height}) is confirmed: its confirmation was taken back; "
                "this database is damaged: run `hopchain verify` on it"
            )

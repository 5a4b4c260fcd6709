"""What one turn reads: `Needs` names the rows, `load` fetches them in a few queries, whatever their number.

A query takes up to `_KEYS_PER_QUERY` keys as a VALUES table that is joined to the real one. The number of keys is
rounded up to a power of two with NULLs, which match nothing, so that few different statements are ever prepared.
"""

import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, count, repeat, starmap
from typing import Final, TypeVar

import msgspec

from chain.disk import storage_errors
from chain.errors import Corruption
from chain.link import MAX_CONFIRMED, Link, LinkHash, Outcome, PostingHash
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
    """The answers to `Needs`, under the same names. An absent key is not there. `made`: see `note_made`.

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
    made: dict[PostingHash, tuple[Link, int]] = msgspec.field(default_factory=dict)

    def posting(self, posting: PostingHash) -> PostingRow | None:
        """The row of a posting that was asked for, or that a link made since (`note_made`)."""
        row = self.postings.get(posting)
        if row is None and posting in self.made:
            row = self.postings[posting] = _row_of(posting, *self.made[posting])
        return row

    def note_made(self, link: Link) -> None:
        """The postings of a link that is applied in this turn are as good as loaded. Few are ever looked at, so rows are
        made for those only."""
        self.made.update(zip(link.posting_hashes, zip(repeat(link), count()), strict=False))


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
_FEW: Final = 16  # incoming postings: accounts that have no more are read together
_FORMING: Final = (
    f"SELECT {HEAD_COLUMNS}, (SELECT l.incoming_checksum FROM links AS l WHERE l.hash = a.tip), "
    "EXISTS (SELECT 1 FROM transfers AS t WHERE t.confirmation = a.tip), "
    "(SELECT count(*) FROM (SELECT 1 FROM transfers AS t WHERE t.recipient = a.name AND t.confirmation IS NULL "
    f"LIMIT {_FEW + 1})) FROM k CROSS JOIN accounts AS a ON a.name = k.column1"
)
# The posting before one in its stream, in two steps: for `(height, number) < (h, n)` SQLite searches its index by height alone
# and walks over the numbers, so that confirming n postings of one link would take n * n / 2 steps.
ROWID_BEFORE: Final = (
    "coalesce((SELECT s.rowid FROM transfers AS s WHERE s.sender = :sender AND s.recipient = :recipient "
    "AND s.height = :height AND s.number < :number ORDER BY s.number DESC LIMIT 1), "
    "(SELECT s.rowid FROM transfers AS s WHERE s.sender = :sender AND s.recipient = :recipient "
    "AND s.height < :height ORDER BY s.height DESC, s.number DESC LIMIT 1))"
)
_INCOMING_JOIN: Final = f"LEFT JOIN transfers AS b ON b.rowid = {ROWID_BEFORE.replace(':', 't.')}"
_MANY_INCOMING: Final = (
    f"SELECT {POSTING_COLUMNS}, {_POSTING_COLUMNS.format('b')} FROM transfers AS t {_INCOMING_JOIN} "
    "WHERE t.recipient = ? AND t.confirmation IS NULL ORDER BY t.time_ms, t.sender, t.height, t.number LIMIT ?"
)
_INCOMING: Final = (
    f"SELECT {POSTING_COLUMNS}, {_POSTING_COLUMNS.format('b')} FROM k CROSS JOIN transfers AS t "
    f"ON t.recipient = k.column1 AND t.confirmation IS NULL {_INCOMING_JOIN}"
)
_LAST_CONFIRMED: Final = (
    "SELECT t.sender, t.recipient, t.height, t.number FROM k CROSS JOIN transfers AS t ON t.rowid = "
    "(SELECT s.rowid FROM transfers AS s WHERE s.sender = k.column1 AND s.recipient = k.column2 "
    "AND s.confirmation IS NOT NULL ORDER BY s.height DESC, s.number DESC LIMIT 1)"
)
_INCOMING_SUM: Final = f"SELECT count(*), {AMOUNT_SUM} FROM transfers WHERE recipient = ? AND confirmation IS NULL"

Key = bytes | int | str
T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K", bound=Key)


def _row_of(posting_hash: PostingHash, link: Link, number: int) -> PostingRow:
    posting = link.posting(number)
    return PostingRow(
        posting_hash,
        link.hash,
        number,
        link.account,
        link.height,
        link.time_ms,
        posting.recipient,
        posting.amount,
        posting.memo,
    )


def load(conn: sqlite3.Connection, needs: Needs) -> Loaded:
    """Fetch what `needs` names. Raises `StorageFailure` when the database cannot be read, and `Corruption` when the
    head of the log is damaged or a confirmation was taken back."""
    with storage_errors("reading the database"):
        loaded = Loaded()
        if needs.forming:
            loaded.forming = _forming(conn, needs.forming)
        if needs.heads:
            loaded.heads = _heads(conn, needs.heads, loaded.forming)
        if needs.outcomes:
            loaded.outcomes = {
                (o.account, o.request_id): o for o in _join(conn, _OUTCOMES, needs.outcomes, outcome_row)
            }
        if needs.postings:
            loaded.postings = {row.hash: row for row in _join(conn, _POSTINGS, _singles(needs.postings), PostingRow)}
        if needs.links_at:
            loaded.links_at = dict(
                _join(conn, _LINKS_AT, needs.links_at, lambda name, height, tip: ((name, height), tip))
            )
        if needs.by_hash:
            loaded.by_hash = dict(_join(conn, _BY_HASH, _singles(needs.by_hash), _keyed_raw))
        if needs.by_posting:
            loaded.by_posting = dict(_join(conn, _BY_POSTING, _singles(needs.by_posting), _keyed_raw))
        if needs.known:
            loaded.known = set(_join(conn, _KNOWN, _singles(needs.known), LinkHash))
        if needs.chains:
            loaded.chains = {key: _chain(conn, *key) for key in needs.chains}
        if needs.income:
            loaded.income = {name: _income(conn, name) for name in needs.income}
        if needs.log:
            loaded.log = {seq: _log_page(conn, seq) for seq in needs.log}
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


def _heads(conn: sqlite3.Connection, names: Collection[str], forming: Mapping[str, Forming]) -> dict[str, AccountHead]:
    """The heads of these accounts; those that are known from `forming` are not read twice."""
    heads = {name: there.head for name, there in forming.items() if there.head is not None and name in names}
    missing = [name for name in names if name not in forming]
    for head in _join(conn, _HEADS, _singles(missing), head_row):
        heads[head.name] = head
    return heads


def _keyed_raw(key: T, header: bytes, body: bytes) -> tuple[T, bytes]:
    return key, header + body


def _pair(first: T, second: U) -> tuple[T, U]:
    return first, second


def _singles(keys: Collection[K]) -> list[tuple[K]]:
    return [(key,) for key in keys]


@lru_cache(maxsize=256)
def _query(query: str, width: int, size: int) -> str:
    """The text of `query` for this many keys of this width."""
    slots = ", ".join(["(" + ", ".join("?" * width) + ")"] * size)
    return f"WITH k AS (VALUES {slots}) {query}"


def _join(
    conn: sqlite3.Connection, query: str, keys: Collection[tuple[Key, ...]], make: Callable[..., T]
) -> Iterator[T]:
    """The rows of `query`, in which the keys are the table `k`, each through `make`."""
    todo = list(keys)
    for start in range(0, len(todo), _KEYS_PER_QUERY):
        part = todo[start : start + _KEYS_PER_QUERY]
        width, size = len(part[0]), 1 << (len(part) - 1).bit_length()
        values = [*chain.from_iterable(part), *[None] * (width * (size - len(part)))]
        yield from starmap(make, conn.execute(_query(query, width, size), values))


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
    heads: dict[str, tuple[AccountHead, bytes]] = {}
    tips: list[tuple[LinkHash]] = []
    few: list[tuple[str]] = []
    incoming: dict[str, list[tuple[PostingRow, PostingRow | None]]] = {}
    for *columns, checksum, has_income, waiting in _join(conn, _FORMING, _singles(names), lambda *row: row):
        head = head_row(*columns)
        heads[head.name] = head, checksum or b""
        if has_income:
            tips.append((head.tip,))
        if waiting > min(_FEW, MAX_CONFIRMED):
            incoming[head.name] = _many_incoming(conn, head.name)
        elif waiting:
            few.append((head.name,))
            incoming[head.name] = []
    for row in _join(conn, _INCOMING, few, lambda *row: row):
        posting = PostingRow(*row[:_POSTING_WIDTH])
        before = PostingRow(*row[_POSTING_WIDTH:]) if row[_POSTING_WIDTH] else None
        incoming[posting.recipient].append((posting, before))
    for (name,) in few:
        incoming[name].sort(key=lambda row: row[0].age)
    tip_income: dict[LinkHash, list[PostingHash]] = {}
    for tip, posting_hash in _join(conn, _TIP_INCOME, tips, _pair):
        tip_income.setdefault(tip, []).append(posting_hash)
    waiting_postings = [posting for rows in incoming.values() for posting, _ in rows]
    _check_none_taken_back(conn, waiting_postings)
    made_by = {posting.link_hash for posting in waiting_postings}
    headers: dict[LinkHash, bytes] = dict(_join(conn, _HEADERS, _singles(made_by), _pair))
    forming = {}
    for name in names:
        if name not in heads:
            forming[name] = Forming(None, b"", (), (), 0, 0)
            continue
        head, checksum = heads[name]
        rows = incoming.get(name, [])
        count, total = len(rows), sum(posting.amount for posting, _ in rows)
        if count == MAX_CONFIRMED:
            count, high, low = conn.execute(_INCOMING_SUM, (name,)).fetchone()
            total = exact(high, low)
        forming[name] = Forming(
            head,
            checksum,
            tuple(tip_income.get(head.tip, ())),
            tuple(Incoming(posting, headers.get(posting.link_hash, b""), before) for posting, before in rows),
            count,
            total,
        )
    return forming


def _many_incoming(conn: sqlite3.Connection, name: str) -> list[tuple[PostingRow, PostingRow | None]]:
    """The oldest unconfirmed postings to the account, each with the one before it in its stream."""
    return [
        (PostingRow(*row[:_POSTING_WIDTH]), PostingRow(*row[_POSTING_WIDTH:]) if row[_POSTING_WIDTH] else None)
        for row in conn.execute(_MANY_INCOMING, (name, MAX_CONFIRMED))
    ]


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

"""Local reads, for people and clients, on a reader's connection: what this replica has applied so far.

Each function sees one moment of the database and returns frozen records. Whether that is recent enough is for the
caller: balances and heads carry tip, height, epoch and time (design section 3, reads).
"""

import hashlib
import sqlite3
import struct
from collections.abc import Collection, Iterable
from contextlib import suppress
from itertools import repeat, starmap
from typing import Final

import msgspec

from chain.accounts import HEAD_COLUMNS, head_row
from chain.disk import snapshot, storage_errors
from chain.errors import Corruption, LocalMisuse, RemoteFault
from chain.link import (
    Entry,
    Link,
    LinkHash,
    Outcome,
    PostingHash,
    Slot,
    decode_link_untrusted,
    posting_hash,
    read_header,
)
from chain.load import load
from chain.needs import Needs
from chain.raw import another_header, damaged_link, read_headers
from chain.request import Posting, Request, RequestId
from chain.rows import AccountHead, OutcomeRow, PostingRow

# SQLite's sum() fails above 2^63-1, which the postings of two issuers can exceed together: two halves.
_SUMS: Final = "count(i.amount), coalesce(sum(i.amount >> 32), 0), coalesce(sum(i.amount & 0xffffffff), 0)"
_INCOMING_SUM: Final = f"SELECT {_SUMS} FROM incoming AS i WHERE i.recipient = (SELECT id FROM accounts WHERE name = ?)"
_BALANCES: Final = (
    f"SELECT {_SUMS}, {HEAD_COLUMNS} FROM accounts AS a LEFT JOIN incoming AS i ON i.recipient = a.id "
    "WHERE a.name > ? GROUP BY a.name ORDER BY a.name LIMIT ?"
)
# A `PostingRow` from posting `p`: its link, and the link that confirmed it with the posting confirmed before.
_POSTING_COLUMNS: Final = (
    "p.hash, l.hash, p.id & 16383, l.account, l.height, l.time_ms, p.recipient, p.amount, p.memo, t.hash, "
    "iif(c.id IS NULL, NULL, coalesce(b.hash, zeroblob(32)))"
)
_POSTING_JOINS: Final = (
    "CROSS JOIN links AS l ON l.seq = p.id >> 14 LEFT JOIN confirmations AS c ON c.posting = p.id "
    "LEFT JOIN links AS t ON t.seq = c.id >> 14 LEFT JOIN postings AS b ON b.id = c.previous"
)
_MADE_BY: Final = (  # the link with this seq
    f"SELECT {_POSTING_COLUMNS} FROM postings AS p {_POSTING_JOINS} WHERE p.id BETWEEN ?1 << 14 AND ?1 << 14 | 16383 ORDER BY p.id"
)
_CONFIRMED_BY: Final = (
    f"SELECT {_POSTING_COLUMNS} FROM confirmations AS o CROSS JOIN postings AS p ON p.id = o.posting {_POSTING_JOINS} "
    "WHERE o.id BETWEEN ?1 << 14 AND ?1 << 14 | 16383 ORDER BY o.id"
)
_STATE: Final = struct.Struct(">Q32s")
_STATE_TAG: Final = b"hopchain:state:1\0"


class Balance(msgspec.Struct, frozen=True, gc=False):
    """The money of one account in minor units. `settled`: the balance of its tip. `incoming`: unconfirmed postings to
    it, `incoming_count` of them. `available`: both together, what a transfer can spend."""

    name: str
    asset: str
    issuer: bool
    settled: int
    incoming: int
    incoming_count: int
    tip: LinkHash
    height: int
    epoch: int
    time_ms: int

    @property
    def available(self) -> int:
        """settled + incoming."""
        return self.settled + self.incoming


class ChainEntry(msgspec.Struct, frozen=True):
    """A request in a link with its outcome. `postings`: its rows with their confirmations, none unless completed;
    what a rejected one asked for is in `request.postings`."""

    request_id: RequestId
    request: Request
    outcome: Outcome
    postings: tuple[PostingRow, ...]


class ChainLink(msgspec.Struct, frozen=True):
    """A link as people read it: what it decided, what it paid, and the postings to it that it took up."""

    account: str
    height: int
    hash: LinkHash
    prev_hash: Slot
    balance: int
    incoming_checksum: bytes
    epoch: int
    time_ms: int
    entries: tuple[ChainEntry, ...]
    confirmed: tuple[PostingRow, ...]


class StateDigest(msgspec.Struct, frozen=True):
    """Two replicas with equal digests hold the same chains. `digest`: SHA-256 over (name, height, tip) of all accounts,
    sorted by name. `totals`: (asset, sum of all balances and all unconfirmed postings): 0 for each asset."""

    digest: bytes
    accounts: int
    links: int
    totals: tuple[tuple[str, int], ...]


def read_balance(conn: sqlite3.Connection, name: str) -> Balance | None:
    """The money of account `name`, or None when it is not known here."""
    with storage_errors("reading a balance"), snapshot(conn):
        head = load(conn, Needs(heads={name})).heads.get(name)
        if head is None:
            return None
        return _balance(head, *conn.execute(_INCOMING_SUM, (name,)).fetchone())


def read_balances(conn: sqlite3.Connection, after: str = "", limit: int = 100) -> tuple[Balance, ...]:
    """The money of the first `limit` accounts whose name sorts after `after`, by name."""
    return tuple(balance for _, balance in read_accounts(conn, after, limit))


def read_accounts(
    conn: sqlite3.Connection, after: str = "", limit: int = 100
) -> tuple[tuple[AccountHead, Balance], ...]:
    """The first `limit` accounts whose name sorts after `after`, by name, with their money: all of one moment."""
    with storage_errors("reading balances"):
        rows = conn.execute(_BALANCES, (after, limit)).fetchall()
    return tuple((head, _balance(head, *row[:3])) for row in rows for head in (head_row(*row[3:]),))


def _balance(head: AccountHead, count: int, high: int, low: int) -> Balance:
    """`high` and `low`: of the amounts that come in, the sums of their halves."""
    incoming = (high << 32) + low
    return Balance(
        head.name,
        head.asset,
        head.issuer,
        head.balance,
        incoming,
        count,
        head.tip,
        head.height,
        head.epoch,
        head.time_ms,
    )


def read_chain(
    conn: sqlite3.Connection, name: str, from_height: int = 0, limit: int = 100, max_bytes: int = 1024 * 1024
) -> tuple[ChainLink, ...]:
    """Links of account `name` from `from_height` on, ascending: the first, and more up to `limit` while they have no
    more than `max_bytes` together. What comes after them is not read: a full link is some 7 MB as a record."""
    links: list[ChainLink] = []
    size = 0
    with storage_errors("reading a chain"), snapshot(conn):
        for link_hash, header, body in conn.execute(
            "SELECT hash, header, body FROM links WHERE account = ? AND height >= ? ORDER BY height LIMIT ?",
            (name, from_height, limit),
        ):
            size += len(header) + len(body)
            if links and size > max_bytes:
                break
            links.append(_chain_link(conn, _decode_stored(header + body, LinkHash(link_hash))))
    return tuple(links)


def read_postings(
    conn: sqlite3.Connection, link_hash: LinkHash
) -> tuple[tuple[PostingRow, ...], tuple[PostingRow, ...]]:
    """What the link with this hash pays, and what it confirms, as people read them, each in its order."""
    row = conn.execute("SELECT seq FROM links WHERE hash = ?", (link_hash,)).fetchone()
    if row is None:
        return (), ()
    made, confirmed = (tuple(starmap(PostingRow, conn.execute(query, row))) for query in (_MADE_BY, _CONFIRMED_BY))
    return made, confirmed


def _decode_stored(raw: bytes, link_hash: LinkHash) -> Link:
    """The link with these bytes, which stand here under this hash. Raises `Corruption`: whoever asked for it is not at
    fault."""
    try:
        link = decode_link_untrusted(raw)
    except RemoteFault as fault:
        raise damaged_link(link_hash, fault.text) from None
    if link.hash != link_hash:
        raise another_header(link_hash, link.hash, link.account, link.height)
    return link


def _chain_link(conn: sqlite3.Connection, link: Link) -> ChainLink:
    """Nothing is shown that is not what the link and the hashes in it say, but for where its postings were
    confirmed."""
    paid, confirmed = read_postings(conn, link.hash)
    payers = _payers(conn, {row.link_hash for row in confirmed})
    if (
        [row.hash for row in paid] != list(link.posting_hashes)
        or [row.hash for row in confirmed] != list(link.confirmed)
        or any(map(_differs, paid, repeat(link), link.postings()))
        or not all(map(_is_of_its_hash, confirmed))
        or any((row.link_hash, row.sender, row.height, row.time_ms) not in payers for row in confirmed)
    ):
        raise Corruption(
            f"link {link.height} of {link.account} ({link.hash.hex()[:16]}) pays {len(link.posting_hashes)} and confirms "
            f"{len(link.confirmed)} postings; {len(paid)} and {len(confirmed)} rows are here, or other ones: "
            "run `hopchain verify` on the database"
        )
    made: dict[RequestId, list[PostingRow]] = {}
    for row, (_, _, _, request) in zip(paid, link.postings(), strict=True):
        made.setdefault(request, []).append(row)
    return ChainLink(
        link.account,
        link.height,
        link.hash,
        link.prev_hash,
        link.balance,
        link.incoming_checksum,
        link.epoch,
        link.time_ms,
        tuple(_chain_entry(entry, made.get(entry.request_id, [])) for entry in link.entries),
        confirmed,
    )


def _payers(conn: sqlite3.Connection, links: Collection[LinkHash]) -> set[tuple[LinkHash, str, int, int]]:
    """(hash, account, height, time) of these links, as their headers have them."""
    with suppress(RemoteFault):  # then one that is shown is missing
        return {read_header(header) for header in read_headers(conn, links)}
    return set()


def _differs(row: PostingRow, link: Link, made: tuple[int, PostingHash, Posting, RequestId]) -> bool:
    number, hash_, posting, _ = made
    shown = (row.hash, row.link_hash, row.number, row.sender, row.height, row.time_ms)
    return shown != (hash_, link.hash, number, link.account, link.height, link.time_ms) or posting != Posting(
        row.recipient, row.amount, row.memo
    )


def _is_of_its_hash(row: PostingRow) -> bool:
    try:
        return posting_hash(row.link_hash, row.number, Posting(row.recipient, row.amount, row.memo)) == row.hash
    except (LocalMisuse, struct.error):  # what no posting can be
        return False


def _chain_entry(entry: Entry, postings: Iterable[PostingRow]) -> ChainEntry:
    return ChainEntry(entry.request_id, entry.request, entry.outcome, tuple(postings))


def read_outcome(conn: sqlite3.Connection, request_id: RequestId, account: str | None = None) -> OutcomeRow | None:
    """The recorded outcome of a request, or None when there is none here (yet). Raises `Corruption` when its link says
    another one.

    Name the `account` that sent it when you know it. Anybody can cancel an id that is not theirs, which means nothing
    to its owner: without `account`, the outcome that stands beside the request itself is preferred to a cancellation,
    and the answer's `account` says whose it is.
    """
    with storage_errors("reading an outcome"), snapshot(conn):
        row = read_outcome_row(conn, request_id, account)
        return load(conn, Needs(told={(row[0], request_id): None})).outcomes[row[0], request_id] if row else None


def read_outcome_row(
    conn: sqlite3.Connection, request_id: RequestId, account: str | None = None
) -> tuple[str, LinkHash, int] | None:
    """(account, link, outcome) as the row of `read_outcome` has them: for many, and where a wrong one does no harm."""
    with storage_errors("reading an outcome"):
        row = conn.execute(
            "SELECT account, link_hash, outcome FROM outcomes WHERE request_id = ? AND account = coalesce(?, account) "
            "ORDER BY outcome = ?, account LIMIT 1",
            (request_id, account, int(Outcome.CANCELLED)),
        ).fetchone()
    return (row[0], LinkHash(row[1]), row[2]) if row else None


def list_accounts(conn: sqlite3.Connection, after: str = "", limit: int = 100) -> tuple[AccountHead, ...]:
    """Accounts by name, the first `limit` whose name sorts after `after`."""
    with storage_errors("listing accounts"):
        rows = conn.execute(
            f"SELECT {HEAD_COLUMNS} FROM accounts AS a WHERE a.name > ? ORDER BY a.name LIMIT ?", (after, limit)
        )
        return tuple(head_row(*row) for row in rows)


def count_links(conn: sqlite3.Connection) -> int:
    """How long the log is."""
    return _number(conn, "SELECT count(*) FROM links")


def count_accounts(conn: sqlite3.Connection) -> int:
    """How many accounts are open here."""
    return _number(conn, "SELECT count(*) FROM accounts")


def sum_paid(conn: sqlite3.Connection, prefix: str) -> int:
    """What the accounts whose names begin with `prefix` have paid so far, minor units."""
    return _number(
        conn,
        "SELECT coalesce(sum(p.amount), 0) FROM links AS l CROSS JOIN postings AS p "
        "ON p.id BETWEEN l.seq << 14 AND l.seq << 14 | 16383 WHERE l.account >= ? AND l.account < ?",
        prefix,
        prefix + "\x7f",
    )


def _number(conn: sqlite3.Connection, question: str, *values: str) -> int:
    with storage_errors("counting"):
        return int(conn.execute(question, values).fetchone()[0])


def state_digest(conn: sqlite3.Connection) -> StateDigest:
    """What `hopchain verify --cluster` compares between replicas."""
    digest, accounts = hashlib.sha256(_STATE_TAG), 0
    totals: dict[str, int] = {}
    with storage_errors("computing the digest"), snapshot(conn):
        for name, height, tip, asset, balance in conn.execute(
            "SELECT name, height, tip, asset, balance FROM accounts ORDER BY name"
        ):
            digest.update(name.encode() + b"\0" + _STATE.pack(height, tip))
            accounts += 1
            totals[asset] = totals.get(asset, 0) + balance
        for asset, amount in conn.execute(
            "SELECT a.asset, i.amount FROM incoming AS i CROSS JOIN links AS l ON l.seq = i.recipient "
            "CROSS JOIN accounts AS a ON a.name = l.account"
        ):
            totals[asset] = totals.get(asset, 0) + amount
        (links,) = conn.execute("SELECT count(*) FROM links").fetchone()
    return StateDigest(digest.digest(), accounts, links, tuple(sorted(totals.items())))

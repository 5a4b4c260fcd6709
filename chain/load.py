"""Reads of the store: `load` fetches what a turn needs in a few queries, whatever the number of rows.

A query takes up to `_KEYS_PER_QUERY` keys as a VALUES table that is joined to the real one. The number of keys is
rounded up to a power of two with NULLs, which match nothing, so that few different statements are ever prepared.
"""

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from functools import lru_cache
from itertools import chain, dropwhile, starmap
from typing import Any, Final, TypeVar

import msgspec

from chain.disk import storage_errors
from chain.errors import Corruption, RemoteFault
from chain.link import MAX_CONFIRMED, LinkHash, Outcome, PostingHash, read_header, read_record_untrusted
from chain.names import MAX_AMOUNT
from chain.needs import Income, Loaded, LogPage, Needs
from chain.request import RequestId
from chain.rows import AccountHead, Credit, Forming, Incoming, OutcomeRow, PostingRow, refused_text, thread_text
from chain.schema import BY_HASH
from chain.seal import read_log_head

CHAIN_BATCH: Final = 256  # links in one answer about a chain
CHAIN_BATCH_BYTES: Final = 1 << 20  # and their bytes, but always one link: a frame holds a few of these
# Of links for others in one turn, of each kind: a quarter of what may wait for one peer
WANTED_BYTES: Final = 8 * 1024 * 1024
# Of links that are read in one turn to tell clients of outcomes: 15 ms, at most.
TOLD_BYTES: Final = 4 * 1024 * 1024
LOG_BATCH: Final = 4096  # hashes in one answer about the log: 128 KiB
_KEYS_PER_QUERY: Final = 512  # bounds the text of a query, and with it SQLite's parser


HEAD_COLUMNS: Final = "a.name, a.asset, a.public_key, a.issuer, a.height, a.tip, a.balance, a.epoch, a.time_ms"
# A `PostingRow` from posting `p`: its link, and the link that confirmed it with the posting confirmed before.
POSTING_COLUMNS: Final = (
    "p.hash, l.hash, p.id & 16383, l.account, l.height, l.time_ms, p.recipient, p.amount, p.memo, t.hash, "
    "iif(c.id IS NULL, NULL, coalesce(b.hash, zeroblob(32)))"
)
POSTING_JOINS: Final = (
    "CROSS JOIN links AS l ON l.seq = p.id >> 14 LEFT JOIN confirmations AS c ON c.posting = p.id "
    "LEFT JOIN links AS t ON t.seq = c.id >> 14 LEFT JOIN postings AS b ON b.id = c.previous"
)

# Joins give the order: CROSS JOIN keeps the keys outside, so that each is looked up in an index.
_HEADS: Final = f"SELECT {HEAD_COLUMNS} FROM k CROSS JOIN accounts AS a ON a.name = k.column1"
_ASSETS: Final = "SELECT a.name, a.asset FROM k CROSS JOIN accounts AS a ON a.name = k.column1"
_SETTLED: Final = "SELECT a.name, a.balance FROM k CROSS JOIN accounts AS a ON a.name = k.column1"
_AMOUNTS: Final = (
    f"SELECT amount FROM incoming WHERE recipient = (SELECT id FROM accounts WHERE name = ?) LIMIT {MAX_CONFIRMED + 1}"
)
_OUTCOME_CODES: Final = frozenset(map(int, Outcome))
_OUTCOMES: Final = (
    "SELECT o.link_hash, o.number, o.request_id, o.account, o.outcome, l.height, l.balance, l.time_ms, length(l.body) "
    "FROM k CROSS JOIN outcomes AS o ON o.request_id = k.column2 AND o.account = k.column1 "
    "LEFT JOIN links AS l ON l.hash = o.link_hash"
)
_MADE_BY: Final = (  # the link with this seq
    f"SELECT {POSTING_COLUMNS} FROM postings AS p {POSTING_JOINS} WHERE p.id BETWEEN ?1 << 14 AND ?1 << 14 | 16383 ORDER BY p.id"
)
_CONFIRMED_BY: Final = (
    f"SELECT {POSTING_COLUMNS} FROM confirmations AS o CROSS JOIN postings AS p ON p.id = o.posting {POSTING_JOINS} "
    "WHERE o.id BETWEEN ?1 << 14 AND ?1 << 14 | 16383 ORDER BY o.id"
)
_CREDIT_COLUMNS: Final = "p.hash, l.account, p.recipient, p.amount, p.id, t.hash, s.id"
_CREDIT_JOINS: Final = (
    "CROSS JOIN links AS l ON l.seq = p.id >> 14 CROSS JOIN accounts AS s ON s.name = l.account LEFT JOIN confirmations AS c ON c.posting = p.id "
    "LEFT JOIN links AS t ON t.seq = c.id >> 14"
)
_CREDITS: Final = (
    f"SELECT {_CREDIT_COLUMNS}, coalesce((SELECT b.posting FROM incoming AS b WHERE b.recipient = (SELECT id FROM accounts WHERE name = p.recipient) "
    "AND b.sender = s.id AND b.posting < p.id ORDER BY b.posting DESC LIMIT 1), 0) "
    f"FROM k CROSS JOIN postings AS p ON {BY_HASH.format('k.column1')} {_CREDIT_JOINS}"
)
_SCANNED: Final = 64  # incoming postings of an account that are read in one go, beside as many as it confirms
# Of rows of `incoming`: the account of this name, and the account that has the number `i.sender`, by the link that
# opened it.
_ID_OF: Final = "(SELECT id FROM accounts WHERE name = ?)"
_WAITING_COLUMNS: Final = "p.hash, s.account, p.recipient, i.amount, i.posting, NULL, i.sender"
_WAITING_JOINS: Final = "CROSS JOIN postings AS p ON p.id = i.posting CROSS JOIN links AS s ON s.seq = i.sender"
# Both in the order of each stream, of which they have the oldest.
_WAITING: Final = f"SELECT {_WAITING_COLUMNS} FROM incoming AS i {_WAITING_JOINS} WHERE i.recipient = {_ID_OF} ORDER BY i.sender, i.posting LIMIT ?"
_OLDEST_WAITING: Final = (
    f"SELECT {_WAITING_COLUMNS} FROM (SELECT * FROM incoming WHERE recipient = {_ID_OF} ORDER BY posting LIMIT ?) AS i {_WAITING_JOINS} "
    "ORDER BY i.posting"
)
_LINKS_AT: Final = (
    "SELECT l.account, l.height, l.hash FROM k CROSS JOIN links AS l ON l.account = k.column1 AND l.height = k.column2"
)
_BY_HASH: Final = "SELECT l.hash, l.header, l.body FROM k CROSS JOIN links AS l ON l.hash = k.column1"
_HEADERS: Final = "SELECT l.hash, l.header FROM k CROSS JOIN links AS l ON l.hash = k.column1"
_LINK_OF: Final = f"SELECT p.hash, p.id >> 14 FROM k CROSS JOIN postings AS p ON {BY_HASH.format('k.column1')}"
_BY_SEQ: Final = "SELECT l.seq, l.header, l.body FROM k CROSS JOIN links AS l ON l.seq = k.column1"
_KNOWN: Final = "SELECT l.hash FROM k CROSS JOIN links AS l ON l.hash = k.column1"
_CHAIN: Final = "SELECT header, body FROM links WHERE account = ? AND height >= ? ORDER BY height LIMIT ?"
_LOG: Final = "SELECT hash, seq FROM links WHERE seq > ? ORDER BY seq LIMIT ?"
_INCOME: Final = (
    "SELECT l.account, l.height FROM (SELECT max(posting) AS last "
    f"FROM incoming WHERE recipient = {_ID_OF} GROUP BY sender) AS i CROSS JOIN links AS l ON l.seq = i.last >> 14 ORDER BY l.account"
)
_TIP_INCOME: Final = (
    "SELECT k.column1, p.hash FROM k CROSS JOIN confirmations AS c ON c.id BETWEEN k.column1 << 14 AND k.column1 << 14 | 16383 "
    "CROSS JOIN postings AS p ON p.id = c.posting ORDER BY c.id"
)
FEW: Final = 16  # incoming postings: accounts that have no more are read together
_FORMING: Final = (
    f"SELECT {HEAD_COLUMNS}, a.id, l.incoming_checksum, "
    "(SELECT l.seq FROM confirmations AS c WHERE c.id BETWEEN l.seq << 14 AND l.seq << 14 | 16383 LIMIT 1), "
    f"(SELECT count(*) FROM (SELECT 1 FROM incoming AS i WHERE i.recipient = a.id LIMIT {FEW + 1})) "
    "FROM k CROSS JOIN accounts AS a ON a.name = k.column1 LEFT JOIN links AS l ON l.hash = a.tip"
)
_INCOMING_COLUMNS: Final = (
    "i.recipient, p.hash, s.account, p.recipient, i.amount, i.posting, t.hash, i.sender, l.hash, l.height, l.time_ms, l.header, "
    "h.last, l.account = s.account AND s.height = 0 AND p.amount = i.amount"
)
# LEFT JOIN, so that a row whose posting is not here is seen and refused: left out, the link would skip that posting,
# and every sound replica would stop at it.
_INCOMING_JOINS: Final = (
    "LEFT JOIN postings AS p ON p.id = i.posting LEFT JOIN links AS l ON l.seq = i.posting >> 14 "
    "LEFT JOIN links AS s ON s.seq = i.sender "
    "LEFT JOIN confirmations AS c ON c.posting = i.posting LEFT JOIN links AS t ON t.seq = c.id >> 14 "
    "LEFT JOIN threads AS h ON h.recipient = i.recipient AND h.sender = i.sender"
)
_MANY_INCOMING: Final = (
    f"SELECT {_INCOMING_COLUMNS} FROM (SELECT * FROM incoming WHERE recipient = ? ORDER BY posting LIMIT ?) AS i {_INCOMING_JOINS} "
    "ORDER BY i.posting"
)
_INCOMING: Final = f"SELECT {_INCOMING_COLUMNS} FROM k CROSS JOIN incoming AS i ON i.recipient = k.column1 {_INCOMING_JOINS} ORDER BY i.posting"
_LAST_CONFIRMED: Final = f"SELECT {_CREDIT_COLUMNS} FROM k CROSS JOIN postings AS p ON p.id = k.column1 {_CREDIT_JOINS}"
_INCOMING_COUNT: Final = f"SELECT count(*) FROM incoming WHERE recipient = {_ID_OF}"

Key = bytes | int | str
T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K", bound=Key)


def load(conn: sqlite3.Connection, needs: Needs) -> Loaded:
    """Fetch what `needs` names. Raises `StorageFailure` when the database cannot be read, and `Corruption` when what
    it reads contradicts itself: the head of the log, an outcome and its link, the header of a link and its hash, the
    numbers of accounts, rows of `incoming` and their postings or threads."""
    with storage_errors("reading the database"):
        loaded = Loaded()
        if needs.forming or needs.forming_few:
            loaded.forming = _forming(conn, needs.forming, needs.forming_few)
        if needs.heads:
            loaded.heads = _heads(conn, needs.heads, loaded.forming)
        if needs.assets:
            loaded.assets = dict(_join(conn, _ASSETS, _singles(needs.assets), _pair))
        if needs.outcomes or needs.told:
            loaded.outcomes, loaded.untold = _outcomes(conn, needs.outcomes, needs.told)
        if needs.postings:
            loaded.postings, loaded.ends = _credits(conn, needs.postings, needs.made)
        if needs.links_at:
            loaded.links_at = _links_at(conn, needs, loaded.heads)
        if needs.accounts_of:
            loaded.accounts_of = dict(_join(conn, _HEADERS, _singles(needs.accounts_of), _account_of))
        if needs.wanted_chains or needs.wanted_links or needs.wanted_postings:
            _load_wanted(conn, needs, loaded)
        if needs.known:
            loaded.known = set(_join(conn, _KNOWN, _singles(needs.known), LinkHash))
        if needs.chains:
            loaded.chains = {key: _chain(conn, *key) for key in needs.chains}
        incomes = needs.income | (needs.forming_few & loaded.forming.keys())
        if incomes:
            loaded.income = {name: _income(conn, name, loaded.forming.get(name)) for name in incomes}
        if needs.funds:
            loaded.funds = {
                name: _funds(conn, name, balance)
                for name, balance in _join(conn, _SETTLED, _singles(needs.funds), _pair)
            }
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


def _outcomes(
    conn: sqlite3.Connection, keys: Set[tuple[str, RequestId]], told: Mapping[tuple[str, RequestId], None]
) -> tuple[dict[tuple[str, RequestId], OutcomeRow], dict[tuple[str, RequestId], int]]:
    """Those that have a row. What is told is final, so a changed row must not tell another outcome: those of `told` are
    as their links have them, or, where these links are too many for one turn, named beside. A link is read once for all
    of them, and one link is always read."""
    found: dict[tuple[str, RequestId], OutcomeRow] = {}
    of_link: dict[LinkHash, dict[int, tuple[RequestId, str, int]]] = {}
    untold: dict[tuple[str, RequestId], int] = {}
    room = TOLD_BYTES
    for link, number, request_id, account, outcome, height, balance, time_ms, size in _join(
        conn, _OUTCOMES, [*told, *(keys - told.keys())], lambda *row: row
    ):
        key = (account, request_id)
        if size is None or outcome not in _OUTCOME_CODES:
            raise _outcome_differs(link, {number: (request_id, account, outcome)})
        found[key] = OutcomeRow(request_id, account, Outcome(outcome), link, height, balance, time_ms)
        if key not in told:
            continue
        if link not in of_link:
            if of_link and size > room:
                untold[key] = size
                continue
            room -= size
        of_link.setdefault(link, {})[number] = (request_id, account, outcome)
    for link, raw in _join(conn, _BY_HASH, _singles(of_link), _keyed_raw):
        found.update(((row.account, row.request_id), row) for row in _recorded(link, raw, of_link[link]))
    return found, untold


def _recorded(link: LinkHash, raw: bytes, rows: Mapping[int, tuple[RequestId, str, int]]) -> Iterator[OutcomeRow]:
    try:
        record = read_record_untrusted(raw, rows)
    except RemoteFault as fault:
        raise damaged_link(link, fault.text) from None
    made = {number: (request_id, record.account, outcome) for number, (request_id, outcome) in record.outcomes.items()}
    if record.hash != link or made != rows:
        raise _outcome_differs(link, rows)
    for request_id, outcome in record.outcomes.values():
        yield OutcomeRow(request_id, record.account, outcome, link, record.height, record.balance, record.time_ms)


def _outcome_differs(link: LinkHash, rows: Mapping[int, tuple[RequestId, str, int]]) -> Corruption:
    ids = ", ".join(request_id.hex()[:16] for request_id, _, _ in rows.values())
    return Corruption(
        f"outcomes row {ids[:200]} is not what link {link.hex()[:16]} says, or that is not here; run `hopchain verify` on the database"
    )


def _heads(conn: sqlite3.Connection, names: Collection[str], forming: Mapping[str, Forming]) -> dict[str, AccountHead]:
    """The heads of these accounts; those that are known from `forming` are not read twice."""
    heads = {name: there.head for name, there in forming.items() if there.head is not None and name in names}
    missing = [name for name in names if name not in forming]
    for head in _join(conn, _HEADS, _singles(missing), head_row):
        heads[head.name] = head
    return heads


def _account_of(link: bytes, header: bytes) -> tuple[LinkHash, str]:
    """What a client is told by it is final, so it is as the header says, not a column."""
    try:
        found, account, height, _ = read_header(header)
    except RemoteFault as fault:
        raise damaged_link(link, fault.text) from None
    if found != link:
        raise another_header(link, found, account, height)
    return found, account


def another_header(link: bytes, found: LinkHash, account: str, height: int) -> Corruption:
    """What stands here under the hash of `link` is the link with the hash `found`."""
    return damaged_link(link, f"its header is that of link {height} of {account} ({found.hex()[:16]})")


def damaged_link(link: bytes, what: str) -> Corruption:
    """The row of this link is damaged: `what` is wrong with it."""
    return Corruption(f"links row {link.hex()[:16]}: {what}; run `hopchain verify` on the database")


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


def _links_at(
    conn: sqlite3.Connection, needs: Needs, heads: Mapping[str, AccountHead]
) -> dict[tuple[str, int], LinkHash]:
    """Nothing is above a head, where a link that comes for the first time belongs: it is not looked for there."""
    keys = [
        (name, height)
        for name, height in needs.links_at
        if name not in needs.heads or (name in heads and height <= heads[name].height)
    ]
    return dict(_join(conn, _LINKS_AT, keys, lambda name, height, tip: ((name, height), tip)))


def _chain(conn: sqlite3.Connection, account: str, from_height: int) -> tuple[bytes, ...]:
    links: list[bytes] = []
    size = 0
    for header, body in conn.execute(_CHAIN, (account, from_height, CHAIN_BATCH)):
        size += len(header) + len(body)
        if links and size > CHAIN_BATCH_BYTES:
            break
        links.append(header + body)
    return tuple(links)


def _load_wanted(conn: sqlite3.Connection, needs: Needs, loaded: Loaded) -> None:
    """What others asked for. A link is read once for however many of its postings."""
    chains = ((key, _chain(conn, *key)) for key in needs.wanted_chains)
    loaded.wanted_chains, cut_chains = _bounded(chains, needs.wanted_chains, _total)
    links: Iterator[tuple[LinkHash, bytes]] = _join(conn, _BY_HASH, _singles(needs.wanted_links), _keyed_raw)
    loaded.wanted_links, cut_links = _bounded(links, needs.wanted_links, len)
    of_link: dict[int, list[PostingHash]] = {}
    for posting, seq in _join(conn, _LINK_OF, _singles(needs.wanted_postings), _pair):
        of_link.setdefault(seq, []).append(posting)
    paying: Iterator[tuple[int, bytes]] = _join(conn, _BY_SEQ, _singles(of_link), _keyed_raw)
    raws, cut = _bounded(paying, of_link, len)
    for seq, raw in raws.items():
        loaded.wanted_postings.update(dict.fromkeys(of_link[seq], raw))
    loaded.cut.update(cut_chains, cut_links, *(of_link[seq] for seq in cut))


def _bounded(rows: Iterable[tuple[U, T]], keys: Iterable[U], size_of: Callable[[T], int]) -> tuple[dict[U, T], list[U]]:
    """As many rows as `WANTED_BYTES` have room for, and always the first; and those of the `keys`, in whose order the
    rows are, that there was no room for."""
    found: dict[U, T] = {}
    size = 0
    for key, value in rows:
        size += size_of(value)
        if size > WANTED_BYTES and size > size_of(value):
            return found, list(dropwhile(key.__ne__, keys))
        found[key] = value
    return found, []


def _total(raws: Sequence[bytes]) -> int:
    return sum(map(len, raws))


def _income(conn: sqlite3.Connection, account: str, forming: Forming | None) -> Income:
    """From what was read to form a link, when that is all that waits: each sender's postings are in the order of its
    chain."""
    if forming is not None and forming.incoming_count == len(forming.incoming):
        return Income(tuple(sorted({i.posting.sender: i.height for i in forming.incoming}.items())))
    return Income(tuple(conn.execute(_INCOME, (account,))))


def _funds(conn: sqlite3.Connection, account: str, balance: int) -> int:
    amounts = [amount for (amount,) in conn.execute(_AMOUNTS, (account,))]
    return balance + sum(amounts) if len(amounts) <= MAX_CONFIRMED else MAX_AMOUNT


def _log_page(conn: sqlite3.Connection, after: int) -> LogPage:
    rows = conn.execute(_LOG, (after, LOG_BATCH)).fetchall()
    return LogPage(tuple(LinkHash(link) for link, _ in rows), rows[-1][1] if rows else after)


def read_postings(
    conn: sqlite3.Connection, link_hash: LinkHash
) -> tuple[tuple[PostingRow, ...], tuple[PostingRow, ...]]:
    """What the link with this hash pays, and what it confirms, as people read them, each in its order."""
    row = conn.execute("SELECT seq FROM links WHERE hash = ?", (link_hash,)).fetchone()
    if row is None:
        return (), ()
    made, confirmed = (tuple(starmap(PostingRow, conn.execute(query, row))) for query in (_MADE_BY, _CONFIRMED_BY))
    return made, confirmed


def account_id(conn: sqlite3.Connection, name: str) -> int:
    """The number of the account in this replica; 0 when it is not here, which no account has."""
    row = conn.execute(f"SELECT {_ID_OF}", (name,)).fetchone()
    return int(row[0] or 0)


def read_headers(conn: sqlite3.Connection, links: Collection[LinkHash]) -> list[bytes]:
    """The headers of those of these links that are here."""
    return list(_join(conn, _HEADERS, _singles(links), lambda _, header: header))


def find_credits(conn: sqlite3.Connection, hashes: Collection[PostingHash]) -> dict[PostingHash, Credit]:
    """Those of these postings that are here, each looked for by its hash."""
    return {credit.hash: credit for credit in _join(conn, _CREDITS, _singles(hashes), Credit)}


def _credits(
    conn: sqlite3.Connection, wanted: Mapping[str, set[PostingHash]], made: Set[PostingHash]
) -> tuple[dict[PostingHash, Credit], dict[tuple[str, str], int]]:
    """The postings that each account confirms, and `Loaded.ends`. They are among its incoming ones, which stand
    together on the disk: one look there finds all, unless the account has many more; then a second one at the oldest of
    them. The others are looked for by their hashes, which takes a search in each part of the index."""
    found: dict[PostingHash, Credit] = {}
    ends: dict[tuple[str, str], int] = {}
    for account, hashes in wanted.items():
        most = len(hashes) + _SCANNED
        for query in (_WAITING, _OLDEST_WAITING):
            rows = conn.execute(query, (account, most)).fetchall()
            last: dict[int, int] = {}  # by sender
            for row in rows:
                if row[0] in hashes:
                    found[row[0]] = Credit(*(*row, last.get(row[6], 0)))
                last[row[6]] = row[4]
            if len(rows) < most and not hashes.isdisjoint(made):
                ends.update({(row[1], account): row[4] for row in rows})
            if len(rows) < most or all(posting in found for posting in hashes):
                break
    missing = {posting for hashes in wanted.values() for posting in hashes if posting not in found} - made
    return ({**found, **find_credits(conn, missing)} if missing else found), ends


def _forming(conn: sqlite3.Connection, wanted: Collection[str], few_only: Collection[str]) -> dict[str, Forming]:
    """What the next link of each account depends on: its head, the income of its tip, its incoming postings. Those of
    `few_only` for which many wait are left out unless they are `wanted`."""
    names = {*wanted, *few_only}
    heads: dict[str, tuple[AccountHead, bytes, int | None]] = {}
    ids: dict[int, str] = {}
    few: list[tuple[int]] = []
    rows: list[tuple[Any, ...]] = []
    for *columns, account_id, checksum, tip_seq, waiting in _join(conn, _FORMING, _singles(names), lambda *row: row):
        head = head_row(*columns)
        if waiting > FEW and head.name not in wanted:
            names.discard(head.name)
            continue
        heads[head.name] = head, checksum or b"", tip_seq
        if ids.setdefault(account_id, head.name) != head.name:
            raise Corruption(
                f"accounts {ids[account_id]} and {head.name} both have number {account_id}; this database is damaged: run `hopchain verify` on it"
            )
        if waiting > min(FEW, MAX_CONFIRMED):
            rows += conn.execute(_MANY_INCOMING, (account_id, MAX_CONFIRMED))
        elif waiting:
            few.append((account_id,))
    rows += _join(conn, _INCOMING, few, lambda *row: row)
    incoming = _incoming(conn, rows, ids)
    tip_income: dict[int, list[PostingHash]] = {}
    tips = [(seq,) for _, _, seq in heads.values() if seq is not None]
    for seq, posting_hash in _join(conn, _TIP_INCOME, tips, _pair):
        tip_income.setdefault(seq, []).append(posting_hash)
    forming = {}
    for name in names:
        if name not in heads:
            forming[name] = Forming(None, b"", (), (), 0)
            continue
        head, checksum, tip_seq = heads[name]
        waits = incoming.get(name, [])
        count = len(waits)
        if count == MAX_CONFIRMED:
            (count,) = conn.execute(_INCOMING_COUNT, (name,)).fetchone()
        tip_postings = tuple(tip_income.get(tip_seq, ())) if tip_seq is not None else ()
        forming[name] = Forming(head, checksum, tip_postings, tuple(waits), count)
    return forming


def _incoming(
    conn: sqlite3.Connection, rows: Sequence[tuple[Any, ...]], names: Mapping[int, str]
) -> dict[str, list[Incoming]]:
    """By recipient, oldest first: the postings of `_INCOMING_COLUMNS`, each with the one before it in its stream.
    `names`: of the recipients, by their numbers."""
    ends = {row[12] for row in rows if row[12] is not None}
    confirmed = {credit.id: credit for credit in _join(conn, _LAST_CONFIRMED, _singles(ends), Credit)}
    last: dict[tuple[str, str], Credit] = {}
    found: dict[str, list[Incoming]] = {}
    for to, *columns, link_hash, height, time_ms, header, end, agrees in rows:
        posting = Credit(*columns)
        if not agrees or posting.recipient != names[to]:
            raise Corruption(_disagrees_text(posting, names[to]))
        stream = (posting.sender, posting.recipient)
        before = last.get(stream)
        if before is not None:
            posting = msgspec.structs.replace(posting, before=before.id)
        if before is None and end is not None:
            before = confirmed.get(end)
        incoming = Incoming(posting, link_hash, height, time_ms, header, before)
        if end is not None and before is None:
            raise Corruption(thread_text(incoming, f"posting {end}, where its thread ends, is not here"))
        last[stream] = posting
        found.setdefault(posting.recipient, []).append(incoming)
    for waiting in found.values():
        waiting.sort(key=_age)
    return found


def _disagrees_text(row: Credit, recipient: str) -> str:
    """What to say of a row of `incoming` that differs from its posting, or has none: so the posting's hash may not be
    here."""
    sender = row.sender or f"account {row.sender_id}"
    return refused_text(f"{row.id}", row.amount, sender, recipient, "its row in `incoming` is not what its link says")


def _age(incoming: Incoming) -> tuple[int, str, int]:
    return incoming.age

"""What waits for an account, and with it all that its next link depends on (`Forming`)."""

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from chain.accounts import HEAD_COLUMNS, ID_OF, head_row
from chain.credits import credits_at
from chain.errors import Corruption
from chain.keyed import join, pair, singles
from chain.link import MAX_CONFIRMED, PostingHash
from chain.names import MAX_AMOUNT
from chain.needs import Income
from chain.rows import AccountHead, Credit, Forming, Incoming, refused_text, thread_text

FEW: Final = 16  # incoming postings: accounts that have no more are read together
_FORMING: Final = (
    f"SELECT {HEAD_COLUMNS}, a.id, l.incoming_checksum, "
    "(SELECT l.seq FROM confirmations AS c WHERE c.id BETWEEN l.seq << 14 AND l.seq << 14 | 16383 LIMIT 1), "
    f"(SELECT count(*) FROM (SELECT 1 FROM incoming AS i WHERE i.recipient = a.id LIMIT {FEW + 1})) "
    "FROM k CROSS JOIN accounts AS a ON a.name = k.column1 LEFT JOIN links AS l ON l.hash = a.tip"
)
_TIP_INCOME: Final = (
    "SELECT k.column1, p.hash FROM k CROSS JOIN confirmations AS c ON c.id BETWEEN k.column1 << 14 AND k.column1 << 14 | 16383 "
    "CROSS JOIN postings AS p ON p.id = c.posting ORDER BY c.id"
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
_INCOMING_COUNT: Final = f"SELECT count(*) FROM incoming WHERE recipient = {ID_OF}"
_INCOME: Final = (
    "SELECT l.account, l.height FROM (SELECT max(posting) AS last "
    f"FROM incoming WHERE recipient = {ID_OF} GROUP BY sender) AS i CROSS JOIN links AS l ON l.seq = i.last >> 14 ORDER BY l.account"
)
_SETTLED: Final = "SELECT a.name, a.balance FROM k CROSS JOIN accounts AS a ON a.name = k.column1"
_AMOUNTS: Final = f"SELECT amount FROM incoming WHERE recipient = {ID_OF} LIMIT {MAX_CONFIRMED + 1}"


def read_forming(conn: sqlite3.Connection, wanted: Collection[str], few_only: Collection[str]) -> dict[str, Forming]:
    """What the next link of each account depends on: its head, the income of its tip, its incoming postings. Those of
    `few_only` for which many wait are left out unless they are `wanted`."""
    names = {*wanted, *few_only}
    heads: dict[str, tuple[AccountHead, bytes, int | None]] = {}
    ids: dict[int, str] = {}
    few: list[tuple[int]] = []
    rows: list[tuple[Any, ...]] = []
    for *columns, account_id, checksum, tip_seq, waiting in join(conn, _FORMING, singles(names), lambda *row: row):
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
    rows += join(conn, _INCOMING, few, lambda *row: row)
    incoming = _incoming(conn, rows, ids)
    tip_income: dict[int, list[PostingHash]] = {}
    tips = [(seq,) for _, _, seq in heads.values() if seq is not None]
    for seq, posting_hash in join(conn, _TIP_INCOME, tips, pair):
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
    confirmed = credits_at(conn, ends)
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


def read_income(conn: sqlite3.Connection, account: str, forming: Forming | None) -> Income:
    """Who pays the account, from what was read to form its link when that is all that waits: each sender's postings are
    in the order of its chain."""
    if forming is not None and forming.incoming_count == len(forming.incoming):
        return Income(tuple(sorted({i.posting.sender: i.height for i in forming.incoming}.items())))
    return Income(tuple(conn.execute(_INCOME, (account,))))


def read_funds(conn: sqlite3.Connection, names: Collection[str]) -> dict[str, int]:
    """What each of these accounts holds and waits for, `Loaded.funds`."""
    return {name: _funds(conn, name, balance) for name, balance in join(conn, _SETTLED, singles(names), pair)}


def _funds(conn: sqlite3.Connection, account: str, balance: int) -> int:
    amounts = [amount for (amount,) in conn.execute(_AMOUNTS, (account,))]
    return balance + sum(amounts) if len(amounts) <= MAX_CONFIRMED else MAX_AMOUNT

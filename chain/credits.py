"""Postings as the links of their recipients confirm them (`Credit`): found where they wait, else by hash."""

import sqlite3
from collections.abc import Collection, Mapping, Set
from typing import Final

from chain.accounts import ID_OF
from chain.keyed import join, singles
from chain.link import PostingHash
from chain.rows import Credit
from chain.schema import BY_HASH

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
_AT: Final = f"SELECT {_CREDIT_COLUMNS} FROM k CROSS JOIN postings AS p ON p.id = k.column1 {_CREDIT_JOINS}"
_SCANNED: Final = 64  # incoming postings of an account that are read in one go, beside as many as it confirms
# Of rows of `incoming`: the account that has the number `i.sender`, by the link that opened it.
_WAITING_COLUMNS: Final = "p.hash, s.account, p.recipient, i.amount, i.posting, NULL, i.sender"
_WAITING_JOINS: Final = "CROSS JOIN postings AS p ON p.id = i.posting CROSS JOIN links AS s ON s.seq = i.sender"
# Both in the order of each stream, of which they have the oldest.
_WAITING: Final = f"SELECT {_WAITING_COLUMNS} FROM incoming AS i {_WAITING_JOINS} WHERE i.recipient = {ID_OF} ORDER BY i.sender, i.posting LIMIT ?"
_OLDEST_WAITING: Final = (
    f"SELECT {_WAITING_COLUMNS} FROM (SELECT * FROM incoming WHERE recipient = {ID_OF} ORDER BY posting LIMIT ?) AS i {_WAITING_JOINS} "
    "ORDER BY i.posting"
)


def find_credits(conn: sqlite3.Connection, hashes: Collection[PostingHash]) -> dict[PostingHash, Credit]:
    """Those of these postings that are here, each looked for by its hash."""
    return {credit.hash: credit for credit in join(conn, _CREDITS, singles(hashes), Credit)}


def credits_at(conn: sqlite3.Connection, ids: Collection[int]) -> dict[int, Credit]:
    """Those of the postings with these ids that are here, without `before`."""
    return {credit.id: credit for credit in join(conn, _AT, singles(ids), Credit)}


def read_credits(
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

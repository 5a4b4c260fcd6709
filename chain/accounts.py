"""Accounts as rows: their heads, and the numbers that they have in this replica (ADR 24)."""

import sqlite3
from collections.abc import Collection, Iterator
from typing import Final

from chain.keyed import join, singles
from chain.link import LinkHash
from chain.rows import AccountHead

HEAD_COLUMNS: Final = "a.name, a.asset, a.public_key, a.issuer, a.height, a.tip, a.balance, a.epoch, a.time_ms"
ID_OF: Final = "(SELECT id FROM accounts WHERE name = ?)"  # the number of the account with this name
_HEADS: Final = f"SELECT {HEAD_COLUMNS} FROM k CROSS JOIN accounts AS a ON a.name = k.column1"


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


def read_heads(conn: sqlite3.Connection, names: Collection[str]) -> Iterator[AccountHead]:
    """The heads of those of these accounts that are here."""
    return join(conn, _HEADS, singles(names), head_row)


def account_id(conn: sqlite3.Connection, name: str) -> int:
    """The number of the account in this replica; 0 when it is not here, which no account has."""
    row = conn.execute(f"SELECT {ID_OF}", (name,)).fetchone()
    return int(row[0] or 0)

"""Reads of the store: `load` fetches what a turn needs in a few queries, whatever the number of rows."""

import sqlite3
from collections.abc import Collection, Mapping
from typing import Final

from chain.accounts import read_heads
from chain.credits import read_credits
from chain.disk import storage_errors
from chain.forming import read_forming, read_funds, read_income
from chain.keyed import join, pair, singles
from chain.link import LinkHash
from chain.needs import Loaded, LogPage, Needs
from chain.outcomes import read_outcomes
from chain.raw import accounts_of, load_wanted, raw_chain
from chain.rows import AccountHead, Forming
from chain.seal import read_log_head

LOG_BATCH: Final = 4096  # hashes in one answer about the log: 128 KiB
_ASSETS: Final = "SELECT a.name, a.asset FROM k CROSS JOIN accounts AS a ON a.name = k.column1"
_LINKS_AT: Final = (
    "SELECT l.account, l.height, l.hash FROM k CROSS JOIN links AS l ON l.account = k.column1 AND l.height = k.column2"
)
_KNOWN: Final = "SELECT l.hash FROM k CROSS JOIN links AS l ON l.hash = k.column1"
_LOG: Final = "SELECT hash, seq FROM links WHERE seq > ? ORDER BY seq LIMIT ?"


def load(conn: sqlite3.Connection, needs: Needs) -> Loaded:
    """Fetch what `needs` names. Raises `StorageFailure` when the database cannot be read, and `Corruption` when what
    it reads contradicts itself: the head of the log, an outcome and its link, the header of a link and its hash, the
    numbers of accounts, rows of `incoming` and their postings or threads."""
    with storage_errors("reading the database"):
        loaded = Loaded()
        if needs.forming or needs.forming_few:
            loaded.forming = read_forming(conn, needs.forming, needs.forming_few)
        if needs.heads:
            loaded.heads = _heads(conn, needs.heads, loaded.forming)
        if needs.assets:
            loaded.assets = dict(join(conn, _ASSETS, singles(needs.assets), pair))
        if needs.outcomes or needs.told:
            loaded.outcomes, loaded.untold = read_outcomes(conn, needs.outcomes, needs.told)
        if needs.postings:
            loaded.postings, loaded.ends = read_credits(conn, needs.postings, needs.made)
        if needs.links_at:
            loaded.links_at = _links_at(conn, needs, loaded.heads)
        if needs.accounts_of:
            loaded.accounts_of = accounts_of(conn, needs.accounts_of)
        if needs.wanted_chains or needs.wanted_links or needs.wanted_postings:
            load_wanted(conn, needs, loaded)
        if needs.known:
            loaded.known = set(join(conn, _KNOWN, singles(needs.known), LinkHash))
        if needs.chains:
            loaded.chains = {key: raw_chain(conn, *key) for key in needs.chains}
        incomes = needs.income | (needs.forming_few & loaded.forming.keys())
        if incomes:
            loaded.income = {name: read_income(conn, name, loaded.forming.get(name)) for name in incomes}
        if needs.funds:
            loaded.funds = read_funds(conn, needs.funds)
        if needs.log:
            loaded.log = {seq: _log_page(conn, seq) for seq in needs.log}
        if needs.log_head:
            loaded.log_head = read_log_head(conn)
    return loaded


def _heads(conn: sqlite3.Connection, names: Collection[str], forming: Mapping[str, Forming]) -> dict[str, AccountHead]:
    """The heads of these accounts; those that are known from `forming` are not read twice."""
    heads = {name: there.head for name, there in forming.items() if there.head is not None and name in names}
    missing = [name for name in names if name not in forming]
    for head in read_heads(conn, missing):
        heads[head.name] = head
    return heads


def _links_at(
    conn: sqlite3.Connection, needs: Needs, heads: Mapping[str, AccountHead]
) -> dict[tuple[str, int], LinkHash]:
    """Nothing is above a head, where a link that comes for the first time belongs: it is not looked for there."""
    keys = [
        (name, height)
        for name, height in needs.links_at
        if name not in needs.heads or (name in heads and height <= heads[name].height)
    ]
    return dict(join(conn, _LINKS_AT, keys, lambda name, height, tip: ((name, height), tip)))


def _log_page(conn: sqlite3.Connection, after: int) -> LogPage:
    rows = conn.execute(_LOG, (after, LOG_BATCH)).fetchall()
    return LogPage(tuple(LinkHash(link) for link, _ in rows), rows[-1][1] if rows else after)

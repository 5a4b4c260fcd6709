"""What is checked of a database each time a node starts: that it is this node's, and that what the node will rely on
holds.

`check_identity` first, then `check_start`. Both only read, and say what to do. They look at what each turn builds on;
that every row follows from the links is the audit's to say (`chain.audit`).
"""

import sqlite3
from typing import Final

from chain.errors import Corruption, LocalMisuse
from chain.genesis import FIRST_EPOCH, Genesis, encode_genesis, issuer_links
from chain.link import LinkHash, header_hash
from chain.names import ASSET_BYTES
from chain.request import REQUEST_HEAD_BYTES
from chain.schema import STAGING_TABLES, schema_faults
from chain.seal import (
    check_version,
    load_active,
    load_cursors,
    load_seen,
    load_views,
    load_votes,
    read_log_head,
    read_meta,
)

_OPENED_AT: Final = 4 + 5 + REQUEST_HEAD_BYTES  # in the body of link 0, which is one request: `chain.link`
_OPENED_BYTES: Final = ASSET_BYTES + 32  # asset and public key


def check_identity(conn: sqlite3.Connection, genesis: Genesis, node_id: bytes, first_view: tuple[bytes, bytes]) -> None:
    """It is the database of this node, network and first view, and of this program."""
    if conn.execute("SELECT count(*) FROM sqlite_master WHERE name = 'meta'").fetchone()[0] == 0:
        raise LocalMisuse("this is a SQLite database, but not one of a node: name another file")
    check_version(conn)
    network = read_meta(conn, "network_id")
    if network != genesis.network_id:
        raise LocalMisuse(
            f"the database belongs to network {network.hex()[:16]}, the genesis file to {genesis.network_id.hex()[:16]}: "
            "put back the genesis file that belongs to this directory, or use an empty directory"
        )
    owner = read_meta(conn, "node_id")
    if owner != node_id:
        raise LocalMisuse(
            f"the database belongs to node {owner.hex()[:16]}, the key in this directory to {node_id.hex()[:16]}: "
            "put back that node's key; a copied database must not run under another id (design R12)"
        )
    if read_meta(conn, "genesis") != encode_genesis(genesis):
        raise Corruption("meta row genesis is not the genesis file of its network id: run `hopchain verify`")
    views = load_views(conn)
    if not views or views[0] != (FIRST_EPOCH, *first_view):
        raise Corruption("view 1 in the database is not the one of the genesis file: run `hopchain verify`")


def check_start(conn: sqlite3.Connection, genesis: Genesis) -> None:
    """What the node relies on from its first turn: sound pages, the triggers, checksums, accounts as their links made
    them."""
    found = conn.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise Corruption(f"SQLite's quick_check says: {found}; join the network anew under a new node id")
    for name, _, _ in schema_faults(conn):
        raise Corruption(f"{name} in the schema is not what this program made: run `hopchain verify` on the database")
    for table in STAGING_TABLES:
        count = conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        if count:
            raise Corruption(
                f"{table} holds {count} rows outside of a transaction: delete them and run `hopchain verify`"
            )
    load_votes(conn)
    load_active(conn)
    load_cursors(conn)
    load_seen(conn)
    head = read_log_head(conn)
    last = conn.execute("SELECT coalesce(max(seq), 0) FROM links").fetchone()[0]
    if (head.seq, head.count) != (last, last):
        raise Corruption(f"the log ends at {last}, meta row log says {head.seq}: run `hopchain verify` on the database")
    paid, confirmed, waiting = (
        conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        for table in ("postings", "confirmations", "incoming")
    )
    if paid - confirmed != waiting:
        raise Corruption(
            f"{paid} postings, {confirmed} of them confirmed, and {waiting} rows of incoming, not {paid - confirmed}: run "
            "`hopchain verify` on the database"
        )
    _check_incoming(conn)
    made, told = (
        conn.execute(query).fetchone()[0]
        for query in ("SELECT coalesce(sum(outcome_count), 0) FROM links", "SELECT count(*) FROM outcomes")
    )
    if made != told:
        raise Corruption(
            f"the links record {made} outcomes, and {told} rows of outcomes are here: run `hopchain verify` on the database"
        )
    _check_accounts(conn, {link.hash for link in issuer_links(genesis)})


def _check_incoming(conn: sqlite3.Connection) -> None:
    """Each row of `incoming` is as its posting was made, and not confirmed. Their number is right: so what is not
    confirmed is incoming, and nothing else. One that is not makes links that leave out money, or a final rejection."""
    wrong = conn.execute(
        "SELECT i.posting FROM incoming AS i LEFT JOIN postings AS p ON p.id = i.posting LEFT JOIN links AS l ON l.seq = i.posting >> 14 "
        "LEFT JOIN links AS s ON s.seq = i.sender LEFT JOIN links AS r ON r.seq = i.recipient "
        "WHERE (s.height = 0 AND s.account = l.account AND r.height = 0 AND r.account = p.recipient AND p.amount = i.amount) IS NOT TRUE "
        "OR EXISTS (SELECT 1 FROM confirmations AS c WHERE c.posting = i.posting) LIMIT 1"
    ).fetchone()
    if wrong is not None:
        raise Corruption(
            f"row {wrong[0]} of incoming has another recipient, sender or amount than its posting, or is confirmed: run `hopchain verify` "
            "on the database"
        )


def _check_accounts(conn: sqlite3.Connection, issuers: set[LinkHash]) -> None:
    """Each account is as its last link leaves it and as link 0 opened it: links are formed from these rows."""
    rows = conn.execute(
        "SELECT a.name, a.height, a.balance, a.epoch, a.time_ms, l.height, l.balance, l.epoch, l.time_ms, a.tip, l.header, "
        f"a.asset, a.public_key, a.issuer, a.id, o.account, o.height, o.hash, substr(o.body, {_OPENED_AT + 1}, {_OPENED_BYTES}) "
        "FROM accounts AS a LEFT JOIN links AS l ON l.hash = a.tip LEFT JOIN links AS o ON o.seq = a.id"
    )
    for name, *fields, tip, header, asset, key, issuer, number, opened, opened_at, opening, made in rows:
        if header is None or header_hash(header) != tip or fields[:4] != fields[4:]:
            raise Corruption(
                f"the tip of account {name}, link {fields[0]} ({tip.hex()[:16]}), is missing, does not hash to itself or has "
                "another balance, epoch or time: run `hopchain verify` on the database"
            )
        if (opened, opened_at) != (name, 0):
            raise Corruption(
                f"account {name} has number {number}, but link {number} of the log did not open it: run `hopchain verify` on the database"
            )
        made_as = (made[:ASSET_BYTES].rstrip(b"\0"), made[ASSET_BYTES:], opening in issuers)
        if (asset.encode(), key, issuer) != made_as:
            raise Corruption(
                f"account {name} has another asset or key than link {number} of the log opened it with, or is wrongly marked as an "
                "issuer: run `hopchain verify` on the database"
            )

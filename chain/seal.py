"""Rows that no link vouches for: `meta`, `views`, `active`, `votes`, `cursors`, `seen`. Each carries a checksum over
its other fields, so that damage is found before it is relied upon (design section 2: on start the node verifies what it
will rely on).

`meta` also holds the head of the log: its length and the XOR of all link hashes in it, by which two replicas see in
one comparison whether they hold the same links.
"""

import hashlib
import sqlite3
import struct
from collections.abc import Sequence
from typing import Final

import msgspec

from chain.errors import Corruption, LocalMisuse
from chain.link import LinkHash, Slot
from chain.request import HASH_BYTES
from chain.rows import VoteRow
from chain.schema import SCHEMA_VERSION

_TAG: Final = b"hopchain:row:1\0"
_LOG: Final = struct.Struct(f">QQ{HASH_BYTES}s")

Field = bytes | int | str | None


class LogHead(msgspec.Struct, frozen=True, gc=False):
    """The end of the log: seq of its last link, number of links, XOR of their hashes (32 bytes)."""

    seq: int
    count: int
    xor: bytes

    def after(self, hashes: Sequence[LinkHash]) -> "LogHead":
        """The head when links with these hashes have been applied."""
        xor = int.from_bytes(self.xor, "big")
        for one in hashes:
            xor ^= int.from_bytes(one, "big")
        return LogHead(self.seq + len(hashes), self.count + len(hashes), xor.to_bytes(HASH_BYTES, "big"))

    def encode(self) -> bytes:
        """The value of meta row `log`."""
        return _LOG.pack(self.seq, self.count, self.xor)


EMPTY_LOG: Final = LogHead(0, 0, bytes(HASH_BYTES))


class CursorRow(msgspec.Struct, frozen=True, gc=False):
    """How far this node has read the log of `peer` (20 bytes): all up to `seq` is here."""

    peer: bytes
    seq: int


class SeenRow(msgspec.Struct, frozen=True, gc=False):
    """How many times a node has made votes durable: its own count in its own row, what it said last in a peer's
    (design R12). `node` is its id, 20 bytes."""

    node: bytes
    votes: int


def row_checksum(table: str, *fields: Field) -> bytes:
    """The checksum column of a row with these other columns, in the table's order."""
    return hashlib.sha256(_TAG + msgspec.msgpack.encode((table, fields))).digest()


def vote_fields(vote: VoteRow) -> tuple[Field, ...]:
    """The columns of a row of `votes` but the checksum."""
    return (vote.slot, vote.account, vote.height, *vote.promised, *(vote.accepted or (None, None, None)), vote.link)


def read_meta(conn: sqlite3.Connection, key: str) -> bytes:
    """The value of a row of `meta`; `Corruption` when it is missing or its checksum does not hold."""
    row = conn.execute("SELECT value, checksum FROM meta WHERE key = ?", (key,)).fetchone()
    if row is None:
        raise Corruption(f"the database has no meta row {key}: run `hopchain verify` on it")
    value: bytes = row[0]
    _check("meta", key, row[1], key, value)
    return value


def check_version(conn: sqlite3.Connection) -> None:
    """Raises `LocalMisuse` when another release made this database, and `Corruption` when it does not say so."""
    version = read_meta(conn, "schema_version").decode(errors="replace")
    if version != str(SCHEMA_VERSION):
        raise LocalMisuse(
            f"the database has schema version {version}, this program has {SCHEMA_VERSION}: "
            "use the version of the program that made it"
        )


def read_log_head(conn: sqlite3.Connection) -> LogHead:
    """The head of the log as `meta` has it."""
    value = read_meta(conn, "log")
    if len(value) != _LOG.size:
        raise Corruption(f"meta row log has {len(value)} bytes, not {_LOG.size}: run `hopchain verify` on the database")
    return LogHead(*_LOG.unpack(value))


def write_log_head(conn: sqlite3.Connection, head: LogHead) -> None:
    """Move the head of the log, in the caller's transaction."""
    value = head.encode()
    conn.execute(
        "UPDATE meta SET value = ?, checksum = ? WHERE key = 'log'", (value, row_checksum("meta", "log", value))
    )


def load_votes(conn: sqlite3.Connection) -> list[VoteRow]:
    """All votes of undecided slots; `Corruption` when a checksum does not hold."""
    votes = []
    for *fields, checksum in conn.execute(
        "SELECT slot, account, height, promised_epoch, promised_round, promised_node, "
        "accepted_epoch, accepted_round, accepted_node, link, checksum FROM votes ORDER BY slot"
    ):
        slot, account, height, epoch, rnd, node, accepted_epoch, accepted_round, accepted_node, link = fields
        _check("votes", slot.hex(), checksum, *fields)
        accepted = None if accepted_epoch is None else (accepted_epoch, accepted_round, accepted_node)
        votes.append(VoteRow(Slot(slot), account, height, (epoch, rnd, node), accepted, link))
    return votes


def load_cursors(conn: sqlite3.Connection) -> list[CursorRow]:
    """All cursors; `Corruption` when a checksum does not hold."""
    rows = []
    for peer, seq, checksum in conn.execute("SELECT peer, seq, checksum FROM cursors ORDER BY peer"):
        _check("cursors", peer.hex(), checksum, peer, seq)
        rows.append(CursorRow(peer, seq))
    return rows


def load_seen(conn: sqlite3.Connection) -> list[SeenRow]:
    """All vote counts; `Corruption` when a checksum does not hold."""
    rows = []
    for node, votes, checksum in conn.execute("SELECT node, votes, checksum FROM seen ORDER BY node"):
        _check("seen", node.hex(), checksum, node, votes)
        rows.append(SeenRow(node, votes))
    return rows


def load_views(conn: sqlite3.Connection) -> list[tuple[int, bytes, bytes]]:
    """(epoch, hash, canonical bytes) of all views, oldest first; `Corruption` when a checksum does not hold."""
    views = []
    for epoch, view_hash, raw, checksum in conn.execute("SELECT epoch, hash, raw, checksum FROM views ORDER BY epoch"):
        _check("views", str(epoch), checksum, epoch, view_hash, raw)
        views.append((epoch, view_hash, raw))
    return views


def load_active(conn: sqlite3.Connection) -> dict[int, bytes]:
    """By epoch, the bytes of the ranges for which this node is ACTIVE in it; `Corruption` when a checksum does not
    hold."""
    active = {}
    for epoch, ranges, checksum in conn.execute("SELECT epoch, ranges, checksum FROM active ORDER BY epoch"):
        _check("active", str(epoch), checksum, epoch, ranges)
        active[epoch] = ranges
    return active


def _check(table: str, key: str, checksum: bytes, *fields: Field) -> None:
    if row_checksum(table, *fields) != checksum:
        raise Corruption(f"{table} row {key}: its checksum does not hold; run `hopchain verify` on the database")

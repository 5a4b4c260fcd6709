"""Which copy of the ledger `join` has verified: the file `verified` in the node's directory.

It holds the number of the log in the database that was found sound. A database that is made anew has another one; so has, after each
start, that of a node which never voted, for nobody could tell that another one was put in its place (design R12). What is noted
here, then, is good for the database that is there, or for none.
"""

import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chain.errors import Corruption
from chain.genesis import Genesis
from cli.durable import write_whole
from node.layout import DATABASE

if TYPE_CHECKING:
    from chain.audit import AuditReport

VERIFIED_FILE: Final = "verified"


def verify_copy(data: Path, genesis: Genesis, node: bytes) -> "AuditReport | None":
    """Derive everything in the database of this node again from its links, and note that it is sound; None when that is noted.

    The node may run, and must have since the database was put there. Raises `StorageFailure` when the disk cannot be read.
    """
    from chain.audit import audit
    from chain.disk import open_database

    conn = open_database(data / DATABASE, writer=False)
    try:
        log = _log_number(conn, node)
        if log and log == _noted(data):
            return None
        report = audit(conn, genesis=genesis)
    finally:
        conn.close()
    if log and report.ok:
        with suppress(OSError):  # then the next run verifies again
            write_whole(data / VERIFIED_FILE, log)
    return report


def _log_number(conn: sqlite3.Connection, node: bytes) -> bytes:
    """What stands in the file when this database was verified; nothing when it cannot be read: the audit says why."""
    from chain.store import load_cursors

    with suppress(Corruption, sqlite3.Error):
        for row in load_cursors(conn):
            if row.peer == node:
                return b"%d\n" % row.seq
    return b""


def _noted(data: Path) -> bytes:
    try:
        return (data / VERIFIED_FILE).read_bytes()
    except OSError:
        return b""

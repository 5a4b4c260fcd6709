"""Which copy of the ledger `join` has verified: the file `verified` in the node's directory.

It holds the number that the database's log had when it was found sound. A database remembers the logs that its own
began as (ADR 32); one that is made anew, or is from before it was verified, knows nothing of that number. What is noted
here, then, is good for the database that is there, or for none.
"""

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chain.errors import Corruption
from chain.genesis import Genesis
from node.durable import write_whole
from node.layout import DATABASE

if TYPE_CHECKING:
    from chain.audit import AuditReport

VERIFIED_FILE: Final = "verified"


def verify_copy(data: Path, genesis: Genesis, node: bytes, go_on: Callable[[], None]) -> "AuditReport | None":
    """Derive everything in the database of this node again from its links, and note that it is sound; None when that is
    noted.

    The node may run, and must have since the database was put there. `go_on` is called every few hundred links, and
    ends it by what it raises. Raises `StorageFailure` when the disk cannot be read.
    """
    from chain.audit import audit
    from chain.disk import open_database
    from node.pulling import log_name
    from routing.keyspace import NodeId

    conn = open_database(data / DATABASE, writer=False)
    try:
        cursors = _cursors(conn)
        noted = _noted(data)
        if noted and (cursors.get(node) == noted or log_name(NodeId(node), noted) in cursors):
            return None
        report = audit(conn, genesis=genesis, progress=lambda _done, _total: go_on())
    finally:
        conn.close()
    log = cursors.get(node)
    if log and report.ok:
        with suppress(OSError):  # then the next run verifies again
            write_whole(data / VERIFIED_FILE, b"%d\n" % log)
    return report


def _cursors(conn: sqlite3.Connection) -> dict[bytes, int]:
    """The logs that this database knows; nothing when it cannot be read: the audit says why."""
    from chain.seal import load_cursors

    with suppress(Corruption, sqlite3.Error):
        return {row.peer: row.seq for row in load_cursors(conn)}
    return {}


def _noted(data: Path) -> int:
    """The number of the log that was verified; 0 when none is noted."""
    with suppress(OSError, ValueError):
        number = int((data / VERIFIED_FILE).read_bytes())
        return number if 0 < number < 2**63 else 0
    return 0

"""What a core starts from, read from its database once."""

import sqlite3

from chain.reads import count_links
from chain.seal import load_active, load_cursors, load_seen, load_views, load_votes
from node.core import Start
from routing.keyspace import NodeId
from routing.regions import decode_ranges


def read_start(conn: sqlite3.Connection) -> Start:
    """Undecided votes, the length of the log, cursors, vote counts, views and where it is ACTIVE. `Corruption` when a
    checksum does not hold."""
    return Start(
        load_votes(conn),
        count_links(conn),
        {NodeId(row.peer): row.seq for row in load_cursors(conn)},
        {NodeId(row.node): row.votes for row in load_seen(conn)},
        [raw for _, _, raw in load_views(conn)],
        {epoch: decode_ranges(raw) for epoch, raw in load_active(conn).items()},
    )

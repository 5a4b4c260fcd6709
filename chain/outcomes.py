"""Recorded outcomes of requests. What clients are told is read from the links that record them, a few in one turn."""

import sqlite3
from collections.abc import Iterator, Mapping, Set
from typing import Final

from chain.errors import Corruption, RemoteFault
from chain.keyed import join
from chain.link import LinkHash, Outcome, read_record_untrusted
from chain.raw import damaged_link, raw_links
from chain.request import RequestId
from chain.rows import OutcomeRow

# Of links that are read in one turn to tell clients of outcomes: 15 ms, at most.
TOLD_BYTES: Final = 4 * 1024 * 1024
_OUTCOME_CODES: Final = frozenset(map(int, Outcome))
_OUTCOMES: Final = (
    "SELECT o.link_hash, o.number, o.request_id, o.account, o.outcome, l.height, l.balance, l.time_ms, length(l.body) "
    "FROM k CROSS JOIN outcomes AS o ON o.request_id = k.column2 AND o.account = k.column1 "
    "LEFT JOIN links AS l ON l.hash = o.link_hash"
)


def read_outcomes(
    conn: sqlite3.Connection, keys: Set[tuple[str, RequestId]], told: Mapping[tuple[str, RequestId], None]
) -> tuple[dict[tuple[str, RequestId], OutcomeRow], dict[tuple[str, RequestId], int]]:
    """Those that have a row. What is told is final, so a changed row must not tell another outcome: those of `told` are
    as their links have them, or, where these links are too many for one turn, named beside. A link is read once for all
    of them, and one link is always read."""
    found: dict[tuple[str, RequestId], OutcomeRow] = {}
    of_link: dict[LinkHash, dict[int, tuple[RequestId, str, int]]] = {}
    untold: dict[tuple[str, RequestId], int] = {}
    room = TOLD_BYTES
    for link, number, request_id, account, outcome, height, balance, time_ms, size in join(
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
    for link, raw in raw_links(conn, of_link):
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

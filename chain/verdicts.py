"""Whether the outcome that a link records for a request can be right: the audit's half of the rules of money.

Written apart from `chain.rules` on purpose. An outcome is judged by the link and by what stands before it in the log;
"" means that nothing speaks against it. What depends on what another node knew then (`unknown_recipient`) is not
judged.
"""

import sqlite3
from typing import Final

import msgspec

from chain.link import Entry, Link, Outcome
from chain.request import ANY_TIP, Kind, RequestId

_POSSIBLE: Final = {
    Kind.OPEN: frozenset({Outcome.COMPLETED}),
    Kind.CANCEL: frozenset({Outcome.COMPLETED, Outcome.ALREADY_DECIDED, Outcome.EXPIRED}),
    Kind.TRANSFER: frozenset(Outcome) - {Outcome.CANCELLED, Outcome.ALREADY_DECIDED},
}


class Before(msgspec.Struct, frozen=True):
    """The account before a link: its key and asset, the balance and time of the link before, and how far below zero it
    may go (0 for all but issuers)."""

    asset: str
    public_key: bytes
    limit: int
    balance: int
    time_ms: int


def why_wrong(
    conn: sqlite3.Connection, seq: int, link: Link, before: Before, funds: int, entry: Entry, here: set[RequestId]
) -> str:
    """What the outcome should have been, as far as it can be derived; "" when nothing speaks against it."""
    request, outcome = entry.request, entry.outcome
    if outcome not in _POSSIBLE[request.kind] or (request.kind is Kind.OPEN) != (link.height == 0):
        return f"nothing that a request of kind {request.kind.name} cannot have at height {link.height}"
    if request.expect_tip not in (ANY_TIP, link.prev_hash):
        return f"no outcome: it expects tip {request.expect_tip.hex()}"
    if (outcome is Outcome.EXPIRED) != (link.height > request.valid_until_height):
        return f"EXPIRED if, and only if, height {link.height} is above {request.valid_until_height}"
    if entry.request_id in here:
        return "no second outcome in one link"
    if request.kind is Kind.CANCEL and outcome is not Outcome.EXPIRED:
        decided = request.target in here or _recorded_before(conn, seq, link.account, request.target)
        return "" if decided == (outcome is Outcome.ALREADY_DECIDED) else f"target decided before: {decided}"
    if request.kind is not Kind.TRANSFER:
        return ""
    return _why_wrong_transfer(conn, seq, before, funds, entry)


def _why_wrong_transfer(conn: sqlite3.Connection, seq: int, before: Before, funds: int, entry: Entry) -> str:
    outcome, left = entry.outcome, funds - entry.request.total
    limit = -before.limit
    if outcome is Outcome.COMPLETED and left < limit:
        return f"rejected, {entry.request.total} of {funds} leaves less than {limit}"
    if outcome in (Outcome.INSUFFICIENT_FUNDS, Outcome.ISSUER_LIMIT):
        right = Outcome.ISSUER_LIMIT if before.limit else Outcome.INSUFFICIENT_FUNDS
        return (
            "" if outcome is right and left < limit else f"another outcome, {entry.request.total} of {funds} was there"
        )
    if outcome in (Outcome.COMPLETED, Outcome.ASSET_MISMATCH):
        recipients = sorted({posting.recipient for posting in entry.request.postings})
        others = [_asset_and_seq(conn, name) for name in recipients]
        if outcome is Outcome.COMPLETED:
            fits = all(asset == before.asset and opened < seq for asset, opened in others)
            return "" if fits else "recipients that were open before, in the same asset"
        if all(asset == before.asset for asset, _ in others):
            return f"COMPLETED, all recipients hold {before.asset}"
    return ""


def _recorded_before(conn: sqlite3.Connection, seq: int, account: str, request_id: RequestId) -> bool:
    row = conn.execute(
        "SELECT 1 FROM outcomes AS o CROSS JOIN links AS l ON l.hash = o.link_hash "
        "WHERE o.request_id = ? AND o.account = ? AND l.seq < ?",
        (request_id, account, seq),
    ).fetchone()
    return row is not None


def _asset_and_seq(conn: sqlite3.Connection, name: str) -> tuple[str, int]:
    row = conn.execute(
        "SELECT a.asset, l.seq FROM accounts AS a CROSS JOIN links AS l ON l.account = a.name AND l.height = 0 "
        "WHERE a.name = ?",
        (name,),
    ).fetchone()
    return (str(row[0]), int(row[1])) if row else ("", 0)

"""Answers about requests that more than one part of a node gives."""

from chain.rows import OutcomeRow
from hopchain.wire import Recorded, Refused


def name_taken(name: str) -> Refused:
    return Refused("name_taken", f"the name {name} is taken, for ever: choose another one")


def recorded(row: OutcomeRow, by: bytes, hops: int, *, repeated: bool) -> Recorded:
    """The answer that an outcome row gives."""
    return Recorded(
        row.request_id,
        row.account,
        row.outcome,
        row.link_hash,
        row.height,
        row.balance,
        row.time_ms,
        by,
        hops,
        repeated,
    )

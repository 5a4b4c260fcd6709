"""What an audit finds: the first row that disagrees with the links, or cannot be read."""

from collections.abc import Sequence

import msgspec

from chain.errors import RemoteFault
from chain.link import Link, decode_link_untrusted

Value = bytes | int | str | None


class Fault(msgspec.Struct, frozen=True):
    """The first row that disagrees: its table, its key, the column, what follows from the links, what is there."""

    table: str
    key: str
    column: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.table} row {self.key}, {self.column}: expected {self.expected}, found {self.found}"


class Disagreement(Exception):
    """The audit ends here."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


def show(value: Value) -> str:
    """A field, for people."""
    if isinstance(value, bytes):
        return value.hex() if len(value) <= 64 else f"{value[:32].hex()}... ({len(value)} bytes)"
    return "NULL" if value is None else str(value)


def require(holds: bool, table: str, key: Value, column: str, expected: Value, found: Value) -> None:
    """Raises `Disagreement` about this field unless it `holds`."""
    if not holds:
        raise Disagreement(Fault(table, show(key), column, show(expected), show(found)))


def compare(
    table: str, key: Value, columns: Sequence[str], expected: Sequence[Value], found: Sequence[Value] | None
) -> None:
    """Raises `Disagreement` unless the row is there and all `columns` are as expected."""
    require(found is not None, table, key, columns[0], "a row", "nothing")
    for column, want, have in zip(columns, expected, found or (), strict=True):
        require(want == have, table, key, column, want, have)


def decode_found(table: str, key: bytes, raw: bytes) -> Link:
    """The link with these bytes, which stand in this row. Raises `Disagreement`."""
    try:
        return decode_link_untrusted(raw)
    except RemoteFault as fault:
        raise Disagreement(Fault(table, key.hex(), "body", "a well-formed link", str(fault))) from None

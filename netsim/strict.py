"""Strict reading of a TOML table: each key is taken once, what is left over is refused, and errors name the key and
what it may be."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

from chain.errors import LocalMisuse

WordT = TypeVar("WordT", bound=str)


class Table:
    """A TOML table from which each key is taken once; `done` refuses what is left."""

    def __init__(self, path: str, values: Mapping[str, object]) -> None:
        self.path = path
        self._values = values
        self._known: set[str] = set()

    def wrong(self, key: str, text: str) -> LocalMisuse:
        """The error about a key."""
        return LocalMisuse(f"{self.path}: {key} {text}")

    @property
    def names(self) -> list[str]:
        """The keys that are there, in the order of the file."""
        return list(self._values)

    def has(self, key: str) -> bool:
        """True when the key is there."""
        return key in self._values

    def only(self, keys: tuple[str, ...], what: str) -> None:
        """Refuse keys that do not belong to `what`."""
        for key in self._values:
            if key not in keys:
                raise self.wrong(key, f"is not known: {what} has {', '.join(keys)}{meant(key, keys)}")

    def done(self) -> None:
        """Refuse keys that nobody took."""
        for key in self._values:
            if key not in self._known:
                raise self.wrong(
                    key, f"is not known: it may be {', '.join(sorted(self._known))}{meant(key, self._known)}"
                )

    def number(self, key: str, default: float | None, low: float, high: float) -> float:
        """A number from `low` to `high`; without a default it must be there."""
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, f"is {value!r}; it must be a number from {low:g} to {high:g}")
        if not low <= value <= high and value != default:
            raise self.wrong(key, f"is {value!r}; it must be from {low:g} to {high:g}")
        return float(value)

    def integer(self, key: str, default: int | None, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(key, f"is {value!r}; it must be a whole number from {low} to {high}")
        return value

    def maybe(self, key: str) -> float | None:
        """A bound, or None when it is not there."""
        self._known.add(key)
        return self.number(key, None, -(2.0**63), 2.0**63) if self.has(key) else None

    def flag(self, key: str) -> bool:
        """True or false; false when it is not there."""
        value = self._take(key, False)
        if not isinstance(value, bool):
            raise self.wrong(key, f"is {value!r}; it must be true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A text."""
        value = self._take(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, f"is {value!r}; it must be text in quotes")
        return value

    def choice(self, key: str, allowed: Iterable[WordT], default: WordT | None = None) -> WordT:
        """One of some words."""
        value = self.text(key, default)
        for word in allowed:
            if word == value:
                return word
        raise self.wrong(key, f"is {value!r}; it must be one of {', '.join(allowed)}{meant(value, allowed)}")

    def texts(
        self, key: str, *, default: tuple[str, ...] | None = None, allowed: tuple[str, ...] = ()
    ) -> tuple[str, ...]:
        """One text, or a list of them."""
        value = self._take(key, default)
        many = (value,) if isinstance(value, str) else value
        if (
            not isinstance(many, list | tuple)
            or not all(isinstance(v, str) for v in many)
            or (not many and default is None)
        ):
            raise self.wrong(key, f"is {value!r}; it must be a text or a list of texts, in quotes")
        found = tuple(str(v) for v in many)
        for one in found:
            if allowed and one not in allowed:
                raise self.wrong(key, f"is {one!r}; it must be one of {', '.join(allowed)}{meant(one, allowed)}")
        return found

    def lists(self, key: str) -> tuple[tuple[str, ...], ...]:
        """A list whose elements are texts or lists of texts."""
        value = self._take(key, None)
        if not isinstance(value, list):
            raise self.wrong(key, f"is {value!r}; it must be a list")
        elements = Table(f"{self.path}.{key}", {str(i): v for i, v in enumerate(value)})
        return tuple(elements.texts(i) for i in elements.names)

    def table(self, key: str) -> "Table":
        """A table, empty when it is not there."""
        value = self._take(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, f"must be a table: [{key}]")
        return Table(f"{self.path}: {key}", value)

    def tables(self, key: str) -> list["Table"]:
        """A list of tables, empty when it is not there."""
        value = self._take(key, [])
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            raise self.wrong(key, f"must be a list of tables: [[{key}]]")
        return [Table(f"{self.path}: {key}[{i}]", v) for i, v in enumerate(value)]

    def _take(self, key: str, default: object) -> object:
        self._known.add(key)
        if key in self._values:
            return self._values[key]
        if default is None:
            raise self.wrong(key, "is missing")
        return default


def meant(word: str, known: Iterable[str]) -> str:
    """The ones that are most like a word that is not known, as a question; empty when none is."""
    like = get_close_matches(word, sorted(known), n=2)
    return f"; did you mean {' or '.join(like)}?" if like else ""

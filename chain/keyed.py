"""Queries by many keys: one for as many keys as there are, not one for each.

A query takes up to `_KEYS_PER_QUERY` keys as a VALUES table `k` that is joined to the real one. The number of keys is
rounded up to a power of two with NULLs, which match nothing, so that few different statements are ever prepared. Joins
give the order: CROSS JOIN keeps `k` outside, so that each key is looked up in an index.
"""

import sqlite3
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from itertools import chain, starmap
from typing import Final, TypeVar

_KEYS_PER_QUERY: Final = 512  # bounds the text of a query, and with it SQLite's parser


Key = bytes | int | str
T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K", bound=Key)


def join(
    conn: sqlite3.Connection, query: str, keys: Collection[tuple[Key, ...]], make: Callable[..., T]
) -> Iterator[T]:
    """The rows of `query`, in which the keys are the table `k`, each through `make`."""
    todo = list(keys)
    for start in range(0, len(todo), _KEYS_PER_QUERY):
        part = todo[start : start + _KEYS_PER_QUERY]
        width, size = len(part[0]), 1 << (len(part) - 1).bit_length()
        values = [*chain.from_iterable(part), *[None] * (width * (size - len(part)))]
        yield from starmap(make, conn.execute(_query(query, width, size), values))


def singles(keys: Collection[K]) -> list[tuple[K]]:
    """Keys of one column."""
    return [(key,) for key in keys]


def pair(first: T, second: U) -> tuple[T, U]:
    """A row of two columns."""
    return first, second


@lru_cache(maxsize=256)
def _query(query: str, width: int, size: int) -> str:
    """The text of `query` for this many keys of this width."""
    slots = ", ".join(["(" + ", ".join("?" * width) + ")"] * size)
    return f"WITH k AS (VALUES {slots}) {query}"

"""aiosqlite under trio: whole functions run in the connection's thread, one hop for each.

A turn is two functions, `chain.needs.load` and `chain.store.commit`. Sending them whole to aiosqlite's worker thread
costs one hop each, where one call per statement would cost one for each row kind; and the simulator runs the very same
functions inline. (docs/adr/0003)
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import aiosqlite
import trio
from trio_asyncio import aio_as_trio

P = ParamSpec("P")
T = TypeVar("T")


class _Connection(aiosqlite.Connection):
    stopped: "asyncio.Future[None] | None" = None

    def stop(self) -> "asyncio.Future[None] | None":
        """Also called by aiosqlite when the connection cannot be opened; it forgets to wait then."""
        self.stopped = super().stop()
        return self.stopped

    async def run(self, function: Callable[[], T]) -> T:
        result: T = await self._execute(function)  # type: ignore[no-untyped-call]
        return result


class Database(Protocol):
    """One SQLite connection, used by one function at a time. The simulator brings its own."""

    async def run(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`function(connection, ...)`. What it raises is raised here."""
        ...


class _DatabaseThread:
    """One SQLite connection with a thread of its own. Needs a `trio_asyncio` loop."""

    def __init__(self, connection: _Connection, sqlite: sqlite3.Connection) -> None:
        self._connection = connection
        self._sqlite = sqlite

    async def run(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`function(connection, ...)` in the connection's thread. What it raises is raised here.

        It is not cut short: a cancelled caller still waits for the function to end, because a transaction must not
        go on behind its back.
        """
        with trio.CancelScope(shield=True):
            result: T = await aio_as_trio(self._connection.run)(lambda: function(self._sqlite, *args, **kwargs))
        return result


@asynccontextmanager
async def open_database_thread(connect: Callable[[], sqlite3.Connection]) -> AsyncIterator[Database]:
    """`connect()` is called in the new thread, as is everything else; the connection is closed at the end."""
    made: list[sqlite3.Connection] = []

    def connector() -> sqlite3.Connection:
        made.append(connect())
        return made[0]

    connection = _Connection(connector, iter_chunk_size=64)

    async def opened() -> None:
        try:
            await connection
        except BaseException:
            if connection.stopped is not None:
                await connection.stopped  # the thread still says goodbye on this loop
            raise

    await aio_as_trio(opened)()
    try:
        yield _DatabaseThread(connection, made[0])
    finally:
        with trio.CancelScope(shield=True):
            await aio_as_trio(connection.close)()

"""aiosqlite under trio: whole functions run in the connection's thread, one hop for each.

A turn is two functions, `chain.needs.load` and `chain.store.commit`. Sending them whole to aiosqlite's worker thread
costs one hop each, where one call per statement would cost one for each row kind; and the simulator runs the very same
functions inline. (docs/adr/0003)

While the connection is open its thread runs one long function, `_serve`, which takes jobs from a queue and wakes the trio
task that waits for each: the way through asyncio's loop and back, which costs several times as much as a short query, is
gone once to open and once to close.
"""

import asyncio
import queue
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import aiosqlite
import outcome
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

    def __init__(self, sqlite: sqlite3.Connection, jobs: "_Jobs") -> None:
        self._sqlite = sqlite
        self._jobs = jobs

    async def run(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`function(connection, ...)` in the connection's thread. What it raises is raised here.

        It is not cut short: a cancelled caller still waits for the function to end, because a transaction must not
        go on behind its back.
        """
        self._jobs.put((trio.lowlevel.current_task(), partial(function, self._sqlite, *args, **kwargs)))
        result: T = await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        return result


_Jobs = queue.SimpleQueue[tuple[trio.lowlevel.Task, Callable[[], Any]] | None]


def _serve(jobs: _Jobs, token: trio.lowlevel.TrioToken) -> None:
    """In the connection's thread: job after job, until there is a None."""
    while (job := jobs.get()) is not None:
        task, call = job
        token.run_sync_soon(trio.lowlevel.reschedule, task, outcome.capture(call))


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
    jobs: _Jobs = queue.SimpleQueue()
    serving = partial(_serve, jobs, trio.lowlevel.current_trio_token())

    async def begin() -> asyncio.Task[None]:
        return asyncio.create_task(connection.run(serving))

    async def end() -> None:
        await served
        await connection.close()

    served = await aio_as_trio(begin)()
    try:
        yield _DatabaseThread(made[0], jobs)
    finally:
        jobs.put(None)
        with trio.CancelScope(shield=True):
            await aio_as_trio(end)()

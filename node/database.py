"""aiosqlite under trio: whole functions run in the connection's thread, one hop for each.

A turn is two functions, `chain.load.load` and `chain.store.commit`. Sending them whole to aiosqlite's worker thread
costs one hop each, where one call per statement would cost one for each row kind; and the simulator runs the very same
functions inline. (docs/adr/0003)

While the connection is open its thread runs one long function, `_serve`, which takes jobs from a queue and wakes the
trio task that waits for each: the way through asyncio's loop and back, which costs several times as much as a short
query, is gone once to open and once to close.
"""

import asyncio
import queue
import sqlite3
import threading
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

    def __init__(self, sqlite: sqlite3.Connection, jobs: "_Jobs", *, withdraws: bool) -> None:
        self._sqlite = sqlite
        self._jobs = jobs
        self._withdraws = withdraws

    async def run(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`function(connection, ...)` in the connection's thread. What it raises is raised here.

        It is not cut short: a cancelled caller still waits for the function to end, because a transaction must not
        go on behind its back. Where the thread `withdraws`, one that has not begun is never called, and its caller does
        not wait.
        """
        job = _Job(trio.lowlevel.current_task(), partial(function, self._sqlite, *args, **kwargs))
        self._jobs.put(job)

        def withdraw(_: object) -> trio.lowlevel.Abort:
            withdrawn = self._withdraws and job.claim()
            return trio.lowlevel.Abort.SUCCEEDED if withdrawn else trio.lowlevel.Abort.FAILED

        result: T = await trio.lowlevel.wait_task_rescheduled(withdraw)
        return result


class _Job:
    """A call that a task waits for. The thread claims it to begin it, or its caller, to withdraw it: only the first
    may."""

    __slots__ = ("_claimed", "call", "task")

    def __init__(self, task: trio.lowlevel.Task, call: Callable[[], Any]) -> None:
        self.task = task
        self.call = call
        self._claimed = threading.Lock()  # for ever: to take it is one step, whichever thread does

    def claim(self) -> bool:
        """False: the other one has."""
        return self._claimed.acquire(blocking=False)


_Jobs = queue.SimpleQueue[_Job | None]


def _serve(jobs: _Jobs, token: trio.lowlevel.TrioToken) -> None:
    """In the connection's thread: job after job, until there is a None."""
    while (job := jobs.get()) is not None:
        if job.claim():
            token.run_sync_soon(trio.lowlevel.reschedule, job.task, outcome.capture(job.call))


@asynccontextmanager
async def open_database_thread(
    connect: Callable[[], sqlite3.Connection], *, withdraws: bool = False
) -> AsyncIterator[Database]:
    """`connect()` is called in the new thread, as is everything else; the connection is closed at the end. `withdraws`:
    of a cancelled caller what has not begun yet is dropped; for a connection that only reads."""
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
        yield _DatabaseThread(made[0], jobs, withdraws=withdraws)
    finally:
        jobs.put(None)
        with trio.CancelScope(shield=True):
            await aio_as_trio(end)()

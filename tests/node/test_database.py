"""Whole functions in the connection's thread (docs/adr/0003)."""

import sqlite3
import threading
from collections.abc import Callable

import pytest
import trio
import trio.testing
import trio_asyncio

from chain.errors import LocalMisuse, StorageFailure
from node.database import open_database_thread


def connect() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)


def thread_of(conn: sqlite3.Connection) -> int:
    return threading.get_ident()


async def test_connecting_and_all_functions_run_in_one_thread_that_is_not_ours() -> None:
    threads: list[int] = []

    def connect_and_tell() -> sqlite3.Connection:
        threads.append(threading.get_ident())
        return connect()

    async with trio_asyncio.open_loop(), open_database_thread(connect_and_tell) as database:
        threads += [await database.run(thread_of), await database.run(thread_of)]
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


async def test_a_function_gets_its_arguments_and_its_result_comes_back() -> None:
    def query(conn: sqlite3.Connection, one: int, *, two: int) -> tuple[int, ...]:
        row: tuple[int, ...] = conn.execute("SELECT ?, ?", (one, two)).fetchone()
        return row

    async with trio_asyncio.open_loop(), open_database_thread(connect) as database:
        assert await database.run(query, 1, two=2) == (1, 2)


async def test_what_a_function_raises_arrives_as_it_is_and_the_thread_goes_on() -> None:
    def fail(conn: sqlite3.Connection) -> None:
        raise StorageFailure("the disk is full")

    async with trio_asyncio.open_loop(), open_database_thread(connect) as database:
        with pytest.raises(StorageFailure, match=r"^the disk is full$"):
            await database.run(fail)
        with pytest.raises(sqlite3.OperationalError):
            await database.run(lambda conn: conn.execute("no SQL"))
        assert await database.run(lambda conn: conn.execute("SELECT 7").fetchone()) == (7,)


@pytest.mark.parametrize("withdraws", [True, False], ids=["reader", "writer"])
async def test_a_cancelled_caller_waits_for_its_function_to_end(*, withdraws: bool) -> None:
    """Otherwise a transaction would go on behind the back of a node that stops."""
    begun, may_end = trio.Event(), threading.Event()
    done: list[str] = []
    token = trio.lowlevel.current_trio_token()

    def slow(conn: sqlite3.Connection) -> str:
        token.run_sync_soon(begun.set)
        may_end.wait()
        done.append("committed")
        return "result"

    async def call(scope: trio.CancelScope) -> None:
        with scope:
            assert await database.run(slow) == "result"
            await trio.lowlevel.checkpoint()
            done.append("not cancelled")

    async with trio_asyncio.open_loop(), open_database_thread(connect, withdraws=withdraws) as database:
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, scope)
            await begun.wait()
            scope.cancel()
            try:
                await trio.testing.wait_all_tasks_blocked()
                assert not done
                assert not scope.cancelled_caught
            finally:
                may_end.set()
        assert scope.cancelled_caught
        assert done == ["committed"]


@pytest.mark.parametrize("withdraws", [True, False], ids=["reader", "writer"])
async def test_what_has_not_begun_is_withdrawn_with_its_caller_from_a_reader_alone(*, withdraws: bool) -> None:
    """A node that stops, or a client that is sent away, would wait for the questions of all others."""
    begun, may_end = trio.Event(), threading.Event()
    done: list[int] = []
    token = trio.lowlevel.current_trio_token()

    def first(conn: sqlite3.Connection) -> None:
        token.run_sync_soon(begun.set)
        may_end.wait()
        done.append(0)

    def later(conn: sqlite3.Connection, number: int) -> None:
        done.append(number)

    async def call(scope: trio.CancelScope, number: int) -> None:
        with scope:
            await database.run(later, number)

    async with trio_asyncio.open_loop(), open_database_thread(connect, withdraws=withdraws) as database:
        async with trio.open_nursery() as nursery:
            try:
                nursery.start_soon(database.run, first)
                await begun.wait()
                scopes = [trio.CancelScope() for _ in range(4)]
                for number, scope in enumerate(scopes, 1):
                    nursery.start_soon(call, scope, number)
                    await trio.testing.wait_all_tasks_blocked()
                for scope in scopes[:3]:
                    scope.cancel()
                await trio.testing.wait_all_tasks_blocked()
                assert [scope.cancelled_caught for scope in scopes] == [withdraws] * 3 + [False]
            finally:
                may_end.set()
        assert done == [0, 4] if withdraws else [0, 1, 2, 3, 4]
        assert await database.run(lambda conn: 7) == 7


async def test_functions_of_many_callers_run_one_after_the_other() -> None:
    """The one that waits is not begun while another runs, so each sees a connection outside of any transaction."""
    seen: list[bool] = []

    def transaction(conn: sqlite3.Connection) -> None:
        seen.append(conn.in_transaction)
        conn.execute("BEGIN")
        conn.execute("COMMIT")

    async with trio_asyncio.open_loop(), open_database_thread(connect) as database, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(database.run, transaction)
    assert seen == [False] * 20


async def test_the_connection_is_closed_at_the_end_also_after_an_error() -> None:
    made: list[sqlite3.Connection] = []

    def keep() -> sqlite3.Connection:
        made.append(connect())
        return made[0]

    async with trio_asyncio.open_loop():
        with pytest.raises(LocalMisuse):
            async with open_database_thread(keep):
                raise LocalMisuse("the body fails")
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        made[0].execute("SELECT 1")


@pytest.mark.parametrize("error", [LocalMisuse("there is no database"), StorageFailure("the disk reports an error")])
async def test_a_database_that_cannot_be_opened_ends_its_thread_and_says_why(error: Exception) -> None:
    strays: list[str] = []

    def refuse() -> sqlite3.Connection:
        raise error

    before = threading.active_count()
    hook: Callable[..., object] = threading.excepthook
    threading.excepthook = lambda args: strays.append(str(args.exc_value))
    try:
        async with trio_asyncio.open_loop():
            with pytest.raises(type(error), match=str(error)):
                async with open_database_thread(refuse):
                    raise AssertionError("it is not entered")
        for thread in threading.enumerate():
            if thread.name.endswith("(_connection_worker_thread)"):
                thread.join()
    finally:
        threading.excepthook = hook
    assert threading.active_count() == before
    assert not strays, "the thread must not speak on a loop that is closed"

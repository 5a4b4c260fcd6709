"""A few workers share many items: each item once, in order, never more at a time than was said."""

import anyio.lowlevel
import pytest

from hopchain.workers import work_on_each
from tests.hopchain.test_client import BACKENDS


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("at_once", [1, 3, 10, 11])
def test_each_item_is_worked_on_once_in_order_and_no_more_at_a_time_than_was_said(backend: str, at_once: int) -> None:
    begun: list[int] = []
    ended: list[int] = []
    together: list[int] = []

    async def work(item: int) -> None:
        begun.append(item)
        together.append(len(begun) - len(ended))
        for _ in range(item % 3):  # so that they end in another order
            await anyio.lowlevel.checkpoint()
        ended.append(item)

    async def main() -> None:
        await work_on_each(range(10), work, at_once=at_once)
        assert sorted(ended) == list(range(10)), "all have ended when it returns"

    anyio.run(main, backend=backend)
    assert begun == list(range(10))
    assert max(together) <= at_once


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("at_once", "running"), [(1, 1), (4, 4), (9, 5)])
def test_as_many_run_as_were_asked_for_and_there_are_items(backend: str, at_once: int, running: int) -> None:
    begun: list[str] = []

    async def work(item: str) -> None:
        begun.append(item)
        await anyio.sleep_forever()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:

            async def each() -> None:
                await work_on_each("abcde", work, at_once=at_once)

            tasks.start_soon(each)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()

    anyio.run(main, backend=backend)
    assert "".join(begun) == "abcde"[:running]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_ends_the_others_and_the_rest_never_begins(backend: str) -> None:
    begun: list[int] = []
    cancelled: list[int] = []

    async def work(item: int) -> None:
        begun.append(item)
        if item == 1:
            await anyio.wait_all_tasks_blocked()
            raise ValueError(item)
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            cancelled.append(item)
            raise

    async def main() -> None:
        await work_on_each(range(9), work, at_once=3)

    with pytest.raises(ExceptionGroup) as raised:
        anyio.run(main, backend=backend)
    (error,) = raised.value.exceptions
    assert isinstance(error, ValueError) and error.args == (1,)
    assert begun == [0, 1, 2] and sorted(cancelled) == [0, 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_items_are_no_work(backend: str) -> None:
    async def work(item: int) -> None:
        raise AssertionError(item)

    async def main() -> None:
        await work_on_each([], work, at_once=3)

    anyio.run(main, backend=backend)

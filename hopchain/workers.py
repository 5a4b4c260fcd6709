"""Many items, a few workers: each takes the next item when it is done with its last one."""

from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

import anyio

T = TypeVar("T")


async def work_on_each(items: Collection[T], work: Callable[[T], Awaitable[None]], *, at_once: int) -> None:
    """Await `work(item)` for each of `items`, at most `at_once` (>= 1) of them at a time; returns when all have ended.

    They begin in the order of the items, so `work` may wait for what an earlier item does. An error ends the others:
    those that run are cancelled, the rest never begins, and it is raised in an exception group. What shall stop no
    other is caught in `work`.
    """
    assert at_once >= 1, at_once
    queue = iter(items)

    async def take_until_empty() -> None:
        for item in queue:
            await work(item)

    async with anyio.create_task_group() as tasks:
        for _ in range(min(at_once, len(items))):
            tasks.start_soon(take_until_empty)

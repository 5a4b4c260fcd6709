"""The event loop that a client belongs to, and the task that closes it.

Its connections, events and tasks are of one event loop, trio's or asyncio's. Used from another, as a second thread has
one, nobody there would wake who waits: a call would end in its deadline, for a reason that is none. So each call looks
first where it is. It asks trio or asyncio itself: that costs a fraction of a microsecond, anyio's `current_token` many
times that.
"""

import asyncio
import sys
from collections.abc import Callable

import anyio

from chain.errors import LocalMisuse


class Home:
    """The event loop and the task in which it was made."""

    def __init__(self) -> None:
        self._current_loop = _asker()
        self._loop = self._current_loop()
        self._task = anyio.get_current_task()

    def check_loop(self) -> None:
        """`LocalMisuse` in another event loop."""
        try:
            here = self._current_loop() is self._loop
        except RuntimeError:  # none of this kind runs in this thread
            here = False
        if not here:
            raise LocalMisuse(
                "this client was opened in another event loop: use it there, from a thread with anyio.from_thread.run, "
                "asyncio.run_coroutine_threadsafe or trio.from_thread.run, or open another with Client(...) here"
            )

    def check_task(self) -> None:
        """`LocalMisuse` in another task, too."""
        self.check_loop()
        if anyio.get_current_task() != self._task:
            raise LocalMisuse(
                "this client was opened by another task, which alone can close it: end that task's `async with`; "
                "this client is still open"
            )


def _asker() -> Callable[[], object]:
    """What gives the event loop of the task that asks; a `RuntimeError` where there is none of this kind."""
    if "trio" in sys.modules:  # else no task is trio's, and a program on asyncio does not load it
        import trio

        if trio.lowlevel.in_trio_task():  # first: asyncio may run in the same thread, below trio or above it
            return trio.lowlevel.current_trio_token
    return asyncio.get_running_loop

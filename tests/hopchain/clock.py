"""Time for tests of the client: it stands still while anything happens, and leaps past the next deadline when nothing
does.

A call of 0.2 s has all of them for whoever waits, however slow the machine is, and nobody waits for them. Nodes and
client are in one event loop and talk over real sockets; nothing has happened when no socket has had anything to say for
`QUIET_S`. A thread (`anyio.to_thread`) is no socket: a test that starts one runs on the real clock.
"""

import asyncio
import math
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
import sniffio
import trio
import trio.testing

QUIET_S: Final = 0.02  # real time; what is sent on loopback is there at once
BEGIN_S: Final = 1000.0  # where the clock stands at first: 0 is before everything
PAST_S: Final = 1e-6  # a deadline: who wakes then has no time left, as on a real clock


def run_leaping(main: Callable[[], Awaitable[None]], backend: str) -> None:
    """As `anyio.run`, in such a time."""

    async def on_trio() -> None:
        let_pass(BEGIN_S)
        trio.lowlevel.spawn_system_task(_leap_on_trio)
        await main()

    if backend == "trio":
        anyio.run(on_trio, backend="trio", backend_options={"clock": trio.testing.MockClock()})
    else:
        anyio.run(main, backend="asyncio", backend_options={"loop_factory": LeapingLoop})


def let_pass(seconds: float) -> None:
    """So much time passes, in which nobody comes to run."""
    if sniffio.current_async_library() == "trio":
        _trio_clock().jump(seconds)
    else:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, LeapingLoop)
        loop.leap(seconds)


def _trio_clock() -> trio.testing.MockClock:
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    return clock


async def _leap_on_trio() -> None:
    while True:
        await trio.testing.wait_all_tasks_blocked(QUIET_S)
        left_s = trio.lowlevel.current_statistics().seconds_to_next_deadline
        if 0 < left_s < math.inf:
            _trio_clock().jump(left_s + PAST_S)


class _Quiet(selectors.DefaultSelector):
    """Waits for sockets no longer than `QUIET_S`; the time that it was to wait passes when there was nothing."""

    def __init__(self, leap: Callable[[float], None]) -> None:
        super().__init__()
        self._leap = leap

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if not timeout:  # something is to be run at once, or nothing ever
            return super().select(timeout)
        found = super().select(QUIET_S)
        if not found:
            self._leap(timeout + PAST_S)
        return found


class LeapingLoop(asyncio.SelectorEventLoop):
    """asyncio in such a time."""

    def __init__(self) -> None:
        self._now = BEGIN_S
        self._in_threads = 0
        super().__init__(_Quiet(self._leap_when_quiet))

    def time(self) -> float:
        return self._now

    def leap(self, seconds: float) -> None:
        self._now += seconds

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """asyncio looks up even numeric addresses in a thread: no time passes meanwhile."""
        future = super().run_in_executor(executor, func, *args)
        self._in_threads += 1
        future.add_done_callback(self._back_from_thread)
        return future

    def _back_from_thread(self, _: object) -> None:
        self._in_threads -= 1

    def _leap_when_quiet(self, seconds: float) -> None:
        if not self._in_threads:
            self.leap(seconds)

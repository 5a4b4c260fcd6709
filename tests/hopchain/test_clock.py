"""Time that leaps (tests.hopchain.clock): all of it for who waits, none for who works."""

import socket
import time
from typing import Any

import anyio
import anyio.abc
import pytest

from tests.hopchain.clock import QUIET_S, let_pass, run_leaping
from tests.hopchain.test_client import BACKENDS

DAY_S = 86_400.0


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_who_waits_has_waited_and_who_has_a_deadline_is_past_it(backend: str) -> None:
    async def main() -> None:
        began = anyio.current_time()
        await anyio.sleep(DAY_S)
        with anyio.move_on_after(DAY_S) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught and anyio.current_time() > scope.deadline
        assert anyio.current_time() - began == pytest.approx(2 * DAY_S)
        let_pass(DAY_S)
        assert anyio.current_time() - began == pytest.approx(3 * DAY_S)

    run_leaping(main, backend)


def test_no_time_passes_while_bytes_come_and_go(backend: str) -> None:
    """Many times there and back, which takes longer than a deadline of less than no time."""

    async def echo(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            async for part in stream:
                await stream.send(part)

    async def main() -> None:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, echo)
            with anyio.fail_after(QUIET_S / 1000):
                async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                    for _ in range(300):
                        await stream.send(b"ping")
                        assert await stream.receive() == b"ping"
            tasks.cancel_scope.cancel()

    run_leaping(main, backend)


def test_no_time_passes_while_asyncio_looks_up_an_address_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = socket.getaddrinfo

    def slow(*words: Any, **more: Any) -> object:
        time.sleep(5 * QUIET_S)
        return look_up(*words, **more)

    async def main() -> None:
        with anyio.fail_after(QUIET_S / 1000):
            assert await anyio.getaddrinfo("127.0.0.1", 1)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    run_leaping(main, "asyncio")

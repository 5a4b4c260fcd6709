"""One connection: when it is given up, and what leaves on it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import pytest

from hopchain import Status, Timing, Unreachable, calls, wire
from hopchain.addresses import Address
from hopchain.calls import Calls, take_write
from tests.hopchain.fake_node import Hang
from tests.hopchain.test_client import BACKENDS, World, connect, run

IMPATIENT = Timing(ping_after_s=0.1, dead_after_s=0.4)
LONG_S = 10.0  # for what takes a second at most


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- silence -------------------------------------------------------------------------------------------------------


def test_a_silent_node_is_given_up_also_by_calls_shorter_than_its_patience(backend: str) -> None:
    async def test(world: World) -> None:
        (node,) = world.nodes
        async with world.client(timing=IMPATIENT) as client:
            await connect(world, client)
            node.fault = lambda call: Hang()  # its cable is pulled
            why = ""
            with anyio.fail_after(LONG_S):
                while "has been silent for 0.4 s" not in why:
                    with pytest.raises(Unreachable) as caught:
                        await client.balance("mint", timeout_s=0.15)
                    why = str(caught.value)
            node.fault = lambda call: None
            assert isinstance(await client.status(), Status)
        assert node.connections == 2

    run(test, backend)


def test_a_node_that_was_silent_before_is_given_the_time_to_answer_a_sign_of_life(backend: str) -> None:
    """A call was given up long ago, before a sign of life was due."""

    async def test(world: World) -> None:
        (node,) = world.nodes
        async with world.client(timing=IMPATIENT) as client:
            await connect(world, client)
            node.fault = lambda call: Hang()
            with pytest.raises(Unreachable):
                await client.status(timeout_s=0.02)
            node.fault = lambda call: None
            await anyio.sleep(2 * IMPATIENT.dead_after_s)
            assert isinstance(await client.status(), Status)
        assert node.connections == 1

    run(test, backend)


def test_a_sign_of_life_is_waited_for_also_when_no_call_waits_any_more(backend: str) -> None:
    """So that the next call is not handed to a connection that is dead."""

    async def test(world: World) -> None:
        (node,) = world.nodes
        async with world.client(timing=IMPATIENT) as client:
            await connect(world, client)
            node.fault = lambda call: Hang()
            with pytest.raises(Unreachable):
                await client.balance("mint", timeout_s=0.25)
            await anyio.sleep(2 * IMPATIENT.dead_after_s)
            node.fault = lambda call: None
            assert isinstance(await client.status(), Status)
        assert node.connections == 2

    run(test, backend)


# --- what leaves ---------------------------------------------------------------------------------------------------


class Wire:
    """A connection whose writes wait until it is `open`. The node says nothing."""

    node_id = b""

    def __init__(self) -> None:
        self.open = anyio.Event()
        self.writes: list[tuple[bytes, ...]] = []

    async def send(self, *payloads: bytes) -> None:
        self.writes.append(payloads)
        await self.open.wait()

    async def receive(self) -> bytes:
        await anyio.sleep_forever()
        raise AssertionError

    async def aclose(self) -> None:
        pass


@asynccontextmanager
async def connected(stream: Wire) -> AsyncIterator[Calls]:
    connection = Calls(Address("127.0.0.1", 1), cast(Any, stream), Timing(ping_after_s=60.0, dead_after_s=60.0))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connection.run)
        yield connection
        tasks.cancel_scope.cancel()


def test_a_call_that_is_given_up_before_it_left_never_leaves(backend: str) -> None:
    async def main() -> None:
        stream = Wire()
        async with connected(stream) as connection, anyio.create_task_group() as tasks:
            tasks.start_soon(connection.call, wire.AskDigest())
            await anyio.wait_all_tasks_blocked()
            for _ in range(100):
                with anyio.move_on_after(0.001):
                    await connection.call(wire.AskStatus())
            tasks.start_soon(connection.call, wire.AskHealth())
            await anyio.wait_all_tasks_blocked()
            stream.open.set()
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        sent = [wire.decode_client_frame_untrusted(payload) for payloads in stream.writes for payload in payloads]
        assert sent == [wire.Call(1, wire.AskDigest()), wire.Call(102, wire.AskHealth())]

    anyio.run(main, backend=backend)


def test_the_next_write_takes_the_first_calls_that_fit_or_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "WRITE_BYTES", 10)
    outbox = {number: bytes(size) for number, size in enumerate((4, 6, 1, 11, 10, 1))}
    parts = []
    while outbox:
        parts.append([len(payload) for payload in take_write(outbox)])
    assert parts == [[4, 6], [1], [11], [10], [1]]

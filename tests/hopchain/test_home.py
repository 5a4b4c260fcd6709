"""A client belongs to the event loop that opened it, and is closed by the task that did: whoever else comes is told."""

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import anyio.to_thread
import pytest

from chain.errors import LocalMisuse
from chain.request import Posting, transfer
from hopchain import Choice, Client, PooledSender, SourcePool, Status
from tests.hopchain.fake_node import ISSUER_KEY, shared_ca
from tests.hopchain.test_client import BACKENDS, NONCE, World, run

NODE = ("127.0.0.1", 7402)
ANOTHER = "was opened in another event loop: use it there, from a thread with anyio.from_thread.run, asyncio.run_corou"


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def calls_of(world: World, client: Client, sender: PooledSender) -> list[Callable[[], Awaitable[object]]]:
    """A call of each kind."""
    posting = Posting("alice", 100)
    request = transfer(world.genesis.network_id, "mint", [posting], NONCE)
    return [
        client.status,
        client.all_accounts,
        partial(client.balance, "alice"),
        partial(client.submit, world.payment()),
        partial(client.transfer, "mint", ISSUER_KEY, [posting]),
        partial(client.submit_many, [request], {"mint": ISSUER_KEY}),
        partial(sender.pay, [posting]),
        partial(sender.pay_bulk, [posting]),
        sender.balances,
        partial(client.__aexit__, None, None, None),
    ]


@pytest.mark.parametrize("other", BACKENDS)
def test_another_event_loop_is_refused_at_once_and_nothing_is_sent(backend: str, other: str) -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            pool = SourcePool(["mint"], Choice.LEAST_ACTIVE, random.Random(1))
            sender = PooledSender(client, pool, {"mint": ISSUER_KEY})

            async def elsewhere() -> None:
                for call in calls_of(world, client, sender):
                    with pytest.raises(LocalMisuse, match=ANOTHER):
                        await call()

            await anyio.to_thread.run_sync(partial(anyio.run, elsewhere, backend=other))
            (node,) = world.nodes
            assert node.connections == 0 and pool.failed == 0 and not any(pool.most_in_flight.values())
            assert isinstance(await client.status(), Status), "and where it was opened it works"
            await anyio.to_thread.run_sync(partial(anyio.run, elsewhere, backend=other))
            assert len(node.calls) == 1

    run(test, backend, real_time=True)  # no time leaps while a thread works


def test_a_second_event_loop_of_the_same_thread_is_refused() -> None:
    client = Client([NODE], shared_ca().pem, bytes(32))
    opened, done = asyncio.Event(), asyncio.Event()

    async def use() -> None:
        async with client:
            opened.set()
            await done.wait()

    async def elsewhere() -> None:
        with pytest.raises(LocalMisuse, match=ANOTHER):
            await client.status()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        first = runner.get_loop()
        task = first.create_task(use())
        first.run_until_complete(opened.wait())
        for backend in BACKENDS:
            anyio.run(elsewhere, backend=backend)
        done.set()
        first.run_until_complete(task)


def test_another_task_does_not_close_it(backend: str) -> None:
    async def test(world: World) -> None:
        async def close(client: Client) -> None:
            with pytest.raises(LocalMisuse, match=r"opened by another task, which alone can close it: .*still open"):
                await client.__aexit__(None, None, None)

        async with world.client() as client:
            for _ in range(2):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(close, client)
                assert isinstance(await client.status(), Status)
        with pytest.raises(LocalMisuse, match="the client is not open"):
            await client.status()

    run(test, backend)


def test_a_program_on_asyncio_does_not_load_trio_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "trio")

    async def main() -> None:
        async with Client([NODE], shared_ca().pem, bytes(32)) as client:
            client.check_open()
        assert "trio" not in sys.modules

    anyio.run(main, backend="asyncio")

"""examples/pay_from_pool.py against fake nodes: it keeps every answer, also when the nodes or the pool give up."""

import importlib.util
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest

from chain.link import Outcome
from hopchain import Client, HopchainError, LocalMisuse, Outflow, Posting, Recorded, Unreachable, raw_public_key, wire
from tests.hopchain.fake_node import key_number
from tests.hopchain.test_client import BACKENDS, World, running

ROOT = Path(__file__).parents[2]
KEYS = {f"payer-{n}": key_number(n) for n in range(1, 4)}
FUNDS = 1000


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("pay_from_pool", ROOT / "examples" / "pay_from_pool.py")
    assert spec is not None and spec.loader is not None
    made = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    yield made
    del sys.modules[spec.name]


@pytest.fixture
def chosen(example: ModuleType, tmp_path: Path) -> Any:
    return example.Chosen(tmp_path / "chosen.sqlite3")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(test: Callable[[World, Client], Awaitable[None]], backend: str) -> None:
    async def main() -> None:
        with anyio.fail_after(20):
            async with running(World(1)) as world, world.client() as client:
                for name, key in {**KEYS, "bob": key_number(9)}.items():
                    world.ledger.open(name, "CZK", raw_public_key(key))
                    world.ledger.accounts[name].settled = FUNDS
                await test(world, client)

    anyio.run(main, backend=backend)


def test_every_order_is_paid_and_the_sum_is_right(example: ModuleType, chosen: Any, backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        orders = [example.Order(f"order {n}", [Posting("bob", 3)]) for n in range(50)]
        answers, outflow = await example.pay_from_pool(client, KEYS, orders, chosen)
        assert list(Counter(a.outcome for a in answers.values())) == [Outcome.COMPLETED]
        assert (len(answers), outflow) == (50, Outflow(150, 150, 0, 0))
        more = [*orders, *(example.Order(f"more {n}", [Posting("bob", 2)]) for n in range(5))]
        again, outflow = await example.pay_from_pool(client, KEYS, more, chosen)
        assert sum(answer.repeated for answer in again.values()) == 50 and world.ledger.executed == 55
        assert outflow == Outflow(10, 10, 0, 0) and outflow.ok, "what was paid before left before"

    run(test, backend)


def test_too_many_failures_end_it_before_all_orders_were_tried(example: ModuleType, chosen: Any, backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        orders = [example.Order(f"order {n}", [Posting("nobody", 1)]) for n in range(50)]
        answers, outflow = await example.pay_from_pool(client, KEYS, orders, chosen, workers=4, max_failures=5)
        assert {a.outcome for a in answers.values()} == {Outcome.UNKNOWN_RECIPIENT}
        assert 6 <= len(answers) <= 9, "those that were on their way when it was one too many"
        assert outflow == Outflow(0, 0, 0, 0)

    run(test, backend)


def test_answers_are_kept_when_no_node_is_left(example: ModuleType, chosen: Any, backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        node = world.nodes[0]

        def until_the_tenth(call: wire.CallBody) -> wire.ReplyBody | None:
            if isinstance(call, wire.Submit) and world.ledger.submits == 9:
                node.stop()
            return None

        node.fault = until_the_tenth
        orders = [example.Order(f"order {n}", [Posting("bob", 1)]) for n in range(50)]
        answers, outflow = await example.pay_from_pool(
            client, KEYS, orders, chosen, workers=2, max_failures=5, timeout_s=0.5
        )
        paid = [a for a in answers.values() if isinstance(a, Recorded)]
        assert len(paid) >= 5 and outflow is None
        assert all(isinstance(a, Recorded | wire.Unknown | Unreachable) for a in answers.values())
        assert len(answers) < 50

    run(test, backend)


def test_an_order_that_cannot_be_made_stops_no_other(example: ModuleType, chosen: Any, backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        orders = [example.Order(f"order {n}", [Posting("bob", 1, "x" * (57 if n == 3 else 5))]) for n in range(9)]
        answers, outflow = await example.pay_from_pool(client, KEYS, orders, chosen)
        assert {name for name, a in answers.items() if isinstance(a, HopchainError)} == {"order 3"}
        assert isinstance(answers["order 3"], LocalMisuse) and outflow == Outflow(8, 8, 0, 0)

    run(test, backend)


def test_without_a_node_nothing_is_sent_and_it_says_so(example: ModuleType, chosen: Any, backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        world.nodes[0].stop()
        with pytest.raises(Unreachable):
            await example.pay_from_pool(client, KEYS, [example.Order("order", [Posting("bob", 1)])], chosen)
        assert world.ledger.submits == 0

    run(test, backend)


def test_an_order_stays_with_the_account_that_was_chosen_for_it(
    example: ModuleType, chosen: Any, backend: str, tmp_path: Path
) -> None:
    async def test(world: World, client: Client) -> None:
        def balances() -> list[int]:
            return [world.ledger.accounts[name].settled for name in KEYS]

        orders = [example.Order(f"order {n}", [Posting("bob", 1)]) for n in range(6)]
        await example.pay_from_pool(client, KEYS, orders, chosen, workers=1)
        assert balances() == [FUNDS - 6, FUNDS, FUNDS], "one worker never finds the first one busy"
        others = {name: KEYS[name] for name in ("payer-3", "payer-2", "payer-1")}
        again, _ = await example.pay_from_pool(client, others, orders, example.Chosen(tmp_path / "chosen.sqlite3"))
        assert all(answer.repeated for answer in again.values()) and balances() == [FUNDS - 6, FUNDS, FUNDS]
        del others["payer-1"]
        refused, _ = await example.pay_from_pool(client, others, orders, chosen)
        assert {str(answer) for answer in refused.values()} == {"'payer-1' is none of the 2 accounts of this pool"}
        assert world.ledger.executed == 6, "it is told, and paid from no other account"

    run(test, backend)


def test_what_cannot_be_written_down_is_not_sent(example: ModuleType, backend: str, tmp_path: Path) -> None:
    async def test(world: World, client: Client) -> None:
        nowhere = example.Chosen(tmp_path / "nowhere" / "chosen.sqlite3")
        answers, outflow = await example.pay_from_pool(
            client, KEYS, [example.Order("order", [Posting("bob", 1)])], nowhere
        )
        assert isinstance(answers["order"], LocalMisuse) and "cannot be used: unable to open" in str(answers["order"])
        assert (world.ledger.submits, outflow) == (0, Outflow(0, 0, 0, 0))

    run(test, backend)

"""A client that uses all nodes hands a request to the one that makes its sender's next link, as far as it knows."""

from collections.abc import Callable
from itertools import count

import anyio
import msgspec
import pytest

from chain.request import Posting, SignedRequest, sign, transfer
from hopchain import Client, Recorded, Refused, Stale, Unknown, Unreachable, submitting, wire
from hopchain import calls as calls_module
from hopchain.framing import frame
from routing.keyspace import NodeId, closest, distance, route_key
from tests.hopchain.fake_node import ISSUER_KEY, FakeNode, Fault, Hang, key_number
from tests.hopchain.test_client import ALICE_KEY, BACKENDS, World, connect, run

NODES = 3
TIMES = 12  # that a request goes where it should, by chance one in three
PATIENCE_S = 8.0  # for what takes two seconds at most: a client lets a node rest so long before it dials it again
NONCES = count()


def payment(world: World) -> SignedRequest:
    """A new one of mint."""
    return world.payment(nonce=next(NONCES).to_bytes(32, "big"))


def by_distance(world: World, account: str = "mint") -> list[FakeNode]:
    """All nodes; first who makes the account's next link."""
    key = route_key(world.ledger.accounts[account].tip)
    nodes = {NodeId(node.id): node for node in world.nodes}
    return [nodes[node_id] for node_id in closest(nodes, key, len(nodes))]


def submits(world: World) -> list[int]:
    """How many requests each node got."""
    return [got(node) for node in world.nodes]


def got(node: FakeNode) -> int:
    """How many requests it got."""
    return sum(isinstance(call, wire.Submit) for call in node.calls)


async def goes_to(world: World, client: Client, node: FakeNode) -> None:
    """A payment of mint is executed, and `node` alone is asked."""
    for each in world.nodes:
        each.calls.clear()
    assert isinstance(await client.submit(payment(world)), Recorded)
    assert submits(world) == [each is node for each in world.nodes]


async def pay_elsewhere(world: World, other: Client) -> None:
    """Another client pays from mint, until another node makes the next link."""
    before = by_distance(world)[0]
    while by_distance(world)[0] is before:
        assert isinstance(await other.submit(payment(world)), Recorded)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- where a request goes ------------------------------------------------------------------------------------------


def test_a_request_goes_to_who_makes_the_next_link_once_all_nodes_are_known(backend: str) -> None:
    async def test(world: World) -> None:
        async with world.client(spread=True) as client:
            await connect(world, client)
            await client.balance("mint")
            for _ in range(TIMES):
                await goes_to(world, client, by_distance(world)[0])

    run(test, backend, NODES)


def test_all_nodes_are_dialled_in_turn_before_any_is_preferred(backend: str) -> None:
    async def test(world: World) -> None:
        for _ in range(TIMES):
            async with world.client(spread=True) as client:
                for node in world.nodes:
                    await goes_to(world, client, node)
                await goes_to(world, client, by_distance(world)[0])

    run(test, backend, NODES)


def test_requests_of_accounts_that_nothing_is_known_of_and_questions_go_in_turn(backend: str) -> None:
    async def test(world: World) -> None:
        for number in range(6):
            world.ledger.open(f"a{number}", "CZK", world.ledger.accounts["alice"].public_key)
        async with world.client(spread=True) as client:
            await connect(world, client)
            for number in range(6):
                assert isinstance(await client.transfer(f"a{number}", ALICE_KEY, [Posting("alice", 1)]), Recorded)
            for number in range(3):
                assert isinstance(await client.open_account(f"b{number}", "CZK", key_number(2)), Recorded)
            assert submits(world) == [3, 3, 3]
            for number in range(6):
                await client.balance(f"a{number}")
            assert [len(node.calls) for node in world.nodes] == [5, 5, 5]

    run(test, backend, NODES)


def test_a_pinned_request_stays_pinned(backend: str) -> None:
    async def test(world: World) -> None:
        async with world.client(spread=True) as client:
            await connect(world, client)
            for number in range(TIMES):
                await client.submit(payment(world), at=world.nodes[number % 2].address)
            assert submits(world) == [TIMES // 2, TIMES // 2, 0]

    run(test, backend, NODES)


def test_without_spread_one_node_is_kept(backend: str) -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            await connect(world, client)
            await client.balance("mint")
            for _ in range(TIMES):
                await goes_to(world, client, world.nodes[0])

    run(test, backend, NODES)


@pytest.mark.parametrize("at_once", [False, True])
def test_requests_that_a_full_connection_has_no_room_for_go_to_the_next_node(
    backend: str, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When none has room they wait for the nearest."""
    monkeypatch.setattr(calls_module, "MAX_IN_FLIGHT", 2)

    async def test(world: World) -> None:
        async with world.client(spread=True) as client, anyio.create_task_group() as tasks:
            await connect(world, client)
            await client.balance("mint")
            everywhere(world, lambda call: Hang())
            nearest, second, third = by_distance(world)

            async def submit(request: SignedRequest) -> None:
                await client.submit(request, timeout_s=PATIENCE_S * 2)

            async def arrived(count: int) -> None:
                with anyio.fail_after(PATIENCE_S):
                    while sum(submits(world)) < count:  # noqa: ASYNC110 (a fake node does not say when)
                        await anyio.sleep(0.001)

            for number, node in enumerate([nearest, nearest, second, second, third, third], 1):
                before = got(node)
                tasks.start_soon(submit, payment(world))
                if not at_once:
                    await arrived(number)
                    assert got(node) == before + 1
            tasks.start_soon(submit, payment(world))
            await anyio.wait_all_tasks_blocked()  # it waits for room
            await arrived(6)
            assert submits(world) == [2, 2, 2]
            first = next(call for call in nearest.calls if isinstance(call, wire.Submit))
            await nearest.answer_late(first)
            await arrived(7)
            assert got(nearest) == 3
            tasks.cancel_scope.cancel()

    run(test, backend, NODES)


# --- what is known of a tail ---------------------------------------------------------------------------------------


def test_the_tip_of_a_stale_answer_counts(backend: str) -> None:
    async def test(world: World) -> None:
        async with world.client(spread=True) as client, world.client() as other:
            await connect(world, client)
            for _ in range(TIMES):
                old = world.ledger.accounts["mint"].tip
                await client.balance("mint")
                await pay_elsewhere(world, other)
                nonce = next(NONCES).to_bytes(32, "big")
                pinned = transfer(client.network, "mint", [Posting("alice", 1)], nonce, expect_tip=old)
                assert isinstance(await client.submit(sign(pinned, ISSUER_KEY)), Stale)
                await goes_to(world, client, by_distance(world)[0])

    run(test, backend, NODES)


def test_the_tip_of_a_balance_counts(backend: str) -> None:
    async def test(world: World) -> None:
        async with world.client(spread=True) as client, world.client() as other:
            await connect(world, client)
            for _ in range(TIMES):
                await pay_elsewhere(world, other)
                await client.balance("mint")
                await goes_to(world, client, by_distance(world)[0])

    run(test, backend, NODES)


def test_an_older_answer_does_not_go_back(backend: str) -> None:
    async def test(world: World) -> None:
        async with world.client(spread=True) as client:
            await connect(world, client)
            first = payment(world)
            await client.submit(first)
            for _ in range(TIMES):
                again = await client.submit(first)
                assert isinstance(again, Recorded) and again.repeated
                assert world.ledger.accounts["mint"].height >= again.height == 1
                await goes_to(world, client, by_distance(world)[0])

    run(test, backend, NODES)


@pytest.mark.parametrize("end", ["unknown", "not_started", "deadline", "cancelled"])
def test_after_a_request_without_an_outcome_the_next_ones_go_in_turn(
    backend: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nearest node may be cut off from the others: an account would wait there for ever."""

    async def test(world: World) -> None:
        async with world.client(spread=True) as client:
            await connect(world, client)
            await client.balance("mint")
            if end == "unknown":
                monkeypatch.setattr(submitting, "NODE_SHARE", 0.0)  # a node says so when the time is nearly up
                everywhere(world, lambda call: Unknown(sent.request_id, "no outcome in time"))
                sent = payment(world)
                assert await client.submit(sent) == Unknown(sent.request_id, "no outcome in time")
            elif end == "not_started":
                everywhere(world, lambda call: wire.NotStarted(sent.request_id, "no_majority", "alone"))
                sent = payment(world)
                assert isinstance(await client.submit(sent, timeout_s=0.05), wire.NotStarted | Unknown)
            elif end == "deadline":
                everywhere(world, lambda call: Hang())
                assert isinstance(await client.submit(payment(world), timeout_s=0.05), Unknown)
            else:
                await hand_over(world, client)
            await anothers_turn(world, client)
            for node in world.nodes:
                node.calls.clear()
            for _ in world.nodes:
                await hand_over(world, client)
            assert submits(world) == [1, 1, 1]
            everywhere(world, lambda call: None)
            await client.submit(payment(world))
            await goes_to(world, client, by_distance(world)[0])

    run(test, backend, NODES)


def test_a_refused_request_tells_nothing_of_the_tail(backend: str) -> None:
    async def test(world: World) -> None:
        async with world.client(spread=True) as client:
            await connect(world, client)
            await client.balance("mint")
            for _ in range(TIMES):
                foreign = sign(transfer(client.network, "mint", [Posting("alice", 1)], bytes(32)), ALICE_KEY)
                assert isinstance(await client.submit(foreign), Refused)
                await anothers_turn(world, client)
                await goes_to(world, client, by_distance(world)[0])

    run(test, backend, NODES)


async def anothers_turn(world: World, client: Client) -> None:
    """By turns the next request would not go to the node that makes the link."""
    while world.nodes[client._nodes._turn] is by_distance(world)[0]:
        await client.status()


def everywhere(world: World, fault: Callable[[wire.Submit], Fault]) -> None:
    """What all nodes answer to requests."""
    for node in world.nodes:
        node.fault = lambda call: fault(call) if isinstance(call, wire.Submit) else None


async def hand_over(world: World, client: Client) -> None:
    """Hand over a request that is not answered, and do not wait for it."""
    handed = anyio.Event()

    def fault(call: wire.Submit) -> Fault:
        handed.set()
        return Hang()

    everywhere(world, fault)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.submit, payment(world))
        await handed.wait()
        tasks.cancel_scope.cancel()


# --- what is known of the nodes ------------------------------------------------------------------------------------


def test_a_nearest_node_that_fails_is_passed_over_and_counts_again_as_who_it_then_is(backend: str) -> None:
    """At its address another node answers later: one that was far away and is near, or the other way round."""

    async def test(world: World) -> None:
        async with anyio.create_task_group() as tasks, world.client(spread=True) as client:
            await connect(world, client)
            await client.balance("mint")
            down = by_distance(world)[0]
            down.stop()
            for _ in range(TIMES):
                await goes_to(world, client, next(node for node in by_distance(world) if node is not down))
            down.id = bytes(byte ^ 0x80 for byte in down.id)
            dialled = down.connections
            await tasks.start(down.serve)
            with anyio.fail_after(PATIENCE_S):
                while down.connections == dialled or not down.calls:
                    await client.submit(payment(world))
                    await anyio.sleep(0.01)
            for _ in range(TIMES):
                await goes_to(world, client, by_distance(world)[0])
            tasks.cancel_scope.cancel()

    run(test, backend, NODES)


def test_who_stands_in_is_asked_when_the_nearest_does_not_start(backend: str) -> None:
    async def test(world: World) -> None:
        async with world.client(spread=True) as client:
            await connect(world, client)
            await client.balance("mint")
            for _ in range(TIMES):
                nearest, second, third = by_distance(world)
                sent = payment(world)
                nearest.fault = lambda call, sent=sent: wire.NotStarted(sent.request_id, "busy", "the queue is full")
                third.calls.clear()
                second.calls.clear()
                assert isinstance(await client.submit(sent), Recorded)
                assert (len(second.calls), len(third.calls)) == (1, 0)
                nearest.fault = lambda call: None

    run(test, backend, NODES)


@pytest.mark.parametrize("late", [False, True], ids=["nowhere", "at one of them"])
def test_a_request_that_is_not_covered_is_shown_to_each_node_once(backend: str, late: bool) -> None:
    """One of them may have the money that the others have not heard of."""

    async def test(world: World) -> None:
        async with world.client() as client:
            sent = payment(world)
            everywhere(world, lambda call: wire.NotStarted(sent.request_id, "not_covered", "alice has 0"))
            if late:
                world.nodes[2].fault = lambda call: None
            answer = await client.submit(sent, timeout_s=600.0)
            if late:
                assert isinstance(answer, Recorded)
            else:
                assert answer == wire.NotStarted(sent.request_id, "not_covered", "alice has 0")
                assert submits(world) == [1, 1, 1]

    run(test, backend, NODES)


def test_a_request_that_is_not_covered_where_another_node_is_busy_is_sent_again(backend: str) -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            sent = payment(world)
            everywhere(world, lambda call: wire.NotStarted(sent.request_id, "not_covered", "alice has 0"))
            busy = iter(["busy", "busy"])
            world.nodes[1].fault = lambda call: (
                wire.NotStarted(sent.request_id, code, "x") if (code := next(busy, None)) else None
            )
            assert isinstance(await client.submit(sent, timeout_s=600.0), Recorded)

    run(test, backend, NODES)


@pytest.mark.parametrize("said", [None, b"", b"i" * 19, b"i" * 21])
def test_with_a_node_that_says_no_id_requests_go_in_turn(backend: str, said: bytes | None) -> None:
    """None: the hello of an earlier release."""

    async def test(world: World) -> None:
        odd = world.nodes[1]
        odd.said_id = said
        if said is None:
            odd.raw_first = frame(msgspec.msgpack.encode(["hello", wire.PROTOCOL_VERSION, odd.network]))
        async with world.client(spread=True) as client:
            await connect(world, client)
            await client.balance("mint", at=odd.address)
            for number in range(TIMES):
                await goes_to(world, client, world.nodes[number % NODES])
            odd.stop()
            for _ in range(2):  # the connection is lost, then nobody listens
                with pytest.raises(Unreachable):
                    await client.status(at=odd.address)
            for _ in range(TIMES):
                await goes_to(world, client, next(node for node in by_distance(world) if node is not odd))

    run(test, backend, NODES)


def test_two_addresses_of_one_node_are_used_in_turn(backend: str) -> None:
    async def test(world: World) -> None:
        first, twin, other = world.nodes
        first.id = twin.id = b"\x00" * 20
        other.id = b"\x80" * 20
        async with world.client(spread=True) as client:
            await connect(world, client)
            await client.balance("mint")
            for node in world.nodes:
                node.calls.clear()
            due = 0
            while not all(submits(world)):
                due += distance(route_key(world.ledger.accounts["mint"].tip), other.id) < 2**159
                await client.submit(payment(world))
                assert submits(world)[2] == due

    run(test, backend, NODES)

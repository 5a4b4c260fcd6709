"""One connection: when it is given up, and what leaves on it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import anyio.abc
import pytest

from chain.request import MAX_POSTINGS, Posting, transfer
from hopchain import Client, Recorded, Status, Timing, Unknown, Unreachable, calls, wire
from hopchain.addresses import Address
from hopchain.calls import Calls, ConnectionLost, take_write
from hopchain.change import SignedChange
from hopchain.connection import Connection, ConnectionFailed
from hopchain.signing import sign_request
from tests.hopchain.fake_node import ISSUER_KEY, FakeNode, Hang
from tests.hopchain.test_client import BACKENDS, World, connect, run

IMPATIENT = Timing(ping_after_s=0.1, dead_after_s=0.4)
LONG_S = 10.0  # for what takes a second at most


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- what leaves ---------------------------------------------------------------------------------------------------


class Untouched:
    """A stream on which nothing may be sent."""

    async def send(self, data: bytes) -> None:
        raise AssertionError(f"{len(data)} bytes left")


async def test_a_frame_that_is_too_large_is_this_programs_error_and_does_not_leave() -> None:
    connection = Connection(cast(anyio.abc.ByteStream, Untouched()), "n")
    with pytest.raises(AssertionError, match=r"^a frame of 4194305 bytes, 4194304 at most"):
        await connection.send(b"", bytes(wire.MAX_CLIENT_FRAME_BYTES + 1))


# --- silence -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def silenced(world: World, timing: Timing = IMPATIENT) -> AsyncIterator[tuple[FakeNode, Client]]:
    """The only node, and an impatient client that is connected to it: from now on it says nothing, as if its cable were
    pulled."""
    (node,) = world.nodes
    async with world.client(timing=timing) as client:
        await connect(world, client)
        node.fault = lambda call: Hang()
        yield node, client


def test_a_silent_node_is_given_up_also_by_calls_shorter_than_its_patience(backend: str) -> None:
    async def test(world: World) -> None:
        async with silenced(world) as (node, client):
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
        async with silenced(world) as (node, client):
            with pytest.raises(Unreachable):
                await client.status(timeout_s=0.05)
            node.fault = lambda call: None
            await anyio.sleep(2 * IMPATIENT.dead_after_s)
            assert isinstance(await client.status(), Status)
        assert node.connections == 1

    run(test, backend)


def test_a_sign_of_life_is_waited_for_also_when_no_call_waits_any_more(backend: str) -> None:
    """So that the next call is not handed to a connection that is dead."""

    async def test(world: World) -> None:
        async with silenced(world) as (node, client):
            with pytest.raises(Unreachable):
                await client.balance("mint", timeout_s=0.25)
            await anyio.sleep(2 * IMPATIENT.dead_after_s)
            node.fault = lambda call: None
            assert isinstance(await client.status(), Status)
        assert node.connections == 2

    run(test, backend)


@pytest.mark.parametrize("what", ["question", "request"])
def test_a_silent_node_is_given_up_also_by_calls_that_find_no_room(
    backend: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that were given up before a sign of life was due take all of it. Those in line are told at once."""
    monkeypatch.setattr(calls, "MAX_IN_FLIGHT", 2)

    async def test(world: World) -> None:
        async with silenced(world) as (node, client):

            async def give_up() -> None:
                with pytest.raises(Unreachable, match="no answer within"):
                    await client.balance("mint", timeout_s=0.05)

            async with anyio.create_task_group() as tasks:
                for _ in range(2):
                    tasks.start_soon(give_up)
            await anyio.sleep(2 * IMPATIENT.ping_after_s)  # nobody waits any more, so nobody watches
            if what == "request":
                node.fault = lambda call: None if node.connections > 1 else Hang()
                with anyio.fail_after(LONG_S):
                    assert isinstance(await client.submit(world.payment(), timeout_s=60.0), Recorded)
                assert node.connections == 2
                return
            ended: list[str] = []

            async def ask() -> None:
                with pytest.raises(Unreachable) as caught:
                    await client.balance("mint", timeout_s=60.0)
                ended.append(str(caught.value))

            with anyio.fail_after(LONG_S):
                async with anyio.create_task_group() as tasks:
                    for _ in range(3):
                        tasks.start_soon(ask)
            assert len(ended) == 3 and all("has been silent for 0.4 s" in why for why in ended)
            asked = [call for call in node.calls if isinstance(call, wire.AskBalance)]
            assert len(asked) == 2, "none of the line was sent"

    run(test, backend)


def test_a_node_that_gives_signs_of_life_is_not_given_up_by_those_that_find_no_room(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "MAX_IN_FLIGHT", 1)
    timing = Timing(ping_after_s=0.1, dead_after_s=1.5)  # a busy machine is no silent node

    async def test(world: World) -> None:
        async with silenced(world, timing) as (node, client):
            node.fault = lambda call: Hang() if isinstance(call, wire.AskBalance) else None
            with pytest.raises(Unreachable, match="no answer within"):
                await client.balance("mint", timeout_s=0.05)
            with pytest.raises(Unreachable, match="was not handed it in time"):
                await client.digest(timeout_s=2 * timing.dead_after_s)
            assert sum(isinstance(call, wire.AskStatus) for call in node.calls) > 1
        assert node.connections == 1

    run(test, backend)


class Mute:
    """A connection that takes everything and says nothing."""

    node_id = b""

    def __init__(self) -> None:
        self.sent = 0

    async def send(self, *payloads: bytes) -> None:
        self.sent += len(payloads)

    async def receive(self) -> bytes:
        await anyio.sleep_forever()
        raise AssertionError

    async def aclose(self) -> None:
        pass


def test_no_more_signs_of_life_are_asked_for_than_a_node_bears(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each was answered by something else: the node speaks, but to none of them."""
    monkeypatch.setattr(calls, "SIGNS_OF_LIFE", 3)

    async def main() -> None:
        stream = Mute()
        connection = Calls(Address("127.0.0.1", 1), cast(Any, stream), Timing(ping_after_s=0.01, dead_after_s=60.0))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.run)
            tasks.start_soon(connection.call, wire.AskDigest())
            for _ in range(20):
                await anyio.sleep(0.02)
                connection._heard_at = anyio.current_time()
            assert connection.lost is None and stream.sent == 1 + 3
            tasks.cancel_scope.cancel()

    anyio.run(main, backend=backend)


def test_signs_of_life_that_were_answered_make_way_for_others(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "SIGNS_OF_LIFE", 2)

    async def test(world: World) -> None:
        async with silenced(world, Timing(ping_after_s=0.1, dead_after_s=60.0)) as (node, client):
            node.fault = lambda call: Hang() if isinstance(call, wire.AskBalance) else None
            with pytest.raises(Unreachable, match="no answer within"):
                await client.balance("mint", timeout_s=1.0)
            assert sum(isinstance(call, wire.AskStatus) for call in node.calls) > 2
        assert node.connections == 1

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
        assert [call.body for call in sent if isinstance(call, wire.Call)] == [wire.AskDigest(), wire.AskHealth()]

    anyio.run(main, backend=backend)


def test_the_next_write_takes_the_first_calls_that_fit_or_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "WRITE_BYTES", 10)
    outbox = {number: bytes(size) for number, size in enumerate((4, 6, 1, 11, 10, 1))}
    parts = []
    while outbox:
        parts.append([len(payload) for payload in take_write(outbox)])
    assert parts == [[4, 6], [1], [11], [10], [1]]


def test_a_call_that_never_left_is_told_from_one_that_the_node_may_have(backend: str) -> None:
    async def main() -> None:
        stream = Wire()
        ended: dict[str, str] = {}

        async def call(connection: Calls, name: str, deadline: float) -> None:
            try:
                ended[name] = str(await connection.call(wire.AskStatus(), deadline))
            except ConnectionFailed as error:
                ended[name] = f"{type(error).__name__}: {error.cause.partition(':')[0]}"

        async with connected(stream) as connection, anyio.create_task_group() as tasks:
            soon = anyio.current_time() + 0.3
            for name, deadline in (("written", soon), ("written before the end", LONG_S + soon)):
                tasks.start_soon(call, connection, name, deadline)
            await anyio.wait_all_tasks_blocked()  # both in one write
            for name, deadline in (("not written", soon), ("not written before the end", LONG_S + soon)):
                tasks.start_soon(call, connection, name, deadline)
            await anyio.sleep_until(soon)
            with anyio.fail_after(LONG_S):
                while len(ended) < 2:  # noqa: ASYNC110 (a busy machine takes its time)
                    await anyio.sleep(0.001)
            connection.lose("was cut")
            with pytest.raises(ConnectionFailed, match="was cut") as caught:
                await connection.call(wire.AskStatus())
            assert not isinstance(caught.value, ConnectionLost)
        assert ended == {
            "written": "None",
            "not written": "ConnectionFailed: was not handed it in time",
            "written before the end": "ConnectionLost: was cut",
            "not written before the end": "ConnectionFailed: was cut",
        }

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("what", ["request", "change", "question"])
def test_a_request_that_never_left_is_not_said_to_have_been_had(
    backend: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "MAX_IN_FLIGHT", 2)

    async def test(world: World) -> None:
        (node,) = world.nodes
        node.fault = lambda call: None if isinstance(call, wire.AskStatus) else Hang()
        answers: list[object] = []
        async with world.client() as client:
            await connect(world, client)

            async def pay(number: int, timeout_s: float) -> None:
                nonce = number.to_bytes(32, "big")
                try:
                    if what == "request":
                        answers.append(await client.submit(world.payment(nonce=nonce), timeout_s=timeout_s))
                    elif what == "change":
                        answers.append(await client.change(SignedChange(nonce, b"signature"), timeout_s=timeout_s))
                    else:
                        answers.append(await client.balance("mint", timeout_s=timeout_s))
                except Unreachable as error:
                    answers.append(error)

            async with anyio.create_task_group() as tasks:
                for number in range(2):
                    tasks.start_soon(pay, number, 1.0)
                await anyio.wait_all_tasks_blocked()
                for number in range(2, 5):
                    tasks.start_soon(pay, number, 0.1)
        had = [call for call in node.calls if not isinstance(call, wire.AskStatus)]
        not_had = [answer for answer in answers if isinstance(answer, Unreachable) and "not handed" in str(answer)]
        assert (len(had), len(not_had)) == (2, 3)
        if what != "question":
            assert sum(isinstance(answer, Unknown) for answer in answers) == 2
        for error in not_had:
            assert error.reached and bool(error.request_id) is (what != "question")

    run(test, backend)


# --- the bounds of a node ------------------------------------------------------------------------------------------


def hears_no_more_than_a_node_reads(node: FakeNode, *, of: type[wire.CallBody]) -> list[int]:
    """The node leaves calls of this kind hanging, and nothing else, and reads as a node does: no further while
    MAX_UNANSWERED of them are not answered, or MAX_UNANSWERED_BYTES. What comes then hangs, too. The bytes of those
    that hang."""
    hanging: list[int] = []

    def fault(call: wire.CallBody) -> Hang | None:
        size = len(wire.encode(wire.Call(1000, call)))
        deaf = len(hanging) >= wire.MAX_UNANSWERED or (hanging and sum(hanging) + size > wire.MAX_UNANSWERED_BYTES)
        if isinstance(call, of) or deaf:
            hanging.append(size)
            return Hang()
        return None

    node.fault = fault
    return hanging


@pytest.mark.parametrize(("memo", "in_flight"), [("", calls.MAX_IN_FLIGHT), ("m" * 16, 7)])
def test_a_healthy_node_that_leaves_many_calls_without_an_answer_is_not_called_dead(
    backend: str, memo: str, in_flight: int
) -> None:
    """It is asked for signs of life meanwhile, and answers them: of many small calls, and of seven of the largest
    requests."""

    async def test(world: World) -> None:
        (node,) = world.nodes
        postings = [Posting("alice", 1, memo)] * (MAX_POSTINGS if memo else 1)
        timing = Timing(ping_after_s=0.3, dead_after_s=60.0)
        async with world.client(timing=timing) as client, anyio.create_task_group() as tasks:
            await connect(world, client)
            hanging = hears_no_more_than_a_node_reads(node, of=wire.Submit)
            (connection,) = (listed.connection for listed in client._nodes._listed)
            assert connection is not None

            async def submit(body: wire.Submit) -> None:
                await connection.call(body)

            signed = sign_request(transfer(client.network, "mint", postings, bytes(32)), ISSUER_KEY)
            for number in range(in_flight + 5):
                tasks.start_soon(submit, wire.Submit(signed.raw, signed.signature, 60_000 + number))
            before = sum(isinstance(call, wire.AskStatus) for call in node.calls)
            with anyio.fail_after(LONG_S):
                while sum(isinstance(call, wire.AskStatus) for call in node.calls) < before + 2:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
            assert len(hanging) == in_flight, "a sign of life hangs"
            assert connection.lost is None
            tasks.cancel_scope.cancel()

    run(test, backend)


def test_a_call_that_nobody_waits_for_any_more_takes_room_until_it_is_answered(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node counts it until then."""
    monkeypatch.setattr(calls, "MAX_IN_FLIGHT", 2)

    async def test(world: World) -> None:
        (node,) = world.nodes
        async with world.client() as client:
            await connect(world, client)
            node.fault = lambda call: Hang() if isinstance(call, wire.AskBalance) else None
            for _ in range(2):
                with pytest.raises(Unreachable, match="no answer within"):
                    await client.balance("mint", timeout_s=0.1)
            with pytest.raises(Unreachable, match="was not handed it in time: 2 calls wait on its connection"):
                await client.digest(timeout_s=0.1)
            await node.answer_late(next(call for call in node.calls if isinstance(call, wire.AskBalance)))
            assert isinstance(await client.digest(), wire.Digest)

    run(test, backend)

"""How long a call takes: never longer than its `timeout_s`, and one silent host does not use up what others need."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

from chain.errors import LocalMisuse
from chain.request import Posting
from hopchain import Client, NotFound, Recorded, Status, Timing, Unknown, Unreachable, wire
from hopchain.addresses import NodeAddress, checked_address
from hopchain.change import SignedChange, change_id
from hopchain.client import _Left
from hopchain.nodes import LONGEST_REST_S, Node
from tests.hopchain.clock import let_pass
from tests.hopchain.fake_node import ISSUER_KEY, Drop, Hang, shared_ca
from tests.hopchain.test_client import BACKENDS, World, connect, only, run

Call = Callable[[Client, float], Awaitable[object]]

CALLS: dict[str, Call] = {
    "transfer": lambda c, s: c.transfer("mint", ISSUER_KEY, [Posting("alice", 1)], timeout_s=s),
    "submit_many": lambda c, s: c.submit_many([], {}, timeout_s=s),
    "open_account": lambda c, s: c.open_account("bob", "CZK", ISSUER_KEY, timeout_s=s),
    "cancel": lambda c, s: c.cancel("mint", ISSUER_KEY, bytes(32), timeout_s=s),
    "balance": lambda c, s: c.balance("alice", timeout_s=s),
    "linearizable balance": lambda c, s: c.balance("alice", linearizable=True, timeout_s=s),
    "chain": lambda c, s: c.chain("alice", timeout_s=s),
    "accounts": lambda c, s: c.accounts(timeout_s=s),
    "all_accounts": lambda c, s: c.all_accounts(timeout_s=s),
    "account_list": lambda c, s: c.account_list(timeout_s=s),
    "outcome": lambda c, s: c.outcome(bytes(32), timeout_s=s),
    "route": lambda c, s: c.route(account="alice", timeout_s=s),
    "status": lambda c, s: c.status(timeout_s=s),
    "digest": lambda c, s: c.digest(timeout_s=s),
    "members": lambda c, s: c.members(timeout_s=s),
    "all_views": lambda c, s: c.all_views(timeout_s=s),
    "view_list": lambda c, s: c.view_list(timeout_s=s),
    "health": lambda c, s: c.health(timeout_s=s),
    "change": lambda c, s: c.change(SignedChange(b"change", b"signature"), timeout_s=s),
}
ASKING = {name: call for name, call in CALLS.items() if name != "submit_many"}  # which has nothing to send

MAY_HAPPEN = ("transfer", "open_account", "cancel", "change")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def silent_host() -> AsyncIterator[NodeAddress]:
    """Takes connections and says nothing."""

    async def take(stream: anyio.abc.SocketStream) -> None:
        await anyio.sleep_forever()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, take)
        yield "127.0.0.1", listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.cancel_scope.cancel()
    await listener.aclose()


def client_of(world: World, *addresses: NodeAddress, timing: Timing | None = None, spread: bool = False) -> Client:
    return Client(addresses, shared_ca().pem, world.genesis.network_id, timing=timing, spread=spread)


def noted(client: Client, monkeypatch: pytest.MonkeyPatch) -> list[NodeAddress]:
    """The nodes whose connections this client's calls ask for from now on; one that is not open is waited for."""
    asked: list[NodeAddress] = []
    connect = client._nodes.connect

    async def noting(node: Node, patience_s: float) -> object:
        asked.append((node.address.host, node.address.port))
        return await connect(node, patience_s)

    monkeypatch.setattr(client._nodes, "connect", noting)
    return asked


# --- a silent host -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["transfer", "balance", "status"])
def test_a_silent_host_does_not_hide_a_healthy_one(backend: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call has less time than a dial may take."""

    async def test(world: World) -> None:
        async with silent_host() as silent, client_of(world, silent, world.nodes[0].address) as client:
            answer = await CALLS[name](client, 1.5)
            assert isinstance(answer, Recorded | wire.Balance | Status)
            asked = noted(client, monkeypatch)
            await CALLS[name](client, 1.5)
            assert asked == [world.nodes[0].address], "who answered is kept, the other is not waited for again"

    run(test, backend)


def test_a_host_that_was_waited_for_in_vain_is_asked_last_while_it_is_still_dialled(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(world: World) -> None:
        async with (
            silent_host() as silent,
            client_of(world, silent, world.nodes[0].address, spread=True) as client,
        ):
            await client.status(timeout_s=1.0)
            asked = noted(client, monkeypatch)
            for _ in range(4):
                await client.status(timeout_s=1.0)
            assert asked == [world.nodes[0].address] * 4

    run(test, backend)


@pytest.mark.parametrize("name", ["transfer", "balance", "change"])
def test_the_host_that_was_dialled_when_the_time_was_up_is_named(backend: str, name: str) -> None:
    async def test(world: World) -> None:
        async with silent_host() as silent, client_of(world, silent) as client:
            with pytest.raises(Unreachable, match=r"no node answered \(1 tried\).*did not answer in 0\.2 s") as caught:
                await CALLS[name](client, 0.2)
            assert caught.value.reached
            assert [node for node, _ in caught.value.tried] == [f"127.0.0.1:{silent[1]}"]

    run(test, backend)


def test_who_gives_up_waiting_for_a_dial_does_not_end_it_for_the_others(backend: str) -> None:
    async def test(world: World) -> None:
        async with silent_host() as silent, client_of(world, silent, timing=Timing(dial_s=0.6)) as client:
            why: list[str] = []

            async def ask(timeout_s: float) -> None:
                with pytest.raises(Unreachable) as caught:
                    await client.status(timeout_s=timeout_s)
                why.append(caught.value.tried[-1][1])

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, 0.2)
                tasks.start_soon(ask, 5.0)
            assert why == ["did not answer in 0.2 s", "did not answer in 0.6 s"]

    run(test, backend)


def test_a_node_that_fails_for_hours_rests_no_longer_than_it_should() -> None:
    async def main() -> None:
        node = Node(checked_address(("127.0.0.1", 1)))
        for _ in range(3000):
            node.failed()
        assert node.failing and node.rest_s == LONGEST_REST_S

    anyio.run(main)


# --- the total of a call -------------------------------------------------------------------------------------------


def test_a_call_to_nodes_that_are_frozen_ends_in_time(backend: str) -> None:
    """They are connected, and answer nothing: every kind of call, at once."""

    async def test(world: World) -> None:
        ended: dict[str, tuple[object, float]] = {}

        async def ask(name: str, client: Client) -> None:
            try:
                answer = await ASKING[name](client, 0.3)
            except Unreachable as error:
                answer = error
            ended[name] = answer, anyio.current_time() - began

        async with world.client() as client:
            await connect(world, client)
            for node in world.nodes:
                node.fault = lambda call: Hang()
            began = anyio.current_time()
            async with anyio.create_task_group() as tasks:
                for name in ASKING:
                    tasks.start_soon(ask, name, client)
        assert ended.keys() == ASKING.keys()
        for name, (answer, seconds) in ended.items():
            assert isinstance(answer, Unknown if name in MAY_HAPPEN else Unreachable), (name, answer)
            assert name in MAY_HAPPEN or re.search(r"no answer within 0\.(3|15) s", str(answer)), (name, answer)
            assert seconds == pytest.approx(0.3, abs=0.001), name

    run(test, backend, 2)


def test_the_first_page_has_all_the_time_of_its_call_and_the_next_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the machine took to get there: an error names the time that was given."""

    now = 10.0
    monkeypatch.setattr("anyio.current_time", lambda: now)
    left = _Left(0.3)
    now = 10.2
    assert left.seconds() == 0.3
    now = 10.4
    assert left.seconds() == pytest.approx(0.1)
    now = 10.6
    assert left.seconds() == 0.0
    assert _Left(None).seconds() is None
    with pytest.raises(LocalMisuse):
        _Left(-1.0)


def test_pages_share_the_time_of_their_call(backend: str) -> None:
    async def test(world: World) -> None:
        pages = 0

        def page(call: wire.CallBody) -> wire.ReplyBody | None:
            nonlocal pages
            pages += 1
            let_pass(0.1)
            line = wire.AccountLine(f"a{pages:05}", "CZK", 2, False, bytes(32), 0, bytes(32), 0, 0)
            return wire.Accounts((line,), True)

        async with world.client() as client:
            await connect(world, client)
            world.nodes[0].fault = page
            with pytest.raises(Unreachable):
                await client.all_accounts(timeout_s=0.5)
        assert pages == 5

    run(test, backend)


def test_a_node_is_given_a_little_less_than_what_is_left(backend: str) -> None:
    """So that its own answer arrives in time."""

    async def test(world: World) -> None:
        async with world.client() as client:
            for name in ("balance", "transfer", "change"):
                await CALLS[name](client, 2.0)
        for call in world.nodes[0].calls:
            assert isinstance(call, wire.AskBalance | wire.Submit | wire.SubmitChange)
            assert 0 < call.timeout_ms <= 1800

    run(test, backend)


def test_a_request_in_doubt_is_followed_when_its_node_is_back(backend: str) -> None:
    """No other node can be reached meanwhile; one that was handed to nobody would be `Unreachable` at once."""

    async def test(world: World) -> None:
        (node,) = world.nodes
        lost = anyio.Event()

        def fault(call: wire.CallBody) -> Drop | None:
            if lost.is_set() or not isinstance(call, wire.Submit):
                return None
            lost.set()
            return Drop(after=True)

        node.fault = fault
        answers: list[object] = []

        async def pay(client: Client) -> None:
            answers.append(await client.submit(world.payment(), timeout_s=15))

        async with anyio.create_task_group() as tasks, world.client() as client:
            async with anyio.create_task_group() as payer:
                payer.start_soon(pay, client)
                await lost.wait()
                node.stop()
                await anyio.sleep(0.3)  # some rounds in which nobody is there
                assert not answers
                await tasks.start(node.serve)
            tasks.cancel_scope.cancel()
        assert isinstance(answers[0], Recorded) and answers[0].repeated

    run(test, backend)


@pytest.mark.parametrize("timeout_s", [-1, float("inf"), float("nan"), 1e9, "1"], ids=str)
def test_what_is_no_time_is_named_by_every_call_and_nothing_is_sent(backend: str, timeout_s: float) -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            for call in CALLS.values():
                with pytest.raises(LocalMisuse, match=f"timeout_s='?{timeout_s}'?: give seconds, 0 to 86400"):
                    await call(client, timeout_s)
        assert world.nodes[0].connections == 0

    run(test, backend)


def test_no_time_is_no_call_of_any_kind(backend: str) -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            await connect(world, client)
            for call in ASKING.values():
                with pytest.raises(Unreachable, match="there was no time to try any"):
                    await call(client, 0)
            assert world.nodes[0].calls == []

    run(test, backend)


# --- changes of the members ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", ["refuses", "is down"])
def test_a_change_whose_node_is_lost_is_unknown_whatever_another_would_say(backend: str, second: str) -> None:
    async def test(world: World) -> None:
        change = SignedChange(b"change", b"signature")
        world.nodes[0].fault = only(wire.SubmitChange, Drop())
        if second == "is down":
            world.nodes[1].stop()
        async with world.client() as client:
            answer = await client.change(change)
        assert isinstance(answer, Unknown) and answer.request_id == change_id(change.raw)
        assert "had the change and closed the connection" in answer.reason
        assert world.nodes[1].calls == []

    run(test, backend, 2)


def test_a_change_goes_on_while_it_was_not_handed_over(backend: str) -> None:
    async def test(world: World) -> None:
        world.nodes[0].stop()
        async with world.client() as client:
            answer = await client.change(SignedChange(b"change", b"signature"))
        assert isinstance(answer, wire.Refused) and answer.code == "bad_change"

    run(test, backend, 2)


def test_a_change_that_is_answered_with_something_else_is_unknown(backend: str) -> None:
    async def test(world: World) -> None:
        world.nodes[0].fault = only(wire.SubmitChange, NotFound("?"))
        async with world.client() as client:
            answer = await client.change(SignedChange(b"change", b"signature"))
        assert isinstance(answer, Unknown) and "it answered NotFound to SubmitChange" in answer.reason

    run(test, backend)

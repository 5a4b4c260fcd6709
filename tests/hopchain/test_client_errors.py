"""What a client raises: `ClientError` for what is nobody's mistake here, `LocalMisuse` with the value for what is."""

import ssl
from collections.abc import Callable

import anyio
import anyio.abc
import pytest

from chain.errors import LocalMisuse
from chain.request import SignedRequest
from hopchain import Client, ClientError, Refused, Timing, Unreachable, wire
from hopchain.addresses import Address, checked_address
from hopchain.connection import ConnectionFailed, client_context, connect, shown_s
from tests.hopchain.fake_node import Hang, shared_ca
from tests.hopchain.test_client import BACKENDS, World, run
from tests.ports import take

NETWORK = bytes(32)
NODE = ("127.0.0.1", 7402)
NO_ADDRESS = {
    "text": ("127.0.0.1:7402", "give \\(host, client port\\)"),
    "name": ("node-1", "'node-1' is no address"),
    "port as text": (("127.0.0.1", "7402"), "'7402'\\) is no address"),
    "no port": (("127.0.0.1",), "is no address"),
    "nothing": (None, "None is no address"),
    "port 0": (("127.0.0.1", 0), "port 0 of 127.0.0.1: a port is 1 to 65535"),
    "port 70000": (("127.0.0.1", 70000), "port 70000 of 127.0.0.1"),
    "port as bool": (("127.0.0.1", True), "True\\) is no address"),
    "empty host": (("", 7402), "'' is no host"),
    "dots": (("foo..bar", 7402), "'foo..bar' is no host"),
    "zero byte": (("a\0b", 7402), "is no host"),
    "space": (("a b", 7402), "is no host"),
    "long": (("a." * 200, 7402), "is no host"),
}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- what the caller gives -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "says"), NO_ADDRESS.values(), ids=NO_ADDRESS)
def test_what_is_no_address_is_named(given: object, says: str) -> None:
    with pytest.raises(LocalMisuse, match=says):
        Client([NODE, given], shared_ca().pem, NETWORK)  # type: ignore[list-item]


@pytest.mark.parametrize(("given", "says"), [v for v in NO_ADDRESS.values() if v[0] is not None])
def test_what_no_call_can_be_pinned_to_is_named(backend: str, given: object, says: str) -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            for call in (client.status, lambda at: client.submit(world.payment(), at=at)):
                with pytest.raises(LocalMisuse, match=says):
                    await call(at=given)
        assert world.nodes[0].connections == 0

    run(test, backend)


def test_addresses_look_as_people_write_them() -> None:
    assert str(checked_address(("::1", 1))) == "[::1]:1"
    assert str(checked_address(["127.0.0.1", 65535])) == "127.0.0.1:65535"
    assert checked_address(("example.org", 80)) == Address("example.org", 80) == ("example.org", 80)


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (bytes(31), "bytes of 31: a network id has 32 bytes"),
        (bytes(32).hex(), "network is text .*bytes.fromhex"),
        (None, "NoneType: a network id has 32 bytes"),
    ],
)
def test_what_is_no_network_id_is_named(network: bytes, says: str) -> None:
    with pytest.raises(LocalMisuse, match=says):
        Client([NODE], shared_ca().pem, network)


@pytest.mark.parametrize("ca", ["", "junk", "/etc/ca.crt", b"bytes", None])
def test_what_is_no_certificate_says_what_to_give(ca: str) -> None:
    with pytest.raises(LocalMisuse, match="give the text of the CA's certificate"):
        Client([NODE], ca, NETWORK)


@pytest.mark.parametrize("name", ["dial_s", "ping_after_s", "dead_after_s", "read_s"])
@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan"), 0])
def test_what_is_no_patience_is_named(name: str, value: float) -> None:
    if (name, value) == ("read_s", 0):  # a question that nobody has time for is a question
        Client([NODE], shared_ca().pem, NETWORK, timing=Timing(read_s=0))
        return
    with pytest.raises(LocalMisuse, match=f"Timing.{name}={value}"):
        Client([NODE], shared_ca().pem, NETWORK, timing=Timing(**{name: value}))


WRONG: dict[str, tuple[Callable[[Client], object], str]] = {
    "no row of a chain": (lambda c: c.chain("alice", 0, 0), "limit=0: it is 1 or more"),
    "fewer rows than none": (lambda c: c.chain("alice", 0, -5), "limit=-5"),
    "links before the first": (lambda c: c.chain("alice", -1), "from_height=-1: it is 0 or more"),
    "no row of accounts": (lambda c: c.accounts(limit=0), "limit=0"),
    "hex for an id": (lambda c: c.outcome("ab" * 32), "AskOutcome cannot be sent.*Expected `bytes`, got `str`$"),
    "bytes for a name": (lambda c: c.balance(b"alice"), "AskBalance cannot be sent.*Expected `str`, got `bytes`$"),
    "half a height": (lambda c: c.balance("alice", min_height=1.5), "AskBalance cannot be sent"),
    "a huge height": (lambda c: c.balance("alice", min_height=2**70), "AskBalance cannot be sent"),
    "a huge name": (lambda c: c.balance("a" * 5_000_000), "of 50000.. bytes cannot be sent: at most 4194304"),
    "a name of half a character": (lambda c: c.chain("\ud800"), "AskChain cannot be sent"),
    "text for a request": (lambda c: c.submit(SignedRequest("raw", b"")), "Submit cannot be sent"),
    "text for a signature": (lambda c: c.submit(SignedRequest(b"raw", "")), "Submit cannot be sent"),
}


@pytest.mark.parametrize(("call", "says"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_sent_is_named_and_the_connection_stays(backend: str, call: Callable, says: str) -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            await client.status()
            with pytest.raises(LocalMisuse, match=says):
                await call(client)
            await client.status()
        assert world.nodes[0].connections == 1

    run(test, backend)


def test_a_client_is_opened_once_at_a_time(backend: str) -> None:
    async def test(world: World) -> None:
        client = world.client()
        for _ in range(2):
            async with client:
                with pytest.raises(LocalMisuse, match="open already"):
                    await client.__aenter__()
                await client.status()
        assert world.nodes[0].connections == 2

    run(test, backend)


# --- what is nobody's mistake here ---------------------------------------------------------------------------------


def test_nobody_listens_and_nobody_answers_are_two_messages(backend: str) -> None:
    async def test(world: World) -> None:
        world.nodes[0].network = b"o" * 32
        (free,) = take(1)
        async with world.client() as client:
            with pytest.raises(ClientError, match=r"no node answered \(1 tried\).*of another network.*doctor") as told:
                await client.status()
            assert isinstance(told.value, Unreachable) and told.value.reached and "hopchain up" not in str(told.value)
            with pytest.raises(ClientError, match=r"no node could be reached \(1 tried\).*`hopchain up DIR`") as told:
                await client.status(at=("127.0.0.1", free))
            assert isinstance(told.value, Unreachable) and not told.value.reached
            ((_, why),) = told.value.tried
            assert why == "cannot be reached (Connection refused)"

    run(test, backend)


@pytest.mark.parametrize("ends", [(111, 111), (113, 111), (None, 111)])
def test_why_none_of_a_hosts_addresses_can_be_reached(
    backend: str, ends: tuple[int | None, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reason once, as people know it, and not the words of the library that tried them."""

    async def connect_tcp(host: str, port: int) -> None:
        tries = [OSError(number, f"Connect call failed ('{host}', 1)") if number else OSError("odd") for number in ends]
        raise OSError("All connection attempts failed") from ExceptionGroup("multiple failures", tries)

    async def main() -> None:
        with pytest.raises(ConnectionFailed) as caught:
            await connect("host", 1, context=client_context(shared_ca().pem), network=NETWORK)
        reasons = {(111, 111): "Connection refused", (113, 111): "No route to host, Connection refused"}
        assert caught.value.cause == f"cannot be reached ({reasons.get(ends, 'odd, Connection refused')})"

    monkeypatch.setattr(anyio, "connect_tcp", connect_tcp)
    anyio.run(main, backend=backend)


def test_nodes_that_fail_alike_are_told_together() -> None:
    tried = [("a:1", "refused"), ("b:1", "silent"), ("c:1", "refused")]
    assert "(3 tried): a:1, c:1: refused; b:1: silent. " in str(Unreachable(tried))


def test_each_node_is_named_once_with_what_went_wrong_last() -> None:
    tried = [(f"node-{number % 7}", f"why {number}") for number in range(21)]
    text = str(Unreachable(tried))
    assert "`hopchain up DIR`" in text and "`hopchain up 'my net'`" in Unreachable(tried).told("'my net'")
    assert "(7 tried): node-2: why 16; node-3: why 17; node-4: why 18; node-5: why 19; node-6: why 20. " in text


def test_a_refused_question_is_a_client_error(backend: str) -> None:
    async def test(world: World) -> None:
        world.nodes[0].fault = lambda call: Refused("busy", "ask again")
        async with world.client() as client:
            with pytest.raises(ClientError, match="ask again"):
                await client.status()

    run(test, backend)


def test_a_node_that_hangs_up_at_once_is_there_but_busy(backend: str) -> None:
    async def main() -> None:
        async def hang_up(stream: anyio.abc.SocketStream) -> None:
            await stream.aclose()

        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, hang_up)
            context = client_context(shared_ca().pem)
            with anyio.fail_after(10), pytest.raises(ConnectionFailed, match="it may be busy: try again") as caught:
                await connect("127.0.0.1", port, context=context, network=NETWORK)
            assert caught.value.cause == "closed the connection before it had said who it is"
            assert caught.value.reached
            tasks.cancel_scope.cancel()
        await listener.aclose()

    anyio.run(main, backend=backend)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0 s"), (0.00046, "0.0005 s"), (0.05, "0.05 s"), (3.249, "3.25 s"), (86_400, "86400 s")]
)
def test_a_short_time_is_not_shown_as_none(seconds: float, shown: str) -> None:
    assert shown_s(seconds) == shown


def test_who_closes_the_client_while_it_asks_is_told_that_and_nothing_of_the_network(backend: str) -> None:
    async def test(world: World) -> None:
        told: list[str] = []
        asked = anyio.Event()

        async def ask(client: Client) -> None:
            with pytest.raises(Unreachable) as caught:
                await client.status()
            told.append(str(caught.value))

        def mute(call: wire.CallBody) -> Hang:
            asked.set()
            return Hang()

        world.nodes[0].fault = mute
        async with anyio.create_task_group() as tasks, world.client() as client:
            tasks.start_soon(ask, client)
            await asked.wait()
        assert "the client was closed before any node answered" in told[0]
        assert "Keep it open until its calls have ended" in told[0]
        assert "doctor" not in told[0]

    run(test, backend)


def test_a_host_that_has_no_address_cannot_be_reached(backend: str) -> None:
    async def main() -> None:
        context = client_context(shared_ca().pem)
        with anyio.fail_after(10):
            with pytest.raises(ConnectionFailed, match=r"\[::1\]:1 cannot be reached") as caught:
                await connect("::1", 1, context=context, network=NETWORK)
            assert not caught.value.reached and caught.value.cause.startswith("cannot be reached (")
            assert "All connection attempts failed" not in caught.value.cause
            with pytest.raises(ConnectionFailed, match=r"foo\.\.bar:1 cannot be reached"):
                await connect("foo..bar", 1, context=context, network=NETWORK)

    anyio.run(main, backend=backend)


def test_the_context_is_that_of_tls_1_3() -> None:
    assert client_context(shared_ca().pem).minimum_version is ssl.TLSVersion.TLSv1_3


# --- which node is asked -------------------------------------------------------------------------------------------


def test_without_spread_the_node_that_answered_is_kept(backend: str) -> None:
    """The first of the list is down at first: it is not gone back to when it is up again."""

    async def test(world: World) -> None:
        first, second = world.nodes
        first.stop()
        await anyio.wait_all_tasks_blocked()
        async with world.client() as client, anyio.create_task_group() as tasks:
            await client.status()
            await tasks.start(first.serve)
            await client.status(at=first.address)
            for _ in range(3):
                await client.status()
            assert await client.submit(world.payment())
            assert (len(first.calls), len(second.calls)) == (1, 5)
            second.stop()
            await client.status()
            assert len(first.calls) == 2
            tasks.cancel_scope.cancel()

    run(test, backend, 2)


def test_pinned_nodes_are_kept_only_while_they_are_connected(backend: str) -> None:
    async def test(world: World) -> None:
        listed, other = world.nodes
        async with Client([listed.address], shared_ca().pem, world.genesis.network_id) as client:
            for port in take(20):
                with pytest.raises(Unreachable):
                    await client.status(at=("127.0.0.1", port))
            assert list(client._nodes._pinned) == []
            for _ in range(3):
                await client.status(at=other.address)
            assert list(client._nodes._pinned) == [other.address]
            assert other.connections == 1
            other.stop()
            with anyio.fail_after(5):
                while client._nodes._pinned:  # noqa: ASYNC110 (a connection's end is not announced)
                    await anyio.sleep(0.01)
            assert wire.AskStatus() in other.calls

    run(test, backend, 2)


def test_a_call_that_goes_on_after_the_client_closed_dials_nobody(backend: str) -> None:
    """Its connections may end later than it is closed."""

    async def test(world: World) -> None:
        client = world.client()
        async with client:
            for node in world.nodes:
                await client.status(at=node.address)
            one, other = client._nodes.take_turn()
            assert other.connection is not None
            other.connection.lose("was lost")
            other.failed()
            other.rest_until = 0.0
            tasks, client._nodes._tasks = client._nodes._tasks, None
            try:
                assert client._nodes.take_turn() == [one, other]
                assert other.dial is None
            finally:
                client._nodes._tasks = tasks

    run(test, backend, 2)

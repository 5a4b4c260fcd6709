"""The client port: what a stranger may do, and that what it does ends its own session and nothing else."""

import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import msgspec
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from chain.errors import MAX_TEXT_CHARS, RemoteFault
from hopchain import connection, wire
from hopchain.connection import ConnectionFailed, client_context, connect
from hopchain.framing import frame
from node import client_port
from node.accepting import HANDSHAKE_S, MAX_HANDSHAKES, PATIENCE_S, Strangers, origin
from node.channel import BURST_S, CLOSE_S, FLUSH_S, Channel
from node.client_port import CLIENT_QUEUE_BYTES, HELD_BYTES, IDLE_S, ClientServer, Session
from node.hello import MAX_HELLO_BYTES
from node.layout import Network
from node.running import RunningNode
from node.tls import start_tls
from tests.node.driving import Rig
from tests.node.wires import HOST, Certified, MemoryNetwork, certified, new_layout
from tests.ports import take

PORT = 7
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return new_layout(tmp_path_factory.mktemp("one") / "net", 1)


@pytest.fixture(scope="module")
def node(layout: Network) -> Certified:
    return certified(layout)[0]


@pytest.fixture(scope="module")
def tls(layout: Network) -> ssl.SSLContext:
    return client_context(layout.genesis.ca)


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


class Echo:
    """A server that answers each frame with itself, unless `handle` does something else first."""

    def __init__(
        self,
        node: Certified,
        network: MemoryNetwork | None,
        *,
        max_sessions: int = 512,
        held_bytes: int = HELD_BYTES,
        max_handshakes: int = MAX_HANDSHAKES,
    ) -> None:
        self.closed: list[int] = []
        self.handle: Callable[[Session, bytes], trio.Event | None] = lambda session, payload: None
        self.silent = False
        self.seen: list[bytes] = []
        self.sessions: list[Session] = []
        self.server = ClientServer(
            network_id=node.network,
            node_id=node.id,
            context=node.contexts.serve,
            handler=self._handler,
            on_close=lambda session: self.closed.append(session.number),
            host=HOST if network else "127.0.0.1",
            port=PORT if network else 0,
            network=network,
            max_sessions=max_sessions,
            held_bytes=held_bytes,
            max_handshakes=max_handshakes,
        )

    async def _handler(self, session: Session, payload: bytes) -> None:
        self.seen.append(payload)
        self.sessions.append(session)
        gate = self.handle(session, payload)
        if gate is not None:
            await gate.wait()
        if not self.silent:
            session.send_nowait(payload)


@asynccontextmanager
async def serving(echo: Echo) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(echo.server.run)
        nursery.cancel_scope.cancel()


async def dial(network: MemoryNetwork, tls: ssl.SSLContext) -> Channel:
    secure = await start_tls(await network.connect(HOST, PORT), tls, server=False)
    return Channel(secure, frame_limit=wire.MAX_CLIENT_FRAME_BYTES, queue_bytes=CLIENT_QUEUE_BYTES)


async def enter(network: MemoryNetwork, tls: ssl.SSLContext, node: Certified) -> Channel:
    channel = await dial(network, tls)
    await channel.send(wire.encode(wire.Hello(wire.PROTOCOL_VERSION, node.network)))
    assert await hello(channel) == wire.Hello(wire.PROTOCOL_VERSION, node.network, node.id)
    return channel


async def hello(channel: Channel) -> wire.NodeFrame:
    return wire.decode_node_frame_untrusted(await channel.receive() or b"")


async def refusal(channel: Channel) -> wire.Refused:
    answer = wire.decode_node_frame_untrusted(await channel.receive() or b"")
    assert isinstance(answer, wire.Refused)
    return answer


async def serves_still(network: MemoryNetwork, tls: ssl.SSLContext, node: Certified) -> None:
    channel = await enter(network, tls, node)
    await channel.send(b"fine")
    assert await channel.receive() == b"fine"
    await channel.aclose()


# --- the public client's connection, over real TCP ---


async def converse(port: int, tls: ssl.SSLContext, network_id: bytes, node_id: bytes) -> None:
    conn = await connect("127.0.0.1", port, context=tls, network=network_id)
    assert conn.node_id == node_id
    large = random.Random(5).randbytes(wire.MAX_CLIENT_FRAME_BYTES)
    for payload in (b"hello", large):
        await conn.send(payload)
        assert await conn.receive() == payload
    with pytest.raises(AssertionError, match="a frame of 4194305 bytes"):
        await conn.send(large + b"x")
    await conn.aclose()
    with pytest.raises(ConnectionFailed, match="lost the connection; try another node"):
        await conn.send(b"x")
    with pytest.raises(ConnectionFailed, match="closed the connection; try another node"):
        await conn.receive()
    with pytest.raises(ConnectionFailed, match="refused the connection: the client wants network 01010101") as caught:
        await connect("127.0.0.1", port, context=tls, network=b"\x01" * 32)
    assert caught.value.reached and "[network]" in caught.value.cause


async def test_a_client_on_trio(node: Certified, tls: ssl.SSLContext) -> None:
    echo = Echo(node, None)
    with trio.fail_after(30):
        async with serving(echo) as port:
            await converse(port, tls, node.network, node.id)
            await echo.server.aclose()
    assert echo.closed == [1]


async def test_a_client_on_asyncio(node: Certified, tls: ssl.SSLContext) -> None:
    echo = Echo(node, None)
    with trio.fail_after(30):
        async with serving(echo) as port:
            await trio.to_thread.run_sync(
                lambda: anyio.run(converse, port, tls, node.network, node.id, backend="asyncio")
            )


async def test_a_node_of_another_ca_is_unreachable(node: Certified, tmp_path: Path) -> None:
    foreign = client_context(new_layout(tmp_path / "net", 1).genesis.ca)
    async with serving(Echo(node, None)) as port:
        with pytest.raises(ConnectionFailed, match="not a client port of this network"):
            await connect("127.0.0.1", port, context=foreign, network=node.network)


async def test_nobody_there_is_unreachable(node: Certified, tls: ssl.SSLContext) -> None:
    (port,) = take(1)
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    with pytest.raises(ConnectionFailed, match=f"127.0.0.1:{port} did not answer in 0.05 s"):
        await connect("127.0.0.1", port, context=tls, network=node.network, timeout_s=0.05)
    await listeners[0].aclose()
    with pytest.raises(ConnectionFailed, match="cannot be reached"):
        await connect("127.0.0.1", port, context=tls, network=node.network)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"\xc1", "cannot be read"),
        (wire.encode(wire.Reply(1, wire.NotFound("x"))), "did not begin with a hello"),
        (wire.encode(wire.Hello(2, bytes(32))), "speaks version 2, this client 1"),
        (wire.encode(wire.Hello(1, b"\x01" * 32)), "is of network 01010101"),
    ],
)
def test_a_wrong_hello_of_the_node_is_a_remote_fault(answer: bytes, says: str) -> None:
    with pytest.raises(RemoteFault, match=says):
        connection._check_hello_untrusted(answer, bytes(32))


@pytest.mark.parametrize(
    "answer", [b"\x91\xda\xff\xff" + b"x" * 65535, wire.encode(wire.Refused("c" * 65535, "r" * 65535))]
)
def test_what_a_wrong_hello_says_is_cut(answer: bytes) -> None:
    with pytest.raises(RemoteFault) as caught:
        connection._check_hello_untrusted(answer, bytes(32))
    assert len(str(caught.value)) < 3 * MAX_TEXT_CHARS


@pytest.mark.parametrize("said", [b"", b"i" * 19, b"i" * 20, b"i" * 21])
def test_a_hello_names_the_node_or_nobody(said: bytes) -> None:
    answer = wire.encode(wire.Hello(1, bytes(32), said))
    assert connection._check_hello_untrusted(answer, bytes(32)) == (said if len(said) == 20 else b"")


async def test_hellos_without_an_id_are_those_of_an_earlier_release(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    earlier = msgspec.msgpack.encode(["hello", 1, node.network])
    assert connection._check_hello_untrusted(earlier, node.network) == b""
    async with serving(Echo(node, network)):
        channel = await dial(network, tls)
        await channel.send(earlier)
        assert await hello(channel) == wire.Hello(1, node.network, node.id)
        await channel.aclose()

    class Earlier(msgspec.Struct, array_like=True, tag="hello"):
        version: int
        network: bytes

    now = wire.encode(wire.Hello(1, node.network, node.id))
    assert msgspec.msgpack.decode(now, type=Earlier) == Earlier(1, node.network), "it reads those of this one, too"


# --- sessions ---


async def test_sessions_are_numbered_counted_and_closed_once(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    echo = Echo(node, network)
    async with serving(echo):
        first, second = [await enter(network, tls, node) for _ in range(2)]
        for channel in (first, second):
            await channel.send(b"x")
            assert await channel.receive() == b"x"
        assert [session.number for session in echo.sessions] == [1, 2]
        assert echo.server.sessions == 2
        await first.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert echo.closed == [1]
        assert echo.server.sessions == 1
        assert not echo.sessions[0].send_nowait(b"too late")
        assert echo.server.counters["closed.closed"] == 1
        echo.sessions[1].close("drained", "the node says so")
        assert await second.receive() is None
    assert echo.closed == [1, 2]
    assert echo.server.counters["closed.drained"] == 1


@pytest.mark.parametrize("greedy", [1, 8])
async def test_frames_that_arrive_together_let_others_run(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, mock_clock: MockClock, greedy: int
) -> None:
    """However many connections send them, of frames that are answered without waiting about BURST_S go before all
    others run."""
    echo = Echo(node, network)
    calls, burst = 200, 4

    def work(session: Session, payload: bytes) -> None:
        mock_clock.jump(1.01 * BURST_S / burst)

    async with serving(echo):
        channels = [await enter(network, tls, node) for _ in range(greedy)]
        await trio.testing.wait_all_tasks_blocked()
        echo.handle = work
        for channel in channels:
            await channel._stream.send_all(frame(bytes(8)) * calls)
        between: list[int] = []
        while len(echo.seen) < greedy * calls:
            before = len(echo.seen)
            await trio.lowlevel.checkpoint()
            between.append(len(echo.seen) - before)
        begin, on = between[:5], between[5:]  # between two runs of this task are one or two passes of the scheduler
        assert max(begin) <= 2 * burst * greedy, "all of them begin in one pass"
        assert max(on) <= 2 * burst, "one of them goes on in each"
        middle = Counter(session.number for session in echo.sessions[greedy * calls // 4 : greedy * calls // 2])
        assert len(middle) == greedy and max(middle.values()) - min(middle.values()) <= 2 * burst, "each has its turn"


async def test_frames_that_arrive_together_and_wait_for_the_node_are_not_parted(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, mock_clock: MockClock
) -> None:
    """Requests that come together become one link."""
    echo = Echo(node, network)
    async with serving(echo):
        channel = await enter(network, tls, node)
        await trio.testing.wait_all_tasks_blocked()
        echo.silent = True
        echo.handle = lambda session, payload: mock_clock.jump(BURST_S)
        await channel._stream.send_all(frame(bytes(8)) * 200)
        while not echo.seen:
            await trio.lowlevel.checkpoint()
        assert len(echo.seen) == 200


async def test_the_handler_is_back_pressure(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    echo = Echo(node, network)
    gate = trio.Event()
    echo.handle = lambda session, payload: gate
    async with serving(echo):
        channel = await enter(network, tls, node)
        for payload in (b"1", b"2"):
            await channel.send(payload)
        await trio.testing.wait_all_tasks_blocked()
        assert echo.seen == [b"1"]
        gate.set()
        assert [await channel.receive(), await channel.receive()] == [b"1", b"2"]


async def test_a_slow_consumer_is_disconnected_and_others_are_not(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    echo = Echo(node, network)
    async with serving(echo):
        slow, well = [await enter(network, tls, node) for _ in range(2)]
        network.accepted[0].send_all_hook = trio.sleep_forever
        await slow.send(b"x")
        await well.send(b"x")
        assert await well.receive() == b"x"
        await trio.testing.wait_all_tasks_blocked()
        session = next(session for session in echo.sessions if session.number == 1)
        answer = bytes(1024 * 1024)
        sent = [session.send_nowait(answer) for _ in range(12)]
        assert sent == [True] * 7 + [False] * 5
        await trio.sleep(1)
        assert echo.server.counters["closed.slow_consumer"] == 1
        assert echo.closed == [1]
        await well.send(b"y")
        assert await well.receive() == b"y"


async def test_aclose_sends_the_answers_that_are_queued_and_no_answer_is_too_large(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    echo = Echo(node, network)
    async with serving(echo):
        channel = await enter(network, tls, node)
        await channel.send(b"x")
        assert await channel.receive() == b"x"
        with pytest.raises(AssertionError):
            echo.sessions[0].send_nowait(bytes(wire.MAX_CLIENT_FRAME_BYTES + 1))
        answers = [bytes([number]) * 500_000 for number in range(8)]
        for answer in answers:
            echo.sessions[0].send_nowait(answer)
        assert echo.sessions[0].queued > 0
        await echo.server.aclose()
        assert [await channel.receive() for _ in answers] == answers
        assert await channel.receive() is None
        assert echo.closed == [1]
        await echo.server.aclose()


async def test_aclose_waits_no_longer_than_a_bound(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    echo = Echo(node, network)
    async with serving(echo):
        channel = await enter(network, tls, node)
        network.accepted[0].send_all_hook = trio.sleep_forever
        await channel.send(b"x")
        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
        await echo.server.aclose()
        assert FLUSH_S <= trio.current_time() - started < 2 * FLUSH_S


async def test_cancellation_is_not_swallowed(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    echo = Echo(node, network)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(echo.server.run)
            await enter(network, tls, node)
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert echo.closed == [1]


async def test_a_bug_in_the_handler_stops_the_node(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    echo = Echo(node, network)

    def bug(session: Session, payload: bytes) -> None:
        raise ZeroDivisionError

    echo.handle = bug
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with serving(echo):
            await (await enter(network, tls, node)).send(b"x")
            await trio.sleep_forever()


# --- strangers ---


async def test_a_fault_is_told_to_the_client_and_ends_its_session_only(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    echo = Echo(node, network)

    def refuse(session: Session, payload: bytes) -> None:
        raise RemoteFault("malformed", "no call at all")

    async with serving(echo):
        well = await enter(network, tls, node)
        channel = await enter(network, tls, node)
        echo.handle = refuse
        await channel.send(b"junk")
        assert await refusal(channel) == wire.Refused("malformed", "no call at all")
        assert await channel.receive() is None
        echo.handle = lambda session, payload: None
        await trio.testing.wait_all_tasks_blocked()
        assert echo.closed == [2]
        assert echo.server.counters["closed.malformed"] == 1
        await well.send(b"y")
        assert await well.receive() == b"y"


def sized(head: bytes, byte: bytes = b"x") -> bytes:
    """The longest frame that a client may send: `head`, a text of 4 bytes of length, and nothing else."""
    left = wire.MAX_CLIENT_FRAME_BYTES - len(head) - 5
    return head + b"\xdb" + left.to_bytes(4, "big") + byte * left


LARGE = {
    "a tag": sized(b"\x91"),
    "a tag of nothing printable": sized(b"\x91", b"\0"),
    "a tag in a call": sized(b"\x93\xa4call\x01\x91"),
    "a number": sized(b"\x93\xa4call"),
    "a body": sized(b"\x93\xa4call\x01"),
    "an account": sized(b"\x93\xa4call\x01\x92\xa7balance"),
    "a height": sized(b"\x93\xa4call\x01\x94\xa5chain\xa1a"),
    "bytes": sized(b"\x93\xa4call\x01\x93\xa7outcome"),
    "no UTF-8": sized(b"\x91", b"\xff"),
    "no array": sized(b""),
    "a hello": wire.encode(wire.Hello(1, bytes(wire.MAX_CLIENT_FRAME_BYTES - 15))),
    "depth": b"\x91" * wire.MAX_CLIENT_FRAME_BYTES,
    "width": b"\xdd\xff\xff\xff\xff" + b"\x01" * (wire.MAX_CLIENT_FRAME_BYTES - 5),
    "zeros": bytes(wire.MAX_CLIENT_FRAME_BYTES),
    "more than said": wire.encode(wire.Call(1, wire.AskStatus())).ljust(wire.MAX_CLIENT_FRAME_BYTES, b"x"),
}


class Reading(Echo):
    """A server that reads its frames as a node does, and has questions of names, ids and keys judged."""

    async def _handler(self, session: Session, payload: bytes) -> None:
        rig = Rig()
        rig.driver.calls.remove_session(rig.session)
        node: Any = SimpleNamespace(driver=rig.driver)
        node._on_call = lambda session, call, size: RunningNode._on_call(node, session, call, size)
        await RunningNode._on_client_frame(node, session, payload)


@pytest.mark.parametrize("payload", LARGE.values(), ids=LARGE)
async def test_no_frame_however_large_ends_the_port(
    payload: bytes, node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    """What a decoder says of a frame quotes it: some MiB of text are more than a frame of the node may have."""
    assert len(payload) <= wire.MAX_CLIENT_FRAME_BYTES
    async with serving(Reading(node, network)):
        for _ in range(2):
            channel = await enter(network, tls, node)
            await channel.send(payload)
            answer = wire.decode_node_frame_untrusted(await channel.receive() or b"")
            refused = answer.body if isinstance(answer, wire.Reply) else answer
            assert isinstance(refused, wire.Refused)
            assert len(refused.reason) <= 2 * MAX_TEXT_CHARS
            await channel.aclose()


@pytest.mark.parametrize("head", [b"\x91", b"\x94\xa5hello", b"\x93\xa5hello\x01"])
async def test_a_hello_that_is_one_long_text_is_refused_with_a_short_one(
    head: bytes, node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    left = MAX_HELLO_BYTES - len(head) - 3
    async with serving(Echo(node, network)):
        channel = await dial(network, tls)
        await channel.send(head + b"\xda" + left.to_bytes(2, "big") + b"x" * left)
        assert len((await refusal(channel)).reason) <= 2 * MAX_TEXT_CHARS
        await channel.aclose()
        await (await enter(network, tls, node)).aclose()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (RemoteFault("malformed", "half a character: \ud800"), wire.Refused("malformed", "half a character: ?")),
        (RemoteFault("x" * 5 * MIB, "its code is as long as that"), None),
    ],
    ids=["no UTF-8", "too long"],
)
async def test_a_fault_that_no_frame_can_tell_ends_its_session_only(
    fault: RemoteFault,
    told: wire.Refused | None,
    node: Certified,
    tls: ssl.SSLContext,
    network: MemoryNetwork,
    autojump_clock: MockClock,
) -> None:
    echo = Echo(node, network)

    def refuse(session: Session, payload: bytes) -> None:
        raise fault

    async with serving(echo):
        channel = await enter(network, tls, node)
        echo.handle = refuse
        await channel.send(b"junk")
        payload = await channel.receive()
        assert (None if payload is None else wire.decode_node_frame_untrusted(payload)) == told
        await channel.aclose()
        echo.handle = lambda session, payload: None
        await serves_still(network, tls, node)


async def test_a_farewell_is_not_cut_by_answers_that_come_too_late(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    echo = Echo(node, network)

    def refuse(session: Session, payload: bytes) -> None:
        raise RemoteFault("malformed", "no call at all")

    async with serving(echo):
        channel = await enter(network, tls, node)
        gate = trio.Event()
        network.accepted[0].send_all_hook = gate.wait
        echo.handle = refuse
        await channel.send(b"junk")
        await trio.testing.wait_all_tasks_blocked()
        assert not echo.sessions[0].send_nowait(b"an answer that is ready now")
        gate.set()
        assert await refusal(channel) == wire.Refused("malformed", "no call at all")
        assert await channel.receive() is None
        await trio.testing.wait_all_tasks_blocked()
        assert echo.server.counters["closed.malformed"] == 1


async def test_an_oversize_frame_is_refused_by_its_header(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    echo = Echo(node, network)
    async with serving(echo):
        channel = await enter(network, tls, node)
        await channel._stream.send_all((wire.MAX_CLIENT_FRAME_BYTES + 1).to_bytes(4))
        assert (await refusal(channel)).code == "oversize"
        assert await channel.receive() is None
        assert echo.seen == []
        await serves_still(network, tls, node)


async def test_a_cut_frame_is_counted(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    echo = Echo(node, network)
    async with serving(echo):
        channel = await enter(network, tls, node)
        await channel._stream.send_all(frame(b"hello")[:6])
        await channel.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert echo.server.counters["closed.cut_frame"] == 1
        await serves_still(network, tls, node)


BAD_HELLOS = [
    ("version", wire.encode(wire.Hello(2, bytes(32))), "the client speaks version 2, this node 1"),
    ("network", wire.encode(wire.Hello(1, bytes(32))), "use the directory or genesis.json of this network"),
    ("malformed", wire.encode(wire.Call(1, wire.AskStatus())), "the first frame must be a hello"),
    ("malformed", b"\xc1", "cannot be read"),
    ("malformed", b"\x91" * 3000, "cannot be read"),
    ("malformed", b"", "cannot be read"),
]


@pytest.mark.parametrize(("code", "payload", "says"), BAD_HELLOS)
async def test_a_wrong_hello_is_refused_with_its_reason(
    node: Certified,
    tls: ssl.SSLContext,
    network: MemoryNetwork,
    autojump_clock: MockClock,
    code: str,
    payload: bytes,
    says: str,
) -> None:
    echo = Echo(node, network)
    async with serving(echo):
        channel = await dial(network, tls)
        await channel.send(payload)
        refused = await refusal(channel)
        assert refused.code == code
        assert says in refused.reason
        assert await channel.receive() is None
        assert echo.server.counters[f"refused.{code}"] == 1
        assert echo.server.sessions == 0
        await serves_still(network, tls, node)
    assert echo.closed == [1]


async def test_frames_may_follow_the_hello_at_once_but_a_hello_is_small(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    echo = Echo(node, network)
    async with serving(echo):
        channel = await dial(network, tls)
        large = bytes(100_000)
        await channel._stream.send_all(frame(wire.encode(wire.Hello(1, node.network))) + frame(large))
        await channel.receive()
        assert await channel.receive() == large
        greedy = await dial(network, tls)
        await greedy._stream.send_all((5000).to_bytes(4))
        told = wire.decode_node_frame_untrusted(await greedy.receive() or b"")
        assert isinstance(told, wire.Refused)
        assert told.code == "oversize"
        assert await greedy.receive() is None
        assert echo.server.counters["refused.oversize"] == 1


async def test_when_it_is_full_the_next_client_is_told_so(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    echo = Echo(node, network, max_sessions=2)
    async with serving(echo):
        channels = [await dial(network, tls) for _ in range(5)]
        for channel in channels:
            await channel.send(wire.encode(wire.Hello(1, node.network)))
        answers = [wire.decode_node_frame_untrusted(await channel.receive() or b"") for channel in channels]
        assert sum(isinstance(answer, wire.Hello) for answer in answers) == 2
        assert {answer.code for answer in answers if isinstance(answer, wire.Refused)} == {"busy"}
        assert echo.server.counters["refused.busy"] == 3
        for channel in channels:
            await channel.aclose()
        await trio.testing.wait_all_tasks_blocked()
        await serves_still(network, tls, node)


async def test_garbage_and_silence_end_by_themselves(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    rng = random.Random(13)
    echo = Echo(node, network)
    async with serving(echo):
        for size in (0, 1, 300, 20_000):
            stream = await network.connect(HOST, PORT)
            if size:
                await stream.send_all(rng.randbytes(size))
                await stream.aclose()
        mute = await dial(network, tls)
        await trio.sleep(HANDSHAKE_S + 1)
        assert sum(count for key, count in echo.server.counters.items() if key.startswith("refused.")) == 5
        assert echo.server.counters["refused.timeout"] == 2
        assert await mute.receive() is None
        await serves_still(network, tls, node)


async def test_a_client_that_leaves_before_it_is_welcomed_leaves_no_session(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    echo = Echo(node, network)
    async with serving(echo):
        channel = await dial(network, tls)
        network.accepted[0].send_all_hook = trio.sleep_forever
        await channel.send(wire.encode(wire.Hello(1, node.network)))
        await trio.testing.wait_all_tasks_blocked()
        assert echo.server.sessions == 1
        await trio.sleep(HANDSHAKE_S + 1)
        assert echo.server.sessions == 0
        assert echo.server.counters["refused.timeout"] == 1
    assert echo.closed == []


async def test_a_client_that_says_nothing_but_goodbye(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    echo = Echo(node, network)
    async with serving(echo):
        channel = await dial(network, tls)
        await channel.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert echo.server.counters["refused.lost"] == 1
        await serves_still(network, tls, node)


async def test_handshakes_give_their_place_back(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    echo = Echo(node, network)
    async with serving(echo):
        for _ in range(MAX_HANDSHAKES):
            await (await network.connect(HOST, PORT)).aclose()
        with trio.fail_after(HANDSHAKE_S):
            await serves_still(network, tls, node)


# --- many strangers together ---


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where the next connections come from, in order; "memory" when it is empty."""
    waiting: list[str] = []
    monkeypatch.setattr(client_port, "remote_of", lambda stream: waiting.pop(0) if waiting else "memory")
    return waiting


async def come(network: MemoryNetwork, tls: ssl.SSLContext, node: Certified, addresses: list[str], who: str) -> Channel:
    addresses.append(who)
    return await enter(network, tls, node)


async def test_who_connects_and_says_nothing_keeps_nobody_out(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    echo = Echo(node, network)
    async with serving(echo):
        mute = [await network.connect(HOST, PORT) for _ in range(3 * MAX_HANDSHAKES)]
        await serves_still(network, tls, node)
        assert trio.current_time() <= 3 * PATIENCE_S
        assert echo.server.counters["refused.crowded"] >= 2 * MAX_HANDSHAKES
        assert await mute[0].receive_some() == b""


async def test_who_connects_faster_than_it_loses_places_keeps_nobody_out(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    echo = Echo(node, network, max_handshakes=8)
    async with serving(echo):
        mute = []
        for _ in range(500):  # in 5 s, of which 8 go in half a second when each is waited for
            mute.append(await network.connect(HOST, PORT))
            await trio.sleep(0.01)
        for _ in range(3):
            came = trio.current_time()
            await serves_still(network, tls, node)
            assert trio.current_time() - came <= PATIENCE_S


async def test_an_address_is_waited_for_again_when_its_handshakes_end_well(autojump_clock: MockClock) -> None:
    strangers = Strangers(2)
    waited: list[float] = []
    ended: list[str] = []

    async def stay(remote: str, task_status: trio.TaskStatus[None]) -> None:
        try:
            with strangers.handshake(remote):
                task_status.started()
                await trio.sleep_forever()
        except RemoteFault:
            ended.append(remote)

    async with trio.open_nursery() as nursery:

        async def come(remote: str) -> None:
            came = trio.current_time()
            await strangers.wait_for_place()
            waited.append(trio.current_time() - came)
            await nursery.start(stay, remote)

        for _ in range(5):
            await come("1")
        assert waited == [0, 0, PATIENCE_S, 0, 0], "it has lost a place: half of them"
        for _ in range(strangers._most):
            with strangers.handshake("1"):
                pass
        await come("1")
        assert waited[-1] == PATIENCE_S
        nursery.cancel_scope.cancel()
    assert ended == ["1"] * 4


async def test_addresses_that_lost_places_are_not_remembered_without_end(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Strangers, "MAX_KNOWN", 3)
    strangers = Strangers(1)

    async def stay(remote: str, task_status: trio.TaskStatus[None]) -> None:
        with suppress(RemoteFault), strangers.handshake(remote):
            task_status.started()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for number in range(8):
            await strangers.wait_for_place()
            await nursery.start(stay, f"10.0.0.{number}")
            assert len(strangers._lost) <= 3
        nursery.cancel_scope.cancel()


async def test_of_many_who_come_at_once_each_has_its_turn(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    echo = Echo(node, network, max_handshakes=2)
    async with serving(echo):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(enter, network, tls, node)
        assert echo.server.sessions == 20


async def test_the_address_with_most_handshakes_gives_way_to_another(autojump_clock: MockClock) -> None:
    strangers = Strangers(4)
    ended: list[str] = []

    async def stay(name: str, remote: str, task_status: trio.TaskStatus[None]) -> None:
        try:
            with strangers.handshake(remote):
                task_status.started()
                await trio.sleep_forever()
        except RemoteFault as fault:
            ended.append(f"{name} {fault.code}")

    async with trio.open_nursery() as nursery:
        for name, remote in [("a1", "1"), ("b1", "2"), ("b2", "2"), ("c1", "3"), ("d1", "4"), ("d2", "4"), ("e1", "5")]:
            await strangers.wait_for_place()
            await nursery.start(stay, name, remote)
        await trio.testing.wait_all_tasks_blocked()
        assert ended == ["b1 crowded", "a1 crowded", "d1 crowded"]
        nursery.cancel_scope.cancel()
    assert len(ended) == 3


@pytest.mark.parametrize(
    ("remote", "whose"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("memory", "memory"),
        ("gone", "gone"),
    ],
)
def test_whose_an_address_is(remote: str, whose: str) -> None:
    assert origin(remote) == whose


async def test_a_full_node_takes_a_place_of_the_address_that_has_most(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock, addresses: list[str]
) -> None:
    echo = Echo(node, network, max_sessions=5)
    async with serving(echo):
        greedy = [await come(network, tls, node, addresses, "10.0.0.1") for _ in range(4)]
        other = await come(network, tls, node, addresses, "10.0.0.2")
        await trio.sleep(1)
        await greedy[0].send(b"x")
        assert await greedy[0].receive() == b"x"
        newcomer = await come(network, tls, node, addresses, "10.0.0.3")
        told = await refusal(greedy[1])
        assert told.code == "busy"
        assert "connect again, or use another node" in told.reason
        assert await greedy[1].receive() is None
        for channel in (greedy[0], greedy[2], greedy[3], other, newcomer):
            await channel.send(b"y")
            assert await channel.receive() == b"y"
        assert echo.closed == [2]
        assert echo.server.counters["closed.busy"] == 1


async def test_a_full_node_takes_no_place_that_the_newcomers_address_would_have_more_of(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock, addresses: list[str]
) -> None:
    echo = Echo(node, network, max_sessions=5)
    async with serving(echo):
        for who in ("10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.2"):
            await come(network, tls, node, addresses, who)
        for who in ("10.0.0.1", "10.0.0.2"):
            addresses.append(who)
            channel = await dial(network, tls)
            await channel.send(wire.encode(wire.Hello(1, node.network)))
            assert (await refusal(channel)).reason == "this node serves 5 clients already: use another node"
        assert echo.closed == []
        await trio.sleep(IDLE_S)
        await come(network, tls, node, addresses, "10.0.0.1")
        assert echo.closed == [1]


async def test_a_full_node_is_never_more_than_full_while_somebody_does_not_go(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock, addresses: list[str]
) -> None:
    echo = Echo(node, network, max_sessions=3)
    async with serving(echo):
        for _ in range(3):
            await come(network, tls, node, addresses, "10.0.0.1")
        for stream in network.accepted:
            stream.send_all_hook = trio.sleep_forever
        async with trio.open_nursery() as nursery:
            for who in ("10.0.0.2", "10.0.0.3"):
                nursery.start_soon(come, network, tls, node, addresses, who)
            await trio.testing.wait_all_tasks_blocked()
            assert echo.server.sessions == 3
            assert echo.closed == []
            await trio.sleep(FLUSH_S + CLOSE_S)
        assert sorted(echo.closed) == [1, 2]
        assert echo.server.sessions == 3


async def begin(channel: Channel, sent: int) -> None:
    """A frame of 4 MiB, and no more than `sent` bytes of it."""
    await channel._stream.send_all((4 * MIB).to_bytes(4) + bytes(sent))
    await trio.testing.wait_all_tasks_blocked()


async def test_who_begins_most_and_ends_nothing_goes_when_it_is_too_much(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    echo = Echo(node, network, held_bytes=8 * MIB)
    async with serving(echo):
        slow = [await enter(network, tls, node) for _ in range(4)]
        for channel, sent in zip(slow, (3_500_000, 2_000_000, 2_500_000), strict=False):
            await begin(channel, sent)
        assert echo.closed == []
        ended = [session for session in echo.server._sessions if session.number == 1]
        await begin(slow[3], 1_000_000)
        assert echo.closed == [1]
        assert ended[0].channel.held == 0
        told = await refusal(slow[0])
        assert told.code == "memory"
        assert "end the frames that you begin, read the answers, ask for less at once" in told.reason
        await slow[1]._stream.send_all(bytes(4 * MIB - 2_000_000))
        assert await slow[1].receive() == bytes(4 * MIB)


async def test_who_reads_least_goes_when_it_is_too_much(
    node: Certified, tls: ssl.SSLContext, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    echo = Echo(node, network, held_bytes=8 * MIB)
    async with serving(echo):
        for _ in range(3):
            channel = await enter(network, tls, node)
            await channel.send(b"x")
            assert await channel.receive() == b"x"
        for stream in network.accepted:
            stream.send_all_hook = trio.sleep_forever
        for session, size in zip(echo.sessions, (2 * MIB, 4 * MIB, 2 * MIB), strict=True):
            assert session.send_nowait(bytes(size - 100))
        assert not any(session.channel.ending for session in echo.sessions)
        assert echo.sessions[0].send_nowait(bytes(MIB))
        assert [session.channel.ending for session in echo.sessions] == [False, True, False]

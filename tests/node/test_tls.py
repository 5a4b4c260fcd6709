"""TLS over streams and sockets: whole, slow, cut, ended, and cancelled."""

import os
import random
import socket
import ssl
import tracemalloc
from pathlib import Path

import pytest
import trio
import trio.testing

from node.pki import NodeContexts, node_contexts
from node.tls import RECEIVE_BYTES, TlsStream, start_tls
from tests.node.wires import new_layout

LARGE = 3_000_000  # more than the kernel keeps for a socket


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> NodeContexts:
    network = new_layout(tmp_path_factory.mktemp("tls") / "net", 1)
    directory: Path = network.node_directory(network.nodes[0])
    return node_contexts(directory, network.genesis.ca)


def sockets() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Two ends of a connection through the kernel, with small buffers, so that writing has to wait."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    return (
        trio.SocketStream(trio.socket.from_stdlib_socket(ours)),
        trio.SocketStream(trio.socket.from_stdlib_socket(theirs)),
    )


async def pair(contexts: NodeContexts, ours: trio.abc.Stream, theirs: trio.abc.Stream) -> tuple[TlsStream, TlsStream]:
    """Both ends, the handshake done: who dialled, who accepted."""
    made: dict[str, TlsStream] = {}

    async def accept() -> None:
        made["accepted"] = await start_tls(theirs, contexts.accept, server=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        made["dialled"] = await start_tls(ours, contexts.dial, server=False)
    return made["dialled"], made["accepted"]


async def read(stream: TlsStream, size: int) -> bytes:
    """`size` bytes, however they come."""
    data = bytearray()
    while len(data) < size:
        data += await stream.receive_some(size - len(data))
    return bytes(data)


@pytest.fixture(params=["memory", "sockets"])
async def ends(request: pytest.FixtureRequest, contexts: NodeContexts) -> tuple[TlsStream, TlsStream]:
    streams = trio.testing.memory_stream_pair() if request.param == "memory" else sockets()
    return await pair(contexts, *streams)


async def test_what_is_sent_arrives_in_both_directions_at_once(ends: tuple[TlsStream, TlsStream]) -> None:
    sent = [random.Random(n).randbytes(LARGE) for n in range(2)]
    got: dict[int, bytes] = {}

    async def take(number: int) -> None:
        got[number] = await read(ends[number], LARGE)

    async with trio.open_nursery() as nursery:
        for number in range(2):
            nursery.start_soon(take, number)
            nursery.start_soon(ends[1 - number].send_all, sent[number])
    assert [got[0], got[1]] == sent


async def test_what_arrives_takes_no_more_memory_than_it_has_bytes(contexts: NodeContexts) -> None:
    """A large block cut to each small piece would leave holes in the heap, which grows by them."""
    dialled, accepted = await pair(contexts, *sockets())
    await accepted.send_all(bytes(100))
    await read(dialled, 100)  # with the tickets of the handshake, and the buffer of this thread
    await accepted.send_all(bytes(100))
    tracemalloc.start()
    try:
        assert len(await dialled.receive_some()) == 100
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < RECEIVE_BYTES // 4


async def test_each_side_knows_the_certificate_of_the_other(ends: tuple[TlsStream, TlsStream]) -> None:
    assert ends[0].peer_certificate == ends[1].peer_certificate != b""


async def test_a_goodbye_ends_the_stream_and_a_cut_breaks_it(ends: tuple[TlsStream, TlsStream]) -> None:
    dialled, accepted = ends
    await accepted.send_all(b"last words")
    await accepted.aclose()
    assert await read(dialled, 10) == b"last words"
    assert await dialled.receive_some() == b""
    await dialled.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await dialled.send_all(b"more")


async def test_a_cut_is_no_end(ends: tuple[TlsStream, TlsStream]) -> None:
    dialled, accepted = ends
    await trio.aclose_forcefully(accepted.transport)
    with pytest.raises(trio.BrokenResourceError):
        await dialled.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await dialled.send_all(b"anybody?")


async def test_who_closes_its_own_end_ends_its_own_reading(ends: tuple[TlsStream, TlsStream]) -> None:
    dialled, _ = ends

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await dialled.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await dialled.aclose()


async def test_a_send_that_was_cut_short_is_the_last_one(contexts: NodeContexts) -> None:
    """Nobody knows how much of it the other side has: what came after would not make sense to it."""
    dialled, _ = await pair(contexts, *sockets())
    with trio.move_on_after(0.01) as scope:
        await dialled.send_all(bytes(LARGE))
    assert scope.cancelled_caught
    with pytest.raises(trio.BrokenResourceError):
        await dialled.send_all(b"again")


async def test_who_waited_behind_a_send_that_was_cut_short_sends_nothing() -> None:
    ours, theirs = sockets()
    stream = TlsStream(ours, Talkative(ssl.PROTOCOL_TLS_CLIENT), server=False)
    ended: list[str] = []

    async def send() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"second")
        ended.append("second")

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as first:

            async def cut() -> None:
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(send)
                await trio.testing.wait_all_tasks_blocked()
                first.cancel()

            nursery.start_soon(cut)
            await stream.send_all(bytes(LARGE))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert ended == ["second"]
    await theirs.aclose()


async def test_a_damaged_record_breaks_the_stream(contexts: NodeContexts) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    dialled, accepted = await pair(contexts, ours, theirs)
    await theirs.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))  # application data that no key made
    with pytest.raises(trio.BrokenResourceError) as caught:
        await dialled.receive_some()
    assert isinstance(caught.value.__cause__, ssl.SSLError)
    with pytest.raises(trio.BrokenResourceError) as told:
        await accepted.receive_some()
    assert "ALERT_BAD_RECORD_MAC" in str(told.value.__cause__)


async def test_waiting_for_room_waits(contexts: NodeContexts) -> None:
    dialled, accepted = await pair(contexts, *sockets())
    order: list[str] = []

    async def send() -> None:
        await dialled.send_all(bytes(LARGE))
        order.append("sent")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        order.append("blocked")
        await read(accepted, LARGE)
    assert order == ["blocked", "sent"]
    await dialled.wait_send_all_might_not_block()


class Talkative(ssl.SSLContext):
    """No cryptography: bytes pass through, and each byte that is read is answered with ANSWER, as new keys are."""

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, **_: object) -> "TalkativeObject":  # type: ignore[override]
        return TalkativeObject(incoming, outgoing)


ANSWER = bytes(27)


class TalkativeObject:
    def __init__(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self._incoming, self._outgoing = incoming, outgoing

    def read(self, size: int, buffer: bytearray) -> int:
        self._outgoing.write(ANSWER * len(self._incoming.read()))
        raise ssl.SSLWantReadError

    def write(self, data: bytes) -> int:
        return self._outgoing.write(data)


async def test_who_reads_nothing_cannot_make_answers_pile_up() -> None:
    """While the writer waits for room, whoever reads must wait with its answers, too, and not take the next
    question."""
    ours, theirs = sockets()
    stream = TlsStream(ours, Talkative(ssl.PROTOCOL_TLS_CLIENT), server=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, bytes(LARGE))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(stream.receive_some)
        await theirs.send_all(b"?" * 100)
        for _ in range(20):  # every one of them more than the kernel can take at once
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0.01):
                await theirs.send_all(b"?" * 100)
        pending = stream._outgoing.pending
        nursery.cancel_scope.cancel()
    assert 0 < pending <= 2100 * len(ANSWER)
    assert pending < 200 * len(ANSWER), "one lot of questions was read, and no more"


async def test_a_send_that_finds_another_one_at_work_waits_for_its_own_bytes() -> None:
    ours, theirs = sockets()
    stream = TlsStream(ours, Talkative(ssl.PROTOCOL_TLS_CLIENT), server=False)
    done: list[str] = []

    async def send(name: str) -> None:
        await stream.send_all(bytes(LARGE))
        done.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, "first")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(send, "second")
        await trio.testing.wait_all_tasks_blocked()
        assert done == [], "nothing is with the kernel yet"
        got = 0
        while got < 2 * LARGE:
            got += len(await theirs.receive_some())
    assert sorted(done) == ["first", "second"]


async def test_a_number_that_was_given_to_another_connection_is_not_read() -> None:
    """Closed by another task in the moment in which its bytes came: the descriptor's number may be taken by then."""
    ours, theirs = sockets()
    stream = TlsStream(ours, Talkative(ssl.PROTOCOL_TLS_CLIENT), server=False)
    outcome: list[str] = []

    async def wait() -> None:
        try:
            await stream.receive_some()
        except trio.ClosedResourceError:
            outcome.append("closed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        number = ours.socket.fileno()
        theirs_again, another = socket.socketpair()
        another.setblocking(False)
        theirs_again.send(b"not for you")
        await theirs.send_all(b"?")
        ours.socket.close()  # the reader is woken by this, or by the bytes: either way the number is not its own now
        os.dup2(another.fileno(), number)
    assert outcome == ["closed"]
    assert another.recv(100) == b"not for you"
    os.close(number)

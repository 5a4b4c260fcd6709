"""TLS over streams and sockets: whole, slow, cut, ended, and cancelled."""

import random
import socket
import ssl
from pathlib import Path

import pytest
import trio
import trio.testing

from node.pki import NodeContexts, node_contexts
from node.tls import TlsStream, start_tls
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

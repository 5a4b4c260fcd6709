"""What a stranger, or a member gone wrong, sends: bytes on real connections, without our client's good manners."""

import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import msgspec
import trio

from chain.errors import RemoteFault
from hopchain import wire
from hopchain.connection import client_context, connect
from hopchain.framing import MAX_FRAME_BYTES, FrameReader, frame
from node.channel import Channel
from node.hello import Hello, Refused, Welcome, encode
from node.messages import Ping, Pong, decode_frame_untrusted, encode_frames, encode_message
from node.tls import TlsStream, start_tls
from tests.cluster.cluster import Cluster, NodeProcess
from tests.hopchain.frames import feed

ANSWER_S = 60.0


@asynccontextmanager
async def tls_stream(address: tuple[str, int], context: ssl.SSLContext) -> AsyncIterator[TlsStream]:
    """A TLS connection, the handshake done."""
    with trio.fail_after(ANSWER_S):
        stream = await trio.open_tcp_stream(*address)
        secure = await start_tls(stream, context, server=False)
    try:
        yield secure
    finally:
        await trio.aclose_forcefully(secure)


async def read_to_end(stream: trio.abc.ReceiveStream) -> bytes:
    """All that comes until the other side closes, however it does."""
    data = b""
    with trio.fail_after(ANSWER_S):
        try:
            async for part in stream:
                data += part
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
    return data


async def said_to_client(cluster: Cluster, number: int, data: bytes, *, hang_up: bool = False) -> list[wire.NodeFrame]:
    """Send `data` to a node's client port after TLS; the frames it sends until it closes. `hang_up`: end our side."""
    async with tls_stream(cluster.nodes[number].client_address, client_context(cluster.network.genesis.ca)) as stream:
        await stream.send_all(data)
        if hang_up:
            await stream.aclose()
            return []
        received = await read_to_end(stream)
    return [wire.decode_node_frame_untrusted(payload) for payload in feed(FrameReader(), received)]


async def ask(cluster: Cluster, number: int, body: wire.CallBody) -> wire.ReplyBody:
    """The answer of a node to one call, as it is."""
    node = cluster.nodes[number]
    with trio.fail_after(ANSWER_S):
        connection = await connect(
            *node.client_address, context=client_context(cluster.network.genesis.ca), network=cluster.id
        )
        try:
            await connection.send(wire.encode(wire.Call(1, body)))
            reply = wire.decode_node_frame_untrusted(await connection.receive())
        finally:
            await connection.aclose()
    assert isinstance(reply, wire.Reply), reply
    return reply.body


@dataclass(frozen=True)
class PeerTalk:
    """A connection to a node's peer port after TLS."""

    stream: TlsStream
    channel: Channel

    async def hello(self, hello: Hello) -> Welcome | Refused:
        """Exchange hellos; the node's verdict about ours."""
        with trio.fail_after(ANSWER_S):
            await self.channel.send(encode(hello))
            theirs = await self.channel.receive()
            assert theirs is not None
            await self.channel.send(encode(Welcome()))
            verdict = await self.channel.receive()
        assert verdict is not None
        return _verdicts.decode(verdict)

    async def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        await self.stream.send_all(data)

    async def handled(self) -> None:
        """Return when the node has handled what was sent before: a ping after it is answered, or the connection is
        closed for it."""
        number = 12345.0
        for payload in encode_frames([encode_message(Ping(number, 0, 0, epoch=1, active=True, time_ms=0))]):
            await self._quietly(frame(payload))
        with trio.fail_after(ANSWER_S):
            while (payload := await self._receive()) is not None:
                if Pong in map(type, decode_frame_untrusted(payload)):
                    return

    async def closed(self) -> None:
        """Return when the node has closed the connection."""
        with trio.fail_after(ANSWER_S):
            while await self._receive() is not None:
                pass

    async def _quietly(self, data: bytes) -> None:
        with suppress(trio.BrokenResourceError):
            await self.stream.send_all(data)

    async def _receive(self) -> bytes | None:
        try:
            return await self.channel.receive()
        except (trio.BrokenResourceError, RemoteFault):
            return None


_verdicts: msgspec.msgpack.Decoder[Welcome | Refused] = msgspec.msgpack.Decoder(Welcome | Refused)


@asynccontextmanager
async def talk_to_peer_port(node: NodeProcess, context: ssl.SSLContext) -> AsyncIterator[PeerTalk]:
    """Dial a node's peer port with the certificate in `context`."""
    async with tls_stream(node.peer_address, context) as stream:
        yield PeerTalk(stream, Channel(stream, frame_limit=MAX_FRAME_BYTES, queue_bytes=2 * MAX_FRAME_BYTES))


def send_datagrams(source: tuple[str, int], target: tuple[str, int], datagrams: Sequence[bytes]) -> None:
    """Send UDP datagrams from one address to another."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(source)
        for datagram in datagrams:
            sock.sendto(datagram, target)

"""The load generator's connections: blocking Python `ssl` without an event loop, because what the generator spends, the
nodes on the same machine do not have. Speaks hopchain.wire like any client; all frames that are ready leave in one
write.
"""

import selectors
import socket
import ssl
from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from chain.errors import RemoteFault
from cli.output import CommandFailed, Exit
from hopchain.connection import client_context, id_said
from hopchain.framing import FrameReader, frame
from hopchain.wire import (
    MAX_CLIENT_FRAME_BYTES,
    PROTOCOL_VERSION,
    Call,
    CallBody,
    Hello,
    NodeFrame,
    Refused,
    Reply,
    ReplyBody,
    decode_node_frame_untrusted,
    encode,
)
from routing.keyspace import NodeId, closest, route_key

M = TypeVar("M", Hello, Reply)

CONNECT_S: Final = 10.0
RECEIVE_BYTES: Final = 256 * 1024
WRITE_BYTES: Final = 256 * 1024  # of one call of OpenSSL, which repeats a write that it could not finish


class Line:
    """One connection. `number`: its place in the list of connections."""

    def __init__(self, number: int, address: tuple[str, int], context: ssl.SSLContext, network: bytes) -> None:
        self.number = number
        self.address = f"{address[0]}:{address[1]}"
        self.bytes_out = 0
        self.bytes_in = 0
        self._reader = FrameReader(MAX_CLIENT_FRAME_BYTES)
        self._out = bytearray()
        try:
            plain = socket.create_connection(address, CONNECT_S)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket = context.wrap_socket(plain)
            self.socket.sendall(frame(encode(Hello(PROTOCOL_VERSION, network))))
            while (payload := self._reader.pop()) is None:
                self._reader.push(self._received(self.socket.recv(RECEIVE_BYTES)))
            self.node_id = NodeId(id_said(self._heard(decode_node_frame_untrusted(payload), Hello)))
        except (OSError, RemoteFault, msgspec.MsgspecError) as error:
            raise self._failed(str(error)) from None
        self.socket.setblocking(False)

    @property
    def unsent(self) -> bool:
        """True while something waits for the socket."""
        return bool(self._out)

    def put(self, payload: bytes) -> None:
        """Add a frame to what the next `flush` sends."""
        self._out += frame(payload)

    def flush(self) -> None:
        """Send as much as the socket takes."""
        try:
            while self._out:
                sent = self.socket.send(memoryview(self._out)[:WRITE_BYTES])
                self.bytes_out += sent
                del self._out[:sent]
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return
        except OSError as error:
            raise self._failed(str(error)) from None

    def receive(self) -> list[Reply]:
        """Everything that has arrived."""
        try:
            while True:
                self._reader.push(self._received(self.socket.recv(RECEIVE_BYTES)))
                if not self.socket.pending():
                    break
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            raise self._failed(str(error)) from None
        replies = []
        try:
            while (payload := self._reader.pop()) is not None:
                replies.append(self._heard(decode_node_frame_untrusted(payload), Reply))
        except (RemoteFault, msgspec.MsgspecError) as error:
            raise self._failed(str(error)) from None
        return replies

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def _received(self, data: bytes) -> bytes:
        if not data:
            raise self._failed("it closed the connection")
        self.bytes_in += len(data)
        return data

    def _heard(self, message: NodeFrame, wanted: type[M]) -> M:
        if isinstance(message, Refused):
            raise self._failed(f"{message.reason} [{message.code}]")
        if not isinstance(message, wanted):
            raise self._failed(f"it said {type(message).__name__} out of turn")
        return message

    def _failed(self, why: str) -> CommandFailed:
        text = f"the connection of the load generator to {self.address} failed: {why}. Does that node run?"
        return CommandFailed(Exit.UNREACHABLE, "unreachable", text)


class Lines:
    """All connections of one generator: `per_node` to each node, those of one node not beside each other."""

    def __init__(self, addresses: Sequence[tuple[str, int]], ca_pem: str, network: bytes, per_node: int = 1) -> None:
        context = client_context(ca_pem)
        self._selector = selectors.DefaultSelector()
        self.lines = [Line(n, a, context, network) for n, a in enumerate(list(addresses) * per_node)]
        self._watched = dict.fromkeys(range(len(self.lines)), selectors.EVENT_READ)
        self._of: dict[NodeId, list[int]] = {}  # the connections of each node; empty id: of those that say none
        self._unflushed: set[int] = set()
        self._number = 0
        for line in self.lines:
            self._selector.register(line.socket, selectors.EVENT_READ, line)
            self._of.setdefault(line.node_id, []).append(line.number)

    def towards(self, tail: bytes, client: int) -> int:
        """The connection of `client` to the node that makes the link after the one with the hash `tail`; as long as not
        all nodes say who they are, the client's own."""
        if b"" in self._of:
            return client % len(self.lines)
        (node,) = closest(self._of, route_key(tail), 1)
        lines = self._of[node]
        return lines[client % len(lines)]

    def call(self, line: int, body: CallBody) -> int:
        """Queue a call; its number. It leaves with the next `wait`."""
        self._number += 1
        self.lines[line].put(encode(Call(self._number, body)))
        self._unflushed.add(line)
        return self._number

    def wait(self, timeout_s: float) -> list[tuple[int, int, ReplyBody]]:
        """Send what is queued, then wait for something to arrive: (line, number of the call, reply) of each reply."""
        for number in self._unflushed:
            self._flush(self.lines[number])
        self._unflushed.clear()
        found: list[tuple[int, int, ReplyBody]] = []
        for key, events in self._selector.select(max(timeout_s, 0)):
            line: Line = key.data
            if events & selectors.EVENT_WRITE:
                self._flush(line)
            if events & selectors.EVENT_READ:
                found += [(line.number, reply.number, reply.body) for reply in line.receive()]
        return found

    @property
    def bytes_moved(self) -> int:
        """To and from all nodes, without what TLS and TCP add."""
        return sum(line.bytes_out + line.bytes_in for line in self.lines)

    def close(self) -> None:
        """Hang up everywhere."""
        for line in self.lines:
            line.close()
        self._selector.close()

    def _flush(self, line: Line) -> None:
        line.flush()
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if line.unsent else 0)
        if self._watched[line.number] != wanted:
            self._watched[line.number] = wanted
            self._selector.modify(line.socket, wanted, line)

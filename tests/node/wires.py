"""What the transport tests share: a network in memory, nodes with certificates, and a member played by hand."""

import os
import random
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from chain.genesis import Asset
from hopchain.framing import MAX_FRAME_BYTES
from node.channel import Channel
from node.hello import PROTOCOL_VERSION, Hello, Welcome, encode
from node.layout import Network as Layout
from node.layout import make_network
from node.pki import NodeContexts, node_contexts
from node.tls import start_tls
from node.transport import MeshIdentity, PeerMesh
from routing.keyspace import NodeId

NOW_MS = 1_700_000_000_000
HOST = "node.test"


def new_layout(directory: Path, nodes: int, name: str = "test") -> Layout:
    ports = [(10_001 + 2 * number, 10_002 + 2 * number) for number in range(nodes)]
    return make_network(
        directory,
        nodes=nodes,
        assets=[Asset("CZK", 2)],
        issuers={"mint": ("CZK", bytes(32))},
        ports=ports,
        name=name,
        now_ms=NOW_MS,
        days=36_500,
    )


class Disk:
    """What is durable, as a disk has it that keeps nothing without an fsync: files by their inode, names by the
    directory's. A power cut is possible before each rename and after all is done."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._files: set[int] = set()
        self._names: dict[int, set[str]] = {}
        fsync, rename = os.fsync, Path.rename
        self.on_rename: Callable[[Path], None] = lambda target: None

        def note(handle: int) -> None:
            fsync(handle)
            status = os.fstat(handle)
            if stat.S_ISDIR(status.st_mode):
                self._names[status.st_ino] = set(os.listdir(handle))
            else:
                self._files.add(status.st_ino)

        def renamed(path: Path, target: Path) -> Path:
            self.on_rename(target)
            return rename(path, target)

        patch.setattr(os, "fsync", note)
        patch.setattr(Path, "rename", renamed)

    def lost(self, directory: Path) -> list[Path]:
        """What is there, and would not be, or not whole, after a power cut."""
        there = [directory, *directory.rglob("*")]
        return [path for path in there if not self._is_named(path) or not self._is_whole(path)]

    def _is_named(self, path: Path) -> bool:
        return path.name in self._names.get(path.parent.stat().st_ino, ())

    def _is_whole(self, path: Path) -> bool:
        return path.is_dir() or path.stat().st_ino in self._files


@dataclass(frozen=True)
class Certified:
    """A node's id and TLS contexts; `hello()` is what it says of itself."""

    id: NodeId
    network: bytes
    contexts: NodeContexts

    def hello(self, *, version: int = PROTOCOL_VERSION, network: bytes | None = None) -> Hello:
        return Hello(version, network or self.network, self.id, 1, self.id[:8])


def certified(layout: Layout) -> list[Certified]:
    """The nodes of a layout, in order of their ids."""
    nodes = [
        Certified(place.node_id, layout.network_id, node_contexts(layout.node_directory(place), layout.genesis.ca))
        for place in layout.nodes
    ]
    return sorted(nodes, key=lambda node: node.id)


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    def __init__(self, close: Callable[[], None], arrivals: trio.MemoryReceiveChannel[trio.abc.Stream]) -> None:
        self._close = close
        self._arrivals = arrivals

    async def accept(self) -> trio.abc.Stream:
        return await self._arrivals.receive()

    async def aclose(self) -> None:
        self._close()
        await self._arrivals.aclose()


class MemoryNetwork:
    """`node.channel.Network` without a kernel, so that the clock may jump. `before_connect` may wait or raise."""

    def __init__(self) -> None:
        self._listening: dict[tuple[str, int], trio.MemorySendChannel[trio.abc.Stream]] = {}
        self.tries: list[tuple[str, int]] = []
        self.accepted: list[trio.testing.MemorySendStream] = []  # what the listeners' side sends into
        self.before_connect: Callable[[], trio.Event | None] = lambda: None

    async def listen(self, host: str, port: int) -> tuple[Sequence[trio.abc.Listener[trio.abc.Stream]], int]:
        send, receive = trio.open_memory_channel[trio.abc.Stream](1000)
        self._listening[host, port] = send
        return [MemoryListener(lambda: self._listening.__delitem__((host, port)), receive)], port

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        self.tries.append((host, port))
        gate = self.before_connect()
        if gate is not None:
            await gate.wait()
        if (host, port) not in self._listening:
            raise ConnectionRefusedError(111, "nobody listens")
        ours, theirs = trio.testing.memory_stream_pair()
        self.accepted.append(theirs.send_stream)
        self._listening[host, port].send_nowait(theirs)
        return ours


def port_of(node_id: NodeId) -> int:
    """Where a node listens in a network in memory: ids are drawn anew in every run, and no two may meet."""
    return int.from_bytes(node_id)


class Node:
    """A mesh with everything that it reports, in order, in `events`: (what, peer, detail)."""

    def __init__(
        self, me: Certified, members: Sequence[Certified], network: MemoryNetwork, *, hello: Hello | None = None
    ) -> None:
        self.id = me.id
        self.port = port_of(me.id)
        self.members = {member.id for member in members}
        self.removed: dict[NodeId, int] = {}
        self.addresses = {member.id: (HOST, port_of(member.id)) for member in members}
        self._send, self.events = trio.open_memory_channel[tuple[str, NodeId, bytes | str]](10_000)
        self.handle: Callable[[NodeId, bytes], trio.Event | None] = lambda peer, payload: None
        self.mesh = PeerMesh(
            MeshIdentity(hello or me.hello(), me.contexts),
            members=lambda: self.members,
            address_of=self.addresses.get,
            on_frame=self._on_frame,
            on_up=lambda peer, replaced: self._send.send_nowait(("up", peer, "replaced" if replaced else "")),
            on_down=lambda peer, reason: self._send.send_nowait(("down", peer, reason)),
            removed_in=lambda peer: self.removed.get(peer, 0),
            on_removed=lambda peer, epoch: self._send.send_nowait(("removed", peer, f"epoch {epoch}")),
            rng=random.Random(1),
            host=HOST,
            port=self.port,
            network=network,
        )

    async def _on_frame(self, peer: NodeId, payload: bytes) -> None:
        self._send.send_nowait(("frame", peer, payload))
        gate = self.handle(peer, payload)
        if gate is not None:
            await gate.wait()

    async def expect(self, what: str, peer: NodeId) -> bytes | str:
        """The next event, which must be this one; its detail."""
        event = await self.events.receive()
        assert event[:2] == (what, peer), event
        return event[2]

    def silent(self) -> bool:
        """Nothing was reported that is not received yet."""
        return self.events.statistics().current_buffer_used == 0


async def dial_by_hand(network: MemoryNetwork, node: Node, me: Certified) -> Channel:
    """A connection of `me` with a node's mesh, after TLS, before the hello."""
    stream = await network.connect(HOST, node.port)
    secure = await start_tls(stream, me.contexts.dial, server=False)
    return Channel(secure, frame_limit=MAX_FRAME_BYTES, queue_bytes=2 * MAX_FRAME_BYTES)


async def join_by_hand(network: MemoryNetwork, node: Node, me: Certified) -> Channel:
    """The same after a good hello."""
    channel = await dial_by_hand(network, node, me)
    await channel.send(encode(me.hello()))
    assert await channel.receive() is not None
    await channel.send(encode(Welcome()))
    assert await channel.receive() == encode(Welcome())
    return channel

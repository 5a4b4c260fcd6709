"""Connections between members: who gets in, what is carried, and how every kind of end is reported.

Time is pytest-trio's jumping clock and TCP a network in memory, so that waiting costs nothing; TLS is real.
"""

import logging
import random
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from chain.errors import LocalMisuse, NotReady, RemoteFault
from hopchain.connection import client_context
from hopchain.framing import HEADER_BYTES, MAX_FRAME_BYTES, frame
from node import messages, transport
from node.accepting import ACCEPT_RETRY_S, HANDSHAKE_S, MAX_HANDSHAKES, PATIENCE_S, WarnOnce, remote_of
from node.channel import CLOSE_S, FLUSH_S, Channel, TcpNetwork, check_name
from node.hello import PROTOCOL_VERSION, Hello, Refused, Welcome, encode
from node.tls import start_tls
from node.transport import DIAL_GRACE_S, DIAL_MAX_S, PEER_QUEUE_BYTES, VERDICT_S, MeshIdentity, PeerMesh
from routing.keyspace import NodeId
from tests.node.wires import HOST, Certified, MemoryNetwork, Node, certified, dial_by_hand, join_by_hand, new_layout


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> list[Certified]:
    return certified(new_layout(tmp_path_factory.mktemp("one") / "net", 3))


@pytest.fixture(scope="module")
def foreigners(tmp_path_factory: pytest.TempPathFactory) -> list[Certified]:
    return certified(new_layout(tmp_path_factory.mktemp("two") / "net", 2, "other"))


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(node.mesh.run)
        yield nursery
        nursery.cancel_scope.cancel()


async def expect_up(small: Node, large: Node) -> None:
    await small.expect("up", large.id)
    await large.expect("up", small.id)


# --- frames between members ---


async def test_the_smaller_id_dials_once_and_frames_go_both_ways_in_order(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    small, large = (Node(me, nodes[:2], network) for me in nodes[:2])
    async with running(large, small):
        await expect_up(small, large)
        assert network.tries == [(HOST, large.port)]
        payloads = [bytes([number]) * number * 100 for number in range(40)]
        for payload in payloads:
            assert small.mesh.send_nowait(large.id, payload)
            assert large.mesh.send_nowait(small.id, payload[::-1])
        assert [await large.expect("frame", small.id) for _ in payloads] == payloads
        assert [await small.expect("frame", large.id) for _ in payloads] == payloads
        assert small.mesh.connected() == {large.id}
        assert small.mesh.hello_of(large.id) == nodes[1].hello()
        assert small.mesh.counters["frames_out"] == large.mesh.counters["frames_in"] == len(payloads)
        assert small.mesh._peers[large.id].channel.queued == 0


async def test_the_largest_frame_passes_and_a_larger_one_is_our_own_bug(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    assert messages.MAX_FRAME_BYTES <= MAX_FRAME_BYTES
    small, large = (Node(me, nodes[:2], network) for me in nodes[:2])
    async with running(large, small):
        await expect_up(small, large)
        payload = random.Random(3).randbytes(MAX_FRAME_BYTES)
        assert small.mesh.send_nowait(large.id, payload)
        assert await large.expect("frame", small.id) == payload
        with pytest.raises(AssertionError):
            small.mesh.send_nowait(large.id, payload + b"x")


async def test_over_real_tcp(nodes: list[Certified]) -> None:
    ports: dict[NodeId, tuple[str, int]] = {}
    send, received = trio.open_memory_channel[tuple[NodeId, bytes]](10)
    ups, up = trio.open_memory_channel[NodeId](10)

    async def on_frame(peer: NodeId, payload: bytes) -> None:
        await send.send((peer, payload))

    meshes = [
        PeerMesh(
            MeshIdentity(me.hello(), me.contexts),
            members=lambda: [node.id for node in nodes],
            address_of=ports.get,
            on_frame=on_frame,
            on_up=lambda peer, replaced: ups.send_nowait(peer),
            on_down=lambda peer, reason: None,
            rng=random.Random(1),
            host="127.0.0.1",
            port=0,
        )
        for me in nodes
    ]
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for me, mesh in zip(nodes, meshes, strict=True):
                ports[me.id] = ("127.0.0.1", await nursery.start(mesh.run))
            for _ in range(6):
                await up.receive()
            assert meshes[2].send_nowait(nodes[0].id, b"hello")
            assert await received.receive() == (nodes[2].id, b"hello")
            for mesh in meshes:
                await mesh.aclose()


async def test_a_taken_port_says_so(nodes: list[Certified]) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    with pytest.raises(LocalMisuse, match=f"port {port} of 127.0.0.1 cannot be listened on .*config.toml"):
        await TcpNetwork().listen("127.0.0.1", port)
    for host, why in (("192.0.2.1", "no such address"), ("a..b", "not known as a host")):
        with pytest.raises(LocalMisuse, match=f"of {host} cannot be listened on .*: .*{why}"):
            await TcpNetwork().listen(host, port)
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    assert remote_of(stream) == "127.0.0.1"
    await stream.aclose()
    assert remote_of(stream) == "gone"
    await listeners[0].aclose()


class NoNameService(trio.abc.HostnameResolver):
    """No answer to any name."""

    async def getaddrinfo(self, *arguments: object, **more: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    async def getnameinfo(self, *arguments: object, **more: object) -> NoReturn:
        raise AssertionError("nobody asks for the name of an address here")


async def test_a_name_that_nobody_can_be_asked_for_says_nothing_of_the_settings() -> None:
    """As while a machine starts: a node that took it for a mistake would not be started again."""
    await check_name("127.0.0.1")
    await check_name("a..b")
    trio.socket.set_custom_hostname_resolver(NoNameService())
    await check_name("127.0.0.1")
    for look in (check_name("n1.lan"), TcpNetwork().listen("n1.lan", 0)):
        with pytest.raises(NotReady, match=r"host n1\.lan in config\.toml cannot be looked up now"):
            await look


async def test_sending_to_nobody_is_counted(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    node = Node(nodes[0], nodes[:2], network)
    assert not node.mesh.send_nowait(nodes[1].id, b"x")
    assert node.mesh.counters["dropped.not_connected"] == 1
    assert node.mesh.hello_of(nodes[1].id) is None


async def test_a_peer_that_does_not_read_costs_a_bounded_queue_and_nobody_else(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    slow, node, well = nodes[0], Node(nodes[1], nodes, network), Node(nodes[2], nodes[1:], network)
    async with running(well, node):
        await expect_up(node, well)
        channel = await join_by_hand(network, node, slow)
        await node.expect("up", slow.id)
        payload = bytes(1024 * 1024)
        size = HEADER_BYTES + len(payload)
        fits = PEER_QUEUE_BYTES // size
        assert [node.mesh.send_nowait(slow.id, payload) for _ in range(fits + 3)] == [True] * fits + [False] * 3
        assert node.mesh.counters["dropped.queue_full"] == 3
        assert node.mesh._peers[slow.id].channel.queued == fits * size
        assert node.mesh.send_nowait(well.id, b"still here")
        assert await well.expect("frame", node.id) == b"still here"
        for _ in range(fits):
            assert await channel.receive() == payload
        await trio.testing.wait_all_tasks_blocked()
        assert node.mesh._peers[slow.id].channel.queued == 0
        assert node.mesh.send_nowait(slow.id, payload)


async def test_what_queues_up_goes_out_together(nodes: list[Certified]) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    sent: list[bytes] = []
    real = ours.send_all

    async def send_all(data: bytes) -> None:
        sent.append(bytes(data))
        await real(data)

    ours.send_all = send_all  # type: ignore[method-assign]
    channel = Channel(ours, frame_limit=2**20, queue_bytes=2 * 2**20)
    small, half = b"s" * 1000, b"h" * 200_000
    for payload in (small, small, half, half, small):
        assert channel.send_nowait(payload)

    async def ignore(payload: bytes) -> None:
        del payload

    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.run, ignore)
        await channel.wait_flushed()
        assert [len(data) for data in sent] == [2 * 1004 + 200_004, 200_004 + 1004]
        await theirs.aclose()


async def test_the_handler_is_back_pressure(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    small, large = (Node(me, nodes[:2], network) for me in nodes[:2])
    gate = trio.Event()
    large.handle = lambda peer, payload: gate
    async with running(large, small):
        await expect_up(small, large)
        for payload in (b"1", b"2"):
            small.mesh.send_nowait(large.id, payload)
        assert await large.expect("frame", small.id) == b"1"
        await trio.testing.wait_all_tasks_blocked()
        assert large.silent()
        gate.set()
        assert await large.expect("frame", small.id) == b"2"


# --- ends ---


async def test_a_dropped_connection_is_dialed_again(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    small, large = (Node(me, nodes[:2], network) for me in nodes[:2])
    async with running(large, small):
        for node, other in ((small, large), (large, small)):
            await expect_up(small, large)
            node.mesh.drop(other.id, "it does not answer pings")
            assert await node.expect("down", other.id) == "it does not answer pings [dropped]"
            assert await other.expect("down", node.id) == "the other side closed the connection [closed]"
        await expect_up(small, large)
        large.mesh.drop(nodes[2].id, "nothing happens: there is no connection")
        assert large.mesh.connected() == {small.id}


async def test_aclose_sends_what_is_queued_first(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    small, large = (Node(me, nodes[:2], network) for me in nodes[:2])
    async with running(large, small):
        await expect_up(small, large)
        payloads = [bytes([number]) * 500_000 for number in range(8)]
        for payload in payloads:
            small.mesh.send_nowait(large.id, payload)
        await small.mesh.aclose()
        assert await small.expect("down", large.id) == "this node stops [shutdown]"
        assert [await large.expect("frame", small.id) for _ in payloads] == payloads
        assert "[closed]" in str(await large.expect("down", small.id))
        await small.mesh.aclose()
        assert not small.mesh.send_nowait(large.id, b"too late")
        with pytest.raises(ConnectionRefusedError):
            await network.connect(HOST, small.port)


async def test_aclose_does_not_wait_for_a_peer_that_does_not_read(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    node = Node(nodes[1], nodes[:2], network)
    async with running(node):
        await join_by_hand(network, node, nodes[0])
        await node.expect("up", nodes[0].id)
        network.accepted[0].send_all_hook = trio.sleep_forever
        assert node.mesh.send_nowait(nodes[0].id, bytes(1000))
        started = trio.current_time()
        await node.mesh.aclose()
        assert FLUSH_S <= trio.current_time() - started <= FLUSH_S + CLOSE_S
        assert "[shutdown]" in str(await node.expect("down", nodes[0].id))


async def test_cancellation_is_not_swallowed_and_closes_at_once(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    small, large = (Node(me, nodes[:2], network) for me in nodes[:2])
    async with running(large):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(small.mesh.run)
                await expect_up(small, large)
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert "[shutdown]" in str(await small.expect("down", large.id))
        assert small.mesh.connected() == frozenset()
        await large.expect("down", small.id)


async def test_a_bug_in_the_handler_stops_the_node(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    small, large = (Node(me, nodes[:2], network) for me in nodes[:2])

    def bug(peer: NodeId, payload: bytes) -> None:
        raise ZeroDivisionError

    large.handle = bug
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with running(large, small):
            await expect_up(small, large)
            small.mesh.send_nowait(large.id, b"x")
            await trio.sleep_forever()


async def test_a_remote_fault_of_the_handler_ends_that_connection_only(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    small, middle, large = (Node(me, nodes, network) for me in nodes)

    def refuse(peer: NodeId, payload: bytes) -> None:
        raise RemoteFault("malformed", "no message at all")

    async with running(large, middle, small):
        for node in (small, middle, large):
            assert {(await node.events.receive())[0] for _ in range(2)} == {"up"}
        large.handle = refuse
        small.mesh.send_nowait(large.id, b"junk")
        assert await large.expect("frame", small.id) == b"junk"
        assert await large.expect("down", small.id) == "no message at all [malformed]"
        assert large.mesh.counters["down.malformed"] == 1
        assert middle.id in large.mesh.connected()


async def test_a_removed_member_is_dropped_and_not_dialed_again_and_a_new_one_is(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    small, large = Node(nodes[0], nodes[:2], network), Node(nodes[1], nodes[:2], network)
    third = Node(nodes[2], nodes[2:], network)
    async with running(large, small, third):
        await expect_up(small, large)
        small.members.remove(large.id)
        small.mesh.refresh()
        await trio.sleep(5)
        assert small.silent(), "until it is removed for good it may stay"
        small.removed[large.id] = 2
        small.mesh.refresh()
        assert "[removed]" in str(await small.expect("down", large.id))
        await large.expect("down", small.id)
        small.members.add(third.id)
        small.addresses[third.id] = (HOST, third.port)
        small.mesh.refresh()
        await small.expect("up", third.id)
        tried = network.tries.count((HOST, large.port))
        await trio.sleep(20)
        assert network.tries.count((HOST, large.port)) == tried
        assert small.silent()
        assert await large.expect("removed", small.id) == "epoch 2", "who dials where it is refused learns why"


async def test_who_refuses_the_one_it_dialed_was_not_removed_itself(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    """It hears of the removal of the other between its dial and the other's hello."""
    small, large = Node(nodes[0], nodes[:2], network), Node(nodes[1], nodes[1:2], network)
    small.removed[large.id] = 2
    async with running(large, small):
        await trio.sleep(20)
        dials = small.mesh.counters["refused.removed"]
        assert dials > 3
        assert small.silent()
        with trio.fail_after(60):
            for _ in range(dials):
                assert await large.expect("removed", small.id) == "epoch 2", "also who is dialed learns it"


async def test_a_removed_node_learns_it_also_from_one_that_it_did_not_look_for(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    """All members that it knows are gone, and another one has the address of one of them."""
    asleep, other = Node(nodes[0], nodes[:2], network), Node(nodes[2], nodes[2:], network)
    asleep.addresses[nodes[1].id] = (HOST, other.port)
    other.removed[asleep.id] = 5
    async with running(other, asleep):
        await trio.sleep(1)
        assert asleep.mesh.counters["refused.wrong_peer"] > 1
        with trio.fail_after(60):
            assert await asleep.expect("removed", other.id) == "epoch 5"


async def test_a_guest_is_let_in_and_not_dialed(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    small, large = Node(nodes[0], nodes[:1], network), Node(nodes[1], nodes[:2], network)
    large.members.remove(large.id)  # it is the guest, and knows that nobody dials it
    async with running(small):
        await trio.sleep(5)
        assert not network.tries
        async with running(large):
            await expect_up(small, large)
            assert network.tries == [(HOST, small.port)], "it does not wait to be dialed"
            assert small.mesh.send_nowait(large.id, b"news")
            assert await large.expect("frame", small.id) == b"news"
        await small.expect("down", large.id)
        await trio.sleep(20)
        assert network.tries == [(HOST, small.port)]


async def test_guests_are_few_and_members_are_always_let_in(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MAX_GUESTS", 1)
    node = Node(nodes[1], nodes[1:2], network)
    async with running(node):
        first = await join_by_hand(network, node, nodes[0])
        await node.expect("up", nodes[0].id)
        second = await dial_by_hand(network, node, nodes[2])
        await second.send(encode(nodes[2].hello()))
        await second.receive()
        refused = msgspec.msgpack.decode(await second.receive() or b"", type=Refused)
        assert (refused.code, refused.text[:38]) == ("busy", "1 nodes that are no members are connec")
        await second.send(encode(Welcome()))
        assert await second.receive() is None
        assert node.mesh.counters["refused.busy"] == 1
        again = await join_by_hand(network, node, nodes[0])  # the guest that is here already takes no other place
        assert "[replaced]" in str(await node.expect("down", nodes[0].id))
        await node.expect("up", nodes[0].id)
        node.members.add(nodes[2].id)
        await join_by_hand(network, node, nodes[2])
        await node.expect("up", nodes[2].id)
        await first.aclose()
        await again.aclose()


# --- dialing ---


async def test_pauses_grow_to_a_second_with_jitter(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    node = Node(nodes[0], nodes[:2], network)
    times: list[float] = []

    def note_time() -> None:
        times.append(trio.current_time())

    network.before_connect = note_time
    async with running(node):
        await trio.sleep(60)
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert 0.02 <= pauses[0] <= 0.05
    assert all(DIAL_MAX_S / 2 <= pause <= DIAL_MAX_S for pause in pauses[6:])
    assert len(set(pauses[6:])) > 10
    assert node.mesh.counters["dial.failed"] == len(times)


async def test_a_connection_that_lasted_resets_the_pause_and_one_that_did_not_does_not(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    small, large = (Node(me, nodes[:2], network) for me in nodes[:2])
    async with running(small):
        await trio.sleep(30)
        async with running(large):
            await expect_up(small, large)
            await trio.sleep(10)
            gaps = []
            for _ in range(8):
                dropped = trio.current_time()
                small.mesh.drop(large.id, "test")
                await small.expect("down", large.id)
                await small.expect("up", large.id)
                gaps.append(trio.current_time() - dropped)
    assert gaps[0] < 0.06
    assert gaps[-1] >= DIAL_MAX_S / 2


async def test_an_address_that_becomes_known_is_used(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    small, large = (Node(me, nodes[:2], network) for me in nodes[:2])
    address = small.addresses.pop(large.id)
    large.addresses.clear()
    async with running(large, small):
        await trio.sleep(10)
        assert small.mesh.counters["dial.no_address"] > 5
        assert network.tries == []
        small.addresses[large.id] = address
        await expect_up(small, large)


async def test_what_cannot_be_the_name_of_a_host_is_a_dial_that_failed(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    small = Node(nodes[0], nodes[:2], network)

    def look_up() -> None:
        "node-2..example".encode("idna")  # as the resolver does

    network.before_connect = look_up
    async with running(small):
        await trio.sleep(DIAL_MAX_S)
        assert small.mesh.counters["dial.failed"] == len(network.tries) > 1


async def test_the_larger_id_dials_when_the_smaller_does_not_know_the_way(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    small, large = (Node(me, nodes[:2], network) for me in nodes[:2])
    small.addresses.clear()
    async with running(large, small):
        await expect_up(small, large)
        assert trio.current_time() >= DIAL_GRACE_S
        assert network.tries == [(HOST, small.port)]


@pytest.mark.parametrize("first", [0, 1])
async def test_when_both_dial_at_once_both_keep_the_smaller_ones_connection(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock, first: int
) -> None:
    small, large = (Node(me, nodes[:2], network) for me in nodes[:2])
    gates = [trio.Event(), trio.Event()]
    network.before_connect = lambda: gates[len(network.tries) - 1] if len(network.tries) <= 2 else None
    async with running(large, small):
        await trio.sleep(DIAL_GRACE_S + 0.5)
        assert network.tries == [(HOST, large.port), (HOST, small.port)]
        gates[first].set()
        if first == 0:
            gates[1].set()
        else:
            await expect_up(small, large)
            gates[0].set()
        await trio.sleep(HANDSHAKE_S)
        for node, other in ((small, large), (large, small)):
            assert node.mesh.connected() == {other.id}
            while not node.silent():
                node.events.receive_nowait()
            kept = node.mesh._peers[other.id]
            assert kept.dialed_by == small.id
        assert small.mesh.send_nowait(large.id, b"ping")
        assert await large.expect("frame", small.id) == b"ping"
        assert large.mesh.send_nowait(small.id, b"pong")
        assert await small.expect("frame", large.id) == b"pong"
        assert len(network.tries) == 2


async def test_a_new_connection_replaces_one_that_the_other_side_has_given_up(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    node = Node(nodes[0], nodes[:2], network)
    accepted = Node(nodes[1], nodes[:2], network)
    async with running(accepted, node):
        await expect_up(node, accepted)
        await trio.sleep(HANDSHAKE_S + 1)
        again = await join_by_hand(network, node, nodes[1])
        assert "[replaced]" in str(await node.expect("down", nodes[1].id))
        assert await node.expect("up", nodes[1].id) == "replaced"
        node.mesh.send_nowait(nodes[1].id, b"to the new one")
        assert await again.receive() == b"to the new one"


async def test_the_same_side_dialing_again_replaces_its_first_connection_at_once(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    node = Node(nodes[1], nodes[:2], network)
    async with running(node):
        first = await join_by_hand(network, node, nodes[0])
        assert await node.expect("up", nodes[0].id) == ""
        second = await join_by_hand(network, node, nodes[0])
        assert "[replaced]" in str(await node.expect("down", nodes[0].id))
        assert await node.expect("up", nodes[0].id) == "replaced"
        assert await first.receive() is None
        await second.send(b"hi")
        assert await node.expect("frame", nodes[0].id) == b"hi"


async def test_a_second_connection_from_the_other_side_is_told_that_there_is_one(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    small, large = (Node(me, nodes[:2], network) for me in nodes[:2])
    async with running(large, small):
        await expect_up(small, large)
        second = await dial_by_hand(network, small, nodes[1])
        await second.send(encode(nodes[1].hello()))
        await second.receive()
        assert msgspec.msgpack.decode(await second.receive() or b"", type=Refused).code == "duplicate"
        await second.send(encode(Welcome()))
        assert await second.receive() is None
        assert small.mesh.counters["refused.duplicate"] == 1
        assert small.silent()
        assert caplog.records == []


# --- strangers and broken peers ---


async def serves_still(node: Node, member: Certified, network: MemoryNetwork) -> None:
    """After whatever happened a member gets in as always."""
    channel = await join_by_hand(network, node, member)
    await node.expect("up", member.id)
    await channel.send(b"fine")
    assert await node.expect("frame", member.id) == b"fine"
    assert node.silent()


HELLOS = [
    ("version", {"version": PROTOCOL_VERSION + 1}),
    ("network", {"network": b"\x01" * 32}),
    ("identity", {"node_id": NodeId(bytes(20))}),
]


@pytest.mark.parametrize(("code", "change"), HELLOS, ids=[case[0] for case in HELLOS])
async def test_a_wrong_hello_is_refused_with_its_reason_and_logged_once(
    nodes: list[Certified],
    network: MemoryNetwork,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    code: str,
    change: dict[str, int | bytes],
) -> None:
    node = Node(nodes[1], nodes, network)
    caplog.set_level(logging.WARNING)
    async with running(node):
        for _ in range(3):
            channel = await dial_by_hand(network, node, nodes[0])
            await channel.send(encode(msgspec.structs.replace(nodes[0].hello(), **change)))
            assert await channel.receive() == encode(nodes[1].hello())
            refused = msgspec.msgpack.decode(await channel.receive() or b"", type=Refused)
            assert refused.code == code
            await channel.send(encode(Welcome()))
            assert await channel.receive() is None
        assert node.mesh.counters[f"refused.{code}"] == 3
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert f"node {nodes[0].id.hex()[:8]}" in caplog.text
        await serves_still(node, nodes[0], network)


async def test_the_refused_node_learns_why_and_says_it_once_too(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    small = Node(nodes[0], nodes[:2], network)
    large = Node(nodes[1], nodes[1:], network)
    large.removed[small.id] = 3
    caplog.set_level(logging.WARNING)
    async with running(large, small):
        await trio.sleep(20)
        refused = small.mesh.counters["refused.removed"]
        assert refused == large.mesh.counters["refused.removed"] > 10
        for _ in range(refused):
            assert await small.expect("removed", large.id) == "epoch 3"
        assert small.silent()
        assert large.silent()
        texts = [record.getMessage() for record in caplog.records]
        assert len(texts) == 2
        assert sum("the other node refused this one" in text for text in texts) == 1
        del large.removed[small.id]
        large.mesh.refresh()
        await expect_up(small, large)
        large.removed[small.id] = 3
        large.mesh.refresh()
        await trio.sleep(5)
        assert len(caplog.records) == 4  # it was well in between, so it is news


async def test_a_second_outage_before_the_certificate_is_logged_too(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Then only the address of whoever dialed is known, not its id."""
    caplog.set_level(logging.WARNING)
    node = Node(nodes[1], nodes, network)
    async with running(node):
        for outage in (1, 2):
            for _ in range(3):
                await (await network.connect(HOST, node.port)).aclose()
                await trio.sleep(1)
            assert node.mesh.counters["refused.lost"] == 3 * outage
            assert [record.getMessage()[:26] for record in caplog.records] == ["no connection with memory:"] * outage
            await (await join_by_hand(network, node, nodes[0])).aclose()
            await node.expect("up", nodes[0].id)
            await node.expect("down", nodes[0].id)


async def test_a_node_of_another_network_gets_no_further_than_tls(
    nodes: list[Certified], foreigners: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    node = Node(nodes[1], nodes, network)
    stranger = Node(foreigners[0], [foreigners[0], nodes[1]], network)
    stranger.mesh._hello = msgspec.structs.replace(stranger.mesh._hello, node_id=NodeId(bytes(20)))
    async with running(node, stranger):
        await trio.sleep(5)
        assert stranger.mesh.counters["refused.certificate"] > 2
        assert node.mesh.counters["refused.certificate"] > 2  # the stranger says why it hangs up
        assert stranger.silent()
        await serves_still(node, nodes[0], network)


async def test_a_certificate_of_another_ca_is_refused_by_the_acceptor(
    nodes: list[Certified], foreigners: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    node = Node(nodes[1], nodes, network)
    async with running(node):
        stream = await network.connect(HOST, node.port)
        context = foreigners[0].contexts.dial
        verify, context.verify_mode = context.verify_mode, ssl.CERT_NONE
        try:
            channel = Channel(await start_tls(stream, context, server=False), frame_limit=1000, queue_bytes=2000)
        finally:
            context.verify_mode = verify
        with pytest.raises(trio.BrokenResourceError):
            await channel.receive()
        assert node.mesh.counters["refused.certificate"] == 1
        await serves_still(node, nodes[0], network)


async def test_tls_without_a_certificate_is_refused(
    nodes: list[Certified],
    network: MemoryNetwork,
    autojump_clock: MockClock,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    layout = new_layout(tmp_path / "net", 2)
    members = certified(layout)
    node = Node(members[1], members, network)
    async with running(node):
        stream = await network.connect(HOST, node.port)
        secure = await start_tls(stream, client_context(layout.genesis.ca), server=False)
        with pytest.raises(trio.BrokenResourceError):
            await secure.receive_some(1)
        assert node.mesh.counters["refused.no_certificate"] == 1
        assert "clients belong on the client port" in caplog.text
        await serves_still(node, members[0], network)


async def test_garbage_instead_of_tls_is_refused(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    rng = random.Random(11)
    node = Node(nodes[1], nodes, network)
    async with running(node):
        for size in (1, 7, 100, 5000, 20_000):
            stream = await network.connect(HOST, node.port)
            await stream.send_all(rng.randbytes(size))
            await stream.aclose()
        await trio.sleep(1)
        assert sum(count for key, count in node.mesh.counters.items() if key.startswith("refused.")) == 5
        await serves_still(node, nodes[0], network)


async def test_leaving_in_the_middle_of_the_handshake_is_counted(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    node = Node(nodes[1], nodes, network)
    async with running(node):
        await (await network.connect(HOST, node.port)).aclose()
        polite = await dial_by_hand(network, node, nodes[0])
        await polite.aclose()
        abrupt = await dial_by_hand(network, node, nodes[0])
        await abrupt.send(encode(nodes[0].hello()))
        await trio.aclose_forcefully(abrupt._stream.transport)  # type: ignore[attr-defined]
        await trio.sleep(1)
        assert node.mesh.counters["refused.lost"] == 3
        await serves_still(node, nodes[0], network)


async def test_a_refused_peer_that_vanishes_is_counted_for_what_was_wrong(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    node = Node(nodes[1], nodes, network)
    async with running(node):
        gone = await dial_by_hand(network, node, nodes[0])
        await gone.send(encode(nodes[0].hello(version=PROTOCOL_VERSION + 1)))
        await trio.aclose_forcefully(gone._stream.transport)  # type: ignore[attr-defined]
        mute = await dial_by_hand(network, node, nodes[0])
        await mute.send(encode(nodes[0].hello(version=PROTOCOL_VERSION + 1)))
        await trio.sleep(VERDICT_S + 1)
        assert node.mesh.counters["refused.version"] == 2


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1garbage", encode(Welcome()), msgspec.msgpack.encode(["hello", PROTOCOL_VERSION])]
)
async def test_garbage_instead_of_a_hello_is_refused(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock, payload: bytes
) -> None:
    node = Node(nodes[1], nodes, network)
    async with running(node):
        channel = await dial_by_hand(network, node, nodes[0])
        await channel.send(payload)
        await channel.receive()
        assert msgspec.msgpack.decode(await channel.receive() or b"", type=Refused).code == "malformed"
        await channel.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert node.mesh.counters["refused.malformed"] == 1
        await serves_still(node, nodes[0], network)


async def test_a_large_hello_is_refused_before_it_is_read(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    node = Node(nodes[1], nodes, network)
    async with running(node):
        channel = await dial_by_hand(network, node, nodes[0])
        await channel._stream.send_all((5000).to_bytes(4))
        await channel.receive()
        assert msgspec.msgpack.decode(await channel.receive() or b"", type=Refused).code == "oversize"
        await channel.aclose()
        await serves_still(node, nodes[0], network)


async def test_silence_in_the_handshake_keeps_no_member_out_and_ends_after_a_while(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    node = Node(nodes[1], nodes, network)
    async with running(node):
        silent = [await network.connect(HOST, node.port) for _ in range(2 * MAX_HANDSHAKES)]
        await serves_still(node, nodes[0], network)
        assert trio.current_time() <= 2 * PATIENCE_S
        await trio.sleep(HANDSHAKE_S + CLOSE_S)
        crowded, timeout = (node.mesh.counters[f"refused.{code}"] for code in ("crowded", "timeout"))
        assert crowded + timeout == len(silent)
        assert crowded >= MAX_HANDSHAKES


async def test_silence_after_being_dialed_ends_too(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    node = Node(nodes[0], nodes[:2], network)
    listeners, _ = await network.listen(HOST, node.addresses[nodes[1].id][1])
    async with running(node):
        await listeners[0].accept()
        await listeners[0].accept()
        assert trio.current_time() >= HANDSHAKE_S
        assert node.mesh.counters["refused.timeout"] == 1


async def test_the_wrong_member_at_an_address_is_not_taken_for_the_right_one(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    small, other = Node(nodes[0], nodes[:2], network), Node(nodes[2], nodes, network)
    small.members.add(nodes[2].id)
    other.addresses.clear()
    small.addresses[nodes[1].id] = (HOST, other.port)
    async with running(other, small):
        await trio.sleep(DIAL_GRACE_S - 1)
        assert small.mesh.counters["refused.wrong_peer"] > 1
        assert small.mesh.connected() == frozenset()


BREAKS = [
    ("cut_frame", frame(bytes(100))[:50], "the stream ended 50 bytes into a frame"),
    ("oversize", (MAX_FRAME_BYTES + 1).to_bytes(4), "a frame of 8388609 bytes: at most 8388608"),
]


@pytest.mark.parametrize(("code", "data", "says"), BREAKS, ids=[case[0] for case in BREAKS])
async def test_a_broken_frame_ends_the_connection_and_is_counted(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock, code: str, data: bytes, says: str
) -> None:
    node = Node(nodes[1], nodes, network)
    async with running(node):
        channel = await join_by_hand(network, node, nodes[0])
        await node.expect("up", nodes[0].id)
        await channel._stream.send_all(data)
        await channel.aclose()
        reason = str(await node.expect("down", nodes[0].id))
        assert says in reason
        assert f"[{code}]" in reason
        assert node.mesh.counters[f"down.{code}"] == 1
        await serves_still(node, nodes[0], network)


async def test_a_stream_that_breaks_is_lost(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    node = Node(nodes[1], nodes, network)
    async with running(node):
        channel = await join_by_hand(network, node, nodes[0])
        await node.expect("up", nodes[0].id)
        await trio.aclose_forcefully(channel._stream.transport)  # type: ignore[attr-defined]
        assert "[lost]" in str(await node.expect("down", nodes[0].id))


async def test_out_of_descriptors_a_node_goes_on_accepting_later(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    count = MAX_HANDSHAKES + 1
    failures = [OSError(24, "Too many open files")] * count

    class Exhausted(trio.abc.Listener[trio.abc.Stream]):
        def __init__(self, real: trio.abc.Listener[trio.abc.Stream]) -> None:
            self._real = real

        async def accept(self) -> trio.abc.Stream:
            if failures:
                raise failures.pop()
            return await self._real.accept()

        async def aclose(self) -> None:
            await self._real.aclose()

    real_listen = network.listen

    async def listen(host: str, port: int) -> tuple[list[trio.abc.Listener[trio.abc.Stream]], int]:
        listeners, bound = await real_listen(host, port)
        return [Exhausted(listeners[0])], bound

    network.listen = listen  # type: ignore[method-assign]
    node = Node(nodes[1], nodes, network)
    async with running(node):
        with trio.fail_after(60):
            await serves_still(node, nodes[0], network)
        assert node.mesh.counters["accept_failed"] == count
        assert trio.current_time() > ACCEPT_RETRY_S * MAX_HANDSHAKES
        assert caplog.text.count("raise the limit of open files") == 1


def test_the_memory_of_who_was_warned_about_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    warn = WarnOnce(Counter())
    for number in range(3 * WarnOnce.MAX_KNOWN):
        warn.refuse(f"10.0.{number >> 8}.{number & 255}", RemoteFault("tls", "no"))
    assert len(warn._known) <= WarnOnce.MAX_KNOWN


async def test_no_key_and_no_payload_is_logged(
    nodes: list[Certified], network: MemoryNetwork, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    small, large = (Node(me, nodes[:2], network) for me in nodes[:2])
    async with running(large, small):
        await expect_up(small, large)
        small.mesh.send_nowait(large.id, b"a payload")
        await large.expect("frame", small.id)
    assert "is connected" in caplog.text
    assert "PRIVATE" not in caplog.text
    assert "a payload" not in caplog.text


def test_hello_version_stays_second_for_ever() -> None:
    hello = Hello(7, bytes(32), NodeId(bytes(20)), 1, bytes(8))
    assert msgspec.msgpack.decode(encode(hello))[:2] == ["hello", 7]


def test_one_machine_does_not_fill_the_log_from_all_addresses_of_its_network(caplog: pytest.LogCaptureFixture) -> None:
    warn = WarnOnce(Counter(), "client ")
    for number in range(500):
        warn.refuse(f"2001:db8:1:2::{number:x}", RemoteFault("tls", "no"))
    warn.refuse("2001:db8:1:3::1", RemoteFault("tls", "no"))
    warn.forget("2001:db8:1:2::77")
    warn.refuse("2001:db8:1:2::78", RemoteFault("tls", "no"))
    assert [record.getMessage() for record in caplog.records] == [
        f"no connection with client 2001:db8:1:{end}: no [tls]" for end in ("2::0", "3::1", "2::78")
    ]
    assert warn._counters["refused.tls"] == 502

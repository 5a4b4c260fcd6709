"""The simulated TCP and UDP: order, loss, cuts, and what others see of a process that dies."""

import random

import pytest
import trio

from netsim.datagrams import DatagramNetwork
from netsim.names import key_of, public_key
from netsim.network import Network
from netsim.plain import plain_context, plain_contexts
from netsim.plan import Cut, Weather
from netsim.streams import WINDOW_BYTES, StreamNetwork
from netsim.timeline import Timeline
from node.pki import peer_node_id_untrusted
from node.tls import start_tls
from routing.keyspace import node_id_of

HERE, THERE = ("10.0.0.0", 1), ("10.0.0.1", 1)
APART = Cut(0, (0,), (1,), 0)


class _World:
    def __init__(self) -> None:
        self.timeline = Timeline()
        self.network = Network(random.Random(1), Weather())
        self.tcp = StreamNetwork(self.timeline, self.network, random.Random(2), lambda source, target, data: None)
        self.hosts = [self.tcp.host(0), self.tcp.host(1)]

    async def pair(self) -> tuple[trio.abc.Stream, trio.abc.Stream]:
        """A connection that node 0 dialed."""
        (listener,), _ = await self.hosts[1].listen(*THERE)
        ours = await self.hosts[0].connect(*THERE)
        return ours, await listener.accept()


@pytest.fixture
async def world(nursery):
    made = _World()
    nursery.start_soon(made.timeline.run)
    yield made
    nursery.cancel_scope.cancel()


async def _receive(stream: trio.abc.Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await stream.receive_some()
    return data


async def test_bytes_arrive_complete_and_in_order_although_segments_are_lost(autojump_clock, world):
    ours, theirs = await world.pair()
    world.network.weather = Weather(loss=0.3, repeat=0.3, delay_mean_s=0.1)
    for i in range(100):
        await ours.send_all(bytes([i]))
    assert await _receive(theirs, 100) == bytes(range(100))
    assert world.network.lost > 10


async def test_what_was_sent_before_the_end_arrives_before_it(autojump_clock, world):
    ours, theirs = await world.pair()
    await ours.send_all(b"last words")
    await ours.aclose()
    assert await _receive(theirs, 10) == b"last words"
    assert await theirs.receive_some() == b""
    with pytest.raises(trio.ClosedResourceError):
        await ours.send_all(b"more")


async def test_a_cut_holds_what_was_sent_until_it_heals(autojump_clock, world):
    ours, theirs = await world.pair()
    world.network.cut(APART)
    await ours.send_all(b"held")
    with trio.move_on_after(10) as waited:
        await theirs.receive_some()
    assert waited.cancelled_caught
    world.network.heal(APART)
    assert await theirs.receive_some() == b"held"


async def test_a_cut_in_one_direction_leaves_the_other_one_open(autojump_clock, world):
    ours, theirs = await world.pair()
    world.network.cut(Cut(0, (0,), (1,), 0, one_way=True))
    await theirs.send_all(b"back")
    assert await ours.receive_some() == b"back"


async def test_a_connection_whose_path_stays_cut_is_lost_in_the_end(autojump_clock, world):
    ours, theirs = await world.pair()
    world.network.cut(APART)
    await ours.send_all(b"never")
    for stream in (ours, theirs):
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await ours.send_all(b"more")


async def test_a_cut_resets_some_connections_at_once(autojump_clock, world):
    (listener,), _ = await world.hosts[1].listen(*THERE)
    streams = [await world.hosts[0].connect(*THERE) for _ in range(40)]
    world.network.cut(APART)
    world.tcp.cut_happened()
    broken = 0
    for stream in streams:
        try:
            await stream.send_all(b"x")
        except trio.BrokenResourceError:
            broken += 1
    assert 10 < broken < 30
    await listener.aclose()


async def test_the_other_side_of_a_process_that_dies_sees_a_reset_and_nobody_listens_any_more(autojump_clock, world):
    ours, theirs = await world.pair()
    world.hosts[1].die()
    with pytest.raises(trio.BrokenResourceError):
        await ours.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        await theirs.receive_some()
    with pytest.raises(ConnectionRefusedError):
        await world.hosts[0].connect(*THERE)


async def test_nothing_of_a_process_that_died_arrives_behind_a_cut_before_it_heals(autojump_clock, world):
    ours, _ = await world.pair()
    world.network.cut(APART)
    world.hosts[1].die()
    with trio.move_on_after(10) as waited:
        await ours.receive_some()
    assert waited.cancelled_caught, "it cannot know"


async def test_connecting_waits_for_the_end_of_a_cut(autojump_clock, world):
    await world.hosts[1].listen(*THERE)
    world.network.cut(APART)
    with trio.move_on_after(5) as waited:
        await world.hosts[0].connect(*THERE)
    assert waited.cancelled_caught
    world.network.heal(APART)
    with trio.fail_after(5):
        await world.hosts[0].connect(*THERE)


async def test_a_sender_waits_for_a_reader_that_is_slow(autojump_clock, world):
    ours, theirs = await world.pair()
    with trio.move_on_after(5) as waited:
        for _ in range(100):
            await ours.send_all(bytes(WINDOW_BYTES // 4))
    assert waited.cancelled_caught
    await _receive(theirs, WINDOW_BYTES)
    with trio.fail_after(5):
        await ours.send_all(b"there is room again")


async def test_a_plain_handshake_tells_each_side_who_the_other_is(autojump_clock, world, nursery):
    ours, theirs = await world.pair()
    key = key_of("node 7")

    async def accept() -> None:
        secure = await start_tls(theirs, plain_contexts(key).accept, server=True)
        assert secure.peer_certificate == b"", "a client shows none"
        await secure.send_all(await secure.receive_some())
        await secure.aclose()

    nursery.start_soon(accept)
    secure = await start_tls(ours, plain_context(), server=False)
    certificate = secure.peer_certificate
    assert peer_node_id_untrusted(certificate) == node_id_of(public_key("node 7"))
    await secure.send_all(b"echo")
    assert await _receive(secure, 4) == b"echo"
    assert await secure.receive_some() == b""


async def test_datagrams_meet_the_faults_of_their_path_and_reach_open_ports_only(autojump_clock, world):
    udp = DatagramNetwork(world.timeline, world.network)
    heard: list[tuple[bytes, tuple[str, int]]] = []
    sender = await udp.of(0).open(lambda data, source: None, *HERE)
    factory = udp.of(1)
    await factory.open(lambda data, source: heard.append((data, source)), *THERE)
    sender.send(b"1", THERE)
    sender.send(b"nobody there", ("10.9.9.9", 1))
    await trio.sleep(1)
    world.network.cut(APART)
    sender.send(b"2", THERE)
    await trio.sleep(1)
    world.network.heal(APART)
    world.network.weather = Weather(repeat=1.0)
    sender.send(b"3", THERE)
    await trio.sleep(1)
    sender.send(b"too late", THERE)
    factory.die()
    await trio.sleep(1)
    assert heard == [(b"1", HERE), (b"3", HERE), (b"3", HERE)]


async def test_things_happen_at_their_time_and_in_the_order_they_were_scheduled(autojump_clock, world):
    seen: list[tuple[float, str]] = []
    start = trio.current_time()
    for when, what in ((3.0, "c"), (1.0, "a"), (3.0, "d"), (2.0, "b")):
        world.timeline.at(start + when, lambda what=what: seen.append((trio.current_time() - start, what)))
    await trio.sleep(10)
    assert seen == [(1.0, "a"), (2.0, "b"), (3.0, "c"), (3.0, "d")]

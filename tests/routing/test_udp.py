"""The same over real UDP on loopback."""

import random
import socket

import pytest
import trio
import trio_asyncio

from routing.datagrams import UdpFactory
from routing.dht import Contact, open_dht
from routing.errors import RoutingMisuse, RoutingNotReady
from routing.keyspace import closest, node_id_of
from tests.routing.routing_world import NETWORK_ID, NETWORK_KEY


def _open(name: bytes, port: int = 0, host: str = "127.0.0.1"):
    return open_dht(node_id_of(name), host, port, NETWORK_KEY, NETWORK_ID, random.Random(name), name.ljust(16))


async def test_three_nodes_find_each_other_over_udp():
    async with trio_asyncio.open_loop(), _open(b"a") as a, _open(b"b") as b, _open(b"c") as c:
        with trio.fail_after(30):
            assert await b.bootstrap([("localhost", a.port)]) == 1
            assert await c.bootstrap([("127.0.0.1", a.port)]) == 2
            found = await c.lookup(bytes(20))
            assert tuple(contact.id for contact in found.contacts) == closest({a.node_id, b.node_id}, bytes(20), 20)
            assert {contact.port for contact in found.contacts} == {a.port, b.port}
            assert 0 < await a.ping(found.contacts[0] if found.contacts[0].id != a.node_id else found.contacts[1]) < 5


async def test_garbage_on_the_port_is_dropped_and_the_node_goes_on():
    async with trio_asyncio.open_loop(), _open(b"a") as a, _open(b"b") as b:
        with trio.fail_after(30), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as noise:
            for data in (b"", b"garbage", bytes(1000), bytes(60_000)):
                noise.sendto(data, ("127.0.0.1", a.port))
            assert await b.ping(Contact(a.node_id, "127.0.0.1", a.port)) is not None
            assert a.dropped == {"short": 2, "version": 1, "oversized": 1}


async def test_an_address_that_no_socket_takes_is_a_loss_and_the_port_goes_on():
    """asyncio closes a port when the kernel's call raises a TypeError."""
    heard = []
    async with trio_asyncio.open_loop():
        udp = await UdpFactory().open(lambda data, sender: heard.append(data), "127.0.0.1", 0)
        for host in ("fe80::1%\0", "fe80::1%\ud800", "127.0.0.1\0", "\ud800", "name", "", "::1", "1.2.3.4.5"):
            udp.send(b"lost", (host, 9))
        for port in (-1, 65536, 2**70):
            udp.send(b"lost", ("127.0.0.1", port))
        with trio.fail_after(30):
            while not heard:
                udp.send(b"well", udp.address)
                await trio.sleep(0.01)
        udp.close()
    assert set(heard) == {b"well"}


async def test_a_port_in_use_and_a_name_that_does_not_exist():
    async with trio_asyncio.open_loop(), _open(b"a") as a:
        with pytest.RaisesGroup(pytest.RaisesExc(RoutingMisuse, match=f"port {a.port} cannot be bound.*free port")):
            async with _open(b"b", a.port):
                pass
        with trio.fail_after(30):
            for host in ("no-such-host.invalid", "no-such..host.invalid", "n" * 64):
                assert await a.bootstrap([(host, 1)]) == 0


async def test_a_name_that_nobody_can_be_asked_for_is_no_misuse(monkeypatch):
    """As while a machine starts."""

    def unanswered(*arguments, **more):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unanswered)
    async with trio_asyncio.open_loop():
        with pytest.raises(RoutingNotReady, match=r"UDP n1\.lan: no name can be looked up on this machine now"):
            await UdpFactory().open(lambda data, sender: None, "n1.lan", 0)

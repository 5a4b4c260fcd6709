"""Certificates out of their time: refused on both sides, and the words say why and what to do."""

import socket
import ssl
from pathlib import Path

import pytest
import trio
import trio.testing

from hopchain.client import Client
from hopchain.errors import Unreachable
from node.accepting import handshake_fault
from node.layout import CA_KEY, Network
from node.pki import NodeContexts, make_node_certificate, node_contexts, read_node_key, read_secret
from node.tls import TlsStream
from tests.hopchain.fake_node import FakeNode
from tests.hopchain.ledger import Ledger
from tests.node.wires import NOW_MS, new_layout

FAR_MS = NOW_MS + 40 * 365 * 86_400_000  # in forty years, as long as the CA of these tests lives


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return new_layout(tmp_path / "net", 2)


def contexts_of(network: Network, number: int, *, now_ms: int = NOW_MS, days: int = 36_000) -> NodeContexts:
    """A node's contexts with a certificate made at `now_ms`."""
    directory = network.node_directory(network.nodes[number])
    key = read_node_key(directory).public_key
    ca_key = read_secret(network.directory / CA_KEY)
    pem = make_node_certificate(network.genesis.ca.encode(), ca_key, key, now_ms, days)
    (directory / "node.crt").write_bytes(pem)
    return node_contexts(directory, network.genesis.ca)


async def faults_of(accept: ssl.SSLContext, dial: ssl.SSLContext) -> tuple[str, str]:
    """What the accepting and the dialling side say of a handshake that must fail; the latter may see it only when it
    reads."""
    ours, theirs = trio.testing.memory_stream_pair()
    said: dict[str, str] = {}

    async def side(name: str, stream: TlsStream) -> None:
        try:
            await stream.do_handshake()
            await stream.receive_some(1)
        except trio.BrokenResourceError as error:
            said[name] = str(handshake_fault(error))
        await stream.transport.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(side, "accept", TlsStream(theirs, accept, server=True))
        nursery.start_soon(side, "dial", TlsStream(ours, dial, server=False))
    return said["accept"], said["dial"]


@pytest.mark.parametrize(
    ("now_ms", "days", "says"), [(NOW_MS, 1, "certificate has expired"), (FAR_MS, 100, "certificate is not yet valid")]
)
async def test_who_dials_with_a_certificate_out_of_its_time_is_told(
    network: Network, now_ms: int, days: int, says: str
) -> None:
    bad = contexts_of(network, 1, now_ms=now_ms, days=days)
    accepted, dialed = await faults_of(contexts_of(network, 0).accept, bad.dial)
    assert f"its {says} by this machine's clock: renew it with `hopchain certificate renew`" in accepted
    assert "it refuses this node's certificate" in dialed


async def test_who_accepts_with_an_expired_one_is_told(network: Network) -> None:
    bad = contexts_of(network, 1, days=1)
    accepted, dialed = await faults_of(bad.accept, contexts_of(network, 0).dial)
    assert "it refuses this node's certificate (SSLV3_ALERT_CERTIFICATE_EXPIRED)" in accepted
    assert "its certificate has expired by this machine's clock" in dialed


async def test_who_is_refused_with_an_alert_is_told_so(network: Network) -> None:
    """As clients on asyncio do, and those of other implementations."""
    serve, dial = contexts_of(network, 1, days=1).serve, contexts_of(network, 0).dial
    ours, theirs = socket.socketpair()
    ours.settimeout(60)  # its thread is waited for also when the other side says nothing

    def refuse() -> None:
        with pytest.raises(ssl.SSLCertVerificationError, match="has expired"):
            dial.wrap_socket(ours)
        ours.close()

    stream = TlsStream(trio.SocketStream(trio.socket.from_stdlib_socket(theirs)), serve, server=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, refuse)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.do_handshake()
    fault = handshake_fault(caught.value)
    assert fault.code == "certificate"
    assert "it refuses this node's certificate (SSLV3_ALERT_CERTIFICATE_EXPIRED)" in fault.text
    assert "`hopchain certificate list` says when node.crt ends" in fault.text


async def test_a_client_says_so_too(network: Network) -> None:
    node = FakeNode(Ledger(network.genesis), contexts_of(network, 1, days=1).serve)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.serve)
        async with Client([node.address], network.genesis.ca, network.network_id) as client:
            with pytest.raises(Unreachable, match="its certificate has expired by this machine's clock: renew it with"):
                await client.health()
        node.stop()

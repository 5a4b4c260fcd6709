"""`hopchain certificate renew`: a running node takes its new node.crt up, and nobody who pays notices."""

import random
import secrets
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from hopchain.connection import client_context
from node.layout import NETWORK_KEY, NETWORK_KEY_BYTES
from node.pki import NODE_CERTIFICATE, node_contexts
from node.process import LOOK_AT_CERTIFICATE_S
from tests.cluster.cluster import START_S, Cluster, until
from tests.cluster.commands import operating
from tests.cluster.strangers import tls_stream
from tests.cluster.test_faults import Load

pytestmark = pytest.mark.cluster

RENEWED, ANOTHER = 1, 4
DAYS = 90


async def shown(address: tuple[str, int], context: ssl.SSLContext) -> x509.Certificate:
    """The certificate that a new handshake shows."""
    async with tls_stream(address, context) as stream:
        der = stream.peer_certificate
    return x509.load_der_x509_certificate(der)


async def test_a_new_certificate_is_taken_up_under_load(cluster: Cluster, tmp_path: Path) -> None:
    node, ca = cluster.nodes[RENEWED], cluster.network.genesis.ca
    ways = (
        (node.client_address, client_context(ca)),
        (node.peer_address, node_contexts(cluster.nodes[ANOTHER].directory, ca).dial),
    )
    old = x509.load_pem_x509_certificate((node.directory / NODE_CERTIFICATE).read_bytes())
    assert [await shown(*way) for way in ways] == [old, old]
    load = Load(cluster, await cluster.accounts("renewed", 10), random.Random(16))
    with operating(cluster.network.directory, tmp_path) as operator:
        async with load.running(clients=4):
            await load.more(20)
            connections = (await cluster.clients[RENEWED].status()).counters["mesh.up"]
            await operator.run(
                "certificate",
                "renew",
                node.place.name,
                "--network",
                str(cluster.network.directory),
                "--days",
                str(DAYS),
            )
            new = x509.load_pem_x509_certificate((node.directory / NODE_CERTIFICATE).read_bytes())

            async def look() -> tuple[bool, object]:
                seen = [await shown(*way) for way in ways]
                return seen == [new, new], [certificate.serial_number for certificate in seen]

            await until("both ports show the new certificate", look, LOOK_AT_CERTIFICATE_S + START_S)
            assert "node.crt was replaced: it is used from now on" in node.this_log()
            after = (await cluster.clients[RENEWED].status()).counters["mesh.up"]
            assert after == connections, "the connections that stood go on"
            await cluster.stop(ANOTHER)
            cluster.start(ANOTHER)
            await cluster.wait_up()  # members accept it, too
            await load.more(20)
        await cluster.settle()  # a node that lags answers rightly, but not `repeated`
        await load.finish()
    assert new.serial_number != old.serial_number
    assert new.public_key() == old.public_key()
    assert DAYS <= (new.not_valid_after_utc - new.not_valid_before_utc).days <= DAYS + 1


async def test_a_network_key_that_was_stolen_is_exchanged(cluster: Cluster) -> None:
    """All nodes are stopped, get the same new key and are started. What comes under the old one, here of a node that
    was left out, is dropped by the others, and all pay meanwhile."""
    *changed, left_out = cluster.nodes
    await cluster.stop()
    key = secrets.token_bytes(NETWORK_KEY_BYTES)
    for directory in (cluster.network.directory, *(node.directory for node in changed)):
        (directory / NETWORK_KEY).write_bytes(key)
    cluster.start()
    await cluster.wait_up()
    await cluster.accounts("rekeyed", 10)

    async def dropped() -> list[int]:
        return [(await client.status()).counters.get("dht.forged", 0) for client in cluster.clients]

    async def look() -> tuple[bool, object]:
        found = await dropped()
        return all(found[:-1]), found

    await until("the others drop what the old key sealed", look, START_S)
    await cluster.stop()
    (left_out.directory / NETWORK_KEY).write_bytes(key)
    cluster.start()
    await cluster.wait_up()
    await cluster.accounts("rekeyed-all", 10)
    await cluster.settle()
    assert await dropped() == [0, 0, 0, 0, 0]

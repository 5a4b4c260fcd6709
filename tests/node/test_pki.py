"""Keys and certificates: the id on a certificate is the key's, and secrets are for their owner alone."""

import os
import ssl
import stat
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from chain.errors import LocalMisuse, NotReady, RemoteFault
from hopchain.durable import write_secret
from hopchain.signing import private_key_pem
from node.pki import (
    CA_DAYS,
    NODE_DAYS,
    ca_until_ms,
    certificate_until_ms,
    certified_key,
    check_certificate_time,
    make_ca,
    make_node_certificate,
    node_contexts,
    node_key,
    parse_private_key,
    peer_node_id_untrusted,
    raw_public_key,
    read_node_key,
    read_private_key,
    read_secret,
    reload_contexts,
)
from node.tls import TlsStream
from routing.keyspace import node_id_of

NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000


def new_node(directory: Path, ca: tuple[bytes, bytes], days: int = NODE_DAYS) -> None:
    key = Ed25519PrivateKey.generate()
    write_secret(directory / "node.key", private_key_pem(key))
    (directory / "node.crt").write_bytes(make_node_certificate(*ca, raw_public_key(key), NOW_MS, days))


def der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


# --- certificates ---


def test_the_certificates_key_is_the_nodes_and_names_it() -> None:
    key = node_key(Ed25519PrivateKey.generate())
    pem = make_node_certificate(*make_ca("test", NOW_MS), key.public_key, NOW_MS)
    certificate = x509.load_pem_x509_certificate(pem)
    assert peer_node_id_untrusted(der(pem)) == key.id == node_id_of(key.public_key)
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == key.id.hex()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [f"{key.id.hex()}.hopchain.internal"]


def test_time_is_the_one_given_and_certificates_end() -> None:
    ca = make_ca("test", NOW_MS)
    for pem, days in ((ca[0], CA_DAYS), (make_node_certificate(*ca, bytes(32), NOW_MS), NODE_DAYS)):
        certificate = x509.load_pem_x509_certificate(pem)
        assert certificate.not_valid_before_utc.timestamp() == NOW_MS // 1000 - 86_400
        assert certificate.not_valid_after_utc.timestamp() == NOW_MS // 1000 + days * 86_400
    assert ca_until_ms(ca[0].decode()) == NOW_MS + CA_DAYS * DAY_MS


def test_no_certificate_outlives_its_ca(tmp_path: Path) -> None:
    ca = make_ca("test", NOW_MS, 10)
    path = tmp_path / "node.crt"
    path.write_bytes(make_node_certificate(*ca, bytes(32), NOW_MS + 9 * DAY_MS, 5))
    assert certificate_until_ms(path) == NOW_MS + 10 * DAY_MS
    with pytest.raises(LocalMisuse, match="the network's CA ended on 2023-11-24"):
        make_node_certificate(*ca, bytes(32), NOW_MS + 10 * DAY_MS, 5)


@pytest.mark.parametrize("days", [0, -1, 36_526])
def test_a_certificate_is_for_a_day_to_a_hundred_years(days: int) -> None:
    ca = make_ca("test", NOW_MS)
    with pytest.raises(LocalMisuse, match="it must be 1 to 36525"):
        make_node_certificate(*ca, bytes(32), NOW_MS, days)


def test_a_key_of_another_ca_signs_nothing() -> None:
    ours, other = make_ca("test", NOW_MS), make_ca("test", NOW_MS)
    with pytest.raises(LocalMisuse, match="the CA key is not that of the CA certificate"):
        make_node_certificate(ours[0], other[1], bytes(32), NOW_MS)


def test_a_certificate_out_of_its_time_is_told_before_others_refuse_it(tmp_path: Path) -> None:
    new_node(tmp_path, make_ca("test", NOW_MS))
    end = NOW_MS + NODE_DAYS * DAY_MS
    assert certificate_until_ms(tmp_path / "node.crt") == end
    check_certificate_time(tmp_path, NOW_MS - DAY_MS)
    check_certificate_time(tmp_path, end - 1)
    with pytest.raises(LocalMisuse, match=r"node\.crt expired on 2024-12-15: .*`hopchain certificate renew`"):
        check_certificate_time(tmp_path, end)
    with pytest.raises(NotReady, match=r"is valid from 2023-11-13 on, .*: set the clock"):
        check_certificate_time(tmp_path, NOW_MS - DAY_MS - 1)


def test_the_certified_key_is_the_nodes(tmp_path: Path) -> None:
    new_node(tmp_path, make_ca("test", NOW_MS))
    assert certified_key(tmp_path / "node.crt") == read_node_key(tmp_path).public_key
    with pytest.raises(LocalMisuse, match="cannot be read"):
        certified_key(tmp_path / "none")


def test_a_certificate_of_this_ca_with_another_kind_of_key_is_not_the_nodes(tmp_path: Path) -> None:
    ca = make_ca("test", NOW_MS)
    new_node(tmp_path, ca)
    authority = x509.load_pem_x509_certificate(ca[0])
    start = authority.not_valid_before_utc
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    builder = x509.CertificateBuilder(authority.subject, authority.subject, key, 1, start, start)
    signed = builder.sign(parse_private_key(ca[1], "the CA key"), None)
    (tmp_path / "node.crt").write_bytes(signed.public_bytes(Encoding.PEM))
    with pytest.raises(LocalMisuse, match=r"node\.crt is not the certificate of node"):
        node_contexts(tmp_path, ca[0].decode())


def test_a_certificate_with_another_kind_of_key_is_nobodys() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    start = x509.load_pem_x509_certificate(make_ca("test", NOW_MS)[0]).not_valid_before_utc
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start)
    with pytest.raises(RemoteFault, match="key is not Ed25519"):
        peer_node_id_untrusted(builder.sign(key, SHA256()).public_bytes(Encoding.DER))


SAMPLE = der(make_ca("test", NOW_MS)[0])


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@given(st.binary(max_size=300) | st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)))
def test_any_bytes_are_an_id_or_a_remote_fault(damage: bytes | tuple[int, int]) -> None:
    if isinstance(damage, bytes):
        raw = damage
    else:
        raw = bytearray(SAMPLE)
        raw[damage[0]] = damage[1]
    with suppress(RemoteFault):
        assert len(peer_node_id_untrusted(bytes(raw))) == 20


# --- contexts ---


def test_contexts_are_tls_1_3_only_and_members_must_show_a_certificate(tmp_path: Path) -> None:
    ca = make_ca("test", NOW_MS)
    new_node(tmp_path, ca)
    contexts = node_contexts(tmp_path, ca[0].decode())
    for context in (contexts.accept, contexts.dial, contexts.serve):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert contexts.accept.verify_mode == contexts.dial.verify_mode == ssl.CERT_REQUIRED
    assert contexts.serve.verify_mode == ssl.CERT_NONE


def test_a_certificate_of_another_network_is_refused_at_start(tmp_path: Path) -> None:
    new_node(tmp_path, make_ca("one", NOW_MS))
    with pytest.raises(LocalMisuse, match=r"node\.crt is not signed by the CA in genesis\.json"):
        node_contexts(tmp_path, make_ca("other", NOW_MS)[0].decode())


def test_a_certificate_of_another_node_is_refused_at_start(tmp_path: Path) -> None:
    ca = make_ca("test", NOW_MS)
    new_node(tmp_path, ca)
    (tmp_path / "node.crt").write_bytes(make_node_certificate(*ca, bytes(range(32)), NOW_MS))
    with pytest.raises(LocalMisuse, match=r"node\.crt is not the certificate of node"):
        node_contexts(tmp_path, ca[0].decode())


@pytest.mark.parametrize(
    ("name", "says"), [("node.crt", "node.crt cannot be read"), ("node.key", "node.key cannot be read")]
)
def test_a_missing_file_is_named(tmp_path: Path, name: str, says: str) -> None:
    ca = make_ca("test", NOW_MS)
    new_node(tmp_path, ca)
    (tmp_path / name).unlink()
    with pytest.raises(LocalMisuse, match=says):
        node_contexts(tmp_path, ca[0].decode())


def test_what_is_no_certificate_is_named(tmp_path: Path) -> None:
    ca = make_ca("test", NOW_MS)
    new_node(tmp_path, ca)
    (tmp_path / "node.crt").write_text("hello")
    with pytest.raises(LocalMisuse, match="is not a certificate in PEM form"):
        node_contexts(tmp_path, ca[0].decode())


async def shown_by(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[TlsStream, bytes]:
    """The stream of a handshake, as the client sees it, and the certificate that the server showed."""
    ours, theirs = trio.testing.memory_stream_pair()
    side, other = TlsStream(ours, client, server=False), TlsStream(theirs, server, server=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other.do_handshake)
        nursery.start_soon(side.do_handshake)
    return other, side.peer_certificate


@pytest.mark.parametrize("way", ["accept", "serve"])
async def test_a_renewed_certificate_is_shown_in_new_handshakes_and_old_connections_go_on(
    tmp_path: Path, way: str
) -> None:
    ca = make_ca("test", NOW_MS, 36_500)
    new_node(tmp_path, ca, 36_499)
    contexts = node_contexts(tmp_path, ca[0].decode())
    before = (tmp_path / "node.crt").read_bytes()
    standing, shown = await shown_by(getattr(contexts, way), contexts.dial)
    assert shown == der(before)
    renewed = make_node_certificate(*ca, read_node_key(tmp_path).public_key, NOW_MS, 36_500)
    (tmp_path / "node.crt").write_bytes(renewed)
    assert (await shown_by(getattr(contexts, way), contexts.dial))[1] == der(before)
    assert contexts.until_ms == NOW_MS + 36_499 * DAY_MS
    reload_contexts(contexts, tmp_path)
    assert contexts.until_ms == NOW_MS + 36_500 * DAY_MS
    assert (await shown_by(getattr(contexts, way), contexts.dial))[1] == der(renewed)
    if way == "accept":  # the dialling side shows the new one too
        other, _ = await shown_by(contexts.accept, contexts.dial)
        assert other.peer_certificate == der(renewed)
    await standing.send_all(b"still here")


async def test_what_is_no_certificate_of_this_node_is_not_loaded(tmp_path: Path) -> None:
    ca = make_ca("test", NOW_MS, 36_500)
    new_node(tmp_path, ca, 36_500)
    contexts = node_contexts(tmp_path, ca[0].decode())
    good = (tmp_path / "node.crt").read_bytes()
    key = read_node_key(tmp_path).public_key
    for bad in (
        b"half a fi",
        make_node_certificate(*ca, bytes(range(32)), NOW_MS),
        make_node_certificate(*make_ca("other", NOW_MS), key, NOW_MS),
    ):
        (tmp_path / "node.crt").write_bytes(bad)
        with pytest.raises(LocalMisuse, match=r"node\.crt is not"):
            reload_contexts(contexts, tmp_path)
        assert (await shown_by(contexts.accept, contexts.dial))[1] == der(good)
        assert contexts.until_ms == NOW_MS + 36_500 * DAY_MS


# --- secrets ---


def test_a_secret_is_0600_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_secret(tmp_path / "key", b"secret")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert read_secret(tmp_path / "key") == b"secret"


def test_a_secret_is_never_written_over_or_through_a_link(tmp_path: Path) -> None:
    write_secret(tmp_path / "key", b"first")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("key", "link"):
        with pytest.raises(LocalMisuse, match="exists and is not replaced"):
            write_secret(tmp_path / name, b"second")
    assert (tmp_path / "key").read_bytes() == b"first"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610])
def test_a_secret_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    write_secret(path, b"secret")
    path.chmod(mode)
    with pytest.raises(LocalMisuse, match=f"has mode {mode:04o}.*: chmod 600 {path}"):
        read_secret(path)
    path.chmod(0o600)
    assert read_secret(path) == b"secret"


def test_a_key_file_must_hold_an_ed25519_key_and_the_error_does_not_hold_the_file(tmp_path: Path) -> None:
    write_secret(tmp_path / "key", b"no key at all")
    with pytest.raises(LocalMisuse, match="is not an unencrypted private key in PEM form") as caught:
        read_private_key(tmp_path / "key")
    assert "no key at all" not in str(caught.value)
    other = ec.generate_private_key(ec.SECP256R1())
    write_secret(tmp_path / "ec", other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(LocalMisuse, match="holds a key of another kind; it must be Ed25519"):
        read_private_key(tmp_path / "ec")
    write_secret(tmp_path / "large", bytes(70_000))
    with pytest.raises(LocalMisuse, match="more than 65536 bytes"):
        read_private_key(tmp_path / "large")


def test_a_node_key_is_read_back_and_does_not_print_its_secret(tmp_path: Path) -> None:
    private = Ed25519PrivateKey.generate()
    write_secret(tmp_path / "node.key", private_key_pem(private))
    key = read_node_key(tmp_path)
    assert key.public_key == raw_public_key(private)
    assert "private" not in repr(key)

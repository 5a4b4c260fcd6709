"""Keys and certificates: who may talk to whom.

* A node's identity is its Ed25519 key: node id = first 20 bytes of SHA-256(raw public key).
* The network's CA (in the genesis file) signs, for each node, a certificate whose subject key *is* that key. TLS then
  proves possession of the key, and the node id is read off the certificate: no host names, no lookup.
* Whether a node is a member is for the view to say, not for its certificate: removal from the view is what revokes one.
* A node's certificate ends after NODE_DAYS, and never after the CA's, which is part of genesis.json and so is fixed for
  the life of the network (CA_DAYS). A new one for the same key (`hopchain certificate renew`) replaces the file; a
  running node loads it into its contexts: new handshakes show it, standing connections go on.
* TLS 1.3 only. Between nodes both sides show a certificate; on the client port only the node does.
* Secrets are files with mode 0600 from their first byte. A key file that others can read is refused.
"""

import datetime
import os
import ssl
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from chain.errors import LocalMisuse, NotReady, RemoteFault
from hopchain.signing import private_key_pem
from node.lost import unreadable, what_to_do
from routing.keyspace import NodeId, node_id_of

NODE_KEY: Final = "node.key"
NODE_CERTIFICATE: Final = "node.crt"
MAX_SECRET_BYTES: Final = 64 * 1024  # a key file is a few hundred bytes; anything larger is not one

NODE_DAYS: Final = 397  # of a node's certificate: 13 months, so that renewing it is a yearly habit
CA_DAYS: Final = 3653  # ten years
MAX_DAYS: Final = 36_525  # a hundred years: for networks that are kept as they are, such as those of tests

_CLOCK_SKEW: Final = datetime.timedelta(days=1)  # a machine whose clock is behind accepts a new certificate


@dataclass(frozen=True, slots=True)
class NodeKey:
    """A node's own key, and the id that follows from it."""

    id: NodeId
    public_key: bytes
    private: Ed25519PrivateKey = field(repr=False)


@dataclass(slots=True)
class NodeContexts:
    """The three ways in which a node uses TLS: `accept` and `dial` between members, `serve` for clients. `ca_pem`: the
    CA that they trust; `until_ms`: when the certificate that they show ends, Unix milliseconds, whatever its file holds
    now; `outdated`: that file has another one, which cannot be used."""

    accept: ssl.SSLContext
    dial: ssl.SSLContext
    serve: ssl.SSLContext
    ca_pem: str = field(default="", repr=False)
    until_ms: int = 0
    outdated: bool = False


# --- secrets as files ----------------------------------------------------------------------------------------------


def read_secret(path: Path, advice: str = "") -> bytes:
    """The bytes of a secret file. `LocalMisuse` when it is missing (`advice` says what to do then, else node.lost) or
    others may use it."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise LocalMisuse(
                    f"{path} holds a secret and has mode {mode:04o}, so others can use it: chmod 600 {path}"
                )
            secret = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise LocalMisuse(unreadable(path, error, advice)) from None
    if len(secret) > MAX_SECRET_BYTES:
        raise LocalMisuse(f"{path} has more than {MAX_SECRET_BYTES} bytes: it is not a key file")
    return secret


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """The Ed25519 key in the PEM file `path`; `LocalMisuse` when it is not one."""
    pem = read_secret(path)
    try:
        return parse_private_key(pem, str(path))
    except LocalMisuse as error:
        raise LocalMisuse(f"{error}; {what_to_do(path)}") from None


def read_node_key(directory: Path) -> NodeKey:
    """The key of the node whose directory this is."""
    return node_key(read_private_key(directory / NODE_KEY))


def node_key(private: Ed25519PrivateKey) -> NodeKey:
    """The node identity of a private key."""
    public_key = raw_public_key(private)
    return NodeKey(node_id_of(public_key), public_key, private)


def raw_public_key(private: Ed25519PrivateKey) -> bytes:
    """The 32 raw bytes of the key's public half."""
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def parse_private_key(pem: bytes, where: str) -> Ed25519PrivateKey:
    """The Ed25519 key in PEM bytes; `LocalMisuse` when it is not one. `where` is what the message calls it."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        raise LocalMisuse(f"{where} is not an unencrypted private key in PEM form") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise LocalMisuse(f"{where} holds a key of another kind; it must be Ed25519")
    return key


# --- certificates --------------------------------------------------------------------------------------------------


def make_ca(network_name: str, now_ms: int, days: int = CA_DAYS) -> tuple[bytes, bytes]:
    """A new CA for one network: (certificate PEM, private key PEM), for `days` from `now_ms` (Unix milliseconds)."""
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"hopchain {network_name}"[:64])])
    usage = _key_usage(signs_certificates=True)
    builder = _builder(name, name, key.public_key(), key.public_key(), now_ms, _end(now_ms, days))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    certificate = builder.add_extension(usage, critical=True).sign(key, None)
    return certificate.public_bytes(Encoding.PEM), private_key_pem(key)


def make_node_certificate(
    ca_certificate: bytes, ca_key: bytes, public_key: bytes, now_ms: int, days: int = NODE_DAYS
) -> bytes:
    """A certificate, PEM, for the node with this 32-byte raw Ed25519 public key; its common name is the node id.

    It is valid for `days` from `now_ms`, but not longer than the CA. `LocalMisuse` when the CA has ended, or the key is
    another CA's.
    """
    issuer = _certificate(ca_certificate, "the CA certificate")
    end = min(_end(now_ms, days), issuer.not_valid_after_utc)
    if now_ms >= _ms(issuer.not_valid_after_utc):
        raise LocalMisuse(
            f"the network's CA ended on {_day(issuer.not_valid_after_utc)}: it is part of genesis.json, so nothing can be "
            "signed for this network any more; make a new one with `hopchain init` and move the money"
        )
    key = Ed25519PublicKey.from_public_bytes(public_key)
    node_id = node_id_of(public_key).hex()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node_id)])
    signer = parse_private_key(ca_key, "the CA key")
    if signer.public_key() != issuer.public_key():
        raise LocalMisuse("the CA key is not that of the CA certificate: take ca.key and genesis.json of one network")
    builder = _builder(subject, issuer.subject, key, signer.public_key(), now_ms, end)
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage(signs_certificates=False), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), False),
        (x509.SubjectAlternativeName([x509.DNSName(f"{node_id}.hopchain.internal")]), False),
    ):
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(signer, None).public_bytes(Encoding.PEM)


def peer_node_id_untrusted(der: bytes) -> NodeId:
    """The id of the node that a certificate (DER) belongs to. Raises `RemoteFault("certificate")`."""
    try:
        key = x509.load_der_x509_certificate(der).public_key()
    except Exception:  # noqa: BLE001 -- the parser names no complete list of what it raises for bad bytes
        raise RemoteFault("certificate", f"a certificate of {len(der)} bytes cannot be read") from None
    if not isinstance(key, Ed25519PublicKey):
        raise RemoteFault("certificate", "a certificate whose key is not Ed25519; nodes have Ed25519 keys")
    return node_id_of(key.public_bytes_raw())


def node_contexts(directory: Path, ca_pem: str) -> NodeContexts:
    """TLS for the node in `directory` (node.key, node.crt) in the network of this CA (genesis.json).

    `LocalMisuse` when the certificate is not this network's or not this key's.
    """
    until_ms = _check_pair(directory, ca_pem)
    accept = _context(ssl.PROTOCOL_TLS_SERVER, directory)
    accept.verify_mode = ssl.CERT_REQUIRED
    accept.load_verify_locations(cadata=ca_pem)
    dial = _context(ssl.PROTOCOL_TLS_CLIENT, directory)
    dial.verify_mode = ssl.CERT_REQUIRED
    dial.load_verify_locations(cadata=ca_pem)
    return NodeContexts(accept, dial, _context(ssl.PROTOCOL_TLS_SERVER, directory), ca_pem, until_ms)


def reload_contexts(contexts: NodeContexts, directory: Path) -> None:
    """Have new handshakes use the node.crt that is in `directory` now; standing connections go on with the old one.

    `LocalMisuse`, and nothing changed, when it is not this network's or not this key's.
    """
    until_ms = _check_pair(directory, contexts.ca_pem)
    for context in (contexts.accept, contexts.dial, contexts.serve):
        context.load_cert_chain(directory / NODE_CERTIFICATE, directory / NODE_KEY)
    contexts.until_ms = until_ms


def certificate_until_ms(path: Path) -> int:
    """When the certificate in the PEM file `path` ends, Unix milliseconds. `LocalMisuse` when it is none."""
    return _ms(_read_certificate(path).not_valid_after_utc)


def ca_until_ms(ca_pem: str) -> int:
    """When the CA of genesis.json ends, Unix milliseconds."""
    return _ms(_certificate(ca_pem.encode(), "the CA certificate in genesis.json").not_valid_after_utc)


def check_certificate_time(directory: Path, now_ms: int) -> None:
    """`LocalMisuse` when node.crt is not valid at `now_ms` any more, `NotReady` when it is not valid yet: every other
    node and client would refuse this one."""
    path = directory / NODE_CERTIFICATE
    certificate = _read_certificate(path)
    if now_ms >= _ms(certificate.not_valid_after_utc):
        raise LocalMisuse(
            f"{path} expired on {_day(certificate.not_valid_after_utc)}: others refuse this node; renew it with "
            "`hopchain certificate renew` where the network's ca.key is"
        )
    if now_ms < _ms(certificate.not_valid_before_utc):
        raise NotReady(
            f"{path} is valid from {_day(certificate.not_valid_before_utc)} on, which is later than this machine's "
            "clock: set the clock"
        )


def certified_key(path: Path) -> bytes:
    """The 32 raw bytes of the Ed25519 public key in the PEM certificate `path`."""
    key = _read_certificate(path).public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise LocalMisuse(f"{path} has a key of another kind; nodes have Ed25519 keys")
    return key.public_bytes_raw()


def certificate_matches(pem: bytes, where: str, ca_pem: str, node: NodeId) -> None:
    """`LocalMisuse` unless the certificate is signed by this CA and is this node's. `where` is what the message calls
    it."""
    certificate = _certificate(pem, where)
    authority = _certificate(ca_pem.encode(), "the CA certificate in genesis.json")
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise LocalMisuse(
            f"{where} is not signed by the CA in genesis.json: the two are of different networks; copy the right ones"
        ) from None
    try:
        certified = peer_node_id_untrusted(certificate.public_bytes(Encoding.DER))
    except RemoteFault:  # the CA has signed a key of another kind
        certified = None
    if certified != node:
        raise LocalMisuse(
            f"{where} is not the certificate of node {node.hex()}: copy node.crt and node.key from one node"
        )


def _check_pair(directory: Path, ca_pem: str) -> int:
    """When node.crt ends, Unix milliseconds; `LocalMisuse` unless it is signed by this CA and made for node.key."""
    path = directory / NODE_CERTIFICATE
    pem = _read_file(path)
    certificate = _certificate(pem, str(path), what_to_do(path))
    certificate_matches(pem, str(path), ca_pem, read_node_key(directory).id)
    return _ms(certificate.not_valid_after_utc)


def _context(protocol: int, directory: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the key is the identity; see the hello
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # connections are long: nothing to resume
    context.load_cert_chain(directory / NODE_CERTIFICATE, directory / NODE_KEY)
    return context


def _read_certificate(path: Path) -> x509.Certificate:
    return _certificate(_read_file(path), str(path), what_to_do(path))


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LocalMisuse(unreadable(path, error)) from None


def _end(now_ms: int, days: int) -> datetime.datetime:
    if not 1 <= days <= MAX_DAYS:
        raise LocalMisuse(f"a certificate for {days} days: it must be 1 to {MAX_DAYS}")
    return datetime.datetime.fromtimestamp(now_ms // 1000, tz=datetime.UTC) + datetime.timedelta(days=days)


def _ms(when: datetime.datetime) -> int:
    return int(when.timestamp()) * 1000


def _day(when: datetime.datetime) -> str:
    return f"{when:%Y-%m-%d}"


def _certificate(pem: bytes, where: str, advice: str = "") -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except (ValueError, x509.InvalidVersion):
        text = f"{where} is not a certificate in PEM form"
        raise LocalMisuse(f"{text}; {advice}" if advice else text) from None


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: Ed25519PublicKey,
    signer: Ed25519PublicKey,
    now_ms: int,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    now = datetime.datetime.fromtimestamp(now_ms // 1000, tz=datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )

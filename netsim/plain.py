"""Connections without cryptography, for simulated nodes only: who someone is, is said and believed.

TLS needs real randomness and the real date, and would cost most of the time of a simulated run. Production code is not
changed for this: a node is given `ssl.SSLContext`s, and those made here exchange certificates in the clear and then
pass bytes through. Everything above, from the hello to the last frame, is what runs in production.
"""

import datetime
import ssl
from typing import Final, cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from node.pki import NodeContexts

_LENGTH_BYTES: Final = 4
_DAY: Final = datetime.datetime(2023, 11, 14, tzinfo=datetime.UTC)


class PlainContext(ssl.SSLContext):
    """Shows `certificate` (DER; empty for a client, which has none)."""

    certificate: bytes

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """What `node.tls` reads and writes through."""
        return cast(ssl.SSLObject, _PlainObject(self.certificate, incoming, outgoing, server_side))


class _PlainObject:
    """As much of `ssl.SSLObject` as `node.tls` uses."""

    def __init__(self, certificate: bytes, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, server_side: bool) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._peer: bytes | None = None
        self._heard = b""
        self.server_side = server_side
        outgoing.write(len(certificate).to_bytes(_LENGTH_BYTES) + certificate)

    def version(self) -> str:
        """Not TLS."""
        return "plain"

    def do_handshake(self) -> None:
        """Wait for the other's certificate."""
        self._want(_LENGTH_BYTES)
        length = int.from_bytes(self._heard[:_LENGTH_BYTES])
        self._want(_LENGTH_BYTES + length)
        self._peer = self._heard[_LENGTH_BYTES:]

    def _want(self, size: int) -> None:
        self._heard += self._incoming.read(size - len(self._heard))
        if len(self._heard) < size:
            if self._incoming.eof:
                raise ssl.SSLEOFError("closed during the handshake")
            raise ssl.SSLWantReadError

    def getpeercert(self, binary_form: bool = False) -> bytes | None:
        """The other's certificate, DER."""
        return self._peer

    def read(self, size: int, buffer: bytearray) -> int:
        """Put what has come, at most `size` bytes, into `buffer`: how many; 0 at the end."""
        data = self._incoming.read(size)
        if not data and not self._incoming.eof:
            raise ssl.SSLWantReadError
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: bytes) -> int:
        """Pass on."""
        return self._outgoing.write(data)

    def unwrap(self) -> None:
        """No goodbye: the end of the stream is one."""


def plain_context(certificate: bytes = b"") -> PlainContext:
    """A context that shows this certificate."""
    context = PlainContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.certificate = certificate
    return context


def plain_contexts(key: Ed25519PrivateKey) -> NodeContexts:
    """The contexts of the node with this key. The certificate is the same in every run."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "simulated")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, _DAY, _DAY + datetime.timedelta(days=1))
    context = plain_context(builder.sign(key, None).public_bytes(Encoding.DER))
    return NodeContexts(context, context, context)

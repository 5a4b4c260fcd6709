"""A client's connection to one node: TLS 1.3, frames, the hello; on trio and on asyncio alike (anyio).

The node proves itself with a certificate of the network's CA, which is in the genesis file. Host names are not
checked: a node's identity is its key, and members may move.
"""

import ssl
from contextlib import suppress
from typing import Final

import anyio
import anyio.abc
import msgspec

from chain.errors import HopchainError, RemoteFault
from hopchain import wire
from hopchain.framing import FrameReader, frame
from routing.keyspace import ID_BYTES

CONNECT_TIMEOUT_S: Final = 5.0
CLOSE_TIMEOUT_S: Final = 1.0
_OUT_OF_TIME: Final = frozenset({9, 10})  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED


class ConnectionFailed(HopchainError):
    """The node cannot be reached or went away; another node of the network may answer."""


def client_context(ca_pem: str) -> ssl.SSLContext:
    """TLS 1.3 only; the server must show a certificate signed by this CA (PEM, as in genesis.json)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=ca_pem)
    return context


class Connection:
    """Frames to and from one node after the hello. One task may receive while others send.

    Make one with `connect`. Every method raises `ConnectionFailed` when the connection is gone; it stays so.
    """

    def __init__(self, stream: anyio.abc.ByteStream, node: str) -> None:
        self.node_id = b""  # as its hello says; a node of an earlier release says none
        self._stream = stream
        self._reader = FrameReader(wire.MAX_CLIENT_FRAME_BYTES)
        self._sending = anyio.Lock()
        self.node = node

    async def send(self, *payloads: bytes) -> None:
        """Send frames, all in one write. Cancelling this in the middle breaks the connection: close it then."""
        for payload in payloads:
            if len(payload) > wire.MAX_CLIENT_FRAME_BYTES:
                raise RemoteFault("oversize", f"a frame of {len(payload)} bytes: at most {wire.MAX_CLIENT_FRAME_BYTES}")
        async with self._sending:
            try:
                await self._stream.send(b"".join(map(frame, payloads)))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                raise ConnectionFailed(f"the connection to {self.node} is lost; try another node") from None

    async def receive(self) -> bytes:
        """The next frame of the node. Raises `RemoteFault` for one that is too large."""
        while (payload := self._reader.pop()) is None:
            try:
                self._reader.push(await self._stream.receive())
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                raise ConnectionFailed(f"{self.node} closed the connection; try another node") from None
        return payload

    async def aclose(self) -> None:
        """Say goodbye and close; at most CLOSE_TIMEOUT_S, also when cancelled."""
        with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                await self._stream.aclose()


async def connect(
    host: str, port: int, *, context: ssl.SSLContext, network: bytes, timeout_s: float = CONNECT_TIMEOUT_S
) -> Connection:
    """Connect to a node's client port and exchange hellos.

    Raises `ConnectionFailed` (nobody there, not a node of this CA, no answer in `timeout_s`) or `RemoteFault` with the
    node's own words when it refuses (`network`, `version`, `busy`).
    """
    node = f"{host}:{port}"
    try:
        with anyio.fail_after(timeout_s):
            stream = await anyio.connect_tcp(host, port, ssl_context=context, tls_standard_compatible=True)
            connection = Connection(stream, node)
            try:
                await connection.send(wire.encode(wire.Hello(wire.PROTOCOL_VERSION, network)))
                connection.node_id = _check_hello_untrusted(await connection.receive(), network, node)
            except BaseException:
                await connection.aclose()
                raise
    except TimeoutError:
        raise ConnectionFailed(f"{node} did not answer in {timeout_s:g} s; try another node") from None
    except ssl.SSLError as error:
        if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in _OUT_OF_TIME:
            raise ConnectionFailed(
                f"{node} is refused, its {error.verify_message} by this machine's clock: renew it with "
                "`hopchain certificate renew`, or set the clocks"
            ) from None
        raise ConnectionFailed(
            f"{node} is not a client port of this network ({error.reason or error}); check the address and the network"
        ) from None
    except (OSError, anyio.BrokenResourceError, anyio.EndOfStream) as error:
        raise ConnectionFailed(f"{node} cannot be reached ({error}); is the node running?") from None
    return connection


def _check_hello_untrusted(payload: bytes, network: bytes, node: str) -> bytes:
    """The id that the node says, as `id_said`."""
    try:
        hello = wire.decode_node_frame_untrusted(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise RemoteFault("malformed", f"the hello of {node} cannot be read: {error}") from None
    if isinstance(hello, wire.Refused):
        raise RemoteFault(hello.code, f"{node} refused the connection: {hello.reason}")
    if not isinstance(hello, wire.Hello):
        raise RemoteFault("malformed", f"{node} did not begin with a hello")
    if hello.version != wire.PROTOCOL_VERSION:
        raise RemoteFault(
            "version", f"{node} speaks version {hello.version}, this client {wire.PROTOCOL_VERSION}: use one release"
        )
    if hello.network != network:
        raise RemoteFault("network", f"{node} is of network {hello.network.hex()[:16]}, not {network.hex()[:16]}")
    return id_said(hello)


def id_said(hello: wire.Hello) -> bytes:
    """The id in a node's hello; empty when there is none, or none that is an id."""
    return hello.node if len(hello.node) == ID_BYTES else b""

"""A client's connection to one node: TLS 1.3, frames, the hello; on trio and on asyncio alike (anyio).

The node proves itself with a certificate of the network's CA, which is in the genesis file. Host names are not
checked: a node's identity is its key, and members may move.
"""

import os
import ssl
from contextlib import suppress
from typing import Final

import anyio
import anyio.abc
import msgspec
from anyio.streams.tls import TLSStream

from chain.errors import HopchainError, LocalMisuse, RemoteFault, cut
from hopchain import wire
from hopchain.addresses import Address
from hopchain.framing import FrameReader, frame
from routing.keyspace import ID_BYTES

DIAL_S: Final = 3.0  # TCP, TLS and hello together
CLOSE_TIMEOUT_S: Final = 1.0
_GIVE_PEM: Final = "give the text of the CA's certificate, `ca` in genesis.json, not bytes and not the name of a file"
_TRY_ANOTHER: Final = "try another node"
_OUT_OF_TIME: Final = frozenset({9, 10})  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED


def shown_s(seconds: float) -> str:
    """A time to wait, as people read it; one that is not 0 is not shown as 0."""
    return f"{round(seconds, 2) or float(f'{seconds:.1g}'):g} s"


class ConnectionFailed(HopchainError):
    """The node cannot be reached, is not of this network, or went away; another node of the network may answer.

    `cause`: what happened, without the node's address and without advice. `reached`: somebody listens there.
    """

    def __init__(self, node: str, cause: str, advice: str = "", *, reached: bool = True) -> None:
        super().__init__(f"{node} {cause}; {advice}" if advice else f"{node} {cause}")
        self.cause = cause
        self.reached = reached


def client_context(ca_pem: str) -> ssl.SSLContext:
    """TLS 1.3 only; the server must show a certificate signed by this CA (PEM, as in genesis.json).
    `LocalMisuse` when it is no such text."""
    if not isinstance(ca_pem, str):
        raise LocalMisuse(f"ca_pem is {type(ca_pem).__name__}: {_GIVE_PEM}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(cadata=ca_pem)
    except (ssl.SSLError, ValueError) as error:
        raise LocalMisuse(f"ca_pem, {len(ca_pem)} characters, is no certificate ({error}): {_GIVE_PEM}") from None
    return context


class Connection:
    """Frames to and from one node after the hello. One task may receive while others send.

    Make one with `connect`. Every method raises `ConnectionFailed` when the connection is gone; it stays so.
    """

    def __init__(self, stream: anyio.abc.ByteStream, node: str) -> None:
        self.node_id = b""  # as its hello says; empty when it says none
        self._stream = stream
        self._reader = FrameReader(wire.MAX_CLIENT_FRAME_BYTES)
        self._sending = anyio.Lock()
        self.node = node

    async def send(self, *payloads: bytes) -> None:
        """Send frames, all in one write. Cancelling this in the middle breaks the connection: close it then."""
        for payload in payloads:
            assert len(payload) <= wire.MAX_CLIENT_FRAME_BYTES, (
                f"a frame of {len(payload)} bytes, {wire.MAX_CLIENT_FRAME_BYTES} at most: `check_can_be_sent` lets none pass"
            )
        async with self._sending:
            try:
                await self._stream.send(b"".join(map(frame, payloads)))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                raise ConnectionFailed(self.node, "lost the connection", _TRY_ANOTHER) from None

    async def receive(self) -> bytes:
        """The next frame of the node. Raises `RemoteFault` for one that is too large."""
        while (payload := self._reader.pop()) is None:
            try:
                self._reader.push(await self._stream.receive())
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                raise ConnectionFailed(self.node, "closed the connection", _TRY_ANOTHER) from None
        return payload

    async def aclose(self) -> None:
        """Say goodbye and close; at most CLOSE_TIMEOUT_S, also when cancelled."""
        with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                await self._stream.aclose()


async def connect(
    host: str, port: int, *, context: ssl.SSLContext, network: bytes, timeout_s: float = DIAL_S
) -> Connection:
    """Connect to a node's client port and exchange hellos.

    Raises `ConnectionFailed`: nobody there, not a node of this CA, no answer in `timeout_s`, or the node's own words
    when it refuses (`network`, `version`, `busy`).
    """
    node = str(Address(host, port))
    reached = False
    try:
        with anyio.fail_after(timeout_s):
            plain = await anyio.connect_tcp(host, port)
            reached = True
            stream = await _secured(plain, host, context)
            connection = Connection(stream, node)
            try:
                await connection.send(wire.encode(wire.Hello(wire.PROTOCOL_VERSION, network)))
                connection.node_id = _check_hello_untrusted(await connection.receive(), network)
            except BaseException:
                await connection.aclose()
                raise
    except TimeoutError:
        raise ConnectionFailed(node, f"did not answer in {shown_s(timeout_s)}", _TRY_ANOTHER, reached=reached) from None
    except ssl.SSLError as error:
        if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in _OUT_OF_TIME:
            raise ConnectionFailed(
                node,
                f"is refused, its {error.verify_message} by this machine's clock: renew it with "
                "`hopchain certificate renew`, or set the clocks",
            ) from None
        raise ConnectionFailed(
            node,
            f"is not a client port of this network ({error.reason or error})",
            "check the address and the network",
        ) from None
    except RemoteFault as fault:
        raise ConnectionFailed(node, f"cannot be used: {fault}") from None
    except (anyio.BrokenResourceError, anyio.EndOfStream):
        raise ConnectionFailed(
            node, "closed the connection before it had said who it is", "it may be busy: try again, or another node"
        ) from None
    except (OSError, UnicodeError) as error:
        raise ConnectionFailed(
            node, f"cannot be reached ({_reasons(error)})", "is the node running?", reached=reached
        ) from None
    return connection


def _reasons(error: OSError | UnicodeError) -> str:
    """Why there is no connection; of a host with several addresses each reason once. (What anyio raises for all of them
    names none.)"""
    causes: list[BaseException] = [error.__cause__ or error]
    reasons: dict[str, None] = {}
    while causes:
        cause = causes.pop(0)
        if isinstance(cause, BaseExceptionGroup):
            causes += cause.exceptions
        elif isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:
            reasons[os.strerror(cause.errno)] = None
        else:
            reasons[(cause.strerror if isinstance(cause, OSError) else "") or str(cause)] = None
    return ", ".join(reasons)


async def _secured(plain: anyio.abc.ByteStream, host: str, context: ssl.SSLContext) -> TLSStream:
    """TLS over the stream, which is closed when that fails."""
    try:
        return await TLSStream.wrap(
            plain, server_side=False, hostname=host, ssl_context=context, standard_compatible=True
        )
    except BaseException:
        await anyio.aclose_forcefully(plain)
        raise


def _check_hello_untrusted(payload: bytes, network: bytes) -> bytes:
    """The id that the node says, as `id_said`. Raises `RemoteFault` with what the node said or did."""
    try:
        hello = wire.decode_node_frame_untrusted(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise RemoteFault("malformed", f"its hello cannot be read: {error}") from None
    if isinstance(hello, wire.Refused):
        raise RemoteFault(cut(hello.code), f"it refused the connection: {hello.reason}")
    if not isinstance(hello, wire.Hello):
        raise RemoteFault("malformed", "it did not begin with a hello")
    if hello.version != wire.PROTOCOL_VERSION:
        raise RemoteFault(
            "version", f"it speaks version {hello.version}, this client {wire.PROTOCOL_VERSION}: use one release"
        )
    if hello.network != network:
        raise RemoteFault("network", f"it is of network {hello.network.hex()[:16]}, not {network.hex()[:16]}")
    return id_said(hello)


def id_said(hello: wire.Hello) -> bytes:
    """The id in a node's hello; empty when there is none, or none that is an id."""
    return hello.node if len(hello.node) == ID_BYTES else b""

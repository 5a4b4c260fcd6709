"""TLS 1.3 over a stream, for one task that reads and one that writes.

The protocol is OpenSSL's, through `ssl.SSLObject`; here is only what carries its bytes. `trio.SSLStream` does that too,
for any number of tasks and older TLS, and goes through the scheduler twice for each send: under load a node spent a
quarter of its CPU there. On a socket this one asks the kernel first and waits only when it must
(docs/performance-steps.md has what it gave).
"""

import os
import ssl
import threading
from contextlib import suppress
from typing import Final, NoReturn

import trio

RECEIVE_BYTES: Final = 64 * 1024  # four TLS records
ALERT_S: Final = 0.5  # for a last word to who may not listen


class _Received(threading.local):
    """Through here passes what arrives, on all connections of a thread; nothing is awaited before it is copied. A
    `bytes` of RECEIVE_BYTES that is cut to what came would leave holes among what is kept, and the heap would grow
    (docs/performance.md)."""

    def __init__(self) -> None:
        self.buffer = bytearray(RECEIVE_BYTES)
        self.view = memoryview(self.buffer)


_received: Final = _Received()


class TlsStream(trio.abc.Stream):
    """The handshake is done by `start_tls`. Errors as those of `trio.SSLStream`: `BrokenResourceError` (whose cause
    says why), `ClosedResourceError`. Unlike there, a call that need not wait lets no other task run."""

    def __init__(self, transport: trio.abc.Stream, context: ssl.SSLContext, *, server: bool) -> None:
        self.transport = transport
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server)
        self._server = server
        self._flushing = False
        self._flushed = trio.lowlevel.ParkingLot()
        self._broken = False
        self._closed = False

    @property
    def peer_certificate(self) -> bytes:
        """DER; empty when the other side has shown none."""
        return self._tls.getpeercert(binary_form=True) or b""

    async def do_handshake(self) -> None:
        """Agree on keys, and check the other side's certificate as the context says."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except ssl.SSLError as error:
                await self._give_up(error)
            else:
                break
        if not self._server:  # what a server has left to send are session tickets: they go with its first data
            await self._flush()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt `data` and give it to the kernel."""
        self._check()
        await trio.lowlevel.checkpoint_if_cancelled()
        if data:
            try:
                self._tls.write(data)
            except ssl.SSLError as error:
                await self._give_up(error)
            await self._flush()

    async def wait_send_all_might_not_block(self) -> None:
        """Until the kernel has room."""
        self._check()
        await self.transport.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What has arrived, at least one byte; b"" when the other side has said that nothing more comes."""
        self._check()
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                # with a buffer it returns how many bytes
                size: int = self._tls.read(min(max_bytes or RECEIVE_BYTES, RECEIVE_BYTES), _received.buffer)  # type: ignore[assignment]
                return bytes(_received.view[:size])
            except ssl.SSLWantReadError:
                if self._outgoing.pending:  # an answer of TLS itself, to new keys
                    await self._flush()
                await self._fill()
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLError as error:
                await self._give_up(error)

    async def aclose(self) -> None:
        """Say goodbye, when that needs no waiting for the other side, and close."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        try:
            if not self._broken:
                with suppress(ssl.SSLError):  # it wants to read the other side's goodbye: that is not waited for
                    self._tls.unwrap()
                with suppress(trio.BrokenResourceError):
                    await self._flush()
            self._closed = True
            await self.transport.aclose()
        except BaseException:
            self._closed = True
            await trio.aclose_forcefully(self.transport)
            raise

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this side has closed the connection")
        if self._broken:
            raise trio.BrokenResourceError("the connection broke before")

    async def _give_up(self, error: ssl.SSLError) -> NoReturn:
        """Tell the other side why, as far as TLS has a word for it and there is room for that."""
        self._broken = True
        with trio.move_on_after(ALERT_S), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._flush()
        raise trio.BrokenResourceError from error

    async def _flush(self) -> None:
        """Send what TLS has made, after whoever is at it: nobody goes on while the other side takes nothing, so that
        what waits here stays bounded."""
        while self._flushing:
            await self._flushed.park()
            self._check()
        self._flushing = True
        try:
            while data := self._outgoing.read():
                if isinstance(self.transport, trio.SocketStream):
                    await _write(self.transport.socket, data)
                else:
                    await self.transport.send_all(data)
        except BaseException:
            self._broken = True  # nobody knows how much of it was sent
            raise
        finally:
            self._flushing = False
            self._flushed.unpark_all()

    async def _fill(self) -> None:
        """Wait for more bytes of the other side."""
        data: bytes | bytearray | memoryview
        if isinstance(self.transport, trio.SocketStream):
            data = await _read(self.transport.socket)
        else:
            data = await self.transport.receive_some(RECEIVE_BYTES)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()


async def start_tls(stream: trio.abc.Stream, context: ssl.SSLContext, *, server: bool) -> TlsStream:
    """TLS on `stream`, the handshake done."""
    secure = TlsStream(stream, context, server=server)
    await secure.do_handshake()
    return secure


async def _write(socket: trio.socket.SocketType, data: bytes) -> None:
    """All of `data`. Its number is asked for after every wait: it may be closed by then, and the number another's."""
    rest = memoryview(data)
    while rest:
        try:
            sent = os.write(_number(socket), rest)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(_number(socket))
        except OSError as error:
            raise trio.BrokenResourceError("the connection broke") from error
        else:
            rest = rest[sent:]


async def _read(socket: trio.socket.SocketType) -> memoryview:
    """What has arrived, nothing at the end. It stands in `_received`: take it before anything else is awaited."""
    while True:
        await trio.lowlevel.wait_readable(_number(socket))
        try:
            return _received.view[: os.readv(_number(socket), [_received.buffer])]
        except BlockingIOError:
            continue
        except OSError as error:
            raise trio.BrokenResourceError("the connection broke") from error


def _number(socket: trio.socket.SocketType) -> int:
    number = socket.fileno()
    if number < 0:
        raise trio.ClosedResourceError("this side has closed the connection")
    return number

"""TLS 1.3 over a stream, for one task that reads and one that writes.

The protocol is OpenSSL's, through `ssl.SSLObject`; here is only what carries its bytes. `trio.SSLStream` does that too, for any
number of tasks and older TLS, and goes through the scheduler twice for each send: under load a node spent a quarter of its CPU
there. On a socket this one asks the kernel first and waits only when it must (docs/performance.md has what it gave).
"""

import os
import ssl
from contextlib import suppress
from typing import Final, NoReturn

import trio

RECEIVE_BYTES: Final = 64 * 1024  # four TLS records


class TlsStream(trio.abc.Stream):
    """The handshake is done by `start_tls`. Errors as those of `trio.SSLStream`: `BrokenResourceError` (whose cause says why),
    `ClosedResourceError`. Unlike there, a call that need not wait lets no other task run."""

    def __init__(self, transport: trio.abc.Stream, context: ssl.SSLContext, *, server: bool) -> None:
        self.transport = transport
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server)
        self._server = server
        self._flushing = False
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
                return self._tls.read(max_bytes or RECEIVE_BYTES)
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
        """Tell the other side why, as far as TLS has a word for it."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._flush()
        self._broken = True
        raise trio.BrokenResourceError from error

    async def _flush(self) -> None:
        """Send what TLS has made. Who finds another task at it leaves it to that."""
        if self._flushing:
            return
        self._flushing = True
        try:
            while data := self._outgoing.read():
                if isinstance(self.transport, trio.SocketStream):
                    await _write(self.transport.socket.fileno(), data)
                else:
                    await self.transport.send_all(data)
        except BaseException:
            self._broken = True  # nobody knows how much of it was sent
            raise
        finally:
            self._flushing = False

    async def _fill(self) -> None:
        """Wait for more bytes of the other side."""
        if isinstance(self.transport, trio.SocketStream):
            data = await _read(self.transport.socket.fileno())
        else:
            data = bytes(await self.transport.receive_some(RECEIVE_BYTES))
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()


async def start_tls(stream: trio.abc.Stream, context: ssl.SSLContext, *, server: bool) -> TlsStream:
    """TLS on `stream`, the handshake done."""
    secure = TlsStream(stream, context, server=server)
    await secure.do_handshake()
    return secure


async def _write(fd: int, data: bytes) -> None:
    """All of `data`, to a socket that does not block."""
    rest = memoryview(data)
    while rest:
        try:
            sent = os.write(fd, rest)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(fd)
        except OSError as error:
            raise _gone(fd) from error
        else:
            rest = rest[sent:]


async def _read(fd: int) -> bytes:
    """What has arrived at a socket that does not block; b"" at its end."""
    while True:
        if fd < 0:
            raise _gone(fd)
        await trio.lowlevel.wait_readable(fd)
        try:
            return os.read(fd, RECEIVE_BYTES)
        except BlockingIOError:
            continue
        except OSError as error:
            raise _gone(fd) from error


def _gone(fd: int) -> trio.BrokenResourceError | trio.ClosedResourceError:
    if fd < 0:
        return trio.ClosedResourceError("this side has closed the connection")
    return trio.BrokenResourceError("the connection broke")

"""Frames: a byte stream cut into messages, without I/O.

    frame  length u32 big-endian | payload of that many bytes

The reader never holds more than one frame of `limit` bytes and what arrived with it: a longer frame is refused as
soon as its length is known, before any of its payload is kept. The same framing serves peers and clients.
"""

import struct
from typing import Final

from chain.errors import RemoteFault

MAX_FRAME_BYTES: Final = 8 * 1024 * 1024  # the largest any connection may allow: several largest links with their votes
HEADER_BYTES: Final = 4

_LENGTH = struct.Struct(">I")


def frame_header(payload: bytes) -> bytes:
    """The 4 bytes that go before `payload` (AssertionError above MAX_FRAME_BYTES: split it before)."""
    assert len(payload) <= MAX_FRAME_BYTES, (len(payload), MAX_FRAME_BYTES)
    return _LENGTH.pack(len(payload))


def frame(payload: bytes) -> bytes:
    """`payload` as it travels."""
    return frame_header(payload) + payload


class FrameReader:
    """Cuts received bytes into payloads: `push` what arrived, `pop` until it returns None.

    `limit`, in bytes of payload, may be changed between two `pop`s: small while the other side is a stranger, larger
    after its hello.
    """

    def __init__(self, limit: int = MAX_FRAME_BYTES) -> None:
        assert 0 < limit <= MAX_FRAME_BYTES, limit
        self.limit = limit
        self._data = bytearray()
        self._at = 0

    @property
    def pending(self) -> int:
        """Bytes that arrived and are not popped yet; more than 0 at the end of the stream means a cut frame."""
        return len(self._data) - self._at

    def push(self, data: bytes | bytearray) -> None:
        """Take received bytes."""
        self._data += data

    def pop(self) -> bytes | None:
        """The next payload, or None when more bytes are needed. Raises `RemoteFault("oversize")`."""
        start = self._at + HEADER_BYTES
        if len(self._data) >= start:
            (length,) = _LENGTH.unpack_from(self._data, self._at)
            if length > self.limit:
                raise RemoteFault("oversize", f"a frame of {length} bytes: at most {self.limit}; send smaller ones")
            if len(self._data) >= start + length:
                self._at = start + length
                return bytes(memoryview(self._data)[start : self._at])
        if self._at:
            del self._data[: self._at]
            self._at = 0
        return None

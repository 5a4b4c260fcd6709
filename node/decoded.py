"""Links and requests that came from others, decoded once each: the same bytes arrive again and again, within a turn and
after it.

Bounded by what the decoded values take, not by their number; the oldest go first.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from chain.errors import RemoteFault
from chain.link import Link, decode_link_untrusted
from chain.request import SIGNATURE_BYTES, DecodedRequest, SignedRequest, decode_request_untrusted

DECODED_LINK_BYTES: Final = 96 * 1024 * 1024  # of links kept decoded: ten seconds of traffic, or twenty largest ones
DECODED_REQUEST_BYTES: Final = 32 * 1024 * 1024  # and of requests
OBJECT_BYTES: Final = 1024  # of a decoded request beside its bytes, about; of each in a link, too, and of the link

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Decoded(Generic[K, V]):
    """The newest decoded values, up to `limit` bytes; the oldest go first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._bytes = 0

    def get(self, key: K) -> V | None:
        held = self._values.get(key)
        return None if held is None else held[0]

    def keep(self, key: K, value: V, size: int) -> None:
        """Keep a value that is not here yet and takes `size` bytes."""
        self._values[key] = value, size
        self._bytes += size
        while self._bytes > self._limit:
            _, (_, gone) = self._values.popitem(last=False)
            self._bytes -= gone


class LinkDecoder:
    """Decodes links once: the one that was voted for arrives again when it is decided."""

    def __init__(self) -> None:
        self._links: _Decoded[bytes, Link] = _Decoded(DECODED_LINK_BYTES)

    def untrusted(self, raw: bytes) -> Link:
        """The link with these bytes; raises `RemoteFault`."""
        link = self._links.get(raw)
        if link is None:
            link = decode_link_untrusted(raw)
            size = 4 * len(raw) + OBJECT_BYTES * (1 + len(link.entries))  # measured, with its hashes and names
            self._links.keep(raw, link, size)
        return link


class RequestDecoder:
    """Decodes requests once: what a turn needs depends on them, then they are judged."""

    def __init__(self) -> None:
        self._requests: _Decoded[tuple[bytes, bytes], DecodedRequest] = _Decoded(DECODED_REQUEST_BYTES)

    def untrusted(self, raw: bytes, signature: bytes) -> DecodedRequest:
        """The request with these bytes and this signature, which is not checked; raises `RemoteFault`."""
        if len(signature) != SIGNATURE_BYTES:  # before anything of it is kept
            raise RemoteFault(
                "bad_signature",
                f"a signature of {len(signature)} bytes, where one has {SIGNATURE_BYTES}: sign with the key that opened it",
            )
        decoded = self._requests.get((raw, signature))
        if decoded is None:
            signed = SignedRequest(raw, signature)
            decoded = DecodedRequest(signed, decode_request_untrusted(raw), signed.request_id)
            self._requests.keep((raw, signature), decoded, 2 * len(raw) + SIGNATURE_BYTES + OBJECT_BYTES)
        return decoded

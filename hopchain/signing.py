"""Keys and signatures as the client uses them."""

import struct

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.errors import LocalMisuse, RemoteFault
from chain.request import Request, SignedRequest, decode_request_untrusted, encode_request, sign


def raw_public_key(key: Ed25519PrivateKey) -> bytes:
    """The 32 raw bytes of the public key."""
    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def sign_request(request: Request, key: Ed25519PrivateKey) -> SignedRequest:
    """The signed request; `LocalMisuse` for fields that have no canonical bytes (a bad name, amount, memo)."""
    try:
        decode_request_untrusted(encode_request(request))
    except (RemoteFault, AssertionError, struct.error) as error:
        raise LocalMisuse(f"this request cannot be made: {error}") from None
    return sign(request, key)

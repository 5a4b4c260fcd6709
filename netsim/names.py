"""What the simulated network is made of, the same in every run: keys by name, the genesis file, the first moment."""

import hashlib
from collections.abc import Sequence
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.genesis import Asset, Genesis, GenesisMember, Issuer

EPOCH_MS: Final = 1_700_000_000_000  # the wall clock at simulated time 0
OPERATOR: Final = "operator"
ISSUER: Final = "mint"


def key_of(name: str) -> Ed25519PrivateKey:
    """The key of a simulated node or account: the same in every run."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"netsim {name}".encode()).digest())


def public_key(name: str) -> bytes:
    """Its raw public key."""
    return key_of(name).public_key().public_bytes_raw()


def node_name(index: int) -> str:
    """The name under which the node of this number has its key."""
    return f"node {index}"


def make_genesis(names: Sequence[str], k: int) -> Genesis:
    """One asset, one issuer, and these nodes."""
    return Genesis(
        version=1,
        name="simulated",
        assets=(Asset("CZK", 2),),
        issuers=(Issuer(ISSUER, "CZK", public_key(ISSUER).hex()),),
        k=k,
        ca="",
        members=tuple(GenesisMember(public_key(name).hex()) for name in names),
        time_ms=EPOCH_MS,
        operator=public_key(OPERATOR).hex(),
    )

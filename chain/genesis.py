"""The genesis file: what makes two nodes members of one network.

`genesis.json` is canonical JSON (sorted keys, no spaces); `network_id` = SHA-256(tag | its bytes). Everything in it
is fixed for the life of the network, so a difference in one byte is another network, which is refused.
"""

import hashlib
import re
from typing import Final

import msgspec

from chain.errors import LocalMisuse
from chain.link import Entry, Link, Outcome, build_link, opening_slot
from chain.names import MAX_AMOUNT, MAX_SCALE, is_asset, is_name
from chain.request import SIGNATURE_BYTES, NetworkId, SignedRequest, encode_request, opening, request_id

FIRST_EPOCH: Final = 1
MAX_MEMBERS: Final = 4096  # of the first view, as of each (routing.view)
_TAG: Final = b"hopchain:genesis:1\0"
_PUBLIC_KEY: Final = re.compile(r"[0-9a-f]{64}")
_NO_SIGNATURE: Final = bytes(SIGNATURE_BYTES)  # the genesis file itself vouches for its issuers


class Asset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An asset: `code`, and `scale` = decimals of its minor unit (CZK: 2)."""

    code: str
    scale: int


class Issuer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An account that may go below zero, and its raw Ed25519 public key in hex."""

    name: str
    asset: str
    public_key: str


class GenesisMember(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A member of the first view: raw Ed25519 public key in hex (its node id is derived) and incarnation."""

    public_key: str
    incarnation: int = 1


class Genesis(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The whole file. `k`: group size; `ca`: the certificate, PEM, that signs the nodes' certificates;
    `time_ms`: when the network was made, Unix milliseconds; `operator`: raw Ed25519 public key, hex, whose holder
    changes the members. Empty, and then not in the file: nobody adds a node, and nodes only leave by themselves."""

    version: int
    name: str
    assets: tuple[Asset, ...]
    issuers: tuple[Issuer, ...]
    k: int
    ca: str
    members: tuple[GenesisMember, ...]
    time_ms: int
    operator: str = ""

    @property
    def network_id(self) -> NetworkId:
        """32 bytes that name this network."""
        return NetworkId(hashlib.sha256(_TAG + encode_genesis(self)).digest())

    def asset(self, code: str) -> Asset | None:
        """The asset with this code, or None."""
        return next((a for a in self.assets if a.code == code), None)

    def issuer_limit(self, code: str) -> int:
        """How far below zero each issuer of this asset may go, minor units: together never more than MAX_AMOUNT, so
        that no sum of the asset's money exceeds it either."""
        return MAX_AMOUNT // max(1, sum(issuer.asset == code for issuer in self.issuers))


def encode_genesis(genesis: Genesis) -> bytes:
    """The canonical bytes of the file."""
    return msgspec.json.encode(genesis, order="sorted")


def decode_genesis(raw: bytes) -> Genesis:
    """Read and check a genesis file; `LocalMisuse` says what is wrong with it."""
    try:
        genesis = msgspec.json.decode(raw, type=Genesis)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LocalMisuse(f"the genesis file cannot be read: {error}") from None
    if genesis.version != 1:
        raise LocalMisuse(f"the genesis file has version {genesis.version}; this program reads version 1")
    if not 1 <= genesis.k <= 64:
        raise LocalMisuse(f"k is {genesis.k}; it must be 1 to 64")
    if not 0 <= genesis.time_ms <= MAX_AMOUNT:
        raise LocalMisuse(f"time_ms is {genesis.time_ms}; it must be 0 to {MAX_AMOUNT}")
    if not 1 <= len(genesis.members) <= MAX_MEMBERS:
        raise LocalMisuse(f"the genesis file lists {len(genesis.members)} members; it must be 1 to {MAX_MEMBERS}")
    for member in genesis.members:
        if not 1 <= member.incarnation < 1 << 64:
            raise LocalMisuse(
                f"member {member.public_key[:80]!r} has incarnation {member.incarnation}; it must be 1 to 2^64-1"
            )
    for asset in genesis.assets:
        if not is_asset(asset.code) or not 0 <= asset.scale <= MAX_SCALE:
            raise LocalMisuse(
                f"asset {asset.code}:{asset.scale}: a code is 1 to 16 of A-Z 0-9, a scale 0 to {MAX_SCALE}"
            )
    for issuer in genesis.issuers:
        if not is_name(issuer.name) or genesis.asset(issuer.asset) is None:
            raise LocalMisuse(f"issuer {issuer.name} of {issuer.asset}: bad name, or an asset the file does not list")
    for what, names in (
        ("asset", [asset.code for asset in genesis.assets]),
        ("issuer", [issuer.name for issuer in genesis.issuers]),
        ("member", [member.public_key for member in genesis.members]),
    ):
        if len(set(names)) != len(names):
            raise LocalMisuse(f"the genesis file lists one {what} twice, of {len(names)}")
    operators = [genesis.operator] if genesis.operator else []
    for key in [i.public_key for i in genesis.issuers] + [m.public_key for m in genesis.members] + operators:
        if _PUBLIC_KEY.fullmatch(key) is None:
            raise LocalMisuse(f"public key {key[:80]!r}: it must be 64 hexadecimal digits, lower case")
    return genesis


def issuer_links(genesis: Genesis) -> list[Link]:
    """Link 0 of every issuer: decided by the genesis file itself, the same on every node."""
    network = genesis.network_id
    links = []
    for issuer in genesis.issuers:
        nonce = hashlib.sha256(_TAG + issuer.name.encode()).digest()
        request = opening(network, issuer.name, issuer.asset, bytes.fromhex(issuer.public_key), nonce)
        raw = encode_request(request)
        entry = Entry(SignedRequest(raw, _NO_SIGNATURE), request, request_id(raw), Outcome.COMPLETED)
        slot = opening_slot(network, issuer.name)
        links.append(build_link(network, issuer.name, 0, slot, 0, FIRST_EPOCH, genesis.time_ms, [entry], []))
    return links

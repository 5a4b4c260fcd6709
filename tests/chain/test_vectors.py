"""The canonical bytes, fixed for ever: test vectors in `tests/vectors/*.json`, for this and any other implementation.

A change here is a new protocol version. Integers that may not fit a double are strings.
"""

from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.genesis import decode_genesis, encode_genesis, issuer_links
from chain.link import build_link, decode_link_untrusted, header_hash, income_checksum, opening_slot
from chain.request import (
    Kind,
    NetworkId,
    Posting,
    Request,
    RequestId,
    SignedRequest,
    decode_request_untrusted,
    encode_request,
    is_signed_by,
    request_id,
    sign,
)

VECTORS = Path(__file__).parent.parent / "vectors"


class PostingFields(msgspec.Struct):
    recipient: str
    amount: str
    memo: str


class RequestFields(msgspec.Struct):
    kind: str
    network: str
    sender: str
    nonce: str
    expect_tip: str
    valid_until_height: str
    postings: list[PostingFields] = []
    asset: str = ""
    public_key: str = ""
    target: str = ""


class RequestVector(msgspec.Struct):
    name: str
    fields: RequestFields
    private_key: str
    bytes: str
    request_id: str
    signature: str


class EntryFields(msgspec.Struct):
    outcome: str
    request_id: str


class LinkFields(msgspec.Struct):
    network: str
    account: str
    height: int
    prev_hash: str
    balance: int
    incoming_checksum: str
    epoch: int
    time_ms: int
    entries: list[EntryFields]
    confirmed: list[str]


class LinkPosting(msgspec.Struct):
    number: int
    hash: str
    recipient: str
    amount: int


class LinkVector(msgspec.Struct):
    name: str
    fields: LinkFields
    bytes: str
    hash: str
    debit: int
    postings: list[LinkPosting]
    outcomes: list[EntryFields]


class IssuerLink(msgspec.Struct):
    account: str
    hash: str
    bytes: str


class GenesisVector(msgspec.Struct):
    file: str
    network_id: str
    opening_slots: dict[str, str]
    issuer_links: list[IssuerLink]


REQUESTS = msgspec.json.decode((VECTORS / "requests.json").read_bytes(), type=list[RequestVector])
LINKS = msgspec.json.decode((VECTORS / "links.json").read_bytes(), type=list[LinkVector])
GENESIS = msgspec.json.decode((VECTORS / "genesis.json").read_bytes(), type=GenesisVector)


def _request(fields: RequestFields) -> Request:
    return Request(
        Kind[fields.kind],
        NetworkId(bytes.fromhex(fields.network)),
        fields.sender,
        bytes.fromhex(fields.nonce),
        tuple(Posting(p.recipient, int(p.amount), p.memo) for p in fields.postings),
        fields.asset,
        bytes.fromhex(fields.public_key),
        RequestId(bytes.fromhex(fields.target)),
        bytes.fromhex(fields.expect_tip),
        int(fields.valid_until_height),
    )


@pytest.mark.parametrize("vector", REQUESTS, ids=lambda v: v.name)
def test_requests(vector: RequestVector) -> None:
    request, raw = _request(vector.fields), bytes.fromhex(vector.bytes)
    assert encode_request(request) == raw
    assert decode_request_untrusted(raw) == request
    assert request_id(raw).hex() == vector.request_id
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector.private_key))
    assert sign(request, key) == SignedRequest(raw, bytes.fromhex(vector.signature))
    assert is_signed_by(SignedRequest(raw, bytes.fromhex(vector.signature)), key.public_key().public_bytes_raw())


def test_there_is_a_vector_of_each_kind() -> None:
    assert {vector.fields.kind for vector in REQUESTS} == {kind.name for kind in Kind}


@pytest.mark.parametrize("vector", LINKS, ids=lambda v: v.name)
def test_links(vector: LinkVector) -> None:
    raw, fields = bytes.fromhex(vector.bytes), vector.fields
    link = decode_link_untrusted(raw)
    assert (link.hash.hex(), link.debit, link.next_slot.hex()) == (vector.hash, vector.debit, vector.hash)
    assert (link.network.hex(), link.account, link.height) == (fields.network, fields.account, fields.height)
    assert (link.prev_hash.hex(), link.balance, link.epoch) == (fields.prev_hash, fields.balance, fields.epoch)
    assert (link.time_ms, link.incoming_checksum.hex()) == (fields.time_ms, fields.incoming_checksum)
    assert [EntryFields(e.outcome.name, e.request_id.hex()) for e in link.entries] == fields.entries
    assert [confirmed.hex() for confirmed in link.confirmed] == fields.confirmed
    assert income_checksum(link.confirmed).hex() == fields.incoming_checksum
    assert [LinkPosting(n, h.hex(), p.recipient, p.amount) for n, h, p, _ in link.postings()] == vector.postings
    assert [EntryFields(outcome.name, i.hex()) for i, outcome in link.outcomes()] == vector.outcomes
    built = build_link(
        link.network, link.account, link.height, link.prev_hash, link.balance, link.epoch, link.time_ms, link.entries,
        link.confirmed,
    )  # fmt: skip
    assert built.raw == raw
    assert header_hash(raw[:224]).hex() == vector.hash


def test_genesis() -> None:
    genesis = decode_genesis(GENESIS.file.encode())
    assert encode_genesis(genesis).decode() == GENESIS.file
    assert genesis.network_id.hex() == GENESIS.network_id
    slots = {name: opening_slot(genesis.network_id, name).hex() for name in GENESIS.opening_slots}
    assert slots == GENESIS.opening_slots
    made = [IssuerLink(link.account, link.hash.hex(), link.raw.hex()) for link in issuer_links(genesis)]
    assert made == GENESIS.issuer_links

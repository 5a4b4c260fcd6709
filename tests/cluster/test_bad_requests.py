"""Requests that a node must refuse, or judge and reject: a code, a text that says what to do, no row changed (issue 2,
point 7). They are sent as bytes, because our own client does not let most of them out."""

import struct
from collections.abc import Callable

import pytest

from chain.names import MAX_AMOUNT
from chain.request import (
    MAX_REQUEST_BYTES,
    Posting,
    Request,
    SignedRequest,
    cancellation,
    encode_request,
    opening,
    request_id,
    transfer,
)
from hopchain import Balance, Outcome, Recorded, Refused
from hopchain.wire import Submit
from tests.cluster.cluster import Cluster, key_of, public
from tests.cluster.strangers import ask

pytestmark = pytest.mark.cluster

SENDER = "refused-1"
PAYEE = "refused-2"
NONCE = b"n" * 32
SENDER_AT = 33  # after kind and network
AMOUNT_AT = 173 + 64  # after the header and the recipient
RECIPIENT_AT = 173


@pytest.fixture
async def pair(cluster: Cluster) -> tuple[str, str]:
    """Two accounts, the same in every test here: opening them again is a repetition."""
    openings = [opening(cluster.id, name, "CZK", public(key_of(name)), NONCE) for name in (SENDER, PAYEE)]
    await cluster.completed([cluster.signed(request) for request in openings])
    await cluster.completed([cluster.signed(transfer(cluster.id, "mint", [Posting(SENDER, 100)], NONCE))])
    return SENDER, PAYEE


def sign_raw(raw: bytes, name: str = SENDER) -> SignedRequest:
    """Canonical or not, the bytes are signed as the protocol says."""
    return SignedRequest(raw, key_of(name).sign(b"hopchain:sign:1\0" + request_id(raw)))


def pay(cluster: Cluster, *amounts: int, sender: str = SENDER, recipient: str = PAYEE) -> Request:
    return transfer(cluster.id, sender, [Posting(recipient, amount) for amount in amounts], NONCE)


def amount_bytes(cluster: Cluster, amount: int) -> bytes:
    raw = encode_request(pay(cluster, 1))
    return raw[:AMOUNT_AT] + struct.pack(">Q", amount) + raw[AMOUNT_AT + 8 :]


def name_bytes(cluster: Cluster, at: int, name: bytes) -> bytes:
    raw = encode_request(pay(cluster, 1))
    return raw[:at] + name.ljust(64, b"\0") + raw[at + 64 :]


BAD: dict[str, tuple[Callable[[Cluster], SignedRequest], str, str]] = {
    "nothing": (lambda c: SignedRequest(b"", bytes(64)), "malformed", "a request of 0 bytes: it must be"),
    "garbage": (lambda c: SignedRequest(b"\xff" * 400, bytes(64)), "malformed", "request kind 255 is not known"),
    "cut": (lambda c: sign_raw(encode_request(pay(c, 1))[:-1]), "malformed", "1 to 8190 of 128 bytes each"),
    "oversized": (lambda c: sign_raw(bytes(MAX_REQUEST_BYTES + 1)), "malformed", "it must be 174 to"),
    "count too high": (
        lambda c: sign_raw(encode_request(pay(c, 1))[:169] + b"\0\0\0\2" + encode_request(pay(c, 1))[173:]),
        "malformed",
        "a transfer that claims 2 postings",
    ),
    "amount 0": (lambda c: sign_raw(amount_bytes(c, 0)), "bad_amount", "the amount 0 is not between 1 and"),
    "amount -1": (lambda c: sign_raw(amount_bytes(c, 2**64 - 1)), "bad_amount", "is not between 1 and"),
    "amount 2^63": (lambda c: sign_raw(amount_bytes(c, 2**63)), "bad_amount", "the amount 9223372036854775808 is not"),
    "overflowing sum": (lambda c: sign_raw(encode_request(pay(c, MAX_AMOUNT, 1))), "bad_total", "more than"),
    "self-transfer": (
        lambda c: sign_raw(encode_request(pay(c, 1, recipient=SENDER))),
        "self_transfer",
        "name another recipient",
    ),
    "unknown sender": (
        lambda c: sign_raw(encode_request(pay(c, 1, sender="nobody-here")), "nobody-here"),
        "unknown_sender",
        "no account nobody-here exists; open it",
    ),
    "look-alike sender": (
        lambda c: sign_raw(name_bytes(c, SENDER_AT, "refused-1".replace("e", "\u0435").encode())),
        "bad_name",
        "look-alike characters are refused",
    ),
    "look-alike recipient": (
        lambda c: sign_raw(name_bytes(c, RECIPIENT_AT, "p\u0430yee".encode())),
        "bad_name",
        "look-alike characters are refused",
    ),
    "name with a hidden tail": (
        lambda c: sign_raw(name_bytes(c, RECIPIENT_AT, b"payee\0evil")),
        "bad_text",
        "not zero-padded UTF-8",
    ),
    "memo that is no text": (
        lambda c: sign_raw(encode_request(pay(c, 1))[:-56] + b"\xff" * 56),
        "bad_text",
        "not zero-padded UTF-8",
    ),
    "foreign network": (
        lambda c: sign_raw(encode_request(pay(c, 1)).replace(c.id, bytes(32))),
        "other_network",
        "choose it with --network",
    ),
    "wrong signature": (
        lambda c: sign_raw(encode_request(pay(c, 1)), PAYEE),
        "bad_signature",
        "sign with the key that opened it",
    ),
    "unsigned": (
        lambda c: SignedRequest(encode_request(pay(c, 1)), bytes(64)),
        "bad_signature",
        "sign with the key that opened it",
    ),
    "half a signature": (
        lambda c: SignedRequest(encode_request(pay(c, 1)), bytes(32)),
        "bad_signature",
        "sign with the key that opened it",
    ),
    "signature of another amount": (
        lambda c: SignedRequest(encode_request(pay(c, 2)), sign_raw(encode_request(pay(c, 1))).signature),
        "bad_signature",
        "sign with the key that opened it",
    ),
    "tip of nothing": (
        lambda c: sign_raw(encode_request(transfer(c.id, SENDER, [Posting(PAYEE, 1)], NONCE, expect_tip=b"t" * 32))),
        "unknown_tip",
        "is no link of refused-1, whose tip is",
    ),
    "taken name": (
        lambda c: sign_raw(encode_request(opening(c.id, SENDER, "CZK", public(key_of("thief")), NONCE)), "thief"),
        "name_taken",
        "choose another one",
    ),
    "taken name of an issuer": (
        lambda c: sign_raw(encode_request(opening(c.id, "mint", "CZK", public(key_of("thief")), NONCE)), "thief"),
        "name_taken",
        "choose another one",
    ),
    "unknown asset": (
        lambda c: sign_raw(encode_request(opening(c.id, "usd-account", "USD", public(key_of("usd")), NONCE)), "usd"),
        "unknown_asset",
        "this network has no asset USD; it has: CZK, EUR",
    ),
    "asset that is no code": (
        lambda c: sign_raw(encode_request(opening(c.id, "czk-account", "czk", public(key_of("czk")), NONCE)), "czk"),
        "bad_asset",
        "1 to 16 of A-Z 0-9",
    ),
    "cancel of half an id": (
        lambda c: sign_raw(encode_request(cancellation(c.id, SENDER, request_id(b""), NONCE))[:-16]),
        "malformed",
        "it must be 32",
    ),
}


@pytest.mark.parametrize("what", BAD)
async def test_it_is_refused_and_no_row_changes(cluster: Cluster, pair: tuple[str, str], what: str) -> None:
    make, code, text = BAD[what]
    signed = make(cluster)
    await cluster.settle()
    before = cluster.all_rows()
    for number in range(5):
        answer = await ask(cluster, number, Submit(signed.raw, signed.signature, 5000))
        assert isinstance(answer, Refused), answer
        assert (answer.code, text in answer.reason) == (code, True), answer
    await cluster.settle()
    assert cluster.all_rows() == before


async def test_a_rejection_is_recorded_once_and_moves_nothing(cluster: Cluster, pair: tuple[str, str]) -> None:
    """What only the owner can judge is an outcome: recorded, the same for ever and everywhere, and no money moves."""
    foreign = cluster.open_request("rejected-eur", "EUR")
    await cluster.completed([foreign])
    cases = {
        Outcome.UNKNOWN_RECIPIENT: pay(cluster, 1, recipient="nobody-here"),
        Outcome.ASSET_MISMATCH: pay(cluster, 1, recipient="rejected-eur"),
        Outcome.INSUFFICIENT_FUNDS: pay(cluster, MAX_AMOUNT),
    }
    before = await cluster.settle()
    for number, (outcome, request) in enumerate(cases.items()):
        answer = await ask(cluster, number, Submit(*_fields(sign_raw(encode_request(request))), 5000))
        assert isinstance(answer, Recorded), answer
        assert Outcome(answer.outcome) is outcome
        assert answer.balance == 100
    await cluster.settle()
    rows = cluster.all_rows()
    for number in range(5):
        for outcome, request in cases.items():
            answer = await ask(cluster, number, Submit(*_fields(sign_raw(encode_request(request))), 5000))
            assert isinstance(answer, Recorded)
            assert answer.repeated
            assert Outcome(answer.outcome) is outcome
    after = await cluster.settle()
    assert cluster.all_rows() == rows
    assert after.links == before.links + len(cases)


async def test_all_the_money_there_can_be_is_counted_and_spent_by_one_account(cluster: Cluster) -> None:
    """The issuers of one asset share its limit, so that all of it still fits one balance, and can be spent at once."""
    limit = MAX_AMOUNT // 2
    await cluster.completed([cluster.open_request(name, "EUR") for name in ("payer", "rich", "heir")])
    for issuer in ("ezb-1", "ezb-2"):
        await cluster.completed([cluster.pay_request(issuer, "payer", limit)])
        await cluster.completed([cluster.pay_request("payer", "rich", limit)])
    await cluster.settle()
    for client in cluster.clients:
        for linearizable in (False, True):
            balance = await client.balance("rich", linearizable=linearizable)
            assert isinstance(balance, Balance)
            assert balance.settled + balance.incoming == 2 * limit
    over = await cluster.settled(cluster.pay_request("ezb-1", "rich", 1))
    assert Outcome(over.outcome) is Outcome.ISSUER_LIMIT
    await cluster.completed([cluster.pay_request("rich", "heir", 2 * limit)])
    nothing = await cluster.settled(cluster.pay_request("rich", "heir", 1))
    assert Outcome(nothing.outcome) is Outcome.INSUFFICIENT_FUNDS
    await cluster.settle()


def _fields(signed: SignedRequest) -> tuple[bytes, bytes]:
    return signed.raw, signed.signature

import re

import msgspec
import pytest

import routing.view
from chain.errors import LocalMisuse
from chain.genesis import (
    MAX_MEMBERS,
    Asset,
    Genesis,
    GenesisMember,
    Issuer,
    decode_genesis,
    encode_genesis,
    issuer_links,
)
from chain.link import Outcome, decode_link_untrusted, opening_slot
from chain.names import MAX_AMOUNT, MAX_SCALE
from tests.chain.bank import GENESIS, public_key_of

KEY = public_key_of("mint").hex()


def test_the_file_comes_back_as_it_was() -> None:
    raw = encode_genesis(GENESIS)
    assert decode_genesis(raw) == GENESIS
    assert raw == encode_genesis(decode_genesis(raw))
    assert b" " not in raw.replace(b"first view", b"")
    assert raw.index(b'"assets"') < raw.index(b'"ca"') < raw.index(b'"issuers"') < raw.index(b'"version"')


def test_the_largest_of_all_is_read() -> None:
    members = tuple(GenesisMember(f"{n:064x}", 2**64 - 1) for n in range(MAX_MEMBERS))
    largest = msgspec.structs.replace(GENESIS, members=members, time_ms=2**63 - 1, k=64)
    assert decode_genesis(encode_genesis(largest)) == largest
    assert MAX_MEMBERS == routing.view.MAX_MEMBERS


def test_every_field_is_part_of_the_network_id() -> None:
    others: list[dict[str, object]] = [
        {"name": "other"}, {"assets": GENESIS.assets[:1]}, {"issuers": GENESIS.issuers[:1]}, {"k": 3}, {"ca": "x"},
        {"members": ()}, {"time_ms": 5}, {"version": 2}, {"operator": KEY},
    ]  # fmt: skip
    ids = {msgspec.structs.replace(GENESIS, **other).network_id for other in others}
    assert len(ids | {GENESIS.network_id}) == len(others) + 1
    assert len(GENESIS.network_id) == 32


def test_a_file_without_an_operator_says_nothing_of_one() -> None:
    assert GENESIS.operator == ""
    assert b"operator" not in encode_genesis(GENESIS)
    named = msgspec.structs.replace(GENESIS, operator=KEY)
    assert f'"operator":"{KEY}"'.encode() in encode_genesis(named)
    assert decode_genesis(encode_genesis(named)) == named


def test_assets_are_found_by_code() -> None:
    assert GENESIS.asset("EUR") == Asset("EUR", 2)
    assert GENESIS.asset("USD") is None


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"version": 2}, "version 2"),
        ({"k": 0}, "k is 0"),
        ({"k": 65}, "k is 65"),
        ({"assets": (Asset("czk", 2),)}, "asset czk:2"),
        ({"assets": (Asset("CZK", MAX_SCALE + 1),)}, "asset CZK:19"),
        ({"assets": (Asset("CZK", -1),)}, "asset CZK:-1"),
        ({"assets": (Asset("CZK", 2), Asset("EUR", 2), Asset("CZK", 3))}, "asset twice"),
        ({"issuers": (Issuer("Mint", "CZK", KEY),)}, "issuer Mint"),
        ({"issuers": (Issuer("mint", "USD", KEY),)}, "mint of USD"),
        ({"issuers": (Issuer("mint", "CZK", KEY), Issuer("mint", "EUR", KEY))}, "issuer twice"),
        ({"issuers": (Issuer("mint", "CZK", KEY[:-2]),)}, "64 hexadecimal"),
        ({"issuers": (Issuer("mint", "CZK", "x" * 64),)}, "64 hexadecimal"),
        ({"members": (GenesisMember(KEY.upper()),)}, "64 hexadecimal"),
        ({"operator": KEY[:-1]}, "64 hexadecimal"),
        ({"members": (GenesisMember(KEY), GenesisMember(KEY))}, "member twice"),
        ({"members": ()}, "lists 0 members"),
        ({"members": tuple(GenesisMember(f"{n:064x}") for n in range(MAX_MEMBERS + 1))}, "lists 4097 members"),
        ({"members": (GenesisMember(KEY, 0),)}, "incarnation 0"),
        ({"members": (GenesisMember(KEY, 2**64),)}, "incarnation 18446744073709551616"),
        ({"time_ms": -1}, "time_ms is -1"),
        ({"time_ms": 2**63}, "time_ms is 9223372036854775808"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(fields: dict[str, object], text: str) -> None:
    raw = encode_genesis(msgspec.structs.replace(GENESIS, **fields))
    with pytest.raises(LocalMisuse, match=re.escape(text)):
        decode_genesis(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"\xff",
        encode_genesis(GENESIS)[:-1],
        b'{"more":1,' + encode_genesis(GENESIS)[1:],
        encode_genesis(GENESIS).replace(b'"test"', b'"te\xff"'),
    ],
)
def test_what_is_no_genesis_file(raw: bytes) -> None:
    with pytest.raises(LocalMisuse, match="cannot be read"):
        decode_genesis(raw)


def test_issuers_are_opened_by_the_file_itself() -> None:
    links = issuer_links(GENESIS)
    assert [(link.account, link.height, link.balance, link.epoch) for link in links] == [
        ("mint", 0, 0, 1),
        ("mint2", 0, 0, 1),
        ("ezb", 0, 0, 1),
    ]
    for link, issuer in zip(links, GENESIS.issuers, strict=True):
        assert decode_link_untrusted(link.raw) == link
        assert link.prev_hash == opening_slot(GENESIS.network_id, issuer.name)
        (entry,) = link.entries
        assert (entry.outcome, entry.request.asset) == (Outcome.COMPLETED, issuer.asset)
        assert entry.request.public_key.hex() == issuer.public_key
    assert issuer_links(decode_genesis(encode_genesis(GENESIS))) == links


def test_a_network_without_issuers_has_no_links() -> None:
    empty = Genesis(1, "empty", (), (), 1, "", (GenesisMember(KEY),), 0)
    assert issuer_links(empty) == []
    assert decode_genesis(encode_genesis(empty)) == empty


def test_issuers_of_one_asset_share_its_limit() -> None:
    """So no account, and no sum over accounts, can hold more than 2^63-1 of it."""
    assert GENESIS.issuer_limit("CZK") == MAX_AMOUNT // sum(i.asset == "CZK" for i in GENESIS.issuers)
    assert sum(i.asset == "CZK" for i in GENESIS.issuers) == 2
    assert GENESIS.issuer_limit("EUR") == MAX_AMOUNT

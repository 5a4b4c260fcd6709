"""Changes of the members: canonical bytes, who may sign them, and what bytes of anybody are."""

import hashlib
from contextlib import suppress

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from chain.errors import LocalMisuse, RemoteFault
from chain.genesis import Genesis
from hopchain.change import (
    CHANGE_BYTES,
    Change,
    ChangeAction,
    SignedChange,
    change_id,
    check_change_untrusted,
    decode_change_untrusted,
    encode_change,
    is_change_signed_by,
    sign_change,
)
from routing.keyspace import node_id_of

OPERATOR = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
NODE = Ed25519PrivateKey.from_private_bytes(bytes([2]) * 32)
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes([3]) * 32)


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


GENESIS = Genesis(1, "test", (), (), 3, "", (), 0, public(OPERATOR).hex())
ADD = Change(GENESIS.network_id, ChangeAction.ADD, public(NODE), 1, 5_000)
REMOVE = Change(GENESIS.network_id, ChangeAction.REMOVE, public(NODE), 7, 5_000, force=True)


def test_the_bytes_are_the_documented_ones() -> None:
    raw = encode_change(REMOVE)
    number = (5_000).to_bytes(8, "big")
    assert raw == b"hopchain:change:1\0" + GENESIS.network_id + b"\2" + public(NODE) + bytes(7) + b"\7" + number + b"\1"
    assert len(raw) == CHANGE_BYTES
    assert change_id(raw) == hashlib.sha256(raw).digest() == SignedChange(raw, b"").id
    assert REMOVE.node_id == node_id_of(public(NODE))


@given(
    st.builds(
        Change,
        st.binary(min_size=32, max_size=32),
        st.just(ChangeAction.REMOVE),
        st.binary(min_size=32, max_size=32),
        st.integers(1, 2**64 - 1),
        st.integers(0, 2**64 - 1),
        st.booleans(),
    )
)
def test_a_change_comes_back_as_it_was(change: Change) -> None:
    assert decode_change_untrusted(encode_change(change)) == change
    added = msgspec.structs.replace(change, action=ChangeAction.ADD, force=False)
    assert decode_change_untrusted(encode_change(added)) == added


@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        (0, b"H", "are not a change"),
        (50, b"\0", "action 0"),
        (50, b"\3", "action 3"),
        (83, bytes(8), "incarnation 0"),
        (99, b"\2", "force is 2"),
        (99, b"\1", "force is 1 in action ADD"),
    ],
)
def test_wrong_bytes_are_refused(place: int, value: bytes, text: str) -> None:
    raw = encode_change(ADD)
    with pytest.raises(RemoteFault, match=text):
        decode_change_untrusted(raw[:place] + value + raw[place + len(value) :])


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("network", bytes(40), "network of a change has 40 bytes; it must have 32"),
        ("public_key", bytes(40), "public_key of a change has 40 bytes"),
        ("public_key", bytes(31), "public_key of a change has 31 bytes"),
        ("incarnation", 0, "incarnation 0"),
        ("expires_ms", -1, "expires_ms -1"),
        ("expires_ms", 2**64, "both at most"),
        ("force", True, "force is for a removal only"),
    ],
)
def test_what_would_be_another_change_is_not_signed(field: str, value: object, text: str) -> None:
    with pytest.raises(LocalMisuse, match=text):
        sign_change(msgspec.structs.replace(ADD, **{field: value}), OPERATOR)


@given(st.binary(max_size=CHANGE_BYTES + 2) | st.tuples(st.integers(0, CHANGE_BYTES - 1), st.integers(0, 255)))
def test_any_bytes_are_a_change_or_a_remote_fault(damage: bytes | tuple[int, int]) -> None:
    raw = bytearray(encode_change(ADD))
    if isinstance(damage, bytes):
        raw[18:] = damage
    else:
        raw[damage[0]] = damage[1]
    with suppress(RemoteFault):
        assert encode_change(decode_change_untrusted(bytes(raw))) == raw


def test_the_operator_adds_and_removes_and_a_node_only_removes_itself() -> None:
    for change in (ADD, REMOVE):
        assert check_change_untrusted(sign_change(change, OPERATOR), GENESIS, 5_000) == change
    assert check_change_untrusted(sign_change(REMOVE, NODE), GENESIS, 0) == REMOVE
    for change, key in ((ADD, NODE), (ADD, STRANGER), (REMOVE, STRANGER)):
        with pytest.raises(RemoteFault, match="is not signed by") as caught:
            check_change_untrusted(sign_change(change, key), GENESIS, 0)
        assert caught.value.code == "bad_signature"


def test_without_an_operator_nodes_can_only_leave() -> None:
    genesis = msgspec.structs.replace(GENESIS, operator="")
    add, remove = (msgspec.structs.replace(change, network=genesis.network_id) for change in (ADD, REMOVE))
    with pytest.raises(RemoteFault, match="names no operator"):
        check_change_untrusted(sign_change(add, OPERATOR), genesis, 0)
    assert check_change_untrusted(sign_change(remove, NODE), genesis, 0) == remove


def test_what_is_of_another_network_or_too_late_is_refused() -> None:
    signed = sign_change(ADD, OPERATOR)
    with pytest.raises(RemoteFault, match="expired 2 s ago") as caught:
        check_change_untrusted(signed, GENESIS, 7_000)
    assert caught.value.code == "expired"
    with pytest.raises(RemoteFault, match="the change is of network") as caught:
        check_change_untrusted(signed, msgspec.structs.replace(GENESIS, k=5), 0)
    assert caught.value.code == "network"


def test_a_signature_is_over_every_byte() -> None:
    signed = sign_change(ADD, OPERATOR)
    assert is_change_signed_by(signed, public(OPERATOR))
    assert not is_change_signed_by(signed, public(NODE))
    assert not is_change_signed_by(signed, b"short")
    for place in range(CHANGE_BYTES):
        raw = bytearray(signed.raw)
        raw[place] ^= 1
        assert not is_change_signed_by(SignedChange(bytes(raw), signed.signature), public(OPERATOR))

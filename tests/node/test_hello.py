"""The members' handshake, as bytes: what is let in and what each refusal says."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.errors import RemoteFault
from node.hello import (
    MAX_HELLO_BYTES,
    PROTOCOL_VERSION,
    Hello,
    Refused,
    SaidRemoved,
    Welcome,
    check_hello_untrusted,
    check_verdict_untrusted,
    encode,
)
from routing.keyspace import NodeId

ME, PEER, OTHER = (NodeId(bytes([letter]) * 20) for letter in b"\xaa\xbb\xcc")
NETWORK = bytes(32)
MINE = Hello(PROTOCOL_VERSION, NETWORK, ME, 1, bytes(8))
THEIRS = Hello(PROTOCOL_VERSION, NETWORK, PEER, 3, bytes(8))
REMOVED = {NodeId(b"\xdd" * 20): 7}


def check(payload: bytes, certified: NodeId = PEER, dialed: NodeId | None = PEER) -> Hello:
    return check_hello_untrusted(payload, MINE, certified, lambda node: REMOVED.get(node, 0), dialed)


def test_a_member_or_guest_is_let_in_whoever_dialed() -> None:
    assert check(encode(THEIRS)) == THEIRS
    assert check(encode(THEIRS), dialed=None) == THEIRS


def test_it_tells_where_clients_are_served() -> None:
    assert check(encode(msgspec.structs.replace(THEIRS, client_port=7401))).client_port == 7401
    for port in (-1, 65536):
        with pytest.raises(RemoteFault, match="cannot be read"):
            check(encode(msgspec.structs.replace(THEIRS, client_port=port)))


REFUSALS = [
    (
        "version",
        msgspec.structs.replace(THEIRS, version=PROTOCOL_VERSION + 1),
        PEER,
        f"protocol version {PROTOCOL_VERSION + 1} meets version {PROTOCOL_VERSION}: run the same release",
    ),
    ("network", msgspec.structs.replace(THEIRS, network=b"\x01" * 32), PEER, "use one genesis.json on all nodes"),
    ("identity", THEIRS, OTHER, "the hello says node bbbbbbbb, the certificate node cccccccc"),
    ("self", msgspec.structs.replace(THEIRS, node_id=ME), ME, "a second copy of its directory runs"),
    (
        "removed",
        msgspec.structs.replace(THEIRS, node_id=NodeId(b"\xdd" * 20)),
        NodeId(b"\xdd" * 20),
        "node dddddddd was removed from the network in epoch 7: ids do not come back",
    ),
    ("wrong_peer", msgspec.structs.replace(THEIRS, node_id=OTHER), OTHER, "cccccccc answers where node bbbbbbbb was"),
]


@pytest.mark.parametrize(("code", "hello", "certified", "says"), REFUSALS, ids=[case[0] for case in REFUSALS])
def test_everybody_else_is_told_why_not(code: str, hello: Hello, certified: NodeId, says: str) -> None:
    with pytest.raises(RemoteFault, match=says) as caught:
        check(encode(hello), certified)
    assert caught.value.code == code


def test_another_version_is_told_apart_whatever_else_is_in_its_hello() -> None:
    with pytest.raises(RemoteFault) as caught:
        check(msgspec.msgpack.encode(["hello", 9, {"other": "fields"}]))
    assert caught.value.code == "version"


@given(st.binary(max_size=200))
def test_random_bytes_are_no_hello_and_no_verdict(payload: bytes) -> None:
    for read in (check, check_verdict_untrusted):
        with pytest.raises(RemoteFault):
            read(payload)


@given(st.integers(0, len(encode(THEIRS)) - 1), st.integers(0, 255))
def test_a_damaged_hello_is_a_hello_or_a_remote_fault(at: int, byte: int) -> None:
    payload = bytearray(encode(THEIRS))
    payload[at] = byte
    try:
        hello = check(bytes(payload))
        assert hello.node_id == PEER
        assert hello.network == NETWORK
    except RemoteFault:
        pass


def test_deep_nesting_is_a_remote_fault() -> None:
    with pytest.raises(RemoteFault, match="cannot be read"):
        check(msgspec.msgpack.encode(["hello", 1]) + b"\x91" * 3000)
    with pytest.raises(RemoteFault, match="cannot be read"):
        check_verdict_untrusted(b"\x91" * 4000)


def test_a_welcome_is_a_welcome_and_a_refusal_keeps_its_code() -> None:
    check_verdict_untrusted(encode(Welcome()))
    with pytest.raises(RemoteFault, match=r"the other node refused this one: 'go away'") as caught:
        check_verdict_untrusted(encode(Refused("busy", "go away", 7)))
    assert caught.value.code == "busy"
    assert not isinstance(caught.value, SaidRemoved)


def test_who_refuses_the_removed_says_in_which_epoch_that_was() -> None:
    with pytest.raises(SaidRemoved, match=r"the other node refused this one: 'go away'") as caught:
        check_verdict_untrusted(encode(Refused("removed", "go away", 7)))
    assert (caught.value.code, caught.value.epoch) == ("removed", 7)
    for epoch in (-1, 2**63):
        with pytest.raises(RemoteFault, match="cannot be read"):
            check_verdict_untrusted(encode(Refused("removed", "go away", epoch)))


def test_a_strangers_words_do_not_grow_our_counters_or_our_log() -> None:
    with pytest.raises(RemoteFault) as caught:
        check_verdict_untrusted(encode(Refused("x" * 1000, "line\n" * 500)))
    assert caught.value.code == "refused"
    assert len(caught.value.text) < 600
    assert "\n" not in caught.value.text


def test_a_hello_fits_its_bound_many_times() -> None:
    assert 10 * len(encode(THEIRS)) < MAX_HELLO_BYTES

"""Views: canonical bytes, groups, and what is refused."""

import contextlib
import hashlib
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.errors import RoutingFault, RoutingMisuse
from routing.keyspace import distance, node_id_of
from routing.view import MAX_MEMBERS, Member, View, decode_view, encode_view, first_view, majority, member_of

NETWORK = bytes(range(32))


def _members(count: int, seed: int = 7) -> list[Member]:
    rng = random.Random(seed)
    return [member_of(rng.randbytes(32)) for _ in range(count)]


def _view(count: int = 7, k: int = 5) -> View:
    return first_view(NETWORK, k, _members(count))


def test_the_canonical_bytes_are_these():
    view = first_view(NETWORK, 3, [member_of(b"a" * 32), member_of(b"b" * 32, 2)])
    rows = sorted((hashlib.sha256(key).digest()[:20], key, n) for key, n in ((b"a" * 32, 1), (b"b" * 32, 2)))
    expected = b"hopchain:view:1\0" + (1).to_bytes(8) + bytes(32) + NETWORK + (3).to_bytes(2) + (2).to_bytes(2)
    expected += b"".join(key + n.to_bytes(8) for _, key, n in rows)
    assert encode_view(view) == expected
    assert view.hash == hashlib.sha256(expected).digest()


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 64), st.integers(0, 2**32))
def test_encoding_and_decoding_give_the_same_view(count, k, seed):
    view = first_view(NETWORK, k, _members(count, seed))
    assert decode_view(encode_view(view)) == view
    later = msgspec.structs.replace(view, epoch=2, prev_hash=view.hash)
    assert decode_view(encode_view(later)) == later
    assert later.hash != view.hash


def test_the_order_in_which_members_are_given_does_not_matter():
    members = _members(9)
    assert first_view(NETWORK, 5, members).hash == first_view(NETWORK, 5, members[::-1]).hash


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 64), st.binary(min_size=20, max_size=20))
def test_a_group_is_the_k_closest_members_the_owner_first(count, k, key):
    view = first_view(NETWORK, k, _members(count))
    expected = tuple(sorted((m.id for m in view.members), key=lambda node: distance(node, key)))[:k]
    assert view.group(key) == expected
    assert len(expected) == min(count, k)
    assert [view.rank_of(key, node) for node in expected] == list(range(len(expected)))


def test_a_member_outside_the_group_has_no_rank():
    view, key = _view(7, 5), bytes(20)
    outside = set(view.ids) - set(view.group(key))
    assert len(outside) == 2
    assert {view.rank_of(key, node) for node in outside} == {None}


def test_members_are_found_by_id():
    view = _view()
    assert [view.member(node) for node in view.ids] == list(view.members)
    assert all(view.is_member(node) for node in view.ids)
    assert not view.is_member(node_id_of(b"x" * 32))
    assert view.member(bytes(20)) is view.member(b"\xff" * 20) is None


@pytest.mark.parametrize(("n", "expected"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4)])
def test_two_majorities_share_a_node(n, expected):
    assert majority(n) == expected
    assert 2 * majority(n) > n


@pytest.mark.parametrize(
    ("k", "members", "says"),
    [
        (0, _members(3), "k is 0"),
        (65, _members(3), "k is 65"),
        (5, [], "0 members"),
        (5, [member_of(b"a" * 32), member_of(b"a" * 32, 2)], "each once"),
        (5, [Member(node_id_of(b"b" * 32), b"a" * 32, 1)], "id of its public key"),
        (5, [member_of(b"short")], "public key of 5 bytes"),
        (5, [member_of(b"a" * 32, 0)], "incarnation 0"),
        (5, [member_of(b"a" * 32, 2**64)], "incarnation 18446744073709551616"),
        (5, [member_of(n.to_bytes(32)) for n in range(MAX_MEMBERS + 1)], f"{MAX_MEMBERS + 1} members"),
    ],
)
def test_a_first_view_that_makes_no_sense_is_refused(k, members, says):
    with pytest.raises(RoutingMisuse, match=says):
        first_view(NETWORK, k, members)


def test_a_network_id_of_another_length_is_refused():
    with pytest.raises(RoutingMisuse, match="32 bytes, not 32 and 3"):
        first_view(b"abc", 5, _members(3))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epoch": 0}, "epoch is 0"),
        ({"epoch": 2}, "no view before it"),
        ({"prev_hash": b"x" * 32}, "no view before it"),
        ({"k": 0}, "k is 0"),
        ({"members": ()}, "0 members"),
        ({"members": _view().members[::-1]}, "ascending"),
    ],
)
def test_bytes_of_a_view_that_makes_no_sense_are_refused(change, says):
    raw = encode_view(msgspec.structs.replace(_view(), **change))
    with pytest.raises(RoutingFault, match=says):
        decode_view(raw)


def test_a_cut_or_longer_view_is_refused():
    raw = encode_view(_view())
    for size in range(len(raw)):
        with pytest.raises(RoutingFault, match="bad_view"):
            decode_view(raw[:size])
    with pytest.raises(RoutingFault, match="cannot have"):
        decode_view(raw + b"\0")


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 400), st.integers(1, 255))
def test_untrusted_bytes_raise_only_a_routing_fault(noise, place, flip):
    raw = bytearray(encode_view(_view()))
    raw[place % len(raw)] ^= flip
    for data in (noise, bytes(raw), bytes(raw[:16]) + noise):
        with contextlib.suppress(RoutingFault):
            assert encode_view(decode_view(data)) == data

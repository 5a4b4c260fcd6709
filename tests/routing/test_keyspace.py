"""Ids, keys, distance, closest: against the obvious way to say it."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.errors import RoutingMisuse
from routing.keyspace import KEY_BITS, NodeId, closest, distance, node_id_of, route_key, shared_bits, short

ids = st.binary(min_size=20, max_size=20)


def _bits(raw: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in raw)


def test_a_node_id_is_the_first_160_bits_of_the_hash_of_its_key():
    assert node_id_of(b"k" * 32) == hashlib.sha256(b"k" * 32).digest()[:20]


def test_a_route_key_is_the_start_of_the_slot():
    assert route_key(bytes(range(32))) == bytes(range(20))


def test_a_slot_that_is_too_short_has_no_route_key():
    with pytest.raises(RoutingMisuse, match="19 bytes"):
        route_key(bytes(19))


@settings(deadline=None)
@given(ids, ids)
def test_distance_counts_differing_bits_from_the_left(a, b):
    assert distance(a, b) == int("".join("01"[x != y] for x, y in zip(_bits(a), _bits(b), strict=True)), 2)
    assert distance(a, b) == distance(b, a) < 2**KEY_BITS
    assert distance(a, a) == 0


@settings(deadline=None)
@given(ids, ids)
def test_shared_bits_is_the_common_prefix(a, b):
    prefix = next((i for i, (x, y) in enumerate(zip(_bits(a), _bits(b), strict=True)) if x != y), KEY_BITS)
    assert shared_bits(a, b) == prefix


@settings(deadline=None)
@given(st.sets(ids, max_size=60), ids, st.integers(0, 70))
def test_closest_is_sorted_by_distance_and_cut(found, key, k):
    assert closest(map(NodeId, found), key, k) == tuple(sorted(found, key=lambda node: distance(node, key))[:k])


def test_an_id_for_people_has_8_characters():
    assert short(bytes.fromhex("0123456789abcdef0123")) == "01234567"

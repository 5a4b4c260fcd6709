"""Views: canonical bytes, groups, and what is refused."""

import contextlib
import hashlib
import random

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from routing.errors import RoutingFault, RoutingMisuse
from routing.keyspace import distance, node_id_of
from routing.view import (
    MAX_MEMBERS,
    NOBODY,
    Member,
    View,
    check_next,
    decode_view,
    encode_view,
    first_view,
    majority,
    member_of,
    with_member,
    without_member,
)

NETWORK = bytes(range(32))


def _members(count: int, seed: int = 7) -> list[Member]:
    rng = random.Random(seed)
    return [member_of(rng.randbytes(32)) for _ in range(count)]


def _view(count: int = 7, k: int = 5) -> View:
    return first_view(NETWORK, k, _members(count))


def test_the_canonical_bytes_are_these():
    first = first_view(NETWORK, 3, [member_of(b"a" * 32), member_of(b"b" * 32, 2)], 77)
    by = bytes(range(20))
    view = msgspec.structs.replace(first, epoch=2, prev_hash=first.hash, time_ms=78, by=by)
    rows = sorted((hashlib.sha256(key).digest()[:20], key, n) for key, n in ((b"a" * 32, 1), (b"b" * 32, 2)))
    tail = (3).to_bytes(2) + (2).to_bytes(2) + b"".join(key + n.to_bytes(8) for _, key, n in rows)
    head = b"hopchain:view:1\0" + (1).to_bytes(8) + bytes(32) + NETWORK
    assert encode_view(first) == head + (77).to_bytes(8) + bytes(20) + tail
    assert first.hash == hashlib.sha256(encode_view(first)).digest()
    head = b"hopchain:view:1\0" + (2).to_bytes(8) + first.hash + NETWORK
    assert encode_view(view) == head + (78).to_bytes(8) + by + tail


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 64), st.integers(0, 2**32))
def test_encoding_and_decoding_give_the_same_view(count, k, seed):
    view = first_view(NETWORK, k, _members(count, seed))
    assert decode_view(encode_view(view)) == view
    later = msgspec.structs.replace(view, epoch=2, prev_hash=view.hash, time_ms=seed, by=view.ids[0])
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
        ({"by": b"x" * 20}, "it is the first view and says"),
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


# --- one view after the other
# --------------------------------------------------------------------------------------------


def test_a_first_view_may_have_a_time_and_nobody_proposed_it():
    view = first_view(NETWORK, 5, _members(3), 1_700_000_000_000)
    assert (view.time_ms, view.by) == (1_700_000_000_000, NOBODY)
    assert _view().time_ms == 0


def test_a_member_is_added_and_removed():
    view, joiner = _view(4), member_of(b"j" * 32, 3)
    larger = with_member(view, joiner, 9, view.ids[1])
    assert (larger.epoch, larger.prev_hash, larger.k, larger.network) == (2, view.hash, view.k, NETWORK)
    assert (larger.time_ms, larger.by) == (9, view.ids[1])
    assert larger.members == tuple(sorted((*view.members, joiner), key=lambda member: member.id))
    smaller = without_member(larger, view.ids[2], 10, joiner.id)
    assert (smaller.epoch, smaller.prev_hash, smaller.k, smaller.network) == (3, larger.hash, view.k, NETWORK)
    assert (smaller.time_ms, smaller.by) == (10, joiner.id)
    assert smaller.members == tuple(member for member in larger.members if member.id != view.ids[2])
    for before, after in ((view, larger), (larger, smaller)):
        check_next(before, after)
        check_next(before, decode_view(encode_view(after)))


@settings(deadline=None, max_examples=25)
@example(9, [False, False, True, False, True, True], 0)
@given(st.integers(1, 9), st.lists(st.booleans(), max_size=12), st.integers(0, 2**32))
def test_any_number_of_changes_makes_one_chain(count, adds, seed):
    rng, view = random.Random(f"changes {seed}"), first_view(NETWORK, 5, _members(count, seed))  # keys of its own
    for time_ms, add in enumerate(adds):
        by = rng.choice(view.ids)
        if add or len(view.members) == 1:
            after = with_member(view, member_of(rng.randbytes(32)), time_ms, by)
        else:
            after = without_member(view, rng.choice(view.ids), time_ms, by)
        check_next(view, after)
        with pytest.raises(RoutingFault, match="bad_view"):
            check_next(after, view)
        view = after


def test_a_change_that_makes_no_sense_is_refused_and_says_why():
    view, joiner = _view(3), member_of(b"j" * 32)
    present = view.members[1]
    with pytest.raises(RoutingMisuse, match=f"{present.id.hex()} is a member of epoch 1 already"):
        with_member(view, member_of(present.public_key, 2), 1, view.ids[0])
    with pytest.raises(RoutingMisuse, match=f"{joiner.id.hex()} is no member of epoch 1"):
        without_member(view, joiner.id, 1, view.ids[0])
    alone = _view(1)
    with pytest.raises(RoutingMisuse, match="last member of epoch 1: add another one first"):
        without_member(alone, alone.ids[0], 1, alone.ids[0])
    for change, says in (
        ({"member": member_of(b"short")}, "after epoch 1 cannot be made.*public key of 5 bytes"),
        ({"time_ms": -1}, "its time is -1"),
        ({"time_ms": 2**64}, "its time is 18446744073709551616"),
        ({"by": b"x" * 19}, "has 19 bytes, not 20"),
    ):
        with pytest.raises(RoutingMisuse, match=says):
            with_member(view, **{"member": joiner, "time_ms": 1, "by": view.ids[0], **change})


def test_a_full_view_takes_no_more():
    full = first_view(NETWORK, 5, [member_of(n.to_bytes(32)) for n in range(MAX_MEMBERS)])
    with pytest.raises(RoutingMisuse, match=f"{MAX_MEMBERS + 1} members; it must have 1 to {MAX_MEMBERS}"):
        with_member(full, member_of(b"j" * 32), 1, full.ids[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epoch": 3}, "epoch 3 does not follow epoch 1"),
        ({"epoch": 1}, "epoch 1 does not follow epoch 1"),
        ({"prev_hash": b"x" * 32}, "it follows view 7878"),
        ({"network": b"n" * 32}, "it is of network 6e6e"),
        ({"k": 4}, "its k is 4, that of epoch 1 is 5"),
        ({"members": _view(4).members}, "0 members of epochs 1 and 2 differ"),
        ({"members": _view(6).members}, "2 members of epochs 1 and 2 differ"),
        ({"members": _view(2).members}, "2 members of epochs 1 and 2 differ"),
        (
            {"members": tuple(sorted((*_view(4).members[1:], member_of(b"j" * 32)), key=lambda member: member.id))},
            "2 members of epochs 1 and 2 differ",
        ),
        (
            {"members": (member_of(_view(4).members[0].public_key, 2), *_view(4).members[1:])},
            "2 members of epochs 1 and 2 differ",
        ),
    ],
)
def test_a_view_that_does_not_follow_is_refused(change, says):
    before = _view(4)
    after = with_member(before, member_of(b"j" * 32), 1, before.ids[0])
    check_next(before, after)
    with pytest.raises(RoutingFault, match=says) as error:
        check_next(before, msgspec.structs.replace(after, **change))
    assert error.value.code == "bad_view"

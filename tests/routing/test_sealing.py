"""Sealed datagrams: who can make one, who can open it, and only once."""

import random
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.errors import RoutingFault, RoutingMisuse
from routing.keyspace import node_id_of
from routing.sealing import (
    MAX_DATAGRAM_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_WINDOWS,
    NEW_STARTS_AT_ONCE,
    NEW_STARTS_PER_S,
    OVERHEAD_BYTES,
    REPLAY_WINDOW,
    Opened,
    ReplayWindow,
    Sealer,
)

KEY, NETWORK = b"k" * 32, b"n" * 32
A, B, C = (node_id_of(name * 32) for name in (b"a", b"b", b"c"))
BOOT = bytes(16)


def _sealer(node=A, key=KEY, network=NETWORK, boot=BOOT, clock=lambda: 0.0) -> Sealer:
    return Sealer(key, network, node, boot, clock)


def _code(sealer: Sealer, datagram: bytes) -> str:
    with pytest.raises(RoutingFault) as caught:
        sealer.open_untrusted(datagram)
    return caught.value.code


def test_the_receiver_opens_what_was_sealed_for_it():
    assert _sealer(B).open_untrusted(_sealer(A).seal(b"hello", B)) == Opened(A, b"hello")


def test_whoever_gets_an_unaddressed_datagram_opens_it():
    assert _sealer(B).open_untrusted(_sealer(A).seal(b"hello", None)) == Opened(A, b"hello")


def test_the_largest_payload_fits_and_a_larger_datagram_is_dropped():
    a, b = _sealer(A), _sealer(B)
    largest = a.seal(bytes(MAX_PAYLOAD_BYTES), B)
    assert len(largest) == MAX_DATAGRAM_BYTES
    assert len(b.open_untrusted(largest).payload) == MAX_PAYLOAD_BYTES
    assert _code(b, largest + b"\0") == "oversized"


@pytest.mark.parametrize(
    ("datagram", "code"),
    [
        (b"", "short"),
        (bytes(OVERHEAD_BYTES - 1), "short"),
        (b"\x02" + _sealer(A).seal(b"hello", B)[1:], "version"),
        (_sealer(A, network=b"m" * 32).seal(b"hello", B), "foreign"),
        (_sealer(A, network=NETWORK[:8] + b"m" * 24).seal(b"hello", B), "forged"),
        (_sealer(B, boot=b"x" * 16).seal(b"hello", B), "own_id"),
        (_sealer(A).seal(b"hello", C), "misdirected"),
        (_sealer(A, key=b"x" * 32).seal(b"hello", B), "forged"),
    ],
)
def test_what_is_not_ours_to_open_is_dropped_with_a_reason(datagram, code):
    assert _code(_sealer(B), datagram) == code


def test_every_flipped_bit_is_noticed():
    datagram = _sealer(A).seal(b"hello", B)
    codes = Counter()
    for bit in range(len(datagram) * 8):
        damaged = bytearray(datagram)
        damaged[bit // 8] ^= 1 << bit % 8
        codes[_code(_sealer(B), bytes(damaged))] += 1
    assert codes == {"version": 8, "foreign": 64, "misdirected": 160, "forged": len(datagram) * 8 - 232}


def test_a_datagram_is_accepted_once_and_the_same_payload_sealed_again_is_another():
    a, b = _sealer(A), _sealer(B)
    datagram = a.seal(b"hello", B)
    b.open_untrusted(datagram)
    assert _code(b, datagram) == "replayed"
    assert b.open_untrusted(a.seal(b"hello", B)).payload == b"hello"


def test_datagrams_may_overtake_each_other_within_the_window():
    a, b = _sealer(A), _sealer(B)
    datagrams = [a.seal(b"hello", B) for _ in range(REPLAY_WINDOW + 1)]
    b.open_untrusted(datagrams[-1])
    assert _code(b, datagrams[0]) == "replayed"
    for datagram in random.Random(1).sample(datagrams[1:-1], REPLAY_WINDOW - 1):
        b.open_untrusted(datagram)
    for datagram in datagrams:
        assert _code(b, datagram) == "replayed"


def test_a_forged_datagram_does_not_move_the_window():
    a, b = _sealer(A), _sealer(B)
    first = a.seal(b"hello", B)
    for _ in range(2 * REPLAY_WINDOW):
        ahead = a.seal(b"hello", B)
    assert _code(b, ahead[:-1] + bytes([ahead[-1] ^ 1])) == "forged"
    b.open_untrusted(first)


def test_no_two_datagrams_of_any_node_or_start_share_key_and_nonce():
    boots = [_sealer(node, boot=boot) for node in (A, B, C) for boot in (BOOT, b"x" * 16)]
    header, tag = OVERHEAD_BYTES - 16, 16  # the tag differs anyway: it covers the header
    bodies = [sealer.seal(bytes(64), None)[header:-tag] for sealer in boots for _ in range(50)]
    assert len(set(bodies)) == len(bodies), "the same plaintext under the same key and nonce is the same ciphertext"


def test_a_node_that_restarts_is_heard_and_its_old_datagrams_stay_replays():
    b, before, after = _sealer(B), _sealer(A, boot=b"1" * 16), _sealer(A, boot=b"2" * 16)
    old = [before.seal(b"old", B) for _ in range(5)]
    for datagram in old:
        b.open_untrusted(datagram)
    assert b.open_untrusted(after.seal(b"new", B)).payload == b"new"
    assert [_code(b, datagram) for datagram in old] == ["replayed"] * 5


def test_forged_headers_cost_no_memory_and_real_ones_are_bounded(monkeypatch):
    monkeypatch.setattr("routing.sealing.MAX_WINDOWS", 3)
    b = _sealer(B)
    for n in range(20):
        assert _code(b, _sealer(A, key=b"x" * 32, boot=n.to_bytes(16)).seal(b"", B)) == "forged"
    assert len(b._boots) == 0
    for n in range(20):
        b.open_untrusted(_sealer(A, boot=n.to_bytes(16)).seal(b"", B))
    assert len(b._boots) == 3
    assert MAX_WINDOWS >= 4096


@pytest.mark.parametrize("argument", ["key", "network", "node", "boot"])
def test_material_of_the_wrong_length_is_refused(argument):
    with pytest.raises(RoutingMisuse, match="has 3 bytes"):
        _sealer(**{argument: b"abc"})


@settings(deadline=None)
@given(st.lists(st.integers(0, 4000), max_size=200))
def test_the_window_agrees_with_a_set_of_what_was_seen(counters):
    window, seen = ReplayWindow(), set()
    for counter in counters:
        fresh = counter not in seen and (not seen or counter > max(seen) - REPLAY_WINDOW)
        assert window.is_fresh(counter) == fresh
        if fresh:
            window.mark(counter)
            seen.add(counter)


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 200), st.binary(max_size=20))
def test_untrusted_bytes_raise_only_a_routing_fault(noise, cut, tail):
    header = _sealer(A).seal(b"hello", B)
    for datagram in (noise, header[:cut] + tail):
        if datagram != header:
            assert _code(_sealer(B), datagram)


def _boots(count: int) -> list[bytes]:
    return [n.to_bytes(16) for n in range(1, count + 1)]


class _Seconds:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_flood_of_unknown_starts_is_looked_at_so_far_and_no_known_start_suffers():
    seconds = _Seconds()
    b, known, expected = _sealer(B, clock=seconds), _sealer(A, boot=b"k" * 16), _sealer(C, boot=b"e" * 16)
    b.open_untrusted(known.seal(b"before", B))
    derived = Counter()
    cipher_of = b._cipher_of
    b._cipher_of = lambda sender, boot: derived.update(["keys"]) or cipher_of(sender, boot)
    forged = [_sealer(A, key=b"x" * 32, boot=boot).seal(b"", B) for boot in _boots(1000)]
    codes = Counter()
    for _ in range(20):  # 2 s of 10,000 a second
        for datagram in forged:
            codes[_code(b, datagram)] += 1
        seconds.now += 0.1
        assert b.open_untrusted(known.seal(b"meanwhile", B)).payload == b"meanwhile"
    looked_at = NEW_STARTS_AT_ONCE + 19 * 0.1 * NEW_STARTS_PER_S
    assert codes["forged"] == derived["keys"] == pytest.approx(looked_at, abs=3), (
        "but for what the known one took, and fractions"
    )
    assert codes.total() == codes["forged"] + codes["crowded"] == 20_000
    assert _code(b, forged[0]) == "forged", "a tenth of a second has passed"
    while _code(b, forged[0]) == "forged":
        pass
    assert _code(b, expected.seal(b"nobody vouches for it", B)) == "crowded"
    b.expect(C, b"e" * 16)
    assert b.open_untrusted(expected.seal(b"TLS does", B)).payload == b"TLS does"


def test_who_restarts_in_a_flood_gets_in_with_its_part_of_the_datagrams_and_at_once_after_it():
    seconds, rng = _Seconds(), random.Random(5)
    b = _sealer(B, clock=seconds)
    forged = _sealer(A, key=b"x" * 32, boot=b"f" * 16).seal(b"", B)
    tries = []
    for boot in _boots(20):
        again = _sealer(A, boot=boot)
        for number in range(1, 10_000):
            for _ in range(100 + rng.randrange(50)):  # 25,000 a second, and one of its own each 5 ms
                _code(b, forged)
                seconds.now += 1 / 25_000
            with suppress(RoutingFault):
                b.open_untrusted(again.seal(b"hello", B))
                tries.append(number)
                break
    assert 25 <= sum(tries) / len(tries) <= 100, "one in fifty"
    seconds.now += 2 / NEW_STARTS_PER_S
    assert b.open_untrusted(_sealer(A, boot=b"l" * 16).seal(b"later", B)).payload == b"later"


def test_an_expected_start_is_heard_once_for_each_datagram_and_is_forgotten_like_others(monkeypatch):
    monkeypatch.setattr("routing.sealing.MAX_WINDOWS", 3)
    a, b = _sealer(A), _sealer(B)
    first = a.seal(b"hello", B)
    b.expect(A, BOOT)
    b.open_untrusted(first)
    b.expect(A, BOOT)
    assert _code(b, first) == "replayed", "to be told again of a start forgets nothing of it"
    for length in (0, 15, 17):
        b.expect(A, bytes(length))
    assert list(b._boots) == [(A, BOOT)]
    for boot in _boots(5):
        b.expect(C, boot)
    assert list(b._boots) == [(C, boot) for boot in _boots(5)[2:]]

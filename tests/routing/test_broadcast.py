"""The broadcast: everybody once, in few steps, whoever starts it."""

import math
import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from routing.broadcast import DIRECT_LIMIT, LEAF, targets
from routing.keyspace import Key, NodeId


def _ids(count: int, seed: int) -> list[NodeId]:
    rng = random.Random(seed)
    return [NodeId(rng.randbytes(20)) for _ in range(count)]


def _spread(ids, start, salt) -> tuple[Counter, int, int]:
    """Run a broadcast: how often each node got it, how many steps it took, the most that one node sent."""
    got: Counter = Counter()
    wave, steps, fan_out = [(start, 0)], 0, 0
    while wave:
        following = []
        for node, depth in wave:
            out = targets(ids, node, depth, salt)
            fan_out = max(fan_out, len(out))
            following += out
        got.update(target.node for target in following)
        steps += bool(following)
        wave = [(target.node, target.depth) for target in following]
    return got, steps, fan_out


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**32), st.one_of(st.none(), st.binary(min_size=20, max_size=20).map(Key)))
def test_every_member_gets_it_exactly_once(count, seed, salt):
    ids = _ids(count, seed)
    for start in ids[:3]:
        got, steps, fan_out = _spread(ids, start, salt)
        assert got == Counter(set(ids) - {start})
        assert steps <= 1 + math.log2(count)
        assert fan_out <= DIRECT_LIMIT + 2 * math.log2(count)


def test_up_to_the_limit_everybody_is_told_directly_and_forwards_to_nobody():
    ids = _ids(DIRECT_LIMIT, 1)
    out = targets(ids, ids[0])
    assert {target.node for target in out} == set(ids[1:])
    assert {target.depth for target in out} == {LEAF}
    assert all(targets(ids, target.node, target.depth) == () for target in out)


def test_above_the_limit_the_sender_tells_one_delegate_per_bucket():
    ids = _ids(DIRECT_LIMIT + 1, 1)
    out = targets(ids, ids[0])
    assert len(out) < DIRECT_LIMIT
    assert len({target.depth for target in out}) == len(out)


def test_the_salt_changes_who_forwards():
    ids = _ids(200, 2)
    delegates = {targets(ids, ids[0], 0, Key(salt))[0].node for salt in _ids(50, 3)}
    assert len(delegates) > 20


def test_a_sender_that_is_no_member_reaches_everybody():
    ids, outsider = _ids(100, 4), _ids(1, 5)[0]
    assert _spread(ids, outsider, None)[0] == Counter(ids)


def test_members_that_are_down_are_left_out_at_every_step_and_the_rest_gets_it():
    ids = _ids(120, 6)
    alive = [node for i, node in enumerate(ids) if i % 5]
    assert _spread(alive, alive[0], None)[0] == Counter(alive[1:])

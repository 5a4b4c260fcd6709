"""node.changes: what a change is refused for, from views and who lives alone."""

import random

import msgspec
import pytest

from hopchain.change import Change, ChangeAction
from node.changes import judge_change, view_after
from node.epochs import without_majority
from routing.keyspace import NodeId
from routing.regions import group_ranges
from routing.view import View, check_next, first_view, majority, member_of

NETWORK = bytes(range(32))
NOW_MS = 1_700_000_000_000


def view_of(count: int, k: int = 3) -> View:
    rng = random.Random(count)
    return first_view(NETWORK, k, [member_of(rng.randbytes(32)) for _ in range(count)])


def removal(view: View, number: int) -> Change:
    member = view.members[number]
    return Change(NETWORK, ChangeAction.REMOVE, member.public_key, member.incarnation, NOW_MS)


def addition(public_key: bytes = b"n" * 32) -> Change:
    return Change(NETWORK, ChangeAction.ADD, public_key, 1, NOW_MS)


def groups(view: View) -> set[frozenset[NodeId]]:
    return {group for _, group in group_ranges(view)}


@pytest.mark.parametrize("seed", range(200))
def test_a_change_is_unsafe_when_a_group_of_now_or_after_it_has_no_majority(seed: int) -> None:
    rng = random.Random(seed)
    view = view_of(rng.randrange(3, 9))
    change = rng.choice([addition(), removal(view, rng.randrange(len(view.members)))])
    living = {node for node in view.ids if rng.random() < 0.8}
    after = view_after(view, change, NOW_MS, view.ids[0])
    check_next(view, after)
    alive = living | ({change.node_id} if change.action is ChangeAction.ADD else set())
    safe = (
        without_majority(groups(view) | groups(after), alive) == 0
        and sum(node in alive for node in after.ids) >= majority(len(after.ids))
    )  # fmt: skip
    refused = judge_change([view], change, living, NOW_MS, view.ids[0])
    assert (refused is None) == safe
    assert refused is None or refused.code == "unsafe"
    forced = msgspec.structs.replace(change, force=True)
    assert judge_change([view], forced, set(), NOW_MS, view.ids[0]) is None


def test_what_takes_the_last_change_back_is_safe_whoever_lives() -> None:
    before = view_of(5)
    view = view_after(before, addition(), NOW_MS, before.ids[0])
    change = Change(NETWORK, ChangeAction.REMOVE, addition().public_key, 1, NOW_MS)
    assert judge_change([before, view], change, set(), NOW_MS, view.ids[0]) is None
    refused = judge_change([view], change, set(), NOW_MS, view.ids[0])
    assert refused is not None and refused.code == "unsafe"


def test_a_change_that_makes_no_view_is_impossible() -> None:
    view = view_of(1)
    refused = judge_change([view], removal(view, 0), view.ids, NOW_MS, view.ids[0])
    assert refused is not None and refused.code == "impossible"

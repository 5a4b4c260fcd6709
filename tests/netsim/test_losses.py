"""What a network can bear to lose: a majority that knows, in every group, of every view that may come."""

import pytest

from netsim.losses import Actives, can_lose, knowing
from netsim.names import node_name, public_key
from routing.keyspace import ID_BYTES, NodeId, node_id_of
from routing.regions import EMPTY, RING, Ranges, group_ranges, subtract
from routing.view import View, first_view, member_of, with_member, without_member

IDS = [node_id_of(public_key(node_name(i))) for i in range(8)]


def first(nodes: int, k: int) -> View:
    return first_view(bytes(32), k, [member_of(public_key(node_name(i))) for i in range(nodes)])


def add(view: View, node: int) -> View:
    return with_member(view, member_of(public_key(node_name(node))), 0, IDS[0])


def remove(view: View, node: int) -> View:
    return without_member(view, IDS[node], 0, IDS[0])


def lost(*nodes: int) -> set[NodeId]:
    return {IDS[node] for node in nodes}


def active(**epochs: tuple[int, ...]) -> Actives:
    """Who is ACTIVE everywhere in each epoch: e1=(0, 1) and so on."""
    found: dict[NodeId, dict[int, Ranges]] = {}
    for epoch, nodes in epochs.items():
        for node in nodes:
            found.setdefault(IDS[node], {})[int(epoch[1:])] = RING
    return found


@pytest.mark.parametrize(("nodes", "k", "dead"), [(1, 1, 0), (2, 2, 0), (3, 3, 1), (4, 4, 1), (5, 5, 2), (5, 1, 0)])
def test_as_many_as_a_group_bears_are_lost_wherever_they_are(nodes: int, k: int, dead: int) -> None:
    view = first(nodes, k)
    everybody = active(e1=tuple(range(nodes)))
    assert can_lose([view], [], everybody, lost(*range(dead)))
    assert not can_lose([view], [], everybody, lost(*range(dead + 1)))


def test_two_are_lost_of_a_larger_network_when_no_group_has_both() -> None:
    view = first(8, 3)
    groups = [group for _, group in group_ranges(view)]
    for one in range(8):
        for other in range(one):
            together = any({IDS[one], IDS[other]} <= group for group in groups)
            assert can_lose([view], [], active(e1=tuple(range(8))), lost(one, other)) is not together


def test_what_may_come_next_counts_too() -> None:
    view = first(3, 3)
    everybody = active(e1=(0, 1, 2))
    assert can_lose([view], [remove(view, 0)], everybody, lost())
    assert not can_lose([view], [remove(view, 0)], everybody, lost(1))  # two members of whom one is left
    assert can_lose([view], [remove(view, 1)], everybody, lost(1))
    assert not can_lose([view], [add(view, 3)], everybody, lost(1, 3))


def test_a_new_view_relies_on_the_one_before_until_somebody_is_active_where_it_changed_something() -> None:
    view = first(3, 3)
    views = [view, remove(view, 2)]
    assert can_lose(views, [], active(e1=(0, 1, 2)), lost(2))
    assert not can_lose(views, [], active(e1=(0, 2)), lost(2))  # 1 cannot know: it was not ACTIVE in epoch 1
    assert can_lose(views, [], active(e1=(0, 2), e2=(0, 1)), lost(2))
    assert can_lose(views, [], active(e1=(0, 2), e2=(0,)), lost(2))  # 0 tells 1
    assert not can_lose(views, [], active(e1=(0, 1, 2), e2=(0, 1)), lost(1))  # two members of whom one is left


def test_one_that_is_active_is_enough_where_the_group_has_changed_also_in_the_view_before() -> None:
    """Who is late syncs in the epoch of the change, and carries that over."""
    views = [first(3, 3)]
    views.append(add(views[0], 3))
    views.append(add(views[1], 4))
    seen = set()
    for (start, _), group in group_ranges(views[2]):
        groups = [set(view.group(start.to_bytes(ID_BYTES))) for view in views]
        elsewhere = subtract(RING, ((start, start),))
        one = min(group)
        some: Actives = {node: dict.fromkeys((1, 2, 3), RING if node == one else elsewhere) for node in views[2].ids}
        changed = groups[0] != groups[1] or groups[1] != groups[2]
        seen.add((groups[0] == groups[1], groups[1] == groups[2]))
        assert can_lose(views, [], some, lost()) == changed
    assert len(seen) == 4


def test_active_in_a_part_of_the_keys_counts_there() -> None:
    view = first(3, 3)
    middle = RING[0][1] // 2
    halves: dict[NodeId, dict[int, Ranges]] = {
        IDS[0]: {1: RING},
        IDS[1]: {1: ((0, middle),)},
        IDS[2]: {1: ((middle + 1, RING[0][1]),)},
    }
    assert can_lose([view], [], halves, lost())
    assert not can_lose([view], [], halves, lost(1))  # the lower half is known to 0 alone
    assert not can_lose([view], [], {**halves, IDS[2]: {1: EMPTY}}, lost())


def test_who_knows_of_a_key() -> None:
    view = first(3, 2)
    key = bytes(20)
    group = view.group(key)
    everybody = active(e1=(0, 1, 2))
    assert knowing(view, key, everybody) == group
    assert knowing(view, key, everybody, {group[0]}) == group[1:]
    assert knowing(view, key, active(e2=(0, 1, 2))) == ()

"""What a network can bear to lose for ever: disks that die, nodes that leave and stop, disks that go back in time.

A view that was chosen is served for good only by members that are ACTIVE in it (design R7), and others become ACTIVE
only by what those know (R8). So a disk may be lost when afterwards

* a majority of all members of each view that may come next is left: else no view could ever follow it (R1);
* a majority of each of its groups is left: else no link could be decided there;
* every key still has, in its group in the newest chosen view, a majority of nodes that are ACTIVE there and left, or
  one, where that group has changed: it tells the others (ADR 35); or, while there are too few because the view is new,
  as many in its group in the view before.

The node whose disk it is need not run, for a disk that is down is not lost. All of this is about keys between two
boundaries of groups or of ACTIVE ranges, so one key of each stretch is looked at.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from routing.keyspace import ID_BYTES, NodeId
from routing.regions import Ranges, group_ranges, holds
from routing.view import View, majority

MAX_UNKNOWN: Final = 4  # newest views that are not ACTIVE everywhere: one by the barrier R9, and what undoes it

Actives = Mapping[NodeId, Mapping[int, Ranges]]  # node -> epoch -> where it is ACTIVE, by its disk


def can_lose(views: Sequence[View], possible: Iterable[View], active: Actives, lost: Collection[NodeId]) -> bool:
    """True when the network can go on without the nodes in `lost`. `views`: the chosen views, oldest first; `possible`:
    what may follow the newest of them, with what is asked for already."""
    if not all(_can_decide(view, lost) for view in (views[-1], *possible)):
        return False
    return all(_is_known(views, key, active, lost) for key in _keys(views[-MAX_UNKNOWN:], active))


def _can_decide(view: View, lost: Collection[NodeId]) -> bool:
    groups = [view.ids, *{group for _, group in group_ranges(view)}]
    return all(_left(group, lost) >= majority(len(group)) for group in groups)


def _is_known(views: Sequence[View], key: bytes, active: Actives, lost: Collection[NodeId]) -> bool:
    """What was decided about `key` is known to enough that can hand it on."""
    for place, view in reversed(list(enumerate(views))):
        group = view.group(key)
        if _left(group, lost) < majority(len(group)):
            return False
        changed = place > 0 and set(group) != set(views[place - 1].group(key))
        if len(knowing(view, key, active, lost)) >= (1 if changed else majority(len(group))):
            return True
    return False


def knowing(view: View, key: bytes, active: Actives, lost: Collection[NodeId] = ()) -> tuple[NodeId, ...]:
    """The members of the key's group that are ACTIVE there and not lost."""
    return tuple(
        node for node in view.group(key) if node not in lost and holds(active.get(node, {}).get(view.epoch, ()), key)
    )


def _left(group: Collection[NodeId], lost: Collection[NodeId]) -> int:
    return sum(node not in lost for node in group)


def _keys(views: Sequence[View], active: Actives) -> list[bytes]:
    """The first key of every stretch in which neither groups nor ACTIVE marks change."""
    starts = {first for view in views for (first, _), _ in group_ranges(view)}
    epochs = {view.epoch for view in views}
    for node in active.values():
        for ranges in (node[epoch] for epoch in epochs if epoch in node):
            starts.update(first for first, _ in ranges)
            starts.update(last + 1 for _, last in ranges)
    return [start.to_bytes(ID_BYTES) for start in sorted(starts) if start < 2 ** (8 * ID_BYTES)]

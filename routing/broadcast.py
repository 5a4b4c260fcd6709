"""Whom to send a decided link to (design section 5): everyone directly up to 16 nodes, a Kademlia broadcast tree above.

A message carries a `depth`: its receiver answers for the members that share at least `depth` leading bits with it. The
sender starts at depth 0 and answers for all. Whoever answers for more than `DIRECT_LIMIT` members splits them like
Kademlia's buckets: the members that share exactly i bits with it get one delegate, with depth i + 1. Those sets are
disjoint and their union is everybody, so each member gets a message once, in at most about log2 n steps.

The delegate of a bucket is its member closest to `salt` (give it the link's route key: every link then has another tree
and no member always does the forwarding), or to the sender without one. Members known to be down are left out by the
caller, at every step; what they or a delegate that fails miss is filled by the pull.
"""

from collections.abc import Collection
from typing import Final, NamedTuple

from routing.keyspace import KEY_BITS, Key, NodeId, distance, shared_bits

DIRECT_LIMIT: Final = 16  # a burst of 15 small frames is cheaper than the second hop of a tree
LEAF: Final = KEY_BITS  # the depth of a receiver that forwards to nobody


class Target(NamedTuple):
    """Send to `node`, which then answers for the members that share at least `depth` leading bits with it."""

    node: NodeId
    depth: int


def targets(ids: Collection[NodeId], me: NodeId, depth: int = 0, salt: Key | None = None) -> tuple[Target, ...]:
    """To whom `me` sends next: one that starts a broadcast has depth 0, one that got it has the depth it came with.

    `ids` are the members that can be reached; whether `me` is among them does not matter.
    """
    mine = [node for node in ids if node != me and shared_bits(node, me) >= depth]
    if len(mine) < DIRECT_LIMIT:
        return tuple(Target(node, LEAF) for node in sorted(mine))
    buckets: dict[int, list[NodeId]] = {}
    for node in mine:
        buckets.setdefault(shared_bits(node, me), []).append(node)
    centre = me if salt is None else salt
    return tuple(
        Target(min(members, key=lambda node: distance(node, centre)), shared + 1)
        for shared, members in sorted(buckets.items())
    )

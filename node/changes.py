"""What a change of the members must be before it is proposed (design R9, R15), from what one node knows.

* It makes a view whose groups can be told apart (`impossible`).
* Unless it is forced or takes the last change back, the members that live are a majority of each group of now, whose
  decisions would be lost otherwise, and of all members and each group of the view after it (`unsafe`).
* A node that is added is connected here, and lacks no more links than it copies in seconds. Another node may know
  better, so this refuses nothing for good.
"""

from collections.abc import Collection, Sequence
from typing import Final

from hopchain.change import Change, ChangeAction
from hopchain.wire import NotStarted, Refused
from node.epochs import is_undo, without_majority
from node.peers import Peers
from node.turn import Now
from routing.errors import RoutingMisuse
from routing.keyspace import NodeId, short
from routing.regions import group_ranges
from routing.view import View, member_of, with_member, without_member

MAX_BEHIND: Final = 10_000  # links that a joiner may lack when it is added: a few seconds


def view_after(view: View, change: Change, now_ms: int, me: NodeId) -> View:
    """The view that follows `view` when `me` proposes the change now. `RoutingMisuse` when there is none."""
    if change.action is ChangeAction.ADD:
        return with_member(view, member_of(change.public_key, change.incarnation), now_ms, me)
    return without_member(view, change.node_id, now_ms, me)


def judge_change(
    views: Sequence[View], change: Change, living: Collection[NodeId], now_ms: int, me: NodeId
) -> Refused | None:
    """What the groups of now and of the next view say, with the members that live; a node to be added is connected.
    `views`: those installed, oldest first. It takes 0.2 s at 600 members, and follows from the newest view, the change
    and `living` alone."""
    view = views[-1]
    try:
        after = view_after(view, change, now_ms, me)
        groups = {frozenset(after.ids), *(group for _, group in group_ranges(after))}
    except RoutingMisuse as error:
        return Refused("impossible", str(error))
    if change.force or is_undo(views, after):
        return None
    alive = {*living, change.node_id} if change.action is ChangeAction.ADD else living
    lost = without_majority({group for _, group in group_ranges(view)}, alive)
    dead = without_majority(groups, alive)
    if not lost and not dead:
        return None
    here = sum(member in alive for member in after.ids)
    return Refused(
        "unsafe",
        f"{here} of the {len(after.ids)} members of the next view can be reached; {lost} groups of now have no "
        f"majority of living members, so what only the others know would be lost, and {dead} groups of the next view "
        "have none: their accounts could not pay, and no other change could follow until enough of them are back. "
        "Start them first, or force it",
    )


def refuse_absent(change_id: bytes, node: NodeId, peers: Peers, links: int, now: Now, me: NodeId) -> NotStarted | None:
    """Why this node, `me`, which has `links`, does not add `node` now."""
    if not peers.alive(node, now):
        return NotStarted(
            change_id,
            "not_connected",
            f"node {short(node)} is not connected to node {short(me)}: start it with `hopchain join`",
        )
    behind = links - peers.links(node)
    if behind > MAX_BEHIND:
        return NotStarted(
            change_id, "behind", f"node {short(node)} lacks {behind} links: add it when it has copied them"
        )
    return None

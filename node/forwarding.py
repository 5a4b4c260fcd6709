"""Forwarding: requests that other nodes hand over, taken here (`node.owner`) or sent on to who makes their link.

**Takeover.** A standby waits 3 RTT for every rank before it that lives and does not lag. Whoever lags itself and lacks
the parent leaves requests to another rank, and nodes that see this differently send no request in circles (`_leave`).

**What comes too late** for its slot follows the tail from here (`_chase`, ADR 12).
"""

from typing import Final

import msgspec

from chain.errors import RemoteFault
from chain.needs import Needs
from chain.request import ANY_TIP, DecodedRequest, Kind, RequestId
from chain.rows import AccountHead
from node.decoded import RequestDecoder
from node.events import ServeSlot
from node.messages import Forward, Item, NotOwner
from node.owner import Owner
from node.peers import Peers
from node.queue import NO_GATEWAY, QueuedRequest
from node.replica import Replica
from node.slots import height_of, next_slot
from node.turn import Self, Turn
from routing.keyspace import NodeId, route_key

MAX_CHASED: Final = 20_000  # requests that came too late lately; forgetting one costs a message
TAKEOVER_RTTS: Final = 3
MAX_TAKEOVER_RTT_S: Final = 1.0  # what was measured while the network was clogged holds nobody up after it


class Forwarding:
    """The requests that arrive from gateways, and from the owners of slots before."""

    def __init__(self, self_: Self, requests: RequestDecoder, peers: Peers, replica: Replica, owner: Owner) -> None:
        self._self = self_
        self._requests = requests
        self._peers = peers
        self._replica = replica
        self._owner = owner
        self._chased: dict[RequestId, int] = {}  # request -> height of the tip behind which it was sent last

    def needs_forward(self, message: Forward, needs: Needs) -> None:
        """What judges them, and what forms their link."""
        account = message.at.account
        decoded = [self._decoded(item, account) for item in message.items]
        needs.heads.add(account)
        needs.outcomes.update((account, d.request_id) for d in decoded)
        self._owner.needs_queued(account, message.at.slot, decoded, needs)

    def on_forward(self, turn: Turn, peer: NodeId, message: Forward) -> None:
        """Requests of a gateway, or of the owner before this one."""
        at = message.at
        head = turn.loaded.heads.get(at.account)
        if height_of(head) < at.height - 1:
            if not self._leave(turn, message):
                self._replica.lacking.wait_for_parent(turn, peer, message)
            return
        if head is not None and head.height >= at.height:
            self._chase(turn, peer, message, head)
            return
        group = self._self.view.group(route_key(at.slot))
        before = [n for n in group[: _rank(group, self._self.id)] if self._peers.keeps_pace(n, turn.now)]
        if self._self.id not in group or (before and not message.takeover):
            queued = self._owner.as_voted(at, self._all_queued(message, turn.now.mono))
            back = [item for item in queued if item.gateway != NO_GATEWAY]
            if back:  # who made a copy holds the request itself, and need not be told
                ids, numbers = tuple(i.decoded.request_id for i in back), tuple(i.number for i in back)
                turn.send(peer, NotOwner(at, ids, self._self.view.epoch, group, numbers))
            return
        if before:  # the sender cannot reach them, this node can: the owner gets the requests after all
            message = msgspec.structs.replace(message, items=_copies(message.items), takeover=False)
            turn.send(before[0], message)
        queued = self._all_queued(message, turn.now.mono)
        self._owner.enqueue(turn, at, queued, wait_s=self._takeover_wait(before))

    def _leave(self, turn: Turn, message: Forward) -> bool:
        """Leave requests whose parent is not here to a rank that keeps pace, when this node lags: it may lack the
        parent for long.

        No request runs in circles, whatever each node thinks of the others. What is left to others says `takeover`:
        whoever gets it keeps it, and at most sends a copy to a rank before it that it thinks more of. A copy is neither
        left to others nor answered with `NotOwner`: who made it holds the request, too. A `NotOwner` to anything else
        sends its requests to the first rank, which answers nothing of its view with another. All else that sends
        requests on (`_chase`, `_hand_over`) does it behind a decided link, for the slot after it. So on the way of a
        request (height of its slot, `takeover`) does not fall, and where it stays the same the way ends with the first
        rank."""
        group = self._self.view.group(route_key(message.at.slot))
        copies = any(item.gateway == NO_GATEWAY for item in message.items)
        if message.takeover or copies or self._self.id not in group or not self._peers.lags(self._self.id):
            return False
        to = self._peers.ranks(group, turn.now)[0]
        if to == self._self.id or self._peers.lags(to):
            return False
        self._self.counters["forwards_left"] += 1
        self._owner.hand_on(turn, to, message.at, self._all_queued(message, turn.now.mono), takeover=True)
        return True

    def _chase(self, turn: Turn, peer: NodeId, message: Forward, head: AccountHead) -> None:
        """The slot is decided already. What may still execute follows the tail from here, for it is faster than the way
        back to its gateway; what is recorded or pinned to the old tip ends at the gateway, once it has the links."""
        self._self.counters["forwards_chased"] += 1
        account = message.at.account
        open_: list[QueuedRequest] = []
        ended: list[QueuedRequest] = []
        for queued in self._all_queued(message, turn.now.mono):
            pinned = queued.decoded.request.expect_tip not in (ANY_TIP, head.tip)
            over = pinned or (account, queued.decoded.request_id) in turn.loaded.outcomes
            if over or queued.decoded.request.kind is Kind.OPEN:
                ended.append(queued)
            elif self._chased.get(queued.decoded.request_id, -1) < head.height:
                # once for each tail: copies must not multiply
                self._remember_chase(queued.decoded.request_id, head.height)
                open_.append(queued)
        if ended:
            turn.again.append(ServeSlot(peer, message.at, moved=True))
        if not open_:
            return
        at = next_slot(self._self.network, account, head)
        to, is_owner = self._owner.first_rank(turn, at)
        if to == self._self.id:
            self._owner.enqueue(turn, at, open_)
        else:
            self._owner.hand_on(turn, to, at, open_, takeover=not is_owner)

    def _remember_chase(self, request_id: RequestId, height: int) -> None:
        self._chased.pop(request_id, None)
        while len(self._chased) >= MAX_CHASED:
            del self._chased[next(iter(self._chased))]
        self._chased[request_id] = height

    def _takeover_wait(self, before: list[NodeId]) -> float:
        if not before:
            return 0.0
        rtt = min(self._peers.rtt(before), MAX_TAKEOVER_RTT_S)
        return TAKEOVER_RTTS * rtt * (len(before) + self._self.rng.random())

    def _decoded(self, item: Item, account: str) -> DecodedRequest:
        """The request of an item; `RemoteFault` when it is none, or one of another account (no link could hold it)."""
        decoded = self._requests.untrusted(item.raw, item.signature)
        if decoded.request.sender != account:
            raise RemoteFault("malformed", f"a request of {decoded.request.sender} is handed over for {account}")
        return decoded

    def _all_queued(self, message: Forward, now: float) -> list[QueuedRequest]:
        account = message.at.account
        return [QueuedRequest(self._decoded(i, account), NodeId(i.gateway), now, i.number) for i in message.items]


def _copies(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """The same requests for two holders, of whom neither speaks for the other."""
    return tuple(msgspec.structs.replace(item, gateway=NO_GATEWAY, number=0) for item in items)


def _rank(group: tuple[NodeId, ...], node: NodeId) -> int:
    return group.index(node) if node in group else len(group)

"""The invariants, watched by an omniscient observer.

    I1  no two links with one prev_hash on any disk ever, and no two values chosen for a slot, even if nobody learned
    I2  money constant, never negative            I3  a completed answer outlives any (g-1)//2 disks of its group
    I4  a posting confirmed at most once          I5  a request executed at most once
    I6  every account linearizable in real time   I7  equal digests at rest
    I8  an acceptor never goes back               I9  only chosen links are served
    I10 every answer was true                     I11 linearizable reads are
    I12 one chain of views, one member at a time  I13 after healing every request ends

What the nodes make durable (`netsim.durable`) shows what is chosen (`netsim.chosen`). What nodes say (`netsim.said`)
and what clients are told (`netsim.told`) is held against both.
"""

import sqlite3
from collections.abc import Sequence

from chain.genesis import Genesis
from chain.store import Write
from hopchain.wire import ReplyBody
from netsim.calls import Asked
from netsim.chosen import Chosen
from netsim.durable import Durable
from netsim.said import Said
from netsim.told import Told
from node.core import Gauges
from node.messages import Message
from routing.keyspace import NodeId, node_id_of
from routing.view import View


class Watch:
    """The observer. Raises `Violation` at the event that breaks a rule."""

    def __init__(self, genesis: Genesis, view: View, spares: Sequence[NodeId] = ()) -> None:
        """`spares`: nodes that are in no view yet, numbered after the members of the genesis file."""
        self.ids = [*node_ids(genesis), *spares]
        self._decisions = Chosen(genesis, view, self.ids)
        self._durable = Durable(self._decisions)
        self._said = Said(self._decisions, self._durable)
        self._told = Told(genesis, self._decisions, self._durable)
        self._decisions.on_link = self._told.check_rejections
        # What was seen so far, for whoever steers a run or reports it: these grow with it.
        self.views = self._decisions.views
        self.links = self._decisions.links
        self.chosen = self._decisions.successors
        self.chosen_at = self._decisions.chosen_at
        self.ledger = self._decisions.ledger
        self.applied_at = self._durable.applied_at
        self.calls = self._told.calls

    def group_of(self, slot: bytes, epoch: int | None = None) -> tuple[int, ...]:
        """The nodes that decide a slot in an epoch (by default the newest that was chosen), owner first."""
        return self._decisions.group_of(slot, epoch)

    def is_member(self, node: int) -> bool:
        """True when the node is in the newest chosen view."""
        return self._decisions.is_member(node)

    # --- nodes ---

    def committed(self, node: int, writes: tuple[Write, ...], now: float) -> None:
        self._durable.committed(node, writes, now)

    def sent(self, node: int, peer: NodeId, message: Message, now: float) -> None:
        self._said.sent(node, message)

    def crashed(self, node: int, now: float) -> None:
        self._told.crashed(node)

    def started(self, node: int, conn: sqlite3.Connection, now: float) -> None:
        """A node is back: what it had made durable must be there, and more may be (a commit that a crash cut)."""
        self._durable.started(node, conn, now)

    def replaced(self, node: int, conn: sqlite3.Connection) -> None:
        """A node has another disk: what was only on the old one is lost."""
        self._durable.replaced(node, conn)

    def died(self, node: int) -> None:
        """A node will never come back, and nor will its disk."""
        self._durable.died(node)

    # --- clients ---

    def submitted(self, call: int, node: int, submit: Asked, now: float) -> None:
        self._told.submitted(call, node, submit, now)

    def answered(self, call: int, body: ReplyBody, now: float) -> None:
        self._told.answered(call, body, now)

    # --- the end ---

    def healed(self, now: float) -> None:
        """From now on nothing fails any more."""
        self._told.healed(now)

    def all_ended(self, now: float) -> None:
        """I13: every call whose node lived was answered, and for good when it ended well after healing."""
        self._told.all_ended(now)

    def at_rest(self, node: int, conn: sqlite3.Connection, gauges: Gauges) -> None:
        """I7, I13: the node has all that was chosen, and nothing left to do."""
        self._durable.at_rest(node, conn, gauges)


def node_ids(genesis: Genesis) -> list[NodeId]:
    """The ids of the members, in the order of the genesis file."""
    return [node_id_of(bytes.fromhex(member.public_key)) for member in genesis.members]

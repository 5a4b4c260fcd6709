"""Events: what goes into a turn of a node (`node.turn`).

They come from members and their connections, from clients, and from the core to itself: for the next turn, or for this
one where the rows are here.
"""

from typing import Final

import msgspec

from chain.link import Link
from hopchain.wire import AskBalance, Submit, SubmitChange
from node.messages import Message, SlotName
from routing.keyspace import NodeId

NOBODY: Final = NodeId(b"")  # nobody who is known


class FromPeer(msgspec.Struct, frozen=True, gc=False):
    """A message of another member."""

    peer: NodeId
    message: Message


class PeerUp(msgspec.Struct, frozen=True, gc=False):
    """The connection to a member stands. `boot`: the random bytes of its hello, new at each start of its process.
    `replaced`: it took the place of one that stood, whose process may not know yet."""

    peer: NodeId
    boot: bytes = b""
    replaced: bool = False


class PeerDown(msgspec.Struct, frozen=True, gc=False):
    """The connection to a member is gone."""

    peer: NodeId


class ToldRemoved(msgspec.Struct, frozen=True, gc=False):
    """A member refuses this node, which it says was removed from the network in `epoch`, and needed until then only."""

    peer: NodeId
    epoch: int


class Caller(msgspec.Struct, frozen=True, gc=False):
    """Who asked: a client's session and the number of its call."""

    session: int
    number: int


class ClientSubmit(msgspec.Struct, frozen=True, gc=False):
    """A client wants a request executed. `until` is set when the event comes again, after more of the chain was
    fetched: a chain that grows all the time must not keep its client waiting for ever. `with_funds`: it comes again,
    well signed, to be compared with all the money that its sender has here."""

    caller: Caller
    submit: Submit
    until: float | None = None
    with_funds: bool = False


class ClientBalance(msgspec.Struct, frozen=True, gc=False):
    """A client wants a balance that must first be made certain (linearizable, or at least at a height). `until` as in
    `ClientSubmit`."""

    caller: Caller
    ask: AskBalance
    until: float | None = None


class ClientGone(msgspec.Struct, frozen=True, gc=False):
    """A session is over: nobody waits for the answers to its calls."""

    session: int


class FormLink(msgspec.Struct, frozen=True, gc=False):
    """The owner of an account's slot is to make its next link (from the core to itself)."""

    account: str


class Learn(msgspec.Struct, frozen=True, gc=False):
    """A decided link that waited for something which is here now (from the core to itself). `source` and `by` as in
    `Replica.learn`."""

    link: Link
    source: NodeId
    by: NodeId


class RouteJobs(msgspec.Struct, frozen=True, gc=False):
    """The gateway is to hand over the waiting requests of an account (from the core to itself)."""

    account: str


class AskForIncome(msgspec.Struct, frozen=True, gc=False):
    """The others are to be asked for the income of an account: somebody waits for it (from the core to itself)."""

    account: str


class ServeSlot(msgspec.Struct, frozen=True, gc=False):
    """A peer asked about a slot that has a successor: send it what it lacks (from the core to itself)."""

    peer: NodeId
    at: SlotName
    moved: bool = False  # it forwarded requests: tell it with Moved
    answering: int | None = None  # it asked with AskSlot of this number


class ClientChange(msgspec.Struct, frozen=True, gc=False):
    """The operator, or a node that leaves, wants the members changed."""

    caller: Caller
    submit: SubmitChange


class DiskSpace(msgspec.Struct, frozen=True, gc=False):
    """So many bytes of this node's disk are free, and so many are to be. Told once a second while they are not, and
    once when they are again."""

    free: int
    reserve: int

    @property
    def is_low(self) -> bool:
        """Too little is free."""
        return self.free < self.reserve


class FinishSync(msgspec.Struct, frozen=True, gc=False):
    """All that a sync waits for is here: merge the votes and become ACTIVE (from the core to itself, design R8)."""

    epoch: int


Event = (
    FromPeer
    | PeerUp
    | PeerDown
    | ToldRemoved
    | ClientSubmit
    | ClientBalance
    | ClientChange
    | ClientGone
    | FormLink
    | Learn
    | RouteJobs
    | AskForIncome
    | ServeSlot
    | DiskSpace
    | FinishSync
)

"""One turn of a node (design section 7): what goes in, the workspace, what comes out.

The driver, again and again:

    needs = core.needs(events, now)          which rows this turn will look at
    loaded = store.load(connection, needs)
    effects = core.step(loaded, now)         pure: no clock, no disk, no network
    for stage in effects.stages():           three at most
        store.commit(connection, stage.persist)     one transaction, one fsync
        send, answer, read, look up                 nothing leaves before what it promises is durable

The first stage has no rows: what promises nothing of this node's disk (`Effects.facts`) leaves at once: that a link is
decided, which the votes of a majority on other turns' disks have made true, the answer to its client, and requests that
are handed on. The second holds votes and all else that a message promises, and the messages. The last holds decided
links, which no message waits for, and what reads them (ADR 23).

`Turn` is the workspace that the parts of the core write into; `Effects` is the frozen result. Within a turn
`Turn.loaded` is kept up to date with what the turn itself applies, so later events of the same turn see it.
"""

import random
from collections import Counter
from typing import Final

import msgspec

from chain.genesis import Genesis
from chain.link import Link
from chain.needs import Loaded
from chain.request import NetworkId
from chain.store import Write
from hopchain.wire import AskBalance, ReplyBody, Submit, SubmitChange
from node.messages import Message, SlotName
from routing.keyspace import Key, NodeId
from routing.regions import Ranges, holds
from routing.view import View

SLOWEST_BYTES_S: Final = 1024 * 1024  # of links, through a node that is as busy as it may be


class Now(msgspec.Struct, frozen=True, gc=False):
    """The time of a turn: a monotonic clock in seconds for timers, and Unix milliseconds for links."""

    mono: float
    unix_ms: int


# --- events --------------------------------------------------------------------------------------------------------


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
    fetched: a chain that grows all the time must not keep its client waiting for ever."""

    caller: Caller
    submit: Submit
    until: float | None = None


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
    """A decided link that waited for something which is here now (from the core to itself)."""

    link: Link
    by: NodeId


class RouteJobs(msgspec.Struct, frozen=True, gc=False):
    """The gateway is to hand over the waiting requests of an account (from the core to itself)."""

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
    | ServeSlot
    | FinishSync
)


# --- effects -------------------------------------------------------------------------------------------------------


class Send(msgspec.Struct, frozen=True, gc=False):
    """A message for a member."""

    peer: NodeId
    message: Message


class Answer(msgspec.Struct, frozen=True, gc=False):
    """An answer for a client."""

    caller: Caller
    body: ReplyBody


class Read(msgspec.Struct, frozen=True, gc=False):
    """A client's balance read that may now be served from this replica."""

    caller: Caller
    ask: AskBalance


class Facts(msgspec.Struct, frozen=True, gc=False):
    """What may leave at once: it stays true whatever becomes of this node and its disk."""

    send: tuple[Send, ...] = ()
    answers: tuple[Answer, ...] = ()


class Stage(msgspec.Struct, frozen=True, gc=False):
    """A part of what a turn wants done: make `persist` durable in one transaction, then all the others."""

    persist: tuple[Write, ...] = ()
    send: tuple[Send, ...] = ()
    answers: tuple[Answer, ...] = ()
    reads: tuple[Read, ...] = ()
    lookups: tuple[bytes, ...] = ()
    contacts: frozenset[NodeId] | None = None
    drops: tuple[NodeId, ...] = ()


class Effects(msgspec.Struct, frozen=True, gc=False):
    """What a turn wants done; `stages` says in which order."""

    facts: Facts | None = None
    persist: tuple[Write, ...] = ()  # what `send` and `answers` promise
    send: tuple[Send, ...] = ()
    answers: tuple[Answer, ...] = ()
    applied: tuple[Write, ...] = ()  # decided links, and how far logs were read: no message promises them
    reads: tuple[Read, ...] = ()
    lookups: tuple[bytes, ...] = ()
    contacts: frozenset[NodeId] | None = None  # when they changed: with whom to keep a connection from now on
    drops: tuple[NodeId, ...] = ()  # connections to close: nothing comes through them

    @property
    def writes(self) -> tuple[Write, ...]:
        """All rows, in the order in which they become durable."""
        return self.persist + self.applied

    def stages(self) -> tuple[Stage, ...]:
        """What is done, one after the other. A crash between two of them, or within one, loses nothing that was
        promised."""
        facts = () if self.facts is None else (Stage(send=self.facts.send, answers=self.facts.answers),)
        if not self.applied or self.contacts is not None:  # a change of contacts can end the node: all else comes first
            whole = Stage(self.writes, self.send, self.answers, self.reads, self.lookups, self.contacts, self.drops)
            return (*facts, whole)
        promised = Stage(self.persist, self.send, self.answers)
        return (*facts, promised, Stage(self.applied, (), (), self.reads, self.lookups, None, self.drops))


class Self(msgspec.Struct):
    """Who this node is, which view it has installed and for which keys it is ACTIVE in it (design R7; both are written
    by `node.membership` and `node.syncing` alone), and what it counts (for `hopchain status`)."""

    id: NodeId
    genesis: Genesis
    network: NetworkId
    view: View
    active: Ranges
    rng: random.Random
    counters: Counter[str]
    syncing_regions: int = 0  # of this epoch, in which this node is not ACTIVE yet
    told_removed: int = 0  # the epoch in which this node was removed, by the word of a member; 0: nobody said so
    boot: bytes = b""  # of this process, as its hello says

    @property
    def is_member(self) -> bool:
        """True when this node is in the newest view that it knows, and nobody says that there is a newer one without
        it."""
        return not self.told_removed and self.view.is_member(self.id)

    @property
    def fully_active(self) -> bool:
        """True when this node is a member and ACTIVE wherever it is in a group."""
        return not self.syncing_regions and self.view.is_member(self.id)

    def is_active(self, key: Key) -> bool:
        """R7: this node is in the group of `key` and may vote there."""
        return holds(self.active, key) and self.id in self.view.group(key)


class Turn:
    """The workspace of one turn."""

    def __init__(self, loaded: Loaded, now: Now) -> None:
        self.loaded = loaded
        self.now = now
        self.persist: list[Write] = []  # what messages promise: votes, views, counts
        self.applied: list[Write] = []  # what they do not: decided links, and how far other logs were read
        self._together = False
        self.sends: list[Send] = []
        self.fact_sends: list[Send] = []
        self.fact_answers: list[Answer] = []
        self.voted: set[bytes] = set()  # slots that this node votes on in this turn
        self.answers: list[Answer] = []
        self.reads: list[Read] = []
        self.lookups: list[bytes] = []
        self.drops: list[NodeId] = []
        self.again: list[Event] = []

    def send(self, peer: NodeId, message: Message) -> None:
        self.sends.append(Send(peer, message))

    def answer(self, caller: Caller, body: ReplyBody) -> None:
        self.answers.append(Answer(caller, body))

    def hold_together(self) -> None:
        """For this turn only: all rows are one transaction, and messages wait for the links, too. For what stands on
        the links that are applied here: a view, an ACTIVE mark, a word about the length of the log (design R5, R8; ADR
        14)."""
        self._together = True

    def hand_on(self, peer: NodeId, message: Message) -> None:
        """Send what promises nothing: requests for another owner."""
        self.fact_sends.append(Send(peer, message))

    def tell(self, link: Link, peer: NodeId, message: Message) -> None:
        """Send what is true because `link` is decided: at once, unless the vote that decided it is of this very
        turn."""
        (self.sends if link.prev_hash in self.voted else self.fact_sends).append(Send(peer, message))

    def tell_client(self, link: Link, caller: Caller, body: ReplyBody) -> None:
        """Answer what is true because `link` is decided; `tell` for clients."""
        (self.answers if link.prev_hash in self.voted else self.fact_answers).append(Answer(caller, body))

    def effects(self) -> Effects:
        facts = None
        if self.fact_sends or self.fact_answers:
            facts = Facts(tuple(self.fact_sends), tuple(self.fact_answers))
        early, late = (self.persist + self.applied, []) if self._together else (self.persist, self.applied)
        return Effects(
            facts,
            tuple(early),
            tuple(self.sends),
            tuple(self.answers),
            tuple(late),
            tuple(self.reads),
            tuple(self.lookups),
            drops=tuple(self.drops),
        )


def handling_s(link: Link) -> float:
    """How long the others may take over `link` because it is large, seconds. Sent again before that, it makes them
    slower still."""
    return len(link.raw) / SLOWEST_BYTES_S

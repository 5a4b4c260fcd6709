"""One turn of a node (design section 7): the workspace between its events and its effects.

The driver, again and again:

    needs = core.needs(events, now)          which rows this turn will look at
    loaded = load(connection, needs)
    effects = core.step(loaded, now)         pure: no clock, no disk, no network
    for stage in effects.stages():           three at most
        commit(connection, stage.persist)           one transaction, one fsync
        send, answer, read, look up                 nothing leaves before what it promises is durable

`node.events` has what goes in, `node.effects` what comes out, frozen. `Turn` is the workspace that the parts of the
core write into; `Turn.loaded` is kept up to date with what the turn itself applies, so its later events see it.
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
from hopchain.wire import ReplyBody
from node.effects import Answer, Effects, Read, Send, Stage
from node.events import Caller, Event
from node.messages import Message
from routing.keyspace import Key, NodeId
from routing.regions import Ranges, holds
from routing.view import View

SLOWEST_BYTES_S: Final = 1024 * 1024  # of links, through a node that is as busy as it may be


class Now(msgspec.Struct, frozen=True, gc=False):
    """The time of a turn: a monotonic clock in seconds for timers, and Unix milliseconds for links."""

    mono: float
    unix_ms: int


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

    def effects(self, neighbours: frozenset[NodeId] | None) -> Effects:
        facts = None
        if self.fact_sends or self.fact_answers:
            facts = Stage(send=tuple(self.fact_sends), answers=tuple(self.fact_answers))
        early, late = (self.persist + self.applied, []) if self._together else (self.persist, self.applied)
        return Effects(
            facts=facts,
            persist=tuple(early),
            send=tuple(self.sends),
            answers=tuple(self.answers),
            applied=tuple(late),
            reads=tuple(self.reads),
            lookups=tuple(self.lookups),
            neighbours=neighbours,
            drops=tuple(self.drops),
        )


def handling_s(link: Link) -> float:
    """How long the others may take over `link` because it is large, seconds. Sent again before that, it makes them
    slower still."""
    return len(link.raw) / SLOWEST_BYTES_S

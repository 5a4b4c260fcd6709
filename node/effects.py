"""Effects: what comes out of a turn of a node (`node.turn`), and in which order it is done.

The first stage writes nothing. It sends what stays true whatever becomes of this node's disk (`Effects.facts`), and so
leaves at once: that a link is decided, when no vote of this very turn was needed for it; the answer to its client;
requests that are handed on. The second holds votes and all else that a message promises, and the messages. The last
holds decided links, which no message waits for, and what reads them (ADR 23).
"""

import msgspec

from chain.store import Write
from hopchain.wire import AskBalance, ReplyBody
from node.events import Caller
from node.messages import Message
from routing.keyspace import NodeId


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


class Stage(msgspec.Struct, frozen=True, gc=False):
    """A part of what a turn wants done: make `persist` durable in one transaction, then all the others."""

    persist: tuple[Write, ...] = ()
    send: tuple[Send, ...] = ()
    answers: tuple[Answer, ...] = ()
    reads: tuple[Read, ...] = ()
    lookups: tuple[bytes, ...] = ()
    neighbours: frozenset[NodeId] | None = None
    drops: tuple[NodeId, ...] = ()


class Effects(msgspec.Struct, frozen=True, gc=False):
    """What a turn wants done; `stages` says in which order."""

    facts: Stage | None = None  # what may leave at once: it stays true whatever becomes of this node and its disk
    persist: tuple[Write, ...] = ()  # what `send` and `answers` promise
    send: tuple[Send, ...] = ()
    answers: tuple[Answer, ...] = ()
    applied: tuple[Write, ...] = ()  # decided links, and how far logs were read: no message promises them
    reads: tuple[Read, ...] = ()
    lookups: tuple[bytes, ...] = ()
    neighbours: frozenset[NodeId] | None = None  # when they changed: with whom to keep a connection from now on
    drops: tuple[NodeId, ...] = ()  # connections to close: nothing comes through them

    @property
    def writes(self) -> tuple[Write, ...]:
        """All rows, in the order in which they become durable."""
        return self.persist + self.applied

    @property
    def decided(self) -> bool:
        """True when its links stay decided whatever becomes of their commit: none was held together with a promise."""
        return bool(self.applied)

    def stages(self) -> tuple[Stage, ...]:
        """What is done, one after the other. A crash between two of them, or within one, loses nothing that was
        promised."""
        facts = () if self.facts is None else (self.facts,)
        # other neighbours can end the node: all else comes first
        if not self.applied or self.neighbours is not None:
            whole = Stage(
                persist=self.writes,
                send=self.send,
                answers=self.answers,
                reads=self.reads,
                lookups=self.lookups,
                neighbours=self.neighbours,
                drops=self.drops,
            )
            return (*facts, whole)
        promised = Stage(persist=self.persist, send=self.send, answers=self.answers)
        links = Stage(persist=self.applied, reads=self.reads, lookups=self.lookups, drops=self.drops)
        return (*facts, promised, links)

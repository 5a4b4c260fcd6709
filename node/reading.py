"""Balance reads that must be made certain before this replica may answer.

`min_height` (session): the read waits until the account has that link here (the first is 0), so that a client sees
its own writes at any node; a node that knows by heart that it has that link takes no turn for it
(`Serving.has_height`). `linearizable`: the tip's slot is asked until a majority knows no successor, then all income
that was decided before is fetched; reads of one account share these questions (`node.askers`). In both cases the answer
itself is an ordinary local read, done by the driver in the same turn's effects, after everything that the turn applied
is durable.

Where all places of those that wait for a height are taken, a newcomer gets one of the session that has most (ADR 28).
"""

from typing import Final

import msgspec

from chain.link import Link
from chain.needs import Needs
from hopchain.wire import Unknown
from node.askers import Purpose
from node.effects import Read
from node.events import ClientBalance, ClientGone
from node.inquiry import Inquiries
from node.slot_inquiry import SlotState
from node.slots import birth_epoch, height_of, next_slot
from node.turn import Self, Turn
from node.waits import Waits
from routing.keyspace import NodeId

MAX_READS: Final = 100_000  # that wait for a height: those of a hundred clients that may have no more
MAX_WAIT_MS: Final = 60_000


class Reading:
    """The reads of this node's clients that are not certain yet."""

    def __init__(self, self_: Self, inquiries: Inquiries) -> None:
        self._self = self_
        self._inquiries = inquiries
        self._waits = Waits()

    def needs_balance(self, event: ClientBalance, needs: Needs) -> None:
        needs.heads.add(event.ask.account)

    def on_balance(self, turn: Turn, event: ClientBalance) -> None:
        """Answer now, wait for the height, or ask the network."""
        ask = event.ask
        head = turn.loaded.heads.get(ask.account)
        if height_of(head) < ask.min_height:
            self._wait(turn, event)
        elif ask.linearizable:
            self._ask_tip(turn, event)
        else:
            turn.reads.append(Read(event.caller, ask))

    def _wait(self, turn: Turn, event: ClientBalance) -> None:
        if len(self._waits) >= MAX_READS:
            loser = self._waits.take_for(event.caller.session) or event
            turn.answer(loser.caller, Unknown(b"", f"{MAX_READS} reads wait at this node: ask another one"))
            if loser is event:
                return
        self._waits.add(msgspec.structs.replace(event, until=until_of(event, turn.now.mono)))

    def _ask_tip(self, turn: Turn, event: ClientBalance) -> None:
        account = event.ask.account
        until = until_of(event, turn.now.mono)
        if until <= turn.now.mono:
            reason = f"its time was over before the chain of {account} was read to its end: it grows fast, or this node or connection is busy"
            turn.answer(event.caller, Unknown(b"", reason))
            return
        if full := self._inquiries.no_room(Purpose.READ):
            turn.answer(event.caller, Unknown(b"", full))
            return
        head = turn.loaded.heads.get(account)
        at = next_slot(self._self.network, account, head)

        def done(turn: Turn, state: SlotState) -> None:
            if state is SlotState.TAKEN:
                turn.again.append(msgspec.structs.replace(event, until=until))  # one link further, ask again there
            elif state is SlotState.UNKNOWN:
                turn.answer(event.caller, Unknown(b"", f"no majority of the nodes that decide for {account} answered"))
            else:
                self._inquiries.ask_income(turn, account, on_income, Purpose.READ, until=until)

        def on_income(turn: Turn, complete: bool) -> None:
            if complete:
                turn.reads.append(Read(event.caller, event.ask))
            else:
                turn.answer(event.caller, Unknown(b"", f"the income of {account} could not be asked of enough nodes"))

        self._inquiries.ask_slot(turn, at, birth_epoch(head), done, Purpose.READ, until=until)

    def on_applied(self, turn: Turn, link: Link, by: NodeId) -> None:
        turn.again += self._waits.take_reached(link.account, link.height)

    def on_gone(self, event: ClientGone) -> None:
        """Nobody waits for these any more."""
        self._waits.take_of(event.session)

    def deadline(self) -> float | None:
        return self._waits.deadline()

    def tick(self, turn: Turn) -> None:
        """Tell those whose time is up."""
        for late in self._waits.take_late(turn.now.mono):
            reason = f"link {late.ask.min_height} of {late.ask.account} did not reach this node in time"
            turn.answer(late.caller, Unknown(b"", reason))


def until_of(event: ClientBalance, now: float) -> float:
    """When a read that arrives `now`, or has come before with its `until`, is over: seconds of the monotonic clock."""
    return event.until if event.until is not None else now + min(max(event.ask.timeout_ms, 1), MAX_WAIT_MS) / 1000

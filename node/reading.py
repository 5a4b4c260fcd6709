"""Balance reads that must be made certain before this replica may answer.

`min_height` (session): the read waits until the account has that link here (the first is 0), so that a client sees
its own writes at any node. `linearizable`: the tip's slot is asked until a majority knows no successor, then all
income that was decided before is fetched. In both cases the answer itself is an ordinary local read, done by the
driver in the same turn's effects, after everything that the turn applied is durable.
"""

from typing import Final

import msgspec

from chain.link import Link, opening_slot
from chain.needs import Needs
from hopchain.wire import AskBalance, Unknown
from node.acceptor import birth_epoch, slot_of
from node.due import Due
from node.inquiry import Inquiries, SlotResult, height_of
from node.replica import Replica
from node.turn import Caller, ClientBalance, Read, Self, Turn
from routing.keyspace import NodeId

MAX_READS: Final = 100_000
MAX_WAIT_MS: Final = 60_000


class _Wait(msgspec.Struct):
    caller: Caller
    ask: AskBalance
    deadline: float


class Reading:
    """The reads of this node's clients that are not certain yet."""

    def __init__(self, self_: Self, inquiries: Inquiries, replica: Replica) -> None:
        self._self = self_
        self._inquiries = inquiries
        self._waits: dict[str, list[_Wait]] = {}
        self._count = 0
        self._due = Due()
        replica.hooks.append(self._on_applied)

    def needs_balance(self, event: ClientBalance, needs: Needs) -> None:
        self._inquiries.needs_income(event.ask.account, needs)

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
        if self._count >= MAX_READS:
            turn.answer(event.caller, Unknown(b"", f"{self._count} reads wait at this node: ask another one"))
            return
        self._count += 1
        wait = _Wait(event.caller, event.ask, until_of(event, turn.now.mono))
        self._waits.setdefault(event.ask.account, []).append(wait)
        self._due.by(wait.deadline)

    def _ask_tip(self, turn: Turn, event: ClientBalance) -> None:
        account = event.ask.account
        until = until_of(event, turn.now.mono)
        if until <= turn.now.mono:
            reason = f"its time was over before the chain of {account} was read to its end: it grows fast, or this node or connection is busy"
            turn.answer(event.caller, Unknown(b"", reason))
            return
        if full := self._inquiries.no_room(for_read=True):
            turn.answer(event.caller, Unknown(b"", full))
            return
        head = turn.loaded.heads.get(account)
        at = slot_of(head, account, opening_slot(self._self.network, account))

        def done(turn: Turn, result: SlotResult) -> None:
            if result.taken:
                turn.again.append(msgspec.structs.replace(event, until=until))  # one link further, ask again there
            elif not result.known:
                turn.answer(event.caller, Unknown(b"", f"no majority of the nodes that decide for {account} answered"))
            else:
                self._inquiries.ask_income(turn, account, on_income, until=until)

        def on_income(turn: Turn, complete: bool) -> None:
            if complete:
                turn.reads.append(Read(event.caller, event.ask))
            else:
                turn.answer(event.caller, Unknown(b"", f"the income of {account} could not be asked of enough nodes"))

        self._inquiries.ask_slot(turn, at, birth_epoch(head), done, until=until)

    def _on_applied(self, turn: Turn, link: Link, by: NodeId) -> None:
        waits = self._waits.get(link.account)
        if not waits:
            return
        ready = [w for w in waits if w.ask.min_height <= link.height]
        self._keep(link.account, [w for w in waits if w.ask.min_height > link.height])
        turn.again += [ClientBalance(w.caller, w.ask, w.deadline) for w in ready]

    def _keep(self, account: str, waits: list[_Wait]) -> None:
        self._count += len(waits) - len(self._waits.pop(account, ()))
        if waits:
            self._waits[account] = waits

    def deadline(self) -> float | None:
        return self._due.at

    def tick(self, turn: Turn) -> None:
        """Tell those whose time is up."""
        if not self._due.passed(turn.now.mono):
            return
        for account, waits in list(self._waits.items()):
            late = [w for w in waits if w.deadline <= turn.now.mono]
            left = [w for w in waits if w.deadline > turn.now.mono]
            if left:
                self._due.by(min(w.deadline for w in left))
            if not late:
                continue
            self._keep(account, left)
            for wait in late:
                reason = f"link {wait.ask.min_height} of {account} did not reach this node in time"
                turn.answer(wait.caller, Unknown(b"", reason))


def until_of(event: ClientBalance, now: float) -> float:
    """When a read that arrives `now`, or has come before with its `until`, is over: seconds of the monotonic clock."""
    return event.until if event.until is not None else now + min(max(event.ask.timeout_ms, 1), MAX_WAIT_MS) / 1000

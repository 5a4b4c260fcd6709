"""Majority reads: what must be asked before something is said that cannot be taken back.

A slot: has it a successor (`node.slot_inquiry`)? An account: which decided links pay it (`node.income_inquiry`)? So
that **what a client could see anywhere, it can spend**.

Both are shared by all who ask about the same thing (`node.askers`), and each of these has a deadline: what cannot be
known in time is said to be unknown (`SlotState.UNKNOWN` for a slot, `done(turn, False)` for income), never guessed.
Answers count when both sides have the same view installed: a majority is one of one epoch.
"""

from collections import Counter
from itertools import count
from typing import Final

from chain.link import Link
from chain.needs import Needs
from node.acceptor import Acceptor
from node.askers import MAX_ASKERS, Asker, Purpose
from node.decoded import LinkDecoder
from node.due import Due
from node.identity import Identity
from node.income_inquiry import IncomeDone, IncomeInquiries
from node.messages import SlotAnswer, SlotName
from node.peers import Peers
from node.replica import Replica
from node.slot_inquiry import SlotDone, SlotInquiries, SlotState
from node.turn import Self, Turn
from routing.keyspace import NodeId

ASK_DEADLINE_S: Final = 3.0  # a takeover of a stuck slot and its second round fit


class Inquiries:
    """All questions of this node that wait for a majority, and the answers it gives to others."""

    def __init__(
        self,
        self_: Self,
        decoder: LinkDecoder,
        identity: Identity,
        peers: Peers,
        acceptor: Acceptor,
        replica: Replica,
    ) -> None:
        self._places: Counter[Purpose] = Counter()
        self._due = Due()
        numbers = count(self_.rng.getrandbits(62) + 1)  # a late answer to a question of a former life finds nothing
        self.slots: Final = SlotInquiries(
            self_, decoder, identity, peers, acceptor, replica, numbers=numbers, places=self._places, due=self._due
        )
        self.income: Final = IncomeInquiries(
            self_, identity, peers, acceptor, replica, numbers=numbers, places=self._places, due=self._due
        )

    def __len__(self) -> int:
        return self._places.total()

    def count(self, purpose: Purpose) -> int:
        """How many ask for this purpose."""
        return self._places[purpose]

    def no_room(self, purpose: Purpose) -> str | None:
        """Why nobody more can ask for this purpose now; None: it can."""
        if self._places[purpose] < MAX_ASKERS[purpose]:
            return None
        return (
            f"{self._places[purpose]} questions to other nodes, for {purpose.value}, are under way at this one: "
            "ask another node, or again in a while"
        )

    # --- asking ---

    def ask_slot(
        self, turn: Turn, at: SlotName, born: int, done: SlotDone, purpose: Purpose, *, until: float = float("inf")
    ) -> None:
        """Ask a majority of the slot's group whether it has a successor; `done` is called once, maybe at once, and not
        after `until`. `born`: the slot's birth epoch. The group of an earlier view has no say (R3), so this node waits
        for that view."""
        if self.no_room(purpose):
            done(turn, SlotState.UNKNOWN)
            return
        self.slots.ask(turn, at, born, Asker(done, min(turn.now.mono + ASK_DEADLINE_S, until), purpose))

    def needs_income(self, account: str, needs: Needs) -> None:
        """What `ask_income` looks at, so that it need not wait for the next turn."""
        self.income.needs(account, needs)

    def ask_income(
        self, turn: Turn, account: str, done: IncomeDone, purpose: Purpose, *, until: float = float("inf")
    ) -> None:
        """Fetch every decided link that pays `account` and whose vote majority existed before now; `done(turn, True)`
        once all are applied here, `done(turn, False)` at `until` at the latest."""
        if self.no_room(purpose):
            done(turn, False)
            return
        self.income.ask(turn, account, Asker(done, min(turn.now.mono + ASK_DEADLINE_S, until), purpose))

    def needs_slot_answer(self, message: SlotAnswer, needs: Needs) -> None:
        """What its links need; and what a read asks for next: else that takes one more turn."""
        self.slots.needs_answer(message, needs)
        account = self.slots.read_that_goes_on(message)
        if account is not None:
            self.needs_income(account, needs)

    # --- what ends them, or begins them again ---

    def on_view(self, turn: Turn) -> None:
        self.slots.on_view(turn)
        self.income.on_view(turn)

    def on_applied(self, turn: Turn, link: Link, by: NodeId) -> None:
        self.slots.on_applied(turn, link)
        self.income.on_applied(turn, link)

    def deadline(self) -> float | None:
        return self._due.at

    def tick(self, turn: Turn) -> None:
        """Ask again those who are silent; give up for those whose time is over."""
        if self._due.passed(turn.now.mono):
            self.slots.tell_late(turn)
            self.income.tell_late(turn)
            self.slots.ask_again(turn)
            self.income.ask_again(turn)
        self.slots.end_turn()
        self.income.end_turn()

"""Majority reads: what must be asked before something is said that cannot be taken back.

**A slot** (`ask_slot`): has it a successor? A decided value was voted for by a majority of the slot's group, and any
two majorities meet; so when a majority of the group says "nothing here", nothing was decided before the question.
A vote that is found is finished first. Used before `unknown_recipient`, `unknown_sender`, and by linearizable reads.

**Income** (`ask_income`): which decided links pay an account? They lie on the chains of others, in groups that
nobody knows beforehand. A decided link has the votes of at least majority(group size) nodes, so every answer set of
n - majority(group size) + 1 nodes meets each of them, and whoever is ACTIVE in a changed group knows all of its votes
(design R8). Each answers with the senders it knows of, its undecided votes
where it is ACTIVE included (`Acceptor.paying` says why not others), and with the account's own tip, for what that has
confirmed is income no more; the asker fetches what it lacks and waits for what is being decided. Used before
`insufficient_funds` and `issuer_limit`, and by linearizable reads, so that **what a client could see anywhere, it can
spend**.

Both have a deadline: what cannot be fetched in time is no answer (`False`), never a guess. Answers count when both
sides have the same view installed: a majority is one of one epoch.
"""

import enum
import hashlib
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from chain.link import Link, Slot
from chain.needs import Needs
from node.acceptor import Acceptor
from node.decoded import LinkDecoder
from node.due import Due
from node.events import NOBODY, ServeSlot
from node.identity import Identity
from node.messages import AskIncome, AskSlot, IncomeAnswer, SlotAnswer, SlotName
from node.peers import Peers
from node.replica import Replica
from node.slots import height_of
from node.turn import Self, Turn
from routing.keyspace import NodeId, route_key
from routing.view import majority

ASK_DEADLINE_S: Final = 3.0  # a takeover of a stuck slot and its second round fit
ASK_AGAIN_S: Final = 0.1
MAX_SENDERS: Final = 50_000  # of unconfirmed income in one answer: 4 MB; an account that has more takes it up first
MAX_INQUIRIES: Final = 10_000  # at once; above it the answer is "not in time"
MAX_OF_READS: Final = 5_000  # with so many under way, none begins for a read: payments have the rest


class SlotState(enum.Enum):
    """What is known of a slot when its inquiry ends."""

    FREE = "free"  # nothing was decided there before the question
    TAKEN = "taken"  # it has a successor, which is applied here
    UNKNOWN = "unknown"  # no majority answered in time


SlotDone = Callable[[Turn, SlotState], None]
IncomeDone = Callable[[Turn, bool], None]


class _SlotInquiry(msgspec.Struct):
    at: SlotName
    born: int
    group: tuple[NodeId, ...]
    done: SlotDone
    deadline: float
    again: float
    empty: set[NodeId] = msgspec.field(default_factory=set)


class _IncomeInquiry(msgspec.Struct):
    account: str
    done: IncomeDone
    deadline: float
    again: float
    digest: bytes
    answered: set[NodeId] = msgspec.field(default_factory=set)
    # peer -> sender -> height that must be applied here before the peer's answer counts
    lacking: dict[NodeId, dict[str, int]] = msgspec.field(default_factory=dict)
    senders: set[str] = msgspec.field(default_factory=set)  # all that were ever lacking


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
        self._self = self_
        self._decoder = decoder
        self._identity = identity
        self._peers = peers
        self._acceptor = acceptor
        self._next = self_.rng.getrandbits(62)  # a late answer to a question of a former life finds nothing
        self._slots: dict[int, _SlotInquiry] = {}
        self._by_slot: dict[bytes, set[int]] = {}
        self._incomes: dict[int, _IncomeInquiry] = {}
        self._lacked: dict[str, set[int]] = {}  # sender -> income inquiries that wait for a link of it
        self._due = Due()
        self._replica = replica

    def __len__(self) -> int:
        return len(self._slots) + len(self._incomes)

    def no_room(self, *, for_read: bool) -> str | None:
        """Why another one cannot begin now, for a read or for a payment; None: it can."""
        if len(self) < (MAX_OF_READS if for_read else MAX_INQUIRIES):
            return None
        return f"{len(self)} questions to other nodes are under way at this one: ask another node, or again in a while"

    # --- a slot ---

    def ask_slot(self, turn: Turn, at: SlotName, born: int, done: SlotDone, *, until: float = float("inf")) -> None:
        """Ask a majority of the slot's group whether it has a successor; `done` is called once, maybe at once, and not
        after `until`. `born`: the slot's birth epoch. The group of an earlier view has no say (R3), so this node waits
        for that view."""
        if len(self) >= MAX_INQUIRIES:
            done(turn, SlotState.UNKNOWN)
            return
        number = self._number()
        group = self._self.view.group(route_key(at.slot))
        now = turn.now.mono
        inquiry = _SlotInquiry(at, born, group, done, min(now + ASK_DEADLINE_S, until), now)
        self._slots[number] = inquiry
        self._by_slot.setdefault(at.slot, set()).add(number)
        self._ask_slot_again(turn, number, inquiry)

    def _ask_slot_again(self, turn: Turn, number: int, inquiry: _SlotInquiry) -> None:
        inquiry.again = turn.now.mono + ASK_AGAIN_S + self._peers.rtt(inquiry.group)
        self._due.by(min(inquiry.again, inquiry.deadline))
        for node in inquiry.group:
            if node in inquiry.empty:
                continue
            if node != self._self.id:
                turn.send(node, AskSlot(number, inquiry.at, self._self.view.epoch))
            elif self._speaks_of(inquiry.at) and not self._acceptor.is_voted(Slot(inquiry.at.slot)):
                inquiry.empty.add(node)
        self._settle_slot(turn, number)

    def needs_ask_slot(self, message: AskSlot, needs: Needs) -> None:
        needs.heads.add(message.at.account)

    def on_ask_slot(self, turn: Turn, peer: NodeId, message: AskSlot) -> None:
        at = message.at
        head = turn.loaded.heads.get(at.account)
        if head is not None and head.height >= at.height:
            turn.again.append(ServeSlot(peer, at, answering=message.number))
        elif message.epoch == self._self.view.epoch and self._speaks_of(at):
            voted = self._acceptor.is_voted(Slot(at.slot))
            turn.send(peer, SlotAnswer(message.number, voted, (), self._self.view.epoch))

    def _speaks_of(self, at: SlotName) -> bool:
        """Who may have lost votes (R12), or has not heard of all of them (R7), does not say that there are none."""
        return self._identity.verified and self._self.is_active(route_key(at.slot))

    def on_slot_answer(self, turn: Turn, peer: NodeId, message: SlotAnswer) -> None:
        for raw in message.links:
            self._replica.learn(turn, self._decoder.untrusted(raw), peer, NOBODY)
        inquiry = self._slots.get(message.number)
        if inquiry is None or peer not in inquiry.group:
            return
        if message.links or message.voted:
            if height_of(turn.loaded.heads.get(inquiry.at.account)) >= inquiry.at.height:  # it was here already
                self._end_slot(turn, message.number, SlotState.TAKEN)
            return
        if message.epoch == self._self.view.epoch:  # only answers of one epoch make a majority
            inquiry.empty.add(peer)
            self._settle_slot(turn, message.number)

    def _settle_slot(self, turn: Turn, number: int) -> None:
        inquiry = self._slots[number]
        if len(inquiry.empty) >= majority(len(inquiry.group)) and inquiry.born <= self._self.view.epoch:
            self._end_slot(turn, number, SlotState.FREE)

    def _end_slot(self, turn: Turn, number: int, state: SlotState) -> None:
        inquiry = self._slots.pop(number)
        numbers = self._by_slot[inquiry.at.slot]
        numbers.discard(number)
        if not numbers:
            del self._by_slot[inquiry.at.slot]
        inquiry.done(turn, state)

    # --- income ---

    def needs_income(self, account: str, needs: Needs) -> None:
        """What `ask_income` and `on_ask_income` look at."""
        needs.income.add(account)
        needs.heads.add(account)

    def ask_income(self, turn: Turn, account: str, done: IncomeDone, *, until: float = float("inf")) -> None:
        """Fetch every decided link that pays `account` and whose vote majority existed before now; `done(turn, True)`
        once all are applied here, `done(turn, False)` at `until` at the latest. The turn must have loaded
        `needs_income(account)`."""
        if len(self) >= MAX_INQUIRIES:
            done(turn, False)
            return
        number = self._number()
        now = turn.now.mono
        digest = income_digest(senders_of(turn, account))
        inquiry = _IncomeInquiry(account, done, min(now + ASK_DEADLINE_S, until), now, digest)
        self._incomes[number] = inquiry
        self._note_own_income(turn, number, account)
        if number in self._incomes:
            self._ask_income_again(turn, number, inquiry)

    def _note_own_income(self, turn: Turn, number: int, account: str) -> None:
        if self._speaks_of_income():
            self._note_income(turn, number, self._self.id, tuple(sorted(self._acceptor.paying(account).items())))

    def _speaks_of_income(self) -> bool:
        """The groups of who paid are not known beforehand: only who is ACTIVE in all its regions has heard of all
        votes."""
        return self._identity.verified and self._self.fully_active

    def _ask_income_again(self, turn: Turn, number: int, inquiry: _IncomeInquiry) -> None:
        inquiry.again = turn.now.mono + ASK_AGAIN_S + self._peers.rtt(self._self.view.ids)
        self._due.by(min(inquiry.again, inquiry.deadline))
        for member in self._self.view.members:
            lacking = inquiry.lacking.get(member.id)
            if lacking and member.id != self._self.id:
                self._replica.lacking.want_chains(turn, member.id, [(s, h, h) for s, h in sorted(lacking.items())])
            elif member.id != self._self.id and member.id not in inquiry.answered:
                turn.send(member.id, AskIncome(number, inquiry.account, inquiry.digest, self._self.view.epoch))

    def on_ask_income(self, turn: Turn, peer: NodeId, message: AskIncome) -> None:
        if message.epoch != self._self.view.epoch or not self._speaks_of_income():
            return
        known = senders_of(turn, message.account)
        undecided = self._acceptor.paying(message.account)
        if income_digest(known) == message.digest:
            known = ()
        heights = dict(known)
        for sender, height in undecided.items():
            heights[sender] = max(height, heights.get(sender, 0))
        head = turn.loaded.heads.get(message.account)
        if head is not None:  # what its newer links have confirmed is not listed: the asker must have those links
            heights[message.account] = head.height
        if len(heights) > MAX_SENDERS:  # no answer rather than half of one: the asker must not believe that this is all
            self._self.counters["income_too_wide"] += 1
            return
        turn.send(peer, IncomeAnswer(message.number, tuple(sorted(heights.items())), self._self.view.epoch))

    def needs_income_answer(self, message: IncomeAnswer, needs: Needs) -> None:
        needs.heads.update(sender for sender, _ in message.senders)

    def on_income_answer(self, turn: Turn, peer: NodeId, message: IncomeAnswer) -> None:
        if message.number in self._incomes and message.epoch == self._self.view.epoch:
            self._note_income(turn, message.number, peer, message.senders)

    def _note_income(self, turn: Turn, number: int, peer: NodeId, senders: Iterable[tuple[str, int]]) -> None:
        inquiry = self._incomes[number]
        if peer in inquiry.answered or peer in inquiry.lacking:
            return
        lacking = {s: h for s, h in senders if height_of(turn.loaded.heads.get(s)) < h}
        if not lacking:
            inquiry.answered.add(peer)
            self._settle_income(turn, number)
            return
        inquiry.lacking[peer] = lacking
        inquiry.senders.update(lacking)
        for sender in lacking:
            self._lacked.setdefault(sender, set()).add(number)
        if peer != self._self.id:
            self._replica.lacking.want_chains(
                turn, peer, [(s, height_of(turn.loaded.heads.get(s)) + 1, h) for s, h in lacking.items()]
            )

    def _settle_income(self, turn: Turn, number: int) -> None:
        inquiry = self._incomes[number]
        members = len(self._self.view.members)
        group = min(self._self.view.k, members)
        if len(inquiry.answered) >= members - majority(group) + 1:
            self._end_income(turn, number, complete=True)

    def _end_income(self, turn: Turn, number: int, *, complete: bool) -> None:
        inquiry = self._incomes.pop(number)
        for sender in inquiry.senders:
            numbers = self._lacked[sender]
            numbers.discard(number)
            if not numbers:
                del self._lacked[sender]
        inquiry.done(turn, complete)

    # --- what ends them, or begins them again ---

    def on_view(self, turn: Turn) -> None:
        """Another view is installed: majorities are counted anew, among its members."""
        for inquiry in self._slots.values():
            inquiry.group = self._self.view.group(route_key(inquiry.at.slot))
            inquiry.empty.clear()
            inquiry.again = turn.now.mono
        self._due.by(turn.now.mono)
        for number, income in list(self._incomes.items()):
            income.answered.clear()
            income.lacking.clear()
            income.again = turn.now.mono
            self._note_own_income(turn, number, income.account)

    def on_applied(self, turn: Turn, link: Link, by: NodeId) -> None:
        for number in sorted(self._by_slot.get(link.prev_hash, ())):
            self._end_slot(turn, number, SlotState.TAKEN)
        for number in sorted(self._lacked.get(link.account, ())):
            inquiry = self._incomes[number]
            for peer, lacking in list(inquiry.lacking.items()):
                if lacking.get(link.account, link.height + 1) <= link.height:
                    del lacking[link.account]
                if not lacking:
                    del inquiry.lacking[peer]
                    inquiry.answered.add(peer)
            self._settle_income(turn, number)

    def _number(self) -> int:
        self._next += 1
        return self._next

    def deadline(self) -> float | None:
        return self._due.at

    def tick(self, turn: Turn) -> None:
        """Ask again those who are silent; give up at the deadline."""
        now = turn.now.mono
        if not self._due.passed(now):
            return
        for number, slot in list(self._slots.items()):
            if slot.deadline <= now:
                self._end_slot(turn, number, SlotState.UNKNOWN)
            elif slot.again <= now:
                self._ask_slot_again(turn, number, slot)
        for number, income in list(self._incomes.items()):
            if income.deadline <= now:
                self._end_income(turn, number, complete=False)
            elif income.again <= now:
                self._ask_income_again(turn, number, income)
        for slot in self._slots.values():
            self._due.by(min(slot.deadline, slot.again))
        for income in self._incomes.values():
            self._due.by(min(income.deadline, income.again))


def income_digest(senders: Iterable[tuple[str, int]]) -> bytes:
    """SHA-256 over (sender, height) pairs in order: equal lists, equal digests."""
    return hashlib.sha256("".join(f"{sender}\0{height}\0" for sender, height in sorted(senders)).encode()).digest()


def senders_of(turn: Turn, account: str) -> tuple[tuple[str, int], ...]:
    """(sender, height of its newest unconfirmed link that pays `account`), as applied here."""
    income = turn.loaded.income.get(account)
    return income.senders if income is not None else ()

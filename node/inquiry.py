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

Both are shared by all who ask about the same thing (`node.askers`), and each of these has a deadline: what cannot be
known in time is said to be unknown (`SlotState.UNKNOWN` for a slot, `done(turn, False)` for income), never guessed.
Answers count when both sides have the same view installed: a majority is one of one epoch.
"""

import enum
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from chain.link import Link, Slot
from chain.needs import Needs
from node.acceptor import Acceptor
from node.askers import MAX_ASKERS, Asker, Askers, Purpose
from node.decoded import LinkDecoder
from node.due import Due
from node.events import NOBODY, AskForIncome, ServeSlot
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
    again: float
    empty: set[NodeId] = msgspec.field(default_factory=set)


class _IncomeInquiry(msgspec.Struct):
    account: str
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
        self._places: Counter[Purpose] = Counter()
        self._slots: dict[int, _SlotInquiry] = {}
        self._by_slot: dict[bytes, int] = {}
        self._slot_askers: Askers[bytes, SlotState] = Askers(self._places)
        self._incomes: dict[int, _IncomeInquiry] = {}
        self._by_account: dict[str, int] = {}
        self._income_askers: Askers[str, bool] = Askers(self._places)
        self._lacked: dict[str, set[int]] = {}  # sender -> income inquiries that wait for a link of it
        self._digests: dict[str, tuple[tuple[tuple[str, int], ...], bytes]] = {}  # by account, in this turn
        self._due = Due()
        self._replica = replica

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

    # --- a slot ---

    def ask_slot(
        self, turn: Turn, at: SlotName, born: int, done: SlotDone, purpose: Purpose, *, until: float = float("inf")
    ) -> None:
        """Ask a majority of the slot's group whether it has a successor; `done` is called once, maybe at once, and not
        after `until`. `born`: the slot's birth epoch. The group of an earlier view has no say (R3), so this node waits
        for that view."""
        if self.no_room(purpose):
            done(turn, SlotState.UNKNOWN)
            return
        asker = Asker(done, min(turn.now.mono + ASK_DEADLINE_S, until), purpose)
        self._due.by(asker.until)
        if self._slot_askers.add(at.slot, asker):
            self._begin_slot(turn, at, born)

    def _begin_slot(self, turn: Turn, at: SlotName, born: int) -> None:
        self._slot_askers.begin(at.slot)
        number = self._number()
        inquiry = _SlotInquiry(at, born, self._self.view.group(route_key(at.slot)), turn.now.mono)
        self._slots[number] = inquiry
        self._by_slot[at.slot] = number
        self._ask_slot_again(turn, number, inquiry)

    def _ask_slot_again(self, turn: Turn, number: int, inquiry: _SlotInquiry) -> None:
        inquiry.again = turn.now.mono + ASK_AGAIN_S + self._peers.rtt(inquiry.group)
        self._due.by(inquiry.again)
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

    def needs_slot_answer(self, message: SlotAnswer, needs: Needs) -> None:
        """What its links need; and what a read asks for next, when this answer may be the last that lacks: else that
        takes one more turn."""
        self._replica.needs_links(message.links, needs)
        inquiry = self._slots.get(message.number)
        if (
            inquiry is not None
            and not message.voted
            and not message.links
            and len(inquiry.empty) + 1 >= majority(len(inquiry.group))
            and self._slot_askers.has(inquiry.at.slot, Purpose.READ)
        ):
            self.needs_income(inquiry.at.account, needs)

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
        """Whoever waits for the next question need not ask it about what has a successor."""
        inquiry = self._forget_slot(number)
        self._slot_askers.end(turn, inquiry.at.slot, state, for_all=state is SlotState.TAKEN)
        self._next_slot(turn, inquiry)

    def _forget_slot(self, number: int) -> _SlotInquiry:
        inquiry = self._slots.pop(number)
        del self._by_slot[inquiry.at.slot]
        return inquiry

    def _next_slot(self, turn: Turn, ended: _SlotInquiry) -> None:
        if self._slot_askers.wants(ended.at.slot):
            self._begin_slot(turn, ended.at, ended.born)

    # --- income ---

    def needs_income(self, account: str, needs: Needs) -> None:
        """What `ask_income` and `on_ask_income` look at."""
        needs.income.add(account)
        needs.heads.add(account)

    def needs_ask_for_income(self, event: AskForIncome, needs: Needs) -> None:
        self.needs_income(event.account, needs)

    def on_ask_for_income(self, turn: Turn, event: AskForIncome) -> None:
        if self._income_askers.wants(event.account):
            self._begin_income(turn, event.account)

    def ask_income(
        self, turn: Turn, account: str, done: IncomeDone, purpose: Purpose, *, until: float = float("inf")
    ) -> None:
        """Fetch every decided link that pays `account` and whose vote majority existed before now; `done(turn, True)`
        once all are applied here, `done(turn, False)` at `until` at the latest."""
        if self.no_room(purpose):
            done(turn, False)
            return
        asker = Asker(done, min(turn.now.mono + ASK_DEADLINE_S, until), purpose)
        self._due.by(asker.until)
        if self._income_askers.add(account, asker):
            self._begin_income(turn, account)

    def _begin_income(self, turn: Turn, account: str) -> None:
        """In a turn that has loaded what is known here, so that others need not say the same."""
        if account not in turn.loaded.income:
            turn.again.append(AskForIncome(account))
            return
        self._income_askers.begin(account)
        number = self._number()
        inquiry = _IncomeInquiry(account, turn.now.mono, self._digest(account, senders_of(turn, account)))
        self._incomes[number] = inquiry
        self._by_account[account] = number
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
        self._due.by(inquiry.again)
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
        if self._digest(message.account, known) == message.digest:
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
            account = self._forget_income(number)
            self._income_askers.end(turn, account, True)
            self._next_income(turn, account)

    def _forget_income(self, number: int) -> str:
        inquiry = self._incomes.pop(number)
        del self._by_account[inquiry.account]
        for sender in inquiry.senders:
            numbers = self._lacked[sender]
            numbers.discard(number)
            if not numbers:
                del self._lacked[sender]
        return inquiry.account

    def _next_income(self, turn: Turn, account: str) -> None:
        if self._income_askers.wants(account):
            self._begin_income(turn, account)

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
        taken = self._by_slot.get(link.prev_hash)
        if taken is not None:
            self._end_slot(turn, taken, SlotState.TAKEN)
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
        """Ask again those who are silent; give up for those whose time is over."""
        self._digests.clear()
        if self._due.passed(turn.now.mono):
            self._tick(turn)
        self._slot_askers.end_turn()
        self._income_askers.end_turn()

    def _tick(self, turn: Turn) -> None:
        now = turn.now.mono
        late, over = self._slot_askers.take_late(now)
        for at in over:
            self._next_slot(turn, self._forget_slot(self._by_slot[at]))
        self._slot_askers.tell(turn, late, SlotState.UNKNOWN)
        late_for_income, over_for_income = self._income_askers.take_late(now)
        for account in over_for_income:
            self._next_income(turn, self._forget_income(self._by_account[account]))
        self._income_askers.tell(turn, late_for_income, False)
        for number, slot in list(self._slots.items()):
            if slot.again <= now:
                self._ask_slot_again(turn, number, slot)
        for number, income in list(self._incomes.items()):
            if income.again <= now:
                self._ask_income_again(turn, number, income)
        for slot in self._slots.values():
            self._due.by(slot.again)
        for income in self._incomes.values():
            self._due.by(income.again)
        for until in (self._slot_askers.deadline(), self._income_askers.deadline()):
            if until is not None:
                self._due.by(until)

    def _digest(self, account: str, senders: tuple[tuple[str, int], ...]) -> bytes:
        """Of what is known here in this turn, however many ask about the same account."""
        known = self._digests.get(account)
        if known is None or known[0] is not senders:
            known = self._digests[account] = senders, income_digest(senders)
        return known[1]


def income_digest(senders: Iterable[tuple[str, int]]) -> bytes:
    """SHA-256 over (sender, height) pairs in order: equal lists, equal digests."""
    return hashlib.sha256("".join(f"{sender}\0{height}\0" for sender, height in sorted(senders)).encode()).digest()


def senders_of(turn: Turn, account: str) -> tuple[tuple[str, int], ...]:
    """(sender, height of its newest unconfirmed link that pays `account`), as applied here."""
    income = turn.loaded.income.get(account)
    return income.senders if income is not None else ()

"""Which decided links pay an account? As many nodes are asked as meet every majority.

Such links lie on the chains of others, in groups that nobody knows beforehand. A decided link has the votes of at least
majority(group size) nodes, so every answer set of n - majority(group size) + 1 nodes meets each of them, and whoever is
ACTIVE in a changed group knows all of its votes (design R8). Each answers with the senders it knows of, its undecided
votes where it is ACTIVE included (`Acceptor.paying` says why not others), and with the account's own tip, for what that
has confirmed is income no more; the asker fetches what it lacks and waits for what is being decided. Used before
`insufficient_funds` and `issuer_limit`, and by linearizable reads, through `node.inquiry`.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec

from chain.link import Link
from chain.needs import Needs
from node.acceptor import Acceptor
from node.askers import ASK_AGAIN_S, Asker, Askers, Purpose
from node.due import Due
from node.events import AskForIncome
from node.identity import Identity
from node.messages import AskIncome, IncomeAnswer
from node.peers import Peers
from node.replica import Replica
from node.slots import height_of
from node.turn import Self, Turn
from routing.keyspace import NodeId
from routing.view import majority

MAX_SENDERS: Final = 50_000  # of unconfirmed income in one answer: 4 MB; an account that has more takes it up first

IncomeDone = Callable[[Turn, bool], None]


class _Inquiry(msgspec.Struct):
    account: str
    again: float
    digest: bytes
    answered: set[NodeId] = msgspec.field(default_factory=set)
    # peer -> sender -> height that must be applied here before the peer's answer counts
    lacking: dict[NodeId, dict[str, int]] = msgspec.field(default_factory=dict)
    senders: set[str] = msgspec.field(default_factory=set)  # all that were ever lacking


class IncomeInquiries:
    """The accounts whose income this node asks for, and the answers it gives to others. `numbers`, `places` and `due`
    are those of all inquiries."""

    def __init__(
        self,
        self_: Self,
        identity: Identity,
        peers: Peers,
        acceptor: Acceptor,
        replica: Replica,
        *,
        numbers: Iterator[int],
        places: Counter[Purpose],
        due: Due,
    ) -> None:
        self._self = self_
        self._identity = identity
        self._peers = peers
        self._acceptor = acceptor
        self._replica = replica
        self._numbers = numbers
        self._askers: Askers[str, bool] = Askers(places)
        self._due = due
        self._inquiries: dict[int, _Inquiry] = {}
        self._by_account: dict[str, int] = {}
        self._lacked: dict[str, set[int]] = {}  # sender -> inquiries that wait for a link of it
        self._digests: dict[str, tuple[tuple[tuple[str, int], ...], bytes]] = {}  # by account, in this turn

    # --- asking ---

    def needs(self, account: str, needs: Needs) -> None:
        """What `ask` and `on_ask` look at."""
        needs.income.add(account)
        needs.heads.add(account)

    def ask(self, turn: Turn, account: str, asker: Asker[bool]) -> None:
        """Ask for the income of an account, or share the question that others ask."""
        self._due.by(asker.until)
        if self._askers.add(account, asker):
            self._begin(turn, account)

    def needs_ask_for_income(self, event: AskForIncome, needs: Needs) -> None:
        self.needs(event.account, needs)

    def on_ask_for_income(self, turn: Turn, event: AskForIncome) -> None:
        self._go_on(turn, event.account)

    def _begin(self, turn: Turn, account: str) -> None:
        """In a turn that has loaded what is known here, so that others need not say the same."""
        if account not in turn.loaded.income:
            turn.again.append(AskForIncome(account))
            return
        self._askers.begin(account)
        number = next(self._numbers)
        inquiry = _Inquiry(account, turn.now.mono, self._digest(account, senders_of(turn, account)))
        self._inquiries[number] = inquiry
        self._by_account[account] = number
        self._note_own(turn, number, account)
        if number in self._inquiries:
            self._send_silent(turn, number, inquiry)

    def _send_silent(self, turn: Turn, number: int, inquiry: _Inquiry) -> None:
        """Ask, or ask again, those who have not answered, and for the links that lack."""
        inquiry.again = turn.now.mono + ASK_AGAIN_S + self._peers.rtt(self._self.view.ids)
        self._due.by(inquiry.again)
        for member in self._self.view.members:
            lacking = inquiry.lacking.get(member.id)
            if lacking and member.id != self._self.id:
                self._replica.lacking.want_chains(turn, member.id, [(s, h, h) for s, h in sorted(lacking.items())])
            elif member.id != self._self.id and member.id not in inquiry.answered:
                turn.send(member.id, AskIncome(number, inquiry.account, inquiry.digest, self._self.view.epoch))

    # --- being asked ---

    def needs_ask(self, message: AskIncome, needs: Needs) -> None:
        self.needs(message.account, needs)

    def on_ask(self, turn: Turn, peer: NodeId, message: AskIncome) -> None:
        if message.epoch != self._self.view.epoch or not self._speaks():
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

    def _speaks(self) -> bool:
        """The groups of who paid are not known beforehand: only who is ACTIVE in all its regions has heard of all
        votes."""
        return self._identity.verified and self._self.fully_active

    # --- answers ---

    def needs_answer(self, message: IncomeAnswer, needs: Needs) -> None:
        needs.heads.update(sender for sender, _ in message.senders)

    def on_answer(self, turn: Turn, peer: NodeId, message: IncomeAnswer) -> None:
        if message.number in self._inquiries and message.epoch == self._self.view.epoch:
            self._note(turn, message.number, peer, message.senders)

    def _note_own(self, turn: Turn, number: int, account: str) -> None:
        if self._speaks():
            self._note(turn, number, self._self.id, tuple(sorted(self._acceptor.paying(account).items())))

    def _note(self, turn: Turn, number: int, peer: NodeId, senders: Iterable[tuple[str, int]]) -> None:
        inquiry = self._inquiries[number]
        if peer in inquiry.answered or peer in inquiry.lacking:
            return
        lacking = {s: h for s, h in senders if height_of(turn.loaded.heads.get(s)) < h}
        if not lacking:
            inquiry.answered.add(peer)
            self._settle(turn, number)
            return
        inquiry.lacking[peer] = lacking
        inquiry.senders.update(lacking)
        for sender in lacking:
            self._lacked.setdefault(sender, set()).add(number)
        if peer != self._self.id:
            self._replica.lacking.want_chains(
                turn, peer, [(s, height_of(turn.loaded.heads.get(s)) + 1, h) for s, h in lacking.items()]
            )

    def _settle(self, turn: Turn, number: int) -> None:
        inquiry = self._inquiries[number]
        members = len(self._self.view.members)
        group = min(self._self.view.k, members)
        if len(inquiry.answered) >= members - majority(group) + 1:
            account = self._forget(number)
            self._askers.end(turn, account, True)
            self._go_on(turn, account)

    # --- what ends them, or begins them again ---

    def _forget(self, number: int) -> str:
        inquiry = self._inquiries.pop(number)
        del self._by_account[inquiry.account]
        for sender in inquiry.senders:
            numbers = self._lacked[sender]
            numbers.discard(number)
            if not numbers:
                del self._lacked[sender]
        return inquiry.account

    def _go_on(self, turn: Turn, account: str) -> None:
        if self._askers.wants(account):
            self._begin(turn, account)

    def on_view(self, turn: Turn) -> None:
        """Another view is installed: answers are counted anew, of its members."""
        for number, inquiry in list(self._inquiries.items()):
            inquiry.answered.clear()
            inquiry.lacking.clear()
            inquiry.again = turn.now.mono
            self._note_own(turn, number, inquiry.account)
        self._due.by(turn.now.mono)

    def on_applied(self, turn: Turn, link: Link) -> None:
        for number in sorted(self._lacked.get(link.account, ())):
            inquiry = self._inquiries[number]
            for peer, lacking in list(inquiry.lacking.items()):
                if lacking.get(link.account, link.height + 1) <= link.height:
                    del lacking[link.account]
                if not lacking:
                    del inquiry.lacking[peer]
                    inquiry.answered.add(peer)
            self._settle(turn, number)

    def tell_late(self, turn: Turn) -> None:
        """Give up for those whose time is over."""
        late, over = self._askers.take_late(turn.now.mono)
        for account in over:
            self._forget(self._by_account[account])
            self._go_on(turn, account)
        self._askers.tell(turn, late, False)

    def ask_again(self, turn: Turn) -> None:
        """Ask those who are silent, where it is time."""
        for number, inquiry in list(self._inquiries.items()):
            if inquiry.again <= turn.now.mono:
                self._send_silent(turn, number, inquiry)
        for inquiry in self._inquiries.values():
            self._due.by(inquiry.again)
        until = self._askers.deadline()
        if until is not None:
            self._due.by(until)

    def end_turn(self) -> None:
        self._askers.end_turn()
        self._digests.clear()

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

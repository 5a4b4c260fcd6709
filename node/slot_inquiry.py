"""Has a slot a successor? A majority of its group is asked.

A decided value was voted for by a majority of the slot's group, and any two majorities meet; so when a majority of the
group says "nothing here", nothing was decided before the question. A vote that is found is finished first. Used before
`unknown_recipient`, `unknown_sender`, and by linearizable reads, through `node.inquiry`.
"""

import enum
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec

from chain.link import Link, Slot
from chain.needs import Needs
from node.acceptor import Acceptor
from node.askers import ASK_AGAIN_S, Asker, Askers, Purpose
from node.decoded import LinkDecoder
from node.due import Due
from node.events import NOBODY, ServeSlot
from node.identity import Identity
from node.messages import AskSlot, SlotAnswer, SlotName
from node.peers import Peers
from node.replica import Replica
from node.slots import height_of
from node.turn import Self, Turn
from routing.keyspace import NodeId, route_key
from routing.view import majority


class SlotState(enum.Enum):
    """What is known of a slot when its inquiry ends."""

    FREE = "free"  # nothing was decided there before the question
    TAKEN = "taken"  # it has a successor, which is applied here
    UNKNOWN = "unknown"  # no majority answered in time


SlotDone = Callable[[Turn, SlotState], None]


class _Inquiry(msgspec.Struct):
    at: SlotName
    born: int
    group: tuple[NodeId, ...]
    again: float
    empty: set[NodeId] = msgspec.field(default_factory=set)


class SlotInquiries:
    """The slots that this node asks about, and the answers it gives to others. `numbers`, `places` and `due` are those
    of all inquiries."""

    def __init__(
        self,
        self_: Self,
        decoder: LinkDecoder,
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
        self._decoder = decoder
        self._identity = identity
        self._peers = peers
        self._acceptor = acceptor
        self._replica = replica
        self._numbers = numbers
        self._askers: Askers[bytes, SlotState] = Askers(places)
        self._due = due
        self._inquiries: dict[int, _Inquiry] = {}
        self._by_slot: dict[bytes, int] = {}

    # --- asking ---

    def ask(self, turn: Turn, at: SlotName, born: int, asker: Asker[SlotState]) -> None:
        """Ask a majority of the slot's group, or share the question that others ask."""
        self._due.by(asker.until)
        if self._askers.add(at.slot, asker):
            self._begin(turn, at, born)

    def _begin(self, turn: Turn, at: SlotName, born: int) -> None:
        self._askers.begin(at.slot)
        number = next(self._numbers)
        inquiry = _Inquiry(at, born, self._self.view.group(route_key(at.slot)), turn.now.mono)
        self._inquiries[number] = inquiry
        self._by_slot[at.slot] = number
        self._send_silent(turn, number, inquiry)

    def _send_silent(self, turn: Turn, number: int, inquiry: _Inquiry) -> None:
        """Ask, or ask again, those of the group who have not said that nothing is there."""
        inquiry.again = turn.now.mono + ASK_AGAIN_S + self._peers.rtt(inquiry.group)
        self._due.by(inquiry.again)
        for node in inquiry.group:
            if node in inquiry.empty:
                continue
            if node != self._self.id:
                turn.send(node, AskSlot(number, inquiry.at, self._self.view.epoch))
            elif self._speaks_of(inquiry.at) and not self._acceptor.is_voted(Slot(inquiry.at.slot)):
                inquiry.empty.add(node)
        self._settle(turn, number)

    # --- being asked ---

    def needs_ask(self, message: AskSlot, needs: Needs) -> None:
        needs.heads.add(message.at.account)

    def on_ask(self, turn: Turn, peer: NodeId, message: AskSlot) -> None:
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

    # --- answers ---

    def needs_answer(self, message: SlotAnswer, needs: Needs) -> None:
        self._replica.needs_links(message.links, needs)

    def read_that_goes_on(self, message: SlotAnswer) -> str | None:
        """The account of a read that asks for the income next, when this answer may be the last that lacks."""
        inquiry = self._inquiries.get(message.number)
        if (
            inquiry is not None
            and not message.voted
            and not message.links
            and len(inquiry.empty) + 1 >= majority(len(inquiry.group))
            and self._askers.has(inquiry.at.slot, Purpose.READ)
        ):
            return inquiry.at.account
        return None

    def on_answer(self, turn: Turn, peer: NodeId, message: SlotAnswer) -> None:
        for raw in message.links:
            self._replica.learn(turn, self._decoder.untrusted(raw), peer, NOBODY)
        inquiry = self._inquiries.get(message.number)
        if inquiry is None or peer not in inquiry.group:
            return
        if message.links or message.voted:
            if height_of(turn.loaded.heads.get(inquiry.at.account)) >= inquiry.at.height:  # it was here already
                self._end(turn, message.number, SlotState.TAKEN)
            return
        if message.epoch == self._self.view.epoch:  # only answers of one epoch make a majority
            inquiry.empty.add(peer)
            self._settle(turn, message.number)

    def _settle(self, turn: Turn, number: int) -> None:
        inquiry = self._inquiries[number]
        if len(inquiry.empty) >= majority(len(inquiry.group)) and inquiry.born <= self._self.view.epoch:
            self._end(turn, number, SlotState.FREE)

    # --- what ends them, or begins them again ---

    def _end(self, turn: Turn, number: int, state: SlotState) -> None:
        """Whoever waits for the next question need not ask it about what has a successor."""
        inquiry = self._forget(number)
        self._askers.end(turn, inquiry.at.slot, state, for_all=state is SlotState.TAKEN)
        self._go_on(turn, inquiry)

    def _forget(self, number: int) -> _Inquiry:
        inquiry = self._inquiries.pop(number)
        del self._by_slot[inquiry.at.slot]
        return inquiry

    def _go_on(self, turn: Turn, ended: _Inquiry) -> None:
        if self._askers.wants(ended.at.slot):
            self._begin(turn, ended.at, ended.born)

    def on_view(self, turn: Turn) -> None:
        """Another view is installed: majorities are counted anew, in the groups of its members."""
        for inquiry in self._inquiries.values():
            inquiry.group = self._self.view.group(route_key(inquiry.at.slot))
            inquiry.empty.clear()
            inquiry.again = turn.now.mono
        self._due.by(turn.now.mono)

    def on_applied(self, turn: Turn, link: Link) -> None:
        number = self._by_slot.get(link.prev_hash)
        if number is not None:
            self._end(turn, number, SlotState.TAKEN)

    def tell_late(self, turn: Turn) -> None:
        """Give up for those whose time is over."""
        late, over = self._askers.take_late(turn.now.mono)
        for slot in over:
            self._go_on(turn, self._forget(self._by_slot[slot]))
        self._askers.tell(turn, late, SlotState.UNKNOWN)

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

"""What the nodes say to each other: nothing that is not on the sender's disk (I8), no link or view that is not chosen
(I9, I12)."""

from chain.link import HEADER_BYTES, decode_link_untrusted, header_hash
from netsim.chosen import Chosen
from netsim.durable import Columns, Durable, show_vote
from netsim.violation import Violation
from node.messages import (
    Accept,
    Accepted,
    Decided,
    DecidedHash,
    Links,
    Message,
    Moved,
    Promise,
    SlotAnswer,
    SyncPart,
    ViewAccept,
    ViewAccepted,
    ViewPromise,
    Views,
)
from node.paxos import Ballot
from routing.view import decode_view


class Said:
    """`sent` hears every message when it leaves its node."""

    def __init__(self, chosen: Chosen, durable: Durable) -> None:
        self._chosen = chosen
        self._durable = durable
        self._promises: list[dict[bytes, Columns]] = [{} for _ in chosen.ids]  # of each node, by slot: the last
        self._votes: list[dict[bytes, Columns]] = [{} for _ in chosen.ids]  # the same: the highest

    def sent(self, node: int, message: Message) -> None:
        disk = self._durable[node]
        match message:
            case Promise():
                self._says_promise(node, message.slot, message.ballot, message.accepted)
            case ViewPromise():
                self._says_promise(node, self._view_slot(node, message.ballot), message.ballot, message.accepted)
            case Accepted():
                self._says_vote(node, message.slot, message.ballot)
            case ViewAccepted():
                self._says_vote(node, self._view_slot(node, message.ballot), message.ballot)
            case Accept():
                self._must_be_durable(node, message.at.slot, message.ballot, message.ballot)
            case ViewAccept():
                self._must_be_durable(node, self._view_slot(node, message.ballot), message.ballot, message.ballot)
            case SyncPart():
                if disk.epoch < message.epoch:
                    raise Violation("I8", f"node {node} answers a sync of epoch {message.epoch} in epoch {disk.epoch}")
                if disk.lost:
                    raise Violation("I8", f"node {node} answers a sync with a disk that lacks votes")
                if message.log > len(disk.links):
                    raise Violation(
                        "I8", f"node {node} tells of {message.log} links, and {len(disk.links)} are durable"
                    )
            case Views():
                for raw in message.views:
                    view = decode_view(raw)
                    if view.epoch > self._chosen.views[-1].epoch or view.hash != self._chosen.view_of(view.epoch).hash:
                        raise Violation("I12", f"node {node} serves a view of epoch {view.epoch} that is not chosen")
            case Decided():
                self._must_be_chosen(node, (message.link,))
            case DecidedHash():
                self._must_fill(node, message)
            case Links() | Moved() | SlotAnswer():
                self._must_be_chosen(node, message.links)
            case _:
                pass

    def _view_slot(self, node: int, ballot: Ballot) -> bytes:
        if ballot.epoch > self._durable[node].epoch:
            raise Violation("I8", f"node {node} speaks of the view after epoch {ballot.epoch}, and that is not durable")
        return self._chosen.view_of(ballot.epoch).hash

    def _says_promise(self, node: int, slot: bytes, at: Ballot, vote: Ballot | None) -> None:
        ballot = _columns(at)
        accepted = _columns(vote) if vote is not None else None
        said = self._votes[node].get(slot)
        if said is not None and (accepted is None or accepted < said):
            raise Violation("I8", f"node {node} voted at {said[:2]} and promises {ballot[:2]} as if it had not")
        if ballot < self._promises[node].get(slot, ballot):
            raise Violation("I8", f"node {node} promises {ballot[:2]} after a higher one")
        self._must_be_durable(node, slot, at, vote)
        self._promises[node][slot] = ballot

    def _says_vote(self, node: int, slot: bytes, at: Ballot) -> None:
        ballot = _columns(at)
        if ballot < self._promises[node].get(slot, ballot):
            raise Violation("I8", f"node {node} votes at {ballot[:2]} below its promise")
        self._must_be_durable(node, slot, at, at)
        self._votes[node][slot] = max(ballot, self._votes[node].get(slot, ballot))

    def _must_be_durable(self, node: int, slot: bytes, at: Ballot, vote: Ballot | None) -> None:
        """What a message says is on the disk of its sender (R4, R5), as a vote or as the applied link or view."""
        disk, promised = self._durable[node], _columns(at)
        accepted = _columns(vote) if vote is not None else None
        if at.epoch > disk.epoch:
            raise Violation("I8", f"node {node} speaks of ballot {promised[:2]} with epoch {disk.epoch} on its disk")
        row = disk.votes.get(slot)
        if row is None:
            if self._chosen.successors.get(slot) in disk.links or (
                slot == self._chosen.view_of(at.epoch).hash and at.epoch < disk.epoch
            ):
                return
            raise Violation("I8", f"node {node} speaks of ballot {promised[:2]} before it is durable")
        held = accepted is None or (row.accepted is not None and row.accepted >= accepted)
        if row.promised < promised or not held:
            raise Violation("I8", f"node {node} speaks of ballot {promised[:2]}, on its disk is {show_vote(row)}")

    def _must_be_chosen(self, node: int, raws: tuple[bytes, ...]) -> None:
        for raw in raws:
            if header_hash(raw[:HEADER_BYTES]) not in self._chosen.chosen_at:
                link = decode_link_untrusted(raw)
                raise Violation("I9", f"node {node} serves link {link.height} of {link.account}, which is not chosen")

    def _must_fill(self, node: int, message: DecidedHash) -> None:
        if self._chosen.successors.get(message.at.slot) != message.link:
            what = f"link {message.at.height} of {message.at.account}"
            raise Violation("I9", f"node {node} says that {what} is chosen, and it is not")


def _columns(ballot: Ballot) -> Columns:
    return (ballot.epoch, ballot.round, ballot.node)

"""Acceptor: this node's votes on undecided slots, and the question who finishes them.

* R2  only ballots of the installed epoch, only slots whose group this node is in.
* R7  only where this node is ACTIVE in that epoch (node.syncing).
* R3  no vote below a slot's birth epoch; round 0 only from the owner, and only in the birth epoch.
* R4  a vote is in `Turn.persist` of the turn whose `Turn.sends` carry the answer: durable before it leaves.
* R11 a vote only on a decided parent: without it the message waits here until the parent is applied. And only for a
      link that could be applied here (ADR 33): what is decided is applied or stops the node, so one damaged database
      must not get so far.

All undecided votes are in memory (the table `votes` holds them across a restart); a decided slot is forgotten, for
then the link itself answers. A vote that stays undecided for STUCK_S is finished by its voters: rank by rank they
start a takeover, so a slot does not depend on anybody asking for it again.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from chain.errors import RemoteFault
from chain.link import Link, LinkHash, Slot, opening_slot
from chain.needs import Loaded, Needs
from chain.request import RequestId
from chain.rows import AccountHead, Credit, VoteRow
from chain.rules import successor_fault
from node.decoded import LinkDecoder
from node.due import Due
from node.epochs import Admission, admit
from node.events import FromPeer, ServeSlot
from node.identity import Identity
from node.messages import Accept, Accepted, AskViews, DecidedHash, Message, Prepare, Promise, Refuse, SlotName
from node.paxos import Ballot, Refusal, Vote, accept, ballot_of, check_proposer_untrusted, columns_of, merge, prepare
from node.replica import Replica
from node.slots import birth_epoch, check_vote_untrusted, is_fast, next_slot
from node.turn import Self, Turn, handling_s
from routing.keyspace import NodeId, route_key

STUCK_S: Final = 1.0  # a vote older than this lost its proposer
STUCK_PER_RANK_S: Final = 0.3  # so that voters do not all begin at once
STUCK_HANDLINGS: Final = 3  # a large link waits behind others of its kind, here and elsewhere
MAX_INDEXED: Final = 64  # recipients of a link
MAX_CHECKED: Final = 256  # postings that a link confirms, and requests: to read more for a vote costs too much
MANY: Final = ""
VIEWS_AGAIN_S: Final = 0.2  # a peer that lags sends a lot before the views are there: they go out once in this time


class _Held(msgspec.Struct):
    at: SlotName
    vote: Vote[Link]
    stuck_at: float


class Acceptor:
    """The votes of this node."""

    def __init__(
        self,
        self_: Self,
        decoder: LinkDecoder,
        identity: Identity,
        replica: Replica,
    ) -> None:
        self._self = self_
        self._decoder = decoder
        self._identity = identity
        self._replica = replica
        self.finish: Callable[[Turn, SlotName], None] = _nobody  # takes over a slot whose vote is stuck
        self._held: dict[Slot, _Held] = {}
        self._due = Due()
        # who proposed a link that does not follow from the chain here -> why the first one does not
        self.doubted: dict[NodeId, str] = {}
        self._proposed: dict[LinkHash, Link] = {}  # the links that are proposed to this node in this turn
        self._views_sent: dict[NodeId, float] = {}  # when, to who lags
        # recipient -> (height, sender, slot) of undecided links; of those that pay many under MANY, which is no account
        self._paying: dict[str, set[tuple[int, str, Slot]]] = {}

    def restore(self, rows: list[VoteRow], now: float) -> None:
        """Take up the votes that were durable when the node stopped. The link before one of them may not have been (ADR
        23)."""
        for row in rows:
            if not row.account:  # on the next view: node.view_ballots has it
                continue
            link = self._decoder.untrusted(row.link) if row.link is not None else None
            accepted = ballot_of(row.accepted) if row.accepted is not None else None
            vote = Vote(ballot_of(row.promised), accepted, link)
            self._hold(SlotName(row.slot, row.account, row.height), vote, now)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def votes(self) -> int:
        """How many slots have a vote here that is not known to be decided."""
        return sum(held.vote.accepted is not None for held in self._held.values())

    def vote(self, slot: Slot) -> Vote[Link] | None:
        """What this node promised and voted for in an undecided slot."""
        held = self._held.get(slot)
        return held.vote if held is not None else None

    def is_voted(self, slot: Slot) -> bool:
        """True when this node voted for a value there that it does not know to be decided."""
        vote = self.vote(slot)
        return vote is not None and vote.accepted is not None

    def paying(self, account: str) -> dict[str, int]:
        """sender -> height of its last undecided link that pays `account`, voted for here in a slot for which this node
        is ACTIVE.

        What it voted for in a group that it has left nobody finishes from here: to wait for that could be for ever. It
        is not needed either. When a link is decided, a majority of its slot's group has voted for it. A change that
        leaves the group as it is leaves them ACTIVE (R7); after any other one, each member that is ACTIVE took the vote
        over from a majority of the group before, which meets that one, or from one who did (R8, ADR 35). So in this
        epoch a majority of the slot's group knows it, or so much of one as is ACTIVE. Enough answers meet every
        majority, and only who is ACTIVE wherever it is in a group answers (node.income_inquiry).
        """
        pays = set(self._paying.get(account, ()))
        for entry in self._paying.get(MANY, ()):
            link = self._held[entry[2]].vote.value
            if link is not None and account in link.recipients:
                pays.add(entry)
        return {sender: height for height, sender, slot in sorted(pays) if self._self.is_active(route_key(slot))}

    # --- messages ---

    def needs_prepare(self, message: Prepare, needs: Needs) -> None:
        needs.heads.add(message.at.account)

    def needs_accept(self, message: Accept, needs: Needs) -> None:
        needs.heads.add(message.at.account)
        link = self._decoder.untrusted(message.link)
        self._proposed[link.hash] = link
        self.needs_check(link, needs)

    def needs_check(self, link: Link, needs: Needs) -> None:
        """What `follows` looks at."""
        needs.heads.add(link.account)
        if _is_checked(link):
            needs.assets |= self._replica.familiar.strangers(link.recipients)
            if link.confirmed:
                needs.postings.setdefault(link.account, set()).update(link.confirmed)
            needs.outcomes.update((link.account, request_id) for request_id, _ in link.outcomes())

    def needs_decided_hash(self, message: DecidedHash, needs: Needs) -> None:
        """What applies the link: this node voted for it, or is asked to in this very turn."""
        at, vote = message.at, self.vote(Slot(message.at.slot))
        needs.heads.add(at.account)
        needs.links_at.add((at.account, at.height))
        proposed = self._proposed.get(LinkHash(message.link))
        if vote is not None and vote.value is not None and vote.value.hash == message.link:
            self._replica.needs_decided(vote.value, needs)
        elif proposed is not None:
            self._replica.needs_decided(proposed, needs)

    def on_prepare(self, turn: Turn, peer: NodeId, message: Prepare) -> None:
        if not self._admits(turn, peer, message):
            return
        result = self.promise(turn, message.at, message.ballot)
        slot, ballot = message.at.slot, message.ballot
        if isinstance(result, Refusal):
            turn.send(peer, Refuse(slot, ballot, result.promised))
        else:
            raw = result.value.raw if result.value is not None else None
            turn.send(peer, Promise(slot, ballot, result.accepted, raw))

    def on_accept(self, turn: Turn, peer: NodeId, message: Accept) -> None:
        if not self._admits(turn, peer, message):
            return
        link = self._decoder.untrusted(message.link)
        check_vote_untrusted(message.at, link, self._self.network)
        if not self.follows(turn, peer, link):
            return  # no answer: others vote, if it is the database here that is damaged
        result = self.vote_for(turn, message.at, message.ballot, link)
        answer: Message = Accepted(message.at.slot, message.ballot)
        if isinstance(result, Refusal):
            answer = Refuse(message.at.slot, message.ballot, result.promised)
        turn.send(peer, answer)

    def on_decided_hash(self, turn: Turn, peer: NodeId, message: DecidedHash) -> None:
        vote = self.vote(Slot(message.at.slot))
        if vote is not None and vote.value is not None and vote.value.hash == message.link:
            self._replica.learn_vote(turn, vote.value, peer)
        else:
            self._replica.ask_for_link(turn, peer, message.at, LinkHash(message.link))

    def follows(self, turn: Turn, peer: NodeId, link: Link) -> bool:
        """False when `link`, which `peer` proposed or voted for in the slot after the tip here, could not be applied
        here (ADR 33): then one of two databases is damaged, and who voted for it would stop when it is decided. True
        also where not all is here by which to judge."""
        head = turn.loaded.heads.get(link.account)
        tip = head.slot if head is not None else opening_slot(self._self.network, link.account)
        confirmed = [turn.loaded.posting(h) for h in link.confirmed] if _is_checked(link) else [None]
        rows = [posting for posting in confirmed if posting is not None]
        if link.prev_hash != tip or len(rows) < len(confirmed):
            return True
        why = _fault(turn.loaded, link, head, rows, self._replica.familiar.assets)
        if why is not None:
            self._self.counters["links_doubted"] += 1
            self.doubted.setdefault(peer, f"link {link.height} of {link.account}: {why}")
        return not why

    def _admits(self, turn: Turn, peer: NodeId, message: Prepare | Accept) -> bool:
        """R2, R3, R11, R12. False when the message got its answer, or must wait for the parent."""
        check_proposer_untrusted(peer, message.ballot)
        if not self._identity.verified:
            return False  # no answer: the proposer sends again
        at, ballot = message.at, message.ballot
        head = turn.loaded.heads.get(at.account)
        after = next_slot(self._self.network, at.account, head)
        if after.height > at.height:
            turn.again.append(ServeSlot(peer, at))
            return False
        if after.height < at.height:
            self._replica.lacking.wait_for_parent(turn, peer, message)
            return False
        if at.slot != after.slot:  # else two links of one height could have a vote here, and names votes without an end
            raise RemoteFault(
                "malformed", f"slot {at.slot.hex()[:16]} is not the one after link {at.height - 1} of {at.account}"
            )
        group = self._self.view.group(route_key(at.slot))
        epoch = self._self.view.epoch
        fast = is_fast(at, ballot.node, head, group, epoch)
        active = self._self.is_active(route_key(at.slot))
        admission = admit(ballot, self._self.id, group, epoch, birth_epoch(head), fast=fast, active=active)
        if admission is Admission.BEHIND:
            turn.send(peer, AskViews(epoch))
        elif admission is Admission.REFUSE:
            turn.send(peer, Refuse(at.slot, ballot, Ballot(epoch, 0, self._self.id)))
            if ballot.epoch < epoch:
                self._send_views(turn, peer, ballot.epoch)
        return admission is Admission.VOTE

    def _send_views(self, turn: Turn, peer: NodeId, after: int) -> None:
        """R2: who proposes in an epoch that is over gets the views that it lacks, as if it had asked."""
        if self._views_sent.get(peer, float("-inf")) + VIEWS_AGAIN_S <= turn.now.mono:
            self._views_sent[peer] = turn.now.mono
            turn.again.append(FromPeer(peer, AskViews(after)))

    # --- transitions, also used by this node's own proposer ---

    def promise(self, turn: Turn, at: SlotName, ballot: Ballot) -> Vote[Link] | Refusal:
        return self._keep(turn, at, prepare(self.vote(Slot(at.slot)), ballot))

    def vote_for(self, turn: Turn, at: SlotName, ballot: Ballot, link: Link) -> Vote[Link] | Refusal:
        return self._keep(turn, at, accept(self.vote(Slot(at.slot)), ballot, link))

    def _keep(self, turn: Turn, at: SlotName, result: Vote[Link] | Refusal) -> Vote[Link] | Refusal:
        if isinstance(result, Vote) and result is not self.vote(Slot(at.slot)):
            turn.voted.add(at.slot)
            self._hold(at, result, turn.now.mono)
            turn.persist.append(
                VoteRow(
                    Slot(at.slot),
                    at.account,
                    at.height,
                    columns_of(result.promised),
                    columns_of(result.accepted) if result.accepted is not None else None,
                    result.value.raw if result.value is not None else None,
                )
            )
        return result

    def _hold(self, at: SlotName, vote: Vote[Link], now: float) -> None:
        slot = Slot(at.slot)
        self._drop(slot)
        held = self._held[slot] = _Held(at, vote, now + self._wait(slot, vote))
        if vote.accepted is not None:
            self._due.by(held.stuck_at)
        if vote.value is not None:
            for recipient in _indexed(vote.value):
                self._paying.setdefault(recipient, set()).add((at.height, at.account, slot))

    def _wait(self, slot: Slot, vote: Vote[Link]) -> float:
        """How long a vote may stay undecided before this node sees to it, seconds."""
        rank = self._self.view.rank_of(route_key(slot), self._self.id)
        return STUCK_S + STUCK_PER_RANK_S * ((rank or 0) + self._self.rng.random()) + _patience(vote)

    # --- views ---

    def values(self) -> Iterator[Link]:
        """The link of every vote that is not known to be decided."""
        for held in self._held.values():
            if held.vote.value is not None:
                yield held.vote.value

    def all_votes(self) -> Iterator[tuple[SlotName, Ballot, Link]]:
        """Every vote that is not known to be decided, in the order of slots: what this node tells whoever syncs
        (R8)."""
        for _, held in sorted(self._held.items()):
            if held.vote.accepted is not None and held.vote.value is not None:
                yield held.at, held.vote.accepted, held.vote.value

    def merge(self, turn: Turn, at: SlotName, ballot: Ballot, link: Link) -> None:
        """R8: keep the vote of another node when it is higher than the one here."""
        self._keep(turn, at, merge(self.vote(Slot(at.slot)), ballot, link))

    def on_view(self, turn: Turn) -> None:
        """Another view is installed: other ranks, other nodes that finish what is stuck, and others that lag."""
        self._views_sent.clear()
        for slot, held in self._held.items():
            held.stuck_at = turn.now.mono + self._wait(slot, held.vote)
            self._due.by(held.stuck_at)

    def on_applied(self, turn: Turn, link: Link, by: NodeId) -> None:
        """The slot of `link` is decided: the chain answers for it from now on."""
        self._drop(link.prev_hash)

    def _drop(self, slot: Slot) -> None:
        held = self._held.pop(slot, None)
        if held is None or held.vote.value is None:
            return
        for recipient in _indexed(held.vote.value):
            links = self._paying[recipient]
            links.remove((held.at.height, held.at.account, slot))
            if not links:
                del self._paying[recipient]

    # --- time ---

    def deadline(self) -> float | None:
        return self._due.at

    def tick(self, turn: Turn) -> None:
        """Finish what its proposer left behind."""
        self._proposed.clear()
        now = turn.now.mono
        if not self._due.passed(now):
            return
        for held in list(self._held.values()):
            if held.vote.accepted is not None and held.stuck_at <= now:
                held.stuck_at = now + STUCK_S * (1 + self._self.rng.random()) + _patience(held.vote)
                if self._self.is_active(route_key(held.at.slot)):
                    self.finish(turn, held.at)
            if held.vote.accepted is not None:
                self._due.by(held.stuck_at)


def _indexed(link: Link) -> Collection[str]:
    """Under which names a vote for `link` is found: an index of thousands of recipients costs more than asking it."""
    return link.recipients if len(link.recipients) <= MAX_INDEXED else (MANY,)


def _patience(vote: Vote[Link]) -> float:
    """How much longer than others this one may take, seconds, because its link is large."""
    return STUCK_HANDLINGS * handling_s(vote.value) if vote.value is not None else 0.0


def _is_checked(link: Link) -> bool:
    """Whether it is worth it, for a vote, to read what the link confirms and records."""
    return len(link.confirmed) + len(link.entries) <= MAX_CHECKED


def _fault(
    loaded: Loaded, link: Link, head: AccountHead | None, confirmed: Sequence[Credit], assets: Mapping[str, str]
) -> str | None:
    """Why `link` could not be applied here; None when it could."""
    settled: set[RequestId] = set()
    for request_id, _ in link.outcomes():
        if request_id in settled or (link.account, request_id) in loaded.outcomes:
            return f"it has an outcome of request {request_id.hex()[:16]}, which has one here"
        settled.add(request_id)
    return successor_fault(link, head, confirmed, assets, loaded.taken)


def _nobody(turn: Turn, at: SlotName) -> None:
    """What is stuck stays so: nobody is there yet who takes over."""

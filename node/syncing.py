"""Syncing: how a node becomes ACTIVE where the group of a key has changed (design R7, R8).

For every epoch that it installs, a node works out the regions in which it has to sync. It asks all members of the epoch
before (itself included) what they voted for; who answers has installed the new epoch, so it votes in the old one no
more (R5: the fence is durable with the transaction in which the answer leaves, and the votes are read after it). A
source's answer counts once

* all its parts, which are of one moment, are here: they are asked for one after the other, so that it comes whatever
  its size;
* every link of its log is applied here: what it had decided is no vote any more;
* for those keys for which the source itself was ACTIVE in the epoch before, or is in the new one;
* but not for the key of a vote that does not follow from the chain here (ADR 33): about that slot it is as if it had
  said nothing.

When answers of a majority of a region's old group count (or, for a node that comes late, of one of its new group that
is ACTIVE already: `sources_of`), the highest vote of each slot and the ACTIVE mark are written in one transaction.
Regions become ACTIVE one by one, so a dead neighbourhood stops only itself. A node that went on to the next epoch may
still complete the sync of the one before: others may need it as a source.
"""

from typing import Final

import msgspec

from chain.errors import RemoteFault
from chain.needs import Needs
from chain.rows import ActiveRow
from node.acceptor import Acceptor
from node.decoded import LinkDecoder
from node.epochs import Source, carried_over, first_active, includes, keys_of, sources_of, synced_parts, to_sync
from node.events import FinishSync
from node.identity import Identity
from node.messages import AskSync, AskViews, SyncPart, SyncVote
from node.paxos import check_ballot_untrusted
from node.peers import Peers
from node.pulling import Pulling
from node.replica import Replica
from node.slots import check_vote_untrusted, next_slot
from node.turn import Self, Turn
from routing.keyspace import NodeId, route_key
from routing.regions import EMPTY, Ranges, Region, decode_ranges, encode_ranges, holds, merge, regions, subtract
from routing.view import View

ASK_AGAIN_S: Final = 0.2
PART_BYTES: Final = 1024 * 1024  # of votes in one SyncPart
MAX_PARTS: Final = 10_000  # 10 GiB of votes
TOLD_S: Final = 60.0  # a source keeps the parts of an answer for so long after the last question for one
KEPT_EPOCHS: Final = 2  # a sync is completed for this epoch and, after an undo, for the one before (design R9)
LATE_EPOCHS: Final = 16  # and for so many by a node that is not ACTIVE everywhere yet


class _Answer(msgspec.Struct):
    """What one node has answered: the parts of one moment, its log's length and where it was ACTIVE then."""

    moment: int
    count: int
    log_id: int
    log: int
    active: Source
    parts: list[tuple[SyncVote, ...]] = msgspec.field(default_factory=list)  # the first ones
    came: bool = False  # a part, since the last look
    doubted: Ranges = EMPTY  # the keys of its votes that do not follow from the chain here: for these it says nothing

    @property
    def complete(self) -> bool:
        return len(self.parts) == self.count

    @property
    def votes(self) -> tuple[SyncVote, ...]:
        return tuple(vote for part in self.parts for vote in part)

    @property
    def counts(self) -> Source:
        """Where the answer counts: a vote that does not follow is one answer less for its own key, and for no other
        (ADR 33)."""
        return Source(subtract(self.active.before, self.doubted), subtract(self.active.after, self.doubted))


class _Told(msgspec.Struct):
    """What this node has answered to a question, as a source, in more than one part."""

    parts: list[SyncPart]
    until: float


class _Sync(msgspec.Struct):
    """The regions of one epoch in which this node is not ACTIVE yet."""

    before: View
    regions: tuple[Region, ...]
    number: int  # of the last question
    ask_at: float
    pause: float = ASK_AGAIN_S
    asked: dict[NodeId, int] = msgspec.field(default_factory=dict)  # who has not answered all -> number of the question
    arriving: dict[NodeId, _Answer] = msgspec.field(default_factory=dict)  # answers that are not complete
    sources: dict[NodeId, _Answer] = msgspec.field(default_factory=dict)

    def lacks(self, node: NodeId) -> bool:
        """True when `node` has given no answer that counts in all the regions whose group it was in, once its log is
        here."""
        if node not in self.sources:
            return True
        counts = self.sources[node].counts
        return any(
            (node in region.before and not includes(counts.before, region))
            or (node in region.after and not includes(counts.after, region))
            for region in self.regions
        )


class Syncing:
    """Where this node is ACTIVE, in every epoch, and what it does to become so."""

    def __init__(
        self,
        self_: Self,
        decoder: LinkDecoder,
        identity: Identity,
        peers: Peers,
        acceptor: Acceptor,
        replica: Replica,
        pulling: Pulling,
        views: list[View],
        active: dict[int, Ranges],
        now: float,
    ) -> None:
        self._self = self_
        self._decoder = decoder
        self._identity = identity
        self._peers = peers
        self._acceptor = acceptor
        self._replica = replica
        self._pulling = pulling
        self._views = views
        self._active = {views[0].epoch: first_active(views[0], self_.id), **active}
        self._syncs: dict[int, _Sync] = {}
        self._told: dict[tuple[NodeId, int], _Told] = {}  # by who asked and for which epoch
        for place in range(max(1, len(views) - LATE_EPOCHS), len(views)):
            self._begin(views[place - 1], views[place], now)
        self._forget_old(views[-1].epoch)
        self_.active = self.active_in(self_.view.epoch)
        self._note()

    def __len__(self) -> int:
        """In how many regions, of this epoch and the one before, this node is not ACTIVE yet."""
        return sum(len(sync.regions) for sync in self._syncs.values())

    def _note(self) -> None:
        sync = self._syncs.get(self._self.view.epoch)
        self._self.syncing_regions = len(sync.regions) if sync is not None else 0

    def active_in(self, epoch: int) -> Ranges:
        """The keys for which this node is ACTIVE in an epoch."""
        return self._active.get(epoch, EMPTY)

    def install(self, turn: Turn, before: View, after: View) -> None:
        """R7: `after` is installed in this turn: keep what did not change, sync the rest."""
        kept = carried_over(regions(before, after), self._self.id, self.active_in(before.epoch))
        self._mark(turn, after.epoch, kept)
        self._told.clear()
        self._begin(before, after, turn.now.mono)
        self._forget_old(after.epoch)
        self._note()

    def _forget_old(self, newest: int) -> None:
        """Earlier epochs are of use to who is not ACTIVE everywhere in the newest: what it becomes there carries over,
        and the group of a later epoch may have lost those who could tell."""
        kept = LATE_EPOCHS if newest in self._syncs else KEPT_EPOCHS
        for epoch in [epoch for epoch in self._syncs if epoch <= newest - kept]:
            del self._syncs[epoch]

    def _begin(self, before: View, after: View, now: float) -> None:
        missing = to_sync(regions(before, after), self._self.id, self.active_in(after.epoch))
        if missing:
            self._syncs[after.epoch] = _Sync(before, missing, self._self.rng.getrandbits(62), now)

    def _mark(self, turn: Turn, epoch: int, active: Ranges) -> None:
        if active != self.active_in(epoch):
            self._active[epoch] = active
            turn.persist.append(ActiveRow(epoch, encode_ranges(active)))
            turn.hold_together()
        if epoch == self._self.view.epoch:
            self._self.active = active

    # --- a source ---

    def on_ask_sync(self, turn: Turn, peer: NodeId, message: AskSync) -> None:
        if self._self.view.epoch < message.epoch:  # R8: only with the new epoch installed here
            turn.send(peer, AskViews(self._self.view.epoch))
            return
        if not self._identity.verified:  # R12: who may have lost votes is no source
            return
        turn.hold_together()  # a log of this length: a link that is lost again must not have been counted
        parts = self._parts(turn, peer, message)
        turn.send(peer, parts[message.part if message.part < len(parts) else 0])

    def _parts(self, turn: Turn, peer: NodeId, message: AskSync) -> list[SyncPart]:
        """The parts of the answer to this question: all of one moment, so those it was answered from before while they
        are here. They are no less true later: this node had installed the epoch then, and what it voted for since is of
        that epoch or a later one."""
        told = self._told.pop((peer, message.epoch), None)
        if told is None or told.parts[0].number != message.number:
            told = _Told(self._answer(message), 0.0)
        told.until = turn.now.mono + TOLD_S
        if len(told.parts) > 1:
            self._told[peer, message.epoch] = told
        return told.parts

    def _answer(self, message: AskSync) -> list[SyncPart]:
        """All votes of this moment, in parts. Also votes of the new epoch: they are higher, and do no harm."""
        active, now = (encode_ranges(self.active_in(epoch)) for epoch in (message.epoch - 1, message.epoch))
        batches: list[list[SyncVote]] = [[]]
        size = 0
        for at, ballot, link in self._acceptor.all_votes():
            if batches[-1] and size + len(link.raw) > PART_BYTES:
                batches.append([])
                size = 0
            batches[-1].append(SyncVote(at, ballot, link.raw))
            size += len(link.raw)
        log, log_id = self._replica.count, self._pulling.log_id
        moment = self._self.rng.getrandbits(62) if len(batches) > 1 else 0
        return [
            SyncPart(
                number=message.number,
                epoch=message.epoch,
                part=i,
                parts=len(batches),
                active=active,
                log=log,
                votes=tuple(batch),
                active_now=now,
                log_id=log_id,
                moment=moment,
            )
            for i, batch in enumerate(batches)
        ]

    # --- who syncs ---

    def on_sync_part(self, turn: Turn, peer: NodeId, message: SyncPart) -> None:
        sync = self._syncs.get(message.epoch)
        if sync is None or sync.asked.get(peer) != message.number:
            return
        answer = sync.arriving.get(peer)
        if answer is not None and answer.moment != message.moment:
            answer = None  # the source has begun anew: parts of two moments do not mix
        count = answer.count if answer is not None else message.parts
        if message.parts != count or not message.part < count <= MAX_PARTS:
            raise RemoteFault("malformed", f"part {message.part} of {message.parts} of a sync that has {count} parts")
        if answer is not None and message.part != len(answer.parts):
            return  # it came twice
        for vote in message.votes:
            check_ballot_untrusted(vote.ballot)
            check_vote_untrusted(vote.at, self._decoder.untrusted(vote.link), self._self.network)
        active = Source(decode_ranges(message.active), decode_ranges(message.active_now))
        known = sync.sources.get(peer)
        unchanged = known is not None and (known.active, known.log_id, known.doubted) == (active, message.log_id, EMPTY)
        if unchanged and answer is None:  # the answer that is here waits for the shorter log
            sync.arriving.pop(peer, None)
            del sync.asked[peer]
            return
        if answer is None:
            answer = sync.arriving[peer] = _Answer(message.moment, count, message.log_id, message.log, active)
        answer.came = True
        if message.part == len(answer.parts):
            answer.parts.append(message.votes)
        if not answer.complete:
            turn.send(peer, AskSync(message.number, message.epoch, len(answer.parts)))
            return
        del sync.arriving[peer], sync.asked[peer]
        sync.sources[peer] = answer
        self._pulling.follow(turn, peer, answer.log_id, answer.log)

    def _counted(self, sync: _Sync, epoch: int) -> dict[NodeId, Source]:
        """The sources whose answers count now, and where they were ACTIVE."""
        counted = {
            node: source.counts
            for node, source in sync.sources.items()
            if self._pulling.has_log(node, source.log_id, source.log)
        }
        if self._identity.verified:
            counted[self._self.id] = Source(self.active_in(epoch - 1), self.active_in(epoch))
        return counted

    def needs_finish(self, event: FinishSync, needs: Needs) -> None:
        sync = self._syncs.get(event.epoch)
        if sync is not None:
            for source in sync.sources.values():
                for vote in source.votes:
                    self._acceptor.needs_check(self._decoder.untrusted(vote.link), needs)

    def on_finish(self, turn: Turn, event: FinishSync) -> None:
        """Merge the votes of the regions for which a majority has answered, and mark them ACTIVE: one transaction."""
        sync = self._syncs.get(event.epoch)
        if sync is None:
            return
        counted = self._counted(sync, event.epoch)
        for node in sorted(counted.keys() & sync.sources.keys()):
            source = sync.sources[node]
            source.doubted = self._doubted(turn, node, source.votes)
            counted[node] = source.counts
        done = tuple(part for region in sync.regions for part in synced_parts(region, counted))
        if not done:
            return
        for region in done:
            for node in sources_of(region, counted):
                if node != self._self.id:
                    self._merge(turn, region, sync.sources[node].votes)
        self._mark(turn, event.epoch, merge((*self.active_in(event.epoch), *map(keys_of, done))))
        self._self.counters["regions_synced"] += len(done)
        sync.regions = to_sync(sync.regions, self._self.id, self.active_in(event.epoch))
        if not sync.regions:
            del self._syncs[event.epoch]
        self._carry_on(turn, event.epoch)
        self._forget_old(self._self.view.epoch)
        self._note()

    def _doubted(self, turn: Turn, node: NodeId, votes: tuple[SyncVote, ...]) -> Ranges:
        """The keys of the votes that could not be applied here, if they were decided."""
        keys = [
            int.from_bytes(route_key(vote.at.slot))
            for vote in votes
            if not self._acceptor.follows(turn, node, self._decoder.untrusted(vote.link))
        ]
        return merge((key, key) for key in keys)

    def _merge(self, turn: Turn, region: Region, votes: tuple[SyncVote, ...]) -> None:
        for vote in votes:
            if not holds((keys_of(region),), route_key(vote.at.slot)):
                continue
            after = next_slot(self._self.network, vote.at.account, turn.loaded.heads.get(vote.at.account))
            if after.height < vote.at.height or after == vote.at:
                # R11: the source voted on a decided link, which a crash may have taken from its log, but not the vote
                # (ADR 23)
                self._acceptor.merge(turn, vote.at, vote.ballot, self._decoder.untrusted(vote.link))
            elif after.height == vote.at.height:
                self._self.counters["sync_votes_of_another_chain"] += 1

    def _carry_on(self, turn: Turn, epoch: int) -> None:
        """What became ACTIVE late stays so in the epochs after, where the group is the same (R7)."""
        while epoch < self._self.view.epoch:
            before, after = self._views[epoch - self._views[0].epoch : epoch - self._views[0].epoch + 2]
            kept = carried_over(regions(before, after), self._self.id, self.active_in(epoch))
            epoch += 1
            active = merge((*self.active_in(epoch), *kept))
            self._mark(turn, epoch, active)
            sync = self._syncs.get(epoch)
            if sync is not None:
                sync.regions = to_sync(sync.regions, self._self.id, active)
                if not sync.regions:
                    del self._syncs[epoch]

    # --- time ---

    def deadline(self) -> float | None:
        return min((sync.ask_at for sync in self._syncs.values()), default=None)

    def tick(self, turn: Turn) -> None:
        """Ask whoever has not answered; finish what can be finished."""
        if self._told:
            self._told = {asker: told for asker, told in self._told.items() if told.until > turn.now.mono}
        if not self._syncs:
            self._pulling.follow_nobody()
        for epoch, sync in sorted(self._syncs.items()):
            counted = self._counted(sync, epoch)
            if any(synced_parts(region, counted) for region in sync.regions):
                turn.again.append(FinishSync(epoch))
            if sync.ask_at > turn.now.mono:
                continue
            sync.pause = min(2 * sync.pause, 8 * ASK_AGAIN_S)
            sync.ask_at = turn.now.mono + sync.pause + self._peers.rtt(sync.before.ids)
            wanted = {node for region in sync.regions for node in region.before | region.after} - {self._self.id}
            for node in sorted(wanted):
                source = sync.sources.get(node)
                read = source is not None and self._pulling.has_log(node, source.log_id, source.log)
                if source is not None and not read and self._pulling.is_replaced(node, source.log_id):
                    del sync.sources[node]  # it was started since, with another log: that one may never be had
                elif source is not None and not read:
                    self._pulling.follow(turn, node, source.log_id, source.log)
                if sync.lacks(node):  # also of who was not ACTIVE itself when it answered: it may be now
                    self._ask(turn, node, sync, epoch)

    def _ask(self, turn: Turn, node: NodeId, sync: _Sync, epoch: int) -> None:
        """Ask for the next part, unless one has come since the last look: it was asked for then. Asked again the number
        stays, and so do the parts that are here."""
        answer = sync.arriving.get(node)
        if answer is not None and answer.came:
            answer.came = False
            return
        if node not in sync.asked:
            sync.number += 1
            sync.asked[node] = sync.number
        turn.send(node, AskSync(sync.asked[node], epoch, len(answer.parts) if answer is not None else 0))

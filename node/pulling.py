"""Pulling: the logs of the peers, read where this replica lacks something.

* Decided links go out at once (`node.replica`), and every PULL_S a random peer is asked what its log holds that this
  one lacks. So a lost message costs time, never a link.
* R8 a cursor says that all links before it in one log are applied here; syncs rely on it (`has_log`). So it moves only
      behind what was compared from where it stood, and it belongs to a log, not to a node.
* Every process of a node begins another log, because its disk may be an older one than the last process had: what comes
  now is not what others have read behind that place. It says which earlier logs begin as its own does, and for how many
  links (`Offer.earlier`), so a cursor into one of them is worth as much in this one, and nobody compares all again.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Final

import msgspec

from chain.link import Link, LinkHash
from chain.needs import Needs
from chain.seal import CursorRow
from node.decoded import LinkDecoder
from node.events import NOBODY
from node.messages import Links, Offer, Pull, Want
from node.peers import Peers
from node.replica import Replica
from node.turn import Self, Turn
from routing.keyspace import ID_BYTES, NodeId

PULL_S: Final = 2.0
PULL_TIMEOUT_S: Final = 3.0  # then the pull is given up and another peer asked
FOLLOW_S: Final = 0.1  # the same while this node syncs, and a few round trips more
FOLLOW_RTTS: Final = 8
REST_S: Final = 0.1  # until a page is compared again of which links waited at its end
PULL_BATCH: Final = 512  # hashes of one Want
LOG_ID_BITS: Final = 62
EARLIER: Final = 16  # logs before its own that a node tells of; who has read none of them compares from the start


class _Puller(msgspec.Struct):
    peer: NodeId
    log_id: int
    after: int
    until: float
    told: tuple[int, bytes]  # of this replica, with the question: (count, accumulator)
    dropped: bool = False  # a link of its page: the cursor stays
    offer: Offer | None = None
    wanted: deque[bytes] = msgspec.field(default_factory=deque)
    asked: dict[bytes, None] = msgspec.field(default_factory=dict)  # in order: what has not come of the last Want
    batch: int = 0  # how many that Want named
    ended: bool = False  # its answer, before all of them


class Pulling:
    """The logs that this node reads, and its own that others read."""

    def __init__(
        self, self_: Self, decoder: LinkDecoder, peers: Peers, replica: Replica, cursors: dict[NodeId, int]
    ) -> None:
        self._self = self_
        self._decoder = decoder
        self._peers = peers
        self._replica = replica
        self._cursors: dict[bytes, int] = dict(cursors.items())  # by `log_name`
        self.log_id: Final = self_.rng.getrandbits(LOG_ID_BITS) + 1
        self._unwritten = self._begin(replica.count)
        self._earlier = self._earlier_logs()
        self._log_ids: dict[NodeId, int] = {}  # as the peers have told in this life
        self._earlier_of: dict[NodeId, tuple[tuple[int, int], ...]] = {}  # `Offer.earlier` of these
        self._puller: _Puller | None = None
        self._next_pull = 0.0
        self._follow: dict[NodeId, tuple[int, int]] = {}  # peers of whom this log must be read up to here (design R8)
        self.voted: Callable[[], Iterable[Link]] = tuple  # the links that have this node's vote and are undecided here
        self._offered: dict[LinkHash, Link] = {}  # those of them that a peer's log holds; in this turn
        replica.lacking.pulled = self._pulled
        replica.lacking.on_dropped = self._note_dropped

    def _pulled(self, peer: NodeId) -> Collection[bytes]:
        return self._puller.asked if self._puller is not None and self._puller.peer == peer else ()

    def _note_dropped(self, link: LinkHash) -> None:
        if self._puller is not None and (link in self._puller.asked or link in self._offered):
            self._puller.dropped = True

    # --- cursors ---

    def _begin(self, count: int) -> list[CursorRow]:
        """A log that begins as the last one of this disk did, with `count` links: the rows that say so."""
        node, last = self._self.id, self._cursors.get(self._self.id, 0)
        begun: dict[bytes, int] = {node: self.log_id}
        if last:
            begun |= {_before_name(node, self.log_id): last, log_name(node, last): count}
        self._cursors |= begun
        return [CursorRow(name, value) for name, value in begun.items()]

    def _earlier_logs(self) -> tuple[tuple[int, int], ...]:
        """The last logs of this disk before this one, newest first: (id, with how many links of it this one begins)."""
        node, log_id = self._self.id, self.log_id
        earlier: list[tuple[int, int]] = []
        while len(earlier) < EARLIER and (log_id := self._cursors.get(_before_name(node, log_id), 0)):
            earlier.append((log_id, self._cursors.get(log_name(node, log_id), 0)))
        return tuple(earlier)

    def follow(self, turn: Turn, peer: NodeId, log_id: int, upto: int) -> None:
        """Read this log of `peer` up to this length as soon as possible: `has_log` tells when it is applied here."""
        self._log_ids[peer] = log_id
        if not self.has_log(peer, log_id, upto):
            known, length = self._follow.get(peer, (log_id, 0))
            self._follow[peer] = (log_id, max(upto, length) if known == log_id else upto)
            if self._puller is None:
                self.pull_soon(turn.now.mono)

    def follow_nobody(self) -> None:
        """Nobody waits for a log any more."""
        self._follow.clear()

    def has_log(self, peer: NodeId, log_id: int, upto: int) -> bool:
        """True when every link in the first `upto` of this log of `peer` is applied here."""
        return self._cursors.get(log_name(peer, log_id), 0) >= upto

    def is_replaced(self, peer: NodeId, log_id: int) -> bool:
        """True when `peer` has begun another log than this."""
        return self._log_ids.get(peer, log_id) != log_id

    def _cursor(self, peer: NodeId) -> int:
        """How far the log that `peer` has now is read; 0 while it has not told which one that is."""
        return self._cursors.get(log_name(peer, self._log_ids.get(peer, 0)), 0)

    def _go_on(self, turn: Turn, peer: NodeId, offer: Offer) -> None:
        """Nothing is read of this log: all that was read of an earlier one is, as far as both are the same."""
        read = (min(self._cursors.get(log_name(peer, log), 0), length) for log, length in offer.earlier)
        if not self._cursor(peer):
            self._move_cursor(turn, peer, offer.log_id, max(read, default=0))

    def _move_cursor(self, turn: Turn, peer: NodeId, log_id: int, upto: int) -> None:
        name = log_name(peer, log_id)
        if self._cursors.get(name, 0) != upto:
            self._cursors[name] = upto
            turn.applied.append(CursorRow(name, upto))

    # --- a peer reads the log of this node ---

    def _after(self, message: Pull) -> int:
        return message.after if message.log_id == self.log_id else 0

    def needs_pull(self, message: Pull, needs: Needs) -> None:
        needs.log.add(self._after(message))
        needs.log_head = True

    def on_pull(self, turn: Turn, peer: NodeId, message: Pull) -> None:
        log = turn.loaded.log_head
        assert log is not None
        after = self._after(message)
        earlier = () if after else self._earlier
        if (message.count, message.accumulator) == (log.count, log.xor):
            turn.send(peer, Offer((), log.seq, log.seq, log.count, after, self.log_id, earlier, log.xor))
            return
        page = turn.loaded.log[after]
        turn.send(peer, Offer(page.hashes, page.last_seq, log.seq, log.count, after, self.log_id, earlier))

    # --- this node reads that of a peer ---

    def pull_soon(self, now: float) -> None:
        """Compare logs at once, or then: a connection stands again, or more is to be had."""
        self._next_pull = now

    def on_down(self, turn: Turn, peer: NodeId) -> None:
        """What was asked of `peer` does not come: ask another one."""
        if self._puller is not None and self._puller.peer == peer:
            self._puller = None
            self.pull_soon(turn.now.mono)

    def needs_offer(self, message: Offer, needs: Needs) -> None:
        offered = {LinkHash(h) for h in message.hashes}
        needs.known |= offered
        for link in self.voted():
            if link.hash in offered:  # a log holds decided links only, so this one is, and it is here
                self._offered[link.hash] = link
                self._replica.needs_link(link, needs)

    def on_offer(self, turn: Turn, peer: NodeId, message: Offer) -> None:
        puller = self._puller
        if puller is None or puller.peer != peer:
            return
        if message.accumulator and (message.count, message.accumulator) != puller.told:
            return  # said to another process of this node: that one's replica was equal
        if message.after == 0 and (puller.after == 0 or message.log_id != puller.log_id):
            self._log_ids[peer], self._earlier_of[peer] = message.log_id, message.earlier
            self._go_on(turn, peer, message)
            if self._cursor(peer) > 0 and message.hashes:  # so much of it is read: go on there
                self._puller = None
                self.pull_soon(turn.now.mono)
                return
        elif (message.log_id, message.after) != (puller.log_id, puller.after):
            return  # the answer to an earlier question: between its end and this cursor nothing was compared
        known = turn.loaded.known
        if not message.hashes and message.count > self._replica.count:
            self._move_cursor(turn, peer, message.log_id, 0)  # a gap before the cursor: compare from the start
            for log, _ in self._earlier_of.get(peer, ()):
                self._move_cursor(turn, peer, log, 0)  # nor may a later log go on from one of these
            self._puller = None
            return
        here = [link for h in message.hashes if (link := self._offered.get(LinkHash(h))) is not None]
        for link in here:
            self._replica.learn(turn, link, peer, NOBODY)
        puller.offer = message
        lacking = (h for h in message.hashes if h not in known and h not in self._offered)
        puller.wanted = deque(h for h in lacking if h not in self._replica.lacking)
        self._want_more(turn, puller)

    def on_links(self, turn: Turn, peer: NodeId, message: Links) -> None:
        """These links were learned. Ask for more when all that was asked for has come, or the answer has ended, with
        something in it."""
        puller = self._puller
        if puller is None or puller.peer != peer or not puller.asked:
            return
        before = len(puller.asked)
        for raw in message.links:
            puller.asked.pop(self._decoder.untrusted(raw).hash, None)
        if len(puller.asked) < before:
            puller.until = turn.now.mono + self._timeout(peer)
        if not message.links and len(puller.asked) < puller.batch:  # else it ends another answer
            puller.ended = True
        if puller.ended:
            puller.wanted.extendleft(reversed(puller.asked))
            puller.asked.clear()
        if not puller.asked:
            self._want_more(turn, puller)

    def _want_more(self, turn: Turn, puller: _Puller) -> None:
        puller.until = turn.now.mono + self._timeout(puller.peer)
        if puller.wanted:
            batch = [puller.wanted.popleft() for _ in range(min(PULL_BATCH, len(puller.wanted)))]
            puller.asked = dict.fromkeys(batch)
            puller.batch, puller.ended = len(batch), False
            turn.send(puller.peer, Want(links=tuple(batch)))
            return
        offer, self._puller = puller.offer, None
        assert offer is not None
        # What waits and is of another page is none of this one's business: it may need the next pages.
        complete = not puller.dropped and not any(h in self._replica.lacking for h in offer.hashes)
        if complete:
            self._move_cursor(turn, puller.peer, offer.log_id, offer.upto)
        log_id, upto = self._follow.get(puller.peer, (0, 0))
        if self.is_replaced(puller.peer, log_id) or self.has_log(puller.peer, log_id, upto):
            self._follow.pop(puller.peer, None)
        more = offer.upto < offer.head and complete
        alive = self._alive(turn)
        ahead = self._ahead(alive)
        # This peer had no more, as it is catching up itself, say; nobody is asked twice in a row for nothing.
        elsewhere = complete and bool(ahead) and (bool(offer.hashes) or puller.peer not in ahead)
        if more or elsewhere or any(peer in self._follow for peer in alive):
            self.pull_soon(turn.now.mono)
        elif not complete and not puller.dropped:
            self.pull_soon(turn.now.mono + REST_S)

    def _alive(self, turn: Turn) -> list[NodeId]:
        return [p for p in self._peers.connected() if self._peers.alive(p, turn.now)]

    def _ahead(self, alive: list[NodeId]) -> list[NodeId]:
        """The members that have much that this node lacks, and at least half of what anybody has: others may be
        catching up, too."""
        links = {p: self._peers.links(p) for p in alive if self._self.view.is_member(p)}
        half = (max(links.values(), default=0) + self._replica.count) // 2
        return [p for p, there in links.items() if there >= half and self._replica.is_far_behind(there)]

    def _timeout(self, peer: NodeId) -> float:
        """How long a pull may be silent; when somebody waits for it, little more than its round trips take."""
        return (
            min(PULL_TIMEOUT_S, FOLLOW_S + FOLLOW_RTTS * self._peers.rtt((peer,))) if self._follow else PULL_TIMEOUT_S
        )

    # --- time ---

    def deadline(self) -> float:
        """When a log is to be asked for: another one, when this one is silent for too long."""
        return self._puller.until if self._puller is not None else self._next_pull

    def needs_tick(self, now: float, needs: Needs) -> None:
        needs.log_head = needs.log_head or now >= self.deadline()

    def tick(self, turn: Turn) -> None:
        """Compare logs with a random living peer; while this node is far behind, with one that is ahead."""
        now = turn.now.mono
        self._offered.clear()
        turn.persist += self._unwritten
        self._unwritten = []
        log = turn.loaded.log_head
        if now < self.deadline() or log is None:  # None: it became time within this turn; the next one has it
            return
        self._puller = None
        self._next_pull = now + PULL_S * (0.5 + self._self.rng.random())
        alive = self._alive(turn)
        members = [p for p in alive if self._self.view.is_member(p)] or alive
        wanted = [p for p in alive if p in self._follow] or self._ahead(alive) or members
        if wanted:
            peer = self._self.rng.choice(wanted)
            log_id, after = self._log_ids.get(peer, 0), self._cursor(peer)
            self._puller = _Puller(peer, log_id, after, now + self._timeout(peer), (log.count, log.xor))
            turn.send(peer, Pull(after, log.count, log.xor, log_id))


def log_name(peer: NodeId, log_id: int) -> bytes:
    """What the cursor into a log is kept under, 20 bytes. (Under a node's own id: the id of its own log.)"""
    return hashlib.sha256(b"hopchain:log:1\0" + peer + log_id.to_bytes(8)).digest()[:ID_BYTES]


def _before_name(node: NodeId, log_id: int) -> bytes:
    """What the id of the log is kept under that this disk had before this one, 20 bytes."""
    return hashlib.sha256(b"hopchain:log-before:1\0" + node + log_id.to_bytes(8)).digest()[:ID_BYTES]

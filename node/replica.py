"""Replica: how decided links reach this node's chains, and how this node helps others.

* R11 only decided links come here, and none is judged again: `check_successor` failing means that this replica is
      damaged, and the node stops. Two successors of one link stop it too.
* A link waits until all it stands on is applied: the link before it, the openings of the accounts it pays, the
  postings it confirms. What it lacks is asked for, at its sender first, then at others; one question brings it for all that wait
  for it. The last of what it lacked wakes it.
* Decided links go out at once (directly, or along a Kademlia broadcast tree in large networks), and every PULL_S a
  random peer is asked what its log holds that this one lacks. So a lost message costs time, never a link.
* Who lacks FAR_BEHIND links or more reads them from that log alone: each stands on those before it. To ask for what new links
  wait for would bring, for each of them, much of what is about to come, again and again.
* R8 a cursor says that all links before it in one log are applied here; syncs rely on it (`has_log`). So it moves only behind
      what was compared from where it stood, and it belongs to a log, not to a node: who joins again begins another one.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Final

import msgspec

from chain.errors import Corruption, RemoteFault
from chain.link import Link, LinkHash, PostingHash
from chain.names import MAX_AMOUNT
from chain.needs import CHAIN_BATCH, Loaded, Needs
from chain.rows import AccountHead, Applied, Credit, Forming, OutcomeRow
from chain.rules import check_successor
from chain.store import CursorRow
from node.familiar import Familiar
from node.messages import (
    Accept,
    Decided,
    DecidedHash,
    Forward,
    Links,
    Message,
    Moved,
    Offer,
    Prepare,
    Pull,
    SlotAnswer,
    SlotName,
    Want,
)
from node.peers import Peers
from node.turn import FromPeer, Learn, LinkDecoder, Self, ServeSlot, Turn
from routing.broadcast import LEAF, targets
from routing.keyspace import ID_BYTES, NodeId, route_key

PULL_S: Final = 2.0
PULL_TIMEOUT_S: Final = 3.0  # then the pull is given up and another peer asked
FOLLOW_S: Final = 0.1  # the same while this node syncs, and a few round trips more
FOLLOW_RTTS: Final = 8
WANT_AGAIN_S: Final = 0.3  # for a chain, and for postings at a peer that does not answer
MAX_WANT_AGAIN_S: Final = 2.4  # each look searches for all that a link confirms, up to 8,190 hashes
MAX_EARLY: Final = 10_000  # messages about slots whose parent is not here yet; above it they are dropped
MAX_EARLY_BYTES: Final = 64 * 1024 * 1024  # of their links and requests; proposals, which come again, take half of it
MAX_WAITING: Final = 10_000  # links that wait; above it they are dropped, and pulled again later
MAX_WAITING_BYTES: Final = 64 * 1024 * 1024  # and their bytes; decoded they take about twice as many
WANT_BATCH: Final = 512  # hashes, and chains, of one Want
FAR_BEHIND: Final = 512  # links: more than are on their way while all goes well, and one question fetches them
LOG_ID_BITS: Final = 62
REPLY_BYTES: Final = 1024 * 1024  # of one Links message

AppliedHook = Callable[[Turn, Link, NodeId], None]

_At = tuple[str, int]  # the link of this account at this height
_Key = _At | PostingHash  # what a waiting link waits for


class _Waiting(msgspec.Struct):
    link: Link
    source: NodeId
    by: NodeId
    missing: dict[_Key, None]  # in order; what comes is taken out
    ask_at: float
    pause_s: float  # until it is looked at again after that, though something that it waits for has not come


class _Asked(msgspec.Struct):
    """A question for the chain of an account."""

    peer: NodeId
    at: float
    last: int  # an answer of one batch ends at this height
    goal: int  # the highest link that anybody waits for


class _PostingsAsked(msgspec.Struct):
    """A question for postings that waiting links confirm. A peer has one at a time: many may be of one large link."""

    at: float  # or when some came last
    lacking: set[PostingHash]  # what has not come of it


class _Puller(msgspec.Struct):
    peer: NodeId
    log_id: int
    after: int
    until: float
    dropped: bool = False  # a link of its page: the cursor stays
    offer: Offer | None = None
    wanted: deque[bytes] = msgspec.field(default_factory=deque)
    asked: dict[bytes, None] = msgspec.field(default_factory=dict)  # in order: what has not come of the last Want
    batch: int = 0  # how many that Want named
    ended: bool = False  # its answer, before all of them


class Replica:
    """The chains of this node, as the core sees them. `hooks` are told of every applied link, in order."""

    def __init__(self, self_: Self, decoder: LinkDecoder, peers: Peers, count: int, cursors: dict[NodeId, int]) -> None:
        self._self = self_
        self._decoder = decoder
        self._peers = peers
        self._cursors: dict[bytes, int] = dict(cursors.items())  # by `log_name`
        self._log_id = self._cursors.get(self_.id, 0)
        self._log_ids: dict[NodeId, int] = {}  # as the peers have told in this life
        self._waiting: dict[LinkHash, _Waiting] = {}
        self._waiters: dict[_Key, set[LinkHash]] = {}
        self._waiting_bytes = 0
        self._early: dict[_At, list[FromPeer]] = {}  # by the link that they wait for
        self._early_count = 0
        self._early_bytes = 0
        self._asked: dict[str, _Asked] = {}  # by account, for its chain
        self._postings_asked: dict[NodeId, _PostingsAsked] = {}
        self._coming: set[PostingHash] = set()  # those waited for which a link makes that waits itself
        # And for a chain of which it had told: when, and up to which height.
        self._inquired: dict[tuple[NodeId, str], tuple[float, int]] = {}
        self._puller: _Puller | None = None
        self._next_pull = 0.0
        self._follow: dict[NodeId, tuple[int, int]] = {}  # peers of whom this log must be read up to here (design R8)
        self.familiar = Familiar()
        self.count = count
        self.hooks: list[AppliedHook] = []
        self.voted: Callable[[], Iterable[Link]] = tuple  # the links that have this node's vote and are undecided here
        self._offered: dict[LinkHash, Link] = {}  # those of them that a peer's log holds; in this turn

    @property
    def _is_far_behind(self) -> bool:
        """By the last pings."""
        return max(map(self._peers.links, self._peers.connected()), default=0) >= self.count + FAR_BEHIND

    def __len__(self) -> int:
        """How many links wait for what they stand on."""
        return len(self._waiting)

    # --- decided links ---

    def announce(self, turn: Turn, link: Link, voters: Collection[NodeId]) -> None:
        """Tell everybody that `link` is decided; the caller counted the votes. Who is among the `voters` has the link, and gets its
        hash instead of it."""
        if link.prev_hash in turn.voted:  # this node's vote alone decided it: nobody else could say so after a crash
            turn.hold_together()
        self._pass_on(turn, link, self._self.id, depth=0, voters=voters)
        guests = [peer for peer in self._peers.connected() if not self._self.view.is_member(peer)]
        if guests:
            message = Decided(link.raw, self._self.id, LEAF)
            for guest in guests:
                turn.tell(link, guest, message)
        self.learn_vote(turn, link, self._self.id)

    def _pass_on(self, turn: Turn, link: Link, by: NodeId, depth: int, *, voters: Collection[NodeId] = ()) -> None:
        """Whoever is to tell others gets the link in any case."""
        alive = [node for node in self._self.view.ids if self._peers.alive(node, turn.now)]
        hashed = DecidedHash(SlotName(link.prev_hash, link.account, link.height), link.hash)
        messages: dict[int, Decided] = {}  # one object for all of one depth: it is encoded once
        for target in targets(alive, self._self.id, depth, route_key(link.prev_hash)):
            if target.node in voters and target.depth == LEAF:
                turn.tell(link, target.node, hashed)
            else:
                message = messages.setdefault(target.depth, Decided(link.raw, by, target.depth))
                turn.tell(link, target.node, message)

    def learn_vote(self, turn: Turn, link: Link, by: NodeId) -> None:
        """`link`, which this node has voted for, is decided: `by` counted the votes."""
        head = turn.loaded.heads.get(link.account)
        if self._missing(turn, link, head.height if head is not None else -1):
            turn.again.append(Learn(link, by))  # a vote that phase 1 found, say: its rows are not of this turn
        else:
            self.learn(turn, link, by, by)

    def ask_for_link(self, turn: Turn, peer: NodeId, at: SlotName, link: LinkHash) -> None:
        """`link` is decided in `at`, as `peer` says, and is not among the votes: it is here, or is asked for with what is before it."""
        head = turn.loaded.heads.get(at.account)
        if head is None or head.height < at.height:
            self._want_chain(turn, peer, at.account, at.height)
        else:
            self._check_same(at.account, at.height, turn.loaded.links_at.get((at.account, at.height)), link)

    def _want_chain(self, turn: Turn, peer: NodeId, account: str, goal: int) -> None:
        chains = self._chain_to_ask(turn, peer, account, goal)
        if chains:
            turn.send(peer, Want(chains=chains))

    def _chain_to_ask(self, turn: Turn, peer: NodeId, account: str, goal: int) -> tuple[_At, ...]:
        """What to ask `peer` for, somebody waiting for link `goal` of the account: nothing when the chain was just asked for, or the log
        brings it. One question brings it, however many messages and links wait for it."""
        if self._is_far_behind:
            return ()
        asked = self._asked.get(account)
        if asked is not None and asked.at + WANT_AGAIN_S > turn.now.mono:
            asked.goal = max(asked.goal, goal)
            return ()
        head = turn.loaded.heads.get(account)
        first = head.height + 1 if head is not None else 0
        if len(self._asked) >= MAX_EARLY:
            self._asked.clear()  # it costs a question more
        self._asked[account] = _Asked(peer, turn.now.mono, first + CHAIN_BATCH - 1, goal)
        return ((account, first),)

    def want_chains(self, turn: Turn, peer: NodeId, lacking: Iterable[tuple[str, int, int]]) -> None:
        """Ask `peer` for these chains (account, first height, the highest that it has), but not for what it was just asked for. Others
        are asked besides it: who tells of a link may have no more of it than a vote."""
        chains = []
        for account, first, goal in lacking:
            at, height = self._inquired.get((peer, account), (float("-inf"), -1))
            if at + WANT_AGAIN_S <= turn.now.mono or height < goal:
                self._inquired[peer, account] = turn.now.mono, goal
                chains.append((account, first))
        if chains:
            turn.send(peer, Want(chains=tuple(chains)))

    def _chain_came(self, turn: Turn, link: Link) -> None:
        """Forget the question when all that anybody waits for is here; ask on when its answer was a whole batch."""
        asked = self._asked.get(link.account)
        if asked is None or link.height < min(asked.last, asked.goal):
            return
        del self._asked[link.account]
        if link.height < asked.goal:
            self._want_chain(turn, asked.peer, link.account, asked.goal)

    def needs_link(self, link: Link, needs: Needs) -> None:
        """What must be looked at to apply `link`."""
        needs.heads.add(link.account)
        needs.links_at.add((link.account, link.height))
        if link.confirmed:
            needs.postings.setdefault(link.account, set()).update(link.confirmed)
        needs.made.update(link.posting_hashes)
        needs.assets |= self.familiar.strangers(link.recipients)

    def needs_links(self, raws: Iterable[bytes], needs: Needs) -> None:
        for raw in raws:
            self.needs_decided(self._decoder.untrusted(raw), needs)

    def needs_decided(self, link: Link, needs: Needs) -> None:
        """As `needs_link`, for one that arrives now: what comes behind it stands on it."""
        self.needs_link(link, needs)
        self.familiar.expect(link)

    def on_decided(self, turn: Turn, peer: NodeId, message: Decided) -> None:
        link = self._decoder.untrusted(message.link)
        self._check_network(link)
        if message.depth < LEAF:
            self._pass_on(turn, link, message.by, message.depth)
        self.learn(turn, link, peer, message.by)

    def on_links(self, turn: Turn, peer: NodeId, message: Links) -> None:
        for raw in message.links:
            self.learn(turn, self._decoder.untrusted(raw), peer, peer)
        self._chains_on(turn, peer, message)
        self._postings_on(turn, peer, message)
        self._pull_on(turn, peer, message)

    def _chains_on(self, turn: Turn, peer: NodeId, message: Links) -> None:
        """Ask on for the chains of which the answer held fewer links than a batch, because they are large."""
        pulled = self._puller.asked if self._puller is not None and self._puller.peer == peer else {}
        links = map(self._decoder.untrusted, message.links)
        for account, height in {link.account: link.height for link in links if link.hash not in pulled}.items():
            asked, head = self._asked.get(account), turn.loaded.heads.get(account)
            if asked is None or asked.peer != peer or head is None or head.height != height or height >= asked.goal:
                continue
            if asked.last >= height + CHAIN_BATCH:
                continue  # what comes next was asked for when this came
            del self._asked[account]
            self._want_chain(turn, peer, account, asked.goal)

    def _postings_on(self, turn: Turn, peer: NodeId, message: Links) -> None:
        """When all postings that the peer was asked for have come, ask it for those that are lacking now."""
        asked = self._postings_asked.get(peer)
        if asked is None:
            return
        before = len(asked.lacking)
        for raw in message.links:
            asked.lacking.difference_update(self._decoder.untrusted(raw).posting_hashes)
        if len(asked.lacking) < before:
            asked.at = turn.now.mono
        if not asked.lacking:
            del self._postings_asked[peer]
            self._ask(turn, peer, (), self._waiting.values())

    def on_learn(self, turn: Turn, event: Learn) -> None:
        self.learn(turn, event.link, event.by, event.by)

    def learn(self, turn: Turn, link: Link, source: NodeId, by: NodeId) -> None:
        """Apply a decided link, or let it wait for what it stands on."""
        self._check_network(link)
        loaded = turn.loaded
        head = loaded.heads.get(link.account)
        height = head.height if head is not None else -1
        if link.height <= height:
            self._check_same(link.account, link.height, loaded.links_at.get((link.account, link.height)), link.hash)
            return
        missing = self._missing(turn, link, height)
        if missing:
            self._wait(turn, link, source, by, missing)
            return
        confirmed = tuple([loaded.postings[h] for h in link.confirmed])
        check_successor(link, head, confirmed)
        turn.applied.append(Applied(link, confirmed))
        note_applied(turn, link, head, confirmed)
        self.familiar.meet(turn.loaded.heads[link.account])
        self.count += 1
        self._stop_waiting(link.hash)
        for hook in self.hooks:
            hook(turn, link, by)
        self._wake(turn, link)
        self._chain_came(turn, link)

    def _check_same(self, account: str, height: int, here: bytes | None, elsewhere: bytes) -> None:
        if here is not None and here != elsewhere:
            raise Corruption(
                f"two successors: link {height} of {account} is {here.hex()} here and "
                f"{elsewhere.hex()} elsewhere; this node stops; run `hopchain verify --cluster`"
            )

    def _check_network(self, link: Link) -> None:
        if link.network != self._self.network:
            raise RemoteFault("other_network", f"link {link.height} of {link.account} is of another network")

    def _missing(self, turn: Turn, link: Link, height: int) -> dict[_Key, None]:
        loaded = turn.loaded
        keys: list[_Key] = []
        if link.height > height + 1:
            keys.append((link.account, link.height - 1))
        keys += [(name, 0) for name in sorted(self.familiar.strangers(link.recipients))]
        keys += [h for h in link.confirmed if loaded.posting(h) is None]
        return dict.fromkeys(keys)

    # --- waiting ---

    def _wait(self, turn: Turn, link: Link, source: NodeId, by: NodeId, missing: dict[_Key, None]) -> None:
        known = self._waiting.get(link.hash)
        full = len(self._waiting) >= MAX_WAITING or self._waiting_bytes + len(link.raw) > MAX_WAITING_BYTES
        if known is None and full:
            self._self.counters["links_dropped"] += 1
            if self._puller is not None and (link.hash in self._puller.asked or link.hash in self._offered):
                self._puller.dropped = True
            return
        self._stop_waiting(link.hash)
        ask_at, pause_s = turn.now.mono + WANT_AGAIN_S, WANT_AGAIN_S
        if known is not None:
            ask_at, pause_s = known.ask_at, known.pause_s
        waiting = _Waiting(link, source, by, missing, ask_at, pause_s)
        self._waiting[link.hash] = waiting
        self._waiting_bytes += len(link.raw)
        for key in missing:
            self._waiters.setdefault(key, set()).add(link.hash)
        self._coming.update(h for h in link.posting_hashes if h in self._waiters)
        if known is None:
            self._self.counters["links_waited"] += 1
            puller = self._puller
            if puller is None or puller.peer != source or link.hash not in puller.asked:
                # else what it stands on is before it in that log, and was asked for
                self._ask(turn, source, (waiting,), (waiting,))

    def _ask(self, turn: Turn, peer: NodeId, chains_of: Iterable[_Waiting], postings_of: Iterable[_Waiting]) -> None:
        """Ask `peer` for the chains and the postings that these links lack, without what was just asked for."""
        if peer == self._self.id or self._is_far_behind:
            return
        chains: list[_At] = []
        for key in chain.from_iterable(waiting.missing for waiting in chains_of):
            if isinstance(key, tuple) and len(chains) < WANT_BATCH:
                chains += self._chain_to_ask(turn, peer, *key)
        postings: dict[PostingHash, None] = {}
        if peer not in self._postings_asked:
            lacking = chain.from_iterable(waiting.missing for waiting in postings_of)
            wanted = (key for key in lacking if not isinstance(key, tuple) and key not in self._coming)
            postings = dict.fromkeys(islice(wanted, WANT_BATCH))
        if postings:
            self._postings_asked[peer] = _PostingsAsked(turn.now.mono, set(postings))
        if chains or postings:
            turn.send(peer, Want(tuple(chains), (), tuple(postings)))

    def _stop_waiting(self, link: LinkHash) -> None:
        waiting = self._waiting.pop(link, None)
        if waiting is None:
            return
        self._waiting_bytes -= len(waiting.link.raw)
        for key in waiting.missing:
            links = self._waiters[key]
            links.discard(link)
            if not links:
                del self._waiters[key]

    def _wake(self, turn: Turn, link: Link) -> None:
        """Go on with what waited for `link` and now for nothing else: every link is applied here, one height after the other, so
        nothing is passed over."""
        at = (link.account, link.height)
        for early in self._early.pop(at, ()):
            self._early_count -= 1
            self._early_bytes -= _size(early.message)
            turn.again.append(early)
        if not self._waiters:
            return
        ready: list[_Waiting] = []
        keys: list[_Key] = [at, *link.posting_hashes]
        self._coming.difference_update(link.posting_hashes)
        for key in keys:
            for waiter in self._waiters.pop(key, ()):
                waiting = self._waiting[waiter]
                del waiting.missing[key]
                if not waiting.missing:
                    ready.append(waiting)
        ready.sort(key=lambda w: (w.link.account, w.link.height))
        turn.again += [Learn(waiting.link, waiting.by) for waiting in ready]

    def wait_for_parent(self, turn: Turn, peer: NodeId, message: Accept | Prepare | Forward) -> None:
        """A message about a slot whose parent is not applied here: ask its sender for the chain, and handle the message
        again when the parent is. Links and messages of several senders overtake each other all the time."""
        parent = (message.at.account, message.at.height - 1)
        self._want_chain(turn, peer, *parent)
        room = MAX_EARLY_BYTES if isinstance(message, Forward) else MAX_EARLY_BYTES // 2
        if self._early_count >= MAX_EARLY or self._early_bytes + _size(message) > room:
            self._self.counters["messages_dropped"] += 1
            return
        self._early_count += 1
        self._early_bytes += _size(message)
        self._self.counters["messages_early"] += 1
        self._early.setdefault(parent, []).append(FromPeer(peer, message))

    # --- serving others ---

    def needs_want(self, message: Want, needs: Needs) -> None:
        needs.wanted_chains.update(dict.fromkeys(message.chains))
        needs.wanted_links.update(dict.fromkeys(map(LinkHash, message.links)))
        needs.wanted_postings.update(dict.fromkeys(map(PostingHash, message.postings)))

    def on_want(self, turn: Turn, peer: NodeId, message: Want) -> None:
        """Send what there is room for in one turn. Who asked for links by their hashes is told by an empty Links that the answer ends
        before them."""
        loaded = turn.loaded
        raws = [raw for wanted in message.chains for raw in loaded.wanted_chains.get(wanted, ())]
        chains = dict(message.chains)
        for write in turn.applied:  # since the rows were loaded
            if isinstance(write, Applied) and write.link.height >= chains.get(write.link.account, MAX_AMOUNT):
                raws.append(write.link.raw)
        raws += [raw for h in message.links if (raw := loaded.link(LinkHash(h))) is not None]
        raws += [raw for h in message.postings if (raw := loaded.wanted_postings.get(PostingHash(h))) is not None]
        if not raws and not loaded.cut.isdisjoint((*message.chains, *message.links, *message.postings)):
            turn.again.append(FromPeer(peer, message))  # others took all the room: it is before them in the next turn
            return
        for batch in batches(list(dict.fromkeys(raws))):
            turn.send(peer, Links(batch))
        if not loaded.cut.isdisjoint(message.links):
            turn.send(peer, Links(()))

    def needs_serve(self, event: ServeSlot, needs: Needs) -> None:
        needs.chains.add((event.at.account, event.at.height))

    def on_serve(self, turn: Turn, event: ServeSlot) -> None:
        """Send a peer the links of a chain from a slot on, in the form it asked."""
        at = event.at
        links = next(iter(batches(turn.loaded.chains.get((at.account, at.height), ()))), ())
        if event.answering is not None:
            turn.send(event.peer, SlotAnswer(event.answering, False, links, self._self.view.epoch))
        elif event.moved:
            turn.send(event.peer, Moved(at.account, at.height, links))
        else:
            turn.send(event.peer, Links(links))

    # --- pulling ---

    def pull_soon(self, now: float) -> None:
        """Compare logs in the next turn: a connection stands again, or more is to be had."""
        self._next_pull = now

    @property
    def log_id(self) -> int:
        """Which log this is: drawn when it was begun, and kept with it (as the cursor under this node's own id)."""
        if not self._log_id:
            self._log_id = self._self.rng.getrandbits(LOG_ID_BITS) + 1
        return self._log_id

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

    def _after(self, message: Pull) -> int:
        return message.after if message.log_id == self.log_id else 0

    def needs_pull(self, message: Pull, needs: Needs) -> None:
        needs.log.add(self._after(message))
        needs.log_head = True

    def on_pull(self, turn: Turn, peer: NodeId, message: Pull) -> None:
        log = turn.loaded.log_head
        assert log is not None
        after = self._after(message)
        if (message.count, message.accumulator) == (log.count, log.xor):
            turn.send(peer, Offer((), log.seq, log.seq, log.count, after, self.log_id))
            return
        page = turn.loaded.log[after]
        turn.send(peer, Offer(page.hashes, page.last_seq, log.seq, log.count, after, self.log_id))

    def needs_offer(self, message: Offer, needs: Needs) -> None:
        offered = {LinkHash(h) for h in message.hashes}
        needs.known |= offered
        for link in self.voted():
            if link.hash in offered:  # a log holds decided links only, so this one is, and it is here
                self._offered[link.hash] = link
                self.needs_link(link, needs)

    def on_offer(self, turn: Turn, peer: NodeId, message: Offer) -> None:
        puller = self._puller
        if puller is None or puller.peer != peer:
            return
        if message.log_id != puller.log_id and message.after == 0:
            self._log_ids[peer] = message.log_id
            if self._cursor(peer) > 0 and message.hashes:  # it was read before this node started: go on there
                self._puller = None
                self.pull_soon(turn.now.mono)
                return
        elif (message.log_id, message.after) != (puller.log_id, puller.after):
            return  # the answer to an earlier question: between its end and this cursor nothing was compared
        known = turn.loaded.known
        if not message.hashes and message.count > self.count:
            self._move_cursor(turn, peer, message.log_id, 0)  # a gap before the cursor: compare from the start
            self._puller = None
            return
        here = [link for h in message.hashes if (link := self._offered.get(LinkHash(h))) is not None]
        for link in here:
            self.learn(turn, link, peer, peer)
        puller.offer = message
        lacking = (h for h in message.hashes if h not in known and h not in self._offered)
        puller.wanted = deque(h for h in lacking if h not in self._waiting)
        self._want_more(turn, puller)

    def _pull_on(self, turn: Turn, peer: NodeId, message: Links) -> None:
        """Ask for more when all that was asked for has come, or the answer has ended, with something in it."""
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
            batch = [puller.wanted.popleft() for _ in range(min(WANT_BATCH, len(puller.wanted)))]
            puller.asked = dict.fromkeys(batch)
            puller.batch, puller.ended = len(batch), False
            turn.send(puller.peer, Want(links=tuple(batch)))
            return
        offer, self._puller = puller.offer, None
        assert offer is not None
        # What waits and is of another page is none of this one's business: it may need the next pages.
        complete = not puller.dropped and not any(h in self._waiting for h in offer.hashes)
        if complete:
            self._move_cursor(turn, puller.peer, offer.log_id, offer.upto)
        log_id, upto = self._follow.get(puller.peer, (0, 0))
        if self.is_replaced(puller.peer, log_id) or self.has_log(puller.peer, log_id, upto):
            self._follow.pop(puller.peer, None)
        more = offer.upto < offer.head and complete
        if more or any(self._peers.alive(peer, turn.now) for peer in self._follow):
            self.pull_soon(turn.now.mono)

    def _cursor(self, peer: NodeId) -> int:
        """How far the log that `peer` has now is read; 0 while it has not told which one that is."""
        return self._cursors.get(log_name(peer, self._log_ids.get(peer, 0)), 0)

    def _move_cursor(self, turn: Turn, peer: NodeId, log_id: int, upto: int) -> None:
        name = log_name(peer, log_id)
        if self._cursors.get(name, 0) != upto:
            self._cursors[name] = upto
            turn.applied.append(CursorRow(name, upto))

    def _timeout(self, peer: NodeId) -> float:
        """How long a pull may be silent; when somebody waits for it, little more than its round trips take."""
        return (
            min(PULL_TIMEOUT_S, FOLLOW_S + FOLLOW_RTTS * self._peers.rtt((peer,))) if self._follow else PULL_TIMEOUT_S
        )

    # --- time ---

    def deadline(self) -> float:
        waiting = min((w.ask_at for w in self._waiting.values()), default=self._next_pull)
        pulling = self._puller.until if self._puller is not None and self._follow else self._next_pull
        return min(waiting, pulling, self._next_pull)

    def needs_tick(self, now: float, needs: Needs) -> None:
        needs.log_head = needs.log_head or now >= self._next_pull
        for waiting in self._waiting.values():
            if waiting.ask_at <= now:
                needs.heads.update(key[0] for key in waiting.missing if isinstance(key, tuple))

    def tick(self, turn: Turn) -> None:
        """Ask again for what waiting links lack; compare logs with a random living peer."""
        now = turn.now.mono
        self._offered.clear()
        self.familiar.tidy()
        if self._self.id not in self._cursors:  # in this node's first turn: nobody was told of the log before
            self._cursors[self._self.id] = self.log_id
            turn.persist.append(CursorRow(self._self.id, self.log_id))
        if self._postings_asked:
            self._postings_asked = {p: q for p, q in self._postings_asked.items() if q.at + WANT_AGAIN_S > now}
        if self._inquired:
            self._inquired = {what: at for what, at in self._inquired.items() if at[0] + WANT_AGAIN_S > now}
        alive = [p for p in self._peers.connected() if self._peers.alive(p, turn.now)]
        due = [waiting for waiting in self._waiting.values() if waiting.ask_at <= now]
        for waiting in due:
            waiting.ask_at = now + waiting.pause_s * (1 + self._self.rng.random())
            waiting.pause_s = min(2 * waiting.pause_s, MAX_WANT_AGAIN_S)
            turn.again.append(Learn(waiting.link, waiting.by))
        if due and alive:
            self._ask(turn, self._self.rng.choice(alive), due, self._waiting.values())
        if self._puller is not None and self._puller.until <= now:
            self._puller = None
            if self._follow:
                self._next_pull = now
        log = turn.loaded.log_head
        if now < self._next_pull or log is None:  # None: it became time within this turn; the next one has it
            return
        self._next_pull = now + PULL_S * (0.5 + self._self.rng.random())
        members = [p for p in alive if self._self.view.is_member(p)] or alive
        wanted = [p for p in alive if p in self._follow] or members
        if wanted and self._puller is None:
            peer = self._self.rng.choice(wanted)
            log_id, after = self._log_ids.get(peer, 0), self._cursor(peer)
            self._puller = _Puller(peer, log_id, after, now + self._timeout(peer))
            turn.send(peer, Pull(after, log.count, log.xor, log_id))


def log_name(peer: NodeId, log_id: int) -> bytes:
    """What the cursor into a log is kept under, 20 bytes. (Under a node's own id: the id of its own log.)"""
    return hashlib.sha256(b"hopchain:log:1\0" + peer + log_id.to_bytes(8)).digest()[:ID_BYTES]


def batches(raws: Sequence[bytes]) -> Iterator[tuple[bytes, ...]]:
    """Links in messages of at most REPLY_BYTES, at least one link each."""
    batch: list[bytes] = []
    size = 0
    for raw in raws:
        if batch and size + len(raw) > REPLY_BYTES:
            yield tuple(batch)
            batch, size = [], 0
        batch.append(raw)
        size += len(raw)
    if batch:
        yield tuple(batch)


def _size(message: Message) -> int:
    """Bytes of the link or the requests in a message."""
    if isinstance(message, Accept):
        return len(message.link)
    return sum(len(item.raw) for item in message.items) if isinstance(message, Forward) else 0


def _note_forming(loaded: Loaded, link: Link) -> None:
    """What was read to form a link was read before `link`. Who it pays is read anew, and so is its own account unless `link` has
    taken up all that waited for it: then everything that the next one depends on is known here."""
    own = loaded.forming.pop(link.account, None)
    if own is not None and own.incoming_count == len(link.confirmed):
        head = loaded.heads[link.account]
        loaded.forming[link.account] = Forming(head, link.incoming_checksum, link.confirmed, (), 0, 0)
    for name in link.recipients & loaded.forming.keys():
        del loaded.forming[name]


def note_applied(turn: Turn, link: Link, head: AccountHead | None, confirmed: Sequence[Credit]) -> None:
    """Bring the workspace of the turn up to what applying `link` makes of it."""
    loaded = turn.loaded
    if head is None:
        request = link.entries[0].request
        issuer = False  # issuers are opened by the genesis file, before the first turn
        asset, public_key = request.asset, request.public_key
    else:
        issuer, asset, public_key = head.issuer, head.asset, head.public_key
    loaded.heads[link.account] = AccountHead(
        link.account, asset, public_key, issuer, link.height, link.hash, link.balance, link.epoch, link.time_ms
    )
    loaded.links_at[(link.account, link.height)] = link.hash
    loaded.by_hash[link.hash] = link.raw
    for credit in confirmed:
        loaded.postings[credit.hash] = msgspec.structs.replace(credit, confirmation=link.hash)
    loaded.note_made(link)
    _note_forming(loaded, link)
    for recipient in link.recipients & loaded.income.keys():
        income = loaded.income[recipient]  # who is asked for it in this turn must not forget what its vote was for
        senders = {**dict(income.senders), link.account: link.height}
        loaded.income[recipient] = msgspec.structs.replace(income, senders=tuple(sorted(senders.items())))
    for request_id, outcome in link.outcomes():
        if (link.account, request_id) not in loaded.outcomes:
            loaded.outcomes[(link.account, request_id)] = OutcomeRow(
                request_id, link.account, outcome, link.hash, link.height, link.balance, link.time_ms
            )

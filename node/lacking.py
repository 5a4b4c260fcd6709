"""Lacking: the links and messages that wait for links which are not here yet, and the questions that bring those.

* A link waits until all it stands on is applied: the link before it, the openings of the accounts it pays, the
  postings it confirms. The last of what it lacked wakes it, in the same turn if it was known when the turn began.
* What it lacks is asked for, at its sender first, then at others: a chain once, and postings at one peer once at a
  time, however many links and messages wait for them.
* Who is far behind asks for nothing here: the log of a peer brings it all (`node.pulling`).
* All that waits is bounded, in number and in bytes. What found no room comes again with a log.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain, islice
from typing import Final

import msgspec

from chain.link import Link, LinkHash, PostingHash
from chain.needs import Needs
from chain.raw import CHAIN_BATCH
from node.decoded import LinkDecoder
from node.due import Due
from node.events import FromPeer, Learn
from node.messages import Accept, Forward, Links, Message, Prepare, Want
from node.peers import Peers
from node.turn import Self, Turn
from routing.keyspace import NodeId

WANT_AGAIN_S: Final = 0.3  # for a chain, and for postings at a peer that does not answer
MAX_WANT_AGAIN_S: Final = 2.4  # each look searches for all that a link confirms, up to 8,190 hashes
MAX_EARLY: Final = 10_000  # messages about slots whose parent is not here yet; above it they are dropped
MAX_EARLY_BYTES: Final = 64 * 1024 * 1024  # of their links and requests; proposals, which come again, take half of it
MAX_WAITING: Final = 10_000  # links that wait; above it they are dropped, and pulled again later
MAX_WAITING_BYTES: Final = 64 * 1024 * 1024  # and their bytes; decoded they take about twice as many
WANT_BATCH: Final = 512  # postings, and chains, of one Want
MAX_WOKEN: Final = 512  # links that waited, applied in the turn that wakes them; the rest in the next turn
MAX_WOKEN_BYTES: Final = 4 * 1024 * 1024  # and their bytes

At = tuple[str, int]  # the link of this account at this height
Key = At | PostingHash  # what a waiting link waits for


class _Waiting(msgspec.Struct):
    link: Link
    source: NodeId
    by: NodeId
    missing: dict[Key, None]  # in order; what comes is taken out
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


class Lacking:
    """What waits in this replica, and what was asked for. `is_far_behind` says whether who has so many links has much
    more than are here."""

    def __init__(self, self_: Self, decoder: LinkDecoder, peers: Peers, is_far_behind: Callable[[int], bool]) -> None:
        self._self = self_
        self._decoder = decoder
        self._peers = peers
        self._far_behind = is_far_behind
        self._waiting: dict[LinkHash, _Waiting] = {}
        self._waiters: dict[Key, set[LinkHash]] = {}
        self._waiting_bytes = 0
        self._due = Due()
        self._looks: list[LinkHash] = []  # those that this turn looks at again
        self._early: dict[At, list[FromPeer]] = {}  # by the link that they wait for
        self._early_count = 0
        self._early_bytes = 0
        self._arriving: set[LinkHash] = set()  # what this turn may apply: what arrives, and what that wakes
        self._lacks: dict[LinkHash, int] = {}  # of a waiting link: how much of what it lacks is not among these
        self._woken = self._woken_bytes = 0  # how many of them waited
        self._asked: dict[str, _Asked] = {}  # by account, for its chain
        self._postings_asked: dict[NodeId, _PostingsAsked] = {}
        self._coming: set[PostingHash] = set()  # those waited for which a link makes that has come to wait since
        # And for a chain of which it had told: when, and up to which height.
        self._inquired: dict[tuple[NodeId, str], tuple[float, int]] = {}
        # The links that the log of a peer is about to bring.
        self.pulled: Callable[[NodeId], Collection[bytes]] = lambda _: ()
        self.on_dropped: Callable[[LinkHash], None] = lambda _: None  # told of a link that found no room

    def _is_far_behind(self) -> bool:
        """By the last pings: the log of a peer brings what is lacking."""
        return self._far_behind(self._peers.most_links())

    def __len__(self) -> int:
        """How many links wait for what they stand on."""
        return len(self._waiting)

    def __contains__(self, link: object) -> bool:
        """True when the link of this hash waits."""
        return link in self._waiting

    # --- what waits ---

    def wait(self, turn: Turn, link: Link, source: NodeId, by: NodeId, missing: dict[Key, None]) -> None:
        """Let a decided link that `source` sent wait for what is `missing`, and ask `source` for that."""
        known = self._waiting.get(link.hash)
        full = len(self._waiting) >= MAX_WAITING or self._waiting_bytes + len(link.raw) > MAX_WAITING_BYTES
        if known is None and full:
            self._self.counters["links_dropped"] += 1
            self.on_dropped(link.hash)
            return
        self.forget(link.hash)
        ask_at, pause_s = turn.now.mono + WANT_AGAIN_S, WANT_AGAIN_S
        if known is not None:
            ask_at, pause_s, by = known.ask_at, known.pause_s, by or known.by
        waiting = _Waiting(link, source, by, missing, ask_at, pause_s)
        self._waiting[link.hash] = waiting
        self._waiting_bytes += len(link.raw)
        self._due.by(ask_at)
        for key in missing:
            self._waiters.setdefault(key, set()).add(link.hash)
        self._coming.update(h for h in link.posting_hashes if h in self._waiters)
        if known is None:
            self._self.counters["links_waited"] += 1
            if link.hash in self.pulled(source):
                return  # what it stands on is before it in that log, and was asked for
            self._ask(turn, source, (waiting,), (waiting,))

    def forget(self, link: LinkHash) -> None:
        """This link waits no more: it is applied, or is to be looked at anew."""
        waiting = self._waiting.pop(link, None)
        if waiting is None:
            return
        self._waiting_bytes -= len(waiting.link.raw)
        for key in waiting.missing:
            links = self._waiters[key]
            links.discard(link)
            if not links:
                del self._waiters[key]

    def wakes(self, link: Link) -> list[Link]:
        """The links that will wait for nothing else when this turn has applied `link` and what was named before. Its
        rows are looked up with theirs: one that stands on another, and so on, would take a turn each."""
        if link.hash in self._arriving:
            return []
        self._arriving.add(link.hash)
        found = [link]
        for arriving in found if self._waiters else ():
            for key in _made_by(arriving):
                for waiter in self._waiters.get(key, ()):
                    waiting = self._waiting[waiter]
                    left = self._lacks.get(waiter, len(waiting.missing)) - 1
                    self._lacks[waiter] = left
                    if left == 0 and waiter not in self._arriving and self._admit(waiting.link):
                        found.append(waiting.link)
        return found[1:]

    def _admit(self, link: Link) -> bool:
        """Count a link that waited among what this turn applies; False: there is no room for it."""
        if self._woken >= MAX_WOKEN or self._woken_bytes + len(link.raw) > MAX_WOKEN_BYTES:
            return False
        self._arriving.add(link.hash)
        self._woken += 1
        self._woken_bytes += len(link.raw)
        return True

    def came(self, turn: Turn, link: Link) -> list[Learn]:
        """`link` is applied. What waited for it and now for nothing else: to be learned now, where this turn has its
        rows."""
        ready = self._wake(turn, link)
        self._chain_came(turn, link)
        turn.again += [learn for learn in ready if learn.link.hash not in self._arriving]
        return [learn for learn in ready if learn.link.hash in self._arriving]

    def _wake(self, turn: Turn, link: Link) -> list[Learn]:
        """Every link is applied here, one height after the other, so nothing that waits is passed over."""
        at = (link.account, link.height)
        for early in self._early.pop(at, ()):
            self._early_count -= 1
            self._early_bytes -= _size(early.message)
            turn.again.append(early)
        if not self._waiters:
            return []
        ready: list[_Waiting] = []
        self._coming.difference_update(link.posting_hashes)
        for key in _made_by(link):
            for waiter in self._waiters.pop(key, ()):
                waiting = self._waiting[waiter]
                del waiting.missing[key]
                if not waiting.missing:
                    ready.append(waiting)
        ready.sort(key=lambda w: (w.link.account, w.link.height))
        return [Learn(waiting.link, waiting.source, waiting.by) for waiting in ready]

    def wait_for_parent(self, turn: Turn, peer: NodeId, message: Accept | Prepare | Forward) -> None:
        """A message about a slot whose parent is not applied here: ask its sender for the chain, and handle the message
        again when the parent is. Links and messages of several senders overtake each other all the time."""
        parent = (message.at.account, message.at.height - 1)
        self.want_chain(turn, peer, *parent)
        room = MAX_EARLY_BYTES if isinstance(message, Forward) else MAX_EARLY_BYTES // 2
        if self._early_count >= MAX_EARLY or self._early_bytes + _size(message) > room:
            self._self.counters["messages_dropped"] += 1
            return
        self._early_count += 1
        self._early_bytes += _size(message)
        self._self.counters["messages_early"] += 1
        self._early.setdefault(parent, []).append(FromPeer(peer, message))

    # --- questions ---

    def want_chain(self, turn: Turn, peer: NodeId, account: str, goal: int) -> None:
        """Ask `peer` for the chain of the account, somebody waiting for its link `goal`."""
        chains = self._chain_to_ask(turn, peer, account, goal)
        if chains:
            turn.send(peer, Want(chains=chains))

    def _chain_to_ask(self, turn: Turn, peer: NodeId, account: str, goal: int) -> tuple[At, ...]:
        """What to ask `peer` for, somebody waiting for link `goal` of the account: nothing when the chain was just
        asked for, or the log brings it. One question brings it, however many messages and links wait for it."""
        if self._is_far_behind():
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
        """Ask `peer` for these chains (account, first height, the highest that it has), but not for what it was just
        asked for. Others are asked besides it: who tells of a link may have no more of it than a vote."""
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
            self.want_chain(turn, asked.peer, link.account, asked.goal)

    def on_links(self, turn: Turn, peer: NodeId, message: Links) -> None:
        """Ask on for what these links, which were learned, were only a part of."""
        self._chains_on(turn, peer, message)
        self._postings_on(turn, peer, message)

    def _chains_on(self, turn: Turn, peer: NodeId, message: Links) -> None:
        """Ask on for the chains of which the answer held fewer links than a batch, because they are large."""
        pulled = self.pulled(peer)
        links = map(self._decoder.untrusted, message.links)
        for account, height in {link.account: link.height for link in links if link.hash not in pulled}.items():
            asked, head = self._asked.get(account), turn.loaded.heads.get(account)
            if asked is None or asked.peer != peer or head is None or head.height != height or height >= asked.goal:
                continue
            if asked.last >= height + CHAIN_BATCH:
                continue  # what comes next was asked for when this came
            del self._asked[account]
            self.want_chain(turn, peer, account, asked.goal)

    def _postings_on(self, turn: Turn, peer: NodeId, message: Links) -> None:
        """When all postings that the peer was asked for have come, ask it for those that are lacking now."""
        asked = self._postings_asked.get(peer)
        if asked is None:
            return
        before = len(asked.lacking)
        links = [self._decoder.untrusted(raw) for raw in message.links]
        for link in links:
            asked.lacking.difference_update(link.posting_hashes)
        if len(asked.lacking) < before:
            asked.at = turn.now.mono
        # What found no room to wait would be asked for and come again, at once and without end.
        if before and not asked.lacking and all(self._is_kept(turn, link) for link in links):
            del self._postings_asked[peer]
            self._ask(turn, peer, (), self._waiting.values())

    def _is_kept(self, turn: Turn, link: Link) -> bool:
        """True when the link is applied or waits."""
        head = turn.loaded.heads.get(link.account)
        return link.hash in self._waiting or (head is not None and head.height >= link.height)

    def _ask(self, turn: Turn, peer: NodeId, chains_of: Iterable[_Waiting], postings_of: Iterable[_Waiting]) -> None:
        """Ask `peer` for the chains and the postings that these links lack, without what was just asked for."""
        if peer == self._self.id or self._is_far_behind():
            return
        chains: list[At] = []
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

    # --- time ---

    def deadline(self) -> float | None:
        """When the next link is to be looked at again."""
        return self._due.at

    def needs_tick(self, now: float, needs: Needs) -> None:
        """Find those that are to be looked at again."""
        if not self._due.passed(now):
            return
        for link, waiting in self._waiting.items():
            if waiting.ask_at <= now:
                self._looks.append(link)
                needs.heads.update(key[0] for key in waiting.missing if isinstance(key, tuple))
            else:
                self._due.by(waiting.ask_at)

    def tick(self, turn: Turn) -> None:
        """Ask again, a random living peer, for what waiting links lack."""
        now = turn.now.mono
        if self._arriving:
            self._arriving.clear()
            self._lacks.clear()
            self._woken = self._woken_bytes = 0
        if self._postings_asked:
            self._postings_asked = {p: q for p, q in self._postings_asked.items() if q.at + WANT_AGAIN_S > now}
        if self._inquired:
            self._inquired = {what: at for what, at in self._inquired.items() if at[0] + WANT_AGAIN_S > now}
        looks, self._looks = [self._waiting[link] for link in self._looks if link in self._waiting], []
        for waiting in looks:
            waiting.ask_at = now + waiting.pause_s * (1 + self._self.rng.random())
            waiting.pause_s = min(2 * waiting.pause_s, MAX_WANT_AGAIN_S)
            turn.again.append(Learn(waiting.link, waiting.source, waiting.by))  # which lets it wait again, until then
        alive = [p for p in self._peers.connected() if self._peers.alive(p, turn.now)] if looks else []
        if alive:
            self._ask(turn, self._self.rng.choice(alive), looks, self._waiting.values())


def _made_by(link: Link) -> Iterator[Key]:
    """What other links may wait for."""
    yield link.account, link.height
    yield from link.posting_hashes


def _size(message: Message) -> int:
    """Bytes of the link or the requests in a message."""
    if isinstance(message, Accept):
        return len(message.link)
    return sum(len(item.raw) for item in message.items) if isinstance(message, Forward) else 0

"""Replica: how decided links reach this node's chains, and how this node helps others.

* R11 only decided links come here, and none is judged again: `check_successor` failing means that this replica is
      damaged, and the node stops. Two successors of one link stop it too.
* A link waits until all it stands on is applied (`node.lacking`).
* Decided links go out at once: directly, or along a Kademlia broadcast tree in large networks. What was lost on the way
  is found when logs are compared (`node.pulling`).
* Who lacks FAR_BEHIND links or more reads them from a log alone: each stands on those before it. To ask for what new
  links wait for would bring, for each of them, much of what is about to come, again and again.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Final

import msgspec

from chain.errors import Corruption, RemoteFault
from chain.link import Link, LinkHash, PostingHash
from chain.needs import Loaded, Needs
from chain.rows import AccountHead, Applied, Credit, Forming, OutcomeRow
from chain.rules import check_successor
from node.decoded import LinkDecoder
from node.events import NOBODY, FromPeer, Learn, ServeSlot
from node.familiar import Familiar
from node.lacking import Key, Lacking
from node.messages import Decided, DecidedHash, Links, Moved, SlotAnswer, SlotName, Want
from node.peers import Peers
from node.slots import height_of
from node.turn import Self, Turn
from routing.broadcast import LEAF, targets
from routing.keyspace import NodeId, route_key

FAR_BEHIND: Final = 512  # links: more than are on their way while all goes well, and one question fetches them
REPLY_BYTES: Final = 1024 * 1024  # of one Links message

AppliedHook = Callable[[Turn, Link, NodeId], None]


class Replica:
    """The chains of this node, as the core sees them. `hooks` are told of every applied link, in order."""

    def __init__(self, self_: Self, decoder: LinkDecoder, peers: Peers, count: int) -> None:
        self._self = self_
        self._decoder = decoder
        self._peers = peers
        self.lacking = Lacking(self_, decoder, peers, self.is_far_behind)
        self.familiar = Familiar()
        self.count = count
        self.hooks: list[AppliedHook] = []

    def is_far_behind(self, links: int) -> bool:
        """True when who has that many links has much that is not here."""
        return links >= self.count + FAR_BEHIND

    # --- decided links ---

    def announce(self, turn: Turn, link: Link, voters: Collection[NodeId]) -> None:
        """Tell everybody that `link` is decided; the caller counted the votes. Who is among the `voters` has the link,
        and gets its hash instead of it."""
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
        if self._missing(turn, link, height_of(head)):
            turn.again.append(Learn(link, by, by))  # a vote that phase 1 found, say: its rows are not of this turn
        else:
            self.learn(turn, link, by, by)

    def ask_for_link(self, turn: Turn, peer: NodeId, at: SlotName, link: LinkHash) -> None:
        """`link` is decided in `at`, as `peer` says, and is not among the votes: it is here, or is asked for with what
        is before it."""
        head = turn.loaded.heads.get(at.account)
        if head is None or head.height < at.height:
            self.lacking.want_chain(turn, peer, at.account, at.height)
        else:
            self._check_same(at.account, at.height, turn.loaded.links_at.get((at.account, at.height)), link)

    def needs_link(self, link: Link, needs: Needs) -> None:
        """What must be looked at to apply `link`, and what waits for it and nothing else."""
        self._needs_rows(link, needs)
        for waiting in self.lacking.wakes(link):
            self._needs_rows(waiting, needs)

    def _needs_rows(self, link: Link, needs: Needs) -> None:
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
            self.learn(turn, self._decoder.untrusted(raw), peer, NOBODY)
        self.lacking.on_links(turn, peer, message)

    def on_learn(self, turn: Turn, event: Learn) -> None:
        self.learn(turn, event.link, event.source, event.by)

    def learn(self, turn: Turn, link: Link, source: NodeId, by: NodeId) -> None:
        """Apply a decided link, and what waited for it, or let it wait for what it stands on. `source` sent it, and is
        asked for what it stands on; `by` counted its votes, NOBODY when `source` does not say who did."""
        learned = [(link, source, by)]
        for item in learned:
            if self._apply(turn, *item):
                learned += [(woken.link, woken.source, woken.by) for woken in self.lacking.came(turn, item[0])]

    def _apply(self, turn: Turn, link: Link, source: NodeId, by: NodeId) -> bool:
        """True when the link was applied now."""
        self._check_network(link)
        loaded = turn.loaded
        head = loaded.heads.get(link.account)
        height = height_of(head)
        if link.height <= height:
            self._check_same(link.account, link.height, loaded.links_at.get((link.account, link.height)), link.hash)
            return False
        missing = self._missing(turn, link, height)
        if missing:
            self.lacking.wait(turn, link, source, by, missing)
            return False
        confirmed = tuple([loaded.postings[h] for h in link.confirmed])
        check_successor(link, head, confirmed, self.familiar.assets, loaded.taken)
        turn.applied.append(Applied(link, confirmed))
        note_applied(turn, link, head, confirmed)
        self.familiar.meet(turn.loaded.heads[link.account])
        self.count += 1
        self.lacking.forget(link.hash)
        for hook in self.hooks:
            hook(turn, link, by)
        return True

    def _check_same(self, account: str, height: int, here: bytes | None, elsewhere: bytes) -> None:
        if here is not None and here != elsewhere:
            raise Corruption(
                f"two successors: link {height} of {account} is {here.hex()} here and "
                f"{elsewhere.hex()} elsewhere; this node stops; run `hopchain verify --cluster`"
            )

    def _check_network(self, link: Link) -> None:
        if link.network != self._self.network:
            raise RemoteFault("other_network", f"link {link.height} of {link.account} is of another network")

    def _missing(self, turn: Turn, link: Link, height: int) -> dict[Key, None]:
        loaded = turn.loaded
        keys: list[Key] = []
        if link.height > height + 1:
            keys.append((link.account, link.height - 1))
        keys += [(name, 0) for name in sorted(self.familiar.strangers(link.recipients))]
        keys += [h for h in link.confirmed if loaded.posting(h) is None]
        return dict.fromkeys(keys)

    # --- serving others ---

    def needs_want(self, message: Want, needs: Needs) -> None:
        needs.wanted_chains.update(dict.fromkeys(message.chains))
        needs.wanted_links.update(dict.fromkeys(map(LinkHash, message.links)))
        needs.wanted_postings.update(dict.fromkeys(map(PostingHash, message.postings)))

    def on_want(self, turn: Turn, peer: NodeId, message: Want) -> None:
        """Send what there is room for in one turn. Who asked for links by their hashes is told by an empty Links that
        the answer ends before them."""
        loaded = turn.loaded
        chains = _wanted_chains(turn, message.chains)
        raws = [raw for h in message.links if (raw := loaded.link(LinkHash(h))) is not None]
        raws += [raw for h in message.postings if (raw := loaded.wanted_postings.get(PostingHash(h))) is not None]
        if (
            not any(chains)
            and not raws
            and not loaded.cut.isdisjoint((*message.chains, *message.links, *message.postings))
        ):
            turn.again.append(FromPeer(peer, message))  # others took all the room: it is before them in the next turn
            return
        for batch in batches([*chains, *([raw] for raw in raws)]):
            turn.send(peer, Links(batch))
        if not loaded.cut.isdisjoint(message.links):
            turn.send(peer, Links(()))

    def needs_serve(self, event: ServeSlot, needs: Needs) -> None:
        needs.chains.add((event.at.account, event.at.height))

    def on_serve(self, turn: Turn, event: ServeSlot) -> None:
        """Send a peer the links of a chain from a slot on, in the form it asked."""
        at = event.at
        links = next(iter(batches([turn.loaded.chains.get((at.account, at.height), ())])), ())
        if event.answering is not None:
            turn.send(event.peer, SlotAnswer(event.answering, False, links, self._self.view.epoch))
        elif event.moved:
            turn.send(event.peer, Moved(at.account, at.height, links))
        else:
            turn.send(event.peer, Links(links))

    # --- time ---

    def tick(self, turn: Turn) -> None:
        self.familiar.tidy()
        self.lacking.tick(turn)


def _wanted_chains(turn: Turn, wanted: Sequence[tuple[str, int]]) -> list[list[bytes]]:
    """The links of each chain (account, first height) without a gap: what was loaded, and what was applied since."""
    applied: dict[str, list[Link]] = {}
    for write in turn.applied if wanted else ():
        if isinstance(write, Applied):
            applied.setdefault(write.link.account, []).append(write.link)
    chains = []
    for account, first in wanted:
        raws = list(turn.loaded.wanted_chains.get((account, first), ()))
        for link in applied.get(account, ()):
            if link.height == first + len(raws):
                raws.append(link.raw)
        chains.append(raws)
    return chains


def batches(groups: Iterable[Sequence[bytes]]) -> Iterator[tuple[bytes, ...]]:
    """Links, each once, in messages of at most REPLY_BYTES, at least one link each. A group that one message has room
    for is not parted: who asks on behind the end of each message would fetch the rest of a parted chain twice."""
    batch: list[bytes] = []
    size, sent = 0, set[bytes]()
    for group in groups:
        whole = sum(map(len, group))
        if batch and REPLY_BYTES - size < whole <= REPLY_BYTES:
            yield tuple(batch)
            batch, size = [], 0
        for raw in group:
            if raw in sent:
                continue
            if batch and size + len(raw) > REPLY_BYTES:
                yield tuple(batch)
                batch, size = [], 0
            batch.append(raw)
            size += len(raw)
            sent.add(raw)
    if batch:
        yield tuple(batch)


def _note_forming(loaded: Loaded, link: Link) -> None:
    """What was read to form a link was read before `link`. Who it pays is read anew, and so is its own account unless
    `link` has taken up all that waited for it: then everything that the next one depends on is known here."""
    own = loaded.forming.pop(link.account, None)
    if own is not None and own.incoming_count == len(link.confirmed):
        head = loaded.heads[link.account]
        loaded.forming[link.account] = Forming(head, link.incoming_checksum, link.confirmed, (), 0)
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
    loaded.accounts_of[link.hash], loaded.applied[link.hash] = link.account, link.raw
    for credit in confirmed:
        loaded.postings[credit.hash] = msgspec.structs.replace(credit, confirmation=link.hash)
        loaded.taken.add(credit.id)
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

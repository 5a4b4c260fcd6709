"""The core of a node: one pure state machine, made of its parts.

    identity    may this node vote?              peers         who is alive
    acceptor    votes                            proposing     ballots
    owner       queues, forming                  forwarding    requests that other nodes hand over
    replica     decided links and their chains   inquiry       majority reads
    admission   clients' requests come in        gateway       and are handed over until they end
    jobs        those that wait meanwhile        reading       certain balance reads
    membership  views and who is in them         view_ballots  votes and ballots for the next view
    changing    changes that clients ask for     syncing       where this node is ACTIVE
    pulling     the logs of others

Each kind of message has one row in a table (`_table`), each other event one case in `_needs_event` and one in
`_handle_event`: what it needs from the database, and what handles it. A fault in a peer's message ends that message, is
counted, and changes nothing; `Corruption` and `Quarantined` stop the node.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, assert_never

import msgspec

from chain.errors import RemoteFault
from chain.genesis import Genesis
from chain.needs import Loaded, Needs
from chain.rows import VoteRow
from node.acceptor import Acceptor
from node.admission import Admission
from node.changing import Changing
from node.decoded import LinkDecoder, RequestDecoder
from node.effects import Effects
from node.events import (
    AskForIncome,
    ClientBalance,
    ClientChange,
    ClientGone,
    ClientSubmit,
    DiskSpace,
    Event,
    FinishSync,
    FormLink,
    FromPeer,
    Learn,
    PeerDown,
    PeerUp,
    RouteJobs,
    ServeSlot,
    ToldRemoved,
)
from node.forwarding import Forwarding
from node.gateway import Gateway
from node.identity import Identity
from node.inquiry import Inquiries
from node.jobs import Jobs
from node.membership import Membership, restore_views
from node.messages import (
    Accept,
    Accepted,
    AskBoot,
    AskIncome,
    AskSlot,
    AskSync,
    AskViews,
    BootAnswer,
    Closing,
    Decided,
    DecidedHash,
    Declined,
    Forward,
    IncomeAnswer,
    Links,
    Message,
    Moved,
    NotOwner,
    Offer,
    Ping,
    Pong,
    Prepare,
    Promise,
    Pull,
    Refuse,
    SlotAnswer,
    SyncPart,
    Twice,
    ViewAccept,
    ViewAccepted,
    ViewPrepare,
    ViewPromise,
    ViewRefuse,
    Views,
    Want,
)
from node.owner import Owner
from node.peers import Peers
from node.proposing import Proposing
from node.pulling import Pulling
from node.reading import Reading
from node.replica import Replica
from node.syncing import Syncing
from node.turn import Now, Self, Turn
from node.uncovered import HOUR_BYTES
from node.view_ballots import ViewBallots
from node.works import Works
from routing.errors import RoutingFault
from routing.keyspace import NodeId
from routing.regions import EMPTY, Ranges
from routing.view import View

# Of a message: what it needs, what handles it.
_Row = tuple[Callable[[Any, Needs], None], Callable[[Turn, NodeId, Any], None]]


class Start(msgspec.Struct, frozen=True):
    """What a core starts from: read from the database once, when the node starts."""

    votes: list[VoteRow]
    links: int
    cursors: dict[NodeId, int]
    seen: dict[NodeId, int]
    views: list[bytes] = msgspec.field(default_factory=list)
    active: dict[int, Ranges] = msgspec.field(default_factory=dict)


class Gauges(msgspec.Struct, frozen=True):
    """How full the core is; counts of items."""

    undecided: int  # slots with a promise or a vote
    undecided_votes: int
    waiting_links: int
    queued_requests: int
    client_requests: int
    inquiries: int
    links: int
    syncing: int = 0  # regions in which it is not ACTIVE yet
    changes: int = 0  # of members, that wait for an answer


class Core:
    """One node. `needs` then `step`, one after the other, with the same events in mind (see node.turn). `view` is the
    first view, that of the genesis file; those that follow are in `start`."""

    def __init__(
        self, node_id: NodeId, genesis: Genesis, view: View, rng: random.Random, start: Start, now: Now
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.views = restore_views(view, start.views)
        self._self = Self(node_id, genesis, genesis.network_id, self.views[-1], EMPTY, rng, self.counters)
        self._decoder = LinkDecoder()
        requests = RequestDecoder()
        fenced = len(self.views) > 1 and any(view.is_member(node_id) for view in self.views)
        self.identity = Identity(self._self, start.seen, now.mono, fenced=fenced)
        self.peers = Peers(self._self, self.identity, now.mono)
        self.replica = Replica(self._self, self._decoder, self.peers, start.links)
        self.pulling = Pulling(self._self, self._decoder, self.peers, self.replica, start.cursors)
        self.acceptor = Acceptor(self._self, self._decoder, self.identity, self.replica)
        self.syncing = Syncing(
            self._self,
            self._decoder,
            self.identity,
            self.peers,
            self.acceptor,
            self.replica,
            self.pulling,
            self.views,
            start.active,
            now.mono,
        )
        self.membership = Membership(self._self, self.identity, self.peers, self.replica, self.syncing, self.views)
        self.view_ballots = ViewBallots(self._self, self.identity, self.peers, self.membership, start.votes, now.mono)
        self.changing = Changing(
            self._self, self.identity, self.peers, self.replica, self.membership, self.view_ballots
        )
        self.inquiries = Inquiries(self._self, self._decoder, self.identity, self.peers, self.acceptor, self.replica)
        works = Works()
        self.proposing = Proposing(self._self, self._decoder, self.peers, self.acceptor, self.replica, works)
        self.owner = Owner(
            self._self,
            self.identity,
            self.peers,
            self.acceptor,
            self.replica,
            self.inquiries,
            works,
            self.proposing,
        )
        self.forwarding = Forwarding(self._self, requests, self.peers, self.replica, self.owner)
        self.jobs = Jobs()
        self.admission = Admission(self._self, requests, self.owner, self.replica, self.inquiries, self.jobs)
        self.gateway = Gateway(
            self._self, self._decoder, self.peers, self.owner, self.replica, self.jobs, self.pulling.log_id
        )
        self.reading = Reading(self._self, self.inquiries)
        self._wire()
        self.acceptor.restore(start.votes, now.mono)
        self._again: list[Event] = []
        self._heads: set[str] = set()  # the accounts whose heads this turn has loaded
        self._events: list[Event] = []
        self._neighbours_of: tuple[int, bool, int] | None = None
        self._messages = self._table()

    def _wire(self) -> None:
        """What parts are told by those that were made before them, in the order in which they are."""
        self.replica.hooks += [  # a decided link is applied:
            self.acceptor.on_applied,  # its slot has no vote any more, before anybody asks for one
            self.inquiries.on_applied,  # a slot has a successor, income is here: what waits for that goes on
            self.owner.on_applied,  # the queue follows the tail
            self.gateway.on_applied,  # clients have their answers; other requests are handed over anew
            self.reading.on_applied,  # reads from a height on
        ]
        self.membership.hooks += [  # a view is installed, and what is ACTIVE in it is known:
            self.view_ballots.on_view,  # votes and ballots for it are over
            self.changing.on_view,  # changes are judged anew
            self.acceptor.on_view,  # other ranks finish what is stuck
            self.owner.on_view,  # ballots are over, queues go to others
            self.inquiries.on_view,  # majorities are counted anew
        ]
        self.view_ballots.confirm = self.changing.confirm  # what a majority knows of views answers changes
        self.acceptor.finish = self.owner.finish  # a vote that is stuck is a slot to take over
        self.pulling.voted = self.acceptor.values  # a link that this node voted for need not be sent to it

    def introduce(self, boot: bytes, *, seeds: bool, uncovered_bytes: int = HOUR_BYTES) -> None:
        """Before the first turn, from the process: its `boot`, whether it was given `seeds` to dial, and how many bytes
        of requests that are not covered it takes in an hour."""
        self._self.boot = boot
        self.jobs.uncovered.hour_bytes = uncovered_bytes
        if seeds:
            self.identity.wait_for_seeds()

    @property
    def view(self) -> View:
        """The newest view that this node has installed."""
        return self._self.view

    @property
    def active(self) -> Ranges:
        """The keys for which this node is ACTIVE in that view (design R7)."""
        return self._self.active

    @property
    def fully_active(self) -> bool:
        """True when this node is a member and ACTIVE wherever it is in a group."""
        return self._self.fully_active

    def is_current(self, now: Now) -> bool:
        """True when what this replica shows is what the others go on from: it keeps up with a majority of the members.
        Who was removed is not, even while it still hears of everything."""
        if self.view.ids == (self._self.id,) and not self.identity.verified:  # there may be later views
            return False
        return not self.membership.removed_in and self.peers.keeps_up(now, self.replica.count)

    # --- one turn ---

    def needs(self, events: Sequence[Event], now: Now) -> Needs:
        """Which rows the turn with these events will look at. Events that are faulty are dropped here."""
        needs = Needs()
        self._events = []
        self.admission.needs_untold(needs)
        for event in [*self._again, *events]:
            try:
                self._needs_event(event, needs)
            except (RemoteFault, RoutingFault) as fault:
                self._fault(fault)
            else:
                self._events.append(event)
        self._again = []
        self.replica.lacking.needs_tick(now.mono, needs)
        self.pulling.needs_tick(now.mono, needs)
        self._heads = needs.heads
        return needs

    def step(self, loaded: Loaded, now: Now) -> Effects:
        """Handle the events given to `needs`, with the rows it asked for. Raises `Corruption` to stop the node."""
        turn = Turn(loaded, now)
        self.replica.familiar.note(loaded.assets)
        self.peers.wake(now)
        self.admission.tell_untold(turn)
        for event in self._events:
            self._handle(turn, event)
        self._events = []
        self._go_on(turn)
        links = self.replica.count
        self.peers.tick(turn, links)
        self.syncing.tick(turn)
        self.membership.tick(turn)
        self.changing.tick(turn)
        self.view_ballots.tick(turn)
        self.replica.tick(turn)
        self.pulling.tick(turn)
        self.acceptor.tick(turn)
        self.owner.tick(turn)
        self.proposing.tick(turn)
        self.inquiries.tick(turn)
        self.admission.tick(turn)
        self.gateway.tick(turn)
        self.reading.tick(turn)
        self.identity.finish(turn)
        me = self._self.id
        self._again = turn.again + [FromPeer(me, send.message) for send in turn.sends if send.peer == me]
        turn.sends = [send for send in turn.sends if send.peer != me]
        return turn.effects(self._new_neighbours())

    def _go_on(self, turn: Turn) -> None:
        """What the events have led to goes on in this very turn where its rows are here: requests are handed over in
        the turn that brings them, and their link is formed in the turn that brings them to its owner. The rest is for
        the next turn.
        """
        for kind in (RouteJobs, FormLink):  # the first may lead to the second
            again, turn.again = _once(turn.again), []
            rows = self._heads if kind is RouteJobs else turn.loaded.forming
            for event in again:
                if isinstance(event, kind) and event.account in rows:
                    self._handle(turn, event)
                else:
                    turn.again.append(event)

    def _new_neighbours(self) -> frozenset[NodeId] | None:
        """Whom to keep a connection with, when that is another answer than in the last turn."""
        version = (self._self.view.epoch, self.membership.lingers, self._self.told_removed)
        if version == self._neighbours_of:
            return None
        self._neighbours_of = version
        return self.membership.neighbours()

    def deadline(self) -> float | None:
        """When `step` wants to be called without an event, on the monotonic clock; -inf: at once."""
        if self._again:
            return float("-inf")
        times = (
            self.peers.deadline(),
            self.identity.deadline(),
            self.replica.lacking.deadline(),
            self.pulling.deadline(),
            self.syncing.deadline(),
            self.membership.deadline(),
            self.changing.deadline(),
            self.view_ballots.deadline(),
            self.acceptor.deadline(),
            self.owner.deadline(),
            self.inquiries.deadline(),
            self.admission.deadline(),
            self.gateway.deadline(),
            self.reading.deadline(),
        )
        return min([t for t in times if t is not None], default=None)

    def gauges(self) -> Gauges:
        """How full this node is."""
        return Gauges(
            len(self.acceptor),
            self.acceptor.votes,
            len(self.replica.lacking),
            self.owner.queued,
            len(self.jobs),
            len(self.inquiries),
            self.replica.count,
            len(self.syncing),
            len(self.changing),
        )

    def _fault(self, fault: RemoteFault | RoutingFault) -> None:
        self.counters[f"peer_fault_{fault.code}"] += 1

    # --- tables ---

    def _needs_event(self, event: Event, needs: Needs) -> None:
        match event:
            case FromPeer():
                self._messages[type(event.message)][0](event.message, needs)
            case ClientSubmit():
                self.admission.needs_submit(event, needs)
            case ClientBalance():
                self.reading.needs_balance(event, needs)
            case FormLink():
                self.owner.needs_form(event, needs)
            case Learn():
                self.replica.needs_link(event.link, needs)
            case RouteJobs():
                self.gateway.needs_route(event, needs)
            case AskForIncome():
                self.inquiries.income.needs_ask_for_income(event, needs)
            case ServeSlot():
                self.replica.needs_serve(event, needs)
            case FinishSync():
                self.syncing.needs_finish(event, needs)
            case PeerUp() | PeerDown() | ToldRemoved() | ClientChange() | ClientGone() | DiskSpace():
                pass
            case _:
                assert_never(event)

    def _handle(self, turn: Turn, event: Event) -> None:
        try:
            self._handle_event(turn, event)
        except (RemoteFault, RoutingFault) as fault:
            self._fault(fault)

    def _handle_event(self, turn: Turn, event: Event) -> None:
        match event:
            case FromPeer():
                self.peers.heard(event.peer, turn.now)
                if self.peers.counts(event.peer, event.message):
                    self._messages[type(event.message)][1](turn, event.peer, event.message)
            case ClientSubmit():
                self.admission.on_submit(turn, event)
            case ClientBalance():
                self.reading.on_balance(turn, event)
            case ClientGone():
                self.reading.on_gone(event)
                self.admission.on_gone(event)
            case FormLink():
                self.owner.on_form(turn, event)
            case Learn():
                self.replica.on_learn(turn, event)
            case RouteJobs():
                self.gateway.on_route(turn, event)
            case AskForIncome():
                self.inquiries.income.on_ask_for_income(turn, event)
            case ServeSlot():
                self.replica.on_serve(turn, event)
            case DiskSpace():
                self.admission.on_disk(event)
            case ToldRemoved():
                self.membership.on_told_removed(event)
            case ClientChange():
                self.changing.on_change(turn, event)
            case FinishSync():
                self.syncing.on_finish(turn, event)
            case PeerUp():
                self.peers.on_up(turn, event.peer, event.boot, self.replica.count, replaced=event.replaced)
                self.pulling.pull_soon(turn.now.mono)
                self.proposing.on_up(turn, event.peer)
            case PeerDown():
                self.peers.on_down(event.peer, turn.now)
                self.pulling.on_down(turn, event.peer)
            case _:
                assert_never(event)

    def _table(self) -> dict[type[Any], _Row]:
        """For each message: what it needs, and what handles it."""
        a, i, r, g, p = self.acceptor, self.inquiries, self.replica, self.gateway, self.peers
        b, f, logs = self.proposing, self.forwarding, self.pulling
        m, v = self.membership, self.view_ballots

        def links(message: Links | Moved, needs: Needs) -> None:
            r.needs_links(message.links, needs)

        def on_links(turn: Turn, peer: NodeId, message: Links) -> None:
            r.on_links(turn, peer, message)
            logs.on_links(turn, peer, message)

        table: dict[type[Any], _Row] = {
            Prepare: (a.needs_prepare, a.on_prepare),
            Accept: (a.needs_accept, a.on_accept),
            Promise: (b.needs_promise, b.on_promise),
            Accepted: (self.owner.needs_accepted, b.on_accepted),
            Refuse: (_nothing, b.on_refuse),
            Decided: (lambda m, needs: r.needs_links((m.link,), needs), r.on_decided),
            DecidedHash: (a.needs_decided_hash, a.on_decided_hash),
            Forward: (f.needs_forward, f.on_forward),
            Moved: (links, g.on_moved),
            Declined: (_nothing, g.on_declined),
            NotOwner: (_nothing, g.on_not_owner),
            AskSlot: (i.slots.needs_ask, i.slots.on_ask),
            SlotAnswer: (i.needs_slot_answer, i.slots.on_answer),
            AskIncome: (i.income.needs_ask, i.income.on_ask),
            IncomeAnswer: (i.income.needs_answer, i.income.on_answer),
            Want: (r.needs_want, r.on_want),
            Links: (links, on_links),
            Pull: (logs.needs_pull, logs.on_pull),
            Offer: (logs.needs_offer, logs.on_offer),
            Ping: (_nothing, lambda turn, peer, m: p.on_ping(turn, peer, m, r.count)),
            Pong: (_nothing, p.on_pong),
            AskBoot: (_nothing, p.on_ask_boot),
            BootAnswer: (_nothing, lambda turn, peer, m: p.on_boot_answer(turn, peer, m, r.count)),
            Twice: (_nothing, p.on_twice),
            Closing: (_nothing, p.doubles.on_closing),
            ViewPrepare: (_nothing, v.on_prepare),
            ViewPromise: (_nothing, v.on_promise),
            ViewAccept: (_nothing, v.on_accept),
            ViewAccepted: (_nothing, v.on_accepted),
            ViewRefuse: (_nothing, v.on_refuse),
            AskViews: (_nothing, m.on_ask_views),
            Views: (_nothing, m.on_views),
            AskSync: (_nothing, self.syncing.on_ask_sync),
            SyncPart: (_nothing, self.syncing.on_sync_part),
        }
        assert set(table) == set(Message.__args__), "a message has no row"
        return table


def _once(events: Iterable[Event]) -> Iterator[Event]:
    """Without those that repeat one before: each request of an account asks for its jobs to be handed over, and its
    link to be formed, and once does for all."""
    met: set[tuple[type, str]] = set()
    for event in events:
        if isinstance(event, RouteJobs | FormLink):
            what = type(event), event.account
            if what in met:
                continue
            met.add(what)
        yield event


def _nothing(message: object, needs: Needs) -> None:
    """This message is answered from memory."""

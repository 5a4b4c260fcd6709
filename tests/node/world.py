"""A small world for whole cores: real rules, real SQLite, simulated time and network, one seed.

Each node is a `Core` with an in-memory database. A turn is atomic in simulated time. A crash loses the core and what
has arrived, and keeps what was committed; `doom` makes a node crash inside a turn: before its commit, after it, or
between two sends. Messages are delayed, lost and repeated as `Faults` says. `Watch` sees everything and fails the run
at once when a rule is broken.
"""

import enum
import random
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.genesis import Asset, Genesis, GenesisMember, Issuer
from chain.link import Outcome, opening_slot
from chain.load import load
from chain.needs import Loaded, Needs
from chain.reads import Balance, read_balance
from chain.request import (
    ANY_TIP,
    Posting,
    Request,
    SignedRequest,
    cancellation,
    decode_request_untrusted,
    opening,
    sign,
    transfer,
)
from chain.store import commit, create_or_check
from hopchain.change import Change, ChangeAction, sign_change
from hopchain.wire import AT_ONCE, AskBalance, NotFound, NotStarted, Recorded, ReplyBody, Submit, SubmitChange, Unknown
from node.core import Core
from node.effects import Effects, Stage
from node.events import Caller, ClientBalance, ClientChange, ClientSubmit, Event, FromPeer, PeerDown, PeerUp
from node.messages import Decided, DecidedHash, Offer
from node.start import read_start
from node.turn import Now
from routing.keyspace import NodeId, node_id_of, route_key
from routing.view import View, encode_view, first_view, member_of
from tests.node.watch import Call, Watch

EPOCH_MS = 1_700_000_000_000
NO_NEEDS = Needs()
CHANGES = 1  # session of those who ask for changes of the members
TOLD = Decided | DecidedHash  # that a link is decided: with the link, or to one who voted for it
MAX_TURNS = 2_000  # of one node at one instant: above it, it would never sleep


def key_of(name: str) -> Ed25519PrivateKey:
    """A key that is the same in every run."""
    return Ed25519PrivateKey.from_private_bytes(random.Random(name).randbytes(32))


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


@dataclass
class Faults:
    """What the network does to a message, and how far the nodes' wall clocks are apart."""

    loss: float = 0.0
    repeat: float = 0.0
    delay_s: tuple[float, float] = (0.0005, 0.002)
    skew_ms: int = 0


@dataclass
class Asked:
    """A change that a node was asked for."""

    answer: ReplyBody | None = None


class Doom(enum.Enum):
    """Where in its next turn that writes something a node dies."""

    BEFORE_COMMIT = "before the commit"
    AFTER_COMMIT = "after the commit, before the first send"
    BETWEEN_SENDS = "after some of the sends"
    BEFORE_LINKS = "after all of them, before the links"


AT_VOTE = (Doom.BEFORE_COMMIT, Doom.AFTER_COMMIT, Doom.BETWEEN_SENDS)  # also in a turn that applies no link


@dataclass
class Node:
    id: NodeId
    conn: sqlite3.Connection
    skew_ms: int = 0
    core: Core | None = None
    doom: Doom | None = None
    inbox: list[Event] = field(default_factory=list)
    turn_at: float | None = None


class World:
    """`nodes` cores that know each other, and clients that talk to them."""

    def __init__(
        self, nodes: int, k: int, seed: int, faults: Faults | None = None, *, first: int | None = None
    ) -> None:
        """`first`: how many of the nodes are in the first view; the others are guests, `guests` has them."""
        self.rng = random.Random(seed)
        self.faults = faults or Faults()
        self.now = 0.0
        self.cut: set[tuple[NodeId, NodeId]] = set()
        self.calls: dict[int, Call] = {}
        self.answered: list[Callable[[Call], None]] = []
        self.on_death: Callable[[NodeId], None] = lambda node: None
        self.lose: Callable[[NodeId, NodeId, object], bool] = lambda source, target, message: False
        self.deliveries = 1  # of each message
        self._turns: tuple[float, int] = (0.0, 0)  # at this instant, so many
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        keys = [public(key_of(f"node {i}")) for i in range(nodes)]
        self.keys = {node_id_of(key): key for key in keys}
        members = keys[:first]
        self.guests = [node_id_of(key) for key in keys[len(members) :]]
        self.asked: dict[int, Asked] = {}
        self.issuer_key = key_of("mint")
        self.genesis = Genesis(
            version=1,
            name="test",
            assets=(Asset("CZK", 2), Asset("EUR", 2)),
            issuers=(Issuer("mint", "CZK", public(self.issuer_key).hex()),),
            k=k,
            ca="",
            members=tuple(GenesisMember(key.hex()) for key in members),
            time_ms=EPOCH_MS,
            operator=public(key_of("operator")).hex(),
        )
        self.network = self.genesis.network_id
        self.view: View = first_view(self.network, k, [member_of(key) for key in members])
        self.watch = Watch(self.genesis, self.view)
        self.nodes = {node_id_of(key): self._make_node(node_id_of(key)) for key in keys}
        for node in self.nodes.values():
            self.start(node.id)

    def _make_node(self, node_id: NodeId) -> Node:
        conn = sqlite3.connect(":memory:", isolation_level=None)
        create_or_check(conn, self.genesis, node_id, (self.view.hash, encode_view(self.view)))
        return Node(node_id, conn, self.rng.randint(-self.faults.skew_ms, self.faults.skew_ms))

    @property
    def ids(self) -> list[NodeId]:
        return sorted(self.nodes)

    @property
    def alive(self) -> list[NodeId]:
        return [node_id for node_id in self.ids if self.nodes[node_id].core is not None]

    # --- life and death ---

    def start(self, node_id: NodeId) -> None:
        node = self.nodes[node_id]
        assert node.core is None
        rng = random.Random(self.rng.random())
        start = read_start(node.conn)
        node.core = Core(node_id, self.genesis, self.view, rng, start, self._clock(node))
        node.inbox = []
        for other in self.nodes.values():
            if other.core is not None and other.id != node_id:
                self._deliver(node_id, PeerUp(other.id))
                self._deliver(other.id, PeerUp(node_id))
        self._wake(node)

    def crash(self, node_id: NodeId) -> None:
        node = self.nodes[node_id]
        node.core, node.doom, node.inbox, node.turn_at = None, None, [], None
        for call in self.calls.values():
            call.gone = call.gone or (call.node == node_id and call.answer is None)
        for other in self.nodes.values():
            if other.core is not None:
                self._deliver(other.id, PeerDown(node_id))
        self.on_death(node_id)

    def doom(self, node_id: NodeId, doom: Doom) -> None:
        """The node dies in its next turn that writes something."""
        self.nodes[node_id].doom = doom

    def _clock(self, node: Node) -> Now:
        return Now(self.now, EPOCH_MS + int(self.now * 1000) + node.skew_ms)

    # --- turns ---

    def _wake(self, node: Node, at: float | None = None) -> None:
        when = self.now if at is None else max(at, self.now)
        if node.turn_at is not None and node.turn_at <= when:
            return
        node.turn_at = when
        self._at(when, lambda: self._turn(node, when))

    def _turn(self, node: Node, when: float) -> None:
        if node.core is None or node.turn_at != when:
            return
        node.turn_at = None
        self._turns = (self.now, self._turns[1] + 1 if self._turns[0] == self.now else 1)
        assert self._turns[1] <= MAX_TURNS, f"{MAX_TURNS} turns at one instant: a node spins"
        events, node.inbox = node.inbox, []
        clock = self._clock(node)
        needs = node.core.needs(events, clock)
        loaded = load(node.conn, needs) if needs != NO_NEEDS else Loaded()
        effects = node.core.step(loaded, clock)
        self.finish_turn(node, effects)
        deadline = node.core.deadline() if node.core is not None else None
        if deadline is not None:
            self._wake(node, deadline)

    def finish_turn(self, node: Node, effects: Effects) -> None:
        """What the driver does with the effects, stage by stage: commit, then send, then answer; or a part of it, and
        die."""
        *_, last = stages = effects.stages()
        for stage in stages:
            doom = node.doom if stage.persist else None
            if doom is Doom.BEFORE_LINKS:
                doom = Doom.BEFORE_COMMIT if stage is last else None
            if doom is Doom.BEFORE_COMMIT:
                self.crash(node.id)
                return
            self.persist(node, stage)
            if doom is None:
                self.emit(node, stage)
                continue
            if doom is Doom.BETWEEN_SENDS:
                some = self.rng.sample(stage.send, self.rng.randint(0, len(stage.send)))
                self.emit(node, Stage(send=tuple(some)))
            self.crash(node.id)
            return

    def persist(self, node: Node, stage: Stage) -> None:
        commit(node.conn, stage.persist)
        self.watch.on_commit(node.id, stage.persist, self.now)

    def emit(self, node: Node, stage: Stage) -> None:
        for send in stage.send:
            self.watch.on_send(node.id, send.message)
            self._send(node.id, send.peer, FromPeer(node.id, send.message))
        for answer in stage.answers:
            if answer.caller.session == CHANGES:
                asked = self.asked[answer.caller.number]
                assert asked.answer is None, f"answered twice: {asked.answer}, {answer.body}"
                asked.answer = answer.body
            else:
                self._answer(answer.caller.number, answer.body)
        for read in stage.reads:
            balance = read_balance(node.conn, read.ask.account)
            self._answer(read.caller.number, balance or NotFound(read.ask.account))

    def _answer(self, number: int, body: ReplyBody | Balance) -> None:
        call = self.calls[number]
        assert call.answer is None, f"answered twice: {call.answer}, {body}"
        self.watch.on_answer(call, body, self.now)
        for hook in self.answered:
            hook(call)

    def _send(self, source: NodeId, target: NodeId, event: FromPeer) -> None:
        if (source, target) in self.cut or self.rng.random() < self.faults.loss:
            return
        if self.lose(source, target, event.message):
            return
        times = self.deliveries + (self.rng.random() < self.faults.repeat)
        for _ in range(times):
            delay = self.rng.uniform(*self.faults.delay_s)
            self._at(self.now + delay, lambda: self._deliver(target, event))

    def _deliver(self, target: NodeId, event: Event) -> None:
        node = self.nodes[target]
        if node.core is not None:
            node.inbox.append(event)
            self._wake(node)

    def _at(self, when: float, act: Callable[[], None]) -> None:
        self._count += 1
        heappush(self._queue, (when, self._count, act))

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something `seconds` of simulated time from now."""
        self._at(self.now + seconds, act)

    def run(self, seconds: float) -> None:
        """Let simulated time pass."""
        self.run_until(lambda: False, seconds)

    def run_until(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Let simulated time pass until something holds, at most `seconds`; whether it does."""
        until = self.now + seconds
        while not holds() and self._queue and self._queue[0][0] <= until:
            self.now, _, act = heappop(self._queue)
            act()
        if holds():
            return True
        self.now = until
        return False

    def run_until_answered(self, calls: Sequence[Call], seconds: float) -> bool:
        """Let simulated time pass until all calls have their answers."""
        return self.run_until(lambda: all(call.answer is not None for call in calls), seconds)

    # --- clients ---

    def submit(
        self,
        node_id: NodeId,
        signed: SignedRequest,
        timeout_s: float = 10.0,
        *,
        forged: bool = False,
        session: int = 0,
    ) -> Call:
        """Hand a request to a node; `answer` of the call is set when it comes."""
        request = None if forged else decode_request_untrusted(signed.raw)
        call = self._call(Call(node_id, self.now, signed=signed, request=request, forged=forged))
        submit = Submit(signed.raw, signed.signature, int(timeout_s * 1000))
        self._deliver(node_id, ClientSubmit(Caller(session, len(self.calls)), submit))
        return call

    def read(
        self,
        node_id: NodeId,
        account: str,
        *,
        linearizable: bool = False,
        min_height: int = AT_ONCE,
        timeout_s: float = 5.0,
        waited_s: float = 0.0,
        session: int = 0,
    ) -> Call:
        """Ask a node for a balance; the question has waited that long at the node already."""
        ask = AskBalance(account, linearizable, min_height, int(timeout_s * 1000))
        call = self._call(Call(node_id, self.now, ask=ask))
        until = self.now + timeout_s - waited_s if waited_s else None
        self._deliver(node_id, ClientBalance(Caller(session, len(self.calls)), ask, until))
        return call

    def _call(self, call: Call) -> Call:
        self.calls[len(self.calls) + 1] = call
        self.watch.on_call(call)
        return call

    def deliver(self, target: NodeId, event: Event) -> None:
        """Put an event into a node's inbox, whoever it is from."""
        self._deliver(target, event)

    def ask(self, node_id: NodeId, signed: SignedRequest, timeout_s: float = 10.0) -> ReplyBody:
        """Submit, and run until there is an answer."""
        call = self.submit(node_id, signed, timeout_s)
        assert self.run_until(lambda: call.answer is not None, timeout_s + 5), "no answer"
        assert not isinstance(call.answer, Balance | None)
        return call.answer

    def settle(self, node_id: NodeId, signed: SignedRequest) -> Recorded:
        """Submit, again if need be, and run until it is recorded."""
        for _ in range(20):
            answer = self.ask(node_id, signed)
            if isinstance(answer, Recorded):
                return answer
            assert isinstance(answer, NotStarted | Unknown), answer
        raise AssertionError("not settled")

    def signed(self, request: Request) -> SignedRequest:
        key = self.issuer_key if request.sender == "mint" else key_of(request.sender)
        return sign(request, key)

    def open_request(self, name: str, *, asset: str = "CZK", nonce: bytes | None = None) -> SignedRequest:
        key = public(key_of(name))
        return self.signed(opening(self.network, name, asset, key, nonce or random.Random(name).randbytes(32)))

    def pay_request(self, sender: str, recipient: str, amount: int, tip: bytes = ANY_TIP) -> SignedRequest:
        return self.pay_many_request(sender, [Posting(recipient, amount)], tip)

    def pay_many_request(self, sender: str, postings: list[Posting], tip: bytes = ANY_TIP) -> SignedRequest:
        return self.signed(transfer(self.network, sender, postings, self.rng.randbytes(32), expect_tip=tip))

    def cancel_request(self, target: SignedRequest, sender: str) -> SignedRequest:
        return self.signed(cancellation(self.network, sender, target.request_id, self.rng.randbytes(32)))

    def forge(self, signed: SignedRequest) -> SignedRequest:
        """The same request with a signature that is wrong in one bit."""
        return msgspec.structs.replace(signed, signature=bytes([signed.signature[0] ^ 1]) + signed.signature[1:])

    def open_funded(self, **amounts: int) -> None:
        """Open accounts, and pay each what it is to have."""
        at = self.view.ids[0]
        for name, amount in amounts.items():
            assert self.settle(at, self.open_request(name)).outcome == Outcome.COMPLETED
            if amount:
                self.settle(at, self.pay_request("mint", name, amount))
        self.run(1)

    def pay(self, sender: str, recipient: str, amount: int, *, at: NodeId, tip: bytes = ANY_TIP) -> ReplyBody:
        """Pay through a node, and run until there is an answer."""
        return self.ask(at, self.pay_request(sender, recipient, amount, tip))

    # --- members ---

    def change(
        self,
        at: NodeId,
        action: ChangeAction,
        node: NodeId,
        *,
        by: str = "operator",
        force: bool = False,
        timeout_s: float = 20.0,
        **fields: Any,
    ) -> "Asked":
        """Hand a signed change of the members to a node; `fields` are of the change, to make a wrong one."""
        change = Change(self.network, action, self.keys[node], 1, EPOCH_MS + 10**9, force)
        signed = sign_change(msgspec.structs.replace(change, **fields), key_of(by))
        self.asked[len(self.asked) + 1] = asked = Asked()
        submit = SubmitChange(signed.raw, signed.signature, int(timeout_s * 1000))
        self._deliver(at, ClientChange(Caller(CHANGES, len(self.asked)), submit))
        return asked

    def add(self, at: NodeId, node: NodeId) -> ReplyBody:
        """Ask for a member more, and run until there is an answer."""
        return self.answer_of(self.change(at, ChangeAction.ADD, node))

    def remove(self, at: NodeId, node: NodeId, *, force: bool = False) -> ReplyBody:
        """The same for one fewer."""
        return self.answer_of(self.change(at, ChangeAction.REMOVE, node, force=force))

    def answer_of(self, asked: "Asked", seconds: float = 30.0) -> ReplyBody:
        """Run until a change is answered."""
        assert self.run_until(lambda: asked.answer is not None, seconds), "no answer"
        assert asked.answer is not None
        return asked.answer

    def epochs(self) -> list[int]:
        """Which epoch each living node has installed, in the order of ids."""
        return [self.core(node).view.epoch for node in self.alive]

    # --- the network ---

    def part(self, *sides: Iterable[NodeId]) -> None:
        """Only nodes of one side hear each other. Nodes that no side names are alone."""
        together = {(a, b) for side in map(list, sides) for a in side for b in side}
        self.cut = {(a, b) for a in self.ids for b in self.ids if (a, b) not in together}

    def heal(self) -> None:
        """Everybody hears everybody, and nothing is lost from now on."""
        self.cut.clear()
        self.faults = Faults()
        self.lose = lambda source, target, message: False

    def keep_in_the_dark(self, node_id: NodeId) -> None:
        """A node gets no news of decided links unless it asks for them."""
        self.lose = lambda source, target, message: target == node_id and isinstance(message, TOLD | Offer)

    # --- looking ---

    def group(self, account: str) -> tuple[NodeId, ...]:
        """Who decides the account's next link, the owner first."""
        return self.watch.views[-1].group(route_key(self.watch.accounts[account].links[-1].hash))

    def opening_group(self, name: str) -> tuple[NodeId, ...]:
        """Who decides whether a name is opened."""
        return self.watch.views[-1].group(route_key(opening_slot(self.network, name)))

    def height(self, node_id: NodeId, account: str) -> int:
        """The height of an account on a node, -1 when it does not know it."""
        row = self.nodes[node_id].conn.execute("SELECT height FROM accounts WHERE name = ?", (account,)).fetchone()
        return -1 if row is None else int(row[0])

    def core(self, node_id: NodeId) -> Core:
        core = self.nodes[node_id].core
        assert core is not None, "it is down"
        return core

    def tip(self, node_id: NodeId, account: str) -> bytes:
        """The tail hash of an account as a node has applied it."""
        return bytes(
            self.nodes[node_id].conn.execute("SELECT tip FROM accounts WHERE name = ?", (account,)).fetchone()[0]
        )

    def digest(self, node_id: NodeId) -> tuple[tuple[str, int, bytes, int], ...]:
        rows = self.nodes[node_id].conn.execute("SELECT name, height, tip, balance FROM accounts ORDER BY name")
        return tuple(rows.fetchall())

    def assert_equal_replicas(self) -> None:
        """All replicas hold what was chosen, and nothing else."""
        chosen = tuple(
            (name, len(a.links) - 1, bytes(a.links[-1].hash), a.links[-1].balance)
            for name, a in sorted(self.watch.accounts.items())
            if a.links
        )
        for node_id in self.ids:
            assert self.digest(node_id) == chosen, f"replica {node_id.hex()[:8]} differs at rest"

    def money(self, node_id: NodeId) -> int:
        """Sum of all balances and unconfirmed postings: always 0."""
        conn = self.nodes[node_id].conn
        settled = conn.execute("SELECT coalesce(sum(balance), 0) FROM accounts").fetchone()[0]
        incoming = conn.execute("SELECT coalesce(sum(amount), 0) FROM incoming").fetchone()[0]
        return int(settled + incoming)

"""Clients of the simulated network: what they ask, and of whom.

The accounts are opened and funded before the faults begin. In the fault phase requests come at random times, each of a
kind drawn by the shares of `plan.Load`; afterwards `settle` sends every request once more, so that each must end.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from chain.request import (
    ANY_HEIGHT,
    ANY_TIP,
    NetworkId,
    Posting,
    Request,
    SignedRequest,
    cancellation,
    opening,
    sign,
    transfer,
)
from hopchain.wire import AT_ONCE, AskBalance, Balance, Recorded, ReplyBody, Submit
from netsim.names import ISSUER, key_of, public_key
from netsim.plan import Load
from netsim.world import World
from node.core import Core

SETUP_TIMEOUT_MS = 10_000
SETUP_STEP_S = 0.02  # how often it is looked whether a call of the set-up was answered
SETUP_STEPS = 1000
SETTLE_TIMEOUT_MS = 20_000


class HostNode(Protocol):
    """A simulated node; `core` is None while it is down."""

    @property
    def index(self) -> int: ...
    @property
    def core(self) -> Core | None: ...


class Host(Protocol):
    """The simulated network as clients see it: `World`, or whole nodes."""

    @property
    def network_id(self) -> NetworkId: ...
    @property
    def nodes(self) -> Sequence[HostNode]: ...
    @property
    def now(self) -> float: ...
    def at(self, when: float, act: Callable[[], None]) -> None: ...
    def submit(self, node: int, submit: Submit, done: Callable[[ReplyBody], None] | None = None) -> int: ...
    def read(self, node: int, ask: AskBalance, done: Callable[[ReplyBody], None] | None = None) -> int: ...


class Clients:
    """All clients of one run."""

    def __init__(
        self, world: Host, load: Load, rng: random.Random, spendable: Callable[[str], int] = lambda account: 0
    ) -> None:
        """`spendable`: what an account has by all that was decided, so that all of it can be spent."""
        self._world = world
        self._spendable = spendable
        self._load = load
        self._rng = rng
        self._network: NetworkId = world.network_id
        self.names = [f"acct-{i}" for i in range(load.accounts)]
        self.sent: list[SignedRequest] = []
        self._senders: list[str] = []
        self._tips: dict[str, list[bytes]] = {}
        self._heights: dict[str, int] = {}
        self._opened = 0

    # --- before the faults ---

    def setup(self) -> Iterator[Submit]:
        """Open every account and give it `funds`: each is to be completed before the next. Nothing fails yet."""
        for name in self.names:
            yield self._setup(opening(self._network, name, "CZK", public_key(name), self._nonce()))
        postings = [Posting(name, self._load.funds) for name in self.names]
        yield self._setup(transfer(self._network, ISSUER, postings, self._nonce()))

    def _setup(self, request: Request) -> Submit:
        return _submit(sign(request, key_of(request.sender)), SETUP_TIMEOUT_MS)

    # --- with faults ---

    def begin(self, seconds: float) -> None:
        """Schedule all requests of the fault phase."""
        for _ in range(self._load.requests):
            self._world.at(self._world.now + self._rng.uniform(0, seconds), self._act)

    def _act(self) -> None:
        draw = self._rng.random
        load = self._load
        if draw() < load.read:
            self._read()
        elif self.sent and draw() < load.again:
            self._send_again()
        elif self.sent and draw() < load.cancel:
            at = self._rng.randrange(len(self.sent))
            request = cancellation(self._network, self._senders[at], self.sent[at].request_id, self._nonce())
            self._send(request)
        elif draw() < load.reopen:
            self._reopen()
        else:
            self._pay()

    def _pay(self) -> None:
        draw, load = self._rng.random, self._load
        sender, recipient = self._pair()
        if draw() < load.hot:
            sender, recipient = self.names[0], self.names[1]
        if draw() < load.nobody:
            recipient = f"nobody-{self._rng.randrange(100)}"
        amount = self._rng.randint(1, max(1, load.funds // 3))
        if draw() < load.overdraft:
            amount = load.funds * (load.accounts + 1)
        count = self._rng.randint(1, load.max_postings)
        postings = [Posting(recipient, max(1, amount // count)) for _ in range(count)]
        tip = ANY_TIP
        if draw() < load.pinned and self._tips.get(sender):
            tip = self._rng.choice(self._tips[sender])
        until = ANY_HEIGHT
        if draw() < load.expiring:
            until = max(0, self._heights.get(sender, 0) + self._rng.randint(-1, 3))
        request = transfer(self._network, sender, postings, self._nonce(), expect_tip=tip, valid_until_height=until)
        spend = draw() < load.spend and recipient in self.names
        self._send(request, self._spend_on(recipient) if spend else None)

    def _spend_on(self, account: str) -> Callable[[ReplyBody], None]:
        """Who is told of money spends all it has at once, through whatever node."""

        def then(body: ReplyBody) -> None:
            if isinstance(body, Recorded) and body.outcome == 0:
                other = self._rng.choice([name for name in self.names if name != account])
                amount = max(1, self._spendable(account))
                self._send(transfer(self._network, account, [Posting(other, amount)], self._nonce()))

        return then

    def _reopen(self) -> None:
        """One name, two keys, two nodes, at once."""
        self._opened += 1
        name = f"late-{self._opened}"
        for owner in (name, f"{name} again"):
            raw = opening(self._network, name, "CZK", public_key(owner), self._nonce())
            self._submit(sign(raw, key_of(owner)), name, self._pay_to(name))

    def _pay_to(self, name: str) -> Callable[[ReplyBody], None]:
        """Who is told that a name is open pays it at once, through whatever node."""

        def then(body: ReplyBody) -> None:
            if isinstance(body, Recorded) and body.outcome == 0:
                sender = self._rng.choice(self.names)
                self._send(transfer(self._network, sender, [Posting(name, 1)], self._nonce()))

        return then

    def _read(self) -> None:
        linearizable = self._rng.random() < 0.5
        name = self._rng.choice(self.names)
        height = self._heights.get(name, AT_ONCE) if self._rng.random() < self._load.session else AT_ONCE
        self._world.read(self.any_node(), AskBalance(name, linearizable, height, 5000), self._note_tip)

    def _note_tip(self, body: ReplyBody) -> None:
        if isinstance(body, Balance):
            self._tips.setdefault(body.account, []).append(body.tip)

    def _send_again(self) -> None:
        at = self._rng.randrange(len(self.sent))
        self._world.submit(self.any_node(), _submit(self.sent[at], self._timeout_ms()))

    def _send(self, request: Request, then: Callable[[ReplyBody], None] | None = None) -> None:
        key = key_of(request.sender)
        if self._rng.random() < self._load.forge:
            self._world.submit(self.any_node(), _submit(sign(request, key_of("a thief")), self._timeout_ms()))
            return
        self._submit(sign(request, key), request.sender, then)

    def _submit(self, signed: SignedRequest, sender: str, then: Callable[[ReplyBody], None] | None = None) -> None:
        self.sent.append(signed)
        self._senders.append(sender)

        def done(body: ReplyBody) -> None:
            if isinstance(body, Recorded):
                self._tips.setdefault(sender, []).append(body.link_hash)
                self._heights[sender] = max(body.height, self._heights.get(sender, 0))
            if then is not None:
                then(body)

        self._world.submit(self.any_node(), _submit(signed, self._timeout_ms()), done)

    # --- after the faults ---

    def pay_each_other(self) -> None:
        """A new payment of each account, to be asked for."""
        for sender, recipient in zip(self.names, [*self.names[1:], self.names[0]], strict=True):
            request = transfer(self._network, sender, [Posting(recipient, 1)], self._nonce())
            self.sent.append(sign(request, key_of(sender)))
            self._senders.append(sender)

    def asked(self) -> list[tuple[str, SignedRequest]]:
        """Every request so far, with its sender."""
        return list(zip(self._senders, self.sent, strict=True))

    def settle(self, nodes: list[int]) -> None:
        """Send every request once more, to one of `nodes`, and ask for every balance."""
        for signed in list(self.sent):
            self._world.submit(self._rng.choice(nodes), _submit(signed, SETTLE_TIMEOUT_MS))
        for name in self.names:
            self._world.read(self._rng.choice(nodes), AskBalance(name, True, AT_ONCE, SETTLE_TIMEOUT_MS))

    # --- chance ---

    def _pair(self) -> tuple[str, str]:
        sender, recipient = self._rng.sample(self.names, 2)
        return sender, recipient

    def any_node(self) -> int:
        """A node that is up."""
        alive = [node.index for node in self._world.nodes if node.core is not None]
        return self._rng.choice(alive or [0])

    def _nonce(self) -> bytes:
        return self._rng.randbytes(32)

    def _timeout_ms(self) -> int:
        return int(self._rng.choice(self._load.timeout_s) * 1000)


def _submit(signed: SignedRequest, timeout_ms: int) -> Submit:
    return Submit(signed.raw, signed.signature, timeout_ms)


def open_and_fund(world: World, clients: Clients) -> None:
    """Open every account and give it its funds."""
    for submit in clients.setup():
        must_complete(world, clients.any_node(), submit)


def must_complete(world: World, node: int, submit: Submit) -> None:
    """Submit, and let time pass until it is completed. Nothing fails yet, so it must be."""
    answers: list[ReplyBody] = []
    world.submit(node, submit, answers.append)
    for _ in range(SETUP_STEPS):
        if answers:
            break
        world.run_for(SETUP_STEP_S)
    assert answers, "the network did not start"
    assert isinstance(answers[0], Recorded), answers
    assert answers[0].outcome == 0, answers

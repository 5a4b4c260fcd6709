"""The operator of the simulated network: asks for changes of the members, as the commands do, until they are made.

A wish is a member to add or to remove. It is asked of a living member; without `Changed` after RETRY_S of another one,
as `hopchain join`, `leave` and `replace` do. What the network could not bear (netsim.losses) is not wished for, and
while a wish is open no disk is lost that it would need.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

import msgspec

from chain.request import NetworkId
from hopchain.change import FIRST_INCARNATION, Change, ChangeAction, sign_change
from hopchain.wire import Changed, Refused, ReplyBody, SubmitChange
from netsim.names import EPOCH_MS, OPERATOR, key_of, node_name, public_key
from node.core import Core
from routing.keyspace import NodeId
from routing.view import View, member_of, with_member, without_member

RETRY_S: Final = 1.0  # without an answer, or after one that is not the last
CALL_S: Final = 4.0  # how long a node is given for one call
FOR_EVER_MS: Final = EPOCH_MS + 10 * 365 * 86_400_000  # clocks jump by days
FINAL: Final = ("removed", "impossible")  # refusals that no other member would take back
MAX_TOGETHER: Final = 6  # open wishes of which each combination is looked at before a disk is lost


class HostNode(Protocol):
    """A simulated node; `core` is None while it is down."""

    @property
    def index(self) -> int: ...
    @property
    def id(self) -> NodeId: ...
    @property
    def core(self) -> Core | None: ...


class ChangeHost(Protocol):
    """A simulated network whose members can be changed."""

    @property
    def nodes(self) -> Sequence[HostNode]: ...
    @property
    def now(self) -> float: ...
    def at(self, when: float, act: Callable[[], None]) -> None: ...
    def change(self, node: int, submit: SubmitChange, done: Callable[[ReplyBody], None]) -> int: ...


class Wish(msgspec.Struct):
    """What the operator wants: a node to be a member, or not to be one. `ended`: the answer that settled it."""

    node: int
    node_id: NodeId
    add: bool
    force: bool
    then: Callable[[], None] | None = None
    asked_at: float = float("-inf")
    waiting: bool = False
    ended: Changed | Refused | None = None
    last: str = "never answered"
    given_up: bool = False

    @property
    def over(self) -> bool:
        """True when nobody asks for it any more."""
        return self.given_up or self.ended is not None


class Operator:
    """All wishes of one run."""

    def __init__(self, host: ChangeHost, network: NetworkId, rng: random.Random) -> None:
        self._host = host
        self._network = network
        self._rng = rng
        self.wishes: list[Wish] = []

    @property
    def idle(self) -> bool:
        """True when every wish is over."""
        return all(wish.over for wish in self.wishes)

    def __str__(self) -> str:
        open_ = [wish for wish in self.wishes if not wish.over]
        return ", ".join(f"{'add' if wish.add else 'remove'} node {wish.node}: {wish.last}" for wish in open_)

    def want(self, wish: Wish) -> None:
        """Begin to ask."""
        self.wishes.append(wish)
        self._look(wish)

    def give_up(self, node: int) -> None:
        """Ask no more for a node that is gone for ever to be added. That may still happen, when it was asked for."""
        for wish in self.wishes:
            wish.given_up = wish.given_up or (wish.add and wish.node == node)

    def possible(self, newest: View, wish: Wish | None = None) -> list[View]:
        """The views that may follow `newest` when some of the wishes are made, and `wish` too: one after the other, in
        whatever order, so each set of them. A wish that its operator gave up may still be made."""
        open_ = [w for w in [*self.wishes, *([wish] if wish else [])] if newest.is_member(w.node_id) != w.add]
        return list(_combinations(newest, open_[-MAX_TOGETHER:]))

    def _look(self, wish: Wish) -> None:
        """Ask, unless an answer is still to be hoped for; and look again."""
        if wish.over:
            return
        now = self._host.now
        members = self._members()
        if members and (not wish.waiting or now >= wish.asked_at + CALL_S + RETRY_S):
            wish.asked_at, wish.waiting = now, True
            self._host.change(self._rng.choice(members), self._signed(wish), lambda body: self._hear(wish, now, body))
        self._host.at(now + RETRY_S, lambda: self._look(wish))

    def _members(self) -> list[int]:
        """The nodes that run and believe themselves to be members."""
        return [n.index for n in self._host.nodes if n.core is not None and n.core.view.is_member(n.id)]

    def _signed(self, wish: Wish) -> SubmitChange:
        action = ChangeAction.ADD if wish.add else ChangeAction.REMOVE
        change = Change(
            self._network,
            action,
            public_key(node_name(wish.node)),
            FIRST_INCARNATION,
            FOR_EVER_MS,
            force=wish.force and not wish.add,
        )
        signed = sign_change(change, key_of(OPERATOR))
        return SubmitChange(signed.raw, signed.signature, int(CALL_S * 1000))

    def _hear(self, wish: Wish, asked_at: float, body: ReplyBody) -> None:
        if wish.asked_at == asked_at:
            wish.waiting = False
        wish.last = str(body)
        if wish.ended is not None:
            return
        if isinstance(body, Changed) and body.member == wish.add:
            wish.ended = body
            if wish.then is not None:
                self._host.at(self._host.now, wish.then)
        elif isinstance(body, Refused) and body.code in FINAL:
            wish.ended = body


def _combinations(newest: View, wishes: Sequence[Wish]) -> Iterator[View]:
    for chosen in range(1, 1 << len(wishes)):
        view = newest
        for wish in sorted((w for i, w in enumerate(wishes) if chosen >> i & 1), key=lambda w: not w.add):
            if view.is_member(wish.node_id) == wish.add:
                continue
            if wish.add:
                view = with_member(view, member_of(public_key(node_name(wish.node))), 0, bytes(20))
            elif len(view.members) > 1:
                view = without_member(view, wish.node_id, 0, bytes(20))
        yield view

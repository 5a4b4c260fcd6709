"""Single-decree Paxos for one slot, without I/O (Lamport, "Paxos Made Simple"; design section 3).

The rules that live here:

* R2  a ballot is (epoch, round, node), compared in that order; an acceptor refuses what is lower than its promise.
* R3  round 0 belongs to the owner and skips phase 1; every other ballot has a round >= 1 and runs phase 1.
* R4  an acceptor's `Vote` is durable before its answer leaves; a proposer votes for its own value first, and that
      vote is its durable record of (slot, ballot, value): one value per ballot, for ever.
* R10 votes are counted by distinct node, for the same ballot, among the group pinned when the ballot was made.

`Vote` is what one acceptor knows about one undecided slot. `prepare`, `accept` and `merge` are its only transitions;
they are idempotent. `Proposer` drives one ballot of one node; a new ballot is a new `Proposer`. The value is opaque.

    prepare(vote, ballot) -> Vote | Refusal        Proposer.on_promise -> value to accept, when a majority promised
    accept(vote, ballot, value) -> Vote | Refusal  Proposer.on_accepted -> True, when a majority accepted
    merge(vote, ballot, value) -> Vote             what another node voted for, when this one syncs (design R8)
"""

from typing import Annotated, Final, Generic, TypeVar

import msgspec

from chain.errors import RemoteFault
from routing.keyspace import ID_BYTES, NodeId, short
from routing.view import majority

MAX_BALLOT: Final = 2**32  # no message with more can be read; far below what fits SQLite
# Of what is taken from others, so that they can read one's own next rounds: at ten rounds a second, seven years.
MAX_ROUND: Final = 2**31

BallotColumns = tuple[int, int, bytes]  # of a row: epoch, round, node

Value = TypeVar("Value")


class Ballot(msgspec.Struct, frozen=True, gc=False, array_like=True, order=True):
    """(epoch, round, node): totally ordered; no two nodes share one, and a node never uses one for two values."""

    epoch: Annotated[int, msgspec.Meta(ge=1, le=MAX_BALLOT)]
    round: Annotated[int, msgspec.Meta(ge=0, le=MAX_BALLOT)]
    node: NodeId


def check_ballot_untrusted(ballot: Ballot, *, last: int = MAX_ROUND) -> None:
    """`RemoteFault` unless it is the ballot of some node, of round `last` at most."""
    if ballot.round > last or len(ballot.node) != ID_BYTES:
        raise RemoteFault(
            "malformed",
            f"a ballot of round {ballot.round} and a node of {len(ballot.node)} bytes: rounds end at {last}, ids have "
            f"{ID_BYTES} bytes",
        )


def check_proposer_untrusted(peer: NodeId, ballot: Ballot) -> None:
    """`RemoteFault` unless `ballot` is one that `peer` may propose with: its own."""
    check_ballot_untrusted(ballot)
    if peer != ballot.node:
        raise RemoteFault("malformed", f"node {short(peer)} proposes with a ballot of node {short(ballot.node)}")


def ballot_of(columns: BallotColumns) -> Ballot:
    """The ballot of a row."""
    epoch, round_, node = columns
    return Ballot(epoch, round_, NodeId(node))


def columns_of(ballot: Ballot) -> BallotColumns:
    """A ballot as a row has it."""
    return (ballot.epoch, ballot.round, ballot.node)


class Vote(msgspec.Struct, Generic[Value], frozen=True, gc=False):
    """An acceptor's memory of a slot: the highest ballot promised, and the last accepted one with its value."""

    promised: Ballot
    accepted: Ballot | None = None
    value: Value | None = None


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """The ballot is lower than one promised before, or has another value; the proposer must go above `promised`."""

    promised: Ballot


def prepare(vote: Vote[Value] | None, ballot: Ballot) -> Vote[Value] | Refusal:
    """Phase 1 at an acceptor: promise to accept nothing below `ballot`."""
    if vote is None:
        return Vote(ballot)
    if ballot < vote.promised:
        return Refusal(vote.promised)
    return Vote(ballot, vote.accepted, vote.value)


def accept(vote: Vote[Value] | None, ballot: Ballot, value: Value) -> Vote[Value] | Refusal:
    """Phase 2 at an acceptor: vote for `value` unless a higher ballot was promised, or this one has another value
    here."""
    if vote is not None and ballot < vote.promised:
        return Refusal(vote.promised)
    if vote is not None and vote.accepted == ballot:
        # The same message again, or another value: the first one of a ballot is its only one (R4).
        return vote if vote.value == value else Refusal(vote.promised)
    return Vote(ballot, ballot, value)


def merge(vote: Vote[Value] | None, ballot: Ballot, value: Value) -> Vote[Value]:
    """A sync (design R8): keep the vote of another node when it is higher than the one here."""
    if vote is None:
        return Vote(ballot, ballot, value)
    if vote.accepted is None or vote.accepted < ballot:
        return Vote(max(vote.promised, ballot), ballot, value)
    return vote


class Proposer(Generic[Value]):
    """One ballot of one node for one slot: first promises (unless the ballot is round 0), then votes.

    `group`: the acceptors, pinned now (R10). The caller sends what is asked, and re-sends at will.
    """

    def __init__(self, ballot: Ballot, group: tuple[NodeId, ...]) -> None:
        assert ballot.node in group, (ballot, group)
        self.ballot = ballot
        self.group = group
        self.value: Value | None = None
        self._promised: set[NodeId] = set()
        self._voted: set[NodeId] = set()
        self._found: tuple[Ballot, Value] | None = None

    @property
    def prepared(self) -> bool:
        """True when phase 2 may begin: at once for round 0 (R3), else after a majority of promises."""
        return self.ballot.round == 0 or len(self._promised) >= majority(len(self.group))

    @property
    def decided(self) -> bool:
        """True when a majority of the pinned group has voted for `value` at this ballot."""
        return len(self._voted) >= majority(len(self.group))

    @property
    def lacking(self) -> int:
        """How many votes more make a majority; 0 or less when it is decided."""
        return majority(len(self.group)) - len(self._voted)

    @property
    def found(self) -> Value | None:
        """The value that must be proposed: the highest-ballot vote among the promises, or None when one is free."""
        return self._found[1] if self._found else None

    def on_promise(self, node: NodeId, ballot: Ballot, accepted: Ballot | None, value: Value | None) -> bool:
        """Count a promise; True when this one completed the majority."""
        if ballot != self.ballot or node not in self.group or node in self._promised or self.value is not None:
            return False
        before = self.prepared
        self._promised.add(node)
        if accepted is not None and (self._found is None or accepted > self._found[0]):
            assert value is not None
            self._found = (accepted, value)
        return self.prepared and not before

    def propose(self, value: Value) -> None:
        """Fix the one value of this ballot. It must be `found` when there is one."""
        assert self.prepared, self.ballot
        assert self.value is None, self.ballot
        assert self._found is None or self._found[1] == value, self.ballot
        self.value = value

    def on_accepted(self, node: NodeId, ballot: Ballot) -> bool:
        """Count a vote; True when this one completed the majority: the value is decided."""
        if ballot != self.ballot or node not in self.group or node in self._voted or self.value is None:
            return False
        before = self.decided
        self._voted.add(node)
        return self.decided and not before

    def silent(self) -> tuple[NodeId, ...]:
        """The members of the group that have not answered the current phase, in rank order."""
        heard = self._promised if self.value is None else self._voted
        return tuple(n for n in self.group if n not in heard)

"""node.paxos: no two values are chosen in one slot, in any schedule (design section 3, R2, R3, R4, R10).

Small plans are searched completely, larger groups at random. Then each rule is switched off in turn, and the same
search must find the schedule that it forbids.
"""

import random
from collections.abc import Callable

import pytest

from chain.errors import RemoteFault
from node import paxos
from node.paxos import Ballot, Proposer, Refusal, Vote
from routing.keyspace import ID_BYTES, NodeId
from tests.node.paxos_search import A, B, C, D, E, NotChosen, Plan, Rules, Search, TwoChosen, Value

# The owner at round 0, a standby that takes over, the owner again.
TAKEOVER = Plan((A, B, C), ((1, 0, A), (1, 1, B), (1, 2, A)))
PAIR = Plan((A, B), ((1, 0, A), (1, 1, B), (1, 2, A), (1, 3, B)), crashes=2)
RIVALS = Plan((A, B, C), ((1, 0, A), (1, 1, B), (1, 1, C)), crashes=0)
FORGETFUL = Plan((A, B, C), ((1, 0, A), (1, 1, B)), crashes=3)
AGAIN = Plan((A, B, C), ((1, 1, A), (1, 2, B), (1, 3, A)), crashes=0)

EXHAUSTIVE = {"takeover": TAKEOVER, "pair": PAIR, "rivals": RIVALS, "forgetful": FORGETFUL}
MAX_STATES = 150_000


@pytest.mark.parametrize("name", EXHAUSTIVE)
def test_no_schedule_chooses_two_values(name: str, record_property: Callable[[str, object], None]) -> None:
    states = Search(EXHAUSTIVE[name]).exhaust(MAX_STATES)
    record_property("states", states)
    print(f"{name}: {states} states")  # noqa: T201 - shown with -s
    assert states > 500


@pytest.mark.parametrize("group", [(A, B, C), (A, B, C, D), (A, B, C, D, E)], ids=len)
def test_no_random_schedule_chooses_two_values(group: tuple[NodeId, ...]) -> None:
    rng = random.Random(len(group))
    for _ in range(40):
        rounds = [(1, r, rng.choice(group)) for r in range(1, rng.randint(3, 5))]
        Search(Plan(group, ((1, 0, A), *rounds), crashes=3)).wander(rng, 120)


def test_a_schedule_can_choose_the_value_of_every_ballot() -> None:
    """The search is not empty: each ballot of the plan gets its value chosen in some schedule."""
    seen: set[Value] = set()

    class Watching(Search):
        def check(self, state: object) -> None:
            seen.update(self.chosen(state))  # type: ignore[arg-type]

    Watching(TAKEOVER._replace(crashes=0)).exhaust(MAX_STATES)
    assert seen == {"1.0.0A", "1.1.0B", "1.2.0A"}


# --- each rule switched off -----------------------------------------------------------------------------------------


class WithoutNode(Ballot, frozen=True, array_like=True, order=False):
    """R2: the ballots of two nodes in one round are neither lower nor higher."""

    def __lt__(self, other: Ballot) -> bool:
        return (self.epoch, self.round) < (other.epoch, other.round)

    def __gt__(self, other: Ballot) -> bool:
        return (self.epoch, self.round) > (other.epoch, other.round)


class AnybodyIsFast(Rules):
    def may_start(self, ballot: Ballot, vote: Vote[Value] | None, group: tuple[NodeId, ...]) -> bool:
        return vote is None if ballot.round == 0 else super().may_start(ballot, vote, group)


class FastAfterRestart(Rules):
    def may_start(self, ballot: Ballot, vote: Vote[Value] | None, group: tuple[NodeId, ...]) -> bool:
        return ballot.node == group[0] if ballot.round == 0 else super().may_start(ballot, vote, group)


class VoteNotPersisted(Rules):
    def persist(self, disk: Vote[Value] | None, vote: Vote[Value]) -> Vote[Value] | None:
        return disk


class PromiseNotPersisted(Rules):
    def persist(self, disk: Vote[Value] | None, vote: Vote[Value]) -> Vote[Value] | None:
        return disk if vote.accepted is None else vote


class ProposerForgets(Rules):
    def persist_own(self, disk: Vote[Value] | None, vote: Vote[Value]) -> Vote[Value] | None:
        return disk


class FoundIgnored(Rules):
    def choose(self, proposer: Proposer[Value], own: Value) -> Value:
        vars(proposer)["_found"] = None
        return own


class LowestFound(Proposer[Value]):
    def on_promise(self, node: NodeId, ballot: Ballot, accepted: Ballot | None, value: Value | None) -> bool:
        lower = self._found
        done = super().on_promise(node, ballot, accepted, value)
        if lower is not None and accepted is not None and lower[0] < accepted:
            self._found = lower
        return done


class CountsTwice(Proposer[Value]):
    """R10: a vote that arrives twice counts twice."""

    def on_accepted(self, node: NodeId, ballot: Ballot) -> bool:
        again = NodeId(node + b"'") if node in self._voted else node
        self.group = (*self.group, again) if again not in self.group else self.group
        before = len(self._voted)
        super().on_accepted(again, ballot)
        return len(self._voted) > before and len(self._voted) == 2


class CountsOtherBallots(Proposer[Value]):
    """R10: votes for another ballot count."""

    def on_accepted(self, node: NodeId, ballot: Ballot) -> bool:
        return super().on_accepted(node, self.ballot)


class CountsOtherPromises(Proposer[Value]):
    def on_promise(self, node: NodeId, ballot: Ballot, accepted: Ballot | None, value: Value | None) -> bool:
        return super().on_promise(node, self.ballot, accepted, value)


class WithoutPhaseOne(Proposer[Value]):
    prepared = True


def accept_below_promise(vote: Vote[Value] | None, ballot: Ballot, value: Value) -> Vote[Value] | Refusal:
    return Vote(ballot, ballot, value)


def promise_below_promise(vote: Vote[Value] | None, ballot: Ballot) -> Vote[Value] | Refusal:
    return Vote(ballot) if vote is None else Vote(ballot, vote.accepted, vote.value)


def promise_without_vote(vote: Vote[Value] | None, ballot: Ballot) -> Vote[Value] | Refusal:
    result = PREPARE(vote, ballot)
    return result if isinstance(result, Refusal) else Vote(ballot)


def accept_ignores_value(vote: Vote[Value] | None, ballot: Ballot, value: Value) -> Vote[Value] | Refusal:
    same = vote is not None and vote.accepted == ballot and vote.promised == ballot
    return vote if same and vote is not None else ACCEPT(vote, ballot, value)


ACCEPT, PREPARE = paxos.accept, paxos.prepare
FAST_STANDBY = Plan((A, B, C), ((1, 0, A), (1, 0, B)), crashes=0)
FOUR = Plan((A, B, C, D), ((1, 0, A), (1, 1, B)), crashes=0)
FOUR_AGAIN = Plan((A, B, C, D), ((1, 0, A), (1, 2, A)), crashes=0)

# What is replaced (a name in node.paxos, or the rules around it), by what, and a plan that shows it.
MUTANTS: dict[str, tuple[dict[str, object], Rules, Plan]] = {
    "R2 node not in the ballot": ({"Ballot": WithoutNode}, Rules(), RIVALS),
    "R3 fast path of a standby": ({}, AnybodyIsFast(), FAST_STANDBY),
    # Its own vote refuses the second value, too: both are switched off.
    "R3 fast path after a restart": ({"accept": accept_ignores_value}, FastAfterRestart(), FORGETFUL),
    "R3 takeover without phase 1": ({"Proposer": WithoutPhaseOne}, Rules(), TAKEOVER),
    "R4 vote not persisted": ({}, VoteNotPersisted(), TAKEOVER),
    "R4 promise not persisted": ({}, PromiseNotPersisted(), TAKEOVER),
    "R4 proposer forgets": ({}, ProposerForgets(), FORGETFUL),
    "R10 majority off by one": ({"majority": lambda n: n // 2}, Rules(), TAKEOVER),
    "R10 majority of four is two": ({"majority": lambda n: (n + 1) // 2}, Rules(), FOUR),
    "R10 vote counted twice": ({"Proposer": CountsTwice}, Rules(), TAKEOVER._replace(group=(A, B, C, D, E))),
    "R10 vote of another ballot counted": ({"Proposer": CountsOtherBallots}, Rules(), FOUR_AGAIN),
    "R10 promise of another ballot counted": ({"Proposer": CountsOtherPromises}, Rules(), AGAIN),
    "found value ignored": ({}, FoundIgnored(), TAKEOVER),
    "lowest found instead of highest": ({"Proposer": LowestFound}, Rules(), TAKEOVER),
    "accept below the promise": ({"accept": accept_below_promise}, Rules(), TAKEOVER),
    "promise below a promise": ({"prepare": promise_below_promise}, Rules(), AGAIN),
    "promise hides the vote": ({"prepare": promise_without_vote}, Rules(), TAKEOVER),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_without_this_rule_the_search_finds_two_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced, rules, plan = MUTANTS[name]
    for attribute, mutant in replaced.items():
        monkeypatch.setattr(paxos, attribute, mutant)
    with pytest.raises((TwoChosen, NotChosen)):
        Search(plan, rules).exhaust(MAX_STATES)


# --- single steps ---------------------------------------------------------------------------------------------------


def test_the_same_message_again_changes_nothing() -> None:
    ballot = Ballot(1, 1, A)
    promised: Vote[Value] | Refusal = paxos.prepare(None, ballot)
    assert isinstance(promised, Vote)
    assert paxos.prepare(promised, ballot) == promised
    voted = paxos.accept(promised, ballot, "v")
    assert isinstance(voted, Vote)
    assert paxos.accept(voted, ballot, "v") is voted


def test_a_second_value_of_one_ballot_is_refused() -> None:
    """R4: from a second process of the proposer. An answer that names no value would count for either."""
    ballot = Ballot(1, 0, A)
    voted = paxos.accept(None, ballot, "v")
    assert isinstance(voted, Vote)
    assert paxos.accept(voted, ballot, "w") == Refusal(ballot)
    promised = paxos.prepare(voted, Ballot(1, 2, B))
    assert isinstance(promised, Vote)
    assert paxos.accept(promised, ballot, "w") == Refusal(Ballot(1, 2, B))


def test_ballots_are_ordered_by_epoch_then_round_then_node() -> None:
    """R2. Any total order keeps one group safe; the epoch must be in front for the day the group changes
    (counterexample 7)."""
    ballots = [Ballot(1, 0, C), Ballot(1, 5, A), Ballot(1, 5, B), Ballot(2, 0, A), Ballot(2, 1, A)]
    assert sorted(random.Random(1).sample(ballots, 5)) == ballots


def test_a_vote_is_a_promise_too() -> None:
    voted = paxos.accept(Vote(Ballot(1, 1, B)), Ballot(1, 2, A), "v")
    assert isinstance(voted, Vote)
    assert paxos.accept(voted, Ballot(1, 1, B), "w") == Refusal(Ballot(1, 2, A))
    assert paxos.prepare(voted, Ballot(1, 1, C)) == Refusal(Ballot(1, 2, A))


def test_a_refusal_names_the_promise() -> None:
    vote: Vote[Value] = Vote(Ballot(1, 5, B))
    assert paxos.prepare(vote, Ballot(1, 4, C)) == Refusal(Ballot(1, 5, B))
    assert paxos.accept(vote, Ballot(1, 5, A), "v") == Refusal(Ballot(1, 5, B))


def test_a_node_proposes_with_its_own_ballots_only() -> None:
    node, other = (NodeId(bytes([n]) * ID_BYTES) for n in (1, 2))
    paxos.check_proposer_untrusted(node, Ballot(1, 1, node))
    for fault in (Ballot(1, 1, other), Ballot(1, paxos.MAX_ROUND + 1, node)):
        with pytest.raises(RemoteFault):
            paxos.check_proposer_untrusted(node, fault)
    with pytest.raises(RemoteFault):
        paxos.check_proposer_untrusted(A, Ballot(1, 1, A))  # its id is too short


def test_a_ballot_is_the_same_from_its_row() -> None:
    ballot = Ballot(3, 2, A)
    assert paxos.columns_of(ballot) == (3, 2, A)
    assert paxos.ballot_of(paxos.columns_of(ballot)) == ballot


def test_a_proposer_asks_those_who_have_not_answered_this_phase() -> None:
    proposer: Proposer[Value] = Proposer(Ballot(1, 1, A), (A, B, C))
    assert proposer.silent() == (A, B, C)
    assert not proposer.on_promise(A, proposer.ballot, None, None)
    assert not proposer.on_promise(A, proposer.ballot, None, None)
    assert not proposer.on_promise(D, proposer.ballot, None, None)
    assert proposer.silent() == (B, C)
    assert proposer.on_promise(C, proposer.ballot, None, None)
    proposer.propose("v")
    assert proposer.silent() == (A, B, C)
    assert not proposer.on_accepted(A, proposer.ballot)
    assert not proposer.on_accepted(D, proposer.ballot)
    assert proposer.on_accepted(B, proposer.ballot)
    assert proposer.decided
    assert not proposer.on_accepted(C, proposer.ballot)

"""What one turn does that could take two: a request is admitted, its link formed and voted for; a link is applied and
the next one of its account formed. Both with the rows that were loaded for the turn, and with no others."""

import math
import sqlite3
from typing import Any

import pytest

import tests.node.world as world_module
from chain.forming import FEW
from chain.link import Outcome
from chain.load import load
from chain.needs import Loaded, Needs
from chain.request import MANY_POSTINGS, DecodedRequest, Posting, opening, sign
from chain.rows import Applied, VoteRow
from hopchain.wire import Recorded, Refused, Submit
from node.effects import Effects, Stage
from node.events import Caller, ClientSubmit, FromPeer
from node.messages import Accepted, Forward, Offer, Pull
from node.queue import NO_GATEWAY, LookedUp, QueuedRequest
from routing.keyspace import NodeId
from tests.node.test_same_turn import payment
from tests.node.world import TOLD, Node, World, key_of, public


class Watched(World):
    """Keeps the effects of each turn, with whose turn it was, and checks what is left of the rows that it loaded to
    form links."""

    def __init__(self, nodes: int, k: int, seed: int) -> None:
        self.turns: list[tuple[NodeId, Effects]] = []
        self.beat_s = 0.0  # turns begin at multiples of this, so that each has several events
        self.loaded: dict[sqlite3.Connection, Loaded] = {}
        # How often a turn knew what the next link of an account depends on because it had applied the last.
        self.derived = 0
        super().__init__(nodes, k, seed)

    def _wake(self, node: Node, at: float | None = None) -> None:
        when = self.now if at is None else max(at, self.now)
        super()._wake(node, (math.floor(when / self.beat_s) + 1) * self.beat_s if self.beat_s else when)

    def finish_turn(self, node: Node, effects: Effects) -> None:
        self.turns.append((node.id, effects))
        super().finish_turn(node, effects)

    def persist(self, node: Node, stage: Stage) -> None:
        super().persist(node, stage)
        forming = self.loaded[node.conn].forming if node.conn in self.loaded else {}
        applied = {write.link.account for write in stage.persist if isinstance(write, Applied)}
        if forming and applied:
            self.derived += len(applied & forming.keys())
            assert load(node.conn, Needs(forming=set(forming))).forming == forming

    def of(self, node: NodeId) -> list[Effects]:
        """The turns of one node that wrote something, and forget them."""
        turns = [effects for whose, effects in self.turns if whose == node and effects.writes]
        self.turns.clear()
        return turns


@pytest.fixture(autouse=True)
def _watch_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tells each `Watched` what its turns have loaded."""
    worlds: list[Watched] = []
    before = Watched.__init__

    def begin(self: Watched, *args: Any) -> None:
        worlds.append(self)
        before(self, *args)

    def note(conn: sqlite3.Connection, needs: Needs) -> Loaded:
        loaded = load(conn, needs)
        for world in worlds:
            world.loaded[conn] = loaded
        return loaded

    monkeypatch.setattr(Watched, "__init__", begin)
    monkeypatch.setattr(world_module, "load", note)


def kinds(effects: Effects) -> list[type]:
    """Of what one turn writes: votes and links."""
    return [type(write) for write in effects.writes if isinstance(write, VoteRow | Applied)]


@pytest.fixture
def world() -> Watched:
    world = Watched(3, 3, 3)
    world.open_funded(alice=1000, bob=0)
    world.turns.clear()
    return world


def test_the_owner_votes_in_the_turn_that_brings_a_clients_request(world: Watched) -> None:
    owner = world.group("alice")[0]
    call = world.submit(owner, world.pay_request("alice", "bob", 5))
    world.run_until_answered([call], 1)
    first, *_ = world.turns
    assert first[0] == owner
    assert kinds(first[1]) == [VoteRow], "the turn after the client's frame"
    assert isinstance(call.answer, Recorded) and call.answer.outcome == Outcome.COMPLETED
    assert call.answer.hops == 0, "it went to nobody else"


def test_a_request_for_another_owner_is_handed_on_in_the_turn_that_brings_it(world: Watched) -> None:
    gateway = next(node for node in world.ids if node != world.group("alice")[0])
    call = world.submit(gateway, world.pay_request("alice", "bob", 5))
    world.run_until_answered([call], 1)
    (_, first), *_ = world.turns
    assert first.facts is not None
    assert [type(send.message) for send in first.facts.send] == [Forward]
    assert isinstance(call.answer, Recorded) and call.answer.hops == 1


def needs_of(world: World, node: NodeId, submit: Submit) -> tuple[Needs, Effects]:
    """What a turn with one client's call would look at, and what it makes of it."""
    core, now = world.core(node), world._clock(world.nodes[node])
    needs = core.needs([ClientSubmit(Caller(7, 1), submit)], now)
    return needs, core.step(load(world.nodes[node].conn, needs), now)


def test_rows_of_a_link_are_not_loaded_for_who_does_not_sign_for_the_account(world: Watched) -> None:
    """A recipient of thousands of postings has thousands of rows: nobody but its owner can have them read."""
    owner = world.group("alice")[0]
    good = world.pay_request("alice", "bob", 5)
    for signed in (world.forge(good), good):
        needs, _ = needs_of(world, owner, Submit(signed.raw, signed.signature, 1000))
        assert needs.forming_few == ({"alice"} if signed is good else set())
        assert not needs.forming and not needs.income
        loaded = load(world.nodes[owner].conn, needs)
        assert loaded.forming.keys() == loaded.income.keys() == needs.forming_few
        assert not world.core(owner).admission._signed, "what was checked counts for one turn"
    world.nodes[owner].core = None  # its last turn was not finished
    (refused,) = needs_of(world, world.group("bob")[0], Submit(*bad(world, "bob"), 1000))[1].answers
    assert isinstance(refused.body, Refused) and refused.body.code == "bad_signature"


def test_much_is_not_loaded_before_a_request_is_known_to_be_new(world: Watched) -> None:
    """Sent again, a request that is recorded is signed as well: what it has loaded must not cost more than it did to
    send it."""
    for _ in range(FEW + 1):
        world.settle(world.ids[0], world.pay_request("mint", "bob", 1))
    world.run(1)
    owner = world.group("bob")[0]
    signed = world.pay_request("bob", "alice", FEW + 1)
    node, now = world.nodes[owner], world._clock(world.nodes[owner])
    needs = world.core(owner).needs([ClientSubmit(Caller(7, 1), Submit(signed.raw, signed.signature, 1000))], now)
    loaded = load(node.conn, needs)
    assert needs.forming_few == {"bob"} and not loaded.forming and not loaded.income
    many = world.pay_many_request("alice", [Posting("bob", 1)] * MANY_POSTINGS)
    owner = world.group("alice")[0]
    now = world._clock(world.nodes[owner])
    needs = world.core(owner).needs([ClientSubmit(Caller(7, 1), Submit(many.raw, many.signature, 1000))], now)
    assert not needs.forming_few and needs.heads == {"alice"}


@pytest.mark.parametrize("waiting", [1, FEW, FEW + 1])
def test_whoever_many_postings_wait_for_pays_all_the_same(world: Watched, waiting: int) -> None:
    for _ in range(waiting - 1):  # besides her first money
        world.settle(world.ids[0], world.pay_request("mint", "alice", 1))
    world.run(1)
    world.turns.clear()
    owner = world.group("alice")[0]
    call = world.submit(owner, world.pay_request("alice", "bob", 999 + waiting))
    world.run_until_answered([call], 1)
    assert isinstance(call.answer, Recorded) and call.answer.outcome == Outcome.COMPLETED
    assert kinds(world.turns[0][1]) == ([VoteRow] if waiting <= FEW else [])


@pytest.mark.parametrize("forged_first", [False, True])
def test_a_request_and_its_forged_copy_in_one_turn_have_each_their_own_verdict(
    world: Watched, *, forged_first: bool
) -> None:
    owner = world.group("alice")[0]
    good = world.pay_request("alice", "bob", 5)
    calls = [world.submit(owner, good), world.submit(owner, world.forge(good), forged=True)]
    if forged_first:
        world.nodes[owner].inbox.reverse()
    world.run_until_answered(calls, 1)
    fine, refused = (call.answer for call in calls)
    assert isinstance(fine, Recorded) and fine.outcome == Outcome.COMPLETED
    assert isinstance(refused, Refused) and refused.code == "bad_signature"


def test_who_opens_a_name_that_is_taken_is_told_so_not_that_the_signature_is_wrong(world: Watched) -> None:
    """The key of the request is its own; the one that the node is familiar with is that of the account."""
    other = sign(opening(world.network, "alice", "CZK", public(key_of("mallory")), bytes(32)), key_of("mallory"))
    call = world.submit(world.group("alice")[0], other)
    world.run_until_answered([call], 1)
    assert isinstance(call.answer, Refused) and call.answer.code == "name_taken"


def test_a_queue_is_walked_once_in_a_turn_however_many_requests_it_brings(
    world: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = world.core(world.group("alice")[0]).owner
    waiting, new = ([payment(number) for number in numbers] for numbers in (range(100), range(100, 150)))
    work = owner._works.begin("alice", 0.0)
    assert all(owner._works.put_in(work, QueuedRequest(decoded, NO_GATEWAY, 0.0)) for decoded in waiting)
    added: list[DecodedRequest] = []
    add = LookedUp.add

    def count(self: LookedUp, decoded: DecodedRequest) -> bool:
        added.append(decoded)
        return add(self, decoded)

    monkeypatch.setattr(LookedUp, "add", count)
    needs = Needs()
    for decoded in new:
        owner.needs_queued("alice", world.tip(owner._self.id, "alice"), [decoded], needs)
    assert added == [*waiting, *new], "those that wait come first"
    assert needs.forming == needs.income == {"alice"} and len(needs.outcomes) == 150
    work.refusals, needs = 1, Needs()  # it is being decided, or was
    owner.needs_queued("alice", world.tip(owner._self.id, "alice"), new, needs)
    assert needs == Needs()


def test_of_five_nodes_the_vote_that_makes_the_majority_has_the_next_link_loaded() -> None:
    world, owner, _ = waiting_at_the_next_owner(same=True, nodes=5)
    votes = world.votes  # type: ignore[attr-defined]
    assert len(votes) == 4
    for expected in (set(), {"alice"}, set()):  # two more than its own make three; a third changes nothing
        needs = Needs()
        world.core(owner).owner.needs_accepted(votes.pop()[1], needs)
        assert needs.forming == expected


def test_a_request_whose_link_comes_in_the_turn_that_brings_it_made_no_hops() -> None:
    world = Watched(3, 3, 3)
    world.open_funded(alice=1000, bob=0)
    for _ in range(4):
        world.settle(world.ids[0], world.pay_request("alice", "bob", 1))
    owner = world.group("alice")[0]
    other = next(node for node in world.ids if node != owner)
    held = hold_back(world, owner, other)
    signed = world.pay_request("alice", "bob", 1)
    assert isinstance(world.ask(owner, signed), Recorded)
    call = world.submit(other, signed)
    world.deliver(other, held[0])
    world.run_until_answered([call], 1)
    assert isinstance(call.answer, Recorded) and call.answer.hops == 0


def bad(world: World, name: str) -> tuple[bytes, bytes]:
    signed = world.forge(world.pay_request(name, "alice", 1))
    return signed.raw, signed.signature


def test_a_node_that_has_just_started_is_familiar_with_nobody_and_pays_all_the_same(world: Watched) -> None:
    owner = world.group("alice")[0]
    world.crash(owner)
    world.start(owner)
    world.run(3)
    world.turns.clear()
    seen: list[list[type]] = []
    for _ in range(20):
        mine = world.group("alice")[0] == owner
        call = world.submit(owner, world.pay_request("alice", "bob", 5))
        world.run_until_answered([call], 1)
        assert isinstance(call.answer, Recorded)
        if mine:
            seen.append(kinds(next(effects for whose, effects in world.turns if whose == owner)))
        world.turns.clear()
    assert seen[0] == [] and seen[1:] and all(first == [VoteRow] for first in seen[1:])


def waiting_at_the_next_owner(*, same: bool, nodes: int = 3) -> tuple[Watched, NodeId, NodeId]:
    """A world in which two payments of alice are on their way: a link of the first is being decided, the second waits.
    `same`: the next link is made by the same owner; else another one makes it. Also who makes the first and who the
    next."""
    for seed in range(1, 200):
        world = Watched(nodes, nodes, seed)
        world.open_funded(alice=1000, bob=0)
        owner = world.group("alice")[0]
        votes: list[tuple[NodeId, Accepted]] = []

        def hold(source: NodeId, target: NodeId, message: object, votes: list[Any] = votes) -> bool:
            if isinstance(message, Accepted):
                votes.append((source, message))
                return True
            return isinstance(message, Offer | Pull)

        world.lose = hold
        world.submit(owner, world.pay_request("alice", "bob", 1))
        world.run_until(lambda votes=votes: len(votes) == nodes - 1, 0.2)
        link = world.core(owner).owner._works.deciding(world.tip(owner, "alice")).proposer.value
        next_owner = world.view.group(link.next_slot[:20])[0]
        world.lose = lambda source, target, message: isinstance(message, Offer | Pull)
        if (next_owner == owner) is same:
            world.submit(owner, world.pay_request("alice", "bob", 2))
            world.run(0.01)
            world.votes = votes  # type: ignore[attr-defined]
            world.turns.clear()
            return world, owner, next_owner
    raise AssertionError("no such seed")


def hold_back(world: World, owner: NodeId, target: NodeId) -> list[FromPeer]:
    """What `owner` tells `target` of decided links and hands it from now on, which does not arrive; nor does what fills
    gaps."""
    held: list[FromPeer] = []

    def hold(source: NodeId, to: NodeId, message: object) -> bool:
        if (source, to) == (owner, target) and isinstance(message, TOLD | Forward):
            held.append(FromPeer(source, message))
            return True
        return isinstance(message, Offer | Pull)

    world.lose = hold
    return held


def test_the_vote_that_decides_a_link_begins_the_next_one_of_the_same_owner() -> None:
    world, owner, _ = waiting_at_the_next_owner(same=True)
    source, vote = world.votes[0]  # type: ignore[attr-defined]
    first, second = (call.signed.request_id for call in list(world.calls.values())[-2:])
    needs = Needs()
    world.core(owner).owner.needs_accepted(vote, needs)
    assert needs.forming == {"alice"}
    assert ("alice", second) in needs.outcomes and ("alice", first) not in needs.outcomes
    world.core(owner).proposing._heard.clear()  # that was no turn
    world.deliver(owner, FromPeer(source, vote))
    world.run(0.001)
    (turn, *_) = world.of(owner)
    assert kinds(turn) == [VoteRow, Applied]
    assert not world.core(owner).proposing._heard, "votes are counted for one turn"
    world.run(2)
    assert all(isinstance(call.answer, Recorded) for call in world.calls.values())


def test_the_next_owner_votes_in_the_turn_that_brings_the_link_and_what_waits_behind_it() -> None:
    world, owner, next_owner = waiting_at_the_next_owner(same=False)
    held = hold_back(world, owner, next_owner)
    source, vote = world.votes[0]  # type: ignore[attr-defined]
    needs = Needs()
    world.core(owner).owner.needs_accepted(vote, needs)
    assert not needs.forming, "another node makes the next link"
    world.deliver(owner, FromPeer(source, vote))
    assert world.run_until(lambda: len(held) == 2, 0.2)
    world.turns.clear()
    for event in held:
        world.deliver(next_owner, event)
    world.run(0.001)
    (turn, *_) = world.of(next_owner)
    assert kinds(turn) == [VoteRow, Applied]
    world.run(2)
    assert all(isinstance(call.answer, Recorded) for call in world.calls.values())


def test_a_client_of_the_next_owner_waits_for_no_second_turn() -> None:
    """Its request comes with the link, and the node that it asks is the one that makes the next: it is expected to."""
    world, owner, next_owner = waiting_at_the_next_owner(same=False)
    held = hold_back(world, owner, next_owner)
    source, vote = world.votes[0]  # type: ignore[attr-defined]
    world.deliver(owner, FromPeer(source, vote))
    assert world.run_until(lambda: len(held) == 2, 0.2)
    (link,) = (event for event in held if isinstance(event.message, TOLD))
    world.turns.clear()
    world.deliver(next_owner, link)
    call = world.submit(next_owner, world.pay_request("alice", "bob", 3))
    world.run(0.001)
    (turn, *_) = world.of(next_owner)
    assert kinds(turn) == [VoteRow, Applied]
    world.lose = lambda source, target, message: False
    world.run(5)
    assert isinstance(call.answer, Recorded)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_left_of_loaded_rows_is_what_the_database_says(seed: int) -> None:
    """Payments to and fro between few accounts, many at a time: links that confirm, links that pay who is about to form
    one, requests that wait. Whatever a turn leaves for forming after it has applied links is as read anew
    (`Watched.persist`)."""
    world = Watched(3, 3, seed)
    names = ("alice", "bob", "carol")
    world.open_funded(**dict.fromkeys(names, 1000))
    world.beat_s = 0.004
    calls = []
    for _ in range(80):
        for _ in range(world.rng.randint(1, 6)):
            payer, payee = world.rng.sample(names, 2)
            payer = "alice" if world.rng.random() < 0.5 else payer
            payee = "bob" if payee == payer else payee
            postings = [Posting(payee, 1)] * world.rng.randint(1, 3)
            calls.append(world.submit(world.rng.choice(world.ids), world.pay_many_request(payer, postings)))
        world.run(world.rng.uniform(0, 0.01))
    assert world.run_until_answered(calls, 20)
    assert world.derived > 0
    world.run(3)
    world.assert_equal_replicas()


def test_the_requests_of_one_turn_are_handed_over_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each looks through all that wait for its account: once for each of them would be their square."""
    world = World(3, 3, 1)
    world.open_funded(alice=1000, bob=0)
    owner = world.group("alice")[0]
    core = world.core(owner)
    routed: list[str] = []
    formed: list[str] = []
    on_route, on_form = core.gateway.on_route, core.owner.on_form
    monkeypatch.setattr(
        core.gateway, "on_route", lambda turn, event: (routed.append(event.account), on_route(turn, event))
    )
    monkeypatch.setattr(core.owner, "on_form", lambda turn, event: (formed.append(event.account), on_form(turn, event)))
    calls = [world.submit(owner, world.pay_request("alice", "bob", 1)) for _ in range(50)]
    world.run(0.0)
    assert (routed, formed) == (["alice"], ["alice"])
    assert world.run_until_answered(calls, 1)
    assert len({call.answer.link_hash for call in calls if isinstance(call.answer, Recorded)}) == 1

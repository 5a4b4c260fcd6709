"""A database that is damaged beneath its triggers makes links that follow from nothing: nobody votes for them, and no
sound node stops."""

import itertools
import sqlite3

import pytest

from chain.errors import Corruption
from chain.link import Entry, Link, Outcome, Slot, build_link
from chain.load import load
from chain.needs import Needs
from chain.request import decode_request_untrusted
from chain.rows import VoteRow
from chain.store import commit
from hopchain.change import ChangeAction
from hopchain.wire import Changed, Recorded, Unknown
from node import acceptor
from node.messages import Accept, Accepted
from node.turn import Now, Turn
from routing.keyspace import NodeId, route_key
from routing.regions import Region, regions
from routing.view import member_of, with_member
from tests.node.world import EPOCH_MS, Node, World

RICHER = "UPDATE accounts SET balance = balance + 1048576 WHERE name = 'alice'"


def damage(conn: sqlite3.Connection, sql: str, *values: bytes, trigger: str = "accounts_update") -> None:
    """Change a row as a disk does: no trigger is asked."""
    (statement,) = conn.execute("SELECT sql FROM sqlite_master WHERE name = ?", (trigger,)).fetchone()
    conn.execute(f"DROP TRIGGER {trigger}")
    assert conn.execute(sql, values).rowcount == 1
    conn.execute(statement)


class Stopping(World):
    """A node that meets `Corruption` stops, as its process would."""

    stopped: set[NodeId]

    def _turn(self, node: Node, when: float) -> None:
        try:
            super()._turn(node, when)
        except Corruption:
            self.stopped.add(node.id)
            self.crash(node.id)


def with_damage(
    nodes: int, k: int, seed: int, rank: int, *, members: int | None = None
) -> tuple[Stopping, NodeId, list[NodeId]]:
    """The node of this rank takes alice for rich. Which one that is, and the others of her group in order."""
    world = Stopping(nodes, k, seed, first=members)
    world.stopped = set()
    world.open_funded(alice=100, bob=0)
    world.settle(world.ids[0], world.pay_request("alice", "bob", 1))
    world.run(3)
    sound = list(world.group("alice"))
    damaged = sound.pop(rank)
    damage(world.nodes[damaged].conn, RICHER)
    return world, damaged, sound


def pays(world: Stopping, at: NodeId, damaged: NodeId) -> None:
    """Alice pays through that node, and no sound one has stopped."""
    call = world.submit(at, world.pay_request("alice", "bob", 5), timeout_s=60.0)
    assert world.run_until(lambda: call.answer is not None, 65)
    assert isinstance(call.answer, Recorded) and call.answer.outcome is Outcome.COMPLETED
    assert world.stopped <= {damaged}


def votes_on(world: World) -> list[NodeId]:
    """Who votes from now on for what another one proposes."""
    voters: list[NodeId] = []

    def note(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, Accepted):
            voters.append(source)
        return False

    world.lose = note
    return voters


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("issuer = 1", "its balance -4901 is below zero"),
        ("balance = balance + 1048576", "its balance is 1043675, but 99 + 0 - 5000 = -4901"),
    ],
)
def test_nobody_votes_for_what_a_damaged_database_makes(change: str, why: str) -> None:
    """And nobody is told that the sound database is damaged for sure: that is said of a decided link."""
    world = World(5, 5, 1)
    world.open_funded(alice=100, bob=0)
    world.settle(world.ids[0], world.pay_request("alice", "bob", 1))
    world.run(3)
    damaged, *sound = world.group("alice")
    damage(world.nodes[damaged].conn, f"UPDATE accounts SET {change} WHERE name = 'alice'")
    voters = votes_on(world)
    call = world.submit(damaged, world.pay_request("alice", "bob", 5000), timeout_s=4.0)
    world.run(6)
    assert not isinstance(call.answer, Recorded) and voters == []
    assert all(list(world.core(node).acceptor.doubted) == [damaged] for node in sound)
    assert {world.core(node).acceptor.doubted[damaged] for node in sound} == {f"link 2 of alice: {why}"}
    world.crash(damaged)
    world.heal()
    assert world.settle(sound[0], world.pay_request("alice", "bob", 5)).outcome is Outcome.COMPLETED


def test_the_reason_is_that_of_the_first_link() -> None:
    """So that the log tells it once, however often such links come."""
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    voter, proposer, _ = world.group("alice")
    acceptor = world.core(voter).acceptor
    for balance in (7, 8):
        turn = Turn(load(world.nodes[voter].conn, Needs(heads={"alice"})), Now(0.0, EPOCH_MS))
        assert not acceptor.follows(turn, proposer, link_to(world, "alice", balance))
    assert acceptor.doubted[proposer].startswith("link 1 of alice: its balance is 7, but ")


@pytest.mark.parametrize("seed", range(1, 7))
def test_a_vote_that_does_not_follow_is_not_found_in_phase_1(seed: int) -> None:
    """A damaged standby takes over while the owner is away, and votes for what it makes. The owner comes back and takes
    over, too."""
    world, damaged, (owner, _) = with_damage(3, 3, seed, rank=1)
    world.crash(owner)
    world.submit(damaged, world.pay_request("alice", "bob", 5000), timeout_s=8.0)
    world.run(3)
    world.start(owner)
    world.run(3)
    pays(world, owner, damaged)


@pytest.mark.parametrize("seed", range(1, 7))
def test_a_vote_that_does_not_follow_is_not_taken_over_by_a_sync(seed: int) -> None:
    """The members change while a damaged owner is up; then it is stopped for good."""
    world, damaged, sound = with_damage(6, 5, seed, rank=0, members=5)
    world.submit(damaged, world.pay_request("alice", "bob", 5000), timeout_s=4.0)
    world.run(6)
    assert isinstance(world.add(sound[0], world.guests[0]), Changed)
    world.run(10)
    if damaged in world.alive:
        world.crash(damaged)
    world.run(30)
    pays(world, sound[1], damaged)


# The older of two postings that wait for alice is somebody else's, in one database.
SKIPPED = (
    "UPDATE incoming SET recipient = recipient + 64 WHERE posting = (SELECT min(i.posting) FROM accounts AS a "
    "JOIN incoming AS i ON i.recipient = a.id WHERE a.name = 'alice')"
)


def test_nobody_votes_for_a_link_that_leaves_out_a_posting_of_a_stream() -> None:
    world = Stopping(5, 5, 1)
    world.stopped = set()
    world.open_funded(alice=100, bob=0)
    world.settle(world.ids[0], world.pay_request("alice", "bob", 1))
    for amount in (100, 60):
        world.settle(world.ids[0], world.pay_request("mint", "alice", amount))
    world.run(3)
    damaged, *sound = world.group("alice")
    damage(world.nodes[damaged].conn, SKIPPED, trigger="incoming_update")
    call = world.submit(damaged, world.pay_request("alice", "bob", 5), timeout_s=4.0)
    world.run(6)
    assert not isinstance(call.answer, Recorded) and not world.stopped - {damaged}
    assert all("is not the next one of mint" in world.core(node).acceptor.doubted[damaged] for node in sound)
    world.crash(damaged)
    assert world.settle(sound[0], world.pay_request("alice", "bob", 5)).outcome is Outcome.COMPLETED


def test_nobody_votes_for_a_link_that_pays_in_another_asset() -> None:
    world = Stopping(5, 5, 1)
    world.stopped = set()
    world.open_funded(alice=100)
    assert world.settle(world.ids[0], world.open_request("erik", asset="EUR")).outcome is Outcome.COMPLETED
    world.run(3)
    damaged, *sound = world.group("alice")
    damage(world.nodes[damaged].conn, "UPDATE accounts SET asset = 'CZK' WHERE name = 'erik'")
    world.crash(damaged)
    world.start(damaged)
    world.run(3)
    call = world.submit(damaged, world.pay_request("alice", "erik", 5), timeout_s=4.0)
    world.run(6)
    assert not isinstance(call.answer, Recorded) and not world.stopped - {damaged}
    assert all("does not hold CZK" in world.core(node).acceptor.doubted[damaged] for node in sound)


def with_vote(seed: int, *, changes: bool) -> tuple[World, NodeId, NodeId, str, str]:
    """A world whose members are about to change, and of it: who holds a vote on the next link of an account that does
    not follow; a node that is down and without which a group that changes needs the answer of the first; that account;
    and another one, whose next slot has the group that changes. `changes`: so has the slot of the vote; else its group
    stays."""
    world = World(7, 3, seed, first=6)
    names = [f"account{i}" for i in range(20)]
    world.open_funded(bob=0, **dict.fromkeys(names, 100))
    world.run(5)
    after = with_member(world.view, member_of(world.keys[world.guests[0]]), 1, world.view.ids[0])
    changed = [region for region in regions(world.view, after) if region.before != region.after]

    def region_of(name: str) -> Region | None:
        key = int.from_bytes(route_key(world.watch.accounts[name].links[-1].hash))
        return next((region for region in changed if region.first <= key <= region.last), None)

    holder, down, account, other = next(
        (holder, down, account, other)
        for account, other in itertools.permutations(names, 2)
        if (region := region_of(other)) and region_of(account) == (region if changes else None)
        for holder, down in itertools.permutations(sorted(region.before), 2)
        if holder in world.group(account) and (changes or down not in world.group(account))
    )
    world.crash(holder)
    commit(world.nodes[holder].conn, [vote_for_more(world, account)])
    world.start(holder)
    world.run(5)
    world.crash(down)
    return world, holder, down, account, other


def vote_for_more(world: World, account: str) -> VoteRow:
    """A vote for a link with a balance that comes from nowhere, proposed by the account's owner."""
    link, owner = link_to(world, account, 999_999), world.group(account)[0]
    return VoteRow(link.prev_hash, account, link.height, (1, 0, owner), (1, 0, owner), link.raw)


def link_to(world: World, account: str, balance: int) -> Link:
    """The next link of an account, of one payment and with this balance."""
    tip = world.watch.accounts[account].links[-1]
    signed = world.pay_request(account, "bob", 5)
    entry = Entry(signed, decode_request_untrusted(signed.raw), signed.request_id, Outcome.COMPLETED)
    return build_link(world.network, account, tip.height + 1, Slot(tip.hash), balance, 1, EPOCH_MS + 10**7, [entry], [])


@pytest.mark.parametrize("seed", range(1, 5))
def test_a_vote_that_does_not_follow_is_no_doubt_in_what_else_its_holder_says(seed: int) -> None:
    """It lies where no group changes. So the change is done, though in one group that changes nobody but its holder can
    be asked."""
    world, holder, down, account, other = with_vote(seed, changes=False)
    at = next(node for node in world.view.ids if node not in (holder, down))
    assert isinstance(world.add(at, world.guests[0]), Changed)
    world.run(10)
    assert any(world.core(node).counters["links_doubted"] for node in world.alive)
    assert all(world.core(node).fully_active for node in world.alive)
    for name in (other, account):
        assert world.settle(at, world.pay_request(name, "bob", 1)).outcome is Outcome.COMPLETED


@pytest.mark.parametrize("seed", range(1, 5))
def test_a_vote_that_does_not_follow_keeps_no_slot_waiting_but_its_own(seed: int) -> None:
    """It lies in a region that changes, where one more of the group is down: all of it becomes ACTIVE but for that
    slot."""
    world, holder, down, account, other = with_vote(seed, changes=True)
    at = next(node for node in world.view.ids if node not in (holder, down))
    world.change(at, ChangeAction.ADD, world.guests[0])
    world.run(10)
    assert world.settle(at, world.pay_request(other, "bob", 1)).outcome is Outcome.COMPLETED
    assert isinstance(world.ask(at, world.pay_request(account, "bob", 1), 3), Unknown)
    unsure = [world.core(node) for node in world.alive if not world.core(node).fully_active]
    key = int.from_bytes(route_key(world.watch.accounts[account].links[-1].hash))
    assert [(r.first, r.last) for core in unsure for r in core.syncing._syncs[2].regions] == [(key, key)] * len(unsure)
    assert unsure
    world.start(down)
    world.run(10)
    assert all(world.core(node).fully_active for node in world.alive)
    assert world.settle(at, world.pay_request(account, "bob", 1)).outcome is Outcome.COMPLETED


def test_nobody_votes_for_a_request_that_has_its_outcome() -> None:
    """Its owner lost the row of it, and the client sends the same bytes again."""
    world = Stopping(5, 5, 1)
    world.stopped = set()
    world.open_funded(alice=100, bob=0)
    request = world.pay_request("alice", "bob", 1)
    world.settle(world.ids[0], request)
    world.run(3)
    damaged, *sound = world.group("alice")
    conn = world.nodes[damaged].conn
    damage(conn, "DELETE FROM outcomes WHERE request_id = ?", request.request_id, trigger="outcomes_delete")
    voters = votes_on(world)
    world.submit(damaged, request, timeout_s=5.0)
    world.run(8)
    assert voters == [] and not world.stopped - {damaged}
    assert all("has one here" in world.core(node).acceptor.doubted[damaged] for node in sound)


def test_more_confirmations_than_are_worth_it_are_not_read_for_a_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=100)
    world.settle(world.ids[0], world.pay_request("alice", "bob", 1))
    asked: list[tuple[NodeId, Accept]] = []

    def note(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, Accept):
            asked.append((target, message))
        return False

    world.lose = note
    world.settle(world.ids[0], world.pay_request("bob", "alice", 1))
    voter, accept = asked[0]
    for bound, read in ((3, 2), (2, 0)):
        monkeypatch.setattr(acceptor, "MAX_CHECKED", bound)
        needs = Needs()
        world.core(voter).acceptor.needs_accept(accept, needs)
        assert len(needs.postings.get("bob", ())) == read

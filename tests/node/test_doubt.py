"""A database that is damaged beneath its triggers makes links that follow from nothing: nobody votes for them, and no sound node stops."""

import sqlite3

import pytest

from chain.link import Outcome
from chain.needs import Needs
from hopchain.wire import Recorded
from node import acceptor
from node.messages import Accept, Accepted
from routing.keyspace import NodeId
from tests.node.world import World


def damage(conn: sqlite3.Connection, sql: str) -> None:
    """Change a row as a disk does: no trigger is asked."""
    (trigger,) = conn.execute("SELECT sql FROM sqlite_master WHERE name = 'accounts_update'").fetchone()
    conn.execute("DROP TRIGGER accounts_update")
    assert conn.execute(sql).rowcount == 1
    conn.execute(trigger)


def votes_on(world: World) -> list[NodeId]:
    """Who votes from now on for what another one proposes."""
    voters: list[NodeId] = []

    def note(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, Accepted):
            voters.append(source)
        return False

    world.lose = note
    return voters


@pytest.mark.parametrize("change", ["issuer = 1", "balance = balance + 1048576"])
def test_nobody_votes_for_what_a_damaged_database_makes(change: str) -> None:
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
    assert all("cannot be applied" in world.core(node).acceptor.doubted[damaged] for node in sound)
    world.crash(damaged)
    world.heal()
    assert world.settle(sound[0], world.pay_request("alice", "bob", 5)).outcome is Outcome.COMPLETED


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
    for bound, read in ((2, 2), (1, 0)):
        monkeypatch.setattr(acceptor, "MAX_CHECKED", bound)
        needs = Needs()
        world.core(voter).acceptor.needs_accept(accept, needs)
        assert len(needs.postings.get("bob", ())) == read

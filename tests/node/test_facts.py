"""What leaves before the commits of its turn, and what waits for which (docs/adr/0017, 0023)."""

import pytest

from chain.link import Outcome
from chain.rows import Applied, ViewRow, VoteRow
from chain.seal import CursorRow
from chain.store import commit
from hopchain.change import ChangeAction
from hopchain.wire import Recorded
from node.effects import Effects
from node.events import FromPeer
from node.messages import (
    Accept,
    Accepted,
    Decided,
    DecidedHash,
    Forward,
    Links,
    Offer,
    Ping,
    Pong,
    Prepare,
    Promise,
    Views,
)
from node.pulling import log_name
from routing.broadcast import LEAF
from routing.keyspace import NodeId
from routing.view import encode_view
from tests.node.world import TOLD, Doom, Node, World


class Noting(World):
    """Keeps the effects of all turns."""

    noted: list[tuple[NodeId, Effects]]
    first: list[tuple[NodeId, Effects]]  # of the turns before any account was opened

    def finish_turn(self, node: Node, effects: Effects) -> None:
        self.noted.append((node.id, effects))
        super().finish_turn(node, effects)


def noting(nodes: int, first: int | None = None) -> Noting:
    world = Noting.__new__(Noting)
    world.noted = []
    world.__init__(nodes, 3, 5, first=first)  # type: ignore[misc]
    world.run(1.0)
    world.first = world.noted[:]
    world.open_funded(alice=1000, bob=0)
    world.noted.clear()
    return world


def test_that_a_link_is_decided_leaves_at_once_and_all_that_promises_something_waits() -> None:
    world = noting(3)
    owner = world.group("alice")[0]
    gateway = next(n for n in world.ids if n != owner)
    assert isinstance(world.pay("alice", "bob", 1, at=gateway), Recorded)
    facts = [(node, effects.facts) for node, effects in world.noted if effects.facts is not None]
    told = [(node, send.message) for node, fact in facts for send in fact.send]
    assert {type(message) for _, message in told} == {Forward, Decided, DecidedHash}
    assert {node for node, message in told if isinstance(message, TOLD)} == {owner}
    assert [node for node, fact in facts if fact.answers] == [gateway]
    late = {type(send.message) for _, effects in world.noted for send in effects.send}
    assert {Accept, Accepted} <= late
    assert not late & {Forward, Decided, DecidedHash}
    for _, effects in world.noted:
        if any(isinstance(send.message, Accept | Accepted | Promise | Prepare) for send in effects.send):
            assert any(isinstance(write, VoteRow) for write in effects.persist)


def test_a_vote_waits_for_no_link_of_its_turn() -> None:
    """Paid again and again, an account has the votes on a link in the turns that apply the one before."""
    world = noting(3)
    for number in range(60):
        world.submit(world.ids[number % 3], world.pay_request("alice", "bob", 1 + number % 7))
        world.run(0.0004)
    world.run(1)
    both = [e for _, e in world.noted if e.applied and any(isinstance(write, VoteRow) for write in e.persist)]
    assert both
    for effects in both:
        assert not any(isinstance(write, Applied | CursorRow) for write in effects.persist)
        assert all(isinstance(write, Applied | CursorRow) for write in effects.applied)
        *_, told, last = effects.stages()
        assert (told.persist, told.send, told.answers) == (effects.persist, effects.send, effects.answers)
        assert (last.persist, last.send, last.answers) == (effects.applied, (), ())


@pytest.mark.parametrize("member", [True, False], ids=["member", "guest"])
def test_a_view_is_one_transaction_with_the_links_of_its_turn(*, member: bool) -> None:
    """Also at a guest, which is ACTIVE nowhere before and after."""
    world = noting(5, first=3)
    first, other, _ = world.view.ids
    guest, second = world.guests
    one = first if member else second
    world.lose = lambda source, target, message: target == one and not isinstance(message, Ping | Pong)
    world.change(other, ChangeAction.ADD, guest)
    assert isinstance(world.pay("alice", "bob", 1, at=other), Recorded)
    assert world.run_until(lambda: world.core(other).view.epoch == 2, 10)
    assert (world.core(one).view.epoch, world.height(one, "alice")) == (1, 0)
    world.noted.clear()
    link = world.watch.accounts["alice"].links[-1]
    world.deliver(one, FromPeer(other, Views((encode_view(world.core(other).view),))))
    world.deliver(one, FromPeer(other, Decided(link.raw, other, LEAF)))
    world.run(0.1)
    (both,) = (e for node, e in world.noted if node == one and any(isinstance(write, ViewRow) for write in e.writes))
    assert any(isinstance(write, Applied) for write in both.persist)
    assert both.applied == ()


def test_a_link_that_the_vote_of_this_very_turn_decides_waits_for_it() -> None:
    world = noting(1)
    (only,) = world.ids
    answer = world.pay("alice", "bob", 1, at=only)
    assert isinstance(answer, Recorded)
    deciding = [e for _, e in world.noted if any(isinstance(write, Applied) for write in e.writes)]
    assert deciding
    for effects in deciding:
        assert effects.facts is None
        assert effects.answers
        assert effects.applied == (), "a crash between the two would leave nobody who knows that it is decided"


def test_what_was_told_before_a_commit_that_a_crash_prevents_comes_back() -> None:
    world = noting(3)
    owner = world.group("alice")[0]
    gateway = next(n for n in world.ids if n != owner)
    signed = world.pay_request("alice", "bob", 1)
    call = world.submit(gateway, signed)
    for _ in range(10_000):
        world.run(0.001)
        if world.height(owner, "alice") == 1 and call.answer is None:
            world.doom(gateway, Doom.BEFORE_COMMIT)
        if call.answer is not None:
            break
    assert isinstance(call.answer, Recorded)
    assert Outcome(call.answer.outcome) is Outcome.COMPLETED
    assert world.nodes[gateway].core is None
    world.start(gateway)
    assert world.height(gateway, "alice") == 0
    world.run(10)
    world.assert_equal_replicas()
    repeated = world.ask(gateway, signed)
    assert isinstance(repeated, Recorded)
    assert repeated.link_hash == call.answer.link_hash


def test_pings_tell_only_counts_that_are_durable() -> None:
    world = noting(3)
    world.pay("alice", "bob", 1, at=world.ids[0])
    world.run(2)
    assert not [e for _, e in world.noted if e.facts and any(isinstance(s.message, Ping | Pong) for s in e.facts.send)]


def test_how_far_a_log_was_read_is_written_with_its_links() -> None:
    world = noting(3)
    behind, other, _ = world.view.ids
    world.noted.clear()
    world.lose = lambda source, target, message: target == behind and isinstance(message, TOLD | Links | Offer | Accept)
    for number in range(3):
        assert isinstance(world.pay("alice", "bob", 1 + number, at=other), Recorded)
    world.crash(behind)
    world.start(behind)
    world.heal()
    world.run(8)
    assert world.height(behind, "alice") == 3
    rows = [(node, e, write) for node, e in world.noted for write in e.writes if isinstance(write, CursorRow)]
    began = [e for node, e, write in rows if write.peer == node]
    cursors = [(e, write) for _, e, write in rows if e not in began]
    assert [e for e, _ in cursors if any(isinstance(write, Applied) for write in e.applied)]
    assert all(write in effects.applied for effects, write in cursors)


def test_the_number_of_the_own_log_is_durable_before_it_is_told() -> None:
    world = noting(3)
    named = {node: [e for n, e in world.first if n == node and CursorRow in map(type, e.writes)] for node in world.ids}
    for node, (effects, *_) in named.items():
        assert [write.peer for write in effects.persist if isinstance(write, CursorRow)] == [node]


def test_a_log_counts_as_read_no_earlier_than_its_links_are_durable() -> None:
    """Who dies between the two commits of the turn that reads to the end of a log has read less, and says so (R8)."""
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    lagging = next(node for node in world.ids if node != world.group("alice")[0])
    other = next(node for node in world.ids if node != lagging)
    conn = world.nodes[lagging].conn
    world.run(8)
    (before,) = conn.execute("SELECT count(*) FROM links").fetchone()
    assert (before,) == conn.execute("SELECT max(seq) FROM cursors WHERE peer <> ?", (lagging,)).fetchone()

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        puller = world.core(lagging).pulling._puller if target == lagging else None
        if isinstance(message, Links) and puller is not None and puller.peer == source and puller.asked:
            world.doom(lagging, Doom.BEFORE_LINKS)
        return target == lagging and isinstance(message, TOLD | Accept | Prepare)

    world.lose = lambda source, target, message: target == lagging
    for _ in range(3):
        world.settle(other, world.pay_request("alice", "bob", 1))
    world.lose = lose
    assert world.run_until(lambda: world.nodes[lagging].core is None, 10)
    (links,) = conn.execute("SELECT count(*) FROM links").fetchone()
    (read,) = conn.execute("SELECT max(seq) FROM cursors WHERE peer <> ?", (lagging,)).fetchone()
    assert read <= links < before + 3


@pytest.mark.parametrize("begun_anew", [False, True])
def test_a_log_that_was_taken_for_read_and_is_not_is_compared_from_its_start(*, begun_anew: bool) -> None:
    """Nothing is offered after the cursor, and yet the other log is longer; also where the cursor is of the log
    before."""
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    lagging = next(node for node in world.ids if node != world.group("alice")[0])
    others = [node for node in world.ids if node != lagging]
    world.run(3)
    world.lose = lambda source, target, message: target == lagging
    for _ in range(3):
        world.settle(others[0], world.pay_request("alice", "bob", 1))
    world.crash(lagging)
    conn = world.nodes[lagging].conn
    for node in others:
        read = CursorRow(log_name(node, world.core(node).pulling.log_id), world.core(node).replica.count)
        commit(conn, [read])
        if begun_anew:
            world.crash(node)
            world.start(node)
    world.run(5)
    world.start(lagging)
    world.lose = lambda source, target, message: target == lagging and isinstance(message, TOLD | Accept | Prepare)
    tip = world.tip(others[0], "alice")
    assert world.run_until(lambda: world.tip(lagging, "alice") == tip, 20)

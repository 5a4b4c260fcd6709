"""What leaves before the commit of its turn, and what waits for it (docs/adr/0017)."""

from chain.link import Outcome
from chain.rows import Applied, VoteRow
from hopchain.wire import Recorded
from node.messages import Accept, Accepted, Decided, Forward, Ping, Pong, Prepare, Promise
from node.turn import Effects
from routing.keyspace import NodeId
from tests.node.world import Doom, Node, World


class Noting(World):
    """Keeps the effects of all turns."""

    noted: list[tuple[NodeId, Effects]]

    def finish_turn(self, node: Node, effects: Effects) -> None:
        self.noted.append((node.id, effects))
        super().finish_turn(node, effects)


def noting(nodes: int) -> Noting:
    world = Noting.__new__(Noting)
    world.noted = []
    world.__init__(nodes, nodes, 5)  # type: ignore[misc]
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
    assert {type(message) for _, message in told} == {Forward, Decided}
    assert {node for node, message in told if isinstance(message, Decided)} == {owner}
    assert [node for node, fact in facts if fact.answers] == [gateway]
    late = {type(send.message) for _, effects in world.noted for send in effects.send}
    assert {Accept, Accepted} <= late
    assert not late & {Forward, Decided}
    for _, effects in world.noted:
        if any(isinstance(send.message, Accept | Accepted | Promise | Prepare) for send in effects.send):
            assert any(isinstance(write, VoteRow) for write in effects.persist)


def test_a_link_that_the_vote_of_this_very_turn_decides_waits_for_it() -> None:
    world = noting(1)
    (only,) = world.ids
    answer = world.pay("alice", "bob", 1, at=only)
    assert isinstance(answer, Recorded)
    deciding = [e for _, e in world.noted if any(isinstance(write, Applied) for write in e.persist)]
    assert deciding
    for effects in deciding:
        assert effects.facts is None
        assert effects.answers


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

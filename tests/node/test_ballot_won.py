"""That a link is decided: a word for those who were asked to vote, the link for all others (docs/adr/0026)."""

from collections.abc import Callable

import pytest

from chain.rows import Applied, VoteRow
from chain.store import SeenRow
from hopchain.wire import Recorded
from node.messages import Accept, Accepted, BallotWon, Decided, Message, Offer, Pull, SlotName, Want
from node.paxos import Ballot
from node.replica import WANT_AGAIN_S
from node.turn import Effects, FromPeer
from routing.keyspace import NodeId
from tests.node.world import Node, World

Sent = list[tuple[NodeId, NodeId, Message]]


def noting(world: World, lost: Callable[[NodeId, Message], bool] = lambda target, message: False) -> Sent:
    """All messages from now on, in order; those are lost that are `lost`, and what fills gaps."""
    sent: Sent = []

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        assert isinstance(message, Message)
        sent.append((source, target, message))
        return isinstance(message, Offer | Pull) or lost(target, message)

    world.lose = lose
    return sent


class Writing(World):
    """A world that notes what its turns write."""

    def finish_turn(self, node: Node, effects: Effects) -> None:
        self.__dict__.setdefault("written", []).append((node.id, [type(write) for write in effects.writes]))
        super().finish_turn(node, effects)


def funded(nodes: int, k: int) -> tuple[Writing, NodeId, NodeId]:
    """A world in which alice may pay bob; the node that makes her next link, and the last one that votes on it."""
    world = Writing(nodes, k, 1)
    world.open_funded(alice=100, bob=0)
    group = world.group("alice")
    return world, group[0], group[-1]


def next_slot(world: World) -> SlotName:
    link = world.watch.accounts["alice"].links[-1]
    return SlotName(link.hash, "alice", link.height + 1)


@pytest.mark.parametrize(("nodes", "k"), [(3, 3), (5, 3), (5, 5)])
def test_a_link_travels_once_to_each_node(nodes: int, k: int) -> None:
    world, owner, _ = funded(nodes, k)
    group = world.group("alice")
    sent = noting(world)
    assert isinstance(world.pay("alice", "bob", 5, at=owner), Recorded)
    world.run(0.05)
    link = world.watch.accounts["alice"].links[-1]
    assert {target for _, target, message in sent if isinstance(message, BallotWon)} == set(group) - {owner}
    assert {target for _, target, message in sent if isinstance(message, Decided)} == set(world.ids) - set(group)
    raws = [target for _, target, message in sent if isinstance(message, Accept | Decided) and message.link == link.raw]
    assert sorted(raws) == sorted(set(world.ids) - {owner})
    assert not any(isinstance(message, Want) for _, _, message in sent)
    world.assert_equal_replicas()


def test_who_lost_the_proposal_asks_for_its_link() -> None:
    world, owner, lagging = funded(3, 3)
    sent = noting(world, lambda target, message: target == lagging and isinstance(message, Accept))
    for _ in range(3):
        assert isinstance(world.pay("alice", "bob", 5, at=owner), Recorded)
        world.run(2 * WANT_AGAIN_S)
    wants = [message.chains for source, _, message in sent if isinstance(message, Want) and source == lagging]
    assert len(wants) >= 1 and all(account == "alice" for chains in wants for account, _ in chains)
    world.assert_equal_replicas()
    assert not world.core(lagging).replica._early_asked, "what was asked for came: nothing is remembered of it"


def test_who_hears_often_of_what_it_lacks_asks_once_in_a_while() -> None:
    world, owner, lagging = funded(3, 3)
    sent = noting(world)
    at = next_slot(world)
    for _ in range(20):
        world.deliver(lagging, FromPeer(owner, BallotWon(at, Ballot(1, 0, owner))))
    world.run(WANT_AGAIN_S / 2)
    assert sum(isinstance(message, Want) for _, _, message in sent) == 1


def test_who_hears_again_of_what_is_here_asks_for_nothing() -> None:
    world, owner, voter = funded(3, 3)
    at = next_slot(world)
    assert isinstance(world.pay("alice", "bob", 5, at=owner), Recorded)
    world.run(0.05)
    sent = noting(world)
    world.deliver(voter, FromPeer(owner, BallotWon(at, Ballot(1, 0, owner))))
    world.run(0.05)
    assert not any(isinstance(message, Want) for _, _, message in sent)


def test_a_vote_at_another_ballot_is_not_taken_for_the_link() -> None:
    """The owner and this node have voted, so the link is decided; but nobody has said so of the ballot of which it is told first."""
    world, owner, voter = funded(3, 3)
    sent = noting(
        world,
        lambda target, message: isinstance(message, Accepted) or (target != voter and isinstance(message, Accept)),
    )
    world.submit(owner, world.pay_request("alice", "bob", 5))
    world.run(0.02)
    (accept,) = {message for _, target, message in sent if target == voter and isinstance(message, Accept)}
    height = world.height(voter, "alice")
    other = next(node for node in world.ids if node not in (owner, voter))
    world.lose = lambda source, target, message: True
    for ballot in (Ballot(1, 1, other), Ballot(1, 0, other)):
        world.deliver(voter, FromPeer(other, BallotWon(accept.at, ballot)))
    world.run(0.02)
    assert world.height(voter, "alice") == height
    assert world.core(voter).acceptor.is_voted(accept.at.slot)
    world.deliver(voter, FromPeer(owner, BallotWon(accept.at, accept.ballot)))
    world.run(0.02)
    assert world.height(voter, "alice") == height + 1
    assert not world.core(voter).acceptor.is_voted(accept.at.slot)


def test_a_proposal_and_its_majority_in_one_turn() -> None:
    """A node that is behind finds both in its inbox: it votes and applies, and asks for nothing."""
    world, owner, late = funded(3, 3)
    world.core(late).replica.familiar.assets.clear()
    held: list[FromPeer] = []

    def hold(source: NodeId, target: NodeId, message: object) -> bool:
        if target == late and isinstance(message, Accept | BallotWon):
            held.append(FromPeer(source, message))
            return True
        return isinstance(message, Offer | Pull)

    world.lose = hold
    assert isinstance(world.pay("alice", "bob", 5, at=owner), Recorded)
    assert [type(event.message) for event in held] == [Accept, BallotWon]
    sent = noting(world)
    written = world.__dict__["written"]
    written.clear()
    for event in held:
        world.deliver(late, event)
    world.run(0.001)
    (writes,) = [writes for node, writes in written if node == late]
    assert [kind for kind in writes if kind is not SeenRow] == [VoteRow, Applied]
    assert world.height(late, "alice") == world.height(owner, "alice")
    assert not world.core(late).acceptor._proposed, "proposals are remembered for one turn"
    assert [type(message) for source, _, message in sent if source == late] == [Accepted]
    assert world.core(late).counters["links_waited"] == 0

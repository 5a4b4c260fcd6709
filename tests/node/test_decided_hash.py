"""That a link is decided: its hash for those who vote, the link for all others (docs/adr/0026)."""

from collections.abc import Callable

import pytest

from chain.errors import Corruption
from chain.rows import Applied, VoteRow
from chain.seal import SeenRow
from hopchain.wire import Recorded
from node.effects import Effects
from node.events import FromPeer
from node.lacking import MAX_EARLY, WANT_AGAIN_S
from node.messages import Accept, Accepted, Decided, DecidedHash, Links, Message, Offer, Pull, SlotName, Want
from node.proposing import VOTES_S
from routing.keyspace import NodeId
from tests.node.world import Node, World

Sent = list[tuple[NodeId, NodeId, Message]]
OTHER = b"\1" * 32  # the hash of no link


class Writing(World):
    """A world that notes what its turns write, in `written`."""

    def finish_turn(self, node: Node, effects: Effects) -> None:
        self.__dict__.setdefault("written", []).append((node.id, [type(write) for write in effects.writes]))
        super().finish_turn(node, effects)


def noting(world: World, lost: Callable[[NodeId, Message], bool] = lambda target, message: False) -> Sent:
    """All messages from now on, in order; those do not arrive that are `lost`, and what fills gaps."""
    sent: Sent = []

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        assert isinstance(message, Message)
        sent.append((source, target, message))
        return isinstance(message, Offer | Pull) or lost(target, message)

    world.lose = lose
    return sent


def pay(world: World, times: int = 1) -> NodeId:
    """Pay from alice through the node that makes the link each time; the last of them."""
    for _ in range(times):
        owner = world.group("alice")[0]
        assert isinstance(world.pay("alice", "bob", 1, at=owner), Recorded)
        world.run(0.005)
    return owner


def funded(nodes: int = 3, k: int = 3, *, warm: int = 40) -> tuple[Writing, NodeId, NodeId]:
    """A world in which alice may pay bob, and has paid `warm` times; the node that makes her next link, and the last
    one that votes on it."""
    world = Writing(nodes, k, 1)
    world.open_funded(alice=1000, bob=0)
    world.run(2 * VOTES_S)
    if warm:
        pay(world, warm)
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
    pay(world)
    world.run(0.05)
    link = world.watch.accounts["alice"].links[-1]
    assert {target for _, target, message in sent if isinstance(message, DecidedHash)} == set(group) - {owner}
    assert {target for _, target, message in sent if isinstance(message, Decided)} == set(world.ids) - set(group)
    raws = [target for _, target, message in sent if isinstance(message, Accept | Decided) and message.link == link.raw]
    assert sorted(raws) == sorted(set(world.ids) - {owner})
    assert not any(isinstance(message, Want) for _, _, message in sent)
    world.assert_equal_replicas()


def test_who_has_not_voted_lately_gets_the_link() -> None:
    """One vote decides here; the other one is under way, but nobody can know."""
    world, owner, _ = funded(warm=0)
    sent = noting(world)
    pay(world)
    told = [message for source, _, message in sent if source == owner and isinstance(message, Decided | DecidedHash)]
    assert sorted(type(message).__name__ for message in told) == ["Decided", "DecidedHash"]


def test_who_does_not_vote_is_sent_links_before_long() -> None:
    """As one that has just started, or is not ACTIVE. At first it has to ask."""
    world, _, lagging = funded()
    lost = noting(world, lambda target, message: target == lagging and isinstance(message, Accept))
    until = world.now + 2 * VOTES_S
    asked = 0
    while world.now < until:
        pay(world)
        if world.now < until - 0.5:
            asked = sum(isinstance(message, Want) and source == lagging for source, _, message in lost)
    assert sum(isinstance(message, Want) and source == lagging for source, _, message in lost) == asked
    assert world.height(lagging, "alice") == len(world.watch.accounts["alice"].links) - 1
    assert not world.core(lagging).replica.lacking._asked, "what was asked for came: nothing is remembered of it"


def test_who_lost_one_proposal_asks_for_its_link() -> None:
    world, owner, lagging = funded()
    sent = noting(world, lambda target, message: target == lagging and isinstance(message, Accept))
    pay(world)
    world.run(0.05)
    at = world.watch.accounts["alice"].links[-1].height
    wants = [message.chains for source, _, message in sent if isinstance(message, Want) and source == lagging]
    assert wants == [(("alice", at),)]
    assert world.height(lagging, "alice") == world.height(owner, "alice")


def test_who_hears_often_of_what_it_lacks_asks_once_in_a_while() -> None:
    world, owner, lagging = funded()
    sent = noting(world)
    for _ in range(20):
        world.deliver(lagging, FromPeer(owner, DecidedHash(next_slot(world), OTHER)))
    world.run(WANT_AGAIN_S / 2)
    assert sum(isinstance(message, Want) for _, _, message in sent) == 1


def test_what_is_asked_for_of_accounts_that_nobody_has_is_bounded() -> None:
    world, owner, lagging = funded(warm=0)
    noting(world)
    for number in range(MAX_EARLY + 10):
        at = SlotName(OTHER, f"nobody-{number}", 2**62)
        world.deliver(lagging, FromPeer(owner, DecidedHash(at, OTHER)))
    world.run(0.1)
    assert 0 < len(world.core(lagging).replica.lacking._asked) <= MAX_EARLY


def test_who_hears_again_of_what_is_here_asks_for_nothing() -> None:
    world, owner, voter = funded()
    at = next_slot(world)
    pay(world)
    world.run(0.05)
    sent = noting(world)
    world.deliver(voter, FromPeer(owner, DecidedHash(at, world.watch.accounts["alice"].links[-1].hash)))
    world.run(0.05)
    assert not any(isinstance(message, Want) for _, _, message in sent)


def test_another_link_than_the_one_here_stops_the_node() -> None:
    world, owner, voter = funded()
    at = next_slot(world)
    pay(world)
    world.run(0.05)
    world.deliver(voter, FromPeer(owner, DecidedHash(at, OTHER)))
    with pytest.raises(Corruption, match="two successors"):
        world.run(0.05)


def test_a_vote_for_another_link_is_not_taken_for_it() -> None:
    """Nor is a proposal that no link is, of the same turn."""
    world, owner, voter = funded()

    def lost(target: NodeId, message: Message) -> bool:
        return isinstance(message, Accepted) or (target != voter and isinstance(message, Accept))

    sent = noting(world, lost)
    world.submit(owner, world.pay_request("alice", "bob", 5))
    world.run(0.02)
    (accept,) = {message for _, target, message in sent if target == voter and isinstance(message, Accept)}
    height = world.height(voter, "alice")
    other = next(node for node in world.ids if node not in (owner, voter))
    known = world.core(voter).replica.familiar.head("alice")
    world.lose = lambda source, target, message: True
    world.deliver(voter, FromPeer(other, DecidedHash(accept.at, OTHER)))
    world.run(0.02)
    assert world.height(voter, "alice") == height
    assert world.core(voter).replica.familiar.head("alice") == known, "it expects a link that is not decided"
    (vote,) = [link for link in world.core(voter).acceptor.values() if link.prev_hash == accept.at.slot]
    world.deliver(voter, FromPeer(other, Accept(accept.at, accept.ballot, b"junk")))
    world.deliver(voter, FromPeer(owner, DecidedHash(accept.at, vote.hash)))
    world.run(0.02)
    assert world.height(voter, "alice") == height + 1
    assert not world.core(voter).acceptor.is_voted(accept.at.slot)


def test_a_proposal_and_its_decision_in_one_turn() -> None:
    """A node that is behind finds both in its inbox: it votes and applies, and asks for nothing."""
    world, owner, late = funded()
    world.core(late).replica.familiar.assets.clear()
    held: list[FromPeer] = []

    def hold(source: NodeId, target: NodeId, message: object) -> bool:
        if target == late and isinstance(message, Accept | DecidedHash):
            held.append(FromPeer(source, message))
            return True
        return isinstance(message, Offer | Pull)

    world.lose = hold
    pay(world)
    assert [type(event.message) for event in held] == [Accept, DecidedHash]
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


def test_who_asks_in_the_turn_that_decides_gets_the_link() -> None:
    """The rows that answer were read before; the hash of the link has left already."""
    world, owner, late = funded()
    held: list[FromPeer] = []

    def hold(source: NodeId, target: NodeId, message: object) -> bool:
        if target == owner and isinstance(message, Accepted):
            held.append(FromPeer(source, message))
            return True
        return isinstance(message, Offer | Pull)

    world.lose = hold
    world.submit(owner, world.pay_request("alice", "bob", 5))
    assert world.run_until(lambda: bool(held), 0.1)
    height = world.height(owner, "alice")
    sent = noting(world)
    world.deliver(owner, held[0])
    world.deliver(owner, FromPeer(late, Want(chains=(("alice", height + 1),))))
    world.run(0.001)
    assert [len(message.links) for _, target, message in sent if isinstance(message, Links) and target == late] == [1]

"""Logs of peers are read once, on slow lines too, and a cursor passes nothing that is not applied here (design R8)."""

from itertools import pairwise

import pytest

from chain.link import Link
from node import lacking
from node.events import FromPeer, PeerDown
from node.messages import Accept, Forward, Links, Message, Offer, Prepare, Pull, SlotName, Want
from node.paxos import Ballot
from node.pulling import PULL_TIMEOUT_S, REST_S
from routing.keyspace import NodeId
from tests.node.test_catching_up import assert_paid, lagging_behind, paying
from tests.node.test_syncing import grown, log, pulling, rest
from tests.node.world import TOLD, Doom, World


class Reader:
    """A node that has asked `peer` for `missing`, all the links of its log that it lacks; only the links that `send`
    delivers come to it."""

    def __init__(self) -> None:
        self.world = World(3, 3, 1)
        self.world.open_funded(alice=100, bob=0)
        self.node, _ = lagging_behind(self.world, paying(self.world, 4))
        self.missing = self.world.watch.accounts["alice"].links[self.world.height(self.node, "alice") + 1 :]
        self.wants: list[Want] = []
        asked: list[NodeId] = []

        def lose(source: NodeId, target: NodeId, message: object) -> bool:
            if source == self.node and isinstance(message, Want):
                self.wants.append(message)
                asked.append(target)
            return target == self.node and isinstance(message, TOLD | Links)

        self.world.lose = lose
        assert self.world.run_until(lambda: bool(asked), 10)
        assert self.wants == [Want(links=hashes(self.missing))]
        self.peer = asked[0]

    def send(self, message: Message) -> None:
        self.world.deliver(self.node, FromPeer(self.peer, message))
        self.world.run(0.01)


def hashes(links: list[Link]) -> tuple[bytes, ...]:
    return tuple(link.hash for link in links)


def guest_that_pulls() -> tuple[World, NodeId, NodeId, list[Link]]:
    """A guest, the member whose log it reads, and the two links of that which it lacks; no links come to it."""
    world = grown(4, 3)
    (guest,) = world.guests
    world.run(8.0)
    peer = pulling(world, guest, Links)
    return world, guest, peer, world.watch.accounts["alice"].links[-2:]


# --- cursors --------------------------------------------------------------------------------------------------------


def test_a_cursor_does_not_pass_a_link_of_its_page_that_is_applied_in_the_next_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A crash between the two turns would leave a gap before the cursor."""
    monkeypatch.setattr(lacking, "MAX_WOKEN", 0)
    world, guest, peer, (first, second) = guest_that_pulls()
    world.deliver(guest, FromPeer(peer, Links((second.raw,))))
    world.run(0.001)
    world.doom(guest, Doom.AFTER_COMMIT)
    world.deliver(guest, FromPeer(peer, Links((first.raw,))))
    world.run(0.001)
    assert guest not in world.alive
    assert world.height(guest, "alice") == first.height
    world.start(guest)
    assert not world.core(guest).pulling.has_log(*log(world, peer))
    rest(world)
    assert world.height(guest, "alice") == second.height


def test_a_link_that_was_voted_for_and_finds_no_room_to_wait_stays_to_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is here as a vote, so the log is asked for what it confirms alone. The cursor must not pass it."""
    world = World(3, 3, 1)
    world.open_funded(alice=0, bob=0)
    world.run(5)
    voter = next(node for node in world.ids if node != world.group("mint")[0])
    others = [node for node in world.ids if node != voter]

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, Accept | Forward) and message.at.account == "mint":
            return target == voter
        return isinstance(message, Pull) or (target == voter and isinstance(message, TOLD | Links))

    world.lose = lose
    for payer, payee in (("mint", "alice"), ("alice", "bob")):
        assert_paid(world.pay(payer, payee, 5, at=others[0]))
    paid, spent = (world.watch.accounts[name].links[-1] for name in ("mint", "alice"))
    core = world.core(voter)
    assert world.height(voter, "mint") < paid.height
    assert [link.hash for link in core.pulling.voted()] == [spent.hash]
    monkeypatch.setattr(lacking, "MAX_WAITING", 0)
    world.lose = lambda source, target, message: target == voter and isinstance(message, TOLD)
    assert world.run_until(lambda: world.height(voter, "mint") == paid.height, 10)
    assert core.counters["links_dropped"] == 1
    assert world.height(voter, "alice") < spent.height
    assert not any(core.pulling.has_log(*log(world, node)) for node in others)
    assert world.run_until(lambda: world.height(voter, "alice") == spent.height, 10)


# --- answers in pieces ----------------------------------------------------------------------------------------------


def test_a_pull_whose_links_come_slowly_is_not_given_up() -> None:
    reader = Reader()
    for link in reader.missing:
        reader.world.run(0.8 * PULL_TIMEOUT_S)
        reader.send(Links((link.raw,)))
    assert reader.world.tip(reader.node, "alice") == reader.missing[-1].hash
    assert len(reader.wants) == 1


def test_the_end_of_another_answer_does_not_end_this_one() -> None:
    """Nothing of this one has come: it is of a pull that was given up. Else all of it would be sent twice."""
    reader = Reader()
    first, *others = reader.missing
    reader.send(Links(()))
    assert len(reader.wants) == 1
    reader.send(Links((first.raw,)))
    assert len(reader.wants) == 1
    reader.send(Links(()))
    assert reader.wants[1:] == [Want(links=hashes(others))]


def test_links_of_a_log_ask_for_no_more_of_a_chain_that_was_asked_for() -> None:
    """The log brings the rest of it."""
    reader = Reader()
    last = reader.missing[-1]
    reader.send(Prepare(SlotName(last.hash, "alice", last.height + 1), Ballot(1, 1, reader.peer)))
    question = Want(chains=(("alice", reader.missing[0].height),))
    assert reader.wants[1:] == [question]
    for link in reader.missing:
        reader.send(Links((link.raw,)))
    assert reader.world.tip(reader.node, "alice") == last.hash
    assert reader.wants[1:] == [question]


# --- when the next log is read --------------------------------------------------------------------------------------


def pulls_of(world: World, node: NodeId, *lost: type[Message]) -> list[tuple[float, NodeId]]:
    """When `node` asks for a log from now on, and whose; messages of the kinds `lost` do not reach it."""
    pulls: list[tuple[float, NodeId]] = []

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if source == node and isinstance(message, Pull):
            pulls.append((world.now, target))
        return target == node and isinstance(message, lost)

    world.lose = lose
    return pulls


def test_who_reads_a_log_whose_connection_ends_reads_another_one_at_once() -> None:
    world = World(4, 3, 1)
    world.open_funded(alice=100)
    node = world.ids[0]
    pulls = pulls_of(world, node, Offer)
    assert world.run_until(lambda: bool(pulls), 10)
    (begun, peer), *_ = pulls
    away, other = (known for known in world.ids if known not in (node, peer))
    world.run(0.1)
    world.deliver(node, PeerDown(away))
    world.run(0.1)
    assert len(pulls) == 1, "what was asked of another is still to come"
    world.deliver(node, PeerDown(peer))
    world.run(0.01)
    assert pulls[1:] == [(pytest.approx(begun + 0.2, abs=0.02), other)]


def test_when_a_log_is_silent_for_too_long_another_one_is_asked_for_at_once() -> None:
    world = World(3, 3, 1)
    world.open_funded(alice=100)
    pulls = pulls_of(world, world.ids[0], Offer)
    world.run(30)
    pauses = [after - before for (before, _), (after, _) in pairwise(pulls)]
    assert len(pauses) > 5
    assert all(PULL_TIMEOUT_S <= pause < PULL_TIMEOUT_S + 0.02 for pause in pauses[1:])


def test_a_page_of_which_links_waited_at_its_end_is_compared_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lacking, "MAX_WOKEN", 0)
    world, guest, peer, (first, second) = guest_that_pulls()
    pulls = pulls_of(world, guest, Links, *TOLD.__args__)
    for link in (second, first):
        at = world.now
        world.deliver(guest, FromPeer(peer, Links((link.raw,))))
        world.run(0.001)
    world.run(REST_S + 0.05)
    assert world.height(guest, "alice") == second.height
    assert [when for when, _ in pulls] == [pytest.approx(at + REST_S, abs=0.02)]


def test_a_page_of_which_a_link_found_no_room_is_compared_again_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """There would be none in a moment either."""
    world, guest, peer, (first, second) = guest_that_pulls()
    pulls = pulls_of(world, guest, Links, *TOLD.__args__)
    monkeypatch.setattr(lacking, "MAX_WAITING", 0)
    for link in (second, first):
        world.deliver(guest, FromPeer(peer, Links((link.raw,))))
    world.run(3 * REST_S)
    assert world.core(guest).counters["links_dropped"] == 1
    assert not pulls
    assert world.run_until(lambda: bool(pulls), PULL_TIMEOUT_S)

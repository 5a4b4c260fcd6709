"""Two copies of one node at once: who vouches has asked all others whether they see another boot (design R12)."""

from collections import Counter

import pytest

from chain.errors import Quarantined
from chain.needs import Loaded
from node.doubles import Doubles
from node.messages import AskBoot, BootAnswer, Message, Pong, Twice
from node.turn import FromPeer, Now, PeerDown, PeerUp, Self, Turn
from routing.keyspace import NodeId
from routing.regions import RING
from tests.node.world import World

ORIGINAL, COPY = b"boot of the original", b"boot of the copy"


def make(world: World, me: NodeId) -> Doubles:
    return Doubles(Self(me, world.genesis, world.network, world.view, RING, world.rng, Counter()))


def sent(turn: Turn) -> list[tuple[NodeId, Message]]:
    return [(send.peer, send.message) for send in turn.sends]


def at(when: float) -> Turn:
    return Turn(Loaded(), Now(when, 0))


@pytest.fixture
def world() -> World:
    return World(5, 5, 1)


def test_a_peer_is_vouched_for_once_all_others_have_agreed(world: World) -> None:
    me, twice, *others = world.ids
    doubles = make(world, me)
    assert not doubles.vouches(twice, []), "who is not connected"
    doubles.on_up(twice, ORIGINAL)
    assert doubles.vouches(twice, [twice]), "nobody else can be asked"
    turn = at(1)
    doubles.ask(turn, twice, [twice, *others])
    assert sent(turn) == [(node, AskBoot(twice, ORIGINAL)) for node in others]
    for node in others:
        assert not doubles.vouches(twice, others)
        doubles.on_answer(at(1), node, BootAnswer(twice, ORIGINAL, twice=False))
    assert doubles.vouches(twice, others)
    doubles.on_up(twice, COPY)
    assert not doubles.vouches(twice, others), "another process: ask again"
    doubles.on_answer(at(1), others[0], BootAnswer(twice, ORIGINAL, twice=False))
    assert not doubles.vouches(twice, others[:1]), "a late answer about the one before"


def test_another_boot_counts_when_it_has_answered_a_ping_that_left_after_the_question(world: World) -> None:
    me, twice, asker, *_ = world.ids
    doubles = make(world, me)
    turn = at(10)
    doubles.on_ask(turn, asker, AskBoot(twice, COPY))
    assert sent(turn) == [(asker, BootAnswer(twice, COPY, twice=False))], "not connected here"
    doubles.on_up(twice, ORIGINAL)
    turn = at(11)
    doubles.on_ask(turn, asker, AskBoot(twice, ORIGINAL))
    assert sent(turn) == [(asker, BootAnswer(twice, ORIGINAL, twice=False))]
    turn = at(12)
    doubles.on_ask(turn, asker, AskBoot(twice, COPY))
    doubles.on_pong(turn, twice, 11.9)
    assert sent(turn) == [], "that pong may come from a process that is gone"
    doubles.on_pong(turn, twice, 12.1)
    assert sent(turn) == [(asker, BootAnswer(twice, COPY, twice=True))]
    doubles.on_pong(turn, twice, 12.2)
    assert len(sent(turn)) == 1


def test_a_connection_that_outlived_its_process_accuses_nobody(world: World) -> None:
    me, twice, asker, *_ = world.ids
    doubles = make(world, me)
    doubles.on_up(twice, ORIGINAL)
    doubles.on_ask(at(1), asker, AskBoot(twice, COPY))
    doubles.on_down(twice)
    turn = at(2)
    doubles.on_pong(turn, twice, 1.5)
    doubles.on_ask(turn, asker, AskBoot(twice, COPY))
    assert sent(turn) == [(asker, BootAnswer(twice, COPY, twice=False))]


def test_who_is_there_twice_is_told_and_ends(world: World) -> None:
    me, twice, other, *_ = world.ids
    doubles = make(world, me)
    doubles.on_up(twice, ORIGINAL)
    turn = at(1)
    doubles.on_answer(turn, other, BootAnswer(twice, ORIGINAL, twice=True))
    assert sent(turn) == [(twice, Twice(ORIGINAL))]
    assert not doubles.vouches(twice, [other])
    with pytest.raises(Quarantined, match="runs twice at once"):
        make(world, twice).on_twice(at(2), me, Twice(ORIGINAL))


def test_two_copies_that_start_at_the_same_moment_are_not_both_vouched_for(world: World) -> None:
    """The copy reaches two of five members, the original the other two: counts of votes are equal everywhere."""
    twice, a, b, c, d = world.ids
    world.run(1)
    world.crash(twice)
    world.run(1)
    cores = {node: world.core(node) for node in (a, b, c, d)}
    told: list[tuple[NodeId, Message]] = []

    def send(source: NodeId, target: NodeId, message: object) -> bool:
        if target == twice:
            assert isinstance(message, Message)
            told.append((source, message))
        return target == twice

    world.lose = send
    for node, boot in ((a, COPY), (b, COPY), (c, ORIGINAL), (d, ORIGINAL)):
        world.deliver(node, PeerUp(twice, boot))
    for _ in range(8):
        world.run(0.25)
        for source, message in told:
            if type(message).__name__ == "Ping":  # both copies answer
                world.deliver(source, FromPeer(twice, Pong(message.sent, 0, 0)))  # type: ignore[union-attr]
        told = [(source, message) for source, message in told if isinstance(message, Twice)]
    assert {source for source, _ in told} == {a, b, c, d}
    assert all(not core.peers.doubles.vouches(twice, world.ids) for core in cores.values())
    for node in cores:
        world.deliver(node, PeerDown(twice))

"""Two copies of one node at once: who vouches has asked all others whether they see another boot (design R12)."""

from collections import Counter

import pytest

from chain.errors import Quarantined
from chain.needs import Loaded
from node.doubles import SUSPECT_S, Doubles
from node.messages import AskBoot, BootAnswer, Closing, Message, Ping, Pong, Twice
from node.peers import PING_EVERY_S
from node.turn import Effects, FromPeer, Now, PeerDown, PeerUp, Self, Turn
from routing.keyspace import NodeId
from routing.regions import RING
from tests.node.world import Node, World

ORIGINAL, COPY = b"boot of the original", b"boot of the copy"


LONG_AGO = -SUSPECT_S


def make(world: World, me: NodeId, *, started: float = LONG_AGO, boot: bytes = b"") -> Doubles:
    self_ = Self(me, world.genesis, world.network, world.view, RING, world.rng, Counter(), boot=boot)
    return Doubles(self_, started)


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
    assert not doubles.vouches(twice, [], 1), "who is not connected"
    doubles.on_up(twice, ORIGINAL)
    assert doubles.vouches(twice, [twice], 1), "nobody else can be asked"
    turn = at(1)
    doubles.ask(turn, twice, [twice, *others])
    assert sent(turn) == [(node, AskBoot(twice, ORIGINAL)) for node in others]
    for node in others:
        assert not doubles.vouches(twice, others, 1)
        doubles.on_answer(at(1), node, BootAnswer(twice, ORIGINAL, twice=False))
    assert doubles.vouches(twice, others, 1)
    doubles.on_up(twice, COPY)
    assert not doubles.vouches(twice, others, 1), "another process: ask again"
    doubles.on_answer(at(1), others[0], BootAnswer(twice, ORIGINAL, twice=False))
    assert not doubles.vouches(twice, others[:1], 1), "a late answer about the one before"


def test_another_boot_counts_when_it_has_answered_a_ping_that_left_after_the_question(world: World) -> None:
    me, twice, asker, *_ = world.ids
    doubles = make(world, me)
    turn = at(10)
    doubles.on_ask(turn, asker, AskBoot(twice, COPY), [], alive=False)
    assert sent(turn) == [(asker, BootAnswer(twice, COPY, twice=False))], "not connected here"
    doubles.on_up(twice, ORIGINAL)
    turn = at(11)
    doubles.on_ask(turn, asker, AskBoot(twice, ORIGINAL), [], alive=True)
    assert sent(turn) == [(asker, BootAnswer(twice, ORIGINAL, twice=False))]
    assert doubles.vouches(twice, [], 11)
    turn = at(12)
    doubles.on_ask(turn, asker, AskBoot(twice, COPY), [], alive=True)
    doubles.on_ask(turn, asker, AskBoot(twice, COPY), [], alive=True)
    assert sent(turn) == [(twice, AskBoot(twice, COPY))], "it is told, once"
    doubles.on_pong(turn, twice, 11.9)
    assert len(sent(turn)) == 1, "that pong may come from a process that is gone"
    assert not doubles.vouches(twice, [], 12), "until it has answered"
    doubles.on_pong(turn, twice, 12.1)
    assert sent(turn)[1:] == [(asker, BootAnswer(twice, COPY, twice=True))]
    doubles.on_pong(turn, twice, 12.2)
    assert len(sent(turn)) == 2
    assert doubles.vouches(twice, [], 12)


def test_a_connection_that_outlived_its_process_accuses_nobody(world: World) -> None:
    me, twice, asker, *_ = world.ids
    doubles = make(world, me)
    doubles.on_up(twice, ORIGINAL)
    doubles.on_ask(at(1), asker, AskBoot(twice, COPY), [], alive=True)
    turn = at(2)
    doubles.on_ask(turn, asker, AskBoot(twice, COPY), [], alive=False)
    assert sent(turn) == [(asker, BootAnswer(twice, COPY, twice=False))], "half open: it was silent for too long"
    doubles.on_down(twice, 2, alive=False)
    turn = at(2)
    doubles.on_pong(turn, twice, 1.5)
    doubles.on_ask(turn, asker, AskBoot(twice, COPY), [], alive=False)
    assert sent(turn) == [(asker, BootAnswer(twice, COPY, twice=False))]


def test_a_process_whose_connection_broke_counts_as_seen_for_a_while(world: World) -> None:
    me, twice, asker, *_ = world.ids
    doubles = make(world, me)
    doubles.on_up(twice, ORIGINAL)
    doubles.on_down(twice, 10, alive=True)
    early, late = at(10 + SUSPECT_S - 0.1), at(10 + SUSPECT_S)
    doubles.on_ask(early, asker, AskBoot(twice, ORIGINAL), [], alive=False)
    assert sent(early) == [(asker, BootAnswer(twice, ORIGINAL, twice=False))], "the same process is back"
    doubles.on_up(twice, COPY)
    doubles.on_ask(early, asker, AskBoot(twice, COPY), [], alive=True)
    assert len(sent(early)) == 1
    assert not doubles.vouches(twice, [], early.now.mono)
    doubles.on_ask(late, asker, AskBoot(twice, COPY), [], alive=True)
    assert sent(late) == [(asker, BootAnswer(twice, COPY, twice=False))]
    assert doubles.vouches(twice, [], late.now.mono)


def test_a_process_that_said_that_it_ends_may_be_followed_at_once(world: World) -> None:
    me, twice, *_ = world.ids
    doubles = make(world, me)
    doubles.on_closing(at(9), twice, Closing())
    doubles.on_up(twice, ORIGINAL)
    doubles.on_closing(at(9), twice, Closing())
    doubles.on_down(twice, 10, alive=True)
    doubles.on_up(twice, COPY)
    assert doubles.vouches(twice, [], 10)


def test_who_has_just_started_vouches_for_and_agrees_to_nobody_unless_it_sees_all(world: World) -> None:
    me, twice, *others = world.ids
    doubles = make(world, me, started=5)
    doubles.on_up(twice, ORIGINAL)
    for node in others:
        doubles.on_answer(at(5), node, BootAnswer(twice, ORIGINAL, twice=False))
    before, after = 5 + SUSPECT_S - 0.1, 5 + SUSPECT_S
    assert doubles.vouches(twice, others, before)
    assert not doubles.vouches(twice, others[1:], before)
    assert doubles.vouches(twice, others[1:], after)
    for when, members, answers in ((before, others[1:], 0), (before, others, 1), (after, others[1:], 1)):
        turn = at(when)
        doubles.on_ask(turn, others[0], AskBoot(twice, ORIGINAL), members, alive=True)
        assert len(sent(turn)) == answers, (when, members)


def test_who_is_there_twice_is_told_and_ends(world: World) -> None:
    me, twice, other, *_ = world.ids
    doubles = make(world, me)
    doubles.on_up(twice, ORIGINAL)
    turn = at(1)
    doubles.on_answer(turn, other, BootAnswer(twice, ORIGINAL, twice=True))
    assert sent(turn) == [(twice, Twice(ORIGINAL))]
    assert not doubles.vouches(twice, [other], 1)
    make(world, twice, boot=COPY).on_twice(at(2), me, Twice(ORIGINAL))  # of the process before this one
    with pytest.raises(Quarantined, match="runs twice at once"):
        make(world, twice, boot=ORIGINAL).on_twice(at(2), me, Twice(ORIGINAL))


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
        world.deliver(node, PeerDown(twice))  # whatever connection there was
        world.deliver(node, PeerUp(twice, boot))
    for _ in range(8):
        world.run(0.25)
        for source, message in told:
            if isinstance(message, Ping):  # both copies answer
                world.deliver(source, FromPeer(twice, Pong(message.sent, 0, 0)))
        told = [(source, message) for source, message in told if isinstance(message, Twice)]
    assert {source for source, _ in told} == {a, b, c, d}
    assert all(not core.peers.doubles.vouches(twice, world.ids, world.now) for core in cores.values())
    for node in cores:
        world.deliver(node, PeerDown(twice))


def test_only_members_ask_answer_and_are_believed() -> None:
    world = World(4, 3, 2, first=3)
    me, twice, other = (node for node in world.ids if node not in world.guests)
    (guest,) = world.guests
    world.run(3)
    told: list[tuple[NodeId, object]] = []

    def listen(source: NodeId, target: NodeId, message: object) -> bool:
        if source == me:
            told.append((target, message))
        return False

    world.lose = listen
    core = world.core(me)
    for message in (AskBoot(twice, COPY), AskBoot(me, COPY), BootAnswer(twice, b"", twice=True), Twice(b"")):
        world.deliver(me, FromPeer(guest, message))
    world.run(0.1)
    assert not [m for _, m in told if isinstance(m, Twice | BootAnswer | AskBoot)]
    assert core.identity.verified
    assert core.counters["suspended"] == core.counters["peers_twice"] == 0
    world.deliver(me, FromPeer(other, Twice(b"")))
    with pytest.raises(Quarantined, match="runs twice at once"):
        world.run(0.1)


def test_a_node_that_hears_of_another_process_of_it_votes_when_all_vouch_for_it_again() -> None:
    world = World(3, 3, 3)
    me, asker, _ = world.ids
    world.run(3)
    world.cut = {(asker, me)}
    world.deliver(me, FromPeer(asker, AskBoot(me, b"")))  # about this very one
    world.run(0.1)
    assert world.core(me).identity.verified
    world.deliver(me, FromPeer(asker, AskBoot(me, COPY)))
    world.run(0.01)
    assert not world.core(me).identity.verified
    world.run(1)
    assert not world.core(me).identity.verified, "one of them is silent, and not for long enough to be gone"
    world.cut = set()
    world.run(1)
    assert world.core(me).identity.verified


def test_a_silent_peer_is_dropped_and_holds_nobody_up() -> None:
    world = World(3, 3, 4)
    me, silent, other = world.ids
    world.run(1)
    world.cut = {(silent, me), (silent, other)}
    world.run(1)
    world.deliver(me, FromPeer(other, AskBoot(me, COPY)))  # asks for being vouched for anew
    drops: list[tuple[float, NodeId]] = []
    emit = world.emit

    def listen(node: Node, effects: Effects) -> None:
        drops.extend((world.now, peer) for peer in effects.drops if node.id == me)
        emit(node, effects)

    world.emit = listen  # type: ignore[method-assign]
    world.run(SUSPECT_S + 1)
    assert world.core(me).identity.verified, "the one that answers is enough"
    assert drops == []
    world.run(3 * SUSPECT_S - 1.5)
    assert [peer for _, peer in drops] == [silent]
    assert 1 + 3 * SUSPECT_S <= drops[0][0] <= 1 + 3 * SUSPECT_S + 2 * PING_EVERY_S
    assert world.core(me).counters["peers_silent"] == 1


def test_a_node_that_slept_drops_nobody() -> None:
    world = World(3, 3, 5)
    me = world.ids[0]
    world.run(1)
    core = world.core(me)
    core.needs([], Now(100.0, 0))
    assert core.step(Loaded(), Now(100.0, 0)).drops == ()


def test_a_connection_of_the_new_boot_that_breaks_does_not_make_the_old_one_forgotten(world: World) -> None:
    me, twice, *_ = world.ids
    doubles = make(world, me)
    doubles.on_up(twice, ORIGINAL)
    doubles.on_down(twice, 1.0, alive=True)
    for _ in range(2):
        doubles.on_up(twice, COPY)
        assert not doubles.vouches(twice, [], 1.5)
        doubles.on_down(twice, 1.5, alive=True)
    doubles.on_up(twice, COPY)
    assert doubles.vouches(twice, [], 1.0 + SUSPECT_S)

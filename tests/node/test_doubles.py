"""Two copies of one node at once: who vouches has asked all others whether they see another boot (design R12)."""

from collections import Counter

import pytest

from chain.errors import Quarantined
from chain.needs import Loaded
from node.accepting import HANDSHAKE_S
from node.core import Core
from node.doubles import BOOTS, REPLACED_S, SUSPECT_S, Doubles
from node.effects import Effects
from node.events import Event, FromPeer, PeerDown, PeerUp
from node.messages import AskBoot, BootAnswer, Closing, Message, Ping, Pong, Twice
from node.peers import PING_EVERY_S
from node.start import read_start
from node.transport import DIAL_GRACE_S, DIAL_MAX_S
from node.turn import Now, Self, Turn
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
    doubles.on_up(twice, ORIGINAL, 0)
    assert doubles.vouches(twice, [twice], 1), "nobody else can be asked"
    turn = at(1)
    doubles.ask(turn, twice, [twice, *others])
    assert sent(turn) == [(node, AskBoot(twice, ORIGINAL)) for node in others]
    for node in others:
        assert not doubles.vouches(twice, others, 1)
        doubles.on_answer(at(1), node, BootAnswer(twice, ORIGINAL, twice=False))
    assert doubles.vouches(twice, others, 1)
    doubles.on_up(twice, COPY, 0)
    assert not doubles.vouches(twice, others, 1), "another process: ask again"
    doubles.on_answer(at(1), others[0], BootAnswer(twice, ORIGINAL, twice=False))
    assert not doubles.vouches(twice, others[:1], 1), "a late answer about the one before"


def test_another_boot_counts_when_it_has_answered_a_ping_that_left_after_the_question(world: World) -> None:
    me, twice, asker, *_ = world.ids
    doubles = make(world, me)
    turn = at(10)
    doubles.on_ask(turn, asker, AskBoot(twice, COPY), [], alive=False)
    assert sent(turn) == [(asker, BootAnswer(twice, COPY, twice=False))], "not connected here"
    doubles.on_up(twice, ORIGINAL, 0)
    turn = at(11)
    doubles.on_ask(turn, asker, AskBoot(twice, ORIGINAL), [], alive=True)
    assert sent(turn) == [(asker, BootAnswer(twice, ORIGINAL, twice=False))]
    assert doubles.vouches(twice, [], 11)
    turn = at(12)
    doubles.on_ask(turn, asker, AskBoot(twice, COPY), [], alive=True)
    doubles.on_ask(turn, asker, AskBoot(twice, COPY), [], alive=True)
    assert sent(turn) == [(twice, AskBoot(twice, COPY))], "it is told, once"
    doubles.on_pong(turn, twice, 11.9, [])
    assert len(sent(turn)) == 1, "that pong may come from a process that is gone"
    assert not doubles.vouches(twice, [], 12), "until it has answered"
    doubles.on_pong(turn, twice, 12.1, [])
    assert sent(turn)[1:] == [(asker, BootAnswer(twice, COPY, twice=True))]
    doubles.on_pong(turn, twice, 12.2, [])
    assert len(sent(turn)) == 2
    assert doubles.vouches(twice, [], 12)


def test_a_connection_that_outlived_its_process_accuses_nobody(world: World) -> None:
    me, twice, asker, *_ = world.ids
    doubles = make(world, me)
    doubles.on_up(twice, ORIGINAL, 0)
    doubles.on_ask(at(1), asker, AskBoot(twice, COPY), [], alive=True)
    turn = at(2)
    doubles.on_ask(turn, asker, AskBoot(twice, COPY), [], alive=False)
    assert sent(turn) == [(asker, BootAnswer(twice, COPY, twice=False))], "half open: it was silent for too long"
    doubles.on_down(twice, 2, alive=False)
    turn = at(2)
    doubles.on_pong(turn, twice, 1.5, [])
    doubles.on_ask(turn, asker, AskBoot(twice, COPY), [], alive=False)
    assert sent(turn) == [(asker, BootAnswer(twice, COPY, twice=False))]


def test_a_process_whose_connection_broke_counts_as_seen_for_a_while(world: World) -> None:
    me, twice, asker, *_ = world.ids
    doubles = make(world, me)
    doubles.on_up(twice, ORIGINAL, 0)
    doubles.on_down(twice, 10, alive=True)
    early, late = at(10 + SUSPECT_S - 0.1), at(10 + SUSPECT_S)
    doubles.on_ask(early, asker, AskBoot(twice, ORIGINAL), [], alive=False)
    assert sent(early) == [(asker, BootAnswer(twice, ORIGINAL, twice=False))], "the same process is back"
    doubles.on_up(twice, COPY, 0)
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
    doubles.on_up(twice, ORIGINAL, 0)
    doubles.on_closing(at(9), twice, Closing())
    doubles.on_down(twice, 10, alive=True)
    doubles.on_up(twice, COPY, 0)
    assert doubles.vouches(twice, [], 10)


def test_who_has_just_started_vouches_for_and_agrees_to_nobody_unless_it_sees_all(world: World) -> None:
    me, twice, *others = world.ids
    doubles = make(world, me, started=5)
    doubles.on_up(twice, ORIGINAL, 0)
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
    doubles.on_up(twice, ORIGINAL, 0)
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


class Twins(World):
    """A world in which the node `twin` can run as two processes. Each other one is connected to one of them, and a new
    connection takes the place of the one there is; whoever lost its own dials again after `redial_s`."""

    def __init__(self, nodes: int, redial_s: float) -> None:
        self.ended: dict[int, str] = {}
        self.stopped: Node | None = None
        self._speaks: Node | None = None
        super().__init__(nodes, nodes, 7)
        self.redial_s = redial_s
        self.twin, *self.others = self.ids
        self.first = self.nodes[self.twin]
        self.second = self._make_node(self.twin)
        self.boots = {id(self.first): ORIGINAL, id(self.second): COPY}
        self.met: dict[NodeId, Node | None] = {}
        core = self.core(self.twin)
        core.introduce(ORIGINAL, seeds=False)
        for other in self.others:
            self.deliver(other, PeerDown(self.twin))
            self.met[other] = self.first
            self.deliver(other, PeerUp(self.twin, ORIGINAL))

    def start_second(self) -> None:
        self.first.conn.backup(self.second.conn)
        clock = self._clock(self.second)
        self.second.core = Core(self.twin, self.genesis, self.view, self.rng, read_start(self.second.conn), clock)
        self.second.core.introduce(COPY, seeds=False)
        self._wake(self.second)
        for other in self.others:
            self.connect(self.second, other)

    def connect(self, process: Node, other: NodeId) -> None:
        old = self.met.get(other)
        if process.core is None or process is self.stopped or old is process:
            return
        if old is not None:
            self.deliver(other, PeerDown(self.twin))
            self._lose(old, other)
        self.met[other] = process
        self.deliver(other, PeerUp(self.twin, self.boots[id(process)], replaced=old is not None))
        self._put(process, PeerUp(other))

    def resume(self) -> None:
        """The stopped process runs again: it dials whoever does not hold its connection any more."""
        process, self.stopped = self.stopped, None
        assert process is not None
        self._wake(process)
        for other in self.others:
            self.connect(process, other)

    def _lose(self, process: Node, other: NodeId) -> None:
        self._put(process, PeerDown(other))
        self.later(self.redial_s, lambda: self.connect(process, other))

    def _put(self, process: Node, event: Event) -> None:
        if process.core is not None:
            process.inbox.append(event)
            self._wake(process)

    def _turn(self, node: Node, when: float) -> None:
        if node is self.stopped:
            node.turn_at = None
            return
        try:
            super()._turn(node, when)
        except Quarantined as error:
            self.ended[id(node)] = str(error)
            node.core = None
            for other in [other for other, met in self.met.items() if met is node]:
                self.met[other] = None
                self.deliver(other, PeerDown(self.twin))

    def emit(self, node: Node, effects: Effects) -> None:
        self._speaks = node
        super().emit(node, effects)

    def _send(self, source: NodeId, target: NodeId, event: FromPeer) -> None:
        speaks = self._speaks
        delay = self.rng.uniform(*self.faults.delay_s)

        def arrive() -> None:
            if source == self.twin and self.met[target] is not speaks:
                return
            process = self.met[source] if target == self.twin else self.nodes[target]
            if process is not None:
                self._put(process, event)

        self._at(self.now + delay, arrive)

    def votes(self, process: Node) -> bool:
        return process.core is not None and process.core.identity.verified


@pytest.mark.parametrize("redial_s", [0.05, 1.0, 3.2], ids=["dials", "pauses", "is dialed"])
@pytest.mark.parametrize("nodes", [2, 4])
def test_who_was_there_first_stays_and_the_second_ends(nodes: int, redial_s: float) -> None:
    """Nobody has ever voted, so no count tells them apart; with two nodes nobody else can be asked."""
    world = Twins(nodes, redial_s)
    world.run(SUSPECT_S + 1)
    assert world.votes(world.first)
    world.start_second()
    assert world.run_until(lambda: bool(world.ended) or world.votes(world.second), 8), "not settled"
    world.run(SUSPECT_S + redial_s + 1)
    assert list(world.ended) == [id(world.second)]
    assert "was there before this one and goes on" in world.ended[id(world.second)]
    assert world.votes(world.first)
    assert all(process is world.first for process in world.met.values())


@pytest.mark.parametrize("nodes", [2, 4])
@pytest.mark.parametrize("away_s", [0.5, 3 * SUSPECT_S])
def test_a_process_that_slept_while_another_one_was_vouched_for_is_the_second(nodes: int, away_s: float) -> None:
    world = Twins(nodes, 0.05)
    world.run(SUSPECT_S + 1)
    world.stopped = world.first
    world.run(away_s)
    world.start_second()
    assert world.run_until(lambda: world.votes(world.second), REPLACED_S + 2)
    world.resume()
    world.run(4)
    assert list(world.ended) == [id(world.first)]
    assert world.votes(world.second)


@pytest.mark.parametrize("nodes", [2, 4])
def test_a_word_for_one_process_does_not_count_for_another_one_that_gets_it(nodes: int) -> None:
    """It goes to a node, and so to whichever process of it is connected when it leaves."""
    world = Twins(nodes, 3.2)
    world.run(SUSPECT_S + 1)
    emit = world.emit

    def listen(node: Node, effects: Effects) -> None:
        emit(node, effects)
        words = [send.message for send in effects.send if isinstance(send.message, Pong)]
        if world.second.core is None and node.id != world.twin and any(word.boot == ORIGINAL for word in words):
            world.start_second()  # its connections are made while words for the first are under way

    world.emit = listen  # type: ignore[method-assign]
    assert not world.run_until(lambda: world.votes(world.second), 2.5)
    assert world.second.core is not None


@pytest.mark.parametrize("nodes", [2, 4])
def test_a_process_that_slept_votes_no_more_when_it_wakes_until_all_vouch_for_it_again(nodes: int) -> None:
    world = Twins(nodes, 0.05)
    world.run(SUSPECT_S + 1)
    world.stopped = world.first
    world.run(3 * SUSPECT_S)
    world.start_second()
    assert world.run_until(lambda: world.votes(world.second), REPLACED_S + 2)
    woken = world.now
    world.resume()
    assert not world.run_until(lambda: world.now > woken and world.votes(world.first), 4)
    assert list(world.ended) == [id(world.first)]
    assert world.votes(world.second)


def test_a_vote_of_another_process_than_the_one_that_was_vouched_for_decides_nothing() -> None:
    """It is asked again: once that one is gone, and this one is vouched for."""
    world = World(2, 2, 1)
    world.open_funded(alice=100, bob=0)
    owner = world.group("alice")[0]
    (other,) = (node for node in world.ids if node != owner)
    world.lose = lambda source, target, message: target == other and isinstance(message, Ping)
    world.deliver(owner, PeerDown(other))
    world.deliver(owner, PeerUp(other, COPY))  # it was vouched for under another boot
    call = world.submit(owner, world.pay_request("alice", "bob", 1))
    assert not world.run_until_answered([call], SUSPECT_S - 0.1)
    assert world.core(owner).counters["votes_ignored"] > 0
    assert world.run_until_answered([call], 3), "the first one did not come back"


class Sleepers(World):
    """A world whose nodes may sleep: what arrives meanwhile is there when they wake."""

    asleep: frozenset[NodeId] = frozenset()
    until = 0.0

    def sleep(self, nodes: list[NodeId], seconds: float) -> None:
        self.asleep, self.until = frozenset(nodes), self.now + seconds
        for node in nodes:
            self._wake(self.nodes[node])
        self.run(seconds)

    def _turn(self, node: Node, when: float) -> None:
        if node.id in self.asleep and self.now < self.until:
            if node.turn_at == when:
                node.turn_at = None
                self._wake(node, self.until)
            return
        super()._turn(node, when)


@pytest.mark.parametrize("seed", range(5))
def test_a_network_that_slept_as_a_whole_votes_again_within_a_round_of_pings(seed: int) -> None:
    world = Sleepers(5, 3, seed)
    world.open_funded(alice=100, bob=0)
    call = world.submit(world.ids[0], world.pay_request("alice", "bob", 1))
    world.run(0.01)
    world.sleep(world.ids, 3600.0)
    cores = [world.core(node) for node in world.ids]
    assert [core.counters["suspended"] for core in cores] == [1] * 5
    assert world.run_until(lambda: all(core.identity.verified for core in cores), 2 * PING_EVERY_S)
    assert world.run_until_answered([call], 3)
    assert world.settle(world.ids[1], world.pay_request("alice", "bob", 1)).outcome == 0
    assert [core.counters["suspended"] for core in cores] == [1] * 5


def test_a_node_that_slept_alone_votes_again_within_a_round_of_pings() -> None:
    world = Sleepers(3, 3, 2)
    world.run(SUSPECT_S + 1)
    sleeper = world.ids[0]
    core = world.core(sleeper)
    world.sleep([sleeper], 3 * SUSPECT_S)
    world.run(0)
    assert core.counters["suspended"] == 1
    assert not core.identity.verified
    assert world.run_until(lambda: core.identity.verified, 2 * PING_EVERY_S)
    assert [world.core(node).counters["suspended"] for node in world.ids] == [1, 0, 0]


def test_who_slept_asks_anew_and_vouches_for_nobody_until_it_has_met_those_who_are_there(world: World) -> None:
    me, peer, other, *_ = world.ids
    doubles = make(world, me)
    doubles.on_up(peer, ORIGINAL, 0)
    doubles.on_answer(at(0), other, BootAnswer(peer, ORIGINAL, twice=False))
    assert doubles.vouches(peer, [other], 1)
    doubles.on_slept(50)
    assert not doubles.vouches(peer, [], 50), "others may not be connected again yet"
    assert not doubles.vouches(peer, [other], 50 + SUSPECT_S), "what it said is old"
    doubles.on_answer(at(51), other, BootAnswer(peer, ORIGINAL, twice=False))
    assert doubles.vouches(peer, [other], 50 + SUSPECT_S)


def test_another_process_than_the_one_that_was_vouched_for_has_no_vote(world: World) -> None:
    me, peer, *_ = world.ids
    doubles = make(world, me)
    doubles.on_up(peer, ORIGINAL, 0)
    assert not doubles.is_another(peer)
    doubles.on_up(peer, COPY, 0)
    assert not doubles.is_another(peer), "nobody was vouched for"
    assert doubles.on_vouched(peer) == COPY
    doubles.on_down(peer, 1, alive=True)
    assert not doubles.is_another(peer)
    doubles.on_up(peer, ORIGINAL, 1)
    assert doubles.is_another(peer)
    assert doubles.vouches(peer, [], 1 + SUSPECT_S), "it may be, when the other one is gone"
    doubles.on_vouched(peer)
    assert not doubles.is_another(peer)


def test_starts_of_a_copy_that_end_at_once_do_not_hold_up_the_process_that_was_vouched_for(world: World) -> None:
    me, twice, asker, *_ = world.ids
    doubles = make(world, me)
    vouch(doubles, twice, ORIGINAL, 0)
    now = 1.0
    for number in range(5):
        doubles.on_down(twice, now, alive=True)
        doubles.on_up(twice, b"start %d" % number, now, replaced=True)
        assert not doubles.vouches(twice, [], now + 0.1), "that one is not vouched for"
        doubles.on_down(twice, now + 0.1, alive=True)
        doubles.on_up(twice, ORIGINAL, now + 0.2)
        assert doubles.vouches(twice, [], now + 0.2)
        doubles.on_ask(turn := at(now + 0.2), asker, AskBoot(twice, ORIGINAL), [], alive=True)
        assert sent(turn) == [(asker, BootAnswer(twice, ORIGINAL, twice=False))]
        now += 1
    doubles.on_down(twice, now, alive=True)
    doubles.on_up(twice, COPY, now)
    doubles.on_pong(at(now + 0.1), twice, now, [])
    doubles.on_down(twice, now + 0.1, alive=True)
    doubles.on_up(twice, ORIGINAL, now + 0.2)
    assert not doubles.vouches(twice, [], now + 0.2), "one that has answered may be on its way back"


def test_of_two_that_nobody_vouched_for_each_holds_up_the_other(world: World) -> None:
    me, twice, *_ = world.ids
    doubles = make(world, me)
    doubles.on_up(twice, ORIGINAL, 0)
    doubles.on_down(twice, 1, alive=True)
    doubles.on_up(twice, COPY, 1, replaced=True)
    assert not doubles.vouches(twice, [], 1.1)
    doubles.on_down(twice, 1.2, alive=True)
    doubles.on_up(twice, ORIGINAL, 1.3)
    assert not doubles.vouches(twice, [], 1.3)


def vouch(doubles: Doubles, peer: NodeId, boot: bytes, now: float) -> None:
    doubles.on_up(peer, boot, now)
    doubles.on_vouched(peer)


def meet_again(doubles: Doubles, peer: NodeId, boots: list[bytes], now: float) -> Turn:
    """A second later each time, these processes take each other's place; each answers a ping."""
    turn = at(now)
    for boot in boots:
        doubles.on_down(peer, now, alive=True)
        doubles.on_up(peer, boot, now, replaced=True)
        turn = at(now + 0.5)
        doubles.on_pong(turn, peer, now, [])
        now += 1
    return turn


def test_a_process_that_ran_beside_the_one_that_was_vouched_for_is_told_and_never_vouched_for(world: World) -> None:
    me, twice, asker, *_ = world.ids
    doubles = make(world, me)
    vouch(doubles, twice, ORIGINAL, 0)
    meet_again(doubles, twice, [COPY], 1)
    doubles.on_ask(turn := at(2), asker, AskBoot(twice, ORIGINAL), [], alive=True)
    assert sent(turn) == [(twice, AskBoot(twice, ORIGINAL))], "the other one may vote no more"
    doubles.on_pong(turn, twice, 2.1, [])
    assert len(sent(turn)) == 1, "nobody is accused who was there first"
    meet_again(doubles, twice, [ORIGINAL], 3)
    assert doubles.vouches(twice, [], 3.6), "the second one has to end, and holds nobody up"
    doubles.on_ask(turn := at(4), asker, AskBoot(twice, COPY), [], alive=True)
    assert sent(turn) == [(asker, BootAnswer(twice, COPY, twice=True, later=True))]
    doubles.on_down(twice, 100, alive=False)
    doubles.on_up(twice, COPY, 100)
    assert not doubles.vouches(twice, [], 100), "however long the first one is gone"
    doubles.ask(turn := at(100), twice, [asker])
    assert sent(turn) == [(twice, Twice(COPY, later=True))]
    doubles.on_ask(turn := at(100), asker, AskBoot(twice, ORIGINAL), [], alive=True)
    assert sent(turn) == [(asker, BootAnswer(twice, ORIGINAL, twice=False))], "not on account of a second one"
    with pytest.raises(
        Quarantined, match=r"was there before this one.*Leave that one alone, and delete this directory"
    ):
        make(world, twice, boot=COPY).on_twice(at(2), me, Twice(COPY, later=True))


@pytest.mark.parametrize("answered", [1.0, 0.9, 3.1, float("nan")])
def test_a_pong_that_was_not_asked_of_this_process_proves_nothing(world: World, answered: float) -> None:
    me, twice, *_ = world.ids
    doubles = make(world, me)
    vouch(doubles, twice, ORIGINAL, 0)
    doubles.on_down(twice, 1, alive=True)
    doubles.on_up(twice, COPY, 2)
    doubles.on_pong(at(3), twice, answered, [])  # what the first one was asked; or what nobody can have asked
    meet_again(doubles, twice, [ORIGINAL], 4)
    doubles.on_down(twice, 100, alive=False)
    doubles.on_up(twice, COPY, 100)
    assert doubles.vouches(twice, [], 100)


def test_the_first_one_must_answer_after_the_second_one_did(world: World) -> None:
    """Otherwise it may have ended before that one started, and a handshake of it was late."""
    me, twice, *_ = world.ids
    doubles = make(world, me)
    vouch(doubles, twice, ORIGINAL, 0)
    meet_again(doubles, twice, [COPY], 1)
    doubles.on_down(twice, 2, alive=True)
    doubles.on_up(twice, ORIGINAL, 2)  # it connects, and says no word
    doubles.on_down(twice, 2, alive=True)
    doubles.on_up(twice, COPY, 2 + REPLACED_S)
    assert doubles.vouches(twice, [], 2 + REPLACED_S)


def test_a_process_whose_place_was_taken_has_longer_to_come_back(world: World) -> None:
    me, twice, *_ = world.ids
    """Whichever turns the two events fall into: a process that was killed, and started again while a turn lasted, did
    not lose its place to the next one."""
    for alive, vouched, replaced, after, expected in (
        (True, True, True, 0.0, REPLACED_S),
        (True, True, True, 0.5, 0.5 + REPLACED_S),
        (True, True, False, 0.0, SUSPECT_S),
        (True, True, False, 0.5, SUSPECT_S),
        (True, False, True, 0.0, SUSPECT_S),
        (False, True, True, 0.0, 0.0),
    ):
        doubles = make(world, me)
        doubles.on_up(twice, ORIGINAL, 0)
        if vouched:
            doubles.on_vouched(twice)
        doubles.on_down(twice, 10, alive=alive)
        doubles.on_up(twice, COPY, 10 + after, replaced=replaced)
        until = 10 + expected
        assert doubles.vouches(twice, [], until), (alive, vouched, replaced, after)
        assert expected == 0 or not doubles.vouches(twice, [], until - 0.1), (alive, vouched, replaced, after)


def test_who_is_to_come_back_has_as_long_as_that_takes_at_most() -> None:
    once = DIAL_GRACE_S + DIAL_MAX_S + 2 * HANDSHAKE_S  # to connect, and to shake hands
    assert once < REPLACED_S < once + 2


def test_who_was_seen_first_counts_only_where_nobody_else_can_be_asked(world: World) -> None:
    me, twice, other, *_ = world.ids
    for started, members, ends in ((LONG_AGO, [twice], True), (LONG_AGO, [twice, other], False), (9, [twice], False)):
        doubles = make(world, me, started=started)
        doubles.on_up(twice, ORIGINAL, 9)
        for now, boot in ((9.2, COPY), (9.4, ORIGINAL), (9.6, COPY)):
            doubles.on_down(twice, now, alive=True)
            doubles.on_up(twice, boot, now)
            doubles.on_pong(turn := at(now + 0.1), twice, now + 0.05, members)
        doubles.ask(turn, twice, [])
        assert sent(turn) == ([(twice, Twice(COPY, later=True))] if ends else []), (started, members)


def test_of_two_that_start_when_another_one_is_long_gone_one_ends(world: World) -> None:
    me, twice, *_ = world.ids
    doubles = make(world, me)
    vouch(doubles, twice, b"boot of long ago", 0)
    doubles.on_down(twice, 1, alive=True)
    doubles.on_down(me, 1 + SUSPECT_S, alive=False)
    meet_again(doubles, twice, [ORIGINAL, COPY, ORIGINAL], 20)
    assert doubles.vouches(twice, [], 22.6)
    doubles.on_up(twice, COPY, 100)
    assert not doubles.vouches(twice, [], 100)
    meet_again(doubles, twice, [COPY, ORIGINAL, COPY, ORIGINAL], 200)
    assert doubles.vouches(twice, [], 204), "the one that had to end is never the first"


def test_when_nobody_knows_who_was_first_both_end(world: World) -> None:
    """One member vouched for the one process, another one for the other: a cut has healed."""
    me, twice, other, *_ = world.ids
    doubles = make(world, me)
    vouch(doubles, twice, ORIGINAL, 0)
    doubles.on_answer(turn := at(1), other, BootAnswer(twice, ORIGINAL, twice=True))
    assert sent(turn) == [], "that one has vouched for nobody, this one has"
    assert not doubles.vouches(twice, [other], 1)
    doubles.on_answer(turn, other, BootAnswer(twice, ORIGINAL, twice=True, later=True))
    assert sent(turn) == [(twice, Twice(ORIGINAL, later=True))]
    assert not doubles.vouches(twice, [], 1)
    doubles.on_ask(turn := at(2), other, AskBoot(twice, COPY), [], alive=True)
    assert sent(turn) == [(twice, AskBoot(twice, COPY))], (
        "it may still vote, by the word of this node: it is stopped first"
    )
    doubles.on_pong(turn, twice, 2.1, [])
    assert sent(turn)[-1] == (other, BootAnswer(twice, COPY, twice=True, later=True))
    doubles.on_down(twice, 3, alive=True)
    doubles.on_up(twice, COPY, 3)
    doubles.on_ask(turn := at(3), other, AskBoot(twice, COPY), [], alive=True)
    assert sent(turn) == [], "and may be back"


def test_what_is_remembered_of_processes_has_a_bound(world: World) -> None:
    me, twice, *_ = world.ids
    doubles = make(world, me)
    vouch(doubles, twice, ORIGINAL, 0)
    starts = [b"start %d" % number for number in range(3 * BOOTS)]
    for number, boot in enumerate(starts):
        meet_again(doubles, twice, [boot, boot], 1 + number / 10)
    meet_again(doubles, twice, [ORIGINAL], 5)

    def told_to_end(now: float) -> list[bytes]:
        found = []
        for boot in starts:
            doubles.on_down(twice, now, alive=False)
            doubles.on_up(twice, boot, now)
            doubles.ask(turn := at(now), twice, [])
            found += [boot for _ in sent(turn)]
        doubles.on_down(twice, now, alive=False)
        return found

    assert doubles._self.counters["peers_later"] == BOOTS
    assert told_to_end(6) == starts[-BOOTS:]
    vouch(doubles, twice, ORIGINAL, 100)
    for number, boot in enumerate(starts):
        meet_again(doubles, twice, [boot, ORIGINAL], 101 + 2 * number)
    assert told_to_end(200) == starts[-BOOTS:]


def test_who_is_no_member_is_forgotten_once_it_is_gone() -> None:
    world = World(4, 3, 2, first=3)
    me, member, _ = (node for node in world.ids if node not in world.guests)
    (guest,) = world.guests
    doubles = make(world, me)
    for number, peer in enumerate((guest, member)):
        vouch(doubles, peer, ORIGINAL, 0)
        doubles.on_down(me, 0, alive=False)
        meet_again(doubles, peer, [COPY, ORIGINAL, COPY], 1)
        assert doubles._self.counters["peers_later"] == number + 1, "not while it may be back"
        doubles.ask(turn := at(4), peer, [])
        assert sent(turn) == [(peer, Twice(COPY, later=True))], "nor while it is there"
        doubles.on_down(peer, 4, alive=True)
    doubles.on_down(member, 20, alive=False)
    for peer in (guest, member):
        doubles.on_up(peer, COPY, 20)
        assert doubles.vouches(peer, [], 20) == (peer == guest)


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
    doubles.on_up(twice, ORIGINAL, 0)
    doubles.on_down(twice, 1.0, alive=True)
    for _ in range(2):
        doubles.on_up(twice, COPY, 0)
        assert not doubles.vouches(twice, [], 1.5)
        doubles.on_down(twice, 1.5, alive=True)
    doubles.on_up(twice, COPY, 0)
    assert doubles.vouches(twice, [], 1.0 + SUSPECT_S)

"""The failure detector: who counts as alive, who is pinged when, whose connection is closed."""

from collections import Counter

from chain.needs import Loaded
from node.doubles import SUSPECT_S
from node.identity import MEET_S, Identity
from node.messages import (
    Accept,
    Accepted,
    AskBoot,
    Message,
    Ping,
    Pong,
    Prepare,
    Promise,
    SlotName,
    ViewAccept,
    ViewAccepted,
    ViewPrepare,
    ViewPromise,
)
from node.paxos import Ballot
from node.peers import CLOCK_PINGS, DROP_PINGS, PING_EVERY_S, UNANSWERED, Peers
from node.turn import Now, Self, Turn
from routing.keyspace import NodeId
from routing.regions import RING
from tests.node.world import World


def make(world: World) -> Peers:
    self_ = Self(world.ids[0], world.genesis, world.network, world.view, RING, world.rng, Counter())
    identity = Identity(self_, {}, -MEET_S)
    identity.tick(0.0)  # a majority is enough
    return Peers(self_, identity, 0.0)


def at(when: float) -> Turn:
    return Turn(Loaded(), Now(when, 0))


def pinged(turn: Turn) -> list[NodeId]:
    return [send.peer for send in turn.sends if isinstance(send.message, Ping)]


def test_a_burst_of_new_connections_is_no_silence_of_the_others() -> None:
    """Each new peer gets a ping of its own; only rounds of pings, half a second apart, count the silence of all."""
    world = World(20, 3, 1)
    _, *others = world.ids
    peers = make(world)
    for number, peer in enumerate(others):
        turn = at(1.0 + number / 1000)
        peers.on_up(turn, peer, b"boot", 0)
        assert pinged(turn) == [peer]
        peers.tick(turn, 0)
        assert not turn.drops
        assert all(peers.alive(known, turn.now) for known in others[: number + 1])


def test_who_is_heard_and_answers_no_ping_is_not_alive() -> None:
    world = World(3, 3, 1)
    _, mute, _ = world.ids
    peers = make(world)
    peers.on_up(at(1.0), mute, b"boot", 0)
    for number in range(UNANSWERED + 2):
        turn = at(1.0 + number * PING_EVERY_S)
        assert peers.alive(mute, turn.now) == (number <= UNANSWERED), number
        peers.heard(mute, turn.now)
        peers.tick(turn, 0)
    assert peers.heard_lately(mute, turn.now)
    peers.on_pong(turn, mute, Pong(turn.now.mono, 0, 0))
    assert peers.alive(mute, turn.now)


def test_who_slept_itself_drops_nobody() -> None:
    world = World(3, 3, 1)
    _, one, _ = world.ids
    peers = make(world)
    peers.on_up(at(1.0), one, b"boot", 0)
    turn = at(1.0)
    for number in range(DROP_PINGS + 1):
        turn = at(1.0 + number * 10.0)
        peers.tick(turn, 0)
        assert not turn.drops, "its word may be in the queue"
    drops: list[NodeId] = []
    for number in range(1, DROP_PINGS + 2):
        later = at(turn.now.mono + number * PING_EVERY_S)
        peers.tick(later, 0)
        drops += later.drops
    assert drops == [one]


def test_who_is_heard_again_after_a_silence_is_waited_for_again() -> None:
    """R12: all members who are heard of have to vouch, and this one may know of votes that the others do not."""
    world = World(3, 3, 1)
    _, one, other = world.ids
    peers = make(world)
    for peer in (one, other):
        peers.on_up(at(1.0), peer, b"boot", 0)
    for number in range(1, 6):
        turn = at(1.0 + number * PING_EVERY_S)
        peers.heard(one, turn.now)
        peers.tick(turn, 0)
    peers.on_pong(turn, one, Pong(turn.now.mono, 0, 0, b""))
    assert peers._identity.verified, "nobody waits for who is silent"
    peers.heard(other, turn.now)
    peers._identity.suspend()
    peers.on_pong(turn, one, Pong(turn.now.mono, 0, 0, b""))
    assert not peers._identity.verified
    peers.on_pong(turn, other, Pong(turn.now.mono, 0, 0, b""))
    assert peers._identity.verified


def test_only_a_word_for_this_process_that_was_asked_for_since_it_was_suspended_counts() -> None:
    world = World(3, 3, 1)
    me, one, _ = world.ids
    peers = make(world)
    identity = peers._identity
    peers.on_up(at(1.0), one, b"boot", 0)
    peers.on_pong(at(1.1), one, Pong(1.0, 0, 0, None))
    peers.on_pong(at(1.1), one, Pong(1.0, 0, 0, b"another process of it"))
    assert not identity.verified
    peers.on_pong(at(1.1), one, Pong(1.0, 0, 0, b""))
    assert identity.verified
    peers.on_ask_boot(at(2.0), one, AskBoot(me, b"another process of it"))
    for sent in (1.5, float("nan")):
        peers.on_pong(at(2.1), one, Pong(sent, 0, 0, b""))
        assert not identity.verified, "it may have been said before that other one was seen"
    peers.on_pong(at(2.1), one, Pong(2.0, 0, 0, b""))
    assert identity.verified


def test_a_node_that_starts_has_not_slept() -> None:
    world = World(3, 3, 1)
    self_ = Self(world.ids[0], world.genesis, world.network, world.view, RING, world.rng, Counter())
    Peers(self_, Identity(self_, {}, 1000.0), 1000.0).wake(Now(1000.0, 0))
    assert not self_.counters["suspended"]


def test_who_slept_is_suspended_before_it_looks_at_anything() -> None:
    world = World(3, 3, 1)
    _, one, _ = world.ids
    peers = make(world)
    peers.wake(Now(0.0, 0))
    peers.on_up(at(0.0), one, b"boot", 0)
    peers.tick(at(0.0), 0)
    peers.on_pong(at(0.1), one, Pong(0.0, 0, 0, b""))
    late = PING_EVERY_S + SUSPECT_S
    peers.wake(Now(late - 0.1, 0))
    assert peers._identity.verified
    peers.wake(Now(late, 0))
    assert not peers._identity.verified
    peers.on_pong(at(late), one, Pong(0.0, 0, 0, b""))
    assert not peers._identity.verified
    peers.tick(turn := at(late), 0)
    assert pinged(turn) == [one], "it asks at once"
    peers.on_pong(at(late), one, Pong(late, 0, 0, b""))
    assert peers._identity.verified


def test_votes_of_another_process_and_answers_to_another_process_are_not_heeded() -> None:
    world = World(3, 3, 1)
    me, one, _ = world.ids
    peers = make(world)
    slot, ballot = SlotName(bytes(32), "alice", 0), Ballot(1, 1, one)
    asks: list[Message] = [
        Prepare(slot, ballot),
        Accept(slot, ballot, b""),
        ViewPrepare(ballot),
        ViewAccept(ballot, b""),
    ]
    answers: list[Message] = [
        Promise(bytes(32), ballot, None, None),
        Accepted(bytes(32), ballot),
        ViewPromise(ballot, None, None),
        ViewAccepted(ballot),
    ]
    rest = Ping(1.0, 0, 0, 1, True, 0)

    def heeded(peer: NodeId) -> list[Message]:
        return [message for message in [*asks, *answers, rest] if peers.counts(peer, message)]

    peers.on_up(at(1.0), one, b"boot", 0)
    assert heeded(one) == [*asks, rest], "this node may not vote: whom are the answers for?"
    peers.on_pong(at(1.0), one, Pong(1.0, 0, 0, b""))
    assert heeded(one) == [*asks, *answers, rest]
    peers.doubles.on_vouched(one)
    peers.on_down(one, Now(2.0, 0))
    peers.on_up(at(2.0), one, b"another boot", 0)
    assert heeded(one) == [rest]
    assert heeded(me) == [*asks, *answers, rest]
    peers.doubles.on_vouched(one)
    assert heeded(one) == [*asks, *answers, rest]


def test_a_clock_is_judged_by_the_ping_that_waited_least() -> None:
    """A node that is busy, or was asleep, finds pings that are seconds old: no clock is wrong for that."""
    world = World(3, 3, 1)
    _, one, _ = world.ids
    peers = make(world)
    peers.on_up(at(0.0), one, b"boot", 0)
    assert peers.clock_apart_ms(one) == 0

    def ping(number: int, time_ms: int, waited_ms: int) -> None:
        now = Now(number * PING_EVERY_S, 1_000_000 + waited_ms)
        peers.on_ping(Turn(Loaded(), now), one, Ping(0.0, 0, 0, 1, True, 1_000_000 + time_ms), 0)

    for number, waited_ms in enumerate((4, 9_000, 5_000, 2_500), 1):
        ping(number, 0, waited_ms)
    assert peers.clock_apart_ms(one) == -4
    ping(5, 7_000, 6_000)
    assert peers.clock_apart_ms(one) == 1_000
    for number in range(CLOCK_PINGS):
        ping(6 + number, -3_000, 1)
    assert peers.clock_apart_ms(one) == -3_001

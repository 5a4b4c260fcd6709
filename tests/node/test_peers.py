"""The failure detector: who counts as alive, who is pinged when, whose connection is closed."""

from collections import Counter

from chain.needs import Loaded
from node.identity import Identity
from node.messages import Ping, Pong
from node.peers import DROP_PINGS, PING_EVERY_S, UNANSWERED, Peers
from node.turn import Now, Self, Turn
from routing.keyspace import NodeId
from routing.regions import RING
from tests.node.world import World


def make(world: World) -> Peers:
    self_ = Self(world.ids[0], world.genesis, world.network, world.view, RING, world.rng, Counter())
    return Peers(self_, Identity(self_, {}, 0.0), 0.0)


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

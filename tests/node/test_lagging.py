"""Who lives and lags: requests go round it until it has caught up, and never in circles."""

from collections import Counter
from collections.abc import Callable

import pytest

from chain.needs import Loaded
from hopchain.wire import Recorded
from node import peers as peers_module
from node.events import FromPeer
from node.identity import Identity
from node.jobs import TRY_AGAIN_S
from node.messages import (
    Accept,
    Decided,
    DecidedHash,
    Forward,
    Item,
    Links,
    Moved,
    Offer,
    Ping,
    Pong,
    Prepare,
    SlotName,
)
from node.peers import LAG_LINKS, LAG_S, PING_EVERY_S, Peers
from node.turn import Now, Self, Turn
from routing.keyspace import NodeId
from routing.regions import RING
from tests.node.watch import Call
from tests.node.world import World

# For one slot: to the owner or who is thought to be it, after NotOwner to the owner, to a rank that it is left to, a
# copy.
MOST = 4
NEWS = Decided | DecidedHash | Offer | Links | Moved
PER_ROUND = 500  # links in PING_EVERY_S


def make(world: World) -> Peers:
    self_ = Self(world.ids[0], world.genesis, world.network, world.view, RING, world.rng, Counter())
    peers = Peers(self_, Identity(self_, {}, 0.0), 0.0)
    for peer in world.ids[1:]:
        peers.on_up(at(0.0), peer, b"boot", 0)
    return peers


def at(when: float) -> Turn:
    return Turn(Loaded(), Now(when, 0))


def pong(peers: Peers, peer: NodeId, links: int, sent: float, now: float) -> None:
    peers.on_pong(at(now), peer, Pong(sent, links, 0, b""))


def test_counts_of_a_busy_network_are_old_and_nobody_lags_on_their_account() -> None:
    """A thousand links a second: what a peer tells, or what this node has, is a few hundred links old when it is looked
    at."""
    world = World(3, 3, 1)
    _, one, other = world.ids
    peers = make(world)
    for number in range(1, 20):
        when, links = number * PING_EVERY_S, number * PER_ROUND
        peers.tick(at(when), links)
        pong(peers, one, links, when, when + 0.4)
        pong(peers, other, links - PER_ROUND, when, when + 0.01)
        assert not any(peers.lags(node) for node in world.ids), number
        peers.on_ping(at(when + 0.45), one, Ping(0.0, links + PER_ROUND, 0, 1, True, 0), links)


def test_who_lacks_what_this_node_had_a_second_before_lags_until_it_has_it() -> None:
    world = World(3, 3, 1)
    _, one, other = world.ids
    peers = make(world)
    rounds = round(LAG_S / PING_EVERY_S)
    for number in range(rounds + 1):
        peers.tick(at(number * PING_EVERY_S), 1000 + number)
    sent = rounds * PING_EVERY_S
    now = sent + 0.01
    pong(peers, one, 1000 - LAG_LINKS, sent, now)
    assert not peers.lags(one), "a few links that were lost are soon asked for"
    pong(peers, one, 1000 - LAG_LINKS - 1, sent, now)
    assert peers.lags(one)
    assert not peers.keeps_pace(one, Now(now, 0))
    assert peers.ranks([one, other], Now(now, 0)) == [other, one], "it is asked last"
    pong(peers, other, 0, sent, now)
    assert peers.ranks([one, other], Now(now, 0)) == [one, other], "when all lag, they are asked in their order"
    pong(peers, one, 1000 - LAG_LINKS, sent, now)
    assert peers.ranks([other, one], Now(now, 0)) == [one, other]
    pong(peers, one, 0, sent - PING_EVERY_S, now)
    assert not peers.lags(one), "it was asked when this node had not had them for a second"
    peers.on_up(at(now), other, b"boot", 0)
    assert not peers.lags(other), "nothing is known of a new connection"


def test_a_node_that_lags_itself_knows_it_and_is_the_last_of_its_ranks() -> None:
    world = World(3, 3, 1)
    me, one, other = world.ids
    peers = make(world)
    peers.on_ping(at(0.1), one, Ping(0.0, 1000, 0, 1, True, 0), 0)
    rounds = round(LAG_S / PING_EVERY_S) + 1
    for number in range(1, rounds + 1):
        assert not peers.lags(me), "what was told may be on its way"
        peers.heard(one, Now(number * PING_EVERY_S, 0))
        peers.heard(other, Now(number * PING_EVERY_S, 0))
        peers.tick(at(number * PING_EVERY_S), 1000 - LAG_LINKS - 1)
    now = rounds * PING_EVERY_S
    assert peers.lags(me)
    assert peers.ranks([me, one, other], Now(now, 0)) == [one, other, me]
    peers.heard(one, Now(now + PING_EVERY_S, 0))
    peers.tick(at(now + PING_EVERY_S), 1000 - LAG_LINKS)
    assert not peers.lags(me)


def test_what_one_said_who_is_gone_makes_nobody_lag() -> None:
    world = World(3, 3, 1)
    me, one, _ = world.ids
    peers = make(world)
    peers.on_ping(at(0.1), one, Ping(0.0, 1000, 0, 1, True, 0), 0)
    for number in range(1, 12):
        peers.tick(at(number * PING_EVERY_S), 0)
    assert not peers.lags(me)


# --- requests ---


def in_the_dark(world: World, *dark: NodeId) -> str:
    """Others make links that the nodes `dark` do not get, though they live: an account whose tail is owned by the first
    of them."""
    names = [f"p{i}" for i in range(12)]
    world.open_funded(bob=0, **dict.fromkeys(names, 10_000))
    world.run(3)
    world.lose = lambda source, target, message: target in dark and isinstance(message, NEWS)
    gateway = next(node for node in world.ids if node not in dark)
    for _ in range(2):
        for name in names:
            world.submit(gateway, world.pay_request(name, "bob", 1), 30)
        world.run(10)
    return next(n for n in names if world.group(n)[0] == dark[0] and world.height(dark[0], n) < tail(world, n))


def tail(world: World, name: str) -> int:
    return len(world.watch.accounts[name].links) - 1


@pytest.fixture
def lagging(monkeypatch: pytest.MonkeyPatch) -> tuple[World, NodeId, str]:
    """Three nodes, one that lags, and an account whose tail it owns."""
    monkeypatch.setattr(peers_module, "LAG_LINKS", 3)
    world = World(3, 3, 7)
    dark = world.ids[0]
    return world, dark, in_the_dark(world, dark)


def is_decided_in(world: World, call: Call, seconds: float) -> bool:
    """Whether the request of a call gets its outcome in that time, whoever knows of it."""
    assert call.request is not None
    assert call.signed is not None
    links, request_id = world.watch.accounts[call.request.sender].links, call.signed.request_id
    return world.run_until(lambda: any(i == request_id for i, _ in links[-1].outcomes()), seconds)


def test_an_owner_that_lives_and_lags_holds_nobody_up(lagging: tuple[World, NodeId, str]) -> None:
    world, dark, name = lagging
    gateway = world.ids[1]
    assert world.core(gateway).peers.alive(dark, Now(world.now, 0))
    to: list[NodeId] = []
    note_hand_overs(world, lambda target, message: to.append(target))
    calls = []
    for _ in range(40):  # the tail moves on, to slots of all of them
        calls.append(world.submit(gateway, world.pay_request(name, "bob", 1), 30))
        world.run(0.003)
    assert world.run_until_answered(calls, 0.3)
    assert all(isinstance(call.answer, Recorded) for call in calls)
    assert to
    assert dark not in to


def test_clients_of_a_node_that_lags_have_their_links_made_by_others(lagging: tuple[World, NodeId, str]) -> None:
    world, dark, name = lagging
    assert is_decided_in(world, world.submit(dark, world.pay_request(name, "bob", 1), 30), 0.3)


def test_who_lags_and_is_not_known_to_leaves_what_it_cannot_make_to_others(
    lagging: tuple[World, NodeId, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, dark, name = lagging
    for node in world.ids[1:]:
        monkeypatch.setattr(world.core(node).peers, "lags", lambda node: False)
    sent = count_hand_overs(world)
    assert is_decided_in(world, world.submit(world.ids[1], world.pay_request(name, "bob", 1), 30), 0.3)
    assert world.core(dark).counters["forwards_left"] == 1
    assert max(sent.values()) <= MOST, sent


def test_who_lags_leaves_nothing_to_another_that_lags(
    lagging: tuple[World, NodeId, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lacks the parent as much: the requests would be no nearer to their link."""
    world, dark, _ = lagging
    gateway = world.ids[1]
    name = next(n for n in world.watch.accounts if world.group(n)[0] != dark and world.height(dark, n) < tail(world, n))
    tip, signed = world.watch.accounts[name].links[-1], world.pay_request(name, "bob", 1)
    at, items = SlotName(tip.hash, name, tip.height + 1), (Item(signed.raw, signed.signature, gateway),)
    monkeypatch.setattr(world.core(dark).peers, "lags", lambda node: True)
    sent = count_hand_overs(world)
    early = world.core(dark).counters["messages_early"]
    world.deliver(dark, FromPeer(gateway, Forward(at, items, takeover=False)))
    world.run(0.01)
    assert not sent
    assert world.core(dark).counters["messages_early"] == early + 1, "it waits for the parent"


def test_what_an_owner_holds_that_turns_out_to_lag_is_soon_handed_to_another(
    lagging: tuple[World, NodeId, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, dark, name = lagging
    gateway = world.ids[1]
    with monkeypatch.context() as patch:
        for node in world.ids:
            patch.setattr(world.core(node).peers, "lags", lambda node: False)
        call = world.submit(gateway, world.pay_request(name, "bob", 1), 30)
        world.run(0.5)
        assert call.answer is None
    assert world.core(gateway).peers.lags(dark)
    assert world.run_until_answered([call], TRY_AGAIN_S)


def note_hand_overs(world: World, note: Callable[[NodeId, Forward], object]) -> None:
    before = world.lose

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, Forward):
            note(target, message)
        return before(source, target, message)

    world.lose = lose


def count_hand_overs(world: World) -> Counter[tuple[bytes, int]]:
    """How often each request is sent from node to node for each height."""
    sent: Counter[tuple[bytes, int]] = Counter()
    note_hand_overs(world, lambda _, message: sent.update((item.raw, message.at.height) for item in message.items))
    return sent


@pytest.mark.parametrize("seed", range(3))
def test_no_opinions_of_who_lags_send_a_request_in_circles(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each node has any opinion of each, itself among them, two lack the parent, and no vote comes through."""
    world = World(4, 4, seed)
    name = in_the_dark(world, *world.ids[:2])
    dark = world.lose
    world.lose = lambda source, target, message: isinstance(message, Prepare | Accept) or dark(source, target, message)
    opinions = {node: set[NodeId]() for node in world.ids}
    for node, lag in opinions.items():
        monkeypatch.setattr(world.core(node).peers, "lags", lag.__contains__)
    sent = count_hand_overs(world)
    most = 0
    for _ in range(200):
        for lag in opinions.values():
            lag.clear()
            lag.update(node for node in world.ids if world.rng.random() < 0.5)
        world.submit(world.rng.choice(world.ids), world.pay_request(name, "bob", 1), 0.05)
        world.run(0.1)
        most = max(most, *sent.values(), 0)
        sent.clear()  # gateways hand over again every second
    assert MOST - 2 <= most <= MOST


def test_no_opinion_that_changes_sends_a_request_in_circles(
    lagging: tuple[World, NodeId, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last rank hands a request to the first, which leaves it to the last. By then the last one knows that the
    first one lags, and sends a copy to the second, which does not know it, and thinks that it is for the first."""
    world, first, name = lagging
    _, second, last = world.group(name)
    dark = world.lose
    world.lose = lambda source, target, message: isinstance(message, Prepare | Accept) or dark(source, target, message)
    opinions = {first: {first, second}, second: set[NodeId](), last: set[NodeId]()}
    for node, lag in opinions.items():
        monkeypatch.setattr(world.core(node).peers, "lags", lag.__contains__)
    sent = count_hand_overs(world)
    world.submit(last, world.pay_request(name, "bob", 1), 30)
    assert world.run_until(lambda: bool(sent), 0.1)
    opinions[last].add(first)
    world.run(0.5)
    assert world.core(first).counters["forwards_left"] == 1
    assert list(sent.values()) == [3]

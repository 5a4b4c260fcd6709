"""Whole nodes: how soon a node that is started again votes, and what becomes of a connection that nobody ends (design
R12)."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import msgspec
import pytest
import trio

from chain.errors import Removed
from hopchain.wire import AskBalance, Refused
from netsim.plan import Cut, Plan
from netsim.whole import simulate
from netsim.whole_network import START_S, WholeNetwork
from netsim.whole_node import WholeNode
from node.config import NodeConfig, Peer
from node.doubles import SUSPECT_S
from node.effects import Read
from node.events import Caller
from node.identity import ALONE_S, MEET_S
from node.marker import Marker
from node.peers import PING_EVERY_S
from node.running import Ports, RunningNode
from node.serving import Serving
from routing.keyspace import NodeId

BACK_S = 0.1  # from the end of a process to the start of the next


def verified_after(*, closing: bool, alone: bool = False) -> float:
    """Seconds from the end of a process until the next one of that node votes. `alone`: one of the others is down."""
    found: list[float] = []

    async def play(network: WholeNetwork) -> None:
        await trio.sleep(START_S)
        node = network.nodes[1]
        assert node.running is not None
        if closing:
            await node.running.aclose()
        if alone:
            network.kill(network.nodes[2], float("inf"))
        ended = network.now
        network.kill(node, ended + BACK_S)
        for _ in range(1000):
            if node.core is not None and node.core.identity.verified:
                found.append(network.now - ended)
                return
            await trio.sleep(0.01)

    with ExitStack() as stack:
        network = WholeNetwork(Plan(7, nodes=3, k=3), stack)
        simulate(7, partial(network.run, play))
    return found[0]


def test_a_process_that_said_that_it_ends_is_followed_at_once() -> None:
    assert BACK_S < verified_after(closing=True) < 1.0


def test_a_process_that_was_killed_is_followed_when_it_cannot_be_another_one_that_lives() -> None:
    assert SUSPECT_S <= verified_after(closing=False) < SUSPECT_S + 2 * PING_EVERY_S


@pytest.mark.parametrize("closing", [True, False])
def test_a_process_that_one_member_cannot_vouch_for_waits_for_those_who_may_yet_dial_it(*, closing: bool) -> None:
    assert BACK_S + MEET_S <= verified_after(closing=closing, alone=True) < BACK_S + MEET_S + 0.5


def test_a_connection_over_a_path_that_is_cut_is_closed_and_made_anew_when_it_heals() -> None:
    """A cut resets some connections; of the others it tells nobody, and both ends would wait for ever."""
    half_open = 0

    async def play(network: WholeNetwork) -> None:
        nonlocal half_open
        await trio.sleep(START_S)
        cut = Cut(0, (0,), (1, 2), 0)
        network.cut(cut)
        alone = network.nodes[0].running
        assert alone is not None
        await trio.sleep(3 * SUSPECT_S + 2 * PING_EVERY_S)
        assert alone.mesh.connected() == frozenset()
        half_open += alone.mesh.counters["down.dropped"]
        network.network.heal(cut)
        await trio.sleep(8.0)
        assert alone.mesh.connected() == {network.nodes[1].id, network.nodes[2].id}

    for seed in range(3):
        with ExitStack() as stack:
            network = WholeNetwork(Plan(seed, nodes=3, k=3), stack)
            simulate(seed, partial(network.run, play))
    assert half_open > 0


SEED = Peer("ab" * 20, "10.9.9.9", 4000)


class _Alone(WholeNetwork):
    """One node, perhaps with a seed in its config, or a note, of a node that is not in its view; keeps what is written
    beside the database."""

    seeds: tuple[Peer, ...] = ()
    noted: Mapping[NodeId, tuple[str, int]] = {}

    def __init__(self, plan: Plan, stack: ExitStack) -> None:
        super().__init__(plan, stack)
        self.markers: list[Marker] = []
        self.notes: list[Mapping[NodeId, tuple[str, int]]] = []

    def _config(self, node: WholeNode) -> NodeConfig:
        return msgspec.structs.replace(super()._config(node), peers=self.seeds)

    def _ports(self, node: WholeNode) -> Ports:
        return replace(
            super()._ports(node),
            remember=self.markers.append,
            addresses=self.noted,
            note_addresses=self.notes.append,
        )


def verified_at(seeds: tuple[Peer, ...], noted: Mapping[NodeId, tuple[str, int]] | None = None) -> tuple[float, int]:
    """When a node that is alone in its view votes, and how often it has tried to reach somebody by then."""
    found: list[tuple[float, int]] = []

    async def play(network: WholeNetwork) -> None:
        (node,) = network.nodes
        for _ in range(1000):
            await trio.sleep(0.01)
            if node.core is not None and node.core.identity.verified:
                assert node.running is not None
                found.append((network.now, node.running.mesh.counters["dial.failed"]))
                break
        assert isinstance(network, _Alone)
        assert set(network.markers) == {Marker(node.id.hex(), 1, 0, True)}
        assert network.notes and all(notes == network.noted for notes in network.notes), "its view may be an old one"

    with ExitStack() as stack:
        network = _Alone(Plan(1, nodes=1, k=3), stack)
        network.seeds, network.noted = seeds, noted or {}
        simulate(1, partial(network.run, play))
    return found[0]


def test_a_network_of_one_node_starts_at_once() -> None:
    at, dialed = verified_at(())
    assert (at < 0.1, dialed) == (True, 0)


def test_a_node_alone_in_its_view_dials_the_seeds_that_it_was_given_before_it_votes() -> None:
    at, dialed = verified_at((SEED,))
    assert ALONE_S <= at < ALONE_S + 2 * PING_EVERY_S
    assert dialed >= 1


def test_and_those_that_it_noted_before_its_database_was_put_back() -> None:
    at, dialed = verified_at((), {SEED.node_id: (SEED.host, SEED.port)})
    assert ALONE_S <= at < ALONE_S + 2 * PING_EVERY_S
    assert dialed >= 1


def test_a_removed_node_sends_what_was_asked_of_it_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    async def answer(serving: Serving, question: object) -> object:
        await trio.sleep(0.3)
        ended.append("read")
        return Refused("gone", "the test says so")

    async def aclose(running: RunningNode) -> None:
        ended.append("closed")

    async def play(network: WholeNetwork) -> None:
        await trio.sleep(START_S)
        running = network.nodes[0].running
        assert running is not None
        running._reads += 1
        assert running._nursery is not None
        running._nursery.start_soon(running._read, Read(Caller(99, 1), AskBalance("alice")))
        running.driver.on_removed(network.nodes[1].id, 2)
        await trio.sleep(5)

    monkeypatch.setattr(Serving, "answer", answer)
    monkeypatch.setattr(RunningNode, "aclose", aclose)
    with ExitStack() as stack:
        network = WholeNetwork(Plan(3, nodes=3, k=3), stack)
        with pytest.raises(BaseExceptionGroup) as raised:
            simulate(3, partial(network.run, play))
    assert raised.group_contains(Removed, match="removed from the network in epoch 2")
    assert ended == ["read", "closed"]

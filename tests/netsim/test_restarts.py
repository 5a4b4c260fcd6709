"""Whole nodes: how soon a node that is started again votes, and what becomes of a connection that nobody ends (design R12)."""

from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import msgspec
import trio

from netsim.plan import Cut, Plan
from netsim.whole import simulate
from netsim.whole_network import START_S, WholeNetwork, WholeNode
from node.config import NodeConfig, Peer
from node.doubles import SUSPECT_S
from node.identity import ALONE_S
from node.marker import Marker
from node.peers import PING_EVERY_S
from node.running import Ports

BACK_S = 0.1  # from the end of a process to the start of the next


def verified_after(*, closing: bool) -> float:
    """Seconds from the end of a process until the next one of that node votes."""
    found: list[float] = []

    async def play(network: WholeNetwork) -> None:
        await trio.sleep(START_S)
        node = network.nodes[1]
        assert node.running is not None
        if closing:
            await node.running.aclose()
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
    """One node, perhaps with a seed in its config that is not in its view; keeps what is written beside the database."""

    seeds: tuple[Peer, ...] = ()

    def __init__(self, plan: Plan, stack: ExitStack) -> None:
        super().__init__(plan, stack)
        self.markers: list[Marker] = []

    def _config(self, node: WholeNode) -> NodeConfig:
        return msgspec.structs.replace(super()._config(node), peers=self.seeds)

    def _ports(self, node: WholeNode) -> Ports:
        return replace(super()._ports(node), remember=self.markers.append)


def verified_at(seeds: tuple[Peer, ...]) -> tuple[float, int]:
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

    with ExitStack() as stack:
        network = _Alone(Plan(1, nodes=1, k=3), stack)
        network.seeds = seeds
        simulate(1, partial(network.run, play))
    return found[0]


def test_a_network_of_one_node_starts_at_once() -> None:
    at, dialed = verified_at(())
    assert (at < 0.1, dialed) == (True, 0)


def test_a_node_alone_in_its_view_dials_the_seeds_that_it_was_given_before_it_votes() -> None:
    at, dialed = verified_at((SEED,))
    assert ALONE_S <= at < ALONE_S + 2 * PING_EVERY_S
    assert dialed >= 1

"""Faults drawn from a seed, one after the other, while clients pay: killed, stopped and restarted nodes, alone,
together and in the middle of a start. Payments go on soon after a majority is back, and in the end every node has what
was answered.

HOPCHAIN_SOAK_S=600 HOPCHAIN_SOAK_SEED=7 for longer and other ones.
"""

import os
import random
import signal

import pytest
import trio

from tests.cluster.cluster import Cluster
from tests.cluster.test_faults import Load

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SECONDS = float(os.environ.get("HOPCHAIN_SOAK_S", "20"))
SEED = int(os.environ.get("HOPCHAIN_SOAK_SEED", "1"))
GOES_ON_S = 20.0  # after all nodes see each other; three seconds where nobody else uses the machine
STOPS_S = (0.1, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0)  # shorter and longer than until a node is suspected, and dropped


class Faults:
    """What is done to the nodes. Each leaves some of them dead or stopped for `heal`."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self._cluster = cluster
        self._rng = rng

    async def kill(self) -> None:
        """One to all of them at once."""
        self._cluster.kill(*self._some(5))
        await trio.sleep(3 * self._rng.random())

    async def stop(self) -> None:
        """One to all of them, as a machine sleeps that is suspended."""
        stopped = self._some(5)
        for number in stopped:
            self._cluster.nodes[number].signal(signal.SIGSTOP)
        await trio.sleep(self._rng.choice(STOPS_S))

    async def kill_and_stop(self) -> None:
        killed, stopped = self._rng.sample(range(5), 2)
        self._cluster.kill(killed)
        self._cluster.nodes[stopped].signal(signal.SIGSTOP)
        await trio.sleep(self._rng.choice(STOPS_S))

    async def kill_in_its_start(self) -> None:
        """The same ones again and again."""
        killed = self._some(2)
        for _ in range(3):
            self._cluster.kill(*killed)
            self._cluster.start(*killed)
            await trio.sleep(3 * self._rng.random())
        self._cluster.kill(*killed)

    async def stop_and_go(self) -> None:
        stopped = self._cluster.nodes[self._rng.randrange(5)]
        for _ in range(5):
            stopped.signal(signal.SIGSTOP)
            await trio.sleep(2.5 * self._rng.random())
            stopped.signal(signal.SIGCONT)
            await trio.sleep(self._rng.random())

    async def restart(self) -> None:
        """In order, one after the other."""
        for number in self._some(3):
            await self._cluster.stop(number)
            self._cluster.start(number)

    async def heal(self) -> None:
        for number in self._cluster.running():
            self._cluster.nodes[number].signal(signal.SIGCONT)
        self._cluster.start()
        await self._cluster.wait_up()

    def _some(self, most: int) -> list[int]:
        return self._rng.sample(range(5), self._rng.randint(1, most))


async def test_whatever_dies_or_sleeps_payments_go_on_and_nothing_is_lost(cluster: Cluster) -> None:
    rng = random.Random(SEED)
    faults = Faults(cluster, rng)
    kinds = (
        faults.kill,
        faults.stop,
        faults.kill_and_stop,
        faults.kill_in_its_start,
        faults.stop_and_go,
        faults.restart,
    )
    load = Load(cluster, await cluster.accounts("soak", 40), random.Random(SEED))  # faults have their own
    done: list[str] = []
    ends = trio.current_time() + SECONDS
    async with load.running(clients=10):
        while trio.current_time() < ends:
            kind = rng.choice(kinds)
            done.append(kind.__name__)
            await kind()
            await faults.heal()
            with trio.move_on_after(GOES_ON_S) as patience:
                await load.more(50)
            assert not patience.cancelled_caught, f"after {done}: no 50 payments in {GOES_ON_S:g} s, seed {SEED}"
    await load.finish()
    for number in range(5):
        cluster.audit(number)

"""All nodes are restarted one after the other while payments are made: no request is lost, none has another outcome,
and the service never pauses for long (issue: a rolling restart)."""

import os
import random
from collections.abc import Callable

import pytest
import trio

from tests.cluster.cluster import Cluster
from tests.cluster.test_faults import Load

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ROUNDS = int(os.environ.get("HOPCHAIN_ROLLING_ROUNDS", "1"))
GAP_S = float(
    os.environ.get("HOPCHAIN_ROLLING_GAP_S", "10")
)  # two on a machine with nothing else to do; CI shares two cores
CLIENTS = 6


async def longest_gap(load: Load, found: list[float]) -> None:
    """Keep the longest time without any answer in `found`."""
    answers, since = len(load.answered), trio.current_time()
    while True:
        await trio.sleep(0.02)
        now = trio.current_time()
        found[0] = max(found[0], now - since)
        if len(load.answered) > answers:
            answers, since = len(load.answered), now


async def test_a_rolling_restart_of_all_nodes_under_load(
    cluster: Cluster, record_property: Callable[[str, object], None]
) -> None:
    load = Load(cluster, await cluster.accounts("rolling", 20), random.Random(11))
    gaps = []
    async with load.running(clients=CLIENTS):
        await load.more(20)
        for _ in range(ROUNDS):
            for number in range(len(cluster.nodes)):
                gap = [0.0]
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(longest_gap, load, gap)
                    await cluster.stop(number)
                    cluster.start(number)
                    await cluster.wait_up()
                    nursery.cancel_scope.cancel()
                gaps.append(gap[0])
        await load.more(20)
    await load.finish()
    record_property("longest_gap_s", round(max(gaps), 2))
    record_property("requests", len(load.sent))
    assert max(gaps) < GAP_S, [round(gap, 2) for gap in gaps]

"""Nodes come and go as processes while payments are made: what was answered stays, all agree, and the money is
right."""

import os
import random
from pathlib import Path

import pytest

from tests.cluster.grow import Growing
from tests.cluster.test_faults import Load

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SIZES = (1, 2, 3, 5, 9, 3) if os.environ.get("HOPCHAIN_GROWTH") == "long" else (1, 2, 3, 2)


async def test_a_network_grows_and_shrinks_under_load(tmp_path: Path) -> None:
    """The oldest go first: in the end nobody is there who was at the start."""
    cluster = Growing(tmp_path / "net", SIZES[0])
    async with cluster.growing():
        load = Load(cluster, await cluster.accounts("grow", 10), random.Random(12))
        async with load.running(clients=4):
            await load.more(20)
            for size in SIZES[1:]:
                while len(cluster.nodes) < size:
                    await cluster.add()
                while len(cluster.nodes) > size:
                    await cluster.remove(0)
                await load.more(20)
        await load.finish()
        await cluster.stop()
        for number in range(len(cluster.nodes)):
            cluster.audit(number)

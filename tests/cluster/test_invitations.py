"""An invitation is for one machine: whoever uses it a second time ends, and the node that came first goes on."""

import random
from contextlib import closing
from pathlib import Path

import pytest

from chain.store import open_database
from cli.output import Exit
from cli.supervisor import LOG_NAME
from hopchain import Client, Outcome, Recorded
from tests.cluster.cluster import QUARANTINE_S, SETTLE_S, until
from tests.cluster.commands import joined_node, operating
from tests.cluster.grow import Growing
from tests.cluster.test_faults import Load

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cluster")]


async def votes_are_seen(cluster: Growing, of: bytes) -> tuple[bool, object]:
    """The other members have on disk that this one has voted: no empty disk is its own any more (design R12)."""
    found = []
    for number in range(len(cluster.nodes)):
        with closing(open_database(cluster.database(number), writer=False)) as conn:
            found.append(conn.execute("SELECT votes FROM seen WHERE node = ? AND votes > 0", (of,)).fetchone())
    return None not in found, found


async def test_the_second_use_of_an_invitation_ends_and_the_first_goes_on_paying(tmp_path: Path) -> None:
    cluster = Growing(tmp_path / "net", 2)
    async with cluster.growing():
        names = await cluster.accounts("once", 6)
        load = Load(cluster, names, random.Random(17))
        with operating(cluster.network.directory, tmp_path) as operator:
            invite = await operator.invite()
            async with load.running(clients=3):
                first = operator.join(invite, tmp_path / "first")
                await first.wait_told("active")
                node = joined_node(invite, tmp_path / "first")
                await until(
                    "members have seen its votes", lambda: votes_are_seen(cluster, node.place.node_id), SETTLE_S
                )
                second = operator.join(invite, tmp_path / "second")
                await second.wait_told("started")
                code = await second.ended(QUARANTINE_S)
                words = (tmp_path / "second" / LOG_NAME).read_text()
                assert first.runs, (tmp_path / "first" / LOG_NAME).read_text()
                await load.more(20)
            async with Client([node.client_address], cluster.network.genesis.ca, cluster.id) as client:
                paid = await client.submit(cluster.pay_request(*names[:2], 1))
                assert isinstance(paid, Recorded) and paid.outcome == Outcome.COMPLETED, paid
            await cluster.settle()  # a node that lags answers rightly, but not `repeated`
            await load.finish()
            assert first.runs
            await first.stop()
    told = second.told()[-1]
    assert (code, told["error"]) == (Exit.OUT_FOR_GOOD, "node_ended"), told
    assert f"the node ended with exit code {Exit.OUT_FOR_GOOD:d}" in str(told["message"]), told
    assert "join the network anew under a new id" in words or "runs twice at once" in words, words

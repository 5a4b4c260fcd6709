"""`hopchain replace` on real nodes, also when the command is killed between its two changes, and when the new node
dies, too."""

import random
from pathlib import Path

import pytest

from tests.cluster.cluster import until
from tests.cluster.commands import HALF_REPLACE, joined_node, operating
from tests.cluster.grow import Growing
from tests.cluster.test_faults import Load

pytestmark = pytest.mark.cluster

DEAD = 2


async def test_a_dead_member_goes_first_where_enough_are_left_so_that_the_new_one_may_die_too(tmp_path: Path) -> None:
    """The new one dies as soon as it is added: a view with both dead would have groups that cannot decide."""
    cluster = Growing(tmp_path / "net", 4, k=3)
    async with cluster.growing():
        load = Load(cluster, await cluster.accounts("replace", 10), random.Random(19))
        dead = cluster.nodes[DEAD]
        with operating(cluster.network.directory, tmp_path) as operator:
            invite = await operator.invite()
            joining = operator.join(invite, tmp_path / "new", "--observer")
            await joining.wait_told("observing")
            new = joined_node(invite, tmp_path / "new")
            async with load.running(clients=3):
                await load.more(10)
                cluster.kill(DEAD)
                words = (dead.place.name, "--with", str(invite), "--network", str(cluster.network.directory))
                replacing = operator.start("replace", *words)

                async def added() -> tuple[bool, object]:
                    views = await cluster.clients[0].all_views()
                    return new.place.node_id in {m.id for m in views[-1].members}, views

                await until("the new node is a member", added, 60.0)
                joining.kill()
                await replacing.ended(150.0)  # well or not: it cannot know
                await load.more(30)
            views = await cluster.clients[0].all_views()
            ids = {node.place.node_id for node in cluster.nodes}
            left = ids - {dead.place.node_id}
            assert [{m.id for m in view.members} for view in views] == [ids, left, left | {new.place.node_id}]
        del cluster.nodes[DEAD], cluster.clients[DEAD]
        cluster.gone += [dead]
        await load.finish()


async def test_a_replacement_that_was_killed_halfway_is_run_again_and_done_once(tmp_path: Path) -> None:
    cluster = Growing(tmp_path / "net", 3)
    async with cluster.growing():
        load = Load(cluster, await cluster.accounts("replace", 10), random.Random(18))
        dead = cluster.nodes[DEAD]
        with operating(cluster.network.directory, tmp_path) as operator:
            invite = await operator.invite()
            joining = operator.join(invite, tmp_path / "new", "--observer")
            await joining.wait_told("observing")
            new = joined_node(invite, tmp_path / "new")
            async with load.running(clients=3):
                await load.more(10)
                cluster.kill(DEAD)
                words = (dead.place.name, "--with", str(invite), "--network", str(cluster.network.directory))
                killed = operator.start("replace", *words, program=HALF_REPLACE)
                await killed.wait_told("added")
                killed.kill()
                views = await cluster.clients[0].all_views()
                ids = {node.place.node_id for node in cluster.nodes}
                assert [{m.id for m in view.members} for view in views] == [ids, ids | {new.place.node_id}]
                done = await operator.run("replace", *words)
                await load.more(10)
            views = await cluster.clients[0].all_views()
            now = {m.id for m in views[-1].members}
            assert now == ids - {dead.place.node_id} | {new.place.node_id}
            assert [view.epoch for view in views] == [1, 2, 3]
            assert (done["epoch"], done["changed"]) == (3, True)
            assert (done["added"], done["removed"]) == (new.place.id, dead.place.id)
            again = await operator.run("replace", *words)
            assert (again["epoch"], again["changed"]) == (3, False)
            await joining.stop()
        del cluster.nodes[DEAD], cluster.clients[DEAD]
        cluster.gone.append(dead)
        await cluster.adopt(new)  # it is a member, and starts as one
        await cluster.settle()  # a node that lags answers rightly, but not `repeated`
        await load.finish()

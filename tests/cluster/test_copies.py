"""Design R12: a copy of a node's directory that is started on another machine ends within ten seconds, and says why."""

import random
import shutil
from pathlib import Path

import pytest

from cli.output import Exit
from node.config import read_config
from node.layout import NodePlace
from tests.cluster.cluster import QUARANTINE_S, START_S, Cluster, NodeProcess, change_config, has_served, until
from tests.cluster.test_faults import Load
from tests.ports import take

pytestmark = pytest.mark.cluster

COPIED = 2


def copy_of(cluster: Cluster, place: Path) -> NodeProcess:
    """The directory of the node, copied while it is stopped, with ports of its own: another machine."""
    shutil.copytree(cluster.nodes[COPIED].directory, place)
    port, client_port = take(2)
    change_config(place, port=port, client_port=client_port)
    there = cluster.nodes[COPIED].place
    return NodeProcess(NodePlace(there.name, there.id, read_config(place).host, port, client_port), place)


async def test_a_copy_that_runs_beside_its_original_is_quarantined(cluster: Cluster, tmp_path: Path) -> None:
    load = Load(cluster, await cluster.accounts("copied", 10), random.Random(15))
    await cluster.settle()
    await cluster.stop(COPIED)
    copy = copy_of(cluster, tmp_path / "copy")
    cluster.start(COPIED)
    await cluster.wait_up()
    try:
        async with load.running(clients=4):
            await load.more(20)  # which the copy does not know of
            copy.start()
            await until("it has started", lambda: has_served(copy), START_S)
            ended = await copy.ended(QUARANTINE_S)
            await load.more(20)
    finally:
        copy.kill()
    assert ended.code == Exit.OUT_FOR_GOOD, ended
    # seen before the votes it lacks
    beaten = "another process of it, which was there before this one and goes on" in ended.text
    if not beaten:
        assert "another copy of it is running" in ended.text, ended.text
        assert "keep no copy, and join the network anew under a new id" in ended.text, ended.text
    await cluster.wait_up()  # the original goes on
    await load.finish()


async def test_a_directory_without_its_database_is_no_node_any_more(cluster: Cluster, tmp_path: Path) -> None:
    """It ends by what lies beside the database, before it meets anybody who could tell it so."""
    await cluster.stop(COPIED)
    emptied = copy_of(cluster, tmp_path / "emptied")
    cluster.start(COPIED)
    for file in emptied.directory.glob("node.db*"):
        file.unlink()
    try:
        emptied.start()
        ended = await emptied.ended(START_S)
    finally:
        emptied.kill()
    assert ended.code == Exit.OUT_FOR_GOOD, ended
    assert "its database is gone" in ended.text, ended.text
    assert "keep no copy, and join the network anew under a new id" in ended.text, ended.text
    assert not list(emptied.directory.glob("node.db*")), "none was made in its place"
    await cluster.wait_up()

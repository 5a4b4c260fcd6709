"""What an operator reads of real nodes while one of them is stopped and others die: what happened, with numbers,
once."""

import re
import signal

import pytest
import trio

from tests.cluster.cluster import SETTLE_S, Cluster, until

pytestmark = pytest.mark.cluster

ASLEEP_S = 5.0  # longer than others wait before they suspect it, shorter than until they drop its connection
LINES = 60  # of a node, in all of this; some 30 are written


def lines(cluster: Cluster, number: int) -> list[str]:
    return cluster.nodes[number].this_log().splitlines()


async def says(cluster: Cluster, number: int, words: str) -> None:
    async def look() -> tuple[bool, object]:
        log = cluster.nodes[number].this_log()
        return re.search(words, log) is not None, log

    await until(f"node {number} says: {words}", look, SETTLE_S)


async def test_the_log_tells_of_silence_of_sleep_and_of_a_lost_majority(cluster: Cluster) -> None:
    names = [node.place.node_id.hex()[:8] for node in cluster.nodes]
    for number in range(5):
        await says(cluster, number, "in all 1 key ranges a majority of the group is reached from here")
        await says(cluster, number, "this node votes: the members have vouched for its disk")
    cluster.nodes[4].signal(signal.SIGSTOP)
    await trio.sleep(ASLEEP_S)
    await says(cluster, 0, f"WARNING .*no answer from node {names[4]}: requests go round it")
    cluster.nodes[4].signal(signal.SIGCONT)
    await says(cluster, 4, r"WARNING .*this process did not run for [345]\.\d s")
    await says(cluster, 0, f"node {names[4]}: answers again")
    cluster.kill(1, 2, 3)
    await says(cluster, 0, "WARNING .*in 1 of 1 key ranges a majority of the group is not reached from here")
    cluster.start(1, 2, 3)
    await says(cluster, 1, "this node votes: the members have vouched for its disk")
    await cluster.wait_up()
    for number in (0, 4):
        assert len(lines(cluster, number)) < LINES, lines(cluster, number)
        assert not any("TRACEBACK" in line.upper() for line in lines(cluster, number))

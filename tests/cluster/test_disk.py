"""A node whose disk is full, or fails, ends and says so; nothing that was answered is lost (design section 2)."""

import random
import resource
from collections.abc import Callable
from contextlib import closing

import pytest

from chain.disk import open_database
from cli.output import Exit
from tests.cluster.cluster import ODD_NODE, Cluster
from tests.cluster.test_faults import Load

pytestmark = pytest.mark.cluster

FULL = 4  # the node whose disk has no room left
ROOM_BYTES = 512 * 1024


def pages(cluster: Cluster) -> int:
    with closing(open_database(cluster.database(FULL), writer=False)) as conn:
        count: int = conn.execute("PRAGMA page_count").fetchone()[0]
    return count


def no_larger_files() -> None:
    """In the node's process: no file grows beyond this. SQLite is told EFBIG, an I/O error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM_BYTES, ROOM_BYTES))


def start_full(cluster: Cluster) -> None:
    cluster.nodes[FULL].start([*ODD_NODE, "--max-pages", str(pages(cluster) + 20)])


def start_limited(cluster: Cluster) -> None:
    cluster.nodes[FULL].start(preexec=no_larger_files)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        pytest.param(start_full, "[SQLITE_FULL]; the disk is full: free some space, then start the node", id="full"),
        pytest.param(
            start_limited,
            "[SQLITE_IOERR_WRITE]; the disk reports an error: end what else has the database open",
            id="failing",
        ),
    ],
)
async def test_a_node_without_room_ends_and_comes_back_with_all_that_was_answered(
    cluster: Cluster, start: Callable[[Cluster], None], said: str, request: pytest.FixtureRequest
) -> None:
    names = await cluster.accounts(f"disk-{request.node.callspec.id}", 10)
    await cluster.settle()
    await cluster.stop(FULL)
    start(cluster)
    await cluster.wait_up()
    load = Load(cluster, names, random.Random(8))
    async with load.running(clients=10):
        ended = await cluster.nodes[FULL].ended(60.0)
        assert ended.code == Exit.REJECTED, ended
        assert said in ended.text, ended.text
        assert ended.text.splitlines()[-1].startswith("error: writing "), ended.text
        await load.more(50)  # the others go on
    cluster.audit(FULL)
    cluster.start(FULL)
    await cluster.wait_up()
    await load.finish()

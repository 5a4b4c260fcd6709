"""`hopchain doctor` about a real node that was quarantined: it cannot be asked, so what is said must keep it from being
started."""

import shutil
from pathlib import Path

import pytest

from cli.output import Exit
from tests.cluster.cluster import START_S, Cluster
from tests.cluster.commands import operating

pytestmark = pytest.mark.cluster

QUARANTINED = 3


async def test_doctor_says_not_to_start_who_was_quarantined(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.nodes[QUARANTINED]
    await cluster.settle()
    await cluster.stop(QUARANTINED)
    path = cluster.database(QUARANTINED)
    shutil.move(path, tmp_path / "true.db")
    node.start()
    ended = await node.ended(START_S)  # before it meets anybody
    assert ended.code == Exit.OUT_FOR_GOOD, ended
    with operating(cluster.network.directory, tmp_path) as operator:
        asked = operator.start("doctor", "--network", str(cluster.network.directory))
        assert await asked.ended() == Exit.REJECTED, asked.output.read_text()
        (document,) = asked.told()
    (finding,) = [f for f in document["findings"] if f["node"] == node.place.name]
    assert finding["code"] == "unreachable", finding
    warning = f"exit code {ended.code} it was quarantined or removed: do not start it"
    assert warning in finding["do"], finding
    assert f"hopchain replace {node.place.id[:8]} --with INVITATION" in finding["do"], finding
    shutil.move(tmp_path / "true.db", path)
    cluster.start(QUARANTINED)
    await cluster.wait_up()

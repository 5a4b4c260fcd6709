"""`hopchain join` as a process that is killed (-9) at moments of its join, and started again with the same command."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from cli.supervisor import LOG_NAME
from node.config import read_config
from node.invite import load_invite
from node.layout import NodePlace
from tests.cluster.cluster import STOP_S, NodeProcess, end, spawn, until
from tests.cluster.grow import Growing
from tests.cluster.test_faults import Load

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

STAGES = ("started", "progress", "verified", "member", "active")  # what `hopchain join --json` tells, in order
JOIN_S = 60.0
LATEST_S = 2.0  # of the moments that are drawn


class Joining:
    """The command, run again and again with one invitation."""

    def __init__(self, cluster: Growing, home: Path) -> None:
        self.invite = cluster.invite()
        self.data = cluster.network.directory / "joiner"
        self.output = home / "join.out"
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None
        self._begin = 0

    def start(self) -> None:
        self.output.touch()
        self._begin = self.output.stat().st_size
        command = [sys.executable, "-m", "cli.main", "join", str(self.invite), "--data", str(self.data), "--json"]
        with self.output.open("ab") as output:
            self._process = spawn(["env", f"HOPCHAIN_HOME={self._home}", *command], output)

    def told(self) -> list[dict[str, object]]:
        """What this run has told so far."""
        lines = self.output.read_bytes()[self._begin :].splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n") and line.startswith(b"{")]

    async def wait_told(self, stage: str) -> None:
        """Return when this run has told of this stage or of a later one."""
        later = STAGES[STAGES.index(stage) :]

        async def look() -> tuple[bool, object]:
            assert self._process is not None
            assert self._process.poll() is None, self.output.read_text()
            told = self.told()
            return any(line["event"] in later for line in told), told

        await until(f"the join tells of {stage!r}", look, JOIN_S)

    def kill(self) -> None:
        """kill -9 the command and its node."""
        assert self._process is not None
        for line in self.told():
            if line["event"] == "started":
                os.kill(int(str(line["pid"])), signal.SIGKILL)
        self._process.kill()
        end(self._process)

    async def stop(self) -> None:
        """SIGTERM; it ends its node and itself."""
        process = self._process
        assert process is not None
        process.send_signal(signal.SIGTERM)

        async def look() -> tuple[bool, object]:
            return process.poll() is not None, self.output.read_text()

        await until("the join ends", look, STOP_S)
        assert end(process) == 0, self.output.read_text()
        assert self.told()[-1]["event"] == "ended"

    @property
    def node(self) -> NodeProcess:
        """The node that it made."""
        config, key = read_config(self.data), load_invite(self.invite).key
        return NodeProcess(NodePlace("joiner", key.id.hex(), config.host, config.port, config.client_port), self.data)


async def test_a_joiner_that_is_killed_leaves_the_network_working_and_starts_again(tmp_path: Path) -> None:
    rng = random.Random(13)
    cluster = Growing(tmp_path / "net", 3)
    async with cluster.growing():
        load = Load(cluster, await cluster.accounts("join", 20), rng)
        joining = Joining(cluster, tmp_path)
        async with load.running(clients=3):
            await load.more(100)
            for stage in (*STAGES[:3], None, None, *STAGES[3:]):
                joining.start()
                try:
                    if stage is None:
                        await trio.sleep(rng.random() * LATEST_S)
                    else:
                        await joining.wait_told(stage)
                finally:
                    joining.kill()
                await load.more(10)
            joining.start()
            try:
                await joining.wait_told("active")
                await joining.stop()
            except BaseException:
                joining.kill()
                raise
            await cluster.adopt(joining.node)
            await load.more(10)
        await load.finish()
        assert "Traceback" not in (joining.data / LOG_NAME).read_text()
        await cluster.stop(len(cluster.nodes) - 1)
        cluster.audit(len(cluster.nodes) - 1)

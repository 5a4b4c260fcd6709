"""`hopchain` as processes of their own, with --json: what an operator types while a cluster runs."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from node.config import read_config
from node.invite import load_invite
from node.layout import NodePlace
from tests.cluster.cluster import STOP_S, NodeProcess, end, spawn, until

HOPCHAIN = (sys.executable, "-m", "cli.main")
HALF_REPLACE = (sys.executable, str(Path(__file__).with_name("half_replace.py")))
COMMAND_S = 60.0
_numbers = count(1)
_decoder = json.JSONDecoder()


class Command:
    """One run of `hopchain WORDS --json`; `home`: where it remembers networks, and where its output goes."""

    def __init__(self, home: Path, *words: str, program: Sequence[str] = HOPCHAIN) -> None:
        self.output = home / f"command-{next(_numbers)}.out"
        with self.output.open("wb") as output:
            self.process: subprocess.Popen[bytes] = spawn(
                ["env", f"HOPCHAIN_HOME={home}", *program, *words, "--json"], output
            )

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    def told(self) -> list[dict[str, object]]:
        """The whole documents that it has printed so far."""
        text, at, found = self.output.read_text(), 0, []
        with suppress(json.JSONDecodeError):  # the end, or what is not printed yet
            while True:
                document, at = _decoder.raw_decode(text, at)
                found.append(document)
                at = len(text) - len(text[at:].lstrip())
        return found

    async def wait_told(self, event: str) -> dict[str, object]:
        """Return what it tells of this event; it must not end before."""

        async def look() -> tuple[bool, object]:
            found.extend(line for line in self.told() if line.get("event") == event)
            assert found or self.runs, self.output.read_text()
            return bool(found), self.told()

        found: list[dict[str, object]] = []
        await until(f"it tells of {event!r}", look, COMMAND_S)
        return found[0]

    async def ended(self, timeout_s: float = COMMAND_S) -> int:
        """Wait until it has ended; its exit code."""

        async def look() -> tuple[bool, object]:
            return not self.runs, self.output.read_text()

        await until("the command ends", look, timeout_s)
        return end(self.process)

    async def done(self) -> dict[str, object]:
        """Wait until it has ended, which must be well; the last document that it printed."""
        code = await self.ended()
        assert code == 0, (code, self.output.read_text())
        return self.told()[-1]

    async def stop(self) -> None:
        """SIGTERM; it must end well."""
        self.process.send_signal(signal.SIGTERM)
        assert await self.ended(STOP_S) == 0, self.output.read_text()

    def kill(self) -> None:
        """kill -9 it, and the node that it has started. Also when it has ended."""
        if self.runs:
            for line in self.told():
                if line.get("event") == "started":
                    with suppress(ProcessLookupError):
                        os.kill(int(str(line["pid"])), signal.SIGKILL)
            self.process.kill()
            end(self.process)


class Operator:
    """Runs commands on one network, and leaves none of them behind."""

    def __init__(self, network: Path, home: Path) -> None:
        self.network = network
        self.home = home
        self._commands: list[Command] = []

    def start(self, *words: str, program: Sequence[str] = HOPCHAIN) -> Command:
        command = Command(self.home, *words, program=program)
        self._commands.append(command)
        return command

    async def run(self, *words: str) -> dict[str, object]:
        """Run a command that must end well; what it printed."""
        return await self.start(*words).done()

    async def invite(self, *words: str) -> Path:
        """A new invitation's file."""
        number = next(_numbers)
        path = self.home / f"{number}.invite"
        await self.run(
            "invite", "--network", str(self.network), "--name", f"guest-{number}", "--out", str(path), *words
        )
        return path

    def join(self, invite: Path, data: Path, *words: str) -> Command:
        return self.start("join", str(invite), "--data", str(data), *words)

    def close(self) -> None:
        for command in self._commands:
            command.kill()


@contextmanager
def operating(network: Path, home: Path) -> Iterator[Operator]:
    """Commands on the network in this directory; all that still run are killed at the end."""
    operator = Operator(network, home)
    try:
        yield operator
    finally:
        operator.close()


def joined_node(invite: Path, data: Path) -> NodeProcess:
    """The node that a join has made, which the join runs: where it is."""
    config, key = read_config(data), load_invite(invite).key
    return NodeProcess(NodePlace(data.name, key.id.hex(), config.host, config.port, config.client_port), data)

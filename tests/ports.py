"""Ports for what tests start. No two workers of one run share any, and a port is not given again before all others
were: not to a joiner, either, while the member that it belongs to is stopped.

The ports that commands choose from are dealt to the workers of pytest-xdist, to each a part as large as the others'.
The first half of a part is for commands: HOPCHAIN_PORTS, which `tests/conftest.py` sets for all processes. The second
half is for tests that take ports themselves, from a place that differs from process to process: two runs on one machine
seldom meet.
"""

import os
import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Final

from cli.ports import PORTS, PORTS_VARIABLE, hold_port
from node.layout import LOOPBACK


def part_of(worker: int, workers: int, ports: range = PORTS) -> tuple[range, range]:
    """The ports of one worker: those that commands choose from, and those that tests take."""
    half = len(ports) // workers // 2
    first = worker % workers * 2 * half  # one that replaces a worker that crashed has a number beyond them
    return ports[first : first + half], ports[first + half : first + 2 * half]


def worker_of(environment: Mapping[str, str]) -> tuple[int, int]:
    """Which worker of pytest-xdist this is, and of how many."""
    name = environment.get("PYTEST_XDIST_WORKER", "gw0")
    return int(name.removeprefix("gw")), int(environment.get("PYTEST_XDIST_WORKER_COUNT", "1"))


class Walk:
    """Gives ports in a cycle."""

    def __init__(self, ports: Sequence[int], seed: int) -> None:
        self.ports = ports
        self._next = random.Random(seed).randrange(len(ports))

    def take(self, count: int) -> list[int]:
        """`count` different ports of 127.0.0.1 that nothing uses now, TCP and UDP: the next ones."""
        found: list[int] = []
        with ExitStack() as held:
            for _ in self.ports:
                port = self.ports[self._next]
                self._next = (self._next + 1) % len(self.ports)
                if hold_port(port, LOOPBACK, held):
                    found.append(port)
                if len(found) == count:
                    return found
        raise AssertionError(f"only {len(found)} of {len(self.ports)} ports are free, not {count}")


FOR_COMMANDS, FOR_TESTS = part_of(*worker_of(os.environ))
COMMANDS: Final = {PORTS_VARIABLE: f"{FOR_COMMANDS[0]}-{FOR_COMMANDS[-1]}"}  # in the environment
take: Final = Walk(FOR_TESTS, os.getpid()).take

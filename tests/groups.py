"""What the workers of pytest-xdist share out under `--dist loadgroup`: single tests, and as one group the tests that
start real nodes. A group runs on one worker, one test after another: its tests share a network, and two of them at once
would take each other's cores. It is the largest, which pytest-xdist gives out first, so that nobody waits for its end.

The path says which tests these are. The marks of pytest-xdist 3.8 do not: it writes a group to a field that pytest 9.2
no longer reads, and every test is then a group of its own."""

from typing import Final

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

NODES: Final = ("tests/cluster/", "tests/namespaces/")  # each starts real nodes


class NodesTogether(LoadScopeScheduling):
    """One group of all tests below `NODES`; every other test is alone."""

    def _split_scope(self, nodeid: str) -> str:
        return "nodes" if nodeid.startswith(NODES) else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> NodesTogether | None:
    return NodesTogether(config, log) if config.getvalue("dist") == "loadgroup" else None

"""What the workers of pytest-xdist share out under `--dist loadgroup`: single tests, and as one group the tests that
start real nodes. A group runs on one worker, one test after another: its tests share a network, and two of them at once
would take each other's cores. It is the largest, which pytest-xdist gives out first, so that nobody waits for its end.
A few modules are groups, too, because all their tests look at what takes seconds to make.

The path says which tests are together. The marks of pytest-xdist 3.8 do not: it writes a group to a field that pytest
9.2 no longer reads, and every test is then a group of its own."""

from typing import Final

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

NODES: Final = ("tests/cluster/", "tests/namespaces/")  # each starts real nodes
# Each runs a simulation that its tests look at: once, and not for each worker
MODULES: Final = tuple(f"tests/netsim/test_{name}.py" for name in ("hops", "plot", "report"))


class NodesTogether(LoadScopeScheduling):
    """One group of all tests below `NODES`, one of each of `MODULES`; every other test is alone."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return "nodes" if nodeid.startswith(NODES) else module if module in MODULES else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> NodesTogether | None:
    return NodesTogether(config, log) if config.getvalue("dist") == "loadgroup" else None

"""One network of five node processes serves all cluster tests of a worker, each of which finds it healthy. After a test
that fails the next one gets a new network, so that one fault is one failure. It ends with the last of these tests, not
with the worker: five idle nodes take a tenth of a core."""

from collections.abc import AsyncIterator, Generator, Iterator

import pytest

from tests.cluster.cluster import Cluster


class Clusters:
    """The network that is in use, made when a test first wants one."""

    def __init__(self, directories: pytest.TempPathFactory) -> None:
        self._directories = directories
        self.current: Cluster | None = None

    def take(self) -> Cluster:
        if self.current is None:
            self.current = Cluster(self._directories.mktemp("cluster") / "net", nodes=5)
            self.current.start()
        return self.current

    def discard(self) -> None:
        """End the processes of the network in use."""
        if self.current is not None:
            self.current.close()
            self.current = None


@pytest.fixture(scope="package")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clusters]:
    made = Clusters(tmp_path_factory)
    try:
        yield made
    finally:
        made.discard()


@pytest.fixture
async def cluster(clusters: Clusters) -> AsyncIterator[Cluster]:
    async with clusters.take().opened() as cluster:
        yield cluster


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails shows what the nodes printed."""
    report = yield
    clusters = getattr(item, "funcargs", {}).get("clusters")
    if report.failed and isinstance(clusters, Clusters) and clusters.current is not None:
        report.sections += [(f"{node.place.name} log", node.log_tail()) for node in clusters.current.nodes]
        clusters.discard()
    return report

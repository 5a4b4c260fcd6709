"""What dies, and what must not be lost by it (issue 2, point 5). A request counts as answered from the moment its
client holds the answer; from then on every node must have the same outcome for ever."""

import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from chain.request import SignedRequest
from cli.output import Exit
from hopchain import NotStarted, Outcome, Recorded, Unknown, Unreachable
from node.marker import MARKER_FILE
from tests.cluster.cluster import QUARANTINE_S, SETTLE_S, START_S, Cluster, has_served, until

pytestmark = pytest.mark.cluster


class Load:
    """Clients that pay without end between accounts, through any node that answers, and remember what they were
    told."""

    def __init__(self, cluster: Cluster, names: list[str], rng: random.Random) -> None:
        self._cluster = cluster
        self._names = names
        self._rng = rng
        self.sent: dict[bytes, SignedRequest] = {}
        self.answered: dict[bytes, Recorded] = {}

    async def pay_on(self) -> None:
        """Pay one after the other; a request without an outcome is left for `finish`."""
        while True:
            request = self._cluster.pay_request(*self._rng.sample(self._names, 2), 1)
            self.sent[request.request_id] = request
            try:
                answer = await self._cluster.client.submit(request, timeout_s=5.0)
            except Unreachable:
                await trio.sleep(0.05)  # nobody is there to be asked
                continue
            if isinstance(answer, Recorded):
                self.answered[request.request_id] = answer
            else:
                assert isinstance(answer, NotStarted | Unknown), answer

    @asynccontextmanager
    async def running(self, clients: int) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(self.pay_on)
            yield
            nursery.cancel_scope.cancel()

    async def more(self, answers: int) -> None:
        """Wait until that many more requests are answered."""
        goal = len(self.answered) + answers

        async def look() -> tuple[bool, object]:
            return len(self.answered) >= goal, (len(self.answered), goal)

        await until(f"{answers} more answers", look, SETTLE_S)

    async def finish(self) -> None:
        """Send everything again: what was answered has that same outcome, the rest gets its one outcome now. Every node
        has what was answered by then, so each knows that it is a repetition."""
        await self._cluster.settle()
        again = await self._cluster.each(self.sent.values(), self._cluster.settled)
        await self._cluster.settle()
        for answer in again:
            before = self.answered.get(answer.request_id)
            assert before is None or (before.outcome, before.link_hash) == (answer.outcome, answer.link_hash)
            assert before is None or answer.repeated
            assert answer.outcome == Outcome.COMPLETED
        for number in range(len(self._cluster.nodes)):
            outcomes = self._cluster.outcomes(number)
            assert all(outcomes.get(request_id) == Outcome.COMPLETED for request_id in self.sent)


async def test_any_two_of_five_are_killed_and_transfers_go_on(cluster: Cluster) -> None:
    rng = random.Random(5)
    load = Load(cluster, await cluster.accounts("two", 20), rng)
    async with load.running(clients=10):
        await load.more(20)
        for _ in range(4):
            victims = rng.sample(range(5), 2)
            cluster.kill(*victims)
            await load.more(100)
            cluster.start(*victims)
            await cluster.wait_up()
            await load.more(rng.randint(1, 40))
    await load.finish()


async def test_a_node_that_was_away_catches_up(cluster: Cluster) -> None:
    names = await cluster.accounts("away", 10)
    await cluster.settle()
    await cluster.stop(3)
    before = cluster.rows(3)
    pairs = [random.Random(6 + number).sample(names, 2) for number in range(300)]
    requests = [cluster.pay_request(payer, payee, 1) for payer, payee in pairs]
    answers = await cluster.completed(requests)
    assert cluster.rows(3) == before
    cluster.start(3)
    await cluster.wait_up()
    await cluster.settle()
    assert cluster.outcomes(3).items() >= {a.request_id: Outcome.COMPLETED for a in answers}.items()
    await cluster.stop(3)
    cluster.audit(3)
    cluster.start(3)


async def votes_are_seen(cluster: Cluster, number: int) -> tuple[bool, object]:
    """All nodes have on disk how often this one has made votes durable."""
    counts = [cluster.votes_seen(other, number) for other in range(len(cluster.nodes))]
    return len(set(counts)) == 1, counts


async def test_a_node_whose_disk_went_back_in_time_is_quarantined(cluster: Cluster, tmp_path: Path) -> None:
    """Design R12: with yesterday's copy of its database, or with none, a node may have forgotten votes that others
    counted. It ends and says so; with its own disk it is one of five again."""
    payer, payee = await cluster.accounts("copy", 2)
    await cluster.settle()
    path = cluster.database(2)
    old, true = tmp_path / "old.db", tmp_path / "true.db"
    await cluster.stop(2)
    shutil.copy(path, old)
    cluster.start(2)
    await cluster.wait_up()
    await cluster.completed([cluster.pay_request(payer, payee, 1) for _ in range(20)], concurrency=1)
    await cluster.settle()
    await until("the others have seen node 2's votes", lambda: votes_are_seen(cluster, 2), SETTLE_S)
    await cluster.stop(2)
    shutil.move(path, true)
    for disk in (old, None):
        if disk is not None:
            shutil.copy(disk, path)
        path.with_name(MARKER_FILE).unlink(missing_ok=True)  # it is of the whole directory: others must tell it
        cluster.start(2)
        await until("it has started", lambda: has_served(cluster.nodes[2]), START_S)
        ended = await cluster.nodes[2].ended(QUARANTINE_S)
        assert ended.code == Exit.OUT_FOR_GOOD, ended
        assert "keep no copy, and join the network anew under a new id" in ended.text, ended.text
        path.unlink()
    shutil.move(true, path)
    cluster.start(2)
    await cluster.wait_up()
    await cluster.completed([cluster.pay_request(payer, payee, 1)])
    await cluster.settle()


async def test_all_five_are_killed_at_once_and_nothing_that_was_answered_is_lost(cluster: Cluster) -> None:
    load = Load(cluster, await cluster.accounts("all", 20), random.Random(7))
    for _ in range(2):
        async with load.running(clients=20):
            await load.more(120)
            cluster.kill()
        for number in range(5):
            cluster.audit(number)  # also as it lies there after the crash
        cluster.start()
        await cluster.wait_up()
    await load.finish()

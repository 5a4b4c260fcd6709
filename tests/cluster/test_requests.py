"""One request, one outcome, whatever the node that it reaches knows (design sections 2, 3, R13)."""

import signal

import pytest
import trio

from hopchain import Answer, Balance, Client, Outcome, Recorded, Stale, Timing, wire
from hopchain.calls import Calls
from tests.cluster.cluster import ODD_NODE, SETTLE_S, START_S, Cluster, until

pytestmark = pytest.mark.cluster


async def balance_at(client: Client, account: str, *, min_height: int = 0) -> Balance:
    answer = await client.balance(account, min_height=min_height)
    assert isinstance(answer, Balance), answer
    return answer


async def settled_balance(cluster: Cluster, account: str) -> Balance:
    await cluster.settle()
    return await balance_at(cluster.client, account)


async def test_a_request_that_expects_an_old_tip_is_stale_at_every_node(cluster: Cluster) -> None:
    payer, payee = await cluster.accounts("stale", 2)
    old = (await settled_balance(cluster, payer)).tip
    await cluster.completed([cluster.pay_request(payer, payee, 1)])
    before = await settled_balance(cluster, payer)
    rows = cluster.all_rows()
    for client in cluster.clients:
        request = cluster.pay_request(payer, payee, 5, tip=old)
        assert await client.submit(request) == Stale(request.request_id, before.tip, before.height)
    await cluster.settle()
    assert cluster.all_rows() == rows
    pinned = cluster.pay_request(payer, payee, 5, tip=before.tip)
    answer = await cluster.client.submit(pinned)
    assert isinstance(answer, Recorded)
    assert answer.outcome == Outcome.COMPLETED


async def test_a_gateway_that_lags_routes_again_or_says_stale(cluster: Cluster) -> None:
    """Node 0 is away while a chain grows. It comes back when the four others are halted, so that it cannot catch up:
    what it is asked then is routed by its old tail. Then the others go on."""
    payer, payee = await cluster.accounts("lag", 2)
    old = await settled_balance(cluster, payer)
    cluster.kill(0)
    rest = [1, 2, 3, 4]
    answers = [
        await cluster.clients[1].submit(cluster.pay_request(payer, payee, 1), timeout_s=START_S) for _ in range(8)
    ]
    assert all(isinstance(a, Recorded) and a.outcome == Outcome.COMPLETED for a in answers), answers
    newest = await balance_at(cluster.clients[1], payer, min_height=old.height + 8)
    for number in rest:
        cluster.nodes[number].signal(signal.SIGSTOP)
    cluster.start(0)
    patient = Timing(dial_s=START_S, dead_after_s=START_S)
    address = cluster.nodes[0].client_address
    async with Client([address], cluster.network.genesis.ca, cluster.id, timing=patient) as client:
        await cluster.wait_serves(0)
        assert (await balance_at(client, payer, min_height=0)).tip == old.tip, "node 0 lags"
        got: dict[str, Answer] = {}

        async def submit(name: str, tip: bytes | None) -> None:
            request = cluster.pay_request(payer, payee, 2, **({} if tip is None else {"tip": tip}))
            got[name] = await client.submit(request, timeout_s=START_S)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit, "unpinned", None)
            nursery.start_soon(submit, "pinned", old.tip)

            async def both_wait() -> tuple[bool, object]:
                status = await client.status()
                return status.client_requests == 2, status.client_requests

            await until("node 0 has both requests", both_wait, SETTLE_S)
            for number in rest:
                cluster.nodes[number].signal(signal.SIGCONT)
    unpinned, pinned = got["unpinned"], got["pinned"]
    assert isinstance(unpinned, Recorded), unpinned
    assert unpinned.outcome == Outcome.COMPLETED, unpinned
    assert unpinned.height > newest.height
    assert isinstance(pinned, Stale), pinned
    await cluster.wait_up()
    await cluster.settle()


async def test_the_same_request_through_all_nodes_at_once_has_one_outcome(cluster: Cluster) -> None:
    payer, payee = await cluster.accounts("same", 2, funds=100)
    request = cluster.pay_request(payer, payee, 70)
    answers: list[Answer] = []

    async def submit(client: Client) -> None:
        answers.append(await client.submit(request, timeout_s=START_S))

    async with trio.open_nursery() as nursery:
        for client in cluster.clients * 4:
            nursery.start_soon(submit, client)
    assert {(type(a), a.outcome, a.link_hash, a.height) for a in answers if isinstance(a, Recorded)} == {
        (Recorded, Outcome.COMPLETED, answers[0].link_hash, answers[0].height)
    }
    assert len(answers) == 20 and all(isinstance(a, Recorded) for a in answers), answers
    balance = await settled_balance(cluster, payer)
    assert balance.settled + balance.incoming == 30
    rows = cluster.all_rows()
    again = [await client.submit(request) for client in cluster.clients]
    assert all(isinstance(a, Recorded) and a.repeated and a.link_hash == answers[0].link_hash for a in again), again
    await cluster.settle()
    assert cluster.all_rows() == rows


async def test_a_client_of_all_nodes_hands_a_request_to_the_node_that_makes_its_link(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    payer, payee = await cluster.accounts("near", 2)
    asked: dict[bytes, tuple[str, int]] = {}  # by request: the node that it was handed to last
    call = Calls.call

    async def noted(self: Calls, body: wire.CallBody, deadline: float) -> wire.ReplyBody | None:
        if isinstance(body, wire.Submit):
            asked[body.raw] = (self.address.host, self.address.port)
        return await call(self, body, deadline)

    async with cluster.new_client(range(5), spread=True) as client:
        for node in cluster.nodes:
            await client.status(at=node.client_address)
        await balance_at(client, payer)
        monkeypatch.setattr(Calls, "call", noted)
        requests = [cluster.pay_request(payer, payee, 1) for _ in range(20)]
        answers = [(request, await client.submit(request, timeout_s=START_S)) for request in requests]
    made = {node.place.node_id: node.client_address for node in cluster.nodes}
    hits = [a for r, a in answers if isinstance(a, Recorded) and made.get(a.decided_by) == asked[r.raw]]
    assert len(hits) >= 15, "one in five by chance; a slow node's link is made by another one"


async def test_of_a_double_spend_through_two_nodes_at_once_one_completes(cluster: Cluster) -> None:
    """Ten times the whole balance goes to two recipients at once, through two nodes."""
    payer, first, second = await cluster.accounts("double", 3, funds=0)

    async def submit(number: int, payee: str, answers: list[Answer]) -> None:
        answers.append(await cluster.clients[number].submit(cluster.pay_request(payer, payee, 10), timeout_s=START_S))

    for attempt in range(10):
        await cluster.completed([cluster.pay_request("mint", payer, 10)])
        answers: list[Answer] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit, attempt % 5, first, answers)
            nursery.start_soon(submit, (attempt + 1 + attempt // 5) % 5, second, answers)
        outcomes = sorted(a.outcome for a in answers if isinstance(a, Recorded))
        assert outcomes == [Outcome.COMPLETED, Outcome.INSUFFICIENT_FUNDS], answers
    await cluster.settle()
    balances = [await balance_at(cluster.client, name) for name in (payer, first, second)]
    totals = [b.settled + b.incoming for b in balances]
    assert totals[0] == 0 and totals[1] + totals[2] == 100


async def test_a_node_whose_clock_is_a_day_ahead_agrees_with_the_others(cluster: Cluster) -> None:
    names = await cluster.accounts("clock", 6)
    await cluster.stop(2)
    cluster.nodes[2].start([*ODD_NODE, "--clock-s", "86400"])
    await cluster.wait_up()
    deciders: set[bytes] = set()

    async def pay_eight_times(payer: str, payee: str) -> None:
        for _ in range(8):
            deciders.update(a.decided_by for a in await cluster.completed([cluster.pay_request(payer, payee, 3)]))

    async with trio.open_nursery() as nursery:
        for payer, payee in zip(names, [*names[1:], names[0]], strict=True):
            nursery.start_soon(pay_eight_times, payer, payee)
    assert deciders - {b""} > {cluster.nodes[2].place.node_id}, (
        "it decides some of the 48 links, the others decide some"
    )
    await cluster.settle()
    await cluster.stop(2)
    cluster.audit(2)
    cluster.start(2)
    await cluster.wait_up()
    await cluster.completed([cluster.pay_request(payer, names[0], 1) for payer in names[1:]])
    await cluster.settle()

"""Issue 2, point 5: five processes, many clients, one state."""

import random
from itertools import count

import pytest
import trio

from hopchain import Client, Outcome, Recorded
from tests.cluster.cluster import START_S, Cluster

pytestmark = pytest.mark.cluster


async def test_a_thousand_transfers_of_twenty_clients_end_in_one_state(cluster: Cluster) -> None:
    names = await cluster.accounts("load", 40, funds=100_000)
    rng = random.Random(1)
    requests = [cluster.pay_request(*rng.sample(names, 2), rng.randint(1, 100)) for _ in range(1000)]
    queue = iter(requests)
    answers: list[Recorded] = []

    async def pay(client: Client) -> None:
        for request in queue:
            answer = await client.submit(request, timeout_s=START_S)
            assert isinstance(answer, Recorded), answer
            assert answer.request_id == request.request_id
            answers.append(answer)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(pay, cluster.clients[number % 5])
    assert len(answers) == 1000
    assert all(a.outcome == Outcome.COMPLETED and not a.repeated for a in answers), answers
    assert len({a.decided_by for a in answers} - {b""}) == 5, "every node decides a part"
    await cluster.settle()
    balances = [await cluster.clients[n % 5].balance(name, linearizable=True) for n, name in enumerate(names)]
    assert sum(b.settled + b.incoming for b in balances) == 40 * 100_000
    await cluster.stop()
    for number in range(5):
        cluster.audit(number)
        assert cluster.outcomes(number).items() >= {r.request_id: Outcome.COMPLETED for r in requests}.items()


async def test_money_just_received_at_one_node_is_spent_at_once_through_another(cluster: Cluster) -> None:
    """Ten coins go back and forth between pairs that own nothing else, each hop through another node."""
    pairs = [(await cluster.accounts(f"hop{n}", 2, funds=0)) for n in range(10)]
    await cluster.completed([cluster.pay_request("mint", first, 1) for first, _ in pairs])
    hops = count(1)

    async def bounce(pair: list[str], at: int) -> None:
        sender, recipient = pair
        while next(hops) <= 500:
            at = (at + 1) % 5
            answer = await cluster.clients[at].submit(cluster.pay_request(sender, recipient, 1), timeout_s=START_S)
            assert isinstance(answer, Recorded), answer
            assert answer.outcome == Outcome.COMPLETED, answer
            sender, recipient = recipient, sender

    async with trio.open_nursery() as nursery:
        for number, pair in enumerate(pairs):
            nursery.start_soon(bounce, pair, number)
    await cluster.settle()

"""`hopchain join --observer`: a node that gets all links and answers reads like a member, and does nothing else."""

from pathlib import Path

import pytest

import hopchain.submitting
from hopchain import Balance, Client, NotStarted, Unreachable
from hopchain.wire import Chain
from tests.cluster.cluster import SETTLE_S, Cluster, rows_of, until
from tests.cluster.commands import joined_node, operating

pytestmark = pytest.mark.cluster


async def what_is_read(client: Client, names: list[str]) -> tuple[bool, object]:
    """(no answer is stale, what it says of the ledger and of these accounts, but for when it was read)."""
    digest = await client.digest()
    balances = [await client.balance(name) for name in names]
    chains = [await client.chain(name) for name in names]
    found: list[object] = [digest.digest, digest.links, digest.totals]
    stale = digest.stale
    for balance, chain in zip(balances, chains, strict=True):
        assert isinstance(balance, Balance) and isinstance(chain, Chain), (balance, chain)
        stale = stale or balance.stale or chain.stale
        found += [(balance.settled, balance.incoming, balance.tip, balance.height), chain.links]
    return not stale, found


async def test_an_observer_has_all_links_and_current_answers_and_takes_no_payments(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = await cluster.accounts("watched", 3)
    with operating(cluster.network.directory, tmp_path) as operator:
        invite = await operator.invite("--observer")
        data = tmp_path / "watcher"
        joining = operator.join(invite, data, "--observer")
        told = await joining.wait_told("observing")
        node = joined_node(invite, data)
        assert (told["node"], told["epoch"]) == (node.place.id, (await cluster.clients[0].health()).epoch)
        async with Client([node.client_address], cluster.network.genesis.ca, cluster.id) as client:
            for _ in range(10):  # made while it follows
                await cluster.completed([cluster.pay_request(payer, names[0], 1) for payer in names[1:]])
            await cluster.settle()
            _, wanted = await what_is_read(cluster.clients[0], names)

            async def look() -> tuple[bool, object]:
                try:
                    current, found = await what_is_read(client, names)
                except Unreachable as error:
                    return False, error
                return current and found == wanted, (current, found)

            await until("the observer reads what the members read, and says it is current", look, SETTLE_S)
            health = await client.health()
            assert (health.role, health.active) == ("guest", False)
            # No question is on its way when the time is up.
            monkeypatch.setattr(hopchain.submitting, "FIRST_PAUSE_S", 60.0)
            refused = await client.submit(cluster.pay_request(*names[:2], 1), timeout_s=5.0)
            assert isinstance(refused, NotStarted) and refused.code == "not_member", refused
        assert "member" not in [line["event"] for line in joining.told()]
        await joining.stop()
        sound = await operator.run("verify", str(data))
    assert sound["ok"] and sound["links"] == (await cluster.clients[0].digest()).links
    assert dict(rows_of(data / "node.db").counts)["votes"] == 0, "it voted on nothing"

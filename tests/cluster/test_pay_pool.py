"""`pay --pool` on real nodes: rows of one payer from several accounts, killed in the middle, each row once."""

import csv
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from cli.wallet import Wallet
from hopchain import Balance
from tests.cluster.cluster import START_S, Cluster, key_of, until

pytestmark = pytest.mark.cluster

ROWS, AMOUNT = 400, 7
COLUMNS = ("--from-column", "payer", "--to-column", "payee", "--amount-column", "amount")


async def available(cluster: Cluster, account: str) -> int:
    answer = await cluster.client.balance(account, linearizable=True)
    assert isinstance(answer, Balance), answer
    return answer.settled + answer.incoming


async def test_rows_of_a_pool_are_paid_once_though_the_run_and_a_node_are_killed(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOPCHAIN_HOME", str(tmp_path / "home"))
    wallet = Wallet(cluster.id)
    *sources, payee = await cluster.accounts("pool", 4, funds=ROWS * AMOUNT)
    for name in sources:
        wallet.add(name, key_of(name))
    before = await available(cluster, payee)
    file = tmp_path / "refunds.csv"
    file.write_text("\n".join(["payer,payee,amount", *(f"till,{payee},0.0{AMOUNT}" for _ in range(ROWS))]) + "\n")
    command = [sys.executable, "-m", "cli.main", "pay", str(file), *COLUMNS, "--json"]
    command += ["--asset", "CZK", "--network", str(cluster.nodes[0].directory.parent)]
    first = [*command, "--pool", f"till={','.join(sources)}", "--choice", "least-active", "--concurrency", "16"]
    other = [*command, "--pool", f"till={sources[1]},{sources[0]}", "--choice", "two-choices"]

    def remembered() -> dict[str, list[str]]:
        """row -> the accounts that it was to be sent from; whole lines only."""
        found: dict[str, list[str]] = {}
        for path in (wallet.directory / "sources").glob("*.jsonl"):
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    known = json.loads(line)
                    found.setdefault(known["row"], []).append(known["account"])
        return found

    async def some_are_on_their_way() -> tuple[bool, object]:
        return len(remembered()) >= 40, (len(remembered()), process.returncode)

    async with trio.open_nursery() as nursery:
        process = await nursery.start(partial(trio.run_process, first, check=False))
        await until("accounts have been chosen", some_are_on_their_way, START_S)
        process.kill()
        cluster.kill(2)
    chosen = remembered()
    assert 40 <= len(chosen) < ROWS and {a for accounts in chosen.values() for a in accounts} == set(sources)
    done = await trio.run_process(other, capture_stdout=True, check=False)
    cluster.start(2)
    found = json.loads(done.stdout)
    assert [found[k] for k in ("rows", "completed", "failed")] == [ROWS, ROWS, 0]
    after = remembered()
    assert len(after) == ROWS and all(len(accounts) == 1 for accounts in after.values())
    assert {row: after[row] for row in chosen} == chosen, "what was chosen before the kill stays"
    assert {after[row][0] for row in after.keys() - chosen.keys()} == set(sources[:2])
    (pool,) = found["pools"]
    assert pool["ok"] is True and pool["unknown"] == 0 and pool["left"] == pool["paid"]
    with file.with_suffix(".result.csv").open(newline="") as text:
        assert {row["paid_from"] for row in csv.DictReader(text)} == set(sources)
    again = json.loads((await trio.run_process(first, capture_stdout=True)).stdout)
    assert again["completed"] == ROWS  # the node that came back may not know yet which were repeated
    assert [again["pools"][0][k] for k in ("paid", "left", "ok")] == [0, 0, True]
    await cluster.wait_up()
    await cluster.settle()
    assert await available(cluster, payee) - before == ROWS * AMOUNT

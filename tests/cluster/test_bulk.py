"""Many payments in one call and in one request, on real nodes: an outcome each, all or nothing, and each once."""

import csv
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from chain.request import Posting, transfer
from cli.wallet import Wallet
from hopchain import Balance, Outcome, Recorded
from tests.cluster.cluster import START_S, Cluster, key_of, until

pytestmark = pytest.mark.cluster

PAYERS, PAYEES, ROWS = 3, 40, 600
AMOUNT = 5
COLUMNS = ("--from-column", "payer", "--to-column", "payee", "--amount-column", "amount")


async def available(cluster: Cluster, account: str) -> int:
    answer = await cluster.client.balance(account, linearizable=True)
    assert isinstance(answer, Balance), answer
    return answer.settled + answer.incoming


async def test_many_requests_at_once_have_an_outcome_each_or_one_for_all(cluster: Cluster) -> None:
    payer, poor, payee = await cluster.accounts("many", 3, funds=1000)
    keys = {name: key_of(name) for name in (payer, poor)}
    made = [transfer(cluster.id, payer, [Posting(payee, 1)], cluster.nonce()) for _ in range(100)]
    made[30:30] = [transfer(cluster.id, poor, [Posting(payee, 1001)], cluster.nonce())]
    made[60:60] = [transfer(cluster.id, payer, [Posting("nobody-at-all", 1)], cluster.nonce())]
    answers = await cluster.client.submit_many(made, keys, timeout_s=START_S)
    outcomes = [Outcome(a.outcome) if isinstance(a, Recorded) else a for a in answers]
    assert outcomes.pop(60) is Outcome.UNKNOWN_RECIPIENT
    assert outcomes.pop(30) is Outcome.INSUFFICIENT_FUNDS
    assert outcomes == [Outcome.COMPLETED] * 100
    assert await available(cluster, payee) == 1100
    whole = [transfer(cluster.id, payer, [Posting(payee, 300)], cluster.nonce()) for _ in range(4)]
    rejected = await cluster.client.submit_many(whole, keys, atomic=True)
    assert {a.outcome for a in rejected if isinstance(a, Recorded)} == {Outcome.INSUFFICIENT_FUNDS}
    done = await cluster.client.submit_many(whole[:3], keys, atomic=True)
    await cluster.settle()  # a node that lags does not know yet what is repeated
    again = await cluster.client.submit_many(whole[:3], keys, atomic=True)
    assert [(a.outcome, a.repeated) for a in done + again if isinstance(a, Recorded)] == [
        *([(Outcome.COMPLETED, False)] * 3 + [(Outcome.COMPLETED, True)] * 3)
    ]
    assert await available(cluster, payee) == 2000
    await cluster.settle()


async def test_a_bulk_payment_file_survives_kill_9_of_the_command_and_of_a_node(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOPCHAIN_HOME", str(tmp_path / "home"))
    wallet = Wallet(cluster.id)
    wallet.add("mint", key_of("mint"))
    payees = [f"bulk-to-{number % PAYEES}" for number in range(ROWS)]
    file = tmp_path / "salaries.csv"
    lines = [f"bulk-from-{number % PAYERS},{payee},0.0{AMOUNT}" for number, payee in enumerate(payees)]
    file.write_text("\n".join(["payer,payee,amount", *lines]) + "\n")
    network = cluster.nodes[0].directory.parent
    command = [sys.executable, "-m", "cli.main", "pay", str(file), *COLUMNS, "--asset", "CZK", "--open-missing"]
    command += ["--fund-from", "mint", "--bulk", "--network", str(network), "--json"]

    async def remembered() -> tuple[bool, object]:
        return any((wallet.directory / "bulk").glob("*.jsonl")), process.returncode

    async with trio.open_nursery() as nursery:
        process = await nursery.start(partial(trio.run_process, command, check=False))
        await until("the requests are about to leave", remembered, START_S)
        process.kill()
        cluster.kill(2)
    first = await trio.run_process(command, capture_stdout=True)
    cluster.start(2)
    found = json.loads(first.stdout)
    assert [found[k] for k in ("rows", "requests", "completed", "failed")] == [ROWS, PAYERS, ROWS, 0]
    await cluster.wait_up()
    await cluster.settle()  # a node that lags does not know yet what is repeated
    again = json.loads((await trio.run_process(command, capture_stdout=True)).stdout)
    assert [again[k] for k in ("completed", "repeated", "funded", "opened")] == [ROWS, ROWS, 0, 0]
    with file.with_suffix(".result.csv").open(newline="") as text:
        assert len({row["request_id"] for row in csv.DictReader(text)}) == PAYERS
    assert [await available(cluster, payee) for payee in sorted(set(payees))] == [ROWS // PAYEES * AMOUNT] * PAYEES
    assert [await available(cluster, f"bulk-from-{number}") for number in range(PAYERS)] == [0] * PAYERS


async def test_two_runs_of_one_file_at_once_pay_and_fund_it_once(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOPCHAIN_HOME", str(tmp_path / "home"))
    Wallet(cluster.id).add("mint", key_of("mint"))
    file = tmp_path / "wages.csv"
    file.write_text(
        "\n".join(["payer,payee,amount", *(f"twice-{n % 3},twice-to,0.0{AMOUNT}" for n in range(60))]) + "\n"
    )
    network = cluster.nodes[0].directory.parent
    command = [sys.executable, "-m", "cli.main", "pay", str(file), *COLUMNS, "--asset", "CZK", "--open-missing"]
    command += ["--fund-from", "mint", "--network", str(network), "--json"]
    ended: list[tuple[int, str]] = []

    async def pay(*how: str) -> None:
        done = await trio.run_process([*command, *how], capture_stdout=True, check=False)
        ended.append((done.returncode, done.stdout.decode()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pay)
        nursery.start_soon(pay, "--bulk")
    (first, paid), (second, refused) = sorted(ended)
    assert (first, second) == (0, 2), ended
    assert json.loads(paid)["completed"] == 60 and json.loads(refused)["error"] == "usage"
    assert await available(cluster, "twice-to") == 60 * AMOUNT
    assert [await available(cluster, f"twice-{number}") for number in range(3)] == [0] * 3
    await cluster.settle()

"""The programs in examples/ against real nodes, as a person would run them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from hopchain import Balance
from tests.cluster.cluster import Cluster, key_of

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]


async def spendable(cluster: Cluster, account: str) -> int:
    answer = await cluster.client.balance(account, linearizable=True)
    assert isinstance(answer, Balance), answer
    return answer.settled + answer.incoming


def wallet_of(cluster: Cluster, home: Path, accounts: list[str]) -> None:
    directory = home / "wallet" / cluster.id.hex()[:16]
    directory.mkdir(parents=True)
    for account in accounts:
        file = directory / f"{account}.key"
        file.write_bytes(key_of(account).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        file.chmod(0o600)


async def ran(example: str, home: Path, words: list[str]) -> tuple[int, str]:
    """Exit code and output of an example."""
    done = await trio.run_process(
        [sys.executable, f"examples/{example}", *words],
        cwd=ROOT,
        env={**os.environ, "HOPCHAIN_HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout.decode()


async def test_pay_pays_once_and_tells_every_end(cluster: Cluster, tmp_path: Path) -> None:
    payer, payee = await cluster.accounts("example", 2, funds=2000)
    wallet_of(cluster, tmp_path, [payer])
    net = str(cluster.network.directory)

    async def pay(*words: str) -> tuple[int, str]:
        return await ran("pay.py", tmp_path, [net, *words])

    code, text = await pay(payer, payee, "1250", "order-1")
    assert code == 0 and "\npaid in link " in text and "before" not in text, text
    code, text = await pay(payer, payee, "1250", "order-1")
    assert code == 0 and text.endswith(", before this run\n"), text
    assert await spendable(cluster, payee) == 3250, "paid once"
    for words, code, told in (
        ((payer, payee, "1250", "order-2"), 1, "rejected for ever: insufficient_funds"),
        ((payee, payer, "1", "order-3"), 3, f"{payee}.key cannot be read (No such file"),
        ((payer, payee, "-1", "order-4"), 3, "amount of posting 0 is -1 (int); it must be an int from 1"),
    ):
        assert (got := await pay(*words))[0] == code and told in got[1], got


async def test_an_account_is_opened_once_and_its_key_pays(cluster: Cluster, tmp_path: Path) -> None:
    net = str(cluster.network.directory)
    for told in ("open\n", "open, before this run\n"):
        assert await ran("open_account.py", tmp_path, [net, "example-new", "CZK"]) == (0, told)
    code, text = await ran("pay.py", tmp_path, [net, "example-new", "mint", "1", "order-1"])
    assert code == 1 and "rejected for ever: insufficient_funds" in text, text
    code, text = await ran("open_account.py", tmp_path / "another", [net, "example-new", "CZK"])
    assert code == 1 and text.endswith(" [name_taken]\n"), text


async def test_many_and_pooled_payments(cluster: Cluster, tmp_path: Path) -> None:
    one, other, payee = await cluster.accounts("pooled", 3, funds=100)
    wallet_of(cluster, tmp_path, [one, other])
    net = str(cluster.network.directory)
    orders = [f"{one}={payee}:5", f"{one}={payee}:7", f"{other}={payee}:9"]
    code, text = await ran("pay_many.py", tmp_path, [net, *orders])
    assert (code, text.count(" completed\n")) == (0, 3), text
    code, text = await ran("pay_many.py", tmp_path, [net, f"{one}={payee}:6", f"{one}={payee}:600", "--atomic"])
    assert (code, text.count(" insufficient_funds\n")) == (1, 2), text
    code, text = await ran("pay_many.py", tmp_path, [net, f"{one}={payee}:x"])
    assert code == 2 and "is no PAYER=PAYEE:AMOUNT" in text, text
    assert await spendable(cluster, payee) == 121
    pool = [net, f"{one},{other}", payee, "40", str(tmp_path / "chosen.sqlite3")]
    code, text = await ran("pay_from_pool.py", tmp_path, pool)
    assert code == 0 and text.startswith("40 completed\n0 not tried, 0 of an earlier run\n"), text
    assert text.endswith("paid in this run: 40, left the accounts: 40\n"), text
    code, text = await ran("pay_from_pool.py", tmp_path, pool)
    assert (code, text) == (
        0,
        "40 completed\n0 not tried, 40 of an earlier run\npaid in this run: 0, left the accounts: 0\n",
    )
    assert await spendable(cluster, payee) == 161

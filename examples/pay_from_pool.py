"""Many payments from several accounts: a few workers take the next order when they are done with their last one.

    python examples/pay_from_pool.py net payer-1,payer-2,payer-3 bob 1000 chosen.sqlite3

pays bob 1,000 times one minor unit. Run again with the same file it pays nothing and says what became of each: the
orders are the same, and the file says which account was chosen for each. Without that file they would be paid again,
from other accounts. The wallet has the keys of the payers (`hopchain account open payer-1 payer-2 payer-3`).
"""

import argparse
import hashlib
import random
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import anyio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hopchain import (
    Answer,
    Choice,
    Client,
    ClientError,
    HopchainError,
    LocalMisuse,
    Outcome,
    Outflow,
    PooledSender,
    Posting,
    Recorded,
    SourcePool,
    TooManyFailures,
    load_key,
    open_network,
    wallet_file,
)


@dataclass(frozen=True)
class Order:
    """One payment. `id` is the caller's own and makes it this payment and no other."""

    id: str
    postings: Sequence[Posting]

    @property
    def nonce(self) -> bytes:
        """32 bytes that are the same whenever this order is paid again."""
        return hashlib.sha256(self.id.encode()).digest()


class Chosen:
    """The account that pays each order, in a file: an order is paid once *per account*, so it must never change."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def account(self, order: Order, choice: str) -> str:
        """The account that was chosen for this order first, now or in an earlier run. It is on disk when this
        returns."""
        try:
            with closing(sqlite3.connect(self._file)) as rows, rows:
                rows.execute("PRAGMA synchronous = EXTRA")  # what is committed outlives a power cut
                rows.execute("CREATE TABLE IF NOT EXISTS chosen (id TEXT PRIMARY KEY, account TEXT NOT NULL)")
                rows.execute("INSERT OR IGNORE INTO chosen VALUES (?, ?)", (order.id, choice))
                (account,) = rows.execute("SELECT account FROM chosen WHERE id = ?", (order.id,)).fetchone()
        except sqlite3.Error as error:
            raise LocalMisuse(f"{self._file} cannot be used: {error}") from None
        return str(account)


async def pay_from_pool(
    client: Client,
    keys: Mapping[str, Ed25519PrivateKey],
    orders: Iterable[Order],
    chosen: Chosen,
    *,
    workers: int = 16,
    max_failures: int = 100,
    timeout_s: float = 10,
) -> tuple[dict[str, Answer | HopchainError], Outflow | None]:
    """What became of each order that was tried, and what left the accounts of `keys` in this run (None: no node could
    be asked any more)."""
    pool = SourcePool(list(keys), Choice.LEAST_ACTIVE, random.Random(), max_failures=max_failures)
    sender = PooledSender(client, pool, keys, timeout_s=timeout_s)
    pool.open_books(await sender.balances())
    answers: dict[str, Answer | HopchainError] = {}
    waiting = iter(orders)

    async def work(worker: int) -> None:
        for order in waiting:  # all workers share it: each order goes to one
            try:
                account = chosen.account(order, pool.choose(worker))  # on disk before the payment leaves
                answers[order.id] = await sender.pay(order.postings, nonce=order.nonce, account=account)
            except TooManyFailures:
                return  # the other orders are not paid, and have no answer
            except HopchainError as error:  # not sent: no node could be asked, or it cannot be made or written down
                answers[order.id] = error

    async with anyio.create_task_group() as tasks:
        for worker in range(workers):
            tasks.start_soon(work, worker)
    try:
        await sender.settle()  # payments that ended as unknown: sent again, executed once
        return answers, pool.check_outflow(await sender.balances())
    except ClientError:  # the answers are worth more than the sum
        return answers, None


async def main() -> int:
    """Read the arguments, pay, say what became of how many."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", help="the network's, as `hopchain init` made it")
    parser.add_argument("payers", help="accounts, with commas between them")
    parser.add_argument("payee")
    parser.add_argument("count", type=int)
    parser.add_argument("chosen", type=Path, help="file that keeps which account pays each order; made when missing")
    words = parser.parse_args()
    orders = [Order(f"order {number}", [Posting(words.payee, 1)]) for number in range(words.count)]
    try:
        async with open_network(words.directory, spread=True) as client:
            keys = {payer: load_key(wallet_file(client.network, payer)) for payer in words.payers.split(",")}
            answers, outflow = await pay_from_pool(client, keys, orders, Chosen(words.chosen))
    except (ClientError, LocalMisuse) as error:
        print(error)
        return 2
    told = Counter(
        Outcome(answer.outcome).name.lower() if isinstance(answer, Recorded) else type(answer).__name__
        for answer in answers.values()
    )
    repeated = sum(isinstance(answer, Recorded) and answer.repeated for answer in answers.values())
    print(", ".join(f"{count} {name}" for name, count in sorted(told.items())))
    print(f"{len(orders) - len(answers)} not tried, {repeated} of an earlier run")
    if outflow is not None:
        print(f"paid in this run: {outflow.paid}, left the accounts: {outflow.left}")
    return 0 if told == {"completed": len(orders)} else 1


if __name__ == "__main__":
    sys.exit(anyio.run(main, backend="trio"))  # or "asyncio"

"""Many payments in one call: each by itself, or all of one payer or none.

    python examples/pay_many.py net alice=bob:5 carol=bob:7
    python examples/pay_many.py net alice=bob:5 alice=carol:7 --atomic

The place in the list makes each payment this one and no other: the same list again pays nothing, as long as --atomic is
given both times or never: one request for all is another than one for each.
"""

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import anyio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hopchain import (
    Answer,
    Client,
    ClientError,
    LocalMisuse,
    Outcome,
    Posting,
    Recorded,
    load_key,
    open_network,
    transfer,
    wallet_file,
)


@dataclass(frozen=True)
class Order:
    """One payment in minor units. `id` is the caller's own."""

    id: str
    payer: str
    payee: str
    amount: int

    @property
    def nonce(self) -> bytes:
        """32 bytes that are the same whenever this order is paid again."""
        return hashlib.sha256(self.id.encode()).digest()


async def pay_many(
    client: Client, orders: Sequence[Order], keys: Mapping[str, Ed25519PrivateKey], *, atomic: bool
) -> list[Answer | ClientError]:
    """What became of each order, in order."""
    requests = [
        transfer(client.network, order.payer, [Posting(order.payee, order.amount)], order.nonce) for order in orders
    ]
    if atomic:
        return await client.submit_many(requests, keys, atomic=True)  # of one payer: all of them, or none
    return await client.submit_many(requests, keys)  # independent: what became of each, in order


def order_of(text: str, number: int) -> Order:
    """The order that PAYER=PAYEE:AMOUNT stands for."""
    payer, _, rest = text.partition("=")
    payee, _, amount = rest.partition(":")
    if not amount.isdecimal():
        raise LocalMisuse(f"{text!r} is no PAYER=PAYEE:AMOUNT with an amount in minor units")
    return Order(f"{number} {text}", payer, payee, int(amount))


async def main() -> int:
    """Read the arguments, pay, say what became of each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", help="the network's, as `hopchain init` made it")
    parser.add_argument("orders", nargs="+", metavar="PAYER=PAYEE:AMOUNT")
    parser.add_argument("--atomic", action="store_true", help="all or none; they are of one payer")
    words = parser.parse_args()
    try:
        orders = [order_of(text, number) for number, text in enumerate(words.orders)]
        async with open_network(words.directory, spread=True) as client:
            keys = {order.payer: load_key(wallet_file(client.network, order.payer)) for order in orders}
            answers = await pay_many(client, orders, keys, atomic=words.atomic)
    except LocalMisuse as error:  # nothing was sent
        print(error)
        return 2
    for text, answer in zip(words.orders, answers, strict=True):
        print(text, Outcome(answer.outcome).name.lower() if isinstance(answer, Recorded) else answer)
    return 0 if all(isinstance(a, Recorded) and a.outcome == Outcome.COMPLETED for a in answers) else 1


if __name__ == "__main__":
    sys.exit(anyio.run(main, backend="trio"))  # or "asyncio"

"""One payment from Python, made once however often this is run with the same words; with another amount it is another
payment.

    hopchain init net --asset CZK:2 --issuer mint && hopchain up       # then, in a second terminal:
    hopchain account open alice
    python examples/pay.py net mint alice 1250 order-1                     # 12.50 CZK: amounts are in minor units

Exit code 0: paid. 1: it never will be, and why. 2: wrong arguments. 3: this run sent nothing, or what became of it is
not known (an earlier run may have paid it, too): mend what it says, run the same again.
"""

import argparse
import hashlib
import sys

import anyio

from hopchain import (
    Answer,
    Client,
    ClientError,
    LocalMisuse,
    NotStarted,
    Outcome,
    Posting,
    Recorded,
    Refused,
    Stale,
    Unknown,
    load_key,
    open_network,
    sign_request,
    transfer,
    wallet_file,
)


async def pay(client: Client, sender: str, recipient: str, amount: int, order: str) -> Answer:
    """Pay `amount` minor units for `order`, a name that the caller has written down before."""
    key = load_key(wallet_file(client.network, sender))
    nonce = hashlib.sha256(f"{sender} {order}".encode()).digest()
    signed = sign_request(transfer(client.network, sender, [Posting(recipient, amount, order)], nonce), key)
    print("request", signed.request_id.hex())  # known before it is sent: `client.outcome` and `client.cancel` take it
    return await client.submit(signed, timeout_s=10)


def told(answer: Answer) -> tuple[int, str]:
    """The exit code and a text for people: every answer that there is."""
    match answer:
        case Recorded(outcome=Outcome.COMPLETED):
            return 0, f"paid in link {answer.height}" + (", before this run" if answer.repeated else "")
        case Recorded():
            return 1, f"rejected for ever: {Outcome(answer.outcome).name.lower()}"
        case Stale():
            return 1, "it expected another tip and will never be paid"
        case Refused():
            return 3, f"refused, so this run paid nothing: {answer.reason}"
        case NotStarted():
            return 3, f"not started: {answer.reason}; run the same again"
        case Unknown():
            return 3, f"not known: {answer.reason}; run the same again"


async def main() -> int:
    """Read the arguments, pay, say what became of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", help="the network's, as `hopchain init` made it")
    parser.add_argument("sender")
    parser.add_argument("recipient")
    parser.add_argument("amount", type=int, help="in minor units")
    parser.add_argument("order", help="names this payment, and is its memo")
    words = parser.parse_args()
    try:
        async with open_network(words.directory) as client:
            code, text = told(await pay(client, words.sender, words.recipient, words.amount, words.order))
    except (LocalMisuse, ClientError) as error:  # the arguments or files; no node could be asked: this run sent nothing
        code, text = 3, str(error)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(anyio.run(main, backend="trio"))  # or "asyncio"

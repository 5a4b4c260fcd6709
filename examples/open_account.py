"""Opens an account from Python, whose key is in the wallet before. Run again it says that the account is open.

    python examples/open_account.py net alice CZK

Exit code 0: the account is open and the wallet's key is its own. 1: it was refused, and why. 3: not done, or not known:
mend what it says, run the same again.
"""

import argparse
import sys

import anyio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hopchain import (
    Answer,
    Client,
    ClientError,
    LocalMisuse,
    Outcome,
    Recorded,
    Refused,
    load_key,
    open_network,
    store_key,
    wallet_file,
)


async def open_account(client: Client, name: str, asset: str) -> Answer:
    """Open account `name`, with the key that an earlier run stored or a new one."""
    file = wallet_file(client.network, name)
    if file.exists():
        key = load_key(file)
    else:
        key = Ed25519PrivateKey.generate()
        store_key(file, key)  # on disk before the account is open: without its key the money is lost
    return await client.open_account(name, asset, key)


async def main() -> int:
    """Read the arguments, open the account, say what became of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", help="the network's, as `hopchain init` made it")
    parser.add_argument("name")
    parser.add_argument("asset", help="its code, as CZK")
    words = parser.parse_args()
    try:
        async with open_network(words.directory) as client:
            answer = await open_account(client, words.name, words.asset)
    except (LocalMisuse, ClientError) as error:
        print(error)
        return 3
    match answer:
        case Recorded(outcome=Outcome.COMPLETED):
            print("open" + (", before this run" if answer.repeated else ""))
            return 0
        case Refused():  # as `name_taken`: somebody else has opened it
            print(f"not opened: {answer.reason} [{answer.code}]")
            return 1
        case _:
            print(f"not known: {answer}; run the same again")
            return 3


if __name__ == "__main__":
    sys.exit(anyio.run(main, backend="trio"))  # or "asyncio"

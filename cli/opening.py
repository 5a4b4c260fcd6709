"""Opening accounts, one or thousands: the key is on disk first, then the request leaves.

The request of an account is a function of its name, asset and key, so opening again after a crash is the same request.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import anyio
import msgspec

from chain.request import opening
from cli.wallet import Wallet
from hopchain import Answer, Client, Refused, SignedRequest
from hopchain.client import raw_public_key, sign_request

CONCURRENCY: Final = 128  # openings in flight: enough to fill a node's turns, far below what one connection holds
_NONCE: Final = bytes(32)


class Opened(msgspec.Struct, frozen=True):
    """What became of one opening."""

    name: str
    request_id: bytes
    public_key: bytes
    answer: Answer


async def open_accounts(
    client: Client,
    wallet: Wallet,
    names: Sequence[str],
    asset: str,
    *,
    timeout_s: float,
    at: tuple[str, int] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> list[Opened]:
    """Open all `names` in `asset`; the answers in the same order. `progress` is called after each.

    A new key whose name turns out to be taken is removed again. Raises `Unreachable` when no node could be asked.
    """
    new = {name for name in names if not wallet.has(name)}
    wallet.create(names)
    signed: list[tuple[str, bytes, SignedRequest]] = []
    for name in names:
        key = wallet.key(name)
        request = opening(client.network, name, asset, raw_public_key(key), _NONCE)
        signed.append((name, raw_public_key(key), sign_request(request, key)))
    wallet.record((s.request_id, name, "open") for name, _, s in signed)
    found: dict[str, Opened] = {}

    async def work(queue: Iterator[tuple[str, bytes, SignedRequest]]) -> None:
        for name, public_key, request in queue:
            answer = await client.submit(request, timeout_s, at=at)
            if isinstance(answer, Refused) and answer.code == "name_taken" and name in new:
                wallet.discard(name)
            found[name] = Opened(name, request.request_id, public_key, answer)
            progress()

    queue = iter(signed)
    async with anyio.create_task_group() as tasks:
        for _ in range(min(CONCURRENCY, len(signed))):
            tasks.start_soon(work, queue)
    return [found[name] for name in names]

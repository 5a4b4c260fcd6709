"""Opening accounts, one or thousands: the key is on disk first, then the request leaves.

The request of an account is a function of its name, asset and key, so opening again after a crash is the same request.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from chain.request import opening
from cli.receipt import interrupted
from cli.session import account_line
from cli.wallet import Wallet
from hopchain import Accounts, Answer, Client, ClientError, Refused, SignedRequest, raw_public_key, sign_request
from hopchain.workers import work_on_each

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
    sending: Callable[[Callable[[], list[Opened]]], None] = lambda so_far: None,
) -> list[Opened]:
    """Open all `names` in `asset`; the answers in the same order. `progress` is called after each, `sending`
    before the first leaves, with what gives the answers so far: `unknown` for those that have none.

    A new key whose name turns out to be another key's is removed again. Raises `Unreachable` when no node could be
    asked.
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

    async def submit(each: tuple[str, bytes, SignedRequest]) -> None:
        name, public_key, request = each
        answer = await client.submit(request, timeout_s=timeout_s, at=at)
        taken = isinstance(answer, Refused) and answer.code == "name_taken"
        if taken and name in new and await _is_of_another_key(client, name, public_key, at):
            wallet.discard(name)
        found[name] = Opened(name, request.request_id, public_key, answer)
        progress()

    def so_far() -> list[Opened]:
        return [
            found.get(name) or Opened(name, s.request_id, key, interrupted(s.request_id)) for name, key, s in signed
        ]

    sending(so_far)
    await work_on_each(signed, submit, at_once=CONCURRENCY)
    return so_far()


async def _is_of_another_key(client: Client, name: str, public_key: bytes, at: tuple[str, int] | None) -> bool:
    """True when the account is known to have another key. That its name is taken does not say so: another process of
    this wallet may have opened it meanwhile, in another asset, with the key that both found. Not known is False: a key
    too many harms nobody."""
    with suppress(ClientError):
        found = await account_line(client, name, at)
        return isinstance(found, Accounts) and found.accounts[0].public_key != public_key
    return False

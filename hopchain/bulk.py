"""Many requests in one call: each by itself (`submit_each`), or all or nothing (`joined`). `Client.submit_many` is
both.

A request holds up to MAX_POSTINGS postings of one account and is one outcome in one link. So transfers of one account
that must happen together are joined: their postings, in order, under a nonce that their nonces make. Joined again they
are the same request again, executed once.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.errors import LocalMisuse
from chain.names import MAX_AMOUNT
from chain.request import MAX_POSTINGS, Kind, Request, SignedRequest, transfer
from hopchain.errors import ClientError
from hopchain.signing import sign_request
from hopchain.workers import work_on_each

MANY_IN_FLIGHT: Final = 256  # requests of one bulk call: enough to fill the nodes' turns, a quarter of one connection
_TAG: Final = b"hopchain:joined:1\0"
S = TypeVar("S")
T = TypeVar("T")


class NotSent(ClientError):
    """In place of an answer: this request was not sent, as the caller's own doing, such as closing the client, came
    before its turn. Nothing happened to it."""


class TooManyFailures(NotSent):
    """More payments failed than the caller allows, so this one was not sent."""


def checked_failures(given: int | None) -> int | None:
    """How many payments may fail before no more are sent, None: any number. `LocalMisuse` when it is no number."""
    if given is None or (isinstance(given, int) and given >= 0):
        return given
    raise LocalMisuse(f"max_failures={given!r}: give how many may fail before no more are sent, 0 or more, or None")


def signed_requests(
    requests: Sequence[Request], keys: Mapping[str, Ed25519PrivateKey], *, atomic: bool
) -> list[SignedRequest]:
    """The requests signed, in order, or the one that they make together. `LocalMisuse` when one of them cannot be
    made."""
    missing = sorted({request.sender for request in requests} - keys.keys())
    if missing:
        raise LocalMisuse(f"{len(missing)} accounts have no key, the first is {missing[0]}")
    made = [joined(requests)] if atomic else requests
    return [sign_request(request, keys[request.sender]) for request in made]


async def submit_each(
    submit: Callable[[S], Awaitable[T]],
    items: Sequence[S],
    *,
    at_once: int = MANY_IN_FLIGHT,
    max_failures: int | None = None,
    failed: Callable[[T], bool] = lambda answer: False,
    on_answer: Callable[[int, T | ClientError], None] | None = None,
) -> list[T | ClientError]:
    """What became of each, in order, `at_once` at a time. What `submit` raises for one stands in its place and stops no
    other: the answers of those that were paid are never lost with it.

    `on_answer` is called with the number of each and what became of it as soon as that is known. `max_failures`: once
    more than these have an answer that is `failed` or a `ClientError`, no other is begun."""
    answers: dict[int, T | ClientError] = {}
    failures = 0

    async def outcome(item: S) -> T | ClientError:
        nonlocal failures
        if max_failures is not None and failures > max_failures:
            return TooManyFailures(
                f"this request was not sent: {failures} others failed, more than {max_failures}; look at their answers"
            )
        try:
            answer = await submit(item)
        except ClientError as error:
            failures += 1
            return error
        except LocalMisuse as error:
            return NotSent(f"this request was not sent: {error}")
        failures += failed(answer)
        return answer

    async def work(number: int) -> None:
        answers[number] = await outcome(items[number])
        if on_answer is not None:
            on_answer(number, answers[number])

    await work_on_each(range(len(items)), work, at_once=at_once)
    return [answers[number] for number in range(len(items))]


def joined(requests: Sequence[Request]) -> Request:
    """One request with the postings of all these transfers. `LocalMisuse`, with the numbers, when one request cannot
    hold them: they must be of one account, under the same conditions, MAX_POSTINGS postings at most, MAX_AMOUNT in
    all."""
    if not requests:
        raise LocalMisuse("no request was given: all or nothing needs at least one")
    kinds = sorted({request.kind.name for request in requests if request.kind is not Kind.TRANSFER})
    if kinds:
        raise LocalMisuse(f"only transfers can be all or nothing, and some are {', '.join(kinds)}")
    postings = [posting for request in requests for posting in request.postings]
    total = sum(request.total for request in requests)
    senders = len({request.sender for request in requests})
    if senders > 1 or len(postings) > MAX_POSTINGS or total > MAX_AMOUNT:
        raise LocalMisuse(
            f"all or nothing is one request: 1 account, {MAX_POSTINGS} postings and {MAX_AMOUNT} minor units at most; these "
            f"are {senders} accounts, {len(postings)} postings and {total} minor units"
        )
    first = requests[0]
    conditions = {(request.network, request.expect_tip, request.valid_until_height) for request in requests}
    if len(conditions) > 1:
        raise LocalMisuse(
            f"all or nothing has one expected tip and one last height; these have {len(conditions)} of them"
        )
    nonces = b"".join(request.nonce + len(request.postings).to_bytes(4, "big") for request in requests)
    return transfer(
        first.network,
        first.sender,
        postings,
        hashlib.sha256(_TAG + nonces).digest(),
        expect_tip=first.expect_tip,
        valid_until_height=first.valid_until_height,
    )

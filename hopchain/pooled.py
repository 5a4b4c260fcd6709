"""Pays from a pool of source accounts (hopchain.pools) through a client, and counts what became of each payment.

A payment whose outcome is not known ends as UNKNOWN and is in doubt, once, however often it is paid again, until
`settle` has its outcome:

* This run may have handed it over: there was no answer, or the call was cancelled. `settle` sends it again, which
  executes it once.
* An earlier process may have handed it over, for its nonce is the caller's, and this run did not: a node refused it or
  did not start it, or none could be asked. `settle` asks for its outcome and sends nothing.

One that is completed is counted once, too: the ids of those that can be paid again, whose nonce is the caller's, are
kept as long as the sender, in some 100 bytes each.
"""

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.errors import LocalMisuse
from chain.link import Outcome
from chain.request import MAX_POSTINGS, Posting, RequestId, SignedRequest, transfer
from hopchain.bulk import MANY_IN_FLIGHT, submit_each
from hopchain.calls import checked_seconds
from hopchain.client import DEFAULT_TIMEOUT_S, NONCE_BYTES, Client
from hopchain.errors import CallRefused, ClientError, Unreachable
from hopchain.pools import Ended, SourcePool, check_nonce
from hopchain.signing import sign_request
from hopchain.submitting import Answer
from hopchain.wire import Balance, NotFound, Recorded, Stale, Unknown

BALANCES_AT_ONCE: Final = 64  # half of the linearizable ones that a node has under way of one connection
SETTLED_AT_ONCE: Final = MANY_IN_FLIGHT
_TAG: Final = b"hopchain:bulk:1\0"
_FINAL: Final = (Recorded, Stale)  # whatever was answered before, and whoever else is asked


class _Payment(msgspec.Struct, frozen=True):
    """A signed transfer of `amount` minor units from an account of the pool. `again`: its nonce is the caller's, so an
    earlier process may have handed it over."""

    account: str
    amount: int
    signed: SignedRequest
    again: bool


class _Doubt(msgspec.Struct, frozen=True, eq=False):
    """A payment without an outcome; each is another one, also of the same request. `sent`: it may have been handed over
    in this run."""

    payment: _Payment
    sent: bool


class PooledSender:
    """Pays from a pool through a client. Any number of tasks of the client's event loop may share it. `keys`: the key
    of each account; `timeout_s`: of each payment, and of each balance."""

    def __init__(
        self,
        client: Client,
        pool: SourcePool,
        keys: Mapping[str, Ed25519PrivateKey],
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        missing = [account for account in pool.accounts if account not in keys]
        if missing:
            raise LocalMisuse(f"{len(missing)} accounts of the pool have no key, the first is {missing[0]}")
        self._client = client
        self._pool = pool
        self._keys = keys
        self._timeout_s = checked_seconds("timeout_s", timeout_s)
        self._doubts: dict[RequestId, _Doubt] = {}  # in the order in which they ended
        self._completed: set[RequestId] = set()  # of those with the caller's nonce

    async def pay(
        self,
        postings: Sequence[Posting],
        *,
        worker: int = 0,
        nonce: bytes | None = None,
        account: str | None = None,
    ) -> Answer:
        """Pay all `postings` from one account of the pool, or none. `nonce` as in `Client.transfer`.

        `account` pays, which `SourcePool.choose` gave now or before a crash: with the same nonce and account it is the
        same request, paid once. Without `account` a nonce names one by its hash, whatever the pool's choice, and
        without both the pool chooses. With a nonce a payment that this call did not make counts as UNKNOWN, not FAILED:
        an earlier process may have made it.
        Raises `TooManyFailures`, `LocalMisuse` for a payment that cannot be made, and, counted as a failure,
        `Unreachable`."""
        self._client.check_open()  # before anything is counted
        if account is None:
            account = self._pool.choose(worker, nonce)
        self._pool.check_account(account)
        return await self._send(self._make(account, postings, nonce))

    async def pay_bulk(
        self,
        postings: Sequence[Posting],
        *,
        size: int = MAX_POSTINGS,
        nonce: bytes | None = None,
        on_answer: Callable[[int, Answer | ClientError], None] | None = None,
    ) -> list[Answer | ClientError]:
        """Pay any number of postings in requests of at most `size`, as many at once as the pool has accounts. What
        became of each request, in order of its postings; one that fails does not stop the others. All are signed before
        the first is sent: `LocalMisuse`, and nothing is paid, when one of them cannot be made.

        `nonce` (32 bytes) makes these payments these and no others: the same postings, `size` and `nonce` again, also
        after a crash, are the same requests and pay once. The nonce names the account of the first request, and the
        others go to each account in turn, whatever the choice. None takes random ones. `on_answer` as in
        `Client.submit_many`: called with the number of a request and what became of it, as soon as that is known."""
        self._client.check_open()
        if nonce is not None:
            check_nonce(nonce)
        if not 1 <= size <= MAX_POSTINGS:
            raise LocalMisuse(f"a request of {size} postings: it holds 1 to {MAX_POSTINGS}")
        parts = [postings[at : at + size] for at in range(0, len(postings), size)]
        nonces = [None if nonce is None else _nonce_of_part(nonce, number) for number in range(len(parts))]
        made = list(map(self._make, self._pool.choose_each(len(parts), nonce), parts, nonces))
        return await submit_each(self._send, made, at_once=len(self._pool.accounts), on_answer=on_answer)

    def _make(self, account: str, postings: Sequence[Posting], nonce: bytes | None) -> _Payment:
        """Raises `LocalMisuse`; nothing is counted."""
        own = secrets.token_bytes(NONCE_BYTES) if nonce is None else nonce
        request = transfer(self._client.network, account, postings, own)
        inside = next((posting for posting in request.postings if posting.recipient in self._pool.in_flight), None)
        if inside is not None:
            raise LocalMisuse(
                f"{inside.recipient} is in the pool, which cannot pay it: what left the pool would not be what it paid; pay it with "
                "`Client.transfer`, before the books are opened"
            )
        signed = sign_request(request, self._keys[account])
        return _Payment(account, request.total, signed, again=nonce is not None)

    async def _send(self, payment: _Payment) -> Answer:
        """Raises `TooManyFailures` and, counted as a failure, what says that no node has the request."""
        self._pool.check_failures()
        sent = self._take_back(payment)
        self._pool.begin(payment.account)
        how, answer = Ended.UNKNOWN, None  # also when this call is cancelled
        try:
            answer = await self._client.submit(payment.signed, timeout_s=self._timeout_s)
            how = _ended(answer)
            return answer
        except (Unreachable, LocalMisuse):
            how = Ended.FAILED
            raise
        finally:
            # a call of the same payment may have ended meanwhile
            sent = self._take_back(payment) or sent or how is Ended.UNKNOWN
            if how is Ended.FAILED and payment.again and not isinstance(answer, _FINAL):
                how = Ended.UNKNOWN
            how = self._first_time(payment, how)
            if how is Ended.UNKNOWN:
                self._doubts[payment.signed.request_id] = _Doubt(payment, sent)
            self._pool.ended(payment.account, payment.amount, how, _height(answer))

    def _first_time(self, payment: _Payment, how: Ended) -> Ended:
        """`how` it ended, or REPEATED when it is completed already. One that is completed now is so from now on."""
        request_id = payment.signed.request_id
        if request_id in self._completed:
            return Ended.REPEATED
        if how is Ended.COMPLETED and payment.again:
            self._completed.add(request_id)
        return how

    def _take_back(self, payment: _Payment) -> bool:
        """Count an earlier call of this payment that is in doubt as FAILED: the request is in doubt once, however often
        it is paid. Whether it may have been handed over in this run."""
        doubt = self._doubts.pop(payment.signed.request_id, None)
        if doubt is None:
            return False
        self._pool.settled(payment.account, payment.amount, Ended.FAILED)
        return doubt.sent

    async def settle(self) -> int:
        """Send every payment of this run without an outcome once more, which executes none twice, and makes those that
        were cancelled before they left; many at once, `timeout_s` for each. How many of them remain without one.

        What only an earlier process may have handed over is not sent: its outcome is asked for, and without one it
        stays in `SourcePool.unknown` alone. Raises `Unreachable`, after all were tried, when one could not be sent or
        asked for."""
        self._client.check_open()

        async def look(doubt: _Doubt) -> None:
            payment = doubt.payment
            request_id = payment.signed.request_id
            answer: Answer | NotFound | None
            if doubt.sent:
                answer = await self._client.submit(payment.signed, timeout_s=self._timeout_s)
            else:
                answer = await self._outcome(payment)
            if self._doubts.get(request_id) is not doubt:  # another task has settled it, or pays it again
                return
            if isinstance(answer, _FINAL):  # not started or refused here: an earlier node may still have it
                del self._doubts[request_id]
                how = self._first_time(payment, _ended(answer))
                self._pool.settled(payment.account, payment.amount, how, _height(answer))

        for ended in await submit_each(look, list(self._doubts.values()), at_once=SETTLED_AT_ONCE):
            if isinstance(ended, ClientError):
                raise ended
        return sum(doubt.sent for doubt in self._doubts.values())

    async def _outcome(self, payment: _Payment) -> Recorded | NotFound | None:
        """What a node says became of it; None when it refuses to say."""
        with suppress(CallRefused):
            return await self._client.outcome(payment.signed.request_id, payment.account, timeout_s=self._timeout_s)
        return None

    async def balances(self) -> dict[str, Balance]:
        """What each account of the pool has, as a majority of the nodes knows it; many are asked for at once,
        `timeout_s` for each. Raises `ClientError` when one of them is not told in time, and asks for no more then;
        `LocalMisuse` for an account that is not open."""
        self._client.check_open()

        async def ask(account: str) -> Balance | None:
            answer = await self._client.balance(account, linearizable=True, timeout_s=self._timeout_s)
            if isinstance(answer, Unknown):
                raise ClientError(f"the balance of {account} is not known: {answer.reason}; ask again")
            if isinstance(answer, NotFound):
                if answer.stale:
                    raise ClientError(f"the balance of {account} is not known: who answered may be behind; ask again")
                return None
            return answer

        accounts = self._pool.accounts
        found: dict[str, Balance] = {}
        answers = await submit_each(ask, accounts, at_once=BALANCES_AT_ONCE, max_failures=0)
        for account, answer in zip(accounts, answers, strict=True):
            if isinstance(answer, ClientError):  # the first one in order: it began before those that were not asked for
                raise answer
            if answer is None:
                raise LocalMisuse(f"the balance of {account} is not known: there is no such account")
            found[account] = answer
        return found


def _nonce_of_part(nonce: bytes, number: int) -> bytes:
    return hashlib.sha256(_TAG + nonce + number.to_bytes(8, "big")).digest()


def _height(answer: Answer | None) -> int | None:
    return answer.height if isinstance(answer, Recorded) else None


def _ended(answer: Answer) -> Ended:
    if isinstance(answer, Unknown):
        return Ended.UNKNOWN
    completed = isinstance(answer, Recorded) and answer.outcome == Outcome.COMPLETED
    return Ended.COMPLETED if completed else Ended.FAILED

"""Pools of source accounts, for senders that outgrow one chain.

All payments of one account are links of one chain, made one after the other. A sender that needs more opens several
accounts and spreads its payments over them:

| choice | account of the next payment |
|---|---|
| DEDICATED | worker i uses account i mod n: no two workers meet as long as there are as many accounts |
| LEAST_ACTIVE | the one with the fewest payments in flight, in order of the list when several have |
| TWO_CHOICES | of two different ones, drawn at random, the one with fewer in flight: nearly as even, and looks at two |
| ROUND_ROBIN | each in turn: for bulk, where requests are few and of one size |

A request is executed once *per account*. So a payment with a nonce of its own, which may be made again after a crash,
must come from the same account again. Either the nonce alone says which, by its hash: then the choice, the worker and
what is in flight are not looked at. (Of bulk the first request goes there, and the others to each account in turn.) Or
`choose` says which, the caller writes that down, and gives it to `pay` as `account`, then and whenever it pays again.

    pool = SourcePool(["payer-1", "payer-2"], Choice.LEAST_ACTIVE, random.Random(secrets.randbits(64)), max_failures=10)
    sender = PooledSender(client, pool, keys)
    pool.open_books(await sender.balances())
    answer = await sender.pay([Posting("bob", 1250)])
    outflow = pool.check_outflow(await sender.balances())
"""

import enum
import hashlib
import random
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.errors import LocalMisuse
from chain.link import Outcome
from chain.request import MAX_POSTINGS, Posting, RequestId, SignedRequest, transfer
from hopchain.bulk import MANY_IN_FLIGHT, TooManyFailures, checked_failures, submit_each
from hopchain.calls import checked_seconds
from hopchain.client import NONCE_BYTES, Client
from hopchain.errors import CallRefused, ClientError, Unreachable
from hopchain.signing import sign_request
from hopchain.submitting import Answer
from hopchain.wire import Balance, NotFound, Recorded, Stale, Unknown

DEFAULT_TIMEOUT_S: Final = 10.0
BALANCES_AT_ONCE: Final = 64  # half of the linearizable ones that a node has under way of one connection
SETTLED_AT_ONCE: Final = MANY_IN_FLIGHT
_TAG: Final = b"hopchain:bulk:1\0"
_FINAL: Final = (Recorded, Stale)  # whatever was answered before, and whoever else is asked


class Choice(enum.StrEnum):
    """Which account makes the next payment."""

    DEDICATED = "dedicated"
    LEAST_ACTIVE = "least-active"
    TWO_CHOICES = "two-choices"
    ROUND_ROBIN = "round-robin"


class Ended(enum.Enum):
    """How one payment ended, as far as is known."""

    COMPLETED = enum.auto()
    FAILED = enum.auto()  # no money moved by this call, and none will
    UNKNOWN = enum.auto()  # it may have been executed, or may yet: by this call, or an earlier one of the same request


class Outflow(msgspec.Struct, frozen=True):
    """What left the pool's accounts since its books were opened, beside what its payments that were completed since
    then add up to, in minor units. `unknown`: payments whose outcome is not known yet, `unknown_amount`: what they add
    up to."""

    paid: int
    left: int
    unknown: int
    unknown_amount: int

    @property
    def ok(self) -> bool:
        """True when exactly the completed payments left; with unknown ones, when the rest could be theirs."""
        return self.paid <= self.left <= self.paid + self.unknown_amount


class SourcePool:
    """Chooses accounts and counts; sends nothing by itself, so any client may be driven with it. One event loop or
    thread uses it at a time.

    `max_failures`: when more payments than this have ended as FAILED or UNKNOWN, `take` raises `TooManyFailures`;
    None: never.
    """

    def __init__(
        self, accounts: Sequence[str], choice: Choice, rng: random.Random, *, max_failures: int | None = None
    ) -> None:
        self.accounts = _checked_accounts(accounts)
        if not isinstance(choice, Choice):
            raise LocalMisuse(f"choice={choice!r}: give one of {', '.join(f'Choice.{each.name}' for each in Choice)}")
        self.choice = choice
        self.completed = 0
        self.failed = 0
        self.unknown = 0
        self._rng = rng
        self._max_failures = checked_failures(max_failures)
        self._turn = 0
        self._in_flight = dict.fromkeys(self.accounts, 0)
        self._most_in_flight = dict.fromkeys(self.accounts, 0)
        self._paid: Counter[str] = Counter()
        self._unknown_amount = 0
        self._before: dict[str, Balance] = {}

    @property
    def in_flight(self) -> Mapping[str, int]:
        """Payments of each account that have no outcome yet; a live view."""
        return MappingProxyType(self._in_flight)

    @property
    def most_in_flight(self) -> Mapping[str, int]:
        """The most payments of each account that were in flight at once; a live view."""
        return MappingProxyType(self._most_in_flight)

    @property
    def paid(self) -> Mapping[str, int]:
        """What each account's completed payments add up to, in minor units, without those of an earlier run when the
        books are open; a live view."""
        return MappingProxyType(self._paid)

    def take(self, worker: int = 0, nonce: bytes | None = None) -> str:
        """The account of the next payment, counted as in flight until `ended`. `worker` matters for DEDICATED only;
        with a nonce it is the account which that names, and nothing else matters. Raises `TooManyFailures`."""
        self.check_failures()
        account = self.choose(worker, nonce)
        self.begin(account)
        return account

    def check_failures(self) -> None:
        """Raises `TooManyFailures` when more payments have ended without success than `max_failures`."""
        failures = self.failed + self.unknown
        if self._max_failures is not None and failures > self._max_failures:
            raise TooManyFailures(
                f"{failures} payments failed ({self.unknown} without an outcome), more than {self._max_failures}: "
                "look at their answers, then go on with a new pool"
            )

    def check_account(self, account: str) -> None:
        """`LocalMisuse` when it is not in the pool."""
        if account not in self._in_flight:
            raise LocalMisuse(f"{account!r} is none of the {len(self.accounts)} accounts of this pool")

    def choose(self, worker: int = 0, nonce: bytes | None = None) -> str:
        """The account that `take` would give now; counts nothing. For who must remember the choice before it pays:
        `begin` follows, or `PooledSender.pay` with this account. What is chosen meanwhile does not know of it, so do
        not let other tasks run in between."""
        return self._choose(worker, self._in_flight) if nonce is None else self.accounts[self._place(nonce)]

    def choose_each(self, number: int, nonce: bytes | None = None) -> list[str]:
        """The accounts of so many payments, the i-th by worker i, spread as if all were in flight together; counts
        nothing. `begin` follows for each when it is sent. A nonce for all of them names the account of the first, and
        the others follow in the order of the list, whatever the choice."""
        if nonce is not None:
            first = self._place(nonce)
            return [self.accounts[(first + i) % len(self.accounts)] for i in range(number)]
        load = dict(self._in_flight)
        chosen = []
        for worker in range(number):
            account = self._choose(worker, load)
            load[account] += 1
            chosen.append(account)
        return chosen

    def begin(self, account: str) -> None:
        """A payment of this account of the pool is in flight until `ended`."""
        self.check_account(account)
        self._in_flight[account] += 1
        self._most_in_flight[account] = max(self._most_in_flight[account], self._in_flight[account])

    def ended(self, account: str, amount: int, how: Ended, height: int | None = None) -> None:
        """A payment of `amount` minor units by an account from `take` has ended. `height`: of the link that has it, for
        who compares the outflow; without it a completed payment counts as one of this run."""
        self.check_account(account)
        if self._in_flight[account] < 1:
            raise LocalMisuse(f"{account} has no payment in flight: call `ended` once for each `take`")
        self._in_flight[account] -= 1
        match how:
            case Ended.COMPLETED:
                self.completed += 1
                if height is None or self.is_new(account, height):
                    self._paid[account] += amount
            case Ended.FAILED:
                self.failed += 1
            case Ended.UNKNOWN:
                self.unknown += 1
                self._unknown_amount += amount

    def settled(self, account: str, amount: int, how: Ended, height: int | None = None) -> None:
        """The outcome of a payment that had ended as UNKNOWN is known now."""
        self.check_account(account)
        if self.unknown < 1 or how is Ended.UNKNOWN:
            raise LocalMisuse(f"{self.unknown} payments are unknown, and one of {account} is said to be {how.name}")
        self.unknown -= 1
        self._unknown_amount -= amount
        self._in_flight[account] += 1
        self.ended(account, amount, how, height)

    # --- the books ---------------------------------------------------------------------------------------------

    def open_books(self, before: Mapping[str, Balance]) -> None:
        """Note what all accounts of the pool have before its first payment, as a majority of the nodes knows it. A
        payment whose link is not higher than its account is here was paid by an earlier run: it is completed, and not
        in `paid`. (`repeated` would not tell: a lost answer comes back as repeated, and a node that lags calls an old
        one fresh.) `LocalMisuse` when a balance is missing or a payment was begun."""
        self._check_all_there(before)
        if any(self._most_in_flight.values()):
            raise LocalMisuse("payments of this pool were begun already: open its books before the first one")
        self._before = {account: before[account] for account in self.accounts}

    def is_new(self, account: str, height: int) -> bool:
        """This link of the account is not in what it had when the books were opened; True for every link before."""
        before = self._before.get(account)
        return before is None or height > before.height

    def check_outflow(self, after: Mapping[str, Balance]) -> Outflow:
        """Compare what all accounts of the pool have after its payments, as a majority knows it, with what they had
        when its books were opened, when nothing is in flight and nobody else pays from or to them."""
        waiting = sum(self._in_flight.values())
        if waiting:
            raise LocalMisuse(f"{waiting} payments are in flight: wait for their answers before comparing balances")
        if not self._before:
            raise LocalMisuse("the books of this pool were not opened: call `open_books` before its first payment")
        self._check_all_there(after)
        left = sum(_available(self._before[account]) - _available(after[account]) for account in self.accounts)
        return Outflow(self._paid.total(), left, self.unknown, self._unknown_amount)

    def _check_all_there(self, balances: Mapping[str, Balance]) -> None:
        missing = [account for account in self.accounts if account not in balances]
        if missing:
            raise LocalMisuse(f"{len(missing)} accounts of the pool have no balance here, the first is {missing[0]}")

    def _choose(self, worker: int, load: Mapping[str, int]) -> str:
        count = len(self.accounts)
        match self.choice:
            case Choice.DEDICATED:
                return self.accounts[_checked_worker(worker) % count]
            case Choice.LEAST_ACTIVE:
                return min(self.accounts, key=load.__getitem__)
            case Choice.TWO_CHOICES:
                drawn = self._rng.sample(self.accounts, min(2, count))
                return min(drawn, key=load.__getitem__)
            case Choice.ROUND_ROBIN:
                account = self.accounts[self._turn]
                self._turn = (self._turn + 1) % count
                return account

    def _place(self, nonce: bytes) -> int:
        """Of the account that a nonce names."""
        _check_nonce(nonce)
        return int.from_bytes(hashlib.sha256(nonce).digest()[:8], "big") % len(self.accounts)


def _checked_accounts(given: Sequence[str]) -> tuple[str, ...]:
    if isinstance(given, str | bytes):
        raise LocalMisuse(f"the accounts of a pool are {str(given)[:80]!r}, which is one text: give a list of names")
    accounts = tuple(given)
    wrong = next((account for account in accounts if not isinstance(account, str)), None)
    if wrong is not None:
        raise LocalMisuse(f"{wrong!r} is no name of an account: it is {type(wrong).__name__}, and a name is text")
    if not accounts or len(set(accounts)) != len(accounts):
        raise LocalMisuse(
            f"a pool needs at least one account and each once; these are {len(accounts)}, {len(set(accounts))} different"
        )
    return accounts


def _checked_worker(worker: int) -> int:
    if isinstance(worker, int) and worker >= 0:
        return worker
    raise LocalMisuse(f"worker={worker!r}: give the worker's number, 0 or more")


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
            _check_nonce(nonce)
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
            if how is Ended.UNKNOWN:
                self._doubts[payment.signed.request_id] = _Doubt(payment, sent)
            self._pool.ended(payment.account, payment.amount, how, _height(answer))

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
                self._pool.settled(payment.account, payment.amount, _ended(answer), _height(answer))

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


def _check_nonce(nonce: bytes) -> None:
    if not isinstance(nonce, bytes) or len(nonce) != NONCE_BYTES:
        given = (
            f"a nonce of {len(nonce)} bytes" if isinstance(nonce, bytes) else f"a nonce that is {type(nonce).__name__}"
        )
        raise LocalMisuse(f"{given}: it has {NONCE_BYTES} bytes")


def _nonce_of_part(nonce: bytes, number: int) -> bytes:
    return hashlib.sha256(_TAG + nonce + number.to_bytes(8, "big")).digest()


def _available(balance: Balance) -> int:
    return balance.settled + balance.incoming


def _height(answer: Answer | None) -> int | None:
    return answer.height if isinstance(answer, Recorded) else None


def _ended(answer: Answer) -> Ended:
    if isinstance(answer, Unknown):
        return Ended.UNKNOWN
    completed = isinstance(answer, Recorded) and answer.outcome == Outcome.COMPLETED
    return Ended.COMPLETED if completed else Ended.FAILED

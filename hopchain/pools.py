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
    sender = PooledSender(client, pool, keys)  # hopchain.pooled
    pool.open_books(await sender.balances())
    answer = await sender.pay([Posting("bob", 1250)])
    outflow = pool.check_outflow(await sender.balances())
"""

import enum
import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec

from chain.errors import LocalMisuse
from hopchain.bulk import TooManyFailures, checked_failures
from hopchain.client import NONCE_BYTES
from hopchain.wire import Balance


class Choice(enum.StrEnum):
    """Which account makes the next payment."""

    DEDICATED = "dedicated"
    LEAST_ACTIVE = "least-active"
    TWO_CHOICES = "two-choices"
    ROUND_ROBIN = "round-robin"


class Ended(enum.Enum):
    """How one payment ended, as far as is known."""

    COMPLETED = enum.auto()
    FAILED = (
        enum.auto()
    )  # no money moved by this call, and none will; or its payment was paid again, and that call tells
    UNKNOWN = enum.auto()  # it may have been executed, or may yet: by this call, or an earlier one of the same request
    REPEATED = enum.auto()  # a payment that is completed, and counted as that, was paid again; no money moved


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
        """A payment of `amount` minor units that was begun (`take` or `begin`) for this account has ended. `height`: of
        the link that has it, for who compares the outflow; without it a completed payment counts as one of this
        run."""
        self.check_account(account)
        if self._in_flight[account] < 1:
            raise LocalMisuse(
                f"{account} has no payment in flight: call `ended` once for each payment begun (`take` or `begin`)"
            )
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
            case Ended.REPEATED:
                pass

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
        check_nonce(nonce)
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


def check_nonce(nonce: bytes) -> None:
    """`LocalMisuse` when it is none."""
    if not isinstance(nonce, bytes) or len(nonce) != NONCE_BYTES:
        given = (
            f"a nonce of {len(nonce)} bytes" if isinstance(nonce, bytes) else f"a nonce that is {type(nonce).__name__}"
        )
        raise LocalMisuse(f"{given}: it has {NONCE_BYTES} bytes")


def _available(balance: Balance) -> int:
    return balance.settled + balance.incoming

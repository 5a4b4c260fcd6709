"""What `hopchain bench` pays: which account pays which, drawn from a seed. Pure; accounts are numbers from 0 on."""

import enum
import random
from bisect import bisect_left
from itertools import accumulate
from typing import Final

from chain.errors import LocalMisuse
from chain.request import MAX_POSTINGS
from hopchain.pools import Choice, SourcePool

HOT: Final = 0  # the account that everybody pays, or that pays everybody
ZIPF_EXPONENT: Final = 1.0


class Profile(enum.StrEnum):
    """The traffic of one run."""

    UNIFORM = "uniform"
    ZIPF = "zipf"
    HOT_RECIPIENT = "hot-recipient"
    HOT_SENDER = "hot-sender"
    POOL = "pool"
    BULK = "bulk"
    READ = "read"


MEANING: Final[dict[Profile, str]] = {
    Profile.UNIFORM: "any account pays any other",
    Profile.ZIPF: "payers and payees drawn by Zipf's law, exponent 1.0",
    Profile.HOT_RECIPIENT: "any account pays one account",
    Profile.HOT_SENDER: "one account pays any other",
    Profile.POOL: "a pool of source accounts pays any other",
    Profile.BULK: f"any account pays {MAX_POSTINGS} postings in one request (--batch)",
    Profile.READ: "balances of any account, from the replica of the node asked",
}


def postings_of(profile: Profile, batch: int | None) -> int:
    """Postings of one request: `batch`, or the profile's default. `LocalMisuse` for one that no request holds."""
    count = batch if batch is not None else MAX_POSTINGS if profile is Profile.BULK else 1
    if not 1 <= count <= MAX_POSTINGS:
        raise LocalMisuse(f"a batch of {count} postings: a request holds 1 to {MAX_POSTINGS}")
    if profile is Profile.READ and count != 1:
        raise LocalMisuse("a balance is read one at a time: leave --batch out for read")
    return count


class Zipf:
    """Draws numbers 0..count-1, number i with a weight of 1 / (i + 1) ** s."""

    def __init__(self, count: int, s: float = ZIPF_EXPONENT) -> None:
        self._sums = list(accumulate((i + 1) ** -s for i in range(count)))

    def draw(self, rng: random.Random) -> int:
        """One number."""
        return bisect_left(self._sums, rng.random() * self._sums[-1])


class Draw:
    """Draws senders and recipients. `pool`: the source accounts of POOL, as numbers in text."""

    def __init__(self, profile: Profile, accounts: int, rng: random.Random, pool: SourcePool | None = None) -> None:
        if accounts < 2:
            raise LocalMisuse(f"{accounts} accounts cannot pay each other: at least 2 are needed")
        assert (pool is not None) is (profile is Profile.POOL)
        self._profile = profile
        self._accounts = accounts
        self._rng = rng
        self._pool = pool
        self._zipf = Zipf(accounts) if profile is Profile.ZIPF else None

    def sender(self, worker: int) -> int:
        """Who pays next; of a pool, counted there as in flight."""
        if self._pool is not None:
            return int(self._pool.take(worker))
        if self._profile is Profile.HOT_SENDER:
            return HOT
        if self._profile is Profile.HOT_RECIPIENT:
            return self._other(HOT)
        return self.any()

    def recipient(self, sender: int) -> int:
        """Whom `sender` pays."""
        if self._profile is Profile.HOT_RECIPIENT:
            return HOT
        return self._other(sender)

    def any(self) -> int:
        """Any account, by the profile's law."""
        return self._rng.randrange(self._accounts) if self._zipf is None else self._zipf.draw(self._rng)

    def _other(self, account: int) -> int:
        while (found := self.any()) == account:
            pass
        return found


def make_pool(sources: int, choice: Choice, rng: random.Random, max_failures: int | None, first: int = 0) -> SourcePool:
    """The pool of POOL: accounts 0..sources-1. It begins with `first`, after those of the generators before: where each
    began with 0, the clients of all would meet there."""
    accounts = [str((first + number) % sources) for number in range(sources)]
    return SourcePool(accounts, choice, rng, max_failures=max_failures)

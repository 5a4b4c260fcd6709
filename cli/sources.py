"""Pools of payers on the command line: which account pays each row of a payer that has several (`pay --pool
NAME=a,b,c`).

A request is executed once *per account*. So which account a row was sent from is remembered in the wallet before the
request leaves (cli.remembered), one line each time, and what is remembered is stronger than any option: another
`--choice`, another list of accounts or a run without the pool never sends such a row from another account. The newest
line of a row says where it is now; there is a newer one only after every older request got its final answer, which was
not `completed`.

The nonce of a row is made of the row, not of the account: nonce number n belongs to its line number n.

With `dedicated` the accounts, also those after one that has too little, are a function of the row and the pool's list,
so another wallet with the same list makes the same requests. The other choices live from what is remembered alone.
"""

import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from chain.errors import LocalMisuse
from cli.command import checked_name
from cli.payfile import Payment, payment_key
from cli.remembered import Remembered
from hopchain import Choice, SourcePool

FIXED: Final = frozenset({Choice.DEDICATED, Choice.ROUND_ROBIN})  # who pays depends on nothing that happens in the run
_DIRECTORY: Final = "sources"

Pools = Mapping[str, tuple[str, ...]]


class _Line(msgspec.Struct, frozen=True):
    row: str
    account: str


class Sources:
    """The pools of one run, and what is remembered of its rows."""

    def __init__(self, wallet_directory: Path, label: str, pools: Pools, choice: Choice, rng: random.Random) -> None:
        self.choice = choice
        self.pools = {name: SourcePool(accounts, choice, rng) for name, accounts in pools.items()}
        self._where = {account: pool for pool in self.pools.values() for account in pool.accounts}
        self._file = Remembered(wallet_directory / _DIRECTORY, (label,), _Line)
        self._of: dict[str, list[str]] = defaultdict(list)
        self._note(self._file.lines)

    @property
    def accounts(self) -> list[str]:
        """All accounts of all pools."""
        return list(self._where)

    def pool(self, payment: Payment) -> SourcePool | None:
        """The pool that pays this row; None when its payer is an account."""
        return self.pools.get(payment.sender)

    def pool_of(self, account: str) -> SourcePool | None:
        """The pool that this account is in."""
        return self._where.get(account)

    def tried(self, row: str) -> Sequence[str]:
        """The accounts that a row, by its key, was to be sent from, oldest first."""
        return self._of.get(row, ())

    def choose(self, pool: SourcePool, row: str) -> str:
        """The account of a row, or of a request that begins with it. Nothing is remembered."""
        return pool.choose(nonce=bytes.fromhex(row) if self.choice is Choice.DEDICATED else None)

    def remember(self, chosen: Iterable[tuple[str, str]]) -> None:
        """Remember (row's key, account), durably."""
        lines = [_Line(row, account) for row, account in chosen]
        if lines:
            self._file.add(*lines)
            self._note(lines)

    def _note(self, lines: Sequence[_Line]) -> None:
        for line in lines:
            self._of[line.row].append(line.account)


def in_this_round(accounts: Sequence[str]) -> set[str]:
    """The accounts since the row began to go round again (--retry-rejected)."""
    tried: set[str] = set()
    for account in accounts:
        if account in tried:
            tried = set()
        tried.add(account)
    return tried


def another(pool: SourcePool, last: str, tried: Collection[str]) -> str | None:
    """The account after `last` had too little: one that was not tried yet, the least busy one, in the order of the list
    from `last` on. `dedicated` looks at the order alone."""
    at = pool.accounts.index(last) + 1 if last in pool.accounts else 0
    left = [account for account in pool.accounts[at:] + pool.accounts[:at] if account not in tried]
    if not left:
        return None
    return left[0] if pool.choice is Choice.DEDICATED else min(left, key=pool.in_flight.__getitem__)


def parse_pools(texts: Sequence[str]) -> Pools:
    """NAME=account,account,... of each `--pool`. `LocalMisuse` when an account or a name stands there twice."""
    pools: dict[str, tuple[str, ...]] = {}
    where: dict[str, str] = {}
    for text in texts:
        name, equals, listed = text.partition("=")
        accounts = tuple(account.strip() for account in listed.split(",")) if listed.strip() else ()
        if not equals or not accounts:
            raise LocalMisuse(f"{text[:80]!r} is not a pool: write NAME=account,account,...")
        checked_name(name)
        if name in pools:
            raise LocalMisuse(f"pool {name} is given twice: list all its accounts in one --pool")
        for account in accounts:
            checked_name(account)
            if account in where:
                raise LocalMisuse(f"{account} is in pool {where[account]} already: an account is in one pool, and once")
            where[account] = name
        pools[name] = accounts
    return pools


def check_pools(pools: Pools, rows: Sequence[Payment], fund_from: str | None) -> None:
    """Refuse pools whose outflow could not be told from other payments of the file. Raises `LocalMisuse`."""
    where = {account: name for name, accounts in pools.items() for account in accounts}
    payers = {payment.sender for payment in rows}
    for name in pools:
        if name not in payers:
            raise LocalMisuse(
                f"pool {name} pays no row: no payer of the file is called {name}. A payer's name begins with what --from-prefix says"
            )
    for payment in rows:
        if payment.sender in where and payment.sender not in pools:
            raise LocalMisuse(
                f"line {payment.line} is paid by {payment.sender}, which is in pool {where[payment.sender]}: put such rows in "
                "a file of their own, or leave the account out of the pool"
            )
        if payment.recipient in where or payment.recipient in pools:
            name = where.get(payment.recipient, payment.recipient)
            raise LocalMisuse(
                f"line {payment.line} pays {payment.recipient}, of pool {name}: put rows that pay a pool in a file of their own"
            )
    if fund_from in where:
        raise LocalMisuse(
            f"{fund_from} is in pool {where[str(fund_from)]}: fund the pool from an account outside of it"
        )


def sent_elsewhere(sources: Sources, rows: Sequence[Payment]) -> int:
    """How many rows were sent from a pool's account before, and have no pool now."""
    return sum(not p.fault and sources.pool(p) is None and bool(sources.tried(payment_key(p))) for p in rows)

"""The books of a run's pools: what each account paid, and that exactly this left the accounts.

Balances are read before the first row is sent and after the last answer, as a majority knows them. A row that an
earlier run paid is in no difference (`SourcePool.open_books`).
"""

from collections import Counter

from chain.errors import LocalMisuse
from chain.link import Outcome
from cli.money import format_amount
from cli.output import CommandFailed, Exit, JsonValue, Output, counted
from cli.sources import Sources
from hopchain import (
    Answer,
    Balance,
    Client,
    ClientError,
    Ended,
    NotFound,
    NotStarted,
    Outflow,
    Recorded,
    SourcePool,
    Unknown,
)
from hopchain.workers import work_on_each


class PoolBooks:
    """What the pools of one run did. `begin` and `ended` are called for each request."""

    def __init__(self, sources: Sources, asset: str, scale: int) -> None:
        self._sources = sources
        self._asset = asset
        self._scale = scale
        self._before: dict[str, Balance] = {}
        self._after: dict[str, Balance] = {}
        self._completed: Counter[str] = Counter()  # requests of this run
        self._refused: Counter[str] = Counter()  # requests that the account had not enough for
        self._blurred: set[str] = set()  # accounts that may have paid requests of unknown amounts in this run

    def begin(self, account: str) -> None:
        """A request of this account leaves. Those of an account that is in no pool any more are not counted."""
        pool = self._sources.pool_of(account)
        if pool is not None:
            pool.begin(account)

    def ended(self, account: str, amount: int, answer: Answer | None) -> None:
        """It has this answer, or none."""
        pool = self._sources.pool_of(account)
        if pool is None:
            return
        how, height = Ended.FAILED, None
        if answer is None or isinstance(answer, Unknown | NotStarted):  # an earlier try of it may still execute
            how = Ended.UNKNOWN
        elif isinstance(answer, Recorded) and answer.completed:
            how = Ended.COMPLETED
            height = answer.height
            self._completed[account] += pool.is_new(account, height)
        elif isinstance(answer, Recorded) and answer.outcome == Outcome.INSUFFICIENT_FUNDS:
            self._refused[account] += 1
        pool.ended(account, amount, how, height)

    def withdrawn(self, account: str) -> None:
        """A request that was begun has not left and will not."""
        pool = self._sources.pool_of(account)
        if pool is not None:
            pool.ended(account, 0, Ended.FAILED)

    def abandon(self) -> None:
        """The run ends: requests that were begun and have no answer have not left, for those that had are ended."""
        for account in self._sources.accounts:
            pool = self._sources.pool_of(account)
            while pool is not None and pool.in_flight[account]:
                self.withdrawn(account)

    def may_have_paid(self, account: str, height: int | None) -> None:
        """An earlier request, of rows that are not all in the file any more, was executed as link `height` of its
        account, or may be (None), also one that this run does not ask for. When that can be in this run, what left the
        account is not comparable: it is not known what the request paid now."""
        before = self._before.get(account)
        if before is not None and (height is None or height > before.height):
            self._blurred.add(account)

    async def existing(self, client: Client, at_once: int, timeout_s: float) -> list[str]:
        """Those of the accounts that exist. Raises as `open`, but not for one that does not exist."""
        found = await self._read(client, at_once, timeout_s)
        return [account for account, answer in found.items() if self._fit(account, answer) is not None]

    async def open(self, client: Client, at_once: int, timeout_s: float) -> None:
        """Read all balances before the first payment. Raises `LocalMisuse` when an account does not exist or holds
        another asset, `CommandFailed` when that is not known, `Unreachable`."""
        found = await self._read(client, at_once, timeout_s)
        for account, answer in found.items():
            balance = self._fit(account, answer)
            if balance is None:
                raise LocalMisuse(f"there is no account {account}, which is in a pool: open it, or use --open-missing")
            self._before[account] = balance
        for pool in self._sources.pools.values():
            pool.open_books(self._before)

    async def close(self, client: Client, at_once: int, timeout_s: float) -> None:
        """Read all balances after the last answer; what cannot be read is not compared."""
        found: dict[str, Balance | NotFound | Unknown] = {}
        try:
            found = await self._read(client, at_once, timeout_s)
        except* ClientError:
            pass  # the payments have their answers; `ok` is then null
        self._after = {account: answer for account, answer in found.items() if isinstance(answer, Balance)}

    @property
    def mismatch(self) -> bool:
        """True when something else left a pool than what it paid."""
        return any(
            outflow is not None and not outflow.ok for outflow in map(self._outflow, self._sources.pools.values())
        )

    def document(self) -> list[JsonValue]:
        """The books of each pool."""
        return [self._pool_document(name, pool) for name, pool in self._sources.pools.items()]

    def show(self, out: Output) -> None:
        """The same for people."""
        for name, pool in self._sources.pools.items():
            out.say(f"pool {name}, {pool.choice.value}:")
            out.table(
                ["account", "payments", "paid", "most in flight", "too little there"],
                [
                    [a, str(self._completed[a]), self._money(pool.paid.get(a, 0)), str(pool.most_in_flight[a]), str(self._refused[a])]
                    for a in pool.accounts
                ],
                right=["payments", "paid", "most in flight", "too little there"],
            )  # fmt: skip
            outflow = self._outflow(pool)
            if outflow is None:
                out.say(f"  {self._why(pool)}", colour="yellow")
            elif outflow.ok and not outflow.unknown:
                out.say(f"  {self._money(outflow.left)} left it: what was paid", colour="green")
            elif outflow.ok:
                out.say(
                    f"  {self._money(outflow.left)} left it, {self._money(outflow.paid)} were paid, and the outcome of "
                    f"{counted(outflow.unknown, 'request')} of {self._money(outflow.unknown_amount)} is not known: run it again",
                    colour="yellow",
                )
            else:
                out.say(f"  {self._not_so(outflow)}", colour="red", bold=True)

    def mismatches(self) -> list[str]:
        """What to tell when the run ended before its books are shown: one text for each pool that something else
        left."""
        outflows = [(name, self._outflow(pool)) for name, pool in self._sources.pools.items()]
        return [f"pool {name}: {self._not_so(o)}" for name, o in outflows if o is not None and not o.ok]

    def _not_so(self, outflow: Outflow) -> str:
        return (
            f"NOT SO: {self._money(outflow.left)} left it, and {self._money(outflow.paid)} were paid: somebody else "
            "pays from or to its accounts, or a request of an earlier run whose row is not in this file any more arrived"
        )

    def _why(self, pool: SourcePool) -> str:
        """Why what left a pool is not compared."""
        if not self._blurred.intersection(pool.accounts):
            return "what left it could not be read, so it is not compared with what was paid"
        named = ", ".join(sorted(self._blurred.intersection(pool.accounts)))
        return (
            f"an earlier request of {named} paid in this run, or may yet, and its rows are not all in this file, or it was not "
            "asked for in this run: what left it is not compared with what was paid"
        )

    def _fit(self, account: str, answer: Balance | NotFound | Unknown) -> Balance | None:
        """What an account of a pool has; None when it does not exist. Raises as `open`."""
        if isinstance(answer, NotFound) and not answer.stale:
            return None
        if not isinstance(answer, Balance):
            why = answer.reason if isinstance(answer, Unknown) else "who answered may be behind the others"
            raise CommandFailed(
                Exit.UNREACHABLE,
                "unknown",
                f"whether {account}, which is in a pool, exists is not known: {why}. No row was paid in this run: run it again",
            )
        if answer.asset != self._asset:
            raise LocalMisuse(f"{account}, which is in a pool, holds {answer.asset}, and this run pays {self._asset}")
        return answer

    async def _read(self, client: Client, at_once: int, timeout_s: float) -> dict[str, Balance | NotFound | Unknown]:
        found: dict[str, Balance | NotFound | Unknown] = {}

        async def ask(account: str) -> None:
            found[account] = await client.balance(account, linearizable=True, timeout_s=timeout_s)

        await work_on_each(self._sources.accounts, ask, at_once=at_once)
        return found

    def _outflow(self, pool: SourcePool) -> Outflow | None:
        if self._blurred.intersection(pool.accounts):
            return None
        if not all(account in self._before and account in self._after for account in pool.accounts):
            return None
        return pool.check_outflow(self._after)

    def _pool_document(self, name: str, pool: SourcePool) -> JsonValue:
        outflow = self._outflow(pool)
        return {
            "name": name,
            "choice": pool.choice.value,
            "accounts": [
                {
                    "account": account,
                    "completed": self._completed[account],
                    "paid": pool.paid.get(account, 0),
                    "insufficient_funds": self._refused[account],
                    "in_flight": pool.in_flight[account],
                    "most_in_flight": pool.most_in_flight[account],
                }
                for account in pool.accounts
            ],
            "paid": sum(pool.paid.values()),
            "left": outflow.left if outflow else None,
            "unknown": pool.unknown,
            "unknown_amount": outflow.unknown_amount if outflow else None,
            "ok": outflow.ok if outflow else None,
            "why": None if outflow else self._why(pool),
        }

    def _money(self, amount: int) -> str:
        return format_amount(amount, self._scale, self._asset, grouped=True)

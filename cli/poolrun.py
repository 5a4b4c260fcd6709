"""`hopchain pay --pool`: rows of one payer, paid one by one from several accounts (cli.sources has the rules).

* `dedicated` and `round-robin`: all rows get their account, in one write, before any is sent.
* `least-active` and `two-choices`: a row gets its account when its turn comes. Rows whose turn comes at the same time
  share one write.
* An account that answers `insufficient_funds` will never make that request, for this answer is final. Only then, and
  after that is remembered, the row is sent from one that it was not sent from yet (cli.sources.another). When all had
  too little, the row is rejected.
* `--retry-rejected` begins with the account that the row was sent from last, and then goes round again.
"""

import anyio.lowlevel

from chain.errors import LocalMisuse
from chain.link import Outcome
from chain.request import NetworkId, SignedRequest, encode_request, request_id
from cli.funding import FundedRows
from cli.money import format_amount
from cli.payfile import Payment, payment_key
from cli.payplan import MAX_ATTEMPTS, Plan
from cli.payrequests import pooled_request, row_request
from cli.payresult import RowResult, result_of
from cli.payrun import PayRun, doubt
from cli.sources import FIXED, another, in_this_round
from hopchain import Answer, Client, Recorded, sign_request


class PoolRun(PayRun):
    """The run of a payment file some of whose payers are pools."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._wanted: list[tuple[int, str | None]] = []  # rows that wait for an account, or for this one
        self._fixed: dict[int, SignedRequest] = {}  # rows that have one: what leaves next

    def check(self, network: NetworkId) -> None:
        super().check(network)
        fresh = [
            p for p in self.rows if not p.fault and self._sources.pool(p) and not self._sources.tried(payment_key(p))
        ]
        alone = {request_id(encode_request(row_request(network, self.settings.label, p, 0))).hex() for p in fresh}
        if known := self._wallet.recorded(alone):
            raise LocalMisuse(
                f"{len(known)} rows of run {self.settings.label!r} were sent without --pool before, from an account of that name: "
                "run it again without --pool, which pays nothing twice"
            )
        if self.settings.fund_from is not None:
            funded = FundedRows(self._wallet.directory, self.settings.label, self.settings.fund_from).rows
            if count := sum(payment_key(p) in funded for p in fresh):
                raise LocalMisuse(
                    f"{count} rows of run {self.settings.label!r} were funded without --pool before, so the money is not in the "
                    "pool's accounts: run it again without --pool, or as another run with --run"
                )

    async def _open_books(self, client: Client) -> None:
        await super()._open_books(client)
        if self._sources.choice in FIXED:
            chosen: list[tuple[str, str]] = []
            for payment in self.rows:
                pool, row = self._sources.pool(payment), payment_key(payment)
                if pool is not None and not payment.fault and not self._sources.tried(row):
                    chosen.append((row, self._sources.choose(pool, row)))
            self._sources.remember(chosen)

    def _first(self, client: Client, payment: Payment) -> SignedRequest | RowResult | None:
        if self._sources.pool(payment) is None:
            return super()._first(client, payment)
        cannot = self._cannot(payment)
        if cannot is not None:
            return self._not_now(payment, cannot)
        return self._newest(client, payment) if self._sources.tried(payment_key(payment)) else None

    def _newest(self, client: Client, payment: Payment) -> SignedRequest:
        """The request that the newest line of this row makes."""
        accounts = self._sources.tried(payment_key(payment))
        request = pooled_request(client.network, self.settings.label, payment, accounts)
        return sign_request(request, self._keys.key(accounts[-1]))

    async def _pay_row(self, client: Client, index: int, signed: SignedRequest | None) -> RowResult:
        payment = self.rows[index]
        pool = self._sources.pool(payment)
        if pool is None:
            return await super()._pay_row(client, index, signed)
        row = payment_key(payment)
        if signed is None:
            signed = await self._fix(client, index, None)
        else:
            self.books.begin(self._sources.tried(row)[-1])
        tried = in_this_round(self._sources.tried(row))
        short: list[str] = []
        for number in range(MAX_ATTEMPTS):
            account = self._sources.tried(row)[-1]
            answer = await self._ask(client, index, account, signed)
            if not isinstance(answer, Recorded) or answer.completed or number == MAX_ATTEMPTS - 1:
                break
            following: str | None = None
            if answer.outcome == Outcome.INSUFFICIENT_FUNDS:
                short.append(f"{account} had {self._money(answer.balance)}")
                tried.add(account)
                following = another(pool, account, tried)
            if following is None and self.settings.retry_rejected and answer.repeated:
                tried = set()
                following = account if account in pool.accounts else self._sources.choose(pool, row)
            if following is None:
                break
            signed = await self._fix(client, index, following)
        result = result_of(answer, signed.request_id, account)
        if short:
            told = f"{self._money(payment.amount)} were to be paid, and {', '.join(short)}"
            result.reason = f"{told}. {result.reason}" if result.reason else f"{told}; {account} paid"
        return result

    async def _ask(self, client: Client, index: int, account: str, signed: SignedRequest) -> Answer:
        """Submit the request of a row, whose account has one more in flight until its answer is here."""
        self.results[index] = doubt(signed, account)
        answer: Answer | None = None
        try:
            answer = await self._until_known(client, signed)
            return answer
        finally:
            self.books.ended(account, self.rows[index].amount, answer)

    async def _fix(self, client: Client, index: int, account: str | None) -> SignedRequest:
        """The next request of a row, from `account` or one that the pool chooses; remembered when this returns."""
        self._wanted.append((index, account))
        await anyio.lowlevel.checkpoint()  # rows whose turn comes now share a write
        if self._wanted:
            self._remember_wanted(client)
        return self._fixed.pop(index)

    def _remember_wanted(self, client: Client) -> None:
        """Choose accounts, remember them, and then what they make of the rows. When that fails, who asks next tries
        again."""
        chosen: list[tuple[int, str]] = []
        for index, account in self._wanted:
            payment = self.rows[index]
            pool = self._sources.pool(payment)
            assert pool is not None
            source = account or self._sources.choose(pool, payment_key(payment))
            self.books.begin(source)
            chosen.append((index, source))
        self._sources.remember((payment_key(self.rows[index]), source) for index, source in chosen)
        made = {index: self._newest(client, self.rows[index]) for index, _ in chosen}
        self._wallet.record((made[index].request_id, source, "pay") for index, source in chosen)
        self._fixed |= made
        self._wanted.clear()

    def _money(self, amount: int) -> str:
        return format_amount(amount, self.settings.scale, self.settings.asset, grouped=True)

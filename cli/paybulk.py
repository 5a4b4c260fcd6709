"""`hopchain pay --bulk`: many rows of one payer become one request, which is one link: by far the cheapest per row.

A request is paid all or not at all, and one that fails stops no other. With `--atomic` the whole file is one request.
Which rows go together is said by cli.paybatches; this module sends them, and cancels the batches that are given up. For
which rows a request was rejected is found by cli.paycauses.

Rows that were sent one by one are refused, as are rows of a bulk run that are to be sent one by one.

Rows of a pool (cli.sources) are cut as those of any payer, and each request gets an account of the pool, which its
batch remembers. When that has too little, which is a final answer, the rows make a new batch from an account that they
were not in a request of.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

import msgspec

from chain.errors import LocalMisuse
from chain.link import Outcome
from chain.names import MAX_AMOUNT
from chain.request import MAX_POSTINGS, NetworkId, RequestId, encode_request, request_id
from cli.batches import Batch
from cli.output import CommandFailed, Exit
from cli.paybatches import Part, RunBatches, cut
from cli.paycauses import RecipientCauses
from cli.payfile import payment_key
from cli.payplan import MAX_ATTEMPTS, Plan
from cli.payrequests import row_request
from cli.payresult import RowResult, not_sent, result_of, row_text
from cli.payrun import PayRun, doubt
from cli.receipt import answer_name
from cli.sources import another, in_this_round
from hopchain import Answer, Client, Recorded
from hopchain.workers import work_on_each

_OF_A_RECIPIENT: Final = frozenset({"unknown_recipient", "asset_mismatch"})


class BulkRun(PayRun):
    """The run of a payment file in as few requests as can be; `atomic`: in one."""

    atomic = False

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._plan = plan
        self._causes = RecipientCauses(plan)

    def check(self, network: NetworkId) -> None:
        if self.atomic:
            self._check_atomic()
        self._journal = self._wallet.all_recorded()
        self._check_pools()
        self._check_funder()
        if self._sources.pools and self.settings.fund_from:
            raise LocalMisuse(
                "--fund-from does not know which account of a pool will pay which rows of --bulk: transfer to them first"
            )
        alone_now = [p for p in self.rows if not p.fault and self._sources.pool(p) is None]
        batches = [(p.sender, self._sent.of.get(payment_key(p))) for p in alone_now]
        self._refuse_sent_from_pool(sum(batch is not None and batch.sender != payer for payer, batch in batches))
        fresh = [p for p in self.rows if not p.fault and payment_key(p) not in self._sent.of]
        alone = {request_id(encode_request(row_request(network, self.settings.label, p, 0))).hex() for p in fresh}
        moved = sum(bool(self._sources.tried(payment_key(p))) for p in fresh)
        if known := len(self._wallet.recorded(alone)) + moved:
            raise LocalMisuse(
                f"{known} rows of run {self.settings.label!r} were sent one by one before: run it again without --bulk, "
                "which pays nothing twice"
            )

    def _check_atomic(self) -> None:
        bad = next((p for p in self.rows if p.fault), None)
        if bad is not None:
            raise LocalMisuse(f"--atomic pays all rows or none, and line {bad.line} cannot be paid: {bad.fault}")
        senders = sorted({p.sender for p in self.rows})
        total = sum(p.amount for p in self.rows)
        if len(senders) > 1 or len(self.rows) > MAX_POSTINGS or total > MAX_AMOUNT:
            raise LocalMisuse(
                f"--atomic makes one request of the file: 1 payer, {MAX_POSTINGS} rows and {MAX_AMOUNT} minor units at most; "
                f"this one has {len(senders)} payers, {len(self.rows)} rows and {total} minor units. Without it each payer's "
                f"rows are paid in requests of up to {MAX_POSTINGS}, all or nothing each"
            )

    # --- which requests ----------------------------------------------------------------------------------------

    async def _pay(self, client: Client) -> None:
        self._progress.begin("paying", len(self.rows))
        batches = RunBatches(self._plan, client.network, self._keys.key, self._sent)
        payable = self._payable()
        parts, fresh = await self._sent_before(client, batches, payable)
        for index in fresh:
            self.results[index] = not_sent()
        cuts = cut([(index, self.rows[index]) for index in fresh])
        parts += batches.new([(rows, self._source(rows)) for rows in cuts])
        parts.sort(key=lambda part: min(part.rows))
        self.requests = len(parts)
        self._record(parts)
        await work_on_each(parts, partial(self._pay_part, client, batches), at_once=self.settings.concurrency)

    def _payable(self) -> dict[str, int]:
        """The rows that can be sent, by key; the others get their results."""
        found: dict[str, int] = {}
        for index, payment in enumerate(self.rows):
            cannot = self._cannot(payment)
            if cannot is None:
                found[payment_key(payment)] = index
            else:
                self._end([index], [self._not_now(payment, cannot)])
        return found

    async def _sent_before(
        self, client: Client, batches: RunBatches, payable: dict[str, int]
    ) -> tuple[list[Part], list[int]]:
        """The batches of earlier runs that are made again, and the rows for new ones."""
        parts: list[Part] = []
        fresh = [index for key, index in payable.items() if key not in self._sent.of]
        for batch, left in batches.earlier(payable):
            if why := self._keys.why_none(batch.sender):
                none = RowResult("no_key", why)
                self._end(left, [self._not_now(self.rows[index], none) for index in left])
            elif len(left) == len(batch.rows) and (not self.atomic or len(left) == len(self.rows)):
                self.books.begin(batch.sender)
                parts.append(batches.again(batch, left))
            elif await self._is_void(client, batch, left):
                fresh += left
        return parts, sorted(fresh)

    def _source(self, rows: Sequence[int]) -> str:
        """The account that pays these rows, with one more request in flight when a pool chose it."""
        payment = self.rows[rows[0]]
        pool = self._sources.pool(payment)
        if pool is None:
            return payment.sender
        account = self._sources.choose(pool, payment_key(payment))
        self.books.begin(account)
        return account

    async def _is_void(self, client: Client, batch: Batch, left: Sequence[int]) -> bool:
        """Make sure that a batch never executes, or note that it has: `left` are those of its rows that the file
        has."""
        target = RequestId(bytes.fromhex(batch.request_id))
        self._sent.give_up(batch)
        answer, decided = await self._cancel(client, target, batch.sender)
        if isinstance(answer, Recorded) and answer.completed:
            return True
        if isinstance(answer, Recorded) and decided is not None and not decided.completed:
            return True
        if decided is None:
            why = f"an earlier request of {len(batch.rows)} rows is not settled: {answer_name(answer)}: {row_text(answer)}"
            result = RowResult(
                "unknown", why, isinstance(answer, Recorded), request_id=batch.request_id, paid_from=batch.sender
            )
        else:
            result = result_of(decided, target, batch.sender)
        self.books.may_have_paid(batch.sender, decided.height if decided is not None else None)
        self._end(left, [result] * len(left))
        if self.atomic:
            raise CommandFailed(
                Exit.REJECTED if decided is not None else Exit.UNREACHABLE,
                "not_atomic",
                f"{len(left)} rows of run {self.settings.label!r} are in an earlier request of {len(batch.rows)} rows, which is "
                f"{result.outcome}: this file cannot be paid as one. Nothing was sent; run it without --atomic, or name another "
                "run with --run",
            )
        return False

    def _record(self, parts: Sequence[Part]) -> None:
        self._wallet.record_new((part.signed.request_id, part.batch.sender, "pay") for part in parts)

    # --- sending -----------------------------------------------------------------------------------------------

    async def _pay_part(self, client: Client, batches: RunBatches, part: Part) -> None:
        await self._income_before(min(part.rows))
        if why := self._too_many():
            self.books.withdrawn(part.batch.sender)
            self._end(part.rows, [self._stopped(index, why) for index in part.rows])
            return
        answer, last = await self._send_part(client, batches, part)
        result = result_of(answer, last.signed.request_id, last.batch.sender)
        self._end(part.rows, await self._results(client, last, result))

    async def _send_part(self, client: Client, batches: RunBatches, part: Part) -> tuple[Answer, Part]:
        """Submit it; one that was rejected in an earlier run is made anew when that was asked for, one that the run
        itself has cancelled in any case, and one whose account has too little from another account of its pool."""
        pool = self._sources.pool(self.rows[part.rows[0]])
        tried = set() if pool is None else in_this_round(self._sent.senders(part.batch.rows[0]))
        answer = await self._ask(client, part)
        for _ in range(1, MAX_ATTEMPTS):
            if not isinstance(answer, Recorded) or answer.completed:
                break
            account: str | None = None
            given_up = answer.outcome == Outcome.CANCELLED and part.batch.request_id in self._sent.void
            if pool is not None and answer.outcome == Outcome.INSUFFICIENT_FUNDS:
                tried.add(part.batch.sender)
                account = another(pool, part.batch.sender, tried)
            if account is None and (given_up or (self.settings.retry_rejected and answer.repeated)):
                account, tried = part.batch.sender, set()
            if account is None:
                break
            (part,) = batches.new([(part.rows, account)])
            self._record([part])
            self.books.begin(account)
            answer = await self._ask(client, part)
        return answer, part

    async def _ask(self, client: Client, part: Part) -> Answer:
        """Submit the request, whose rows are unknown until its answer is here."""
        waiting = doubt(part.signed, part.batch.sender)
        for index in part.rows:
            self.results[index] = waiting
        answer: Answer | None = None
        try:
            answer = await self._until_known(client, part.signed)
            return answer
        finally:
            self.books.ended(part.batch.sender, sum(self.rows[index].amount for index in part.rows), answer)

    async def _results(self, client: Client, part: Part, result: RowResult) -> list[RowResult]:
        """The results of the rows of one request. Rejected for a recipient, it names the rows that were the cause."""
        rows = part.rows
        if len(rows) == 1 or result.outcome == "completed":
            return [result] * len(rows)
        causes: dict[int, str] = {}
        hint = ""
        if result.outcome in _OF_A_RECIPIENT:
            causes, hint = await self._causes.find(client, part)
        result.reason += f" ({len(rows)} rows are one request: all or none of them{hint})"
        return [
            msgspec.structs.replace(result, reason=f"this row is a cause: {causes[index]}. {result.reason}")
            if index in causes
            else result
            for index in rows
        ]


class AtomicRun(BulkRun):
    """The run of a payment file as one request."""

    atomic = True

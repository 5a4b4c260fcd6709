"""One run of a payment file: make the accounts ready (cli.payaccounts), then pay the rows.

Every step is a set of requests that are the same when made again, so a run that was stopped anywhere is simply run
again.

A row waits for the rows before it that pay its sender, so that a file may pass money on. Otherwise rows run side by
side.

One process at a time makes a run (cli.runlock): whoever starts one holds its lock from before `check` until the end.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import anyio
import msgspec

from chain.errors import LocalMisuse
from chain.request import NetworkId, RequestId, SignedRequest, cancellation
from cli.batches import SentBatches
from cli.output import CommandFailed, Exit
from cli.payaccounts import RunAccounts
from cli.payfile import Payment, payment_key
from cli.paykeys import RunKeys
from cli.payplan import MAX_ATTEMPTS, Plan
from cli.payrequests import newest_requests, row_request
from cli.payresult import NOT_SENT, RowResult, not_asked, not_sent, result_of, row_text
from cli.payrows import SeenRows
from cli.poolbooks import PoolBooks
from cli.sources import sent_elsewhere
from hopchain import Answer, CallRefused, Client, NotStarted, Recorded, Refused, Unknown, Unreachable, sign_request
from hopchain.workers import work_on_each

TRIES: Final = 4  # of one row without an outcome, before it is left for the next run
PAUSE_S: Final = 0.5  # between them
_CLOSING_S: Final = 5.0  # for what left the pools, when the run ended with an error
_EARLIER: Final = "an earlier run may have sent it"


class PayRun:
    """The run; `results` fills up while it goes, so that it can be written whenever the run ends."""

    def __init__(self, plan: Plan) -> None:
        self.rows = plan.rows
        self.results = [not_sent() for _ in plan.rows]
        self.settings = plan.settings
        self.accounts = RunAccounts(plan)
        self.books = PoolBooks(plan.sources, plan.settings.asset, plan.settings.scale)
        self.rows_s = 0.0
        self.requests = 0
        self._wallet = plan.wallet
        self._sources = plan.sources
        self._progress = plan.progress
        self._sent = SentBatches(plan.wallet.directory, plan.settings.label)
        self._keys = RunKeys(plan.wallet)
        # ids that the wallet had before this run: what may have been sent then; there from `check` on
        self._journal: frozenset[bytes]
        self._before: dict[str, tuple[RequestId, str]] = {}  # row -> its newest request of an earlier run, and whose
        self._unasked: set[bytes] = set()  # ids of those that this run has not asked for
        self._submitted = False
        self._failures = 0  # rows that ended and are not completed
        self._done = [anyio.Event() for _ in self.rows]
        self._pays: dict[str, list[int]] = defaultdict(list)  # account -> rows that pay it, in order
        for index, payment in enumerate(self.rows):
            self._pays[payment.recipient].append(index)

    def check(self, network: NetworkId) -> None:
        """Refuse what must not be sent so, before anything is. Raises `LocalMisuse`."""
        self._journal = self._wallet.all_recorded()
        self._check_pools()
        self._check_funder()
        together = sum(not p.fault and payment_key(p) in self._sent.of for p in self.rows)
        if together:
            raise LocalMisuse(
                f"{together} rows of run {self.settings.label!r} were sent with --bulk before: run it again with --bulk, which "
                "pays nothing twice"
            )

    def _check_pools(self) -> None:
        self._refuse_sent_from_pool(sent_elsewhere(self._sources, self.rows))
        for account in self._sources.accounts:
            why = self._keys.why_none(account)
            if why and not (self.settings.open_missing and not self._wallet.has(account)):
                raise LocalMisuse(f"{account} is in a pool and cannot pay: {why}")
        self._keys.forget()  # --open-missing may make them

    def _check_funder(self) -> None:
        """Without the key of `--fund-from`, accounts would be opened before that is found out."""
        if self.settings.fund_from is not None:
            self._wallet.key(self.settings.fund_from)

    def _refuse_sent_from_pool(self, rows: int) -> None:
        if rows:
            raise LocalMisuse(
                f"{rows} rows of run {self.settings.label!r} were sent from a pool's accounts before: run it again with "
                "--pool, which pays nothing twice"
            )

    def note_sent_before(self, network: NetworkId) -> None:
        """Call each row that an earlier run may have sent unknown, until this one asks for it. Before anything else, so
        that this is told of it however early the run ends."""
        rows = [payment for payment in self.rows if not payment.fault] if self._journal else []
        found = self._requests_before(network, rows)
        self._before = {row: sent for row, sent in found.items() if sent[0] in self._journal}
        self._unasked = {request for request, _ in self._before.values()}
        for index, payment in enumerate(self.rows):
            if sent := self._before.get(payment_key(payment)):
                self.results[index] = not_asked(*sent)

    def foreseen(self) -> list[RowResult]:
        """What is known of each row before a node is asked, after `note_sent_before`: whether an earlier run may have
        sent it, else why it cannot be sent, else nothing: `NOT_SENT`."""
        return [
            known if known.outcome != NOT_SENT else (self._cannot_ever(payment) or known)
            for payment, known in zip(self.rows, self.results, strict=True)
        ]

    def _cannot_ever(self, payment: Payment) -> RowResult | None:
        """As `_cannot`, also when accounts that are missing are opened first, with new keys."""
        payer = "" if payment.fault else self._payer(payment)
        opened = self.settings.open_missing and payer and not self._wallet.has(payer)
        return None if opened else self._cannot(payment)

    @property
    def unknown(self) -> bool:
        """True while it is not known what became of some row."""
        return any(result.outcome == "unknown" for result in self.results)

    @property
    def paid_before(self) -> bool:
        """True when every row is paid, and was sent and paid before this run. What another wallet paid does not count:
        an answer that was lost on the way in this run looks the same."""
        return all(
            r.outcome == "completed" and r.repeated and bytes.fromhex(r.request_id) in self._journal
            for r in self.results
        )

    @property
    def began(self) -> bool:
        """True once a request may have left: an account that is opened, a funding, a row, a cancellation."""
        return self._submitted or self.accounts.opening

    async def look_back(self, client: Client) -> list[Payment]:
        """Remember the rows, before any is sent. Returns the payments that earlier runs of this label made and whose
        rows are not in the file any more; what no node could say of now is not among them."""
        seen = SeenRows(self._wallet.directory, self.settings.label)
        here = {payment_key(payment) for payment in self.rows if not payment.fault}
        gone = {key: payment for key, payment in seen.rows.items() if key not in here}
        asked = [payment for key, payment in gone.items() if key not in seen.paid]
        paid = await self.accounts.completed(client, self._requests_before(client.network, asked))
        seen.add((payment for payment in self.rows if not payment.fault), paid)
        return [payment for key, payment in gone.items() if key in seen.paid]

    async def run(self, client: Client) -> None:
        """All of it, after `look_back`. Raises `Unreachable` when the network is gone, `CommandFailed` when the funding
        is rejected."""
        if self.settings.open_missing:
            await self._check_before_opening(client)
        if self.settings.open_missing or self.settings.fund_from:
            await self.accounts.find(client)
        if self.settings.fund_from:
            await self._open_books(client)
            await self._fund(client, self.settings.fund_from)
        # again after a funding, which paid into the pools: what leaves them is reckoned from what they have now
        await self._open_books(client)
        begin = time.perf_counter()
        try:
            await self._pay(client)
        except Exception:
            self.books.abandon()
            await self._close_books(client, min(_CLOSING_S, self.settings.timeout_s))
            raise
        finally:
            self.rows_s = time.perf_counter() - begin
        await self._close_books(client, self.settings.timeout_s)

    async def _check_before_opening(self, client: Client) -> None:
        """Refuse pools some of whose accounts exist and cannot pay, while nothing has left."""
        self._check_keys(await self.books.existing(client, self.settings.concurrency, self.settings.timeout_s))
        self._keys.forget()  # those of others are made when these are opened

    async def _open_books(self, client: Client) -> None:
        """Refuse pools that cannot pay, before anything is paid; read what their accounts have. Accounts may have been
        opened by now, so what is refused is no wrong command line (`Exit.USAGE`), with which nothing would have been
        sent."""
        try:
            await self.books.open(client, self.settings.concurrency, self.settings.timeout_s)
            self._check_keys(self._sources.accounts)
        except LocalMisuse as error:
            if not self.began:
                raise
            raise CommandFailed(Exit.REJECTED, "pool", f"{error}. Accounts were opened, and no row was paid") from None

    async def _close_books(self, client: Client, timeout_s: float) -> None:
        """Read what the accounts have now. What an earlier run sent and this one did not ask for may have left them."""
        for request, account in self._before.values():
            if request in self._unasked:
                self.books.may_have_paid(account, None)
        await self.books.close(client, self.settings.concurrency, timeout_s)

    def _check_keys(self, accounts: Iterable[str]) -> None:
        for account in accounts:
            if why := self._keys.why_none(account):
                raise LocalMisuse(f"{account} is in a pool and cannot pay: {why}")

    # --- funding -----------------------------------------------------------------------------------------------

    async def _fund(self, client: Client, source: str) -> None:
        """Fund the payers of the rows that can be sent."""
        await self.accounts.fund(
            client,
            source,
            [(payment, self._payer(payment)) for payment in self.rows if self._cannot(payment) is None],
            sent_before=partial(self._requests_before, client.network),
            journal=self._journal,
            submit=partial(self._until_known, client),
            cancel=partial(self._cancel, client),
        )

    def _requests_before(self, network: NetworkId, rows: Sequence[Payment]) -> dict[str, tuple[RequestId, str]]:
        """key -> the newest request, with its account, of those rows that an earlier run sent."""
        return newest_requests(network, self.settings.label, rows, self._sent, self._sources, self._journal)

    def _not_now(self, payment: Payment, cannot: RowResult) -> RowResult:
        """The result of a row that this run cannot send: one that an earlier run may have sent is unknown, for nobody
        asks."""
        sent = self._before.get(payment_key(payment))
        return cannot if sent is None else not_asked(*sent, cannot.reason)

    # --- rows --------------------------------------------------------------------------------------------------

    async def _pay(self, client: Client) -> None:
        self._progress.begin("paying", len(self.rows))
        signed = [self._first(client, payment) for payment in self.rows]
        self.requests = sum(not isinstance(s, RowResult) for s in signed)
        self._wallet.record_new(
            (s.request_id, self._payer(p), "pay")
            for p, s in zip(self.rows, signed, strict=True)
            if isinstance(s, SignedRequest)
        )

        async def work(index: int) -> None:
            self._end([index], [await self._result(client, index, signed[index])])

        await work_on_each(range(len(self.rows)), work, at_once=self.settings.concurrency)

    def _first(self, client: Client, payment: Payment) -> SignedRequest | RowResult | None:
        """The request that a row begins with, or its result when it cannot be sent. None: it is made when its turn
        comes."""
        return self._signed(client, payment, 0)

    async def _result(self, client: Client, index: int, first: SignedRequest | RowResult | None) -> RowResult:
        """Pay a row, whose turn it is: its result. `first`: what `_first` gave."""
        if isinstance(first, RowResult):
            return first
        await self._income_before(index)
        why = self._too_many()
        return self._stopped(index, why) if why else await self._pay_row(client, index, first)

    def _end(self, rows: Sequence[int], results: Sequence[RowResult]) -> None:
        """These rows have ended so."""
        for index, result in zip(rows, results, strict=True):
            self.results[index] = result
            self._failures += result.outcome != "completed"
            self._done[index].set()
        self._progress.advance(len(rows))

    def _too_many(self) -> str:
        """Why no more rows are sent, when more have failed than `max_failures` allows; else empty."""
        most = self.settings.max_failures
        if most is None or self._failures <= most:
            return ""
        return f"more than {most} rows failed before it: correct those, then run it again"

    def _stopped(self, index: int, why: str) -> RowResult:
        """The result of a row that is not sent any more."""
        known = self.results[index]
        if known.outcome == NOT_SENT:
            return RowResult(NOT_SENT, why)
        return msgspec.structs.replace(known, reason=f"{known.reason}: {why}")

    async def _income_before(self, index: int) -> None:
        """Wait for the rows above that pay this row's sender. They were taken from the queue before, so they end."""
        for earlier in self._pays.get(self.rows[index].sender, ()):
            if earlier >= index:
                return
            await self._done[earlier].wait()

    async def _pay_row(self, client: Client, index: int, signed: SignedRequest | None) -> RowResult:
        payment = self.rows[index]
        assert signed is not None
        self.results[index] = doubt(signed, payment.sender)
        answer = await self._until_known(client, signed)
        for attempt in range(1, MAX_ATTEMPTS):
            if not isinstance(answer, Recorded) or answer.completed:
                break
            again = self._signed(client, payment, attempt)
            assert isinstance(again, SignedRequest)
            if again.request_id not in self._journal and not (self.settings.retry_rejected and answer.repeated):
                break  # what an earlier run with that option paid is told also without it
            signed = again
            if signed.request_id not in self._journal:
                self._wallet.record([(signed.request_id, payment.sender, "pay")])
            self.results[index] = doubt(signed, payment.sender)
            answer = await self._until_known(client, signed)
        return result_of(answer, signed.request_id, payment.sender)

    async def _until_known(self, client: Client, signed: SignedRequest) -> Answer:
        """Submit until there is an outcome, at most TRIES times; once one try had none, or an earlier run may have sent
        it, that nothing happened is not concluded from a later one. Raises `Unreachable` when there is no network."""
        self._submitted = True
        self._unasked.discard(signed.request_id)
        unknown: Unknown | None = None
        for left in reversed(range(TRIES)):
            answer = await self._try(client, signed, last=not left)
            if isinstance(answer, Unknown):
                unknown = answer
            if answer is not None and (not left or not isinstance(answer, NotStarted | Unknown)):
                return self._together(signed, answer, unknown)
            await anyio.sleep(PAUSE_S)
        raise AssertionError("the last try has an answer or raises")

    async def _try(self, client: Client, signed: SignedRequest, *, last: bool) -> Answer | None:
        """Submit once: the answer, or None when no node could be reached. The last time that raises `Unreachable`."""
        try:
            return await client.submit(signed, timeout_s=self.settings.timeout_s)
        except Unreachable:
            if last:
                raise
            return None

    def _together(self, signed: SignedRequest, answer: Answer, unknown: Unknown | None) -> Answer:
        """What the tries of one request together say, the last of which had this answer. `unknown`: what an earlier one
        was told."""
        if not isinstance(answer, NotStarted | Refused):
            return answer
        if unknown is None and signed.request_id in self._journal:
            return Unknown(signed.request_id, f"{_EARLIER}, and the answer in this one was: {row_text(answer)}")
        return unknown or answer

    async def _cancel(self, client: Client, target: RequestId, sender: str) -> tuple[Answer, Recorded | None]:
        """Give up a request of an earlier run: the answer to its cancellation, and when that is not `completed`, the
        outcome of the request itself, None as long as no node has it."""
        signed = sign_request(cancellation(client.network, sender, target, target), self._keys.key(sender))
        self._wallet.record([(signed.request_id, sender, "cancel")])
        answer = await self._until_known(client, signed)
        cancelled = isinstance(answer, Recorded) and answer.completed
        decided = None if cancelled else await self._outcome(client, target, sender)
        self._unasked.discard(target)  # the caller says what it may have paid
        return answer, decided

    async def _outcome(self, client: Client, target: RequestId, sender: str) -> Recorded | None:
        """The outcome of a request that a node has already; another one may be a moment behind, or refuse to tell."""
        for left in reversed(range(TRIES)):
            with suppress(CallRefused):
                found = await client.outcome(target, sender)
                if isinstance(found, Recorded):
                    return found
            if left:
                await anyio.sleep(PAUSE_S)
        return None

    def _signed(self, client: Client, payment: Payment, attempt: int) -> SignedRequest | RowResult:
        """The row's request, or its result when it cannot be one."""
        cannot = self._cannot(payment)
        if cannot is not None:
            return self._not_now(payment, cannot)
        request = row_request(client.network, self.settings.label, payment, attempt)
        return sign_request(request, self._keys.key(payment.sender))

    def _cannot(self, payment: Payment) -> RowResult | None:
        """The result of a row that cannot be sent in this run."""
        if payment.fault:
            return RowResult("invalid", payment.fault)
        payer = self._payer(payment)
        if payer and (why := self._keys.why_none(payer)):
            return RowResult("no_key", why)
        return self.accounts.unfit.get(payer)

    def _payer(self, payment: Payment) -> str:
        """The account that a row is paid from; empty before one of its pool was chosen."""
        if self._sources.pool(payment) is None:
            return payment.sender
        tried = self._sources.tried(payment_key(payment))
        return tried[-1] if tried else ""


def doubt(signed: SignedRequest, paid_from: str) -> RowResult:
    """The result of rows whose request leaves, until its answer is here."""
    why = "the run ended before the answer came: run it again"
    return RowResult("unknown", why, request_id=signed.request_id.hex(), paid_from=paid_from)

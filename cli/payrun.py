"""One run of a payment file: open what is missing, fund the payers, pay the rows.

Every step is a set of requests that are the same when made again, so a run that was stopped anywhere is simply run
again. Funding is remembered row by row in the wallet, because rows that are added to a file later must add to what a
payer got, not get it all a second time.

A row waits for the rows before it that pay its sender, so that a file may pass money on. Otherwise rows run side by side.

One process at a time makes a run (cli.runlock): whoever starts one holds its lock from before `check` until the end.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Sequence
from functools import cached_property
from typing import Final

import anyio
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.errors import LocalMisuse
from chain.link import Outcome
from chain.names import MAX_AMOUNT
from chain.request import MAX_POSTINGS, NetworkId, Posting, Request, SignedRequest, transfer
from cli.batches import SentBatches
from cli.funding import FundedRows, Needs
from cli.opening import open_accounts
from cli.output import CommandFailed, Exit
from cli.payfile import Payment, funding_nonce, payment_key, payment_nonce
from cli.payresult import NOT_SENT, RowResult, result_of
from cli.poolbooks import PoolBooks
from cli.progress import Progress
from cli.receipt import answer_exit, answer_name, answer_text
from cli.sources import Sources, sent_elsewhere
from cli.wallet import Wallet
from hopchain import Answer, Balance, Client, NotStarted, Recorded, Refused, Unknown, Unreachable
from hopchain.client import sign_request

TRIES: Final = 4  # of one row without an outcome, before it is left for the next run
PAUSE_S: Final = 0.5  # between them
MAX_ATTEMPTS: Final = 1000  # of one rejected row, over all runs with --retry-rejected


class Settings(msgspec.Struct, frozen=True):
    """What the command line asked for."""

    label: str
    asset: str
    scale: int
    open_missing: bool
    fund_from: str | None
    retry_rejected: bool
    concurrency: int
    timeout_s: float
    max_failures: int | None = None


class Plan(msgspec.Struct, frozen=True):
    """Everything that a run is made of."""

    wallet: Wallet
    rows: Sequence[Payment]
    settings: Settings
    sources: Sources
    progress: Progress


class PayRun:
    """The run; `results` fills up while it goes, so that it can be written whenever the run ends."""

    def __init__(self, plan: Plan) -> None:
        self.rows = plan.rows
        self.results = [RowResult(NOT_SENT) for _ in plan.rows]
        self.settings = plan.settings
        self.books = PoolBooks(plan.sources, plan.settings.asset, plan.settings.scale)
        self.opened = 0
        self.opening_s = 0.0
        self.funded = 0
        self.rows_s = 0.0
        self.requests = 0
        self._wallet = plan.wallet
        self._sources = plan.sources
        self._progress = plan.progress
        self._keys: dict[str, Ed25519PrivateKey | LocalMisuse] = {}
        self._unfit: dict[str, RowResult] = {}  # payers whose rows are not sent in this run, and why
        self._failures = 0  # rows that ended and are not completed
        self._done = [anyio.Event() for _ in self.rows]
        self._pays: dict[str, list[int]] = defaultdict(list)  # account -> rows that pay it, in order
        for index, payment in enumerate(self.rows):
            self._pays[payment.recipient].append(index)

    def check(self, network: NetworkId) -> None:
        """Refuse what must not be sent so, before anything is. Raises `LocalMisuse`."""
        self._check_pools()
        sent = SentBatches(self._wallet.directory, self.settings.label)
        together = sum(not p.fault and payment_key(p) in sent.of for p in self.rows)
        if together:
            raise LocalMisuse(
                f"{together} rows of run {self.settings.label!r} were sent with --bulk before: run it again with --bulk, which "
                "pays nothing twice"
            )

    def _check_pools(self) -> None:
        if elsewhere := sent_elsewhere(self._sources, self.rows):
            raise LocalMisuse(
                f"{elsewhere} rows of run {self.settings.label!r} were sent from a pool's accounts before: run it again with "
                "--pool, which pays nothing twice"
            )
        for account in self._sources.accounts:
            key = self._key(account)
            if isinstance(key, LocalMisuse) and not (self.settings.open_missing and not self._wallet.has(account)):
                raise LocalMisuse(f"{account} is in a pool and cannot pay: {key}")
        self._keys.clear()  # keys are made when accounts are opened

    async def run(self, client: Client) -> None:
        """All of it. Raises `Unreachable` when the network is gone, `CommandFailed` when the funding is rejected."""
        if self.settings.open_missing or self.settings.fund_from:
            begin = time.perf_counter()
            assets = {line.name: line.asset for line in await client.all_accounts()}
            if self.settings.open_missing:
                assets |= dict.fromkeys(await self._open(client, assets), self.settings.asset)
            self.opening_s = time.perf_counter() - begin
            if self.settings.fund_from:
                await self._open_books(client)
                await self._fund(client, self.settings.fund_from, assets)
        await self._open_books(client)
        begin = time.perf_counter()
        try:
            await self._pay(client)
        finally:
            self.rows_s = time.perf_counter() - begin
        await self.books.close(client, self.settings.concurrency, self.settings.timeout_s)

    async def _open_books(self, client: Client) -> None:
        """Refuse pools that cannot pay, before anything is paid; read what their accounts have."""
        await self.books.open(client, self.settings.concurrency, self.settings.timeout_s)
        for account in self._sources.accounts:
            if isinstance(key := self._key(account), LocalMisuse):
                raise LocalMisuse(f"{account} is in a pool and cannot pay: {key}")

    # --- accounts ----------------------------------------------------------------------------------------------

    async def _open(self, client: Client, existing: Container[str]) -> set[str]:
        """Open the accounts that the file names, and those of the pools, that nobody has; the names that exist now."""
        pools = {name: pool.accounts for name, pool in self._sources.pools.items()}
        named = [name for p in self.rows if not p.fault for name in (*pools.get(p.sender, (p.sender,)), p.recipient)]
        missing = [name for name in dict.fromkeys(named) if name not in existing]
        self._progress.begin("opening accounts", len(missing))
        opened = await open_accounts(
            client,
            self._wallet,
            missing,
            self.settings.asset,
            timeout_s=self.settings.timeout_s,
            progress=self._progress.advance,
        )
        done = {o.name for o in opened if answer_exit(o.answer) is Exit.DONE}
        self.opened = len(done)
        return done

    # --- funding -----------------------------------------------------------------------------------------------

    async def _fund(self, client: Client, source: str, assets: dict[str, str]) -> None:
        """`assets`: what the accounts hold that are known to exist."""
        key = self._wallet.key(source)
        payers = {self._payer(p) for p in self.rows if self._cannot(p) is None} - {source}
        await self._find_assets(client, sorted({source, *payers} - assets.keys()), assets)
        held = assets.get(source, self.settings.asset)
        if held != self.settings.asset:
            raise CommandFailed(
                Exit.REJECTED,
                "asset_mismatch",
                f"{source} holds {held}, and this run pays {self.settings.asset}: fund the payers from an account of "
                f"{self.settings.asset}. No row was paid in this run",
            )
        for payer in payers & assets.keys():
            if assets[payer] != held:
                self._unfit[payer] = RowResult(
                    "asset_mismatch",
                    f"{payer} holds {assets[payer]}, so {source} cannot fund it with {held}; not sent in this run",
                )
        remembered = FundedRows(self._wallet.directory, self.settings.label, source)
        rows = {
            payment_key(p): p
            for p in self.rows
            if self._cannot(p) is None and self._payer(p) != source and self._payer(p) in assets
        }
        fresh = [key for key in rows if key not in remembered.rows]
        if fresh:
            sums: Counter[str] = Counter()
            for row in fresh:
                sums[self._payer(rows[row])] += rows[row].amount
            remembered.add(fresh, sorted(sums.items()))
        parts = [part for needs in remembered.batches for part in split(needs)]
        self._progress.begin("funding payers", len(parts))
        for number, part in enumerate(parts):
            await self._fund_part(client, source, key, number, part)
            self._progress.advance()

    async def _find_assets(self, client: Client, names: Sequence[str], assets: dict[str, str]) -> None:
        """What accounts hold that one node's list lacks: that node may be behind, so a majority says whether they exist."""

        async def work(queue: Iterator[str]) -> None:
            for name in queue:
                answer = await client.balance(name, linearizable=True, timeout_s=self.settings.timeout_s)
                if isinstance(answer, Balance):
                    assets[name] = answer.asset
                elif isinstance(answer, Unknown) or answer.stale:
                    why = answer.reason if isinstance(answer, Unknown) else "who answered may be behind the others"
                    self._unfit[name] = RowResult(
                        NOT_SENT, f"whether {name} exists, to be funded, is not known: {why}. Run it again"
                    )

        queue = iter(names)
        async with anyio.create_task_group() as tasks:
            for _ in range(min(self.settings.concurrency, len(names))):
                tasks.start_soon(work, queue)

    async def _fund_part(self, client: Client, source: str, key: Ed25519PrivateKey, number: int, needs: Needs) -> None:
        """One request for many payers. One that was rejected in an earlier run is made anew, once a run."""
        postings = [Posting(payer, amount, "funding") for payer, amount in needs]
        for attempt in range(MAX_ATTEMPTS):
            nonce = funding_nonce(self.settings.label, source, number, attempt, needs)
            signed = sign_request(transfer(client.network, source, postings, nonce), key)
            self._wallet.record_new([(signed.request_id, source, "funding")])
            answer = await self._until_known(client, signed)
            if answer_exit(answer) is Exit.DONE:
                assert isinstance(answer, Recorded)
                self.funded += 0 if answer.repeated else sum(amount for _, amount in needs)
                return
            if not (isinstance(answer, Recorded) and answer.repeated):
                break
        raise CommandFailed(
            answer_exit(answer),
            answer_name(answer),
            f"funding {len(needs)} payers from {source} did not work: {answer_name(answer)}: {answer_text(answer)}. "
            "No row was paid in this run",
        )

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
        queue = iter(range(len(self.rows)))
        async with anyio.create_task_group() as tasks:
            for _ in range(min(self.settings.concurrency, len(self.rows))):
                tasks.start_soon(self._work, client, queue, signed)

    def _first(self, client: Client, payment: Payment) -> SignedRequest | RowResult | None:
        """The request that a row begins with, or its result when it cannot be sent. None: it is made when its turn comes."""
        return self._signed(client, payment, 0)

    async def _work(
        self, client: Client, queue: Iterator[int], signed: Sequence[SignedRequest | RowResult | None]
    ) -> None:
        for index in queue:
            request = signed[index]
            if isinstance(request, RowResult):
                result = request
            else:
                await self._income_before(index)
                result = self._too_many() or await self._pay_row(client, index, request)
            self._end([index], [result])

    def _end(self, rows: Sequence[int], results: Sequence[RowResult]) -> None:
        """These rows have ended so."""
        for index, result in zip(rows, results, strict=True):
            self.results[index] = result
            self._failures += result.outcome != "completed"
            self._done[index].set()
        self._progress.advance(len(rows))

    def _too_many(self) -> RowResult | None:
        """The result of all rows that are still to be sent, when more have failed than `max_failures` allows."""
        most = self.settings.max_failures
        if most is None or self._failures <= most:
            return None
        return RowResult(NOT_SENT, f"more than {most} rows failed before it: see to those, then run it again")

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
            if not isinstance(answer, Recorded) or not answer.repeated or answer.outcome == Outcome.COMPLETED:
                break
            again = self._signed(client, payment, attempt)
            assert isinstance(again, SignedRequest)
            if not self.settings.retry_rejected and again.request_id not in self._journal:
                break  # what an earlier run with that option paid is told also without it
            signed = again
            if signed.request_id not in self._journal:
                self._wallet.record([(signed.request_id, payment.sender, "pay")])
            answer = await self._until_known(client, signed)
        return result_of(answer, signed.request_id, payment.sender)

    @cached_property
    def _journal(self) -> frozenset[bytes]:
        """All request ids of the journal: read once, and only when a row was rejected before."""
        return self._wallet.all_recorded()

    async def _until_known(self, client: Client, signed: SignedRequest) -> Answer:
        """Submit until there is an outcome, at most TRIES times; once one try had none, that nothing happened is not concluded
        from a later one. Raises `Unreachable` when there is no network."""
        unknown: Unknown | None = None
        for left in reversed(range(TRIES)):
            try:
                answer = await client.submit(signed, self.settings.timeout_s)
            except Unreachable:
                if not left:
                    raise
            else:
                if isinstance(answer, Unknown):
                    unknown = answer
                if not left or not isinstance(answer, NotStarted | Unknown):
                    return unknown if unknown and isinstance(answer, NotStarted | Refused) else answer
            await anyio.sleep(PAUSE_S)
        raise AssertionError("the last try returns or raises")

    def _signed(self, client: Client, payment: Payment, attempt: int) -> SignedRequest | RowResult:
        """The row's request, or its result when it cannot be one."""
        cannot = self._cannot(payment)
        if cannot is not None:
            return cannot
        key = self._key(payment.sender)
        assert not isinstance(key, LocalMisuse)
        return sign_request(row_request(client.network, self.settings.label, payment, attempt), key)

    def _cannot(self, payment: Payment) -> RowResult | None:
        """The result of a row that cannot be sent in this run."""
        if payment.fault:
            return RowResult("invalid", payment.fault)
        payer = self._payer(payment)
        key = self._key(payer) if payer else None
        if isinstance(key, LocalMisuse):
            return RowResult("no_key", str(key))
        return self._unfit.get(payer)

    def _payer(self, payment: Payment) -> str:
        """The account that a row is paid from; empty before one of its pool was chosen."""
        if self._sources.pool(payment) is None:
            return payment.sender
        tried = self._sources.tried(payment_key(payment))
        return tried[-1] if tried else ""

    def _key(self, account: str) -> Ed25519PrivateKey | LocalMisuse:
        if account not in self._keys:
            try:
                self._keys[account] = self._wallet.key(account)
            except LocalMisuse as error:
                self._keys[account] = error
        return self._keys[account]


def row_request(network: NetworkId, run: str, payment: Payment, attempt: int) -> Request:
    """The request of one row alone. `attempt` above 0: once more after a rejection."""
    posting = Posting(payment.recipient, payment.amount, payment.reference)
    return transfer(network, payment.sender, [posting], payment_nonce(run, payment, attempt))


def doubt(signed: SignedRequest, paid_from: str) -> RowResult:
    """The result of rows whose request leaves, until its answer is here."""
    why = "the run ended before the answer came: run it again"
    return RowResult("unknown", why, request_id=signed.request_id.hex(), paid_from=paid_from)


def split(needs: Needs) -> list[Needs]:
    """The needs in parts that one request can hold: at most MAX_POSTINGS, adding up to at most MAX_AMOUNT."""
    parts: list[list[tuple[str, int]]] = [[]]
    total = 0
    for payer, amount in needs:
        if parts[-1] and (len(parts[-1]) == MAX_POSTINGS or total + amount > MAX_AMOUNT):
            parts.append([])
            total = 0
        parts[-1].append((payer, amount))
        total += amount
    return [tuple(part) for part in parts]

"""One run of a payment file: open what is missing, fund the payers, pay the rows.

Every step is a set of requests that are the same when made again, so a run that was stopped anywhere is simply run
again. Funding is remembered row by row in the wallet, because rows that are added to a file later must add to what a
payer got, not get it all a second time.

A row waits for the rows before it that pay its sender, so that a file may pass money on. Otherwise rows run side by side.

One process at a time makes a run (cli.runlock): whoever starts one holds its lock from before `check` until the end.
"""

import csv
import os
import time
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import anyio
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.errors import LocalMisuse
from chain.link import Outcome
from chain.names import MAX_AMOUNT
from chain.request import MAX_POSTINGS, NetworkId, Posting, Request, SignedRequest, transfer
from cli.batches import SentBatches
from cli.durable import on_disk
from cli.funding import FundedRows, Needs
from cli.money import format_amount
from cli.opening import open_accounts
from cli.output import CommandFailed, Exit, Output
from cli.payfile import Payment, funding_nonce, payment_key, payment_nonce
from cli.receipt import answer_exit, answer_name, answer_text
from cli.wallet import Wallet
from hopchain import Answer, Balance, Client, NotStarted, Recorded, Unknown, Unreachable
from hopchain.client import sign_request

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

NOT_SENT: Final = "not_sent"
TRIES: Final = 4  # of one row without an outcome, before it is left for the next run
PAUSE_S: Final = 0.5  # between them
_NO_ANSWER: Final = frozenset({NOT_SENT, "unknown", "not_started"})
MAX_ATTEMPTS: Final = 1000  # of one rejected row, over all runs with --retry-rejected


class Settings(msgspec.Struct, frozen=True):
    """What the command line asked for."""

    label: str
    asset: str
    open_missing: bool
    fund_from: str | None
    retry_rejected: bool
    concurrency: int
    timeout_s: float
    max_failures: int | None = None


class RowResult(msgspec.Struct):
    """What became of one row. `answered`: a node said so in this run."""

    outcome: str
    reason: str = ""
    answered: bool = False
    repeated: bool = False
    request_id: str = ""
    link_hash: str = ""
    height: int | None = None


class PayRun:
    """The run; `results` fills up while it goes, so that it can be written whenever the run ends."""

    def __init__(
        self,
        wallet: Wallet,
        rows: Sequence[Payment],
        results: list[RowResult],
        settings: Settings,
        progress: "Progress",
    ) -> None:
        self.rows = rows
        self.results = results
        self.settings = settings
        self.opened = 0
        self.opening_s = 0.0
        self.funded = 0
        self.rows_s = 0.0
        self.requests = 0
        self._wallet = wallet
        self._progress = progress
        self._keys: dict[str, Ed25519PrivateKey | LocalMisuse] = {}
        self._unfit: dict[str, RowResult] = {}  # payers whose rows are not sent in this run, and why
        self._failures = 0  # rows that ended and are not completed
        self._done = [anyio.Event() for _ in rows]
        self._pays: dict[str, list[int]] = defaultdict(list)  # account -> rows that pay it, in order
        for index, payment in enumerate(rows):
            self._pays[payment.recipient].append(index)

    def check(self, network: NetworkId) -> None:
        """Refuse what must not be sent so, before anything is. Raises `LocalMisuse`."""
        sent = SentBatches(self._wallet.directory, self.settings.label)
        together = sum(not p.fault and payment_key(p) in sent.of for p in self.rows)
        if together:
            raise LocalMisuse(
                f"{together} rows of run {self.settings.label!r} were sent with --bulk before: run it again with --bulk, which "
                "pays nothing twice"
            )

    async def run(self, client: Client) -> None:
        """All of it. Raises `Unreachable` when the network is gone, `CommandFailed` when the funding is rejected."""
        if self.settings.open_missing or self.settings.fund_from:
            begin = time.perf_counter()
            assets = {line.name: line.asset for line in await client.all_accounts()}
            if self.settings.open_missing:
                assets |= dict.fromkeys(await self._open(client, assets), self.settings.asset)
            self.opening_s = time.perf_counter() - begin
            if self.settings.fund_from:
                await self._fund(client, self.settings.fund_from, assets)
        begin = time.perf_counter()
        try:
            await self._pay(client)
        finally:
            self.rows_s = time.perf_counter() - begin

    # --- accounts ----------------------------------------------------------------------------------------------

    async def _open(self, client: Client, existing: Container[str]) -> set[str]:
        """Open the accounts that the file names and nobody has; the names that exist now."""
        named = [name for p in self.rows if not p.fault for name in (p.sender, p.recipient)]
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
        payers = {p.sender for p in self.rows if self._cannot(p) is None and p.sender != source}
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
            if self._cannot(p) is None and p.sender != source and p.sender in assets
        }
        fresh = [key for key in rows if key not in remembered.rows]
        if fresh:
            sums: Counter[str] = Counter()
            for row in fresh:
                sums[rows[row].sender] += rows[row].amount
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
            self._wallet.record([(signed.request_id, source, "funding")])
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
        signed = [self._signed(client, payment, 0) for payment in self.rows]
        self.requests = sum(isinstance(s, SignedRequest) for s in signed)
        self._wallet.record(
            (s.request_id, p.sender, "pay")
            for p, s in zip(self.rows, signed, strict=True)
            if isinstance(s, SignedRequest)
        )
        queue = iter(range(len(self.rows)))
        async with anyio.create_task_group() as tasks:
            for _ in range(min(self.settings.concurrency, len(self.rows))):
                tasks.start_soon(self._work, client, queue, signed)

    async def _work(self, client: Client, queue: Iterator[int], signed: Sequence[SignedRequest | RowResult]) -> None:
        for index in queue:
            request = signed[index]
            if isinstance(request, SignedRequest):
                await self._income_before(index)
                result = self._too_many() or await self._pay_row(client, index, request)
            else:
                result = request
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

    async def _pay_row(self, client: Client, index: int, signed: SignedRequest) -> RowResult:
        payment = self.rows[index]
        self.results[index] = RowResult(
            "unknown", "the run ended before the answer came: run it again", request_id=signed.request_id.hex()
        )
        answer = await self._until_known(client, signed)
        for attempt in range(1, MAX_ATTEMPTS):
            if not isinstance(answer, Recorded) or not answer.repeated or answer.outcome == Outcome.COMPLETED:
                break
            again = self._signed(client, payment, attempt)
            assert isinstance(again, SignedRequest)
            if not self.settings.retry_rejected and again.request_id not in self._journal:
                break  # what an earlier run with that option paid is told also without it
            signed = again
            self._wallet.record([(signed.request_id, payment.sender, "pay")])
            answer = await self._until_known(client, signed)
        return result_of(answer, signed.request_id)

    @cached_property
    def _journal(self) -> frozenset[bytes]:
        """All request ids of the journal: read once, and only when a row was rejected before."""
        return self._wallet.all_recorded()

    async def _until_known(self, client: Client, signed: SignedRequest) -> Answer:
        """Submit until there is an outcome, at most TRIES times. Raises `Unreachable` when there is no network."""
        for left in reversed(range(TRIES)):
            try:
                answer = await client.submit(signed, self.settings.timeout_s)
            except Unreachable:
                if not left:
                    raise
            else:
                if not left or not isinstance(answer, NotStarted | Unknown):
                    return answer
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
        key = self._key(payment.sender)
        if isinstance(key, LocalMisuse):
            return RowResult("no_key", str(key))
        return self._unfit.get(payment.sender)

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


def result_of(answer: Answer, request_id: bytes) -> RowResult:
    """What an answer makes of the rows of its request."""
    result = RowResult(answer_name(answer), answer_text(answer), request_id=request_id.hex())
    result.answered = not isinstance(answer, Unknown | NotStarted)
    if isinstance(answer, Recorded):
        result.repeated = answer.repeated
        result.link_hash = answer.link_hash.hex()
        result.height = answer.height
    return result


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


def write_results(path: Path, rows: Sequence[Payment], results: Sequence[RowResult], scale: int) -> None:
    """Write the result file whole, or leave the old one. Raises `CommandFailed` when the disk refuses it."""
    in_place = path.exists() and not path.is_file()  # /dev/null, a pipe: nothing to be kept whole
    fresh = path if in_place else path.with_name(f".{path.name}.{os.getpid()}")
    what_to_do = (
        "make room there, or name another file with --result, then run the same command again: it pays nothing twice and "
        "writes all outcomes"
    )
    with on_disk(path, what_to_do):
        try:
            with fresh.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(
                    [
                        "line",
                        "from",
                        "to",
                        "amount",
                        "reference",
                        "outcome",
                        "repeated",
                        "request_id",
                        "link_hash",
                        "height",
                        "reason",
                    ]
                )
                for payment, result in zip(rows, results, strict=True):
                    writer.writerow(
                        [
                            payment.line,
                            payment.sender,
                            payment.recipient,
                            format_amount(payment.amount, scale) if not payment.fault else "",
                            payment.reference,
                            result.outcome,
                            "yes" if result.repeated else "",
                            result.request_id,
                            result.link_hash,
                            "" if result.height is None else result.height,
                            result.reason,
                        ]
                    )
            if not in_place:
                fresh.replace(path)
        finally:
            if not in_place:
                fresh.unlink(missing_ok=True)


def is_worse(results: Sequence[RowResult]) -> bool:
    """True when no row got an answer in this run and some were owed one: what an earlier run wrote says more."""
    return not any(r.answered for r in results) and any(r.outcome in _NO_ANSWER for r in results)


class Progress:
    """A progress bar on a terminal, nothing when piped or with `--json`."""

    def __init__(self, out: Output) -> None:
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._shown = out.fancy

    def __enter__(self) -> Self:
        if self._shown:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, what: str, total: int) -> None:
        """Start the next step."""
        if self._bar is not None:
            self._task = self._bar.add_task(what, total=total)

    def advance(self, count: int = 1) -> None:
        """So many more of it are done."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, count)

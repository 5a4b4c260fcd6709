"""The accounts of a run, made ready before its rows are paid: those that are missing are opened, the payers are funded.

Every step is a set of requests that are the same when made again. Funding is remembered row by row in the wallet
(cli.funding), because rows that are added to a file later must add to what a payer got, not get it all a second time. A
row that an earlier run paid without funding it, or may have, needs nothing.

A funding some of whose rows are not in the file any more is not made for them: it is cancelled. When it was rejected,
or now never executes, that is remembered, and what is left of its rows is funded anew. When it was made, its payers
keep it.
"""

import time
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from contextlib import suppress

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.link import Outcome
from chain.request import NetworkId, Posting, Request, RequestId, SignedRequest, encode_request, request_id, transfer
from cli.funding import FundedRows, Funding
from cli.opening import open_accounts
from cli.output import CommandFailed, Exit, counted
from cli.payfile import Payment, funding_nonce, payment_key
from cli.payplan import MAX_ATTEMPTS, Plan
from cli.payresult import NOT_SENT, RowResult, row_text
from cli.receipt import answer_exit, answer_name
from hopchain import Answer, Balance, CallRefused, Client, NotFound, Recorded, Unknown, Unreachable, sign_request
from hopchain.workers import work_on_each

SentBefore = Callable[[Sequence[Payment]], Mapping[str, tuple[RequestId, str]]]
Submit = Callable[[SignedRequest], Awaitable[Answer]]
Cancel = Callable[[RequestId, str], Awaitable[tuple[Answer, Recorded | None]]]


class RunAccounts:
    """What is known of the accounts of one run, and what was done to them. `unfit`: payers whose rows are not sent in
    this run, and why; `opening`: requests that open accounts may have left."""

    def __init__(self, plan: Plan) -> None:
        self.opened = 0
        self.opening = False
        self.opening_s = 0.0
        self.funded = 0
        self.unfit: dict[str, RowResult] = {}
        self._rows = plan.rows
        self._settings = plan.settings
        self._pools = plan.sources.pools
        self._wallet = plan.wallet
        self._progress = plan.progress
        self._assets: dict[str, str] = {}  # what the accounts hold that are known to exist

    async def find(self, client: Client) -> None:
        """Learn which accounts exist, and open those that are missing when the command line asked for that."""
        begin = time.perf_counter()
        self._assets = {line.name: line.asset for line in await client.all_accounts()}
        if self._settings.open_missing:
            self._assets |= dict.fromkeys(await self._open(client), self._settings.asset)
        self.opening_s = time.perf_counter() - begin

    async def fund(
        self,
        client: Client,
        source: str,
        rows: Sequence[tuple[Payment, str]],
        *,
        sent_before: SentBefore,
        journal: Container[bytes],
        submit: Submit,
        cancel: Cancel,
    ) -> None:
        """Give the payers of `rows`, each row with its payer, from `source` what their rows need; call `find` first.
        Payers that cannot be funded become `unfit`. Raises `CommandFailed` when the source cannot fund, `LocalMisuse`
        without its key.

        `sent_before` finds the newest request, with its account, of those rows that an earlier run sent, by key;
        `journal` has the ids of all requests of earlier runs; `submit` gets the answer to a request, `cancel` that to
        the cancellation of one, of an account, and the outcome of one that had it already."""
        key = self._wallet.key(source)
        await self._check_assets(client, source, {payer for _, payer in rows} - {source})
        remembered = FundedRows(self._wallet.directory, self._settings.label, source)
        here = {payment_key(payment) for payment in self._rows if not payment.fault}
        made: set[int] = set()  # numbers of requests that this file would not make again
        for request in remembered.requests:
            if not request.alone or here.issuperset(request.rows):
                continue
            if await self._was_made(client, source, request, journal, cancel):
                made.add(request.number)
            else:
                remembered.give_up(request)
        needy = {
            payment_key(payment): (payment, payer)
            for payment, payer in rows
            if payer not in self.unfit and payer != source and payer in self._assets
        }
        sent = sent_before([payment for row, (payment, _) in needy.items() if row not in remembered.rows])
        settled = await self._settled(client, sent)
        fresh = {row: each for row, each in needy.items() if row not in remembered.rows and row not in settled}
        remembered.add({row: (payer, payment.amount) for row, (payment, payer) in fresh.items()})
        asked = [request for request in remembered.requests if request.number not in made]
        self._progress.begin("funding payers", len(asked))
        for request in asked:
            await self._fund_payers(client, source, key, request, journal, submit)
            self._progress.advance()

    # --- which accounts exist ----------------------------------------------------------------------------------

    async def _open(self, client: Client) -> set[str]:
        """Open the accounts that the file names, and those of the pools, that nobody has; the names that exist now."""
        pools = {name: pool.accounts for name, pool in self._pools.items()}
        named = [name for p in self._rows if not p.fault for name in (*pools.get(p.sender, (p.sender,)), p.recipient)]
        missing = [name for name in dict.fromkeys(named) if name not in self._assets]
        self._progress.begin("opening accounts", len(missing))
        self.opening = bool(missing)
        opened = await open_accounts(
            client,
            self._wallet,
            missing,
            self._settings.asset,
            timeout_s=self._settings.timeout_s,
            progress=self._progress.advance,
        )
        done = {o.name for o in opened if answer_exit(o.answer) is Exit.DONE}
        self.opened = len(done)
        return done

    async def _find_assets(self, client: Client, names: Sequence[str]) -> None:
        """What accounts hold that one node's list lacks: that node may be behind, so a majority says whether they
        exist."""

        async def ask(name: str) -> None:
            answer = await client.balance(name, linearizable=True, timeout_s=self._settings.timeout_s)
            if isinstance(answer, Balance):
                self._assets[name] = answer.asset
            elif isinstance(answer, Unknown) or answer.stale:
                why = (
                    answer.reason if isinstance(answer, Unknown) else "the node that answered may be behind the others"
                )
                self.unfit[name] = RowResult(
                    NOT_SENT, f"it is not known whether {name} exists, so it was not funded: {why}. Run it again"
                )

        await work_on_each(names, ask, at_once=self._settings.concurrency)

    async def completed(self, client: Client, sent: Mapping[str, tuple[RequestId, str]]) -> set[str]:
        """Those of the rows, by key, whose requests are known to be completed; what cannot be found out is not."""
        found: set[tuple[RequestId, str]] = set()

        async def ask(request: tuple[RequestId, str]) -> None:
            with suppress(CallRefused, Unreachable):
                answer = await client.outcome(*request)
                if isinstance(answer, Recorded) and answer.completed:
                    found.add(request)

        await work_on_each(set(sent.values()), ask, at_once=self._settings.concurrency)
        return {row for row, request in sent.items() if request in found}

    # --- funding -----------------------------------------------------------------------------------------------

    async def _check_assets(self, client: Client, source: str, payers: set[str]) -> None:
        """Refuse a source of another asset than the run's; payers of another one are unfit."""
        await self._find_assets(client, sorted({source, *payers} - self._assets.keys()))
        held = self._assets.get(source, self._settings.asset)
        if held != self._settings.asset:
            raise CommandFailed(
                Exit.REJECTED,
                "asset_mismatch",
                f"{source} holds {held}, and this run pays {self._settings.asset}: fund the payers from an account of "
                f"{self._settings.asset}. No row was paid in this run",
            )
        for payer in payers & self._assets.keys():
            if self._assets[payer] != held:
                self.unfit[payer] = RowResult(
                    "asset_mismatch",
                    f"{payer} holds {self._assets[payer]}, so {source} cannot fund it with {held}; not sent in this run",
                )

    def _stays_rejected(self, answer: Recorded) -> bool:
        """True when this run does not send what was answered so once more; a pool may choose another account for it."""
        again = self._settings.retry_rejected or answer.outcome == Outcome.CANCELLED or bool(self._pools)
        return not answer.completed and not again

    async def _settled(self, client: Client, sent: Mapping[str, tuple[RequestId, str]]) -> set[str]:
        """Those of the rows, by key, whose requests are completed, or may be, for a node that may be behind the others
        cannot tell; or were rejected, and are not sent again by this run."""
        settled: set[tuple[RequestId, str]] = set()

        async def ask(request: tuple[RequestId, str]) -> None:
            with suppress(CallRefused):
                answer = await client.outcome(*request)
                over = isinstance(answer, Recorded) and (answer.completed or self._stays_rejected(answer))
                if not over and not (isinstance(answer, NotFound) and answer.stale):
                    return
            settled.add(request)

        await work_on_each(set(sent.values()), ask, at_once=self._settings.concurrency)
        return {row for row, request in sent.items() if request in settled}

    def _transfer(self, network: NetworkId, source: str, funding: Funding, attempt: int) -> Request:
        """One request for many payers. `attempt` above 0: once more after a rejection."""
        postings = [Posting(payer, amount, "funding") for payer, amount in funding.needs]
        nonce = funding_nonce(self._settings.label, source, funding.number, attempt, funding.needs)
        return transfer(network, source, postings, nonce)

    def _funding_id(self, network: NetworkId, source: str, funding: Funding, attempt: int) -> RequestId:
        return request_id(encode_request(self._transfer(network, source, funding, attempt)))

    async def _was_made(
        self, client: Client, source: str, funding: Funding, journal: Container[bytes], cancel: Cancel
    ) -> bool:
        """Whether a request that funds rows which are not all in the file any more was executed; when this is False, it
        never will be. Raises `CommandFailed` when that cannot be found out: funded anew, its rows might be funded
        twice."""
        newest = self._funding_id(client.network, source, funding, 0)  # maybe sent: a journal can lose a line
        for attempt in range(1, MAX_ATTEMPTS):
            made = self._funding_id(client.network, source, funding, attempt)
            if made not in journal:
                break
            newest = made  # those before it were rejected
        with suppress(CallRefused):
            decided = await client.outcome(newest, source)
            if isinstance(decided, Recorded):
                return decided.completed
        answer, outcome = await cancel(newest, source)
        if isinstance(answer, Recorded) and answer.completed:
            return False
        if outcome is not None:
            return outcome.completed
        raise CommandFailed(
            Exit.UNREACHABLE,
            "unknown",
            f"an earlier funding of {counted(len(funding.needs), 'payer')} from {source}, whose rows are not all in the file any more, "
            f"is not settled: {answer_name(answer)}: {row_text(answer, '')}. No row was paid in this run: run it again",
        )

    async def _fund_payers(
        self,
        client: Client,
        source: str,
        key: Ed25519PrivateKey,
        funding: Funding,
        journal: Container[bytes],
        submit: Submit,
    ) -> None:
        """Make a request that funds payers. One that was rejected in an earlier run is made anew, once a run."""
        needs = funding.needs
        for attempt in range(MAX_ATTEMPTS):
            signed = sign_request(self._transfer(client.network, source, funding, attempt), key)
            self._wallet.record_new([(signed.request_id, source, "funding")])
            answer = await submit(signed)
            if answer_exit(answer) is Exit.DONE:
                assert isinstance(answer, Recorded)
                self.funded += 0 if answer.repeated else sum(amount for _, amount in needs)
                return
            if not isinstance(answer, Recorded):
                break
            following = self._transfer(client.network, source, funding, attempt + 1)
            known = request_id(encode_request(following)) in journal
            if not (known or answer.repeated):
                break
        raise CommandFailed(
            answer_exit(answer),
            answer_name(answer),
            f"funding {counted(len(needs), 'payer')} from {source} did not work: {answer_name(answer)}: {row_text(answer, '')}. "
            "No row was paid in this run",
        )

"""`hopchain demo`: the commands that a user has, on five real nodes, with every claim checked.

Each step runs the command line itself, as separate processes, in a temporary directory with its own HOPCHAIN_HOME.
A claim that turns out untrue ends the demo with exit code 1. Nothing is left behind.
"""

import csv
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel
import click
import msgspec

from cli.command import HopCommand, run
from cli.home import HOME_VARIABLE, NETWORK_VARIABLE, load_network
from cli.money import format_amount
from cli.orders import make_orders
from cli.output import CommandFailed, Exit, JsonValue, Output, counted
from cli.ports import port_range
from cli.session import open_client
from cli.supervisor import stop
from node.signals import ending_signals

NODES: Final = 5
ORDERS: Final = 400
SEED: Final = 42
UP_S: Final = 30.0  # for all nodes to start, and for one to come back
COMMAND_S: Final = 90.0
LOOK_AGAIN_S: Final = 0.01
VICTIM: Final = "node-2"
_CLI: Final = (sys.executable, "-P", "-m", "cli.main")
PAY_OPTIONS: Final = (
    *("--from-column", "account_id", "--from-prefix", "payer-", "--to-column", "bank_to", "--to-column", "account_to"),
    *("--amount-column", "amount", "--reference-column", "k_symbol", "--open-missing", "--fund-from", "mint"),
)

_T = TypeVar("_T")


class _Receipt(msgspec.Struct):
    outcome: str
    request_id: str
    height: int | None = None
    decided_by_name: str | None = None
    hops: int | None = None
    milliseconds: float | None = None
    repeated: bool | None = None


class _Opened(msgspec.Struct):
    accounts: list[_Receipt]


class _Balance(msgspec.Struct):
    settled: int
    incoming: int
    available: int


class _RouteNode(msgspec.Struct):
    name: str


class _Route(msgspec.Struct):
    slot: str
    hops: int
    owner: _RouteNode


class _Paid(msgspec.Struct):
    rows: int
    completed: int
    repeated: int
    amount_completed: int
    opened: int
    rows_seconds: float


class _State(msgspec.Struct):
    alive: int


class _Cluster(msgspec.Struct):
    ok: bool


class _Audit(msgspec.Struct):
    ok: bool
    links: int


class _Made(msgspec.Struct):
    network: str


class _Event(msgspec.Struct):
    """One line of `hopchain up --json`."""

    event: str
    node: str
    pid: int | None = None
    code: int | None = None


@click.command(cls=HopCommand, examples=["hopchain demo", "hopchain demo --json"], own_signals=True)
def demo(out: Output) -> None:
    """Five nodes on this machine: accounts, payments, the same money sent twice, a node killed, all replicas equal.

    Takes under two minutes, uses free ports (of HOPCHAIN_PORTS=FROM-TO) and a temporary directory, and leaves nothing
    behind.
    """
    port_range()  # before anything is made
    begin = time.perf_counter()
    with TemporaryDirectory(prefix="hopchain-demo-") as place:
        show = _Demo(out, Path(place))
        run(show.run)
    took_s = time.perf_counter() - begin
    out.data({"ok": True, "claims": list(show.claims), "seconds": round(took_s, 1)})
    out.say()
    out.say(f"done in {took_s:.0f} s: {len(show.claims)} claims checked, all true", colour="green", bold=True)


class _Demo:
    """The narration. `claims` are those checked so far, all of them true."""

    def __init__(self, out: Output, place: Path) -> None:
        self.claims: list[JsonValue] = []
        self._out = out
        self._place = place
        self._network = place / "net"
        self._env = {k: v for k, v in os.environ.items() if k != NETWORK_VARIABLE} | {
            HOME_VARIABLE: str(place / "home")
        }
        self._pids: dict[str, int] = {}
        self._ended: dict[str, int | None] = {}
        self._news = anyio.Event()
        self._told = False
        self._stopping = False

    async def run(self) -> None:
        """All chapters, with the nodes running; they are stopped whatever happens."""
        await self._make()
        async with AsyncExitStack() as stack:
            self._chapter(2, "Five processes")
            self._show("up")
            process = await anyio.open_process(
                [*_CLI, "up", "--json", "--supervised"],
                env=self._env,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            stack.push_async_callback(_stop_shielded, process)
            tasks = await stack.enter_async_context(anyio.create_task_group())
            tasks.start_soon(self._listen, process)
            tasks.start_soon(self._until_told, tasks.cancel_scope)
            await self._wait_for(lambda: len(self._pids) == NODES, "all nodes answer")
            state = await self._command(_State, "status")
            self._claim("five processes serve clients", state.alive == NODES)
            await self._accounts()
            await self._same_money_twice()
            await self._payment_run()
            await self._audits()
            self._chapter(7, "Stop")
            pids = list(self._pids.values())
            self._stopping = True
            code = await stop(process)
            self._claim("all nodes stop at once and cleanly", code == 0 and not any(_is_running(pid) for pid in pids))
            tasks.cancel_scope.cancel()
        if self._told:
            raise CommandFailed(Exit.REJECTED, "interrupted", "the demo was told to end; its nodes are stopped")

    # --- chapters ----------------------------------------------------------------------------------------------

    async def _make(self) -> None:
        self._chapter(1, "A new network")
        words = ("--nodes", str(NODES), "--asset", "CZK:2", "--issuer", "mint", "--port", "0")
        made = await self._command(_Made, "init", str(self._network), *words)
        self._tell(f"genesis, CA, {NODES} node directories, operator key, wallet; network {made.network[:16]}")

    async def _accounts(self) -> None:
        self._chapter(3, "Accounts and a payment")
        opened = await self._command(_Opened, "account", "open", "alice", "bob", "carol")
        self._claim("three accounts are open", all(a.outcome == "completed" for a in opened.accounts))
        funded = await self._command(_Receipt, "transfer", "mint", "alice", "100")
        self._receipt("mint pays alice 100.00", funded)
        before = await self._command(_Balance, "balance", "alice", "--linearizable")
        self._tell(f"alice: settled {_czk(before.settled)}, incoming {_czk(before.incoming)}")
        self._claim("alice can spend what is incoming", before.available == 10_000)
        route = await self._command(_Route, "route", "alice")
        self._tell(f"alice's next link is made by {route.owner.name}, the node nearest to {route.slot[:16]}")
        rent = ("transfer", "alice", "bob", "30", "--nonce", "rent", "--reference", "rent for May")
        paid = await self._command(_Receipt, *rent)
        self._receipt("alice pays bob 30.00", paid)
        if paid.decided_by_name not in (None, route.owner.name):
            self._tell(f"({route.owner.name} was slow, so a standby took over)")
        moved = await self._command(_Route, "route", "alice")
        self._tell(f"the tail moved: the link after it is {moved.owner.name}'s")
        again = await self._command(_Receipt, *rent)
        self._claim(
            "the same command again pays nothing: it returns the recorded outcome",
            again.repeated is True and again.request_id == paid.request_id,
        )

    async def _same_money_twice(self) -> None:
        self._chapter(4, "The same money, twice, through two nodes at once")
        found: list[_Receipt] = []

        async def send(recipient: str, node: str) -> None:
            found.append(await self._command(_Receipt, "transfer", "alice", recipient, "70", "--at", node, ok=False))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send, "bob", "node-1")
            tasks.start_soon(send, "carol", "node-4")
        for receipt in found:
            self._receipt("  70.00", receipt)
        outcomes = sorted(r.outcome for r in found)
        self._claim("one was completed, the other was rejected", outcomes == ["completed", "insufficient_funds"])
        left = await self._command(_Balance, "balance", "alice", "--linearizable")
        self._claim("alice has 0.00 left, not -70.00", left.available == 0)

    async def _payment_run(self) -> None:
        self._chapter(5, f"A payment file of {ORDERS} orders, and kill -9 in mid-run")
        text = make_orders(ORDERS, random.Random(SEED))
        file = self._place / "orders.csv"
        file.write_text(text)
        rows = list(csv.DictReader(io.StringIO(text), delimiter=";"))
        total = int(sum((Decimal(row["amount"]) for row in rows), Decimal(0)).scaleb(2))
        payers = {f"payer-{row['account_id']}" for row in rows}
        names = payers | {f"{row['bank_to']}-{row['account_to']}" for row in rows}
        paid: list[_Paid] = []

        async def pay() -> None:
            paid.append(await self._command(_Paid, "pay", str(file), *PAY_OPTIONS))

        async with anyio.create_task_group() as tasks, open_client(load_network(self._network)) as client:
            begun_at = (await client.status()).log_height + len(names) + ORDERS // 10
            tasks.start_soon(pay)
            while not paid and (await client.status()).log_height < begun_at:  # noqa: ASYNC110 (nodes do not say when)
                await anyio.sleep(LOOK_AGAIN_S)
            killed = self._pids.pop(VICTIM)
            in_mid_run = not paid
            self._tell(f"kill -9 {killed}    # {VICTIM}")
            os.kill(killed, signal.SIGKILL)
        (first,) = paid
        self._claim(f"{VICTIM} was killed while payments were being made", in_mid_run)
        self._claim(
            f"all {ORDERS} payments were completed without it: {_czk(first.amount_completed)} in {first.rows_seconds:.1f} s",
            first.completed == ORDERS and first.amount_completed == total,
        )
        await self._wait_for(lambda: self._pids.get(VICTIM, killed) != killed, f"{VICTIM} is back")
        self._claim(f"{VICTIM} ended by signal 9 and came back by itself", self._ended.get(VICTIM) == -signal.SIGKILL)
        again = await self._command(_Paid, "pay", str(file), *PAY_OPTIONS)
        self._claim(
            f"the file run again pays nothing: {again.repeated} of {again.rows} were recorded before",
            again.repeated == again.completed == ORDERS,
        )

    async def _audits(self) -> None:
        self._chapter(6, "Do all agree?")
        cluster = await self._command(_Cluster, "verify", "--cluster", "--settle", "30", ok=False)
        self._claim("five replicas are equal, also the one that was killed; no money was made or lost", cluster.ok)
        audit = await self._command(_Audit, "verify", str(self._network / VICTIM), ok=False)
        self._claim(
            f"{VICTIM}'s database holds up when derived again from its {counted(audit.links, 'link')}", audit.ok
        )

    # --- telling -----------------------------------------------------------------------------------------------

    def _chapter(self, number: int, title: str) -> None:
        self._out.say()
        self._out.say(f"{number}. {title}", colour="cyan", bold=True)

    def _show(self, command: str) -> None:
        self._out.say(f"   $ hopchain {command}", bold=True)

    def _tell(self, text: str) -> None:
        self._out.say(f"     {text}")

    def _receipt(self, what: str, receipt: _Receipt) -> None:
        by = f"by {receipt.decided_by_name}, " if receipt.decided_by_name is not None else ""
        where = f"{by}link {receipt.height}, {counted(receipt.hops or 0, 'hop')}, {receipt.milliseconds} ms"
        self._tell(f"{what}: {receipt.outcome} {where}")

    def _claim(self, text: str, holds: bool) -> None:
        if not holds:
            raise CommandFailed(Exit.REJECTED, "untrue", f"the demo claims that {text}; that is not so")
        self.claims.append(text)
        self._out.say(f"   ✓ {text}", colour="green")

    # --- doing -------------------------------------------------------------------------------------------------

    async def _command(self, kind: type[_T], *words: str, ok: bool = True) -> _T:
        """Run `hopchain WORDS --json` as a process and read its document. `ok`: it must end with exit code 0."""
        self._show(" ".join(_short(word, self._place) for word in words))
        try:
            with anyio.fail_after(COMMAND_S):
                done = await anyio.run_process([*_CLI, *words, "--json"], env=self._env, check=False)
        except TimeoutError:
            raise CommandFailed(
                Exit.REJECTED, "untrue", f"hopchain {words[0]} did not end within {COMMAND_S:g} s, and was ended"
            ) from None
        said = (done.stdout + done.stderr).decode(errors="replace").strip()[-800:]
        if ok and done.returncode != 0:
            raise CommandFailed(Exit.REJECTED, "untrue", f"hopchain {words[0]} ended with {done.returncode}: {said}")
        try:
            return msgspec.json.decode(done.stdout, type=kind)
        except msgspec.MsgspecError:
            raise CommandFailed(Exit.REJECTED, "untrue", f"hopchain {words[0]} answered: {said}") from None

    async def _listen(self, process: anyio.abc.Process) -> None:
        """Follow the events of `hopchain up`. `CommandFailed`, with what else it said, when it ends by itself."""
        assert process.stdout is not None
        rest, said = b"", b""
        async for data in process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                try:
                    self._hear(msgspec.json.decode(line, type=_Event))
                except msgspec.MsgspecError:
                    said += line + b"\n"
        if not self._stopping:
            words = (said + rest).decode(errors="replace").strip()[-800:]
            raise CommandFailed(
                Exit.REJECTED, "untrue", f"hopchain up ended by itself: {words or 'it did not say why'}"
            )

    async def _until_told(self, scope: anyio.CancelScope) -> None:
        """End the demo in order when this process is told to."""
        told = set(ending_signals()) - {signal.SIGINT}  # that one is Ctrl-C, which ends a command as any other
        with anyio.open_signal_receiver(*told) as signals:
            async for _ in signals:
                self._told = True
                scope.cancel()

    def _hear(self, event: _Event) -> None:
        if event.event == "up" and event.pid is not None:
            self._pids[event.node] = event.pid
        elif event.event == "ended":
            self._ended[event.node] = event.code
        self._news.set()

    async def _wait_for(self, holds: Callable[[], bool], what: str) -> None:
        with anyio.move_on_after(UP_S):
            while not holds():
                await self._news.wait()
                self._news = anyio.Event()
            return
        raise CommandFailed(Exit.REJECTED, "untrue", f"the demo claims that {what} within {UP_S:g} s; that is not so")


async def _stop_shielded(process: anyio.abc.Process) -> None:
    with anyio.CancelScope(shield=True):
        await stop(process)
        await process.aclose()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _short(word: str, place: Path) -> str:
    word = word.removeprefix(f"{place}/")
    return f'"{word}"' if " " in word else word


def _czk(amount: int) -> str:
    return format_amount(amount, 2, "CZK", grouped=True)

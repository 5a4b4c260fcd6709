"""Real nodes as processes on loopback: started, killed and waited for by what they say of themselves.

Nothing waits for a fixed time: `until` asks again until a condition holds or its deadline has passed, and then says
what was seen last. A node ends when its standard input closes, so that not even `kill -9` of the tests leaves one
behind.
"""

import hashlib
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.audit import audit
from chain.disk import open_database
from chain.genesis import Asset
from chain.reads import state_digest
from chain.request import ANY_TIP, Posting, Request, SignedRequest, opening, sign, transfer
from hopchain import Answer, Client, Digest, NotStarted, Outcome, Recorded, Status, Unknown, Unreachable
from node.config import encode_config, read_config
from node.layout import DATABASE, NodePlace, make_network
from tests.ports import take

NOW_MS = 1_700_000_000_000
ISSUER = "mint"
ISSUERS = {ISSUER: "CZK", "ezb-1": "EUR", "ezb-2": "EUR"}
FUNDS = 1_000_000
START_S = 60.0  # five interpreters on a busy machine
SETTLE_S = 60.0
STOP_S = 60.0
QUARANTINE_S = 10.0  # for a node whose disk is not what others saw to end, once it can be heard of
ASK_S = 0.05  # between two looks at a condition
# Without what pings and pulls keep.
TABLES = ("accounts", "confirmations", "incoming", "links", "meta", "outcomes", "postings", "threads", "views", "votes")

T = TypeVar("T")


def key_of(name: str) -> Ed25519PrivateKey:
    """The key of an account or node, the same in every run."""
    return Ed25519PrivateKey.from_private_bytes(random.Random(name).randbytes(32))


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


async def until(what: str, look: Callable[[], Awaitable[tuple[bool, object]]], timeout_s: float) -> None:
    """Return when `look` says True; `AssertionError` with what it saw last when it does not within `timeout_s`."""
    seen: object = None
    with trio.move_on_after(timeout_s):
        while True:
            holds, seen = await look()
            if holds:
                return
            await trio.sleep(ASK_S)
    raise AssertionError(f"not within {timeout_s:g} s: {what}; last seen: {seen}")


@dataclass(frozen=True)
class Ended:
    """How a process ended and what it printed."""

    code: int
    text: str


class NodeProcess:
    """One node's directory, and its process when it runs."""

    def __init__(self, place: NodePlace, directory: Path) -> None:
        self.place = place
        self.directory = directory
        self.log = directory / "test.log"
        self._log_begin = 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def client_address(self) -> tuple[str, int]:
        return (self.place.host, self.place.client_port)

    @property
    def peer_address(self) -> tuple[str, int]:
        return (self.place.host, self.place.port)

    def start(self, command: Sequence[str] = (), preexec: Callable[[], None] | None = None) -> None:
        """Start the node, as `hopchain node` or by another `command` that takes its directory."""
        assert not self.runs
        with self.log.open("ab") as log:
            self._log_begin = log.tell()
            self.process = spawn([*(command or NODE_COMMAND), str(self.directory), "--supervised"], log, preexec)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone. Also for one that does not run."""
        if self.process is not None:
            self.process.kill()
            end(self.process)
            self.process = None

    async def ended(self, timeout_s: float = STOP_S) -> Ended:
        """Wait until the process has ended by itself."""
        process = self.process
        assert process is not None

        async def look() -> tuple[bool, object]:
            return process.poll() is not None, process.pid

        await until(f"{self.place.name} ends", look, timeout_s)
        self.process = None
        code = end(process)
        return Ended(code, self.log_tail())

    def this_log(self) -> str:
        """What the process that was started last has printed."""
        return self.log.read_bytes()[self._log_begin :].decode(errors="replace")

    def log_tail(self, lines: int = 30) -> str:
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


NODE_COMMAND = (sys.executable, "-m", "cli.main", "node")
ODD_NODE = (sys.executable, str(Path(__file__).with_name("odd_node.py")))


def spawn(
    command: Sequence[str], output: BinaryIO, preexec: Callable[[], None] | None = None
) -> subprocess.Popen[bytes]:
    """A process of the project; its standard input closes when the tests end, however they do."""
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, preexec_fn=preexec)


def end(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process that has ended or is about to."""
    assert process.stdin is not None
    process.stdin.close()
    return process.wait(STOP_S)


@dataclass(frozen=True)
class Rows:
    """What is in one node's database: its state digest and how many rows each table has."""

    digest: bytes
    counts: tuple[tuple[str, int], ...]


class Cluster:
    """A network of real nodes. `start` and `close` are plain functions; the rest is used inside `async with opened()`.

    `clients[i]` talks to node i only; `client` to all of them.
    """

    clients: list[Client]
    client: Client

    def __init__(self, directory: Path, nodes: int, k: int = 5) -> None:
        ports = take(2 * nodes)
        self.network = make_network(
            directory,
            nodes=nodes,
            k=k,
            assets=[Asset("CZK", 2), Asset("EUR", 2)],
            issuers={name: (asset, public(key_of(name))) for name, asset in ISSUERS.items()},
            ports=list(zip(ports[::2], ports[1::2], strict=True)),
            name="test",
            now_ms=NOW_MS,
            days=36_500,
        )
        self.id = self.network.network_id
        self.nodes = [NodeProcess(place, self.network.node_directory(place)) for place in self.network.nodes]
        self._nonces = 0

    # --- processes ---

    def start(self, *numbers: int) -> None:
        """Start these nodes, or all of them that do not run."""
        for number in numbers or range(len(self.nodes)):
            if not self.nodes[number].runs:
                self.nodes[number].start()

    def kill(self, *numbers: int) -> None:
        """kill -9 these nodes, or all, all of them before waiting for any."""
        chosen = [self.nodes[number] for number in numbers or range(len(self.nodes))]
        for node in chosen:
            if node.process is not None:
                node.process.kill()
        for node in chosen:
            node.kill()

    def close(self) -> None:
        """End everything that was started."""
        self.kill()

    async def stop(self, *numbers: int) -> None:
        """SIGTERM these nodes, or all; each must end cleanly."""
        chosen = [self.nodes[number] for number in numbers or range(len(self.nodes))]
        for node in chosen:
            node.signal(signal.SIGTERM)
        for node in chosen:
            ended = await node.ended()
            assert ended.code == 0, ended

    def running(self) -> list[int]:
        return [number for number, node in enumerate(self.nodes) if node.runs]

    # --- clients ---

    def new_client(self, numbers: Sequence[int], *, spread: bool = False) -> Client:
        addresses = [self.nodes[number].client_address for number in numbers]
        return Client(addresses, self.network.genesis.ca, self.id, spread=spread)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Cluster"]:
        """Have clients, and all nodes running and connected; also after a test that left some dead or stopped."""
        every = range(len(self.nodes))
        async with AsyncExitStack() as stack:
            self.clients = [await stack.enter_async_context(self.new_client([number])) for number in every]
            self.client = await stack.enter_async_context(self.new_client(every, spread=True))
            for node in self.nodes:
                if node.runs:
                    node.signal(signal.SIGCONT)
            self.start()
            await self.wait_up()
            yield self

    # --- waiting ---

    async def wait_up(self) -> None:
        """Every running node serves, and sees every other running one alive."""
        running = self.running()
        ids = {self.nodes[number].place.node_id for number in running}

        async def look(number: int) -> tuple[bool, object]:
            for other in running:
                assert self.nodes[other].runs, (other, self.nodes[other].log_tail())
            try:
                status = await self.clients[number].status()
            except Unreachable as error:
                return False, error
            alive = {peer.id for peer in status.peers if peer.alive} | {status.id}
            return alive == ids, status.peers

        for number in running:
            await until(f"node {number} sees {len(ids)} nodes", lambda n=number: look(n), START_S)

    async def wait_serves(self, number: int) -> None:
        """This node answers clients, whoever else is there."""

        async def look() -> tuple[bool, object]:
            assert self.nodes[number].runs, self.nodes[number].log_tail()
            try:
                return True, await self.clients[number].status()
            except Unreachable as error:
                return False, error

        await until(f"node {number} serves", look, START_S)

    async def settle(self) -> Digest:
        """Wait until nothing is in flight and all running nodes have the same digest; no money was made or lost."""

        running = self.running()

        async def look() -> tuple[bool, object]:
            assert self.running() == running, [node.log_tail() for node in self.nodes if not node.runs]
            try:
                digests = [await self.clients[number].digest() for number in running]
                states = [await self.clients[number].status() for number in running]
            except Unreachable as error:
                return False, error
            found.append(digests[0])
            # A decided link is told before its commit, so what a node knows must be what its database has.
            written = all(d.links == state.log_height for d, state in zip(digests, states, strict=True))
            return len({d.digest for d in digests}) == 1 and written and all(map(is_quiet, states)), [
                (d.digest.hex()[:16], d.links, state.log_height) for d, state in zip(digests, states, strict=True)
            ]

        found: list[Digest] = []
        await until("all replicas are equal and at rest", look, SETTLE_S)
        assert all(total.total == 0 for total in found[-1].totals), found[-1].totals
        return found[-1]

    # --- requests ---

    def nonce(self) -> bytes:
        self._nonces += 1
        return hashlib.sha256(b"nonce %d" % self._nonces).digest()

    def signed(self, request: Request) -> SignedRequest:
        return sign(request, key_of(request.sender))

    def open_request(self, name: str, asset: str = "CZK") -> SignedRequest:
        return self.signed(opening(self.id, name, asset, public(key_of(name)), self.nonce()))

    def pay_request(self, sender: str, recipient: str, amount: int, *, tip: bytes = ANY_TIP) -> SignedRequest:
        return self.signed(transfer(self.id, sender, [Posting(recipient, amount)], self.nonce(), expect_tip=tip))

    async def accounts(self, prefix: str, count: int, funds: int = FUNDS) -> list[str]:
        """Open `count` accounts named `prefix`-1.. and give each `funds` from the issuer."""
        names = [f"{prefix}-{number}" for number in range(1, count + 1)]
        await self.completed([self.open_request(name) for name in names])
        if funds:
            postings = [Posting(name, funds) for name in names]
            await self.completed([self.signed(transfer(self.id, ISSUER, postings, self.nonce()))])
        return names

    async def completed(self, requests: Iterable[SignedRequest], *, concurrency: int = 20) -> list[Recorded]:
        """Have all requests completed, by any nodes; what is not answered in time is sent again."""
        answers = await self.each(requests, self.settled, concurrency=concurrency)
        assert all(answer.outcome == Outcome.COMPLETED for answer in answers), answers
        return answers

    async def settled(self, request: SignedRequest) -> Recorded:
        """The one outcome of a request, asked for until it is known."""
        answer: Answer | None = None
        with trio.move_on_after(SETTLE_S):
            while True:
                answer = await self.client.submit(request)
                if not isinstance(answer, NotStarted | Unknown):
                    break
        assert isinstance(answer, Recorded), answer
        return answer

    async def each(
        self,
        requests: Iterable[SignedRequest],
        submit: Callable[[SignedRequest], Awaitable[T]],
        *,
        concurrency: int = 20,
    ) -> list[T]:
        """`submit` each of the requests, `concurrency` at a time; the answers in order."""
        waiting = iter(enumerate(requests))
        answers: dict[int, T] = {}

        async def work() -> None:
            for number, request in waiting:
                answers[number] = await submit(request)

        async with trio.open_nursery() as nursery:
            for _ in range(concurrency):
                nursery.start_soon(work)
        return [answers[number] for number in sorted(answers)]

    # --- looking into databases ---

    def database(self, number: int) -> Path:
        return self.nodes[number].directory / DATABASE

    def rows(self, number: int) -> Rows:
        """What this node's database holds now."""
        return rows_of(self.database(number))

    def all_rows(self) -> list[Rows]:
        """What each node's database holds now."""
        return [self.rows(number) for number in range(len(self.nodes))]

    def outcomes(self, number: int) -> dict[bytes, int]:
        """request id -> outcome, as recorded on this node."""
        with closing(open_database(self.database(number), writer=False)) as conn:
            return dict(conn.execute("SELECT request_id, outcome FROM outcomes"))

    def votes_seen(self, number: int, of: int) -> int:
        """How often node `of` has made votes durable, as node `number` remembers."""
        with closing(open_database(self.database(number), writer=False)) as conn:
            row = conn.execute("SELECT votes FROM seen WHERE node = ?", (self.nodes[of].place.node_id,)).fetchone()
        return 0 if row is None else int(row[0])

    def audit(self, number: int) -> None:
        """Everything in this node's database follows from its links."""
        with closing(open_database(self.database(number), writer=False)) as conn:
            report = audit(conn, genesis=self.network.genesis)
        assert report.ok, report


def rows_of(path: Path) -> Rows:
    """What a node's database holds now."""
    with closing(open_database(path, writer=False)) as conn:
        return Rows(state_digest(conn).digest, tuple((table, _count(conn, table)) for table in TABLES))


def _count(conn: sqlite3.Connection, table: str) -> int:
    count: int = conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    return count


async def has_served(node: NodeProcess) -> tuple[bool, object]:
    """The process of now has come so far that others could hear of it, or has ended since."""
    log = node.this_log()
    return "serves clients" in log or "error:" in log, log


def is_quiet(status: Status) -> bool:
    """Nothing is in flight on this node."""
    return not (status.undecided or status.waiting_links or status.queued_requests or status.client_requests)


def change_config(directory: Path, **fields: object) -> None:
    """Change settings in a node's config.toml."""
    (directory / "config.toml").write_bytes(encode_config(msgspec.structs.replace(read_config(directory), **fields)))

"""The client: submit signed requests and ask questions, on trio or asyncio.

    async with Client([("127.0.0.1", 7402)], ca_pem, network_id) as client:
        answer = await client.transfer("alice", key, [Posting("bob", 1250)])

What a node answers is a value (design R13); only "no node could be asked" is an exception:

| answer | meaning |
|---|---|
| `Recorded` | final: completed or rejected, the same at every node for ever |
| `Stale` | final: the tip it expected has a successor, so it can never execute |
| `NotStarted` | nothing happened; the same request may be sent again |
| `Refused` | nothing happened; the call itself is wrong, the text says why |
| `Unknown` | the deadline passed: ask `outcome` later, submit the same bytes again, or settle it with `cancel` |

A request is its bytes: sending it twice, anywhere, executes it once. So `submit` goes on to the next node when one is
lost or does not start, until its deadline. Once any node may have taken the request, "it did not happen" is never
concluded from another node's refusal: the answer is then `Unknown`.
"""

import secrets
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import anyio
from anyio.abc import TaskGroup
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.errors import LocalMisuse, RemoteFault
from chain.request import (
    ANY_HEIGHT,
    ANY_TIP,
    NetworkId,
    Posting,
    Request,
    RequestId,
    SignedRequest,
    cancellation,
    decode_request_untrusted,
    opening,
    transfer,
)
from hopchain.bulk import signed_requests, submit_each
from hopchain.calls import Address, Calls, ConnectionLost, DialFailed, Timing, dial
from hopchain.change import SignedChange
from hopchain.connection import client_context
from hopchain.errors import CallRefused, ClientError, Unreachable
from hopchain.signing import raw_public_key as raw_public_key
from hopchain.signing import sign_request as sign_request
from hopchain.tails import Tails
from hopchain.wire import (
    MAX_PAGE,
    AccountLine,
    Accounts,
    AskAccounts,
    AskBalance,
    AskChain,
    AskDigest,
    AskHealth,
    AskMembers,
    AskOutcome,
    AskRoute,
    AskStatus,
    Balance,
    CallBody,
    Chain,
    Changed,
    Digest,
    Health,
    Members,
    NotFound,
    NotStarted,
    Recorded,
    Refused,
    ReplyBody,
    Route,
    Stale,
    Status,
    Submit,
    SubmitChange,
    Unknown,
    ViewLine,
)
from routing.keyspace import distance

Answer = Recorded | Stale | NotStarted | Unknown | Refused
NodeAddress = tuple[str, int]

DEFAULT_TIMEOUT_S: Final = 10.0
NODE_SHARE: Final = 0.9  # of the time that is left is given to a node, so that its own answer arrives in time
FIRST_PAUSE_S: Final = 0.05  # between rounds over all nodes; doubles
LAST_PAUSE_S: Final = 0.5
LONGEST_REST_S: Final = 2.0  # between two tries to reach a node again, while others answer
NONCE_BYTES: Final = 32
_NOT_OPEN: Final = "the client is not open: use `async with Client(...) as client`"
_CLOSED: Final = "the client was closed"


class _Node:
    """One node as the client knows it: its connection, if any, and how long it rests after failures.

    Calls that want a connection at the same time share one dial and its result: a node whose cable is cut costs whoever
    waits one dial's patience, not one each."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.id = b""  # of whoever answered there last; empty when nobody did, or said none
        self.connection: Calls | None = None
        self.dialing = anyio.Lock()
        self.dials = 0
        self.refusal: DialFailed | None = None  # of the last dial
        self.failures = 0
        self.rest_until = 0.0
        self.reviving = False

    @property
    def open(self) -> bool:
        """It can be asked at once."""
        return self.connection is not None and self.connection.lost is None

    @property
    def full(self) -> bool:
        """Its connection has no room for another call."""
        return self.connection is not None and self.connection.full

    @property
    def failing(self) -> bool:
        """It could not be reached, or was lost: others are asked first until it is back."""
        return self.failures > 0 and not self.open

    def failed(self) -> None:
        """Remember a failure: the node rests for a while."""
        self.failures += 1
        self.rest_until = anyio.current_time() + min(FIRST_PAUSE_S * 2**self.failures, LONGEST_REST_S)


class _Effort:
    """What is known about one request while it is being submitted."""

    def __init__(self, request_id: RequestId) -> None:
        self.request_id = request_id
        self.doubt: str | None = None  # why an earlier attempt may still execute
        self.refusal = ""  # of another node, after that
        self.not_started: NotStarted | None = None
        self.tried: list[tuple[str, str]] = []

    def at_deadline(self, timeout_s: float) -> Answer:
        """The answer when time is up; raises `Unreachable` when no node ever had the request."""
        if self.doubt is not None:
            return Unknown(self.request_id, f"no answer within {timeout_s:g} s: {self.doubt}{self.refusal}")
        if self.not_started is not None:
            return self.not_started
        raise Unreachable(self.tried, self.request_id)


class Client:
    """A client of one network. Use as `async with Client(...) as client`; any number of tasks may share it.

    `nodes`: (host, client port) of the nodes to ask, the first that answers is kept; `spread` uses all of them: a request
    goes to the one that makes its sender's next link, as far as that is known (hopchain.tails), everything else to each in
    turn. `ca_pem`: the network's CA certificate. `network`: the 32-byte network id. Methods take `at=(host, port)` to pin
    one node.
    """

    def __init__(
        self,
        nodes: Sequence[NodeAddress],
        ca_pem: str,
        network: bytes,
        *,
        spread: bool = False,
        timing: Timing | None = None,
    ) -> None:
        if not nodes:
            raise LocalMisuse("a client needs the address of at least one node")
        self.network = NetworkId(network)
        self._context: ssl.SSLContext = client_context(ca_pem)
        self._timing = timing or Timing()
        self._spread = spread
        self._turn = 0
        self._nodes = {a: _Node(a) for a in (Address(host, port) for host, port in nodes)}
        self._addresses = tuple(self._nodes)
        self._tasks: TaskGroup | None = None
        self._tails = Tails()

    async def __aenter__(self) -> Self:
        self._tasks = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close all connections. The body's own exception is not told to the task group: it leaves as it is, not in
        an ExceptionGroup."""
        assert self._tasks is not None
        tasks, self._tasks = self._tasks, None
        tasks.cancel_scope.cancel()
        await tasks.__aexit__(None, None, None)

    # --- requests ----------------------------------------------------------------------------------------------

    async def submit(
        self, signed: SignedRequest, timeout_s: float = DEFAULT_TIMEOUT_S, *, at: NodeAddress | None = None
    ) -> Answer:
        """Have a signed request executed once; the answers are listed above. May be repeated at any time.

        Raises `Unreachable` when no node could be handed the request, `LocalMisuse` when it is not well formed.
        """
        try:
            request = decode_request_untrusted(signed.raw)
        except RemoteFault as error:
            raise LocalMisuse(f"this request cannot be sent: {error.text}") from None
        if self._tasks is None:
            raise LocalMisuse(_NOT_OPEN)
        effort = _Effort(signed.request_id)
        deadline = anyio.current_time() + timeout_s
        answer: Answer | None = None
        try:
            with anyio.CancelScope(deadline=deadline):
                answer = await self._submit(signed, request.sender, effort, deadline, timeout_s, at)
        finally:
            self._note(request.sender, answer)
        return effort.at_deadline(timeout_s) if answer is None else answer

    async def open_account(
        self,
        name: str,
        asset: str,
        key: Ed25519PrivateKey,
        *,
        nonce: bytes = bytes(NONCE_BYTES),
        timeout_s: float = DEFAULT_TIMEOUT_S,
        at: NodeAddress | None = None,
    ) -> Answer:
        """Open account `name` in `asset`, owned by `key`. The same call again gives the same answer, `repeated`."""
        request = opening(self.network, name, asset, raw_public_key(key), nonce)
        return await self.submit(sign_request(request, key), timeout_s, at=at)

    async def transfer(
        self,
        sender: str,
        key: Ed25519PrivateKey,
        postings: Sequence[Posting],
        *,
        nonce: bytes | None = None,
        expect_tip: bytes = ANY_TIP,
        valid_until_height: int = ANY_HEIGHT,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        at: NodeAddress | None = None,
    ) -> Answer:
        """Pay all `postings` (amounts in minor units) from `sender`, or none. `nonce` (32 bytes) makes the payment
        this one and no other: give your own to be able to repeat the call safely; None takes a random one."""
        request = transfer(
            self.network,
            sender,
            postings,
            secrets.token_bytes(NONCE_BYTES) if nonce is None else nonce,
            expect_tip=expect_tip,
            valid_until_height=valid_until_height,
        )
        return await self.submit(sign_request(request, key), timeout_s, at=at)

    async def submit_many(
        self,
        requests: Sequence[Request],
        keys: Mapping[str, Ed25519PrivateKey],
        *,
        atomic: bool = False,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        at: NodeAddress | None = None,
    ) -> list[Answer | ClientError]:
        """Sign (`keys`: account -> key) and submit many requests; what became of each, in order. Make them with
        `chain.request.transfer`; with nonces of your own the same call again executes nothing twice.

        Each is independent of the others, and one that fails stops none; `timeout_s` is for each. `atomic`: transfers of one
        account, all or nothing (hopchain.bulk): one request, whose one answer is that of each.
        Raises `LocalMisuse` before anything is sent when one of them cannot be made, or the client is not open.
        """
        if self._tasks is None:
            raise LocalMisuse(_NOT_OPEN)
        signed = signed_requests(requests, keys, atomic=atomic)
        answers = await submit_each(lambda each: self.submit(each, timeout_s, at=at), signed)
        return answers * len(requests) if atomic else answers

    async def cancel(
        self,
        sender: str,
        key: Ed25519PrivateKey,
        target: bytes,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        at: NodeAddress | None = None,
    ) -> Answer:
        """Make sure that request `target` of `sender` never executes. Outcome COMPLETED: it never will.
        ALREADY_DECIDED: it has its outcome, ask `outcome`. The nonce is the target, so asking twice is one request."""
        request = cancellation(self.network, sender, RequestId(target), target)
        return await self.submit(sign_request(request, key), timeout_s, at=at)

    async def _submit(
        self,
        signed: SignedRequest,
        sender: str,
        effort: _Effort,
        deadline: float,
        timeout_s: float,
        at: NodeAddress | None,
    ) -> Answer:
        pause = FIRST_PAUSE_S
        while True:
            reached = False
            for node in self._order(at, sender):
                try:
                    connection = await self._connect(node)
                except DialFailed as error:
                    effort.tried.append((str(node.address), str(error)))
                    continue
                reached = True
                answer = await self._attempt(connection, signed, effort, deadline)
                if answer is None:
                    continue
                if not isinstance(answer, Unknown) or deadline - anyio.current_time() < timeout_s * (1 - NODE_SHARE):
                    return answer
            if not reached and (self._tasks is None or (effort.doubt is None and effort.not_started is None)):
                return effort.at_deadline(timeout_s)
            await anyio.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE_S)

    def _note(self, sender: str, answer: Answer | None) -> None:
        """What an answer tells about where the sender's next request should go; None: it was not waited for."""
        match answer:
            case Recorded(link_hash=tail, height=height) | Stale(tip=tail, height=height):
                self._tails.saw(sender, height, tail)
            case Refused():
                pass
            case _:
                self._tails.doubt(sender)

    async def _attempt(
        self, connection: Calls, signed: SignedRequest, effort: _Effort, deadline: float
    ) -> Answer | None:
        """Hand the request to one node: its answer, or None when another node should be asked."""
        before = effort.doubt
        effort.doubt = before or f"{connection.address} had it and did not answer"
        left_ms = max(1, int((deadline - anyio.current_time()) * NODE_SHARE * 1000))
        try:
            answer = await connection.call(Submit(signed.raw, signed.signature, left_ms))
        except ConnectionLost as error:
            effort.doubt = f"{connection.address} had it when the connection was lost ({error.why})"
            if not error.sent:
                effort.doubt = before
                effort.tried.append((str(connection.address), error.why))
            return None
        match answer:
            case Recorded(request_id=about) | Stale(request_id=about) if about == signed.request_id:
                return answer
            case NotStarted(request_id=about) if about == signed.request_id:
                effort.doubt = before
                effort.not_started = answer
                return None
            case Unknown(request_id=about) if about == signed.request_id:
                effort.doubt = answer.reason
                return answer
            case Refused():
                if before is None:
                    return answer
                effort.doubt = before
                effort.refusal = f"; then {connection.address} refused it: {answer.reason} [{answer.code}]"
                return None
            case _:
                connection.lose(f"{connection.address} broke the protocol: {type(answer).__name__} to a request")
                return None

    # --- questions ---------------------------------------------------------------------------------------------

    async def balance(
        self,
        account: str,
        *,
        linearizable: bool = False,
        min_height: int | None = None,
        timeout_s: float = 5.0,
        at: NodeAddress | None = None,
    ) -> Balance | NotFound | Unknown:
        """Balance of an account from one node's replica, at least as new as what this client was told before (or as
        link `min_height`); `linearizable` asks a majority. `Unknown`: not within `timeout_s`."""
        height = self._tails.height(account) if min_height is None else min_height
        question = AskBalance(account, linearizable, height, int(timeout_s * 1000))
        answer = await self._ask(question, at, timeout_s + self._timing.read_s)
        if isinstance(answer, Balance):
            self._tails.saw(account, answer.height, answer.tip)
        if isinstance(answer, Balance | NotFound | Unknown):
            return answer
        raise _unexpected(question, answer)

    async def chain(
        self, account: str, from_height: int = 0, limit: int = MAX_PAGE, *, at: NodeAddress | None = None
    ) -> Chain | NotFound:
        """Links of an account from `from_height`, ascending, at most `limit` (at most MAX_PAGE; a node may give fewer)."""
        question = AskChain(account, from_height, limit)
        answer = await self._ask(question, at)
        if isinstance(answer, Chain | NotFound):
            return answer
        raise _unexpected(question, answer)

    async def accounts(self, after: str = "", limit: int = MAX_PAGE, *, at: NodeAddress | None = None) -> Accounts:
        """One page of accounts in name order, after the name `after`."""
        question = AskAccounts(after, limit)
        answer = await self._ask(question, at)
        if isinstance(answer, Accounts):
            return answer
        raise _unexpected(question, answer)

    async def all_accounts(self, *, at: NodeAddress | None = None) -> list[AccountLine]:
        """All accounts in name order, page after page."""
        return list((await self.account_list(at=at)).accounts)

    async def account_list(self, *, at: NodeAddress | None = None) -> Accounts:
        """All accounts in name order as one answer, `stale` when a page of it is."""
        found: list[AccountLine] = []
        after = ""
        stale = False
        while True:
            page = await self.accounts(after, at=at)
            found += page.accounts
            stale = stale or page.stale
            if not page.more or not page.accounts or page.accounts[-1].name <= after:
                return Accounts(tuple(found), False, stale)
            after = page.accounts[-1].name

    async def outcome(
        self, request_id: bytes, account: str = "", *, at: NodeAddress | None = None
    ) -> Recorded | NotFound:
        """What became of a request, as one node knows it; name the `account` that sent it when you know it (anybody
        may have cancelled an id that is not theirs). `NotFound` is not final: other nodes may know more."""
        question = AskOutcome(request_id, account)
        answer = await self._ask(question, at)
        if isinstance(answer, Recorded | NotFound):
            return answer
        raise _unexpected(question, answer)

    async def route(self, *, account: str = "", key: bytes = b"", at: NodeAddress | None = None) -> Route | NotFound:
        """A Kademlia lookup of an account's tail hash, or of a key or hash."""
        question = AskRoute(account, key)
        answer = await self._ask(question, at)
        if isinstance(answer, Route | NotFound):
            return answer
        raise _unexpected(question, answer)

    async def status(self, *, at: NodeAddress | None = None) -> Status:
        """How one node is."""
        question = AskStatus()
        answer = await self._ask(question, at)
        if isinstance(answer, Status):
            return answer
        raise _unexpected(question, answer)

    async def digest(self, *, at: NodeAddress | None = None) -> Digest:
        """The digest over all chains of one node's replica."""
        question = AskDigest()
        answer = await self._ask(question, at)
        if isinstance(answer, Digest):
            return answer
        raise _unexpected(question, answer)

    async def change(
        self, signed: SignedChange, timeout_s: float = 30.0, *, at: NodeAddress | None = None
    ) -> Changed | Refused | NotStarted | Unknown:
        """Have the members changed as the operator, or the leaving node, signed (hopchain.change). One node is asked;
        the same call again, anywhere, is safe. Raises `Unreachable`."""
        question = SubmitChange(signed.raw, signed.signature, int(timeout_s * 1000))
        try:
            answer = await self._ask(question, at, timeout_s + self._timing.read_s)
        except CallRefused as error:
            return Refused(error.code, error.reason)
        if isinstance(answer, Changed | NotStarted | Unknown):
            return answer
        raise _unexpected(question, answer)

    async def members(self, from_epoch: int = 1, *, at: NodeAddress | None = None) -> Members:
        """One page of the views that one node knows, from `from_epoch` on."""
        question = AskMembers(from_epoch)
        answer = await self._ask(question, at)
        if isinstance(answer, Members):
            return answer
        raise _unexpected(question, answer)

    async def all_views(self, *, at: NodeAddress | None = None) -> list[ViewLine]:
        """All views that one node knows, ascending, page after page."""
        found: list[ViewLine] = []
        while True:
            page = await self.members(found[-1].epoch + 1 if found else 1, at=at)
            views = [view for view in page.views if not found or view.epoch > found[-1].epoch]
            found += views
            if not views or found[-1].epoch >= page.epoch:
                return found

    async def health(self, *, at: NodeAddress | None = None) -> Health:
        """What one node says of itself and sees of the others."""
        question = AskHealth()
        answer = await self._ask(question, at)
        if isinstance(answer, Health):
            return answer
        raise _unexpected(question, answer)

    async def _ask(self, question: CallBody, at: NodeAddress | None, timeout_s: float | None = None) -> ReplyBody:
        """The first answer of the nodes in order. Raises `Unreachable`, `CallRefused`."""
        if self._tasks is None:
            raise LocalMisuse(_NOT_OPEN)
        tried: list[tuple[str, str]] = []
        limit_s = self._timing.read_s if timeout_s is None else timeout_s
        asking = ""
        with anyio.move_on_after(limit_s):
            for node in self._order(at):
                asking = str(node.address)
                try:
                    connection = await self._connect(node)
                    answer = await connection.call(question)
                except (DialFailed, ConnectionLost) as error:
                    tried.append((asking, str(error)))
                    continue
                if isinstance(answer, Refused):
                    raise CallRefused(asking, answer.code, answer.reason)
                return answer
            raise Unreachable(tried)
        raise Unreachable([*tried, (asking, f"no answer within {limit_s:g} s")])

    # --- nodes -------------------------------------------------------------------------------------------------

    def _order(self, at: NodeAddress | None, sender: str | None = None) -> Iterator[_Node]:
        """The nodes to try, once each: the pinned one, or all from the current one on, those that failed last; with the
        `sender` of a request the one that makes its next link first. A node that failed is dialled again beside the requests
        as long as another is open, so that none of them waits for it."""
        if at is not None:
            address = Address(*at)
            yield self._nodes.setdefault(address, _Node(address))
            return
        start = self._turn
        if self._spread:
            self._turn = (self._turn + 1) % len(self._addresses)
        rotated = [self._nodes[address] for address in self._addresses[start:] + self._addresses[:start]]
        failing = [node for node in rotated if node.failing]
        if self._tasks is not None and any(node.open for node in rotated):
            for node in failing:
                if not node.reviving and node.rest_until <= anyio.current_time():
                    node.reviving = True
                    self._tasks.start_soon(self._revive, node)
        working = [node for node in rotated if not node.failing]
        if self._spread and sender is not None:
            self._nearest_first(working, sender)
        yield from working
        yield from failing

    def _nearest_first(self, nodes: list[_Node], sender: str) -> None:
        """Sort by who makes the next link of `sender`, then who stands in for it; those whose connection has no room come
        after the others. As long as its tail or one of the nodes is not known they stay in turn, and so each of them is
        dialled in the end."""
        key = self._tails.key(sender)
        if key is not None and all(node.id for node in nodes):
            nodes.sort(key=lambda node: (node.full, distance(node.id, key)))

    async def _revive(self, node: _Node) -> None:
        with suppress(DialFailed):
            await self._connect(node)
        node.reviving = False

    async def _connect(self, node: _Node) -> Calls:
        """The node's open connection, dialled when there is none. Raises `DialFailed`. One that is open is returned without
        letting others run: of many requests at once each sees the room that those before it left."""
        if node.connection is not None and node.connection.lost is None:
            return node.connection
        dials = node.dials
        async with node.dialing:
            if node.connection is not None and node.connection.lost is None:
                return node.connection
            if node.dials != dials and node.refusal is not None:
                raise DialFailed(str(node.refusal))  # somebody else has just tried
            if self._tasks is None:  # closed meanwhile: a node may have the request, so this is no misuse
                raise DialFailed(_CLOSED)
            node.refusal = None
            try:
                connection = await dial(node.address, self._context, self.network, self._timing)
            except DialFailed as error:
                node.refusal = error
                node.failed()
                raise
            finally:
                node.dials += 1
            if self._tasks is None:  # closed meanwhile: nobody would end this connection
                await connection.aclose()
                raise DialFailed(_CLOSED)
            node.connection = connection
            node.id = connection.node_id
            node.failures = 0
            node.rest_until = 0.0
            self._tasks.start_soon(self._serve, node, connection)
            return connection

    async def _serve(self, node: _Node, connection: Calls) -> None:
        await connection.run()
        node.failed()


def _unexpected(question: CallBody, answer: ReplyBody) -> RemoteFault:
    return RemoteFault("unexpected", f"a node answered {type(answer).__name__} to {type(question).__name__}")

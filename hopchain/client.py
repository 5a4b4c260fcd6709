"""The client: submit signed requests and ask questions, on trio or asyncio.

    async with Client([("127.0.0.1", 7402)], ca_pem, network_id) as client:
        answer = await client.transfer("alice", key, [Posting("bob", 1250)])

What a node answers is a value (design R13):

| answer | meaning |
|---|---|
| `Recorded` | final: completed or rejected (`completed` says which), the same at every node for ever |
| `Stale` | final: the tip it expected has a successor, so it can never execute |
| `NotStarted` | nothing happened; the same request may be sent again |
| `Refused` | nothing happened; the call itself is wrong, the text says why |
| `Unknown` | the deadline passed: ask `outcome` later, submit the same bytes again, or settle it with `cancel` |

Exceptions are `ClientError`s (hopchain.errors): `Unreachable` when no node could be asked or none answered,
`CallRefused` when a node refuses a question. Arguments that make no sense are a `LocalMisuse` that names them, before
anything is sent.

A request is its bytes: sending it twice, anywhere, executes it once. So `submit` goes on to the next node when one is
lost, does not start, or says nothing for half of the time, until its deadline (hopchain.submitting). When all that were
asked say `not_covered`, it returns at once.

`timeout_s`, in seconds, is all that a call may take, whatever the nodes do. Questions have `Timing.read_s` unless they
say otherwise; those that read page after page have it for each page.
"""

import secrets
import ssl
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Final, Self, TypeVar

import anyio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.errors import LocalMisuse, RemoteFault
from chain.request import (
    ANY_HEIGHT,
    ANY_TIP,
    HASH_BYTES,
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
from hopchain.addresses import Address, NodeAddress, checked_address
from hopchain.asking import ask_for, check_can_be_sent, propose
from hopchain.bulk import checked_failures, signed_requests, submit_each
from hopchain.calls import Timing, checked_seconds
from hopchain.change import SignedChange
from hopchain.connection import client_context
from hopchain.errors import ClientError
from hopchain.nodes import Nodes
from hopchain.signing import raw_public_key, sign_request
from hopchain.submitting import Answer, Submission
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
    Route,
    Stale,
    Status,
    Submit,
    Unknown,
    ViewLine,
)

DEFAULT_TIMEOUT_S: Final = 10.0  # of a request
CHANGE_TIMEOUT_S: Final = 30.0  # of a change of the members: several rounds between them
NONCE_BYTES: Final = 32
_NOT_OPEN: Final = "the client is not open: use `async with Client(...) as client`"
_T = TypeVar("_T")


class Client:
    """A client of one network. Use as `async with Client(...) as client`; any number of tasks of one event
    loop may share it. The task that opened it closes it, not another one, inside the same cancel scopes: the
    connections' tasks belong to it. Cancelling the body ends no connection: calls there that are shielded go on.

    `nodes`: (host, client port) of the nodes to ask, the first that answers is kept until it fails or leaves a call
    without an answer; `spread` uses all of them: a request goes to the one that makes its sender's next link, as far as
    that is known (hopchain.tails), everything else to each in turn. It is faster for many requests, and takes a
    connection of every node. `ca_pem`: the text of the network's CA certificate. `network`: the 32-byte network id.
    Methods take `at=(host, port)` to pin one node.
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
        addresses = [checked_address(node) for node in nodes]
        self.network = _network_id(network)
        self._timing = (timing or Timing()).checked()
        context: ssl.SSLContext = client_context(ca_pem)
        self._nodes = Nodes(addresses, context, self.network, spread=spread, timing=self._timing)
        self._tails = Tails()

    async def __aenter__(self) -> Self:
        if self._nodes.open:
            raise LocalMisuse("this client is open already: use the one that is, or make another with Client(...)")
        await self._nodes.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close all connections. The body's own exception is not told to the task group: it leaves as it is, not in
        an ExceptionGroup, and not replaced by a cancellation that came meanwhile."""
        cancelled = anyio.get_cancelled_exc_class()
        try:
            await self._nodes.aclose()
        except cancelled:
            if error is None or isinstance(error, cancelled):
                raise

    def check_open(self) -> None:
        """`LocalMisuse` when the client is not open, or was opened in another event loop; every call begins so."""
        home = self._nodes.home
        if home is None:
            raise LocalMisuse(_NOT_OPEN)
        home.check_loop()

    # --- requests ----------------------------------------------------------------------------------------------

    async def submit(
        self, signed: SignedRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S, at: NodeAddress | None = None
    ) -> Answer:
        """Have a signed request executed once; the answers are listed above. May be repeated at any time.

        Raises `Unreachable` when no node could be handed the request, `LocalMisuse` when it is not well formed.
        """
        check_can_be_sent(Submit(signed.raw, signed.signature, 0))
        try:
            request = decode_request_untrusted(signed.raw)
        except RemoteFault as error:
            raise LocalMisuse(f"this request cannot be sent: {error.text}") from None
        address = self._checked(at, timeout_s)
        answer: Answer | None = None
        try:
            answer = await Submission(self._nodes, self._tails, signed, request.sender, address).run(timeout_s)
            return answer
        finally:
            self._note(request.sender, answer)

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
        return await self.submit(sign_request(request, key), timeout_s=timeout_s, at=at)

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
        this one and no other: give your own to be able to repeat the call safely, also when it may be cancelled, which
        does not undo it; None takes a random one."""
        request = transfer(
            self.network,
            sender,
            postings,
            secrets.token_bytes(NONCE_BYTES) if nonce is None else nonce,
            expect_tip=expect_tip,
            valid_until_height=valid_until_height,
        )
        return await self.submit(sign_request(request, key), timeout_s=timeout_s, at=at)

    async def submit_many(
        self,
        requests: Sequence[Request],
        keys: Mapping[str, Ed25519PrivateKey],
        *,
        atomic: bool = False,
        max_failures: int | None = None,
        on_answer: Callable[[int, Answer | ClientError], None] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        at: NodeAddress | None = None,
    ) -> list[Answer | ClientError]:
        """Sign (`keys`: account -> key) and submit many requests; what became of each, in order. Make them with
        `hopchain.transfer`; with nonces of your own the same call again executes nothing twice. The same
        requests with and without `atomic` are different ones, as are those of an atomic list that another was added to.

        Each is independent of the others, and one that fails stops none; `timeout_s` is for each. `atomic`: transfers
        of one account, all or nothing (hopchain.bulk): one request, whose one answer is that of each.

        `max_failures`: when more than these were not completed (rejected, without an outcome, no node to be asked), no
        more are sent; those under way get their answers, the rest are `TooManyFailures`. `on_answer(place, answer)` is
        called as soon as one is known: who may be cancelled, which loses the list, keeps them so. What it raises ends
        the call, in an exception group.
        Raises `LocalMisuse` before anything is sent when one of them cannot be made, or the client is not open.
        """
        self._checked(at, timeout_s)
        checked_failures(max_failures)
        signed = signed_requests(requests, keys, atomic=atomic)

        def tell(number: int, answer: Answer | ClientError) -> None:
            if on_answer is not None:
                for place in range(len(requests)) if atomic else (number,):
                    on_answer(place, answer)

        answers = await submit_each(
            lambda each: self.submit(each, timeout_s=timeout_s, at=at),
            signed,
            max_failures=max_failures,
            failed=lambda answer: not (isinstance(answer, Recorded) and answer.completed),
            on_answer=tell,
        )
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
        return await self.submit(sign_request(request, key), timeout_s=timeout_s, at=at)

    def _note(self, sender: str, answer: Answer | None) -> None:
        """What an answer tells about where the sender's next request should go; None: it was not waited for."""
        match answer:
            case Recorded(link_hash=tail, height=height) | Stale(tip=tail, height=height):
                self._tails.saw(sender, height, tail)
            case Refused():
                pass
            case _:
                self._tails.doubt(sender)

    # --- questions ---------------------------------------------------------------------------------------------

    async def balance(
        self,
        account: str,
        *,
        linearizable: bool = False,
        min_height: int | None = None,
        timeout_s: float | None = None,
        at: NodeAddress | None = None,
    ) -> Balance | NotFound | Unknown:
        """Balance of an account from one node's replica. Its own chain is at least as new as what this client was told
        of it before, or has link `min_height` (the first is 0, `hopchain.AT_ONCE` waits for none); of money on its way
        to it that says nothing. `linearizable` asks a majority: as new as anything that anyone was told. `Unknown`,
        with an empty request id: no node that was asked could make sure of that within `timeout_s`."""
        least = self._tails.height(account) if min_height is None else min_height
        question = AskBalance(account, linearizable, least)
        answer: Balance | NotFound | Unknown = await self._ask_for(
            (Balance, NotFound, Unknown), question, at, timeout_s
        )
        if isinstance(answer, Balance):
            self._tails.saw(account, answer.height, answer.tip)
        return answer

    async def chain(
        self,
        account: str,
        from_height: int = 0,
        limit: int = MAX_PAGE,
        *,
        timeout_s: float | None = None,
        at: NodeAddress | None = None,
    ) -> Chain | NotFound:
        """Links of an account from `from_height`, ascending, at most `limit` (1 or more; a node gives the default at
        most, or fewer)."""
        _check_least("from_height", from_height, 0)
        _check_least("limit", limit, 1)
        return await self._ask_for((Chain, NotFound), AskChain(account, from_height, limit), at, timeout_s)

    async def accounts(
        self, after: str = "", limit: int = MAX_PAGE, *, timeout_s: float | None = None, at: NodeAddress | None = None
    ) -> Accounts:
        """One page of accounts in name order, after the name `after`, at most `limit` (1 or more)."""
        _check_least("limit", limit, 1)
        return await self._ask_for((Accounts,), AskAccounts(after, limit), at, timeout_s)

    async def all_accounts(self, *, timeout_s: float | None = None, at: NodeAddress | None = None) -> list[AccountLine]:
        """All accounts in name order, page after page. `timeout_s` is for all pages, None: `Timing.read_s` for each."""
        return list((await self.account_list(timeout_s=timeout_s, at=at)).accounts)

    async def account_list(self, *, timeout_s: float | None = None, at: NodeAddress | None = None) -> Accounts:
        """All accounts in name order as one answer, `stale` when a page of it is. `timeout_s` as in `all_accounts`."""
        left = _Left(timeout_s)
        found: list[AccountLine] = []
        after = ""
        stale = False
        while True:
            page = await self.accounts(after, timeout_s=left.seconds(), at=at)
            found += page.accounts
            stale = stale or page.stale
            if not page.more or not page.accounts or page.accounts[-1].name <= after:
                return Accounts(tuple(found), False, stale)
            after = page.accounts[-1].name

    async def outcome(
        self, request_id: bytes, account: str = "", *, timeout_s: float | None = None, at: NodeAddress | None = None
    ) -> Recorded | NotFound:
        """What became of a request, as one node knows it; name the `account` that sent it when you know it (anybody
        may have cancelled an id that is not theirs). `NotFound` is not final: other nodes may know more."""
        return await self._ask_for((Recorded, NotFound), AskOutcome(request_id, account), at, timeout_s)

    async def route(
        self, *, account: str = "", key: bytes = b"", timeout_s: float | None = None, at: NodeAddress | None = None
    ) -> Route:
        """A Kademlia lookup of an account's tail hash, or of a key or hash.

        Of an account that the node does not know: of the slot of its opening.
        """
        return await self._ask_for((Route,), AskRoute(account, key), at, timeout_s)

    async def status(self, *, timeout_s: float | None = None, at: NodeAddress | None = None) -> Status:
        """How one node is."""
        return await self._ask_for((Status,), AskStatus(), at, timeout_s)

    async def digest(self, *, timeout_s: float | None = None, at: NodeAddress | None = None) -> Digest:
        """The digest over all chains of one node's replica."""
        return await self._ask_for((Digest,), AskDigest(), at, timeout_s)

    async def members(
        self, from_epoch: int = 1, *, timeout_s: float | None = None, at: NodeAddress | None = None
    ) -> Members:
        """One page of the views that one node knows, from `from_epoch` on."""
        return await self._ask_for((Members,), AskMembers(from_epoch), at, timeout_s)

    async def all_views(self, *, timeout_s: float | None = None, at: NodeAddress | None = None) -> list[ViewLine]:
        """All views that one node knows, ascending, page after page. `timeout_s` is for all pages, None:
        `Timing.read_s` for each."""
        return list((await self.view_list(timeout_s=timeout_s, at=at)).views)

    async def view_list(self, *, timeout_s: float | None = None, at: NodeAddress | None = None) -> Members:
        """All views that one node knows, ascending, as one answer, `stale` when a page of it is. `timeout_s` as in
        `all_views`."""
        left = _Left(timeout_s)
        found: list[ViewLine] = []
        stale = False
        while True:
            page = await self.members(found[-1].epoch + 1 if found else 1, timeout_s=left.seconds(), at=at)
            stale = stale or page.stale
            views = [view for view in page.views if not found or view.epoch > found[-1].epoch]
            found += views
            if not views or found[-1].epoch >= page.epoch:
                return Members(page.epoch, tuple(found), stale)

    async def health(self, *, timeout_s: float | None = None, at: NodeAddress | None = None) -> Health:
        """What one node says of itself and sees of the others."""
        return await self._ask_for((Health,), AskHealth(), at, timeout_s)

    # --- members -----------------------------------------------------------------------------------------------

    async def change(
        self, signed: SignedChange, *, timeout_s: float = CHANGE_TIMEOUT_S, at: NodeAddress | None = None
    ) -> Changed | Refused | NotStarted | Unknown:
        """Have the members changed as the operator, or the leaving node, signed (hopchain.change). It is handed to one
        node; `Unknown` when that says nothing, or is lost. The same call again, anywhere, is safe. Raises `Unreachable`
        when it could be handed to none: nothing will happen."""
        return await propose(signed, self._nodes, self._checked(at, timeout_s), timeout_s)

    async def _ask_for(
        self, kinds: tuple[type[_T], ...], question: CallBody, at: NodeAddress | None, timeout_s: float | None
    ) -> _T:
        limit_s = self._timing.read_s if timeout_s is None else timeout_s
        return await ask_for(kinds, question, self._nodes, self._checked(at, limit_s), limit_s)

    def _checked(self, at: NodeAddress | None, timeout_s: float) -> Address | None:
        """The pinned address. `LocalMisuse` when the client is not open here or an argument makes no sense."""
        checked_seconds("timeout_s", timeout_s)
        address = None if at is None else checked_address(at)
        self.check_open()
        return address


class _Left:
    """What is left of the time for several questions, from the first one on; None when each has its own."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = None if timeout_s is None else checked_seconds("timeout_s", timeout_s)
        self._deadline: float | None = None

    def seconds(self) -> float | None:
        if self._timeout_s is None:
            return None
        now = anyio.current_time()
        if self._deadline is None:
            self._deadline = now + self._timeout_s
            return self._timeout_s  # all of it: an error names the time that was given
        return max(0.0, self._deadline - now)


def _network_id(given: bytes) -> NetworkId:
    if isinstance(given, str):
        raise LocalMisuse(
            f"network is text ({given[:16]!r}...): give its {HASH_BYTES} bytes, as bytes.fromhex(...) makes them"
        )
    if not isinstance(given, bytes) or len(given) != HASH_BYTES:
        size = f" of {len(given)}" if isinstance(given, bytes) else ""
        raise LocalMisuse(f"network is {type(given).__name__}{size}: a network id has {HASH_BYTES} bytes")
    return NetworkId(given)


def _check_least(name: str, given: int, least: int) -> None:
    if given < least:
        raise LocalMisuse(f"{name}={given}: it is {least} or more")

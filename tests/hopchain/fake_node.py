"""A fake node: a TLS server that speaks `hopchain.wire` and answers from a `Ledger`, with faults on demand."""

import datetime
import ssl
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import anyio.abc
import msgspec
from anyio.streams.tls import TLSListener, TLSStream
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from chain.genesis import Asset, Genesis, GenesisMember, Issuer
from chain.link import opening_slot
from hopchain import wire
from hopchain.framing import FrameReader, frame
from tests.hopchain.frames import feed
from tests.hopchain.ledger import Ledger
from tests.hopchain.membership import Membership
from tests.ports import take

_BORN = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_NEVER = datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC)

ISSUER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


class CertificateAuthority:
    """A CA for one test network, and the TLS context of a node it vouches for."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test network")])
        certificate = self._build(self._name, self._key, ca=True)
        self.pem = certificate.public_bytes(Encoding.PEM).decode()

    def node_context(self) -> ssl.SSLContext:
        key = Ed25519PrivateKey.generate()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
        certificate = self._build(name, key, ca=False)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        with TemporaryDirectory() as place:  # the ssl module reads certificates from files only
            path = Path(place) / "node.pem"
            secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            path.write_bytes(secret + certificate.public_bytes(Encoding.PEM))
            context.load_cert_chain(path)
        return context

    def _build(self, name: x509.Name, key: Ed25519PrivateKey, *, ca: bool) -> x509.Certificate:
        builder = x509.CertificateBuilder(
            self._name, name, key.public_key(), x509.random_serial_number(), _BORN, _NEVER
        ).add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        return builder.sign(self._key, None)


@cache
def shared_ca() -> CertificateAuthority:
    """One CA for all tests that do not care which."""
    return CertificateAuthority()


def make_genesis(ca_pem: str) -> Genesis:
    """A network with CZK:2, EUR:2 and POINT:0, issuers mint (CZK) and points (POINT)."""
    public = ISSUER_KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
    return Genesis(
        version=1,
        name="test",
        assets=(Asset("CZK", 2), Asset("EUR", 2), Asset("POINT", 0)),
        issuers=(Issuer("mint", "CZK", public), Issuer("points", "POINT", public)),
        k=5,
        ca=ca_pem,
        members=(GenesisMember("00" * 32),),
        time_ms=1_700_000_000_000,
    )


class Hang:
    """A fault's answer: never reply, unless the test has it do so with `FakeNode.answer_late`."""


class Drop:
    """A fault's answer: close the connection instead of replying. `after`: do what was asked first."""

    def __init__(self, *, after: bool = False) -> None:
        self.after = after


Fault = wire.ReplyBody | Hang | Drop | None
FaultMaker = Callable[[wire.CallBody], Fault]


class FakeNode:
    """One node. `fault(call)` may give another answer than the ledger's; `held` holds all replies back while set."""

    def __init__(self, ledger: Ledger, context: ssl.SSLContext, number: int = 1) -> None:
        self.ledger = ledger
        self.id = bytes([number]) * 20
        self.port = 0
        self.network: bytes = ledger.genesis.network_id
        self.fault: FaultMaker = lambda call: None
        self.calls: list[wire.CallBody] = []
        self.connections = 0
        self.hold_until = 0  # replies are sent, newest first, once this many calls wait
        self.page = 1000  # accounts of one answer, at most
        self.said_id: bytes | None = None  # in its hello, instead of its own
        self.raw_first: bytes | None = None  # sent instead of the hello
        self.log_height: int | None = None
        self.stale = False  # it has no contact with a majority, and says so
        self.membership = Membership(ledger.genesis)  # the nodes of one network share one
        self._hung: list[tuple[wire.Call, TLSStream]] = []
        self._context = context
        self._scope: anyio.CancelScope | None = None

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled or stopped; on the same port again when there was one, which nobody else gets
        meanwhile."""
        self.port = self.port or take(1)[0]
        plain = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=self.port, reuse_port=True)
        with anyio.CancelScope() as self._scope:
            task_status.started()
            await TLSListener(plain, self._context, standard_compatible=False).serve(self._talk)
        await plain.aclose()

    def stop(self) -> None:
        """Close the port and all connections, as a crash would."""
        if self._scope is not None:
            self._scope.cancel()

    async def answer_late(self, body: wire.CallBody) -> None:
        """Answer a call that was left hanging."""
        call, stream = next(hung for hung in self._hung if hung[0].body is body)
        await stream.send(frame(wire.encode(wire.Reply(call.number, self._answer(body)))))

    async def _talk(self, stream: TLSStream) -> None:
        self.connections += 1
        try:
            async with stream:
                await self._converse(stream)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            return

    async def _converse(self, stream: TLSStream) -> None:
        reader = FrameReader(wire.MAX_CLIENT_FRAME_BYTES)
        greeted = False
        waiting: list[wire.Reply] = []
        while True:
            for payload in feed(reader, await stream.receive()):
                message = wire.decode_client_frame_untrusted(payload)
                if not greeted:
                    greeted = True
                    hello = wire.encode(self._hello(message))
                    await stream.send(frame(hello) if self.raw_first is None else self.raw_first)
                    continue
                assert isinstance(message, wire.Call)
                self.calls.append(message.body)
                answer = self.fault(message.body)
                if isinstance(answer, Drop):
                    if answer.after:
                        self._answer(message.body)
                    return
                if isinstance(answer, Hang):
                    self._hung.append((message, stream))
                    continue
                waiting.append(wire.Reply(message.number, answer or self._marked(self._answer(message.body))))
            if waiting and len(waiting) >= self.hold_until:
                for reply in reversed(waiting):
                    await stream.send(frame(wire.encode(reply)))
                waiting.clear()

    def _marked(self, body: wire.ReplyBody) -> wire.ReplyBody:
        return replaced(body, stale=True) if self.stale and hasattr(body, "stale") else body

    def _hello(self, message: wire.ClientFrame) -> wire.Hello | wire.Refused:
        assert isinstance(message, wire.Hello)
        if message.network != self.network:
            return wire.Refused("network", "this node is of another network")
        return wire.Hello(wire.PROTOCOL_VERSION, self.network, self.id if self.said_id is None else self.said_id)

    def _answer(self, call: wire.CallBody) -> wire.ReplyBody:
        match call:
            case wire.Submit():
                return self.ledger.submit(call, self.id)
            case wire.AskOutcome():
                return self.ledger.outcome(call)
            case wire.AskBalance():
                return self.ledger.balance(call)
            case wire.AskChain():
                return self.ledger.chain(call)
            case wire.AskAccounts():
                return self.ledger.list_accounts(call, self.page)
            case wire.AskDigest():
                return self.ledger.digest()
            case wire.AskRoute():
                return self._route(call)
            case wire.AskStatus():
                return self._status()
            case wire.SubmitChange():
                return self.membership.change(call, self.id)
            case wire.AskMembers():
                return self.membership.members(call)
            case wire.AskHealth():
                return self.membership.health(self.id, self.ledger.executed)

    def _route(self, call: wire.AskRoute) -> wire.Route:
        slot = call.key
        if call.account:
            account = self.ledger.accounts.get(call.account)
            slot = account.tip if account else opening_slot(self.ledger.genesis.network_id, call.account)
        me = wire.RouteNode(self.id, "127.0.0.1", self.port, 0, True)
        return wire.Route(slot[:20], slot, (self.id,), 1, (me,), (me,), 1)

    def _status(self) -> wire.Status:
        links = self.ledger.executed if self.log_height is None else self.log_height
        peer = wire.PeerStatus(b"\x09" * 20, "127.0.0.1", 1, False, -1.0, 0, 3)
        accounts = len(self.ledger.accounts)
        return wire.Status(self.id, 1, 5, links, accounts, 0, 0, 0, 0, 1, 12.5, (peer,), {"turns": 7})


def key_number(number: int) -> Ed25519PrivateKey:
    """A fixed key."""
    return Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))


def replaced(call: wire.ReplyBody, **changes: object) -> wire.ReplyBody:
    """The same answer with other fields."""
    return msgspec.structs.replace(call, **changes)

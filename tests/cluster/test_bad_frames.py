"""Bytes from strangers, and from members gone wrong, on the three ports of a node (issue 2, point 7). Each is refused
with a code and a text that says what to do, or counted and dropped; no row changes and everybody else is served on."""

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from msgspec.structs import replace

from chain.genesis import Asset
from hopchain import wire
from hopchain.connection import client_context
from hopchain.durable import write_secret
from hopchain.framing import MAX_FRAME_BYTES, frame
from hopchain.signing import private_key_pem
from hopchain.wire import MAX_CLIENT_FRAME_BYTES, Call, Hello
from node import hello as peer_hello
from node.hello import MAX_HELLO_BYTES
from node.layout import CA_CERTIFICATE, CA_KEY, make_network, read_network_key
from node.messages import (
    Accept,
    AskIncome,
    AskSlot,
    AskSync,
    AskViews,
    Decided,
    Forward,
    Item,
    Links,
    Message,
    Offer,
    Ping,
    Pong,
    Prepare,
    Pull,
    SlotName,
    SyncPart,
    SyncVote,
    ViewAccept,
    ViewPrepare,
    ViewPromise,
    Views,
    Want,
    encode_frames,
    encode_message,
)
from node.paxos import Ballot
from node.pki import (
    NODE_CERTIFICATE,
    NODE_KEY,
    make_node_certificate,
    node_contexts,
    node_key,
    read_node_key,
)
from routing.keyspace import NodeId
from routing.rpc import MESSAGE_ID_BYTES, encode_call
from routing.sealing import BOOT_BYTES, MAX_DATAGRAM_BYTES, OVERHEAD_BYTES, Sealer
from tests.cluster.cluster import NOW_MS, SETTLE_S, Cluster, key_of, until
from tests.cluster.strangers import ask, read_to_end, said_to_client, send_datagrams, talk_to_peer_port, tls_stream

pytestmark = pytest.mark.cluster

TARGET = 0  # the node that gets the bytes
GONE = 4  # the member in whose name some of them come, while it is stopped


@asynccontextmanager
async def untouched(cluster: Cluster) -> AsyncIterator[None]:
    """What happens inside changes no row anywhere, and the nodes serve on."""
    await cluster.settle()
    numbers = cluster.running()
    before = [cluster.rows(number) for number in numbers]
    yield
    await cluster.settle()
    assert [cluster.rows(number) for number in numbers] == before
    assert cluster.running() == numbers


async def counted(cluster: Cluster, name: str) -> int:
    return (await cluster.clients[TARGET].status()).counters.get(name, 0)


@asynccontextmanager
async def counts(cluster: Cluster, name: str, times: int = 1, *, or_more: bool = False) -> AsyncIterator[None]:
    """The node counts `name` that many times."""
    before = await counted(cluster, name)
    yield

    async def look() -> tuple[bool, object]:
        status = await cluster.clients[TARGET].status()
        more = status.counters.get(name, 0) - before
        return more == times or (or_more and more > times), (before, status.counters)

    await until(f"{times} more {name}", look, SETTLE_S)


# --- the client port -----------------------------------------------------------------------------------------------


def greeting(cluster: Cluster) -> bytes:
    return frame(wire.encode(Hello(wire.PROTOCOL_VERSION, cluster.id)))


TO_CLIENT_PORT: dict[str, tuple[Callable[[Cluster], bytes], str, str]] = {
    "foreign hello": (
        lambda c: frame(wire.encode(Hello(wire.PROTOCOL_VERSION, b"f" * 32))),
        "network",
        "use the directory or genesis.json of this network",
    ),
    "hello of the future": (lambda c: frame(wire.encode(Hello(99, c.id))), "version", "use the same release"),
    "call before the hello": (
        lambda c: frame(wire.encode(Call(1, wire.AskStatus()))),
        "malformed",
        "the first frame must be a hello",
    ),
    "garbage for a hello": (lambda c: frame(b"\xc1" * 40), "malformed", "a hello of 40 bytes cannot be read"),
    "oversized hello": (lambda c: (MAX_HELLO_BYTES + 1).to_bytes(4, "big"), "oversize", "at most 4096"),
    "garbage": (lambda c: greeting(c) + frame(b"\xc1" * 40), "malformed", "a frame of 40 bytes cannot be read"),
    "empty frame": (lambda c: greeting(c) + frame(b""), "malformed", "a frame of 0 bytes cannot be read"),
    "nothing but brackets": (lambda c: greeting(c) + frame(b"\x91" * 100_000), "malformed", "cannot be read"),
    "text that is no UTF-8": (
        lambda c: (
            greeting(c) + frame(wire.encode(Call(1, wire.AskAccounts("x" * 9, 1))).replace(b"x" * 9, b"\xff" * 9))
        ),
        "malformed",
        "cannot be read",
    ),
    "second hello": (lambda c: greeting(c) * 2, "malformed", "a second hello on one connection"),
    "oversized": (
        lambda c: greeting(c) + (MAX_CLIENT_FRAME_BYTES + 1).to_bytes(4, "big"),
        "oversize",
        "at most 4194304; send smaller ones",
    ),
    "as long as can be said": (lambda c: greeting(c) + b"\xff" * 8, "oversize", "a frame of 4294967295 bytes"),
}


@pytest.mark.parametrize("what", TO_CLIENT_PORT)
async def test_a_stranger_on_the_client_port_is_told_why_it_is_refused(cluster: Cluster, what: str) -> None:
    make, code, text = TO_CLIENT_PORT[what]
    async with untouched(cluster):
        last = (await said_to_client(cluster, TARGET, make(cluster)))[-1]
        assert isinstance(last, wire.Refused), last
        assert (last.code, text in last.reason) == (code, True), last


async def test_a_cut_frame_ends_the_session_and_is_counted(cluster: Cluster) -> None:
    async with untouched(cluster), counts(cluster, "clients.closed.cut_frame"):
        await said_to_client(cluster, TARGET, greeting(cluster) + (1000).to_bytes(4, "big") + b"half", hang_up=True)


@pytest.mark.parametrize("port", ["client", "peer"])
async def test_who_speaks_no_tls_is_counted(cluster: Cluster, port: str) -> None:
    node = cluster.nodes[TARGET]
    address = node.client_address if port == "client" else node.peer_address
    async with untouched(cluster), counts(cluster, f"{'clients' if port == 'client' else 'mesh'}.refused.tls"):
        stream = await trio.open_tcp_stream(*address)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
        await stream.aclose()


HUGE = 2**64 - 1
ODD_CALLS: dict[str, tuple[wire.CallBody, type[wire.ReplyBody]]] = {
    "chain from far beyond": (wire.AskChain("mint", HUGE, 10), wire.Chain),
    "chain from before the start": (wire.AskChain("mint", -(2**63), 10), wire.Chain),
    "chain with no limit": (wire.AskChain("mint", 0, HUGE), wire.Chain),
    "chain of a long name": (wire.AskChain("x" * 100_000, 0, 1), wire.Refused),
    "balance of a long name": (wire.AskBalance("x" * 65), wire.Refused),
    "balance of no name": (wire.AskBalance(""), wire.Refused),
    "sure balance of a long name": (wire.AskBalance("x" * 65, linearizable=True), wire.Refused),
    "sure balance of a zero byte": (wire.AskBalance("mint\0", linearizable=True), wire.Refused),
    "balance of nobody": (wire.AskBalance("nobody-here"), wire.NotFound),
    "sure balance of nobody": (wire.AskBalance("nobody-here", linearizable=True), wire.NotFound),
    "balance at a height beyond": (wire.AskBalance("mint", min_height=HUGE, timeout_ms=-1), wire.Unknown),
    "outcome of nothing": (wire.AskOutcome(b""), wire.Refused),
    "outcome of nobody": (wire.AskOutcome(bytes(32)), wire.NotFound),
    "outcome of megabytes": (wire.AskOutcome(b"x" * 2_200_000), wire.Refused),
    "outcome for a long name": (wire.AskOutcome(bytes(32), "\u0430" * 1000), wire.Refused),
    "accounts after a zero byte": (wire.AskAccounts("\0", HUGE), wire.Accounts),
    "accounts from before the first": (wire.AskAccounts("", -(2**63)), wire.Accounts),
    "route of a long name": (wire.AskRoute("x" * 65, b""), wire.Refused),
    "route of a zero byte": (wire.AskRoute("mint\0", b""), wire.Refused),
    "route of nothing": (wire.AskRoute("", b""), wire.Refused),
    "route of half a key": (wire.AskRoute("", bytes(10)), wire.Refused),
    "route of a key": (wire.AskRoute("", bytes(20)), wire.Route),
    "route of megabytes": (wire.AskRoute("", bytes(4_194_000)), wire.Refused),
}


@pytest.mark.parametrize("what", ODD_CALLS)
async def test_an_odd_question_has_an_answer(cluster: Cluster, what: str) -> None:
    body, reply = ODD_CALLS[what]
    async with untouched(cluster):
        answer = await ask(cluster, TARGET, body)
        assert isinstance(answer, reply), answer


# --- the peer port -------------------------------------------------------------------------------------------------


async def test_a_peer_without_certificate_is_refused(cluster: Cluster) -> None:
    context = client_context(cluster.network.genesis.ca)
    async with (
        untouched(cluster),
        counts(cluster, "mesh.refused.no_certificate"),
        tls_stream(cluster.nodes[TARGET].peer_address, context) as stream,
    ):
        assert await read_to_end(stream) == b""


async def test_a_peer_with_a_certificate_of_another_network_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    other = make_network(
        tmp_path / "other",
        nodes=1,
        assets=[Asset("CZK", 2)],
        issuers={},
        ports=[(1, 2)],
        name="other",
        now_ms=NOW_MS,
        days=36_500,
    )
    context = node_contexts(other.node_directory(other.nodes[0]), other.genesis.ca).dial
    context.verify_mode = ssl.CERT_NONE
    async with (
        untouched(cluster),
        counts(cluster, "mesh.refused.certificate"),
        tls_stream(cluster.nodes[TARGET].peer_address, context) as stream,
    ):
        assert await read_to_end(stream) == b""


def identity(cluster: Cluster, directory: Path) -> tuple[ssl.SSLContext, peer_hello.Hello]:
    """How the node of a directory introduces itself."""
    mine = read_node_key(directory).id
    context = node_contexts(directory, cluster.network.genesis.ca).dial
    return context, peer_hello.Hello(peer_hello.PROTOCOL_VERSION, cluster.id, mine, 1, bytes(16))


async def test_a_peer_that_the_ca_certified_but_no_view_names_is_a_guest_without_a_vote(
    cluster: Cluster, tmp_path: Path
) -> None:
    """It may ask for links and views. Its votes, ballots and views change nothing."""
    key = node_key(key_of("a node that nobody added"))
    write_secret(tmp_path / NODE_KEY, private_key_pem(key.private))
    authority = cluster.network.directory
    certificate = make_node_certificate(
        (authority / CA_CERTIFICATE).read_bytes(), (authority / CA_KEY).read_bytes(), key.public_key, NOW_MS, 36_500
    )
    (tmp_path / NODE_CERTIFICATE).write_bytes(certificate)
    context, hello = identity(cluster, tmp_path)
    async with untouched(cluster), talk_to_peer_port(cluster.nodes[TARGET], context) as talk:
        assert await talk.hello(hello) == peer_hello.Welcome()
        ballot = Ballot(1, 1, hello.node_id)
        for message in (Prepare(SLOT, ballot), ViewPrepare(ballot), Pull(0, 0, b"")):
            for payload in encode_frames([encode_message(message)]):
                await talk.raw(frame(payload))
        await talk.handled()


HELLOS: dict[str, tuple[int, Callable[[peer_hello.Hello], peer_hello.Hello], str, str]] = {
    "foreign network": (GONE, lambda h: replace(h, network=b"f" * 32), "network", "use one genesis.json on all nodes"),
    "another release": (
        GONE,
        lambda h: replace(h, version=h.version + 1),
        "version",
        "run the same release on all nodes",
    ),
    "another's id": (
        GONE,
        lambda h: replace(h, node_id=NodeId(b"i" * 20)),
        "identity",
        "node.key and node.crt must be of one node",
    ),
    "the node's own id": (TARGET, lambda h: h, "self", "a second copy of its directory runs"),
    "oversized": (GONE, lambda h: replace(h, boot=bytes(MAX_HELLO_BYTES)), "oversize", "at most 4096"),
}


@pytest.mark.parametrize("what", HELLOS)
async def test_a_member_with_a_wrong_hello_is_told_why_it_is_refused(cluster: Cluster, what: str) -> None:
    who, change, code, text = HELLOS[what]
    context, hello = identity(cluster, cluster.nodes[who].directory)
    async with (
        untouched(cluster),
        counts(cluster, f"mesh.refused.{code}"),
        talk_to_peer_port(cluster.nodes[TARGET], context) as talk,
    ):
        verdict = await talk.hello(change(hello))
    assert isinstance(verdict, peer_hello.Refused)
    assert (verdict.code, text in verdict.text) == (code, True), verdict


# What a member sends after a good hello -> the counter that shows it. Those that end the connection close it.
BROKEN_FRAMES: dict[str, tuple[bytes, str]] = {
    "garbage": (frame(b"\xc1" * 40), "mesh.down.malformed"),
    "empty": (frame(b""), "mesh.down.malformed"),
    "brackets": (frame(b"\x91" * 100_000), "mesh.down.malformed"),
    "message of the future": (frame(b"\x91\x92\xa6future\x01"), "mesh.down.malformed"),
    "oversized": ((MAX_FRAME_BYTES + 1).to_bytes(4, "big"), "mesh.down.oversize"),
}

SLOT = SlotName(b"s" * 32, "mint", 2**40)
FAR = SlotName(b"s" * 32, "mint", HUGE)
NO_NAME = SlotName(b"s" * 32, "x" * 65, 0)
BALLOT = Ballot(1, 1, NodeId(b"i" * 20))
ODD_MESSAGES: dict[str, Message] = {
    "chain from far beyond": Want(chains=(("mint", HUGE),)),
    "chain from before the start": Want(chains=(("mint", -(2**63)),)),
    "chain of a long name": Want(chains=(("x" * 1000, 0),)),
    "slot without a hash": Prepare(SlotName(b"", "mint", 1), BALLOT),
    "no link, no posting": Want(links=(b"", b"x" * 1000), postings=(b"", b"x" * 1000)),
    "log from far beyond": Pull(HUGE, HUGE, b""),
    "log from before the start": Pull(-(2**63), 0, b"x" * 1000),
    "slot far beyond": AskSlot(1, FAR, 1),
    "slot of a long name": AskSlot(1, NO_NAME, 1),
    "income of a long name": AskIncome(1, "x" * 65, b"", 1),
    "phase 1 far beyond": Prepare(FAR, BALLOT),
    "phase 1 of a long name": Prepare(NO_NAME, BALLOT),
    "phase 2 with garbage": Accept(SLOT, BALLOT, b"garbage"),
    "phase 2 far beyond": Accept(FAR, BALLOT, b"garbage"),
    "garbage as a decided link": Decided(b"garbage", NodeId(b"i" * 20), 0),
    "garbage as links": Links((b"", b"garbage", bytes(2**20))),
    "garbage as requests": Forward(SLOT, (Item(b"garbage", b"", b""),), takeover=True),
    "requests far beyond": Forward(FAR, (), takeover=True),
    "requests of a long name": Forward(NO_NAME, (Item(b"", b"", b""),), takeover=True),
    "ballot beyond all": Prepare(SlotName(b"s" * 32, "mint", 0), Ballot(HUGE, HUGE, NodeId(b""))),
    "pong from no time": Pong(float("nan"), 2**63 - 1, 0),
    "pong from before all": Pong(float("-inf"), 0, 0),
    "pong from far beyond": Pong(0.0, HUGE, HUGE),
    "ping without end": Ping(float("inf"), 2**63 - 1, 0, 1, True, 0),
    "ping from far beyond": Ping(0.0, HUGE, HUGE, HUGE, True, HUGE),
    "ping from before the start": Ping(0.0, -1, -1, -1, True, -1),
    "ping from a far epoch": Ping(0.0, 0, 0, 2**40, True, 0),
    "views that are none": Views((b"", b"garbage", bytes(2**20))),
    "views of far beyond": AskViews(HUGE),
    "view of garbage": ViewAccept(BALLOT, b"garbage"),
    "view promised out of nothing": ViewPromise(BALLOT, BALLOT, b"garbage"),
    "ballot for a view beyond all": ViewPrepare(Ballot(HUGE, HUGE, NodeId(b""))),
    "sync of far beyond": AskSync(1, HUGE),
    "sync that nobody asked for": SyncPart(1, 1, 5, 2, b"x", HUGE, (SyncVote(FAR, BALLOT, b"garbage"),)),
    "offer of everything": Offer((b"", bytes(1000)), HUGE, HUGE, HUGE, HUGE, HUGE),
}


async def test_a_member_that_sends_garbage_is_dropped_and_may_come_again(cluster: Cluster) -> None:
    context, hello = identity(cluster, cluster.nodes[GONE].directory)
    await cluster.stop(GONE)
    cases = [*BROKEN_FRAMES.values(), ((1000).to_bytes(4, "big") + b"half", "mesh.down.cut_frame")]
    for data, counter in cases:
        async with (
            untouched(cluster),
            counts(cluster, counter),
            talk_to_peer_port(cluster.nodes[TARGET], context) as talk,
        ):
            assert await talk.hello(hello) == peer_hello.Welcome()
            await talk.raw(data)
            if counter.endswith("cut_frame"):
                await talk.stream.aclose()
            else:
                await talk.closed()


async def test_odd_messages_of_a_member_stop_nobody(cluster: Cluster) -> None:
    """Members trust each other's word, not each other's bytes: no message ends a node or changes a row."""
    context, hello = identity(cluster, cluster.nodes[GONE].directory)
    await cluster.stop(GONE)
    for what, message in ODD_MESSAGES.items():
        async with untouched(cluster), talk_to_peer_port(cluster.nodes[TARGET], context) as talk:
            assert await talk.hello(hello) == peer_hello.Welcome()
            for payload in encode_frames([encode_message(message)]):
                await talk.raw(frame(payload))
            await talk.handled()
            assert cluster.nodes[TARGET].runs, (what, cluster.nodes[TARGET].log_tail())


# --- the DHT's port ------------------------------------------------------------------------------------------------


async def test_datagrams_that_are_not_a_members_are_counted_and_dropped(cluster: Cluster) -> None:
    gone, target = cluster.nodes[GONE], cluster.nodes[TARGET]
    me, them = gone.place.node_id, target.place.node_id
    await cluster.stop(GONE)
    key = read_network_key(gone.directory)
    mine = Sealer(key, cluster.id, me, b"b" * BOOT_BYTES, trio.current_time)
    stranger = Sealer(b"k" * 32, cluster.id, me, b"c" * BOOT_BYTES, trio.current_time)
    foreign = Sealer(key, b"f" * 32, me, b"d" * BOOT_BYTES, trio.current_time)
    double = Sealer(key, cluster.id, them, b"e" * BOOT_BYTES, trio.current_time)
    ping = encode_call(b"m" * MESSAGE_ID_BYTES, "ping", (me,))
    good = mine.seal(ping, them)
    cases = {
        "replayed": [good, good],
        "short": [b"", b"x", good[: OVERHEAD_BYTES - 1]],
        "oversized": [b"\x01" * (MAX_DATAGRAM_BYTES + 1)],
        "version": [b"\xff" * 200],
        "foreign": [foreign.seal(ping, them)],
        "forged": [stranger.seal(ping, them), mine.seal(ping, them)[:-1] + b"\0"],
        "misdirected": [mine.seal(ping, NodeId(b"o" * 20))],
        "own_id": [double.seal(ping, them)],
        "impostor": [mine.seal(encode_call(b"n" * MESSAGE_ID_BYTES, "ping", (them,)), them)],
        "malformed": [mine.seal(b"garbage", them), mine.seal(b"", them)],
        "refused": [mine.seal(encode_call(b"o" * MESSAGE_ID_BYTES, "store", (me, b"key", b"value")), them)],
        "late": [mine.seal(b"\x01" + b"p" * MESSAGE_ID_BYTES + msgspec.msgpack.encode(me), them)],
    }
    for code, datagrams in cases.items():
        times = 1 if code == "replayed" else len(datagrams)
        slow = code == "late"  # so is what members answer when the machine is busy
        async with untouched(cluster), counts(cluster, f"dht.{code}", times, or_more=slow):
            send_datagrams(gone.peer_address, target.peer_address, datagrams)

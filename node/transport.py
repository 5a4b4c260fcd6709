"""The connections between members: one TCP+TLS stream per pair, frames both ways (design section 6).

* The member with the smaller id dials at once; the other one only after DIAL_GRACE_S without a connection, in case
  the first does not know the way. So normally nobody dials twice.
* When a pair has two connections nevertheless, both ends keep the same one: the newer of two that the same side
  dialed (it dials only when it has none); of two dialed from both sides at once, the smaller id's; and any new one
  before one older than a handshake can last, which the other side has evidently given up.
* A frame is given to `on_frame` between `on_up` and `on_down` of its peer, which alternate. Nothing is repeated: what
  was queued when a connection ends is lost, and the upper layers ask again.
* An idle half-open connection is found by the upper layer's pings, which then call `drop`.

Time is trio's clock, chance the given `rng`, TCP the given `network`.
"""

import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Final

import trio

from chain.errors import RemoteFault
from hopchain.framing import MAX_FRAME_BYTES
from node.accepting import (
    HANDSHAKE_ERRORS,
    HANDSHAKE_S,
    MAX_HANDSHAKES,
    Strangers,
    WarnOnce,
    accept_forever,
    handshake_fault,
    remote_of,
)
from node.channel import FLUSH_S, Channel, Network, TcpNetwork
from node.hello import (
    MAX_HELLO_BYTES,
    Hello,
    Refused,
    SaidRemoved,
    Welcome,
    check_hello_untrusted,
    check_verdict_untrusted,
    encode,
)
from node.pki import NodeContexts, peer_node_id_untrusted
from node.tls import start_tls
from routing.keyspace import NodeId, short

log = logging.getLogger(__name__)

PEER_QUEUE_BYTES: Final = 32 * 1024 * 1024  # four largest frames; a peer that far behind is caught up by replication
VERDICT_S: Final = 1.0  # for telling a peer why it is refused
MAX_GUESTS: Final = 64  # joiners and observers at once
DIAL_FIRST_S: Final = 0.05
DIAL_MAX_S: Final = 1.0  # a restarted node is back in its group within about this
DIAL_GRACE_S: Final = 3.0  # three of the other side's longest pauses


@dataclass(frozen=True, slots=True)
class MeshIdentity:
    """Who this node is to others: its hello, and its keys inside the TLS contexts."""

    hello: Hello
    contexts: NodeContexts


@dataclass(frozen=True, slots=True, eq=False)
class _Peer:
    id: NodeId
    hello: Hello
    channel: Channel
    dialed_by: NodeId
    since: float


class PeerMesh:
    """Keeps a connection to every other member. Run it with `await nursery.start(mesh.run)`.

    `members()`: with whom to keep a connection; this node itself is among them when others dial it too. Others with a
    certificate of the network may come as guests, `MAX_GUESTS` at once, unless `removed_in(id)` names the epoch in
    which they were removed; `on_removed(peer, epoch)`: `peer` says so of this node. `address_of(id)`: where it listens,
    None when unknown (asked again at each try). `on_frame(peer, payload)`: the next frame of this peer is read when it
    returns; a `RemoteFault` of it closes the connection. `on_up(peer, replaced)` and `on_down(peer, reason)` are plain
    functions; `replaced`: the new connection took the place of one that stood.
    """

    def __init__(
        self,
        identity: MeshIdentity,
        *,
        members: Callable[[], Collection[NodeId]],
        address_of: Callable[[NodeId], tuple[str, int] | None],
        on_frame: Callable[[NodeId, bytes], Awaitable[None]],
        on_up: Callable[[NodeId, bool], None],
        on_down: Callable[[NodeId, str], None],
        removed_in: Callable[[NodeId], int] = lambda node: 0,
        on_removed: Callable[[NodeId, int], None] = lambda peer, epoch: None,
        rng: random.Random,
        host: str,
        port: int,
        network: Network | None = None,
        queue_bytes: int = PEER_QUEUE_BYTES,
        max_handshakes: int = MAX_HANDSHAKES,
    ) -> None:
        self._hello = identity.hello
        self._contexts = identity.contexts
        self._members = members
        self._address_of = address_of
        self._on_frame = on_frame
        self._on_up = on_up
        self._on_down = on_down
        self._removed_in = removed_in
        self._on_removed = on_removed
        self._rng = rng
        self._host = host
        self._port = port
        self._network: Network = network or TcpNetwork()
        self._queue_bytes = queue_bytes
        self._peers: dict[NodeId, _Peer] = {}
        self._keepers: set[NodeId] = set()
        self._changed = trio.lowlevel.ParkingLot()
        self._strangers = Strangers(max_handshakes)
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._finished = trio.Event()
        self.counters: Counter[str] = Counter()
        self._warn = WarnOnce(self.counters)

    # --- what the driver calls ---------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen, dial and carry frames until `aclose` (or cancellation, which closes at once). Starts with the port
        that it listens on. `LocalMisuse` when the port is taken."""
        listeners, port = await self._network.listen(self._host, self._port)
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    for listener in listeners:
                        nursery.start_soon(
                            accept_forever, listener, self._strangers, self._welcome, nursery, self.counters
                        )
                    self.refresh()
                    task_status.started(port)
        finally:
            self._nursery = None
            self._finished.set()
            with trio.CancelScope(shield=True):
                for listener in listeners:
                    await trio.aclose_forcefully(listener)

    def refresh(self) -> None:
        """The members have changed: dial the new ones, drop those that are none any more."""
        members = frozenset(self._members())
        for peer in [p for p in self._peers.values() if self._removed_in(p.id)]:
            self._lose(peer, "removed", "it was removed from the network")
        if self._nursery is not None:
            for member in sorted(members - self._keepers - {self._hello.node_id}):
                self._keepers.add(member)
                self._nursery.start_soon(self._keep, member)
        self._changed.unpark_all()

    def send_nowait(self, peer: NodeId, payload: bytes) -> bool:
        """Queue a frame for `peer`. False, counted: not connected, or its queue is full; the frame is dropped."""
        known = self._peers.get(peer)
        if known is None:
            self.counters["dropped.not_connected"] += 1
            return False
        if not known.channel.send_nowait(payload):
            self.counters["dropped.queue_full"] += 1
            return False
        self.counters["frames_out"] += 1
        self.counters["bytes_out"] += len(payload)
        return True

    def connected(self) -> frozenset[NodeId]:
        """The peers with a connection now."""
        return frozenset(self._peers)

    def hello_of(self, peer: NodeId) -> Hello | None:
        """What a connected peer said of itself (incarnation, boot); None when it is not connected."""
        known = self._peers.get(peer)
        return None if known is None else known.hello

    def drop(self, peer: NodeId, reason: str) -> None:
        """Close the connection (it does not answer, it misbehaves) and dial again. Nothing when there is none."""
        known = self._peers.get(peer)
        if known is not None:
            self._lose(known, "dropped", reason)

    async def aclose(self) -> None:
        """Send what is queued, for at most FLUSH_S, close everything and wait until `run` has returned."""
        if self._nursery is None:
            return
        with trio.move_on_after(FLUSH_S):
            for peer in list(self._peers.values()):
                await peer.channel.wait_flushed()
        self._scope.cancel()
        await self._finished.wait()

    # --- one connection ----------------------------------------------------------------------------------------

    async def _live(self, peer: _Peer) -> None:
        """Carry frames until the connection ends."""
        if self._is_worse(peer.id, peer.dialed_by):
            self.counters["refused.duplicate"] += 1
            await peer.channel.aclose()
            return
        old = self._peers.get(peer.id)
        if old is not None:
            self._lose(old, "replaced", "a newer connection took its place")
        self._peers[peer.id] = peer
        self._warn.forget(_who(peer.id))
        self.counters["up"] += 1
        log.info("node %s is connected", short(peer.id))
        self._changed.unpark_all()

        async def on_frame(payload: bytes) -> None:
            self.counters["frames_in"] += 1
            self.counters["bytes_in"] += len(payload)
            await self._on_frame(peer.id, payload)

        try:
            self._on_up(peer.id, old is not None)
            code, text = await peer.channel.run(on_frame)
        finally:
            self._lose(peer, "shutdown", "this node stops")
        log.debug("the connection with node %s is over: %s [%s]", short(peer.id), text, code)

    def _lose(self, peer: _Peer, code: str, text: str) -> None:
        """Stop a connection and report it as down, once. The reason it was stopped for, if any, goes before `code`."""
        peer.channel.stop(code, text)
        if self._peers.get(peer.id) is not peer:
            return
        del self._peers[peer.id]
        assert peer.channel.reason is not None
        code, text = peer.channel.reason
        self.counters[f"down.{code}"] += 1
        log.info("node %s is disconnected: %s [%s]", short(peer.id), text, code)
        self._changed.unpark_all()
        self._on_down(peer.id, f"{text} [{code}]")

    def _is_worse(self, peer: NodeId, dialed_by: NodeId) -> bool:
        """True when a new connection with `peer` must give way to the one there is."""
        old = self._peers.get(peer)
        return (
            old is not None
            and old.dialed_by != dialed_by
            and old.dialed_by == min(peer, self._hello.node_id)
            and trio.current_time() - old.since <= HANDSHAKE_S
        )

    # --- the handshake -----------------------------------------------------------------------------------------

    async def _welcome(self, stream: trio.abc.Stream) -> None:
        """Someone has dialed us."""
        peer = await self._shake(stream, None)
        if peer is not None:
            await self._live(peer)

    async def _shake(self, stream: trio.abc.Stream, dialed: NodeId | None) -> _Peer | None:
        """TLS and hellos; None, counted and logged, when either side refuses. Closes the stream then."""
        remote = remote_of(stream)
        who = remote if dialed is None else _who(dialed)
        place = self._strangers.handshake(who) if dialed is None else nullcontext()
        closing: trio.abc.Stream | Channel = stream
        peer = None
        try:
            with place, trio.fail_after(HANDSHAKE_S):
                context = self._contexts.accept if dialed is None else self._contexts.dial
                secure = await start_tls(stream, context, server=dialed is None)
                certified = peer_node_id_untrusted(secure.peer_certificate)
                who = _who(certified)
                channel = Channel(secure, frame_limit=MAX_FRAME_BYTES, queue_bytes=self._queue_bytes)
                closing = channel
                hello = await self._exchange(channel, certified, dialed)
                dialed_by = hello.node_id if dialed is None else self._hello.node_id
                peer = _Peer(hello.node_id, hello, channel, dialed_by, trio.current_time())
                self._warn.forget(remote)  # what ended before a certificate was seen is known by the address alone
        except HANDSHAKE_ERRORS as error:
            fault = handshake_fault(error)
            if fault.code == "duplicate":
                self.counters["refused.duplicate"] += 1
            else:
                self._warn.refuse(who, fault)
        finally:
            if peer is None:
                await closing.aclose()
        return peer

    async def _exchange(self, channel: Channel, certified: NodeId, dialed: NodeId | None) -> Hello:
        """Hello and verdict both ways. Each side reads the other's verdict even when it refuses: both learn why."""
        channel.limit_frames(MAX_HELLO_BYTES)
        await channel.send(encode(self._hello))
        refusal = None
        try:
            payload = await _receive(channel)
            hello = check_hello_untrusted(payload, self._hello, certified, self._removed_in, dialed)
            guests = sum(peer not in self._members() for peer in self._peers)
            if hello.node_id not in {*self._members(), *self._peers} and guests >= MAX_GUESTS:
                raise RemoteFault("busy", f"{guests} nodes that are no members are connected: try another member")
            if self._is_worse(hello.node_id, hello.node_id if dialed is None else self._hello.node_id):
                raise RemoteFault("duplicate", f"node {short(hello.node_id)} has a connection already")
        except RemoteFault as fault:
            refusal = fault
        if refusal is None:
            channel.limit_frames(MAX_FRAME_BYTES)  # a member: it may go on at once after our welcome
            await channel.send(encode(Welcome()))
            await self._hear_verdict(channel, certified)
            return hello
        epoch = self._removed_in(certified) if refusal.code == "removed" else 0
        with trio.move_on_after(VERDICT_S), suppress(RemoteFault, trio.BrokenResourceError):
            await channel.send(encode(Refused(refusal.code, refusal.text, epoch)))
            await self._hear_verdict(channel, certified)
        raise refusal

    async def _hear_verdict(self, channel: Channel, certified: NodeId) -> None:
        """Return when the other side says `Welcome`; otherwise raise what it says, and tell whoever wants to know that
        this node was removed."""
        try:
            check_verdict_untrusted(await _receive(channel))
        except SaidRemoved as fault:
            self._on_removed(certified, fault.epoch)
            raise

    # --- dialing -----------------------------------------------------------------------------------------------

    async def _keep(self, member: NodeId) -> None:
        """Keep a connection with this member for as long as it is one."""
        pause_s = DIAL_FIRST_S
        while member in self._members():
            if member in self._peers:
                await self._changed.park()
                continue
            if (
                self._hello.node_id > member
                and self._hello.node_id in self._members()
                and await self._comes_by_itself(member)
            ):
                continue
            started = trio.current_time()
            await self._dial(member)
            if trio.current_time() - started > DIAL_MAX_S:
                pause_s = DIAL_FIRST_S
            await trio.sleep(pause_s * (0.5 + self._rng.random() / 2))
            pause_s = min(2 * pause_s, DIAL_MAX_S)
        self._keepers.discard(member)

    async def _comes_by_itself(self, member: NodeId) -> bool:
        """True when it has connected, or is no member any more, within DIAL_GRACE_S."""
        with trio.move_on_after(DIAL_GRACE_S):
            while member not in self._peers and member in self._members():
                await self._changed.park()
            return True
        return False

    async def _dial(self, member: NodeId) -> None:
        """Try once; when it works, carry frames until the connection ends."""
        address = self._address_of(member)
        if address is None:
            self.counters["dial.no_address"] += 1
            return
        try:
            with trio.fail_after(HANDSHAKE_S):
                stream = await self._network.connect(*address)
        except (OSError, UnicodeError, trio.TooSlowError) as error:  # UnicodeError: what cannot be the name of a host
            self.counters["dial.failed"] += 1
            log.debug("node %s does not answer at %s:%d: %s", short(member), *address, error)
            return
        self.counters["dialed"] += 1
        peer = await self._shake(stream, member)
        if peer is not None:
            await self._live(peer)


def _who(peer: NodeId) -> str:
    return f"node {short(peer)}"


async def _receive(channel: Channel) -> bytes:
    payload = await channel.receive()
    if payload is None:
        raise RemoteFault("lost", "it closed the connection before the end of the handshake")
    return payload

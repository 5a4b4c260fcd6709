"""One running node: its ports put together, and its tasks. No clock, socket, file or chance of its own.

    database (writes) ── driver ── core          ports: TCP peers + UDP DHT on `port`, TCP clients on `client_port`
    database (reads)  ── client port
    DHT: finds addresses of members; the mesh keeps a connection to each

`node.process` gives it the kernel's ports; the simulator gives it simulated ones and runs these very tasks.
"""

import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
import trio

from chain.errors import RemoteFault, Removed
from chain.genesis import Genesis
from hopchain.wire import (
    AskAccounts,
    AskBalance,
    AskChain,
    AskDigest,
    AskRoute,
    Call,
    Hello,
    Refused,
    Submit,
    SubmitChange,
    decode_client_frame_untrusted,
)
from node.accepting import MAX_HANDSHAKES
from node.addressbook import Addresses
from node.balances import Balances
from node.channel import FLUSH_S, Network
from node.client_port import ClientServer, Session
from node.condition import ConditionLog
from node.config import NodeConfig
from node.core import Core
from node.database import Database
from node.descriptors import NO_LIMIT, Shares, shares
from node.driver import Driver
from node.effects import Read
from node.events import Caller, ClientBalance, ClientChange, ClientSubmit, DiskSpace
from node.hello import PROTOCOL_VERSION
from node.hello import Hello as PeerHello
from node.listings import Listings
from node.marker import Marker
from node.messages import Closing, encode_frames, encode_message
from node.pki import NodeContexts
from node.questions import Question, check_question_untrusted
from node.reading import until_of
from node.serving import Serving
from node.status import Disk, NodeStatus
from node.transport import MeshIdentity, PeerMesh
from node.turn import Now
from routing.datagrams import DatagramFactory
from routing.dht import ContactEvent, Dht, open_dht
from routing.keyspace import NodeId, short
from routing.table import Change

log = logging.getLogger(__name__)

JOIN_AGAIN_S: Final = 1.0
NOTE_EVERY_S: Final = 1.0  # at most, where the members are, what the log says of this node, how full its disk is
MAX_BESIDE: Final = 64  # answers that are made beside their connections, which may be gone meanwhile
MAX_LOOKUPS: Final = 16  # that wait at once; they only find addresses, so more would find the same


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything outside of it that a node touches."""

    clock: Callable[[], Now]
    rng: random.Random  # for what may be guessed: jitter, message ids
    boot: bytes  # 16 bytes, new at each start
    contexts: NodeContexts  # secret
    network_key: bytes  # secret
    database: Database  # what the driver writes to
    reader: Database
    accounts: int  # that are open in the database when this process starts
    tcp: Network
    datagrams: DatagramFactory
    list_reader: Database | None = None  # for lists; None: `reader`
    long_reader: Database | None = None  # for reads that take seconds; None: `reader`
    remember: Callable[[Marker], None] = lambda marker: None  # keeps what is durable beside the database
    addresses: Mapping[NodeId, tuple[str, int]] = field(default_factory=dict)  # noted last, before this start
    note_addresses: Callable[[Mapping[NodeId, tuple[str, int]]], None] = lambda addresses: None
    open_files: int = NO_LIMIT  # how many this process may have
    disk: Callable[[], Disk] = lambda: Disk(0, 0, 0)
    # what follows: for `hopchain doctor`
    certificate_until_ms: Callable[[], int] = lambda: 0
    certificate_unusable: Callable[[], bool] = lambda: False


class RunningNode:
    """The ports and tasks of a node. Run it with `await nursery.start(node.run)`, inside a trio-asyncio loop."""

    def __init__(self, config: NodeConfig, genesis: Genesis, node_id: NodeId, core: Core, ports: Ports) -> None:
        self.id = node_id
        self.network = genesis.network_id
        self.core = core
        self._config = config
        self._ports = ports
        self._book = Addresses({peer.node_id: (peer.host, peer.port) for peer in config.peers}, ports.addresses)
        self._book.now[node_id] = (config.advertise_host, config.port)
        self._lookups: set[bytes] = set()
        self._neighbours: frozenset[NodeId] = core.membership.neighbours()
        core.introduce(
            ports.boot,
            seeds=bool(self._book.known(self._is_over) - {node_id}),
            uncovered_bytes=config.limits.uncovered_bytes_per_hour,
        )
        self.balances = Balances()
        self.driver = Driver(
            core,
            ports.database,
            ports.clock,
            serve_read=self._serve_read,
            look_up=self._look_up,
            on_neighbours=self._on_neighbours,
            balances=self.balances,
        )
        share = self._share()
        self.mesh = self.driver.mesh = self._make_mesh(share)
        self._clients = self._make_clients(share)
        self._serving = self._make_serving(genesis)
        self._listings = Listings(self._answer, self._start_soon)
        self._nursery: trio.Nursery | None = None
        self._dht: Dht | None = None
        self._disk = DiskSpace(0, 0)  # as the core knows it
        self._reads = 0  # that are on their way to a client
        self._read_done = trio.lowlevel.ParkingLot()
        self._beside: set[int] = set()  # numbers of the sessions of which a call is answered beside them

    def _share(self) -> Shares:
        """What of the open files is for whom; fewer clients than the config allows is told in the log."""
        allowed, files = self._config.limits.client_connections, self._ports.open_files
        share = shares(files, allowed, MAX_HANDSHAKES)
        if share.clients < allowed:
            log.warning(
                "this process may open %d files: it serves %d clients at once, not %d; raise the limit (ulimit -n, LimitNOFILE)",
                files,
                share.clients,
                allowed,
            )
        return share

    def _make_mesh(self, share: Shares) -> PeerMesh:
        config, ports, core = self._config, self._ports, self.core
        member = core.view.member(self.id)
        incarnation = member.incarnation if member is not None else 1
        hello = PeerHello(PROTOCOL_VERSION, self.network, self.id, incarnation, ports.boot, config.client_port)
        return PeerMesh(
            MeshIdentity(hello, ports.contexts),
            members=self._whom,
            address_of=self._book.next,
            on_frame=self.driver.on_peer_frame,
            on_up=self._on_peer_up,
            on_down=self.driver.on_peer_down,
            removed_in=core.membership.is_refused,
            on_removed=self.driver.on_removed,
            rng=ports.rng,
            host=config.host,
            port=config.port,
            network=ports.tcp,
            queue_bytes=config.limits.peer_queue_bytes,
            max_handshakes=share.handshakes,
        )

    def _make_clients(self, share: Shares) -> ClientServer:
        return ClientServer(
            network_id=self.network,
            node_id=self.id,
            context=self._ports.contexts.serve,
            handler=self._on_client_frame,
            on_close=self._on_client_gone,
            host=self._config.host,
            port=self._config.client_port,
            network=self._ports.tcp,
            max_sessions=share.clients,
            max_handshakes=share.handshakes,
            queue_bytes=self._config.limits.client_queue_bytes,
        )

    def _make_serving(self, genesis: Genesis) -> Serving:
        ports = self._ports
        status = NodeStatus(
            self.id,
            self.core,
            accounts=lambda: self.accounts,
            addresses=self._book.now,
            counters=self._counters,
            clock=ports.clock,
            client_port_of=self._client_port_of,
            disk=ports.disk,
            disk_reserve=self._config.limits.disk_reserve,
            certificate_until_ms=ports.certificate_until_ms,
            certificate_unusable=ports.certificate_unusable,
        )
        return Serving(
            genesis,
            self.core,
            ports.reader,
            self.balances,
            status,
            addresses=self._book.now,
            clock=ports.clock,
            list_reader=ports.list_reader,
            long_reader=ports.long_reader,
        )

    @property
    def accounts(self) -> int:
        """How many are open in its database."""
        return self._ports.accounts + self.driver.opened

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled, or until the error that ends the node. Starts when all ports are open."""
        async with (
            trio.open_nursery() as nursery,
            open_dht(
                self.id,
                self._config.host,
                self._config.port,
                self._ports.network_key,
                self.network,
                self._ports.rng,
                self._ports.boot,
                datagrams=self._ports.datagrams,
                on_contact=self._on_contact,
            ) as dht,
        ):
            self._nursery, self._dht = nursery, dht
            self._serving.dht = dht
            await nursery.start(self.mesh.run)
            await nursery.start(self._clients.run)
            nursery.start_soon(self._drive)
            nursery.start_soon(self._serving.remember_balances)
            nursery.start_soon(self._keep_notes)
            nursery.start_soon(self._join)
            task_status.started()
            await trio.sleep_forever()

    async def _drive(self) -> None:
        """Turn after turn. Who was removed ends by itself, with what it had to say sent."""
        try:
            await self.driver.run()
        except Removed:
            with trio.move_on_after(FLUSH_S):
                while self._reads:
                    await self._read_done.park()
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Send what is queued for clients and members, for a bounded time, and close their connections."""
        await self._clients.aclose()
        for farewell in encode_frames([encode_message(Closing())]):
            for peer in self.mesh.connected():
                self.mesh.send_nowait(peer, farewell)
        await self.mesh.aclose()

    # --- members ---

    def _whom(self) -> frozenset[NodeId]:
        """With whom to keep a connection. Who is a guest, or alone, may know an old view only: it dials the seeds of
        its config too."""
        if self.id in self._neighbours and len(self._neighbours) > 1:
            return self._neighbours
        return self._neighbours.union(self._book.known(self._is_over)) - {self.id}  # it dials, and does not wait

    def _client_port_of(self, node: NodeId) -> int:
        hello = self.mesh.hello_of(node)
        return 0 if hello is None else hello.client_port

    def _on_peer_up(self, peer: NodeId, replaced: bool) -> None:
        hello = self.mesh.hello_of(peer)
        boot = hello.boot if hello is not None else b""
        assert self._dht is not None
        self._dht.expect(peer, boot)
        self.driver.on_peer_up(peer, boot, replaced=replaced)

    def _on_neighbours(self, neighbours: frozenset[NodeId]) -> None:
        """Raises `Removed`, which ends the process, when this node was removed and may go."""
        membership, view = self.core.membership, self.core.view
        self._ports.remember(Marker(self.id.hex(), view.epoch, self.core.identity.votes, view.is_member(self.id)))
        if membership.is_over:
            raise Removed(
                f"node {short(self.id)} was removed from the network in epoch {membership.removed_in} and nobody needs it any "
                "more: this id does not come back; to take part again, join under a new invitation"
            )
        self._neighbours = neighbours
        self.mesh.refresh()

    async def _keep_notes(self) -> None:
        """For the next start: where the other members are, as far as somebody answered there. What was noted of a node
        stays until it is removed, since this node may know an old view only. And what has changed is told in the
        log, and a disk that is nearly full to the core."""
        condition = ConditionLog(self.id, self.core, self._ports.clock().mono, NOTE_EVERY_S)
        while True:
            self._look_at_disk()
            condition.look(self._ports.clock())
            self._ports.note_addresses(self._book.notes(self.core.view.ids, self._is_over))
            await trio.sleep(NOTE_EVERY_S)

    def _look_at_disk(self) -> None:
        """Of a disk that has enough room the core hears nothing: it would be a turn each second."""
        disk = self._ports.disk()
        if not disk.total:  # it could not be looked at now: it is as it was
            return
        seen = DiskSpace(disk.free, self._config.limits.disk_reserve(disk.total))
        if seen.is_low or self._disk.is_low:
            self.driver.put_nowait(seen)
        self._disk = seen

    def _is_over(self, node: NodeId) -> bool:
        return self.core.membership.removed_epoch(node) > 0

    # --- the DHT ---

    async def _join(self) -> None:
        """Find the other members; the DHT itself remembers the seeds from then on."""
        assert self._dht is not None
        seeds = self._book.seeds()
        while True:
            if not seeds or await self._dht.bootstrap(seeds):
                return
            await trio.sleep(JOIN_AGAIN_S)

    def _on_contact(self, event: ContactEvent) -> None:
        contact = event.contact
        if event.change is not Change.LOST and contact.id != self.id:
            self._book.met(contact.id, (contact.host, contact.port))

    def _look_up(self, key: bytes) -> None:
        """Find where the owner of a key is now; what is found arrives at `_on_contact`."""
        if self._nursery is not None and key not in self._lookups and len(self._lookups) < MAX_LOOKUPS:
            self._lookups.add(key)
            self.driver.counters["lookups"] += 1
            self._nursery.start_soon(self._lookup, key)

    async def _lookup(self, key: bytes) -> None:
        assert self._dht is not None
        try:
            await self._dht.lookup(key)
        finally:
            self._lookups.discard(key)

    # --- clients ---

    def _on_client_gone(self, session: Session) -> None:
        self.driver.remove_session(session)
        self._listings.forget(session.number)

    async def _on_client_frame(self, session: Session, payload: bytes) -> None:
        """One frame of a client: what changes money goes through the core, plain reads do not."""
        try:
            frame = decode_client_frame_untrusted(payload)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise RemoteFault("malformed", f"a frame of {len(payload)} bytes cannot be read: {error}") from None
        if isinstance(frame, Hello):
            raise RemoteFault("malformed", "a second hello on one connection")
        await self._on_call(session, frame, len(payload))

    async def _on_call(self, session: Session, call: Call, size: int) -> None:
        caller = Caller(session.number, call.number)
        self.driver.calls.add_session(session)
        await self.driver.calls.wait_for_room(caller, size)
        body = call.body
        if isinstance(body, Submit):
            await self.driver.calls.put(ClientSubmit(caller, body), size)
            return
        if isinstance(body, SubmitChange):
            await self.driver.calls.put(ClientChange(caller, body), size)
            return
        try:
            check_question_untrusted(body)
        except RemoteFault as fault:
            self.driver.calls.reply(caller, Refused(fault.code, fault.text))
            return
        if isinstance(body, AskBalance) and (body.linearizable or (body.waits and not self._serving.has_height(body))):
            read = ClientBalance(caller, body)
            until = until_of(read, self._ports.clock().mono)  # its time runs while it waits for others of this client
            await self.driver.calls.put(msgspec.structs.replace(read, until=until))
        elif isinstance(body, AskChain | AskAccounts):
            await self._listings.put(caller, body, size)
        elif (
            isinstance(body, AskDigest | AskRoute)
            and caller.session not in self._beside
            and len(self._beside) < MAX_BESIDE
        ):
            self._beside.add(caller.session)
            self._start_soon(self._answer_beside, caller, body)
        else:
            await self._answer(caller, body)

    async def _answer(self, caller: Caller, body: Question) -> None:
        """Read the replica when it has what clients were told."""
        asked = self._ports.clock().mono
        account = self._serving.account_read(body)
        if account is not None:
            await self.driver.wait_committed(account)
        self.driver.calls.reply(caller, await self._serving.answer(body, asked))

    async def _answer_beside(self, caller: Caller, body: Question) -> None:
        """It takes long: its connection is read on, since its client asks for signs of life meanwhile. One such call of
        each."""
        try:
            await self._answer(caller, body)
        finally:
            self._beside.discard(caller.session)

    def _serve_read(self, read: Read) -> None:
        """A balance that the core has made certain: read it now."""
        self._reads += 1
        self._start_soon(self._read, read)

    def _start_soon(self, job: Callable[..., Awaitable[None]], *args: object) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(job, *args)

    async def _read(self, read: Read) -> None:
        try:
            self.driver.calls.reply(read.caller, await self._serving.answer(read.ask))
        finally:
            self._reads -= 1
            self._read_done.unpark_all()

    def _counters(self) -> dict[str, int]:
        """Everything that this node counts, by name."""
        assert self._dht is not None
        parts = {
            "driver": self.driver.counters,
            "mesh": self.mesh.counters,
            "clients": self._clients.counters,
            "dht": self._dht.dropped,
        }
        counted = {f"{part}.{name}": count for part, counter in parts.items() for name, count in counter.items()}
        counted["clients.sessions"] = self._clients.sessions
        return counted

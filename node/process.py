"""One node as a process: its files, its ports, its tasks. This is the outermost module: real clock, real chance.

    database thread (writes) ── driver ── core          ports: TCP peers + UDP DHT on `port`, TCP clients on `client_port`
    database thread (reads)  ── client port
    DHT: finds addresses of members; the mesh keeps a connection to each

Whatever ends the node has a type: `LocalMisuse` (files or ports are not as they must be), `StorageFailure` (the disk),
`Corruption` (this replica contradicts what was decided). SIGINT and SIGTERM end it cleanly.
"""

import logging
import random
import secrets
import signal
import sqlite3
import time
from pathlib import Path
from typing import Final

import msgspec
import trio
import trio_asyncio

from chain.disk import open_database
from chain.errors import RemoteFault
from chain.genesis import Genesis
from chain.store import create_or_check, load_cursors, load_votes
from hopchain.wire import AskBalance, Call, Hello, Refused, Submit, decode_client_frame_untrusted
from node.client_port import ClientServer, Session
from node.config import NodeConfig, read_config
from node.core import Core, Start
from node.database import Database, open_database_thread
from node.driver import Driver
from node.hello import PROTOCOL_VERSION
from node.hello import Hello as PeerHello
from node.layout import read_genesis, read_network_key
from node.lock import DataLock
from node.pki import NodeKey, node_contexts, read_node_key
from node.serving import Serving, check_question_untrusted
from node.transport import MeshIdentity, PeerMesh
from node.turn import Caller, ClientBalance, ClientSubmit, Now, Read
from routing.dht import ContactEvent, Dht, open_dht
from routing.keyspace import NodeId, short
from routing.table import Change
from routing.view import View, encode_view, first_view, member_of

log = logging.getLogger(__name__)

DATABASE_FILE: Final = "node.db"
JOIN_AGAIN_S: Final = 1.0
MAX_LOOKUPS: Final = 16  # that wait at once; they only find addresses, so more would find the same


def run_node(directory: Path) -> None:
    """Run the node of this directory until a signal ends it. Blocks."""
    config = read_config(directory)
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", force=True
    )
    for library in ("kademlia", "rpcudp", "aiosqlite", "asyncio"):  # they tell every step of every lookup
        logging.getLogger(library).setLevel(logging.WARNING)
    trio.run(serve_node, directory, config)


def now() -> Now:
    """Monotonic seconds of trio's clock, and the wall clock for links."""
    return Now(trio.current_time(), time.time_ns() // 1_000_000)


def view_of(genesis: Genesis) -> View:
    """The view that the genesis file makes."""
    members = [member_of(bytes.fromhex(m.public_key), m.incarnation) for m in genesis.members]
    return first_view(genesis.network_id, genesis.k, members)


async def serve_node(directory: Path, config: NodeConfig) -> None:
    """Everything of one node, in one place that one can see the end of."""
    genesis = read_genesis(directory)
    key = read_node_key(directory)
    view = view_of(genesis)
    path = directory / DATABASE_FILE
    with DataLock(directory):
        async with (
            trio_asyncio.open_loop(),
            open_database_thread(lambda: open_database(path, writer=True)) as database,
        ):
            await database.run(create_or_check, genesis, key.id, (view.hash, encode_view(view)))
            start = await database.run(read_start)
            async with open_database_thread(lambda: open_database(path, writer=False)) as reader:
                core = Core(key.id, genesis, view, random.Random(secrets.randbits(64)), start, now())
                await _Node(directory, config, genesis, key, view, core, database, reader).run()


def read_start(conn: sqlite3.Connection) -> Start:
    """What a core starts from."""
    links = conn.execute("SELECT count(*) FROM links").fetchone()[0]
    return Start(load_votes(conn), links, {NodeId(row.peer): row.seq for row in load_cursors(conn)})


class _Node:
    """The ports and tasks of a running node."""

    def __init__(
        self,
        directory: Path,
        config: NodeConfig,
        genesis: Genesis,
        key: NodeKey,
        view: View,
        core: Core,
        database: Database,
        reader: Database,
    ) -> None:
        self._config = config
        self._genesis = genesis
        self._key = key
        self._network_key = read_network_key(directory)
        self._boot = secrets.token_bytes(16)
        self._rng = random.Random(secrets.randbits(64))
        self._seeds = [(peer.host, peer.port) for peer in config.peers]
        self._addresses = {peer.node_id: (peer.host, peer.port) for peer in config.peers}
        self._addresses[key.id] = (config.advertise_host, config.port)
        self._lookups: set[bytes] = set()
        self._driver = Driver(core, database, now, serve_read=self._serve_read, look_up=self._look_up)
        contexts = node_contexts(directory, genesis.ca)
        member = view.member(key.id)
        incarnation = member.incarnation if member is not None else 1
        hello = PeerHello(PROTOCOL_VERSION, genesis.network_id, key.id, incarnation, self._boot)
        self._mesh = PeerMesh(
            MeshIdentity(hello, contexts),
            members=lambda: view.ids,
            address_of=self._addresses.get,
            on_frame=self._driver.on_peer_frame,
            on_up=self._driver.on_peer_up,
            on_down=self._driver.on_peer_down,
            rng=self._rng,
            host=config.host,
            port=config.port,
            queue_bytes=config.limits.peer_queue_bytes,
        )
        self._driver.mesh = self._mesh
        self._clients = ClientServer(
            network_id=genesis.network_id,
            context=contexts.serve,
            handler=self._on_client_frame,
            on_close=self._driver.remove_session,
            host=config.host,
            port=config.client_port,
            max_sessions=config.limits.client_connections,
            queue_bytes=config.limits.client_queue_bytes,
        )
        self._serving = Serving(key.id, genesis, view, core, reader, self._addresses, self._counters, now)
        self._nursery: trio.Nursery | None = None
        self._dht: Dht | None = None

    async def run(self) -> None:
        """Serve until a signal comes."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with (
                trio.open_nursery() as nursery,
                open_dht(
                    self._key.id,
                    self._config.host,
                    self._config.port,
                    self._network_key,
                    self._genesis.network_id,
                    self._rng,
                    self._boot,
                    on_contact=self._on_contact,
                ) as dht,
            ):
                self._nursery, self._dht = nursery, dht
                self._serving.dht = dht
                await nursery.start(self._mesh.run)
                await nursery.start(self._clients.run)
                nursery.start_soon(self._driver.run)
                nursery.start_soon(self._join)
                log.info(
                    "node %s of network %s serves clients on %s:%d, members on port %d",
                    short(self._key.id),
                    self._genesis.network_id.hex()[:16],
                    self._config.host,
                    self._config.client_port,
                    self._config.port,
                )
                async for number in signals:
                    log.info("signal %s: closing", signal.Signals(number).name)
                    break
                await self._clients.aclose()
                await self._mesh.aclose()
                nursery.cancel_scope.cancel()

    # --- the DHT ---

    async def _join(self) -> None:
        """Find the other members; the DHT itself remembers the seeds from then on."""
        assert self._dht is not None
        while True:
            if not self._seeds or await self._dht.bootstrap(self._seeds):
                return
            await trio.sleep(JOIN_AGAIN_S)

    def _on_contact(self, event: ContactEvent) -> None:
        contact = event.contact
        if event.change is not Change.LOST and contact.id != self._key.id:
            self._addresses[contact.id] = (contact.host, contact.port)

    def _look_up(self, key: bytes) -> None:
        """Find where the owner of a key is now; what is found arrives at `_on_contact`."""
        if self._nursery is not None and key not in self._lookups and len(self._lookups) < MAX_LOOKUPS:
            self._lookups.add(key)
            self._nursery.start_soon(self._lookup, key)

    async def _lookup(self, key: bytes) -> None:
        assert self._dht is not None
        try:
            await self._dht.lookup(key)
        finally:
            self._lookups.discard(key)

    # --- clients ---

    async def _on_client_frame(self, session: Session, payload: bytes) -> None:
        """One frame of a client: what changes money goes through the core, plain reads do not."""
        try:
            frame = decode_client_frame_untrusted(payload)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise RemoteFault("malformed", f"a frame of {len(payload)} bytes cannot be read: {error}") from None
        if isinstance(frame, Hello):
            raise RemoteFault("malformed", "a second hello on one connection")
        await self._on_call(session, frame)

    async def _on_call(self, session: Session, call: Call) -> None:
        caller = Caller(session.number, call.number)
        self._driver.add_session(session)
        body = call.body
        if isinstance(body, Submit):
            await self._driver.put(ClientSubmit(caller, body))
            return
        try:
            check_question_untrusted(body)
        except RemoteFault as fault:
            self._driver.reply(caller, Refused(fault.code, fault.text))
            return
        if isinstance(body, AskBalance) and (body.linearizable or body.min_height > 0):
            await self._driver.put(ClientBalance(caller, body))
        else:
            self._driver.reply(caller, await self._serving.answer(body))

    def _serve_read(self, session: Session, read: Read) -> None:
        """A balance that the core has made certain: read it now."""
        assert self._nursery is not None
        self._nursery.start_soon(self._read, read)

    async def _read(self, read: Read) -> None:
        self._driver.reply(read.caller, await self._serving.answer(read.ask))

    def _counters(self) -> dict[str, int]:
        """Everything that this node counts, by name."""
        assert self._dht is not None
        parts = {
            "driver": self._driver.counters,
            "mesh": self._mesh.counters,
            "clients": self._clients.counters,
            "dht": self._dht.dropped,
        }
        counted = {f"{part}.{name}": count for part, counter in parts.items() for name, count in counter.items()}
        counted["clients.sessions"] = self._clients.sessions
        return counted

"""One node as a process: its files, its log, its signals. This is the outermost module: real clock, real chance.

Whatever ends the node has a type: `LocalMisuse` (files or ports are not as they must be), `StorageFailure` (the disk),
`Corruption` (this replica contradicts what was decided), `NotReady` (the machine has just started). SIGINT, SIGTERM
and SIGHUP end it cleanly.
"""

import gc
import logging
import random
import secrets
import shutil
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Protocol

import trio
import trio_asyncio

from chain.disk import open_database
from chain.errors import LocalMisuse, NotReady
from chain.genesis import Genesis
from chain.reads import count_accounts
from chain.store import create_or_check
from hopchain.printable import shown
from node.addressbook import AddressBook
from node.channel import TcpNetwork, check_name, not_known_yet
from node.config import NodeConfig, read_config
from node.core import Core
from node.database import open_database_thread
from node.descriptors import raise_limit
from node.layout import DATABASE, read_genesis, read_network_key
from node.lock import DataLock
from node.marker import MarkerFile
from node.pki import (
    NODE_CERTIFICATE,
    NodeContexts,
    check_certificate_time,
    node_contexts,
    read_node_key,
    reload_contexts,
)
from node.running import Ports, RunningNode
from node.signals import ending_signals
from node.start import read_start
from node.status import Disk
from node.turn import Now
from routing.datagrams import Datagrams, Receiver, UdpFactory
from routing.errors import RoutingMisuse, RoutingNotReady
from routing.keyspace import NodeId, short
from routing.view import View, encode_view, first_view, member_of

log = logging.getLogger(__name__)

LOOK_AT_CERTIFICATE_S: Final = 5.0
COLLECT_AFTER: Final = (10_000, 20, 20)  # new objects; such collections; again: all are looked at after 4,000,000
READY_S: Final = 60.0  # that a node waits for its machine: more than a name service and the clock take at a start
READY_AGAIN_S: Final = 2.0
LATE_SIGNAL_S: Final = 0.05  # for signals that came already to be taken


def settle_collector() -> None:
    """For a process that is a node: what was imported stays, so the garbage collector never looks at it again, and less
    often at the rest. Records, which are nearly all that a node makes, it does not know at all (`gc=False`, ADR 25)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


class OneLine(logging.Formatter):
    """A record is one line, with the traceback below it: what strangers send cannot pass for other records."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """Its line."""
        return shown(super().formatMessage(record))


def run_node(directory: Path) -> None:
    """Run the node of this directory until a signal ends it. Blocks."""
    config = read_config(directory)
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler], force=True)
    for library in ("kademlia", "rpcudp", "aiosqlite", "asyncio"):  # they tell every step of every lookup
        logging.getLogger(library).setLevel(logging.WARNING)
    trio.run(serve_node, directory, config)


def now() -> Now:
    """Monotonic seconds of trio's clock, and the wall clock for links."""
    return Now(trio.current_time(), time.time_ns() // 1_000_000)


def view_of(genesis: Genesis) -> View:
    """The view that the genesis file makes."""
    members = [member_of(bytes.fromhex(m.public_key), m.incarnation) for m in genesis.members]
    return first_view(genesis.network_id, genesis.k, members, genesis.time_ms)


async def serve_node(directory: Path, config: NodeConfig) -> None:
    """Everything of one node, in one place that one can see the end of."""
    genesis = read_genesis(directory)
    key = read_node_key(directory)
    if not await _is_ready_before_a_signal(directory, config.host):
        return
    certificate_ns = _certificate_ns(directory)  # before it is read: what is written from now on is new
    contexts = node_contexts(directory, genesis.ca)  # all files are read before a database is made for them
    network_key = read_network_key(directory)
    view = view_of(genesis)
    path = directory / DATABASE
    with DataLock(directory):
        marker = MarkerFile(directory, key.id)
        marker.check_database(exists=path.exists())
        book = AddressBook(directory)
        async with (
            trio_asyncio.open_loop(),
            open_database_thread(lambda: open_database(path, writer=True)) as database,
        ):
            await database.run(create_or_check, genesis, key.id, (view.hash, encode_view(view)))
            start = await database.run(read_start)
            async with (
                open_database_thread(lambda: open_database(path, writer=False), withdraws=True) as reader,
                open_database_thread(lambda: open_database(path, writer=False), withdraws=True) as list_reader,
                open_database_thread(lambda: open_database(path, writer=False), withdraws=True) as long_reader,
                trio.open_nursery() as nursery,
            ):
                core = Core(key.id, genesis, view, random.Random(secrets.randbits(64)), start, now())
                marker.check_start(core.view.epoch, core.identity.votes)
                ports = Ports(
                    clock=now,
                    rng=random.Random(secrets.randbits(64)),
                    boot=secrets.token_bytes(16),
                    contexts=contexts,
                    network_key=network_key,
                    database=database,
                    reader=reader,
                    list_reader=list_reader,
                    accounts=await reader.run(count_accounts),
                    long_reader=long_reader,
                    tcp=TcpNetwork(),
                    datagrams=_Udp(),
                    disk=lambda: _disk(path),
                    remember=marker.write,
                    addresses=book.read(),
                    note_addresses=book.write,
                    certificate_until_ms=lambda: contexts.until_ms,
                    certificate_unusable=lambda: contexts.outdated,
                    open_files=raise_limit(),
                )
                nursery.start_soon(_renew_certificates, contexts, directory, certificate_ns)
                await serve_until_signal(RunningNode(config, genesis, key.id, core, ports), config)
                nursery.cancel_scope.cancel()


async def wait_until_ready(directory: Path, host: str) -> None:
    """Return when the clock has come to the time of node.crt, and `host` can be looked up: a machine that starts may
    have neither for a while. Raises `NotReady` after READY_S, and then who started this process may do so again."""
    until = trio.current_time() + READY_S
    told = False
    while True:
        try:
            check_certificate_time(directory, now().unix_ms)
            await check_name(host)
        except NotReady as error:
            if trio.current_time() >= until:
                raise
            if not told:
                log.warning("%s. It is tried again for %g s", error, READY_S)
            told = True
            await trio.sleep(READY_AGAIN_S)
        else:
            return


async def _is_ready_before_a_signal(directory: Path, host: str) -> bool:
    """`wait_until_ready`; False when one of `ending_signals` ends the wait. Nothing else is to be closed then, but what
    a signal does by itself has another exit code, and does not end process 1 of a container."""
    told = trio.Event()
    failure: LocalMisuse | NotReady | None = None
    with trio.open_signal_receiver(*ending_signals()) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_at_signal, signals, told, nursery.cancel_scope)
            try:
                await wait_until_ready(directory, host)
            except (LocalMisuse, NotReady) as error:  # told as it is, and not in the nursery's group
                failure = error
            nursery.cancel_scope.cancel()
    if told.is_set():  # also when it came in the moment in which the wait was over
        return False
    if failure is not None:
        raise failure
    return True


async def _end_at_signal(signals: AsyncIterator[int], told: trio.Event, scope: trio.CancelScope) -> None:
    """End this scope when a signal comes."""
    async for number in signals:
        log.info("signal %s: ending before this node has started", signal.Signals(number).name)
        told.set()
        scope.cancel()


def _disk(database: Path) -> Disk:
    """The disk of the database, and the size of the database with its write-ahead log; all 0 when they cannot be looked
    at."""
    try:
        usage = shutil.disk_usage(database.parent)
        size = sum(file.stat().st_size for file in database.parent.glob(f"{database.name}*"))
    except OSError:  # a client asks: that the directory was moved, or a file beside the database is gone, ends no node
        return Disk(0, 0, 0)
    return Disk(usage.free, usage.total, size)


def _certificate_ns(directory: Path) -> int:
    """When node.crt was written, nanoseconds."""
    return (directory / NODE_CERTIFICATE).stat().st_mtime_ns


async def _renew_certificates(contexts: NodeContexts, directory: Path, loaded_ns: int) -> None:
    """Use a new node.crt as soon as it is there: standing connections go on, the next handshakes show it. `loaded_ns`:
    when the one in `contexts` was written. What is wrong with it is told once, for it may stay so for months."""
    told = ""
    while True:
        await trio.sleep(LOOK_AT_CERTIFICATE_S)
        try:
            written_ns = _certificate_ns(directory)
            if written_ns != loaded_ns:
                check_certificate_time(directory, now().unix_ms)
                reload_contexts(contexts, directory)
                log.info("node.crt was replaced: it is used from now on")
                loaded_ns = written_ns
            contexts.outdated = False
            told = ""
        except (LocalMisuse, NotReady, OSError) as error:
            contexts.outdated = True
            if str(error) != told:
                told = str(error)
                log.warning("node.crt cannot be used: %s", error)
            await trio.sleep(LOOK_AT_CERTIFICATE_S)


class _Udp(UdpFactory):
    """UDP whose misuse is the operator's, like that of the TCP ports."""

    async def open(self, receiver: Receiver, host: str, port: int) -> Datagrams:
        """Bind a UDP port. `LocalMisuse` when that cannot be, `NotReady` when it cannot be now."""
        try:
            return await super().open(receiver, host, port)
        except RoutingMisuse as error:
            raise LocalMisuse(f"{error} (host and port in config.toml)") from None
        except RoutingNotReady:
            raise NotReady(not_known_yet(host)) from None


class Service(Protocol):
    """A node that runs: `node.running.RunningNode`."""

    @property
    def id(self) -> NodeId: ...
    @property
    def network(self) -> bytes: ...
    async def run(self, task_status: trio.TaskStatus[None]) -> None: ...
    async def aclose(self) -> None: ...


async def serve_until_signal(node: Service, config: NodeConfig) -> None:
    """Run the node until one of `ending_signals`, then send what is queued and close."""
    with trio.open_signal_receiver(*ending_signals()) as signals:
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(node.run)
                log.info(
                    "node %s of network %s serves clients on %s:%d, members on port %d",
                    short(node.id),
                    node.network.hex()[:16],
                    config.host,
                    config.client_port,
                    config.port,
                )
                async for number in signals:
                    log.info("signal %s: closing", signal.Signals(number).name)
                    break
                await node.aclose()
                nursery.cancel_scope.cancel()
        finally:
            # One that came while the node ended by itself is obeyed already. Left there it would kill the process, and
            # its exit code would not say why the node ended.
            with trio.move_on_after(LATE_SIGNAL_S, shield=True):
                async for number in signals:
                    log.info("signal %s: closing already", signal.Signals(number).name)

"""The DHT as the rest of the program sees it: where are the nodes, and are they alive? (design section 4). trio side.

    async with trio_asyncio.open_loop():
        async with open_dht(node_id, host, port, network_key, network_id, rng, boot_id) as dht:
            await dht.bootstrap(seeds)
            found = await dht.lookup(route_key(slot))

One task reads the datagrams from a bounded inbox, so that every error of our own ends in the nursery of `open_dht` and
reaches who opened it. Time is the running loop's (trio's clock), randomness and the network are given: the same class
runs in the simulator. Who *decides* a slot is `View.group`, never a lookup.
"""

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Final

import msgspec
import trio
import trio_asyncio
from kademlia.node import Node

from routing.datagrams import Address, DatagramFactory, Datagrams, UdpFactory
from routing.errors import RoutingFault, RoutingMisuse
from routing.keyspace import ID_BYTES, NodeId
from routing.protocol import SealedProtocol
from routing.rpc import MAX_KSIZE, check_address_untrusted
from routing.sealing import Sealer
from routing.server import SealedServer
from routing.table import Change, id_of

KSIZE: Final = 20  # Kademlia's k: contacts per bucket and per answer. Not the k of a view's groups
ALPHA: Final = 3
INBOX: Final = 1024  # datagrams not looked at yet; above it they are dropped, as the kernel would
MAX_SEEDS: Final = 64  # pinged at once by one bootstrap; more than enough to find one that lives
MAX_LOOKUPS: Final = 64  # at once; further ones wait
MAINTAIN_EVERY_S: Final = 10.0  # lost all contacts: try the seeds again; buckets an hour old: refresh


class Contact(msgspec.Struct, frozen=True):
    """A node and where it answers: numeric IP, UDP port."""

    id: NodeId
    host: str
    port: int


class ContactEvent(msgspec.Struct, frozen=True):
    """A contact was ADDED to the table, MOVED to the address given here, or LOST (it failed repeatedly)."""

    change: Change
    contact: Contact


class Lookup(msgspec.Struct, frozen=True):
    """The result of a lookup.

    `contacts`: the closest nodes that answered, closest first, at most ksize, never ourselves: compare with your own
    id. Empty when no contact is known, and then nothing was sent. `asked`: in order; `failed`: those of them that did
    not answer. `hops`: how many nodes were asked one after the other to reach the closest one, itself included: 1 when
    it was in our table, 0 when nobody answered.
    """

    key: bytes
    contacts: tuple[Contact, ...]
    asked: tuple[NodeId, ...]
    failed: tuple[NodeId, ...]
    hops: int
    took_s: float


OnContact = Callable[[ContactEvent], None]


class Dht:
    """An open DHT node; made by `open_dht`. Every lookup is a plain Kademlia lookup over the network, never answered
    from the table."""

    def __init__(
        self,
        node_id: NodeId,
        sealer: Sealer,
        rng: random.Random,
        ksize: int,
        alpha: int,
        nursery: trio.Nursery,
        clock: Callable[[], float],
        on_contact: OnContact | None,
    ) -> None:
        self.node_id = node_id
        self.on_contact = on_contact
        self._nursery = nursery
        self._clock = clock
        self._factory: DatagramFactory | None = None
        self._datagrams: Datagrams | None = None
        self._seeds: tuple[tuple[str, int], ...] = ()
        self._limiter = trio.CapacityLimiter(MAX_LOOKUPS)
        self._to_inbox, self._inbox = trio.open_memory_channel[tuple[bytes, Address]](INBOX)
        self._sealer = sealer
        self._protocol = SealedProtocol(Node(node_id), ksize, sealer, rng, clock, self._spawn, self._changed)
        self._server = SealedServer(self._protocol, ksize, alpha)

    @property
    def port(self) -> int:
        """The UDP port it is bound to."""
        return self.address[1]

    @property
    def address(self) -> Address:
        """The numeric address it is bound to."""
        assert self._datagrams is not None
        return self._datagrams.address

    @property
    def dropped(self) -> Counter[str]:
        """Datagrams that were dropped or answered with an error, by reason."""
        return self._protocol.dropped

    def contacts(self) -> tuple[Contact, ...]:
        """All contacts of the table, by key range."""
        return tuple(map(_contact, self._protocol.router.contacts()))

    def expect(self, node: NodeId, boot_id: bytes) -> None:
        """This node has proved elsewhere (TLS) who it is, and that this is its start: no flood of datagrams keeps it
        out."""
        self._sealer.expect(node, boot_id)

    async def bootstrap(self, seeds: Iterable[tuple[str, int]]) -> int:
        """Join through any of the seeds (names or numeric addresses, our own is skipped). Returns the number of
        contacts known after it.

        0 when nobody answered. The seeds are remembered: whenever no contact is left they are tried again.
        """
        assert self._factory is not None
        self._seeds = tuple(seeds)[:MAX_SEEDS]
        addresses: dict[Address, None] = {}
        for host, port in self._seeds:
            address = await self._factory.resolve(host, port)
            if address is not None and address != self.address:
                addresses[address] = None
        async with self._limiter:
            found: int = await trio_asyncio.aio_as_trio(self._server.bootstrap)(list(addresses))
        return found

    async def lookup(self, key: bytes) -> Lookup:
        """Find the nodes closest to `key` (20 bytes)."""
        if len(key) != ID_BYTES:
            raise RoutingMisuse(f"a key of {len(key)} bytes; it has {ID_BYTES}: use route_key(slot)")
        async with self._limiter:
            started = self._clock()
            crawl = await trio_asyncio.aio_as_trio(self._server.crawl)(Node(key))
        nearest = list(crawl.nearest)
        return Lookup(
            key=key,
            contacts=tuple(map(_contact, nearest)),
            asked=tuple(crawl.asked),
            failed=tuple(crawl.failed),
            hops=crawl.depths[id_of(nearest[0])] if nearest else 0,
            took_s=self._clock() - started,
        )

    async def ping(self, contact: Contact) -> float | None:
        """Round-trip time in seconds, or None when repeated datagrams were not answered. After a loss it includes the
        wait for it."""
        try:
            check_address_untrusted(contact.host, contact.port)
        except RoutingFault as fault:
            raise RoutingMisuse(f"cannot ping {contact.id.hex()}: {fault.text}") from None
        ask = trio_asyncio.aio_as_trio(self._protocol.ask)
        answer = await ask(contact.id, (contact.host, contact.port), "ping", ())
        return None if answer.sender is None else answer.rtt_s

    async def open(self, factory: DatagramFactory, host: str, port: int) -> None:
        """Bind and start the tasks; called once, by `open_dht`."""
        self._factory = factory
        self._datagrams = self._protocol.datagrams = await factory.open(self._receive, host, port)
        self._nursery.start_soon(self._serve)
        self._nursery.start_soon(self._maintain)

    def close(self) -> None:
        """Stop receiving and sending."""
        if self._datagrams is not None:
            self._datagrams.close()

    def _receive(self, data: bytes, address: Address) -> None:
        """Take a datagram from the port: nothing is done here, so that nothing can fail here."""
        try:
            self._to_inbox.send_nowait((data, address))
        except trio.WouldBlock:
            self.dropped["inbox_full"] += 1

    async def _serve(self) -> None:
        """The one task that feeds the protocol."""
        async for data, address in self._inbox:
            self._protocol.datagram_received(data, address)

    async def _maintain(self) -> None:
        """Keep buckets fresh (Kademlia 2.3), and come back after having lost everybody."""
        while True:
            await trio.sleep(MAINTAIN_EVERY_S)
            if self._seeds and not self._protocol.router:
                await self.bootstrap(self._seeds)
            await trio_asyncio.aio_as_trio(self._server.refresh)()

    def _spawn(self, job: Callable[[], Coroutine[None, None, None]]) -> None:
        """Run an asyncio coroutine function in our nursery."""
        self._nursery.start_soon(trio_asyncio.aio_as_trio(job))

    def _changed(self, change: Change, node: Node) -> None:
        if self.on_contact is not None:
            self.on_contact(ContactEvent(change, _contact(node)))


@asynccontextmanager
async def open_dht(
    node_id: NodeId,
    bind_host: str,
    port: int,
    network_key: bytes,
    network_id: bytes,
    rng: random.Random,
    boot_id: bytes,
    *,
    ksize: int = KSIZE,
    alpha: int = ALPHA,
    datagrams: DatagramFactory | None = None,
    on_contact: OnContact | None = None,
) -> AsyncIterator[Dht]:
    """A DHT node on UDP (bind_host, port); port 0 for any.

    `network_key` (32 bytes) is secret and the same on all nodes; `boot_id` (16 random bytes) is new at every start.
    `datagrams` replaces UDP. `on_contact` is called with each change of the table, at once and not from a task of its
    own: it must not block. Its errors, like all errors of the background tasks, leave this context as an exception
    group.
    """
    loop = trio_asyncio.current_loop.get()
    if loop is None:
        raise RoutingMisuse(
            "the DHT needs a running asyncio loop: open it inside `async with trio_asyncio.open_loop()`"
        )
    if not 1 <= ksize <= MAX_KSIZE or alpha < 1:
        raise RoutingMisuse(f"ksize is {ksize} and alpha {alpha}; ksize must be 1 to {MAX_KSIZE} and alpha at least 1")
    sealer = Sealer(network_key, network_id, node_id, boot_id, loop.time)
    async with trio.open_nursery() as nursery:
        dht = Dht(node_id, sealer, rng, ksize, alpha, nursery, loop.time, on_contact)
        try:
            await dht.open(datagrams or UdpFactory(), bind_host, port)
            yield dht
        finally:
            dht.close()
            nursery.cancel_scope.cancel()


def _contact(node: Node) -> Contact:
    return Contact(id_of(node), node.ip, node.port)

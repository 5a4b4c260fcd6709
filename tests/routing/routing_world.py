"""What the routing tests share: an in-memory network of datagrams on trio's clock, and many DHT nodes on it."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import trio
import trio_asyncio

from routing.datagrams import Address, Receiver
from routing.dht import Dht, open_dht
from routing.keyspace import NodeId, closest, node_id_of

NETWORK_KEY = bytes(range(32))
NETWORK_ID = bytes(range(100, 132))


class MemoryNetwork:
    """Datagrams between ports of one process: each takes `delay(from, to)` seconds, or is lost."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.loss = 0.0
        self.delay: Callable[[Address, Address], float] = lambda _from, _to: rng.uniform(0.005, 0.03)
        self.blocked: Callable[[bytes, Address, Address], bool] = lambda _data, _from, _to: False
        self.sent: Counter[Address] = Counter()
        self.log: list[tuple[bytes, Address, Address]] = []
        self._ports: dict[Address, MemoryPort] = {}
        self._next = 1
        loop = trio_asyncio.current_loop.get()
        assert loop is not None
        self._loop = loop

    async def open(self, receiver: Receiver, host: str, port: int) -> "MemoryPort":
        """Bind; port 0 gets the next free one."""
        if port == 0:
            port, self._next = self._next, self._next + 1
        assert (host, port) not in self._ports
        opened = self._ports[host, port] = MemoryPort(self, receiver, (host, port))
        return opened

    async def resolve(self, host: str, port: int) -> Address | None:
        """Hosts are numeric here."""
        return (host, port)

    def inject(self, data: bytes, source: Address, to: Address) -> None:
        """A datagram from anybody, now."""
        if to in self._ports:
            self._ports[to].receiver(data, source)

    def transmit(self, data: bytes, source: Address, to: Address) -> None:
        self.sent[source] += 1
        self.log.append((data, source, to))
        if self.blocked(data, source, to) or self.rng.random() < self.loss:
            return
        self._loop.call_later(self.delay(source, to), self.inject, data, source, to)

    def unbind(self, address: Address) -> None:
        self._ports.pop(address, None)


class MemoryPort:
    """One bound port."""

    def __init__(self, network: MemoryNetwork, receiver: Receiver, address: Address) -> None:
        self._network = network
        self.receiver = receiver
        self.address = address

    def send(self, data: bytes, to: Address) -> None:
        self._network.transmit(data, self.address, to)

    def close(self) -> None:
        self._network.unbind(self.address)


class World:
    """Nodes on one `MemoryNetwork`."""

    def __init__(self, rng: random.Random, stack: AsyncExitStack) -> None:
        self.rng = rng
        self.network = MemoryNetwork(rng)
        self.nodes: list[Dht] = []
        self._stack = stack

    async def add(
        self, *, ksize: int = 20, host: str = "10.0.0.1", node_id: NodeId | None = None, **options: object
    ) -> Dht:
        """One more node, alone."""
        dht = await self._stack.enter_async_context(
            open_dht(
                node_id or node_id_of(self.rng.randbytes(32)),
                host,
                0,
                NETWORK_KEY,
                NETWORK_ID,
                self.rng,
                self.rng.randbytes(16),
                ksize=ksize,
                datagrams=self.network,
                **options,
            )
        )
        self.nodes.append(dht)
        return dht

    async def grow(self, count: int, *, ksize: int = 20) -> list[Dht]:
        """`count` more nodes, each joined through a random earlier one."""
        for _ in range(count):
            earlier = list(self.nodes)
            dht = await self.add(ksize=ksize)
            if earlier:
                await dht.bootstrap([self.rng.choice(earlier).address])
        return self.nodes

    def truth(self, key: bytes, asker: Dht, k: int, alive: set[NodeId] | None = None) -> tuple[NodeId, ...]:
        """The k nodes closest to `key` among all (living) ones but the asker."""
        ids = {node.node_id for node in self.nodes} if alive is None else alive
        return closest(ids - {asker.node_id}, key, k)


@asynccontextmanager
async def make_world(seed: int) -> AsyncIterator[World]:
    """An empty world; give the test the `autojump_clock` fixture so that nobody waits."""
    async with trio_asyncio.open_loop(), AsyncExitStack() as stack:
        yield World(random.Random(seed), stack)


async def join(*nodes: Dht) -> None:
    """Every node meets the first."""
    for node in nodes[1:]:
        await node.bootstrap([nodes[0].address])


async def settle(seconds: float = 10.0) -> None:
    """Let everything that is under way come to its end; on the test's clock this takes no time."""
    await trio.sleep(seconds)

"""The asyncio side of one DHT node: the `kademlia` library's `Server`, with a replaceable port and no lost tasks.

The library starts tasks that nobody waits for, takes SHA-1 of random bits as its id, stores values and pickles its
state. Here the id is given, everything runs inside calls that somebody waits for (`bootstrap`, `crawl`, `refresh`), and
nothing is stored.
"""

import asyncio
from typing import NoReturn

from kademlia.network import Server
from kademlia.node import Node

from routing.crawl import Crawl
from routing.datagrams import Address
from routing.errors import RoutingMisuse
from routing.protocol import SealedProtocol


class SealedServer(Server):  # type: ignore[misc]  # the library has no types
    """Joins, looks up and refreshes through one `SealedProtocol`."""

    protocol: SealedProtocol
    node: Node

    def __init__(self, protocol: SealedProtocol, ksize: int, alpha: int) -> None:
        super().__init__(ksize, alpha, protocol.source_node.id)
        self.protocol = protocol

    async def bootstrap(self, addrs: list[Address]) -> int:
        """Ping the addresses, then look up our own id through who answers; the number of contacts known after it."""
        async with asyncio.TaskGroup() as group:
            for address in addrs:
                group.create_task(self.bootstrap_node(address))
        await self.crawl(self.node)
        return len(self.protocol.router)

    async def bootstrap_node(self, addr: Address) -> Node | None:
        """The node that answers at `addr`: it is in the table then."""
        answer = await self.protocol.ask(None, addr, "ping", ())
        return None if answer.sender is None else Node(answer.sender, *addr)

    async def crawl(self, target: Node) -> Crawl:
        """A finished lookup; `nearest` holds what it found."""
        table = self.protocol.router
        table.touch(target)
        crawl = Crawl(self.protocol, target, table.find_neighbors(target), self.ksize, self.alpha)
        await crawl.find()
        return crawl

    async def refresh(self) -> None:
        """Look up a key in every bucket in which nothing was looked up for an hour, one after the other."""
        for key in self.protocol.get_refresh_ids():
            await self.crawl(Node(key))

    async def get(self, key: object) -> NoReturn:
        """Refused: this DHT finds nodes."""
        raise RoutingMisuse(f"the DHT stores no values, so not {key!r}: it finds nodes, with `lookup`")

    async def set(self, key: object, value: object) -> NoReturn:
        """Refused: this DHT finds nodes."""
        raise RoutingMisuse(
            f"the DHT stores no values, so neither {key!r} nor {value!r}: it finds nodes, with `lookup`"
        )

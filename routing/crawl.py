"""A lookup: the `kademlia` library's crawl, without its rounds.

The library asks alpha contacts, waits for the slowest of them, and only then asks the next. Here alpha calls are in
flight all the time: each answer starts the next call, and a call whose first timeout passes goes on without holding its
place. After alpha answers in a row that named nobody closer, all of the k closest that are left are asked at once
(Kademlia 2.3). The lookup ends when the k closest it knows of have answered; those that did not answer are left out,
also when named again. After MAX_ASKED calls it ends with what it has: nodes that lie could name closer ones for ever.
"""

import asyncio
import heapq
from collections.abc import Callable
from typing import Final

from kademlia.crawling import NodeSpiderCrawl
from kademlia.node import Node, NodeHeap

from routing.datagrams import Address
from routing.keyspace import NodeId
from routing.protocol import SealedProtocol
from routing.rpc import Triple
from routing.table import id_of

MAX_ADDRESSES: Final = 2  # a node that moved is named at its old address and at its new one
MAX_ASKED: Final = 1000  # calls of one lookup; among 200 nodes it takes twenty


class Shortlist(NodeHeap):  # type: ignore[misc]  # the library has no types
    """The nodes heard of, closest first. The library's searches all of them for each one, and takes failed ones
    back."""

    def __init__(self, target: Node, ksize: int) -> None:
        super().__init__(target, ksize)
        self._tried: dict[bytes, set[Address]] = {}  # by id, once heard of: the addresses that are or were on the list
        self._spare: dict[bytes, Node] = {}  # another address of a node on the list

    def push(self, nodes: list[Node]) -> None:
        """Add the nodes, each once; one that failed gets a second chance at an address that was not tried."""
        for node in nodes:
            tried = self._tried.setdefault(node.id, set())
            if not tried or (len(tried) < MAX_ADDRESSES and node.id in self.contacted and not self._holds(node)):
                self._insert(node)
            elif (node.ip, node.port) not in tried:
                self._spare.setdefault(node.id, node)

    def fail(self, node: Node) -> bool:
        """`node` did not answer. True when it is off the list, False when its other address is next."""
        self.remove([node.id])
        spare = self._spare.pop(node.id, None)
        if spare is None or len(self._tried[node.id]) >= MAX_ADDRESSES:
            return True
        self._insert(spare)
        return False

    def _insert(self, node: Node) -> None:
        self._tried[node.id].add((node.ip, node.port))
        self.contacted.discard(node.id)
        heapq.heappush(self.heap, (self.node.distance_to(node), node))

    def _holds(self, node: Node) -> bool:
        return self.get_node(node.id) is not None


class Crawl(NodeSpiderCrawl):  # type: ignore[misc]  # the library has no types
    """One lookup of the k closest nodes to a key. `asked` and `depths` say how it went."""

    protocol: SealedProtocol
    nearest: Shortlist
    ksize: int
    alpha: int
    _group: asyncio.TaskGroup

    def __init__(self, protocol: SealedProtocol, target: Node, peers: list[Node], ksize: int, alpha: int) -> None:
        super().__init__(protocol, target, [], ksize, alpha)
        self.nearest = Shortlist(target, ksize)
        self.nearest.push(peers)
        self.asked: list[NodeId] = []
        self.failed: dict[NodeId, None] = {}  # in order
        self.depths: dict[NodeId, int] = {id_of(peer): 1 for peer in peers}
        self._in_flight: set[NodeId] = set()  # the calls that hold a place: not those past their first timeout
        self._idle_answers = 0  # answers in a row that named nobody closer

    async def find(self) -> list[Node]:
        """The k closest nodes that answered, closest first."""
        async with asyncio.TaskGroup() as self._group:
            self._ask_next()
        return [node for node in self.nearest if node.id in self.nearest.contacted]

    def _ask_next(self) -> None:
        """Start calls to the closest that were not asked, as many as there are places."""
        places = self.alpha if self._idle_answers < self.alpha else self.ksize
        places = min(places - len(self._in_flight), MAX_ASKED - len(self.asked))
        for node in self.nearest.get_uncontacted()[: max(places, 0)]:
            self.nearest.mark_contacted(node)
            self._in_flight.add(id_of(node))
            self.asked.append(id_of(node))
            self._group.create_task(self._ask(node))

    async def _ask(self, node: Node) -> None:
        """One call, and what follows from its answer."""
        answered, found = await self.protocol.call_find_node(node, self.node, self._slow(id_of(node)))
        self._in_flight.discard(id_of(node))
        if answered:
            self.failed.pop(id_of(node), None)  # at its other address
            before = self.nearest.get_ids()
            self._hear_of(found, self.depths[id_of(node)] + 1)
            self._idle_answers = self._idle_answers + 1 if self.nearest.get_ids() == before else 0
        elif self.nearest.fail(node):
            self.failed[id_of(node)] = None
        self._ask_next()

    def _slow(self, node: NodeId) -> Callable[[], None]:
        """What a call does when it passes its first timeout: it gives its place to another."""

        def give_place() -> None:
            self._in_flight.discard(node)
            self._ask_next()

        return give_place

    def _hear_of(self, found: list[Triple], depth: int) -> None:
        """Add the contacts of an answer; one that names ourselves is not believed."""
        nodes = [Node(*triple) for triple in found if triple[0] != self.protocol.source_node.id]
        for node in nodes:
            self.depths.setdefault(id_of(node), depth)
        self.nearest.push(nodes)

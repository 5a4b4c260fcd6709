"""The routing table: the `kademlia` library's, made exact.

What is different from the library, and why:

* `find_neighbors` is the k closest, by sorting all contacts. The library stops at the first k it meets in neighbouring
  buckets, and never returns a contact whose id *is* the key.
* Buckets are prefixes: the first one ends at 2^160 - 1, and a contact is looked for where it was put. The library's end
  at 2^160 puts an id of 2^159 into the wrong half, and looks for an id that is the upper end of a bucket in the next
  one.
* A known contact that is seen again becomes the most recently seen one, at the address it was seen at.
* The table never sends anything. When a bucket is full, `add_contact` returns the contact to ping: its least recently
  seen one.
* Changes are told to `on_change`, also when a contact comes in from the replacements.

Splitting (a full bucket that holds our own id, or whose depth is not a multiple of 5: Kademlia 4.2) is the library's.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from typing import Final

from kademlia.node import Node
from kademlia.routing import KBucket, RoutingTable

from routing.keyspace import KEY_BITS, NodeId

DEPTH_STEP: Final = 5  # b of Kademlia 4.2: lookups gain up to 5 bits a hop
REPLACEMENT_FACTOR: Final = 5  # replacements per bucket: this times k


class Change(Enum):
    """What happened to a contact of the table."""

    ADDED = "added"
    MOVED = "moved"
    LOST = "lost"


class Bucket(KBucket):  # type: ignore[misc]  # the library has no types
    """A range of ids that share a prefix. `range` is inclusive at both ends; `nodes` is least recently seen first."""

    range: tuple[int, int]
    nodes: "OrderedDict[bytes, Node]"
    replacement_nodes: "OrderedDict[bytes, Node]"

    def __init__(self, lower: int, upper: int, ksize: int, now: float) -> None:
        self.touched_at = now
        super().__init__(lower, upper, ksize, REPLACEMENT_FACTOR)

    def touch_last_updated(self) -> None:
        """The library's own clock is not used; see `Table.touch`."""

    def depth(self) -> int:
        """How many bits the range fixes. The library counts what its contents happen to share."""
        return KEY_BITS - (self.range[1] - self.range[0]).bit_length()

    def split(self) -> "tuple[Bucket, Bucket]":
        """The two halves. Contacts stay contacts; replacements become contacts where there is room now."""
        middle = (self.range[0] + self.range[1]) // 2
        low = Bucket(self.range[0], middle, self.ksize, self.touched_at)
        high = Bucket(middle + 1, self.range[1], self.ksize, self.touched_at)
        for node in [*self.nodes.values(), *self.replacement_nodes.values()]:
            (low if node.long_id <= middle else high).add_node(node)
        return low, high


class Table(RoutingTable):  # type: ignore[misc]  # the library has no types
    """The contacts of one node."""

    buckets: list[Bucket]

    def __init__(
        self, node: Node, ksize: int, clock: Callable[[], float], on_change: Callable[[Change, Node], None]
    ) -> None:
        self._clock = clock
        self._on_change = on_change
        super().__init__(None, ksize, node)  # no protocol: the table sends nothing

    def flush(self) -> None:
        """Start with one bucket for all ids."""
        self.buckets = [Bucket(0, 2**KEY_BITS - 1, self.ksize, self._clock())]

    def __len__(self) -> int:
        return sum(len(bucket.nodes) for bucket in self.buckets)

    def contacts(self) -> list[Node]:
        """All contacts, by bucket."""
        return [node for bucket in self.buckets for node in bucket.nodes.values()]

    def get(self, node_id: bytes) -> Node | None:
        """The contact with this id, or None."""
        return self.buckets[self.get_bucket_for(Node(node_id))].nodes.get(node_id)

    def get_bucket_for(self, node: Node) -> int:
        """The index of the one bucket whose range holds the id."""
        return next(index for index, bucket in enumerate(self.buckets) if node.long_id <= bucket.range[1])

    def find_neighbors(self, node: Node, k: int | None = None, exclude: Node | None = None) -> list[Node]:
        """The k (ksize) contacts closest to `node`, closest first; not the one with `exclude`'s id."""
        found = (contact for contact in self.contacts() if exclude is None or contact.id != exclude.id)
        target = node.long_id
        return heapq.nsmallest(k or self.ksize, found, key=lambda contact: contact.long_id ^ target)

    def add_contact(self, node: Node) -> Node | None:
        """Note that `node` was seen at its address now. Returns the contact to ping when there was no room for a new
        one."""
        if node.id == self.node.id:
            return None
        index = self.get_bucket_for(node)
        known = self.buckets[index].nodes.get(node.id)
        if known is not None:
            self.buckets[index].add_node(node)
            if not known.same_home_as(node):
                self._on_change(Change.MOVED, node)
            return None
        before = set(self.buckets[index].nodes)
        upper = self.buckets[index].range[1]
        full = self._insert(node)
        while index < len(self.buckets) and self.buckets[index].range[1] <= upper:
            for contact in list(self.buckets[index].nodes.values()):
                if contact.id not in before:
                    self._on_change(Change.ADDED, contact)
            index += 1
        return full

    def remove_contact(self, node: Node) -> None:
        """Forget a contact; its bucket's newest replacement takes its place."""
        bucket = self.buckets[self.get_bucket_for(node)]
        before = set(bucket.nodes)
        bucket.remove_node(node)
        if node.id in before:
            self._on_change(Change.LOST, node)
        for node_id in bucket.nodes.keys() - before:
            self._on_change(Change.ADDED, bucket.nodes[node_id])

    def touch(self, key: Node) -> None:
        """Note a lookup in the bucket of `key`."""
        self.buckets[self.get_bucket_for(key)].touched_at = self._clock()

    def lonely_buckets(self, older_than_s: float = 3600.0) -> list[Bucket]:
        """The buckets in which nothing was looked up for that long (Kademlia 2.3: an hour)."""
        return [bucket for bucket in self.buckets if bucket.touched_at <= self._clock() - older_than_s]

    def _insert(self, node: Node) -> Node | None:
        """Add a new contact, splitting as Kademlia 4.2 says; the least recently seen contact when the bucket stays
        full."""
        while True:
            index = self.get_bucket_for(node)
            bucket = self.buckets[index]
            if bucket.add_node(node):
                return None
            if not bucket.has_in_range(self.node) and bucket.depth() % DEPTH_STEP == 0:
                return bucket.nodes[next(iter(bucket.nodes))]
            self.split_bucket(index)


def id_of(node: Node) -> NodeId:
    """The id of a library node, typed."""
    return NodeId(node.id)

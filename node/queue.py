"""The requests that wait for an account's next link: one of them, as many as one link can hold, and as many as one
message does."""

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from chain.link import MAX_ENTRIES
from chain.request import MAX_POSTINGS, MAX_REQUEST_BYTES, DecodedRequest, RequestId
from node.messages import Forward, Item, SlotName
from routing.keyspace import NodeId

NO_GATEWAY: Final = NodeId(b"")
# Of requests in one message: about what one link can hold, and what waits behind it waits no longer
BATCH_BYTES: Final = 1024 * 1024
ITEM_BYTES: Final = 128  # of an item besides its request: signature, gateway, and room


class QueuedRequest(msgspec.Struct, frozen=True, gc=False):
    """A request in a queue: since when (monotonic seconds), and the node that answers its client (NO_GATEWAY for a
    copy: its client must not be told that it was dropped, for another node holds it too, or a vote does, design R13).
    `number`: by which of its hand-overs it came."""

    decoded: DecodedRequest
    gateway: NodeId
    since: float
    number: int = 0

    def copy(self) -> "QueuedRequest":
        """The same request for one more holder."""
        return QueuedRequest(self.decoded, NO_GATEWAY, self.since)


class LookedUp(msgspec.Struct):
    """The requests of one account whose rows this turn has loaded: as many as one link can hold."""

    ids: set[RequestId] = msgspec.field(default_factory=set)
    bytes: int = 0
    postings: int = 0

    def add(self, decoded: DecodedRequest) -> bool:
        """False when there is no more room."""
        if decoded.request_id in self.ids:
            return True
        self.bytes += len(decoded.signed.raw)
        self.postings += len(decoded.request.postings)
        full = len(self.ids) >= MAX_ENTRIES or self.bytes > MAX_REQUEST_BYTES or self.postings > MAX_POSTINGS
        if self.ids and full:
            return False
        self.ids.add(decoded.request_id)
        return True


def forwards(at: SlotName, queued: Iterable[QueuedRequest], *, takeover: bool) -> Iterator[Forward]:
    """These requests as messages to whoever makes the link in `at`."""
    items = (Item(q.decoded.signed.raw, q.decoded.signed.signature, q.gateway, q.number) for q in queued)
    for batch in item_batches(items):
        yield Forward(at, batch, takeover)


def item_batches(items: Iterable[Item]) -> Iterator[tuple[Item, ...]]:
    """Requests in messages of at most about `BATCH_BYTES`, at least one request each."""
    batch: list[Item] = []
    size = 0
    for item in items:
        if batch and size + len(item.raw) > BATCH_BYTES:
            yield tuple(batch)
            batch, size = [], 0
        batch.append(item)
        size += len(item.raw) + ITEM_BYTES
    if batch:
        yield tuple(batch)

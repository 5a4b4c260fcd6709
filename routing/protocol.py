"""The `kademlia` library's protocol with its limits covered (design section 4). asyncio side; never raises for bad
input.

* Everything travels sealed (`routing.sealing`); the id that a caller claims must be the one its datagram is sealed
  with.
* A call is repeated before it fails, with timeouts from measured round trips; only repeated failures cost a contact its
  place.
* A reply counts when its message id, its sealed sender *and* its address are those of the call.
* Every authentic call is answered at once, with an error when it cannot be served. A handler's own bug is also raised.
* A reply to our call proves an address: a contact that moved is updated. A *call* from a known id at another address is
  only a hint (it may be an old datagram, sent again by somebody else from elsewhere), so we ping there first.
* Nothing is stored: `store` and `find_value` are refused.

The library turns every misspelt attribute into a remote call; here it is an AttributeError.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Final, NamedTuple, NoReturn

from kademlia.node import Node
from kademlia.protocol import KademliaProtocol

from routing.datagrams import Address, Datagrams
from routing.errors import RoutingFault
from routing.keyspace import NodeId
from routing.rpc import (
    CALL,
    ERROR,
    MESSAGE_ID_BYTES,
    Message,
    Triple,
    check_id_untrusted,
    decode_call_untrusted,
    decode_contacts_untrusted,
    decode_message_untrusted,
    decode_node_id_untrusted,
    encode_call,
    encode_error,
    encode_reply,
)
from routing.rtt import RoundTrips
from routing.sealing import Opened, Sealer
from routing.table import Change, Table, id_of

MAX_CHECKS: Final = 32  # pings of our own accord in flight; above it a hint is not followed, the next one will be

Value = NodeId | list[Triple] | None
Spawn = Callable[[Callable[[], Coroutine[None, None, None]]], None]
OnSlow = Callable[[], None]


class Answer(NamedTuple):
    """What a call brought: who answered and from when on it was asked. `sender` is None when nobody did."""

    sender: NodeId | None
    value: Value
    rtt_s: float


class _Call(NamedTuple):
    """A call in flight. `peer` is None when it is not known who listens at `address`."""

    peer: NodeId | None
    address: Address
    name: str
    future: "asyncio.Future[tuple[NodeId, Value]]"


class SealedProtocol(KademliaProtocol):  # type: ignore[misc]  # the library has no types
    """One node's end of all its conversations."""

    router: Table
    source_node: Node
    datagrams: Datagrams  # set when the port is open

    def __init__(
        self,
        node: Node,
        ksize: int,
        sealer: Sealer,
        rng: random.Random,
        clock: Callable[[], float],
        spawn: Spawn,
        on_change: Callable[[Change, Node], None],
    ) -> None:
        """`spawn` runs a coroutine function in the nursery of the DHT, which sees its errors."""
        super().__init__(node, (), ksize)  # an empty storage: nothing is ever stored
        self.router = Table(node, ksize, clock, on_change)
        self.round_trips = RoundTrips()
        self.dropped: Counter[str] = Counter()
        self._sealer = sealer
        self._rng = rng
        self._clock = clock
        self._spawn = spawn
        self._calls: dict[bytes, _Call] = {}
        self._checking: set[NodeId] = set()

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} has no attribute {name}")

    def datagram_received(self, data: bytes, addr: Address) -> None:
        """Take one datagram from the network. Bad ones are dropped and counted; only our own bugs are raised."""
        try:
            opened = self._sealer.open_untrusted(data)
            message = decode_message_untrusted(opened.payload)
            if message.kind == CALL:
                self._serve(opened, message, addr)
            else:
                self._settle(opened.sender, message, addr)
        except RoutingFault as fault:
            self.dropped[fault.code] += 1

    def _serve(self, opened: Opened, message: Message, address: Address) -> None:
        """Answer a call. Its error, if any, goes to the caller before it goes up."""
        reply = encode_error(message.message_id, "failed")
        try:
            name, args = decode_call_untrusted(message.body)
            value = self._handle(opened, name, args, address)
            reply = encode_reply(message.message_id, value)
        except RoutingFault as fault:
            reply = encode_error(message.message_id, fault.code)
            raise
        finally:
            self._send(reply, opened.sender, address)

    def _handle(self, opened: Opened, name: str, args: list[bytes], address: Address) -> bytes | list[Triple]:
        """The table of what can be called. All else that the library offers is refused."""
        expected = {"ping": 1, "find_node": 2}.get(name)
        if expected is None:
            raise RoutingFault("refused", f"{name[:40]!r} is not served here")
        if len(args) != expected:
            raise RoutingFault("malformed", f"{name} has {expected} arguments, not {len(args)}")
        claimed = check_id_untrusted(args[0])
        if claimed != opened.sender:
            raise RoutingFault("impostor", f"{opened.sender.hex()} claims to be {claimed.hex()}")
        if name == "ping":
            return self.rpc_ping(address, claimed)
        return self.rpc_find_node(address, claimed, check_id_untrusted(args[1]))

    def rpc_ping(self, sender: Address, nodeid: bytes) -> bytes:
        """Kademlia's PING."""
        self.welcome_if_new(Node(nodeid, *sender))
        return id_of(self.source_node)

    def rpc_find_node(self, sender: Address, nodeid: bytes, key: bytes) -> list[Triple]:
        """Kademlia's FIND_NODE: the k contacts closest to `key`, without the caller."""
        source = Node(nodeid, *sender)
        self.welcome_if_new(source)
        return [(node.id, node.ip, node.port) for node in self.router.find_neighbors(Node(key), exclude=source)]

    def welcome_if_new(self, node: Node) -> None:
        """A call came from `node`: a new contact is added, a known one noted, one that seems to have moved is asked."""
        known = self.router.get(node.id)
        if known is not None and not known.same_home_as(node):
            self._check(node)
        else:
            self._add(node)

    def _settle(self, sender: NodeId, message: Message, address: Address) -> None:
        """Give a reply to the call it answers."""
        call = self._calls.get(message.message_id)
        if call is None:
            raise RoutingFault("late", "a reply to a call that is over, or was never made")
        if call.peer not in (sender, None) or call.address != address:
            raise RoutingFault("stranger", f"{sender.hex()} at {address} answers a call to {call.address}")
        if call.future.done():
            raise RoutingFault("late", "a second reply to a repeated call")
        value: Value = None
        if message.kind == ERROR:
            self.dropped["error_reply"] += 1
        else:
            try:
                value = _read_reply_untrusted(call, sender, message.body)
            except RoutingFault as fault:
                self.dropped[fault.code] += 1
        call.future.set_result((sender, value))

    async def call_ping(self, node_to_ask: Node) -> tuple[bool, NodeId | None]:
        """PING a contact: (True, its id), or (False, None)."""
        answer = await self.ask(id_of(node_to_ask), (node_to_ask.ip, node_to_ask.port), "ping", ())
        return (True, answer.sender) if isinstance(answer.value, bytes) else (False, None)

    async def call_find_node(
        self, node_to_ask: Node, node_to_find: Node, on_slow: OnSlow | None = None
    ) -> tuple[bool, list[Triple]]:
        """FIND_NODE: (True, contacts), or (False, []). `on_slow` is called at each timeout that passes."""
        address = (node_to_ask.ip, node_to_ask.port)
        answer = await self.ask(id_of(node_to_ask), address, "find_node", (node_to_find.id,), on_slow)
        return (True, answer.value) if isinstance(answer.value, list) else (False, [])

    async def ask(
        self, peer: NodeId | None, address: Address, name: str, args: tuple[bytes, ...], on_slow: OnSlow | None = None
    ) -> Answer:
        """Make a call, repeating it until its timeouts are over, and note in the table what it shows.

        A peer that answers with an error or with nonsense is alive: `sender` is set and `value` is None.
        """
        message_id = self._rng.randbytes(MESSAGE_ID_BYTES)
        payload = encode_call(message_id, name, (self.source_node.id, *args))
        future: asyncio.Future[tuple[NodeId, Value]] = asyncio.get_running_loop().create_future()
        self._calls[message_id] = _Call(peer, address, name, future)
        asked_at = self._clock()
        try:
            for timeout_s in self.round_trips.timeouts(peer):
                self._send(payload, peer, address)
                await asyncio.wait((future,), timeout=timeout_s)
                if future.done():
                    break
                if on_slow is not None:
                    on_slow()
        finally:
            del self._calls[message_id]
        elapsed_s = self._clock() - asked_at
        if future.done():
            sender, value = future.result()
            self._answered(sender, address, elapsed_s)
            return Answer(sender, value, elapsed_s)
        if peer is not None and self.round_trips.silent(peer, asked_at, self._clock()):
            self._give_up(peer, address)
        return Answer(None, None, elapsed_s)

    def _answered(self, sender: NodeId, address: Address, rtt_s: float) -> None:
        """`sender` is alive and at `address`."""
        self.round_trips.answered(sender, rtt_s)
        self._add(Node(sender, *address))

    def _give_up(self, peer: NodeId, address: Address) -> None:
        """Forget a contact that failed repeatedly, unless it was the old address of one that moved."""
        node = Node(peer, *address)
        known = self.router.get(peer)
        if known is None or known.same_home_as(node):
            self.router.remove_contact(node)

    def _add(self, node: Node) -> None:
        """Note a contact; when its bucket is full, the least recently seen one there must show that it is alive."""
        if self.router.get(node.id) is None:
            self.round_trips.forgive(id_of(node))
        oldest = self.router.add_contact(node)
        if oldest is not None:
            self._check(oldest)

    def _check(self, node: Node) -> None:
        """Ping `node` in the background, once at a time."""
        peer = id_of(node)
        if peer in self._checking or len(self._checking) >= MAX_CHECKS:
            return
        self._checking.add(peer)

        async def check() -> None:
            try:
                await self.call_ping(node)
            finally:
                self._checking.discard(peer)

        self._spawn(check)

    def _send(self, payload: bytes, receiver: NodeId | None, address: Address) -> None:
        """Seal and send."""
        self.datagrams.send(self._sealer.seal(payload, receiver), address)

    def get_refresh_ids(self) -> list[bytes]:
        """A key in each bucket in which nothing was looked up for an hour (Kademlia 2.3), from the given randomness."""
        return [self._rng.randint(*bucket.range).to_bytes(20) for bucket in self.router.lonely_buckets()]


def _read_reply_untrusted(call: _Call, sender: NodeId, body: bytes) -> Value:
    """The value of a reply; raises only `RoutingFault`."""
    if call.name != "ping":
        return decode_contacts_untrusted(body)
    claimed = decode_node_id_untrusted(body)
    if claimed != sender:
        raise RoutingFault("impostor", f"{sender.hex()} answers a ping as {claimed.hex()}")
    return claimed

"""Sealed datagrams: only members of this network can make one, and each is accepted once.

    version u8 | cluster 8 | sender 20 | receiver 20 | boot 16 | counter u64 | ChaCha20-Poly1305(payload), tag 16

The header is authenticated with the payload. `cluster` is the start of the network id; `receiver` is zero when the
sender does not know who listens there (the first ping of a bootstrap).

**A nonce is never used twice under one key.** All nodes hold one network key, so it never encrypts anything itself.
Each start of each node has a key of its own, HKDF-SHA256(network key, salt = network id, info = tag | sender | boot),
and under that key the nonce is a counter. Two nodes differ in `sender`, two starts of one node in `boot` (16 random
bytes given by the caller); so neither a restart nor a copied disk nor a clock can bring a pair of key and nonce back.

**Replay.** A window of 1024 counters per (sender, boot), like IPsec's (RFC 4303, 3.4.3), without a clock. Nothing is
remembered before a datagram, or its sender otherwise (`expect`), proved to be authentic, so forged headers cost no
memory. Above MAX_WINDOWS the least recently used one is forgotten; it takes that many real restarts. After our own
restart the windows are empty: what a replay can do then is small, because requests are idempotent and replies must
match a message id of this start.

**Floods.** That a start is none of this network's is found out by a key derivation, seven times as much as the rest.
So datagrams of starts that are not known are looked at up to NEW_STARTS_PER_S; those above are dropped, whoever sent
them. Datagrams of known starts always are. Whoever proved elsewhere who it is (TLS) is known before its first one.

The network key is shared: it keeps strangers out, and does not protect members from each other. Who a peer is when
money is concerned is proven by its TLS certificate (design section 6), and a wrong table costs a hop and never safety
(section 4).
"""

import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from routing.errors import RoutingFault, RoutingMisuse
from routing.keyspace import ID_BYTES, NodeId, short

VERSION: Final = 1
CLUSTER_BYTES: Final = 8
BOOT_BYTES: Final = 16
NETWORK_KEY_BYTES: Final = 32
NETWORK_ID_BYTES: Final = 32
REPLAY_WINDOW: Final = 1024  # how far one datagram may be overtaken by others of its sender
MAX_WINDOWS: Final = 16_384  # about 4 MiB; one per start of a node
NEW_STARTS_PER_S: Final = 500.0  # datagrams of starts not known yet: 26 us each, 13 ms of a second
NEW_STARTS_AT_ONCE: Final = 500.0  # after a second without any
MAX_DATAGRAM_BYTES: Final = 4096  # 32 contacts with IPv6 addresses, the largest reply, take about 2.3 KiB

_HEADER: Final = struct.Struct(f">B{CLUSTER_BYTES}s{ID_BYTES}s{ID_BYTES}s{BOOT_BYTES}sQ")
_TAG_BYTES: Final = 16
_KEY_TAG: Final = b"hopchain:dht:1\0"
_ANYONE: Final = bytes(ID_BYTES)

OVERHEAD_BYTES: Final = _HEADER.size + _TAG_BYTES
MAX_PAYLOAD_BYTES: Final = MAX_DATAGRAM_BYTES - OVERHEAD_BYTES


class Opened(msgspec.Struct, frozen=True):
    """An authentic datagram, seen for the first time."""

    sender: NodeId
    payload: bytes


class ReplayWindow:
    """Which of the last REPLAY_WINDOW counters were seen; older ones count as seen."""

    def __init__(self) -> None:
        self._top = -1
        self._seen = 0  # bit i: counter top - i was seen

    def is_fresh(self, counter: int) -> bool:
        """True when `counter` may still be accepted."""
        if counter > self._top:
            return True
        age = self._top - counter
        return age < REPLAY_WINDOW and not self._seen >> age & 1

    def mark(self, counter: int) -> None:
        """Note a fresh counter as seen."""
        if counter > self._top:
            ahead = min(counter - self._top, REPLAY_WINDOW)
            self._seen = (self._seen << ahead) & (1 << REPLAY_WINDOW) - 1
            self._top = counter
        self._seen |= 1 << self._top - counter


class _Boot(msgspec.Struct):
    """What is kept per start of a peer."""

    cipher: ChaCha20Poly1305
    window: ReplayWindow


class Sealer:
    """Seals and opens the datagrams of one start of one node."""

    def __init__(
        self, network_key: bytes, network_id: bytes, node_id: NodeId, boot_id: bytes, clock: Callable[[], float]
    ) -> None:
        """`boot_id`: 16 random bytes, new at every start. `clock`: monotonic seconds. `RoutingMisuse` when a length is
        wrong."""
        for what, value, size in (
            ("network key", network_key, NETWORK_KEY_BYTES),
            ("network id", network_id, NETWORK_ID_BYTES),
            ("node id", node_id, ID_BYTES),
            ("boot id", boot_id, BOOT_BYTES),
        ):
            if len(value) != size:
                raise RoutingMisuse(f"the {what} has {len(value)} bytes; give it {size}")
        self._network_key = network_key
        self._network_id = network_id
        self._cluster = network_id[:CLUSTER_BYTES]
        self._node_id = node_id
        self._boot_id = boot_id
        self._cipher = self._cipher_of(node_id, boot_id)
        self._counter = 0
        self._boots: OrderedDict[tuple[bytes, bytes], _Boot] = OrderedDict()
        self._clock = clock
        self._looks = NEW_STARTS_AT_ONCE  # a bucket of tokens: datagrams of unknown starts that are looked at now
        self._looks_at = clock()

    def seal(self, payload: bytes, receiver: NodeId | None) -> bytes:
        """A datagram for `receiver`, or for whoever gets it (None). The same payload sealed again is not a replay."""
        assert len(payload) <= MAX_PAYLOAD_BYTES, f"{len(payload)} bytes do not fit a datagram of {MAX_PAYLOAD_BYTES}"
        counter = self._counter
        self._counter += 1
        header = _HEADER.pack(VERSION, self._cluster, self._node_id, receiver or _ANYONE, self._boot_id, counter)
        return header + self._cipher.encrypt(_nonce(counter), payload, header)

    def open_untrusted(self, datagram: bytes) -> Opened:
        """The sender and payload of a datagram; `RoutingFault` whose code says why it is dropped.

        Codes: `short`, `oversized`, `version`, `foreign` (another network), `own_id` (someone uses our id),
        `misdirected` (meant for another node), `replayed`, `crowded` (of a start that is not known, and there are too
        many of those now), `forged` (not sealed with the network's key, or damaged).
        """
        if len(datagram) > MAX_DATAGRAM_BYTES:
            raise RoutingFault("oversized", f"a datagram of {len(datagram)} bytes; the limit is {MAX_DATAGRAM_BYTES}")
        if len(datagram) < OVERHEAD_BYTES:
            raise RoutingFault("short", f"a datagram of {len(datagram)} bytes; the least is {OVERHEAD_BYTES}")
        version, cluster, sender, receiver, boot_id, counter = _HEADER.unpack_from(datagram)
        if version != VERSION:
            raise RoutingFault("version", f"a datagram of version {version}; this program speaks {VERSION}")
        if cluster != self._cluster:
            raise RoutingFault("foreign", f"a datagram of network {cluster.hex()}; this is {self._cluster.hex()}")
        if sender == self._node_id:
            raise RoutingFault("own_id", f"a datagram from our own id {short(sender)}: two nodes with one key?")
        if receiver not in (self._node_id, _ANYONE):
            raise RoutingFault("misdirected", f"a datagram for {short(receiver)}; this is {short(self._node_id)}")
        boot = self._boots.get((sender, boot_id))
        if boot is not None and not boot.window.is_fresh(counter):
            raise RoutingFault("replayed", f"datagram {counter} of {short(sender)} again, or {REPLAY_WINDOW} late")
        if boot is None and not self._may_look():
            raise RoutingFault("crowded", f"more than {NEW_STARTS_PER_S:g} datagrams a second of starts not known here")
        cipher = self._cipher_of(sender, boot_id) if boot is None else boot.cipher
        try:
            payload = cipher.decrypt(_nonce(counter), datagram[_HEADER.size :], datagram[: _HEADER.size])
        except InvalidTag:
            raise RoutingFault(
                "forged", f"a datagram that claims to be from {short(sender)} is not authentic"
            ) from None
        boot = boot or _Boot(cipher, ReplayWindow())
        boot.window.mark(counter)
        self._remember((sender, boot_id), boot)
        return Opened(NodeId(sender), payload)

    def expect(self, sender: NodeId, boot_id: bytes) -> None:
        """This start of this node is known from elsewhere, and proved: its datagrams are looked at whatever others
        come. One with an id of another length seals none."""
        if len(boot_id) == BOOT_BYTES and (sender, boot_id) not in self._boots:
            self._remember((sender, boot_id), _Boot(self._cipher_of(sender, boot_id), ReplayWindow()))

    def _may_look(self) -> bool:
        """Take a token for a datagram of a start that is not known."""
        now = self._clock()
        self._looks = min(NEW_STARTS_AT_ONCE, self._looks + (now - self._looks_at) * NEW_STARTS_PER_S)
        self._looks_at = now
        if self._looks < 1:
            return False
        self._looks -= 1
        return True

    def _remember(self, key: tuple[bytes, bytes], boot: _Boot) -> None:
        self._boots[key] = boot
        self._boots.move_to_end(key)
        if len(self._boots) > MAX_WINDOWS:
            self._boots.popitem(last=False)

    def _cipher_of(self, sender: bytes, boot_id: bytes) -> ChaCha20Poly1305:
        """The cipher of one start of one node."""
        hkdf = HKDF(algorithm=SHA256(), length=32, salt=self._network_id, info=_KEY_TAG + sender + boot_id)
        return ChaCha20Poly1305(hkdf.derive(self._network_key))


def _nonce(counter: int) -> bytes:
    """The 96-bit nonce of a counter: unique under the key of one start."""
    return counter.to_bytes(12)

"""How a node is, told from memory: its status and its health.

Clients ask for the status as a sign of life, and `hopchain doctor` for the health when something is wrong: so neither
waits for a database.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Literal

import msgspec

from hopchain import wire
from node.core import Core
from node.epochs import without_majority
from node.turn import Now
from routing.keyspace import NodeId
from routing.regions import group_ranges

TIMED_READS: Final = 4096  # the last so many balances are timed, for the status
TIMED_S: Final = 10.0  # which tells of those that were asked so lately: what was long ago, the node was not as busy
LEAST_TIMED: Final = 200  # fewer say nothing of the slowest hundredth


class Disk(msgspec.Struct, frozen=True):
    """The file system of the data directory and the database in it, bytes; all 0 when that is not known."""

    free: int
    total: int
    database: int


class NodeStatus:
    """Tells how one node is."""

    def __init__(
        self,
        node_id: NodeId,
        core: Core,
        *,
        accounts: Callable[[], int],
        addresses: Mapping[NodeId, tuple[str, int]],
        counters: Callable[[], dict[str, int]],
        clock: Callable[[], Now],
        client_port_of: Callable[[NodeId], int] = lambda node: 0,
        disk: Callable[[], Disk] = lambda: Disk(0, 0, 0),
        disk_reserve: Callable[[int], int] = lambda total: 0,
        certificate_until_ms: Callable[[], int] = lambda: 0,
        certificate_unusable: Callable[[], bool] = lambda: False,
    ) -> None:
        """`accounts`: how many are open here. `disk_reserve`: how much of a disk of that size is to stay free."""
        self._id = node_id
        self._core = core
        self._accounts = accounts
        self._addresses = addresses
        self._counters = counters
        self._clock = clock
        self._client_port_of = client_port_of
        self._disk = disk
        self._disk_reserve = disk_reserve
        self._certificate_until_ms = certificate_until_ms
        self._certificate_unusable = certificate_unusable
        self._started = clock().mono
        self._took: deque[tuple[float, float]] = deque(maxlen=TIMED_READS)  # when asked, seconds until the answer

    def note_balance(self, asked: float, took_s: float) -> None:
        """A balance was asked for at `asked` (monotonic seconds), and answered so much later."""
        self._took.append((asked, took_s))

    def status(self) -> wire.Status:
        """How full it is, how far its peers are, and all that it counts."""
        now = self._clock()
        gauges = self._core.gauges()
        counters = {**self._counters(), **{f"core.{name}": count for name, count in self._core.counters.items()}}
        took = sorted(took for asked, took in self._took if asked >= now.mono - TIMED_S)
        if len(took) >= LEAST_TIMED:
            counters["reads.balance_p99_us"] = round(took[(len(took) - 1) * 99 // 100] * 1e6)
        return wire.Status(
            id=self._id,
            epoch=self._core.view.epoch,
            k=self._core.view.k,
            log_height=gauges.links,
            accounts=self._accounts(),
            undecided=gauges.undecided_votes,
            waiting_links=gauges.waiting_links,
            queued_requests=gauges.queued_requests,
            client_requests=gauges.client_requests,
            clients=counters.get("clients.sessions", 0),
            uptime_s=now.mono - self._started,
            peers=tuple(self._peer(node, now, gauges.links) for node in self._core.view.ids if node != self._id),
            counters=counters,
        )

    def health(self) -> wire.Health:
        """What it is in the network, whom it reaches, and what may stop it."""
        core, now = self._core, self._clock()
        removed_in = core.membership.removed_in
        role: Literal["member", "guest", "removed"] = "member"
        if removed_in:
            role = "removed"
        elif not core.view.is_member(self._id):
            role = "guest"
        known = {*core.view.ids, *core.peers.connected()} - {self._id}
        alive = {node for node in known if core.peers.alive(node, now)} | {self._id}
        disk = self._disk()
        return wire.Health(
            node=self._id,
            epoch=core.view.epoch,
            view_hash=core.view.hash,
            role=role,
            active=core.fully_active,
            syncing_regions=core.gauges().syncing,
            regions_without_majority=without_majority((group for _, group in group_ranges(core.view)), alive),
            verified=core.identity.verified,
            now_ms=now.unix_ms,
            disk_free=disk.free,
            disk_total=disk.total,
            database_bytes=disk.database,
            certificate_until_ms=self._certificate_until_ms(),
            links=core.replica.count,
            peers=tuple(self._peer_health(node, now) for node in sorted(known)),
            removed_in=removed_in,
            certificate_unusable=self._certificate_unusable(),
            disk_reserve=self._disk_reserve(disk.total),
        )

    def _peer_health(self, node: NodeId, now: Now) -> wire.PeerHealth:
        peers = self._core.peers
        epoch, active = peers.told(node)
        host, port = self._addresses.get(node, ("", 0))
        # without a host: it has dialed this node, and its address is not known yet
        client_port = self._client_port_of(node) if host else 0
        return wire.PeerHealth(
            node,
            peers.alive(node, now),
            epoch,
            active,
            peers.clock_apart_ms(node),
            host,
            port,
            client_port,
        )

    def _peer(self, node: NodeId, now: Now, links: int) -> wire.PeerStatus:
        peers = self._core.peers
        rtt = peers.measured_rtt(node)
        host, port = self._addresses.get(node, ("", 0))
        theirs = peers.links(node)
        return wire.PeerStatus(
            node,
            host,
            port,
            peers.alive(node, now),
            rtt * 1000 if rtt is not None else -1.0,
            theirs,
            max(0, links - theirs),
        )

"""One simulated whole node: what outlives its processes, and its present process."""

from collections import Counter

import trio

from netsim.datagrams import NodeDatagrams
from netsim.disk import COMMIT_S, Disk
from netsim.names import key_of, node_name, public_key
from netsim.plain import plain_contexts
from netsim.plan import DiskError, Kill
from netsim.streams import HostTcp
from node.channel import Channel
from node.core import Core
from node.running import RunningNode
from routing.keyspace import NodeId, node_id_of


class WholeNode:
    """One node: its disk outlives its processes."""

    def __init__(self, index: int, disk: Disk) -> None:
        self.index = index
        self.key = key_of(node_name(index))
        self.id: NodeId = node_id_of(public_key(node_name(index)))
        self.disk = disk
        self.host = f"10.{index >> 16 & 255}.{index >> 8 & 255}.{index & 255}"
        self.peers: tuple[int, ...] | None = None  # whose addresses its next process is given; None: all
        self.contexts = plain_contexts(self.key)
        self.core: Core | None = None  # None: no process
        self.running: RunningNode | None = None  # also while it dies
        self.life = 0
        self.skew_ms = 0
        self.commit_s: tuple[float, float] = COMMIT_S
        self.slow_until = 0.0
        self.armed: Kill | DiskError | None = None
        self.frames_left: int | None = None  # it may still send; None: any number
        self.back_at = 0.0  # when it has sent them, it dies until then
        self.tcp: HostTcp | None = None
        self.datagrams: NodeDatagrams | None = None
        self.scope = trio.CancelScope()
        self.ended: trio.Event | None = None  # of the last process: set when it is over
        self.clients: list[Channel] = []  # the connections over which they talk
        self.counters: Counter[str] = Counter()  # of processes that have ended

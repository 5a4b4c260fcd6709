"""A simulated whole node: its machine, and its present process."""

from collections import Counter

import trio

from netsim.datagrams import NodeDatagrams
from netsim.disk import Disk
from netsim.machine import Machine
from netsim.names import key_of, node_name
from netsim.plain import plain_contexts
from netsim.streams import HostTcp
from node.channel import Channel
from node.running import RunningNode


class WholeNode(Machine):
    """One node of `netsim.whole_network`."""

    def __init__(self, index: int, disk: Disk) -> None:
        super().__init__(index, disk)
        self.host = f"10.{index >> 16 & 255}.{index >> 8 & 255}.{index & 255}"
        self.peers: tuple[int, ...] | None = None  # whose addresses its next process is given; None: all
        self.contexts = plain_contexts(key_of(node_name(index)))
        self.running: RunningNode | None = None  # also while it dies
        self.frames_left: int | None = None  # it may still send; None: any number
        self.back_at = 0.0  # when it has sent them, it dies until then
        self.tcp: HostTcp | None = None
        self.datagrams: NodeDatagrams | None = None
        self.scope = trio.CancelScope()
        self.ended: trio.Event | None = None  # of the last process: set when it is over
        self.clients: list[Channel] = []  # the connections over which they talk
        self.counters: Counter[str] = Counter()  # of processes that have ended

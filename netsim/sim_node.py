"""A simulated node that is a core: its machine, and its present process."""

from netsim.disk import Disk
from netsim.machine import Machine
from netsim.plan import KillAtCommit
from node.events import Event
from routing.keyspace import NodeId


class SimNode(Machine):
    """One node of `netsim.world`."""

    def __init__(self, index: int, disk: Disk) -> None:
        super().__init__(index, disk)
        self.inbox: list[Event] = []
        self.busy = False
        self.wake_at: float | None = None
        self.paused_until = 0.0
        self.counted: list[KillAtCommit] = []  # of these, `number` is the commit of this node that they wait for
        self.commits = 0
        self.turns = 0
        self.must_go = False  # its disk was replaced by one that remembers less: it must be quarantined
        self.gone = False  # it runs no more, for ever: it was quarantined, it left, or its disk died
        self.begun = True  # a spare may not be there yet
        self.neighbours: frozenset[NodeId] = frozenset()  # by which its connections were last looked at

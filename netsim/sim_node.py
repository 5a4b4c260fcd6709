"""One simulated node: what outlives its processes, and its present process."""

from netsim.disk import COMMIT_S, Disk
from netsim.plan import DiskError, Kill, KillAtCommit
from node.core import Core
from node.events import Event
from routing.keyspace import NodeId


class SimNode:
    """One node: its disk outlives its cores."""

    def __init__(self, index: int, node_id: NodeId, disk: Disk) -> None:
        self.index = index
        self.id = node_id
        self.disk = disk
        self.core: Core | None = None
        self.life = 0
        self.inbox: list[Event] = []
        self.busy = False
        self.wake_at: float | None = None
        self.paused_until = 0.0
        self.skew_ms = 0
        self.commit_s: tuple[float, float] = COMMIT_S
        self.slow_until = 0.0
        self.armed: Kill | DiskError | None = None
        self.counted: list[KillAtCommit] = []  # of these, `number` is the commit of this node that they wait for
        self.commits = 0
        self.turns = 0
        self.must_go = False  # its disk was replaced by one that remembers less: it must be quarantined
        self.gone = False  # it runs no more, for ever: it was quarantined, it left, or its disk died
        self.begun = True  # a spare may not be there yet
        self.contacts: frozenset[NodeId] = frozenset()  # by which its connections were last looked at

"""What outlives the processes of one simulated node, in both tiers: its disk and its clock, and what is wrong with
them."""

from typing import assert_never

import msgspec

from netsim.disk import COMMIT_S, Disk
from netsim.names import EPOCH_MS, node_name, public_key
from netsim.plan import ClockJump, DiskError, Kill, SlowDisk
from node.core import Core
from node.turn import Now
from routing.keyspace import NodeId, node_id_of


class Machine:
    """One node: its disk outlives its processes."""

    def __init__(self, index: int, disk: Disk) -> None:
        self.index = index
        self.id: NodeId = node_id_of(public_key(node_name(index)))
        self.disk = disk
        self.core: Core | None = None  # None: no process
        self.life = 0  # of how many processes the present or last one is the last
        self.skew_ms = 0
        self.armed: Kill | DiskError | None = None  # a fault that waits for a commit
        self._slow_commit_s = 0.0
        self._slow_until = 0.0

    def clock(self, now: float) -> Now:
        """What its clocks say when `now` simulated seconds are over."""
        return Now(now, EPOCH_MS + int(now * 1000) + self.skew_ms)

    def commit_s(self, now: float) -> tuple[float, float]:
        """How long a commit that begins now takes, at least and at most."""
        return (self._slow_commit_s, self._slow_commit_s) if self._slow_until > now else COMMIT_S

    def hit(self, fault: Kill | DiskError | ClockJump | SlowDisk, start: float) -> None:
        """A fault of its clock or its disk begins; a kill waits for a commit. Its times count from `start`."""
        match fault:
            case Kill() | DiskError():
                self.armed = msgspec.structs.replace(fault, until=start + fault.until)
            case ClockJump():
                self.skew_ms += fault.ms
            case SlowDisk():
                self._slow_commit_s, self._slow_until = fault.commit_s, start + fault.until
            case _:
                assert_never(fault)

    def armed_at(self, now: float) -> Kill | DiskError | None:
        """The fault that falls on a commit that ends now: of a disk whose time is over, none does."""
        return None if isinstance(self.armed, DiskError) and self.armed.is_over(now) else self.armed

    def mend(self) -> None:
        """The disk works from now on, and no kill waits."""
        self.armed, self._slow_until = None, 0.0

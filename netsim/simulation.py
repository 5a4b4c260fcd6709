"""What both tiers of the simulator are: a network by a plan, with its chance, the paths between its nodes, and a trace.

`netsim.world` has cores alone in it, `netsim.whole_network` whole nodes.
"""

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from contextlib import ExitStack

import msgspec

from chain.store import create_or_check
from netsim.disk import Disk, make_directory
from netsim.names import make_genesis, node_name, public_key
from netsim.network import Network
from netsim.plan import Clog, Cut, Hold, Plan, WeatherChange
from routing.keyspace import node_id_of
from routing.view import View, encode_view, first_view, member_of


class Simulation(ABC):
    """A network of the size, weather and seed of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = random.Random(plan.seed)
        self.network = Network(random.Random(self.rng.random()), plan.weather)
        names = [node_name(i) for i in range(plan.nodes)]
        self.genesis = make_genesis(names, plan.k)
        self.network_id = self.genesis.network_id
        self.view: View = first_view(self.network_id, plan.k, [member_of(public_key(name)) for name in names])
        self._trace = hashlib.sha256()

    def _make_disk(self, index: int, stack: ExitStack) -> Disk:
        directory = make_directory(stack) if self.plan.files else None
        node_id, view = node_id_of(public_key(node_name(index))), (self.view.hash, encode_view(self.view))
        return Disk(lambda conn: create_or_check(conn, self.genesis, node_id, view), directory)

    # --- time and trace ---

    @property
    @abstractmethod
    def now(self) -> float:
        """Simulated seconds."""

    @abstractmethod
    def at(self, when: float, act: Callable[[], None]) -> None:
        """Do something at a simulated time."""

    @property
    def trace_hash(self) -> str:
        """SHA-256 over all that has happened, hex."""
        return self._trace.copy().hexdigest()

    def note(self, *fields: object) -> None:
        """Add something to the trace: its repr is deterministic."""
        self._trace.update(repr((round(self.now, 9), *fields)).encode())

    # --- faults of the network ---

    def hit_network(self, fault: Cut | Clog | Hold | WeatherChange, start: float) -> None:
        """A fault begins, and ends by itself; its times count from `start`."""
        until = start + fault.until
        match fault:
            case Cut():
                self.cut(fault)
                self.at(until, lambda: self.end_cut(fault))
            case Clog():
                self.network.clog(msgspec.structs.replace(fault, until=until))
            case Hold():
                self.network.hold(msgspec.structs.replace(fault, until=until))
            case WeatherChange():
                self.network.change_weather(fault.weather)
                self.at(until, lambda: self.network.end_weather(fault.weather))

    def cut(self, fault: Cut) -> None:
        """Cut paths."""
        self.network.cut(fault)

    def end_cut(self, fault: Cut) -> None:
        """The paths of a cut get through again."""
        self.network.heal(fault)

    def heal_network(self, nodes: Collection[int]) -> None:
        """Paths between these nodes get through from now on; when it is all nodes, the weather is calm, too."""
        if len(nodes) == len(self.plan.everybody):
            self.network.heal_all()
        else:
            self.network.heal_among(nodes)

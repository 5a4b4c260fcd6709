"""The simulated network: what becomes of a message on its way.

Each message meets, in this order: cuts, loss, holds of its kind, clogs, a delay, and perhaps a copy of itself with
another delay. So messages overtake each other, unlike on one TCP connection: nothing in a node may rely on order.
"""

import random
from collections.abc import Iterable

from netsim.plan import Clog, Cut, Hold, Weather

Path = tuple[int, int]
MAX_DELAY_S = 20.0  # cuts the tail of the exponential: the heal phase outlasts it


class Network:
    """Directed paths between numbered nodes."""

    def __init__(self, rng: random.Random, weather: Weather) -> None:
        self._rng = rng
        self.weather = weather
        self._changes: list[Weather] = []  # that are over it for a while, the latest last
        self._cuts: dict[Path, int] = {}
        self._clogs: dict[Path, float] = {}
        self._holds: dict[tuple[Path, str], tuple[float, bool]] = {}
        self.lost = 0
        self.repeated = 0

    def cut(self, fault: Cut) -> None:
        for path in _paths(fault):
            self._cuts[path] = self._cuts.get(path, 0) + 1

    def heal(self, fault: Cut) -> None:
        for path in _paths(fault):
            if path in self._cuts:
                self._cuts[path] -= 1
                if not self._cuts[path]:
                    del self._cuts[path]

    def heal_all(self) -> None:
        """Everything gets through from now on."""
        self._cuts.clear()
        self._clogs.clear()
        self._holds.clear()
        self.calm_down()

    def change_weather(self, weather: Weather) -> None:
        """The network is like this until `end_weather`, or until a later change."""
        self._changes.append(weather)

    def end_weather(self, weather: Weather) -> None:
        """A change is over; also when the weather has calmed down before."""
        if weather in self._changes:
            self._changes.remove(weather)

    def calm_down(self) -> None:
        """The weather is calm, for good."""
        self.weather = Weather()
        self._changes.clear()

    def heal_among(self, nodes: Iterable[int]) -> None:
        """Paths between these nodes get through from now on."""
        core = set(nodes)
        self._cuts = {path: n for path, n in self._cuts.items() if not core.issuperset(path)}
        self._clogs = {path: t for path, t in self._clogs.items() if not core.issuperset(path)}
        self._holds = {what: until for what, until in self._holds.items() if not core.issuperset(what[0])}

    def clog(self, fault: Clog) -> None:
        self._clogs[(fault.source, fault.target)] = fault.until

    def hold(self, fault: Hold) -> None:
        """A later hold of the same kind on the same path takes the place of the one before."""
        paths = [(a, b) for a in fault.source for b in fault.target if a != b]
        self._holds.update({(path, kind): (fault.until, fault.drop) for path in paths for kind in fault.messages})

    def is_dropped(self, source: int, target: int, kind: str, now: float) -> bool:
        """True when a message of this kind would be lost on this path now, for certain."""
        until, drop = self._holds.get(((source, target), kind), (now, False))
        return self.is_cut(source, target) or (drop and now < until)

    def is_cut(self, source: int, target: int) -> bool:
        return (source, target) in self._cuts

    def delays(self, source: int, target: int, now: float, kind: str = "") -> list[float]:
        """After how many seconds the message arrives; more than once when it is repeated, never when it is lost."""
        if self.is_dropped(source, target, kind, now) or self._rng.random() < self.weather_now.loss:
            self.lost += 1
            return []
        path = (source, target)
        held = max(0.0, self._clogs.get(path, now) - now, self._holds.get((path, kind), (now, False))[0] - now)
        times = [held + self._delay()]
        if self._rng.random() < self.weather_now.repeat:
            self.repeated += 1
            times.append(held + self._delay())
        return times

    @property
    def weather_now(self) -> Weather:
        """The latest change that is not over, else the weather of the plan."""
        return self._changes[-1] if self._changes else self.weather

    def _delay(self) -> float:
        weather = self.weather_now
        return min(MAX_DELAY_S, weather.delay_min_s + self._rng.expovariate(1 / weather.delay_mean_s))


def _paths(fault: Cut) -> list[Path]:
    paths = [(a, b) for a in fault.a for b in fault.b if a != b]
    return paths if fault.one_way else paths + [(b, a) for a, b in paths]

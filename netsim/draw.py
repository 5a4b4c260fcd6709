"""From a seed to a plan: sizes, weather, load and faults.

A quarter of the seeds have no faults at all: what breaks there breaks for everybody. Two fifths mix a few kinds, because a
run with everything at once hardly decides anything. The rest looks for what is rare: small groups whose nodes die within
decisions (`_broken`), and networks in which most nodes lag behind those that decide (`_lagging`).
"""

import random

import msgspec

from netsim.plan import (
    ClockJump,
    Clog,
    Cut,
    DiskError,
    Fault,
    Kill,
    Load,
    Pause,
    Plan,
    Rollback,
    SlowDisk,
    Weather,
    WeatherChange,
)

FAULT_S = 10.0
POINTS = ("idle", "before_commit", "in_commit", "after_commit", "sending")


def draw_plan(seed: int) -> Plan:
    """The plan of this seed."""
    return _with_rollback(random.Random(f"rollback {seed}"), _draw(seed))


def _with_rollback(rng: random.Random, plan: Plan) -> Plan:
    """Now and then a disk goes back in time, where the network lets everybody tell its node so (docs/adr/0013)."""
    apart = any(isinstance(fault, Cut | Clog | Pause | WeatherChange) for fault in plan.faults)
    share = 0.6 if plan.faults else 0.1  # of the plans without faults nearly all stay so
    if apart or plan.weather.loss or min(plan.nodes, plan.k) < 3 or rng.random() > share:
        return plan
    at = rng.uniform(0, 4)
    fault = Rollback(at, rng.randrange(plan.nodes), rng.choice(["old", "emptied"]), at + 5)
    return msgspec.structs.replace(plan, faults=tuple(sorted((*plan.faults, fault), key=lambda one: one.at)))


def _draw(seed: int) -> Plan:
    rng = random.Random(f"plan {seed}")
    kind = rng.random()
    max_confirmed = rng.choice([0, 0, 0, 1, 3])
    if kind < 0.25:
        calm = Plan(seed, _nodes(rng), _k(rng), Weather(), _load(rng))
    elif kind < 0.65:
        calm = _mixed(rng, seed)
    elif kind < 0.85:
        calm = _broken(rng, seed)
    else:
        calm = _lagging(rng, seed)
    faults = tuple(sorted(calm.faults, key=lambda fault: fault.at))
    return msgspec.structs.replace(calm, faults=faults, fault_s=FAULT_S, max_confirmed=max_confirmed)


def _nodes(rng: random.Random) -> int:
    return rng.choice([1, 2, 3, 3, 4, 5, 5, 5, 6, 7])


def _k(rng: random.Random) -> int:
    return rng.choice([1, 2, 3, 3, 3, 4, 5, 5])


def _load(rng: random.Random) -> Load:
    return Load(
        accounts=rng.choice([2, 3, 3, 6]),
        requests=rng.choice([10, 30, 60]),
        hot=rng.choice([0.1, 0.3, 0.9]),
        pinned=rng.choice([0.0, 0.1, 0.3]),
        cancel=rng.choice([0.0, 0.1, 0.3]),
        overdraft=rng.choice([0.05, 0.2]),
        reopen=rng.choice([0.05, 0.2]),
        spend=rng.choice([0.15, 0.6]),
    )


def _mixed(rng: random.Random, seed: int) -> Plan:
    """Any size, any weather, up to three kinds of faults."""
    nodes = _nodes(rng)
    weather = Weather(
        loss=rng.choice([0.0, 0.0, 0.02, 0.1, 0.3]),
        repeat=rng.choice([0.0, 0.05, 0.2]),
        delay_min_s=0.0005,
        delay_mean_s=rng.choice([0.001, 0.01, 0.1]),
    )
    faults: list[Fault] = []
    for kind in rng.sample(_KINDS, rng.randint(0, 3)):
        for _ in range(rng.choice([1, 2, 5, 12])):
            faults += kind(rng, nodes)
    return Plan(seed, nodes, _k(rng), weather, _load(rng), tuple(faults), files=rng.random() < 0.2)


def _broken(rng: random.Random, seed: int) -> Plan:
    """One small group, two busy accounts; nodes die in the middle of decisions and are back soon, messages are lost and
    come twice: the votes of one slot are spread over several ballots."""
    nodes = rng.choice([2, 3, 3, 4, 5, 5])
    weather = Weather(
        loss=rng.choice([0.05, 0.15, 0.3]), repeat=rng.choice([0.2, 0.5]), delay_mean_s=rng.choice([0.005, 0.02, 0.15])
    )
    faults: list[Fault] = []
    for _ in range(rng.choice([6, 15, 30])):
        faults += _kill(rng, nodes)
    for _ in range(rng.choice([0, 2, 5])):
        faults += _cuts(rng, nodes)
    load = msgspec.structs.replace(_load(rng), accounts=2, requests=60)
    return Plan(seed, nodes, nodes, weather, load, tuple(faults))


def _lagging(rng: random.Random, seed: int) -> Plan:
    """More nodes than a group has members, slow and lossy: most nodes are behind those that decide."""
    nodes = rng.choice([5, 7])
    weather = Weather(
        loss=rng.choice([0.05, 0.2]), repeat=rng.choice([0.0, 0.5]), delay_mean_s=rng.choice([0.05, 0.15])
    )
    faults: list[Fault] = []
    for _ in range(rng.choice([0, 2, 5])):
        faults += _cuts(rng, nodes)
    return Plan(seed, nodes, rng.choice([2, 3, 3, 4]), weather, _load(rng), tuple(faults))


def _when(rng: random.Random, longest: float) -> tuple[float, float]:
    """Half of them are over soon: a fault that begins and ends within a decision finds more than a long one."""
    at = rng.uniform(0, FAULT_S)
    return at, at + rng.uniform(0.01, longest if rng.random() < 0.5 else 0.3)


def _cuts(rng: random.Random, nodes: int) -> list[Fault]:
    at, until = _when(rng, 6.0)
    everybody = list(range(nodes))
    rng.shuffle(everybody)
    shape = rng.choice(["halves", "one", "one_way", "ring", "three"])
    if shape == "ring" and nodes > 2:
        return [
            Cut(at, (everybody[i],), tuple(n for n in everybody if n not in _neighbours(everybody, i)), until)
            for i in range(nodes)
        ]
    if shape == "three" and nodes > 2:
        parts = [tuple(everybody[i::3]) for i in range(3)]
        return [Cut(at, parts[a], parts[b], until) for a, b in ((0, 1), (0, 2), (1, 2))]
    size = 1 if shape == "one" else rng.randint(0, nodes)
    return [Cut(at, tuple(everybody[:size]), tuple(everybody[size:]), until, shape == "one_way")]


def _neighbours(ring: list[int], i: int) -> tuple[int, int, int]:
    return (ring[i - 1], ring[i], ring[(i + 1) % len(ring)])


def _clogs(rng: random.Random, nodes: int) -> list[Fault]:
    """One path, or all paths of some nodes one after the other (swizzle-clogging)."""
    if nodes < 2:
        return []
    at, until = _when(rng, 4.0)
    if rng.random() < 0.5:
        source, target = rng.sample(range(nodes), 2)
        return [Clog(at, source, target, until)]
    chosen = rng.sample(range(nodes), rng.randint(1, nodes))
    clogs: list[Fault] = []
    for node in chosen:
        start = at + rng.uniform(0, 1.0)
        end = start + rng.uniform(0.1, 4.0)
        clogs += [Clog(start, other, node, end) for other in range(nodes) if other != node]
    return clogs


def _kills(rng: random.Random, nodes: int) -> list[Fault]:
    at, until = _when(rng, 4.0)
    if rng.random() < 0.2:
        return [Kill(at, node, until, rng.choice(POINTS)) for node in range(nodes)]
    return [Kill(at, rng.randrange(nodes), until, rng.choice(POINTS))]


def _kill(rng: random.Random, nodes: int) -> list[Fault]:
    """A node dies within a turn and is back soon."""
    at = rng.uniform(0, FAULT_S)
    return [Kill(at, rng.randrange(nodes), at + rng.uniform(0.05, 1.5), rng.choice(POINTS[1:]))]


def _pauses(rng: random.Random, nodes: int) -> list[Fault]:
    at, until = _when(rng, 4.0)
    return [Pause(at, rng.randrange(nodes), until)]


def _jumps(rng: random.Random, nodes: int) -> list[Fault]:
    return [
        ClockJump(rng.uniform(0, FAULT_S), rng.randrange(nodes), rng.choice([-86_400_000, -5000, 5000, 86_400_000]))
    ]


def _slow(rng: random.Random, nodes: int) -> list[Fault]:
    at, until = _when(rng, 8.0)
    return [SlowDisk(at, rng.randrange(nodes), rng.choice([0.02, 0.2, 1.0]), until)]


def _disk_errors(rng: random.Random, nodes: int) -> list[Fault]:
    at, until = _when(rng, 4.0)
    return [DiskError(at, rng.randrange(nodes), rng.choice(["full", "fsync"]), until)]


def _storms(rng: random.Random, nodes: int) -> list[Fault]:
    at, until = _when(rng, 4.0)
    loss, mean_s = rng.choice([0.1, 0.3]), rng.choice([0.01, 0.3])
    return [WeatherChange(at, Weather(loss=loss, repeat=0.1, delay_mean_s=mean_s), until)]


_KINDS = (_cuts, _clogs, _kills, _pauses, _jumps, _slow, _disk_errors, _storms)

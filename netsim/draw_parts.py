"""What plans are drawn from: sizes, load and single faults, each from a generator."""

import random

from netsim.plan import (
    COMMIT_POINTS,
    POINTS,
    ClockJump,
    Clog,
    Cut,
    DiskError,
    Fault,
    Kill,
    Load,
    Pause,
    SlowDisk,
    Weather,
    WeatherChange,
)

FAULT_S = 10.0


def node_count(rng: random.Random) -> int:
    return rng.choice([1, 2, 3, 3, 4, 5, 5, 5, 6, 7])


def group_size(rng: random.Random) -> int:
    return rng.choice([1, 2, 3, 3, 3, 4, 5, 5])


def load(rng: random.Random) -> Load:
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


def when(rng: random.Random, longest: float) -> tuple[float, float]:
    """Half of them are over soon: a fault that begins and ends within a decision finds more than a long one."""
    at = rng.uniform(0, FAULT_S)
    return at, at + rng.uniform(0.01, longest if rng.random() < 0.5 else 0.3)


def cuts(rng: random.Random, nodes: int) -> list[Fault]:
    at, until = when(rng, 6.0)
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


def clogs(rng: random.Random, nodes: int) -> list[Fault]:
    """One path, or all paths of some nodes one after the other (swizzle-clogging)."""
    if nodes < 2:
        return []
    at, until = when(rng, 4.0)
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


def kills(rng: random.Random, nodes: int) -> list[Fault]:
    at, until = when(rng, 4.0)
    if rng.random() < 0.2:
        return [Kill(at, node, until, rng.choice(POINTS)) for node in range(nodes)]
    return [Kill(at, rng.randrange(nodes), until, rng.choice(POINTS))]


def kill(rng: random.Random, nodes: int) -> list[Fault]:
    """A node dies within a turn and is back soon."""
    at = rng.uniform(0, FAULT_S)
    return [Kill(at, rng.randrange(nodes), at + rng.uniform(0.05, 1.5), rng.choice(COMMIT_POINTS))]


def pauses(rng: random.Random, nodes: int) -> list[Fault]:
    at, until = when(rng, 4.0)
    return [Pause(at, rng.randrange(nodes), until)]


def jumps(rng: random.Random, nodes: int) -> list[Fault]:
    return [
        ClockJump(rng.uniform(0, FAULT_S), rng.randrange(nodes), rng.choice([-86_400_000, -5000, 5000, 86_400_000]))
    ]


def slow(rng: random.Random, nodes: int) -> list[Fault]:
    at, until = when(rng, 8.0)
    return [SlowDisk(at, rng.randrange(nodes), rng.choice([0.02, 0.2, 1.0]), until)]


def disk_errors(rng: random.Random, nodes: int) -> list[Fault]:
    at, until = when(rng, 4.0)
    return [DiskError(at, rng.randrange(nodes), rng.choice(["full", "fsync"]), until)]


def storms(rng: random.Random, nodes: int) -> list[Fault]:
    at, until = when(rng, 4.0)
    loss, mean_s = rng.choice([0.1, 0.3]), rng.choice([0.01, 0.3])
    return [WeatherChange(at, Weather(loss=loss, repeat=0.1, delay_mean_s=mean_s), until)]


KINDS = (cuts, clogs, kills, pauses, jumps, slow, disk_errors, storms)

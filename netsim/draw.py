"""From a seed to a plan: sizes, weather, load and faults.

A quarter of the seeds have no faults at all: what breaks there breaks for everybody. Two fifths mix a few kinds,
because a run with everything at once hardly decides anything. The rest looks for what is rare: small groups whose nodes
die within decisions (`_broken`), and networks in which most nodes lag behind those that decide (`_lagging`).

A quarter of all seeds, whatever else they would be, change their members three times or more (`netsim.draw_changes`).
In half of those whose groups can be without a member only a core heals at first (`netsim.core_alone`). In a fifth of
all, whatever else, an owner has little room: it declines what its gateway, or an owner before it, hands over.
"""

import random

import msgspec

from netsim import draw_parts as parts
from netsim.draw_changes import draw_changes
from netsim.plan import Clog, Cut, Fault, Pause, Plan, Rollback, Weather, WeatherChange

CHANGING = 0.25  # of all seeds change their members
CORE_ALONE = 0.5  # of those whose groups can be without a member
LITTLE_ROOM = 0.2  # of all seeds let few requests of an account wait


def draw_plan(seed: int) -> Plan:
    """The plan of this seed."""
    plan = _draw_faults(seed)
    alone = min(plan.k, len(plan.everybody)) >= 3 and random.Random(f"core alone {seed}").random() < CORE_ALONE
    rng = random.Random(f"room {seed}")
    most = rng.choice([1, 2, 4]) if rng.random() < LITTLE_ROOM else 0
    return msgspec.structs.replace(plan, core_alone=alone, max_queue=most)


def _draw_faults(seed: int) -> Plan:
    rng = random.Random(f"changes {seed}")
    if rng.random() < CHANGING:
        return draw_changes(rng, seed)
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
        calm = Plan(seed, parts.node_count(rng), parts.group_size(rng), Weather(), parts.load(rng))
    elif kind < 0.65:
        calm = _mixed(rng, seed)
    elif kind < 0.85:
        calm = _broken(rng, seed)
    else:
        calm = _lagging(rng, seed)
    faults = tuple(sorted(calm.faults, key=lambda fault: fault.at))
    return msgspec.structs.replace(calm, faults=faults, fault_s=parts.FAULT_S, max_confirmed=max_confirmed)


def _mixed(rng: random.Random, seed: int) -> Plan:
    """Any size, any weather, up to three kinds of faults."""
    nodes = parts.node_count(rng)
    weather = Weather(
        loss=rng.choice([0.0, 0.0, 0.02, 0.1, 0.3]),
        repeat=rng.choice([0.0, 0.05, 0.2]),
        delay_min_s=0.0005,
        delay_mean_s=rng.choice([0.001, 0.01, 0.1]),
    )
    faults: list[Fault] = []
    for kind in rng.sample(parts.KINDS, rng.randint(0, 3)):
        for _ in range(rng.choice([1, 2, 5, 12])):
            faults += kind(rng, nodes)
    return Plan(seed, nodes, parts.group_size(rng), weather, parts.load(rng), tuple(faults), files=rng.random() < 0.2)


def _broken(rng: random.Random, seed: int) -> Plan:
    """One small group, two busy accounts; nodes die in the middle of decisions and are back soon, messages are lost and
    come twice: the votes of one slot are spread over several ballots."""
    nodes = rng.choice([2, 3, 3, 4, 5, 5])
    weather = Weather(
        loss=rng.choice([0.05, 0.15, 0.3]), repeat=rng.choice([0.2, 0.5]), delay_mean_s=rng.choice([0.005, 0.02, 0.15])
    )
    faults: list[Fault] = []
    for _ in range(rng.choice([6, 15, 30])):
        faults += parts.kill(rng, nodes)
    for _ in range(rng.choice([0, 2, 5])):
        faults += parts.cuts(rng, nodes)
    load = msgspec.structs.replace(parts.load(rng), accounts=2, requests=60)
    return Plan(seed, nodes, nodes, weather, load, tuple(faults))


def _lagging(rng: random.Random, seed: int) -> Plan:
    """More nodes than a group has members, slow and lossy: most nodes are behind those that decide."""
    nodes = rng.choice([5, 7])
    weather = Weather(
        loss=rng.choice([0.05, 0.2]), repeat=rng.choice([0.0, 0.5]), delay_mean_s=rng.choice([0.05, 0.15])
    )
    faults: list[Fault] = []
    for _ in range(rng.choice([0, 2, 5])):
        faults += parts.cuts(rng, nodes)
    return Plan(seed, nodes, rng.choice([2, 3, 3, 4]), weather, parts.load(rng), tuple(faults))

"""A fault of a scenario, once it is known which nodes its words name: what of a plan it is, and what people are
told."""

from netsim.plan import (
    Add,
    Bury,
    ClockJump,
    Clog,
    Cut,
    Die,
    DiskError,
    Fault,
    Hold,
    Kill,
    Pause,
    Remove,
    Rollback,
    SlowDisk,
    WeatherChange,
)
from netsim.scenario import FaultStep


def planned_faults(
    step: FaultStep, at: float, until: float, parts: tuple[tuple[int, ...], ...], nodes: int
) -> list[Fault]:
    """The faults of a plan that a step is. `parts`: the nodes that its words name now, in the order of `step.groups`;
    `at` and `until`: seconds of the fault phase."""
    match step.kind:
        case "cut":
            pairs = [(a, b) for i, a in enumerate(parts) for b in parts[i + 1 :]]
            return [Cut(at, a, b, until, step.one_way) for a, b in pairs]
        case "ring":
            return [
                Cut(at, (i,), tuple(n for n in range(i) if (i - n) % nodes not in (1, nodes - 1)), until)
                for i in range(nodes)
            ]
        case "clog":
            return [Clog(at, source, target, until) for source in parts[0] for target in parts[1] if source != target]
        case "hold":
            return [Hold(at, step.messages, parts[0], parts[1], until, step.drop)]
        case "weather":
            return [WeatherChange(at, step.weather, until)]
        case "bury":
            return [Bury(at, node, spare) for node, spare in zip(*parts, strict=False)]
        case _:
            return [
                _one_fault(step, node, at + i * step.stagger_s, until + i * step.stagger_s)
                for i, node in enumerate(parts[0])
            ]


def _one_fault(step: FaultStep, node: int, at: float, until: float) -> Fault:
    match step.kind:
        case "kill":
            return Kill(at, node, until, step.point)
        case "pause":
            return Pause(at, node, until)
        case "clock_jump":
            return ClockJump(at, node, step.ms)
        case "slow_disk":
            return SlowDisk(at, node, step.commit_s, until)
        case "rollback":
            return Rollback(at, node, step.disk, until)
        case "add":
            return Add(at, node, step.fresh)
        case "remove":
            return Remove(at, node, step.stop, step.force)
        case "die":
            return Die(at, node)
        case _:
            return DiskError(at, node, step.error, until)


def describe_step(step: FaultStep, names: list[str]) -> str:
    """A fault for people; `names`: its nodes in the scenario's words, in the order of `step.groups`."""
    match step.kind:
        case "cut" if step.one_way:
            return f"{names[0]} cannot reach {' or '.join(names[1:])}"
        case "cut":
            return f"cut between {' | '.join(names)}"
        case "ring":
            return "ring: each node reaches its two neighbours only"
        case "clog":
            return f"what {names[0]} sends to {names[1]} is held up"
        case "hold":
            end = "lost" if step.drop else "held up"
            return f"{', '.join(step.messages)} from {names[0]} to {names[1]}: {end}"
        case "kill":
            where = "" if step.point == "idle" else f" ({step.point.replace('_', ' ')})"
            return f"kill {names[0]}{where}" + (", one after the other" if step.stagger_s else "")
        case "pause":
            return f"{names[0]} stands still"
        case "clock_jump":
            return f"clock of {names[0]} jumps by {step.ms / 1000:+g} s"
        case "slow_disk":
            return f"{names[0]} takes {step.commit_s:g} s for each commit"
        case "rollback":
            return f"{names[0]} comes back with an {step.disk} disk"
        case "add":
            return f"the operator adds {names[0]}" + (", one after the other" if step.stagger_s else "")
        case "remove":
            return f"the operator removes {names[0]}" + (", which stops then" if step.stop else "")
        case "die":
            return f"{names[0]} and its disk are gone"
        case "bury":
            return f"{names[0]} and its disk are gone; {names[1]} replaces it"
        case "disk_error":
            return f"disk of {names[0]}: {step.error}"
        case _:
            weather = step.weather
            return f"weather: loss {weather.loss:.0%}, repeated {weather.repeat:.0%}, delay {weather.delay_mean_s:g} s"

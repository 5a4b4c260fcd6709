"""What docs/performance.md shows of bench/floor.py, beside the goals of bench/compare.py."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, Final

import compare
import text

PARTS: Final = {
    "database": "SQLite: reads, votes, links with all triggers",
    "fsync": "fsync of two commits a link or turn",
    "tls": "TLS and loopback",
    "signatures": "one signature a request",
    "clients": "the clients of the run",
}
FLOORS: Final = {
    "uniform": "uniform",
    "hot-recipient": "hot recipient",
    "hot-sender": "hot sender",
    "bulk": "bulk, a posting",
}
MARGIN: Final = 0.2  # of a goal: what is nearer to it than that may lie on either side in the next run
GUESSED: Final = (0.5, 1.0)  # the least and the most of a part that a step may save
COMPILED: Final = 0.045  # of the CPU of uniform, measured once, not kept (docs/performance-steps.md)


def floors(results: text.Kept, profile: str) -> list[dict[str, Any]]:
    """All runs of a profile."""
    found: list[dict[str, Any]] = results["floor"]["profiles"][profile]
    return found


def middle(results: text.Kept, profile: str) -> dict[str, Any]:
    """The run of a profile whose floor is the median of its runs (of an even number the lower median): of one run, so
    that the parts add up."""
    runs = floors(results, profile)
    median = statistics.median_low(run["floor_us"] for run in runs)
    return next(run for run in runs if run["floor_us"] == median)


def floor_run(results: text.Kept) -> str:
    """Which run of each profile the table shows."""
    count = len(floors(results, "uniform"))
    return f"the run whose floor is the {'median' if count % 2 else 'lower median'} of {text.in_words(count)}"


def floor_table(results: text.Kept) -> str:
    """The parts that no language makes cheaper, and what is left."""

    def us(of: Callable[[dict[str, Any]], float], *, spans: bool = False) -> list[str]:
        """Of the run that is shown; with `spans` from the least to the most of all runs in brackets."""
        cells = []
        for profile in FLOORS:
            digits = f",.{int(profile == 'bulk')}f"
            cell = f"{of(middle(results, profile)):{digits}}"
            every = text.span([of(run) for run in floors(results, profile)], digits)
            cells.append(f"{cell} ({every})" if spans and every != cell else cell)
        return cells

    def per_s(key: str) -> list[str]:
        return [text.whole(middle(results, profile)[key]) for profile in FLOORS]

    rows = [
        [words, *us(lambda run, part=part: run["parts_us"][part], spans=part == "fsync")]
        for part, words in PARTS.items()
    ]
    rows.append(["**floor**", *(f"**{cell}**" for cell in us(lambda run: run["floor_us"], spans=True))])
    rows.append(["measured", *us(lambda run: run["measured_us"], spans=True)])
    rows.append(
        [
            "left: the interpreter (state machine, trio, codecs, hops between threads), scheduling, wake-ups",
            *us(lambda run: run["interpreter_us"], spans=True),
        ]
    )
    rows.append(["completed a second", *per_s("completed_per_s")])
    rows.append(
        [f"most that the floor leaves to {text.in_words(results['floor']['cores'])} cores", *per_s("most_per_s")]
    )
    beside = goals_per_s(results)
    rows.append(["the goal in the run [above](#numbers)", *(text.whole(beside[profile]) for profile in FLOORS)])
    return text.grid(["part", *FLOORS.values()], rows)


def goals_per_s(results: text.Kept) -> dict[str, float]:
    """Profile -> completed a second that its goal asks for, in the run of the comparison."""
    wanted = {row["profile"]: row["goal"] * row["peer_per_s"] for row in results["compare"]["ratios"]}
    return {**wanted, "bulk": compare.BULK_PER_S}


def reach(profile: str, floor_of: str, results: text.Kept) -> str:
    """Whether the floor, which is measured with the profile `floor_of`, leaves the goal of a profile."""
    most, goal = [run["most_per_s"] for run in floors(results, floor_of)], goals_per_s(results)[profile]
    words = "at the edge of what the floor leaves"
    if max(most) < goal * (1 - MARGIN):
        words = "out of reach of any language"
    elif min(most) > goal * (1 + MARGIN):
        words = "within what the floor leaves"
    unit = " postings/s" if profile == "bulk" else "/s"
    return f"{words} ({text.span(most, ',.0f')}{unit} {text.in_runs(len(most))}, of {text.whole(goal)})"


def bulk_left(results: text.Kept) -> str:
    """What is not the floor, of what bulk takes."""
    left = [run["interpreter_us"] / run["measured_us"] * 100 for run in floors(results, "bulk")]
    words = "about half"
    if max(left) < 50:
        words = "the smaller part"
    elif min(left) > 50:
        words = "the larger part"
    told = f"{words} of what is measured: {text.span(left, '.0f')} % {text.in_runs(len(left))}"
    return told if min(left) > 0 else f"{told}, and what is below nothing is noise"


def needed(results: text.Kept) -> str:
    """What each step would give of the CPU of a transfer, in tens of microseconds."""
    runs = floors(results, "uniform")
    compiled = text.span([round(run["measured_us"] * COMPILED, -1) for run in runs], ",.0f")
    rows = [
        [
            f"the state machine compiled by mypyc ({COMPILED * 100:g} % in five runs by turns; not kept, "
            "[what was compiled](performance-steps.md#what-did-not-stay))",
            compiled,
        ],
        [
            "node and driver in a language without an interpreter, with its own records, sockets and threads: half of what "
            "is left in the table above to all of it, a guess",
            given(runs, "interpreter_us"),
        ],
        [
            "a log of our own instead of SQLite for votes, the tables behind it, written in the background: half of the row "
            "of fsync, which is one of its two commits, to all of it, a guess",
            given([run["parts_us"] for run in runs], "fsync"),
        ],
    ]
    return text.grid(["step", f"CPU us, of {text.span([round(run['measured_us'], -1) for run in runs], ',.0f')}"], rows)


def given(rows: Sequence[dict[str, Any]], key: str) -> str:
    """From GUESSED[0] of the least to GUESSED[1] of the most."""
    least, most = (of(row[key] for row in rows) * share for of, share in zip((min, max), GUESSED, strict=True))
    return text.span([round(least, -1), round(most, -1)], ",.0f")


def leave(results: text.Kept) -> str:
    """What the last two steps would leave, and how that stands beside PostgreSQL."""
    left, times = [], []
    for run in floors(results, "uniform"):
        for share in GUESSED:
            left.append(run["measured_us"] - share * (run["interpreter_us"] + run["parts_us"]["fsync"]))
            times.append(run["measured_us"] / left[-1])
    ratio = next(row["ratio"] for row in results["compare"]["ratios"] if row["profile"] == "uniform")
    beside = "as many as"
    if ratio * max(times) < 1:
        beside = "still fewer than"
    elif ratio * min(times) > 1:
        beside = "more than"
    told = f"{text.span([round(us, -1) for us in left], ',.0f')} us: {text.span(times, '.1f')} times as many transfers, {beside}"
    return f"{told} a PostgreSQL with its function on the same cores"

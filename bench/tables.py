"""The tables of docs/performance.md, made from the results that are kept in docs/performance.

    python bench/tables.py              writes what differs into the page
    python bench/tables.py --check      says what differs, and ends with 1 when anything does

The page is written by hand but for what stands between `<!-- table: NAME -->` and `<!-- end -->`. To measure again,
with nothing else running and everything but docs/ committed:

    python bench/compare.py --keep docs/performance/compare.json
    python bench/balances.py --keep docs/performance/balances.json
    python bench/floor.py --profile all --runs 3 --keep docs/performance/floor.json
    python bench/clients.py --keep docs/performance/clients.json
    python bench/library.py --keep docs/performance/library.json
    python bench/memory.py --keep docs/performance/memory.json
    python bench/takeover.py --runs 2 --keep docs/performance/takeover.json
    python bench/scale.py --keep docs/performance/scale.json
    python bench/scale.py --bulk --postings 800000 --keep docs/performance/scale-bulk.json
    python bench/shares.py --keep docs/performance/shares.json
    python bench/tables.py

Then commit the page together with the results, and the flame graphs that bench/shares.py draws beside them.
"""

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import clients
import compare
import kept
import library
import shares

PAGE: Final = kept.ROOT / "docs" / "performance.md"
RESULTS: Final = kept.ROOT / "docs" / "performance"
FILES: Final = (
    "compare",
    "balances",
    "floor",
    "clients",
    "library",
    "memory",
    "takeover",
    "scale",
    "scale-bulk",
    "shares",
)
LATER: Final = {"balances": "balances", "library": "library"}  # table -> a file without which it is empty
PLACE: Final = re.compile(r"(<!-- table: ([a-z-]+) -->)(\n?)(.*?)(\n?)(<!-- end -->)", re.DOTALL)
Kept = dict[str, Any]  # name of a file -> its document

VARIANTS: Final = {
    "nowait": "NOWAIT, checks in triggers",
    "waiting": "waiting, checks in triggers",
    "function": "the same in one server-side function",
    "plain": "plain function",
}
PROFILES: Final = {
    "uniform": "uniform",
    "zipf": "zipf 1.0",
    "hot-recipient": "hot recipient",
    "hot-sender": "hot sender",
}
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
SHARES: Final = {
    "commit": "`store.commit`: SQLite's writes with their triggers, fsync",
    "step": "`core.step` without signatures",
    "wire": "TLS and sockets, frames",
    "hops": "hops to the database thread and back (aiosqlite, trio-asyncio, wake-up pipe)",
    "needs": "`core.needs` without signatures: decoding links and requests",
    "signatures": "signature check (once a request, at its gateway)",
    "load": "`load`: SQLite's reads",
    "rest": "trio's scheduler, encoding, DHT, the rest",
}
PROFILED: Final = {
    "uniform": "uniform, 32 clients",
    "uniform-512": "uniform, 512",
    "hot-sender": "hot sender",
    "bulk": "bulk",
}
NUMBERS: Final = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
MARGIN: Final = 0.2  # of a goal: what is nearer to it than that may lie on either side in the next run
NOISE: Final = 0.05  # of a minute's CPU or rate
LEVEL: Final = 0.98  # of the most memory in a run: from there on it is level
GUESSED: Final = (0.5, 1.0)  # the least and the most of a part that a step may save
COMPILED: Final = 0.045  # of the CPU of uniform, measured once, not kept (docs/performance-steps.md)


# --- text ------------------------------------------------------------------------------------------------------------


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"|{'|'.join(cells)}|" if cells[0] == "---" else f"| {' | '.join(cells)} |" for cells in lines)


def whole(value: float) -> str:
    """1,234"""
    return f"{value:,.0f}"


def listed(words: Sequence[str]) -> str:
    """a, b and c"""
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def in_words(number: int) -> str:
    """Up to ten as a word."""
    return NUMBERS[number] if number < len(NUMBERS) else str(number)


def release(version: str) -> str:
    """3.40 of 3.40.1"""
    return ".".join(version.split(".")[:2])


def commit(name: str, results: Kept) -> str:
    """Which one a result is of. Raises `ValueError` when it does not say."""
    found = results[name]["commit"]
    if not isinstance(found, str):
        raise ValueError(f"docs/performance/{name}.json names no commit: measure again")
    return f"at commit `{found}`"


# --- bench/compare.py ------------------------------------------------------------------------------------------------


def compare_run(results: Kept) -> str:
    """What was measured, and on what."""
    found = results["compare"]
    machine, asked = found["machine"], found["settings"]
    told = compare.aborts(found["hopchain"])
    return (
        f"{commit('compare', results)}: {machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']} GB, {machine['kernel']}, "
        f"a load average of {found['load_average']:g} before it, {machine['file_system']}, SQLite {release(machine['sqlite'])}, "
        f"Python {release(machine['python'])}, PostgreSQL {machine['postgresql'].split('.')[0]}; {asked['nodes']} nodes,\n"
        f"k = {asked['k']}, {asked['clients']} clients, {asked['accounts']:,} accounts, "
        f"{asked['duration_s']} s after {asked['warm_up_s']} s of warm-up. "
        + (
            f"At hopchain: {told}."
            if told
            else "No run of hopchain rejected, aborted or lost anything, and no request was sent again."
        )
    )


def compare_table(results: Kept) -> str:
    """Completed a second, and the ratios."""
    found = results["compare"]
    peers = {(row["variant"], row["profile"]): row for row in found["postgres"]}
    ours, ratios = found["hopchain"], {row["profile"]: row for row in found["ratios"]}

    def peer(row: dict[str, Any]) -> str:
        share = row["aborted_share"]
        return whole(row["completed_per_s"]) + (f" ({share * 100:.0f} % aborted)" if share >= 0.005 else "")

    rows = [
        [f"PostgreSQL x3, {words}", *(peer(peers[variant, profile]) for profile in PROFILES)]
        for variant, words in VARIANTS.items()
    ]
    rows.append(["hopchain x3", *(whole(ours[profile]["completed_per_s"]) for profile in PROFILES)])
    rows.append(
        [
            "hopchain: rejected, without an outcome, sent again",
            *(", ".join(str(ours[profile][key]) for key in compare.ABORTS) for profile in PROFILES),
        ]
    )
    rows.append(["p50, p99 of hopchain, ms", *(f"{ours[p]['p50_ms']:.0f}, {ours[p]['p99_ms']:.0f}" for p in PROFILES)])
    beside = [f"{ratios[p]['ratio']:.2f} x (goal {ratios[p]['goal']:g})" for p in PROFILES]
    rows.append(["hopchain, beside the row that the goal names", *beside])
    before = [run["ratios"] for run in found["before"]]
    if before:
        runs = "run" if len(before) == 1 else f"{in_words(len(before))} runs"
        rows.append(
            [
                f"the same in the {runs} before, of earlier commits",
                *(f"{span([run[p] for run in before], '.2f')} x" for p in PROFILES),
            ]
        )
    return grid(["completed/s", *PROFILES.values()], rows)


def span(values: Sequence[float], digits: str) -> str:
    """From the least to the most."""
    least, most = f"{min(values):{digits}}", f"{max(values):{digits}}"
    return least if least == most else f"{least} to {most}"


def others(results: Kept) -> str:
    """The profiles that PostgreSQL has no row for."""
    ours = results["compare"]["hopchain"]
    again = span([run["completed_per_s"] for run in floors(results, "bulk")], ",.0f")
    return (
        f"Pool of {ours['pool']['sources']}: {whole(ours['pool']['completed_per_s'])}/s, p99 {ours['pool']['p99_ms']:.0f} ms. "
        f"Bulk: {whole(ours['bulk']['completed_per_s'])} postings/s ({again} {in_runs(results, 'bulk')} "
        f"for [the floor](#what-the-floor-is-made-of)). Read: {whole(ours['read']['completed_per_s'])}/s."
    )


def goals(results: Kept) -> str:
    """Which of them the run reached."""
    rows = results["compare"]["goals"]
    reached = [f"{r['goal']} {r['wanted']}".removesuffix(" 0") for r in rows if r["reached"]]
    count = f"**{len(reached)} of {len(rows)} are reached**"
    return f"{count}: {'; '.join(reached)}" if reached else count


def costs(results: Kept) -> str:
    """What a transfer costs the nodes."""
    ours = results["compare"]["hopchain"]
    pool, bulk = f"pool of {ours['pool']['sources']}", f"bulk, {ours['bulk']['batch']:,} a request"
    names = {**PROFILES, "zipf": "zipf", "pool": pool, "bulk": bulk, "read": "read"}
    rows = []
    for profile, name in names.items():
        cost = ours[profile]["cost"]
        commits, together = cost["commits_per_transfer"], cost["transfers_per_link"]
        disk = cost["disk_bytes_per_transfer"]
        rows.append(
            [
                name,
                whole(cost["cpu_us_per_transfer"]),
                whole(cost["main_thread_us_per_transfer"]),
                str(commits) if commits else "-" if together else "0",  # of a link with many: too few to tell
                whole(round(disk, -3 if disk >= 10_000 else -2)),
                "-" if together is None else whole(together) if together >= 10 else str(together),
            ]
        )
    head = [
        "CPU us, all nodes",
        "of it main threads",
        "commits, all nodes",
        "disk bytes, all nodes",
        "transfers a link",
    ]
    return grid(["hopchain, per transfer, same run", *head], rows)


def balance(results: Kept) -> str:
    """How long the slowest node takes to answer a read, profile by profile."""
    ours = results["compare"]["hopchain"]
    names = {**PROFILES, "pool": f"pool of {ours['pool']['sources']}", "bulk": "bulk", "read": "nothing but balances"}
    took = [compare.balance_ms(ours[profile]) for profile in names]
    return grid(["beside", *names.values()], [["p99, ms", *("-" if ms is None else f"{ms:.1f}" for ms in took)]])


def balances(results: Kept) -> str:
    """The same of accounts that a node does not have in memory."""
    found = results["balances"]
    few, many = found["rows"]
    p99s = []
    for row in (many, few):
        took = row["read_p99_us_at_node"]
        p99s.append(f"{took / 1000:.1f} ms" if took else "no time, for too few")
    return (
        f"With {many['accounts']:,} accounts, asked at random, only {found['in_memory'] / many['accounts'] * 100:.0f} % of the "
        f"balances are in memory, and the others are read from SQLite: p99 {p99s[0]} at the node and "
        f"{whole(many['completed_per_s'])} reads/s, beside {p99s[1]} and {whole(few['completed_per_s'])} with {few['accounts']:,} "
        f"(`python bench/balances.py`, {commit('balances', results)})."
    )


# --- bench/clients.py, bench/library.py, bench/memory.py --------------------------------------------------------------


def clients_table(results: Kept) -> str:
    """A hot sender with more and more clients."""
    return clients.table(results["clients"])


def clients_peer(results: Kept) -> str:
    """What stands beside that table."""
    peer = results["clients"]["postgres"]["completed_per_s"]
    return (
        f"{commit('clients', results)}; PostgreSQL's plain function with {clients.CLIENTS[0]} clients: {whole(peer)}/s"
    )


def client_table(results: Kept) -> str:
    """What a program gets that pays through hopchain.Client."""
    found = results["library"]
    return (
        f"**Through the Python client** (`python bench/library.py`, {commit('library', results)}; {in_words(found['nodes'])} "
        f"nodes, {found['accounts']:,} accounts): tasks of one program pay through `hopchain.Client` with `spread=True`. All other "
        "rates here\nare those of a generator without an event loop; a program signs, encodes and waits in its own, "
        f"on the cores that the nodes have:\n\n{library.table(found['rows'])}"
    )


def memory(results: Kept) -> str:
    """A node's, minute by minute."""
    found = results["memory"]
    most = found["minutes_mb"]
    return (
        f"{found['transfers']:,} transfers {commit('memory', results)}: "
        f"{found['at_start_mb']} MB at the start, then, each minute's most, {listed([str(mb) for mb in most])} MB, "
        f"at {listed([str(rate) for rate in found['minutes_per_s']])} transfers a second"
    )


def memory_level(results: Kept) -> str:
    """From when on it does not grow, by the numbers."""
    found = results["memory"]
    most = found["minutes_mb"]
    level = next(number for number, mb in enumerate(most, 1) if mb >= LEVEL * max(most))
    ran = in_words(len(most))
    words = f"level after about {in_words(level)} minutes" if level < len(most) else f"not level within {ran} minutes"
    return f"{words} of {whole(found['completed_per_s'])} transfers a second"


def memory_rate(results: Kept) -> str:
    """Whether the rate fell, and then whether it was the ledger, the machine, or neither; of the first two minutes and
    the last two."""
    found = results["memory"]
    first, last = two_ends(found["minutes_per_s"])
    fell = last / first - 1
    told = f"From the first two minutes to the last two the rate went from {whole(first)} to {whole(last)}/s ({fell * 100:+.0f} %)"
    if "minutes_loop_us" not in found:
        return told
    cpu, loop = two_ends(found["minutes_cpu_us"]), two_ends(found["minutes_loop_us"])
    slower, dearer = loop[1] / loop[0], cpu[1] / cpu[0]
    told += (
        f", the nodes' CPU for a transfer from {whole(cpu[0])} to {whole(cpu[1])} us ({(dearer - 1) * 100:+.0f} %), and that "
        f"of a loop of SHA-256, which says how fast the machine is, from {whole(loop[0])} to {whole(loop[1])} us "
        f"({(slower - 1) * 100:+.0f} %): "
    )
    own = dearer / slower - 1
    if own > NOISE:
        return told + f"beside that loop a transfer costs {own * 100:.0f} % more with the longer ledger"
    if fell > -NOISE:
        return told + "a longer ledger does not show"
    if slower > 1 + NOISE:
        return told + "the machine got slower, and beside that loop a transfer costs no more with the longer ledger"
    return told + "a transfer costs no more, so the nodes got less of the cores or waited longer for the disk"


def two_ends(values: Sequence[float]) -> tuple[float, float]:
    """Mean of the first two, and of the last two."""
    return sum(values[:2]) / len(values[:2]), sum(values[-2:]) / len(values[-2:])


# --- bench/scale.py --------------------------------------------------------------------------------------------------


def scale_table(results: Kept) -> str:
    """CPU with more accounts and with more postings."""
    rows = [
        [f"{row['accounts']:,}", whole(round(row["postings"], -3)), whole(row["cpu_us"]), f"{row['disk_mb']:,}"]
        for row in results["scale"]["rows"]
    ]
    return grid(["accounts", "postings stored", "CPU us", "database MB"], rows)


def growth(results: Kept) -> str:
    """How many times the CPU of the smallest the largest takes."""
    found = []
    for grows in ("accounts", "postings"):
        rows = [row for row in results["scale"]["rows"] if row["grows"] == grows]
        first, last = (round(math.log10(row[grows])) for row in (rows[0], rows[-1]))
        found.append(f"{rows[-1]['cpu_us'] / rows[0]['cpu_us']:.1f} times from 10^{first} to 10^{last} {grows}")
    return listed(found)


def bulk_table(results: Kept) -> str:
    """CPU of a posting while the ledger grows."""
    rows = results["scale-bulk"]["rows"]
    return grid(
        ["postings stored", *(f"{row['postings']:,}" for row in rows)],
        [["CPU us a posting", *(f"{row['cpu_us']:.1f}" for row in rows)]],
    )


# --- bench/takeover.py -----------------------------------------------------------------------------------------------


def takeover(results: Kept) -> str:
    """p99 before and after the kills, and after the starts."""
    found = results["takeover"]
    alive, one, two, back = (
        listed([f"{row['p99_ms']:.0f}" for row in phase]) for phase in zip(*found["runs"], strict=True)
    )
    runs = len(found["runs"])
    paid = min(row["accounts_that_paid"] for phases in found["runs"] for row in phases)
    return (
        f"p99 {alive} ms with all alive, {one} ms from ten seconds after one was\nkilled, {two} ms from ten seconds after "
        f"a second one, {back} ms from when both are started again,\nin {in_words(runs)} {'run' if runs == 1 else 'runs'} {commit('takeover', results)}; "
        + (f"all {paid} accounts pay" if paid == found["accounts"] else f"{paid} of {found['accounts']} accounts pay")
    )


# --- bench/floor.py --------------------------------------------------------------------------------------------------


def floors(results: Kept, profile: str) -> list[dict[str, Any]]:
    """All runs of a profile."""
    found: list[dict[str, Any]] = results["floor"]["profiles"][profile]
    return found


def middle(results: Kept, profile: str) -> dict[str, Any]:
    """The run of a profile whose floor is the median of its runs (of an even number the lower median): of one run, so
    that the parts add up."""
    runs = floors(results, profile)
    median = statistics.median_low(run["floor_us"] for run in runs)
    return next(run for run in runs if run["floor_us"] == median)


def floor_run(results: Kept) -> str:
    """Which run of each profile the table shows."""
    count = len(floors(results, "uniform"))
    return f"the run whose floor is the {'median' if count % 2 else 'lower median'} of {in_words(count)}"


def in_runs(results: Kept, profile: str) -> str:
    """in the three runs"""
    count = len(floors(results, profile))
    return "in the run" if count == 1 else f"in the {in_words(count)} runs"


def floor_table(results: Kept) -> str:
    """The parts that no language makes cheaper, and what is left."""

    def us(of: Callable[[dict[str, Any]], float], *, spans: bool = False) -> list[str]:
        """Of the run that is shown; with `spans` from the least to the most of all runs in brackets."""
        cells = []
        for profile in FLOORS:
            digits = f",.{int(profile == 'bulk')}f"
            cell = f"{of(middle(results, profile)):{digits}}"
            every = span([of(run) for run in floors(results, profile)], digits)
            cells.append(f"{cell} ({every})" if spans and every != cell else cell)
        return cells

    def per_s(key: str) -> list[str]:
        return [whole(middle(results, profile)[key]) for profile in FLOORS]

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
    rows.append([f"most that the floor leaves to {in_words(results['floor']['cores'])} cores", *per_s("most_per_s")])
    beside = goals_per_s(results)
    rows.append(["the goal in the run [above](#numbers)", *(whole(beside[profile]) for profile in FLOORS)])
    return grid(["part", *FLOORS.values()], rows)


def goals_per_s(results: Kept) -> dict[str, float]:
    """Profile -> completed a second that its goal asks for, in the run of the comparison."""
    wanted = {row["profile"]: row["goal"] * row["peer_per_s"] for row in results["compare"]["ratios"]}
    return {**wanted, "bulk": compare.BULK_PER_S}


def reach(profile: str, floor_of: str, results: Kept) -> str:
    """Whether the floor, which is measured with the profile `floor_of`, leaves the goal of a profile."""
    most, goal = [run["most_per_s"] for run in floors(results, floor_of)], goals_per_s(results)[profile]
    words = "at the edge of what the floor leaves"
    if max(most) < goal * (1 - MARGIN):
        words = "out of reach of any language"
    elif min(most) > goal * (1 + MARGIN):
        words = "within what the floor leaves"
    unit = " postings/s" if profile == "bulk" else "/s"
    return f"{words} ({span(most, ',.0f')}{unit} {in_runs(results, floor_of)}, of {whole(goal)})"


def bulk_left(results: Kept) -> str:
    """What is not the floor, of what bulk takes."""
    left = [run["interpreter_us"] / run["measured_us"] * 100 for run in floors(results, "bulk")]
    words = "about half"
    if max(left) < 50:
        words = "the smaller part"
    elif min(left) > 50:
        words = "the larger part"
    told = f"{words} of what is measured: {span(left, '.0f')} % {in_runs(results, 'bulk')}"
    return told if min(left) > 0 else f"{told}, and what is below nothing is noise"


def needed(results: Kept) -> str:
    """What each step would give of the CPU of a transfer, in tens of microseconds."""
    runs = floors(results, "uniform")
    compiled = span([round(run["measured_us"] * COMPILED, -1) for run in runs], ",.0f")
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
    return grid(["step", f"CPU us, of {span([round(run['measured_us'], -1) for run in runs], ',.0f')}"], rows)


def given(rows: Sequence[dict[str, Any]], key: str) -> str:
    """From GUESSED[0] of the least to GUESSED[1] of the most."""
    least, most = (of(row[key] for row in rows) * share for of, share in zip((min, max), GUESSED, strict=True))
    return span([round(least, -1), round(most, -1)], ",.0f")


def leave(results: Kept) -> str:
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
    told = f"{span([round(us, -1) for us in left], ',.0f')} us: {span(times, '.1f')} times as many transfers, {beside}"
    return f"{told} a PostgreSQL with its function on the same cores"


# --- bench/shares.py -------------------------------------------------------------------------------------------------


def shares_table(results: Kept) -> str:
    """Where a node's CPU goes."""
    found = results["shares"]["shares"]
    runs = [run for run in PROFILED if run in found]
    rows = [[words, *(f"{found[run][part]:.0f} %" for run in runs)] for part, words in SHARES.items()]
    return grid(["share of a node's CPU", *(PROFILED[run] for run in runs)], rows)


def pictures(results: Kept) -> str:
    """The flame graphs of the same runs."""
    found = results["shares"]
    drawn = [
        f"[{words}](performance/{shares.RUNS[run].picture})"
        for run, words in PROFILED.items()
        if run in found["shares"]
    ]
    return f"{listed(drawn)}, {commit('shares', results)}" if "pictures" in found else listed(drawn)


# --- the page --------------------------------------------------------------------------------------------------------

TABLES: Final[dict[str, Callable[[Kept], str]]] = {
    "compare-run": compare_run,
    "compare": compare_table,
    "others": others,
    "goals": goals,
    "costs": costs,
    "balance": balance,
    "balances": balances,
    "clients": clients_table,
    "clients-peer": clients_peer,
    "library": client_table,
    "memory": memory,
    "memory-level": memory_level,
    "memory-rate": memory_rate,
    "scale-commit": partial(commit, "scale"),
    "scale": scale_table,
    "growth": growth,
    "scale-bulk-commit": partial(commit, "scale-bulk"),
    "scale-bulk": bulk_table,
    "takeover": takeover,
    "shares-commit": partial(commit, "shares"),
    "shares": shares_table,
    "pictures": pictures,
    "floor-commit": partial(commit, "floor"),
    "floor-run": floor_run,
    "floor": floor_table,
    "uniform-reach": partial(reach, "uniform", "uniform"),
    "hot-recipient-reach": partial(reach, "hot-recipient", "hot-recipient"),
    "zipf-reach": partial(reach, "zipf", "uniform"),
    "bulk-reach": partial(reach, "bulk", "bulk"),
    "bulk-left": bulk_left,
    "needed": needed,
    "leave": leave,
}


def read(directory: Path = RESULTS) -> Kept:
    """All kept results, but for those of LATER that are not there yet. Raises `OSError` and `ValueError`."""
    paths = {name: directory / f"{name}.json" for name in FILES}
    later = {*LATER.values()}
    return {n: json.loads(p.read_text(encoding="utf-8")) for n, p in paths.items() if n not in later or p.exists()}


def render(name: str, results: Kept) -> str:
    """One of TABLES. Raises `ValueError` when a result lacks what it shows."""
    if LATER.get(name, "compare") not in results:
        return ""
    try:
        return TABLES[name](results)
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"the kept results lack what `{name}` shows: {error!r}") from error


def rendered(page: str, results: Kept) -> tuple[str, list[str]]:
    """The page with all tables as the results say, and the names of those that differed. Raises `ValueError`."""
    opened = re.findall(r"<!-- table: ([^ ]*) -->", page)
    if opened != [found[1] for found in PLACE.findall(page)] or len(opened) != page.count("<!-- end -->"):
        raise ValueError("a `<!-- table: NAME -->` of the page has no `<!-- end -->`, or the other way round")
    if sorted(opened) != sorted(TABLES):
        raise ValueError(
            f"tables that the page has twice or lacks, or that there are none of: {sorted({*opened} ^ {*TABLES}) or opened}"
        )
    differ: list[str] = []
    return PLACE.sub(partial(_renewed, results, differ), page), differ


def _renewed(results: Kept, differ: list[str], found: re.Match[str]) -> str:
    begin, name, before, old, after, end = found.groups()
    new = render(name, results)
    if new != old:
        differ.append(name)
    return f"{begin}{before}{new}{after}{end}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 when a table differs")
    asked = parser.parse_args()
    try:
        page, differ = rendered(PAGE.read_text(encoding="utf-8"), read())
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    if asked.check:
        sys.exit(f"differ from {RESULTS.relative_to(kept.ROOT)}: {', '.join(differ)}" if differ else 0)
    PAGE.write_text(page, encoding="utf-8")
    sys.stdout.write(f"renewed: {', '.join(differ)}\n" if differ else "nothing differs\n")


if __name__ == "__main__":
    main()

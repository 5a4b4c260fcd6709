"""hopchain beside PostgreSQL on this machine, profile by profile, and the ratios.

    python bench/compare.py                        everything: about thirteen minutes
    python bench/compare.py --duration 5 --profile uniform --json > result.json
    python bench/compare.py --keep docs/performance/compare.json     and then bench/tables.py

Run it with the interpreter of the environment that hopchain is installed in. Both have three servers on loopback,
answer when a transfer is on two disks, get the same number of clients and accounts and the same distribution of payers
and payees.
hopchain is measured with `hopchain bench`; PostgreSQL as bench/postgres.py says. A machine's speed changes within
minutes, so hopchain's run of a profile follows PostgreSQL's of the same one. PostgreSQL is stopped meanwhile, with a
checkpoint: then it cannot write, vacuum or hold memory, and nobody has to show that it does none of it. Nothing else
should run: the load average of the machine before it is printed with the result.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import kept
import postgres
import text

GOALS = {  # profile -> (least ratio, beside which variants: the best of them counts)
    "uniform": (1.0, ("function",)),
    "zipf": (3.0, tuple(postgres.VARIANTS)),
    "hot-recipient": (4.0, tuple(postgres.VARIANTS)),
    "hot-sender": (4.0, tuple(postgres.VARIANTS)),
}
BULK_PER_S = 82_000  # postings: TigerBeetle's rate with 8,189 transfers a request
COSTS = (  # of `hopchain bench`, kept
    "cpu_us_per_transfer",
    "main_thread_us_per_transfer",
    "commits_per_transfer",
    "disk_bytes_per_transfer",
    "transfers_per_link",
    "read_p99_us_at_node",
)
P99_MS = 50.0  # of SINGLE, at
P99_CLIENTS = 32
SINGLE = (*postgres.PROFILES, "pool")  # profiles of one transfer a request
ALONE = ("pool", "bulk", "read")  # of which PostgreSQL has no row
BALANCE_MS = 1.0  # at a node, whatever else it is asked
ABORTS = {"rejected": "rejected", "unknown": "without an outcome", "retried": "not started and sent again"}
NODES = 3  # of which all hold every link
RUNS_BEFORE = 2  # whose ratios stay in a kept result
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


def measure_hopchain(profile: str, asked: argparse.Namespace, *more: str) -> dict[str, object]:
    """The document of `hopchain bench`, with `more` options; ends this script when it fails."""
    words = [profile, "--nodes", str(NODES), "--k", str(NODES)]
    words += ["--clients", str(asked.clients), "--accounts", str(asked.accounts)]
    words += ["--warm-up", str(asked.warm_up), "--duration", str(asked.duration), "--json", *more]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "cli.main", "bench", *words], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"hopchain bench {profile} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    found: dict[str, object] = json.loads(done.stdout)
    postgres.tell(
        f"hopchain           {profile:14} {found['completed_per_s']:>9}/s  p50 {found['p50_ms']} ms  "
        f"p99 {found['p99_ms']} ms  " + "  ".join(f"{key} {found[key]}" for key in ABORTS)
    )
    return found


def measure_both(asked: argparse.Namespace) -> tuple[list[dict[str, object]], dict[str, dict[str, object]]]:
    """PostgreSQL's rows, and hopchain's document for each profile; of a profile one after the other."""
    rows: list[dict[str, object]] = []
    ours: dict[str, dict[str, object]] = {}
    with postgres.cluster() as peer:
        for profile in asked.profile or postgres.PROFILES:
            with peer.running() as primary:
                found = postgres.measure_profile(primary, profile, asked)
            unsound = [f"{row['variant']} {row['profile']}" for row in found if not row["ok"]]
            if unsound:
                sys.exit(f"PostgreSQL's ledger does not add up after {', '.join(unsound)}: nothing to compare with")
            rows += found
            ours[profile] = measure_hopchain(profile, asked)
    if not asked.no_bulk:
        ours |= {profile: measure_hopchain(profile, asked) for profile in ALONE}
    return rows, ours


def number(row: dict[str, object], key: str) -> float:
    """A number of a row."""
    value = row[key]
    assert isinstance(value, int | float), (key, value)
    return float(value)


def compare(rows: list[dict[str, object]], ours: dict[str, dict[str, object]]) -> list[dict[str, object]]:
    """For each profile: ours, the peer that the goal names, the ratio, and whether it is reached."""
    found = []
    for profile, (least, variants) in GOALS.items():
        peers = [row for row in rows if row["profile"] == profile and row["variant"] in variants]
        if profile not in ours or not peers:
            continue
        best = max(peers, key=lambda row: number(row, "completed_per_s"))
        ratio = number(ours[profile], "completed_per_s") / max(number(best, "completed_per_s"), 0.1)
        found.append(
            {
                "profile": profile,
                "hopchain_per_s": ours[profile]["completed_per_s"],
                "peer": best["variant"],
                "peer_per_s": best["completed_per_s"],
                "ratio": round(ratio, 3),
                "goal": least,
                "reached": ratio >= least,
            }
        )
    return found


def goals(ratios: list[dict[str, object]], ours: dict[str, dict[str, object]], clients: int) -> list[dict[str, object]]:
    """Each goal that was measured: what it asks for, what there is, and whether that is enough."""
    found: list[dict[str, object]] = []

    def add(goal: str, wanted: str, measured: str, reached: bool) -> None:
        found.append({"goal": goal, "wanted": wanted, "measured": measured, "reached": reached})

    for row in ratios:
        beside = f"{row['ratio']} x ({row['hopchain_per_s']}/s beside {row['peer_per_s']}/s of {row['peer']})"
        add(f"{row['profile']}, beside PostgreSQL", f"at least {row['goal']} x", beside, bool(row["reached"]))
    if "bulk" in ours:
        rate = number(ours["bulk"], "completed_per_s")
        add("bulk", f"at least {BULK_PER_S:,} postings/s", f"{rate:,.0f}/s", rate >= BULK_PER_S)
    if clients == P99_CLIENTS:
        for profile in (p for p in SINGLE if p in ours):
            p99_ms = number(ours[profile], "p99_ms")
            add(f"{profile}, p99 at {clients} clients", f"under {P99_MS:g} ms", f"{p99_ms:g} ms", p99_ms < P99_MS)
    balances = {p: took for p, doc in ours.items() if (took := balance_ms(doc)) is not None}
    if balances:
        slowest = max(balances, key=lambda profile: balances[profile])
        most = balances[slowest]
        add("balance at a node, p99", f"under {BALANCE_MS:g} ms", f"{most:g} ms ({slowest})", most < BALANCE_MS)
    if ours:
        told = aborts(ours)
        add("no aborts in any profile", "0", told or "0", not told)
    return found


def balance_ms(document: dict[str, Any]) -> float | None:
    """p99 of the balances that the slowest node answered in a run; None when they were too few to tell."""
    took_us = document["cost"]["read_p99_us_at_node"]
    return None if took_us is None else took_us / 1000


def aborts(ours: dict[str, dict[str, Any]]) -> str:
    """What did not complete at the first attempt: `pool 3 rejected`; empty when all did."""
    return ", ".join(
        f"{profile} {document[key]:g} {words}"
        for profile, document in ours.items()
        for key, words in ABORTS.items()
        if document[key]
    )


def goals_table(found: list[dict[str, object]]) -> str:
    """Markdown."""
    lines = ["| goal | wanted | measured | |", "|---|---|---|---|"]
    for row in found:
        reached = "reached" if row["reached"] else "not reached"
        lines.append(f"| {row['goal']} | {row['wanted']} | {row['measured']} | {reached} |")
    return "\n".join(lines)


def table(rows: list[dict[str, object]], ours: dict[str, dict[str, object]]) -> str:
    """Completed a second, Markdown."""
    profiles = [p for p in postgres.PROFILES if p in ours or any(row["profile"] == p for row in rows)]
    lines = ["| completed/s | " + " | ".join(profiles) + " |", "|---|" + "---|" * len(profiles)]
    for variant, (_, what) in postgres.VARIANTS.items():
        cells = {str(r["profile"]): r for r in rows if r["variant"] == variant}
        if cells:
            lines.append(f"| PostgreSQL x3, {what} | " + " | ".join(_cell(cells.get(p)) for p in profiles) + " |")
    lines.append("| hopchain x3 | " + " | ".join(_cell(ours.get(p)) for p in profiles) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, object] | None) -> str:
    if row is None:
        return "-"
    share = float(str(row.get("aborted_share", 0.0)))
    return f"{number(row, 'completed_per_s'):,.0f}" + (f" ({share:.0%} aborted)" if share >= 0.005 else "")


def kept_before(path: Path | None, commit: str) -> list[dict[str, Any]]:
    """Ratios of the last runs of other commits, latest first: that of the result which is kept so far, and of those
    before it."""
    if path is None or not path.exists():
        return []
    last = json.loads(path.read_text())
    ratios = {row["profile"]: row["ratio"] for row in last["ratios"]}
    latest = [] if last["commit"] == commit else [{"commit": last["commit"], "ratios": ratios}]
    return [*latest, *last["before"]][:RUNS_BEFORE]


def to_keep(found: dict[str, Any], asked: argparse.Namespace, before: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the document of `--json`, what docs/performance.md shows."""
    return {
        "machine": {**kept.machine(), "postgresql": postgres.version()},
        "settings": {
            "nodes": NODES,
            "k": NODES,
            "clients": asked.clients,
            "accounts": asked.accounts,
            "warm_up_s": asked.warm_up,
            "duration_s": asked.duration,
        },
        "postgres": [
            kept.picked(row, "variant", "profile", "completed_per_s", "aborted_share") for row in found["postgres"]
        ],
        "hopchain": {
            profile: {
                **kept.picked(doc, "completed_per_s", "p50_ms", "p99_ms", *ABORTS),
                **kept.picked(doc["settings"], "batch", "sources"),
                "cost": kept.picked(doc["cost"], *COSTS),
            }
            for profile, doc in found["hopchain"].items()
        },
        "ratios": found["ratios"],
        "goals": found["goals"],
        "before": before,
    }


def compare_run(results: text.Kept) -> str:
    """What was measured, and on what."""
    found = results["compare"]
    machine, asked = found["machine"], found["settings"]
    told = aborts(found["hopchain"])
    return (
        f"{text.commit('compare', results)}: {machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']} GB, {machine['kernel']}, "
        f"a load average of {found['load_average']:g} before it, {machine['file_system']}, SQLite {text.release(machine['sqlite'])}, "
        f"Python {text.release(machine['python'])}, PostgreSQL {machine['postgresql'].split('.')[0]}; {asked['nodes']} nodes,\n"
        f"k = {asked['k']}, {asked['clients']} clients, {asked['accounts']:,} accounts, "
        f"{asked['duration_s']} s after {asked['warm_up_s']} s of warm-up. "
        + (
            f"At hopchain: {told}."
            if told
            else "No run of hopchain rejected, aborted or lost anything, and no request was sent again."
        )
    )


def compare_table(results: text.Kept) -> str:
    """Completed a second, and the ratios."""
    found = results["compare"]
    peers = {(row["variant"], row["profile"]): row for row in found["postgres"]}
    ours, ratios = found["hopchain"], {row["profile"]: row for row in found["ratios"]}

    def peer(row: dict[str, Any]) -> str:
        share = row["aborted_share"]
        return text.whole(row["completed_per_s"]) + (f" ({share * 100:.0f} % aborted)" if share >= 0.005 else "")

    rows = [
        [f"PostgreSQL x3, {words}", *(peer(peers[variant, profile]) for profile in PROFILES)]
        for variant, words in VARIANTS.items()
    ]
    rows.append(["hopchain x3", *(text.whole(ours[profile]["completed_per_s"]) for profile in PROFILES)])
    rows.append(
        [
            "hopchain: rejected, without an outcome, sent again",
            *(", ".join(str(ours[profile][key]) for key in ABORTS) for profile in PROFILES),
        ]
    )
    rows.append(["p50, p99 of hopchain, ms", *(f"{ours[p]['p50_ms']:.0f}, {ours[p]['p99_ms']:.0f}" for p in PROFILES)])
    beside = [f"{ratios[p]['ratio']:.2f} x (goal {ratios[p]['goal']:g})" for p in PROFILES]
    rows.append(["hopchain, beside the row that the goal names", *beside])
    before = [run["ratios"] for run in found["before"]]
    if before:
        runs = "run" if len(before) == 1 else f"{text.in_words(len(before))} runs"
        rows.append(
            [
                f"the same in the {runs} before, of earlier commits",
                *(f"{text.span([run[p] for run in before], '.2f')} x" for p in PROFILES),
            ]
        )
    return text.grid(["completed/s", *PROFILES.values()], rows)


def others(results: text.Kept) -> str:
    """The profiles that PostgreSQL has no row for."""
    ours = results["compare"]["hopchain"]
    floors = results["floor"]["profiles"]["bulk"]
    again = text.span([run["completed_per_s"] for run in floors], ",.0f")
    return (
        f"Pool of {ours['pool']['sources']}: {text.whole(ours['pool']['completed_per_s'])}/s, p99 {ours['pool']['p99_ms']:.0f} ms. "
        f"Bulk: {text.whole(ours['bulk']['completed_per_s'])} postings/s ({again} {text.in_runs(len(floors))} "
        f"for [the floor](#what-the-floor-is-made-of)). Read: {text.whole(ours['read']['completed_per_s'])}/s."
    )


def goals_reached(results: text.Kept) -> str:
    """Which goals the run reached."""
    rows = results["compare"]["goals"]
    reached = [f"{r['goal']} {r['wanted']}".removesuffix(" 0") for r in rows if r["reached"]]
    count = f"**{len(reached)} of {len(rows)} are reached**"
    return f"{count}: {'; '.join(reached)}" if reached else count


def costs(results: text.Kept) -> str:
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
                text.whole(cost["cpu_us_per_transfer"]),
                text.whole(cost["main_thread_us_per_transfer"]),
                str(commits) if commits else "-" if together else "0",  # of a link with many: too few to tell
                text.whole(round(disk, -3 if disk >= 10_000 else -2)),
                "-" if together is None else text.whole(together) if together >= 10 else str(together),
            ]
        )
    head = [
        "CPU us, all nodes",
        "of it main threads",
        "commits, all nodes",
        "disk bytes, all nodes",
        "transfers a link",
    ]
    return text.grid(["hopchain, per transfer, same run", *head], rows)


def balance(results: text.Kept) -> str:
    """How long the slowest node takes to answer a read, profile by profile."""
    ours = results["compare"]["hopchain"]
    names = {**PROFILES, "pool": f"pool of {ours['pool']['sources']}", "bulk": "bulk", "read": "nothing but balances"}
    took = [balance_ms(ours[profile]) for profile in names]
    return text.grid(["beside", *names.values()], [["p99, ms", *("-" if ms is None else f"{ms:.1f}" for ms in took)]])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    postgres.options(parser)
    parser.add_argument("--no-bulk", action="store_true", help="leave hopchain's pool, bulk and read out")
    kept.options(parser)
    asked = parser.parse_args()
    kept.prepare(parser, asked)
    before = kept_before(asked.keep, asked.commit)
    load = os.getloadavg()[0]
    rows, ours = measure_both(asked)
    ratios = compare(rows, ours)
    reached = goals(ratios, ours, asked.clients)
    found = {"load_average": load, "postgres": rows, "hopchain": ours, "ratios": ratios, "goals": reached}
    if asked.keep:
        kept.write(asked, to_keep(found, asked, before))
    if asked.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    lines = [table(rows, ours), "", goals_table(reached), ""]
    for profile in ALONE:
        if profile in ours:
            lines.append(
                f"{profile}: {number(ours[profile], 'completed_per_s'):,.0f}/s, p99 {ours[profile]['p99_ms']} ms"
            )
    lines.append(f"load average before: {load:.2f}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""`hopchain sim`: cut, kill and delay a simulated network, the same way every time."""

import re
import shlex
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from chain.errors import LocalMisuse
from cli.command import HopCommand, Seconds, check_folder, checked_name, usage
from cli.output import Exit, JsonValue, Output, console, counted
from cli.simresult import show, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from netsim.hops import HopRow
    from netsim.plan import Plan
    from netsim.run import Result

FIRST_SIZE: Final = 10  # of `hops`
MAX_JOBS: Final = 1024  # processes, each with a simulator of some 80 MB
SMALLEST: Final = 2  # a lookup needs somebody to ask
MINUTES_FROM_S: Final = 100  # what is left is told in minutes from here on
HOURS_FROM_S: Final = 100 * 60  # and in hours

_report_option = click.option(
    "--report", "report_path", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.html",
    help="Write the report: one page that needs no network.",
)  # fmt: skip
_plot_option = click.option(
    "--plot", "plot_path", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.svg",
    help="Write a picture; the name ends in .png, .svg or .pdf.",
)  # fmt: skip
_until_option = click.option(
    "--until", "until_s", type=Seconds(0, min_open=True), metavar="SECONDS", help="Stop at this simulated time."
)


@click.group()
def sim() -> None:
    """Break a simulated network on purpose: it runs the real code of the nodes; the same seed gives the same run."""


@sim.command("list", cls=HopCommand, examples=["hopchain sim list"])
def list_(out: Output) -> None:
    """List the scenarios that ship."""
    from netsim.scenario import load_scenario, shipped

    scenarios = [load_scenario(name) for name in shipped()]
    out.data(
        {"scenarios": [{"name": s.name, "title": s.title, "nodes": s.plan.nodes, "k": s.plan.k} for s in scenarios]}
    )
    out.table(
        ["scenario", "what happens", "nodes", "k"],
        [[s.name, s.title, str(s.plan.nodes), str(s.plan.k)] for s in scenarios],
        right=["nodes", "k"],
    )
    out.say("run one: hopchain sim run split-brain --report out.html")


@sim.command(
    cls=HopCommand,
    examples=[
        "hopchain sim run split-brain --report out.html",
        "hopchain sim run split-brain --nodes 7 --k 5 --seed 42 --plot out.svg",
        "hopchain sim run mine.toml --json",
        "hopchain sim run shrunk.json --report out.html",
    ],
)
@click.argument("what", metavar="NAME-OR-FILE")
@click.option("--nodes", type=click.IntRange(1, 64), metavar="N", help="How many nodes, in place of the scenario's.")
@click.option("--k", type=click.IntRange(1, 64), metavar="K", help="The group size, in place of the scenario's.")
@click.option("--seed", type=click.IntRange(0), metavar="SEED", help="Another run of the same scenario.")
@_report_option
@_plot_option
@_until_option
def run(
    out: Output,
    what: str,
    nodes: int | None,
    k: int | None,
    seed: int | None,
    report_path: Path | None,
    plot_path: Path | None,
    until_s: float | None,
) -> None:
    """Run a scenario that ships, your own FILE.toml, or a plan that a swarm has shrunk (FILE.json), and judge it.

    Exit code 1: an invariant or an expectation of the scenario does not hold.
    """
    from netsim.scenario import load_scenario
    from netsim.stage import perform, perform_plan, planned_s

    _check_paths(report_path, plot_path)
    command = _command("run", what, nodes=nodes, k=k, seed=seed, until=until_s)
    if what.endswith(".json"):
        if (nodes, k, seed) != (None, None, None):
            usage("--nodes, --k and --seed are for scenarios: a plan has its own")
        plan = _read_plan(what)
        with _progress(out, Path(what).stem, planned_s(plan, scenario=False)) as advance:
            performance = perform_plan(plan, Path(what).stem, progress=advance, until=until_s)
        raise SystemExit(show(out, performance, None, command, report_path, plot_path))
    scenario = load_scenario(what, nodes=nodes, k=k, seed=seed)
    with _progress(out, scenario.name, planned_s(scenario.plan, scenario=True)) as advance:
        performance = perform(scenario, progress=advance, until=until_s)
    raise SystemExit(show(out, performance, scenario, command, report_path, plot_path))


@sim.command(
    cls=HopCommand,
    examples=[
        "hopchain sim replay 1234",
        "hopchain sim replay 1234 --follow acct-0 --until 7.5",
        "hopchain sim replay 1234 --report out.html",
    ],
)
@click.argument("seed", type=click.IntRange(0))
@click.option("--follow", "account", metavar="ACCOUNT", help="Print what happens to this account, event by event.")
@_until_option
@_report_option
@_plot_option
def replay(
    out: Output,
    seed: int,
    account: str | None,
    until_s: float | None,
    report_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Run one seed of the swarm again: the same trace, hash for hash.

    Exit code 1: an invariant does not hold.
    """
    from netsim.draw import draw_plan
    from netsim.stage import perform_plan, planned_s

    _check_paths(report_path, plot_path)
    follow = checked_name(account) if account is not None else None
    plan = draw_plan(seed)
    with _progress(out, f"seed {seed}", planned_s(plan, scenario=False)) as advance:
        performance = perform_plan(plan, f"seed-{seed}", progress=advance, until=until_s)
    if follow is not None and follow not in performance.balances:
        had = ", ".join(performance.balances)
        usage(
            f"--follow {follow}: at its end, after {performance.ended_at:.2f} s, this run has only the accounts {had}"
        )
    command = _command("replay", str(seed), until=until_s)
    raise SystemExit(show(out, performance, None, command, report_path, plot_path, follow=follow))


@sim.command(
    cls=HopCommand,
    examples=[
        "hopchain sim swarm --seeds 1000 --jobs 2",
        "hopchain sim swarm --seeds 200 --first 5000",
        "hopchain sim swarm --seeds 100000 --fleet 127.0.0.1:8786",
    ],
)
@click.option("--seeds", type=click.IntRange(1), default=100, show_default=True, help="How many seeds.")
@click.option("--first", type=click.IntRange(0), default=0, show_default=True, metavar="SEED", help="The first seed.")
@click.option("--jobs", type=click.IntRange(1, MAX_JOBS), metavar="N", help="How many cores. Default: all.")
@click.option("--fleet", metavar="ADDRESS", help="Run on the Dask cluster with this scheduler, HOST:PORT.")
@click.option(
    "--shrunk", "shrunk_dir", type=click.Path(path_type=Path, file_okay=False), default=Path(), metavar="DIR",
    help="Where the shrunk plans of failing seeds are written. Default: here.",
)  # fmt: skip
def swarm(out: Output, seeds: int, first: int, jobs: int | None, fleet: str | None, shrunk_dir: Path) -> None:
    """Run many seeds: each draws its own size, load and faults. A failing one is shrunk.

    Exit code 1: a seed breaks a rule.
    """
    import os

    from netsim.plan import encode_plan
    from netsim.swarm import MAX_SHRUNK, run_swarm

    if not shrunk_dir.is_dir():  # it may be hours until there is something to write
        usage(f"{shrunk_dir} is not a directory: make it, or name another with --shrunk")
    if fleet is not None and re.fullmatch(r"([a-z]+://)?[^/\s]+:[0-9]{1,5}", fleet) is None:
        usage(f"--fleet {fleet[:80]!r} is not the address of a Dask scheduler: write HOST:PORT, such as 127.0.0.1:8786")
    with _progress(out, "seeds", seeds, counts=True) as advance:
        done = broken = 0

        def on_result(result: "Result") -> None:
            nonlocal done, broken
            done += 1
            broken += not result.ok
            advance(done)
            if done == seeds and broken:
                out.note(f"shrinking {counted(min(broken, MAX_SHRUNK), 'failing seed')}, about a minute for each")

        report = run_swarm(range(first, first + seeds), min(seeds, jobs or os.cpu_count() or 1), on_result, fleet)
    failures: list[JsonValue] = []
    for failure in report.failures:
        path = shrunk_dir / f"shrunk-{failure.seed}.json"
        shrunk_command = _command("run", str(path)) if failure.shrunk else None
        if failure.shrunk:
            write(path, encode_plan(failure.plan))
        failures.append(
            {
                "seed": failure.seed,
                "rule": failure.rule,
                "problem": failure.problem,
                "command": failure.command,
                "shrunk_command": shrunk_command,
                "shrunk_faults": len(failure.plan.faults) if failure.shrunk else None,
            }
        )
        out.say(f"seed {failure.seed} breaks {failure.rule}: {failure.problem}", colour="red")
        out.say(f"  {failure.command}")
        if shrunk_command is not None:
            out.say(f"  {shrunk_command}    # shrunk to {len(failure.plan.faults)} faults")
    out.data(
        {
            "ok": report.ok,
            "seeds": report.seeds,
            "first": first,
            "simulated_s": round(report.simulated_s, 3),
            "seconds": round(report.seconds, 3),
            "seeds_per_minute": round(report.seeds_per_minute, 1),
            "simulated_s_per_s": round(report.simulated_s_per_s, 1),
            "links": report.links,
            "calls": report.calls,
            "changes": report.changes,
            "completed": report.completed,
            "rejected": report.rejected,
            "faults": dict(sorted(report.faults.items())),
            "failures": failures,
        }
    )
    out.fields(
        [
            ("seeds", f"{report.seeds:,} in {report.seconds:.1f} s: {report.seeds_per_minute:.0f} a minute"),
            ("simulated", f"{report.simulated_s / 3600:.2f} h: {report.simulated_s_per_s:.0f} s each second"),
            ("links", f"{report.links:,}"),
            ("members", f"changed {report.changes:,} times"),
            ("answers", f"{report.completed:,} completed, {report.rejected:,} rejected, of {report.calls:,} calls"),
            ("faults", ", ".join(f"{kind} {n:,}" for kind, n in sorted(report.faults.items())) or "none"),
        ]
    )
    out.say(
        "no rule was broken" if report.ok else f"{counted(len(report.failures), 'seed')} broke a rule",
        colour="green" if report.ok else "red",
        bold=True,
    )
    raise SystemExit(Exit.DONE if report.ok else Exit.REJECTED)


@sim.command(
    cls=HopCommand,
    examples=["hopchain sim hops --nodes 1000", "hopchain sim hops --nodes 320 --step 20 --plot hops.svg"],
)
@click.option("--nodes", type=click.IntRange(2, 5000), default=200, show_default=True, help="The largest network.")
@click.option(
    "--step", type=click.IntRange(1), metavar="N", help="Sizes N apart. Default: 10, 20, 40, ... up to --nodes."
)
@click.option("--keys", type=click.IntRange(2, 10_000), default=100, show_default=True, help="Lookups for each size.")
@click.option("--k", type=click.IntRange(1, 64), default=5, show_default=True, help="The group size.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, metavar="SEED", help="Another run.")
@_plot_option
def hops(out: Output, nodes: int, step: int | None, keys: int, k: int, seed: int, plot_path: Path | None) -> None:
    """Measure lookup hops and messages against the size of the network, beside log2 n."""
    import msgspec

    from netsim.hops import measure_hops, plot_hops

    _check_paths(None, plot_path)
    wanted = sizes(nodes, step)
    with _progress(out, "nodes", sum(wanted)) as advance:
        measured: list[int] = []

        def on_row(row: "HopRow") -> None:
            measured.append(row.nodes)
            advance(sum(measured))

        rows = measure_hops(wanted, seed, keys, k, on_row)
    documents = [msgspec.to_builtins(row) for row in rows]
    out.data({"seed": seed, "k": k, "keys": keys, "rows": documents, "plot": str(plot_path) if plot_path else None})
    columns = list(documents[0])
    out.table(
        [c.replace("_", " ") for c in columns],
        [[f"{row[c]:.2f}" if isinstance(row[c], float) else str(row[c]) for c in columns] for row in documents],
        right=[c.replace("_", " ") for c in columns],
    )
    if plot_path is not None:
        plot_hops(rows, plot_path)
        out.say(f"picture: {plot_path}")


def sizes(largest: int, step: int | None) -> list[int]:
    """The sizes to measure, ascending, `largest` the last: `step` apart from 2 on, or doubling from FIRST_SIZE."""
    if step is not None:
        return [*range(max(step, SMALLEST), largest, step), largest]
    found = []
    size = FIRST_SIZE
    while size < largest:
        found.append(size)
        size *= 2
    return [*found, largest]


# --- what they share ----------------------------------------------------------------------------------------------


def _command(verb: str, what: str, **options: float | None) -> str:
    """The command line that does the same again."""
    words = ["hopchain", "sim", verb, what]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def _read_plan(name: str) -> "Plan":
    import msgspec

    from netsim.plan import decode_plan

    try:
        return decode_plan(Path(name).read_bytes())
    except OSError as error:
        raise LocalMisuse(f"{name} cannot be read: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise LocalMisuse(f"{name} is not a plan: {error}") from None


def _check_paths(report_path: Path | None, plot_path: Path | None) -> None:
    """Complain before the run, not after it."""
    for path in (report_path, plot_path):
        check_folder(path)
    if plot_path is not None:
        from netsim.plot import check_plot

        check_plot(plot_path)


@contextmanager
def _progress(out: Output, what: str, total: float, *, counts: bool = False) -> "Iterator[Callable[[float], None]]":
    """How much of `total` is done and how long the rest may take, in simulated seconds, seeds or nodes, on a terminal
    at standard error; nothing without one or with `--json`. `counts`: as numbers, else in percent."""
    if not out.watched:
        yield lambda done: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    share = MofNCompleteColumn() if counts else TaskProgressColumn()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        share,
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, left="")

        def advance(done: float) -> None:
            elapsed_s = bar.tasks[task].elapsed or 0.0
            bar.update(task, completed=done, left=time_left(elapsed_s, done, total))

        yield advance


def time_left(elapsed_s: float, done: float, total: float) -> str:
    """How long the rest takes when it goes on as on average until now, for people; empty as long as nothing is done.
    (The speed of the last moments says nothing: seeds come several at once.)"""
    if not 0 < done < total:
        return ""
    left_s = elapsed_s * (total - done) / done
    if left_s < MINUTES_FROM_S:
        return f"about {left_s:.0f} s left"
    if left_s < HOURS_FROM_S:
        return f"about {left_s / 60:.0f} min left"
    return f"about {left_s / 3600:.1f} h left"

"""Mutants: rules of the nodes switched off one by one, to show that the simulator sees it (docs/simulator-mutants.md).

The tables are in `netsim.mutants_deciding` and `netsim.mutants_answering`; this is what is done with them.

An `Edit` replaces text of one function of the real code, for as long as `switched_off` lasts. The text must be there
exactly once: a mutant that no longer fits the code fails its test and is brought up to date, it does not pass in
silence. Which seed or scenario catches each mutant, and by which rule, is kept in `mutants.json`. `make mutants` tries
those first and searches anew, from seed 0, where one no longer does. A mutant that names a scenario is looked for there
only.
"""

import argparse
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from netsim.draw import draw_plan
from netsim.fleet import open_fleet
from netsim.mutant import Edit, Mutant
from netsim.mutants_answering import ANSWERING
from netsim.mutants_deciding import DECIDING
from netsim.rule_links import link_rules
from netsim.run import run_plan
from netsim.scenario import load_scenario
from netsim.stage import perform

MAX_SEEDS: Final = 3000  # each mutant is caught within so many
_PACKAGES: Final = ("chain", "routing", "hopchain", "node", "netsim")
_FILE: Final = Path(__file__).with_name("mutants.json")
_PAGE_FILE: Final = Path(__file__).parent.parent / "docs" / "simulator-mutants.md"
_DESIGN: Final = "design.md"  # from the page
PROBLEM_CHARS: Final = 110  # of what a run says, in the table


class Caught(msgspec.Struct, frozen=True, omit_defaults=True):
    """A run that shows that a rule is off, and what saw it: of a drawn seed, or of a scenario that ships."""

    rule: str
    problem: str
    seed: int | None = None
    scenario: str = ""


MUTANTS: Final = (*DECIDING, *ANSWERING)


_PAGE: Final = """# What the simulator catches

A simulator that finds nothing proves nothing, unless it finds what is wrong. So rules of the nodes are switched off one by
one, in the real code (`netsim/mutants.py`), and the swarm runs until a seed shows it. All {count} below are caught: {drawn} by the
swarm, within {max_seeds} seeds, and {staged} by a [scenario](scenarios/README.md) that was written for them, because the moment in
which they do harm is so short that drawn seeds hardly ever meet it. *Seen by* is the invariant that was broken (`netsim/checks.py`), or the error with which a node stopped:
`Corruption` is the database or a replica that refuses a link, `AssertionError` a node that finds itself in the wrong.

`make test` runs the one seed or scenario of each mutant, and the same with nothing switched off. `make mutants` searches anew
and writes this page.

| switched off | rule | what happens then | seed or scenario | seen by | what the run says |
|---|---|---|---|---|---|
{rows}

## Damage

Two checks do not guard against other nodes but against a disk that lies. No schedule of messages and crashes reaches them, so
`tests/netsim/test_damage.py` takes back a confirmation by hand, past the triggers, and shows that the node stops before it
proposes anything. With the check switched off a link that uses the same money twice is decided. The observer sees it, or the
database refuses to write it.

| switched off | damage | seen by |
|---|---|---|
| checksum of the tip's income (design section 2, step 2) | a confirmation by the tip is taken back, with its thread | I4 |
| second thread (step 3) | a confirmation by an older link is taken back, its thread is not | Corruption |

## Not counted

These cannot be caught by tier 1, or were not, and are not in the table:

| rule | why |
|---|---|
| R3 for openings | not seen in 400 seeds: the owner of a later view has the votes of the earlier one before it is ACTIVE (R8), and who holds \
a vote takes phase 1 anyway; the rule is a second net |
| R8, a vote is taken over also where the link before it is not here | not seen in 2,000 seeds: the members must change within \
the second in which a node that a crash left so learns the link again. `tests/node/test_syncing.py` makes it |
| ADR 33, a vote that does not follow counts against its source for its own slot only | it takes a disk that lies. \
`tests/node/test_doubt.py` makes it |
| votes in groups that a node has left are not told as income | it costs answers only while other nodes are down, too, when `unknown` \
is no fault; in the end of a run all are up. `tests/node/test_income.py` makes it |
| R10, a vote or promise counts for its own ballot only | not seen in 400 seeds: a late answer to a proposer's earlier ballot must arrive \
in a later one, between its start and its majority. `tests/node/test_paxos.py` searches all schedules and shows both |
| R13, one of two holders drops a request | not seen in 400 seeds: an inquiry must fail for three seconds at one holder while the other \
has the request decided, and the gateway must not know yet. `tests/node/test_core_chaos.py` shows it in a world made for it |
| R13, a refusal of an earlier hand-over counts | not seen in 6,000 seeds: a refusal must be on its way while its gateway starts again, \
and the request must come to it once more. `tests/node/test_declined.py` makes it |
| R12, installed views are counted, and who starts waits for who may dial it | the others must be cut off so that an old disk first meets those \
who know least, and in the swarm all know of what it lacks before it comes back. `tests/node/test_identity.py` makes both |
| R12, the lock and the marker of a data directory | they are the process's, not the core's (`tests/node/test_lock.py`, `test_marker.py`) |
"""

BY_NAME: Final[Mapping[str, Mutant]] = {mutant.name: mutant for mutant in MUTANTS}


@contextmanager
def switched_off(mutant: Mutant) -> Iterator[None]:
    """Within it this process runs the mutant. Raises `AssertionError` when an edit does not fit the code."""
    undo: list[tuple[object, str, object]] = []
    try:
        for edit in mutant.edits:
            _apply(edit, undo)
        yield
    finally:
        for owner, name, original in reversed(undo):
            setattr(owner, name, original)


def _apply(edit: Edit, undo: list[tuple[object, str, object]]) -> None:
    """Put the changed function in the place of the original, also where it was imported by name."""
    module_name, _, path = edit.target.partition(":")
    module = importlib.import_module(module_name)
    *parents, name = path.split(".")
    owner: object = module
    for parent in parents:
        owner = getattr(owner, parent)
    original = inspect.getattr_static(owner, name)
    function = original.fget if isinstance(original, property) else original
    assert inspect.isfunction(function), edit.target
    source = getattr(function, "mutated_source", None) or textwrap.dedent(inspect.getsource(function))
    assert source.count(edit.old) == 1, f"{edit.target} does not hold {edit.old!r} once: bring this mutant up to date"
    source = source.replace(edit.old, edit.new)
    made: dict[str, object] = {}
    exec(compile(source, f"<mutant of {edit.target}>", "exec"), vars(module), made)  # noqa: S102  that is its purpose
    mutated = made[name]
    if not isinstance(mutated, property):
        vars(mutated)["mutated_source"] = source  # a second edit of the same function goes on from here
    owners = [owner]
    if owner is module:
        owners += [m for n, m in list(sys.modules.items()) if n.split(".")[0] in _PACKAGES and m is not module]
    for one in owners:
        if vars(one).get(name) is original:
            undo.append((one, name, original))
            setattr(one, name, mutated)


def run_seed(mutant: Mutant, seed: int) -> Caught:
    """What the run of a seed shows with the rule off; no `rule` when nothing."""
    with switched_off(mutant):
        result = run_plan(draw_plan(seed))
    return Caught(result.rule, result.problem, seed)


def run_scenario(mutant: Mutant, name: str) -> Caught:
    """What a scenario that ships shows with the rule off; no `rule` when no invariant is broken."""
    with switched_off(mutant):
        performance = perform(load_scenario(name))
    return Caught(performance.rule, performance.problem, scenario=name)


def run_again(mutant: Mutant, caught: Caught) -> Caught:
    """The run that caught the mutant once."""
    return run_scenario(mutant, caught.scenario) if caught.seed is None else run_seed(mutant, caught.seed)


def find(mutant: Mutant, seeds: Iterable[int] = range(MAX_SEEDS)) -> Caught | None:
    """The mutant's scenario, or the first of `seeds` that catches it; rules about views are tried where the members
    change."""
    if mutant.scenario:
        caught = run_scenario(mutant, mutant.scenario)
        return caught if caught.rule else None
    for seed in seeds:
        if mutant.changing and not draw_plan(seed).spares:
            continue
        caught = run_seed(mutant, seed)
        if caught.rule:
            return caught
    return None


def load_caught() -> dict[str, Caught]:
    """What the last search found, by name of the mutant."""
    if not _FILE.exists():
        return {}
    return msgspec.json.decode(_FILE.read_bytes(), type=dict[str, Caught])


def search(jobs: int, on_found: Callable[[str, Caught | str], None]) -> dict[str, Caught]:
    """Find a seed for every mutant; `on_found` is told of each, or why there is none. On `jobs` processes."""
    found: dict[str, Caught] = {}
    with open_fleet(jobs) as fleet:
        for name, caught in fleet.map(_find_by_name, [mutant.name for mutant in MUTANTS]):
            on_found(name, caught)
            if isinstance(caught, Caught):
                found[name] = caught
    return {mutant.name: found[mutant.name] for mutant in MUTANTS if mutant.name in found}


def _find_by_name(name: str) -> tuple[str, Caught | str]:
    """The seed of the last search when it still does, else the first that does; or what is wrong with the mutant."""
    known, mutant = load_caught().get(name), BY_NAME[name]
    try:
        if known is not None and known.scenario == mutant.scenario:
            again = run_again(mutant, known)
            if again.rule:
                return name, again
        return name, find(mutant) or f"not caught in {mutant.scenario or f'{MAX_SEEDS} seeds'}"
    except AssertionError as error:
        return name, str(error)


def render_page(caught: Mapping[str, Caught]) -> str:
    """The page of the documentation."""
    rows = [_row(mutant, caught[mutant.name]) for mutant in MUTANTS if mutant.name in caught]
    staged = sum(one.seed is None for one in caught.values())
    return link_rules(_PAGE, _DESIGN).format(
        count=len(rows), drawn=len(rows) - staged, staged=staged, rows="\n".join(rows), max_seeds=MAX_SEEDS
    )


def _row(mutant: Mutant, caught: Caught) -> str:
    rule, what = link_rules(mutant.rule, _DESIGN), link_rules(mutant.what, _DESIGN)
    return f"| {mutant.name} | {rule} | {what} | {_where(caught)} | {caught.rule} | {_brief(caught.problem)} |"


def _where(caught: Caught) -> str:
    return str(caught.seed) if caught.seed is not None else f"[{caught.scenario}](scenarios/{caught.scenario}.md)"


def _brief(problem: str) -> str:
    text = " ".join(re.sub(r"\b[0-9a-f]{12,}\b", "..", problem).split()).replace("|", "\\|")
    return text if len(text) <= PROBLEM_CHARS else text[: PROBLEM_CHARS - 2] + ".."


def main() -> None:
    """Search anew, and write `mutants.json` and the page."""
    parser = argparse.ArgumentParser(prog="python -m netsim.mutants", description=main.__doc__)
    parser.add_argument("jobs", nargs="?", type=int, default=1, help="on so many processes (default: 1)")
    jobs: int = parser.parse_args().jobs

    def tell(name: str, caught: Caught | str) -> None:
        if isinstance(caught, Caught):
            where = caught.scenario or f"seed {caught.seed}"
            caught = f"{where}: {caught.rule}: {caught.problem[:100]}"
        sys.stdout.write(f"{name:40s} {caught}\n")
        sys.stdout.flush()

    found = search(jobs, tell)
    _FILE.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    _PAGE_FILE.write_text(render_page(found), encoding="utf-8")
    if len(found) < len(MUTANTS):
        raise SystemExit(f"{len(MUTANTS) - len(found)} mutants were not caught: mend them or explain them in the page")


if __name__ == "__main__":
    main()

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
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import balances
import clients
import compare
import floor_tables
import kept
import library
import memory
import scale
import shares
import takeover
import text
from text import Kept

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
PLACE: Final = re.compile(r"(<!-- table: ([a-z-]+) -->)(\n?)(.*?)(\n?)(<!-- end -->)", re.DOTALL)

TABLES: Final[dict[str, Callable[[Kept], str]]] = {
    "compare-run": compare.compare_run,
    "compare": compare.compare_table,
    "others": compare.others,
    "goals": compare.goals_reached,
    "costs": compare.costs,
    "balance": compare.balance,
    "balances": balances.beyond_memory,
    "clients": lambda results: clients.table(results["clients"]),
    "clients-peer": clients.peer,
    "library": library.told,
    "memory": memory.by_minute,
    "memory-level": memory.level,
    "memory-rate": memory.rate,
    "scale-commit": partial(text.commit, "scale"),
    "scale": scale.scale_table,
    "growth": scale.growth,
    "scale-bulk-commit": partial(text.commit, "scale-bulk"),
    "scale-bulk": scale.bulk_table,
    "takeover": takeover.p99s,
    "shares-commit": partial(text.commit, "shares"),
    "shares": shares.shares_table,
    "pictures": shares.pictures,
    "floor-commit": partial(text.commit, "floor"),
    "floor-run": floor_tables.floor_run,
    "floor": floor_tables.floor_table,
    "uniform-reach": partial(floor_tables.reach, "uniform", "uniform"),
    "hot-recipient-reach": partial(floor_tables.reach, "hot-recipient", "hot-recipient"),
    "zipf-reach": partial(floor_tables.reach, "zipf", "uniform"),
    "bulk-reach": partial(floor_tables.reach, "bulk", "bulk"),
    "bulk-left": floor_tables.bulk_left,
    "needed": floor_tables.needed,
    "leave": floor_tables.leave,
}


def read(directory: Path = RESULTS) -> Kept:
    """All kept results. Raises `OSError` and `ValueError`."""
    return {name: json.loads((directory / f"{name}.json").read_text(encoding="utf-8")) for name in FILES}


def render(name: str, results: Kept) -> str:
    """One of TABLES. Raises `ValueError` when a result lacks what it shows."""
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

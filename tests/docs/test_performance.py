"""docs/performance.md shows the results that are kept beside it, and its sentences say nothing else."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from node.balances import MAX_BALANCES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "performance.md").read_text()


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "docs" / "performance" / f"{name}.json").read_text())
    return found


def test_the_tables_are_what_the_kept_results_say() -> None:
    """If not: `python bench/tables.py`."""
    done = subprocess.run(
        [sys.executable, "bench/tables.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_mark_leaves_the_text_after_it_markdown() -> None:
    """A line that begins with a comment is HTML up to its end, so a mark there stands alone."""
    for line in map(str.strip, PAGE.splitlines()):
        assert not line.startswith("<!--") or re.fullmatch(r"<!-- (table: [a-z-]+|end) -->", line), line


def test_what_sentences_say_of_the_tables_without_numbers_holds() -> None:
    """If not, the sentence is to be written anew."""
    found, floors, many = result("compare"), result("floor")["profiles"], result("clients")
    ours, ratios = found["hopchain"], {row["profile"]: row for row in found["ratios"]}

    goal = {profile: row["goal"] * row["peer_per_s"] for profile, row in ratios.items()}
    for sentence, holds in (
        ("A hot sender is faster than each of PostgreSQL's variants", ratios["hot-sender"]["ratio"] > 1),
        (
            "and than hopchain's own uniform load",
            ours["hot-sender"]["completed_per_s"] > ours["uniform"]["completed_per_s"],
        ),
        ("What keeps the others out of reach", "within what the floor leaves" not in PAGE),
        (
            "With 256\n  clients and more it is reached",
            all(
                row["completed_per_s"] >= ratios["hot-sender"]["goal"] * many["postgres"]["completed_per_s"]
                for row in many["hopchain"]
                if row["clients"] >= 256
            ),
        ),
        (
            "**Hot sender**: the floor leaves it",
            all(run["most_per_s"] > 1.2 * goal["hot-sender"] for run in floors["hot-sender"]),
        ),
        (
            "the interpreter takes more than the whole floor",
            all(run["interpreter_us"] > run["floor_us"] for run in floors["hot-sender"]),
        ),
    ):
        assert sentence in PAGE and holds, sentence


def test_the_page_says_what_its_numbers_leave_out() -> None:
    """As long as the programs measure no more."""
    assert f"the balances of up to {MAX_BALANCES:,} accounts in memory" in PAGE
    for sentence in (
        "in `hot-recipient` and `hot-sender` nobody does",
        "its connections have no TLS, and its clients sign nothing",
    ):
        assert sentence in " ".join(PAGE.split()), sentence
    settings = (ROOT / "bench" / "postgres.py").read_text()
    (wal,) = re.findall(r"^max_wal_size = (\w+)$", settings, re.MULTILINE)
    assert f"`max_wal_size = {wal}`" in PAGE and 'primary.sql("CHECKPOINT")' in settings and "\nssl" not in settings


def test_what_compiling_gave_is_what_the_steps_say() -> None:
    """It cannot be measured with this tree: the page has it from there."""
    steps = " ".join((ROOT / "docs" / "performance-steps.md").read_text().split())
    ((share, runs),) = re.findall(r"compiled by mypyc \(([\d.]+) % in (\w+) runs by turns", PAGE)
    assert "*The state machine compiled* by mypyc (30 modules: rules, links, requests, store, owner," in steps
    assert f"{share} % less CPU" in steps and f"{runs.capitalize()} runs of uniform by turns" in steps

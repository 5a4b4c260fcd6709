"""Results that docs/performance.md shows: the programs of this folder write them with `--keep FILE`, bench/tables.py
reads them.

A kept result names the commit that was measured and holds what the tables need, no more. No dates: git knows them.
"""

import argparse
import json
import os
import platform
import re
import sqlite3
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]


def options(parser: argparse.ArgumentParser) -> None:
    """Options of each program that keeps its result."""
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write what docs/performance.md shows of it (JSON)")
    parser.add_argument("--commit", metavar="ID", help="that is measured, for --keep (default: what git says)")


def prepare(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> None:
    """Look before the minutes of a measurement whether its result can be kept; sets `asked.commit` and
    `asked.load_average`, which says what else ran before."""
    if asked.keep is None:
        return
    if not asked.keep.resolve().parent.is_dir():
        parser.error(f"--keep {asked.keep}: there is no directory {asked.keep.resolve().parent}")
    asked.load_average = round(os.getloadavg()[0], 2)
    asked.commit = asked.commit or head(ROOT)
    if asked.commit is None:
        parser.error(
            "--keep: git does not say which commit this is, or something was changed since; commit, or name it: --commit ID"
        )


def head(tree: Path) -> str | None:
    """The commit of a clone, shortened; None without one, and when anything but docs/ differs from it."""
    if not (tree / ".git").exists():
        return None
    git = ["git", "-C", str(tree)]
    if subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", ":!docs"], check=False).returncode != 0:
        return None
    return subprocess.run(
        [*git, "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


def write(asked: argparse.Namespace, document: dict[str, Any]) -> None:
    """Keep a result, when that was asked for."""
    if asked.keep is not None:
        asked.keep.write_text(
            dumps({"commit": asked.commit, "load_average": asked.load_average, **document}), encoding="utf-8"
        )


def dumps(document: dict[str, Any]) -> str:
    """JSON with a line for each innermost object or list, so that a row of a table is a line."""
    text = json.dumps(document, indent=2)
    return re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda found: re.sub(r"\s*\n\s*", " ", found[0]), text) + "\n"


def picked(row: dict[str, Any], *keys: str) -> dict[str, Any]:
    """These keys of a row."""
    return {key: row[key] for key in keys}


def machine() -> dict[str, Any]:
    """What a result depends on and a commit does not say."""
    return {
        "cores": os.cpu_count(),
        "cpu": cpu(Path("/proc/cpuinfo")),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "kernel": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "file_system": file_system(Path(tempfile.gettempdir())),
        "sqlite": sqlite3.sqlite_version,
        "python": platform.python_version(),
    }


def cpu(info: Path) -> str:
    """What the kernel calls the processor; "unknown" where it does not say."""
    try:
        lines = info.read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def file_system(path: Path) -> str:
    """Its type where a path is, as the kernel calls it; "unknown" where that cannot be read."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    above = {str(parent) for parent in (path.resolve(), *path.resolve().parents)}
    types = {mount[1]: mount[2] for mount in mounts if mount[1] in above}
    return types[max(types, key=len)] if types else "unknown"

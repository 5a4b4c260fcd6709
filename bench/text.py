"""Text of docs/performance.md: numbers, lists and tables as it writes them."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

Kept = dict[str, Any]  # name of a file -> its document

NUMBERS: Final = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


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


def span(values: Sequence[float], digits: str) -> str:
    """From the least to the most."""
    least, most = f"{min(values):{digits}}", f"{max(values):{digits}}"
    return least if least == most else f"{least} to {most}"


def in_words(number: int) -> str:
    """Up to ten as a word."""
    return NUMBERS[number] if number < len(NUMBERS) else str(number)


def in_runs(count: int) -> str:
    """in the three runs"""
    return "in the run" if count == 1 else f"in the {in_words(count)} runs"


def release(version: str) -> str:
    """3.40 of 3.40.1"""
    return ".".join(version.split(".")[:2])


def commit(name: str, results: Kept) -> str:
    """Which one a result is of. Raises `ValueError` when it does not say."""
    found = results[name]["commit"]
    if not isinstance(found, str):
        raise ValueError(f"docs/performance/{name}.json names no commit: measure again")
    return f"at commit `{found}`"

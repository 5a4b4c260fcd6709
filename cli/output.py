"""What commands print, and the exit codes.

For people: text, and tables with colours on a terminal; the same as plain aligned columns when piped. With `--json`:
one JSON document on standard output and nothing else (keys: docs/cli-json.md). Errors go to standard error, with
`--json` also as a document `{"error": code, "message": text}`.
"""

import enum
import json
import sys
from collections.abc import Mapping, Sequence

import click

from chain.errors import Corruption, HopchainError, LocalMisuse, Quarantined, Removed

JsonValue = str | int | float | bool | None | Sequence["JsonValue"] | Mapping[str, "JsonValue"]


def counted(count: int, what: str) -> str:
    """`1 row`, `2 rows`, `1,000 rows`: of a word that takes an s."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


class Exit(enum.IntEnum):
    """What a shell sees."""

    DONE = 0
    REJECTED = 1  # by the network, or an audit failed
    USAGE = 2
    UNREACHABLE = 3  # or no answer in time
    OUT_FOR_GOOD = 4  # this node was removed or quarantined: it must not be started again
    DISK = 5  # a file of this user could not be written


class CommandFailed(HopchainError):
    """A command did not do what was asked: exit code, a stable code and what to do."""

    def __init__(self, exit_code: Exit, code: str, text: str) -> None:
        super().__init__(text)
        self.exit_code = exit_code
        self.code = code


def describe(error: HopchainError) -> tuple[Exit, str, str]:
    """(exit code, stable code, text) of an error."""
    from hopchain.errors import CallRefused, Unreachable

    if isinstance(error, CommandFailed):
        return error.exit_code, error.code, str(error)
    if isinstance(error, Unreachable):
        return Exit.UNREACHABLE, "unreachable", str(error)
    if isinstance(error, CallRefused):
        return Exit.REJECTED, error.code, str(error)
    if isinstance(error, LocalMisuse):
        return Exit.USAGE, "usage", str(error)
    if isinstance(error, Corruption):
        return Exit.REJECTED, "corruption", str(error)
    if isinstance(error, Removed | Quarantined):
        return Exit.OUT_FOR_GOOD, type(error).__name__.lower(), str(error)
    return Exit.REJECTED, "fault", str(error)


class Output:
    """Where one command prints: for people, or JSON."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    @property
    def fancy(self) -> bool:
        """True on a terminal that a person looks at."""
        return not self.as_json and sys.stdout.isatty()

    def data(self, document: JsonValue) -> None:
        """The result as JSON; nothing without `--json`."""
        if self.as_json:
            click.echo(json.dumps(document, indent=2))

    def say(self, text: str = "", *, colour: str | None = None, bold: bool = False) -> None:
        """A line for people; nothing with `--json`. Colours vanish when piped."""
        if not self.as_json:
            click.secho(text, fg=colour, bold=bold)

    def note(self, text: str) -> None:
        """A remark on standard error, for people."""
        if not self.as_json:
            click.echo(text, err=True)

    def fields(self, rows: Sequence[tuple[str, str]]) -> None:
        """Name and value, one pair a line, aligned."""
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            self.say(f"  {name.ljust(width)}  {value}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
        """A table: drawn by rich on a terminal, aligned columns otherwise. `right`: columns of numbers."""
        if self.as_json:
            return
        if self.fancy:
            _draw(columns, rows, right)
            return
        widths = [max(len(c), *(len(r[i]) for r in rows)) if rows else len(c) for i, c in enumerate(columns)]
        for row in (columns, *rows):
            cells = [
                c.rjust(w) if name in right else c.ljust(w) for c, w, name in zip(row, widths, columns, strict=True)
            ]
            self.say("  ".join(cells).rstrip())

    def fail(self, error: HopchainError) -> Exit:
        """Print an error; the exit code to leave with."""
        exit_code, code, text = describe(error)
        if self.as_json:
            self.data({"error": code, "message": text})
        else:
            click.secho("error: ", fg="red", bold=True, nl=False, err=True)
            click.echo(text, err=True)
        return exit_code


def _draw(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console().print(table)


_STYLES = {
    "completed": "green",
    "alive": "green",
    "confirmed": "green",
    "down": "bold red",
    "incoming": "yellow",
    "unknown": "yellow",
}

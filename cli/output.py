"""What commands print, and the exit codes.

For people: text, and tables with colours on a terminal; the same as plain aligned columns when piped. With `--json`:
one JSON document on standard output and nothing else (keys: docs/cli-json.md). Errors go to standard error, with
`--json` also as a document `{"error": code, "message": text}`, on one line: it may come behind others.

Names, references and reasons come from others: what people are shown is one line for each text, and what is not
printable in it is escaped (hopchain.printable).

With NO_COLOR nothing is coloured or bold; where TERM is `dumb`, nothing is drawn either.
"""

import codecs
import enum
import errno
import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import click

from chain.errors import Corruption, HopchainError, LocalMisuse, NotReady, Quarantined, Removed
from hopchain.printable import shown

if TYPE_CHECKING:
    from rich.console import Console

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
    DISK = 5  # a file of this user could not be written, or standard output
    BUG = 70  # of this program, as sysexits.h has it: nothing that a script should take for an answer


class CommandFailed(HopchainError):
    """A command did not do what was asked: exit code, a stable code and what to do."""

    def __init__(self, exit_code: Exit, code: str, text: str) -> None:
        super().__init__(text)
        self.exit_code = exit_code
        self.code = code


class OutputLost(CommandFailed):
    """Standard output takes no more, so that what was to be said there is lost. `quiet`: whoever read it has gone."""

    def __init__(self, error: OSError) -> None:
        super().__init__(
            Exit.DISK,
            "output",
            f"standard output could not be written ({error.strerror or error}), so the result is lost",
        )
        self.quiet = isinstance(error, BrokenPipeError)


def describe(error: HopchainError) -> tuple[Exit, str, str]:
    """(exit code, stable code, text) of an error."""
    from hopchain.errors import CallRefused, ClientError

    if isinstance(error, CommandFailed):
        return error.exit_code, error.code, str(error)
    if isinstance(error, CallRefused):
        return Exit.REJECTED, error.code, str(error)
    if isinstance(error, ClientError):  # Unreachable and its like: no rejection
        return Exit.UNREACHABLE, "unreachable", str(error)
    if isinstance(error, LocalMisuse):
        return Exit.USAGE, "usage", str(error)
    if isinstance(error, Corruption):
        return Exit.REJECTED, "corruption", str(error)
    if isinstance(error, Removed | Quarantined):
        return Exit.OUT_FOR_GOOD, type(error).__name__.lower(), str(error)
    if isinstance(error, NotReady):
        return Exit.REJECTED, "not_ready", str(error)
    return Exit.REJECTED, "fault", str(error)


class Output:
    """Where one command prints: for people, or JSON."""

    def __init__(self, as_json: bool, on_sending: Callable[[], object] = lambda: None) -> None:
        self.as_json = as_json
        self._on_sending = on_sending  # what is to be done when a request leaves
        self._printed = False
        self._sent = ""  # how to learn what became of what was sent
        self._tell: Callable[[], object] | None = None  # prints what is known of it

    @property
    def fancy(self) -> bool:
        """True on a terminal that a person looks at."""
        # None: it was closed from the start
        return not self.as_json and sys.stdout is not None and sys.stdout.isatty() and not _is_dumb()

    @property
    def watched(self) -> bool:
        """True when standard error is a terminal, where a person sees how far a command is, also while its result is
        piped."""
        return not self.as_json and sys.stderr is not None and sys.stderr.isatty() and not _is_dumb()

    def sending(self, what: str, tell: Callable[[], object]) -> None:
        """A request leaves now. `what` says how to learn what became of it, in case its answer cannot be told; `tell`
        prints what is known of it as the command would at its end, in case it is interrupted."""
        self._on_sending()
        self._sent, self._tell = what, tell
        self._printed = False  # what was printed before is not its result

    def data(self, document: JsonValue) -> None:
        """The result as JSON; nothing without `--json`. Raises `OutputLost`, as everything that prints."""
        if self.as_json:
            self._print(json.dumps(document, indent=2))

    def event(self, document: JsonValue) -> None:
        """One of many documents, or one that may come behind them, on one line; nothing without `--json`."""
        if self.as_json:
            self._print(json.dumps(document))

    def say(self, text: str = "", *, colour: str | None = None, bold: bool = False) -> None:
        """A line for people; nothing with `--json`. Colours vanish when piped."""
        if not self.as_json:
            self._print(_styled(shown(text), colour, bold=bold))

    def script(self, text: str) -> None:
        """Lines of this program's own for another one, as they are; nothing with `--json`."""
        if not self.as_json:
            self._print(text)

    def note(self, text: str) -> None:
        """A remark on standard error, for people."""
        if not self.as_json:
            self.warn(text)

    def warn(self, text: str) -> None:
        """A line on standard error, also with `--json`. Where that takes none, nobody can be told."""
        self._echo_error(shown(text))

    def fields(self, rows: Sequence[tuple[str, str]]) -> None:
        """Name and value, one pair a line, aligned."""
        rows = [(name, shown(value)) for name, value in rows]
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            self.say(f"  {name.ljust(width)}  {value}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
        """A table: drawn by rich on a terminal that is wide enough for it, aligned columns otherwise. `right`: columns
        of numbers."""
        if self.as_json:
            return
        rows = [[shown(cell) for cell in row] for row in rows]
        if self.fancy and _draw(columns, rows, right):
            self._printed = True
            return
        widths = [max(len(c), *(len(r[i]) for r in rows)) if rows else len(c) for i, c in enumerate(columns)]
        for row in (columns, *rows):
            cells = [
                c.rjust(w) if name in right else c.ljust(w) for c, w, name in zip(row, widths, columns, strict=True)
            ]
            self.say("  ".join(cells).rstrip(), bold=row is columns)

    def fail(self, error: HopchainError) -> Exit:
        """Print an error; the exit code to leave with."""
        exit_code, code, text = describe(error)
        if isinstance(error, OutputLost):
            if self._sent or not error.quiet:
                self._error(f"{text}. {self._sent}" if self._sent else text)
            return exit_code
        if self.as_json:
            with suppress(OutputLost):
                self.event({"error": code, "message": text})
        else:
            self._error(text)
        return exit_code

    def bug(self, error: BaseException) -> Exit:
        """Print an error that nobody foresaw, with where it happened; the exit code to leave with. A file that this
        user may not use, or a disk that takes no more, is no fault of this program."""
        first = error
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        if isinstance(first, OSError) and first.filename is not None and first.errno in _OF_A_FILE:
            text = f"{os.fsdecode(first.filename)} cannot be used ({first.strerror})"
            return self.fail(CommandFailed(Exit.DISK, "disk", f"{text}. {self._sent}" if self._sent else text))
        for line in "".join(traceback.format_exception(error)).splitlines():
            self.warn(line)
        error = first
        text = f"this is a fault of this program, please report it: {type(error).__name__}: {error}"
        text = f"{text}. {self._sent}" if self._sent else text
        if self.as_json and not self._printed:
            with suppress(OutputLost):
                self.event({"error": "internal", "message": text})
        self._error(text)
        return Exit.BUG

    def interrupted(self) -> None:
        """Print what is known when Ctrl-C ends the command."""
        self.note("interrupted")
        try:
            if self._printed:
                return  # it has a result
            if self._tell is not None:
                self._tell()
            elif self.as_json:
                self.event({"error": "interrupted", "message": "interrupted before there was a result"})
        except OutputLost as error:
            self.fail(error)

    def _print(self, text: str) -> None:
        self._printed = True
        try:
            click.echo(text)
        except OSError as error:
            raise lost(error) from None

    def _error(self, text: str) -> None:
        self._echo_error(_styled("error: ", "red", bold=True) + shown(text))

    def _echo_error(self, text: str) -> None:
        with suppress(OSError):
            click.echo(text, err=True)


def _is_dumb() -> bool:
    """True where a terminal takes text alone."""
    return os.environ.get("TERM", "") in _DUMB


def _has_style() -> bool:
    """False where nothing is to be bold or coloured (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and not _is_dumb()


def _styled(text: str, colour: str | None, *, bold: bool) -> str:
    return click.style(text, fg=colour, bold=bold or None) if (colour or bold) and _has_style() else text


def console(*, stderr: bool = False) -> "Console":
    """What rich draws on: standard output or error."""
    from rich.console import Console

    return Console(stderr=stderr, color_system="auto" if _has_style() else None)


def write_any_text() -> None:
    """Standard output and error take every text from here on: what their encoding does not have is written as what it
    has."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors=_PLAIN_TEXT)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Of a character that an encoding does not have, the nearest that all have."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(c, "?") for c in error.object[error.start : error.end]), error.end


_DUMB: Final = frozenset({"dumb", "unknown"})  # as rich has it
_OF_A_FILE: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENAMETOOLONG}
)
_PLAIN: Final = {"✓": "ok:", "✗": "wrong:"}
_PLAIN_TEXT: Final = "hopchain.plain"
codecs.register_error(_PLAIN_TEXT, _plain)


def lost(error: OSError) -> OutputLost:
    """The error of a print that failed. Standard output leads nowhere from here on: what waits in its buffer would be
    tried again, and fail again, when the interpreter ends, which then takes an exit code of its own."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    return OutputLost(error)


def _draw(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> bool:
    """Draw it. False, and nothing is drawn, where the terminal is so narrow that words would be torn apart: ids,
    addresses and amounts are read and copied whole."""
    from rich import box
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for i, column in enumerate(columns):
        words = all(" " not in row[i] for row in rows)  # sentences may be wrapped, between words
        table.add_column(column, justify="right" if column in right else "left", no_wrap=words, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    terminal = console()
    if Measurement.get(terminal, terminal.options.update(max_width=_UNLIMITED), table).minimum > terminal.width:
        return False
    terminal.print(table)
    return True


_UNLIMITED: Final = 1_000_000  # columns of a terminal


_STYLES = {
    "completed": "green",
    "alive": "green",
    "confirmed": "green",
    "down": "bold red",
    "incoming": "yellow",
    "unasked": "yellow",
    "unknown": "yellow",
}

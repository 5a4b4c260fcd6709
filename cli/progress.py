"""How far a long command is, for people."""

from types import TracebackType
from typing import TYPE_CHECKING, Self

from cli.output import Output, console

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID


class Progress:
    """A progress bar on a terminal, nothing when piped or with `--json`."""

    def __init__(self, out: Output) -> None:
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._shown = out.fancy

    def __enter__(self) -> Self:
        if self._shown:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console())
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, what: str, total: int) -> None:
        """Start the next step."""
        if self._bar is not None:
            self._task = self._bar.add_task(what, total=total)

    def advance(self, count: int = 1) -> None:
        """So many more of it are done."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, count)

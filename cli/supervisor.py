"""Node processes of one machine: started, restarted when they die, all stopped at the end.

Each node runs as `python -P -m cli.main node DIR --supervised` in a session of its own, so that Ctrl-C in the terminal
reaches only this process, which then stops the nodes in order. `-P`: a `cli.py` or `node.py` in the current directory
is somebody else's, and is not run. `--supervised` makes a node end when its standard input closes: also `kill -9` of
the supervisor leaves no process behind. What a node prints goes to `node.log` in its directory.

Which ends a node is started again after is the table of exit codes in docs/operations.md; the systemd unit keeps to the
same.
"""

import enum
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.abc
import msgspec

from cli.output import Exit
from cli.upchecks import left_in
from node.lock import lock_holder

FIRST_DELAY_S: Final = 0.2  # before a node that died is started again; doubles with each early death
LONGEST_DELAY_S: Final = 5.0
STEADY_S: Final = 10.0  # a node that lived this long starts afresh with the delays, and with what it may fail
# In a row, before one stays down: a sixth start would end like them; as StartLimitBurst of the unit
QUICK_FAILURES: Final = 5
STAYS_DOWN: Final = frozenset({Exit.USAGE, Exit.OUT_FOR_GOOD})  # started again it would say the same, or do harm
STOP_S: Final = 10.0  # for a node to end by itself before it is killed
# For another process to let go of a node's directory: where another `up` was killed just now, its nodes are still
# ending.
HELD_S: Final = STOP_S + 1.0
LOG_NAME: Final = "node.log"
_TAIL_BYTES: Final = 2000
# The log of a node that one of these ended says nothing of it.
_FROM_OUTSIDE: Final = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


class Change(enum.StrEnum):
    """What happened to a process."""

    STARTED = "started"
    ENDED = "ended"
    STOPPED = "stopped"


class Event(msgspec.Struct, frozen=True):
    """One change of one node. `code`: exit code, negative for a signal. `delay_s`: until it is started again, None when
    it is not. `holder`: the process that has its directory, so that none was started."""

    node: str
    change: Change
    pid: int | None  # None: it could not be started
    code: int | None = None
    delay_s: float | None = None
    last_words: str = ""
    holder: int | None = None


class Supervisor:
    """Runs the nodes in these directories until it is cancelled. One stays down when its files or ports are wrong, when
    it was removed or quarantined or has left, when another process holds its directory for HELD_S, and when it failed
    QUICK_FAILURES times in a row within STEADY_S of its start. What a signal ended, SIGTERM too, did not fail, nor did
    what found its directory held."""

    def __init__(
        self,
        directories: Sequence[Path],
        on_event: Callable[[Event], None],
        *,
        command: Callable[[Path], list[str]] | None = None,
        stop_s: float = STOP_S,
        steady_s: float = STEADY_S,
    ) -> None:
        self._directories = directories
        self._on_event = on_event
        self._command = command or node_command
        self._stop_s = stop_s
        self._steady_s = steady_s

    async def run(self) -> None:
        """Keep all nodes running. When cancelled, stop them all and wait until the last has ended."""
        async with anyio.create_task_group() as tasks:
            for directory in self._directories:
                tasks.start_soon(self._keep, directory)

    async def _keep(self, directory: Path) -> None:
        delay_s = FIRST_DELAY_S
        failures = 0
        while True:
            if not await self._is_free(directory):
                return
            if left_in(directory) is not None:
                self._on_event(Event(directory.name, Change.ENDED, None, Exit.OUT_FOR_GOOD))
                return
            begin = anyio.current_time()
            try:
                process = await self._start(directory)
            except OSError as error:  # its directory has gone, no process or file can be made: the others run on
                self._on_event(Event(directory.name, Change.ENDED, None, None, delay_s, f"not started: {error}"))
                await anyio.sleep(delay_s)
                delay_s = min(delay_s * 2, LONGEST_DELAY_S)
                continue
            self._on_event(Event(directory.name, Change.STARTED, process.pid))
            try:
                code = await process.wait()
            except BaseException:
                with anyio.CancelScope(shield=True):
                    code = await stop(process, self._stop_s)
                self._on_event(Event(directory.name, Change.STOPPED, process.pid, code))
                raise
            if anyio.current_time() - begin >= self._steady_s:
                delay_s, failures = FIRST_DELAY_S, 0
            held = code == Exit.USAGE and lock_holder(directory) is not None  # another process was faster
            failures += code > 0 and not held
            words = "" if -code in _FROM_OUTSIDE else last_words(directory / LOG_NAME)
            if left_in(directory) is not None or (code in STAYS_DOWN and not held) or failures == QUICK_FAILURES:
                self._on_event(Event(directory.name, Change.ENDED, process.pid, code, None, words))
                return
            self._on_event(Event(directory.name, Change.ENDED, process.pid, code, delay_s, words))
            await anyio.sleep(delay_s)
            delay_s = min(delay_s * 2, LONGEST_DELAY_S)

    async def _is_free(self, directory: Path) -> bool:
        """Wait until no other process holds the directory of a node that has not left. False when one does after
        HELD_S. Started meanwhile, the node would only say so, in the log of the one that runs."""
        begin = anyio.current_time()
        delay_s = FIRST_DELAY_S
        while left_in(directory) is None and (holder := lock_holder(directory)) is not None:
            wait_s = delay_s if anyio.current_time() - begin < HELD_S else None
            words = f"{directory} is in use by process {holder}"
            self._on_event(Event(directory.name, Change.ENDED, None, Exit.USAGE, wait_s, words, holder))
            if wait_s is None:
                return False
            await anyio.sleep(wait_s)
            delay_s = min(delay_s * 2, LONGEST_DELAY_S)
        return True

    async def _start(self, directory: Path) -> anyio.abc.Process:
        with (directory / LOG_NAME).open("ab") as log:
            return await anyio.open_process(
                self._command(directory),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def node_command(directory: Path) -> list[str]:
    """The command that runs the node of this directory under a supervisor."""
    return [sys.executable, "-P", "-m", "cli.main", "node", str(directory), "--supervised"]


async def stop(process: anyio.abc.Process, stop_s: float = STOP_S) -> int:
    """End a process: SIGTERM, then SIGKILL when it does not end by itself. Its exit code."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        with anyio.move_on_after(stop_s) as patience:
            await process.wait()
        if patience.cancelled_caught:
            process.kill()
    return await process.wait()


def last_words(log: Path) -> str:
    """The last line of a log, for people who ask why a node ended."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""

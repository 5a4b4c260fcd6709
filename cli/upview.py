"""What `hopchain up` shows: one status line per node, alive on a terminal, lines of changes when piped."""

import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from chain.errors import LocalMisuse
from cli.home import KnownNode, Network, remember
from cli.output import Exit, JsonValue, Output, OutputLost, console
from cli.session import open_client
from cli.supervisor import LOG_NAME, QUICK_FAILURES, Change, Event, Supervisor
from cli.upchecks import check_ports, left_in, only_up
from hopchain import Client, ClientError, Status
from hopchain.printable import shown
from node.signals import ending_signals

if TYPE_CHECKING:
    from rich.console import ConsoleDimensions, Group
    from rich.live import Live

REFRESH_S: Final = 1.0  # how often nodes are asked how they are
FIRST_REFRESH_S: Final = 0.1  # while one is starting


class _Line:
    """What is known about one node."""

    def __init__(self, node: KnownNode) -> None:
        self.node = node
        self.pid: int | None = None
        self.state = "starting"
        self.starts = 0
        self.status: Status | None = None
        self.note = ""


class View:
    """The nodes whose directories are here, as people see them."""

    def __init__(self, out: Output, network: Network) -> None:
        self.out = out
        self.network = network
        self.lines = {n.name: _Line(n) for n in network.nodes if is_here(n, network.directory / n.name)}
        self.changed = anyio.Event()
        self._faults: set[str] = set()  # that were told
        self._lost = False  # what is said reaches nobody

    def on_event(self, event: Event) -> None:
        """A process started or ended."""
        line = self.lines[event.node]
        line.status = None
        match event.change:
            case Change.STARTED:
                line.pid = event.pid
                line.starts += 1
                line.state = "starting"
                self.tell(line, "started", pid=event.pid)
            case Change.ENDED:
                line.pid = None
                directory = self.network.directory / event.node
                left = left_in(directory) is not None
                line.state = "left" if left else "down" if event.holder is None else "in use"
                do = None if event.delay_s is not None else what_to_do(event.code, directory, event.holder)
                line.note = "; ".join(part for part in (how_it_ended(event), do or "it is started again") if part)
                if do is not None and self.out.fancy:  # in the table it may be cut
                    self._say({}, f"{event.node}: {line.note}")
                self.tell(
                    line,
                    "ended",
                    pid=event.pid,
                    code=event.code,
                    signal=signal_name(event.code),
                    restart_in_s=event.delay_s,
                    last=event.last_words,
                    log=str(directory / LOG_NAME),
                    do=do,
                )
            case Change.STOPPED:
                line.pid = None
                line.state = "stopped"
                self.tell(line, "stopped", pid=event.pid, code=event.code)

    def on_status(self, line: _Line, status: Status | None) -> None:
        """A node answered, or did not."""
        if line.pid is None:
            return
        if status is not None and line.state != "up":
            line.state, line.note = "up", ""
            self.tell(line, "up", pid=line.pid, host=line.node.host, client_port=line.node.client_port)
        line.status = status

    def tell(self, line: _Line, what: str, **more: JsonValue) -> None:
        """Say a change: a line when piped, a JSON document with --json; the terminal is drawn anew."""
        self.changed.set()
        text = f"{line.node.name} {what} " + " ".join(f"{k}={v}" for k, v in more.items() if v not in ("", None))
        self._say({"event": what, "node": line.node.name, **more}, "" if self.out.fancy else text)

    def tell_elsewhere(self, names: Sequence[str]) -> None:
        """Say which members are not run here."""
        for name in names:
            self._say({"event": "elsewhere", "node": name}, "")
        if names:
            text = f"run elsewhere, for there is no directory of theirs in {self.network.directory}: {', '.join(names)}"
            self._say({}, text)

    def tell_fault(self, error: BaseException) -> None:
        """Say once why nodes could not be asked, when nobody foresaw it."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        text = f"asking the nodes failed, they run on; please report it: {type(error).__name__}: {error}"
        if text not in self._faults:
            self._faults.add(text)
            self.out.warn(text)

    def _say(self, document: Mapping[str, JsonValue], text: str) -> None:
        """Where output takes no more, a full disk or a pipe that nobody reads, the nodes run on."""
        if self._lost:
            return
        try:
            if document:
                self.out.event(document)
            if text:
                self.out.say(text)
        except OutputLost as error:
            self._lost = True
            self.out.warn(f"{error}; the nodes run on")


def is_here(node: KnownNode, directory: Path) -> bool:
    """True when this is the node's directory. A name may have been another node's before; whose key cannot be read says
    so itself."""
    from node.pki import read_node_key

    if not directory.is_dir():
        return False
    try:
        return read_node_key(directory).id == node.id
    except LocalMisuse:
        return True


def how_it_ended(event: Event) -> str:
    """Why a node does not run, in words."""
    if event.pid is None or event.code is None:
        return event.last_words
    name = signal_name(event.code)
    how = f"exit code {event.code}" if name is None else f"killed ({name})"
    return f"{how}: {event.last_words}" if event.last_words else how


def signal_name(code: int | None) -> str | None:
    """`SIGKILL` for -9; None for an end that was no signal's."""
    if code is None or code >= 0:
        return None
    try:
        return signal.Signals(-code).name
    except ValueError:  # of real time
        return f"signal {-code}"


def what_to_do(code: int | None, directory: Path, holder: int | None = None) -> str:
    """What people do about a node that stays down after this exit code. `holder`: the process that runs it already."""
    if holder is not None:
        return "leave it to that process, or stop that one first, then stop `hopchain up` and start it again"
    left = left_in(directory)
    if left is not None:
        since = f" in epoch {left}" if left else ""
        return f"it was removed{since} and is not started: {directory} may be kept or deleted"
    again = f"then run `hopchain node {shlex.quote(str(directory))}`, or stop `hopchain up` and start it again"
    match code:
        case Exit.USAGE:
            return f"it stays down: correct that, {again}"
        case Exit.OUT_FOR_GOOD:
            return "it stays down: it was removed or quarantined and must not be started again"
        case _:
            return f"it stays down: it failed {QUICK_FAILURES} times in a row. Correct that, {again}"


async def watch(out: Output, network: Network) -> None:
    """Run all nodes whose directories are here and show them until one of `ending_signals`. `LocalMisuse` when there
    are none, when another process runs them, or something uses their ports: nothing was started then."""
    view = View(out, network)
    if not view.lines:
        raise LocalMisuse(
            f"none of the {len(network.nodes)} nodes of network {network.genesis.name} has its directory in "
            f"{network.directory}: run each where its directory is, with `hopchain node DIR`"
        )
    directories = [network.directory / name for name in view.lines]
    async with AsyncExitStack() as stack:
        stack.enter_context(only_up(network))
        check_ports(network, directories)
        remember(network.directory)  # not before: a directory that `up` refuses must not be where the next payment goes
        view.tell_elsewhere([n.name for n in network.nodes if n.name not in view.lines])
        supervisor = Supervisor(directories, view.on_event)
        if out.fancy:
            stack.enter_context(_Drawing(view))
        with anyio.open_signal_receiver(*ending_signals()) as signals:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(supervisor.run)
                tasks.start_soon(ask_all, view)
                async for _ in signals:
                    break
                tasks.cancel_scope.cancel()


async def ask_all(view: View) -> None:
    """Ask every node how it is, again and again. This is only for the eye: no error of it may end the nodes."""
    while True:
        try:
            async with open_client(view.network) as client, anyio.create_task_group() as tasks:
                for line in view.lines.values():
                    tasks.start_soon(_ask_again, view, client, line)
        except Exception as error:  # noqa: BLE001 - whatever it is, a fresh client begins anew
            view.tell_fault(error)
        await anyio.sleep(REFRESH_S)


async def _ask_again(view: View, client: Client, line: _Line) -> None:
    while True:
        try:
            status = await client.status(at=line.node.address)
        except ClientError:
            status = None
        view.on_status(line, status)
        await anyio.sleep(REFRESH_S if status is not None else FIRST_REFRESH_S)


class _Drawing:
    """The table on the terminal, drawn anew four times a second by rich."""

    def __init__(self, view: View) -> None:
        from rich.live import Live

        self._console = console()
        self._ended = False
        self._live = Live(console=self._console, get_renderable=lambda: draw(view, self._size()), refresh_per_second=4)

    def __enter__(self) -> "Live":
        self._live.start()
        return self._live

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._live.stop()

    def _size(self) -> "ConsoleDimensions":
        size = self._console.size
        return size._replace(height=sys.maxsize) if self._ended else size  # what stays at the end may be scrolled


def draw(view: View, size: "ConsoleDimensions") -> "Group":
    """One line for each node; below them one for each note, cut to the terminal's width. Where its lines are too few,
    notes go, then nodes, those that are up first, and a line says how many are not shown."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD,
        header_style="bold",
        title=f"network {view.network.genesis.name}",
        show_edge=False,
        padding=(0, 1 if size.width >= _WIDE else 0, 0, 0),
    )
    for column in ("node", "state", "pid", "clients", "log", "peers", "starts"):
        table.add_column(column, no_wrap=True)
    lines = list(view.lines.values())
    notes = [f"{line.node.name}: {' '.join(line.note.split())}" for line in lines if line.note]
    room = size.height - _AROUND
    if len(lines) > room:
        room -= 2 if notes else 1  # for how many are not shown; then for what rich draws where notes do not fit
        fitting = sorted(lines, key=lambda line: line.state == "up")[: max(0, room)]
        notes.insert(0, f"... and {len(lines) - len(fitting)} more: hopchain status")
        lines = [line for line in lines if line in fitting]
    for line in lines:
        status = line.status
        table.add_row(
            line.node.name,
            Text(line.state, style=_COLOURS[line.state]),
            str(line.pid or ""),
            f"{line.node.host}:{line.node.client_port}",
            str(status.log_height) if status else "",
            f"{sum(p.alive for p in status.peers)} of {len(status.peers)}" if status else "",
            str(line.starts),
        )
    return Group(table, *(Text(shown(note), no_wrap=True, overflow="ellipsis") for note in notes))


_WIDE: Final = 72  # columns, for two spaces between those of the table
_AROUND: Final = 3  # lines of the table besides its rows: title, header, rule
_COLOURS = {
    "up": "green",
    "starting": "yellow",
    "down": "bold red",
    "in use": "yellow",
    "left": "dim",
    "stopped": "dim",
}

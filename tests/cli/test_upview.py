"""What `hopchain up` shows, and that nothing of it ends the nodes."""

import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import anyio
import msgspec
import pytest
import trio.testing
from rich.console import Console

from cli import upview
from cli.home import NETWORK_VARIABLE, Network, find_directory, load_network, remember
from cli.output import Exit, Output
from cli.supervisor import Change, Event
from cli.upchecks import mark_left
from cli.upview import ask_all, watch
from hopchain import wire
from tests.cli.conftest import Cli
from tests.cli.test_endings import Terminal


class Broken:
    """A client of which everything fails in a way that nobody foresaw; `at_once`: already when it is opened."""

    def __init__(self, at_once: bool) -> None:
        self.at_once = at_once
        self.opened = 0
        self.asked = 0

    async def __aenter__(self) -> Self:
        self.opened += 1
        if self.at_once:
            raise OverflowError("int too large to convert to float")
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def status(self, *, at: tuple[str, int]) -> None:
        self.asked += 1
        raise OverflowError("int too large to convert to float")


class Supervisor:
    """In place of that which starts processes: remembers what it would run; then Ctrl-C comes."""

    ran: Sequence[Path] = ()

    def __init__(self, directories: Sequence[Path], on_event: Callable[[Event], None]) -> None:
        Supervisor.ran = directories

    async def run(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


class HungUp(Supervisor):
    """The terminal closes first."""

    ran_on = False

    async def run(self) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        await anyio.sleep(0.1)  # the nodes are stopped meanwhile
        HungUp.ran_on = True
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def network(cli: Cli) -> Network:
    """Of three nodes; the third runs elsewhere."""
    cli.run("init", str(cli.directory), "--nodes", "3", "--asset", "CZK:2", "--issuer", "mint", "--port", "0")
    shutil.rmtree(cli.directory / "node-3")
    return load_network(cli.directory)


@pytest.mark.parametrize("at_once", [False, True])
def test_no_error_of_the_view_ends_the_nodes(
    network: Network, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at_once: bool
) -> None:
    client = Broken(at_once)
    monkeypatch.setattr(upview, "open_client", lambda network: client)

    async def main() -> None:
        with anyio.move_on_after(10) as patience:
            await ask_all(upview.View(Output(as_json=False), network))
        assert patience.cancelled_caught  # by itself it never ends

    anyio.run(main, backend="trio", backend_options={"clock": trio.testing.MockClock(autojump_threshold=0)})
    assert client.opened > 3 and (at_once or client.asked > 3)
    said = capsys.readouterr().err
    assert "OverflowError: int too large" in said and said.count("\n") == 1  # once


@pytest.mark.parametrize("as_json", [False, True])
def test_the_members_that_are_here_run(
    network: Network, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    monkeypatch.setattr(upview, "Supervisor", Supervisor)
    monkeypatch.delenv(NETWORK_VARIABLE, raising=False)
    remember(network.directory.parent)
    capsys.readouterr()
    anyio.run(watch, Output(as_json), network)
    assert [path.name for path in Supervisor.ran] == ["node-1", "node-2"]
    assert find_directory(None).resolve() == network.directory.resolve()
    (line,) = capsys.readouterr().out.splitlines()
    if as_json:
        assert json.loads(line) == {"event": "elsewhere", "node": "node-3"}
    else:
        assert line.startswith("run elsewhere") and line.endswith(": node-3")


def test_a_hangup_that_is_ignored_stops_no_nodes(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nohup` asked for that."""
    monkeypatch.setattr(upview, "Supervisor", HungUp)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        anyio.run(watch, Output(as_json=True), network)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert HungUp.ran_on


def test_a_directory_of_another_node_is_not_that_of_its_name(cli: Cli, network: Network) -> None:
    """node-2 was removed, and one that runs elsewhere was invited under its name."""
    file = cli.directory / "network.toml"
    file.write_text(file.read_text().replace(network.nodes[1].id.hex(), "ab" * 20))
    assert list(upview.View(Output(as_json=False), load_network(cli.directory)).lines) == ["node-1"]
    (cli.directory / "node-2" / "node.key").write_text("no key")
    assert list(upview.View(Output(as_json=False), load_network(cli.directory)).lines) == ["node-1", "node-2"]


def test_without_any_node_here_there_is_nothing_to_run(cli: Cli, network: Network) -> None:
    for name in ("node-1", "node-2"):
        shutil.rmtree(cli.directory / name)
    remembered = cli.home / "network"
    remembered.parent.mkdir(exist_ok=True)
    remembered.write_text("/another/network\n")
    assert "none of the 3 nodes" in cli.run("up", str(cli.directory), code=2).stderr
    assert remembered.read_text() == "/another/network\n", "the next payment goes where it would have gone before"


def test_the_nodes_run_on_when_nobody_can_be_told(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    view = upview.View(Output(as_json=True), network)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        view.on_event(Event("node-1", Change.STARTED, 1))
        view.on_event(Event("node-2", Change.STARTED, 2))
    assert [line.pid for line in view.lines.values()] == [1, 2]


def drawn(view: upview.View, *, width: int = 80, height: int = 25) -> list[str]:
    """The lines on a terminal."""
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True)
    lines = console.render_lines(upview.draw(view, console.size))
    return ["".join(segment.text for segment in line).rstrip() for line in lines]


def test_a_long_note_is_cut_and_no_row(network: Network) -> None:
    view = upview.View(Output(as_json=False), network)
    for name in view.lines:
        view.on_event(Event(name, Change.STARTED, 1_234_567))
    rows = [line for line in drawn(view) if line.startswith("node-")]
    words = f"error: {'a very long word ' * 20}\nand a second line"
    view.on_event(Event("node-1", Change.ENDED, 1_234_567, 1, 0.2, words))
    lines = drawn(view)
    assert [line[:6] for line in lines if line.startswith("node-")] == ["node-1", "node-2", "node-1"]
    assert "127.0.0.1:" in rows[0] and "1234567" in rows[0]
    assert (
        lines[-1].startswith("node-1: exit code 1: error: a very") and lines[-1].endswith("…") and len(lines[-1]) <= 80
    )


@pytest.mark.parametrize("height", [3, 4, 5, 6, 10, 14, 15, 16])
def test_of_more_nodes_than_lines_those_that_are_not_up_are_shown(cli: Cli, height: int) -> None:
    cli.run("init", str(cli.directory), "--nodes", "12", "--asset", "CZK:2", "--port", "0")
    view = upview.View(Output(as_json=False), load_network(cli.directory))
    for line in view.lines.values():
        line.state = "up"
    lines = drawn(view, height=height)
    assert len(lines) == min(max(height, 4), 15)
    rows = [line for line in lines if line.startswith("node-")]
    assert len(rows) == 12 or lines[-1] == f"... and {12 - len(rows)} more: hopchain status"
    view.lines["node-11"].state, view.lines["node-11"].note = "down", "no disk"
    lines = drawn(view, height=height)
    first = lines[: height - 1]  # rich draws no more of it
    rows = [line for line in first if line.startswith("node-") and ":" not in line[:8]]
    assert height < 6 or any(row.startswith("node-11 ") for row in rows)
    assert height < 5 or height > 14 or f"... and {12 - len(rows)} more: hopchain status" in first
    assert len(drawn(view)) == 16


def test_all_nodes_are_shown_at_the_end(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn last stays, and may be scrolled."""
    cli.run("init", str(cli.directory), "--nodes", "12", "--asset", "CZK:2", "--port", "0")
    for name, value in (("TERM", "xterm"), ("COLUMNS", "80"), ("LINES", "10")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", Terminal())
    with upview._Drawing(upview.View(Output(as_json=False), load_network(cli.directory))) as drawing:
        drawing.refresh()
        begun = sys.stdout.getvalue()
    assert "... and 6 more: hopchain status" in begun and "node-12" not in begun
    ended = sys.stdout.getvalue().removeprefix(begun)
    assert "node-12" in ended.rpartition("network net")[2]


def test_a_row_fits_on_60_columns(network: Network) -> None:
    view = upview.View(Output(as_json=False), network)
    view.on_event(Event("node-1", Change.STARTED, 123_456))
    view.lines["node-1"].node = msgspec.structs.replace(view.lines["node-1"].node, client_port=20_000)
    peers = tuple(wire.PeerStatus(bytes(20), "127.0.0.1", 1, True, 1.0, 0, 0) for _ in range(11))
    status = wire.Status(bytes(20), 1, 5, 99_999, 0, 0, 0, 0, 0, 1, 1.0, peers, {})
    view.on_status(view.lines["node-1"], status)
    assert "11 of 11" in "".join(drawn(view))
    assert not any("…" in line for line in drawn(view, width=60))


def test_one_that_left_is_said_to_have(network: Network, capsys: pytest.CaptureFixture[str]) -> None:
    mark_left(network.directory / "node-2", 3)
    view = upview.View(Output(as_json=False), network)
    view.on_event(Event("node-2", Change.ENDED, None, Exit.OUT_FOR_GOOD))
    line = view.lines["node-2"]
    assert (line.state, line.note.partition(":")[0]) == ("left", "it was removed in epoch 3 and is not started")
    assert "node-2 ended code=4" in capsys.readouterr().out


def test_one_that_was_killed_is_said_to_be_and_to_be_started_again(
    network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    view = upview.View(Output(as_json=False), network)
    view.on_event(Event("node-1", Change.ENDED, 7, -signal.SIGKILL, 0.2))
    assert view.lines["node-1"].note == "killed (SIGKILL); it is started again"
    assert "signal=SIGKILL restart_in_s=0.2 log=" in capsys.readouterr().out
    view.on_event(Event("node-1", Change.ENDED, 7, -signal.SIGABRT, 0.2, "double free"))
    assert view.lines["node-1"].note == "killed (SIGABRT): double free; it is started again"
    view.on_event(Event("node-1", Change.ENDED, 7, -40, 0.2))
    assert view.lines["node-1"].note == "killed (signal 40); it is started again"
    view.on_event(Event("node-1", Change.ENDED, 7, 2, None, "error: wrong"))
    assert view.lines["node-1"].note.startswith("exit code 2: error: wrong; it stays down")
    view.on_event(Event("node-1", Change.ENDED, None, None, 0.2, "not started: no directory"))
    assert view.lines["node-1"].note == "not started: no directory; it is started again"

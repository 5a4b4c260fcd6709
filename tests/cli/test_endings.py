"""How commands end when something else than an answer ends them: what is said, and the exit code.

Exit code 1 says that the network rejected it: a script that sees it pays again. So nothing else ends with it.
"""

import ast
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import pytest

from chain.errors import NotReady, Quarantined, Removed, StorageFailure
from cli import main as command_line
from cli import transfer
from cli.command import end_with
from cli.main import COMMANDS
from cli.output import Exit, Output, describe, write_any_text
from hopchain import CallRefused, ClientError, Unreachable, wire
from tests.cli.conftest import Cli, World
from tests.hopchain.fake_node import Hang

ROOT = Path(__file__).parents[2]
INTERRUPTED = 130
BACKGROUND = ("/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh")  # starts what comes behind it as a script's `&` does


class Process:
    """A command in a process of its own: real signals, real files. `before`: words that start it."""

    def __init__(
        self, cli: Cli, words: Sequence[str], stdout: int = subprocess.PIPE, before: Sequence[str] = ()
    ) -> None:
        self._process = subprocess.Popen(
            [*before, sys.executable, "-m", "cli.main", *words],
            env=os.environ | cli.env | {"PYTHONPATH": str(ROOT)},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """(exit code, standard output, standard error)."""
        out, err = self._process.communicate(timeout=60)
        return self._process.returncode, out or "", err


def paid(world: World) -> int:
    return int(world.json("balance", "alice")["incoming"]) + int(world.json("balance", "alice")["settled"])


def sent_id(world: World) -> str:
    """The request that the journal has as its last."""
    return (world.wallet.directory / "journal").read_text().split()[-3]


# --- standard output that takes nothing ------------------------------------------------------------------------------


def full() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def unread() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("stdout", [full, unread])
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_payment_whose_receipt_is_lost_was_not_rejected(
    world: World, stdout: Callable[[], int], more: tuple[str, ...]
) -> None:
    world.run("account", "open", "alice")
    handle = stdout()
    code, _, err = Process(world, ["transfer", "mint", "alice", "1", *more], handle).end()
    os.close(handle)
    assert code == Exit.DISK and paid(world) == 100
    assert f"hopchain outcome {sent_id(world)}" in err and err.count("\n") == 1, err


def test_who_stops_reading_a_list_is_told_nothing(world: World) -> None:
    handle = unread()
    assert Process(world, ["account", "list"], handle).end() == (Exit.DISK, "", "")
    assert Process(world, ["transfer", "--help"], handle).end() == (Exit.DISK, "", "")
    os.close(handle)


def test_standard_output_that_was_closed_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    out = Output(as_json=False)
    assert not out.fancy
    out.table(["node"], [["node-1"]])


class Terminal(io.StringIO):
    """Standard output that a person looks at."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160])
def test_no_terminal_is_so_narrow_that_words_are_torn_apart(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    columns = ["node", "id", "clients", "public key", "settled", "change", "why"]
    row = [
        "node-1",
        "5f0c9a1b",
        "127.0.0.1:7401",
        "ab" * 16,
        "-1,100.00",
        "+node-1 +node-2 +node-3",
        "it is said in words",
    ]
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "stdout", Terminal())
    Output(as_json=False).table(columns, [row, row], right=["settled"])
    said = re.sub("\x1b\\[[0-9;]*m", "", sys.stdout.getvalue())
    torn = [
        word for cell in row for word in cell.split() if len(re.findall(rf"(?<!\S){re.escape(word)}(?!\S)", said)) < 2
    ]
    assert not torn, said
    assert max(map(len, said.splitlines())) <= width or "─" not in said, said


def test_text_that_the_encoding_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    write_any_text()
    Output(as_json=False).say("✓ č \udcff é")
    assert raw.getvalue() == b"ok: ? \\udcff \xe9\n"


# --- faults of this program ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_sending", [False, True])
def test_a_fault_of_ours_is_not_taken_for_a_rejection(
    world: World, monkeypatch: pytest.MonkeyPatch, after_sending: bool
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by nothing")

    world.run("account", "open", "alice")
    monkeypatch.setattr(transfer, "print_answer" if after_sending else "sign_request", broken)
    result = world.run("transfer", "mint", "alice", "1", code=Exit.BUG)
    assert "Traceback" in result.stderr
    last = result.stderr.splitlines()[-1]
    assert "a fault of this program" in last and "ZeroDivisionError: by nothing" in last
    assert ("hopchain outcome" in last) is after_sending
    found = world.json("transfer", "mint", "alice", "1", code=Exit.BUG)
    assert found["error"] == "internal" and ("hopchain outcome" in found["message"]) is after_sending


def test_a_fault_before_the_command_runs(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(command_line, "import_module", broken)
    assert cli.json("status", code=Exit.BUG)["error"] == "internal"


@pytest.mark.parametrize("name", ["up", "join"])
def test_what_ends_a_command_of_many_documents_is_one_line(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """One document a line is promised of these, also of the last one."""
    invite = tmp_path / "invite"
    invite.write_text("none")
    words = ("up", "--json") if name == "up" else ("join", str(invite), "--data", str(tmp_path / "node"), "--json")
    place = "cli.network.load_network" if name == "up" else "cli.join.open_invitation"
    for error, code, says in (
        (CallRefused("node-1", "busy", "full"), Exit.REJECTED, "busy"),
        (ZeroDivisionError(), Exit.BUG, "internal"),
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
    ):

        def ended(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(place, ended)
        (line,) = world.run(*words, code=code).stdout.splitlines()
        assert json.loads(line)["error"] == says
    (line,) = world.run(*words, "--no-such-option", code=Exit.USAGE).stdout.splitlines()
    assert json.loads(line)["error"] == "usage"


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


def interrupted(
    world: World, *words: str, by: signal.Signals = signal.SIGINT, before: Sequence[str] = ()
) -> tuple[str, str]:
    """Ctrl-C, or another signal, once, as soon as a request has left: standard output and error."""
    processes: list[Process] = []
    sent: list[wire.CallBody] = []

    def on_call(call: wire.CallBody) -> Hang | None:
        if not isinstance(call, wire.Submit):
            return None
        sent.append(call)
        if len(sent) == 1:
            processes[0].send(by)
        return Hang()

    for node in world.nodes:
        node.fault = on_call
    processes.append(Process(world, words, before=before))
    code, out, err = processes[0].end()
    assert code == INTERRUPTED, err
    for node in world.nodes:
        node.fault = lambda call: None
    return out, err


def test_an_interrupted_transfer_says_how_to_settle_it(world: World) -> None:
    world.run("account", "open", "alice")
    said = json.loads(interrupted(world, "transfer", "mint", "alice", "1", "--json")[0])
    assert said["outcome"] == "unknown" and said["request_id"] == sent_id(world)
    assert set(said) == set(world.json("transfer", "mint", "alice", "1"))
    out, err = interrupted(world, "transfer", "mint", "alice", "1")
    assert f"hopchain cancel {sent_id(world)}" in out and err == "interrupted\n"
    cancelled = json.loads(interrupted(world, "cancel", said["request_id"], "--json")[0])
    assert cancelled["outcome"] == "unknown" and cancelled["target"] == said["request_id"]


def test_an_interrupted_opening_says_how_to_settle_it(world: World) -> None:
    found = json.loads(interrupted(world, "account", "open", "alice", "bob", "--json")[0])["accounts"]
    assert [(a["account"], a["outcome"]) for a in found] == [("alice", "unknown"), ("bob", "unknown")]
    assert world.wallet.has("alice")


def test_an_interrupted_run_has_its_document(world: World, tmp_path: Path) -> None:
    world.run("account", "open", "alice")
    file = tmp_path / "pay.csv"
    file.write_text("f,t,a\nmint,alice,1\nmint,alice,2\n")
    columns = ("--from-column", "f", "--to-column", "t", "--amount-column", "a")
    said = json.loads(interrupted(world, "pay", str(file), *columns, "--json")[0])
    assert said["outcomes"] == {"unknown": 2} and said["rows"] == 2
    assert set(said) == set(world.json("pay", str(file), *columns))
    shown = interrupted(world, "pay", str(file), *columns, "--concurrency", "1", "--run", "again")[0]
    assert "line 3: mint -> alice: not_sent: the run ended before it was sent: run it again" in shown


def test_what_fails_as_an_interrupt_unwinds_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    def unwinding() -> BaseException:
        try:
            try:
                raise KeyboardInterrupt
            finally:
                raise RuntimeError("a scope that is not the current one")
        except RuntimeError as error:
            return error

    for error in (unwinding(), ExceptionGroup("of tasks", [unwinding(), OSError("closed")])):
        assert end_with(Output(as_json=False), error) == INTERRUPTED
        assert capsys.readouterr().err == "interrupted\n"
    assert end_with(Output(as_json=False), RuntimeError("of its own")) == Exit.BUG


def test_a_check_counts_what_an_interrupted_run_did_not_send(world: World, tmp_path: Path) -> None:
    """It had remembered all rows before it sent the first one: the next run pays them."""
    world.run("account", "open", "alice")
    file = tmp_path / "pay.csv"
    file.write_text("f,t,a\nmint,alice,1\nmint,alice,2\n")
    words = ("pay", str(file), "--from-column", "f", "--to-column", "t", "--amount-column", "a")
    interrupted(world, *words, "--concurrency", "1")
    with file.open("a") as rows:
        rows.write("mint,alice,4\n")
    found = world.json(*words, "--check")
    assert [found[k] for k in ("to_send", "sent_before", "amount", "amount_before")] == [1, 2, 400, 300]
    shown = world.run(*words, "--check").stdout
    assert "run 'pay.csv' may have sent 2 before, 3.00 CZK: those that were not paid then are sent again" in shown
    assert world.json(*words)["completed"] == 3 and paid(world) == 700


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("before", [(), BACKGROUND], ids=["plain", "background"])
def test_other_signals_that_end_a_command_are_as_ctrl_c(
    world: World, tmp_path: Path, by: signal.Signals, before: Sequence[str]
) -> None:
    """Also where Ctrl-C is ignored, as in what a script runs in the background."""
    world.run("account", "open", "alice")
    out, err = interrupted(world, "transfer", "mint", "alice", "1", by=by, before=before)
    assert f"hopchain cancel {sent_id(world)}" in out and err == "interrupted\n"
    file = tmp_path / "pay.csv"
    file.write_text("f,t,a\nmint,alice,1\nmint,alice,2\n")
    columns = ("--from-column", "f", "--to-column", "t", "--amount-column", "a")
    said = json.loads(interrupted(world, "pay", str(file), *columns, "--json", by=by, before=before)[0])
    assert said["outcomes"] == {"unknown": 2}
    assert Path(said["result_file"]).read_text().count(",unknown,") == 2


def test_signals_that_come_together_are_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one would end what the first one began, such as a result file that is being written."""
    before = signal.getsignal(signal.SIGTERM)

    def told(*_: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
            written.append(True)

    written: list[bool] = []
    monkeypatch.setattr(transfer, "find_network", told)
    try:
        assert world.run("transfer", "mint", "alice", "1", code=INTERRUPTED).stderr == "interrupted\n"
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGHUP, before)
    assert written


def test_a_hangup_that_is_ignored_stays_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nohup` asked for that. Nothing is left of what was taken."""
    heard: list[object] = []
    monkeypatch.setattr(
        transfer, "find_network", lambda *_: heard.extend(map(signal.getsignal, (signal.SIGHUP, signal.SIGTERM)))
    )
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        world.run("transfer", "mint", "alice", "1", code=Exit.BUG)
        assert heard[0] is signal.SIG_IGN and heard[1] is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_ctrl_c_that_is_ignored_stays_so(world: World) -> None:
    """A script's background work is not ended with what runs in front of it."""
    world.run("account", "open", "alice")
    processes: list[Process] = []

    def on_call(call: wire.CallBody) -> None:
        processes[0].send(signal.SIGINT)

    for node in world.nodes:
        node.fault = on_call
    processes.append(Process(world, ["transfer", "mint", "alice", "1"], before=BACKGROUND))
    code, _, err = processes[0].end()
    assert (code, err) == (0, ""), err


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_that_run_nodes_hear_signals_themselves(name: str) -> None:
    """They end their nodes in order, and a node its process; no other command does."""
    made = command_line.main.get_command(click.Context(command_line.main), name)
    assert getattr(made, "own_signals", False) is (name in {"up", "node", "join", "demo"})


def test_what_runs_nodes_hears_the_same_signals() -> None:
    """A hangup, too, unless it is ignored."""
    texts = {
        str(path.relative_to(ROOT)): path.read_text()
        for place in ("cli", "node")
        for path in (ROOT / place).glob("*.py")
    }
    hearing = {name: text for name, text in texts.items() if "open_signal_receiver(" in text}
    assert set(hearing) == {"cli/upview.py", "cli/join.py", "cli/demo.py", "node/process.py"}
    for name, text in hearing.items():
        assert "ending_signals()" in text and "open_signal_receiver(signal." not in text, name


def test_exit_codes_are_those_that_scripts_were_told() -> None:
    """Above all: a fault of the program, or an error of which nothing is known, is no rejection."""
    page = (ROOT / "docs/cli-json.md").read_text()
    told = {int(code): text for code, text in re.findall(r"^\| (\d+) \| (.+) \|$", page, re.M)}
    assert set(told) == {int(code) for code in Exit} | {INTERRUPTED}
    for code, says in (
        (Exit.REJECTED, "rejected"),
        (Exit.USAGE, "usage"),
        (Exit.UNREACHABLE, "no node could be reached"),
        (Exit.OUT_FOR_GOOD, "removed or quarantined"),
        (Exit.DISK, "could not be written"),
        (Exit.BUG, "a fault of this program"),
    ):
        assert says in told[code]
    assert describe(ClientError("not known"))[:2] == describe(Unreachable([]))[:2] == (Exit.UNREACHABLE, "unreachable")
    assert describe(NotReady("the clock"))[:2] == (Exit.REJECTED, "not_ready"), "whoever started it may do so again"
    assert describe(CallRefused("node-1", "busy", "full"))[:2] == (Exit.REJECTED, "busy")


def test_every_code_of_an_error_is_one_that_scripts_were_told() -> None:
    """Those that this program gives: beside an exit code stands the stable one."""
    page = (ROOT / "docs/cli-json.md").read_text()
    given = {describe(error)[1] for error in (Removed("gone"), Quarantined("an old copy"), StorageFailure("full"))}
    for file in (ROOT / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            parts = node.args if isinstance(node, ast.Call) else node.elts if isinstance(node, ast.Tuple) else []
            if len(parts) == 3 and isinstance(parts[1], ast.Constant) and "Exit" in ast.unparse(parts[0]):
                given.add(parts[1].value)
    assert {"not_ready", "output", "node_ended", "not_atomic", "usage"} <= given
    assert {code for code in given if f"`{code}`" not in page} == set()


def test_ctrl_c_before_the_command_runs(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "import_module", interrupt)
    assert cli.run("status", code=INTERRUPTED).stderr == "interrupted\n"
    assert cli.json("status", code=INTERRUPTED)["error"] == "interrupted"


def test_ctrl_c_while_a_class_is_made(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a command imports what it needs. Python 3.11 raises a `RuntimeError` then, and names the cause."""

    def made(*_: object) -> None:
        raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()

    monkeypatch.setattr(transfer, "find_network", made)
    assert world.run("transfer", "mint", "alice", "1", code=INTERRUPTED).stderr == "interrupted\n"


# --- files that may not be used --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_file_that_may_not_be_used_is_no_fault_of_this_program(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(*_: object) -> None:
        raise ExceptionGroup("", [PermissionError(number, os.strerror(number), "/place/of/another")])

    monkeypatch.setattr(transfer, "find_network", refused)
    said = world.run("transfer", "mint", "alice", "1", code=Exit.DISK).stderr
    assert said == f"error: /place/of/another cannot be used ({os.strerror(number)})\n"
    assert world.json("transfer", "mint", "alice", "1", code=Exit.DISK)["error"] == "disk"


def test_what_was_sent_before_a_file_could_not_be_used_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(as_json=False)
    out.sending("Request 5f0c was sent", lambda: None)
    assert out.bug(PermissionError(errno.EACCES, "Permission denied", "file")) == Exit.DISK
    assert "file cannot be used (Permission denied). Request 5f0c was sent" in capsys.readouterr().err

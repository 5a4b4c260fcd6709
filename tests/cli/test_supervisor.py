"""Supervised processes: started, started again when they die, all ended at the end."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
import trio.testing

from cli import supervisor
from cli.output import Exit
from cli.supervisor import LOG_NAME, QUICK_FAILURES, STOP_S, Change, Event, Supervisor, last_words, node_command
from cli.upview import what_to_do
from node.lock import DataLock

ROOT = Path(__file__).parents[2]
PATIENT = "import sys; print('here', flush=True); sys.stdin.read()"  # ends with its supervisor
DEAF = f"import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); {PATIENT}"
BROKEN = "print('no such thing'); raise SystemExit(3)"
DAMAGED = "print('this database is damaged'); raise SystemExit(1)"
REMOVED = "print('it was removed'); raise SystemExit(4)"
WRONG = "print('node.key: chmod 600'); raise SystemExit(2)"
WAIT_S = 60.0  # for an interpreter on a busy machine


class Watcher:
    """Runs a supervisor over directories and waits for events."""

    def __init__(self, tmp_path: Path, scripts: dict[str, str], **limits: float) -> None:
        self.events: list[Event] = []
        self.directories = [tmp_path / name for name in scripts]
        for directory in self.directories:
            directory.mkdir()
        self._news = anyio.Event()
        self.supervisor = Supervisor(
            self.directories, self._hear, command=lambda d: [sys.executable, "-c", scripts[d.name]], **limits
        )

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        self._news.set()

    def of(self, change: Change) -> list[Event]:
        return [e for e in self.events if e.change is change]

    async def wait(self, change: Change, count: int) -> list[Event]:
        with anyio.fail_after(WAIT_S):
            while len(self.of(change)) < count:
                self._news = anyio.Event()
                await self._news.wait()
        return self.of(change)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(params=["trio", "asyncio"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_all_are_started_and_none_is_left_at_the_end(tmp_path: Path, backend: str) -> None:
    async def main() -> None:
        watcher = Watcher(tmp_path, {"node-1": PATIENT, "node-2": PATIENT})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watcher.supervisor.run)
            started = await watcher.wait(Change.STARTED, 2)
            assert {e.node for e in started} == {"node-1", "node-2"}
            assert all(is_running(e.pid) for e in started)
            tasks.cancel_scope.cancel()
        assert len(watcher.of(Change.STOPPED)) == 2
        assert not any(is_running(e.pid) for e in started)
        assert not watcher.of(Change.ENDED)

    anyio.run(main, backend=backend)


def test_one_that_dies_is_started_again_later_each_time(tmp_path: Path, backend: str) -> None:
    async def main() -> None:
        watcher = Watcher(tmp_path, {"node-1": BROKEN})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watcher.supervisor.run)
            ended = await watcher.wait(Change.ENDED, 3)
            tasks.cancel_scope.cancel()
        assert [e.code for e in ended] == [3, 3, 3]
        assert [e.delay_s for e in ended] == [0.2, 0.4, 0.8]
        assert ended[0].last_words == "no such thing"
        assert len({e.pid for e in watcher.of(Change.STARTED)}) == 3

    anyio.run(main, backend=backend)


def test_one_that_cannot_be_started_does_not_end_the_others(tmp_path: Path, backend: str) -> None:
    async def main() -> None:
        watcher = Watcher(tmp_path, {"node-1": PATIENT, "node-2": PATIENT})
        (tmp_path / "node-1").rmdir()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watcher.supervisor.run)
            first, second = await watcher.wait(Change.ENDED, 2)
            (started,) = await watcher.wait(Change.STARTED, 1)
            assert (first.node, first.pid, first.delay_s, second.delay_s) == ("node-1", None, 0.2, 0.4)
            assert "No such file" in first.last_words
            assert is_running(started.pid)
            tasks.cancel_scope.cancel()

    anyio.run(main, backend=backend)


@pytest.mark.parametrize(("script", "code"), [(REMOVED, Exit.OUT_FOR_GOOD), (WRONG, Exit.USAGE)])
def test_one_that_would_say_the_same_again_is_not_started_again(
    tmp_path: Path, backend: str, script: str, code: Exit
) -> None:
    async def main() -> None:
        watcher = Watcher(tmp_path, {"node-1": script})
        with anyio.fail_after(WAIT_S):
            await watcher.supervisor.run()  # it returns: there is nothing left to keep running
        (ended,) = watcher.of(Change.ENDED)
        assert (ended.code, ended.delay_s) == (code, None)
        assert len(watcher.of(Change.STARTED)) == 1

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("code", [0, 1, 2, 4])
def test_one_that_leaves_the_network_is_not_started_again(tmp_path: Path, backend: str, code: int) -> None:
    """However it ends: `leave` has written beside its files that it left."""
    leaving = f"open('left', 'w').write('7'); raise SystemExit({code})"

    async def main() -> None:
        watcher = Watcher(tmp_path, {"node-1": f"import os; os.chdir({str(tmp_path / 'node-1')!r}); {leaving}"})
        with anyio.fail_after(WAIT_S):
            await watcher.supervisor.run()
            assert [e.code for e in watcher.of(Change.ENDED)] == [code]
            await watcher.supervisor.run()  # another `up`
        assert [(e.code, e.delay_s) for e in watcher.of(Change.ENDED)] == [(code, None), (Exit.OUT_FOR_GOOD, None)]
        assert len(watcher.of(Change.STARTED)) == 1
        assert "it was removed in epoch 7" in what_to_do(code, tmp_path / "node-1")

    anyio.run(main, backend=backend)


def test_one_that_fails_at_once_is_given_up(tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 0.001)

    async def main() -> None:
        watcher = Watcher(tmp_path, {"node-1": DAMAGED})
        with anyio.fail_after(WAIT_S):
            await watcher.supervisor.run()
        ended = watcher.of(Change.ENDED)
        assert [(e.code, e.delay_s is None) for e in ended] == [(1, False)] * (QUICK_FAILURES - 1) + [(1, True)]

    anyio.run(main, backend=backend)


def test_one_whose_directory_another_process_holds_waits_longer_than_a_node_may_take_to_end(tmp_path: Path) -> None:
    async def main() -> None:
        watcher = Watcher(tmp_path, {"node-1": WRONG})
        with DataLock(tmp_path / "node-1"):
            await watcher.supervisor.run()
        *tried, last = watcher.of(Change.ENDED)
        assert {(e.code, e.pid, e.holder) for e in (*tried, last)} == {(Exit.USAGE, None, os.getpid())}
        waited_s = sum(e.delay_s for e in tried)
        assert STOP_S < waited_s < 2 * STOP_S and anyio.current_time() - begin == pytest.approx(waited_s)
        assert last.delay_s is None
        assert not watcher.of(Change.STARTED) and not (tmp_path / "node-1" / LOG_NAME).exists(), (
            "its log is the other's"
        )

    clock = trio.testing.MockClock(autojump_threshold=0)
    begin = clock.current_time()
    anyio.run(main, backend="trio", backend_options={"clock": clock})


def test_one_whose_directory_was_held_may_fail_as_often_as_any(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    holders = iter([7, 7, 7])
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(supervisor, "lock_holder", lambda directory: next(holders, None))

    async def main() -> None:
        watcher = Watcher(tmp_path, {"node-1": DAMAGED})
        with anyio.fail_after(WAIT_S):
            await watcher.supervisor.run()
        held, failed = watcher.of(Change.ENDED)[:3], watcher.of(Change.ENDED)[3:]
        assert [(e.code, e.holder) for e in held] == [(Exit.USAGE, 7)] * 3
        assert [(e.code, e.holder) for e in failed] == [(1, None)] * QUICK_FAILURES
        assert (held[0].delay_s, failed[0].delay_s) == (0.001, 0.001)

    anyio.run(main, backend=backend)


def test_one_whose_directory_another_process_took_as_it_started_did_not_fail(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    holders = itertools.cycle([None, 7])  # before its start, after its end
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(supervisor, "lock_holder", lambda directory: next(holders))

    async def main() -> None:
        watcher = Watcher(tmp_path, {"node-1": WRONG})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watcher.supervisor.run)
            ended = await watcher.wait(Change.ENDED, QUICK_FAILURES + 1)
            tasks.cancel_scope.cancel()
        assert all((e.code, e.delay_s is None) == (Exit.USAGE, False) for e in ended)

    anyio.run(main, backend=backend)


def test_one_whose_directory_is_let_go_meanwhile_is_started(tmp_path: Path, backend: str) -> None:
    async def main() -> None:
        watcher = Watcher(tmp_path, {"node-1": PATIENT})
        async with anyio.create_task_group() as tasks:
            with DataLock(tmp_path / "node-1"):
                tasks.start_soon(watcher.supervisor.run)
                await watcher.wait(Change.ENDED, 1)
            await watcher.wait(Change.STARTED, 1)
            tasks.cancel_scope.cancel()

    anyio.run(main, backend=backend)


def test_what_to_do_about_one_that_runs_already(tmp_path: Path) -> None:
    assert "leave it to that process" in what_to_do(Exit.USAGE, tmp_path, 7)


def test_one_that_ran_for_a_while_may_fail_as_often_again(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 0.001)

    async def main() -> None:
        watcher = Watcher(tmp_path, {"node-1": DAMAGED}, steady_s=0.0)  # any time is a while
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watcher.supervisor.run)
            ended = await watcher.wait(Change.ENDED, QUICK_FAILURES + 1)
            tasks.cancel_scope.cancel()
        assert all(e.delay_s is not None for e in ended)

    anyio.run(main, backend=backend)


def test_one_that_signals_end_did_not_fail(tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 0.001)

    async def main() -> None:
        watcher = Watcher(tmp_path, {"node-1": "import os; os.kill(os.getpid(), 9)"})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watcher.supervisor.run)
            ended = await watcher.wait(Change.ENDED, QUICK_FAILURES + 1)
            tasks.cancel_scope.cancel()
        assert all((e.code, e.delay_s is None) == (-9, False) for e in ended)

    anyio.run(main, backend=backend)


@pytest.mark.parametrize(
    ("code", "says"),
    [(2, "correct that, then run `hopchain node net/node-1`"), (4, "must not be started again"), (1, "failed 5 times")],
)
def test_what_to_do_about_one_that_stays_down(code: int, says: str) -> None:
    assert says in what_to_do(code, Path("net/node-1"))


def test_the_command_of_one_that_stays_down_can_be_pasted() -> None:
    assert "run `hopchain node 'my net/node-1'`" in what_to_do(Exit.USAGE, Path("my net/node-1"))


def test_one_that_is_killed_is_told_with_its_signal(tmp_path: Path, backend: str) -> None:
    async def main() -> None:
        watcher = Watcher(tmp_path, {"node-1": PATIENT})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watcher.supervisor.run)
            (first,) = await watcher.wait(Change.STARTED, 1)
            (tmp_path / "node-1" / LOG_NAME).write_text("a line of its log\n")
            os.kill(first.pid, signal.SIGKILL)
            _, second = await watcher.wait(Change.STARTED, 2)
            (ended,) = watcher.of(Change.ENDED)
            assert (ended.code, ended.last_words) == (-signal.SIGKILL, ""), "no line of its log is about that"
            assert second.pid != first.pid
            tasks.cancel_scope.cancel()

    anyio.run(main, backend=backend)


def test_one_that_does_not_listen_is_killed(tmp_path: Path, backend: str) -> None:
    async def main() -> None:
        watcher = Watcher(tmp_path, {"node-1": DEAF}, stop_s=0.2)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watcher.supervisor.run)
            (started,) = await watcher.wait(Change.STARTED, 1)
            with anyio.fail_after(WAIT_S):
                while not last_words(tmp_path / "node-1" / LOG_NAME):  # it ignores SIGTERM from here on
                    await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        assert watcher.of(Change.STOPPED)[0].code == -signal.SIGKILL
        assert not is_running(started.pid)

    anyio.run(main, backend=backend)


def test_nodes_are_told_to_end_with_their_supervisor(tmp_path: Path) -> None:
    assert node_command(tmp_path)[1:] == ["-P", "-m", "cli.main", "node", str(tmp_path), "--supervised"]


def test_a_node_runs_nothing_that_lies_in_the_current_directory(tmp_path: Path) -> None:
    for name in ("cli.py", "node.py", "chain.py"):
        (tmp_path / name).write_text("print('run by mistake')\n")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = node_command(tmp_path / "none")
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == Exit.USAGE and "is not a node's directory" in done.stderr, done.stderr
    assert "run by mistake" not in done.stdout


def test_no_process_is_started_with_the_current_directory_on_its_path() -> None:
    """`python -m` puts it first."""
    started = [
        line.strip()
        for file in sorted((ROOT / "cli").glob("*.py"))
        for line in file.read_text().splitlines()
        if "sys.executable" in line
    ]
    assert started and all('sys.executable, "-P", "-m",' in line for line in started), started


def test_last_words(tmp_path: Path) -> None:
    log = tmp_path / LOG_NAME
    assert last_words(log) == ""
    log.write_text("")
    assert last_words(log) == ""
    log.write_text("x" * 5000 + "\nerror: disk full\n\n")
    assert last_words(log) == "error: disk full"

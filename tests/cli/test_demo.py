"""What `hopchain demo` says when something else than a claim goes wrong."""

import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from cli import demo
from cli.output import CommandFailed, Output


@pytest.fixture
def show(tmp_path: Path) -> demo._Demo:
    return demo._Demo(Output(as_json=True), tmp_path)


async def test_a_command_that_does_not_end_is_named_with_its_time(
    show: demo._Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_CLI", (sys.executable, "-c", "input()"))
    monkeypatch.setattr(demo, "COMMAND_S", 0.0)
    with pytest.raises(CommandFailed, match=r"^hopchain status did not end within 0 s, and was ended$"):
        await show._command(demo._State, "status")


async def hear(show: demo._Demo, said: str) -> None:
    """Listen to an `up` that says this and ends."""
    process = await anyio.open_process([sys.executable, "-c", f"print({said!r}, end='')"], stderr=subprocess.STDOUT)
    async with process:
        await show._listen(process)


EVENT = '{"event": "up", "node": "node-1", "pid": 7}\n'


@pytest.mark.parametrize(("said", "why"), [(EVENT + "no room", "no room"), (EVENT, "it did not say why")])
async def test_up_that_ends_by_itself_is_told_with_its_words(show: demo._Demo, said: str, why: str) -> None:
    with pytest.raises(CommandFailed, match=f"^hopchain up ended by itself: {why}$"):
        await hear(show, said)
    assert show._pids == {"node-1": 7}


async def test_up_may_say_something_before_it_is_stopped(show: demo._Demo) -> None:
    show._stopping = True
    await hear(show, "a warning\n" + EVENT)
    assert show._pids == {"node-1": 7}

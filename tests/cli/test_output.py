"""What people are shown: text of others is one line, and nothing in it is obeyed by a terminal."""

import io
import json
import re
import sys
from collections.abc import Callable

import pytest

from chain.errors import LocalMisuse
from cli import output
from cli.output import Output
from cli.progress import Progress
from hopchain import wire
from tests.cli.conftest import World
from tests.hopchain.fake_node import FaultMaker, key_number

NASTY = "x\n#9  2026-01-01 balance 1.00\x1b[2A\u202e"
SEEN = r"x\n#9  2026-01-01 balance 1.00\x1b[2A\u202e"

SAYS: dict[str, Callable[[Output], object]] = {
    "say": lambda out: out.say(NASTY),
    "note": lambda out: out.note(NASTY),
    "warn": lambda out: out.warn(NASTY),
    "fields": lambda out: out.fields([("name", NASTY)]),
    "table": lambda out: out.table(["name"], [[NASTY]]),
    "fail": lambda out: out.fail(LocalMisuse(NASTY)),
}


@pytest.mark.parametrize("how", SAYS)
def test_nothing_that_is_said_is_obeyed_by_a_terminal(how: str, capsys: pytest.CaptureFixture[str]) -> None:
    SAYS[how](Output(as_json=False))
    printed = "".join(capsys.readouterr())
    assert SEEN in printed and "\x1b" not in printed and printed.count("\n") == 1 + (how == "table")


def test_nor_in_a_table_that_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[object] = []
    monkeypatch.setattr(Output, "fancy", property(lambda out: True))
    monkeypatch.setattr(output, "_draw", lambda columns, rows, right: drawn.append(rows) or True)
    Output(as_json=False).table(["name"], [[NASTY]])
    assert drawn == [[[SEEN]]]


class Terminal(io.StringIO):
    """Where a person looks."""

    def isatty(self) -> bool:
        return True


def seen(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """What a terminal gets of all that can be said."""
    terminal = Terminal()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in ({"TERM": "xterm", "COLUMNS": "80"} | environment).items():
        monkeypatch.setenv(name, value)
    out = Output(as_json=False)
    for text, colour, bold in (("plain", None, False), ("green", "green", False), ("bold", None, True)):
        out.say(text, colour=colour, bold=bold)
    out.table(["node", "state"], [["node-1", "down"]])
    out.fail(LocalMisuse("wrong"))
    with Progress(out) as progress:
        progress.begin("paying", 1)
        progress.advance()
    assert out.fancy is out.watched
    return terminal.getvalue()


@pytest.mark.parametrize("no_color", [{}, {"NO_COLOR": ""}])
def test_a_line_without_style_is_itself(monkeypatch: pytest.MonkeyPatch, no_color: dict[str, str]) -> None:
    said = seen(monkeypatch, **no_color)
    assert said.splitlines()[:3] == ["plain", "\x1b[32mgreen\x1b[0m", "\x1b[1mbold\x1b[0m"]
    assert "─" in said and "\x1b[1;31m" in said  # a table that is drawn, and a node that is down


def test_nothing_has_style_where_nobody_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said = seen(monkeypatch, NO_COLOR="1")
    assert "─" in said and "paying" in said and not re.search(r"\x1b\[[0-9;]*m", said)


def test_nothing_is_drawn_on_a_terminal_that_takes_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    said = seen(monkeypatch, TERM="dumb")
    assert "node-1" in said and not {"\x1b", "─"} & set(said)


def test_a_fault_of_this_program_is_told_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ZeroDivisionError(NASTY)
    except ZeroDivisionError as error:
        Output(as_json=False).bug(error)
    told = capsys.readouterr().err
    assert told.startswith("Traceback (most recent call last):\n") and "\x1b" not in told
    assert told.endswith(f"please report it: ZeroDivisionError: {SEEN}\n")


def test_the_chain_shows_a_reference_as_one_text_whatever_it_holds(world: World) -> None:
    memo = 'x"\n   - 9.00 to\x1b[1A'
    key = key_number(5)
    world.ledger.open("bob", "CZK", key.public_key().public_bytes_raw())
    assert world.run("transfer", "mint", "bob", "1", "--reference", memo).exit_code == 0
    for words in (("chain", "mint"), ("chain", "mint", "--all")):
        told = world.run(*words).stdout
        assert r'to bob  "x\"\n   - 9.00 to\x1b[1A"  ' in told and "\x1b" not in told
    (posting,) = world.json("chain", "mint")["links"][-1]["postings"]
    assert posting["reference"] == memo


def test_a_reason_of_a_node_is_one_line_for_people_and_as_it_is_for_programs(world: World) -> None:
    world.ledger.open("bob", "CZK", key_number(5).public_key().public_bytes_raw())

    def fault() -> FaultMaker:
        return lambda call: wire.Refused("busy", NASTY) if isinstance(call, wire.Submit) else None

    for node in world.nodes:
        node.fault = fault()
    told = world.run("transfer", "mint", "bob", "1", code=1)
    assert SEEN in told.stdout and "\x1b" not in told.stdout + told.stderr
    document = json.loads(world.run("transfer", "mint", "bob", "1", "--json", code=1).stdout)
    assert NASTY in document["reason"]

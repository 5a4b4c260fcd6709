"""Help: every command has an example that is a real command, and asking for help is quick."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli.command import Seconds
from cli.main import COMMANDS, main

HEAVY = ("anyio", "asyncio", "cryptography", "msgspec", "rich", "sqlite3", "ssl", "trio")


def all_commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below a group with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from all_commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(("path", "command"), [pytest.param(p, c, id=" ".join(p)) for p, c in all_commands(main)])
def test_every_command_explains_itself_with_an_example(path: tuple[str, ...], command: click.Command) -> None:
    result = CliRunner().invoke(main, [*path, "--help"])
    assert result.exit_code == 0
    examples = result.stdout.split("Examples:\n")[1].strip().splitlines()
    assert " ".join(("hopchain", *path)) in " ".join(examples)
    assert "--json" in result.stdout
    undocumented = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert undocumented == []


SPANS = [
    pytest.param(param, id=" ".join((*path, str(param.name))))
    for path, command in all_commands(main)
    for param in command.params
    if isinstance(param.type, click.types.FloatParamType)
]


@pytest.mark.parametrize("param", SPANS)
def test_a_span_of_time_is_a_number(param: click.Parameter) -> None:
    """To click's own types "nan" is one, and within all bounds."""
    assert isinstance(param.type, Seconds)
    for text in ("nan", "inf", "-inf"):
        with pytest.raises(click.BadParameter):
            param.type.convert(text, None, None)


def test_a_network_is_named_in_the_same_way_everywhere() -> None:
    """What takes a directory as an argument makes, runs, invites into or audits what is in it."""
    takes = {path: {p.name for p in command.params} for path, command in all_commands(main)}
    argued = {
        path
        for path, command in all_commands(main)
        if any(isinstance(p, click.Argument) and "DIR" in str(p.metavar) for p in command.params)
    }
    assert argued == {("init",), ("up",), ("invite",), ("node",), ("verify",)}
    without = {path[0] for path, names in takes.items() if "network_dir" not in names and "network" not in names}
    assert without == {"init", "node", "join", "sim", "demo", "completion"}


def test_a_directory_where_none_is_taken_says_how_a_network_is_named() -> None:
    for words in (["status", "net"], ["doctor", "net"], ["certificate", "list", "net"]):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 2 and "A network is named with --network DIR" in result.stderr


@pytest.mark.parametrize("command", ["up", "invite"])
def test_a_directory_is_the_same_as_the_option(command: str, tmp_path: Path) -> None:
    """Each finds that there is no network; two that differ are one too many."""
    here = str(tmp_path)
    said = {
        CliRunner().invoke(main, [command, *words]).stderr
        for words in ([here], ["--network", here], [here, "--network", here])
    }
    assert len(said) == 1 and here in said.pop()
    result = CliRunner().invoke(main, [command, here, "--network", str(tmp_path / "other")])
    assert result.exit_code == 2 and "two networks are named" in result.stderr


@pytest.mark.parametrize("amount", ["-1", "-1.50", "-.5"])
def test_an_amount_below_zero_is_not_an_unknown_option(amount: str) -> None:
    result = CliRunner().invoke(main, ["transfer", "alice", "bob", amount])
    assert result.exit_code == 2 and "an amount is above zero" in result.stderr
    assert "no such option" in CliRunner().invoke(main, ["transfer", "alice", "bob", "1", "-x"]).stderr
    assert "no such option" in CliRunner().invoke(main, ["balance", "alice", amount]).stderr


def test_the_help_of_pay_says_what_each_choice_does_and_what_goes_together() -> None:
    shown = " ".join(CliRunner().invoke(main, ["pay", "--help"]).stdout.split())
    for choice in ("dedicated (the default):", "round-robin:", "least-active:", "two-choices:"):
        assert choice in shown
    assert "--fund-from goes with dedicated and round-robin only, and not with --bulk --pool" in shown
    assert "must keep its key in this wallet" in shown and "only with --choice dedicated and the same list" in shown
    assert "one that an earlier run paid without this option needs nothing" in shown


def test_a_certificate_is_told_to_replace_only_one_of_its_node() -> None:
    shown = " ".join(CliRunner().invoke(main, ["certificate", "renew", "--help"]).stdout.split())
    assert "it replaces only an earlier certificate of the same node" in shown
    assert "--out node.crt" not in shown, "the second node's would be refused"


@pytest.mark.parametrize("group", ["account", "member", "certificate", "sim"])
def test_what_the_commands_of_a_group_do_is_not_cut_off(group: str) -> None:
    _, _, listed = CliRunner().invoke(main, [group, "--help"], terminal_width=80).stdout.partition("Commands:")
    assert listed and "..." not in listed


def test_the_list_of_commands_is_complete() -> None:
    shown = CliRunner().invoke(main, ["--help"]).stdout
    for name, (_, what) in COMMANDS.items():
        assert name in shown and what.split()[0] in shown
    assert "3 unreachable" in " ".join(shown.split())


def test_an_unknown_command_is_usage() -> None:
    result = CliRunner().invoke(main, ["pya"])
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bogus"], "no such option '--bogus'. `hopchain --help` says what it takes"),
        (["balance"], "missing argument 'NAME'. `hopchain balance --help` says what it takes"),
        (["account", "show"], "missing argument 'NAME'. `hopchain account show --help` says what it takes"),
        (["account", "xyz"], "no such command 'xyz'. `hopchain account --help` says what it takes"),
        (
            ["completion"],
            "missing argument 'SHELL'. Choose from: bash, zsh, fish. `hopchain completion --help` says what it takes",
        ),
        (
            ["status", "net"],
            "got unexpected extra argument (net). A network is named with --network DIR. `hopchain status --help` says what it takes",
        ),
    ],
)
def test_what_is_wrong_with_a_command_line_is_said_in_one_line_as_all_else(words: list[str], said: str) -> None:
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"error: {said}\n")


def test_what_is_wrong_with_a_command_line_is_json_when_that_is_asked_for() -> None:
    result = CliRunner().invoke(main, ["transfer", "alice", "bob", "--json"])
    assert result.exit_code == 2 and result.stderr == ""
    assert json.loads(result.stdout) == {
        "error": "usage",
        "message": "missing argument 'AMOUNT'. `hopchain transfer --help` says what it takes",
    }


def test_a_word_of_the_command_line_is_not_repeated_whatever_its_length() -> None:
    assert len(CliRunner().invoke(main, ["verify", "x" * 5000]).stderr) < 300


def test_a_path_that_an_error_is_about_is_told_with_its_ends(tmp_path: Path) -> None:
    def said(path: Path) -> str:
        return CliRunner().invoke(main, ["bench", "uniform", "--network", str(path)]).stderr

    spaced = tmp_path / "two  spaces" / f"{'d' * 60}-{'e' * 60}.net"
    assert f"'{spaced}' does not exist" in said(spaced)
    long = Path("/") / "/".join("d" * 30 for _ in range(20)) / "the-name-that-matters.net"
    shown = said(long)
    assert str(long)[:30] in shown and "..." in shown and "ddd/the-name-that-matters.net' does not exist" in shown
    assert len(shown) < 300


@pytest.mark.parametrize("words", [[], ["account"]])
def test_a_group_without_a_command_shows_its_help(words: list[str]) -> None:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2 and "Commands:" in result.stderr and "error:" not in result.stderr


@pytest.mark.parametrize(("word", "meant"), [("stats", "status"), ("balanse", "balance"), ("members", "member")])
def test_a_command_that_is_spelled_wrong_is_guessed(word: str, meant: str) -> None:
    result = CliRunner().invoke(main, [word])
    assert (
        result.exit_code == 2 and f"no such command '{word}'. Did you mean {meant}? `hopchain --help`" in result.stderr
    )


def test_help_loads_nothing_heavy() -> None:
    script = f"import sys; sys.argv = ['hopchain', '--help']\nfrom cli.main import main\ntry:\n    main()\nexcept SystemExit:\n    print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"

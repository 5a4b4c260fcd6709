"""CHANGELOG.md: it names every command, and the numbers by which releases refuse each other."""

import re
from pathlib import Path

import click

from chain.schema import SCHEMA_VERSION
from cli.main import main
from hopchain import wire
from node import hello

CHANGELOG = (Path(__file__).parents[2] / "CHANGELOG.md").read_text()


def test_every_command_is_named() -> None:
    commands = set(main.list_commands(click.Context(main)))
    assert len(commands) > 20
    assert commands <= set(re.findall(r"`([a-z]+)[^`]*`", CHANGELOG))


def test_the_versions_are_those_of_the_program() -> None:
    assert f"schema {SCHEMA_VERSION}," in CHANGELOG
    assert (
        f"protocol {hello.PROTOCOL_VERSION} with each other and protocol {wire.PROTOCOL_VERSION} with clients"
        in CHANGELOG
    )

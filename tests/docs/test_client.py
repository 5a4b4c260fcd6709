"""docs/client.md: its programs are parts of those in examples/, which other tests run; its names exist."""

import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

import hopchain
from chain.request import MEMO_BYTES
from hopchain import ClientError, HopchainError, LocalMisuse, bulk, pooled
from node.config import Limits

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "client.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
EXAMPLES = sorted({*(ROOT / "examples").glob("*.py")} - {ROOT / "examples" / "make_orders.py"})


@pytest.mark.parametrize("block", BLOCKS)
def test_a_program_is_part_of_an_example(block: str) -> None:
    indented = [without_blank_lines(textwrap.indent(block, " " * width)) for width in (0, 4, 8, 12)]
    programs = [without_blank_lines(example.read_text()) for example in EXAMPLES]
    assert any(text in program for program in programs for text in indented), block


def without_blank_lines(text: str) -> str:
    """The formatter puts other ones into a page."""
    return "".join(line for line in text.splitlines(keepends=True) if line.strip())


def test_every_example_is_named_and_every_link_leads_somewhere() -> None:
    for example in EXAMPLES:
        assert f"](../examples/{example.name})" in TEXT
    for target in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
    readme = (ROOT / "README.md").read_text()
    assert "](examples/pay.py)" in readme


def test_the_packages_that_are_installed_are_named_and_what_a_module_of_their_name_does(tmp_path: Path) -> None:
    (sentence,) = re.findall(r"The wheel installs the packages ([^:]*):", TEXT)
    find = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert set(re.findall(r"`(\w+)`", sentence)) == {name.removesuffix("*") for name in find["include"]}
    for name in ("chain", "hopchain"):
        program = tmp_path / name / "program.py"
        program.parent.mkdir()
        program.with_name(f"{name}.py").touch()
        program.write_text("from hopchain import Client")
        ran = subprocess.run(
            [sys.executable, program], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )
        error = ran.stderr.splitlines()[-1].partition(": ")[2].partition(" (")[0]
        assert f"`{error}`" in TEXT, ran.stderr


def test_every_method_is_named() -> None:
    (bullet,) = re.findall(r"^- \*\*Methods\.\*\*(.*?)^- ", TEXT, re.DOTALL | re.MULTILINE)
    methods = {name for name in vars(hopchain.Client) if not name.startswith("_")}
    assert set(re.findall(r"`(\w+)`", bullet)) - {"stale", "LocalMisuse"} == methods
    assert f"a memo of {MEMO_BYTES} bytes" in TEXT


def test_its_numbers_are_those_of_the_program() -> None:
    many = bulk.MANY_IN_FLIGHT
    assert f"Independent requests go out {many} at a time" in TEXT
    assert f"Those under way, up to {many - 1}, still get their answers" in TEXT
    assert f"asks for {pooled.BALANCES_AT_ONCE} accounts at a time" in TEXT
    assert f"sends {pooled.SETTLED_AT_ONCE} payments at a time" in " ".join(TEXT.split())
    assert f"which has {Limits().client_connections} for all clients" in TEXT


def test_the_table_of_exceptions_has_them_all() -> None:
    section = TEXT.split("\n## Exceptions\n")[1].split("\n## ")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    exported = {getattr(hopchain, name) for name in hopchain.__all__}
    errors = {kind for kind in exported if isinstance(kind, type) and issubclass(kind, ClientError | LocalMisuse)}
    assert named == {kind.__name__ for kind in errors}
    assert not issubclass(LocalMisuse, ClientError)
    assert all(issubclass(kind, HopchainError) for kind in errors)

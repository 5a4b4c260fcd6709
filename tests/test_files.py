"""Tests have their files in memory where there is room, and what passed leaves none there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.files import is_fit

ROOT = Path(__file__).parents[1]
MODULE = """
import tempfile
from pathlib import Path

def test_has_files(tmp_path):
    (tmp_path / "file").touch()
    assert tmp_path.is_relative_to(tempfile.gettempdir())

def test_fails(tmp_path):
    (tmp_path / "kept").touch()
    assert {passes}
"""


def test_a_place_without_room_or_that_is_none_is_not_fit(tmp_path: Path) -> None:
    assert is_fit(tmp_path, room_bytes=1)
    assert not is_fit(tmp_path, room_bytes=1 << 60)
    assert not is_fit(tmp_path / "nowhere", room_bytes=1)


@pytest.mark.parametrize("passes", [True, False])
def test_only_the_files_of_a_test_that_failed_stay(tmp_path: Path, passes: bool) -> None:
    home = tmp_path / "run"
    home.mkdir()
    module = tmp_path / "test_module.py"
    module.write_text(MODULE.format(passes=passes))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "1",
        "-p",
        "no:cacheprovider",
        "-c",
        ROOT / "pyproject.toml",
        module,
    ]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "TMPDIR": str(home)}, capture_output=True, text=True)
    assert done.returncode == (not passes), done.stdout
    kept = [path.name for path in home.rglob("*") if path.is_file() and path.name != ".lock"]
    assert kept == ([] if passes else ["kept"]), kept

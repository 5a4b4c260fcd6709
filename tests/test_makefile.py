"""`make test` ends also where a test does not."""

import re
import subprocess
import sys
from pathlib import Path

MAKEFILE = Path(__file__).parents[1] / "Makefile"
HANGING = """
import threading
import pytest

@pytest.mark.parametrize("number", range(9))
def test_waits(number):
    if number == 2:
        threading.Event().wait()
"""


def test_a_test_that_hangs_is_named_and_ends_the_run(tmp_path: Path) -> None:
    (flags,) = re.findall(r"^HANGS +:= (.*)$", MAKEFILE.read_text(), re.MULTILINE)
    assert "faulthandler_timeout=600" in flags
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_hanging.py").write_text(HANGING)
    words = flags.replace("=600", "=3").split()
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadgroup", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 1
    assert "crashed while running 'test_hanging.py::test_waits[2]'" in ended.stdout
    assert "threading.py" in ended.stdout + ended.stderr, "where it waits"

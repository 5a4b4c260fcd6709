"""`hopchain demo`, the first command of the README, as a newcomer runs it: five processes under `up`, one of them
killed."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from tests.cli.test_commands import documented

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
DEMO_S = 300.0  # it has bounds of its own for each step; a quiet machine takes 12 s for all


def without_numbers(text: str) -> str:
    """What is the same in every run."""
    return re.sub(r"\d[\d,.]*", "#", text)


async def test_every_claim_of_the_demo_holds_and_its_page_shows_them_all(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with trio.fail_after(DEMO_S):
        done = await trio.run_process(
            [sys.executable, "-m", "cli.main", "demo", "--json"],
            cwd=ROOT,
            env={**os.environ, "HOPCHAIN_HOME": str(home), "TMPDIR": str(tmp_path)},
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
    assert done.returncode == 0, done.stdout.decode()
    told: dict[str, Any] = msgspec.json.decode(done.stdout)
    assert told["ok"] is True and set(told) == documented("demo")
    page = (ROOT / "docs/demo.md").read_text()
    shown = [line.strip().removeprefix("✓ ") for line in page.splitlines() if line.strip().startswith("✓ ")]
    assert [without_numbers(claim) for claim in told["claims"]] == [without_numbers(claim) for claim in shown]
    assert f"{len(shown)} claims checked, all true" in page
    assert not os.listdir(tmp_path), "nothing is left behind, neither there nor in the user's own directory"

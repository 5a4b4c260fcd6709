"""README shows a part of what the demo prints; tests/cluster/test_demo.py compares all of it with a run."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_readme_shows_what_the_page_of_the_demo_has() -> None:
    shown = re.search(r"A part of what the demo prints.*?```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    assert shown[1] in (ROOT / "docs/demo.md").read_text()

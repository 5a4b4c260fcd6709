"""docs/adr/0039: what anybody may read is all there, and is read without a key."""

import re
import typing
from pathlib import Path

import pytest

from hopchain import wire

ROOT = Path(__file__).parents[2]
DECISION = ROOT / "docs" / "adr" / "0039-anybody-may-read.md"
QUESTIONS = [call for call in typing.get_args(wire.CallBody) if call not in (wire.Submit, wire.SubmitChange)]


def test_the_decision_names_every_question_and_no_other() -> None:
    first = (line.split(" | ")[0] for line in DECISION.read_text().splitlines() if line.startswith("| `"))
    named = re.findall("`([a-z]+)`", " ".join(first))
    assert sorted(named) == sorted(question.__struct_config__.tag for question in QUESTIONS)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.__name__)
def test_no_question_carries_a_signature(question: type[wire.AskStatus]) -> None:
    assert not {"signature", "raw", "public_key"} & {*question.__struct_fields__}


@pytest.mark.parametrize("page", ["README.md", "docs/operations.md"])
def test_whoever_runs_a_network_is_told(page: str) -> None:
    assert f"adr/{DECISION.name}" in (ROOT / page).read_text()

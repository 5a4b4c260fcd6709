"""Pages that name a rule lead to it."""

import re
from pathlib import Path

import pytest

from netsim.mutants import load_caught, render_page
from netsim.pages import page
from netsim.rule_links import link_rules
from netsim.scenario import load_scenario, shipped

DESIGN = Path(__file__).parents[2] / "docs" / "design.md"
PAGES = {name: page(load_scenario(name)) for name in shipped()} | {"mutants": render_page(load_caught())}
NAMED = r"\bR\d+\b"


def test_every_rule_of_a_text_is_a_link() -> None:
    assert link_rules("By R9 and R15.", "../d.md") == "By [R9](../d.md#the-rules) and [R15](../d.md#the-rules)."
    assert link_rules("AR1, R0, R123, I1, round", "d.md") == "AR1, R0, R123, I1, round"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_links_the_rules_that_it_names(name: str) -> None:
    design = "design.md" if name == "mutants" else "../design.md"
    rest = re.sub(rf"\[(R\d+)\]\({re.escape(design)}#the-rules\)", "", PAGES[name])
    assert re.findall(NAMED, rest) == []


def test_the_rules_that_pages_name_are_where_the_links_lead() -> None:
    design = DESIGN.read_text(encoding="utf-8")
    assert "\n### The rules\n" in design
    there = set(re.findall(r"^- \*\*(R\d+) ", design, re.M))
    named = {rule for text in PAGES.values() for rule in re.findall(NAMED, text)}
    assert named <= there
    assert {"R3", "R4", "R10", "R15"} <= named

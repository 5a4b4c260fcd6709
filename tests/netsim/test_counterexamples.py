"""Each counterexample of the protocol is a scenario: it fails with its rule switched off. With every rule on it holds:
tests/netsim/test_scenarios.py."""

from contextlib import ExitStack

import pytest

from netsim.mutants import BY_NAME, switched_off
from netsim.scenario import load_scenario
from netsim.stage import perform
from netsim.verdict import judge

# counterexample -> the mutants that switch its rule off, and what is seen then
RULES = {
    "01": (("birth epoch ignored",), "I1"),
    "02": (("a source that has not synced",), "I1"),
    "03": (("a view skipped",), "I1"),
    "04": (("view not persisted",), "I8"),
    "05": (("epoch unchecked",), "I9"),
    "06": (("votes forgotten by a restart",), "I1"),
    "07": (("the epoch does not come first in a ballot",), "I1"),
    "08": (("vote counted twice",), "I9"),
    "09": (("undecided link replicated",), "I9"),
    "10": (("a group that only shrinks is not synced",), "I1"),
    "11": (("an old disk may vote",), "I8"),
    "12": (("idempotency unchecked",), "I5"),
    "13": (("replica judges by its own clock",), "I7"),
    "14": (("insufficient_funds without asking",), "I10"),
}


def broken(name: str, *mutants: str) -> list[str]:
    """The names of the verdicts that are not good."""
    scenario = load_scenario(f"counterexample-{name}")
    with ExitStack() as stack:
        for mutant in mutants:
            stack.enter_context(switched_off(BY_NAME[mutant]))
        performance = perform(scenario)
    return [verdict.name for verdict in judge(performance, scenario) if not verdict.ok]


@pytest.mark.parametrize("name", RULES)
def test_a_counterexample_needs_its_rule(name: str) -> None:
    mutants, seen = RULES[name]
    assert broken(name, *mutants)[0] == seen


def test_without_the_barrier_the_second_change_of_counterexample_2_comes_at_once_and_r8_alone_holds() -> None:
    assert broken("02", "no barrier") == []

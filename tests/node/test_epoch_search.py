"""Every schedule of one slot while views change (tests.node.epoch_search), and each rule R1 to R8 switched off in turn.

docs/exhaustive-search.md has the same as a table, with the schedules in words and, for what is not found, why.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from node.paxos import Ballot, Vote
from routing.view import majority
from tests.node.epoch_rules import LARGE, MAX_STATES, OFF, PLANS, Off, search
from tests.node.epoch_search import Plan, Rules, Search, State, TooMany, TwoChosen, chain

PAGE = Path(__file__).parents[2] / "docs" / "exhaustive-search.md"
ALL = os.environ.get("HOPCHAIN_SEARCH") == "all"
SEARCHED = {**PLANS, **LARGE} if ALL else PLANS
LARGEST = 3_000_000 if ALL else MAX_STATES


@pytest.mark.parametrize("name", SEARCHED)
def test_no_schedule_chooses_two_values(name: str, record_property: Callable[[str, object], None]) -> None:
    """Nor is anybody ACTIVE in a changed group that does not know what was chosen before."""
    states = Search(SEARCHED[name]).exhaust(LARGEST, strict=True)
    record_property("states", states)
    print(f"{name}: {SEARCHED[name].words}: {states} states, at most {LARGEST}")  # noqa: T201 - shown with -s
    if name in PLANS:
        assert f"| {name} | {PLANS[name].words} | {states:,} |" in PAGE.read_text().splitlines()


@pytest.mark.parametrize("off", [off for off in OFF if ALL or not off.large], ids=lambda off: f"{off.rule} {off.what}")
def test_a_rule_switched_off_is_found_or_it_is_said_why_not(off: Off) -> None:
    found = search(off)
    page = PAGE.read_text().splitlines()
    if isinstance(found, TwoChosen):
        assert not off.why
        assert f"| {off.rule} | {off.what} | {off.plan} | {found.states:,} |" in page, "make the page again"
        assert f"**{off.rule}, {off.what}** ({off.plan}): {'; '.join(found.schedule)}." in page
    else:
        assert off.why, f"nothing in {found} states"
        assert f"| {off.rule} | {off.what} | {off.plan} | {found:,}, nothing found |" in page
        assert f"* {off.rule}, {off.what}: {off.why}." in page


def test_each_rule_from_1_to_8_is_switched_off() -> None:
    assert {off.rule for off in OFF} == {f"R{number}" for number in range(1, 9)}
    assert {off.plan for off in OFF} <= set(PLANS)


@pytest.mark.parametrize("name", ["grow", "only shrinks", "pair moves", "born later"])
def test_the_search_is_not_empty(name: str) -> None:
    """Each ballot that the rules allow gets its value chosen in some schedule, and every member of every group gets
    ACTIVE."""
    chosen: set[str] = set()
    active: set[tuple[int, int]] = set()

    class Watching(Search):
        def check_known(self, state: State) -> None:
            chosen.update(self.chosen(state))
            places = range(len(self.views))
            active.update((i, v) for i, n in enumerate(state.nodes) for v in places if n.memory.active >> v & 1)

    search = Watching(PLANS[name])
    search.exhaust(MAX_STATES, strict=True)
    below = {number for number, ballot in enumerate(search.ballots) if ballot.epoch < search.plan.birth}
    assert chosen == {f"v{number + 1}" for number in range(len(search.ballots)) if number not in below}
    assert active >= {(search.place[node], view) for view, group in enumerate(search.groups) for node in group}


def test_a_bound_that_is_too_small_is_said() -> None:
    with pytest.raises(TooMany, match="more than 50 states"):
        Search(PLANS["takeover"]).exhaust(50)


def test_nodes_that_nothing_tells_apart_are_one_state() -> None:
    """{A,B,C,D,E} with one ballot of A: which of the four others have voted does not matter, only how many."""
    plan = Plan("ABCDE", 5, chain("ABCDE"), ((1, 0, "A"),))
    assert Search(plan).exhaust(100) == 1 + 5

    class Apart(Search):
        def _twins(self) -> list[list[int]]:
            return []

    assert Apart(plan).exhaust(100) == 1 + 2**4


def test_a_schedule_is_told_with_the_names_of_who_acted() -> None:
    """Also when nodes changed places on the way: replayed with these names alone, two values are chosen."""

    class NoMajority(Rules):
        def may_start(self, ballot: Ballot, vote: Vote[str] | None) -> bool:
            return True

        def fast(self, ballot: Ballot, group: tuple[object, ...], epoch: int, birth: int) -> bool:
            return True

    with pytest.raises(TwoChosen) as caught:
        Search(Plan("ABCDE", 5, chain("ABCDE"), ((1, 0, "A"), (1, 0, "B"))), NoMajority()).exhaust(10_000)
    voters: dict[str, set[str]] = {"v1": {"A"}, "v2": {"B"}}
    for line in caught.value.schedule:
        who, what, *rest = line.split()
        if what == "votes":
            voters[rest[1]].add(who)
    assert all(len(nodes) >= majority(5) for nodes in voters.values()), caught.value.schedule

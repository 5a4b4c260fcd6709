"""The scenarios that ship: each holds, each needs its fault, and its page is current."""

from pathlib import Path

import msgspec
import pytest

from netsim.pages import index, page
from netsim.plan import Weather
from netsim.scenario import Scenario, load_scenario, shipped
from netsim.stage import Performance, perform
from netsim.verdict import judge

DOCS = Path(__file__).parents[2] / "docs" / "scenarios"
COUNTEREXAMPLES = [f"{number:02}" for number in range(1, 15)]
NAMES = shipped()


def broken(performance: Performance, scenario: Scenario) -> list[str]:
    return [f"{v.name} {v.text}: {v.found}" for v in judge(performance, scenario) if not v.ok]


@pytest.mark.parametrize("name", NAMES)
def test_it_holds(name: str) -> None:
    scenario = load_scenario(name)
    assert broken(perform(scenario), scenario) == []


@pytest.mark.parametrize("name", NAMES)
def test_without_its_faults_an_expectation_fails(name: str) -> None:
    scenario = load_scenario(name)
    calm = msgspec.structs.replace(scenario.plan, weather=Weather())
    performance = perform(msgspec.structs.replace(scenario, faults=(), plan=calm))
    found = broken(performance, scenario)
    assert found
    assert all(line.startswith("expect") for line in found), found


@pytest.mark.parametrize("name", NAMES)
def test_its_page_is_current(name: str) -> None:
    """`python -m netsim.pages docs/scenarios` writes them."""
    assert (DOCS / f"{name}.md").read_text() == page(load_scenario(name))
    picture = (DOCS / f"{name}.svg").read_text()
    assert "<svg" in picture
    assert len(picture) < 80_000


def test_the_index_is_current_and_nothing_is_left_over() -> None:
    assert (DOCS / "README.md").read_text() == index([load_scenario(name) for name in NAMES])
    assert {f.stem for f in DOCS.iterdir()} == {*NAMES, "README"}


def test_every_scenario_that_was_promised_ships() -> None:
    promised = {
        "split-brain", "split-halves", "split-three", "ring-cut", "owner-isolated", "lagging-gateway", "double-spend",
        "double-income", "flapping-link", "slow-node", "rolling-restart", "power-cut", "clock-jump",
        "growth", "replace-dead", "removed-unaware", "rolling-restart-20",
        "sync-majority", "promise-twice", "old-disk-source", "two-epochs", "born-later", "one-way",
        "pinned-group", "views-in-order", "unsynced-read", "voted-opening", "voted-income", "join-under-load",
        "full-disk",
    }  # fmt: skip
    assert promised | {f"counterexample-{n}" for n in COUNTEREXAMPLES} == set(NAMES)


@pytest.mark.parametrize(("nodes", "k"), [(7, 5), (7, 3), pytest.param(18, 5, marks=pytest.mark.slow)])
def test_a_cut_lets_nobody_decide_without_a_majority_at_any_size(nodes: int, k: int) -> None:
    scenario = load_scenario("split-brain", nodes=nodes, k=k)
    assert broken(perform(scenario), scenario) == []


def steps(performance: Performance, account: str, height: int) -> list[tuple[float, int, str, int]]:
    """(seconds since the faults may begin, node, what, round) of what was done in the slot of a link."""
    record = performance.record
    link = record.watch.ledger.chains[account][height]
    return [(s.at - record.start, s.node, s.what, s.round) for s in record.steps[link.prev_hash]]


def test_counterexample_6_the_proposer_dies_with_proposals_on_their_way_and_others_finish_the_vote() -> None:
    performance = perform(load_scenario("counterexample-06"))
    ((node, died, _),) = performance.record.down
    died -= performance.record.start
    done = steps(performance, "alice", 1)
    assert [s for s in done if s[1] == node and s[2] == "propose" and s[3] == 0 and s[0] <= died]
    assert [s for s in done if s[1] != node and s[2] == "vote" and s[3] == 0]
    assert [s for s in done if s[2] == "propose" and s[3] > 0]


def test_counterexample_8_two_vote_while_the_cut_stands_and_three_are_needed() -> None:
    performance = perform(load_scenario("counterexample-08"))
    voters = {s[1] for s in steps(performance, "alice", 1) if s[2] == "vote" and s[0] < 5.0}
    assert voters == set(performance.sides["two"])


def test_counterexample_9_two_vote_for_a_link_that_loses() -> None:
    performance = perform(load_scenario("counterexample-09"))
    done = steps(performance, "alice", 1)
    two = set(performance.sides["two"])
    assert {s[1] for s in done if s[2] == "vote" and s[3] == 0} == two
    assert {s[1] for s in done if s[2] == "vote" and s[3] > 0 and s[0] < 5.5} == set(performance.sides["three"])


def test_owner_isolated_the_link_is_chosen_before_anybody_knows() -> None:
    performance = perform(load_scenario("owner-isolated"))
    record = performance.record
    link = record.watch.ledger.chains["alice"][1]
    (owner,) = performance.sides["owner"]
    knows, at = record.decider[link.hash]
    assert knows != owner
    assert at - record.watch.chosen_at[link.hash] > 1.0
    assert record.watch.applied_at[link.hash][owner] - record.start > 6.0


def test_full_disk_the_node_ends_with_its_message_and_has_all_links_soon_after_it_is_back() -> None:
    performance = perform(load_scenario("full-disk"))
    record = performance.record
    ((at, node, text),) = record.world.last_words
    assert node == 2
    assert "failed: database or disk is full" in text
    assert 3.0 <= at - record.start < 4.0
    assert record.down == [(node, at, record.start + 6.0)]
    missed = [link for link, chosen in record.watch.chosen_at.items() if at < chosen < record.start + 6.0]
    assert len(missed) > 30
    assert all(6.0 < record.watch.applied_at[link][node] - record.start < 7.0 for link in missed)

"""Rules switched off are seen: each mutant at the seed, or in the scenario, that the last search found
(docs/simulator-mutants.md)."""

from pathlib import Path

import pytest

from netsim import mutants
from netsim.draw import draw_plan
from netsim.mutant import Edit, Mutant
from netsim.mutants import BY_NAME, MAX_SEEDS, MUTANTS, find, load_caught, render_page, run_again, switched_off
from netsim.run import run_plan
from node import acceptor, paxos, proposing, slots
from tests.netsim.seeds import SWARM

CAUGHT = load_caught()
SEEDS = sorted({caught.seed for caught in CAUGHT.values() if caught.seed is not None})
PAGE = Path(mutants.__file__).parent.parent / "docs" / "simulator-mutants.md"


def test_there_are_enough_and_all_are_caught() -> None:
    assert len(MUTANTS) >= 25
    assert len(BY_NAME) == len(MUTANTS)
    assert list(CAUGHT) == [mutant.name for mutant in MUTANTS], "run `make mutants`"
    assert max(SEEDS) < MAX_SEEDS
    assert all(CAUGHT[mutant.name].scenario == mutant.scenario for mutant in MUTANTS)
    rules = {mutant.rule for mutant in MUTANTS}
    assert {"R1", "R2", "R3", "R4", "R5", "R6", "R7", "R8", "R9", "R10", "R11", "R12", "R13", "R15"} <= rules


@pytest.mark.parametrize("name", BY_NAME)
def test_a_rule_switched_off_is_seen(name: str) -> None:
    again = run_again(BY_NAME[name], CAUGHT[name])
    assert again.rule == CAUGHT[name].rule, f"{again.problem}: after a change of the code run `make mutants`"


def test_a_mutant_that_names_a_scenario_is_looked_for_there_only() -> None:
    harmless = Mutant("harmless", "none", "", (), scenario="counterexample-08")
    assert find(harmless, seeds=[]) is None
    caught = find(
        Mutant("twice", "R10", "", BY_NAME["vote counted twice"].edits, scenario="counterexample-08"), seeds=[]
    )
    assert caught is not None
    assert (caught.rule, caught.seed, caught.scenario) == ("I9", None, "counterexample-08")


@pytest.mark.parametrize("seed", [seed for seed in SEEDS if seed not in SWARM])
def test_the_same_seeds_pass_with_every_rule_on(seed: int) -> None:
    """The others do so in tests/netsim/test_swarm.py."""
    result = run_plan(draw_plan(seed))
    assert result.ok, (result.rule, result.problem)


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == render_page(CAUGHT), "run `make mutants`"


# --- the patching itself ---


def test_a_rule_is_on_again_afterwards_also_where_it_was_imported() -> None:
    before = paxos.prepare, acceptor.prepare, acceptor.is_fast, proposing.is_fast
    below = BY_NAME["promise below a promise"], BY_NAME["fast path of a standby"]
    with switched_off(below[0]), switched_off(below[1]):
        during = paxos.prepare, acceptor.prepare, acceptor.is_fast, proposing.is_fast
        assert during[0] is during[1]
        assert during[2] is during[3]
        assert all(a is not b for a, b in zip(before, during, strict=True))
    assert (paxos.prepare, acceptor.prepare, acceptor.is_fast, proposing.is_fast) == before


def test_two_edits_of_one_function_add_up() -> None:
    edits = (
        Edit("node.slots:birth_epoch", "head.epoch", "head.epoch + 10"),
        Edit("node.slots:birth_epoch", "else 1", "else 5"),
    )
    with switched_off(Mutant("two", "none", "", edits)):
        assert slots.birth_epoch(None) == 5
    assert slots.birth_epoch(None) == 1


def test_a_mutant_that_no_longer_fits_says_so_and_leaves_nothing_behind() -> None:
    before = slots.birth_epoch
    edits = (
        Edit("node.slots:birth_epoch", "else 1", "else 5"),
        Edit("node.slots:birth_epoch", "no such text", ""),
    )
    with (
        pytest.raises(AssertionError, match="does not hold 'no such text' once"),
        switched_off(Mutant("x", "", "", edits)),
    ):
        pass
    assert slots.birth_epoch is before


def test_help_searches_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["mutants", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        mutants.main()
    assert "usage: python -m netsim.mutants" in capsys.readouterr().out

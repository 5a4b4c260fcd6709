"""bench/scale.py measures the sizes that it names, bench/takeover.py computes what it prints."""

import re
from argparse import Namespace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import scale
import takeover

from chain.errors import Corruption
from chain.needs import Needs
from chain.request import Posting
from node.acceptor import Acceptor
from node.decoded import LinkDecoder
from node.familiar import Familiar
from node.replica import Replica

# --- scale ---------------------------------------------------------------------------------------------------------


def test_sizes_are_powers_of_ten_up_to_the_last() -> None:
    assert scale.powers(1_000, 1_000_000) == [1_000, 10_000, 100_000, 1_000_000]
    assert scale.powers(10_000, 99_999) == [10_000]
    assert scale.powers(10_000, 9_999) == []


def test_the_sizes_are_those_that_the_script_says() -> None:
    said = re.search(r"([\d,]+) to ([\d,]+) accounts, ([\d,]+) to ([\d,]+) postings", scale.__doc__ or "")
    assert said is not None
    assert [int(number.replace(",", "")) for number in said.groups()] == [
        *(scale.FIRST_ACCOUNTS, 1_000_000, scale.FIRST_POSTINGS, 10_000_000)
    ]


def test_the_first_size_of_each_kind_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "FIRST_ACCOUNTS", 30)
    monkeypatch.setattr(scale, "FIRST_POSTINGS", 100)
    rows = scale.run(Namespace(accounts=30, postings=1000, transfers=20, seed=1, json=True), tmp_path)
    assert [(row["accounts"], row["postings"]) for row in rows] == [(30, 50), (100, 136), (100, 1020)]
    assert all(float(str(row["cpu_us"])) > 0 for row in rows)


@pytest.mark.parametrize("words", ["--accounts 999", "--postings -5", "--transfers 19", "--postings 10000 --bulk"])
def test_sizes_that_leave_nothing_to_measure_are_refused(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["scale.py", *words.split()])
    with pytest.raises(SystemExit):
        scale.main()
    name, given, *_ = words.split()
    assert f"{name} {given} leaves nothing to measure: take " in capsys.readouterr().err


def test_bulk_is_measured_in_steps_while_the_ledger_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "BULK_ACCOUNTS", 20)
    monkeypatch.setattr(scale, "MAX_POSTINGS", 10)
    monkeypatch.setattr(scale, "STEPS", 3)
    rows = scale.run_bulk(Namespace(postings=120, seed=1, json=True), tmp_path)
    assert [row["postings"] for row in rows] == [40, 80, 120]
    assert all(float(str(row["cpu_us"])) > 0 for row in rows)


def test_a_ledger_is_filled_up_to_the_target_and_never_emptied(tmp_path: Path) -> None:
    with scale.Ledger(tmp_path / "small.db") as ledger:
        ledger.open([*scale.RING, "ann", "bob"])
        scale.fill_postings(ledger, 50, count())
        assert ledger.postings == 50
        scale.fill_postings(ledger, 40, count())
        assert ledger.postings == 50


def acceptor(familiar: Familiar) -> Acceptor:
    """As far as what it looks at goes."""
    unused: Any = None
    return Acceptor(unused, LinkDecoder(), unused, cast(Replica, SimpleNamespace(familiar=familiar)))


def test_a_link_is_checked_before_the_vote_against_what_voters_look_at(tmp_path: Path) -> None:
    with scale.Ledger(tmp_path / "small.db") as ledger:
        ledger.open(["ann", "bob", "eve"])
        (first,) = ledger.form([ledger.pay("ann", [Posting("bob", 1)])])
        ledger.make([ledger.pay("ann", [Posting("bob", 2)])])
        (link,) = ledger.form([ledger.pay("bob", [Posting("eve", 3), Posting("ann", 1)])])
        assert len(link.confirmed) > 1, "the reads of what it takes up are among them"
        for familiar in (Familiar(), ledger._familiar):
            ours, theirs = Needs(), Needs()
            scale.needs_vote(link, familiar, ours)
            acceptor(familiar).needs_check(link, theirs)
            assert ours == theirs
        with pytest.raises(Corruption, match="the tip here has height"):
            ledger.check([first])
        checked = ledger.check([link])
        assert [again.raw for again in checked] == [link.raw]
        ledger.vote(checked)
        ledger.apply(checked)
        assert ledger.postings == 3 + 1 + 2


def test_a_link_is_applied_by_what_a_node_looks_at(tmp_path: Path) -> None:
    with scale.Ledger(tmp_path / "small.db") as ledger:
        ledger.open(["ann", "bob"])
        (link,) = ledger.form([ledger.pay("ann", [Posting("bob", 1)])])
        replica: Any = Replica.__new__(Replica)
        replica.familiar, replica.lacking = Familiar(), SimpleNamespace(wakes=lambda link: [])
        ours, theirs = Needs(), Needs()
        scale.needs_apply(link, replica.familiar, ours)
        replica.needs_link(link, theirs)
        assert ours == theirs


def test_who_is_paid_must_be_there_and_hold_the_same(tmp_path: Path) -> None:
    """`check_successor` is given what the accounts hold, as in a node."""
    with scale.Ledger(tmp_path / "small.db") as ledger:
        ledger.open(["ann", "bob"])
        (link,) = ledger.form([ledger.pay("ann", [Posting("bob", 1)])])
        ledger._familiar.note({"bob": "EUR"})
        for step in (ledger.check, ledger.apply):
            with pytest.raises(Corruption, match="pays an account that does not hold CZK"):
                step([link])


# --- takeover ------------------------------------------------------------------------------------------------------


def test_a_phase_is_its_rate_and_its_percentiles() -> None:
    took = [float(n) for n in range(100, 0, -1)]
    assert takeover.numbers(took, 8.0, 60, 2) == {
        "completed_per_s": 12.5,
        "p50_ms": 50.0,
        "p99_ms": 99.0,
        "max_ms": 100.0,
        "accounts_that_paid": 60,
        "not_completed": 2,
    }
    assert takeover.numbers([7.04], 1.0, 1, 0)["p50_ms"] == 7.0


def test_a_phase_without_payments_ends_the_script() -> None:
    with pytest.raises(SystemExit, match=r"nothing completed in 10 s \(3 payments ended otherwise\)") as ended:
        takeover.numbers([], 10.0, 0, 3)
    assert ended.value.code != 0


def test_each_phase_stands_beside_the_first() -> None:
    def found(p99_ms: float) -> dict[str, object]:
        return takeover.numbers([p99_ms], 1.0, 60, 0)

    healthy = takeover.compared("all alive", found(70.0), [])
    dead = takeover.compared("one dead", found(59.0), [healthy])
    assert (healthy["ratio"], dead["ratio"]) == (1.0, 0.84)
    assert takeover.table([healthy, dead]).splitlines()[2:] == [
        "| all alive | 1.0 | 70.0 | 70.0 | 70.0 | 1.0 x | 60 of 60 |",
        "| one dead | 1.0 | 59.0 | 59.0 | 59.0 | 0.84 x | 60 of 60 |",
    ]

"""Hops against size: what is counted, what is waited for, and that it is the same again."""

import itertools
import math

import pytest

from chain.errors import LocalMisuse
from netsim.hops import HopRow, measure_hops, plot_hops
from routing.dht import KSIZE


@pytest.fixture(scope="module")
def rows() -> list[HopRow]:
    return measure_hops([60, 10, 30], seed=3, keys_per_size=40)


def test_every_lookup_finds_the_owner_within_log2_n_hops(rows):
    assert [row.nodes for row in rows] == [10, 30, 60]
    for row in rows:
        assert row.found == 1.0
        assert row.log2 == math.log2(row.nodes)
        assert 1.0 <= row.hops <= row.hops_max <= math.ceil(row.log2)
    for before, after in itertools.pairwise(rows):
        assert before.hops <= after.hops < before.hops + 1


def test_who_knows_everybody_needs_one_hop_and_asks_each_once(rows):
    small = rows[0]
    assert small.nodes - 1 <= KSIZE
    assert (small.hops, small.hops_max) == (1.0, 1)
    calls = 2 * (small.nodes - 1)
    assert calls <= small.messages < calls + 2, "a call and a reply each, hardly one sent again"


def test_the_look_ahead_hides_the_time_of_the_decision_and_no_more(rows):
    for row in rows:
        assert row.after_hops <= row.hops_max
        assert row.ahead_ms < row.after_ms
        assert row.after_ms - row.ahead_ms == pytest.approx(row.decide_ms, rel=0.75)
        assert row.ahead_hops < row.after_hops
        assert (row.table_ms, row.table_hops) == (0.0, 0.0)


def test_without_standbys_nothing_is_hidden():
    (row,) = measure_hops([10], seed=4, keys_per_size=40, k=1)
    assert row.decide_ms == 0.0
    assert row.ahead_hops == row.after_hops == row.hops == 1.0
    assert row.ahead_ms == pytest.approx(row.after_ms, rel=0.2)


def test_the_same_seed_gives_the_same_rows_and_tells_them_as_they_come(rows):
    heard: list[HopRow] = []
    assert measure_hops([10, 30], 3, 40, on_row=heard.append) == rows[:2] == heard
    assert measure_hops([10], 4, 40) != rows[:1]


@pytest.mark.parametrize(("sizes", "keys", "k"), [([1, 2], 10, 5), ([], 10, 5), ([5], 1, 5), ([5], 10, 0)])
def test_what_cannot_be_measured_is_refused(sizes, keys, k):
    with pytest.raises(LocalMisuse, match="at least"):
        measure_hops(sizes, 1, keys, k)


def test_the_picture_is_the_same_bytes_again(rows, tmp_path):
    plot_hops(rows, tmp_path / "a.svg")
    plot_hops(rows, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"log2 n" in (tmp_path / "a.svg").read_bytes()
    with pytest.raises(LocalMisuse, match="cannot be written"):
        plot_hops(rows, tmp_path / "no such folder" / "a.svg")

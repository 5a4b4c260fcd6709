"""What is this payment and what is another: a run says when all of its rows, or rows that it has no more, were paid
before."""

from pathlib import Path

import msgspec
import pytest

from chain.errors import LocalMisuse
from cli.payfile import Payment, payment_key
from cli.payrows import SeenRows
from hopchain import wire
from tests.cli.conftest import World
from tests.cli.test_pay import COLUMNS, available, write
from tests.cli.test_pay_pool import ACCOUNTS, POOL, shop
from tests.cli.test_pay_rerun import alone, never_arrives

__all__ = ["shop"]  # a fixture
KINDS = [pytest.param((), id="alone"), pytest.param(POOL, id="pool"), pytest.param(("--bulk",), id="bulk")]
ROWS = ["shop;bob;2.00;rent", "shop;bob;5.00;"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "may.csv"
    write(path, ROWS)
    return path


@pytest.fixture
def payers(shop: World) -> World:
    """The pool's accounts, and one that is called as the pool is, with money."""
    alone(shop)
    for name in ACCOUNTS:
        shop.ledger.accounts[name].settled = 1_000_000
    return shop


def codes(document: dict) -> list[tuple[str, int, int]]:
    return [(w["code"], w["payments"], w["amount"]) for w in document["warnings"]]


def test_the_help_says_what_makes_a_row_this_payment(world: World) -> None:
    shown = " ".join(world.run("pay", "--help").stdout.split())
    assert (
        "A row is identified by the run's label, its payer, payee, amount and reference (and, among identical rows, its number)"
        in shown
    )
    assert "is paid again, as a new payment" in shown and "--run 2026-02" in shown


@pytest.mark.parametrize("kind", KINDS)
def test_an_edited_row_is_another_payment_and_the_run_says_so(payers: World, file: Path, kind: tuple[str, ...]) -> None:
    words = (*COLUMNS, *kind)
    assert payers.json("pay", str(file), *words)["warnings"] == []
    write(file, ["shop;bob;3.00;rent", ROWS[1]])
    assert codes(payers.json("pay", str(file), *words)) == [("rows_left_file", 1, 200)]
    assert available(payers)["bob"] == 1000
    shown = payers.run("pay", str(file), *words).stderr
    assert "run 'may.csv' paid 1 payment, 2.00 CZK, before, whose rows are not in the file any more" in shown
    assert "an edited row is paid again, as a new payment" in shown


@pytest.mark.parametrize("kind", KINDS)
def test_another_file_of_the_same_name_and_rows_pays_nothing_and_says_so(
    payers: World, file: Path, tmp_path: Path, kind: tuple[str, ...]
) -> None:
    words = (*COLUMNS, *kind)
    payers.run("pay", str(file), *words)
    other = tmp_path / "june" / "may.csv"
    other.parent.mkdir()
    write(other, ROWS)
    found = payers.json("pay", str(other), *words)
    assert codes(found) == [("all_paid_before", 2, 700)]
    shown = payers.run("pay", str(other), *words).stderr
    assert "nothing was paid now: run 'may.csv' paid all 2 payments of the file before, the last at 20" in shown
    assert "give the run a new label: --run LABEL" in shown
    assert payers.json("pay", str(other), *words, "--run", "june")["warnings"] == []
    assert available(payers)["bob"] == 1400


def test_one_of_equal_rows_that_is_taken_out_is_told_of(payers: World, file: Path) -> None:
    write(file, [ROWS[0], ROWS[0]])
    payers.run("pay", str(file), *COLUMNS)
    write(file, [ROWS[0]])
    assert codes(payers.json("pay", str(file), *COLUMNS)) == [("rows_left_file", 1, 200), ("all_paid_before", 1, 200)]


def test_rows_that_were_never_paid_are_not_told_of(payers: World, file: Path, one_round: None) -> None:
    write(file, ["nokey;bob;4.00;", "shop;nobody;1.00;"])
    payers.run("pay", str(file), *COLUMNS, code=1)
    write(file, ROWS)
    late = never_arrives(payers, file, "--run", "may.csv")
    assert len(late) >= 2
    write(file, ["shop;bob;9.00;"])
    assert payers.json("pay", str(file), *COLUMNS)["warnings"] == []
    payers.ledger.submit(late[0], b"")
    assert [w[:2] for w in codes(payers.json("pay", str(file), *COLUMNS))] == [
        ("rows_left_file", 1),
        ("all_paid_before", 1),
    ], "the one that arrived meanwhile"


def test_an_answer_that_was_lost_on_the_way_is_not_a_payment_of_an_earlier_run(payers: World, file: Path) -> None:
    """The node had it before it was asked again, and so will say `repeated`."""

    def twice(call: wire.CallBody) -> wire.ReplyBody | None:
        if not isinstance(call, wire.Submit):
            return None
        payers.ledger.submit(call, b"")
        answer = payers.ledger.submit(call, b"")
        return answer if isinstance(answer, wire.Recorded) else None

    for node in payers.nodes:
        node.fault = twice
    found = payers.json("pay", str(file), *COLUMNS)
    assert (found["repeated"], found["warnings"]) == (2, [])


def test_the_network_is_asked_once_of_what_left_the_file(payers: World, file: Path) -> None:
    payers.run("pay", str(file), *COLUMNS)
    write(file, ROWS[:1])
    payers.run("pay", str(file), *COLUMNS)
    asked: list[wire.AskOutcome] = []

    def count(call: wire.CallBody) -> None:
        if isinstance(call, wire.AskOutcome):
            asked.append(call)

    for node in payers.nodes:
        node.fault = count
    assert codes(payers.json("pay", str(file), *COLUMNS))[0] == ("rows_left_file", 1, 500)
    assert asked == []


def test_rows_are_remembered_once(tmp_path: Path) -> None:
    rows = [Payment(2, "ann", "bob", 1, "x", 0), Payment(3, "ann", "bob", 1, "x", 1)]
    seen = SeenRows(tmp_path, "may")
    seen.add(rows[:1], [])
    seen.add(rows, ["k"])
    seen.add(rows, ["k"])
    for known in (seen, SeenRows(tmp_path, "may")):
        assert list(known.rows.values()) == [msgspec.structs.replace(row, line=0) for row in rows]
        assert set(known.rows) == {payment_key(row) for row in rows} and known.paid == {"k"}
    (path,) = (tmp_path / "rows").iterdir()
    assert path.read_bytes().count(b"\n") == 2
    assert not SeenRows(tmp_path, "june").rows
    path.write_text("{}}\n")
    with pytest.raises(LocalMisuse, match="line 1, is damaged"):
        SeenRows(tmp_path, "may")


@pytest.mark.parametrize("delimiter", [";;", '"', "\n"])
def test_a_separator_that_is_none_is_named(world: World, tmp_path: Path, delimiter: str) -> None:
    file = tmp_path / "people.csv"
    file.write_text("name\nann\n")
    said = world.run(
        "account", "open", "--from-file", str(file), "--column", "name", "--delimiter", delimiter, code=2
    ).stderr
    assert "--delimiter" in said and "must be one character" in said

"""Payment files: each payment once, whatever is run again, added, interrupted or wrong."""

import csv
import errno
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import pytest

from chain.errors import LocalMisuse
from chain.names import MAX_AMOUNT
from chain.request import MAX_POSTINGS, request_id
from cli import pay, paybatches, payrun
from cli.funding import FundedRows, Funding, split
from cli.orders import make_orders
from cli.output import Output
from cli.payfile import Columns, Payment, find_delimiter, payment_nonce, payments, read_table
from cli.payresult import RowResult, Run, is_worse, other_runs, result_path, why_kept, write_results
from cli.payrun import PayRun
from cli.progress import Progress
from cli.runlock import only_run
from hopchain import wire
from tests.cli.conftest import World
from tests.cli.test_commands import documented
from tests.hopchain.fake_node import Drop, Hang

COLUMNS = ("--from-column", "payer", "--to-column", "payee", "--amount-column", "amount", "--reference-column", "for")
FULL = (*COLUMNS, "--open-missing", "--fund-from", "mint")
ROWS = ["ann;bob;10.00;rent", "ann;cid;5.50;", "dan;bob;0.01;x", "ann;bob;10.00;rent"]
SHAPE = Columns(("payer",), ("payee",), "amount", "for")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "may.csv"
    write(path, ROWS)
    return path


def write(path: Path, rows: list[str]) -> None:
    path.write_text("\n".join(["payer;payee;amount;for", *rows]) + "\n")


def results(path: Path) -> list[dict[str, str]]:
    with path.with_suffix(".result.csv").open(newline="") as text:
        return list(csv.DictReader(text))


def available(world: World) -> dict[str, int]:
    return {n: a.settled + a.incoming for n, a in world.ledger.accounts.items() if n not in ("mint", "points")}


# --- the file ------------------------------------------------------------------------------------------------------


def read(path: Path, columns: Columns = SHAPE, delimiter: str | None = None) -> list:
    return payments(read_table(path, delimiter, columns.all), columns, 2, "CZK")


def test_rows_become_payments(file: Path) -> None:
    found = read(file)
    assert [(p.line, p.sender, p.recipient, p.amount, p.reference, p.occurrence) for p in found] == [
        (2, "ann", "bob", 1000, "rent", 0),
        (3, "ann", "cid", 550, "", 0),
        (4, "dan", "bob", 1, "x", 0),
        (5, "ann", "bob", 1000, "rent", 1),
    ]


def test_names_are_made_of_columns_and_prefixes(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('"id";"bank";"number";"amount"\n7;"YZ";"0123";"1.5"\n')
    (row,) = read(path, Columns(("id",), ("bank", "number"), "amount", None, "payer-", "cz:"))
    assert (row.sender, row.recipient, row.amount) == ("payer-7", "cz:yz-0123", 150)


@pytest.mark.parametrize("delimiter", [";", ",", "\t", "|"])
def test_the_delimiter_is_found_out_or_given(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbf" + delimiter.join(["payer", "payee", '"amount"', "for"]).encode() + b"\n")
    with path.open("a") as text:
        text.write(delimiter.join(["a", "b", "1", '"x;,|y"']) + "\n")
    assert read(path)[0].reference == "x;,|y"
    assert read(path, delimiter=delimiter) == read(path)


def test_a_delimiter_inside_quotes_does_not_count() -> None:
    assert find_delimiter('"a,b,c,d";"e"') == ";"


def test_bad_rows_carry_their_fault_and_the_others_go_on(file: Path) -> None:
    write(
        file,
        [
            "ann;bob;1;",
            "Ann Lee;bob;1;",
            "ann;ann;1;",
            "ann;bob;1.005;",
            "ann;bob;0;",
            f"ann;bob;1;{'ž' * 29}",
            ";b;1;",
        ],
    )
    found = read(file)
    assert [bool(p.fault) for p in found] == [False, True, True, True, True, True, True]
    for payment, what in zip(
        found[1:], ["account name", "itself", "2 decimals", "from 0.01", "58 bytes", "account name"], strict=True
    ):
        assert what in payment.fault


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"payer;payee\n", "no column amount, for; it has: payer, payee"),
        (b"", "is empty"),
        (b"\n;;;\n", "is empty"),
        (b'payer;payee;amount;for\na;"b;1;\n', r"line 2: .* a quote not closed"),
        (b"payer;payee;amount;for\n\xff\xfe;;;\n", r"not UTF-8 text \(line 2, byte 23 of the file\)"),
        (b"\xef\xbb\xbfpayer\n" + b"a\r\n" * 10_000 + b"b\xff\n", r"\(line 10002, byte 30010 of the file\)"),
        (b'payer;payee;amount;for\n"a"b;c;1;\n', "not a CSV file"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(LocalMisuse, match=what):
        read(path)
    with pytest.raises(LocalMisuse):
        read(path, delimiter=";;")


@pytest.mark.parametrize("how", ["", "--bulk", "--atomic"])
def test_an_amount_torn_apart_at_its_thousands_is_not_paid(world: World, file: Path, how: str) -> None:
    world.run("account", "open", "dora")
    words = ("--from-column", "from", "--to-column", "to", "--amount-column", "amount", *([how] if how else []))
    for row in ("mint,dora,1,500.00,rent", "mint,dora,1,500.00,"):  # with an empty reference the last cell is empty
        file.write_text(f"from,to,amount,ref\n{row}\n")
        what = "the row has 5 cells and the header 4: quote a cell that holds the separator ','"
        if how == "--atomic":
            assert f"line 2 cannot be paid: {what}" in world.json("pay", str(file), *words, code=2)["message"]
            continue
        assert world.json("pay", str(file), *words, code=1)["outcomes"] == {"invalid": 1}
        assert [(r["line"], r["reason"]) for r in results(file)] == [("2", what)]
    assert available(world)["dora"] == 0
    file.write_text('from,to,amount,ref\nmint,dora,"1500.00",rent\n')
    assert world.json("pay", str(file), *words)["amount_completed"] == 150_000


def test_a_row_that_lacks_cells_is_not_paid(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("payer;payee;amount;for\nann;bob;1500.00;rent\n\nann;bob;15")  # a copy that was cut off
    (whole, cut) = read(path)
    assert not whole.fault and (cut.line, cut.amount) == (4, 0)
    assert cut.fault.startswith("the row has 3 cells and the header 4: it may be cut off")


def test_spaces_and_lines_without_anything_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\n;;;\n payer; payee ;amount;for\n\na; b; 1.00;\n;;;\n ; ;;\na;c;2;\n")
    assert [(p.line, p.sender, p.recipient, p.amount, p.fault) for p in read(path)] == [
        (5, "a", "b", 100, ""),
        (8, "a", "c", 200, ""),
    ]
    path.write_text("payer; payee;amount;for\na; b; 1.00;\n")
    assert [row.cells for row in read_table(path, None, [" payee"])] == [{" payee": "b"}]


def test_a_column_that_is_there_twice_is_refused_when_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("payer;payee;amount;amount;for;note;note\nann;bob;1;2;rent;x;y\n")
    with pytest.raises(LocalMisuse, match="more than one column amount: which one is meant"):
        read(path)
    path.write_text("payer;payee;amount;for;note;note\nann;bob;1;rent;x;y\n")
    (row,) = read(path)
    assert (row.amount, row.reference, row.fault) == (100, "rent", "")


def test_nonces_do_not_depend_on_the_place_of_a_row(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "a.csv"
    rows = make_orders(200, rng).splitlines()[1:]
    shape = Columns(("account_id",), ("bank_to", "account_to"), "amount", "k_symbol")
    header = "order_id;account_id;bank_to;account_to;amount;k_symbol"

    def nonces(lines: list[str], label: str = "may") -> Counter[bytes]:
        path.write_text("\n".join([header, *lines]) + "\n")
        return Counter(payment_nonce(label, p) for p in read(path, shape))

    doubled = rows + rows[:20]
    first = nonces(doubled)
    assert set(first.values()) == {1}
    assert nonces(rng.sample(doubled, len(doubled))) == first
    assert nonces([*doubled, *rows[:5]]) > first
    assert not nonces(doubled, "june") & first


def test_every_part_of_a_payment_is_in_its_nonce(file: Path) -> None:
    write(file, ["a;b;1;x", "a;c;1;x", "d;b;1;x", "a;b;2;x", "a;b;1;y", "a;b;1;x", "a;b1;1;x", "a;b;11;x"])
    found = read(file)
    nonces = [payment_nonce("may", p) for p in found] + [
        payment_nonce("may", found[0], 1),
        payment_nonce("mayb", found[0]),
    ]
    assert len(set(nonces)) == len(nonces)
    assert all(len(n) == 32 for n in nonces)


def test_the_example_file_is_what_its_script_writes() -> None:
    example = Path(__file__).parents[2] / "examples" / "standing-orders.csv"
    assert example.read_text() == make_orders(300, random.Random(1999))


# --- the run -------------------------------------------------------------------------------------------------------


def test_a_file_is_paid_over_all_nodes_and_run_again_pays_nothing(world: World, file: Path) -> None:
    first = world.json("pay", str(file), *FULL)
    assert set(first) == documented("pay")
    assert [first[k] for k in ("rows", "completed", "repeated", "failed", "opened")] == [4, 4, 0, 0, 4]
    assert (first["amount_completed"], first["funded"], first["run"]) == (2551, 2551, "may.csv")
    assert available(world) == {"ann": 0, "bob": 2001, "cid": 550, "dan": 0}
    assert [r["outcome"] for r in results(file)] == ["completed"] * 4
    assert [r["line"] for r in results(file)] == ["2", "3", "4", "5"]
    assert all(any(isinstance(c, wire.Submit) for c in n.calls) for n in world.nodes)
    executed = world.ledger.executed
    again = world.json("pay", str(file), *FULL)
    assert [again[k] for k in ("completed", "repeated", "opened", "funded")] == [4, 4, 0, 0]
    assert world.ledger.executed == executed
    assert [r["repeated"] for r in results(file)] == ["yes"] * 4
    assert "4 of 4 payments completed (4 of them before)" in world.run("pay", str(file), *FULL).stdout


def test_payers_and_payees_are_called_what_is_put_before_them_and_their_cells(world: World, file: Path) -> None:
    write(file, ["7;8;1.00;rent", "8;7;2.00;"])
    world.run("pay", str(file), *FULL, "--from-prefix", "payer-", "--to-prefix", "firm-")
    assert [(r["from"], r["to"]) for r in results(file)] == [("payer-7", "firm-8"), ("payer-8", "firm-7")]
    assert available(world) == {"payer-7": 0, "payer-8": 0, "firm-8": 100, "firm-7": 200}


def test_added_rows_are_funded_and_paid_and_the_old_ones_not_again(world: World, file: Path) -> None:
    world.run("pay", str(file), *FULL)
    write(file, ["eve;bob;3;", *ROWS, "ann;bob;10.00;rent", "dan;ann;2;"])
    found = world.json("pay", str(file), *FULL)
    assert [found[k] for k in ("completed", "repeated", "funded", "opened")] == [7, 4, 1500, 1]
    assert available(world) == {"ann": 200, "bob": 3301, "cid": 550, "dan": 0, "eve": 0}


def test_another_run_label_pays_again(world: World, file: Path) -> None:
    world.run("pay", str(file), *FULL)
    found = world.json("pay", str(file), *FULL, "--run", "june")
    assert [found[k] for k in ("completed", "repeated", "run", "funded")] == [4, 0, "june", 2551]
    assert available(world)["bob"] == 4002


def calls_nobody(world: World) -> None:
    def called(call: wire.CallBody) -> None:
        raise AssertionError(call)

    for node in world.nodes:
        node.fault = called


def test_a_check_sends_nothing_and_says_what_would_be_paid(world: World, file: Path) -> None:
    world.run("account", "open", "ann", "bob", "cid", "dan")
    journal = world.wallet.directory / "journal"
    before = journal.read_bytes()
    calls_nobody(world)
    found = world.json("pay", str(file), *COLUMNS, "--check")
    assert set(found) == documented("pay --check")
    assert (found["rows"], found["to_send"], found["sent_before"], found["amount"]) == (4, 4, 0, 2551)
    assert found["payers"] == [
        {"payer": "ann", "rows": 3, "amount": 2550},
        {"payer": "dan", "rows": 1, "amount": 1},
    ]
    assert found["invalid"] == [] and found["asset"] == "CZK" and found["scale"] == 2
    shown = world.run("pay", str(file), *COLUMNS, "--check").stdout
    assert (
        "nothing was sent. Of 4 payments 4 would be sent, 25.51 CZK; 0 cannot" in shown
        and "ann       3  25.50 CZK" in shown
    )
    assert journal.read_bytes() == before and not Path(found["result_file"]).exists()


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("a\0b", "the reference 'a\\x00b' holds a zero character: leave it out"),
        ("ž" * 29, f"the reference {'ž' * 29!r} takes 58 bytes of UTF-8: at most 56"),
    ],
)
def test_a_reference_that_no_payment_can_have_is_refused_with_the_reason(
    world: World, file: Path, reference: str, why: str
) -> None:
    world.run("account", "open", "ann")
    write(file, [f"ann;bob;1.50;{reference}"])
    (row,) = world.json("pay", str(file), *COLUMNS, "--check", code=2)["invalid"]
    assert row["reason"] == why


def test_a_check_names_the_rows_that_cannot_be_sent(world: World, file: Path) -> None:
    world.run("account", "open", "ann")
    calls_nobody(world)
    write(file, ["ann;bob;1.500;rent", "ann;cid;5.50;", "eve;bob;1.00;"])
    found = world.json("pay", str(file), *COLUMNS, "--check", code=2)
    assert [(row["line"], row["outcome"]) for row in found["invalid"]] == [(2, "invalid"), (4, "no_key")]
    assert "write 1.50, or 1500" in found["invalid"][0]["reason"] and found["to_send"] == 1
    opening = world.json("pay", str(file), *COLUMNS, "--check", "--open-missing", code=2)
    assert [row["line"] for row in opening["invalid"]] == [2] and opening["to_send"] == 2
    shown = world.run("pay", str(file), *COLUMNS, "--check", code=2).stdout
    assert "line 2: ann -> bob: invalid: '1.500'" in shown and "2 cannot be sent" in shown
    assert "line 2 cannot be paid" in world.run("pay", str(file), *COLUMNS, "--check", "--atomic", code=2).stderr


@pytest.mark.parametrize("how", [(), ("--bulk",), ("--pool", "ann=ann-1,ann-2")])
def test_a_check_knows_what_was_sent_before(world: World, file: Path, how: tuple[str, ...]) -> None:
    write(file, ROWS[:2])
    funded = ("--open-missing",) if how == ("--bulk",) else ("--open-missing", "--fund-from", "mint")
    world.run_any("pay", str(file), *COLUMNS, *funded, *how)
    write(file, [*ROWS[:2], "ann;dan;3.00;new"])
    calls_nobody(world)
    found = world.json("pay", str(file), *COLUMNS, "--open-missing", *how, "--check")
    assert (found["rows"], found["to_send"], found["sent_before"]) == (3, 1, 2)
    assert (found["amount"], found["amount_before"]) == (300, 1550)
    assert found["payers"] == [{"payer": "ann", "rows": 1, "amount": 300}]


def test_a_check_prints_nothing_while_a_bar_is_drawn(world: World, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be drawn over."""
    drawn: list[bool] = []
    printed: list[bool] = []
    say = Output.say

    class Bar(Progress):
        def __enter__(self) -> Self:
            drawn.append(True)
            return super().__enter__()

        def __exit__(self, *error: Any) -> None:
            drawn.append(False)
            super().__exit__(*error)

    def noted(out: Output, *words: Any, **how: Any) -> None:
        printed.append(drawn[-1])
        say(out, *words, **how)

    monkeypatch.setattr(pay, "Progress", Bar)
    monkeypatch.setattr(Output, "say", noted)
    world.run("pay", str(file), *COLUMNS, "--check", "--open-missing")
    assert printed and not any(printed)


def test_a_check_does_not_choose_the_network(world: World, file: Path) -> None:
    """The next payment goes to the one that was used last."""
    last = {path: path.read_bytes() for path in world.home.glob("*") if path.is_file()}
    world.run("pay", str(file), *COLUMNS, "--check", "--open-missing", "--network", str(world.directory))
    assert {path: path.read_bytes() for path in world.home.glob("*") if path.is_file()} == last


def test_answers_that_get_lost_change_nothing(world: World, file: Path, rng: random.Random) -> None:
    def lossy(call: wire.CallBody) -> Drop | None:
        return Drop(after=rng.random() < 0.5) if isinstance(call, wire.Submit) and rng.random() < 0.3 else None

    for node in world.nodes:
        node.fault = lossy
    found = world.json("pay", str(file), *FULL)
    assert found["completed"] == 4
    assert available(world) == {"ann": 0, "bob": 2001, "cid": 550, "dan": 0}


def test_a_run_cut_off_by_a_dead_network_goes_on_later(world: World, file: Path) -> None:
    world.run("pay", str(file), *FULL, "--run", "warm-up")
    left = [2]

    def dying(call: wire.CallBody) -> Drop | None:
        if isinstance(call, wire.Submit):
            left[0] -= 1
            if left[0] < 0:
                for node in world.nodes:
                    node.stop()
                return Drop()
        return None

    for node in world.nodes:
        node.fault = dying
    write(file, ["mint;bob;1;", "mint;bob;2;", "mint;bob;3;", "mint;bob;4;"])
    failed = world.json("pay", str(file), *COLUMNS, "--concurrency", "1", "--timeout", "0.3", code=3)
    assert failed["error"] == "unreachable"
    outcomes = [r["outcome"] for r in results(file)]
    assert outcomes[:2] == ["completed", "completed"] and outcomes[3] == "not_sent"
    for node in world.nodes:
        node.fault = lambda call: None
        world.portal.start_task(node.serve)
    found = world.json("pay", str(file), *COLUMNS)
    assert (found["completed"], found["repeated"]) == (4, 2)


def test_rows_that_fail_do_not_stop_the_others(world: World, file: Path) -> None:
    world.run("account", "open", "ann", "bob", "dry")
    world.ledger.open("stranger", "CZK", bytes(32))
    write(file, ["dry;bob;1;", "mint;bob;1;", "mint;nobody;1;", "stranger;bob;1;", "mint;bob;1.005;", "mint;ann;7;"])
    found = world.json("pay", str(file), *COLUMNS, code=1)
    assert found["outcomes"] == {
        "insufficient_funds": 1,
        "completed": 2,
        "unknown_recipient": 1,
        "no_key": 1,
        "invalid": 1,
    }
    assert [r["outcome"] for r in results(file)] == [
        *("insufficient_funds", "completed", "unknown_recipient", "no_key", "invalid", "completed"),
    ]
    assert "2 decimals" in results(file)[4]["reason"]
    shown = world.run("pay", str(file), *COLUMNS, code=1).stdout
    assert "line 2: dry -> bob: insufficient_funds" in shown


def test_a_rejected_row_stays_rejected_until_it_is_asked_for(world: World, file: Path) -> None:
    world.run("account", "open", "ann", "bob")
    write(file, ["ann;bob;1;"])
    world.run("pay", str(file), *COLUMNS, code=1)
    world.run("transfer", "mint", "ann", "5")
    assert world.json("pay", str(file), *COLUMNS, code=1)["outcomes"] == {"insufficient_funds": 1}
    assert world.json("pay", str(file), *COLUMNS, "--retry-rejected")["completed"] == 1
    assert world.json("pay", str(file), *COLUMNS, "--retry-rejected")["repeated"] == 1
    assert world.json("pay", str(file), *COLUMNS)["repeated"] == 1, "what was paid is told without the option, too"
    assert available(world) == {"ann": 400, "bob": 100}


def test_results_may_go_where_nothing_can_be_replaced(world: World, file: Path) -> None:
    world.run("account", "open", "bob")
    write(file, ["mint;bob;1;"])
    world.run("pay", str(file), *COLUMNS, "--result", os.devnull)
    assert Path(os.devnull).is_char_device()


def test_results_go_where_a_link_points(world: World, file: Path, tmp_path: Path) -> None:
    world.run("account", "open", "bob")
    write(file, ["mint;bob;1;"])
    there = tmp_path / "there"
    there.mkdir()
    link = tmp_path / "link"
    link.symlink_to(there / "may.csv")
    for repeated in ("", "yes"):
        world.run("pay", str(file), *COLUMNS, "--result", str(link))
        assert link.is_symlink() and [row["repeated"] for row in told(there / "may.csv")] == [repeated]
    assert [path.name for path in there.iterdir()] == ["may.csv"]
    (tmp_path / "lost").symlink_to(tmp_path / "none" / "may.csv")
    (tmp_path / "round").symlink_to("round")
    for name in ("lost", "round"):
        said = world.json("pay", str(file), *COLUMNS, "--result", str(tmp_path / name), code=2)["message"]
        assert "cannot hold the outcomes" in said


def test_results_stay_as_private_as_they_were(world: World, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And are on disk before they replace what was there."""
    world.run("account", "open", "bob")
    write(file, ["mint;bob;1;"])
    world.run("pay", str(file), *COLUMNS)
    path = file.with_suffix(".result.csv")
    path.chmod(0o600)
    synced: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        real(handle)
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))

    monkeypatch.setattr(os, "fsync", fsync)
    write(file, ["mint;bob;1;", "mint;bob;2;"])
    world.run("pay", str(file), *COLUMNS)
    assert path.stat().st_mode & 0o777 == 0o600 and len(told(path)) == 2
    assert any(name.startswith(str(path.with_name(f".{path.name}."))) for name in synced)


@pytest.mark.parametrize("how", ["fifo", "pipe"])
def test_results_go_into_a_pipe_that_stays_one(world: World, file: Path, tmp_path: Path, how: str) -> None:
    world.run("account", "open", "bob")
    write(file, ["mint;bob;1;"])
    path = tmp_path / "fifo"
    if how == "fifo":
        os.mkfifo(path)
        ends = [os.open(path, os.O_RDWR)]
    else:
        ends = list(os.pipe())
        path = Path(f"/dev/fd/{ends[1]}")
    try:
        world.run("pay", str(file), *COLUMNS, "--result", str(path))
        assert path.is_fifo() and os.read(ends[0], 1 << 16).count(b"\r\n2,mint,bob,1.00,,completed,") == 1
    finally:
        for end in ends:
            os.close(end)


@pytest.mark.parametrize("number", [1, 2])
def test_results_go_behind_what_was_printed(tmp_path: Path, number: int) -> None:
    """As standard output and error do when a shell sends them into a file."""
    name = {1: "stdout", 2: "stderr"}[number]
    script = f"""if True:
        import os, sys
        from pathlib import Path
        from cli.payresult import Run, is_worse, other_runs, why_kept, write_results
        path = Path("/proc/self/fd/{number}")  # where /dev/{name} points
        print("before", file=sys.{name}, flush=True)
        assert why_kept(path) == "" and other_runs(path, Run("may", "")) == []
        write_results(path, Run("may", ""), [], [], 2)
        print("after", file=sys.{name}, flush=True)"""
    into = tmp_path / "into"
    with into.open("wb") as stream:
        subprocess.run([sys.executable, "-c", script], **{name: stream}, check=True, timeout=60)
    first, header, last = into.read_text().splitlines()
    assert (first, header[:13], last) == ("before", "line,from,to,", "after")


def test_money_that_a_file_passes_on_is_there_in_time(world: World, file: Path) -> None:
    names = [f"a{n}" for n in range(30)]
    world.run("account", "open", *names)
    chain = [f"{a};{b};1;" for a, b in pairwise(names)]
    write(file, ["mint;a0;1;", *chain])
    assert world.json("pay", str(file), *COLUMNS)["completed"] == 30
    assert available(world)["a29"] == 100


def test_rows_without_an_answer_are_left_for_the_next_run(world: World, file: Path) -> None:
    world.run("account", "open", "bob")
    write(file, ["mint;bob;1;"])
    for node in world.nodes:
        node.fault = lambda call: Hang() if isinstance(call, wire.Submit) else None
    found = world.json("pay", str(file), *COLUMNS, "--timeout", "0.1", code=3)
    assert found["outcomes"] == {"unknown": 1}
    assert "hopchain outcome" in results(file)[0]["reason"]
    for node in world.nodes:
        node.fault = lambda call: None
    assert world.json("pay", str(file), *COLUMNS)["completed"] == 1


@pytest.mark.parametrize(
    "later",
    [lambda n: wire.NotStarted(n, "busy", "later"), lambda n: wire.Refused("busy", "later")],
    ids=["not_started", "refused"],
)
def test_after_a_try_without_an_outcome_nothing_happened_is_not_concluded(
    world: World, file: Path, monkeypatch: pytest.MonkeyPatch, later: Callable[[bytes], wire.ReplyBody]
) -> None:
    monkeypatch.setattr(payrun, "PAUSE_S", 0.0)
    world.run("account", "open", "bob")
    write(file, ["mint;bob;1;"])
    seen: list[bytes] = []

    def fault(call: wire.CallBody) -> wire.ReplyBody | None:
        if not isinstance(call, wire.Submit):
            return None
        seen.append(request_id(call.raw))
        return later(seen[-1]) if len(seen) > 1 else wire.Unknown(seen[-1], "no outcome in time")

    for node in world.nodes:
        node.fault = fault
    found = world.json("pay", str(file), *COLUMNS, "--timeout", "0.1", code=3)
    assert found["outcomes"] == {"unknown": 1} and len(set(seen)) == 1 < len(seen)


def test_every_row_is_in_the_journal(world: World, file: Path) -> None:
    world.run("pay", str(file), *FULL)
    for row in results(file):
        assert world.wallet.sender_of(bytes.fromhex(row["request_id"])) == row["from"]


@pytest.mark.parametrize("how", ["", "--bulk"])
def test_a_file_that_is_run_again_adds_nothing_to_the_journal(world: World, file: Path, how: str) -> None:
    words = (*FULL, *([how] if how else []))
    world.run("pay", str(file), *words)
    journal = world.wallet.directory / "journal"
    before = journal.read_bytes()
    world.run("pay", str(file), *words)
    world.run("pay", str(file), *words, "--retry-rejected")
    assert journal.read_bytes() == before
    write(file, [*ROWS, "mint;bob;1;"])
    world.run("pay", str(file), *words)
    assert journal.read_bytes().count(b"\n") == before.count(b"\n") + 1


def test_a_rejected_row_that_is_run_again_adds_nothing_to_the_journal(world: World, file: Path) -> None:
    world.run("account", "open", "ann", "bob")
    write(file, ["ann;bob;1;"])
    for _ in range(2):
        world.run("pay", str(file), *COLUMNS, "--retry-rejected", code=1)
    journal = world.wallet.directory / "journal"
    before = journal.read_bytes()
    for _ in range(2):
        world.run("pay", str(file), *COLUMNS, code=1)
    assert journal.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--asset", "EUR"), "no asset 'EUR'"),
        (("--fund-from", "Mint"), "not an account name"),
        (("--delimiter", ","), "no column"),
    ],
)
def test_pay_refuses_bad_input_before_anything_is_sent(
    world: World, file: Path, words: tuple[str, ...], what: str
) -> None:
    assert what in world.json("pay", str(file), *COLUMNS, *words, code=2)["message"]
    assert not world.nodes[0].calls


@pytest.mark.parametrize("held", [b"-----BEGIN PRIVATE KEY-----\n", b"line,from,to\n1,a,b\n", b"\xff\xfe\0"])
def test_the_outcomes_replace_no_other_file(world: World, file: Path, tmp_path: Path, held: bytes) -> None:
    other = tmp_path / "other"
    other.write_bytes(held)
    said = world.json("pay", str(file), *COLUMNS, "--result", str(other), code=2)["message"]
    assert "holds something else than the outcomes of a run" in said
    assert other.read_bytes() == held and not world.nodes[0].calls
    other.write_bytes(b"")
    world.run("pay", str(file), *FULL, "--result", str(other))
    first = told(other)
    assert [row["repeated"] for row in first] == [""] * len(ROWS)
    world.run("pay", str(file), *FULL, "--result", str(other))  # its own are written anew
    assert told(other) == [row | {"repeated": "yes"} for row in first]


@pytest.mark.parametrize("taken", [False, True])
def test_what_came_there_while_a_run_went_on_is_not_replaced(world: World, file: Path, taken: bool) -> None:
    world.run("account", "open", "ann", "bob")
    write(file, ["mint;ann;1;", "mint;bob;2;"])
    other, beside = file.with_name("other"), file.with_name("other.new")

    def comes(call: wire.CallBody) -> None:
        if isinstance(call, wire.Submit):
            other.write_text("a list\n")
            if taken:
                beside.write_text("another\n")

    for node in world.nodes:
        node.fault = comes
    found = world.json("pay", str(file), *COLUMNS, "--result", str(other), code=5 if taken else 0)
    assert other.read_text() == "a list\n" and found["completed"] == 2
    assert (beside.read_text() == "another\n") if taken else ([r["outcome"] for r in told(beside)] == ["completed"] * 2)
    assert found["result_file"] == str(other if taken else beside)
    assert (
        not taken
        or f"{other} now exists and holds something else than the outcomes of a run, and so does" in found["message"]
    )


def told(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as text:
        return list(csv.DictReader(text))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_outcomes_that_a_spreadsheet_saved_are_known_as_such(world: World, file: Path, delimiter: str) -> None:
    world.run("pay", str(file), *FULL)
    path = file.with_suffix(".result.csv")
    first = results(file)
    with path.open("w", newline="", encoding="utf-8-sig") as text:
        writer = csv.DictWriter(text, list(first[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(first)
    saved = path.read_bytes()
    for node in world.nodes:
        node.fault = lambda call: Hang() if isinstance(call, wire.Submit) else None
    shown = world.run("pay", str(file), *COLUMNS, "--timeout", "0.1", code=3)
    assert "is left as an earlier run wrote it" in shown.stderr and path.read_bytes() == saved
    for node in world.nodes:
        node.fault = lambda call: None
    world.run("pay", str(file), *COLUMNS)
    assert results(file) == [row | {"repeated": "yes"} for row in first]


def test_a_result_file_that_cannot_be_looked_at_is_told(
    world: World, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = world.json("pay", str(file), *COLUMNS, "--result", str(file.with_name("x" * 300)), code=2)["message"]
    assert "cannot hold the outcomes (File name too long)" in said
    there, opened = file.with_name("there"), Path.open

    def gone(path: Path, *args: object, **more: object) -> object:
        if path == there:
            there.unlink(missing_ok=True)
        return opened(path, *args, **more)  # type: ignore[call-overload]

    def locked(path: Path, *args: object, **more: object) -> object:
        if path == there:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, *args, **more)  # type: ignore[call-overload]

    there.write_text("x")
    monkeypatch.setattr(Path, "open", gone)
    assert why_kept(there) == ""
    there.write_text("x")
    monkeypatch.setattr(Path, "open", locked)
    said = world.json("pay", str(file), *COLUMNS, "--result", str(there), code=2)["message"]
    assert f"{there} exists and cannot be read (Permission denied), so what it holds is not known" in said
    assert not world.nodes[0].calls


def test_pay_refuses_an_empty_file_and_to_write_over_it(world: World, file: Path) -> None:
    world.run("pay", str(file), *COLUMNS, "--result", str(file), code=2)
    assert read(file)
    write(file, [])
    assert "no rows" in world.json("pay", str(file), *COLUMNS, code=2)["message"]


# --- two runs at once ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["", "--bulk", "--atomic"])
def test_a_run_that_is_going_on_is_not_begun_again(world: World, file: Path, how: str) -> None:
    world.run("account", "open", "ann", "bob")
    write(file, ["mint;ann;1;", "mint;bob;2;"])
    world.run("pay", str(file), *COLUMNS)
    before, words = results(file), (*COLUMNS, "--fund-from", "mint", *([how] if how else []))
    for node in world.nodes:
        node.calls.clear()
    with only_run(world.wallet, "may.csv"):
        refused = world.json("pay", str(file), *words, code=2)
        assert f"run 'may.csv' is in progress in process {os.getpid()}: wait" in refused["message"]
        assert not any(node.calls for node in world.nodes) and results(file) == before
        assert world.json("pay", str(file), *words, "--run", "june")["completed"] == 2


@pytest.mark.parametrize("how", ["", "--bulk"])
def test_a_run_is_held_while_its_requests_are_sent_and_then_free(world: World, file: Path, how: str) -> None:
    held: list[bool] = []

    def look(call: wire.CallBody) -> None:
        try:
            with only_run(world.wallet, "may.csv"):
                held.append(False)
        except LocalMisuse:
            held.append(True)

    for node in world.nodes:
        node.fault = look
    world.run("pay", str(file), *FULL, *([how] if how else []))
    assert held and all(held)
    with only_run(world.wallet, "may.csv"):
        pass


# --- the result file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["", "--bulk"])
def test_a_rerun_that_gets_no_answer_keeps_what_is_known(world: World, file: Path, how: str) -> None:
    words = (*COLUMNS, *([how] if how else []))
    world.run("pay", str(file), *FULL, *words[len(COLUMNS) :])
    before = results(file)
    for node in world.nodes:
        node.fault = lambda call: Hang() if isinstance(call, wire.Submit) else None
    shown = world.run("pay", str(file), *words, "--timeout", "0.1", code=3)
    assert "no row got a new answer" in shown.stderr and results(file) == before
    world.stop()
    shown = world.run("pay", str(file), *words, "--timeout", "0.3", code=3)
    assert "may.result.csv is left as an earlier run wrote it" in shown.stderr and results(file) == before
    file.with_suffix(".result.csv").unlink()
    world.run("pay", str(file), *words, "--timeout", "0.3", code=3)
    assert {r["outcome"] for r in results(file)} <= {"unknown", "not_sent"}, "better than none"


def test_the_result_file_names_its_run_and_that_of_another_run_is_not_left_as_its_own(world: World, file: Path) -> None:
    world.run("pay", str(file), *FULL, "--run", "nov")
    network = world.ledger.genesis.network_id.hex()
    assert {(r["outcome"], r["run"], r["network"]) for r in results(file)} == {("completed", "nov", network)}
    world.stop()
    shown = world.run("pay", str(file), *COLUMNS, "--run", "feb", "--timeout", "0.3", code=3)
    assert "is left" not in shown.stderr
    assert f"held the outcomes of run 'nov' in network {network[:16]}, which are replaced now" in shown.stderr
    assert not {r["outcome"] for r in results(file)} & {"completed"}
    assert {(r["run"], r["network"]) for r in results(file)} == {("feb", network)}
    before = results(file)
    shown = world.run("pay", str(file), *COLUMNS, "--run", "feb", "--timeout", "0.3", code=3)
    assert "is left as an earlier run wrote it" in shown.stderr and results(file) == before


def test_the_result_file_of_a_network_is_not_left_as_that_of_another(tmp_path: Path) -> None:
    path, rows = tmp_path / "may.result.csv", [Payment(2, "ann", "bob", 100, "", 0)]
    here, there = Run("may.csv", "aa" * 32), Run("may.csv", "bb" * 32)
    unknown = [RowResult("unknown")]
    write_results(path, here, rows, [RowResult("completed", answered=True, request_id="cc" * 32)], 2)
    assert is_worse(path, here, rows, unknown, 2) and not other_runs(path, here)
    assert not is_worse(path, there, rows, unknown, 2) and other_runs(path, there) == [here]
    path.write_text("line,from,to\n2,ann,bob\n")  # of no run
    assert not is_worse(path, here, rows, unknown, 2) and not other_runs(path, here)


def test_outcomes_that_a_spreadsheet_saved_are_compared_row_by_row(tmp_path: Path) -> None:
    path, run = tmp_path / "may.result.csv", Run("may.csv", "aa" * 32)
    rows = [Payment(line, "ann", "bob", line, "", 0) for line in (2, 3)]
    known = [RowResult("completed", answered=True, request_id=f"{n:064x}") for n in (2, 3)]
    write_results(path, run, rows, known, 2)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert is_worse(path, run, rows, [known[0], RowResult("not_sent")], 2)
    other = RowResult("completed", answered=True, request_id="ff" * 32)
    assert not is_worse(path, run, rows, [other, RowResult("not_sent")], 2)


def test_files_that_differ_in_their_endings_do_not_share_a_result_file() -> None:
    names = [result_path(Path("x") / name).name for name in ("sal.csv", "sal.txt", "sal.2.csv", ".csv")]
    assert names == ["sal.result.csv", "sal.txt.result.csv", "sal.2.result.csv", ".result.csv"]


def test_a_file_of_rows_that_are_none_is_told_whatever_was_there(world: World, file: Path) -> None:
    world.run("pay", str(file), *FULL)
    write(file, ["ann;ann;1;"])
    world.run("pay", str(file), *COLUMNS, code=1)
    assert [r["outcome"] for r in results(file)] == ["invalid"]


def test_a_result_file_that_cannot_be_written_is_told_and_the_old_one_stays(world: World, file: Path) -> None:
    world.run("pay", str(file), *FULL)
    before = results(file)
    write(file, [*ROWS, "mint;bob;1;"])
    fresh = file.with_name(f".may.result.csv.{os.getpid()}")
    fresh.symlink_to("/dev/full")
    failed = world.json("pay", str(file), *COLUMNS, code=5)
    assert (
        failed["error"] == "disk"
        and "may.result.csv could not be written (No space left on device)" in failed["message"]
    )
    assert "name another file with --result" in failed["message"]
    assert not fresh.is_symlink() and results(file) == before
    world.stop()
    file.with_suffix(".result.csv").unlink()
    fresh.symlink_to("/dev/full")
    failed = world.json("pay", str(file), *COLUMNS, "--timeout", "0.3", code=3)
    assert failed["error"] == "unreachable", "what ended the run is told"


# --- the end of a run that fails -----------------------------------------------------------------------------------


def test_a_run_with_too_many_failures_sends_no_more(world: World, file: Path) -> None:
    world.run("account", "open", "bob", "cid")
    rows = [f"mint;nobody;{n};" for n in range(1, 4)]
    write(file, ["mint;bob;1.005;", *rows, "mint;bob;1;", "bob;cid;1;", "bob;cid;2;"])
    words = (*COLUMNS, "--concurrency", "1", "--max-failures")
    found = world.json("pay", str(file), *words, "2", code=3)
    assert found["outcomes"] == {"invalid": 1, "unknown_recipient": 2, "not_sent": 4}
    assert "more than 2 rows failed before it" in results(file)[3]["reason"]
    assert available(world)["bob"] == 0
    found = world.json("pay", str(file), *words, "5", code=1)
    assert found["outcomes"] == {"invalid": 1, "unknown_recipient": 3, "completed": 2, "insufficient_funds": 1}


@pytest.mark.parametrize("how", [(), ("--bulk",)])
def test_a_run_that_an_error_ends_after_requests_left_tells_its_rows_and_where(
    world: World, file: Path, monkeypatch: pytest.MonkeyPatch, how: tuple[str, ...]
) -> None:
    monkeypatch.setattr(paybatches, "MAX_POSTINGS", 1)
    world.run("account", "open", "ann", "bob")
    write(file, ["mint;ann;1;", "mint;bob;2;"])
    until_known, sent = PayRun._until_known, list[object]()

    async def fails(self: PayRun, client: object, signed: object) -> object:
        sent.append(answer := await until_known(self, client, signed))  # type: ignore[arg-type]
        if len(sent) == 2:
            raise payrun.Unreachable([("node", "gone")])
        return answer

    monkeypatch.setattr(PayRun, "_until_known", fails)
    words = (*COLUMNS, *how, "--concurrency", "1")
    found = world.json("pay", str(file), *words, code=3)
    assert found["error"] == "unreachable" and "gone" in found["message"]
    assert f"`hopchain up {world.directory}`" in found["message"], "and no other network"
    assert found["outcomes"] == {"completed": 1, "unknown": 1} and found["result_file"] == str(result_path(file))
    sent.clear()
    shown = world.run("pay", str(file), *words, "--run", "june", code=3)
    assert "1 of 2 payments completed" in shown.stdout and "gone" in shown.stderr
    assert f"`hopchain up {world.directory}`" in shown.stderr
    world.stop()
    none_left = world.json("pay", str(file), *words, "--fund-from", "mint", "--timeout", "0.3", code=3)
    assert set(none_left) == {"error", "message"}


# --- funding -------------------------------------------------------------------------------------------------------


def test_funding_that_cannot_work_is_told_and_works_later(world: World, file: Path) -> None:
    world.wallet.add("purse", key := world.wallet.key("mint"))
    world.ledger.open("purse", "CZK", key.public_key().public_bytes_raw())
    options = (*COLUMNS, "--open-missing", "--fund-from", "purse")
    failed = world.json("pay", str(file), *options, code=1)
    assert failed["error"] == "insufficient_funds" and "No row was paid" in failed["message"]
    assert {r["outcome"] for r in results(file)} == {"not_sent"}
    world.run("transfer", "mint", "purse", "100")
    assert world.json("pay", str(file), *options)["completed"] == 4
    assert available(world)["purse"] == 10_000 - 2551


@pytest.mark.parametrize("how", [(), ("--bulk",)])
def test_a_source_without_a_key_is_refused_before_accounts_are_opened(
    world: World, file: Path, how: tuple[str, ...]
) -> None:
    words = (*COLUMNS, "--open-missing", "--fund-from", "ghost", *how)
    assert "ghost" in world.json("pay", str(file), *words, code=2)["message"]
    assert not any(node.calls for node in world.nodes) and not file.with_suffix(".result.csv").exists()


def test_payers_that_a_lagging_node_does_not_list_are_funded(world: World, file: Path) -> None:
    world.run("account", "open", "ann", "bob", "cid", "dan")
    for node in world.nodes:
        node.fault = lambda call: wire.Accounts((), False, True) if isinstance(call, wire.AskAccounts) else None
    found = world.json("pay", str(file), *COLUMNS, "--fund-from", "mint")
    assert (found["completed"], found["funded"]) == (4, 2551)
    assert {c.account for n in world.nodes for c in n.calls if isinstance(c, wire.AskBalance) and c.linearizable} == {
        *("ann", "dan", "mint")
    }


@pytest.mark.parametrize(
    "answer", [wire.Unknown(b"", "no majority answered"), wire.NotFound("account dan", True)], ids=["unknown", "stale"]
)
def test_a_payer_of_which_nothing_is_known_waits_for_the_next_run(
    world: World, file: Path, answer: wire.ReplyBody
) -> None:
    world.run("account", "open", "ann", "bob", "cid", "dan")

    def lagging(call: wire.CallBody) -> wire.ReplyBody | None:
        if isinstance(call, wire.AskAccounts):
            return wire.Accounts((), False, True)
        return answer if isinstance(call, wire.AskBalance) and call.account == "dan" else None

    for node in world.nodes:
        node.fault = lagging
    found = world.json("pay", str(file), *COLUMNS, "--fund-from", "mint", "--timeout", "3", code=3)
    assert found["outcomes"] == {"completed": 3, "not_sent": 1} and found["funded"] == 2550
    assert "it is not known whether dan exists, so it was not funded" in results(file)[2]["reason"]
    for node in world.nodes:
        node.fault = lambda call: None
    assert world.json("pay", str(file), *COLUMNS, "--fund-from", "mint")["funded"] == 1


def test_a_payer_of_another_asset_is_left_out_and_the_others_are_funded(
    world: World, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.ledger, "_scale", lambda code: 2)
    world.run("account", "open", "ann", "bob", "cid")
    world.wallet.create(["dan"])
    world.ledger.open("dan", "EUR", world.wallet.key("dan").public_key().public_bytes_raw())
    for bulk in ((), ("--bulk", "--run", "june")):
        found = world.json("pay", str(file), *COLUMNS, "--fund-from", "mint", *bulk, code=1)
        assert found["outcomes"] == {"completed": 3, "asset_mismatch": 1} and found["funded"] == 2550
        assert "dan holds EUR, so mint cannot fund it with CZK" in results(file)[2]["reason"]
    refused = world.json("pay", str(file), *COLUMNS, "--fund-from", "dan", "--run", "july", code=1)
    assert refused["error"] == "asset_mismatch" and "dan holds EUR, and this run pays CZK" in refused["message"]
    assert not FundedRows(world.wallet.directory, "july", "dan").rows


def test_a_payer_whose_key_is_not_here_is_not_funded(world: World, file: Path) -> None:
    world.run("account", "open", "ann", "bob", "cid")
    world.ledger.open("dan", "CZK", bytes(32))
    assert world.json("pay", str(file), *COLUMNS, "--fund-from", "mint", code=1)["funded"] == 2550
    assert available(world)["dan"] == 0


def test_needs_are_split_into_what_one_request_holds() -> None:
    many = tuple((f"a{n}", 1) for n in range(2 * MAX_POSTINGS + 1))
    assert [len(part) for part in split(many)] == [MAX_POSTINGS, MAX_POSTINGS, 1]
    large = (("a", MAX_AMOUNT), ("b", 1), ("c", MAX_AMOUNT - 1), ("d", 1))
    assert split(large) == [(("a", MAX_AMOUNT),), (("b", 1), ("c", MAX_AMOUNT - 1)), (("d", 1),)]


def test_what_was_funded_is_remembered_and_a_cut_line_forgotten(tmp_path: Path) -> None:
    first = FundedRows(tmp_path, "may", "mint")
    first.add({"r1": ("ann", 2), "r2": ("ann", 3)})
    first.add({"r3": ("dan", 1)})
    again = FundedRows(tmp_path, "may", "mint")
    assert again.rows == {"r1", "r2", "r3"}
    assert again.requests == [
        Funding(0, (("ann", 5),), ("r1", "r2"), 0, True),
        Funding(1, (("dan", 1),), ("r3",), 1, True),
    ]
    (path,) = (tmp_path / "funded").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"rows":["r4"')
    assert FundedRows(tmp_path, "may", "mint").rows == {"r1", "r2", "r3"}
    assert not FundedRows(tmp_path, "june", "mint").rows
    assert not FundedRows(tmp_path, "may", "purse").rows
    path.write_bytes(b"x\n" + whole)
    with pytest.raises(LocalMisuse, match="line 1, is damaged"):
        FundedRows(tmp_path, "may", "mint")

"""`pay --bulk` and `--atomic`: many rows in one request, each row once, whatever is run again, changed or
interrupted."""

import shutil
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from chain.request import MAX_POSTINGS, Kind, Request, decode_request_untrusted
from cli.paybatches import RunBatches
from hopchain import Timing, wire
from tests.cli.conftest import World
from tests.cli.test_commands import documented
from tests.cli.test_pay import COLUMNS, FULL, available, results, write
from tests.hopchain.fake_node import Drop, Hang

BULK = (*COLUMNS, "--bulk")
ATOMIC = (*COLUMNS, "--atomic")
ROWS = ["mint;ann;1;a", "mint;bob;2;b", "mint;cid;3;c", "mint;dan;4;d", "mint;eve;5;e"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "may.csv"
    write(path, ROWS)
    return path


@pytest.fixture
def open_world(world: World) -> World:
    world.run("account", "open", "ann", "bob", "cid", "dan", "eve")
    for node in world.nodes:
        node.calls.clear()
    return world


def sent(world: World) -> list[Request]:
    """The transfers that the nodes were handed, each once, in order."""
    raws = dict.fromkeys(c.raw for n in world.nodes for c in n.calls if isinstance(c, wire.Submit))
    return [r for r in map(decode_request_untrusted, raws) if r.kind is Kind.TRANSFER]


def outcomes(file: Path) -> list[str]:
    return [r["outcome"] for r in results(file)]


def never_arrives(world: World, file: Path) -> list[wire.Submit]:
    """Run the file while no request arrives in time; those requests."""
    late: list[wire.Submit] = []

    def hang(call: wire.CallBody) -> Hang | None:
        if isinstance(call, wire.Submit):
            late.append(call)
            return Hang()
        return None

    for node in world.nodes:
        node.fault = hang
    found = world.json("pay", str(file), *BULK, "--timeout", "0.1", code=3)
    assert found["outcomes"] == {"unknown": found["rows"]}
    for node in world.nodes:
        node.fault = lambda call: None
    return late


# --- the run -------------------------------------------------------------------------------------------------------


def test_a_file_is_paid_in_few_requests_and_run_again_pays_nothing(
    open_world: World, file: Path, two_rows: None
) -> None:
    world = open_world
    first = world.json("pay", str(file), *BULK)
    assert set(first) == documented("pay")
    assert [first[k] for k in ("rows", "requests", "completed", "repeated", "amount_completed")] == [5, 3, 5, 0, 1500]
    assert [
        [(p.recipient, p.amount, p.memo) for p in r.postings] for r in sorted(sent(world), key=lambda r: r.total)
    ] == [
        [("ann", 100, "a"), ("bob", 200, "b")],
        [("eve", 500, "e")],
        [("cid", 300, "c"), ("dan", 400, "d")],
    ]
    rows = results(file)
    assert [r["outcome"] for r in rows] == ["completed"] * 5
    ids = [r["request_id"] for r in rows]
    assert ids[0] == ids[1] != ids[2] == ids[3] != ids[4] and rows[0]["height"] == rows[1]["height"]
    assert world.wallet.sender_of(bytes.fromhex(ids[4])) == "mint"
    executed = world.ledger.executed
    again = world.json("pay", str(file), *BULK)
    assert [again[k] for k in ("requests", "completed", "repeated")] == [3, 5, 5]
    assert world.ledger.executed == executed and [r["request_id"] for r in results(file)] == ids
    shown = world.run("pay", str(file), *BULK).stdout
    assert "5 of 5 payments completed (5 of them before), 15.00 CZK, in 3 requests, in" in shown


def test_a_full_request_goes_through(open_world: World, file: Path) -> None:
    write(file, ["mint;ann;0.01;"] * (MAX_POSTINGS + 1))
    assert open_world.json("pay", str(file), *BULK)["requests"] == 2
    assert sorted(len(r.postings) for r in sent(open_world)) == [1, MAX_POSTINGS]


def test_accounts_are_opened_and_payers_funded_as_without_bulk(world: World, file: Path) -> None:
    write(file, ["ann;bob;10.00;rent", "ann;cid;5.50;", "dan;bob;0.01;x", "ann;bob;10.00;rent"])
    found = world.json("pay", str(file), *FULL, "--bulk")
    assert [found[k] for k in ("opened", "funded", "requests", "completed")] == [4, 2551, 2, 4]
    assert available(world) == {"ann": 0, "bob": 2001, "cid": 550, "dan": 0}


def test_added_rows_make_requests_of_their_own(open_world: World, file: Path) -> None:
    open_world.run("pay", str(file), *BULK)
    write(file, ["mint;eve;9;", *reversed(ROWS), "mint;ann;1;a"])
    found = open_world.json("pay", str(file), *BULK)
    assert [found[k] for k in ("requests", "completed", "repeated")] == [2, 7, 5]
    assert available(open_world) == {"ann": 200, "bob": 200, "cid": 300, "dan": 400, "eve": 1400}


def test_a_wallet_that_remembers_nothing_pays_the_same_file_once(open_world: World, file: Path) -> None:
    open_world.run("pay", str(file), *BULK)
    shutil.rmtree(open_world.wallet.directory / "bulk")
    assert open_world.json("pay", str(file), *BULK)["repeated"] == 5


def test_a_request_that_is_rejected_fails_its_rows_and_no_others(open_world: World, file: Path) -> None:
    world = open_world
    world.run("transfer", "mint", "ann", "5")
    write(file, ["ann;bob;4;", "mint;bob;1;", "ann;cid;2;", "stranger;bob;1;", "mint;cid;1.005;"])
    found = world.json("pay", str(file), *BULK, code=1)
    assert found["outcomes"] == {"insufficient_funds": 2, "completed": 1, "no_key": 1, "invalid": 1}
    assert outcomes(file) == ["insufficient_funds", "completed", "insufficient_funds", "no_key", "invalid"]
    assert "2 rows are one request: all or none of them" in results(file)[0]["reason"]
    assert (available(world)["ann"], available(world)["bob"]) == (500, 100)
    world.run("transfer", "mint", "ann", "5")
    assert world.json("pay", str(file), *BULK, code=1)["outcomes"]["insufficient_funds"] == 2
    assert world.json("pay", str(file), *BULK, "--retry-rejected", code=1)["completed"] == 3
    executed = world.ledger.executed
    assert world.json("pay", str(file), *BULK, "--retry-rejected", code=1)["repeated"] == 3
    assert world.json("pay", str(file), *BULK, code=1)["repeated"] == 3
    assert world.ledger.executed == executed
    assert (available(world)["ann"], available(world)["bob"]) == (400, 500)


def test_money_that_a_file_passes_on_is_there_in_time(world: World, file: Path) -> None:
    names = [f"a{n}" for n in range(12)]
    world.run("account", "open", *names)
    write(file, ["mint;a0;1;", "mint;a5;1;", *(f"{a};{b};1;" for a, b in pairwise(names)), "a11;a0;1;", "a5;a0;1;"])
    found = world.json("pay", str(file), *BULK)
    assert (found["completed"], found["requests"]) == (15, 13)
    assert available(world)["a0"] == 200


# --- rejected for a recipient --------------------------------------------------------------------------------------


def test_a_request_that_is_rejected_for_a_recipient_names_the_rows(
    open_world: World, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = open_world
    monkeypatch.setattr(world.ledger, "_scale", lambda code: 2)
    world.ledger.open("euro", "EUR", bytes(32))
    write(file, [*ROWS, "mint;nobody;1;", "mint;euro;1;", "mint;nobody;2;"])
    for node in world.nodes:  # a replica that lags: only a majority is believed to say that there is no account
        node.fault = lambda call: (
            wire.NotFound("account", False) if isinstance(call, wire.AskBalance) and not call.linearizable else None
        )
    assert world.json("pay", str(file), *BULK, code=1)["outcomes"] == {"unknown_recipient": 8}
    reasons = [r["reason"] for r in results(file)]
    told = "because of line 7: there is no account nobody; line 8: euro holds EUR and mint CZK; line 9: there is no account"
    assert all(told in reason for reason in reasons)
    assert [n for n, reason in enumerate(reasons) if reason.startswith("this row is a cause: ")] == [5, 6, 7]
    asked = [c.account for n in world.nodes for c in n.calls if isinstance(c, wire.AskBalance) and c.linearizable]
    assert sorted(asked) == ["ann", "bob", "cid", "dan", "euro", "eve", "mint", "nobody"], "each once"


def test_recipients_that_exist_by_now_are_told(open_world: World, file: Path) -> None:
    world = open_world
    write(file, [*ROWS, *(f"mint;new{n};1;" for n in range(7))])
    world.run("pay", str(file), *BULK, code=1)
    assert "line 11: there is no account new4; and 2 more)" in results(file)[0]["reason"]
    world.run("account", "open", *(f"new{n}" for n in range(7)))
    world.run("pay", str(file), *BULK, code=1)
    assert "all recipients can be paid now: --retry-rejected" in results(file)[0]["reason"]
    assert world.json("pay", str(file), *BULK, "--retry-rejected")["completed"] == 12


@pytest.mark.parametrize(
    "answer", [wire.NotFound("account", True), wire.Refused("busy", "later"), wire.Unknown(b"", "no majority")]
)
def test_what_cannot_be_asked_is_not_blamed(
    open_world: World, file: Path, answer: wire.ReplyBody, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hopchain.client.Timing", partial(Timing, read_s=1.0))  # of each question, which none answers
    write(file, [*ROWS, "mint;nobody;1;"])
    for node in open_world.nodes:
        node.fault = lambda call: answer if isinstance(call, wire.AskBalance) else None
    assert open_world.json("pay", str(file), *BULK, code=1)["outcomes"] == {"unknown_recipient": 6}
    assert results(file)[5]["reason"].endswith("(6 rows are one request: all or none of them)")


def test_a_run_with_too_many_failures_sends_no_more_requests(open_world: World, file: Path, two_rows: None) -> None:
    write(file, ["mint;nobody;1;", *ROWS])
    found = open_world.json("pay", str(file), *BULK, "--concurrency", "1", "--max-failures", "1", code=3)
    assert found["outcomes"] == {"unknown_recipient": 2, "not_sent": 4}
    found = open_world.json("pay", str(file), *BULK, "--concurrency", "1", "--max-failures", "2", code=1)
    assert found["outcomes"] == {"unknown_recipient": 2, "completed": 4}


# --- interrupted ---------------------------------------------------------------------------------------------------


def test_answers_that_get_lost_change_nothing(open_world: World, file: Path, two_rows: None) -> None:
    lost = iter([Drop(after=True), None, Drop(), None])
    for node in open_world.nodes:
        node.fault = lambda call: next(lost, None) if isinstance(call, wire.Submit) else None
    assert open_world.json("pay", str(file), *BULK)["completed"] == 5
    assert sum(available(open_world).values()) == 1500


@pytest.mark.parametrize("after", [False, True], ids=["the request is lost", "the answer is lost"])
def test_a_run_that_is_cut_off_is_gone_on_with(open_world: World, file: Path, two_rows: None, after: bool) -> None:
    world = open_world
    left = [2]

    def dying(call: wire.CallBody) -> Drop | None:
        if isinstance(call, wire.Submit):
            left[0] -= 1
            if left[0] == 0:
                for node in world.nodes:
                    node.stop()
                return Drop(after=after)
        return None

    for node in world.nodes:
        node.fault = dying
    failed = world.json("pay", str(file), *BULK, "--concurrency", "1", "--timeout", "0.3", code=3)
    assert failed["error"] == "unreachable"
    assert outcomes(file) == ["completed", "completed", "unknown", "unknown", "not_sent"]
    for node in world.nodes:
        node.fault = lambda call: None
        world.portal.start_task(node.serve)
    found = world.json("pay", str(file), *BULK)
    assert (found["completed"], found["repeated"]) == (5, 4 if after else 2)
    assert available(world) == {"ann": 100, "bob": 200, "cid": 300, "dan": 400, "eve": 500}


# --- changed files -------------------------------------------------------------------------------------------------


def test_a_row_that_made_its_request_fail_is_taken_out_and_the_rest_is_paid(open_world: World, file: Path) -> None:
    world = open_world
    write(file, [*ROWS, "mint;nobody;1;"])
    assert world.json("pay", str(file), *BULK, code=1)["outcomes"] == {"unknown_recipient": 6}
    write(file, [*ROWS, "mint;ann;1;"])
    assert world.json("pay", str(file), *BULK)["completed"] == 6
    assert world.json("pay", str(file), *BULK)["repeated"] == 6
    assert sum(available(world).values()) == 1600
    write(file, [*ROWS, "mint;nobody;1;"])
    back = world.json("pay", str(file), *BULK, code=1)
    assert back["outcomes"] == {"completed": 5, "unknown_recipient": 1} and back["repeated"] == 5
    assert sum(available(world).values()) == 1600


def test_a_run_that_dies_after_its_own_cancel_is_gone_on_with_whatever_the_file_is_then(
    open_world: World, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = open_world
    never_arrives(world, file)
    write(file, ROWS[1:])

    def dies(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(RunBatches, "new", dies)
        world.run("pay", str(file), *BULK, code=130)
    write(file, ROWS)
    found = world.json("pay", str(file), *BULK)
    assert (found["completed"], found["repeated"]) == (5, 0)
    assert world.json("pay", str(file), *BULK)["repeated"] == 5
    assert sum(available(world).values()) == 1500


def test_a_request_that_was_cancelled_by_hand_stays_so(open_world: World, file: Path) -> None:
    world = open_world
    never_arrives(world, file)
    world.run("cancel", results(file)[0]["request_id"])
    assert world.json("pay", str(file), *BULK, code=1)["outcomes"] == {"cancelled": 5}
    assert world.json("pay", str(file), *BULK, "--retry-rejected")["completed"] == 5


def test_a_row_that_is_taken_out_after_it_was_paid_changes_nothing(open_world: World, file: Path) -> None:
    open_world.run("pay", str(file), *BULK)
    write(file, ROWS[1:])
    found = open_world.json("pay", str(file), *BULK)
    assert [found[k] for k in ("completed", "repeated", "requests")] == [4, 4, 0]
    assert sum(available(open_world).values()) == 1500


def test_a_row_that_is_taken_out_before_its_request_arrived_is_never_paid(open_world: World, file: Path) -> None:
    world = open_world
    late = never_arrives(world, file)
    write(file, ROWS[1:])
    found = world.json("pay", str(file), *BULK)
    assert (found["completed"], found["repeated"]) == (4, 0)
    world.ledger.submit(late[0], b"")
    assert available(world) == {"ann": 0, "bob": 200, "cid": 300, "dan": 400, "eve": 500}, "it was cancelled before"


def test_rows_of_a_request_that_cannot_be_settled_are_unknown(open_world: World, file: Path) -> None:
    world = open_world
    world.run("pay", str(file), *BULK)
    write(file, ROWS[1:])
    for node in world.nodes:
        node.fault = lambda call: wire.NotFound("?", True) if isinstance(call, wire.AskOutcome) else None
    found = world.json("pay", str(file), *BULK, code=3)
    assert found["outcomes"] == {"unknown": 4}
    assert "an earlier request of 5 rows is not settled" in results(file)[0]["reason"]
    assert sum(available(world).values()) == 1500


# --- one by one, or together ---------------------------------------------------------------------------------------


def test_rows_that_were_sent_one_by_one_are_not_sent_together_nor_the_other_way(open_world: World, file: Path) -> None:
    world = open_world
    world.run("pay", str(file), *COLUMNS)
    before = results(file)
    refused = world.json("pay", str(file), *BULK, code=2)
    assert "5 rows of run 'may.csv' were sent one by one before" in refused["message"]
    assert results(file) == before
    assert world.json("pay", str(file), *BULK, "--run", "june")["repeated"] == 0
    refused = world.json("pay", str(file), *COLUMNS, "--run", "june", code=2)
    assert "5 rows of run 'june' were sent with --bulk before" in refused["message"]
    write(file, ["mint;eve;7;"])
    assert world.json("pay", str(file), *COLUMNS, "--run", "june")["completed"] == 1, "this row was not"
    assert sum(available(world).values()) == 3000 + 700


# --- all or nothing ------------------------------------------------------------------------------------------------


def test_an_atomic_file_is_one_request_all_or_nothing(open_world: World, file: Path) -> None:
    world = open_world
    write(file, [row.replace("mint", "purse") for row in ROWS])
    world.run("account", "open", "purse")
    world.run("transfer", "mint", "purse", "14.99")
    failed = world.json("pay", str(file), *ATOMIC, code=1)
    assert failed["outcomes"] == {"insufficient_funds": 5} and failed["requests"] == 1
    assert available(world)["purse"] == 1499
    world.run("transfer", "mint", "purse", "0.01")
    done = world.json("pay", str(file), *ATOMIC, "--retry-rejected")
    assert [done[k] for k in ("requests", "completed", "repeated")] == [1, 5, 0]
    assert world.json("pay", str(file), *ATOMIC)["repeated"] == 5
    assert available(world)["purse"] == 0


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (
            [*ROWS, "ann;bob;1;"],
            "1 payer, 8190 rows and 9223372036854775807 minor units at most; this one has 2 payers, 6 rows",
        ),
        (["mint;ann;0.01;"] * (MAX_POSTINGS + 1), f"1 payers, {MAX_POSTINGS + 1} rows and {MAX_POSTINGS + 1} minor"),
        (["mint;ann;92233720368547758.07;", "mint;bob;0.01;"], "2 rows and 9223372036854775808 minor"),
        ([*ROWS, "mint;mint;1;"], "line 7 cannot be paid: mint cannot pay itself"),
    ],
)
def test_a_file_that_is_not_one_request_is_refused_with_its_numbers(
    open_world: World, file: Path, rows: list[str], what: str
) -> None:
    write(file, rows)
    assert what in open_world.json("pay", str(file), *ATOMIC, code=2)["message"]
    assert not any(n.calls for n in open_world.nodes) and not file.with_suffix(".result.csv").exists()


def test_an_atomic_file_that_changed_is_paid_as_one_or_not_at_all(open_world: World, file: Path) -> None:
    world = open_world
    write(file, ["mint;nobody;1;", *ROWS])
    assert world.json("pay", str(file), *ATOMIC, code=1)["outcomes"] == {"unknown_recipient": 6}
    write(file, ROWS)
    assert world.json("pay", str(file), *ATOMIC)["requests"] == 1
    write(file, [*ROWS, "mint;ann;6;"])
    failed = world.json("pay", str(file), *ATOMIC, code=1)
    assert failed["error"] == "not_atomic" and "5 rows of run 'may.csv' are in an earlier request" in failed["message"]
    assert sum(available(world).values()) == 1500
    assert world.json("pay", str(file), *BULK)["repeated"] == 5, "without --atomic the new row alone"


def test_the_funding_of_an_atomic_file_stays_when_the_file_is_rejected(world: World, file: Path) -> None:
    world.run("account", "open", "ann", "bob")
    write(file, ["ann;bob;1;", "ann;nobody;2;"])
    found = world.json("pay", str(file), *ATOMIC, "--fund-from", "mint", code=1)
    assert (found["outcomes"], found["funded"]) == ({"unknown_recipient": 2}, 300)
    assert available(world)["ann"] == 300
    assert "the payer keeps its funding" in " ".join(world.run("pay", "--help").stdout.split())
    world.run("account", "open", "nobody")
    again = world.json("pay", str(file), *ATOMIC, "--fund-from", "mint", "--retry-rejected")
    assert (again["completed"], again["funded"]) == (2, 0) and available(world)["ann"] == 0

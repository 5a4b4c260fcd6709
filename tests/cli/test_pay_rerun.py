"""What a payment run that is made again finds, asks and says: nothing is concluded that the run did not see."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from chain.link import Outcome
from chain.request import SignedRequest, decode_request_untrusted, request_id
from cli import paybatches, payrun
from cli.payrun import PayRun
from cli.poolrun import PoolRun
from hopchain import wire
from tests.cli.conftest import World
from tests.cli.test_pay import COLUMNS, available, results, write
from tests.cli.test_pay_pool import ACCOUNTS, FUNDS, POOL, ROWS, faults, file, healthy, rich, shop
from tests.hopchain.fake_node import Drop, Hang

__all__ = ["file", "shop"]  # fixtures
BULK = ("--bulk", *POOL)
EARLIER = "an earlier run may have sent it; not asked in this one"


def lagging(world: World) -> None:
    """Nodes that call every outcome new, as one does that is behind the others."""

    def lag(call: wire.CallBody) -> wire.ReplyBody | None:
        if not isinstance(call, wire.Submit):
            return None
        answer = world.ledger.submit(call, b"")
        return msgspec.structs.replace(answer, repeated=False) if isinstance(answer, wire.Recorded) else answer

    for node in world.nodes:
        node.fault = lag


def fault_of_submits(world: World, fault: Callable[[wire.Submit], object]) -> None:
    for node in world.nodes:
        node.fault = lambda call: fault(call) if isinstance(call, wire.Submit) else None  # type: ignore[return-value]


def alone(world: World) -> None:
    """An account that is called as the pool is, with money."""
    world.run("account", "open", "shop")
    world.ledger.accounts["shop"].settled = 10 * FUNDS


def never_arrives(world: World, file: Path, *words: str) -> list[wire.Submit]:
    """Run the file while no request arrives in time; those requests."""
    late: list[wire.Submit] = []

    def hang(call: wire.Submit) -> Hang:
        late.append(call)
        return Hang()

    fault_of_submits(world, hang)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(payrun, "TRIES", 1)
        world.run("pay", str(file), *COLUMNS, *words, "--timeout", "0.5", code=3)
    healthy(world)
    return late


def arrives_meanwhile(world: World, late: wire.Submit) -> None:
    """This request of an earlier run arrives just before the first one of the next run."""
    arrived: list[object] = []

    def arrive(call: wire.Submit) -> None:
        if not arrived:
            arrived.append(world.ledger.submit(late, b""))

    fault_of_submits(world, arrive)


# --- paid, whatever a node says now --------------------------------------------------------------------------------


@pytest.mark.parametrize("retry", [(), ("--retry-rejected",)])
def test_a_retry_that_was_paid_is_followed_though_the_node_lags(
    shop: World, file: Path, retry: tuple[str, ...]
) -> None:
    shop.run("account", "open", "shop")
    write(file, ROWS[:1])
    shop.run("pay", str(file), *COLUMNS, code=1)
    shop.ledger.accounts["shop"].settled = FUNDS
    shop.run("pay", str(file), *COLUMNS, "--retry-rejected")
    lagging(shop)
    assert shop.json("pay", str(file), *COLUMNS, *retry)["completed"] == 1
    assert available(shop)["bob"] == 100


@pytest.mark.parametrize("how", ["timeout", "killed"])
def test_a_retry_whose_answer_is_not_seen_is_not_called_rejected(
    shop: World, file: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    shop.run("account", "open", "shop")
    write(file, ROWS[:1])
    shop.run("pay", str(file), *COLUMNS, code=1)
    (rejected,) = results(file)
    shop.ledger.accounts["shop"].settled = FUNDS

    def lose(call: wire.Submit) -> object:
        answer = shop.ledger.submit(call, b"")
        return Hang() if isinstance(answer, wire.Recorded) and answer.outcome == Outcome.COMPLETED else answer

    until_known = PayRun._until_known

    async def dying(self: PayRun, client: object, signed: SignedRequest) -> object:
        answer = await until_known(self, client, signed)  # type: ignore[arg-type]
        if signed.request_id.hex() != rejected["request_id"]:
            raise KeyboardInterrupt
        return answer

    words = (*COLUMNS, "--retry-rejected", "--timeout", "0.3")
    with monkeypatch.context() as patched:
        if how == "killed":
            patched.setattr(PayRun, "_until_known", dying)
            shop.run("pay", str(file), *words, code=130)
        else:
            fault_of_submits(shop, lose)
            shop.run_any("pay", str(file), *words)
    assert available(shop)["bob"] == 100
    (row,) = results(file)
    assert row["outcome"] == "unknown" and row["request_id"] != rejected["request_id"]
    healthy(shop)
    shop.run("pay", str(file), *COLUMNS)
    (paid,) = results(file)
    assert (paid["outcome"], paid["request_id"]) == ("completed", row["request_id"])
    faults(shop, Hang())
    shop.run_any("pay", str(file), *COLUMNS, "--timeout", "0.1")
    assert results(file) == [paid], "what was paid stays so, though the first request of the row was asked for now"


def test_funding_that_worked_the_second_time_is_followed_though_the_node_lags(shop: World, file: Path) -> None:
    shop.run("account", "open", "bank")
    write(file, ["shop-1;bob;11;x"])
    words = (*COLUMNS, "--fund-from", "bank")
    shop.run("pay", str(file), *words, code=1)
    shop.ledger.accounts["bank"].settled = 5 * FUNDS
    assert shop.json("pay", str(file), *words)["funded"] == 1100
    lagging(shop)
    assert shop.json("pay", str(file), *words)["completed"] == 1
    assert available(shop)["bank"] == 5 * FUNDS - 1100


@pytest.mark.parametrize("kind", [(), POOL, ("--bulk",)], ids=["alone", "pool", "bulk"])
@pytest.mark.parametrize("refused", [False, True], ids=["not_started", "refused"])
def test_what_an_earlier_run_may_have_sent_is_not_called_not_started(
    shop: World, file: Path, one_round: None, monkeypatch: pytest.MonkeyPatch, kind: tuple[str, ...], refused: bool
) -> None:
    monkeypatch.setattr(paybatches, "MAX_POSTINGS", 1)
    alone(shop)
    write(file, ROWS[:1])
    faults(shop, Drop(after=True))
    shop.run_any("pay", str(file), *COLUMNS, *kind, "--timeout", "0.3")
    assert available(shop)["bob"] == 100

    def busy(call: wire.Submit) -> wire.ReplyBody:
        return wire.Refused("busy", "later") if refused else wire.NotStarted(request_id(call.raw), "busy", "later")

    fault_of_submits(shop, busy)
    file.with_suffix(".result.csv").unlink(missing_ok=True)
    found = shop.json("pay", str(file), *COLUMNS, *kind, "--timeout", "0.5", code=3)
    assert found["outcomes"] == {"unknown": 1}
    reason = results(file)[0]["reason"]
    assert reason.startswith("an earlier run may have sent it, and the answer in this one was: ") and "later" in reason


# --- not asked is not "not sent" -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [POOL, (), BULK], ids=["pool", "alone", "bulk"])
def test_rows_that_are_not_asked_for_again_are_unknown_and_the_old_file_stays(
    shop: World, file: Path, two_rows: None, kind: tuple[str, ...]
) -> None:
    rich(shop)
    alone(shop)
    write(file, ["shop;nobody;1;z", *ROWS])
    words = (*COLUMNS, *kind, "--concurrency", "1")
    shop.run("pay", str(file), *words, code=1)
    before = results(file)
    stopped = (*words, "--max-failures", "0")
    shown = shop.run("pay", str(file), *stopped, code=3)
    assert "no row got a new answer" in shown.stderr and results(file) == before
    write(file, ["shop;nobody;1;z", *ROWS, "shop;bob;9;new"])
    file.with_suffix(".result.csv").unlink()
    shop.run("pay", str(file), *stopped, code=3)
    rows = results(file)
    asked = 2 if kind == BULK else 1
    assert [r["outcome"] for r in rows] == ["unknown_recipient"] * asked + ["unknown"] * (7 - asked) + ["not_sent"]
    assert rows[5]["reason"].startswith(f"{EARLIER}: more than 0 rows failed before it")
    assert [r["request_id"] for r in rows[:7]] == [r["request_id"] for r in before]
    shop.run("account", "open", "nobody")
    shop.run("pay", str(file), *words, "--retry-rejected")
    assert {r["outcome"] for r in results(file)} == {"completed"}, "what is new is written"


@pytest.mark.parametrize("kind", [POOL, (), BULK], ids=["pool", "alone", "bulk"])
def test_a_rerun_that_is_killed_says_of_paid_rows_what_it_knows(
    shop: World, file: Path, monkeypatch: pytest.MonkeyPatch, two_rows: None, kind: tuple[str, ...]
) -> None:
    rich(shop)
    alone(shop)
    words = (*COLUMNS, *kind, "--concurrency", "1")
    shop.run("pay", str(file), *words)
    before = results(file)
    until_known, asked = PayRun._until_known, list[object]()

    async def dying(self: PayRun, client: object, signed: object) -> object:
        asked.append(signed)
        if len(asked) > 1:
            raise KeyboardInterrupt
        return await until_known(self, client, signed)  # type: ignore[arg-type]

    monkeypatch.setattr(PayRun, "_until_known", dying)
    shop.run("pay", str(file), *words, code=130)
    assert results(file) == before
    asked.clear()
    file.with_suffix(".result.csv").unlink()
    shop.run("pay", str(file), *words, code=130)
    assert {r["outcome"] for r in results(file)} == {"completed", "unknown"}
    assert results(file)[-1]["reason"] == EARLIER


@pytest.mark.parametrize("kind", [POOL, (), BULK, ("--bulk",)], ids=["pool", "alone", "pooled bulk", "bulk"])
def test_rows_that_were_sent_are_not_called_no_key(
    shop: World, file: Path, two_rows: None, kind: tuple[str, ...]
) -> None:
    rich(shop)
    alone(shop)
    words = (*COLUMNS, *kind)
    shop.run("pay", str(file), *words)
    before = results(file)
    account = "shop" if "--pool" not in kind else before[0]["paid_from"]
    key = shop.wallet.path(account)
    # it is in no pool any more, and its key is needed all the same
    left_pool = [w.replace(f"{account},", "").replace(f",{account}", "") for w in words]
    key.chmod(0o644)
    shown = shop.run("pay", str(file), *left_pool, "--max-failures", "0", "--concurrency", "1", code=3)
    assert "no_key" not in shown.stdout
    file.with_suffix(".result.csv").unlink()
    write(file, [*ROWS, "dan;bob;9;new"])
    shop.run("pay", str(file), *left_pool, code=3)
    rows = results(file)
    assert [r["outcome"] for r in rows[6:]] == ["no_key"]
    for row, known in zip(rows[:6], before, strict=True):
        theirs = row["paid_from"] == account
        assert (row["outcome"], row["request_id"]) == ("unknown" if theirs else "completed", known["request_id"])
        assert not theirs or (row["reason"].startswith(f"{EARLIER}: ") and "chmod 600" in row["reason"])
    if "--pool" not in kind:
        shop.run("pay", str(file), *words, code=3)
        key.chmod(0o600)
        write(file, ROWS)
        shop.run("pay", str(file), *words)
        before = results(file)
        key.chmod(0o644)
        shown = shop.run("pay", str(file), *words, code=3)
        assert "no row got a new answer" in shown.stderr and results(file) == before


# --- what to do ----------------------------------------------------------------------------------------------------


def test_the_advice_for_a_row_without_money_is_to_run_it_again(shop: World, file: Path, one_round: None) -> None:
    write(file, ["shop;bob;11;x"])
    for kind in ((), POOL, ("--bulk", "--run", "june")):
        shop.run_any("account", "open", "shop")
        shop.run("pay", str(file), *COLUMNS, *kind, *(["--run", "pool"] if kind == POOL else []), code=1)
        reason = results(file)[0]["reason"]
        assert "Send money to it, then run this again with --retry-rejected" in reason and "nonce" not in reason
    fault_of_submits(shop, lambda call: wire.NotStarted(request_id(call.raw), "busy", "later"))
    file.with_suffix(".result.csv").unlink()
    shop.run("pay", str(file), *COLUMNS, "--run", "july", "--timeout", "0.5", code=3)
    assert results(file)[0]["reason"] == "nothing is recorded: later. Run this again"


@pytest.mark.parametrize("where", ["no/x.csv", "."])
def test_a_result_file_that_cannot_be_is_refused_before_anything_is_paid(
    shop: World, file: Path, tmp_path: Path, where: str
) -> None:
    refused = shop.json("pay", str(file), *COLUMNS, *POOL, "--result", str(tmp_path / where), code=2)
    assert "cannot hold the outcomes" in refused["message"] and not any(node.calls for node in shop.nodes)


def test_a_run_has_a_name(shop: World, file: Path) -> None:
    assert "names no run" in shop.json("pay", str(file), *COLUMNS, *POOL, "--run", "", code=2)["message"]


# --- with a pool, then without -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["--bulk", "--atomic"])
def test_rows_that_a_pool_paid_together_are_refused_without_it(shop: World, file: Path, how: str) -> None:
    rich(shop)
    shop.run("pay", str(file), *COLUMNS, how, *POOL)
    before = results(file)
    refused = shop.json("pay", str(file), *COLUMNS, how, code=2)
    assert "6 rows of run 'may.csv' were sent from a pool's accounts before" in refused["message"]
    assert results(file) == before


@pytest.mark.parametrize("kind", [POOL, BULK], ids=["pool", "bulk"])
def test_another_wallet_follows_the_rounds_of_a_retry(
    shop: World, file: Path, monkeypatch: pytest.MonkeyPatch, kind: tuple[str, ...]
) -> None:
    """`dedicated`, three rejections, then a round whose second account gives no answer: with the same options another
    wallet comes to the same request."""
    write(file, ["shop;bob;11;x"])
    words = (*COLUMNS, *kind)
    shop.run("pay", str(file), *words, code=1)
    last = results(file)[0]["paid_from"]
    second = ACCOUNTS[(ACCOUNTS.index(last) + 1) % len(ACCOUNTS)]  # a retry begins with the last one

    def lost(call: wire.Submit) -> Hang | None:
        if decode_request_untrusted(call.raw).sender != second:
            return None
        shop.ledger.submit(call, b"")
        return Hang()

    fault_of_submits(shop, lost)
    monkeypatch.setattr(payrun, "TRIES", 1)
    shop.run("pay", str(file), *words, "--retry-rejected", "--timeout", "0.5", code=3)
    healthy(shop)
    rich(shop)
    assert shop.json("pay", str(file), *words, "--retry-rejected")["completed"] == 1
    paid_from = results(file)[0]["paid_from"]
    for name in ("sources", "bulk"):
        for path in (shop.wallet.directory / name).glob("*"):
            path.unlink()
    assert shop.json("pay", str(file), *words, "--retry-rejected")["repeated"] == 1
    assert results(file)[0]["paid_from"] == paid_from and available(shop)["bob"] == 1100


# --- what left the pool --------------------------------------------------------------------------------------------


def test_a_request_of_rows_that_are_gone_blurs_what_left_the_pool(shop: World, file: Path) -> None:
    rich(shop)
    late = never_arrives(shop, file, *BULK)
    write(file, ROWS[:5])
    arrives_meanwhile(shop, late[0])
    found = shop.json("pay", str(file), *COLUMNS, *BULK)
    (pool,) = found["pools"]
    assert (pool["left"], pool["ok"]) == (None, None) and "its rows are not all in this file" in pool["why"]
    again = shop.json("pay", str(file), *COLUMNS, *BULK)["pools"][0]
    assert (again["left"], again["ok"], again["why"]) == (0, True, None), "it was paid before this run"


def test_a_request_of_rows_that_are_gone_and_may_yet_pay_blurs_it_too(
    shop: World, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payrun, "TRIES", 1)
    rich(shop)
    never_arrives(shop, file, *BULK)
    write(file, ROWS[:5])
    faults(shop, Hang())
    shown = shop.run("pay", str(file), *COLUMNS, *BULK, "--timeout", "0.5", code=3)
    assert "paid in this run, or may yet, and its rows are not all in this file" in shown.stdout


@pytest.mark.parametrize("words", [POOL, BULK], ids=["pool", "bulk"])
@pytest.mark.parametrize("ends", ["max failures", "error"])
def test_what_an_earlier_run_sent_and_this_one_did_not_ask_for_blurs_it_too(
    shop: World, file: Path, two_rows: None, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], ends: str
) -> None:
    """It arrives while the run is at its first request, which is its last."""
    rich(shop)
    write(file, ["shop;nobody;1;n0", "shop;nobody;1;n00", *ROWS[:4]])
    late = never_arrives(shop, file, *words)

    def arrive(call: wire.Submit) -> None:
        for earlier in late:
            if decode_request_untrusted(earlier.raw).postings[0].recipient == "bob":
                shop.ledger.submit(earlier, b"")

    fault_of_submits(shop, arrive)
    until_known = PayRun._until_known

    async def fails(self: PayRun, client: object, signed: SignedRequest) -> object:
        answer = await until_known(self, client, signed)  # type: ignore[arg-type]
        raise payrun.Unreachable([("node", str(answer)[:9])])

    stopped = (*COLUMNS, *words, "--concurrency", "1", "--max-failures", "0")
    with monkeypatch.context() as patched:
        if ends == "error":
            patched.setattr(PayRun, "_until_known", fails)
        shown = shop.run("pay", str(file), *stopped, code=3)
    assert available(shop)["bob"] == 1000
    assert "NOT SO" not in f"{shown.stdout}{shown.stderr}"
    assert "or it was not asked for in this run: what left it is not compared" in shown.stdout
    healthy(shop)
    (pool,) = shop.json("pay", str(file), *COLUMNS, *words, code=1)["pools"]
    assert (pool["left"], pool["ok"], pool["why"]) == (0, True, None), "all were asked for"


def test_what_left_for_a_row_that_is_gone_is_among_the_causes(shop: World, file: Path) -> None:
    rich(shop)
    late = never_arrives(shop, file, *POOL)
    write(file, ROWS[:5])
    arrives_meanwhile(shop, next(c for c in late if decode_request_untrusted(c.raw).postings[0].memo == "n6"))
    shown = shop.run("pay", str(file), *COLUMNS, *POOL, code=1).stdout
    assert "or a request of an earlier run whose row is not in this file any more arrived" in shown


def thief(world: World) -> Callable[[wire.Submit], None]:
    def steal(call: wire.Submit) -> None:
        world.ledger.accounts["shop-3"].settled -= 1

    return steal


def test_a_mismatch_is_told_though_the_result_file_cannot_be_written(shop: World, file: Path) -> None:
    rich(shop)
    fault_of_submits(shop, thief(shop))
    fresh = file.with_name(f".may.result.csv.{os.getpid()}")
    fresh.symlink_to("/dev/full")
    found = shop.json("pay", str(file), *COLUMNS, *POOL, code=5)
    assert found["error"] == "disk" and "could not be written" in found["message"]
    assert found["completed"] == 6 and found["pools"][0]["ok"] is False
    fresh.symlink_to("/dev/full")
    shown = shop.run("pay", str(file), *COLUMNS, *POOL, "--run", "june", code=5)
    assert "NOT SO" in shown.stdout and "could not be written" in shown.stderr


@pytest.mark.parametrize("json", [(), ("--json",)])
def test_a_mismatch_is_told_though_the_run_ends_with_an_error(
    shop: World, file: Path, monkeypatch: pytest.MonkeyPatch, json: tuple[str, ...]
) -> None:
    rich(shop)
    until_known = PoolRun._until_known

    async def fails(self: PoolRun, client: object, signed: object) -> object:
        answer = await until_known(self, client, signed)  # type: ignore[arg-type]
        raise payrun.Unreachable([("node", str(answer)[:9])])

    fault_of_submits(shop, thief(shop))
    monkeypatch.setattr(PoolRun, "_until_known", fails)
    shown = shop.run("pay", str(file), *COLUMNS, *POOL, "--concurrency", "1", *json, code=3)
    assert "pool shop: NOT SO: " in shown.stderr


# --- funding that came later ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [POOL, (), ("--bulk",)], ids=["pool", "alone", "bulk"])
def test_rows_that_were_paid_without_funding_are_not_funded_later(
    shop: World, file: Path, kind: tuple[str, ...]
) -> None:
    rich(shop)
    alone(shop)
    shop.run("pay", str(file), *COLUMNS, *kind)
    write(file, [*ROWS, "shop;bob;9;new"])
    before = sum(available(shop).values())
    found = shop.json("pay", str(file), *COLUMNS, *kind, "--fund-from", "mint")
    assert (found["completed"], found["funded"]) == (7, 900)
    assert sum(available(shop).values()) == before + 900


@pytest.mark.parametrize("answer", [wire.NotFound("request", True), wire.Refused("busy", "later")])
def test_a_row_of_which_it_is_not_known_whether_it_was_paid_is_not_funded(
    shop: World, file: Path, answer: wire.ReplyBody
) -> None:
    alone(shop)
    shop.run("pay", str(file), *COLUMNS)
    for node in shop.nodes:
        node.fault = lambda call: answer if isinstance(call, wire.AskOutcome) else None
    assert shop.json("pay", str(file), *COLUMNS, "--fund-from", "mint")["funded"] == 0


def test_rows_that_were_rejected_without_funding_are_funded_and_paid(shop: World, file: Path) -> None:
    shop.run("account", "open", "shop")
    shop.run("pay", str(file), *COLUMNS, code=1)
    words = (*COLUMNS, "--fund-from", "mint", "--retry-rejected")
    found = shop.json("pay", str(file), *words)
    assert (found["completed"], found["funded"]) == (6, 2100)


@pytest.mark.parametrize("kind", [(), ("--bulk",)], ids=["one by one", "bulk"])
def test_rows_that_were_rejected_and_are_not_sent_again_are_not_funded(
    shop: World, file: Path, kind: tuple[str, ...]
) -> None:
    """The money would stay with payers who owe nothing."""
    shop.run("account", "open", "shop")
    shop.run("pay", str(file), *COLUMNS, *kind, code=1)
    found = shop.json("pay", str(file), *COLUMNS, *kind, "--fund-from", "mint", code=1)
    assert (found["completed"], found["funded"]) == (0, 0)
    found = shop.json("pay", str(file), *COLUMNS, *kind, "--fund-from", "mint", "--retry-rejected")
    assert (found["completed"], found["funded"]) == (6, 2100)


def test_rows_that_were_funded_without_the_pool_are_refused_with_it(
    shop: World, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.run("account", "open", "shop")

    async def dying(self: PayRun, client: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(PayRun, "_pay", dying)
        shop.run("pay", str(file), *COLUMNS, "--fund-from", "mint", code=130)
    refused = shop.json("pay", str(file), *COLUMNS, *POOL, "--fund-from", "mint", code=2)
    assert "6 rows of run 'may.csv' were funded without --pool before" in refused["message"]
    assert shop.json("pay", str(file), *COLUMNS, "--fund-from", "mint")["completed"] == 6


# --- a run that ends before it asks for what earlier runs sent -----------------------------------------------------


@pytest.mark.parametrize("kind", [(), POOL, ("--bulk",)], ids=["alone", "pool", "bulk"])
def test_rows_that_were_sent_are_unknown_when_the_funding_of_a_new_row_is_rejected(
    shop: World, file: Path, kind: tuple[str, ...]
) -> None:
    rich(shop)
    alone(shop)
    shop.run("account", "open", "bank")
    shop.run("pay", str(file), *COLUMNS, *kind)
    file.with_suffix(".result.csv").unlink()
    write(file, [*ROWS, "shop;bob;1000;new"])
    found = shop.json("pay", str(file), *COLUMNS, *kind, "--fund-from", "bank", code=3)
    assert found["error"] == "insufficient_funds" and found["outcomes"] == {"unknown": 6, "not_sent": 1}
    told = results(file)
    assert all(EARLIER in r["reason"] and r["request_id"] for r in told[:6]) and not told[6]["request_id"]


def test_a_request_that_is_on_its_way_is_not_called_not_sent(shop: World, file: Path) -> None:
    """It executes after the second run has ended."""
    alone(shop)
    shop.run("account", "open", "bank")
    write(file, ROWS[:1])
    (late,) = {call.raw: call for call in never_arrives(shop, file)}.values()
    file.with_suffix(".result.csv").unlink()
    write(file, [*ROWS[:1], "shop-1;bob;1000;typo"])
    shop.run("pay", str(file), *COLUMNS, "--fund-from", "bank", code=3)
    assert [r["outcome"] for r in results(file)] == ["unknown", "not_sent"]
    shop.ledger.submit(late, b"")
    assert available(shop)["bob"] == 100


@pytest.mark.parametrize("kind", [(), ("--bulk",)], ids=["alone", "bulk"])
def test_a_run_that_asks_for_nothing_does_not_say_that_all_is_known(
    shop: World, file: Path, monkeypatch: pytest.MonkeyPatch, kind: tuple[str, ...]
) -> None:
    alone(shop)
    shop.run("account", "open", "bank")
    shop.run("pay", str(file), *COLUMNS, *kind)
    shop.ledger.accounts["bank"].asset = "EUR"
    monkeypatch.setattr(shop.ledger, "_scale", lambda code: 2)
    found = shop.json("pay", str(file), *COLUMNS, *kind, "--fund-from", "bank", code=3)
    assert found["error"] == "asset_mismatch" and found["outcomes"] == {"unknown": 6}
    assert (
        shop.run("pay", str(file), *COLUMNS, *kind, "--fund-from", "bank", code=3).stderr.count("bank holds EUR") == 1
    )
    write(file, ["shop;bob;7;another"])
    assert "outcomes" not in shop.json("pay", str(file), *COLUMNS, *kind, "--fund-from", "bank", code=1)


@pytest.mark.parametrize("retried", [False, True])
def test_rows_that_a_killed_run_sent_are_unknown_while_the_network_is_down(
    shop: World, file: Path, retried: bool
) -> None:
    """Their newest requests are named: these are what may have paid."""
    shop.run("account", "open", "shop")
    if retried:
        shop.run("pay", str(file), *COLUMNS, code=1)
    shop.ledger.accounts["shop"].settled = 10 * FUNDS
    shop.run("pay", str(file), *COLUMNS, "--retry-rejected")
    paid = [r["request_id"] for r in results(file)]
    file.with_suffix(".result.csv").unlink()
    shop.stop()
    shop.run("pay", str(file), *COLUMNS, "--open-missing", "--timeout", "0.3", code=3)
    assert [(r["outcome"], r["request_id"]) for r in results(file)] == [("unknown", one) for one in paid]


# --- found in the wallet -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "kind"), [("sources", POOL), ("journal", ()), ("bulk", ("--bulk",))], ids=["sources", "journal", "bulk"]
)
@pytest.mark.parametrize("full", [False, True], ids=["killed", "disk full"])
def test_what_a_dead_run_wrote_is_durable_before_a_request_leaves(
    shop: World, file: Path, monkeypatch: pytest.MonkeyPatch, what: str, kind: tuple[str, ...], full: bool
) -> None:
    """A disk whose fsync did not come, or failed: the next run's must be of those bytes, not of what comes after
    them."""
    alone(shop)
    rich(shop)
    fsync = os.fsync
    place = shop.wallet.directory / what

    def is_it(handle: int) -> bool:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        return path.is_file() and place in (path, path.parent)

    def dying(handle: int) -> None:
        if is_it(handle):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if full else KeyboardInterrupt
        fsync(handle)

    def size() -> int:
        return sum(path.stat().st_size for path in ([place] if place.is_file() else place.glob("*")))

    before = size()
    with monkeypatch.context() as killed:
        killed.setattr(os, "fsync", dying)
        shop.run("pay", str(file), *COLUMNS, *kind, code=5 if full else 130)
    assert (size() == before) is full, "what the disk refused is not there; what it was not asked for is"
    on_disk: list[int] = []
    sent_with: list[int] = []

    def noted(handle: int) -> None:
        if is_it(handle):
            on_disk.append(os.fstat(handle).st_size)
        fsync(handle)

    fault_of_submits(shop, lambda call: sent_with.append(on_disk[-1] if on_disk else 0))
    with monkeypatch.context() as seen:
        seen.setattr(os, "fsync", noted)
        shop.run("pay", str(file), *COLUMNS, *kind)
    assert sent_with and set(sent_with) == {size()}, "all of it was on disk when the first request left"

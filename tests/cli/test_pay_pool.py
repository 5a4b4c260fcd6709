"""`pay --pool`: rows of one payer paid from several accounts, each row once and from one account, whatever happens."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from chain.errors import LocalMisuse
from chain.request import Kind, Request, RequestId, decode_request_untrusted, request_id
from cli import payrun
from cli.poolbooks import PoolBooks
from cli.poolrun import PoolRun
from cli.sources import Sources, another, parse_pools
from cli.wallet import Wallet
from hopchain import Choice, SourcePool, wire
from tests.cli.conftest import World
from tests.cli.test_commands import documented
from tests.cli.test_pay import COLUMNS, available, results, write
from tests.hopchain.fake_node import Drop, Hang

POOL = ("--pool", "shop=shop-1,shop-2,shop-3")
ACCOUNTS = ["shop-1", "shop-2", "shop-3"]
FUNDS = 1000
ROWS = [f"shop;bob;{n};n{n}" for n in range(1, 7)]  # 21.00 in all
CHOICES = [choice.value for choice in Choice]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "may.csv"
    write(path, ROWS)
    return path


@pytest.fixture
def shop(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Three accounts of 10.00 each, and bob. Whoever gets no answer asks again at once."""
    monkeypatch.setattr(payrun, "PAUSE_S", 0.0)
    world.run("account", "open", *ACCOUNTS, "bob")
    for account in ACCOUNTS:
        world.ledger.accounts[account].settled = FUNDS
    for node in world.nodes:
        node.calls.clear()
    return world


@pytest.fixture
def one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gets no answer does not ask again. A run against nodes that say nothing lasts one `--timeout`, which is
    long enough for a busy machine to reach them in."""
    monkeypatch.setattr(payrun, "TRIES", 1)


def sent(world: World) -> list[Request]:
    """The transfers that the nodes were handed, each once, in order."""
    raws = dict.fromkeys(c.raw for n in world.nodes for c in n.calls if isinstance(c, wire.Submit))
    return [r for r in map(decode_request_untrusted, raws) if r.kind is Kind.TRANSFER]


def senders_of_rows(world: World) -> dict[str, set[str]]:
    """memo -> the accounts that a payment with it was ever sent from."""
    found: dict[str, set[str]] = {}
    for request in sent(world):
        for posting in request.postings:
            found.setdefault(posting.memo, set()).add(request.sender)
    return found


def rich(world: World) -> None:
    """No account has too little."""
    for account in ACCOUNTS:
        world.ledger.accounts[account].settled = 10 * FUNDS


def faults(world: World, fault: object) -> None:
    for node in world.nodes:
        node.fault = lambda call: fault if isinstance(call, wire.Submit) else None  # type: ignore[return-value]


def healthy(world: World) -> None:
    for node in world.nodes:
        node.fault = lambda call: None


def journal(world: World) -> str:
    return (world.wallet.directory / "journal").read_text()


# --- a run that goes well ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", CHOICES)
def test_a_pool_pays_each_row_once_and_the_outflow_is_what_was_paid(shop: World, file: Path, choice: str) -> None:
    rich(shop)
    words = (*COLUMNS, *POOL, "--choice", choice)
    found = shop.json("pay", str(file), *words)
    assert set(found) == documented("pay")
    assert [found[k] for k in ("rows", "completed", "amount_completed", "requests")] == [6, 6, 2100, 6]
    (pool,) = found["pools"]
    assert [pool[k] for k in ("name", "choice", "paid", "left", "unknown", "unknown_amount", "ok")] == [
        *("shop", choice, 2100, 2100, 0, 0, True)
    ]
    assert sum(a["paid"] for a in pool["accounts"]) == 2100 and sum(a["completed"] for a in pool["accounts"]) == 6
    assert {a["account"]: 10 * FUNDS - a["paid"] for a in pool["accounts"]} == {a: available(shop)[a] for a in ACCOUNTS}
    assert available(shop)["bob"] == 2100
    rows = results(file)
    assert {r["from"] for r in rows} == {"shop"} and {r["paid_from"] for r in rows} <= set(ACCOUNTS)
    assert choice == "two-choices" or {r["paid_from"] for r in rows} == set(ACCOUNTS)
    for row in rows:
        assert shop.wallet.sender_of(bytes.fromhex(row["request_id"])) == row["paid_from"]
    executed, before = shop.ledger.executed, journal(shop)
    again = shop.json("pay", str(file), *words)
    assert (again["completed"], again["repeated"]) == (6, 6) and shop.ledger.executed == executed
    assert [again["pools"][0][k] for k in ("paid", "left", "ok")] == [0, 0, True], "nothing left in this run"
    assert journal(shop) == before, "a run that is made again writes nothing"
    assert [r["paid_from"] for r in results(file)] == [r["paid_from"] for r in rows]


def test_round_robin_takes_each_in_turn_and_least_active_the_idle_one(shop: World, file: Path) -> None:
    shop.run("pay", str(file), *COLUMNS, *POOL, "--choice", "round-robin")
    assert [r["paid_from"] for r in results(file)] == ACCOUNTS * 2
    words = (*COLUMNS, *POOL, "--choice", "least-active", "--run")
    shop.ledger.accounts["shop-1"].settled = 10 * FUNDS
    shop.run("pay", str(file), *words, "one at a time", "--concurrency", "1")
    assert [r["paid_from"] for r in results(file)] == ["shop-1"] * 6
    for account in ACCOUNTS:
        shop.ledger.accounts[account].settled = FUNDS
    found = shop.json("pay", str(file), *words, "at once")
    assert Counter(r["paid_from"] for r in results(file)) == dict.fromkeys(ACCOUNTS, 2)
    assert [a["most_in_flight"] for a in found["pools"][0]["accounts"]] == [2, 2, 2]
    assert [a["in_flight"] for a in found["pools"][0]["accounts"]] == [0, 0, 0]


def test_rows_whose_turn_comes_at_once_share_a_write(shop: World, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    remember = Sources.remember

    def counted(self: Sources, chosen: Sequence[tuple[str, str]]) -> None:
        lines = list(chosen)
        writes.append(len(lines))
        remember(self, lines)

    monkeypatch.setattr(Sources, "remember", counted)
    shop.run("pay", str(file), *COLUMNS, *POOL, "--choice", "least-active")
    assert writes == [6]


@pytest.mark.parametrize("retry", [(), ("--retry-rejected",)])
def test_dedicated_makes_the_same_requests_from_another_wallet(shop: World, file: Path, retry: tuple[str, ...]) -> None:
    write(file, [f"shop;bob;3;n{n}" for n in range(8)])
    rich(shop)
    shop.ledger.accounts["shop-1"].settled = 0
    found = shop.json("pay", str(file), *COLUMNS, *POOL)
    assert sum(a["insufficient_funds"] for a in found["pools"][0]["accounts"]) > 0
    rich(shop)  # also the account that had nothing
    for path in (shop.wallet.directory / "sources").iterdir():
        path.unlink()
    assert shop.json("pay", str(file), *COLUMNS, *POOL, *retry)["repeated"] == 8
    assert available(shop)["bob"] == 2400


def test_the_account_after_a_dry_one_is_the_least_busy_or_the_next() -> None:
    for choice, expected in ((Choice.DEDICATED, ["b", "c", "a", None]), (Choice.LEAST_ACTIVE, ["c", "a", "b", None])):
        pool = SourcePool(["a", "b", "c"], choice, random.Random(1))
        pool.begin("b")
        tried: list[str] = []
        got: list[str | None] = []
        for last in ("a", "a", "c", "a"):
            got.append(another(pool, last, tried))
            tried.append(got[-1] or "")
        assert got == expected
    assert another(SourcePool(["a", "b"], Choice.DEDICATED, random.Random(1)), "gone", ["gone"]) == "a"


def test_accounts_of_a_pool_are_opened_and_funded_with_what_their_rows_need(world: World, file: Path) -> None:
    words = (*COLUMNS, *POOL, "--open-missing", "--fund-from", "mint", "--choice", "round-robin")
    found = world.json("pay", str(file), *words)
    assert [found[k] for k in ("completed", "opened", "funded")] == [6, 4, 2100]
    assert available(world) == {"shop-1": 0, "shop-2": 0, "shop-3": 0, "bob": 2100}
    assert found["pools"][0]["ok"] is True and found["pools"][0]["left"] == 2100
    again = world.json("pay", str(file), *words)
    assert [again[k] for k in ("repeated", "opened", "funded")] == [6, 0, 0]


def test_pools_and_accounts_pay_side_by_side(shop: World, file: Path) -> None:
    write(file, [*ROWS[:2], "mint;bob;7;", "till;bob;1;", "shop;bob;1.005;", "ghost;bob;1;"])
    shop.run("account", "open", "till-1")
    shop.run("transfer", "mint", "till-1", "5")
    found = shop.json("pay", str(file), *COLUMNS, *POOL, "--pool", "till=till-1", code=1)
    assert found["outcomes"] == {"completed": 4, "invalid": 1, "no_key": 1}
    assert [(p["name"], p["left"], p["ok"]) for p in found["pools"]] == [("shop", 300, True), ("till", 100, True)]
    assert [r["paid_from"] for r in results(file)][2:] == ["mint", "till-1", "", ""]


# --- never twice ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", CHOICES)
def test_a_row_without_an_answer_stays_with_its_account(shop: World, file: Path, one_try: None, choice: str) -> None:
    rich(shop)
    faults(shop, Hang())
    words = (*COLUMNS, *POOL, "--choice", choice)
    found = shop.json("pay", str(file), *words, "--timeout", "0.5", code=3)
    assert found["outcomes"] == {"unknown": 6}
    (pool,) = found["pools"]
    assert [pool[k] for k in ("paid", "left", "unknown", "unknown_amount", "ok")] == [0, 0, 6, 2100, True]
    first = senders_of_rows(shop)
    healthy(shop)
    for other in CHOICES:  # the list turned round, other choices: nothing moves
        changed = ("--pool", "shop=shop-3,shop-2,shop-1", "--choice", other)
        assert shop.json("pay", str(file), *COLUMNS, *changed)["completed"] == 6
    assert senders_of_rows(shop) == first and all(len(accounts) == 1 for accounts in first.values())
    assert available(shop)["bob"] == 2100


def test_an_account_that_left_the_pool_still_settles_its_rows(shop: World, file: Path, one_try: None) -> None:
    write(file, ["shop;bob;1;x"])
    faults(shop, Hang())
    shop.run("pay", str(file), *COLUMNS, "--pool", "shop=shop-1", "--timeout", "0.5", code=3)
    healthy(shop)
    shop.wallet.path("shop-1").rename(shop.home / "shop-1.key")
    found = shop.json("pay", str(file), *COLUMNS, "--pool", "shop=shop-2", code=3)
    assert found["outcomes"] == {"unknown": 1} and available(shop)["bob"] == 0, (
        "its key is elsewhere: not paid by shop-2"
    )
    (shop.home / "shop-1.key").rename(shop.wallet.path("shop-1"))
    assert shop.json("pay", str(file), *COLUMNS, "--pool", "shop=shop-2")["completed"] == 1
    assert results(file)[0]["paid_from"] == "shop-1" and available(shop)["bob"] == 100


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("point", ["chosen", "remembered", "in the journal", "sent"])
def test_a_run_that_dies_between_choice_and_answer_goes_on_with_that_choice(
    shop: World, file: Path, monkeypatch: pytest.MonkeyPatch, choice: str, point: str
) -> None:
    rich(shop)
    remember, record, until_known = Sources.remember, Wallet.record, PoolRun._until_known
    kept: dict[str, str] = {}

    def dying_remember(self: Sources, chosen: Sequence[tuple[str, str]]) -> None:
        lines = list(chosen)
        if point != "chosen":
            remember(self, lines)
            kept.update(lines)
        if point in ("chosen", "remembered"):
            raise KeyboardInterrupt

    def dying_record(self: Wallet, requests: Sequence[tuple[RequestId, str, str]]) -> None:
        lines = list(requests)
        record(self, lines)
        if lines and point == "in the journal":
            raise KeyboardInterrupt

    async def dying_send(self: PoolRun, client: object, signed: object) -> None:
        await until_known(self, client, signed)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    words = (*COLUMNS, *POOL, "--concurrency", "2", "--choice")
    with monkeypatch.context() as killed:
        killed.setattr(Sources, "remember", dying_remember)
        killed.setattr(Wallet, "record", dying_record)
        killed.setattr(PoolRun, "_until_known", dying_send)
        shop.run("pay", str(file), *words, choice, code=130)
    assert bool(kept) is (point != "chosen")
    known = Sources(shop.wallet.directory, "may.csv", parse_pools(POOL[1:]), Choice.DEDICATED, random.Random(1))
    assert {row: known.tried(row)[-1] for row in kept} == kept
    other = CHOICES[(CHOICES.index(choice) + 1) % len(CHOICES)]
    assert shop.json("pay", str(file), *words, other)["completed"] == 6
    again = Sources(shop.wallet.directory, "may.csv", parse_pools(POOL[1:]), Choice.DEDICATED, random.Random(1))
    assert {row: list(again.tried(row)) for row in kept} == {row: [account] for row, account in kept.items()}
    assert available(shop)["bob"] == 2100
    assert all(len(accounts) == 1 for accounts in senders_of_rows(shop).values())


@pytest.mark.parametrize("seed", range(8))
def test_whatever_gets_lost_and_whoever_is_asked_each_row_is_paid_once(shop: World, file: Path, seed: int) -> None:
    """Lost requests and answers, late ones, dry accounts, changing pools and choices: at the end each row was paid
    once."""
    rng = random.Random(seed)
    rows = [f"shop;bob;{n}.0{n};n{n}" for n in range(1, 8)]
    late: list[wire.Submit] = []

    def lossy(call: wire.CallBody) -> Drop | Hang | None:
        if not isinstance(call, wire.Submit) or rng.random() < 0.5:
            return None
        late.append(call)
        return rng.choice([Drop(after=True), Drop(), Hang()])

    for _ in range(5):
        write(file, rng.sample(rows, rng.randrange(1, len(rows) + 1)))
        for node in shop.nodes:
            node.fault = lossy
        accounts = rng.sample(ACCOUNTS, rng.randrange(1, 4))
        words = ["--pool", f"shop={','.join(accounts)}", "--choice", rng.choice(CHOICES), "--timeout", "0.1"]
        retry = ["--retry-rejected"] if rng.random() < 0.5 else []
        outcome = shop.run_any("pay", str(file), *COLUMNS, *words, *retry)
        assert outcome in (0, 1, 3)
        for call in rng.sample(late, len(late) // 2):
            shop.ledger.submit(call, b"")
    healthy(shop)
    for account in ACCOUNTS:
        shop.ledger.accounts[account].settled += FUNDS * 10
    write(file, rows)
    found = shop.json("pay", str(file), *COLUMNS, *POOL, "--retry-rejected")
    assert found["completed"] == 7 and found["pools"][0]["ok"] is True
    for call in late:
        shop.ledger.submit(call, b"")
    assert available(shop)["bob"] == sum(101 * n for n in range(1, 8))


# --- too little in one account -------------------------------------------------------------------------------------


def test_an_account_with_too_little_is_passed_over_and_named(shop: World, file: Path) -> None:
    write(file, ["shop;bob;9;x"])
    words = (*COLUMNS, "--pool", "shop=shop-1,shop-2,shop-3", "--choice", "round-robin")
    shop.ledger.accounts["shop-1"].settled = 899
    found = shop.json("pay", str(file), *words)
    (row,) = results(file)
    assert (row["outcome"], row["paid_from"]) == ("completed", "shop-2")
    assert row["reason"] == "9.00 CZK were to be paid, and shop-1 had 8.99 CZK; shop-2 paid"
    assert [a["insufficient_funds"] for a in found["pools"][0]["accounts"]] == [1, 0, 0]
    assert found["pools"][0]["ok"] is True and found["completed"] == 1
    assert shop.json("pay", str(file), *words)["repeated"] == 1
    assert available(shop) == {"shop-1": 899, "shop-2": 100, "shop-3": FUNDS, "bob": 900}


def test_what_the_accounts_had_is_told_with_commas(shop: World, file: Path) -> None:
    write(file, ["shop;bob;12345678.90;x"])
    shop.ledger.accounts["shop-1"].settled = 123_456_789
    shop.json("pay", str(file), *COLUMNS, "--pool", "shop=shop-1,shop-2", "--choice", "round-robin", code=1)
    (row,) = results(file)
    assert row["amount"] == "12345678.90", "which programs read"
    assert row["reason"].startswith("12,345,678.90 CZK were to be paid, and shop-1 had 1,234,567.89 CZK, shop-2 had ")


def test_a_row_that_no_account_can_pay_is_rejected_until_it_is_asked_for(shop: World, file: Path) -> None:
    write(file, ["shop;bob;11;x"])
    words = (*COLUMNS, *POOL, "--choice", "round-robin")
    found = shop.json("pay", str(file), *words, code=1)
    assert found["outcomes"] == {"insufficient_funds": 1}
    reason = results(file)[0]["reason"]
    assert "shop-1 had 10.00 CZK, shop-2 had 10.00 CZK, shop-3 had 10.00 CZK" in reason
    executed = shop.ledger.executed
    shop.ledger.accounts["shop-2"].settled = 5000
    shop.run("pay", str(file), *words, code=1)
    assert shop.ledger.executed == executed, "each account was asked once"
    shop.run("account", "open", "shop-4")
    shop.ledger.accounts["shop-4"].settled = 5000
    found = shop.json("pay", str(file), *COLUMNS, "--pool", "shop=shop-1,shop-4", code=0)
    assert results(file)[0]["paid_from"] == "shop-4", "one that is new in the pool is asked"
    write(file, ["shop;bob;11;x", "shop;bob;12;y"])
    shop.run("pay", str(file), *COLUMNS, "--pool", "shop=shop-1,shop-3", code=1)
    assert shop.json("pay", str(file), *words, "--retry-rejected")["completed"] == 2
    assert available(shop)["bob"] == 2300


def test_a_retry_begins_where_the_row_was_last(shop: World, file: Path) -> None:
    write(file, ["shop;bob;11;x", "shop;bob;12;y"])
    words = (*COLUMNS, *POOL, "--choice", "round-robin")
    shop.run("pay", str(file), *words, "--concurrency", "1", code=1)
    last = [r["paid_from"] for r in results(file)]
    assert last == ["shop-3", "shop-1"], "round from the first and from the second"
    rich(shop)
    shop.run("pay", str(file), *words, "--retry-rejected")
    assert [r["paid_from"] for r in results(file)] == last


def test_a_rejection_for_another_reason_is_not_tried_elsewhere(shop: World, file: Path) -> None:
    write(file, ["shop;nobody;1;x"])
    found = shop.json("pay", str(file), *COLUMNS, *POOL, code=1)
    assert found["outcomes"] == {"unknown_recipient": 1} and len(sent(shop)) == 1
    shop.run("account", "open", "nobody")
    assert shop.json("pay", str(file), *COLUMNS, *POOL, "--retry-rejected")["completed"] == 1


# --- the check of the outflow --------------------------------------------------------------------------------------


def test_what_else_left_a_pool_is_told(shop: World, file: Path) -> None:
    rich(shop)

    def thief(call: wire.CallBody) -> None:
        if isinstance(call, wire.Submit):
            shop.ledger.accounts["shop-3"].settled -= 1

    for node in shop.nodes:
        node.fault = thief
    found = shop.json("pay", str(file), *COLUMNS, *POOL, code=1)
    assert (found["completed"], found["failed"]) == (6, 0)
    assert [found["pools"][0][k] for k in ("paid", "left", "ok")] == [2100, 2106, False]
    healthy(shop)
    shop.run("pay", str(file), *COLUMNS, *POOL)
    for node in shop.nodes:
        node.fault = thief
    shown = shop.run("pay", str(file), *COLUMNS, *POOL, "--run", "june", code=1)
    assert "NOT SO: 21.06 CZK left it, and 21.00 CZK were paid: somebody else pays from or to its" in shown.stdout


def test_an_answer_that_was_lost_is_of_this_run_though_it_comes_back_as_repeated(shop: World, file: Path) -> None:
    lost = set[bytes]()

    def lossy(call: wire.CallBody) -> Drop | None:
        if not isinstance(call, wire.Submit) or call.raw in lost:
            return None
        lost.add(call.raw)
        return Drop(after=True)

    rich(shop)
    for node in shop.nodes:
        node.fault = lossy
    found = shop.json("pay", str(file), *COLUMNS, *POOL)
    assert (found["completed"], found["repeated"]) == (6, 6)
    assert [found["pools"][0][k] for k in ("paid", "left", "ok")] == [2100, 2100, True]


def test_what_did_not_start_now_may_be_what_an_earlier_run_sent(shop: World, file: Path, one_round: None) -> None:
    write(file, ROWS[:1])

    def late(call: wire.CallBody) -> wire.ReplyBody | None:
        if not isinstance(call, wire.Submit):
            return None
        shop.ledger.submit(call, b"")  # the earlier one arrives at this moment
        return wire.NotStarted(request_id(call.raw), "busy", "later")

    for node in shop.nodes:
        node.fault = late
    found = shop.json("pay", str(file), *COLUMNS, *POOL, "--timeout", "0.5", code=3)
    assert found["outcomes"] == {"not_started": 1}
    assert [found["pools"][0][k] for k in ("paid", "left", "unknown", "unknown_amount", "ok")] == [0, 100, 1, 100, True]


def test_balances_that_cannot_be_read_at_the_end_are_not_compared(shop: World, file: Path) -> None:
    asked = Counter[str]()

    def once(call: wire.CallBody) -> wire.ReplyBody | None:
        if isinstance(call, wire.AskBalance):
            asked[call.account] += 1
            return wire.Refused("busy", "later") if asked[call.account] > 1 else None
        return None

    for node in shop.nodes:
        node.fault = once
    found = shop.json("pay", str(file), *COLUMNS, *POOL)
    assert found["completed"] == 6
    assert [found["pools"][0][k] for k in ("paid", "left", "ok")] == [2100, None, None]
    asked.clear()
    assert "could not be read" in shop.run("pay", str(file), *COLUMNS, *POOL).stdout


def test_people_see_the_books(shop: World, file: Path, one_try: None) -> None:
    shown = shop.run("pay", str(file), *COLUMNS, *POOL, "--choice", "round-robin").stdout
    assert "pool shop, round-robin:" in shown
    assert "shop-2          2  7.00 CZK" in shown
    assert "21.00 CZK left it: what was paid" in shown
    write(file, [*ROWS, "shop;bob;1;late"])
    faults(shop, Hang())
    shown = shop.run("pay", str(file), *COLUMNS, *POOL, "--timeout", "0.5", code=3).stdout
    assert "the outcome of 7 requests of 22.00 CZK is not known: run it again" in shown


# --- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--pool", "shop"), "'shop' is not a pool: write NAME=account,account"),
        (("--pool", "shop="), "'shop=' is not a pool"),
        (("--pool", "shop=shop-1,"), "not an account name"),
        (("--pool", "Shop=shop-1"), "not an account name"),
        (("--pool", "shop=shop-1,shop-1"), "shop-1 is in pool shop already"),
        (("--pool", "shop=shop-1", "--pool", "till=shop-1"), "shop-1 is in pool shop already"),
        (("--pool", "shop=shop-1", "--pool", "shop=shop-2"), "pool shop is given twice"),
        (
            ("--pool", "till=shop-1"),
            "pool till pays no row: no payer of the file is called till. A payer's name begins with",
        ),
        (("--from-prefix", "my-", *POOL), "begins with what --from-prefix says"),
        (("--pool", "shop=bob"), "line 2 pays bob, of pool shop"),
        (("--pool", "shop=shop-1,ghost"), "ghost is in a pool and cannot pay: the wallet has no key for ghost"),
        (("--choice", "dedicated"), "--choice needs a pool"),
        ((*POOL, "--fund-from", "shop-2"), "shop-2 is in pool shop: fund the pool from an account outside"),
        ((*POOL, "--fund-from", "mint", "--choice", "least-active"), "use --choice dedicated or round-robin"),
        ((*POOL, "--fund-from", "mint", "--bulk"), "--fund-from does not know which account of a pool"),
    ],
)
def test_what_cannot_be_right_is_refused_before_anything_is_sent(
    shop: World, file: Path, words: tuple[str, ...], what: str
) -> None:
    assert what in shop.json("pay", str(file), *COLUMNS, *words, code=2)["message"]
    assert not any(node.calls for node in shop.nodes) and not file.with_suffix(".result.csv").exists()


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("mint;shop;1;", "line 8 pays shop, of pool shop"),
        ("mint;shop-2;1;", "line 8 pays shop-2, of pool shop"),
        ("shop-3;bob;1;", "line 8 is paid by shop-3, which is in pool shop"),
    ],
)
def test_rows_that_would_blur_the_outflow_are_refused(shop: World, file: Path, row: str, what: str) -> None:
    write(file, [*ROWS, row])
    assert what in shop.json("pay", str(file), *COLUMNS, *POOL, code=2)["message"]
    assert not sent(shop)


def test_accounts_that_do_not_exist_or_hold_another_asset_are_refused(
    shop: World, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shop.ledger, "_scale", lambda code: 2)
    shop.wallet.create(["shop-4", "shop-5"])
    words = (*COLUMNS, "--pool")
    refused = shop.json("pay", str(file), *words, "shop=shop-1,shop-4", code=2)
    assert "there is no account shop-4, which is in a pool: open it, or use --open-missing" in refused["message"]
    shop.ledger.open("shop-5", "EUR", shop.wallet.key("shop-5").public_key().public_bytes_raw())
    refused = shop.json("pay", str(file), *words, "shop=shop-1,shop-5", code=2)
    assert "shop-5, which is in a pool, holds EUR, and this run pays CZK" in refused["message"]
    for node in shop.nodes:
        node.fault = lambda call: wire.NotFound("account", True) if isinstance(call, wire.AskBalance) else None
    refused = shop.json("pay", str(file), *words, "shop=shop-1", code=3)
    assert "shop-1, which is in a pool, exists is not known: who answered may be behind" in refused["message"]
    for node in shop.nodes:
        node.fault = lambda call: (
            wire.Unknown(b"", "no majority answered") if isinstance(call, wire.AskBalance) else None
        )
    refused = shop.json("pay", str(file), *words, "shop=shop-1", "--timeout", "1", code=3)
    assert "exists is not known: no majority answered. No row was paid" in refused["message"]
    healthy(shop)
    assert not sent(shop)
    assert shop.json("pay", str(file), *words, "shop=shop-1,shop-2,shop-3")["completed"] == 6, "no row was bound"
    shop.ledger.open("shop-6", "CZK", bytes(32))
    refused = shop.json("pay", str(file), *words, "shop=shop-6", "--open-missing", "--run", "june", code=2)
    assert "shop-6 is in a pool and cannot pay: the wallet has no key" in refused["message"]


@pytest.mark.parametrize("wrong", ["no key", "asset"])
def test_a_pool_that_cannot_pay_is_refused_before_accounts_are_opened(
    shop: World, file: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rich(shop)
    write(file, [*ROWS, "shop;newcomer;1;"])
    if wrong == "no key":
        shop.wallet.discard("shop-3")
    else:
        monkeypatch.setattr(shop.ledger, "_scale", lambda code: 2)
        shop.ledger.accounts["shop-3"].asset = "EUR"
    before = set(shop.ledger.accounts)
    refused = shop.json("pay", str(file), *COLUMNS, *POOL, "--open-missing", code=2)
    told = "shop-3 is in a pool and cannot pay" if wrong == "no key" else "shop-3, which is in a pool, holds EUR"
    assert told in refused["message"]
    assert set(shop.ledger.accounts) == before and not sent(shop)


def test_a_pool_that_is_found_unable_to_pay_after_accounts_were_opened_is_no_wrong_command_line(
    shop: World, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else opened one of its accounts in that moment."""
    rich(shop)
    write(file, [*ROWS, "shop;newcomer;1;"])

    async def found_nothing(books: PoolBooks, *_: object) -> list[str]:
        shop.wallet.discard("shop-3")
        return []

    monkeypatch.setattr(PoolBooks, "existing", found_nothing)
    refused = shop.json("pay", str(file), *COLUMNS, *POOL, "--open-missing", code=1)
    assert refused["error"] == "pool" and "Accounts were opened, and no row was paid" in refused["message"]
    assert "newcomer" in shop.ledger.accounts and not sent(shop)


def test_rows_that_were_sent_without_the_pool_are_refused_with_it_and_the_other_way(shop: World, file: Path) -> None:
    shop.run("account", "open", "shop")
    shop.ledger.accounts["shop"].settled = 10 * FUNDS
    shop.run("pay", str(file), *COLUMNS)
    refused = shop.json("pay", str(file), *COLUMNS, *POOL, code=2)
    assert "6 rows of run 'may.csv' were sent without --pool before" in refused["message"]
    june = (*COLUMNS, "--run", "june")
    shop.run("pay", str(file), *june, *POOL)
    for how in ([], ["--bulk"]):
        refused = shop.json("pay", str(file), *june, *how, code=2)
        assert "6 rows of run 'june' were sent from a pool's accounts before" in refused["message"]
    refused = shop.json("pay", str(file), *june, *POOL, "--bulk", code=2)
    assert "6 rows of run 'june' were sent one by one before" in refused["message"]
    assert available(shop)["bob"] == 4200


def test_a_pool_may_be_called_like_one_of_its_accounts(shop: World, file: Path) -> None:
    write(file, [row.replace("shop", "shop-1") for row in ROWS])
    words = (*COLUMNS, "--pool", "shop-1=shop-1,shop-2,shop-3", "--choice", "round-robin")
    assert shop.json("pay", str(file), *words)["completed"] == 6
    assert shop.json("pay", str(file), *words)["repeated"] == 6
    assert "sent from a pool's accounts before" in shop.json("pay", str(file), *COLUMNS, code=2)["message"]
    assert available(shop)["bob"] == 2100


# --- together ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", CHOICES)
def test_bulk_requests_are_spread_over_the_pool_and_stay_where_they_are(
    shop: World, file: Path, two_rows: None, one_try: None, choice: str
) -> None:
    rich(shop)
    bulk = (*COLUMNS, "--bulk")
    faults(shop, Hang())
    found = shop.json("pay", str(file), *bulk, *POOL, "--choice", choice, "--timeout", "0.5", code=3)
    assert found["outcomes"] == {"unknown": 6}
    assert [found["pools"][0][k] for k in ("unknown", "unknown_amount", "ok")] == [3, 2100, True]
    first = senders_of_rows(shop)
    if choice in ("round-robin", "least-active"):
        assert sorted(set().union(*first.values())) == ACCOUNTS
    healthy(shop)
    before = journal(shop)
    found = shop.json("pay", str(file), *bulk, "--pool", "shop=shop-3,shop-1", "--choice", "two-choices")
    assert (found["completed"], found["requests"]) == (6, 3)
    assert senders_of_rows(shop) == first and journal(shop) == before
    assert {r["paid_from"] for r in results(file)} == set().union(*first.values())
    assert shop.json("pay", str(file), *bulk, *POOL)["repeated"] == 6
    assert available(shop)["bob"] == 2100


def test_a_bulk_request_that_one_account_cannot_pay_is_made_anew_from_another(shop: World, file: Path) -> None:
    write(file, ROWS[:4])  # 10.00
    shop.ledger.accounts["shop-1"].settled = 999
    words = (*COLUMNS, "--bulk", *POOL, "--choice", "round-robin")
    found = shop.json("pay", str(file), *words)
    assert found["completed"] == 4 and {r["paid_from"] for r in results(file)} == {"shop-2"}
    assert [a["insufficient_funds"] for a in found["pools"][0]["accounts"]] == [1, 0, 0]
    assert shop.json("pay", str(file), *words)["repeated"] == 4
    write(file, [*ROWS[:4], "shop;bob;20;x"])
    found = shop.json("pay", str(file), *words, code=1)
    assert found["outcomes"] == {"completed": 4, "insufficient_funds": 1}
    assert len(sent(shop)) == 2 + 3, "each account was asked"
    shop.run("pay", str(file), *words, code=1)
    assert len(sent(shop)) == 2 + 3
    shop.ledger.accounts["shop-3"].settled = 2000
    assert shop.json("pay", str(file), *words, "--retry-rejected")["completed"] == 5
    assert available(shop)["bob"] == 3000


def test_bulk_requests_that_are_not_sent_any_more_are_not_in_the_books(shop: World, file: Path, two_rows: None) -> None:
    write(file, ["shop;nobody;1;", *ROWS])
    words = (*COLUMNS, "--bulk", *POOL, "--concurrency", "1", "--max-failures", "1")
    found = shop.json("pay", str(file), *words, code=3)
    assert found["outcomes"] == {"unknown_recipient": 2, "not_sent": 5}
    assert [found["pools"][0][k] for k in ("paid", "left", "ok")] == [0, 0, True]


def test_a_bulk_request_whose_account_is_gone_from_the_wallet_is_not_made_from_another(
    shop: World, file: Path, one_try: None
) -> None:
    write(file, ROWS[:2])
    faults(shop, Hang())
    words = (*COLUMNS, "--bulk", "--pool")
    shop.run("pay", str(file), *words, "shop=shop-1", "--timeout", "0.5", code=3)
    healthy(shop)
    shop.wallet.path("shop-1").rename(shop.home / "shop-1.key")
    found = shop.json("pay", str(file), *words, "shop=shop-2", code=3)
    assert found["outcomes"] == {"unknown": 2} and available(shop)["bob"] == 0


def test_an_atomic_file_is_paid_by_one_account_of_the_pool(shop: World, file: Path) -> None:
    write(file, ROWS[:4])
    found = shop.json("pay", str(file), *COLUMNS, "--atomic", *POOL)
    assert (found["completed"], found["requests"]) == (4, 1)
    assert sorted(available(shop)[a] for a in ACCOUNTS) == [0, FUNDS, FUNDS]
    write(file, ["shop;bob;1;", "till;bob;1;"])
    words = (*COLUMNS, "--atomic", *POOL, "--pool", "till=till-1", "--run", "june")
    assert "this one has 2 payers" in shop.json("pay", str(file), *words, code=2)["message"]


# --- what is remembered --------------------------------------------------------------------------------------------


def test_the_newest_line_of_a_row_says_where_it_is(tmp_path: Path) -> None:
    def made(pools: tuple[str, ...] = ("shop=a,b",)) -> Sources:
        return Sources(tmp_path, "may", parse_pools(pools), Choice.ROUND_ROBIN, random.Random(1))

    made().remember([])
    assert not list(tmp_path.iterdir())
    first = made()
    first.remember([("r1", "a"), ("r2", "b")])
    first.remember([("r1", "b")])
    for known in (first, made(), made(())):
        assert [list(known.tried(row)) for row in ("r1", "r2", "r3")] == [["a", "b"], ["b"], []]
    (path,) = (tmp_path / "sources").iterdir()
    path.write_bytes(path.read_bytes() + b'{"row":"r2","acc')
    assert list(made().tried("r2")) == ["b"]
    other = Sources(tmp_path, "june", {}, Choice.DEDICATED, random.Random(1))
    assert not other.tried("r1") and other.accounts == []
    path.write_bytes(b"x\n")
    with pytest.raises(LocalMisuse, match="line 1, is damaged"):
        made()


def test_a_node_that_is_cut_off_and_answers_does_not_stop_a_run(shop: World, file: Path) -> None:
    """It cannot say what the accounts have, the other one can."""
    rich(shop)
    shop.nodes[0].fault = lambda call: (
        wire.Unknown(b"", "no majority") if isinstance(call, wire.AskBalance) and call.linearizable else None
    )
    document = shop.json("pay", str(file), *COLUMNS, *POOL)
    assert document["completed"] == document["rows"] == len(ROWS)
    assert all(pool["ok"] for pool in document["pools"])

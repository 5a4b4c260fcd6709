"""`pay --fund-from` while the file changes: payers get what the rows need that are there now, and nobody gets it
twice."""

import os
import random
from collections.abc import Callable
from inspect import iscoroutinefunction
from pathlib import Path

import pytest

from chain.names import MAX_AMOUNT
from chain.request import Kind, RequestId, decode_request_untrusted, request_id
from cli import funding, payrun
from cli.funding import FundedRows, Funding
from cli.payaccounts import RunAccounts
from cli.payrun import PayRun
from cli.remembered import Remembered
from hopchain import wire
from tests.cli.conftest import World
from tests.cli.test_pay import COLUMNS, write
from tests.hopchain.fake_node import Hang

FUND = (*COLUMNS, "--fund-from", "purse")
TYPO = ["ann;bob;5;a", "dan;bob;1000;b"]  # 10 was meant
RIGHT = ["ann;bob;5;a", "dan;bob;10;b"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "may.csv"
    write(path, TYPO)
    return path


@pytest.fixture
def purse(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Accounts without money, and the one that funds them with 2,000. Whoever gets no answer asks again at once."""
    monkeypatch.setattr(payrun, "PAUSE_S", 0.0)
    world.run("account", "open", "purse", "ann", "bob", "dan")
    world.ledger.accounts["purse"].settled = 200_000
    return world


def fault(world: World, made: Callable[[wire.CallBody], object]) -> None:
    for node in world.nodes:
        node.fault = made  # type: ignore[assignment]


def healthy(world: World) -> None:
    fault(world, lambda call: None)


def kind_of(call: wire.CallBody) -> Kind | None:
    return decode_request_untrusted(call.raw).kind if isinstance(call, wire.Submit) else None


def never_funded(world: World, file: Path, *words: str) -> wire.Submit:
    """Run the file while its funding does not arrive in time; that request."""
    late: list[wire.Submit] = []

    def hang(call: wire.CallBody) -> Hang | None:
        if not isinstance(call, wire.Submit) or _id(call) in world.ledger.recorded:
            return None
        late.append(call)
        return Hang()

    fault(world, hang)
    world.run("pay", str(file), *FUND, *words, "--timeout", "0.2", code=3)
    healthy(world)
    return late[0]


def fundings(world: World) -> list[dict[str, int]]:
    """What left the purse, in order."""
    return [
        {p.recipient: p.amount for p in link.postings} for link in world.ledger.accounts["purse"].links if link.postings
    ]


# --- rows that are not in the file any more --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [(), ("--bulk",)], ids=["alone", "bulk"])
def test_a_row_that_was_put_right_is_funded_as_it_is_now(purse: World, file: Path, kind: tuple[str, ...]) -> None:
    purse.ledger.accounts["purse"].settled = 10_000
    assert purse.json("pay", str(file), *FUND, *kind, code=1)["error"] == "insufficient_funds"
    write(file, RIGHT)
    found = purse.json("pay", str(file), *FUND, *kind)
    assert (found["completed"], found["funded"]) == (2, 1500)
    assert fundings(purse) == [{"ann": 500, "dan": 1000}]
    assert purse.json("pay", str(file), *FUND, *kind)["funded"] == 0


@pytest.mark.parametrize("how", ["not_started", "lost", "killed"])
def test_a_row_that_was_put_right_before_its_funding_arrived_is_funded_as_it_is_now(
    purse: World, file: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    late: wire.Submit | None = None
    if how == "lost":
        late = never_funded(purse, file)
    elif how == "killed":

        async def dying(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as killed:
            killed.setattr(RunAccounts, "_fund_payers", dying)
            purse.run("pay", str(file), *FUND, code=130)
    else:
        fault(purse, lambda call: wire.NotStarted(_id(call), "no_majority", "x") if kind_of(call) else None)
        purse.run("pay", str(file), *FUND, "--timeout", "0.2", code=3)
        healthy(purse)
    write(file, RIGHT)
    assert purse.json("pay", str(file), *FUND)["funded"] == 1500
    if late is not None:
        purse.ledger.submit(late, b"")
    assert fundings(purse) == [{"ann": 500, "dan": 1000}]
    write(file, TYPO)
    assert purse.json("pay", str(file), *FUND)["funded"] == 100_000, (
        "the row that is back was never funded, the other was"
    )
    assert fundings(purse)[1:] == [{"dan": 100_000}]


def test_what_was_funded_stays_and_the_row_that_was_put_right_adds_to_it(purse: World, file: Path) -> None:
    late = never_funded(purse, file)
    purse.ledger.submit(late, b"")
    for rows in (RIGHT, RIGHT, TYPO, RIGHT):
        write(file, rows)
        purse.run("pay", str(file), *FUND)
    assert fundings(purse) == [{"ann": 500, "dan": 100_000}, {"dan": 1000}]


def test_a_funding_of_which_the_journal_lost_its_line_is_asked_for(purse: World, file: Path) -> None:
    purse.ledger.submit(never_funded(purse, file), b"")
    (journal,) = Path(os.environ["HOPCHAIN_HOME"]).rglob("journal")
    lines = journal.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.strip().endswith("funding")]
    assert len(kept) < len(lines)
    journal.write_text("".join(kept))
    write(file, RIGHT)
    purse.json("pay", str(file), *FUND)
    assert fundings(purse) == [{"ann": 500, "dan": 100_000}, {"dan": 1000}]


def test_a_file_without_any_of_its_rows_gives_the_funding_up(purse: World, file: Path) -> None:
    never_funded(purse, file)
    write(file, ["ann;dan;7;c", "ann;bob;5;x;"])
    found = purse.json("pay", str(file), *FUND, code=1)
    assert found["outcomes"] == {"completed": 1, "invalid": 1} and fundings(purse) == [{"ann": 700}]


def test_a_funding_that_came_before_its_cancellation_counts(purse: World, file: Path) -> None:
    """The node that is asked for its outcome lags."""
    late = never_funded(purse, file)
    purse.ledger.submit(late, b"")
    asked: list[wire.CallBody] = []

    def lag(call: wire.CallBody) -> wire.NotFound | None:
        if isinstance(call, wire.AskOutcome) and call.request_id == _id(late):
            asked.append(call)
            return wire.NotFound("request", stale=True) if len(asked) == 1 else None
        return None

    fault(purse, lag)
    write(file, RIGHT)
    assert purse.json("pay", str(file), *FUND)["funded"] == 1000
    assert len(asked) == 2 and fundings(purse) == [{"ann": 500, "dan": 100_000}, {"dan": 1000}]


@pytest.mark.parametrize("what", ["no answer", "lags"])
def test_a_funding_that_cannot_be_settled_is_not_made_anew(purse: World, file: Path, what: str) -> None:
    late = never_funded(purse, file)
    if what == "lags":
        purse.ledger.submit(late, b"")

    def fails(call: wire.CallBody) -> object:
        if isinstance(call, wire.AskOutcome):
            return wire.Refused("busy", "later") if what == "no answer" else wire.NotFound("request", stale=True)
        return Hang() if what == "no answer" and kind_of(call) is Kind.CANCEL else None

    fault(purse, fails)
    write(file, RIGHT)
    found = purse.json("pay", str(file), *FUND, "--timeout", "0.2", code=3)
    assert found["error"] == "unknown" and "is not settled" in found["message"] and found["outcomes"] == {"not_sent": 2}
    healthy(purse)
    purse.ledger.submit(late, b"")
    assert purse.json("pay", str(file), *FUND)["funded"] == 1000
    assert fundings(purse) == [{"ann": 500, "dan": 100_000}, {"dan": 1000}]


@pytest.mark.parametrize("rows", [TYPO, RIGHT], ids=["back", "right"])
def test_a_run_that_dies_after_its_cancellation_is_gone_on_with(
    purse: World, file: Path, monkeypatch: pytest.MonkeyPatch, rows: list[str]
) -> None:
    never_funded(purse, file)
    write(file, RIGHT)

    def dying(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(FundedRows, "give_up", dying)
        purse.run("pay", str(file), *FUND, code=130)
    assert fundings(purse) == []
    write(file, rows)
    needed = {"ann": 500, "dan": 1000 if rows == RIGHT else 100_000}
    for funded in (sum(needed.values()), 0):
        assert purse.json("pay", str(file), *FUND)["funded"] == funded
    assert fundings(purse) == [needed]


def test_a_retry_of_a_funding_is_what_is_given_up(purse: World, file: Path) -> None:
    """Its first request was rejected; the second one is on its way, and would be executed."""
    purse.ledger.accounts["purse"].settled = 0
    purse.run("pay", str(file), *FUND, code=1)
    purse.ledger.accounts["purse"].settled = 200_000
    late = never_funded(purse, file)
    write(file, RIGHT)
    assert purse.json("pay", str(file), *FUND)["funded"] == 1500
    purse.ledger.submit(late, b"")
    assert fundings(purse) == [{"ann": 500, "dan": 1000}]


# --- any order of edits and faults ---------------------------------------------------------------------------------


def interrupts(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, *, after: bool) -> None:
    """Ctrl-C when this method begins, or ends."""
    real = getattr(owner, name)

    async def asynchronous(*words: object, **more: object) -> None:
        if after:
            await real(*words, **more)
        raise KeyboardInterrupt

    def plain(*words: object, **more: object) -> None:
        if after:
            real(*words, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, asynchronous if iscoroutinefunction(real) else plain)


MOMENTS = (
    (FundedRows, "give_up"),
    (FundedRows, "add"),
    (RunAccounts, "_fund_payers"),
    (PayRun, "_until_known"),
    (PayRun, "_outcome"),
    (PayRun, "_pay"),
)


@pytest.mark.parametrize("seed", range(int(os.environ.get("HOPCHAIN_SEEDS", "8"))))
def test_no_row_is_funded_twice_and_none_is_left_without(
    purse: World, file: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    rows: dict[int, tuple[str, int]] = {0: ("ann", 5)}
    ever: dict[tuple[int, str, int], int] = {}  # every row that was in the file: what it needs
    late: list[wire.Submit] = []  # requests that are on their way

    def arrives() -> None:
        purse.ledger.submit(late.pop(rng.randrange(len(late))), b"")

    def weather(how: str) -> Callable[[wire.CallBody], object]:
        def made(call: wire.CallBody) -> object:
            if late and rng.random() < 0.1:
                arrives()
            if isinstance(call, wire.AskOutcome) and how == "lags" and rng.random() < 0.7:
                return wire.NotFound("request", stale=rng.random() < 0.5)
            if not isinstance(call, wire.Submit):
                return None
            if how == "delays" and rng.random() < 0.6:
                late.append(call)
                return wire.NotStarted(_id(call), "no_majority", "cut off")
            if how == "loses" and rng.random() < 0.4:
                purse.ledger.submit(call, b"")
                return wire.Unknown(_id(call), "cut off")
            if how == "down" or (how == "no cancel" and kind_of(call) is Kind.CANCEL):
                return wire.NotStarted(_id(call), "no_majority", "cut off")
            return None

        return made

    def edit() -> None:
        for number in rng.choices(range(4), k=rng.randint(1, 4)):
            if len(rows) > 1 and rng.random() < 0.3:
                rows.pop(number, None)
            else:
                rows[number] = (rng.choice(["ann", "dan"]), rng.choice([5, 10, 300]))
        ever.update({(n, payer, amount): 100 * amount for n, (payer, amount) in rows.items()})
        write(file, [f"{payer};bob;{amount};r{number}" for number, (payer, amount) in rows.items()])

    purse.ledger.accounts["purse"].settled = 0
    for _ in range(8):
        edit()
        purse.ledger.accounts["purse"].settled += rng.choice([0, 0, 20_000, 100_000])
        with monkeypatch.context() as patched:
            if rng.random() < 0.25:
                interrupts(patched, *rng.choice(MOMENTS), after=rng.random() < 0.5)
            fault(purse, weather(rng.choice(["fair", "down", "loses", "delays", "lags", "no cancel"])))
            purse.run_any("pay", str(file), *FUND, "--timeout", "0.3")
        while late and rng.random() < 0.3:
            arrives()
    healthy(purse)
    edit()
    purse.ledger.accounts["purse"].settled += 10_000_000
    purse.run("pay", str(file), *FUND, "--retry-rejected")
    while late:
        arrives()
    for payer in ("ann", "dan"):
        funded = sum(link.get(payer, 0) for link in fundings(purse))
        assert funded <= sum(need for (_, whose, _), need in ever.items() if whose == payer), payer


# --- what is remembered --------------------------------------------------------------------------------------------


def test_a_request_that_is_given_up_frees_its_rows_and_keeps_its_number(tmp_path: Path) -> None:
    first = FundedRows(tmp_path, "may", "mint")
    first.add({"r1": ("ann", MAX_AMOUNT), "r2": ("dan", 1), "r3": ("ann", 0)})
    assert first.requests == [
        Funding(0, (("ann", MAX_AMOUNT),), ("r1", "r3"), 0, True),
        Funding(1, (("dan", 1),), ("r2",), 1, True),
    ]
    first.give_up(first.requests[0])
    first.add({"r1": ("eve", 3)})
    for found in (first, FundedRows(tmp_path, "may", "mint")):
        assert found.rows == {"r1", "r2"}
        assert [(r.number, r.rows, r.line) for r in found.requests] == [(1, ("r2",), 1), (2, ("r1",), 3)]
    first.add({})
    assert len(first.requests) == 2


def test_a_line_of_several_requests_is_read_as_it_was_written(tmp_path: Path) -> None:
    lines = Remembered(tmp_path / "funded", ("may", "mint"), funding._Line)
    lines.add(funding._Line(("r1", "r2"), (("ann", MAX_AMOUNT), ("dan", 1))))
    found = FundedRows(tmp_path, "may", "mint")
    assert [(r.number, r.needs, r.alone) for r in found.requests] == [
        (0, (("ann", MAX_AMOUNT),), False),
        (1, (("dan", 1),), False),
    ]


def _id(call: wire.Submit) -> RequestId:
    return request_id(call.raw)

"""bench/compare.py: ratios beside the right peer, the goals, the table, and runs that are nothing to compare with."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import compare
import postgres
import pytest


def peer(variant: str, profile: str, per_s: float, aborted: float = 0.0, ok: bool = True) -> dict[str, object]:
    return {
        "variant": variant,
        "profile": profile,
        "completed_per_s": per_s,
        "aborted_share": aborted,
        "ok": ok,
    }


def mine(
    per_s: float, p99_ms: float = 20.0, rejected: int = 0, unknown: int = 0, retried: int = 0, read_us: int | None = 999
) -> dict[str, object]:
    return {
        "completed_per_s": per_s,
        "p50_ms": 9.0,
        "p99_ms": p99_ms,
        "rejected": rejected,
        "unknown": unknown,
        "retried": retried,
        "cost": {"read_p99_us_at_node": read_us},
    }


PEERS = [
    peer("nowait", "uniform", 3422.0, 0.01),
    peer("function", "uniform", 5355.0),
    peer("plain", "uniform", 7760.0),
    peer("nowait", "zipf", 2553.0, 0.4),
    peer("plain", "zipf", 3216.0),
    peer("waiting", "hot-sender", 740.0, 0.004),
    peer("nowait", "hot-sender", 276.4, 0.99),
]
OURS = {
    "uniform": mine(5355.0, 49.9),
    "zipf": mine(9647.9, 50.0),
    "hot-sender": mine(2960.0),
    "bulk": mine(82_000.0, 9000.0),
}


def test_uniform_stands_beside_the_function_and_the_others_beside_the_best_of_all() -> None:
    assert compare.compare(PEERS, OURS) == [
        {
            "profile": "uniform",
            "hopchain_per_s": 5355.0,
            "peer": "function",
            "peer_per_s": 5355.0,
            "ratio": 1.0,
            "goal": 1.0,
            "reached": True,
        },
        {
            "profile": "zipf",
            "hopchain_per_s": 9647.9,
            "peer": "plain",
            "peer_per_s": 3216.0,
            "ratio": 3.0,
            "goal": 3.0,
            "reached": False,  # 2.99997: rounded for people only
        },
        {
            "profile": "hot-sender",
            "hopchain_per_s": 2960.0,
            "peer": "waiting",
            "peer_per_s": 740.0,
            "ratio": 4.0,
            "goal": 4.0,
            "reached": True,
        },
    ]


def test_what_was_not_measured_is_not_compared() -> None:
    assert compare.compare([], OURS) == []
    assert compare.compare(PEERS, {}) == []
    assert compare.compare([peer("plain", "uniform", 7760.0)], OURS) == [], "the goal names another variant"


def test_a_peer_that_completed_nothing_divides_by_no_zero() -> None:
    (row,) = compare.compare([peer("function", "uniform", 0.0)], {"uniform": mine(5.0)})
    assert (row["ratio"], row["reached"]) == (50.0, True)


def test_the_goals_are_those_of_the_issue() -> None:
    every = tuple(postgres.VARIANTS)
    assert {
        "uniform": (1.0, ("function",)),
        "zipf": (3.0, every),
        "hot-recipient": (4.0, every),
        "hot-sender": (4.0, every),
    } == compare.GOALS
    assert (compare.BULK_PER_S, compare.P99_MS, compare.P99_CLIENTS) == (82_000, 50.0, 32)
    assert compare.SINGLE == ("uniform", "zipf", "hot-recipient", "hot-sender", "pool")
    assert compare.BALANCE_MS == 1.0


def reached(ours: dict[str, dict[str, object]], clients: int = 32) -> dict[str, bool]:
    rows = compare.goals(compare.compare(PEERS, ours), ours, clients)
    return {str(row["goal"]): bool(row["reached"]) for row in rows}


def test_each_goal_has_a_row_that_says_whether_it_is_reached() -> None:
    assert reached(OURS) == {
        "uniform, beside PostgreSQL": True,
        "zipf, beside PostgreSQL": False,
        "hot-sender, beside PostgreSQL": True,
        "bulk": True,
        "uniform, p99 at 32 clients": True,
        "zipf, p99 at 32 clients": False,
        "hot-sender, p99 at 32 clients": True,
        "balance at a node, p99": True,
        "no aborts in any profile": True,
    }
    assert reached({"bulk": mine(81_999.9, read_us=None)}) == {"bulk": False, "no aborts in any profile": True}
    assert reached({"uniform": mine(1.0, read_us=None)}, clients=33) == {
        "uniform, beside PostgreSQL": False,
        "no aborts in any profile": True,
    }
    assert reached({}) == {}


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (mine(1.0, rejected=1), "pool 1 rejected"),
        (mine(1.0, unknown=1), "pool 1 without an outcome"),
        (mine(1.0, retried=2), "pool 2 not started and sent again"),
        (mine(1.0, rejected=1, retried=2), "pool 1 rejected, pool 2 not started and sent again"),
    ],
)
def test_one_that_was_rejected_not_started_or_has_no_outcome_is_an_abort(lost: dict[str, object], said: str) -> None:
    rows = compare.goals([], {"read": mine(1.0), "pool": lost}, 33)
    assert [row["reached"] for row in rows if row["goal"] == "no aborts in any profile"] == [False]
    assert rows[-1]["measured"] == said


def test_a_pool_has_a_bound_of_its_latency_and_reads_and_bulk_have_none() -> None:
    ours = {profile: mine(1.0, 50.0) for profile in ("pool", "read", "bulk")}
    assert [name for name in reached(ours) if "p99 at" in name] == ["pool, p99 at 32 clients"]
    assert not reached(ours)["pool, p99 at 32 clients"]


def test_a_balance_takes_less_than_a_millisecond_at_the_slowest_node() -> None:
    ours = {"uniform": mine(1.0, read_us=1000), "zipf": mine(1.0, read_us=None), "read": mine(1.0, read_us=300)}
    (row,) = [row for row in compare.goals([], ours, 32) if row["goal"] == "balance at a node, p99"]
    assert (row["wanted"], row["measured"], row["reached"]) == ("under 1 ms", "1 ms (uniform)", False)
    assert reached({"uniform": mine(1.0, read_us=999)})["balance at a node, p99"]


def test_the_goals_as_people_read_them() -> None:
    rows = compare.goals(compare.compare(PEERS, OURS), {"uniform": OURS["uniform"], "bulk": mine(27_027.4)}, 32)
    assert compare.goals_table(rows).splitlines() == [
        "| goal | wanted | measured | |",
        "|---|---|---|---|",
        "| uniform, beside PostgreSQL | at least 1.0 x | 1.0 x (5355.0/s beside 5355.0/s of function) | reached |",
        "| zipf, beside PostgreSQL | at least 3.0 x | 3.0 x (9647.9/s beside 3216.0/s of plain) | not reached |",
        "| hot-sender, beside PostgreSQL | at least 4.0 x | 4.0 x (2960.0/s beside 740.0/s of waiting) | reached |",
        "| bulk | at least 82,000 postings/s | 27,027/s | not reached |",
        "| uniform, p99 at 32 clients | under 50 ms | 49.9 ms | reached |",
        "| balance at a node, p99 | under 1 ms | 0.999 ms (uniform) | reached |",
        "| no aborts in any profile | 0 | 0 | reached |",
    ]


def test_the_table_has_a_column_for_each_profile_and_a_row_for_each_variant() -> None:
    assert compare.table(PEERS, OURS).splitlines() == [
        "| completed/s | uniform | zipf | hot-sender |",
        "|---|---|---|---|",
        "| PostgreSQL x3, FOR UPDATE NOWAIT, checks in triggers | 3,422 (1% aborted) | 2,553 (40% aborted) | 276 (99% aborted) |",
        "| PostgreSQL x3, waiting, checks in triggers | - | - | 740 |",
        "| PostgreSQL x3, the same in one server-side function | 5,355 | - | - |",
        "| PostgreSQL x3, plain function, no checks beyond the balance | 7,760 | 3,216 | - |",
        "| hopchain x3 | 5,355 | 9,648 | 2,960 |",
    ]


# --- the script ----------------------------------------------------------------------------------------------------


class Cluster:
    """PostgreSQL as far as it is started and stopped."""

    def __init__(self, happened: list[str]) -> None:
        self._happened = happened

    @contextmanager
    def running(self) -> Iterator[None]:
        self._happened.append("start")
        yield
        self._happened.append("stop")


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Both answer at once; what was done, one after the other."""
    done: list[str] = []

    @contextmanager
    def cluster() -> Iterator[Cluster]:
        yield Cluster(done)

    def profile_of_peer(_: None, profile: str, asked: Namespace) -> list[dict[str, object]]:
        done.append(f"postgres {profile}")
        return [row for row in PEERS if row["profile"] == profile]

    def hopchain(profile: str, _: Namespace) -> dict[str, object]:
        done.append(profile)
        return mine(100.0)

    monkeypatch.setattr(postgres, "cluster", cluster)
    monkeypatch.setattr(postgres, "measure_profile", profile_of_peer)
    monkeypatch.setattr(compare, "measure_hopchain", hopchain)
    return done


def words(monkeypatch: pytest.MonkeyPatch, *given: str) -> None:
    monkeypatch.setattr(sys, "argv", ["compare.py", *given])


def test_everything_is_measured_and_printed(
    happened: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words(monkeypatch)
    compare.main()
    by_turns = [["start", f"postgres {profile}", "stop", profile] for profile in postgres.PROFILES]
    assert happened == [*chain.from_iterable(by_turns), "pool", "bulk", "read"]
    shown = capsys.readouterr().out
    for line in (
        "| bulk | at least 82,000 postings/s | 100/s | not reached |",
        "| no aborts in any profile | 0 | 0 | reached |",
        "read: 100/s, p99 20.0 ms",
    ):
        assert line in shown.splitlines()


def test_one_profile_as_json(
    happened: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words(monkeypatch, "--profile", "uniform", "--no-bulk", "--clients", "8", "--json")
    compare.main()
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"load_average", "postgres", "hopchain", "ratios", "goals"}
    assert happened == ["start", "postgres uniform", "stop", "uniform"]
    assert [row["goal"] for row in found["goals"]] == [
        "uniform, beside PostgreSQL",
        "balance at a node, p99",
        "no aborts in any profile",
    ]


def test_a_peer_whose_ledger_does_not_add_up_ends_the_script(
    happened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        postgres, "measure_profile", lambda _, profile, asked: [peer("nowait", profile, 1.0, ok=profile != "zipf")]
    )
    words(monkeypatch)
    with pytest.raises(SystemExit, match="PostgreSQL's ledger does not add up after nowait zipf: nothing") as ended:
        compare.main()
    assert ended.value.code != 0 and happened == ["start", "stop", "uniform", "start", "stop"]


def test_a_run_of_hopchain_that_is_not_sound_ends_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")  # any interpreter whose `hopchain bench` ends with 1
    asked = Namespace(clients=32, accounts=10, warm_up=0, duration=1)
    with pytest.raises(SystemExit, match="hopchain bench bulk ended with 1") as ended:
        compare.measure_hopchain("bulk", asked)
    assert ended.value.code != 0

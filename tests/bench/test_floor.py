"""bench/floor.py: what is replayed is what a node gave to SQLite, and the sum is of its parts."""

import json
import random
import sqlite3
from argparse import Namespace
from itertools import count
from pathlib import Path

import floor
import pytest

RUN = {
    "profile": "uniform",
    "completed_per_s": 500.0,
    "cost": {
        "cpu_us_per_transfer": 1e9,
        "commits_per_transfer": 1.2,
        "turns_per_transfer": 0.5,
        "transfers_per_link": 1.0,
        "member_bytes_per_transfer": 3000.0,
    },
    "client": {"cpu_us_per_transfer": 70.0},
}


def rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """All rows of money."""
    conn = sqlite3.connect(path)
    tables = ("links", "postings", "confirmations", "incoming", "threads", "accounts", "outcomes")
    found = {table: conn.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in tables}
    conn.close()
    return found


@pytest.mark.parametrize(("profile", "links"), [("uniform", 20), ("hot-recipient", 20), ("hot-sender", 4), ("bulk", 4)])
def test_replayed_statements_make_the_database_that_was_recorded(
    profile: str, links: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floor, "WARM_UP", 1)
    groups = floor.record(profile, tmp_path, 12, 4, 5, random.Random(1))
    assert len(groups) == 4
    for maker, voter, every in groups:
        assert not [sql for _, sql, _ in (*maker, *voter) if sql.startswith(("INSERT", "UPDATE", "DELETE"))]
        assert maker and voter and any(sql.startswith("INSERT") for _, sql, _ in every)
    before = rows(tmp_path / "start.db")
    wanted = rows(tmp_path / "node.db")
    assert len(wanted["links"]) == len(before["links"]) + links
    assert len(wanted["postings"]) == len(before["postings"]) + 20
    kept: list[dict[str, list[tuple[object, ...]]]] = []
    unlink = Path.unlink

    def look_first(path: Path) -> None:
        if path.name == "replayed.db":
            kept.append(rows(path))
        unlink(path)

    monkeypatch.setattr(Path, "unlink", look_first)
    assert floor.replay(tmp_path / "start.db", groups, "FULL") > 0
    assert kept == [wanted]


def test_one_node_makes_a_link_the_others_check_it_and_all_write_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of three parts of a group takes 1 s: 1, 2 and 3 nodes do it."""
    monkeypatch.setattr(floor, "WARM_UP", 0)
    floor.record("uniform", tmp_path, 12, 0, 5, random.Random(1))
    seconds = count()
    monkeypatch.setattr(floor.time, "thread_time", lambda: next(seconds))
    assert floor.replay(tmp_path / "start.db", [([], [], [])], "FULL") == 6e6


def test_the_floor_is_the_sum_of_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "FRAMES", 20)
    found = floor.floor(RUN, Namespace(accounts=12, transfers=20, seed=1), tmp_path)
    assert (found["transfers_per_commit"], found["frames_per_transfer"], found["frame_bytes"]) == (5, 1.0, 3000)
    assert set(found["parts_us"]) == {"database", "fsync", "tls", "signatures", "clients"}
    assert all(us > 0 for name, us in found["parts_us"].items() if name != "fsync")
    assert found["floor_us"] == pytest.approx(sum(found["parts_us"].values()), abs=0.5)
    assert found["interpreter_us"] == pytest.approx(found["measured_us"] - found["floor_us"], abs=0.2)
    assert found["most_per_s"] == pytest.approx(found["cores"] * 1e6 / found["floor_us"], rel=0.01)
    text = floor.show(found)
    assert "5 transfers of uniform in two commits" in text and "1 frames of 3000 bytes" in text


@pytest.mark.parametrize(
    ("profile", "requests", "payers", "payees"),
    [("uniform", 5, 5, None), ("hot-recipient", 5, 5, 1), ("hot-sender", 5, 1, None), ("bulk", 1, 1, None)],
)
def test_payers_of_a_commit_are_those_of_the_profile(
    profile: str, requests: int, payers: int, payees: int | None
) -> None:
    names = [f"account-{number}" for number in range(6)]
    for seed in range(20):
        drawn = floor.draw(profile, names, 5, random.Random(seed))
        assert len(drawn) == requests
        assert len({payer for payer, _ in drawn}) == payers
        assert profile != "hot-sender" or drawn[0][0] == names[0], "the same one in every commit"
        assert sum(len(paid) for _, paid in drawn) == 5
        assert payees is None or {name for _, paid in drawn for name in paid} == {names[0]}
        assert all(payer not in paid for payer, paid in drawn)


def test_the_floor_of_bulk_is_of_one_request_with_many_postings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floor, "FRAMES", 20)
    cost = {**RUN["cost"], "commits_per_transfer": 0.0, "turns_per_transfer": 0.0, "transfers_per_link": 50.0}
    found = floor.floor(
        {**RUN, "profile": "bulk", "cost": cost}, Namespace(accounts=12, transfers=20, seed=1), tmp_path
    )
    assert (found["transfers_per_commit"], found["frames_per_transfer"], found["frame_bytes"]) == (50, 0.04, 75_000)
    assert 0 < found["parts_us"]["signatures"] * 10 < floor.signature_us()


def test_a_link_of_the_floor_holds_no_more_than_links_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the ends of a run links and what they paid are not counted at the same instant."""
    monkeypatch.setattr(floor, "FRAMES", 20)
    monkeypatch.setattr(floor, "MAX_POSTINGS", 50)
    cost = {**RUN["cost"], "commits_per_transfer": 0.0, "turns_per_transfer": 0.0, "transfers_per_link": 51.0}
    found = floor.floor(
        {**RUN, "profile": "bulk", "cost": cost}, Namespace(accounts=12, transfers=20, seed=1), tmp_path
    )
    assert found["transfers_per_commit"] == 50


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("[]", "`profile` is none of uniform, hot-recipient, hot-sender, bulk"),
        ('{"profile": "zipf"}', "`profile` is none of"),
        ('{"profile": "uniform", "cost": {"cpu_us_per_transfer": null}}', "the nodes must run on this machine"),
    ],
)
def test_a_file_that_is_no_run_is_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=why):
        floor.read_run(path)
    path.write_text(json.dumps(RUN))
    assert floor.read_run(path)["completed_per_s"] == 500.0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("run.json --profile uniform", "says itself of which profile it is"),
        ("--accounts 999", "--accounts 999: take 1000 or more"),
        ("--runs 2 --keep floor.json", "--runs 2 with --keep: take an odd number, of which one run is the median"),
        ("run.json", "too much in a commit to tell how many"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    words: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.json").write_text(json.dumps({**RUN, "cost": {**RUN["cost"], "commits_per_transfer": 0.0}}))
    monkeypatch.setattr("sys.argv", ["floor.py", *words.split()])
    with pytest.raises(SystemExit):
        floor.main()
    assert why in capsys.readouterr().err


def test_a_recorder_asks_as_its_connection_does() -> None:
    recorder = floor.Recorder(sqlite3.connect(":memory:"))
    recorder.execute("CREATE TABLE t (n INTEGER)")
    recorder.executemany("INSERT INTO t VALUES (?)", ((n,) for n in range(3)))
    assert recorder.execute("SELECT sum(n) FROM t WHERE n > ?", (0,)).fetchone() == (3,)
    assert recorder.in_transaction
    assert [(how, values) for how, _, values in recorder.statements] == [
        ("execute", ()),
        ("executemany", [(0,), (1,), (2,)]),
        ("execute", (0,)),
    ]

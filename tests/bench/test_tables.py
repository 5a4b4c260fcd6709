"""bench/tables.py: what the programs keep has what the tables read; a page is changed between its marks and nowhere
else.

The results are of canned runs, in the shape that each program makes them; none is measured.
"""

import json
import re
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import balances
import clients
import compare
import floor
import floor_tables
import kept
import library
import memory
import postgres
import pytest
import scale
import shares
import tables
import takeover
from text import Kept

from cli.bench_report import document
from tests.cli.test_bench import make_run

PAGE = "# Numbers\n\n" + "\n".join(f"{name} <!-- table: {name} -->old<!-- end -->." for name in tables.TABLES)


LOOKS = [memory.Look(float(at), at * 0.1, 2000.0, at <= make_run().settings.duration_s) for at in range(4)]


PROGRAM_ROWS = [
    {"loop": loop, "tasks": 256, **takeover.numbers([1.0, 2.0], 1, 2, 3), "cpu_us_per_transfer": 1234}
    for loop in library.LOOPS
]


def bench(profile: str, per_s: float) -> dict[str, Any]:
    """A document of `hopchain bench`, made as it makes them."""
    found: dict[str, Any] = document(make_run())
    sizes = {"batch": 8190 if profile == "bulk" else 1, "sources": 16 if profile == "pool" else 0}
    found |= {"profile": profile, "completed_per_s": per_s, "rejected": 0, "unknown": 0, "retried": 0}
    found["settings"] |= {"profile": profile, **sizes}
    if profile in ("bulk", "read"):
        found["cost"] |= {"commits_per_transfer": 0.0, "transfers_per_link": 7226.5 if profile == "bulk" else None}
    return found


def keep_all(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each program would keep of such runs, in its file."""
    monkeypatch.setattr(postgres, "version", lambda: "15.9")
    ours = {profile: bench(profile, 100.0) for profile in (*postgres.PROFILES, "pool", "bulk", "read")}
    peers = [
        {"variant": variant, "profile": profile, **postgres.numbers(1000, 1, ["0 0 900 0 0 0"] * 2000)}
        for variant in postgres.VARIANTS
        for profile in postgres.PROFILES
    ]
    ratios = compare.compare(peers, ours)
    found = {"postgres": peers, "hopchain": ours, "ratios": ratios, "goals": compare.goals(ratios, ours, 32)}
    asked = Namespace(clients=32, accounts=10_000, warm_up=3, duration=10)
    floors = [
        floor.floor(bench(profile, 100.0), Namespace(accounts=12, transfers=20, seed=1), place)
        for profile in floor.PROFILES
        for _ in range(3)
    ]
    phases: list[dict[str, object]] = []
    for phase in takeover.PHASES:
        phases.append(takeover.compared(phase, takeover.numbers([1.0, 2.0], 1, takeover.ACCOUNTS, 0), phases))
    for name in ("scale", "bulk"):
        (place / name).mkdir()
    sizes = Namespace(accounts=300, postings=1000, transfers=20, seed=1, json=True)
    results = {
        "compare": compare.to_keep(found, asked, compare.kept_before(place / "none.json", "1234567")),
        "balances": balances.to_keep([bench("read", 100.0), bench("read", 50.0)]),
        "floor": floor.to_keep(floors),
        "clients": {
            "postgres": {"variant": clients.PEER, "completed_per_s": 50.0},
            "hopchain": [{"clients": count, **clients.row(bench("hot-sender", 100.0))} for count in clients.CLIENTS],
        },
        "library": {"nodes": library.NODES, "accounts": library.ACCOUNTS, "rows": PROGRAM_ROWS},
        "memory": memory.minutes(bench("uniform", 100.0), LOOKS, 1),
        "takeover": takeover.to_keep([phases, phases]),
        "scale": scale.to_keep(scale.run(sizes, place / "scale")),
        "scale-bulk": scale.to_keep(scale.run_bulk(sizes, place / "bulk")),
        "shares": shares.to_keep(dict.fromkeys(shares.RUNS, shares.shares(["main;process.run_node;core.Core.step 9"]))),
    }
    assert set(results) == set(tables.FILES)
    for name, result in results.items():
        kept.write(Namespace(keep=place / f"{name}.json", commit="1234567", load_average=0.25), result)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files, made once."""
    place = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(floor, "WARM_UP", 1)
        monkeypatch.setattr(floor, "record", lambda *_: [])
        monkeypatch.setattr(floor, "replay", lambda _, groups, how: 100.0 if how == "FULL" else 80.0)
        monkeypatch.setattr(floor, "frame_us", lambda _, size: 5.0)
        monkeypatch.setattr(floor, "signature_us", lambda: 50.0)
        small = {"FIRST_ACCOUNTS": 30, "FIRST_POSTINGS": 100, "BULK_ACCOUNTS": 40, "MAX_POSTINGS": 20}
        for name, number in small.items():
            monkeypatch.setattr(scale, name, number)
        keep_all(place, monkeypatch)
    return place


@pytest.fixture
def results(place: Path) -> Kept:
    return tables.read(place)


def test_what_the_programs_keep_has_what_each_table_shows(results: Kept) -> None:
    shown = {name: tables.render(name, results) for name in tables.TABLES}
    assert shown["compare-run"].startswith("at commit `1234567`: ")
    assert re.search(r" cores of .*, \d+ GB, \w+ [\d.]+, a load average of 0.25 before it, ", shown["compare-run"])
    assert shown["compare-run"].endswith("rejected, aborted or lost anything, and no request was sent again.")
    assert "| hopchain: rejected, without an outcome, sent again | 0, 0, 0 | 0, 0, 0 |" in shown["compare"]
    assert "PostgreSQL 15; 3 nodes,\nk = 3, 32 clients, 10,000 accounts, 10 s after 3 s" in shown["compare-run"]
    assert "| PostgreSQL x3, plain function | 1,000 (50 % aborted) |" in shown["compare"]
    assert "| hopchain x3 | 100 | 100 | 100 | 100 |" in shown["compare"] and "runs before" not in shown["compare"]
    assert "0.10 x (goal 1) | 0.10 x (goal 3) | 0.10 x (goal 4)" in shown["compare"]
    assert shown["others"].startswith("Pool of 16: 100/s, p99 198 ms. Bulk: 100 postings/s (100 in the three runs for")
    assert shown["goals"] == "**2 of 12 are reached**: balance at a node, p99 under 1 ms; no aborts in any profile"
    assert "| bulk, 8,190 a request | 1,000 | 500 | - | 2,000 | 7,226 |" in shown["costs"]
    assert "| read | 1,000 | 500 | 0 | 2,000 | - |" in shown["costs"]
    assert shown["balance"].endswith("| p99, ms | 0.7 | 0.7 | 0.7 | 0.7 | 0.7 | 0.7 | 0.7 |")
    assert "p99 0.7 ms at the node and 50 reads/s, beside 0.7 ms and 100 with " in shown["balances"]
    assert re.fullmatch(r"[\d.]+ times from 10\^1 to 10\^2 accounts and [\d.]+ times from 10\^2 to 10\^3 postings", shown["growth"])  # fmt: skip
    assert "| 2,048 | 100 | 2.0 x | 2 | 100, 198 | 1,000 |" in shown["clients"]
    assert shown["clients-peer"] == "at commit `1234567`; PostgreSQL's plain function with 32 clients: 50/s"
    assert shown["library"].endswith("|\n| asyncio | 256 | 2 | 1, 2 | 1,234 | 3 |")
    assert shown["memory"] == "200 transfers at commit `1234567`: 40 MB at the start, then, each minute's most, 40 and 60 MB, at 80 and 120 transfers a second"  # fmt: skip
    assert shown["memory-level"] == "not level within two minutes of 100 transfers a second"
    for name in ("scale", "scale-bulk", "shares", "floor"):
        assert shown[f"{name}-commit"] == "at commit `1234567`"
    assert "in two runs at commit `1234567`; " in shown["takeover"]
    assert "p99 2 and 2 ms with all alive" in shown["takeover"] and "all 60 accounts pay" in shown["takeover"]
    assert "| TLS and loopback | 10 | 10 | 10 | 0.0 |" in shown["floor"] and shown["floor-run"].endswith("of three")
    assert "| the goal in the run [above](#numbers) | 1,000 | 4,000 | 4,000 | 82,000 |" in shown["floor"]
    assert "| `core.step` without signatures | 100 % | 100 % | 100 % | 100 % |" in shown["shares"]
    assert shown["pictures"].endswith(" and [bulk](performance/bulk.svg), at commit `1234567`")
    assert " times as many transfers" in shown["leave"]


@pytest.mark.parametrize("name", tables.FILES)
def test_a_result_that_lacks_something_is_named_with_its_table(name: str, results: Kept) -> None:
    results[name] = {"commit": "1234567"}
    with pytest.raises(ValueError, match=r"^the kept results lack what `[a-z-]+` shows: KeyError"):
        tables.rendered(PAGE, results)


def test_a_balance_that_was_asked_too_seldom_has_no_p99(results: Kept) -> None:
    results["compare"]["hopchain"]["bulk"]["cost"]["read_p99_us_at_node"] = None
    assert compare.balance(results).endswith("| 0.7 | - | 0.7 |")


def test_a_page_changes_between_its_marks_and_nowhere_else(results: Kept) -> None:
    page, differ = tables.rendered(PAGE, results)
    assert differ == list(tables.TABLES)
    assert tables.PLACE.sub(r"\1old\6", page) == PAGE
    assert tables.rendered(page, results) == (page, [])
    last = page.replace(tables.render("leave", results), "850 us: 3 times")
    assert tables.rendered(last, results) == (page, ["leave"])


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("<!-- table: leave -->", "", "has no `<!-- end -->`"),
        ("<!-- table: leave -->old<!-- end -->", "", r"lacks.*: \['leave'\]"),
        ("<!-- table: leave -->", "<!-- table: other -->", r"there are none of: \['leave', 'other'\]"),
        ("<!-- table: leave -->", "<!-- table: goals -->", r"twice or lacks.*: \['leave'\]"),
        ("<!-- end -->", "", "has no `<!-- end -->`"),
    ],
)
def test_marks_that_do_not_fit_are_refused(old: str, new: str, why: str, results: Kept) -> None:
    with pytest.raises(ValueError, match=why):
        tables.rendered(PAGE.replace(old, new), results)


@pytest.mark.parametrize("name", tables.FILES)
def test_a_result_that_names_no_commit_is_refused(name: str, results: Kept) -> None:
    results[name]["commit"] = None
    with pytest.raises(ValueError, match=f"^docs/performance/{name}.json names no commit: measure again$"):
        tables.rendered(PAGE, results)


def test_memory_is_level_from_where_it_has_nearly_its_most(results: Kept) -> None:
    results["memory"]["minutes_mb"] = [168, 206, 230, 253, 259, 261, 261, 263, 263]
    assert memory.level(results) == "level after about five minutes of 100 transfers a second"


@pytest.mark.parametrize(
    ("rates", "cpu_us", "loop_us", "words"),
    [
        ((330, 250), (2000, 2600), (2000, 2000), "beside that loop a transfer costs 30 % more with the longer ledger"),
        ((330, 250), (2000, 2600), (2000, 2500), "the machine got slower, and beside that loop a transfer costs no more"),
        ((330, 250), (2000, 2040), (2000, 2000), "a transfer costs no more, so the nodes got less of the cores or waited"),
        ((330, 330), (2000, 2040), (2000, 2000), "a longer ledger does not show"),
        ((330, 330), (2000, 2400), (2000, 2000), "beside that loop a transfer costs 20 % more with the longer ledger"),
    ],
)  # fmt: skip
def test_a_rate_that_falls_is_the_ledgers_only_beside_the_machines_speed(
    rates: tuple[int, int], cpu_us: tuple[int, int], loop_us: tuple[int, int], words: str, results: Kept
) -> None:
    for key, (first, last) in (
        ("minutes_per_s", rates),
        ("minutes_cpu_us", cpu_us),
        ("minutes_loop_us", loop_us),
    ):
        results["memory"][key] = [first - 1, first + 1, 7, last - 1, last + 1]
    assert f"%): {words}" in memory.rate(results)
    del results["memory"]["minutes_loop_us"]
    told = memory.rate(results)
    assert told.startswith(f"From the first two minutes to the last two the rate went from 330 to {rates[1]}/s (")
    assert told.endswith(" %)")


def test_parts_floor_and_rest_are_of_one_run_and_add_up(results: Kept) -> None:
    def run(database: float, clients: float, measured: float) -> dict[str, Any]:
        parts = {**dict.fromkeys(floor_tables.PARTS, 0.0), "database": database, "clients": clients}
        return {
            "parts_us": parts,
            "floor_us": database + clients,
            "measured_us": measured,
            "interpreter_us": measured - database - clients,
            "completed_per_s": measured,
            "most_per_s": 7,
        }

    results["floor"]["profiles"]["uniform"] = [run(500, 100, 2000), run(400, 300, 1900), run(600, 50, 2500)]
    cells = {row.split(" | ")[0]: row.split(" | ")[1] for row in floor_tables.floor_table(results).splitlines()[2:]}
    assert (cells["| SQLite: reads, votes, links with all triggers"], cells["| the clients of the run"]) == (
        "600",
        "50",
    )
    assert cells["| **floor**"] == "**650 (600 to 700)**" and cells["| measured"] == "2,500 (1,900 to 2,500)"
    assert cells["| completed a second"] == "2,500"
    assert floor_tables.floor_run(results) == "the run whose floor is the median of three"
    results["floor"]["profiles"]["uniform"] = [run(2, 2, 9), run(1, 1, 9)]
    assert floor_tables.middle(results, "uniform")["floor_us"] == 2
    assert floor_tables.floor_run(results) == "the run whose floor is the lower median of two"


def test_what_is_needed_goes_from_half_of_the_least_to_all_of_the_most(results: Kept) -> None:
    runs = [
        {"measured_us": 4000, "interpreter_us": 2000, "parts_us": {"fsync": 400}},
        {"measured_us": 4500, "interpreter_us": 2400, "parts_us": {"fsync": 600}},
    ]
    results["floor"]["profiles"]["uniform"] = runs
    (uniform,) = [row for row in results["compare"]["ratios"] if row["profile"] == "uniform"]
    shown = floor_tables.needed(results).splitlines()
    assert shown[0] == "| step | CPU us, of 4,000 to 4,500 |"
    assert [row.split(" | ")[-1] for row in shown[2:]] == ["180 to 200 |", "1,000 to 2,400 |", "200 to 600 |"]
    for ratio, words in ((0.3, "still fewer than"), (0.5, "as many as"), (0.8, "more than")):
        uniform["ratio"] = ratio
        assert floor_tables.leave(results).startswith(
            f"1,500 to 3,000 us: 1.4 to 3.0 times as many transfers, {words} a PostgreSQL"
        )


@pytest.mark.parametrize(
    ("left", "words"),
    [
        ([10, 20, 30], "the smaller part of what is measured: 10 to 30 % in the three runs"),
        ([-2, 20, 30], "the smaller part of what is measured: -2 to 30 % in the three runs, and what is below nothing is"),
        ([30, 60, 45], "about half of what is measured: 30 to 60 %"),
        ([60, 70, 80], "the larger part of what is measured: 60 to 80 %"),
    ],
)  # fmt: skip
def test_what_is_left_of_bulk_is_of_all_runs(left: list[int], words: str, results: Kept) -> None:
    for run, per_cent in zip(results["floor"]["profiles"]["bulk"], left, strict=True):
        run |= {"measured_us": 50.0, "interpreter_us": per_cent / 2, "completed_per_s": 1000 + per_cent}
    assert floor_tables.bulk_left(results).startswith(words)
    assert f"({min(left) + 1000:,} to {max(left) + 1000:,} in the three runs for [the floor]" in compare.others(results)


@pytest.mark.parametrize(
    ("most", "words"),
    [
        ([65_599] * 3, "out of reach of any language (65,599 postings/s in the three runs, of 82,000)"),
        ([58_493, 77_424, 79_721], "at the edge of what the floor leaves (58,493 to 79,721 postings/s in"),
        ([98_401] * 3, "within what the floor leaves ("),
        ([65_000, 65_000, 66_000], "at the edge of what the floor leaves ("),
        ([98_000, 99_000, 99_000], "at the edge of what the floor leaves ("),
    ],
)
def test_a_goal_within_the_noise_of_the_floor_is_at_its_edge(most: list[int], words: str, results: Kept) -> None:
    for run, per_s in zip(results["floor"]["profiles"]["bulk"], most, strict=True):
        run |= {"most_per_s": per_s, "floor_us": 1e6 / per_s}
    assert tables.TABLES["bulk-reach"](results).startswith(words)


def test_a_hot_recipient_has_a_floor_of_its_own_and_zipf_that_of_uniform(results: Kept) -> None:
    for profile, per_s in (("uniform", 600), ("hot-recipient", 3_900)):
        for run in results["floor"]["profiles"][profile]:
            run["most_per_s"] = per_s
    assert tables.TABLES["uniform-reach"](results).endswith("(600/s in the three runs, of 1,000)")
    assert tables.TABLES["zipf-reach"](results).endswith("(600/s in the three runs, of 3,000)")
    assert tables.TABLES["hot-recipient-reach"](results).startswith("at the edge of what the floor leaves (3,900")


def test_lost_payments_stand_where_it_says_that_there_are_none(results: Kept) -> None:
    results["compare"]["hopchain"]["pool"] |= {"rejected": 1, "unknown": 2, "retried": 3}
    assert compare.compare_run(results).endswith(
        "At hopchain: pool 1 rejected, pool 2 without an outcome, pool 3 not started and sent again."
    )


def test_the_row_of_runs_before_is_of_other_commits(results: Kept, tmp_path: Path) -> None:
    path = tmp_path / "compare.json"
    asked = Namespace(keep=path, commit="1234567", load_average=0.25)
    kept.write(asked, results["compare"])
    first = compare.kept_before(path, "abcdef0")
    ratios = {row["profile"]: row["ratio"] for row in results["compare"]["ratios"]}
    assert first == [{"commit": "1234567", "ratios": ratios}]
    older = [{"commit": name, "ratios": {**ratios, "zipf": 0.3}} for name in ("a", "b")]
    kept.write(asked, {**results["compare"], "before": older})
    assert compare.kept_before(path, "1234567") == older, "the same commit once more takes its own place"
    assert compare.kept_before(path, "abcdef0") == [*first, older[0]]
    results["compare"]["before"] = [*first, older[0]]
    assert "| the same in the two runs before, of earlier commits | 0.10 x | 0.10 to 0.30 x |" in compare.compare_table(results)  # fmt: skip
    results["compare"]["before"] = first
    assert "| the same in the run before, of earlier commits | 0.10 x |" in compare.compare_table(results)


def test_check_writes_nothing_and_says_which_differ(
    results: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    for name, value in (("PAGE", page), ("RESULTS", tmp_path), ("read", lambda: results)):
        monkeypatch.setattr(tables, name, value)
    monkeypatch.setattr(kept, "ROOT", tmp_path.parent)
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    with pytest.raises(SystemExit, match=f"differ from {tmp_path.name}: {', '.join(tables.TABLES)}"):
        tables.main()
    assert page.read_text() == PAGE
    monkeypatch.setattr(sys, "argv", ["tables.py"])
    tables.main()
    tables.main()
    assert capsys.readouterr().out == f"renewed: {', '.join(tables.TABLES)}\nnothing differs\n"
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        tables.main()
    assert ended.value.code == 0


PROGRAMS = {
    "balances": balances,
    "compare": compare,
    "floor": floor,
    "clients": clients,
    "library": library,
    "memory": memory,
    "takeover": takeover,
    "scale": scale,
    "shares": shares,
}


@pytest.mark.parametrize("line", re.findall(r"python bench/(\w+\.py .*--keep .*)", tables.__doc__ or ""))
def test_the_commands_that_redo_it_are_taken(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the first measurement; each writes a file that the tables read."""
    program, *words = line.split()
    file = Path(words[words.index("--keep") + 1])
    assert file.parent.resolve().samefile(tables.RESULTS) or file.parts[:2] == ("docs", "performance")
    assert file.stem in tables.FILES

    class Ready(Exception):
        pass

    def stop(_: ArgumentParser, asked: Namespace) -> None:
        assert asked.keep == file
        raise Ready

    monkeypatch.setattr(kept, "prepare", stop)
    monkeypatch.setattr(sys, "argv", [program, *words])
    with pytest.raises(Ready):
        PROGRAMS[program.removesuffix(".py")].main()


def test_there_is_a_command_for_each_file() -> None:
    named = re.findall(r"--keep docs/performance/([\w-]+)\.json", tables.__doc__ or "")
    assert sorted(named) == sorted(tables.FILES)


def test_kept_results_are_small() -> None:
    for name in tables.read():
        text = (tables.RESULTS / f"{name}.json").read_text()
        assert len(text) < 10_000, name
        assert text == kept.dumps(json.loads(text)), f"{name} was not written by a program"

"""`hopchain sim`: what is printed, written and returned."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

import netsim.swarm
from chain.errors import HopchainError
from cli.sim import sizes, time_left
from netsim.draw import draw_plan
from netsim.plan import decode_plan, encode_plan
from netsim.run import Result, run_plan
from netsim.scenario import shipped
from netsim.swarm import Failure, SwarmReport
from node.owner import Owner
from tests.cli.conftest import Cli
from tests.cli.test_commands import documented

ROOT = Path(__file__).parents[2]
SEED = 10  # of a run that takes a seventh of a second; the next one has faults

PAYMENT = """
title = "one payment"
nodes = 3
k = 3
fault_s = 1.0
heal_s = 6.0
request = [ { name = "pay", at = 0.5, account = "alice", to = "bob", amount = 30, via = "node-1" } ]
expect = [ { that = "balance", account = "bob", exactly = %d } ]
[accounts]
alice = 100
bob = 0
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.toml"
    path.write_text(PAYMENT % 30)
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.toml"
    path.write_text(PAYMENT % 31)
    return path


def test_list_names_every_scenario(cli: Cli) -> None:
    text = cli.run("sim", "list").stdout
    assert all(name in text for name in shipped())
    document = cli.json("sim", "list")
    assert [s["name"] for s in document["scenarios"]] == shipped()


def test_run_prints_a_verdict_for_each_invariant_and_expectation(cli: Cli, good: Path) -> None:
    text = cli.run("sim", "run", str(good)).stdout
    assert "BROKEN" not in text
    assert all(f"\n{name} " in text for name in ("I1", "I2", "I7", "I13", "expect-1"))
    assert "again:" not in text


def test_run_json_is_the_same_bytes_for_the_same_seed(cli: Cli, good: Path) -> None:
    first = cli.run("sim", "run", str(good), "--json").stdout
    assert cli.run("sim", "run", str(good), "--json").stdout == first
    document = json.loads(first)
    assert (document["ok"], document["complete"], document["nodes"], document["seed"]) == (True, True, 3, 1)
    assert len(document["trace"]) == 64
    other = cli.json("sim", "run", str(good), "--seed", "2")
    assert other["trace"] != document["trace"]
    assert other["command"] == f"hopchain sim run {good} --seed 2"


def test_keys_are_the_documented_ones(cli: Cli, good: Path) -> None:
    assert set(cli.json("sim", "list")) == documented("sim list")
    assert set(cli.json("sim", "run", str(good))) == documented("sim run")
    assert set(cli.json("sim", "replay", str(SEED), "--until", "1")) == documented("sim run")
    assert set(cli.json("sim", "swarm", "--seeds", "1", "--first", str(SEED), "--jobs", "1")) == documented("sim swarm")
    assert set(cli.json("sim", "hops", "--nodes", "4", "--step", "4", "--keys", "4")) == documented("sim hops")


def test_json_is_the_same_in_processes_that_hash_differently(good: Path) -> None:
    def printed(hash_seed: str) -> str:
        words = [sys.executable, "-m", "cli.main", "sim", "run", str(good), "--json"]
        return subprocess.run(
            words, capture_output=True, text=True, check=True, cwd=ROOT, env={"PYTHONHASHSEED": hash_seed}
        ).stdout

    assert printed("1") == printed("2")


def test_sizes_can_be_replaced(cli: Cli, good: Path) -> None:
    document = cli.json("sim", "run", str(good), "--nodes", "4", "--k", "2")
    assert (document["nodes"], document["k"]) == (4, 2)
    assert "3 nodes and k 3" in document["note"]


def test_a_node_that_ended_by_itself_tells_why(cli: Cli, good: Path) -> None:
    assert cli.json("sim", "run", str(good))["last_words"] == []
    fault = 'fault = [ { kind = "disk_error", at = 0.5, until = 0.8, nodes = "node-1", error = "fsync" } ]\n'
    good.write_text(fault + good.read_text().replace('"node-1" } ]', '"node-0" } ]'))
    (words,) = cli.json("sim", "run", str(good))["last_words"]
    assert (words["node"], 0.5 <= words["at_s"] < 0.8) == (1, True)
    assert "disk I/O error" in words["what"]
    assert (
        f"node-1 ended {words['at_s']:.2f} s after faults began: {words['what']}"
        in cli.run("sim", "run", str(good)).stdout
    )


def test_a_fault_of_which_nothing_came_is_told(cli: Cli, good: Path, tmp_path: Path) -> None:
    report = tmp_path / "out.html"
    assert cli.json("sim", "run", str(good))["nothing_came"] == []
    good.write_text('fault = [ { kind = "ring", at = 0, until = 1, when = "voted:bob" } ]\n' + good.read_text())
    says = "fault[0] (ring) waited for voted:bob, which did not happen"
    assert cli.json("sim", "run", str(good))["nothing_came"] == [says]
    assert f"\n{says}\n" in cli.run("sim", "run", str(good), "--report", str(report)).stdout
    assert says in report.read_text()


def test_what_is_not_as_expected_is_exit_1_and_one_command_shows_it_again(cli: Cli, bad: Path) -> None:
    text = cli.run("sim", "run", str(bad), "--seed", "3", code=1).stdout
    assert "expect-1  BROKEN" in text
    assert f"again: hopchain sim run {bad} --seed 3" in text
    assert cli.json("sim", "run", str(bad), code=1)["ok"] is False


def test_the_command_that_shows_it_again_is_the_whole_one_and_can_be_pasted(
    cli: Cli, good: Path, tmp_path: Path
) -> None:
    path = tmp_path / "of may" / "it's bad.toml"
    path.parent.mkdir()
    good.rename(path)
    for words in (["run", str(path), "--until", "7.5"], ["run", str(path), "--nodes", "4", "--k", "3", "--seed", "2"]):
        again: str = cli.json("sim", *words)["command"]
        assert shlex.split(again) == ["hopchain", "sim", *words]
    assert cli.json("sim", "replay", "7", "--until", "0.5")["command"] == "hopchain sim replay 7 --until 0.5"


def test_a_node_that_breaks_a_rule_is_exit_1(cli: Cli, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise HopchainError("the owner stops")

    monkeypatch.setattr(Owner, "enqueue", stop)
    document = cli.json("sim", "run", str(good), code=1)
    assert next(v["found"] for v in document["verdicts"] if not v["ok"]) == "the owner stops"
    assert document["verdicts"][0]["found"].startswith("held until")


def test_report_and_picture_are_written(cli: Cli, good: Path, tmp_path: Path) -> None:
    report, picture = tmp_path / "out.html", tmp_path / "out.svg"
    text = cli.run("sim", "run", str(good), "--report", str(report), "--plot", str(picture)).stdout
    assert f"report: {report}" in text
    assert report.read_text().startswith("<!doctype html>")
    assert "one payment" in report.read_text()
    assert "<svg" in picture.read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nonsense"], "there is no scenario 'nonsense'"),
        (["split-brian"], "did you mean split-brain"),
        (["none.toml"], "none.toml cannot be read"),
        (["none.json"], "none.json cannot be read"),
        (["split-brain", "--plot", "out.gif"], "must end in .png"),
        (["split-brain", "--report", "none/out.html"], "there is no directory none"),
        (["split-brain", "--nodes", "65"], "65"),
    ],
)
def test_usage_is_told_before_anything_runs(cli: Cli, words: list[str], says: str) -> None:
    assert says in cli.run("sim", "run", *words, code=2).stderr


def test_a_shrunk_plan_runs_as_in_the_swarm(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "shrunk.json"
    path.write_bytes(encode_plan(draw_plan(SEED)))
    document = cli.json("sim", "run", str(path))
    assert document["trace"] == run_plan(draw_plan(SEED)).trace
    assert "a plan has its own" in cli.run("sim", "run", str(path), "--nodes", "3", code=2).stderr
    path.write_text('{"seed": 1, "nodez": 2}')
    assert "nodez" in cli.run("sim", "run", str(path), code=2).stderr


def test_replay_gives_the_trace_of_the_seed(cli: Cli) -> None:
    document = cli.json("sim", "replay", str(SEED))
    assert document["trace"] == run_plan(draw_plan(SEED)).trace
    assert document["command"] == f"hopchain sim replay {SEED}"


def test_an_account_to_follow_that_a_run_has_not_is_told_with_those_that_it_has(cli: Cli) -> None:
    error = cli.run("sim", "replay", str(SEED), "--follow", "zoe", "--until", "3", code=2).stderr
    assert "--follow zoe: at its end, after 3.00 s, this run has only the accounts acct-0, acct-1" in error


def test_replay_follows_an_account_until_a_time(cli: Cli) -> None:
    document = cli.json("sim", "replay", str(SEED), "--follow", "acct-0", "--until", "3")
    assert document["complete"] is False
    assert document["simulated_s"] == 3.0
    events = document["follow"]
    assert events[0]["what"].endswith("open acct-0")
    assert [e["at_s"] for e in events] == sorted(e["at_s"] for e in events)
    assert any(e["what"].startswith("link 0 is chosen") for e in events)
    assert max(e["at_s"] for e in events) <= 3.0
    text = cli.run("sim", "replay", str(SEED), "--follow", "acct-0", "--until", "3").stdout
    assert "open acct-0" in text
    assert "I13" in text


def test_swarm_counts_what_its_seeds_did(cli: Cli) -> None:
    document = cli.json("sim", "swarm", "--seeds", "2", "--first", str(SEED), "--jobs", "1")
    runs = [run_plan(draw_plan(seed)) for seed in (SEED, SEED + 1)]
    assert (document["ok"], document["seeds"], document["failures"]) == (True, 2, [])
    assert document["links"] == sum(run.links for run in runs)
    assert "no rule was broken" in cli.run("sim", "swarm", "--seeds", "1", "--first", str(SEED), "--jobs", "1").stdout


def on_terminal(*words: str) -> tuple[str, str]:
    """What a command prints on standard output, a pipe, and on standard error, a terminal, without its colours."""
    ours, theirs = os.openpty()
    env = {"TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-m", "cli.main", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True, cwd=ROOT, env=env) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # the last one has closed it
            while part := os.read(ours, 65536):
                shown += part
        os.close(ours)
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, shown
    return printed, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


def test_a_swarm_tells_on_a_terminal_how_far_it_is_and_its_output_stays_clean() -> None:
    words = ("sim", "swarm", "--seeds", "5", "--first", "4", "--jobs", "1")  # four seeds, then one that takes a second
    printed, shown = on_terminal(*words)
    assert "no rule was broken" in printed
    assert "\x1b" not in printed
    assert " 4/5 " in shown
    assert re.search(r"about \d+ s left", shown)
    printed, shown = on_terminal("sim", "swarm", "--seeds", "5", "--first", str(SEED), "--jobs", "1", "--json")
    assert (json.loads(printed)["seeds"], shown) == (5, "")


def test_without_a_terminal_a_swarm_tells_nothing_on_its_way(cli: Cli) -> None:
    assert cli.run("sim", "swarm", "--seeds", "1", "--first", str(SEED), "--jobs", "1").stderr == ""


def test_the_time_left_goes_on_as_until_now() -> None:
    assert time_left(0.0, 0, 1000) == ""
    assert time_left(5.0, 100, 1000) == "about 45 s left"
    assert time_left(60.0, 10, 100) == "about 9 min left"
    assert time_left(600.0, 10, 1000) == "about 16.5 h left"
    assert time_left(600.0, 1000, 1000) == ""


def test_a_failing_seed_is_exit_1_with_its_command_and_its_shrunk_plan(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = msgspec.structs.replace(draw_plan(SEED), faults=())

    def fail(
        seeds: Iterable[int], jobs: int, on_result: Callable[[Result], None], fleet: str | None = None
    ) -> SwarmReport:
        assert (list(seeds), jobs, fleet) == ([0, 1, 2], 1, None)
        for seed, rule in enumerate(("I2", "", "I7")):
            on_result(Result(seed, "", rule, "", 1.0, 1, 1, 1, 1, 0, 1, 1, Counter()))
        failures = (Failure(SEED, "I2", "money", plan, shrunk=True), Failure(9, "I7", "x", plan, shrunk=False))
        return SwarmReport(3, 1.0, 60.0, 1, 1, 1, 1, 0, 1, 0, Counter(Cut=2), failures)

    monkeypatch.setattr(netsim.swarm, "run_swarm", fail)
    words = ["sim", "swarm", "--seeds", "3", "--jobs", "1", "--shrunk", str(tmp_path)]
    result = cli.run(*words, code=1)
    assert result.stderr == "shrinking 2 failing seeds, about a minute for each\n"
    text = result.stdout
    assert f"hopchain sim replay {SEED}\n" in text
    assert f"hopchain sim run {tmp_path}/shrunk-{SEED}.json    # shrunk to 0 faults" in text
    assert decode_plan((tmp_path / f"shrunk-{SEED}.json").read_bytes()) == plan
    assert not (tmp_path / "shrunk-9.json").exists()
    assert cli.run(*words, "--json", code=1).stderr == ""
    document = cli.json(*words, code=1)
    assert [f["shrunk_command"] is None for f in document["failures"]] == [False, True]


def test_hops_prints_a_row_for_each_size(cli: Cli, tmp_path: Path) -> None:
    picture = tmp_path / "hops.svg"
    document = cli.json("sim", "hops", "--nodes", "8", "--step", "4", "--keys", "4", "--plot", str(picture))
    assert [row["nodes"] for row in document["rows"]] == [4, 8]
    assert picture.exists()
    text = cli.run("sim", "hops", "--nodes", "4", "--step", "4", "--keys", "4").stdout
    assert "log2" in text


def test_sizes_double_or_step_up_to_the_largest() -> None:
    assert sizes(1000, None) == [10, 20, 40, 80, 160, 320, 640, 1000]
    assert sizes(10, None) == [10]
    assert sizes(25, 10) == [10, 20, 25]
    assert sizes(3, 10) == [3]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "split-brain", "--until", "0"), "0.0 is not in the range x>0"),
        (("run", "split-brain", "--until", "nan"), "'nan' is not a number of seconds"),
        (("replay", "1", "--until", "inf"), "'inf' is not a number of seconds"),
        (("swarm", "--seeds", "1", "--shrunk", "nowhere"), "nowhere is not a directory: make it"),
        (("swarm", "--seeds", "1", "--fleet", "x"), "--fleet 'x' is not the address of a Dask scheduler"),
        (("swarm", "--seeds", "1", "--jobs", "100000"), "100000 is not in the range 1<=x<=1024"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(cli: Cli, words: tuple[str, ...], said: str) -> None:
    told = cli.run("sim", *words, code=2).stderr
    assert said in told and told.count("\n") == 1


def test_there_are_no_more_processes_than_seeds(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def run_swarm(seeds: range, jobs: int, *_: object) -> SwarmReport:
        asked.append(jobs)
        raise HopchainError("not run")

    monkeypatch.setattr(netsim.swarm, "run_swarm", run_swarm)
    cli.run("sim", "swarm", "--seeds", "3", "--jobs", "1000", code=1)
    assert asked == [3]

"""bench/postgres.py: what pgbench's log and the ledger's counts say, who pays whom, and a machine without
PostgreSQL."""

import sys
from pathlib import Path
from typing import cast

import postgres
import pytest

LOG = ["0 1 2500 0 1700000000 17", "1 1 500 0 1700000000 18", "0 2 failed 0 1700000000 19", "1 2 1500 0 1700000000 20"]


def test_a_line_of_the_log_is_a_latency_or_a_failure() -> None:
    assert [postgres.latency_ms(line) for line in LOG] == [2.5, 0.5, None, 1.5]


def test_only_rows_of_the_ledger_count_as_completed() -> None:
    assert postgres.numbers(2, 4, LOG) == {
        "completed_per_s": 0.5,
        "aborted": 2,
        "aborted_share": 0.5,
        "p50_ms": 1.5,
        "p99_ms": 2.5,
        "max_ms": 2.5,
    }
    assert postgres.numbers(0, 10, []) == {
        "completed_per_s": 0.0,
        "aborted": 0,
        "aborted_share": 0.0,
        "p50_ms": 0.0,
        "p99_ms": 0.0,
        "max_ms": 0.0,
    }


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1.0), (0.5, 5.0), (0.51, 6.0), (0.9, 9.0), (0.99, 10.0), (1.0, 10.0)]
)
def test_percentiles_are_the_nearest_rank(share: float, value: float) -> None:
    assert postgres.at([float(n) for n in range(1, 11)], share) == value


@pytest.mark.parametrize(
    ("total", "entries", "ok"),
    [(3 * 10**12, "14 0", True), (3 * 10**12 - 1, "14 0", False), (3 * 10**12, "13 0", False), (3 * 10**12, "14 1", False)],
)  # fmt: skip
def test_a_ledger_is_sound_when_all_of_it_adds_up(total: int, entries: str, ok: bool) -> None:
    assert postgres.sound(total, 3, entries, 7) is ok


@pytest.mark.parametrize(
    ("profile", "first"),
    [
        ("uniform", ["\\set a random(1, 10)", "\\set b 1 + (:a - 1 + random(1, 9)) % 10"]),
        ("hot-recipient", ["\\set b 1", "\\set a random(2, 10)"]),
        ("hot-sender", ["\\set a 1", "\\set b random(2, 10)"]),
        (
            "zipf",
            [
                "\\set a random_zipfian(1, 10, 1.001)",
                "\\set c random_zipfian(1, 10, 1.001)",
                "\\set b CASE WHEN :c = :a THEN 1 + :a % 10 ELSE :c END",
            ],
        ),
    ],
)
def test_each_profile_draws_two_accounts_and_a_nonce(profile: str, first: list[str]) -> None:
    lines = postgres.who_pays(profile, 10).splitlines()
    assert lines == [*first, "\\set n random(0, 4611686018427387904)", "\\set m random(0, 4611686018427387904)"]


def test_an_unknown_profile_is_told() -> None:
    with pytest.raises(SystemExit, match="no profile hot: one of uniform, zipf"):
        postgres.who_pays("hot", 10)


@pytest.mark.parametrize("variant", postgres.VARIANTS)
def test_every_variant_has_its_schema_and_its_script(variant: str) -> None:
    schema, _ = postgres.VARIANTS[variant]
    assert (postgres.HERE / schema).is_file() and (postgres.HERE / f"{variant}.pgbench").is_file()


def test_a_machine_without_postgresql_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres.glob, "glob", lambda pattern: [])
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["postgres.py", "--profile", "uniform"])
    with pytest.raises(SystemExit, match=r"PostgreSQL is not installed here: apt-get install postgresql-15") as ended:
        postgres.main()
    assert ended.value.code != 0


def test_programs_elsewhere_in_the_path_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "initdb"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert postgres.find_bin("0") == tmp_path


class Server:
    """As far as a cluster asks it: how many standbys follow is told by the primary, one more at each look."""

    def __init__(self, name: str, happened: list[str], at_most: int = 2) -> None:
        self._name = name
        self._happened = happened
        self._following = iter([*range(at_most), *[at_most] * 9])

    def initialise(self) -> None:
        self._happened.append(f"make {self._name}")

    def follow(self, primary: "Server") -> None:
        self._happened.append(f"copy {primary._name} to {self._name}")

    def start(self) -> None:
        self._happened.append(f"start {self._name}")

    def stop(self) -> None:
        self._happened.append(f"stop {self._name}")

    def sql(self, text: str) -> str:
        return str(next(self._following)) if text == postgres.FOLLOWING else ""


def cluster(happened: list[str], at_most: int = 2) -> postgres.Cluster:
    primary, *standbys = (cast(postgres.Server, Server(name, happened, at_most)) for name in ("p", "s1", "s2"))
    return postgres.Cluster(primary, standbys)


START, STOP = ["start p", "start s1", "start s2"], ["stop p", "stop s1", "stop s2"]


def test_a_standby_follows_from_when_it_is_made_and_all_are_stopped_then() -> None:
    """Of a primary that runs alone the log goes before it can be asked for."""
    happened: list[str] = []
    cluster(happened).initialise()
    assert happened == ["make p", "start p", "copy p to s1", "start s1", "copy p to s2", "start s2", *STOP]


def test_servers_run_while_they_are_measured_and_not_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "LOOK_AGAIN_S", 0.0)
    happened: list[str] = []
    peer = cluster(happened)
    with peer.running():
        happened.append("measure")
    with pytest.raises(SystemExit, match="no profile hot"), peer.running():
        postgres.who_pays("hot", 10)
    assert happened == [*START, "measure", *STOP, *START, *STOP]


def test_standbys_that_do_not_follow_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "FOLLOW_S", 0.0)
    happened: list[str] = []
    told = pytest.raises(SystemExit, match=r"^0 of 2 standbys follow the primary after 0 s$")
    with told, cluster(happened, 0).running():
        happened.append("measure")
    assert happened == [*START, *STOP]


def test_a_run_that_is_not_sound_ends_with_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["postgres.py", "--json"])
    monkeypatch.setattr(postgres, "measure_all", lambda _: [{"ok": True}])
    postgres.main()
    monkeypatch.setattr(postgres, "measure_all", lambda _: [{"ok": True}, {"ok": False}])
    with pytest.raises(SystemExit, match="a ledger is not sound") as ended:
        postgres.main()
    assert ended.value.code != 0 and '"ok": false' in capsys.readouterr().out

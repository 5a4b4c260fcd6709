"""`hopchain bench` on real nodes: a network of its own, and one that runs already."""

import json
import os
import pstats
import subprocess
import sys
from pathlib import Path

import pytest

from chain.request import NetworkId
from cli.wallet import Wallet
from tests.cluster.cluster import ISSUER, Cluster, key_of

pytestmark = pytest.mark.cluster

SHORT = ("--accounts", "20", "--clients", "8", "--warm-up", "0.2", "--duration", "1", "--json")


def bench(*words: str, home: Path) -> dict:
    """Run it as a process; its document."""
    env = {**os.environ, "HOPCHAIN_HOME": str(home)}
    command = [sys.executable, "-m", "cli.main", "bench", *words, *SHORT]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict = json.loads(done.stdout)
    return found


def test_a_network_of_its_own_is_measured_and_profiled_and_leaves_nothing(tmp_path: Path) -> None:
    home, profile, picture = tmp_path / "home", tmp_path / "node.prof", tmp_path / "run.svg"
    found = bench(
        "uniform", "--nodes", "3", "--k", "3", "--profile-out", str(profile), "--plot", str(picture), home=home
    )
    assert found["completed"] > 10 and found["completed_per_s"] == found["completed"]
    assert 0 < found["p50_ms"] <= found["p90_ms"] <= found["p99_ms"] <= found["max_ms"]
    assert (found["rejected"], found["unknown"], found["settings"]["nodes"]) == (0, 0, 3)
    assert found["invariants"] | {"answered": 0, "asked": 0, "paid": 0, "left": 0} == {
        "ok": True,
        "replicas_equal": True,
        "money_kept": True,
        "answered": 0,
        "asked": 0,
        "lost": 0,
        "paid": 0,
        "left": 0,
        "unknown_amount": 0,
    }
    assert found["invariants"]["paid"] == found["invariants"]["answered"] >= found["completed"]
    assert found["invariants"]["asked"] == found["invariants"]["answered"]
    cost = found["cost"]
    assert cost["cpu_us_per_transfer"] > cost["main_thread_us_per_transfer"] > 0
    assert cost["commits_per_transfer"] > 0 and cost["member_bytes_per_transfer"] > 500
    assert 0 < cost["transfers_per_link"] < 10
    profiled = {name for _, _, name in pstats.Stats(str(profile)).stats}  # type: ignore[attr-defined]
    assert {"step", "commit"} <= profiled, "of the main thread, and of the database's"
    assert "uniform" in picture.read_text()
    assert not home.exists(), "the user's wallet and chosen network are left alone"


async def test_a_running_network_is_measured_again_with_the_same_accounts(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("HOPCHAIN_HOME", str(home))
    Wallet(NetworkId(cluster.id)).add(ISSUER, key_of(ISSUER))
    words = ("--network", str(cluster.nodes[0].directory.parent), "--processes", "2", "--connections", "2")
    first = bench("pool", "--sources", "4", *words, home=home)
    links = (await cluster.clients[0].digest()).accounts
    second = bench("hot-sender", "--no-route", *words, home=home)
    assert (await cluster.clients[0].digest()).accounts == links, "no account was opened twice"
    assert first["completed"] > 4 and second["completed"] > 4
    assert first["settings"]["nodes"] == 5 and first["invariants"]["ok"] and second["invariants"]["ok"]
    assert second["cost"]["transfers_per_link"] > 1, "requests of one sender share links"
    assert first["settings"]["connections"] == second["settings"]["connections"] == 2
    assert first["settings"]["route"] and not second["settings"]["route"]
    assert (first["settings"]["sources"], first["settings"]["choice"]) == (4, "least-active")
    assert (second["settings"]["sources"], second["settings"]["choice"]) == (None, None)
    assert 0 < first["client"]["most_in_flight_of_one_source"] <= 2

"""Tests that start real nodes run on one worker, and begin first. Their nodes end with the last of them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Each test adds a line to a file: the worker, and the directory of the test.
MODULE = """
import os
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_runs(number):
    with open(os.environ["SEEN"], "a") as seen:
        print(os.environ["PYTEST_XDIST_WORKER"], Path(__file__).parent.name, file=seen)
"""
PLACES = {  # directory -> module, tests
    "chain": ("chain", 30),
    "cluster": ("cluster", 8),
    "namespaces": ("namespaces", 2),
    "netsim": ("hops", 6),
    "node": ("node", 30),
}


def test_one_worker_runs_all_tests_that_start_nodes_and_begins_with_them(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    for place, (name, count) in PLACES.items():
        (tmp_path / "tests" / place).mkdir(parents=True)
        (tmp_path / "tests" / place / f"test_{name}.py").write_text(MODULE.format(count=count))
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    seen = tmp_path / "seen"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadgroup"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SEEN": str(seen), "TMPDIR": str(tmp_path)},
        check=True,
        timeout=300,
    )
    lines = [line.split() for line in seen.read_text().splitlines()]
    assert len(lines) == 76
    (worker,) = {worker for worker, place in lines if place in {"cluster", "namespaces"}}
    places = [place for by, place in lines if by == worker]
    assert places[:10] == ["cluster"] * 8 + ["namespaces"] * 2
    assert {by for by, _ in lines} == {"gw0", "gw1"}
    assert len({by for by, place in lines if place == "netsim"}) == 1, "what its tests look at is made once"


# In place of the network: a line when it starts and one when it ends.
WITH_A_NETWORK = """
import os
from cluster import conftest

class Network:
    def __init__(self, directory, nodes):
        assert nodes == 5

    def start(self):
        print("started", file=open(os.environ["SEEN"], "a"))

    def close(self):
        print("ended", file=open(os.environ["SEEN"], "a"))

conftest.Cluster = Network

def test_has_a_network(clusters):
    assert clusters.take() is clusters.take()

def test_has_the_same(clusters):
    clusters.take()
"""
ELSEWHERE = """
import os

def test_elsewhere():
    print("elsewhere", file=open(os.environ["SEEN"], "a"))
"""


def test_the_network_has_ended_when_the_next_directory_begins(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    for place, module in {"cluster": WITH_A_NETWORK, "node": ELSEWHERE}.items():
        (tmp_path / "tests" / place).mkdir(parents=True)
        (tmp_path / "tests" / place / "__init__.py").touch()
        (tmp_path / "tests" / place / f"test_in_{place}.py").write_text(module)
    shutil.copy(ROOT / "tests" / "cluster" / "conftest.py", tmp_path / "tests" / "cluster")
    seen = tmp_path / "seen"
    subprocess.run(
        [sys.executable, "-m", "pytest"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SEEN": str(seen), "TMPDIR": str(tmp_path)},
        check=True,
        timeout=300,
    )
    assert seen.read_text().split() == ["started", "ended", "elsewhere"]

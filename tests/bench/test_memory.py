"""bench/memory.py: what belongs to which minute, and whose CPU is counted."""

import subprocess
import sys

import memory
import pytest

PARENT = """
import subprocess, sys
words = [sys.executable, "-c", "import sys; sum(range(10**7)); print('up', flush=True); sys.stdin.read()"]
nodes = [subprocess.Popen([*words, *more], stdin=0) for more in (["cli.main", "node", "net/node-1"], ["cli.bench_load"])]
for node in nodes:
    node.wait()
"""


def test_each_minute_has_its_own_rate_and_cost() -> None:
    """Two minutes of three seconds; the load has ended 10 s after its first look, and had begun 6 s before."""
    document = {
        "completed": 900,
        "completed_per_s": 150.0,
        "memory_mb_each_s": [40.2, 50, 60, 61, 62, 61],
        "per_second": [100, 100, 100, 200, 200, 200],
        "settings": {"duration_s": 6},
    }
    used = {0: 0.0, 4: 1.0, 5: 1.1, 6: 1.2, 7: 1.6, 8: 2.0, 9: 2.4, 10: 2.8, 11: 9.0}
    looks = [memory.Look(at, cpu_s, 2000.0 + 10 * at, at <= 10) for at, cpu_s in used.items()]
    assert memory.minutes(document, looks, 3) == {
        "transfers": 900,
        "completed_per_s": 150.0,
        "at_start_mb": 40,
        "minutes_mb": [60, 62],
        "minutes_per_s": [100, 200],
        "minutes_cpu_us": [2000, 2000],
        "minutes_loop_us": [2050, 2080],
    }


def test_a_look_is_at_the_nodes_of_the_benchmark_that_was_started() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as bench:
        assert bench.stdin is not None and bench.stdout is not None
        for _ in range(2):
            assert bench.stdout.readline() == b"up\n"
        found = memory.look()
        (one,) = (memory.cpu_s(pid) for pid in memory.children(bench.pid) if _is_node(pid))
        bench.stdin.close()
    assert found.loaded and found.cpu_s == pytest.approx(one) and found.cpu_s > 0 and found.loop_us > 0
    gone = memory.look()
    assert (gone.cpu_s, gone.loaded) == (0.0, False)


def _is_node(pid: int) -> bool:
    return b"\0node\0" in (memory.PROC / str(pid) / "cmdline").read_bytes()


def test_looks_end_with_what_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LOOK_S", 0.0)
    with memory.watched() as looks:
        while len(looks) < 3:
            pass
    count = len(looks)
    assert count >= 3 and looks[0].at <= looks[-1].at and len(looks) == count

"""One seed, one trace: in this process, in others, and whatever the order in which Python keeps its sets."""

import os
import subprocess
import sys

from netsim.draw import draw_plan
from netsim.run import run_plan
from tests.netsim.seeds import MIXED, run_once

SEEDS = MIXED  # with and without faults, in memory and in files
PROGRAM = """
import sys
from netsim.draw import draw_plan
from netsim.run import run_plan
for seed in sys.argv[1:]:
    result = run_plan(draw_plan(int(seed)))
    print(result.trace, result.rule, result.events, result.turns, result.links, sorted(result.faults.items()))
"""


def elsewhere(hash_seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", PROGRAM, *map(str, SEEDS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_two_processes_with_other_hash_seeds() -> None:
    first, second = elsewhere("1"), elsewhere("4242")
    assert first == second
    assert len(set(first.splitlines())) == len(SEEDS)
    here = [run_once(seed).trace for seed in SEEDS]
    assert [line.split()[0] for line in first.splitlines()] == here


def test_what_ran_before_does_not_matter() -> None:
    before = run_once(SEEDS[0]).trace
    run_plan(draw_plan(SEEDS[1]))
    assert run_plan(draw_plan(SEEDS[0])).trace == before

"""Workers of one run share no port, and a port that was given comes again last."""

import os
import socket

import pytest

from cli.ports import port_range
from tests import ports
from tests.ports import Walk, part_of, worker_of


@pytest.mark.parametrize("workers", [1, 2, 3, 16])
def test_no_port_is_of_two_workers_or_of_two_kinds(workers: int) -> None:
    every = range(10_000, 30_000)
    parts = [part for worker in range(workers) for part in part_of(worker, workers, every)]
    given = [port for part in parts for port in part]
    assert len(set(given)) == len(given) > len(every) - 2 * workers
    assert set(given) <= set(every)
    assert {len(part) for part in parts} == {len(every) // workers // 2}


def test_a_worker_that_replaces_another_has_a_part_of_the_same_range() -> None:
    assert part_of(5, 2) == part_of(1, 2)


def test_the_worker_is_the_one_that_xdist_names() -> None:
    assert worker_of({"PYTEST_XDIST_WORKER": "gw11", "PYTEST_XDIST_WORKER_COUNT": "16"}) == (11, 16)
    assert worker_of({}) == (0, 1)


def test_commands_choose_from_the_first_half_and_tests_take_of_the_second() -> None:
    mine = part_of(*worker_of(os.environ))
    assert (port_range(), ports.FOR_TESTS) == mine
    assert set(ports.take(4)) <= set(mine[1])


def test_a_walk_gives_each_port_once_before_it_begins_again() -> None:
    own = ports.take(12)
    walk = Walk(own, seed=3)
    first = walk.take(3)
    rest = [port for _ in range(3) for port in walk.take(3)]
    assert sorted(first + rest) == sorted(own)
    assert walk.take(3) == first


def test_walks_of_two_processes_begin_at_two_places() -> None:
    assert len({Walk(ports.FOR_TESTS, seed).take(1)[0] for seed in range(10)}) > 5


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_port_in_use_is_left_out(kind: socket.SocketKind) -> None:
    own = ports.take(2)
    free = Walk(own, seed=1).take(2)
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", free[0]))
        assert Walk(own, seed=1).take(1) == [free[1]]
        with pytest.raises(AssertionError, match="only 1 of 2 ports are free, not 2"):
            Walk(own, seed=1).take(2)

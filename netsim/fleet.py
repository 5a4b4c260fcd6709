"""Where seeds run: this process, the cores of this machine, or a Dask cluster. Seeds are independent of each other.

A `Fleet` takes batches of work and gives the results back as they come, in any order. At most a few batches for each
worker are under way at once (Dask), or as many as a pipe of 64 KiB holds (the cores of this machine), so a swarm of a
million seeds needs no more memory than one of a hundred.

Dask is an optional extra (`pip install hopchain[dask]`). Its workers need this same version of the project.
"""

import importlib
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

from chain.errors import LocalMisuse

BATCHES_PER_WORKER: Final = 4  # enough that no worker waits for the next one
LOOK_S: Final = 1.0  # without a result: then whether all processes live

Work = TypeVar("Work")
Done = TypeVar("Done")


class Fleet(Protocol):
    """Runs `function` on every batch, somewhere."""

    def map(self, function: Callable[[Work], Done], batches: Iterable[Work]) -> Iterator[Done]:
        """The results, in any order; an error in a batch is raised here. `function` and batches can be pickled."""
        ...


class Inline:
    """This process; one batch after the other, in order."""

    def map(self, function: Callable[[Work], Done], batches: Iterable[Work]) -> Iterator[Done]:
        return map(function, batches)


class Cores:
    """Processes of this machine, started afresh (`spawn`), so that nothing of this process leaks into a run."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._workers = _children()

    def map(self, function: Callable[[Work], Done], batches: Iterable[Work]) -> Iterator[Done]:
        results = self._pool.imap_unordered(function, batches)
        while True:
            try:
                yield results.next(timeout=LOOK_S)
            except StopIteration:
                return
            except multiprocessing.TimeoutError:
                # a pool replaces a process that dies, and waits for its batch for ever
                if died := self._workers - _children():
                    raise LocalMisuse(
                        f"{len(died)} of {len(self._workers)} processes were ended from outside, as when a machine is out of memory, "
                        "and what they did is lost: start it again, with fewer --jobs when memory is short"
                    ) from None


class Dask:
    """The workers of a Dask cluster."""

    def __init__(self, client: Any, module: Any) -> None:
        self._client = client
        self._module = module

    def map(self, function: Callable[[Work], Done], batches: Iterable[Work]) -> Iterator[Done]:
        waiting = iter(batches)
        slots = max(1, sum(self._client.nthreads().values())) * BATCHES_PER_WORKER
        under_way = self._module.as_completed(self._submit(function, islice(waiting, slots)), loop=self._client.loop)
        for future in under_way:
            yield future.result()
            for more in self._submit(function, islice(waiting, 1)):
                under_way.add(more)

    def _submit(self, function: Callable[[Work], Done], batches: Iterable[Work]) -> list[Any]:
        return [self._client.submit(function, batch, pure=False) for batch in batches]


@contextmanager
def open_fleet(jobs: int, address: str | None = None) -> Iterator[Fleet]:
    """`jobs` processes of this machine (1: this process), or the Dask cluster whose scheduler is at `address`
    ("tcp://host:8786"). Raises `LocalMisuse` when it cannot be reached, or Dask is not installed."""
    if address is not None:
        with _dask(address) as fleet:
            yield fleet
    elif jobs <= 1:
        yield Inline()
    else:
        with multiprocessing.get_context("spawn").Pool(jobs, _leave_interrupts_to_parent) as pool:
            yield Cores(pool)


def _children() -> set[int | None]:
    return {process.pid for process in multiprocessing.active_children()}


def _leave_interrupts_to_parent() -> None:
    """Ctrl-C reaches every process of a terminal; the parent ends the others, and says so once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _dask(address: str) -> Iterator[Fleet]:
    try:
        module = importlib.import_module("distributed")
    except ImportError:
        raise LocalMisuse("a fleet needs Dask: install it with `pip install hopchain[dask]`") from None
    try:
        client = module.Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        raise LocalMisuse(f"no Dask scheduler at {address}: {error}; its address looks like tcp://host:8786") from None
    try:
        if not client.nthreads():
            raise LocalMisuse(f"the Dask cluster at {address} has no workers: start one with `dask worker {address}`")
        yield Dask(client, module)
    finally:
        client.close()

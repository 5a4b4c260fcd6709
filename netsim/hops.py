"""Lookup hops against the size of the network, and how long a payment waits for them.

The DHT is the real one (`routing.dht`, with the `kademlia` library) over simulated datagrams; there are no payments.
The network grows from size to size, each new node joining through a random earlier one, as a real network does.

**Measured**, in simulated time, between random keys and the true owners of random keys: hops and datagrams of lookups,
how long they take, and how long a decision takes: the owner of a slot pings its k - 1 standbys over the same network,
and the slot is decided when a majority, itself included, has answered. (fsyncs, queues and signatures take no time
here.)

What the *next* payment of the same account waits for, after the decision, before it can travel to the next owner:

* `after`: the lookup of the next owner begins when the link is decided. Measured: a whole lookup.
* `ahead`: the look-ahead of the design (section 4): it begins when the link is formed, since the hash of the new link,
  and so the next key, is known then. Measured: what is left of the lookup when the decision is there.
* `table`: the connection table, which is what nodes do today (docs/adr/0005): every member is connected, so no lookup
  is on the path. Nothing is measured: it is 0 as long as the owner is connected.

The waits in hops follow from the waits in time: the hops of each lookup, times the share of its time that was waited
for.
"""

import math
import random
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import fmean
from typing import Final

import msgspec
import trio
import trio_asyncio

from chain.errors import LocalMisuse
from netsim.datagrams import DatagramNetwork
from netsim.network import Network
from netsim.plan import Weather
from netsim.plot import check_plot
from netsim.timeline import Timeline
from netsim.whole import simulate
from routing.dht import Contact, Dht, Lookup, open_dht
from routing.keyspace import ID_BYTES, NodeId, closest
from routing.view import majority

PATHS: Final = Weather(delay_min_s=0.005, delay_mean_s=0.01)  # one way, within a continent
PORT: Final = 4000
MARK_FACTOR: Final = 1.4  # between sizes that are named on the axis, so that the names do not touch
SETTLE_S: Final = 0.3  # what a lookup sets off (pings of doubtful contacts) is over by then, and counted with it
_NETWORK_KEY: Final = bytes(32)
_NETWORK_ID: Final = bytes(32)


class HopRow(msgspec.Struct, frozen=True):
    """One size of network; means over its lookups. `hops`: nodes asked one after the other until the closest is
    reached; `messages`: datagrams of a lookup, both ways; `decide_ms`, `after_ms`, `ahead_ms`, `table_ms`, simulated
    milliseconds, and `after_hops`, `ahead_hops`, `table_hops`: see the module. `found`: the share of lookups that found
    the true owner."""

    nodes: int
    log2: float
    hops: float
    hops_max: int
    messages: float
    decide_ms: float
    after_ms: float
    ahead_ms: float
    table_ms: float
    after_hops: float
    ahead_hops: float
    table_hops: float
    found: float


class _Sample(msgspec.Struct, frozen=True):
    """One decision and one lookup. `messages` is None when they ran together."""

    hops: int
    took_s: float
    decide_s: float
    wait_s: float
    messages: int | None
    found: bool


class _Field:
    """DHT nodes that know each other through their tables only."""

    def __init__(self, seed: int, k: int, stack: AsyncExitStack, timeline: Timeline) -> None:
        self._rng = random.Random(seed)
        self._k = k
        self._stack = stack
        self._timeline = timeline
        self._datagrams = DatagramNetwork(timeline, Network(random.Random(self._rng.random()), PATHS))
        self._nodes: list[Dht] = []
        self._by_id: dict[NodeId, Dht] = {}

    async def grow(self, size: int) -> None:
        """Let nodes join until there are `size`."""
        while len(self._nodes) < size:
            number = len(self._nodes)
            dht = await self._stack.enter_async_context(
                open_dht(
                    NodeId(self._rng.randbytes(ID_BYTES)),
                    f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",
                    PORT,
                    _NETWORK_KEY,
                    _NETWORK_ID,
                    self._rng,
                    self._rng.randbytes(16),
                    datagrams=self._datagrams.of(number),
                )
            )
            if self._nodes:
                await dht.bootstrap([self._rng.choice(self._nodes).address])
            self._nodes.append(dht)
            self._by_id[dht.node_id] = dht
        await trio.sleep(SETTLE_S)

    async def sample(self, *, ahead: bool) -> _Sample:
        """Decide a random slot at its owner, and look up the owner of another one after that, or meanwhile."""
        key, next_key = self._rng.randbytes(ID_BYTES), self._rng.randbytes(ID_BYTES)
        group = closest(self._by_id, key, self._k)
        owner = self._by_id[group[0]]
        decided = trio.Event()
        found: list[Lookup] = []
        sent = self._datagrams.sent

        async def decide() -> None:
            await self._decide(owner, group[1:])
            decided.set()

        async def look_up() -> None:
            found.append(await owner.lookup(next_key))

        started = self._timeline.now
        async with trio.open_nursery() as nursery:
            nursery.start_soon(decide)
            if ahead:
                nursery.start_soon(look_up)
            await decided.wait()
            decided_at = self._timeline.now
        if not ahead:
            decided_at, sent = self._timeline.now, self._datagrams.sent
            await look_up()
        wait_s = max(0.0, self._timeline.now - decided_at)
        await trio.sleep(SETTLE_S)
        lookup = found[0]
        return _Sample(
            lookup.hops,
            lookup.took_s,
            decided_at - started,
            wait_s,
            None if ahead else self._datagrams.sent - sent,
            closest(self._by_id, next_key, 1)[0] in (owner.node_id, lookup.contacts[0].id),
        )

    async def _decide(self, owner: Dht, standbys: Sequence[NodeId]) -> None:
        """Return when a majority of the group has answered the owner, itself included."""
        missing = majority(len(standbys) + 1) - 1
        enough = trio.Event()

        async def ask(node: NodeId) -> None:
            nonlocal missing
            if await owner.ping(Contact(node, *self._by_id[node].address)) is not None:
                missing -= 1
                if not missing:
                    enough.set()

        async with trio.open_nursery() as nursery:
            for node in standbys:
                nursery.start_soon(ask, node)
            if missing:
                await enough.wait()
            nursery.cancel_scope.cancel()


def measure_hops(
    nodes: Sequence[int],
    seed: int,
    keys_per_size: int = 100,
    k: int = 5,
    on_row: Callable[[HopRow], None] | None = None,
) -> list[HopRow]:
    """One row for each size in `nodes`, ascending; `on_row` gets each as it is measured. Blocks; not to be called under
    trio.

    `keys_per_size` lookups, every second of them with look-ahead. `k`: the size of the groups that decide; lookups use
    the DHT's own (`routing.dht.KSIZE`). The same arguments give the same rows. `LocalMisuse` for sizes below 2.
    """
    sizes = sorted(set(nodes))
    if not sizes or sizes[0] < 2 or keys_per_size < 2 or k < 1:
        raise LocalMisuse(
            f"sizes {list(nodes)[:5]}, {keys_per_size} keys, k = {k}: give sizes of at least 2, at least 2 keys and a k of at least 1"
        )
    rows: list[HopRow] = []

    async def main() -> None:
        timeline = Timeline()
        async with trio_asyncio.open_loop(), trio.open_nursery() as nursery:
            nursery.start_soon(timeline.run)
            async with AsyncExitStack() as stack:
                field = _Field(seed, k, stack, timeline)
                for size in sizes:
                    await field.grow(size)
                    row = _row(size, [await field.sample(ahead=i % 2 == 1) for i in range(keys_per_size)])
                    rows.append(row)
                    if on_row is not None:
                        on_row(row)
            nursery.cancel_scope.cancel()

    simulate(seed, main)
    return rows


def _row(size: int, samples: Sequence[_Sample]) -> HopRow:
    after = [s for s in samples if s.messages is not None]
    ahead = [s for s in samples if s.messages is None]
    return HopRow(
        nodes=size,
        log2=math.log2(size),
        hops=fmean(s.hops for s in samples),
        hops_max=max(s.hops for s in samples),
        messages=fmean(s.messages or 0 for s in after),
        decide_ms=fmean(s.decide_s for s in samples) * 1000,
        after_ms=fmean(s.wait_s for s in after) * 1000,
        ahead_ms=fmean(s.wait_s for s in ahead) * 1000,
        table_ms=0.0,
        after_hops=fmean(map(_hops_waited, after)),
        ahead_hops=fmean(map(_hops_waited, ahead)),
        table_hops=0.0,
        found=fmean(s.found for s in samples),
    )


def _hops_waited(sample: _Sample) -> float:
    return sample.hops * min(1.0, sample.wait_s / sample.took_s) if sample.took_s else 0.0


def plot_hops(rows: Sequence[HopRow], path: Path) -> None:
    """Draw the rows into the file (.png, .svg or .pdf). `LocalMisuse` when that cannot be."""
    check_plot(path)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    sizes = [row.nodes for row in rows]
    marks: list[int] = []
    for size in sizes:
        if not marks or size >= MARK_FACTOR * marks[-1]:
            marks.append(size)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hopchain", "font.size": 9, "axes.linewidth": 0.6}):
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        hops, messages, waits = figure.subplots(1, 3)
        hops.plot(sizes, [row.log2 for row in rows], "--", color="#9aa3ae", label="log2 n")
        hops.plot(sizes, [row.hops_max for row in rows], "^-", color="#c2570c", label="largest")
        hops.plot(sizes, [row.hops for row in rows], "o-", color="#2563c9", label="mean")
        hops.set_title("hops of a lookup", loc="left")
        messages.plot(sizes, [row.messages for row in rows], "o-", color="#2563c9")
        messages.set_title("datagrams of a lookup", loc="left")
        waits.plot(sizes, [row.after_ms for row in rows], "o-", color="#c2570c", label="looked up when decided")
        waits.plot(sizes, [row.ahead_ms for row in rows], "o-", color="#2563c9", label="looked up while it is decided")
        waits.plot(sizes, [row.table_ms for row in rows], "o-", color="#15803d", label="connected: no lookup (today)")
        waits.set_title("ms until the next owner is known", loc="left")
        for axes in (hops, messages, waits):
            axes.set_xscale("log", base=2)
            axes.set_xticks(marks, [str(size) for size in marks], rotation=45)
            axes.minorticks_off()
            axes.set_ylim(bottom=0)
            axes.set_xlabel("nodes")
            axes.spines[["top", "right"]].set_visible(False)
        for axes in (hops, waits):
            axes.legend(frameon=False)
        try:
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {}, dpi=150)
        except OSError as error:
            raise LocalMisuse(f"{path} cannot be written: {error}") from None

"""The nodes that `hopchain bench` measures: started for the run, or running already. What they cost, read from outside.

CPU and disk traffic are the kernel's counts of the node processes (Linux /proc), commits and bytes between members are
the nodes' own counters (`hopchain status`). Where a process is not on this machine its costs are left out.
"""

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from os import sysconf
from pathlib import Path
from typing import Final

import anyio
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.genesis import Asset
from cli.home import KnownNode, Network, load_network
from cli.members import now_ms
from cli.output import CommandFailed, Exit
from cli.ports import choose_ports
from cli.supervisor import Change, Event, Supervisor, node_command
from hopchain import Client, Status, Unreachable, raw_public_key
from node.layout import make_network
from node.lock import LOCK_FILE, holds_lock

ASSET: Final = Asset("CZK", 2)
ISSUER: Final = "mint"
UP_S: Final = 60.0
LOOK_AGAIN_S: Final = 0.1
PROFILED: Final = "node-1"
_PROC: Final = Path("/proc")
_TICK_S: Final = 1 / sysconf("SC_CLK_TCK")


class Cost(msgspec.Struct, frozen=True):
    """What one node has used since it started. `main_s`: CPU of its main thread, of the `cpu_s` of all threads;
    `memory`: resident bytes now. `read_p99_us`: of the balances that it read in the last seconds, 0 for too few."""

    cpu_s: float = 0.0
    main_s: float = 0.0
    disk_bytes: int = 0
    memory: int = 0
    net_bytes: int = 0
    commits: int = 0
    turns: int = 0
    links: int = 0
    read_p99_us: int = 0


class Sample(msgspec.Struct, frozen=True):
    """One moment of all nodes. `local`: the processes are on this machine and were looked at."""

    costs: dict[str, Cost]
    local: bool
    load_average: float


@asynccontextmanager
async def own_cluster(
    place: Path, *, nodes: int, k: int, profile_out: Path | None
) -> AsyncIterator[tuple[Network, Ed25519PrivateKey]]:
    """A new network in `place` with all its nodes running; they are stopped at the end. With the issuer's key.

    `profile_out`: the first node runs under a profiler, which writes there (`cli.bench_node`).
    """
    key = Ed25519PrivateKey.generate()
    ports = choose_ports(2 * nodes)
    directory = place / "net"
    make_network(
        directory,
        nodes=nodes,
        assets=[ASSET],
        issuers={ISSUER: (ASSET.code, raw_public_key(key))},
        ports=list(zip(ports[::2], ports[1::2], strict=True)),
        name="bench",
        now_ms=now_ms(),
        k=k,
    )
    network = load_network(directory)

    def command(node: Path) -> list[str]:
        if profile_out is None or node.name != PROFILED:
            return node_command(node)
        return [sys.executable, "-P", "-m", "cli.bench_node", str(node), str(profile_out.resolve())]

    ended: list[Event] = []

    def on_event(event: Event) -> None:
        if event.change is Change.ENDED:
            ended.append(event)

    supervisor = Supervisor([directory / n.name for n in network.nodes], on_event, command=command)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervisor.run)
        try:
            await until_up(network, ended)
            yield network, key
        finally:
            tasks.cancel_scope.cancel()
    if ended:
        raise _died(ended[0])


async def until_up(network: Network, ended: list[Event]) -> None:
    """Wait until every node serves and sees all others."""
    async with Client([n.address for n in network.nodes], network.genesis.ca, network.id) as client:
        with anyio.move_on_after(UP_S):
            for node in network.nodes:
                while not await _is_up(client, node):
                    if ended:
                        raise _died(ended[0])
                    await anyio.sleep(LOOK_AGAIN_S)
            return
    text = f"the {len(network.nodes)} nodes do not all serve and see each other within {UP_S:g} s: `hopchain status`"
    raise CommandFailed(Exit.UNREACHABLE, "unreachable", text)


async def _is_up(client: Client, node: KnownNode) -> bool:
    try:
        status = await client.status(at=node.address)
    except Unreachable:
        return False
    return all(peer.alive for peer in status.peers)


def _died(event: Event) -> CommandFailed:
    text = f"{event.node} ended during the benchmark with code {event.code}: {event.last_words}"
    return CommandFailed(Exit.REJECTED, "node_ended", text)


async def sample(client: Client, network: Network) -> Sample:
    """What all nodes have used so far."""
    statuses: dict[str, Status] = {}

    async def ask(node: KnownNode) -> None:
        statuses[node.name] = await client.status(at=node.address)

    processes = {n.name: _process(network.directory / n.name) for n in network.nodes}
    async with anyio.create_task_group() as tasks:
        for node in network.nodes:
            tasks.start_soon(ask, node)
    costs = {}
    for name, cost in processes.items():
        counters, links = statuses[name].counters, statuses[name].log_height
        costs[name] = msgspec.structs.replace(
            cost or Cost(),
            net_bytes=counters.get("mesh.bytes_out", 0),
            commits=counters.get("driver.commits", 0),
            turns=counters.get("driver.turns", 0),
            links=links,
            read_p99_us=counters.get("reads.balance_p99_us", 0),
        )
    return Sample(costs, all(processes.values()), load_average())


def largest_memory(network: Network) -> int:
    """Resident bytes of the largest node; 0 when none is on this machine."""
    return max((cost.memory for n in network.nodes if (cost := _process(network.directory / n.name))), default=0)


def load_average() -> float:
    """Of the last minute; 0 where the system does not say."""
    path = _PROC / "loadavg"
    return float(path.read_text().split()[0]) if path.exists() else 0.0


def _process(directory: Path) -> Cost | None:
    """What the node process of this directory has used, or None when it is not on this machine."""
    try:
        pid = int((directory / LOCK_FILE).read_text())
        if not holds_lock(pid, directory):  # the node has ended, or runs elsewhere: its number is a stranger's here
            return None
        process = _PROC / str(pid)
        threads = {int(t.name): _cpu_s(t / "stat") for t in (process / "task").iterdir()}
        written = _field(process / "io", "write_bytes:")
        resident = _field(process / "status", "VmRSS:") * 1024
    except (OSError, ValueError):
        return None
    return Cost(_cpu_s(process / "stat"), threads.get(int(process.name), 0.0), written, resident)


def _cpu_s(stat: Path) -> float:
    """User and system time, seconds: fields 14 and 15, counted behind the command's name, which may hold spaces."""
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def _field(path: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(name))


def differences(before: Sample, after: Sample, of: Callable[[Cost], float]) -> float:
    """How much one cost grew, all nodes together."""
    return sum(of(after.costs[name]) - of(before.costs[name]) for name in before.costs)

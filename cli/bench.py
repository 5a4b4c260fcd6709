"""`hopchain bench`: how fast a network is, measured from outside, with its promises checked at the end.

The load comes from processes of its own (`cli.bench_load`), so that this one can look at the nodes meanwhile.
"""

import hashlib
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import anyio
import anyio.abc
import click
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.errors import LocalMisuse
from cli.bench_check import ask_lost, count_lost, databases, paid_out, read_answers
from cli.bench_cluster import Sample, largest_memory, own_cluster, sample, until_up
from cli.bench_generator import Generator, shares, wait_for
from cli.bench_node import check_profile_file
from cli.bench_profiles import MEANING, Profile, postings_of
from cli.bench_report import Kept, Measured, document, read_floats, show
from cli.bench_spec import AMOUNT, Job, News, Result, Settings, Spec
from cli.command import HopCommand, Seconds, check_folder, run
from cli.home import KnownNode, Network, load_network
from cli.output import Exit, Output
from cli.verify import compare
from cli.wallet import Wallet
from hopchain import Client
from hopchain.pools import Choice
from hopchain.workers import work_on_each

NODES: Final = 3
K: Final = 3
SOURCES: Final = 16
PREFIX: Final = "bench-"
TIMEOUT_S: Final = 10.0
BULK_TIMEOUT_S: Final = 60.0  # 32 requests of a megabyte each wait for one another
LOOK_S: Final = 0.5  # in which all nodes are to say how many links they have, once a second
SETTLE_S: Final = 60.0  # for all replicas to become equal


@click.command(
    cls=HopCommand,
    examples=[
        "hopchain bench uniform",
        "hopchain bench hot-sender --nodes 5 --k 5 --clients 100 --json",
        "hopchain bench pool --sources 16 --choice two-choices",
        "hopchain bench zipf --network net --plot zipf.png",
        "hopchain bench uniform --profile-out node-1.svg",
    ],
)
@click.argument("profile", type=click.Choice([p.value for p in Profile]), metavar="PROFILE")
@click.option("--clients", type=click.IntRange(1, 10_000), default=32, show_default=True, help="Requests in flight.")
@click.option("--duration", "duration_s", type=Seconds(0.1), default=10.0, show_default=True, help="Seconds measured.")
@click.option("--warm-up", "warm_up_s", type=Seconds(0), default=3.0, show_default=True, help="Seconds before that.")
@click.option("--batch", type=int, help="Postings per request. Default: 1, for bulk 8190.")
@click.option("--accounts", type=click.IntRange(2), default=10_000, show_default=True, help="Accounts that take part.")
@click.option("--nodes", type=click.IntRange(1, 64), help=f"Nodes to start. Default: {NODES}.")
@click.option("--k", type=click.IntRange(1, 64), help=f"Nodes that decide one link. Default: {K}.")
@click.option("--sources", type=click.IntRange(1), help=f"Source accounts, for pool. Default: {SOURCES}.")
@click.option(
    "--choice",
    type=click.Choice([c.value for c in Choice]),
    help=f"How pool chooses the source of a payment. Default: {Choice.LEAST_ACTIVE.value}.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=Seconds(0.1, 300),
    metavar="SECONDS",
    help="How long to wait for an outcome. Default: 10, for bulk 60.",
)
@click.option(
    "--max-failures",
    type=click.IntRange(0),
    help="End a pool's run when more payments of one load generator fail than this.",
)
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="Load generators.")
@click.option(
    "--connections",
    type=click.IntRange(1, 128),
    default=1,
    show_default=True,
    help="Connections per generator and node.",
)
@click.option(
    "--route/--no-route",
    default=None,
    help="Send each request to the node that makes the sender's next link, as the Python client does with spread=True; "
    "else, and with read, each client stays with one node. Default: --route.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Decides who pays whom.")
@click.option(
    "--network",
    "network_dir",
    type=click.Path(exists=True, path_type=Path),
    metavar="DIR",
    help="Measure this running network instead of a new one; its accounts stay. HOPCHAIN_NETWORK names none here.",
)
@click.option("--issuer", help="Who funds the accounts, with --network. Default: the first with a key in the wallet.")
@click.option(
    "--plot", "picture", type=click.Path(path_type=Path), help="Draw rate and latencies into a .png, .svg or .pdf."
)
@click.option(
    "--profile-out",
    type=click.Path(path_type=Path),
    help="Profile node-1: .svg is a flame graph of its CPU, .txt its stacks, .prof cProfile's.",
)
def bench(
    out: Output,
    profile: str,
    clients: int,
    duration_s: float,
    warm_up_s: float,
    batch: int | None,
    accounts: int,
    nodes: int | None,
    k: int | None,
    sources: int | None,
    choice: str | None,
    timeout_s: float | None,
    max_failures: int | None,
    processes: int,
    connections: int,
    route: bool | None,
    seed: int,
    network_dir: Path | None,
    issuer: str | None,
    picture: Path | None,
    profile_out: Path | None,
) -> None:
    """Measure completed transfers per second, latency and cost under one kind of load, and check what must hold.

    \b
    PROFILE is one of:
      uniform        any account pays any other
      zipf           payers and payees drawn by Zipf's law, exponent 1.0
      hot-recipient  any account pays one account
      hot-sender     one account pays any other
      pool           a pool of source accounts pays any other
      bulk           any account pays 8190 postings in one request
      read           balances of any account, from the replica of the node asked

    Starts a network of its own in a temporary directory, or measures the one that --network names. Rejections never
    count as completed. Exit code 1 when money was made or lost, replicas differ, or an answer was lost.
    """
    _check_before(network_dir, issuer, picture, profile_out)
    settings = _settings(
        Profile(profile),
        own=network_dir is None,
        clients=clients,
        duration_s=duration_s,
        warm_up_s=warm_up_s,
        batch=batch,
        accounts=accounts,
        nodes=nodes,
        k=k,
        sources=sources,
        choice=choice,
        max_failures=max_failures,
        processes=processes,
        connections=connections,
        route=route,
        seed=seed,
    )
    with TemporaryDirectory(prefix="hopchain-bench-") as text:
        patience_s = timeout_s if timeout_s is not None else BULK_TIMEOUT_S if profile == Profile.BULK else TIMEOUT_S
        work = _Bench(out, settings, Path(text), patience_s, max_failures)
        measured = run(lambda: work.run(network_dir, issuer, profile_out))
    out.data(document(measured))
    show(out, measured)
    if picture is not None:
        from cli.bench_plot import draw

        draw(measured, picture)
    raise SystemExit(Exit.DONE if measured.kept.ok else Exit.REJECTED)


def _check_before(network_dir: Path | None, issuer: str | None, picture: Path | None, profile_out: Path | None) -> None:
    """Raise `LocalMisuse` for a file that could not be written at the end, and for what does not go with the
    network."""
    check_folder(picture)
    check_folder(profile_out)
    if issuer is not None and network_dir is None:
        raise LocalMisuse(
            f"--issuer {issuer[:80]!r} is for --network DIR (HOPCHAIN_NETWORK names none here): a network that this command starts has an issuer "
            "of its own"
        )
    if picture is not None:
        from cli.bench_plot import check_picture  # loads the simulator's plots

        check_picture(picture)
    if profile_out is not None:
        check_profile_file(profile_out)
    if network_dir is not None and profile_out is not None:
        raise LocalMisuse("--profile-out profiles a node that this command starts: leave --network out")


def _settings(
    profile: Profile,
    *,
    own: bool,
    clients: int,
    duration_s: float,
    warm_up_s: float,
    batch: int | None,
    accounts: int,
    nodes: int | None,
    k: int | None,
    sources: int | None,
    choice: str | None,
    max_failures: int | None,
    processes: int,
    connections: int,
    route: bool | None,
    seed: int,
) -> Settings:
    """What is asked for, with what is left out as it is by default. `own`: the network is started for it. Raises
    `LocalMisuse` for options that do nothing here, and for more sources than accounts."""
    pooled, read = profile is Profile.POOL, profile is Profile.READ
    if not own:
        _refuse("a network that this command starts, and --network has its own", {"--nodes": nodes, "--k": k})
    if not pooled:
        only = {"--sources": sources, "--choice": choice, "--max-failures": max_failures}
        _refuse(f"the profile pool, and this is {profile}", only)
    if read:
        _refuse("transfers, and this is read", {"--route": route or None, "--no-route": None if route else route})
    settings = Settings(
        profile=profile.value,
        nodes=nodes or NODES,
        k=k or K,
        clients=clients,
        accounts=accounts,
        batch=postings_of(profile, batch),
        sources=(sources or SOURCES) if pooled else None,
        choice=(choice or Choice.LEAST_ACTIVE.value) if pooled else None,
        warm_up_s=warm_up_s,
        duration_s=duration_s,
        processes=min(processes, clients),
        connections=connections,
        seed=seed,
        route=None if read else route is not False,
    )
    if settings.sources is not None and settings.sources > accounts:
        raise LocalMisuse(
            f"{settings.sources} sources, but only {accounts} accounts: give more --accounts or fewer --sources"
        )
    return settings


def _refuse(where: str, options: Mapping[str, object]) -> None:
    """`LocalMisuse` for an option that was given and does nothing here."""
    for name, value in options.items():
        if value is not None:
            shown = name if isinstance(value, bool) else f"{name} {value}"
            raise LocalMisuse(f"{shown} is for {where}: leave {name} out")


class _Bench:
    """One run."""

    def __init__(
        self, out: Output, settings: Settings, place: Path, timeout_s: float, max_failures: int | None
    ) -> None:
        self._out = out
        self._settings = settings
        self._place = place
        self._timeout_s = timeout_s
        self._max_failures = max_failures
        self._behind: list[int] = []
        self._memory_mb: list[float] = []

    async def run(self, network_dir: Path | None, issuer: str | None, profile_out: Path | None) -> Measured:
        """Start what must be started, prepare, measure, check."""
        settings = self._settings
        async with AsyncExitStack() as stack:
            if network_dir is None:
                self._out.note(f"starting {settings.nodes} nodes")
                network, key = await stack.enter_async_context(
                    own_cluster(self._place, nodes=settings.nodes, k=settings.k, profile_out=profile_out)
                )
                payer = network.genesis.issuers[0].name
            else:
                network = load_network(network_dir)
                payer, key = _issuer_key(network, issuer)
                await until_up(network, [])
                self._settings = msgspec.structs.replace(settings, nodes=len(network.nodes), k=network.genesis.k)
            spec = self._spec(network, payer, key)
            client = await stack.enter_async_context(
                Client([n.address for n in network.nodes], network.genesis.ca, network.id)
            )
            self._out.note(f"preparing {settings.accounts} accounts")
            await self._prepare(spec)
            await compare(network, SETTLE_S)
            return await self._measure(network, client, spec)

    def _spec(self, network: Network, issuer: str, key: Ed25519PrivateKey) -> Spec:
        settings = self._settings
        raw = key.private_bytes_raw()
        secret = hashlib.sha256(b"hopchain bench accounts" + network.id + raw).digest()
        asset = next(i.asset for i in network.genesis.issuers if i.name == issuer)
        return Spec(
            job=Job.PREPARE,
            nodes=tuple(n.address for n in network.nodes),
            ca=network.genesis.ca,
            network=network.id,
            asset=asset,
            prefix=f"{PREFIX}{asset.lower()}-",
            secret=secret,
            run=secrets.token_bytes(16),
            accounts=settings.accounts,
            sources=settings.sources or 0,
            place=str(self._place),
            issuer=issuer,
            issuer_key=raw,
            profile=Profile(settings.profile),
            batch=settings.batch,
            connections=settings.connections,
            route=settings.route is True,
            warm_up_s=settings.warm_up_s,
            duration_s=settings.duration_s,
            timeout_s=self._timeout_s,
            choice=Choice(settings.choice or Choice.LEAST_ACTIVE),
            max_failures=self._max_failures,
            seed=settings.seed,
        )

    async def _prepare(self, spec: Spec) -> None:
        async with AsyncExitStack() as stack:
            generator = await stack.enter_async_context(Generator(spec))
            async for news in generator.news():
                if news.event == "preparing":
                    self._out.note(f"  {news.message}: {news.completed} of {news.total}")

    async def _measure(self, network: Network, client: Client, spec: Spec) -> Measured:
        settings = self._settings
        paths = databases(network)
        before_paid = paid_out(paths, spec.prefix)
        async with AsyncExitStack() as stack:
            generators = [await stack.enter_async_context(Generator(part)) for part in shares(spec, settings)]
            streams = [generator.news() for generator in generators]
            for stream in streams:
                await wait_for(stream, "ready")
            self._out.note(f"measuring {settings.profile}: {MEANING[Profile(settings.profile)]}")
            before: list[Sample] = []
            after: list[Sample] = []
            results: dict[int, Result] = {}

            async def follow(number: int, stream: AsyncIterator[News]) -> None:
                async for news in stream:
                    if news.event == "measuring" and number == 0:
                        before.append(await sample(client, network))
                    elif news.event == "measured" and number == 0:
                        after.append(await sample(client, network))
                    elif news.event == "progress" and number == 0:
                        await self._progress(client, network, news)
                    elif news.result is not None:
                        results[number] = news.result

            for generator in generators:
                await generator.go()
            async with anyio.create_task_group() as tasks:
                for number, stream in enumerate(streams):
                    tasks.start_soon(follow, number, stream)
        kept = await self._check(network, client, paths, before_paid, list(results.values()), spec)
        return Measured(
            settings,
            [results[number] for number in sorted(results)],
            read_floats(self._place, "latencies"),
            read_floats(self._place, "lags"),
            self._behind,
            self._memory_mb,
            before[0],
            after[0],
            kept,
        )

    async def _progress(self, client: Client, network: Network, news: News) -> None:
        """Look at the nodes, and say how it goes. One that does not tell its links in time keeps nothing waiting."""
        self._memory_mb.append(round(largest_memory(network) / 1e6, 1))
        links: list[int] = []

        async def ask(node: KnownNode) -> None:
            links.append((await client.status(at=node.address)).log_height)

        with anyio.move_on_after(LOOK_S):
            await work_on_each(network.nodes, ask, at_once=len(network.nodes))
        behind = f"not all nodes sent their links within {LOOK_S:g} s"
        if len(links) == len(network.nodes):
            self._behind.append(max(links) - min(links))
            behind = f"{self._behind[-1]} links behind"
        took = "nothing was completed"
        if news.p50_ms is not None and news.p99_ms is not None:
            took = f"p50 {news.p50_ms:.1f} ms, p99 {news.p99_ms:.1f} ms"
        times = self._settings.processes
        self._out.note(f"  {news.completed * times:,}/s{' about' if times > 1 else ''}, {took}, {behind}")

    async def _check(
        self,
        network: Network,
        client: Client,
        paths: list[Path],
        before_paid: list[int],
        results: list[Result],
        spec: Spec,
    ) -> Kept:
        self._out.note("checking replicas, money and answers")
        begin = anyio.current_time()
        comparison = await compare(network, SETTLE_S)
        settle_s = anyio.current_time() - begin
        answers = read_answers(self._place)
        reads = spec.profile is Profile.READ
        paid = 0 if reads else sum(r.completed_in_all for r in results) * AMOUNT
        unknown = 0 if reads else sum(r.unknown - r.unknown_settled for r in results)
        unknown_amount = unknown * spec.batch * AMOUNT
        if not paths:
            asked, lost = await ask_lost(client, network, answers)
            return Kept(comparison, settle_s, len(answers), asked, lost, paid, None, unknown, unknown_amount)
        lefts = [now - then for now, then in zip(paid_out(paths, spec.prefix), before_paid, strict=True)]
        lost = await anyio.to_thread.run_sync(count_lost, paths, answers)
        by_node = [
            Kept(comparison, settle_s, len(answers), len(answers), lost, paid, left, unknown, unknown_amount)
            for left in lefts
        ]
        return next((kept for kept in by_node if not kept.left_is_paid), by_node[0])


def _issuer_key(network: Network, name: str | None) -> tuple[str, Ed25519PrivateKey]:
    wallet = Wallet(network.id)
    names = [name] if name is not None else [i.name for i in network.genesis.issuers if wallet.has(i.name)]
    if not names or names[0] not in [i.name for i in network.genesis.issuers]:
        known = ", ".join(i.name for i in network.genesis.issuers)
        raise LocalMisuse(
            f"the accounts are funded by an issuer ({known}) whose key is in the wallet: name it with --issuer"
        )
    return names[0], wallet.key(names[0])

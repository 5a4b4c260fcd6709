"""`hopchain verify`: one database against its own links, or all replicas against each other."""

import math
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import anyio
import click
import msgspec

from chain.audit import AuditReport, audit
from chain.disk import open_database
from chain.errors import LocalMisuse
from cli.command import HopCommand, Seconds, network_option, run
from cli.home import KnownNode, Network, check_is_node, find_network, start_nodes
from cli.members import look, open_patiently
from cli.money import format_amount
from cli.output import Exit, JsonValue, Output, counted
from cli.session import open_client
from hopchain import AccountLine, Client, ClientError, Digest, Unreachable
from hopchain.wire import AssetTotal

SETTLE_S: Final = 10.0  # for replicas to become equal; links travel in milliseconds, pulls repeat every few seconds
LOOK_AGAIN_S: Final = 0.2
TELL_S: Final = 1.0  # without an end, until people are told what is waited for
DIGEST_S: Final = 120.0  # for one digest: some 36 s with ten million accounts, by what 200,000 took
MAX_PAGES: Final = 10_000  # of the search for the first account that differs


class Comparison(msgspec.Struct, frozen=True):
    """Digests of all nodes that answered, why the others did not, and the first difference."""

    digests: dict[str, Digest]
    missing: dict[str, str]
    difference: dict[str, JsonValue] | None

    @property
    def equal(self) -> bool:
        """True when every node answered and all replicas are the same."""
        return not self.missing and len({d.digest for d in self.digests.values()}) == 1

    @property
    def money_kept(self) -> bool:
        """True when on every replica all balances and incoming postings of each asset add up to nothing."""
        return all(t.total == 0 for d in self.digests.values() for t in d.totals)


@click.command(
    cls=HopCommand,
    examples=["hopchain verify net/node-1", "hopchain verify --cluster", "hopchain verify --cluster --json"],
)
@click.argument("directory", type=click.Path(exists=True, path_type=Path), metavar="[DIR]", required=False)
@click.option("--cluster", is_flag=True, help="Compare the digests of all members instead.")
@click.option(
    "--settle",
    "settle_s",
    type=Seconds(0, 600),
    default=SETTLE_S,
    show_default=True,
    metavar="SECONDS",
    help="How long replicas may take to become equal.",
)
@network_option
def verify(out: Output, directory: Path | None, cluster: bool, settle_s: float, network_dir: Path | None) -> None:
    """Audit one node's database from its links alone, or (--cluster) compare all replicas.

    The database may be in use. Exit code 1 names the first row, or the first account, that disagrees.
    """
    if (directory is None) is not cluster:
        raise LocalMisuse("name a node's directory, such as net/node-1, or ask for --cluster: one of the two")
    if directory is not None:
        raise SystemExit(_verify_database(out, directory))
    network = find_network(network_dir)
    raise SystemExit(_report_cluster(out, network, run(lambda: compare(network, settle_s, out.note))))


# --- one database --------------------------------------------------------------------------------------------------


def _verify_database(out: Output, directory: Path) -> Exit:
    from node.layout import DATABASE

    check_is_node(directory)
    path = directory / DATABASE if directory.is_dir() else directory
    conn = open_database(path, writer=False)
    try:
        report = _audit(out, path, conn)
    finally:
        conn.close()
    fault = report.fault
    out.data(
        {
            "database": str(path),
            "ok": report.ok,
            "links": report.links,
            "postings": report.postings,
            "confirmed": report.confirmed,
            "accounts": report.accounts,
            "fault": None
            if fault is None
            else {
                "table": fault.table,
                "key": fault.key,
                "column": fault.column,
                "expected": fault.expected,
                "found": fault.found,
            },
        }
    )
    counts = (
        f"{counted(report.links, 'link')}, {counted(report.postings, 'posting')} ({report.confirmed:,} confirmed), "
        f"{counted(report.accounts, 'account')}"
    )
    if fault is None:
        out.say(f"{path}: sound: {counts}", colour="green", bold=True)
        return Exit.DONE
    out.say(f"{path}: DAMAGED after {counts}", colour="red", bold=True)
    out.say(f"  {fault}")
    out.say("  stop the node, keep a copy of the file, and let the node fetch everything anew under a new id")
    return Exit.REJECTED


def _audit(out: Output, path: Path, conn: sqlite3.Connection) -> AuditReport:
    from chain.genesis import decode_genesis

    genesis_file = path.parent / "genesis.json"
    genesis = decode_genesis(genesis_file.read_bytes()) if genesis_file.exists() else None
    if not out.fancy:
        return audit(conn, genesis=genesis)
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task("links", total=None)
        return audit(conn, genesis=genesis, progress=lambda done, total: bar.update(task, completed=done, total=total))


# --- all replicas --------------------------------------------------------------------------------------------------


async def compare(network: Network, settle_s: float, on_wait: Callable[[str], None] = lambda why: None) -> Comparison:
    """Ask all members of now for their digests until they are equal or the time is up; then find the first difference.
    `on_wait` is told, once, that they are not equal yet.

    Raises `Unreachable` when no node answers.
    """
    async with open_patiently(network) as client:
        picture = await look(client, network)
    nodes = [node for node in picture.nodes if node.id in picture.members and node.client_port]
    hidden = set(picture.members) - {node.id for node in nodes}
    async with open_client(network) as client:
        deadline = anyio.current_time() + settle_s
        tell_at = min(deadline, anyio.current_time() + TELL_S)
        while True:
            digests, missing = await _digests(client, nodes)
            missing |= {picture.name_of(node): "no node knows its client port" for node in sorted(hidden)}
            found = Comparison(digests, missing, None)
            if found.equal or anyio.current_time() >= deadline:
                break
            if anyio.current_time() >= tell_at:
                tell_at = math.inf
                on_wait(f"{_unequal(found)}: asking again for up to {settle_s:g} s")
            await anyio.sleep(LOOK_AGAIN_S)
        if not digests:
            raise Unreachable(list(missing.items()), reached=True)  # somebody told just now who the members are
        if len({d.digest for d in digests.values()}) == 1:
            return found
        first, *others = [n for n in nodes if n.name in digests]
        other = next(n for n in others if digests[n.name].digest != digests[first.name].digest)
        return Comparison(digests, missing, await _difference(client, first, other))


def _unequal(found: Comparison) -> str:
    """Why the replicas are not known to be equal."""
    if found.missing:
        return f"{', '.join(found.missing)} did not answer"
    return "the replicas are not equal"


async def _digests(client: Client, nodes: Sequence[KnownNode]) -> tuple[dict[str, Digest], dict[str, str]]:
    digests: dict[str, Digest] = {}
    missing: dict[str, str] = {}

    async def ask(node: KnownNode) -> None:
        try:
            digests[node.name] = await client.digest(at=node.address, timeout_s=DIGEST_S)
        except Unreachable as error:
            missing[node.name] = error.tried[-1][1] if error.tried else str(error)
        except ClientError as error:
            missing[node.name] = str(error)

    async with anyio.create_task_group() as tasks:
        for node in nodes:
            tasks.start_soon(ask, node)
    return {n.name: digests[n.name] for n in nodes if n.name in digests}, missing


async def _difference(client: Client, one: KnownNode, other: KnownNode) -> dict[str, JsonValue] | None:
    """The first account in name order that the two nodes do not have alike; None when they agree by now."""
    after = ""
    for _ in range(MAX_PAGES):
        left = await client.accounts(after, at=one.address)
        right = await client.accounts(after, at=other.address)
        here, there = ({a.name: a for a in page.accounts} for page in (left, right))
        ends = [page.accounts[-1].name for page in (left, right) if page.more and page.accounts]
        for name in sorted({*here, *there}):
            if ends and name > min(ends):
                break
            mine, theirs = here.get(name), there.get(name)
            if mine is None or theirs is None or (mine.height, mine.tip) != (theirs.height, theirs.tip):
                return {"account": name, one.name: _tip(mine), other.name: _tip(theirs)}
        if not ends:
            return None
        after = min(ends)
    return None


def _tip(line: AccountLine | None) -> JsonValue:
    return None if line is None else {"height": line.height, "tip": line.tip.hex()}


def _report_cluster(out: Output, network: Network, found: Comparison) -> Exit:
    ok = found.equal and found.money_kept
    out.data(
        {
            "ok": ok,
            "equal": found.equal,
            "nodes": [
                {
                    "name": name,
                    "digest": d.digest.hex(),
                    "accounts": d.accounts,
                    "links": d.links,
                    "epoch": d.epoch,
                    "totals": {t.asset: t.total for t in d.totals},
                    "stale": d.stale,
                }
                for name, d in found.digests.items()
            ],
            "missing": dict(found.missing),
            "difference": found.difference,
        }
    )
    out.table(
        ["node", "digest", "accounts", "links", "sums"],
        [
            [
                name,
                d.digest.hex()[:16],
                str(d.accounts),
                str(d.links),
                ", ".join(_sum(network, t) for t in d.totals) + ("  (stale)" if d.stale else ""),
            ]
            for name, d in found.digests.items()
        ]
        + [[name, "down", "", "", why] for name, why in found.missing.items()],
        right=["accounts", "links"],
    )
    if ok:
        out.say(f"all {len(found.digests)} replicas are equal, no money was made or lost", colour="green", bold=True)
        return Exit.DONE
    if found.difference is not None:
        out.say(f"first difference: {found.difference}", colour="red", bold=True)
    elif not found.money_kept:
        out.say(
            "money was made or lost: the sums above must all be 0; run `hopchain verify DIR` on each node", colour="red"
        )
    elif found.missing:
        out.say(
            f"not all nodes answered: {', '.join(found.missing)}; start them ({start_nodes(network)})", colour="red"
        )
    else:
        out.say(
            "the replicas changed while they were compared: run it again, or give it longer with --settle", colour="red"
        )
    if found.equal or found.difference is not None or not found.money_kept or not found.missing:
        return Exit.REJECTED
    return Exit.UNREACHABLE


def _sum(network: Network, total: AssetTotal) -> str:
    asset = network.genesis.asset(total.asset)
    return f"{total.asset} {format_amount(total.total, asset.scale if asset else 0, grouped=True)}"

"""`hopchain route` and `status`: where things are decided, and how the nodes are."""

from collections import Counter
from contextlib import suppress
from pathlib import Path

import anyio
import click

from chain.link import opening_slot
from cli.command import HopCommand, at_option, checked_name, hex_of, network_option, run
from cli.home import SHORT_ID, KnownNode, Network, find_network, start_nodes
from cli.members import Picture, look, open_patiently
from cli.output import Exit, JsonValue, Output, counted
from cli.session import ask_until_found, open_client, pinned, say_stale
from hopchain import Client, ClientError, NotFound, RemoteFault, Route, Status, Unreachable
from hopchain.addresses import NodeAddress
from hopchain.wire import RouteNode

KEY_BYTES = 20
HASH_BYTES = 32


@click.command(cls=HopCommand, examples=["hopchain route alice", "hopchain route 5f0c...e1 --at node-2 --json"])
@click.argument("what", metavar="NAME-OR-HASH")
@click.option("--account", "as_account", is_flag=True, help="Take it for a name even if it looks like a hash.")
@at_option
@network_option
def route(out: Output, what: str, as_account: bool, at: str | None, network_dir: Path | None) -> None:
    """Look up, through Kademlia, which nodes decide what comes after an account's last link, or after any hash."""
    key = b"" if as_account else _key(what)
    account = "" if key else checked_name(what)
    network = find_network(network_dir)
    node = pinned(network, at)

    found, opened = run(lambda: _look_up(network, node, account, key))
    out.data(
        {
            "account": account or None,
            "open": opened if account else None,
            "key": found.key.hex(),
            "slot": found.slot.hex(),
            "epoch": found.epoch,
            "hops": found.hops,
            "asked": [{"id": a.hex(), "name": network.name_of(a)} for a in found.asked],
            "found": [_route_document(network, n) for n in found.found],
            "owner": _route_document(network, found.group[0]) if found.group else None,
            "group": [_route_document(network, n) for n in found.group],
            "stale": found.stale,
        }
    )
    asked = ", ".join(network.name_of(a) for a in found.asked) or "nobody: the node itself knew"
    out.say(f"{what}: slot {found.slot.hex()[:16]}, key {found.key.hex()}", bold=True)
    out.fields([("asked", asked), ("hops", str(found.hops)), ("epoch", str(found.epoch))])
    out.table(
        ["rank", "node", "id", "address", "state"],
        [
            [
                "owner" if n.rank == 0 else f"standby {n.rank}",
                network.name_of(n.id),
                n.id.hex()[:SHORT_ID],
                f"{n.host}:{n.port}",
                "alive" if n.alive else "down",
            ]
            for n in found.group
        ],
    )
    if account and not opened:
        out.note(
            f"account {account} is not open: this is where it would be opened. `hopchain balance` is for open ones"
        )
    say_stale(out, found)


async def _look_up(network: Network, node: NodeAddress | None, account: str, key: bytes) -> tuple[Route, bool]:
    """The route of `account`, else of `key`, and whether the account is open: a node may be a moment behind the
    others."""
    opening = opening_slot(network.id, account)
    unopened: list[Route] = []

    async def ask(address: NodeAddress) -> Route | NotFound:
        found = await client.route(account=account, key=key, at=address)
        if account and found.slot == opening:
            unopened.append(found)
            return NotFound(f"account {account}", found.stale)
        return found

    async with open_client(network) as client:
        found = await ask_until_found(network, node, ask)
    return (found, True) if isinstance(found, Route) else (min(unopened, key=lambda route: route.stale), False)


def _key(text: str) -> bytes:
    """The bytes of a hash or key in hex; empty for anything else, which is then a name."""
    return hex_of(text, KEY_BYTES) or hex_of(text, HASH_BYTES) or b""


def _route_document(network: Network, node: RouteNode) -> JsonValue:
    return {
        "id": node.id.hex(),
        "name": network.name_of(node.id),
        "host": node.host,
        "port": node.port,
        "rank": node.rank,
        "alive": node.alive,
    }


@click.command(cls=HopCommand, examples=["hopchain status", "hopchain status --at node-2", "hopchain status --json"])
@at_option
@network_option
def status(out: Output, at: str | None, network_dir: Path | None) -> None:
    """Show all members and guests (nodes that are joining, observers): alive or not, epoch, height of the log,
    replication lag, queue depths.

    Nodes that network.toml does not name are found through those that it does. A node whose client port none of them
    knows is shown as `unasked`.
    """
    network = find_network(network_dir)
    node = pinned(network, at)
    if at is None or node is None:
        nodes, found, roles = run(lambda: _ask_members(network))
        what_to_do = f"no node answers: start them ({start_nodes(network)})"
    else:
        nodes, found, roles = run(lambda: _ask_one(network, at, node))
        what_to_do = f"{nodes[0].name} does not answer: `hopchain status` asks all nodes"
    answers = [s for s in found.values() if isinstance(s, Status)]
    longest = max((s.log_height for s in answers), default=0)
    out.data(
        {
            "network": network.id.hex(),
            "name": network.genesis.name,
            "epoch": max((s.epoch for s in answers), default=None),
            "k": network.genesis.k,
            "alive": len(answers),
            "nodes": [_status_document(n, found[n.name], roles.get(n.id), longest) for n in nodes],
        }
    )
    out.say(
        f"network {network.genesis.name} {network.id.hex()[:16]}: {_count(nodes, found, roles)}",
        bold=True,
    )
    out.table(
        [
            *("node", "id", "clients", "state", "role", "epoch", "log", "lag"),
            *("accounts", "undecided", "waiting", "queued", "sees"),
        ],
        [_status_row(n, found[n.name], roles.get(n.id, ""), longest) for n in nodes],
        right=["epoch", "log", "lag", "accounts", "undecided", "waiting", "queued"],
    )
    if not answers:
        out.note(what_to_do)
        raise SystemExit(Exit.UNREACHABLE)


def _count(nodes: list[KnownNode], found: dict[str, Status | str], roles: dict[bytes, str]) -> str:
    """How many answer. Where others are told of, too, it is of the members: a guest need not be within reach of this
    machine."""
    members = [n for n in nodes if roles.get(n.id) == "member"]
    others = Counter(roles.get(n.id, "") for n in nodes) - Counter(member=len(members))
    if not members or not others:
        return f"{sum(isinstance(s, Status) for s in found.values())} of {len(nodes)} nodes answer"
    answer = sum(isinstance(found[n.name], Status) for n in members)
    besides = [
        counted(others["guest"], "guest") if others["guest"] else "",
        f"{others['removed']} removed" if others["removed"] else "",
    ]
    return ", ".join([f"{answer} of {len(members)} members answer", *filter(None, besides)])


Told = tuple[list[KnownNode], dict[str, Status | str], dict[bytes, str]]  # nodes, what each said by name, roles by id


async def _ask_one(network: Network, at: str, address: NodeAddress) -> Told:
    """The node that `--at` named, and what it said. One that answers has said who it is."""
    node = next((n for n in network.nodes if n.address == address), KnownNode(at, b"", *address))
    found = (await _ask_all(network, [node]))[node.name]
    roles: dict[bytes, str] = {}
    if isinstance(found, Status):
        node = KnownNode(network.name_of(found.id), found.id, *address)
        with suppress(ClientError):
            async with open_patiently(network) as client:
                roles[found.id] = (await client.health(at=address)).role
    return [node], {node.name: found}, roles


async def _ask_members(network: Network) -> Told:
    """The nodes to tell of, those of the directory first, and what each said. While none answers: those of the
    directory."""
    try:
        async with open_patiently(network) as client:
            picture = await look(client, network)
    except (ClientError, RemoteFault) as error:
        nodes = list(network.nodes)
        why: dict[str, Status | str] = dict(error.tried) if isinstance(error, Unreachable) else {}
        return nodes, why if all(n.name in why for n in nodes) else await _ask_all(network, nodes), {}
    nowhere = set(picture.members) - {n.id for n in picture.nodes}
    others = [n for n in picture.nodes if n not in network.nodes]
    others += [KnownNode(network.name_of(node), node, "", 0) for node in nowhere]
    # who is no member is told of by those it is connected with
    there = {*picture.members, *picture.health, *picture.alive}
    nodes = [n for n in (*network.nodes, *sorted(others, key=lambda n: n.name)) if n.id in there]
    found = await _ask_all(network, [n for n in nodes if n.id in picture.health])
    silent = {n.name: picture.silent.get(n.id, "no node knows where it is") for n in nodes}
    return nodes, silent | found, {n.id: _role(picture, n.id) for n in nodes}


def _role(picture: Picture, node: bytes) -> str:
    """As a node says it of itself (`Health`)."""
    if node in picture.members:
        return "member"
    return "guest" if picture.was_member(node) is None else "removed"


async def _ask_all(network: Network, nodes: list[KnownNode]) -> dict[str, Status | str]:
    """Every node's status, or why there is none."""
    found: dict[str, Status | str] = {}

    async def ask(client: Client, node: KnownNode) -> None:
        try:
            found[node.name] = await client.status(at=node.address)
        except Unreachable as error:
            found[node.name] = error.tried[-1][1] if error.tried else str(error)
        except ClientError as error:
            found[node.name] = str(error)

    async with open_client(network) as client, anyio.create_task_group() as tasks:
        for node in nodes:
            tasks.start_soon(ask, client, node)
    return found


def _status_document(node: KnownNode, found: Status | str, role: str | None, longest: int) -> JsonValue:
    document: dict[str, JsonValue] = {
        "name": node.name,
        "id": node.id.hex() or None,
        "host": node.host or None,
        "client_port": node.client_port or None,
        "role": role,
        "alive": isinstance(found, Status),
        "reason": None if isinstance(found, Status) else found,
    }
    if isinstance(found, str):
        return document | dict.fromkeys(_STATUS_KEYS)
    return document | {
        "id": found.id.hex(),
        "epoch": found.epoch,
        "log_height": found.log_height,
        "lag": longest - found.log_height,
        "accounts": found.accounts,
        "undecided": found.undecided,
        "waiting_links": found.waiting_links,
        "queued_requests": found.queued_requests,
        "client_requests": found.client_requests,
        "clients": found.clients,
        "uptime_s": round(found.uptime_s, 1),
        "peers": [
            {
                "id": p.id.hex(),
                "host": p.host,
                "port": p.port,
                "alive": p.alive,
                "rtt_ms": round(p.rtt_ms, 2) if p.rtt_ms >= 0 else None,
                "links": p.links,
                "behind": p.behind,
            }
            for p in found.peers
        ],
        "counters": dict(sorted(found.counters.items())),
    }


_STATUS_KEYS = (
    "epoch",
    "log_height",
    "lag",
    "accounts",
    "undecided",
    "waiting_links",
    "queued_requests",
    "client_requests",
    "clients",
    "uptime_s",
    "peers",
    "counters",
)


def _status_row(node: KnownNode, found: Status | str, role: str, longest: int) -> list[str]:
    head = [node.name, node.short, f"{node.host}:{node.client_port}" if node.client_port else ""]
    if isinstance(found, str):
        return [*head, "down" if node.client_port else "unasked", role, "", "", "", "", "", "", "", found]
    return [
        *head,
        "alive",
        role,
        str(found.epoch),
        str(found.log_height),
        str(longest - found.log_height),
        str(found.accounts),
        str(found.undecided),
        str(found.waiting_links),
        str(found.queued_requests),
        f"{sum(p.alive for p in found.peers)} of {len(found.peers)} peers",
    ]

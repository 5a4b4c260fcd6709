"""What the commands of membership share: ask all nodes how they are, judge what a change would risk, have it made.

Nodes are found from the network's directory, and from what they tell of each other: one that joined later is in no
file.
"""

import datetime
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Final

import anyio
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.errors import LocalMisuse
from chain.genesis import Genesis
from cli.command import hex_of
from cli.home import SHORT_ID, KnownNode, Network
from cli.output import CommandFailed, Exit
from hopchain import Client, ClientError, Refused, RemoteFault, Timing, Unknown, Unreachable
from hopchain.addresses import checked_address
from hopchain.change import SignedChange
from hopchain.wire import Changed, Health, MemberLine, PeerHealth, ViewLine
from node.epochs import without_majority
from routing.keyspace import ID_BYTES
from routing.regions import group_ranges
from routing.view import first_view, majority, member_of

FORCE_WORDS: Final = "payments may stop"
LOOK_TIMING: Final = Timing(dial_s=2.0, read_s=4.0)  # a node that needs longer is one to report
LOOK_AGAIN_S: Final = 0.3
MAX_ROUNDS: Final = 4  # of asking nodes that others told of: each finds those whom the last one knew
CHANGE_MS: Final = 15 * 60 * 1000  # a change that was given up may be made for so long yet
CHANGE_TRY_S: Final = 10.0  # for one node's answer to a change, before another is asked
MAY_BE_MADE: Final = (
    "it may still be made: run the same command again to continue; `hopchain member list` shows the members"
)


class Picture(msgspec.Struct, frozen=True):
    """What was seen: `health` by node id, `silent`: why the others did not answer, and the views, ascending, as the
    node with the newest one tells them. `nodes`: all that are known, with or without an address to ask."""

    network: Network
    nodes: tuple[KnownNode, ...]
    health: dict[bytes, Health]
    silent: dict[bytes, str]
    views: tuple[ViewLine, ...]

    @property
    def newest(self) -> ViewLine:
        """The newest view; there is one as soon as any node answered."""
        return self.views[-1]

    @property
    def members(self) -> dict[bytes, MemberLine]:
        """The members of the newest view by id."""
        return {member.id: member for member in self.newest.members}

    @property
    def alive(self) -> frozenset[bytes]:
        """Nodes that answered, and those that one which answered has contact with; not who may not vote (design
        R12)."""
        seen = {peer.id for health in self.health.values() for peer in health.peers if peer.alive}
        unfit = {node for node, health in self.health.items() if not health.verified}
        return frozenset((seen | set(self.health)) - unfit)

    def standing(self, node: bytes) -> tuple[int, bool] | None:
        """(epoch, ACTIVE in it) of a node, as it says itself, else as those say who have contact with it; None for one
        that nobody reaches."""
        if node in self.health:
            return self.health[node].epoch, self.health[node].active
        told = [p for health in self.health.values() for p in health.peers if p.id == node and p.alive]
        return max(((peer.epoch, peer.active) for peer in told), default=None)

    def was_member(self, node: bytes) -> MemberLine | None:
        """The member of this id in the last view that had it; None when none did."""
        for view in reversed(self.views):
            for member in view.members:
                if member.id == node:
                    return member
        return None

    def gone_since(self, node: bytes) -> int:
        """The first epoch without a node that was a member."""
        return 1 + max(view.epoch for view in self.views if any(line.id == node for line in view.members))

    def name_of(self, node: bytes) -> str:
        """Its name, as far as the network's directory knows it, else its short id."""
        return self.network.name_of(node)

    def addresses(self, last: bytes = b"") -> list[tuple[str, int]]:
        """Where to send a change: members that answered, else who did; `last` is who goes, for it cannot answer once it
        has."""
        here = sorted((node for node in self.nodes if node.id in self.health), key=lambda node: node.id == last)
        return [node.address for node in here if node.id in self.members] or [node.address for node in here]


def now_ms() -> int:
    """This machine's clock, Unix milliseconds."""
    return int(datetime.datetime.now(datetime.UTC).timestamp() * 1000)


def open_patiently(network: Network, timing: Timing = LOOK_TIMING) -> Client:
    """A client that gives a silent node up soon."""
    return Client([n.address for n in network.nodes], network.genesis.ca, network.id, timing=timing)


# --- looking -------------------------------------------------------------------------------------------------------


async def look(client: Client, network: Network) -> Picture:
    """Ask every node that can be found how it is. Raises `Unreachable` when none answers."""
    known = {node.id: node for node in network.nodes}
    health: dict[bytes, Health] = {}
    silent: dict[bytes, str] = {}

    async def ask(node: KnownNode) -> None:
        try:
            found = await client.health(at=node.address)
        except ClientError as error:
            silent[node.id] = reason_of(error)
            return
        if found.node != node.id:
            silent[node.id] = f"node {network.told(found.node)} answers at {node.host}:{node.client_port}"
        else:
            health[node.id] = found

    asked: set[bytes] = set()
    for _ in range(MAX_ROUNDS):
        fresh = [node for node in known.values() if node.id not in asked and node.client_port]
        if not fresh:
            break
        asked |= {node.id for node in fresh}
        async with anyio.create_task_group() as tasks:
            for node in fresh:
                tasks.start_soon(ask, node)
        for peer in [peer for found in health.values() for peer in found.peers]:
            if peer.id not in known or (peer.id not in asked and is_place(peer)):
                client_port = peer.client_port if is_place(peer) else 0
                known[peer.id] = KnownNode(network.name_of(peer.id), peer.id, peer.host, client_port)
    if not health:
        raise Unreachable([(network.name_of(node), why) for node, why in silent.items()])
    for node in known.values():
        if not node.client_port:
            silent[node.id] = "no node knows " + ("its client port" if node.host else "where it is")
    best = max(health.values(), key=lambda found: (found.epoch, found.role == "member"))
    views = await client.all_views(at=known[best.node].address)
    if not views:
        raise RemoteFault("malformed", f"node {best.node.hex()[:SHORT_ID]} gives no views")
    return Picture(network, tuple(known.values()), health, silent, tuple(views))


def is_place(peer: PeerHealth) -> bool:
    """True when clients can be sent to where a peer is said to be: not when half of its address, or none, is known."""
    try:
        checked_address((peer.host, peer.client_port))
    except LocalMisuse:
        return False
    return True


def reason_of(error: Exception) -> str:
    """Why one node did not answer, without the addresses around it."""
    if isinstance(error, Unreachable) and error.tried:
        return error.tried[-1][1]
    return str(error)


def find_node(picture: Picture, text: str) -> bytes:
    """The id that a name which the network's directory knows, an id or the beginning of one stands for. `LocalMisuse`
    when none or several do."""
    names = {name: node for node, name in picture.network.names.items()} | {
        node.name: node.id for node in picture.nodes
    }
    if text in names:
        return names[text]
    ids = {node.id for node in picture.nodes} | {m.id for view in picture.views for m in view.members}
    found = sorted(node for node in ids if len(text) >= 4 and node.hex().startswith(text.lower()))
    if len(found) == 1:
        return found[0]
    if found:
        raise LocalMisuse(f"{text!r} could be any of {len(found)} nodes: write more digits of its id")
    if (node := hex_of(text, ID_BYTES)) is not None:
        return node
    raise LocalMisuse(f"{text!r} is not a node of this network: `hopchain member list` shows their ids and names")


# --- judging -------------------------------------------------------------------------------------------------------


def groups_without_majority(genesis: Genesis, keys: Iterable[bytes], alive: Collection[bytes]) -> tuple[int, int]:
    """Of the groups that nodes with these public keys make: (how many have no majority among `alive`, how many there
    are)."""
    view = first_view(genesis.network_id, genesis.k, [member_of(key) for key in keys])
    groups = {group for _, group in group_ranges(view)}
    return without_majority(groups, alive), len(groups)


def check_risk(
    picture: Picture, after: Sequence[MemberLine], what: str, force: str | None, *, coming: Collection[bytes] = ()
) -> None:
    """`CommandFailed` when `what`, which makes the members `after`, could not be carried out by those that are
    reachable, or would leave groups that cannot decide; `force` with the right words lets it pass. `coming`: nodes to
    be taken as reachable."""
    risks = []
    members, alive = picture.members, picture.alive.union(coming)
    here = [node for node in members if node in alive]
    if len(here) < majority(len(members)):
        risks.append(
            f"{len(here)} of {len(members)} members are reachable now, fewer than the {majority(len(members))} that must "
            "agree to it"
        )
    for moment, lines in (("now", list(members.values())), ("after it", list(after))):
        lost, groups = groups_without_majority(picture.network.genesis, [line.public_key for line in lines], alive)
        if lost:
            risks.append(
                f"{lost} of {groups} groups have no majority of reachable nodes {moment}: their accounts cannot pay, and no "
                "member can be added or removed after this until a majority of each is back"
            )
    if not risks:
        return
    if force is None:
        raise CommandFailed(
            Exit.REJECTED,
            "no_majority",
            f"{what} is refused: {'; '.join(risks)}. Start the nodes that are down (`hopchain doctor` names them), or "
            f'accept it with --force "{FORCE_WORDS}"',
        )
    check_force(force)


def check_force(force: str | None) -> None:
    """`LocalMisuse` unless the words are those that say what is risked."""
    if force is not None and force != FORCE_WORDS:
        raise LocalMisuse(f'--force {force[:80]!r} does not say what is risked: write --force "{FORCE_WORDS}"')


def operator_key(genesis: Genesis, directory: Path) -> Ed25519PrivateKey:
    """The operator's key in the network's directory; `LocalMisuse` when it is not this network's."""
    from node.layout import OPERATOR_KEY
    from node.pki import raw_public_key, read_private_key

    if not genesis.operator:
        raise LocalMisuse(
            f"network {genesis.name} was made without an operator, so its members cannot be changed: make a new network"
        )
    path = directory / OPERATOR_KEY
    key = read_private_key(path)
    if raw_public_key(key).hex() != genesis.operator:
        raise LocalMisuse(
            f"{path} is not the operator's key of network {genesis.name}: take the one that `init` made with it"
        )
    return key


# --- changing ------------------------------------------------------------------------------------------------------


def change_expires_ms(wait_s: float) -> int:
    """When a change expires that is signed now and sent, always the same bytes, for `wait_s` from now."""
    return now_ms() + round(wait_s * 1000) + CHANGE_MS


async def submit_change(
    client: Client,
    signed: SignedChange,
    addresses: Callable[[], Sequence[tuple[str, int]]],
    timeout_s: float,
    on_wait: Callable[[str], None] = lambda why: None,
) -> Changed:
    """Have the change made: ask node after node, again and again, which is safe. `on_wait` is told why it is not made
    yet.

    Raises `CommandFailed`: refused for good, or not made within `timeout_s` (then it may still be made). A refusal says
    what one node knows: after an `Unknown`, from whichever node, the change may still be made, too.
    """
    why = "no node can be asked"
    doubt = ""  # of the last node that does not know what became of it
    deadline = anyio.current_time() + timeout_s
    while True:
        for host, port in addresses():
            left_s = deadline - anyio.current_time()
            try:
                patience_s = max(0.1, min(left_s, CHANGE_TRY_S))
                answer = await client.change(signed, timeout_s=patience_s, at=(host, port))
            except ClientError as error:
                why = f"{host}:{port}: {reason_of(error)}"
                continue
            if isinstance(answer, Changed):
                return answer
            if isinstance(answer, Refused):
                refused = f"{host}:{port} refused the change: {answer.reason}"
                if doubt:
                    raise CommandFailed(Exit.UNREACHABLE, "unknown", f"{refused}. But {doubt}; {MAY_BE_MADE}")
                raise CommandFailed(Exit.REJECTED, answer.code, refused)
            why = f"{host}:{port}: {answer.reason}"
            if isinstance(answer, Unknown):
                doubt = f"{host}:{port} was asked before and does not know what became of it ({answer.reason})"
        if anyio.current_time() >= deadline:
            raise CommandFailed(
                Exit.UNREACHABLE,
                "unknown",
                f"the change was not confirmed within {timeout_s:g} s ({why}); {MAY_BE_MADE}",
            )
        on_wait(why)
        await anyio.sleep(LOOK_AGAIN_S)


async def wait_active(
    client: Client,
    network: Network,
    epoch: int,
    timeout_s: float,
    *,
    without: Collection[bytes] = (),
    on_wait: Callable[[str], None] = lambda why: None,
) -> Picture:
    """Return when every member of the newest view that is reachable (but `without`) is ACTIVE in `epoch` or a later
    one, and a majority is. `CommandFailed` after `timeout_s`."""
    why = "no node answers"
    deadline = anyio.current_time() + timeout_s
    while True:
        try:
            picture = await look(client, network)
        except (ClientError, RemoteFault) as error:
            why = reason_of(error)
        else:
            why = _not_active(picture, epoch, without)
            if not why:
                return picture
        if anyio.current_time() >= deadline:
            raise CommandFailed(
                Exit.UNREACHABLE,
                "not_active",
                f"epoch {epoch} is decided, but not active everywhere after {timeout_s:g} s ({why}): `hopchain doctor` says "
                "what is wrong",
            )
        on_wait(why)
        await anyio.sleep(LOOK_AGAIN_S)


def _not_active(picture: Picture, epoch: int, without: Collection[bytes]) -> str:
    """Who keeps `epoch` from being active everywhere; empty when nobody does."""
    if picture.newest.epoch < epoch:
        return f"the newest view that is known is {picture.newest.epoch}"
    standings = {node: picture.standing(node) for node in picture.members if node not in without}
    here = {node: standing for node, standing in standings.items() if standing is not None}
    late = [
        f"{picture.name_of(node)} is in epoch {at}" + ("" if active else f" and not active{_regions(picture, node)}")
        for node, (at, active) in here.items()
        if at < epoch or not active
    ]
    if late:
        return ", ".join(late[:3])
    if len(here) < majority(len(picture.members)):
        return f"{len(here)} of {len(picture.members)} members are reachable"
    return ""


def _regions(picture: Picture, node: bytes) -> str:
    health = picture.health.get(node)
    return "" if health is None else f", with {health.syncing_regions} regions to sync"


def after_adding(picture: Picture, public_key: bytes) -> list[MemberLine]:
    """The members once this node is one."""
    fresh = member_of(public_key)
    return [*picture.members.values(), MemberLine(fresh.id, fresh.public_key, fresh.incarnation)]


def after_removing(picture: Picture, *nodes: bytes) -> list[MemberLine]:
    """The members once these are none."""
    return [member for node, member in picture.members.items() if node not in nodes]

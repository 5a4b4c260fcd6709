"""`hopchain member add`, `remove`, and `replace`: changing who the members are.

Every command here can be interrupted and run again: it looks first, and does what is still to be done.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import click
import msgspec

from chain.errors import LocalMisuse
from cli.command import HopCommand, Seconds, hex_of, network_option, run
from cli.copying import wait_level
from cli.home import Network, find_network
from cli.invite import open_invitation
from cli.member_list import list_command, member_document
from cli.members import (
    FORCE_WORDS,
    Picture,
    after_adding,
    after_removing,
    change_expires_ms,
    check_force,
    check_risk,
    find_node,
    look,
    now_ms,
    open_patiently,
    operator_key,
    submit_change,
    wait_active,
)
from cli.output import Output, counted
from cli.session import say_remembered
from cli.upchecks import mark_removed
from hopchain import Client
from hopchain.change import FIRST_INCARNATION, Change, ChangeAction, SignedChange, sign_change
from routing.keyspace import node_id_of
from routing.view import PUBLIC_KEY_BYTES

WAIT_S: Final = 120.0  # for a change to be decided and active: syncing a large region takes a while

_F = TypeVar("_F", bound=Callable[..., object])


def wait_option(function: _F) -> _F:
    """`--wait SECONDS`."""
    return click.option(
        "--wait",
        "wait_s",
        type=Seconds(1, 86_400),
        default=WAIT_S,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for each step: a new node copies the links, the change is made, it is active everywhere.",
    )(function)


def force_option(function: _F) -> _F:
    """`--force WORDS`."""
    return click.option(
        "--force",
        metavar="WORDS",
        help=f'Do it although too few nodes are reachable, and no other change can be made until they are back: "{FORCE_WORDS}".',
    )(function)


class Newcomer(msgspec.Struct, frozen=True):
    """The node to add. `signed`: the operator's word in its invitation, which ends at `expires_ms`; None for a bare
    public key."""

    public_key: bytes
    signed: SignedChange | None
    expires_ms: int | None

    @property
    def id(self) -> bytes:
        """Its node id."""
        return node_id_of(self.public_key)


class Done(msgspec.Struct, frozen=True):
    """What a command did: `changed` is False when there was nothing left to do."""

    picture: Picture
    changed: bool


@click.group()
def member() -> None:
    """See the views (lists of members); add or remove a member."""


member.add_command(list_command)


@member.command(
    "add",
    cls=HopCommand,
    examples=["hopchain member add node-6.invite", "hopchain member add 5f0c...e1    # the node's public key"],
)
@click.argument("newcomer", metavar="INVITE-OR-PUBLIC-KEY")
@force_option
@wait_option
@network_option
def add(out: Output, newcomer: str, force: str | None, wait_s: float, network_dir: Path | None) -> None:
    """Make a running guest a member. `hopchain join` does this by itself."""
    check_force(force)
    network = find_network(network_dir)
    say_remembered(out, network, network_dir)
    node = read_newcomer(network, newcomer)

    async def work() -> Done:
        async with open_patiently(network) as client:
            picture = await look(client, network)
            return await add_node(client, picture, node, force, wait_s, out.note)

    _report(out, run(work), added=node.id, removed=None)


@member.command(
    "remove",
    cls=HopCommand,
    examples=[
        "hopchain member remove node-3",
        f'hopchain member remove 5f0c9a1b --force "{FORCE_WORDS}"    # an id, or its beginning',
    ],
)
@click.argument("node", metavar="ID")
@force_option
@wait_option
@network_option
def remove(out: Output, node: str, force: str | None, wait_s: float, network_dir: Path | None) -> None:
    """Remove a member for good: its id never comes back. If the node still runs, prefer `hopchain leave` there.

    Refused if too few nodes would be reachable afterwards, unless --force accepts the risk.
    """
    check_force(force)
    network = find_network(network_dir)
    say_remembered(out, network, network_dir)

    async def work() -> tuple[bytes, Done]:
        async with open_patiently(network) as client:
            picture = await look(client, network)
            gone = find_node(picture, node)
            return gone, await remove_node(client, picture, gone, force, wait_s, out.note)

    gone, done = run(work)
    _report(out, done, added=None, removed=gone)


@click.command(
    cls=HopCommand,
    examples=["hopchain replace node-3 --with node-6.invite", "hopchain replace 5f0c9a1b --with node-6.invite --json"],
)
@click.argument("dead", metavar="DEAD-ID")
@click.option(
    "--with", "newcomer", required=True, metavar="INVITE-OR-PUBLIC-KEY", help="The node that takes its place."
)
@force_option
@wait_option
@network_option
def replace(out: Output, dead: str, newcomer: str, force: str | None, wait_s: float, network_dir: Path | None) -> None:
    """Put a new node in the place of a dead one, once the new one has the links.

    Removes the old node first if nobody reaches it and enough others are left for full groups: then the death of the
    new one hurts nobody. Else adds the new one first. If interrupted, run the same command again. The new node must be
    running (`hopchain join` on its machine).
    """
    check_force(force)
    network = find_network(network_dir)
    say_remembered(out, network, network_dir)
    node = read_newcomer(network, newcomer)

    async def work() -> tuple[bytes, Done]:
        async with open_patiently(network) as client:
            picture = await look(client, network)
            gone = find_node(picture, dead)
            if gone == node.id:
                raise LocalMisuse(f"node {network.told(gone)} cannot replace itself: make an invitation for a new one")
            _check_was_member(picture, gone)
            if removes_first(picture, gone, node.id):
                await _wait_for_newcomer(client, picture, node, wait_s, out.note)
                removed = await remove_node(client, picture, gone, force, wait_s, out.note)
                done = await add_node(client, removed.picture, node, force, wait_s, out.note)
                return gone, Done(done.picture, removed.changed or done.changed)
            added = await add_node(client, picture, node, force, wait_s, out.note)
            done = await remove_node(client, added.picture, gone, force, wait_s, out.note)
            return gone, Done(done.picture, added.changed or done.changed)

    gone, done = run(work)
    _report(out, done, added=node.id, removed=gone)


def removes_first(picture: Picture, gone: bytes, newcomer: bytes) -> bool:
    """True when a replacement removes before it adds: a view with both the dead member and a newcomer has groups with
    two that may be dead, and one of three cannot decide (design R9)."""
    return (
        gone in picture.members
        and newcomer not in picture.members
        and gone not in picture.alive
        and len(picture.members) > picture.network.genesis.k
    )


def read_newcomer(network: Network, text: str) -> Newcomer:
    """The node that an invitation or a public key names; `LocalMisuse` when it cannot become a member here."""
    path = Path(text)
    if path.is_file():
        invitation = open_invitation(path)
        if invitation.genesis.network_id != network.id:
            raise LocalMisuse(
                f"{path} is for network {invitation.genesis.name} ({invitation.genesis.network_id.hex()[:16]}), this is "
                f"{network.genesis.name} ({network.id.hex()[:16]}): name the network with --network"
            )
        if invitation.change is None:
            raise LocalMisuse(
                f"{path} is for an observer, which is never a member: make another with `hopchain invite`"
            )
        return Newcomer(invitation.key.public_key, invitation.change, invitation.expires_ms)
    if (key := hex_of(text, PUBLIC_KEY_BYTES)) is not None:
        return Newcomer(key, None, None)
    raise LocalMisuse(
        f"{text[:80]!r} is neither an invitation's file nor a public key of {2 * PUBLIC_KEY_BYTES} hex digits"
    )


async def add_node(
    client: Client, picture: Picture, node: Newcomer, force: str | None, wait_s: float, on_wait: Callable[[str], None]
) -> Done:
    """Wait until the node has nearly all links, add it unless it is a member, and wait until that is active
    everywhere."""
    network = picture.network
    told = network.told(node.id)
    epoch, changed = picture.newest.epoch, False
    if node.id not in picture.members:
        what, after = f"adding node {told}", after_adding(picture, node.public_key)
        _check_newcomer(picture, node)
        check_risk(picture, after, what, force, coming=[node.id])
        until_ms = change_expires_ms(2 * wait_s)  # for the copy, and then for the change
        signed = node.signed or _sign(network, ChangeAction.ADD, node.public_key, FIRST_INCARNATION, until_ms)
        picture = await wait_level(client, network, node.id, wait_s, _once(on_wait))
        epoch = picture.newest.epoch
        if node.id not in picture.members:  # `hopchain join` may have made it one by now
            check_risk(picture, after_adding(picture, node.public_key), what, force)
            epoch = (await submit_change(client, signed, picture.addresses, wait_s, _once(on_wait))).epoch
            changed = True
    return Done(await wait_active(client, network, epoch, wait_s, on_wait=_once(on_wait)), changed)


async def _wait_for_newcomer(
    client: Client, picture: Picture, node: Newcomer, wait_s: float, on_wait: Callable[[str], None]
) -> None:
    """Return when nothing that the newcomer lacks would keep it from being added."""
    _check_newcomer(picture, node)
    await wait_level(client, picture.network, node.id, wait_s, _once(on_wait))


def _check_newcomer(picture: Picture, node: Newcomer) -> None:
    """Raise `LocalMisuse` for a node that can never, or no longer, be made a member."""
    told = picture.network.told(node.id)
    if picture.was_member(node.id) is not None:
        raise LocalMisuse(
            f"node {told} was a member and was removed; ids never come back: `hopchain invite` makes a new one"
        )
    if node.expires_ms is not None and now_ms() > node.expires_ms:
        raise LocalMisuse(f"the invitation of node {told} has expired: make a new one with `hopchain invite`")


async def remove_node(
    client: Client, picture: Picture, node: bytes, force: str | None, wait_s: float, on_wait: Callable[[str], None]
) -> Done:
    """Remove the node unless it is no member, and wait until that is active everywhere."""
    network = picture.network
    told = network.told(node)
    epoch, changed = picture.newest.epoch, False
    line = picture.members.get(node)
    _check_was_member(picture, node)
    if line is not None:
        if len(picture.members) == 1:
            raise LocalMisuse(f"node {told} is the last member, and a network needs one: add another first")
        check_risk(picture, after_removing(picture, node), f"removing node {told}", force)
        signed = _sign(
            network,
            ChangeAction.REMOVE,
            line.public_key,
            line.incarnation,
            change_expires_ms(wait_s),
            force is not None,
        )
        epoch = (await submit_change(client, signed, lambda: picture.addresses(node), wait_s, _once(on_wait))).epoch
        changed = True
    return Done(await wait_active(client, network, epoch, wait_s, without=[node], on_wait=_once(on_wait)), changed)


def _check_was_member(picture: Picture, node: bytes) -> None:
    """Raise `LocalMisuse` for a node that is in no view."""
    if picture.was_member(node) is None:
        raise LocalMisuse(f"node {picture.network.told(node)} never was a member: `hopchain member list` shows who is")


def _sign(
    network: Network, action: ChangeAction, public_key: bytes, incarnation: int, expires_ms: int, force: bool = False
) -> SignedChange:
    key = operator_key(network.genesis, network.directory)
    return sign_change(Change(network.id, action, public_key, incarnation, expires_ms, force), key)


def _once(tell: Callable[[str], None]) -> Callable[[str], None]:
    """Tell only what differs from what was told last."""
    last = ""

    def told(text: str) -> None:
        nonlocal last
        if text != last:
            last = text
            tell(f"waiting: {text}")

    return told


def _report(out: Output, done: Done, *, added: bytes | None, removed: bytes | None) -> None:
    picture = done.picture
    if removed is not None and picture.members.keys() <= picture.health.keys():  # all have answered: none needs it
        mark_removed(picture.network, removed, picture.gone_since(removed))
    out.data(
        {
            "network": picture.network.id.hex(),
            "epoch": picture.newest.epoch,
            "view_hash": picture.newest.hash.hex(),
            "changed": done.changed,
            "added": added.hex() if added else None,
            "removed": removed.hex() if removed else None,
            "members": [member_document(picture.network, line) for line in picture.newest.members],
        }
    )
    parts = [f"node {picture.network.told(added)} is a member"] if added else []
    parts += [f"node {picture.network.told(removed)} is no longer a member"] if removed else []
    before = "" if done.changed else " (it was so already)"
    out.say(
        f"{' and '.join(parts)}: epoch {picture.newest.epoch}, {counted(len(picture.members), 'member')}, active everywhere{before}",
        colour="green",
        bold=True,
    )

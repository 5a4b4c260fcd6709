"""`hopchain leave`: a node asks to be removed, waits until the others are active without it, and stops."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio
import click
import msgspec

from chain.errors import LocalMisuse
from cli.command import HopCommand, network_option, run
from cli.home import KnownNode, Network, check_is_node, load_network
from cli.member import force_option, wait_option
from cli.members import (
    LOOK_AGAIN_S,
    Picture,
    after_removing,
    change_expires_ms,
    check_force,
    check_risk,
    look,
    open_patiently,
    submit_change,
    wait_active,
)
from cli.names import read_names
from cli.output import CommandFailed, Exit, Output, counted
from cli.upchecks import mark_left
from hopchain.change import Change, ChangeAction, sign_change
from node.config import NodeConfig

STOP_S: Final = 20.0  # for the node to end by itself after SIGTERM
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where one that listens everywhere is reached from here


@click.command(cls=HopCommand, examples=["hopchain leave --data node-6", "hopchain leave --data net/node-3 --json"])
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="D",
    help="The directory of the node that leaves.",
)
@force_option
@wait_option
@network_option
def leave(out: Output, data: Path, force: str | None, wait_s: float, network_dir: Path | None) -> None:
    """Take a node out of the network for good: it is removed, hands over, and stops.

    The node should run, so that its votes are handed over. It keeps answering until the view without it is active
    everywhere. Its id never comes back; its directory stays.

    If interrupted, run it again: it continues.
    """
    from node.config import read_config
    from node.lock import lock_holder
    from node.pki import read_node_key

    check_force(force)
    check_is_node(data)
    key = read_node_key(data)
    network = network_around(data, read_config(data), key.id, network_dir)

    async def work() -> tuple[Picture, bool]:
        async with open_patiently(network) as client:
            picture = await look(client, network)
            line = picture.members.get(key.id)
            if line is None and picture.was_member(key.id) is None:
                raise LocalMisuse(f"node {network.told(key.id)} is not a member, so it need not leave: just stop it")
            epoch = picture.newest.epoch
            if line is not None:
                if len(picture.members) == 1:
                    raise LocalMisuse("this is the last member, and a network needs one: add another first")
                check_risk(picture, after_removing(picture, key.id), "leaving", force)
                wanted = Change(
                    network.id,
                    ChangeAction.REMOVE,
                    key.public_key,
                    line.incarnation,
                    change_expires_ms(wait_s),
                    force is not None,
                )
                epoch = (
                    await submit_change(
                        client, sign_change(wanted, key.private), lambda: picture.addresses(key.id), wait_s
                    )
                ).epoch
            return await wait_active(client, network, epoch, wait_s, without=[key.id]), line is not None

    picture, changed = run(work)
    kept = _mark(out, data, picture.gone_since(key.id))  # before its process ends: `up` looks then
    pid = lock_holder(data)
    if pid is not None:
        run(lambda: _stop(data, pid))
    out.data(
        {
            "node": key.id.hex(),
            "epoch": picture.newest.epoch,
            "changed": changed,
            "members": len(picture.members),
            "stopped_pid": pid,
        }
    )
    stopped = f"process {pid} has ended" if pid is not None else "no process of it runs on this machine"
    out.say(
        f"node {network.told(key.id)} is no member: epoch {picture.newest.epoch} with {counted(len(picture.members), 'member')} is "
        f"active everywhere; {stopped}",
        colour="green",
        bold=True,
    )
    who = "a service that started it" if kept else "what started it (`hopchain up`, a service)"
    out.say(f"{who} must not start it again; {data} may be kept or deleted")


def _mark(out: Output, data: Path, epoch: int) -> bool:
    """Write down beside the node's files that it left; False when that is not possible."""
    try:
        mark_left(data, epoch)
    except OSError as error:
        out.note(f"{data} cannot be written ({error.strerror}), so nothing there says that the node left")
        return False
    return True


def network_around(data: Path, config: NodeConfig, node_id: bytes, option: Path | None) -> Network:
    """The network of the node in `data`: `option`, or the directory's own network.toml, or that beside it, where `init`
    put it; and the node itself as its config.toml says. `LocalMisuse` when it is of another network."""
    from node.layout import NETWORK_FILE, read_genesis

    places = (
        [option] if option is not None else [p for p in (data, data.resolve().parent) if (p / NETWORK_FILE).exists()]
    )
    if not places:
        raise LocalMisuse(f"no {NETWORK_FILE} is in or beside {data}: name the network's directory with --network")
    network = load_network(places[0])
    if read_genesis(data).network_id != network.id:
        raise LocalMisuse(f"{data} is a node of another network than {places[0]}: name the right one with --network")
    names = read_names(data) | network.names
    network = msgspec.structs.replace(network, names=names)
    here = KnownNode(network.name_of(node_id), node_id, *local_address(config))
    others = tuple(node for node in network.nodes if node.id != node_id)
    return msgspec.structs.replace(network, nodes=(here, *others))


def local_address(config: NodeConfig) -> tuple[str, int]:
    """The node's client port, from its own machine."""
    return (_EVERYWHERE.get(config.host, config.host), config.client_port)


async def _stop(data: Path, pid: int) -> None:
    """SIGTERM, and wait until the directory's lock is free."""
    from node.lock import holds_lock, lock_holder

    if not holds_lock(pid, data):
        await anyio.sleep(LOOK_AGAIN_S)  # one that ends has closed its files a moment before its lock is free
        if lock_holder(data) is None:  # nobody needs it any more, so it ended by itself
            return
        raise CommandFailed(
            Exit.REJECTED,
            "running",
            f"the node was removed; it still runs, as process {pid} of a container or of another user: stop it there",
        )
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = anyio.current_time() + STOP_S
    while lock_holder(data) is not None:
        if anyio.current_time() >= deadline:
            raise CommandFailed(
                Exit.REJECTED,
                "running",
                f"the node was removed; its process {pid} has not ended within {STOP_S:g} s: stop it",
            )
        await anyio.sleep(LOOK_AGAIN_S)

"""What keeps `hopchain up` from running a network: another one that does, ports that something uses, nodes that have
left.

The lock is the kernel's (`flock` on up.lock in the network's directory), so it is gone when its process is, however
that ended. The file stays; the process id in it is only for the message to the second process.
"""

import errno
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from chain.errors import LocalMisuse
from cli.home import Network
from node.config import CONFIG_FILE, read_config
from node.durable import write_whole
from node.layout import NETWORK_FILE
from node.lock import lock_holder, note_holder, try_lock
from node.pki import read_node_key

LOCK_FILE: Final = "up.lock"
LEFT_FILE: Final = "left"  # in a node's directory: it is no member since the epoch that stands there
_MAX_DIGITS: Final = 32
_MAX_TOLD: Final = 4  # ports in one message


@contextmanager
def only_up(network: Network) -> Iterator[None]:
    """Be the one `up` of this network's directory. `LocalMisuse` names the process that is it already."""
    try:
        handle = os.open(network.directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:  # of another user, or a read-only place: each node's own lock has to do
        yield
        return
    try:
        holder = None
        with suppress(OSError):  # no locks on this file system: the nodes say so; or a full disk
            holder = try_lock(handle)
            if holder is None:
                note_holder(handle)
        if holder is not None:
            raise LocalMisuse(
                f"network {network.genesis.name} is up already: process {holder} runs its nodes in {network.directory.resolve()}. "
                "Leave it to that one, or stop it first (Ctrl-C where it runs, or SIGTERM)"
            )
        yield
    finally:
        os.close(handle)


# --- ports ---------------------------------------------------------------------------------------------------------


def check_ports(network: Network, directories: Iterable[Path]) -> None:
    """`LocalMisuse` names the ports of these nodes that something uses. One that runs already uses its own, and one
    that has left needs none; what else is wrong with its files a node says itself."""
    taken: list[str] = []
    for directory in directories:
        if lock_holder(directory) is None and left_in(directory) is None:
            taken += [f"{directory.name}: {port}" for port in _taken(directory)]
    if not taken:
        return
    more = f" and {len(taken) - _MAX_TOLD} more" if len(taken) > _MAX_TOLD else ""
    raise LocalMisuse(
        f"ports of network {network.genesis.name} are in use ({'; '.join(taken[:_MAX_TOLD])}{more}), so nothing was started. Stop "
        f"what uses them, such as another network (`ss -ltnup` names the process), or choose others in {CONFIG_FILE} of each node "
        f"and in {network.directory / NETWORK_FILE}"
    )


def _taken(directory: Path) -> Sequence[str]:
    try:
        config = read_config(directory)
    except LocalMisuse:
        return ()
    needed = [
        (f"port {config.port} of {config.host}", config.port, (socket.SOCK_STREAM, socket.SOCK_DGRAM)),
        (f"client port {config.client_port} of {config.host}", config.client_port, (socket.SOCK_STREAM,)),
    ]
    return [what for what, port, kinds in needed if any(_is_taken(config.host, port, kind) for kind in kinds)]


def _is_taken(host: str, port: int, kind: socket.SocketKind) -> bool:
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)
        with socket.socket(family, kind) as sock:
            if kind is socket.SOCK_STREAM:  # as a node does: connections that were closed just now are in nobody's way
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


# --- nodes that have left ------------------------------------------------------------------------------------------


def mark_left(directory: Path, epoch: int) -> None:
    """Write down in a node's directory that it is no member since this epoch: what looks for that does not start it
    again. Raises `OSError`."""
    write_whole(directory / LEFT_FILE, f"{epoch}\n".encode())


def mark_removed(network: Network, node: bytes, epoch: int) -> None:
    """The same, where the directory of the node that was removed is among those that `up` runs. Where it cannot be
    written, the node is started once more, and says that it was removed."""
    for known in network.nodes:
        directory = network.directory / known.name
        with suppress(LocalMisuse, OSError):
            if known.id == node == read_node_key(directory).id:
                mark_left(directory, epoch)


def left_in(directory: Path) -> int | None:
    """The epoch since which the node of this directory is no member; 0 when the file says none, None when nothing says
    that it left."""
    try:
        with (directory / LEFT_FILE).open("rb") as file:
            text = file.read(_MAX_DIGITS).strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else 0

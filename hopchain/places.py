"""What a program needs to begin: a client from a network's directory, and keys from their files.

    DIR/genesis.json   the network's id and CA
    DIR/network.toml   where its nodes are
    HOPCHAIN_HOME/wallet/<first 16 hex digits of the network id>/<account>.key   Ed25519, PKCS #8 PEM, mode 0600

`hopchain init` makes all of them, `hopchain account open` a key for each account. A program on another machine needs
the two files of DIR, which are public, and the keys of its own accounts. Files are read once, and `store_key` alone
writes one; `LocalMisuse` says what is wrong.
"""

import os
import shlex
import stat
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.errors import LocalMisuse
from chain.genesis import decode_genesis
from chain.names import is_name
from chain.request import NetworkId
from hopchain.calls import Timing
from hopchain.client import Client
from hopchain.durable import sync_name, write_secret
from hopchain.signing import private_key_pem

_HOME_VARIABLE: Final = "HOPCHAIN_HOME"
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_MAX_KEY_BYTES: Final = 65_536  # a key has some 120; more is none
_UNREADABLE: Final = "run this as the user whose key it is, or restore it from a copy"


class _Place(msgspec.Struct, frozen=True):
    host: str
    client_port: int


class _Network(msgspec.Struct, frozen=True):
    """What a client needs of network.toml."""

    network_id: str
    nodes: tuple[_Place, ...]


def open_network(directory: str | os.PathLike[str], *, spread: bool = False, timing: Timing | None = None) -> Client:
    """A client of all nodes that `directory` names, for `async with`; `spread` and `timing` as in `Client`. The
    directory is what `hopchain init` made, or that of one node."""
    place = Path(directory)
    raw = _read(place / "genesis.json")
    try:
        genesis = decode_genesis(raw)
    except LocalMisuse as error:
        raise LocalMisuse(f"{place / 'genesis.json'}: {error}") from None
    try:
        network = msgspec.toml.decode(_read(place / "network.toml"), type=_Network)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LocalMisuse(f"{place / 'network.toml'} cannot be read: {error}") from None
    if network.network_id != genesis.network_id.hex():
        raise LocalMisuse(
            f"{place / 'network.toml'} is of network {network.network_id[:16]}, genesis.json of "
            f"{genesis.network_id.hex()[:16]}: copy both from one directory"
        )
    addresses = [(node.host, node.client_port) for node in network.nodes]
    return Client(addresses, genesis.ca, genesis.network_id, spread=spread, timing=timing)


def wallet_file(network: NetworkId, account: str) -> Path:
    """Where the command line keeps the key of `account` of this network (`client.network`)."""
    if not is_name(account):
        raise LocalMisuse(f"{account[:80]!r} is not an account name, so it has no key")
    named = os.environ.get(_HOME_VARIABLE)
    home = Path(named) if named else Path.home() / ".hopchain"
    return home / "wallet" / network.hex()[:16] / f"{account}.key"


def load_key(path: str | os.PathLike[str]) -> Ed25519PrivateKey:
    """The private key in this file, which nobody but its owner may read. `LocalMisuse` says what is wrong; its cause is
    the `OSError`, if any."""
    file = Path(path)
    try:
        handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe without a writer is not waited for
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise LocalMisuse(f"{file} is not a file: put the key file there, from a copy")
            mode = stat.S_IMODE(status.st_mode)
            if mode & _OTHERS:
                raise LocalMisuse(
                    f"{file} has mode {mode:04o}: others can read this key. Run: chmod 600 {shlex.quote(str(file))}"
                )
            raw = os.read(handle, _MAX_KEY_BYTES)
        finally:
            os.close(handle)
    except OSError as error:
        raise LocalMisuse(f"{file} cannot be read ({error.strerror}): {_UNREADABLE}") from error
    try:
        key = serialization.load_pem_private_key(raw, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # no PEM; one with a password; a kind that is not known
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise LocalMisuse(
            f"{file} does not hold an Ed25519 private key in PEM without a password: restore it from a copy"
        )
    return key


def store_key(path: str | os.PathLike[str], key: Ed25519PrivateKey) -> None:
    """Make the file of a new key, as `load_key` reads it: on disk, its name too, when this returns. Its directory is
    made, for this user only, where there is none. `LocalMisuse` when the file exists, as a key is never replaced, or
    cannot be written; nothing is left of it then."""
    file = Path(path)
    if not isinstance(key, Ed25519PrivateKey):  # its value may be the secret
        raise LocalMisuse(f"{file} is for an Ed25519PrivateKey, and this is {type(key).__name__}")
    try:
        for place in reversed([file.parent, *file.parent.parents]):
            if not place.exists():
                place.mkdir(mode=0o700, exist_ok=True)
                sync_name(place)
        write_secret(file, private_key_pem(key), "load_key reads the key that it holds; a new one needs another file")
        try:
            sync_name(file)
        except OSError:
            file.unlink()
            raise
    except OSError as error:
        raise LocalMisuse(f"{file} cannot be written: {error.strerror}") from None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise LocalMisuse(f"{file} cannot be read: {error.strerror}") from None

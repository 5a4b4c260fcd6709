"""The files of a network, as `hopchain init DIR` makes them.

    DIR/genesis.json      public: what makes the network this one (chain.genesis)
    DIR/network.toml      public: where its nodes are; what the command line reads
    DIR/ca.crt            public: the certificate in genesis.json as a file
    DIR/ca.key            secret: signs the certificates of new nodes
    DIR/operator.key      secret: the operator's Ed25519 key; whoever holds it changes the members
    DIR/network.key       secret: seals the DHT's datagrams, the same on all nodes; invitations carry it
    DIR/node-N/           node.key, network.key (secret), node.crt, genesis.json, config.toml, network.toml;
                          later node.db

A directory is a network when it has network.toml, which is put there last. Issuers' keys stay with the caller. A node's
directory has a network.toml too, so that commands work where only that directory is: in one that `init` made it names
the first nodes, in one that joined those that its invitation named.
"""

import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.errors import LocalMisuse
from chain.genesis import Asset, Genesis, GenesisMember, Issuer, decode_genesis, encode_genesis
from chain.request import NetworkId
from hopchain.durable import sync_name, write_secret
from hopchain.signing import private_key_pem
from node.config import (
    ALLOWED,
    CONFIG_FILE,
    HOST_PATTERN,
    Host,
    NodeConfig,
    NodeIdHex,
    Peer,
    Port,
    encode_config,
    read_toml,
)
from node.durable import sync_tree, write_whole
from node.lost import unreadable, what_to_do
from node.pki import (
    CA_DAYS,
    NODE_CERTIFICATE,
    NODE_DAYS,
    NODE_KEY,
    NodeKey,
    make_ca,
    make_node_certificate,
    node_key,
    raw_public_key,
    read_secret,
)
from routing.keyspace import NodeId

GENESIS_FILE: Final = "genesis.json"
NETWORK_FILE: Final = "network.toml"
CA_CERTIFICATE: Final = "ca.crt"
CA_KEY: Final = "ca.key"
OPERATOR_KEY: Final = "operator.key"
NETWORK_KEY: Final = "network.key"
DATABASE: Final = "node.db"

NETWORK_KEY_BYTES: Final = 32  # ChaCha20-Poly1305
MAX_NODES: Final = 256  # of one init; more join later
LOOPBACK: Final = "127.0.0.1"
NOWHERE: Final = frozenset({"0.0.0.0", "::", ""})  # addresses that listen everywhere and lead nowhere

_STAGING: Final = ".init"
_NETWORK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,47}", re.ASCII)  # it is part of a 64-character common name


class NodePlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where one node is. `name` is also its directory under the network's."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    id: NodeIdHex
    host: Host
    port: Port
    client_port: Port

    @property
    def node_id(self) -> NodeId:
        """The 20 bytes of `id`."""
        return NodeId(bytes.fromhex(self.id))


class NetworkFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """network.toml."""

    name: str
    network_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
    nodes: Annotated[tuple[NodePlace, ...], msgspec.Meta(min_length=1)]


class Network(msgspec.Struct, frozen=True):
    """A network's directory, read and checked."""

    directory: Path
    genesis: Genesis
    nodes: tuple[NodePlace, ...]

    @property
    def network_id(self) -> NetworkId:
        """32 bytes that name this network."""
        return self.genesis.network_id

    def node_directory(self, node: NodePlace) -> Path:
        """Where this node's files are."""
        return self.directory / node.name


_ALLOWED: Final[dict[str, str]] = {
    "name": "text",
    "network_id": "64 hex digits, the id of genesis.json",
    "nodes": "a list of tables with name, id, host, port and client_port",
    "nodes.name": "the node's directory",
    "nodes.id": ALLOWED["peers.id"],
    "nodes.host": ALLOWED["host"],
    "nodes.port": ALLOWED["port"],
    "nodes.client_port": ALLOWED["port"],
}


def make_network(
    directory: Path,
    *,
    nodes: int,
    assets: Sequence[Asset],
    issuers: Mapping[str, tuple[str, bytes]],
    ports: Sequence[tuple[int, int]],
    name: str,
    now_ms: int,
    k: int = 5,
    host: str | None = None,
    advertise: Sequence[str] | None = None,
    days: int = NODE_DAYS,
) -> Network:
    """Make all files of a new network in `directory`, which must be empty or not exist.

    `issuers`: account name -> (asset code, raw Ed25519 public key). `ports`: (port, client port) of each node.
    `advertise`: under which address each node is reached, by default `host`, which is where all listen; without `host`
    each listens where it is reached, without both on 127.0.0.1. `now_ms`: Unix milliseconds. `days`: how long the
    nodes' certificates are valid (the CA's: at least CA_DAYS). On any error nothing is left behind.
    """
    if not 1 <= nodes <= MAX_NODES:
        raise LocalMisuse(f"{nodes} nodes: it must be 1 to {MAX_NODES}")
    if _NETWORK_NAME.fullmatch(name) is None:
        raise LocalMisuse(f"{name[:80]!r} is not a network name: 1 to 48 of letters, digits, space, . _ -")
    local = LOOPBACK if host is None or host in NOWHERE else host
    hosts = list(advertise) if advertise is not None else [local] * nodes
    _check_addresses(nodes, hosts, ports)
    ca_certificate, ca_key = make_ca(name, now_ms, max(days, CA_DAYS))
    keys = [node_key(Ed25519PrivateKey.generate()) for _ in range(nodes)]
    operator = Ed25519PrivateKey.generate()
    genesis = _genesis(name, assets, issuers, k, ca_certificate, keys, now_ms, operator)
    places = tuple(
        NodePlace(f"node-{number}", key.id.hex(), where, port, client_port)
        for number, (key, where, (port, client_port)) in enumerate(zip(keys, hosts, ports, strict=True), start=1)
    )
    made = _claim(directory)
    try:
        staging = directory / _STAGING
        staging.mkdir(mode=0o700)
        _write_network(staging, genesis, places, ca_certificate, ca_key, operator)
        network_key = secrets.token_bytes(NETWORK_KEY_BYTES)
        write_secret(staging / NETWORK_KEY, network_key)
        for place, key in zip(places, keys, strict=True):
            certificate = make_node_certificate(ca_certificate, ca_key, key.public_key, now_ms, days)
            listen = host or place.host
            config = NodeConfig(listen, place.port, place.client_port, place.host, peers=_seeds(places, place))
            write_node(staging / place.name, key, certificate, genesis, config, network_key)
            write_places(staging / place.name, genesis, places)
        put_in_place(staging, directory, last=NETWORK_FILE)
        sync_name(directory)
    except BaseException:
        _empty(directory, and_itself=made)
        raise
    return Network(directory, genesis, places)


def put_in_place(staging: Path, directory: Path, *, last: str) -> None:
    """Move what is in `staging`, which goes away, to `directory`. The file `last` makes it complete: who finds it
    there, also after a power cut, finds all others, whole."""
    sync_tree(staging)
    for path in sorted(staging.iterdir(), key=lambda path: path.name == last):
        if path.name == last:
            sync_name(directory / last)
        path.rename(directory / path.name)
    staging.rmdir()
    sync_name(directory / last)


def read_network(directory: Path) -> Network:
    """The network in `directory`. `LocalMisuse` when it is none, or its files are of different networks."""
    if not (directory / NETWORK_FILE).is_file():
        if (directory / GENESIS_FILE).is_file():
            raise LocalMisuse(f"{directory} has no {NETWORK_FILE}: {what_to_do(directory / NETWORK_FILE)}")
        raise LocalMisuse(
            f"{directory} is not a network's directory (no {NETWORK_FILE}): make one with `hopchain init`"
        )
    file = read_toml(directory / NETWORK_FILE, NetworkFile, _ALLOWED)
    genesis = read_genesis(directory)
    if genesis.network_id.hex() != file.network_id:
        raise LocalMisuse(
            f"{directory}: {NETWORK_FILE} is of network {file.network_id[:16]}, {GENESIS_FILE} of "
            f"{genesis.network_id.hex()[:16]}: copy both from one network"
        )
    return Network(directory, genesis, file.nodes)


def read_genesis(directory: Path) -> Genesis:
    """The genesis file in a network's or a node's directory."""
    path = directory / GENESIS_FILE
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise LocalMisuse(unreadable(path, error)) from None
    try:
        return decode_genesis(raw)
    except LocalMisuse as error:
        raise LocalMisuse(f"{path}: {error}") from None


def read_network_key(directory: Path) -> bytes:
    """The key that seals the DHT's datagrams, the same on all nodes, from a node's directory."""
    path = directory / NETWORK_KEY
    key = read_secret(path)
    if len(key) != NETWORK_KEY_BYTES:
        raise LocalMisuse(f"{path} has {len(key)} bytes, not {NETWORK_KEY_BYTES}; {what_to_do(path)}")
    return key


def _check_addresses(nodes: int, hosts: Sequence[str], ports: Sequence[tuple[int, int]]) -> None:
    for host in hosts:
        if HOST_PATTERN.fullmatch(host) is None or host in NOWHERE:
            raise LocalMisuse(
                f"nobody can reach a node at {host[:80]!r}: its address must be {ALLOWED['host']} of one machine"
            )
    flat = [port for pair in ports for port in pair]
    taken = {(host, port) for host, pair in zip(hosts, ports, strict=False) for port in pair}
    if len(hosts) != nodes or len(taken) != 2 * nodes or not all(1 <= port <= 65535 for port in flat):
        where = "" if len(set(hosts)) == 1 else f" (on each machine) for {', '.join(hosts)}"
        raise LocalMisuse(f"{nodes} nodes need {2 * nodes} different ports from 1 to 65535, not {flat}{where}")


def _genesis(
    name: str,
    assets: Sequence[Asset],
    issuers: Mapping[str, tuple[str, bytes]],
    k: int,
    ca_certificate: bytes,
    keys: Sequence[NodeKey],
    now_ms: int,
    operator: Ed25519PrivateKey,
) -> Genesis:
    codes = [asset.code for asset in assets]
    if not codes or len(set(codes)) != len(codes):
        raise LocalMisuse(f"the assets are {', '.join(codes) or 'none'}: name at least one, each once (CZK:2)")
    genesis = Genesis(
        version=1,
        name=name,
        assets=tuple(assets),
        issuers=tuple(Issuer(account, asset, key.hex()) for account, (asset, key) in issuers.items()),
        k=k,
        ca=ca_certificate.decode(),
        members=tuple(GenesisMember(key.public_key.hex()) for key in keys),
        time_ms=now_ms,
        operator=raw_public_key(operator).hex(),
    )
    return decode_genesis(encode_genesis(genesis))  # its reader's checks, before anything is written


def _claim(directory: Path) -> bool:
    """True when the directory was made; False when it was there and empty."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        if not directory.is_dir() or any(directory.iterdir()):
            raise LocalMisuse(f"{directory} exists and is not an empty directory: name a new one") from None
        return False
    except OSError as error:
        raise LocalMisuse(f"{directory} cannot be made ({error.strerror}): make its parent directory first") from None
    return True


def _empty(directory: Path, *, and_itself: bool) -> None:
    """Remove what a failed init left in a directory that was empty before it."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    if and_itself:
        directory.rmdir()


def _seeds(places: Sequence[NodePlace], me: NodePlace) -> tuple[Peer, ...]:
    return tuple(Peer(place.id, place.host, place.port) for place in places if place is not me)


def _write_network(
    directory: Path,
    genesis: Genesis,
    places: tuple[NodePlace, ...],
    ca_certificate: bytes,
    ca_key: bytes,
    operator: Ed25519PrivateKey,
) -> None:
    (directory / GENESIS_FILE).write_bytes(encode_genesis(genesis))
    (directory / CA_CERTIFICATE).write_bytes(ca_certificate)
    write_places(directory, genesis, places)
    write_secret(directory / CA_KEY, ca_key)
    write_secret(directory / OPERATOR_KEY, private_key_pem(operator))


def write_places(directory: Path, genesis: Genesis, places: Sequence[NodePlace]) -> None:
    """Make network.toml: where the nodes are. Whoever reads it while it is replaced gets the old one or the new one."""
    file = NetworkFile(genesis.name, genesis.network_id.hex(), tuple(places))
    write_whole(directory / NETWORK_FILE, msgspec.toml.encode(file))


def write_node(
    directory: Path, key: NodeKey, certificate: bytes, genesis: Genesis, config: NodeConfig, network_key: bytes
) -> None:
    """Make the directory of one node, with all that it needs to start."""
    directory.mkdir(mode=0o700)
    (directory / NODE_CERTIFICATE).write_bytes(certificate)
    (directory / GENESIS_FILE).write_bytes(encode_genesis(genesis))
    (directory / CONFIG_FILE).write_bytes(encode_config(config))
    write_secret(directory / NODE_KEY, private_key_pem(key.private))
    write_secret(directory / NETWORK_KEY, network_key)

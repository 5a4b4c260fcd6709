"""An invitation: one file that lets one new node join one network, until a day.

`hopchain invite` makes it where the network's ca.key and operator.key are. It holds the new node's key and certificate,
the network's key, where the present nodes are, and the operator's signed change that adds the node; so it is a secret,
a file with mode 0600. Whoever has it is that node: it is for one machine, and worth nothing once its node was removed,
for ids never come back. An observer's has no change: it follows the network and never votes.

`make_node_directory` turns it into the directory of a node and may be repeated: config.toml is put there last, and a
directory without it is made anew from the same invitation.
"""

import base64
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.errors import LocalMisuse, RemoteFault
from chain.genesis import Genesis, decode_genesis, encode_genesis
from hopchain.change import (
    FIRST_INCARNATION,
    Change,
    ChangeAction,
    SignedChange,
    check_change_untrusted,
    sign_change,
)
from hopchain.durable import sync_name, write_secret
from hopchain.signing import private_key_pem
from node.config import CONFIG_FILE, NodeConfig, Peer, read_config
from node.layout import (
    NETWORK_KEY_BYTES,
    NOWHERE,
    NodePlace,
    put_in_place,
    read_genesis,
    write_node,
    write_places,
)
from node.pki import (
    NODE_DAYS,
    NODE_KEY,
    NodeKey,
    certificate_matches,
    make_node_certificate,
    node_key,
    parse_private_key,
    read_node_key,
    read_secret,
)

INVITE_VERSION: Final = 1
MAX_EXPIRY_MS: Final = 30 * 24 * 3600 * 1000  # of an invitation: a month
_STAGING: Final = ".join"


class Invite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file. `genesis`: genesis.json as text; `network_key`, `change`, `signature`: base64 (the last two empty for
    an observer); `seeds`: nodes of the network; `expires_ms`: Unix milliseconds."""

    version: int
    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    network_id: str
    genesis: str
    node_key: str
    node_crt: str
    network_key: str
    seeds: Annotated[tuple[NodePlace, ...], msgspec.Meta(min_length=1)]
    change: str
    signature: str
    expires_ms: int
    observer: bool

    def __repr__(self) -> str:
        """Without its secrets."""
        return f"Invite(name={self.name!r}, network_id={self.network_id!r}, expires_ms={self.expires_ms})"


class Invitation(msgspec.Struct, frozen=True):
    """An invitation, read and checked. `change` is None for an observer."""

    name: str
    genesis: Genesis
    key: NodeKey
    certificate: bytes
    network_key: bytes
    seeds: tuple[NodePlace, ...]
    change: SignedChange | None
    expires_ms: int

    def __repr__(self) -> str:
        """Without its secrets."""
        return f"Invitation(name={self.name!r}, node={self.key.id.hex()}, expires_ms={self.expires_ms})"

    @property
    def observer(self) -> bool:
        """True when its node follows and never votes."""
        return self.change is None


def make_invite(
    name: str,
    genesis: Genesis,
    ca_key: bytes,
    operator: Ed25519PrivateKey,
    network_key: bytes,
    seeds: Sequence[NodePlace],
    *,
    now_ms: int,
    expires_ms: int,
    observer: bool = False,
    days: int = NODE_DAYS,
) -> Invite:
    """An invitation with a new key; `days` is how long its certificate is valid. `LocalMisuse` says what is wrong."""
    if not 0 < expires_ms - now_ms <= MAX_EXPIRY_MS:
        raise LocalMisuse(
            f"an invitation for {(expires_ms - now_ms) // 1000} s: it must be more than 0 and at most "
            f"{MAX_EXPIRY_MS // 1000} (30 days)"
        )
    key = node_key(Ed25519PrivateKey.generate())
    certificate = make_node_certificate(genesis.ca.encode(), ca_key, key.public_key, now_ms, days)
    change = signature = b""
    if not observer:
        wanted = Change(genesis.network_id, ChangeAction.ADD, key.public_key, FIRST_INCARNATION, expires_ms)
        signed = sign_change(wanted, operator)
        try:
            check_change_untrusted(signed, genesis, now_ms)
        except RemoteFault:
            raise LocalMisuse(
                f"operator.key is not the operator's of network {genesis.name}: nobody would accept the invitation"
            ) from None
        change, signature = signed.raw, signed.signature
    return Invite(
        version=INVITE_VERSION,
        name=name,
        network_id=genesis.network_id.hex(),
        genesis=encode_genesis(genesis).decode(),
        node_key=private_key_pem(key.private).decode(),
        node_crt=certificate.decode(),
        network_key=base64.b64encode(network_key).decode(),
        seeds=tuple(seeds),
        change=base64.b64encode(change).decode(),
        signature=base64.b64encode(signature).decode(),
        expires_ms=expires_ms,
        observer=observer,
    )


def write_invite(path: Path, invite: Invite) -> None:
    """Make the file, mode 0600. `LocalMisuse` when it exists."""
    write_secret(path, msgspec.json.format(msgspec.json.encode(invite)) + b"\n")


def check_expiry(invitation: Invitation, now_ms: int, where: str) -> None:
    """`LocalMisuse` when the invitation may not be used any more."""
    if now_ms > invitation.expires_ms:
        minutes = (now_ms - invitation.expires_ms) // 60_000
        raise LocalMisuse(
            f"{where} expired {minutes} min ago: make a new one with `hopchain invite` (or this machine's clock is wrong)"
        )


def load_invite(path: Path) -> Invitation:
    """The invitation in `path`, whether or not it has expired (`check_expiry`): a node that has begun to join goes on.
    `LocalMisuse` when others may read it, it is damaged or forged."""
    raw = read_secret(path, "`hopchain invite` makes it")
    try:
        invite = msgspec.json.decode(raw, type=Invite)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LocalMisuse(f"{path} is not an invitation: {error}") from None
    if invite.version != INVITE_VERSION:
        raise LocalMisuse(f"{path} has version {invite.version}; this program reads version {INVITE_VERSION}")
    try:
        return _check(invite)
    except (LocalMisuse, RemoteFault) as error:
        raise LocalMisuse(f"{path} is damaged or forged: {error}; make a new one with `hopchain invite`") from None


def _check(invite: Invite) -> Invitation:
    genesis = decode_genesis(invite.genesis.encode())
    if genesis.network_id.hex() != invite.network_id:
        raise LocalMisuse(
            f"it names network {invite.network_id[:16]} and holds the genesis of {genesis.network_id.hex()[:16]}"
        )
    key = node_key(parse_private_key(invite.node_key.encode(), "its node_key"))
    certificate_matches(invite.node_crt.encode(), "its node_crt", genesis.ca, key.id)
    network_key = _bytes(invite.network_key, "network_key")
    if len(network_key) != NETWORK_KEY_BYTES:
        raise LocalMisuse(f"its network_key has {len(network_key)} bytes, not {NETWORK_KEY_BYTES}")
    change = None
    if not invite.observer:
        change = SignedChange(_bytes(invite.change, "change"), _bytes(invite.signature, "signature"))
        wanted = check_change_untrusted(change, genesis, 0)
        if wanted != Change(genesis.network_id, ChangeAction.ADD, key.public_key, FIRST_INCARNATION, invite.expires_ms):
            raise LocalMisuse(f"its change is not that which adds node {key.id.hex()} until the invitation expires")
    return Invitation(
        invite.name, genesis, key, invite.node_crt.encode(), network_key, invite.seeds, change, invite.expires_ms
    )


def _bytes(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise LocalMisuse(f"its {what} is not base64") from None


# --- the new node's directory --------------------------------------------------------------------------------------


def is_begun(invitation: Invitation, data: Path) -> bool:
    """True when `data` is the complete directory of this invitation's node; `LocalMisuse` when it is another's."""
    if not (data / NODE_KEY).exists():
        return False
    there = read_node_key(data)
    if there.id != invitation.key.id:
        raise LocalMisuse(
            f"{data} is the directory of node {there.id.hex()[:16]}, the invitation is for node "
            f"{invitation.key.id.hex()[:16]}: name another directory"
        )
    if not (data / CONFIG_FILE).exists():
        return False
    if read_genesis(data).network_id != invitation.genesis.network_id:
        raise LocalMisuse(f"{data} is of another network than the invitation: name another directory")
    return True


def make_node_directory(
    invitation: Invitation,
    data: Path,
    host: str,
    port: int,
    client_port: int,
    advertise_host: str | None = None,
) -> NodeConfig:
    """The directory of the invited node, and its settings; what is complete already stays as it is.

    `host`: address to listen on; `advertise_host`: address under which others reach it, `host` when None. `LocalMisuse`
    when `data` is another node's, or holds anything else.
    """
    staging = data / _STAGING
    if is_begun(invitation, data):
        shutil.rmtree(staging, ignore_errors=True)
        return read_config(data)
    advertised = advertise_host or host
    if advertised in NOWHERE:
        raise LocalMisuse(f"nobody can reach a node at {advertised!r}: say under which address with --advertise-host")
    if port == client_port:
        raise LocalMisuse(f"port and client port are both {port}: choose two")
    try:
        missing = [path for path in (data, *data.parents) if not path.exists()]
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in missing:
            sync_name(path)
    except OSError as error:
        raise LocalMisuse(f"{data} cannot be made ({error.strerror}): name a directory of your own") from None
    shutil.rmtree(staging, ignore_errors=True)
    peers = tuple(Peer(seed.id, seed.host, seed.port) for seed in invitation.seeds)
    try:
        config = msgspec.convert(
            {"host": host, "port": port, "client_port": client_port, "advertise_host": advertised}, NodeConfig
        )
    except msgspec.ValidationError as error:
        raise LocalMisuse(f"{host}, ports {port} and {client_port}, advertised as {advertised}: {error}") from None
    config = msgspec.structs.replace(config, peers=peers)
    write_node(staging, invitation.key, invitation.certificate, invitation.genesis, config, invitation.network_key)
    write_places(staging, invitation.genesis, invitation.seeds)
    ours = {path.name for path in staging.iterdir()}
    others = sorted(path.name for path in data.iterdir() if path.name not in ours | {_STAGING})
    if others:
        shutil.rmtree(staging)
        raise LocalMisuse(f"{data} is no node's directory and holds {', '.join(others[:3])}: name a new one")
    put_in_place(staging, data, last=CONFIG_FILE)
    return config

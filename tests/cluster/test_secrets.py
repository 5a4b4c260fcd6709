"""Secrets stay in their files: they are in nothing else that nodes and commands write or print at their most talkative,
on no command line and in no environment."""

import base64
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from node.config import CONFIG_FILE, encode_config, read_config
from node.layout import CA_KEY, NETWORK_KEY, OPERATOR_KEY
from node.pki import NODE_KEY
from tests.cluster.cluster import NodeProcess
from tests.cluster.commands import joined_node, operating
from tests.cluster.grow import Growing

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def talkative(node: NodeProcess) -> None:
    config = msgspec.structs.replace(read_config(node.directory), log_level="debug")
    (node.directory / CONFIG_FILE).write_bytes(encode_config(config))


def is_secret(path: Path) -> bool:
    return path.suffix in {".key", ".invite"}


def bare(secret: bytes) -> bytes:
    """The number that is the secret, in bytes."""
    if not secret.startswith(b"-----BEGIN"):
        return secret
    key = load_pem_private_key(secret, None)
    if isinstance(key, EllipticCurvePrivateKey):
        return key.private_numbers().private_value.to_bytes(key.key_size // 8)
    assert isinstance(key, Ed25519PrivateKey)
    return key.private_bytes_raw()


def forms(path: Path) -> set[bytes]:
    """How the secret in a file could be written elsewhere."""
    raw = bare(path.read_bytes())
    assert len(raw) == 32, path
    in_base64 = {base64.b64encode(raw), base64.urlsafe_b64encode(raw)}
    escaped = repr(raw)[2:-1].encode()
    return {raw, raw.hex().encode(), raw.hex().upper().encode(), escaped, *(text.rstrip(b"=") for text in in_base64)}


def words_of(process: int) -> bytes:
    """The command line and the environment of a process, as the kernel shows them; nothing for one that has ended."""
    found = b""
    for name in ("cmdline", "environ"):
        try:
            found += Path(f"/proc/{process}/{name}").read_bytes()
        except OSError:
            continue
    return found


def processes() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


async def test_secrets_are_in_their_files_only(tmp_path: Path) -> None:
    cluster = Growing(tmp_path / "net", 3)
    for node in cluster.nodes:
        talkative(node)
    shown: dict[str, bytes] = {}

    def look() -> None:
        shown.update((f"process {process}, after {len(shown)}", words_of(process)) for process in processes())

    async with cluster.growing():
        with operating(cluster.network.directory, tmp_path) as operator:
            network = ("--network", str(cluster.network.directory))
            await operator.run("account", "open", "alice", "bob", "--asset", "CZK", *network)
            rejected = operator.start("transfer", "alice", "bob", "1", *network)
            assert await rejected.ended() == 1
            for words in (("status",), ("doctor",), ("balance", "alice"), ("member", "list"), ("chain", "alice")):
                await operator.run(*words, *network)
            invite = await operator.invite()
            joining = operator.join(invite, tmp_path / "new", "--observer")
            await joining.wait_told("observing")
            look()
            await joining.stop()
            new = joined_node(invite, tmp_path / "new")
            talkative(new)
            joining = operator.join(invite, tmp_path / "new")
            await joining.wait_told("member")
            look()
            await joining.stop()
        look()
    check(tmp_path, shown)


def check(directory: Path, shown: dict[str, bytes]) -> None:
    """No secret below `directory` is in another file there, or in what processes showed."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    secrets = {path: forms(path) for path in files if path.suffix == ".key"}
    names = [path.name for path in secrets]
    assert sorted(names) == sorted(
        [CA_KEY, OPERATOR_KEY, "alice.key", "bob.key", *[NODE_KEY, NETWORK_KEY] * 4, NETWORK_KEY]
    )
    shown.update((str(path), path.read_bytes()) for path in files if not is_secret(path))
    assert sum(b" DEBUG " in text for text in shown.values()) >= 3, "nodes that do not talk show nothing"
    for path, written in secrets.items():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        for place, text in shown.items():
            assert not any(form in text for form in written), f"{path} is in {place}"

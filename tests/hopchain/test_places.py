"""A client from a network's directory, keys from their files; each file that is wrong is named."""

import os
import random
import re
import stat
from pathlib import Path

import anyio
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from chain.errors import LocalMisuse
from chain.genesis import encode_genesis
from chain.request import NetworkId
from cli.wallet import Wallet
from hopchain import Status, load_key, open_network, store_key, wallet_file
from tests.hopchain.fake_node import key_number
from tests.hopchain.test_client import BACKENDS, World, running

NETWORK = NetworkId(random.Random(1).randbytes(32))


def directory_of(world: World, tmp_path: Path) -> Path:
    nodes = "".join(
        f'[[nodes]]\nname = "node-{n}"\nid = "{node.id.hex()}"\nhost = "{node.address[0]}"\nport = 1\nclient_port = {node.address[1]}\n'
        for n, node in enumerate(world.nodes, 1)
    )
    (tmp_path / "genesis.json").write_bytes(encode_genesis(world.genesis))
    (tmp_path / "network.toml").write_text(f'name = "test"\nnetwork_id = "{world.genesis.network_id.hex()}"\n{nodes}')
    return tmp_path


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_directory_gives_a_client_of_all_its_nodes(backend: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with running(World(2)) as world, open_network(directory_of(world, tmp_path), spread=True) as client:
            assert client.network == world.genesis.network_id
            seen = [await client.status() for _ in range(2)]
            assert all(isinstance(status, Status) for status in seen)
            assert all(node.calls for node in world.nodes), "each was asked"
            for node in world.nodes:
                node.stop()

    with_limit(main, backend)


def with_limit(main: object, backend: str) -> None:
    async def limited() -> None:
        with anyio.fail_after(20):
            await main()  # type: ignore[operator]

    anyio.run(limited, backend=backend)


def test_a_directory_that_is_none_says_which_file(tmp_path: Path) -> None:
    world = World(0)
    with pytest.raises(LocalMisuse, match=r"nowhere/genesis.json cannot be read: No such file"):
        open_network(tmp_path / "nowhere")
    directory_of(world, tmp_path)
    (tmp_path / "network.toml").write_bytes(b"\xff")
    with pytest.raises(LocalMisuse, match=r"network.toml cannot be read: .*"):
        open_network(tmp_path)
    (tmp_path / "network.toml").write_text("nodes = 5")
    with pytest.raises(LocalMisuse, match=r"network.toml cannot be read: .*"):
        open_network(str(tmp_path))
    (tmp_path / "network.toml").write_text(f'network_id = "{NETWORK.hex()}"\nnodes = []')
    with pytest.raises(LocalMisuse, match=f"is of network {NETWORK.hex()[:16]}, genesis.json of"):
        open_network(tmp_path)
    directory_of(world, tmp_path).joinpath("network.toml").unlink()
    with pytest.raises(LocalMisuse, match=r"network.toml cannot be read: No such file"):
        open_network(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"version": 2}, "the genesis file has version 2; this program reads version 1"),
        ({"k": 0}, "k is 0; it must be 1 to 64"),
        ({"k": "8"}, "the genesis file cannot be read: Expected `int`"),
    ],
)
def test_a_genesis_file_that_is_wrong_is_named(tmp_path: Path, wrong: dict[str, object], says: str) -> None:
    directory = directory_of(World(0), tmp_path)
    file = directory / "genesis.json"
    file.write_bytes(msgspec.json.encode({**msgspec.json.decode(file.read_bytes()), **wrong}))
    with pytest.raises(LocalMisuse, match=re.escape(f"{file}: {says}")):
        open_network(directory)


def test_a_key_is_where_the_command_line_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPCHAIN_HOME", str(tmp_path))
    key = key_number(1)
    Wallet(NETWORK).add("alice", key)
    file = wallet_file(NETWORK, "alice")
    assert file == Wallet(NETWORK).path("alice")
    assert load_key(str(file)).private_bytes_raw() == key.private_bytes_raw()
    with pytest.raises(LocalMisuse, match=r"'../alice' is not an account name"):
        wallet_file(NETWORK, "../alice")
    monkeypatch.delenv("HOPCHAIN_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert wallet_file(NETWORK, "alice") == Wallet(NETWORK).path("alice")


def test_a_key_that_is_stored_is_the_key_that_is_loaded_and_is_never_replaced(tmp_path: Path) -> None:
    file = tmp_path / "home" / "wallet" / "alice.key"
    before = os.umask(0)
    try:
        store_key(str(file), key_number(1))
    finally:
        os.umask(before)
    assert load_key(file).private_bytes_raw() == key_number(1).private_bytes_raw()
    modes = [stat.S_IMODE(place.stat().st_mode) for place in (file, file.parent, file.parent.parent)]
    assert modes == [0o600, 0o700, 0o700]
    with pytest.raises(
        LocalMisuse, match=r"alice.key exists and is not replaced: load_key reads the key that it holds"
    ):
        store_key(file, key_number(2))
    assert load_key(file).private_bytes_raw() == key_number(1).private_bytes_raw()


def test_a_stored_key_is_where_the_command_line_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPCHAIN_HOME", str(tmp_path))
    store_key(wallet_file(NETWORK, "alice"), key_number(1))
    assert Wallet(NETWORK).key("alice").private_bytes_raw() == key_number(1).private_bytes_raw()


def test_a_key_and_its_name_are_on_disk_when_it_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, synced = os.fsync, []

    def fsync(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    store_key(tmp_path / "new" / "alice.key", key_number(1))
    assert synced == [tmp_path, tmp_path / "new" / "alice.key", tmp_path / "new"]


def test_a_key_that_cannot_be_stored_leaves_nothing_and_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalMisuse, match=r"file/alice.key cannot be written: Not a directory"):
        store_key(tmp_path / "file" / "alice.key", key_number(1))
    with pytest.raises(LocalMisuse, match=r"is for an Ed25519PrivateKey, and this is bytes"):
        store_key(tmp_path / "alice.key", key_number(1).private_bytes_raw())  # type: ignore[arg-type]
    real = os.fsync
    for bad in (1, 2):  # of the file, of its name
        left = [bad]

        def fsync(handle: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise OSError(28, "No space left on device")
            real(handle)

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(LocalMisuse, match=r"alice.key cannot be written: No space left on device"):
            store_key(tmp_path / "alice.key", key_number(1))
        assert [place.name for place in tmp_path.iterdir()] == ["file"]
    monkeypatch.setattr(os, "fsync", real)
    store_key(tmp_path / "alice.key", key_number(1))


def test_a_key_that_is_no_file_is_told_and_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "alice.key").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "bob.key", 0o600)
    for account in ("alice", "bob"):
        with pytest.raises(LocalMisuse, match=rf"{account}\.key is not a file: .* from a copy"):
            load_key(tmp_path / f"{account}.key")


def test_a_key_that_vanishes_while_it_is_looked_at_is_read_or_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mode is that of the file that was opened, whatever has its name by then."""
    file = tmp_path / "alice.key"
    store_key(file, key_number(1))
    fstat = os.fstat

    def vanishing(handle: int) -> os.stat_result:
        file.unlink(missing_ok=True)
        return fstat(handle)

    monkeypatch.setattr(os, "fstat", vanishing)
    assert load_key(file).private_bytes_raw() == key_number(1).private_bytes_raw()
    with pytest.raises(LocalMisuse, match="cannot be read"):
        load_key(file)


def test_what_is_no_key_of_ones_own_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "alice.key"
    with pytest.raises(
        LocalMisuse, match=r"alice.key cannot be read \(No such file or directory\): .* restore it from a copy"
    ):
        load_key(file)
    form = Encoding.PEM, PrivateFormat.PKCS8
    file.write_bytes(key_number(1).private_bytes(*form, NoEncryption()))
    file.chmod(0o644)
    with pytest.raises(LocalMisuse, match=r"has mode 0644: others can read this key. Run: chmod 600"):
        load_key(file)
    file.chmod(0o600)
    assert load_key(file).private_bytes_raw() == key_number(1).private_bytes_raw()
    for wrong in (
        b"junk",
        generate_private_key(SECP256R1()).private_bytes(*form, NoEncryption()),
        key_number(1).private_bytes(*form, BestAvailableEncryption(b"password")),
    ):
        file.write_bytes(wrong)
        with pytest.raises(LocalMisuse, match="does not hold an Ed25519 private key in PEM without a password"):
            load_key(file)

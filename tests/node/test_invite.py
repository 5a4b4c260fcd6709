"""Invitations: what they hold, what is refused, and the directory that one becomes."""

import base64
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.errors import LocalMisuse
from hopchain.change import ChangeAction, decode_change_untrusted, is_change_signed_by, sign_change
from hopchain.signing import private_key_pem
from node import invite as module
from node.config import Peer, read_config
from node.invite import (
    Invitation,
    Invite,
    check_expiry,
    is_begun,
    load_invite,
    make_invite,
    make_node_directory,
    write_invite,
)
from node.layout import CA_KEY, OPERATOR_KEY, Network, read_genesis, read_network, read_network_key
from node.pki import node_contexts, read_node_key, read_private_key, read_secret
from tests.node.wires import NOW_MS, Disk, new_layout

HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return new_layout(tmp_path_factory.mktemp("network") / "net", 2)


def invite_of(network: Network, *, observer: bool = False, name: str = "node-9", expires_ms: int = HOUR_MS) -> Invite:
    return make_invite(
        name,
        network.genesis,
        read_secret(network.directory / CA_KEY),
        read_private_key(network.directory / OPERATOR_KEY),
        read_network_key(network.node_directory(network.nodes[0])),
        network.nodes,
        now_ms=NOW_MS,
        expires_ms=NOW_MS + expires_ms,
        observer=observer,
        days=36_500,
    )


@pytest.fixture
def made(network: Network) -> Invite:
    return invite_of(network)


def written(path: Path, invite: Invite) -> Path:
    write_invite(path, invite)
    return path


def read_invite(path: Path, now_ms: int) -> Invitation:
    """As a node that begins to join."""
    found = load_invite(path)
    check_expiry(found, now_ms, str(path))
    return found


def invitation(tmp_path: Path, invite: Invite, name: str = "one.invite") -> Invitation:
    return read_invite(written(tmp_path / name, invite), NOW_MS)


# --- the file ---


def test_an_invitation_holds_what_a_node_needs_and_the_operators_word(
    network: Network, made: Invite, tmp_path: Path
) -> None:
    path = written(tmp_path / "one.invite", made)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = read_invite(path, NOW_MS + HOUR_MS)
    assert (found.name, found.genesis, found.seeds, found.observer) == ("node-9", network.genesis, network.nodes, False)
    assert found.change is not None
    assert is_change_signed_by(found.change, bytes.fromhex(network.genesis.operator))
    change = decode_change_untrusted(found.change.raw)
    assert (change.action, change.node_id, change.incarnation) == (ChangeAction.ADD, found.key.id, 1)
    assert (change.network, change.expires_ms) == (network.network_id, NOW_MS + HOUR_MS)
    assert found.key.id not in {node.node_id for node in network.nodes}


def test_every_invitation_is_for_another_node(network: Network) -> None:
    assert invite_of(network).node_key != invite_of(network).node_key


def test_an_observers_invitation_changes_nothing(network: Network, tmp_path: Path) -> None:
    found = invitation(tmp_path, invite_of(network, observer=True))
    assert found.observer
    assert found.change is None


def test_nothing_that_prints_an_invitation_prints_its_secrets(made: Invite, tmp_path: Path) -> None:
    for shown in (repr(made), repr(invitation(tmp_path, made))):
        assert "PRIVATE" not in shown
        assert made.network_key not in shown


def test_an_invitation_is_never_written_over(made: Invite, tmp_path: Path) -> None:
    path = written(tmp_path / "one.invite", made)
    with pytest.raises(LocalMisuse, match="exists and is not replaced"):
        write_invite(path, made)


def test_one_that_others_can_read_is_refused(made: Invite, tmp_path: Path) -> None:
    path = written(tmp_path / "one.invite", made)
    path.chmod(0o640)
    with pytest.raises(LocalMisuse, match="has mode 0640"):
        load_invite(path)
    with pytest.raises(LocalMisuse, match="`hopchain invite` makes it"):
        load_invite(tmp_path / "none")


def test_an_expired_one_is_read_only_to_go_on(made: Invite, tmp_path: Path) -> None:
    path = written(tmp_path / "one.invite", made)
    with pytest.raises(LocalMisuse, match="expired 2 min ago: make a new one"):
        read_invite(path, NOW_MS + HOUR_MS + 120_000)
    assert load_invite(path).expires_ms == NOW_MS + HOUR_MS


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff\xfe", b'{"version": 1}'])
def test_what_is_no_invitation(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "one.invite"
    path.touch(0o600)
    path.write_bytes(text)
    with pytest.raises(LocalMisuse, match="is not an invitation"):
        load_invite(path)


@pytest.mark.parametrize("expires_ms", [0, -1, module.MAX_EXPIRY_MS + 1])
def test_an_invitation_must_expire_and_not_too_late(network: Network, expires_ms: int) -> None:
    with pytest.raises(LocalMisuse, match="at most 2592000"):
        invite_of(network, expires_ms=expires_ms)


def test_only_the_networks_own_operator_and_ca_make_one(network: Network, tmp_path: Path) -> None:
    other = new_layout(tmp_path / "other", 1)
    for ca, operator, says in (
        (network, other, "operator.key is not the operator's"),
        (other, network, "CA key is not that of the CA certificate"),
    ):
        with pytest.raises(LocalMisuse, match=says):
            make_invite(
                "node-9",
                network.genesis,
                read_secret(ca.directory / CA_KEY),
                read_private_key(operator.directory / OPERATOR_KEY),
                bytes(32),
                network.nodes,
                now_ms=NOW_MS,
                expires_ms=NOW_MS + HOUR_MS,
            )


def replaced(**fields: object) -> Callable[[Invite, Invite], Invite]:
    return lambda made, other: msgspec.structs.replace(made, **fields)


def taken(*names: str) -> Callable[[Invite, Invite], Invite]:
    return lambda made, other: msgspec.structs.replace(made, **{name: getattr(other, name) for name in names})


def signed_by_itself(made: Invite, other: Invite) -> Invite:
    signed = sign_change(decode_change_untrusted(base64.b64decode(made.change)), Ed25519PrivateKey.generate())
    return msgspec.structs.replace(made, signature=base64.b64encode(signed.signature).decode())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (replaced(version=2), "has version 2"),
        (replaced(network_id="00" * 32), "it names network 0000000000000000 and holds the genesis of"),
        (replaced(genesis="{}"), "the genesis file cannot be read"),
        (replaced(node_key="hello"), "its node_key is not an unencrypted private key"),
        (replaced(node_crt="hello"), "its node_crt is not a certificate"),
        (replaced(network_key="AAAA"), "its network_key has 3 bytes, not 32"),
        (replaced(network_key="?"), "its network_key is not base64"),
        (replaced(change=""), "0 bytes are not a change"),
        (replaced(signature=""), "is not signed by the operator"),
        (replaced(expires_ms=NOW_MS + 10 * HOUR_MS), "its change is not that which adds node"),
        (signed_by_itself, "is not signed by the operator"),
        (taken("node_crt"), "its node_crt is not the certificate of node"),
        (taken("change", "signature"), "its change is not that which adds node"),
        (taken("node_key", "node_crt"), "its change is not that which adds node"),
    ],
)
def test_a_damaged_or_forged_one_says_what_is_wrong(
    network: Network, made: Invite, tmp_path: Path, damage: Callable[[Invite, Invite], Invite], says: str
) -> None:
    path = written(tmp_path / "one.invite", damage(made, invite_of(network)))
    with pytest.raises(LocalMisuse, match=says) as caught:
        load_invite(path)
    assert "PRIVATE" not in str(caught.value)


def test_a_certificate_of_another_networks_ca_is_refused(network: Network, made: Invite, tmp_path: Path) -> None:
    other = new_layout(tmp_path / "other", 1)
    path = written(tmp_path / "one.invite", taken("node_key", "node_crt")(made, invite_of(other)))
    with pytest.raises(LocalMisuse, match="its node_crt is not signed by the CA"):
        load_invite(path)


# --- the directory ---


def test_the_directory_is_a_nodes_and_a_networks(network: Network, made: Invite, tmp_path: Path) -> None:
    found = invitation(tmp_path, made)
    data = tmp_path / "deep/data"
    config = make_node_directory(found, data, "127.0.0.1", 5001, 5002)
    assert read_config(data) == config
    assert (config.host, config.port, config.client_port, config.advertise_host) == (
        "127.0.0.1",
        5001,
        5002,
        "127.0.0.1",
    )
    assert config.peers == tuple(Peer(node.id, node.host, node.port) for node in network.nodes)
    assert read_node_key(data).id == found.key.id
    assert read_network_key(data) == read_network_key(network.node_directory(network.nodes[0]))
    assert read_genesis(data) == network.genesis
    node_contexts(data, network.genesis.ca)
    assert read_network(data).nodes == network.nodes
    for name in ("node.key", "network.key"):
        assert stat.S_IMODE((data / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert not (data / ".join").exists()


def test_the_same_invitation_again_changes_nothing(made: Invite, tmp_path: Path) -> None:
    found = invitation(tmp_path, made)
    data = tmp_path / "data"
    assert not is_begun(found, data)
    first = make_node_directory(found, data, "127.0.0.1", 5001, 5002)
    assert is_begun(found, data)
    (data / "node.db").write_text("links")
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    assert make_node_directory(found, data, "127.0.0.1", 6001, 6002) == first
    assert {path.name: path.read_bytes() for path in data.iterdir()} == before


@pytest.mark.parametrize("files", range(7))
def test_a_join_killed_while_the_files_were_made_goes_on(
    made: Invite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    """All six files and what comes before and after them: after the n-th, nothing more was done."""
    found = invitation(tmp_path, made)
    data = tmp_path / "data"
    real, moved = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        if len(moved) == files:
            raise KeyboardInterrupt
        moved.append(self.name)
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        if files < 6:
            with pytest.raises(KeyboardInterrupt):
                make_node_directory(found, data, "127.0.0.1", 5001, 5002)
            assert not is_begun(found, data)
        else:
            make_node_directory(found, data, "127.0.0.1", 5001, 5002)
            (data / ".join").mkdir()
    make_node_directory(found, data, "127.0.0.1", 5001, 5002)
    assert is_begun(found, data)
    assert sorted(path.name for path in data.iterdir()) == [
        "config.toml", "genesis.json", "network.key", "network.toml", "node.crt", "node.key",
    ]  # fmt: skip


def test_a_power_cut_leaves_a_directory_that_is_whole_or_begun_anew(
    made: Invite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """config.toml says that all is there: when it has its name, so have the others, with their content."""
    found, data = invitation(tmp_path, made), tmp_path / "new/data"
    disk = Disk(monkeypatch)
    lost: dict[str, list[Path]] = {}
    disk.on_rename = lambda target: lost.update({target.name: disk.lost(data)})
    make_node_directory(found, data, "127.0.0.1", 5001, 5002)
    assert len(lost) == 6
    assert list(lost)[-1] == "config.toml"
    assert lost["config.toml"] == disk.lost(tmp_path / "new") == []


def test_another_nodes_directory_is_left_alone(network: Network, made: Invite, tmp_path: Path) -> None:
    data = tmp_path / "data"
    make_node_directory(invitation(tmp_path, made), data, "127.0.0.1", 5001, 5002)
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    other = invitation(tmp_path, invite_of(network), "two.invite")
    with pytest.raises(LocalMisuse, match=r"is the directory of node .* the invitation is for node"):
        make_node_directory(other, data, "127.0.0.1", 5001, 5002)
    assert {path.name: path.read_bytes() for path in data.iterdir()} == before


def test_a_directory_of_other_things_is_left_alone(made: Invite, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "thesis.txt").write_text("mine")
    with pytest.raises(LocalMisuse, match=r"is no node's directory and holds thesis\.txt: name a new one"):
        make_node_directory(invitation(tmp_path, made), data, "127.0.0.1", 5001, 5002)
    assert [path.name for path in data.iterdir()] == ["thesis.txt"]
    with pytest.raises(LocalMisuse, match="cannot be made"):
        make_node_directory(invitation(tmp_path, made, "2.invite"), data / "thesis.txt", "127.0.0.1", 1, 2)


def test_the_directory_of_another_network_is_refused(made: Invite, tmp_path: Path) -> None:
    found = invitation(tmp_path, made)
    data = tmp_path / "data"
    make_node_directory(found, data, "127.0.0.1", 5001, 5002)
    other = new_layout(tmp_path / "other", 1)
    (data / "genesis.json").write_bytes((other.directory / "genesis.json").read_bytes())
    with pytest.raises(LocalMisuse, match="is of another network than the invitation"):
        is_begun(found, data)


@pytest.mark.parametrize(
    ("host", "port", "client_port", "advertised", "says"),
    [
        ("0.0.0.0", 5001, 5002, None, "nobody can reach a node at '0.0.0.0'.*--advertise-host"),
        ("::", 5001, 5002, None, "nobody can reach"),
        ("127.0.0.1", 5001, 5002, "0.0.0.0", "nobody can reach"),
        ("127.0.0.1", 5001, 5001, None, "are both 5001"),
        ("127.0.0.1", 0, 5001, None, ">= 1"),
        ("no such host", 5000, 5001, None, "matching regex"),
    ],
)
def test_addresses_that_make_no_sense_are_refused_before_anything_is_made(
    made: Invite, tmp_path: Path, host: str, port: int, client_port: int, advertised: str | None, says: str
) -> None:
    data = tmp_path / "data"
    with pytest.raises(LocalMisuse, match=says):
        make_node_directory(invitation(tmp_path, made), data, host, port, client_port, advertised)
    assert not (data / "node.key").exists()


def test_a_node_that_listens_everywhere_says_where_it_is(made: Invite, tmp_path: Path) -> None:
    config = make_node_directory(invitation(tmp_path, made), tmp_path / "data", "0.0.0.0", 5001, 5002, "n9.example")
    assert (config.host, config.advertise_host) == ("0.0.0.0", "n9.example")


def test_the_key_in_the_directory_is_the_invitations(made: Invite, tmp_path: Path) -> None:
    found = invitation(tmp_path, made)
    make_node_directory(found, tmp_path / "data", "127.0.0.1", 5001, 5002)
    assert (tmp_path / "data/node.key").read_bytes() == private_key_pem(found.key.private)

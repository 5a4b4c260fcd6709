"""config.toml: what is written is read back, and every wrong line is named with what is allowed."""

from pathlib import Path

import msgspec
import pytest

from chain.errors import LocalMisuse
from node.config import ALLOWED, CONFIG_FILE, HOST_PATTERN, Limits, NodeConfig, Peer, encode_config, read_config

PEER = Peer("ab" * 20, "10.0.0.2", 7001)
FULL = NodeConfig("0.0.0.0", 7000, 7002, "node.example", "debug", (PEER,), Limits(client_connections=7))
GOOD = 'host = "::1"\nport = 1\nclient_port = 2\nadvertise_host = "n-1.example"\n'


def write(directory: Path, text: str) -> Path:
    (directory / CONFIG_FILE).write_text(text)
    return directory


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_bytes(encode_config(FULL))
    assert read_config(tmp_path) == FULL
    assert read_config(tmp_path).peers[0].node_id == bytes.fromhex("ab" * 20)


def test_what_may_be_left_out_has_defaults(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, GOOD))
    assert config == NodeConfig(
        "::1", 1, 2, "n-1.example", "info", (), Limits(512, 8 * 2**20, 32 * 2**20, 2 * 2**30, 16 * 2**20)
    )


BAD = [
    (GOOD + "prot = 7\n", ["unknown field `prot`", "the keys here are host, port, client_port, advertise_host"]),
    (
        GOOD.replace("port = 1\n", 'port = "x"\n', 1),
        ["port: Expected `int`, got `str`", "a whole number from 1 to 65535"],
    ),
    (GOOD.replace("port = 1\n", "port = 70000\n", 1), ["port: ", "a whole number from 1 to 65535"]),
    (GOOD.replace("client_port = 2\n", ""), ["client_port: Object missing required field"]),
    (GOOD.replace("client_port = 2", "client_port = 1"), ["port and client_port are both 1: choose two ports"]),
    (
        GOOD.replace("::1", "a b"),
        ["host: ", "a host name (parts of 1 to 63 characters between single dots) or an IP address"],
    ),
    (GOOD.replace("n-1.example", "n-1..example"), ["advertise_host: ", "parts of 1 to 63 characters"]),
    (
        GOOD + f'[[peers]]\nid = "{"ab" * 20}"\nhost = "{"n" * 64}.example"\nport = 1\n',
        ["peers[0].host: ", "parts of 1"],
    ),
    (GOOD + 'log_level = "loud"\n', ["log_level: ", "one of debug, info, warning, error"]),
    (GOOD + 'peers = "x"\n', ["peers: ", "a list of at most 1000 tables"]),
    (GOOD + f'[[peers]]\nid = "{"AB" * 20}"\nhost = "h"\nport = 1\n', ["peers[0].id: ", "40 hex digits"]),
    (GOOD + f'[[peers]]\nid = "{"ab" * 20}"\nhost = "h"\nport = 0\n', ["peers[0].port: ", "1 to 65535"]),
    (GOOD + f'[[peers]]\nid = "{"ab" * 20}"\nhost = "h"\n', ["peers[0].port: Object missing required field"]),
    (
        GOOD + "[limits]\nclients = 3\n",
        ["limits.clients: ", "the keys here are client_connections, client_queue_bytes"],
    ),
    (GOOD + "[limits]\nclient_connections = 0\n", ["limits.client_connections: ", "from 1 to 10000"]),
    (GOOD + "[limits]\npeer_queue_bytes = 5\n", ["limits.peer_queue_bytes: ", "at least 8388612"]),
    (GOOD + "[limits]\ndisk_reserve_bytes = -1\n", ["limits.disk_reserve_bytes: ", "at least 0"]),
    (GOOD + "port\n", ["is not TOML"]),
    ("\ud800", ["is not TOML"]),
]


@pytest.mark.parametrize(("text", "says"), BAD, ids=[says[0][:40] for _, says in BAD])
def test_what_is_wrong_is_named(tmp_path: Path, text: str, says: list[str]) -> None:
    (tmp_path / CONFIG_FILE).write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(LocalMisuse) as caught:
        read_config(tmp_path)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / CONFIG_FILE))
    for part in says:
        assert part in message


@pytest.mark.parametrize("last", ["", ".", "..", "a", "a."])
@pytest.mark.parametrize(
    "first", ["", ".", "a..", "n.", "-1.", "2001:db8::1", "10.0.0.1", "a" * 63, "a" * 64, "a." * 126]
)
def test_a_host_is_what_the_resolver_takes_for_a_name(first: str, last: str) -> None:
    host = first + last
    try:
        host.encode("idna")
        taken = 1 <= len(host) <= 253
    except UnicodeError:
        taken = False
    assert (HOST_PATTERN.fullmatch(host) is not None) is taken


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        LocalMisuse, match=r"config\.toml cannot be read \(No such file or directory\); copy it from the node"
    ):
        read_config(tmp_path)


def test_every_key_has_its_words() -> None:
    keys = {
        prefix + field.name
        for prefix, table in (("", NodeConfig), ("peers.", Peer), ("limits.", Limits))
        for field in msgspec.structs.fields(table)
    }
    assert set(ALLOWED) == keys

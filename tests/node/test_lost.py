"""A file that is gone or torn: each has its own advice, and none of them is to make another network."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from chain.errors import LocalMisuse
from node.config import CONFIG_FILE, read_config
from node.layout import (
    CA_KEY,
    GENESIS_FILE,
    NETWORK_FILE,
    NETWORK_KEY,
    OPERATOR_KEY,
    read_genesis,
    read_network,
    read_network_key,
)
from node.lost import LOST, unreadable
from node.pki import (
    NODE_CERTIFICATE,
    NODE_KEY,
    certified_key,
    make_ca,
    node_contexts,
    read_node_key,
    read_private_key,
    read_secret,
)
from tests.node.test_pki import NOW_MS, new_node

READ: dict[str, Callable[[Path], object]] = {
    NODE_KEY: read_node_key,
    NODE_CERTIFICATE: lambda d: certified_key(d / NODE_CERTIFICATE),
    CONFIG_FILE: read_config,
    GENESIS_FILE: read_genesis,
    NETWORK_FILE: read_network,
    NETWORK_KEY: read_network_key,
    CA_KEY: lambda d: read_secret(d / CA_KEY),
    OPERATOR_KEY: lambda d: read_private_key(d / OPERATOR_KEY),
}


def said(read: Callable[[Path], object], directory: Path) -> str:
    with pytest.raises(LocalMisuse) as caught:
        read(directory)
    return str(caught.value)


def test_each_file_has_a_phrase_and_no_other() -> None:
    assert set(READ) == set(LOST)
    assert not any("init" in advice for advice in LOST.values()), "that makes another network"


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("a_directory", [False, True])
def test_a_file_that_is_gone_is_told_with_what_to_do(tmp_path: Path, name: str, a_directory: bool) -> None:
    (tmp_path / (GENESIS_FILE if name == NETWORK_FILE else NETWORK_FILE)).write_bytes(b"")
    if a_directory:
        (tmp_path / name).mkdir()
    text = said(READ[name], tmp_path)
    assert name in text and LOST[name] in text and "hopchain init" not in text


@pytest.mark.parametrize("name", [NODE_KEY, NODE_CERTIFICATE, NETWORK_KEY, OPERATOR_KEY])
def test_so_is_one_that_is_torn(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"torn")
    (tmp_path / name).chmod(0o600)
    assert LOST[name] in said(READ[name], tmp_path)


def test_a_node_that_starts_says_it_too(tmp_path: Path) -> None:
    new_node(tmp_path, make_ca("test", NOW_MS))
    (tmp_path / NODE_CERTIFICATE).write_bytes(b"torn")
    ca = make_ca("test", NOW_MS)[0].decode()
    assert LOST[NODE_CERTIFICATE] in said(lambda d: node_contexts(d, ca), tmp_path)


def test_what_is_there_and_may_not_be_read_is_not_lost() -> None:
    for number in (errno.EACCES, errno.EPERM):
        text = unreadable(Path(NODE_KEY), OSError(number, os.strerror(number)))
        assert text.endswith("it must belong to the user who runs this") and LOST[NODE_KEY] not in text
    assert "look at the disk first; " in unreadable(Path(NODE_KEY), OSError(errno.EIO, os.strerror(errno.EIO)))
    assert "nothing makes it anew" in unreadable(Path("other"), OSError(errno.ENOENT, "gone"))

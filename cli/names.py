"""Names of nodes that are not, or no more, in network.toml: the file `names` in a network's or a node's directory.

A name is no part of the network: views hold ids, and what a node tells of itself holds none (ADR 27). `invite` writes
down whom it invited, `join` what its own node is called, `member list --save` who leaves network.toml. One line is one
node, its id and its name; the file may be copied and edited by hand. It is for people's eyes alone: what cannot be read
in it is passed over, and no command fails for it.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cli.durable import append
from cli.output import CommandFailed

NAMES_FILE: Final = "names"
_MAX_BYTES: Final = 1 << 20  # some ten thousand nodes
_LINE: Final = re.compile(r"([0-9a-f]{40})\s+([A-Za-z0-9][A-Za-z0-9._-]{0,63})\s*", re.ASCII)


def read_names(directory: Path) -> dict[bytes, str]:
    """Node id -> name. A name that stands there twice is its last node's, and an id's last name counts."""
    try:
        with (directory / NAMES_FILE).open("rb") as file:
            raw = file.read(_MAX_BYTES)
    except OSError:
        return {}
    return _parse(raw)


def add_names(directory: Path, names: Mapping[bytes, str]) -> str | None:
    """Write down what these nodes are called; why that was not possible, None when it was."""

    def made(handle: int) -> tuple[int, bytes]:
        raw = os.pread(handle, _MAX_BYTES, 0)
        there = _parse(raw)
        lines = [f"{node.hex()} {name}\n" for node, name in names.items() if there.get(node) != name]
        begin = "" if not raw or raw.endswith(b"\n") else "\n"  # a hand may have left the last line without an end
        return os.fstat(handle).st_size, (begin + "".join(lines)).encode() if lines else b""

    if not names:
        return None
    try:
        append(directory / NAMES_FILE, made)
    except CommandFailed as error:
        return str(error).partition(": ")[0]
    return None


def _parse(raw: bytes) -> dict[bytes, str]:
    names: dict[bytes, str] = {}
    ids: dict[str, bytes] = {}
    for line in raw.decode(errors="replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is not None:
            node, name = bytes.fromhex(match[1]), match[2]
            names.pop(ids.get(name, b""), None)
            ids.pop(names.get(node, ""), None)
            names[node], ids[name] = name, node
    return names

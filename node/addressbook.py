"""Where the members were last: `node.addresses` beside the database, for the next start.

While it runs, a node learns from the DHT where the others are; config.toml names only its seeds, which may be gone one day,
and none for the founder of a network that grew from one node. A hint and no more: the certificate says who answers there.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec

from routing.keyspace import ID_BYTES, NodeId

ADDRESS_FILE: Final = "node.addresses"
log = logging.getLogger(__name__)
_Host = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class AddressBook:
    """The file in a directory whose `DataLock` is held. What is wrong with it is told in the log, and stops nobody."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / ADDRESS_FILE
        self._written: dict[NodeId, tuple[str, int]] = {}

    def read(self) -> dict[NodeId, tuple[str, int]]:
        """The host and port of each node that was noted; nothing when there is no such file, or none that can be read."""
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=dict[str, tuple[_Host, _Port]])
            self._written = {_node_id(text): address for text, address in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:  # of msgspec, too
            log.warning("%s cannot be read, others must be found by the seeds of config.toml: %s", self._path, error)
            return {}
        return dict(self._written)

    def write(self, addresses: Mapping[NodeId, tuple[str, int]]) -> None:
        """Note these instead of the last ones."""
        if addresses == self._written:
            return
        new = self._path.with_name(f"{ADDRESS_FILE}.new")
        try:
            new.write_bytes(msgspec.json.encode({node.hex(): addresses[node] for node in sorted(addresses)}) + b"\n")
            new.replace(self._path)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error.strerror)
            return
        self._written = dict(addresses)


def _node_id(text: str) -> NodeId:
    raw = bytes.fromhex(text)
    if len(raw) != ID_BYTES:
        raise ValueError(f"{text!r} is no node id")
    return NodeId(raw)

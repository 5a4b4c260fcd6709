"""Where the members were last: `node.addresses` beside the database, for the next start.

While it runs, a node learns from the DHT where the others are; config.toml names only its seeds, which may be gone one
day, and none for the founder of a network that grew from one node. A hint and no more: the certificate says who answers
there.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec

from node.durable import write_whole
from routing.keyspace import ID_BYTES, NodeId

ADDRESS_FILE: Final = "node.addresses"
log = logging.getLogger(__name__)
_Host = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Address = tuple[str, int]


class Addresses:
    """Where to look for nodes: where one answered in this run; before that by turns where the config says and where it
    was noted, since either may be old (a name in the config outlives an address, a note outlives a move)."""

    def __init__(self, config: Mapping[NodeId, Address], noted: Mapping[NodeId, Address]) -> None:
        self._config = dict(config)
        self._noted = dict(noted)
        self._met: set[NodeId] = set()
        self._asked: Counter[NodeId] = Counter()
        self.now = {**noted, **config}  # where each node is, as far as it is known now

    def known(self, is_over: Callable[[NodeId], bool]) -> frozenset[NodeId]:
        """Whom the config names, and whom a note does that is not over."""
        return frozenset(self._config).union(node for node in self._noted if not is_over(node))

    def seeds(self) -> list[Address]:
        """All places, each once: by turns of the config and of the notes, so that a short list has both."""
        both = [list(self._config.values()), list(self._noted.values())]
        mixed = [places[at] for at in range(max(map(len, both))) for places in both if at < len(places)]
        return list(dict.fromkeys(mixed))

    def met(self, node: NodeId, address: Address) -> None:
        """It has answered there."""
        self.now[node] = address
        self._met.add(node)

    def next(self, node: NodeId) -> Address | None:
        """Where to try now; None when nothing is known of it."""
        if node in self._met:
            return self.now[node]
        places = [known[node] for known in (self._config, self._noted) if node in known]
        self._asked[node] += 1
        return places[(self._asked[node] - 1) % len(places)] if places else None

    def notes(self, members: Iterable[NodeId], is_over: Callable[[NodeId], bool]) -> dict[NodeId, Address]:
        """What to note for the next start: what was noted before, but for nodes that are over, and members that were
        met."""
        kept = {node: address for node, address in self._noted.items() if not is_over(node)}
        return kept | {node: self.now[node] for node in members if node in self._met}


class AddressBook:
    """The file in a directory whose `DataLock` is held. What is wrong with it is told in the log, and stops nobody."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / ADDRESS_FILE
        self._written: dict[NodeId, Address] | None = None  # None: whatever is there is to be replaced
        self._told = False

    def read(self) -> dict[NodeId, Address]:
        """The host and port of each node that was noted; nothing when there is no such file, or none that can be
        read."""
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=dict[str, tuple[_Host, _Port]])
            self._written = {_node_id(text): address for text, address in found.items()}
        except FileNotFoundError:
            self._written = {}
        except (OSError, ValueError) as error:  # of msgspec, too
            log.warning("%s cannot be read, others must be found by the seeds of config.toml: %s", self._path, error)
            return {}
        return dict(self._written)

    def write(self, addresses: Mapping[NodeId, Address]) -> None:
        """Note these instead of the last ones, durably. What fails is told once, and tried again with the next call."""
        if addresses == self._written:
            return
        raw = msgspec.json.encode({node.hex(): addresses[node] for node in sorted(addresses)}) + b"\n"
        try:
            write_whole(self._path, raw, through=self._path.with_name(f"{ADDRESS_FILE}.new"))
        except OSError as error:
            if not self._told:
                log.warning("%s cannot be written: %s", self._path, error.strerror)
            self._told = True
            return
        self._told = False
        self._written = dict(addresses)


def _node_id(text: str) -> NodeId:
    raw = bytes.fromhex(text)
    if len(raw) != ID_BYTES:
        raise ValueError(f"{text!r} is no node id")
    return NodeId(raw)

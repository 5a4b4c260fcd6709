"""What a node keeps beside its database about it: a database that is gone, or older than this, is not the node's any
more.

`node.marker` is rewritten when the node starts, when a view was installed and when its neighbours change, always after
the commit that it tells of: so it is never ahead of the database that belongs to it. With an emptied or an old node.db
the founder of a network that grew from one node would find itself alone in the first view, and decide by itself (design
R12).

What was never a member and never voted has nothing to forget: an observer's database may be put back as one likes. A
whole directory that was put back brings its old marker with it; then others must tell the node (node.identity).
"""

from pathlib import Path
from typing import Final

import msgspec

from chain.errors import LocalMisuse, Quarantined, StorageFailure
from node.durable import write_whole
from routing.keyspace import NodeId, short

MARKER_FILE: Final = "node.marker"
_WHAT_TO_DO: Final = (
    "this data directory was emptied, or an old copy of its database was put back. It must not vote again: keep no copy, and "
    "join the network anew under a new id"
)


class Marker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of `node` (hex): the newest epoch it has installed, how often it has made votes durable, whether it is a
    member."""

    node: str
    epoch: int
    votes: int
    member: bool


class MarkerFile:
    """The marker in a directory whose `DataLock` is held, and its checks at start."""

    def __init__(self, directory: Path, node_id: NodeId) -> None:
        """Raises `LocalMisuse` when there is one that cannot be read, or that is of another node."""
        self._path = directory / MARKER_FILE
        self._node = node_id
        self._last = self._read()

    def _read(self) -> Marker | None:
        try:
            marker = msgspec.json.decode(self._path.read_bytes(), type=Marker)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, ValueError) as error:
            raise LocalMisuse(
                f"{self._path} cannot be read ({error}): it tells whether node.db is as this node left it; repair the disk, or "
                "join the network anew under a new id"
            ) from None
        if marker.node != self._node.hex():
            raise LocalMisuse(
                f"{self._path} is of node {marker.node[:8]}, node.key of node {short(self._node)}: the files of two nodes are "
                "mixed; put back those that belong together"
            )
        return marker

    def check_database(self, *, exists: bool) -> None:
        """Before the database is opened, which would make it. Raises `Quarantined` when it is gone."""
        last = self._last
        if not exists and last is not None and (last.member or last.votes):
            raise Quarantined(
                f"node {short(self._node)} was at epoch {last.epoch} with {last.votes} recorded votes and views, and its database is gone: "
                f"{_WHAT_TO_DO}"
            )

    def check_start(self, epoch: int, votes: int) -> None:
        """With what the database holds. Raises `Quarantined` when that is less than it was."""
        last = self._last
        if last is not None and (last.member or last.votes) and (epoch < last.epoch or votes < last.votes):
            raise Quarantined(
                f"node {short(self._node)} was at epoch {last.epoch} with {last.votes} recorded votes and views, and its database is at "
                f"epoch {epoch} with {votes}: {_WHAT_TO_DO}"
            )

    def write(self, marker: Marker) -> None:
        """Keep this, durably, instead of the last one. Raises `StorageFailure`."""
        if marker == self._last:
            return
        through = self._path.with_name(f"{MARKER_FILE}.new")
        try:
            write_whole(self._path, msgspec.json.encode(marker) + b"\n", through=through)
        except OSError as error:
            raise StorageFailure(
                f"writing {self._path} failed: {error.strerror}; free some space or check the disk, then start the node again"
            ) from None
        self._last = marker

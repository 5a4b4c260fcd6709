"""Beside the database a node keeps how far it was, so that an emptied or an old database is not taken for its own."""

from pathlib import Path

import pytest

from chain.errors import LocalMisuse, Quarantined, StorageFailure
from node.marker import MARKER_FILE, Marker, MarkerFile
from routing.keyspace import NodeId

ME = NodeId(bytes([7]) * 20)
OTHER = NodeId(bytes([8]) * 20)


def marker(epoch: int = 3, votes: int = 9, *, member: bool = True, node: NodeId = ME) -> Marker:
    return Marker(node.hex(), epoch, votes, member)


def written(directory: Path, last: Marker) -> MarkerFile:
    """As the next process finds it."""
    MarkerFile(directory, NodeId(bytes.fromhex(last.node))).write(last)
    return MarkerFile(directory, ME)


def test_a_first_start_is_asked_nothing(tmp_path: Path) -> None:
    file = MarkerFile(tmp_path, ME)
    file.check_database(exists=False)
    file.check_start(1, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_is_as_far_as_the_marker_or_farther_is_the_nodes_own(tmp_path: Path) -> None:
    file = written(tmp_path, marker(3, 9))
    file.check_database(exists=True)
    for epoch, votes in ((3, 9), (4, 9), (3, 10)):
        file.check_start(epoch, votes)


@pytest.mark.parametrize(("epoch", "votes"), [(2, 9), (3, 8), (2, 100), (9, 0)])
def test_a_database_that_is_behind_the_marker_is_quarantined(tmp_path: Path, epoch: int, votes: int) -> None:
    file = written(tmp_path, marker(3, 9))
    said = rf"at epoch 3 with 9 recorded votes and views.*at epoch {epoch} with {votes}: .*keep no copy, and join the network anew"
    with pytest.raises(Quarantined, match=said):
        file.check_start(epoch, votes)


@pytest.mark.parametrize("last", [marker(1, 0), marker(5, 2, member=False)], ids=["member", "has voted"])
def test_a_database_that_is_gone_is_quarantined(tmp_path: Path, last: Marker) -> None:
    with pytest.raises(
        Quarantined, match=r"its database is gone: .*keep no copy, and join the network anew under a new id"
    ):
        written(tmp_path, last).check_database(exists=False)


def test_an_observer_has_nothing_to_forget(tmp_path: Path) -> None:
    file = written(tmp_path, marker(5, 0, member=False))
    file.check_database(exists=False)
    file.check_start(1, 0)


def test_the_last_one_counts_and_nothing_else_is_left(tmp_path: Path) -> None:
    file = MarkerFile(tmp_path, ME)
    for last in (marker(1, 0), marker(2, 5), marker(2, 5)):
        file.write(last)
    assert [path.name for path in tmp_path.iterdir()] == [MARKER_FILE]
    with pytest.raises(Quarantined):
        MarkerFile(tmp_path, ME).check_start(1, 5)


def test_it_is_written_only_when_it_is_news(tmp_path: Path) -> None:
    file = written(tmp_path, marker(2, 5))
    before = (tmp_path / MARKER_FILE).stat().st_ino
    file.write(marker(2, 5))
    assert (tmp_path / MARKER_FILE).stat().st_ino == before
    file.write(marker(2, 6))
    assert (tmp_path / MARKER_FILE).stat().st_ino != before, "a new file in its place: never a half of one"


def test_what_cannot_be_read_or_is_of_another_node_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalMisuse, match=r"is of node 08080808, node.key of node 07070707"):
        written(tmp_path, marker(node=OTHER))
    for raw in (b"", b"{}", b"\xff", b"[1]"):
        (tmp_path / MARKER_FILE).write_bytes(raw)
        with pytest.raises(LocalMisuse, match="cannot be read"):
            MarkerFile(tmp_path, ME)


def test_a_disk_without_room_ends_the_node(tmp_path: Path) -> None:
    file = MarkerFile(tmp_path, ME)
    (tmp_path / f"{MARKER_FILE}.new").mkdir()
    with pytest.raises(StorageFailure, match=r"writing .*node.marker failed: .*then start the node again"):
        file.write(marker())

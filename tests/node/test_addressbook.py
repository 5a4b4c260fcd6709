"""`node.addresses`: what was noted is there at the next start, and nothing that is wrong with it stops a node."""

import logging
from pathlib import Path

import pytest

from node.addressbook import ADDRESS_FILE, AddressBook, Addresses
from routing.keyspace import NodeId

A, B, C, D = (NodeId(name * 20) for name in (b"a", b"b", b"c", b"d"))
KNOWN = {A: ("10.0.0.1", 7400), B: ("node-2.example", 65535)}


def test_a_node_is_looked_for_where_it_was_met_or_else_by_turns_where_it_may_be() -> None:
    config, noted = {A: ("a.example", 1)}, {A: ("10.0.0.1", 2), B: ("10.0.0.2", 3)}
    places = Addresses(config, noted)
    assert places.now == {A: ("a.example", 1), B: ("10.0.0.2", 3)}
    assert [places.next(A) for _ in range(3)] == [("a.example", 1), ("10.0.0.1", 2), ("a.example", 1)]
    assert [places.next(B) for _ in range(2)] == [("10.0.0.2", 3)] * 2
    assert places.next(C) is None
    places.met(A, ("10.0.0.9", 4))
    assert [places.next(A) for _ in range(2)] == [("10.0.0.9", 4)] * 2
    assert places.now[A] == ("10.0.0.9", 4)


def test_a_short_list_of_seeds_has_those_of_the_config_and_of_the_notes() -> None:
    config = {A: ("a.example", 1), B: ("b.example", 1), C: ("c.example", 1)}
    places = Addresses(config, {A: ("a.example", 1), B: ("10.0.0.2", 3)})
    assert places.seeds() == [("a.example", 1), ("b.example", 1), ("10.0.0.2", 3), ("c.example", 1)]
    assert Addresses({}, {}).seeds() == []


def test_what_was_noted_stays_until_the_node_is_removed_and_the_config_is_no_note() -> None:
    places = Addresses({A: ("a.example", 1)}, {B: ("10.0.0.2", 3), C: ("10.0.0.3", 3)})
    assert places.known(lambda node: node == C) == {A, B}
    assert places.notes([A, B], lambda node: node == C) == {B: ("10.0.0.2", 3)}
    places.met(A, ("10.0.0.1", 2))
    places.met(D, ("10.0.0.4", 2))
    assert places.notes([A, B], lambda node: False) == {
        A: ("10.0.0.1", 2),
        B: ("10.0.0.2", 3),
        C: ("10.0.0.3", 3),
    }, "D is no member"


def test_what_was_written_last_is_read(tmp_path: Path) -> None:
    book = AddressBook(tmp_path)
    assert book.read() == {}
    book.write(KNOWN)
    assert AddressBook(tmp_path).read() == KNOWN
    book.write({A: ("10.0.0.9", 1)})
    assert AddressBook(tmp_path).read() == {A: ("10.0.0.9", 1)}
    book.write({})
    assert AddressBook(tmp_path).read() == {}
    assert [path.name for path in tmp_path.iterdir()] == [ADDRESS_FILE]


def test_the_same_again_is_not_written(tmp_path: Path) -> None:
    AddressBook(tmp_path).write(KNOWN)
    book = AddressBook(tmp_path)
    book.read()
    (tmp_path / ADDRESS_FILE).unlink()
    book.write(KNOWN)
    assert not (tmp_path / ADDRESS_FILE).exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "\xff",
        '{"00": ["10.0.0.1", 7400]}',
        '{"zz": ["10.0.0.1", 7400]}',
        '{"%s": ["", 7400]}' % ("61" * 20),
        '{"%s": ["10.0.0.1", 0]}' % ("61" * 20),
        '{"%s": ["10.0.0.1", 65536]}' % ("61" * 20),
        '{"%s": ["10.0.0.1"]}' % ("61" * 20),
    ],
)
def test_a_file_that_cannot_be_read_is_told_and_holds_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    (tmp_path / ADDRESS_FILE).write_bytes(text.encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        assert AddressBook(tmp_path).read() == {}
    assert "cannot be read, others must be found by the seeds of config.toml" in caplog.text
    book = AddressBook(tmp_path)
    book.read()
    book.write({})
    assert (tmp_path / ADDRESS_FILE).read_bytes() == b"{}\n", "it is replaced"


def test_a_file_that_cannot_be_written_is_told_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    book = AddressBook(tmp_path / "later")
    with caplog.at_level(logging.WARNING):
        book.write(KNOWN)
        book.write(KNOWN)
    assert caplog.text.count("cannot be written: No such file or directory") == 1, "each second would be too much"
    (tmp_path / "later").mkdir()
    book.write(KNOWN)
    assert AddressBook(tmp_path / "later").read() == KNOWN

"""`node.addresses`: what was noted is there at the next start, and nothing that is wrong with it stops a node."""

import logging
from pathlib import Path

import pytest

from node.addressbook import ADDRESS_FILE, AddressBook
from routing.keyspace import NodeId

A, B = NodeId(b"a" * 20), NodeId(b"b" * 20)
KNOWN = {A: ("10.0.0.1", 7400), B: ("node-2.example", 65535)}


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


def test_a_file_that_cannot_be_written_is_told_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    book = AddressBook(tmp_path / "later")
    with caplog.at_level(logging.WARNING):
        book.write(KNOWN)
    assert "cannot be written: No such file or directory" in caplog.text
    (tmp_path / "later").mkdir()
    book.write(KNOWN)
    assert AddressBook(tmp_path / "later").read() == KNOWN

"""Damage that no trigger can see, because it is under the database: what an owner and the audit say of it."""

from collections.abc import Iterator

import pytest

from chain.audit import audit
from chain.errors import Corruption, LocalMisuse
from chain.schema import statements
from chain.seal import row_checksum
from tests.chain.bank import Bank, memory_database


@pytest.fixture
def bank() -> Iterator[Bank]:
    conn = memory_database()
    made = Bank(conn)
    made.open("alice", "bob")
    made.pay("mint", *[("alice", amount) for amount in range(1, 21)])
    yield made
    conn.close()


def _drop_triggers(bank: Bank) -> None:
    for statement in statements():
        if statement.startswith("CREATE TRIGGER"):
            bank.conn.execute(f"DROP TRIGGER {statement.split()[2]}")


@pytest.mark.parametrize("left", [20, 5], ids=["many", "few"])
@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM postings WHERE amount = 3",
        "UPDATE incoming SET posting = posting + 4000 WHERE amount = 3",
        "UPDATE incoming SET posting = posting + (1 << 40) WHERE amount = 3",
    ],
    ids=["posting lost", "another number", "another link"],
)
def test_income_whose_posting_is_not_here_is_refused_and_not_passed_over(bank: Bank, statement: str, left: int) -> None:
    """A link that passed over it would be decided, and every sound replica would stop at it."""
    _drop_triggers(bank)
    bank.conn.execute("DELETE FROM incoming WHERE amount > ?", (left,))  # both queries that read it
    assert bank.conn.execute(statement).rowcount == 1
    with pytest.raises(Corruption, match=r"posting \d+ of 3 from mint to alice is refused: its row in `incoming`"):
        bank.form([bank.transfer("alice", ("bob", 1))])


@pytest.mark.parametrize("version", ["3", "5"])
def test_a_database_of_another_version_is_not_called_damaged(bank: Bank, version: str) -> None:
    _drop_triggers(bank)
    bank.conn.execute("DROP TABLE threads")
    seal = row_checksum("meta", "schema_version", version.encode())
    bank.conn.execute("UPDATE meta SET value = ?, checksum = ? WHERE key = 'schema_version'", (version.encode(), seal))
    with pytest.raises(
        LocalMisuse, match=f"has schema version {version}, this program has 6: use the version of the program"
    ):
        audit(bank.conn)


def test_damaged_tables_with_a_version_that_does_not_hold_are_damage(bank: Bank) -> None:
    _drop_triggers(bank)
    bank.conn.execute("DROP TABLE threads")
    bank.conn.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", (b"3",))
    fault = audit(bank.conn).fault
    assert fault is not None
    assert fault.table == "sqlite_master"


@pytest.mark.parametrize("statement", ["DELETE FROM meta WHERE key = 'schema_version'", "DROP TABLE meta"])
def test_a_damaged_schema_without_a_version_is_still_named(bank: Bank, statement: str) -> None:
    _drop_triggers(bank)
    bank.conn.execute(statement)
    fault = audit(bank.conn).fault
    assert fault is not None
    assert fault.table == "sqlite_master"

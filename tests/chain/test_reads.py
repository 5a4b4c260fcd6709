import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from chain.audit import audit
from chain.disk import open_database
from chain.errors import Corruption, RemoteFault, StorageFailure
from chain.link import HEADER_BYTES, Link, Outcome, Slot, read_record_untrusted
from chain.load import load
from chain.names import MAX_AMOUNT
from chain.needs import Needs
from chain.reads import (
    Balance,
    list_accounts,
    read_balance,
    read_chain,
    read_outcome,
    state_digest,
)
from chain.request import Kind, RequestId
from chain.rows import OutcomeRow
from tests.chain.bank import (
    Bank,
    damage_body,
    file_database,
    id_of,
    put_link,
    read_incoming,
    read_transfers,
    transfers_of,
    with_history,
)


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Bank]:
    writer = file_database(tmp_path / "node.db")
    yield with_history(writer)
    writer.close()


@pytest.fixture
def conn(bank: Bank, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """All reads run on a reader's connection."""
    conn = open_database(tmp_path / "node.db", writer=False)
    yield conn
    conn.close()


def test_balance(bank: Bank, conn: sqlite3.Connection) -> None:
    tip = [link for link in bank.links if link.account == "alice"][-1]
    assert read_balance(conn, "alice") == Balance(
        "alice", "CZK", False, 937, 14, 2, tip.hash, tip.height, tip.epoch, tip.time_ms
    )
    money = read_balance(conn, "alice")
    assert money is not None
    assert money.available == 951
    mint = read_balance(conn, "mint")
    assert mint is not None
    assert mint.issuer
    assert mint.settled == -1763
    assert read_balance(conn, "nobody") is None


def test_more_than_an_integer_holds_is_summed_exactly(bank: Bank, conn: sqlite3.Connection) -> None:
    """The rules keep an asset's money below 2^63; the store's sums are exact even if somebody's rules did not."""
    bank.issuer_limit = MAX_AMOUNT
    bank.pay("mint2", ("alice", MAX_AMOUNT))
    bank.pay("mint", ("alice", MAX_AMOUNT - 10_000))
    money = read_balance(conn, "alice")
    assert money is not None
    assert (money.incoming, money.incoming_count) == (2 * MAX_AMOUNT - 10_000 + 14, 4)
    assert state_digest(conn).totals == (("CZK", 0), ("EUR", 0))
    fault = audit(conn).fault
    assert fault is not None
    assert "rejected, 9223372036854775807 of 0 leaves less than -4611686018427387903" in fault.expected


def test_a_reader_sees_what_is_committed_while_the_writer_writes(bank: Bank, conn: sqlite3.Connection) -> None:
    bank.conn.execute("BEGIN IMMEDIATE")
    before = read_balance(conn, "alice")
    bank.conn.execute("ROLLBACK")
    bank.pay("mint", ("alice", 100))
    after = read_balance(conn, "alice")
    assert before is not None
    assert after is not None
    assert after.available == before.available + 100


def test_chain(bank: Bank, conn: sqlite3.Connection) -> None:
    links = read_chain(conn, "bob", 0)
    assert [link.height for link in links] == [0, 1, 2]
    batch = links[1]
    assert [entry.outcome for entry in batch.entries] == [
        Outcome.COMPLETED,
        Outcome.INSUFFICIENT_FUNDS,
        Outcome.UNKNOWN_RECIPIENT,
        Outcome.ASSET_MISMATCH,
        Outcome.COMPLETED,
    ]
    paid = batch.entries[0]
    assert [(row.recipient, row.amount, row.memo) for row in paid.postings] == [
        ("carol", 250, "to carol"),
        ("alice", 50, "to alice"),
    ]
    assert all(row.confirmation is not None for row in paid.postings)
    assert batch.entries[1].postings == ()
    assert batch.entries[1].request.postings[0].amount == 10_000
    assert batch.entries[4].request.kind is Kind.CANCEL
    assert [(row.sender, row.amount, row.confirmation) for row in batch.confirmed] == [
        ("mint", 500, batch.hash),
        ("alice", 300, batch.hash),
    ]
    assert (batch.balance, batch.prev_hash) == (500, Slot(links[0].hash))


def test_the_view_of_transfers_is_what_the_links_say(bank: Bank, conn: sqlite3.Connection) -> None:
    """For people with the sqlite3 shell, and programs made for schema 3: the columns and the rows are as they were."""
    assert [row[1] for row in conn.execute("PRAGMA table_info(transfers)")] == [
        "id", "hash", "link_hash", "number", "prev_hash", "sender", "recipient", "amount", "memo", "balance",
        "incoming_checksum", "height", "time_ms", "request_id", "confirmation", "prev_confirmed_hash",
    ]  # fmt: skip
    transfers = transfers_of(bank.links)
    assert read_transfers(conn) == transfers
    assert read_incoming(conn) == [(row[0], row[5], row[4], row[6]) for row in transfers if row[13] is None]
    assert len(transfers) == 15
    shown = [row for link in bank.links for row in _shown(conn, link)]
    assert sorted(shown) == [(row[0], row[1], row[2], *row[4:8], row[10], row[11], *row[13:]) for row in transfers]


def _shown(conn: sqlite3.Connection, link: Link) -> list[tuple[object, ...]]:
    (found,) = read_chain(conn, link.account, link.height, 1)
    return [
        (
            row.hash, row.link_hash, row.number, row.sender, row.recipient, row.amount, row.memo, row.height, row.time_ms,
            row.confirmation, row.prev_confirmed_hash,
        )
        for entry in found.entries
        for row in entry.postings
    ]  # fmt: skip


def test_chains_are_read_in_pages(bank: Bank, conn: sqlite3.Connection) -> None:
    assert [link.height for link in read_chain(conn, "alice", 1, 2)] == [1, 2]
    assert read_chain(conn, "alice", 99) == ()
    assert read_chain(conn, "nobody") == ()


def test_a_page_of_a_chain_ends_where_its_bytes_do(bank: Bank, conn: sqlite3.Connection) -> None:
    """And nothing behind it is read: a chain of full links would take gigabytes, for a page that shows two of them."""
    links = [link for link in bank.links if link.account == "alice"]
    sizes = [len(link.raw) for link in links]
    assert len(sizes) >= 3
    damage_body(bank.conn, links[2].hash)
    for most, shown in ((0, 1), (sizes[0], 1), (sizes[0] + sizes[1] - 1, 1), (sizes[0] + sizes[1], 2)):
        assert [link.height for link in read_chain(conn, "alice", 0, 100, most)] == list(range(shown))


def test_a_damaged_link_is_damage_of_this_replica_and_no_fault_of_who_asks(
    bank: Bank, conn: sqlite3.Connection
) -> None:
    link, other = bank.links[8], bank.links[9]
    request = link.entries[1].request_id
    where = f"^links row {link.hash.hex()[:16]}: .*{{}}.*; run `hopchain verify` on the database$"
    damage_body(bank.conn, link.hash)
    with pytest.raises(Corruption, match=where.format("its body is not the one its header commits to")):
        read_chain(conn, link.account)
    with pytest.raises(Corruption, match=where.format("its body is not the one its header commits to")):
        read_outcome(conn, request)
    put_link(bank.conn, link.hash, link.raw[: HEADER_BYTES - 1], b"")
    with pytest.raises(Corruption, match=where.format("is cut short")):
        read_outcome(conn, request)
    put_link(bank.conn, link.hash, other.raw[:HEADER_BYTES], other.raw[HEADER_BYTES:])
    with pytest.raises(Corruption, match=where.format(f"its header is that of link {other.height} of {other.account}")):
        read_chain(conn, link.account)


@pytest.mark.parametrize(
    "change",
    ["amount = amount + 1", "recipient = 'carol'", "memo = 'for the rent'", f"memo = '{'x' * 99}'", "amount = -1"],
)
@pytest.mark.parametrize("shown", ["mint", "alice"])
def test_a_changed_row_of_a_posting_is_not_shown(bank: Bank, conn: sqlite3.Connection, change: str, shown: str) -> None:
    """Neither with the link that pays it, nor with the one that confirms it."""
    paid = bank.pay("mint", ("alice", 5))
    bank.pay("alice", ("bob", 1))
    (trigger,) = bank.conn.execute("SELECT sql FROM sqlite_master WHERE name = 'postings_update'").fetchone()
    bank.conn.execute("DROP TRIGGER postings_update")
    bank.conn.execute(f"UPDATE postings SET {change} WHERE hash = ?", (paid.posting_hashes[0],))
    bank.conn.execute(trigger)
    with pytest.raises(Corruption, match="or other ones: run `hopchain verify`"):
        read_chain(conn, shown)


@pytest.mark.parametrize(
    "change", ["account = 'carol'", "height = height + 70", "time_ms = 5", "header = zeroblob(280)"]
)
def test_a_changed_row_of_the_link_that_paid_is_not_shown(bank: Bank, conn: sqlite3.Connection, change: str) -> None:
    paid = bank.pay("mint", ("alice", 5))
    bank.pay("alice", ("bob", 1))
    (trigger,) = bank.conn.execute("SELECT sql FROM sqlite_master WHERE name = 'links_update'").fetchone()
    bank.conn.execute("DROP TRIGGER links_update")
    bank.conn.execute(f"UPDATE links SET {change} WHERE hash = ?", (paid.hash,))
    bank.conn.execute(trigger)
    with pytest.raises(Corruption, match="or other ones: run `hopchain verify`"):
        read_chain(conn, "alice")


def test_outcomes_are_those_of_their_links(bank: Bank, conn: sqlite3.Connection) -> None:
    for link in bank.links:
        for request, outcome in link.outcomes():
            found = read_outcome(conn, request, link.account)
            assert found == OutcomeRow(
                request, link.account, outcome, link.hash, link.height, link.balance, link.time_ms
            )
        for entry in link.entries:
            assert read_outcome(conn, entry.request_id) == read_outcome(conn, entry.request_id, link.account)
    assert read_outcome(conn, RequestId(bytes(32))) is None


@pytest.mark.parametrize(
    "change",
    [
        "outcome = 1",
        "number = 1",
        "link_hash = zeroblob(32)",
        "link_hash = (SELECT tip FROM accounts WHERE name = 'mint')",
    ],
)
def test_a_changed_row_of_an_outcome_is_not_told(bank: Bank, conn: sqlite3.Connection, change: str) -> None:
    """It would be final: a payment that was made is told as rejected."""
    paid = bank.transfer("alice", ("bob", 1))
    bank.decide(paid)
    (trigger,) = bank.conn.execute("SELECT sql FROM sqlite_master WHERE name = 'outcomes_update'").fetchone()
    bank.conn.execute("DROP TRIGGER outcomes_update")
    bank.conn.execute(f"UPDATE outcomes SET {change} WHERE request_id = ?", (id_of(paid),))
    bank.conn.execute(trigger)
    for read in (
        lambda: read_outcome(conn, id_of(paid)),
        lambda: load(conn, Needs(told={("alice", id_of(paid)): None})),
    ):
        with pytest.raises(Corruption, match=f"outcomes row {id_of(paid).hex()[:16]} is not what link"):
            read()


def test_the_links_of_outcomes_that_are_told_are_read_as_far_as_there_is_room(
    bank: Bank, conn: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may be a megabyte, and who sends a request again may do so with hundreds in one turn."""
    paid = [bank.transfer("alice", ("bob", amount)) for amount in (1, 2, 3)]
    for request in paid:
        bank.decide(request)
    keys = [("alice", id_of(request)) for request in paid]
    read: list[bytes] = []
    monkeypatch.setattr("chain.outcomes.TOLD_BYTES", 1)
    monkeypatch.setattr(
        "chain.outcomes.read_record_untrusted", lambda raw, at: (read.append(raw), read_record_untrusted(raw, at))[1]
    )
    told = load(conn, Needs(told=dict.fromkeys(reversed(keys))))
    assert told.untold.keys() == set(keys[:2]) and len(read) == 1, "the first one that is wanted, in any case"
    assert told.outcomes.keys() == set(keys), "that they are there is told of all"
    assert len(load(conn, Needs(outcomes=set(keys))).outcomes) == 3 and len(read) == 1


def test_the_outcome_of_one_of_many_requests_decodes_none(
    bank: Bank, conn: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy account's links hold thousands; who asks for the outcomes of all of them must not have all decoded for
    each."""
    requests = [bank.transfer("alice", ("bob", 1)) for _ in range(20)]
    bank.decide(*requests)
    monkeypatch.setattr("chain.link.decode_request_untrusted", None)
    for request in requests:
        found = read_outcome(conn, id_of(request))
        assert found is not None and (found.request_id, found.outcome) == (id_of(request), Outcome.COMPLETED)


def test_a_link_that_is_cut_short_is_named(bank: Bank) -> None:
    raw = bank.links[-1].raw
    for length, text in (
        (HEADER_BYTES - 6, "is cut short"),
        (HEADER_BYTES + 6, "is not the one its header commits to"),
    ):
        with pytest.raises(RemoteFault, match=text):
            read_record_untrusted(raw[:length], {0})


def test_a_cancelled_request_that_never_came_has_an_outcome(bank: Bank, conn: sqlite3.Connection) -> None:
    never = bank.transfer("alice", ("bob", 1))
    bank.decide(bank.cancellation("alice", id_of(never)))
    found = read_outcome(conn, id_of(never))
    assert found is not None
    assert found.outcome is Outcome.CANCELLED


def test_a_cancellation_by_another_does_not_hide_the_outcome(bank: Bank, conn: sqlite3.Connection) -> None:
    rent = bank.transfer("carol", ("bob", 1))
    bank.decide(bank.cancellation("alice", id_of(rent)))
    assert read_outcome(conn, id_of(rent), "carol") is None
    bank.decide(rent)
    for account in (None, "carol"):
        found = read_outcome(conn, id_of(rent), account)
        assert found is not None
        assert (found.account, found.outcome) == ("carol", Outcome.COMPLETED)


def test_accounts_are_listed_by_name_in_pages(bank: Bank, conn: sqlite3.Connection) -> None:
    names = ["alice", "bob", "carol", "erik", "ezb", "mint", "mint2"]
    assert [head.name for head in list_accounts(conn)] == names
    assert [head.name for head in list_accounts(conn, "bob", 2)] == ["carol", "erik"]
    assert list_accounts(conn, "zzz") == ()


def test_digest(bank: Bank, conn: sqlite3.Connection) -> None:
    before = state_digest(conn)
    assert (before.accounts, before.links) == (7, 17)
    assert before.totals == (("CZK", 0), ("EUR", 0))
    bank.pay("mint", ("alice", 1))
    after = state_digest(conn)
    assert after.digest != before.digest
    assert after.links == 18
    assert after.totals == before.totals


def test_a_database_that_cannot_be_read_is_a_storage_failure(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    empty = sqlite3.connect(path)
    empty.execute("PRAGMA journal_mode=WAL")
    empty.close()
    conn = open_database(path, writer=False)
    for read in (lambda: read_balance(conn, "a"), lambda: state_digest(conn), lambda: list_accounts(conn)):
        with pytest.raises(StorageFailure, match="no such table"):
            read()
    conn.close()

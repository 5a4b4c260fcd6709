"""The SQLite store: what one turn makes durable (`commit`), design sections 2 and 7; `chain.load` has what it reads.

All functions are synchronous and take the connection, so the node runs them in aiosqlite's thread and the simulator
runs them inline.

    open_database(path, writer=True)  then  create_or_check(conn, ...)   once, at start
    load(conn, needs)     a few queries, whatever the number of keys; a key that is absent in `Loaded` is not there
    commit(conn, writes)  one transaction, in order; when it returns it is durable; when it raises the node stops

`commit` raises `Corruption` when the database refuses a link (its triggers, `chain.schema`), and `StorageFailure`
when the disk or SQLite fails. Neither is ever retried.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Final

import msgspec

from chain.accounts import account_id
from chain.credits import find_credits
from chain.disk import checkpoint_if_due, give_up, settle, storage_errors
from chain.errors import Corruption, StorageFailure
from chain.genesis import FIRST_EPOCH, Genesis, encode_genesis, issuer_links
from chain.link import HEADER_BYTES, Link, Outcome, PostingHash
from chain.request import MANY_POSTINGS, REQUEST_HEAD_BYTES, Kind, RequestId
from chain.rows import ActiveRow, Applied, Credit, ViewRow, VoteRow
from chain.schema import ID_BITS, SCHEMA_VERSION, create_schema
from chain.seal import EMPTY_LOG, CursorRow, SeenRow, read_log_head, row_checksum, vote_fields, write_log_head
from chain.start import check_identity, check_start

Write = Applied | VoteRow | CursorRow | SeenRow | ViewRow | ActiveRow

_INSERT_LINK: Final = "INSERT INTO links VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_POSTINGS_UP_TO: Final = "SELECT postings_before + posting_count FROM links WHERE seq = ?"
_STAGE_POSTING: Final = "INSERT INTO new_postings VALUES (?, ?, ?, ?, ?, ?)"
_STAGE_BATCH: Final = "INSERT INTO new_batches VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_STAGE_CONFIRMATION: Final = "INSERT INTO new_confirmations VALUES (?, ?, ?, ?, ?)"
_STAGE_OUTCOME: Final = "INSERT INTO new_outcomes VALUES (?, ?, ?)"
_STAGE_ACCOUNT: Final = "INSERT INTO new_accounts VALUES (?, ?, ?, ?)"
_UPSERT_VOTE: Final = (
    "INSERT INTO votes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (slot) DO UPDATE SET "
    "account = excluded.account, height = excluded.height, promised_epoch = excluded.promised_epoch, "
    "promised_round = excluded.promised_round, promised_node = excluded.promised_node, "
    "accepted_epoch = excluded.accepted_epoch, accepted_round = excluded.accepted_round, "
    "accepted_node = excluded.accepted_node, link = excluded.link, checksum = excluded.checksum"
)
_UPSERT_SEEN: Final = "INSERT INTO seen VALUES (?, ?, ?) ON CONFLICT (node) DO UPDATE SET votes = excluded.votes, checksum = excluded.checksum"
_INSERT_VIEW: Final = (
    "INSERT INTO views SELECT ?1, ?2, ?3, ?4 WHERE EXISTS (SELECT 1 FROM views WHERE epoch = ?1 - 1 AND hash = ?5)"
)
_UPSERT_ACTIVE: Final = "INSERT INTO active VALUES (?, ?, ?) ON CONFLICT (epoch) DO UPDATE SET ranges = excluded.ranges, checksum = excluded.checksum"
_UPSERT_CURSOR: Final = "INSERT INTO cursors VALUES (?, ?, ?) ON CONFLICT (peer) DO UPDATE SET seq = excluded.seq, checksum = excluded.checksum"


def commit(conn: sqlite3.Connection, writes: Sequence[Write]) -> None:
    """Make all `writes` durable in one transaction, in order, and checkpoint when that is due.

    A link that is applied ends the vote of its slot, and so does a view that is installed. Raises `Corruption`, and
    nothing is written then, or `StorageFailure`, and all is written or nothing is; the node must stop.
    """
    if not writes:
        return
    try:
        with storage_errors(f"writing {len(writes)} rows"):
            conn.execute("BEGIN IMMEDIATE")
            for kind, group in groupby(writes, type):
                _write_group(conn, kind, list(group))
            conn.execute("COMMIT")
        checkpoint_if_due(conn)
    except BaseException as error:
        _roll_back(conn, error)
        raise


def _roll_back(conn: sqlite3.Connection, error: BaseException) -> None:
    if isinstance(error, StorageFailure):
        give_up(conn)
    if conn.in_transaction:  # SQLite may have rolled back by itself
        try:
            conn.execute("ROLLBACK")
        except sqlite3.Error:
            conn.close()  # the transaction ends with its connection, whatever the disk says


def _write_group(conn: sqlite3.Connection, kind: type[Write], group: Sequence[Write]) -> None:
    if kind is Applied:
        applied = [write for write in group if isinstance(write, Applied)]
        _apply(conn, applied, issuer=False)
        conn.executemany("DELETE FROM votes WHERE slot = ?", [(write.link.prev_hash,) for write in applied])
    elif kind is VoteRow:
        votes = [vote_fields(write) for write in group if isinstance(write, VoteRow)]
        try:
            conn.executemany(_UPSERT_VOTE, [(*row, row_checksum("votes", *row)) for row in votes])
        except sqlite3.IntegrityError as error:
            raise Corruption(
                f"the database refuses one of {len(votes)} votes: {error}; run `hopchain verify` on the database"
            ) from error
    elif kind is ViewRow:
        for view in group:
            if isinstance(view, ViewRow):
                _install(conn, view)
    elif kind is ActiveRow:
        active = [(write.epoch, write.ranges) for write in group if isinstance(write, ActiveRow)]
        conn.executemany(_UPSERT_ACTIVE, [(*row, row_checksum("active", *row)) for row in active])
    elif kind is SeenRow:
        seen = [(write.node, write.votes) for write in group if isinstance(write, SeenRow)]
        conn.executemany(_UPSERT_SEEN, [(*row, row_checksum("seen", *row)) for row in seen])
    else:
        cursors = [(write.peer, write.seq) for write in group if isinstance(write, CursorRow)]
        conn.executemany(_UPSERT_CURSOR, [(*row, row_checksum("cursors", *row)) for row in cursors])


def _install(conn: sqlite3.Connection, view: ViewRow) -> None:
    """Views are installed one by one (design R6): the one that `view` follows is the last one here."""
    row = (view.epoch, view.hash, view.raw)
    try:
        done = conn.execute(_INSERT_VIEW, (*row, row_checksum("views", *row), view.prev_hash))
    except sqlite3.IntegrityError as error:
        raise Corruption(
            f"the database refuses view {view.epoch} ({view.hash.hex()[:16]}): {error}; "
            "install views one after the other, and each once"
        ) from error
    if done.rowcount != 1:
        raise Corruption(
            f"the database refuses view {view.epoch} ({view.hash.hex()[:16]}): it follows view "
            f"{view.prev_hash.hex()[:16]}, and epoch {view.epoch - 1} is another one here or missing; "
            "run `hopchain verify` on it"
        )
    conn.execute("DELETE FROM votes WHERE slot = ?", (view.prev_hash,))


class _Staged:
    """The rows of some links, for the `new_*` tables and for `links`. `paid`: how many postings the log holds before
    them."""

    def __init__(self, paid: int) -> None:
        self._paid = paid
        self.links: list[tuple[int | str | bytes, ...]] = []
        self.postings: list[tuple[int | str | bytes, ...]] = []
        self.batches: list[tuple[int | str | bytes, ...]] = []
        self.confirmations: list[tuple[int, PostingHash, int, int, int]] = []
        self.outcomes: list[tuple[int, RequestId, Outcome]] = []
        self.accounts: list[tuple[int, str, bytes, int]] = []

    def add(self, seq: int, link: Link, issuer: bool, credits: Mapping[PostingHash, Credit]) -> None:
        first = seq << ID_BITS
        hashes = link.posting_hashes
        outcomes = link.outcomes()
        self.links.append(
            (
                seq,
                link.hash,
                link.account,
                link.height,
                link.prev_hash,
                link.balance,
                link.incoming_checksum,
                link.epoch,
                link.time_ms,
                len(hashes),
                len(link.confirmed),
                len(outcomes),
                self._paid,
                link.raw[:HEADER_BYTES],
                link.raw[HEADER_BYTES:],
            )
        )
        if hashes:
            self._add_postings(first, link, hashes)
            self._paid += len(hashes)
        self.outcomes += [(number, *outcome) for number, outcome in enumerate(outcomes, first)]
        for number, posting in enumerate(link.confirmed, first):
            credit = credits[posting]
            self.confirmations.append((number, posting, credit.id, credit.sender_id, credit.amount))
        if link.height == 0:
            self.accounts += [
                (seq, entry.request.asset, entry.request.public_key, int(issuer))
                for entry in link.entries
                if entry.request.kind is Kind.OPEN and entry.outcome is Outcome.COMPLETED
            ]

    def _add_postings(self, first: int, link: Link, hashes: Sequence[PostingHash]) -> None:
        number = 0
        for at, entry in link.paying:
            request = entry.request
            count = len(request.postings)
            if count >= MANY_POSTINGS:  # fewer are cheaper one by one
                records = entry.signed.raw[REQUEST_HEAD_BYTES:]
                amounts = msgspec.json.encode(request.amounts).decode()
                made = b"".join(hashes[number : number + count])
                row = (first | number, at, count, request.total, entry.request_id, amounts, made, records)
                self.batches.append(row)
            else:
                self.postings += [
                    (
                        first | n,
                        hashes[n],
                        posting.recipient,
                        posting.amount,
                        posting.memo,
                        entry.request_id,
                    )
                    for n, posting in enumerate(request.postings, number)
                ]
            number += count


def _apply(conn: sqlite3.Connection, applied: Sequence[Applied], *, issuer: bool) -> None:
    """Stage the rows of all links, then insert them one by one; the trigger `links_apply` does the rest."""
    links = [write.link for write in applied]
    if len({link.hash for link in links}) < len(links):
        raise Corruption(
            f"{len(links)} links cannot be staged: one of them is there twice; run `hopchain verify` on the database"
        )
    head = read_log_head(conn)
    credits = _confirmed_by(conn, applied, head.seq + 1)
    last = conn.execute(_POSTINGS_UP_TO, (head.seq,)).fetchone()
    staged = _Staged(last[0] if last else 0)
    for seq, link in enumerate(links, head.seq + 1):
        staged.add(seq, link, issuer, credits)
    try:
        for query, rows in (
            (_STAGE_POSTING, staged.postings),
            (_STAGE_BATCH, staged.batches),
            (_STAGE_CONFIRMATION, staged.confirmations),
            (_STAGE_OUTCOME, staged.outcomes),
            (_STAGE_ACCOUNT, staged.accounts),
        ):
            if rows:
                conn.executemany(query, rows)
    except sqlite3.IntegrityError as error:
        raise Corruption(
            f"{len(links)} links cannot be staged: {error}; run `hopchain verify` on the database"
        ) from error
    for link, row in zip(links, staged.links, strict=True):
        try:
            conn.execute(_INSERT_LINK, row)
        except sqlite3.IntegrityError as error:
            raise Corruption(
                f"the database refuses decided link {link.height} of {link.account} ({link.hash.hex()[:16]}): {error}; "
                "this database is damaged or the rules differ: run `hopchain verify` on it"
            ) from error
    write_log_head(conn, head.after([link.hash for link in links]))


def _confirmed_by(conn: sqlite3.Connection, applied: Sequence[Applied], first_seq: int) -> dict[PostingHash, Credit]:
    """All postings that the links confirm, with their ids: as they were read, else looked for here and in the links
    themselves."""
    credits = {credit.hash: credit for write in applied for credit in write.confirmed if credit.id}
    wanted = {posting for write in applied for posting in write.link.confirmed if posting not in credits}
    if not wanted:
        return credits
    made_here = {posting for write in applied for posting in write.link.posting_hashes}
    if elsewhere := wanted - made_here:
        credits |= find_credits(conn, elsewhere)
    opened: dict[str, int] = {}
    for seq, write in enumerate(applied, first_seq):
        link = write.link
        if link.height == 0:
            opened[link.account] = seq
        for number, posting in enumerate(link.posting_hashes):
            if posting in wanted and posting not in credits:
                made = link.posting(number)
                credits[posting] = Credit(
                    posting,
                    link.account,
                    made.recipient,
                    made.amount,
                    seq << ID_BITS | number,
                    sender_id=opened.get(link.account) or account_id(conn, link.account),
                )
        for posting in link.confirmed:
            if posting not in credits:
                raise Corruption(
                    f"the database refuses decided link {link.height} of {link.account} ({link.hash.hex()[:16]}): posting "
                    f"{posting.hex()[:16]}, which it confirms, is not here: run `hopchain verify` on the database"
                )
    return credits


def create_or_check(
    conn: sqlite3.Connection, genesis: Genesis, node_id: bytes, first_view: tuple[bytes, bytes]
) -> None:
    """Make the database of this node and network when it is empty, else check that it is theirs and sound.

    `first_view`: (hash, canonical bytes) of view 1. Raises `LocalMisuse` for a database of another network, node or
    schema version, `Corruption` when what the node will rely on does not hold (`chain.audit` checks everything), and
    `StorageFailure`. What is read afterwards is on the disk.
    """
    try:
        with storage_errors("checking the database"):
            if conn.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                _create(conn, genesis, node_id, first_view)
            else:
                check_identity(conn, genesis, node_id, first_view)
                check_start(conn, genesis)
                settle(conn)
    except BaseException as error:
        _roll_back(conn, error)
        raise


def meta_values(genesis: Genesis, node_id: bytes) -> dict[str, bytes]:
    """The rows of `meta` that never change."""
    return {
        "schema_version": str(SCHEMA_VERSION).encode(),
        "network_id": genesis.network_id,
        "genesis": encode_genesis(genesis),
        "node_id": node_id,
    }


def _create(conn: sqlite3.Connection, genesis: Genesis, node_id: bytes, first_view: tuple[bytes, bytes]) -> None:
    conn.execute("BEGIN IMMEDIATE")
    create_schema(conn)
    values = {**meta_values(genesis, node_id), "log": EMPTY_LOG.encode()}
    conn.executemany(
        "INSERT INTO meta VALUES (?, ?, ?)",
        [(key, value, row_checksum("meta", key, value)) for key, value in values.items()],
    )
    view = (FIRST_EPOCH, *first_view)
    conn.execute("INSERT INTO views VALUES (?, ?, ?, ?)", (*view, row_checksum("views", *view)))
    _apply(conn, [Applied(link) for link in issuer_links(genesis)], issuer=True)
    conn.execute("COMMIT")

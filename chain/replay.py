"""The links of a database, one after the other in the order of its log, each judged by what the ones before it left.

Its bytes hash to its hash and name the link before it; the account's key signed every request; the outcomes follow from
what was there; its balance is the balance before, plus what it confirms, less what it pays; every row that it makes in
`postings`, `confirmations`, `outcomes` and `accounts` is there, field by field.
"""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Final

from chain.findings import Value, compare, decode_found, require
from chain.genesis import Genesis, issuer_links
from chain.link import HEADER_BYTES, Link, Outcome, opening_slot
from chain.request import Kind, RequestId, is_signed_by
from chain.schema import ID_BITS, PART_BITS
from chain.seal import EMPTY_LOG
from chain.verdicts import Before, why_wrong

_PROGRESS_EVERY: Final = 256
_LINK_COLUMNS: Final = (
    "hash", "account", "height", "prev_hash", "balance", "incoming_checksum", "epoch", "time_ms", "posting_count",
    "confirmed_count", "outcome_count", "postings_before",
)  # fmt: skip
_POSTING_COLUMNS: Final = ("id", "part", "hash", "recipient", "amount", "memo", "request_id")
_OPENING_COLUMNS: Final = ("name", "id", "asset", "public_key", "issuer")
_HEAD_COLUMNS: Final = ("name", "height", "tip", "balance", "epoch", "time_ms")
_OUTCOME_COLUMNS: Final = ("request_id", "account", "link_hash", "number", "outcome")


def _ids_of(seq: int) -> tuple[int, int]:
    """The first and last id that rows of the link in this place of the log can have."""
    return seq << ID_BITS, (seq + 1 << ID_BITS) - 1


class Replay:
    """`progress(links done, links in all)`. The counts are of what was looked at so far, what is wrong included."""

    def __init__(self, conn: sqlite3.Connection, progress: Callable[[int, int], None]) -> None:
        self._conn = conn
        self._progress = progress
        self._log = EMPTY_LOG
        self._issuers: dict[str, Link] = {}
        self._limits: dict[str, int] = {}  # of issuers, by asset
        self.links = self.postings = self.confirmed = self.accounts = self.outcomes = 0

    def all(self, genesis: Genesis) -> None:
        """Raises `Disagreement` at the first link or row that is not what the links before it lead to."""
        self._limits = {asset.code: genesis.issuer_limit(asset.code) for asset in genesis.assets}
        self._issuers = {link.account: link for link in issuer_links(genesis)}
        (total,) = self._conn.execute("SELECT count(*) FROM links").fetchone()
        columns = ", ".join(_LINK_COLUMNS)
        for seq, header, body, *stored in self._conn.execute(
            f"SELECT seq, header, body, {columns} FROM links ORDER BY seq"
        ):
            self.links += 1
            require(seq == self.links, "links", seq, "seq", self.links, seq)
            require(
                len(header) == HEADER_BYTES,
                "links",
                stored[0],
                "header",
                f"{HEADER_BYTES} bytes",
                f"{len(header)} bytes",
            )
            link = decode_found("links", stored[0], header + body)
            derived = (
                link.hash, link.account, link.height, link.prev_hash, link.balance, link.incoming_checksum, link.epoch,
                link.time_ms, len(link.postings()), len(link.confirmed), len(link.outcomes()),
                self.postings,
            )  # fmt: skip
            compare("links", stored[0], _LINK_COLUMNS, derived, stored)
            require(link.network == genesis.network_id, "links", link.hash, "header", genesis.network_id, link.network)
            self._link(seq, link)
            self._log = self._log.after([link.hash])
            if seq % _PROGRESS_EVERY == 0 or seq == total:
                self._progress(seq, total)
        for name in self._issuers:
            found = self._conn.execute("SELECT 1 FROM links WHERE account = ? AND height = 0", (name,)).fetchone()
            require(found is not None, "accounts", name, "name", "the issuer of the genesis file", "nothing")
        (stated,) = self._conn.execute("SELECT value FROM meta WHERE key = 'log'").fetchone()
        require(stated == self._log.encode(), "meta", "log", "value", self._log.encode(), stated)

    def _link(self, seq: int, link: Link) -> None:
        before = self._opening(seq, link) if link.height == 0 else self._before(seq, link)
        income = self._confirmations(seq, link)
        funds = before.balance + income
        require(link.balance == funds - link.debit, "links", link.hash, "balance", funds - link.debit, link.balance)
        require(link.balance >= 0 or before.limit > 0, "links", link.hash, "balance", "at least 0", link.balance)
        self._entries(seq, link, before, funds)
        self._postings(seq, link)
        self._outcomes(link)
        after = self._conn.execute(
            "SELECT 1 FROM links WHERE prev_hash = ? OR (account = ? AND height = ?)",
            (link.hash, link.account, link.height + 1),
        )
        if after.fetchone() is None:
            self._compare_account(_HEAD_COLUMNS, link, link.height, link.hash, link.balance, link.epoch, link.time_ms)

    def _compare_account(self, columns: Sequence[str], link: Link, *expected: Value) -> None:
        found = self._conn.execute(
            f"SELECT {', '.join(columns)} FROM accounts WHERE name = ?", (link.account,)
        ).fetchone()
        compare("accounts", link.account, columns, (link.account, *expected), found)

    def _opening(self, seq: int, link: Link) -> Before:
        self.accounts += 1
        slot = opening_slot(link.network, link.account)
        require(link.prev_hash == slot, "links", link.hash, "prev_hash", slot, link.prev_hash)
        kinds = [entry.request.kind for entry in link.entries]
        require(kinds == [Kind.OPEN], "links", link.hash, "body", "one opening", f"requests of kinds {kinds}")
        issuer = self._issuers.get(link.account)
        if issuer is not None:
            require(
                link.raw == issuer.raw, "links", link.hash, "body", "the issuer of the genesis file", "another link"
            )
        request = link.entries[0].request
        self._compare_account(_OPENING_COLUMNS, link, seq, request.asset, request.public_key, int(issuer is not None))
        return Before(request.asset, request.public_key, self._limit(link.account, request.asset), 0, -1)

    def _before(self, seq: int, link: Link) -> Before:
        row = self._conn.execute(
            "SELECT l.hash, l.seq, l.balance, l.time_ms, a.asset, a.public_key FROM links AS l "
            "LEFT JOIN accounts AS a ON a.name = l.account WHERE l.account = ? AND l.height = ?",
            (link.account, link.height - 1),
        ).fetchone()
        require(row is not None, "links", link.hash, "height", "the link before it", "nothing")
        tip, before_seq, balance, time_ms, asset, public_key = row
        require(link.prev_hash == tip, "links", link.hash, "prev_hash", tip, link.prev_hash)
        require(before_seq < seq, "links", link.hash, "seq", f"above {before_seq}, the link before it", seq)
        require(link.time_ms > time_ms, "links", link.hash, "time_ms", f"above {time_ms}", link.time_ms)
        return Before(asset, public_key, self._limit(link.account, asset), balance, time_ms)

    def _limit(self, account: str, asset: str) -> int:
        """How far below zero the account may go."""
        return self._limits[asset] if account in self._issuers else 0

    def _confirmations(self, seq: int, link: Link) -> int:
        """Their sum. Each is a posting to this account of an earlier link, listed once, in its sender's order."""
        income, last_age = 0, (-1, "", -1)
        found = self._conn.execute(
            "SELECT c.id, c.posting, p.hash, p.recipient, p.amount, l.account, l.time_ms, c.previous, b.recipient, e.account, d.id "
            "FROM confirmations AS c LEFT JOIN postings AS p ON p.id = c.posting LEFT JOIN links AS l ON l.seq = c.posting >> 14 "
            "LEFT JOIN postings AS b ON b.id = c.previous LEFT JOIN links AS e ON e.seq = c.previous >> 14 "
            "LEFT JOIN confirmations AS d ON d.posting = c.previous WHERE c.id BETWEEN ? AND ? ORDER BY c.id",
            _ids_of(seq),
        )
        for number, posting in enumerate(link.confirmed, seq << ID_BITS):
            row = found.fetchone()
            there = row is not None and row[0] == number
            require(
                there,
                "confirmations",
                number,
                "id",
                f"a row, link {link.hash.hex()} confirms posting {posting.hex()}",
                "nothing",
            )
            _, place, stored, recipient, amount, sender, time_ms, previous, *before, confirmed = row
            there = stored == posting and sender is not None
            require(there, "confirmations", number, "posting", f"that of posting {posting.hex()}", place)
            require(recipient == link.account, "postings", posting, "recipient", link.account, recipient)
            made = place >> ID_BITS
            require(made < seq, "links", link.hash, "seq", "after the links whose postings it confirms", seq)
            age = (time_ms, sender, place)
            require(age > last_age, "links", link.hash, "body", "confirmations, each once, oldest first", posting)
            last_age = age
            if previous is not None:
                stream = (
                    previous < place and before == [recipient, sender] and confirmed is not None and confirmed < number
                )
                require(
                    stream,
                    "confirmations",
                    number,
                    "previous",
                    "the posting confirmed before it in its stream",
                    previous,
                )
            income += amount
        row = found.fetchone()
        if row is not None:
            require(False, "confirmations", row[0], "id", f"nothing, link {link.hash.hex()} does not list it", "a row")
        self.confirmed += len(link.confirmed)
        return income

    def _postings(self, seq: int, link: Link) -> None:
        columns = ", ".join(_POSTING_COLUMNS)
        found = self._conn.execute(f"SELECT {columns} FROM postings WHERE id BETWEEN ? AND ? ORDER BY id", _ids_of(seq))
        part = self.postings >> PART_BITS
        for number, posting_hash, posting, request_id in link.postings():
            self.postings += 1
            place = seq << ID_BITS | number
            expected = (place, part, posting_hash, posting.recipient, posting.amount, posting.memo, request_id)
            compare("postings", posting_hash, _POSTING_COLUMNS, expected, found.fetchone())
        row = found.fetchone()
        if row is not None:
            require(False, "postings", row[2], "hash", f"nothing, link {link.hash.hex()} does not make it", "a row")

    def _outcomes(self, link: Link) -> None:
        columns = ", ".join(_OUTCOME_COLUMNS)
        for number, (request_id, outcome) in enumerate(link.outcomes()):
            self.outcomes += 1
            found = self._conn.execute(
                f"SELECT {columns} FROM outcomes WHERE request_id = ? AND account = ?", (request_id, link.account)
            ).fetchone()
            expected = (request_id, link.account, link.hash, number, int(outcome))
            compare("outcomes", request_id, _OUTCOME_COLUMNS, expected, found)

    def _entries(self, seq: int, link: Link, before: Before, funds: int) -> None:
        here: set[RequestId] = set()
        for entry in link.entries:
            request, shown = entry.request, f"request {entry.request_id.hex()}"
            if link.height > 0 or link.account not in self._issuers:
                signed = is_signed_by(entry.signed, before.public_key)
                require(
                    signed,
                    "links",
                    link.hash,
                    "body",
                    f"{shown} signed by the key of {link.account}",
                    "another signature",
                )
            wrong = why_wrong(self._conn, seq, link, before, funds, entry, here)
            require(not wrong, "links", link.hash, "body", f"{shown}: {wrong}", entry.outcome.name)
            here.add(entry.request_id)
            if entry.outcome is Outcome.COMPLETED:
                funds -= request.total
                if request.kind is Kind.CANCEL:
                    here.add(request.target)

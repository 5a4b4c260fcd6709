"""A network of one database, for tests: keys derived from names, links formed by the rules and applied at once."""

import hashlib
import re
import sqlite3
from collections.abc import Collection, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.disk import open_database
from chain.genesis import Asset, Genesis, GenesisMember, Issuer
from chain.link import Link, LinkHash
from chain.load import load
from chain.needs import Needs
from chain.request import (
    ANY_HEIGHT,
    ANY_TIP,
    DecodedRequest,
    Posting,
    Request,
    RequestId,
    cancellation,
    opening,
    sign,
    transfer,
)
from chain.rows import Applied, ViewRow
from chain.rules import Formed, form_link
from chain.store import commit, create_or_check

NODE = bytes(range(20))
VIEW = (hashlib.sha256(b"the first view").digest(), b"the first view")


def view_after(epoch: int, prev_hash: bytes = VIEW[0]) -> ViewRow:
    """View `epoch`, to be installed after the one with hash `prev_hash`."""
    raw = f"view {epoch}".encode()
    return ViewRow(epoch, hashlib.sha256(raw).digest(), prev_hash, raw)


def key_of(name: str) -> Ed25519PrivateKey:
    """The private key of account `name`, the same in every test."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"key of " + name.encode()).digest())


def public_key_of(name: str) -> bytes:
    return key_of(name).public_key().public_bytes_raw()


def nonce_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


GENESIS = Genesis(
    version=1,
    name="test",
    assets=(Asset("CZK", 2), Asset("EUR", 2)),
    issuers=(
        Issuer("mint", "CZK", public_key_of("mint").hex()),
        Issuer("mint2", "CZK", public_key_of("mint2").hex()),
        Issuer("ezb", "EUR", public_key_of("ezb").hex()),
    ),
    k=5,
    ca="",
    members=(GenesisMember(public_key_of("node 1").hex()),),
    time_ms=1_000_000,
)
NETWORK = GENESIS.network_id


def numbered(sql: str) -> str:
    """`#alice`: the number of that account in the database, as it stands in `incoming` and `threads`."""
    return re.sub(r"#([a-z]\w*)", r"(SELECT id FROM accounts WHERE name = '\1')", sql)


def decoded(request: Request) -> DecodedRequest:
    signed = sign(request, key_of(request.sender))
    return DecodedRequest(signed, request, signed.request_id)


def memory_database(genesis: Genesis = GENESIS) -> sqlite3.Connection:
    """A database without a disk, for tests in which nothing crashes."""
    conn = sqlite3.connect(":memory:", isolation_level=None)
    create_or_check(conn, genesis, NODE, VIEW)
    return conn


def file_database(path: Path, genesis: Genesis = GENESIS) -> sqlite3.Connection:
    conn = open_database(path, writer=True)
    create_or_check(conn, genesis, NODE, VIEW)
    return conn


class Bank:
    """Makes requests with nonces of its own and decides their links on its database."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self.conn = conn
        self.issuer_limit = GENESIS.issuer_limit("CZK")
        self.now_ms = 2_000_000
        self.links: list[Link] = []
        self._nonce = 0

    def on(self, conn: sqlite3.Connection) -> "Bank":
        """A bank that goes on from here on a copy of this one's database."""
        bank = Bank(conn)
        bank.issuer_limit, bank.now_ms, bank.links, bank._nonce = (
            self.issuer_limit,
            self.now_ms,
            list(self.links),
            self._nonce,
        )
        return bank

    def nonce(self) -> bytes:
        self._nonce += 1
        return nonce_of(self._nonce)

    def opening(self, name: str, asset: str = "CZK") -> Request:
        return opening(NETWORK, name, asset, public_key_of(name), self.nonce())

    def transfer(
        self,
        sender: str,
        *postings: tuple[str, int],
        expect_tip: bytes = ANY_TIP,
        valid_until_height: int = ANY_HEIGHT,
    ) -> Request:
        made = [Posting(recipient, amount, f"to {recipient}"[:50]) for recipient, amount in postings]
        return transfer(
            NETWORK, sender, made, self.nonce(), expect_tip=expect_tip, valid_until_height=valid_until_height
        )

    def cancellation(self, sender: str, target: RequestId) -> Request:
        return cancellation(NETWORK, sender, target, self.nonce())

    def form(
        self,
        requests: Sequence[Request],
        *,
        conn: sqlite3.Connection | None = None,
        absent: Collection[str] | None = None,
        income_complete: bool = True,
    ) -> Formed:
        """The next link of the requests' sender; by default with the knowledge that nobody knows more."""
        name = requests[0].sender
        recipients = {p.recipient for r in requests for p in r.postings}
        ids = {decoded(r).request_id for r in requests} | {r.target for r in requests if r.target}
        needs = Needs(assets=recipients, outcomes={(name, i) for i in ids}, forming={name})
        loaded = load(conn or self.conn, needs)
        self.now_ms += 10
        return form_link(
            NETWORK,
            loaded.forming[name],
            [decoded(r) for r in requests],
            loaded.assets,
            {i for _, i in loaded.outcomes},
            epoch=1,
            now_ms=self.now_ms,
            absent=recipients if absent is None else absent,
            income_complete=income_complete,
            issuer_limit=self.issuer_limit,
        )

    def decide(self, *requests: Request) -> Link:
        """Form the next link of the requests' sender and apply it."""
        link = self.form(requests).link
        assert link is not None, requests
        self.apply(link)
        return link

    def apply(self, link: Link) -> None:
        commit(self.conn, [Applied(link)])
        self.links.append(link)

    def open(self, *names: str, asset: str = "CZK") -> None:
        for name in names:
            self.decide(self.opening(name, asset))

    def pay(self, sender: str, *postings: tuple[str, int]) -> Link:
        return self.decide(self.transfer(sender, *postings))

    def tip(self, name: str) -> LinkHash:
        return load(self.conn, Needs(heads={name})).heads[name].tip


def id_of(request: Request) -> RequestId:
    return decoded(request).request_id


def transfers_of(links: Sequence[Link]) -> list[tuple[object, ...]]:
    """The rows of the view `transfers` but their ids, by hash, when these links are applied: from nothing but the
    links."""
    confirmed_by = {posting: link.hash for link in links for posting in link.confirmed}
    rows, before = [], dict[tuple[str, str], bytes]()
    for link in sorted(links, key=lambda link: (link.account, link.height)):
        for number, posting, made, request_id in link.postings():
            confirmation = confirmed_by.get(posting)
            thread = before.get((link.account, made.recipient), bytes(32)) if confirmation else None
            before[link.account, made.recipient] = posting
            rows.append(
                (
                    posting, link.hash, number, link.prev_hash, link.account, made.recipient, made.amount, made.memo,
                    link.balance, link.incoming_checksum, link.height, link.time_ms, request_id, confirmation, thread,
                )
            )  # fmt: skip
    return sorted(rows, key=lambda row: row[0])


def read_transfers(conn: sqlite3.Connection) -> list[tuple[object, ...]]:
    """The same from the database."""
    return conn.execute(
        "SELECT hash, link_hash, number, prev_hash, sender, recipient, amount, memo, balance, incoming_checksum, height, "
        "time_ms, request_id, confirmation, prev_confirmed_hash FROM transfers ORDER BY hash"
    ).fetchall()


def read_incoming(conn: sqlite3.Connection) -> list[tuple[object, ...]]:
    """The rows of `incoming` under names, by hash."""
    return conn.execute("SELECT hash, recipient, sender, amount FROM waiting ORDER BY hash").fetchall()


def with_history(conn: sqlite3.Connection) -> Bank:
    """A bank with every kind of row: batches, overdrafts, cancellations, two assets, long streams, unconfirmed
    money."""
    bank = Bank(conn)
    bank.open("alice", "bob", "carol")
    bank.open("erik", asset="EUR")
    bank.pay("mint", ("alice", 1000), ("bob", 500), ("alice", 200))
    bank.pay("ezb", ("erik", 70))
    bank.pay("alice", ("bob", 300))
    lost = bank.transfer("bob", ("carol", 5))
    bank.decide(
        bank.transfer("bob", ("carol", 250), ("alice", 50)),
        bank.transfer("bob", ("carol", 10_000)),
        bank.transfer("bob", ("nobody", 1)),
        bank.transfer("bob", ("erik", 1)),
        bank.cancellation("bob", id_of(lost)),
    )
    late = bank.transfer("alice", ("carol", 7), valid_until_height=0)
    bank.decide(late, bank.transfer("alice", ("carol", 20), ("carol", 30)))
    bank.pay("mint", ("alice", 40))
    bank.pay("alice", ("bob", 1), ("carol", 2))
    bank.decide(bank.cancellation("carol", bank.links[4].entries[0].request_id), bank.transfer("carol", ("alice", 3)))
    again = bank.cancellation("bob", id_of(lost))
    bank.decide(again)
    bank.pay("mint", ("alice", 11), ("carol", 12))
    return bank


def damage_body(conn: sqlite3.Connection, link_hash: LinkHash) -> None:
    """Flip one bit in the middle of the body of this link, as a disk might."""
    header, body = conn.execute("SELECT header, body FROM links WHERE hash = ?", (link_hash,)).fetchone()
    at = len(body) // 2
    put_link(conn, link_hash, header, body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])


def put_link(conn: sqlite3.Connection, link_hash: LinkHash, header: bytes, body: bytes) -> None:
    """Write these bytes over the link with this hash, which no program can."""
    (trigger,) = conn.execute("SELECT sql FROM sqlite_master WHERE name = 'links_update'").fetchone()
    conn.execute("DROP TRIGGER links_update")
    conn.execute("UPDATE links SET header = ?, body = ? WHERE hash = ?", (header, body, link_hash))
    conn.execute(trigger)

"""Does a transfer cost the same with few accounts and with many, on an empty ledger and on a full one?

    python bench/scale.py                                  1,000 to 1,000,000 accounts, 10,000 to 10,000,000 postings
    python bench/scale.py --accounts 100000 --postings 1000000 --json
    python bench/scale.py --bulk --postings 1000000        payments of 8,190 postings to 10,000 accounts instead
    python bench/scale.py --keep docs/performance/scale.json                               and then bench/tables.py
    python bench/scale.py --bulk --postings 800000 --keep docs/performance/scale-bulk.json

One node's part of a transfer, without the network: read what the link depends on, form it, decode it and read what its
voters check (ADR 33, ADR 34), vote for it (one commit), check it again and apply it (one commit). No node does all of
that: the one that makes the link has formed it, and only the others check it before they vote. Payers and payees are
drawn from all accounts; 20 links share a commit, as under load. The database is a node's own, made by the same
functions, on the disk of `--directory`.
First it is filled with accounts, then with postings (16 accounts pass 8,190 postings on and on, so nearly all of them
are confirmed); at each power of ten the transfers are measured. Signatures are left out: a node checks one when a
client brings it, at a cost that depends on nothing.

With `--bulk` nothing but payments of 8,190 postings is made, from any account to any others, and each posting waits for
its recipient: the CPU of a posting is measured while the ledger grows, in steps of a tenth of `--postings`.

CPU is the thread's own, so what else runs matters little to it; the wall time has the waiting for the disk in it.
"""

import argparse
import hashlib
import json
import math
import os
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, Final

import kept
import text

from chain.disk import open_database
from chain.genesis import Asset, Genesis, GenesisMember, Issuer
from chain.link import Link, Outcome, decode_link_untrusted
from chain.load import load
from chain.needs import Loaded, Needs
from chain.request import (
    MAX_POSTINGS,
    DecodedRequest,
    NetworkId,
    Posting,
    Request,
    SignedRequest,
    encode_request,
    opening,
    transfer,
)
from chain.rows import Applied, Credit, VoteRow
from chain.rules import check_successor, form_link
from chain.store import commit, create_or_check
from node.acceptor import MAX_CHECKED
from node.familiar import Familiar

TOGETHER: Final = 20  # links of one commit when measured
FILLED: Final = 1000  # and while accounts are opened
FUNDS: Final = 1_000_000
BULK_ACCOUNTS: Final = 10_000
STEPS: Final = 10
FIRST_ACCOUNTS: Final = 1_000
FIRST_POSTINGS: Final = 10_000  # and how many accounts there are then
LEAST: Final = {"accounts": FIRST_ACCOUNTS, "postings": FIRST_POSTINGS, "transfers": TOGETHER}
LEAST_BULK: Final = {"postings": BULK_ACCOUNTS + 1}  # each account is funded with one posting first
RING: Final = tuple(f"ring-{number}" for number in range(16))
NODE: Final = bytes(20)
KEY: Final = bytes(range(32))


def genesis() -> Genesis:
    """A network of one asset and one issuer; nobody ever signs anything in it."""
    return Genesis(
        version=1,
        name="scale",
        assets=(Asset("CZK", 2),),
        issuers=(Issuer("mint", "CZK", KEY.hex()),),
        k=1,
        ca="",
        members=(GenesisMember(KEY.hex()),),
        time_ms=1,
    )


class Ledger:
    """A node's database and the part of its work that costs. Whom it has met it does not look up again, as a node."""

    def __init__(self, path: Path) -> None:
        self.conn = open_database(path, writer=True)
        self.network: NetworkId = genesis().network_id
        self.postings = 0  # stored so far; SQL could only count them one by one
        create_or_check(self.conn, genesis(), NODE, (bytes(32), b"view"))
        self._familiar = Familiar()
        self._nonce = count(1)
        self._clock_ms = count(2)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.conn.close()

    def pay(self, sender: str, postings: Sequence[Posting]) -> Request:
        """A payment that is like no other."""
        return transfer(self.network, sender, postings, next(self._nonce).to_bytes(32, "big"))

    def make(self, requests: Sequence[Request]) -> None:
        """Make, check, vote for and apply one link for the requests of each sender."""
        links = self.check(self.form(requests))
        self.vote(links)
        self.apply(links)

    def form(self, requests: Sequence[Request]) -> list[Link]:
        """One link for the requests of each sender, as the node makes it that is to."""
        needs = Needs()
        queues: dict[str, list[DecodedRequest]] = {}
        for request in requests:
            item = decoded(request)
            queues.setdefault(request.sender, []).append(item)
            needs.assets |= self._familiar.strangers(request.recipients)
            needs.outcomes.add((request.sender, item.request_id))
        needs.forming.update(queues)
        loaded = self._load(needs)
        links = []
        for sender, items in queues.items():
            formed = form_link(
                self.network,
                loaded.forming[sender],
                items,
                self._familiar.assets,
                (),
                epoch=1,
                now_ms=next(self._clock_ms),
            )
            assert formed.link is not None and len(formed.link.entries) == len(items), f"{len(formed.left)} left out"
            assert all(entry.outcome is Outcome.COMPLETED for entry in formed.link.entries), "a transfer was rejected"
            links.append(formed.link)
        return links

    def check(self, links: Sequence[Link]) -> list[Link]:
        """The same links, decoded and looked at as who is to vote for them does (`node.acceptor`)."""
        decoded = [decode_link_untrusted(link.raw) for link in links]
        needs = Needs()
        for link in decoded:
            needs_vote(link, self._familiar, needs)
        loaded = self._load(needs)
        for link in decoded:
            if len(link.confirmed) + len(link.entries) <= MAX_CHECKED:
                recorded = [request_id for request_id, _ in link.outcomes()]
                assert len(set(recorded)) == len(recorded), "two outcomes of one request"
                assert not any((link.account, request_id) in loaded.outcomes for request_id in recorded), "paid before"
                self._follows(link, loaded)
        return decoded

    def vote(self, links: Sequence[Link]) -> None:
        """Write a vote for each, in one commit."""
        ballot = (1, 0, NODE)
        commit(
            self.conn,
            [VoteRow(link.prev_hash, link.account, link.height, ballot, ballot, link.raw) for link in links],
        )

    def apply(self, links: Sequence[Link]) -> None:
        """Check that the links follow, and write them, in one commit."""
        needs = Needs()
        for link in links:
            needs_apply(link, self._familiar, needs)
        loaded = self._load(needs)
        commit(self.conn, [Applied(link, self._follows(link, loaded)) for link in links])
        self.postings += sum(len(link.posting_hashes) for link in links)
        self._familiar.tidy()

    def _load(self, needs: Needs) -> Loaded:
        """The rows; who is among them is met."""
        loaded = load(self.conn, needs)
        self._familiar.note(loaded.assets)
        return loaded

    def _follows(self, link: Link, loaded: Loaded) -> tuple[Credit, ...]:
        """What it confirms, when it follows from what is here."""
        confirmed = tuple([loaded.postings[posting] for posting in link.confirmed])
        check_successor(link, loaded.heads.get(link.account), confirmed, self._familiar.assets, loaded.taken)
        return confirmed

    def open(self, names: Sequence[str]) -> None:
        """Open accounts and give each FUNDS."""
        for start in range(0, len(names), FILLED):
            part = names[start : start + FILLED]
            opened = []
            for name in part:
                item = decoded(opening(self.network, name, "CZK", KEY, next(self._nonce).to_bytes(32, "big")))
                opened.append(form_opening(self.network, item, next(self._clock_ms)))
            self.apply(opened)
            self.make([self.pay("mint", [Posting(name, FUNDS) for name in part])])


def needs_vote(link: Link, familiar: Familiar, needs: Needs) -> None:
    """What who is asked to vote for a link looks at, as `Acceptor.needs_check`."""
    needs.heads.add(link.account)
    if len(link.confirmed) + len(link.entries) <= MAX_CHECKED:
        needs.assets |= familiar.strangers(link.recipients)
        if link.confirmed:
            needs.postings.setdefault(link.account, set()).update(link.confirmed)
        needs.outcomes.update((link.account, request_id) for request_id, _ in link.outcomes())


def needs_apply(link: Link, familiar: Familiar, needs: Needs) -> None:
    """What must be looked at to apply a link, as `Replica.needs_link` with nothing that waits."""
    needs.heads.add(link.account)
    needs.links_at.add((link.account, link.height))
    if link.confirmed:
        needs.postings.setdefault(link.account, set()).update(link.confirmed)
    needs.made.update(link.posting_hashes)
    needs.assets |= familiar.strangers(link.recipients)


def decoded(request: Request) -> DecodedRequest:
    """The request as it waits at its owner."""
    signed = SignedRequest(encode_request(request), bytes(64))
    return DecodedRequest(signed, request, signed.request_id)


def form_opening(network: NetworkId, item: DecodedRequest, now_ms: int) -> Link:
    """Link 0 of an account."""
    from chain.rows import Forming

    formed = form_link(network, Forming(None, b"", (), (), 0), [item], {}, (), epoch=1, now_ms=now_ms)
    assert formed.link is not None
    return formed.link


def measure(ledger: Ledger, names: Sequence[str], transfers: int, rng: random.Random) -> dict[str, float]:
    """Transfers of one posting between accounts drawn from `names`: microseconds of CPU and of time each, medians over
    the commits."""
    cpu: list[float] = []
    wall: list[float] = []
    for _ in range(transfers // TOGETHER):
        payers = rng.sample(range(len(names)), TOGETHER)
        requests = []
        for payer in payers:
            payee = (payer + rng.randrange(1, len(names))) % len(names)
            requests.append(ledger.pay(names[payer], [Posting(names[payee], 1)]))
        cpu_0, wall_0 = time.thread_time(), time.perf_counter()
        ledger.make(requests)
        cpu.append((time.thread_time() - cpu_0) / TOGETHER * 1e6)
        wall.append((time.perf_counter() - wall_0) / TOGETHER * 1e6)
    return {
        "cpu_us": round(statistics.median(cpu), 1),
        "cpu_mean_us": round(statistics.mean(cpu), 1),
        "wall_us": round(statistics.median(wall), 1),
    }


def fill_postings(ledger: Ledger, target: int, turn: Iterator[int]) -> None:
    """Pass MAX_POSTINGS postings round the ring until `target` are stored."""
    while ledger.postings < target:
        number = next(turn)
        payer, payee = RING[number % len(RING)], RING[(number + 1) % len(RING)]
        wanted = min(MAX_POSTINGS, target - ledger.postings)
        ledger.make([ledger.pay(payer, [Posting(payee, 1)] * wanted)])


def run_bulk(asked: argparse.Namespace, place: Path) -> list[dict[str, object]]:
    """Pay MAX_POSTINGS at once until `asked.postings` are stored; microseconds of CPU for a posting, medians of each
    step."""
    rng = random.Random(asked.seed)
    rows: list[dict[str, object]] = []
    if not asked.json:
        sys.stdout.write("      postings  CPU us a posting\n")
    with Ledger(place / "bulk.db") as ledger:
        names = [hashlib.sha256(b"%d" % number).hexdigest()[:16] for number in range(BULK_ACCOUNTS)]
        ledger.open(names)
        for step in range(1, STEPS + 1):
            cpu: list[float] = []
            while ledger.postings < asked.postings * step // STEPS:
                payer = rng.choice(names)
                payees = [name for name in rng.choices(names, k=MAX_POSTINGS + 64) if name != payer][:MAX_POSTINGS]
                request = ledger.pay(payer, [Posting(name, 1) for name in payees])
                began = time.thread_time()
                ledger.make([request])
                cpu.append((time.thread_time() - began) / MAX_POSTINGS * 1e6)
            if cpu:
                rows.append({"postings": ledger.postings, "cpu_us": round(statistics.median(cpu), 1)})
                if not asked.json:
                    sys.stdout.write(f"{ledger.postings:>14,} {rows[-1]['cpu_us']:>17}\n")
                    sys.stdout.flush()
    return rows


def powers(first: int, last: int) -> list[int]:
    """first, 10 first, .. up to last."""
    return [size for size in (first * 10**n for n in range(20)) if size <= last]


def run(asked: argparse.Namespace, place: Path) -> list[dict[str, object]]:
    """Fill and measure; the rows of the table."""
    rng = random.Random(asked.seed)
    rows: list[dict[str, object]] = []
    names: list[str] = []

    def row(ledger: Ledger, path: Path) -> None:
        found = measure(ledger, names, asked.transfers, rng)
        size_mb = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) / 1e6
        rows.append(
            {
                "grows": path.stem,
                "accounts": len(names),
                "postings": ledger.postings,
                **found,
                "disk_mb": round(size_mb),
            }
        )
        if not asked.json:
            sys.stdout.write(
                f"{len(names):>12,} {ledger.postings:>14,} {found['cpu_us']:>9} {found['cpu_mean_us']:>9} {found['wall_us']:>9} {size_mb:>9,.0f}\n"
            )
            sys.stdout.flush()

    if not asked.json:
        sys.stdout.write("    accounts       postings    CPU us      mean   time us   disk MB\n")
    fresh = (hashlib.sha256(b"%d" % number).hexdigest()[:16] for number in count())
    path = place / "accounts.db"
    with Ledger(path) as ledger:
        for size in powers(FIRST_ACCOUNTS, asked.accounts):
            more = list(islice(fresh, size - len(names)))
            ledger.open(more)
            names += more
            row(ledger, path)
    names.clear()
    path = place / "postings.db"
    turn = count()
    with Ledger(path) as ledger:
        more = list(islice(fresh, FIRST_POSTINGS))  # each is funded with one posting, so the first size is there
        ledger.open([*RING, *more])
        names += more
        for size in powers(FIRST_POSTINGS, asked.postings):
            fill_postings(ledger, size, turn)
            row(ledger, path)
    return rows


def to_keep(rows: Sequence[dict[str, object]]) -> dict[str, Any]:
    """Of the rows, what docs/performance.md shows."""
    keys = ("grows", "accounts", "postings", "cpu_us", "disk_mb")
    return {"rows": [{key: row[key] for key in keys if key in row} for row in rows]}  # with --bulk two of them


def scale_table(results: text.Kept) -> str:
    """CPU with more accounts and with more postings."""
    rows = [
        [
            f"{row['accounts']:,}",
            text.whole(round(row["postings"], -3)),
            text.whole(row["cpu_us"]),
            f"{row['disk_mb']:,}",
        ]
        for row in results["scale"]["rows"]
    ]
    return text.grid(["accounts", "postings stored", "CPU us", "database MB"], rows)


def growth(results: text.Kept) -> str:
    """How many times the CPU of the smallest the largest takes."""
    found = []
    for grows in ("accounts", "postings"):
        rows = [row for row in results["scale"]["rows"] if row["grows"] == grows]
        first, last = (round(math.log10(row[grows])) for row in (rows[0], rows[-1]))
        found.append(f"{rows[-1]['cpu_us'] / rows[0]['cpu_us']:.1f} times from 10^{first} to 10^{last} {grows}")
    return text.listed(found)


def bulk_table(results: text.Kept) -> str:
    """CPU of a posting while the ledger grows."""
    rows = results["scale-bulk"]["rows"]
    return text.grid(
        ["postings stored", *(f"{row['postings']:,}" for row in rows)],
        [["CPU us a posting", *(f"{row['cpu_us']:.1f}" for row in rows)]],
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accounts", type=int, default=1_000_000, help="most accounts (default 1,000,000)")
    parser.add_argument("--postings", type=int, default=10_000_000, help="most postings (default 10,000,000; 5 GB)")
    parser.add_argument("--transfers", type=int, default=4_000, help="measured at each size (default 4,000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--directory", type=Path, help="where the databases are made (default: the temporary directory)"
    )
    parser.add_argument("--bulk", action="store_true", help="payments of 8,190 postings instead")
    parser.add_argument("--json", action="store_true")
    kept.options(parser)
    asked = parser.parse_args()
    for name, least in (LEAST_BULK if asked.bulk else LEAST).items():
        if getattr(asked, name) < least:
            parser.error(f"--{name} {getattr(asked, name)} leaves nothing to measure: take {least:,} or more")
    kept.prepare(parser, asked)
    with tempfile.TemporaryDirectory(prefix="hopchain-scale-", dir=asked.directory) as place:
        rows = (run_bulk if asked.bulk else run)(asked, Path(place))
    kept.write(asked, to_keep(rows))
    if asked.json:
        sys.stdout.write(
            f"{json.dumps({'cores': os.cpu_count(), 'sqlite': sqlite3.sqlite_version, 'rows': rows}, indent=2)}\n"
        )


if __name__ == "__main__":
    main()

"""Links as they are stored, header | body: of a chain, by their hashes, for others within bounds."""

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import dropwhile
from typing import Final, TypeVar

from chain.errors import Corruption, RemoteFault
from chain.keyed import join, pair, singles
from chain.link import LinkHash, PostingHash, read_header
from chain.needs import Loaded, Needs
from chain.schema import BY_HASH

CHAIN_BATCH: Final = 256  # links in one answer about a chain
CHAIN_BATCH_BYTES: Final = 1 << 20  # and their bytes, but always one link: a frame holds a few of these
# Of links for others in one turn, of each kind: a quarter of what may wait for one peer
WANTED_BYTES: Final = 8 * 1024 * 1024
_CHAIN: Final = "SELECT header, body FROM links WHERE account = ? AND height >= ? ORDER BY height LIMIT ?"
_BY_HASH: Final = "SELECT l.hash, l.header, l.body FROM k CROSS JOIN links AS l ON l.hash = k.column1"
_BY_SEQ: Final = "SELECT l.seq, l.header, l.body FROM k CROSS JOIN links AS l ON l.seq = k.column1"
_LINK_OF: Final = f"SELECT p.hash, p.id >> 14 FROM k CROSS JOIN postings AS p ON {BY_HASH.format('k.column1')}"
_HEADERS: Final = "SELECT l.hash, l.header FROM k CROSS JOIN links AS l ON l.hash = k.column1"


T = TypeVar("T")
U = TypeVar("U")


def raw_chain(conn: sqlite3.Connection, account: str, from_height: int) -> tuple[bytes, ...]:
    """As many links of the account, from this height on, as one answer holds."""
    links: list[bytes] = []
    size = 0
    for header, body in conn.execute(_CHAIN, (account, from_height, CHAIN_BATCH)):
        size += len(header) + len(body)
        if links and size > CHAIN_BATCH_BYTES:
            break
        links.append(header + body)
    return tuple(links)


def raw_links(conn: sqlite3.Connection, links: Collection[LinkHash]) -> Iterator[tuple[LinkHash, bytes]]:
    """Those of these links that are here, each after its hash, in this order."""
    return join(conn, _BY_HASH, singles(links), _keyed_raw)


def load_wanted(conn: sqlite3.Connection, needs: Needs, loaded: Loaded) -> None:
    """What others asked for. A link is read once for however many of its postings."""
    chains = ((key, raw_chain(conn, *key)) for key in needs.wanted_chains)
    loaded.wanted_chains, cut_chains = _bounded(chains, needs.wanted_chains, _total)
    links = raw_links(conn, needs.wanted_links)
    loaded.wanted_links, cut_links = _bounded(links, needs.wanted_links, len)
    of_link: dict[int, list[PostingHash]] = {}
    for posting, seq in join(conn, _LINK_OF, singles(needs.wanted_postings), pair):
        of_link.setdefault(seq, []).append(posting)
    paying: Iterator[tuple[int, bytes]] = join(conn, _BY_SEQ, singles(of_link), _keyed_raw)
    raws, cut = _bounded(paying, of_link, len)
    for seq, raw in raws.items():
        loaded.wanted_postings.update(dict.fromkeys(of_link[seq], raw))
    loaded.cut.update(cut_chains, cut_links, *(of_link[seq] for seq in cut))


def _bounded(rows: Iterable[tuple[U, T]], keys: Iterable[U], size_of: Callable[[T], int]) -> tuple[dict[U, T], list[U]]:
    """As many rows as `WANTED_BYTES` have room for, and always the first; and those of the `keys`, in whose order the
    rows are, that there was no room for."""
    found: dict[U, T] = {}
    size = 0
    for key, value in rows:
        size += size_of(value)
        if size > WANTED_BYTES and size > size_of(value):
            return found, list(dropwhile(key.__ne__, keys))
        found[key] = value
    return found, []


def _total(raws: Sequence[bytes]) -> int:
    return sum(map(len, raws))


def _keyed_raw(key: T, header: bytes, body: bytes) -> tuple[T, bytes]:
    return key, header + body


def read_headers(conn: sqlite3.Connection, links: Collection[LinkHash]) -> list[bytes]:
    """The headers of those of these links that are here."""
    return list(join(conn, _HEADERS, singles(links), lambda _, header: header))


def accounts_of(conn: sqlite3.Connection, links: Collection[LinkHash]) -> dict[LinkHash, str]:
    """The accounts of those of these links that are here, by their headers."""
    return dict(join(conn, _HEADERS, singles(links), _account_of))


def _account_of(link: bytes, header: bytes) -> tuple[LinkHash, str]:
    """What a client is told by it is final, so it is as the header says, not a column."""
    try:
        found, account, height, _ = read_header(header)
    except RemoteFault as fault:
        raise damaged_link(link, fault.text) from None
    if found != link:
        raise another_header(link, found, account, height)
    return found, account


def another_header(link: bytes, found: LinkHash, account: str, height: int) -> Corruption:
    """What stands here under the hash of `link` is the link with the hash `found`."""
    return damaged_link(link, f"its header is that of link {height} of {account} ({found.hex()[:16]})")


def damaged_link(link: bytes, what: str) -> Corruption:
    """The row of this link is damaged: `what` is wrong with it."""
    return Corruption(f"links row {link.hex()[:16]}: {what}; run `hopchain verify` on the database")

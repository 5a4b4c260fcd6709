"""What a node answers from its own replica, on connections that only read: balances, chains, lists, routes.

Nothing here passes through the core, so a long list delays no payment; lists and digests each have a connection of
their own, so they delay no balance and no outcome, and how the node is needs none of them (ADR 30). Every answer holds
only decided links, and says how old it is (tip, height, epoch, as_of) and whether others may know more (stale). Each is
of one moment of the database; most balances are known by heart, and may have decided links that the database is about
to get.
"""

import sqlite3
from collections.abc import Callable, Mapping
from typing import Final, assert_never

import trio

from chain.disk import snapshot
from chain.genesis import Genesis
from chain.link import opening_slot
from chain.load import load
from chain.needs import Needs
from chain.reads import Balance as FoundBalance
from chain.reads import (
    ChainLink,
    StateDigest,
    read_accounts,
    read_balance,
    read_balances,
    read_chain,
    read_outcome,
    state_digest,
)
from chain.request import RequestId
from chain.rows import AccountHead
from hopchain import wire
from node.answers import recorded
from node.balance_answer import balance_answer, scale_of
from node.balances import Balances
from node.core import Core
from node.database import Database
from node.questions import Question, account_asked
from node.status import NodeStatus
from node.turn import Now
from routing.dht import Dht, Lookup
from routing.keyspace import ID_BYTES, NodeId
from routing.view import View

# Of one Chain answer above its first link; the client asks on from the next height.
MAX_CHAIN_BYTES: Final = 1024 * 1024

BALANCES_AT_ONCE: Final = 256  # read by a node that starts: a few milliseconds of work


class Serving:
    """Answers reads. `dht` is set once the node's DHT is open."""

    def __init__(
        self,
        genesis: Genesis,
        core: Core,
        reader: Database,
        balances: Balances,
        status: NodeStatus,
        *,
        addresses: Mapping[NodeId, tuple[str, int]],
        clock: Callable[[], Now],
        list_reader: Database | None = None,
        long_reader: Database | None = None,
    ) -> None:
        """`list_reader`, `long_reader`: for lists, and for what takes seconds. What is asked of one reader waits for
        nothing that is asked of another."""
        self._genesis = genesis
        self._network = genesis.network_id
        self._core = core
        self._reader = reader
        self._list_reader = list_reader or reader
        self._long_reader = long_reader or reader
        self._balances = balances
        self._status = status
        self._addresses = addresses
        self._clock = clock
        self._digesting = trio.StrictFIFOLock()
        self._digest: tuple[float, float, StateDigest] | None = None  # the last one: when it was begun and had
        self.dht: Dht | None = None

    async def answer(self, body: Question, asked: float | None = None) -> wire.ReplyBody:
        """The answer of this replica, now. `check_question_untrusted` has passed the question. `asked`: since when it
        could be answered (monotonic seconds), when that was before now."""
        match body:
            case wire.AskBalance():
                asked = self._clock().mono if asked is None else asked
                answer = await self._balance(body)
                self._status.note_balance(asked, self._clock().mono - asked)
                return answer
            case wire.AskOutcome():
                found = await self._reader.run(read_outcome, RequestId(body.request_id), body.account or None)
                if found is None:
                    return wire.NotFound(f"request {body.request_id.hex()}", self._stale)
                return recorded(found, b"", 0, repeated=True)
            case wire.AskChain():
                return await self._chain(body)
            case wire.AskAccounts():
                lines = await self._list_reader.run(_account_lines, body, self._genesis)
                page = min(max(body.limit, 1), wire.MAX_PAGE)
                return wire.Accounts(lines[:page], len(lines) > page, self._stale)
            case wire.AskRoute():
                return await self._route(body)
            case wire.AskStatus():
                return self._status.status()
            case wire.AskDigest():
                state = await self._state()
                totals = tuple(wire.AssetTotal(asset, total) for asset, total in state.totals)
                epoch = self._core.view.epoch
                return wire.Digest(state.digest, state.accounts, state.links, epoch, totals, self._stale)
            case wire.AskMembers():
                return self._members(body)
            case wire.AskHealth():
                return self._status.health()
            case _:
                assert_never(body)

    def has_height(self, ask: wire.AskBalance) -> bool:
        """The balance is known by heart, with all that a commit under way brings, and has the link asked for."""
        known = self._balances.get(ask.account)
        return known is not None and known.height >= ask.min_height and self._balances.has_all_of(ask.account)

    def account_read(self, body: Question) -> str | None:
        """The account whose links the database must have before this is answered: empty when it may be any, None when
        it needs none, as for a balance that is known by heart."""
        account = account_asked(body)
        by_heart = isinstance(body, wire.AskBalance | wire.AskRoute) and account
        return None if by_heart and self._balances.has_all_of(by_heart) else account

    @property
    def _stale(self) -> bool:
        """Others may have gone on without this node. Looked at when the answer is made, after the replica was read."""
        return not self._core.is_current(self._clock())

    async def remember_balances(self) -> None:
        """Read the balances of all accounts, or of as many as are kept, beside what the node does meanwhile."""
        after = ""
        while not self._balances.is_full:
            with self._balances.reading() as keep:
                page = await self._long_reader.run(read_balances, after, BALANCES_AT_ONCE)
                for found in page:
                    keep(found)
            if not page:
                return
            after = page[-1].name

    async def _found(self, account: str) -> FoundBalance | None:
        """The balance: from memory, or from the database, to be kept in memory."""
        found = self._balances.get(account)
        if found is None:
            with self._balances.reading() as keep:
                found = await self._reader.run(read_balance, account)
                if found is not None:
                    keep(found)
            found = self._balances.get(account) or found  # a reader may be ahead of what others were told meanwhile
        return found

    async def _balance(self, ask: wire.AskBalance) -> wire.ReplyBody:
        found = await self._found(ask.account)
        return balance_answer(found, ask, self._core, self._genesis, self._clock())

    async def _state(self) -> StateDigest:
        """One digest for all who wait when it begins, then none for as long as it took: the log of the database begins
        anew only when a checkpoint is due while nobody reads it for long."""
        asked = trio.current_time()
        async with self._digesting:
            if self._digest is None or self._digest[0] <= asked:
                if self._digest is not None:
                    await trio.sleep_until(2 * self._digest[1] - self._digest[0])
                began = trio.current_time()
                state = await self._long_reader.run(state_digest)
                self._digest = began, trio.current_time(), state
            return self._digest[2]

    async def _chain(self, ask: wire.AskChain) -> wire.ReplyBody:
        page = await self._list_reader.run(_chain_page, ask)
        if page is None:
            return wire.NotFound(f"account {ask.account}", self._stale)
        head, links = page
        return wire.Chain(
            ask.account,
            head.asset,
            scale_of(self._genesis, head.asset),
            head.height,
            links,
            self._stale,
        )

    # --- routes ---

    async def _route(self, ask: wire.AskRoute) -> wire.ReplyBody:
        assert self.dht is not None
        slot = ask.key
        if ask.account:
            found = await self._found(ask.account)
            slot = found.tip if found is not None else opening_slot(self._network, ask.account)
        key = slot[:ID_BYTES]
        group = self._core.view.group(key)
        lookup = await self.dht.lookup(key)
        return wire.Route(
            key=key,
            slot=slot,
            asked=lookup.asked,
            hops=lookup.hops,
            found=tuple(self._route_node(contact.id, group, lookup) for contact in lookup.contacts),
            group=tuple(self._route_node(node, group, lookup) for node in group),
            epoch=self._core.view.epoch,
            stale=self._stale,
        )

    def _route_node(self, node: NodeId, group: tuple[NodeId, ...], lookup: Lookup) -> wire.RouteNode:
        found = {contact.id: (contact.host, contact.port) for contact in lookup.contacts}
        host, port = found.get(node) or self._addresses.get(node) or ("", 0)
        rank = group.index(node) if node in group else -1
        return wire.RouteNode(node, host, port, rank, self._core.peers.alive(node, self._clock()))

    # --- members ---

    def _members(self, ask: wire.AskMembers) -> wire.Members:
        views = [view for view in self._core.views if view.epoch >= ask.from_epoch][: wire.MAX_VIEWS_PAGE]
        return wire.Members(self._core.view.epoch, tuple(map(_view_line, views)), self._stale)


def _view_line(view: View) -> wire.ViewLine:
    members = tuple(wire.MemberLine(m.id, m.public_key, m.incarnation) for m in view.members)
    return wire.ViewLine(view.epoch, view.hash, view.time_ms, view.by, members)


def _account_lines(conn: sqlite3.Connection, ask: wire.AskAccounts, genesis: Genesis) -> tuple[wire.AccountLine, ...]:
    """One line more than asked for, when there are more."""
    limit = min(max(ask.limit, 1), wire.MAX_PAGE) + 1
    return tuple(
        wire.AccountLine(
            head.name,
            head.asset,
            scale_of(genesis, head.asset),
            head.issuer,
            head.public_key,
            balance.height,
            balance.tip,
            balance.settled,
            balance.incoming,
        )
        for head, balance in read_accounts(conn, ask.after, limit)
    )


def _chain_page(conn: sqlite3.Connection, ask: wire.AskChain) -> tuple[AccountHead, tuple[wire.ChainLink, ...]] | None:
    """The head of the account, if it is known, and links up to it, as they are shown: here and not in the thread that
    waits, where nothing else would run meanwhile."""
    with snapshot(conn):
        head = load(conn, Needs(heads={ask.account})).heads.get(ask.account)
        if head is None:
            return None
        start = min(ask.from_height, head.height + 1)  # a greater one need not fit SQLite's integers
        links = read_chain(conn, ask.account, start, min(max(ask.limit, 1), wire.MAX_PAGE), MAX_CHAIN_BYTES)
    shown: list[wire.ChainLink] = []
    size = 0
    for link in map(_chain_link, links):
        size += len(wire.encode(link))
        if shown and size > MAX_CHAIN_BYTES:
            break
        shown.append(link)
    return head, tuple(shown)


def _chain_link(link: ChainLink) -> wire.ChainLink:
    return wire.ChainLink(
        hash=link.hash,
        height=link.height,
        prev_hash=link.prev_hash,
        balance=link.balance,
        incoming_checksum=link.incoming_checksum,
        epoch=link.epoch,
        time_ms=link.time_ms,
        entries=tuple(
            wire.ChainEntry(e.request_id, int(e.request.kind), int(e.outcome), e.request.total) for e in link.entries
        ),
        postings=tuple(
            wire.ChainPosting(
                row.hash,
                row.number,
                row.recipient,
                row.amount,
                row.memo,
                entry.request_id,
                row.confirmation or b"",
                row.prev_confirmed_hash or b"",
            )
            for entry in link.entries
            for row in entry.postings
        ),
        income=tuple(wire.ChainIncome(row.hash, row.sender, row.amount) for row in link.confirmed),
    )

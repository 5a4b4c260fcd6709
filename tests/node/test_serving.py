"""What a node answers from its replica: every kind of question, its edges, and what is refused."""

import random
import sqlite3
from collections.abc import Callable
from itertools import count
from typing import Any, cast

import pytest
import trio
import trio.testing

from chain.link import Outcome, opening_slot
from chain.names import NAME_BYTES, pad
from chain.needs import Loaded
from chain.reads import read_balance
from chain.request import Kind
from hopchain import wire
from node import serving as serving_module
from node.balances import Balances
from node.core import Core, Start
from node.events import Event, FromPeer, PeerUp, ToldRemoved
from node.messages import Ping, Pong, Views
from node.peers import CURRENT_S, PING_EVERY_S
from node.questions import Question
from node.serving import Serving
from node.status import LEAST_TIMED, TIMED_S, NodeStatus
from node.turn import Now
from routing.dht import Contact, Lookup
from routing.keyspace import NodeId, node_id_of
from routing.view import encode_view, first_view, member_of, with_member
from tests.chain.bank import GENESIS, NETWORK, Bank, damage_body, memory_database, public_key_of

VIEW = first_view(NETWORK, 2, [member_of(public_key_of(f"node {n}")) for n in (1, 2, 3)])
ME, PEER, GONE = (node_id_of(public_key_of(f"node {n}")) for n in (1, 2, 3))
STRANGER = node_id_of(public_key_of("node 9"))
ADDRESSES = {ME: ("10.0.0.1", 1), PEER: ("10.0.0.2", 2)}
NOW = Now(50.0, 9_999)
STALE_OR_NOT = (
    wire.Balance, wire.NotFound, wire.Chain, wire.Accounts, wire.Route, wire.Digest, wire.Members
)  # fmt: skip


class InlineDatabase:
    def __init__(self, conn: sqlite3.Connection) -> None:
        self.conn = conn

    async def run(self, function: Callable[..., object], *args: object) -> object:
        return function(self.conn, *args)


class FakeDht:
    """Finds one node at an address of its own for every key."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []

    async def lookup(self, key: bytes) -> Lookup:
        self.keys.append(key)
        return Lookup(key, (Contact(PEER, "10.9.9.9", 99),), (GONE, PEER), (GONE,), 2, 0.1)


@pytest.fixture
def bank() -> Bank:
    bank = Bank(memory_database())
    bank.open("alice", "bob")
    bank.pay("mint", ("alice", 100), ("alice", 20))
    bank.pay("alice", ("bob", 30))
    return bank


@pytest.fixture
def core() -> Core:
    return Core(ME, GENESIS, VIEW, random.Random(1), Start([], 7, {}, {}), Now(0.0, 0))


@pytest.fixture
def dht() -> FakeDht:
    return FakeDht()


def serve(core: Core, database: Any, clock: Callable[[], Now] = lambda: NOW) -> Serving:
    status = NodeStatus(ME, core, accounts=lambda: 5, addresses=ADDRESSES, counters=dict, clock=clock)
    return Serving(GENESIS, core, database, Balances(), status, addresses=ADDRESSES, clock=clock)


@pytest.fixture
def serving(bank: Bank, core: Core, dht: FakeDht) -> Serving:
    made = serve(core, InlineDatabase(bank.conn))
    made.dht = dht
    return made


async def test_a_balance_says_what_is_settled_what_comes_in_and_how_old_it_is(serving: Serving, bank: Bank) -> None:
    link = bank.links[-1]
    assert await serving.answer(wire.AskBalance("alice", linearizable=True)) == wire.Balance(
        account="alice",
        asset="CZK",
        scale=2,
        issuer=False,
        settled=90,
        incoming=0,
        incoming_count=0,
        tip=link.hash,
        height=1,
        link_epoch=1,
        time_ms=link.time_ms,
        epoch=1,
        as_of_ms=NOW.unix_ms,
        linearizable=True,
        stale=False,  # a majority was asked, although none is heard of now
    )
    bob = await serving.answer(wire.AskBalance("bob"))
    assert isinstance(bob, wire.Balance) and bob.stale
    assert (bob.settled, bob.incoming, bob.incoming_count, bob.height) == (0, 30, 1, 0)
    mint = await serving.answer(wire.AskBalance("mint"))
    assert isinstance(mint, wire.Balance)
    assert (mint.settled, mint.issuer) == (-120, True)


class Counted:
    """A database that counts what it is asked; `before_return` runs when a result is on its way."""

    def __init__(self, inner: InlineDatabase) -> None:
        self.inner = inner
        self.count = 0
        self.before_return: Callable[[], None] = lambda: None

    async def run(self, function: Callable[..., object], *args: object) -> object:
        self.count += 1
        result = await self.inner.run(function, *args)
        self.before_return()
        return result


async def settled(serving: Serving, account: str) -> int:
    answer = await serving.answer(wire.AskBalance(account))
    assert isinstance(answer, wire.Balance)
    return answer.settled + answer.incoming


async def test_a_balance_is_read_once_and_follows_the_commits(serving: Serving, bank: Bank) -> None:
    database = serving._reader = Counted(InlineDatabase(bank.conn))  # type: ignore[assignment]
    assert [await settled(serving, "bob") for _ in range(3)] == [30, 30, 30]
    assert database.count == 1
    with serving._balances.committing([bank.pay("alice", ("bob", 5))], decided=False):
        assert await settled(serving, "bob") == 30, "the driver has not said that the commit is over"
    assert await settled(serving, "bob") == 35
    assert database.count == 1


async def test_a_balance_that_a_commit_overtook_is_not_remembered(serving: Serving, bank: Bank) -> None:
    database = serving._reader = Counted(InlineDatabase(bank.conn))  # type: ignore[assignment]

    def overtake() -> None:
        database.before_return = lambda: None
        with serving._balances.committing([bank.pay("alice", ("bob", 5))], decided=False):
            pass

    database.before_return = overtake
    assert await settled(serving, "bob") == 30, "as it was when it was read"
    assert await settled(serving, "bob") == 35


async def test_a_page_of_balances_that_a_commit_overtook_is_kept_but_for_them(serving: Serving, bank: Bank) -> None:
    database = serving._long_reader = Counted(InlineDatabase(bank.conn))  # type: ignore[assignment]

    def overtake() -> None:
        database.before_return = lambda: None
        with serving._balances.committing([bank.pay("alice", ("bob", 5))], decided=False):
            pass

    database.before_return = overtake
    await serving.remember_balances()
    assert [serving._balances.get(name) is not None for name in ("alice", "bob", "mint")] == [False, False, True]
    assert await settled(serving, "bob") == 35


async def test_no_answer_is_ahead_of_what_the_node_has_heard_when_another_was_not(serving: Serving, bank: Bank) -> None:
    """A reader sees a commit before the node hears that it has ended."""
    database = serving._reader = Counted(InlineDatabase(bank.conn))  # type: ignore[assignment]
    answers: list[int] = []
    before = read_balance(bank.conn, "bob")
    assert before is not None
    with serving._balances.reading() as keep:
        keep(before)  # another reading, which ended sooner

    def sooner() -> None:
        serving._balances._known[bob] = known

    bob = pad("bob", NAME_BYTES)
    known = serving._balances._known.pop(bob)
    database.before_return = sooner
    with serving._balances.committing([bank.pay("alice", ("bob", 5))], decided=False):
        answers += [await settled(serving, "bob") for _ in range(2)]
    answers.append(await settled(serving, "bob"))
    assert answers == [30, 30, 35]


async def test_a_chain_has_no_link_above_the_height_that_it_tells(serving: Serving, bank: Bank) -> None:
    """Also when the balance that is known by heart has a link that the database is about to get."""
    await settled(serving, "alice")
    ahead = Bank(memory_database())
    ahead.open("alice", "bob")
    decided = [ahead.pay("mint", ("alice", 120)), ahead.pay("alice", ("bob", 30)), ahead.pay("alice", ("bob", 5))]
    with serving._balances.committing(decided[-1:], decided=True):
        assert await settled(serving, "alice") == 85
        for start in (0, 2, 2**64):
            chain = await serving.answer(wire.AskChain("alice", start, 100))
            assert isinstance(chain, wire.Chain)
            assert (chain.height, [link.height for link in chain.links]) == (1, [0, 1][start:])


async def test_only_a_balance_by_heart_that_has_the_commit_is_told_before_its_end(serving: Serving, bank: Bank) -> None:
    await settled(serving, "alice")
    link = bank.pay("alice", ("bob", 5))
    asked = (
        (wire.AskBalance("alice"), True),
        (wire.AskRoute("alice", b""), True),
        (wire.AskChain("alice", 0, 1), False),
        (wire.AskOutcome(bytes(32), "alice"), False),
    )
    for question, by_heart in asked:
        assert serving.account_read(question) == (None if by_heart else "alice")
        with serving._balances.committing([link], decided=True):
            assert serving.account_read(question) == (None if by_heart else "alice")
        with serving._balances.committing([link], decided=False):
            assert serving.account_read(question) == "alice"
    assert serving.account_read(wire.AskBalance("bob")) == "bob", "is not known"
    assert serving.account_read(wire.AskAccounts("", 1)) == "" and serving.account_read(wire.AskStatus()) is None


async def test_a_balance_by_heart_has_the_height_that_it_tells_and_none_that_a_commit_may_change(
    serving: Serving, bank: Bank
) -> None:
    assert not serving.has_height(wire.AskBalance("alice", min_height=0)), "is not known yet"
    await settled(serving, "alice")
    link = bank.pay("alice", ("bob", 5))
    for decided, heights in ((False, ()), (True, (0, 1, 2))):
        with serving._balances.committing([link], decided=decided):
            found = [height for height in range(4) if serving.has_height(wire.AskBalance("alice", min_height=height))]
            assert found == list(heights)


async def test_a_node_that_starts_reads_all_balances_page_by_page(
    serving: Serving, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_module, "BALANCES_AT_ONCE", 2)
    database = serving._long_reader = Counted(InlineDatabase(bank.conn))  # type: ignore[assignment]
    serving._reader = cast(Any, None)  # is not asked
    await serving.remember_balances()
    assert [await settled(serving, name) for name in ("alice", "bob", "mint")] == [90, 30, -120]
    assert database.count == 4, "of five accounts two at a time, and that there is none left"


async def test_a_node_that_starts_reads_no_more_balances_than_it_keeps(serving: Serving, bank: Bank) -> None:
    database = serving._long_reader = Counted(InlineDatabase(bank.conn))  # type: ignore[assignment]
    serving._balances = Balances(most=3)
    await serving.remember_balances()
    assert len(serving._balances) == 3 and database.count == 1


def hear(core: Core, *events: Event) -> None:
    core.needs(events, NOW)
    core.step(Loaded(), NOW)


READS = (
    wire.AskBalance("alice"),
    wire.AskBalance("nobody"),
    wire.AskChain("alice", 0, 5),
    wire.AskChain("nobody", 0, 5),
    wire.AskOutcome(bytes(32)),
    wire.AskAccounts("", 5),
    wire.AskRoute("alice", b""),
    wire.AskDigest(),
    wire.AskMembers(1),
)


@pytest.mark.parametrize("question", READS, ids=lambda q: type(q).__name__ + getattr(q, "account", ""))
async def test_what_is_read_is_stale_unless_a_majority_of_the_members_can_be_reached(
    serving: Serving, core: Core, question: Question
) -> None:
    async def stale() -> bool:
        answer = await serving.answer(question)
        assert isinstance(answer, STALE_OR_NOT), answer
        return answer.stale

    assert await stale()
    hear(core, PeerUp(STRANGER))
    assert await stale(), "a guest is nobody's majority"
    hear(core, PeerUp(PEER))
    assert await stale(), "it has not said how far it is"
    hear(core, FromPeer(PEER, Pong(NOW.mono - CURRENT_S, 7, 0)))
    assert await stale(), "that was a while ago: this node may have slept"
    hear(core, FromPeer(PEER, Pong(NOW.mono - 0.1, 7, 0)))
    assert not await stale()
    hear(core, ToldRemoved(PEER, 5))
    assert await stale(), "a member says that there is a newer view without this node"


async def test_who_was_removed_says_so_of_a_balance_for_which_a_majority_was_asked(
    serving: Serving, core: Core
) -> None:
    ask = wire.AskBalance("alice", linearizable=True)
    before = await serving.answer(ask)
    hear(core, ToldRemoved(PEER, 5))
    after = await serving.answer(ask)
    assert isinstance(before, wire.Balance) and isinstance(after, wire.Balance)
    assert (before.stale, after.stale) == (False, True)


async def test_what_a_guest_shows_is_stale_until_it_keeps_up_with_a_majority(serving: Serving, bank: Bank) -> None:
    guest = Core(STRANGER, GENESIS, VIEW, random.Random(1), Start([], 7, {}, {}), Now(0.0, 0))
    served = serve(guest, serving._reader)

    async def stale() -> bool:
        answer = await served.answer(wire.AskBalance("alice"))
        assert isinstance(answer, wire.Balance)
        return answer.stale

    asked = count(1)

    def pong(peer: NodeId, links: int) -> FromPeer:
        return FromPeer(peer, Pong(NOW.mono - CURRENT_S + next(asked) * PING_EVERY_S, links, 0))

    def ping(peer: NodeId, epoch: int) -> FromPeer:
        return FromPeer(peer, Ping(1.0, 7, 0, epoch, True, NOW.unix_ms))

    assert await stale()
    hear(guest, PeerUp(ME), PeerUp(PEER), pong(ME, 7))
    assert await stale(), "one of three"
    hear(guest, pong(PEER, 7))
    assert not await stale()
    hear(guest, pong(PEER, 9))
    assert not await stale(), "what is new since the last ping may be on its way"
    hear(guest, pong(PEER, 9))
    assert await stale(), "it lacks two links"
    again = FromPeer(PEER, Pong(NOW.mono - CURRENT_S + 4.1 * PING_EVERY_S, 7, 0))
    hear(guest, again)
    assert await stale(), "the answer to the same round of pings says nothing more"
    hear(guest, pong(PEER, 7), ping(PEER, 2))
    assert await stale(), "one member has a newer view"
    hear(guest, ping(PEER, 1))
    assert not await stale()
    hear(guest, ToldRemoved(PEER, 5))
    assert await stale()


async def test_the_members_are_told_view_by_view(serving: Serving, core: Core) -> None:
    line = wire.ViewLine(
        1, VIEW.hash, VIEW.time_ms, VIEW.by, tuple(wire.MemberLine(m.id, m.public_key, 1) for m in VIEW.members)
    )
    hear(core, PeerUp(PEER), FromPeer(PEER, Pong(NOW.mono, 7, 0)))
    assert await serving.answer(wire.AskMembers(0)) == wire.Members(1, (line,))
    assert await serving.answer(wire.AskMembers(2)) == wire.Members(1, ())
    added = with_member(VIEW, member_of(public_key_of("node 4")), 77, PEER)
    hear(core, FromPeer(PEER, Views((encode_view(added),))))
    members = await serving.answer(wire.AskMembers(2))
    assert isinstance(members, wire.Members)
    assert members.epoch == 2
    (line,) = members.views
    assert (line.epoch, line.hash, line.time_ms, line.by, len(line.members)) == (2, added.hash, 77, PEER, 4)


@pytest.mark.parametrize(
    "question",
    [wire.AskBalance("nobody"), wire.AskChain("nobody", 0, 5), wire.AskOutcome(bytes(32)), wire.AskOutcome(b"")],
)
async def test_what_is_not_here_is_not_found(serving: Serving, question: wire.AskBalance) -> None:
    answer = await serving.answer(question)
    assert isinstance(answer, wire.NotFound)


async def test_an_outcome_is_told_as_a_repetition_and_for_the_account_that_was_named(
    serving: Serving, bank: Bank
) -> None:
    paid = bank.links[-1].entries[0]
    link = bank.links[-1]
    told = wire.Recorded(
        paid.request_id, "alice", Outcome.COMPLETED, link.hash, 1, 90, link.time_ms, b"", 0, repeated=True
    )
    assert await serving.answer(wire.AskOutcome(paid.request_id)) == told
    foreign = bank.decide(bank.cancellation("bob", paid.request_id))
    assert await serving.answer(wire.AskOutcome(paid.request_id, "alice")) == told
    assert await serving.answer(wire.AskOutcome(paid.request_id)) == told, "a stranger's cancellation means nothing"
    cancelled = await serving.answer(wire.AskOutcome(paid.request_id, "bob"))
    assert isinstance(cancelled, wire.Recorded)
    assert (Outcome(cancelled.outcome), cancelled.link_hash) == (Outcome.CANCELLED, foreign.hash)


async def test_a_chain_shows_links_with_their_postings_and_what_confirmed_them(serving: Serving, bank: Bank) -> None:
    taken = bank.pay("bob", ("alice", 5))
    chain = await serving.answer(wire.AskChain("alice", 0, 10))
    assert isinstance(chain, wire.Chain)
    assert (chain.account, chain.asset, chain.scale, chain.height) == ("alice", "CZK", 2, 1)
    opened, paid = chain.links
    assert (opened.height, opened.prev_hash, opened.entries[0].kind) == (0, opening_slot(NETWORK, "alice"), Kind.OPEN)
    assert (paid.prev_hash, paid.balance, paid.epoch) == (opened.hash, 90, 1)
    assert [(income.sender, income.amount) for income in paid.income] == [("mint", 100), ("mint", 20)]
    (posting,) = paid.postings
    assert (posting.recipient, posting.amount, posting.memo) == ("bob", 30, "to bob")
    assert (posting.confirmation, posting.prev_confirmed_hash) == (taken.hash, bytes(32)), "the first of its thread"
    assert posting.request_id == paid.entries[0].request_id


async def test_a_chain_comes_in_pages(serving: Serving, bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    for amount in (1, 2, 3):
        bank.pay("alice", ("bob", amount), ("bob", amount))

    async def heights(start: int, limit: int) -> list[int]:
        chain = await serving.answer(wire.AskChain("alice", start, limit))
        assert isinstance(chain, wire.Chain)
        return [link.height for link in chain.links]

    assert await heights(0, 2) == [0, 1]
    assert await heights(3, 100) == [3, 4]
    assert await heights(-(2**63), 0) == [0], "at least one link is shown"
    assert await heights(2**64 - 1, 1) == []
    assert await heights(0, 2**64 - 1) == [0, 1, 2, 3, 4]
    sizes = [len(link.raw) for link in bank.links if link.account == "alice"]
    monkeypatch.setattr(serving_module, "MAX_CHAIN_BYTES", sum(sizes[:3]) - 1)
    assert await heights(0, 100) == [0, 1]
    monkeypatch.setattr(serving_module, "MAX_CHAIN_BYTES", 1)
    assert await heights(1, 100) == [1], "one link is shown however large it is"
    damage_body(bank.conn, next(link.hash for link in bank.links if (link.account, link.height) == ("alice", 2)))
    assert await heights(1, 100) == [1], "what is not shown is not read"


async def test_a_chain_of_much_income_comes_in_pages_of_what_is_shown(
    serving: Serving, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link has the hash of a posting that it confirms, an answer who paid it and how much, too."""
    payer = "somebody-with-a-long-name"
    bank.open(payer)
    bank.pay("mint", (payer, 100))
    for _ in range(2):
        bank.pay(payer, *[("alice", 1)] * 50)
        bank.pay("alice", ("bob", 1))
    size = sum(len(link.raw) for link in bank.links if link.account == "alice")
    monkeypatch.setattr(serving_module, "MAX_CHAIN_BYTES", size)
    chain = await serving.answer(wire.AskChain("alice", 0, 10))
    assert isinstance(chain, wire.Chain)
    assert [link.height for link in chain.links] == [0, 1, 2]
    assert chain.height == 3


async def test_accounts_are_listed_in_name_order_page_by_page(serving: Serving) -> None:
    names: list[str] = []
    more = True
    while more:
        page = await serving.answer(wire.AskAccounts(names[-1] if names else "", 2))
        assert isinstance(page, wire.Accounts)
        assert len(page.accounts) <= 2
        names += [line.name for line in page.accounts]
        more = page.more
    assert names == ["alice", "bob", "ezb", "mint", "mint2"]
    whole = await serving.answer(wire.AskAccounts("", 5))
    assert isinstance(whole, wire.Accounts)
    assert not whole.more
    one = await serving.answer(wire.AskAccounts("alice", -5))
    assert isinstance(one, wire.Accounts)
    (bob,) = one.accounts
    assert (bob.name, bob.asset, bob.scale, bob.issuer) == ("bob", "CZK", 2, False)
    assert (bob.public_key, bob.height, bob.settled, bob.incoming) == (public_key_of("bob"), 0, 0, 30)
    assert one.more


async def test_a_route_names_who_was_asked_who_was_found_and_who_decides(
    serving: Serving, core: Core, dht: FakeDht, bank: Bank
) -> None:
    core.needs([PeerUp(PEER)], NOW)
    core.step(Loaded(), NOW)
    tip = bank.tip("alice")
    group = VIEW.group(tip[:20])
    route = await serving.answer(wire.AskRoute("alice", b""))
    assert isinstance(route, wire.Route)
    assert (route.slot, route.key, route.asked, route.hops) == (tip, tip[:20], (GONE, PEER), 2)
    assert [(node.id, node.rank) for node in route.group] == [(group[0], 0), (group[1], 1)]
    rank = group.index(PEER) if PEER in group else -1
    assert route.found == (wire.RouteNode(PEER, "10.9.9.9", 99, rank, alive=True),)
    places = {node.id: (node.host, node.port, node.alive) for node in route.group}
    known = {ME: (*ADDRESSES[ME], True), PEER: ("10.9.9.9", 99, True), GONE: ("", 0, False)}
    assert places == {node: known[node] for node in group}
    assert dht.keys == [tip[:20]]


async def test_a_route_of_a_name_that_nobody_has_goes_to_its_opening_slot(serving: Serving) -> None:
    route = await serving.answer(wire.AskRoute("nobody", b"ignored"))
    assert isinstance(route, wire.Route)
    assert route.slot == opening_slot(NETWORK, "nobody")


async def test_a_route_of_a_key_takes_its_first_20_bytes(serving: Serving) -> None:
    route = await serving.answer(wire.AskRoute("", bytes(range(32))))
    assert isinstance(route, wire.Route)
    assert route.key == bytes(range(20))


class Slow:
    """A database of which every question takes eight seconds."""

    def __init__(self, inner: InlineDatabase) -> None:
        self.inner = inner
        self.begun: list[float] = []

    async def run(self, function: Callable[..., object], *args: object) -> object:
        self.begun.append(trio.current_time())
        result = await self.inner.run(function, *args)
        await trio.sleep(8.0)
        return result


class Stuck:
    """A database that answers nothing."""

    async def run(self, function: Callable[..., object], *args: object) -> object:
        await trio.sleep_forever()


async def answered(serving: Serving, *questions: Question) -> list[type]:
    """What is answered without waiting."""
    found: list[type] = []

    async def ask(question: Question) -> None:
        found.append(type(await serving.answer(question)))

    async with trio.open_nursery() as nursery:
        for question in questions:
            nursery.start_soon(ask, question)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return sorted(found, key=lambda answer: answer.__name__)


async def test_no_balance_outcome_or_route_waits_for_lists_and_digests_nor_they_for_one_another(
    serving: Serving,
) -> None:
    """Each has a connection to the database of its own; how the node is needs none."""
    lists = (wire.AskChain("alice", 0, 1000), wire.AskAccounts("", 1000))
    single = (wire.AskBalance("alice"), wire.AskOutcome(bytes(32)), wire.AskRoute("bob", b""))
    at_once = (wire.AskStatus(), wire.AskMembers(1), wire.AskHealth())
    asked = (*lists, *single, *at_once, wire.AskDigest())
    serving._list_reader = cast(Any, Stuck())
    everything = await answered(serving, *asked)
    assert everything == [
        wire.Balance, wire.Digest, wire.Health, wire.Members, wire.NotFound, wire.Route, wire.Status
    ]  # fmt: skip
    serving._long_reader = cast(Any, Stuck())
    assert wire.Digest not in await answered(serving, *asked)
    serving._list_reader, serving._balances = serving._reader, Balances()
    serving._reader = cast(Any, Stuck())
    assert await answered(serving, *asked) == [wire.Accounts, wire.Chain, wire.Health, wire.Members, wire.Status]


async def test_digests_share_what_begins_after_they_were_asked_for_and_leave_a_pause(
    serving: Serving, bank: Bank, autojump_clock: trio.testing.MockClock
) -> None:
    """While one runs no checkpoint reaches the end of the log: without a pause it would never begin anew."""
    slow = Slow(InlineDatabase(bank.conn))
    serving._long_reader = cast(Any, slow)
    links: dict[str, int] = {}

    async def ask(name: str, at: float) -> None:
        await trio.sleep_until(began + at)
        answer = await serving.answer(wire.AskDigest())
        assert isinstance(answer, wire.Digest)
        links[name] = answer.links

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "first", 0.0)
        for number in range(20):
            nursery.start_soon(ask, f"while it runs {number}", 1.0 + number / 10)
        await trio.sleep(5.0)
        bank.pay("alice", ("bob", 1))
        nursery.start_soon(ask, "after a link", 5.0)
    assert [at - began for at in slow.begun] == [0.0, 16.0]
    assert links.pop("first") + 1 == links["after a link"]
    assert set(links.values()) == {links["after a link"]}


async def test_the_digest_is_of_all_chains_and_money_adds_up_to_nothing(serving: Serving, bank: Bank) -> None:
    first = await serving.answer(wire.AskDigest())
    assert isinstance(first, wire.Digest)
    assert (first.accounts, first.links, first.epoch) == (5, 7, 1)
    assert first.totals == (wire.AssetTotal("CZK", 0), wire.AssetTotal("EUR", 0))
    bank.pay("alice", ("bob", 1))
    second = await serving.answer(wire.AskDigest())
    assert isinstance(second, wire.Digest)
    assert second.digest != first.digest
    assert second.links == 8


async def test_the_status_says_how_long_balances_took(bank: Bank, core: Core) -> None:
    millisecond = count(1)
    served = serve(core, InlineDatabase(bank.conn), lambda: Now(next(millisecond) / 1000, 0))
    status = await served.answer(wire.AskStatus())
    assert isinstance(status, wire.Status) and "reads.balance_p99_us" not in status.counters
    for _ in range(LEAST_TIMED - 1):
        await served.answer(wire.AskBalance("alice"))
    status = await served.answer(wire.AskStatus())
    assert isinstance(status, wire.Status)
    assert "reads.balance_p99_us" not in status.counters, "too few to tell of the slowest hundredth"
    await served.answer(wire.AskBalance("alice"))
    status = await served.answer(wire.AskStatus())
    assert isinstance(status, wire.Status)
    assert 1_000 <= status.counters["reads.balance_p99_us"] <= 9_000, "a few looks at the clock in each"
    for _ in range(int(TIMED_S * 1000)):
        next(millisecond)
    status = await served.answer(wire.AskStatus())
    assert isinstance(status, wire.Status)
    assert "reads.balance_p99_us" not in status.counters, "they say how busy it was then, not now"
    for _ in range(LEAST_TIMED):
        await served.answer(wire.AskBalance("alice"), served._clock().mono - 0.5)
    status = await served.answer(wire.AskStatus())
    assert isinstance(status, wire.Status)
    assert 501_000 <= status.counters["reads.balance_p99_us"] <= 509_000, "what it waited for a commit is a part of it"

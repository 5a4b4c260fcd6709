"""The client on trio and on asyncio: many calls at once, other nodes when one fails, deadlines, nothing twice."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from chain.errors import LocalMisuse
from chain.link import Outcome, opening_slot
from chain.request import Posting, SignedRequest, sign, transfer
from hopchain import (
    Balance,
    CallRefused,
    Client,
    NotFound,
    NotStarted,
    Recorded,
    Refused,
    Stale,
    Timing,
    Unknown,
    Unreachable,
    raw_public_key,
    submitting,
    wire,
)
from hopchain import nodes as nodes_module
from hopchain.addresses import Address
from hopchain.calls import Calls, ConnectionLost, dial
from hopchain.connection import ConnectionFailed
from hopchain.framing import frame
from hopchain.nodes import Node, Nodes
from hopchain.submitting import Submission
from hopchain.tails import Tails
from tests.hopchain.clock import run_leaping
from tests.hopchain.fake_node import (
    ISSUER_KEY,
    CertificateAuthority,
    Drop,
    FakeNode,
    Fault,
    FaultMaker,
    Hang,
    key_number,
    make_genesis,
    replaced,
    shared_ca,
)
from tests.hopchain.ledger import Ledger

ALICE_KEY = key_number(1)
BACKENDS = ("trio", "asyncio")
NONCE = b"n" * 32
BOUND_S = 3600.0  # of a scenario, of a time that costs nothing
QUICK = Timing(dial_s=5.0, ping_after_s=0.2, dead_after_s=1.0, read_s=5.0)


class World:
    """Some fake nodes over one ledger."""

    def __init__(self, count: int) -> None:
        ca = shared_ca()
        self.genesis = make_genesis(ca.pem)
        self.ledger = Ledger(self.genesis)
        self.nodes = [FakeNode(self.ledger, ca.node_context(), n + 1) for n in range(count)]

    def client(self, *, timing: Timing | None = None, spread: bool = False) -> Client:
        addresses = [n.address for n in self.nodes]
        return Client(addresses, shared_ca().pem, self.genesis.network_id, timing=timing, spread=spread)

    def payment(self, amount: int = 100, to: str = "alice", nonce: bytes = NONCE) -> SignedRequest:
        return sign(transfer(self.genesis.network_id, "mint", [Posting(to, amount)], nonce), ISSUER_KEY)


@asynccontextmanager
async def running(world: World) -> AsyncIterator[World]:
    async with anyio.create_task_group() as tasks:
        for node in world.nodes:
            await tasks.start(node.serve)
        yield world
        tasks.cancel_scope.cancel()


def run(test: Callable[[World], Awaitable[None]], backend: str, count: int = 1, *, real_time: bool = False) -> None:
    """Run the scenario with fake nodes on one backend, bounded. Account alice exists. Time leaps (tests.hopchain.clock)
    unless threads are to take part."""

    async def main() -> None:
        with anyio.fail_after(BOUND_S):
            async with running(World(count)) as world:
                world.ledger.open("alice", "CZK", raw_public_key(ALICE_KEY))
                await test(world)

    if real_time:
        anyio.run(main, backend=backend)
    else:
        run_leaping(main, backend)


def only(call_type: type[wire.CallBody], answer: Fault) -> FaultMaker:
    """A fault for calls of one type."""
    return lambda call: answer if isinstance(call, call_type) else None


async def connect(world: World, client: Client) -> None:
    """Connect to all nodes, so that a short deadline is spent on the request alone."""
    for node in world.nodes:
        await client.status(at=node.address)
        node.calls.clear()


def once(answer: Fault) -> FaultMaker:
    """A fault for the first submit only."""
    left = [answer]
    return lambda call: left.pop() if left and isinstance(call, wire.Submit) else None


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- answers -------------------------------------------------------------------------------------------------------


def test_a_transfer_is_recorded_and_repeating_it_changes_nothing(backend: str) -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            first = await client.submit(world.payment())
            second = await client.submit(world.payment())
        assert isinstance(first, Recorded) and isinstance(second, Recorded)
        assert (first.outcome, first.repeated, second.repeated) == (Outcome.COMPLETED, False, True)
        assert first.completed and first.outcome is second.outcome is Outcome.COMPLETED
        assert first.request_id == second.request_id == world.payment().request_id
        assert world.ledger.accounts["alice"].incoming == 100

    run(test, backend)


def test_a_rejection_is_recorded_and_not_completed(backend: str) -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            answer = await client.transfer("alice", ALICE_KEY, [Posting("mint", 1)])
        assert isinstance(answer, Recorded) and not answer.completed
        assert answer.outcome is Outcome.INSUFFICIENT_FUNDS

    run(test, backend)


def test_the_helpers_sign_what_the_node_accepts(backend: str) -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            opened = await client.open_account("bob", "CZK", key_number(2))
            again = await client.open_account("bob", "CZK", key_number(2))
            paid = await client.transfer("mint", ISSUER_KEY, [Posting("bob", 5), Posting("alice", 6)], nonce=NONCE)
            fresh = await client.transfer("mint", ISSUER_KEY, [Posting("bob", 5)])
            other = await client.transfer("mint", ISSUER_KEY, [Posting("bob", 5)])
            settled = await client.cancel("mint", ISSUER_KEY, b"t" * 32)
        for answer in (opened, again, paid, fresh, other, settled):
            assert isinstance(answer, Recorded) and answer.outcome == Outcome.COMPLETED
        assert isinstance(again, Recorded) and again.repeated
        assert isinstance(fresh, Recorded) and isinstance(other, Recorded)
        assert fresh.request_id != other.request_id  # a payment without a nonce is a new one each time
        assert world.ledger.accounts["bob"].incoming == 15
        assert world.ledger.recorded[b"t" * 32].outcome == Outcome.CANCELLED

    run(test, backend)


def test_a_request_without_canonical_bytes_is_refused_before_anything_is_sent(backend: str) -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            for posting in (Posting("Bob", 1), Posting("bob", 0), Posting("bob", 2**63), Posting("bob", -1)):
                with pytest.raises(LocalMisuse):
                    await client.transfer("alice", ALICE_KEY, [posting])
            for memo in ("x" * 57, "a\0b\0"):
                with pytest.raises(LocalMisuse):
                    await client.transfer("alice", ALICE_KEY, [Posting("bob", 1, memo)])
            with pytest.raises(LocalMisuse):
                await client.submit(SignedRequest(b"not a request", b""))
        assert world.nodes[0].calls == []

    run(test, backend)


def test_questions_get_their_answers(backend: str) -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            done = await client.submit(world.payment(250))
            assert isinstance(done, Recorded)
            balance = await client.balance("alice", linearizable=True)
            assert isinstance(balance, Balance)
            assert (balance.settled, balance.incoming, balance.linearizable) == (0, 250, True)
            chain = await client.chain("mint")
            assert isinstance(chain, wire.Chain) and [link.height for link in chain.links] == [0, 1]
            assert [a.name for a in (await client.accounts(after="alice")).accounts] == ["mint", "points"]
            assert await client.outcome(done.request_id) == replaced(done, repeated=True)
            route = await client.route(account="alice")
            assert isinstance(route, wire.Route) and route.slot == world.ledger.accounts["alice"].tip
            assert (await client.status()).k == 5
            assert [t.total for t in (await client.digest()).totals] == [0, 0, 0]
            assert isinstance(await client.balance("nobody"), NotFound)
            assert isinstance(await client.chain("nobody"), NotFound)
            assert isinstance(await client.outcome(bytes(32)), NotFound)
            opening = opening_slot(world.genesis.network_id, "nobody")
            assert (await client.route(account="nobody")).slot == opening

    run(test, backend)


def test_all_accounts_reads_page_after_page(backend: str) -> None:
    async def test(world: World) -> None:
        for number in range(25):
            world.ledger.open(f"a{number:02}", "CZK", bytes(32))
        world.nodes[0].page = 10
        async with world.client() as client:
            names = [a.name for a in await client.all_accounts()]
            assert names == sorted(world.ledger.accounts)
            assert len(world.nodes[0].calls) == 3
            assert not (await client.account_list()).stale
            second = replaced(world.ledger.list_accounts(wire.AskAccounts("a09", 10), 10), stale=True)
            world.nodes[0].fault = lambda call: second if call == wire.AskAccounts("a09", wire.MAX_PAGE) else None
            listed = await client.account_list()
        assert listed.stale and [a.name for a in listed.accounts] == names

    run(test, backend)


def test_a_refused_question_and_a_wrong_kind_of_answer_are_errors(backend: str) -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            world.nodes[0].fault = lambda call: Refused("busy", "1024 calls wait: ask again")
            with pytest.raises(CallRefused, match="1024 calls wait"):
                await client.status()
            world.nodes[0].fault = lambda call: NotFound("?")
            for question in (client.status(), client.digest(), client.accounts(), client.members(), client.health()):
                with pytest.raises(Unreachable, match="it answered NotFound to Ask"):
                    await question
            world.nodes[0].fault = lambda call: wire.Accounts((), False)
            for ask in (client.balance("a"), client.chain("a"), client.outcome(b""), client.route(account="a")):
                with pytest.raises(Unreachable, match="it answered Accounts to Ask") as caught:
                    await ask
                assert caught.value.reached
        assert world.nodes[0].connections == 9, "a node that answers so is dialled anew, by whoever asks it next"

    run(test, backend)


def test_reads_show_at_least_what_this_client_was_told(backend: str) -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            done = await client.submit(world.payment())
            assert isinstance(done, Recorded)
            await client.balance("mint")
            await client.balance("mint", min_height=wire.AT_ONCE)
            await client.balance("alice")
            assert isinstance(await client.open_account("bob", "CZK", key_number(2)), Recorded)
            await client.balance("bob")
        asked = [c.min_height for c in world.nodes[0].calls if isinstance(c, wire.AskBalance)]
        assert asked == [done.height, wire.AT_ONCE, wire.AT_ONCE, 0]

    run(test, backend)


# --- many calls ----------------------------------------------------------------------------------------------------


def test_many_calls_share_one_connection_and_replies_come_in_any_order(backend: str) -> None:
    async def test(world: World) -> None:
        world.nodes[0].hold_until = 50  # answers the fifty newest first
        names = [f"a{n}" for n in range(50)]
        for number, name in enumerate(names):
            world.ledger.open(name, "CZK", bytes(32))
            world.ledger.accounts[name].settled = number
        found: dict[str, int] = {}

        async def ask(client: Client, name: str) -> None:
            answer = await client.balance(name)
            assert isinstance(answer, Balance)
            found[name] = answer.settled

        async with world.client() as client, anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(ask, client, name)
        assert found == {name: number for number, name in enumerate(names)}
        assert world.nodes[0].connections == 1

    run(test, backend)


def test_a_call_that_was_given_up_does_not_disturb_the_others(backend: str) -> None:
    async def test(world: World) -> None:
        handed = anyio.Event()
        world.nodes[0].hold_until = 2  # the first reply waits for the second call
        world.nodes[0].fault = lambda call: handed.set()  # and is the ledger's
        async with world.client() as client:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.status)
                await handed.wait()
                tasks.cancel_scope.cancel()
            assert len(world.nodes[0].calls) == 1, "its reply waits"
            world.ledger.accounts["alice"].settled = 7
            answer = await client.balance("alice")
            assert isinstance(answer, Balance) and answer.settled == 7
        assert world.nodes[0].connections == 1

    run(test, backend)


def test_spread_uses_all_nodes_in_turn_and_a_pinned_call_uses_one(backend: str) -> None:
    async def test(world: World) -> None:
        async with world.client(spread=True) as client:
            for _ in range(6):
                await client.status()
            assert [len(n.calls) for n in world.nodes] == [2, 2, 2]
            for _ in range(4):
                await client.status(at=world.nodes[1].address)
            assert [len(n.calls) for n in world.nodes] == [2, 6, 2]

    run(test, backend, 3)


# --- failures ------------------------------------------------------------------------------------------------------


def test_the_next_node_is_asked_when_one_is_down_and_the_first_again_when_it_is_back(backend: str) -> None:
    async def test(world: World) -> None:
        first, second = world.nodes
        async with anyio.create_task_group() as tasks:
            async with world.client() as client:
                await client.status()
                first.stop()
                await client.status()
                assert isinstance(await client.submit(world.payment()), Recorded)
                assert (len(first.calls), len(second.calls)) == (1, 2)
                second.stop()
                await tasks.start(first.serve)
                await client.status()
                assert len(first.calls) == 2
            tasks.cancel_scope.cancel()

    run(test, backend, 2)


@pytest.mark.parametrize("after", [False, True])
def test_a_connection_lost_in_mid_request_is_retried_elsewhere_and_executes_once(backend: str, after: bool) -> None:
    async def test(world: World) -> None:
        world.nodes[0].fault = only(wire.Submit, Drop(after=after))
        async with world.client() as client:
            answer = await client.submit(world.payment())
        assert isinstance(answer, Recorded) and answer.outcome == Outcome.COMPLETED
        assert answer.repeated is after
        assert world.ledger.accounts["alice"].incoming == 100

    run(test, backend, 2)


def test_not_started_is_sent_again_at_the_next_node(backend: str) -> None:
    async def test(world: World) -> None:
        request = world.payment()
        world.nodes[0].fault = once(NotStarted(request.request_id, "busy", "the queue is full"))
        async with world.client() as client:
            assert isinstance(await client.submit(request), Recorded)
        assert [len(n.calls) for n in world.nodes] == [1, 1]

    run(test, backend, 2)


def test_not_started_everywhere_until_the_deadline_is_the_answer(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitting, "FIRST_PAUSE_S", 0.3)  # two rounds: no question is on its way when the time is up
    monkeypatch.setattr(submitting, "LAST_PAUSE_S", 60.0)

    async def test(world: World) -> None:
        request = world.payment()
        for node in world.nodes:
            node.fault = only(wire.Submit, NotStarted(request.request_id, "busy", "the queue is full"))
        async with world.client() as client:
            await connect(world, client)
            answer = await client.submit(request, timeout_s=0.9)
        assert answer == NotStarted(request.request_id, "busy", "the queue is full")
        assert [len(n.calls) for n in world.nodes] == [2, 2]

    run(test, backend, 2)


def test_a_deadline_after_something_was_sent_is_unknown_with_the_request_id(backend: str) -> None:
    async def test(world: World) -> None:
        request = world.payment()
        world.nodes[0].fault = only(wire.Submit, Hang())
        async with world.client() as client:
            await connect(world, client)
            answer = await client.submit(request, timeout_s=0.1)
        assert isinstance(answer, Unknown) and answer.request_id == request.request_id
        (call,) = world.nodes[0].calls
        assert isinstance(call, wire.Submit) and 0 < call.timeout_ms < 100  # the node's own answer arrives in time

    run(test, backend)


def test_a_lost_request_is_not_declared_undone_by_another_nodes_refusal(backend: str) -> None:
    async def test(world: World) -> None:
        first, second = world.nodes
        first.fault = only(wire.Submit, Drop(after=True))
        second.fault = only(wire.Submit, Refused("unknown_sender", "there is no account mint"))
        async with world.client() as client:
            await connect(world, client)
            answer = await client.submit(world.payment(), timeout_s=1.0)
            assert isinstance(answer, Unknown) and "no account mint" in answer.reason
            second.fault = only(wire.Submit, NotStarted(world.payment().request_id, "busy", "full"))
            answer = await client.submit(world.payment(), timeout_s=1.0)
            assert isinstance(answer, Unknown)
            first.fault = second.fault = lambda call: None
            answer = await client.submit(world.payment())
            assert isinstance(answer, Recorded) and answer.repeated
        assert world.ledger.accounts["alice"].incoming == 100

    run(test, backend, 2)


def test_a_refusal_is_an_answer_when_nothing_is_in_doubt(backend: str) -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            answer = await client.transfer("nobody", ALICE_KEY, [Posting("alice", 1)])
            forged = await client.transfer("alice", key_number(9), [Posting("mint", 1)])
        assert isinstance(answer, Refused) and answer.code == "unknown_sender"
        assert isinstance(forged, Refused) and forged.code == "bad_signature"
        assert len(world.nodes[1].calls) == 0

    run(test, backend, 2)


def test_stale_is_final(backend: str) -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            await client.submit(world.payment())
            answer = await client.transfer("mint", ISSUER_KEY, [Posting("alice", 1)], expect_tip=b"x" * 32)
        assert isinstance(answer, Stale) and answer.tip == world.ledger.accounts["mint"].tip
        assert len(world.nodes[1].calls) == 0

    run(test, backend, 2)


def test_an_unknown_is_asked_again_while_there_is_time(backend: str) -> None:
    async def test(world: World) -> None:
        request = world.payment()
        world.nodes[0].fault = once(Unknown(request.request_id, "this node is stopping"))
        async with world.client() as client:
            assert isinstance(await client.submit(request), Recorded)

    run(test, backend, 2)


def test_an_unknown_at_the_end_of_the_time_keeps_the_nodes_reason(backend: str) -> None:
    async def test(world: World) -> None:
        request = world.payment()
        world.nodes[0].fault = only(wire.Submit, Unknown(request.request_id, "two of five answered"))
        async with world.client() as client:
            await connect(world, client)
            answer = await client.submit(request, timeout_s=0.2)
        assert isinstance(answer, Unknown) and "two of five answered" in answer.reason

    run(test, backend)


def test_an_answer_about_another_request_is_never_taken_for_this_one(backend: str) -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            done = await client.submit(world.payment(nonce=b"m" * 32))
            assert isinstance(done, Recorded)
            world.nodes[0].fault = only(wire.Submit, done)
            answer = await client.submit(world.payment())
        assert isinstance(answer, Recorded) and answer.request_id == world.payment().request_id
        assert len(world.nodes[1].calls) == 1

    run(test, backend, 2)


def test_that_another_request_was_not_started_says_nothing_of_this_one(backend: str) -> None:
    async def test(world: World) -> None:
        other = world.payment(nonce=b"m" * 32)
        world.nodes[0].fault = only(wire.Submit, NotStarted(other.request_id, "busy", "the queue is full"))
        async with world.client() as client:
            await connect(world, client)
            answer = await client.submit(world.payment(), timeout_s=0.3)
        assert isinstance(answer, Unknown) and answer.request_id == world.payment().request_id

    run(test, backend)


def test_a_node_that_says_the_same_page_for_ever_does_not_hold_its_client_for_ever(backend: str) -> None:
    async def test(world: World) -> None:
        page = replaced(world.ledger.list_accounts(wire.AskAccounts("", 10), 10), more=True)
        views = wire.Members(9, tuple(wire.ViewLine(epoch, bytes(32), 0, b"", ()) for epoch in (1, 2)))
        answers = {wire.AskAccounts: page, wire.AskMembers: views}
        world.nodes[0].fault = lambda call: answers.get(type(call))
        async with world.client() as client:
            with anyio.fail_after(5):
                assert {line.name for line in await client.all_accounts()} == {line.name for line in page.accounts}
                assert await client.all_views() == list(views.views)

    run(test, backend, real_time=True)  # no deadline comes in a time that waits for it to be idle


def test_the_list_of_all_views_is_stale_when_a_page_of_it_is(backend: str) -> None:
    async def test(world: World) -> None:
        first, second = (
            wire.Members(2, (wire.ViewLine(epoch, bytes(32), 0, b"", ()),), epoch == 1) for epoch in (1, 2)
        )
        pages = {1: first, 2: second}
        world.nodes[0].fault = lambda call: pages[call.from_epoch] if isinstance(call, wire.AskMembers) else None
        async with world.client() as client:
            assert await client.view_list() == wire.Members(2, first.views + second.views, True)
            pages[1] = replaced(first, stale=False)
            assert not (await client.view_list()).stale

    run(test, backend)


def test_a_node_that_failed_rests_before_it_is_dialled_beside_the_requests(backend: str) -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            await connect(world, client)
            down = client._nodes._listed[1]
            assert down.connection is not None
            down.connection.lose("its cable is cut")
            await anyio.wait_all_tasks_blocked()
            assert down.failing
            down.rest_until = anyio.current_time() + 60
            assert isinstance(await client.submit(world.payment()), Recorded)
            await anyio.wait_all_tasks_blocked()
            assert down.failing and down.dial is None
            down.rest_until = anyio.current_time()
            assert isinstance(await client.submit(world.payment()), Recorded)
            with anyio.fail_after(5):
                while down.failing:
                    await anyio.wait_all_tasks_blocked()
            assert down.rest_s == 0, "the next rest is short again"

    run(test, backend, 2)


def test_the_pauses_between_rounds_over_all_nodes_do_not_grow_without_an_end(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, last = 0.013, 0.026  # which nothing else sleeps
    monkeypatch.setattr(submitting, "FIRST_PAUSE_S", first)
    monkeypatch.setattr(submitting, "LAST_PAUSE_S", last)
    slept: list[float] = []
    sleep = anyio.sleep

    async def note(seconds: float) -> None:
        slept.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr(anyio, "sleep", note)

    async def test(world: World) -> None:
        request = world.payment()
        world.nodes[0].fault = only(wire.Submit, NotStarted(request.request_id, "busy", "the queue is full"))
        async with world.client() as client:
            await connect(world, client)
            with anyio.move_on_after(5):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(partial(client.submit, request, timeout_s=60.0))
                    while slept.count(last) < 3 and 2 * last not in slept:
                        await sleep(0.01)
                    tasks.cancel_scope.cancel()
        assert [slept.count(first), slept.count(2 * last)] == [1, 0] and slept.count(last) >= 3

    run(test, backend)


@pytest.mark.parametrize("sent", [False, True])
def test_only_what_was_handed_over_is_in_doubt(backend: str, sent: bool) -> None:
    """A connection that ended before the request was sent leaves the next node's refusal an answer."""

    node = Node(Address("127.0.0.1", 1))

    class Lost:
        async def call(self, body: wire.CallBody, deadline: float) -> wire.ReplyBody:
            raise (ConnectionLost if sent else ConnectionFailed)(str(node.address), "it was closed")

    async def test(world: World) -> None:
        nodes = Nodes(
            [node.address], ssl.create_default_context(), world.genesis.network_id, spread=False, timing=QUICK
        )
        submission = Submission(nodes, Tails(), world.payment(), "mint", None)
        submission._deadline = anyio.current_time() + 1
        assert await submission._attempt(node, cast(Any, Lost()), 1.0) is None
        if sent:
            assert isinstance(submission._at_the_end(), Unknown)
        else:
            with pytest.raises(Unreachable, match="it was closed"):
                submission._at_the_end()

    run(test, backend)


def test_nobody_there_is_unreachable_with_what_was_tried(backend: str) -> None:
    async def test(world: World) -> None:
        for node in world.nodes:
            node.stop()
        await anyio.wait_all_tasks_blocked()
        async with world.client() as client:
            with pytest.raises(Unreachable) as caught:
                await client.submit(world.payment())
            assert caught.value.request_id == world.payment().request_id
            assert [node for node, _ in caught.value.tried] == [f"127.0.0.1:{n.port}" for n in world.nodes]
            with pytest.raises(Unreachable):
                await client.status()
            with pytest.raises(Unreachable):
                await client.status(at=world.nodes[0].address)

    run(test, backend, 2)


def test_a_silent_node_is_given_up_and_another_asked(backend: str) -> None:
    async def test(world: World) -> None:
        world.nodes[0].fault = lambda call: Hang()
        async with world.client(timing=QUICK) as client:
            answer = await client.submit(world.payment())
            assert isinstance(answer, Recorded)
            assert isinstance(await client.balance("mint"), Balance)
        assert any(isinstance(c, wire.AskStatus) for c in world.nodes[0].calls)

    run(test, backend, 2)


def test_many_calls_share_one_dial_of_a_node_that_hears_nothing(backend: str) -> None:
    """A pulled cable: nothing refuses, nothing answers. Each call would otherwise wait for a dial of its own, in
    turn."""

    async def test(world: World) -> None:
        calls, silent = 40, 0

        async def take(stream: anyio.abc.SocketStream) -> None:
            nonlocal silent
            silent += 1
            await anyio.sleep_forever()

        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        addresses = [*(node.address for node in world.nodes), ("127.0.0.1", port)]
        answers: list[object] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, take)
            client = Client(
                addresses, shared_ca().pem, world.genesis.network_id, spread=True, timing=Timing(dial_s=0.5)
            )
            async with client:

                async def pay(number: int) -> None:
                    answers.append(await client.submit(world.payment(nonce=number.to_bytes(32, "big"))))

                async with anyio.create_task_group() as payers:
                    for number in range(calls):
                        payers.start_soon(pay, number)
                shared = silent
                for number in range(calls, 2 * calls):
                    await pay(number)
            tasks.cancel_scope.cancel()
        assert [type(answer) for answer in answers] == [Recorded] * 2 * calls
        assert shared == 1
        assert silent < calls // 2  # it is tried again beside the calls, which do not wait for it

    run(test, backend, 2)


def test_a_slow_node_that_shows_signs_of_life_is_waited_for(backend: str) -> None:
    async def test(world: World) -> None:
        request = world.payment()
        signs = 0

        def slow(call: wire.CallBody) -> Fault:
            nonlocal signs
            signs += isinstance(call, wire.AskStatus)
            return Hang() if isinstance(call, wire.Submit) else None

        world.nodes[0].fault = slow
        async with world.client(timing=Timing(ping_after_s=0.02, dead_after_s=5.0)) as client:
            await connect(world, client)
            answer = await client.submit(request, timeout_s=0.6, at=world.nodes[0].address)
        assert isinstance(answer, Unknown)
        assert world.nodes[0].connections == 1 and signs >= 4

    run(test, backend)


def test_a_question_that_nobody_answers_in_time_is_unreachable(backend: str) -> None:
    async def test(world: World) -> None:
        world.nodes[0].fault = lambda call: Hang()
        async with world.client(timing=Timing(read_s=0.2)) as client:
            with pytest.raises(Unreachable, match=r"no answer within 0\.2 s"):
                await client.status()

    run(test, backend)


@pytest.mark.parametrize(
    "noise",
    [b"\xff\xff\xff\xff", frame(b"\xc1"), frame(wire.encode(wire.Reply(1, NotFound("?"))))],
    ids=["oversized", "garbage", "no-hello"],
)
def test_a_greeting_that_breaks_the_protocol_is_a_node_that_cannot_be_reached(backend: str, noise: bytes) -> None:
    async def test(world: World) -> None:
        world.nodes[0].raw_first = noise
        async with world.client() as client:
            await client.status()
            with pytest.raises(Unreachable):
                await client.status(at=world.nodes[0].address)

    run(test, backend, 2)


@pytest.mark.parametrize(
    "noise",
    [
        b"\xff\xff\xff\xff",
        frame(b"\xc1"),
        frame(wire.encode(wire.Reply(99, NotFound("?")))),
        frame(wire.encode(Refused("limit", "this client sends too much"))),
    ],
    ids=["oversized", "garbage", "no-such-call", "closing"],
)
def test_noise_after_the_greeting_ends_the_connection_and_the_next_node_answers(backend: str, noise: bytes) -> None:
    async def test(world: World) -> None:
        network = world.genesis.network_id
        world.nodes[0].raw_first = frame(wire.encode(wire.Hello(wire.PROTOCOL_VERSION, network))) + noise
        world.nodes[0].fault = lambda call: Hang()
        async with world.client() as client:
            assert isinstance(await client.submit(world.payment()), Recorded)

    run(test, backend, 2)


def test_a_node_of_another_network_or_another_ca_is_not_spoken_to(backend: str) -> None:
    async def test(world: World) -> None:
        world.nodes[0].network = b"o" * 32
        async with world.client() as client:
            with pytest.raises(Unreachable, match="another network"):
                await client.status()
        stranger = Client([world.nodes[0].address], CertificateAuthority().pem, world.genesis.network_id)
        async with stranger as client:
            with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
                await client.status()
        assert world.nodes[0].calls == []

    run(test, backend)


# --- life of the client --------------------------------------------------------------------------------------------


def test_an_error_in_the_body_leaves_as_it_is(backend: str) -> None:
    async def test(world: World) -> None:
        async def fail() -> None:
            async with world.client() as client:
                await client.status()
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            await fail()

    run(test, backend)


@pytest.mark.parametrize("connected", [True, False])
def test_an_error_in_the_body_leaves_though_the_body_is_cancelled_too(backend: str, connected: bool) -> None:
    async def test(world: World) -> None:
        async def fail() -> None:
            async with world.client() as client:
                if connected:
                    await client.status()
                outer.cancel()
                raise KeyError("mine")

        told: list[str] = []
        with anyio.CancelScope() as outer:
            try:
                await fail()
            except KeyError as error:
                told.append(str(error))
            await anyio.sleep_forever()
        assert told == ["'mine'"]
        assert outer.cancelled_caught, "it is cancelled still"
        async with world.client() as client:
            await client.status()

    run(test, backend)


def test_a_cancelled_body_ends_cleanly(backend: str) -> None:
    async def test(world: World) -> None:
        world.nodes[0].fault = lambda call: Hang()
        with anyio.move_on_after(0.2) as scope:
            async with world.client() as client:
                await client.status()
        assert scope.cancelled_caught
        async with world.client() as client:
            world.nodes[0].fault = lambda call: None
            await client.status()

    run(test, backend)


@pytest.mark.parametrize("connected", [True, False])
def test_a_call_that_is_shielded_from_what_cancels_the_body_gets_its_answer(backend: str, connected: bool) -> None:
    async def test(world: World) -> None:
        (node,) = world.nodes
        answers: list[object] = []

        def cancel(call: wire.CallBody) -> None:
            if isinstance(call, wire.Submit):
                body.cancel()

        with anyio.CancelScope() as body:
            async with world.client() as client:
                if connected:
                    await client.status()
                    node.fault = cancel  # before it answers
                else:
                    body.cancel()
                try:
                    await anyio.lowlevel.checkpoint()
                finally:
                    with anyio.CancelScope(shield=True):
                        answers += [await client.submit(world.payment()), await client.status()]
                await anyio.sleep_forever()
        assert body.cancelled_caught
        assert [type(answer) for answer in answers] == [Recorded, wire.Status]

    run(test, backend)


def test_a_dial_that_has_not_begun_when_the_client_closes_is_none(backend: str) -> None:
    async def test(world: World) -> None:
        client = world.client()
        nodes = client._nodes
        (node,) = nodes._listed
        for _ in range(2):
            async with client:
                attempt = nodes._start_dial(node)
            assert attempt.done.is_set() and "the client was closed" in str(attempt.failure)
            assert node.dial is None and not node.open and not nodes._serving
        async with client, anyio.create_task_group() as earlier:
            attempt = nodes_module._Dial(node.address)
            await nodes._serve(node, attempt, earlier)  # as before it was opened again
            assert attempt.done.is_set() and "the client was closed" in str(attempt.failure)
            assert world.nodes[0].connections == 0
            await client.status()

    run(test, backend)


def test_a_client_is_used_inside_its_context_and_needs_a_node(backend: str) -> None:
    async def test(world: World) -> None:
        with pytest.raises(LocalMisuse, match="async with"):
            await world.client().status()
        with pytest.raises(LocalMisuse, match="at least one node"):
            Client([], shared_ca().pem, bytes(32))

    run(test, backend)


def test_a_call_that_dials_while_the_client_closes_is_told(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        dialled = anyio.Event()
        told: list[Unreachable] = []

        async def slow(*words: Any) -> Calls:
            dialled.set()
            await anyio.sleep_forever()
            return await dial(*words)

        async def call(client: Client) -> None:
            with pytest.raises(Unreachable) as caught:
                await client.status()
            told.append(caught.value)

        monkeypatch.setattr(nodes_module, "dial", slow)
        async with anyio.create_task_group() as tasks, world.client() as client:
            tasks.start_soon(call, client)
            await dialled.wait()
        assert "the client was closed" in str(told[0])
        assert world.nodes[0].connections == 0

    run(test, backend)


def test_a_request_that_a_node_has_when_the_client_closes_is_unknown(backend: str) -> None:
    async def test(world: World) -> None:
        handed = anyio.Event()
        answers: list[object] = []

        def hang(call: wire.CallBody) -> Hang:
            handed.set()
            return Hang()

        for node in world.nodes:
            node.fault = hang

        async def pay(client: Client) -> None:
            answers.append(await client.transfer("mint", ISSUER_KEY, [Posting("bob", 1)], timeout_s=60))

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks, world.client() as client:
                tasks.start_soon(pay, client)
                await handed.wait()
        assert isinstance(answers[0], Unknown) and "had it when the connection was lost" in answers[0].reason

    run(test, backend)

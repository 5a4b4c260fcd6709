"""Many requests in one call: independent ones with an outcome each, or transfers of one account, all or nothing."""

import re
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import msgspec
import pytest

from chain.errors import LocalMisuse
from chain.link import Outcome
from chain.names import MAX_AMOUNT
from chain.request import MAX_POSTINGS, NetworkId, Posting, Request, cancellation, transfer
from hopchain import (
    Client,
    ClientError,
    NotSent,
    Recorded,
    Timing,
    TooManyFailures,
    Unreachable,
    raw_public_key,
    sign_request,
    wire,
)
from hopchain.bulk import MANY_IN_FLIGHT, joined, submit_each
from tests.hopchain.fake_node import ISSUER_KEY, Drop, key_number
from tests.hopchain.test_client import BACKENDS, World, once, run

NETWORK = NetworkId(b"n" * 32)
KEYS = {"mint": ISSUER_KEY, "alice": key_number(1), "bob": key_number(2)}
PATIENT = Timing(ping_after_s=60.0, dead_after_s=60.0)  # a node that holds its replies would count a sign of life


def pay(number: int, sender: str = "mint", to: str = "bob", amount: int = 5, **more: object) -> Request:
    return transfer(NETWORK, sender, [Posting(to, amount)], bytes([number]) * 32, **more)  # type: ignore[arg-type]


# --- joining -------------------------------------------------------------------------------------------------------


def test_joined_transfers_are_one_request_the_same_every_time() -> None:
    both = joined([pay(1), transfer(NETWORK, "mint", [Posting("a", 1), Posting("b", 2)], bytes(32))])
    assert [(p.recipient, p.amount) for p in both.postings] == [("bob", 5), ("a", 1), ("b", 2)]
    assert joined([pay(1), pay(2)]) == joined([pay(1), pay(2)])
    one, other, third = Posting("a", 1), Posting("b", 2), Posting("c", 3)
    made = [
        joined([pay(1), pay(2)]),
        joined([pay(2), pay(1)]),
        joined([pay(1), pay(3)]),
        joined([pay(1)]),
        joined([transfer(NETWORK, "mint", [one], bytes(32)), transfer(NETWORK, "mint", [other, third], bytes(32))]),
        joined([transfer(NETWORK, "mint", [one, other], bytes(32)), transfer(NETWORK, "mint", [third], bytes(32))]),
    ]
    assert len({request.nonce for request in made}) == len(made)
    pinned = joined(
        [pay(1, expect_tip=b"t" * 32, valid_until_height=9), pay(2, expect_tip=b"t" * 32, valid_until_height=9)]
    )
    assert (pinned.expect_tip, pinned.valid_until_height) == (b"t" * 32, 9)


@pytest.mark.parametrize(
    ("requests", "what"),
    [
        ([], "no request was given"),
        ([pay(1), cancellation(NETWORK, "mint", b"x" * 32, b"x" * 32)], "some are CANCEL"),  # type: ignore[arg-type]
        ([pay(1), pay(2, sender="alice")], "2 accounts, 2 postings and 10 minor units"),
        (
            [transfer(NETWORK, "mint", [Posting("bob", 1)] * MAX_POSTINGS, bytes(32)), pay(2)],
            f"{MAX_POSTINGS + 1} postings",
        ),
        ([pay(1, amount=MAX_AMOUNT), pay(2, amount=1)], f"{MAX_AMOUNT + 1} minor units"),
        ([pay(1), pay(2, expect_tip=b"t" * 32)], "these have 2 of them"),
    ],
)
def test_what_one_request_cannot_hold_is_refused_with_its_numbers(requests: list[Request], what: str) -> None:
    with pytest.raises(LocalMisuse, match=what):
        joined(requests)


def test_a_request_holds_as_much_as_it_says() -> None:
    full = [transfer(NETWORK, "mint", [Posting("bob", 1)] * (MAX_POSTINGS - 1), bytes(32)), pay(1, amount=1)]
    assert len(joined(full).postings) == MAX_POSTINGS
    assert joined([pay(1, amount=MAX_AMOUNT - 1), pay(2, amount=1)]).total == MAX_AMOUNT


# --- the call ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def with_client(test: Callable[[World, Client], Awaitable[None]], backend: str, count: int = 1) -> None:
    async def main(world: World) -> None:
        world.ledger.open("bob", "CZK", raw_public_key(KEYS["bob"]))
        async with world.client(timing=PATIENT, spread=True) as client:
            await test(world, client)

    run(main, backend, count)


def requests_of(world: World) -> list[Request]:
    network = world.genesis.network_id
    return [
        transfer(network, "mint", [Posting("bob", 5)], b"1" * 32),
        transfer(network, "alice", [Posting("bob", 7)], b"2" * 32),
        transfer(network, "mint", [Posting("bob", 1), Posting("nobody", 1)], b"3" * 32),
        transfer(network, "mint", [Posting("alice", 9)], b"4" * 32),
    ]


def test_independent_requests_have_an_outcome_each_and_again_change_nothing(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        requests = requests_of(world)
        answers = await client.submit_many(requests, KEYS)
        assert [a.outcome for a in answers if isinstance(a, Recorded)] == [
            *(Outcome.COMPLETED, Outcome.INSUFFICIENT_FUNDS, Outcome.UNKNOWN_RECIPIENT, Outcome.COMPLETED)
        ]
        assert (world.ledger.accounts["bob"].incoming, world.ledger.accounts["alice"].incoming) == (5, 9)
        executed = world.ledger.executed
        again = await client.submit_many(requests, KEYS)
        assert [a.repeated for a in again if isinstance(a, Recorded)] == [True] * 4
        assert world.ledger.executed == executed
        assert await client.submit_many([], KEYS) == []

    with_client(test, backend, 2)


def test_more_requests_than_go_at_once_all_get_their_answers_in_order(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        network = world.genesis.network_id
        numbers = range(1, MANY_IN_FLIGHT + 50)
        made = [transfer(network, "mint", [Posting("bob", n)], n.to_bytes(32, "big")) for n in numbers]
        world.nodes[0].hold_until = MANY_IN_FLIGHT  # as many as that are in flight at once
        world.nodes[1].hold_until = 1
        first = await client.submit_many(made[:MANY_IN_FLIGHT], KEYS, at=world.nodes[0].address)
        answers = await client.submit_many(made, KEYS, at=world.nodes[1].address)
        assert [a.request_id for a in answers if isinstance(a, Recorded)] == [
            sign_request(request, ISSUER_KEY).request_id for request in made
        ]
        assert answers[:MANY_IN_FLIGHT] == [msgspec.structs.replace(a, repeated=True) for a in first]
        assert world.ledger.accounts["bob"].incoming == sum(numbers)

    with_client(test, backend, 2)


def test_all_or_nothing_is_one_request_with_one_answer_for_each(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        one, _, bad, other = requests_of(world)
        rejected = await client.submit_many([one, bad, other], KEYS, atomic=True)
        assert len(rejected) == 3 and len(set(map(id, rejected))) == 1
        assert isinstance(rejected[0], Recorded) and rejected[0].outcome == Outcome.UNKNOWN_RECIPIENT
        assert world.ledger.accounts["bob"].incoming == 0, "nothing of it happened"
        done = await client.submit_many([one, other], KEYS, atomic=True)
        again = await client.submit_many([one, other], KEYS, atomic=True)
        assert isinstance(done[1], Recorded) and isinstance(again[1], Recorded)
        assert (done[1].outcome, done[1].repeated, again[1].repeated) == (Outcome.COMPLETED, False, True)
        assert (world.ledger.accounts["bob"].incoming, world.ledger.accounts["alice"].incoming) == (5, 9)
        assert world.ledger.executed == 2

    with_client(test, backend)


def test_a_lost_answer_is_asked_for_again_and_executes_once(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        world.nodes[0].fault = once(Drop(after=True))
        answers = await client.submit_many(requests_of(world)[:1], KEYS, atomic=True)
        assert isinstance(answers[0], Recorded) and answers[0].outcome == Outcome.COMPLETED
        assert world.ledger.accounts["bob"].incoming == 5

    with_client(test, backend, 2)


def test_no_node_is_the_answer_of_each(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        for node in world.nodes:
            node.stop()
        answers = await client.submit_many(requests_of(world), KEYS)
        assert [type(a) for a in answers] == [Unreachable] * 4

    with_client(test, backend)


def test_what_was_paid_is_told_when_the_client_is_closed_meanwhile(backend: str) -> None:
    async def test(world: World, _: Client) -> None:
        network, node = world.genesis.network_id, world.nodes[0]
        numbers = range(MANY_IN_FLIGHT + 3)
        made = [transfer(network, "mint", [Posting("bob", 1)], n.to_bytes(32, "big")) for n in numbers]
        answers: list[object] = []
        closing = world.client(timing=PATIENT)
        async with anyio.create_task_group() as tasks:

            async def send() -> None:
                answers.extend(await closing.submit_many(made, KEYS, timeout_s=60.0))

            async with closing:
                assert isinstance(await closing.submit(sign_request(made[0], ISSUER_KEY)), Recorded)
                node.hold_until = MANY_IN_FLIGHT + 1  # more than are in flight at once: no answer comes
                tasks.start_soon(send)
                await anyio.wait_all_tasks_blocked()
        told = [type(answer) for answer in answers]
        assert len(told) == len(made) and told[-3:] == [NotSent] * 3, "the last three had no turn"
        assert isinstance(answers[-1], ClientError) and "the client is not open" in str(answers[-1])
        assert NotSent not in told[:MANY_IN_FLIGHT], "what may have been sent is never called not sent"

    with_client(test, backend)


def test_what_happens_to_one_stands_in_its_place(backend: str) -> None:
    async def submit(number: int) -> int:
        match number:
            case 1:
                raise Unreachable([])
            case 2:
                raise LocalMisuse("the client is not open")
        return number * 10

    async def main() -> None:
        first, second, third, fourth = await submit_each(submit, range(4), at_once=2)
        assert (first, fourth) == (0, 30)
        assert isinstance(second, Unreachable)
        assert isinstance(third, NotSent) and str(third) == "this request was not sent: the client is not open"

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("failure", ["rejected", "unreachable", "refused"])
def test_after_too_many_failures_no_more_are_sent(backend: str, failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hopchain.client.submit_each", partial(submit_each, at_once=3))

    async def test(world: World, client: Client) -> None:
        network, (node,) = world.genesis.network_id, world.nodes
        to = "nobody" if failure == "rejected" else "bob"
        made = [transfer(network, "mint", [Posting(to, 1)], n.to_bytes(32, "big")) for n in range(20)]
        made[0] = transfer(network, "mint", [Posting("bob", 1)], b"1" * 32)
        if failure == "refused":
            node.fault = lambda call: wire.Refused("no", "not now") if isinstance(call, wire.Submit) else None
        if failure == "unreachable":
            node.stop()
        answers = await client.submit_many(made, KEYS, max_failures=4)
        sent = [answer for answer in answers if not isinstance(answer, NotSent)]
        assert answers[: len(sent)] == sent and 5 <= len(sent) <= 8, "five are one too many, and two were under way"
        assert {type(answer) for answer in answers[len(sent) :]} == {TooManyFailures}
        assert re.search(r"not sent: [5-8] others failed, more than 4; look at their answers", str(answers[-1]))
        if failure == "rejected":
            assert isinstance(sent[0], Recorded) and sent[0].completed and world.ledger.submits == len(sent)
            again = await client.submit_many(made[:4], KEYS, max_failures=4)
            assert again == [msgspec.structs.replace(a, repeated=True) for a in sent[:4] if isinstance(a, Recorded)]

    with_client(test, backend)


def test_each_answer_is_told_as_it_comes_also_of_a_call_that_is_cancelled(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hopchain.client.submit_each", partial(submit_each, at_once=3))

    async def test(world: World, client: Client) -> None:
        network = world.genesis.network_id
        made = [transfer(network, "mint", [Posting("bob", 1)], n.to_bytes(32, "big")) for n in range(9)]
        told: dict[int, object] = {}

        def keep(place: int, answer: object) -> None:
            assert place not in told
            told[place] = answer
            if len(told) == 4:
                call.cancel()

        with anyio.CancelScope() as call:
            await client.submit_many(made, KEYS, on_answer=keep)
        assert call.cancelled_caught and 4 <= len(told) < 9
        paid = {sign_request(made[place], ISSUER_KEY).request_id for place in told}
        assert {answer.request_id for answer in told.values() if isinstance(answer, Recorded)} == paid
        answers = await client.submit_many(made, KEYS, on_answer=told.__setitem__)
        assert [told[place] for place in range(9)] == answers and world.ledger.accounts["bob"].incoming == 9

    with_client(test, backend)


def test_the_answer_of_all_or_nothing_is_told_for_each(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        one, _, bad, other = requests_of(world)
        told: list[tuple[int, object]] = []
        answers = await client.submit_many(
            [one, bad, other], KEYS, atomic=True, max_failures=0, on_answer=lambda *each: told.append(each)
        )
        assert told == list(enumerate(answers)) and len(answers) == 3

    with_client(test, backend)


def test_what_cannot_be_made_is_refused_before_anything_is_sent(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        with pytest.raises(LocalMisuse, match="1 accounts have no key, the first is alice"):
            await client.submit_many(requests_of(world), {"mint": ISSUER_KEY})
        bad = transfer(world.genesis.network_id, "mint", [Posting("Bob", 5)], bytes(32))
        with pytest.raises(LocalMisuse, match="cannot be made"):
            await client.submit_many([requests_of(world)[0], bad], KEYS)
        with pytest.raises(LocalMisuse, match="2 accounts"):
            await client.submit_many(requests_of(world), KEYS, atomic=True)
        with pytest.raises(LocalMisuse, match="max_failures=-1: give how many may fail"):
            await client.submit_many(requests_of(world), KEYS, max_failures=-1)
        closed = Client([world.nodes[0].address], world.genesis.ca, world.genesis.network_id)
        for atomic in (False, True):
            with pytest.raises(LocalMisuse, match="the client is not open"):
                await closed.submit_many(requests_of(world)[:1], KEYS, atomic=atomic)
        assert not any(isinstance(c, wire.Submit) for c in world.nodes[0].calls)

    with_client(test, backend)

"""A node that answers the client and is cut off from the others gets no outcome: requests go on to other nodes, and
stay there."""

from itertools import count

import anyio
import pytest

from chain.request import SignedRequest
from hopchain import Balance, Client, NotStarted, Recorded, Refused, Unknown, Unreachable, submitting, wire
from hopchain.change import SignedChange
from hopchain.submitting import patience_s
from tests.hopchain.clock import let_pass
from tests.hopchain.fake_node import FakeNode, Fault, FaultMaker, Hang
from tests.hopchain.test_client import BACKENDS, World, connect, once, only, run
from tests.hopchain.test_client_limits import client_of, silent_host

NODES = 5
SHORT_S = 0.5  # of a request that a node leaves without an answer
NONCES = count()
CUT_OFF = only(wire.Submit, Hang())


def payment(world: World) -> SignedRequest:
    """A new one of 100 from mint to alice."""
    return world.payment(nonce=next(NONCES).to_bytes(32, "big"))


def got(node: FakeNode) -> list[wire.Submit]:
    """The requests that were handed to it."""
    return [call for call in node.calls if isinstance(call, wire.Submit)]


def shares(world: World) -> list[int]:
    """How many requests each node was handed."""
    return [len(got(node)) for node in world.nodes]


async def asked_first(world: World, client: Client) -> FakeNode:
    """Who answers a question that all could answer."""
    for node in world.nodes:
        node.calls.clear()
    await client.status()
    (asked,) = (node for node in world.nodes if node.calls)
    return asked


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- one request ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [False, True])
def test_one_request_is_paid_at_the_next_node_when_the_first_is_cut_off(backend: str, spread: bool) -> None:
    async def test(world: World) -> None:
        first, second, *_ = world.nodes
        first.fault = second.fault = CUT_OFF
        async with world.client(spread=spread) as client:
            await connect(world, client)
            answer = await client.submit(world.payment(), timeout_s=2.0)
        assert isinstance(answer, Recorded) and answer.completed
        assert shares(world) == [1, 1, 1, 0, 0]
        assert len({call.raw for node in world.nodes for call in got(node)}) == 1
        assert world.ledger.accounts["alice"].incoming == 100

    run(test, backend, NODES)


def test_a_request_that_the_first_node_executed_without_a_word_is_not_executed_again(backend: str) -> None:
    async def test(world: World) -> None:
        first = world.nodes[0]

        def silent(call: wire.CallBody) -> Fault:
            if isinstance(call, wire.Submit):
                world.ledger.submit(call, first.id)
            return Hang()

        async with world.client() as client:
            await connect(world, client)
            first.fault = silent
            answer = await client.submit(world.payment(), timeout_s=1.0)
        assert isinstance(answer, Recorded) and answer.repeated and answer.decided_by == first.id
        assert world.ledger.accounts["alice"].incoming == 100

    run(test, backend, NODES)


def test_a_slow_node_is_asked_again_when_the_others_cannot_be_reached(backend: str) -> None:
    async def test(world: World) -> None:
        first = world.nodes[0]
        first.fault = once(Hang())
        async with silent_host() as silent, client_of(world, first.address, silent) as client:
            await client.status()
            assert isinstance(await client.submit(world.payment(), timeout_s=2.0), Recorded)
        assert len(got(first)) == 2

    run(test, backend)


@pytest.mark.parametrize("kind", [NotStarted, Refused])
def test_what_the_next_node_does_not_start_or_refuses_stays_in_doubt(
    backend: str, kind: type[NotStarted | Refused]
) -> None:
    async def test(world: World) -> None:
        request = world.payment()
        answer = NotStarted(request.request_id, "busy", "full") if kind is NotStarted else Refused("busy", "full")
        world.nodes[0].fault = CUT_OFF
        world.nodes[1].fault = only(wire.Submit, answer)
        async with world.client() as client:
            await connect(world, client)
            assert isinstance(await client.submit(request, timeout_s=SHORT_S), Unknown)
        assert all(shares(world))

    run(test, backend, 2)


def test_each_node_has_half_of_the_time_that_is_left_while_that_is_long_enough() -> None:
    left_s = 8.0
    assert patience_s(left_s, 8.0, last=True) == 8.0
    had = []
    while left_s > 0:
        had.append(patience_s(left_s, 8.0, last=False))
        left_s -= had[-1]
    assert had == [4.0, 2.0, 1.0, 1.0]


def test_a_request_that_none_settles_goes_to_a_few_nodes_of_many(backend: str) -> None:
    async def test(world: World) -> None:
        for node in world.nodes:
            node.fault = CUT_OFF
        async with world.client() as client:
            await connect(world, client)
            answer = await client.submit(world.payment(), timeout_s=1.0)
        assert isinstance(answer, Unknown) and answer.request_id == world.payment().request_id
        handed = sum(shares(world))
        assert 2 <= handed <= 4 and shares(world) == [1] * handed + [0] * (8 - handed)
        assert got(world.nodes[0])[0].timeout_ms <= 1000 / 2 * submitting.NODE_SHARE

    run(test, backend, 8)


def test_a_request_that_is_pinned_stays_with_its_node_which_has_all_the_time(backend: str) -> None:
    async def test(world: World) -> None:
        first = world.nodes[0]
        first.fault = CUT_OFF
        async with world.client() as client:
            await connect(world, client)
            assert isinstance(await client.submit(world.payment(), timeout_s=SHORT_S, at=first.address), Unknown)
            assert shares(world) == [1, 0]
            assert got(first)[0].timeout_ms > SHORT_S * 1000 / 2
            assert await asked_first(world, client) is first, "that a pinned call failed says nothing of the others"

    run(test, backend, 2)


# --- the requests after it -----------------------------------------------------------------------------------------


def test_payments_go_on_elsewhere_and_only_the_first_waits_for_the_node_that_is_cut_off(backend: str) -> None:
    async def test(world: World) -> None:
        world.nodes[0].fault = CUT_OFF
        async with world.client() as client:
            await connect(world, client)
            for _ in range(5):
                assert isinstance(await client.submit(payment(world), timeout_s=2.0), Recorded)
        assert shares(world) == [1, 5, 0, 0, 0]
        assert world.ledger.accounts["alice"].incoming == 500

    run(test, backend, NODES)


def test_many_requests_that_end_in_doubt_at_once_move_on_by_one_node(backend: str) -> None:
    async def test(world: World) -> None:
        world.nodes[0].fault = CUT_OFF
        answers: list[object] = []

        async def pay(client: Client) -> None:
            answers.append(await client.submit(payment(world), timeout_s=2.0))

        async with world.client() as client:
            await connect(world, client)
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(pay, client)
            await pay(client)
        assert [type(answer) for answer in answers] == [Recorded] * 21
        assert shares(world) == [20, 21, 0, 0, 0]

    run(test, backend, NODES)


@pytest.mark.parametrize("says", ["Unknown", "nothing"])
def test_a_request_without_an_outcome_is_settled_elsewhere_when_it_is_sent_again(
    backend: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it had no time to be handed to a second node."""
    monkeypatch.setattr(submitting, "NODE_SHARE", 0.0)

    async def test(world: World) -> None:
        request = world.payment()

        def late(call: wire.CallBody) -> Fault:
            if says == "nothing" or not isinstance(call, wire.Submit):
                return CUT_OFF(call)
            let_pass(SHORT_S / 2)
            return Unknown(request.request_id, "no outcome in time")

        world.nodes[0].fault = late
        async with world.client() as client:
            await connect(world, client)
            assert isinstance(await client.submit(request, timeout_s=SHORT_S), Unknown)
            assert isinstance(await client.submit(request, timeout_s=SHORT_S), Recorded)
        assert shares(world) == [1, 1]

    run(test, backend, 2)


def test_questions_that_a_node_still_answers_do_not_draw_the_payments_back(backend: str) -> None:
    async def test(world: World) -> None:
        first, second, _ = world.nodes
        first.fault = CUT_OFF
        first.hold_until = 2  # the reply to one question waits for the next call

        async with world.client() as client, anyio.create_task_group() as tasks:
            await client.status(at=second.address)
            tasks.start_soon(client.status)
            with anyio.fail_after(5):
                while not first.calls:  # noqa: ASYNC110 (a fake node does not say when)
                    await anyio.sleep(0.001)
            assert isinstance(await client.submit(payment(world), timeout_s=2.0), Recorded)
            await client.status(at=first.address)  # and here they are, both
            await anyio.wait_all_tasks_blocked()
            assert isinstance(await client.submit(payment(world), timeout_s=2.0), Recorded)
        assert shares(world) == [1, 2, 0]

    run(test, backend, 3)


def test_when_all_have_left_a_call_in_doubt_the_one_that_did_so_longest_ago_is_asked(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitting, "NODE_SHARE", 0.0)  # each request goes to one node

    async def test(world: World) -> None:
        for node in world.nodes:
            node.fault = CUT_OFF
        async with world.client() as client:
            await connect(world, client)
            for number in range(1, 7):
                assert isinstance(await client.submit(payment(world), timeout_s=0.2), Unknown)
                assert shares(world) == [(number + 2 - place) // 3 for place in range(3)]

    run(test, backend, 3)


# --- questions and changes -----------------------------------------------------------------------------------------


QUESTIONS: dict[str, FaultMaker] = {
    "nothing": only(wire.AskBalance, Hang()),
    "unknown": only(wire.AskBalance, Unknown(b"", "no majority answered")),
}


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("says", QUESTIONS)
@pytest.mark.parametrize("linearizable", [True, False])
def test_a_balance_that_a_node_cannot_make_certain_is_asked_elsewhere_within_the_call(
    backend: str, linearizable: bool, says: str, spread: bool
) -> None:
    async def test(world: World) -> None:
        first, second, third = world.nodes
        first.fault = second.fault = QUESTIONS[says]
        async with world.client(spread=spread) as client:
            await connect(world, client)
            answer = await client.balance("mint", linearizable=linearizable, min_height=0, timeout_s=2.0)
            assert isinstance(answer, Balance)
            waits = [
                call.timeout_ms for node in world.nodes for call in node.calls if isinstance(call, wire.AskBalance)
            ]
            assert len(waits) <= 3 and all(wait <= 1800 for wait in waits)
            if not spread:
                assert waits[0] <= 900, "half of the time, less what the answer takes"
                assert await asked_first(world, client) is third

    run(test, backend, 3)


def test_a_balance_that_none_can_make_certain_is_unknown_and_a_few_nodes_are_asked(backend: str) -> None:
    async def test(world: World) -> None:
        for number, node in enumerate(world.nodes):
            node.fault = only(wire.AskBalance, Hang() if number else Unknown(b"", "no majority answered"))
        async with world.client() as client:
            await connect(world, client)
            answer = await client.balance("mint", linearizable=True, timeout_s=1.0)
            assert answer == Unknown(b"", "no majority answered")
            assert sum(isinstance(call, wire.AskBalance) for node in world.nodes for call in node.calls) <= 5
            pinned = await client.balance("mint", linearizable=True, timeout_s=0.2, at=world.nodes[0].address)
            assert isinstance(pinned, Unknown)

    run(test, backend, 6)


@pytest.mark.parametrize("says", ["unknown", "nothing"])
def test_a_balance_has_what_is_left_of_the_time_when_no_other_node_can_be_reached(backend: str, says: str) -> None:
    async def test(world: World) -> None:
        first, second = world.nodes
        async with world.client() as client:
            await connect(world, client)
            second.stop()
            asked: list[wire.CallBody] = []

            def late(call: wire.CallBody) -> Fault:
                if asked or not isinstance(call, wire.AskBalance):
                    return None
                asked.append(call)
                return QUESTIONS[says](call)

            first.fault = late
            assert isinstance(await client.balance("mint", linearizable=True, timeout_s=1.0), Balance)
            waits = [call.timeout_ms for call in first.calls if isinstance(call, wire.AskBalance)]
            assert len(waits) == 2 and waits[0] <= 450 and (says == "nothing" or waits[1] > 500)

    run(test, backend, 2)


def test_who_is_told_of_no_answer_is_told_how_long_it_was_waited_for(backend: str) -> None:
    async def test(world: World) -> None:
        first, second, third = world.nodes
        first.fault = second.fault = QUESTIONS["nothing"]
        async with world.client() as client:
            await connect(world, client)
            third.stop()
            with pytest.raises(Unreachable) as caught:
                await client.balance("mint", linearizable=True, timeout_s=1.6)
        waited = {
            node: float(why.removeprefix("no answer within ").removesuffix(" s"))
            for node, why in dict(caught.value.tried).items()
            if why.startswith("no answer within ")
        }
        assert 1.4 < sum(waited.values()) <= 1.61 and len(waited) == 2

    run(test, backend, 3)


@pytest.mark.parametrize("answer", [Hang(), Unknown(bytes(32), "no majority answered")], ids=["nothing", "unknown"])
def test_a_change_without_an_answer_makes_way_for_another_node(backend: str, answer: Fault) -> None:
    async def test(world: World) -> None:
        world.nodes[0].fault = only(wire.SubmitChange, answer)
        async with world.client() as client:
            await connect(world, client)
            change = SignedChange(b"change", b"signature")
            assert isinstance(await client.change(change, timeout_s=0.1), Unknown)
            assert await asked_first(world, client) is world.nodes[1]

    run(test, backend, 2)

"""What costs its sender nothing has a limit; what a sender's money covers has none (ADR 38)."""

from random import Random

import pytest

from chain.link import Outcome
from chain.load import load
from chain.names import MAX_AMOUNT
from chain.needs import Needs
from chain.request import Posting, RequestId, SignedRequest, cancellation, transfer
from hopchain.wire import NotStarted, Recorded, ReplyBody, Stale, Unknown
from node import uncovered as uncovered_module
from node.messages import Decided, Forward, Links
from node.uncovered import HOUR_BYTES, ROW_BYTES, WINDOW_S, Uncovered
from routing.keyspace import NodeId
from tests.node.watch import Call
from tests.node.world import World

SMALL = 1500  # bytes: more than one small request takes, less than two


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Its hours have five seconds. Alice has taken her money up."""
    monkeypatch.setattr(uncovered_module, "WINDOW_S", 5.0)
    world = World(3, 3, 1)
    world.open_funded(alice=101, bob=0, carol=0)
    world.settle(world.ids[0], world.pay_request("alice", "carol", 1))
    world.run(1)
    return world


def room(world: World, gate: NodeId, hour_bytes: int) -> Uncovered:
    """What a gateway takes of requests that are not covered, from now on."""
    uncovered = world.core(gate).jobs.uncovered
    uncovered.hour_bytes = hour_bytes
    return uncovered


def not_covered(answer: object) -> str:
    """Why it was not taken."""
    assert isinstance(answer, NotStarted) and answer.code == "not_covered", answer
    return answer.reason


def outcome(answer: ReplyBody) -> Outcome:
    assert isinstance(answer, Recorded), answer
    return Outcome(answer.outcome)


def expiring(world: World, height: int, amount: int = 1) -> SignedRequest:
    nonce = world.rng.randbytes(32)
    return world.signed(transfer(world.network, "alice", [Posting("bob", amount)], nonce, valid_until_height=height))


# --- the room -------------------------------------------------------------------------------------------------------


def test_a_request_has_room_until_it_has_cost_something_or_for_an_hour() -> None:
    uncovered = Uncovered()
    uncovered.hour_bytes = 2 * (100 + ROW_BYTES)
    first, second, third = (RequestId(bytes([n]) * 32) for n in range(3))
    assert uncovered.take(first, "alice", 100, 0.0)
    assert uncovered.take(first, "alice", 100, 0.0), "it is counted once"
    assert not uncovered.take(second, "alice", 100, 0.0), "an account has no more than is left free"
    uncovered.give_back(first)
    assert uncovered.take(second, "alice", 100, 1.0)
    uncovered.keep(second, 1.0)
    uncovered.give_back(second)
    uncovered.keep(second, 2.0)
    assert uncovered.take(second, "alice", 100, WINDOW_S)
    assert not uncovered.take(third, "bob", 100, WINDOW_S)
    assert uncovered.take(third, "bob", 100, WINDOW_S + 1.0)
    assert (uncovered.room.of("alice").bytes, uncovered.room.all.bytes) == (0, 100 + ROW_BYTES)


@pytest.mark.parametrize("seed", range(20))
def test_all_that_is_remembered_has_room_and_goes_with_it(seed: int) -> None:
    rng = Random(seed)
    uncovered, now = Uncovered(), 0.0
    uncovered.hour_bytes = 20_000
    ids = [RequestId(bytes([n]) * 32) for n in range(40)]
    for _ in range(2_000):
        now += rng.choice([0.0, 1.0, 500.0])
        request_id = rng.choice(ids)
        act = rng.randrange(4)
        if act < 2:
            uncovered.take(request_id, f"account {request_id[0] % 7}", 500, now)
        elif act == 2:
            uncovered.keep(request_id, now)
        else:
            uncovered.give_back(request_id)
        sizes = [size for _, size in uncovered._taken.values()]
        assert uncovered.room.all.requests == len(sizes)
        assert uncovered.room.all.bytes == sum(sizes) <= uncovered.hour_bytes
        assert uncovered._kept.keys() <= uncovered._taken.keys()
    for request_id in ids:
        uncovered.give_back(request_id)
    uncovered.take(ids[0], "account", 500, now + 2 * WINDOW_S)
    assert uncovered.room.all.requests == len(uncovered._taken) == 1


# --- admission ------------------------------------------------------------------------------------------------------


def test_what_the_balance_covers_needs_no_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is its income looked at."""
    monkeypatch.setattr("chain.forming._funds", None)
    gate = world.ids[0]
    uncovered = room(world, gate, 0)
    calls = [world.submit(gate, world.pay_request("alice", "bob", 25)) for _ in range(4)]
    assert world.run_until_answered(calls, 10)
    assert [type(call.answer) for call in calls] == [Recorded] * 4
    assert isinstance(world.pay("mint", "alice", 5, at=gate), Recorded), "nor does what an issuer pays"
    assert uncovered.room.all.requests == 0


def test_an_overdraft_is_recorded_while_there_is_room_and_keeps_it_for_an_hour(world: World) -> None:
    gate = world.ids[0]
    uncovered = room(world, gate, 2 * SMALL)
    assert outcome(world.pay("alice", "bob", 101, at=gate)) is Outcome.INSUFFICIENT_FUNDS
    assert uncovered.room.of("alice").requests == 1
    height = world.height(gate, "alice")
    reason = not_covered(world.pay("alice", "bob", 102, at=gate))
    assert reason.startswith("alice has 100 here in minor units, 0 of it for what waits, and this counts as 102; ")
    assert world.height(gate, "alice") == height, "nothing is recorded"
    assert outcome(world.pay("alice", "bob", 100, at=gate)) is Outcome.COMPLETED
    world.run(5)
    assert outcome(world.pay("alice", "bob", 103, at=gate)) is Outcome.INSUFFICIENT_FUNDS


def test_of_requests_that_one_balance_covers_singly_one_is_covered(world: World) -> None:
    """31 behind one are rejected, each with its bytes."""
    gate = world.ids[0]
    room(world, gate, 2 * SMALL)
    calls = [world.submit(gate, world.pay_request("alice", "bob", 100)) for _ in range(32)]
    assert world.run_until_answered(calls, 10)
    outcomes = sorted(call.answer.outcome for call in calls if isinstance(call.answer, Recorded))
    assert outcomes == [Outcome.COMPLETED, Outcome.INSUFFICIENT_FUNDS]
    assert len([not_covered(call.answer) for call in calls if not isinstance(call.answer, Recorded)]) == 30


def test_income_that_is_here_covers_a_request_that_has_no_room(world: World) -> None:
    """Nothing of it has been taken up: what a client can see, it can spend."""
    gate = world.ids[0]
    uncovered = room(world, gate, 0)
    world.settle(gate, world.pay_request("alice", "bob", 60))
    calls = [world.submit(gate, world.pay_request("bob", "carol", amount)) for amount in (40, 20, 1)]
    assert world.run_until_answered(calls, 10)
    assert [type(call.answer) for call in calls] == [Recorded, Recorded, NotStarted]
    assert "bob has 60 here in minor units, 60 of it for what waits" in not_covered(calls[2].answer)
    assert uncovered.room.all.requests == 0


def test_where_more_waits_than_one_link_takes_up_it_is_enough(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = world.ids[0]
    for amount in (1, 2, 3):
        world.settle(gate, world.pay_request("alice", "bob", amount))
    conn = world.nodes[gate].conn
    assert load(conn, Needs(funds={"alice", "bob", "nobody"})).funds == {"alice": 94, "bob": 6}
    monkeypatch.setattr("chain.forming.MAX_CONFIRMED", 3)
    assert load(conn, Needs(funds={"bob"})).funds == {"bob": 6}
    monkeypatch.setattr("chain.forming.MAX_CONFIRMED", 2)
    assert load(conn, Needs(funds={"bob"})).funds == {"bob": MAX_AMOUNT}


def test_a_node_that_lacks_the_income_says_nothing_final(world: World) -> None:
    """Another one has it, and executes the same request."""
    gate, other, _ = world.ids
    world.lose = lambda source, target, message: target == gate and isinstance(message, Decided | Links)
    world.settle(other, world.pay_request("alice", "bob", 60))
    room(world, gate, 0)
    signed = world.pay_request("bob", "carol", 60)
    assert "bob has 0 here" in not_covered(world.ask(gate, signed))
    world.heal()
    assert outcome(world.ask(other, signed)) is Outcome.COMPLETED


def test_what_has_expired_needs_room_whatever_its_sender_has(world: World) -> None:
    gate = world.ids[0]
    height = world.height(gate, "alice")
    room(world, gate, 2 * SMALL)
    assert outcome(world.ask(gate, expiring(world, height))) is Outcome.EXPIRED
    height += 1
    reason = not_covered(world.ask(gate, expiring(world, height)))
    assert reason.startswith(f"it expired at height {height}, and alice has {height}; ")
    assert outcome(world.ask(gate, expiring(world, height + 1))) is Outcome.COMPLETED


def test_a_cancellation_counts_like_the_least_payment(world: World) -> None:
    gate = world.ids[0]
    room(world, gate, 0)
    assert isinstance(world.ask(gate, world.cancel_request(world.pay_request("alice", "bob", 1), "alice")), Recorded)
    cancel = world.signed(cancellation(world.network, "bob", RequestId(bytes(32)), bytes(32)))
    assert "this counts as 1" in not_covered(world.ask(gate, cancel))
    uncovered = room(world, gate, HOUR_BYTES)
    assert isinstance(world.ask(gate, cancel), Recorded)
    assert uncovered.room.of("bob").requests == 1, "it is recorded, and cost nothing"


def test_the_room_is_given_back_when_nothing_is_recorded_or_it_is_paid(world: World) -> None:
    gate, owner = world.group("bob")[1], world.group("bob")[0]
    uncovered = room(world, gate, HOUR_BYTES)
    world.settle(owner, world.pay_request("alice", "bob", 60))
    world.run(1)
    world.lose = lambda source, target, message: isinstance(message, Forward)
    pinned = world.submit(gate, world.pay_request("bob", "carol", 30, world.tip(gate, "bob")))
    paid = world.submit(gate, world.pay_request("bob", "carol", 10))
    world.run(0.1)
    assert uncovered.room.of("bob").requests == 2
    world.settle(owner, world.pay_request("bob", "carol", 5))
    world.heal()
    assert world.run_until_answered([pinned, paid], 10)
    assert isinstance(pinned.answer, Stale) and isinstance(paid.answer, Recorded)
    assert uncovered.room.all.requests == 0


def in_doubt(world: World) -> tuple[NodeId, Call]:
    """An overdraft that ended as Unknown: its gateway, and the call."""
    _, gate, _ = world.group("alice")
    world.lose = lambda source, target, message: isinstance(message, Forward)
    call = world.submit(gate, world.pay_request("alice", "bob", 101), 0.3)
    assert world.run_until_answered([call], 1)
    assert isinstance(call.answer, Unknown)
    return gate, call


def test_what_ends_in_doubt_keeps_its_room_and_is_not_called_not_started(world: World) -> None:
    """With small timeouts there would be no limit. The same request needs no more room when it comes again."""
    gate, call = in_doubt(world)
    uncovered = world.core(gate).jobs.uncovered
    assert uncovered.room.of("alice").requests == 1
    assert call.signed is not None
    uncovered.hour_bytes = 0
    world.heal()
    assert outcome(world.ask(gate, call.signed)) is Outcome.INSUFFICIENT_FUNDS
    assert uncovered.room.of("alice").requests == 1


def test_a_request_in_doubt_that_has_no_room_any_more_stays_in_doubt(world: World) -> None:
    gate, call = in_doubt(world)
    world.run(6)
    room(world, gate, 0)
    assert call.signed is not None
    again, new = world.ask(gate, call.signed), world.pay("alice", "bob", 101, at=gate)
    assert isinstance(again, Unknown) and again.reason == not_covered(new)


def test_a_rejection_of_what_seemed_covered_counts_too(world: World) -> None:
    gate = world.ids[0]
    uncovered = room(world, gate, HOUR_BYTES)
    assert outcome(world.pay("alice", "zed", 1, at=gate)) is Outcome.UNKNOWN_RECIPIENT
    assert uncovered.room.of("alice").requests == 1


def test_a_cancellation_that_was_covered_counts_too(world: World) -> None:
    gate = world.ids[0]
    uncovered = room(world, gate, HOUR_BYTES)
    cancel = world.signed(cancellation(world.network, "alice", RequestId(bytes(32)), bytes(32)))
    assert outcome(world.ask(gate, cancel)) is Outcome.COMPLETED
    assert uncovered.room.of("alice").requests == 1

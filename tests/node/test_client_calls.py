"""Clients share turns and do not hinder each other (ADR 30): bounds, order, reads that are held."""

import random
from collections.abc import Sequence, ValuesView

import pytest
import trio
import trio.testing

from chain.errors import RemoteFault
from chain.needs import Loaded
from hopchain.wire import MAX_CLIENT_FRAME_BYTES, AskBalance, NotFound, Refused, Submit, SubmitChange
from node import client_calls as calls_module
from node import driver as driver_module
from node.client_calls import CALL_BYTES, CALLS_WAITING, CLIENT_BYTES, CLIENT_CALLS, HELD_S, READS_AT_ONCE, TURN_CALLS
from node.effects import Effects
from node.events import Caller, ClientBalance, ClientChange, ClientGone, ClientSubmit, Event, FromPeer, PeerUp
from node.messages import encode_frames, encode_message
from node.turn import Now
from tests.node.driving import A, FakeSession, Rig, ping


@pytest.mark.parametrize(("calls", "size"), [(CLIENT_CALLS, 1), (2, CLIENT_BYTES // 2)])
async def test_a_client_with_many_unanswered_calls_is_not_read(
    calls: int, size: int, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Until one is answered, or it is gone."""
    rig = Rig()
    for number in range(calls):
        await rig.driver.calls.wait_for_room(Caller(1, number), size)
    done: list[int] = []

    async def one_more(number: int) -> None:
        await rig.driver.calls.wait_for_room(Caller(1, number), size)
        done.append(number)

    nursery.start_soon(one_more, calls)
    nursery.start_soon(one_more, calls + 1)
    await trio.testing.wait_all_tasks_blocked()
    assert done == []
    rig.driver.calls.reply(Caller(1, 0), NotFound("x"))
    await trio.testing.wait_all_tasks_blocked()
    assert len(done) == 1
    rig.driver.remove_session(rig.session)
    await trio.testing.wait_all_tasks_blocked()
    assert len(done) == 2


async def test_a_call_that_is_larger_than_all_of_one_client_may_be_has_room_when_it_is_the_only_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Else it would wait for ever."""
    rig = Rig()
    with trio.fail_after(1):
        await rig.driver.calls.wait_for_room(Caller(1, 1), CLIENT_BYTES + 1)


async def test_the_next_call_of_a_session_does_not_make_its_unanswered_ones_forgotten(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    rig = Rig()
    await rig.driver.calls.wait_for_room(Caller(1, 1), CLIENT_BYTES)
    rig.driver.calls.add_session(rig.session)
    nursery.start_soon(rig.driver.calls.wait_for_room, Caller(1, 2), 1)
    await trio.testing.wait_all_tasks_blocked()
    assert list(rig.driver.calls._clients[1].calls) == [1]


async def test_the_core_hears_that_a_client_is_gone_when_calls_of_it_are_not_answered() -> None:
    """Its reads that wait for a height would take the places of others until their time is over."""
    rig = crowd(2, 3)
    for number in (2, 3):
        await rig.driver.calls.wait_for_room(Caller(number, 1), 10)
    rig.driver.calls.reply(Caller(3, 1), NotFound("x"))
    for number in (2, 3):
        rig.driver.remove_session(FakeSession(rig.journal, number))
    await rig.driver.turn()
    assert rig.core.turns == [(ClientGone(2),)]


async def test_an_answer_that_no_frame_holds_becomes_a_refusal() -> None:
    rig = Rig()
    rig.driver.calls.reply(Caller(1, 5), NotFound("x" * MAX_CLIENT_FRAME_BYTES))
    (reply,) = rig.session.replies
    assert isinstance(reply, Refused)
    assert reply.code == "too_large"
    assert rig.driver.counters["answers_too_large"] == 1


# --- clients share turns (ADR 30) ---


def submit(session: int, number: int) -> ClientSubmit:
    return ClientSubmit(Caller(session, number), Submit(b"request", bytes(64), 1000))


def read(session: int, number: int, *, linearizable: bool = True, until: float | None = None) -> ClientBalance:
    return ClientBalance(Caller(session, number), AskBalance("x", linearizable), until)


def calls_of(turn: Sequence[Event]) -> list[tuple[int, int]]:
    """Whose calls a turn took: session and number."""
    kinds = ClientSubmit | ClientBalance | ClientChange
    return [(event.caller.session, event.caller.number) for event in turn if isinstance(event, kinds)]


def crowd(*numbers: int) -> Rig:
    """A driver with these sessions."""
    rig = Rig()
    for number in numbers:
        rig.driver.calls.add_session(FakeSession(rig.journal, number))
    return rig


async def one_after_the_other(rig: Rig, calls: Sequence[ClientSubmit | ClientBalance], size: int = 0) -> None:
    """As the task of a connection does."""
    for call in calls:
        await rig.driver.calls.put(call, size)


async def test_ten_thousand_calls_of_one_client_do_not_keep_the_one_of_another_from_the_next_turn(
    nursery: trio.Nursery,
) -> None:
    rig = crowd(1, 2, 3)
    nursery.start_soon(one_after_the_other, rig, [submit(1, number) for number in range(10_000)])
    await trio.testing.wait_all_tasks_blocked()
    await rig.driver.turn()
    nursery.start_soon(one_after_the_other, rig, [submit(2, 0)])
    nursery.start_soon(one_after_the_other, rig, [submit(3, number) for number in range(10)])
    await trio.testing.wait_all_tasks_blocked()
    await rig.driver.turn()
    taken = calls_of(rig.core.turns[1])
    assert len(taken) == TURN_CALLS // CALL_BYTES
    assert (2, 0) in taken[:3]
    assert [number for session, number in taken[:30] if session == 3] == list(range(10))
    nursery.cancel_scope.cancel()


async def test_calls_that_need_much_work_of_one_client_are_shared_like_all_others(nursery: trio.Nursery) -> None:
    """Requests, whose signatures are checked in the turn, changes and balances wait in one and the same line of their
    client."""
    rig = crowd(1, 2)
    change = ClientChange(Caller(1, 2), SubmitChange(b"change", bytes(64), 1000))
    nursery.start_soon(one_after_the_other, rig, [submit(1, 1), change, read(1, 3), submit(1, 4)])
    nursery.start_soon(one_after_the_other, rig, [submit(2, 1), read(2, 2, linearizable=False)])
    await trio.testing.wait_all_tasks_blocked()
    await rig.driver.turn()
    taken = calls_of(rig.core.turns[0])
    assert sorted(taken[:2]) == [(1, 1), (2, 1)] and sorted(taken[2:4]) == [(1, 2), (2, 2)]
    assert taken[4:] == [(1, 3), (1, 4)]


async def test_large_requests_of_one_client_do_not_slow_the_small_ones_of_another_down(nursery: trio.Nursery) -> None:
    rig = crowd(1, 2)
    nursery.start_soon(one_after_the_other, rig, [submit(1, number) for number in range(7)], 1_000_000)
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(one_after_the_other, rig, [submit(2, number) for number in range(100)], 300)
    await trio.testing.wait_all_tasks_blocked()
    await rig.driver.turn()
    taken = calls_of(rig.core.turns[0])
    assert [number for session, number in taken if session == 2] == list(range(100))
    assert [number for session, number in taken if session == 1] == [0, 1]


async def test_what_members_say_is_before_all_calls_of_clients(nursery: trio.Nursery) -> None:
    rig = crowd(1, 2)
    for session in (1, 2):
        nursery.start_soon(one_after_the_other, rig, [submit(session, number) for number in range(3000)])
    await trio.testing.wait_all_tasks_blocked()
    messages = [ping(float(number), number, 0) for number in range(3)]
    (frame,) = encode_frames([encode_message(message) for message in messages])
    await rig.driver.on_peer_frame(A, frame)
    await rig.driver.turn()
    assert rig.core.turns[0][:3] == tuple(FromPeer(A, message) for message in messages)
    assert len(rig.core.turns[0]) == 3 + TURN_CALLS // CALL_BYTES
    nursery.cancel_scope.cancel()


async def test_calls_of_clients_leave_the_inbox_of_members_its_room(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many wait, connections of members are read."""
    monkeypatch.setattr(driver_module, "INBOX_EVENTS", 1)
    rig = crowd(1)
    nursery.start_soon(one_after_the_other, rig, [submit(1, number) for number in range(10_000)])
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(rig.driver.put, PeerUp(A))
    await trio.testing.wait_all_tasks_blocked()
    await rig.driver.turn()
    assert rig.core.turns[0][0] == PeerUp(A)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("bound", ["TURN_EVENTS", "TURN_BYTES"])
async def test_when_members_fill_turns_clients_get_an_eighth_of_their_part(
    bound: str, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, bound, 10)
    rig = crowd(1)
    nursery.start_soon(one_after_the_other, rig, [submit(1, number) for number in range(1000)])
    for _ in range(20):
        await rig.driver.put(PeerUp(A), 1)
    await trio.testing.wait_all_tasks_blocked()
    await rig.driver.turn()
    assert rig.core.turns[0][:10] == (PeerUp(A),) * 10
    assert len(rig.core.turns[0]) == 10 + TURN_CALLS // CALL_BYTES // 8
    nursery.cancel_scope.cancel()


async def test_a_turn_with_much_of_members_takes_calls_up_to_its_bytes() -> None:
    rig = crowd(1)
    for number in range(500):
        await rig.driver.calls.put(submit(1, number))
    await rig.driver.put(PeerUp(A), driver_module.TURN_BYTES - 100 * CALL_BYTES)
    await rig.driver.turn()
    assert len(calls_of(rig.core.turns[0])) == 100


async def test_what_waits_for_a_turn_is_bounded_in_equal_parts_and_a_first_call_never_waits(
    nursery: trio.Nursery,
) -> None:
    rig = crowd(*range(1, 5))
    waiting = rig.driver.calls._waiting.weight
    for session in (1, 2):
        nursery.start_soon(one_after_the_other, rig, [submit(session, number) for number in range(10_000)])
        await trio.testing.wait_all_tasks_blocked()
        assert waiting(session) == CALLS_WAITING // session + CALL_BYTES, "its connection is read no further"
    nursery.start_soon(one_after_the_other, rig, [submit(3, 0)], CALLS_WAITING)
    nursery.start_soon(one_after_the_other, rig, [submit(4, 0)])
    await trio.testing.wait_all_tasks_blocked()
    assert waiting(3) == CALLS_WAITING + CALL_BYTES and waiting(4) == CALL_BYTES
    for _ in range(30):
        await rig.driver.turn()
        await trio.testing.wait_all_tasks_blocked()
    assert waiting(1) == waiting(2) and CALLS_WAITING // 3 < waiting(1) <= CALLS_WAITING // 2 + CALL_BYTES
    nursery.cancel_scope.cancel()


async def test_a_call_that_is_heavier_than_what_may_wait_waits_until_it_is_the_first(nursery: trio.Nursery) -> None:
    rig = crowd(1)
    nursery.start_soon(one_after_the_other, rig, [submit(1, 0), submit(1, 1)], CALLS_WAITING)
    await trio.testing.wait_all_tasks_blocked()
    await rig.driver.turn()
    await trio.testing.wait_all_tasks_blocked()
    await rig.driver.turn()
    assert [calls_of(turn) for turn in rig.core.turns] == [[(1, 0)], [(1, 1)]]


async def test_a_client_has_so_many_linearizable_reads_under_way_and_the_next_waits_until_half_are_answered() -> None:
    """Other clients, and other calls of this one, go on."""
    rig = crowd(1, 2)
    driver = rig.driver
    for number in range(READS_AT_ONCE + 2):
        await driver.calls.put(read(1, number))
    await driver.calls.put(submit(1, 1000))
    for number in range(READS_AT_ONCE + 2):
        await driver.calls.put(read(2, number, linearizable=False))
    await driver.turn()
    taken = calls_of(rig.core.turns[0])
    assert [number for session, number in taken if session == 1] == [*range(READS_AT_ONCE), 1000]
    assert [number for session, number in taken if session == 2] == list(range(READS_AT_ONCE + 2))
    for number in range(READS_AT_ONCE // 2 - 1):
        driver.calls.reply(Caller(1, number), NotFound("x"))
        driver.calls.reply(Caller(1, number), NotFound("x"))  # that was it
        driver.calls.reply(Caller(2, number), NotFound("x"))
    await driver.turn()
    driver.calls.reply(Caller(1, READS_AT_ONCE - 1), NotFound("x"))
    await driver.turn()
    rest = [(1, READS_AT_ONCE), (1, READS_AT_ONCE + 1)]
    assert [calls_of(turn) for turn in rig.core.turns[1:]] == [[], rest]


async def test_the_driver_sleeps_while_only_reads_wait_that_may_not_begin_and_an_answer_wakes_it(
    nursery: trio.Nursery,
) -> None:
    rig = crowd(1)
    for number in range(READS_AT_ONCE + 1):
        await rig.driver.calls.put(read(1, number))
    original = rig.core.step

    def step(loaded: Loaded, now: Now) -> Effects:
        assert len(rig.core.turns) < 100, "it turns on and on"
        return original(loaded, now)

    rig.core.step = step
    nursery.start_soon(rig.driver.run)
    await trio.testing.wait_all_tasks_blocked()
    assert len(calls_of([event for turn in rig.core.turns for event in turn])) == READS_AT_ONCE
    for number in range(READS_AT_ONCE // 2):
        rig.driver.calls.reply(Caller(1, number), NotFound("x"))
    await trio.testing.wait_all_tasks_blocked()
    assert calls_of(rig.core.turns[-1]) == [(1, READS_AT_ONCE)]
    nursery.cancel_scope.cancel()


async def test_reads_that_are_answered_late_do_not_hold_the_others_for_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Most of them wait for a link that does not come."""
    rig = crowd(1)
    driver = rig.driver
    for number in range(READS_AT_ONCE + 2):
        await driver.calls.put(read(1, number))
    await driver.turn()

    async def begun_after_an_answer(number: int, later_s: float) -> list[int]:
        await trio.sleep(later_s)
        driver.calls.reply(Caller(1, number), NotFound("x"))
        await driver.turn()
        return [number - READS_AT_ONCE for _, number in calls_of(rig.core.turns[-1])]

    assert await begun_after_an_answer(0, 0) == []
    await driver.calls.put(read(1, READS_AT_ONCE + 2))
    assert await begun_after_an_answer(1, HELD_S) == [0, 1], "that came before"
    assert await begun_after_an_answer(2, 0) == []
    assert await begun_after_an_answer(3, HELD_S) == [2]
    assert await begun_after_an_answer(4, HELD_S) == []


async def test_reads_that_have_a_place_begin_in_time_though_nothing_is_answered_any_more(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Fewer than half were answered, all of them at once; the others wait for a link that does not come."""
    rig = crowd(1)
    start, quick, held = trio.current_time(), READS_AT_ONCE // 2 - 4, 100
    nursery.start_soon(rig.driver.run)
    for number in range(READS_AT_ONCE + held):
        await rig.driver.calls.put(read(1, number, until=start + 5.0))
    await trio.sleep(HELD_S / 2)
    for number in range(quick):
        rig.driver.calls.reply(Caller(1, number), NotFound("x"))
    await trio.sleep(4.0)
    begun = [
        (round(time - start, 3), number - READS_AT_ONCE)
        for time, turn in zip(rig.core.times, rig.core.turns, strict=True)
        for _, number in calls_of(turn)
        if number >= READS_AT_ONCE
    ]
    assert begun == [(HELD_S, number) for number in range(quick)]
    assert len(rig.core.turns) < 10, "it turns on and on"
    nursery.cancel_scope.cancel()


async def test_who_waits_for_a_place_until_its_time_is_over_is_handed_over_then_and_takes_none(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """The core asks nobody about it: it tells the client. None of those under way is answered."""
    rig = crowd(1, 2)
    start = trio.current_time()
    nursery.start_soon(rig.driver.run)
    for number in range(READS_AT_ONCE):
        await rig.driver.calls.put(read(1, number, until=start + 60.0))
    await trio.testing.wait_all_tasks_blocked()
    for number, time_s in enumerate((3.0, 1.0, 2.0, 1.0, 30.0)):
        await rig.driver.calls.put(read(1, 1000 + number, until=start + time_s))
    await trio.sleep(5.0)
    late = [
        (round(time - start, 3), number)
        for time, turn in zip(rig.core.times, rig.core.turns, strict=True)
        for _, number in calls_of(turn)
        if number >= 1000
    ]
    assert late == [(1.0, 1001), (1.0, 1003), (2.0, 1002), (3.0, 1000)]
    for _, number in late:
        rig.driver.calls.reply(Caller(1, number), NotFound("x"))
    await trio.sleep(1.0)
    assert calls_of(rig.core.turns[-1]) == [(1, 1000)], "their answers made no place"
    rig.driver.calls.reply(Caller(1, 0), NotFound("x"))
    await trio.testing.wait_all_tasks_blocked()
    assert calls_of(rig.core.turns[-1]) == [(1, 1004)], "it was held for long enough"
    assert len(rig.core.turns) < 10, "it turns on and on"
    nursery.cancel_scope.cancel()


async def test_a_client_that_is_gone_takes_its_timers_with_it(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    rig = crowd(1)
    nursery.start_soon(rig.driver.run)
    for number in range(READS_AT_ONCE + 2):
        await rig.driver.calls.put(read(1, number, until=trio.current_time() + 1.0))
    await trio.testing.wait_all_tasks_blocked()
    rig.driver.calls.reply(Caller(1, 0), NotFound("x"))
    rig.driver.remove_session(FakeSession(rig.journal, 1))
    await trio.sleep(10.0)
    assert len(calls_of([event for turn in rig.core.turns for event in turn])) == READS_AT_ONCE
    assert len(rig.core.turns) < 5, "it turns on and on"
    nursery.cancel_scope.cancel()


async def test_clients_with_held_reads_are_not_all_looked_at_in_every_turn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    looked: list[float] = []

    class Clients(dict[int, calls_module._Client]):
        def values(self) -> ValuesView[calls_module._Client]:
            looked.append(trio.current_time())
            return super().values()

    rig = crowd(1, 2)
    driver = rig.driver
    driver.calls._clients = Clients(driver.calls._clients)
    for session in (1, 2):
        for number in range(READS_AT_ONCE + 10):
            await driver.calls.put(read(session, number, until=trio.current_time() + 5.0))
        driver.calls.reply(Caller(session, 0), NotFound("x"))
    for _ in range(100):
        await driver.turn()
    assert not looked
    await trio.sleep(HELD_S)
    for _ in range(100):
        await driver.turn()
    assert len(looked) == 1


async def test_a_client_whose_reads_are_held_is_read_on_while_many_others_wait(nursery: trio.Nursery) -> None:
    """It asks whether the node lives, and gives it up when nothing is said."""
    everybody = range(1, 513)
    rig = crowd(*everybody)
    done: list[int] = []

    async def connection(session: int) -> None:
        for number in range(READS_AT_ONCE, CLIENT_CALLS):
            await rig.driver.calls.put(read(session, number))
        done.append(session)

    for session in everybody:
        rig.driver.calls._clients[session].reads.update(range(READS_AT_ONCE))
        nursery.start_soon(connection, session)
    await trio.testing.wait_all_tasks_blocked()
    assert len(done) == len(everybody)
    await rig.driver.calls.put(submit(1, 5000))
    await rig.driver.turn()
    assert calls_of(rig.core.turns[-1]) == [(1, 5000)]


async def test_an_answer_that_lets_nothing_begin_costs_no_turn(nursery: trio.Nursery) -> None:
    rig = crowd(1)
    for number in range(3):
        await rig.driver.calls.put(read(1, number))
    nursery.start_soon(rig.driver.run)
    await trio.testing.wait_all_tasks_blocked()
    turns = len(rig.core.turns)
    for number in range(3):
        rig.driver.calls.reply(Caller(1, number), NotFound("x"))
        await trio.testing.wait_all_tasks_blocked()
    assert len(rig.core.turns) == turns
    nursery.cancel_scope.cancel()


async def test_a_call_wakes_the_driver(nursery: trio.Nursery) -> None:
    rig = crowd(1)
    nursery.start_soon(rig.driver.run)
    await trio.testing.wait_all_tasks_blocked()
    await rig.driver.calls.put(submit(1, 0))
    await trio.testing.wait_all_tasks_blocked()
    assert calls_of(rig.core.turns[-1]) == [(1, 0)]
    nursery.cancel_scope.cancel()


async def test_a_client_that_is_gone_leaves_nothing_behind(nursery: trio.Nursery) -> None:
    """Neither calls that no turn has taken, nor a task that waits, nor a count; what the core has goes on."""
    rig = crowd(1, 2)
    driver = rig.driver
    done: list[int] = []

    async def connection() -> None:
        for number in range(10_000):
            await driver.calls.put(read(1, number) if number < 2 * READS_AT_ONCE else submit(1, number))
        done.append(1)

    for number in range(3):
        await driver.calls.wait_for_room(Caller(1, number), 10)
    nursery.start_soon(connection)
    await trio.testing.wait_all_tasks_blocked()
    await driver.turn()
    await trio.testing.wait_all_tasks_blocked()
    await driver.calls.put(submit(2, 0))
    assert (
        not done
        and driver.calls._clients[1].reads
        and driver.calls._clients[1].held
        and driver.calls._waiting.weight(1)
    )
    driver.remove_session(FakeSession(rig.journal, 1))
    await trio.testing.wait_all_tasks_blocked()
    assert done == [1]
    for number in range(READS_AT_ONCE):
        driver.calls.reply(Caller(1, number), NotFound("x"))
    await driver.turn()
    assert calls_of(rig.core.turns[-1]) == [(2, 0)]
    driver.remove_session(FakeSession(rig.journal, 2))
    assert not driver.calls._clients and not driver.calls and not driver.calls._waiting.lines
    assert (driver.calls._waiting._ends, driver.calls._waiting._heads) == ({}, [])


async def test_a_number_that_comes_again_before_its_answer_is_a_fault() -> None:
    """Two calls of one number would count as one: a client could have any number of them."""
    rig = crowd(1)
    await rig.driver.calls.wait_for_room(Caller(1, 7), 10)
    with pytest.raises(RemoteFault, match="call 7 comes again"):
        await rig.driver.calls.wait_for_room(Caller(1, 7), 10)
    rig.driver.calls.reply(Caller(1, 7), NotFound("x"))
    await rig.driver.calls.wait_for_room(Caller(1, 7), 10)


@pytest.mark.parametrize("seed", range(10))
async def test_every_call_of_clients_that_stay_is_taken_once_in_order_and_answered_once(
    seed: int, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "TURN_CALLS", 20 * CALL_BYTES)
    monkeypatch.setattr(calls_module, "CALLS_WAITING", 60 * CALL_BYTES)
    monkeypatch.setattr(calls_module, "CLIENT_CALLS", 50)
    monkeypatch.setattr(calls_module, "READS_AT_ONCE", 3)
    rng = random.Random(seed)
    rig = Rig()
    driver = rig.driver
    sessions = [FakeSession(rig.journal, number) for number in range(2, 8)]
    stay, leave = sessions[:4], sessions[4:]
    reads_of: dict[int, set[int]] = {}

    async def connection(session: FakeSession, kinds: Sequence[bool]) -> None:
        driver.calls.add_session(session)
        for number, is_read in enumerate(kinds):
            call = read(session.number, number) if is_read else submit(session.number, number)
            await driver.calls.wait_for_room(call.caller, 100)
            await driver.calls.put(call, 100)

    for session in sessions:
        kinds = [rng.random() < 0.4 for _ in range(rng.choice((1, 5, 200)))]
        session.asked = len(kinds)
        reads_of[session.number] = {number for number, is_read in enumerate(kinds) if is_read}
        nursery.start_soon(connection, session, kinds)
    await trio.testing.wait_all_tasks_blocked()
    under_way: list[Event] = []
    took: list[tuple[int, int]] = []
    for turn in range(400):
        await driver.turn()
        under_way += [event for event in rig.core.turns[-1] if not isinstance(event, ClientGone)]
        took += calls_of(rig.core.turns[-1])
        for session in stay:
            reads = [e for e in under_way if isinstance(e, ClientBalance) and e.caller.session == session.number]
            assert len(reads) <= 3
        rng.shuffle(under_way)
        for _ in range(rng.randint(0, len(under_way))):
            driver.calls.reply(under_way.pop().caller, NotFound("x"))
        if turn == 5:
            for session in leave:
                driver.remove_session(session)
        await trio.testing.wait_all_tasks_blocked()
    for session in stay:
        numbers = [number for whose, number in took if whose == session.number]
        assert sorted(numbers) == list(range(session.asked)) and len(session.replies) == session.asked
        for kind in (reads_of[session.number], set(numbers) - reads_of[session.number]):
            assert [number for number in numbers if number in kind] == sorted(kind), (
                "only its own linearizable reads may wait"
            )
    assert not under_way and not driver.calls._waiting.lines
    assert {number: client.bytes for number, client in driver.calls._clients.items()} == dict.fromkeys(
        (1, 2, 3, 4, 5), 0
    )

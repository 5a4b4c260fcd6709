"""Room for calls: first come, first served, in calls and in bytes."""

import anyio
import pytest

from hopchain import calls, wire
from hopchain.room import Room
from tests.hopchain.test_client import BACKENDS


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_client_has_less_unanswered_than_a_node_reads_on_with() -> None:
    assert calls.MAX_IN_FLIGHT + calls.SIGNS_OF_LIFE <= wire.MAX_UNANSWERED
    sign = len(wire.encode(wire.Call(2**64 - 1, wire.AskStatus())))
    assert calls.MAX_IN_FLIGHT_BYTES + calls.SIGNS_OF_LIFE * sign <= wire.MAX_UNANSWERED_BYTES
    assert calls.MAX_IN_FLIGHT_BYTES >= wire.MAX_CLIENT_FRAME_BYTES, "a sign of life passes beside the largest call"


@pytest.mark.parametrize(
    ("sizes", "let_in"),
    [
        ([1, 1, 1, 1], 3),  # three calls
        ([4, 4, 2, 1], 3),
        ([4, 7, 1, 1], 1),  # ten bytes, and small ones do not pass the large one
        ([10, 1], 1),
        ([50, 1], 1),  # one alone fits
    ],
)
def test_who_comes_first_has_room_first(backend: str, sizes: list[int], let_in: int) -> None:
    async def main() -> None:
        room = Room(3, 10)
        inside: list[int] = []

        async def enter(number: int) -> None:
            await room.enter(sizes[number])
            inside.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(len(sizes)):
                tasks.start_soon(enter, number)
                await anyio.wait_all_tasks_blocked()
            assert sorted(inside) == list(range(let_in)) and room.full and room.taken == let_in
            for number in range(len(sizes)):
                room.leave(sizes[number])
                await anyio.wait_all_tasks_blocked()
                assert sorted(inside) == list(range(len(inside))) and len(inside) > number + (number < len(sizes) - 1)
        assert (room.taken, room._bytes, room.full) == (0, 0, False)

    anyio.run(main, backend=backend)


def test_who_goes_away_takes_no_room_and_holds_nobody_back(backend: str) -> None:
    async def main() -> None:
        room = Room(3, 10)
        await room.enter(6)
        with anyio.CancelScope() as already, anyio.CancelScope():
            already.cancel()
            await room.enter(1)
        assert already.cancelled_caught and room.taken == 1
        got: list[int] = []

        async def enter(size: int) -> None:
            await room.enter(size)
            got.append(size)

        async with anyio.create_task_group() as tasks, anyio.create_task_group() as large:
            large.start_soon(enter, 8)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(enter, 2)
            await anyio.wait_all_tasks_blocked()
            assert got == []
            large.cancel_scope.cancel()
        assert got == [2] and room._bytes == 8
        async with anyio.create_task_group() as late:
            late.start_soon(enter, 9)
            await anyio.wait_all_tasks_blocked()
            room.leave(2)
            room.leave(6)  # the other one is let in, and cancelled before it runs
            late.cancel_scope.cancel()
        assert got in ([2], [2, 9])
        assert room.taken == len(got) - 1 and room._bytes == 9 * room.taken

    anyio.run(main, backend=backend)


def test_nobody_waits_for_room_when_nothing_is_sent_any_more(backend: str) -> None:
    async def main() -> None:
        room = Room(1, 10)
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(room.enter, 10)
            await anyio.wait_all_tasks_blocked()
            assert room.taken == 1
            room.end()
        assert room.taken == 3

    anyio.run(main, backend=backend)

"""Recorded requests that came again share what a turn has room to tell."""

from collections.abc import Iterable

import pytest

from chain.link import MAX_LINK_BYTES, LinkHash, Outcome
from chain.needs import Loaded, Needs
from chain.outcomes import TOLD_BYTES
from chain.request import RequestId
from chain.rows import OutcomeRow
from node.events import Caller
from node.untold import TOLD_CALLS, Untold

FULL = MAX_LINK_BYTES // 2  # a link of one largest request, about


def row_of(request: int, link: int) -> OutcomeRow:
    link_hash = LinkHash(link.to_bytes(32, "big"))
    return OutcomeRow(RequestId(request.to_bytes(32, "big")), "alice", Outcome.COMPLETED, link_hash, link, 0, 0)


class Rig:
    """Calls that wait, each of a request of its own, and turns that have room for what they take."""

    def __init__(self) -> None:
        self.untold = Untold()
        self.rows: list[OutcomeRow] = []
        self.sizes: dict[LinkHash, int] = {}

    def add(self, session: int, link: int, size: int = FULL) -> None:
        row = row_of(len(self.rows), link)
        self.untold.add(Caller(session, len(self.rows)), row, size)
        self.rows.append(row)
        self.sizes[row.link_hash] = size

    def turn(self, no_room: Iterable[OutcomeRow] = ()) -> list[tuple[int, int]]:
        """(session, link) of those who are told."""
        needs = Needs()
        self.untold.needs_turn(needs)
        rows = {(row.account, row.request_id): row for row in self.rows}
        outcomes = {key: rows[key] for key in needs.told}
        links = {row.link_hash for row in outcomes.values()}
        assert len(links) <= 1 or sum(self.sizes[link] for link in links) <= TOLD_BYTES
        untold = {(row.account, row.request_id): self.sizes[row.link_hash] for row in no_room}
        told = list(self.untold.take(Loaded(outcomes=outcomes, untold=untold)))
        assert [row for _, row in told] == [self.rows[caller.number] for caller, _ in told]
        return [(caller.session, row.height) for caller, row in told]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_turn_takes_as_many_links_as_there_is_room_for_and_the_next_one_goes_on(rig: Rig) -> None:
    for link in range(7):
        rig.add(1, link)
    assert [rig.turn(), rig.turn(), rig.turn()] == [
        [(1, 0), (1, 1), (1, 2)],
        [(1, 3), (1, 4), (1, 5)],
        [(1, 6)],
    ]
    assert not rig.untold and rig.turn() == []


def test_one_link_is_always_told_of(rig: Rig) -> None:
    rig.add(1, 0, 2 * TOLD_BYTES)
    rig.add(1, 1, 2 * TOLD_BYTES)
    assert rig.turn() == [(1, 0)] and rig.turn() == [(1, 1)]


def test_all_that_a_client_waits_for_in_a_link_is_told_when_it_is_read(rig: Rig) -> None:
    for _ in range(3):
        for link in range(4):
            rig.add(1, link)
    assert rig.turn() == [(1, 0)] * 3 + [(1, 1)] * 3 + [(1, 2)] * 3
    assert rig.turn() == [(1, 3)] * 3


def test_a_link_that_two_wait_for_is_read_once(rig: Rig) -> None:
    for session in (1, 2):
        for link in range(2):
            rig.add(session, link)
    assert sorted(rig.turn()) == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_who_waits_for_one_link_does_not_wait_for_those_who_wait_for_hundreds(rig: Rig) -> None:
    for link in range(900):
        rig.add(link % 3, link)
    rig.turn()
    rig.add(7, 1000)
    assert (7, 1000) in rig.turn() + rig.turn()


def test_nobody_waits_for_ever_beside_those_who_come_all_the_time(rig: Rig) -> None:
    rig.add(1, 0)
    rig.add(1, 1)
    told: list[tuple[int, int]] = []
    for turn in range(10):
        for session in range(2, 5):
            rig.add(session, 100 + 3 * turn + session)
        told += rig.turn()
    assert {(1, 0), (1, 1)} <= set(told)


def test_who_waits_for_many_links_is_told_beside_those_who_ask_for_one_again_and_again(rig: Rig) -> None:
    for link in range(20):
        rig.add(1, link)
    for session in range(2, 12):
        rig.add(session, 100 + session)
    told: set[int] = set()
    for _ in range(100):
        for session, link in rig.turn():
            if session == 1:
                told.add(link)
            else:
                rig.add(session, link)
    assert told == set(range(20))


def test_nothing_is_kept_of_clients_when_nobody_waits(rig: Rig) -> None:
    for session in range(50):
        rig.add(session, session)
    while rig.untold:
        rig.turn()
    rig.turn()
    assert not rig.untold._queue._ends and not rig.untold._waiting


def test_a_turn_tells_only_so_many(rig: Rig) -> None:
    for _ in range(2):
        for number in range(2 * TOLD_CALLS):
            rig.add(1, number, 300)
    assert [len(rig.turn()) for _ in range(4)] == [TOLD_CALLS] * 4


def test_who_is_gone_takes_nothing_from_the_others(rig: Rig) -> None:
    for link in range(3):
        rig.add(1, link)
        rig.add(2, link + 10)
    rig.untold.forget(1)
    rig.untold.forget(3)
    assert rig.turn() == [(2, 10), (2, 11), (2, 12)]
    assert not rig.untold


def test_who_leaves_while_his_turn_is_loaded_takes_nothing_from_the_others(rig: Rig) -> None:
    rig.add(1, 0)
    rig.add(2, 0)
    needs = Needs()
    rig.untold.needs_turn(needs)
    rig.untold.forget(1)
    outcomes = {(row.account, row.request_id): row for row in rig.rows}
    assert (Caller(2, 1), rig.rows[1]) in list(rig.untold.take(Loaded(outcomes=outcomes)))


def test_whom_there_was_no_room_for_after_all_waits_on(rig: Rig) -> None:
    rig.add(1, 0)
    rig.add(1, 1)
    assert rig.turn(no_room=[rig.rows[1]]) == [(1, 0)]
    assert rig.untold and rig.turn() == [(1, 1)]

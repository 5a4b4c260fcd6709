"""Reads that wait for a height, beside a list of them that is searched from end to end."""

import random
from collections import Counter
from collections.abc import Callable

import pytest

from hopchain.wire import AskBalance
from node.events import Caller, ClientBalance
from node.waits import Waits


def wait(number: int, session: int = 1, account: str = "alice", height: int = 1, until: float = 1.0) -> ClientBalance:
    return ClientBalance(Caller(session, number), AskBalance(account, False, height), until)


def until_of(read: ClientBalance) -> float:
    assert read.until is not None
    return read.until


class Listed:
    """The oracle."""

    def __init__(self) -> None:
        self.reads: list[ClientBalance] = []

    def take(
        self, which: Callable[[ClientBalance], bool], key: Callable[[ClientBalance], float]
    ) -> list[ClientBalance]:
        taken = sorted(filter(which, self.reads), key=key)
        self.reads = [read for read in self.reads if not which(read)]
        return taken

    def take_for(self, session: int) -> ClientBalance | None:
        share = Counter(read.caller.session for read in self.reads)
        most = max(share.values(), default=0)
        if most < share[session] + 2:
            return None
        sessions = list(dict.fromkeys(read.caller.session for read in self.reads))
        loser = next(s for s in sessions if share[s] == most)
        newest = [read for read in self.reads if read.caller.session == loser][-1]
        self.reads.remove(newest)
        return newest


@pytest.mark.parametrize("seed", range(20))
def test_reads_end_as_if_all_of_them_were_looked_at(seed: int) -> None:
    rng = random.Random(seed)
    waits, listed = Waits(), Listed()
    for number in range(2000):
        session, account, height = rng.randrange(5), rng.choice("ab"), rng.randrange(50)
        match rng.choices(range(5), (100, 10, 10, 1, 5))[0]:
            case 0:
                read = wait(number, session, account, height, number + rng.randrange(300))
                waits.add(read)
                listed.reads.append(read)
            case 1:
                height //= 5
                expected = listed.take(
                    lambda r, a=account, h=height: r.ask.account == a and r.ask.min_height <= h,  # type: ignore[misc]
                    lambda r: r.ask.min_height,
                )
                assert waits.take_reached(account, height) == expected
            case 2:
                assert waits.take_late(number) == listed.take(lambda r, n=number: until_of(r) <= n, until_of)  # type: ignore[misc]
            case 3:
                assert waits.take_of(session) == listed.take(
                    lambda r, s=session: r.caller.session == s,  # type: ignore[misc]
                    lambda r: r.caller.number,
                )
            case 4:
                loser, expected_loser = waits.take_for(session), listed.take_for(session)
                assert (loser is None) == (expected_loser is None)
                if loser is not None and expected_loser is not None:  # of sessions with as many any may be meant
                    listed.reads += [expected_loser]
                    newest = [r for r in listed.reads if r.caller.session == loser.caller.session]
                    assert loser == max(newest, key=lambda r: r.caller.number)
                    listed.reads.remove(loser)
                    listed.reads.sort(key=lambda r: r.caller.number)
        assert len(waits) == len(listed.reads)
        assert waits.deadline() == min(map(until_of, listed.reads), default=None)
    waits.take_late(10_000)
    assert (len(waits), waits.deadline()) == (0, None)


def test_nothing_is_kept_of_reads_that_have_ended() -> None:
    waits = Waits()
    for number in range(1000):
        waits.add(wait(number, session=number % 7, account=f"account {number % 3}", height=2**40, until=number))
        if number % 2:
            assert waits.take_late(number - 1) != []
    assert sum(len(heap._items) for heap in waits._by_height.values()) <= 2 * len(waits)
    for session in range(7):
        waits.take_of(session)
    assert (len(waits), waits._by_height, waits._by_session, waits._by_time._items) == (0, {}, {}, [])

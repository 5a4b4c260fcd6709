"""Who waits for the answers of others: of each kind of question (`node.inquiry`) one about the same thing is under way
at a time, for all who want to know.

* Who comes in the turn in which it begins shares it: nobody can have answered yet.
* Who comes later waits for the next one, since an answer counts for what was asked before it. So a question begins
  after all who are told its answer have come.
* Each purpose has places of its own: no number of payments, or of requests that nobody signed, takes those of reads.
"""

import enum
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

import msgspec

from node.due import Due
from node.turn import Turn

K = TypeVar("K", bound=Hashable)
A = TypeVar("A")


class Purpose(enum.Enum):
    """What somebody wants to know it for."""

    READ = "linearizable balances"
    PAYMENT = "payments"
    ADMISSION = "requests of unknown senders"  # or that expect an unknown tip


# Who may wait at once; above it the answer is "not in time". Those of ADMISSION, which cost no signature, clients share
# (`node.admission`).
MAX_ASKERS: Final = {Purpose.READ: 5_000, Purpose.PAYMENT: 4_000, Purpose.ADMISSION: 1_000}
ASK_AGAIN_S: Final = 0.1  # and a round trip: who has not answered by then is asked again


class Asker(msgspec.Struct, Generic[A]):
    """Somebody who waits for an answer: `done` is called once, with it, or with that there is none when `until` is
    over."""

    done: Callable[[Turn, A], None]
    until: float
    purpose: Purpose


class Askers(Generic[K, A]):
    """Of one kind of question, who waits, by what it is about. `places` counts those who wait, and may be shared."""

    def __init__(self, places: Counter[Purpose]) -> None:
        self._places = places
        self._now: dict[K, list[Asker[A]]] = {}  # who waits for the question that is under way
        self._next: dict[K, list[Asker[A]]] = {}  # and for the one after it
        self._begun: set[K] = set()  # those that began in this turn
        self._due = Due()

    def add(self, about: K, asker: Asker[A]) -> bool:
        """One more waits. True when it is to be asked now, for this one: `begin`, as soon as that can be."""
        self._places[asker.purpose] += 1
        self._due.by(asker.until)
        if about in self._begun:
            self._now[about].append(asker)
            return False
        waiting = self._next.setdefault(about, [])
        waiting.append(asker)
        return len(waiting) == 1 and about not in self._now

    def wants(self, about: K) -> bool:
        """Somebody waits for a question that may begin."""
        return about in self._next and about not in self._now

    def has(self, about: K, purpose: Purpose) -> bool:
        """Somebody waits for the question under way for this purpose."""
        return any(asker.purpose is purpose for asker in self._now.get(about, ()))

    def begin(self, about: K) -> None:
        """It is asked now, for all who have come."""
        assert self.wants(about)
        self._now[about] = self._next.pop(about)
        self._begun.add(about)

    def end(self, turn: Turn, about: K, answer: A, *, for_all: bool = False) -> None:
        """The question under way is answered; `for_all`: so that no other one need be asked."""
        askers = self._now.pop(about)
        self._begun.discard(about)
        if for_all:
            askers += self._next.pop(about, [])
        self.tell(turn, askers, answer)

    def take_late(self, now: float) -> tuple[list[Asker[A]], list[K]]:
        """Those whose time is over, to be told, and the questions under way for which nobody waits any more: they are
        over, too."""
        if not self._due.passed(now):
            return [], []
        late: list[Asker[A]] = []
        over: list[K] = []
        for lists in (self._now, self._next):
            for about, askers in list(lists.items()):
                late += [asker for asker in askers if asker.until <= now]
                askers[:] = [asker for asker in askers if asker.until > now]
                if not askers:
                    del lists[about]
                    if lists is self._now:
                        self._begun.discard(about)
                        over.append(about)
                for asker in askers:
                    self._due.by(asker.until)
        return late, over

    def tell(self, turn: Turn, askers: list[Asker[A]], answer: A) -> None:
        """They wait no longer."""
        for asker in askers:
            self._places[asker.purpose] -= 1  # each by itself: one that asks on has its place
            asker.done(turn, answer)

    def end_turn(self) -> None:
        """What was asked in this turn leaves now, and may be answered."""
        self._begun.clear()

    def deadline(self) -> float | None:
        """When the time of one of them may be over."""
        return self._due.at

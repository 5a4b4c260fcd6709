"""From a seed to a plan in which the members change, three times or more, with a bias to what is rare.

    growth      from one member on, one after the other, as fast as they go
    shrinking   below the group size, down to one or two
    churn       adding and removing in any order, and more than one wish at once
    returning   who was removed is asked for again, and refused
    undo        what was just added dies, and is removed again
    replacing   nodes die and are replaced, by either order of the two changes
    joining     the joiner dies at one of its first commits, or while it starts with nothing
    shadows     changes while members sleep: votes are on few disks
    fog         one busy account, messages late and lost, changes at once: its slots are contested in every epoch.
                Groups only shrink (counterexample 10), or nodes enter and leave again at once (counterexamples 2 and 3)
    hidden      a proposer reaches just a majority and dies before it hears: what is chosen, nobody knows. Then it is
                removed (counterexamples 1, 3 and 10)
    old disks   a disk goes back in time while the members change (design R12)

Over all of these lie kills at commits, cuts and bad weather, placed where the changes are.
"""

import random
from collections.abc import Callable
from typing import Final

import msgspec

from netsim import draw_parts as parts
from netsim.plan import (
    COMMIT_POINTS,
    POINTS,
    Add,
    Bury,
    Cut,
    Die,
    Fault,
    Kill,
    KillAtCommit,
    Load,
    Plan,
    Remove,
    Rollback,
    Weather,
)

SPARES: Final = 4
LAST_S: Final = 8.5  # when the last wish is made: what it takes longer is done in the healed network


class _Story(msgspec.Struct):
    """Who is a member and who is not, if everything is made as it is asked for, and what is asked for so far."""

    rng: random.Random
    members: list[int]
    spares: list[int]
    at: float
    gap_s: float
    fog: bool = False
    faults: list[Fault] = msgspec.field(default_factory=list)

    def step(self) -> float:
        """When the next change is asked for."""
        at = self.at
        self.at = min(LAST_S, at + self.gap_s * self.rng.random() * 2)
        return at

    def add(self, *, fresh: bool | None = None) -> int | None:
        """A spare becomes a member; None when there is none left."""
        if not self.spares:
            return None
        node = self.spares.pop(0)
        self.members.append(node)
        is_fresh = self.rng.random() < 0.3 if fresh is None else fresh
        self.faults.append(Add(self.step(), node, is_fresh))
        return node

    def remove(self, node: int | None = None) -> int | None:
        """A member leaves; None when only one is left."""
        if len(self.members) < 2:
            return None
        node = self.rng.choice(self.members) if node is None else node
        self.members.remove(node)
        self.faults.append(Remove(self.step(), node, stop=self.rng.random() < 0.5, force=self.rng.random() < 0.5))
        return node

    def bury(self) -> None:
        """A member dies and is replaced."""
        if self.spares:
            node, spare = self.rng.choice(self.members), self.spares.pop(0)
            self.members[self.members.index(node)] = spare
            self.faults.append(Bury(self.step(), node, spare, self.rng.random() < 0.5))


def draw_changes(rng: random.Random, seed: int) -> Plan:
    """The plan of this seed, whose members change."""
    tell = rng.choice(_STORIES)
    first = rng.choice(_FIRST[tell])
    story = _Story(
        rng,
        list(range(first)),
        list(range(first, first + SPARES)),
        rng.uniform(0, 2),
        rng.choice([0.0, 0.05, 0.3, 1.0, 1.0]),
    )
    group_size = rng.choice([1, 2, 3, 3, 3, 4, 5])
    tell(story)
    everybody = first + SPARES
    weather, load = Weather(), _load(rng)
    if story.fog:
        weather = Weather(loss=rng.choice([0.1, 0.2, 0.3]), repeat=0.1, delay_mean_s=rng.choice([0.05, 0.1, 0.15]))
        load = msgspec.structs.replace(load, accounts=2, requests=100, hot=0.9, nobody=0.0, reopen=0.0, cancel=0.0)
        group_size = rng.choice([3, 5]) if tell is _thinning else 3
        _naps(story, first)
    elif tell is _hidden:
        weather = Weather(delay_mean_s=rng.choice([0.02, 0.05, 0.1]))
        load = msgspec.structs.replace(load, accounts=10, requests=300, hot=0.1, nobody=0.0, reopen=0.0, cancel=0.0)
        group_size = rng.choice([3, 3, 5])
    elif tell is _old_disks:
        weather = Weather(delay_mean_s=rng.choice([0.005, 0.05, 0.1]))
    else:
        weather = Weather(
            loss=rng.choice([0.0, 0.0, 0.05, 0.2]),
            repeat=rng.choice([0.0, 0.0, 0.2]),
            delay_mean_s=rng.choice([0.001, 0.005, 0.02, 0.1]),
        )
        _trouble(story, everybody)
    return Plan(
        seed,
        first,
        group_size,
        weather,
        load,
        tuple(sorted(story.faults, key=lambda fault: fault.at)),
        fault_s=parts.FAULT_S,
        files=rng.random() < 0.1,
        spares=SPARES,
    )


def _load(rng: random.Random) -> Load:
    """Few accounts and many requests, so that there is a link to decide at every moment of a change."""
    return msgspec.structs.replace(
        parts.load(rng), accounts=rng.choice([2, 3]), requests=rng.choice([30, 60, 100]), overdraft=0.05
    )


def _trouble(story: _Story, everybody: int) -> None:
    """Nodes die within turns while the members change, paths are cut, processes sleep; a third of the plans is
    spared."""
    rng = story.rng
    if rng.random() < 0.33:
        return
    for _ in range(rng.choice([2, 6, 15])):
        change = rng.choice(story.faults)
        at = max(0.0, change.at + rng.uniform(-0.3, 0.6))
        kill = Kill(at, rng.randrange(everybody), at + rng.uniform(0.05, 2.0), rng.choice(POINTS))
        story.faults.append(kill)
    for kind in rng.sample(
        [parts.cuts, parts.clogs, parts.pauses, parts.slow, parts.disk_errors], rng.choice([0, 1, 2])
    ):
        for _ in range(rng.choice([1, 3])):
            story.faults += kind(rng, everybody)


def _naps(story: _Story, first: int) -> None:
    """Members sleep and wake, one at a time or two, so that those who voted are not those who change the view."""
    rng = story.rng
    for _ in range(rng.choice([4, 10, 20])):
        at = rng.uniform(0, LAST_S)
        nap = Kill(at, rng.randrange(first), at + rng.uniform(0.2, 1.5), rng.choice(COMMIT_POINTS))
        story.faults.append(nap)


# --- stories -------------------------------------------------------------------------------------------------------


def _growth(story: _Story) -> None:
    for _ in range(story.rng.choice([3, 4])):
        story.add()
    for _ in range(story.rng.choice([0, 2, 5])):
        story.remove()


def _shrinking(story: _Story) -> None:
    for _ in range(max(3, len(story.members) - story.rng.choice([1, 2]))):
        if story.remove() is None:
            story.add()


def _churn(story: _Story) -> None:
    for _ in range(story.rng.choice([3, 5, 8])):
        if (story.rng.random() < 0.5 and story.add() is None) or story.remove() is None:
            story.add()


def _returning(story: _Story) -> None:
    """Who was removed is to be added again: it must be refused (design R12)."""
    _churn(story)
    gone = [fault.node for fault in story.faults if isinstance(fault, Remove) and not fault.stop]
    for node in gone[:2]:
        story.faults.append(Add(min(LAST_S, story.step() + 1.0), node))


def _undo(story: _Story) -> None:
    for _ in range(story.rng.choice([2, 3])):
        node = story.add()
        if node is None:
            return
        at = story.faults[-1].at + story.rng.uniform(0, 0.5)
        story.faults.append(Die(at, node))
        story.at = min(LAST_S, at + story.rng.uniform(0, 0.3))
        story.remove(node)


def _replacing(story: _Story) -> None:
    for _ in range(story.rng.choice([2, 3])):
        story.bury()
        if story.rng.random() < 0.5:
            story.faults.append(Die(story.at, story.rng.choice(story.members)))


def _joining(story: _Story) -> None:
    for _ in range(3):
        node = story.add()
        if node is None:
            return
        at = max(0.0, story.faults[-1].at - story.rng.choice([0.0, 0.0, 0.5]))
        for _ in range(story.rng.choice([1, 3])):
            story.faults.append(
                KillAtCommit(
                    at,
                    node,
                    story.rng.randint(1, 25),
                    story.rng.choice(COMMIT_POINTS),
                    story.rng.choice([0.05, 0.5, 2.0]),
                    story.rng.randrange(8),
                )
            )


def _shadows(story: _Story) -> None:
    """Removals and additions around accounts' owners, while two nodes come and go: a value may be on few disks."""
    rng = story.rng
    for _ in range(rng.choice([3, 5])):
        asleep = rng.choice(story.members)
        until = min(parts.FAULT_S, story.at + rng.uniform(0.3, 3.0))
        story.faults.append(Kill(max(0.0, story.at - rng.uniform(0, 0.3)), asleep, until, rng.choice(POINTS)))
        if rng.random() < 0.6:
            story.remove()
        else:
            story.add()


def _thinning(story: _Story) -> None:
    """Members leave, one at once after the other; sometimes one comes in between."""
    story.fog, story.gap_s = True, story.rng.choice([0.0, 0.5, 1.5])
    while len(story.members) > 2:
        story.remove()
        if story.rng.random() < 0.2:
            story.add(fresh=False)


def _passing(story: _Story) -> None:
    """Nodes come in and leave again at once, so that a group is as it was two views ago."""
    story.fog, story.gap_s = True, story.rng.choice([0.0, 0.3, 1.0])
    for _ in range(SPARES):
        node = story.add(fresh=False)
        if story.rng.random() < 0.8:
            story.remove(node)
        else:
            story.remove()


def _hidden(story: _Story) -> None:
    """A member's proposals reach only as many as make a majority with it, and it dies before it hears of their votes.
    They wait for it for a second; meanwhile it is removed, perhaps with another one, and somebody sleeps."""
    rng = story.rng
    for start in (0.5, 3.5, 6.5):
        at = start + rng.uniform(0, 0.8)
        story.at, story.gap_s = at, 0.0
        if len(story.members) < 3 or rng.random() < 0.6:
            story.add(fresh=False)
            at += rng.uniform(0.5, 1.0)
        member = story.members[-1] if rng.random() < 0.4 else rng.choice(story.members)
        others = [node for node in story.members if node != member]
        missed = rng.sample(others, (len(others) + 1) // 2)
        story.faults.append(Cut(at - rng.uniform(0.1, 0.3), (member,), tuple(missed), at + 0.1))
        story.faults.append(
            Kill(at, member, at + rng.uniform(1.0, 3.0), rng.choice(["idle", "sending", "after_commit"]))
        )
        story.at, story.gap_s = at + rng.uniform(0.01, 0.2), rng.choice([0.0, 0.2])
        story.remove(member)
        if rng.random() < 0.5:
            story.remove()
        nap = at + rng.uniform(0.3, 1.0)
        story.faults.append(Kill(nap, rng.choice(others), nap + rng.uniform(0.3, 1.0)))


def _old_disks(story: _Story) -> None:
    """No message is lost: only then everybody can tell the node so (docs/adr/0013). A founder is alone in the view on
    its old disk, which asks nobody."""
    rng = story.rng
    at = rng.uniform(0, 3)
    story.faults.append(Rollback(at, rng.choice(story.members), rng.choice(["old", "emptied"]), at + 6))
    for _ in range(3):
        story.add(fresh=False)
    story.remove()


_STORIES: Final[tuple[Callable[[_Story], None], ...]] = (
    _growth,
    _shrinking,
    _churn,
    _returning,
    _undo,
    _replacing,
    _joining,
    _shadows,
    _thinning,
    _passing,
    _hidden,
    _hidden,
    _hidden,
    _old_disks,
)
_FIRST: Final[dict[Callable[[_Story], None], tuple[int, ...]]] = {
    _growth: (1, 1, 2, 3),
    _shrinking: (3, 4, 5, 5, 6),
    _churn: (1, 2, 3, 4, 5),
    _returning: (2, 3, 4),
    _undo: (1, 2, 3, 3, 4),
    _replacing: (3, 3, 4, 5),
    _joining: (1, 2, 3),
    _shadows: (3, 4, 5, 6),
    _thinning: (3, 5, 5, 6),
    _passing: (3, 4, 5),
    _hidden: (3, 3, 4, 5, 5),
    _old_disks: (1, 1, 3, 4, 5),
}

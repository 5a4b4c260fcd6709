"""What a node's log says of the node: each change once, with its numbers, and little of what comes and goes."""

import logging
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from node.condition import NAMED, SLEPT_S, ConditionLog
from node.turn import Now
from routing.keyspace import NodeId, node_id_of, short
from routing.view import NOBODY, Member, View

MEMBERS = sorted((Member(node_id_of(key), key, 1) for key in (bytes([n]) * 32 for n in range(12))), key=lambda m: m.id)
IDS = [member.id for member in MEMBERS]
NAMES = [short(node) for node in IDS]
ME = IDS[0]


def view(epoch: int, *numbers: int) -> View:
    return View(epoch, bytes(32), tuple(MEMBERS[number] for number in numbers), 5, bytes(32), 0, NOBODY)


@dataclass
class Core:
    """As much of a core as is looked at."""

    view: View = field(default_factory=lambda: view(1, 0, 1, 2))
    alive_: set[NodeId] = field(default_factory=lambda: set(IDS))
    connected_: list[NodeId] = field(default_factory=lambda: IDS[1:3])
    verified: bool = True
    syncing: int = 0
    doubted: dict[NodeId, str] = field(default_factory=dict)
    disk_lacks: int = 0

    def __post_init__(self) -> None:
        self.peers = self.identity = self.acceptor = self.admission = self

    def gauges(self) -> "Core":
        return self

    def connected(self) -> list[NodeId]:
        return self.connected_

    def alive(self, node: NodeId, now: Now) -> bool:
        return node in self.alive_


class Told:
    """A node that is looked at; what its log has said since it was asked last."""

    def __init__(self, caplog: pytest.LogCaptureFixture, core: Core) -> None:
        caplog.set_level(logging.INFO)
        self._caplog = caplog
        self._now = 100.0
        self._log = ConditionLog(ME, cast(Any, core), self._now, 1.0)

    def look(self, times: int = 1, every_s: float = 1.0) -> list[str]:
        self._caplog.clear()
        for _ in range(times):
            self._now += every_s
            self._log.look(Now(self._now, 0))
        return [f"{record.levelname} {record.getMessage()}" for record in self._caplog.records]


@pytest.fixture
def core() -> Core:
    return Core()


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, core: Core) -> Told:
    """A member of three that votes, and has said so."""
    told = Told(caplog, core)
    assert told.look(5) == [
        "INFO epoch 1, 3 members",
        "INFO in all 1 key ranges a majority of the group is reached from here",
        "INFO this node votes: the members have vouched for its disk",
    ]
    return told


def test_what_stays_is_told_once(told: Told) -> None:
    assert told.look(100) == []


def test_a_node_that_starts_alone_says_that_it_reaches_no_majority(caplog: pytest.LogCaptureFixture) -> None:
    told = Told(caplog, Core(connected_=[], verified=False))
    assert told.look(2) == [
        "INFO epoch 1, 3 members",
        "WARNING in 1 of 1 key ranges a majority of the group is not reached from here: payments of accounts there wait",
    ]


def test_a_majority_is_lost_and_reached_again(told: Told, core: Core) -> None:
    core.connected_, core.verified = [], False
    assert told.look(9) == [
        "WARNING in 1 of 1 key ranges a majority of the group is not reached from here: payments of accounts there wait",
        "WARNING this node votes no more until the members vouch for its disk again",
    ]
    core.connected_, core.verified = IDS[1:2], True
    assert told.look(9) == [
        "INFO in all 1 key ranges a majority of the group is reached from here",
        "INFO this node votes: the members have vouched for its disk",
    ]


def test_a_member_is_silent_and_heard_of_again(told: Told, core: Core) -> None:
    core.alive_ = {ME, IDS[1]}
    assert told.look(9) == [f"WARNING no answer from node {NAMES[2]}: requests go round it"]
    core.alive_ = set(IDS)
    assert told.look(9) == [f"INFO node {NAMES[2]}: answers again, or disconnected"]


def test_who_proposes_what_does_not_follow_is_named_once(told: Told, core: Core) -> None:
    why = "link 3 of alice: its balance is 7, but 5 + 1 - 0 = 6"
    core.doubted = {IDS[2]: why}
    (line,) = told.look(9)
    assert line.startswith(f"ERROR this node does not vote for what node {NAMES[2]} proposed: ")
    assert "`hopchain verify`" in line and line.endswith(f" Of node {NAMES[2]}, {why}")


def test_of_several_whose_links_do_not_follow_the_first_is_told_with_its_reason(told: Told, core: Core) -> None:
    core.doubted = {
        IDS[2]: "link 4 of bob: it is not one opening",
        IDS[1]: "link 3 of alice: it confirms a posting twice",
    }
    (line,) = told.look(9)
    assert f"what nodes {NAMES[1]}, {NAMES[2]} proposed: " in line
    assert line.endswith(f" Of node {NAMES[1]}, link 3 of alice: it confirms a posting twice")


def test_a_disk_is_nearly_full_and_has_room_again(told: Told, core: Core) -> None:
    core.disk_lacks = 2 * 1024**3
    assert told.look(9) == [
        "WARNING less than 2048 MiB of the disk are free: this node takes no new requests until there is more. "
        "Make room or enlarge it: a node that cannot write ends"
    ]
    core.disk_lacks = 0
    assert told.look(9) == ["INFO the disk has room again: this node takes new requests"]


def test_views_and_what_must_be_copied_for_them(told: Told, core: Core) -> None:
    core.view, core.syncing, core.connected_ = view(2, 0, 1, 2, 3), 2, IDS[1:4]
    assert told.look(9) == [
        f"INFO epoch 2, 4 members; node {NAMES[3]} added",
        "INFO this node votes in 2 key ranges when it has what their groups before must tell it",
    ]
    core.syncing = 0
    assert told.look(9) == ["INFO this node has all that it must know in epoch 2"]
    core.view, core.connected_ = view(4, 0, 3, 4), IDS[3:5]
    assert told.look(9) == [f"INFO epoch 4, 3 members; node {NAMES[4]} added; nodes {NAMES[1]}, {NAMES[2]} removed"]
    core.view = view(5, 3, 4)
    assert told.look(9) == [
        f"INFO epoch 5, 2 members; node {NAMES[0]} removed",
        "WARNING this node votes no more until the members vouch for its disk again",
    ]


def test_what_comes_and_goes_is_not_told(told: Told, core: Core) -> None:
    said = []
    for number in range(100):
        core.alive_ = {ME, IDS[1]} if number % 2 else set(IDS)
        said += told.look()
    assert said == []


def test_many_nodes_are_counted(told: Told, core: Core) -> None:
    core.view, core.connected_ = view(2, *range(12)), IDS[1:]
    (line, *_) = told.look(2)
    assert line.endswith(f"; nodes {', '.join(NAMES[3 : 3 + NAMED])}, {9 - NAMED} more added")


def test_a_sleep_is_told_at_once_and_says_nothing_of_others(told: Told, core: Core) -> None:
    core.alive_ = {ME}
    assert told.look(every_s=1.0 + SLEPT_S) == []
    core.alive_ = set(IDS)
    told.look()
    core.alive_ = {ME}
    assert told.look(every_s=13.25) == [
        "WARNING this process did not run for 12.2 s: it was stopped, or its machine slept or has too much to do"
    ]
    core.alive_ = set(IDS)
    assert told.look(9) == []

"""The operator asks until it is done, and knows what may come of it."""

import random
from collections.abc import Callable

import pytest

from hopchain.change import ChangeAction, decode_change_untrusted
from hopchain.wire import Changed, NotStarted, Refused, ReplyBody, SubmitChange, Unknown
from netsim.changes import CALL_S, RETRY_S, Operator, Wish
from netsim.names import node_name, public_key
from routing.keyspace import NodeId, node_id_of
from routing.view import first_view, member_of

IDS = [node_id_of(public_key(node_name(i))) for i in range(4)]
VIEW = first_view(bytes(32), 3, [member_of(public_key(node_name(i))) for i in range(3)])


class _Core:
    view = VIEW


class _Node:
    """A node that runs and believes itself to be a member, or none."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.id: NodeId = IDS[index]
        self.core = _Core()


class Desk:
    """A network that notes what it is asked and answers when told to."""

    def __init__(self) -> None:
        self.nodes = [_Node(i) for i in range(4)]
        self.now = 0.0
        self.asked: list[tuple[float, int, SubmitChange]] = []
        self.answer: list[Callable[[ReplyBody], None]] = []
        self._later: list[tuple[float, Callable[[], None]]] = []

    def at(self, when: float, act: Callable[[], None]) -> None:
        self._later.append((when, act))

    def change(self, node: int, submit: SubmitChange, done: Callable[[ReplyBody], None]) -> int:
        self.asked.append((self.now, node, submit))
        self.answer.append(done)
        return len(self.asked)

    def run_to(self, until: float) -> None:
        while due := sorted((item for item in self._later if item[0] <= until), key=lambda item: item[0]):
            self._later.remove(due[0])
            self.now = due[0][0]
            due[0][1]()
        self.now = until


def operator(desk: Desk) -> Operator:
    return Operator(desk, bytes(32), random.Random(1))  # type: ignore[arg-type]


def wish(node: int, *, add: bool, then: Callable[[], None] | None = None) -> Wish:
    return Wish(node, IDS[node], add, True, then)


def test_it_signs_what_it_asks() -> None:
    desk = Desk()
    one = operator(desk)
    one.want(wish(3, add=True))
    one.want(wish(0, add=False))
    changes = [decode_change_untrusted(submit.raw) for _, _, submit in desk.asked]
    assert [(c.action, c.node_id, c.force) for c in changes] == [
        (ChangeAction.ADD, IDS[3], False),
        (ChangeAction.REMOVE, IDS[0], True),
    ]


def test_it_asks_any_member_and_not_the_guest() -> None:
    desk = Desk()
    one = operator(desk)
    for _ in range(20):
        one.want(wish(3, add=True))
    assert {node for _, node, _ in desk.asked} == {0, 1, 2}


@pytest.mark.parametrize("body", [NotStarted(b"", "busy", ""), Unknown(b"", "late"), Refused("unsafe", "")])
def test_it_asks_again_after_an_answer_that_is_not_the_last(body: ReplyBody) -> None:
    desk = Desk()
    one = operator(desk)
    one.want(wish(3, add=True))
    desk.answer[0](body)
    assert not one.idle
    desk.run_to(RETRY_S)
    assert len(desk.asked) == 2
    assert "add node 3" in str(one)


def test_it_asks_another_one_when_nobody_answers() -> None:
    desk = Desk()
    operator(desk).want(wish(3, add=True))
    desk.run_to(CALL_S)
    assert len(desk.asked) == 1
    desk.run_to(CALL_S + RETRY_S)
    assert len(desk.asked) == 2


def test_it_ends_with_changed_and_does_what_follows_once() -> None:
    desk = Desk()
    done: list[int] = []
    one = operator(desk)
    one.want(wish(3, add=True, then=lambda: done.append(1)))
    desk.answer[0](Changed(2, bytes(32), False))  # not as it was asked
    assert not one.idle
    desk.run_to(RETRY_S)
    for answer in desk.answer:
        answer(Changed(2, bytes(32), True))
    assert one.idle
    desk.run_to(20.0)
    assert done == [1]
    assert len(desk.asked) == 2


@pytest.mark.parametrize("code", ["removed", "impossible"])
def test_it_ends_with_a_refusal_that_is_final(code: str) -> None:
    desk = Desk()
    one = operator(desk)
    one.want(wish(3, add=True))
    desk.answer[0](Refused(code, ""))
    desk.run_to(20.0)
    assert one.idle
    assert len(desk.asked) == 1


def test_it_gives_up_to_add_what_is_gone_and_that_may_still_happen() -> None:
    desk = Desk()
    one = operator(desk)
    one.want(wish(3, add=True))
    one.give_up(3)
    assert one.idle
    desk.run_to(20.0)
    assert len(desk.asked) == 1
    assert [set(view.ids) for view in one.possible(VIEW)] == [set(IDS)]


def test_possible_views_are_all_sets_of_open_wishes() -> None:
    one = operator(Desk())
    one.want(wish(3, add=True))
    one.want(wish(0, add=False))
    found = {frozenset(view.ids) for view in one.possible(VIEW, wish(1, add=False))}
    everybody = set(IDS)
    assert found == {
        frozenset(everybody - gone - ({IDS[3]} if not added else set()))
        for added in (True, False)
        for gone in (set(), {IDS[0]}, {IDS[1]}, {IDS[0], IDS[1]})
        if added or gone
    }

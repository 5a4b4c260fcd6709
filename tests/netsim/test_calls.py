"""Clients' calls: numbered, seen by the observer before the node and before the client, answered once."""

import pytest

from hopchain.wire import AT_ONCE, AskBalance, Balance, NotFound, NotStarted, ReplyBody
from netsim.calls import Asked, Calls
from netsim.plan import Hold, Plan
from netsim.violation import Violation
from netsim.world import World
from node.peers import CURRENT_S, PING_EVERY_S

ASK = AskBalance("mint", False, AT_ONCE, 1000)
ANSWER = NotStarted(b"", "busy", "")


class Line:
    """A `CallHost` that is its own observer; `heard`: what it was told, in order."""

    def __init__(self) -> None:
        self.now = 1.5
        self.heard: list[tuple[object, ...]] = []

    @property
    def observer(self) -> "Line":
        return self

    def note(self, *fields: object) -> None:
        self.heard.append(("note", *fields))

    def submitted(self, call: int, node: int, submit: Asked, now: float) -> None:
        self.heard.append(("submitted", call, node, submit, now))

    def answered(self, call: int, body: ReplyBody, now: float) -> None:
        self.heard.append(("answered", call, body, now))


def test_a_call_is_noted_shown_and_answered() -> None:
    line = Line()
    calls = Calls(line)
    call = calls.begin(3, ASK, lambda body: line.heard.append(("done", body)), refused=False)
    assert line.heard == [("note", "call", call, 3), ("submitted", call, 3, ASK, 1.5)]
    line.heard.clear()
    calls.end(call, ANSWER)
    assert line.heard == [("note", "answer", call, ANSWER), ("answered", call, ANSWER, 1.5), ("done", ANSWER)]


def test_a_refused_call_is_a_number_and_nothing_else() -> None:
    line = Line()
    calls = Calls(line)
    refused = calls.begin(0, ASK, lambda body: None, refused=True)
    assert line.heard == []
    assert calls.begin(0, ASK, None, refused=False) == refused + 1


def test_who_asked_hears_one_answer_and_the_observer_all() -> None:
    line = Line()
    calls = Calls(line)
    answers: list[ReplyBody] = []
    call = calls.begin(0, ASK, answers.append, refused=False)
    calls.end(call, ANSWER)
    calls.end(call, ANSWER)
    assert answers == [ANSWER]
    assert [what for what, *_ in line.heard].count("answered") == 2


def test_a_client_that_waits_for_nothing_is_answered_too() -> None:
    line = Line()
    calls = Calls(line)
    calls.end(calls.begin(0, ASK, None, refused=False), ANSWER)
    assert line.heard[-1][0] == "answered"


# --- in the simulated network ---


def test_a_node_answers_reads_and_one_that_is_down_does_not() -> None:
    answers: list[ReplyBody] = []
    with World(Plan(1, 3, 3)) as world:
        world.run_for(1.0)
        world.read(0, ASK, answers.append)
        world.read(0, AskBalance("nobody", False, AT_ONCE, 1000), answers.append)
        world.run_for(0.1)
        world.crash(world.nodes[1], world.now + 5.0)
        refused = world.read(1, ASK, answers.append)
        world.run_for(1.0)
    found, missing = answers
    assert isinstance(found, Balance)
    assert (found.account, found.height, found.stale) == ("mint", 0, False)
    assert isinstance(missing, NotFound)
    assert refused not in world.watch.calls


def test_what_is_answered_twice_is_a_violation() -> None:
    with World(Plan(1, 1, 1)) as world:
        world.run_for(1.0)
        call = world.read(0, ASK)
        world.run_for(0.1)
        with pytest.raises(Violation, match=f"I10: call {call} is answered twice"):
            world.calls.end(call, ANSWER)


def test_a_node_that_lags_says_so_of_what_it_reads_alone_and_not_of_what_it_asked_a_majority_for() -> None:
    answers: list[ReplyBody] = []
    with World(Plan(1, 3, 3)) as world:
        world.run_for(1.0)
        world.network.hold(Hold(world.now, ("pong",), (0, 1), (2,), float("inf"), drop=True))
        world.run_for(CURRENT_S + PING_EVERY_S)
        world.read(2, ASK, answers.append)
        world.read(2, AskBalance("mint", True, AT_ONCE, 1000), answers.append)
        world.run_for(1.0)
    stale = {body.linearizable: body.stale for body in answers if isinstance(body, Balance)}
    assert stale == {False: True, True: False}

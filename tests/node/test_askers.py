"""Who asks about the same thing shares one question, but for who came after it began; and nobody takes the places of
others."""

from collections import Counter
from collections.abc import Callable

import pytest

from chain.needs import Loaded, Needs
from chain.reads import Balance
from chain.request import Posting
from hopchain.wire import NotStarted, Recorded, Refused, Unknown
from node import income_inquiry
from node.askers import MAX_ASKERS, Asker, Askers, Purpose
from node.events import FromPeer
from node.income_inquiry import IncomeInquiries, income_digest
from node.messages import (
    Accept,
    AskIncome,
    AskSlot,
    Decided,
    DecidedHash,
    IncomeAnswer,
    Links,
    Message,
    Offer,
    SlotAnswer,
)
from node.turn import Now, Turn
from routing.keyspace import NodeId
from tests.node.test_asking import all_answer, keep_answers
from tests.node.watch import Call
from tests.node.world import TOLD, World


def turn_at(now: float = 0.0) -> Turn:
    return Turn(Loaded(), Now(now, 0))


class Rig:
    """Askers about one thing, by their names, and what they were told."""

    def __init__(self) -> None:
        self.places: Counter[Purpose] = Counter()
        self.askers: Askers[str, bool] = Askers(self.places)
        self.told: dict[str, bool] = {}

    def add(self, name: str, until: float = 9.0, about: str = "it") -> bool:
        return self.askers.add(about, Asker(self._done(name), until, Purpose.READ))

    def _done(self, name: str) -> Callable[[Turn, bool], None]:
        def done(turn: Turn, answer: bool) -> None:
            assert name not in self.told
            self.told[name] = answer

        return done


def test_who_comes_in_the_turn_of_a_question_shares_it_and_who_comes_later_waits_for_the_next_one() -> None:
    rig = Rig()
    assert rig.add("first")
    assert not rig.add("second"), "it was told to ask already"
    rig.askers.begin("it")
    assert not rig.add("third")
    rig.askers.end_turn()
    assert not rig.add("late") and not rig.add("later") and not rig.askers.wants("it")
    rig.askers.end(turn_at(), "it", True)
    assert rig.told == dict.fromkeys(("first", "second", "third"), True)
    assert rig.askers.wants("it") and not rig.add("last")
    rig.askers.begin("it")
    assert not rig.askers.wants("it")
    rig.askers.end(turn_at(), "it", False)
    assert rig.told == dict.fromkeys(("first", "second", "third"), True) | dict.fromkeys(
        ("late", "later", "last"), False
    )
    assert not rig.places.total()
    assert rig.askers.take_late(9.0) == ([], []) and rig.askers.deadline() is None
    assert rig.add("again")


def test_what_is_true_for_good_is_told_to_those_who_wait_for_the_next_question_too() -> None:
    rig = Rig()
    rig.add("first")
    rig.askers.begin("it")
    rig.askers.end_turn()
    rig.add("late")
    rig.askers.end(turn_at(), "it", True, for_all=True)
    assert rig.told == {"first": True, "late": True}
    assert not rig.askers.wants("it") and not rig.places.total()


def test_each_has_its_own_time_and_a_question_for_which_nobody_waits_is_over() -> None:
    rig = Rig()
    rig.add("short", until=1.0)
    rig.add("long", until=3.0)
    rig.add("other", until=1.0, about="another thing")
    rig.askers.begin("it")
    rig.askers.begin("another thing")
    rig.askers.end_turn()
    rig.add("next", until=2.0)
    rig.add("another", until=5.0, about="another thing")
    assert rig.askers.deadline() == 1.0
    late, over = rig.askers.take_late(2.0)
    rig.askers.tell(turn_at(2.0), late, False)
    assert rig.told == {"short": False, "other": False, "next": False}
    assert over == ["another thing"] and rig.askers.wants("another thing") and not rig.askers.wants("it")
    assert rig.askers.deadline() == 3.0 and rig.places[Purpose.READ] == 2
    rig.askers.end(turn_at(), "it", True)
    assert not rig.askers.wants("it")


# --- in a network ---------------------------------------------------------------------------------------------------


def watch(world: World, kind: type[Message]) -> list[tuple[NodeId, NodeId, Message]]:
    """The messages of this kind from now on: from whom, to whom."""
    sent: list[tuple[NodeId, NodeId, Message]] = []
    lose = world.lose

    def note(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, kind):
            sent.append((source, target, message))
        return lose(source, target, message)

    world.lose = note
    return sent


def answered(world: World, reads: list[Call], total: int) -> bool:
    """All of them, with this much money."""
    assert world.run_until_answered(reads, 5)
    return all(isinstance(r.answer, Balance) and r.answer.available == total for r in reads)


def test_reads_of_an_account_that_many_have_paid_share_two_questions_and_answers_are_small() -> None:
    """Each read was asked for by itself, as if nothing was known here, and each node told of all senders each time."""
    world = World(3, 3, 1)
    payers = [f"payer-{number}" for number in range(30)]
    world.open_funded(carol=0, **dict.fromkeys(payers, 5))
    for payer in payers:
        world.settle(world.ids[0], world.pay_request(payer, "carol", 1))
    world.run(3)
    slots, incomes, answers = watch(world, AskSlot), watch(world, AskIncome), watch(world, IncomeAnswer)
    assert answered(world, [world.read(world.ids[0], "carol", linearizable=True) for _ in range(20)], 30)
    assert len(slots) == len(incomes) == len(answers) == 2, "one to each other node"
    assert {message.senders for _, _, message in answers if isinstance(message, IncomeAnswer)} == {(("carol", 0),)}
    assert not world.core(world.ids[0]).gauges().inquiries


@pytest.mark.parametrize("nodes", [3, 5])
def test_a_read_that_asks_alone_takes_no_turn_only_to_look_up_what_is_known(
    nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The turn of the answer that is the last about the slot has looked it up; a payment's questions have no need."""
    looked_up: list[str] = []
    needs_income = IncomeInquiries.needs

    def note(self: IncomeInquiries, account: str, needs: Needs) -> None:
        looked_up.append(account)
        needs_income(self, account, needs)

    world = World(nodes, nodes, 1)
    world.open_funded(carol=10, alice=10)
    node = world.ids[0]
    world.part(world.ids[: nodes // 2 + 1])
    monkeypatch.setattr(IncomeInquiries, "on_ask_for_income", None)
    monkeypatch.setattr(IncomeInquiries, "needs", note)
    world.lose = lambda source, target, message: isinstance(message, AskIncome)
    world.read(node, "carol", linearizable=True, timeout_s=0.05)
    world.run(0.1)
    assert looked_up == ["carol"]
    world.submit(node, world.pay_request("zed", "alice", 1))
    world.run(0.1)
    assert looked_up == ["carol"]


@pytest.mark.parametrize(("kind", "question"), [(SlotAnswer, AskSlot), (IncomeAnswer, AskIncome)])
def test_a_read_is_not_answered_by_a_question_that_began_before_it_came(
    kind: type[Message], question: type[Message]
) -> None:
    """carol is paid, or pays, after the others answered the first question; who asks then must see it."""
    for seed in range(1, 50):
        world = World(3, 3, seed)
        world.open_funded(carol=10, bob=0)
        asker = world.ids[0]
        payer, payee = ("carol", "bob") if kind is SlotAnswer else ("mint", "carol")
        if asker != world.group(payer)[0]:
            break
    other = world.group(payer)[0]
    kept = keep_answers(world, asker, kind, (Decided, DecidedHash, Offer, Links, Accept))
    first = world.read(asker, "carol", linearizable=True)
    assert all_answer(world, kept)
    assert isinstance(world.pay(payer, payee, 4, at=other), Recorded)
    second = world.read(asker, "carol", linearizable=True)
    world.run(0.01)
    for node, answer in dict(kept).items():
        world.deliver(asker, FromPeer(node, answer))
    asked = watch(world, question)
    world.run(0.005)
    assert len(asked) == 2 and second.answer is None
    world.lose = lambda source, target, message: target == asker and isinstance(message, TOLD | Offer)
    assert world.run_until_answered([first], 5)
    assert answered(world, [second], 6 if kind is SlotAnswer else 14)


def test_what_has_a_successor_is_not_asked_about_by_those_who_wait() -> None:
    world = World(3, 3, 1)
    world.open_funded(carol=10, bob=0)
    asker = world.group("carol")[0]
    world.lose = lambda source, target, message: target == asker and isinstance(message, SlotAnswer)
    first = world.read(asker, "carol", linearizable=True)
    world.run(0.01)
    second = world.read(asker, "carol", linearizable=True)
    world.run(0.01)
    asked = watch(world, AskSlot)
    world.settle(asker, world.pay_request("carol", "bob", 4))
    world.lose = lambda source, target, message: False
    assert answered(world, [first, second], 6)
    height = world.height(asker, "carol") + 1
    assert {message.at.height for _, _, message in asked if isinstance(message, AskSlot)} <= {height}


def test_reads_that_share_a_question_each_end_in_their_own_time() -> None:
    world = World(3, 3, 1)
    world.open_funded(carol=10)
    asker, *others = world.ids
    world.part([asker], others)
    short = world.read(asker, "carol", linearizable=True, timeout_s=1.0)
    long = world.read(asker, "carol", linearizable=True, timeout_s=5.0)
    world.run(0.5)
    later = world.read(asker, "carol", linearizable=True, timeout_s=5.0)
    assert world.run_until_answered([short], 0.6)
    assert isinstance(short.answer, Unknown) and long.answer is None
    world.cut.clear()
    assert answered(world, [long, later], 10)


@pytest.mark.parametrize("lost", [AskSlot, AskIncome])
def test_a_question_for_which_nobody_waits_makes_room_for_the_next_one(lost: type[Message]) -> None:
    world = World(3, 3, 1)
    world.open_funded(carol=10)
    world.lose = lambda source, target, message: isinstance(message, lost)
    short = world.read(world.ids[0], "carol", linearizable=True, timeout_s=0.2)
    world.run(0.1)
    long = world.read(world.ids[0], "carol", linearizable=True)
    assert world.run_until_answered([short], 0.2)
    world.heal()
    asked = watch(world, lost)
    assert answered(world, [long], 10)
    assert len(asked) <= 4, "the question of nobody is not asked again"
    assert not world.core(world.ids[0]).gauges().inquiries


def test_what_is_known_of_an_account_is_hashed_once_in_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(3, 3, 1)
    world.open_funded(carol=0)
    world.settle(world.ids[0], world.pay_request("mint", "carol", 1))
    world.run(3)
    hashed: list[object] = []

    def digest(senders: tuple[tuple[str, int], ...]) -> bytes:
        hashed.append(senders)
        return income_digest(senders)

    monkeypatch.setattr(income_inquiry, "income_digest", digest)
    asked, *others = world.ids
    answers = watch(world, IncomeAnswer)
    for number in range(5):
        for peer in others:
            world.deliver(asked, FromPeer(peer, AskIncome(number, "carol", bytes(32), 1)))
    world.run(0.01)
    assert len(answers) == 10 and len(hashed) == 1


def is_busy(call: Call) -> bool:
    return isinstance(call.answer, NotStarted) and call.answer.code == "busy"


def test_what_is_asked_for_one_purpose_takes_no_places_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers ask who does not exist, payments whether their recipients do, and reads go on; all places are given
    back."""
    for purpose, most in ((Purpose.ADMISSION, 5), (Purpose.PAYMENT, 2), (Purpose.READ, 2)):
        monkeypatch.setitem(MAX_ASKERS, purpose, most)
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=100, carol=10)
    node = world.ids[0]
    world.lose = lambda source, target, message: isinstance(message, AskSlot) and message.at.height == 0
    strangers = [world.submit(node, world.pay_request(f"zed-{number}", "carol", 1)) for number in range(2)]
    payments = [
        world.submit(
            world.group(payer)[0], world.pay_many_request(payer, [Posting(f"{payer}-{part}", 1) for part in "abc"])
        )
        for payer in ("alice", "bob")
    ]
    world.run(0.1)
    assert [call.answer for call in (*strangers, *payments)] == [None] * 4
    assert answered(world, [world.read(node, "carol", linearizable=True) for _ in range(2)], 10)
    assert world.run_until_answered([*strangers, *payments], 10)
    assert not any(world.core(each).gauges().inquiries for each in world.ids)


def test_clients_share_the_places_for_requests_of_senders_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a request needs no signature. One client may have as many as are left free; another one has a place."""
    monkeypatch.setitem(MAX_ASKERS, Purpose.ADMISSION, 5)
    world = World(3, 3, 1)
    world.open_funded(alice=100)
    node = world.ids[0]

    def submit(session: int) -> list[Call]:
        unknown = (f"zed-{session}-{number}" for number in range(3))
        return [world.submit(node, world.pay_request(name, "alice", 1), session=session) for name in unknown]

    world.lose = lambda source, target, message: isinstance(message, AskSlot)
    greedy, other = submit(2), submit(3)
    world.run(0.1)
    assert [is_busy(call) for call in (*greedy, *other)] == [False, False, True, False, True, True]
    refused = greedy[2].answer
    assert isinstance(refused, NotStarted) and refused.reason.startswith(
        "2 requests of this connection, 2 of all, wait"
    )
    world.heal()
    assert world.run_until_answered([*greedy, *other], 5)
    again = submit(2)
    assert world.run_until_answered(again, 5)
    assert [is_busy(call) for call in again] == [False, False, True], "places are given back"
    assert isinstance(again[0].answer, Refused) and again[0].answer.code == "unknown_sender"

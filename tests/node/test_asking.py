"""What others said is an answer to the question of then: nothing that was asked for later is judged by it."""

import pytest

from chain.link import Outcome, opening_slot
from chain.reads import Balance
from chain.request import Posting
from hopchain.change import ChangeAction
from hopchain.wire import NotStarted, Recorded, Refused
from node import acceptor, admission, income_inquiry
from node.events import FromPeer
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
    Prepare,
    SlotAnswer,
    SlotName,
    SyncPart,
)
from node.paxos import Ballot
from routing.keyspace import NodeId, closest, route_key
from tests.node.world import TOLD, World


def keep_answers(
    world: World, asker: NodeId, kind: type, others: type | tuple[type, ...] = ()
) -> dict[NodeId, Message]:
    """The first answer of each node to `asker`, which does not arrive, nor do later ones and messages of `others` for
    it."""
    kept: dict[NodeId, Message] = {}

    def lose(source: NodeId, target: NodeId, message: Message) -> bool:
        if target == asker and isinstance(message, kind):
            kept.setdefault(source, message)
            return True
        return target == asker and isinstance(message, others)

    world.lose = lose  # type: ignore[assignment]
    return kept


def all_answer(world: World, kept: dict[NodeId, Message]) -> bool:
    return world.run_until(lambda: len(kept) == 2, 0.5)


def test_money_that_came_after_the_question_is_not_missed_by_who_asks_to_spend_it() -> None:
    """carol's owner asks what she has. The answers are on their way, she is paid elsewhere, sees it and spends it: her
    second request must not be called insufficient because of what the others said before."""
    for seed in range(1, 50):
        world = World(3, 3, seed)
        world.open_funded(carol=0, bob=0)
        asker = world.group("carol")[0]
        if world.group("mint")[0] != asker:
            break
    other = world.group("mint")[0]
    kept = keep_answers(world, asker, IncomeAnswer, (Decided, DecidedHash, Offer, Links, Accept))
    early = world.submit(asker, world.pay_request("carol", "bob", 50))
    assert all_answer(world, kept)
    assert isinstance(world.pay("mint", "carol", 100, at=other), Recorded)
    late = world.submit(asker, world.pay_request("carol", "bob", 60))
    world.run(0.01)
    for node, answer in kept.items():
        world.deliver(asker, FromPeer(node, answer))
    world.lose = lambda source, target, message: target == asker and isinstance(message, TOLD | Offer)
    assert world.run_until_answered([early, late], 5)
    assert isinstance(early.answer, Recorded) and early.answer.outcome == Outcome.INSUFFICIENT_FUNDS
    assert isinstance(late.answer, Recorded) and late.answer.outcome == Outcome.COMPLETED


def test_a_name_that_was_absent_is_asked_for_again_for_the_next_link() -> None:
    """It may have been opened since. Who cannot ask does not know."""
    for seed in range(1, 50):
        world = World(3, 3, seed)
        world.open_funded(alice=100)
        asker = world.group("alice")[0]
        kept = keep_answers(world, asker, SlotAnswer)
        early = world.submit(asker, world.pay_request("alice", "dave", 1))
        assert all_answer(world, kept)
        late = world.submit(asker, world.pay_request("alice", "dave", 1))
        world.run(0.01)
        for node, answer in kept.items():
            world.deliver(asker, FromPeer(node, answer))
        assert world.run_until_answered([early], 1)
        assert isinstance(early.answer, Recorded) and early.answer.outcome == Outcome.UNKNOWN_RECIPIENT
        if world.group("alice")[0] == asker:  # it goes on with the same queue
            break
    assert world.run_until_answered([late], 10)
    assert isinstance(late.answer, NotStarted) and late.answer.code == "not_askable"


def test_who_is_not_of_the_group_of_a_slot_does_not_count_for_it() -> None:
    """Nobody has opened zed as far as two other nodes know: they would not know if somebody had."""
    world = World(5, 3, 1)
    world.open_funded(bob=0)
    asker, *_ = group = world.opening_group("zed")
    others = [node for node in world.ids if node not in group]
    asked: list[AskSlot] = []

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, AskSlot):
            asked.append(message)
        return isinstance(message, AskSlot)

    world.lose = lose
    call = world.submit(asker, world.pay_request("zed", "bob", 1))
    world.run(0.01)
    for node in others:
        world.deliver(asker, FromPeer(node, SlotAnswer(asked[0].number, False, (), 1)))
    world.run(1)
    assert call.answer is None
    world.heal()
    assert world.run_until_answered([call], 1)
    assert isinstance(call.answer, Refused) and call.answer.code == "unknown_sender"


def test_income_of_more_senders_than_an_answer_holds_is_not_answered_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it would be taken for all of it."""
    world = World(3, 3, 1)
    world.open_funded(alice=10, bob=10, carol=0)
    for payer in ("alice", "bob"):
        world.settle(world.ids[0], world.pay_request(payer, "carol", 1))
    world.run(1)
    asked, asker = world.ids[:2]
    answers: list[IncomeAnswer] = []

    def note(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, IncomeAnswer):
            answers.append(message)
        return False

    world.lose = note
    for most, told in ((2, []), (3, [("alice", 1), ("bob", 1), ("carol", 0)])):
        monkeypatch.setattr(income_inquiry, "MAX_SENDERS", most)
        world.deliver(asked, FromPeer(asker, AskIncome(1, "carol", bytes(32), 1)))
        world.run(0.01)
        assert [list(answer.senders) for answer in answers] == ([told] if told else [])
    assert world.core(asked).counters["income_too_wide"] == 1


def test_a_slot_of_an_epoch_that_is_not_installed_here_is_not_called_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its group is of a view that this node does not know, and only that group has a say (design R3)."""
    monkeypatch.setattr(admission, "birth_epoch", lambda head: 2)
    world = World(3, 3, 1)
    answer = world.ask(world.ids[0], world.pay_request("zed", "mint", 1))
    assert isinstance(answer, NotStarted) and answer.code == "no_majority"


def test_a_promise_for_a_proposal_that_never_comes_holds_up_no_question() -> None:
    world = World(3, 3, 1)
    world.open_funded(alice=100)
    first, *others = world.ids
    at = SlotName(world.tip(first, "alice"), "alice", world.height(first, "alice") + 1)
    for node in others:
        world.deliver(node, FromPeer(first, Prepare(at, Ballot(1, 1, first))))
    world.run(0.01)
    assert [len(world.core(node).acceptor) for node in others] == [1, 1]
    read = world.read(others[0], "alice", linearizable=True)
    assert world.run_until_answered([read], 5)
    assert isinstance(read.answer, Balance)


def test_income_from_a_vote_that_pays_many_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """alice pays bob and carol; who proposed it answers her and dies, and only a voter knows of it. bob's owner does
    not."""
    monkeypatch.setattr(acceptor, "MAX_INDEXED", 1)
    for seed in range(1, 50):
        world = World(3, 3, seed)
        world.open_funded(alice=100, bob=0, carol=0)
        payer, unaware = world.group("alice")[0], world.group("bob")[0]
        if payer != unaware:
            break
    (voter,) = {*world.ids} - {payer, unaware}
    world.lose = lambda source, target, message: (
        isinstance(message, TOLD | Offer) or (isinstance(message, Accept) and target == unaware)
    )
    request = world.pay_many_request("alice", [Posting("bob", 60), Posting("carol", 20)])
    assert isinstance(world.ask(payer, request), Recorded)
    assert world.core(voter).acceptor.votes == 1
    for paid_to in ("bob", "carol"):
        assert world.core(voter).acceptor.paying(paid_to) == {"alice": world.height(payer, "alice")}
    world.crash(payer)
    world.heal()
    paid = world.pay("bob", "carol", 60, at=unaware)
    assert isinstance(paid, Recorded) and Outcome(paid.outcome) is Outcome.COMPLETED


def test_who_has_not_synced_does_not_take_its_own_word_for_it_that_nothing_is_there() -> None:
    """A new member is alone in the group of the slot in which zoe was opened, before it has heard of that."""
    world = World(2, 1, 1, first=1)
    world.run(1.0)
    ((old,), (new,)) = world.view.ids, world.guests
    slots = ((name, opening_slot(world.network, name)) for name in (f"zoe-{i}" for i in range(50)))
    name = next(name for name, slot in slots if closest(world.ids, route_key(slot), 1) == (new,))
    world.lose = lambda source, target, message: target == new and isinstance(message, TOLD | Offer | SyncPart)
    world.settle(old, world.open_request(name))
    world.change(old, ChangeAction.ADD, new)
    assert world.run_until(lambda: world.core(new).view.epoch == 2, 10)
    call = world.submit(new, world.pay_request(name, "mint", 1))
    assert world.run_until_answered([call], 12)
    assert isinstance(call.answer, NotStarted) and call.answer.code == "no_majority"

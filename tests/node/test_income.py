"""What a node that is asked for income says: the account's own tip, too, for what that has confirmed is income no more."""

from node.inquiry import income_digest
from node.messages import AskIncome, IncomeAnswer
from node.turn import FromPeer
from tests.node.world import World


def test_income_is_told_with_the_height_of_the_account_that_has_confirmed_the_rest() -> None:
    """The asker knew of bob's payment as income, asked, and in between alice's link 1 confirmed it: nobody lists it any
    more. It must have link 1 before an answer without bob counts."""
    world = World(3, 3, 3)
    world.open_funded(alice=0, bob=100, carol=0)
    first, second = world.ids[:2]
    world.pay("bob", "alice", 10, at=first)
    told: list[IncomeAnswer] = []

    def keep(source: bytes, target: bytes, message: object) -> bool:
        if isinstance(message, IncomeAnswer) and target == second:
            told.append(message)
        return False

    world.lose = keep
    question = FromPeer(second, AskIncome(1, "alice", income_digest(()), 1))
    world.run(1)
    world.deliver(first, question)
    world.run(1)
    assert dict(told[-1].senders) == {"bob": 1, "alice": 0}
    world.pay("alice", "carol", 5, at=first)
    world.run(1)
    world.deliver(first, question)
    world.run(1)
    assert dict(told[-1].senders) == {"alice": 1}

"""What a node that is asked for income says: the account's own tip, too, for what that has confirmed is income no
more."""

import pytest

from chain.link import Outcome, Slot
from chain.reads import Balance
from hopchain.wire import Changed, Recorded
from node.events import FromPeer
from node.income_inquiry import income_digest
from node.messages import Accept, AskIncome, IncomeAnswer
from routing.keyspace import route_key
from routing.view import member_of, with_member
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


@pytest.mark.parametrize("seed", range(1, 5))
def test_a_vote_in_a_group_that_its_node_has_left_is_waited_for_by_nobody(seed: int) -> None:
    """The last standby alone voted for what the owner proposed, and both were without power while a member was added,
    who took the standby's place. It comes back; the owner does not, and one more is down: its answer is needed."""
    world = World(8, 5, seed, first=7)
    names = [f"account{i}" for i in range(10)]
    world.open_funded(bob=0, carol=0, **dict.fromkeys(names, 100))
    world.run(5)
    (guest,) = world.guests
    after = with_member(world.view, member_of(world.keys[guest]), 1, world.view.ids[0])

    def left(name: str) -> bool:
        """The last of the group is not in the one of the next view."""
        return world.group(name)[-1] not in after.group(route_key(world.watch.accounts[name].links[-1].hash))

    payer = next(filter(left, names))
    owner, *_, last = world.group(payer)
    world.lose = lambda source, target, message: (
        isinstance(message, Accept) and message.at.account == payer and target != last
    )
    world.submit(owner, world.pay_request(payer, "bob", 5), timeout_s=3.0)
    assert world.run_until(lambda: world.core(last).acceptor.votes == 1, 3)
    world.crash(owner)
    world.crash(last)
    world.heal()
    world.run(3)
    at, down, *_ = (node for node in world.view.ids if node not in (owner, last))
    assert isinstance(world.add(at, guest), Changed)
    world.run(5)
    world.start(last)
    world.run(10)
    world.crash(down)
    world.run(5)
    holder = world.core(last)
    slot = world.watch.accounts[payer].links[-1].hash
    assert holder.fully_active and last not in world.group(payer)
    read = world.read(at, "bob", linearizable=True)
    assert world.run_until(lambda: isinstance(read.answer, Balance), 6)
    overdraft = world.ask(at, world.pay_request("bob", "carol", 1000))
    assert isinstance(overdraft, Recorded) and overdraft.outcome is Outcome.INSUFFICIENT_FUNDS
    assert holder.acceptor.is_voted(Slot(slot))

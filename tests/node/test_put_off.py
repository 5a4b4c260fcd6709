"""What waits where nothing may be decided yet costs nothing, and is decided as soon as it may be."""

import sqlite3
from collections import Counter

import pytest

from chain.load import load
from chain.needs import Loaded, Needs
from hopchain.change import ChangeAction
from hopchain.wire import Recorded
from node.messages import Pong, SyncPart
from node.owner import LOOK_AGAIN_S
from node.turn import Now, Turn
from tests.node import world as world_module
from tests.node.watch import Call
from tests.node.world import World

ACCOUNTS = [f"p{i}" for i in range(30)]
# Of four nodes that ping each other, and look twice a second at what is put off; in vain it was 16,000
MAX_TURNS_A_S = 200


@pytest.fixture
def cost(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many turns there were, and for how many accounts they loaded what forms a link."""
    count: Counter[str] = Counter()

    def counted(conn: sqlite3.Connection, needs: Needs) -> Loaded:
        count["forming"] += len(needs.forming | needs.forming_few)
        return load(conn, needs)

    monkeypatch.setattr(world_module, "load", counted)
    return count


def count_turns(world: World, cost: Counter[str]) -> None:
    finish = world.finish_turn

    def counted(*turn: object) -> None:
        cost["turns"] += 1
        finish(*turn)  # type: ignore[arg-type]

    world.finish_turn = counted  # type: ignore[method-assign]


def pay_all(world: World) -> list[Call]:
    return [world.submit(world.view.ids[i % 3], world.pay_request(n, "bob", 1), 60) for i, n in enumerate(ACCOUNTS)]


def test_accounts_that_wait_for_a_sync_load_nothing_and_are_served_when_it_ends(cost: Counter[str]) -> None:
    world = World(4, 5, 1, first=3)
    world.open_funded(bob=0, **dict.fromkeys(ACCOUNTS, 100))
    world.run(3)
    world.lose = lambda source, target, message: isinstance(message, SyncPart)
    world.change(world.view.ids[0], ChangeAction.ADD, world.guests[0], timeout_s=60)
    world.run(1)
    assert world.epochs() == [2] * 4
    calls = pay_all(world)
    world.run(1)
    count_turns(world, cost)
    cost.clear()
    world.run(5)
    assert not any(call.answer for call in calls)
    assert cost["forming"] == 0
    assert cost["turns"] < 5 * MAX_TURNS_A_S
    world.heal()
    voters = [world.core(node) for node in world.ids]
    assert world.run_until(lambda: all(core.fully_active for core in voters), 10)
    assert world.run_until_answered(calls, LOOK_AGAIN_S / 5)
    assert all(isinstance(call.answer, Recorded) for call in calls)


def test_accounts_that_wait_for_the_word_of_the_others_load_nothing_more_and_are_served_when_it_comes(
    cost: Counter[str],
) -> None:
    world = World(3, 3, 1)
    world.open_funded(bob=0, **dict.fromkeys(ACCOUNTS, 100))
    world.run(3)
    unsure = world.ids[0]
    world.crash(unsure)
    world.lose = lambda source, target, message: target == unsure and isinstance(message, Pong)
    world.start(unsure)
    world.run(0.2)
    cost.clear()
    own = [name for name in ACCOUNTS if world.group(name)[0] == unsure]
    calls = [world.submit(unsure, world.pay_request(name, "bob", 1), 60) for name in own]
    assert calls
    world.run(0.6)
    assert not any(call.answer for call in calls)
    assert cost["forming"] <= len(own), "each once, when it comes"
    world.heal()
    assert world.run_until(lambda: world.core(unsure).identity.verified, 1)
    assert world.run_until_answered(calls, LOOK_AGAIN_S / 5)


def test_what_may_not_be_decided_is_looked_at_anew_in_another_view_and_behind_another_link() -> None:
    """Elsewhere it may be decided at once, or is to be handed to others."""
    world = World(4, 5, 1, first=3)
    world.open_funded(alice=100, bob=0)
    world.run(3)
    world.lose = lambda source, target, message: isinstance(message, SyncPart)
    world.change(world.view.ids[0], ChangeAction.ADD, world.guests[0], timeout_s=60)
    world.run(1)
    world.submit(world.ids[0], world.pay_request("alice", "bob", 1), 60)
    world.run(0.5)
    owner = next(core.owner for core in map(world.core, world.ids) if core.owner._works.get("alice") is not None)
    work = owner._works.get("alice")
    at, born = work.barred or (None, 0)
    assert at is not None
    turn = Turn(Loaded(), Now(world.now, 0))
    owner.on_view(turn)
    assert work.barred is None
    work.barred = at, born
    owner.on_applied(turn, world.watch.accounts["alice"].links[-1], world.ids[0])
    assert work.barred is None

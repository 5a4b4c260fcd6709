"""A core is enough (I13): as long as only so many members work as the rules ask for, all that is asked of them ends.

After the storm the others stay away, down or cut off. Who that is is drawn, and as many as the network can bear
(`Faults.can_lose`): a majority of the members and of every group is left, of the newest view and of those that may come
next, and enough of it know what was decided. One thing needs more than majorities: before `insufficient_funds` and for
a certain balance n - majority(k) + 1 members are asked for income (ADR 2). So no more than majority(k) - 1 members are
away, however large the network is.

Then everything that clients have ever asked for is asked of the core, with a new payment and a certain balance of each
account; and again, as clients do, until the answer is certain. Only then everything heals.
"""

import random
from collections.abc import Collection
from typing import Final

import msgspec

from chain.link import opening_slot
from hopchain.wire import AT_ONCE, AskBalance, NotStarted, ReplyBody, Submit, Unknown
from netsim.faults import Faults
from netsim.load import Clients
from netsim.violation import Violation
from netsim.world import World
from routing.view import View, majority

CALL_S: Final = 5.0  # how long a node is given for one call
LOOK_S: Final = 0.5
ENDS_WITHIN_S: Final = 20.0  # in 500 seeds it took 8.5 at most: a restart, and a call or two that nobody could end
DOWN: Final = 0.5  # of those who are away; the others are cut off


class Asked(msgspec.Struct):
    """What the core is asked until the answer is certain. `node`: who was asked last, at `at`."""

    account: str
    body: Submit | AskBalance
    node: int = -1
    at: float = float("-inf")
    answer: ReplyBody | None = None
    certain: bool = False

    def is_due(self, now: float) -> bool:
        """True when it is to be asked again: of somebody else when the node has died."""
        return not self.certain and (self.answer is not None or now > self.at + CALL_S + LOOK_S)


def draw_core(world: World, faults: Faults, rng: random.Random) -> list[int]:
    """So few nodes that with one less something might rightly wait; none when no member can be away."""
    nodes = [node.index for node in world.nodes if node.index not in faults.lost()]
    away: set[int] = set()
    for index in rng.sample(nodes, len(nodes)):
        if _can_be_away(world, faults, away | {index}):
            away.add(index)
    if not any(world.watch.is_member(index) for index in away):
        return []
    return [index for index in nodes if index not in away]


def _can_be_away(world: World, faults: Faults, away: Collection[int]) -> bool:
    lost = {world.nodes[index].id for index in faults.lost(away)}
    newest = world.watch.views[-1]
    views = (newest, *faults.operator.possible(newest))
    return all(len(lost & {*view.ids}) < _income_majority(view) for view in views) and faults.can_lose(away)


def _income_majority(view: View) -> int:
    return majority(min(view.k, len(view.members)))


def play_core_alone(world: World, faults: Faults, clients: Clients, core: list[int], rng: random.Random) -> None:
    """Heal the core alone and ask it for everything. Raises `Violation` when something does not end."""
    faults.heal_alone(core, [i for i in world.plan.everybody if i not in core and rng.random() < DOWN])
    timeout_ms = int(CALL_S * 1000)
    clients.pay_each_other()
    open_ = [Asked(sender, Submit(s.raw, s.signature, timeout_ms)) for sender, s in clients.asked()]
    open_ += [Asked(name, AskBalance(name, True, AT_ONCE, timeout_ms)) for name in clients.names]
    end = world.now + ENDS_WITHIN_S
    while open_:
        if world.now >= end:
            raise Violation("I13", _what_waits(world, core, open_))
        for asked in open_:
            if asked.is_due(world.now):
                _ask(world, asked, rng.choice(_members_of(world, core)))
        world.run_for(LOOK_S)
        open_ = [asked for asked in open_ if not asked.certain]


def _members_of(world: World, core: list[int]) -> list[int]:
    """A node of the core may be removed meanwhile, and stop."""
    return [index for index in core if world.watch.is_member(index) and world.nodes[index].core is not None]


def _ask(world: World, asked: Asked, node: int) -> None:
    asked.node, asked.at, asked.answer = node, world.now, None

    def done(body: ReplyBody) -> None:
        asked.answer = body
        asked.certain = asked.certain or not isinstance(body, Unknown | NotStarted)

    if isinstance(asked.body, Submit):
        world.submit(node, asked.body, done)
    else:
        world.read(node, asked.body, done)


# --- what people are told ---


def _what_waits(world: World, core: list[int], open_: list[Asked]) -> str:
    away = [index for index in world.plan.everybody if index not in core]
    by_account: dict[str, list[Asked]] = {}
    for asked in open_:
        by_account.setdefault(asked.account, []).append(asked)
    return (
        f"{len(open_)} requests have no certain answer after {ENDS_WITHIN_S:g} s with only nodes {_numbers(core)}, which are "
        f"enough (away: {_numbers(away)}): {'; '.join(_where(world, away, several) for several in by_account.values())}"
    )


def _where(world: World, away: list[int], several: list[Asked]) -> str:
    """Of one account: they wait for its next link."""
    account, last = several[-1].account, several[-1]
    tip = world.watch.ledger.tips.get(account)
    slot = tip.hash if tip is not None else opening_slot(world.network_id, account)
    group = world.watch.group_of(slot)
    answer = "no answer" if last.answer is None else type(last.answer).__name__
    if isinstance(last.answer, Unknown | NotStarted):
        answer += f" ({last.answer.reason})"
    core = world.nodes[last.node].core
    return (
        f"{len(several)} of {account}, whose link {tip.height + 1 if tip is not None else 0} nodes {_numbers(group)} decide "
        f"(away: {_numbers([index for index in group if index in away])}), the last at node {last.node}: {answer}, "
        f"{core.gauges() if core is not None else 'and it is down'}"
    )


def _numbers(nodes: Collection[int]) -> str:
    return ", ".join(map(str, nodes)) or "none"

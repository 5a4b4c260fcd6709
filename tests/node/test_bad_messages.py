"""Messages that break the rules, from a member: counted, and without effect on the chain, the votes and the queues."""

from collections.abc import Callable
from typing import Any

import pytest

from chain.errors import Corruption
from chain.link import Link, Slot, build_link
from chain.request import NetworkId
from hopchain.wire import Recorded
from node.events import FromPeer
from node.messages import (
    Accept,
    Decided,
    Forward,
    Item,
    Links,
    Message,
    Moved,
    NotOwner,
    Prepare,
    Promise,
    Refuse,
    SlotAnswer,
    SlotName,
    ViewPrepare,
)
from node.paxos import MAX_BALLOT, MAX_ROUND, Ballot
from routing.keyspace import NodeId
from tests.node.world import World


@pytest.fixture
def world() -> World:
    world = World(3, 3, seed=5)
    world.open_funded(alice=1000, bob=0)
    return world


def at(world: World, account: str = "alice") -> SlotName:
    link = world.watch.accounts[account].links[-1]
    return SlotName(link.hash, account, link.height + 1)


def ballot(world: World, node: NodeId) -> Ballot:
    return Ballot(1, 7, node)


def other(world: World, node: NodeId) -> NodeId:
    return next(n for n in world.ids if n != node)


def faults(world: World, node: NodeId) -> int:
    return sum(n for name, n in world.core(node).counters.items() if name.startswith("peer_fault"))


GARBAGE = b"\x00" * 300


def cut_link(world: World) -> bytes:
    return world.watch.accounts["alice"].links[0].raw[:-1]


def changed_link(world: World) -> bytes:
    raw = world.watch.accounts["alice"].links[0].raw
    return raw[:-40] + bytes([raw[-40] ^ 1]) + raw[-39:]


def foreign_link(world: World) -> bytes:
    """A sound link of another network."""
    return World(2, 2, seed=1).watch.accounts["mint"].links[0].raw


def misplaced_link(world: World) -> bytes:
    """A sound link, but for a slot that is not alice's next."""
    return build_link(world.network, "alice", 1, bytes(32), 0, 1, 1, [], []).raw  # type: ignore[arg-type]


def next_link(world: World) -> Link:
    """A link of alice's next height, in a slot that nobody has."""
    return build_link(world.network, "alice", at(world).height, Slot(bytes(32)), 0, 1, 1, [], [])


def almost_next(world: World, **other: Any) -> bytes:
    """A link for alice's next slot, but for one field."""
    there = at(world)
    fields: dict[str, Any] = {
        "network": world.network,
        "account": "alice",
        "height": there.height,
        "prev_hash": there.slot,
    } | other
    return build_link(
        fields["network"], fields["account"], fields["height"], fields["prev_hash"], 1000, 1, 1, [], []
    ).raw


def opening_link(world: World) -> Link:
    """Link 0 of an account, in a slot that is no account's."""
    return build_link(world.network, "zed", 0, Slot(bytes(32)), 0, 1, 1, [], [])


BAD: dict[str, Callable[[World, NodeId], Message]] = {
    "decided: garbage": lambda w, n: Decided(GARBAGE, n, 160),
    "decided: empty": lambda w, n: Decided(b"", n, 160),
    "decided: cut short": lambda w, n: Decided(cut_link(w), n, 160),
    "decided: changed": lambda w, n: Decided(changed_link(w), n, 160),
    "decided: other network": lambda w, n: Decided(foreign_link(w), n, 160),
    "decided: other network, to be passed on": lambda w, n: Decided(foreign_link(w), n, 0),
    "links: garbage": lambda w, n: Links((GARBAGE,)),
    "links: other network": lambda w, n: Links((foreign_link(w),)),
    "moved: garbage": lambda w, n: Moved("alice", 1, (GARBAGE,)),
    "slot answer: garbage": lambda w, n: SlotAnswer(1, False, (GARBAGE,), 1),
    "accept: garbage": lambda w, n: Accept(at(w), ballot(w, n), GARBAGE),
    "accept: link of another slot": lambda w, n: Accept(at(w), ballot(w, n), misplaced_link(w)),
    "accept: link of another account": lambda w, n: Accept(at(w, "bob"), ballot(w, n), misplaced_link(w)),
    "accept: only the network is another one": lambda w, n: Accept(
        at(w), ballot(w, n), almost_next(w, network=NetworkId(bytes(32)))
    ),
    "accept: only the account is another one": lambda w, n: Accept(at(w), ballot(w, n), almost_next(w, account="bob")),
    "accept: only the height is another one": lambda w, n: Accept(
        at(w), ballot(w, n), almost_next(w, height=at(w).height + 1)
    ),
    "accept: only the slot is another one": lambda w, n: Accept(
        at(w), ballot(w, n), almost_next(w, prev_hash=Slot(bytes(32)))
    ),
    "accept: a slot that is not the account's next": lambda w, n: Accept(
        SlotName(bytes(32), "alice", at(w).height), ballot(w, n), next_link(w).raw
    ),
    "prepare: a slot that is not the account's next": lambda w, n: Prepare(
        SlotName(bytes(32), "alice", at(w).height), ballot(w, n)
    ),
    "accept: an opening in the slot of another name": lambda w, n: Accept(
        SlotName(bytes(32), "zed", 0), ballot(w, n), opening_link(w).raw
    ),
    "prepare: an opening in the slot of another name": lambda w, n: Prepare(
        SlotName(bytes(32), "zed", 0), ballot(w, n)
    ),
    "prepare: the ballot of another node": lambda w, n: Prepare(at(w), ballot(w, other(w, n))),
    "accept: the ballot of another node": lambda w, n: Accept(at(w), ballot(w, other(w, n)), next_link(w).raw),
    "view prepare: the ballot of another node": lambda w, n: ViewPrepare(ballot(w, other(w, n))),
    "prepare: the last round": lambda w, n: Prepare(at(w), Ballot(1, MAX_BALLOT, n)),
    "not owner: nobody is named": lambda w, n: NotOwner(at(w), (), 1, ()),
    "forward: garbage": lambda w, n: Forward(at(w), (Item(GARBAGE, bytes(64), n),), True),
    "forward: a request of another account": lambda w, n: Forward(
        at(w), (Item(w.pay_request("bob", "alice", 1).raw, bytes(64), n),), True
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_message_is_counted_and_changes_nothing(world: World, name: str) -> None:
    target, source = world.group("alice")[0], world.group("alice")[1]
    core = world.core(target)
    before = (world.digest(target), core.gauges(), world.nodes[target].conn.execute("SELECT * FROM votes").fetchall())
    world.deliver(target, FromPeer(source, BAD[name](world, source)))
    world.run(0.01)
    assert [faults(world, node) for node in world.ids] == [int(node == target) for node in world.ids]
    assert before == (
        world.digest(target),
        core.gauges(),
        world.nodes[target].conn.execute("SELECT * FROM votes").fetchall(),
    )
    assert isinstance(world.pay("alice", "bob", 1, at=target), Recorded)


def test_a_bad_promise_or_refusal_does_not_end_the_ballot(world: World) -> None:
    group = world.group("alice")
    world.crash(group[0])
    call = world.submit(group[1], world.pay_request("alice", "bob", 1))
    asked: list[Prepare] = []

    def keep(source: bytes, target: bytes, message: object) -> bool:
        if isinstance(message, Prepare):
            asked.append(message)
        return isinstance(message, Prepare)

    world.lose = keep
    assert world.run_until(lambda: bool(asked), 5)
    slot, ballot = asked[0].at.slot, asked[0].ballot
    bad: list[Message] = [
        Promise(slot, ballot, ballot, GARBAGE),
        Promise(slot, ballot, ballot, None),
        Promise(slot, ballot, None, b"x"),
        Promise(slot, ballot, Ballot(1, 0, group[0]), misplaced_link(world)),
        Promise(slot, ballot, Ballot(1, 0, group[0]), next_link(world).raw),
        Refuse(slot, ballot, Ballot(1, MAX_ROUND, group[2])),
    ]
    not_of_this_ballot = Refuse(slot, Ballot(1, ballot.round + 1, group[1]), Ballot(1, ballot.round + 2, group[2]))
    world.deliver(group[1], FromPeer(group[2], not_of_this_ballot))
    for message in bad:
        world.deliver(group[1], FromPeer(group[2], message))
    world.run(0.01)
    assert faults(world, group[1]) == len(bad)
    assert world.core(group[1]).counters["ballots_refused"] == 0
    world.heal()
    assert world.run_until_answered([call], 10)
    assert isinstance(call.answer, Recorded)


def test_a_second_successor_of_a_link_stops_the_node_and_the_first_one_again_does_not(world: World) -> None:
    """It must not come to that. If it does, nothing more is built on either of them here."""
    last = world.watch.accounts["alice"].links[-1]
    world.settle(world.ids[0], world.pay_request("alice", "bob", 1))
    world.run(1)
    first = world.watch.accounts["alice"].links[-1]
    second = build_link(world.network, "alice", first.height, Slot(last.hash), last.balance, 1, first.time_ms, [], [])
    node, peer, _ = world.ids
    before = world.digest(node)
    world.deliver(node, FromPeer(peer, Decided(first.raw, peer, 160)))
    world.run(0.01)
    world.deliver(node, FromPeer(peer, Decided(second.raw, peer, 160)))
    with pytest.raises(Corruption, match=f"two successors: link {first.height} of alice is {first.hash.hex()} here"):
        world.run(0.01)
    assert world.digest(node) == before


@pytest.mark.parametrize("field", ["balance", "time"])
def test_a_decided_link_that_does_not_follow_from_what_is_here_stops_the_node(world: World, field: str) -> None:
    """This replica is damaged, or the one that decided it: nothing of it is kept (design R11)."""
    last = world.watch.accounts["alice"].links[-1]
    wrong = {"balance": 1001, "time": last.time_ms + 1} if field == "balance" else {"balance": 0, "time": 1}
    link = build_link(
        world.network, "alice", last.height + 1, Slot(last.hash), wrong["balance"], 1, wrong["time"], [], []
    )
    node, peer, _ = world.ids
    before = world.digest(node)
    world.deliver(node, FromPeer(peer, Decided(link.raw, peer, 160)))
    with pytest.raises(Corruption, match="cannot be applied: its"):
        world.run(0.01)
    assert world.digest(node) == before

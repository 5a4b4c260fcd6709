"""Questions for what links and messages wait for: what each asks for, and what ends it."""

from itertools import pairwise

import pytest

import chain.raw
from chain.link import Link, PostingHash
from chain.load import load
from chain.needs import Loaded
from chain.request import Posting
from chain.rows import Applied
from chain.store import commit
from node import lacking
from node.effects import Send
from node.events import FromPeer, Learn
from node.lacking import MAX_WANT_AGAIN_S, WANT_AGAIN_S
from node.messages import Decided, Links, Offer, Prepare, SlotName, Want
from node.paxos import Ballot
from node.peers import PING_EVERY_S
from node.turn import Now, Turn
from routing.broadcast import LEAF
from routing.keyspace import NodeId
from tests.node.test_catching_up import assert_paid, lagging_behind, noting, paying, tell
from tests.node.world import EPOCH_MS, TOLD, World


def test_the_chain_is_asked_for_up_to_the_highest_link_that_anybody_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it is a later message that waits for that one: without a pause, batch by batch."""
    monkeypatch.setattr(chain.raw, "CHAIN_BATCH", 4)
    monkeypatch.setattr(lacking, "CHAIN_BATCH", 4)
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    lagging, other = lagging_behind(world, paying(world, 10))
    first, *_, last = world.watch.accounts["alice"].links[-9:]
    noting(world, lagging, (*TOLD.__args__, Offer))
    for link in (first, last):
        slot = SlotName(link.hash, "alice", link.height + 1)
        world.deliver(lagging, FromPeer(other, Prepare(slot, Ballot(1, 1, other))))
    world.run(WANT_AGAIN_S / 3)
    assert world.tip(lagging, "alice") == last.hash


def test_what_another_sends_of_a_chain_does_not_end_the_question_for_it() -> None:
    """The answer of who was asked is still on its way."""
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    lagging, other = lagging_behind(world, paying(world, 10))
    third = next(node for node in world.ids if node not in (lagging, other))
    first, *_, last = world.watch.accounts["alice"].links[world.height(lagging, "alice") + 1 :]
    wants = noting(world, lagging, (*TOLD.__args__, Offer, Links))
    slot = SlotName(last.hash, "alice", last.height + 1)
    world.deliver(lagging, FromPeer(other, Prepare(slot, Ballot(1, 1, other))))
    world.run(0.01)
    world.deliver(lagging, FromPeer(third, Links((first.raw,))))
    world.run(0.01)
    assert world.height(lagging, "alice") == first.height
    assert wants == [Want(chains=(("alice", first.height),))]


def test_no_question_is_for_more_than_a_batch_of_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link may pay thousands of accounts whose openings are not here: they come batch by batch."""
    names = [f"r{number}" for number in range(5)]
    world = World(3, 3, 1)
    world.open_funded(alice=100)

    def pays(at: NodeId) -> None:
        for name in names:
            assert_paid(world.ask(at, world.open_request(name)))
        assert_paid(world.ask(at, world.pay_many_request("alice", [Posting(name, 1) for name in names])))

    lagging, other = lagging_behind(world, pays)
    monkeypatch.setattr(lacking, "WANT_BATCH", 2)
    wants = noting(world, lagging, (*TOLD.__args__, Offer))
    link = world.watch.accounts["alice"].links[-1]
    tell(world, lagging, other, [link])
    assert world.run_until(lambda: world.tip(lagging, "alice") == link.hash, 10)
    assert [len(want.chains) for want in wants] == [2, 2, 1]


def test_who_tells_of_more_of_a_chain_than_before_is_asked_for_it_at_once() -> None:
    world = World(3, 3, 1)
    node, peer, _ = world.ids

    def asked(height: int) -> list[Send]:
        turn = Turn(Loaded(), Now(world.now, 0))
        world.core(node).replica.lacking.want_chains(turn, peer, [("alice", 0, height)])
        return turn.sends

    question = Send(peer, Want(chains=(("alice", 0),)))
    assert asked(1) == [question]
    assert asked(1) == []
    assert asked(2) == [question]


def test_who_was_asked_for_which_chain_is_forgotten_when_it_may_be_asked_again() -> None:
    world = World(3, 3, 1)
    node, peer, _ = world.ids
    there = world.core(node).replica.lacking
    there.want_chains(Turn(Loaded(), Now(world.now, 0)), peer, [("alice", 0, 1)])
    assert there._inquired
    world.run(WANT_AGAIN_S + PING_EVERY_S)
    assert not there._inquired


def test_each_link_that_waits_is_looked_at_again_in_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    lagging, other = lagging_behind(world, paying(world, 4))
    noting(world, lagging, (*TOLD.__args__, Links, Offer))
    looked: list[tuple[float, Link]] = []

    def learn(link: Link, source: NodeId, by: NodeId) -> Learn:
        looked.append((world.now, link))
        return Learn(link, source, by)

    monkeypatch.setattr(lacking, "Learn", learn)
    came = {}
    for link in world.watch.accounts["alice"].links[-2:]:
        came[link] = world.now
        tell(world, lagging, other, [link])
        world.run(0.1)
    world.run(20)
    for link, at in came.items():
        times = [at, *(when for when, which in looked if which == link)]
        pauses = [after - before for before, after in pairwise(times)]
        assert pauses[0] < WANT_AGAIN_S + 0.02
        assert len(pauses) > 5
        assert all(MAX_WANT_AGAIN_S <= pause < 2 * MAX_WANT_AGAIN_S + 0.02 for pause in pauses[5:])


def test_a_link_that_is_applied_in_the_turn_that_would_look_at_it_again() -> None:
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    lagging, other = lagging_behind(world, paying(world, 2))
    noting(world, lagging, (*TOLD.__args__, Links, Offer))
    core = world.core(lagging)
    before, link = world.watch.accounts["alice"].links[-2:]
    tell(world, lagging, other, [link])
    assert len(core.replica.lacking) == 1
    due = core.replica.lacking.deadline()
    assert due is not None
    world.run(due - world.now - 0.001)
    now = Now(due, EPOCH_MS + int(1000 * due))
    events = [FromPeer(other, Decided(known.raw, other, LEAF)) for known in (before, link)]
    effects = core.step(load(world.nodes[lagging].conn, core.needs(events, now)), now)
    assert [write.link for write in effects.writes if isinstance(write, Applied)] == [before, link]
    assert not [send for send in effects.send if isinstance(send.message, Want)]
    assert core.replica.lacking.deadline() is None


def told_in_one_turn(world: World, node: NodeId, source: NodeId, links: list[Link]) -> list[Link]:
    """What `node` applies in the turn in which it hears of these links."""
    core = world.core(node)
    now = Now(world.now, EPOCH_MS + int(1000 * world.now))
    events = [FromPeer(source, Decided(link.raw, source, LEAF)) for link in links]
    effects = core.step(load(world.nodes[node].conn, core.needs(events, now)), now)
    commit(world.nodes[node].conn, effects.writes)
    return [write.link for write in effects.writes if isinstance(write, Applied)]


def waiting_for_the_first(world: World) -> tuple[NodeId, NodeId, list[Link]]:
    """Who lacks the first of these links of two accounts, and lets the others wait for it and for each other."""

    def pays(at: NodeId) -> None:
        paying(world, 3)(at)
        for _ in range(2):
            assert_paid(world.pay("bob", "carol", 1, at=at))

    world.open_funded(alice=100, bob=0, carol=0)
    lagging, other = lagging_behind(world, pays)
    noting(world, lagging, (*TOLD.__args__, Links, Offer))
    chains = {name: world.watch.accounts[name].links[world.height(lagging, name) + 1 :] for name in ("alice", "bob")}
    assert [len(links) for links in chains.values()] == [3, 2]
    links = [*chains["alice"], *chains["bob"]]
    tell(world, lagging, other, links[:0:-1])
    assert len(world.core(lagging).replica.lacking) == 4
    return lagging, other, links


def test_links_that_wait_for_each_other_are_applied_in_the_turn_that_brings_the_first() -> None:
    world = World(3, 3, 1)
    lagging, other, links = waiting_for_the_first(world)
    first = links[0]
    assert sorted(told_in_one_turn(world, lagging, other, [first, first]), key=links.index) == links
    core = world.core(lagging)
    assert not core._again
    assert (core.replica.lacking._waiting, core.replica.lacking._arriving) == ({}, set())


def test_a_link_that_lacks_more_than_this_turn_brings_is_not_looked_up() -> None:
    world = World(3, 3, 1)
    lagging, _, links = waiting_for_the_first(world)
    core = world.core(lagging)
    second, third, *_ = links[1:]
    there = core.replica.lacking
    assert there.wakes(links[3]) == links[4:]
    assert there.wakes(links[0]) == [second, third], "the others were named before"
    there._waiting[third.hash].missing[PostingHash(bytes(32))] = None
    there._waiters[PostingHash(bytes(32))] = {third.hash}
    there.tick(Turn(Loaded(), Now(world.now, 0)))
    assert there.wakes(links[0]) == [second]
    assert there.wakes(links[0]) == [], "two copies of it bring no more than one"


@pytest.mark.parametrize("bound", ["MAX_WOKEN", "MAX_WOKEN_BYTES"])
def test_of_links_that_wait_for_each_other_the_turn_applies_as_many_as_one_takes(
    monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    world = World(3, 3, 1)
    lagging, other, links = waiting_for_the_first(world)
    monkeypatch.setattr(lacking, bound, 2 if bound == "MAX_WOKEN" else len(links[1].raw) + len(links[2].raw) + 1)
    assert told_in_one_turn(world, lagging, other, links[:1]) == links[:3]
    assert told_in_one_turn(world, lagging, other, []) == links[3:]


def test_links_that_come_in_the_wrong_order_within_a_turn_are_applied_in_it() -> None:
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    lagging, other = lagging_behind(world, paying(world, 3))
    links = world.watch.accounts["alice"].links[-3:]
    assert told_in_one_turn(world, lagging, other, links[::-1]) == links

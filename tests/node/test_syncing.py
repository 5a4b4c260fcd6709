"""Syncs of whole cores: who is a source, what is waited for, what is merged, and late ones (design R5, R7, R8)."""

from collections.abc import Callable

import pytest

from chain.link import Slot, build_link, decode_link_untrusted
from chain.rows import ActiveRow, Applied, VoteRow
from chain.seal import load_active, load_votes
from hopchain.change import ChangeAction
from hopchain.wire import Changed, Recorded
from node import lacking, syncing
from node.core import Core
from node.effects import Effects
from node.events import FinishSync, FromPeer
from node.messages import (
    Accept,
    Accepted,
    AskSync,
    Decided,
    DecidedHash,
    Links,
    Message,
    Offer,
    Pong,
    Prepare,
    Promise,
    Pull,
    SlotName,
    SyncPart,
    SyncVote,
)
from node.paxos import MAX_BALLOT, Ballot
from node.syncing import PART_BYTES
from routing.broadcast import LEAF
from routing.keyspace import NodeId, route_key
from routing.regions import EMPTY, RING, decode_ranges, encode_ranges, group_ranges, holds, merge, regions
from tests.node.world import TOLD, Doom, Node, World

ADD, REMOVE = ChangeAction.ADD, ChangeAction.REMOVE


def grown(nodes: int, first: int, k: int = 3, seed: int = 1) -> World:
    world = World(nodes, k, seed, first=first)
    world.run(1.0)
    world.open_funded(alice=1000, bob=0)
    return world


def rest(world: World) -> None:
    """Everybody knows all and is ACTIVE."""
    world.heal()
    world.run(8.0)
    for node in world.watch.views[-1].ids:
        core = world.core(node)
        assert core.fully_active
        assert core.gauges().syncing == core.gauges().undecided_votes == 0
        assert not any(name.startswith("peer_fault") for name in core.counters), core.counters
    assert len({world.digest(node) for node in world.watch.views[-1].ids}) == 1


def grow(world: World, at: NodeId | None = None) -> NodeId:
    """Have the first guest added: all nodes install the view, whether it is ACTIVE or not."""
    (guest, *_) = world.guests
    world.change(at or world.view.ids[0], ADD, guest)
    alive = set(world.alive)
    assert world.run_until(lambda: {world.core(n).view.epoch for n in alive} == {2}, 10)
    return guest


def alone(world: World, voters: int) -> tuple[NodeId, tuple[NodeId, ...]]:
    """A vote of alice's owner and `voters` more, which nobody can learn of; the group."""
    group = world.group("alice")
    told = group[1 : 1 + voters]
    world.lose = lambda source, target, message: (
        isinstance(message, Accepted | TOLD | Prepare | Promise) or (isinstance(message, Accept) and target not in told)
    )
    world.submit(group[0], world.pay_request("alice", "bob", 10))
    assert world.run_until(lambda: sum(world.core(n).acceptor.votes for n in world.view.ids) == 1 + voters, 5)
    return group[0], group


# --- what a sync is for ---


def test_a_value_that_was_chosen_before_the_change_is_known_to_the_joiner() -> None:
    """Counterexample 1 and 2: two of three voted, the client was not told, one of them dies, the view changes."""
    for seed in range(6):
        world = grown(4, 3, seed=seed)
        owner, group = alone(world, 1)
        link = world.watch.accounts["alice"].links[-1]
        assert link.height == 1, "it is chosen"
        lose = world.lose
        world.crash(owner)
        guest = grow(world, group[1])
        assert world.run_until(lambda: world.core(guest).fully_active, 10)  # noqa: B023
        held = world.core(guest).acceptor.vote(link.prev_hash)
        assert held is not None
        assert held.value == link
        assert world.lose is lose, "and it is not decided yet"
        world.heal()
        answer = world.pay("alice", "bob", 20, at=guest)
        assert isinstance(answer, Recorded)
        assert answer.height == 2
        world.start(owner)
        rest(world)


def test_who_has_the_view_votes_in_the_old_epoch_no_more_also_after_a_crash() -> None:
    """Counterexample 4: the fence is durable before the answer to a sync leaves."""
    world = grown(4, 3)
    fenced: list[bool] = []

    def look(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, SyncPart):
            epoch = world.nodes[source].conn.execute("SELECT max(epoch) FROM views").fetchone()[0]
            fenced.append(epoch >= message.epoch)
        return False

    world.lose = look
    grow(world)
    world.run(1.0)
    assert len(fenced) >= 4
    assert all(fenced)
    voter, sender, _ = world.view.ids
    world.crash(voter)
    world.start(voter)
    world.run(1.0)
    assert world.core(voter).view.epoch == 2
    assert world.core(voter).identity.verified
    link = world.watch.accounts["alice"].links[-1]
    before = world.nodes[voter].conn.execute("SELECT * FROM votes").fetchall()
    world.deliver(voter, FromPeer(sender, Prepare(SlotName(link.hash, "alice", link.height + 1), Ballot(1, 9, sender))))
    world.run(0.01)
    assert world.nodes[voter].conn.execute("SELECT * FROM votes").fetchall() == before


def test_nobody_votes_or_proposes_before_it_is_active() -> None:
    """R7. All parts are lost: payments wait; then they go on."""
    world = grown(4, 3, k=5)
    world.lose = lambda source, target, message: isinstance(message, SyncPart)
    guest = grow(world)
    call = world.submit(world.view.ids[1], world.pay_request("alice", "bob", 10), timeout_s=20)
    world.run(4.0)
    assert call.answer is None
    assert all(world.core(node).active == EMPTY for node in world.ids), "every group has changed"
    world.heal()
    assert world.run_until_answered([call], 10)
    assert isinstance(call.answer, Recorded)
    assert world.core(guest).fully_active
    rest(world)


def test_regions_that_did_not_change_pay_on_while_others_wait() -> None:
    """Activation is per region: who is in the group of the newcomer waits, nobody else."""
    for seed in range(20):
        world = grown(8, 7, k=2, seed=seed)
        world.lose = lambda source, target, message: isinstance(message, SyncPart)
        guest = grow(world)
        group = world.watch.views[1].group(route_key(world.watch.accounts["alice"].links[-1].hash))
        if guest not in group:
            call = world.submit(group[0], world.pay_request("alice", "bob", 10))
            world.run(0.5)
            assert isinstance(call.answer, Recorded)
            assert world.core(group[0]).active != EMPTY
            assert not world.core(guest).fully_active
            return
    raise AssertionError("no seed has a slot that stays where it is")


# --- who is a source ---


def test_one_answer_is_not_enough() -> None:
    world = grown(5, 4)
    one = world.view.ids[0]
    world.lose = lambda source, target, message: isinstance(message, SyncPart) and source != one
    guest = grow(world)
    world.run(4.0)
    assert world.core(guest).active == EMPTY
    rest(world)


def test_a_source_that_may_have_lost_votes_does_not_answer() -> None:
    """R12: it starts, and nobody has confirmed it yet."""
    world = grown(4, 3)
    source = world.view.ids[1]
    guest = grow(world)
    rest(world)
    world.crash(source)
    answered: list[NodeId] = []
    in_doubt = True

    def lose(sender: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, SyncPart):
            answered.append(sender)
        return in_doubt and isinstance(message, Pong) and target == source

    world.lose = lose
    world.start(source)
    world.run(1.0)
    assert not world.core(source).identity.verified
    world.deliver(source, FromPeer(guest, AskSync(7, 2)))
    world.run(0.1)
    assert source not in answered
    in_doubt = False
    world.run(1.0)
    world.deliver(source, FromPeer(guest, AskSync(7, 2)))
    world.run(0.1)
    assert source in answered


def test_who_may_have_lost_votes_is_no_source_of_its_own() -> None:
    """R12: it and one other would be a majority of the old group, and it may have voted for what that one has never
    heard of."""
    world = grown(4, 3)
    syncing, source, _ = world.view.ids
    world.lose = lambda sender, target, message: isinstance(message, SyncPart)
    grow(world)
    world.crash(syncing)
    in_doubt = True
    world.lose = lambda sender, target, message: (
        (isinstance(message, SyncPart) and (sender, target) != (source, syncing))
        or (in_doubt and isinstance(message, Pong) and target == syncing)
    )
    world.start(syncing)
    world.run(3.0)
    assert not world.core(syncing).identity.verified
    assert not world.core(syncing).fully_active
    in_doubt = False
    assert world.run_until(lambda: world.core(syncing).fully_active, 5)


def test_a_source_without_the_view_asks_for_it_instead() -> None:
    world = grown(4, 3)
    source, other = world.view.ids[:2]
    sent: list[Message] = []

    def note(sender: NodeId, target: NodeId, message: object) -> bool:
        if sender == source and target == other and not isinstance(message, Pong | Pull):
            sent.append(message)  # type: ignore[arg-type]
        return False

    world.lose = note
    world.deliver(source, FromPeer(other, AskSync(1, 2)))
    world.run(0.01)
    assert [type(message).__name__ for message in sent] == ["AskViews"]


def test_a_source_that_was_not_active_when_it_answered_is_asked_again() -> None:
    """A node is taken back as soon as it was added: who syncs the undo asks before its sources have synced the
    addition."""
    for seed in range(4):
        world = grown(4, 3, seed=seed)
        (guest,) = world.guests
        at = world.view.ids[0]
        world.lose = lambda source, target, message: isinstance(message, SyncPart) and message.epoch == 2
        grow(world)
        undo = world.change(at, REMOVE, guest)
        assert world.run_until(lambda: {world.core(n).view.epoch for n in world.view.ids} == {3}, 10)  # noqa: B023
        world.run(2.0)
        assert not any(world.core(node).fully_active for node in world.view.ids)
        world.heal()
        assert isinstance(world.answer_of(undo), Changed)
        rest(world)


def test_who_comes_late_syncs_with_the_new_group_when_the_old_one_is_gone() -> None:
    """It slept through three changes; the nodes of the epochs between are dead, those of the newest are ACTIVE without
    it."""
    world = grown(5, 4)
    (guest,) = world.guests
    late, gone, *others = world.view.ids
    world.crash(late)
    world.run(3.0)
    assert isinstance(world.add(others[0], guest), Changed)
    assert isinstance(world.remove(others[0], gone, force=True), Changed)
    world.crash(gone)
    world.run(3.0)
    assert isinstance(world.pay("alice", "bob", 10, at=others[0]), Recorded)
    world.start(late)
    assert world.run_until(lambda: world.core(late).fully_active, 20)
    rest(world)


@pytest.mark.parametrize("story", ["down", "no answer", "no log"])
def test_who_comes_late_syncs_with_the_one_of_the_new_group_that_is_left(story: str) -> None:
    """k = 3, and nothing failed for good but one disk: a member was removed while another was late, and one of the two
    that have the view and are ACTIVE dies. The late one and the last are a majority of every group (ADR 35)."""
    world = grown(6, 4)
    names = ("alice", "bob", *(f"acct-{i}" for i in range(6)))
    world.open_funded(**dict.fromkeys(names[2:], 100))
    late, removed, dead, left = world.view.ids
    spare, *_ = world.guests
    if story == "down":
        world.crash(late)
        world.run(3.0)
    else:
        lost = SyncPart if story == "no answer" else Links | Offer | TOLD
        world.lose = lambda source, target, message: target == late and isinstance(message, lost)
        assert isinstance(world.pay("alice", "bob", 10, at=left), Recorded)
    assert isinstance(world.remove(left, removed), Changed)
    assert world.run_until(lambda: world.core(left).membership.settled and world.core(dead).fully_active, 10)
    assert story == "down" or (world.core(late).view.epoch == 2 and not world.core(late).fully_active)
    world.crash(removed)
    world.crash(dead)
    world.run(1.0)
    world.heal()
    if story == "down":
        world.start(late)
    assert world.run_until(lambda: world.core(late).fully_active, 20)
    for name in names:
        assert isinstance(world.pay(name, "bob" if name != "bob" else "alice", 1, at=left), Recorded)
    assert isinstance(world.add(left, spare), Changed)
    assert isinstance(world.remove(left, dead, force=True), Changed)
    rest(world)


def test_a_part_of_a_region_in_which_the_sources_were_active_does_not_wait_for_the_rest() -> None:
    """The region is one now and was two in the epoch before: in one of them a majority had become ACTIVE."""
    world = grown(4, 3, k=5)
    asked: dict[NodeId, AskSync] = {}

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, AskSync) and source == world.guests[0]:
            asked[target] = message
        return isinstance(message, SyncPart)

    world.lose = lose
    guest = grow(world)
    members = world.view.ids
    assert world.run_until(lambda: asked.keys() == set(members), 5)
    (whole,) = regions(*world.watch.views)
    middle = whole.last // 2
    for node in members[:2]:
        part = encode_ranges(((whole.first, middle),))
        world.deliver(guest, FromPeer(node, SyncPart(asked[node].number, 2, 0, 1, part, 0, ())))
    world.run(0.01)
    assert world.core(guest).active == ((whole.first, middle),)
    assert world.core(guest).gauges().syncing == 1
    world.crash(guest)
    world.start(guest)
    asked.clear()
    assert world.core(guest).active == ((whole.first, middle),), "also after a restart"
    assert world.core(guest).gauges().syncing == 1
    rest(world)


def test_a_vote_on_another_slot_than_the_one_after_the_tip_is_not_taken_over_from_a_source() -> None:
    world = grown(4, 3, k=5)
    asked: dict[NodeId, AskSync] = {}
    proposed: list[Accept] = []

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, AskSync) and source == world.guests[0]:
            asked[target] = message
        if isinstance(message, Accept):
            proposed.append(message)
        return isinstance(message, SyncPart | Accept)

    world.lose = lose
    world.submit(world.group("alice")[0], world.pay_request("alice", "bob", 1))
    assert world.run_until(lambda: bool(proposed), 5)
    guest = grow(world)
    members = world.view.ids
    assert world.run_until(lambda: asked.keys() == set(members), 5)
    link = decode_link_untrusted(proposed[0].link)
    other = build_link(world.network, "alice", link.height, Slot(bytes(32)), 0, 1, 1, link.entries, [])
    votes = tuple(
        SyncVote(SlotName(one.prev_hash, "alice", one.height), Ballot(1, 1, members[0]), one.raw)
        for one in (link, other)
    )
    for node in members:
        answer = SyncPart(asked[node].number, 2, 0, 1, encode_ranges(RING), 0, votes)
        world.deliver(guest, FromPeer(node, answer))
    world.run(0.01)
    assert world.core(guest).active == RING
    assert world.core(guest).acceptor.paying("bob") == {"alice": link.height}
    assert world.core(guest).counters["sync_votes_of_another_chain"] == len(members)
    rest(world)
    assert world.height(guest, "alice") == link.height


# --- what is waited for ---


def test_the_log_of_a_source_is_waited_for() -> None:
    """What a source has decided is no vote of it any more: without its log the joiner would hold a free slot."""
    world = grown(4, 3)
    (guest,) = world.guests
    world.lose = lambda source, target, message: target == guest and isinstance(message, TOLD | Offer | Links)
    assert isinstance(world.pay("alice", "bob", 10, at=world.view.ids[0]), Recorded)
    grow(world)
    world.run(4.0)
    assert world.height(guest, "alice") == 0
    assert world.core(guest).active == EMPTY
    members = world.view.ids
    assert all(world.core(node).fully_active for node in members), "who has the log needs nothing"
    world.heal()
    assert world.run_until(lambda: world.core(guest).fully_active, 10)
    assert world.height(guest, "alice") == 1
    rest(world)


@pytest.mark.parametrize("doom", Doom)
def test_a_source_counts_no_link_in_its_log_that_a_crash_takes_back(doom: Doom) -> None:
    """The asker waits until it has read the log that far, and would find another link in that place, or none. The vote
    for the link is told no more: the joiner would hold a free slot that is decided."""
    world = grown(4, 3)
    source, other, _ = world.view.ids
    grow(world)
    world.heal()
    world.run(4.0)
    told: list[int] = []
    durable = world.nodes[source].conn.execute("SELECT count(*) FROM links").fetchone()[0]

    def note(sender: NodeId, target: NodeId, message: Message) -> bool:
        if isinstance(message, SyncPart) and sender == source:
            told.append(message.log)
        return isinstance(message, TOLD | Links | Offer) and target == source

    world.lose = note
    assert isinstance(world.pay("alice", "bob", 10, at=other), Recorded)
    decided = world.watch.accounts["alice"].links[-1]
    world.doom(source, doom)
    world.deliver(source, FromPeer(other, Decided(decided.raw, other, LEAF)))
    world.deliver(source, FromPeer(other, AskSync(1, 2)))
    assert world.run_until(lambda: world.nodes[source].core is None, 1)
    (kept,) = world.nodes[source].conn.execute("SELECT count(*) FROM links").fetchone()
    assert kept == durable + (doom in (Doom.AFTER_COMMIT, Doom.BETWEEN_SENDS))
    assert all(log <= kept for log in told)
    world.start(source)
    world.heal()
    world.run(2.0)
    assert world.height(source, "alice") == decided.height


def test_a_source_tells_the_length_of_its_log_when_its_links_are_durable() -> None:
    world = grown(4, 3)
    source, other, _ = world.view.ids
    grow(world)
    world.run(4.0)
    answers: list[tuple[int, int]] = []

    def note(sender: NodeId, target: NodeId, message: Message) -> bool:
        if isinstance(message, SyncPart) and sender == source:
            answers.append((message.log, world.nodes[source].conn.execute("SELECT count(*) FROM links").fetchone()[0]))
        return isinstance(message, TOLD | Links | Offer) and target == source

    world.lose = note
    assert isinstance(world.pay("alice", "bob", 10, at=other), Recorded)
    decided = world.watch.accounts["alice"].links[-1]
    world.deliver(source, FromPeer(other, Decided(decided.raw, other, LEAF)))
    world.deliver(source, FromPeer(other, AskSync(1, 2)))
    world.run(0.1)
    assert world.height(source, "alice") == decided.height
    assert answers
    assert all(told == there for told, there in answers)


def test_an_active_mark_is_one_transaction_with_the_links_of_its_turn() -> None:
    """A vote of a source is left out when its link is applied in this very turn: the mark must not outlive that
    link."""
    world = grown(4, 3, k=5)
    guest, (one, *_) = world.guests[0], world.view.ids
    asked: dict[NodeId, AskSync] = {}
    commits: list[tuple[set[type], set[type]]] = []

    def lose(source: NodeId, target: NodeId, message: Message) -> bool:
        if isinstance(message, AskSync) and source == guest:
            asked[target] = message
        return isinstance(message, SyncPart) or (target == guest and isinstance(message, TOLD | Links | Offer))

    finish_turn = world.finish_turn

    def note(node: Node, effects: Effects) -> None:
        if node is world.nodes[guest]:
            commits.append(({type(write) for write in effects.persist}, {type(write) for write in effects.applied}))
        finish_turn(node, effects)

    world.finish_turn = note  # type: ignore[method-assign]
    world.lose = lose
    assert isinstance(world.pay("alice", "bob", 1, at=one), Recorded)
    grow(world)
    assert world.run_until(lambda: asked.keys() >= set(world.view.ids), 5)
    commits.clear()
    for node in world.view.ids:
        world.deliver(guest, FromPeer(node, SyncPart(asked[node].number, 2, 0, 1, encode_ranges(RING), 0, ())))
    world.deliver(guest, FromPeer(one, Decided(world.watch.accounts["alice"].links[-1].raw, one, LEAF)))
    world.deliver(guest, FinishSync(2))
    world.run(0.05)
    assert world.core(guest).fully_active
    assert world.height(guest, "alice") == 1
    (together,) = (both for both in commits if ActiveRow in both[0])
    assert Applied in together[0]
    assert together[1] == set()


def crashed_between(nodes: int, first: int, k: int = 3, gone: int = 0) -> tuple[World, NodeId, NodeId]:
    """A world in which alice's owner died after the turn in which it learned that a link is decided and voted for the
    next one, before that link was durable or anybody was told; it, and another member. `gone`: so many more members are
    down."""

    class Dooming(World):
        victim: NodeId | None = None

        def finish_turn(self, node: Node, effects: Effects) -> None:
            of_alice = [w for w in effects.applied if isinstance(w, Applied) and w.link.account == "alice"]
            votes = [w for w in effects.persist if isinstance(w, VoteRow) and w.account == "alice"]
            if node.id == self.victim and of_alice and votes:
                node.doom = Doom.BEFORE_LINKS
            super().finish_turn(node, effects)

    for seed in range(60):
        world = Dooming(nodes, k, seed, first=first)
        world.run(1.0)
        world.open_funded(alice=1000, bob=0)
        owner, *others = (world.group("alice")[0], *(n for n in world.view.ids if n != world.group("alice")[0]))
        for _ in range(gone):
            world.crash(others.pop())
            world.run(4.0)
        world.victim = owner
        world.lose = lambda source, target, message: source == owner and isinstance(message, TOLD)  # noqa: B023
        for number in range(2):
            world.submit(owner, world.pay_request("alice", "bob", 1 + number))
        world.later(0.0004, lambda: world.submit(owner, world.pay_request("alice", "bob", 7)) and None)  # noqa: B023
        if world.run_until(lambda: world.nodes[owner].core is None, 0.5):  # noqa: B023
            world.victim = None
            world.heal()
            return world, owner, others[0]
    raise AssertionError("no seed")


@pytest.mark.parametrize("pause_s", [0.01, 0.3, 0.8, 1.5])
@pytest.mark.parametrize("change", ["two add a third", "three, one of them dead, remove it"])
def test_a_change_while_a_member_has_a_vote_and_not_the_link_before_it(change: str, pause_s: float) -> None:
    """Only two can decide the link, with votes that only they have: the change must wait for nothing but them."""
    add = change == "two add a third"
    world, owner, other = crashed_between(3, 2 if add else 3, gone=0 if add else 1)
    gone = [node for node in world.view.ids if node not in (owner, other)]
    height = world.height(other, "alice")
    assert world.height(owner, "alice") == height
    slots = {
        slot for (slot,) in world.nodes[owner].conn.execute("SELECT slot FROM votes WHERE height > ?", (height + 1,))
    }
    assert len(slots) == 1
    world.run(0.3)
    world.start(owner)
    world.run(pause_s)
    asked = world.change(other, ADD if add else REMOVE, world.guests[0] if add else gone[0], timeout_s=600)
    assert world.run_until(lambda: asked.answer is not None, 30)
    assert isinstance(asked.answer, Changed)
    assert isinstance(world.pay("alice", "bob", 3, at=other), Recorded)
    world.run(8)
    assert len({world.digest(node) for node in world.alive}) == 1


def test_a_vote_is_taken_over_also_where_the_link_before_it_is_not_here_yet() -> None:
    """The source voted for it, so that link is decided. It was in no log: a crash took it from this one."""
    world, owner, _ = crashed_between(4, 3, k=5)
    voted = world.nodes[owner].conn.execute("SELECT slot, height FROM votes ORDER BY height").fetchall()
    (first, height), (slot, next_height) = voted
    assert next_height == height + 1
    rows = {row.slot: row for row in load_votes(world.nodes[owner].conn)}
    links = [decode_link_untrusted(rows[name].link or b"") for name in (first, slot)]
    assert links[1].prev_hash == links[0].hash
    guest = world.guests[0]
    asked: dict[NodeId, AskSync] = {}

    def lose(source: NodeId, target: NodeId, message: Message) -> bool:
        if isinstance(message, AskSync) and source == guest:
            asked[target] = message
        return isinstance(message, SyncPart | Prepare | Accept | TOLD | Links | Offer)

    world.lose = lose
    world.start(owner)
    members = world.view.ids
    world.change(members[0], ADD, guest)
    assert world.run_until(lambda: asked.keys() >= set(members), 20)
    for node in members:
        votes = tuple(
            SyncVote(SlotName(link.prev_hash, "alice", link.height), Ballot(1, 1, node), link.raw)
            for link in links
            if node == owner
        )
        world.deliver(guest, FromPeer(node, SyncPart(asked[node].number, 2, 0, 1, encode_ranges(RING), 0, votes)))
    world.run(0.05)
    core = world.core(guest)
    assert core.active == RING
    assert world.height(guest, "alice") == height - 1
    assert [core.acceptor.is_voted(Slot(link.prev_hash)) for link in links] == [True, True]
    assert core.acceptor.paying("bob") == {"alice": next_height}
    assert core.counters["sync_votes_of_another_chain"] == 0
    rest(world)
    assert world.height(guest, "alice") >= next_height
    assert core.acceptor.paying("bob") == {}
    assert not core.acceptor._paying


def pulling(world: World, node: NodeId, lost: type[Message]) -> NodeId:
    """A member that `node` asks for its log. No news of links comes to it meanwhile, nor messages of the kind
    `lost`."""
    asked: list[NodeId] = []

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if source == node and isinstance(message, Pull):
            asked.append(target)
        return target == node and isinstance(message, TOLD | lost)

    world.lose = lose
    for _ in range(2):
        assert isinstance(world.pay("alice", "bob", 1, at=world.view.ids[0]), Recorded)
    asked.clear()
    assert world.run_until(lambda: bool(asked), 10)
    world.run(0.02)
    return asked[-1]


def log(world: World, node: NodeId) -> tuple[NodeId, int, int]:
    core = world.core(node)
    return node, core.pulling.log_id, core.replica.count


def test_a_link_that_is_dropped_because_too_many_wait_stays_to_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page that it was on was asked for and came; the cursor must not pass it."""
    world = grown(4, 3)
    (guest,) = world.guests
    world.run(8.0)
    monkeypatch.setattr(lacking, "MAX_WAITING", 0)
    peer = pulling(world, guest, Links)
    first, second = world.watch.accounts["alice"].links[-2:]
    world.deliver(guest, FromPeer(peer, Links((second.raw, first.raw))))
    world.run(0.01)
    assert world.core(guest).counters["links_dropped"] == 1
    assert world.height(guest, "alice") == first.height
    assert not world.core(guest).pulling.has_log(*log(world, peer))
    rest(world)
    assert world.height(guest, "alice") == second.height


def test_an_answer_to_an_earlier_question_about_the_log_does_not_move_the_cursor() -> None:
    """ "Nothing behind here" was said of another place than where the cursor is."""
    world = grown(4, 3)
    (guest,) = world.guests
    world.run(8.0)
    peer = pulling(world, guest, Offer)
    _, log_id, count = log(world, peer)
    mine = world.core(guest).replica.count
    world.deliver(guest, FromPeer(peer, Offer((), count, count, mine, count, log_id)))
    world.run(0.01)
    assert mine < count
    assert not world.core(guest).pulling.has_log(peer, log_id, count)
    rest(world)


def test_a_cursor_is_of_one_log_and_each_process_has_another() -> None:
    world = grown(4, 3)
    (guest,) = world.guests
    world.run(8.0)
    member = world.view.ids[0]
    before = log(world, guest)
    for node in (guest, member):
        begun = log(world, node)
        world.crash(node)
        world.start(node)
        world.run(3.0)
        assert log(world, node)[1] != begun[1], "its disk may be an older one"
    world.crash(guest)
    world.nodes[guest] = world._make_node(guest)
    world.start(guest)
    world.run(1.0)
    assert log(world, guest)[1] != before[1]
    offers: list[Offer] = []

    def note(source: NodeId, target: NodeId, message: object) -> bool:
        if (source, target) == (member, guest) and isinstance(message, Offer):
            offers.append(message)
        return False

    world.lose = note
    _, log_id, count = log(world, member)
    world.run_until(lambda: bool(offers), 10)
    offers.clear()
    for named in (log_id, log_id + 1):
        world.deliver(member, FromPeer(guest, Pull(3, 0, bytes(32), named)))
    world.run(0.01)
    assert [(offer.after, len(offer.hashes), offer.log_id) for offer in offers] == [
        (3, count - 3, log_id),
        (0, count, log_id),
    ]


def test_an_answer_that_counts_outlives_a_restart_of_its_source() -> None:
    world = grown(4, 3)
    source, other, away = world.view.ids
    world.run(8.0)
    world.lose = lambda sender, _, message: isinstance(message, SyncPart) and sender != source
    guest = grow(world)
    syncing = world.core(guest).syncing

    def counted() -> bool:
        return any(source in syncing._counted(sync, 2) for sync in syncing._syncs.values())

    assert world.run_until(counted, 20)
    world.crash(source)
    world.start(source)
    world.lose = lambda _, __, message: isinstance(message, SyncPart)
    world.run(20)
    for node in (source, away):
        world.crash(node)
    world.heal()
    assert world.run_until(lambda: world.core(guest).fully_active, 60), f"{other.hex()} and what was counted are enough"


def test_the_answer_of_a_source_with_another_log_than_the_one_that_was_read_does_not_count_yet() -> None:
    world = grown(4, 3, k=5)
    world.run(8.0)
    asked: dict[NodeId, AskSync] = {}

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, AskSync) and source == world.guests[0]:
            asked[target] = message
        return isinstance(message, SyncPart | Offer)

    world.lose = lose
    guest = grow(world)
    members = world.view.ids
    assert world.run_until(lambda: asked.keys() == set(members), 5)
    for node in members:
        answer = SyncPart(asked[node].number, 2, 0, 1, encode_ranges(RING), 1, (), encode_ranges(RING), 1)
        world.deliver(guest, FromPeer(node, answer))
    world.run(0.01)
    assert world.core(guest).active == EMPTY
    assert not any(world.core(guest).pulling.is_replaced(node, 1) for node in members)
    rest(world)


def test_links_that_a_joiner_lacks_are_fetched_at_once() -> None:
    """It does not wait for its next pull by chance."""
    world = grown(4, 3)
    (guest,) = world.guests
    world.lose = lambda source, target, message: target == guest and isinstance(message, TOLD | Offer)
    for _ in range(5):
        assert isinstance(world.pay("alice", "bob", 1, at=world.view.ids[0]), Recorded)
    world.heal()
    started = world.now
    grow(world)
    assert world.run_until(lambda: world.core(guest).fully_active, 10)
    assert world.now - started < 1.0
    rest(world)


STOPPED = Accepted | Decided | DecidedHash | Prepare | Promise


def with_three_votes(monkeypatch: pytest.MonkeyPatch) -> World:
    """Four members, all with the same three undecided votes, each a part of its own, and a guest. Nothing is
    decided."""
    monkeypatch.setattr(syncing, "PART_BYTES", 10)
    world = grown(5, 4, k=5)
    names = ["carol", "dave", "erin"]
    for name in names:
        world.settle(world.view.ids[0], world.open_request(name))
        world.settle(world.view.ids[0], world.pay_request("mint", name, 5))
    world.run(3.0)
    world.lose = lambda source, target, message: isinstance(message, STOPPED)
    for name in names:
        world.submit(world.group(name)[0], world.pay_request(name, "bob", 1))
    assert world.run_until(lambda: all(world.core(node).acceptor.votes == 3 for node in world.view.ids), 5)
    return world


@pytest.mark.parametrize("lost", [False, True])
def test_votes_come_in_parts_and_count_when_all_are_here(monkeypatch: pytest.MonkeyPatch, *, lost: bool) -> None:
    world = with_three_votes(monkeypatch)
    parts: dict[NodeId, list[SyncPart]] = {}
    cut: list[SyncPart] = []

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, SyncPart) and target == world.guests[0]:
            parts.setdefault(source, []).append(message)
            if lost and message.part == 1:
                cut.append(message)
                return True
        return isinstance(message, STOPPED)

    world.lose = lose
    guest = grow(world)
    world.run(2.0)
    for sent in parts.values():
        assert {(part.parts, len(part.votes)) for part in sent} == {(3, 1)}
        assert {part.part for part in sent} == ({0, 1} if lost else {0, 1, 2})
        assert len({part.moment for part in sent}) == 1
    if lost:
        assert len(cut) > 4, "asked again"
        assert world.core(guest).active == EMPTY
        assert world.core(guest).acceptor.votes == 0
    else:
        assert all(len(sent) == 3 for sent in parts.values()), "each once"
        assert world.core(guest).fully_active
        assert world.core(guest).acceptor.votes == 3
    rest(world)
    assert world.watch.spendable("bob") == 3


def test_a_sync_ends_however_little_goes_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One part at a time has room in the queue to a peer: what a turn sends beyond it is dropped, as a transport
    does."""
    world = with_three_votes(monkeypatch)
    sent: set[tuple[NodeId, NodeId, float]] = set()
    dropped: list[SyncPart] = []

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, SyncPart):
            if (source, target, world.now) in sent:
                dropped.append(message)
                return True
            sent.add((source, target, world.now))
        return isinstance(message, STOPPED)

    world.lose = lose
    guest = grow(world)
    assert world.run_until(lambda: world.core(guest).fully_active, 5)
    assert world.core(guest).acceptor.votes == 3
    assert not dropped
    rest(world)


def test_a_sync_goes_on_where_it_was_when_every_other_part_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    world = with_three_votes(monkeypatch)
    guest = world.guests[0]
    came: list[SyncPart] = []
    lost: list[SyncPart] = []

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, SyncPart) and (source, target) == (world.view.ids[0], guest):
            into = lost if len(lost) <= len(came) else came
            into.append(message)
            return into is lost
        return isinstance(message, STOPPED | SyncPart)

    world.lose = lose
    grow(world)
    assert world.run_until(lambda: bool(world.core(guest).syncing._syncs[2].sources), 20)
    assert [part.part for part in came] == [part.part for part in lost] == [0, 1, 2]
    rest(world)


def test_the_parts_of_an_answer_are_of_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The source knows how it goes on only for the last question of who asked, and for some time."""
    world = with_three_votes(monkeypatch)
    source, other, *_ = world.view.ids
    world.lose = lambda sender, target, message: isinstance(message, STOPPED | SyncPart | AskSync)
    grow(world)
    told: list[SyncPart] = []

    def lose(sender: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, SyncPart) and (sender, target) == (source, other):
            told.append(message)
        return isinstance(message, STOPPED | SyncPart | AskSync)

    world.lose = lose
    assert not world.core(source).syncing._told
    monkeypatch.setattr(syncing, "TOLD_S", 3.0)

    def ask(number: int, part: int) -> SyncPart:
        told.clear()
        world.deliver(source, FromPeer(other, AskSync(number, 2, part)))
        world.run(0.01)
        (answer,) = told
        return answer

    first = ask(1, 0)
    log = world.core(source).replica.count
    decided = world.watch.accounts[first.votes[0].at.account].links[-1]
    world.deliver(source, FromPeer(other, Decided(decided.raw, other, LEAF)))
    world.run(0.1)
    assert world.core(source).acceptor.votes == 2
    rest_of_it = [ask(1, 1), ask(1, 2)]
    assert [(p.part, p.parts, p.moment, p.log) for p in rest_of_it] == [(n, 3, first.moment, log) for n in (1, 2)]
    assert len({vote.at for p in (first, *rest_of_it) for vote in p.votes}) == 3
    assert ask(1, 0) == first, "asked again"

    second = ask(2, 0)
    assert (second.parts, second.log) == (2, log + 1)
    again = ask(1, 2)
    assert (again.part, again.parts) == (0, 2), "there is no such part any more"
    assert len({first.moment, second.moment, again.moment}) == 3
    assert ask(1, 1).moment == again.moment

    assert world.core(source).syncing._told.keys() == {(other, 2)}
    world.run(syncing.TOLD_S + 2.0)
    assert not world.core(source).syncing._told
    late = ask(1, 1)
    assert late.moment != again.moment
    world.crash(source)
    world.start(source)
    assert world.run_until(lambda: world.core(source).identity.verified, 5)
    assert ask(1, 1).moment not in {p.moment for p in (first, second, again, late)}
    assert (other, 2) in world.core(source).syncing._told
    world.change(source, REMOVE, world.guests[0])
    assert world.run_until(lambda: world.core(source).view.epoch == 3, 2)
    assert not world.core(source).syncing._told, "of the view before"
    rest(world)


def test_who_syncs_begins_anew_with_a_source_that_did() -> None:
    world = grown(4, 3)
    guest, source = world.guests[0], world.view.ids[0]
    questions: list[AskSync] = []

    def lose(sender: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, AskSync) and (sender, target) == (guest, source):
            questions.append(message)
        return isinstance(message, SyncPart)

    world.lose = lose
    grow(world)
    assert world.run_until(lambda: bool(questions), 5)
    question = questions[0]
    sync = world.core(guest).syncing._syncs[2]

    def tell(**changed: object) -> list[int]:
        """Which parts are asked for at once."""
        questions.clear()
        world.deliver(guest, FromPeer(source, part(question, **changed)))
        world.run(0.001)
        assert {asked.number for asked in questions} <= {question.number}
        return [asked.part for asked in questions]

    assert tell(part=0, parts=4, moment=1) == [1]
    assert tell(part=1, parts=4, moment=1) == [2]
    assert tell(part=1, parts=4, moment=1) == [], "it came twice"
    asked: list[list[int]] = []
    for _ in range(3):
        questions.clear()
        look = sync.ask_at
        assert world.run_until(lambda: sync.ask_at > look, 5)  # noqa: B023
        world.run(0.001)
        asked.append([question.part for question in questions])
    assert asked == [[], [2], [2]], "asked again, but for the time in which a part has come"
    assert tell(part=2, parts=3, moment=2) == [0], "of another moment: nothing of the first is kept"
    assert sync.arriving[source].parts == []
    assert tell(part=0, parts=3, moment=2) == [1]
    assert tell(part=2, parts=4, moment=1) == [0]
    assert tell(part=0, parts=3, moment=3) == [1]
    assert tell(part=1, parts=3, moment=3) == [2]
    assert source not in sync.sources
    assert tell(part=2, parts=3, moment=3) == []
    assert sync.sources[source].moment == 3
    assert tell(part=0, parts=3, moment=4) == [], "it was answered"
    rest(world)


def test_parts_hold_about_a_megabyte() -> None:
    assert PART_BYTES == 1 << 20


# --- what is merged ---


def merged(world: World, node: NodeId, votes: dict[NodeId, tuple[Ballot, bytes]]) -> Core:
    """The node when it has synced epoch 2 with sources that tell these votes for alice's next slot."""
    link = world.watch.accounts["alice"].links[-1]
    at = SlotName(link.hash, "alice", link.height + 1)
    world.lose = lambda source, target, message: isinstance(message, SyncPart) and target == node
    questions: dict[NodeId, AskSync] = {}

    def keep(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, AskSync) and source == node:
            questions[target] = message
        return (isinstance(message, SyncPart | AskSync) and node in (source, target)) or isinstance(
            message, Prepare | Accept
        )

    world.lose = keep
    world.change(world.view.ids[0], ADD, world.guests[0])
    assert world.run_until(lambda: set(votes) <= set(questions), 10)
    for source, (ballot, raw) in votes.items():
        part = SyncPart(
            questions[source].number,
            2,
            0,
            1,
            encode_ranges(RING),
            0,
            (SyncVote(at, ballot, raw),),
            encode_ranges(EMPTY),
        )
        world.deliver(node, FromPeer(source, part))
    assert world.run_until(lambda: world.core(node).fully_active, 2)
    return world.core(node)


def proposals(world: World, count: int) -> list[bytes]:
    """Different links for alice's next slot."""
    found: list[bytes] = []
    for amount in range(1, count + 1):
        twin = grown(4, 3)
        assert isinstance(twin.pay("alice", "bob", amount, at=twin.view.ids[0]), Recorded)
        assert twin.watch.accounts["alice"].links[0].hash == world.watch.accounts["alice"].links[-1].hash
        found.append(twin.watch.accounts["alice"].links[-1].raw)
    return found


def test_the_highest_vote_is_kept_in_one_transaction_with_the_mark() -> None:
    world = grown(4, 3)
    (guest,) = world.guests
    a, b, c = world.view.ids
    low, high, lowest = proposals(world, 3)
    slot = world.watch.accounts["alice"].links[-1].hash
    commits: list[set[str]] = []
    persist = world.persist

    def note(node: object, effects: object) -> None:
        if node is world.nodes[guest]:
            commits.append({type(write).__name__ for write in effects.persist})  # type: ignore[attr-defined]
        persist(node, effects)  # type: ignore[arg-type]

    world.persist = note  # type: ignore[method-assign]
    core = merged(world, guest, {a: (Ballot(1, 3, a), low), b: (Ballot(1, 4, b), high), c: (Ballot(1, 2, c), lowest)})
    held = core.acceptor.vote(Slot(slot))
    assert held is not None
    assert held.value is not None
    assert held.value.raw == high
    assert held.promised == held.accepted == Ballot(1, 4, b)
    assert next(names for names in commits if "ActiveRow" in names and "ViewRow" not in names) >= {"VoteRow"}
    assert not any("VoteRow" in names and "ActiveRow" not in names for names in commits)
    assert held.accepted is not None
    world.crash(guest)
    world.start(guest)
    assert world.core(guest).acceptor.vote(Slot(slot)) == held
    assert decode_ranges(load_active(world.nodes[guest].conn)[2]) == world.core(guest).active != EMPTY


def test_votes_for_slots_that_are_decided_here_are_skipped() -> None:
    world = grown(4, 3)
    (guest,) = world.guests
    a, b, _ = world.view.ids
    (old,) = proposals(world, 1)
    ours = world.watch.accounts["alice"].links[-1].hash
    assert isinstance(world.pay("alice", "bob", 77, at=a), Recorded)
    assert world.run_until(lambda: world.height(guest, "alice") == 1, 5)
    world.run(3.0)
    questions: dict[NodeId, AskSync] = {}

    def keep(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, AskSync) and source == guest:
            questions[target] = message
        return isinstance(message, SyncPart | AskSync) and guest in (source, target)

    world.lose = keep
    world.change(a, ADD, guest)
    assert world.run_until(lambda: {a, b} <= set(questions), 10)
    for source in (a, b):
        vote = SyncVote(SlotName(ours, "alice", 1), Ballot(1, 3, source), old)
        part = SyncPart(questions[source].number, 2, 0, 1, encode_ranges(RING), 0, (vote,), encode_ranges(EMPTY))
        world.deliver(guest, FromPeer(source, part))
    assert world.run_until(lambda: world.core(guest).fully_active, 2)
    assert world.core(guest).acceptor.vote(Slot(ours)) is None
    rest(world)


# --- late ones ---


def test_what_became_active_late_stays_so_in_the_epochs_after() -> None:
    """A node completes the sync of epoch 2 when it has epoch 3 already: where the group is the same, it is ACTIVE there
    too."""
    world = grown(7, 5, k=3, seed=3)
    late, *others = world.view.ids
    first, second = world.guests
    world.lose = lambda source, target, message: isinstance(message, SyncPart) and target == late
    assert isinstance(world.add(others[0], first), Changed)
    assert isinstance(world.add(others[0], second), Changed)
    assert world.run_until(lambda: world.core(late).view.epoch == 3, 5)
    core = world.core(late)
    assert not core.fully_active
    world.lose = lambda source, target, message: isinstance(message, SyncPart) and target == late and message.epoch == 3
    assert world.run_until(lambda: core.syncing.active_in(2) == merged_of(core, 2), 10)
    for (low, high), group in groups(world, 2, 3):
        if late in group:
            assert holds(core.syncing.active_in(3), low.to_bytes(20))
            assert holds(core.syncing.active_in(3), high.to_bytes(20))
    assert decode_ranges(load_active(world.nodes[late].conn)[3]) == core.syncing.active_in(3)
    rest(world)


def test_who_is_not_active_yet_completes_a_sync_of_several_epochs_ago() -> None:
    """What it becomes there carries over, and in the groups of later epochs may be nobody who could tell."""
    world = grown(9, 5, k=3, seed=3)
    late, *others = world.view.ids
    world.lose = lambda source, target, message: isinstance(message, SyncPart) and target == late
    for guest in world.guests:
        assert isinstance(world.add(others[0], guest), Changed)
    assert world.run_until(lambda: world.core(late).view.epoch == 5, 5)
    core = world.core(late)
    assert core.syncing.active_in(2) != merged_of(core, 2)
    world.lose = lambda source, target, message: isinstance(message, SyncPart) and target == late and message.epoch > 2
    assert world.run_until(lambda: core.syncing.active_in(2) == merged_of(core, 2), 10)
    rest(world)


def merged_of(core: Core, epoch: int) -> object:
    """Where a node is ACTIVE once it has synced everything in an epoch."""
    view = core.views[epoch - 1]
    return merge(keys for keys, group in group_ranges(view) if core._self.id in group)


def groups(world: World, before: int, after: int) -> list[tuple[tuple[int, int], frozenset[NodeId]]]:
    """The regions that have one group in both epochs."""
    found = regions(world.watch.views[before - 1], world.watch.views[after - 1])
    return [((r.first, r.last), r.after) for r in found if r.before == r.after]


def test_a_crash_in_the_middle_of_a_sync_begins_it_again() -> None:
    world = grown(4, 3, k=5)
    world.lose = lambda source, target, message: isinstance(message, SyncPart)
    guest = grow(world)
    for node in world.ids:
        world.crash(node)
        world.start(node)
        assert world.core(node).active == EMPTY
        assert world.core(node).gauges().syncing > 0
    world.heal()
    assert world.run_until(lambda: all(world.core(node).fully_active for node in world.ids), 10)
    assert isinstance(world.pay("alice", "bob", 10, at=guest), Recorded)
    rest(world)


# --- messages that break the rules ---


def part(question: AskSync, **changed: object) -> SyncPart:
    fields = {
        "number": question.number,
        "epoch": question.epoch,
        "part": 0,
        "parts": 1,
        "active": encode_ranges(RING),
        "log": 0,
        "votes": (),
        "active_now": encode_ranges(EMPTY),
    }
    return SyncPart(**(fields | changed))  # type: ignore[arg-type]


def foreign(world: World) -> SyncVote:
    """A vote whose link is of another slot."""
    links = world.watch.accounts["alice"].links
    return SyncVote(SlotName(links[-1].hash, "alice", 1), Ballot(1, 1, world.ids[0]), links[0].raw)


def garbage(world: World) -> SyncVote:
    return SyncVote(SlotName(bytes(32), "alice", 1), Ballot(1, 1, world.ids[0]), b"\x00" * 50)


def with_the_last_ballot(world: World) -> SyncVote:
    """A vote in alice's next slot; nobody could ever propose above it."""
    last = world.watch.accounts["alice"].links[-1]
    link = build_link(world.network, "alice", last.height + 1, Slot(last.hash), last.balance, 1, 1, [], [])
    return SyncVote(SlotName(last.hash, "alice", link.height), Ballot(1, MAX_BALLOT, world.ids[0]), link.raw)


def opening_elsewhere(world: World) -> SyncVote:
    """A vote on link 0 of an account, in a slot that is no account's."""
    link = build_link(world.network, "zed", 0, Slot(bytes(32)), 0, 1, 1, [], [])
    return SyncVote(SlotName(bytes(32), "zed", 0), Ballot(1, 1, world.ids[0]), link.raw)


FAULTS: dict[str, Callable[[World], dict[str, object]]] = {
    "a part beyond the last": lambda w: {"part": 1},
    "no parts": lambda w: {"parts": 0},
    "far too many parts": lambda w: {"parts": syncing.MAX_PARTS + 1},
    "ranges that are none": lambda w: {"active": b"\x01" * 39},
    "ranges in the wrong order": lambda w: {"active": encode_ranges(((5, 6), (1, 2)))},
    "ranges now that are none": lambda w: {"active_now": b"\x01" * 41},
    "a link that is none": lambda w: {"votes": (garbage(w),)},
    "a link of another slot": lambda w: {"votes": (foreign(w),)},
    "an opening in the slot of another name": lambda w: {"votes": (opening_elsewhere(w),)},
    "the last ballot": lambda w: {"votes": (with_the_last_ballot(w),)},
}
IGNORED: dict[str, Callable[[World], dict[str, object]]] = {
    "never asked for": lambda w: {"number": 12345},
    "of an epoch that is not synced": lambda w: {"epoch": 1},
}


@pytest.mark.parametrize("name", [*FAULTS, *IGNORED])
def test_a_part_that_cannot_be_is_a_fault_and_one_that_nobody_asked_for_is_nothing(name: str) -> None:
    world = grown(4, 3)
    (guest,) = world.guests
    questions: dict[NodeId, AskSync] = {}

    def keep(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, AskSync) and source == guest:
            questions[target] = message
        return isinstance(message, SyncPart)

    world.lose = keep
    grow(world)
    source = world.view.ids[0]
    assert world.run_until(lambda: source in questions, 5)
    before = list(world.nodes[guest].conn.iterdump())
    bad = part(questions[source], **{**FAULTS, **IGNORED}[name](world))
    core = world.core(guest)
    sources = {epoch: (dict(s.sources), dict(s.arriving)) for epoch, s in core.syncing._syncs.items()}
    world.deliver(guest, FromPeer(source, bad))
    world.run(0.01)
    faults = sum(n for counter, n in core.counters.items() if counter.startswith("peer_fault"))
    assert faults == (name in FAULTS)
    assert list(world.nodes[guest].conn.iterdump()) == before
    assert {epoch: (s.sources, s.arriving) for epoch, s in core.syncing._syncs.items()} == sources
    core.counters.clear()
    rest(world)


def test_an_answer_to_somebody_elses_question_does_not_count() -> None:
    world = grown(4, 3)
    (guest,) = world.guests
    questions: dict[NodeId, AskSync] = {}

    def keep(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, AskSync) and source == guest:
            questions[target] = message
        return isinstance(message, SyncPart)

    world.lose = keep
    grow(world)
    a, b, _ = world.view.ids
    assert world.run_until(lambda: {a, b} <= set(questions), 5)
    world.deliver(guest, FromPeer(a, part(questions[b])))
    world.run(0.05)
    assert not world.core(guest).syncing._syncs[2].sources
    for _ in range(2):
        world.deliver(guest, FromPeer(a, part(questions[a])))
    world.run(0.05)
    assert set(world.core(guest).syncing._syncs[2].sources) == {a}
    assert world.core(guest).active == EMPTY


def test_parts_of_two_counts_do_not_mix() -> None:
    world = grown(4, 3)
    (guest,) = world.guests
    questions: dict[NodeId, AskSync] = {}

    def keep(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, AskSync) and source == guest:
            questions[target] = message
        return isinstance(message, SyncPart)

    world.lose = keep
    grow(world)
    source = world.view.ids[0]
    assert world.run_until(lambda: source in questions, 5)
    world.deliver(guest, FromPeer(source, part(questions[source], part=0, parts=3)))
    world.deliver(guest, FromPeer(source, part(questions[source], part=1, parts=2)))
    world.deliver(guest, FromPeer(source, part(questions[source], part=0, parts=3)))
    world.run(0.01)
    core = world.core(guest)
    assert sum(n for counter, n in core.counters.items() if counter.startswith("peer_fault")) == 1
    assert len(core.syncing._syncs[2].arriving[source].parts) == 1


def test_a_source_that_says_nothing_new_is_not_asked_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a sync waits, for a log or for more sources, it asks again whether they are ACTIVE now: not for all votes
    each time."""
    monkeypatch.setattr(syncing, "PART_BYTES", 1)
    world = World(5, 4, 3, first=4)
    names = [f"payer-{number}" for number in range(8)]
    world.open_funded(**dict.fromkeys(names, 100))
    up = world.view.ids
    world.lose = lambda source, target, message: isinstance(message, Accepted | Promise)
    for number, name in enumerate(names):
        world.submit(up[number % 4], world.pay_request(name, names[number - 1], 1), 60)
    world.run(0.6)
    parts = 0

    def lose(source: NodeId, target: NodeId, message: Message) -> bool:
        nonlocal parts
        parts += isinstance(message, SyncPart)
        return isinstance(message, Accepted | Promise) or (isinstance(message, Offer) and target in up[:2])

    world.lose = lose
    world.change(up[0], ChangeAction.ADD, world.guests[0], timeout_s=60)
    assert world.run_until(lambda: all(world.core(node).view.epoch == 2 for node in world.ids), 20)
    for node in up[2:]:
        world.crash(node)
    world.run(5)
    parts = 0
    world.run(10)
    assert not any(world.core(node).fully_active for node in world.alive)
    assert 0 < parts < 60, "one part of each question, not eight"

"""Who comes back after a while asks for what it lacks once, is answered in pieces, and looks at each link that waits
once."""

from collections.abc import Callable
from itertools import pairwise

import pytest

import chain.load
import chain.raw
from chain.link import Link, decode_link_untrusted
from chain.load import load
from chain.request import Posting
from hopchain.wire import Recorded
from node import lacking, replica
from node.events import FromPeer, Learn
from node.lacking import WANT_AGAIN_S
from node.messages import Accept, Decided, Forward, Item, Links, Message, Offer, Prepare, Pull, SlotName, Want
from node.paxos import Ballot
from node.queue import NO_GATEWAY
from node.turn import Now
from routing.broadcast import LEAF
from routing.keyspace import NodeId
from tests.node.world import EPOCH_MS, TOLD, Faults, World

Loses = Callable[[NodeId, NodeId, Message], bool]


def lagging_behind(world: World, pays: Callable[[NodeId], None]) -> tuple[NodeId, NodeId]:
    """A node that hears nothing of what `pays` does at another one, and that one. Messages stay in order, as on a
    connection."""
    world.faults = Faults(delay_s=(0.001, 0.001))
    lagging = next(node for node in world.ids if node != world.group("alice")[0])
    others = [node for node in world.ids if node != lagging]
    world.run(1)
    world.part(others, [lagging])
    pays(others[0])
    world.cut.clear()
    return lagging, others[0]


def noting(world: World, lagging: NodeId, lost: type | tuple[type, ...]) -> list[Want]:
    """What the lagging node asks for; what is lost on its way to it, logs not compared, stays lost."""
    wants: list[Want] = []

    def lose(source: NodeId, target: NodeId, message: Message) -> bool:
        if source == lagging and isinstance(message, Want):
            wants.append(message)
        return isinstance(message, Pull) or (target == lagging and isinstance(message, lost))

    world.lose = lose
    return wants


def tell(world: World, lagging: NodeId, other: NodeId, links: list[Link]) -> None:
    for link in links:
        world.deliver(lagging, FromPeer(other, Decided(link.raw, other, LEAF)))
        world.run(0.001)


def looks(monkeypatch: pytest.MonkeyPatch) -> list[Link]:
    """Each time that a link which waits is looked at again."""
    looked: list[Link] = []

    def learn(link: Link, source: NodeId, by: NodeId) -> Learn:
        looked.append(link)
        return Learn(link, source, by)

    monkeypatch.setattr(lacking, "Learn", learn)
    return looked


def assert_paid(answer: object) -> None:
    assert isinstance(answer, Recorded)


def paying(world: World, times: int) -> Callable[[NodeId], None]:
    def pays(at: NodeId) -> None:
        for _ in range(times):
            assert_paid(world.pay("alice", "bob", 1, at=at))

    return pays


# --- asking, and waking ---------------------------------------------------------------------------------------------


def test_a_chain_is_asked_for_once_and_each_of_its_links_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many of them wait, and messages about their slots."""
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    lagging, other = lagging_behind(world, paying(world, 20))
    here = world.height(lagging, "alice")
    missing = world.watch.accounts["alice"].links[here + 1 :]
    wants = noting(world, lagging, (Links, TOLD, Offer))
    looked = looks(monkeypatch)
    tell(world, lagging, other, missing[1:])
    last = SlotName(missing[-1].hash, "alice", missing[-1].height + 1)
    world.deliver(lagging, FromPeer(other, Prepare(last, Ballot(1, 1, other))))
    world.run(0.01)
    assert [want.chains for want in wants] == [(("alice", here + 1),)]
    assert not looked
    tell(world, lagging, other, missing[:1])
    world.run(0.05)
    assert world.tip(lagging, "alice") == missing[-1].hash
    assert looked == missing[1:]
    counters, there = world.core(lagging).counters, world.core(lagging).replica.lacking
    assert (counters["messages_early"], there._early, there._asked, there._waiting) == (1, {}, {}, {})
    assert len(wants) == 1


def test_a_link_that_waits_for_several_is_looked_at_when_the_last_of_them_is_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The link before it, an opening, and postings of two accounts, in whatever order."""
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0, carol=10)

    def pays(at: NodeId) -> None:
        for payer in ("carol", "mint", "carol"):
            assert isinstance(world.pay(payer, "alice", 1, at=at), Recorded)
        assert isinstance(world.pay("alice", "bob", 1, at=at), Recorded)
        assert isinstance(world.ask(at, world.open_request("dave")), Recorded)
        for payer in ("carol", "mint", "carol"):
            assert isinstance(world.pay(payer, "alice", 1, at=at), Recorded)
        assert isinstance(world.pay("alice", "dave", 1, at=at), Recorded)

    lagging, other = lagging_behind(world, pays)
    missing = {
        name: world.watch.accounts[name].links[world.height(lagging, name) + 1 :]
        for name in ("alice", "mint", "carol", "dave")
    }
    before, link = missing.pop("alice")
    noting(world, lagging, (Links, TOLD, Offer))
    looked = looks(monkeypatch)
    tell(world, lagging, other, [link, before])
    for links in missing.values():
        assert link not in looked
        tell(world, lagging, other, links)
    world.run(0.01)
    assert looked == [before, link]
    assert world.tip(lagging, "alice") == link.hash


def test_a_long_chain_is_asked_for_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a pause, as far as anybody waits for it; what waits for its end is left alone until then."""
    monkeypatch.setattr(chain.raw, "CHAIN_BATCH", 4)
    monkeypatch.setattr(lacking, "CHAIN_BATCH", 4)
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    lagging, other = lagging_behind(world, paying(world, 10))
    here = world.height(lagging, "alice")
    last = world.watch.accounts["alice"].links[-1]
    wants = noting(world, lagging, (*TOLD.__args__, Offer))
    world.deliver(lagging, FromPeer(other, Prepare(SlotName(last.hash, "alice", last.height + 1), Ballot(1, 1, other))))
    world.run(0.1)
    assert [want.chains for want in wants] == [(("alice", here + 1 + 4 * batch),) for batch in range(3)]
    assert world.tip(lagging, "alice") == last.hash
    assert world.core(lagging).counters["messages_early"] == 1
    assert not world.core(lagging).replica.lacking._asked


def test_one_peer_is_asked_for_postings_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may all be of one large link. The next question is about all that lack some by then."""
    names = [f"r{number}" for number in range(6)]
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0, **dict.fromkeys(names, 0))

    def pays(at: NodeId) -> None:
        world.settle(at, world.pay_many_request("mint", [Posting(name, 1) for name in names]))
        for name in names:
            assert isinstance(world.pay(name, "bob", 1, at=at), Recorded)

    lagging, other = lagging_behind(world, pays)
    wants = noting(world, lagging, (Links, TOLD, Offer))
    spent = [world.watch.accounts[name].links[-1] for name in names]
    tell(world, lagging, other, spent)
    assert [len(want.postings) for want in wants] == [1]
    world.run(WANT_AGAIN_S)
    assert sum(len(want.postings) for want in wants[1:]) >= len(names) - 1 and len(wants) <= 3
    wants = noting(world, lagging, (Offer, TOLD))
    assert world.run_until(lambda: all(world.tip(lagging, link.account) == link.hash for link in spent), 5)
    assert len(wants) <= 2
    assert not world.core(lagging).replica.lacking._waiters


def test_what_the_answer_about_postings_lacks_is_asked_for_at_once_and_what_came_is_not_asked_for_again() -> None:
    """Money that went from hand to hand: each of them confirms what the one before paid."""
    hands = [f"h{number}" for number in range(8)]
    world = World(3, 3, 1)
    world.open_funded(alice=0, **dict.fromkeys(hands, 0))

    def pays(at: NodeId) -> None:
        assert_paid(world.pay("mint", hands[0], 9, at=at))
        for payer, payee in pairwise(hands):
            assert_paid(world.pay(payer, payee, 9, at=at))

    lagging, other = lagging_behind(world, pays)
    wants = noting(world, lagging, (TOLD, Offer))
    last = [world.watch.accounts[name].links[-1] for name in hands[-3:-1]]
    tell(world, lagging, other, last[:1])
    world.run(0.005)
    tell(world, lagging, other, last[:1])  # it waits still, and so do some that came
    assert world.core(lagging).replica.lacking._coming
    assert world.run_until(lambda: world.tip(lagging, hands[-3]) == last[0].hash, WANT_AGAIN_S / 2)
    asked = [posting for want in wants for posting in want.postings]
    assert len(asked) == len(set(asked)) == len(wants) == 6
    tell(world, lagging, other, last[1:])
    assert world.tip(lagging, hands[-2]) == last[1].hash
    lacking_ = world.core(lagging).replica.lacking
    assert not lacking_._coming and not lacking_._postings_asked


def test_a_peer_that_is_still_answering_about_postings_is_not_asked_again() -> None:
    """On a slow line the pieces of a long answer come one by one."""
    names = [f"r{number}" for number in range(4)]
    world = World(3, 3, 1)
    world.open_funded(alice=0, **dict.fromkeys(names, 0))

    def pays(at: NodeId) -> None:
        for name in names:
            assert_paid(world.pay("mint", name, 1, at=at))
            assert_paid(world.pay(name, "alice", 1, at=at))
        assert_paid(world.pay("alice", "mint", 4, at=at))

    lagging, other = lagging_behind(world, pays)
    world.run(1)
    wants: list[Want] = []

    def lose(source: NodeId, target: NodeId, message: Message) -> bool:
        if (source, target) == (lagging, other) and isinstance(message, Want):
            wants.append(message)
        return isinstance(message, Pull) or (target == lagging and isinstance(message, (Links, TOLD, Offer)))

    world.lose = lose
    tell(world, lagging, other, [world.watch.accounts["alice"].links[-1]])
    assert [len(want.postings) for want in wants] == [len(names)]
    for name in names:
        world.run(0.8 * WANT_AGAIN_S)
        assert len(wants) == 1
        world.deliver(lagging, FromPeer(other, Links((world.watch.accounts[name].links[-1].raw,))))


def test_who_lacks_the_income_of_many_accounts_asks_each_peer_for_the_chain_that_paid_them_once() -> None:
    """A large link is not sent once for each of its recipients who spends. All who tell of it are asked: it may be a
    vote, or they die."""
    world = World(3, 3, 1)
    names = [f"r{number}" for number in range(12)]
    world.open_funded(alice=100, bob=0, **dict.fromkeys(names, 0))
    lagging, other = lagging_behind(
        world, lambda at: assert_paid(world.ask(at, world.pay_many_request("mint", [Posting(n, 1) for n in names])))
    )
    wants = noting(world, lagging, (Links, TOLD, Offer))
    for name in names:
        if world.group(name)[0] == lagging:
            world.submit(other, world.pay_request(name, "bob", 1))
    world.run(0.25)
    assert sum(len(want.chains) for want in wants) == 2


@pytest.mark.parametrize("members", [3, 5])
@pytest.mark.parametrize("only_voted", [True, False], ids=["has only voted for it", "sends nothing"])
def test_income_is_asked_of_all_who_tell_of_it(members: int, only_voted: bool) -> None:
    """One of them has it as a vote alone, or its answers are lost: the others have the link."""
    world = World(members, members, 1)
    world.open_funded(alice=0, bob=0)
    owner = world.group("alice")[0]
    others = [node for node in world.ids if node != owner]

    def lose(source: NodeId, target: NodeId, message: Message) -> bool:
        if isinstance(message, TOLD | Offer) and (target == owner or (only_voted and target == others[0])):
            return True
        if source == others[0] and isinstance(message, Links):
            return True
        return target == owner and isinstance(message, Accept | Forward) and message.at.account == "mint"

    world.lose = lose
    assert_paid(world.pay("mint", "alice", 5, at=others[-1]))
    assert world.height(owner, "mint") < world.height(others[-1], "mint")
    call = world.submit(owner, world.pay_request("alice", "bob", 3))
    assert world.run_until(lambda: call.answer is not None, 0.25)
    assert_paid(call.answer)


def test_a_chain_of_large_links_is_asked_for_answer_by_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer may end before a batch is full; what came early has no time at which it would ask again."""
    monkeypatch.setattr(chain.raw, "CHAIN_BATCH_BYTES", 1500)
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    lagging, other = lagging_behind(world, paying(world, 20))
    last = world.watch.accounts["alice"].links[-1]
    wants = noting(world, lagging, (*TOLD.__args__, Offer))
    world.deliver(lagging, FromPeer(other, Prepare(SlotName(last.hash, "alice", last.height + 1), Ballot(1, 1, other))))
    world.run(0.25)
    assert world.tip(lagging, "alice") == last.hash
    assert len(wants) == len({want.chains for want in wants}) > 5


def test_a_question_that_nothing_answers_is_not_put_off_for_what_others_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such questions would pile up as long as somebody's answer is cut."""
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    paying(world, 6)(world.ids[0])
    world.run(1)
    links = world.watch.accounts["alice"].links[-6:]
    monkeypatch.setattr(chain.raw, "WANTED_BYTES", 2 * max(len(link.raw) for link in links))
    node, first, second = world.ids
    core = world.core(node)
    for height in range(1000, 1005):
        wants = [
            FromPeer(first, Want(links=tuple(link.hash for link in links))),
            FromPeer(second, Want(chains=(("alice", height),))),
        ]
        now = Now(world.now, EPOCH_MS + int(1000 * world.now))
        loaded = load(world.nodes[node].conn, core.needs(wants, now))
        assert loaded.cut
        core.step(loaded, now)
        assert not core._again


@pytest.mark.parametrize("pulls", [False, True], ids=["no log is read", "logs are read"])
def test_postings_of_a_link_that_finds_no_room_are_asked_for_once_in_a_while(
    monkeypatch: pytest.MonkeyPatch, pulls: bool
) -> None:
    """It would come, be dropped and be asked for again as fast as messages go."""
    world = World(3, 3, 1)
    world.open_funded(alice=0, carol=50, bob=0)

    def pays(at: NodeId) -> None:
        for payee in ("bob", "bob", "bob", "alice"):
            assert_paid(world.pay("carol", payee, 1, at=at))
        assert_paid(world.pay("alice", "bob", 1, at=at))

    lagging, other = lagging_behind(world, pays)
    world.run(1)
    last = world.watch.accounts["alice"].links[-1]
    monkeypatch.setattr(lacking, "MAX_WAITING_BYTES", len(last.raw))
    wants: list[Want] = []

    def lose(source: NodeId, target: NodeId, message: Message) -> bool:
        if source == lagging and isinstance(message, Want) and message.postings:
            wants.append(message)
        return (isinstance(message, Pull) and not pulls) or (target == lagging and isinstance(message, TOLD))

    world.lose = lose
    tell(world, lagging, other, [last])
    for _ in range(100):
        world.run(0.01)
        world.deliver(lagging, FromPeer(other, Links(())))  # other answers
    assert 1 <= len(wants) <= 2 * (1 / WANT_AGAIN_S) + 1, "each of two peers"
    monkeypatch.undo()
    assert world.run_until(lambda: world.tip(lagging, "alice") == last.hash, 5) or not pulls


@pytest.mark.parametrize("bound", [10**6, 1500], ids=["a whole answer", "a part"])
def test_a_chain_is_answered_without_a_gap_though_a_link_of_it_is_applied_meanwhile(
    monkeypatch: pytest.MonkeyPatch, bound: int
) -> None:
    """What is applied in the turn of the answer continues what was loaded for it, or is much later. Who asked goes on
    from the end."""
    monkeypatch.setattr(chain.raw, "CHAIN_BATCH_BYTES", bound)
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    lagging, other = lagging_behind(world, paying(world, 9))
    third = next(node for node in world.ids if node not in (lagging, other))
    links = world.watch.accounts["alice"].links
    while world.group("alice")[0] != third:
        paying(world, 1)(other)
        world.run(1)
    sent: list[Links] = []

    def lose(source: NodeId, target: NodeId, message: Message) -> bool:
        if (source, target) == (other, lagging) and isinstance(message, Links):
            sent.append(message)
        return source == lagging or isinstance(message, (*TOLD.__args__, Pull, Links))

    world.lose = lose
    paying(world, 1)(third)
    assert world.tip(other, "alice") == links[-2].hash, "the last link is a vote there"
    sent.clear()
    world.deliver(other, FromPeer(third, Decided(links[-1].raw, third, LEAF)))
    world.deliver(other, FromPeer(lagging, Want((("alice", 2),))))
    world.run(0.01)
    assert world.tip(other, "alice") == links[-1].hash
    (answer,) = sent
    last = links[-1].height if bound == 10**6 else 3
    assert [decode_link_untrusted(raw).height for raw in answer.links] == list(range(2, last + 1))


def test_two_chains_of_one_question_are_each_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one does not fit in the message of the first."""
    monkeypatch.setattr(chain.raw, "CHAIN_BATCH_BYTES", 3000)
    monkeypatch.setattr(replica, "REPLY_BYTES", 3000)
    world = World(3, 3, 1)
    world.open_funded(alice=100, carol=100, bob=0, dave=0)

    def pays(at: NodeId) -> None:
        for payer, payee, times in (
            ("carol", "dave", 2),
            ("alice", "bob", 30),
            ("alice", "carol", 1),
            ("carol", "bob", 1),
        ):
            for _ in range(times):
                assert_paid(world.pay(payer, payee, 1, at=at))

    lagging, other = lagging_behind(world, pays)
    world.run(1)
    last = [world.watch.accounts[name].links[-1] for name in ("carol", "alice")]
    noting(world, lagging, (Links, *TOLD.__args__, Offer))
    for link in last:
        world.deliver(lagging, FromPeer(other, Decided(link.raw, other, LEAF)))
    world.run(0.01)
    assert len(world.core(lagging).replica.lacking) == 2, "the answer is lost, and both are asked for again at once"
    sent: list[bytes] = []
    wants: list[Want] = []

    def lose(source: NodeId, target: NodeId, message: Message) -> bool:
        if source == lagging and isinstance(message, Want):
            wants.append(message)
        if target == lagging and isinstance(message, Links):
            sent.extend(message.links)
        return isinstance(message, Pull) or (target == lagging and isinstance(message, (*TOLD.__args__, Offer)))

    world.lose = lose
    assert world.run_until(lambda: all(world.tip(lagging, link.account) == link.hash for link in last), 3)
    assert len(wants[0].chains) == 2
    assert len(sent) == len(set(sent)) > 30


# --- answers in pieces ----------------------------------------------------------------------------------------------


def test_a_pull_goes_on_from_what_came_of_a_bounded_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for its time to run out, and nothing is sent twice."""
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    lagging, _ = lagging_behind(world, paying(world, 20))
    missing = world.watch.accounts["alice"].links[world.height(lagging, "alice") + 1 :]
    bound = 4 * max(len(link.raw) for link in missing)
    monkeypatch.setattr(chain.raw, "WANTED_BYTES", bound)
    monkeypatch.setattr(replica, "REPLY_BYTES", bound // 2)
    wants: list[int] = []
    sent: dict[float, int] = {}

    def lose(source: NodeId, target: NodeId, message: Message) -> bool:
        if source == lagging and isinstance(message, Want):
            wants.append(len(message.links))
        if target == lagging and isinstance(message, Links):
            sent[world.now] = sent.get(world.now, 0) + sum(map(len, message.links))
        return isinstance(message, TOLD)

    world.lose = lose
    assert world.run_until(lambda: bool(wants), 10)
    started = world.now
    assert world.run_until(lambda: world.tip(lagging, "alice") == missing[-1].hash, 1.0)
    assert world.now - started < 0.1
    assert wants == [20, 16, 12, 8, 4]
    assert max(sent.values()) <= bound
    assert sum(sent.values()) == sum(len(link.raw) for link in missing)


def test_a_link_of_a_pull_that_waits_for_another_of_it_asks_for_nothing() -> None:
    """What it stands on was asked for with it."""
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    lagging, _ = lagging_behind(world, paying(world, 2))
    first, second = world.watch.accounts["alice"].links[-2:]
    pulled: list[NodeId] = []

    def lose(source: NodeId, target: NodeId, message: Message) -> bool:
        if source == lagging and isinstance(message, Want):
            assert set(message.links) == {first.hash, second.hash}
            pulled.append(target)
        return isinstance(message, TOLD) or (target == lagging and isinstance(message, Links))

    world.lose = lose
    assert world.run_until(lambda: bool(pulled), 10)
    for link in (second, first):
        world.deliver(lagging, FromPeer(pulled[0], Links((link.raw,))))
        world.run(0.01)
    assert world.tip(lagging, "alice") == second.hash
    assert len(pulled) == 1


def test_who_finds_no_room_in_a_turn_is_answered_in_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    paying(world, 6)(world.ids[0])
    links = world.watch.accounts["alice"].links[-6:]
    monkeypatch.setattr(chain.raw, "WANTED_BYTES", 2 * max(len(link.raw) for link in links))
    asked, *others = world.ids
    got: dict[NodeId, list[bytes]] = {node: [] for node in others}

    def lose(source: NodeId, target: NodeId, message: Message) -> bool:
        if source == asked and isinstance(message, Links):
            got[target] += message.links or (b"",)
        return False

    world.lose = lose
    for node, wanted in zip(others, (links[:3], links[3:]), strict=True):
        world.deliver(asked, FromPeer(node, Want(links=tuple(link.hash for link in wanted))))
    world.run(0.01)
    assert list(got.values()) == [[*(link.raw for link in some[:2]), b""] for some in (links[:3], links[3:])]


@pytest.mark.parametrize("room", [lacking.MAX_WAITING_BYTES, 0])
def test_logs_are_read_on_while_a_link_waits_for_what_is_on_a_later_page(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or found no room to wait. Else what waits for it, and fills all the room, would keep it away for ever."""
    monkeypatch.setattr(chain.load, "LOG_BATCH", 4)
    monkeypatch.setattr(lacking, "MAX_WAITING_BYTES", room)
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    lagging, other = lagging_behind(world, paying(world, 12))
    last = world.watch.accounts["alice"].links[-1]
    offers: list[Offer] = []

    def lose(source: NodeId, target: NodeId, message: Message) -> bool:
        if target == lagging and isinstance(message, Offer):
            offers.append(message)
            world.deliver(lagging, FromPeer(other, Decided(last.raw, other, LEAF)))
        return isinstance(message, TOLD) or (isinstance(message, Want) and not message.links)

    world.lose = lose
    assert world.run_until(lambda: world.tip(lagging, "alice") == last.hash, 20)
    assert len({offer.after for offer in offers}) >= 3


# --- bounds of bytes ------------------------------------------------------------------------------------------------


def test_proposals_that_come_early_leave_half_of_the_room_to_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are sent again. When the parent comes there is room for as many again."""
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    lagging, other = lagging_behind(world, paying(world, 3))
    *_, parent, link = world.watch.accounts["alice"].links
    signed = world.pay_request("alice", "bob", 1)
    accept = Accept(SlotName(parent.hash, "alice", link.height), Ballot(1, 0, other), link.raw)
    forward = Forward(
        SlotName(link.hash, "alice", link.height + 1), (Item(signed.raw, signed.signature, NO_GATEWAY),), True
    )
    monkeypatch.setattr(lacking, "MAX_EARLY_BYTES", 2 * len(link.raw) + len(signed.raw))
    noting(world, lagging, (Links, TOLD, Offer))
    counters, there = world.core(lagging).counters, world.core(lagging).replica.lacking
    sizes = []
    for message in (accept, accept, forward, forward, forward, accept):
        world.deliver(lagging, FromPeer(other, message))
        world.run(0.001)
        sizes.append(there._early_bytes)
    one, more = len(link.raw), len(signed.raw)
    assert sizes[:3] == [one, one, one + more]
    assert max(sizes) <= lacking.MAX_EARLY_BYTES and sizes[-1] == sizes[-2]
    assert counters["messages_dropped"] >= 2
    noting(world, lagging, Offer)
    world.heal()
    world.run(5)
    assert (there._early_bytes, there._early_count, there._early) == (0, 0, {})


def test_links_that_wait_are_bounded_by_their_bytes_and_what_found_no_room_is_pulled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    lagging, other = lagging_behind(world, paying(world, 8))
    missing = world.watch.accounts["alice"].links[world.height(lagging, "alice") + 1 :]
    size = max(len(link.raw) for link in missing)
    monkeypatch.setattr(lacking, "MAX_WAITING_BYTES", 3 * size)
    noting(world, lagging, (Links, TOLD, Offer))
    tell(world, lagging, other, missing[1:])
    counters, there = world.core(lagging).counters, world.core(lagging).replica.lacking
    assert (counters["links_waited"], counters["links_dropped"]) == (3, 4)
    assert 2 * size < there._waiting_bytes <= 3 * size
    world.heal()
    assert world.run_until(lambda: world.tip(lagging, "alice") == missing[-1].hash, 10)
    assert there._waiting_bytes == 0

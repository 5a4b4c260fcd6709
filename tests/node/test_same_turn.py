"""What happens within one turn: rows that were loaded before a link of the same turn was applied."""

from collections import Counter

import pytest

from chain.errors import RemoteFault
from chain.link import Outcome
from chain.needs import Loaded, Needs
from chain.request import DecodedRequest, NetworkId, Posting, cancellation, encode_request, sign, transfer
from hopchain.wire import NotStarted, Recorded, Stale
from node.decoded import DECODED_REQUEST_BYTES, OBJECT_BYTES, LinkDecoder, RequestDecoder
from node.events import FormLink, FromPeer
from node.lacking import MAX_WANT_AGAIN_S
from node.messages import (
    Accept,
    AskIncome,
    Decided,
    DecidedHash,
    Forward,
    IncomeAnswer,
    Item,
    Links,
    Moved,
    Offer,
    Prepare,
    Pull,
    SlotAnswer,
    SlotName,
    Want,
)
from node.paxos import Ballot
from node.queue import LookedUp
from routing.broadcast import LEAF
from routing.keyspace import NodeId
from tests.node.world import TOLD, World, key_of


def test_a_vote_that_is_decided_in_the_turn_of_a_question_about_income_is_not_forgotten() -> None:
    """alice's payment is decided and answered. One of its voters hears so in the very turn in which carol's owner, who
    knows nothing of it, asks what carol has: the vote is gone, and the rows were loaded before the link was applied."""
    for seed in range(1, 60):
        world = World(5, 5, seed)
        world.open_funded(alice=1000, carol=0, bob=0)
        payer, asker = world.group("alice")[0], world.group("carol")[0]
        if payer != asker:
            break
    assert payer != asker
    voter, other_voter, stranger = [n for n in world.ids if n not in (payer, asker)]
    late: list[Decided | DecidedHash] = []
    asked: list[NodeId] = []

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, Accept) and message.at.account == "alice":
            return target in (asker, stranger)
        if isinstance(message, TOLD) and source == payer:
            if target == voter:
                late.append(message)
            return True
        if isinstance(message, AskIncome) and source == asker and target != stranger:
            asked.append(target)
            if target == voter:
                while late:
                    world.deliver(voter, FromPeer(payer, late.pop()))
                world.deliver(voter, FromPeer(asker, message))
            return True
        return isinstance(message, Offer | Pull)

    world.lose = lose
    paid = world.pay("alice", "carol", 500, at=payer)
    assert isinstance(paid, Recorded)
    assert paid.outcome == Outcome.COMPLETED
    spent = world.ask(asker, world.pay_request("carol", "bob", 100))
    assert isinstance(spent, Recorded)
    assert Outcome(spent.outcome) is Outcome.COMPLETED
    assert {voter, other_voter, payer} <= {*asked, payer}


def test_a_pinned_request_in_the_turn_of_the_links_that_it_missed_is_stale() -> None:
    world = World(3, 3, 3)
    world.open_funded(alice=1000, bob=0)
    lagging = next(n for n in world.ids if n != world.group("alice")[0])
    others = [n for n in world.ids if n != lagging]
    world.part(others, [lagging])
    world.pay("alice", "bob", 1, at=others[0])
    old = world.tip(others[0], "alice")
    world.pay("alice", "bob", 1, at=others[0])
    rows = world.nodes[others[0]].conn.execute(
        "SELECT header, body FROM links WHERE account = 'alice' ORDER BY height DESC LIMIT 2"
    )
    raws = [header + body for header, body in rows][::-1]
    world.deliver(lagging, FromPeer(others[0], Links(tuple(raws))))
    call = world.submit(lagging, world.pay_request("alice", "bob", 5, tip=old))
    world.run(0.5)
    assert isinstance(call.answer, Stale), call.answer


def test_what_cannot_be_asked_is_not_started_and_its_client_is_told_so() -> None:
    """The owner asks for three seconds; the gateway must not have given the request to anybody else meanwhile."""
    world = World(5, 5, 4)
    world.open_funded(alice=1000, carol=0, bob=0)
    world.lose = lambda source, target, message: isinstance(message, IncomeAnswer)
    for node in (world.group("carol")[0], world.group("carol")[-1]):
        answer = world.ask(node, world.pay_request("carol", "bob", 100), 10.0)
        assert isinstance(answer, NotStarted), answer
        assert answer.code == "not_askable"


def test_many_messages_that_wait_for_one_chain_ask_for_it_once() -> None:
    world = World(3, 3, 3)
    world.open_funded(alice=1000, bob=0)
    lagging = next(n for n in world.ids if n != world.group("alice")[0])
    others = [n for n in world.ids if n != lagging]
    world.part(others, [lagging])
    for _ in range(20):
        world.pay("alice", "bob", 1, at=others[0])
    world.cut.clear()
    seen: Counter[str] = Counter()

    def count(source: NodeId, target: NodeId, message: object) -> bool:
        seen[type(message).__name__] += isinstance(message, Want) and source == lagging
        return isinstance(message, Offer)

    world.lose = count
    at = SlotName(world.tip(others[0], "alice"), "alice", world.height(others[0], "alice") + 1)
    for _ in range(100):
        world.deliver(lagging, FromPeer(others[0], Prepare(at, Ballot(1, 1, others[0]))))
    world.run(0.25)
    assert world.height(lagging, "alice") == world.height(others[0], "alice")
    assert 1 <= seen["Want"] <= 3, seen


def test_income_that_arrives_in_the_turn_that_forms_is_not_overlooked() -> None:
    """bob has paid alice and knows it. alice's owner has voted for that, asks what she has and, in the very turn in
    which it forms her next link, hears that it is decided: the rows of that link were loaded before, and do not show
    the money."""
    for seed in range(1, 60):
        world = World(2, 2, seed)
        world.open_funded(alice=0, carol=0, bob=1000)
        payer, owner = world.group("bob")[0], world.group("alice")[0]
        if payer != owner:
            break
    assert payer != owner
    late: list[Decided | DecidedHash] = []

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, TOLD) and source == payer:
            late.append(message)
            return True
        return isinstance(message, Offer | Pull | Links)

    world.lose = lose
    paid = world.pay("bob", "alice", 500, at=payer)
    assert isinstance(paid, Recorded) and paid.outcome == Outcome.COMPLETED
    world.lose = lambda source, target, message: False
    call = world.submit(owner, world.pay_request("alice", "carol", 100))
    assert world.run_until(lambda: any(isinstance(event, FormLink) for event in world.core(owner)._again), 1)
    world.deliver(owner, FromPeer(payer, late.pop()))
    world.run(1)
    assert isinstance(call.answer, Recorded) and call.answer.outcome == Outcome.COMPLETED


def test_a_request_whose_rows_are_not_here_waits_for_them() -> None:
    """A payment and the cancel of another one reach alice's owner in one turn. Only the first is looked up for forming:
    the cancel must not be judged without knowing that its target has executed."""
    world = World(3, 3, 3)
    world.open_funded(alice=1000, bob=0)
    first = world.pay_request("alice", "bob", 5)
    assert isinstance(world.ask(world.group("alice")[0], first), Recorded)
    owner = world.group("alice")[0]
    gateway = next(node for node in world.ids if node != owner)
    second = world.pay_request("alice", "bob", 6)
    at = SlotName(world.tip(owner, "alice"), "alice", world.height(owner, "alice") + 1)
    world.deliver(owner, FromPeer(gateway, Forward(at, (Item(second.raw, second.signature, gateway),), False)))
    undo = sign(cancellation(world.network, "alice", first.request_id, bytes(32)), key_of("alice"))
    call = world.submit(owner, undo)
    world.run(2)
    assert isinstance(call.answer, Recorded) and call.answer.outcome == Outcome.ALREADY_DECIDED
    assert not world.core(owner).owner._looked_up, "what one turn has loaded says nothing in the next"


def test_no_more_is_looked_up_than_one_link_can_hold() -> None:
    looked_up = LookedUp()
    requests = [payment(number, postings=3000) for number in range(4)]
    assert [looked_up.add(decoded) for decoded in requests] == [True, True, False, False]
    assert looked_up.add(requests[0]), "what is looked up is"
    assert len(looked_up.ids) == 2


def payment(number: int, postings: int = 1) -> DecodedRequest:
    """One of alice's."""
    request = transfer(NetworkId(bytes(32)), "alice", [Posting("bob", 1)] * postings, number.to_bytes(32, "big"))
    return RequestDecoder().untrusted(encode_request(request), bytes(64))


def test_what_strangers_send_is_kept_within_bounds() -> None:
    """A client may send one request with ever other signatures, none of which is looked at before it is decoded."""
    decoder = RequestDecoder()
    raw = payment(1).signed.raw
    with pytest.raises(RemoteFault, match="a signature of 1000000 bytes, where one has 64"):
        decoder.untrusted(raw, bytes(1_000_000))
    most = 0
    for number in range(DECODED_REQUEST_BYTES // OBJECT_BYTES):
        decoder.untrusted(raw, number.to_bytes(64, "big"))
        most = max(most, len(decoder._requests._values))
    assert 0 < most * (len(raw) + 64 + OBJECT_BYTES) <= DECODED_REQUEST_BYTES


def test_what_the_links_of_a_turn_make_is_looked_for_in_them_and_not_by_its_hash() -> None:
    world = World(3, 3, 1)
    world.open_funded(alice=10, bob=0)
    assert isinstance(world.pay("alice", "bob", 1, at=world.ids[0]), Recorded)
    link = world.watch.accounts["alice"].links[-1]
    needs = Needs()
    world.core(world.ids[0]).replica.needs_link(link, needs)
    assert needs.made == set(link.posting_hashes)


def test_a_link_that_waits_for_what_does_not_come_is_looked_at_less_and_less_and_at_once_when_it_comes() -> None:
    """Each look searches for all that it confirms."""
    world = World(3, 3, 1)
    world.open_funded(alice=10, bob=0)
    lagging = next(n for n in world.ids if n != world.group("alice")[0])
    others = [n for n in world.ids if n != lagging]
    other = others[0]
    world.part(others, [lagging])
    assert isinstance(world.pay("alice", "bob", 5, at=other), Recorded)
    assert isinstance(world.pay("bob", "alice", 1, at=other), Recorded)
    paid, taken = (world.watch.accounts[name].links[-1] for name in ("alice", "bob"))
    assert taken.confirmed == paid.posting_hashes
    asked: list[float] = []

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, Want) and source == lagging:
            asked.append(world.now)
        return target == lagging and isinstance(message, Links | TOLD | Offer | Accept)

    world.lose = lose
    world.cut.clear()
    world.deliver(lagging, FromPeer(other, Decided(taken.raw, other, LEAF)))
    world.run(20)
    assert 5 <= len(asked) <= 14, asked
    assert asked[1] - asked[0] < 1
    assert asked[-1] - asked[-2] >= MAX_WANT_AGAIN_S
    world.deliver(lagging, FromPeer(other, Decided(paid.raw, other, LEAF)))
    world.run(0.1)
    assert world.height(lagging, "bob") == taken.height


def test_what_a_waiting_link_lacks_is_asked_for_again_from_where_the_chain_ends_here() -> None:
    """From its beginning on, an answer of one batch would never reach what is lacking."""
    world = World(3, 3, 1)
    world.open_funded(alice=10, bob=0)
    lagging = next(n for n in world.ids if n != world.group("alice")[0])
    other, *_ = others = [n for n in world.ids if n != lagging]
    assert isinstance(world.pay("alice", "bob", 1, at=other), Recorded)
    world.run(1)
    world.part(others, [lagging])
    for _ in range(2):
        assert isinstance(world.pay("alice", "bob", 1, at=other), Recorded)
    here, last = world.height(lagging, "alice"), world.watch.accounts["alice"].links[-1]
    assert last.height == here + 2
    asked: list[Want] = []

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, Want) and source == lagging:
            asked.append(message)
        return target == lagging and isinstance(message, Links | TOLD | Offer | Accept)

    world.lose = lose
    world.cut.clear()
    world.deliver(lagging, FromPeer(other, Decided(last.raw, other, LEAF)))
    world.run(4)
    assert len(asked) >= 3
    assert {want.chains for want in asked} == {(("alice", here + 1),)}


def lagging_voter(world: World) -> NodeId:
    """One that votes for what alice pays and does not make it."""
    return next(n for n in world.ids if n != world.group("alice")[0])


def test_what_a_log_holds_and_this_node_voted_for_is_decided_and_need_not_be_sent() -> None:
    world = World(3, 3, 1)
    world.open_funded(alice=10, bob=0)
    lagging = lagging_voter(world)
    unhelpful = TOLD | Links | Moved | SlotAnswer
    world.lose = lambda source, target, message: target == lagging and isinstance(message, unhelpful)
    owner = world.group("alice")[0]
    assert isinstance(world.pay("alice", "bob", 5, at=owner), Recorded)
    world.run(0.02)
    height = world.height(owner, "alice")
    assert world.height(lagging, "alice") < height
    assert world.run_until(lambda: world.height(lagging, "alice") == height, 8.0)
    world.lose = lambda source, target, message: False
    world.run(5.0)
    world.assert_equal_replicas()
    assert not world.core(lagging).pulling._offered, "what a log was found to hold is kept for its turn"


def test_a_vote_of_the_turn_that_brings_the_log_is_not_taken_from_it_because_its_rows_are_not_loaded() -> None:
    world = World(3, 3, 1)
    world.open_funded(alice=10, bob=0)
    lagging, owner = lagging_voter(world), world.group("alice")[0]
    world.core(lagging).replica.familiar.assets.clear()
    accepts: list[Accept] = []
    together = 0

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        nonlocal together
        if target != lagging:
            return False
        if isinstance(message, Accept):
            accepts.append(message)
            return True
        if isinstance(message, Offer) and accepts and message.hashes:
            world.deliver(lagging, FromPeer(owner, accepts.pop()))
            world.deliver(lagging, FromPeer(source, message))
            together += 1
            return True
        return isinstance(message, TOLD)

    world.lose = lose
    assert isinstance(world.pay("alice", "bob", 5, at=owner), Recorded)
    height = world.height(owner, "alice")
    assert world.run_until(lambda: world.height(lagging, "alice") == height, 8.0)
    assert together
    assert world.core(lagging).counters["links_waited"] == 0


def test_a_link_is_sent_to_who_asks_for_it_by_its_hash_in_the_turn_that_applies_it() -> None:
    """It was not here when the rows of the turn were loaded."""
    world = World(3, 3, 1)
    world.open_funded(alice=10, bob=0)
    lagging, owner = lagging_voter(world), world.group("alice")[0]
    sent: list[Links] = []

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if (source, target) == (lagging, owner) and isinstance(message, Links):
            sent.append(message)
        return target == lagging and isinstance(message, TOLD | Links | Offer)

    world.lose = lose
    assert isinstance(world.pay("alice", "bob", 5, at=owner), Recorded)
    link = world.watch.accounts["alice"].links[-1]
    assert world.height(lagging, "alice") < link.height
    world.deliver(lagging, FromPeer(owner, Decided(link.raw, owner, LEAF)))
    world.deliver(lagging, FromPeer(owner, Want(links=(link.hash,))))
    world.run(0.01)
    assert sent == [Links((link.raw,))]


@pytest.mark.parametrize(("postings", "most"), [(1, 100), (8190, 2)])
def test_a_large_link_gets_the_time_that_it_takes(postings: int, most: int) -> None:
    """Sent again too early it makes those slower who are at it. Nobody hears the owner's voters here: in 2.5 s a small
    link is sent again and again, and its voters see to it; a large one is sent twice."""
    world = World(3, 3, 1)
    world.open_funded(alice=10_000, bob=0)
    owner = world.group("alice")[0]
    times: Counter[NodeId] = Counter()

    def lose(source: NodeId, target: NodeId, message: object) -> bool:
        if isinstance(message, Accept) and source == owner:
            times[target] += 1
        return target == owner

    world.lose = lose
    world.submit(owner, world.pay_many_request("alice", [Posting("bob", 1)] * postings))
    world.run(2.5)
    assert len(times) == 2
    assert all(most // 20 < count <= most for count in times.values()), times
    stuck = sum(world.core(n).counters["votes_stuck"] for n in world.ids if n != owner)
    assert (stuck == 0) == (postings > 1)


def test_the_decoder_keeps_the_newest() -> None:
    decoder = RequestDecoder()
    raw = payment(1).signed.raw
    first = decoder.untrusted(raw, bytes(64))
    assert decoder.untrusted(raw, bytes(64)) is first
    for number in range(1, DECODED_REQUEST_BYTES // OBJECT_BYTES):
        last = decoder.untrusted(raw, number.to_bytes(64, "big"))
    assert decoder.untrusted(raw, number.to_bytes(64, "big")) is last
    assert decoder.untrusted(raw, bytes(64)) is not first


def test_postings_of_a_link_of_this_turn_are_known_by_their_own_amounts() -> None:
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0, carol=0)
    paid = world.pay_many_request("alice", [Posting("bob", 5), Posting("carol", 6), Posting("bob", 7)])
    assert isinstance(world.ask(world.ids[0], paid), Recorded)
    link = world.watch.accounts["alice"].links[-1]
    loaded = Loaded()
    loaded.note_made(link)
    rows = [loaded.posting(posting) for posting in link.posting_hashes]
    assert [(row.sender, row.recipient, row.amount) for row in rows if row] == [
        ("alice", "bob", 5),
        ("alice", "carol", 6),
        ("alice", "bob", 7),
    ]


def test_a_large_proposal_is_sent_again_at_once_to_who_comes_back() -> None:
    """And once more a second later, when who has just started may vote; not two seconds after the last try."""
    world = World(3, 3, 1)
    world.open_funded(alice=10_000, bob=0)
    owner = world.group("alice")[0]
    others = [n for n in world.ids if n != owner]
    world.lose = lambda source, target, message: isinstance(message, Accept)
    call = world.submit(owner, world.pay_many_request("alice", [Posting("bob", 1)] * 8190))
    world.run(0.2)
    for node in others:
        world.crash(node)
    world.run(1.0)
    world.lose = lambda source, target, message: False
    for node in others:
        world.start(node)
    assert world.run_until(lambda: call.answer is not None, 1.6)


def test_decoded_links_are_counted_with_what_they_are_made_of() -> None:
    """A link of thousands of requests takes several times its bytes."""
    world = World(3, 3, 1)
    world.open_funded(alice=10, bob=0)
    assert isinstance(world.pay("alice", "bob", 5, at=world.ids[0]), Recorded)
    link = world.watch.accounts["alice"].links[-1]
    decoder = LinkDecoder()
    assert decoder.untrusted(link.raw) is decoder.untrusted(bytes(bytearray(link.raw)))
    assert decoder._links._bytes >= 4 * len(link.raw) + 2 * OBJECT_BYTES

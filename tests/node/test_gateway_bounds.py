"""What a gateway keeps for its clients is bounded, and what it says is never more than it knows (design R13)."""

import hashlib
from collections.abc import Callable

import pytest

from chain.errors import Corruption
from chain.link import HEADER_BYTES, LinkHash
from chain.load import load
from chain.request import Posting, RequestId, is_signed_by
from hopchain.wire import Changed, NotStarted, Recorded, Refused, Stale, Submit, Unknown
from node import admission, gateway, jobs
from node.events import Caller, ClientGone, ClientSubmit, DiskSpace, Event, FromPeer, ToldRemoved
from node.messages import Declined, Forward, Message, Moved, NotOwner, SlotName
from routing.keyspace import NodeId
from tests.chain.bank import put_link
from tests.node.watch import Call
from tests.node.world import World


@pytest.fixture
def world() -> World:
    world = World(3, 3, 1)
    world.open_funded(alice=100, bob=0)
    return world


def handed_to_nobody(world: World, timeout_s: float) -> tuple[NodeId, NodeId, Call]:
    """A request whose hand-overs are lost: its gateway, the owner, and the call."""
    owner, gate, _ = world.group("alice")
    world.lose = lambda source, target, message: isinstance(message, Forward)
    return gate, owner, world.submit(gate, world.pay_request("alice", "bob", 1), timeout_s)


def declined(world: World, gate: NodeId, owner: NodeId, call: Call) -> None:
    assert call.signed is not None
    job = world.core(gate).jobs.get(call.signed.request_id)
    assert job is not None
    dropped = Declined("alice", (call.signed.request_id,), "busy", "20000 requests wait here", (job.number,))
    world.deliver(gate, FromPeer(owner, dropped))
    world.run(0.01)


def test_who_dropped_a_request_that_nobody_else_had_is_believed(world: World) -> None:
    gate, owner, call = handed_to_nobody(world, 10.0)
    world.run(0.1)
    declined(world, gate, owner, call)
    assert isinstance(call.answer, NotStarted) and call.answer.code == "busy"


def test_that_one_of_two_dropped_a_request_ends_nothing(world: World) -> None:
    gate, owner, call = handed_to_nobody(world, 10.0)
    assert world.run_until(lambda: world.core(gate).counters["jobs_handed_again"] > 0, 8)
    declined(world, gate, owner, call)
    assert call.answer is None
    world.heal()
    assert world.run_until_answered([call], 10)
    assert isinstance(call.answer, Recorded)


def test_a_request_that_ended_in_doubt_is_not_called_not_started_when_it_comes_again(world: World) -> None:
    gate, owner, call = handed_to_nobody(world, 0.3)
    assert world.run_until_answered([call], 1)
    assert isinstance(call.answer, Unknown)
    assert call.signed is not None
    again = world.submit(gate, call.signed, 0.3)
    world.run(0.1)
    declined(world, gate, owner, again)
    assert again.answer is None
    assert world.run_until_answered([again], 1)
    assert isinstance(again.answer, Unknown)


@pytest.mark.parametrize("patient", [True, False], ids=["the holder may have it", "at once"])
def test_a_request_is_handed_over_again_though_one_of_two_callers_gives_up_just_then(
    world: World, patient: bool
) -> None:
    gate, _, call = handed_to_nobody(world, 0.5)
    assert call.signed is not None
    other = world.submit(gate, call.signed, 600.0)
    world.run(0.1)
    (job,) = world.core(gate).jobs.all()
    job.next_try = min(at for _, at in job.callers)
    if not patient:
        job.held_since -= gateway.HOLDER_S
    assert world.run_until_answered([call], 1)
    assert isinstance(call.answer, Unknown) and other.answer is None
    world.heal()
    within_s = gateway.HOLDER_S + jobs.TRY_AGAIN_S if patient else 0.1
    assert world.run_until_answered([other], within_s)
    assert isinstance(other.answer, Recorded)


def in_doubt(world: World) -> tuple[NodeId, Call]:
    """A request that ended as Unknown: its gateway, where nothing waits, and the call."""
    gate, _, call = handed_to_nobody(world, 0.3)
    assert world.run_until_answered([call], 1)
    assert isinstance(call.answer, Unknown) and not len(world.core(gate).jobs)
    return gate, call


def assert_told_apart(world: World, gate: NodeId, doubtful: Call, code: str) -> None:
    """What nobody has is NotStarted with `code` at this gateway; the other one is Unknown, for the same reason."""
    assert doubtful.signed is not None
    again = world.submit(gate, doubtful.signed, 0.3)
    new = world.submit(gate, world.pay_request("alice", "bob", 1), 0.3)
    assert world.run_until_answered([again, new], 0.1)
    assert isinstance(new.answer, NotStarted) and new.answer.code == code
    assert isinstance(again.answer, Unknown) and again.answer.reason == new.answer.reason


@pytest.mark.parametrize("bound", ["MAX_JOBS", "MAX_JOBS_OF_ONE", "MAX_JOB_BYTES"])
def test_a_full_gateway_does_not_say_that_what_is_in_doubt_did_not_start(
    world: World, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    gate, call = in_doubt(world)
    monkeypatch.setattr(jobs, bound, 0)
    assert_told_apart(world, gate, call, "busy")


def test_a_request_gives_back_its_room_however_it_ends(world: World) -> None:
    gate, owner, lost = handed_to_nobody(world, 0.3)
    kept = world.core(gate).jobs
    world.run(0.1)
    assert lost.signed is not None and kept.room.all.bytes == len(lost.signed.raw)
    assert world.run_until_answered([lost], 1)
    assert isinstance(lost.answer, Unknown)
    _, _, dropped = handed_to_nobody(world, 10.0)
    world.run(0.1)
    declined(world, gate, owner, dropped)
    assert isinstance(dropped.answer, NotStarted)
    pinned = world.submit(gate, world.pay_request("alice", "bob", 1, world.tip(gate, "alice")))
    world.run(0.1)
    assert pinned.signed is not None and kept.room.all.bytes == len(pinned.signed.raw)
    world.settle(owner, world.pay_request("alice", "bob", 1))
    assert world.run_until_answered([pinned], 1)
    assert isinstance(pinned.answer, Stale)
    assert not len(kept) and kept.room.all.bytes == 0
    world.heal()
    twice = world.pay_request("alice", "bob", 1)
    opens = [world.open_request("zed", nonce=bytes([number]) * 32) for number in range(2)]
    requests = [twice, twice, world.pay_request("alice", "bob", 5000), *opens]
    calls = [world.submit(gate, request) for request in requests]
    assert world.run_until_answered(calls, 10)
    assert [type(call.answer) for call in calls[:3]] == [Recorded] * 3
    assert {type(call.answer) for call in calls[3:]} == {Recorded, Refused}
    assert not len(kept) and kept.room.all.bytes == 0


def test_a_node_whose_disk_is_nearly_full_takes_no_new_requests(world: World) -> None:
    """It says how full; what it has taken goes on, what is recorded is told, and its votes and its replica are as
    before."""
    gate, other, _ = world.ids
    recorded = world.pay_request("alice", "bob", 1)
    world.settle(gate, recorded)
    world.lose = lambda source, target, message: isinstance(message, Forward)
    taken = world.submit(gate, world.pay_request("alice", "bob", 2))
    world.run(0.1)
    world.deliver(gate, DiskSpace(300 * 2**20, 2048 * 2**20))
    refused = world.submit(gate, world.pay_request("alice", "bob", 3))
    assert taken.signed is not None
    more = [world.submit(gate, taken.signed), world.submit(gate, recorded)]
    assert world.run_until_answered([refused], 0.1)
    assert isinstance(refused.answer, NotStarted) and refused.answer.code == "disk_low"
    assert "has 300 MiB free, and below 2048 it takes no new requests" in refused.answer.reason
    world.heal()
    elsewhere = world.submit(other, world.pay_request("alice", "bob", 4))
    assert world.run_until_answered([taken, elsewhere, *more], 10)
    assert [type(call.answer) for call in (taken, elsewhere, *more)] == [Recorded] * 4
    world.run(3)
    assert world.tip(gate, "alice") == world.tip(other, "alice")
    world.deliver(gate, DiskSpace(2048 * 2**20, 2048 * 2**20))
    assert refused.signed is not None
    again = world.submit(gate, refused.signed)
    assert world.run_until_answered([again], 10)
    assert isinstance(again.answer, Recorded)


def test_a_node_whose_disk_is_nearly_full_does_not_say_that_what_is_in_doubt_did_not_start(world: World) -> None:
    gate, call = in_doubt(world)
    world.deliver(gate, DiskSpace(1, 2))
    assert_told_apart(world, gate, call, "disk_low")


def test_a_node_that_was_removed_does_not_say_that_what_is_in_doubt_did_not_start(world: World) -> None:
    gate, call = in_doubt(world)
    world.heal()
    assert isinstance(world.remove(next(node for node in world.ids if node != gate), gate), Changed)
    assert world.run_until(lambda: not world.core(gate)._self.is_member, 5)
    assert_told_apart(world, gate, call, "not_member")


def test_a_node_that_was_removed_does_not_say_that_what_it_has_handed_over_did_not_start(world: World) -> None:
    """The first call of it waits still."""
    gate, owner, call = handed_to_nobody(world, 60.0)
    world.run(0.1)
    world.deliver(gate, ToldRemoved(owner, 2))
    assert_told_apart(world, gate, call, "not_member")
    assert call.answer is None


def test_what_is_in_doubt_is_not_forgotten_for_those_who_wait_for_a_millisecond(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of their requests ends as Unknown at once. Of 100,000 ids the oldest was forgotten, in half a minute."""
    gate, call = in_doubt(world)
    hasty = [world.submit(gate, world.pay_request("alice", "bob", 1), 0.001) for _ in range(10)]
    assert world.run_until_answered(hasty, 1)
    assert all(isinstance(call.answer, Unknown) for call in hasty)
    for number in range(120_000):
        world.core(gate).jobs.doubtful.add(RequestId(hashlib.sha256(str(number).encode()).digest()))
    monkeypatch.setattr(jobs, "MAX_JOBS", 0)
    assert_told_apart(world, gate, call, "busy")


def test_so_many_calls_wait_for_one_request(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is told so, and not that nothing happened."""
    monkeypatch.setattr(admission, "MAX_CALLERS", 2)
    signed = world.pay_request("alice", "bob", 1)
    calls = [world.submit(world.ids[0], signed) for _ in range(4)]
    assert world.run_until_answered(calls, 10)
    assert [type(call.answer) for call in calls] == [Recorded, Recorded, Unknown, Unknown]


def test_no_client_waits_for_longer_than_a_bound(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_TIMEOUT_MS", 500)
    _, _, call = handed_to_nobody(world, 10_000.0)
    world.run(0.4)
    assert call.answer is None
    assert world.run_until_answered([call], 0.2)


@pytest.mark.parametrize(
    ("damaged", "told"),
    [
        (lambda header: header[:-1], f"a header of {HEADER_BYTES - 1} bytes"),
        (lambda header: None, "its header is that of link 2 of alice"),
    ],
    ids=["cut short", "of another link"],
)
def test_a_header_of_this_disk_that_is_damaged_stops_the_node_when_a_request_is_pinned_to_its_link(
    world: World, damaged: Callable[[bytes], bytes | None], told: str
) -> None:
    """It was dropped like a message of a peer that cannot be read: the client had no answer, and nobody was told."""
    gate = world.ids[0]
    paid = [world.pay("alice", "bob", 1, at=gate) for _ in range(2)]
    world.run(3)
    first, second = (answer for answer in paid if isinstance(answer, Recorded))
    conn = world.nodes[gate].conn
    rows = [
        conn.execute("SELECT header, body FROM links WHERE hash = ?", (answer.link_hash,)).fetchone()
        for answer in (first, second)
    ]
    put_link(conn, LinkHash(first.link_hash), damaged(rows[0][0]) or rows[1][0], rows[0][1])
    world.submit(gate, world.pay_request("alice", "bob", 1, tip=first.link_hash))
    with pytest.raises(Corruption, match=rf"links row {first.link_hash.hex()[:16]}: {told}"):
        world.run(3)


def test_a_request_that_is_pinned_to_a_tip_of_another_account_is_refused_and_not_called_stale(world: World) -> None:
    answer = world.pay("alice", "bob", 1, at=world.ids[0], tip=world.tip(world.ids[0], "bob"))
    assert isinstance(answer, Refused) and answer.code == "unknown_tip"


def test_a_request_that_nobody_signed_has_no_link_loaded_that_it_is_pinned_to(world: World) -> None:
    """Links have up to a megabyte, and a turn takes hundreds of requests, each pinned to another one."""
    node = world.nodes[world.ids[0]]
    many = world.pay_many_request("alice", [Posting("bob", 1)] * 100)
    large = world.settle(node.id, many)
    forged = world.forge(world.pay_request("alice", "bob", 1, tip=large.link_hash))
    event = ClientSubmit(Caller(7, 1), Submit(forged.raw, forged.signature, 1000))
    loaded = load(node.conn, world.core(node.id).needs([event], world._clock(node)))
    assert len(many.raw) > 10_000 and len(repr(loaded)) < 5_000


def test_a_request_that_comes_again_after_its_time_is_not_asked_about_once_more(world: World) -> None:
    """A chain that grows as fast as it is read would keep its client waiting for ever."""
    node, submit = world.nodes[world.ids[0]], world.pay_request("zed", "bob", 1)
    core, now = world.core(node.id), world._clock(node)
    event = ClientSubmit(Caller(7, 1), Submit(submit.raw, submit.signature, 1000), until=now.mono)
    (answer,) = core.step(load(node.conn, core.needs([event], now)), now).answers
    assert isinstance(answer.body, NotStarted) and answer.body.code == "too_busy"


def test_outcomes_that_one_turn_has_no_room_to_read_are_told_in_the_next_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = world.ids[0]
    paid = [world.pay_request("alice", "bob", amount) for amount in range(1, 6)]
    first = [world.settle(at, request) for request in paid]
    monkeypatch.setattr("chain.outcomes.TOLD_BYTES", 1)
    calls = [world.submit(at, request) for request in paid]
    world.run(0.5)
    assert [call.answer.link_hash for call in calls if isinstance(call.answer, Recorded) and call.answer.repeated] == [
        answer.link_hash for answer in first
    ]


def test_a_turn_looks_only_at_those_recorded_requests_that_it_has_room_to_tell(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands that were sent again were all judged anew in each turn, and their signatures checked: it took a
    second."""
    node = world.nodes[world.ids[0]]
    paid = [world.pay_request("alice", "bob", amount) for amount in range(1, 6)]
    for request in paid:
        world.settle(node.id, request)
    checked: list[bytes] = []
    monkeypatch.setattr(
        admission, "is_signed_by", lambda signed, key: (checked.append(signed.raw), is_signed_by(signed, key))[1]
    )
    monkeypatch.setattr("chain.outcomes.TOLD_BYTES", 1)
    monkeypatch.setattr("node.untold.TOLD_BYTES", 1)
    core, now = world.core(node.id), world._clock(node)
    events = [ClientSubmit(Caller(7, n), Submit(r.raw, r.signature, 1000)) for n, r in enumerate(paid)]
    answered: list[list[int]] = []
    looked_at: list[int] = []
    for turn in range(len(paid)):
        needs = core.needs(events if turn == 0 else [], now)
        looked_at.append(len(needs.told))
        answers = core.step(load(node.conn, needs), now).answers
        answered.append([answer.caller.number for answer in answers])
    assert answered == [[0], [1], [2], [3], [4]]
    assert looked_at == [5, 1, 1, 1, 1] and len(checked) == 5


def test_nothing_is_read_for_a_client_that_is_gone_and_all_is_for_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = world.nodes[world.ids[0]]
    paid = [world.pay_request("alice", "bob", amount) for amount in range(1, 7)]
    for request in paid:
        world.settle(node.id, request)
    for where in ("chain.outcomes.TOLD_BYTES", "node.untold.TOLD_BYTES"):
        monkeypatch.setattr(where, 1)
    core, now = world.core(node.id), world._clock(node)
    told: list[int] = []

    def turn(*events: Event) -> int:
        needs = core.needs(events, now)
        told.extend(answer.caller.number for answer in core.step(load(node.conn, needs), now).answers)
        return len(needs.told)

    turn(*(ClientSubmit(Caller(7 + n % 2, n), Submit(r.raw, r.signature, 1000)) for n, r in enumerate(paid)))
    assert told == [0] and core.deadline() == float("-inf")
    assert turn(ClientGone(7)) == 1  # it was being read when the client left
    assert [turn(), turn(), turn()] == [1, 1, 0]
    assert sorted(set(told) - {2}) == [0, 1, 3, 5] and core.deadline() != float("-inf")


def watch_hand_overs(world: World) -> list[tuple[NodeId, NodeId]]:
    """From whom to whom requests are handed; none arrives."""
    handed: list[tuple[NodeId, NodeId]] = []

    def lose(source: NodeId, target: NodeId, message: Message) -> bool:
        if isinstance(message, Forward):
            handed.append((source, target))
        return isinstance(message, Forward)

    world.lose = lose
    return handed


@pytest.mark.parametrize("others_epoch", [-1, 0, 1])
def test_who_makes_the_next_link_is_believed_of_who_has_the_same_view(others_epoch: int) -> None:
    """Nodes with different views could send a request in circles."""
    world = World(5, 3, 1)
    world.open_funded(alice=100)
    owner, standby, _ = world.group("alice")
    gate, named = (node for node in world.ids if node not in world.group("alice"))
    handed = watch_hand_overs(world)
    request = world.pay_request("alice", "mint", 1)
    world.submit(gate, request)
    world.run(0.1)
    assert handed == [(gate, owner)]
    at = SlotName(world.tip(gate, "alice"), "alice", world.height(gate, "alice") + 1)
    (job,) = world.core(gate).jobs.all()
    other = NotOwner(at, (request.request_id,), world.view.epoch + others_epoch, (named,), (job.number,))
    world.deliver(gate, FromPeer(standby, other))
    world.run(0.1)
    assert handed[1:] == ([(gate, named)] if others_epoch == 0 else [])


@pytest.mark.parametrize("behind", [0, 1])
def test_who_was_sent_an_older_link_does_not_hand_over_again_what_it_sent_for_a_later_one(behind: int) -> None:
    """Else each late answer to one hand-over makes one more."""
    world = World(3, 3, 1)
    world.open_funded(alice=100)
    owner, gate, standby = world.group("alice")
    handed = watch_hand_overs(world)
    world.submit(gate, world.pay_request("alice", "mint", 1))
    world.run(0.1)
    assert handed == [(gate, owner)]
    (job,) = world.core(gate).jobs.all()
    assert job.sent_height == world.height(gate, "alice") + 1
    world.deliver(gate, FromPeer(standby, Moved("alice", job.sent_height - behind, ())))
    world.run(0.1)
    assert (job.holder is None) is (behind == 0), "what it was sent for has another successor: nobody has it"
    assert handed == [(gate, owner)]

"""The order of a turn, its bounds, and what happens when the disk fails (design section 7). The core, the database and
the network are fakes that write into one journal."""

import random
from collections.abc import Callable, Sequence, ValuesView
from itertools import count

import msgspec
import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.errors import Corruption, RemoteFault, Removed, StorageFailure
from chain.genesis import issuer_links
from chain.link import Entry, Outcome, build_link, opening_slot
from chain.needs import Loaded, Needs, load
from chain.request import NetworkId, Posting, sign, transfer
from chain.rows import Applied
from chain.store import CursorRow, Write, commit
from hopchain.wire import (
    MAX_CLIENT_FRAME_BYTES,
    AskBalance,
    NotFound,
    Refused,
    Reply,
    ReplyBody,
    Submit,
    SubmitChange,
    decode_node_frame_untrusted,
)
from netsim.names import make_genesis
from node import driver as driver_module
from node.driver import CALL_BYTES, CALLS_WAITING, CLIENT_BYTES, CLIENT_CALLS, READS_AT_ONCE, TURN_CALLS, Driver
from node.effects import Answer, Effects, Facts, Read, Send
from node.events import (
    Caller,
    ClientBalance,
    ClientChange,
    ClientGone,
    ClientSubmit,
    Event,
    FromPeer,
    PeerDown,
    PeerUp,
    ToldRemoved,
)
from node.messages import (
    MAX_MESSAGE_BYTES,
    Links,
    Message,
    Ping,
    Pong,
    decode_frame_untrusted,
    encode_frames,
    encode_message,
)
from node.turn import Now
from routing.keyspace import NodeId

A, B, C = (NodeId(bytes([n]) * 20) for n in (1, 2, 3))
WRITE = CursorRow(A, 7)
NETWORK = NetworkId(bytes(32))


def ping(sent: float, links: int, votes: int) -> Ping:
    return Ping(sent, links, votes, epoch=1, active=True, time_ms=0)


class FakeCore:
    """Takes `plan` for its turns: the effects of each; then none. `needed` is what it asks the database for."""

    def __init__(self, journal: list[str], plan: Sequence[Effects] = (), needed: Needs | None = None) -> None:
        self.journal = journal
        self.plan = list(plan)
        self.needed = needed or Needs()
        self.turns: list[tuple[Event, ...]] = []
        self.times: list[float] = []
        self.loaded: list[Loaded] = []
        self.wake_at: float | None = None

    def needs(self, events: Sequence[Event], now: Now) -> Needs:
        self.turns.append(tuple(events))
        self.times.append(now.mono)
        return self.needed

    def step(self, loaded: Loaded, now: Now) -> Effects:
        self.journal.append("step")
        self.loaded.append(loaded)
        return self.plan.pop(0) if self.plan else Effects()

    def deadline(self) -> float | None:
        return self.wake_at


class FakeDatabase:
    """`before` may wait or raise before a function is done; it is given the function."""

    def __init__(self, journal: list[str]) -> None:
        self.journal = journal
        self.rows = Loaded(known={b"row"})
        self.writes: list[Sequence[Write]] = []
        self.before: Callable[[object], trio.Event | None] = lambda function: None

    async def run(self, function: Callable[..., object], *args: object) -> object:
        gate = self.before(function)
        if gate is not None:
            await gate.wait()
        await trio.lowlevel.checkpoint()
        self.journal.append("load" if function is load else "commit")
        if function is load:
            return self.rows
        assert function is commit
        self.writes.append(args[0])
        return None


class FakeMesh:
    def __init__(self, journal: list[str]) -> None:
        self.journal = journal
        self.sent: list[tuple[NodeId, tuple[Message, ...]]] = []

    def send_nowait(self, peer: NodeId, payload: bytes) -> bool:
        self.journal.append("send")
        self.sent.append((peer, decode_frame_untrusted(payload)))
        return True

    def drop(self, peer: NodeId, reason: str) -> None:
        self.journal.append(f"drop: {reason}")


class FakeSession:
    def __init__(self, journal: list[str], number: int = 1) -> None:
        self.journal = journal
        self.number = number
        self.replies: list[ReplyBody] = []
        self.asked = 0

    def send_nowait(self, payload: bytes) -> bool:
        self.journal.append("answer")
        reply = decode_node_frame_untrusted(payload)
        assert isinstance(reply, Reply)
        self.replies.append(reply.body)
        return True


class Rig:
    """A driver among fakes."""

    def __init__(self, plan: Sequence[Effects] = (), needed: Needs | None = None) -> None:
        self.journal: list[str] = []
        self.core = FakeCore(self.journal, plan, needed)
        self.database = FakeDatabase(self.journal)
        self.mesh = FakeMesh(self.journal)
        self.session = FakeSession(self.journal)
        self.driver = Driver(
            self.core,
            self.database,
            lambda: Now(trio.current_time(), 0),
            serve_read=lambda session, read: self.journal.append("read"),
            look_up=lambda key: self.journal.append("look up"),
            on_contacts=lambda contacts: self.journal.append(f"contacts {len(contacts)}"),
        )
        self.driver.mesh = self.mesh
        self.driver.add_session(self.session)


def everything(*, persist: tuple[Write, ...] = (WRITE,)) -> Effects:
    caller = Caller(1, 5)
    return Effects(
        persist=persist,
        send=(Send(A, ping(1.0, 2, 3)),),
        answers=(Answer(caller, NotFound("account x")),),
        reads=(Read(caller, AskBalance("x")),),
        lookups=(bytes(20),),
    )


async def reading(rig: Rig, account: str, read: list[str]) -> None:
    """Note the account in `read` when it may be read."""
    await rig.driver.wait_committed(account)
    read.append(account)


async def test_facts_leave_before_the_commit_and_reads_of_their_accounts_wait_for_it() -> None:
    (link,) = issuer_links(make_genesis(["node 0"], 1))
    facts = Facts((Send(A, ping(1.0, 2, 3)),), (Answer(Caller(1, 5), NotFound("account x")),))
    rig = Rig([Effects(facts=facts, persist=(Applied(link),))])
    gate = trio.Event()
    rig.database.before = lambda function: gate if function is commit else None
    rig.driver.put_nowait(PeerUp(A))
    read: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.driver.turn)
        await trio.testing.wait_all_tasks_blocked()
        assert rig.journal == ["step", "send", "answer"]
        for account in (link.account, "", "another"):
            nursery.start_soon(reading, rig, account, read)
        await trio.testing.wait_all_tasks_blocked()
        assert read == ["another"]
        gate.set()
    assert sorted(read) == ["", "another", link.account]
    assert rig.journal == ["step", "send", "answer", "commit"]
    await rig.driver.wait_committed(link.account)


async def test_who_is_paid_is_read_and_remembered_anew_as_who_pays_is() -> None:
    key = Ed25519PrivateKey.generate()
    request = transfer(NETWORK, "alice", [Posting("bob", 1), Posting("carol", 2)], bytes(32))
    signed = sign(request, key)
    entry = Entry(signed, request, signed.request_id, Outcome.COMPLETED)
    link = build_link(NETWORK, "alice", 1, opening_slot(NETWORK, "alice"), 0, 1, 1, [entry], [])
    facts = Facts((), (Answer(Caller(1, 5), NotFound("account x")),))
    rig = Rig([Effects(facts=facts, persist=(Applied(link),))])
    gate = trio.Event()
    rig.database.before = lambda function: gate if function is commit else None
    changed: list[frozenset[str]] = []
    rig.driver._on_changed = changed.append
    read: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.driver.turn)
        await trio.testing.wait_all_tasks_blocked()
        for account in ("alice", "bob", "carol", "dave"):
            nursery.start_soon(reading, rig, account, read)
        await trio.testing.wait_all_tasks_blocked()
        assert read == ["dave"]
        gate.set()
    assert sorted(read) == ["alice", "bob", "carol", "dave"]
    assert changed == [{"alice", "bob", "carol"}]


async def test_a_read_waits_for_the_commit_that_is_under_way_and_not_for_the_next_one() -> None:
    (link,) = issuer_links(make_genesis(["node 0"], 1))
    facts = Facts((), (Answer(Caller(1, 5), NotFound("account x")),))
    rig = Rig([Effects(facts=facts, persist=(Applied(link),))] * 2)
    gates = [trio.Event(), trio.Event()]
    waiting = iter(gates)
    rig.database.before = lambda function: next(waiting) if function is commit else None
    read = trio.Event()

    async def turns() -> None:
        for _ in gates:
            await rig.driver.turn()

    async def wait() -> None:
        await rig.driver.wait_committed("")
        read.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not read.is_set()
        gates[0].set()
        await trio.testing.wait_all_tasks_blocked()
        assert read.is_set() and rig.journal.count("commit") == 1
        gates[1].set()


async def test_links_become_durable_after_the_messages_have_left_and_reads_wait_for_them() -> None:
    (link,) = issuer_links(make_genesis(["node 0"], 1))
    rig = Rig([msgspec.structs.replace(everything(), applied=(Applied(link),), drops=(B,))])
    gates = [trio.Event(), trio.Event()]
    waiting = iter(gates)
    rig.database.before = lambda function: next(waiting) if function is commit else None
    changed: list[frozenset[str]] = []
    rig.driver._on_changed = changed.append
    read: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.driver.turn)
        await trio.testing.wait_all_tasks_blocked()
        assert rig.journal == ["step"]
        gates[0].set()
        await trio.testing.wait_all_tasks_blocked()
        assert rig.journal == ["step", "commit", "send", "answer"]
        assert rig.database.writes == [(WRITE,)] and not changed
        for account in (link.account, "another"):
            nursery.start_soon(reading, rig, account, read)
        await trio.testing.wait_all_tasks_blocked()
        assert read == ["another"]
        gates[1].set()
    assert rig.journal[4:] == ["commit", "drop: nothing was heard of it for too long", "read", "look up"]
    assert rig.database.writes[1:] == [(Applied(link),)] and changed == [{link.account}]
    assert read == ["another", link.account]
    assert rig.driver.counters == {"commits": 2, "rows_written": 2, "turns": 1, "events": 0}


async def test_nothing_leaves_when_the_votes_cannot_be_written_and_no_read_when_the_links_cannot() -> None:
    (link,) = issuer_links(make_genesis(["node 0"], 1))
    for failing, heard in ((1, ["step"]), (2, ["step", "commit", "send", "answer"])):
        rig = Rig([msgspec.structs.replace(everything(), applied=(Applied(link),))])
        commits = count(1)

        def fail(function: object) -> None:
            if function is commit and next(commits) == failing:  # noqa: B023
                raise StorageFailure("writing 1 rows failed")

        rig.database.before = fail
        with pytest.raises(StorageFailure):
            await rig.driver.turn()
        assert rig.journal == heard


async def test_other_contacts_wait_for_the_links_and_so_does_all_that_is_said_in_that_turn() -> None:
    (link,) = issuer_links(make_genesis(["node 0"], 1))
    rig = Rig([msgspec.structs.replace(everything(), applied=(Applied(link),), contacts=frozenset({A, B}))])
    await rig.driver.turn()
    assert rig.journal == ["step", "commit", "send", "contacts 2", "answer", "read", "look up"]
    assert rig.database.writes == [(WRITE, Applied(link))]


async def test_a_turn_loads_steps_commits_and_only_then_speaks() -> None:
    rig = Rig([everything()], Needs(heads={"x"}))
    rig.driver.put_nowait(PeerUp(A))
    await rig.driver.turn()
    assert rig.journal == ["load", "step", "commit", "send", "answer", "read", "look up"]
    assert rig.core.turns == [(PeerUp(A),)]
    assert rig.core.loaded == [rig.database.rows]
    assert rig.database.writes == [(WRITE,)]
    assert rig.mesh.sent == [(A, (ping(1.0, 2, 3),))]
    assert rig.session.replies == [NotFound("account x")]
    assert rig.driver.counters == {"commits": 1, "rows_written": 1, "turns": 1, "events": 1}


async def test_nothing_leaves_while_the_commit_is_under_way() -> None:
    rig = Rig([everything()])
    durable = trio.Event()
    rig.database.before = lambda function: durable if function is commit else None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.driver.turn)
        await trio.testing.wait_all_tasks_blocked()
        assert rig.journal == ["step"]
        durable.set()
    assert rig.journal == ["step", "commit", "send", "answer", "read", "look up"]


@pytest.mark.parametrize("error", [StorageFailure("writing 1 rows failed"), Corruption("the database refuses link 3")])
async def test_a_failed_commit_ends_the_run_and_nothing_leaves(error: Exception) -> None:
    rig = Rig([everything(), everything(persist=())])

    def fail(function: object) -> None:
        if function is commit:
            raise error

    rig.database.before = fail
    rig.driver.put_nowait(PeerUp(A))
    rig.driver.put_nowait(PeerUp(B))
    with pytest.raises(type(error), match=str(error)):
        await rig.driver.run()
    assert rig.journal == ["step"]
    assert not rig.mesh.sent
    assert not rig.session.replies


async def test_a_failed_load_ends_the_run_before_the_step() -> None:
    rig = Rig([everything()], Needs(heads={"x"}))

    def fail(function: object) -> None:
        raise StorageFailure("reading the database failed")

    rig.database.before = fail
    rig.driver.put_nowait(PeerUp(A))
    with pytest.raises(StorageFailure):
        await rig.driver.run()
    assert rig.journal == []


async def test_a_connection_through_which_nothing_comes_is_closed_after_the_commit() -> None:
    rig = Rig([msgspec.structs.replace(everything(), drops=(B,))])
    await rig.driver.turn()
    assert rig.journal[1:4] == ["commit", "send", "drop: nothing was heard of it for too long"]


async def test_a_turn_that_needs_no_row_and_keeps_nothing_does_not_touch_the_database() -> None:
    rig = Rig([everything(persist=())])
    rig.driver.put_nowait(PeerUp(A))
    await rig.driver.turn()
    assert rig.journal == ["step", "send", "answer", "read", "look up"]
    assert rig.core.loaded == [Loaded()]
    assert "commits" not in rig.driver.counters


async def test_other_contacts_are_told_after_the_commit_and_before_the_answers() -> None:
    rig = Rig([msgspec.structs.replace(everything(), contacts=frozenset({A, B})), everything()])
    await rig.driver.turn()
    assert rig.journal == ["step", "commit", "send", "contacts 2", "answer", "read", "look up"]
    rig.journal.clear()
    await rig.driver.turn()
    assert rig.journal == ["step", "commit", "send", "answer", "read", "look up"]


async def test_who_was_removed_answers_what_it_has_to_before_it_ends() -> None:
    rig = Rig([msgspec.structs.replace(everything(), contacts=frozenset({A, B}))])

    def over(contacts: frozenset[NodeId]) -> None:
        raise Removed("it was removed")

    rig.driver._on_contacts = over
    rig.driver.put_nowait(PeerUp(A))
    with pytest.raises(Removed):
        await rig.driver.turn()
    assert rig.journal == ["step", "commit", "send", "answer", "read", "look up"]


async def test_who_is_told_that_it_was_removed_tells_its_core() -> None:
    rig = Rig()
    rig.driver.on_removed(B, 7)
    await rig.driver.turn()
    assert rig.core.turns == [(ToldRemoved(B, 7),)]


async def test_a_message_for_many_is_encoded_once_and_each_peer_gets_one_frame_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded: list[Message] = []

    def counting(message: Message) -> bytes:
        encoded.append(message)
        return encode_message(message)

    monkeypatch.setattr(driver_module, "encode_message", counting)
    all_of_them, again = ping(1.0, 1, 1), Pong(2.0, 2, 2)
    sends = [Send(A, all_of_them), Send(B, all_of_them), Send(A, again), Send(C, all_of_them), Send(B, again)]
    rig = Rig([Effects(send=tuple(sends))])
    await rig.driver.turn()
    assert encoded == [all_of_them, again]
    assert rig.mesh.sent == [(A, (all_of_them, again)), (B, (all_of_them, again)), (C, (all_of_them,))]


async def test_an_answer_or_a_read_for_a_client_that_is_gone_is_dropped() -> None:
    rig = Rig([everything()])
    rig.driver.remove_session(rig.session)
    rig.driver.remove_session(rig.session)  # nothing happens
    await rig.driver.turn()
    assert rig.journal == ["step", "commit", "send", "look up"]


async def test_the_core_hears_that_a_client_is_gone_when_calls_of_it_are_not_answered() -> None:
    """Its reads that wait for a height would take the places of others until their time is over."""
    rig = crowd(2, 3)
    for number in (2, 3):
        await rig.driver.wait_for_room(Caller(number, 1), 10)
    rig.driver.reply(Caller(3, 1), NotFound("x"))
    for number in (2, 3):
        rig.driver.remove_session(FakeSession(rig.journal, number))
    await rig.driver.turn()
    assert rig.core.turns == [(ClientGone(2),)]


async def test_a_turn_takes_no_more_events_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "TURN_EVENTS", 3)
    rig = Rig()
    for _ in range(4):
        rig.driver.put_nowait(PeerUp(A))
    await rig.driver.turn()
    await rig.driver.turn()
    assert [len(turn) for turn in rig.core.turns] == [3, 1]


async def test_a_turn_takes_no_more_bytes_than_its_bound_but_always_one_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "TURN_BYTES", 1000)
    rig = Rig()
    for size in (400, 400, 400, 5000, 0, 0):
        await rig.driver.put(PeerUp(A), size)
    for _ in range(4):
        await rig.driver.turn()
    assert [len(turn) for turn in rig.core.turns] == [3, 1, 2, 0]


async def test_what_arrives_during_a_turn_is_the_next_one() -> None:
    rig = Rig([everything()])
    durable = trio.Event()
    rig.database.before = lambda function: durable
    rig.driver.put_nowait(PeerUp(A))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.driver.run)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            await rig.driver.put(PeerDown(B))
        durable.set()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert rig.core.turns == [(PeerUp(A),), (PeerDown(B),) * 3]


async def test_a_full_inbox_holds_its_senders_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "INBOX_EVENTS", 4)
    monkeypatch.setattr(driver_module, "TURN_EVENTS", 2)
    rig = Rig()
    messages = [ping(float(number), number, 0) for number in range(10)]
    (frame,) = encode_frames([encode_message(message) for message in messages])
    read = trio.Event()

    async def read_connection() -> None:
        await rig.driver.on_peer_frame(A, frame)
        read.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_connection)
        seen: list[Event] = []
        for taken in (2, 4, 6):
            await trio.testing.wait_all_tasks_blocked()
            assert not read.is_set()
            await rig.driver.turn()
            seen += rig.core.turns[-1]
            assert len(seen) == taken
        await trio.testing.wait_all_tasks_blocked()
        assert read.is_set(), "the last four fit"
        await rig.driver.turn()
        await rig.driver.turn()
    assert [event for turn in rig.core.turns for event in turn] == [FromPeer(A, message) for message in messages]


async def test_an_inbox_with_too_many_bytes_holds_its_senders_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "INBOX_BYTES", 1000)
    monkeypatch.setattr(driver_module, "TURN_BYTES", 1)
    rig = Rig()
    events = [PeerUp(A), PeerUp(B), PeerDown(A), PeerDown(B)]

    async def read_connection() -> None:
        for event in events:
            await rig.driver.put(event, 600)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_connection)
        for waiting in (2, 2, 2, 1):
            await trio.testing.wait_all_tasks_blocked()
            assert len(rig.driver._inbox) == waiting
            await rig.driver.turn()
    assert [event for turn in rig.core.turns for event in turn] == events
    assert rig.driver._inbox_bytes == 0


async def test_a_frame_counts_with_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "TURN_BYTES", 100)
    rig = Rig()
    messages = [ping(float(number), number, 0) for number in range(10)]
    (frame,) = encode_frames([encode_message(message) for message in messages])
    await rig.driver.on_peer_frame(A, frame)
    await rig.driver.turn()
    taken = len(rig.core.turns[0])
    assert (taken - 1) * (len(frame) // 10) < 100 <= taken * (len(frame) // 10)


async def test_a_frame_that_is_none_is_the_peers_fault_and_no_event() -> None:
    rig = Rig()
    with pytest.raises(RemoteFault, match="cannot be read"):
        await rig.driver.on_peer_frame(A, b"\xc1 garbage")
    await rig.driver.turn()
    assert rig.core.turns == [()]


async def test_it_turns_when_the_core_wants_to_or_something_arrives(autojump_clock: trio.testing.MockClock) -> None:
    rig = Rig()
    rig.core.wake_at = trio.current_time() + 5.0
    start = trio.current_time()

    async def wake_later() -> None:
        await trio.sleep(7.0)
        rig.driver.on_peer_up(A, b"boot", replaced=True)
        await trio.sleep(1.0)
        rig.driver.on_peer_down(A, "it is gone")

    original = rig.core.step

    def step_once(loaded: Loaded, now: Now) -> Effects:
        rig.core.wake_at = None
        return original(loaded, now)

    rig.core.step = step_once
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.driver.run)
        await wake_later()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [round(time - start, 3) for time in rig.core.times] == [5.0, 7.0, 8.0]
    assert rig.core.turns == [(), (PeerUp(A, b"boot", replaced=True),), (PeerDown(A),)]


async def test_a_busy_driver_lets_others_run() -> None:
    """Turns that need no database, one event after the other, for ever, do not starve the tasks that read
    connections."""
    rig = Rig()
    original = rig.core.step

    def step_and_go_on(loaded: Loaded, now: Now) -> Effects:
        assert len(rig.core.turns) < 1000, "nobody else ran"
        rig.driver.put_nowait(PeerUp(A))
        return original(loaded, now)

    rig.core.step = step_and_go_on
    rig.driver.put_nowait(PeerUp(A))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.driver.run)
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert rig.core.turns


async def test_an_answer_that_no_frame_holds_becomes_a_refusal() -> None:
    rig = Rig()
    rig.driver.reply(Caller(1, 5), NotFound("x" * MAX_CLIENT_FRAME_BYTES))
    (reply,) = rig.session.replies
    assert isinstance(reply, Refused)
    assert reply.code == "too_large"
    assert rig.driver.counters["answers_too_large"] == 1


async def test_a_message_that_no_frame_holds_is_dropped_and_counted_and_the_others_go_out() -> None:
    huge = Links((bytes(MAX_MESSAGE_BYTES),))
    rig = Rig([Effects(send=(Send(A, huge), Send(A, ping(1.0, 2, 3))))])
    rig.driver.put_nowait(PeerUp(A))
    await rig.driver.turn()
    assert rig.mesh.sent == [(A, (ping(1.0, 2, 3),))]
    assert rig.driver.counters["messages_too_large"] == 1


@pytest.mark.parametrize(("calls", "size"), [(CLIENT_CALLS, 1), (2, CLIENT_BYTES // 2)])
async def test_a_client_with_many_unanswered_calls_is_not_read(
    calls: int, size: int, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Until one is answered, or it is gone."""
    rig = Rig()
    for number in range(calls):
        await rig.driver.wait_for_room(Caller(1, number), size)
    done: list[int] = []

    async def one_more(number: int) -> None:
        await rig.driver.wait_for_room(Caller(1, number), size)
        done.append(number)

    nursery.start_soon(one_more, calls)
    nursery.start_soon(one_more, calls + 1)
    await trio.testing.wait_all_tasks_blocked()
    assert done == []
    rig.driver.reply(Caller(1, 0), NotFound("x"))
    await trio.testing.wait_all_tasks_blocked()
    assert len(done) == 1
    rig.driver.remove_session(rig.session)
    await trio.testing.wait_all_tasks_blocked()
    assert len(done) == 2


async def test_a_call_that_is_larger_than_all_of_one_client_may_be_has_room_when_it_is_the_only_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Else it would wait for ever."""
    rig = Rig()
    with trio.fail_after(1):
        await rig.driver.wait_for_room(Caller(1, 1), CLIENT_BYTES + 1)


async def test_the_next_call_of_a_session_does_not_make_its_unanswered_ones_forgotten(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    rig = Rig()
    await rig.driver.wait_for_room(Caller(1, 1), CLIENT_BYTES)
    rig.driver.add_session(rig.session)
    nursery.start_soon(rig.driver.wait_for_room, Caller(1, 2), 1)
    await trio.testing.wait_all_tasks_blocked()
    assert list(rig.driver._clients[1].calls) == [1]


# --- clients share turns (ADR 30) ---


def submit(session: int, number: int) -> ClientSubmit:
    return ClientSubmit(Caller(session, number), Submit(b"request", bytes(64), 1000))


def read(session: int, number: int, *, linearizable: bool = True, until: float | None = None) -> ClientBalance:
    return ClientBalance(Caller(session, number), AskBalance("x", linearizable), until)


def calls_of(turn: Sequence[Event]) -> list[tuple[int, int]]:
    """Whose calls a turn took: session and number."""
    kinds = ClientSubmit | ClientBalance | ClientChange
    return [(event.caller.session, event.caller.number) for event in turn if isinstance(event, kinds)]


def crowd(*numbers: int) -> Rig:
    """A driver with these sessions."""
    rig = Rig()
    for number in numbers:
        rig.driver.add_session(FakeSession(rig.journal, number))
    return rig


async def one_after_the_other(rig: Rig, calls: Sequence[ClientSubmit | ClientBalance], size: int = 0) -> None:
    """As the task of a connection does."""
    for call in calls:
        await rig.driver.put_call(call, size)


async def test_ten_thousand_calls_of_one_client_do_not_keep_the_one_of_another_from_the_next_turn(
    nursery: trio.Nursery,
) -> None:
    rig = crowd(1, 2, 3)
    nursery.start_soon(one_after_the_other, rig, [submit(1, number) for number in range(10_000)])
    await trio.testing.wait_all_tasks_blocked()
    await rig.driver.turn()
    nursery.start_soon(one_after_the_other, rig, [submit(2, 0)])
    nursery.start_soon(one_after_the_other, rig, [submit(3, number) for number in range(10)])
    await trio.testing.wait_all_tasks_blocked()
    await rig.driver.turn()
    taken = calls_of(rig.core.turns[1])
    assert len(taken) == TURN_CALLS // CALL_BYTES
    assert (2, 0) in taken[:3]
    assert [number for session, number in taken[:30] if session == 3] == list(range(10))
    nursery.cancel_scope.cancel()


async def test_calls_that_need_much_work_of_one_client_are_shared_like_all_others(nursery: trio.Nursery) -> None:
    """Requests, whose signatures are checked in the turn, changes and balances wait in one and the same line of their
    client."""
    rig = crowd(1, 2)
    change = ClientChange(Caller(1, 2), SubmitChange(b"change", bytes(64), 1000))
    nursery.start_soon(one_after_the_other, rig, [submit(1, 1), change, read(1, 3), submit(1, 4)])
    nursery.start_soon(one_after_the_other, rig, [submit(2, 1), read(2, 2, linearizable=False)])
    await trio.testing.wait_all_tasks_blocked()
    await rig.driver.turn()
    taken = calls_of(rig.core.turns[0])
    assert sorted(taken[:2]) == [(1, 1), (2, 1)] and sorted(taken[2:4]) == [(1, 2), (2, 2)]
    assert taken[4:] == [(1, 3), (1, 4)]


async def test_large_requests_of_one_client_do_not_slow_the_small_ones_of_another_down(nursery: trio.Nursery) -> None:
    rig = crowd(1, 2)
    nursery.start_soon(one_after_the_other, rig, [submit(1, number) for number in range(7)], 1_000_000)
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(one_after_the_other, rig, [submit(2, number) for number in range(100)], 300)
    await trio.testing.wait_all_tasks_blocked()
    await rig.driver.turn()
    taken = calls_of(rig.core.turns[0])
    assert [number for session, number in taken if session == 2] == list(range(100))
    assert [number for session, number in taken if session == 1] == [0, 1]


async def test_what_members_say_is_before_all_calls_of_clients(nursery: trio.Nursery) -> None:
    rig = crowd(1, 2)
    for session in (1, 2):
        nursery.start_soon(one_after_the_other, rig, [submit(session, number) for number in range(3000)])
    await trio.testing.wait_all_tasks_blocked()
    messages = [ping(float(number), number, 0) for number in range(3)]
    (frame,) = encode_frames([encode_message(message) for message in messages])
    await rig.driver.on_peer_frame(A, frame)
    await rig.driver.turn()
    assert rig.core.turns[0][:3] == tuple(FromPeer(A, message) for message in messages)
    assert len(rig.core.turns[0]) == 3 + TURN_CALLS // CALL_BYTES
    nursery.cancel_scope.cancel()


async def test_calls_of_clients_leave_the_inbox_of_members_its_room(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many wait, connections of members are read."""
    monkeypatch.setattr(driver_module, "INBOX_EVENTS", 1)
    rig = crowd(1)
    nursery.start_soon(one_after_the_other, rig, [submit(1, number) for number in range(10_000)])
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(rig.driver.put, PeerUp(A))
    await trio.testing.wait_all_tasks_blocked()
    await rig.driver.turn()
    assert rig.core.turns[0][0] == PeerUp(A)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("bound", ["TURN_EVENTS", "TURN_BYTES"])
async def test_when_members_fill_turns_clients_get_an_eighth_of_their_part(
    bound: str, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, bound, 10)
    rig = crowd(1)
    nursery.start_soon(one_after_the_other, rig, [submit(1, number) for number in range(1000)])
    for _ in range(20):
        await rig.driver.put(PeerUp(A), 1)
    await trio.testing.wait_all_tasks_blocked()
    await rig.driver.turn()
    assert rig.core.turns[0][:10] == (PeerUp(A),) * 10
    assert len(rig.core.turns[0]) == 10 + TURN_CALLS // CALL_BYTES // 8
    nursery.cancel_scope.cancel()


async def test_a_turn_with_much_of_members_takes_calls_up_to_its_bytes() -> None:
    rig = crowd(1)
    for number in range(500):
        await rig.driver.put_call(submit(1, number))
    await rig.driver.put(PeerUp(A), driver_module.TURN_BYTES - 100 * CALL_BYTES)
    await rig.driver.turn()
    assert len(calls_of(rig.core.turns[0])) == 100


async def test_what_waits_for_a_turn_is_bounded_in_equal_parts_and_a_first_call_never_waits(
    nursery: trio.Nursery,
) -> None:
    rig = crowd(*range(1, 5))
    waiting = rig.driver._calls.weight
    for session in (1, 2):
        nursery.start_soon(one_after_the_other, rig, [submit(session, number) for number in range(10_000)])
        await trio.testing.wait_all_tasks_blocked()
        assert waiting(session) == CALLS_WAITING // session + CALL_BYTES, "its connection is read no further"
    nursery.start_soon(one_after_the_other, rig, [submit(3, 0)], CALLS_WAITING)
    nursery.start_soon(one_after_the_other, rig, [submit(4, 0)])
    await trio.testing.wait_all_tasks_blocked()
    assert waiting(3) == CALLS_WAITING + CALL_BYTES and waiting(4) == CALL_BYTES
    for _ in range(30):
        await rig.driver.turn()
        await trio.testing.wait_all_tasks_blocked()
    assert waiting(1) == waiting(2) and CALLS_WAITING // 3 < waiting(1) <= CALLS_WAITING // 2 + CALL_BYTES
    nursery.cancel_scope.cancel()


async def test_a_call_that_is_heavier_than_what_may_wait_waits_until_it_is_the_first(nursery: trio.Nursery) -> None:
    rig = crowd(1)
    nursery.start_soon(one_after_the_other, rig, [submit(1, 0), submit(1, 1)], CALLS_WAITING)
    await trio.testing.wait_all_tasks_blocked()
    await rig.driver.turn()
    await trio.testing.wait_all_tasks_blocked()
    await rig.driver.turn()
    assert [calls_of(turn) for turn in rig.core.turns] == [[(1, 0)], [(1, 1)]]


async def test_a_client_has_so_many_linearizable_reads_under_way_and_the_next_waits_until_half_are_answered() -> None:
    """Other clients, and other calls of this one, go on."""
    rig = crowd(1, 2)
    driver = rig.driver
    for number in range(READS_AT_ONCE + 2):
        await driver.put_call(read(1, number))
    await driver.put_call(submit(1, 1000))
    for number in range(READS_AT_ONCE + 2):
        await driver.put_call(read(2, number, linearizable=False))
    await driver.turn()
    taken = calls_of(rig.core.turns[0])
    assert [number for session, number in taken if session == 1] == [*range(READS_AT_ONCE), 1000]
    assert [number for session, number in taken if session == 2] == list(range(READS_AT_ONCE + 2))
    for number in range(READS_AT_ONCE // 2 - 1):
        driver.reply(Caller(1, number), NotFound("x"))
        driver.reply(Caller(1, number), NotFound("x"))  # that was it
        driver.reply(Caller(2, number), NotFound("x"))
    await driver.turn()
    driver.reply(Caller(1, READS_AT_ONCE - 1), NotFound("x"))
    await driver.turn()
    rest = [(1, READS_AT_ONCE), (1, READS_AT_ONCE + 1)]
    assert [calls_of(turn) for turn in rig.core.turns[1:]] == [[], rest]


async def test_the_driver_sleeps_while_only_reads_wait_that_may_not_begin_and_an_answer_wakes_it(
    nursery: trio.Nursery,
) -> None:
    rig = crowd(1)
    for number in range(READS_AT_ONCE + 1):
        await rig.driver.put_call(read(1, number))
    original = rig.core.step

    def step(loaded: Loaded, now: Now) -> Effects:
        assert len(rig.core.turns) < 100, "it turns on and on"
        return original(loaded, now)

    rig.core.step = step
    nursery.start_soon(rig.driver.run)
    await trio.testing.wait_all_tasks_blocked()
    assert len(calls_of([event for turn in rig.core.turns for event in turn])) == READS_AT_ONCE
    for number in range(READS_AT_ONCE // 2):
        rig.driver.reply(Caller(1, number), NotFound("x"))
    await trio.testing.wait_all_tasks_blocked()
    assert calls_of(rig.core.turns[-1]) == [(1, READS_AT_ONCE)]
    nursery.cancel_scope.cancel()


async def test_reads_that_are_answered_late_do_not_hold_the_others_for_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Most of them wait for a link that does not come."""
    rig = crowd(1)
    driver = rig.driver
    for number in range(READS_AT_ONCE + 2):
        await driver.put_call(read(1, number))
    await driver.turn()

    async def begun_after_an_answer(number: int, later_s: float) -> list[int]:
        await trio.sleep(later_s)
        driver.reply(Caller(1, number), NotFound("x"))
        await driver.turn()
        return [number - READS_AT_ONCE for _, number in calls_of(rig.core.turns[-1])]

    assert await begun_after_an_answer(0, 0) == []
    await driver.put_call(read(1, READS_AT_ONCE + 2))
    assert await begun_after_an_answer(1, driver_module.HELD_S) == [0, 1], "that came before"
    assert await begun_after_an_answer(2, 0) == []
    assert await begun_after_an_answer(3, driver_module.HELD_S) == [2]
    assert await begun_after_an_answer(4, driver_module.HELD_S) == []


async def test_reads_that_have_a_place_begin_in_time_though_nothing_is_answered_any_more(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Fewer than half were answered, all of them at once; the others wait for a link that does not come."""
    rig = crowd(1)
    start, quick, held = trio.current_time(), READS_AT_ONCE // 2 - 4, 100
    nursery.start_soon(rig.driver.run)
    for number in range(READS_AT_ONCE + held):
        await rig.driver.put_call(read(1, number, until=start + 5.0))
    await trio.sleep(driver_module.HELD_S / 2)
    for number in range(quick):
        rig.driver.reply(Caller(1, number), NotFound("x"))
    await trio.sleep(4.0)
    begun = [
        (round(time - start, 3), number - READS_AT_ONCE)
        for time, turn in zip(rig.core.times, rig.core.turns, strict=True)
        for _, number in calls_of(turn)
        if number >= READS_AT_ONCE
    ]
    assert begun == [(driver_module.HELD_S, number) for number in range(quick)]
    assert len(rig.core.turns) < 10, "it turns on and on"
    nursery.cancel_scope.cancel()


async def test_who_waits_for_a_place_until_its_time_is_over_is_handed_over_then_and_takes_none(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """The core asks nobody about it: it tells the client. None of those under way is answered."""
    rig = crowd(1, 2)
    start = trio.current_time()
    nursery.start_soon(rig.driver.run)
    for number in range(READS_AT_ONCE):
        await rig.driver.put_call(read(1, number, until=start + 60.0))
    await trio.testing.wait_all_tasks_blocked()
    for number, time_s in enumerate((3.0, 1.0, 2.0, 1.0, 30.0)):
        await rig.driver.put_call(read(1, 1000 + number, until=start + time_s))
    await trio.sleep(5.0)
    late = [
        (round(time - start, 3), number)
        for time, turn in zip(rig.core.times, rig.core.turns, strict=True)
        for _, number in calls_of(turn)
        if number >= 1000
    ]
    assert late == [(1.0, 1001), (1.0, 1003), (2.0, 1002), (3.0, 1000)]
    for _, number in late:
        rig.driver.reply(Caller(1, number), NotFound("x"))
    await trio.sleep(1.0)
    assert calls_of(rig.core.turns[-1]) == [(1, 1000)], "their answers made no place"
    rig.driver.reply(Caller(1, 0), NotFound("x"))
    await trio.testing.wait_all_tasks_blocked()
    assert calls_of(rig.core.turns[-1]) == [(1, 1004)], "it was held for long enough"
    assert len(rig.core.turns) < 10, "it turns on and on"
    nursery.cancel_scope.cancel()


async def test_a_client_that_is_gone_takes_its_timers_with_it(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    rig = crowd(1)
    nursery.start_soon(rig.driver.run)
    for number in range(READS_AT_ONCE + 2):
        await rig.driver.put_call(read(1, number, until=trio.current_time() + 1.0))
    await trio.testing.wait_all_tasks_blocked()
    rig.driver.reply(Caller(1, 0), NotFound("x"))
    rig.driver.remove_session(FakeSession(rig.journal, 1))
    await trio.sleep(10.0)
    assert len(calls_of([event for turn in rig.core.turns for event in turn])) == READS_AT_ONCE
    assert len(rig.core.turns) < 5, "it turns on and on"
    nursery.cancel_scope.cancel()


async def test_clients_with_held_reads_are_not_all_looked_at_in_every_turn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    looked: list[float] = []

    class Clients(dict[int, driver_module._Client]):
        def values(self) -> ValuesView[driver_module._Client]:
            looked.append(trio.current_time())
            return super().values()

    rig = crowd(1, 2)
    driver = rig.driver
    driver._clients = Clients(driver._clients)
    for session in (1, 2):
        for number in range(READS_AT_ONCE + 10):
            await driver.put_call(read(session, number, until=trio.current_time() + 5.0))
        driver.reply(Caller(session, 0), NotFound("x"))
    for _ in range(100):
        await driver.turn()
    assert not looked
    await trio.sleep(driver_module.HELD_S)
    for _ in range(100):
        await driver.turn()
    assert len(looked) == 1


async def test_a_client_whose_reads_are_held_is_read_on_while_many_others_wait(nursery: trio.Nursery) -> None:
    """It asks whether the node lives, and gives it up when nothing is said."""
    everybody = range(1, 513)
    rig = crowd(*everybody)
    done: list[int] = []

    async def connection(session: int) -> None:
        for number in range(READS_AT_ONCE, driver_module.CLIENT_CALLS):
            await rig.driver.put_call(read(session, number))
        done.append(session)

    for session in everybody:
        rig.driver._clients[session].reads.update(range(READS_AT_ONCE))
        nursery.start_soon(connection, session)
    await trio.testing.wait_all_tasks_blocked()
    assert len(done) == len(everybody)
    await rig.driver.put_call(submit(1, 5000))
    await rig.driver.turn()
    assert calls_of(rig.core.turns[-1]) == [(1, 5000)]


async def test_an_answer_that_lets_nothing_begin_costs_no_turn(nursery: trio.Nursery) -> None:
    rig = crowd(1)
    for number in range(3):
        await rig.driver.put_call(read(1, number))
    nursery.start_soon(rig.driver.run)
    await trio.testing.wait_all_tasks_blocked()
    turns = len(rig.core.turns)
    for number in range(3):
        rig.driver.reply(Caller(1, number), NotFound("x"))
        await trio.testing.wait_all_tasks_blocked()
    assert len(rig.core.turns) == turns
    nursery.cancel_scope.cancel()


async def test_a_call_wakes_the_driver(nursery: trio.Nursery) -> None:
    rig = crowd(1)
    nursery.start_soon(rig.driver.run)
    await trio.testing.wait_all_tasks_blocked()
    await rig.driver.put_call(submit(1, 0))
    await trio.testing.wait_all_tasks_blocked()
    assert calls_of(rig.core.turns[-1]) == [(1, 0)]
    nursery.cancel_scope.cancel()


async def test_a_client_that_is_gone_leaves_nothing_behind(nursery: trio.Nursery) -> None:
    """Neither calls that no turn has taken, nor a task that waits, nor a count; what the core has goes on."""
    rig = crowd(1, 2)
    driver = rig.driver
    done: list[int] = []

    async def connection() -> None:
        for number in range(10_000):
            await driver.put_call(read(1, number) if number < 2 * READS_AT_ONCE else submit(1, number))
        done.append(1)

    for number in range(3):
        await driver.wait_for_room(Caller(1, number), 10)
    nursery.start_soon(connection)
    await trio.testing.wait_all_tasks_blocked()
    await driver.turn()
    await trio.testing.wait_all_tasks_blocked()
    await driver.put_call(submit(2, 0))
    assert not done and driver._clients[1].reads and driver._clients[1].held and driver._calls.weight(1)
    driver.remove_session(FakeSession(rig.journal, 1))
    await trio.testing.wait_all_tasks_blocked()
    assert done == [1]
    for number in range(READS_AT_ONCE):
        driver.reply(Caller(1, number), NotFound("x"))
    await driver.turn()
    assert calls_of(rig.core.turns[-1]) == [(2, 0)]
    driver.remove_session(FakeSession(rig.journal, 2))
    assert not driver._clients and not driver._calls and not driver._calls.lines
    assert (driver._calls._ends, driver._calls._heads) == ({}, [])


async def test_a_number_that_comes_again_before_its_answer_is_a_fault() -> None:
    """Two calls of one number would count as one: a client could have any number of them."""
    rig = crowd(1)
    await rig.driver.wait_for_room(Caller(1, 7), 10)
    with pytest.raises(RemoteFault, match="call 7 comes again"):
        await rig.driver.wait_for_room(Caller(1, 7), 10)
    rig.driver.reply(Caller(1, 7), NotFound("x"))
    await rig.driver.wait_for_room(Caller(1, 7), 10)


@pytest.mark.parametrize("seed", range(10))
async def test_every_call_of_clients_that_stay_is_taken_once_in_order_and_answered_once(
    seed: int, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "TURN_CALLS", 20 * CALL_BYTES)
    monkeypatch.setattr(driver_module, "CALLS_WAITING", 60 * CALL_BYTES)
    monkeypatch.setattr(driver_module, "CLIENT_CALLS", 50)
    monkeypatch.setattr(driver_module, "READS_AT_ONCE", 3)
    rng = random.Random(seed)
    rig = Rig()
    driver = rig.driver
    sessions = [FakeSession(rig.journal, number) for number in range(2, 8)]
    stay, leave = sessions[:4], sessions[4:]
    reads_of: dict[int, set[int]] = {}

    async def connection(session: FakeSession, kinds: Sequence[bool]) -> None:
        driver.add_session(session)
        for number, is_read in enumerate(kinds):
            call = read(session.number, number) if is_read else submit(session.number, number)
            await driver.wait_for_room(call.caller, 100)
            await driver.put_call(call, 100)

    for session in sessions:
        kinds = [rng.random() < 0.4 for _ in range(rng.choice((1, 5, 200)))]
        session.asked = len(kinds)
        reads_of[session.number] = {number for number, is_read in enumerate(kinds) if is_read}
        nursery.start_soon(connection, session, kinds)
    await trio.testing.wait_all_tasks_blocked()
    under_way: list[Event] = []
    took: list[tuple[int, int]] = []
    for turn in range(400):
        await driver.turn()
        under_way += [event for event in rig.core.turns[-1] if not isinstance(event, ClientGone)]
        took += calls_of(rig.core.turns[-1])
        for session in stay:
            reads = [e for e in under_way if isinstance(e, ClientBalance) and e.caller.session == session.number]
            assert len(reads) <= 3
        rng.shuffle(under_way)
        for _ in range(rng.randint(0, len(under_way))):
            driver.reply(under_way.pop().caller, NotFound("x"))
        if turn == 5:
            for session in leave:
                driver.remove_session(session)
        await trio.testing.wait_all_tasks_blocked()
    for session in stay:
        numbers = [number for whose, number in took if whose == session.number]
        assert sorted(numbers) == list(range(session.asked)) and len(session.replies) == session.asked
        for kind in (reads_of[session.number], set(numbers) - reads_of[session.number]):
            assert [number for number in numbers if number in kind] == sorted(kind), (
                "only its own linearizable reads may wait"
            )
    assert not under_way and not driver._calls.lines
    assert {number: client.bytes for number, client in driver._clients.items()} == dict.fromkeys((1, 2, 3, 4, 5), 0)

"""The order of a turn, its bounds, and what happens when the disk fails (design section 7)."""

from itertools import count

import msgspec
import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.errors import Corruption, RemoteFault, Removed, StorageFailure
from chain.genesis import issuer_links
from chain.link import Entry, LinkHash, Outcome, build_link, opening_slot
from chain.needs import Loaded, Needs
from chain.reads import Balance
from chain.request import NetworkId, Posting, sign, transfer
from chain.rows import Applied
from chain.seal import CursorRow
from chain.store import Write, commit
from hopchain.wire import AskBalance, NotFound
from netsim.names import make_genesis
from node import driver as driver_module
from node.effects import Answer, Effects, Read, Send, Stage
from node.events import Caller, Event, FromPeer, PeerDown, PeerUp, ToldRemoved
from node.messages import MAX_MESSAGE_BYTES, Links, Message, Pong, encode_frames, encode_message
from node.turn import Now
from routing.keyspace import NodeId
from tests.chain.bank import Bank, memory_database
from tests.node.driving import A, B, C, Rig, ping

WRITE = CursorRow(A, 7)
NETWORK = NetworkId(bytes(32))


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
    facts = Stage(send=(Send(A, ping(1.0, 2, 3)),), answers=(Answer(Caller(1, 5), NotFound("account x")),))
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


async def test_accounts_count_when_the_links_that_open_them_are_in_the_database() -> None:
    bank = Bank(memory_database())
    bank.open("alice", "bob")
    bank.pay("mint", ("alice", 100))
    alice, bob, paid = bank.links[-3:]
    rig = Rig([Effects(persist=(Applied(alice), Applied(paid))), Effects(persist=(Applied(bob),)), Effects()])
    gate = trio.Event()
    rig.database.before = lambda function: gate if function is commit else None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.driver.turn)
        await trio.testing.wait_all_tasks_blocked()
        assert rig.driver.opened == 0
        gate.set()
    opened = [rig.driver.opened]
    for _ in range(2):
        await rig.driver.turn()
        opened.append(rig.driver.opened)
    assert opened == [1, 2, 2]


async def test_who_is_paid_is_read_after_the_commit_as_who_pays_is() -> None:
    key = Ed25519PrivateKey.generate()
    request = transfer(NETWORK, "alice", [Posting("bob", 1), Posting("carol", 2)], bytes(32))
    signed = sign(request, key)
    entry = Entry(signed, request, signed.request_id, Outcome.COMPLETED)
    link = build_link(NETWORK, "alice", 1, opening_slot(NETWORK, "alice"), 0, 1, 1, [entry], [])
    facts = Stage(answers=(Answer(Caller(1, 5), NotFound("account x")),))
    rig = Rig([Effects(facts=facts, persist=(Applied(link),))])
    gate = trio.Event()
    rig.database.before = lambda function: gate if function is commit else None
    balances = rig.balances
    with balances.reading() as keep:
        keep(Balance("alice", "CZK", False, 3, 0, 0, LinkHash(bytes(32)), 0, 1, 1))
    read: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.driver.turn)
        await trio.testing.wait_all_tasks_blocked()
        for account in ("alice", "bob", "carol", "dave"):
            nursery.start_soon(reading, rig, account, read)
        await trio.testing.wait_all_tasks_blocked()
        assert read == ["dave"]
        assert not balances.has_all_of("alice"), "this turn's own vote may have decided it, and is not on the disk"
        assert balances.get("alice") == Balance("alice", "CZK", False, 3, 0, 0, LinkHash(bytes(32)), 0, 1, 1)
        gate.set()
    assert sorted(read) == ["alice", "bob", "carol", "dave"]
    assert balances.get("alice") == Balance("alice", "CZK", False, 0, 0, 0, link.hash, 1, 1, 1)


async def test_a_read_waits_for_the_commit_that_is_under_way_and_not_for_the_next_one() -> None:
    (link,) = issuer_links(make_genesis(["node 0"], 1))
    facts = Stage(answers=(Answer(Caller(1, 5), NotFound("account x")),))
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
    balances = rig.balances
    read: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.driver.turn)
        await trio.testing.wait_all_tasks_blocked()
        assert rig.journal == ["step"]
        gates[0].set()
        await trio.testing.wait_all_tasks_blocked()
        assert rig.journal == ["step", "commit", "send", "answer"]
        assert rig.database.writes == [(WRITE,)]
        assert balances.has_all_of(link.account), "what is decided is told by heart before it is on this disk"
        for account in (link.account, "another"):
            nursery.start_soon(reading, rig, account, read)
        await trio.testing.wait_all_tasks_blocked()
        assert read == ["another"]
        gates[1].set()
    assert rig.journal[4:] == ["commit", "drop: nothing was heard of it for too long", "read", "look up"]
    assert rig.database.writes[1:] == [(Applied(link),)] and balances.has_all_of(link.account)
    assert read == ["another", link.account]
    assert rig.driver.counters == {"commits": 2, "rows_written": 2, "turns": 1, "events": 0}


async def test_messages_that_promise_nothing_leave_before_the_links_of_their_turn_are_written() -> None:
    (link,) = issuer_links(make_genesis(["node 0"], 1))
    facts = Stage(send=(Send(A, ping(1.0, 2, 3)),))
    rig = Rig([msgspec.structs.replace(everything(persist=()), facts=facts, applied=(Applied(link),))])
    gate = trio.Event()
    rig.database.before = lambda function: gate if function is commit else None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.driver.turn)
        await trio.testing.wait_all_tasks_blocked()
        assert rig.journal == ["step", "send", "send", "answer"]
        assert rig.balances.has_all_of(link.account)
        gate.set()
    assert rig.journal == ["step", "send", "send", "answer", "commit", "read", "look up"]


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


async def test_other_neighbours_wait_for_the_links_and_so_does_all_that_is_said_in_that_turn() -> None:
    (link,) = issuer_links(make_genesis(["node 0"], 1))
    rig = Rig([msgspec.structs.replace(everything(), applied=(Applied(link),), neighbours=frozenset({A, B}))])
    await rig.driver.turn()
    assert rig.journal == ["step", "commit", "send", "neighbours 2", "answer", "read", "look up"]
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


async def test_other_neighbours_are_told_after_the_commit_and_before_the_answers() -> None:
    rig = Rig([msgspec.structs.replace(everything(), neighbours=frozenset({A, B})), everything()])
    await rig.driver.turn()
    assert rig.journal == ["step", "commit", "send", "neighbours 2", "answer", "read", "look up"]
    rig.journal.clear()
    await rig.driver.turn()
    assert rig.journal == ["step", "commit", "send", "answer", "read", "look up"]


async def test_who_was_removed_answers_what_it_has_to_before_it_ends() -> None:
    rig = Rig([msgspec.structs.replace(everything(), neighbours=frozenset({A, B}))])

    def over(neighbours: frozenset[NodeId]) -> None:
        raise Removed("it was removed")

    rig.driver._on_neighbours = over
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


async def test_a_message_that_no_frame_holds_is_dropped_and_counted_and_the_others_go_out() -> None:
    huge = Links((bytes(MAX_MESSAGE_BYTES),))
    rig = Rig([Effects(send=(Send(A, huge), Send(A, ping(1.0, 2, 3))))])
    rig.driver.put_nowait(PeerUp(A))
    await rig.driver.turn()
    assert rig.mesh.sent == [(A, (ping(1.0, 2, 3),))]
    assert rig.driver.counters["messages_too_large"] == 1

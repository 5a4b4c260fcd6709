"""What a running node does with a client's call before it is answered."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from hopchain.wire import (
    AskAccounts,
    AskBalance,
    AskChain,
    AskDigest,
    AskOutcome,
    AskRoute,
    AskStatus,
    Call,
    CallBody,
    NotFound,
    Submit,
    SubmitChange,
)
from node import client_calls, running
from node import driver as driver_module
from node.client_calls import CALL_BYTES
from node.client_port import Session
from node.config import NodeConfig
from node.events import ClientBalance, DiskSpace
from node.listings import Listings
from node.questions import account_asked
from node.running import MAX_LOOKUPS, RunningNode
from node.status import Disk
from node.turn import Now
from tests.node.driving import A, Rig

JUST_READ = ["read", "reply"]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        (AskDigest(), ["wait for any", *JUST_READ]),
        (AskChain("alice", 0, 1), ["wait for alice", *JUST_READ]),
        (AskAccounts("", 1), ["wait for any", *JUST_READ]),
        (AskStatus(), JUST_READ),
        (AskBalance("bob", min_height=8), ["wait for bob", *JUST_READ]),
        (AskBalance("bob", min_height=9, timeout_ms=1_000), ["hand to the core until 101.0"]),
        (AskBalance("bob", True, min_height=8, timeout_ms=1_500), ["hand to the core until 101.5"]),
        (AskBalance("alice", True, timeout_ms=1_500), ["hand to the core until 101.5"]),
        (AskBalance("alice", min_height=0, timeout_ms=2**40), ["hand to the core until 160.0"]),
    ],
)
async def test_the_replica_is_read_when_it_has_what_clients_were_told(
    question: CallBody, expected: list[str], nursery: trio.Nursery
) -> None:
    journal: list[str] = []
    clock = [100.0]

    async def wait_for_room(caller: object, size: int) -> None:
        assert size == 10

    async def wait_committed(account: str) -> None:
        journal.append(f"wait for {account or 'any'}")
        clock[0] += 2

    async def put(call: ClientBalance) -> None:
        journal.append(f"hand to the core until {call.until}")

    async def answer(body: CallBody, asked: float) -> NotFound:
        journal.append("read")
        assert asked == 100, "the wait for a commit is a part of what it takes"
        return NotFound("nothing")

    calls = SimpleNamespace(
        add_session=lambda session: None,
        wait_for_room=wait_for_room,
        put=put,
        reply=lambda caller, body: journal.append("reply"),
    )
    driver = SimpleNamespace(calls=calls, wait_committed=wait_committed)
    node = answering(driver, answer, nursery)
    node._ports = SimpleNamespace(clock=lambda: Now(clock[0], 0))
    await RunningNode._on_call(node, session(1), Call(1, question), 10)
    await trio.testing.wait_all_tasks_blocked()
    assert journal == expected


def session(number: int) -> Session:
    return cast(Session, SimpleNamespace(number=number))


def answering(driver: object, answer: object, nursery: trio.Nursery) -> Any:
    """A node that answers questions and nothing else."""
    node: Any = SimpleNamespace(
        driver=driver,
        _serving=SimpleNamespace(
            answer=answer,
            account_read=account_asked,
            has_height=lambda ask: ask.account == "bob" and ask.min_height < 9,
        ),
        _nursery=nursery,
        _beside=set[int](),
        _ports=SimpleNamespace(clock=lambda: Now(0.0, 0)),
    )
    node._answer = lambda caller, body: RunningNode._answer(node, caller, body)
    node._answer_beside = lambda caller, body: RunningNode._answer_beside(node, caller, body)
    node._start_soon = lambda job, *args: RunningNode._start_soon(node, job, *args)
    node._listings = Listings(node._answer, node._start_soon)
    return node


@pytest.mark.parametrize("question", [AskDigest(), AskRoute("alice", b"")], ids=lambda body: type(body).__name__)
async def test_a_connection_is_read_on_while_one_long_question_of_it_is_answered(
    question: CallBody, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its client, which asks for signs of life, takes the node for dead after a few seconds."""
    monkeypatch.setattr(running, "MAX_BESIDE", 2)
    ready = trio.Event()
    under_way: list[CallBody] = []

    async def answer(body: CallBody, asked: float) -> NotFound:
        if body == question:
            under_way.append(body)
            await ready.wait()
        return NotFound("nothing")

    replies: list[tuple[int, int]] = []
    driver = Rig().driver
    monkeypatch.setattr(driver.calls, "reply", lambda caller, body: replies.append((caller.session, caller.number)))
    node = answering(driver, answer, nursery)

    async def converse(number: int) -> None:
        for call, body in enumerate([question, AskStatus(), question, AskStatus()]):
            await RunningNode._on_call(node, session(number), Call(call, body), 10)

    for number in (1, 2, 3):
        nursery.start_soon(converse, number)
        await trio.testing.wait_all_tasks_blocked()
    assert sorted(replies) == [(1, 1), (2, 1)], "of the third connection none is answered beside it: two are"
    assert len(under_way) == 5, "the second one of a connection stops it"
    ready.set()
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(replies) == [(number, call) for number in (1, 2, 3) for call in range(4)]
    assert node._beside == set()


async def test_a_client_that_asks_for_lists_hears_signs_of_life_and_all_else_meanwhile(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it takes the node for dead after four seconds, as long as 40 clients' lists take."""
    ready = trio.Event()

    async def answer(body: CallBody, asked: float) -> NotFound:
        if isinstance(body, AskChain | AskAccounts):
            await ready.wait()
        return NotFound("nothing")

    replies: list[tuple[int, int]] = []
    driver = Rig().driver
    monkeypatch.setattr(driver.calls, "reply", lambda caller, body: replies.append((caller.session, caller.number)))
    node = answering(driver, answer, nursery)
    lists = [AskChain("alice", 0, 1000), AskAccounts("", 1000)] * 2
    others = [AskStatus(), AskOutcome(bytes(32), "alice"), AskBalance("alice")]

    async def converse(number: int) -> None:
        for call, body in enumerate([*lists, *others]):
            await RunningNode._on_call(node, session(number), Call(call, body), 10)

    for number in range(40):
        nursery.start_soon(converse, number)
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(replies) == [(number, len(lists) + call) for number in range(40) for call in range(len(others))]
    RunningNode._on_client_gone(node, session(39))
    ready.set()
    await trio.testing.wait_all_tasks_blocked()
    assert {(number, call) for number in range(39) for call in range(len(lists))} < set(replies)
    assert (39, len(lists) - 1) not in replies


@pytest.mark.parametrize(
    "body",
    [Submit(bytes(600), bytes(64), 1000), SubmitChange(bytes(600), bytes(64), 1000)],
    ids=lambda body: type(body).__name__,
)
async def test_a_request_counts_with_its_bytes_where_it_waits(body: CallBody, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client is not read while its requests that wait for a turn are as large as they may be, however few they
    are."""
    monkeypatch.setattr(client_calls, "CALLS_WAITING", 2 * (CALL_BYTES + 700))
    monkeypatch.setattr(driver_module, "TURN_CALLS", CALL_BYTES)
    driver = Rig().driver
    node = cast(Any, SimpleNamespace(driver=driver))

    async def read_connection() -> None:
        for number in range(4):
            await RunningNode._on_call(node, session(1), Call(number, body), 700)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_connection)
        for waiting in (3, 3, 2, 1, 0):
            await trio.testing.wait_all_tasks_blocked()
            assert driver.calls._waiting.weight(1) == waiting * (CALL_BYTES + 700)
            await driver.turn()


async def test_the_dht_is_told_of_the_start_of_whoever_connects() -> None:
    """Its datagrams are heard then however many others come."""
    told: list[tuple[bytes, bytes]] = []
    ups: list[tuple[bytes, bytes, bool]] = []
    driver = SimpleNamespace(on_peer_up=lambda peer, boot, *, replaced: ups.append((peer, boot, replaced)))
    node = cast(Any, SimpleNamespace(driver=driver, _dht=SimpleNamespace(expect=lambda *start: told.append(start))))
    for boot in (b"1" * 16, b"2" * 16):
        node.mesh = SimpleNamespace(hello_of=lambda peer, boot=boot: SimpleNamespace(boot=boot))
        RunningNode._on_peer_up(node, A, replaced=boot == b"2" * 16)
    assert told == [(A, b"1" * 16), (A, b"2" * 16)]
    assert ups == [(A, b"1" * 16, False), (A, b"2" * 16, True)]


async def test_so_many_lookups_are_under_way_and_no_two_of_one_key(nursery: trio.Nursery) -> None:
    """More would find the same addresses; what was left out is asked for again when it is still not reached."""
    looked_up: list[bytes] = []
    found = trio.Event()

    async def look_up(key: bytes) -> None:
        looked_up.append(key)
        await found.wait()

    node = cast(Any, SimpleNamespace(driver=Rig().driver, _lookups=set(), _nursery=nursery))
    node._dht = SimpleNamespace(lookup=look_up)
    node._lookup = lambda key: RunningNode._lookup(node, key)
    keys = [bytes([number]) * 20 for number in range(MAX_LOOKUPS + 3)]
    for key in [keys[0], *keys]:
        RunningNode._look_up(node, key)
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(looked_up) == keys[:MAX_LOOKUPS]
    found.set()
    await trio.testing.wait_all_tasks_blocked()
    RunningNode._look_up(node, keys[-1])
    await trio.testing.wait_all_tasks_blocked()
    assert looked_up[-1] == keys[-1]


def test_the_core_hears_of_the_disk_while_it_is_nearly_full_and_once_more() -> None:
    gib = 1024**3
    told: list[object] = []
    seen = [3 * gib, 2 * gib, 2 * gib - 1, None, 5, 2 * gib, 3 * gib]  # None: it could not be looked at
    disks = iter([Disk(0, 0, 0) if free is None else Disk(free, 100 * gib, 0) for free in seen])
    node: Any = SimpleNamespace(
        driver=SimpleNamespace(put_nowait=told.append),
        _ports=SimpleNamespace(disk=lambda: next(disks)),
        _config=NodeConfig("127.0.0.1", 1, 2, "127.0.0.1"),
        _disk=DiskSpace(0, 0),
    )
    for _ in seen:
        RunningNode._look_at_disk(node)
    assert told == [DiskSpace(2 * gib - 1, 2 * gib), DiskSpace(5, 2 * gib), DiskSpace(2 * gib, 2 * gib)]


@pytest.mark.parametrize("total", [0, 64 * 2**20, 100 * 2**30])
def test_a_disk_that_is_not_known_is_not_full_and_of_a_small_one_less_is_kept_free(total: int) -> None:
    """Where nothing is told of the disk, a node works."""
    told: list[object] = []
    limits = NodeConfig("127.0.0.1", 1, 2, "127.0.0.1").limits
    node: Any = SimpleNamespace(
        driver=SimpleNamespace(put_nowait=told.append),
        _ports=SimpleNamespace(disk=lambda: Disk(min(total // 20, 2 * 2**30), total, 0)),
        _config=SimpleNamespace(limits=limits),
        _disk=DiskSpace(0, 0),
    )
    RunningNode._look_at_disk(node)
    assert told == [] and limits.disk_reserve(total) == min(total // 20, 2 * 2**30)

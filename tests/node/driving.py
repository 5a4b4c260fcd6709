"""A driver among fakes that write into one journal: its core, its database, its network and its clients."""

from collections.abc import Callable, Sequence

import trio
import trio.testing

from chain.load import load
from chain.needs import Loaded, Needs
from chain.store import Write, commit
from hopchain.wire import Reply, ReplyBody, decode_node_frame_untrusted
from node.balances import Balances
from node.driver import Driver
from node.effects import Effects
from node.events import Event
from node.messages import Message, Ping, decode_frame_untrusted
from node.turn import Now
from routing.keyspace import NodeId

A, B, C = (NodeId(bytes([n]) * 20) for n in (1, 2, 3))


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
        self.balances = Balances()
        self.driver = Driver(
            self.core,
            self.database,
            lambda: Now(trio.current_time(), 0),
            serve_read=lambda read: self.journal.append("read"),
            look_up=lambda key: self.journal.append("look up"),
            balances=self.balances,
            on_neighbours=lambda neighbours: self.journal.append(f"neighbours {len(neighbours)}"),
        )
        self.driver.mesh = self.mesh
        self.driver.calls.add_session(self.session)

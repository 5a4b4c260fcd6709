"""Frames of messages: what goes in comes out; whatever comes in raises only `RemoteFault`, and breaks no node."""

import random
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from chain.errors import MAX_TEXT_CHARS, Corruption, Quarantined, RemoteFault
from chain.store import Write
from hopchain.framing import MAX_FRAME_BYTES
from node.events import FromPeer
from node.messages import MAX_EARLIER, Message, Offer, Ping, decode_frame_untrusted, encode_frames, encode_message
from node.pulling import EARLIER
from routing.keyspace import NodeId
from tests.node.watch import Watch
from tests.node.world import World


def sample_messages() -> list[Message]:
    """At least one of every kind that a short history sends."""
    world = World(4, 3, seed=8)
    seen: dict[type[Any], Message] = {}

    def note(source: bytes, target: bytes, message: Any) -> bool:
        seen.setdefault(type(message), message)
        return False

    world.lose = note
    world.open_funded(alice=100, bob=0)
    for amount in (1, 5000):
        for node in world.ids:
            world.pay("alice", "bob", amount, at=node)
            world.pay("alice", "nobody", amount, at=node)
    world.crash(world.group("alice")[0])
    world.pay("alice", "bob", 1, at=world.alive[0])
    world.run(5)
    return list(seen.values())


@pytest.fixture(scope="module")
def messages() -> list[Message]:
    return sample_messages()


def frame(messages: list[Message]) -> bytes:
    (payload,) = encode_frames([encode_message(m) for m in messages])
    return payload


def test_a_frame_gives_back_its_messages(messages: list[Message]) -> None:
    assert len(messages) >= 14
    assert list(decode_frame_untrusted(frame(messages))) == messages


def test_a_ping_from_a_clock_that_no_answer_to_a_client_could_tell_is_refused() -> None:
    """How far its clock is apart from this one is told as an integer of 64 bits."""
    for time_ms in (-(2**63), -1, 2**63):
        with pytest.raises(RemoteFault):
            decode_frame_untrusted(frame([Ping(0.0, 0, 0, 1, True, time_ms)]))


def test_an_offer_names_no_more_logs_than_a_reader_looks_at_in_a_turn() -> None:
    for count in (MAX_EARLIER, MAX_EARLIER + 1):
        offer = Offer((), 0, 0, 0, 0, 1, ((1, 1),) * count)
        if count <= MAX_EARLIER:
            assert list(decode_frame_untrusted(frame([offer]))) == [offer]
        else:
            with pytest.raises(RemoteFault):
                decode_frame_untrusted(frame([offer]))
    assert EARLIER <= MAX_EARLIER


def test_messages_are_split_into_frames_in_order(messages: list[Message], monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = [encode_message(m) for m in messages * 40]
    longest = max(len(raw) for raw in encoded)
    for size, count in ((longest + 5, 20_000), (4 * longest, 20_000), (8 << 20, 7), (8 << 20, 1)):
        monkeypatch.setattr("node.messages.MAX_FRAME_BYTES", size)
        monkeypatch.setattr("node.messages.MAX_MESSAGES", count)
        frames = list(encode_frames(encoded))
        assert all(len(payload) <= size for payload in frames)
        decoded = [decode_frame_untrusted(payload) for payload in frames]
        assert max(map(len, decoded)) <= count
        assert [m for part in decoded for m in part] == messages * 40
    assert list(encode_frames([])) == []


def test_a_frame_with_too_many_messages_is_refused(messages: list[Message], monkeypatch: pytest.MonkeyPatch) -> None:
    payload = frame(messages)
    monkeypatch.setattr("node.messages.MAX_MESSAGES", len(messages) - 1)
    with pytest.raises(RemoteFault, match=f"{len(messages)} messages: at most {len(messages) - 1}"):
        decode_frame_untrusted(payload)


def decodes(payload: bytes) -> tuple[Message, ...]:
    """The messages, or nothing when it is refused as it must be."""
    try:
        return decode_frame_untrusted(payload)
    except RemoteFault:
        return ()


def test_no_bytes_make_the_decoder_raise_anything_else(messages: list[Message]) -> None:
    rng = random.Random(1)
    payload = frame(messages)
    for _ in range(4000):
        raw = bytearray(payload)
        for _ in range(rng.choice([1, 1, 2, 8])):
            raw[rng.randrange(len(raw))] = rng.choice([rng.randrange(256), 0xC1, 0xDD, 0xFF, 0x91, 0xC0])
        decodes(bytes(raw[: rng.choice([len(raw), rng.randrange(len(raw))])]))
        decodes(rng.randbytes(rng.randrange(60)))
    for depth in (10, 2_000, 200_000):
        with pytest.raises(RemoteFault):
            decode_frame_untrusted(b"\x91" * depth)


def test_what_is_said_of_a_frame_quotes_little_of_it() -> None:
    """A frame may be one name of 8 MiB that the decoder does not know, and its fault stands in the log."""
    for head in (b"\x91\x91", b"\x91\x92\xa4want", b"\x91"):
        left = MAX_FRAME_BYTES - len(head) - 5
        with pytest.raises(RemoteFault) as caught:
            decode_frame_untrusted(head + b"\xdb" + left.to_bytes(4, "big") + b"x" * left)
        assert len(str(caught.value)) < MAX_TEXT_CHARS + 100


class Blind(Watch):
    """Believes everything: here a member lies."""

    def on_commit(self, node: NodeId, writes: Iterable[Write], now: float) -> None:
        pass

    def on_send(self, node: NodeId, message: Message) -> None:
        pass


def blind_world(seed: int) -> World:
    world = World(4, 3, seed)
    world.open_funded(alice=1000, bob=0)
    world.watch.__class__ = Blind
    return world


def test_no_well_formed_message_breaks_a_node(messages: list[Message]) -> None:
    """Fields changed at random, one or two at a time: hashes of other things, numbers at their ends, other accounts.

    Members believe each other's word, so a lie may stop a node: with `Corruption` or `Quarantined`, with nothing else.
    """
    rng = random.Random(2)
    world = blind_world(8)
    builtin = [msgspec.to_builtins(m, builtin_types=(bytes,)) for m in messages]
    accepted = stopped = 0
    for _ in range(1500):
        raw = msgspec.msgpack.encode([mutated(placed(rng.choice(builtin), rng, world), rng, world)])
        target, source = rng.sample(world.ids, 2)
        for message in decodes(raw):
            accepted += 1
            world.deliver(target, FromPeer(source, message))
        try:
            world.run(rng.choice([0.0, 0.01, 0.3]))
        except (Corruption, Quarantined):
            stopped += 1
            world = blind_world(8 + stopped)
    assert accepted > 300
    assert stopped < accepted / 5


def next_slot(world: World, account: str) -> tuple[bytes, str, int]:
    link = world.watch.accounts[account].links[-1]
    return link.hash, account, link.height + 1


def placed(value: Any, rng: random.Random, world: World) -> Any:
    """The message with every slot that it names replaced by one that is open in this world."""
    if not isinstance(value, list | tuple):
        return value
    if [type(part) for part in value] == [bytes, str, int]:
        return list(next_slot(world, rng.choice(["alice", "bob", "mint"])))
    return [placed(part, rng, world) for part in value]


def mutated(value: Any, rng: random.Random, world: World) -> Any:
    """The message with one or two of its leaves replaced by others of the same kind."""
    for _ in range(rng.randint(1, 2)):
        value = replaced(value, rng, world)
    return value


def replaced(value: Any, rng: random.Random, world: World) -> Any:
    if isinstance(value, list | tuple) and value:
        i = rng.randrange(len(value))
        return [*value[:i], replaced(value[i], rng, world), *value[i + 1 :]]
    links = [link for account in world.watch.accounts.values() for link in account.links]
    choices: dict[type[Any], list[Any]] = {
        bool: [True, False],
        int: [0, 1, 2, 7, 160, 2**31, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -1],
        float: [0.0, -1.0, 1e300, float("inf"), float("nan")],
        str: ["alice", "bob", "mint", "nobody", "", "\0", "\ud7ff", "a" * 64, "a" * 65],
        bytes: [b"", bytes(20), bytes(32), b"\xff" * 32, *world.ids, *(link.hash for link in links), links[-1].raw],
    }
    return rng.choice(choices.get(type(value), [None, [], 0, b""]))

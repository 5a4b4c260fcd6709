"""One test per limit of the library (design section 4), and what a DHT node does with bad input. On the test's
clock."""

import random
from collections import Counter

import msgspec
import pytest
import trio
import trio_asyncio
from kademlia.node import Node

from routing.crawl import MAX_ASKED, Crawl
from routing.dht import INBOX, MAX_LOOKUPS, MAX_SEEDS, Contact, open_dht
from routing.errors import RoutingMisuse
from routing.keyspace import NodeId, closest, node_id_of
from routing.protocol import MAX_CHECKS
from routing.rpc import encode_call, encode_reply
from routing.rtt import FAILURES_TO_EVICT, FIRST_TIMEOUT_S
from routing.sealing import Sealer
from routing.table import Change
from tests.routing.routing_world import NETWORK_ID, NETWORK_KEY, MemoryNetwork, join, make_world, settle

FAKE = ("10.6.6.6", 666)  # an address with nobody at it
STRANGER = node_id_of(b"stranger")


def _contact(dht) -> Contact:
    return Contact(dht.node_id, *dht.address)


def _sealer(node_id: NodeId, boot: bytes = b"\7" * 16, key: bytes = NETWORK_KEY) -> Sealer:
    """Makes datagrams as the node with this id, from a start of its own."""
    return Sealer(key, NETWORK_ID, node_id, boot, trio.current_time)


def _lose_next(network: MemoryNetwork, count: int) -> None:
    """The next `count` datagrams are lost."""
    left = [count]

    def lose(_data, _source, _to) -> bool:
        left[0] -= 1
        return left[0] >= 0

    network.blocked = lose


def _cut(network: MemoryNetwork, dht) -> None:
    """Nothing reaches this node, and nothing comes from it."""
    address = dht.address
    network.blocked = lambda _data, source, to: address in (source, to)


# Limit 1: find_neighbors


async def test_an_answer_holds_the_exact_k_closest_contacts(autojump_clock):
    async with make_world(11) as world:
        hub, asker, *others = [await world.add(ksize=20) for _ in range(60)]
        await join(hub, asker, *others)
        known = {contact.id for contact in hub.contacts()} - {asker.node_id}
        assert len(known) > 20
        for _ in range(20):
            key = world.rng.randbytes(20)
            answer = await trio_asyncio.aio_as_trio(asker._protocol.ask)(hub.node_id, hub.address, "find_node", (key,))
            assert tuple(triple[0] for triple in answer.value) == closest(known, key, 20)


# Limit 2: one lost datagram evicts a healthy contact


@pytest.mark.parametrize("lost", [1, 2])
async def test_a_lost_datagram_costs_a_repetition_and_not_the_contact(autojump_clock, lost):
    async with make_world(12) as world:
        events = []
        a = await world.add(on_contact=events.append)
        b = await world.add()
        await join(b, a)
        _lose_next(world.network, lost)
        assert await a.ping(_contact(b)) is not None
        assert a.contacts() == (_contact(b),)
        assert [event.change for event in events] == [Change.ADDED]


async def test_a_dead_contact_is_lost_after_repeated_failures_and_not_before(autojump_clock):
    async with make_world(13) as world:
        events = []
        a = await world.add(on_contact=events.append)
        b = await world.add()
        await join(b, a)
        _cut(world.network, b)
        for failures in range(1, FAILURES_TO_EVICT + 1):
            assert await a.ping(_contact(b)) is None
            assert bool(a.contacts()) == (failures < FAILURES_TO_EVICT)
        assert [event.change for event in events] == [Change.ADDED, Change.LOST]
        assert events[-1].contact == _contact(b)


async def test_many_calls_into_one_short_silence_are_one_failure(autojump_clock):
    async with make_world(14) as world:
        a, b = await world.add(), await world.add()
        await join(b, a)
        _cut(world.network, b)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(a.ping, _contact(b))
        assert a.contacts() == (_contact(b),)


async def test_one_that_was_lost_and_calls_again_is_a_contact_with_all_its_chances(autojump_clock):
    async with make_world(15) as world:
        a, b = await world.add(), await world.add()
        await join(b, a)
        _cut(world.network, b)
        for _ in range(FAILURES_TO_EVICT):
            await a.ping(_contact(b))
        _lose_next(world.network, 0)
        await b.ping(_contact(a))
        assert a.contacts() == (_contact(b),)
        _cut(world.network, b)
        assert await a.ping(_contact(b)) is None
        assert a.contacts() == (_contact(b),)


# Limit 3: a handler that raises answers nothing


async def test_a_call_that_is_not_served_is_answered_with_an_error_at_once(autojump_clock):
    async with make_world(16) as world:
        a, b = await world.add(), await world.add()
        await join(b, a)
        ask = trio_asyncio.aio_as_trio(a._protocol.ask)
        for name, args in (
            ("store", (bytes(20), b"value")),
            ("find_value", (bytes(20),)),
            ("stun", ()),
            ("welcome_if_new", ()),
            ("find_node", ()),
            ("find_node", (b"short",)),
        ):
            before = trio.current_time()
            answer = await ask(b.node_id, b.address, name, args)
            assert (answer.sender, answer.value) == (b.node_id, None)
            assert trio.current_time() - before < 0.1 < FIRST_TIMEOUT_S
        assert a.dropped["error_reply"] == 6
        assert b.dropped == {"refused": 4, "malformed": 2}
        assert a.contacts() == (_contact(b),), "one that answers with an error is alive"


async def test_a_handlers_own_bug_is_answered_with_an_error_and_reaches_the_nursery(autojump_clock):
    def buggy(_event):
        raise KeyError("a bug of ours")

    async with make_world(17) as world:
        a = await world.add()
        with pytest.RaisesGroup(pytest.RaisesExc(KeyError, match="a bug of ours"), flatten_subgroups=True):
            async with open_dht(
                STRANGER,
                "10.0.0.2",
                1,
                NETWORK_KEY,
                NETWORK_ID,
                world.rng,
                bytes(16),
                datagrams=world.network,
                on_contact=buggy,
            ):
                before = trio.current_time()
                ask = trio_asyncio.aio_as_trio(a._protocol.ask)
                with trio.CancelScope(shield=True):  # the bug ends the other node while we wait for its answer
                    answer = await ask(STRANGER, ("10.0.0.2", 1), "ping", ())
                assert (answer.sender, answer.value) == (STRANGER, None)
                assert trio.current_time() - before < FIRST_TIMEOUT_S


# Limit 4: a known id at a new address is ignored


async def test_a_node_that_moved_is_found_at_its_new_address(autojump_clock):
    async with make_world(18) as world:
        events = []
        a = await world.add(on_contact=events.append)
        async with open_dht(
            STRANGER, "10.0.0.2", 1, NETWORK_KEY, NETWORK_ID, world.rng, b"1" * 16, datagrams=world.network
        ) as before:
            await join(a, before)
        async with open_dht(
            STRANGER, "10.0.0.3", 1, NETWORK_KEY, NETWORK_ID, world.rng, b"2" * 16, datagrams=world.network
        ) as after:
            await join(a, after)
            await settle(0.1)
            assert a.contacts() == (_contact(after),)
            assert [(e.change, e.contact.host) for e in events] == [
                (Change.ADDED, "10.0.0.2"),
                (Change.MOVED, "10.0.0.3"),
            ]


async def test_an_old_datagram_sent_from_elsewhere_moves_nobody(autojump_clock):
    async with make_world(19) as world:
        a, b = await world.add(), await world.add()
        await join(b, a)
        world.network.blocked = lambda _data, source, _to: source == b.address
        with trio.move_on_after(0.05):
            await b.ping(_contact(a))
        caught = world.network.log[-1][0]  # it never arrived, so it is no replay
        world.network.blocked = lambda _data, _source, to: to == FAKE
        world.network.inject(caught, FAKE, a.address)
        await settle()
        assert any(to == FAKE for _, _, to in world.network.log), "the hint was followed"
        assert a.contacts() == (_contact(b),)


async def test_a_lookup_tries_the_other_address_of_a_node_that_moved(autojump_clock):
    async with make_world(20) as world:
        asker, helper = await world.add(), await world.add()
        target = await world.add(host="10.0.0.7")
        await helper.bootstrap([target.address])
        old = Contact(target.node_id, "10.0.0.6", 1)
        liar = await world.add()  # still has the old address
        liar._protocol.router.add_contact(Node(old.id, old.host, old.port))
        world.network.delay = lambda source, _to: 0.02 if source == liar.address else 0.05
        await asker.bootstrap([helper.address])
        asker._protocol.router.remove_contact(Node(target.node_id))
        await liar.ping(_contact(asker))
        found = await asker.lookup(target.node_id)
        assert found.contacts[0] == _contact(target)
        assert any(to == (old.host, old.port) for _, source, to in world.network.log if source == asker.address)


async def test_a_lookup_tries_the_new_address_also_when_the_old_one_has_failed_already(autojump_clock):
    async with make_world(45) as world:
        asker, helper, target = [await world.add() for _ in range(3)]
        await join(helper, target, asker)
        old = Contact(target.node_id, "10.0.0.6", 1)
        asker._protocol.router.add_contact(Node(old.id, old.host, old.port))
        assert await asker.ping(old) is None
        patience = sum(asker._protocol.round_trips.timeouts(target.node_id))
        # So the helper answers after the old address has failed.
        world.network.delay = lambda _source, _to: 0.6 * patience
        found = await asker.lookup(target.node_id)
        assert found.contacts[0] == _contact(target)
        assert found.failed == ()


async def test_calls_to_an_old_address_do_not_cost_a_contact_its_place(autojump_clock):
    async with make_world(46) as world:
        a, b = await world.add(), await world.add()
        await join(b, a)
        for _ in range(FAILURES_TO_EVICT + 1):
            assert await a.ping(Contact(b.node_id, *FAKE)) is None
        assert a.contacts() == (_contact(b),)


# Limit 5: lookup rounds wait for the slowest


async def test_a_silent_contact_does_not_hold_up_the_others(autojump_clock):
    async with make_world(21) as world:
        asker, *others = [await world.add() for _ in range(8)]
        await join(asker, *others)
        key = others[0].node_id  # asked first
        _cut(world.network, others[0])
        asked_at = {}
        blocked = world.network.blocked

        def watch(data, source, to) -> bool:
            if source == asker.address:
                asked_at.setdefault(to, trio.current_time())
            return blocked(data, source, to)

        world.network.blocked = watch
        started = trio.current_time()
        found = await asker.lookup(key)
        assert found.failed == (others[0].node_id,)
        assert tuple(c.id for c in found.contacts) == closest({n.node_id for n in others[1:]}, key, 20)
        patience = asker._protocol.round_trips.timeouts(others[1].node_id)[0]
        assert max(asked_at.values()) - started < patience, "all were asked before the silent one's first timeout"


async def test_with_one_call_at_a_time_a_silent_contact_gives_its_place_after_its_first_timeout(autojump_clock):
    async with make_world(22) as world:
        asker = await world.add(alpha=1)
        others = [await world.add() for _ in range(4)]
        await join(asker, *others)
        _cut(world.network, others[0])
        timeouts = asker._protocol.round_trips.timeouts(others[0].node_id)
        found = await asker.lookup(others[0].node_id)
        assert len(found.contacts) == 3
        assert sum(timeouts) <= found.took_s < sum(timeouts) + 0.05, "the others were asked while it was waited for"


async def test_at_most_alpha_calls_are_in_flight_until_the_end_is_near(autojump_clock):
    async with make_world(23) as world:
        asker, *others = [await world.add() for _ in range(12)]
        await join(asker, *others)
        world.network.log.clear()
        world.network.delay = lambda _source, _to: 1000.0
        with trio.move_on_after(0.01):
            await asker.lookup(bytes(20))
        assert len(world.network.log) == 3


async def test_when_nobody_closer_is_named_all_that_are_left_are_asked_at_once(autojump_clock):
    async with make_world(47) as world:
        asker, *others = [await world.add() for _ in range(21)]
        await join(asker, *others)
        world.network.delay = lambda _source, _to: 0.02
        found = await asker.lookup(bytes(20))
        assert len(found.asked) == 20
        assert found.took_s == pytest.approx(2 * 0.04), "three, then seventeen"


async def test_no_more_lookups_run_at_once_than_the_bound(autojump_clock):
    async with make_world(48) as world:
        a, b = await world.add(), await world.add()
        await join(b, a)
        world.network.log.clear()
        world.network.delay = lambda _source, _to: 1000.0
        with trio.move_on_after(0.01):
            async with trio.open_nursery() as nursery:
                for _ in range(MAX_LOOKUPS + 10):
                    nursery.start_soon(a.lookup, bytes(20))
        assert len(world.network.log) == MAX_LOOKUPS


# Limit 6: no authentication


async def test_what_is_not_sealed_for_us_is_dropped_counted_and_not_answered(autojump_clock):
    async with make_world(24) as world:
        a = await world.add()
        call = encode_call(bytes(20), "ping", (STRANGER,))
        good = _sealer(STRANGER).seal(call, a.node_id)
        for data in (
            b"\0" + bytes(20) + msgspec.msgpack.encode(["ping", [STRANGER]]),  # as the library sends it
            b"x" * 5000,
            _sealer(STRANGER, key=b"x" * 32).seal(call, a.node_id),
            Sealer(NETWORK_KEY, b"y" * 32, STRANGER, bytes(16), trio.current_time).seal(call, a.node_id),
            _sealer(STRANGER).seal(call, node_id_of(b"somebody else")),
            good[:-1] + b"\0",
        ):
            world.network.inject(data, FAKE, a.address)
        await settle()
        assert a.dropped == {"short": 1, "oversized": 1, "forged": 2, "foreign": 1, "misdirected": 1}
        assert world.network.log == []
        assert a.contacts() == ()


async def test_a_replayed_call_is_dropped(autojump_clock):
    async with make_world(25) as world:
        a = await world.add()
        datagram = _sealer(STRANGER).seal(encode_call(bytes(20), "ping", (STRANGER,)), a.node_id)
        for _ in range(3):
            world.network.inject(datagram, FAKE, a.address)
        await settle()
        assert a.dropped == {"replayed": 2}
        assert len(world.network.log) == 1


async def test_a_flood_of_forged_datagrams_keeps_out_no_known_start_and_a_new_one_not_for_long(autojump_clock):
    async with make_world(29) as world:
        a, known, new, expected = [await world.add() for _ in range(4)]
        await join(a, known)
        forged = _sealer(STRANGER, key=b"x" * 32).seal(b"", a.node_id)

        async def flood() -> None:
            while True:
                world.network.inject(forged, FAKE, a.address)
                await trio.sleep(1 / 5_000)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await settle(2.0)
            assert a.dropped["crowded"] > 5_000
            assert None not in [await known.ping(_contact(a)) for _ in range(10)]
            a.expect(expected.node_id, expected._sealer._boot_id)
            sent = world.network.sent[expected.address]
            assert await expected.ping(_contact(a)) is not None
            assert world.network.sent[expected.address] == sent + 1, "the first datagram was heard"
            rounds = 1
            while not await new.bootstrap([a.address]):
                rounds += 1
            assert rounds <= 20, "each of its datagrams has one chance in ten"
            assert await new.ping(_contact(a)) is not None
            nursery.cancel_scope.cancel()


async def test_a_member_cannot_speak_as_another_one(autojump_clock):
    async with make_world(26) as world:
        a, b = await world.add(), await world.add()
        for name, rest in (("ping", ()), ("find_node", (bytes(20),))):
            call = encode_call(bytes(20), name, (b.node_id, *rest))
            world.network.inject(_sealer(STRANGER, name.ljust(16).encode()).seal(call, a.node_id), FAKE, a.address)
        await settle()
        assert a.dropped == {"impostor": 2}
        assert a.contacts() == ()


# Limit 7: task exceptions are lost


async def test_the_error_of_a_background_task_leaves_open_dht(autojump_clock):
    def buggy(event):
        if event.change is Change.MOVED:
            raise KeyError("a bug of ours")

    async with make_world(27) as world:
        b = await world.add()
        with pytest.RaisesGroup(pytest.RaisesExc(KeyError, match="a bug of ours"), flatten_subgroups=True):
            async with open_dht(
                STRANGER,
                "10.0.0.2",
                1,
                NETWORK_KEY,
                NETWORK_ID,
                world.rng,
                bytes(16),
                datagrams=world.network,
                on_contact=buggy,
            ) as a:
                a._protocol.router.add_contact(Node(b.node_id, *FAKE))
                await b.ping(_contact(a))  # from another address: a pings it there, in the background
                await settle()
                pytest.fail("the error was lost")


# Limit 8: replies match on message id only


@pytest.mark.parametrize("wrong", ["sender", "address"])
async def test_a_reply_from_another_sender_or_address_is_no_reply(autojump_clock, wrong):
    async with make_world(28) as world:
        a, b, c = [await world.add() for _ in range(3)]
        await join(b, a)
        eavesdropper = _sealer(b.node_id)

        def answer_for_b(data, source, to) -> bool:
            if (source, to) == (a.address, b.address):
                message_id = eavesdropper.open_untrusted(data).payload[1:21]
                speaker, home = (c.node_id, b.address) if wrong == "sender" else (b.node_id, c.address)
                boot = trio.current_time().hex().encode()[-16:].rjust(16)
                forged = _sealer(speaker, boot).seal(encode_reply(message_id, speaker), a.node_id)
                world.network.inject(forged, home, a.address)
            return True

        world.network.blocked = answer_for_b
        assert await a.ping(_contact(b)) is None
        assert a.dropped["stranger"] == 3


async def test_a_ping_reply_with_another_id_than_its_seal_is_no_reply(autojump_clock):
    async with make_world(29) as world:
        a, b = await world.add(), await world.add()
        eavesdropper = _sealer(b.node_id)

        def lie(data, source, to) -> bool:
            if source == a.address:
                message_id = eavesdropper.open_untrusted(data).payload[1:21]
                forged = _sealer(b.node_id).seal(encode_reply(message_id, STRANGER), a.node_id)
                world.network.inject(forged, b.address, a.address)
            return True

        world.network.blocked = lie
        found = await trio_asyncio.aio_as_trio(a._protocol.call_ping)(Node(b.node_id, *b.address))
        assert found == (False, None)
        assert a.dropped == {"impostor": 1}


async def test_two_replies_that_arrive_together_are_one(autojump_clock):
    async with make_world(49) as world:
        a, b = await world.add(), await world.add()
        await join(b, a)
        eavesdropper = _sealer(b.node_id)

        def answer_twice(data, source, _to) -> bool:
            if source == a.address:
                reply = encode_reply(eavesdropper.open_untrusted(data).payload[1:21], b.node_id)
                for _ in range(2):
                    world.network.inject(eavesdropper.seal(reply, a.node_id), b.address, a.address)
            return True

        world.network.blocked = answer_twice
        assert await a.ping(_contact(b)) == 0.0
        assert a.dropped == {"late": 1}


async def test_a_lookup_does_not_believe_that_we_are_elsewhere(autojump_clock):
    async with make_world(50) as world:
        a, b = await world.add(), await world.add()
        await join(b, a)
        eavesdropper = _sealer(b.node_id)

        def name_ourselves(data, source, _to) -> bool:
            if source == a.address:
                reply = encode_reply(eavesdropper.open_untrusted(data).payload[1:21], [(a.node_id, *FAKE)])
                world.network.inject(eavesdropper.seal(reply, a.node_id), b.address, a.address)
            return True

        world.network.blocked = name_ourselves
        found = await a.lookup(a.node_id)
        assert (found.contacts, found.asked) == ((_contact(b),), (b.node_id,))


# Bad input, bounds, upkeep


async def test_hints_are_followed_once_at_a_time_and_up_to_a_bound(autojump_clock):
    async with make_world(51) as world:
        a = await world.add(ksize=32)
        members = [_sealer(node_id_of(bytes([n])), bytes([n]) * 16) for n in range(MAX_CHECKS + 8)]
        for n, sealer in enumerate(members):
            call = encode_call(bytes(20), "ping", (node_id_of(bytes([n])),))
            for host in ("10.1.0.1", "10.1.0.2", "10.1.0.2", "10.1.0.2"):
                world.network.inject(sealer.seal(call, a.node_id), (host, n + 1), a.address)
        await settle(0.1)
        assert len(a.contacts()) == len(members)
        pings = [(to, data) for data, _, to in world.network.log if to[0] == "10.1.0.2"]
        replies = 3 * len(members)
        assert len(pings) == replies + MAX_CHECKS


async def test_no_more_seeds_are_asked_than_the_bound(autojump_clock):
    async with make_world(52) as world:
        a = await world.add()
        await a.bootstrap([("10.6.6.6", port + 1) for port in range(MAX_SEEDS + 6)])
        assert len({to for _, _, to in world.network.log}) == MAX_SEEDS


async def test_no_datagram_stops_a_node(autojump_clock):
    async with make_world(30) as world:
        a, b = await world.add(), await world.add()
        await join(a, b)
        rng = random.Random(30)
        sealer = _sealer(STRANGER)
        bodies = [
            msgspec.msgpack.encode(v) for v in (None, -1, "x", [], ["ping"], ["ping", [b""]], {"a": [1]}, [[[[]]]])
        ]
        for _ in range(100):
            kind_and_id = bytes([rng.randrange(5)]) + rng.randbytes(20)
            payload = rng.choice(
                [rng.randbytes(rng.randrange(60)), kind_and_id + rng.choice(bodies), b"\0" * 21 + b"\x91" * 3000]
            )
            world.network.inject(sealer.seal(payload, a.node_id), FAKE, a.address)
            world.network.inject(rng.randbytes(rng.randrange(200)), FAKE, a.address)
        await settle()
        assert sum(a.dropped.values()) == 200
        assert await b.ping(_contact(a)) is not None


async def test_a_reply_that_nobody_waits_for_is_counted(autojump_clock):
    async with make_world(31) as world:
        a = await world.add()
        reply = encode_reply(bytes(20), STRANGER)
        world.network.inject(_sealer(STRANGER).seal(reply, a.node_id), FAKE, a.address)
        await settle()
        assert a.dropped == {"late": 1}


async def test_the_answers_to_a_repeated_call_count_once(autojump_clock):
    async with make_world(32) as world:
        a, b = await world.add(), await world.add()
        await join(b, a)
        # Longer than the timeout that was measured, so that it is sent again.
        world.network.delay = lambda _source, _to: 0.1
        assert await a.ping(_contact(b)) == pytest.approx(0.2)
        await settle()
        assert a.dropped == {"late": 1}
        assert a.contacts() == (_contact(b),)


async def test_a_flood_is_dropped_at_the_inbox(autojump_clock):
    async with make_world(33) as world:
        a = await world.add()
        await settle(0.1)
        for _ in range(1 + INBOX + 7):  # the first goes to the task that waits
            world.network.inject(b"", FAKE, a.address)
        assert a.dropped == {"inbox_full": 7}
        await settle()
        assert a.dropped == {"inbox_full": 7, "short": 1 + INBOX}


async def test_a_full_bucket_pings_its_oldest_contact_and_keeps_one_that_answers(autojump_clock):
    async with make_world(34) as world:
        a = await world.add(ksize=1, node_id=NodeId(bytes(20)))
        first, second = [await world.add(node_id=NodeId(bytes([0xFF] * 19 + [n]))) for n in (1, 2)]
        for dht in (first, second):
            await dht.ping(_contact(a))
            await settle()
        assert a.contacts() == (_contact(first),)
        _cut(world.network, first)
        for _ in range(FAILURES_TO_EVICT):
            await second.ping(_contact(a))
            await settle()
        assert a.contacts() == (_contact(second),)


async def test_one_that_lost_everybody_tries_its_seeds_again(autojump_clock):
    async with make_world(35) as world:
        a, b = await world.add(), await world.add()
        assert await b.bootstrap([a.address]) == 1
        world.network.loss = 1.0
        for _ in range(FAILURES_TO_EVICT):
            await b.ping(_contact(a))
        assert b.contacts() == ()
        world.network.loss = 0.0
        await settle(15.0)
        assert b.contacts() == (_contact(a),)


async def test_seeds_that_are_not_there_or_ourselves_are_passed_over(autojump_clock):
    async with make_world(36) as world:
        a, b = await world.add(), await world.add()
        assert await a.bootstrap([]) == 0
        assert await a.bootstrap([a.address]) == 0
        assert world.network.log == []
        assert await a.bootstrap([FAKE]) == 0
        assert await a.bootstrap([FAKE, b.address, a.address]) == 1


async def test_buckets_are_refreshed_after_an_hour_without_a_lookup(autojump_clock):
    async with make_world(37) as world:
        await world.grow(4)
        await settle(3500.0)
        world.network.log.clear()
        await settle(50.0)
        assert world.network.log == []
        await settle(100.0)
        assert {source for _, source, _ in world.network.log} == {node.address for node in world.nodes}


async def test_a_lookup_keeps_its_bucket_fresh(autojump_clock):
    async with make_world(53) as world:
        asker, *others = await world.grow(4)
        await settle(3500.0)
        await asker.lookup(bytes(20))
        world.network.log.clear()
        world.network.blocked = lambda _data, source, to: asker.address in (source, to)  # so that it sends no replies
        await settle(150.0)
        assert {source for _, source, _ in world.network.log} == {node.address for node in others}


async def test_a_lookup_without_contacts_sends_nothing_and_finds_nobody(autojump_clock):
    async with make_world(38) as world:
        a = await world.add()
        found = await a.lookup(bytes(20))
        assert (found.contacts, found.asked, found.failed, found.hops) == ((), (), (), 0)
        assert world.network.log == []


async def test_a_lookup_asks_the_network_even_when_the_table_knows(autojump_clock):
    async with make_world(39) as world:
        a, b = await world.add(), await world.add()
        await join(b, a)
        found = await a.lookup(b.node_id)
        assert (found.contacts, found.asked, found.hops) == ((_contact(b),), (b.node_id,), 1)
        assert 0.01 < found.took_s < 0.06


async def test_closing_is_clean_in_the_middle_of_lookups(autojump_clock):
    async with make_world(40) as world:
        b = await world.add()
        world.network.delay = lambda _source, _to: 1000.0
        async with (
            open_dht(
                STRANGER, "10.0.0.2", 1, NETWORK_KEY, NETWORK_ID, world.rng, bytes(16), datagrams=world.network
            ) as a,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(a.bootstrap, [b.address])
            await settle(0.1)
            nursery.cancel_scope.cancel()
        assert ("10.0.0.2", 1) not in world.network._ports


async def test_nothing_is_random_but_the_given_generator(autojump_clock):
    async def trace() -> list[object]:
        async with make_world(41) as world:
            await world.grow(12)
            found = [await world.nodes[n].lookup(world.rng.randbytes(20)) for n in range(5)]
            # Times since trio's start differ; everything that was sent does not.
            return [world.network.log, [(f.contacts, f.asked, f.hops) for f in found]]

    first, second = await trace(), await trace()
    assert first == second


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ksize": 0}, "ksize is 0"),
        ({"ksize": 33}, "ksize is 33"),
        ({"alpha": 0}, "alpha 0"),
        ({"node_id": b"x"}, "node id"),
    ],
)
async def test_settings_that_make_no_sense_are_refused(autojump_clock, change, says):
    async with make_world(42) as world:
        with pytest.raises(RoutingMisuse, match=says):
            await world.add(**change)


async def test_keys_and_contacts_that_make_no_sense_are_refused(autojump_clock):
    async with make_world(43) as world:
        a = await world.add()
        with pytest.raises(RoutingMisuse, match="a key of 32 bytes"):
            await a.lookup(bytes(32))
        with pytest.raises(RoutingMisuse, match="'localhost' port 1: not a canonical numeric IP"):
            await a.ping(Contact(STRANGER, "localhost", 1))
        for refused in (a._server.get(b"key"), a._server.set(b"key", b"value")):
            with pytest.raises(RoutingMisuse, match="stores no values"):
                await trio_asyncio.aio_as_trio(lambda refused=refused: refused)()
        with pytest.raises(AttributeError, match="no attribute store"):
            _ = a._protocol.store


async def test_it_says_so_when_there_is_no_asyncio_loop():
    with pytest.raises(RoutingMisuse, match="open_loop"):
        async with open_dht(STRANGER, "127.0.0.1", 0, NETWORK_KEY, NETWORK_ID, random.Random(1), bytes(16)):
            pass


async def test_the_counters_are_per_node(autojump_clock):
    async with make_world(44) as world:
        a, b = await world.add(), await world.add()
        world.network.inject(b"", FAKE, a.address)
        await settle()
        assert (a.dropped, b.dropped) == (Counter(short=1), Counter())


async def test_a_lookup_ends_though_each_answer_names_somebody_closer():
    """Who knows the network's key may invent ids for ever; they cost a bounded number of calls."""

    class Inventor:
        source_node = Node(STRANGER)
        away = 2**150

        async def call_find_node(self, _node, _target, _slow):
            self.away -= 20
            return True, [((self.away + i).to_bytes(20), *FAKE) for i in range(20)]

    crawl = Crawl(Inventor(), Node(bytes(20)), [Node((2**150).to_bytes(20), *FAKE)], 20, 3)
    async with trio_asyncio.open_loop():
        found = await trio_asyncio.aio_as_trio(crawl.find)()
    assert len(crawl.asked) == MAX_ASKED
    assert {node.id for node in found} <= set(crawl.asked), "who was not asked did not answer"

"""The routing table against a plain list of contacts."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from kademlia.node import Node
from kademlia.routing import RoutingTable

from routing.keyspace import distance
from routing.table import REPLACEMENT_FACTOR, Change, Table

OWN = Node(b"\x55" * 20, "10.0.0.9", 9)
FAR = 1 << 159  # the other half of the key space: our own id starts with a 0 bit


def _node(number: int, port: int = 1) -> Node:
    return Node(number.to_bytes(20), "10.0.0.1", port)


class Recorder:
    """A table, what it told, and its clock."""

    def __init__(self, ksize: int = 4) -> None:
        self.now = 0.0
        self.events: list[tuple[Change, bytes]] = []
        self.table = Table(OWN, ksize, lambda: self.now, lambda change, node: self.events.append((change, node.id)))

    def check(self) -> None:
        """What must hold after every step."""
        buckets = self.table.buckets
        assert [b.range[0] for b in buckets] == [0, *(b.range[1] + 1 for b in buckets[:-1])]
        assert buckets[-1].range[1] == 2**160 - 1
        for bucket in buckets:
            inside = [*bucket.nodes.values(), *bucket.replacement_nodes.values()]
            assert all(bucket.has_in_range(node) for node in inside)
            assert len({node.id for node in inside}) == len(inside)
            assert len(bucket.nodes) <= self.table.ksize
            assert len(bucket.replacement_nodes) <= self.table.ksize * REPLACEMENT_FACTOR
            assert not bucket.replacement_nodes or len(bucket.nodes) == self.table.ksize
        told: set[bytes] = set()
        for change, node_id in self.events:
            if change is Change.ADDED:
                assert node_id not in told
                told.add(node_id)
            else:
                assert node_id in told
                told -= {node_id} if change is Change.LOST else set()
        assert told == {node.id for node in self.table.contacts()}
        assert len(self.table) == len(told)


_EDGES = [0, 1, *(2**n + d for n in (80, 157, 158, 159) for d in (-1, 0, 1)), 2**160 - 1]
_numbers = st.one_of(st.sampled_from(_EDGES), st.integers(0, 2**160 - 1), st.integers(FAR, FAR + 50))


@settings(deadline=None)
@given(st.lists(st.tuples(_numbers, st.integers(1, 3), st.booleans()), max_size=80), _numbers)
def test_whatever_comes_and_goes_the_table_is_whole_and_neighbours_are_exact(steps, target):
    recorder = Recorder()
    table = recorder.table
    for number, port, remove in steps:
        if remove:
            table.remove_contact(_node(number))
        else:
            table.add_contact(_node(number, port))
        recorder.check()
    for contact in table.contacts():
        assert table.get(contact.id) is contact
        assert table.buckets[table.get_bucket_for(contact)].nodes[contact.id] is contact
    key = _node(target)
    expected = sorted(table.contacts(), key=lambda node: distance(node.id, key.id))
    assert table.find_neighbors(key) == expected[:4]
    assert table.find_neighbors(key, k=9) == expected[:9]
    for excluded in expected[:2]:
        assert table.find_neighbors(key, exclude=excluded) == [n for n in expected if n is not excluded][:4]


def test_neighbours_are_exact_where_the_librarys_are_not():
    rng = random.Random(3)
    ours, theirs = Recorder(20).table, RoutingTable(None, 20, OWN)
    for _ in range(200):
        node = Node(rng.randbytes(20), "10.0.0.1", 1)
        if ours.add_contact(node) is None:
            theirs.add_contact(node)
    wrong = 0
    for _ in range(50):
        key = Node(rng.randbytes(20))
        truth = sorted(ours.contacts(), key=lambda node: node.distance_to(key))[:20]
        assert ours.find_neighbors(key) == truth
        wrong += theirs.find_neighbors(key) != truth
    assert wrong > 0


def test_a_contact_whose_id_is_the_key_is_found():
    table = Recorder().table
    table.add_contact(_node(FAR))
    assert table.find_neighbors(_node(FAR)) == [table.get(_node(FAR).id)]


def test_an_id_at_the_end_of_a_bucket_is_found_where_it_was_put():
    recorder = Recorder(ksize=1)
    edges = [2**158 - 1, 2**158, 2**159 - 1, 2**159, 2**160 - 1]
    for number in edges:
        recorder.table.add_contact(_node(number))
    recorder.check()
    for number in edges[1:]:
        recorder.table.add_contact(_node(number))
    recorder.check()
    assert [change for change, _ in recorder.events] == [Change.ADDED] * len(recorder.table)


def test_our_own_id_is_never_a_contact():
    recorder = Recorder()
    assert recorder.table.add_contact(Node(OWN.id, "10.0.0.1", 1)) is None
    assert recorder.table.contacts() == []


def test_a_known_contact_seen_elsewhere_is_moved_and_seen_again_is_the_most_recent():
    recorder = Recorder()
    for number in (FAR, FAR + 1):
        recorder.table.add_contact(_node(number))
    recorder.table.add_contact(_node(FAR, port=2))
    recorder.table.add_contact(_node(FAR, port=2))
    assert recorder.events[2:] == [(Change.MOVED, _node(FAR).id)]
    assert recorder.table.get(_node(FAR).id).port == 2
    assert [node.long_id for node in recorder.table.contacts()] == [FAR + 1, FAR]


def _full() -> Recorder:
    """A table with a full bucket that is not split: depth 5, and our own id elsewhere."""
    recorder = Recorder()
    recorder.table.add_contact(_node(0))
    for number in range(4):
        assert recorder.table.add_contact(_node(FAR + number)) is None
    return recorder


def test_a_full_bucket_keeps_its_contacts_and_names_the_least_recently_seen_to_ping():
    recorder = _full()
    assert recorder.table.add_contact(_node(FAR + 9)).long_id == FAR
    recorder.table.add_contact(_node(FAR))
    assert recorder.table.add_contact(_node(FAR + 10)).long_id == FAR + 1
    assert recorder.table.get(_node(FAR + 9).id) is None
    recorder.check()


def test_a_lost_contact_is_replaced_by_the_latest_that_found_no_room():
    recorder = _full()
    for number in (FAR + 9, FAR + 10):
        recorder.table.add_contact(_node(number))
    recorder.events.clear()
    recorder.table.remove_contact(_node(FAR))
    assert recorder.events == [(Change.LOST, _node(FAR).id), (Change.ADDED, _node(FAR + 10).id)]


def test_buckets_without_a_lookup_for_an_hour_are_lonely():
    recorder = _full()
    recorder.now = 3599.0
    assert recorder.table.lonely_buckets() == []
    recorder.table.touch(_node(FAR))
    recorder.now = 3600.0
    lonely = recorder.table.lonely_buckets()
    assert len(lonely) == len(recorder.table.buckets) - 1
    assert not any(bucket.has_in_range(_node(FAR)) for bucket in lonely)

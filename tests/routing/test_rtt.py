"""Timeouts and failures per contact."""

import pytest

from routing.keyspace import node_id_of
from routing.rtt import (
    ATTEMPTS,
    FAILURES_TO_EVICT,
    FIRST_TIMEOUT_S,
    MAX_TIMEOUT_S,
    MIN_TIMEOUT_S,
    RoundTrips,
)

A, B = node_id_of(b"a"), node_id_of(b"b")


def test_before_anything_is_measured_the_timeouts_double_up_to_the_most():
    assert (
        RoundTrips().timeouts(A) == RoundTrips().timeouts(None) == (FIRST_TIMEOUT_S, 2 * FIRST_TIMEOUT_S, MAX_TIMEOUT_S)
    )
    assert ATTEMPTS == 3


def test_a_near_contact_has_the_shortest_timeout_and_a_far_one_a_longer():
    trips = RoundTrips()
    for _ in range(50):
        trips.answered(A, 0.001)
        trips.answered(B, 0.4)
    assert trips.timeouts(A)[0] == MIN_TIMEOUT_S
    assert 0.4 < trips.timeouts(B)[0] < 0.45


def test_the_first_sample_leaves_room_for_variation():
    trips = RoundTrips()
    trips.answered(A, 0.2)
    assert trips.timeouts(A)[0] == pytest.approx(0.6)


def test_one_that_is_not_measured_gets_the_timeout_of_all():
    trips = RoundTrips()
    for _ in range(50):
        trips.answered(A, 0.2)
    assert trips.timeouts(B) == trips.timeouts(None) == trips.timeouts(A)


def test_it_is_given_up_only_after_repeated_failures():
    trips = RoundTrips()
    verdicts = [trips.silent(A, now, now + 1) for now in range(FAILURES_TO_EVICT)]
    assert verdicts == [False] * (FAILURES_TO_EVICT - 1) + [True]


def test_an_answer_wipes_the_failures_out():
    trips = RoundTrips()
    for now in range(FAILURES_TO_EVICT - 1):
        trips.silent(A, now, now + 1)
    trips.answered(A, 0.1)
    assert not trips.silent(A, 10, 11)


def test_calls_in_flight_together_count_once():
    trips = RoundTrips()
    assert not any(trips.silent(A, 0.0, 1.0 + n / 10) for n in range(20))
    assert not trips.silent(A, 2.0, 3.0)
    assert trips.silent(A, 3.0, 4.0)


def test_one_that_failed_gets_a_single_longer_attempt():
    trips = RoundTrips()
    for _ in range(50):
        trips.answered(A, 0.001)
    trips.silent(A, 0.0, 1.0)
    assert trips.timeouts(A) == (2 * MIN_TIMEOUT_S,)
    trips.silent(A, 1.0, 2.0)
    assert trips.timeouts(A) == (4 * MIN_TIMEOUT_S,)


def test_one_that_comes_back_starts_again():
    trips = RoundTrips()
    for now in range(FAILURES_TO_EVICT):
        trips.silent(A, now, now + 1)
    trips.forgive(A)
    trips.forgive(B)
    assert len(trips.timeouts(A)) == ATTEMPTS
    assert not trips.silent(A, 10, 11)


def test_no_more_contacts_are_remembered_than_the_bound(monkeypatch):
    monkeypatch.setattr("routing.rtt.MAX_CONTACTS", 3)
    trips = RoundTrips()
    for n in range(10):
        trips.silent(node_id_of(bytes([n])), 0.0, 1.0)
    assert len(trips._contacts) == 3
    assert len(trips.timeouts(node_id_of(bytes([9])))) == 1
    assert len(trips.timeouts(node_id_of(bytes([0])))) == ATTEMPTS

"""Timers as a lower bound."""

from node.due import Due


def test_nothing_is_due_when_nothing_was_set() -> None:
    due = Due()
    assert due.at is None
    assert not due.passed(1e9)


def test_the_earliest_counts_and_is_forgotten_when_it_has_passed() -> None:
    due = Due()
    for when in (3.0, 2.0, 5.0):
        due.by(when)
    assert due.at == 2.0
    assert not due.passed(1.9)
    assert due.passed(2.0)
    assert due.at is None
    assert not due.passed(9.0)  # whoever looked has told what is left
    due.by(5.0)
    assert due.passed(9.0)

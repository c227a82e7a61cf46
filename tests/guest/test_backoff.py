"""Delays between tries."""

from __future__ import annotations

from arcbox_guest.backoff import Backoff


def test_each_delay_is_twice_the_one_before_up_to_the_longest() -> None:
    backoff = Backoff(first=0.5, longest=3.0)
    assert [backoff.next_delay() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_after_a_reset_the_delays_begin_again() -> None:
    backoff = Backoff(first=1.0, longest=60.0)
    for _ in range(4):
        backoff.next_delay()
    backoff.reset()
    assert [backoff.next_delay() for _ in range(2)] == [1.0, 2.0]


def test_two_of_them_know_nothing_of_each_other() -> None:
    one, other = Backoff(first=1.0, longest=8.0), Backoff(first=1.0, longest=8.0)
    one.next_delay()
    assert (one.next_delay(), other.next_delay()) == (2.0, 1.0)

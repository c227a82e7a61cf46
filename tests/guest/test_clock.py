"""When the guest's clock follows the host's, and when it is left alone. No test steps the clock of this machine."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcbox_guest.clock import ClockFollower, SystemClock
from arcbox_guest.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Sequence


INFO, WARNING = logging.INFO, logging.WARNING

# Times that a float holds exactly, so that "exactly a second" is one.
TIMES = st.integers(1024, 4_000_000_000 * 1024).map(lambda ticks: ticks / 1024)
LESS_THAN_A_SECOND = st.integers(-1023, 1023).map(lambda ticks: ticks / 1024)
TWO_SECONDS_OR_MORE = st.integers(2 * 1024, 10**6 * 1024).map(lambda ticks: ticks / 1024)


def levels(records: Sequence[logging.LogRecord]) -> list[int]:
    return [record.levelno for record in records]


@pytest.mark.parametrize("now", [0.0, 998.9, 999.0, 1002.0, 1002.5, 1e9])
def test_a_clock_that_is_off_by_a_second_or_more_is_stepped_to_the_hosts(now: float) -> None:
    clock = FakeClock(now)
    ClockFollower(clock, enabled=True).follow(1000)
    assert clock.steps == [1000.0]


# What a host shows as 1000 may be anything up to 1000.999…: 1001.9 may be off by less than a second.
@pytest.mark.parametrize("now", [999.1, 999.9, 1000.0, 1000.9, 1001.0, 1001.5, 1001.9])
def test_a_clock_that_may_be_off_by_less_than_a_second_is_left_alone(now: float) -> None:
    clock = FakeClock(now)
    ClockFollower(clock, enabled=True).follow(1000)
    assert clock.steps == []


@settings(deadline=None)
@given(host=TIMES, offset=LESS_THAN_A_SECOND)
def test_a_clock_within_a_second_of_the_hosts_is_never_stepped(host: float, offset: float) -> None:
    clock = FakeClock(host + offset)
    ClockFollower(clock, enabled=True).follow(int(host))
    assert clock.steps == []


@settings(deadline=None)
@given(host=TIMES, offset=TWO_SECONDS_OR_MORE, ahead=st.booleans())
def test_a_clock_two_seconds_off_is_always_stepped_and_only_once(host: float, offset: float, *, ahead: bool) -> None:
    clock = FakeClock(host + offset if ahead else host - offset)
    follower = ClockFollower(clock, enabled=True)
    follower.follow(int(host))
    follower.follow(int(host))
    assert clock.steps == [int(host)]


@pytest.mark.parametrize("timestamp", [0, -1, -(1 << 63)])
def test_a_timestamp_of_0_or_less_says_nothing(timestamp: int) -> None:
    clock = FakeClock()
    ClockFollower(clock, enabled=True).follow(timestamp)
    assert clock.steps == []


def test_a_follower_that_is_turned_off_leaves_the_clock_alone(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock(5000.0)
    with caplog.at_level(INFO):
        ClockFollower(clock, enabled=False).follow(1000)
    assert clock.steps == []
    assert caplog.records == []


def test_a_step_is_logged_with_its_offset(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(INFO):
        ClockFollower(FakeClock(1500.0), enabled=True).follow(1000)
    assert levels(caplog.records) == [INFO]
    assert vars(caplog.records[0])["offset_seconds"] == -500.0


@pytest.mark.parametrize("error", [PermissionError(1, "Operation not permitted"), OverflowError(), ValueError()])
def test_a_clock_that_can_not_be_set_is_logged_and_nothing_else(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock(5000.0, error=error)
    ClockFollower(clock, enabled=True).follow(1000)
    assert clock.now() == 5000.0
    assert levels(caplog.records) == [WARNING]
    assert vars(caplog.records[0])["offset_seconds"] == -4000.0


def test_the_system_clock_is_clock_realtime(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[int, float]] = []
    monkeypatch.setattr(time, "clock_settime", lambda clock, to: steps.append((clock, to)))
    before = time.clock_gettime(time.CLOCK_REALTIME)
    assert before <= SystemClock().now() <= time.clock_gettime(time.CLOCK_REALTIME)
    SystemClock().step(1000.0)
    assert steps == [(time.CLOCK_REALTIME, 1000.0)]


def test_a_timestamp_that_no_machine_takes_is_only_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The real conversion to struct timespec, on a clock id that no kernel sets.
    monkeypatch.setattr(time, "clock_settime", lambda _clock, to: clock_settime(-1, to))
    ClockFollower(SystemClock(), enabled=True).follow((1 << 63) - 1)
    assert levels(caplog.records) == [WARNING]


clock_settime = time.clock_settime

"""Shortage of memory, by the files that a test writes; and the kernel's trigger, where it has one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_guest.memory_pressure import MemoryPressure, PressureEvent, Reason, Thresholds, _open_trigger, _Stalls

if TYPE_CHECKING:
    from trio.testing import MockClock

KIB = 1024


class Machine:
    """A machine whose memory is as a test says; it keeps the events with their times."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        self.refaults = 0
        self.events: list[tuple[float, Reason, int, int]] = []
        self.has(1000)

    def has(self, available_kib: int) -> None:
        (self.proc / "meminfo").write_text(f"MemTotal: 9999 kB\nMemAvailable: {available_kib} kB\n")
        self.refault(0)

    def refault(self, pages: int) -> None:
        self.refaults += pages
        (self.proc / "vmstat").write_text(
            f"nr_free_pages 1\nworkingset_refault_anon {self.refaults}\nworkingset_refault_file 7\n"
        )

    async def note(self, event: PressureEvent) -> None:
        await trio.lowlevel.checkpoint()
        self.events.append((trio.current_time(), event.reason, event.available_bytes // KIB, event.refault_rate))

    async def watch(self, thresholds: Thresholds, seconds: float = 300, keepalive: float = 10) -> None:
        await MemoryPressure(self.proc).watch(thresholds, seconds, keepalive, self.note)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


async def test_the_first_event_is_a_keepalive_at_once_and_the_last_says_that_the_time_is_up(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.watch(Thresholds(), seconds=25)
    assert [(time, reason) for time, reason, *_ in machine.events] == [
        (0, Reason.KEEPALIVE),
        (10, Reason.KEEPALIVE),
        (20, Reason.KEEPALIVE),
        (25, Reason.WINDOW_ELAPSED),
    ]
    assert {available for *_, available, _ in machine.events} == {1000}


async def test_pressure_is_told_when_it_begins_and_when_it_has_settled(
    machine: Machine, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(machine.watch, Thresholds(min_available_bytes=500 * KIB), 30)
        await trio.sleep(3.5)
        machine.has(400)
        await trio.sleep(3)
        machine.has(600)
    assert machine.events == [
        (0, Reason.KEEPALIVE, 1000, 0),
        (4, Reason.LOW_AVAILABLE, 400, 0),
        (7, Reason.SETTLED, 600, 0),
        (17, Reason.KEEPALIVE, 600, 0),
        (27, Reason.KEEPALIVE, 600, 0),
        (30, Reason.WINDOW_ELAPSED, 600, 0),
    ]


async def test_pressure_from_the_beginning_is_told_after_the_keepalive(
    machine: Machine, autojump_clock: MockClock
) -> None:
    await machine.watch(Thresholds(min_available_bytes=2000 * KIB), seconds=3)
    assert [reason for _, reason, *_ in machine.events] == [
        Reason.KEEPALIVE,
        Reason.LOW_AVAILABLE,
        Reason.WINDOW_ELAPSED,
    ]


async def test_refaults_are_counted_per_second(machine: Machine, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(machine.watch, Thresholds(max_refault_rate=50), 6)
        await trio.sleep(1.5)
        machine.refault(50)
        await trio.sleep(1)
        machine.refault(51)
    assert [(time, reason, rate) for time, reason, _, rate in machine.events] == [
        (0, Reason.KEEPALIVE, 0),
        (3, Reason.REFAULT_SPIKE, 51),
        (4, Reason.SETTLED, 0),
        (6, Reason.WINDOW_ELAPSED, 0),
    ]


async def test_a_kernel_without_psi_is_watched_without_its_trigger(machine: Machine, autojump_clock: MockClock) -> None:
    await machine.watch(Thresholds(psi_full_stall_us=1000), seconds=2)
    assert [reason for _, reason, *_ in machine.events] == [Reason.KEEPALIVE, Reason.WINDOW_ELAPSED]


async def test_a_stall_that_the_kernel_tells_of_is_pressure_until_a_second_without_one(
    machine: Machine, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalls = iter([False, False, True, True])
    monkeypatch.setattr(_Stalls, "happened", lambda _self: next(stalls, False))
    await machine.watch(Thresholds(psi_full_stall_us=1000), seconds=6)
    assert [(time, reason) for time, reason, *_ in machine.events] == [
        (0, Reason.KEEPALIVE),
        (2, Reason.LOW_AVAILABLE),
        (4, Reason.SETTLED),
        (6, Reason.WINDOW_ELAPSED),
    ]


def test_the_kernel_takes_the_trigger() -> None:
    pressure = Path("/proc/pressure/memory")
    if not os.access(pressure, os.W_OK):
        pytest.skip("no PSI here, or not for this user")
    for stall_us in (150_000, 2**40):
        trigger = _open_trigger(pressure, stall_us)
        assert trigger is not None
        os.close(trigger)
    assert _open_trigger(pressure.with_name("none"), 150_000) is None

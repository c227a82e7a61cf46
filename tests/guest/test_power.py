"""The order and the deadlines of the way down. The switch is wired to nothing, and the clock is Trio's mock."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock, wait_all_tasks_blocked

from arcbox_guest.errors import NotSupportedError
from arcbox_guest.power import Power, Stopper, sync_until
from arcbox_guest.testing import FakePowerSwitch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

WARNING, ERROR = logging.WARNING, logging.ERROR


@define
class Service:
    """What is stopped on the way down."""

    name: str
    journal: list[str]
    hangs: bool = False
    error: Exception | None = None
    times: list[float] = field(factory=list)

    async def stop(self) -> None:
        self.journal.append(self.name)
        self.times.append(trio.current_time())
        try:
            if self.hangs:
                await trio.sleep_forever()
            await trio.lowlevel.checkpoint()
            if self.error is not None:
                raise self.error
        finally:
            self.times.append(trio.current_time())

    @property
    def stopper(self) -> Stopper:
        return Stopper(self.name, self.stop)


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == level]


@pytest.fixture
async def start(nursery: trio.Nursery) -> AsyncIterator[Callable[[Power], Power]]:
    """Start a `Power.run`, which ends with the test."""

    def start(power: Power) -> Power:
        nursery.start_soon(power.run)
        return power

    yield start
    nursery.cancel_scope.cancel()


async def test_services_are_stopped_in_order_then_disks_synced_then_the_switch_pressed(
    mock_clock: MockClock, start: Callable[[Power], Power]
) -> None:
    journal: list[str] = []
    services = [Service(name, journal).stopper for name in ("sandboxes", "kubernetes", "runtime")]
    switch = FakePowerSwitch()
    power = start(Power(switch, services, sync=lambda: journal.append("sync")))
    await wait_all_tasks_blocked()
    assert journal == []
    mock_clock.jump(100)
    power.begin(25)
    await switch.touched.wait()
    assert journal == ["sandboxes", "kubernetes", "runtime", "sync"]
    assert switch.pressed == [125.0]


async def test_a_second_begin_changes_nothing(mock_clock: MockClock, start: Callable[[Power], Power]) -> None:
    journal: list[str] = []
    slow = Service("slow", journal, hangs=True)
    switch = FakePowerSwitch()
    power = start(Power(switch, [slow.stopper], sync=lambda: None))
    power.begin(10)
    power.begin(1000)
    await wait_all_tasks_blocked()
    power.begin(1000)
    mock_clock.jump(8)
    await switch.touched.wait()
    power.begin(1000)
    await wait_all_tasks_blocked()
    assert journal == ["slow"]
    assert switch.pressed == [10.0]


async def test_services_that_hang_share_the_time_and_leave_some_for_the_disks(
    mock_clock: MockClock, start: Callable[[Power], Power], caplog: pytest.LogCaptureFixture
) -> None:
    services = [Service("first", [], hangs=True), Service("second", []), Service("third", [], hangs=True)]
    synced: list[float] = []
    switch = FakePowerSwitch()
    power = Power(switch, [service.stopper for service in services], sync=lambda: synced.append(1))
    start(power).begin(30)
    for _ in range(24):
        await wait_all_tasks_blocked()
        mock_clock.jump(1)
    await switch.touched.wait()
    assert [service.times for service in services] == [[0, 8], [8, 8], [8, 24]]
    assert synced == [1]
    assert switch.pressed == [30.0]
    assert messages(caplog, WARNING) == ["first did not stop in time", "third did not stop in time"]


async def test_a_service_that_fails_to_stop_is_logged_and_the_others_are_stopped(
    mock_clock: MockClock, start: Callable[[Power], Power], caplog: pytest.LogCaptureFixture
) -> None:
    journal: list[str] = []
    broken = Service("broken", journal, error=ExceptionGroup("several", [RuntimeError("bug")]))
    switch = FakePowerSwitch()
    start(Power(switch, [broken.stopper, Service("good", journal).stopper], sync=lambda: None)).begin(25)
    await switch.touched.wait()
    assert mock_clock.current_time() == 0
    assert journal == ["broken", "good"]
    assert messages(caplog, ERROR) == ["broken could not be stopped"]


async def test_a_service_that_cleans_up_for_longer_than_the_grace_period_does_not_keep_the_machine_on(
    mock_clock: MockClock, start: Callable[[Power], Power]
) -> None:
    async def stop() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 60):
                await trio.sleep(50)

    switch = FakePowerSwitch()
    last = Service("last", [])
    start(Power(switch, [Stopper("thorough", stop), last.stopper], sync=lambda: None)).begin(10)
    for jump in (4, 50):
        await wait_all_tasks_blocked()
        mock_clock.jump(jump)
    await switch.touched.wait()
    assert last.times == [54, 54]
    assert switch.pressed == [10.0]


async def test_disks_that_hang_do_not_keep_the_machine_on(
    mock_clock: MockClock, start: Callable[[Power], Power], caplog: pytest.LogCaptureFixture
) -> None:
    disk_answers = threading.Event()
    switch = FakePowerSwitch()
    try:
        start(Power(switch, sync=lambda: assert_in_time(disk_answers))).begin(20)
        await wait_all_tasks_blocked()
        mock_clock.jump(17.5)
        await wait_all_tasks_blocked()
        assert switch.pressed == []
        mock_clock.jump(0.5)
        await switch.touched.wait()
    finally:
        disk_answers.set()
    assert messages(caplog, WARNING) == ["file systems could not be synced in time"]


def assert_in_time(event: threading.Event) -> None:
    assert event.wait(30)


async def test_a_switch_that_fails_is_logged_and_the_next_begin_tries_again(
    mock_clock: MockClock, start: Callable[[Power], Power], caplog: pytest.LogCaptureFixture
) -> None:
    switch = FakePowerSwitch(error=OSError(1, "Operation not permitted"))
    power = start(Power(switch, sync=lambda: None))
    power.begin(5)
    await switch.touched.wait()
    await wait_all_tasks_blocked()
    assert messages(caplog, ERROR) == ["the machine could not be powered off"]
    switch.error, switch.touched = None, trio.Event()
    mock_clock.jump(10)
    power.begin(7)
    await switch.touched.wait()
    assert switch.pressed == [5.0, 17.0]


async def test_without_a_switch_everything_is_refused_and_nothing_happens(start: Callable[[Power], Power]) -> None:
    journal: list[str] = []
    power = start(Power(None, [Service("service", journal).stopper], sync=lambda: journal.append("sync")))
    with pytest.raises(NotSupportedError, match="can't power its machine off"):
        power.check()
    with pytest.raises(NotSupportedError):
        power.begin(25)
    await wait_all_tasks_blocked()
    assert journal == []


async def test_a_deadline_that_has_passed_is_no_reason_to_fail(mock_clock: MockClock) -> None:
    mock_clock.jump(10)
    await sync_until(5, lambda: None)

"""Services that run beside the connections, and fail."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import define, field
from trio.testing import wait_all_tasks_blocked

from arcbox_agent.services import supervise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio.testing import MockClock


@define
class Flaky:
    """A service that fails after running for each of these times, in seconds, and then ends of its own accord."""

    lifetimes: Sequence[float]
    error: Exception = field(factory=lambda: RuntimeError("out of luck"))
    pauses: list[float] = field(init=False, factory=list)
    """How long it was down before each restart."""

    _failed_at: float | None = field(init=False, default=None)

    async def __call__(self) -> None:
        if self._failed_at is not None:
            self.pauses.append(trio.current_time() - self._failed_at)
        if len(self.pauses) == len(self.lifetimes):
            return
        await trio.sleep(self.lifetimes[len(self.pauses)])
        self._failed_at = trio.current_time()
        raise self.error


async def test_a_service_that_fails_is_restarted_after_a_delay_that_grows(autojump_clock: MockClock) -> None:
    flaky = Flaky([0] * 9)
    await supervise("flaky", flaky)
    assert flaky.pauses == pytest.approx([0.5, 1, 2, 4, 8, 16, 30, 30, 30])


async def test_after_a_healthy_minute_the_next_failure_counts_as_the_first(autojump_clock: MockClock) -> None:
    flaky = Flaky([0, 0, 60, 0])
    await supervise("flaky", flaky)
    assert flaky.pauses == pytest.approx([0.5, 1, 0.5, 1])


async def test_less_than_a_minute_is_not_healthy(autojump_clock: MockClock) -> None:
    flaky = Flaky([59, 59, 59])
    await supervise("flaky", flaky)
    assert flaky.pauses == pytest.approx([0.5, 1, 2])


async def test_a_service_that_returns_is_done(autojump_clock: MockClock) -> None:
    started = trio.current_time()
    await supervise("quick", Flaky([]))
    assert trio.current_time() == started


async def test_a_failure_is_logged_with_its_traceback(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    await supervise("disk trim", Flaky([0]))
    (record,) = caplog.records
    logged: dict[str, Any] = vars(record)
    assert (logged["levelname"], logged["service"], logged["restart_in_seconds"]) == ("ERROR", "disk trim", 0.5)
    assert "RuntimeError: out of luck" in caplog.text


async def test_a_failure_inside_a_nursery_of_the_service_is_a_failure(autojump_clock: MockClock) -> None:
    flaky = Flaky([0, 0], ExceptionGroup("both", [OSError("one"), ValueError("other")]))
    await supervise("flaky", flaky)
    assert len(flaky.pauses) == 2


async def test_other_services_go_on_undisturbed(autojump_clock: MockClock) -> None:
    ticks = []

    async def tick() -> None:
        for _ in range(10):
            await trio.sleep(1)
            ticks.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervise, "flaky", Flaky([0] * 4))
        nursery.start_soon(supervise, "tick", tick)
    assert [later - tick for tick, later in pairwise(ticks)] == pytest.approx([1.0] * 9)


@pytest.mark.parametrize("lifetime", [0, 1e9], ids=["between two runs", "while it runs"])
async def test_a_supervised_service_can_be_cancelled(lifetime: float, mock_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervise, "flaky", Flaky([lifetime]))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_what_is_no_error_is_not_held_up() -> None:
    async def interrupted() -> None:
        await trio.lowlevel.checkpoint()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await supervise("interrupted", interrupted)

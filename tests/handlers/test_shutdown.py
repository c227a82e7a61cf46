"""What Shutdown answers, and when it begins. Its switch is wired to nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from arcbox_guest.errors import NotSupportedError
from arcbox_guest.power import Power, Stopper
from arcbox_guest.testing import FakePowerSwitch, fake_guest
from arcbox_handlers import Acknowledgement, Context, error_reply
from arcbox_handlers.power import Shutdown
from arcbox_protocol import arcbox_v1

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def shutdown(power: Power, timeout_seconds: int = 0) -> Acknowledgement:
    request = arcbox_v1.ShutdownRequest(timeout_seconds=timeout_seconds)
    return await Shutdown(request)(Context(guest=fake_guest(power=power), version="0"))


class Rig:
    """A machine on its way down, as far as its services: these hang, so that nothing follows them but in time."""

    def __init__(self) -> None:
        self.switch = FakePowerSwitch()
        self.stopping: list[float] = []
        self.power = Power(self.switch, [Stopper("service", self._hang)], sync=lambda: None)

    async def _hang(self) -> None:
        self.stopping.append(trio.current_time())
        await trio.sleep_forever()


@pytest.fixture
async def rig(nursery: trio.Nursery) -> AsyncIterator[Rig]:
    rig = Rig()
    nursery.start_soon(rig.power.run)
    yield rig
    nursery.cancel_scope.cancel()


async def test_nothing_stops_before_the_acknowledgement_is_on_the_wire(mock_clock: MockClock, rig: Rig) -> None:
    reply = await shutdown(rig.power)
    assert reply.message == arcbox_v1.ShutdownResponse(accepted=True)
    mock_clock.jump(1000)
    await wait_all_tasks_blocked()
    assert rig.stopping == []
    reply.then()
    await wait_all_tasks_blocked()
    assert rig.stopping == [1000.0]


@pytest.mark.parametrize(("timeout_seconds", "grace"), [(0, 25), (1, 1), (40, 40), (2**32 - 1, 2**32 - 1)])
async def test_the_grace_period_is_the_requests_or_25_seconds(
    autojump_clock: MockClock, rig: Rig, timeout_seconds: int, grace: float
) -> None:
    (await shutdown(rig.power, timeout_seconds)).then()
    await wait_all_tasks_blocked()
    begun = autojump_clock.current_time()
    await rig.switch.touched.wait()
    assert rig.switch.pressed == [begun + grace]


async def test_a_second_shutdown_is_acknowledged_and_changes_nothing(autojump_clock: MockClock, rig: Rig) -> None:
    (await shutdown(rig.power, 10)).then()
    await trio.sleep(1)
    again = await shutdown(rig.power, 1000)
    assert again.message == arcbox_v1.ShutdownResponse(accepted=True)
    again.then()
    await rig.switch.touched.wait()
    await trio.sleep(5000)
    assert rig.stopping == [0.0]
    assert rig.switch.pressed == [10.0]
    assert autojump_clock.current_time() > 5000


async def test_where_nothing_may_be_powered_off_it_is_error_501_and_nothing_happens() -> None:
    with pytest.raises(NotSupportedError) as refusal:
        await shutdown(Power(None))
    reply = error_reply(refusal.value)
    assert reply is not None
    assert reply.code == 501
    assert "power.off" in reply.message

"""What a creation finds out before it begins, and under whose name a sandbox then lives."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from arcbox_guest.errors import ConflictError, GuestError, InvalidArgumentError, TimedOutError
from arcbox_guest.log_fields import log_fields
from arcbox_guest.sandboxes.model import BindMount, Spec

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.guest.sandboxes.conftest import FakeAgent

IMPOSSIBLE = [
    (Spec(id="web", rootfs="/nowhere"), "there is no root file system /nowhere"),
    (Spec(id="web", mounts=(BindMount(source="/nowhere", target="/mnt"),)), "there is no /nowhere to mount"),
    (Spec(id="web", user="nemo"), "there is no user 'nemo'"),
]


@pytest.mark.parametrize(("spec", "error"), IMPOSSIBLE)
async def test_what_can_be_known_beforehand_is_refused_and_leaves_nothing(
    autojump_clock: MockClock, agent: FakeAgent, spec: Spec, error: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=error):
        await agent.manager.create(spec)
    assert agent.manager.list() == []
    assert agent.witness.told == []
    await agent.create(Spec(id="web"))
    assert agent.state("web") == "ready"


async def test_storage_that_hangs_is_waited_for_no_longer_than_five_seconds(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    agent.driver.faults["check"] = trio.Event()
    begun = trio.current_time()
    with pytest.raises(TimedOutError, match="web shall be made of could not be looked at in 5 seconds"):
        await agent.manager.create(Spec(id="web"))
    assert trio.current_time() - begun == 5
    assert agent.manager.list() == []


async def test_of_two_creations_with_the_same_id_one_is_refused(autojump_clock: MockClock, agent: FakeAgent) -> None:
    agent.driver.faults["check"] = checked = trio.Event()
    outcomes: list[str] = []

    async def create() -> None:
        try:
            await agent.manager.create(Spec(id="web"))
            outcomes.append("created")
        except ConflictError:
            outcomes.append("refused")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(create)
        nursery.start_soon(create)
        await wait_all_tasks_blocked()
        checked.set()
    assert sorted(outcomes) == ["created", "refused"]


async def test_a_sandbox_logs_under_its_own_name_and_not_for_the_request_that_created_it(
    autojump_clock: MockClock, agent: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    request: ContextVar[str] = ContextVar("request", default="nobody's")
    seen: list[tuple[str, object]] = []

    class Witness(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            if record.message == "sandbox not created":
                seen.append((request.get(), log_fields.get()))
            return True

    caplog.handler.addFilter(Witness())
    agent.driver.faults["create"] = GuestError("no space left")
    request.set("the first one's")
    await agent.create(Spec(id="web"))
    assert seen == [("nobody's", {"sandbox": "web"})]


async def test_the_clock_can_be_stepped_and_a_sandbox_is_as_old_as_it_is(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web", ttl=100))
    before = agent.manager.get("web")
    await trio.sleep(10)
    agent.step_clock(86_400)
    after = agent.manager.get("web")
    assert after.created_at - before.created_at == pytest.approx(86_400)
    assert after.ready_at - before.ready_at == pytest.approx(86_400)
    assert after.last_exited_at == 0
    await agent.kill()
    agent.step_clock(-3600)
    agent.start()
    await wait_all_tasks_blocked()
    (again,) = agent.manager.list()
    assert again.created_at - before.created_at == pytest.approx(82_800)
    await trio.sleep(89)
    assert len(agent.manager.list()) == 1
    await trio.sleep(2)
    assert agent.manager.list() == []


async def test_times_of_another_boot_stay_as_they_were_recorded(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web"))
    before = agent.manager.get("web")
    await agent.kill()
    agent.reboot()
    agent.step_clock(3600)
    agent.start()
    await wait_all_tasks_blocked()
    assert agent.manager.get("web").created_at == before.created_at

"""Pause and resume, time to live and idleness, and what another agent makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from arcbox_guest.errors import GuestError, NotFoundError, PausedError, PreconditionError
from arcbox_guest.sandboxes import states
from arcbox_guest.sandboxes.model import ExecSpec, IdleAction, Spec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.testing import MockClock

    from tests.guest.sandboxes.conftest import FakeAgent

TRUE = ExecSpec(argv=("true",))
LEAVE_BEHIND = ExecSpec(argv=("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo left"))


async def run(agent: FakeAgent, command: ExecSpec) -> int:
    async with agent.manager.process("web", command) as process:
        return await process.wait()


async def restart(agent: FakeAgent) -> None:
    await agent.kill()
    agent.start()
    await wait_all_tasks_blocked()


async def test_a_paused_sandbox_refuses_to_run_anything_until_it_is_resumed(agent: FakeAgent) -> None:
    await agent.create(Spec(id="web"))
    await agent.manager.pause("web")
    assert (agent.state("web"), agent.driver.is_paused("web")) == ("paused", True)
    executions = await agent.manager.executions("web")
    attempts: list[Callable[[], Awaitable[object]]] = [
        lambda: run(agent, TRUE),
        lambda: executions.start("job", TRUE, stdin=False),
        lambda: agent.manager.checkpoint("web"),
    ]
    for attempt in attempts:
        with pytest.raises(PausedError, match="web is paused"):
            await attempt()
    assert (await agent.manager.statistics("web")).processes == 1
    await agent.manager.reach("web", "its files")
    sandbox = await agent.manager.resume("web")
    assert (sandbox.state, agent.driver.is_paused("web")) == ("ready", False)
    assert await run(agent, TRUE) == 0
    assert agent.witness.of("web") == ["created", "ready", "paused", "resumed", "running", "idle"]


async def test_only_what_is_ready_can_be_paused_and_only_what_is_paused_resumed(agent: FakeAgent) -> None:
    with pytest.raises(NotFoundError):
        await agent.manager.pause("web")
    await agent.create(Spec(id="web", cmd=("sleep", "1000")))
    with pytest.raises(PreconditionError, match="web is running: only one that is ready can be paused"):
        await agent.manager.pause("web")
    with pytest.raises(PreconditionError, match="web is running: only one that is paused can be resumed"):
        await agent.manager.resume("web")
    agent.driver.sandboxes["web"].processes[0].exit(0)
    await wait_all_tasks_blocked()
    await agent.manager.pause("web")
    with pytest.raises(PreconditionError, match="web is paused"):
        await agent.manager.pause("web")


async def test_a_sandbox_that_can_not_be_frozen_stays_ready(agent: FakeAgent) -> None:
    await agent.create(Spec(id="web"))
    agent.driver.faults["pause"] = GuestError("it waits for a device")
    with pytest.raises(GuestError, match="device"):
        await agent.manager.pause("web")
    assert agent.state("web") == "ready"


async def test_what_is_to_run_while_a_sandbox_is_being_frozen_waits_and_is_refused(
    agent: FakeAgent, nursery: trio.Nursery
) -> None:
    await agent.create(Spec(id="web"))
    frozen = agent.driver.faults["pause"] = trio.Event()
    nursery.start_soon(agent.manager.pause, "web")
    await wait_all_tasks_blocked()

    async def try_to_run() -> None:
        with pytest.raises(PausedError):
            await run(agent, TRUE)

    nursery.start_soon(try_to_run)
    await wait_all_tasks_blocked()
    frozen.set()
    await wait_all_tasks_blocked()
    assert agent.state("web") == "paused"


async def test_a_paused_sandbox_is_stopped_what_was_left_behind_in_it_asked_first(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web"))
    await run(agent, LEAVE_BEHIND)
    await agent.manager.pause("web")
    begun = trio.current_time()
    await agent.manager.stop("web", 30)
    assert agent.state("web") == "stopped"
    assert trio.current_time() - begun < 1
    calls = [method for method, _ in agent.driver.calls]
    assert calls.index("terminate") < calls.index("resume") < calls.index("stop")


async def test_a_stop_while_a_sandbox_is_being_frozen_wins(agent: FakeAgent, nursery: trio.Nursery) -> None:
    await agent.create(Spec(id="web"))
    frozen = agent.driver.faults["pause"] = trio.Event()
    asked = agent.driver.faults["terminate"] = trio.Event()

    async def pause() -> None:
        with pytest.raises(PreconditionError, match="web is stopping"):
            await agent.manager.pause("web")

    nursery.start_soon(pause)
    await wait_all_tasks_blocked()
    nursery.start_soon(agent.manager.stop, "web")
    await wait_all_tasks_blocked()
    frozen.set()
    await wait_all_tasks_blocked()
    assert not agent.driver.is_paused("web")
    asked.set()
    await wait_all_tasks_blocked()
    assert agent.state("web") == "stopped"


@pytest.mark.parametrize("left_behind", [False, True])
async def test_a_paused_sandbox_is_removed_without_force_where_nothing_was_left_behind(
    autojump_clock: MockClock, agent: FakeAgent, *, left_behind: bool
) -> None:
    await agent.create(Spec(id="web"))
    if left_behind:
        await run(agent, LEAVE_BEHIND)
    await agent.manager.pause("web")
    if left_behind:
        with pytest.raises(GuestError, match="left behind"):
            await agent.manager.remove("web", force=False)
    await agent.manager.remove("web", force=left_behind)
    assert agent.driver.sandboxes == {}


async def test_a_pause_outlives_the_agent(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web"))
    await agent.manager.pause("web")
    await restart(agent)
    assert agent.state("web") == "paused"
    await agent.manager.resume("web")
    assert await run(agent, TRUE) == 0
    assert agent.witness.of("web") == ["created", "ready", "paused", "resumed", "running", "idle"]


@pytest.mark.parametrize("frozen", [False, True])
async def test_whether_a_sandbox_is_paused_the_driver_knows_better_than_the_record(
    autojump_clock: MockClock, agent: FakeAgent, *, frozen: bool
) -> None:
    await agent.create(Spec(id="web"))
    if not frozen:
        await agent.manager.pause("web")
    await agent.kill()
    agent.driver.sandboxes["web"].paused = frozen
    agent.start()
    await wait_all_tasks_blocked()
    assert agent.state("web") == ("paused" if frozen else "ready")


async def test_a_time_to_live_is_counted_anew_from_when_it_is_set(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web", ttl=10))
    await trio.sleep(9)
    await agent.manager.set_limits("web", ttl=20)
    await restart(agent)
    await trio.sleep(19)
    assert agent.state("web") == "ready"
    await trio.sleep(2)
    assert agent.manager.list() == []
    assert agent.witness.told[-1][2] == {"reason": "expired"}


async def test_a_time_to_live_can_be_set_later_and_taken_away(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web"))
    await agent.create(Spec(id="other", ttl=5))
    await agent.manager.set_limits("other", ttl=0)
    await agent.manager.pause("web")
    await agent.manager.set_limits("web", ttl=5)
    await trio.sleep(6)
    assert [sandbox.id for sandbox in agent.manager.list()] == ["other"]


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("action", IdleAction)
async def test_a_sandbox_that_was_idle_for_long_enough_is_paused_or_removed(
    autojump_clock: MockClock, agent: FakeAgent, action: IdleAction, *, restarted: bool
) -> None:
    await agent.create(Spec(id="web"))
    await agent.manager.set_limits("web", idle_timeout=10, on_idle=action)
    if restarted:
        await restart(agent)
    await trio.sleep(9.9)
    assert agent.state("web") == "ready"
    await trio.sleep(0.2)
    if action is IdleAction.PAUSE:
        assert agent.state("web") == "paused"
        await agent.manager.resume("web")
        await trio.sleep(9.9)
        assert agent.state("web") == "ready"
        await trio.sleep(0.2)
        assert agent.state("web") == "paused"
    else:
        assert agent.manager.list() == []
        assert agent.witness.told[-1][2] == {"reason": "idle"}


async def test_the_time_for_which_a_sandbox_may_be_idle_begins_when_it_was_adopted(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web"))
    await agent.manager.set_limits("web", idle_timeout=1, on_idle=IdleAction.PAUSE)
    await agent.kill()
    adopted = agent.driver.faults["adopt"] = trio.Event()
    agent.start()
    await trio.sleep(3)
    adopted.set()
    await trio.sleep(0.9)
    assert agent.state("web") == "ready"
    await trio.sleep(0.2)
    assert agent.state("web") == "paused"


async def test_a_sandbox_is_not_idle_while_something_runs_or_somebody_asks_for_something(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web", cmd=("sleep", "100")))
    await agent.manager.set_limits("web", idle_timeout=10, on_idle=IdleAction.PAUSE)
    await trio.sleep(60)
    assert agent.state("web") == "running"
    agent.driver.sandboxes["web"].processes[0].exit(0)
    uses: list[Callable[[], Awaitable[object]]] = [
        lambda: run(agent, TRUE),
        lambda: agent.manager.executions("web"),
        lambda: agent.manager.reach("web", "its files"),
    ]
    for use in uses:
        await trio.sleep(9)
        await use()
    await trio.sleep(9)
    assert agent.state("web") == "ready"
    await trio.sleep(2)
    assert agent.state("web") == "paused"


async def test_what_was_left_behind_keeps_a_sandbox_from_being_idle(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web"))
    await run(agent, LEAVE_BEHIND)
    await agent.manager.set_limits("web", idle_timeout=10)
    await trio.sleep(100)
    assert agent.state("web") == "ready"
    agent.driver.sandboxes["web"].terminate()
    await trio.sleep(21)
    assert agent.manager.list() == []


async def test_a_pause_of_an_idle_sandbox_that_fails_is_tried_again(
    autojump_clock: MockClock, agent: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    await agent.create(Spec(id="web"))
    agent.driver.faults["pause"] = GuestError("busy")
    await agent.manager.set_limits("web", idle_timeout=10, on_idle=IdleAction.PAUSE)
    await trio.sleep(11)
    assert "idle sandbox neither removed nor paused" in [record.message for record in caplog.records]
    del agent.driver.faults["pause"]
    await trio.sleep(60)
    assert agent.state("web") == "paused"


async def test_a_change_is_on_record_when_it_is_answered(agent: FakeAgent) -> None:
    await agent.create(Spec(id="web"))
    await agent.manager.set_limits("web", ttl=1000, idle_timeout=7, on_idle=IdleAction.PAUSE)
    (record,) = await agent.records.load()
    assert (record.expires_at, record.idle_timeout) == (agent.manager.get("web").expires_at, 7)
    assert record.on_idle is IdleAction.PAUSE
    await agent.manager.pause("web")
    (record,) = await agent.records.load()
    assert record.state in states.ALIVE - states.READY_OR_RUNNING

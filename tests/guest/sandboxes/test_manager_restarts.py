"""What an agent finds when another one ran before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from attrs import evolve
from trio.testing import wait_all_tasks_blocked

from arcbox_guest.errors import ConflictError, GuestError
from arcbox_guest.sandboxes.model import ExecSpec, Spec, State
from arcbox_guest.sandboxes.testing import BROKEN, FakeDriver

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.guest.sandboxes.conftest import FakeAgent


class FailsAtTheEnd(FakeDriver):
    """It has a fault that shows when the agent ends."""

    async def ended(self, sandbox_id: str) -> str:
        try:
            return await super().ended(sandbox_id)
        finally:
            raise RuntimeError("bug")


async def restart(agent: FakeAgent) -> None:
    await agent.kill()
    agent.start()
    await wait_all_tasks_blocked()


async def test_what_runs_is_adopted(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="idle", labels={"a": "b"}, ttl=1000))
    before = agent.manager.get("idle")
    await restart(agent)
    assert agent.manager.get("idle") == before
    assert ("adopt", "idle") in agent.driver.calls
    assert agent.witness.of("idle") == ["created", "ready"]
    async with agent.manager.process("idle", ExecSpec(argv=("echo", "here"))) as process:
        assert await process.wait() == 0
    await agent.manager.stop("idle")
    assert agent.state("idle") == "stopped"
    await agent.manager.remove("idle", force=False)
    assert agent.driver.sandboxes == {}


async def test_an_initial_command_goes_on_and_its_end_is_known(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="db", cmd=("sleep", "1000")))
    await agent.kill()
    (process,) = agent.driver.sandboxes["db"].processes
    process.write(b"while no agent ran\n")
    process.exit(5)
    agent.start()
    await wait_all_tasks_blocked()
    assert (agent.state("db"), agent.manager.get("db").last_exit_code) == ("ready", 5)
    assert agent.output("db") == b"while no agent ran\n"
    assert agent.witness.of("db") == ["created", "ready", "running", "idle"]


async def test_what_ran_for_a_peer_is_killed_and_the_sandbox_is_ready_again(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web"))
    agent.driver.sandboxes["web"].processes.append(agent.driver._start("web", ExecSpec(argv=("sleep", "1000"))))
    await agent.kill()
    (record,) = await agent.records.load()
    await agent.records.save(evolve(record, state=State.RUNNING))
    agent.start()
    await wait_all_tasks_blocked()
    assert agent.state("web") == "ready"
    assert agent.manager.get("web").last_exit_code == 137
    assert "killed with the agent's connections" in agent.manager.get("web").last_error
    assert agent.driver.sandboxes["web"].processes == []


async def test_what_does_not_run_any_more_has_failed_with_the_reason(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    for name in ("gone", "foreign", "well"):
        await agent.create(Spec(id=name))
    await agent.kill()
    for record in await agent.records.load():
        if record.id == "foreign":
            await agent.records.save(evolve(record, driver="microvm"))
    agent.driver.sandboxes["gone"].stop()
    agent.start()
    await wait_all_tasks_blocked()
    assert {sandbox.id: sandbox.error for sandbox in agent.manager.list()} == {
        "gone": "the agent was restarted, and then: sandbox gone does not run any more: its init has ended",
        "foreign": "the agent was restarted, and then: it was made by the driver microvm, which this agent has not got",
        "well": "",
    }
    assert list(agent.driver.sandboxes) == ["well"]


async def test_an_agent_that_is_killed_in_any_moment_of_a_creation_leaves_a_whole_sandbox_or_none(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    for steps in range(30):
        sandbox_id = f"box{steps}"
        with agent.manager.subscribe(sandbox_id):
            await agent.manager.create(Spec(id=sandbox_id))
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            await restart(agent)
        sandboxes = {sandbox.id: sandbox for sandbox in agent.manager.list()}
        if sandbox_id in sandboxes and sandboxes[sandbox_id].state is State.READY:
            assert agent.driver.sandboxes[sandbox_id].up
        else:
            assert sandbox_id not in agent.driver.sandboxes
            if sandbox_id in sandboxes:
                assert "restarted while the sandbox was starting" in sandboxes[sandbox_id].error


async def test_what_was_being_stopped_is_stopped(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web"))
    agent.driver.faults["stop"] = trio.Event()
    with trio.move_on_after(1):
        await agent.manager.stop("web")
    await agent.kill()
    del agent.driver.faults["stop"]
    agent.start()
    await wait_all_tasks_blocked()
    assert agent.state("web") == "stopped"
    assert not agent.driver.sandboxes["web"].up


async def test_many_are_adopted_at_the_same_time_and_a_driver_that_hangs_holds_up_requests_for_five_seconds(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    for number in range(20):
        await agent.create(Spec(id=f"box{number}"))
    await agent.kill()
    agent.driver.faults["adopt"] = answers = trio.Event()
    agent.start()
    begun = trio.current_time()
    await agent.manager.opened()
    assert trio.current_time() - begun == 5
    assert len([name for method, name in agent.driver.calls if method == "adopt"]) == 20
    answers.set()
    await wait_all_tasks_blocked()
    assert {str(sandbox.state) for sandbox in agent.manager.list()} == {"ready"}


async def test_what_had_ended_stays_as_it_was(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="stopped"))
    await agent.manager.stop("stopped")
    await trio.sleep(1)
    await agent.create(Spec(id="failed", rootfs=BROKEN))
    before = agent.manager.list()
    await restart(agent)
    assert agent.manager.list() == before
    await agent.manager.stop("stopped")
    for name in ("stopped", "failed"):
        await agent.manager.remove(name, force=False)
    assert agent.driver.sandboxes == {}


async def test_what_has_no_record_is_cleared_away_and_not_listed(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web"))
    await agent.kill()
    await agent.records.delete("web")
    agent.start()
    await wait_all_tasks_blocked()
    assert agent.manager.list() == []
    assert agent.driver.sandboxes == {}


async def test_what_can_not_be_cleared_away_is_listed_with_the_reason_and_keeps_its_id(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web"))
    await agent.create(Spec(id="lost"))
    await agent.kill()
    await agent.records.delete("lost")
    agent.driver.sandboxes["web"].stop()
    agent.driver.faults["destroy"] = GuestError("busy")
    agent.start()
    await wait_all_tasks_blocked()
    assert {sandbox.id: sandbox.error for sandbox in agent.manager.list()} == {
        "web": "the agent was restarted, and then: sandbox web does not run any more: its init has ended",
        "lost": "a former agent left it without a record",
    }
    assert sorted(sandbox.id for sandbox in await agent.records.load()) == ["lost", "web"]
    with pytest.raises(ConflictError, match="lost exists already"):
        await agent.manager.create(Spec(id="lost"))
    del agent.driver.faults["destroy"]
    for name in ("web", "lost"):
        await agent.manager.remove(name, force=False)
    assert agent.driver.sandboxes == {}


async def test_a_driver_that_hangs_at_the_start_does_not_hide_the_records_and_creations_wait_for_it(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    await agent.create(Spec(id="web"))
    await agent.kill()
    agent.driver.faults["existing"] = agent.driver.faults["adopt"] = trio.Event()
    agent.start()
    await trio.sleep(6)
    assert agent.state("web") == "ready"
    await agent.create(Spec(id="db"))
    assert (agent.state("web"), agent.state("db")) == ("failed", "ready")


@pytest.mark.parametrize("fault", [GuestError("no"), RuntimeError("bug")])
async def test_a_driver_that_can_not_say_what_exists_keeps_nobody_from_making_more(
    autojump_clock: MockClock, agent: FakeAgent, fault: Exception
) -> None:
    await agent.kill()
    agent.driver.faults["existing"] = fault
    agent.start()
    await agent.create(Spec(id="web"))
    assert agent.state("web") == "ready"


async def test_time_to_live_goes_on_while_no_agent_runs(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="over", ttl=10))
    await agent.create(Spec(id="soon", ttl=30))
    await agent.kill()
    await trio.sleep(20)
    agent.start()
    await wait_all_tasks_blocked()
    await trio.sleep(1)
    assert [sandbox.id for sandbox in agent.manager.list()] == ["soon"]
    await trio.sleep(10)
    assert agent.manager.list() == []


async def test_an_agent_that_ends_at_once_has_recorded_what_it_did_last(
    autojump_clock: MockClock, agent: FakeAgent
) -> None:
    for name in ("stopped", "removed"):
        await agent.create(Spec(id=name))
    await agent.manager.remove("removed", force=True)
    await agent.manager.stop("stopped")
    await agent.kill()
    (record,) = await agent.records.load()
    assert (record.id, record.state) == ("stopped", State.STOPPED)


async def test_what_ends_after_its_agent_did_is_no_news(autojump_clock: MockClock, agent: FakeAgent) -> None:
    await agent.create(Spec(id="web"))
    async with agent.manager.process("web", ExecSpec(argv=("sleep", "1000"))) as process:
        await agent.kill()
        agent.start()
        assert await process.wait() == 137
        await wait_all_tasks_blocked()
    assert agent.witness.of("web") == ["created", "ready", "running", "idle"]  # as the next agent has it


async def test_an_agent_ends_even_if_its_driver_fails_in_the_same_moment(
    autojump_clock: MockClock, agent: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    await agent.kill()
    agent.driver = FailsAtTheEnd()
    agent.start()
    await agent.create(Spec(id="web"))
    await restart(agent)
    assert "sandbox lost" in [record.message for record in caplog.records]
    assert agent.state("web") == "ready"

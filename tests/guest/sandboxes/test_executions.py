"""Executions of one sandbox, and what becomes of them when the agent is another one."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from arcbox_guest.sandboxes import executions as module
from arcbox_guest.sandboxes.detached import Channel
from arcbox_guest.sandboxes.executions import Executions
from arcbox_guest.sandboxes.model import ExecSpec, Reason, Spec
from arcbox_guest.sandboxes.testing import ROOTFS, FakeDriver
from arcbox_guest.sandboxes.workload import End, Workload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from arcbox_guest.sandboxes.records import Records

CAT = ExecSpec(argv=("cat",))


class Agent:
    """One agent after the other, of one sandbox that is called box."""

    def __init__(self, records: Records) -> None:
        self.driver = FakeDriver()
        self.ends: list[End] = []
        self._records = records

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Executions]:
        """An agent that is killed when the context is left."""
        async with trio.open_nursery() as nursery:
            yield Executions(
                sandbox_id="box",
                driver=self.driver,
                output=self._records.output,
                admit=lambda: Workload(self.ends.append),
                until_quiet=trio.lowlevel.checkpoint,
                explain=lambda: None,
                start_soon=nursery.start_soon,
                now=trio.current_time,
            )
            nursery.cancel_scope.cancel()


@pytest.fixture
async def agent(records: Records, autojump_clock: trio.testing.MockClock) -> Agent:
    agent = Agent(records)
    await agent.driver.create(Spec(id="box", rootfs=ROOTFS))
    return agent


async def test_the_next_agent_has_them_with_their_output_and_their_input(agent: Agent) -> None:
    async with agent.running() as first:
        execution = await first.start("job", CAT, stdin=True)
        await execution.process.write_stdin(0, b"before ")
        await wait_all_tasks_blocked()
    assert agent.ends == []
    async with agent.running() as second:
        await second.resume()
        (execution,) = second.list()
        assert (execution.id, execution.process.exit) == ("job", None)
        await execution.process.write_stdin(0, b"before after", last=True)
        assert (await execution.process.wait()).code == 0
        await wait_all_tasks_blocked()
        assert (await execution.process.read(Channel.STDOUT, 0)).data == b"before after"
    assert agent.ends == [End(0)]


async def test_the_log_of_an_initial_command_is_whole_after_a_restart(agent: Agent, records: Records) -> None:
    async with agent.running() as first:
        await first.run_initial_command(ExecSpec(argv=("echo", "hello")), Workload(agent.ends.append))
    assert not records.output("box").path.exists()  # the agent was killed before
    async with agent.running() as second:
        await second.resume()
        await wait_all_tasks_blocked()
        assert second.list() == []
    assert records.output("box").path.read_bytes() == b"hello\n"


async def test_a_time_limit_counts_from_the_start_whoever_counts(agent: Agent) -> None:
    async with agent.running() as first:
        await first.start("job", ExecSpec(argv=("sleep", "1000"), timeout=0.001), stdin=False)
    async with agent.running() as second:
        await second.resume()
        assert (await second.get("job").process.wait()).code == 137
        await wait_all_tasks_blocked()
    (end,) = agent.ends
    assert end.reason is Reason.TIMEOUT


async def test_of_those_that_have_ended_the_oldest_are_forgotten(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ENDED", 2)
    async with agent.running() as executions:
        await executions.start("running", CAT, stdin=True)
        for number in range(4):
            await (await executions.start(str(number), ExecSpec(argv=("true",)), stdin=False)).process.wait()
        await executions.start("last", CAT, stdin=True)
        assert [execution.id for execution in executions.list()] == ["running", "2", "3", "last"]
        assert list(agent.driver.sandboxes["box"].recordings) == ["running", "2", "3", "last"]

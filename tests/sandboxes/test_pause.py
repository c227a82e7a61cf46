"""Pause, resume and limits that are set later, with real sandboxes, and an agent that is killed meanwhile."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_client.errors import PausedError, PreconditionFailedError

if TYPE_CHECKING:
    from arcbox_client import AgentClient
    from tests.sandboxes.conftest import Machine

TICKER = "setsid sh -c 'while :; do echo x >>/ticks; done' >/dev/null 2>&1 &"
"""Leaves something behind that writes all the time."""


async def size(client: AgentClient) -> int:
    return (await client.file_stat("box", "/ticks")).size


async def until_it_ticks(client: AgentClient, before: int) -> None:
    with trio.fail_after(20):
        while await size(client) <= before:  # noqa: ASYNC110  what ticks is in a sandbox
            await trio.sleep(0.01)


async def test_a_paused_sandbox_stands_still_keeps_its_files_at_hand_and_outlives_the_agent(machine: Machine) -> None:
    machine.settings = "sandbox.stop_at_exit = false\n"
    with machine.running():
        async with machine.client() as client:
            await machine.ready(client, "box")
            assert (await client.run("box", ["sh", "-c", f"touch /ticks; {TICKER}"])).exit_code == 0
            await until_it_ticks(client, 0)
            await client.sandbox_pause("box")
            stopped_at = await size(client)
            for attempt in (client.run("box", ["true"]), client.execution_start("box", ["true"])):
                with pytest.raises(PausedError):
                    await attempt
            await client.file_write("box", "/written", b"while it is paused")
            machine.process.kill()
    with machine.running():
        async with machine.client() as client:
            assert (await client.sandbox_inspect("box")).state == "paused", machine.log
            assert await size(client) == stopped_at
            await client.sandbox_resume("box")
            await until_it_ticks(client, stopped_at)
            assert (await client.run("box", ["cat", "/written"])).stdout == b"while it is paused"
            await client.sandbox_pause("box")
            await client.sandbox_stop("box", timeout=30)
            assert (await client.sandbox_inspect("box")).state == "stopped"
            await client.sandbox_remove("box")
    assert machine.leftovers() == []


async def test_limits_that_were_set_later_outlive_the_agent(machine: Machine) -> None:
    machine.settings = "sandbox.stop_at_exit = false\n"
    with machine.running():
        async with machine.client() as client:
            await machine.ready(client, "idle")
            await machine.ready(client, "expired", ttl=1000)
            await client.sandbox_set_lifecycle("idle", idle_timeout=1, on_idle="pause")
            await client.sandbox_set_lifecycle("expired", ttl=1)
            machine.process.kill()
    with machine.running():
        async with machine.client() as client:
            await machine.until(client, "idle", "paused")
            with trio.fail_after(20):
                while len((await client.sandbox_list()).sandboxes) > 1:  # noqa: ASYNC110  the agent is not in here
                    await trio.sleep(0.01)
            await client.sandbox_remove("idle", force=True)
    assert machine.leftovers() == []


async def test_the_command_line_and_the_handle_pause_and_resume(machine: Machine, client: AgentClient) -> None:
    async def arcboxctl(*arguments: str) -> str:
        assert machine.agent is not None
        command = [sys.executable, "-m", "arcbox_client.cli", "--connect", machine.agent.address, "sandbox", *arguments]
        return (await trio.run_process(command, capture_stdout=True)).stdout.decode()

    async with client.sandbox(memory_mib=64) as box:
        await arcboxctl("pause", box.id)
        assert "paused" in await arcboxctl("ls")
        with pytest.raises(PreconditionFailedError):
            await box.pause()
        await arcboxctl("unpause", box.id)
        await box.set_lifecycle(on_idle="pause")
        await arcboxctl("update", "--ttl", "1h", "--idle", "1s", box.id)
        await machine.until(client, box.id, "paused")
        await box.resume()

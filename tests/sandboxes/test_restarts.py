"""Sandboxes outlive their agent, however that ends, and the next one goes on with them."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import pytest
import trio

from arcbox_client.errors import ConnectionLostError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.sandboxes.conftest import Machine


ADOPTED: Final = int(os.environ.get("ARCBOX_TEST_ADOPTED", "8"))
"""Sandboxes that an agent leaves to the next one at the same time."""


@asynccontextmanager
async def leaving_sandboxes(machine: Machine) -> AsyncIterator[Machine]:
    """A machine whose agents leave their sandboxes running; a last one removes them."""
    machine.settings = "sandbox.stop_at_exit = false\n"
    try:
        yield machine
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 60), machine.running():
            async with machine.client() as client:
                for sandbox in (await client.sandbox_list()).sandboxes:
                    await client.sandbox_remove(sandbox.id, force=True)


@pytest.mark.parametrize("end", ["killed", "asked to end"])
async def test_sandboxes_go_on_with_their_limits_and_files_and_lost_sessions_end(machine: Machine, end: str) -> None:
    async with leaving_sandboxes(machine):
        with machine.running():
            async with machine.client() as client:
                await machine.ready(client, "box", labels={"a": "b"}, memory_mib=48)
                async with client.sandbox_exec("box", ["sh", "-c", "echo kept >/file; sleep 7777 & exit"]) as session:
                    assert await session.wait() == 0
                before = await client.sandbox_inspect("box")
                async with client.sandbox_exec("box", ["sh", "-c", "setsid sleep 8888 & echo up; cat"]) as session:
                    await anext(session)
                    await machine.until_recorded_as("box", "running")
                    if end == "killed":
                        machine.process.kill()
                    else:
                        machine.process.terminate()
                    with pytest.raises(ConnectionLostError):
                        await session.wait()
        with machine.running():
            async with machine.client() as client:
                after = await client.sandbox_inspect("box")
                assert (after.state, after.created_at, dict(after.labels)) == ("ready", before.created_at, {"a": "b"})
                assert after.limits == before.limits
                async with client.sandbox_exec("box", ["cat", "/file"]) as session:
                    assert (await session.collect()).stdout == b"kept\n"
                async with client.sandbox_exec("box", ["ps", "-o", "args"]) as session:
                    processes = (await session.collect()).stdout.decode()
                assert "sleep 7777" in processes
                assert "sleep 8888" not in processes
                async with client.sandbox_exec("box", ["tail", "/dev/zero"]) as session:
                    assert await session.wait() == 137
                assert (await client.sandbox_inspect("box")).error.startswith("oom: ")
                await client.sandbox_remove("box", force=True)
        assert machine.leftovers() == []


async def test_an_initial_command_goes_on_when_the_agent_is_killed_and_its_output_is_complete(machine: Machine) -> None:
    script = "i=0; while [ $i -lt 200 ]; do echo $i; i=$((i+1)); [ $i -ne 100 ] || until [ -e /go ]; do :; done; done"
    async with leaving_sandboxes(machine):
        with machine.running():
            async with machine.client() as client:
                await machine.ready(client, "box", cmd=["sh", "-c", f"{script}; exit 7"])
                log = trio.Path(machine.data_dir, "records", "box.log")
                with trio.fail_after(20):
                    while not await log.exists():  # noqa: ASYNC110  as in `until`
                        await trio.sleep(0.01)
                machine.process.kill()
        with machine.running():
            async with machine.client() as client:
                assert (await client.sandbox_inspect("box")).state == "running", machine.log
                await client.file_write("box", "/go", b"")  # no process: its exit code could be the last one
                await machine.until(client, "box", "ready")
                assert (await client.sandbox_inspect("box")).last_exit_code == 7
                with trio.fail_after(20):
                    while len(await log.read_bytes()) < 690:  # noqa: ASYNC110  it is written beside the end
                        await trio.sleep(0.01)
                assert await log.read_text() == "".join(f"{number}\n" for number in range(200))


async def test_a_sandbox_that_ended_while_no_agent_ran_has_failed_with_the_reason(machine: Machine) -> None:
    async with leaving_sandboxes(machine):
        with machine.running():
            async with machine.client() as client:
                await machine.ready(client, "box")
        machine.kill_inits()
        with machine.running():
            async with machine.client() as client:
                info = await client.sandbox_inspect("box")
                assert (info.state, info.error) == (
                    "failed",
                    "the agent was restarted, and then: its init had ended",
                ), machine.log
                await client.sandbox_remove("box")
    assert machine.leftovers() == []


async def test_many_sandboxes_are_adopted_and_each_counts_on_and_runs_what_it_is_given(machine: Machine) -> None:
    count = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.5; done"
    names = [f"box{number}" for number in range(ADOPTED)]

    async def log_of(name: str, longer_than: int) -> list[str]:
        """The lines of a log that is longer than that, but for the last one, which may be incomplete."""
        log = trio.Path(machine.data_dir, "records", f"{name}.log")
        with trio.fail_after(60):
            while True:
                lines = (await log.read_text()).split("\n")[:-1] if await log.exists() else []
                if len(lines) > longer_than:
                    return lines
                await trio.sleep(0.02)

    async with leaving_sandboxes(machine):
        with machine.running():
            async with machine.client() as client:
                for name in names:
                    await machine.ready(client, name, cmd=["sh", "-c", count])
                before = {name: len(await log_of(name, 0)) for name in names}
                machine.process.kill()
        with machine.running():
            async with machine.client() as client:
                sandboxes = (await client.sandbox_list()).sandboxes
                assert [(sandbox.id, sandbox.state) for sandbox in sandboxes] == [(name, "running") for name in names]
                print([line for line in machine.log.splitlines() if "sandboxes taken over" in line])  # noqa: T201  with -s
                for name in names:
                    async with client.sandbox_exec(name, ["hostname"]) as session:
                        assert (await session.collect()).stdout.decode().strip() == name
                for name in names:
                    lines = await log_of(name, before[name] + 1)
                    assert lines == [str(number) for number in range(len(lines))]


async def test_a_forwarded_port_leads_to_its_sandbox_when_the_agent_was_killed(machine: Machine) -> None:
    async def get(port: int) -> bytes:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"GET /index.html HTTP/1.0\r\n\r\n")
            return b"".join([piece async for piece in stream])

    async with leaving_sandboxes(machine):
        with machine.running():
            async with machine.client() as client:
                await machine.ready(client, "box")
                await client.file_write("box", "/index.html", b"here")
                await client.execution_start("box", ["httpd", "-f", "-p", "8080", "-h", "/"])
                await client.wait_for_port("box", 8080, timeout=20)
                port = await client.port_forward("box", 8080)
                taken_back = await client.port_forward("box", 8081)
                await client.port_forward_remove("box", 8081)
                assert (await get(port)).endswith(b"here")
                machine.process.kill()
        with machine.running():
            async with machine.client() as client:
                assert await client.port_forward("box", 8080) == port
                assert (await get(port)).endswith(b"here")
                with pytest.raises(OSError, match=str(taken_back)):
                    await get(taken_back)

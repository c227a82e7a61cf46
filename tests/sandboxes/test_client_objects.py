"""What a program writes with `arcbox_client`: sandboxes as contexts, their files, and why what ran there was killed."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from arcbox_client import Exited, FileChange, NotFoundError, PreconditionFailedError, connect

if TYPE_CHECKING:
    from pathlib import Path

    from arcbox_client import AgentClient
    from arcbox_client._agent_process import RunningAgent
    from tests.sandboxes.conftest import Machine


async def test_a_sandbox_and_its_files_last_as_long_as_the_context(machine: Machine, client: AgentClient) -> None:
    async with client.sandbox(memory_mib=64) as box:
        done = await box.run(["sh", "-c", "cat; echo bad >&2; exit 3"], stdin=b"good")
        assert (done.exit_code, done.stdout, done.stderr, done.reason) == (3, b"good", b"bad\n", None)
        await box.files.mkdir("/srv/deep")
        async with box.files.watch("/srv") as changes:
            await box.files.write("/srv/a", b"x" * 3_000_000, mode=0o600)
            assert isinstance(await anext(changes), FileChange)
        assert await box.files.read("/srv/a") == b"x" * 3_000_000
        info = await box.files.stat("/srv/a")
        assert (info.kind, info.size, info.mode & 0o777) == ("file", 3_000_000, 0o600)
        await box.files.move("/srv/a", "/srv/deep/b")
        assert [entry.name for entry in await box.files.list("/srv")] == ["deep"]
        with pytest.raises(PreconditionFailedError):
            await box.files.remove("/srv")
        await box.files.remove("/srv", recursive=True)
        with pytest.raises(NotFoundError):
            await box.files.stat("/srv")
    assert machine.leftovers() == []


async def test_what_was_killed_says_why(machine: Machine, client: AgentClient) -> None:
    await machine.ready(client, "box", memory_mib=32)
    hungry = await client.run("box", ["tail", "/dev/zero"])
    slow = await client.run("box", ["sleep", "1000"], timeout=1)
    assert (hungry.exit_code, hungry.reason, slow.exit_code, slow.reason) == (137, "oom", 137, "timeout")
    async with client.sandbox_exec("box", ["sh", "-c", "echo up; exec sleep 1000"]) as session:
        await anext(session)
        await client.sandbox_remove("box", force=True)
        assert await session.wait() == 137
    assert await client.kill_reason("box") == "removed"


def let(address: Path, lead_to: RunningAgent) -> None:
    """Have the address of an agent's socket lead to another agent's."""
    address.unlink(missing_ok=True)
    address.symlink_to(lead_to.address.removeprefix("unix:"))


async def test_an_execution_goes_on_while_the_agent_is_killed_and_started_again(machine: Machine) -> None:
    address = machine.directory / "agent.sock"
    with machine.running() as first:
        let(address, first)
        async with connect(f"unix:{address}") as client:
            await machine.ready(client, "box")
            execution = await client.sandbox_handle("box").start(["sh", "-c", "echo up; cat; exit 5"], stdin=True)
            async with execution.attach() as output:
                assert (await anext(output)).data == b"up\n"
                assert first.pid is not None
                os.kill(first.pid, signal.SIGKILL)
                with machine.running() as second:
                    let(address, second)
                    await execution.write_stdin(b"after")
                    await execution.close_stdin()
                    assert b"".join([piece.data async for piece in output]) == b"after"
                    assert output.exited == Exited(5, 0, "")
                    done = await execution.collect()
                    assert (done.exit_code, done.stdout) == (5, b"up\nafter")
                    async with machine.client() as again:
                        await again.sandbox_remove("box", force=True)
    assert machine.leftovers() == []

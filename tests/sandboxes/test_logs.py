"""What initial commands wrote, as a host gets to see it."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from arcbox_agent.settings import Settings
from arcbox_client.client import DEFAULT_DATA_DIR
from arcbox_client.errors import FileReadError, NotFoundError

if TYPE_CHECKING:
    from arcbox_client import AgentClient
    from tests.sandboxes.conftest import Machine

LIMIT = 256 * 1024


async def has_said(machine: Machine, client: AgentClient, text: bytes, *cmd: str) -> bytes:
    """Make a sandbox with an initial command, and wait until what it says is kept: its log then."""
    await machine.ready(client, "box", cmd=cmd)
    with trio.fail_after(20):
        while text not in (log := await client.sandbox_log("box", data_dir=machine.data_dir)):  # noqa: ASYNC110  a file
            await trio.sleep(0.01)
    return log


def test_where_a_host_looks_is_where_an_agent_keeps_it() -> None:
    assert Settings().sandbox.data_dir == DEFAULT_DATA_DIR


async def test_what_an_initial_command_wrote_can_be_read(machine: Machine, client: AgentClient) -> None:
    log = await has_said(machine, client, b"out\n\xff\0", "sh", "-c", "printf 'out\\n\\377\\0'")
    await client.sandbox_stop("box")
    assert await client.sandbox_log("box", data_dir=machine.data_dir) == log
    await client.sandbox_remove("box")
    with pytest.raises(NotFoundError):
        await client.sandbox_log("box", data_dir=machine.data_dir)
    assert machine.leftovers() == []


async def test_a_command_that_writes_without_end_keeps_its_newest_lines(machine: Machine, client: AgentClient) -> None:
    log = await has_said(machine, client, b"\n1000000\n", "seq", "1000000")
    assert LIMIT <= len(log) <= 2 * LIMIT
    lines = log.splitlines()
    assert lines == [b"%d" % number for number in range(int(lines[0]), 1_000_001)]


async def test_no_command_leaves_an_empty_log_and_another_directory_is_an_error(
    machine: Machine, client: AgentClient
) -> None:
    await machine.ready(client, "box")
    await machine.until_recorded("box")
    assert await client.sandbox_log("box", data_dir=machine.data_dir) == b""
    with pytest.raises(FileReadError, match="elsewhere"):
        await client.sandbox_log("box", data_dir=str(machine.directory / "elsewhere"))


async def test_a_log_can_be_read_after_its_agent_was_killed(machine: Machine) -> None:
    with machine.running():
        async with machine.client() as client:
            await has_said(machine, client, b"end\n", "sh", "-c", "echo 'before the end' >&2")
            machine.process.kill()
    with machine.running():
        async with machine.client() as client:
            assert await client.sandbox_log("box", data_dir=machine.data_dir) == b"before the end\n"
            await client.sandbox_remove("box")
    assert machine.leftovers() == []


async def arcboxctl(machine: Machine, *arguments: str) -> tuple[int, bytes, bytes]:
    assert machine.agent is not None
    done = await trio.run_process(
        [sys.executable, "-m", "arcbox_client.cli", "sandbox", "logs", *arguments],
        env={**os.environ, "ARCBOX_CONNECT": machine.agent.address, "ARCBOX_SANDBOX_DATA_DIR": machine.data_dir},
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


async def test_people_get_it_as_it_is_or_the_end_of_it(machine: Machine, client: AgentClient) -> None:
    await has_said(machine, client, b"three", "sh", "-c", "echo one; echo two; printf three")
    assert await arcboxctl(machine, "box") == (0, b"one\ntwo\nthree", b"")
    assert await arcboxctl(machine, "box", "--tail", "2") == (0, b"two\nthree", b"")
    assert await arcboxctl(machine, "box", "--tail", "0") == (0, b"", b"")
    _, as_json, _ = await arcboxctl(machine, "box", "--tail=1", "--json")
    assert json.loads(as_json) == {"id": "box", "log": "dGhyZWU="}


async def test_people_are_told_in_one_line_why_there_is_none(machine: Machine, client: AgentClient) -> None:
    code, _, said = await arcboxctl(machine, "nobody")
    assert (code, said) == (1, b"arcboxctl: SandboxInspectRequest: there is no sandbox 'nobody' (404)\n")
    await machine.ready(client, "box")
    code, _, said = await arcboxctl(machine, "box", "--data-dir", "/nowhere")
    assert (code, said.count(b"\n")) == (1, 1)
    assert b"/nowhere/records/box.json" in said
    assert b"--data-dir" in said

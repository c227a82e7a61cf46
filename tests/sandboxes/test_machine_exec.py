"""`arcboxctl exec` with a real agent behind it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from tests.client.terminal import on_a_terminal

if TYPE_CHECKING:
    from tests.sandboxes.conftest import Machine

ARCBOXCTL = [sys.executable, "-m", "arcbox_client.cli", "exec"]


@pytest.fixture
def allowed(machine: Machine) -> None:
    machine.settings = "machine.allow_exec = true\n"


@pytest.mark.usefixtures("allowed")
async def test_a_command_runs_in_the_guest_with_its_stdin_and_its_exit_code(machine: Machine) -> None:
    with machine.running() as agent:
        script = "cat; echo $VALUE; pwd; echo bad >&2; exit 5"
        command = [*ARCBOXCTL, "-i", "-e", "VALUE=set", "-w", "/usr", "sh", "-c", script]
        env = {**os.environ, "ARCBOX_CONNECT": agent.address}
        done = await trio.run_process(
            command, stdin=b"typed\n", env=env, capture_stdout=True, capture_stderr=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (5, b"typed\nset\n/usr\n", b"bad\n")


@pytest.mark.usefixtures("allowed")
async def test_it_has_this_terminal(machine: Machine) -> None:
    with machine.running() as agent, trio.fail_after(30):
        command = [*ARCBOXCTL, "-it", "sh", "-c", "stty size; read line; exit $line"]
        async with on_a_terminal(command, {"ARCBOX_CONNECT": agent.address}, columns=91, rows=33) as terminal:
            await terminal.until_shown(b"33 91\r\n")
            terminal.type(b"7\r")
            assert await terminal.exit_code() == 7


async def test_an_agent_that_does_not_allow_it_says_so(machine: Machine) -> None:
    with machine.running() as agent:
        env = {**os.environ, "ARCBOX_CONNECT": agent.address}
        done = await trio.run_process([*ARCBOXCTL, "true"], env=env, capture_stderr=True, check=False)
        assert done.returncode == 125
        assert b"machine.allow_exec" in done.stderr
